"""Where an experiment may talk to the person who started it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from sthyper.constants import ENV_QUIET
from sthyper.schedulers.base import TrialScheduler

if TYPE_CHECKING:
    from sthyper.progress import ProgressPrinter

__all__ = ["make_progress", "progress_stream"]


def progress_stream() -> TextIO | None:
    """Return stdout if it is a terminal or a notebook's output and nobody asked for quiet, else ``None``."""
    stream = sys.stdout
    if stream is None or os.environ.get(ENV_QUIET) == "1":
        return None
    return stream if stream.isatty() or type(stream).__module__ == "ipykernel.iostream" else None


def make_progress(interval: float, scheduler: TrialScheduler, clock: Callable[[], float]) -> ProgressPrinter | None:
    """Return what talks about an experiment to the terminal, ``None`` without one.

    Args:
        interval: Seconds between two tables.
        scheduler: The scheduler, which names metrics, resource and hyperparameters.
        clock: Returns the seconds of the experiment.
    """
    if (stream := progress_stream()) is None:
        return None
    from sthyper.config_space import non_constant_hyperparameter_keys
    from sthyper.progress import ProgressPrinter

    return ProgressPrinter(
        interval,
        scheduler.metric_names(),
        scheduler.metric_mode(),
        stream=stream,
        resource_attr=scheduler.resource_attr,
        hyperparameters=non_constant_hyperparameter_keys(scheduler.config_space),
        clock=clock,
    )
