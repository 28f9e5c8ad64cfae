"""Priors of model parameters, as negative log densities over the parameters themselves.

They are added to the negative log likelihood without a Jacobian, also where the logarithm of a parameter is optimised:
the maximum does not depend on how a parameter is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Gamma", "Horseshoe", "LogNormal", "Normal", "Prior", "Reciprocal", "Uniform"]

_FLOOR = 1e-12


class Prior(Protocol):
    """A prior of independent parameters."""

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``."""


@dataclass(frozen=True)
class Uniform:
    """The same density everywhere between two bounds, which are not checked.

    Args:
        lower: Lower bound.
        upper: Upper bound.
    """

    lower: float = 0.0
    upper: float = 1.0

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return log(upper - lower), shape of ``x``."""
        return x * 0.0 + math.log(self.upper - self.lower)


@dataclass(frozen=True)
class Normal:
    """The normal distribution.

    Args:
        mean: Its mean.
        sigma: Its standard deviation.
    """

    mean: float = 0.0
    sigma: float = 1.0

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``."""
        return 0.5 * ((x - self.mean) / self.sigma) ** 2 + math.log(self.sigma * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LogNormal:
    """The distribution of a parameter whose logarithm is normal.

    Args:
        mean: Mean of the logarithm.
        sigma: Standard deviation of the logarithm.
    """

    mean: float = 0.0
    sigma: float = 1.0

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``."""
        log_x = x.clamp_min(_FLOOR).log()
        return log_x + Normal(self.mean, self.sigma).negative_log_density(log_x)


@dataclass(frozen=True)
class Gamma:
    """The gamma distribution.

    Args:
        mean: Its mean.
        alpha: Its shape.
    """

    mean: float = 1.0
    alpha: float = 1.0

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``."""
        rate = self.alpha / self.mean
        x = x.clamp_min(_FLOOR)
        return (1.0 - self.alpha) * x.log() + rate * x + math.lgamma(self.alpha) - self.alpha * math.log(rate)


@dataclass(frozen=True)
class Horseshoe:
    """Close to a horseshoe: a spike at zero and heavy tails.

    Args:
        scale: Its scale.
    """

    scale: float = 0.1

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter up to a constant, shape of ``x``."""
        return -(1.0 + 3.0 * (self.scale / x.clamp_min(_FLOOR)) ** 2).log().clamp_min(_FLOOR).log()


@dataclass(frozen=True)
class Reciprocal:
    """Keeps a positive parameter away from 0 and from very large values: a x^2 + b / x, up to a constant.

    Optuna's GP sampler has such a term for inverse squared lengthscales.

    Args:
        square: Weight a.
        inverse: Weight b.
    """

    square: float = 0.1
    inverse: float = 0.1

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the term of each parameter, shape of ``x``."""
        x = x.clamp_min(_FLOOR)
        return self.square * x * x + self.inverse / x
