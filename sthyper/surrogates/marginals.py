"""Marginal predictions of any model, by the shortest way."""

from __future__ import annotations

from typing import Any

from botorch.models.model import Model
from torch import Tensor

from sthyper.surrogates.gp_model import GPModel

__all__ = ["marginals"]


def marginals(model: Model, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return posterior means and variances at single points.

    Args:
        model: A model of one output.
        X: Points, shape ``batch x d``.

    Returns:
        Two tensors of shape ``b x batch``; b is the leading batch of the model (fantasies, samples of parameters) and
        missing if there is none.
    """
    if isinstance(model, GPModel):  # without the objects that a BoTorch posterior is made of
        mean, variance = model.predict(X.reshape(-1, X.shape[-1]))
        shape = (*mean.shape[:-1], *X.shape[:-1])
        return mean.reshape(shape), variance.reshape(shape)
    posterior: Any = model.posterior(X.unsqueeze(-2))
    return posterior.mean.squeeze(-1).squeeze(-1), posterior.variance.squeeze(-1).squeeze(-1).clamp_min(0.0)
