"""Numeric ranges: real numbers and integers between two bounds."""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

from sthyper._space.domains import Domain, check_bounds, number
from sthyper._space.samplers import LogUniform, Normal, Quantized, ReverseLogUniform, Sampler, Uniform
from sthyper._space.scaling import LINEAR, Scaling
from sthyper.errors import ConfigSpaceError

__all__ = ["MAX_INTEGER", "Float", "Integer"]

MAX_INTEGER = 2**40
"""Largest absolute value of an integer bound: beyond it the unit coordinate cannot tell neighbours apart."""


class _Range(Domain):
    """What Float and Integer share."""

    lower: Any
    upper: Any

    def to_kwargs(self) -> dict[str, Any]:
        return {"lower": self.lower, "upper": self.upper}

    @property
    def domain_str(self) -> str:
        return f"({self.lower}, {self.upper})"

    @abstractmethod
    def interval(self, scaling: Scaling) -> tuple[float, float]:
        """Return the ends of the interval, on the given scale, that the unit coordinate runs over."""

    def _rounded(self, value: Any) -> Any:
        return self.sampler.round_value(self, value) if isinstance(self.sampler, Quantized) else value

    def quantized(self, q: float) -> Self:
        """Return a copy whose values are multiples of ``q``, clipped to the bounds.

        Raises:
            ConfigSpaceError: If ``q`` is not positive, or does not fit the bounds.
        """
        base = self.get_sampler()
        assert base is not None
        return replace(self, sampler=Quantized(base, q))  # type: ignore[type-var]

    def __repr__(self) -> str:
        sampler = self.get_sampler()
        inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
        if isinstance(inner, Normal):
            args = f"{inner.mean}, {inner.sd}, lower={self.lower}, upper={self.upper}"
            text = f"normal({args})"
            return f"{text}.quantized({sampler.q})" if isinstance(sampler, Quantized) else text
        names = {Uniform: "uniform", LogUniform: "loguniform", ReverseLogUniform: "reverseloguniform"}
        name = names.get(type(inner))
        if name is None:
            return f"{type(self).__name__}({self.lower}, {self.upper}, sampler={sampler!r})"
        if self.value_type is int:
            name = {"uniform": "randint", "loguniform": "lograndint"}.get(name, name)
        if not isinstance(sampler, Quantized):
            return f"{name}({self.lower}, {self.upper})"
        if isinstance(inner, ReverseLogUniform):
            return f"{name}({self.lower}, {self.upper}).quantized({sampler.q})"
        return f"q{name}({self.lower}, {self.upper}, {sampler.q})"


@dataclass(frozen=True, eq=False, repr=False)
class Float(_Range):
    """Real numbers between two bounds, both included.

    Args:
        lower: Smallest value.
        upper: Largest value.
        sampler: How values are drawn, and the scale; uniform if ``None``.

    Raises:
        ConfigSpaceError: If the bounds are not finite, in the wrong order, or do not suit the sampler.
    """

    lower: float
    upper: float
    sampler: Sampler | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_bounds("Float", self.lower, self.upper)
        object.__setattr__(self, "lower", float(self.lower))
        object.__setattr__(self, "upper", float(self.upper))
        if not math.isfinite(self.upper - self.lower):
            raise ConfigSpaceError(f"Float: the range is too wide, got lower={self.lower}, upper={self.upper}")
        if self.sampler is not None:
            self.sampler.check(self)

    @property
    def value_type(self) -> type:
        return float

    def uniform(self) -> Float:
        """Return a copy that is sampled uniformly."""
        return replace(self, sampler=Uniform())

    def loguniform(self) -> Float:
        """Return a copy on the log scale.

        Raises:
            ConfigSpaceError: If ``lower`` is not positive.
        """
        return replace(self, sampler=LogUniform())

    def reverseloguniform(self) -> Float:
        """Return a copy on the scale -log(1 - x).

        Raises:
            ConfigSpaceError: Unless 0 <= lower <= upper < 1.
        """
        return replace(self, sampler=ReverseLogUniform())

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> Float:
        """Return a copy that is sampled from a normal distribution, truncated to the bounds.

        Raises:
            ConfigSpaceError: If ``sd`` is not positive, or next to no probability lies between the bounds.
        """
        return replace(self, sampler=Normal(mean, sd))

    def __len__(self) -> int:
        if self.lower == self.upper:
            return 1
        return self.sampler.num_values(self) if isinstance(self.sampler, Quantized) else 0

    def cast(self, value: Any) -> float:
        return float(self._rounded(number(value, self)))

    def coerce(self, value: Any) -> float:
        x = number(value, self)
        slack = 1e-9 * (self.upper - self.lower) + 1e-14 * max(abs(self.lower), abs(self.upper))
        if not self.lower - slack <= x <= self.upper + slack:
            raise ConfigSpaceError(f"{value!r} lies outside {self!r}")
        return float(self._rounded(min(max(x, self.lower), self.upper)))

    def is_valid(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        x = float(value)
        return self.lower <= x <= self.upper and math.isclose(x, self._rounded(x), abs_tol=1e-12)

    def match_string(self, value: Any) -> str:
        return f"{float(value) + 0.0:.6e}"  # -0.0 is 0.0

    def midpoint(self) -> float:
        sampler = self.get_sampler()
        inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
        if isinstance(inner, Normal):
            middle = inner.mean
        elif isinstance(inner, LogUniform):
            middle = math.exp(0.5 * (math.log(self.lower) + math.log(self.upper)))
        else:
            middle = 0.5 * self.lower + 0.5 * self.upper
        return self.cast(min(max(middle, self.lower), self.upper))

    def interval(self, scaling: Scaling) -> tuple[float, float]:
        return scaling.to_internal(self.lower), scaling.to_internal(self.upper)

    def from_unit(self, u: float, scaling: Scaling) -> float:
        if u <= 0.0:
            return self.lower
        if u >= 1.0:
            return self.upper
        low, high = self.interval(scaling)
        return min(max(scaling.from_internal(low + u * (high - low)), self.lower), self.upper)


@dataclass(frozen=True, eq=False, repr=False)
class Integer(_Range):
    """Integers between two bounds, both included (unlike ``range`` and ``random.randint`` of numpy).

    Args:
        lower: Smallest value.
        upper: Largest value.
        sampler: How values are drawn, and the scale; uniform if ``None``.

    Raises:
        ConfigSpaceError: If the bounds are no integers, in the wrong order, too large (:data:`MAX_INTEGER`), or do
            not suit the sampler.
    """

    lower: int
    upper: int
    sampler: Sampler | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_bounds("Integer", self.lower, self.upper)
        for name in ("lower", "upper"):
            bound = getattr(self, name)
            if bound != int(bound):
                raise ConfigSpaceError(f"Integer: {name} must be an integer, got {bound!r}")
            if abs(bound) > MAX_INTEGER:
                raise ConfigSpaceError(
                    f"Integer: {name} must be at most {MAX_INTEGER} in absolute value, got {bound!r}; "
                    f"use uniform or loguniform for larger ranges"
                )
            object.__setattr__(self, name, int(bound))
        if self.sampler is not None:
            self.sampler.check(self)

    @property
    def value_type(self) -> type:
        return int

    def uniform(self) -> Integer:
        """Return a copy that is sampled uniformly."""
        return replace(self, sampler=Uniform())

    def loguniform(self) -> Integer:
        """Return a copy on the log scale: values are rounded exp(U), U uniform on [log(lower-.5), log(upper+.5)].

        Raises:
            ConfigSpaceError: If ``lower`` is not positive.
        """
        return replace(self, sampler=LogUniform())

    def __len__(self) -> int:
        if isinstance(self.sampler, Quantized):
            return self.sampler.num_values(self)
        return self.upper - self.lower + 1

    def cast(self, value: Any) -> int:
        return int(self._rounded(round(number(value, self))))

    def coerce(self, value: Any) -> int:
        x = round(number(value, self))
        if not self.lower <= x <= self.upper:
            raise ConfigSpaceError(f"{value!r} lies outside {self!r}")
        return int(self._rounded(x))

    def is_valid(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        x = float(value)
        return x.is_integer() and self.lower <= x <= self.upper and self._rounded(int(x)) == int(x)

    def match_string(self, value: Any) -> str:
        return str(round(value))

    def midpoint(self) -> int:
        if self.scaling == LINEAR:
            middle = 0.5 * (self.lower + self.upper)
        else:
            middle = math.sqrt(self.lower * self.upper)
        return self.cast(min(max(round(middle), self.lower), self.upper))

    def interval(self, scaling: Scaling) -> tuple[float, float]:
        return scaling.to_internal(self.lower - 0.5), scaling.to_internal(self.upper + 0.5)

    def from_unit(self, u: float, scaling: Scaling) -> int:
        low, high = self.interval(scaling)
        return min(max(round(scaling.from_internal(low + u * (high - low))), self.lower), self.upper)
