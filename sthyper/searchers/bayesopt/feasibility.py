"""Which configurations are feasible: models of constrained metrics and of failures.

This module needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from torch import Tensor

from sthyper.acquisition.constrained import (
    ConstrainedAcquisition,
    ModelledConstraint,
    log_feasibility,
    value_form,
)
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint, metric_at
from sthyper.searchers.bayesopt.data import Observations
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.surrogates.base import Surrogate
from sthyper.surrogates.classifier import ProbitClassifier
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.inputs import InputStructure

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.suggest import SurrogateData

__all__ = ["Feasibility", "FeasibilityData", "FeasibilityModel", "collect_feasibility"]

_CAUTION = 20.0
"""Below 1/2 the probability that a trial does not fail is nearly a bound, in the manner of a chance constraint. Often
the best configurations are the largest that still fit into memory; with less caution most trials there would fail."""
_SOFT = 0.1
"""Temperature of soft improvements, in standard deviations of the targets."""


@dataclass(frozen=True)
class FeasibilityData:
    """What feasibility is learned from.

    Args:
        metrics: Constrained metric -> points, shape (n, d), and values, shape (n,), NaN left out.
        X: Points of all trials that have succeeded or failed by themselves, shape (m, d).
        success: Whether they have, shape (m,); without failures nothing is modelled.
        observed: For each observation of the target 1 if it is feasible, 0 if not, NaN if it is not known.
    """

    metrics: dict[str, tuple[Tensor, Tensor]]
    X: Tensor
    success: Tensor
    observed: Tensor


def collect_feasibility(
    observations: Observations,
    constraints: Sequence[OutcomeConstraint],
    learn_failures: bool,
    point: Callable[[int, dict[str, Any]], Tensor | None],
    dim: int,
    level: float = float("inf"),
    observed: Sequence[float] = (),
) -> FeasibilityData:
    """Return what feasibility is learned from.

    Args:
        observations: All trials.
        constraints: The constraints.
        learn_failures: Whether failures are learned from.
        point: Returns the point of a trial, ``None`` if it cannot be encoded.
        dim: Number of columns of points.
        level: Highest resource whose metrics count.
        observed: What is known of each observation of the target; see
            :func:`~sthyper.searchers.bayesopt.constraints.known_feasibility`.
    """
    names = dict.fromkeys(constraint.metric for constraint in constraints)
    found: dict[str, list[tuple[Tensor, float]]] = {name: [] for name in names}
    ended: list[tuple[Tensor, bool]] = []
    for trial_id, trial in observations.trials.items():
        x = point(trial_id, trial.config)
        if x is None:
            continue
        if learn_failures and (trial.failed or trial.values):
            ended.append((x, not trial.failed))
        for name in names:
            value = metric_at(trial, name, level)
            if value is not None:
                found[name].append((x, value))
    empty = torch.empty(0, dim, dtype=torch.float64)
    metrics = {
        name: (torch.stack([x for x, _ in items]), torch.tensor([v for _, v in items], dtype=torch.float64))
        for name, items in found.items()
        if items
    }
    return FeasibilityData(
        metrics,
        torch.stack([x for x, _ in ended]) if ended else empty,
        torch.tensor([success for _, success in ended], dtype=torch.bool),
        torch.tensor(list(observed), dtype=torch.float64),
    )


class Feasibility:
    """The probability that a configuration is feasible.

    Args:
        constraints: The modelled constraints, at least one.
        weights: Weight of each fantasy of their models; see :func:`~sthyper.acquisition.constrained.log_feasibility`.
    """

    def __init__(self, constraints: Sequence[ModelledConstraint], weights: Tensor | None = None) -> None:
        self.constraints = list(constraints)
        self.weights = weights

    def log_probability(self, X: Tensor) -> Tensor:
        """Return its logarithm, shape (n,), at points of shape (n, d)."""
        return log_feasibility(self.constraints, X.unsqueeze(-2), self.weights)

    def probability(self, X: Tensor) -> Tensor:
        """Return it, shape (n,), at points of shape (n, d), without gradients."""
        with torch.no_grad():
            return self.log_probability(X).exp()

    def feasible(self, observed: Tensor, X: Tensor) -> Tensor:
        """Return which points count as feasible, bool, shape (n,): as observed, else those that probably are.

        Args:
            observed: 1, 0 or NaN for the first of the points; the others are not observed. Shape (m,), m <= n.
            X: The points, shape (n, d).
        """
        known = torch.full((len(X),), float("nan"), dtype=torch.float64)
        known[: len(observed)] = observed
        if bool(known.isnan().any()):
            known = torch.where(known.isnan(), (self.probability(X) >= 0.5).to(known), known)
        return known > 0.5

    def if_infeasible(self, pending: Tensor, num_samples: int, generator: torch.Generator) -> Feasibility:
        """Return the probability given that none of the pending evaluations keeps the constraints.

        While nothing feasible is known, several workers would all go to the same most probable point; what a further
        evaluation is good for are the cases in which the pending ones fail.

        Args:
            pending: Their points, shape (m, d).
            num_samples: Number of fantasies of their metrics, among which those cases are.
            generator: Source of the fantasies.
        """
        models = [constraint.model for constraint in self.constraints]
        if not len(pending) or not any(isinstance(model, GPModel) for model in models):
            return self
        fantasised, kept = [], torch.ones(num_samples, len(pending), dtype=torch.bool)
        for constraint in self.constraints:
            if isinstance(constraint.model, GPModel):
                constraint = replace(
                    constraint, model=constraint.model.fantasize_pending(pending, num_samples, generator)
                )
                assert isinstance(constraint.model, GPModel)
                kept &= constraint.holds(constraint.model.targets[..., -len(pending) :])
            fantasised.append(constraint)
        weights = (~kept.any(-1)).double()
        return Feasibility(fantasised, weights) if bool(weights.any()) else self

    def nearest(self, data: SurrogateData) -> SurrogateData:
        """Return data that rank what was observed by the probability that it is feasible, to search around."""
        assert data.feasibility is not None
        points = [data.X, *(X for X, _ in data.feasibility.metrics.values()), data.feasibility.X]
        X = torch.unique(torch.cat(points), dim=0)
        with torch.no_grad():
            return replace(data, X=X, Y=-self.log_probability(X), active=None)

    def constrain(
        self, acquisition: AcquisitionFunction | None, best: Tensor | None = None, spread: float = 1.0
    ) -> ConstrainedAcquisition:
        """Return an acquisition function under the constraints.

        Args:
            acquisition: That of the target; ``None`` where nothing feasible is known.
            best: The incumbent, in the units of the model of the target.
            spread: Standard deviation of the targets, in the same units.
        """
        log = acquisition is None or value_form(acquisition) != "non-negative"
        reference = None if best is None else -best
        return ConstrainedAcquisition(
            acquisition, self.constraints, log, reference, max(_SOFT * spread, 1e-9), self.weights
        )


class FeasibilityModel:
    """Learns feasibility: a Gaussian process of each constrained metric, and a classifier of failures.

    Args:
        encoder: Maps configurations to points.
        constraints: The constraints.
        seed: Seed of the fits.
        options: Kernel, warping and sizes of the fits; the defaults if ``None``.
    """

    def __init__(
        self,
        encoder: SpaceEncoder,
        constraints: Sequence[OutcomeConstraint],
        seed: int,
        options: BayesOptOptions | None = None,
    ) -> None:
        options = BayesOptOptions() if options is None else options
        self.encoder = encoder
        structure = InputStructure.of_space(encoder, options.transfer_learning_task_attr)
        self._bounds: dict[str, tuple[float | None, float | None]] = {}
        for constraint in constraints:
            lower, upper = self._bounds.get(constraint.metric, (None, None))
            if constraint.lower is not None:
                lower = constraint.lower if lower is None else max(lower, constraint.lower)
            if constraint.upper is not None:
                upper = constraint.upper if upper is None else min(upper, constraint.upper)
            self._bounds[constraint.metric] = lower, upper
        gp_options = GPOptions(
            preset=options.preset,
            kernel=options.gp_base_kernel,
            categorical_kernel=options.categorical_kernel,
            transfer_kernel=options.transfer_learning_model,
            input_warping=options.input_warping,
            target_transform="standardize",
            num_starts=options.opt_nstarts,
            max_iterations=options.opt_maxiter,
            warm_start=options.opt_warmstart,
            verbose=options.opt_verbose,
        )
        self._surrogates: dict[str, Surrogate] = {
            name: GaussianProcess(structure, gp_options, seed + 1 + number) for number, name in enumerate(self._bounds)
        }
        self._classifier = ProbitClassifier(structure, seed)
        # Size of the data of the last fit of each surrogate, "" is the classifier's.
        self._sizes: dict[str, int] = {}

    def fit(self, data: FeasibilityData) -> Feasibility | None:
        """Return what is learned, ``None`` if there are neither values of constrained metrics nor failures."""
        terms = []
        for name, (X, values) in data.metrics.items():
            surrogate = self._surrogates[name]
            model = surrogate.fit(X, self._finite(name, values), self._has_grown(name, len(values)))
            lower, upper = (
                None if bound is None else float(surrogate.transform.forward(torch.tensor(bound, dtype=torch.float64)))
                for bound in self._bounds[name]
            )
            terms.append(ModelledConstraint(model, lower, upper))
        if len(data.success) and not bool(data.success.all()):
            classifier = self._classifier.fit(data.X, data.success, self._has_grown("", len(data.success)))
            terms.append(ModelledConstraint(classifier, lower=0.0, noise=1.0, caution=_CAUTION))
        return Feasibility(terms) if terms else None

    def _has_grown(self, name: str, size: int) -> bool:
        changed = self._sizes.get(name) != size
        self._sizes[name] = size
        return changed

    def _finite(self, name: str, values: Tensor) -> Tensor:
        """Return values with infinite ones at the end of the range that the others and the bounds span."""
        if bool(values.isfinite().all()):
            return values
        bounds = torch.tensor([b for b in self._bounds[name] if b is not None], dtype=torch.float64)
        known = torch.cat([values[values.isfinite()], bounds])
        margin = float((known.max() - known.min()).clamp_min(1e-3 * max(1.0, float(bounds.abs().max()))))
        return values.clamp(float(known.min()) - margin, float(known.max()) + margin)

    def parameters(self) -> dict[str, float]:
        """Return the parameters of all fits: ``<metric>.<name>`` and ``failure.<name>``."""
        result = {
            f"{metric}.{name}": value
            for metric, surrogate in self._surrogates.items()
            for name, value in surrogate.parameters().items()
        }
        return result | {f"failure.{name}": value for name, value in self._classifier.parameters().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next fits start from."""
        return {
            "surrogates": {name: surrogate.state_dict() for name, surrogate in self._surrogates.items()},
            "classifier": self._classifier.state_dict(),
            "sizes": dict(self._sizes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, surrogate in self._surrogates.items():
            surrogate.load_state_dict(state["surrogates"][name])
        self._classifier.load_state_dict(state["classifier"])
        self._sizes = {name: int(size) for name, size in state["sizes"].items()}
