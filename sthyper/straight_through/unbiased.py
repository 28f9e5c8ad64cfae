"""Unbiased gradients for samples: score functions with a baseline, and ARM.

A loss of samples has no gradient with respect to their probabilities. These functions return a surrogate: its value is
the mean loss, its gradient an unbiased estimate of the gradient of the expected loss, for the logits and for whatever
else the loss depends on. First derivatives only: those of higher order are not unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.errors import closest
from sthyper.straight_through.family import check_floating
from sthyper.straight_through.relaxed import check_generator
from sthyper.straight_through.sampler import is_batched

__all__ = ["Baseline", "MovingBaseline", "arm", "bernoulli_log_prob", "reinforce"]

Baseline = Literal["leave_one_out", "none"]


def bernoulli_log_prob(sample: Tensor, logits: Tensor, batch_dims: int = 1) -> Tensor:
    """Return the log probability of zeros and ones.

    Args:
        sample: Zeros and ones, such as ``(n, *gates)``; no gradient passes.
        logits: Scores of a 1, floating, of a shape that broadcasts to that of ``sample``.
        batch_dims: How many axes of ``sample``, from the first one, are kept; over the others it is summed up.

    Returns:
        Log probabilities of the shape of the first ``batch_dims`` axes, of the dtype of ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating tensor, or ``sample`` no tensor.
        ValueError: If ``sample`` holds something else (looked at on the CPU only), ``batch_dims`` is more than its
            axes, or ``logits`` does not broadcast to it.
    """
    check_floating(logits, "logits")
    if not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a tensor of zeros and ones; it is {type(sample).__name__}")
    _check_zeros_and_ones(sample)
    if not 0 <= batch_dims <= sample.dim():
        raise ValueError(f"batch_dims must be from 0 to {sample.dim()}, the axes of sample; it is {batch_dims}")
    try:
        logits = logits.expand(sample.shape)
    except RuntimeError:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} must broadcast to samples of shape {tuple(sample.shape)}"
        ) from None
    # log(sigmoid(x)) is -softplus(-x), which unlike logsigmoid works under vmap of jvp.
    log_prob = -F.softplus(torch.where(sample.detach() > 0.5, -logits, logits), threshold=40)
    return log_prob.flatten(batch_dims).sum(-1) if batch_dims < sample.dim() else log_prob


def _check_zeros_and_ones(sample: Tensor) -> None:
    # Looking at values makes a GPU wait, and cannot be done while compiling and inside vmap.
    if sample.device.type != "cpu" or torch.compiler.is_compiling() or is_batched(sample):
        return
    if not bool(((sample == 0) | (sample == 1)).all()):
        raise ValueError(
            "sample must hold zeros and ones; some are others: those of hard concrete gates have no such probability"
        )


def reinforce(losses: Tensor, log_prob: Tensor, baseline: Baseline | float | Tensor = "leave_one_out") -> Tensor:
    """Return a loss with the score-function gradient: of any discrete choices, from one evaluation.

    Example:
        >>> import torch
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> sample = torch.bernoulli(logits.detach().sigmoid().expand(8, 3))
        >>> losses = sample.sum(1)
        >>> reinforce(losses, bernoulli_log_prob(sample, logits)).backward()

    Args:
        losses: Loss of each sample, of any shape. Where they depend on other parameters these get their gradients. The
            samples themselves must be drawn without gradients.
        log_prob: Log probability of each sample, of the same shape, summed over all choices that the loss depends on:
            :func:`bernoulli_log_prob` for gates.
        baseline: What is subtracted from the losses to make the gradient less noisy. ``"leave_one_out"``: for each the
            mean of the others, which must be drawn independently. A number or a tensor that broadcasts to ``losses``:
            it must not depend on these samples; see :class:`MovingBaseline`. ``"none"``: nothing.

    Returns:
        A 0-d surrogate, whose value is the mean of ``losses``.

    Raises:
        TypeError: If ``losses`` or ``log_prob`` is not a floating tensor.
        ValueError: If the shapes differ or are empty, the baseline is unknown or does not broadcast, or
            ``"leave_one_out"`` has a single loss.

    Source: R. J. Williams: Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning,
    1992; W. Kool, H. van Hoof, M. Welling: Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
    """
    check_floating(losses, "losses")
    check_floating(log_prob, "log_prob")
    if losses.shape != log_prob.shape:
        raise ValueError(
            f"losses and log_prob must have one number for each sample; they have the shapes {tuple(losses.shape)} and "
            f"{tuple(log_prob.shape)}"
        )
    if not losses.numel():
        raise ValueError("losses must hold at least one loss; it is empty")
    # Sums of losses of half precision could overflow.
    wide = losses.detach().to(torch.promote_types(losses.dtype, torch.float32))
    advantages = (wide - _baseline_of(wide, baseline)).to(log_prob.dtype)
    # The difference is 0 with the derivatives of log_prob.
    return losses.mean() + (advantages * (log_prob - log_prob.detach())).mean()


def arm(
    loss: Callable[[Tensor], Tensor],
    logits: Tensor,
    n_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a loss with the augment-REINFORCE-merge gradient: of on/off choices, from two evaluations.

    Both evaluations use the same uniform numbers, one of them mirrored, which makes the difference of their losses
    small where the choice is nearly certain.

    Args:
        loss: Is called once with zeros and ones ``(2 * n_samples, *gates)`` and returns a loss for each,
            ``(2 * n_samples,)``. Where it depends on other parameters these get their gradients.
        logits: Scores of a 1, floating, of the shape of the gates.
        n_samples: Number of pairs.
        generator: Of the device of ``logits``; default torch's own.

    Returns:
        A 0-d surrogate, whose value is the mean of all losses (each of them is one of a fair sample).

    Raises:
        TypeError: If ``logits`` is not a floating tensor.
        ValueError: If ``n_samples`` is below 1, ``loss`` does not return one loss for each sample, or the generator
            belongs to another device.

    Source: M. Yin, M. Zhou: ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks, 2019
    (arXiv 1807.11143).
    """
    check_floating(logits, "logits")
    check_generator(generator, logits)
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; it is {n_samples}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    uniform = torch.rand((n_samples, *logits.shape), dtype=dtype, device=logits.device, generator=generator)
    scores = logits.detach().to(dtype)
    mirrored, plain = uniform > (-scores).sigmoid(), uniform < scores.sigmoid()
    losses = loss(torch.cat([mirrored, plain]).to(logits.dtype))
    if not isinstance(losses, Tensor) or losses.shape != (2 * n_samples,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return a tensor of {2 * n_samples} losses, one for each sample; it returned {got}")
    of_mirrored, of_plain = losses.detach().to(dtype).chunk(2)
    difference = (of_mirrored - of_plain).view(-1, *[1] * logits.dim())
    gradient = (difference * (uniform - 0.5)).mean(0).to(logits.dtype)
    return losses.mean() + (gradient * (logits - logits.detach())).sum()


class MovingBaseline(nn.Module):
    """A moving mean of earlier losses, as a baseline where there is one sample a step.

    Example:
        >>> import torch
        >>> baseline = MovingBaseline(decay=0.5)
        >>> [float(baseline(torch.tensor(loss))) for loss in (4.0, 2.0, 1.0)]
        [0.0, 4.0, 2.6666667461395264]

    Args:
        decay: Part of its weight that an earlier loss keeps at each step, from 0 to below 1.

    Raises:
        ValueError: If ``decay`` is out of range.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to below 1; it is {decay!r}")
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def forward(self, losses: Tensor) -> Tensor:
        """Return the mean of earlier losses (0-d; 0 before the first), and take in the mean of these.

        Args:
            losses: Losses of any shape; a mean that is not finite is left out.
        """
        before = torch.where(self.weight > 0, self.total / self.weight.clamp(min=1e-12), 0.0)
        mean = losses.mean().to(self.total.dtype)
        finite = mean.isfinite()
        self.total.copy_(torch.where(finite, self.decay * self.total + (1 - self.decay) * mean, self.total))
        self.weight.copy_(torch.where(finite, self.decay * self.weight + (1 - self.decay), self.weight))
        return before


def _baseline_of(losses: Tensor, baseline: Baseline | float | Tensor) -> Tensor | float:
    if isinstance(baseline, Tensor):
        try:
            return baseline.detach().expand(losses.shape)
        except RuntimeError:
            raise ValueError(
                f"baseline of shape {tuple(baseline.shape)} must broadcast to losses of shape {tuple(losses.shape)}"
            ) from None
    if not isinstance(baseline, str):
        return float(baseline)
    if baseline not in get_args(Baseline):
        raise ValueError(
            f"baseline must be a number, a tensor or one of {list(get_args(Baseline))}; it is {baseline!r}"
            f"{closest(baseline, get_args(Baseline))}"
        )
    if baseline == "none":
        return 0.0
    n = losses.numel()
    if n < 2:
        raise ValueError(
            "baseline 'leave_one_out' needs at least two losses; there is one: take more samples, "
            "MovingBaseline()(loss) or 'none'"
        )
    return (losses.sum() - losses) / (n - 1)
