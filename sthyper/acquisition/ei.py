"""Expected and log expected improvement, and the probability of improvement."""

from __future__ import annotations

import torch
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.base import (
    MeanStdAcquisition,
    log_expected_improvement,
    log_expected_improvement_of,
    log_normal_cdf,
    per_batch,
)

__all__ = ["ExpectedImprovement", "LogExpectedImprovement", "ProbabilityOfImprovement"]


class _Improvement(MeanStdAcquisition):
    def __init__(self, model: Model, best_f: Tensor | float, jitter: float = 0.0) -> None:
        super().__init__(model)
        self.register_buffer("best_f", torch.as_tensor(best_f, dtype=torch.float64))
        self.jitter = float(jitter)

    def _standardised(self, mean: Tensor, std: Tensor) -> Tensor:
        assert isinstance(self.best_f, Tensor)
        return (per_batch(self.best_f.to(mean), mean) - mean - self.jitter) / std


class LogExpectedImprovement(_Improvement):
    """The logarithm of the expected improvement: the same maximum, with gradients that do not vanish.

    Args:
        model: Model of targets of which low ones are good.
        best_f: Target to improve on, 0-d, or one a fantasy: shape (b,).
        jitter: Improvement, in the model's units, that is needed at least.

    References:
        Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023
    """

    averages_logs = True

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return log EI."""
        assert isinstance(self.best_f, Tensor)
        best = per_batch(self.best_f.to(mean), mean) - self.jitter
        return log_expected_improvement_of(best, mean, std)


class ExpectedImprovement(_Improvement):
    """The expected improvement on a target.

    Args:
        model: Model of targets of which low ones are good.
        best_f: Target to improve on, 0-d, or one a fantasy: shape (b,).
        jitter: Improvement, in the model's units, that is needed at least.

    References:
        Jones et al., "Efficient Global Optimization of Expensive Black-Box Functions", J. of Global Optimization 1998
    """

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return EI."""
        return log_expected_improvement(self._standardised(mean, std)).exp() * std


class ProbabilityOfImprovement(_Improvement):
    """The probability that a point improves on a target.

    Args:
        model: Model of targets of which low ones are good.
        best_f: Target to improve on, 0-d, or one a fantasy: shape (b,).
        jitter: Improvement, in the model's units, that is needed at least.
        log: Whether its logarithm is returned.

    References:
        Kushner, "A New Method of Locating the Maximum Point of an Arbitrary Multipeak Curve", 1964
    """

    def __init__(self, model: Model, best_f: Tensor | float, jitter: float = 0.0, log: bool = False) -> None:
        super().__init__(model, best_f, jitter)
        self.averages_logs = log

    def head(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the probability of improvement, or its logarithm."""
        u = self._standardised(mean, std)
        return log_normal_cdf(u) if self.averages_logs else torch.special.ndtr(u)
