"""Model-based suggestions: fit, acquisition function, optimisation. This module needs torch; the searcher does not."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.optimize import Candidate, OptimizerOptions, optimize_acquisition, rank_candidates
from sthyper.acquisition.space import MixedSpace
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt.acquire import acquire
from sthyper.searchers.bayesopt.canonical import CheckedCanonicalize
from sthyper.searchers.bayesopt.feasibility import Feasibility, FeasibilityData, FeasibilityModel
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.bayesian_gp import BayesianGaussianProcess
from sthyper.surrogates.custom import as_surrogate
from sthyper.surrogates.data_cap import cap_size
from sthyper.surrogates.fit import single_threaded_torch
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.marginals import marginals
from sthyper.surrogates.refit import SkipPeriodically

__all__ = ["Found", "ModelSuggester", "SurrogateData", "Wrapper"]

logger = logging.getLogger(__name__)

Wrapper = Callable[[AcquisitionFunction], AcquisitionFunction]

_FEW_OBSERVATIONS = 500
"""Below so many, threads of matrix products cost more than they bring."""
_MANY_OBSERVATIONS = 150
_FEW_STARTS, _FEW_ITERATIONS, _FEW_ROUNDS = 4, 8, 2
"""From so many observations on the search is no longer than this, with half the candidates: evaluations are dearer, and
what is found has in the median a logarithm of EI that is at most a fifth lower."""
_NUM_INCUMBENTS = 5
_NUM_PROBES = 128
"""Number of points at which an improvement has to be thinkable before it is asked for."""


@dataclass(frozen=True)
class SurrogateData:
    """What a suggestion is made from.

    Args:
        X: Points of observations, shape (n, d).
        Y: Targets, low is good, shape (n,).
        pending: Points of pending evaluations, shape (m, d).
        refit: Whether the parameters of the model are to be learned anew.
        active: Which observations can be improved on, bool, shape (n,): in transfer learning those of the active task.
            ``None`` for all.
        feasibility: What is known of constraints and failures; ``None`` if nothing is to be.
    """

    X: Tensor
    Y: Tensor
    pending: Tensor
    refit: bool = True
    active: Tensor | None = None
    feasibility: FeasibilityData | None = None

    def comparable(self) -> tuple[Tensor, Tensor]:
        """Return points and targets of the observations that can be improved on."""
        return (self.X, self.Y) if self.active is None else (self.X[self.active], self.Y[self.active])


@dataclass(frozen=True)
class Found:
    """A suggestion.

    Args:
        config: The configuration.
        candidate: What the search found.
        mean: Predicted target, ``None`` without any observation.
        std: Its deviation.
        incumbent: What was to be improved on; ``None`` while nothing feasible is known.
        feasibility: Probability that all constraints hold, ``None`` without any.
    """

    config: dict[str, Any]
    candidate: Candidate
    mean: float | None
    std: float | None
    incumbent: float | None
    feasibility: float | None = None


class ModelSuggester:
    """Fits the surrogate and optimises the acquisition function.

    Args:
        encoder: Maps configurations to points.
        options: The options.
        seed: Seed of all draws.
        surrogate: The surrogate; that of the options if ``None``.
    """

    def __init__(
        self, encoder: SpaceEncoder, options: BayesOptOptions, seed: int, surrogate: Surrogate | None = None
    ) -> None:
        self.encoder = encoder
        self.options = options
        canonicalize = options.canonicalize
        checked = None if canonicalize is None else CheckedCanonicalize(canonicalize, encoder.config_space)
        self.space = MixedSpace(encoder, checked)
        self.generator = torch.Generator().manual_seed(seed)
        self.surrogate = make_surrogate(encoder, options, seed) if surrogate is None else surrogate
        self.feasibility: FeasibilityModel | None = None
        if options.constraints or options.learn_feasibility:
            self.feasibility = FeasibilityModel(encoder, options.constraints, seed, options)
        self._refit_rule = SkipPeriodically(options.opt_skip_init_length, options.opt_skip_period)
        self._search = OptimizerOptions(
            num_candidates=options.num_init_candidates,
            num_local_candidates=options.num_local_candidates,
            num_starts=options.local_search_starts,
            max_iterations=0 if options.skip_local_optimization else OptimizerOptions.max_iterations,
            max_rounds=0 if options.skip_local_optimization else OptimizerOptions.max_rounds,
        )
        self._short_search = _shorter(self._search)

    def fit(self, data: SurrogateData) -> Model:
        """Return the model of the observations, or of those that the cap on their number leaves."""
        refit = data.refit and self._refit_rule.should_fit(len(data.Y))
        kept = cap_size(
            data.Y, self.options.max_size_data_for_model, self.options.max_size_top_fraction, self.generator
        )
        if len(kept) < len(data.Y):
            return self.surrogate.fit(data.X[kept], data.Y[kept], refit)
        return self.surrogate.fit(data.X, data.Y, refit)

    def suggest(
        self,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None = None,
        wrap: Wrapper | None = None,
    ) -> Found | None:
        """Return the best configuration that may be suggested, ``None`` if there is none among those looked at.

        Args:
            data: Observations and pending evaluations; at least one observation, if feasibility is not learned.
            allowed: Whether a configuration may be suggested.
            restricted: Configurations to choose from; ``None`` for the whole space.
            wrap: Makes the acquisition function that is optimised from that of the targets.
        """
        with limited_threads(len(data.Y)):
            model = self.fit(data) if len(data.Y) else None
            feasibility, feasible = self._learn_feasibility(data)
            if feasible is not None:
                active = feasible[: len(data.Y)]
                data = replace(data, active=active if data.active is None else active & data.active)
                feasible = feasible[len(data.Y) :]
            X, Y = data.comparable()
            acquisition: AcquisitionFunction | None = None
            best: float | None = None
            if model is not None and len(Y):
                acquisition, best = acquire(
                    model,
                    self.surrogate.transform,
                    X,
                    Y,
                    data.pending,
                    self.options,
                    self.generator,
                    feasible,
                    lambda: self.space.sample(_NUM_PROBES, self.generator),
                )
                if wrap is not None:
                    acquisition = wrap(acquisition)
            if feasibility is not None:
                acquisition = self._constrain(acquisition, best, feasibility, data)
                if not len(Y):
                    data = feasibility.nearest(data)
            if acquisition is None:
                return None
            candidates = self._candidates(acquisition, model, data, allowed, restricted)
            for config, candidate in candidates:
                if not math.isfinite(candidate.value):
                    raise ValueError("the acquisition function is finite nowhere")
                if allowed(config):
                    return self._found(config, candidate, model, best, feasibility)
        return None

    def _learn_feasibility(self, data: SurrogateData) -> tuple[Feasibility | None, Tensor | None]:
        """Return what is learned, and which observations and pending evaluations, in this order, count as feasible."""
        if self.feasibility is None or data.feasibility is None:
            return None, None
        feasibility = self.feasibility.fit(data.feasibility)
        if feasibility is None:
            return None, None
        return feasibility, feasibility.feasible(data.feasibility.observed, torch.cat([data.X, data.pending]))

    def _constrain(
        self, acquisition: AcquisitionFunction | None, best: float | None, feasibility: Feasibility, data: SurrogateData
    ) -> AcquisitionFunction:
        if acquisition is None or best is None:
            if not self.options.no_fantasizing:
                feasibility = feasibility.if_infeasible(data.pending, self.options.num_fantasy_samples, self.generator)
            return feasibility.constrain(None)
        forward = self.surrogate.transform.forward
        incumbent = forward(torch.tensor(best, dtype=torch.float64))
        return feasibility.constrain(acquisition, incumbent, float(forward(data.Y).std(correction=0)))

    def _candidates(
        self,
        acquisition: AcquisitionFunction,
        model: Model | None,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None,
    ) -> Iterator[tuple[dict[str, Any], Candidate]]:
        """Yield configurations and what the search found of them, the best ones first."""
        score = None
        if self.options.initial_scoring == "thompson_indep" and model is not None:
            score = independent_draws(model, self.generator)
        if restricted is not None:
            X = self.space.points(list(restricted))
            ranked = rank_candidates(acquisition, X, score)
            for i in ranked.order.tolist():
                yield dict(restricted[i]), Candidate(X[i], float(ranked.values[i]), "global")
            return
        X, Y = data.comparable()
        incumbents = X[torch.argsort(Y, stable=True)[:_NUM_INCUMBENTS]]
        found = optimize_acquisition(
            acquisition,
            self.space,
            self.space.snap(incumbents),
            self.generator,
            self._search if len(data.Y) < _MANY_OBSERVATIONS else self._short_search,
            score,
            lambda x: allowed(self.space.config(x)),
        )
        for candidate in found:
            yield self.space.config(candidate.x), candidate

    def _found(
        self,
        config: dict[str, Any],
        candidate: Candidate,
        model: Model | None,
        best: float | None,
        feasibility: Feasibility | None,
    ) -> Found:
        x = candidate.x.unsqueeze(0)
        probability = None if feasibility is None else float(feasibility.probability(x))
        if model is None:
            return Found(config, candidate, None, None, best, probability)
        mean, std = predict(model, self.surrogate, x)
        return Found(config, candidate, float(mean), float(std), best, probability)

    def copied(self) -> ModelSuggester | None:
        """Return a copy that shares nothing with it, ``None`` if the user's surrogate cannot be copied."""
        try:
            return copy.deepcopy(self)
        except Exception:  # of any kind, from classes of the user: tensors with a gradient, locks, open files
            return None

    def state_dict(self) -> dict[str, Any]:
        """Return generator, surrogate and the rule for refits."""
        return {
            "generator": self.generator.get_state(),
            "surrogate": self.surrogate.state_dict(),
            "refit_rule": self._refit_rule.state_dict(),
            "feasibility": None if self.feasibility is None else self.feasibility.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.surrogate.load_state_dict(state["surrogate"])
        self._refit_rule.load_state_dict(state["refit_rule"])
        if self.feasibility is not None:
            self.feasibility.load_state_dict(state["feasibility"])


def _shorter(search: OptimizerOptions) -> OptimizerOptions:
    """Return a search of less time; what it enumerates stays."""
    return replace(
        search,
        num_candidates=max(search.num_candidates // 2, 2),
        num_local_candidates=search.num_local_candidates // 2,
        num_enumerated=search.num_candidates + search.num_local_candidates,
        num_discrete_starts=min(search.num_discrete_starts, _FEW_STARTS),
        max_iterations=min(search.max_iterations, _FEW_ITERATIONS),
        max_rounds=min(search.max_rounds, _FEW_ROUNDS),
    )


def make_surrogate(encoder: SpaceEncoder, options: BayesOptOptions, seed: int) -> Surrogate:
    """Return the surrogate that options describe: the user's or a Gaussian process."""
    if options.surrogate is None:
        return make_gaussian_process(encoder, options, seed)
    structure = InputStructure.of_space(encoder, options.transfer_learning_task_attr)
    return as_surrogate(options.surrogate, structure, seed)


def make_gaussian_process(encoder: SpaceEncoder, options: BayesOptOptions, seed: int) -> GaussianProcess:
    """Return the Gaussian process that options describe."""
    structure = InputStructure.of_space(encoder, options.transfer_learning_task_attr)
    gp_options = GPOptions(
        preset=options.preset,
        kernel=options.gp_base_kernel,
        categorical_kernel=options.categorical_kernel,
        transfer_kernel=options.transfer_learning_model,
        input_warping=options.input_warping,
        target_transform=options.target_transform,
        num_starts=options.opt_nstarts,
        max_iterations=options.opt_maxiter,
        warm_start=options.opt_warmstart,
        verbose=options.opt_verbose,
    )
    if options.mcmc_samples:
        return BayesianGaussianProcess(structure, gp_options, seed, options.mcmc_samples)
    return GaussianProcess(structure, gp_options, seed)


def predict(model: Model, surrogate: Surrogate, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return predicted targets and their deviations in raw units, shapes (n,), at points of shape (n, d).

    The mean is the median where targets are transformed; the deviation is half the distance of the targets one
    deviation above and below.
    """
    with torch.no_grad():
        mean, variance = marginals(model, X)
        if mean.dim() > 1:  # a mixture
            variance = variance.mean(0) + mean.var(0, correction=0)
            mean = mean.mean(0)
        std = variance.sqrt()
        inverse = surrogate.transform.inverse
        return inverse(mean), 0.5 * (inverse(mean + std) - inverse(mean - std))


def independent_draws(model: Model, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a score: minus a draw from the marginal posterior at each point, averaged over fantasies."""

    def score(X: Tensor) -> Tensor:
        mean, variance = marginals(model, X)
        std = variance.sqrt()
        if mean.dim() > 1:
            mean, std = mean.mean(0), std.mean(0)
        return -(mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype))

    return score


@contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """Run torch on one thread while there are few observations, and restore the number of threads."""
    if n >= _FEW_OBSERVATIONS:
        yield
        return
    with single_threaded_torch():
        yield
