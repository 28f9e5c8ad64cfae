"""Masked layers, models of them, and the way back to plain ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sthyper.errors import closest
from sthyper.straight_through._masked_base import MaskedLayer, become_masked
from sthyper.straight_through.masks import (
    MODES,
    MaskMode,
    MaskOptions,
    all_masks,
    check_name,
    check_options,
    is_masked_module,
    mask_module,
    masked_names,
    own_class,
)

__all__ = [
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedLayer",
    "MaskedLayerNorm",
    "MaskedLinear",
    "convert_to_masked_model",
    "export_masked",
]


class MaskedLinear(MaskedLayer, nn.Linear):
    """:class:`torch.nn.Linear` with masked weights.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.Linear


class MaskedConv1d(MaskedLayer, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with masked weights.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.Conv1d


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with masked weights.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.Conv2d


class MaskedConv3d(MaskedLayer, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with masked weights.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.Conv3d


class MaskedConvTranspose1d(MaskedLayer, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` with masked weights; it pads with zeros only.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.ConvTranspose1d


class MaskedConvTranspose2d(MaskedLayer, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` with masked weights; it pads with zeros only.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.ConvTranspose2d


class MaskedConvTranspose3d(MaskedLayer, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` with masked weights; it pads with zeros only.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.ConvTranspose3d


class MaskedLayerNorm(MaskedLayer, nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with masked weights.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.LayerNorm


class MaskedBatchNorm1d(MaskedLayer, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with masked weights, for ``N x C`` or ``N x C x L``.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.BatchNorm1d


class MaskedBatchNorm2d(MaskedLayer, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with masked weights, for ``N x C x H x W``.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.BatchNorm2d


class MaskedBatchNorm3d(MaskedLayer, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` with masked weights, for ``N x C x D x H x W``.

    Arguments: see :class:`MaskedLayer`.
    """

    plain = nn.BatchNorm3d


_MASKED: dict[type[nn.Module], type[MaskedLayer]] = {
    masked.plain: masked
    for masked in (
        MaskedLinear,
        MaskedConv1d,
        MaskedConv2d,
        MaskedConv3d,
        MaskedConvTranspose1d,
        MaskedConvTranspose2d,
        MaskedConvTranspose3d,
        MaskedLayerNorm,
        MaskedBatchNorm1d,
        MaskedBatchNorm2d,
        MaskedBatchNorm3d,
    )
}


def convert_to_masked_model(
    model: nn.Module,
    options: MaskOptions | None = None,
    generator: torch.Generator | None = None,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Return a copy of a model whose linear, convolution, layer norm and batch norm layers are masked.

    Layers of these classes become the masked ones; layers of other subclasses of them keep their class and are masked
    by :func:`~sthyper.straight_through.mask_module`; layers that are masked already and modules of other kinds are
    copied as they are, their parameters trainable or frozen as they were. Only a weight that they share with a masked
    layer, such as that of an embedding, is frozen for both; the embedding reads it without the mask.

    Example:
        >>> masked = convert_to_masked_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> optimizer = torch.optim.Adam((p for p in masked.parameters() if p.requires_grad), lr=0.1)
        >>> plain = export_masked(masked)

    Args:
        model: Any module; it is not changed. A model without such layers gives a plain copy.
        options: Modes, estimator and initial scores of the masks.
        generator: Draws the initial scores; default is torch's own.
        exclude: Patterns of paths of layers that stay plain, as in :mod:`fnmatch`.

    Raises:
        TypeError: If ``model`` is no module, ``options`` are no ``MaskOptions``, or ``exclude`` is a string.
        ValueError: If a pattern matches no layer that would be masked, or a layer cannot be.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a sequence of patterns, got a string: say exclude=({exclude!r},)")
    check_options(options)
    model = _copied(model)
    kinds = (nn.Linear, _ConvNd, nn.LayerNorm, _BatchNorm)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and not is_masked_module(m)}
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"exclude: no layer to mask matches {pattern!r}{closest(pattern, layers)}; there are {list(layers)}"
            )
    for name, layer in layers.items():
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        masked = _MASKED.get(type(layer))
        if masked is None:
            mask_module(layer, options=options, generator=generator)
        else:
            become_masked(layer, masked, options, generator)
    return model


@torch.no_grad()
def export_masked(model: nn.Module, mode: MaskMode = "threshold") -> nn.Module:
    """Return a plain copy of a model with masks, the masks multiplied in.

    Layers are of torch's own classes again, their parameters have their old names and can be trained, also those that
    were frozen. With the default, outputs are those of the masked model in evaluation by threshold. Other
    parametrisations of a masked parameter are evaluated, too.

    Args:
        model: A model with masks; it is not changed.
        mode: ``"threshold"`` keeps values whose probability is above one half, ``"sample"`` draws which to keep, from
            torch's own generator, ``"expected"`` multiplies with the probabilities.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: For an unknown mode, if the model has no masks, or if a layer is of a subclass of a masked layer,
            which has no plain one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {model!r}")
    for module in model.modules():
        layer = _class_of(module)
        if issubclass(layer, MaskedLayer) and layer not in _MASKED.values():
            raise ValueError(f"model: {layer.__name__} is a subclass of a masked layer and has no plain class")
    check_name("mode", mode, MODES)
    all_masks(model)
    model = _copied(model)
    for mask in all_masks(model).values():
        mask.options = replace(mask.options, training=mode, evaluation=mode)
    for module in list(model.modules()):
        values = {name: getattr(module, name).detach().clone() for name in masked_names(module)}
        if values:
            _remove_parametrizations(module, list(values))
        for name, value in values.items():
            setattr(module, name, nn.Parameter(value))
        if isinstance(module, MaskedLayer):
            module.__class__ = module.plain  # type: ignore[assignment]
    return model


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, or say which layer has a computed weight that cannot be copied."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)) and not getattr(module, hook.name).is_leaf:
                raise ValueError(
                    f"model: {path!r} ({type(module).__name__}) has an old-style weight or spectral norm and cannot be "
                    "copied: remove it before (remove_weight_norm), or take that of torch.nn.utils.parametrizations"
                )
    return copy.deepcopy(model)


def _remove_parametrizations(module: nn.Module, names: Sequence[str]) -> None:
    """Do what torch's function does, which would change the class that copies of the module share."""
    own_class(module)
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    for name in names:
        del lists[name]
        delattr(type(module), name)
    if not lists:
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]


def _class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before it was parametrised."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
