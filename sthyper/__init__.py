"""sthyper: tune hyperparameters around training, inside training and across workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sthyper._version import __version__

if TYPE_CHECKING:
    from sthyper._tune import tune
    from sthyper.experiment import load_experiment
    from sthyper.report import Reporter, TrialExit
    from sthyper.stopping_criterion import StoppingCriterion
    from sthyper.tuner import Tuner

__all__ = ["Reporter", "StoppingCriterion", "TrialExit", "Tuner", "__version__", "load_experiment", "tune"]

# Names are imported on first use, so that a training script pays for the Reporter only.
_HOMES = {
    "Reporter": "sthyper.report",
    "StoppingCriterion": "sthyper.stopping_criterion",
    "TrialExit": "sthyper.report",
    "Tuner": "sthyper.tuner",
    "load_experiment": "sthyper.experiment",
    "tune": "sthyper._tune",
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
