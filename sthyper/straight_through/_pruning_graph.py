"""Follows channels through the graph of a model: what removes them, ties them, or keeps them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sthyper.straight_through import _pruning_ops as ops
from sthyper.straight_through._pruning_layers import (
    BATCH_NORMS,
    CONVS,
    INSTANCE_NORMS,
    NORMS,
    PRODUCERS,
    channel_axis,
    contribution,
    has_border,
    input_channels,
    is_plain,
    output_channels,
)
from sthyper.straight_through._pruning_signals import Signal, Slots

__all__ = ["ZERO", "ChannelGraph", "Zero", "not_in_graph", "trace"]

NAN = float("nan")


class Zero:
    """A tensor that is 0 everywhere and broadcasts with all others."""


ZERO = Zero()


class _Sizes:
    """The sizes of a tensor."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Collection[str]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return result


def _meets(index: Any, signal: Signal) -> bool:
    """Return whether an index into the sizes of a tensor takes the number of channels."""
    axis = signal.ndim + signal.axis
    if isinstance(index, slice) and not any(isinstance(i, fx.Node) for i in (index.start, index.stop, index.step)):
        return axis in range(signal.ndim)[index]
    return not isinstance(index, int) or index % signal.ndim == axis


def trace(
    model: nn.Module, leaves: Collection[str], example: tuple[Any, ...] | None
) -> tuple[fx.Graph, dict[fx.Node, torch.Size]]:
    """Return the graph of a model in evaluation mode, and the shapes of its tensors if there is an example input."""
    graph = _Tracer(leaves).trace(model)
    if example is None:
        return graph, {}
    run = _Shapes(fx.GraphModule(model, graph))
    with torch.no_grad():
        run.run(*example)
    return run.module.graph, run.shapes  # type: ignore[return-value]


def not_in_graph(model: nn.Module, graph: fx.Graph) -> str | None:
    """Return the path of something with parameters that a graph does not use, ``None`` if there is nothing.

    Other methods than ``forward`` may use it (the ``training_step`` of a LightningModule), and may give it values whose
    channels the graph lets go.
    """
    nodes = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    called = {
        module
        for node in nodes
        if node.op == "call_module"
        for module in model.get_submodule(str(node.target)).modules()
    }
    read = {str(node.target) for node in nodes if node.op == "get_attr"}
    tensors = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    known = {tensors[name] for name in read if name in tensors}
    for path, module in model.named_modules():
        # Normalisations without weights have a size, too.
        if module not in called and type(module) in (*BATCH_NORMS, *INSTANCE_NORMS):
            return path
        for name, parameter in module.named_parameters(recurse=False):
            if module not in called and id(parameter) not in known:
                alone = path and not any(True for _ in module.children())
                return path if alone else f"{path}.{name}".removeprefix(".")
    return None


class ChannelGraph:
    """What the graph of a model says about its channels.

    Args:
        model: In evaluation mode.
        closed: Path of a layer -> which of its output channels are 0 (bool, ``n``).
        zeros: Path of a branch that has been replaced -> whether its zeros have the shape of its input.
        example: Inputs, for the shapes.

    Attributes:
        slots: The places of all channels.
        gated: Path of a closed layer -> slots of its output channels.
        outputs: Path of a layer -> slots of its output channels.
        inputs: Path of a layer -> for each of its calls what arrives, ``None`` where that is not known.
        features: Path of a layer that works on each channel alone -> its slots.
        grouped: Paths of the convolutions with several groups among ``outputs``.
        outside: Paths of modules whose weights the model uses by itself.
        unresolved: Paths of modules with a call that is not understood.
        unseen: Path of something with parameters that ``forward`` does not use, ``None`` if there is nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        closed: Mapping[str, Tensor],
        zeros: Mapping[str, bool],
        example: tuple[Any, ...] | None,
    ) -> None:
        self.model, self.closed, self.zeros = model, closed, zeros
        self.slots = Slots()
        self.gated: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, list[Signal | None]] = {}
        self.features: dict[str, Tensor] = {}
        self.grouped: set[str] = set()
        self.outside: set[str] = set()
        self.unresolved: set[str] = set()
        self.signals: dict[fx.Node, Signal | Zero | _Sizes | None] = {}
        self.graph, self.shapes = trace(model, {*closed, *zeros}, example)
        self.unseen = not_in_graph(model, self.graph)
        for node in self.graph.nodes:
            signal = self._visit(node)
            if isinstance(signal, Signal) and node in self.shapes:
                signal = replace(signal, ndim=len(self.shapes[node]))
            self.signals[node] = signal
        self._finish()

    # ---- what ops may ask ------------------------------------------------------------------------------------

    def block(self, what: Any, reason: str) -> None:
        """Let the channels of some nodes stay (nodes, also in lists; anything else is passed over)."""

        def one(node: fx.Node) -> fx.Node:
            signal = self.signals.get(node)
            if isinstance(signal, _Sizes):
                one(signal.node)
            if isinstance(signal, Signal):
                self.slots.block(signal.slots, reason)
            return node

        fx.map_arg(what, one)

    def signal(self, node: Any) -> Signal | None:
        """Return what is known about an argument, ``None`` if nothing is."""
        found = self.signals.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Signal) else None

    def is_zero(self, node: Any) -> bool:
        """Return whether an argument is zero everywhere."""
        return isinstance(node, fx.Node) and isinstance(self.signals.get(node), Zero)

    # ---- nodes -----------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> Signal | Zero | _Sizes | None:
        if node.op == "output":
            self.block(node.args, "an output of the model has this channel")
        elif node.op == "get_attr":
            self.outside.add(str(node.target).rpartition(".")[0])
        elif node.op == "call_module":
            return self._gate(str(node.target), self._call(node))
        elif node.op in ("call_function", "call_method"):
            return self._function(node)
        return None

    def _function(self, node: fx.Node) -> Signal | Zero | _Sizes | None:
        name = ops.name_of(node)
        attribute = node.args[1] if name == "getattr" else None
        if attribute == "shape" or (name == "size" and len(node.args) == 1 and not node.kwargs):
            return _Sizes(node.args[0])  # type: ignore[arg-type]
        if attribute in ("ndim", "dtype", "device", "requires_grad") or name == "dim":
            return None
        size_of, axis = self._size(node, name)
        if size_of is not None:
            known = self.signal(size_of)
            if known is not None and _meets(axis, known):
                self.block(size_of, "the model computes with the number of channels")
            return None
        if name in ops.BINARY and all(self.is_zero(arg) for arg in node.args):
            return ZERO
        return ops.call(self, node, name)

    def _size(self, node: fx.Node, name: str) -> tuple[fx.Node | None, Any]:
        """Return whose size a node looks up, and along which axis."""
        if name == "size":
            return node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")  # type: ignore[return-value]
        sizes = self.signals.get(node.args[0]) if name == "getitem" and isinstance(node.args[0], fx.Node) else None
        return (sizes.node, node.args[1]) if isinstance(sizes, _Sizes) else (None, None)

    def _gate(self, path: str, result: Signal | Zero | None) -> Signal | Zero | None:
        """Close channels of a layer's output."""
        if path not in self.closed:
            return result
        closed = self.closed[path]
        if isinstance(result, Signal):
            slots, result = result.slots, replace(result, values=result.values.masked_fill(closed, 0))
        else:
            slots = self.slots.new(len(closed))
            module = self.model.get_submodule(path)
            self.slots.block(slots, f"the channels of {path!r} ({type(module).__name__}) cannot be cut one by one")
        self.slots.closed.update(slots[closed].tolist())
        if path in self.gated:
            self.slots.tie(self.gated[path], slots)
        self.gated[path] = slots
        return result

    # ---- modules ---------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Signal | Zero | None:
        path = str(node.target)
        module = self.model.get_submodule(path)
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        x = self.signal(source)
        if path in self.zeros:
            return replace(x, values=torch.zeros_like(x.values)) if x is not None and self.zeros[path] else ZERO
        if source is not None and is_plain(module, PRODUCERS) and output_channels(module):
            return self._layer(node, path, module, x)
        if source is not None and is_plain(module, (*BATCH_NORMS, *INSTANCE_NORMS)):
            return self._norm(node, path, module, x)
        if source is not None and x is not None and is_plain(module, (nn.PReLU,)):
            return self._prelu(node, path, module, x)
        if source is not None and x is not None and is_plain(module, ops.MODULES):
            return ops.call_module(self, node, module, x)
        self.unresolved.add(path)
        name = f"{path!r} ({type(module).__name__})"
        if isinstance(module, NORMS):
            self.block((node.args, node.kwargs), f"{name} takes its statistics over several channels")
        elif is_plain(module, (type(module),)):
            self.block((node.args, node.kwargs), f"{name} is not known to keep channels apart")
        else:
            self.block((node.args, node.kwargs), f"{name} has hooks or parametrizations")
        return None

    def _layer(self, node: fx.Node, path: str, module: Any, x: Signal | None) -> Signal | None:
        """Linear layers, convolutions, embeddings."""
        n, axis = output_channels(module), channel_axis(module)
        assert n is not None
        if path not in self.outputs:
            self.outputs[path] = self.slots.new(n)
        if isinstance(module, nn.Embedding):
            return self._new(node, self.outputs[path], axis, 3)
        if not isinstance(module, nn.Linear):
            ndim = 1 - axis
        else:
            ndim = x.ndim if x is not None else 2
        given = input_channels(module)
        assert given is not None
        resolved = x.with_size(given) if x is not None and x.axis == axis else None
        if x is not None and resolved is None:
            self.block(node.args, f"{path!r} ({type(module).__name__}) does not read it as channels")
        out = self._new(node, self.outputs[path], axis, ndim)
        groups = getattr(module, "groups", 1)
        if groups == 1:
            self.inputs.setdefault(path, []).append(resolved)
            return out
        return self._groups(path, module, resolved, out)

    def _groups(self, path: str, module: Any, x: Signal | None, out: Signal) -> Signal:
        """Convolutions with several groups, of which each can only go as a whole."""
        if x is None:
            self.slots.block(out.slots, f"the channels that {path!r} reads are not known, and go with those it gives")
            return out
        self.grouped.add(path)
        for slots in torch.cat([x.slots.view(module.groups, -1), out.slots.view(module.groups, -1)], 1):
            self.slots.tie(slots[1:], slots[:-1])
        known = ~x.values.view(module.groups, -1).isnan().any(1)
        if has_border(module):
            known &= (x.values.view(module.groups, -1) == 0).all(1)
        if not isinstance(module, CONVS):
            return out
        values = contribution(module, x.values.nan_to_num())
        if module.bias is not None:
            values += module.bias.detach().cpu().double()
        known = known.repeat_interleave(len(out) // module.groups)
        return replace(out, values=values.masked_fill(~known, NAN))

    def _new(self, node: fx.Node, slots: Tensor, axis: int, ndim: int) -> Signal:
        ndim = len(self.shapes[node]) if node in self.shapes else ndim
        return Signal(slots, torch.full((len(slots),), NAN, dtype=torch.float64), axis, ndim)

    def _each(self, node: fx.Node, path: str, x: Signal | None, n: int) -> Signal | None:
        """Return what a layer with parameters for each channel (axis 1) reads."""
        read = x.with_size(n) if x is not None and x.axis == 1 - x.ndim else None
        if read is None:
            self.block(node.args, f"{path!r} does not read it as channels")
            if path in self.features:
                self.slots.block(self.features[path], f"{path!r} also reads what is not known")
            self.features.setdefault(path, blocked := self.slots.new(n))
            self.slots.block(blocked, f"what {path!r} reads is not known")
            return None
        if path in self.features:
            self.slots.tie(self.features[path], read.slots)
        self.features.setdefault(path, read.slots)
        return read

    def _norm(self, node: fx.Node, path: str, module: Any, x: Signal | None) -> Signal | None:
        """Normalisations of each channel, in evaluation mode."""
        read = self._each(node, path, x, module.num_features)
        if read is None:
            return None

        def numbers(name: str, default: float) -> Tensor:
            value = getattr(module, name)
            return torch.full((len(read),), default).double() if value is None else value.detach().cpu().double()

        if module.running_mean is not None:
            values = (read.values - numbers("running_mean", 0)) / (numbers("running_var", 1) + module.eps).sqrt()
        else:  # statistics of the batch: what is left of 0 is 0 (of other constants, rounding errors)
            values = read.values.masked_fill(read.values != 0, NAN)
        return replace(read, values=values * numbers("weight", 1) + numbers("bias", 0))

    def _prelu(self, node: fx.Node, path: str, module: Any, x: Signal) -> Signal | None:
        slope = module.weight.detach().cpu().double()
        read = x if module.num_parameters == 1 else self._each(node, path, x, module.num_parameters)
        return read and replace(read, values=torch.where(read.values < 0, slope * read.values, read.values))

    # ---- in the end ------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        for path, calls in self.inputs.items():
            known = [x for x in calls if x is not None]
            for x in known[1:]:
                self.slots.tie(known[0].slots, x.slots)
            different = [x for x in known if not torch.equal(x.values.nan_to_num(), known[0].values.nan_to_num())]
            if known and (different or len(known) < len(calls)):
                self.slots.block(known[0].slots, f"{path!r} is called several times, with other constants or unknowns")
        for path in self.outside | self.unresolved:
            how = "uses weights of it outside of it" if path in self.outside else "calls it in a way that is not known"
            reason = f"{path!r} cannot be cut: the model {how}"
            for slots in (self.outputs.get(path), self.features.get(path)):
                if slots is not None:
                    self.slots.block(slots, reason)
            for read in self.inputs.get(path, []):
                if read is not None:
                    self.slots.block(read.slots, reason)
            if path in self.grouped:
                self.slots.block(self.outputs[path], reason)
