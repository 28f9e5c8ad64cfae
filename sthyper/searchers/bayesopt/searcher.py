"""Bayesian optimisation."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sthyper.config_space import config_to_match_string, impute_points_to_evaluate
from sthyper.errors import ConfigSpaceError
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt.canonical import CheckedCanonicalize, unreadable
from sthyper.searchers.bayesopt.constraints import MetricRecorder, known_feasibility
from sthyper.searchers.bayesopt.data import Observations, TrialData
from sthyper.searchers.bayesopt.draws import RandomDraws
from sthyper.searchers.bayesopt.knowledge import KnowledgeOfTrials
from sthyper.searchers.bayesopt.options import BayesOptOptions, reward_constant
from sthyper.searchers.bayesopt.past import PastEvaluations
from sthyper.searchers.bayesopt.reasons import SuggestionReason
from sthyper.searchers.bayesopt.transfer import ActiveTask
from sthyper.trial import normalize_trial_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sthyper.encoding import SpaceEncoder
    from sthyper.searchers.bayesopt.feasibility import FeasibilityData
    from sthyper.searchers.bayesopt.suggest import Found, ModelSuggester, SurrogateData, Wrapper

__all__ = ["BayesianOptimizationSearcher"]

logger = logging.getLogger(__name__)

_MAKING = threading.RLock()
"""Held while a model is made and loaded: a tuner suggests in a thread of its own. One for all searchers, which can then
be copied."""


class BayesianOptimizationSearcher(KnowledgeOfTrials):
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
        options = BayesOptOptions() if options is None else options
        if not isinstance(options, BayesOptOptions):
            raise TypeError(f"options must be BayesOptOptions(...), got {options!r}")
        super().__init__(config_space, metric, mode, [])
        options = options.for_space(config_space)
        self._task = ActiveTask.of_options(options, config_space)
        if self._task is not None:
            points_to_evaluate = self._task.points_to_evaluate(points_to_evaluate)
        self.options = options
        self._num_init_random = options.num_init_random or 0
        self.random_seed = options.random_seed
        if options.surrogate is not None:
            self._check_surrogate()
        self._canonicalize: CheckedCanonicalize | None = None
        if options.canonicalize is not None:
            self._canonicalize = CheckedCanonicalize(options.canonicalize, config_space)
            self._canonicalize(impute_points_to_evaluate(None, config_space)[0])  # raises at once if it is none
        # Draws the first configurations, and those for which the model cannot be used.
        self._random = RandomDraws(
            self._match,
            lambda: self._observations.pending_matches(),
            config_space if self._task is None else self._task.sampling_space,
            metric,
            mode,
            points_to_evaluate,
            random_seed=options.random_seed,
            allow_duplicates=options.allow_duplicates,
            restrict_configurations=options.restrict_configurations,
        )
        self._points_to_evaluate = self._random._points_to_evaluate
        self._observations = Observations(self._match, None if self._task is None else self._task.may_be_suggested)
        self._constraints = self.constraints = options.constraints
        self._recorder = MetricRecorder(self._constraints)
        self.required_metrics = options.required_metrics
        self._resource_attr: str | None = None
        self._max_resource: int | None = None
        self._past = PastEvaluations()  # read at the first suggestion, when metric and resource are known
        self._suggester: ModelSuggester | None = None
        self._saved_suggester: dict[str, Any] | None = None
        self._points: dict[int, Tensor | None] = {}  # trial -> its point, None if it cannot be encoded
        self._fitted_size = -1
        self._parameters: dict[str, Any] = {}  # of the model after the last suggestion
        self._warned: set[str] = set()
        self.cumulative_get_config_time = 0.0
        self.last_reason: SuggestionReason | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        if self.random_seed is None:
            self.random_seed = context.random_seed
        self._random.configure(context)
        self._resource_attr = context.resource_attr
        self._max_resource = context.max_resource_level
        if self.mode == "min" and self.options.map_reward is not None:
            logger.warning("map_reward has no effect with mode='min'")

    def _check_surrogate(self) -> None:
        """Raise at once if the user's surrogate is none."""
        from sthyper.surrogates.custom import as_surrogate
        from sthyper.surrogates.inputs import InputStructure

        as_surrogate(self.options.surrogate, InputStructure.of_space(self._make_encoder(), None))

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        number = normalize_trial_id(trial_id)
        began = time.perf_counter()
        self._read_past()
        config, reason = self._choose(number)
        seconds = time.perf_counter() - began
        self.cumulative_get_config_time += seconds
        self.last_reason = replace(reason, seconds=seconds)
        self._parameters = self._parameters_now()
        if config is None:
            return None
        self._observations.exclude(config)
        if self.options.debug_log:
            logger.info("trial %d: suggested %s: %s", number, config, reason)
        return dict(config)

    def get_batch_configs(
        self, batch_size: int, num_init_candidates_for_batch: int | None = None
    ) -> list[dict[str, Any]]:
        """Return several configurations at once; see :func:`~sthyper.searchers.bayesopt.batch.batch_configs`.

        Each is chosen with the ones before as pending evaluations. The searcher does not change: those that are
        evaluated are made known to it by :meth:`register_pending`, or by their results.

        Args:
            batch_size: Number of configurations, at least 1; fewer come, with a warning in the log, if no more are
                left.
            num_init_candidates_for_batch: In place of ``num_init_candidates`` for all suggestions of the model but the
                first one, at least 2; ``None`` for no difference.

        Raises:
            TypeError: If an argument is no int.
            ValueError: If an argument is too small.
        """
        from sthyper.searchers.bayesopt.batch import batch_configs

        return batch_configs(self, batch_size, num_init_candidates_for_batch)

    def _choose(self, number: int) -> tuple[dict[str, Any] | None, SuggestionReason]:
        if self._random._points_to_evaluate:
            config = self._random._next_initial()
            if config is not None:
                self._random.register_pending(number, config)
                return config, SuggestionReason(number, "initial", "one of points_to_evaluate")
        level = self._observations.level(max(self._num_init_random, 1))
        if self._observations.num_configs() < self._num_init_random:
            return self._random.get_config(number), SuggestionReason(number, "initial", "random")
        if level is None and not self._knows_feasibility():
            return self._draw(number, "there is no result yet")
        data = self._data(level)
        if not len(data.comparable()[1]) and not self._knows_feasibility():
            return self._draw(number, "no result can be used by the model")
        try:
            found = self._by_model(data)
        except (ArithmeticError, ValueError, RuntimeError) as error:
            self._warn_once("model", f"the model cannot be used, configurations are drawn at random: {error}")
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
        return self._search(data, lambda config: not excluded(config), restricted)

    def _search(
        self,
        data: SurrogateData,
        allowed: Callable[[dict[str, Any]], bool],
        restricted: list[dict[str, Any]] | None,
    ) -> Found | None:
        """Return what the model proposes among ``restricted``, in the whole space if that is ``None``."""
        return self.suggester.suggest(data, allowed, restricted, self._wrapper(data))

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
            mean=None if found.mean is None else sign(found.mean),
            std=found.std,
            origin=found.candidate.origin,
            feasibility=found.feasibility,
            text="nothing feasible is known" if found.incumbent is None and found.feasibility is not None else "",
        )

    # ---- the model -----------------------------------------------------------------------------------

    @property
    def encoder(self) -> SpaceEncoder:
        """Maps configurations to the points of the model."""
        return self.suggester.encoder

    @property
    def suggester(self) -> ModelSuggester:
        """Fits the model and searches; made when it is needed first."""
        with _MAKING:
            if self._suggester is None:
                suggester = self._make_suggester()
                if self._saved_suggester is not None:
                    suggester.load_state_dict(self._saved_suggester)
                self._suggester, self._saved_suggester = suggester, None  # complete before others see it
            return self._suggester

    def _make_encoder(self) -> SpaceEncoder:
        from sthyper.encoding import SpaceEncoder

        return SpaceEncoder(self.config_space) if self._task is None else self._task.encoder()

    def _make_suggester(self) -> ModelSuggester:
        from sthyper.searchers.bayesopt.suggest import ModelSuggester

        return ModelSuggester(self._make_encoder(), self.options, self._suggester_seed())

    def _suggester_seed(self) -> int:
        import numpy as np

        seed = 0 if self.random_seed is None else self.random_seed
        return int(np.random.SeedSequence([seed, 2]).generate_state(1)[0])

    def _data(self, level: int | None) -> SurrogateData:
        import torch

        from sthyper.searchers.bayesopt.suggest import SurrogateData

        points, values, active, feasible = [], [], [], []
        height = math.inf if level is None else level
        self._encode_new()
        for trial_id, trial, value in self._observations.at_level(level):
            point = self._point(trial_id, trial.config)
            if point is not None:
                points.append(point)
                values.append(value)
                active.append(self._is_active(trial.config))
                feasible.append(known_feasibility(trial, self._constraints, height))
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
        return SurrogateData(
            X,
            Y,
            pending,
            refit,
            None if self._task is None else torch.tensor(active),
            self._feasibility_data(height, feasible),
        )

    def _feasibility_data(self, level: float, observed: list[float]) -> FeasibilityData | None:
        from sthyper.searchers.bayesopt.feasibility import collect_feasibility

        if not self._knows_feasibility():
            return None
        options, dim = self.options, self.encoder.ndarray_size
        return collect_feasibility(
            self._observations, self._constraints, options.learn_feasibility, self._point, dim, level, observed
        )

    def _knows_feasibility(self) -> bool:
        """Whether feasibility is to be learned, and there is something to learn from."""
        trials = self._observations.trials.values()
        return (bool(self._constraints) and any(trial.metrics for trial in trials)) or (
            self.options.learn_feasibility and any(trial.failed for trial in trials)
        )

    def _is_active(self, config: dict[str, Any]) -> bool:
        """Whether results of a configuration can be compared with those of this experiment."""
        return self._task is None or self._task.is_active(config)

    def _encode_new(self) -> None:
        """Encode what is not known yet at once: after loading a state that is everything."""
        observations = self._observations
        configs = {trial_id: trial.config for trial_id, trial in observations.trials.items()} | observations.pending
        new = [trial_id for trial_id in configs if trial_id not in self._points]
        try:
            points = self.suggester.space.points([configs[trial_id] for trial_id in new])
        except ConfigSpaceError:
            return  # one by one, so that it is seen which of them are none
        self._points.update(zip(new, points.unbind(), strict=True))

    def _point(self, trial_id: int, config: dict[str, Any]) -> Tensor | None:
        if trial_id not in self._points:
            try:
                self._points[trial_id] = self.suggester.space.points([config])[0]
            except ConfigSpaceError as error:
                self._warn_once(
                    "point", f"the result of trial {trial_id} is passed over, its configuration is none: {error}"
                )
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
        if not self._is_readable(number, config):
            return
        if self._may_be_suggested(config):
            self._random.on_trial_result(number, config, result, False)
        self._observations.exclude(config)
        if not update:
            return
        resource = self._resource(result)
        self._observations.drop_pending(number)
        trial = self._observations.add(number, config)
        self._recorder.record(trial, resource, result)
        value = result.get(self.metric or "")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._warn_once(
                "no number", f"trial {number} reports no number {self.metric!r}; the model passes over such results"
            )
            return
        if not math.isfinite(value):
            self._warn_once(
                "not finite", f"trial {number} reports {self.metric}={value}; the model passes over such results"
            )
            return
        try:
            target = self._to_target(float(value))
        except (ArithmeticError, TypeError, ValueError) as error:
            self._warn_once(
                "map_reward",
                f"trial {number}: map_reward cannot map {self.metric}={value}; the model passes over it: {error}",
            )
            return
        if not math.isfinite(target):
            self._warn_once(
                "map_reward",
                f"trial {number}: map_reward maps {self.metric}={value} to {target}; the model passes over it",
            )
            return
        self._learn(trial, resource, target, result)

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
        if not self._is_readable(number, config):
            return
        if self._may_be_suggested(config):
            self._random.register_pending(number, config)
        self._observations.set_pending(number, config)

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        self._observations.forget(normalize_trial_id(trial_id, foreign=True), resource)
        self._fitted_size = -1

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        number = normalize_trial_id(trial_id, foreign=True)
        if not self._is_readable(number, config):
            return
        if self._may_be_suggested(config):
            self._random.evaluation_failed(number, config, blacklist)
        self._observations.set_failed(number, config, blacklist)

    def cleanup_pending(self, trial_id: int | str) -> None:
        self._observations.drop_pending(normalize_trial_id(trial_id, foreign=True))

    # ---- description ---------------------------------------------------------------------------------

    def dataset_size(self) -> int:
        return self._observations.num_values()

    def model_parameters(self) -> dict[str, Any]:
        return dict(self._parameters)

    def _parameters_now(self) -> dict[str, Any]:
        """Return the parameters of the model; those that were loaded while none has been made since."""
        suggester = self._suggester
        return self._parameters if suggester is None else dict(suggester.surrogate.parameters())

    def next_initial_config(self) -> dict[str, Any] | None:
        return self._random.next_initial_config()

    def _may_be_suggested(self, config: dict[str, Any]) -> bool:
        return self._task is None or self._task.may_be_suggested(config)

    def _match(self, config: dict[str, Any]) -> str:
        if self._canonicalize is not None:
            config = self._canonicalize(config)
        return config_to_match_string(config, self.config_space)

    def _is_readable(self, number: int, config: dict[str, Any]) -> bool:
        """Whether a trial's configuration can be compared with others; a warning tells of the first that cannot."""
        why = unreadable(config, self.config_space)
        if why is not None:
            self._warn_once("configuration", f"trial {number} is passed over, its configuration cannot be used: {why}")
        return why is None

    def _warn_once(self, kind: str, message: str) -> None:
        """Log a warning if it is the first one of its kind."""
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
            "model_parameters": dict(self._parameters),
            "fitted_size": self._fitted_size,
            "cumulative_get_config_time": self.cumulative_get_config_time,
            "past": self._past.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random_seed = state["random_seed"]
        self._random.load_state_dict(state["random"])
        self._points_to_evaluate = self._random._points_to_evaluate
        self._observations.load_state_dict(state["observations"])
        self._saved_suggester, self._suggester, self._points = state["suggester"], None, {}
        self._parameters = dict(state.get("model_parameters", {}))
        self._fitted_size = state["fitted_size"]
        self.cumulative_get_config_time = state["cumulative_get_config_time"]
        self._past.load_state_dict(state["past"])
