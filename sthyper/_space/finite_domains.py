"""Domains with a list of values: categories and ordered categories."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from sthyper._space.domains import Domain, number, parse_bool
from sthyper._space.samplers import Grid, Sampler, Uniform
from sthyper._space.scaling import LINEAR, LOG, Scaling
from sthyper.errors import ConfigSpaceError

__all__ = ["Categorical", "Ordinal", "OrdinalNearestNeighbor", "make_ordinal", "plain"]

logger = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """Return numpy scalars as Python values."""
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "ndim", None) == 0 else value


def _check_categories(owner: str, categories: Any) -> tuple[Any, ...]:
    if isinstance(categories, str | bytes | dict | set | frozenset) or not hasattr(categories, "__len__"):
        raise TypeError(
            f"{owner}: categories must be a list or tuple (with an order), got {categories!r} of type "
            f"{type(categories).__name__}"
        )
    values = tuple(plain(c) for c in categories)
    if not values:
        raise ConfigSpaceError(f"{owner}: categories must not be empty")
    types = {type(v) for v in values}
    if len(types) > 1:
        names = ", ".join(sorted(t.__name__ for t in types))
        hint = "; write the integers as floats, such as 1.0" if types == {int, float} else ""
        raise ConfigSpaceError(
            f"{owner}: categories must all have the same type, got {names} in {list(values)!r}{hint}"
        )
    (kind,) = types
    if kind not in (str, int, float, bool):
        raise ConfigSpaceError(
            f"{owner}: categories must be str, int, float or bool, got {kind.__name__}; "
            f"use names, and look the object up in the training script"
        )
    if kind is float and not all(math.isfinite(v) for v in values):
        raise ConfigSpaceError(f"{owner}: categories must be finite, got {list(values)!r}")
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ConfigSpaceError(f"{owner}: categories must differ, {twice[0]!r} is there twice")
    return values


def _nearest(position: float, positions: tuple[float, ...]) -> int:
    """Return the index of the nearest of some increasing positions; the lower one in a tie."""
    return min(range(len(positions)), key=lambda i: abs(positions[i] - position))


@dataclass(frozen=True, eq=False, repr=False)
class Categorical(Domain):
    """Finitely many values without an order.

    Args:
        categories: The values: all str, all int, all float or all bool, and different. Strings are best: floats
            that travel as text are matched within 1 percent.
        sampler: Uniform if ``None``.

    Raises:
        ConfigSpaceError: If there are none, some are equal, or types are mixed.
    """

    categories: tuple[Any, ...]
    sampler: Sampler | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", _check_categories(type(self).__name__, self.categories))
        if self.sampler is not None:
            if not isinstance(self.sampler, Uniform | Grid):
                raise ConfigSpaceError(f"{type(self).__name__}: sampler must be Uniform or Grid, got {self.sampler!r}")
            self.sampler.check(self)

    @property
    def value_type(self) -> type:
        return type(self.categories[0])

    def uniform(self) -> Categorical:
        """Return a copy that is sampled uniformly."""
        return replace(self, sampler=Uniform())

    def grid(self) -> Categorical:
        """Return a copy that is marked for grid search and cannot be sampled."""
        return replace(self, sampler=Grid())

    def to_kwargs(self) -> dict[str, Any]:
        return {"categories": list(self.categories)}

    @property
    def domain_str(self) -> str:
        return str(list(self.categories))

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Any:
        return self.categories[index]

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {c: i for i, c in enumerate(self.categories)}

    def index_of(self, value: Any) -> int:
        """Return the position of the category that ``value`` means.

        Raises:
            ConfigSpaceError: If there is none.
        """
        if type(value) is self.value_type and value in self._positions:
            return self._positions[value]
        converted = self._convert(plain(value))
        if converted is not None and converted in self._positions:
            return self._positions[converted]
        if self.value_type is float and converted is not None:
            index = min(range(len(self)), key=lambda i: abs(self.categories[i] - converted))
            category = self.categories[index]
            if abs(category - converted) < max(0.01 * abs(category), 1e-12):
                return index
        raise ConfigSpaceError(f"{value!r} is not in {self!r}")

    def _convert(self, value: Any) -> Any:
        """Return ``value`` in the type of the categories, ``None`` if that loses something."""
        kind = self.value_type
        try:
            if kind is bool:
                return bool(value) if value in (0, 1) else parse_bool(value)
            if kind is str:
                return value if isinstance(value, str) else str(value)
            if isinstance(value, bool):
                return None
            result = float(value)
            if kind is float:
                return result if math.isfinite(result) else None
            return int(result) if result == int(result) else None
        except (TypeError, ValueError, OverflowError):
            return None

    def cast(self, value: Any) -> Any:
        return self.categories[self.index_of(value)]

    def coerce(self, value: Any) -> Any:
        return self.cast(value)

    def is_valid(self, value: Any) -> bool:
        value = plain(value)
        return type(value) is self.value_type and value in self._positions

    def match_string(self, value: Any) -> str:
        return str(self.index_of(value))

    def midpoint(self) -> Any:
        return self.categories[0]

    def from_unit(self, u: float, scaling: Scaling) -> Any:
        return self.categories[min(int(u * len(self.categories)), len(self.categories) - 1)]

    def __repr__(self) -> str:
        grid = ".grid()" if self.is_grid() else ""
        return f"choice({list(self.categories)!r}){grid}"


@dataclass(frozen=True, eq=False, repr=False)
class Ordinal(Categorical):
    """Categories with an order, all at the same distance from their neighbours.

    Sampled like :class:`Categorical`; encoded by position, so that models take neighbours as similar.

    Args:
        categories: The values in order.
        sampler: Uniform if ``None``.
    """

    def midpoint(self) -> Any:
        return self.categories[len(self.categories) // 2]

    def __repr__(self) -> str:
        grid = ".grid()" if self.is_grid() else ""
        return f"ordinal({list(self.categories)!r}, kind='equal'){grid}"


@dataclass(frozen=True, eq=False, repr=False)
class OrdinalNearestNeighbor(Ordinal):
    """Increasing numbers, sampled and encoded by a real interval in which each owns what is nearest to it.

    The interval reaches half a mean gap beyond the first and the last number, so the values are not equally likely.

    Args:
        categories: Strictly increasing ints or floats.
        log_scale: Whether distances are those of the logarithms; the categories must be positive then.

    Raises:
        ConfigSpaceError: If the categories are not increasing numbers, or not positive with ``log_scale``.
    """

    log_scale: bool = False
    default_sampler_cls: ClassVar[type[Sampler] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:
            raise TypeError(f"OrdinalNearestNeighbor has a fixed way of sampling, got sampler={self.sampler!r}")
        values = self.categories
        if self.value_type not in (int, float) or any(a >= b for a, b in pairwise(values)):
            raise ConfigSpaceError(
                f"a nearest-neighbour ordinal needs strictly increasing numbers, got {list(values)!r}; "
                f"kind='equal' takes any order"
            )
        if self.log_scale and values[0] <= 0:
            raise ConfigSpaceError(f"a log scale needs positive categories, got {list(values)!r}")

    def to_kwargs(self) -> dict[str, Any]:
        return {"categories": list(self.categories), "log_scale": self.log_scale}

    @property
    def scaling(self) -> Scaling:
        return LOG if self.log_scale else LINEAR

    @cached_property
    def categories_int(self) -> tuple[float, ...]:
        """The categories on the internal (linear or log) scale."""
        return tuple(self.scaling.to_internal(c) for c in self.categories)

    @property
    def _half_gap(self) -> float:
        points = self.categories_int
        return 0.5 * (points[-1] - points[0]) / (len(points) - 1)

    @property
    def lower_int(self) -> float | None:
        """Lower end of the interval on the internal scale, ``None`` with a single category."""
        return self.categories_int[0] - self._half_gap if len(self) > 1 else None

    @property
    def upper_int(self) -> float | None:
        """Upper end of the interval on the internal scale, ``None`` with a single category."""
        return self.categories_int[-1] + self._half_gap if len(self) > 1 else None

    def cast_int(self, value_int: float) -> Any:
        """Return the category nearest to a point of the internal scale."""
        return self.categories[_nearest(value_int, self.categories_int)]

    def _internal(self, value: Any) -> float:
        x = number(value, self)
        if self.log_scale and x <= 0:
            raise ConfigSpaceError(f"{value!r} is not positive, as {self!r} needs")
        return self.scaling.to_internal(x)

    def index_of(self, value: Any) -> int:
        if type(value) is self.value_type and value in self._positions:
            return self._positions[value]
        return _nearest(self._internal(value), self.categories_int)

    def coerce(self, value: Any) -> Any:
        x = self._internal(value)
        low, high = (self.categories_int[0],) * 2 if len(self) == 1 else (self.lower_int, self.upper_int)
        assert low is not None
        assert high is not None
        slack = 1e-9 * (high - low) + 1e-14 * max(abs(low), abs(high))
        if not low - slack <= x <= high + slack:
            raise ConfigSpaceError(f"{value!r} lies outside {self!r}")
        return self.cast(value)

    def midpoint(self) -> Any:
        return self.cast_int(0.5 * (self.categories_int[0] + self.categories_int[-1]))

    def from_unit(self, u: float, scaling: Scaling) -> Any:
        low, high = self.lower_int, self.upper_int
        if low is None or high is None:
            return self.categories[0]
        return self.cast_int(low + u * (high - low))

    def __repr__(self) -> str:
        values = list(self.categories)
        return f"logordinal({values!r})" if self.log_scale else f"ordinal({values!r}, kind='nn')"


def make_ordinal(categories: Any, kind: str | None) -> Ordinal:
    """Return the ordinal domain of the given kind; see ``sthyper.config_space.ordinal``."""
    if kind not in (None, "equal", "nn", "nn-log"):
        from sthyper.errors import closest

        raise ConfigSpaceError(
            f"ordinal: kind must be 'equal', 'nn', 'nn-log' or None, got {kind!r}"
            f"{closest(kind, ['equal', 'nn', 'nn-log'])}"
        )
    if kind is None:
        values = _check_categories("Ordinal", categories)
        numeric = len(values) > 1 and type(values[0]) in (int, float)
        increasing = numeric and all(a < b for a, b in pairwise(values))
        if numeric and not increasing:
            logger.info("ordinal(%r): the numbers are not increasing, so they are encoded by position", list(values))
        kind = "nn" if increasing else "equal"
    if kind == "equal":
        return Ordinal(categories)
    return OrdinalNearestNeighbor(categories, log_scale=kind == "nn-log")
