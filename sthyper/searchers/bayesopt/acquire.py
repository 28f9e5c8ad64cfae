"""Acquisition functions by the names of the options."""

from __future__ import annotations

from collections.abc import Callable

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement, ProbabilityOfImprovement
from sthyper.acquisition.fantasies import FantasisedModel, can_fantasise
from sthyper.acquisition.lcb import LowerConfidenceBound
from sthyper.acquisition.monte_carlo import (
    JointExpectedImprovement,
    NoisyExpectedImprovement,
    SampledNoisyExpectedImprovement,
)
from sthyper.acquisition.thompson import IndependentThompsonSampling, ThompsonSampling
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.stagnation import plausible_demand
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.marginals import marginals
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
    feasible: Tensor | None = None,
    probe: Callable[[], Tensor] | None = None,
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
        feasible: Which pending evaluations may become the incumbent, bool, shape (m,); ``None`` for all.
        probe: Returns points all over the space, shape (k, d), for ``escape_stagnation``.
    """
    name, kwargs = options.acq_function, dict(options.acq_function_kwargs or {})
    if options.no_fantasizing:
        pending, feasible = pending[:0], None
    joint = options.pending_strategy == "joint" and len(pending) > 0
    # What draws functions or values jointly needs no fantasies: draws differ, or hold the pending points.
    alone = joint or name in ("thompson", "nei", "lognei")
    conditioned = model if alone else with_fantasies(model, pending, options, generator)
    added = len(pending) if conditioned is not model else 0
    counted = pending[:0] if alone else pending
    best = incumbent_value(conditioned, transform, X, Y, counted, added, options, None if alone else feasible)
    raw = float(transform.inverse(best.mean()))
    if name == "thompson":
        return ThompsonSampling(model, generator), raw
    if name == "thompson_indep":
        return IndependentThompsonSampling(conditioned, generator), raw
    if name in ("lcb", "ucb"):
        return LowerConfidenceBound(conditioned, kwargs.get("kappa", 1.0)), raw
    if name in ("nei", "lognei"):
        return _noisy(model, X, pending, feasible, options, generator), raw
    default = _SYNE_TUNE_JITTER if options.preset == "syne-tune" else 0.0
    jitter = jitter_of(transform, raw, kwargs.get("jitter", default))
    if options.escape_stagnation:
        jitter += plausible_demand(conditioned, best, jitter, transform.forward(Y), probe)
    if joint:
        log = name == "logei"
        counted = pending if feasible is None else pending[feasible]
        if len(counted):
            return JointExpectedImprovement(model, best, counted, generator, jitter=jitter, log=log), raw
    if name == "pi":
        return ProbabilityOfImprovement(conditioned, best, jitter, log=True), raw
    if name == "ei":
        return ExpectedImprovement(conditioned, best, jitter), raw
    return LogExpectedImprovement(conditioned, best, jitter), raw


def _noisy(
    model: Model,
    X: Tensor,
    pending: Tensor,
    feasible: Tensor | None,
    options: BayesOptOptions,
    generator: torch.Generator,
) -> AcquisitionFunction:
    log = options.acq_function == "lognei"
    if feasible is not None:
        pending = pending[feasible]
    X = torch.cat([X, pending])
    if isinstance(model, GPModel):
        return NoisyExpectedImprovement(model, X, generator, options.num_fantasy_samples, log)
    return SampledNoisyExpectedImprovement(model, X, generator, log=log)


def with_fantasies(model: Model, pending: Tensor, options: BayesOptOptions, generator: torch.Generator) -> Model:
    """Return the model with fantasies of pending evaluations; the model itself if there are none or none wanted."""
    if not len(pending) or options.no_fantasizing:
        return model
    if isinstance(model, GPModel):
        return model.fantasize_pending(pending, options.num_fantasy_samples, generator)
    if can_fantasise(model):
        return FantasisedModel(model, pending, options.num_fantasy_samples, generator)
    return model


def incumbent_value(
    model: Model,
    transform: TargetTransform,
    X: Tensor,
    Y: Tensor,
    pending: Tensor,
    num_fantasised: int,
    options: BayesOptOptions,
    feasible: Tensor | None = None,
) -> Tensor:
    """Return what is to be improved on, in the model's units: 0-d, or one a fantasy, shape (b,).

    Of fantasised results, the last ``num_fantasised`` targets of the model, the best one counts too.
    """
    with torch.no_grad():
        if options.incumbent == "model":
            counted = pending if feasible is None else pending[feasible]
            return marginals(model, torch.cat([X, counted]))[0].amin(-1)
        best = transform.forward(Y).min()
        drawn = None
        if num_fantasised and isinstance(model, GPModel):
            drawn = model.targets[..., -num_fantasised:]
        elif isinstance(model, FantasisedModel):
            drawn = model.at_pending
        if drawn is not None:
            if feasible is not None:
                drawn = torch.where(feasible, drawn, torch.inf)
            return torch.minimum(best, drawn.amin(-1))
        return best


def jitter_of(transform: TargetTransform, best: float, jitter: float) -> float:
    """Return a difference of raw targets at the incumbent in the model's units."""
    if not jitter:
        return 0.0
    pair = transform.forward(torch.tensor([best, best - jitter], dtype=torch.float64))
    return float(pair[0] - pair[1])
