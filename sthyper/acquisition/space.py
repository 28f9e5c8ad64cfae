"""The space over which an acquisition function is optimised: numbers that move, and values that are swapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

if TYPE_CHECKING:
    from sthyper.encoding import SpaceEncoder

__all__ = ["MixedSpace"]

_FEW_VALUES = 16
"""An ordered hyperparameter with at most so many values is searched value by value."""
_STEP = 0.1
"""Largest step, as a part of the range, of the local search over an ordered hyperparameter with many values."""
_MOST_NEIGHBOURS = 64
"""Of a hyperparameter with more values so many random ones are looked at in a step of the local search."""
_ELSEWHERE = 0.381966
"""Part of the range by which a number is moved to see whether it is active."""


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
        sizes: list[int] = []  # numbers of values, 0 for infinitely many
        varying: list[int] = []
        self._tables: dict[int, Tensor] = {}  # hyperparameter -> points of all its values, (K, w)
        self._many: dict[int, Tensor] = {}  # hyperparameter -> steps
        self._unordered: set[int] = set()
        for position, name in enumerate(encoder.internal_keys):
            domain, where = encoder.config_space[name], self.slices[position]
            first = where.start
            if not bool((upper[where] > lower[where]).any()):
                sizes.append(1)
                continue
            varying.append(position)
            if isinstance(domain, Float) and not isinstance(domain.sampler, Quantized):
                moving.append(first)
                sizes.append(0)
                continue
            size = len(domain)
            categorical = isinstance(domain, Categorical) and not isinstance(domain, Ordinal)
            if categorical:
                self._unordered.add(position)
            if categorical or size <= _FEW_VALUES:
                self._tables[position] = self._values(where, size)
                sizes.append(len(self._tables[position]))
            else:
                # Scales that are not linear have gaps of all sizes.
                gap = float(upper[first] - lower[first]) / size
                steps = [gap * 4.0**i for i in range(32) if gap * 4.0**i < _STEP] + [_STEP]
                self._many[position] = torch.tensor([*steps, *(-step for step in steps)], dtype=torch.float64)
                moving.append(first)
                sizes.append(size)
        self.moving = torch.tensor(moving, dtype=torch.long)
        """Columns of the hyperparameters that gradients move."""
        self.has_discrete = bool(self._tables or self._many)
        """Whether there are hyperparameters whose values have gaps."""
        self.has_listed = bool(self._tables)
        """Whether there are categorical hyperparameters, or others of few values."""
        self._varying = torch.tensor(varying, dtype=torch.long)
        self._size = math.prod(sizes)
        # Where some categories are not active, the others win when all columns are equal.
        narrow = [w for w in self.slices if w.stop - w.start > 1 and bool((upper[w] < 1.0).any())]
        self._preference = torch.zeros(self.dim, dtype=torch.float64) if narrow else None
        for where in narrow:
            assert self._preference is not None
            self._preference[where] = 1e-9 * upper[where]
        self._wide = torch.zeros(self.dim, dtype=torch.bool)
        for where in narrow:
            self._wide[where] = True

    def _values(self, where: slice, size: int) -> Tensor:
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
        X = torch.minimum(torch.maximum(X, self.bounds[0]), self.bounds[1])
        if self._preference is not None:
            # Halved, so that the preference is not clipped at 1.
            X = torch.where(self._wide, 0.5 * X + self._preference, X)
        X = self.encoder.snap(X)
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
        return self.from_uniform(_sobol(len(self.slices), n, generator))

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
        if len(self._varying):
            one = self._varying[torch.randint(len(self._varying), (n,), generator=generator)]
            change[torch.arange(n), one] = True
        deviation = 10.0 ** (-2.5 + 2.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
        noise = torch.randn(n, p, generator=generator, dtype=torch.float64) * deviation
        fresh = self.from_uniform(torch.rand(n, p, generator=generator, dtype=torch.float64))
        result = centres.clone()
        for position, where in enumerate(self.slices):
            rows = change[:, position]
            if where.stop - where.start > 1 or position in self._unordered:
                result[rows, where] = fresh[rows, where]
            else:
                result[rows, where.start] += noise[rows, position]
        return self.snap(result)

    def redraw(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Return n points for each of k ones that differ in the numbers that move, shape (k n, d).

        Args:
            X: Points, shape (k, d).
            n: Number of points for each.
            generator: Source of the draws.
        """
        result = X.repeat_interleave(n, 0)
        lower, upper = self.box(X)
        low, high = lower[:, self.moving].repeat_interleave(n, 0), upper[:, self.moving].repeat_interleave(n, 0)
        result[:, self.moving] = low + (high - low) * _sobol(len(self.moving), len(result), generator)
        return result

    def every_point(self, limit: int) -> Tensor | None:
        """Return the points of all configurations, shape (n, d); ``None`` if there are more than ``limit``."""
        if not 0 < self._size <= limit:
            return None
        X = self.bounds[0].unsqueeze(0)
        for position, where in enumerate(self.slices):
            table = self._tables.get(position)
            if position in self._many:
                table = self._values(where, len(self.encoder.config_space[self.encoder.internal_keys[position]]))
            if table is not None:
                count = len(X)
                X = X.repeat_interleave(len(table), 0)
                X[:, where] = table.repeat(count, 1)
        X = self.snap(X)
        return X if self.canonicalize is None else torch.unique(X, dim=0)

    def neighbours(
        self, X: Tensor, generator: torch.Generator | None = None, relaxed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the points that differ from given ones in one discrete hyperparameter.

        Those of few values, and categorical ones, take every other value, at most 64 random ones; the others make
        steps of about one value up to a tenth of the range.

        Args:
            X: Points, shape (k, d).
            generator: Source of the draws of values where there are more than 64; the first ones without it.
            relaxed: Whether numbers between the values are left as they are: only hyperparameters of few values and
                categorical ones are changed.

        Returns:
            The points, shape (m, d), and for each the position of the one of which it is a neighbour, shape (m,).
        """
        found, owners = [], []
        rows = torch.arange(len(X))
        for position, table in self._tables.items():
            where = self.slices[position]
            if len(table) > _MOST_NEIGHBOURS:
                order = (
                    torch.arange(len(table)) if generator is None else torch.randperm(len(table), generator=generator)
                )
                table = table[order[:_MOST_NEIGHBOURS]]
            other = (table.unsqueeze(0) != X[:, where].unsqueeze(1)).any(-1)  # (k, K)
            owner, value = other.nonzero(as_tuple=True)
            moved = X[owner]
            moved[:, where] = table[value]
            found.append(moved)
            owners.append(owner)
        if not relaxed:
            for position, steps in self._many.items():
                owner = rows.repeat_interleave(len(steps))
                moved = X[owner]
                moved[:, self.slices[position].start] += steps.repeat(len(X))
                found.append(moved)
                owners.append(owner)
        if not found:
            return X.new_empty(0, self.dim), rows[:0]
        points, owner = torch.cat(found), torch.cat(owners)
        if not relaxed or self.canonicalize is not None:
            points = self.snap(points)
            differs = (points != X[owner]).any(-1)
            points, owner = points[differs], owner[differs]
        return points, owner

    def box(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds within which gradients may move points, both of the shape (k, d) of the points.

        All columns but :attr:`moving` are fixed, and so are those that ``canonicalize`` sets back.
        """
        lower, upper = X.clone(), X.clone()
        low, high = self.bounds[:, self.moving]
        lower[:, self.moving], upper[:, self.moving] = low.expand(len(X), -1), high.expand(len(X), -1)
        if self.canonicalize is not None and len(self.moving):
            for column in self.moving.tolist():
                elsewhere = X.clone()
                start, stop = self.bounds[:, column]
                part = (X[:, column] - start) / (stop - start)
                elsewhere[:, column] = start + (part + _ELSEWHERE).remainder(1.0) * (stop - start)
                idle = self.snap(elsewhere)[:, column] == self.snap(X)[:, column]
                lower[idle, column] = upper[idle, column] = X[idle, column]
        return lower, upper

    # ---- configurations ------------------------------------------------------------------------------

    def config(self, x: Tensor) -> dict[str, Any]:
        """Return the configuration of a point, shape (d,), which must be one of a configuration."""
        return self.encoder.decode(x.unsqueeze(0))[0]

    def points(self, configs: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the points of configurations, shape (n, d)."""
        if self.canonicalize is not None:
            configs = [self.canonicalize(dict(config)) for config in configs]
        return self.encoder.encode(configs)


def _sobol(p: int, n: int, generator: torch.Generator) -> Tensor:
    """Return n scrambled Sobol points of the unit cube of p dimensions, independent ones where there are too many."""
    if not 0 < p <= SobolEngine.MAXDIM:
        return torch.rand(n, p, generator=generator, dtype=torch.float64)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    engine = SobolEngine(p, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    return engine.draw(n, dtype=torch.float64)
