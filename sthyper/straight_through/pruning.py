"""Cuts closed channels and branches out of a model: what is left is a plain, smaller model with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sthyper.errors import closest
from sthyper.straight_through._pruning_branches import remove_branch
from sthyper.straight_through._pruning_compare import close
from sthyper.straight_through._pruning_cut import Cut
from sthyper.straight_through._pruning_graph import ChannelGraph
from sthyper.straight_through._pruning_inputs import close_inputs
from sthyper.straight_through._pruning_layers import (
    bake_parametrizations,
    input_channels,
    output_channels,
    zero_outputs,
)

__all__ = ["Folded", "PrunedModel", "prune"]


@dataclass(frozen=True)
class Folded:
    """Something closed that gives exactly 0 now, but could not be removed.

    Args:
        path: Path of the layer or branch.
        channels: Indices of the channels; empty for a branch.
        reason: Why they are still there.
    """

    path: str
    channels: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class PrunedModel:
    """What :func:`prune` returns. A layer that has several paths goes by the first.

    Args:
        model: The smaller model: of the same classes, with layers of :mod:`torch.nn` of smaller sizes.
        removed: Path of a layer -> indices of the output channels that are gone. Layers that had to be cut jointly
            (behind or beside a closed one) are among them.
        removed_inputs: Path of a layer -> indices of the inputs that ``slice_inputs`` has removed.
        removed_branches: Paths of the branches that are gone.
        folded: What was closed and could only be set to 0, and why.
    """

    model: nn.Module
    removed: dict[str, tuple[int, ...]]
    removed_inputs: dict[str, tuple[int, ...]]
    removed_branches: tuple[str, ...]
    folded: tuple[Folded, ...]


def prune(
    model: nn.Module,
    channels: Mapping[str, Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    example_input: Tensor | tuple[Any, ...] | None = None,
    *,
    branches: Mapping[str, Tensor | bool] | None = None,
    slice_inputs: bool = False,
) -> PrunedModel:
    """Return a copy of a model without its closed channels, inputs and branches.

    In evaluation mode the copy computes what the model computes if the outputs of the named layers (before whatever
    follows them) are multiplied by the decisions. :mod:`torch.fx` shows what depends on a closed channel. It goes with
    its rows of the layer, with its entries of normalisations, and with the columns of what reads it. Where it has
    become a constant other than 0 by then (the shift of a normalisation, the sigmoid of 0), that goes into the next
    bias; where there is none, or zero padding would show, one channel stays and carries the constants of all. Channels
    that are added to each other go if all of them are closed; those of a depthwise convolution go with it. What cannot
    go gives zeros: channels behind which there is a LayerNorm or GroupNorm, an output of the model, or something the
    graph does not resolve; and all of them if torch.fx cannot trace the model. The result says which, and why.

    The graph is that of ``forward`` in evaluation mode, and so is what is promised. If the model has parameters that it
    does not use there (a head that only ``training_step`` calls), whatever may reach them stays: nothing is cut then,
    and all that is closed gives zeros. What other methods do with layers of ``forward``, or without parameters, is not
    seen: they get the smaller tensors.

    Layers keep their identity, ``training`` and ``requires_grad``; parameters are new ones. Nothing of this library is
    left in the result: its ``state_dict`` loads into a model of the new sizes. Where layers share a parameter and one
    of them is cut, they do not share it any more. Parametrizations of named layers are baked in.

    Args:
        model: Any module; it is not changed.
        channels: Path of a layer -> which of its output channels stay: bool (``n``), as ``Gate.decisions()`` gives
            them. Linear layers (last axis), convolutions, transposed convolutions, embeddings, and normalisations with
            weights (the axis of the channels).
        inputs: Path of a linear layer or convolution -> which of its input channels count: bool (``n``). For an
            :class:`torch.nn.Sequential` that begins with one, its own path will do, too.
        example_input: What ``model`` is called with; several arguments as a tuple. With it shapes are known, and the
            result is compared with the model that only has zeros: should they differ, the latter is returned. Without
            it linear layers are taken to get ``N x features``, convolutions batches.
        branches: Path of a module -> whether it stays: bool, or a bool tensor with one element. A closed one gives
            zeros. It is replaced by a module that gives zeros (of :mod:`torch.nn`, without parameters) if its output
            has the shape of its input or is only added to something.
        slice_inputs: Whether closed inputs are removed instead of ignored: the model is then to be called without
            them. They must be inputs of the model that nothing else reads.

    Returns:
        The model, and what was removed.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If a path does not exist (the closest is named) or leads to something that cannot be cut, if a mask
            has a wrong size, or if something can neither be removed nor set to 0.

    Source: channels that depend on each other as in G. Fang et al.: DepGraph: Towards Any Structural Pruning, 2023
    (arXiv 2301.12900); constants that are carried on are ours.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; it is {type(model).__name__}")
    if example_input is not None and not isinstance(example_input, (Tensor, tuple)):
        raise TypeError(f"example_input must be a tensor or a tuple of arguments; it is {type(example_input).__name__}")
    if slice_inputs and not inputs:
        raise ValueError("slice_inputs=True has no effect without inputs: say which of which layer are closed")
    example = (example_input,) if isinstance(example_input, Tensor) else example_input
    shut = _shut(model, branches or {})
    closed = _closed(model, channels or {}, "channels", output_channels)
    closed_inputs = _closed(model, inputs or {}, "inputs", input_channels)
    result = copy.deepcopy(model)
    training = {path: module.training for path, module in result.named_modules(remove_duplicate=False)}
    for module in result.modules():
        module.training = False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        pruned = _prune(result, closed, closed_inputs, example, shut, slice_inputs)
    for path, module in pruned.model.named_modules(remove_duplicate=False):
        while path not in training:
            path = path.rpartition(".")[0]
        module.training = training[path]
    return pruned


def _prune(
    model: nn.Module,
    closed: dict[str, Tensor],
    closed_inputs: dict[str, Tensor],
    example: tuple[Any, ...] | None,
    shut: tuple[str, ...],
    slice_inputs: bool,
) -> PrunedModel:
    """Prune a model that is ours, in evaluation mode; masks say what is closed, ``shut`` which branches are."""
    folded: list[Folded] = []
    for path in (*closed, *closed_inputs):
        bake_parametrizations(model.get_submodule(path))
    inside = tuple(f"{path}." for path in shut)
    closed, closed_inputs = (
        {path: mask for path, mask in masks.items() if path not in shut and not path.startswith(inside)}
        for masks in (closed, closed_inputs)
    )
    zeros: dict[str, bool] = {}
    for path in shut:
        if path.startswith(inside):
            continue
        like_input, reason = remove_branch(model, path, {*closed, *zeros}, example)
        if like_input is not None:
            zeros[path] = like_input
        if reason is not None:
            folded.append(Folded(path, (), reason))
    example = close_inputs(model, closed_inputs, slice_inputs, example)
    cut_inputs = {path: _indices(mask) for path, mask in closed_inputs.items() if slice_inputs}

    removed: dict[str, tuple[int, ...]] = {}
    zeroed = copy.deepcopy(model)
    for path, mask in closed.items():
        zero_outputs(zeroed.get_submodule(path), mask)
    if closed:
        model, removed, more = _cut(model, zeroed, closed, zeros, example)
        folded += more
    return PrunedModel(model, removed, cut_inputs, tuple(zeros), tuple(folded))


def _cut(
    model: nn.Module,
    zeroed: nn.Module,
    closed: dict[str, Tensor],
    zeros: Mapping[str, bool],
    example: tuple[Any, ...] | None,
) -> tuple[nn.Module, dict[str, tuple[int, ...]], list[Folded]]:
    """Return the model that is cut, or ``zeroed``; with what was removed and what was not."""

    def all_folded(reason: str) -> tuple[nn.Module, dict[str, tuple[int, ...]], list[Folded]]:
        return zeroed, {}, [Folded(path, _indices(mask), reason) for path, mask in closed.items()]

    expected = zeroed(*copy.deepcopy(example)) if example is not None else None
    try:
        graph = ChannelGraph(model, closed, zeros, copy.deepcopy(example))
    except Exception as problem:  # whatever tracing a module of somebody else raises
        return all_folded(f"torch.fx cannot trace or follow the model: {problem}")
    if graph.unseen is not None:
        return all_folded(f"{graph.unseen!r} is used outside forward, or not at all: the graph does not show it")
    for path in {name for name in closed for outside in graph.outside if name == outside}:
        raise ValueError(
            f"channels: {path!r} cannot be cut: the model uses its weights outside of it, too; copy them for one use"
        )
    cut = Cut(graph)
    for path, mask in closed.items():
        zero_outputs(model.get_submodule(path), mask)
    removed = cut.apply()
    folded = [
        Folded(path, indices, reason) for path, mask in closed.items() for indices, reason in cut.left(path, mask)
    ]
    if example is None:
        return model, removed, folded
    try:
        same, found = close(model(*copy.deepcopy(example)), expected), "it gave other outputs for example_input"
    except Exception as error:  # whatever calling a module of somebody else raises
        same, found = False, f"it could not be called: {error}"
    if not same:
        return all_folded(f"the model without them was discarded: {found}")
    return model, removed, folded


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


# ---- arguments -----------------------------------------------------------------------------------------------


def _find(model: nn.Module, path: str, argument: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules or path == "":
        raise ValueError(
            f"{argument}: the model has no module {path!r}{closest(path, [name for name in modules if name])}"
        )
    return modules[path]


def _first_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Return the path by which torch.fx knows a module."""
    return {module: path for path, module in reversed(list(model.named_modules(remove_duplicate=False)))}


def _shut(model: nn.Module, branches: Mapping[str, Tensor | bool]) -> tuple[str, ...]:
    """Return the paths of the closed branches."""
    shut: dict[str, None] = {}
    for path, value in branches.items():
        branch = _find(model, path, "branches")
        one = isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() == 1
        if not one and not isinstance(value, bool):
            raise TypeError(
                f"branches: {path!r} must be True or False (stays or not), also as a tensor; it is {value!r}"
            )
        if not value:
            shut[_first_paths(model)[branch]] = None
    return tuple(shut)


def _closed(
    model: nn.Module, masks: Mapping[str, Tensor], argument: str, size: Callable[[nn.Module], int | None]
) -> dict[str, Tensor]:
    """Return which channels are closed, by the path that torch.fx knows a module by; only of layers with such."""
    closed: dict[str, Tensor] = {}
    first = _first_paths(model)
    for path, mask in masks.items():
        module = _find(model, path, argument)
        while argument == "inputs" and isinstance(module, nn.Sequential) and len(module):
            module = module[0]
        name = f"{argument}: {path!r} ({type(module).__name__})"
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name} must have a bool tensor (True for what stays); it has {what}")
        n = size(module)
        if n is None:
            raise ValueError(f"{name} has no channels that can be closed: name {_WHAT[argument]}")
        if mask.shape != (n,):
            raise ValueError(f"{name} has {n} {argument}; the mask has the shape {tuple(mask.shape)}, not ({n},)")
        if any(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in module._forward_pre_hooks.values()):
            raise ValueError(f"{name} has an old-style weight or spectral norm: remove it before (remove_weight_norm)")
        if not mask.all():
            shut = ~mask.detach().cpu()
            key = first[module]
            closed[key] = closed[key] | shut if key in closed else shut
    return closed


_WHAT = {
    "channels": "a linear layer, convolution, embedding, or normalisation with weights",
    "inputs": "a linear layer or convolution",
}
