"""Constructors of domains, and predicates on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sthyper._space.domains import Domain
from sthyper._space.finite_domains import Categorical, Ordinal, make_ordinal
from sthyper._space.finite_range import FiniteRange
from sthyper._space.ranges import Float, Integer
from sthyper._space.samplers import Normal, Quantized, Uniform

__all__ = [
    "choice",
    "finrange",
    "is_log_space",
    "is_reverse_log_space",
    "is_uniform_space",
    "logfinrange",
    "logordinal",
    "lograndint",
    "loguniform",
    "normal",
    "ordinal",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "quniform",
    "randint",
    "reverseloguniform",
    "uniform",
]

# ---- constructors ------------------------------------------------------------------------------------


def uniform(lower: float, upper: float) -> Float:
    """Real numbers in [lower, upper], uniform.

    Raises:
        ConfigSpaceError: If the bounds are not finite or in the wrong order.
    """
    return Float(lower, upper).uniform()


def loguniform(lower: float, upper: float) -> Float:
    """Real numbers in [lower, upper] whose logarithms are uniform; ``lower`` must be positive.

    Raises:
        ConfigSpaceError: If the bounds are not positive, finite and in order.
    """
    return Float(lower, upper).loguniform()


def reverseloguniform(lower: float, upper: float) -> Float:
    """Real numbers with uniform -log(1 - x), 0 <= lower <= upper < 1; for momentum terms such as 0.9 to 0.9999.

    Raises:
        ConfigSpaceError: If the bounds are not in [0, 1) or not in order.
    """
    return Float(lower, upper).reverseloguniform()


def normal(mean: float, sd: float, lower: float | None = None, upper: float | None = None) -> Float:
    """Real numbers from a normal distribution, truncated to [lower, upper]; encoded linearly.

    Args:
        mean: Mean before truncation; the default value of the hyperparameter, if it is within the bounds.
        sd: Standard deviation before truncation.
        lower: Smallest value; ``mean - 4 * sd`` if ``None``.
        upper: Largest value; ``mean + 4 * sd`` if ``None``.

    Raises:
        ConfigSpaceError: If ``sd`` is not positive, or next to no probability lies between the bounds.
    """
    sampler = Normal(mean, sd)
    low = mean - 4 * sd if lower is None else lower
    high = mean + 4 * sd if upper is None else upper
    return Float(low, high, sampler=sampler)


def randint(lower: int, upper: int) -> Integer:
    """Integers lower, ..., upper, both included, uniform.

    Raises:
        ConfigSpaceError: If the bounds are no integers or in the wrong order.
    """
    return Integer(lower, upper).uniform()


def lograndint(lower: int, upper: int) -> Integer:
    """Integers lower, ..., upper, both included: round(exp(U)), U uniform on [log(lower - .5), log(upper + .5)].

    Raises:
        ConfigSpaceError: If the bounds are no positive integers in order.
    """
    return Integer(lower, upper).loguniform()


def choice(categories: Sequence[Any]) -> Categorical:
    """One of some values without an order, uniform.

    Args:
        categories: All str, all int, all float or all bool. Numbers with an order are better served by the other
            domains.

    Raises:
        ConfigSpaceError: If there are none, some are equal, or types are mixed.
    """
    return Categorical(categories).uniform()  # type: ignore[arg-type]


def ordinal(categories: Sequence[Any], kind: str | None = None) -> Ordinal:
    """One of some ordered values.

    Args:
        categories: The values in order.
        kind: ``"equal"``: uniform, encoded by position. ``"nn"``: increasing numbers, encoded by value; each is as
            likely as the interval is long of which it is the nearest. ``"nn-log"``: the same for logarithms.
            ``None``: ``"nn"`` for increasing numbers, else ``"equal"``.

    Raises:
        ConfigSpaceError: If ``kind`` is unknown or does not suit the values.
    """
    return make_ordinal(categories, kind)


def logordinal(categories: Sequence[float]) -> Ordinal:
    """One of some increasing positive numbers, encoded by logarithm: ``ordinal(categories, kind="nn-log")``.

    Raises:
        ConfigSpaceError: If the numbers are not positive and increasing.
    """
    return make_ordinal(categories, "nn-log")


def finrange(lower: float, upper: float, size: int, cast_int: bool = False) -> FiniteRange:
    """``size`` equally spaced numbers from ``lower`` to ``upper``, both included, uniform.

    Args:
        lower: First value.
        upper: Last value.
        size: Number of values.
        cast_int: Whether they are rounded to integers.

    Raises:
        ConfigSpaceError: If the arguments contradict each other, or values coincide.
    """
    return FiniteRange(lower, upper, size, log_scale=False, cast_int=cast_int)


def logfinrange(lower: float, upper: float, size: int, cast_int: bool = False) -> FiniteRange:
    """``size`` numbers from ``lower`` to ``upper``, both included, with equally spaced logarithms, uniform.

    Args:
        lower: First value, positive.
        upper: Last value.
        size: Number of values.
        cast_int: Whether they are rounded to integers.

    Raises:
        ConfigSpaceError: If the arguments contradict each other, or values coincide.
    """
    return FiniteRange(lower, upper, size, log_scale=True, cast_int=cast_int)


def quniform(lower: float, upper: float, q: float) -> Float:
    """As :func:`uniform`, rounded to multiples of ``q``; the bounds must be multiples of ``q``."""
    return uniform(lower, upper).quantized(q)


def qloguniform(lower: float, upper: float, q: float) -> Float:
    """As :func:`loguniform`, rounded to multiples of ``q``; the bounds must be multiples of ``q``."""
    return loguniform(lower, upper).quantized(q)


def qrandint(lower: int, upper: int, q: int = 1) -> Integer:
    """As :func:`randint`, rounded to multiples of ``q`` and clipped to the bounds."""
    return randint(lower, upper).quantized(q)


def qlograndint(lower: int, upper: int, q: int) -> Integer:
    """As :func:`lograndint`, rounded to multiples of ``q`` and clipped to the bounds."""
    return lograndint(lower, upper).quantized(q)


# ---- predicates --------------------------------------------------------------------------------------


def is_log_space(domain: Domain) -> bool:
    """Whether the domain is encoded on the log scale (quantised ones too)."""
    return _check_domain(domain).scaling.name == "log"


def is_reverse_log_space(domain: Domain) -> bool:
    """Whether the domain is encoded on the scale -log(1 - x)."""
    return _check_domain(domain).scaling.name == "reverse_log"


def is_uniform_space(domain: Domain) -> bool:
    """Whether the values are uniform on the linear scale or over the categories (quantised ones too)."""
    sampler = _check_domain(domain).get_sampler()
    if sampler is None:
        return domain.scaling.name == "linear"
    return isinstance(sampler.sampler if isinstance(sampler, Quantized) else sampler, Uniform)


def _check_domain(domain: Any) -> Domain:
    if not isinstance(domain, Domain):
        raise TypeError(f"domain must be a Domain, got {domain!r}")
    return domain
