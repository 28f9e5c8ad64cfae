"""Where a multi-fidelity scheduler decides: rung levels and their quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["check_rung_levels", "geometric_rung_levels", "promotion_quantiles"]


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
    if max_t <= grace_period:
        raise ValueError(f"the maximum resource must be larger than grace_period={grace_period}, got max_t={max_t}")
    levels = []
    level: float = grace_period
    while level < max_t:
        levels.append(round(level))
        level = grace_period * reduction_factor ** len(levels)
    return tuple(level for level in levels if level < max_t)


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
