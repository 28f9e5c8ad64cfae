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
from sthyper.backend.gpu import get_num_gpus
from sthyper.backend.local import LocalBackend
from sthyper.backend.python import PythonBackend

__all__ = [
    "EndEvent",
    "ExperimentContext",
    "LocalBackend",
    "MessageEvent",
    "PythonBackend",
    "ReportEvent",
    "TrialBackend",
    "TrialEvent",
    "get_num_gpus",
]
