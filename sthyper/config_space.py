"""Configuration spaces: a dictionary from names to domains, which are tuned, or to constants, which are passed on.

Example:
    >>> from sthyper.config_space import choice, loguniform, randint
    >>> config_space = {"lr": loguniform(1e-5, 1e-1), "width": randint(8, 64), "act": choice(["relu", "tanh"]),
    ...                 "epochs": 10}

This module imports neither torch nor scipy, and numpy only to draw values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from sthyper._space.constructors import (
    choice,
    finrange,
    is_log_space,
    is_reverse_log_space,
    is_uniform_space,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    normal,
    ordinal,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    reverseloguniform,
    uniform,
)
from sthyper._space.domains import Domain, parse_bool
from sthyper._space.finite_domains import Categorical, Ordinal, OrdinalNearestNeighbor
from sthyper._space.finite_range import FiniteRange
from sthyper._space.json_form import (
    DOMAIN_KEY,
    config_space_from_json_dict,
    config_space_to_json_dict,
    from_dict,
    to_dict,
)
from sthyper._space.points import impute_points_to_evaluate
from sthyper._space.ranges import Float, Integer
from sthyper._space.samplers import (
    BaseSampler,
    Grid,
    LogUniform,
    Normal,
    Quantized,
    ReverseLogUniform,
    Sampler,
    Uniform,
    as_generator,
)
from sthyper._space.streamline import (
    convert_choice_domain,
    convert_domain,
    convert_linear_to_log_domain,
    fit_to_regular_grid,
    streamline_config_space,
)
from sthyper.constants import ST_CHECKPOINT_DIR, ST_CONFIG_JSON_FNAME_ARG
from sthyper.errors import ConfigSpaceError, closest

if TYPE_CHECKING:
    import argparse

    from sthyper._space.samplers import RandomState

__all__ = [
    "BaseSampler",
    "Categorical",
    "ConfigSpaceError",
    "Domain",
    "FiniteRange",
    "Float",
    "Grid",
    "Integer",
    "LogUniform",
    "Normal",
    "Ordinal",
    "OrdinalNearestNeighbor",
    "Quantized",
    "ReverseLogUniform",
    "Sampler",
    "Uniform",
    "add_to_argparse",
    "cast_config_values",
    "check_config_space",
    "choice",
    "config_space_from_json_dict",
    "config_space_size",
    "config_space_to_json_dict",
    "config_to_match_string",
    "convert_choice_domain",
    "convert_domain",
    "convert_linear_to_log_domain",
    "finrange",
    "fit_to_regular_grid",
    "from_dict",
    "impute_points_to_evaluate",
    "is_log_space",
    "is_reverse_log_space",
    "is_uniform_space",
    "logfinrange",
    "logordinal",
    "lograndint",
    "loguniform",
    "non_constant_hyperparameter_keys",
    "normal",
    "ordinal",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "quniform",
    "randint",
    "restrict_domain",
    "reverseloguniform",
    "sample_config",
    "streamline_config_space",
    "to_dict",
    "uniform",
]

_Range = TypeVar("_Range", Float, Integer, FiniteRange)

# ---- spaces ------------------------------------------------------------------------------------------


def check_config_space(config_space: Any) -> None:
    """Check that this is a configuration space.

    Args:
        config_space: A non-empty dictionary from names to domains or constants. Constants are JSON values (str, int,
            float, bool, ``None``, lists and dictionaries of these).

    Raises:
        TypeError: If it is no dictionary, or a name is no string.
        ConfigSpaceError: If it is empty, a name is empty or reserved, or a value is neither domain nor constant.
    """
    if not isinstance(config_space, Mapping):
        raise TypeError(
            f"config_space must be a dict from names to domains or constants, got {config_space!r} of type "
            f"{type(config_space).__name__}"
        )
    if not config_space:
        raise ConfigSpaceError("config_space must not be empty")
    for key, value in config_space.items():
        if not isinstance(key, str):
            raise TypeError(f"config_space: names must be strings, got {key!r} of type {type(key).__name__}")
        if not key or key in (ST_CHECKPOINT_DIR, ST_CONFIG_JSON_FNAME_ARG):
            raise ConfigSpaceError(f"config_space: {key!r} cannot be used as a name")
        if not isinstance(value, Domain):
            _check_constant(repr(key), value)


def _check_constant(where: str, value: Any) -> None:
    if type(value) is list:
        for i, item in enumerate(value):
            _check_constant(f"{where}[{i}]", item)
    elif type(value) is dict:
        if DOMAIN_KEY in value:
            raise ConfigSpaceError(f"config_space: the constant {where} must not have the key {DOMAIN_KEY!r}")
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigSpaceError(f"config_space: keys of the constant {where} must be strings, got {key!r}")
            _check_constant(f"{where}[{key!r}]", item)
    elif type(value) is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigSpaceError(f"config_space: the constant {where} must be finite, got {value!r}")
    elif value is not None and type(value) not in (str, int, bool):
        raise ConfigSpaceError(
            f"config_space: the value of {where} must be a domain (uniform, choice, ...) or a constant (str, int, "
            f"float, bool, None, list or dict), got {value!r} of type {type(value).__module__}.{type(value).__name__}"
        )


def non_constant_hyperparameter_keys(config_space: Mapping[str, Any]) -> list[str]:
    """Return the names of the domains, in the order of the space."""
    return [name for name, domain in config_space.items() if isinstance(domain, Domain)]


def sample_config(config_space: Mapping[str, Any], random_state: RandomState = None) -> dict[str, Any]:
    """Draw a configuration: one uniform number for each domain, in the order of the space.

    Args:
        config_space: The configuration space.
        random_state: A ``numpy.random.Generator`` or ``RandomState``, an int seed, or ``None`` for a fresh unseeded
            generator.

    Returns:
        The non-constant hyperparameters.

    Raises:
        RuntimeError: If a domain is for grid search.
    """
    generator = as_generator(random_state)
    return {k: v.quantile(float(generator.random())) for k, v in config_space.items() if isinstance(v, Domain)}


def cast_config_values(config: Mapping[str, Any], config_space: Mapping[str, Any]) -> dict[str, Any]:
    """Cast the values of a configuration to the types of their domains.

    Args:
        config: The configuration; names that are not in the space are dropped.
        config_space: The configuration space.

    Returns:
        The values of the names that are in both; constants as they are in ``config``.

    Raises:
        ConfigSpaceError: If a value cannot be cast; the message has its name.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key not in config_space:
            continue
        domain = config_space[key]
        try:
            result[key] = domain.cast(value) if isinstance(domain, Domain) else value
        except ConfigSpaceError as error:
            raise ConfigSpaceError(f"value {value!r} of {key!r} cannot be used: {error}") from None
    return result


def config_space_size(config_space: Mapping[str, Any], upper_limit: int = 2**20) -> int | None:
    """Return the number of different configurations.

    Args:
        config_space: The configuration space; constants are ignored.
        upper_limit: Largest number to return, above 1.

    Returns:
        The number, ``None`` if it is infinite or above ``upper_limit``.

    Raises:
        ValueError: If ``upper_limit`` is not above 1.
    """
    if upper_limit <= 1:
        raise ValueError(f"upper_limit must be above 1, got {upper_limit}")
    size = 1
    for domain in config_space.values():
        if not isinstance(domain, Domain):
            continue
        size *= len(domain)
        if size == 0 or size > upper_limit:
            return None
    return size


def config_to_match_string(
    config: Mapping[str, Any], config_space: Mapping[str, Any], keys: Sequence[str] | None = None
) -> str:
    """Return a text that is equal for configurations that count as the same.

    Args:
        config: The configuration.
        config_space: The configuration space.
        keys: Names to take, in this order; all domains of the space if ``None``.

    Returns:
        ``"name:value,name2:value2"``: floats with 6 decimals in scientific notation, integers exact, finite domains
        by the position of the value.

    Raises:
        ConfigSpaceError: If a name is missing in ``config`` or is no domain of the space.
    """
    names = non_constant_hyperparameter_keys(config_space) if keys is None else keys
    parts = []
    for name in names:
        domain = config_space.get(name)
        if not isinstance(domain, Domain):
            raise ConfigSpaceError(
                f"{name!r} is no domain of the configuration space"
                f"{closest(name, non_constant_hyperparameter_keys(config_space))}"
            )
        if name not in config:
            raise ConfigSpaceError(f"the configuration lacks {name!r}, it has {list(config)!r}")
        parts.append(f"{name}:{domain.match_string(config[name])}")
    return ",".join(parts)


def restrict_domain(numerical_domain: _Range, lower: float, upper: float) -> _Range:
    """Return a domain with other bounds, and the same type and scale.

    Args:
        numerical_domain: A float, integer or finite range.
        lower: Smallest value, cast to the domain's type.
        upper: Largest value. A finite range keeps those of its values that lie between the bounds.

    Raises:
        TypeError: If the domain is of another type.
        ConfigSpaceError: If the bounds are in the wrong order, no value of a finite range lies between them, or they
            do not suit the domain's scale.
    """
    if isinstance(numerical_domain, Float):
        sampler = numerical_domain.sampler
        if isinstance(sampler, Quantized):
            lower, upper = (float(f"{round(v / sampler.q) * sampler.q:.15g}") for v in (lower, upper))
        return replace(numerical_domain, lower=lower, upper=upper)
    if isinstance(numerical_domain, Integer):
        return replace(numerical_domain, lower=round(lower), upper=round(upper))
    if not isinstance(numerical_domain, FiniteRange):
        raise TypeError(f"restrict_domain: needs a Float, Integer or FiniteRange, got {numerical_domain!r}")
    slack = 1e-9 * max(abs(lower), abs(upper))
    inside = [i for i, v in enumerate(numerical_domain.values) if lower - slack <= v <= upper + slack]
    if not inside:
        raise ConfigSpaceError(f"restrict_domain: no value of {numerical_domain!r} lies in [{lower}, {upper}]")
    points = numerical_domain.grid_points
    return replace(numerical_domain, lower=points[inside[0]], upper=points[inside[-1]], size=len(inside))


def add_to_argparse(parser: argparse.ArgumentParser, config_space: Mapping[str, Any]) -> None:
    """Add a required argument ``--name`` for every entry of a space, constants included.

    Bools are read from ``True`` and ``False``; constants that are lists or dictionaries from JSON. Only for a constant
    that is ``None`` the argument is optional: backends leave it out; else a number or a text is taken.

    Args:
        parser: The parser of a training script.
        config_space: The configuration space.
    """
    for name, value in config_space.items():
        kind = value.value_type if isinstance(value, Domain) else type(value)
        if kind is bool:
            convert: Any = parse_bool
        elif kind in (list, dict):
            convert = json.loads
        elif value is None:
            convert = _parse_any
        else:
            convert = kind
        parser.add_argument(f"--{name}", type=convert, required=value is not None)


def _parse_any(text: str) -> Any:
    if text in ("None", "null", ""):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
