"""Values that are hard forwards and soft backwards: one interface, and what is made with it."""

from __future__ import annotations

import torch
from torch import Tensor

from sthyper.straight_through.schedules import check_temperature

__all__ = [
    "st_argmax",
    "st_ceil",
    "st_floor",
    "st_one_hot",
    "st_round",
    "st_sign",
    "st_top_k",
    "straight_through",
]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of ``hard`` with the derivatives of ``soft``.

    Args:
        hard: The value, of any shape; where it depends on parameters these get no gradient through it.
        soft: What is differentiated instead, of the same shape. Where it is not finite nothing is passed back.

    Returns:
        A tensor equal to ``hard`` (a zero is positive), of the dtype of ``soft``. It works in both modes of
        differentiation, under ``torch.func`` transforms and ``torch.compile``, and can be differentiated again.

    Raises:
        TypeError: If one of both is no tensor.
        ValueError: If the shapes differ, or ``soft`` is not floating point.
    """
    for name, given in (("hard", hard), ("soft", soft)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor; it is {type(given).__name__}")
    if hard.shape != soft.shape:
        raise ValueError(
            f"hard and soft must have the same shape; they have {tuple(hard.shape)} and {tuple(soft.shape)}"
        )
    if not soft.is_floating_point():
        raise ValueError(f"soft must be floating point, which can be differentiated; it is {soft.dtype}")
    # The difference is 0 with the derivatives of soft; of two infinities it would be NaN.
    return hard.detach().to(soft.dtype) + (soft - soft.detach()).nan_to_num(0.0, 0.0, 0.0)


def st_round(x: Tensor) -> Tensor:
    """Round to the nearest whole number (halves to the even one); the gradient passes unchanged.

    Args:
        x: Floating tensor of any shape.

    Returns:
        Whole numbers of the shape and dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating tensor.

    Source: Y. Bengio, N. Leonard, A. Courville, 2013 (arXiv 1308.3432).
    """
    check_floating(x, "x")
    return straight_through(x.round(), x)


def st_floor(x: Tensor) -> Tensor:
    """Round down; the gradient passes unchanged.

    Args:
        x: Floating tensor of any shape.

    Returns:
        Whole numbers of the shape and dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
    """
    check_floating(x, "x")
    return straight_through(x.floor(), x)


def st_ceil(x: Tensor) -> Tensor:
    """Round up; the gradient passes unchanged.

    Args:
        x: Floating tensor of any shape.

    Returns:
        Whole numbers of the shape and dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
    """
    check_floating(x, "x")
    return straight_through(x.ceil(), x)


def st_sign(x: Tensor, clip: float | None = 1.0) -> Tensor:
    """Return 1 where ``x`` is at least 0 and -1 elsewhere; the gradient passes where ``x`` is small.

    Args:
        x: Floating tensor of any shape.
        clip: The gradient passes where ``|x| <= clip`` and is 0 elsewhere, so that numbers which no small step could
            turn stop growing; ``None`` passes it everywhere.

    Returns:
        Ones and minus ones of the shape and dtype of ``x``; NaN stays NaN.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If ``clip`` is not above 0.

    Source: I. Hubara et al.: Binarized Neural Networks, 2016 (arXiv 1602.02830), equation 4.
    """
    check_floating(x, "x")
    soft = x
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip must be above 0, or None to pass the gradient everywhere; it is {clip!r}")
        soft = x.clamp(-clip, clip)
    sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    return straight_through(torch.where(x.isnan(), x, sign), soft)


def st_one_hot(logits: Tensor, dim: int = -1, temperature: float = 1.0) -> Tensor:
    """Return 1 at the largest score and 0 elsewhere; the gradient is that of the softmax.

    Args:
        logits: Scores, of any shape and floating dtype. Of equal ones the first may win or another: the one that
            ``argmax`` finds.
        dim: Axis of the alternatives.
        temperature: The softmax is that of ``logits / temperature``; above 0.

    Returns:
        Zeros and ones of the shape and dtype of ``logits``, with a single 1 along ``dim``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, or ``dim`` is no axis of ``logits``.

    Source: E. Jang, S. Gu, B. Poole, 2017 (arXiv 1611.01144), section 2.2, without the noise.
    """
    check_floating(logits, "logits")
    check_dim(logits, dim)
    soft = (logits / check_temperature(temperature)).softmax(dim)
    return straight_through(one_hot_of_largest(logits, dim), soft.to(logits.dtype))


def st_argmax(logits: Tensor, dim: int = -1, temperature: float = 1.0, keepdim: bool = False) -> Tensor:
    """Return the position of the largest score, as a floating number; the gradient is that of the mean position.

    Only for alternatives that are ordered (numbers on a grid); otherwise see :func:`st_one_hot`.

    Args:
        logits: Scores, of any shape and floating dtype.
        dim: Axis of the alternatives.
        temperature: The mean is taken under the softmax of ``logits / temperature``; above 0.
        keepdim: Whether ``dim`` is kept, with size 1.

    Returns:
        Positions from 0, of the dtype of ``logits`` and its shape without ``dim``. (Above 256 alternatives bfloat16
        cannot hold each of them, above 2048 float16.)

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, or ``dim`` is no axis of ``logits``.
    """
    chosen = st_one_hot(logits, dim, temperature)
    if not logits.dim():
        return chosen * 0
    size = logits.shape[dim]
    shape = [1] * logits.dim()
    shape[dim] = size
    positions = torch.arange(size, dtype=logits.dtype, device=logits.device).view(shape)
    return (chosen * positions).sum(dim, keepdim=keepdim)


def st_top_k(logits: Tensor, k: int, dim: int = -1, temperature: float = 1.0) -> Tensor:
    """Return 1 at the ``k`` largest scores and 0 elsewhere; the gradient is that of a sigmoid at their border.

    The sigmoid is that of ``(logits - border) / temperature``, where the border is the mean of the smallest score that
    is chosen and the largest that is not, and moves with them: adding a number to all scores changes nothing.

    Args:
        logits: Scores, of any shape and floating dtype.
        k: How many are chosen, from 1 to the size of ``dim``. If all are, there is no border and no gradient.
        dim: Axis of the alternatives.
        temperature: Width of the sigmoid, above 0.

    Returns:
        Zeros and ones of the shape and dtype of ``logits``, with exactly ``k`` ones along ``dim``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, ``k`` no whole number, or the temperature no number.
        ValueError: If ``k`` is out of range, the temperature not above 0, or ``dim`` no axis of ``logits``.
    """
    check_floating(logits, "logits")
    check_dim(logits, dim)
    check_temperature(temperature)
    size = logits.shape[dim] if logits.dim() else 1
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be a whole number; it is {k!r}")
    if not 1 <= k <= size:
        raise ValueError(f"k must be from 1 to {size}, the number of alternatives; it is {k}")
    if k == size:
        return straight_through(torch.ones_like(logits), logits.detach())
    ordered = logits.sort(dim, descending=True)
    ranks = ordered.indices.argsort(dim)
    hard = (ranks < k).to(logits.dtype)
    border = ordered.values.narrow(dim, k - 1, 2).mean(dim, keepdim=True)
    return straight_through(hard, ((logits - border) / temperature).sigmoid())


def one_hot_of_largest(scores: Tensor, dim: int) -> Tensor:
    """Return 1 at the largest score along ``dim`` and 0 elsewhere, of the dtype of ``scores``."""
    return torch.zeros_like(scores).scatter(dim, scores.detach().argmax(dim, keepdim=True), 1.0)


def check_floating(x: Tensor, name: str) -> None:
    """Raise if ``x`` is not a floating tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; it is {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, which can be differentiated; it is {x.dtype}")


def same_device(one: torch.device, other: torch.device) -> bool:
    """Return whether two devices are the same; one without an index is any of its type."""
    return one.type == other.type and (one.index == other.index or None in (one.index, other.index))


def check_dim(x: Tensor, dim: int) -> None:
    """Raise if ``dim`` is no axis of ``x``, or an empty one."""
    axes = max(x.dim(), 1)
    if not -axes <= dim < axes:
        raise ValueError(f"dim must be from {-axes} to {axes - 1} for a tensor of shape {tuple(x.shape)}; it is {dim}")
    if x.dim() and not x.shape[dim]:
        raise ValueError(f"dim must be an axis with alternatives; axis {dim} of shape {tuple(x.shape)} has none")
