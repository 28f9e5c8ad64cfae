"""Columns of the unit cube: one object maps the values of one domain to its column or columns and back.

Notation: n configurations, w columns of a domain, u a coordinate in [0, 1], x a value on the internal (scaled) axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sthyper._space.domains import Domain
from sthyper._space.finite_domains import Categorical, Ordinal, OrdinalNearestNeighbor
from sthyper._space.finite_range import FiniteRange
from sthyper._space.ranges import Float, Integer
from sthyper._space.samplers import Quantized
from sthyper.errors import ConfigSpaceError

__all__ = ["Column", "make_column"]

Array = NDArray[np.float64]

# Keeps the bounds of an active range on the active side of a rounding border, in units of the internal axis.
_MARGIN = 1e-8


class Column(ABC):
    """Encoder of one domain."""

    width: int = 1

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Array:
        """Return the coordinates of n values, shape (n,) or (n, w).

        Raises:
            ConfigSpaceError: If a value lies outside the domain.
        """

    @abstractmethod
    def decode(self, u: Array) -> list[Any]:
        """Return the values of n coordinates, shape (n,) or (n, w), which lie in [0, 1]."""

    def snap(self, u: Array) -> Array:
        """Return the coordinates of the values that n coordinates stand for, shape (n,) or (n, w)."""
        return self.encode(self.decode(u))

    @abstractmethod
    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        """Return the lower and upper bounds of the w columns.

        Args:
            active: Domain with the values to which the bounds are to be restricted, ``None`` for all.

        Raises:
            ConfigSpaceError: If the active values are not part of the domain.
        """


def _not_part(active: Domain, domain: Domain) -> ConfigSpaceError:
    return ConfigSpaceError(f"the active domain {active!r} is not part of {domain!r}")


class _Interval(Column):
    """Numbers on a scaled interval [low, high]: u = (x - low) / (high - low); 0 if the interval is a point."""

    def __init__(self, domain: Domain, low: float, high: float) -> None:
        self.domain = domain
        self.low = low
        self.width_int = high - low

    def _numbers(self, values: Sequence[Any]) -> Array:
        try:
            return np.array(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return np.array([self.domain.coerce(v) for v in values], dtype=np.float64)

    def _check(self, values: Sequence[Any], numbers: Array, lower: float, upper: float, slack: float) -> None:
        good = (numbers >= lower - slack) & (numbers <= upper + slack)  # False for NaN
        if not good.all():
            raise ConfigSpaceError(f"{values[int(np.argmin(good))]!r} lies outside {self.domain!r}")

    def _to_unit(self, numbers: Array) -> Array:
        if self.width_int <= 0:
            return np.zeros_like(numbers)
        x = self.domain.scaling.array_to_internal(numbers)
        return np.clip((x - self.low) / self.width_int, 0.0, 1.0)

    def _from_unit(self, u: Array) -> Array:
        return self.domain.scaling.array_from_internal(self.low + u * self.width_int)

    def _unit(self, x: float) -> float:
        return min(max((x - self.low) / self.width_int, 0.0), 1.0)


class _FloatColumn(_Interval):
    def __init__(self, domain: Float) -> None:
        super().__init__(domain, *domain.interval(domain.scaling))
        self.lower, self.upper = domain.lower, domain.upper
        self.slack = 1e-9 * (self.upper - self.lower) + 1e-14 * max(abs(self.lower), abs(self.upper))

    def encode(self, values: Sequence[Any]) -> Array:
        numbers = self._numbers(values)
        self._check(values, numbers, self.lower, self.upper, self.slack)
        return self._to_unit(np.clip(numbers, self.lower, self.upper))

    def decode(self, u: Array) -> list[Any]:
        numbers = np.clip(self._from_unit(u), self.lower, self.upper)
        # exp(log(upper)) may miss upper by a rounding error; the ends are to be exact.
        numbers = np.where(u <= 0.0, self.lower, np.where(u >= 1.0, self.upper, numbers))
        result: list[float] = numbers.tolist()
        if isinstance(self.domain.sampler, Quantized):
            return [self.domain.cast(v) for v in result]
        return result

    def snap(self, u: Array) -> Array:
        if isinstance(self.domain.sampler, Quantized):
            return super().snap(u)
        return u if self.width_int > 0 else np.zeros_like(u)

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        if self.width_int <= 0:
            return [0.0], [0.0]
        if active is None:
            return [0.0], [1.0]
        assert isinstance(active, Float)
        low, high = active.interval(self.domain.scaling)
        if not self.lower - self.slack <= active.lower <= active.upper <= self.upper + self.slack:
            raise _not_part(active, self.domain)
        return [self._unit(low)], [self._unit(high)]


class _IntegerColumn(_Interval):
    def __init__(self, domain: Integer) -> None:
        super().__init__(domain, *domain.interval(domain.scaling))
        self.lower, self.upper = domain.lower, domain.upper
        if self.lower == self.upper:
            self.width_int = 0.0

    def encode(self, values: Sequence[Any]) -> Array:
        numbers = np.rint(self._numbers(values))
        self._check(values, numbers, self.lower, self.upper, 0.0)
        return self._to_unit(numbers)

    def decode(self, u: Array) -> list[Any]:
        numbers = np.clip(np.rint(self._from_unit(u)), self.lower, self.upper)
        result: list[int] = numbers.astype(np.int64).tolist()
        if isinstance(self.domain.sampler, Quantized):
            return [self.domain.cast(v) for v in result]
        return result

    def snap(self, u: Array) -> Array:
        if isinstance(self.domain.sampler, Quantized):
            return super().snap(u)
        return self._to_unit(np.clip(np.rint(self._from_unit(u)), self.lower, self.upper))

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        if self.width_int <= 0:
            return [0.0], [0.0]
        if active is None:
            return [0.0], [1.0]
        assert isinstance(active, Integer)
        if not self.lower <= active.lower <= active.upper <= self.upper:
            raise _not_part(active, self.domain)
        if active.lower == active.upper:
            code = self._unit(self.domain.scaling.to_internal(active.lower))
            return [code], [code]
        scale = self.domain.scaling.to_internal
        low = scale(active.lower - 0.5 + _MARGIN) if active.lower > self.lower else self.low
        high = scale(active.upper + 0.5 - _MARGIN) if active.upper < self.upper else self.low + self.width_int
        return [self._unit(low)], [self._unit(high)]


class _PositionColumn(Column):
    """K listed values by position: u = (i + 1/2) / K. A single value has the constant coordinate ``single``."""

    def __init__(self, domain: Categorical | FiniteRange, single: float = 0.0) -> None:
        self.domain = domain
        self.values = domain.values if isinstance(domain, FiniteRange) else domain.categories
        self.positions = {v: i for i, v in enumerate(self.values)}
        self.single = single

    def _indices(self, values: Sequence[Any]) -> NDArray[np.int64]:
        positions = self.positions
        try:
            indices = [positions[v] for v in values]
        except (KeyError, TypeError):  # the slow way takes near misses, and says what is wrong
            indices = [positions[self.domain.coerce(v)] for v in values]
        return np.array(indices, dtype=np.int64)

    def encode(self, values: Sequence[Any]) -> Array:
        indices = self._indices(values)
        if len(self.values) == 1:
            return np.full(len(indices), self.single)
        return (indices + 0.5) / len(self.values)

    def decode(self, u: Array) -> list[Any]:
        k = len(self.values)
        indices = np.minimum((u * k).astype(np.int64), k - 1)
        return [self.values[i] for i in indices.tolist()]

    def snap(self, u: Array) -> Array:
        k = len(self.values)
        if k == 1:
            return np.full_like(u, self.single)
        return (np.minimum((u * k).astype(np.int64), k - 1) + 0.5) / k

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        k = len(self.values)
        if k == 1:
            return [self.single], [self.single]
        if active is None:
            return [0.0], [1.0]
        inside = self._active_positions(active)
        if len(inside) == 1:
            return [(inside[0] + 0.5) / k], [(inside[0] + 0.5) / k]
        if inside != list(range(inside[0], inside[0] + len(inside))):
            raise ConfigSpaceError(
                f"the active domain {active!r} must be a contiguous part, in the same order, of {self.domain!r}"
            )
        low = (inside[0] + _MARGIN) / k if inside[0] > 0 else 0.0
        high = (inside[-1] + 1 - _MARGIN) / k if inside[-1] < k - 1 else 1.0
        return [low], [high]

    def _active_positions(self, active: Domain) -> list[int]:
        assert isinstance(active, Categorical | FiniteRange)
        values = active.values if isinstance(active, FiniteRange) else active.categories
        if not all(self.domain.is_valid(v) for v in values):
            raise _not_part(active, self.domain)
        return [self.domain.index_of(v) for v in values]


class _BinaryColumn(_PositionColumn):
    """Two categories without an order, 1/4 and 3/4."""

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        if active is not None and len(self._active_positions(active)) == 2:
            return [0.0], [1.0]  # in either order
        return super().bounds(active)


class _OneHotColumns(_PositionColumn):
    """K > 2 categories without an order: one column each; decoded by the largest."""

    def __init__(self, domain: Categorical) -> None:
        super().__init__(domain)
        self.width = len(domain)

    def encode(self, values: Sequence[Any]) -> Array:
        indices = self._indices(values)
        result = np.zeros((len(indices), self.width))
        result[np.arange(len(indices)), indices] = 1.0
        return result  # (n, w)

    def decode(self, u: Array) -> list[Any]:
        return [self.values[i] for i in u.argmax(axis=1).tolist()]

    def snap(self, u: Array) -> Array:
        result = np.zeros_like(u)
        result[np.arange(len(u)), u.argmax(axis=1)] = 1.0
        return result

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        if active is None:
            return [0.0] * self.width, [1.0] * self.width
        inside = self._active_positions(active)
        low, high = [0.0] * self.width, [0.0] * self.width
        for i in inside:
            high[i] = 1.0
        if len(inside) == 1:
            low[inside[0]] = 1.0
        return low, high


class _NearestColumn(_Interval):
    """Increasing numbers on an interval of which each owns the nearest part."""

    def __init__(self, domain: OrdinalNearestNeighbor) -> None:
        assert domain.lower_int is not None
        assert domain.upper_int is not None
        super().__init__(domain, domain.lower_int, domain.upper_int)
        self.categories = domain.categories
        self.points = np.array(domain.categories_int)
        self.borders = 0.5 * (self.points[1:] + self.points[:-1])
        self.codes = np.clip((self.points - self.low) / self.width_int, 0.0, 1.0)
        self.positions = {v: i for i, v in enumerate(domain.categories)}

    def encode(self, values: Sequence[Any]) -> Array:
        positions = self.positions
        try:
            indices = [positions[v] for v in values]
        except (KeyError, TypeError):
            indices = [positions[self.domain.coerce(v)] for v in values]
        return self.codes[indices] if indices else np.zeros(0)

    def decode(self, u: Array) -> list[Any]:
        indices = np.searchsorted(self.borders, self.low + u * self.width_int)
        return [self.categories[i] for i in indices.tolist()]

    def snap(self, u: Array) -> Array:
        return self.codes[np.searchsorted(self.borders, self.low + u * self.width_int)]

    def bounds(self, active: Domain | None) -> tuple[Sequence[float], Sequence[float]]:
        if active is None:
            return [0.0], [1.0]
        assert isinstance(active, OrdinalNearestNeighbor)
        inside = [self.positions[v] for v in active.categories if v in self.positions]
        if len(inside) < len(active) or inside != list(range(inside[0], inside[0] + len(inside))):
            raise ConfigSpaceError(f"the active domain {active!r} must be a contiguous part of {self.domain!r}")
        first, last = inside[0], inside[-1]
        if first == last:
            return [float(self.codes[first])], [float(self.codes[first])]
        low, high = self.low, self.low + self.width_int
        if first > 0:
            low = self.points[first] - 0.499 * (self.points[first] - self.points[first - 1])
        if last < len(self.points) - 1:
            high = self.points[last] + 0.499 * (self.points[last + 1] - self.points[last])
        return [self._unit(float(low))], [self._unit(float(high))]


def make_column(domain: Domain) -> Column:
    """Return the encoder of a domain.

    Raises:
        TypeError: If the domain is of an unknown class.
    """
    if isinstance(domain, Float):
        return _FloatColumn(domain)
    if isinstance(domain, Integer):
        return _IntegerColumn(domain)
    if isinstance(domain, OrdinalNearestNeighbor) and len(domain) > 1:
        return _NearestColumn(domain)
    if isinstance(domain, FiniteRange | Ordinal):
        return _PositionColumn(domain)
    if isinstance(domain, Categorical):
        if len(domain) == 1:
            return _PositionColumn(domain, single=1.0)
        return _BinaryColumn(domain) if len(domain) == 2 else _OneHotColumns(domain)
    raise TypeError(f"{domain!r} of type {type(domain).__name__} cannot be encoded")
