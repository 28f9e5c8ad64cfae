"""Reports in, decisions out, and what follows when a trial has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sthyper._checkpoints import resumed_from
from sthyper._tuning.adoption import OUTSIDE
from sthyper._tuning.final_checkpoints import FinalCheckpoints
from sthyper._tuning.narration import log_end
from sthyper._tuning.room import more_room
from sthyper._tuning.state import ExperimentState
from sthyper._tuning.trial_record import (
    Cause,
    ReportKind,
    TrialRecord,
    judge_report,
    progress_of,
    resource_of,
    settle_decision,
)
from sthyper.backend._runs import DISK_FULL, read_tail
from sthyper.backend.base import EndEvent, ReportEvent
from sthyper.constants import (
    ST_MILESTONE,
    ST_RUN,
    ST_SCHEDULER_DECISION,
    ST_SEED,
    ST_STDERR_FILENAME,
    ST_STDOUT_FILENAME,
    ST_TUNER_TIME,
)
from sthyper.errors import ExperimentError, ReportError, TrialFailed
from sthyper.journal import was_cut
from sthyper.trial import OUT_OF_MEMORY, SchedulerDecision, Status, was_killed

__all__ = ["Outcomes"]

logger = logging.getLogger(__name__)

ENOUGH_OUT_OF_MEMORY = 5


class Outcomes:
    """Handles reports and ends of trials.

    The order of writing makes the record complete: a report's line, the scheduler's decision, its line, the answer.

    Args:
        state: The experiment.
        restart: Starts the next run of a trial.
        next_source: Returns the trial from whose checkpoint a suggested trial will start, ``None`` if there is none.
    """

    def __init__(
        self,
        state: ExperimentState,
        restart: Callable[[TrialRecord, Cause], None],
        next_source: Callable[[], int | None],
    ) -> None:
        self.state = state
        self._restart = restart
        self._final_checkpoints = FinalCheckpoints(state, next_source)
        self._failures = 0
        self._first_failure = ""
        self._out_of_memory = 0
        self._ended_otherwise = False
        self._now = 0.0

    def go_on(self) -> None:
        """Begin where the record of a resumed experiment ends: without failures."""
        self._final_checkpoints.catch_up()
        self._failures = self._out_of_memory = 0
        self._first_failure = ""

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers; failures are not part of it, they are counted anew."""
        return {"ended_otherwise": self._ended_otherwise, "final_checkpoints": self._final_checkpoints.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._ended_otherwise = state["ended_otherwise"]
        self._final_checkpoints.load_state_dict(state["final_checkpoints"])

    # ---- reports -------------------------------------------------------------------------------------

    def on_report(self, event: ReportEvent) -> None:
        """Record a report, decide about its trial and answer."""
        if self.state.ending:
            self.state.backend.answer(event, SchedulerDecision.STOP)
            return
        record = self.state.records[event.trial_id]
        self._now = self.state.clock()
        self.state.amid = True
        self._journal_event("report", event, {"metrics": event.metrics, "tuner_time": self._now})
        scheduler = self.state.scheduler
        resource = resource_of(event.metrics, scheduler.resource_attr)
        kind = judge_report(record, resource)
        progress = resource if resource is not None else progress_of(event.metrics, scheduler)
        if resource is None and record.is_behind(progress):
            kind = ReportKind.ignored
        if record.order is not None:
            self._answer(event, record.order, None, counted=False)
        elif kind is ReportKind.repeats:
            assert resource is not None
            answer, client = record.in_run[resource]
            if client == event.client and not record.warned:
                record.warned = True
                logger.warning(
                    "trial %d: several reports at %s=%s, the first counts; report once an epoch, after it",
                    event.trial_id,
                    self.state.scheduler.resource_attr,
                    resource,
                )
            self._answer(event, answer, None, counted=False)
        elif kind is ReportKind.ignored:
            assert progress is not None
            record.repeated = progress if record.repeated is None else max(record.repeated, progress)
            scheduler.on_trial_repeat(record.trial, event.metrics)
            self._answer(event, SchedulerDecision.CONTINUE, "IGNORED", counted=False)
        else:
            self._decide(event, record, resource)

    def _decide(self, event: ReportEvent, record: TrialRecord, resource: float | None) -> None:
        scheduler, trial = self.state.scheduler, record.trial
        maximum = scheduler.max_resource_level
        result = event.metrics
        beyond = resource is not None and maximum is not None and resource > maximum
        if beyond and record.completes:
            # The maximum was reported and decided; more training was not asked for.
            self._answer(event, SchedulerDecision.STOP, None, counted=False)
            self._note_order(record, SchedulerDecision.STOP)
            self._carry_out(record, SchedulerDecision.STOP, result)
            return
        if (
            resource is not None
            and record.milestone is not None
            and resource > record.milestone
            and record.run > 0
            and record.counted_in_run == 0
        ):
            logger.warning(
                "trial %d was resumed beyond its milestone: its report at %s=%s counts as that of %s. Keep the "
                "checkpoint before the last until a report is answered to avoid this",
                event.trial_id,
                scheduler.resource_attr,
                resource,
                record.milestone,
            )
            assert scheduler.resource_attr is not None
            resource = record.milestone
            result = {**result, scheduler.resource_attr: resource}
        try:
            decision = scheduler.on_trial_result(trial, result)
        except ReportError as error:
            self._bad_report(event, record, str(error))
            return
        answer, completes = settle_decision(decision, resource, maximum, scheduler.max_resource_attr)
        record.completes = record.completes or completes
        self._book(event, record, result, resource, answer)
        columns = scheduler.result_columns()
        moved_to = None if result is event.metrics else resource
        self._answer(event, answer, decision, counted=True, resource=moved_to, columns=columns)
        if answer != SchedulerDecision.CONTINUE:
            # Before the callbacks: one that fails ends the experiment, and the record holds the order.
            self._note_order(record, answer)
        self._notify(event, record, result | columns if columns else result, decision, answer)
        if answer != SchedulerDecision.CONTINUE:
            self._carry_out(record, answer, result)
        elif not record.completes:
            record.milestone = scheduler.milestone(event.trial_id) or record.milestone
        self.state.check_counts()

    def _book(
        self, event: ReportEvent, record: TrialRecord, result: dict[str, Any], resource: float | None, answer: str
    ) -> None:
        record.counted += 1
        record.counted_in_run += 1
        record.last_result = result
        if resource is not None:
            record.in_run[resource] = (answer, event.client)
            reported = resource_of(event.metrics, self.state.scheduler.resource_attr)
            largest = resource if reported is None else max(resource, reported)
            record.largest = largest if record.largest is None else max(record.largest, largest)
            record.trial.last_resource = record.largest
        elif self.state.scheduler.progress_attr is not None:
            record.advance(progress_of(event.metrics, self.state.scheduler))
        self.state.status.add_result(event.trial_id, result)
        self._final_checkpoints.on_report(event.trial_id, result)

    def _notify(
        self, event: ReportEvent, record: TrialRecord, result: dict[str, Any], decision: str, answer: str
    ) -> None:
        row = {
            **result,
            ST_TUNER_TIME: result.get(ST_TUNER_TIME, self._now),
            ST_SCHEDULER_DECISION: decision,
            ST_RUN: record.run,
            ST_SEED: record.trial.seed,
            ST_MILESTONE: record.milestone,
        }
        self.state.current_report = event
        status = self.state.status.trial_status(event.trial_id)
        for callback in self.state.callbacks:
            callback.on_trial_result(record.trial, status, row, answer)
        self.state.current_report = None
        self.state.touch(record.trial, result)

    def _note_order(self, record: TrialRecord, answer: str) -> None:
        record.order = answer
        self.state.stopping += 1

    def _carry_out(self, record: TrialRecord, answer: str, result: dict[str, Any]) -> None:
        trial = record.trial
        if answer == SchedulerDecision.STOP:
            self.state.backend.stop_trial(trial.trial_id, result)
        else:
            self.state.backend.pause_trial(trial.trial_id, result)
        if not record.completes and record.bad_report is None:
            self.state.scheduler.on_trial_remove(trial)

    def _bad_report(self, event: ReportEvent, record: TrialRecord, message: str) -> None:
        self._answer(event, SchedulerDecision.STOP, None, counted=False)
        record.bad_report = message
        self._note_order(record, SchedulerDecision.STOP)
        self._carry_out(record, SchedulerDecision.STOP, event.metrics)

    def _answer(
        self,
        event: ReportEvent,
        answer: str,
        decision: str | None,
        counted: bool,
        resource: float | None = None,
        columns: dict[str, Any] | None = None,
    ) -> None:
        rest: dict[str, Any] = {"decision": answer, "scheduler_decision": decision, "counted": counted}
        if counted:
            rest["milestone"] = self.state.records[event.trial_id].milestone
        if resource is not None:
            rest["resource"] = resource  # the report counted as that of its milestone
        if columns:
            rest["columns"] = columns
        self._journal_event("decision", event, rest)
        self.state.amid = False
        if self.state.recorded is None:
            self.state.backend.answer(event, answer)

    def _journal_event(self, kind: str, event: ReportEvent, rest: dict[str, Any]) -> None:
        head = {"type": kind, "trial_id": event.trial_id, "run": event.run, "client": event.client, "seq": event.seq}
        self.state.journal.append(head | rest)

    # ---- ends ----------------------------------------------------------------------------------------

    def on_end(self, event: EndEvent) -> None:
        """Record the end of a run, tell the scheduler, run the trial again where that is due."""
        record = self.state.records[event.trial_id]
        record.busy = False
        record.in_run = {}  # no report of this run comes any more
        self.state.busy -= 1
        if record.order is not None:
            self.state.stopping -= 1
        self.state.touch(record.trial)
        status, reason, tail = event.status, event.reason, event.stderr_tail
        by_tuner = False
        if record.bad_report is not None:
            status, reason, tail = Status.failed, f"bad report: {record.bad_report}", record.bad_report
        elif record.completes and (record.order is not None or reason == DISK_FULL):
            status, reason = Status.completed, None
        elif record.outside:
            status, reason = Status.stopped, OUTSIDE
        elif record.order is None and (status == Status.stopped or (self.state.ending and status == Status.failed)):
            # Ended by the tuner, not by a decision: a resumed experiment goes on with it.
            status, reason, by_tuner = Status.stopped, "interrupted", True
        elif record.order is None and self._should_restart(record, event):
            return
        elif status == Status.completed and record.counted == 0:
            status, reason = Status.failed, self.state.backend.no_report
            tail = read_tail(self.state.backend.trial_path(event.trial_id) / ST_STDERR_FILENAME)
        record.owed = Cause.interrupted if by_tuner else None
        record.trial.end_reason = reason
        self.state.backend.on_judged_end(event.trial_id, status)
        self.state.status.set_status(event.trial_id, status, by_tuner=by_tuner)
        self.state.journal.append(
            {
                "type": "status",
                "trial_id": event.trial_id,
                "run": event.run,
                "status": status.value,
                "reason": reason,
                "exit_code": event.exit_code,
                "tuner_time": self.state.clock(),
            }
        )
        self._tell_scheduler_of_end(record, status)
        self._show_end(record, status, reason)
        self._final_checkpoints.on_end(event.trial_id, final=not by_tuner and status != Status.paused)
        if status == Status.failed:
            self._count_failure(record, reason or "unknown", tail)
        else:
            self._ended_otherwise = self._ended_otherwise or not by_tuner
        self.state.check_counts()

    def _should_restart(self, record: TrialRecord, event: EndEvent) -> bool:
        """Start the next run of a trial whose run ended before its time through no fault of its own."""
        if self.state.ending:
            return False
        if event.reason == Cause.tuner_lost.value:
            self._journal_restart(record, event)
            self._owe(record, Cause.tuner_lost)
        elif event.reason in (Cause.supervisor_lost.value, Cause.lost.value):
            self._journal_restart(record, event)
            self._run_again(record, Cause(event.reason))
        elif was_killed(event.reason) and record.restarts < self.state.options.max_restarts and not record.completes:
            record.restarts += 1
            self._journal_restart(record, event)
            if event.reason == DISK_FULL and self.state.recorded is None:
                self.state.backend.keep_trying(more_room(self.state.backend.trial_path(event.trial_id)))
            self._run_again(record, Cause.killed)
        elif event.status == Status.completed and self._lost_last_report(record):
            record.scratched = True
            self._journal_restart(record, event)
            self._run_again(record, Cause.scratch)
        else:
            return False
        return True

    def _run_again(self, record: TrialRecord, cause: Cause) -> None:
        recorded = self.state.recorded
        if recorded is not None:
            # An experiment that ended just now may not have come to it.
            following = recorded.peek()
            trial_id = record.trial.trial_id
            if following is None or following["type"] != "resume" or following["trial_id"] != trial_id:
                self._owe(record, cause)
                return
        self._restart(record, cause)

    def _owe(self, record: TrialRecord, cause: Cause) -> None:
        record.owed = cause
        self.state.status.set_status(record.trial.trial_id, Status.stopped, by_tuner=True)

    def _lost_last_report(self, record: TrialRecord) -> bool:
        """Whether a run found its training done, but the report of the last epoch is not in the record.

        That happens to restarted runs, and to those of paused trials once a damaged journal was cut.
        """
        if not (record.cause.is_restart or record.cause is Cause.resume) or record.scratched or record.completes:
            return False
        if record.counted_in_run > 0:
            return False
        if self.state.recorded is not None:
            recorded = self.state.recorded.peek()
            return recorded is not None and bool(recorded.get("restart"))
        if record.cause is Cause.resume and not was_cut(self.state.journal.path):
            return False
        maximum, largest = self.state.scheduler.max_resource_level, record.largest
        if largest is None or (maximum is not None and largest >= maximum):
            return largest is None
        if record.repeated == largest:
            return False  # it has trained everything again and ended there
        # Nothing was left to train, or its checkpoint was ahead of the last report.
        folder = self.state.backend.checkpoint_trial_path(record.trial.trial_id)
        return resumed_from(folder, record.trial.trial_id, record.run) != largest

    def _journal_restart(self, record: TrialRecord, event: EndEvent) -> None:
        self.state.journal.append(
            {
                "type": "status",
                "trial_id": event.trial_id,
                "run": event.run,
                "status": Status.failed.value if event.status == Status.failed else event.status.value,
                "reason": event.reason,
                "exit_code": event.exit_code,
                "tuner_time": self.state.clock(),
                "restart": True,
            }
        )

    def _tell_scheduler_of_end(self, record: TrialRecord, status: Status) -> None:
        trial = record.trial
        if status == Status.completed or (status == Status.failed and record.completes):
            # Past the maximum a failure concerns the code after the loop; the results are whole.
            assert record.last_result is not None
            if not record.unknown:
                self.state.scheduler.on_trial_complete(trial, record.last_result)
            if status == Status.completed:
                for callback in self.state.callbacks:
                    callback.on_trial_complete(trial, record.last_result)
        elif status == Status.failed and not record.unknown:
            self.state.scheduler.on_trial_error(trial)

    def _show_end(self, record: TrialRecord, status: Status, reason: str | None) -> None:
        log_end(self.state, record, status, reason)
        progress = self.state.progress
        if progress is None:
            return
        if status == Status.paused:
            progress.trial_paused(record.trial, record.last_result or {})
            return
        folder = self.state.backend.trial_path(record.trial.trial_id)
        path = folder / (ST_STDERR_FILENAME if status == Status.failed else ST_STDOUT_FILENAME)
        shown = path if path.exists() else folder  # trials in the tuner's own process write to its terminal
        progress.trial_ended(record.trial, status, reason, record.last_result or {}, shown)

    def _count_failure(self, record: TrialRecord, reason: str, tail: str) -> None:
        trial_id = record.trial.trial_id
        if reason == OUT_OF_MEMORY:
            self._out_of_memory += 1
            if not self._ended_otherwise and self._out_of_memory >= ENOUGH_OUT_OF_MEMORY + self.state.options.n_workers:
                self._fail(
                    ExperimentError(
                        f"the first {self._out_of_memory} trials all ran out of memory; reduce the memory that a trial "
                        f"needs or n_workers={self.state.options.n_workers}. The last one wrote:\n{tail}"
                    )
                )
        else:
            self._ended_otherwise = True
        message = f"failed: {reason}"
        if tail and tail not in reason:
            message += f"\nThe last lines of {self.state.backend.trial_path(trial_id) / ST_STDERR_FILENAME}:\n{tail}"
        logger.warning("trial %d %s", trial_id, message)
        if reason == OUT_OF_MEMORY and not self.state.options.count_out_of_memory:
            return
        self._failures += 1
        self._first_failure = self._first_failure or f"Trial - {trial_id} {message}"
        if self._failures > self.state.options.max_failures:
            self._fail(
                TrialFailed(
                    f"{self._failures} trials failed, more than max_failures={self.state.options.max_failures} allows. "
                    f"The first one: {self._first_failure}"
                )
            )

    def _fail(self, error: Exception) -> None:
        if self.state.error is None and self.state.recorded is None:
            self.state.error = error
            if not self.state.ending:
                self.state.end_at_once(str(error).partition("\n")[0])
