"""Where a multi-fidelity scheduler decides: rung levels and their quantiles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

__all__ = [
    "check_rung_levels",
    "geometric_rung_levels",
    "linear_rung_levels",
    "promotion_quantiles",
    "successive_halving_rung_levels",
]


def successive_halving_rung_levels(
    max_t: int,
    rung_levels: Sequence[int] | None = None,
    grace_period: int | None = None,
    reduction_factor: float | None = None,
    rung_increment: int | None = None,
) -> tuple[int, ...]:
    """Return the rung levels that the arguments of a scheduler describe.

    Explicit levels come first, then geometric spacing, then linear spacing; arguments that lose are warned of.

    Args:
        max_t: Maximum resource, which is no rung level.
        rung_levels: Explicit levels: two or more strictly increasing positive ints up to ``max_t``.
        grace_period: Lowest level; default 1.
        reduction_factor: Ratio of neighbouring levels; default 3 unless ``rung_increment`` is given.
        rung_increment: Difference of neighbouring levels.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Example:
        >>> successive_halving_rung_levels(10, rung_increment=3)
        (1, 4, 7)
        >>> successive_halving_rung_levels(10, rung_levels=[2, 5, 10])
        (2, 5)
    """
    if rung_levels is not None:
        if isinstance(rung_levels, str) or not isinstance(rung_levels, Sequence):
            raise TypeError(f"rung_levels must be a list of positive ints, got {rung_levels!r}")
        if len(rung_levels) < 2:
            raise ValueError(f"rung_levels must have two or more levels, got {list(rung_levels)}")
        given = {"grace_period": grace_period, "reduction_factor": reduction_factor, "rung_increment": rung_increment}
        ignored = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        if ignored:
            warnings.warn(
                f"rung_levels={list(rung_levels)} is given, {' and '.join(ignored)} has no effect", stacklevel=3
            )
        return check_rung_levels(rung_levels, max_t)
    lowest = 1 if grace_period is None else grace_period
    if rung_increment is None:
        return geometric_rung_levels(lowest, 3 if reduction_factor is None else reduction_factor, max_t)
    linear = linear_rung_levels(lowest, rung_increment, max_t)
    if reduction_factor is None:
        return linear
    warnings.warn(
        f"reduction_factor={reduction_factor!r} is given, rung_increment={rung_increment!r} has no effect", stacklevel=3
    )
    return geometric_rung_levels(lowest, reduction_factor, max_t)


def geometric_rung_levels(grace_period: int, reduction_factor: float, max_t: int) -> tuple[int, ...]:
    r"""Return the levels :math:`round(r_{min} \eta^j)` for all j with :math:`r_{min} \eta^j < r_{max}`.

    The maximum itself is no rung level: there is nothing to decide there.

    Args:
        grace_period: Lowest level :math:`r_{min}`, a positive int.
        reduction_factor: Ratio :math:`\eta \ge 2` of neighbouring levels.
        max_t: Maximum resource :math:`r_{max}`, larger than ``grace_period``.

    Returns:
        Strictly increasing levels, all below ``max_t``.

    Raises:
        TypeError: If a resource is no int, or ``reduction_factor`` no number.
        ValueError: If a value is out of range.

    Example:
        >>> geometric_rung_levels(1, 3, 100)
        (1, 3, 9, 27, 81)
        >>> geometric_rung_levels(2, 2.5, 50)
        (2, 5, 12, 31)

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA),
        https://arxiv.org/abs/1810.05934
    """
    check_positive_int("grace_period", grace_period)
    check_positive_int("max_t", max_t)
    if isinstance(reduction_factor, bool) or not isinstance(reduction_factor, int | float):
        raise TypeError(f"reduction_factor must be a number >= 2, got {reduction_factor!r}")
    if not 2 <= reduction_factor < float("inf"):
        raise ValueError(f"reduction_factor must be a number >= 2, got {reduction_factor!r}")
    _check_room(grace_period, max_t)
    levels = []
    level: float = grace_period
    while level < max_t:
        levels.append(round(level))
        level = grace_period * reduction_factor ** len(levels)
    return tuple(level for level in levels if level < max_t)


def linear_rung_levels(grace_period: int, rung_increment: int, max_t: int) -> tuple[int, ...]:
    r"""Return the levels :math:`r_{min} + \nu j` below ``max_t``.

    Args:
        grace_period: Lowest level :math:`r_{min}`, a positive int.
        rung_increment: Difference :math:`\nu` of neighbouring levels, a positive int.
        max_t: Maximum resource, larger than ``grace_period``.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If a value is out of range.

    Example:
        >>> linear_rung_levels(2, 3, 11)
        (2, 5, 8)
    """
    check_positive_int("grace_period", grace_period)
    check_positive_int("rung_increment", rung_increment)
    check_positive_int("max_t", max_t)
    _check_room(grace_period, max_t)
    return tuple(range(grace_period, max_t, rung_increment))


def check_rung_levels(rung_levels: Sequence[int], max_t: int) -> tuple[int, ...]:
    """Return explicit rung levels as a tuple, without a last one that equals ``max_t``.

    Raises:
        TypeError: If a level or ``max_t`` is no int.
        ValueError: If the levels are not positive and strictly increasing, or one is above ``max_t``.
    """
    check_positive_int("max_t", max_t)
    levels = tuple(rung_levels)
    for level in levels:
        check_positive_int("rung_levels", level)
    if any(low >= high for low, high in pairwise(levels)):
        raise ValueError(f"rung_levels must be strictly increasing, got {list(levels)}")
    if levels and levels[-1] > max_t:
        raise ValueError(f"rung_levels must not exceed max_t={max_t}, got {list(levels)}")
    return levels[:-1] if levels and levels[-1] == max_t else levels


def promotion_quantiles(rung_levels: Sequence[int], max_t: int) -> tuple[float, ...]:
    r"""Return :math:`q_j = r_j / r_{j+1}` for each level; the last level's successor is ``max_t``.

    Example:
        >>> promotion_quantiles((1, 2, 8), 10)
        (0.5, 0.25, 0.8)
    """
    return tuple(low / high for low, high in pairwise((*rung_levels, max_t)))


def check_positive_int(name: str, value: object) -> None:
    """Raise unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def _check_room(grace_period: int, max_t: int) -> None:
    if max_t <= grace_period:
        raise ValueError(f"the maximum resource must be larger than grace_period={grace_period}, got max_t={max_t}")
