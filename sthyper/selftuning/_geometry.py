"""Flips and affine transformations of batches of images, with a strength for each image."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sthyper.errors import closest
from sthyper.selftuning._strength import (
    Strength,
    as_strength,
    check_images,
    check_number,
    per_example,
    uniform,
    working_dtype,
)

__all__ = ["Interpolation", "affine_transform", "random_affine", "random_flip"]

Interpolation = Literal["bilinear", "nearest"]

# Images are never shrunk below this part of their size, nor mirrored by a negative one.
_SMALLEST = 0.05


@torch.no_grad()
def random_flip(images: Tensor, p: Strength = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Mirror images left to right at random.

    Args:
        images: ``B x C x H x W``.
        p: Probability: a number, 0-d, or one for each image (``B``).
        generator: Decides; default is torch's own.

    Returns:
        Images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images`` or ``p`` do not hold real numbers.
        ValueError: If shapes do not fit, or ``p`` is a number outside of [0, 1].
    """
    check_images(images)
    check_number(p, "p", 1.0)
    rate = per_example(p, images, 0, "p")
    mirrored = uniform((images.shape[0], 1, 1, 1), images, generator) < rate
    # At weights of 0 and 1 this is exact.
    return torch.lerp(images.detach(), images.flip(-1), mirrored.to(images.dtype))


@torch.no_grad()
def random_affine(
    images: Tensor,
    degrees: Strength | None = None,
    translate: Strength | None = None,
    scale: Strength | None = None,
    shear: Strength | None = None,
    *,
    interpolation: Interpolation = "bilinear",
    fill: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn, move, scale and shear images at random, with one interpolation.

    Each image draws its angle from ``U(-degrees, degrees)``, its translation along both axes from ``U(-t, t)`` times
    the size of the axis, its factor of size from ``U(1 - scale, 1 + scale)``, and its angle of shear along the x axis
    from ``U(-shear, shear)``.

    Args:
        images: ``B x C x H x W``.
        degrees: Degrees: a number, 0-d, or one for each image (``B``); ``None`` for 0. An image whose strengths are all
            0 is not changed at all. Negative ones in tensors count as 0.
        translate: In the same way, a part of the size.
        scale: In the same way, a part of the size; below 1.
        shear: In the same way, degrees; below 90.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        fill: Value of what was outside.
        generator: Draws; default is torch's own.

    Returns:
        Images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images`` or strengths do not hold real numbers.
        ValueError: If shapes do not fit, a number is negative, or ``interpolation`` is unknown.
    """
    check_images(images)
    n = images.shape[0]
    given = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
    drawn: dict[str, Tensor] = {}
    for name, strength in given.items():
        if strength is None:
            continue
        check_number(strength, name)
        v = per_example(strength, images, 0, name).reshape(-1).clamp(min=0.0)
        shape = (2, n) if name == "translate" else (n,)
        drawn[name] = v * (2.0 * uniform(shape, images, generator) - 1.0)
    move = drawn.get("translate")
    return affine_transform(
        images,
        degrees=drawn.get("degrees", 0.0),
        translate=(0.0, 0.0) if move is None else (move[0], move[1]),
        scale=1.0 + drawn["scale"] if "scale" in drawn else 1.0,
        shear=drawn.get("shear", 0.0),
        interpolation=interpolation,
        fill=fill,
    )


@torch.no_grad()
def affine_transform(
    images: Tensor,
    degrees: Strength = 0.0,
    translate: tuple[Strength, Strength] = (0.0, 0.0),
    scale: Strength = 1.0,
    shear: Strength = 0.0,
    *,
    interpolation: Interpolation = "bilinear",
    fill: float = 0.0,
) -> Tensor:
    """Shear, turn, scale and move images about their middle by given amounts, in this order.

    Args:
        images: ``B x C x H x W``.
        degrees: Angle, clockwise as the image is seen: a number, 0-d, or one for each image (``B``).
        translate: How far along x (right) and y (down), parts of width and height; each in the same way.
        scale: Factor of the size, in the same way; at least 0.05.
        shear: Angle by which vertical lines lean to the right, in the same way, in degrees.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        fill: Value of what was outside. With ``"bilinear"`` it is blended in at the border.

    Returns:
        Images of the same shape and type, without gradients. One with the default amounts is not changed at all.

    Raises:
        TypeError: If ``images`` or amounts do not hold real numbers.
        ValueError: If shapes do not fit, or ``interpolation`` is unknown.
    """
    check_images(images)
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(
            f"interpolation must be 'bilinear' or 'nearest', got {interpolation!r}"
            f"{closest(interpolation, ('bilinear', 'nearest'))}"
        )
    n, _, height, width = images.shape
    if len(translate) != 2:
        raise ValueError(f"translate must be two amounts, along x and y, got {translate!r}")
    amounts = {"degrees": degrees, "x": translate[0], "y": translate[1], "scale": scale, "shear": shear}
    values: dict[str, Tensor] = {}
    for name, amount in amounts.items():
        value = as_strength(amount, images, name if name not in "xy" else f"translate ({name})")
        if value.dim() and value.shape[0] != n:
            raise ValueError(f"{name} has {value.shape[0]} numbers for {n} images")
        values[name] = value.expand(n)
    angle, lean = values["degrees"] * (math.pi / 180.0), values["shear"] * (math.pi / 180.0)
    x, y, size = values["x"], values["y"], values["scale"].clamp(min=_SMALLEST)
    still = (angle == 0.0) & (x == 0.0) & (y == 0.0) & (size == 1.0) & (lean == 0.0)

    # Sampling needs the way back from a pixel of the result: the inverse of R(angle) [[1, -tan(lean)], [0, 1]] size,
    # in pixels from the middle; grid_sample counts in half widths and half heights.
    cos, sin, tan = torch.cos(angle) / size, torch.sin(angle) / size, torch.tan(lean)
    ratio = height / width
    back = torch.stack([cos - tan * sin, (sin + tan * cos) * ratio, -sin / ratio, cos], dim=1).reshape(n, 2, 2)
    move = torch.stack([-2.0 * x, -2.0 * y], dim=1).unsqueeze(2)
    grid = F.affine_grid(torch.cat([back, back @ move], dim=2), [n, 1, height, width], align_corners=False)
    work = images.detach().to(working_dtype(images))
    if fill:
        work = work - fill
    moved = F.grid_sample(work, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    if fill:
        moved += fill
    # At weights of 0 and 1 this is exact: an image that is not moved is not changed, not even by rounding.
    return torch.lerp(images.detach(), moved.to(images.dtype), (~still).reshape(n, 1, 1, 1).to(images.dtype))
