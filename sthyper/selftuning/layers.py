"""The layers that can respond to hyperparameters, by the plain layer that they replace."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import nn

from sthyper.selftuning._layers_attention import (
    BestResponseMultiheadAttention,
    BestResponseTransformerEncoder,
    BestResponseTransformerEncoderLayer,
)
from sthyper.selftuning._layers_base import BestResponse
from sthyper.selftuning._layers_norm import (
    BestResponseBatchNorm1d,
    BestResponseBatchNorm2d,
    BestResponseBatchNorm3d,
    BestResponseGroupNorm,
    BestResponseInstanceNorm1d,
    BestResponseInstanceNorm2d,
    BestResponseInstanceNorm3d,
    BestResponseLayerNorm,
    BestResponseRMSNorm,
)
from sthyper.selftuning._layers_product import (
    BestResponseConv1d,
    BestResponseConv2d,
    BestResponseConv3d,
    BestResponseConvTranspose1d,
    BestResponseConvTranspose2d,
    BestResponseConvTranspose3d,
    BestResponseEmbedding,
    BestResponseLinear,
)
from sthyper.selftuning._layers_recurrent import (
    BestResponseGRU,
    BestResponseGRUCell,
    BestResponseLSTM,
    BestResponseLSTMCell,
    BestResponseRNN,
    BestResponseRNNCell,
)
from sthyper.selftuning._response import Response

__all__ = ["LAYERS", "BestResponse", "Response", "best_response_class"]

_RESPONDING: tuple[type[BestResponse], ...] = (
    BestResponseLinear,
    BestResponseConv1d,
    BestResponseConv2d,
    BestResponseConv3d,
    BestResponseConvTranspose1d,
    BestResponseConvTranspose2d,
    BestResponseConvTranspose3d,
    BestResponseEmbedding,
    BestResponseBatchNorm1d,
    BestResponseBatchNorm2d,
    BestResponseBatchNorm3d,
    BestResponseInstanceNorm1d,
    BestResponseInstanceNorm2d,
    BestResponseInstanceNorm3d,
    BestResponseGroupNorm,
    BestResponseLayerNorm,
    BestResponseRMSNorm,
    BestResponseLSTM,
    BestResponseGRU,
    BestResponseRNN,
    BestResponseLSTMCell,
    BestResponseGRUCell,
    BestResponseRNNCell,
    BestResponseMultiheadAttention,
)

LAYERS: MappingProxyType[type[nn.Module], type[BestResponse]] = MappingProxyType(
    {layer.plain_class: layer for layer in _RESPONDING}
)
"""The class of every layer that can respond to hyperparameters, by that of the plain layer."""

_GUARDS: dict[type[nn.Module], type[BestResponse]] = {
    nn.TransformerEncoderLayer: BestResponseTransformerEncoderLayer,
    nn.TransformerEncoder: BestResponseTransformerEncoder,
}
_METHODS = ("forward", "_conv_forward", "_output_padding")
_made: dict[type[nn.Module], type[Any]] = {}


def best_response_class(plain: type[nn.Module]) -> type[Any] | None:
    """Return the class that a layer of a class gets.

    Subclasses of a layer in :data:`LAYERS` get one made for them, as long as they compute what that layer computes.

    Args:
        plain: Class of the layer.

    Returns:
        A subclass of ``plain``; ``None`` if there is none.

    Raises:
        TypeError: If ``plain`` is a subclass with a forward method of its own.
    """
    exact = LAYERS.get(plain) or _GUARDS.get(plain)
    if exact is not None:
        return exact
    base = next((c for c in plain.__mro__ if c in LAYERS), None)
    if base is None:
        return None
    own = [method for method in _METHODS if getattr(plain, method, None) is not getattr(base, method, None)]
    if own:
        raise TypeError(f"{plain.__name__} is a {base.__name__} with its own {own[0]}()")
    if plain not in _made:
        _made[plain] = type(f"BestResponse{plain.__name__}", (LAYERS[base], plain), {"plain_class": plain})
    return _made[plain]
