"""Decisions made once more: a scheduler is fed a record and compared with it, without an event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from sthyper._tuning.adoption import OUTSIDE, SchedulerFeed
from sthyper._tuning.lines import JournalLines
from sthyper._tuning.space_change import PastSpaces
from sthyper._tuning.trial_record import resource_of, settle_decision
from sthyper.errors import ReportError
from sthyper.schedulers.base import PendingSuggestion, TrialScheduler
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["differences"]


def differences(records: Iterable[dict[str, Any]], scheduler: TrialScheduler) -> list[str]:
    """Feed a fresh scheduler the recorded order of events and return where it decides otherwise.

    Of what was decided before a fresh scheduler was taken it only learns.

    Args:
        records: The lines of a journal; they are held unless they are :class:`JournalLines`.
        scheduler: A scheduler made with the arguments of the (last) recorded one, its ``random_seed`` included.

    Returns:
        One line of text for each difference; empty when all suggestions and decisions are the same.
    """
    replay = _Replay(scheduler)
    if not isinstance(records, JournalLines):
        records = list(records)
    last = max((number for number, record in enumerate(records, start=1) if record["type"] == "fresh"), default=0)
    if last:
        _Learner(replay).run(records, last)
    for number, record in enumerate(islice(records, last, None), start=last + 1):
        problem = replay.take(record)
        if problem:
            replay.differences.append(f"line {number}: {problem}")
    return replay.differences


class _Replay:
    """Feeds a scheduler and compares.

    Args:
        scheduler: The scheduler.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.scheduler = scheduler
        self.trials: dict[int, Trial] = {}
        self.unknown: set[int] = set()
        self.reports: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.last: dict[int, dict[str, Any]] = {}
        self.completes: set[int] = set()
        self.begun: TrialSuggestion | PendingSuggestion | None = None
        self.enqueued: dict[int, dict[str, Any]] = {}
        self.differences: list[str] = []
        self._handlers = {
            "enqueue": self._enqueue,
            "added_result": self._added_result,
            "ask": self._ask,
            "suggestion": self._suggestion,
            "start": self._start,
            "resume": self._resume,
            "report": self._report,
            "decision": self._decision,
            "status": self._status,
        }

    def take(self, record: dict[str, Any]) -> str | None:
        """Do what a line says; return what is different now."""
        handler = self._handlers.get(record["type"])
        return None if handler is None else handler(record)

    def _enqueue(self, record: dict[str, Any]) -> None:
        self.enqueued[record["n"]] = record["config"]

    def _added_result(self, record: dict[str, Any]) -> None:
        # What the scheduler cannot use is passed over, as by the tuner.
        with contextlib.suppress(ReportError):
            self.scheduler.add_result(record["trial_id"], record["config"], record["metrics"])

    def _ask(self, record: dict[str, Any]) -> None:
        self.begun = self.scheduler.begin_suggest(len(self.trials))

    def _suggestion(self, record: dict[str, Any]) -> str | None:
        if "enqueued" in record:
            config = self.enqueued.pop(record["enqueued"])
            made: TrialSuggestion | None = self.scheduler.suggest_enqueued(len(self.trials), config)
        else:
            begun = self.begun
            made = begun.finish(begun.compute()) if isinstance(begun, PendingSuggestion) else begun
        if made is None:
            got: tuple[Any, ...] = ("none", None, None)
        else:
            got = ("start" if made.spawn_new_trial_id else "resume", made.config, made.checkpoint_trial_id)
        recorded = (record["action"], record["config"], record["checkpoint_trial_id"])
        return None if got == recorded else f"suggestion {record['n']} was {recorded}, is now {got}"

    def _start(self, record: dict[str, Any]) -> None:
        self.trials[record["trial_id"]] = trial = _trial(record)
        self.scheduler.on_trial_add(trial)

    def _resume(self, record: dict[str, Any]) -> None:
        self.trials[record["trial_id"]].config = record["config"]
        self.scheduler.on_trial_resume(self.trials[record["trial_id"]])

    def _report(self, record: dict[str, Any]) -> None:
        self.reports[_key(record)] = record["metrics"]

    def _decision(self, record: dict[str, Any]) -> str | None:
        metrics = self.reports.pop(_key(record))
        scheduler, trial = self.scheduler, self.trials[record["trial_id"]]
        if not record["counted"]:
            if record["scheduler_decision"] == "IGNORED":
                scheduler.on_trial_repeat(trial, metrics)
            return None
        if "resource" in record:
            assert scheduler.resource_attr is not None
            metrics = {**metrics, scheduler.resource_attr: record["resource"]}
        self.last[trial.trial_id] = metrics
        decision = scheduler.on_trial_result(trial, metrics)
        resource = metrics.get(scheduler.resource_attr) if scheduler.resource_attr else None
        answer, completes = settle_decision(
            decision, resource, scheduler.max_resource_level, scheduler.max_resource_attr
        )
        if completes:
            self.completes.add(trial.trial_id)
        if answer != SchedulerDecision.CONTINUE and trial.trial_id not in self.completes:
            scheduler.on_trial_remove(trial)
        recorded = (record["scheduler_decision"], record["decision"])
        columns = record.get("columns", {})
        if scheduler.result_columns() != columns:
            return f"trial {trial.trial_id} at {metrics}: columns were {columns}, are now {scheduler.result_columns()}"
        if (decision, answer) != recorded:
            return (
                f"trial {trial.trial_id} at {metrics}: decision and answer were {recorded}, are now {decision, answer}"
            )
        return None

    def _status(self, record: dict[str, Any]) -> None:
        if record.get("restart") or record["trial_id"] in self.unknown:
            return
        trial = self.trials[record["trial_id"]]
        trial.end_reason = record["reason"]
        if _is_completion(record, self.completes):
            self.scheduler.on_trial_complete(trial, self.last[trial.trial_id])
        elif record["status"] == "Failed" or record["reason"] == OUTSIDE:
            self.scheduler.on_trial_error(trial)


class _Learner:
    """Lets a scheduler learn of what others decided before it.

    Args:
        replay: Goes on from there.
    """

    def __init__(self, replay: _Replay) -> None:
        self._replay = replay
        self._traits: Mapping[str, Any] = {}

    def run(self, records: Iterable[dict[str, Any]], n_past: int) -> None:
        """Go through the lines up to the last one of type ``fresh``.

        Args:
            records: All lines; which trials were stopped first is looked up behind that one.
            n_past: Number of lines up to it.
        """
        replay, spaces = self._replay, PastSpaces.of(islice(records, n_past))
        feed = SchedulerFeed(replay.scheduler, spaces.map)
        mark: dict[str, Any] = {}
        for mark in islice(records, n_past):
            self._learn(feed, mark)
        replay.unknown = set(replay.trials) - set(feed.known)
        for trial_id, trial in feed.known.items():
            replay.trials[trial_id] = trial
        places = {number: spaces.map.place(config) for number, config in replay.enqueued.items()}
        replay.enqueued = {number: place.tuned for number, place in places.items() if place is not None}
        # Those of trials that run elsewhere end later; the scheduler was told at once.
        later = islice(records, n_past, None)
        ended = {r["trial_id"] for r in later if r["type"] == "status" and r["reason"] == OUTSIDE}
        for trial_id in sorted(ended):
            feed.error(trial_id, OUTSIDE)
            replay.unknown.add(trial_id)
        trial_id = len(replay.trials)
        if mark["kept_back"] is not None:
            replay.scheduler.suggest_enqueued(trial_id, dict(mark["kept_back"]))
        if mark["asked"]:
            replay.begun = replay.scheduler.begin_suggest(trial_id)

    def _learn(self, feed: SchedulerFeed, record: dict[str, Any]) -> None:
        replay = self._replay
        match record["type"]:
            case "session" if not self._traits:
                self._traits = record.get("scheduler", {})
            case "fresh":
                self._traits = record["traits"]
            case "enqueue":
                replay.enqueued[record["n"]] = record["config"]
            case "suggestion" if "enqueued" in record:
                replay.enqueued.pop(record["enqueued"])
            case "added_result":
                feed.add_result(record["trial_id"], record["config"], record["metrics"])
            case "start":
                replay.trials[record["trial_id"]] = trial = _trial(record)
                feed.start(trial)
            case "resume":
                replay.trials[record["trial_id"]].config = record["config"]
                feed.resume(replay.trials[record["trial_id"]])
            case "report":
                replay.reports[_key(record)] = record["metrics"]
            case "decision":
                self._learn_decision(feed, record)
            case "status" if not record.get("restart"):
                self._learn_end(feed, record)

    def _learn_decision(self, feed: SchedulerFeed, record: dict[str, Any]) -> None:
        replay, trial_id, attr = self._replay, record["trial_id"], self._traits.get("resource_attr")
        metrics = replay.reports.pop(_key(record))
        if not record["counted"]:
            if record["scheduler_decision"] == "IGNORED":
                feed.repeat(trial_id, metrics)
            return
        if "resource" in record and attr is not None:
            metrics = {**metrics, attr: record["resource"]}
        replay.last[trial_id] = metrics
        feed.result(trial_id, metrics, record["decision"])
        maximum, name = self._traits.get("max_resource_level"), self._traits.get("max_resource_attr")
        _, completes = settle_decision(record["scheduler_decision"], resource_of(metrics, attr), maximum, name)
        if completes:
            replay.completes.add(trial_id)
        if record["decision"] != SchedulerDecision.CONTINUE and trial_id not in replay.completes:
            feed.remove(trial_id)

    def _learn_end(self, feed: SchedulerFeed, record: dict[str, Any]) -> None:
        if _is_completion(record, self._replay.completes):
            feed.complete(record["trial_id"], self._replay.last[record["trial_id"]])
        elif record["status"] == "Failed" or record["reason"] == OUTSIDE:
            feed.error(record["trial_id"], record["reason"])


def _is_completion(record: Mapping[str, Any], completes: set[int]) -> bool:
    # Past the maximum a failure concerns the code after the loop.
    return record["status"] == "Completed" or (record["status"] == "Failed" and record["trial_id"] in completes)


def _trial(record: Mapping[str, Any]) -> Trial:
    return Trial(record["trial_id"], record["config"], datetime.fromtimestamp(0), seed=record["seed"])


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["trial_id"], record["run"], record["client"], record["seq"]
