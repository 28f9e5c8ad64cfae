"""The tuner's event loop: events in, orders out, until the experiment has ended."""

from __future__ import annotations

import logging
import time

from sthyper._tuning.outcomes import Outcomes
from sthyper._tuning.room import RoomWatch
from sthyper._tuning.state import ExperimentState
from sthyper._tuning.suggestions import Suggestions
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
        self._outcomes = Outcomes(state, restart=self.suggestions.restart)
        self._room = RoomWatch(state, leaves=lambda: self.abandoned or self.interrupt is not None)
        state.backend.keep_trying = self._room.keep_trying
        if isinstance(state.journal, ExperimentJournal):
            state.journal.keep_trying = self._room.keep_trying

    def run(self) -> None:
        """Run until the experiment has ended; ``state.end_reason`` then says why."""
        state = self.state
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
        logger.info("all trials have ended: %s", reason)
        return True

    def forgive_failures(self) -> None:
        """Count failures anew."""
        self._outcomes.forgive_failures()

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
