"""Regularisers of the loss with a strength for each example: smoothing, mixup, penalties of activations and weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sthyper.selftuning._strength import Strength, as_strength, check_number, per_example, uniform, working_dtype
from sthyper.selftuning.linearise import collapse

__all__ = [
    "activation_penalty",
    "mixup",
    "smoothed_cross_entropy",
    "temporal_penalty",
    "weight_decay",
]


def smoothed_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    smoothing: Strength = 0.0,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy with label smoothing of a strength for each example.

    The target of a class becomes ``(1 - smoothing) * target + smoothing / C``. A number as ``smoothing`` is
    :func:`torch.nn.functional.cross_entropy`.

    Args:
        logits: Unnormalised log-probabilities (``B x C`` or ``B x C x ...``).
        targets: Classes (``B`` or ``B x ...``), or probabilities of the shape of ``logits``, as :func:`mixup` returns.
        smoothing: A number, 0-d, or one for each example (``B``); cut to [0, 1]. Gradients do not reach it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. With probabilities the mean is that over all but the classes.
        ignore_index: Class that counts for nothing, also not in the mean.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If ``reduction`` is unknown, or shapes do not fit.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    soft = targets.dtype.is_floating_point
    wanted = logits.shape if soft else logits.shape[:1] + logits.shape[2:]
    if logits.dim() < 2 or targets.shape != wanted:
        raise ValueError(
            f"targets must be classes of shape B x ... or probabilities of the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    if not isinstance(smoothing, Tensor):
        check_number(smoothing, "smoothing", 1.0)
        if soft:
            return F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
        return F.cross_entropy(
            logits, targets, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
        )
    log_p = F.log_softmax(collapse(logits), dim=1)
    if soft:
        hard = -(targets.to(log_p.dtype) * log_p).sum(1)
        counts = None
    else:
        counts = targets != ignore_index
        hard = -log_p.gather(1, targets.where(counts, 0).unsqueeze(1)).squeeze(1)
    e = per_example(smoothing, hard, 0, "smoothing").clamp(0.0, 1.0).to(log_p.dtype)
    loss = (1.0 - e) * hard - e * log_p.mean(1)
    if counts is not None:
        loss = loss.where(counts, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.mean() if counts is None else loss.sum() / counts.sum()


def mixup(
    x: Tensor,
    targets: Tensor,
    alpha: Strength,
    n_classes: int | None = None,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix each example with another one of the batch (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    The weights are those of a ``Beta(alpha, alpha)`` distribution, the larger one for the example itself: that makes no
    difference for the pairs of a batch, and an example with ``alpha = 0`` stays as it is. Results are detached.

    Args:
        x: Inputs (``B x ...``).
        targets: Classes (``B``), or targets that can be averaged, such as probabilities (``B x ...``).
        alpha: A number, 0-d, or one for each example (``B``); negative ones count as 0.
        n_classes: Number of classes; needed if ``targets`` are classes.
        generator: Draws partners and weights; default is torch's own.

    Returns:
        The mixed inputs, and the mixed targets: probabilities (``B x n_classes``) if they were classes.

    Raises:
        TypeError: If ``x`` or ``alpha`` do not hold real numbers.
        ValueError: If shapes do not fit, or ``n_classes`` is missing.
    """
    check_number(alpha, "alpha")
    if targets.shape[:1] != x.shape[:1]:
        raise ValueError(f"x and targets must have as many examples, got {tuple(x.shape)} and {tuple(targets.shape)}")
    a = per_example(alpha, x, 0, "alpha")
    if not targets.dtype.is_floating_point:
        if n_classes is None or targets.dim() != 1:
            raise ValueError(
                f"targets must be classes of shape B with n_classes given, or floating-point numbers, got "
                f"{targets.dtype} of shape {tuple(targets.shape)} and n_classes={n_classes!r}"
            )
        targets = F.one_hot(targets, n_classes).to(x.dtype)
    elif n_classes is not None:
        raise ValueError(f"n_classes={n_classes!r} is for targets that are classes, got {targets.dtype}")
    n = x.shape[0]
    device = x.device if generator is None else generator.device
    partner = torch.randperm(n, generator=generator, device=device).to(x.device)
    weight = _larger_weight(a.reshape(-1).expand(n), uniform((2, n), x, generator))

    def mix(values: Tensor) -> Tensor:
        values = values.detach()
        w = weight.to(values.dtype).reshape([n] + [1] * (values.dim() - 1))
        return w * values + (1.0 - w) * values[partner]

    return mix(x), mix(targets)


def _larger_weight(alpha: Tensor, u: Tensor) -> Tensor:
    """Return the larger of ``v`` and ``1 - v`` for ``v ~ Beta(alpha, alpha)``, from uniform numbers (``2 x B``).

    If ``t`` has Student's distribution with ``2 alpha`` degrees of freedom, ``(1 + t / sqrt(2 alpha + t^2)) / 2`` has
    this one; and ``t^2 = 2 alpha (u^(-1 / alpha) - 1) cos^2(2 pi v)`` (Bailey 1994). So no rejection is needed, and
    small alphas do not underflow.
    """
    some = alpha > 0
    odds = 1.0 / torch.expm1(-torch.log(u[0]) / alpha.where(some, 1.0))
    cosine = torch.cos(2.0 * torch.pi * u[1])
    larger = 0.5 + 0.5 * torch.rsqrt(1.0 + odds / cosine.square())
    return larger.where(some, 1.0)


def activation_penalty(outputs: Tensor, strength: Strength, *, batch_dim: int = 0) -> Tensor:
    """Return ``strength * mean(outputs ** 2)``: activation regularisation (AR) of outputs after dropout.

    Args:
        outputs: Outputs of the last recurrent layer; any shape with an axis of examples.
        strength: A number, 0-d, or one for each example (``B``). Gradients do not reach it.
        batch_dim: Axis of the examples; 1 for ``T x B x D``.

    Returns:
        0-d, the mean over the examples.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If shapes do not fit.
    """
    outputs = collapse(outputs)
    return (per_example(strength, outputs, batch_dim, "strength").to(outputs.dtype) * outputs.square()).mean()


def temporal_penalty(outputs: Tensor, strength: Strength, *, batch_first: bool = False) -> Tensor:
    """Return ``strength * mean((outputs[t + 1] - outputs[t]) ** 2)``: temporal activation regularisation (TAR).

    Args:
        outputs: Outputs of the last recurrent layer before dropout (``T x B x D``, or ``B x T x D`` with
            ``batch_first``).
        strength: A number, 0-d, or one for each example (``B``). Gradients do not reach it.
        batch_first: Whether the first axis is that of the examples.

    Returns:
        0-d, the mean over the examples; 0 if there is one time only.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If shapes do not fit.
    """
    if outputs.dim() != 3:
        raise ValueError(f"outputs must have three axes, got shape {tuple(outputs.shape)}")
    time, batch = (1, 0) if batch_first else (0, 1)
    factor = per_example(strength, outputs, batch, "strength").to(outputs.dtype)
    steps = collapse(outputs).diff(dim=time).square()
    return (factor * steps).mean() if outputs.shape[time] > 1 else (factor * outputs).sum() * 0.0


def weight_decay(squared_norms: Tensor, strength: Strength) -> Tensor:
    """Return the mean over the examples of ``strength / 2 * squared norm``, for the training loss.

    Its gradient is ``strength * weight``, that of the ``weight_decay`` of :class:`torch.optim.SGD`.

    Args:
        squared_norms: What :func:`~sthyper.selftuning.transform.squared_norms` returned: one for each group of examples
            (``G``), or 0-d.
        strength: A number, 0-d, or one for each example (``B``) or group (``G``). Gradients do not reach it.

    Returns:
        0-d, with gradients to the weights.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If there are fewer examples than groups.
    """
    if squared_norms.dim() > 1:
        raise ValueError(f"squared_norms must be 0-d or one for each group, got shape {tuple(squared_norms.shape)}")
    factor = as_strength(strength, squared_norms, "strength").to(working_dtype(squared_norms))
    if factor.dim() and squared_norms.dim() and factor.shape != squared_norms.shape:
        batch, groups = factor.shape[0], squared_norms.shape[0]
        if batch < groups:
            raise ValueError(f"strength has {batch} numbers for {groups} groups of examples")
        # Contiguous chunks whose sizes differ by one at most, the larger ones first: those of a Perturbation.
        small, more = divmod(batch, groups)
        rows = torch.arange(batch, device=factor.device)
        late = more + torch.div(rows - more * (small + 1), small, rounding_mode="floor")
        index = torch.where(rows < more * (small + 1), torch.div(rows, small + 1, rounding_mode="floor"), late)
        squared_norms = squared_norms[index]
    return 0.5 * (factor.to(squared_norms.dtype) * squared_norms).mean()
