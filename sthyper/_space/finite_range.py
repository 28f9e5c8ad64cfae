"""Regular grids of numbers."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from sthyper._space.domains import Domain, check_bounds, number
from sthyper._space.finite_domains import plain
from sthyper._space.samplers import Sampler
from sthyper._space.scaling import LINEAR, LOG, Scaling
from sthyper.errors import ConfigSpaceError

__all__ = ["FiniteRange"]


@dataclass(frozen=True, eq=False, repr=False)
class FiniteRange(Domain):
    """Equally spaced numbers, on a linear or log scale, both ends included.

    Args:
        lower: First value.
        upper: Last value.
        size: Number of values, at least 1.
        log_scale: Whether the logarithms are equally spaced; ``lower`` must be positive then.
        cast_int: Whether the values are rounded to integers; they must stay different.

    Raises:
        ConfigSpaceError: If the arguments contradict each other or values coincide.
    """

    lower: float
    upper: float
    size: int
    log_scale: bool = False
    cast_int: bool = False
    default_sampler_cls: ClassVar[type[Sampler] | None] = None

    def __post_init__(self) -> None:
        check_bounds("FiniteRange", self.lower, self.upper)
        if isinstance(self.size, bool) or not isinstance(self.size, numbers.Integral):
            raise TypeError(f"FiniteRange: size must be an int, got {self.size!r}")
        if self.size < 1:
            raise ConfigSpaceError(f"FiniteRange: size must be at least 1, got {self.size}")
        if self.log_scale and self.lower <= 0:
            raise ConfigSpaceError(f"a log scale needs a positive lower bound, got lower={self.lower!r}")
        for name in ("lower", "upper"):
            bound = plain(getattr(self, name))
            whole = self.cast_int and bound == int(bound)
            object.__setattr__(self, name, int(bound) if whole else float(bound))
        object.__setattr__(self, "size", int(self.size))
        object.__setattr__(self, "log_scale", bool(self.log_scale))
        object.__setattr__(self, "cast_int", bool(self.cast_int))
        if len(set(self.values)) < self.size:
            raise ConfigSpaceError(
                f"FiniteRange: {self.size} values between {self.lower} and {self.upper} do not differ"
                f"{' after rounding' if self.cast_int else ''}; use a smaller size"
            )

    @property
    def value_type(self) -> type:
        return int if self.cast_int else float

    def to_kwargs(self) -> dict[str, Any]:
        return {
            "lower": self.lower,
            "upper": self.upper,
            "size": self.size,
            "log_scale": self.log_scale,
            "cast_int": self.cast_int,
        }

    def _identity(self) -> tuple[Any, ...]:
        # An int bound and an equal float bound make the same range.
        return (self.size, self.log_scale, self.cast_int, float(self.lower), float(self.upper))

    @property
    def scaling(self) -> Scaling:
        return LOG if self.log_scale else LINEAR

    @cached_property
    def grid_points(self) -> tuple[float, ...]:
        """The values before they are rounded to integers."""
        low, high = self.scaling.to_internal(self.lower), self.scaling.to_internal(self.upper)
        last = self.size - 1
        points = [float(self.lower)]
        for i in range(1, last):
            x = self.scaling.from_internal(low + i / last * (high - low))
            # 15 digits: the third of finrange(0.1, 1, 10) is to be 0.3, as the user would write it.
            points.append(min(max(float(f"{x:.15g}"), float(self.lower)), float(self.upper)))
        if last > 0:
            points.append(float(self.upper))
        return tuple(points)

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """The values, increasing."""
        return tuple(round(p) for p in self.grid_points) if self.cast_int else self.grid_points

    @property
    def domain_str(self) -> str:
        return str(list(self.values))

    def __len__(self) -> int:
        return self.size

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {v: i for i, v in enumerate(self.values)}

    def _index(self, value: Any) -> float:
        """Return the position of a number on the grid, as a real number."""
        x = number(value, self)
        if self.log_scale and x <= 0:
            return -math.inf
        low, high = self.scaling.to_internal(self.lower), self.scaling.to_internal(self.upper)
        if self.size == 1:
            return 0.0 if math.isclose(x, self.values[0], rel_tol=1e-9, abs_tol=1e-12) else math.inf
        return (self.scaling.to_internal(x) - low) / (high - low) * (self.size - 1)

    def index_of(self, value: Any) -> int:
        """Return the position of the value nearest to a number.

        Raises:
            ConfigSpaceError: If it is no finite number.
        """
        if type(value) is self.value_type and value in self._positions:
            return self._positions[value]
        return round(min(max(self._index(value), 0), self.size - 1))

    def cast(self, value: Any) -> Any:
        return self.values[self.index_of(value)]

    def coerce(self, value: Any) -> Any:
        # Half a step beyond the ends is still nearest to them.
        in_values = type(value) is self.value_type and value in self._positions
        if not in_values and not -0.5 <= self._index(value) <= self.size - 0.5:
            raise ConfigSpaceError(f"{value!r} lies outside {self!r}")
        return self.cast(value)

    def is_valid(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            return False
        return math.isclose(value, self.cast(value), rel_tol=1e-9, abs_tol=1e-12)

    def match_string(self, value: Any) -> str:
        return str(self.index_of(value))

    def midpoint(self) -> Any:
        low, high = self.scaling.to_internal(self.lower), self.scaling.to_internal(self.upper)
        return self.cast(self.scaling.from_internal(0.5 * (low + high)) if self.size > 1 else self.values[0])

    def from_unit(self, u: float, scaling: Scaling) -> Any:
        return self.values[min(int(u * self.size), self.size - 1)]

    def __repr__(self) -> str:
        name = "logfinrange" if self.log_scale else "finrange"
        cast = ", cast_int=True" if self.cast_int else ""
        return f"{name}({self.lower}, {self.upper}, {self.size}{cast})"
