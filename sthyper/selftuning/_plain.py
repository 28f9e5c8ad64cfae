"""The parts of a self-tuning model, and the plain model within it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sthyper.selftuning._layers_base import LINK, BestResponse
from sthyper.selftuning._state import SelfTuning
from sthyper.selftuning._tunable_dropout import TUNABLE, replace_everywhere
from sthyper.selftuning.choosing import OneOf
from sthyper.selftuning.linearise import collapse
from sthyper.selftuning.regularisers import DropConnect

__all__ = [
    "export",
    "frozen_statistics",
    "general_parameters",
    "plain_state_dict",
    "response_parameters",
    "squared_norms",
]


def _states(model: nn.Module) -> dict[str, SelfTuning]:
    """Return what makes a model, or parts of it, self-tuning, by path.

    Raises:
        ValueError: If nothing does.
    """
    states = {name: module for name, module in model.named_modules() if isinstance(module, SelfTuning)}
    if not states:
        raise ValueError("model is not self-tuning; transform it with self_tune first")
    return states


def _layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that may have responses, by path."""
    return {name: module for name, module in model.named_modules() if LINK in module.__dict__}


def general_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the plain model: all but responses and hyperparameters.

    Args:
        model: A self-tuning model, or one that holds it.

    Raises:
        ValueError: If it is not self-tuning.
    """
    others = {id(p) for state in _states(model).values() for p in state.parameters()}
    return [p for p in model.parameters() if id(p) not in others]


def response_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the responses.

    Args:
        model: A self-tuning model, or one that holds it.

    Raises:
        ValueError: If it is not self-tuning.
    """
    return [p for state in _states(model).values() for p in state.responses.parameters()]


def _place(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter of a layer, and its name there; masked ones are elsewhere."""
    path, _, attribute = name.rpartition(".")
    owner = layer.get_submodule(path)
    if is_parametrized(owner, attribute):
        parametrizations: Any = owner.parametrizations
        return parametrizations[attribute], "original"
    return owner, attribute


def _parameter(layer: nn.Module, name: str) -> nn.Parameter:
    owner, attribute = _place(layer, name)
    return owner.get_parameter(attribute)


def _dropped(module: nn.Module) -> list[str]:
    """Return which weights of a module are dropped at random."""
    if not is_parametrized(module):
        return []
    parametrizations: Any = module.parametrizations
    return [attribute for attribute, by in parametrizations.items() if isinstance(by[0], DropConnect)]


def _make_whole(module: Any) -> None:
    """Let no weights of a module be dropped any more, unless something else is done to its weights as well."""
    attributes = _dropped(module)
    if not attributes or len(attributes) < len(module.parametrizations):
        return
    wholes = {attribute: module.parametrizations[attribute].original for attribute in attributes}
    # Not by remove_parametrizations: it changes the class, which copies of the module share.
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for attribute, whole in wholes.items():
        setattr(module, attribute, whole)


@contextmanager
def _unmasked(*modules: nn.Module | None) -> Iterator[None]:
    """Have modules, and what masks their weights, as in evaluation for a while."""
    inner = [m for module in modules if module is not None for m in module.modules()]
    before = [m.training for m in inner]
    for m in inner:
        m.training = False
    try:
        yield
    finally:
        for m, training in zip(inner, before, strict=True):
            m.training = training


@torch.no_grad()
def _folded(layer: Any) -> dict[str, Tensor]:
    """Return the effective parameters of a layer at the centre of the hyperparameters."""
    with _unmasked(layer, layer.link.responses):
        return _fold(layer)


def _fold(layer: Any) -> dict[str, Tensor]:
    centre = layer.link.owner.hyperparameters.centre()
    news: dict[str, Tensor] = {}
    for site in layer.sites(layer):
        effective = layer.response(site.name).effective(*site.general(layer), centre)
        for name, value in zip((site.weight, site.bias), effective, strict=True):
            if name is None or value is None:
                continue
            old = _parameter(layer, name).detach()
            new = news.setdefault(name, old.clone())
            # Only the bias is one for several weights, if these are separate.
            part = site.part if new.shape != value.shape[1:] else None
            (new if part is None else new.narrow(0, *part)).copy_(value[0])
    return news


def _needs_folding(layer: BestResponse) -> bool:
    return layer.link.responses is not None and layer.link.owner.kind == "stn"


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the plain model at the current hyperparameters.

    Responses of kind ``"delta"`` vanish there; those of kind ``"stn"`` are folded into the weights. That goes for an
    embedding whose table another layer shares, too: load its state into a model without shared weights, or use
    :func:`export`. Weights that are dropped at random are whole, under their plain names
    (:class:`~sthyper.selftuning.regularisers.DropConnect`).

    Args:
        model: A self-tuning model, or one that holds it.

    Returns:
        Tensors by the names that they have in the plain model, detached.

    Raises:
        ValueError: If it is not self-tuning.
    """
    prefixes = tuple(f"{name}." for name in _states(model))
    result = {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for attribute in _dropped(module) if not prefix.startswith(prefixes) else ():
            result[prefix + attribute] = result.pop(f"{prefix}parametrizations.{attribute}.original")
    for path, layer in _layers(model).items():
        if _needs_folding(layer):
            result.update({f"{path}.{name}" if path else name: new for name, new in _folded(layer).items()})
    return result


def export(model: nn.Module) -> nn.Module:
    """Return a plain copy of a self-tuning model at the current hyperparameters.

    Layers have their own classes again, dropout layers the current rates, weights that are dropped at random are
    whole, and of the operations of a choice (:class:`~sthyper.selftuning.OneOf`) the most probable one is left. See
    :func:`plain_state_dict` for the weights. Other regularisers that the model was written with stay.

    Args:
        model: A self-tuning model, or one that holds it; it stays as it is.

    Raises:
        ValueError: If it is not self-tuning.
    """
    _states(model)
    result = copy.deepcopy(model)
    folded = {path: _folded(layer) for path, layer in _layers(result).items() if _needs_folding(layer)}
    for path in _states(result):
        root = result.get_submodule(path.rpartition(".")[0])
        del root.selftuning
        if LINK not in root.__dict__:
            root.__class__ = getattr(type(root), "plain_class", type(root))
    modules: list[Any] = list(result.modules())
    for module in modules:
        _make_whole(module)
    for module in modules:
        for plain, tunable in TUNABLE.items():
            if isinstance(module, tunable):
                rate = module.hyperparameters.values()[module.name]
                replace_everywhere(result, module, plain(min(max(rate, 0.0), 1.0)).train(module.training))
    for module in modules:
        if isinstance(module, OneOf):
            replace_everywhere(result, module, module.chosen())
    for path, layer in _layers(result).items():
        for name, new in folded.get(path, {}).items():
            owner, attribute = _place(layer, name)
            # A new one, so that a layer that shares the old one keeps its value.
            setattr(owner, attribute, nn.Parameter(new, _parameter(layer, name).requires_grad))
        layer.__class__ = type(layer).plain_class
        del layer.__dict__[LINK]
    return result


def squared_norms(model: nn.Module, select: Callable[[str, nn.Parameter], bool] | None = None) -> Tensor:
    """Return the squared norm of all weights as the examples of this pass see them, for weight decay with a gradient.

    Weights of single examples are not built: the square of ``W + diag(s) R`` is taken row by row.

    Args:
        model: A self-tuning model, or one that holds it.
        select: Which parameters of the plain model count, by path and parameter. Default is all.

    Returns:
        One number for each group of the current perturbation (``G``, see ``Perturbation.expand``); 0-d where nothing is
        perturbed.

    Raises:
        ValueError: If it is not self-tuning.
    """
    states = _states(model)
    current = next(iter(states.values())).hyperparameters.current
    linearised = current is not None and current.linearised
    total: Tensor | None = None
    done = {id(p) for state in states.values() for p in state.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}

    def counts(parameter: nn.Parameter) -> bool:
        return select is None or select(names[id(parameter)], parameter)

    for layer in _layers(model).values():
        perturbation = layer.perturbation()
        if perturbation is None:
            continue
        if linearised:
            # Weights are linear in delta, so that the norm is that of the perturbed ones; a linear norm has no minimum.
            perturbation = replace(perturbation, delta=collapse(perturbation.delta), linearised=False)
        for site in layer.sites(layer):
            parameters = [_parameter(layer, name) for name in (site.weight, site.bias) if name is not None]
            done.update(id(p) for p in parameters)
            weight, bias = (t if t is None or not linearised else t.detach() for t in site.general(layer))
            counted = [counts(p) for p in parameters]
            if not any(counted):
                continue
            response = layer.response(site.name)
            norm = response.squared_norm(weight if counted[0] else None, bias if counted[-1] else None, perturbation)
            total = norm if total is None else total + norm
    for parameter in model.parameters():
        if id(parameter) not in done and counts(parameter):
            square = (parameter.detach() if linearised else parameter).square().sum()
            total = square if total is None else total + square
    if total is None:
        raise ValueError("select chooses no parameter")
    return total.squeeze(0) if total.dim() and current is not None and current.kind == "centred" else total


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let normalisations leave their running statistics alone for a while.

    Passes with gradients or tangents to the hyperparameters do so anyway. This is for other passes that are none of the
    plain model or of its training: a response update that is not linearised, or a batch that is seen twice.

    Args:
        model: A self-tuning model, or one that holds it.

    Raises:
        ValueError: If it is not self-tuning.
    """
    states = list(_states(model).values())
    before = [state.freezes_statistics for state in states]
    for state in states:
        state.freezes_statistics = True
    try:
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.freezes_statistics = value
