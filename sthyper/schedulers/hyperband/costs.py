"""What a trial has cost over all its runs."""

from __future__ import annotations

import logging
import math
from typing import Any

from sthyper.errors import ReportError, closest

__all__ = ["CostAccounting", "TrialCosts"]

logger = logging.getLogger(__name__)


class TrialCosts:
    """Adds up what the runs of a trial report.

    A run reports what it has cost since it began. Its costs come on top of the total at the level from which it went
    on: where the trial was paused, where the newest checkpoint was, or nothing if it began again from scratch. The
    first report of a run tells: the run went on from the level before it.
    """

    __slots__ = ("_begun", "_offset", "_totals")

    def __init__(self) -> None:
        self._totals: dict[int, float] = {}  # by level
        self._offset = 0.0
        self._begun = False

    def begin_run(self) -> None:
        """Learn that the next report comes from a further run."""
        self._begun = False

    def total(self, resource: int, cost: float) -> float:
        """Return the total at a report, without changing anything."""
        return cost + (self._offset if self._begun else self._total_before(resource))

    def add(self, resource: int, total: float) -> None:
        """Take in a report, with the total that :meth:`total` returned."""
        if not self._begun:
            self._offset = self._total_before(resource)
            self._begun = True
        self._totals[resource] = total

    def latest(self) -> float | None:
        """Return the total at the largest level so far."""
        return self._totals[max(self._totals)] if self._totals else None

    def _total_before(self, resource: int) -> float:
        level = max((level for level in self._totals if level < resource), default=None)
        return 0.0 if level is None else self._totals[level]

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return {"totals": [list(item) for item in self._totals.items()], "offset": self._offset, "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._totals = {level: total for level, total in state["totals"]}
        self._offset = state["offset"]
        self._begun = state["begun"]


class CostAccounting:
    """Reads costs from reports and adds them up where trials have several runs.

    Args:
        cost_attr: Name of the reported cost, ``None`` for none.
        resource_attr: Name of the resource.
        metric: Name of the metric.
        adds_up: Whether the total over a trial's runs counts, in place of what is reported.

    Attributes:
        name: Name of the cost that counts, ``None`` if there is none.
        columns: The total of the last report, by its name.

    Raises:
        TypeError: If ``cost_attr`` is no name.
        ValueError: If it is the name of the resource, or the total would take the name of resource or metric.
    """

    def __init__(self, cost_attr: str | None, resource_attr: str, metric: str, adds_up: bool) -> None:
        if cost_attr is not None and (not isinstance(cost_attr, str) or not cost_attr):
            raise TypeError(f"cost_attr must be the name of a reported cost, got {cost_attr!r}")
        if cost_attr == resource_attr:
            raise ValueError(f"cost_attr and resource_attr must be different names, both are {cost_attr!r}")
        self.cost_attr = cost_attr
        self._adds_up = adds_up and cost_attr is not None
        self.name = f"total_{cost_attr}" if self._adds_up else cost_attr
        if self._adds_up and self.name in (resource_attr, metric):
            raise ValueError(
                f"cost_attr={cost_attr!r} is added up over the runs of a trial as {self.name!r}, which is the name of "
                f"the {'metric' if self.name == metric else 'resource'} already; choose another name"
            )
        self.columns: dict[str, Any] = {}
        self._warned = False

    def new_trial(self) -> TrialCosts | None:
        """Return the costs of a trial that begins, ``None`` if nothing is added up."""
        return TrialCosts() if self._adds_up else None

    def read(self, costs: TrialCosts | None, resource: int, result: dict[str, Any]) -> float | None:
        """Return the cost that counts of a report, ``None`` if there is none; changes nothing about the trial.

        Raises:
            ReportError: If the cost is no finite number of at least 0.
        """
        self.columns = {}
        if self.cost_attr is None:
            return None
        if self.cost_attr not in result:
            if not self._warned:
                self._warned = True
                names = [name for name in result if not name.startswith("st_")]
                logger.warning(
                    "cost_attr=%r is missing in a report, which has %s%s",
                    self.cost_attr,
                    names,
                    closest(self.cost_attr, names),
                )
            return None
        cost = _checked(result[self.cost_attr], self.cost_attr)
        return cost if costs is None else _checked(costs.total(resource, cost), self.cost_attr)

    def book(self, costs: TrialCosts | None, resource: int, result: dict[str, Any], total: float) -> dict[str, Any]:
        """Take in a report whose cost :meth:`read` returned, and return it with the total."""
        if costs is None:
            return result
        assert self.name is not None
        costs.add(resource, total)
        self.columns = {self.name: total}
        return {**result, self.name: total}

    def repeat(self, costs: TrialCosts, resource: int, result: dict[str, Any]) -> None:
        """Take in a report at a level that an earlier run has reported."""
        assert self.cost_attr is not None
        if self.cost_attr in result:
            costs.add(resource, costs.total(resource, _checked(result[self.cost_attr], self.cost_attr)))

    def with_total(self, costs: TrialCosts | None, result: dict[str, Any]) -> dict[str, Any]:
        """Return the last report of a trial with the total."""
        total = None if costs is None else costs.latest()
        if total is None:
            return result
        assert self.name is not None
        return {**result, self.name: total}


def _checked(value: Any, cost_attr: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ReportError(f"cost {cost_attr!r} must be a finite number of at least 0, the report has {value!r}")
    return float(value)
