"""Reads a journal into the table of results and the list of trials."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sthyper._result_table import ResultTable
from sthyper.constants import (
    RESERVED_PREFIX,
    ST_DECISION,
    ST_JOURNAL_FILENAME,
    ST_MILESTONE,
    ST_RESULTS_DATAFRAME_FILENAME,
    ST_RUN,
    ST_SCHEDULER_DECISION,
    ST_SEED,
    ST_STATUS,
    ST_TRIAL_ID,
    ST_TUNER_TIME,
)
from sthyper.journal import read_journal
from sthyper.trial import Status

__all__ = ["ExperimentRecord", "TrialSummary", "read_experiment"]

_ReportKey = tuple[int, int, str, int]


@dataclass(slots=True)
class TrialSummary:
    """A trial as the record shows it.

    Args:
        trial_id: 0, 1, 2, ... in the order of the starts.
        config: Its (last) configuration.
        seed: Its seed.
        status: Its last status.
        end_reason: Why it ended, ``None`` while it runs or when it ended in order.
        runs: Number of runs: one more for every resume and restart.
        num_results: Number of counted reports.
        checkpoint_trial_id: Trial whose checkpoint it started from, if any.
        milestone: Resource at which the scheduler decides about its last run, if any.
        start_time: Seconds of the experiment at its first start.
        end_time: Seconds of the experiment at its last end, ``None`` while it runs.
    """

    trial_id: int
    config: dict[str, Any]
    seed: int | None = None
    status: Status = Status.in_progress
    end_reason: str | None = None
    runs: int = 1
    num_results: int = 0
    checkpoint_trial_id: int | None = None
    milestone: int | None = None
    start_time: float | None = None
    end_time: float | None = None


@dataclass
class ExperimentRecord:
    """Everything about an experiment that tables and plots need.

    Args:
        trials: Trials by id.
        table: A row for each counted report.
        metadata: Metadata in the journal, empty if there are none.
        end_reason: Why the experiment ended, ``None`` if it runs or was killed.
    """

    trials: dict[int, TrialSummary] = field(default_factory=dict)
    table: ResultTable = field(default_factory=ResultTable)
    metadata: dict[str, Any] = field(default_factory=dict)
    end_reason: str | None = None


def read_experiment(folder: Path) -> ExperimentRecord:
    """Read an experiment from its journal, or from ``results.csv.zip`` or ``results.csv`` if there is none.

    Args:
        folder: The experiment's folder. A missing or empty folder gives an empty record.

    Raises:
        ValueError: If a newer version wrote the journal. Of a damaged one the good part is read, with a warning.
    """
    if (folder / ST_JOURNAL_FILENAME).is_file():
        return _JournalReader().read(folder)
    record = ExperimentRecord()
    zipped = folder / ST_RESULTS_DATAFRAME_FILENAME
    plain = folder / zipped.stem
    if zipped.is_file():
        with zipfile.ZipFile(zipped) as archive, archive.open(archive.namelist()[0]) as member:
            _read_csv(io.TextIOWrapper(member, encoding="utf-8", newline=""), record)
    elif plain.is_file():
        with open(plain, encoding="utf-8", newline="") as text:
            _read_csv(text, record)
    return record


class _JournalReader:
    """Follows the records in order; a report enters the table with its decision."""

    def __init__(self) -> None:
        self.record = ExperimentRecord()
        self._undecided: dict[_ReportKey, dict[str, Any]] = {}
        # (trial, run, client) -> number of its last report and that report's row, which extra columns may follow
        self._last_row: dict[tuple[int, int, str], tuple[int, int]] = {}

    def read(self, folder: Path) -> ExperimentRecord:
        for line in read_journal(folder, strict=False):
            match line.get("type"):
                case "report":
                    self._undecided[_key(line)] = line
                case "decision":
                    self._on_decision(line)
                case "extra":
                    self._on_extra(line)
                case "start" | "resume":
                    self._on_launch(line)
                case "status":
                    self._on_status(line)
                case "metadata":
                    self.record.metadata = line["metadata"]
                case "session":
                    self.record.end_reason = None
                case "end":
                    self.record.end_reason = line.get("reason")
        reasons = {i: t.end_reason for i, t in self.record.trials.items() if t.end_reason is not None}
        self.record.table.end_reasons = reasons
        return self.record

    def _on_launch(self, line: dict[str, Any]) -> None:
        trial = self.record.trials.get(line["trial_id"])
        if trial is None:
            trial = self.record.trials[line["trial_id"]] = TrialSummary(
                line["trial_id"], {}, start_time=line.get("tuner_time")
            )
            trial.checkpoint_trial_id = line.get("checkpoint_trial_id")
        if line.get("config") is not None:
            trial.config = line["config"]
        trial.seed = line.get("seed", trial.seed)
        trial.runs = line["run"] + 1
        trial.milestone = line.get("milestone")
        trial.status = Status.in_progress
        trial.end_reason = trial.end_time = None

    def _on_status(self, line: dict[str, Any]) -> None:
        trial = self.record.trials.get(line["trial_id"])
        if trial is not None:
            trial.status = Status(line["status"])
            trial.end_reason = line.get("reason")
            trial.end_time = line.get("tuner_time")

    def _on_decision(self, line: dict[str, Any]) -> None:
        report = self._undecided.pop(_key(line), None)
        trial = self.record.trials.get(line["trial_id"])
        if report is None or trial is None or not line.get("counted", True):
            return
        trial.num_results += 1
        row = {ST_TUNER_TIME: report.get("tuner_time"), **report["metrics"]}
        if line.get("resource") is not None:
            # A report beyond its milestone that counts as the milestone's.
            name = self.record.metadata.get("resource_attr")
            if name in row:
                row[name] = line["resource"]
        row |= line.get("columns", {})
        row |= {
            ST_SCHEDULER_DECISION: line.get("scheduler_decision"),
            ST_RUN: line["run"],
            ST_SEED: trial.seed,
            ST_MILESTONE: line.get("milestone", trial.milestone),
            ST_DECISION: line["decision"],
            ST_STATUS: Status.in_progress.value,
        }
        self._last_row[line["trial_id"], line["run"], line["client"]] = (line["seq"], len(self.record.table))
        self.record.table.append(trial.trial_id, trial.config, row)

    def _on_extra(self, line: dict[str, Any]) -> None:
        seq, row = self._last_row.get((line["trial_id"], line["run"], line["client"]), (None, 0))
        if seq == line["seq"]:
            self.record.table.add_columns(row, line["values"])


def _key(line: dict[str, Any]) -> _ReportKey:
    return line["trial_id"], line["run"], line["client"], line["seq"]


def _read_csv(text: Any, record: ExperimentRecord) -> None:
    """Read a table that was written earlier; trials are known by their rows only."""
    prefix = "config_"
    for cells in csv.DictReader(text):
        row = {name: _value(cell) for name, cell in cells.items() if name and cell not in (None, "")}
        if not isinstance(trial_id := row.pop(ST_TRIAL_ID, None), int):
            continue
        config = {name.removeprefix(prefix): row.pop(name) for name in list(row) if name.startswith(prefix)}
        trial = record.trials.setdefault(trial_id, TrialSummary(trial_id, config))
        trial.num_results += 1
        trial.status = _status(row.get(ST_STATUS), row.get(ST_DECISION))
        trial.end_reason = row.pop(f"{RESERVED_PREFIX}end_reason", None)
        if trial.end_reason is not None:
            record.table.end_reasons[trial_id] = trial.end_reason
        record.table.append(trial_id, config, row)


def _status(status: Any, decision: Any) -> Status:
    if decision in ("STOP", "PAUSE"):
        return Status.stopped if decision == "STOP" else Status.paused
    return Status(status) if status in set(Status) else Status.in_progress


def _value(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell == "True" if cell in ("True", "False") else cell
