"""The space over which an acquisition function is optimised: numbers that move, and values that are swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sthyper.encoding import SpaceEncoder

__all__ = ["MixedSpace"]

_FEW_VALUES = 16
"""An ordered hyperparameter with at most so many values is searched value by value."""
_STEP = 0.1
"""Largest step, as a part of the range, of the local search over an ordered hyperparameter with many values."""


class MixedSpace:
    """Points of the unit cube that are configurations.

    Each hyperparameter is of one of three kinds: a float, which is optimised by gradients; an ordered one with values
    that have gaps (integers, ordinals), which is relaxed for the gradients if it has many values, and searched value by
    value; or a categorical one, which is only searched.

    Args:
        encoder: Maps configurations to points; its bounds hold.
        canonicalize: Maps a configuration to the one that stands for all that count as the same.
    """

    def __init__(
        self, encoder: SpaceEncoder, canonicalize: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> None:
        from sthyper.config_space import Categorical, Float, Ordinal, Quantized

        self.encoder = encoder
        self.canonicalize = canonicalize
        self.bounds = encoder.bounds  # (2, d)
        self.dim = encoder.ndarray_size
        lower, upper = self.bounds
        self.slices = list(encoder.slices.values())
        moving: list[int] = []
        self._tables: dict[int, Tensor] = {}  # hyperparameter -> points of all its values, (K, w)
        self._many: dict[int, Tensor] = {}  # hyperparameter -> steps
        for position, name in enumerate(encoder.internal_keys):
            domain, where = encoder.config_space[name], self.slices[position]
            first = where.start
            if not bool((upper[where] > lower[where]).any()):
                continue
            size = len(domain)
            if isinstance(domain, Float) and not isinstance(domain.sampler, Quantized):
                moving.append(first)
                continue
            categorical = isinstance(domain, Categorical) and not isinstance(domain, Ordinal)
            if categorical or 0 < size <= _FEW_VALUES:
                self._tables[position] = self._values(where, size, categorical)
            else:
                gap = (upper[first] - lower[first]) / max(size, 1)
                self._many[position] = torch.tensor([gap, -gap, _STEP, -_STEP], dtype=torch.float64)
            if not categorical and size > _FEW_VALUES:
                moving.append(first)
        self.moving = torch.tensor(moving, dtype=torch.long)
        self.has_discrete = bool(self._tables or self._many)

    def _values(self, where: slice, size: int, categorical: bool) -> Tensor:
        width = where.stop - where.start
        lower, upper = self.bounds[:, where]
        if width > 1:
            table = torch.eye(width, dtype=torch.float64)
            return table[upper > 0.5]
        grid = torch.linspace(0.0, 1.0, 64 * size + 1, dtype=torch.float64).clamp(lower, upper)
        points = torch.zeros(len(grid), self.dim, dtype=torch.float64)
        points[:, where] = grid.unsqueeze(-1)
        snapped = self.encoder.snap(points)[:, where]
        return torch.unique(snapped, dim=0)

    # ---- points --------------------------------------------------------------------------------------

    def snap(self, X: Tensor) -> Tensor:
        """Return the configurations' points that are nearest to points, shape (n, d)."""
        X = self.encoder.snap(torch.minimum(torch.maximum(X, self.bounds[0]), self.bounds[1]))
        if self.canonicalize is None:
            return X
        return self.points(self.encoder.decode(X))

    def from_uniform(self, U: Tensor) -> Tensor:
        """Return configurations' points, shape (n, d), from numbers in [0, 1], one a hyperparameter: shape (n, p)."""
        lower, upper = self.bounds
        X = torch.empty(len(U), self.dim, dtype=torch.float64)
        for position, where in enumerate(self.slices):
            u = U[:, position]
            table = self._tables.get(position)
            if table is not None:
                X[:, where] = table[(u * len(table)).long().clamp_max(len(table) - 1)]
            elif where.stop - where.start == 1:
                X[:, where.start] = lower[where.start] + u * (upper[where.start] - lower[where.start])
            else:  # a single category
                X[:, where] = lower[where]
        return self.snap(X)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n configurations' points that fill the space evenly: scrambled Sobol points, shape (n, d)."""
        p = len(self.slices)
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        engine = torch.quasirandom.SobolEngine(p, scramble=True, seed=seed)
        return self.from_uniform(engine.draw(n, dtype=torch.float64))

    def perturb(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Return n configurations' points around given ones.

        A random part of the hyperparameters, at least one of them, is changed: numbers by normal noise whose deviation
        is log-uniform between .003 and .3, others to any value.

        Args:
            X: The given points, shape (m, d).
            n: Number of points.
            generator: Source of the draws.
        """
        p = len(self.slices)
        centres = X[torch.randint(len(X), (n,), generator=generator)]
        change = torch.rand(n, p, generator=generator) < torch.rand(n, 1, generator=generator)
        change[torch.arange(n), torch.randint(p, (n,), generator=generator)] = True
        deviation = 10.0 ** (-2.5 + 2.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
        noise = torch.randn(n, p, generator=generator, dtype=torch.float64) * deviation
        fresh = self.from_uniform(torch.rand(n, p, generator=generator, dtype=torch.float64))
        result = centres.clone()
        for position, where in enumerate(self.slices):
            rows = change[:, position]
            if where.stop - where.start > 1 or self._unordered(position):
                result[rows, where] = fresh[rows, where]
            else:
                result[rows, where.start] += noise[rows, position]
        return self.snap(result)

    def _unordered(self, position: int) -> bool:
        from sthyper.config_space import Categorical, Ordinal

        domain = self.encoder.config_space[self.encoder.internal_keys[position]]
        return isinstance(domain, Categorical) and not isinstance(domain, Ordinal)

    def neighbours(self, x: Tensor) -> Tensor:
        """Return the points that differ from x, shape (d,), in one discrete hyperparameter; shape (m, d).

        Those of few values take every other value, the others a step of one value or of a tenth of the range.
        """
        found = []
        for position, table in self._tables.items():
            where = self.slices[position]
            others = table[(table != x[where]).any(-1)]
            moved = x.repeat(len(others), 1)
            moved[:, where] = others
            found.append(moved)
        for position, steps in self._many.items():
            where = self.slices[position]
            moved = x.repeat(len(steps), 1)
            moved[:, where.start] += steps
            found.append(moved)
        if not found:
            return x.new_empty(0, len(x))
        result = self.snap(torch.cat(found))
        return result[(result != x).any(-1)]

    # ---- configurations ------------------------------------------------------------------------------

    def config(self, x: Tensor) -> dict[str, Any]:
        """Return the configuration of a point, shape (d,), which must be one of a configuration."""
        return self.encoder.decode(x.unsqueeze(0))[0]

    def points(self, configs: list[Mapping[str, Any]]) -> Tensor:
        """Return the points of configurations, shape (n, d)."""
        if self.canonicalize is not None:
            configs = [self.canonicalize(dict(config)) for config in configs]
        return self.encoder.encode(configs)
