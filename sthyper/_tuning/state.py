"""What the parts of the event loop share: the experiment's objects and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sthyper._tuning.steering import Steering
from sthyper._tuning.trial_record import TrialRecord
from sthyper.backend.base import ReportEvent, TrialBackend, TrialEvent
from sthyper.schedulers.base import TrialScheduler
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.trial import Trial
from sthyper.tuner_callback import TunerCallback
from sthyper.tuning_status import TuningStatus

if TYPE_CHECKING:
    from sthyper._tuning.adoption import FreshStart
    from sthyper._tuning.recorded import AnyJournal, RecordedJournal
    from sthyper.progress import ProgressPrinter

__all__ = ["ExperimentState", "LoopOptions"]

END_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for trials that the tuner itself ends."""


@dataclass(frozen=True)
class LoopOptions:
    """Numbers and switches of :class:`sthyper.Tuner` that the loop needs; see there."""

    n_workers: int
    seed: int
    max_failures: int
    count_out_of_memory: bool
    max_restarts: int
    asynchronous_scheduling: bool
    wait_trial_completion_when_stopping: bool
    start_jobs_without_delay: bool
    sleep_time: float


@dataclass
class ExperimentState:
    """The experiment's objects, and what changes while it runs.

    Args:
        backend: Runs the trials.
        scheduler: Suggests and decides.
        criterion: Says when to stop.
        options: Numbers and switches.
        status: Counts and statistics for criteria and users.
        journal: The record.
        steering: What the user puts in from outside.
        callbacks: The user's hooks.
        clock: Seconds that the tuner has run.
        progress: Talks to the terminal, ``None`` without one.
        records: Trial by trial.
        busy: Number of trials that occupy a worker.
        stopping: Those of them that were ordered to end.
        ending: Running trials are being ended, nothing counts any more.
        draining: Nothing is started any more, running trials may finish.
        end_reason: Why the experiment ends.
        error: What :meth:`Tuner.run` raises in the end.
        current_report: The report that callbacks are being told of.
        recorded: The record of a resumed experiment while it is gone through once more.
        backlog: What the backend told while the tuner waited for room on the disk.
        fresh: Says that the scheduler is to go on where the record of a resumed experiment ends, and was not asked
            before; ``None`` if it was, or the record says since when.
        guard: Raises once the experiment is another tuner's.
        amid: The next line of the journal follows from its last one and is not written yet.
        on_quiet: Called between two events while no suggestion is being computed, when the state is one that a
            resumed experiment could begin with.
    """

    backend: TrialBackend
    scheduler: TrialScheduler
    criterion: Callable[[TuningStatus], bool]
    options: LoopOptions
    status: TuningStatus
    journal: AnyJournal
    steering: Steering
    callbacks: Sequence[TunerCallback]
    clock: Callable[[], float]
    progress: ProgressPrinter | None = None
    records: dict[int, TrialRecord] = field(default_factory=dict)
    busy: int = 0
    stopping: int = 0
    ending: bool = False
    draining: bool = False
    end_reason: str | None = None
    error: Exception | None = None
    current_report: ReportEvent | None = None
    recorded: RecordedJournal | None = None
    backlog: list[TrialEvent] = field(default_factory=list)
    fresh: FreshStart | None = None
    guard: Callable[[], None] = lambda: None
    amid: bool = False
    on_quiet: Callable[[], None] = lambda: None
    _news: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    _touched: set[int] = field(default_factory=set)

    def events(self, timeout: float | None) -> list[TrialEvent]:
        """Return what happened to the trials, in order; waits ``timeout`` seconds for it."""
        if self.backlog:
            backlog, self.backlog = self.backlog, []
            return backlog
        return self.backend.events(timeout)

    def touch(self, trial: Trial, result: dict[str, Any] | None = None) -> None:
        """Note news of a trial for :meth:`TunerCallback.on_fetch_status_results`; what is recorded is no news."""
        if self.recorded is not None:
            return
        self._touched.add(trial.trial_id)
        if result is not None:
            self._news.append((trial.trial_id, result))

    def tell_news(self) -> bool:
        """Tell the callbacks what :meth:`touch` has collected; ``False`` if there was nothing."""
        if not self._touched:
            return False
        news, self._news = self._news, []
        touched, self._touched = self._touched, set()
        status = {i: (self.records[i].trial, self.status.trial_status(i)) for i in sorted(touched)}
        for callback in self.callbacks:
            callback.on_fetch_status_results(status, news)
        return True

    def end_at_once(self, reason: str) -> None:
        """End all running trials; nothing is started or counted any more."""
        self.ending = True
        self.end_reason = reason
        self.backend.stop_all(grace=END_GRACE)

    def check_criterion(self) -> None:
        """Look at the stop criterion and begin to end the experiment if it is met."""
        if self.ending or self.recorded is not None:
            return
        criterion = self.criterion
        if isinstance(criterion, StoppingCriterion):
            at_once = criterion.evaluations_used_up(self.status)
            reason = at_once or (None if self.draining else criterion.reached(self.status))
        else:
            at_once = None
            reason = None if self.draining or not criterion(self.status) else "the stop criterion is met"
        if reason is None:
            return
        if at_once is None and self.options.wait_trial_completion_when_stopping:
            self.draining = True
            self.end_reason = reason
        else:
            self.end_at_once(reason)

    def check_counts(self) -> None:
        """Like :meth:`check_criterion`, for counts that must be exact; plain functions are asked once a round."""
        if isinstance(self.criterion, StoppingCriterion):
            self.check_criterion()
