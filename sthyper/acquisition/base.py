"""Acquisition functions of posterior mean and deviation at one point, averaged over fantasies."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

__all__ = ["MeanStdAcquisition", "log_expected_improvement", "log_normal_cdf"]

_LEAST_STD = 1e-10
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)


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

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Return the acquisition function at points.

        Args:
            X: Shape ``batch x 1 x d``.

        Returns:
            Shape ``batch``.
        """
        posterior = self.model.posterior(X)
        mean = posterior.mean.squeeze(-1).squeeze(-1)
        std = posterior.variance.squeeze(-1).squeeze(-1).clamp_min(_LEAST_STD**2).sqrt()
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
    """Return log(phi(u) + u Phi(u)) of standardised improvements, accurate for very negative ones too.

    References:
        Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023
    """
    # phi(u) (1 - |u| m(u)) with the ratio of Mills m(u) = sqrt(pi / 2) erfcx(|u| / sqrt 2); far out its expansion
    # 1 / u^2 - 3 / u^4 + 15 / u^6 stands for the bracket, which loses all its digits.
    usual = u.clamp_min(-1.0)
    phi = torch.exp(-0.5 * usual * usual - _LOG_SQRT_2PI)
    centre = (phi + usual * torch.special.ndtr(usual)).log()
    t = -u.clamp(-1e3, -1.0)
    mills = _SQRT_HALF_PI * torch.special.erfcx(t / math.sqrt(2.0))
    bracket = 1.0 - t * mills
    v = (-u).clamp_min(1e2)
    inverse = 1.0 / (v * v)
    far = (inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))).log()
    near = bracket.clamp_min(1e-300).log()
    tail = torch.where(u < -1e2, far, near) - 0.5 * u * u - _LOG_SQRT_2PI
    return torch.where(u > -1.0, centre, tail)


def log_normal_cdf(u: Tensor) -> Tensor:
    """Return log Phi(u)."""
    return torch.special.log_ndtr(u)
