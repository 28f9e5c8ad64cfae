"""Trials of :class:`~sthyper.schedulers.AskTellScheduler`: what the caller gets and tells, and what is kept."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sthyper._metrics_statistics import KEEPS, Constraint, ConstraintRecord
from sthyper.report import check_metrics
from sthyper.trial import Status, Trial, TrialResult, is_own_failure, trial_from_state, trial_state

__all__ = ["AskedTrial", "TrialHistory", "best_history", "failure_reason", "plain_metrics"]


@dataclass
class AskedTrial(Trial):
    """A trial that is to be trained.

    ``config`` holds the full maximum resource, whatever the milestone; ``last_resource`` is where a trial that was
    paused goes on, ``None`` if it begins. The object is the caller's: changing it changes no decision.

    Args:
        run: 0 when the trial begins, one more every time that it goes on after a pause.
        milestone: Resource at which the scheduler decides next about the trial; ``None`` if that may be at any.
        checkpoint_trial_id: Trial from whose checkpoint a new trial is to begin; ``None`` to begin from scratch.
    """

    run: int = 0
    milestone: int | None = None
    checkpoint_trial_id: int | None = None


@dataclass(slots=True)
class TrialHistory:
    """What is kept of a trial.

    Args:
        trial: The trial as the scheduler sees it.
        status: Its status.
        run: Number of the current run.
        milestone: Resource of the next decision.
        checkpoint_trial_id: Trial from whose checkpoint the current run starts.
        largest: Largest resource of all counted reports.
        in_run: Resource -> answer, of this run's reports.
        counted_in_run: Number of counted reports of this run.
        reports: All counted reports, with the columns that the scheduler adds.
        last_result: Last counted report.
        end_time: When the trial ended.
        warned: Whether a repeated report has been warned of.
        began: ``time.monotonic()`` at its start.
    """

    trial: Trial
    status: Status = Status.in_progress
    run: int = 0
    milestone: int | None = None
    checkpoint_trial_id: int | None = None
    largest: float | None = None
    in_run: dict[float, str] = field(default_factory=dict)
    counted_in_run: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    last_result: dict[str, Any] | None = None
    end_time: datetime | None = None
    warned: bool = False
    began: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Note that the trial has ended. How long it took does not depend on the clock, which may have been set."""
        self.end_time = self.trial.creation_time + timedelta(seconds=time.monotonic() - self.began)

    def begin_run(self) -> None:
        """Forget what belongs to the run before."""
        self.status = Status.in_progress
        self.run += 1
        self.in_run = {}
        self.counted_in_run = 0
        self.checkpoint_trial_id = None

    def book(
        self,
        result: dict[str, Any],
        columns: dict[str, Any],
        resource: float | None,
        reported: float | None,
        answer: str,
    ) -> None:
        """Enter a report that counts.

        Args:
            result: The report as the scheduler got it.
            columns: Columns that the scheduler adds.
            resource: Its resource, ``None`` for schedulers without one.
            reported: The resource that the caller told; differs if it was taken for the milestone.
            answer: The answer to it.
        """
        self.counted_in_run += 1
        self.last_result = result
        self.reports.append({**result, **columns})
        if resource is not None:
            self.in_run[resource] = answer
            self.largest = max(r for r in (self.largest, resource, reported) if r is not None)
            self.trial.last_resource = self.largest

    def asked(self) -> AskedTrial:
        """Return the trial for the caller."""
        trial = self.trial
        return AskedTrial(
            trial_id=trial.trial_id,
            config=copy.deepcopy(trial.config),
            creation_time=trial.creation_time,
            seed=trial.seed,
            end_reason=trial.end_reason,
            last_resource=trial.last_resource,
            run=self.run,
            milestone=self.milestone,
            checkpoint_trial_id=self.checkpoint_trial_id,
        )

    def result(self) -> TrialResult:
        """Return the trial with its reports, a copy."""
        result = self.trial.add_results(copy.deepcopy(self.reports), self.status, self.end_time)
        result.config = copy.deepcopy(result.config)
        return result

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return {
            "trial": trial_state(self.trial),
            "status": self.status.value,
            "run": self.run,
            "milestone": self.milestone,
            "checkpoint_trial_id": self.checkpoint_trial_id,
            "largest": self.largest,
            "in_run": [[resource, answer] for resource, answer in self.in_run.items()],
            "counted_in_run": self.counted_in_run,
            "reports": copy.deepcopy(self.reports),
            "last_result": copy.deepcopy(self.last_result),
            "end_time": None if self.end_time is None else self.end_time.isoformat(),
            "warned": self.warned,
        }

    @staticmethod
    def from_state(state: dict[str, Any]) -> TrialHistory:
        """Restore what :meth:`state_dict` returned."""
        state = copy.deepcopy(state)
        trial = trial_from_state(state.pop("trial"))
        end_time = state.pop("end_time")
        age = max(0.0, (datetime.now() - trial.creation_time).total_seconds())
        return TrialHistory(
            trial=trial,
            began=time.monotonic() - age,
            status=Status(state.pop("status")),
            in_run={resource: answer for resource, answer in state.pop("in_run")},
            end_time=None if end_time is None else datetime.fromisoformat(end_time),
            **state,
        )


def plain_metrics(result: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what was told, in a mapping and by keywords, as plain values; ``{}`` for nothing.

    Raises:
        TypeError: For no mapping, a name that is no string, or a value that is neither number nor text nor a
            container of these.
        ValueError: For a name that is given twice or reserved, or ``None`` in place of a value.
    """
    metrics = metrics or {}
    result = {} if result is None else result
    if not isinstance(result, Mapping):
        raise TypeError(f"metrics must be a mapping from names to values, got {result!r}")
    for name in result:
        if not isinstance(name, str):
            raise TypeError(f"names of metrics must be strings, got {name!r}")
        if name in metrics:
            raise ValueError(f"metric {name!r} is given twice: {result[name]!r} and {metrics[name]!r}")
    given = {**result, **metrics}
    return check_metrics(given) if given else {}


def failure_reason(reason: str, blacklist: bool) -> str:
    """Return an end reason that says whether the configuration is to blame, as schedulers read it."""
    if is_own_failure(reason) == blacklist:
        return reason
    return f"exit 1: {reason}" if blacklist else f"killed: {reason}"


def best_history(
    histories: Iterable[TrialHistory], metric: str, minimise: bool, constraints: Sequence[Constraint] = ()
) -> tuple[TrialHistory, bool] | None:
    """Return the first trial with the best finite value of a metric, ``None`` if there is no finite value.

    Args:
        histories: The trials.
        metric: Name of the metric.
        minimise: Whether low values are good.
        constraints: Reports that keep them come first, those that break one last.

    Returns:
        The trial, and whether its report is known to keep all constraints.
    """
    best: tuple[int, float, TrialHistory] | None = None
    record = ConstraintRecord(constraints)
    for number, history in enumerate(histories):
        for report in history.reports:
            rank = record.add(number, report)
            value = report.get(metric)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            value = value if minimise else -value
            if best is None or (rank, value) < best[:2]:
                best = rank, value, history
    return None if best is None else (best[2], best[0] == KEEPS)
