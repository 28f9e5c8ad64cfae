"""Acquisition functions of posterior mean and deviation at one point, averaged over fantasies."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from sthyper.surrogates.marginals import marginals

__all__ = [
    "MeanStdAcquisition",
    "log_expected_improvement",
    "log_expected_improvement_of",
    "log_normal_cdf",
    "per_batch",
]

_LEAST_STD = 1e-10
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_FAR = 100.0
_LARGEST = 1e150
"""The square of a standardised improvement is to be finite."""


class MeanStdAcquisition(AcquisitionFunction):
    """Base of acquisition functions of mean and standard deviation. High values are good, low targets too.

    A subclass implements :meth:`head`. Where the model's posterior has a leading batch (fantasies of pending trials,
    samples of parameters) the values are averaged over it.

    Args:
        model: Model of targets of which low ones are good.
    """

    averages_logs = False
    """Whether values are logarithms: the mean is then taken of what they are the logarithms of."""

    def __init__(self, model: Model) -> None:
        super().__init__(model=model)

    @abstractmethod
    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return values, shape ``b x batch``, of posterior means and deviations of this shape; b may be missing."""

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return the acquisition function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        mean, variance = marginals(self.model, X.squeeze(-2))
        std = variance.clamp_min(_LEAST_STD**2).sqrt()
        return self.average(self.head(mean, std), X.dim() - 2)

    def average(self, values: Tensor, batch_dims: int) -> Tensor:
        """Return the mean over all leading dimensions but the last ``batch_dims``."""
        extra = values.dim() - batch_dims
        if extra <= 0:
            return values
        values = values.flatten(0, extra - 1)
        if self.averages_logs:
            return values.logsumexp(0) - math.log(len(values))
        return values.mean(0)


def per_batch(value: Tensor, like: Tensor) -> Tensor:
    """Return a 0-d tensor as it is, and one of shape (b,) so that it broadcasts with ``b x batch``."""
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))


def log_expected_improvement(u: Tensor) -> Tensor:
    """Return log h(u), h(u) = phi(u) + u Phi(u), of standardised improvements.

    Value and derivative Phi(u) / h(u) are accurate for all u; there is no second derivative.

    References:
        Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023
    """
    return _LogExpectedImprovement.apply(u)  # type: ignore[no-untyped-call]


class _LogExpectedImprovement(torch.autograd.Function):
    """Autograd through the branches costs several times as much, and has 0 times infinity far out."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        value, slope = _log_improvement_and_slope(u.clamp(-_LARGEST, _LARGEST))
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad * slope


def log_expected_improvement_of(best: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log E[max(best - y, 0)], y ~ N(mean, std^2): what a search evaluates most, in one step for autograd.

    Args:
        best: Target to improve on, broadcast with the others; no gradient passes.
        mean: Means.
        std: Standard deviations, shape of ``mean``.
    """
    return _LogExpectedImprovementOf.apply(best, mean, std)  # type: ignore[no-untyped-call]


class _LogExpectedImprovementOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, best: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        u = ((best - mean) / std).clamp_(-_LARGEST, _LARGEST)
        value, slope = _log_improvement_and_slope(u)
        ctx.save_for_backward(u, slope, std)
        return value + std.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, slope, std = ctx.saved_tensors
        each = grad / std
        return None, -each * slope, each * (1.0 - slope * u)


def _log_improvement_and_slope(u: Tensor) -> tuple[Tensor, Tensor]:
    usual = u.clamp_min(-1.0)
    cdf = torch.special.ndtr(usual)
    h = torch.exp(-0.5 * usual * usual - _LOG_SQRT_2PI) + usual * cdf
    value, slope = h.log(), cdf / h
    low = u < -1.0
    if not bool(low.any()):
        return value, slope
    # With t = -u and the ratio of Mills m = sqrt(pi / 2) erfcx(t / sqrt 2): h = phi (1 - t m) and Phi = phi m. From 100
    # on the bracket loses its digits; expansions of the bracket, 1 / t^2 - 3 / t^4 + 15 / t^6 - 105 / t^8, and of the
    # quotient, t + 2 / t - 6 / t^3 + 42 / t^5, take over.
    t = (-u).clamp(1.0, _FAR)
    mills = _SQRT_HALF_PI * torch.special.erfcx(t / math.sqrt(2.0))
    bracket = 1.0 - t * mills
    gauss = -0.5 * u * u - _LOG_SQRT_2PI
    value = torch.where(low, bracket.log() + gauss, value)
    slope = torch.where(low, mills / bracket, slope)
    far = u < -_FAR
    if bool(far.any()):
        v = -u.clamp_max(-1.0)
        inverse = 1.0 / (v * v)
        tail = torch.log1p(-3.0 * inverse * (1.0 - 5.0 * inverse * (1.0 - 7.0 * inverse))) - 2.0 * v.log()
        value = torch.where(far, tail + gauss, value)
        slope = torch.where(far, v + 2.0 * (1.0 - 3.0 * inverse * (1.0 - 7.0 * inverse)) / v, slope)
    return value, slope


def log_normal_cdf(u: Tensor) -> Tensor:
    """Return log Phi(u)."""
    return torch.special.log_ndtr(u)
