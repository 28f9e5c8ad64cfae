"""Fantasies of pending evaluations in BoTorch models of any kind."""

from __future__ import annotations

from typing import Any

import torch
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.acquisition.monte_carlo import seeded_sampler

__all__ = ["FantasisedModel", "can_fantasise"]


class FantasisedModel(Model):
    """A BoTorch model conditioned on draws of its own at pending points, as a leading batch of the posterior.

    Args:
        model: A model with BoTorch's ``fantasize``.
        X_pending: Pending points, shape (m, d).
        num_fantasies: Number of draws b.
        generator: Source of their seed.

    Attributes:
        at_pending: Means of the fantasies at the pending points, shape (b, m).
    """

    def __init__(self, model: Model, X_pending: Tensor, num_fantasies: int, generator: torch.Generator) -> None:
        super().__init__()
        sampler = seeded_sampler(num_fantasies, len(X_pending), generator)
        with torch.no_grad():
            self.inner: Model = model.fantasize(X_pending, sampler=sampler)  # type: ignore[operator]
            self._num_fantasies = num_fantasies
            self.at_pending = self._marginals(X_pending)[0]

    @property
    def num_outputs(self) -> int:
        """Number of outputs: one."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the leading batch: (b,)."""
        return torch.Size([self._num_fantasies])

    def posterior(
        self,
        X: Tensor,
        output_indices: Any = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Any:
        """Return the posterior at single points.

        Args:
            X: Points, shape ``batch x 1 x d``.
            output_indices: Not used: there is one output.
            observation_noise: Whether to add the variance of the noise.
            posterior_transform: Applied to the posterior.

        Returns:
            A posterior with mean and variance of shape ``b x batch x 1 x 1``.
        """
        mean, variance = self._marginals(X.reshape(-1, X.shape[-1]), observation_noise)
        mean = mean.reshape(-1, *X.shape[:-1])
        posterior = GPyTorchPosterior(MultivariateNormal(mean, variance.reshape(mean.shape).unsqueeze(-1)))
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def _marginals(self, X: Tensor, observation_noise: bool | Tensor = False) -> tuple[Tensor, Tensor]:
        """Return means and variances, shape (b, m), of points of shape (m, d).

        As one set of points: as a batch of them, GPyTorch would copy the data of the fantasies for each one.
        """
        posterior: Any = self.inner.posterior(X, observation_noise=observation_noise)
        return posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)


def can_fantasise(model: Model) -> bool:
    """Return whether a model has BoTorch's ``fantasize`` and one output."""
    return callable(getattr(model, "fantasize", None)) and model.num_outputs == 1
