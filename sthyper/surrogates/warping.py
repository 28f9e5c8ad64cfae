"""Kumaraswamy warping of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Warping", "kumaraswamy"]

_MARGIN = 1e-6
"""[0, 1] is mapped to what is left with this margin first: the derivative may be infinite at 0 and 1."""


def kumaraswamy(X: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - (1 - x^a)^b: monotone maps of the unit interval onto itself.

    Args:
        X: Numbers in [0, 1], shape ``batch x n x w``.
        a: Positive exponents, shape ``batch x 1 x w`` or what broadcasts with ``X``.
        b: Positive exponents, as ``a``.

    References:
        Snoek et al., "Input Warping for Bayesian Optimization of Non-stationary Functions", ICML 2014
    """
    x = X.clamp(0.0, 1.0) * (1.0 - 2.0 * _MARGIN) + _MARGIN
    return -torch.expm1(b * torch.log1p(-torch.exp(a * x.log())))


@dataclass(frozen=True)
class Warping:
    """Inputs without a batch, warped by :func:`kumaraswamy`, and their derivatives in closed form.

    Args:
        value: The warped inputs, shape (n, w).
        saved: What the derivatives need.
    """

    value: Tensor
    saved: tuple[Tensor, ...]

    @classmethod
    def of(cls, X: Tensor, a: Tensor, b: Tensor) -> Warping:
        """Warp inputs of shape (n, w) with exponents of shape (w,) or (1, w)."""
        x = X.clamp(0.0, 1.0).mul_(1.0 - 2.0 * _MARGIN).add_(_MARGIN)
        log_x = x.log()
        power = torch.exp(a * log_x)
        log_rest = torch.log1p(-power)
        exponent = b * log_rest
        return cls(torch.expm1(exponent).neg_(), (x, log_x, power, log_rest, exponent))

    def by_exponents(self, grad: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return derivatives by both exponents, shape (w,), given those by the warped inputs."""
        _, log_x, power, log_rest, exponent = self.saved
        inner = torch.exp(exponent - log_rest).mul_(power).mul_(log_x).mul_(grad)
        return inner.sum(0).mul_(b), exponent.exp().mul_(log_rest).mul_(grad).sum(0).neg_()

    def by_inputs(self, grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return derivatives by the inputs, shape (n, w), given those by the warped ones."""
        x, _, power, log_rest, exponent = self.saved
        inner = torch.exp(exponent - log_rest).mul_(power).mul_(grad)
        return inner.mul_(a * b * (1.0 - 2.0 * _MARGIN)).div_(x)
