"""Deletes the checkpoints that nobody will need again, except those of the best trial."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sthyper._experiment_plots import is_finite

if TYPE_CHECKING:
    from sthyper._tuning.state import ExperimentState

__all__ = ["FinalCheckpoints"]

logger = logging.getLogger(__name__)


class FinalCheckpoints:
    """Keeps the disk free where the backend says ``delete_checkpoints``; does nothing over others.

    Checkpoints go when their trial has ended for good and the scheduler starts no other from them, or when the
    scheduler says that it never resumes their paused trial. They stay as long as that trial is the best so far in one
    of the metrics: the first trial with the best finite value, as in the results, where values of reports that keep
    all constraints of the searcher come before others. Trials that the tuner itself ended keep them.

    Args:
        state: The experiment.
        next_source: Returns the trial from whose checkpoint a suggested trial will start, ``None`` if there is none.
    """

    def __init__(self, state: ExperimentState, next_source: Callable[[], int | None]) -> None:
        self._state = state
        self._next_source = next_source
        self._signs: dict[str, float] = {}
        if state.backend.delete_checkpoints:
            names, mode = state.scheduler.metric_names(), state.scheduler.metric_mode()
            modes = [mode] * len(names) if isinstance(mode, str) else mode
            self._signs = {name: 1.0 if m == "min" else -1.0 for name, m in zip(names, modes, strict=True)}
        # Metric -> whether the report keeps constraints (0 is best), the value (low is good), its trial.
        self._best: dict[str, tuple[int, float, int]] = {}
        # Trials whose checkpoints may go and are still there, and those that go once the record has been gone through,
        # with their run: what a later run writes was not meant.
        self._free: dict[int, int] = {}
        self._late: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers."""
        return {
            "best": {name: list(best) for name, best in self._best.items()},
            "free": [[trial_id, run] for trial_id, run in sorted(self._free.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._best = {name: (rank, value, trial) for name, (rank, value, trial) in state["best"].items()}
        self._free = {trial_id: run for trial_id, run in state["free"]}

    def on_report(self, trial_id: int, result: dict[str, Any]) -> None:
        """Take in a counted report; a former best trial may lose its checkpoints."""
        if not self._signs:
            return
        overtaken, rank = False, self._state.status.last_rank(trial_id)
        for name, sign in self._signs.items():
            value = result.get(name)
            if value is None or not is_finite(value):
                continue
            before = self._best.get(name)
            if before is None or (rank, sign * value) < before[:2]:
                self._best[name] = (rank, sign * value, trial_id)
                overtaken = overtaken or (before is not None and before[2] in self._free)
        if overtaken:
            self._sweep()

    def on_end(self, trial_id: int, final: bool) -> None:
        """Take in that a run has ended, and see which checkpoints may go.

        Args:
            trial_id: The trial; the scheduler has been told.
            final: Whether it has ended for good.

        Raises:
            ValueError: If the scheduler names a trial that never started.
        """
        if not self._signs:
            return
        scheduler, records = self._state.scheduler, self._state.records
        if final and not scheduler.may_copy_checkpoint(trial_id):
            self._free[trial_id] = records[trial_id].run
        for named in scheduler.trials_checkpoints_can_be_removed():
            if named not in records:
                raise ValueError(
                    f"{type(scheduler).__name__}.trials_checkpoints_can_be_removed() names trial {named}, which never "
                    "started"
                )
            self._free[named] = records[named].run
        self._sweep()

    def catch_up(self) -> None:
        """Delete what the record says was deleted: a tuner that was killed may not have come to it."""
        for trial_id, run in sorted(self._late.items()):
            if self._state.records[trial_id].run == run:
                self._delete(trial_id)
        self._late.clear()

    def _sweep(self) -> None:
        needed = {best for _, _, best in self._best.values()} | {self._next_source()}
        for trial_id, run in sorted(self._free.items()):
            record = self._state.records[trial_id]
            if record.run == run and (record.busy or trial_id in needed):
                continue
            del self._free[trial_id]
            if record.run != run:
                continue  # another scheduler has resumed it
            if self._state.recorded is not None:
                self._late[trial_id] = run
            else:
                self._delete(trial_id)

    def _delete(self, trial_id: int) -> None:
        logger.debug("trial %d: its checkpoints are deleted", trial_id)
        self._state.backend.delete_checkpoint(trial_id)
