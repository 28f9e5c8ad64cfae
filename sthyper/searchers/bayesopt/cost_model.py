"""Models of what trials cost, fitted to what a searcher knows. This module needs torch."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from sthyper.acquisition.cost import ExpectedImprovementPerCost
from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt.suggest import make_gaussian_process
from sthyper.surrogates.cost import CostObservation, CostSurrogate
from sthyper.surrogates.data_cap import cap_size
from sthyper.surrogates.marginals import marginals
from sthyper.surrogates.refit import SkipPeriodically

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.cost import CostAwareOptions

__all__ = ["CoarseCostLearner", "CostData", "CostLearner", "FineCostLearner", "KnownCost", "make_cost_learner"]

_LEAST = 0.1
"""Predictions are at least so much of the least observed cost."""


@dataclass(frozen=True)
class CostData:
    """What a cost model learns from.

    Args:
        entries: For each trial with a cost: configuration, point, shape (d,), target (infinite if there is none) and
            costs by resource.
        resource: Where costs are to be predicted.
        revision: Changes whenever the data do.
    """

    entries: list[tuple[dict[str, Any], Tensor, float, dict[int, float]]]
    resource: int
    revision: int

    def kept(self, max_size: int | None, top_fraction: float, generator: torch.Generator) -> CostData:
        """Return the data of trials that a cap on their number leaves: the best ones and random others."""
        targets = torch.tensor([target for _, _, target, _ in self.entries], dtype=torch.float64)
        positions = cap_size(targets, max_size, top_fraction, generator).tolist()
        return CostData([self.entries[i] for i in positions], self.resource, self.revision)


@dataclass(frozen=True)
class KnownCost:
    """A fitted model of the cost.

    Args:
        model: BoTorch model with one output.
        least: Lower bound of costs, positive.
        inverse: Maps outputs of the model to logarithms of costs; ``None`` if they are costs.
    """

    model: Model
    least: float
    inverse: Callable[[Tensor], Tensor] | None = None

    def per_cost(self, acquisition: AcquisitionFunction, exponent: float) -> ExpectedImprovementPerCost:
        """Return an expected improvement per unit cost.

        Args:
            acquisition: The expected improvement, or its logarithm.
            exponent: Power of the cost.
        """
        assert isinstance(acquisition, LogExpectedImprovement | ExpectedImprovement)
        best = acquisition.best_f
        assert isinstance(best, Tensor)
        return ExpectedImprovementPerCost(
            acquisition.model,
            self.model,
            best,
            exponent=exponent,
            jitter=acquisition.jitter,
            log=isinstance(acquisition, LogExpectedImprovement),
            log_cost=self.inverse is not None,
            cost_inverse=self.inverse,
            min_cost=self.least,
        )

    def predict(self, x: Tensor) -> float:
        """Return the predicted cost of a point, shape (d,)."""
        with torch.no_grad():
            mean = marginals(self.model, x.unsqueeze(0))[0].mean()
        cost = float(mean) if self.inverse is None else math.exp(float(self.inverse(mean)))
        return max(cost, self.least)


class CostLearner(ABC):
    """Fits a model of the cost.

    Args:
        options: Cap on the size of the data, and when parameters are fitted anew.
        seed: Seed of draws for the cap.
    """

    def __init__(self, options: CostAwareOptions, seed: int) -> None:
        self.options = options
        self._rule = SkipPeriodically(options.opt_skip_init_length, options.opt_skip_period)
        self._revision = -1  # of the data of the last fit
        self._generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def fit(self, data: CostData) -> KnownCost | None:
        """Return the model, ``None`` if no cost is known that it could learn from."""

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the last fit, by name."""
        return {}

    def _prepare(self, data: CostData) -> tuple[CostData, bool]:
        """Return the data that the cap leaves, and whether parameters are to be fitted anew."""
        size = sum(len(costs) for _, _, _, costs in data.entries)
        refit = data.revision != self._revision and self._rule.should_fit(size)
        self._revision = data.revision
        options = self.options
        return data.kept(options.max_size_data_for_model, options.max_size_top_fraction, self._generator), refit

    def state_dict(self) -> dict[str, Any]:
        """Return what the next fit starts from."""
        return {
            "rule": self._rule.state_dict(),
            "revision": self._revision,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._rule.load_state_dict(state["rule"])
        self._revision = int(state["revision"])
        self._generator.set_state(state["generator"].cpu())


class CoarseCostLearner(CostLearner):
    """A Gaussian process of the logarithm of the cost at one resource.

    Costs are positive and differ by factors rather than by amounts, and so do their logarithms' predictions: they
    cannot be negative, and a few expensive trials do not set the scale.

    Args:
        encoder: Maps configurations to points.
        options: Kernel, warping and sizes of the fit.
        seed: Seed of fits and draws.
    """

    def __init__(self, encoder: SpaceEncoder, options: CostAwareOptions, seed: int) -> None:
        super().__init__(options, seed)
        of_costs = options.changed(
            target_transform="standardize",
            normalize_targets=True,
            boxcox_transform=False,
            mcmc_samples=0,
            surrogate=None,
        )
        self.surrogate = make_gaussian_process(encoder, of_costs, seed)

    def fit(self, data: CostData) -> KnownCost | None:
        entries = [entry for entry in data.entries if data.resource in entry[3]]
        if not entries:
            return None
        kept, refit = self._prepare(CostData(entries, data.resource, data.revision))
        X = torch.stack([point for _, point, _, _ in kept.entries])
        costs = torch.tensor([costs[data.resource] for _, _, _, costs in kept.entries], dtype=torch.float64)
        model = self.surrogate.fit(X, costs.log(), refit)
        return KnownCost(model, _LEAST * float(costs.min()), self.surrogate.transform.inverse)

    def parameters(self) -> dict[str, float]:
        return self.surrogate.parameters()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"surrogate": self.surrogate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.surrogate.load_state_dict(state["surrogate"])


class FineCostLearner(CostLearner):
    """The cost model of the options, fitted to the costs of all reports.

    Args:
        encoder: Maps configurations to points.
        options: The cost model, of which a copy is used, and sizes of the fit.
        seed: Seed of draws.
    """

    def __init__(self, encoder: SpaceEncoder, options: CostAwareOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.surrogate = CostSurrogate(copy.deepcopy(options.cost_model), encoder, 1, random_seed=seed)  # type: ignore[arg-type]
        self._fitted: list[CostObservation] = []

    def fit(self, data: CostData) -> KnownCost | None:
        if not data.entries:
            return None
        kept, refit = self._prepare(data)
        self.surrogate.set_fixed_resource(data.resource)
        if refit or not self._fitted:
            observations = [
                CostObservation(config, resource, cost)
                for config, _, _, costs in kept.entries
                for resource, cost in sorted(costs.items())
            ]
            self._fit(observations)
        least = min(observation.cost for observation in self._fitted)
        return KnownCost(self.surrogate.model(), _LEAST * least)

    def _fit(self, observations: list[CostObservation]) -> None:
        self.surrogate.fit(observations)
        self._fitted = observations

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "surrogate": self.surrogate.state_dict(),
            "fitted": [[dict(o.config), o.resource, o.cost] for o in self._fitted],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.surrogate.load_state_dict(state["surrogate"])
        self._fitted = []
        if state["fitted"]:  # a fit to the same data is the same fit
            self._fit([CostObservation(config, resource, cost) for config, resource, cost in state["fitted"]])


def make_cost_learner(encoder: SpaceEncoder, options: CostAwareOptions, seed: int) -> CostLearner:
    """Return what fits the cost model that the options describe."""
    learner = CoarseCostLearner if options.cost_model is None else FineCostLearner
    return learner(encoder, options, seed)
