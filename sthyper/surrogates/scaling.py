"""Inputs of a kernel: columns that are warped and divided by their lengthscales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sthyper.surrogates.warping import Warping, kumaraswamy

__all__ = ["Columns", "scaled_columns"]


@dataclass(frozen=True)
class Columns:
    """The columns of one factor of a kernel, the warped ones first: their order makes no difference to a distance.

    Args:
        warped: The columns that are warped, shape (w,).
        plain: The others.
        positions: Positions of the warped ones among all warped columns of the kernel, shape (w,).
        scales: For each column the position of its lengthscale, shape (d_i,).
        weights: Factor of each column, shape (d_i,).
        root: Whether columns are divided by the root of the lengthscale.
    """

    warped: Tensor
    plain: Tensor
    positions: Tensor
    scales: Tensor
    weights: Tensor
    root: bool

    @classmethod
    def of(
        cls, columns: Sequence[int], scales: Sequence[int], weights: Sequence[float], warped: list[int], root: bool
    ) -> Columns:
        """Return columns in this order, given which of all columns are warped."""
        order = sorted(range(len(columns)), key=lambda i: columns[i] not in warped)
        ordered = [columns[i] for i in order]
        first = [c for c in ordered if c in warped]
        return cls(
            torch.tensor(first, dtype=torch.long),
            torch.tensor([c for c in ordered if c not in warped], dtype=torch.long),
            torch.tensor([warped.index(c) for c in first], dtype=torch.long),
            torch.tensor([scales[i] for i in order], dtype=torch.long),
            torch.tensor([weights[i] for i in order], dtype=torch.float64),
            root,
        )

    def to(self, device: torch.device) -> Columns:
        """Return the columns with their tensors on a device."""
        if self.weights.device == device:
            return self
        tensors = (f.name for f in fields(self) if f.name != "root")
        return Columns(**{name: getattr(self, name).to(device) for name in tensors}, root=self.root)


def scaled_columns(
    X: Tensor, lengthscale: Tensor, a: Tensor, b: Tensor, columns: Columns, inverse: bool = False
) -> Tensor:
    """Return warped and scaled columns, shape ``batch x n x d_i``.

    Args:
        X: Inputs, shape ``batch x n x d``.
        lengthscale: Lengthscales, shape ``batch' x m``; the batches are broadcast.
        a: Exponents of all warped columns, shape ``batch' x w``.
        b: Exponents of all warped columns, as ``a``.
        columns: The columns, on the device of ``X``.
        inverse: Whether the lengthscales are given as their inverses.
    """
    if X.dim() == 2 and lengthscale.dim() == 1:
        return _Scaled.apply(X, lengthscale, a, b, columns, inverse)  # type: ignore[no-untyped-call]
    s = _scales(lengthscale[..., columns.scales], columns, inverse).unsqueeze(-2)
    split = len(columns.warped)
    if not split:
        return X[..., columns.plain] * s
    own_a, own_b = a[..., columns.positions].unsqueeze(-2), b[..., columns.positions].unsqueeze(-2)
    w = kumaraswamy(X[..., columns.warped], own_a, own_b) * s[..., :split]
    return torch.cat([w, X[..., columns.plain] * s[..., split:]], -1) if len(columns.plain) else w


def _scales(lengthscale: Tensor, columns: Columns, inverse: bool) -> Tensor:
    s = lengthscale if inverse else lengthscale.reciprocal()
    return (s.sqrt() if columns.root else s) * columns.weights


class _Scaled(torch.autograd.Function):
    """The same without a batch: one step for autograd in place of some twenty, which a fit or a search of a small model
    would mostly consist of."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, lengthscale: Tensor, a: Tensor, b: Tensor, columns: Columns, inverse: bool) -> Any:
        own, num_warped = lengthscale[columns.scales], len(a)
        s = _scales(own, columns, inverse)
        warping = None
        if len(columns.warped):
            a, b = a[columns.positions], b[columns.positions]
            warping = Warping.of(X[:, columns.warped], a, b)
            parts = [warping.value, X[:, columns.plain]]
            w = torch.cat(parts, -1) if len(columns.plain) else warping.value
        else:
            w = X[:, columns.plain]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(own, a, b, s, w, *(() if warping is None else warping.saved))
            ctx.columns, ctx.inverse = columns, inverse
            ctx.shape_of_inputs, ctx.num_lengthscales, ctx.num_warped = X.shape, len(lengthscale), num_warped
        return w * s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        own, a, b, s, w, *saved = ctx.saved_tensors
        columns: Columns = ctx.columns
        by_X, by_lengthscale, by_a, by_b = ctx.needs_input_grad[:4]
        d_X = d_lengthscale = d_a = d_b = None
        split = len(columns.warped)
        d_w = grad * s
        warping = Warping(w[:, :split], tuple(saved)) if split else None
        if by_X:
            d_X = grad.new_zeros(ctx.shape_of_inputs)
            if len(columns.plain):
                d_X[:, columns.plain] = d_w[:, split:]
            if warping is not None:
                d_X[:, columns.warped] = warping.by_inputs(d_w[:, :split], a, b)
        if by_lengthscale:
            # Of c l^p the derivative is p c l^p / l.
            power = (0.5 if columns.root else 1.0) * (1.0 if ctx.inverse else -1.0)
            each = (grad * w).sum(0) * s / own * power
            d_lengthscale = grad.new_zeros(ctx.num_lengthscales).index_add_(0, columns.scales, each)
        if by_a or by_b:
            d_a, d_b = grad.new_zeros(2, ctx.num_warped)
            if warping is not None:
                own_a, own_b = warping.by_exponents(d_w[:, :split], b)
                d_a[columns.positions], d_b[columns.positions] = own_a, own_b
        return d_X, d_lengthscale, d_a, d_b, None, None
