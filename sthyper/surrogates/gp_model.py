"""The fitted Gaussian process: an ``ExactGP`` with a posterior in plain, batched torch operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from botorch.models.gpytorch import GPyTorchModel
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal  # type: ignore[import-untyped]
from gpytorch.likelihoods import GaussianLikelihood  # type: ignore[import-untyped]
from gpytorch.means import ConstantMean  # type: ignore[import-untyped]
from gpytorch.models import ExactGP  # type: ignore[import-untyped]
from linear_operator import to_linear_operator  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.surrogates.kernels import KernelForm, RadialKernel
from sthyper.surrogates.likelihood import safe_cholesky

__all__ = ["GPModel"]

_LEAST_VARIANCE = 1e-12
_LEAST_OF_POSTERIOR = 1.001e-10
"""GPyTorch raises variances below 1e-10 with a warning."""


class GPModel(ExactGP, GPyTorchModel):  # type: ignore[misc]
    """A Gaussian process with given parameters, conditioned on data.

    GPyTorch knows it as any of its models; :meth:`posterior` does without its machinery: the Cholesky factor of the
    covariance matrix is computed once, when the model is made.

    There may be one leading batch dimension b: of parameters (samples of a full-Bayesian fit), of targets (fantasies
    of pending trials) or of both alike. The posterior at ``batch x q x d`` then has the shape ``b x batch x q``.

    Args:
        X: Inputs, float64, shape (n, d).
        Z: Targets, shape (n,) or (b, n).
        form: The kernel.
        values: Parameters by name, shapes (size,) or (b, size): those of ``form``, ``noise`` and ``mean``.
        inverse_lengthscales: Whether the lengthscales are given as their inverses.

    Raises:
        ValueError: If the covariance matrix cannot be factorised.
    """

    _num_outputs = 1

    def __init__(
        self,
        X: Tensor,
        Z: Tensor,
        form: KernelForm,
        values: Mapping[str, Tensor],
        inverse_lengthscales: bool = False,
    ) -> None:
        values = {name: value.detach() for name, value in values.items()}
        batch = values["noise"].shape[:-1]
        likelihood = GaussianLikelihood(batch_shape=batch)
        # The default constraint ends at 1e-4; ours are in the fit.
        likelihood.noise_covar.register_constraint("raw_noise", _at_least_zero())
        super().__init__(X.expand(*batch, *X.shape) if batch else X, Z, likelihood)
        self.mean_module = ConstantMean(batch_shape=batch)
        self.covar_module = RadialKernel(form, values, inverse_lengthscales)
        self.to(X)
        likelihood.noise = values["noise"]
        self.mean_module.constant = values["mean"].squeeze(-1)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()
        self._X, self._Z, self._form, self._values = X, Z, form, dict(values)
        self._inverse = inverse_lengthscales
        self._kernel_values = {k: v for k, v in values.items() if k not in ("noise", "mean")}
        self._scaled = form.scaled(X, self._kernel_values, inverse_lengthscales)
        s, noise = values["outputscale"].unsqueeze(-1), values["noise"]
        with torch.no_grad():
            if batch:
                K = form.correlation(self._scaled, self._scaled).mul_(s)
            else:
                K = form.lower_covariance(self._scaled, s)
            # The diagonal without the rounding errors of distances.
            K.diagonal(dim1=-2, dim2=-1).copy_((s.squeeze(-1) + noise).expand(K.shape[:-1]))
        self._L = safe_cholesky(K)  # (n, n) or (b, n, n)
        self._alpha = _solve(self._L, Z - values["mean"])

    # ---- description ---------------------------------------------------------------------------------

    @property
    def num_data(self) -> int:
        """Number n of observations, fantasies of pending trials included."""
        return self._X.shape[-2]

    @property
    def targets(self) -> Tensor:
        """Targets, shape (n,) or (b, n), fantasies at the end."""
        return self._Z

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the leading batch, empty or (b,)."""
        return self._alpha.shape[:-1]

    @property
    def noise(self) -> Tensor:
        """Variance of the noise, shape (1,) or (b, 1)."""
        return self._values["noise"]

    @property
    def inputs(self) -> Tensor:
        """Inputs, shape (n, d), those of fantasies at the end."""
        return self._X

    @property
    def values(self) -> dict[str, Tensor]:
        """Parameters by name, shapes (size,) or (b, size)."""
        return dict(self._values)

    @property
    def form(self) -> KernelForm:
        """The kernel without its parameters."""
        return self._form

    # ---- parts ---------------------------------------------------------------------------------------

    def member(self, index: int) -> GPModel:
        """Return the process of one entry of the leading batch; the process itself if there is none."""
        if not self.batch_shape:
            return self
        batched = self._values["noise"].dim() > 1
        values = {name: value[index] for name, value in self._values.items()} if batched else self._values
        Z = self._Z[index] if self._Z.dim() > 1 else self._Z
        return GPModel(self._X, Z, self._form, values, self._inverse)

    def with_data(self, X: Tensor, Z: Tensor, noise: Tensor | None = None) -> GPModel:
        """Return the process with the same parameters given other data.

        Args:
            X: Inputs, shape (m, d).
            Z: Targets, shape (m,) or (b, m).
            noise: Variance of their noise, of the shape of :attr:`noise`, which it is by default.
        """
        values = self._values if noise is None else self._values | {"noise": noise}
        return GPModel(X, Z, self._form, values, self._inverse)

    def scaled(self, X: Tensor) -> list[Tensor]:
        """Return warped and scaled points, one tensor ``batch x m x d_i`` for each factor of the kernel."""
        return self._form.scaled(X, self._kernel_values, self._inverse)

    def covariance_with_data(self, X: Tensor) -> Tensor:
        """Return prior covariances of points, shape (m, d), with the data, shape (m, n) or (b, m, n)."""
        return self._mean(X)[1]

    def solve(self, R: Tensor) -> Tensor:
        """Return K^-1 r with the covariance matrix of the data, noise included, for vectors of shape (n,)."""
        return _solve(self._L, R)

    # ---- GPyTorch ------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Return the prior at points."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    # ---- predictions ---------------------------------------------------------------------------------

    def predict(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return posterior means and variances of the function.

        Args:
            X: Points, shape (m, d).

        Returns:
            Two tensors of shape (m,) or (b, m).
        """
        if self._L.dim() == 2 and X.requires_grad and torch.is_grad_enabled():
            Z = self.scaled(X.to(self._X.dtype))
            s, constant = self._values["outputscale"], self._values["mean"]
            mean, variance = _Marginals.apply(  # type: ignore[no-untyped-call]
                self._form, self._scaled, s, constant, self._alpha, self._L, *Z
            )
            return mean, variance if variance.shape == mean.shape else variance.expand(mean.shape)
        mean, k = self._mean(X)
        V = torch.linalg.solve_triangular(self._L, k.mT, upper=False)
        variance = (self._values["outputscale"] - V.square().sum(-2)).clamp_min(_LEAST_VARIANCE)
        return mean, variance.expand(mean.shape)

    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Any:
        """Return the joint posterior of the function at q points, in batches.

        Args:
            X: Points, shape ``batch x q x d``; in the units of the model's inputs.
            observation_noise: Whether to add the variance of the noise, or variances to add: 0-d, or a shape that
                broadcasts with ``batch x q x 1``.
            posterior_transform: Applied to the posterior.
        """
        batch, q, d = X.shape[:-2], X.shape[-2], X.shape[-1]
        extra: Tensor | float = 0.0
        if observation_noise is not False:
            if observation_noise is True:
                noise = self._values["noise"]
                extra = noise.reshape(noise.shape[:-1] + (1,) * (len(batch) + 1))
            else:
                noise = torch.as_tensor(observation_noise).to(X)
                extra = noise.squeeze(-1) if noise.dim() else noise
        if q == 1:
            mean, variance = self.predict(X.reshape(-1, d))
            mean = mean.reshape(*mean.shape[:-1], *batch, 1)
            covariance = (variance.clamp_min(_LEAST_OF_POSTERIOR).reshape(mean.shape) + extra).unsqueeze(-1)
        else:
            mean, covariance = self._joint(X)
            covariance = covariance + torch.diag_embed(torch.zeros_like(mean) + extra)
        result = GPyTorchPosterior(MultivariateNormal(mean, covariance if q == 1 else to_linear_operator(covariance)))
        return result if posterior_transform is None else posterior_transform(result)

    def _mean(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean, shape ``b x m``, and prior covariances with the data, ``b x m x n``."""
        Z = self._form.scaled(X.to(self._X.dtype), self._kernel_values, self._inverse)
        k = self._values["outputscale"].unsqueeze(-1) * self._form.correlation(Z, self._scaled)
        mean = self._values["mean"] + (k @ self._alpha.unsqueeze(-1)).squeeze(-1)
        return mean, k

    def _joint(self, X: Tensor) -> tuple[Tensor, Tensor]:
        batch, q, d = X.shape[:-2], X.shape[-2], X.shape[-1]
        flat = X.reshape(-1, d)
        mean, k = self._mean(flat)
        V = torch.linalg.solve_triangular(self._L, k.mT, upper=False).mT  # b x m x n
        V = V.reshape(*V.shape[:-2], *batch, q, V.shape[-1])
        s = self._values["outputscale"]
        values = {
            name: value.reshape(*value.shape[:-1], *[1] * len(batch), -1) for name, value in self._kernel_values.items()
        }
        Z = self._form.scaled(X.to(self._X.dtype), values, self._inverse)
        prior = s.reshape(*s.shape[:-1], *[1] * (len(batch) + 2)) * self._form.correlation(Z, Z)
        mean = mean.reshape(*mean.shape[:-1], *batch, q)
        covariance = prior - V @ V.mT
        covariance = 0.5 * (covariance + covariance.mT)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        covariance = covariance + torch.diag_embed(diagonal.clamp_min(_LEAST_OF_POSTERIOR) - diagonal)
        return mean, covariance.expand(*mean.shape, q)

    # ---- pending trials ------------------------------------------------------------------------------

    def sample_at(self, X: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw the function at m points jointly.

        Args:
            X: Points, shape (m, d).
            num_samples: Number of draws.
            generator: Source of the draws.

        Returns:
            Shape (num_samples, m); with a batch of b parameters (b, num_samples, m).
        """
        mean, covariance = self._joint(X)
        L = safe_cholesky(covariance)
        noise = torch.randn(num_samples, len(X), generator=generator, dtype=torch.float64).to(X)
        return mean.unsqueeze(-2) + noise @ L.mT

    def fantasize_pending(self, X: Tensor, num_samples: int, generator: torch.Generator) -> GPModel:
        """Return the process conditioned on draws of its own at pending points.

        Args:
            X: Pending points, shape (m, d).
            num_samples: Number of fantasies. With a batch of parameters each set gets one draw instead.
            generator: Source of the draws.
        """
        if len(self.batch_shape):
            draws = self.sample_at(X, 1, generator).squeeze(-2)  # (b, m)
        else:
            draws = self.sample_at(X, num_samples, generator)  # (num_samples, m)
        Z = torch.cat([self._Z.expand(*draws.shape[:-1], -1), draws], dim=-1)
        return GPModel(torch.cat([self._X, X]), Z, self._form, self._values, self._inverse)


class _Marginals(torch.autograd.Function):
    """Means and variances with their derivatives by the points in closed form: the inner loop of a search.

    One step for autograd in place of some ten a factor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        form: KernelForm,
        data: list[Tensor],
        outputscale: Tensor,
        constant: Tensor,
        alpha: Tensor,
        L: Tensor,
        *Z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return means, shape (m,) or (b, m), and variances, shape (m,).

        Args:
            form: The kernel.
            data: Scaled inputs of the data for each factor, shapes (n, d_i).
            outputscale: Variance of the function, shape (1,).
            constant: Mean of the function, shape (1,).
            alpha: K^-1 (z - mean), shape (n,) or (b, n).
            L: Cholesky factor of K, shape (n, n).
            Z: Scaled points for each factor, shapes (m, d_i).
        """
        correlation, slopes = form.slopes(Z, data)
        k = correlation.mul_(outputscale)
        V = torch.linalg.solve_triangular(L, k.mT, upper=False)
        variance = outputscale - V.square().sum(0)
        ctx.save_for_backward(outputscale, alpha, L, V, variance, *Z, *data, *slopes)
        mean = (k @ alpha.mT).mT if alpha.dim() == 2 else k @ alpha
        return mean + constant, variance.clamp_min(_LEAST_VARIANCE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_mean: Tensor, d_variance: Tensor) -> Any:
        """Return the gradients."""
        outputscale, alpha, L, V, variance, *parts = ctx.saved_tensors
        d_variance = torch.where(variance >= _LEAST_VARIANCE, d_variance, 0.0)
        k = len(parts) // 3
        by_covariance = d_mean.mT @ alpha if alpha.dim() == 2 else torch.outer(d_mean, alpha)
        solved = torch.linalg.solve_triangular(L.mT, V, upper=True).mT
        by_covariance.addcmul_(solved, d_variance.unsqueeze(-1), value=-2.0).mul_(outputscale)
        gradients = []
        for Z, data, slope in zip(parts[:k], parts[k : 2 * k], parts[2 * k :], strict=True):
            W = slope * by_covariance
            gradients.append(2.0 * (W.sum(1, keepdim=True) * Z - W @ data))
        return (None, None, None, None, None, None, *gradients)


def _solve(L: Tensor, R: Tensor) -> Tensor:
    """Return K^-1 r, shape ``b x n``, for factors of shape ``n x n`` or ``b x n x n`` and residuals ``b x n``."""
    if L.dim() == 2 and R.dim() == 2:  # one solve for all fantasies
        return torch.cholesky_solve(R.mT, L).mT
    return torch.cholesky_solve(R.unsqueeze(-1), L).squeeze(-1)


def _at_least_zero() -> Any:
    from gpytorch.constraints import GreaterThan  # type: ignore[import-untyped]

    return GreaterThan(0.0, transform=torch.exp, inv_transform=torch.log)
