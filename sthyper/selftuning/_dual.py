"""Forward-mode automatic differentiation of torch, with types."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["make_dual", "tangent_of", "unpack_dual"]

make_dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
"""Return a tensor with a tangent."""

_unpack: Callable[[Tensor], tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual


def unpack_dual(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a tensor and its tangent, ``None`` if it has none."""
    primal, tangent = _unpack(value)
    return primal, tangent


def tangent_of(value: Tensor) -> Tensor:
    """Return the tangent of a tensor that must have one.

    Raises:
        ValueError: If it has none.
    """
    _, tangent = _unpack(value)
    if tangent is None:
        raise ValueError(f"the tensor of shape {tuple(value.shape)} has no tangent")
    return tangent
