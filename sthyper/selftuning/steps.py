"""The steps of self-tuning training as plain functions, for loops of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import Optimizer

from sthyper.errors import closest
from sthyper.selftuning._gradients import (
    Closure,
    apply_gradients,
    check_optimizers,
    evaluating,
    gradients_of,
    parameters_of,
)
from sthyper.selftuning._hyper_step import (
    HyperStepResult,
    Notices,
    apply_hypergradients,
    hyper_step,
    hypergradients,
)
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.linearise import linearised, response_loss
from sthyper.selftuning.perturbation import Perturbation

__all__ = [
    "Closure",
    "HyperStepResult",
    "Notices",
    "PredictionLoss",
    "TrainStepResult",
    "Update",
    "apply_gradients",
    "apply_hypergradients",
    "centre_step",
    "delta_stn_step",
    "evaluating",
    "gradients_of",
    "hyper_step",
    "hypergradients",
    "perturbed_loss",
    "stn_step",
]

Update = Literal["linearised", "nonlinear", "joint"]


@dataclass(frozen=True, eq=False)
class PredictionLoss:
    """A closure in two parts, for losses that are no function of :mod:`torch.nn.functional`.

    Args:
        predict: Returns what the model predicts: a tensor, or a nested structure with what the loss needs beside it.
        criterion: Returns the loss (0-d) of that. Penalties belong here.
    """

    predict: Callable[[], Any]
    criterion: Callable[[Any], Tensor]

    def __call__(self) -> Tensor:
        """Return the loss."""
        return self.criterion(self.predict())


@dataclass(frozen=True, eq=False)
class TrainStepResult:
    """What a training step did.

    Args:
        loss: Training loss before the step (0-d, detached): of the centre update if there is one, else perturbed.
        response_loss: That of the response update, ``None`` without.
    """

    loss: Tensor
    response_loss: Tensor | None = None


def stn_step(
    closure: Closure,
    hyperparameters: Hyperparameters,
    optimizer: Optimizer | Sequence[Optimizer],
    batch_size: int,
    groups: int | None = None,
    *,
    max_norm: float | None = None,
) -> TrainStepResult:
    """Do a training step under perturbation, of all weights together (MacKay et al. 2019, arXiv 1903.03088, alg. 1).

    Example::

        model.train()
        stn_step(lambda: F.cross_entropy(model(x), y), hyperparameters, optimizer, batch_size=len(x))

    Args:
        closure: Returns the training loss (0-d). It is called once, with the hyperparameters perturbed.
        hyperparameters: The hyperparameters.
        optimizer: Holds the weights and the responses; several are stepped one after the other.
        batch_size: Number of examples of the batch.
        groups: In how many groups the batch is cut, see ``model.selftuning.groups``. Default is a perturbation for each
            example.
        max_norm: Gradients are scaled down to this norm, ``None`` for no bound.

    Raises:
        TypeError: If an optimiser is none, or needs a closure itself (LBFGS).
        ValueError: If an optimiser holds hyperparameters, or the optimisers share parameters.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    parameters = check_optimizers(hyperparameters, {f"optimizer {i}": o for i, o in enumerate(optimizers)})
    with hyperparameters.perturbed(batch_size, groups):
        loss = closure()
    apply_gradients(optimizers, parameters, gradients_of(loss, parameters), max_norm)
    return TrainStepResult(loss.detach())


def centre_step(
    closure: Closure,
    hyperparameters: Hyperparameters,
    optimizer: Optimizer,
    batch_size: int,
    *,
    max_norm: float | None = None,
) -> TrainStepResult:
    """Do a training step of the general weights alone, with the hyperparameters at their centre.

    Responses may be updated in some of the steps only, by :func:`delta_stn_step`; these are the others. They cost as
    much as those of the plain network. Gates and choices are sampled.

    Args:
        closure: Returns the training loss (0-d). It is called once.
        hyperparameters: The hyperparameters.
        optimizer: Holds ``general_parameters(model)``.
        batch_size: Number of examples of the batch.
        max_norm: Gradients are scaled down to this norm, ``None`` for no bound.

    Raises:
        TypeError: If the optimiser is none, or needs a closure itself (LBFGS).
        ValueError: If it holds hyperparameters.
    """
    parameters = check_optimizers(hyperparameters, {"optimizer": optimizer})
    return TrainStepResult(_centre_update(closure, hyperparameters, optimizer, parameters, batch_size, max_norm))


def _centre_update(
    closure: Closure,
    hyperparameters: Hyperparameters,
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    batch_size: int,
    max_norm: float | None,
) -> Tensor:
    with hyperparameters.centred(batch_size=batch_size):
        loss = closure()
    apply_gradients([optimizer], parameters, gradients_of(loss, parameters), max_norm)
    return loss.detach()


def delta_stn_step(
    closure: Closure,
    hyperparameters: Hyperparameters,
    general_optimizer: Optimizer,
    response_optimizer: Optimizer,
    batch_size: int,
    update: Update = "linearised",
    groups: int | None = None,
    *,
    max_norm: float | None = None,
    response_closure: Closure | None = None,
    response_size: int | None = None,
) -> TrainStepResult:
    """Do a training step of Delta-STN (Bae & Grosse 2020, arXiv 2010.13514, alg. 1).

    ``"linearised"``: the general weights are updated with the hyperparameters at their centre, then the responses at
    the prediction that is linearised in the perturbation. ``"nonlinear"``: the responses at the perturbed prediction.
    ``"joint"``: both at the perturbed prediction, in one pass; that costs as much as :func:`stn_step`. Gates and
    choices are sampled in all of them.

    Example::

        model.train()
        general = torch.optim.SGD(general_parameters(model), lr=0.01, momentum=0.9)
        response = torch.optim.Adam(response_parameters(model), lr=0.0015)
        delta_stn_step(lambda: F.cross_entropy(model(x), y), hyperparameters, general, response, batch_size=len(x))

    Args:
        closure: Returns the training loss (0-d); a :class:`PredictionLoss` if the loss is no function of
            :mod:`torch.nn.functional`. It is called for each update, with the strengths of that pass.
        hyperparameters: The hyperparameters.
        general_optimizer: Holds ``general_parameters(model)``.
        response_optimizer: Holds ``response_parameters(model)``.
        batch_size: Number of examples of the batch.
        update: See above.
        groups: In how many groups the batch is cut; the linearised pass gains nothing from groups. Default is a
            perturbation for each example.
        max_norm: Gradients of each optimiser are scaled down to this norm, ``None`` for no bound.
        response_closure: Returns the training loss for the response update, say of some of the examples, which is as
            good and costs less. Default is ``closure``. Not for ``"joint"``.
        response_size: Number of its examples.

    Raises:
        NotImplementedError: With ``"linearised"``, if an operation of the model has no forward-mode derivative.
        TypeError: If an optimiser is none, or needs a closure itself (LBFGS).
        ValueError: If ``update`` is unknown, an optimiser holds hyperparameters or both hold the same parameter, or the
            loss cannot be linearised.
    """
    check_update(update)
    if (response_closure is None) != (response_size is None):
        raise ValueError("response_closure and response_size belong together: give both or none")
    if response_closure is not None and update == "joint":
        raise ValueError("response_closure has no effect with update='joint', which has one pass")
    both = check_optimizers(
        hyperparameters, {"general_optimizer": general_optimizer, "response_optimizer": response_optimizer}
    )
    responses = parameters_of(response_optimizer)
    n = len(both) - len(responses)
    if update == "joint":
        with hyperparameters.perturbed(batch_size, groups):
            loss = closure()
        gradients = gradients_of(loss, both)
        apply_gradients([general_optimizer], both[:n], gradients[:n], max_norm)
        apply_gradients([response_optimizer], both[n:], gradients[n:], max_norm)
        return TrainStepResult(loss.detach())
    loss = _centre_update(closure, hyperparameters, general_optimizer, both[:n], batch_size, max_norm)
    if not hyperparameters.continuous:  # gates and choices only: there is nothing to respond to
        return TrainStepResult(loss)
    if response_closure is not None and response_size is not None:
        closure, batch_size = response_closure, response_size
    # Tracked so that running statistics are left alone.
    perturbation = hyperparameters.draw(batch_size, groups, tracks=update == "nonlinear")
    answer = perturbed_loss(closure, hyperparameters, perturbation, linear=update == "linearised")
    apply_gradients([response_optimizer], responses, gradients_of(answer, responses), max_norm)
    return TrainStepResult(loss, answer.detach())


def perturbed_loss(
    closure: Closure, hyperparameters: Hyperparameters, perturbation: Perturbation, linear: bool = True
) -> Tensor:
    """Return the loss of the response update, with gradients to the responses.

    Args:
        closure: See :func:`delta_stn_step`.
        hyperparameters: The hyperparameters.
        perturbation: What was drawn.
        linear: Whether the prediction is linearised.
    """
    if not linear:
        with hyperparameters.use(perturbation):
            return closure()
    if not isinstance(closure, PredictionLoss):
        return response_loss(closure, hyperparameters, perturbation)
    prediction = linearised(closure.predict, hyperparameters, perturbation)
    # Weights are linear in the perturbation: a penalty of theirs sees it as it is.
    with hyperparameters.use(perturbation):
        return closure.criterion(prediction)


def check_update(update: str) -> None:
    """Raise a ValueError unless an update is known."""
    if update not in get_args(Update):
        raise ValueError(
            f"update must be one of {list(get_args(Update))}, got {update!r}{closest(update, get_args(Update))}"
        )
