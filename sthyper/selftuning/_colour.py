"""Colour jitter of batches of images, with a strength for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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

__all__ = ["COLOUR_OPERATIONS", "adjust_colour", "colour_jitter"]

COLOUR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")

# Parts of red, green and blue in the brightness that people see (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def colour_jitter(
    images: Tensor,
    brightness: Strength | None = None,
    contrast: Strength | None = None,
    saturation: Strength | None = None,
    hue: Strength | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change the colours of images at random.

    Factors of brightness, contrast and saturation are uniform between ``max(0, 1 - v)`` and ``1 + v``, shifts of the
    hue between ``-v`` and ``v``; each image draws its own. The four operations come in a random order, one for the
    whole call. Values are cut to [0, 1] after each of the first three.

    Args:
        images: ``B x 3 x H x W`` with values in [0, 1].
        brightness: A number, 0-d, or one for each image (``B``); ``None`` leaves the operation out. An image with 0 is
            not changed at all. Negative ones in tensors count as 0.
        contrast: In the same way.
        saturation: In the same way.
        hue: In the same way, in turns of the colour circle; cut to [0, 0.5].
        generator: Draws the factors and the order; default is torch's own.

    Returns:
        Changed images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images`` or strengths do not hold real numbers.
        ValueError: If shapes do not fit, or a number is negative.
    """
    check_images(images)
    given = dict(zip(COLOUR_OPERATIONS, (brightness, contrast, saturation, hue), strict=True))
    factors: dict[str, Tensor] = {}
    # Without a generator on the CPU, which need not wait for the images.
    device = torch.device("cpu") if generator is None else generator.device
    order = [COLOUR_OPERATIONS[i] for i in torch.randperm(4, generator=generator, device=device).tolist()]
    for name, strength in given.items():
        if strength is None:
            continue
        check_number(strength, name)
        v = per_example(strength, images, 0, name).reshape(-1).clamp(min=0.0)
        u = uniform(images.shape[:1], images, generator)
        if name == "hue":
            v = v.clamp(max=0.5)
            factors[name] = torch.lerp(-v, v, u)
        else:
            factors[name] = torch.lerp((1.0 - v).clamp(min=0.0), 1.0 + v, u)
    return adjust_colour(images, **factors, order=order)


@torch.no_grad()
def adjust_colour(
    images: Tensor,
    brightness: Strength | None = None,
    contrast: Strength | None = None,
    saturation: Strength | None = None,
    hue: Strength | None = None,
    *,
    order: Sequence[str] = COLOUR_OPERATIONS,
) -> Tensor:
    """Change the colours of images by given amounts.

    Brightness multiplies all values; contrast and saturation blend with the mean luminance of the image and with the
    luminance of the pixel, the factor being the part of the image. Values are cut to [0, 1] after each of these. Hue
    turns the colour circle of hue, saturation and value.

    Args:
        images: ``B x 3 x H x W`` with values in [0, 1].
        brightness: Factors: a number, 0-d, or one for each image (``B``); ``None`` or 1 for no change.
        contrast: In the same way.
        saturation: In the same way.
        hue: Shifts in turns of the circle, of any sign; ``None`` or 0 for no change.
        order: Which operation comes when: the names of all that are given.

    Returns:
        Changed images of the same shape and type, without gradients.

    Raises:
        TypeError: If ``images`` or amounts do not hold real numbers.
        ValueError: If shapes do not fit, or ``order`` names others, one twice, or not all.
    """
    check_images(images)
    if images.shape[1] != 3:
        raise ValueError(f"images must have three channels for colours, got shape {tuple(images.shape)}")
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name in order:
        if name not in amounts:
            raise ValueError(
                f"order: there is no operation {name!r}{closest(name, amounts)}; known are {list(COLOUR_OPERATIONS)}"
            )
    missing = [name for name, amount in amounts.items() if amount is not None and name not in order]
    if missing or len(set(order)) != len(order):
        raise ValueError(f"order must name each operation that is given once, got {list(order)!r}; missing: {missing}")
    # Planes of channels are contiguous this way, and all that follows works in place on this copy.
    planes = images.detach().to(working_dtype(images)).transpose(0, 1).clone(memory_format=torch.contiguous_format)
    for name in order:
        amount = amounts[name]
        if amount is None:
            continue
        factor = as_strength(amount, planes, name).reshape(-1)
        if factor.shape[0] not in (1, planes.shape[1]):
            raise ValueError(f"{name} has {factor.shape[0]} numbers for {planes.shape[1]} images")
        _CHANGES[name](planes, factor.reshape(1, -1, 1, 1))
    return planes.transpose(0, 1).to(dtype=images.dtype, memory_format=torch.contiguous_format)


def _luminance(planes: Tensor) -> Tensor:
    """Return the luminance of pixels (``1 x B x H x W``)."""
    gray = planes[:1] * _LUMA[0]
    return gray.add_(planes[1:2], alpha=_LUMA[1]).add_(planes[2:], alpha=_LUMA[2])


def _brightness(planes: Tensor, factor: Tensor) -> None:
    planes.mul_(factor).clamp_(0.0, 1.0)


def _contrast(planes: Tensor, factor: Tensor) -> None:
    mean = _luminance(planes).mean(dim=(2, 3), keepdim=True)
    planes.mul_(factor).add_((1.0 - factor) * mean).clamp_(0.0, 1.0)


def _saturation(planes: Tensor, factor: Tensor) -> None:
    gray = _luminance(planes).mul_(1.0 - factor)
    planes.mul_(factor).add_(gray).clamp_(0.0, 1.0)


def _hue(planes: Tensor, shift: Tensor) -> None:
    red, green, blue = planes.unbind(0)
    value = planes.amax(0)
    chroma = value - planes.amin(0)
    # Six times the hue: which of the six sides of the colour hexagon, and how far along it.
    # (Products with 0 and 1 are several times faster than torch.where, and as exact.)
    is_red = (red == value).to(planes.dtype)
    is_green = (green == value).to(planes.dtype) * (1.0 - is_red)
    is_blue = (1.0 - is_red).sub_(is_green)
    side = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    side.div_(chroma.clamp(min=torch.finfo(planes.dtype).tiny))
    side.add_(is_green, alpha=2.0).add_(is_blue, alpha=4.0)
    side += 6.0 * shift[0]
    side -= (side / 6.0).floor_().mul_(6.0)
    turned = torch.empty_like(planes)
    # Each channel lacks none of the chroma on two sides, all of it on two others, with ramps between.
    for lack, middle in zip(turned, (3.0, 2.0, 4.0), strict=True):
        torch.sub(side, middle, out=lack).abs_()
        lack.neg_().add_(2.0) if middle == 3.0 else lack.sub_(1.0)
        lack.clamp_(0.0, 1.0).mul_(chroma)
        torch.sub(value, lack, out=lack)
    # An image that is not turned is not changed, not even by rounding.
    planes.lerp_(turned, (shift != 0.0).to(planes.dtype))


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
