"""Acquisition functions by the names of the options."""

from __future__ import annotations

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement, ProbabilityOfImprovement
from sthyper.acquisition.lcb import LowerConfidenceBound
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.transforms import TargetTransform

__all__ = ["acquire", "incumbent_value", "jitter_of", "with_fantasies"]

_SYNE_TUNE_JITTER = 0.01


def acquire(
    model: Model,
    transform: TargetTransform,
    X: Tensor,
    Y: Tensor,
    pending: Tensor,
    options: BayesOptOptions,
    generator: torch.Generator,
) -> tuple[AcquisitionFunction, float]:
    """Return the acquisition function of the options, and the incumbent in raw units.

    Args:
        model: Model of the observations.
        transform: Its transform of targets.
        X: Points of observations, shape (n, d).
        Y: Their targets, shape (n,).
        pending: Points of pending evaluations, shape (m, d).
        options: The options.
        generator: Source of fantasies.
    """
    fantasies = with_fantasies(model, pending, options, generator)
    best = incumbent_value(fantasies, transform, X, Y, pending, options)
    raw = float(transform.inverse(best.mean()))
    name, kwargs = options.acq_function, dict(options.acq_function_kwargs or {})
    if name == "lcb":
        return LowerConfidenceBound(fantasies, kwargs.get("kappa", 1.0)), raw
    default = _SYNE_TUNE_JITTER if options.preset == "syne-tune" else 0.0
    jitter = jitter_of(transform, raw, kwargs.get("jitter", default))
    if name == "pi":
        return ProbabilityOfImprovement(fantasies, best, jitter, log=True), raw
    if name == "ei":
        return ExpectedImprovement(fantasies, best, jitter), raw
    return LogExpectedImprovement(fantasies, best, jitter), raw


def with_fantasies(model: Model, pending: Tensor, options: BayesOptOptions, generator: torch.Generator) -> Model:
    """Return the model with fantasies of pending evaluations; the model itself if there are none or none wanted."""
    if not len(pending) or options.no_fantasizing or not isinstance(model, GPModel):
        return model
    return model.fantasize_pending(pending, options.num_fantasy_samples, generator)


def incumbent_value(
    model: Model, transform: TargetTransform, X: Tensor, Y: Tensor, pending: Tensor, options: BayesOptOptions
) -> Tensor:
    """Return what is to be improved on, in the model's units: 0-d, or one a fantasy, shape (b,)."""
    with torch.no_grad():
        if options.incumbent == "model":
            mean = model.posterior(torch.cat([X, pending]).unsqueeze(-2)).mean.squeeze(-1).squeeze(-1)
            return mean.amin(-1)
        best = transform.forward(Y).min()
        if isinstance(model, GPModel) and model.num_data > len(Y):
            return torch.minimum(best, model.targets[..., len(Y) :].amin(-1))
        return best


def jitter_of(transform: TargetTransform, best: float, jitter: float) -> float:
    """Return a difference of raw targets at the incumbent in the model's units."""
    if not jitter:
        return 0.0
    pair = transform.forward(torch.tensor([best, best - jitter], dtype=torch.float64))
    return float(pair[0] - pair[1])
