"""Kumaraswamy warping of inputs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kumaraswamy"]

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
