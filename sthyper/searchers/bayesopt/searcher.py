"""Bayesian optimisation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sthyper.config_space import config_to_match_string
from sthyper.errors import ConfigSpaceError
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.bayesopt.data import Observations, TrialData
from sthyper.searchers.bayesopt.options import BayesOptOptions, reward_constant
from sthyper.searchers.bayesopt.reasons import SuggestionReason
from sthyper.searchers.random import RandomSearcher
from sthyper.trial import normalize_trial_id

if TYPE_CHECKING:
    from torch import Tensor

    from sthyper.encoding import SpaceEncoder
    from sthyper.searchers.bayesopt.suggest import Found, ModelSuggester, SurrogateData, Wrapper

__all__ = ["BayesianOptimizationSearcher"]

logger = logging.getLogger(__name__)


class BayesianOptimizationSearcher(BaseSearcher):
    """Suggests the maximum of an acquisition function of a model of all results so far.

    The first configurations are ``points_to_evaluate`` and draws of random search, the same ones as
    :class:`~sthyper.searchers.RandomSearcher` draws with the same seed. With a scheduler that has rungs the model is
    of the highest level that has enough results.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        options: The options.

    Raises:
        ConfigSpaceError: If the space, or a configuration that is given, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown.

    References:
        Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012
    """

    slow = True

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        options: BayesOptOptions | None = None,
    ) -> None:
        super().__init__(config_space, metric, mode, points_to_evaluate)
        options = BayesOptOptions() if options is None else options
        if not isinstance(options, BayesOptOptions):
            raise TypeError(f"options must be BayesOptOptions(...), got {options!r}")
        self.options = options
        self.random_seed = options.random_seed
        # Draws the first configurations, and those for which the model cannot be used.
        self._random = RandomSearcher(
            config_space,
            metric,
            mode,
            points_to_evaluate,
            random_seed=options.random_seed,
            allow_duplicates=options.allow_duplicates,
            restrict_configurations=options.restrict_configurations,
        )
        self._points_to_evaluate = self._random._points_to_evaluate
        self._observations = Observations(self._match)
        self._resource_attr: str | None = None
        self._suggester: ModelSuggester | None = None
        self._saved_suggester: dict[str, Any] | None = None
        self._points: dict[int, Tensor | None] = {}  # trial -> its point, None if it cannot be encoded
        self._fitted_size = -1
        self._warned: set[str] = set()
        self.cumulative_get_config_time = 0.0
        self.last_reason: SuggestionReason | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        if self.random_seed is None:
            self.random_seed = context.random_seed
        self._random.configure(context)
        self._resource_attr = context.resource_attr

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        number = normalize_trial_id(trial_id)
        began = time.perf_counter()
        config, reason = self._choose(number)
        seconds = time.perf_counter() - began
        self.cumulative_get_config_time += seconds
        self.last_reason = reason
        if config is None:
            return None
        self._observations.exclude(config)
        if self.options.debug_log:
            logger.info("trial %d: suggested %s: %s", number, config, reason)
        return dict(config)

    def _choose(self, number: int) -> tuple[dict[str, Any] | None, SuggestionReason]:
        if self._random._points_to_evaluate:
            config = self._random._next_initial()
            if config is not None:
                self._random.register_pending(number, config)
                return config, SuggestionReason(number, "initial", "one of points_to_evaluate")
        level = self._observations.level(max(self.options.num_init_random, 1))
        if self._observations.num_configs() < self.options.num_init_random:
            return self._random.get_config(number), SuggestionReason(number, "initial", "random")
        if level is None:
            return self._draw(number, "there is no result yet")
        data = self._data(level)
        if not len(data.Y):
            return self._draw(number, "no result can be used by the model")
        try:
            found = self._by_model(data)
        except (ValueError, RuntimeError) as error:
            self._warn_once(f"the model cannot be used, configurations are drawn at random: {error}")
            return self._draw(number, str(error))
        if found is None:
            return self._draw(number, "everything that the model proposes is known")
        self._random.register_pending(number, found.config)
        return found.config, self._reason(number, found, data)

    def _draw(self, number: int, why: str) -> tuple[dict[str, Any] | None, SuggestionReason]:
        return self._random.get_config(number), SuggestionReason(number, "random", why)

    def _by_model(self, data: SurrogateData) -> Found | None:
        excluded = self._observations.excluded(self.options.allow_duplicates)
        restricted = self._random.remaining() if self.options.restrict_configurations is not None else None
        if restricted is not None and not restricted:
            return None
        return self.suggester.suggest(data, lambda config: not excluded(config), restricted, self._wrapper(data))

    def _wrapper(self, data: SurrogateData) -> Wrapper | None:
        """Return what makes the acquisition function that is optimised from that of the targets; for subclasses."""
        return None

    def _reason(self, number: int, found: Found, data: SurrogateData) -> SuggestionReason:
        sign = self._from_target
        return SuggestionReason(
            number,
            "model",
            num_observations=len(data.Y),
            num_pending=len(data.pending),
            incumbent=None if found.incumbent is None else sign(found.incumbent),
            acquisition=found.candidate.value,
            mean=sign(found.mean),
            std=found.std,
            origin=found.candidate.origin,
            feasibility=found.feasibility,
        )

    # ---- the model -----------------------------------------------------------------------------------

    @property
    def encoder(self) -> SpaceEncoder:
        """Maps configurations to the points of the model."""
        return self.suggester.encoder

    @property
    def suggester(self) -> ModelSuggester:
        """Fits the model and searches; made when it is needed first."""
        if self._suggester is None:
            import numpy as np

            from sthyper.encoding import SpaceEncoder
            from sthyper.searchers.bayesopt.suggest import ModelSuggester

            seed = 0 if self.random_seed is None else self.random_seed
            own = int(np.random.SeedSequence([seed, 2]).generate_state(1)[0])
            self._suggester = ModelSuggester(SpaceEncoder(self.config_space), self.options, own)
            if self._saved_suggester is not None:
                self._suggester.load_state_dict(self._saved_suggester)
                self._saved_suggester = None
        return self._suggester

    def _data(self, level: int) -> SurrogateData:
        import torch

        from sthyper.searchers.bayesopt.suggest import SurrogateData

        points, values = [], []
        for trial_id, trial, value in self._observations.at_level(level):
            point = self._point(trial_id, trial.config)
            if point is not None:
                points.append(point)
                values.append(value)
        waiting = [
            point
            for trial_id, config in self._observations.pending.items()
            if (point := self._point(trial_id, config)) is not None
        ]
        dim = self.encoder.ndarray_size
        X = torch.stack(points) if points else torch.empty(0, dim, dtype=torch.float64)
        pending = torch.stack(waiting) if waiting else torch.empty(0, dim, dtype=torch.float64)
        Y = torch.tensor(values, dtype=torch.float64)
        size = self._observations.num_values()
        refit = size != self._fitted_size
        self._fitted_size = size
        return SurrogateData(X, Y, pending, refit)

    def _point(self, trial_id: int, config: dict[str, Any]) -> Tensor | None:
        if trial_id not in self._points:
            try:
                self._points[trial_id] = self.suggester.space.points([config])[0]
            except ConfigSpaceError as error:
                self._warn_once(f"the result of trial {trial_id} is passed over, its configuration is none: {error}")
                self._points[trial_id] = None
        return self._points[trial_id]

    # ---- targets -------------------------------------------------------------------------------------

    def _to_target(self, value: float) -> float:
        """Return what is minimised."""
        reward = self.options.map_reward
        if callable(reward):
            return float(reward(value)) if self.mode == "max" else value
        return value if self.mode == "min" else reward_constant(reward or "1_minus_x") - value

    def _from_target(self, target: float) -> float:
        """Return the metric; for a callable ``map_reward`` the target itself."""
        reward = self.options.map_reward
        if self.mode == "min" or callable(reward):
            return target
        return reward_constant(reward or "1_minus_x") - target

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        number = normalize_trial_id(trial_id, foreign=True)
        self._random.on_trial_result(number, config, result, False)
        self._observations.exclude(config)
        if not update:
            return
        resource = self._resource(result)
        self._observations.drop_pending(number)
        trial = self._observations.add(number, config)
        value = result.get(self.metric or "")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._warn_once(f"trial {number} reports no number {self.metric!r}; the model passes over such results")
            return
        if not math.isfinite(value):
            self._warn_once(f"trial {number} reports {self.metric}={value}; the model passes over such results")
            return
        self._learn(trial, resource, self._to_target(float(value)), result)

    def _learn(self, trial: TrialData, resource: int, target: float, result: dict[str, Any]) -> None:
        """Enter a finite target; subclasses enter more."""
        trial.values[resource] = target

    def _resource(self, result: dict[str, Any]) -> int:
        value = result.get(self._resource_attr) if self._resource_attr is not None else None
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        if config is None:
            return
        number = normalize_trial_id(trial_id, foreign=True)
        self._random.register_pending(number, config)
        self._observations.set_pending(number, config)

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        self._observations.forget(normalize_trial_id(trial_id, foreign=True), resource)
        self._fitted_size = -1

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        number = normalize_trial_id(trial_id, foreign=True)
        self._random.evaluation_failed(number, config, blacklist)
        self._observations.set_failed(number, config, blacklist)

    def cleanup_pending(self, trial_id: int | str) -> None:
        self._observations.drop_pending(normalize_trial_id(trial_id, foreign=True))

    # ---- description ---------------------------------------------------------------------------------

    def dataset_size(self) -> int:
        return self._observations.num_values()

    def model_parameters(self) -> dict[str, Any]:
        if self._suggester is None and self._saved_suggester is None:
            return {}
        return dict(self.suggester.surrogate.parameters())

    def next_initial_config(self) -> dict[str, Any] | None:
        return self._random.next_initial_config()

    def _match(self, config: dict[str, Any]) -> str:
        canonicalize: Callable[[dict[str, Any]], dict[str, Any]] | None = self.options.canonicalize
        if canonicalize is not None:
            config = canonicalize(dict(config))
        return config_to_match_string(config, self.config_space)

    def _warn_once(self, message: str) -> None:
        kind = message.split(":")[0].split(" reports ")[-1][:40]
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        suggester = self._saved_suggester
        if self._suggester is not None:
            suggester = self._suggester.state_dict()
        return {
            "points_to_evaluate": [],  # those of random search
            "random_seed": self.random_seed,
            "random": self._random.state_dict(),
            "observations": self._observations.state_dict(),
            "suggester": suggester,
            "fitted_size": self._fitted_size,
            "cumulative_get_config_time": self.cumulative_get_config_time,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random_seed = state["random_seed"]
        self._random.load_state_dict(state["random"])
        self._points_to_evaluate = self._random._points_to_evaluate
        self._observations.load_state_dict(state["observations"])
        self._saved_suggester, self._suggester, self._points = state["suggester"], None, {}
        self._fitted_size = state["fitted_size"]
        self.cumulative_get_config_time = state["cumulative_get_config_time"]
