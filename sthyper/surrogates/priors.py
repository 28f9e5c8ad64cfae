"""Priors of model parameters, as negative log densities over the parameters themselves.

They are added to the negative log likelihood without a Jacobian, also where the logarithm of a parameter is optimised:
the maximum does not depend on how a parameter is written.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "Gamma",
    "Horseshoe",
    "LogNormal",
    "Normal",
    "Prior",
    "PriorOfTerms",
    "Reciprocal",
    "Terms",
    "Uniform",
    "sum_of_terms",
]

_FLOOR = 1e-12


class Prior(Protocol):
    """A prior of independent parameters."""

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``."""


@dataclass(frozen=True)
class Terms:
    """Coefficients of a negative log density. All of those named below have this form, so that a fit evaluates the
    priors of all parameters at once.

    Args:
        constant: Of 1.
        linear: Of x.
        square: Of x^2.
        inverse: Of 1 / x.
        log: Of log x.
        log_square: Of (log x)^2.
    """

    constant: float = 0.0
    linear: float = 0.0
    square: float = 0.0
    inverse: float = 0.0
    log: float = 0.0
    log_square: float = 0.0

    def row(self) -> tuple[float, ...]:
        """Return the coefficients in this order."""
        return astuple(self)


def sum_of_terms(x: Tensor, coefficients: Tensor) -> Tensor:
    """Return the terms' sum for each parameter, shape of ``x``.

    Args:
        x: Parameters, shape ``batch x p``; at least 1e-12 in 1 / x and log x.
        coefficients: Those of :meth:`Terms.row`, shape (6, p) or (6, 1).
    """
    return _SumOfTerms.apply(x, coefficients)  # type: ignore[no-untyped-call]


class _SumOfTerms(torch.autograd.Function):
    """One step for autograd in place of some ten for each kind of parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor) -> Tensor:
        constant, linear, square, inverse, log, log_square = coefficients
        inside = x.clamp_min(_FLOOR)
        reciprocal, logarithm = inside.reciprocal(), inside.log()
        if ctx.needs_input_grad[0]:
            inner = (log + 2.0 * log_square * logarithm - inverse * reciprocal) * reciprocal
            ctx.save_for_backward(linear + 2.0 * square * x + torch.where(x < _FLOOR, 0.0, inner))
        polynomial = constant + (linear + square * x) * x
        return polynomial + inverse * reciprocal + (log + log_square * logarithm) * logarithm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


class PriorOfTerms(ABC):
    """A prior whose negative log density is a sum of :class:`Terms`."""

    @abstractmethod
    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Return the negative log density of each parameter, shape of ``x``; up to a constant where it has none."""
        return sum_of_terms(x, torch.tensor(self.terms().row(), dtype=x.dtype, device=x.device).unsqueeze(-1))


@dataclass(frozen=True)
class Uniform(PriorOfTerms):
    """The same density everywhere between two bounds, which are not checked.

    Args:
        lower: Lower bound.
        upper: Upper bound.
    """

    lower: float = 0.0
    upper: float = 1.0

    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""
        return Terms(constant=math.log(self.upper - self.lower))


@dataclass(frozen=True)
class Normal(PriorOfTerms):
    """The normal distribution.

    Args:
        mean: Its mean.
        sigma: Its standard deviation.
    """

    mean: float = 0.0
    sigma: float = 1.0

    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""
        precision = self.sigma**-2
        constant = 0.5 * self.mean**2 * precision + math.log(self.sigma * math.sqrt(2 * math.pi))
        return Terms(constant, linear=-self.mean * precision, square=0.5 * precision)


@dataclass(frozen=True)
class LogNormal(PriorOfTerms):
    """The distribution of a parameter whose logarithm is normal.

    Args:
        mean: Mean of the logarithm.
        sigma: Standard deviation of the logarithm.
    """

    mean: float = 0.0
    sigma: float = 1.0

    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""
        normal = Normal(self.mean, self.sigma).terms()
        return Terms(normal.constant, log=1.0 + normal.linear, log_square=normal.square)


@dataclass(frozen=True)
class Gamma(PriorOfTerms):
    """The gamma distribution.

    Args:
        mean: Its mean.
        alpha: Its shape.
    """

    mean: float = 1.0
    alpha: float = 1.0

    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""
        rate = self.alpha / self.mean
        constant = math.lgamma(self.alpha) - self.alpha * math.log(rate)
        return Terms(constant, linear=rate, log=1.0 - self.alpha)


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
class Reciprocal(PriorOfTerms):
    """Keeps a positive parameter away from 0 and from very large values: a x^2 + b / x, up to a constant.

    Optuna's GP sampler has such a term for inverse squared lengthscales.

    Args:
        square: Weight a.
        inverse: Weight b.
    """

    square: float = 0.1
    inverse: float = 0.1

    def terms(self) -> Terms:
        """Return the coefficients of the negative log density."""
        return Terms(square=self.square, inverse=self.inverse)
