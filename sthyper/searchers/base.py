"""The contract of searchers: they choose configurations, and learn from results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
    from sthyper.searchers.multifidelity import BracketDistribution, RungSnapshot

from sthyper._describe import Described

__all__ = ["BaseSearcher", "SearcherContext"]


@dataclass(frozen=True)
class SearcherContext:
    """What a scheduler tells its searcher once, before the first suggestion.

    Args:
        metric: Name of the metric in results.
        mode: ``"min"`` or ``"max"``.
        random_seed: Seed for a searcher that was given none.
        resource_attr: Name of the resource in results, ``None`` for schedulers without one.
        max_resource_level: Largest resource, ``None`` if there is none.
        rung_levels: Levels at which the scheduler decides.
        num_brackets: Number of its brackets.
        searcher_data: Which results update the searcher: ``"rungs"``, ``"all"`` or ``"rungs_and_last"``.
        cost_attr: Name of the cost in results, ``None`` if there is none.
        elapsed_time: Returns the seconds of the experiment so far, ``None`` if the scheduler has no clock.
    """

    metric: str
    mode: str = "min"
    random_seed: int = 0
    resource_attr: str | None = None
    max_resource_level: int | None = None
    rung_levels: tuple[int, ...] = ()
    num_brackets: int = 1
    searcher_data: str = "rungs"
    cost_attr: str | None = None
    elapsed_time: Callable[[], float] | None = field(default=None, compare=False)


class BaseSearcher(Described, ABC):
    """Suggests configurations.

    Only :meth:`get_config` is abstract; the hooks do nothing by default. Configurations that go in and out hold
    the non-constant hyperparameters only, as plain Python values of the right type. Trial ids are ints (the
    decimal string is accepted). Results of configurations that the searcher did not suggest are welcome. In an
    experiment whose space was changed on a resume, numbers among them may lie outside their range; a model that cannot
    encode such a value passes over the result.

    Args:
        config_space: Configuration space.
        metric: Name of the metric in results; a scheduler sets it if it is ``None``.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none.

    Attributes:
        slow: Whether :meth:`get_config` may take long; the tuner then calls it in a worker thread.
        bracket_distribution: How often new trials get which bracket of a scheduler that has several; a searcher may
            set it in :meth:`configure`. ``None`` leaves it to the scheduler, and one that the scheduler was given
            comes first.
        required_metrics: Metrics that every report must have beside :attr:`metric`; the scheduler sees to it.
        constraints: Constraints on reported metrics, which the best trial of an experiment has to keep as well.
    """

    slow: bool = False
    required_metrics: tuple[str, ...] = ()
    constraints: tuple[OutcomeConstraint, ...] = ()
    bracket_distribution: BracketDistribution | None = None

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str | None = None,
        mode: str = "min",
        points_to_evaluate: list[dict[str, Any]] | None = None,
    ) -> None:
        from sthyper.config_space import check_config_space, impute_points_to_evaluate

        check_config_space(config_space)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.config_space = dict(config_space)
        self.metric = metric
        self.mode = mode
        self._points_to_evaluate = impute_points_to_evaluate(points_to_evaluate, config_space)

    def configure(self, context: SearcherContext) -> None:
        """Take metric, mode and seed from the scheduler; called once before the first suggestion."""
        if self.metric is None:
            self.metric = context.metric
        self.mode = context.mode

    @abstractmethod
    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        """Return the configuration for a new trial, ``None`` if there is nothing left to suggest."""

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        """Learn of a report; only those with ``update`` are to change a model."""

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        """Learn that a trial will report, at the resource ``milestone`` if there are resources.

        Called once for each such report; it is pending until the trial's result there or at a higher level arrives.
        """

    def on_snapshot(self, snapshot: RungSnapshot) -> None:
        """Learn how trials and rungs stand; called right before :meth:`get_config` if the scheduler was asked to."""

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        """Forget a result that :meth:`on_trial_result` brought."""

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        """Learn that a trial failed; with ``blacklist`` its configuration must not be suggested again."""

    def cleanup_pending(self, trial_id: int | str) -> None:
        """Forget all pending evaluations of a trial that has ended."""

    def dataset_size(self) -> int:
        """Return the number of observations of the model."""
        return 0

    def model_parameters(self) -> dict[str, Any]:
        """Return the parameters of the model, by name."""
        return {}

    def next_initial_config(self) -> dict[str, Any] | None:
        """Take the next of ``points_to_evaluate``, ``None`` when they are used up."""
        return self._points_to_evaluate.pop(0) if self._points_to_evaluate else None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers and tensors."""
        return {"points_to_evaluate": [dict(p) for p in self._points_to_evaluate]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a searcher made with the same arguments."""
        self._points_to_evaluate = [dict(p) for p in state["points_to_evaluate"]]
