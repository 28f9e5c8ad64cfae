"""Random choices with gradients by reparametrisation: Gumbel-softmax and hard concrete gates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sthyper.straight_through.family import (
    check_dim,
    check_floating,
    one_hot_of_largest,
    same_device,
    straight_through,
)
from sthyper.straight_through.schedules import check_temperature

__all__ = ["gumbel_softmax", "hard_concrete", "hard_concrete_estimate", "hard_concrete_l0", "hard_concrete_mean"]

# Enough for temperatures of .1 to 2 to single precision.
_NODES = 64


def gumbel_softmax(
    logits: Tensor,
    temperature: float = 1.0,
    hard: bool = True,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one of several alternatives with probabilities ``softmax(logits)``; gradients pass.

    Works under ``torch.func`` transforms (``vmap`` needs ``randomness="different"`` or ``"same"``), in forward mode
    and under ``torch.compile``, and can be differentiated again.

    Args:
        logits: Unnormalised log probabilities, of any shape and floating dtype; ``-inf`` is never drawn.
        temperature: Above 0. The gradient is that of the softmax of ``(logits + noise) / temperature``: at small
            temperatures less biased and noisier. See :mod:`sthyper.straight_through.schedules`.
        hard: Whether the value is one-hot (the draw does not depend on the temperature), or the softmax itself.
        dim: Axis of the alternatives.
        generator: Of the device of ``logits``; default torch's own. In compiled code one breaks the graph.

    Returns:
        A draw of the shape and dtype of ``logits`` that sums to 1 along ``dim``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, ``dim`` is no axis of ``logits``, or the generator belongs to
            another device.

    Source: E. Jang, S. Gu, B. Poole, 2017 (arXiv 1611.01144); C. Maddison, A. Mnih, Y. W. Teh, 2017 (arXiv 1611.00712).
    """
    check_floating(logits, "logits")
    check_dim(logits, dim)
    check_temperature(temperature)
    scores = logits.to(_wide(logits)) - (-_uniform(logits, generator).log()).log()
    soft = (scores / temperature).softmax(dim).to(logits.dtype)
    return straight_through(one_hot_of_largest(scores, dim), soft) if hard else soft


def hard_concrete(
    logits: Tensor,
    temperature: float = 2 / 3,
    stretch: tuple[float, float] = (-0.1, 1.1),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw gates from 0 to 1 that are exactly 0 or 1 with positive probability; gradients pass between.

    A binary concrete variable is stretched beyond [0, 1] and cut off. The gradient of a loss of the gates is unbiased
    as one of this distribution, and biased as one of gates that are only 0 or 1.

    Args:
        logits: Scores (``log alpha``), of any shape and floating dtype.
        temperature: Of the concrete distribution, above 0 (``beta``).
        stretch: Below 0, and above 1 (``gamma, zeta``).
        generator: Of the device of ``logits``; default torch's own. In compiled code one breaks the graph.

    Returns:
        Gates of the shape and dtype of ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, ``stretch`` does not reach beyond [0, 1], or the generator
            belongs to another device.

    Source: C. Louizos, M. Welling, D. P. Kingma: Learning Sparse Neural Networks through L0 Regularization, 2018
    (arXiv 1712.01312), equations 10 and 11.
    """
    check_floating(logits, "logits")
    check_temperature(temperature)
    low, high = _check_stretch(stretch)
    uniform = _uniform(logits, generator)
    noise = uniform.log() - (-uniform).log1p()
    concrete = ((logits.to(_wide(logits)) + noise) / temperature).sigmoid()
    return (concrete * (high - low) + low).clamp(0, 1).to(logits.dtype)


def hard_concrete_l0(logits: Tensor, temperature: float = 2 / 3, stretch: tuple[float, float] = (-0.1, 1.1)) -> Tensor:
    """Return the probability that a hard concrete gate is not 0: their sum is the expected number of open gates.

    Args:
        logits: Scores, of any shape and floating dtype.
        temperature: As in :func:`hard_concrete`.
        stretch: As in :func:`hard_concrete`.

    Returns:
        Probabilities of the shape and dtype of ``logits``, with exact gradients.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, or ``stretch`` does not reach beyond [0, 1].

    Source: C. Louizos, M. Welling, D. P. Kingma, 2018 (arXiv 1712.01312), equation 12.
    """
    check_floating(logits, "logits")
    check_temperature(temperature)
    low, high = _check_stretch(stretch)
    return (logits - temperature * math.log(-low / high)).sigmoid()


def hard_concrete_mean(
    logits: Tensor, temperature: float = 2 / 3, stretch: tuple[float, float] = (-0.1, 1.1)
) -> Tensor:
    """Return the mean of a hard concrete gate.

    It is the integral of ``P(z > t)`` over t from 0 to 1, by Gauss-Legendre quadrature (error below 1e-6 for
    temperatures from .1 to 2).

    Args:
        logits: Scores, of any shape and floating dtype.
        temperature: As in :func:`hard_concrete`.
        stretch: As in :func:`hard_concrete`.

    Returns:
        Means of the shape and dtype of ``logits``, with exact gradients. They are never exactly 0: see
        :func:`hard_concrete_estimate`.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or the temperature no number.
        ValueError: If the temperature is not above 0, or ``stretch`` does not reach beyond [0, 1].
    """
    check_floating(logits, "logits")
    check_temperature(temperature)
    low, high = _check_stretch(stretch)
    wide = logits.to(_wide(logits))
    concrete = (_POINTS - low) / (high - low)
    tails = (wide.unsqueeze(-1) - temperature * concrete.logit().to(wide)).sigmoid()
    return (tails * _WEIGHTS.to(wide)).sum(-1).to(logits.dtype)


def hard_concrete_estimate(logits: Tensor, stretch: tuple[float, float] = (-0.1, 1.1)) -> Tensor:
    """Return the fixed gates that the paper takes after training, many of them exactly 0 or 1.

    Args:
        logits: Scores, of any shape and floating dtype.
        stretch: As in :func:`hard_concrete`.

    Returns:
        ``sigmoid(logits)``, stretched and cut off, of the shape and dtype of ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor.
        ValueError: If ``stretch`` does not reach beyond [0, 1].

    Source: C. Louizos, M. Welling, D. P. Kingma, 2018 (arXiv 1712.01312), equation 13.
    """
    check_floating(logits, "logits")
    low, high = _check_stretch(stretch)
    return (logits.sigmoid() * (high - low) + low).clamp(0, 1)


def _check_stretch(stretch: tuple[float, float]) -> tuple[float, float]:
    low, high = stretch
    if not (-math.inf < low < 0 and 1 < high < math.inf):
        raise ValueError(f"stretch must be a number below 0 and one above 1, such as (-0.1, 1.1); it is {stretch!r}")
    return float(low), float(high)


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype of noise and sums: uniform numbers of half precision are too coarse."""
    return torch.promote_types(x.dtype, torch.float32)


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw numbers strictly between 0 and 1 for each element."""
    check_generator(generator, x)
    dtype = _wide(x)
    # torch.rand draws [0, 1); the smallest number above 0 has a finite logarithm.
    return torch.rand(x.shape, dtype=dtype, device=x.device, generator=generator).clamp(min=torch.finfo(dtype).tiny)


def check_generator(generator: torch.Generator | None, x: Tensor) -> None:
    """Raise if a generator belongs to another device than a tensor."""
    if generator is not None and not same_device(generator.device, x.device):
        raise ValueError(f"generator is on {generator.device}, the tensor on {x.device}; both must be on one device")


def _quadrature() -> tuple[Tensor, Tensor]:
    """Return points and weights of Gauss and Legendre for integrals from 0 to 1, by Golub and Welsch."""
    n = torch.arange(1, _NODES, dtype=torch.float64, device="cpu")
    off_diagonal = n / (4 * n.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return (values + 1) / 2, vectors[0].square()


_POINTS, _WEIGHTS = _quadrature()
