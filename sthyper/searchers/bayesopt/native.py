"""BoTorch's own recipe: model, acquisition function and its optimisation. This module needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.monte_carlo import qExpectedImprovement
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.exceptions.errors import BotorchError
from botorch.exceptions.warnings import BotorchWarning, NumericsWarning
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms.input import Warp
from botorch.optim.optimize import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.priors import LogNormalPrior  # type: ignore[import-untyped]
from torch import Tensor

from sthyper.acquisition.optimize import Candidate
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt.botorch import BoTorchOptions
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.suggest import Found, ModelSuggester, SurrogateData, limited_threads, predict
from sthyper.surrogates.custom import BoTorchSurrogate, own_draws

__all__ = ["make_native_suggester", "suggest_natively"]

_NUM_RESTARTS = 3
_NUM_RAW_SAMPLES = 100
_NUM_RANDOM = 100
"""So many random configurations are scored if the optimum must not be suggested."""
_NOISE = 1e-3
"""Deviation of what is added to standardised targets, so that equal ones are no singular case."""


def make_native_suggester(encoder: SpaceEncoder, options: BayesOptOptions, seed: int) -> ModelSuggester:
    """Return a suggester with a ``SingleTaskGP``, its inputs warped if the options say so."""

    def warped(X: Tensor, Y: Tensor) -> Model:
        prior = LogNormalPrior(0.0, 0.75**0.5)
        columns = list(range(X.shape[-1]))
        warp = Warp(d=len(columns), indices=columns, concentration1_prior=prior, concentration0_prior=prior)
        return SingleTaskGP(X, Y, input_transform=warp)

    surrogate = BoTorchSurrogate(warped if options.input_warping else SingleTaskGP, seed)
    return ModelSuggester(encoder, options, seed, surrogate)


def suggest_natively(
    suggester: ModelSuggester,
    data: SurrogateData,
    allowed: Callable[[dict[str, Any]], bool],
    restricted: list[dict[str, Any]] | None,
    options: BoTorchOptions,
) -> Found | None:
    """Return a configuration that may be suggested, ``None`` if none was found.

    Args:
        suggester: Holds space, surrogate and generator.
        data: Observations and pending evaluations.
        allowed: Whether a configuration may be suggested.
        restricted: Configurations to choose from; ``None`` for the whole space.
        options: The options.

    Raises:
        RuntimeError: If BoTorch fails.
    """
    generator, space = suggester.generator, suggester.space
    X, Y, pending, kept = data.X, data.Y, data.pending, torch.arange(len(data.Y))
    if options.max_num_observations is not None and len(Y) >= options.max_num_observations:
        kept = torch.randperm(len(Y), generator=generator)[: options.max_num_observations].sort().values
        X, Y, pending = X[kept], Y[kept], pending[:0]
    elif options.no_fantasizing:
        pending = pending[:0]
    with limited_threads(len(Y)):
        feasibility, feasible = suggester._learn_feasibility(data)
        comparable = Y if feasible is None else Y[feasible[: len(data.Y)][kept]]
        model, acquisition, best = None, None, None
        if len(Y):
            std = float(Y.std(correction=0))
            noise = torch.randn(len(Y), generator=generator, dtype=torch.float64) * _NOISE
            model = suggester.surrogate.fit(X, Y + noise * std)
        try:
            if model is not None and len(comparable):
                best = float(comparable.min())
                acquisition = _acquisition(model, suggester, best, pending, options.acq_function)
            if feasibility is not None:
                acquisition = suggester._constrain(acquisition, best, feasibility, data)
            if acquisition is None:
                return None
            optimum = None if restricted is not None else _optimum(acquisition, suggester, allowed)
            if optimum is None:
                found = _best_random(acquisition, suggester, allowed, restricted)
            else:
                found = space.config(optimum.x), optimum
        except BotorchError as error:
            raise RuntimeError(f"BoTorch cannot optimise the acquisition function: {error}") from error
        if found is None:
            return None
        config, candidate = found
        x = candidate.x.unsqueeze(0)
        probability = None if feasibility is None else float(feasibility.probability(x))
        if model is None:
            return Found(config, candidate, None, None, best, probability)
        mean, deviation = predict(model, suggester.surrogate, x)
    return Found(config, candidate, float(mean), float(deviation), best, probability)


def _acquisition(
    model: Model, suggester: ModelSuggester, best: float, pending: Tensor, name: str
) -> AcquisitionFunction:
    seed = int(torch.randint(2**31 - 1, (), generator=suggester.generator))
    minimise = ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))
    target = suggester.surrogate.transform.forward(torch.tensor(best, dtype=torch.float64))
    cls = qLogExpectedImprovement if name == "logei" else qExpectedImprovement
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericsWarning)  # of the plain form, which was asked for
        return cls(
            model,
            best_f=-target,
            sampler=SobolQMCNormalSampler(torch.Size([512]), seed=seed),
            posterior_transform=minimise,
            X_pending=pending if len(pending) else None,
        )


def _optimum(
    acquisition: AcquisitionFunction, suggester: ModelSuggester, allowed: Callable[[dict[str, Any]], bool]
) -> Candidate | None:
    """Return the configuration next to the maximum, ``None`` if it must not be suggested."""
    space = suggester.space
    # BoTorch's optimiser draws from torch's global generator, and tells by warnings what it tries again.
    with own_draws(suggester.generator), warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        point, _ = optimize_acqf(
            acquisition, space.bounds, q=1, num_restarts=_NUM_RESTARTS, raw_samples=_NUM_RAW_SAMPLES
        )
    x = space.snap(point.detach().reshape(1, -1))[0]
    if not allowed(space.config(x)):
        return None
    return Candidate(x, float(_values(acquisition, x.unsqueeze(0))), "gradient")


def _best_random(
    acquisition: AcquisitionFunction,
    suggester: ModelSuggester,
    allowed: Callable[[dict[str, Any]], bool],
    restricted: list[dict[str, Any]] | None,
) -> tuple[dict[str, Any], Candidate] | None:
    """Return the best one of random configurations that may be suggested, ``None`` if there is none."""
    space, generator = suggester.space, suggester.generator
    if restricted is None:
        uniform = torch.rand(_NUM_RANDOM, len(space.slices), generator=generator, dtype=torch.float64)
        X = space.from_uniform(uniform)
        configs = [space.config(x) for x in X]
    else:
        # The entries themselves: what their points are decoded to may differ in the last digit.
        order = torch.randperm(len(restricted), generator=generator).tolist()
        configs = [dict(restricted[i]) for i in order if allowed(restricted[i])][:_NUM_RANDOM]
        if not configs:
            return None
        X = space.points(configs)
    kept = [i for i in range(len(X)) if allowed(configs[i])]
    if not kept:
        return None
    values = _values(acquisition, X[kept])
    index = int(values.argmax())
    best = kept[index]
    return configs[best], Candidate(X[best], float(values[index]), "global")


def _values(acquisition: AcquisitionFunction, X: Tensor) -> Tensor:
    with torch.no_grad():
        return acquisition(X.unsqueeze(-2))
