"""Whole branches that are closed: replaced by plain modules that give zeros."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn

from sthyper.straight_through._pruning_compare import close
from sthyper.straight_through._pruning_graph import not_in_graph, trace
from sthyper.straight_through._pruning_layers import NORMS, PRODUCERS, is_plain, output_channels, zero_outputs
from sthyper.straight_through._pruning_ops import name_of

__all__ = ["remove_branch"]


def _zeros_like_input() -> nn.Module:
    return nn.Threshold(float("inf"), 0.0)


def _one_zero() -> nn.Module:
    """Return a module that gives a single 0, of shape (1, 1), whatever it gets."""
    return nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.AdaptiveMaxPool1d(1), _zeros_like_input())


def _is_added_to(node: fx.Node) -> list[Any] | None:
    """Return what the output of a node is added to everywhere, ``None`` if something else happens to it."""
    partners: list[Any] = []
    for user in node.users:
        if name_of(user) not in ("add", "sub") or user.kwargs or len(user.args) != 2:
            return None
        if name_of(user) == "sub" and user.args[0] is node:
            return None
        partners.append(user.args[1] if user.args[0] is node else user.args[0])
    return partners or None


def _ends_in(branch: nn.Module) -> nn.Module | None:
    """Return the layer that gives the output of a branch, if its outputs can be set to 0."""
    if isinstance(branch, (*PRODUCERS, *NORMS)):
        last: Any = branch
    else:
        try:
            graph, _ = trace(branch, (), None)
        except Exception:  # whatever tracing a module of somebody else raises
            return None
        (output,) = (node for node in graph.nodes if node.op == "output")
        node = output.args[0]
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        last = branch.get_submodule(str(node.target))
    return last if is_plain(last, (*PRODUCERS, *NORMS)) and output_channels(last) else None


def _is_used_outside(model: nn.Module, branch: nn.Module, layer: nn.Module) -> bool:
    """Return whether a layer of a branch is found elsewhere in the model, too."""
    paths = list(model.named_modules(remove_duplicate=False))
    inside = tuple(f"{path}." for path, module in paths if module is branch)
    return any(module is layer and not f"{path}.".startswith(inside) for path, module in paths)


def _takes_one(branch: nn.Module) -> bool:
    """Return whether a module can be called with one argument."""
    parameters = inspect.signature(branch.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) == 1


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    old = model.get_submodule(path)
    for name, found in list(model.named_modules(remove_duplicate=False)):
        if found is old:  # also where it is known by another name
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module)


def remove_branch(
    model: nn.Module, path: str, leaves: Collection[str], example: tuple[Any, ...] | None
) -> tuple[bool | None, str | None]:
    """Replace a branch of a model, in evaluation mode, by zeros.

    Returns:
        Whether the new module gives zeros of the shape of its input, ``None`` if it is not known to the graph; and why
        the branch could not be dropped, ``None`` if it was.

    Raises:
        ValueError: If there is no way to let the branch give zeros.
    """
    branch = model.get_submodule(path)
    like_input, reason, one_argument = _plan(model, path, leaves, example)
    if like_input is not None:
        new = _zeros_like_input() if like_input else _one_zero()
        if example is None or _is_like_zeros(model, path, new, example):
            _replace(model, path, new)
            return like_input, None
        reason = "without it the outputs for example_input are others"
    last = _ends_in(branch)
    if last is not None and not _is_used_outside(model, branch, last):
        zero_outputs(last, torch.ones(output_channels(last) or 0, dtype=torch.bool))
        return None, f"{reason}; its last layer gives zeros"
    if not one_argument or not _takes_one(branch):
        raise ValueError(
            f"branches: {path!r} cannot be removed: {reason}, and it does not end in a layer that can be set to 0"
        )
    _replace(model, path, nn.Sequential(branch, _zeros_like_input()))
    return None, f"{reason}; what it gives is set to 0 behind it"


def _plan(
    model: nn.Module, path: str, leaves: Collection[str], example: tuple[Any, ...] | None
) -> tuple[bool | None, str | None, bool]:
    """Return whether zeros may have the shape of the input, or of a single number; why neither; how it is called."""
    try:
        graph, shapes = trace(model, {*leaves, path}, example)
    except Exception as problem:  # whatever tracing a module of somebody else raises
        return None, f"torch.fx cannot trace the model: {problem}", True
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
    if not calls:
        return None, "the graph does not show a call of it", True
    if any(len(call.args) != 1 or call.kwargs for call in calls):
        return None, "it is called with several arguments", False
    unseen = not_in_graph(model, graph)
    if unseen is not None:
        return None, f"{unseen!r} is used outside forward, or not at all: the graph does not show it", True
    partners = [_is_added_to(call) for call in calls]
    same = [shapes.get(call, 0) == shapes.get(call.args[0], 1) for call in calls]
    skips = [p is not None and all(q is c.args[0] for q in p) for c, p in zip(calls, partners, strict=True)]
    if all(same) or (not shapes and all(skips)):
        return True, None, True
    if all(_stays(call, shapes) for call in calls) and all(partners):
        return False, None, True
    return None, "its output is not only added to something of the same shape, and is unlike its input", True


def _is_like_zeros(model: nn.Module, path: str, new: nn.Module, example: tuple[Any, ...]) -> bool:
    """Return whether a model gives the same with a new branch as with zeros from the old one."""
    hook = model.get_submodule(path).register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    try:
        expected = model(*copy.deepcopy(example))
    finally:
        hook.remove()
    trial = copy.deepcopy(model)
    _replace(trial, path, copy.deepcopy(new))
    return close(trial(*copy.deepcopy(example)), expected)


def _stays(call: fx.Node, shapes: dict[fx.Node, torch.Size]) -> bool:
    """Return whether sums with a node have the shape of the other summand, as far as is known."""
    for user in call.users:
        others = [arg for arg in user.args if arg is not call]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return False
        if shapes and shapes.get(others[0]) != shapes.get(user):
            return False
        if shapes and len(shapes[user]) < 2:
            return False
    return True
