"""What all best-response layers share: which pass this is, where the examples are, and the product of one weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from sthyper.selftuning._response import Response, Site
from sthyper.selftuning.perturbation import Perturbation

if TYPE_CHECKING:
    from sthyper.selftuning._state import SelfTuning

__all__ = ["LINK", "BestResponse", "Examples", "Link", "Product", "direction", "dual", "prepare", "scaled", "unpack"]

LINK = "_selftuning"

# With at least so many rows in each group, a linear layer uses effective weights: they cost less than a second product.
# (Measured from 64 to 1024 units: fused at 16 rows, level at 64 to 128, a third to a half cheaper at 256.)
_MATERIALISE_FROM = 128

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)

Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass
class Link:
    """Ties a layer to its responses; it is kept outside of the layer's registered modules.

    Args:
        name: Path of the layer in the model.
        owner: What ``model.selftuning`` is.
        responses: A :class:`Response`, or a module with one for each site of the layer; ``None`` without.
        batch_dim: Axis of the examples.
    """

    name: str
    owner: SelfTuning
    responses: nn.Module | None
    batch_dim: int = 0


class BestResponse:
    """Mixed into the class of a layer that responds to hyperparameters.

    The layer keeps its parameters. Nothing of the response is computed where the layer is the plain one.

    It is no ABC although it has an abstract method: the class of a living layer is exchanged for a subclass, which
    needs the same layout of objects.

    Attributes:
        plain_class: The class that the layer had.
    """

    plain_class: ClassVar[type[nn.Module]]

    @classmethod
    @abstractmethod
    def sites(cls, layer: Any) -> list[Site]:
        """Return the weights of a layer that can respond; none if it has no parameters."""

    @property
    def link(self) -> Link:
        """What ties the layer to its responses."""
        link: Link = self.__dict__[LINK]
        return link

    def response(self, site: str = "") -> Response:
        """Return the response of one site of this layer."""
        responses = self.link.responses
        result = getattr(responses, site) if site else responses
        assert isinstance(result, Response)
        return result

    def perturbation(self) -> Perturbation | None:
        """Return the perturbation that the layer responds to now; ``None`` where it is the plain layer."""
        link = self.link
        current = link.owner.hyperparameters.current
        if current is None or link.responses is None:
            return None
        if link.owner.kind == "stn":
            if current.linearised:
                raise ValueError("a model of kind 'stn' is not linearised; use kind='delta'")
            return current
        return None if current.kind == "centred" and not current.tracks else current


@dataclass(frozen=True)
class Examples:
    """Where the examples are in what a layer gets.

    Args:
        name: Path of the layer, for messages.
        axis: Axis of the examples.
        size: Length of that axis.
        inner: Whether other axes were flattened into it before the examples, which vary fastest then.
    """

    name: str
    axis: int
    size: int
    inner: bool = False

    @classmethod
    def of(cls, x: Tensor, link: Link, features: int, perturbation: Perturbation) -> Examples:
        """Find the examples in an input.

        Args:
            x: The input.
            link: Of the layer.
            features: Number of its last axes that are no batch axes.
            perturbation: What the layer responds to.

        Raises:
            ValueError: If the sizes do not fit.
        """
        leading = x.dim() - features
        axis, inner = link.batch_dim, False
        if leading == 1 and axis > 0:
            axis, inner = 0, True
        if perturbation.n_groups == 1:
            return cls(link.name, min(axis, max(leading - 1, 0)), 1)
        if axis >= leading:
            raise ValueError(
                f"layer {link.name!r}: an input of shape {tuple(x.shape)} has no axis {link.batch_dim} for the "
                "examples; see batch_dim of self_tune, or exclude the layer"
            )
        return cls(link.name, axis, x.shape[axis], inner)

    def repeats(self, perturbation: Perturbation) -> int:
        """Return how many rows each example has on its axis.

        Raises:
            ValueError: If the size of the axis is no multiple of the batch size.
        """
        batch = perturbation.batch_size
        if batch is None or self.size % batch:
            raise ValueError(
                f"layer {self.name!r}: axis {self.axis} of its input has {self.size} entries, which is no multiple of "
                f"the {batch} examples that were perturbed; see batch_dim of self_tune, or exclude the layer"
            )
        return self.size // batch

    def expand(self, values: Tensor, perturbation: Perturbation) -> Tensor:
        """Return ``size x ...`` from ``G x ...``; one row if there is one group."""
        if perturbation.n_groups == 1:
            return values
        repeats = self.repeats(perturbation)
        values = perturbation.expand(values)
        if repeats == 1:
            return values
        if self.inner:
            return values.repeat(repeats, *[1] * (values.dim() - 1))
        return values.repeat_interleave(repeats, dim=0, output_size=self.size)

    def chunks(self, perturbation: Perturbation) -> list[int] | None:
        """Return the sizes of the groups as contiguous chunks of the axis; ``None`` if they are none."""
        repeats = self.repeats(perturbation)
        if self.inner and repeats > 1:
            return None
        return [n * repeats for n in perturbation.sizes()]


def scaled(values: Tensor, examples: Examples, channel: int, like: Tensor) -> Tensor:
    """Return values (``examples x D``) so that they multiply ``like``.

    Args:
        values: One row for each example, or one row for all.
        examples: Where the examples are.
        channel: Axis of the ``D`` units, counted from the end.
        like: A tensor with these axes.
    """
    shape = [1] * like.dim()
    shape[channel] = values.shape[1]
    if values.shape[0] > 1:
        shape[examples.axis] = values.shape[0]
    return values.to(like.dtype).reshape(shape)


def unpack(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the primal and the tangent of a tensor."""
    primal, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return primal, tangent


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """Return the tensor with this primal and tangent."""
    return cast(Tensor, forward_ad.make_dual(primal, tangent))  # type: ignore[no-untyped-call]


def direction(perturbation: Perturbation) -> Perturbation:
    """Return a linearised perturbation with the tangent of ``delta`` in its place.

    Raises:
        RuntimeError: If no forward-mode derivative runs through it.
    """
    tangent = unpack(perturbation.delta)[1]
    if tangent is None:
        raise RuntimeError("a linearised perturbation needs a forward-mode derivative along delta")
    return replace(perturbation, delta=tangent)


def prepare(
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    response: Response,
    perturbation: Perturbation,
    examples: Examples,
    channel: int = -1,
    rows: int = 0,
) -> Callable[[Tensor], Tensor]:
    """Return the function from inputs to outputs of one product that responds to hyperparameters.

    What does not depend on the input is computed once, for recurrent layers.

    Args:
        product: ``(x, weight, bias) -> y``, for weights with any number of output units.
        weight: General weight.
        bias: General bias.
        response: How they respond.
        perturbation: To what.
        examples: Where the examples are in inputs and outputs.
        channel: Axis of the output units in ``y``, counted from the end.
        rows: Number of input rows of a linear layer.
    """
    if perturbation.linearised:
        return _linearised(product, weight, bias, response, perturbation, examples, channel)
    linear = weight.dim() == 2
    if perturbation.n_groups == 1:
        if linear and response.form == "lowrank":
            return _fused(product, weight, bias, response, perturbation, examples, channel)
        weights, biases = response.effective(weight, bias, perturbation)
        one_weight, one_bias = weights[0], None if biases is None else biases[0]
        return lambda x: product(x, one_weight, one_bias)
    worth = not linear or (response.form == "full" and rows >= _MATERIALISE_FROM * perturbation.n_groups)
    if worth and perturbation.n_groups != perturbation.batch_size:
        sizes = examples.chunks(perturbation)
        if sizes is not None:
            return _by_group(product, weight, bias, response, perturbation, examples.axis, sizes)
    return _fused(product, weight, bias, response, perturbation, examples, channel)


def _by_group(
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    response: Response,
    perturbation: Perturbation,
    axis: int,
    sizes: list[int],
) -> Callable[[Tensor], Tensor]:
    """Effective weights for each group, on its chunk of the batch: the products cost what the plain one does."""
    of_weight, of_bias = response.scales(perturbation)
    shift = response.shift(bias, of_bias)
    each_bias: tuple[Tensor | None, ...] = (None,) * len(sizes) if shift is None else shift.unbind(0)
    general, answer = response.general(weight), response.full_weight()
    # One after the other, while they are in the cache.
    each_weight = [torch.addcmul(general, s, answer) for s in response.layout.spread(of_weight, weight.shape).unbind(0)]

    def apply(x: Tensor) -> Tensor:
        parts = zip(torch.split(x, sizes, axis), each_weight, each_bias, strict=True)
        return torch.cat([product(part, w, b) for part, w, b in parts], axis)

    return apply


def _fused(
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    response: Response,
    perturbation: Perturbation,
    examples: Examples,
    channel: int,
) -> Callable[[Tensor], Tensor]:
    """Products with general weight and response, whose units are then scaled for each example.

    Convolutions are stacked to one, which unfolds the input once; for linear layers that only copies weights.
    """
    scales, shifts = _expanded(bias, response, perturbation, examples)
    factor = response.weight if response.down is None else response.down
    assert factor is not None
    linear = weight.dim() == 2
    if not linear:
        # Fewer weights than outputs, so that the scalar belongs here.
        weight = response.general(weight)
    groups = response.layout.groups
    units = response.n_units // groups
    stacked = None if linear else _stack(weight, factor, response)

    def apply(x: Tensor) -> Tensor:
        if stacked is None:
            general, answer = product(x, weight, None), product(x, factor, None)
        else:
            both = product(x, stacked, None)
            at = both.dim() + channel
            both = torch.unflatten(both, at, (groups, -1)) if groups > 1 else both
            at += groups > 1
            general = both.narrow(at, 0, units)
            answer = both.narrow(at, units, both.shape[at] - units)
            if groups > 1:
                general, answer = general.flatten(at - 1, at), answer.flatten(at - 1, at)
        if linear:
            general = response.general(general)
        answer = _widen(answer, response, linear)
        result = torch.addcmul(general, scaled(scales, examples, channel, answer), answer)
        return result if shifts is None else result.add_(scaled(shifts, examples, channel, result))

    return apply


def _linearised(
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    response: Response,
    perturbation: Perturbation,
    examples: Examples,
    channel: int,
) -> Callable[[Tensor], Tensor]:
    """For a forward-mode derivative at ``delta = 0``: value and tangent apart, by their own rule.

    The value is that of the plain layer and a constant; the tangent is linear in the responses.
    """
    weight = weight.detach()
    bias = None if bias is None else bias.detach()
    of_weight, of_bias = response.scales(direction(perturbation))
    scales = examples.expand(of_weight, perturbation)
    shifts = None
    if of_bias is not None and response.bias is not None:
        shifts = examples.expand(of_bias * response.bias, perturbation)
    factor = response.weight if response.down is None else response.down
    assert factor is not None

    def apply(x: Tensor) -> Tensor:
        primal, tangent = unpack(x)
        primal = primal.detach()
        value = product(primal, weight, bias)
        answer = _widen(product(primal, factor, None), response, weight.dim() == 2)
        change = scaled(scales, examples, channel, answer) * answer
        if shifts is not None:
            change = change + scaled(shifts, examples, channel, change)
        if tangent is not None:
            change = change + product(tangent, weight, None)
        return dual(value, change)

    return apply


def _expanded(
    bias: Tensor | None, response: Response, perturbation: Perturbation, examples: Examples
) -> tuple[Tensor, Tensor | None]:
    """Return scales and effective biases, one row for each example (or one for all)."""
    of_weight, of_bias = response.scales(perturbation)
    shifts = response.shift(bias, of_bias)
    expanded = None if shifts is None else examples.expand(shifts, perturbation)
    return examples.expand(of_weight, perturbation), expanded


def _stack(weight: Tensor, factor: Tensor, response: Response) -> Tensor:
    """Return the weight with the units of both, interleaved by the groups of a convolution."""
    groups = response.layout.groups
    if response.layout.units == "transposed":
        return torch.cat([weight, factor], dim=1)
    if groups == 1:
        return torch.cat([weight, factor], dim=0)
    both = [torch.unflatten(w, 0, (groups, -1)) for w in (weight, factor)]
    return torch.cat(both, dim=1).flatten(0, 1)


def _widen(answer: Tensor, response: Response, linear: bool) -> Tensor:
    """Return the product with the second factor of a response of low rank."""
    if response.up is None:
        return answer
    if linear:
        return F.linear(answer, response.up)
    spatial = len(response.shape) - 2
    up = response.up.reshape(*response.up.shape, *[1] * spatial)
    return _CONVOLUTIONS[spatial - 1](answer, up, groups=response.layout.groups)
