"""Maps from an unconstrained real number to the values of a hyperparameter, with inverses that are safe in float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sthyper.config_space import Domain, Float, Integer, LogUniform, ReverseLogUniform, Uniform
from sthyper.errors import closest

__all__ = [
    "MAPS",
    "Above",
    "Below",
    "Between",
    "Exponential",
    "LogBetween",
    "Logit",
    "ReverseLogBetween",
    "Unbounded",
    "ValueMap",
    "inverse_softplus",
    "map_between",
    "map_of_domain",
    "named_map",
    "robustify",
]


def inverse_softplus(x: Tensor) -> Tensor:
    """Return ``log(exp(x) - 1)`` without overflow.

    Args:
        x: Positive numbers, of any shape.
    """
    return x + torch.log(-torch.expm1(-x))


def robustify(value: float, lower: float, upper: float, eps: float = 1e-3) -> float:
    """Pull a value of a closed interval into the open one.

    Args:
        value: A number from ``lower`` to ``upper``.
        lower: Lower bound.
        upper: Upper bound.
        eps: Part of the interval that is cut off at each end.

    Raises:
        ValueError: If the value is outside, or ``eps`` not between 0 and 0.5.
    """
    if not lower <= value <= upper:
        raise ValueError(f"value must be from {lower} to {upper}, got {value!r}")
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must be between 0 and 0.5, got {eps!r}")
    return (1 - 2 * eps) * value + eps * (lower + upper)


class ValueMap(ABC):
    """Maps unconstrained real numbers to values, increasing and differentiable.

    Attributes:
        lower: Values are larger.
        upper: Values are smaller.
    """

    lower: float = -math.inf
    upper: float = math.inf

    @abstractmethod
    def __call__(self, raw: Tensor) -> Tensor:
        """Return the values, of the shape of ``raw``."""

    @abstractmethod
    def _inverse(self, value: Tensor) -> Tensor:
        """Return the unconstrained numbers of values between the bounds."""

    @property
    def saturates(self) -> bool:
        """Whether values hardly change any more at both ends; zero is the middle then."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)

    def inverse(self, value: Tensor | float) -> Tensor:
        """Return the unconstrained numbers that are mapped to values.

        Args:
            value: Values between the bounds, of any shape; the dtype is kept, a number is taken as float64.

        Raises:
            ValueError: If one of them is on a bound or outside.
        """
        values = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        if not bool(((values > self.lower) & (values < self.upper)).all()):
            raise ValueError(f"values must be larger than {self.lower} and smaller than {self.upper}, got {value}")
        return self._inverse(values)


@dataclass(frozen=True)
class Unbounded(ValueMap):
    """The number itself."""

    def __call__(self, raw: Tensor) -> Tensor:
        return raw

    def _inverse(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Between(ValueMap):
    """``lower + (upper - lower) * sigmoid(u)``.

    Args:
        lower: Lower bound.
        upper: Upper bound.

    Raises:
        ValueError: If the bounds are not finite, or not in order.
    """

    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper):
            raise ValueError(f"bounds must be finite with lower < upper, got lower={self.lower}, upper={self.upper}")

    def __call__(self, raw: Tensor) -> Tensor:
        return self.lower + (self.upper - self.lower) * torch.sigmoid(raw)

    def _inverse(self, value: Tensor) -> Tensor:
        return torch.log(value - self.lower) - torch.log(self.upper - value)


@dataclass(frozen=True)
class LogBetween(Between):
    """:class:`Between` on the logarithms.

    Args:
        lower: Lower bound, positive.
        upper: Upper bound.

    Raises:
        ValueError: If the bounds are not finite, positive and in order.
    """

    lower: float = 1e-6
    upper: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower <= 0:
            raise ValueError(f"lower must be positive on a log scale, got {self.lower}")

    def __call__(self, raw: Tensor) -> Tensor:
        low, high = math.log(self.lower), math.log(self.upper)
        return torch.exp(low + (high - low) * torch.sigmoid(raw))

    def _inverse(self, value: Tensor) -> Tensor:
        return torch.log(torch.log(value / self.lower)) - torch.log(torch.log(self.upper / value))


@dataclass(frozen=True)
class ReverseLogBetween(Between):
    """:class:`Between` on the scale ``-log(1 - value)``.

    Args:
        lower: Lower bound, at least 0.
        upper: Upper bound, smaller than 1.

    Raises:
        ValueError: Unless ``0 <= lower < upper < 1``.
    """

    lower: float = 0.0
    upper: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower < 0 or self.upper >= 1:
            raise ValueError(f"bounds must be from 0 to below 1, got lower={self.lower}, upper={self.upper}")

    def __call__(self, raw: Tensor) -> Tensor:
        low, high = -math.log1p(-self.lower), -math.log1p(-self.upper)
        return -torch.expm1(-(low + (high - low) * torch.sigmoid(raw)))

    def _inverse(self, value: Tensor) -> Tensor:
        low, high = -math.log1p(-self.lower), -math.log1p(-self.upper)
        scaled = -torch.log1p(-value)
        return torch.log(scaled - low) - torch.log(high - scaled)


@dataclass(frozen=True)
class Above(ValueMap):
    """``lower + softplus(u)``.

    Args:
        lower: Lower bound.
    """

    lower: float = 0.0

    def __call__(self, raw: Tensor) -> Tensor:
        return self.lower + F.softplus(raw)

    def _inverse(self, value: Tensor) -> Tensor:
        return inverse_softplus(value - self.lower)


@dataclass(frozen=True)
class Below(ValueMap):
    """``upper - softplus(upper - u)``: the number itself, far below the bound.

    Args:
        upper: Upper bound.
    """

    upper: float = 0.0

    def __call__(self, raw: Tensor) -> Tensor:
        return self.upper - F.softplus(self.upper - raw)

    def _inverse(self, value: Tensor) -> Tensor:
        return self.upper - inverse_softplus(self.upper - value)


@dataclass(frozen=True)
class Exponential(ValueMap):
    """``exp(u)``."""

    lower: float = 0.0

    def __call__(self, raw: Tensor) -> Tensor:
        return torch.exp(raw)

    def _inverse(self, value: Tensor) -> Tensor:
        return torch.log(value)


@dataclass(frozen=True)
class Logit(ValueMap):
    """``log(u / (1 - u))``: for numbers that are kept between 0 and 1 by other means."""

    def __call__(self, raw: Tensor) -> Tensor:
        return torch.logit(raw)

    def _inverse(self, value: Tensor) -> Tensor:
        return torch.sigmoid(value)


MAPS: dict[str, Callable[[float, float], ValueMap]] = {
    "linear": lambda lower, upper: Unbounded(),
    "sigmoid": lambda lower, upper: Between(0.0, 1.0),
    "s_sigmoid": lambda lower, upper: Between(lower, upper),
    "softplus": lambda lower, upper: Above(0.0),
    "lower_softplus": lambda lower, upper: Above(lower),
    "upper_softplus": lambda lower, upper: Below(upper),
    "exp": lambda lower, upper: Exponential(),
    "logit": lambda lower, upper: Logit(),
}
"""The maps by the names of the Delta-STN code; those with a bound in their name use the given one."""


def named_map(name: str, lower: float | None = None, upper: float | None = None) -> ValueMap:
    """Return a map by its name.

    Args:
        name: One of :data:`MAPS`.
        lower: Lower bound, for ``"s_sigmoid"`` and ``"lower_softplus"``.
        upper: Upper bound, for ``"s_sigmoid"`` and ``"upper_softplus"``.

    Raises:
        ValueError: If the name is unknown, or a bound is missing, or has no meaning for this map.
    """
    if name not in MAPS:
        raise ValueError(f"map must be one of {sorted(MAPS)}, got {name!r}{closest(name, MAPS)}")
    needs = {"s_sigmoid": (True, True), "lower_softplus": (True, False), "upper_softplus": (False, True)}
    for argument, value, needed in zip(
        ("lower", "upper"), (lower, upper), needs.get(name, (False, False)), strict=True
    ):
        if needed != (value is not None):
            raise ValueError(f"map {name!r} {'needs' if needed else 'has no'} {argument} bound, got {argument}={value}")
    return MAPS[name](0.0 if lower is None else float(lower), 0.0 if upper is None else float(upper))


def map_between(lower: float | None = None, upper: float | None = None, log: bool = False) -> ValueMap:
    """Return the map onto a range.

    Args:
        lower: Lower bound; ``None`` or ``-inf`` for none.
        upper: Upper bound; ``None`` or ``inf`` for none.
        log: Whether to work on the logarithm; needs two bounds, or ``lower=0`` without an upper one.

    Raises:
        ValueError: If the bounds are NaN or not in order, or do not suit ``log``.
    """
    low = -math.inf if lower is None else float(lower)
    high = math.inf if upper is None else float(upper)
    if not low < high:
        raise ValueError(f"bounds must have lower < upper, got lower={lower}, upper={upper}")
    if log and low == 0 and high == math.inf:
        return Exponential()
    if log:
        return LogBetween(low, high)
    if math.isfinite(low):
        return Between(low, high) if math.isfinite(high) else Above(low)
    return Below(high) if math.isfinite(high) else Unbounded()


def map_of_domain(domain: Domain, name: str) -> tuple[ValueMap, bool]:
    """Return the map onto a domain of a configuration space, and whether its values are rounded to integers.

    Args:
        domain: ``uniform``, ``loguniform``, ``reverseloguniform``, ``randint`` or ``lograndint``.
        name: Name of the hyperparameter, for errors.

    Raises:
        ValueError: If it is another one, or has one value only.
    """
    integer = isinstance(domain, Integer)
    sampler = domain.get_sampler() if isinstance(domain, Float | Integer) else None
    if not isinstance(domain, Float | Integer) or not isinstance(sampler, Uniform | LogUniform | ReverseLogUniform):
        raise ValueError(
            f"hyperparameter {name!r}: only uniform, loguniform, reverseloguniform, randint and lograndint can be "
            f"tuned inside training, got {domain!r}; leave it to the search around training"
        )
    lower, upper = float(domain.lower), float(domain.upper)
    if lower == upper:
        raise ValueError(f"hyperparameter {name!r}: {domain!r} has one value only")
    if integer:  # so that both ends are reached
        lower, upper = lower - 0.5, upper + 0.5
    if isinstance(sampler, LogUniform):
        return LogBetween(lower, upper), integer
    if isinstance(sampler, ReverseLogUniform):
        return ReverseLogBetween(lower, upper), integer
    return Between(lower, upper), integer
