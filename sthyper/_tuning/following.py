"""The record before a fresh scheduler is followed: the event loop does again what it did, and the scheduler learns it.

A line of type ``fresh`` says from where on a scheduler decides that had not decided before. Up to the last one of them
a stand-in for the schedulers of the past says what the record says, and feeds the scheduler of the day. From that line
on it decides, and is held to what is recorded as any other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sthyper._tuning.adoption import OUTSIDE, TRAITS, FreshStart, SchedulerFeed, scheduler_traits
from sthyper._tuning.lines import of_types
from sthyper._tuning.space_change import PastSpaces
from sthyper._tuning.trial_record import TrialRecord, progress_of, resource_of
from sthyper.backend.base import EndEvent
from sthyper.config_space import config_space_to_json_dict
from sthyper.errors import ReportError
from sthyper.schedulers.base import PendingSuggestion, TrialScheduler
from sthyper.trial import SchedulerDecision, Status, Trial, TrialSuggestion

if TYPE_CHECKING:
    from sthyper._tuning.loop import TuningLoop
    from sthyper._tuning.recorded import RecordedJournal

__all__ = ["follow"]


class Follower(TrialScheduler):
    """Stands in for schedulers of the past: says what the record says, and feeds the one that comes after them.

    Args:
        config_space: The first space.
        traits: See :func:`scheduler_traits`.
        recorded: The record, at the line that is being done again.
        records: All its lines.
        first_line: Number of the first of them.
        feed: Tells the scheduler that comes after.
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        traits: Mapping[str, Any],
        recorded: RecordedJournal,
        records: Iterable[Mapping[str, Any]],
        first_line: int,
        feed: SchedulerFeed,
    ) -> None:
        super().__init__(config_space)
        self.feed = feed
        self._recorded = recorded
        self._columns: dict[str, Any] = {}
        # Trial -> its milestones, and for each the number of the last line in a row that tells it.
        self._milestones: dict[int, tuple[list[int], list[int | None]]] = {}
        for number, record in enumerate(records, start=first_line):
            if "milestone" in record:
                numbers, levels = self._milestones.setdefault(record["trial_id"], ([], []))
                if levels and levels[-1] == record["milestone"]:
                    numbers[-1] = number
                else:
                    numbers.append(number)
                    levels.append(record["milestone"])
        self.become(config_space, traits)

    def become(self, config_space: dict[str, Any], traits: Mapping[str, Any]) -> None:
        """Stand in for the next scheduler of the past."""
        self.config_space = dict(config_space)
        self.mode = self.feed.scheduler.metric_mode()
        for name in TRAITS:
            setattr(self, name, traits.get(name))

    def metric_names(self) -> list[str]:
        return self.feed.scheduler.metric_names()

    # ---- suggestions ---------------------------------------------------------------------------------

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        line = self._recorded.peek()
        assert line is not None
        if line["action"] == "none":
            return None
        return TrialSuggestion(line["action"] == "start", line["checkpoint_trial_id"], line["config"])

    def begin_suggest(self, trial_id: int) -> PendingSuggestion:
        return PendingSuggestion(lambda: None, lambda _: self._suggest(trial_id))

    def suggest_enqueued(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        suggestion = self._suggest(trial_id)
        assert suggestion is not None
        return suggestion

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_add(self, trial: Trial) -> None:
        self.feed.start(trial)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        line = self._recorded.peek()
        self._columns = {}
        if line is None or line["type"] != "decision":
            return self.feed.decide(trial.trial_id, result)
        decision: str | None = line["scheduler_decision"]
        if decision is None:
            raise ReportError("its report could not be used")
        self._columns = line.get("columns", {})
        self.feed.result(trial.trial_id, result, line["decision"])
        return decision

    def on_trial_remove(self, trial: Trial) -> None:
        self.feed.remove(trial.trial_id)

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self.feed.complete(trial.trial_id, result)

    def on_trial_error(self, trial: Trial) -> None:
        self.feed.error(trial.trial_id, trial.end_reason)

    def on_trial_resume(self, trial: Trial) -> None:
        self.feed.resume(trial)

    def on_trial_repeat(self, trial: Trial, result: dict[str, Any]) -> None:
        self.feed.repeat(trial.trial_id, result)

    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        self.feed.add_result(trial_id, config, result)

    def result_columns(self) -> dict[str, Any]:
        return self._columns

    def milestone(self, trial_id: int) -> int | None:
        """Return what the next line that tells it says."""
        if trial_id not in self._milestones or self._recorded.peek() is None:
            return None
        numbers, levels = self._milestones[trial_id]
        at = bisect_left(numbers, self._recorded.line)
        return levels[at] if at < len(numbers) else None


def follow(
    loop: TuningLoop,
    recorded: RecordedJournal,
    records: Iterable[dict[str, Any]],
    first_line: int,
    do_again: Callable[[TuningLoop, dict[str, Any], RecordedJournal], None],
) -> str | None:
    """Go through the record up to where the loop's scheduler begins to decide.

    Nothing happens if it decided from the beginning.

    Args:
        loop: The event loop.
        recorded: Its record, at the first line.
        records: All lines of it, which can be gone through more than once.
        first_line: Number of the first.
        do_again: Does what a line says was done.

    Returns:
        What is to be said of it, ``None`` if there is nothing.
    """
    state, wish = loop.state, loop.state.fresh
    marks = sum(1 for _ in of_types(records, "fresh"))
    if not marks and wish is None:
        return None
    scheduler = state.scheduler
    spaces = PastSpaces.of(of_types(records, "metadata", "fresh"))
    if wish is not None:
        spaces = PastSpaces((*spaces.spaces, scheduler.config_space), {**spaces.defaults, **wish.new_defaults})
    feed = SchedulerFeed(scheduler, spaces.map)
    traits = next((r["scheduler"] for r in of_types(records, "session") if "scheduler" in r), None)
    traits = scheduler_traits(scheduler) if traits is None else traits
    follower = Follower(spaces.spaces[0], traits, recorded, records, first_line, feed)
    state.scheduler = follower
    state.steering.follow(follower)
    so_far = PastSpaces((spaces.spaces[0],))
    try:
        while (line := recorded.peek()) is not None:
            if line["type"] == "fresh":
                marks -= 1
                so_far = so_far.then(line)
                is_last = marks == 0 and wish is None
                _Switch(loop, recorded, records, first_line, follower, so_far).carry_out(line, is_last)
                if is_last:
                    return None
            else:
                _note_fault(loop, line)
                do_again(loop, line, recorded)
        assert wish is not None
        switch = _Switch(loop, recorded, records, first_line, follower, spaces)
        return switch.carry_out(switch.make_line(wish), is_last=True)
    finally:
        state.scheduler = scheduler
        state.steering.follow(None)


def _note_fault(loop: TuningLoop, line: Mapping[str, Any]) -> None:
    """Take over what a report was blamed for, which only the end of its trial tells."""
    record = loop.state.records.get(line["trial_id"]) if line["type"] == "status" else None
    if record is not None and record.bad_report is not None and line["reason"]:
        record.bad_report = line["reason"].removeprefix("bad report: ")


class _Switch:
    """What a line of type ``fresh`` changes for the event loop.

    Args:
        loop: The event loop.
        recorded: Its record.
        records: All lines of it.
        first_line: Number of the first of them.
        follower: Stands in for the schedulers before.
        spaces: The spaces up to the one of that line.
    """

    def __init__(
        self,
        loop: TuningLoop,
        recorded: RecordedJournal,
        records: Iterable[Mapping[str, Any]],
        first_line: int,
        follower: Follower,
        spaces: PastSpaces,
    ) -> None:
        self._loop = loop
        self._state = loop.state
        self._recorded = recorded
        self._records = records
        self._first_line = first_line
        self._follower = follower
        self._map = spaces.map

    def make_line(self, wish: FreshStart) -> dict[str, Any]:
        """Return the line where there is none yet; the scheduler knows everything before it."""
        scheduler = self._follower.feed.scheduler
        kept = self._loop.suggestions.kept_back
        place = None if kept is None or kept.config is None else self._map.place(kept.config)
        waiting = {
            trial_id: scheduler.milestone(trial_id)
            for trial_id, record in self._state.records.items()
            if self._runs_on(record)
        }
        return {
            "type": "fresh",
            "reason": wish.reason,
            "scheduler": wish.scheduler,
            "config_space": config_space_to_json_dict(scheduler.config_space),
            "new_defaults": dict(wish.new_defaults),
            "traits": scheduler_traits(scheduler),
            "metadata": scheduler.metadata(),
            "kept_back": place.tuned if place is not None and place.inside else None,
            "asked": not self._loop.suggestions.quiet,
            "milestones": {str(trial_id): level for trial_id, level in waiting.items()},
            "tuner_time": self._state.clock(),
        }

    def carry_out(self, line: dict[str, Any], is_last: bool) -> str:
        """Go on as the line says; return what happened in words."""
        state, feed = self._state, self._follower.feed
        self._recorded.append(line)
        before = scheduler_traits(self._follower)
        self._follower.become(self._map.space, line["traits"])
        if any(before[name] != line["traits"].get(name) for name in ("resource_attr", "progress_attr")):
            self._measure_again()
        state.steering.adopt(self._map)
        ended = [self._end(record) for record in list(state.records.values()) if not self._has_place(record)]
        for record in state.records.values():
            self._make_ready(record, line)
        if is_last:
            state.scheduler = feed.scheduler
            state.steering.follow(None)
            for trial_id, record in state.records.items():
                record.unknown = trial_id not in feed.known
        trial_id, kept = state.backend.new_trial_id(), None
        if line["kept_back"] is not None and is_last:
            kept = state.scheduler.suggest_enqueued(trial_id, dict(line["kept_back"]))
        elif line["kept_back"] is not None:
            kept = TrialSuggestion.start_suggestion(self._map.complete(line["kept_back"], {}))
        self._loop.suggestions.adopt(kept, state.scheduler.begin_suggest(trial_id) if line["asked"] else None)
        lost = len(state.records) - len(feed.known)
        return (
            f"a fresh scheduler decides from here on ({line['reason']}); it knows {len(feed.known)} trials"
            + (f", {lost} cannot be expressed in its space" if lost else "")
            + (f"; {sum(ended)} are stopped, {OUTSIDE}" if any(ended) else "")
            + (f"; it cannot use {feed.passed_over} of the reports" if feed.passed_over else "")
        )

    def _has_place(self, record: TrialRecord) -> bool:
        place = self._map.place(record.trial.config)
        return place is not None and place.inside

    def _is_paused(self, record: TrialRecord) -> bool:
        return not record.busy and self._state.status.trial_status(record.trial.trial_id) == Status.paused

    def _runs_on(self, record: TrialRecord) -> bool:
        """Whether a trial runs, or is run again."""
        running = record.busy and record.order is None
        return (running or record.owed is not None) and self._has_place(record)

    def _measure_again(self) -> None:
        """Tell from the recorded reports how far trials have come, as others look at it now."""
        attr = self._follower.resource_attr
        records = self._state.records
        for record in records.values():
            record.largest = record.trial.last_resource = record.repeated = None
            record.progresses, record.in_run = True, {}
        reports: dict[tuple[Any, ...], dict[str, Any]] = {}
        for number, line in enumerate(self._records, start=self._first_line):
            if number > self._recorded.last_line:
                break
            if line["type"] == "report":
                reports[_report_key(line)] = line["metrics"]
            elif line["type"] == "decision" and (metrics := reports.pop(_report_key(line), None)) and line["counted"]:
                record = records[line["trial_id"]]
                if attr is not None:
                    found = [r for r in (record.largest, resource_of(metrics, attr)) if r is not None]
                    record.largest = record.trial.last_resource = max(found, default=None)
                elif self._follower.progress_attr is not None:
                    record.advance(progress_of(metrics, self._follower))
        for record in records.values():  # a decision that was made only now is in no line
            if record.last_result is None:
                continue
            latest = resource_of(record.last_result, attr) if attr else progress_of(record.last_result, self._follower)
            if latest is not None and record.progresses and (record.largest is None or latest > record.largest):
                record.largest = record.trial.last_resource = latest

    def _end(self, record: TrialRecord) -> bool:
        """Stop a trial that could go on otherwise; return whether it was one."""
        state, trial = self._state, record.trial
        if record.busy and record.order == SchedulerDecision.STOP:
            return False
        if not (record.busy or record.owed is not None or self._is_paused(record)):
            return False
        if record.busy and state.backend.outlives_tuner:
            state.stopping += record.order is None
            record.order = SchedulerDecision.STOP
            record.outside = not record.completes
            if record.outside:
                self._follower.feed.error(trial.trial_id, OUTSIDE)
            return True
        if record.busy:
            record.busy = False
            state.busy -= 1
            state.stopping -= record.order is not None
        status, reason = (Status.completed, None) if record.completes else (Status.stopped, OUTSIDE)
        record.owed = None
        trial.end_reason = reason
        state.backend.recall_end(EndEvent(trial.trial_id, record.run, status, reason))
        state.backend.on_judged_end(trial.trial_id, status)
        state.status.set_status(trial.trial_id, status)
        line = {"type": "status", "trial_id": trial.trial_id, "run": record.run, "status": status.value}
        self._recorded.append(line | {"reason": reason, "exit_code": None, "tuner_time": state.clock()})
        if record.completes:
            assert record.last_result is not None
            self._follower.feed.complete(trial.trial_id, record.last_result)
        else:
            self._follower.feed.error(trial.trial_id, reason)
        return True

    def _make_ready(self, record: TrialRecord, line: Mapping[str, Any]) -> None:
        """Give a trial that may go on the configuration that it has in this space."""
        place = self._map.place(record.trial.config)
        if place is None or not (record.busy or record.owed is not None or self._is_paused(record)):
            return
        attr = self._follower.max_resource_attr
        wrote = attr is not None and record.script_config.get(attr) != record.trial.config.get(attr)
        full = self._map.complete(place.tuned, record.trial.config)
        key = str(record.trial.trial_id)
        if key in line["milestones"]:
            record.milestone = line["milestones"][key]
        record.trial.config = full
        record.script_config = full | {attr: record.milestone} if wrote and attr and record.milestone else dict(full)


def _report_key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["trial_id"], line["run"], line["client"], line["seq"]
