"""The hyper step: hyperparameters move down the gradient of the validation loss through the best response."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sthyper.selftuning._gradients import Closure, apply_gradients, check_hyper_optimizers, gradients_of
from sthyper.selftuning.hyperparameters import Hyperparameters

__all__ = ["HyperStepResult", "Notices", "apply_hypergradients", "hyper_step", "hypergradients"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HyperStepResult:
    """What a hyper step did.

    Args:
        loss: Validation loss before the step (0-d, detached), without the entropy.
        gradients: Hypergradients by name, with respect to the unconstrained numbers; those of gates and choices with
            respect to their logits, by ``name=option``.
        scale_gradients: The same for the unconstrained scales; empty if they are not tuned.
        skipped: Whether nothing was changed since a hypergradient was not finite.
        idle: Names that were not moved since perturbing them makes no difference.
    """

    loss: Tensor
    gradients: dict[str, float] = field(default_factory=dict)
    scale_gradients: dict[str, float] = field(default_factory=dict)
    skipped: bool = False
    idle: tuple[str, ...] = ()


def hyper_step(
    closure: Closure,
    hyperparameters: Hyperparameters,
    hyper_optimizer: Optimizer,
    scale_optimizer: Optimizer | None = None,
    entropy_weight: float = 0.0,
    bound: float | None = 4.0,
    scale_bounds: tuple[float, float] | None = (0.1, 2.0),
    batch_size: int | None = None,
    *,
    groups: int | None = None,
) -> HyperStepResult:
    """Move the hyperparameters down the gradient of the validation loss through the best response.

    Without ``scale_optimizer`` they are at their centre; with it they are perturbed and the scales are tuned too, on
    ``loss - entropy_weight * entropy`` (MacKay et al. 2019, arXiv 1903.03088, section 3.3). Gates and choices are
    sampled, and their logits get the straight-through gradient. Nothing else gets a gradient.

    Example::

        with evaluating(model):
            hyper_step(lambda: F.cross_entropy(model(x_val), y_val), hyperparameters, hyper_optimizer)

    Args:
        closure: Returns the validation loss (0-d), of the model in evaluation mode; see :func:`evaluating`.
        hyperparameters: The hyperparameters.
        hyper_optimizer: Holds ``hyperparameters.raw``, with gates or choices ``hyperparameters.tuned()``.
        scale_optimizer: Holds ``hyperparameters.raw_scale``; ``None`` if scales are fixed.
        entropy_weight: Weight of the entropy of the perturbations, for tuned scales.
        bound: Largest unconstrained number, see ``Hyperparameters.clamp_``.
        scale_bounds: Smallest and largest tuned scale; ``None`` for none.
        batch_size: Number of examples, for tuned scales and for gates and choices: each example has a sample of its
            own then, which is less noisy than one for all.
        groups: In how many groups these are cut, for tuned scales.

    Returns:
        What was done. A step whose hypergradients are not all finite is skipped. Hyperparameters whose perturbed
        values make no difference are not moved.

    Raises:
        TypeError: If an optimiser is none, or needs a closure itself.
        ValueError: If an optimiser does not hold what it should, there is no ``batch_size`` for tuned scales or an
            ``entropy_weight`` without them, or the loss does not depend on the hyperparameters.
    """
    check_hyper_optimizers(hyperparameters, hyper_optimizer, scale_optimizer)
    if entropy_weight and scale_optimizer is None:
        raise ValueError(f"entropy_weight={entropy_weight!r} needs a scale_optimizer: it acts on the scales only")
    loss, gradients = hypergradients(
        closure,
        hyperparameters,
        entropy_weight=entropy_weight,
        batch_size=_size_for_scales(batch_size) if scale_optimizer is not None else None,
        groups=groups,
        examples=batch_size,
    )
    return apply_hypergradients(
        hyperparameters, loss, gradients, hyper_optimizer, scale_optimizer, bound=bound, scale_bounds=scale_bounds
    )


def hypergradients(
    closure: Closure,
    hyperparameters: Hyperparameters,
    *,
    entropy_weight: float = 0.0,
    batch_size: int | None = None,
    groups: int | None = None,
    examples: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the validation loss and its gradients: the first half of :func:`hyper_step`.

    Between the halves, several processes can average the gradients.

    Args:
        closure: See :func:`hyper_step`.
        hyperparameters: The hyperparameters.
        entropy_weight: See :func:`hyper_step`.
        batch_size: Number of examples to perturb; ``None`` for the centre.
        groups: In how many groups these are cut.
        examples: Number of examples for which gates and choices are sampled at the centre; ``None`` for one sample.

    Returns:
        The loss (0-d, detached), and the gradients (``H`` each) of ``raw`` and, if perturbed, ``raw_scale``; then those
        of the logits of gates and choices.

    Raises:
        ValueError: If the loss does not depend on the hyperparameters.
    """
    context = (
        hyperparameters.centred(tracks=True, batch_size=examples)
        if batch_size is None
        else hyperparameters.perturbed(batch_size, groups, tracks=True)
    )
    wanted = [hyperparameters.raw] if batch_size is None else [hyperparameters.raw, hyperparameters.raw_scale]
    wanted += hyperparameters.discrete.logits()
    with torch.enable_grad(), context:
        loss = closure()
    objective = loss - entropy_weight * hyperparameters.entropy() if entropy_weight else loss
    gradients = gradients_of(objective, wanted)
    if gradients[0] is None and (hyperparameters.continuous or all(gradient is None for gradient in gradients)):
        raise ValueError(
            "the validation loss does not depend on the hyperparameters: the model must be transformed by self_tune "
            "with these hyperparameters (or use gates and choices of theirs), and be called in the closure"
        )
    return loss.detach(), tuple(torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True))


@torch.no_grad()
def apply_hypergradients(
    hyperparameters: Hyperparameters,
    loss: Tensor,
    gradients: Sequence[Tensor],
    hyper_optimizer: Optimizer,
    scale_optimizer: Optimizer | None = None,
    *,
    bound: float | None = 4.0,
    scale_bounds: tuple[float, float] | None = (0.1, 2.0),
) -> HyperStepResult:
    """Do the second half of :func:`hyper_step`.

    Args:
        hyperparameters: The hyperparameters.
        loss: The validation loss, for the result.
        gradients: What :func:`hypergradients` returned.
        hyper_optimizer: See :func:`hyper_step`.
        scale_optimizer: See :func:`hyper_step`.
        bound: See :func:`hyper_step`.
        scale_bounds: See :func:`hyper_step`.
    """
    discrete = hyperparameters.discrete
    tuned = [hyperparameters.raw] if scale_optimizer is None else [hyperparameters.raw, hyperparameters.raw_scale]
    names = hyperparameters.continuous
    by_name = [dict(zip(names, gradient.tolist(), strict=True)) for gradient in gradients[: len(tuned)]]
    scale_gradients = by_name[1] if len(by_name) > 1 else {}
    of_logits = gradients[len(gradients) - len(discrete) :]
    by_name[0] |= discrete.gradients(of_logits)
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return HyperStepResult(loss, by_name[0], scale_gradients, skipped=True)
    still = hyperparameters.idle()
    unused = [~gradient.any() for gradient in of_logits]
    resting = [still] * len(tuned) + [u.expand_as(g) for u, g in zip(unused, of_logits, strict=True)]
    gradients = [*gradients[: len(tuned)], *map(torch.add, of_logits, discrete.cost_gradients())]
    tuned += discrete.logits()
    before = [parameter.detach().clone() for parameter in tuned]
    optimizers = [hyper_optimizer] if scale_optimizer is None else [hyper_optimizer, scale_optimizer]
    masked = [gradient.masked_fill(rest, 0.0) for gradient, rest in zip(gradients, resting, strict=True)]
    apply_gradients(optimizers, tuned, masked)
    hyperparameters.clamp_(bound, None if scale_optimizer is None else scale_bounds)
    # Momentum would move them on.
    for parameter, old, rest in zip(tuned, before, resting, strict=True):
        parameter.copy_(torch.where(rest, old, parameter))
    at_rest = [*still.tolist(), *map(bool, unused)]
    idle = tuple(name for name, rests in zip(hyperparameters.names, at_rest, strict=True) if rests)
    return HyperStepResult(loss, by_name[0], scale_gradients, idle=idle)


class Notices:
    """Says once what a run should not pass over in silence, and counts it.

    Attributes:
        skipped: Number of hyper steps that were skipped.
        idle: Names of hyperparameters that were at rest at some time.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.idle: set[str] = set()

    def hear(self, result: HyperStepResult, step: int) -> None:
        """Take note of a hyper step.

        Args:
            result: What it did.
            step: Number of the training step before it, for the message.
        """
        if result.skipped:
            self.skipped += 1
            if self.skipped == 1:
                wrong = [name for name, value in result.gradients.items() if not abs(value) < float("inf")]
                logger.warning(
                    "step %d: hypergradients of %s are not finite, the hyper step is skipped; further ones are counted",
                    step,
                    wrong or "the scales",
                )
        if news := [name for name in result.idle if name not in self.idle]:
            self.idle.update(news)
            logger.warning(
                "step %d: perturbing hyperparameters %s makes no difference, they are not moved while that is so",
                step,
                news,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"skipped": self.skipped, "idle": sorted(self.idle)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.skipped, self.idle = int(state["skipped"]), set(state["idle"])


def _size_for_scales(batch_size: int | None) -> int:
    if batch_size is None:
        raise ValueError("batch_size must be given if scales are tuned: each example has its own perturbation then")
    return batch_size
