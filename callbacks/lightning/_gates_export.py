"""The plain module that is left when gates have decided."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from sthyper.callbacks.lightning._gates_sites import GateSet, detach, hooks_of
from sthyper.straight_through.pruning import prune

__all__ = ["plain_copy"]

logger = logging.getLogger(__name__)


def plain_copy(module: LightningModule, gates: GateSet, attribute: str, example_input: Any) -> LightningModule:
    """Return a copy of a module without gates, and without what they have closed.

    What can be cut is known of ``forward`` in evaluation mode only. If the module has parameters that are not used
    there (a head that only ``training_step`` calls), all that is closed is set to 0 and keeps its size.

    Args:
        module: The module, with its gates or already without.
        gates: The gates.
        attribute: Where they are.
        example_input: Input of ``forward``, or a tuple of inputs; ``None`` for the module's ``example_input_array``.
    """
    result = copy.deepcopy(module)
    by_name = {hook.site for hook in hooks_of(result) if hook.by_name}
    detach(result, attribute)
    masks: dict[str, dict[str, Tensor]] = {"channels": {}, "inputs": {}, "branch": {}}
    for site, gate in zip(gates.sites, gates.gates, strict=True):
        decisions = gate.decisions()
        if site.kind != "operation":
            masks[site.kind][site.path] = decisions.to(module.device)
        elif not decisions:
            old = result.get_submodule(site.path)
            new = _identity(old, site in by_name).train(old.training)
            for path, found in list(result.named_modules(remove_duplicate=False)):
                if found is old:
                    parent, _, name = path.rpartition(".")
                    setattr(result.get_submodule(parent), name, new)
    pruned = prune(
        result, masks["channels"], masks["inputs"], _example(module, example_input), branches=masks["branch"]
    )
    for folded in pruned.folded:
        logger.info("%s: closed, but only set to 0: %s", folded.path, folded.reason)
    assert isinstance(pruned.model, LightningModule)
    return pruned.model


def _example(module: LightningModule, given: Any) -> Any:
    found = module.example_input_array if given is None else given
    if given is None and not isinstance(found, Tensor | tuple):
        return None
    return tree_map_only(Tensor, lambda tensor: tensor.to(module.device), found)


def _identity(operation: nn.Module, by_name: bool) -> nn.Module:
    """Return a module that is called like an operation, and returns the first of its inputs.

    Args:
        operation: The operation.
        by_name: Whether it is called with names only.
    """
    parameters = list(inspect.signature(operation.forward).parameters.values())
    if len(parameters) == 1 and not by_name:
        return nn.Identity()
    first = parameters[0]
    graph = fx.Graph()
    x = graph.placeholder("x" if first.kind == inspect.Parameter.VAR_POSITIONAL else first.name)
    graph.placeholder("*more_inputs")
    graph.placeholder("**more_names")
    graph.output(x)
    return fx.GraphModule(nn.Module(), graph)
