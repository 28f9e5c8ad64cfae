"""What can be cut from single layers, and how: outputs, inputs, groups, features; always with new parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = [
    "PRODUCERS",
    "add_to_bias",
    "bake_parametrizations",
    "channel_axis",
    "contribution",
    "has_border",
    "input_channels",
    "is_plain",
    "move_inputs",
    "output_channels",
    "slice_features",
    "slice_groups",
    "slice_inputs",
    "slice_outputs",
    "zero_inputs",
    "zero_outputs",
]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
MATRICES = (nn.Linear, *CONVS, *TRANSPOSED)
PRODUCERS = (*MATRICES, nn.Embedding)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm)


def is_plain(module: nn.Module, bases: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module computes what one of ``bases`` computes from its parameters, and nothing else."""
    same = any(isinstance(module, base) and type(module).forward is base.forward for base in bases)
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return same and not hooks and not parametrize.is_parametrized(module)


def output_channels(module: nn.Module) -> int | None:
    """Return how many output channels of a layer can be gated, ``None`` for modules of other kinds."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return module.out_channels
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if module.max_norm is None else None
    if not isinstance(module, NORMS) or module.weight is None:
        return None
    return len(module.weight) if module.weight.dim() == 1 else None


def input_channels(module: nn.Module) -> int | None:
    """Return how many input channels of a layer can be gated, ``None`` for modules of other kinds."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels if isinstance(module, (*CONVS, *TRANSPOSED)) else None


def channel_axis(module: nn.Module) -> int:
    """Return the axis of the channels in a layer's outputs, counted from the end, or 1 for some normalisations."""
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return -len(module.kernel_size) - 1
    return -1 if isinstance(module, (nn.Linear, nn.Embedding, nn.LayerNorm)) else 1


def bake_parametrizations(module: nn.Module) -> None:
    """Replace parametrised weights by what they are in evaluation mode."""
    if not parametrize.is_parametrized(module):
        return
    training = module.training
    module.eval()
    # Copies of a module share its class, from which torch removes the weights.
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    for name in list(module.parametrizations):  # type: ignore[arg-type]
        parametrize.remove_parametrizations(module, str(name), leave_parametrized=True)
    module.train(training)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a new parameter or buffer: others may share the old one."""
    old = getattr(module, name)
    value = value.detach().to(old).clone()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, name, value)


def _select(module: nn.Module, name: str, keep: Tensor, dim: int = 0) -> None:
    value = getattr(module, name, None)
    if value is not None and value.dim():
        _set(module, name, value.detach().index_select(dim, keep.to(value.device)))


def _axes(module: nn.Module) -> tuple[int, int]:
    """Return the axes of the outputs and of the inputs in a weight."""
    return (1, 0) if isinstance(module, (*TRANSPOSED, nn.Embedding)) else (0, 1)


def zero_outputs(module: Any, closed: Tensor) -> None:
    """Make output channels exactly 0 (``closed``: bool, one for each)."""
    closed = closed.to(module.weight.device)
    weight = module.weight.detach().clone()
    if isinstance(module, TRANSPOSED):  # in x (out / groups) x kernel
        by_group = weight.unflatten(0, (module.groups, -1))
        by_group.movedim(1, 2)[closed.view(module.groups, -1)] = 0
    else:
        weight.movedim(_axes(module)[0], 0)[closed] = 0
    _set(module, "weight", weight)
    if getattr(module, "bias", None) is not None:
        _set(module, "bias", module.bias.detach().masked_fill(closed, 0))


def zero_inputs(module: Any, closed: Tensor) -> None:
    """Make a layer ignore input channels (``closed``: bool, one for each)."""
    closed = closed.to(module.weight.device)
    weight = module.weight.detach().clone()
    if isinstance(module, TRANSPOSED):
        weight[closed] = 0
    else:  # out x (in / groups) x kernel
        groups = getattr(module, "groups", 1)
        weight.unflatten(0, (groups, -1)).movedim(1, 2)[closed.view(groups, -1)] = 0
    _set(module, "weight", weight)


def slice_outputs(module: Any, keep: Tensor) -> None:
    """Keep the output channels with the given indices, of a layer with one group."""
    _select(module, "weight", keep, _axes(module)[0])
    _select(module, "bias", keep)
    names = {nn.Linear: "out_features", nn.Embedding: "embedding_dim"}
    setattr(module, next((name for kind, name in names.items() if isinstance(module, kind)), "out_channels"), len(keep))


def slice_inputs(module: Any, keep: Tensor) -> None:
    """Keep the input channels with the given indices, of a layer with one group."""
    _select(module, "weight", keep, _axes(module)[1])
    setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(keep))


def slice_groups(module: Any, keep: Tensor) -> None:
    """Keep the groups of a convolution with the given indices."""
    groups, n = module.groups, len(keep)
    for name in ("weight", "bias"):
        value = getattr(module, name)
        if value is not None:
            _set(module, name, value.detach().unflatten(0, (groups, -1))[keep.to(value.device)].flatten(0, 1))
    module.in_channels, module.out_channels = module.in_channels // groups * n, module.out_channels // groups * n
    module.groups = n


def slice_features(module: Any, keep: Tensor) -> None:
    """Keep the features with the given indices of a normalisation over each channel, or of a PReLU."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(module, name, keep)
    setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", len(keep))


def has_border(module: Any) -> bool:
    """Return whether a constant input other than 0 gives outputs that are not the same at all positions."""
    if isinstance(module, nn.Linear):
        return False
    if isinstance(module, TRANSPOSED):
        return True
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    padding = {"valid": [0], "same": reach}.get(module.padding, module.padding)
    return module.padding_mode == "zeros" and any(padding)


def contribution(module: Any, values: Tensor) -> Tensor:
    """Return what constant inputs (``in``, float64) add to each output, away from borders (``out``, float64)."""
    weight = module.weight.detach().cpu().double()
    if weight.dim() > 2:
        weight = weight.flatten(2).sum(2)
    groups = getattr(module, "groups", 1)
    by_group = weight.unflatten(0, (groups, -1))
    return torch.einsum("goi,gi->go", by_group, values.view(groups, -1)).flatten()


def add_to_bias(module: Any, extra: Tensor) -> None:
    """Add float64 numbers (``out``) to a bias."""
    _set(module, "bias", module.bias.detach().cpu().double() + extra)


def move_inputs(module: Any, target: int, sources: Tensor, factors: Tensor) -> None:
    """Add the weights of input channels ``sources`` (indices), times ``factors``, to those of channel ``target``."""
    weight = module.weight.detach().cpu().double().movedim(_axes(module)[1], 0).clone()
    weight[target] += torch.tensordot(factors, weight[sources], 1)
    _set(module, "weight", weight.movedim(0, _axes(module)[1]))
