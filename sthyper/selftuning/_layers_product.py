"""Best-response versions of linear layers, convolutions, transposed convolutions and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning._layers_base import BestResponse, Examples, prepare, scaled
from sthyper.selftuning._response import Layout, Site

__all__ = [
    "BestResponseConv1d",
    "BestResponseConv2d",
    "BestResponseConv3d",
    "BestResponseConvTranspose1d",
    "BestResponseConvTranspose2d",
    "BestResponseConvTranspose3d",
    "BestResponseEmbedding",
    "BestResponseLinear",
]


def _bias(layer: nn.Module) -> str | None:
    return "bias" if layer.bias is not None else None


class BestResponseLinear(BestResponse, nn.Linear):
    """A linear layer whose rows respond to hyperparameters."""

    plain_class = nn.Linear

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weight."""
        return [Site("", "weight", _bias(layer))]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``... x out`` for ``... x in``."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input)
        examples = Examples.of(input, self.link, 1, perturbation)
        rows = input.numel() // self.in_features
        apply = prepare(F.linear, self.weight, self.bias, self.response(), perturbation, examples, rows=rows)
        return apply(input)


class _Convolution(BestResponse):
    """A convolution whose output channels respond to hyperparameters."""

    _spatial: ClassVar[int]

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weight."""
        return [Site("", "weight", _bias(layer), Layout("rows", layer.groups))]

    def forward(self, input: Tensor) -> Tensor:
        """Return what the plain convolution returns, with the weights of each example."""
        layer = cast(Any, self)
        perturbation = self.perturbation()
        if perturbation is None:
            return cast(Tensor, layer._conv_forward(input, layer.weight, layer.bias))
        examples = Examples.of(input, self.link, self._spatial + 1, perturbation)
        channel = -1 - self._spatial
        response = self.response()
        apply = prepare(layer._conv_forward, layer.weight, layer.bias, response, perturbation, examples, channel)
        return apply(input)


class BestResponseConv1d(_Convolution, nn.Conv1d):
    """See :class:`torch.nn.Conv1d`; its output channels respond to hyperparameters."""

    plain_class, _spatial = nn.Conv1d, 1


class BestResponseConv2d(_Convolution, nn.Conv2d):
    """See :class:`torch.nn.Conv2d`; its output channels respond to hyperparameters."""

    plain_class, _spatial = nn.Conv2d, 2


class BestResponseConv3d(_Convolution, nn.Conv3d):
    """See :class:`torch.nn.Conv3d`; its output channels respond to hyperparameters."""

    plain_class, _spatial = nn.Conv3d, 3


class _Transposed(BestResponse):
    """A transposed convolution whose output channels respond to hyperparameters."""

    _spatial: ClassVar[int]
    _product: ClassVar[Callable[..., Tensor]]

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weight."""
        return [Site("", "weight", _bias(layer), Layout("transposed", layer.groups))]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return what the plain layer returns, with the weights of each example."""
        perturbation = self.perturbation()
        if perturbation is None:
            return cast(Tensor, super().forward(input, output_size))  # type: ignore[misc]
        layer = cast(Any, self)
        padding = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, self._spatial, layer.dilation
        )

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            options = (layer.stride, layer.padding, padding, layer.groups, layer.dilation)
            return type(self)._product(x, weight, bias, *options)

        examples = Examples.of(input, self.link, self._spatial + 1, perturbation)
        channel = -1 - self._spatial
        apply = prepare(product, layer.weight, layer.bias, self.response(), perturbation, examples, channel)
        return apply(input)


class BestResponseConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """See :class:`torch.nn.ConvTranspose1d`; its output channels respond to hyperparameters."""

    plain_class, _spatial, _product = nn.ConvTranspose1d, 1, staticmethod(F.conv_transpose1d)


class BestResponseConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """See :class:`torch.nn.ConvTranspose2d`; its output channels respond to hyperparameters."""

    plain_class, _spatial, _product = nn.ConvTranspose2d, 2, staticmethod(F.conv_transpose2d)


class BestResponseConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """See :class:`torch.nn.ConvTranspose3d`; its output channels respond to hyperparameters."""

    plain_class, _spatial, _product = nn.ConvTranspose3d, 3, staticmethod(F.conv_transpose3d)


class BestResponseEmbedding(BestResponse, nn.Embedding):
    """An embedding whose columns respond to hyperparameters; the row of ``padding_idx`` does not.

    The vectors of the batch are scaled in every pass: effective tables would cost the whole vocabulary.
    """

    plain_class = nn.Embedding

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the table."""
        return [Site("", "weight", None, Layout("columns"))]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``... x dim`` for indices."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input)
        response = self.response()
        weight = self.weight.detach() if perturbation.linearised else self.weight
        general = self._look_up(input, weight)
        factor = response.weight if response.down is None else response.down
        assert factor is not None
        answer = self._look_up(input, factor)
        if response.up is not None:
            answer = F.linear(answer, response.up)
        of_weight, _ = response.scales(perturbation)
        examples = Examples.of(general, self.link, 1, perturbation)
        scales = examples.expand(of_weight, perturbation)
        return torch.addcmul(general, scaled(scales, examples, -1, general), answer)

    def _look_up(self, input: Tensor, table: Tensor) -> Tensor:
        return F.embedding(
            input, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse
        )
