"""The maximum of an acquisition function over configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from torch import Tensor

from sthyper.acquisition.ascent import ascend
from sthyper.acquisition.space import MixedSpace

__all__ = ["Candidate", "OptimizerOptions", "optimize_acquisition", "rank_candidates"]

_APART = 0.02
"""Starts of the local search are at least so far apart, in the largest coordinate."""
_ALIKE = 2
"""So many starts may have the same values of the discrete hyperparameters."""
_SHORT = 5
"""Evaluations of the gradient search between two searches over the discrete hyperparameters."""
_SWEEPS = 2
"""Steps of the search over the discrete hyperparameters between two gradient searches."""
_NUM_FRESH = 256
_FRESH_PARENTS = 4
"""After the first round the numbers of so many points are drawn anew, that many in all ..."""
_FRESH_STARTS = 4
"""... and so many of the results join the others."""
_NUM_EXPLORED = 12
"""So many neighbours of the best point are moved by gradients before they are compared with it."""
_CHUNK = 4096
"""Points that are evaluated at once."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How an acquisition function is optimised.

    Args:
        num_candidates: Number of points that fill the space evenly.
        num_local_candidates: Number of points around the incumbents.
        num_enumerated: A space with at most so many configurations is looked at completely. Default is the number of
            candidates of both kinds.
        num_starts: Number of the best of them from which the gradient search starts.
        num_discrete_starts: The same, if larger, for spaces with categorical hyperparameters, or others of few values:
            from so many points the search over their values starts, and of what it finds the ``num_starts`` best are
            refined, and one more for every eight of these points.
        max_iterations: Evaluations of the gradient search, each for all starts at once; 0 for none.
        max_rounds: Rounds of the local search over discrete hyperparameters; 0 for none.

    Raises:
        ValueError: If a value is out of range.
    """

    num_candidates: int = 256
    num_local_candidates: int = 256
    num_enumerated: int | None = None
    num_starts: int = 3
    num_discrete_starts: int = 16
    max_iterations: int = 20
    max_rounds: int = 4

    def __post_init__(self) -> None:
        for name, least in (
            ("num_candidates", 2),
            ("num_local_candidates", 0),
            ("num_starts", 1),
            ("num_discrete_starts", 0),
            ("max_iterations", 0),
            ("max_rounds", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        if self.num_enumerated is not None and self.num_enumerated < 0:
            raise ValueError(f"num_enumerated must be at least 0, got {self.num_enumerated!r}")


@dataclass(frozen=True)
class Candidate:
    """A configuration that was found.

    Args:
        x: Its point, shape (d,).
        value: Acquisition function there.
        origin: Which part of the search found it: ``"global"``, ``"local"``, ``"gradient"`` or ``"discrete"``.
    """

    x: Tensor
    value: float
    origin: str


def optimize_acquisition(
    acquisition: AcquisitionFunction,
    space: MixedSpace,
    incumbents: Tensor,
    generator: torch.Generator,
    options: OptimizerOptions | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    allowed: Callable[[Tensor], bool] | None = None,
) -> list[Candidate]:
    """Return good configurations, the best one first.

    Points that fill the space and points around the incumbents are scored. From the best ones a box-constrained L-BFGS
    moves the numbers, in spaces with discrete hyperparameters by turns with a local search over their values; at last
    the results become configurations, and their ordered values are searched once more.

    Args:
        acquisition: Acquisition function; high is good.
        space: The space.
        incumbents: Points of good configurations, shape (m, d), m possibly 0.
        generator: Source of all draws.
        options: Sizes of the search.
        score: Ranks the candidates, points of shape (n, d) to (n,), high is good; the acquisition function by default.
        allowed: Whether a configuration's point, shape (d,), may be suggested. Starts are taken from those that may,
            and the discrete search keeps to them.
    """
    options = OptimizerOptions() if options is None else options
    both = options.num_candidates + options.num_local_candidates
    every = space.every_point(both if options.num_enumerated is None else options.num_enumerated)
    if every is not None:
        X, n_global = every, len(every)
    else:
        X = space.sample(options.num_candidates, generator)
        n_global = len(X)
        if options.num_local_candidates and len(incumbents):
            X = torch.cat([X, space.perturb(incumbents, options.num_local_candidates, generator)])
    ranked = rank_candidates(acquisition, X, score)
    starts = _starts(space, X, ranked.order.tolist(), options, allowed)
    candidates = [
        Candidate(x, value, "global" if i < n_global else "local")
        for i, x, value in zip(
            ranked.order.tolist(), X[ranked.order].unbind(), ranked.values[ranked.order].tolist(), strict=True
        )
    ]
    if not starts or every is not None or not (options.max_iterations or options.max_rounds):
        return candidates
    pool = _Pool.of(X[starts], ranked.values[starts])
    search = _LocalSearch(acquisition, space, generator, allowed)
    if space.has_listed and options.max_rounds:
        for number in range(options.max_rounds):
            if options.max_iterations:
                pool = search.ascend(pool, _SHORT)
            pool, moved = search.swap(pool, _SWEEPS, relaxed=True)
            pool = _apart(pool)
            if number == 0 and len(space.moving):
                pool = _apart(search.redraw(pool, options))
            elif not moved:
                break
        if options.max_iterations and len(space.moving):
            pool = _apart(search.explore(pool))
        pool = pool.best(options.num_starts + options.num_discrete_starts // 8)
    if options.max_iterations:
        pool = search.ascend(pool, options.max_iterations)
    pool = search.snap(pool)
    if space.has_discrete and options.max_rounds:
        pool, _ = search.swap(pool, options.max_rounds, relaxed=False)
    refined = [
        Candidate(x, v, "discrete" if swapped else "gradient")
        for x, v, swapped in zip(pool.X, pool.values.tolist(), pool.swapped.tolist(), strict=True)
    ]
    # All scored candidates follow, in case the refined ones must not be suggested; the starts may be better than what
    # came of them, as numbers were rounded to configurations.
    taken = set(starts)
    first: list[Candidate] = []
    rest: list[Candidate] = []
    for i, candidate in zip(ranked.order.tolist(), candidates, strict=True):
        (first if i in taken else rest).append(candidate)
    return sorted([*first, *refined], key=lambda c: -c.value) + rest


@dataclass(frozen=True)
class Ranking:
    """Scored points.

    Args:
        values: Acquisition function, shape (n,).
        order: Positions by decreasing score.
    """

    values: Tensor
    order: Tensor


def rank_candidates(
    acquisition: AcquisitionFunction, X: Tensor, score: Callable[[Tensor], Tensor] | None = None
) -> Ranking:
    """Return acquisition values and the order of points, shape (n, d), by a score or by the values themselves."""
    values = _values(acquisition, X)
    with torch.no_grad():
        scores = values if score is None else score(X)
    scores = torch.nan_to_num(scores, nan=-torch.inf)
    return Ranking(values, torch.argsort(scores, descending=True, stable=True))


def _values(acquisition: AcquisitionFunction, X: Tensor) -> Tensor:
    """Return acquisition values, shape (n,), of points of shape (n, d); those that are NaN become -inf."""
    with torch.no_grad():
        values = torch.cat([acquisition(part.unsqueeze(-2)) for part in torch.split(X, _CHUNK)])
    return torch.nan_to_num(values, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _starts(
    space: MixedSpace,
    X: Tensor,
    order: list[int],
    options: OptimizerOptions,
    allowed: Callable[[Tensor], bool] | None,
) -> list[int]:
    """Return the positions of the best points that may be suggested and are not too alike."""
    discrete = space.has_listed and options.max_rounds > 0
    wanted = max(options.num_starts, options.num_discrete_starts) if discrete else options.num_starts
    fixed = torch.ones(space.dim, dtype=torch.bool)
    fixed[space.moving] = False
    alike: dict[bytes, int] = {}
    starts: list[int] = []
    for index in order:
        x = X[index]
        key = x[fixed].numpy().tobytes() if discrete else b""
        if discrete and alike.get(key, 0) >= _ALIKE:
            continue
        if starts and bool(((X[starts] - x).abs().amax(-1) < _APART).any()):
            continue
        if allowed is not None and not allowed(x):
            continue
        starts.append(index)
        alike[key] = alike.get(key, 0) + 1
        if len(starts) == wanted:
            break
    return starts


@dataclass(frozen=True)
class _Pool:
    """Points of the local search, shape (k, d), with their values and whether discrete values were changed."""

    X: Tensor
    values: Tensor
    swapped: Tensor

    @classmethod
    def of(cls, X: Tensor, values: Tensor) -> _Pool:
        return cls(X, values, torch.zeros(len(X), dtype=torch.bool))

    def take(self, rows: Tensor | list[int]) -> _Pool:
        return _Pool(self.X[rows], self.values[rows], self.swapped[rows])

    def join(self, other: _Pool) -> _Pool:
        return _Pool(
            torch.cat([self.X, other.X]),
            torch.cat([self.values, other.values]),
            torch.cat([self.swapped, other.swapped]),
        )

    def best(self, k: int) -> _Pool:
        return self.take(torch.argsort(self.values, descending=True, stable=True)[:k])


def _apart(pool: _Pool) -> _Pool:
    """Leave out points that are close to better ones."""
    kept: list[int] = []
    for i in torch.argsort(pool.values, descending=True, stable=True).tolist():
        if not kept or bool(((pool.X[kept] - pool.X[i]).abs().amax(-1) >= _APART).all()):
            kept.append(i)
    return pool.take(kept)


class _LocalSearch:
    """Improves all points of a pool at once."""

    def __init__(
        self,
        acquisition: AcquisitionFunction,
        space: MixedSpace,
        generator: torch.Generator,
        allowed: Callable[[Tensor], bool] | None,
    ) -> None:
        self.acquisition, self.space, self.generator, self.allowed = acquisition, space, generator, allowed

    def ascend(self, pool: _Pool, max_evaluations: int) -> _Pool:
        """Move the numbers along gradients."""
        if not len(self.space.moving):
            return pool
        lower, upper = self.space.box(pool.X)
        X, values = ascend(lambda x: self.acquisition(x.unsqueeze(-2)), pool.X, lower, upper, max_evaluations)
        return _Pool(X, values, pool.swapped)

    def redraw(self, pool: _Pool, options: OptimizerOptions) -> _Pool:
        """Add points with the discrete values of the best ones and other numbers."""
        parents = pool.best(_FRESH_PARENTS)
        X = self.space.redraw(parents.X, _NUM_FRESH // len(parents.X), self.generator)
        swapped = parents.swapped.repeat_interleave(_NUM_FRESH // len(parents.X))
        values = _values(self.acquisition, X)
        order = torch.argsort(values, descending=True, stable=True).tolist()
        chosen = _starts(self.space, X, order, replace(options, num_starts=_FRESH_STARTS, num_discrete_starts=0), None)
        return pool.join(_Pool(X, values, swapped).take(chosen))

    def explore(self, pool: _Pool) -> _Pool:
        """Add neighbours of the best point, moved along their own gradients."""
        around, _ = self.space.neighbours(pool.best(1).X, self.generator, relaxed=True)
        if not len(around):
            return pool
        near = _Pool(around, _values(self.acquisition, around), torch.ones(len(around), dtype=torch.bool))
        near = near.best(len(around))
        chosen = (i for i, x in enumerate(near.X) if self.allowed is None or self.allowed(x))
        near = near.take(list(islice(chosen, _NUM_EXPLORED)))
        return pool.join(self.ascend(near, _SHORT + 1)) if len(near.X) else pool

    def snap(self, pool: _Pool) -> _Pool:
        """Go to the nearest configurations."""
        X = self.space.snap(pool.X)
        return _Pool(X, _values(self.acquisition, X), pool.swapped)

    def swap(self, pool: _Pool, sweeps: int, relaxed: bool) -> tuple[_Pool, bool]:
        """Go to the best neighbours, while there are better ones; return whether any point has moved."""
        X, values, swapped = pool.X.clone(), pool.values.clone(), pool.swapped.clone()
        rows = torch.arange(len(X))
        moved = False
        for _ in range(sweeps):
            points, owner = self.space.neighbours(X[rows], self.generator, relaxed)
            if not len(points):
                break
            found = _values(self.acquisition, points)
            left = []
            for i, row in enumerate(rows.tolist()):
                own = (owner == i).nonzero().squeeze(-1)
                own = own[found[own] > values[row]]
                for j in own[torch.argsort(found[own], descending=True, stable=True)].tolist():
                    if self.allowed is None or self.allowed(points[j]):
                        X[row], values[row], swapped[row] = points[j], found[j], True
                        left.append(row)
                        break
            if not left:
                break
            moved, rows = True, torch.tensor(left)
        return _Pool(X, values, swapped), moved
