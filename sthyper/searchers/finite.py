"""Finitely many values of a domain, or configurations of a space, listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from sthyper.config_space import Categorical, Domain, FiniteRange, Float, Integer, Quantized

__all__ = ["SpacedValues", "all_configs", "domain_values", "grid_values"]

_MERGE_LIMIT = 10_000
"""Longest list in which equal values are looked for beforehand."""


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


class SpacedValues(Sequence[Any]):
    """Equally spaced values of a numeric range on its own scale, computed when they are asked for.

    Value i of n lies at the unit coordinate (i + 0.5) / n. Integers are rounded, quantised domains to their multiples,
    so that values may coincide.

    Args:
        domain: A float or integer range.
        n: Number of values, at least 1.
    """

    def __init__(self, domain: Float | Integer, n: int) -> None:
        self._domain = domain
        self._scaling = domain.scaling
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(self._n)[index]]
        position = range(self._n)[index]
        return self._domain.cast(self._domain.from_unit((position + 0.5) / self._n, self._scaling))


def grid_values(domain: Domain, n: int | None = None) -> Sequence[Any]:
    """Return the values that a grid has of a domain, numbers in increasing order.

    Args:
        domain: Finite domains give all their values.
        n: Number of values of a float or integer range, see :class:`SpacedValues`. A range with no more values than
            that gives all of them. Equal ones are merged in lists of up to 10 000.

    Raises:
        ValueError: If the domain is infinite and ``n`` is ``None``.
    """
    if not isinstance(domain, Float | Integer) or n is None or 0 < len(domain) <= n:
        return domain_values(domain)
    spaced = SpacedValues(domain, n)
    if n > _MERGE_LIMIT:
        return spaced
    return list({domain.match_string(value): value for value in reversed(spaced)}.values())[::-1]
