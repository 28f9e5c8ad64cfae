"""Feasibility for any searcher: of several proposals, one that is likely to be feasible."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sthyper.config_space import config_to_match_string
from sthyper.errors import ConfigSpaceError
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.bayesopt.constraints import MetricRecorder, parse_constraints
from sthyper.searchers.bayesopt.data import Observations
from sthyper.trial import normalize_trial_id

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sthyper.searchers.bayesopt.feasibility import Feasibility, FeasibilityModel
    from sthyper.searchers.multifidelity import BracketDistribution, RungSnapshot

__all__ = ["FeasibilitySearcher"]

_MOST_KEPT = 10_000


class FeasibilitySearcher(BaseSearcher):
    """Makes another searcher avoid configurations that break constraints or fail.

    The other searcher is asked for proposals, one after the other. Each is taken with its probability of being
    feasible; if ``num_draws`` of them are refused, the most feasible of all refused ones is taken. Refused proposals
    are kept, and suggested when the other searcher has no more, so that a finite space or a grid is still used up. (At
    most 10 000 are kept, the more feasible ones.) Until something is known of feasibility, and for
    ``points_to_evaluate``, the first proposal is taken.

    Args:
        searcher: The other searcher. It may not be used elsewhere.
        outcome_constraints: Conditions on reported metrics, such as ``["memory <= 8e9"]``. Each metric is modelled by
            a Gaussian process of its own.
        learn_feasibility: Whether to learn from trials that failed by themselves, those out of memory too.
        num_draws: Largest number of proposals for a suggestion, at least 1.
        random_seed: Seed of the decisions; the scheduler's if ``None``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a constraint cannot be parsed, ``num_draws`` is below 1, or there is nothing to learn.
    """

    slow = True  # it fits models

    def __init__(
        self,
        searcher: BaseSearcher,
        outcome_constraints: list[str] | None = None,
        learn_feasibility: bool = False,
        num_draws: int = 20,
        random_seed: int | None = None,
    ) -> None:
        if not isinstance(searcher, BaseSearcher):
            raise TypeError(f"searcher must be a BaseSearcher, got {searcher!r}")
        if not isinstance(learn_feasibility, bool):
            raise TypeError(f"learn_feasibility must be True or False, got {learn_feasibility!r}")
        for name, value, least in (("num_draws", num_draws, 1), ("random_seed", random_seed, 0)):
            if name == "random_seed" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
        self._constraints = parse_constraints(outcome_constraints)
        if not self._constraints and not learn_feasibility:
            raise ValueError("outcome_constraints is empty and learn_feasibility=False: there is nothing to learn")
        super().__init__(searcher.config_space, searcher.metric, searcher.mode, [])
        self.searcher = searcher
        self.learn_feasibility = learn_feasibility
        self.num_draws = num_draws
        self.random_seed = random_seed
        self.required_metrics = searcher.required_metrics
        self.constraints = tuple(dict.fromkeys((*self._constraints, *searcher.constraints)))
        self._observations = Observations(self._match)
        self._recorder = MetricRecorder(self._constraints)
        self._kept: dict[str, dict[str, Any]] = {}  # refused proposals by their match strings, the oldest first
        self._generator: np.random.Generator | None = None
        self._model: FeasibilityModel | None = None
        self._saved_model: dict[str, Any] | None = None
        self._points: dict[int, Tensor | None] = {}  # trial -> its point, None if it cannot be encoded
        self._resource_attr: str | None = None
        self.last_feasibility: float | None = None
        """Probability that the last suggestion is feasible, ``None`` if nothing was known."""

    @property
    def bracket_distribution(self) -> BracketDistribution | None:  # type: ignore[override]
        """That of the other searcher."""
        return self.searcher.bracket_distribution

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self.searcher.configure(context)
        self._resource_attr = context.resource_attr
        if self.random_seed is None:
            self.random_seed = context.random_seed

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        if not self._knows_something():
            return self._proposed(trial_id)
        from sthyper.searchers.bayesopt.suggest import limited_threads

        with limited_threads(len(self._observations.trials)):
            return self._choose(trial_id)

    def _proposed(self, trial_id: int | str) -> dict[str, Any] | None:
        """Return the next proposal, of the other searcher or kept."""
        self.last_feasibility = None
        proposal = self.searcher.get_config(trial_id)
        if proposal is not None:
            return dict(proposal)
        return self._kept.pop(next(iter(self._kept))) if self._kept else None

    def _choose(self, trial_id: int | str) -> dict[str, Any] | None:
        initial = len(self.searcher._points_to_evaluate)
        proposal = self.searcher.get_config(trial_id)
        self.last_feasibility = None
        if proposal is not None and len(self.searcher._points_to_evaluate) < initial:
            return dict(proposal)
        if proposal is None and not self._kept:
            return None
        feasibility = self._fit()
        if feasibility is None:
            return self._kept.pop(next(iter(self._kept))) if proposal is None else dict(proposal)
        for draw in range(self.num_draws):
            if draw:
                proposal = self.searcher.get_config(trial_id)
            if proposal is None:
                break
            probability = self._probabilities(feasibility, [proposal])[0]
            if self._random_generator().random() < probability:
                self.last_feasibility = probability
                return dict(proposal)
            self._kept[self._match(proposal)] = dict(proposal)
        return self._most_feasible(feasibility)

    def _most_feasible(self, feasibility: Feasibility) -> dict[str, Any]:
        """Take the best of the refused proposals."""
        matches = list(self._kept)
        probabilities = self._probabilities(feasibility, list(self._kept.values()))
        order = sorted(range(len(matches)), key=lambda i: -probabilities[i])
        if len(order) > _MOST_KEPT:
            for index in order[_MOST_KEPT:]:
                del self._kept[matches[index]]
        self.last_feasibility = probabilities[order[0]]
        return self._kept.pop(matches[order[0]])

    def _probabilities(self, feasibility: Feasibility, configs: list[dict[str, Any]]) -> list[float]:
        """Return probabilities that are not 0 even where they underflow, so that they can be compared."""
        import torch

        with torch.no_grad():
            logs = feasibility.log_probability(self.model.encoder.encode(configs))
        return [math.exp(max(value, -700.0)) for value in logs.tolist()]

    def _knows_something(self) -> bool:
        return any(
            trial.metrics or (trial.failed and self.learn_feasibility) for trial in self._observations.trials.values()
        )

    def _fit(self) -> Feasibility | None:
        from sthyper.searchers.bayesopt.feasibility import collect_feasibility

        return self.model.fit(
            collect_feasibility(
                self._observations,
                self._constraints,
                self.learn_feasibility,
                self._point,
                self.model.encoder.ndarray_size,
            )
        )

    @property
    def model(self) -> FeasibilityModel:
        """What is learned; made when it is needed first."""
        if self._model is None:
            import numpy as np

            from sthyper.encoding import SpaceEncoder
            from sthyper.searchers.bayesopt.feasibility import FeasibilityModel

            seed = int(np.random.SeedSequence([self.random_seed or 0, 3]).generate_state(1)[0])
            self._model = FeasibilityModel(SpaceEncoder(self.config_space), self._constraints, seed)
            if self._saved_model is not None:
                self._model.load_state_dict(self._saved_model)
                self._saved_model = None
        return self._model

    def _point(self, trial_id: int, config: dict[str, Any]) -> Tensor | None:
        if trial_id not in self._points:
            try:
                self._points[trial_id] = self.model.encoder.encode([config])[0]
            except ConfigSpaceError:  # of an experiment with another space
                self._points[trial_id] = None
        return self._points[trial_id]

    def _random_generator(self) -> np.random.Generator:
        if self._generator is None:
            import numpy as np

            self._generator = np.random.Generator(np.random.PCG64([self.random_seed or 0, 4]))
        return self._generator

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        self.searcher.on_trial_result(trial_id, config, result, update)
        self._kept.pop(self._match(config), None)
        if update:
            trial = self._observations.add(normalize_trial_id(trial_id, foreign=True), config)
            value = result.get(self._resource_attr) if self._resource_attr is not None else None
            resource = int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
            trial.values[resource] = 0.0  # that there was a result is what counts
            self._recorder.record(trial, resource, result)

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        self.searcher.register_pending(trial_id, config, milestone)
        if config is not None:
            self._kept.pop(self._match(config), None)

    def on_snapshot(self, snapshot: RungSnapshot) -> None:
        self.searcher.on_snapshot(snapshot)

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        self.searcher.remove_case(trial_id, resource)
        self._observations.forget(normalize_trial_id(trial_id, foreign=True), resource)

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        self.searcher.evaluation_failed(trial_id, config, blacklist)
        self._observations.set_failed(normalize_trial_id(trial_id, foreign=True), config, blacklist)
        if blacklist:
            self._kept.pop(self._match(config), None)

    def cleanup_pending(self, trial_id: int | str) -> None:
        self.searcher.cleanup_pending(trial_id)

    # ---- description ---------------------------------------------------------------------------------

    def dataset_size(self) -> int:
        return self.searcher.dataset_size()

    def model_parameters(self) -> dict[str, Any]:
        own = {} if self._model is None else self._model.parameters()
        return self.searcher.model_parameters() | own

    def next_initial_config(self) -> dict[str, Any] | None:
        return self.searcher.next_initial_config()

    def _match(self, config: dict[str, Any]) -> str:
        return config_to_match_string(config, self.config_space)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "points_to_evaluate": [],  # those of the other searcher
            "searcher": self.searcher.state_dict(),
            "random_seed": self.random_seed,
            "observations": self._observations.state_dict(),
            "kept": [dict(config) for config in self._kept.values()],
            "generator": None if self._generator is None else self._generator.bit_generator.state,
            "model": self._saved_model if self._model is None else self._model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.searcher.load_state_dict(state["searcher"])
        self.random_seed = state["random_seed"]
        self._observations.load_state_dict(state["observations"])
        self._kept = {self._match(config): dict(config) for config in state["kept"]}
        self._generator = None
        if state["generator"] is not None:
            self._random_generator().bit_generator.state = state["generator"]
        self._saved_model, self._model, self._points = state["model"], None, {}
