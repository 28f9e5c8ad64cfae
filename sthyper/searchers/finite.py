"""Spaces with finitely many configurations, listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sthyper.config_space import Categorical, Domain, FiniteRange, Float, Integer, Quantized

__all__ = ["all_configs", "domain_values"]


def domain_values(domain: Domain) -> Sequence[Any]:
    """Return the different values of a finite domain, numbers in increasing order.

    Raises:
        ValueError: If the domain is infinite.
    """
    if isinstance(domain, Categorical):
        return domain.categories
    if isinstance(domain, FiniteRange):
        return domain.values
    if isinstance(domain, Integer | Float) and len(domain) > 0:
        if isinstance(domain.sampler, Quantized):
            q = domain.sampler.q
            steps = range(round(domain.lower / q), round(domain.upper / q) + 1)
            return list(dict.fromkeys(domain.cast(min(max(i * q, domain.lower), domain.upper)) for i in steps))
        return range(domain.lower, domain.upper + 1) if isinstance(domain, Integer) else [domain.lower]
    raise ValueError(f"{domain} has infinitely many values")


def all_configs(config_space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every configuration of a finite space, the last hyperparameter varying fastest.

    Raises:
        ValueError: If a domain is infinite.
    """
    domains = {name: domain for name, domain in config_space.items() if isinstance(domain, Domain)}
    for values in itertools.product(*map(domain_values, domains.values())):
        yield dict(zip(domains, values, strict=True))
