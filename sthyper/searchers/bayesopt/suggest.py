"""Model-based suggestions: fit, acquisition function, optimisation. This module needs torch; the searcher does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.optimize import Candidate, OptimizerOptions, optimize_acquisition, rank_candidates
from sthyper.acquisition.space import MixedSpace
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt.acquire import acquire
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.inputs import InputStructure

__all__ = ["Found", "ModelSuggester", "SurrogateData", "Wrapper"]

logger = logging.getLogger(__name__)

Wrapper = Callable[[AcquisitionFunction], AcquisitionFunction]

_FEW_OBSERVATIONS = 500
"""Below so many, threads of matrix products cost more than they bring."""
_NUM_INCUMBENTS = 5


@dataclass(frozen=True)
class SurrogateData:
    """What a suggestion is made from.

    Args:
        X: Points of observations, shape (n, d).
        Y: Targets, low is good, shape (n,).
        pending: Points of pending evaluations, shape (m, d).
        refit: Whether the parameters of the model are to be learned anew.
    """

    X: Tensor
    Y: Tensor
    pending: Tensor
    refit: bool = True


@dataclass(frozen=True)
class Found:
    """A suggestion.

    Args:
        config: The configuration.
        candidate: What the search found.
        mean: Predicted target.
        std: Its deviation.
        incumbent: What was to be improved on.
        feasibility: Probability that all constraints hold, ``None`` without any.
    """

    config: dict[str, Any]
    candidate: Candidate
    mean: float
    std: float
    incumbent: float | None
    feasibility: float | None = None


class ModelSuggester:
    """Fits the surrogate and optimises the acquisition function.

    Args:
        encoder: Maps configurations to points.
        options: The options.
        seed: Seed of all draws.
        surrogate: The surrogate; a Gaussian process if ``None``.
    """

    def __init__(
        self, encoder: SpaceEncoder, options: BayesOptOptions, seed: int, surrogate: Surrogate | None = None
    ) -> None:
        self.encoder = encoder
        self.options = options
        self.space = MixedSpace(encoder, options.canonicalize)
        self.generator = torch.Generator().manual_seed(seed)
        self.surrogate = make_gaussian_process(encoder, options, seed) if surrogate is None else surrogate
        self._search = OptimizerOptions(
            num_candidates=options.num_init_candidates,
            num_local_candidates=options.num_local_candidates,
            num_starts=options.local_search_starts,
            max_iterations=0 if options.skip_local_optimization else 15,
            max_rounds=0 if options.skip_local_optimization else 4,
        )

    def fit(self, data: SurrogateData) -> Model:
        """Return the model of the observations."""
        return self.surrogate.fit(data.X, data.Y, data.refit)

    def suggest(
        self,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None = None,
        wrap: Wrapper | None = None,
    ) -> Found | None:
        """Return the best configuration that may be suggested, ``None`` if there is none among those looked at.

        Args:
            data: Observations and pending evaluations, at least one observation.
            allowed: Whether a configuration may be suggested.
            restricted: Configurations to choose from; ``None`` for the whole space.
            wrap: Makes the acquisition function that is optimised from that of the targets.
        """
        with limited_threads(len(data.Y)):
            model = self.fit(data)
            acquisition, best = acquire(
                model, self.surrogate.transform, data.X, data.Y, data.pending, self.options, self.generator
            )
            if wrap is not None:
                acquisition = wrap(acquisition)
            candidates = self._candidates(acquisition, model, data, allowed, restricted)
            for candidate in candidates:
                config = self.space.config(candidate.x)
                if allowed(config):
                    return self._found(config, candidate, model, best)
        return None

    def _candidates(
        self,
        acquisition: AcquisitionFunction,
        model: Model,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None,
    ) -> Iterator[Candidate]:
        score = None
        if self.options.initial_scoring == "thompson_indep":
            score = independent_draws(model, self.generator)
        if restricted is not None:
            X = self.space.points(list(restricted))
            ranked = rank_candidates(acquisition, X, score)
            for i in ranked.order.tolist():
                yield Candidate(X[i], float(ranked.values[i]), "global")
            return
        incumbents = data.X[torch.argsort(data.Y, stable=True)[:_NUM_INCUMBENTS]]
        yield from optimize_acquisition(
            acquisition,
            self.space,
            self.space.snap(incumbents),
            self.generator,
            self._search,
            score,
            lambda x: allowed(self.space.config(x)),
        )

    def _found(self, config: dict[str, Any], candidate: Candidate, model: Model, best: float | None) -> Found:
        mean, std = predict(model, self.surrogate, candidate.x.unsqueeze(0))
        return Found(config, candidate, float(mean), float(std), best)

    def state_dict(self) -> dict[str, Any]:
        """Return generator and surrogate."""
        return {"generator": self.generator.get_state(), "surrogate": self.surrogate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.surrogate.load_state_dict(state["surrogate"])


def make_gaussian_process(encoder: SpaceEncoder, options: BayesOptOptions, seed: int) -> Surrogate:
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
    return GaussianProcess(structure, gp_options, seed)


def predict(model: Model, surrogate: Surrogate, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return predicted targets and their deviations in raw units, shapes (n,), at points of shape (n, d).

    The mean is the median where targets are transformed; the deviation is half the distance of the targets one
    deviation above and below.
    """
    with torch.no_grad():
        posterior = model.posterior(X.unsqueeze(-2))
        mean = posterior.mean.squeeze(-1).squeeze(-1)
        variance = posterior.variance.squeeze(-1).squeeze(-1)
        if mean.dim() > 1:  # a mixture
            variance = variance.mean(0) + mean.var(0, correction=0)
            mean = mean.mean(0)
        std = variance.clamp_min(0.0).sqrt()
        inverse = surrogate.transform.inverse
        return inverse(mean), 0.5 * (inverse(mean + std) - inverse(mean - std))


def independent_draws(model: Model, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a score: minus a draw from the marginal posterior at each point, averaged over fantasies."""

    def score(X: Tensor) -> Tensor:
        posterior = model.posterior(X.unsqueeze(-2))
        mean = posterior.mean.squeeze(-1).squeeze(-1)
        std = posterior.variance.squeeze(-1).squeeze(-1).clamp_min(0.0).sqrt()
        if mean.dim() > 1:
            mean, std = mean.mean(0), std.mean(0)
        return -(mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype))

    return score


@contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """Run torch on one thread while there are few observations, and restore the number of threads."""
    threads = torch.get_num_threads()
    if threads == 1 or n >= _FEW_OBSERVATIONS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
