"""Inputs of layers that do not count: zero columns, or none at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sthyper.straight_through._pruning_graph import not_in_graph, trace
from sthyper.straight_through._pruning_layers import MATRICES, channel_axis, is_plain, slice_inputs, zero_inputs

__all__ = ["close_inputs"]


def close_inputs(
    model: nn.Module, closed: Mapping[str, Tensor], cut: bool, example: tuple[Any, ...] | None
) -> tuple[Any, ...] | None:
    """Let layers ignore closed inputs, or remove them.

    Args:
        model: In evaluation mode.
        closed: Path of a layer -> which inputs are closed (bool, ``n``).
        cut: Whether they are removed.
        example: Inputs of the model, which lose what the model does not read any more.

    Returns:
        The example.

    Raises:
        ValueError: If they are to be removed, but are not inputs of the model, or others read them too.
    """
    if not cut or not closed:
        for path, mask in closed.items():
            zero_inputs(model.get_submodule(path), mask)
        return example
    places = _places(model, closed)
    arguments = None if example is None else list(example)
    for path, mask in closed.items():
        module, keep = model.get_submodule(path), (~mask).nonzero().flatten()
        if not len(keep):
            raise ValueError(f"inputs: all of {path!r} are closed: with slice_inputs=True one must stay")
        slice_inputs(module, keep)
        place = places.pop(path, None)
        if arguments is not None and place is not None and place < len(arguments):
            value = arguments[place]
            arguments[place] = value.index_select(channel_axis(module), keep.to(value.device))
    return None if arguments is None else tuple(arguments)


def _places(model: nn.Module, closed: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the positions of the arguments that are cut, each for the first layer that reads it."""
    try:
        graph, _ = trace(model, closed.keys(), None)
    except Exception as problem:  # whatever tracing a module of somebody else raises
        raise ValueError(f"slice_inputs=True needs a model that torch.fx can trace: {problem}") from problem
    unseen = not_in_graph(model, graph)
    if unseen is not None:
        raise ValueError(
            f"inputs: {unseen!r} is used outside forward, or not at all, and may read them too: say slice_inputs=False"
        )
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    places: dict[str, int] = {}
    for path, mask in closed.items():
        module = model.get_submodule(path)
        if not is_plain(module, MATRICES) or getattr(module, "groups", 1) != 1:
            raise ValueError(
                f"inputs: those of {path!r} cannot be removed (groups, hooks or a class of its own): say "
                "slice_inputs=False"
            )
        for call in (node for node in graph.nodes if node.op == "call_module" and node.target == path):
            source = call.args[0] if call.args else None
            if source not in arguments:
                raise ValueError(
                    f"inputs: {path!r} does not read an input of the model, so that slice_inputs=True cannot remove "
                    f"it: close the outputs of what gives it by channels, or say slice_inputs=False"
                )
            assert isinstance(source, fx.Node)
            for user in source.users:
                other = closed.get(str(user.target)) if user.op == "call_module" else None
                if other is None or not torch.equal(other, mask):
                    raise ValueError(
                        f"inputs: {str(user.target)!r} reads what {path!r} reads: close the same for both, or say "
                        "slice_inputs=False"
                    )
            if arguments.index(source) not in places.values():
                places[path] = arguments.index(source)
    return places
