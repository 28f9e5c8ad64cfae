"""Backends run trials."""

from __future__ import annotations

from sthyper.backend.base import (
    EndEvent,
    ExperimentContext,
    MessageEvent,
    ReportEvent,
    TrialBackend,
    TrialEvent,
)
from sthyper.backend.local import LocalBackend

__all__ = [
    "EndEvent",
    "ExperimentContext",
    "LocalBackend",
    "MessageEvent",
    "ReportEvent",
    "TrialBackend",
    "TrialEvent",
]
