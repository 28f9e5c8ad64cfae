"""Decides which channels go, and cuts them out of the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sthyper.straight_through._pruning_graph import ChannelGraph
from sthyper.straight_through._pruning_layers import (
    add_to_bias,
    contribution,
    has_border,
    move_inputs,
    slice_features,
    slice_groups,
    slice_inputs,
    slice_outputs,
)
from sthyper.straight_through._pruning_signals import Signal

__all__ = ["Cut"]

# A carried constant is divided by that of its carrier; one that is smaller by more than this would cost digits.
SMALLEST_CARRIER = 1e-2


class Cut:
    """The channels that go.

    Args:
        graph: What is known about the model; its layers will be changed by :meth:`apply`.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph, self._slots = graph, graph.slots
        classes = self._slots.free_classes()
        self._reasons = {root: reason for root, reason in classes.items() if reason is not None}
        self._gone = {root for root, reason in classes.items() if reason is None}
        self._keep_what_varies()
        self._choose_carriers()
        self._leave_one()

    def _going(self, slots: Tensor) -> Tensor:
        """Return which slots go (bool)."""
        return torch.tensor([root in self._gone for root in self._slots.roots(slots)], dtype=torch.bool)

    def _stay(self, slots: Tensor, reason: str) -> None:
        for root in self._slots.roots(slots):
            if root in self._gone:
                self._gone.discard(root)
                self._reasons[root] = reason

    def _readers(self) -> list[tuple[str, Any, Signal]]:
        return [
            (path, self._graph.model.get_submodule(path), x)
            for path, calls in self._graph.inputs.items()
            for x in calls
            if x is not None
        ]

    def _keep_what_varies(self) -> None:
        for path, _, x in self._readers():
            varies = x.slots[x.values.isnan()]
            self._stay(varies, f"{path!r} reads it together with, or as, something that is not constant")

    def _choose_carriers(self) -> None:
        """Let one channel stay for each layer that cannot take constants into its bias."""
        for path, module, x in self._readers():
            if not _needs_carrier(module):
                continue
            going, values = self._going(x.slots), x.values.nan_to_num().abs()
            largest = values.masked_fill(~going, 0).max()
            if largest == 0 or values.masked_fill(going, 0).max() >= SMALLEST_CARRIER * largest:
                continue
            best = values.masked_fill(~going, 0).argmax()
            what = "zero padding" if has_border(module) else "no bias"
            self._stay(x.slots[best : best + 1], f"it carries the constants of closed channels to {path!r} ({what})")

    def _leave_one(self) -> None:
        """Let one channel stay of each layer that would have none."""
        for path, slots in self._graph.outputs.items():
            if len(slots) and self._going(slots).all():
                self._stay(slots[:1], f"all others of {path!r} are gone")

    def left(self, path: str, closed: Tensor) -> list[tuple[tuple[int, ...], str]]:
        """Return the closed channels of a layer that stay, by the reason."""
        if path not in self._graph.gated:
            return [(tuple(closed.nonzero().flatten().tolist()), "the graph does not show a call of the layer")]
        by_reason: dict[str, list[int]] = {}
        for i, root in enumerate(self._slots.roots(self._graph.gated[path])):
            if closed[i] and root not in self._gone:
                by_reason.setdefault(self._reasons[root], []).append(i)
        return [(tuple(indices), reason) for reason, indices in by_reason.items()]

    def apply(self) -> dict[str, tuple[int, ...]]:
        """Cut the layers; return the removed output channels by the path of the layer."""
        model, removed = self._graph.model, {}
        for path, calls in self._graph.inputs.items():
            known = [x for x in calls if x is not None]
            if known:
                self._cut_inputs(model.get_submodule(path), known[0])
        for path, slots in self._graph.features.items():
            going = self._going(slots)
            if going.any():
                slice_features(model.get_submodule(path), (~going).nonzero().flatten())
        for path, slots in self._graph.outputs.items():
            going = self._going(slots)
            if not going.any():
                continue
            removed[path] = tuple(going.nonzero().flatten().tolist())
            module: Any = model.get_submodule(path)
            if path in self._graph.grouped:
                slice_groups(module, (~going.view(module.groups, -1)[:, 0]).nonzero().flatten())
            else:
                slice_outputs(module, (~going).nonzero().flatten())
        return removed

    def _cut_inputs(self, module: nn.Module, x: Signal) -> None:
        going = self._going(x.slots)
        if not going.any():
            return
        if not _needs_carrier(module):
            add_to_bias(module, contribution(module, x.values.masked_fill(~going, 0)))
        else:
            sources = (going & (x.values != 0)).nonzero().flatten()
            if len(sources):
                carrier = int(x.values.nan_to_num().abs().masked_fill(going, 0).argmax())
                move_inputs(module, carrier, sources, x.values[sources] / x.values[carrier])
        slice_inputs(module, (~going).nonzero().flatten())


def _needs_carrier(module: Any) -> bool:
    return module.bias is None or has_border(module)
