"""Running statistics of reported metrics."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sthyper.trial import copied

__all__ = ["BREAKS", "KEEPS", "UNKNOWN", "Constraint", "ConstraintRecord", "MetricsStatistics", "none_keeps"]

logger = logging.getLogger(__name__)

_INF = float("inf")
_LARGEST = sys.float_info.max
"""Finite means within this; integers beyond could not be added to a float."""

KEEPS, UNKNOWN, BREAKS = 0, 1, 2
"""What a report is known to do to constraints, from good to bad."""


class Constraint(Protocol):
    """What is asked of :class:`~sthyper.searchers.bayesopt.OutcomeConstraint` here."""

    @property
    def metric(self) -> str: ...

    def holds(self, value: float) -> bool: ...


class ConstraintRecord:
    """Says of each report whether it keeps the constraints on reported metrics.

    Where a report lacks a metric, or has NaN, the last value of its trial counts: what does not change, such as the
    size of a model, is often reported once.

    Args:
        constraints: The constraints.
    """

    def __init__(self, constraints: Sequence[Constraint] = ()) -> None:
        self.constraints = tuple(constraints)
        self._metrics = tuple(dict.fromkeys(constraint.metric for constraint in self.constraints))
        self._last: dict[int, dict[str, float]] = {}

    def add(self, trial_id: int, report: Mapping[str, Any]) -> int:
        """Take in a trial's next report; return :data:`KEEPS`, :data:`UNKNOWN` or :data:`BREAKS`.

        It is ``KEEPS`` if there are no constraints, and ``UNKNOWN`` if none is known to be broken and a metric was not
        reported yet.
        """
        if not self.constraints:
            return KEEPS
        known = self.values(trial_id, report)
        rank = KEEPS
        for constraint in self.constraints:
            value = known.get(constraint.metric)
            if value is None:
                rank = UNKNOWN
            elif not constraint.holds(value):
                return BREAKS
        return rank

    def values(self, trial_id: int, report: Mapping[str, Any]) -> dict[str, float]:
        """Take in a trial's next report; return the constrained metrics that are known of it."""
        known = self._last.setdefault(trial_id, {})
        for name in self._metrics:
            value = report.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
                known[name] = value
        return known

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers."""
        return {"last": [[trial_id, dict(known)] for trial_id, known in self._last.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._last = {trial_id: dict(known) for trial_id, known in state["last"]}


def none_keeps(constraints: Sequence[Constraint], metric: str) -> str:
    """Return the warning that the best trial is known not to keep the constraints, or not known to.

    Args:
        constraints: The constraints.
        metric: The metric whose best value was asked for.
    """
    texts = ", ".join(map(str, constraints))
    return f"no report with a finite {metric!r} is known to keep all constraints ({texts}); the best others count"


class MetricsStatistics:
    """Smallest, largest and summed value of every numeric metric, and the last report.

    Values that are not finite are counted but enter neither minimum, maximum nor sum. The first value of a metric
    decides whether it is numeric; later values of another kind are left out, with one warning a metric.

    Args:
        quiet: Whether to leave out the warning.

    Attributes:
        count: Number of reports.
        last_metrics: The last report.
    """

    __slots__ = ("_numbers", "_warned", "count", "last_metrics")

    def __init__(self, quiet: bool = False) -> None:
        self.count = 0
        self.last_metrics: dict[str, Any] = {}
        # metric -> [minimum, maximum, sum], None for a metric that is no number
        self._numbers: dict[str, list[float] | None] = {}
        self._warned: set[str] | None = None if quiet else set()

    def add(self, metrics: dict[str, Any]) -> None:
        """Take in one report."""
        self.count += 1
        self.last_metrics = metrics
        numbers = self._numbers
        for name, value in metrics.items():
            kind = value.__class__
            if kind is not float and kind is not int:
                self._add_other(name, value)
                continue
            entry = numbers.get(name)
            if entry is None:
                self._add_first(name, value)
            elif -_LARGEST <= value <= _LARGEST:
                if value < entry[0]:
                    entry[0] = value
                if value > entry[1]:
                    entry[1] = value
                entry[2] += value

    def minimum(self, name: str) -> float | None:
        """Return the smallest finite value of a metric, ``None`` if there is none."""
        return self._bound(name, 0)

    def maximum(self, name: str) -> float | None:
        """Return the largest finite value of a metric, ``None`` if there is none."""
        return self._bound(name, 1)

    def best(self, name: str, mode: str) -> float | None:
        """Return the best finite value of a metric, ``None`` if there is none."""
        return self._bound(name, 0 if mode == "min" else 1)

    @property
    def metric_names(self) -> list[str]:
        """All names that were reported, in the order of their first report."""
        return list(self._numbers)

    @property
    def is_numeric(self) -> dict[str, bool]:
        """Whether a metric is a number."""
        return {name: entry is not None for name, entry in self._numbers.items()}

    @property
    def min_metrics(self) -> dict[str, float]:
        """Smallest finite value by metric."""
        return self._column(0)

    @property
    def max_metrics(self) -> dict[str, float]:
        """Largest finite value by metric."""
        return self._column(1)

    @property
    def sum_metrics(self) -> dict[str, float]:
        """Sum of the finite values by metric."""
        return self._column(2)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return {
            "count": self.count,
            "last_metrics": copied(self.last_metrics),
            "numbers": {name: None if entry is None else list(entry) for name, entry in self._numbers.items()},
            "warned": None if self._warned is None else sorted(self._warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.count = state["count"]
        self.last_metrics = copied(state["last_metrics"])
        self._numbers = {name: None if entry is None else list(entry) for name, entry in state["numbers"].items()}
        self._warned = None if state["warned"] is None else set(state["warned"])

    def _bound(self, name: str, index: int) -> float | None:
        entry = self._numbers.get(name)
        return None if entry is None or entry[0] > entry[1] else entry[index]

    def _column(self, index: int) -> dict[str, float]:
        return {name: e[index] for name, e in self._numbers.items() if e is not None and e[0] <= e[1]}

    def _add_first(self, name: str, value: float) -> None:
        if name in self._numbers:  # known as no number
            self._warn(name, value)
        elif -_LARGEST <= value <= _LARGEST:
            self._numbers[name] = [value, value, value]
        else:
            self._numbers[name] = [_INF, -_INF, 0.0]

    def _add_other(self, name: str, value: Any) -> None:
        if isinstance(value, bool | int | float):
            # Booleans, and subclasses of numbers such as numpy.float64, count as the plain number.
            plain = float(value) if isinstance(value, float) else int(value)
            entry = self._numbers.get(name)
            if entry is None:
                self._add_first(name, plain)
            elif -_LARGEST <= plain <= _LARGEST:
                self._numbers[name] = [min(entry[0], plain), max(entry[1], plain), entry[2] + plain]
        elif self._numbers.setdefault(name, None) is not None:
            self._warn(name, value)

    def _warn(self, name: str, value: Any) -> None:
        if self._warned is not None and name not in self._warned:
            self._warned.add(name)
            logger.warning("metric %r is sometimes a number, sometimes not (%r, left out)", name, value)
