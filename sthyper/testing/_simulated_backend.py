"""A backend without processes, for tests of what runs in the tuner: many trials in little time."""

from __future__ import annotations

import random
from collections.abc import Callable

from sthyper.backend.base import EndEvent, ReportEvent, TrialBackend, TrialEvent
from sthyper.testing.simulation import toy_fraction
from sthyper.trial import SchedulerDecision, Status, Trial

__all__ = ["SimulatedTrials"]

_FAULTS = ("exit 1", "killed", "out_of_memory", "repeat", "bad")


class SimulatedTrials(TrialBackend):
    """Trials that report ``epoch`` and ``loss``; which one is next is drawn.

    Args:
        epochs: Number of epochs of a trial.
        faults: Share of the steps at which something goes wrong: a trial fails, is killed, runs out of memory, reports
            an epoch once more, or lacks the metric in its report.
        seed: Seed of the order of events.
        every: Called before each event.
        delete_checkpoints: See :class:`TrialBackend`.
        rewrite_max_resource: See :class:`TrialBackend`.
    """

    def __init__(
        self,
        epochs: int = 9,
        faults: float = 0.0,
        seed: int = 0,
        every: Callable[[], None] = lambda: None,
        delete_checkpoints: bool = False,
        rewrite_max_resource: bool = False,
    ) -> None:
        super().__init__(rewrite_max_resource=rewrite_max_resource)
        self.delete_checkpoints = delete_checkpoints
        self.epochs = epochs
        self.faults = faults
        self.every = every
        self._random = random.Random(seed)
        self._running: dict[int, int] = {}
        self._ending: dict[int, EndEvent] = {}

    def _schedule(self, trial: Trial, run: int) -> None:
        self._running[trial.trial_id] = int(trial.last_resource or 0)

    def _end(self, trial_id: int, status: Status, *, at_once: bool, grace: float) -> None:
        self._running.pop(trial_id, None)
        self._ending.setdefault(trial_id, EndEvent(trial_id, self._runs[trial_id], status))

    def events(self, timeout: float | None) -> list[TrialEvent]:
        self.every()
        event = self._next()
        if event is None:
            return []
        if isinstance(event, EndEvent):
            self._mark_ended(event)
        return [event]

    def _next(self) -> TrialEvent | None:
        candidates = sorted([*self._running, *self._ending])
        if not candidates:
            return None
        trial_id = self._random.choice(candidates)
        if trial_id in self._ending:
            return self._ending.pop(trial_id)
        run = self._runs[trial_id]
        fault = self._random.random() < self.faults
        if fault:
            kind = self._random.choice(_FAULTS)
            if kind in ("exit 1", "killed", "out_of_memory"):
                del self._running[trial_id]
                return EndEvent(trial_id, run, Status.failed, kind, 1, "it said so")
            if kind == "bad":
                return ReportEvent(trial_id, run, {"epoch": self._running[trial_id] + 1, "other": 1}, "c", 99)
            epoch = max(1, self._running[trial_id])  # once more, say from another rank
            return ReportEvent(trial_id, run, {"epoch": epoch, "loss": 0.0}, "d", epoch)
        if self._running[trial_id] >= self.epochs:
            del self._running[trial_id]
            return EndEvent(trial_id, run, Status.completed, None, 0)
        self._running[trial_id] += 1
        epoch = self._running[trial_id]
        metrics = {"epoch": epoch, "loss": self._loss(trial_id, epoch), "st_worker_time": 0.5 * epoch}
        return ReportEvent(trial_id, run, metrics, f"client{run}", epoch)

    def _loss(self, trial_id: int, epoch: int) -> float:
        limit = toy_fraction(sorted(self._trials[trial_id].config.items()))
        return float("nan") if limit > 0.95 else limit + 1 / epoch

    def answer(self, event: ReportEvent, decision: str) -> None:
        if decision != SchedulerDecision.CONTINUE:
            self._running.pop(event.trial_id, None)
