"""One interface for values that are hard forwards and soft backwards."""

from __future__ import annotations

from torch import Tensor

__all__ = ["straight_through"]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of ``hard`` with the derivatives of ``soft``.

    Args:
        hard: The value, of any shape; where it depends on parameters these get no gradient through it.
        soft: What is differentiated instead, of the same shape.

    Returns:
        A tensor equal to ``hard`` to the last bit, of the dtype of ``soft``. It works in both modes of
        differentiation, under ``torch.func`` transforms and ``torch.compile``, and can be differentiated again.

    Raises:
        ValueError: If the shapes differ, or ``soft`` is not floating point.
    """
    if hard.shape != soft.shape:
        raise ValueError(
            f"hard and soft must have the same shape; they have {tuple(hard.shape)} and {tuple(soft.shape)}"
        )
    if not soft.is_floating_point():
        raise ValueError(f"soft must be floating point, which can be differentiated; it is {soft.dtype}")
    return hard.detach().to(soft.dtype) + (soft - soft.detach())
