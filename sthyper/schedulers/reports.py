"""Which reports of a trial count, and what a scheduler's decision means: rules of everything that runs trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

from sthyper.errors import closest
from sthyper.schedulers.base import TrialScheduler
from sthyper.trial import SchedulerDecision

__all__ = ["ReportHistory", "ReportKind", "check_result", "judge_report", "resource_of", "settle_decision"]


class ReportKind(Enum):
    """How a report is treated."""

    counts = 0
    repeats = 1
    """Another report of this run at a resource that was reported before: answered like the first."""
    ignored = 2
    """A later run trains again what an earlier one reported: answered CONTINUE."""


class ReportHistory(Protocol):
    """What has to be known of a trial's earlier reports.

    Attributes:
        run: Number of the current run.
        in_run: What was reported in this run, by resource.
        largest: Largest resource of all counted reports.
    """

    @property
    def run(self) -> int: ...

    @property
    def in_run(self) -> Mapping[float, Any]: ...

    @property
    def largest(self) -> float | None: ...


def judge_report(record: ReportHistory, resource: float | None) -> ReportKind:
    """Decide how a report counts.

    Args:
        record: The trial.
        resource: Its resource, ``None`` for schedulers without one.
    """
    if resource is None:
        return ReportKind.counts
    if resource in record.in_run:
        return ReportKind.repeats
    if record.run > 0 and record.largest is not None and resource <= record.largest:
        return ReportKind.ignored
    return ReportKind.counts


def resource_of(metrics: dict[str, Any], resource_attr: str | None) -> float | None:
    """Return the resource of a report, ``None`` if there is none or the scheduler has to complain about it."""
    if resource_attr is None:
        return None
    value = metrics.get(resource_attr)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return value


def settle_decision(
    decision: str, resource: float | None, max_resource_level: int | None, max_resource_attr: str | None
) -> tuple[str, bool]:
    """Return the answer to a report, and whether the trial counts as completed whatever ends it now.

    The maximum is no stop: where the script knows it (``max_resource_attr``) it goes on to what comes after its loop.

    Args:
        decision: The scheduler's decision.
        resource: Resource of the report.
        max_resource_level: The scheduler's maximum.
        max_resource_attr: Name of the maximum in the configuration.
    """
    if decision == SchedulerDecision.CONTINUE or resource is None or max_resource_level is None:
        return decision, False
    if resource == max_resource_level and max_resource_attr is not None:
        return SchedulerDecision.CONTINUE, True
    return decision, resource >= max_resource_level and decision == SchedulerDecision.STOP


def check_result(metrics: dict[str, Any], scheduler: TrialScheduler) -> dict[str, Any]:
    """Return a result that a scheduler can learn from; one without a resource counts at the maximum.

    Args:
        metrics: The report.
        scheduler: The scheduler, which names metrics and resource.

    Raises:
        ValueError: If a metric is missing or no number, or if the resource is missing and there is no maximum, is no
            number that counts, or lies beyond the maximum.
    """
    for name in scheduler.metric_names():
        if name not in metrics:
            names = [key for key in metrics if not key.startswith("st_")]
            raise ValueError(f"metrics must hold {name!r}, it has {names}{closest(name, names)}")
        if isinstance(metrics[name], bool) or not isinstance(metrics[name], int | float):
            raise ValueError(f"metrics[{name!r}] must be a number, got {metrics[name]!r}")
    attr, maximum = scheduler.resource_attr, scheduler.max_resource_level
    if attr is None:
        return metrics
    if attr not in metrics:
        if maximum is None:
            raise ValueError(f"metrics must hold the resource {attr!r}, it has {list(metrics)}{closest(attr, metrics)}")
        return {**metrics, attr: maximum}
    value = metrics[attr]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"metrics[{attr!r}] must be a non-negative number, got {value!r}")
    if maximum is not None and (value < 1 or value != int(value)):
        raise ValueError(f"metrics[{attr!r}] must be a positive integer, got {value!r}")
    if maximum is not None and value > maximum:
        raise ValueError(f"metrics[{attr!r}] must be at most {maximum}, the maximum resource, got {value!r}")
    return metrics
