"""Callbacks for training code and for the tuner; names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthyper._lazy import lazy_names

if TYPE_CHECKING:
    from sthyper.callbacks.lightning.gates import GateTuningCallback
    from sthyper.callbacks.lightning.report import TuneReportCallback
    from sthyper.callbacks.lightning.self_tuning import SelfTuningCallback

__all__ = ["GateTuningCallback", "SelfTuningCallback", "TuneReportCallback"]

_HOMES = {
    "GateTuningCallback": "lightning.gates",
    "SelfTuningCallback": "lightning.self_tuning",
    "TuneReportCallback": "lightning.report",
}

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
