"""The maximum of an acquisition function over configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from sthyper.acquisition.space import MixedSpace

__all__ = ["Candidate", "OptimizerOptions", "optimize_acquisition", "rank_candidates"]

_APART = 0.02
"""Starts of the gradient search are at least so far apart, in the largest coordinate."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How an acquisition function is optimised.

    Args:
        num_candidates: Number of points that fill the space evenly.
        num_local_candidates: Number of points around the incumbents.
        num_starts: Number of the best of them from which the local searches start.
        max_iterations: L-BFGS iterations; 0 for none.
        max_rounds: Rounds of the local search over discrete hyperparameters; 0 for none.

    Raises:
        ValueError: If a value is out of range.
    """

    num_candidates: int = 256
    num_local_candidates: int = 256
    num_starts: int = 3
    max_iterations: int = 15
    max_rounds: int = 4

    def __post_init__(self) -> None:
        for name, least in (
            ("num_candidates", 2),
            ("num_local_candidates", 0),
            ("num_starts", 1),
            ("max_iterations", 0),
            ("max_rounds", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")


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

    Points that fill the space and points around the incumbents are scored; from the best ones, bounded L-BFGS moves
    the numbers, the result becomes the nearest configuration, and a local search goes over the discrete
    hyperparameters, with a last gradient search where it has moved.

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
    X = space.sample(options.num_candidates, generator)
    n_global = len(X)
    if options.num_local_candidates and len(incumbents):
        X = torch.cat([X, space.perturb(incumbents, options.num_local_candidates, generator)])
    ranked = rank_candidates(acquisition, X, score)
    starts: list[int] = []
    for index in ranked.order.tolist():
        x = X[index]
        if allowed is not None and not allowed(x):
            continue
        if all(float((x - X[other]).abs().max()) >= _APART for other in starts):
            starts.append(index)
        if len(starts) == options.num_starts:
            break
    if not starts:
        return []
    found = [Candidate(X[i], float(ranked.values[i]), "global" if i < n_global else "local") for i in starts]
    moved = _by_gradient(acquisition, space, X[starts], options.max_iterations)
    refined = list(found)
    if moved is not None:
        refined += [Candidate(x, v, "gradient") for x, v in zip(*moved, strict=True)]
    if space.has_discrete and options.max_rounds:
        pool = refined[len(found) :] or found
        best = max(pool, key=lambda c: c.value)
        climbed = [c for c in (_by_swaps(acquisition, space, c, options.max_rounds, allowed) for c in pool) if c]
        refined += climbed
        again = [c for c in climbed if c.value > best.value]
        if again and options.max_iterations:
            top = max(again, key=lambda c: c.value)
            last = _by_gradient(acquisition, space, top.x.unsqueeze(0), options.max_iterations)
            if last is not None:
                refined += [Candidate(x, v, "gradient") for x, v in zip(*last, strict=True)]
    # All scored candidates follow, in case the refined ones must not be suggested.
    refined.sort(key=lambda c: -c.value)
    taken = set(starts)
    rest = [
        Candidate(X[i], float(ranked.values[i]), "global" if i < n_global else "local")
        for i in ranked.order.tolist()
        if i not in taken
    ]
    return refined + rest


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
    with torch.no_grad():
        values = acquisition(X.unsqueeze(-2))
        scores = values if score is None else score(X)
    scores = torch.nan_to_num(scores, nan=-torch.inf)
    return Ranking(values, torch.argsort(scores, descending=True, stable=True))


def _by_gradient(
    acquisition: AcquisitionFunction, space: MixedSpace, starts: Tensor, max_iterations: int
) -> tuple[Tensor, list[float]] | None:
    """Move the numbers of all starts together; return the nearest configurations and their values."""
    columns = space.moving
    if not max_iterations or not len(columns):
        return None
    from scipy.optimize import minimize

    from sthyper.surrogates.fit import single_threaded_blas

    shape = (len(starts), len(columns))
    bounds = list(zip(*(space.bounds[i, columns].repeat(len(starts)).tolist() for i in (0, 1)), strict=True))

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        moving = torch.from_numpy(flat.reshape(shape)).requires_grad_(True)
        X = starts.index_copy(1, columns, moving)
        loss = -acquisition(X.unsqueeze(-2)).sum()
        if not loss.requires_grad:  # a model without gradients
            return float(loss), np.zeros(flat.shape)
        (gradient,) = torch.autograd.grad(loss, moving, allow_unused=True)
        value = float(loss.detach())
        if gradient is None or not np.isfinite(value):
            return (value if np.isfinite(value) else 1e300), np.zeros(flat.shape)
        return value, torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0).reshape(-1).numpy()

    with single_threaded_blas():
        result = minimize(
            value_and_gradient,
            starts[:, columns].reshape(-1).numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": max_iterations},
        )
    X = space.snap(starts.index_copy(1, columns, torch.from_numpy(result.x.reshape(shape).copy())))
    with torch.no_grad():
        return X, acquisition(X.unsqueeze(-2)).tolist()


def _by_swaps(
    acquisition: AcquisitionFunction,
    space: MixedSpace,
    start: Candidate,
    max_rounds: int,
    allowed: Callable[[Tensor], bool] | None,
) -> Candidate | None:
    """Go to the best neighbour that differs in a discrete hyperparameter, while there is a better one."""
    x, value, moved = start.x, start.value, False
    for _ in range(max_rounds):
        around = space.neighbours(x)
        if not len(around):
            break
        ranked = rank_candidates(acquisition, around)
        index = next((i for i in ranked.order.tolist() if allowed is None or allowed(around[i])), None)
        if index is None or not float(ranked.values[index]) > value:
            break
        x, value, moved = around[index], float(ranked.values[index]), True
    return Candidate(x, value, "discrete") if moved else None
