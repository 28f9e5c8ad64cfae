"""A Gaussian process classifier: the probability that a trial succeeds, by where it lies."""

from __future__ import annotations

import math
from typing import Any

import torch
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.surrogates.fit import minimize_bounded
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.kernels import KernelForm
from sthyper.surrogates.likelihood import safe_cholesky
from sthyper.surrogates.parameters import PRESETS, ParameterLayout, ParameterSpec
from sthyper.surrogates.priors import LogNormal, Normal

__all__ = ["ProbitClassifier", "ProbitModel"]

_MAX_POINTS = 500
_MAX_FIT_POINTS = 150
_ITERATIONS = 30
_WARM_ITERATIONS = 10
_NEWTON_STEPS = 30
_TOLERANCE = 1e-9
_LEAST_CURVATURE = 1e-12
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
# The latent function has steps where success turns into failure, so it varies more than standardised targets do. The
# mode of the prior in the logarithm is at 4. Before there are data, P(success) is 0.59, spread over (0, 1).
_OUTPUTSCALE = ParameterSpec(4.0, 0.1, 100.0, LogNormal(math.log(4.0) + 1.0, 1.0), spread=0.5)
_MEAN = ParameterSpec(0.5, -3.0, 3.0, Normal(0.5, 1.0), log=False, spread=0.5)


class ProbitModel(Model):
    """Laplace's approximation of a latent function f with P(success) = Phi(f).

    The posterior is that of f; P(success) = Phi(mean / sqrt(1 + variance)) is what
    ``ModelledConstraint(model, lower=0.0, noise=1.0)`` computes.

    Args:
        X: Points, float64, shape (n, d).
        success: Whether they succeeded, bool, shape (n,).
        form: The kernel.
        values: Parameters by name: those of ``form``, and ``mean``.
    """

    _num_outputs = 1

    def __init__(self, X: Tensor, success: Tensor, form: KernelForm, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._form, self._values = form, {name: value.detach() for name, value in values.items()}
        self._scaled = form.scaled(X, self._values)
        self._sign = torch.where(success, 1.0, -1.0).to(X)
        K = self._values["outputscale"] * form.correlation(self._scaled, self._scaled)
        f, self._alpha = _mode(K, self._values["mean"], self._sign)
        _, curvature = _slopes(f, self._sign)
        self._root = curvature.sqrt()
        self._L = _cholesky_of_b(K, self._root)

    @property
    def num_outputs(self) -> int:
        """Number of outputs: one."""
        return self._num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the leading batch: empty."""
        return torch.Size([])

    def posterior(
        self,
        X: Tensor,
        output_indices: Any = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Any:
        """Return the joint posterior of the latent function at q points, in batches.

        Args:
            X: Points, shape ``batch x q x d``.
            output_indices: Not used: there is one output.
            observation_noise: Whether to add the variance 1 of the probit's noise, or a variance to add.
            posterior_transform: Applied to the posterior.
        """
        batch, q, d = X.shape[:-2], X.shape[-2], X.shape[-1]
        s = self._values["outputscale"]
        k = s * self._form.correlation(self._form.scaled(X.reshape(-1, d), self._values), self._scaled)
        mean = (self._values["mean"] + k @ self._alpha).reshape(*batch, q)
        V = torch.linalg.solve_triangular(self._L, self._root.unsqueeze(-1) * k.mT, upper=False).mT
        V = V.reshape(*batch, q, -1)
        if q == 1:
            covariance = (s - V.square().sum(-1)).unsqueeze(-1)
        else:
            Z = self._form.scaled(X, self._values)
            covariance = s * self._form.correlation(Z, Z) - V @ V.mT
        noise = 1.0 if observation_noise is True else observation_noise
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        added = diagonal.clamp_min(1e-12) - diagonal + (0.0 if noise is False else noise)
        result = GPyTorchPosterior(MultivariateNormal(mean, covariance + torch.diag_embed(added)))
        return result if posterior_transform is None else posterior_transform(result)

    def success_probability(self, X: Tensor) -> Tensor:
        """Return P(success), shape (m,), at points of shape (m, d)."""
        posterior = self.posterior(X.unsqueeze(-2))
        mean, variance = posterior.mean[..., 0, 0], posterior.variance[..., 0, 0]
        return torch.special.ndtr(mean / (1.0 + variance).sqrt())


class ProbitClassifier:
    """Learns where trials succeed and where they fail.

    A Gaussian process with a probit likelihood, approximated as Laplace did; its parameters maximise the approximate
    evidence times their priors. With more than 500 trials it sees 500 of them, drawn at random with the same part of
    failures.

    Args:
        structure: What the columns of the inputs are; d plain numbers if an int.
        seed: Seed of the draws.

    References:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, sections 3.4 and 5.5
    """

    def __init__(self, structure: InputStructure | int, seed: int = 0) -> None:
        self.structure = InputStructure.plain(structure) if isinstance(structure, int) else structure
        self.form = KernelForm(self.structure, warping=False)
        blocks = self.form.blocks(PRESETS["default"])
        self.layout = ParameterLayout(
            {"lengthscale": blocks["lengthscale"], "outputscale": (_OUTPUTSCALE, 1), "mean": (_MEAN, 1)}
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._theta: Tensor | None = None

    def fit(self, X: Tensor, success: Tensor, refit: bool = True) -> ProbitModel:
        """Return the model of trials.

        Args:
            X: Points, float64, shape (n, d), n at least 1.
            success: Whether they succeeded, bool, shape (n,).
            refit: Whether to learn the parameters anew; if not, those of the last fit are kept.
        """
        if refit or self._theta is None:
            rows = self._subset(success, _MAX_FIT_POINTS)
            self._fit_parameters(X[rows].detach().cpu(), success[rows].cpu())
        assert self._theta is not None
        values = {name: value.to(X) for name, value in self.layout.unpack(self._theta).items()}
        rows = self._subset(success, _MAX_POINTS)
        return ProbitModel(X[rows], success[rows], self.form, values)

    def negative_log_posterior(self, theta: Tensor, X: Tensor, success: Tensor) -> Tensor:
        """Return what a fit minimises: negative log evidence, as Laplace approximates it, plus negative log priors.

        Args:
            theta: Parameters in the optimised form, shape (p,).
            X: Points, shape (n, d).
            success: Whether they succeeded, shape (n,).
        """
        values = self.layout.unpack(theta)
        sign = torch.where(success, 1.0, -1.0).to(X)
        Z = self.form.scaled(X, values)
        K = values["outputscale"] * self.form.correlation(Z, Z)
        mean = values["mean"]
        with torch.no_grad():
            start, _ = _mode(K, mean, sign)
        # One further Newton step, from a mode that is constant to autograd, has the mode's exact derivative: that of
        # the step by its start vanishes there.
        f, alpha = _newton_step(start, K, mean, sign)
        _, curvature = _slopes(f, sign)
        L = _cholesky_of_b(K, curvature.sqrt())
        evidence = torch.special.log_ndtr(sign * f).sum() - 0.5 * alpha @ (f - mean) - L.diagonal().log().sum()
        return self.layout.negative_log_prior(values) - evidence

    def _fit_parameters(self, X: Tensor, success: Tensor) -> None:
        starts, iterations = [self.layout.init], [_ITERATIONS]
        if self._theta is not None:
            starts, iterations = [self._theta], [_WARM_ITERATIONS]
        result = minimize_bounded(
            lambda theta: self.negative_log_posterior(theta, X, success),
            starts,
            self.layout.lower,
            self.layout.upper,
            iterations,
            1e-4,
        )
        if result is not None:
            self._theta = result.theta
        elif self._theta is None:
            self._theta = self.layout.init.clone()

    def _subset(self, success: Tensor, size: int) -> Tensor:
        if len(success) <= size:
            return torch.arange(len(success), device=success.device)
        kept = []
        failures = round(size * float((~success).double().mean()))
        for label, count in ((False, max(failures, 1)), (True, size - max(failures, 1))):
            rows = torch.nonzero(success == label).squeeze(-1)
            order = torch.randperm(len(rows), generator=self._generator)[:count]
            kept.append(rows[order.to(rows.device)])
        return torch.cat(kept).sort().values

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the last fit, by name."""
        if self._theta is None:
            return {}
        values = self.layout.unpack(self._theta)
        result = {
            f"lengthscale_{name}": value
            for name, value in zip(self.form.lengthscale_names, values["lengthscale"].tolist(), strict=True)
        }
        return result | {name: float(values[name]) for name in ("outputscale", "mean")}

    def state_dict(self) -> dict[str, Any]:
        """Return parameters of the last fit and generator."""
        return {
            "theta": None if self._theta is None else self._theta.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._theta = None if state["theta"] is None else state["theta"].clone()
        self._generator.set_state(state["generator"].cpu())


def _slopes(f: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient and negative second derivative of log Phi(sign f), shape (n,)."""
    ratio = torch.exp(-0.5 * f * f - _LOG_SQRT_2PI - torch.special.log_ndtr(sign * f))
    return sign * ratio, (ratio * (ratio + sign * f)).clamp_min(_LEAST_CURVATURE)


def _cholesky_of_b(K: Tensor, root: Tensor) -> Tensor:
    """Return the factor of I + W^1/2 K W^1/2, all of whose eigenvalues are at least 1."""
    return safe_cholesky(torch.eye(len(K)).to(K) + root.unsqueeze(-1) * K * root)


def _newton_step(f: Tensor, K: Tensor, mean: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next latent values, shape (n,), and K^-1 (f - mean)."""
    gradient, curvature = _slopes(f, sign)
    root = curvature.sqrt()
    b = curvature * (f - mean) + gradient
    L = _cholesky_of_b(K, root)
    alpha = b - root * torch.cholesky_solve((root * (K @ b)).unsqueeze(-1), L).squeeze(-1)
    return mean + K @ alpha, alpha


def _mode(K: Tensor, mean: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latent values that maximise likelihood times prior, shape (n,), and K^-1 (f - mean)."""
    alpha = torch.zeros_like(sign)
    f = mean + alpha

    def objective(f: Tensor, alpha: Tensor) -> float:
        return float(torch.special.log_ndtr(sign * f).sum() - 0.5 * alpha @ (f - mean))

    value = objective(f, alpha)
    for _ in range(_NEWTON_STEPS):
        _, target = _newton_step(f, K, mean, sign)
        step = 1.0
        while True:
            new_alpha = alpha + step * (target - alpha)
            new_f = mean + K @ new_alpha
            new_value = objective(new_f, new_alpha)
            if new_value >= value - 1e-12 * abs(value) or step < 1e-3:
                break
            step *= 0.5
        converged = new_value - value < _TOLERANCE
        f, alpha, value = new_f, new_alpha, new_value
        if converged:
            break
    return f, alpha
