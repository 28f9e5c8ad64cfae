"""Lightning callbacks."""

from __future__ import annotations

from sthyper.callbacks.lightning.report import TuneReportCallback

__all__ = ["TuneReportCallback"]
