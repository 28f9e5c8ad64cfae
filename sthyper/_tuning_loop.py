"""The tuner's event loop: reports in, decisions out; free workers get the scheduler's suggestions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper._trial_record import Cause, ReportKind, TrialRecord, judge_report, resource_of, settle_decision
from sthyper.backend.base import EndEvent, MessageEvent, ReportEvent, TrialBackend, trial_seed
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
from sthyper.journal import ExperimentJournal
from sthyper.schedulers.base import PendingSuggestion, TrialScheduler
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.trial import OUT_OF_MEMORY, SchedulerDecision, Status, TrialSuggestion
from sthyper.tuner_callback import TunerCallback
from sthyper.tuning_status import TuningStatus

if TYPE_CHECKING:
    from sthyper.progress import ProgressPrinter

__all__ = ["LoopOptions", "TuningLoop"]

logger = logging.getLogger(__name__)

MAX_RESTARTS = 2
END_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for trials that the tuner itself ends."""
MAX_WAIT = 5.0
PREDICATE_WAIT = 1.0
"""Longest wait between two looks at a stop criterion that is a plain function."""
ENOUGH_OUT_OF_MEMORY = 5


@dataclass(frozen=True)
class LoopOptions:
    """Numbers and switches of :class:`sthyper.Tuner` that the loop needs; see there."""

    n_workers: int
    seed: int
    max_failures: int
    count_out_of_memory: bool
    asynchronous_scheduling: bool
    wait_trial_completion_when_stopping: bool
    start_jobs_without_delay: bool
    sleep_time: float


class TuningLoop:
    """Runs an experiment; made by :class:`sthyper.Tuner`.

    The order of writing is what makes the record complete: a report's line, the scheduler's decision, its line, the
    answer.
    """

    def __init__(
        self,
        backend: TrialBackend,
        scheduler: TrialScheduler,
        stop_criterion: Callable[[TuningStatus], bool],
        options: LoopOptions,
        status: TuningStatus,
        journal: ExperimentJournal,
        callbacks: Sequence[TunerCallback],
        clock: Callable[[], float],
        progress: ProgressPrinter | None = None,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.criterion = stop_criterion
        self.options = options
        self.status = status
        self.journal = journal
        self.callbacks = callbacks
        self.clock = clock
        self.progress = progress
        self.records: dict[int, TrialRecord] = {}
        self.end_reason: str | None = None
        self.kept_back: TrialSuggestion | None = None
        self.abandoned = False
        self.interrupt: str | None = None
        self.current_report: ReportEvent | None = None
        self.error: Exception | None = None
        self._busy = 0
        self._stopping = 0
        self._asks = 0
        self._exhausted = False
        self._ending = False
        self._draining = False
        self._held: TrialSuggestion | None = None
        self._batch = options.n_workers
        self._pending: PendingSuggestion | None = None
        self._future: Future[Any] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._failures = 0
        self._first_failure = ""
        self._out_of_memory = 0
        self._ended_otherwise = False
        self._news: list[tuple[int, dict[str, Any]]] = []
        self._touched: set[int] = set()

    # ---- the loop ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the experiment has ended; afterwards :attr:`end_reason` says why."""
        try:
            while not self.abandoned:
                for callback in self.callbacks:
                    callback.on_loop_start()
                self._fill_workers()
                if self._over():
                    break
                started = time.monotonic()
                for event in self.backend.events(self._wait()):
                    self._handle(event)
                    if self.abandoned:
                        return
                self._tell_callbacks(time.monotonic() - started)
                if self.progress is not None:
                    self.progress.maybe_table(self.status)
                for callback in self.callbacks:
                    callback.on_loop_end()
                self._check_end()
        finally:
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)

    def _handle(self, event: ReportEvent | EndEvent | MessageEvent) -> None:
        if isinstance(event, ReportEvent):
            self._on_report(event)
        elif isinstance(event, EndEvent):
            self._on_end(event)
        else:
            self._on_message(event)

    def _wait(self) -> float:
        if self.interrupt is not None and not self._ending:
            return 0.0
        wait = MAX_WAIT
        if self.backend.poll_interval is not None:
            wait = self.options.sleep_time
        if not self._ending:
            if isinstance(self.criterion, StoppingCriterion):
                left = self.criterion.remaining_time(self.status)
                if left is not None:
                    wait = min(wait, max(0.0, left))
            else:
                wait = min(wait, PREDICATE_WAIT)
        return wait

    def _tell_callbacks(self, waited: float) -> None:
        if self._touched:
            news, self._news = self._news, []
            touched, self._touched = self._touched, set()
            status = {i: (self.records[i].trial, self.status.trial_status(i)) for i in sorted(touched)}
            for callback in self.callbacks:
                callback.on_fetch_status_results(status, news)
        elif self.backend.poll_interval is not None:
            for callback in self.callbacks:
                callback.on_tuning_sleep(waited)

    # ---- the end -------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """End the experiment soon; safe in signal handlers and from other threads."""
        self.interrupt = reason
        self.backend.wake()

    def _check_end(self) -> None:
        if self._ending:
            return
        if self.interrupt is not None:
            self._end_at_once(self.interrupt)
        elif not self._draining:
            self._check_criterion()

    def _check_criterion(self) -> None:
        if self._ending or self._draining:
            return
        if isinstance(self.criterion, StoppingCriterion):
            reason = self.criterion.reached(self.status)
        else:
            reason = "the stop criterion is met" if self.criterion(self.status) else None
        if reason is None:
            return
        if self.options.wait_trial_completion_when_stopping and "max_num_evaluations" not in reason:
            self._draining = True
            self.end_reason = reason
        else:
            self._end_at_once(reason)

    def _end_at_once(self, reason: str) -> None:
        self._ending = True
        self.end_reason = reason
        self.backend.stop_all(grace=END_GRACE)

    def _over(self) -> bool:
        if self.interrupt is not None and not self._ending:
            self._end_at_once(self.interrupt)
        if self._busy:
            return False
        if self._ending or self._draining:
            return True
        if self._future is not None or self._held is not None:
            return False
        if self.kept_back is not None:
            self.end_reason = "max_num_trials_started is reached"
            return True
        if self._exhausted:
            self.end_reason = "the scheduler has nothing left to suggest"
            logger.info("The scheduler has nothing left to suggest and all trials have ended.")
            return True
        return False

    # ---- suggestions ---------------------------------------------------------------------------------

    def _free_workers(self) -> int:
        if self.backend.poll_interval is None:
            return self.options.n_workers - self._busy
        if self.options.start_jobs_without_delay:
            return self.options.n_workers - (self._busy - self._stopping)
        return self.options.n_workers - len(self.backend.busy_trial_ids())

    def _may_ask(self) -> bool:
        if self._ending or self._draining or self._exhausted or self.interrupt is not None:
            return False
        if self.kept_back is not None or self._held is not None or self._free_workers() <= 0:
            return False
        if not self.options.asynchronous_scheduling and self._batch <= 0:
            if self._busy:
                return False
            self._batch = self.options.n_workers
        return not isinstance(self.criterion, StoppingCriterion) or self.criterion.may_use_worker(self.status)

    def _fill_workers(self) -> None:
        if self._held is not None and not self._ending:
            trial_id = self._held.checkpoint_trial_id
            assert trial_id is not None
            if not self.records[trial_id].busy and self._free_workers() > 0:
                held, self._held = self._held, None
                self._resume(held)
        while True:
            if self._future is not None:
                if not self._future.done():
                    return
                assert self._pending is not None
                pending, future = self._pending, self._future
                self._pending = self._future = None
                self._received(pending.finish(future.result()))
            elif self._may_ask():
                self._ask()
            else:
                return

    def _ask(self) -> None:
        self._asks += 1
        self.journal.append({"type": "ask", "n": self._asks})
        begun = self.scheduler.begin_suggest(self.backend.new_trial_id())
        if not isinstance(begun, PendingSuggestion):
            self._received(begun)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="sthyper-suggest")
        self._pending = begun
        self._future = self._executor.submit(begun.compute)
        self._future.add_done_callback(lambda _: self.backend.wake())

    def _received(self, suggestion: TrialSuggestion | None) -> None:
        action = "none" if suggestion is None else "start" if suggestion.spawn_new_trial_id else "resume"
        self.journal.append(
            {
                "type": "suggestion",
                "n": self._asks,
                "action": action,
                "config": None if suggestion is None else suggestion.config,
                "checkpoint_trial_id": None if suggestion is None else suggestion.checkpoint_trial_id,
            }
        )
        if suggestion is None:
            # Not final while trials run: one that pauses may be promoted later.
            self._exhausted = True
        elif suggestion.spawn_new_trial_id:
            if isinstance(self.criterion, StoppingCriterion) and not self.criterion.may_start_new(self.status):
                self.kept_back = suggestion
            elif not self._ending:
                self._start(suggestion)
        elif not self._ending:
            trial_id = suggestion.checkpoint_trial_id
            assert trial_id is not None
            if trial_id not in self.records:
                raise ValueError(
                    f"{type(self.scheduler).__name__} wants to resume trial {trial_id}, which never started"
                )
            if self.records[trial_id].busy:
                self._held = suggestion  # its processes are still ending
            else:
                self._resume(suggestion)

    def _start(self, suggestion: TrialSuggestion) -> None:
        assert suggestion.config is not None
        config, full, milestone = self._split_milestone(suggestion.config)
        trial_id = self.backend.new_trial_id()
        if "seed" in full and self.scheduler.config_space.get("seed", 0) is None:
            config["seed"] = full["seed"] = trial_seed(self.options.seed, trial_id)
        trial = self.backend.start_trial(config, suggestion.checkpoint_trial_id)
        trial.config = full
        record = TrialRecord(trial=trial, milestone=milestone)
        self.records[trial_id] = record
        self._busy += 1
        self._batch -= 1
        self.status.add_trial(trial)
        self._journal_launch("start", record, suggestion.checkpoint_trial_id)
        self.scheduler.on_trial_add(trial)
        if record.milestone is None:
            record.milestone = self.scheduler.milestone(trial_id)
        self._touched.add(trial_id)
        for callback in self.callbacks:
            callback.on_start_trial(trial)
        if self.progress is not None:
            self.progress.trial_started(trial, record.milestone)
        logger.info("trial %d started with %s", trial_id, full)

    def _resume(self, suggestion: TrialSuggestion) -> None:
        trial_id = suggestion.checkpoint_trial_id
        assert trial_id is not None
        record = self.records[trial_id]
        new_config, milestone, full = None, None, record.trial.config
        if suggestion.config is not None:
            config, full, milestone = self._split_milestone({**record.trial.config, **suggestion.config})
            if "seed" in full and self.scheduler.config_space.get("seed", 0) is None:
                config["seed"] = full["seed"] = record.trial.config["seed"]
            new_config = config if config != record.trial.config else None
        self.backend.resume_trial(trial_id, new_config)
        record.trial.config = full
        record.milestone = milestone if milestone is not None else self.scheduler.milestone(trial_id)
        self._begin_run(record, Cause.resume)
        for callback in self.callbacks:
            callback.on_resume_trial(record.trial)
        if self.progress is not None:
            self.progress.trial_resumed(record.trial, record.milestone)
        logger.info("trial %d resumed", trial_id)

    def _restart(self, record: TrialRecord, cause: Cause) -> None:
        logger.warning("trial %d is run again (%s)", record.trial.trial_id, cause.value)
        self.backend.restart_trial(record.trial.trial_id, from_scratch=cause is Cause.scratch)
        self._begin_run(record, cause)

    def _begin_run(self, record: TrialRecord, cause: Cause) -> None:
        record.begin_run(record.run + 1, cause)
        self._busy += 1
        self._batch -= 1
        self.status.set_status(record.trial.trial_id, Status.in_progress)
        self._journal_launch("resume", record, None)
        self._touched.add(record.trial.trial_id)

    def _split_milestone(self, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """Return the configuration for the script, the one for the record, and the milestone."""
        name = self.scheduler.max_resource_attr
        if name is None or name not in config:
            return dict(config), dict(config), None
        milestone = config[name]
        full = {**config, name: self.scheduler.config_space[name]}
        return dict(config) if self.backend.rewrite_max_resource else dict(full), full, milestone

    def _journal_launch(self, kind: str, record: TrialRecord, checkpoint_trial_id: int | None) -> None:
        self.journal.append(
            {
                "type": kind,
                "trial_id": record.trial.trial_id,
                "run": record.run,
                "cause": record.cause.value,
                "config": record.trial.config,
                "seed": record.trial.seed,
                "milestone": record.milestone,
                "checkpoint_trial_id": checkpoint_trial_id,
                "tuner_time": self.clock(),
                "time": time.time(),
            }
        )

    # ---- reports -------------------------------------------------------------------------------------

    def _on_report(self, event: ReportEvent) -> None:
        if self._ending:
            self.backend.answer(event, SchedulerDecision.STOP)
            return
        record = self.records[event.trial_id]
        self._journal_event("report", event, {"metrics": event.metrics, "tuner_time": self.clock()})
        resource = resource_of(event.metrics, self.scheduler.resource_attr)
        kind = judge_report(record, resource)
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
                    self.scheduler.resource_attr,
                    resource,
                )
            self._answer(event, answer, None, counted=False)
        elif kind is ReportKind.ignored:
            self._answer(event, SchedulerDecision.CONTINUE, "IGNORED", counted=False)
        else:
            self._decide(event, record, resource)

    def _decide(self, event: ReportEvent, record: TrialRecord, resource: float | None) -> None:
        scheduler, trial = self.scheduler, record.trial
        maximum = scheduler.max_resource_level
        result = event.metrics
        beyond = resource is not None and maximum is not None and resource > maximum
        if beyond and record.completes:
            # The maximum was reported and decided; more training was not asked for.
            self._answer(event, SchedulerDecision.STOP, None, counted=False)
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
        self._answer(event, answer, decision, counted=True, resource=None if result is event.metrics else resource)
        self._notify(event, record, result, decision, answer)
        if answer != SchedulerDecision.CONTINUE:
            self._carry_out(record, answer, result)
        elif not record.completes:
            record.milestone = scheduler.milestone(event.trial_id) or record.milestone
        self._check_criterion_now()

    def _book(
        self, event: ReportEvent, record: TrialRecord, result: dict[str, Any], resource: float | None, answer: str
    ) -> None:
        record.counted += 1
        record.counted_in_run += 1
        record.last_result = result
        if resource is not None:
            record.in_run[resource] = (answer, event.client)
            reported = resource_of(event.metrics, self.scheduler.resource_attr)
            largest = resource if reported is None else max(resource, reported)
            record.largest = largest if record.largest is None else max(record.largest, largest)
            record.trial.last_resource = record.largest
        self.status.add_result(event.trial_id, result)

    def _notify(
        self, event: ReportEvent, record: TrialRecord, result: dict[str, Any], decision: str, answer: str
    ) -> None:
        row = {
            **result,
            ST_TUNER_TIME: result.get(ST_TUNER_TIME, self.clock()),
            ST_SCHEDULER_DECISION: decision,
            ST_RUN: record.run,
            ST_SEED: record.trial.seed,
            ST_MILESTONE: record.milestone,
        }
        self.current_report = event
        status = self.status.trial_status(event.trial_id)
        for callback in self.callbacks:
            callback.on_trial_result(record.trial, status, row, answer)
        self.current_report = None
        self._news.append((event.trial_id, result))
        self._touched.add(event.trial_id)

    def _carry_out(self, record: TrialRecord, answer: str, result: dict[str, Any]) -> None:
        trial = record.trial
        record.order = answer
        self._stopping += 1
        if answer == SchedulerDecision.STOP:
            self.backend.stop_trial(trial.trial_id, result)
        else:
            self.backend.pause_trial(trial.trial_id, result)
        if not record.completes and record.bad_report is None:
            self.scheduler.on_trial_remove(trial)

    def _bad_report(self, event: ReportEvent, record: TrialRecord, message: str) -> None:
        logger.error("trial %d: %s", event.trial_id, message)
        self._answer(event, SchedulerDecision.STOP, None, counted=False)
        record.bad_report = message
        self._carry_out(record, SchedulerDecision.STOP, event.metrics)

    def _answer(self, event: ReportEvent, answer: str, decision: str | None, counted: bool) -> None:
        self._journal_event("decision", event, {"decision": answer, "scheduler_decision": decision, "counted": counted})
        self.backend.answer(event, answer)

    def _journal_event(self, kind: str, event: ReportEvent, rest: dict[str, Any]) -> None:
        head = {"type": kind, "trial_id": event.trial_id, "run": event.run, "client": event.client, "seq": event.seq}
        self.journal.append(head | rest)

    def _check_criterion_now(self) -> None:
        # Counts are exact: the report that reaches a limit is the last one. Plain functions are asked once a round.
        if isinstance(self.criterion, StoppingCriterion):
            self._check_criterion()

    # ---- ends ----------------------------------------------------------------------------------------

    def _on_end(self, event: EndEvent) -> None:
        record = self.records[event.trial_id]
        record.busy = False
        self._busy -= 1
        if record.order is not None:
            self._stopping -= 1
        self._exhausted = False
        self._touched.add(event.trial_id)
        status, reason, tail = event.status, event.reason, event.stderr_tail
        by_tuner = False
        if record.bad_report is not None:
            status, reason, tail = Status.failed, f"bad report: {record.bad_report}", record.bad_report
        elif record.completes and record.order is not None:
            status, reason = Status.completed, None
        elif record.order is None and (status == Status.stopped or (self._ending and status == Status.failed)):
            # Ended by the tuner, not by a decision: a resumed experiment goes on with it.
            status, reason, by_tuner = Status.stopped, "interrupted", True
        elif record.order is None and self._should_restart(record, event):
            return
        elif status == Status.completed and record.counted == 0:
            status, reason = Status.failed, "no report"
            tail = tail or "the script ended without a report; call Reporter()(metric=...) at least once"
        record.trial.end_reason = reason
        self.status.set_status(event.trial_id, status, by_tuner=by_tuner)
        self.journal.append(
            {
                "type": "status",
                "trial_id": event.trial_id,
                "run": event.run,
                "status": status.value,
                "reason": reason,
                "exit_code": event.exit_code,
                "tuner_time": self.clock(),
            }
        )
        self._tell_scheduler_of_end(record, status)
        self._show_end(record, status, reason)
        if status == Status.failed:
            self._count_failure(record, reason or "unknown", tail)
        else:
            self._ended_otherwise = self._ended_otherwise or not by_tuner
        self._check_criterion_now()

    def _should_restart(self, record: TrialRecord, event: EndEvent) -> bool:
        """Start the next run of a trial whose run ended before its time through no fault of its own."""
        if self._ending:
            return False
        if event.reason == Cause.supervisor_lost.value:
            self._journal_restart(record, event)
            self._restart(record, Cause.supervisor_lost)
        elif event.reason == Cause.killed.value and record.restarts < MAX_RESTARTS and not record.completes:
            record.restarts += 1
            self._journal_restart(record, event)
            self._restart(record, Cause.killed)
        elif event.status == Status.completed and self._lost_last_report(record):
            record.scratched = True
            self._journal_restart(record, event)
            self._restart(record, Cause.scratch)
        else:
            return False
        return True

    def _lost_last_report(self, record: TrialRecord) -> bool:
        """Whether a restarted run found its training done, but the report of the last epoch was never recorded."""
        if not record.cause.is_restart or record.scratched or record.completes:
            return False
        maximum = self.scheduler.max_resource_level
        if self.scheduler.resource_attr is None or maximum is None:
            return record.counted_in_run == 0
        return record.counted_in_run == 0 and (record.largest or 0) < maximum

    def _journal_restart(self, record: TrialRecord, event: EndEvent) -> None:
        self.journal.append(
            {
                "type": "status",
                "trial_id": event.trial_id,
                "run": event.run,
                "status": Status.failed.value if event.status == Status.failed else event.status.value,
                "reason": event.reason,
                "exit_code": event.exit_code,
                "tuner_time": self.clock(),
                "restart": True,
            }
        )

    def _tell_scheduler_of_end(self, record: TrialRecord, status: Status) -> None:
        trial = record.trial
        if status == Status.completed or (status == Status.failed and record.completes):
            # Past the maximum a failure concerns the code after the loop; the results are whole.
            assert record.last_result is not None
            self.scheduler.on_trial_complete(trial, record.last_result)
            if status == Status.completed:
                for callback in self.callbacks:
                    callback.on_trial_complete(trial, record.last_result)
        elif status == Status.failed:
            self.scheduler.on_trial_error(trial)

    def _show_end(self, record: TrialRecord, status: Status, reason: str | None) -> None:
        logger.info("trial %d: %s%s", record.trial.trial_id, status.value, f" ({reason})" if reason else "")
        if self.progress is None:
            return
        if status == Status.paused:
            self.progress.trial_paused(record.trial, record.last_result or {})
        else:
            folder = self.backend.trial_path(record.trial.trial_id)
            name = ST_STDERR_FILENAME if status == Status.failed else ST_STDOUT_FILENAME
            self.progress.trial_ended(record.trial, status, reason, record.last_result or {}, folder / name)

    def _count_failure(self, record: TrialRecord, reason: str, tail: str) -> None:
        trial_id = record.trial.trial_id
        if reason == OUT_OF_MEMORY:
            self._out_of_memory += 1
            if not self._ended_otherwise and self._out_of_memory >= ENOUGH_OUT_OF_MEMORY + self.options.n_workers:
                self._fail(
                    ExperimentError(
                        f"the first {self._out_of_memory} trials all ran out of memory; reduce the memory that a trial "
                        f"needs or n_workers={self.options.n_workers}. The last one wrote:\n{tail}"
                    )
                )
            if not self.options.count_out_of_memory:
                return
        else:
            self._ended_otherwise = True
        self._failures += 1
        message = f"Trial - {trial_id} failed: {reason}"
        if tail and tail not in reason:
            message += f"\nThe last lines of {self.backend.trial_path(trial_id) / ST_STDERR_FILENAME}:\n{tail}"
        self._first_failure = self._first_failure or message
        logger.warning("%s", message)
        if self._failures > self.options.max_failures:
            self._fail(
                TrialFailed(
                    f"{self._failures} trials failed, more than max_failures={self.options.max_failures} allows. "
                    f"The first one: {self._first_failure}"
                )
            )

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            if not self._ending:
                self._end_at_once(str(error).partition("\n")[0])

    # ---- other news ----------------------------------------------------------------------------------

    def _on_message(self, event: MessageEvent) -> None:
        if event.kind == "process":
            self.journal.append({"type": "process", "trial_id": event.trial_id, "run": event.run, **event.data})
        elif event.kind == "preloading":
            if self.progress is not None:
                modules = ", ".join(event.data["modules"]) or "nothing"
                self.progress.message(f"loading {modules} once for all trials ...")
        elif event.kind == "ready":
            logger.info("libraries loaded in %.1f s", event.data["seconds"])
        elif event.kind == "supervisor_lost":
            self.journal.append({"type": "supervisor_lost", **event.data})
            logger.warning(
                "the %s of the trials died; trials that ran are restarted from their checkpoints", event.data["who"]
            )
        else:
            logger.warning("%s", event.data.get("message", event.kind))
