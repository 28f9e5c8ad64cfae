"""Cutout of batches of images: square holes, their number and size for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from sthyper.selftuning._strength import Strength, check_images, check_number, per_example, uniform

__all__ = ["cut_boxes", "cutout"]


@torch.no_grad()
def cutout(
    images: Tensor,
    holes: Strength,
    length: Strength,
    *,
    max_holes: int = 16,
    fill: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cut square holes into images at random (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    Centres are uniform over the pixels; what is outside of the image is cut off the hole. Numbers and sizes are rounded
    down.

    Args:
        images: ``B x C x H x W``, normalised.
        holes: Number of holes: a number, 0-d, or one for each image (``B``). An image with less than 1 is not changed.
        length: Side of the holes in pixels, in the same way.
        max_holes: Upper limit of ``holes``; larger ones in tensors are cut to it.
        fill: Value of the holes.
        generator: Draws the centres; default is torch's own.

    Returns:
        Images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images``, ``holes`` or ``length`` do not hold real numbers.
        ValueError: If shapes do not fit, ``max_holes`` is below 1, or ``holes`` a number above it.
    """
    check_images(images)
    if not isinstance(max_holes, int) or max_holes < 1:
        raise ValueError(f"max_holes must be a whole number of at least 1, got {max_holes!r}")
    check_number(length, "length")
    check_number(holes, "holes", max_holes)
    n, _, height, width = images.shape
    number = per_example(holes, images, 0, "holes").reshape(-1, 1).floor()
    side = per_example(length, images, 0, "length").reshape(-1, 1).floor()
    u = uniform((2, n, max_holes), images, generator)
    # Rounding may make the product of a number below 1 the size itself.
    y, x = (u[0] * height).floor().clamp(max=height - 1), (u[1] * width).floor().clamp(max=width - 1)
    exists = torch.arange(max_holes, device=images.device) < number
    sides = torch.where(exists, side, 0.0).expand(n, max_holes)
    return cut_boxes(images, y, x, sides, fill=fill)


@torch.no_grad()
def cut_boxes(images: Tensor, y: Tensor, x: Tensor, length: Tensor, *, fill: float = 0.0) -> Tensor:
    """Cut square holes into images at given places.

    A hole covers the pixels from ``int(c - length / 2)`` to below ``int(c + length / 2)`` along each axis, after both
    ends were cut to the image.

    Args:
        images: ``B x C x H x W``.
        y: Rows of the centres (``B x holes``).
        x: Columns of the centres (``B x holes``).
        length: Sides in pixels (``B x holes``); at most 0 for no hole.
        fill: Value of the holes.

    Returns:
        Images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images`` does not hold real numbers.
        ValueError: If shapes do not fit.
    """
    check_images(images)
    n, _, height, width = images.shape
    for name, value in (("y", y), ("x", x), ("length", length)):
        if value.dim() != 2 or value.shape[0] != n or value.shape != y.shape:
            raise ValueError(f"{name} must have the shape {n} x holes, got {tuple(value.shape)}")
    # One matrix product counts the holes over each pixel.
    holes = torch.bmm(_covered(y, length, height).mT, _covered(x, length, width)).unsqueeze(1)
    left = images * (holes == 0).to(images.dtype)
    return left.add_((holes > 0).to(images.dtype), alpha=fill).detach() if fill else left


def _covered(centre: Tensor, length: Tensor, size: int) -> Tensor:
    """Return which places of an axis holes cover (``B x holes x size``), as numbers."""
    low = (centre - length / 2).clamp(0, size).floor().unsqueeze(2)
    high = (centre + length / 2).clamp(0, size).floor().unsqueeze(2)
    place = torch.arange(size, device=centre.device, dtype=low.dtype)
    return ((place >= low) & (place < high)).to(torch.float32)
