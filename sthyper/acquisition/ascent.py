"""Box-constrained L-BFGS from several starts at once, one batched evaluation a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ascend"]

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

_MEMORY = 6
_ARMIJO = 1e-4
_FIRST_STEP = 0.1
"""Largest coordinate of the first step, and of later ones along the gradient."""
_LARGEST_STEP = 0.5
_MOST_CUTS = 10
_TINY = 1e-300


def ascend(
    function: Callable[[Tensor], Tensor],
    starts: Tensor,
    lower: Tensor,
    upper: Tensor,
    max_evaluations: int,
    tolerance: float = 1e-3,
    least_gain: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Maximise a function in a box from each start.

    Each start has its own curvature pairs and step length, as if it were alone; only the evaluations are shared. At a
    bound, coordinates whose gradient points out of the box are held and left out of the curvature (two-metric
    projection).

    Args:
        function: Maps points, shape (m, d), to values, shape (m,), each of its own point only. Where it has no
            gradient, the starts stay where they are.
        starts: Shape (k, d), inside the box.
        lower: Lower bounds, shape (k, d). Columns with equal bounds do not move.
        upper: Upper bounds, shape (k, d).
        max_evaluations: Number of evaluations of the batch, at least 1.
        tolerance: A start is done when the projected gradient's largest coordinate is at most this.
        least_gain: A start is done when a step brings no more than this.

    Returns:
        The best points, shape (k, d), and their values, shape (k,).

    References:
        Bertsekas, "Projected Newton Methods for Optimization Problems with Simple Constraints", SIAM J. Control and
        Optimization 1982; Byrd, Nocedal and Schnabel, "Representations of Quasi-Newton Matrices and Their Use in
        Limited Memory Methods", Mathematical Programming 1994
    """
    columns = (upper > lower).any(0).nonzero().squeeze(-1)

    def evaluate(moving: Array, rows: Rows) -> tuple[Array, Array | None]:
        return _evaluate(function, starts[torch.from_numpy(rows)], columns, moving)

    # The algebra of a few short vectors is several times faster in numpy.
    low, high = lower[:, columns].cpu().numpy(), upper[:, columns].cpu().numpy()
    x = starts[:, columns].detach().cpu().numpy().copy()
    k = len(x)
    f, g = evaluate(x, np.arange(k))
    if g is None or not len(columns):
        return starts.detach().clone(), starts.new_tensor(-f)
    pairs = _Pairs(*x.shape)
    held = _held(x, g, low, high)
    p = pairs.directions(g, ~held, np.arange(k))
    t, cuts = np.ones(k), np.zeros(k, dtype=int)
    active = np.isfinite(f) & (np.abs(np.where(held, 0.0, g)).max(1) > tolerance)
    for _ in range(max_evaluations - 1):
        rows = active.nonzero()[0]
        if not len(rows):
            break
        x_new = np.clip(x[rows] + t[rows, None] * p[rows], low[rows], high[rows])
        f_new, g_new = evaluate(x_new, rows)
        assert g_new is not None
        step = x_new - x[rows]
        slope = (g[rows] * step).sum(1)
        gain = f[rows] - f_new
        good = gain >= -_ARMIJO * slope
        a, b = rows[good], rows[~good]
        if len(a):
            pairs.push(a, step[good], g_new[good] - g[a])
            x[a], f[a], g[a], t[a], cuts[a] = x_new[good], f_new[good], g_new[good], 1.0, 0
            held = _held(x[a], g[a], low[a], high[a])
            p[a] = pairs.directions(g[a], ~held, a)
            active[a] = (np.abs(np.where(held, 0.0, g[a])).max(1) > tolerance) & (gain[good] > least_gain)
        if len(b):
            # The minimum of the parabola through both values and the slope, within [1/10, 1/2] of the step.
            s, rise = slope[~good], -gain[~good]
            with np.errstate(invalid="ignore", divide="ignore"):
                factor = np.nan_to_num(-0.5 * s / (rise - s), nan=0.1)
            t[b] *= np.clip(factor, 0.1, 0.5)
            cuts[b] += 1
            active[b] = cuts[b] < _MOST_CUTS
    return _at(starts, columns, x), starts.new_tensor(-f)


class _Pairs:
    """Curvature pairs of k minimisations, the last ones of each at the end."""

    def __init__(self, k: int, d: int) -> None:
        self.s = np.zeros((k, _MEMORY, d))
        self.y = np.zeros((k, _MEMORY, d))
        self.used = 0

    def push(self, rows: Rows, s: Array, y: Array) -> None:
        self.used = min(self.used + 1, _MEMORY)
        for memory, new in ((self.s, s), (self.y, y)):
            memory[rows, :-1] = memory[rows, 1:]
            memory[rows, -1] = new

    def directions(self, g: Array, free: Mask, rows: Rows) -> Array:
        """Return descent directions of some minimisations with these gradients, zero where not free."""
        q = g * free
        steepest = _limited(-q, _FIRST_STEP)
        if not self.used:
            return steepest
        mask = free[:, None, :]
        S, Y = self.s[rows, -self.used :] * mask, self.y[rows, -self.used :] * mask
        sy, yy = (S * Y).sum(2), (Y * Y).sum(2)
        good = sy > 1e-10 * np.sqrt((S * S).sum(2) * yy)  # pairs of negative curvature, and missing ones, are out
        S, Y, sy = S * good[..., None], Y * good[..., None], sy * good
        last = self.used - 1 - good[:, ::-1].argmax(1)
        at = np.arange(len(rows))
        scale = sy[at, last] / np.maximum(yy[at, last], _TINY)  # 0 if there is no good pair
        # The inverse Hessian in compact form: scale I + [S, scale Y] M [S, scale Y]^T, by solves with R, the upper
        # triangle of S^T Y.
        R = np.triu(S @ Y.transpose(0, 2, 1))
        n = np.arange(self.used)
        R[:, n, n] += ~good
        u = np.linalg.solve(R, S @ q[..., None])
        inner = sy[..., None] * u + scale[:, None, None] * (Y @ (Y.transpose(0, 2, 1) @ u) - Y @ q[..., None])
        w = np.linalg.solve(R.transpose(0, 2, 1), inner)
        r = scale[:, None] * (q - (Y.transpose(0, 2, 1) @ u)[..., 0]) + (S.transpose(0, 2, 1) @ w)[..., 0]
        descends = (scale > 0) & ((r * q).sum(1) > 0)
        return np.where(descends[:, None], _limited(-r, _LARGEST_STEP), steepest)


def _limited(p: Array, largest: float) -> Array:
    """Return directions, shortened so that no coordinate is larger."""
    size = np.abs(p).max(1, keepdims=True)
    return p * np.minimum(largest / np.maximum(size, _TINY), 1.0)


def _held(x: Array, g: Array, lower: Array, upper: Array) -> Mask:
    return ((x <= lower) & (g >= 0)) | ((x >= upper) & (g <= 0))


def _at(points: Tensor, columns: Tensor, moving: Array) -> Tensor:
    return points.detach().index_copy(1, columns, torch.from_numpy(moving).to(points))


def _evaluate(
    function: Callable[[Tensor], Tensor], points: Tensor, columns: Tensor, moving: Array
) -> tuple[Array, Array | None]:
    """Return minus the function, infinite where it is NaN, and its gradient; ``None`` if there is none."""
    X = _at(points, columns, moving).requires_grad_(True)
    value = function(X)
    loss = _finite_or(-value.detach().cpu().numpy(), nan=np.inf, infinite=np.inf)
    if not value.requires_grad:
        return loss, None
    (gradient,) = torch.autograd.grad(value.sum(), X, allow_unused=True)
    if gradient is None:
        return loss, None
    return loss, _finite_or(-gradient[:, columns].cpu().numpy(), nan=0.0, infinite=0.0)


def _finite_or(values: Array, nan: float, infinite: float) -> Array:
    """Return numbers with others in place of NaN and of infinite ones; these have the sign of what they replace."""
    if np.isfinite(values).all():
        return values
    return np.nan_to_num(values, nan=nan, posinf=infinite, neginf=-infinite)
