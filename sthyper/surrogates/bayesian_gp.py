"""The Gaussian process whose parameters are sampled from their posterior."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.slice_sampling import SliceException, SliceSampler

__all__ = ["BayesianGaussianProcess"]

logger = logging.getLogger(__name__)

_BURN_FROM_START = 60
_BURN_FROM_SAMPLES = 15
_SCALE = 1.0


class BayesianGaussianProcess(GaussianProcess):
    """A Gaussian process averaged over samples of its parameters, by slice sampling.

    As many chains run side by side as samples are wanted; their states are the samples. They start around the MAP
    estimate, at later fits where they ended. If sampling fails the MAP estimate stands in for the samples.

    Args:
        structure: What the columns of the inputs are; d plain numbers if an int.
        options: How it is made and fitted; not with ``target_transform="boxcox"``.
        seed: Seed of all draws.
        num_samples: Number of samples, at least 1.

    Raises:
        ValueError: If ``num_samples`` is less than 1, or the Box-Cox transform is wanted.

    References:
        Murray and Adams, "Slice Sampling Covariance Hyperparameters of Latent Gaussian Models", NeurIPS 2010
    """

    def __init__(
        self, structure: InputStructure | int, options: GPOptions | None = None, seed: int = 0, num_samples: int = 10
    ) -> None:
        super().__init__(structure, options, seed)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples!r}")
        if "boxcox" in self.layout.slices:
            raise ValueError("boxcox_transform is fitted by MAP; mcmc_samples must be 0 with it")
        self.num_samples = num_samples
        self._samples: Tensor | None = None  # (num_samples, p)

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> GPModel:
        """Return the processes of all samples, a batch of them; see :meth:`Surrogate.build`."""
        if refit or self._samples is None:
            self._fit_parameters(X, Z)
            self._sample(X, Z)
        assert self._samples is not None
        values = {name: value.to(X) for name, value in self.layout.unpack(self._samples).items()}
        return GPModel(X, Z.expand(len(self._samples), -1), self.form, values, self._inverse)

    def log_density(self, theta: Tensor, X: Tensor, Z: Tensor) -> Tensor:
        """Return log posterior densities over the optimised form of the parameters, up to a constant.

        Args:
            theta: Parameters, shape (c, p); -inf is returned for those outside the bounds.
            X: Inputs, shape (n, d).
            Z: Transformed targets, shape (n,).

        Returns:
            Shape (c,).
        """
        inside = ((theta >= self.layout.lower) & (theta <= self.layout.upper)).all(-1)
        result = theta.new_full((len(theta),), -math.inf)
        if not bool(inside.any()):
            return result
        theta = theta[inside]
        values = self.layout.unpack(theta)
        scaled = self.form.scaled(X, values, self._inverse)
        K = values["outputscale"].unsqueeze(-1) * self.form.correlation(scaled, scaled)
        diagonal = values["outputscale"] + values["noise"] + 1e-9
        K.diagonal(dim1=-2, dim2=-1).copy_(diagonal.expand(K.shape[:-1]))
        L, info = torch.linalg.cholesky_ex(K)
        residual = (Z - values["mean"]).unsqueeze(-1)
        white = torch.linalg.solve_triangular(L, residual, upper=False).squeeze(-1)
        log_likelihood = -0.5 * white.square().sum(-1) - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = log_likelihood - self.layout.negative_log_prior(values) + self.layout.log_jacobian(theta)
        result[inside] = torch.where(info == 0, density, -math.inf).nan_to_num(nan=-math.inf)
        return result

    def _sample(self, X: Tensor, Z: Tensor) -> None:
        assert self._theta is not None
        X, Z = X.detach().cpu(), Z.detach().cpu()
        limit = self.options.max_fit_points
        if limit is not None and len(Z) > limit:
            kept = self._subset(Z, limit)
            X, Z = X[kept], Z[kept]
        start, burn = self._samples, _BURN_FROM_SAMPLES
        with torch.no_grad():
            if start is None or not bool(torch.isfinite(self.log_density(start, X, Z)).all()):
                burn = _BURN_FROM_START
                noise = torch.randn(self.num_samples, self.layout.size, generator=self._generator, dtype=torch.float64)
                start = self._theta + 0.1 * noise * self.layout.spread
                start = torch.minimum(torch.maximum(start, self.layout.lower), self.layout.upper)
            # In units of their spreads, so that directions are as likely to move one parameter as another.
            unit = self.layout.spread.clamp_min(1e-9)
            sampler = SliceSampler(lambda z: self.log_density(z * unit, X, Z), scale=_SCALE)
            try:
                self._samples = sampler.sample(start / unit, burn + 1, burn, 1, self._generator)[-1] * unit
            except SliceException as error:
                logger.warning("parameters could not be sampled, their MAP estimate is used: %s", error)
                self._samples = self._theta.expand(self.num_samples, -1).clone()

    def parameters(self) -> dict[str, float]:
        """Return the means of the sampled parameters."""
        samples = self._samples
        if samples is None:
            return {}
        rows = [self._by_name(sample) for sample in samples]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def state_dict(self) -> dict[str, Any]:
        """Return samples and what the MAP estimate starts from."""
        return super().state_dict() | {"samples": None if self._samples is None else self._samples.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._samples = None if state["samples"] is None else state["samples"].clone()
