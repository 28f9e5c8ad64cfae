"""Masks of several workers become one set of probabilities: the server's part of training by masks alone.

A round: workers train the scores of equal models, and send :func:`sample_masks` of them; a :class:`MaskAggregator`
turns these into probabilities; :func:`load_probabilities` puts them into all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sthyper.errors import closest
from sthyper.straight_through._mask_draws import draw
from sthyper.straight_through.masks import all_masks, check_name
from sthyper.straight_through.order import ordered_sum

__all__ = ["AggregationMethod", "MaskAggregator", "load_probabilities", "sample_masks", "sigmoid_inverse"]

AggregationMethod = Literal["mean", "bayesian"]


def sigmoid_inverse(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the scores whose sigmoid is ``x``: ``-log(1 / x - 1)``, finite at 0 and 1, too.

    Args:
        x: Probabilities of any shape, floating.
        eps: Probabilities count as at least ``eps`` and at most ``1 - eps``. With 0, those of 0 and 1 have infinite
            scores; what is above 0 counts as at least 2.2e-16.

    Returns:
        Scores of the shape and dtype of ``x``, computed in float32 at least, and in float64 where ``eps`` needs it;
        outside of ``eps`` to ``1 - eps`` no gradient passes.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If ``eps`` is not from 0 to below 0.5.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating tensor of probabilities, got {got}")
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps must be at least 0 and below 0.5, got {eps!r}")
    # 1 - eps must not be rounded to 1.
    dtype = torch.promote_types(x.dtype, torch.float32)
    if 0 < eps < torch.finfo(dtype).eps:
        dtype, eps = torch.float64, max(eps, torch.finfo(torch.float64).eps)
    return torch.logit(x.to(dtype), eps=eps).to(x.dtype)


def sample_masks(model: nn.Module, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return a sample of all masks of a model: what a worker sends.

    Args:
        model: A model with masks; nothing in it changes.
        generator: Of the device of the scores; default is torch's own.

    Returns:
        Bool tensors of the shapes and devices of the scores, by their names in ``model.state_dict()``.

    Raises:
        ValueError: If the model has no masks.
    """
    masks = all_masks(model).items()
    with torch.no_grad():
        return {f"{name}.scores": draw(mask.probabilities(), generator).bool() for name, mask in masks}


@torch.no_grad()
def load_probabilities(model: nn.Module, probabilities: Mapping[str, Tensor], eps: float = 1e-6) -> None:
    """Set the scores of a model to those of aggregated probabilities.

    Args:
        model: A model with masks.
        probabilities: From 0 to 1, floating, by names of scores; scores that are not named stay as they are.
        eps: See :func:`sigmoid_inverse`.

    Raises:
        TypeError: If a value is not a floating tensor.
        ValueError: If the model has no masks, a name or a shape is not one of its scores, or probabilities lie outside
            [0, 1]. The scores are then unchanged.
    """
    parameters = {f"{name}.scores": mask.scores for name, mask in all_masks(model).items()}
    new = {}
    for name, value in probabilities.items():
        if name not in parameters:
            raise ValueError(f"probabilities: the model has no scores {name!r}{closest(name, parameters)}")
        score = parameters[name]
        _check_values("probabilities", name, value)
        if value.shape != score.shape:
            raise ValueError(
                f"probabilities: {name} has shape {tuple(value.shape)}, its scores have {tuple(score.shape)}"
            )
        wide = value.to(device=score.device, dtype=torch.promote_types(value.dtype, score.dtype))
        new[name] = sigmoid_inverse(wide, eps)
    for name, scores in new.items():
        parameters[name].copy_(scores)


class MaskAggregator:
    """Turns the masks that workers sent in a round into probabilities.

    ``"mean"`` takes the share ``M / K`` of the ``K`` workers that sent a tensor whose mask is 1. ``"bayesian"`` keeps a
    beta distribution for each value, ``alpha += M`` and ``beta += K - M`` from 1 and 1, and takes its mode
    ``(alpha - 1) / (alpha + beta - 2)``, which remembers earlier rounds until the distributions are reset. Sums do not
    depend on the order of the workers, see :func:`~sthyper.straight_through.ordered_sum`.

    Source: B. Isik et al.: Sparse Random Networks for Communication-Efficient Federated Learning, 2023
    (arXiv 2209.15328), algorithms 1 and 2.

    Example:
        >>> aggregator = MaskAggregator("bayesian", reset_frequency=3)
        >>> aggregator.aggregate([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}])
        {'w': tensor([1.0000, 0.5000])}

    Args:
        method: ``"mean"`` or ``"bayesian"``.
        reset_frequency: After how many rounds distributions start from 1 and 1 again: before round ``r`` (counted from
            1) where ``r + 1`` is a multiple of it and ``r`` is above 1. ``None`` never resets. Without effect on the
            mean, which remembers nothing.

    Raises:
        ValueError: For an unknown method, or a frequency below 1.
        TypeError: For a frequency that is no whole number.
    """

    def __init__(self, method: AggregationMethod = "bayesian", reset_frequency: int | None = 1) -> None:
        check_name("method", method, get_args(AggregationMethod))
        if reset_frequency is not None:
            if isinstance(reset_frequency, bool) or not isinstance(reset_frequency, int):
                raise TypeError(f"reset_frequency must be a whole number or None, got {reset_frequency!r}")
            if reset_frequency < 1:
                raise ValueError(f"reset_frequency must be at least 1, got {reset_frequency!r}")
        self.method = method
        self.reset_frequency = reset_frequency
        self.round = 0
        """How many rounds are aggregated."""
        self.alpha: dict[str, Tensor] = {}
        """First parameters of the beta distributions, by tensor."""
        self.beta: dict[str, Tensor] = {}
        """Second parameters."""

    def aggregate(self, masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the probabilities after one more round.

        Args:
            masks: What each worker sent: masks (bool, or numbers from 0 to 1) by name. Workers may send some tensors
                only; the others' ``K`` counts.

        Returns:
            Probabilities of all tensors that were sent, in float32 at least, on the device of the first worker's.

        Raises:
            TypeError: If a mask is no tensor, or complex.
            ValueError: If no worker sent anything, shapes differ between workers or from earlier rounds, or values lie
                outside [0, 1]. The round does not count then.
        """
        if not isinstance(masks, Sequence):
            raise TypeError(f"masks must be a sequence, one mapping for each worker, got {type(masks).__name__}")
        sent = self._by_name(masks)
        r = self.round + 1
        if r > 1 and self.reset_frequency is not None and (r + 1) % self.reset_frequency == 0:
            self.reset()
        self.round = r
        return {name: self._aggregate(name, values) for name, values in sent.items()}

    def reset(self) -> None:
        """Let all distributions start from 1 and 1; rounds are counted on."""
        self.alpha.clear()
        self.beta.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state: ``round``, ``alpha`` and ``beta`` by tensor. Tensors are copies."""
        return {"round": self.round, "alpha": _cloned(self.alpha), "beta": _cloned(self.beta)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of an aggregator with the same arguments.

        Raises:
            ValueError: If the state is not one of an aggregator.
        """
        expected = {"round", "alpha", "beta"}
        if set(state) != expected:
            raise ValueError(f"state must hold {sorted(expected)}, got {sorted(map(str, state))}")
        if set(state["alpha"]) != set(state["beta"]):
            raise ValueError("state: alpha and beta must have the same tensors")
        self.round = int(state["round"])
        self.alpha, self.beta = _cloned(state["alpha"]), _cloned(state["beta"])

    def _by_name(self, masks: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Return the floating masks of all workers by name, on one device and of one dtype."""
        sent: dict[str, list[Tensor]] = {}
        for worker in masks:
            for name, value in worker.items():
                _check_values("masks", name, value, bools=True)
                sent.setdefault(name, []).append(value.detach())
        if not sent:
            raise ValueError(f"masks must hold at least one tensor of one worker; there are {len(masks)} workers")
        for name, values in sent.items():
            shapes = {tuple(value.shape) for value in values}
            if self.method == "bayesian" and name in self.alpha:
                shapes.add(tuple(self.alpha[name].shape))
            if len(shapes) > 1:
                raise ValueError(f"masks: {name} comes in different shapes: {sorted(shapes)}")
            dtype = torch.float32
            for value in values:
                dtype = torch.promote_types(dtype, value.dtype)
            sent[name] = [value.to(values[0].device, dtype) for value in values]
        return sent

    def _aggregate(self, name: str, values: list[Tensor]) -> Tensor:
        total = ordered_sum(values)
        if self.method == "mean":
            return total / len(values)
        alpha = self.alpha.get(name, torch.ones_like(total)).to(total.device) + total
        beta = self.beta.get(name, torch.ones_like(total)).to(total.device) + (len(values) - total)
        self.alpha[name], self.beta[name] = alpha, beta
        # Probabilities that were summed may exceed 1 by a rounding.
        return ((alpha - 1) / (alpha + beta - 2)).clamp(0, 1)


def _check_values(argument: str, name: str, value: Any, bools: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: {name} must be a tensor, got {type(value).__name__}")
    if value.is_complex() or not (bools or value.is_floating_point()):
        raise TypeError(f"{argument}: {name} must be {'real' if bools else 'floating point'}, got {value.dtype}")
    if not bool(((value >= 0) & (value <= 1)).all()):  # NaN neither
        raise ValueError(f"{argument}: values of {name} must be from 0 to 1, and some are not")


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
