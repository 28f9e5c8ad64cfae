"""The tensors of one best response: how the weights of one product move with the hyperparameters."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.selftuning.perturbation import Perturbation

__all__ = ["Form", "Kind", "Layout", "Response", "Site"]

Kind = Literal["delta", "stn"]
Form = Literal["full", "lowrank"]

_STN_BOTTLENECK = 0.01  # standard deviation of V in the 2019 paper's code


@dataclass(frozen=True)
class Layout:
    """Which axis of a weight belongs to the output units, each of which has its own scale.

    Args:
        units: ``"rows"`` of linear layers and convolutions, ``"transposed"`` convolutions (in, out / groups, ...),
            ``"columns"`` of embeddings, or ``"elements"`` of normalisations.
        groups: Groups of a convolution.
    """

    units: Literal["rows", "transposed", "columns", "elements"] = "rows"
    groups: int = 1

    def n_units(self, shape: torch.Size) -> int:
        """Return the number of output units ``D`` of a weight of this shape."""
        if self.units == "elements":
            return shape.numel()
        return shape[0] if self.units == "rows" else shape[1] * self.groups

    def rows(self, weight: Tensor) -> Tensor:
        """Return a weight as ``groups x units of the group x rest``."""
        if self.units == "rows":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        if self.units == "elements":
            return weight.reshape(1, -1, 1)
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.transpose(1, 2).flatten(2)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight of this shape whose :meth:`rows` are given."""
        if self.units in ("rows", "elements"):
            return rows.reshape(shape)
        inner = shape[0] // self.groups
        return rows.reshape(self.groups, shape[1], inner, -1).transpose(1, 2).reshape(shape)

    def spread(self, scales: Tensor, shape: torch.Size) -> Tensor:
        """Return scales (``G x D``) so that they multiply a weight of this shape, as ``G x ...``."""
        if self.units == "elements":
            return scales.reshape(-1, *shape)
        if self.units == "rows":
            return scales.reshape(-1, shape[0], *[1] * (len(shape) - 1))
        if self.groups > 1:
            inner = shape[0] // self.groups
            parts = scales.reshape(-1, self.groups, 1, shape[1])
            return parts.expand(-1, -1, inner, -1).reshape(-1, shape[0], shape[1], *[1] * (len(shape) - 2))
        return scales.reshape(-1, 1, shape[1], *[1] * (len(shape) - 2))


@dataclass(frozen=True)
class Site:
    """One weight of a layer, with its bias, that gets a response.

    Args:
        name: Name within the layer; empty if it is the only one.
        weight: Name of the layer's parameter.
        bias: Name of the bias, ``None`` without one.
        layout: Where its output units are.
        part: Which rows of the parameters belong to it (start and number), ``None`` for all.
    """

    name: str
    weight: str
    bias: str | None
    layout: Layout = Layout()
    part: tuple[int, int] | None = None

    def general(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias of the layer at this site, as views of its parameters."""
        weight = getattr(layer, self.weight)
        bias = None if self.bias is None else getattr(layer, self.bias)
        if self.part is None:
            return weight, bias
        start, length = self.part
        return weight.narrow(0, start, length), None if bias is None else bias.narrow(0, start, length)


class Response(nn.Module):
    """How one weight ``W`` with ``D`` output units, and its bias, respond to the hyperparameters.

    With ``(s, t) = bottleneck @ z``, the effective weight of a group of examples is ``W + diag(s) R`` and the effective
    bias ``b + t * r``. For kind ``"delta"``, ``z`` is the distance from the centre (Bae & Grosse 2020,
    https://arxiv.org/abs/2010.13514); for kind ``"stn"`` it is the hyperparameters themselves and ``W`` and ``b`` are
    multiplied by a learned scalar (MacKay et al. 2019, https://arxiv.org/abs/1903.03088).

    Attributes:
        weight: ``R``, of the shape of ``W``; form ``"full"``.
        down: First factor of ``R``, a weight with ``rank`` output units (in each group of a convolution).
        up: Second factor of ``R`` (``D x rank``).
        bias: ``r`` (``D``), ``None`` without a bias.
        bottleneck: ``2 D x H`` (``D x H`` without a bias): zero at the start for ``"delta"``, normal with standard
            deviation 0.01 for ``"stn"``.
        scalar: The scalar of kind ``"stn"``, 1 at the start; embeddings and normalisations have none.

    Args:
        weight: The general weight, for shape, dtype and device.
        bias: The general bias.
        n_hyperparameters: ``H``.
        kind: ``"delta"`` or ``"stn"``.
        form: ``"full"``, or ``"lowrank"`` for a product of two factors.
        rank: Rank of the factors; at most what the weight itself can have.
        layout: Where the output units are.
        generator: Source of the initial values.
        padding_idx: Row of an embedding that stays zero.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        n_hyperparameters: int,
        *,
        kind: Kind,
        form: Form,
        rank: int,
        layout: Layout,
        generator: torch.Generator,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.layout, self.shape = kind, layout, weight.shape
        self.n_units = layout.n_units(weight.shape)
        # One number a unit has no factors.
        self.form: Form = "full" if layout.units == "elements" else form
        rows = layout.rows(weight)
        fan_in = rows.shape[2]

        def uniform(shape: tuple[int, ...] | torch.Size, bound: float) -> nn.Parameter:
            values = torch.rand(shape, generator=generator) * (2 * bound) - bound
            return nn.Parameter(values.to(weight))

        # An embedding has no fan-in: its table begins as in the 2019 paper's code.
        bound = 0.1 if layout.units == "columns" else 1 / math.sqrt(fan_in)
        self.weight: nn.Parameter | None = None
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        if layout.units == "elements":
            # Each scale has one element, so that a random sign would say nothing.
            self.weight = nn.Parameter(torch.ones_like(weight))
        elif self.form == "full":
            self.weight = uniform(weight.shape, bound)
        else:
            rank = min(rank, rows.shape[1], fan_in)
            self.down = uniform(self._down_shape(rank), bound)
            # So that the product varies as the full weight would.
            self.up = uniform((self.n_units, rank), math.sqrt(3 / rank))
        table = self.down if self.weight is None else self.weight
        if padding_idx is not None and table is not None:
            table.data[padding_idx] = 0
        self.bias: nn.Parameter | None = None
        if bias is not None:
            ones = layout.units == "elements"
            self.bias = nn.Parameter(torch.ones_like(bias)) if ones else uniform(bias.shape, bound)
        shape = (self.n_units * (1 if bias is None else 2), n_hyperparameters)
        if kind == "delta":
            bottleneck = torch.zeros(shape)
        else:
            bottleneck = torch.randn(shape, generator=generator) * _STN_BOTTLENECK
        self.bottleneck = nn.Parameter(bottleneck.to(weight))
        self.scalar: nn.Parameter | None = None
        if kind == "stn" and layout.units in ("rows", "transposed"):
            self.scalar = nn.Parameter(torch.ones_like(weight.detach().flatten()[0]))

    def _down_shape(self, rank: int) -> tuple[int, ...]:
        if self.layout.units == "rows":
            return (rank * self.layout.groups, *self.shape[1:])
        return (self.shape[0], rank, *self.shape[2:])

    def scales(self, perturbation: Perturbation) -> tuple[Tensor, Tensor | None]:
        """Return the scales of the weight and of the bias (``G x D`` each)."""
        inputs = perturbation.delta if self.kind == "delta" else perturbation.inputs
        device = self.bottleneck.device.type
        # Small next to the layer, and the only way of the gradient to the hyperparameters: never in half precision.
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            scales = F.linear(inputs.to(self.bottleneck), self.bottleneck)
        if self.bias is None:
            return scales, None
        of_weight, of_bias = scales.chunk(2, dim=1)
        return of_weight, of_bias

    def shift(self, bias: Tensor | None, of_bias: Tensor | None) -> Tensor | None:
        """Return the effective biases (``G x D``)."""
        if bias is None or of_bias is None or self.bias is None:
            return None
        return torch.addcmul(self.general(bias), of_bias, self.bias)

    def general(self, tensor: Tensor) -> Tensor:
        """Return a general tensor, times the scalar if there is one."""
        return tensor if self.scalar is None else self.scalar * tensor

    def full_weight(self) -> Tensor:
        """Return ``R``, of the shape of the general weight."""
        if self.weight is not None:
            return self.weight
        up, down = self._factors()
        return self.layout.from_rows(up @ down, self.shape)

    def effective(
        self, weight: Tensor, bias: Tensor | None, perturbation: Perturbation
    ) -> tuple[Tensor, Tensor | None]:
        """Return the effective weights (``G x ...``) and biases (``G x D``) of the groups.

        Args:
            weight: The general weight.
            bias: The general bias.
            perturbation: With ``G`` groups.
        """
        of_weight, of_bias = self.scales(perturbation)
        spread = self.layout.spread(of_weight, self.shape)
        shift = self.shift(bias, of_bias)
        if shift is not None and bias is not None:
            shift = shift.reshape(-1, *bias.shape)
        return torch.addcmul(self.general(weight), spread, self.full_weight()), shift

    def squared_norm(self, weight: Tensor | None, bias: Tensor | None, perturbation: Perturbation) -> Tensor:
        """Return the squared norm of the effective weight and bias of each group (``G``), without building them.

        Args:
            weight: The general weight, ``None`` if it does not count.
            bias: The general bias, ``None`` if it does not count or there is none.
            perturbation: With ``G`` groups.
        """
        of_weight, of_bias = self.scales(perturbation)
        total = of_weight.new_zeros(len(of_weight))
        if weight is not None:
            rows = self.layout.rows(weight)
            if self.weight is not None:
                response = self.layout.rows(self.weight)
                cross, own = (rows * response).sum(2), response.square().sum(2)
            else:
                up, down = self._factors()
                cross = ((rows @ down.mT) * up).sum(2)
                own = ((up @ (down @ down.mT)) * up).sum(2)
            total = total + self._square(rows, cross.flatten(), own.flatten(), of_weight)
        if bias is not None and of_bias is not None and self.bias is not None:
            cross, own = (bias * self.bias).flatten(), self.bias.square().flatten()
            total = total + self._square(bias, cross, own, of_bias)
        return total

    def _square(self, general: Tensor, cross: Tensor, own: Tensor, scales: Tensor) -> Tensor:
        square = general.square().sum()
        if self.scalar is not None:
            square, cross = self.scalar.square() * square, self.scalar * cross
        return square + 2 * (scales @ cross) + scales.square() @ own

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return the factors as ``groups x units x rank`` and ``groups x rank x rest``."""
        assert self.up is not None
        assert self.down is not None
        return self.up.reshape(self.layout.groups, -1, self.up.shape[1]), self.layout.rows(self.down)

    def extra_repr(self) -> str:
        rank = "" if self.up is None else f", rank={self.up.shape[1]}"
        return f"{self.n_units} units, {self.form}{rank}"
