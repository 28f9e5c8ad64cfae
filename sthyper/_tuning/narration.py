"""The log of an experiment: a line for each thing that happens to a trial."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._tuning.trial_record import Cause, TrialRecord
from sthyper.trial import Status

if TYPE_CHECKING:
    from sthyper._tuning.state import ExperimentState
    from sthyper.backend.base import TrialBackend
    from sthyper.schedulers.base import TrialScheduler

__all__ = ["log_again", "log_begin", "log_end", "log_resumed", "log_started"]

logger = logging.getLogger(__name__)

_AGAIN = {
    Cause.tuner_lost: "the tuner ended while it ran",
    Cause.interrupted: "the tuner had ended it",
    Cause.supervisor_lost: "the server of the trials died",
    Cause.killed: "it was killed from outside",
    Cause.lost: "it was not heard of any more",
    Cause.scratch: "its checkpoint was ahead of its last report, it begins anew",
}
# What a resume does with every trial that ran; the others are faults.
_EXPECTED = (Cause.tuner_lost, Cause.interrupted)


def log_begin(folder: Path, scheduler: TrialScheduler, backend: TrialBackend, n_workers: int) -> None:
    """Say which experiment begins or goes on.

    Args:
        folder: The experiment's folder, called like the experiment.
        scheduler: Its scheduler.
        backend: Its backend.
        n_workers: Number of trials at the same time.
    """
    what = f"{type(scheduler).__name__} over {type(backend).__name__}"
    logger.info("experiment %s in %s: %s, n_workers=%d", folder.name, folder, what, n_workers)


def log_started(state: ExperimentState, record: TrialRecord, checkpoint_trial_id: int | None) -> None:
    """Say that a new trial was started.

    Args:
        state: The experiment.
        record: The trial.
        checkpoint_trial_id: From whose checkpoint it starts, ``None`` for none.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    source = "" if checkpoint_trial_id is None else f" from the checkpoint of trial {checkpoint_trial_id}"
    config = ", ".join(f"{name}={_short(value)}" for name, value in record.trial.config.items())
    logger.info("trial %d started%s%s: %s", record.trial.trial_id, source, _next(state, record), config)


def log_resumed(state: ExperimentState, record: TrialRecord) -> None:
    """Say that a paused trial goes on."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("trial %d resumed%s%s", record.trial.trial_id, _after(state, record), _next(state, record))


def log_again(state: ExperimentState, record: TrialRecord, cause: Cause) -> None:
    """Say that a trial runs again whose run ended before its time."""
    level = logging.INFO if cause in _EXPECTED else logging.WARNING
    if logger.isEnabledFor(level):
        where = "" if cause is Cause.scratch else _after(state, record)
        logger.log(level, "trial %d runs again%s: %s", record.trial.trial_id, where, _AGAIN[cause])


def log_end(state: ExperimentState, record: TrialRecord, status: Status, reason: str | None) -> None:
    """Say that a run has ended in order; failures are spoken of with what the trial wrote last."""
    if status == Status.failed or not logger.isEnabledFor(logging.INFO):
        return
    result = record.last_result or {}
    shown = [f"{name}={_short(result[name])}" for name in state.scheduler.metric_names() if name in result]
    detail = f" with {', '.join(shown)}" if shown else ""
    why = f" ({reason})" if reason else ""
    logger.info("trial %d %s%s%s%s", record.trial.trial_id, status.value.lower(), _at(state, result), detail, why)


def _at(state: ExperimentState, result: dict[str, Any]) -> str:
    name = state.scheduler.resource_attr or state.scheduler.progress_attr
    return f" at {name}={_short(result[name])}" if name is not None and name in result else ""


def _after(state: ExperimentState, record: TrialRecord) -> str:
    where = _at(state, record.last_result or {})
    return where.replace(" at ", " after ", 1)


def _next(state: ExperimentState, record: TrialRecord) -> str:
    if record.milestone is None:
        return ""
    return f", next decision at {state.scheduler.resource_attr}={_short(record.milestone)}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
