"""Strengths of regularisers and augmentation: one number for all examples, or one for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "Strength",
    "as_shared",
    "as_strength",
    "check_images",
    "check_number",
    "per_example",
    "uniform",
    "working_dtype",
]

Strength = Tensor | float


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which strengths and random numbers for a tensor are kept: never less than float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_number(value: Strength, name: str, upper: float = math.inf) -> None:
    """Refuse numbers that are no strength. Values in tensors are not looked at, since that would wait for the device.

    Args:
        value: The strength.
        name: Name of the argument, for messages.
        upper: Largest value.

    Raises:
        TypeError: If it is neither a number nor a tensor.
        ValueError: If it is not finite, negative, or above ``upper``.
    """
    if isinstance(value, Tensor):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor with one number for each example, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if not 0.0 <= value <= upper:
        wanted = "at least 0" if upper == math.inf else f"from 0 to {upper:g}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def as_strength(value: Strength, x: Tensor, name: str) -> Tensor:
    """Return a strength as a detached tensor, 0-d or one number for each example (``B``).

    Args:
        value: A number, or a tensor that is 0-d or of shape ``B`` or ``B x 1``.
        x: What it is used for; says the device.
        name: Name of the argument, for messages.

    Raises:
        TypeError: If it is neither a number nor a tensor of real numbers.
        ValueError: If it is not finite (numbers only), or of another shape.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number or a tensor with one number for each example, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
        return torch.full((), value, dtype=working_dtype(x), device=x.device)
    if value.dtype == torch.bool or value.dtype.is_complex:
        raise TypeError(f"{name} must hold real numbers, got a tensor of {value.dtype}")
    if value.dim() > 1:
        if math.prod(value.shape[1:]) != 1:
            raise ValueError(f"{name} must be 0-d or hold one number for each example, got shape {tuple(value.shape)}")
        value = value.reshape(-1)
    return value.detach().to(device=x.device, dtype=working_dtype(x))


def as_shared(value: Strength, x: Tensor, name: str, what: str) -> Tensor:
    """Return a strength that the whole batch shares, 0-d.

    Raises:
        ValueError: If there is one for each example.
    """
    strength = as_strength(value, x, name)
    if strength.dim():
        raise ValueError(
            f"{name} must be one number: {what} is the same for the whole batch, got shape {tuple(strength.shape)}; "
            "declare its hyperparameter with per_example=False (Hyperparameters(..., shared=[name]))"
        )
    return strength


def per_example(value: Strength, x: Tensor, batch_dim: int, name: str) -> Tensor:
    """Return a strength such that it broadcasts against a tensor.

    An axis that is a multiple of ``B`` long holds several neighbouring rows of each example, as after flattening
    ``B x T`` to ``B T``.

    Args:
        value: See :func:`as_strength`.
        x: The tensor.
        batch_dim: Its axis of examples.
        name: Name of the argument, for messages.

    Raises:
        TypeError: If ``x`` does not hold floating-point numbers; see also :func:`as_strength`.
        ValueError: If there is no such axis, or its length does not suit ``value``; see also :func:`as_strength`.
    """
    if not x.dtype.is_floating_point:
        raise TypeError(f"input must hold floating-point numbers, got {x.dtype}")
    strength = as_strength(value, x, name)
    if not strength.dim():
        return strength
    if not -x.dim() <= batch_dim < x.dim():
        raise ValueError(f"batch_dim must be an axis of an input of shape {tuple(x.shape)}, got {batch_dim!r}")
    axis = batch_dim % x.dim()
    rows, n = x.shape[axis], strength.shape[0]
    if n == 0 or rows % n:
        raise ValueError(
            f"{name} has {n} numbers, one for each example, but axis {axis} of the input of shape {tuple(x.shape)} has "
            f"{rows}; see batch_dim"
        )
    if rows != n:
        strength = strength.repeat_interleave(rows // n, output_size=rows)
    return strength.reshape([rows if i == axis else 1 for i in range(x.dim())])


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        TypeError: Unless it is a tensor of floating-point numbers.
        ValueError: Unless it has the shape ``B x C x H x W``.
    """
    if not isinstance(images, Tensor) or not images.dtype.is_floating_point:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of floating-point numbers (bytes: images.float() / 255), got {kind}")
    if images.dim() != 4:
        raise ValueError(f"images must have the shape B x C x H x W, got {tuple(images.shape)}")


def uniform(shape: tuple[int, ...] | torch.Size, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform random numbers in [0, 1) for a tensor: on its device, of its working type.

    A generator on another device is used there, and the numbers are moved.
    """
    device = x.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=working_dtype(x)).to(x.device)
