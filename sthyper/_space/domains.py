"""Domains of single hyperparameters: the base class.

Every domain has a unit coordinate u in [0, 1]: ``from_unit`` maps u to a value so that a uniform u is a draw of the
domain's own distribution. Sampling and encoding use the same map.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sthyper._space.samplers import Grid, Sampler, Uniform, as_generator
from sthyper._space.scaling import LINEAR, Scaling
from sthyper.errors import ConfigSpaceError

if TYPE_CHECKING:
    from sthyper._space.samplers import RandomState

__all__ = ["Domain", "check_bounds", "number", "parse_bool"]


def parse_bool(val: Any) -> bool:
    """Return the bool that a command line argument means.

    Args:
        val: ``"True"`` or ``"False"`` in any case, or a bool.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(val, bool):
        return val
    text = str(val).strip().lower()
    if text not in ("true", "false"):
        raise ValueError(f"a bool must be given as True or False, got {val!r}")
    return text == "true"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    return math.isclose(a, b) if isinstance(a, float) else a == b


class Domain(ABC):
    """The values that one hyperparameter may take, and how they are drawn and encoded.

    Domains are immutable. Two are equal if they have the same type, the same arguments (floats up to rounding) and
    the same sampler.
    """

    default_sampler_cls: ClassVar[type[Sampler] | None] = Uniform

    # ---- what a domain is ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def value_type(self) -> type:
        """Type of the values: ``float``, ``int``, ``str`` or ``bool``."""

    @abstractmethod
    def to_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the constructor as JSON values, without the sampler."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of different values, 0 if there are infinitely many."""

    def __bool__(self) -> bool:
        return True  # infinite domains have length 0

    @abstractmethod
    def cast(self, value: Any) -> Any:
        """Return ``value`` as a plain Python value of the domain's type; finite domains take the nearest member.

        Raises:
            ConfigSpaceError: If there is no such value.
        """

    @abstractmethod
    def coerce(self, value: Any) -> Any:
        """Return the member of the domain that ``value`` means: cast, and checked against the bounds.

        Raises:
            ConfigSpaceError: If it lies outside the domain.
        """

    @abstractmethod
    def is_valid(self, value: Any) -> bool:
        """Whether ``value`` is a member of the domain."""

    @abstractmethod
    def match_string(self, value: Any) -> str:
        """Return a text that is equal for values that count as the same."""

    @abstractmethod
    def midpoint(self) -> Any:
        """Return the default value: the middle on the domain's scale; the first of unordered categories."""

    @abstractmethod
    def from_unit(self, u: float, scaling: Scaling) -> Any:
        """Return the value at the unit coordinate ``u`` in [0, 1], on the given scale."""

    @property
    @abstractmethod
    def domain_str(self) -> str:
        """Short text for the values, such as ``(0.1, 1.0)``."""

    # ---- sampling ------------------------------------------------------------------------------------

    @property
    def sampler(self) -> Sampler | None:
        """The sampler, ``None`` if it is the default one."""
        return None

    def get_sampler(self) -> Sampler | None:
        """Return the sampler in use; ``None`` for domains with a fixed way of sampling."""
        if self.sampler is not None:
            return self.sampler
        return None if self.default_sampler_cls is None else self.default_sampler_cls()

    def set_sampler(self, sampler: Sampler, allow_override: bool = False) -> Self:
        """Return a copy of the domain with another sampler (domains are immutable).

        Args:
            sampler: The new sampler.
            allow_override: Whether to replace a sampler that was set before.

        Raises:
            TypeError: If the domain has a fixed way of sampling.
            ValueError: If a sampler was set before and ``allow_override`` is false.
        """
        if self.default_sampler_cls is None:
            raise TypeError(f"{type(self).__name__} has a fixed way of sampling, got sampler={sampler!r}")
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must be a Sampler, got {sampler!r}")
        if self.sampler is not None and not allow_override:
            raise ValueError(f"{self!r} has a sampler already, {self.sampler!r}; allow_override=True replaces it")
        return replace(self, sampler=sampler)  # type: ignore[type-var]

    @property
    def scaling(self) -> Scaling:
        """Scale on which the domain is encoded."""
        sampler = self.get_sampler()
        return LINEAR if sampler is None else sampler.scaling

    def quantile(self, u: float) -> Any:
        """Return the value at the uniform number ``u`` in [0, 1]; one draw of the domain's distribution."""
        sampler = self.get_sampler()
        return self.from_unit(u, self.scaling) if sampler is None else sampler.quantile(self, u)

    def sample(self, size: int = 1, random_state: RandomState = None) -> Any:
        """Draw from the domain.

        Args:
            size: Number of values.
            random_state: A ``numpy.random.Generator`` or ``RandomState``, an int seed, or ``None`` for a fresh
                unseeded generator. One uniform number is drawn for each value.

        Returns:
            One value if ``size`` is 1, else a list of ``size`` values; plain Python values.

        Raises:
            ValueError: If ``size`` is negative.
            RuntimeError: If the domain is for grid search.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        generator = as_generator(random_state)
        if size == 1:
            return self.quantile(float(generator.random()))
        return [self.quantile(u) for u in generator.random(size).tolist()]

    def is_grid(self) -> bool:
        """Whether the domain is marked for grid search."""
        return isinstance(self.sampler, Grid)

    def is_function(self) -> bool:
        """Whether the values come from a function; never the case here."""
        return False

    # ---- equality ------------------------------------------------------------------------------------

    def _identity(self) -> tuple[Any, ...]:
        values = (tuple(v) if isinstance(v, list) else v for v in self.to_kwargs().values())
        return (self.value_type.__name__, *values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Domain):
            return NotImplemented
        return (
            type(self) is type(other)
            and _same(self._identity(), other._identity())
            and self.get_sampler() == other.get_sampler()
        )

    def __hash__(self) -> int:
        # Floats are compared up to rounding, so they cannot take part.
        return hash((type(self).__name__, type(self.get_sampler()).__name__))


def _check_bound(owner: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ConfigSpaceError(f"{owner}: {name} must be finite, got {value!r}")


def check_bounds(owner: str, lower: Any, upper: Any) -> None:
    """Raise if the bounds are no finite numbers or in the wrong order."""
    _check_bound(owner, "lower", lower)
    _check_bound(owner, "upper", upper)
    if lower > upper:
        raise ConfigSpaceError(f"{owner}: lower must not be above upper, got lower={lower!r}, upper={upper!r}")


def number(value: Any, domain: Domain) -> float:
    """Return ``value`` (a number or its text) as a finite float.

    Raises:
        ConfigSpaceError: If it is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigSpaceError(f"{value!r} is not a number, as {domain!r} needs") from None
    if not math.isfinite(result):
        raise ConfigSpaceError(f"{value!r} is not a finite number, as {domain!r} needs")
    return result
