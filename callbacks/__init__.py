"""Callbacks for training code and for the tuner; names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthyper.callbacks.lightning.gates import GateTuningCallback
    from sthyper.callbacks.lightning.report import TuneReportCallback
    from sthyper.callbacks.lightning.self_tuning import SelfTuningCallback

__all__ = ["GateTuningCallback", "SelfTuningCallback", "TuneReportCallback"]

_HOMES = {
    "GateTuningCallback": "sthyper.callbacks.lightning.gates",
    "SelfTuningCallback": "sthyper.callbacks.lightning.self_tuning",
    "TuneReportCallback": "sthyper.callbacks.lightning.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
