"""The tuner's event loop: events in, orders out, until the experiment has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from sthyper._tuning.outcomes import Outcomes
from sthyper._tuning.room import RoomWatch
from sthyper._tuning.state import ExperimentState
from sthyper._tuning.suggestions import Suggestions
from sthyper._tuning.trial_record import Cause, TrialRecord
from sthyper.backend._preload import loading_message
from sthyper.backend.base import EndEvent, MessageEvent, ReportEvent, TrialEvent
from sthyper.journal import ExperimentJournal
from sthyper.stopping_criterion import StoppingCriterion

__all__ = ["TuningLoop"]

logger = logging.getLogger(__name__)

MAX_WAIT = 5.0
PREDICATE_WAIT = 1.0
"""Longest wait between two looks at a stop criterion that is a plain function."""


class TuningLoop:
    """Runs an experiment; made by :class:`sthyper.Tuner`.

    Args:
        state: The experiment.

    Attributes:
        interrupt: Why the user wants the experiment to end, ``None`` if nobody asked.
        abandoned: The loop is to return at once, whatever still runs.
        suggestions: Gives free workers something to do.
    """

    def __init__(self, state: ExperimentState) -> None:
        self.state = state
        self.interrupt: str | None = None
        self.abandoned = False
        self.suggestions = Suggestions(state)
        self._outcomes = Outcomes(state, self.suggestions.restart, next_source=self.suggestions.next_source)
        self._room = RoomWatch(state, leaves=lambda: self.abandoned or self.interrupt is not None)
        state.backend.keep_trying = self._room.keep_trying

    def run(self) -> None:
        """Run until the experiment has ended; ``state.end_reason`` then says why."""
        state = self.state
        if state.records:
            state.check_counts()  # a resumed experiment may have nothing left to do
        while not self.abandoned:
            self._room.keep_trying(state.guard)
            for callback in state.callbacks:
                callback.on_loop_start()
            if self.interrupt is not None and not state.ending:
                self._end_by_interrupt(self.interrupt)
            state.steering.take_in(state.journal)
            self.suggestions.fill_workers()
            if self._is_over():
                return
            started = time.monotonic()
            for event in state.events(self._wait()):
                self.handle(event)
                if self.abandoned:
                    return
            if not state.tell_news() and state.backend.poll_interval is not None:
                for callback in state.callbacks:
                    callback.on_tuning_sleep(time.monotonic() - started)
            if state.progress is not None:
                state.progress.maybe_table(state.status)
            for callback in state.callbacks:
                callback.on_loop_end()
            state.check_criterion()
            if self.suggestions.quiet:
                state.on_quiet()

    def request_stop(self, reason: str) -> None:
        """End the experiment soon; safe in signal handlers and from other threads."""
        self.interrupt = reason
        self.state.backend.wake()

    def _wait(self) -> float:
        state = self.state
        wait = MAX_WAIT if state.backend.poll_interval is None else state.options.sleep_time
        if state.ending or state.draining:
            return wait
        if not isinstance(state.criterion, StoppingCriterion):
            return min(wait, PREDICATE_WAIT)
        left = state.criterion.remaining_time(state.status)
        return wait if left is None else min(wait, max(0.0, left))

    def _end_by_interrupt(self, reason: str) -> None:
        if self.state.progress is not None and self.state.busy:
            self.state.progress.message(f"{reason}: ending {self.state.busy} trials; Ctrl-C once more leaves at once")
        self.state.end_at_once(reason)

    def _is_over(self) -> bool:
        state = self.state
        if state.busy:
            return False
        if state.ending or state.draining:
            return True
        if self.suggestions.waiting:
            return False
        if self.suggestions.kept_back is not None:
            reason = "max_num_trials_started is reached"
        elif self.suggestions.exhausted:
            reason = "the scheduler has nothing left to suggest"
        else:
            return False
        if not state.steering.close_unless_enqueued():
            return False
        state.end_reason = reason
        return True

    def use_journal(self, journal: ExperimentJournal, guard: Callable[[], None]) -> None:
        """Write into this journal from now on.

        Args:
            journal: The journal, open.
            guard: Raises once the experiment is another tuner's.
        """
        self.state.journal, self.state.guard = journal, guard
        journal.keep_trying = self._room.keep_trying

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts that follow from the journal; to be called when no suggestion is computed."""
        state = self.state
        return {
            "trials": [record.state_dict() for record in state.records.values()],
            "status": state.status.state_dict(),
            "suggestions": self.suggestions.state_dict(),
            "outcomes": self._outcomes.state_dict(),
            "steering": state.steering.state_dict(),
            "backend": state.backend.state_dict(),
            "scheduler": state.scheduler.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into an experiment that has not begun."""
        state = self.state
        records = [TrialRecord.from_state(record) for record in saved["trials"]]
        state.records = {record.trial.trial_id: record for record in records}
        state.busy = sum(record.busy for record in records)
        state.stopping = sum(record.busy and record.order is not None for record in records)
        trials = {record.trial.trial_id: record.trial for record in records}
        state.status.load_state_dict(saved["status"], trials)
        state.backend.load_state_dict(saved["backend"], trials)
        self.suggestions.load_state_dict(saved["suggestions"])
        self._outcomes.load_state_dict(saved["outcomes"])
        state.steering.load_state_dict(saved["steering"])
        state.scheduler.load_state_dict(saved["scheduler"])

    def go_on(self, restarts: Iterable[tuple[TrialRecord, Cause]]) -> None:
        """Begin where the record of a resumed experiment ends.

        Args:
            restarts: Trials that ran when it did; they come first.
        """
        self.suggestions.go_on(restarts)
        self._outcomes.go_on()

    def handle(self, event: TrialEvent) -> None:
        """Act on what happened to a trial."""
        if isinstance(event, ReportEvent):
            self._outcomes.on_report(event)
        elif isinstance(event, EndEvent):
            self.suggestions.trial_ended()
            self._outcomes.on_end(event)
        else:
            self._on_message(event)

    def _on_message(self, event: MessageEvent) -> None:
        state = self.state
        if event.kind == "process":
            state.journal.append({"type": "process", "trial_id": event.trial_id, "run": event.run, **event.data})
        elif event.kind == "preloading":
            message = loading_message(event.data["modules"])
            if state.progress is not None and message is not None:
                state.progress.message(message)
        elif event.kind == "interrupt":
            self.interrupt = self.interrupt or "KeyboardInterrupt in the trial"
        elif event.kind == "ready":
            logger.info("libraries loaded in %.1f s", event.data["seconds"])
        elif event.kind == "supervisor_lost":
            state.journal.append({"type": "supervisor_lost", **event.data})
            logger.warning(
                "the %s of the trials died; trials that ran are restarted from their checkpoints", event.data["who"]
            )
        else:
            logger.warning("%s", event.data.get("message", event.kind))
