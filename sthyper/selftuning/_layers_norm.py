"""Best-response versions of normalisations: their affine part responds, their statistics never do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning._layers_base import BestResponse, Examples, direction, dual, unpack
from sthyper.selftuning._response import Layout, Site
from sthyper.selftuning.perturbation import Perturbation

__all__ = [
    "BestResponseBatchNorm1d",
    "BestResponseBatchNorm2d",
    "BestResponseBatchNorm3d",
    "BestResponseGroupNorm",
    "BestResponseInstanceNorm1d",
    "BestResponseInstanceNorm2d",
    "BestResponseInstanceNorm3d",
    "BestResponseLayerNorm",
    "BestResponseRMSNorm",
]


class _Norm(BestResponse):
    """A normalisation whose scale and shift respond to hyperparameters."""

    @classmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the scale, unless the layer has none."""
        if layer.weight is None:
            return []
        return [Site("", "weight", "bias" if getattr(layer, "bias", None) is not None else None, Layout("elements"))]

    def _affine(self, normal: Tensor, perturbation: Perturbation, examples: Examples, trailing: int) -> Tensor:
        """Return normalised values times the scale, plus the shift, of each example.

        Args:
            normal: The normalised values.
            perturbation: What the layer responds to.
            examples: Where the examples are.
            trailing: Number of axes after those that the parameters have.
        """
        layer = cast(Any, self)
        response = self.response()
        shape = layer.weight.shape

        def place(values: Tensor) -> Tensor:
            if values.shape[0] > 1:
                values = examples.expand(values, perturbation)
            sizes = [1] * (normal.dim() - trailing - len(shape)) + [*shape] + [1] * trailing
            if values.shape[0] > 1:
                sizes[examples.axis] = values.shape[0]
            return values.to(normal.dtype).reshape(sizes)

        weight, bias = layer.weight.flatten(), getattr(layer, "bias", None)
        bias = None if bias is None else bias.flatten()
        assert response.weight is not None
        answer = response.weight.flatten()
        if not perturbation.linearised:
            of_weight, of_bias = response.scales(perturbation)
            result = normal * place(torch.addcmul(weight, of_weight, answer))
            if of_bias is None or bias is None or response.bias is None:
                return result
            return result + place(torch.addcmul(bias, of_bias, response.bias.flatten()))
        # A forward-mode derivative at delta = 0: value and tangent apart.
        of_weight, of_bias = response.scales(direction(perturbation))
        primal, tangent = unpack(normal)
        primal, slope = primal.detach(), place(weight.detach().unsqueeze(0))
        value, change = primal * slope, primal * place(of_weight * answer)
        if tangent is not None:
            change = change + tangent * slope
        if of_bias is not None and bias is not None and response.bias is not None:
            value = value + place(bias.detach().unsqueeze(0))
            change = change + place(of_bias * response.bias.flatten())
        return dual(value, change)


class _BatchStatistics(_Norm):
    """A normalisation with running statistics.

    They follow passes that train the weights only: passes with gradients or tangents to the hyperparameters leave them
    alone, and so do all passes within ``frozen_statistics``.
    """

    def _frozen(self) -> bool:
        owner = self.link.owner
        if owner.freezes_statistics:
            return True
        current = owner.hyperparameters.current
        return current is not None and (current.tracks or current.linearised)

    @abstractmethod
    def _normalise(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, frozen: bool) -> Tensor:
        """Return the normalised input; ``frozen`` statistics do not follow it."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of its shape (``B x C x ...``)."""
        layer = cast(Any, self)
        perturbation = self.perturbation()
        frozen = self._frozen()
        if perturbation is None and not (frozen and layer.training and layer.track_running_stats):
            return cast(Tensor, super().forward(input))  # type: ignore[misc]
        layer._check_input_dim(input)
        if perturbation is None:
            return self._normalise(input, layer.weight, layer.bias, frozen)
        trailing = max(input.dim() - 2, 0) if self._batched(input) else input.dim() - 1
        examples = Examples.of(input, self.link, trailing + 1, perturbation)
        if perturbation.n_groups == 1 and not perturbation.linearised:
            weights, biases = self.response().effective(layer.weight, layer.bias, perturbation)
            return self._normalise(input, weights[0], None if biases is None else biases[0], frozen)
        return self._affine(self._normalise(input, None, None, frozen), perturbation, examples, trailing)

    def _batched(self, input: Tensor) -> bool:
        return True


class _BatchNorm(_BatchStatistics):
    def _normalise(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, frozen: bool) -> Tensor:
        layer = cast(Any, self)
        if not layer.training:
            own = layer.running_mean is None and layer.running_var is None
            return F.batch_norm(input, layer.running_mean, layer.running_var, weight, bias, own, 0.0, layer.eps)
        if frozen or not layer.track_running_stats:
            return F.batch_norm(input, None, None, weight, bias, True, 0.0, layer.eps)
        momentum = layer.momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(layer.num_batches_tracked)
        mean, var = layer.running_mean, layer.running_var
        return F.batch_norm(input, mean, var, weight, bias, True, 0.0 if momentum is None else momentum, layer.eps)


class BestResponseBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """See :class:`torch.nn.BatchNorm1d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.BatchNorm1d


class BestResponseBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """See :class:`torch.nn.BatchNorm2d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.BatchNorm2d


class BestResponseBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """See :class:`torch.nn.BatchNorm3d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.BatchNorm3d


class _InstanceNorm(_BatchStatistics):
    def _batched(self, input: Tensor) -> bool:
        return bool(input.dim() != cast(Any, self)._get_no_batch_dim())

    def _normalise(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, frozen: bool) -> Tensor:
        layer = cast(Any, self)
        if not self._batched(input):
            return self._normalise(input.unsqueeze(0), weight, bias, frozen).squeeze(0)
        own = layer.training or not layer.track_running_stats
        mean, var = (None, None) if own and frozen else (layer.running_mean, layer.running_var)
        momentum = layer.momentum if layer.momentum is not None else 0.0
        return F.instance_norm(input, mean, var, weight, bias, own, momentum, layer.eps)


class BestResponseInstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """See :class:`torch.nn.InstanceNorm1d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.InstanceNorm1d


class BestResponseInstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """See :class:`torch.nn.InstanceNorm2d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.InstanceNorm2d


class BestResponseInstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """See :class:`torch.nn.InstanceNorm3d`; its scale and shift respond to hyperparameters."""

    plain_class = nn.InstanceNorm3d


class BestResponseGroupNorm(_Norm, nn.GroupNorm):
    """See :class:`torch.nn.GroupNorm`; its scale and shift respond to hyperparameters."""

    plain_class = nn.GroupNorm

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of its shape (``B x C x ...``)."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input)
        normal = F.group_norm(input, self.num_groups, None, None, self.eps)
        trailing = input.dim() - 2
        examples = Examples.of(input, self.link, trailing + 1, perturbation)
        return self._affine(normal, perturbation, examples, trailing)


class BestResponseLayerNorm(_Norm, nn.LayerNorm):
    """See :class:`torch.nn.LayerNorm`; each element of its scale and shift responds to hyperparameters."""

    plain_class = nn.LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of its shape."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(input)
        shape = list(self.normalized_shape)
        normal = F.layer_norm(input, shape, None, None, self.eps)
        return self._affine(normal, perturbation, Examples.of(input, self.link, len(shape), perturbation), 0)


class BestResponseRMSNorm(_Norm, nn.RMSNorm):
    """See :class:`torch.nn.RMSNorm`; each element of its scale responds to hyperparameters."""

    plain_class = nn.RMSNorm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, of its shape."""
        perturbation = self.perturbation()
        if perturbation is None:
            return super().forward(x)
        shape = list(self.normalized_shape)
        normal = F.rms_norm(x, shape, None, self.eps)
        return self._affine(normal, perturbation, Examples.of(x, self.link, len(shape), perturbation), 0)
