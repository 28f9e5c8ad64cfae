"""Domains better suited to model-based search, with the same values or nearly so."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sthyper._space.domains import Domain
from sthyper._space.finite_domains import Categorical, OrdinalNearestNeighbor
from sthyper._space.finite_range import FiniteRange
from sthyper._space.ranges import Float, Integer
from sthyper._space.samplers import Uniform
from sthyper.errors import ConfigSpaceError, closest

__all__ = [
    "POSITIVE_EPS",
    "R2_THRESHOLD",
    "UPPER_LOWER_RATIO_THRESHOLD",
    "convert_choice_domain",
    "convert_domain",
    "convert_linear_to_log_domain",
    "fit_to_regular_grid",
    "streamline_config_space",
]

logger = logging.getLogger(__name__)

UPPER_LOWER_RATIO_THRESHOLD = 100
"""A linear range gets a log scale if upper / lower is larger."""
POSITIVE_EPS = 1e-20
"""A number counts as positive from here on."""
R2_THRESHOLD = 0.995
"""Share of variance that a regular grid must explain to replace a list of numbers."""


def fit_to_regular_grid(x: Sequence[float]) -> dict[str, float]:
    """Fit x[j] by a * j + b.

    a is taken from the first and last value, b is the mean of x - a * j, and
    r2 = 1 - var(x - a * j) / var(x).

    Args:
        x: At least two strictly increasing numbers.

    Returns:
        The dictionary of ``r2``, ``a``, ``b``.

    Raises:
        ValueError: If ``x`` is not strictly increasing or too short.
    """
    if len(x) < 2 or any(p >= q for p, q in pairwise(x)):
        raise ValueError(f"x must hold at least two strictly increasing numbers, got {list(x)!r}")
    a = (x[-1] - x[0]) / (len(x) - 1)
    rest = [v - a * j for j, v in enumerate(x)]
    return {"r2": 1.0 - _variance(rest) / _variance(x), "a": a, "b": sum(rest) / len(rest)}


def _variance(x: Sequence[float]) -> float:
    mean = sum(x) / len(x)
    return sum((v - mean) ** 2 for v in x) / len(x)


def convert_choice_domain(domain: Categorical, name: str | None = None) -> Domain:
    """Replace a ``choice`` of more than two numbers by a regular grid or an ordinal; keep every other domain.

    The numbers are sorted, and a linear and (if all are positive) a log grid are fitted. If the better one explains
    enough, the result is a :class:`FiniteRange`, whose values may differ a little from the given ones. Otherwise it
    is a nearest-neighbour ordinal. The value type stays.

    Args:
        domain: The domain; ordinals are left as the user chose them.
        name: Name of the hyperparameter for the log; nothing is logged without it.
    """
    if type(domain) is not Categorical or len(domain) <= 2 or domain.value_type not in (int, float):
        return domain
    values = sorted(domain.categories)
    fit, log_scale = fit_to_regular_grid([float(v) for v in values]), False
    if values[0] >= POSITIVE_EPS:
        log_fit = fit_to_regular_grid([math.log(v) for v in values])
        if log_fit["r2"] > fit["r2"]:
            fit, log_scale = log_fit, True
    result: Domain = OrdinalNearestNeighbor(tuple(values), log_scale=log_scale)
    if fit["r2"] >= R2_THRESHOLD:
        low, high = fit["b"], fit["b"] + fit["a"] * (len(values) - 1)
        if log_scale:
            low, high = math.exp(low), math.exp(high)
        low, high = _snap(low, values[0]), _snap(high, values[-1])
        try:
            result = FiniteRange(low, high, len(values), log_scale, cast_int=domain.value_type is int)
        except ConfigSpaceError:
            pass  # rounded to integers, values of the fitted grid coincide: the ordinal keeps them apart
    if name is not None:
        logger.info("%s: %r replaced by %r (r2 = %.4f)", name, domain, result, fit["r2"])
    return result


def _snap(fitted: float, exact: float) -> float:
    return exact if math.isclose(fitted, exact, rel_tol=1e-9, abs_tol=1e-12) else fitted


def convert_linear_to_log_domain(domain: Float | Integer, name: str | None = None) -> Domain:
    """Give a uniform range a log scale if ``lower`` is positive and ``upper > 100 * lower``.

    Args:
        domain: The domain; it is returned as it is if it has another sampler.
        name: Name of the hyperparameter for the log; nothing is logged without it.
    """
    if not isinstance(domain.get_sampler(), Uniform):
        return domain
    if domain.lower < POSITIVE_EPS or domain.upper <= UPPER_LOWER_RATIO_THRESHOLD * domain.lower:
        return domain
    result = domain.loguniform()
    if name is not None:
        logger.info("%s: %r replaced by %r", name, domain, result)
    return result


def convert_domain(domain: Domain, name: str | None = None) -> Domain:
    """Return a domain better suited to model-based search, or the same if there is none.

    See :func:`convert_choice_domain` and :func:`convert_linear_to_log_domain`.

    Args:
        domain: The domain.
        name: Name of the hyperparameter for the log; nothing is logged without it.
    """
    if isinstance(domain, Categorical):
        return convert_choice_domain(domain, name)
    if isinstance(domain, Float | Integer):
        return convert_linear_to_log_domain(domain, name)
    return domain


def streamline_config_space(
    config_space: Mapping[str, Any], exclude_names: Sequence[str] | None = None, verbose: bool = False
) -> dict[str, Any]:
    """Return a configuration space whose domains follow best practice for model-based search.

    Wide linear ranges get a log scale; a ``choice`` of numbers becomes a grid or an ordinal. Constants, ordinals and
    everything else stay. Nothing calls this silently: use it on spaces written with ``uniform``, ``randint`` and
    ``choice`` only.

    Args:
        config_space: The configuration space; it is not changed.
        exclude_names: Hyperparameters to leave as they are (the values of a grid may be slightly different).
        verbose: Whether each replacement is logged.

    Raises:
        ConfigSpaceError: If a name in ``exclude_names`` is not in the space.
    """
    if isinstance(exclude_names, str):
        raise TypeError(f"exclude_names must be a list of names, got {exclude_names!r}")
    excluded = set(exclude_names or ())
    for name in excluded:
        if name not in config_space:
            raise ConfigSpaceError(
                f"exclude_names: {name!r} is not in the configuration space{closest(name, list(config_space))}"
            )
    return {
        k: convert_domain(v, k if verbose else None) if isinstance(v, Domain) and k not in excluded else v
        for k, v in config_space.items()
    }
