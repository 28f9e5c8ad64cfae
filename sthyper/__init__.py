"""sthyper: tune hyperparameters around training, inside training and across workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sthyper._lazy import lazy_names
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
    "Reporter": "report",
    "StoppingCriterion": "stopping_criterion",
    "TrialExit": "report",
    "Tuner": "tuner",
    "load_experiment": "experiment",
    "tune": "_tune",
}

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
