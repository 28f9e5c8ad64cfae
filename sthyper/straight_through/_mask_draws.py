"""The functions behind masks: samples that cost little on a CPU, and thresholds, both with straight-through gradients.

``torch.bernoulli`` takes 12 ns a number on a CPU, longer than a linear layer needs for its products at a common batch
size, so that masks are drawn by comparison with uniform numbers that are cheaper than those of ``torch.rand``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sthyper.straight_through.family import straight_through
from sthyper.straight_through.sampler import BernoulliEstimator

__all__ = ["draw", "masked", "soft_mask", "uniform"]

# So many neighbours have low bits of their own.
_LOW = 1024
# Where fewer numbers are drawn, the plain generator takes no longer.
_FEW = 4096


def uniform(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform numbers on the CPU, at least 0 and below 1, as exact as those of ``torch.rand`` in float32.

    The 8 high bits of each are its own. What follows is that of all numbers whose index (with all axes in one) is the
    same modulo 1024. So each number alone is uniform, to 2^-24; two that share low bits fall below two given thresholds
    with a covariance of at most 2^-18, against variances of up to 0.25. That takes a fifth of the time of
    ``torch.rand``.
    """
    n = shape.numel()
    rows = -(-n // _LOW)
    words = torch.empty(rows, _LOW // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    # Not up to 2^-8, so that sums are not rounded to 1.
    low = torch.empty(_LOW, dtype=dtype).uniform_(0.0, 2.0**-8 - 2.0**-24, generator=generator)
    u = torch.add(low, words.view(torch.uint8), alpha=2.0**-8)
    return u.view(shape) if n == u.numel() else u.view(-1)[:n].view(shape)


def draw(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return 0 or 1 for each probability, of its shape, dtype and device; NaN counts as 0.

    Args:
        probs: Probabilities of any shape, floating dtype and device.
        generator: Of their device; default torch's own.
    """
    dtype = torch.promote_types(probs.dtype, torch.float32)  # uniform numbers of half precision are too coarse
    if probs.device.type == "cpu" and probs.numel() >= _FEW:
        u = uniform(probs.shape, dtype, generator)
    else:
        u = torch.rand(probs.shape, dtype=dtype, device=probs.device, generator=generator)
    return u.lt_(probs).to(probs.dtype)  # in place it stays a float, at a third of the time of a comparison to bool


def soft_mask(p: Tensor, mode: str, estimator: BernoulliEstimator) -> Tensor:
    """Return a mask of the probabilities with the estimator's gradient.

    Args:
        p: Probabilities of any shape.
        mode: ``"sample"`` (drawn by torch's own generator), ``"threshold"`` or ``"expected"``.
        estimator: ``"probs"`` or ``"identity"``.
    """
    if mode == "expected":
        return p
    hard = p > 0.5 if mode == "threshold" else _sample(p.detach())
    return straight_through(hard, p if estimator == "identity" else p.square() / 2)


def _sample(p: Tensor) -> Tensor:
    if not _is_transformed():
        return draw(p)
    dtype = torch.promote_types(p.dtype, torch.float32)
    return torch.rand(p.shape, dtype=dtype, device=p.device) < p  # vmap knows what each randomness means for it


def _is_transformed() -> bool:
    """Return whether a compiler or a transform of torch.func looks on."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class _MaskFrozen(torch.autograd.Function):
    """``x * mask(scores)`` for ``x`` that gets no gradient, in as few passes over memory as there can be.

    See ``benchmarks/masked_layer.py`` for what that saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, mode: str, estimator: str) -> Tensor:
        p = scores.sigmoid()
        ctx.save_for_backward(x, scores, p)
        ctx.probs = estimator == "probs"
        if mode == "threshold":
            return torch.gt(p, 0.5, out=torch.empty_like(p)).mul_(x)
        return draw(p).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None, None]:
        x, scores, p = ctx.saved_tensors
        (grad,) = grad_outputs
        if torch.is_grad_enabled():  # to be differentiated again, with respect to the scores, too
            p = scores.sigmoid()
            grad = grad * x * (p if ctx.probs else 1.0)
            return None, grad * p * (1 - p), None, None
        grad = grad * x
        if ctx.probs:
            grad.mul_(p)
        return None, _sigmoid_backward(grad, p, grad_input=grad), None, None


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def masked(x: Tensor, scores: Tensor, mode: str, estimator: BernoulliEstimator) -> Tensor:
    """Return ``x`` times the mask of the scores, of the dtype of ``x``; arguments as in :func:`soft_mask`."""
    plain = (
        mode != "expected"
        and not _is_transformed()
        and not x.requires_grad
        and x.dtype == scores.dtype
        and not _has_tangent(x)
        and not _has_tangent(scores)
    )
    if plain:
        return _MaskFrozen.apply(x, scores, mode, estimator)  # type: ignore[no-untyped-call]
    return x * soft_mask(scores.sigmoid(), mode, estimator).to(x.dtype)
