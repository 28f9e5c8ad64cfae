"""Dropout in all its shapes, with a rate for each example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sthyper.selftuning._strength import (
    Strength,
    as_shared,
    as_strength,
    check_number,
    per_example,
    uniform,
    working_dtype,
)

__all__ = [
    "LARGEST_RATE",
    "drop_connect",
    "dropout",
    "dropout_1d",
    "dropout_2d",
    "dropout_3d",
    "embedding_dropout",
    "input_dropout",
    "locked_dropout",
]

LARGEST_RATE = 0.999
"""Rates in tensors are cut to at most this, since what is kept is divided by ``1 - p``."""


def _mask(shape: list[int], p: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return ``Bernoulli(1 - p) / (1 - p)`` of a shape, in the type of ``x``."""
    p = p.clamp(0.0, LARGEST_RATE)
    kept = uniform(tuple(shape), x, generator) >= p
    return kept.to(x.dtype) * (1.0 / (1.0 - p)).to(x.dtype)


def dropout(
    x: Tensor, p: Strength, training: bool = True, *, batch_dim: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Set elements to zero with a probability for each example, and divide the others by ``1 - p``.

    Gradients do not reach ``p``. A number as ``p`` without ``generator`` is :func:`torch.nn.functional.dropout`.

    Args:
        x: Any tensor with an axis of examples.
        p: Probabilities: a number, 0-d, or one for each example (``B``); those in tensors are cut to
            [0, :data:`LARGEST_RATE`].
        training: Whether anything happens at all.
        batch_dim: Axis of the examples. One that is a multiple of ``B`` long has several neighbouring rows of each.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: If ``x`` or ``p`` do not hold real numbers.
        ValueError: If ``p`` does not suit the shape of ``x``, or is a number outside of [0, 1].
    """
    check_number(p, "p", 1.0)
    if generator is None and not isinstance(p, Tensor):
        return F.dropout(x, p, training)
    rate = per_example(p, x, batch_dim, "p")
    return x * _mask(list(x.shape), rate, x, generator) if training else x


def _channels(
    x: Tensor, p: Strength, training: bool, generator: torch.Generator | None, axes: int, name: str
) -> Tensor:
    check_number(p, "p", 1.0)
    if x.dim() not in (axes + 1, axes + 2):
        shapes = f"{'B x C' + ' x L' * axes} or {'C' + ' x L' * axes}"
        raise ValueError(f"{name}: input must have the shape {shapes}, got {tuple(x.shape)}")
    batched = x.dim() == axes + 2
    if not batched and as_strength(p, x, "p").dim():
        raise ValueError(f"{name}: p has one number for each example, but an input of shape {tuple(x.shape)} has none")
    if generator is None and not isinstance(p, Tensor):
        plain = {1: F.dropout1d, 2: F.dropout2d, 3: F.dropout3d}[axes]
        return plain(x if batched else x.unsqueeze(0), p, training).reshape(x.shape)
    rate = per_example(p, x, 0, "p")
    if not training:
        return x
    leading = list(x.shape[: x.dim() - axes])
    return x * _mask(leading + [1] * axes, rate, x, generator)


def dropout_1d(x: Tensor, p: Strength, training: bool = True, *, generator: torch.Generator | None = None) -> Tensor:
    """Set whole channels to zero with a probability for each example, and divide the others by ``1 - p``.

    Args:
        x: ``B x C x L``; or ``C x L``, if there is one probability.
        p: See :func:`dropout`.
        training: Whether anything happens at all.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: See :func:`dropout`; also for other shapes.
    """
    return _channels(x, p, training, generator, 1, "dropout_1d")


def dropout_2d(x: Tensor, p: Strength, training: bool = True, *, generator: torch.Generator | None = None) -> Tensor:
    """Set whole channels to zero with a probability for each example, and divide the others by ``1 - p``.

    Args:
        x: ``B x C x H x W``; or ``C x H x W``, if there is one probability.
        p: See :func:`dropout`.
        training: Whether anything happens at all.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: See :func:`dropout`; also for other shapes.
    """
    return _channels(x, p, training, generator, 2, "dropout_2d")


def dropout_3d(x: Tensor, p: Strength, training: bool = True, *, generator: torch.Generator | None = None) -> Tensor:
    """Set whole channels to zero with a probability for each example, and divide the others by ``1 - p``.

    Args:
        x: ``B x C x D x H x W``; or ``C x D x H x W``, if there is one probability.
        p: See :func:`dropout`.
        training: Whether anything happens at all.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: See :func:`dropout`; also for other shapes.
    """
    return _channels(x, p, training, generator, 3, "dropout_3d")


def locked_dropout(
    x: Tensor,
    p: Strength,
    training: bool = True,
    *,
    batch_first: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Dropout of a sequence with the same mask at all times (variational dropout).

    Args:
        x: ``T x B x D``, or ``B x T x D`` with ``batch_first``.
        p: See :func:`dropout`.
        training: Whether anything happens at all.
        batch_first: Whether the first axis is that of the examples.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: See :func:`dropout`; also for other shapes.
    """
    check_number(p, "p", 1.0)
    if x.dim() != 3:
        raise ValueError(f"locked_dropout: input must have three axes, got shape {tuple(x.shape)}")
    batch_axis = 0 if batch_first else 1
    if isinstance(p, Tensor) and p.numel() not in (1, x.shape[batch_axis]):
        raise ValueError(
            f"locked_dropout: p has {p.numel()} numbers, but the input of shape {tuple(x.shape)} has "
            f"{x.shape[batch_axis]} examples; see batch_first"
        )
    rate = per_example(p, x, batch_axis, "p")
    if not training:
        return x
    shape = list(x.shape)
    shape[1 - batch_axis] = 1
    return x * _mask(shape, rate, x, generator)


def embedding_dropout(
    embedded: Tensor,
    words: Tensor,
    n_words: int,
    p: Strength,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop whole words of the vocabulary: all their occurrences in the batch, whichever example they are in.

    It acts on what the embedding returns, which is the same as one mask on the rows of all its tables.

    Args:
        embedded: Vectors of the words (``... x D``).
        words: Indices of the words (``...``).
        n_words: Size of the vocabulary.
        p: Probability: a number or 0-d.
        training: Whether anything happens at all.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: If the shapes differ, or ``p`` is not one number.
    """
    check_number(p, "p", 1.0)
    if embedded.shape[:-1] != words.shape:
        raise ValueError(
            f"embedded must have the shape of words and one axis more, got {tuple(embedded.shape)} and "
            f"{tuple(words.shape)}"
        )
    if not isinstance(n_words, int) or n_words < 1:
        raise ValueError(f"n_words must be a whole number of at least 1, got {n_words!r}")
    rate = as_shared(p, embedded, "p", "word dropout")
    if not training:
        return embedded
    return embedded * F.embedding(words, _mask([n_words, 1], rate, embedded, generator))


def drop_connect(
    weight: Tensor,
    p: Strength,
    training: bool = True,
    *,
    rows: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set weights to zero with a probability, and divide the others by ``1 - p`` (DropConnect).

    Args:
        weight: Any weight.
        p: Probability: a number or 0-d. A number without ``generator`` and ``rows`` is
            :func:`torch.nn.functional.dropout`.
        training: Whether anything happens at all.
        rows: Whether whole rows, ``weight[i]``, are dropped.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: If ``p`` is not one number.
    """
    check_number(p, "p", 1.0)
    if generator is None and not rows and not isinstance(p, Tensor):
        return F.dropout(weight, p, training)
    rate = as_shared(p, weight, "p", "DropConnect")
    if not training:
        return weight
    shape = [weight.shape[0]] + [1] * (weight.dim() - 1) if rows else list(weight.shape)
    return weight * _mask(shape, rate, weight, generator)


def input_dropout(
    x: Tensor,
    p: Strength,
    training: bool = True,
    *,
    batch_dim: int = 0,
    share_channels: bool = False,
    rescale: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Dropout of inputs, such as the pixels of normalised images.

    Args:
        x: Inputs.
        p: See :func:`dropout`.
        training: Whether anything happens at all.
        batch_dim: Axis of the examples.
        share_channels: Whether a pixel is dropped in all channels, which are on the axis after ``batch_dim``. It needs
            a third of the random numbers for colour images.
        rescale: Whether what is kept is divided by ``1 - p``.
        generator: Draws the mask; default is torch's own.

    Raises:
        TypeError: See :func:`dropout`.
        ValueError: See :func:`dropout`; also if there is no axis of channels.
    """
    check_number(p, "p", 1.0)
    if not share_channels and rescale:
        return dropout(x, p, training, batch_dim=batch_dim, generator=generator)
    rate = per_example(p, x, batch_dim, "p")
    shape = list(x.shape)
    if share_channels:
        axis = batch_dim % x.dim() + 1
        if axis >= x.dim() - 1:
            raise ValueError(f"share_channels: an input of shape {tuple(x.shape)} has no channels on axis {axis}")
        shape[axis] = 1
    if not training:
        return x
    if rescale:
        return x * _mask(shape, rate, x, generator)
    return x * (uniform(tuple(shape), x, generator) >= rate.to(working_dtype(x))).to(x.dtype)
