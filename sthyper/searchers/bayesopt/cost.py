"""Cost-aware Bayesian optimisation: expected improvement per unit of what a trial costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sthyper.errors import closest
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.reasons import SuggestionReason
from sthyper.searchers.bayesopt.searcher import _MAKING, BayesianOptimizationSearcher
from sthyper.trial import normalize_trial_id

if TYPE_CHECKING:
    from botorch.acquisition.acquisition import AcquisitionFunction

    from sthyper.schedulers.options import SearcherArguments
    from sthyper.searchers.bayesopt.cost_model import CostLearner, KnownCost
    from sthyper.searchers.bayesopt.suggest import Found, SurrogateData, Wrapper
    from sthyper.surrogates.cost import CostModel

__all__ = ["CostAwareBayesianOptimizationSearcher", "CostAwareOptions"]

_ACQUISITIONS = ("logei", "ei")
_PATIENCE = 3
"""So many trials may end without a report of the cost, if none has ever had it."""


@dataclass(frozen=True)
class CostAwareOptions(BayesOptOptions):
    """``search_options`` of ``searcher="bayesopt_cost"``: those of ``"bayesopt"``, and what a trial costs.

    With ``cost_attr`` alone the cost of a trial is what its last report says; its logarithm is modelled by a Gaussian
    process of its own. With ``cost_model`` and ``resource_attr`` the costs of all reports are used, those of trials
    that still run or have failed as well, and the cost is predicted at the maximum resource. ::

        FIFOScheduler(config_space, "loss", searcher="bayesopt_cost", search_options={"cost_attr": "elapsed_time"})

        from sthyper.surrogates.cost import ScikitLearnCostModel

        options = {"cost_attr": "elapsed_time", "resource_attr": "epoch", "cost_model": ScikitLearnCostModel()}
        FIFOScheduler(config_space, "loss", searcher="bayesopt_cost", search_options=options, max_t=81)

    Args:
        cost_attr: Name of the reported cost; mandatory. A positive number that says what the trial has cost since its
            start, such as seconds; ``"st_worker_time"`` is in each report by itself.
        resource_attr: Name of the resource in reports, a positive int such as the epochs done; with ``cost_model``.
        cost_model: Model of the cost of a configuration and a resource, of :mod:`sthyper.surrogates.cost`; with
            ``resource_attr``.
        max_t: Resource at which ``cost_model`` predicts. By default the maximum resource of the scheduler; with rungs
            the level at which the metric is predicted.
        exponent_cost: Power of the cost, in (0, 1]. Small ones make differences in cost count less.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If ``cost_attr`` is missing, or an option is out of range or contradicts another.
    """

    cost_attr: str | None = None
    resource_attr: str | None = None
    cost_model: CostModel | None = None
    max_t: int | None = None
    exponent_cost: float = 1.0

    def __post_init__(self) -> None:
        self._check_cost()
        scoring_given = self._given("initial_scoring")
        super().__post_init__()
        if scoring_given and self.initial_scoring != "acq_func":
            # Draws from the posterior of the target alone know nothing of costs.
            raise ValueError(f"initial_scoring={self.initial_scoring!r} cannot be used with costs, only 'acq_func' can")
        object.__setattr__(self, "initial_scoring", "acq_func")
        if self.acq_function not in _ACQUISITIONS:
            raise ValueError(
                f"acq_function={self.acq_function!r} cannot be used with costs, only {list(_ACQUISITIONS)} can: what "
                "is divided by the cost is the expected improvement"
            )
        if self.pending_strategy != "fantasies":
            raise ValueError(
                f"pending_strategy={self.pending_strategy!r} cannot be used with costs, only 'fantasies' can"
            )

    def _check_cost(self) -> None:
        if self.cost_attr is None:
            raise ValueError(
                "cost_attr is missing: search_options={'cost_attr': ...} must name the reported cost of a trial, such "
                "as 'elapsed_time' if it is reported, or 'st_worker_time', the seconds that each report has by itself"
            )
        for name in ("cost_attr", "resource_attr"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} must be the name of a number in reports, got {value!r}")
        if self.cost_attr == self.resource_attr:
            raise ValueError(f"cost_attr and resource_attr must be different names, both are {self.cost_attr!r}")
        if (self.resource_attr is None) != (self.cost_model is None):
            given, missing = ("cost_model", "resource_attr") if self.cost_model else ("resource_attr", "cost_model")
            raise ValueError(
                f"{given} is given without {missing}: they belong together. Without both the cost of a trial is that "
                "of its last report"
            )
        if self.cost_model is not None:
            from sthyper.surrogates.cost import CostModel

            if not isinstance(self.cost_model, CostModel):
                raise TypeError(
                    f"cost_model must be a CostModel of sthyper.surrogates.cost, such as ScikitLearnCostModel(), got "
                    f"{self.cost_model!r}"
                )
        if self.max_t is not None:
            if isinstance(self.max_t, bool) or not isinstance(self.max_t, int):
                raise TypeError(f"max_t must be a positive int, got {self.max_t!r}")
            if self.max_t < 1:
                raise ValueError(f"max_t must be a positive int, got {self.max_t!r}")
            if self.cost_model is None:
                raise ValueError("max_t is the resource at which cost_model predicts, which is not given")
        exponent = self.exponent_cost
        if isinstance(exponent, bool) or not isinstance(exponent, int | float):
            raise TypeError(f"exponent_cost must be a number in (0, 1], got {exponent!r}")
        if not 0 < exponent <= 1:
            raise ValueError(f"exponent_cost must be in (0, 1], got {exponent!r}")

    @staticmethod
    def explain(key: str) -> str | None:
        """Return why an option is none of this searcher's, for those of its relatives."""
        if key in ("max_resource", "max_epochs"):
            return f"{key!r} is called 'max_t' here"
        return BayesOptOptions.explain(key)

    def build(self, arguments: SearcherArguments) -> CostAwareBayesianOptimizationSearcher:
        """Make the searcher."""
        return CostAwareBayesianOptimizationSearcher(
            arguments.config_space,
            metric=arguments.metric,
            mode=arguments.mode,
            points_to_evaluate=arguments.points_to_evaluate,
            options=self,
        )


class CostAwareBayesianOptimizationSearcher(BayesianOptimizationSearcher):
    """Suggests the maximum of the expected improvement divided by a power of the predicted cost.

    What is found for the same total cost then counts, and not what is found with the same number of trials: cheap
    configurations are tried first where they promise as much. While no cost is known the cost counts for nothing.
    Predicted costs are at least a tenth of the least observed one, so that wrong predictions of very small costs do not
    draw the search to them.

    A report without the cost, or whose cost is not positive and finite, says nothing of costs; the first one of either
    kind is logged as a warning.

    Args:
        config_space: Configuration space.
        metric: Name of the metric; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.
        options: The options, mandatory as they name the cost.

    Raises:
        ConfigSpaceError: If the space, or a configuration that is given, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode`` is unknown. From :meth:`configure`: if the maximum resource is not known. From
            :meth:`get_config`: if three trials have ended and no report has ever had the cost.

    References:
        Snoek et al., "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS 2012;
        Lee et al., "Cost-aware Bayesian Optimization", 2020
    """

    options: CostAwareOptions

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
        options: CostAwareOptions | None = None,
    ) -> None:
        if not isinstance(options, CostAwareOptions):
            raise TypeError(f"options must be CostAwareOptions(cost_attr=...), got {options!r}")
        super().__init__(config_space, metric, mode, points_to_evaluate, options)
        assert options.cost_attr is not None
        self._cost_name: str = options.cost_attr
        self._costs: dict[int, dict[int, float]] = {}  # trial -> resource -> cost
        self._cost_revision = 0  # counts changes of the costs
        self._cost_seen = False
        self._ended_without_cost: list[int] = []  # trials, as long as no report has had the cost
        self._names_in_reports: list[str] = []
        self._cost_learner: CostLearner | None = None
        self._saved_cost_learner: dict[str, Any] | None = None
        self._known_cost: KnownCost | None = None  # of the last suggestion

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        name, options = self._cost_name, self.options
        if context.cost_attr == f"total_{name}":  # what a trial has cost in all its runs
            self._cost_name = context.cost_attr
        if options.cost_model is None:
            return
        if context.resource_attr not in (None, options.resource_attr):
            raise ValueError(
                f"search_options: resource_attr={options.resource_attr!r} is not the resource of the scheduler, "
                f"{context.resource_attr!r}"
            )
        if options.max_t is None and context.max_resource_level is None:
            raise ValueError(
                "cost_model needs the maximum resource: give search_options={'max_t': ...}, or the scheduler "
                "max_resource_attr or max_t"
            )

    # ---- suggestions ---------------------------------------------------------------------------------

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        if len(self._ended_without_cost) >= _PATIENCE:
            names = [name for name in self._names_in_reports if not name.startswith("st_")]
            raise ValueError(
                f"cost_attr={self._cost_name!r} is missing in all reports of {len(self._ended_without_cost)} trials "
                f"that have ended; they have {names}{closest(self._cost_name, names)}"
            )
        return super().get_config(trial_id)

    def _wrapper(self, data: SurrogateData) -> Wrapper | None:
        self._known_cost = None
        return self._per_cost

    def _per_cost(self, acquisition: AcquisitionFunction) -> AcquisitionFunction:
        """Return the acquisition function per unit cost, the function itself if no cost is known."""
        try:
            self._known_cost = self._fit_cost()
        except (ValueError, RuntimeError) as error:
            self._warn_once("cost model", f"the cost model cannot be used, costs count for nothing: {error}")
        if self._known_cost is None:
            return acquisition
        return self._known_cost.per_cost(acquisition, self.options.exponent_cost)

    def _fit_cost(self) -> KnownCost | None:
        from sthyper.searchers.bayesopt.cost_model import CostData

        level = self._observations.level(max(self._num_init_random, 1))
        resource = level
        if self.options.cost_model is not None and (self._resource_attr is None or self.options.max_t is not None):
            resource = self.options.max_t or self._max_resource
        entries = []
        for trial_id, costs in self._costs.items():
            trial = self._observations.trials[trial_id]
            point = self._point(trial_id, trial.config)
            if point is not None:
                target = math.inf if level is None else trial.values.get(level, math.inf)
                entries.append((trial.config, point, target, costs))
        return self.cost_learner.fit(CostData(entries, resource or 0, self._cost_revision))

    @property
    def cost_learner(self) -> CostLearner:
        """Fits the model of the cost; made when it is needed first."""
        import numpy as np

        from sthyper.searchers.bayesopt.cost_model import make_cost_learner

        with _MAKING:
            if self._cost_learner is None:
                seed = 0 if self.random_seed is None else self.random_seed
                own = int(np.random.SeedSequence([seed, 3]).generate_state(1)[0])
                learner = make_cost_learner(self.encoder, self.options, own)
                if self._saved_cost_learner is not None:
                    learner.load_state_dict(self._saved_cost_learner)
                self._cost_learner, self._saved_cost_learner = learner, None  # complete before others see it
            return self._cost_learner

    def _reason(self, number: int, found: Found, data: SurrogateData) -> SuggestionReason:
        reason = super()._reason(number, found, data)
        if self._known_cost is None:
            text = "no cost is known"
        else:
            text = f"predicted {self._cost_name} {self._known_cost.predict(found.candidate.x):.4g}"
        return replace(reason, text="; ".join(part for part in (text, reason.text) if part))

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        number = normalize_trial_id(trial_id, foreign=True)
        if self._is_readable(number, config):
            self._learn_cost(number, config, result, update)
        super().on_trial_result(trial_id, config, result, update)

    def _learn_cost(self, number: int, config: dict[str, Any], result: dict[str, Any], update: bool) -> None:
        """Enter the cost of a report.

        Those of all reports count where there is a resource to tell them apart, otherwise that of the last one.
        """
        name = self._cost_name
        if name not in result:
            if not self._cost_seen and update and number >= 0 and number not in self._ended_without_cost:
                self._ended_without_cost.append(number)
                self._names_in_reports = list(result)
            self._warn_once("no cost", f"a report has no {name!r}, its cost is not known: trial {number}")
            return
        self._cost_seen = True
        self._ended_without_cost, self._names_in_reports = [], []
        resource = self._resource_of_cost(number, result, update)
        if resource is None:
            return
        cost = result[name]
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 < cost < math.inf:
            self._warn_once(
                "cost",
                f"costs must be positive numbers, others say nothing: trial {number} reports {name}={cost!r}",
            )
            return
        self._observations.add(number, config)
        self._costs.setdefault(number, {})[resource] = float(cost)
        self._cost_revision += 1

    def _resource_of_cost(self, number: int, result: dict[str, Any], update: bool) -> int | None:
        """Return the resource of a cost, ``None`` if it does not count."""
        name = self.options.resource_attr
        if name is None:
            return self._resource(result) if update or self._resource_attr is not None else None
        value = result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value % 1:
            self._warn_once(
                "resource of cost",
                f"resources must be positive ints, costs of other reports are passed over: trial {number} reports "
                f"{name}={value!r}",
            )
            return None
        return int(value)

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        # What a trial has cost up to a resource stays true when the metric there is forgotten.
        super().remove_case(trial_id, resource)
        if resource is None and self._costs.pop(normalize_trial_id(trial_id, foreign=True), None) is not None:
            self._cost_revision += 1

    # ---- description and state -----------------------------------------------------------------------

    def _parameters_now(self) -> dict[str, Any]:
        learner = self._cost_learner
        of_cost = {} if learner is None else {f"cost.{name}": value for name, value in learner.parameters().items()}
        return super()._parameters_now() | of_cost

    def state_dict(self) -> dict[str, Any]:
        learner = self._saved_cost_learner
        if self._cost_learner is not None:
            learner = self._cost_learner.state_dict()
        return super().state_dict() | {
            "costs": [
                [trial_id, [list(item) for item in by_resource.items()]]
                for trial_id, by_resource in self._costs.items()
            ],
            "cost_revision": self._cost_revision,
            "cost_seen": self._cost_seen,
            "ended_without_cost": list(self._ended_without_cost),
            "names_in_reports": list(self._names_in_reports),
            "cost_learner": learner,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._costs = {int(trial): {int(r): float(c) for r, c in items} for trial, items in state["costs"]}
        self._cost_revision = state["cost_revision"]
        self._cost_seen = state["cost_seen"]
        self._ended_without_cost = list(state["ended_without_cost"])
        self._names_in_reports = list(state["names_in_reports"])
        self._saved_cost_learner, self._cost_learner = state["cost_learner"], None
