"""JSON form of domains and configuration spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sthyper._space.domains import Domain
from sthyper._space.finite_domains import Categorical, Ordinal, OrdinalNearestNeighbor
from sthyper._space.finite_range import FiniteRange
from sthyper._space.ranges import Float, Integer
from sthyper._space.samplers import Grid, LogUniform, Normal, Quantized, ReverseLogUniform, Sampler, Uniform
from sthyper.errors import ConfigSpaceError, closest

__all__ = ["DOMAIN_KEY", "config_space_from_json_dict", "config_space_to_json_dict", "from_dict", "to_dict"]

DOMAIN_KEY = "domain_cls"
"""Key that marks the dictionary of a domain; constants must not have it."""

_DOMAINS: dict[str, type[Domain]] = {
    cls.__name__: cls for cls in (Float, Integer, Categorical, Ordinal, OrdinalNearestNeighbor, FiniteRange)
}
_SAMPLERS: dict[str, type[Sampler]] = {
    cls.__name__: cls for cls in (Uniform, LogUniform, ReverseLogUniform, Normal, Grid, Quantized)
}


def to_dict(domain: Domain) -> dict[str, Any]:
    """Return a domain as JSON values.

    Args:
        domain: One of the domains of :mod:`sthyper.config_space`.

    Returns:
        ``{"domain_cls", "domain_kwargs"}``, and ``{"sampler_cls", "sampler_kwargs"}`` if a sampler was set.

    Raises:
        TypeError: If it is no such domain, or its sampler is of another class.
    """
    if _DOMAINS.get(type(domain).__name__) is not type(domain):
        raise TypeError(f"to_dict: domain must be one of {', '.join(_DOMAINS)}, got {domain!r}")
    result: dict[str, Any] = {DOMAIN_KEY: type(domain).__name__, "domain_kwargs": domain.to_kwargs()}
    sampler = domain.sampler
    if sampler is not None:
        inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
        for part in (sampler, inner):
            if _SAMPLERS.get(type(part).__name__) is not type(part):
                raise TypeError(f"to_dict: sampler must be one of {', '.join(_SAMPLERS)}, got {part!r}")
        result["sampler_cls"] = type(sampler).__name__
        result["sampler_kwargs"] = sampler.to_kwargs()
    return result


def from_dict(d: Mapping[str, Any]) -> Domain:
    """Return the domain that :func:`to_dict` described.

    Args:
        d: What :func:`to_dict` returned.

    Raises:
        ConfigSpaceError: If a class or an argument is unknown.
    """
    cls: type[Domain] = _lookup(d.get(DOMAIN_KEY), _DOMAINS, DOMAIN_KEY)
    kwargs = dict(d.get("domain_kwargs") or {})
    if d.get("sampler_cls") is not None:
        kwargs["sampler"] = _sampler_from_dict(d)
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ConfigSpaceError(f"from_dict: {error} (in {dict(d)!r})") from None


def _sampler_from_dict(d: Mapping[str, Any]) -> Sampler:
    cls: type[Sampler] = _lookup(d.get("sampler_cls"), _SAMPLERS, "sampler_cls")
    kwargs = dict(d.get("sampler_kwargs") or {})
    if cls is Quantized and isinstance(kwargs.get("sampler"), Mapping):
        kwargs["sampler"] = _sampler_from_dict(kwargs["sampler"])
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ConfigSpaceError(f"from_dict: {error} (in {dict(d)!r})") from None


def _lookup(name: Any, classes: Mapping[str, Any], key: str) -> Any:
    # Spaces written by Syne Tune name its private sampler classes, which begin with an underscore.
    cls = classes.get(str(name).lstrip("_"))
    if cls is None:
        raise ConfigSpaceError(
            f"from_dict: {key} must be one of {', '.join(classes)}, got {name!r}{closest(name, list(classes))}"
        )
    return cls


def config_space_to_json_dict(config_space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration space as JSON values: domains by :func:`to_dict`, constants as they are.

    Args:
        config_space: The configuration space.
    """
    return {k: to_dict(v) if isinstance(v, Domain) else v for k, v in config_space.items()}


def config_space_from_json_dict(config_space_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration space that :func:`config_space_to_json_dict` described.

    Args:
        config_space_dict: What :func:`config_space_to_json_dict` returned; constants may be dictionaries too.

    Raises:
        ConfigSpaceError: If a domain is of an unknown class or has unknown arguments.
    """
    return {k: from_dict(v) if isinstance(v, Mapping) and DOMAIN_KEY in v else v for k, v in config_space_dict.items()}
