"""Checks of the Tuner's arguments and of the process that it is started in."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from sthyper.constants import ENV_TRIAL_ID
from sthyper.errors import ExperimentError, closest
from sthyper.results_callback import StoreResultsCallback
from sthyper.tuner_callback import TunerCallback

__all__ = [
    "check_count",
    "check_process",
    "check_seconds",
    "check_switches",
    "metric_name",
    "users_stacklevel",
    "with_results",
]

logger = logging.getLogger(__name__)


def check_count(name: str, value: Any, least: int) -> None:
    """Raise unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_switches(**switches: Any) -> None:
    """Raise unless all arguments, given by their names, are bools."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_seconds(**durations: Any) -> None:
    """Raise unless all arguments, given by their names, are finite numbers of seconds of at least 0."""
    for name, value in durations.items():
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of seconds >= 0, got {value!r}")


def with_results(callbacks: Sequence[TunerCallback] | None) -> list[TunerCallback]:
    """Return the callbacks, with one that stores the results in front if there is none."""
    if isinstance(callbacks, TunerCallback):
        raise TypeError(f"callbacks must be a list of TunerCallback objects, got one: callbacks=[{callbacks!r}]")
    if callbacks is not None and not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of TunerCallback objects, got {callbacks!r}")
    result = list(callbacks or [])
    for callback in result:
        if not isinstance(callback, TunerCallback):
            raise TypeError(f"callbacks must be TunerCallback objects, got {callback!r}")
    if not any(isinstance(callback, StoreResultsCallback) for callback in result):
        result.insert(0, StoreResultsCallback())
    return result


def metric_name(names: list[str], metric: int | str) -> str:
    """Return the name of a metric that is given by name or index."""
    if isinstance(metric, str):
        if metric not in names:
            raise ValueError(f"metric must be one of {names}, got {metric!r}{closest(metric, names)}")
        return metric
    if isinstance(metric, bool) or not isinstance(metric, int):
        raise TypeError(f"metric must be a name or an index, got {metric!r}")
    if not 0 <= metric < len(names):
        raise ValueError(f"metric must be a name or an index below {len(names)}, got {metric!r}")
    return names[metric]


def users_stacklevel() -> int:
    """Return the ``stacklevel`` with which a warning of the calling function names the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] == "sthyper" and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def check_process() -> None:
    """Refuse to run where a tuner cannot be meant, and warn of left-over variables of a distributed job."""
    if sys.platform == "win32":
        raise ExperimentError("sthyper runs trials on Linux and macOS; Windows is not supported (WSL is)")
    if os.environ.get(ENV_TRIAL_ID):
        raise ExperimentError(
            "a Tuner was started inside a trial: the training script seems to be the launcher itself. Put the training "
            "into a script of its own, or the Tuner below `if __name__ == '__main__':` of a script that is not the "
            "entry point"
        )
    env = os.environ
    ranked = "RANK" in env or "LOCAL_RANK" in env
    world = env.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in env or (ranked and world.isdigit() and int(world) > 1 and "MASTER_ADDR" in env):
        raise ExperimentError(
            "a Tuner was started inside a distributed rank (torchrun or another launcher); start it as a plain "
            "process: each trial may itself be distributed"
        )
    stale = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "PL_GLOBAL_SEED") if name in env]
    if stale:
        logger.warning("left-over variables %s of another job are removed from the trials' environment", stale)
