"""First configurations: completed by the mid-point rule, checked and freed of duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sthyper._space.domains import Domain
from sthyper.errors import ConfigSpaceError, closest

__all__ = ["complete_config", "impute_points_to_evaluate"]


def impute_points_to_evaluate(
    points_to_evaluate: Iterable[Mapping[str, Any]] | None, config_space: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Complete configurations that a searcher is to suggest first.

    A missing hyperparameter takes the mid-point of its domain: the middle on its scale (linear or log), the first of
    unordered categories, the middle one of ordered categories.

    Args:
        points_to_evaluate: Configurations, possibly partial. ``None`` means one of mid-points only, ``[]`` none.
            Constants of the space may be given if they agree; they are dropped.
        config_space: The configuration space.

    Returns:
        Configurations of the non-constant hyperparameters, cast to the types of their domains, without duplicates,
        in the given order.

    Raises:
        ConfigSpaceError: If a name is unknown, a value lies outside its domain, or a constant disagrees.
        TypeError: If it is no list of mappings.
    """
    if points_to_evaluate is None:
        points_to_evaluate = [{}]
    if isinstance(points_to_evaluate, Mapping | str):
        raise TypeError(f"points_to_evaluate must be a list of configurations, got {points_to_evaluate!r}")
    domains = {k: d for k, d in config_space.items() if isinstance(d, Domain)}
    points: dict[tuple[str, ...], dict[str, Any]] = {}
    for position, given in enumerate(points_to_evaluate):
        point = complete_config(given, config_space, f"points_to_evaluate[{position}]")
        points.setdefault(tuple(d.match_string(point[k]) for k, d in domains.items()), point)
    return list(points.values())


def complete_config(
    given: Mapping[str, Any], config_space: Mapping[str, Any], where: str, partial: bool = True
) -> dict[str, Any]:
    """Return the hyperparameters of a configuration that a user gave, cast to the types of their domains.

    Args:
        given: The configuration. Constants of the space may be given if they agree; they are dropped.
        config_space: The configuration space.
        where: What to call the configuration in messages.
        partial: Whether missing hyperparameters take the mid-point of their domain; otherwise they are an error.

    Raises:
        ConfigSpaceError: If a name is unknown, a value lies outside its domain, a constant disagrees, or a
            hyperparameter is missing that must not be.
        TypeError: If it is no mapping.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a mapping, got {given!r}")
    _check_names(where, given, config_space)
    domains = {k: d for k, d in config_space.items() if isinstance(d, Domain)}
    missing = [k for k in domains if k not in given]
    if missing and not partial:
        raise ConfigSpaceError(f"{where} lacks {', '.join(missing)}")
    return {k: _value(where, k, d, given) for k, d in domains.items()}


def _check_names(where: str, given: Mapping[str, Any], config_space: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in config_space:
            raise ConfigSpaceError(
                f"{where}: {key!r} is not in the configuration space{closest(key, list(config_space))}"
            )
        constant = config_space[key]
        if not isinstance(constant, Domain) and value != constant:
            raise ConfigSpaceError(f"{where}: {key!r} is the constant {constant!r} of the space, got {value!r}")


def _value(where: str, key: str, domain: Domain, given: Mapping[str, Any]) -> Any:
    if key not in given:
        return domain.midpoint()
    try:
        return domain.coerce(given[key])
    except ConfigSpaceError as error:
        raise ConfigSpaceError(f"{where}: value {given[key]!r} of {key!r} cannot be used: {error}") from None
