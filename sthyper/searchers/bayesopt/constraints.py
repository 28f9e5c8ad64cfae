"""Conditions on reported metrics: how users write them, and what they say."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.data import TrialData

__all__ = [
    "MetricRecorder",
    "OutcomeConstraint",
    "known_feasibility",
    "metric_at",
    "parse_constraint",
    "parse_constraints",
]

logger = logging.getLogger(__name__)

_OPERATORS = ("<=", ">=", "<", ">")
_EXAMPLE = "'memory <= 8e9'"
# The metric is everything before the first operator: names may have dots, dashes, slashes and spaces.
_FORM = re.compile(r"\s*(?P<metric>[^<>=!]*[^<>=!\s])\s*(?P<operator><=|>=|<|>)\s*(?P<bound>[^<>=!\s]+)\s*")


@dataclass(frozen=True)
class OutcomeConstraint:
    """A bound that a reported metric has to keep.

    Args:
        metric: Name of the metric in reports.
        operator: ``"<="``, ``"<"``, ``">="`` or ``">"``.
        bound: The bound, finite.

    Raises:
        TypeError: If ``metric`` or ``bound`` has the wrong type.
        ValueError: If ``metric`` is empty, the operator is unknown or ``bound`` is not finite.
    """

    metric: str
    operator: str
    bound: float

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise TypeError(f"metric must be the name of a reported metric, got {self.metric!r}")
        if not self.metric:
            raise ValueError("metric must be the name of a reported metric, got ''")
        if self.operator not in _OPERATORS:
            raise ValueError(f"operator={self.operator!r} is unknown; known are {list(_OPERATORS)}")
        if isinstance(self.bound, bool) or not isinstance(self.bound, int | float):
            raise TypeError(f"bound must be a number, got {self.bound!r}")
        if not math.isfinite(self.bound):
            raise ValueError(f"bound must be finite, got {self.bound!r}")
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def upper(self) -> float | None:
        """The largest value, ``None`` if there is no upper bound."""
        return self.bound if self.operator[0] == "<" else None

    @property
    def lower(self) -> float | None:
        """The smallest value, ``None`` if there is no lower bound."""
        return self.bound if self.operator[0] == ">" else None

    def holds(self, value: float) -> bool:
        """Whether a value keeps the bound; NaN does not."""
        if self.operator == "<=":
            return value <= self.bound
        if self.operator == "<":
            return value < self.bound
        return value >= self.bound if self.operator == ">=" else value > self.bound

    @property
    def text(self) -> str:
        """The constraint as a text from which :meth:`from_text` makes the same again."""
        return f"{self.metric} {self.operator} {self.bound!r}"

    @classmethod
    def from_text(cls, text: str) -> OutcomeConstraint:
        """Return the constraint whose :attr:`text` this is, or one that a user has written.

        Raises:
            TypeError: If it is no text.
            ValueError: If it has another form.
        """
        metric, _, rest = text.rpartition(" ")[0].rpartition(" ") if isinstance(text, str) else ("", "", "")
        if rest in _OPERATORS and metric:  # whatever is in the metric's name
            try:
                return cls(metric, rest, float(text.rpartition(" ")[2]))
            except ValueError:
                pass
        return parse_constraint(text)

    def __str__(self) -> str:
        """Return the constraint as users write it."""
        return f"{self.metric} {self.operator} {self.bound:g}"


def parse_constraint(text: Any, where: str = "constraint") -> OutcomeConstraint:
    """Return the constraint that a text such as ``"memory <= 8e9"`` describes.

    Args:
        text: Metric, operator (``<=``, ``<``, ``>=`` or ``>``) and a number, in this order.
        where: Name of the argument, for messages.

    Raises:
        TypeError: If it is no text.
        ValueError: If it has another form.
    """
    if not isinstance(text, str):
        raise TypeError(f"{where} must be a text such as {_EXAMPLE}, got {text!r}")
    expected = f"expected '<metric> <operator> <number>', such as {_EXAMPLE}"
    match = _FORM.fullmatch(text)
    if match is None:
        operators = re.findall(r"[<>=!]+", text)
        if not operators:
            why = f"it has no operator, which are {', '.join(_OPERATORS)}"
        elif len(operators) > 1:
            why = "it has several operators; a range is two constraints"
        elif operators[0] not in _OPERATORS:
            why = f"operator {operators[0]!r} is unknown, known are {', '.join(_OPERATORS)}"
        elif not text.partition(operators[0])[0].strip():
            why = "the name of the metric is missing"
        elif not text.partition(operators[0])[2].strip():
            why = "the number is missing"
        else:
            why = f"{text.partition(operators[0])[2].strip()!r} is no number"
        raise ValueError(f"{where}={text!r} cannot be parsed: {why}; {expected}")
    bound = match["bound"]
    try:
        number = float(bound)
    except ValueError:
        try:
            float(match["metric"])
        except ValueError:
            why = f"{bound!r} is no number"
        else:
            why = "the metric comes first"
        raise ValueError(f"{where}={text!r} cannot be parsed: {why}; {expected}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}={text!r} cannot be used: the number must be finite; {expected}")
    return OutcomeConstraint(match["metric"], match["operator"], number)


def parse_constraints(texts: Any, name: str = "outcome_constraints") -> tuple[OutcomeConstraint, ...]:
    """Return the constraints that a list of texts describes.

    Args:
        texts: The texts; ``None`` for none.
        name: Name of the argument, for messages.

    Raises:
        TypeError: If it is no list of texts.
        ValueError: If a text cannot be parsed, or bounds of one metric exclude each other.
    """
    if texts is None:
        return ()
    if isinstance(texts, str) or not isinstance(texts, Iterable) or isinstance(texts, dict):
        raise TypeError(f"{name} must be a list of texts such as [{_EXAMPLE}], got {texts!r}")
    constraints = tuple(
        dict.fromkeys(parse_constraint(text, f"{name}[{position}]") for position, text in enumerate(texts))
    )
    for upper in constraints:
        for lower in constraints:
            if upper.upper is None or lower.lower is None or upper.metric != lower.metric:
                continue
            gap = upper.upper - lower.lower
            if gap < 0 or (gap == 0 and "=" not in upper.operator + lower.operator):
                raise ValueError(f"{name}: {str(upper)!r} and {str(lower)!r} exclude each other")
    return constraints


def known_feasibility(trial: TrialData, constraints: Sequence[OutcomeConstraint], level: float) -> float:
    """Return 1 if a trial is known to be feasible, 0 if it is known not to be, else NaN.

    Args:
        trial: The trial; one that has failed is not feasible.
        constraints: The constraints.
        level: Highest resource whose metrics count.
    """
    if trial.failed:
        return 0.0
    answers = []
    for constraint in constraints:
        value = metric_at(trial, constraint.metric, level)
        answers.append(float("nan") if value is None else float(constraint.holds(value)))
    if 0.0 in answers:
        return 0.0
    return float("nan") if any(answer != answer for answer in answers) else 1.0


def metric_at(trial: TrialData, metric: str, level: float) -> float | None:
    """Return a metric at the highest resource up to a level that has it."""
    by_resource = trial.metrics.get(metric, {})
    resources = [resource for resource in by_resource if resource <= level]
    return by_resource[max(resources)] if resources else None


class MetricRecorder:
    """Enters the constrained metrics of reports.

    Args:
        constraints: The constraints.
    """

    def __init__(self, constraints: Sequence[OutcomeConstraint]) -> None:
        self.names = tuple(dict.fromkeys(constraint.metric for constraint in constraints))
        self._warned: set[str] = set()

    def record(self, trial: TrialData, resource: int, result: dict[str, Any]) -> None:
        """Enter the metrics of a report; one warning for each that is missing or no number."""
        for name in self.names:
            value = result.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                if name not in self._warned:
                    self._warned.add(name)
                    why = f"has {name}={value!r}" if name in result else f"lacks it, it has {sorted(result)}"
                    logger.warning(
                        "the constrained metric %r: a report %s; whether such trials are feasible is predicted",
                        name,
                        why,
                    )
                continue
            trial.metrics.setdefault(name, {})[resource] = float(value)
