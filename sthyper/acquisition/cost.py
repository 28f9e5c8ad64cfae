"""Expected improvement per unit of cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.utils.safe_math import logmeanexp
from botorch.utils.transforms import is_ensemble, t_batch_mode_transform
from torch import Tensor

from sthyper.acquisition.base import log_expected_improvement

__all__ = ["ExpectedImprovementPerCost"]

_SIGMA_FLOOR = 1e-10


class ExpectedImprovementPerCost(AcquisitionFunction):
    """EI(x) / cost(x)^``exponent`` or its logarithm; higher is better, the target is minimised.

    EI(x) = s (u Phi(u) + phi(u)) with u = (``best_f`` - ``jitter`` - m) / s, where m and s are mean and standard
    deviation of the target. The logarithm is computed without going through EI, which underflows far from the
    optimum.

    The value is the average over the leading batch dimensions that a posterior may have (fantasies of pending trials,
    samples of parameters): entries of both models belong together if there are as many of them, otherwise all
    combinations count. A model that is an ensemble in BoTorch's sense is averaged over its members, too.

    Args:
        model: Model of the target, with one output.
        cost_model: Model of the cost, with one output; only its posterior mean is used.
        best_f: The value to improve on, in units of ``model``; a number, or one for each fantasy, shape
            (num_fantasies,).
        exponent: In (0, 1]. Small ones make differences in cost count less.
        jitter: By how much to improve at least, not negative, in units of ``model``.
        log: Whether the value is the logarithm.
        log_cost: Whether ``cost_model`` predicts the logarithm of the cost. The cost is then the exponential of the
            mean, the median of its distribution.
        cost_inverse: Maps posterior means of ``cost_model`` to costs (with ``log_cost`` to their logarithms), if it
            models transformed ones: ``surrogate.transform.inverse``.
        min_cost: Lower bound of predicted costs, positive. Where a cost is negative a warning is given, once. As
            small costs attract the search, a part of the least cost observed is better than the default where a model
            may predict too small ones.

    Raises:
        TypeError: If a model is no BoTorch model.
        ValueError: If a model has several outputs, or a number is out of its range.

    References:
        Snoek, Larochelle and Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012;
        Lee, Perrone, Archambeau and Seeger, "Cost-aware Bayesian Optimization", 2020 (exponents below 1)
    """

    best_f: Tensor

    def __init__(
        self,
        model: Model,
        cost_model: Model,
        best_f: float | Tensor,
        exponent: float = 1.0,
        jitter: float = 0.0,
        log: bool = True,
        log_cost: bool = False,
        cost_inverse: Callable[[Tensor], Tensor] | None = None,
        min_cost: float = 1e-12,
    ) -> None:
        for name, value in (("model", model), ("cost_model", cost_model)):
            if not isinstance(value, Model):
                raise TypeError(f"{name} must be a BoTorch model, got {value!r}")
            if value.num_outputs != 1:
                raise ValueError(f"{name} must have one output, it has {value.num_outputs}")
        if not 0 < exponent <= 1:
            raise ValueError(f"exponent must be in (0, 1], got {exponent!r}")
        if not 0 <= jitter < math.inf:
            raise ValueError(f"jitter must be finite and not negative, got {jitter!r}")
        if not 0 < min_cost < math.inf:
            raise ValueError(f"min_cost must be positive and finite, got {min_cost!r}")
        best = torch.as_tensor(best_f, dtype=torch.float64)
        if best.ndim > 1 or not bool(best.isfinite().all()):
            raise ValueError(f"best_f must be a finite number or have the shape (num_fantasies,), got {best_f!r}")
        super().__init__(model)
        self.cost_model = cost_model
        self.exponent = float(exponent)
        self.jitter = float(jitter)
        self.log_cost = bool(log_cost)
        self.cost_inverse = cost_inverse
        self.min_cost = float(min_cost)
        self._log = bool(log)  # BoTorch's name: its optimisers and wrappers ask for it
        self._warned = False
        self.register_buffer("best_f", best)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]
    def forward(self, X: Tensor) -> Tensor:
        """Return the values of points.

        Args:
            X: Shape (batch, 1, d).

        Returns:
            Shape (batch,).
        """
        batch_dims = X.dim() - 2
        gain = self._log_improvement(X, batch_dims)
        rate = -self.exponent * self._log_predicted_cost(X)
        if gain.dim() > batch_dims and rate.dim() > batch_dims and len(gain) != len(rate):
            gain, rate = _log_average(gain, batch_dims), _log_average(rate, batch_dims)
        value = _log_average(gain + rate, batch_dims)
        return value if self._log else value.exp()

    def _log_improvement(self, X: Tensor, batch_dims: int) -> Tensor:
        """Return log EI, shape (b, batch) or (batch,)."""
        posterior: Any = self.model.posterior(X)
        mean = posterior.mean[..., 0, 0]
        sigma = posterior.variance[..., 0, 0].clamp_min(_SIGMA_FLOOR**2).sqrt()
        ensemble = is_ensemble(self.model)
        best = self.best_f.to(mean)
        if best.dim():
            best = best.reshape(-1, *[1] * (batch_dims + int(ensemble)))
        value = log_expected_improvement((best - self.jitter - mean) / sigma) + sigma.log()
        return logmeanexp(value, dim=-1) if ensemble else value

    def _log_predicted_cost(self, X: Tensor) -> Tensor:
        """Return the logarithm of the cost, shape (b, batch) or (batch,)."""
        posterior: Any = self.cost_model.posterior(X)
        mean: Tensor = posterior.mean[..., 0, 0]
        if self.cost_inverse is not None:
            mean = self.cost_inverse(mean)
        if self.log_cost:
            log_cost = mean.clamp_min(math.log(self.min_cost))
        else:
            if not self._warned and bool((mean < 0).any()):
                self._warned = True
                warnings.warn(
                    f"the cost model predicts negative costs for some points; they are set to {self.min_cost:g}",
                    stacklevel=2,
                )
            log_cost = mean.clamp_min(self.min_cost).log()
        if not is_ensemble(self.cost_model):
            return log_cost
        # The mean of cost^-exponent, as a cost.
        return -logmeanexp(-self.exponent * log_cost, dim=-1) / self.exponent


def _log_average(values: Tensor, batch_dims: int) -> Tensor:
    """Return the logarithm of the mean of exponentials over all but the last dimensions."""
    leading = values.dim() - batch_dims
    return logmeanexp(values.flatten(0, leading - 1), dim=0) if leading else values
