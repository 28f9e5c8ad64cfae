"""Compare experiments: the journal without what differs from run to run, and decisions made once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from sthyper._tuning.trial_record import settle_decision
from sthyper.errors import ReportError
from sthyper.journal import read_journal
from sthyper.schedulers.base import PendingSuggestion, TrialScheduler
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["canonical_journal", "replay"]

_TIMES = frozenset({"time", "tuner_time", "created", "pid", "host", "create_time", "name", "seconds"})
_METADATA_TIMES = frozenset({"st_tuner_creation_timestamp", "st_tuner_start_timestamp"})


def canonical_journal(journal: str | Path | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a journal's records without times, names, process and client ids.

    Two runs of one experiment with one worker, the same seed and deterministic training have equal canonical
    journals. Fields that the Reporter adds (``st_worker_*``) are left out, except the counter.

    Args:
        journal: The file, the experiment's folder, or records.
    """
    clients: dict[str, int] = {}
    result = []
    for record in _records(journal):
        if record["type"] == "process":
            continue
        record = {k: v for k, v in record.items() if k not in _TIMES}
        if "client" in record:
            record["client"] = clients.setdefault(record["client"], len(clients))
        if "metrics" in record:
            record["metrics"] = {
                k: v for k, v in record["metrics"].items() if not k.startswith("st_worker_") or k == "st_worker_iter"
            }
        if "metadata" in record:
            record["metadata"] = {k: v for k, v in record["metadata"].items() if k not in _METADATA_TIMES}
        result.append(record)
    return result


def replay(journal: str | Path | Iterable[dict[str, Any]], scheduler: TrialScheduler) -> list[str]:
    """Feed a fresh scheduler the recorded order of events and return where it decides otherwise.

    Args:
        journal: The file, the experiment's folder, or records.
        scheduler: A scheduler made with the arguments of the recorded one, its ``random_seed`` included.

    Returns:
        One line of text for each difference; empty when all suggestions and decisions are the same.
    """
    return _Replay(scheduler).run(_records(journal))


class _Replay:
    def __init__(self, scheduler: TrialScheduler) -> None:
        self.scheduler = scheduler
        self.trials: dict[int, Trial] = {}
        self.reports: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.last: dict[int, dict[str, Any]] = {}
        self.completes: set[int] = set()
        self.begun: TrialSuggestion | PendingSuggestion | None = None
        self.enqueued: dict[int, dict[str, Any]] = {}
        self.differences: list[str] = []

    def run(self, records: Iterable[dict[str, Any]]) -> list[str]:
        handlers = {
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
        for number, record in enumerate(records, start=1):
            handler = handlers.get(record["type"])
            problem = handler(record) if handler is not None else None
            if problem:
                self.differences.append(f"line {number}: {problem}")
        return self.differences

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
        trial = Trial(record["trial_id"], record["config"], datetime.fromtimestamp(0), seed=record["seed"])
        self.trials[trial.trial_id] = trial
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
        if record.get("restart"):
            return
        trial = self.trials[record["trial_id"]]
        trial.end_reason = record["reason"]
        if record["status"] == "Completed" or (record["status"] == "Failed" and trial.trial_id in self.completes):
            self.scheduler.on_trial_complete(trial, self.last[trial.trial_id])
        elif record["status"] == "Failed":
            self.scheduler.on_trial_error(trial)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["trial_id"], record["run"], record["client"], record["seq"]


def _records(journal: str | Path | Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return read_journal(journal) if isinstance(journal, str | Path) else journal
