"""Backends run trials."""

from __future__ import annotations

from sthyper.backend.base import (
    EndEvent,
    ExperimentContext,
    MessageEvent,
    ReportEvent,
    RunningTrial,
    TrialBackend,
    TrialEvent,
)
from sthyper.backend.gpu import get_num_gpus
from sthyper.backend.local import LocalBackend
from sthyper.backend.python import PythonBackend
from sthyper.backend.remote import RemoteBackend

__all__ = [
    "EndEvent",
    "ExperimentContext",
    "LocalBackend",
    "MessageEvent",
    "PythonBackend",
    "RemoteBackend",
    "ReportEvent",
    "RunningTrial",
    "TrialBackend",
    "TrialEvent",
    "get_num_gpus",
]
