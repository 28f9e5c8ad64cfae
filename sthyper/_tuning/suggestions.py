"""Free workers get what the scheduler suggests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from sthyper._checkpoints import holds_first_only
from sthyper._tuning.background import BackgroundThread
from sthyper._tuning.narration import log_again, log_resumed, log_started
from sthyper._tuning.state import ExperimentState
from sthyper._tuning.trial_record import Cause, TrialRecord
from sthyper.backend.base import trial_seed
from sthyper.schedulers.base import PendingSuggestion
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.trial import Status, TrialSuggestion, copied

__all__ = ["Suggestions"]


class Suggestions:
    """Asks the scheduler for free workers, and starts and resumes trials; enqueued configurations come first.

    The slow part of a suggestion runs in a worker thread, so that answers to reports never wait for it.

    Args:
        state: The experiment.

    Attributes:
        kept_back: The first suggestion of a new trial after ``max_num_trials_started``; it ends the asking. In a
            resumed experiment also one whose trial was not started any more.
        exhausted: The scheduler had nothing to suggest, and no trial has ended since.
    """

    def __init__(self, state: ExperimentState) -> None:
        self.state = state
        self.kept_back: TrialSuggestion | None = None
        self.exhausted = False
        self._asks = 0
        self._ends = 0
        self._ends_at_ask = 0
        self._held: list[TrialSuggestion] = []
        self._batch = state.options.n_workers
        self.restarts: deque[tuple[TrialRecord, Cause]] = deque()
        self._pending: PendingSuggestion | None = None
        self._future: Future[Any] | None = None
        self._thread: BackgroundThread | None = None

    @property
    def quiet(self) -> bool:
        """Whether no suggestion is being computed."""
        return self._pending is None

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers; to be called when :attr:`quiet`.

        A resumed experiment has all workers free, and finds the trials that it owes a run in their records.
        """
        return {
            "asks": self._asks,
            "exhausted": self.exhausted,
            "kept_back": None if self.kept_back is None else _suggestion_state(self.kept_back),
            "held": [_suggestion_state(suggestion) for suggestion in self._held],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._asks, self.exhausted = state["asks"], state["exhausted"]
        self.kept_back = None if state["kept_back"] is None else TrialSuggestion(**state["kept_back"])
        self._held = [TrialSuggestion(**suggestion) for suggestion in state["held"]]

    @property
    def waiting(self) -> bool:
        """Whether a suggestion is being computed, or waits for its trial's processes to end."""
        return self._future is not None or bool(self._held)

    def next_source(self) -> int | None:
        """Return the trial from whose checkpoint the one that is kept back will start, ``None`` if there is none."""
        return None if self.kept_back is None else self.kept_back.checkpoint_trial_id

    def trial_ended(self) -> None:
        """Ask the scheduler again, even if it had nothing to suggest: a paused trial may be promoted now."""
        self._ends += 1
        self.exhausted = False

    def _free_workers(self) -> int:
        if self.state.backend.poll_interval is None:
            return self.state.options.n_workers - self.state.busy
        if self.state.options.start_jobs_without_delay:
            return self.state.options.n_workers - (self.state.busy - self.state.stopping)
        return self.state.options.n_workers - len(self.state.backend.busy_trial_ids())

    def _may_ask(self) -> bool:
        return not self.exhausted and self.kept_back is None and self._may_use_worker()

    def _may_start_enqueued(self) -> bool:
        return bool(self.state.steering.queue) and self._may_use_worker() and self._may_start_new()

    def _may_start_kept_back(self) -> bool:
        return self.kept_back is not None and self._may_use_worker() and self._may_start_new()

    def _may_start_new(self) -> bool:
        criterion = self.state.criterion
        return not isinstance(criterion, StoppingCriterion) or criterion.may_start_new(self.state.status)

    def _may_use_worker(self) -> bool:
        if self._nothing_new or self._free_workers() <= len(self._held):
            return False
        if not self.state.options.asynchronous_scheduling and self._batch <= 0:
            if self.state.busy:
                return False
            self._batch = self.state.options.n_workers
        return not isinstance(self.state.criterion, StoppingCriterion) or self.state.criterion.may_use_worker(
            self.state.status
        )

    def fill_workers(self) -> None:
        """Give every free worker something to do."""
        for held in () if self._nothing_new else list(self._held):
            assert held.checkpoint_trial_id is not None
            if not self.state.records[held.checkpoint_trial_id].busy and self._free_workers() > 0:
                self._held.remove(held)
                self._resume(held)
        while True:
            if self._future is not None:
                if not self._future.done():
                    return
                assert self._pending is not None
                pending, future = self._pending, self._future
                self._pending = self._future = None
                self._received(pending.finish(future.result()))
            elif self.restarts and self._may_use_worker():
                self.restart(*self.restarts.popleft())
            elif self._may_start_kept_back():
                assert self.kept_back is not None
                suggestion, self.kept_back = self.kept_back, None
                self._start(suggestion)
            elif self._may_start_enqueued():
                self._start_enqueued()
            elif self._may_ask():
                self.state.on_quiet()
                self._ask()
            else:
                return

    @property
    def _nothing_new(self) -> bool:
        """Whether the experiment has begun to end, so that nothing is started or resumed any more."""
        return self.state.ending or self.state.draining

    def _start_enqueued(self) -> None:
        enqueued = self.state.steering.queue.popleft()
        self._asks += 1
        trial_id = self.state.backend.new_trial_id()
        suggestion = self.state.scheduler.suggest_enqueued(trial_id, dict(enqueued.config))
        self._journal_suggestion(suggestion, enqueued=enqueued.number)
        if self._starts(suggestion):
            self._start(suggestion)
        else:  # in a resumed experiment that ended just then
            self.kept_back = suggestion

    def _ask(self) -> None:
        self._asks += 1
        self._ends_at_ask = self._ends
        self.state.amid = True
        self.state.journal.append({"type": "ask", "n": self._asks})
        begun = self.state.scheduler.begin_suggest(self.state.backend.new_trial_id())
        self.state.amid = not isinstance(begun, PendingSuggestion)
        if not isinstance(begun, PendingSuggestion):
            self._received(begun)
            return
        self._pending = begun
        if self.state.recorded is None:
            self._compute(begun)

    def _compute(self, begun: PendingSuggestion) -> None:
        future: Future[Any] = Future()
        self._future = future
        future.add_done_callback(lambda _: self.state.backend.wake())

        def work() -> None:
            try:
                future.set_result(begun.compute())
            except BaseException as error:  # raised in the loop's thread by future.result()
                future.set_exception(error)

        self._thread = BackgroundThread(work, "sthyper-suggest")
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Wait for a suggestion that nobody will take any more.

        Args:
            timeout: So many seconds at most; what is computed still then is broken off when the process exits.
        """
        if self._thread is not None:
            self._thread.has_ended(timeout)

    def _journal_suggestion(self, suggestion: TrialSuggestion | None, enqueued: int | None = None) -> None:
        line = {
            "type": "suggestion",
            "n": self._asks,
            "action": "none" if suggestion is None else "start" if suggestion.spawn_new_trial_id else "resume",
            "config": None if suggestion is None else suggestion.config,
            "checkpoint_trial_id": None if suggestion is None else suggestion.checkpoint_trial_id,
        }
        self.state.journal.append(line if enqueued is None else {**line, "enqueued": enqueued})
        self.state.amid = False

    def _received(self, suggestion: TrialSuggestion | None) -> None:
        self._journal_suggestion(suggestion)
        if suggestion is None:
            # Not final while trials run, nor if one has ended meanwhile: it may be promoted.
            self.exhausted = self._ends == self._ends_at_ask
        elif suggestion.spawn_new_trial_id:
            # What comes when the experiment has begun to end is for the one that is resumed.
            if self._nothing_new or not self._starts(suggestion):
                self.kept_back = suggestion
            else:
                self._start(suggestion)
        else:
            trial_id = suggestion.checkpoint_trial_id
            assert trial_id is not None
            if trial_id not in self.state.records:
                raise ValueError(
                    f"{type(self.state.scheduler).__name__} wants to resume trial {trial_id}, which never started"
                )
            if self._nothing_new or self.state.records[trial_id].busy or not self._resumes(trial_id):
                self._held.append(suggestion)  # its processes are still ending
            else:
                self._resume(suggestion)

    # ---- a resumed experiment ------------------------------------------------------------------------

    def recall(self, record: dict[str, Any]) -> bool:
        """Do once more what a line of the journal says was done; ``False`` if nothing of the kind was due."""
        kind = record["type"]
        if kind == "ask":
            self._ask()
        elif kind == "suggestion" and "enqueued" in record:
            if not self.state.steering.queue:
                return False
            self._start_enqueued()
        elif kind == "suggestion":
            if self._pending is None:
                return False
            pending, self._pending = self._pending, None
            self._received(pending.finish(pending.compute()))
        elif kind == "start":
            if self.kept_back is None:
                return False
            suggestion, self.kept_back = self.kept_back, None
            self._start(suggestion)
        elif record["cause"] == Cause.resume:
            held = next((s for s in self._held if s.checkpoint_trial_id == record["trial_id"]), None)
            if held is None:
                return False
            self._held.remove(held)
            self._resume(held)
        else:
            self.restart(self.state.records[record["trial_id"]], Cause(record["cause"]))
        return True

    def adopt(self, kept_back: TrialSuggestion | None, begun: TrialSuggestion | PendingSuggestion | None) -> None:
        """Go over to another scheduler.

        Args:
            kept_back: A suggestion that came and was not started, as the other one makes it.
            begun: What it begins in place of a suggestion that was asked for and has not come.
        """
        self.exhausted = False
        self.kept_back = kept_back
        self._held.clear()  # paused still: the other one may resume them, too
        if self._pending is not None and not isinstance(begun, PendingSuggestion):
            made = begun
            begun = PendingSuggestion(lambda: None, lambda _: made)
        self._pending = begun if isinstance(begun, PendingSuggestion) else None

    def go_on(self, restarts: Iterable[tuple[TrialRecord, Cause]]) -> None:
        """Begin where the record ends.

        Args:
            restarts: Trials that ran when it did; they come first.
        """
        self.restarts.extend(restarts)
        self._batch = self.state.options.n_workers - self.state.busy
        if self._pending is not None:
            self._compute(self._pending)

    def _starts(self, suggestion: TrialSuggestion) -> bool:
        """Whether a new trial is started now: the criterion says it, or in a resumed experiment the record."""
        if self.state.recorded is None:
            return self._may_start_new()
        following = self.state.recorded.peek()
        return following is not None and following["type"] == "start"

    def _resumes(self, trial_id: int) -> bool:
        if self.state.recorded is None:
            return True
        following = self.state.recorded.peek()
        return following is not None and following["type"] == "resume" and following["trial_id"] == trial_id

    # ---- trials --------------------------------------------------------------------------------------

    def _start(self, suggestion: TrialSuggestion) -> None:
        assert suggestion.config is not None
        config, full, milestone = self._split_milestone(suggestion.config)
        trial_id = self.state.backend.new_trial_id()
        if "seed" in full and self.state.scheduler.config_space.get("seed", 0) is None:
            config["seed"] = full["seed"] = trial_seed(self.state.options.seed, trial_id)
        trial = self.state.backend.start_trial(config, suggestion.checkpoint_trial_id)
        trial.config = full
        if self.state.recorded is not None and (started := self.state.recorded.start_time()) is not None:
            trial.creation_time = started
        record = TrialRecord(trial=trial, milestone=milestone, script_config=config)
        self.state.amid = True
        self.state.records[trial_id] = record
        self.state.busy += 1
        self._batch -= 1
        self.state.status.add_trial(trial)
        self.state.scheduler.on_trial_add(trial)
        record.milestone = self.state.scheduler.milestone(trial_id) or milestone
        self._journal_launch("start", record, suggestion.checkpoint_trial_id, trial.creation_time.timestamp())
        self.state.touch(trial)
        for callback in self.state.callbacks:
            callback.on_start_trial(trial)
        if self.state.progress is not None:
            self.state.progress.trial_started(trial, record.milestone)
        log_started(self.state, record, suggestion.checkpoint_trial_id)

    def _resume(self, suggestion: TrialSuggestion) -> None:
        trial_id = suggestion.checkpoint_trial_id
        assert trial_id is not None
        record = self.state.records[trial_id]
        new_config, milestone, full = None, None, record.trial.config
        if suggestion.config is not None:
            config, full, milestone = self._split_milestone({**record.trial.config, **suggestion.config})
            if "seed" in full and self.state.scheduler.config_space.get("seed", 0) is None:
                config["seed"] = full["seed"] = record.trial.config["seed"]
            new_config = config if config != record.script_config else None
            record.script_config = config
        # The backend launches what the trial holds; the record shows the full configuration.
        record.trial.config = record.script_config
        self.state.backend.resume_trial(trial_id, new_config)
        record.trial.config = full
        record.milestone = self.state.scheduler.milestone(trial_id) or milestone
        self._begin_run(record, Cause.resume)
        for callback in self.state.callbacks:
            callback.on_resume_trial(record.trial)
        if self.state.progress is not None:
            self.state.progress.trial_resumed(record.trial, record.milestone)
        log_resumed(self.state, record)

    def restart(self, record: TrialRecord, cause: Cause) -> None:
        """Run a trial again whose run ended before its time."""
        log_again(self.state, record, cause)
        full, record.trial.config = record.trial.config, record.script_config
        if record.counted == 0 and self.state.scheduler.progress_attr is not None:
            # A checkpoint that was written before its first report would skip that, if trials report how far they are.
            # As long as nobody knows, only one that is not the first says that they do not report with each of them.
            told = any(other.largest is not None for other in self.state.records.values())
            record.trial.last_resource = 0 if told or self._wrote_once(record.trial.trial_id) else None
        self.state.backend.restart_trial(record.trial.trial_id, from_scratch=cause is Cause.scratch)
        record.trial.config = full
        self._begin_run(record, cause)

    def _wrote_once(self, trial_id: int) -> bool:
        backend = self.state.backend
        return backend.path is not None and holds_first_only(backend.checkpoint_trial_path(trial_id))

    def _begin_run(self, record: TrialRecord, cause: Cause) -> None:
        self.state.amid = True
        record.begin_run(record.run + 1, cause)
        self.state.scheduler.on_trial_resume(record.trial)
        self.state.busy += 1
        self._batch -= 1
        self.state.status.set_status(record.trial.trial_id, Status.in_progress)
        self._journal_launch("resume", record, None, time.time())
        self.state.touch(record.trial)

    def _split_milestone(self, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """Return the configuration for the script, the one for the record, and the milestone."""
        name = self.state.scheduler.max_resource_attr
        if name is None or name not in config:
            return dict(config), dict(config), None
        milestone = config[name]
        full = {**config, name: self.state.scheduler.config_space[name]}
        return dict(config) if self.state.backend.rewrite_max_resource else dict(full), full, milestone

    def _journal_launch(self, kind: str, record: TrialRecord, checkpoint_trial_id: int | None, now: float) -> None:
        self.state.journal.append(
            {
                "type": kind,
                "trial_id": record.trial.trial_id,
                "run": record.run,
                "cause": record.cause.value,
                "config": record.trial.config,
                "seed": record.trial.seed,
                "milestone": record.milestone,
                "checkpoint_trial_id": checkpoint_trial_id,
                "tuner_time": self.state.clock(),
                "time": now,
            }
        )
        self.state.amid = False


def _suggestion_state(suggestion: TrialSuggestion) -> dict[str, Any]:
    return {
        "spawn_new_trial_id": suggestion.spawn_new_trial_id,
        "checkpoint_trial_id": suggestion.checkpoint_trial_id,
        "config": None if suggestion.config is None else copied(suggestion.config),
    }
