"""Noise on inputs and activations, with a strength for each example."""

from __future__ import annotations

import torch
from torch import Tensor

from sthyper.selftuning._strength import Strength, check_number, per_example, uniform, working_dtype

__all__ = ["gaussian_noise", "input_scale"]


def gaussian_noise(
    x: Tensor, std: Strength, training: bool = True, *, batch_dim: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Add Gaussian noise with a standard deviation for each example.

    Args:
        x: Any tensor with an axis of examples.
        std: A number, 0-d, or one for each example (``B``), in units of ``x``; negative ones in tensors count as 0.
            Gradients do not reach it.
        training: Whether anything happens at all.
        batch_dim: Axis of the examples. One that is a multiple of ``B`` long has several neighbouring rows of each.
        generator: Draws the noise; default is torch's own.

    Raises:
        TypeError: If ``x`` or ``std`` do not hold real numbers.
        ValueError: If ``std`` does not suit the shape of ``x``, or is a negative number.
    """
    check_number(std, "std")
    scale = per_example(std, x, batch_dim, "std").clamp(min=0.0).to(x.dtype)
    if not training:
        return x
    device = x.device if generator is None else generator.device
    noise = torch.randn(x.shape, generator=generator, device=device, dtype=working_dtype(x))
    return x + scale * noise.to(device=x.device, dtype=x.dtype)


def input_scale(
    x: Tensor, s: Strength, training: bool = True, *, batch_dim: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Multiply each example by a random factor between ``1 / (1 + s)`` and ``1 + s``.

    Args:
        x: Inputs, such as normalised images.
        s: A number, 0-d, or one for each example (``B``); negative ones in tensors count as 0. Gradients do not reach
            it.
        training: Whether anything happens at all.
        batch_dim: Axis of the examples; one factor for each entry of it.
        generator: Draws the factors; default is torch's own.

    Raises:
        TypeError: If ``x`` or ``s`` do not hold real numbers.
        ValueError: If ``s`` does not suit the shape of ``x``, or is a negative number.
    """
    check_number(s, "s")
    largest = 1.0 + per_example(s, x, batch_dim, "s").clamp(min=0.0)
    if not -x.dim() <= batch_dim < x.dim():
        raise ValueError(f"batch_dim must be an axis of an input of shape {tuple(x.shape)}, got {batch_dim!r}")
    if not training:
        return x
    shape = [n if i == batch_dim % x.dim() else 1 for i, n in enumerate(x.shape)]
    smallest = 1.0 / largest
    return x * torch.lerp(smallest, largest, uniform(tuple(shape), x, generator)).to(x.dtype)
