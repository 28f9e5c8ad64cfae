"""MAP fits: bounded L-BFGS from several starts, with one thread for BLAS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FitResult", "minimize_bounded", "single_threaded_blas", "single_threaded_torch"]

logger = logging.getLogger(__name__)


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


@cache
def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next matrices; page faults took a quarter of a fit's time.

    It returns the top of the heap above a limit that grows with the largest block that was ever freed. This one is
    never touched.
    """
    torch.empty(16 * 2**20, dtype=torch.uint8)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit numpy's and scipy's BLAS to one thread: the many tiny products of L-BFGS-B stall on a busy machine else."""
    with _pools().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Run torch on one thread: for matrices of some hundred rows more of them cost more than they bring."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class FitResult:
    """The best of several minimisations.

    Args:
        theta: The minimum, shape (p,).
        value: The objective there.
        evaluations: Number of evaluations in all.
    """

    theta: Tensor
    value: float
    evaluations: int


def minimize_bounded(
    objective: Callable[[Tensor], Tensor],
    starts: Sequence[Tensor],
    lower: Tensor,
    upper: Tensor,
    max_iterations: Sequence[int],
    tolerance: float = 1e-6,
    verbose: bool = False,
) -> FitResult | None:
    """Minimise a function from several starts within a box, by L-BFGS-B.

    A run in which the function cannot be evaluated ends with the best point until then. A start at which it cannot be
    evaluated is passed over with a log line.

    Args:
        objective: Maps a vector of shape (p,) to a 0-d tensor, by operations that autograd knows.
        starts: Vectors of shape (p,).
        lower: Lower bounds, shape (p,), possibly infinite.
        upper: Upper bounds.
        max_iterations: Number of iterations of each start.
        tolerance: Largest component of the projected gradient at which a run ends.
        verbose: Whether to log each run at level INFO.

    Returns:
        The best minimum, ``None`` if there is none from any start.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    bounds = list(zip(lower.tolist(), upper.tolist(), strict=True))
    count = 0
    lowest: tuple[float, np.ndarray] | None = None  # of this run

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal count, lowest
        count += 1
        theta = torch.from_numpy(x.copy()).requires_grad_(True)
        value = objective(theta)
        (gradient,) = torch.autograd.grad(value, theta)
        result = float(value.detach())
        if not np.isfinite(result):
            raise ValueError("the objective is not finite")
        if lowest is None or result < lowest[0]:
            lowest = (result, x.copy())
        return result, gradient.numpy()

    _keep_freed_memory()
    best: tuple[float, np.ndarray] | None = None
    with single_threaded_blas(), single_threaded_torch():
        for number, (start, iterations) in enumerate(zip(starts, max_iterations, strict=True)):
            first, lowest = count, None
            try:
                result = minimize(
                    value_and_gradient,
                    start.detach().numpy(),
                    jac=True,
                    method="L-BFGS-B",
                    bounds=bounds,
                    options={"maxiter": iterations, "gtol": tolerance},
                )
            except ValueError as error:
                if lowest is None:
                    logger.warning("a start of the fit was given up: %s", error)
                elif best is None or lowest[0] < best[0]:
                    best = lowest
                continue
            if verbose:
                logger.info(
                    "fit from start %d: %.6g after %d evaluations (%s)",
                    number,
                    result.fun,
                    count - first,
                    result.message,
                )
            if np.isfinite(result.fun) and (best is None or result.fun < best[0]):
                best = (float(result.fun), result.x)
    if best is None:
        return None
    return FitResult(torch.from_numpy(best[1].copy()), best[0], count)
