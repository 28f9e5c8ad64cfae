"""Gradients without ``.grad``, and the checks of what optimisers hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sthyper.selftuning.hyperparameters import Hyperparameters

__all__ = [
    "Closure",
    "apply_gradients",
    "check_hyper_optimizers",
    "check_optimizers",
    "evaluating",
    "gradients_of",
    "parameters_of",
]

Closure = Callable[[], Tensor]


def gradients_of(loss: Tensor, parameters: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the gradients of a loss, ``None`` where it does not depend on a parameter; no ``.grad`` is touched.

    Args:
        loss: A loss (0-d).
        parameters: The parameters.

    Raises:
        ValueError: If the loss is not 0-d.
    """
    if loss.dim():
        raise ValueError(f"the loss must be a single number (0-d), got shape {tuple(loss.shape)}; take its mean")
    parameters = list(parameters)
    if not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def apply_gradients(
    optimizers: Sequence[Optimizer],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    max_norm: float | None = None,
) -> None:
    """Step optimisers with given gradients; ``.grad`` is what it was before afterwards.

    Args:
        optimizers: They hold the parameters.
        parameters: The parameters.
        gradients: Their gradients, ``None`` for parameters that shall stay.
        max_norm: The gradients are scaled down to this norm.
    """
    before = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    try:
        if max_norm is not None:
            nn.utils.clip_grad_norm_(list(parameters), max_norm)
        for optimizer in optimizers:
            optimizer.step()
    finally:
        for parameter, old in zip(parameters, before, strict=True):
            parameter.grad = old


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode for a while; then each module is as it was before.

    Args:
        model: The model.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_optimizers(hyperparameters: Hyperparameters, optimizers: Mapping[str, Optimizer]) -> list[Tensor]:
    """Return what optimisers of weights hold, in their order, without what is frozen.

    Args:
        hyperparameters: The hyperparameters, which they must not hold.
        optimizers: The optimisers by argument, for messages.

    Raises:
        TypeError: If one is no optimiser, or needs a closure itself.
        ValueError: If one holds hyperparameters, or two hold the same parameter.
    """
    own = _names(hyperparameters)
    seen: dict[int, str] = {}
    result: list[Tensor] = []
    for argument, optimizer in optimizers.items():
        _check_kind(argument, optimizer)
        for parameter in parameters_of(optimizer):
            if id(parameter) in own:
                raise ValueError(
                    f"{argument} holds the hyperparameters ({own[id(parameter)]}), which have an optimiser of their "
                    "own; build it with general_parameters(model) or response_parameters(model), not model.parameters()"
                )
            other = seen.setdefault(id(parameter), argument)
            if other != argument:
                raise ValueError(
                    f"{other} and {argument} hold the same parameter, of shape {tuple(parameter.shape)}; give "
                    "general_parameters(model) to one and response_parameters(model) to the other"
                )
            result.append(parameter)
    return result


def check_hyper_optimizers(
    hyperparameters: Hyperparameters, hyper_optimizer: Optimizer, scale_optimizer: Optimizer | None
) -> None:
    """Raise an error unless these hold the hyperparameters and the scales, each once."""
    raw = "tuned(), each" if len(hyperparameters.discrete) else "raw"
    for argument, optimizer, name, wanted in (
        ("hyper_optimizer", hyper_optimizer, raw, hyperparameters.tuned()),
        ("scale_optimizer", scale_optimizer, "raw_scale", [hyperparameters.raw_scale]),
    ):
        if optimizer is None:
            if argument == "hyper_optimizer":
                raise TypeError("hyper_optimizer must be an optimiser, got None")
            continue
        _check_kind(argument, optimizer)
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if sorted(held) != sorted(id(parameter) for parameter in wanted):
            raise ValueError(
                f"{argument} must hold hyperparameters.{name} once and nothing else, got {len(held)} parameters: "
                f"{_describe(optimizer, hyperparameters)}"
            )


def _check_kind(argument: str, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{argument} must be an optimiser, got {optimizer!r}")
    if isinstance(optimizer, LBFGS):
        raise TypeError(f"{argument}: LBFGS evaluates the loss several times a step; use a first-order optimiser")


def _describe(optimizer: Optimizer, hyperparameters: Hyperparameters) -> list[str]:
    names = _names(hyperparameters)
    return [names.get(id(p), f"{tuple(p.shape)}") for group in optimizer.param_groups for p in group["params"]]


def _names(hyperparameters: Hyperparameters) -> dict[int, str]:
    own = {id(hyperparameters.raw): "raw", id(hyperparameters.raw_scale): "raw_scale"}
    return own | {id(part.logits): f"logits of {name!r}" for name, part in hyperparameters.discrete.items()}


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return what an optimiser holds, in its order, without what is frozen."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
