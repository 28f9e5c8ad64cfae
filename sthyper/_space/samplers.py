"""How values of a domain are drawn: every sampler maps one uniform number to one value.

One draw of the generator a value, whatever the domain, keeps the streams of different searchers in step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sthyper._space.scaling import LINEAR, LOG, REVERSE_LOG, Scaling
from sthyper.errors import ConfigSpaceError

if TYPE_CHECKING:
    import numpy as np

    from sthyper._space.domains import Domain

    RandomState = np.random.Generator | np.random.RandomState | int | None

__all__ = [
    "BaseSampler",
    "Grid",
    "LogUniform",
    "Normal",
    "Quantized",
    "ReverseLogUniform",
    "Sampler",
    "Uniform",
    "as_generator",
]


def as_generator(random_state: RandomState) -> np.random.Generator | np.random.RandomState:
    """Return an object with numpy's ``random()`` method.

    Args:
        random_state: A ``numpy.random.Generator`` or ``RandomState`` (used as it is), an int seed, or ``None`` for a
            fresh generator seeded by the system. numpy's global state is never touched.

    Raises:
        TypeError: If it is something else.
    """
    import numpy as np

    if isinstance(random_state, np.random.Generator | np.random.RandomState):
        return random_state
    if random_state is None:
        return np.random.default_rng()
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return np.random.default_rng(int(random_state))
    raise TypeError(
        f"random_state must be a numpy.random.Generator, a numpy.random.RandomState, an int seed or None, "
        f"got {random_state!r}"
    )


@dataclass(frozen=True)
class Sampler:
    """Base class of samplers: the inverse distribution function of a domain's values.

    Attributes:
        scaling: Scale on which a domain with this sampler is encoded.
    """

    @property
    def scaling(self) -> Scaling:
        """Scale on which the values are encoded (and, but for :class:`Normal`, uniform)."""
        return LINEAR

    def check(self, domain: Domain) -> None:
        """Raise :class:`ConfigSpaceError` if the domain's values cannot be drawn by this sampler."""

    def quantile(self, domain: Domain, u: float) -> Any:
        """Return the value of ``domain`` at the uniform number ``u`` in [0, 1]."""
        return domain.from_unit(u, self.scaling)

    def sample(self, domain: Domain, size: int = 1, random_state: RandomState = None) -> Any:
        """Draw from the domain.

        Args:
            domain: The domain.
            size: Number of values.
            random_state: See :func:`as_generator`.

        Returns:
            One value if ``size`` is 1, else a list of ``size`` values.

        Raises:
            ValueError: If ``size`` is negative.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        generator = as_generator(random_state)
        if size == 1:
            return self.quantile(domain, float(generator.random()))
        return [self.quantile(domain, u) for u in generator.random(size).tolist()]

    def to_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the constructor as JSON values."""
        return {}


BaseSampler = Sampler


@dataclass(frozen=True)
class Uniform(Sampler):
    """Uniform over the values."""


@dataclass(frozen=True)
class LogUniform(Sampler):
    """Uniform over the logarithms of the values.

    Args:
        base: Base of the logarithm. It does not change the distribution; it is kept so that spaces written by
            other libraries survive a round trip.

    Raises:
        ConfigSpaceError: If ``base`` is not positive or is 1.
    """

    base: float = field(default=math.e, compare=False)

    def __post_init__(self) -> None:
        if not self.base > 0 or self.base == 1:
            raise ConfigSpaceError(f"LogUniform: base must be positive and not 1, got {self.base!r}")

    @property
    def scaling(self) -> Scaling:
        return LOG

    def check(self, domain: Domain) -> None:
        lower = getattr(domain, "lower", None)
        if lower is None or lower <= 0:
            raise ConfigSpaceError(f"a log scale needs a positive lower bound, got lower={lower!r}")

    def to_kwargs(self) -> dict[str, Any]:
        return {"base": self.base}


@dataclass(frozen=True)
class ReverseLogUniform(Sampler):
    """Uniform over -log(1 - x), for values in [0, 1)."""

    @property
    def scaling(self) -> Scaling:
        return REVERSE_LOG

    def check(self, domain: Domain) -> None:
        lower, upper = getattr(domain, "lower", -1), getattr(domain, "upper", 1)
        if domain.value_type is not float or not 0 <= lower <= upper < 1:
            raise ConfigSpaceError(
                f"a reverse-log scale needs 0 <= lower <= upper < 1, got lower={lower!r}, upper={upper!r}"
            )


@dataclass(frozen=True)
class Normal(Sampler):
    """Normal distribution, truncated to the bounds of the domain.

    Args:
        mean: Mean of the distribution before truncation.
        sd: Its standard deviation, positive.

    Raises:
        ConfigSpaceError: If ``sd`` is not positive or an argument is not finite.
    """

    mean: float = 0.0
    sd: float = 1.0

    # Below this mass between the bounds the distribution function has no digits left.
    _MIN_MASS: ClassVar[float] = 1e-9

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ConfigSpaceError(f"Normal: mean must be finite, got {self.mean!r}")
        if not (self.sd > 0 and math.isfinite(self.sd)):
            raise ConfigSpaceError(f"Normal: sd must be positive and finite, got {self.sd!r}")

    def _tails(self, domain: Any) -> tuple[float, float]:
        from statistics import NormalDist

        dist = NormalDist(self.mean, self.sd)
        return dist.cdf(domain.lower), dist.cdf(domain.upper)

    def check(self, domain: Domain) -> None:
        if domain.value_type is not float or not hasattr(domain, "lower"):
            raise ConfigSpaceError(f"the Normal sampler is for float domains, not for {type(domain).__name__}")
        low, high = self._tails(domain)
        if domain.lower != domain.upper and high - low < self._MIN_MASS:  # type: ignore[attr-defined]
            raise ConfigSpaceError(
                f"Normal(mean={self.mean}, sd={self.sd}) has next to no probability in [{domain.lower}, {domain.upper}]"  # type: ignore[attr-defined]
            )

    def quantile(self, domain: Any, u: float) -> float:
        from statistics import NormalDist

        low, high = self._tails(domain)
        p = low + u * (high - low)
        if p <= low or domain.lower == domain.upper:
            return float(domain.lower)
        if p >= high:
            return float(domain.upper)
        return float(min(max(NormalDist(self.mean, self.sd).inv_cdf(p), domain.lower), domain.upper))

    def to_kwargs(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd}


@dataclass(frozen=True)
class Grid(Sampler):
    """Marks a categorical domain whose values are to be enumerated; it cannot be sampled."""

    def quantile(self, domain: Domain, u: float) -> Any:
        raise RuntimeError(f"{domain!r} is for grid search and cannot be sampled; use choice() instead")


@dataclass(frozen=True)
class Quantized(Sampler):
    """Rounds what another sampler draws to multiples of ``q``, inside the bounds of the domain.

    Args:
        sampler: The sampler of the unrounded values.
        q: Distance of two neighbouring values, positive.

    Raises:
        ConfigSpaceError: If ``q`` is not positive, or ``sampler`` is quantised already.
    """

    sampler: Sampler
    q: float

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler) or isinstance(self.sampler, Quantized | Grid):
            raise ConfigSpaceError(f"Quantized: sampler must be an unquantised sampler, got {self.sampler!r}")
        if not (self.q > 0 and math.isfinite(self.q)):
            raise ConfigSpaceError(f"q must be positive and finite, got {self.q!r}")

    @property
    def scaling(self) -> Scaling:
        return self.sampler.scaling

    def check(self, domain: Domain) -> None:
        self.sampler.check(domain)
        lower, upper = getattr(domain, "lower", None), getattr(domain, "upper", None)
        if lower is None or upper is None:
            raise ConfigSpaceError(f"only Float and Integer domains can be quantised, not {type(domain).__name__}")
        if domain.value_type is int:
            if self.q != round(self.q):
                raise ConfigSpaceError(f"q must be an integer for an integer domain, got {self.q!r}")
            return
        for name, bound in (("lower", lower), ("upper", upper)):
            ratio = bound / self.q
            if not math.isclose(ratio, round(ratio), rel_tol=1e-9, abs_tol=1e-9):
                raise ConfigSpaceError(f"{name} must be a multiple of q={self.q!r}, got {bound!r}")

    def quantile(self, domain: Domain, u: float) -> Any:
        return self.round_value(domain, self.sampler.quantile(domain, u))

    def round_value(self, domain: Any, value: float) -> Any:
        """Return the multiple of ``q`` nearest to ``value``, clipped to the domain's bounds and of its type."""
        if domain.value_type is int:
            return min(max(round(value / self.q) * int(self.q), domain.lower), domain.upper)
        # 15 digits: 3 * 0.1 is to be 0.3, as the user would write it.
        multiple = float(f"{round(value / self.q) * self.q:.15g}")
        return min(max(multiple, domain.lower), domain.upper)

    def num_values(self, domain: Any) -> int:
        """Return the number of different values."""
        return int(round(domain.upper / self.q) - round(domain.lower / self.q) + 1)

    def to_kwargs(self) -> dict[str, Any]:
        inner = {"sampler_cls": type(self.sampler).__name__, "sampler_kwargs": self.sampler.to_kwargs()}
        return {"sampler": inner, "q": self.q}
