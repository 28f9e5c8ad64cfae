"""Operations that keep channels apart: what they make of constant channels, and where the channels are then."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from sthyper.straight_through._pruning_signals import Signal

if TYPE_CHECKING:
    from sthyper.straight_through._pruning_graph import ChannelGraph

__all__ = ["BINARY", "MODULES", "call", "call_module", "name_of"]

NAN = float("nan")


def _modules(*names: str) -> tuple[type[nn.Module], ...]:
    return tuple(getattr(nn, name) for name in names)


def _by_dimension(*names: str) -> dict[type[nn.Module], int]:
    return {getattr(nn, f"{name}{k}d"): k for name in names for k in (1, 2, 3) if hasattr(nn, f"{name}{k}d")}


ELEMENTWISE_MODULES = _modules(
    *("Identity", "ReLU", "ReLU6", "LeakyReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid"),
    *("LogSigmoid", "Tanh", "Tanhshrink", "Softplus", "Softsign", "Softshrink", "Hardshrink", "Hardtanh"),
    *("Hardsigmoid", "Hardswish", "Threshold"),
)
DROPOUT_MODULES = _modules("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
POOLS = _by_dimension("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool")
PADS = _by_dimension("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")
UPSAMPLERS = _modules("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")
MODULES = (*ELEMENTWISE_MODULES, *DROPOUT_MODULES, *POOLS, *PADS, *UPSAMPLERS, nn.Flatten)
"""Modules without parameters that keep channels apart."""

ELEMENTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh"),
    *("tanhshrink", "softplus", "softsign", "softshrink", "hardshrink", "hardtanh", "hardsigmoid", "hardswish"),
    *("threshold", "neg", "abs", "exp", "expm1", "log1p", "sqrt", "square", "sin", "cos", "erf", "clamp", "pow"),
    *("contiguous", "clone", "detach"),
}
DROPOUTS = {"dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}
PRODUCTS = {"mul"}
BINARY = {"add", "sub", "mul", "truediv", "div", "maximum", "minimum"}
"""Names of operations on two tensors."""
FUNCTIONAL_POOLS = {
    **{f"{a}max_pool{k}d": k for a in ("", "adaptive_") for k in (1, 2, 3)},
    **{f"{a}avg_pool{k}d": k for a in ("", "adaptive_") for k in (1, 2, 3)},
}


def name_of(node: fx.Node) -> str:
    """Return the name of a function or method, without what marks it as working in place."""
    raw = _raw_name(node)
    if node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
        return raw.removeprefix("i")
    module = getattr(node.target, "__module__", None) or "torch"
    known = node.op == "call_method" or module.partition(".")[0] in ("torch", "_operator", "builtins")
    return raw.strip("_") if known else f"{module}.{raw}"


def _raw_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _in_place(node: fx.Node, name: str) -> bool:
    raw = _raw_name(node)
    return bool(node.kwargs.get("inplace")) or raw.endswith("_") or raw == f"i{name}"


def _evaluate(function: Callable[[Tensor], Any], values: Tensor) -> Tensor:
    """Return what an operation on single numbers makes of those that are known."""
    known, result = ~values.isnan(), torch.full_like(values, NAN)
    if known.any():
        result[known] = torch.as_tensor(function(values[known].clone())).to(values)
    return result


def _only(x: Signal, value: float | None) -> Signal:
    """Return a signal in which only channels of a value stay constant; all of them for ``None``."""
    return x if value is None else replace(x, values=x.values.masked_fill(x.values != value, NAN))


# ---- modules -------------------------------------------------------------------------------------------------


def call_module(graph: ChannelGraph, node: fx.Node, module: Any, x: Signal) -> Signal | None:
    """Return what a module of :data:`MODULES` gives."""
    source, kind = node.args[0], next(base for base in MODULES if isinstance(module, base))
    name = f"{node.target!r} ({kind.__name__})"
    if getattr(module, "inplace", False) and len(source.users) > 1:  # type: ignore[union-attr]
        graph.block(source, f"{name} changes it in place while it is used elsewhere")
        return None
    if isinstance(module, DROPOUT_MODULES):
        return x
    if kind in ELEMENTWISE_MODULES:
        return replace(x, values=_evaluate(module, x.values))
    if kind is nn.Flatten:
        return _flatten(graph, source, x, module.start_dim, module.end_dim)
    k = POOLS.get(kind) or PADS.get(kind) or 1
    along = -x.axis - 1 != k if kind in POOLS else -x.axis - 1 < k
    if along or getattr(module, "return_indices", False):
        graph.block(source, f"{name} works along the channels")
        return None
    if kind in PADS and hasattr(module, "value"):
        return _only(x, float(module.value))
    if kind in (nn.LPPool1d, nn.LPPool2d, getattr(nn, "LPPool3d", None)):
        return _only(x, 0.0)
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        return _only(x, _border_of_mean(module.padding, module.count_include_pad, module))
    return x


def _border_of_mean(padding: Any, include: Any, module: Any = None) -> float | None:
    """Return 0 where padding or a divisor takes part in means, so that only 0 stays what it is."""
    padded = any(padding) if isinstance(padding, tuple) else bool(padding)
    return 0.0 if (padded and include) or getattr(module, "divisor_override", None) else None


# ---- functions and methods -----------------------------------------------------------------------------------


def call(graph: ChannelGraph, node: fx.Node, name: str) -> Signal | None:
    """Return what a function or method gives; block what it reads where that is not known."""
    result = _call(graph, node, name)
    if result is None:
        graph.block((node.args, node.kwargs), f"{name!r} is not known to keep channels apart")
    return result


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _call(graph: ChannelGraph, node: fx.Node, name: str) -> Signal | None:
    source = _argument(node, 0, "input")
    if _in_place(node, name) and isinstance(source, fx.Node) and len(source.users) > 1:
        graph.block((node.args, node.kwargs), f"{name!r} changes it in place while it is used elsewhere")
        return None
    if name in BINARY:
        return _binary(graph, node, name)
    if name in ("cat", "concat", "concatenate"):
        return _concatenate(graph, node)
    x = graph.signal(source)
    others = any(n is not source for n in node.all_input_nodes)
    if x is None or (others and name not in ("view", "reshape", "interpolate")):
        return None
    if name in ELEMENTWISE:
        return replace(x, values=_evaluate(lambda values: _apply(node, [values, *node.args[1:]]), x.values))
    if name in DROPOUTS:
        off = _argument(node, 2, "training", "alpha" not in name) is False
        return x if off else _only(x, 0.0 if "alpha" not in name else float("inf"))
    if name in FUNCTIONAL_POOLS:
        return _functional_pool(node, name, x)
    if name == "interpolate":
        return x if x.axis < -1 else None
    if name == "pad":
        return _pad(node, x)
    if name == "flatten":
        return _flatten(graph, source, x, _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))
    if name in ("view", "reshape"):
        return _flatten(graph, source, x, 1, -1) if x.axis == 1 - x.ndim and _is_rows(graph, node, source) else None
    if name in ("mean", "amax", "amin", "sum"):
        return _reduce(node, name, x)
    return _move(graph, node, name, source, x)


def _apply(node: fx.Node, args: list[Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **node.kwargs)
    if len(node.args) == 0:
        return node.target(**{**node.kwargs, "input": args[0]})  # type: ignore[operator]
    return node.target(*args, **node.kwargs)  # type: ignore[operator]


def _binary(graph: ChannelGraph, node: fx.Node, name: str) -> Signal | None:
    if len(node.args) != 2 or {*node.kwargs} - {"alpha"}:
        return None
    a, b = node.args
    signals = [graph.signal(arg) for arg in (a, b)]
    like = signals[0] or signals[1]
    if like is None:
        return None
    operands: list[Any] = []
    for arg, signal in zip((a, b), signals, strict=True):
        if signal is not None:
            operands.append(signal.values)
        elif graph.is_zero(arg):
            operands.append(torch.zeros_like(like.values))
        elif isinstance(arg, (int, float)):
            operands.append(torch.full_like(like.values, arg))
        else:
            return None
    if signals[0] is not None and signals[1] is not None:
        x, y = signals[0], signals[1]
        if (x.axis, len(x), x.flattened) != (y.axis, len(y), y.flattened):
            return None
        graph.slots.tie(x.slots, y.slots)
        like = replace(x, ndim=max(x.ndim, y.ndim))
    known = ~(operands[0].isnan() | operands[1].isnan())
    values = torch.full_like(like.values, NAN)
    if known.any():
        values[known] = _apply(node, [operand[known] for operand in operands])
    if name == "mul":
        values[(operands[0] == 0) | (operands[1] == 0)] = 0
    return replace(like, values=values)


def _concatenate(graph: ChannelGraph, node: fx.Node) -> Signal | None:
    tensors, dim = _argument(node, 0, "tensors"), _argument(node, 1, "dim", 0)
    parts: list[Signal] = []
    for arg in tensors:
        signal, shape = graph.signal(arg), graph.shapes.get(arg)
        if signal is None and shape is not None:
            n = shape[dim]
            slots = graph.slots.new(n)
            graph.slots.block(slots, "they are joined with others of unknown origin")
            axis = dim if dim < 0 else dim - len(shape)
            signal = Signal(slots, torch.full((n,), NAN, dtype=torch.float64), axis, len(shape))
        if signal is None or signal.flattened or (dim if dim < 0 else dim - signal.ndim) != signal.axis:
            return None
        parts.append(signal)
    if len({(part.axis, part.ndim) for part in parts}) != 1:
        return None
    return replace(
        parts[0],
        slots=torch.cat([part.slots for part in parts]),
        values=torch.cat([part.values for part in parts]),
    )


def _functional_pool(node: fx.Node, name: str, x: Signal) -> Signal | None:
    if -x.axis - 1 != FUNCTIONAL_POOLS[name] or node.kwargs.get("return_indices"):
        return None
    if name.startswith("avg"):
        divisor = _argument(node, 6, "divisor_override")
        return _only(x, 0.0 if _argument(node, 3, "padding", 0) not in (0, (0,), (0, 0)) or divisor else None)
    return x


def _pad(node: fx.Node, x: Signal) -> Signal | None:
    widths, mode = _argument(node, 1, "pad"), _argument(node, 2, "mode", "constant")
    if not isinstance(widths, (tuple, list)) or len(widths) // 2 > -x.axis - 1:
        return None
    return _only(x, float(_argument(node, 3, "value") or 0.0) if mode == "constant" else None)


# ---- where the channels are ----------------------------------------------------------------------------------


def _axes(x: Signal) -> list[str]:
    """Return one mark for each axis, that of the channels is ``"c"``."""
    return ["c" if i == x.ndim + x.axis else f"{i}" for i in range(x.ndim)]


def _with_axes(x: Signal, axes: list[str]) -> Signal | None:
    return replace(x, axis=axes.index("c") - len(axes), ndim=len(axes)) if "c" in axes else None


def _flatten(graph: ChannelGraph, source: Any, x: Signal, start: Any, end: Any) -> Signal | None:
    axes, shape = _axes(x), graph.shapes.get(source)
    start, end, place = start % x.ndim, end % x.ndim, x.ndim + x.axis
    if not start <= place <= end:
        return _with_axes(x, [*axes[:start], "merged", *axes[end + 1 :]])
    merged = _with_axes(x, [*axes[:start], "c", *axes[end + 1 :]])
    assert merged is not None
    if start < place and shape is None:
        graph.block(source, "channels are flattened together with axes of unknown size: give example_input")
        return None
    if shape is None:
        return replace(merged, flattened=merged.flattened or end > place)
    merged = merged.repeated(prod(shape[place + 1 : end + 1]))
    outer = prod(shape[start:place])
    return replace(merged, slots=merged.slots.repeat(outer), values=merged.values.repeat(outer))


def _is_rows(graph: ChannelGraph, node: fx.Node, source: Any) -> bool:
    """Return whether a view is ``view(<size of the batch>, -1)``."""
    sizes: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if len(sizes) != 2 or sizes[1] != -1:
        return False
    if isinstance(sizes[0], fx.Node):
        return bool(name_of(sizes[0]) in ("size", "getitem") and sizes[0].args[-1] == 0)
    return bool(source in graph.shapes and graph.shapes[source][0] == sizes[0])


def _reduce(node: fx.Node, name: str, x: Signal) -> Signal | None:
    dims, keep = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    if dims is None or {*node.kwargs} - {"dim", "keepdim"}:
        return None
    places = {d % x.ndim for d in (dims if isinstance(dims, (tuple, list)) else [dims])}
    if x.ndim + x.axis in places:
        return None
    x = _only(x, 0.0 if name == "sum" else None)
    return x if keep else _with_axes(x, [a for i, a in enumerate(_axes(x)) if i not in places])


def _move(graph: ChannelGraph, node: fx.Node, name: str, source: Any, x: Signal) -> Signal | None:
    """Operations that move, add or drop axes."""
    axes, args = _axes(x), list(node.args[1:])
    if node.kwargs or x.flattened or not all(isinstance(a, (int, tuple, list)) for a in args):
        return None
    if name == "permute":
        order = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        return _with_axes(x, [axes[i] for i in order])  # type: ignore[index]
    if name == "transpose" and len(args) == 2:
        i, j = args
        axes[i], axes[j] = axes[j], axes[i]  # type: ignore[index]
        return _with_axes(x, axes)
    if name == "unsqueeze" and len(args) == 1:
        axes.insert(args[0] % (x.ndim + 1), "new")  # type: ignore[operator,arg-type]
        return _with_axes(x, axes)
    shape = graph.shapes.get(source)
    if name == "squeeze" and len(args) == 1 and isinstance(args[0], int) and shape is not None:
        if shape[args[0]] == 1:
            del axes[args[0]]
        return _with_axes(x, axes)
    return None
