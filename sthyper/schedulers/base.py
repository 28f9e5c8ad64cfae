"""The contract of schedulers: which trial runs next, and whether a running one goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper._describe import Described
from sthyper.config_space import (
    Domain,
    cast_config_values,
    check_config_space,
    config_space_to_json_dict,
)
from sthyper.errors import ReportError
from sthyper.schedulers.clock import ExperimentClock
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.time_keeper import TimeKeeper
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion, is_own_failure

if TYPE_CHECKING:
    from sthyper.searchers.bayesopt.constraints import OutcomeConstraint

__all__ = [
    "PendingSuggestion",
    "SchedulerDecision",
    "TrialScheduler",
    "TrialSchedulerWithSearcher",
    "TrialSuggestion",
]


@dataclass(frozen=True)
class PendingSuggestion:
    """A suggestion whose slow part may run in another thread.

    Args:
        compute: The slow part; touches nothing that decisions touch.
        finish: Called with its result in the tuner's thread; returns the suggestion.
    """

    compute: Callable[[], Any]
    finish: Callable[[Any], TrialSuggestion | None]


class TrialScheduler(Described, ABC):
    """Decides which configuration runs next and whether trials go on.

    A subclass implements :meth:`_suggest`, :meth:`on_trial_result` and :meth:`metric_names`; the other hooks do
    nothing by default.

    Args:
        config_space: Configuration space; domains are tuned, constants are passed on.

    Attributes:
        mode: ``"min"`` or ``"max"`` (a list for several metrics).
        resource_attr: Name of the resource in reports; ``None`` for schedulers without one. The tuner passes the
            first report of a (trial, resource) only.
        progress_attr: Name of a number in reports that tells how far a trial has come, for schedulers without a
            resource; ``None`` if there is none. All reports count, but what a trial that is run again repeats.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource, or ``None``.
        max_resource_level: The maximum resource, or ``None``.
        random_seed: The seed of scheduler and experiment, ``None`` if the tuner is to draw one.
    """

    mode: str | list[str] = "min"
    resource_attr: str | None = None
    progress_attr: str | None = None
    max_resource_attr: str | None = None
    max_resource_level: int | None = None
    random_seed: int | None = None

    def __init__(self, config_space: dict[str, Any]) -> None:
        check_config_space(config_space)
        self.config_space = dict(config_space)

    # ---- suggestions ---------------------------------------------------------------------------------

    @abstractmethod
    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        """Return what a free worker should do; see :meth:`suggest`."""

    def suggest(self, trial_id: int) -> TrialSuggestion | None:
        """Return what a free worker should do, ``None`` if there is nothing left.

        The configuration of a suggestion holds all names of the configuration space: constants are added, values
        are cast to the types of their domains, unknown names are dropped.

        Args:
            trial_id: Id that a new trial would get.
        """
        return self._complete(self._suggest(trial_id))

    def begin_suggest(self, trial_id: int) -> TrialSuggestion | PendingSuggestion | None:
        """Start a suggestion; schedulers with a slow part return it as a :class:`PendingSuggestion`."""
        return self.suggest(trial_id)

    def suggest_enqueued(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        """Return the suggestion to start a configuration that the user put into the queue.

        It counts as suggested: the searcher, if there is one, does not suggest it again.

        Args:
            trial_id: Id that the new trial gets.
            config: All hyperparameters, checked and of the right types; constants are missing.
        """
        return self._completed(TrialSuggestion.start_suggestion(dict(config)))

    def _complete(self, suggestion: TrialSuggestion | None) -> TrialSuggestion | None:
        return None if suggestion is None else self._completed(suggestion)

    def _completed(self, suggestion: TrialSuggestion) -> TrialSuggestion:
        if suggestion.config is None:
            return suggestion
        given = {k: v for k, v in suggestion.config.items() if k in self.config_space}
        config = {k: v for k, v in self.config_space.items() if not isinstance(v, Domain)}
        config.update(cast_config_values(given, self.config_space))
        missing = [k for k in self.config_space if k not in config]
        if missing and suggestion.spawn_new_trial_id:
            raise ValueError(f"{type(self).__name__}: the suggested configuration lacks {', '.join(missing)}")
        config = {k: config[k] for k in self.config_space if k in config}
        return TrialSuggestion(suggestion.spawn_new_trial_id, suggestion.checkpoint_trial_id, config)

    def _preprocess_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the tuned part of a trial's configuration, cast to the domains' types."""
        tuned = {k: v for k, v in config.items() if isinstance(self.config_space.get(k), Domain)}
        return cast_config_values(tuned, self.config_space)

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_add(self, trial: Trial) -> None:
        """A suggested new trial was started."""

    @abstractmethod
    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        """Decide about a trial that reported: one of :class:`SchedulerDecision`.

        Raises:
            ReportError: If the report lacks the metric or the resource, or they cannot be used. The trial fails.
        """

    def adopt_result(self, trial: Trial, result: dict[str, Any], decision: str) -> None:
        """Learn of a report that came when another scheduler decided; the experiment goes on with this one.

        The trial was started by :meth:`suggest_enqueued` and :meth:`on_trial_add`, and :meth:`on_trial_resume` is
        called when the other one resumed it, too. By default :meth:`on_trial_result` is called and its decision passed
        over; schedulers override it whose state then would not be that of the trial.

        Args:
            trial: The trial, its configuration in this scheduler's space. Numbers may lie outside their range.
            result: The report.
            decision: What the trial was told, one of :class:`SchedulerDecision`.

        Raises:
            ReportError: If the scheduler cannot use it; then nothing has changed.
        """
        self.on_trial_result(trial, result)

    def on_trial_remove(self, trial: Trial) -> None:
        """A trial was paused or stopped by a decision of this scheduler."""

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial ended by itself; ``result`` is its last report, already passed to :meth:`on_trial_result`."""

    def on_trial_error(self, trial: Trial) -> None:
        """A trial failed; ``trial.end_reason`` says why."""

    def on_trial_resume(self, trial: Trial) -> None:
        """A further run of a trial begins.

        It is a resume that was suggested, by the scheduler before this one if there was another, or another try after
        the trial was killed.
        """

    def on_trial_repeat(self, trial: Trial, result: dict[str, Any]) -> None:
        """A further run of a trial reports a resource that an earlier one has reported; nothing is to be decided."""

    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        """Learn of a result of a configuration that no trial of this experiment ran.

        Args:
            trial_id: A negative id, one for each evaluation of a configuration.
            config: All hyperparameters; constants may be missing.
            result: The report. Those of one evaluation come in the order of their resource.

        Raises:
            ReportError: If the scheduler cannot use it; then nothing has changed.
        """

    def result_columns(self) -> dict[str, Any]:
        """Return columns for the results, about the report that :meth:`on_trial_result` has just decided about."""
        return {}

    def milestone(self, trial_id: int) -> int | None:
        """Return the resource at which this scheduler decides next about a running trial, ``None`` if any."""
        return None

    # ---- checkpoints ---------------------------------------------------------------------------------

    def trials_checkpoints_can_be_removed(self) -> list[int]:
        """Return trials whose checkpoints will never be needed again, each of them once.

        They are paused trials that are never resumed, and trials for which :meth:`may_copy_checkpoint` was true and is
        not any more. Others that have ended need not be named. The tuner asks when a trial has ended, paused or
        started, if the backend has ``delete_checkpoints=True``. What was not asked for yet belongs to the state.
        """
        return []

    def may_copy_checkpoint(self, trial_id: int) -> bool:
        """Whether a trial that has ended for good may still be the source of another: its checkpoints then stay.

        Args:
            trial_id: A trial that was stopped, completed or failed; a new one may start with its checkpoint
                (``checkpoint_trial_id`` of a :class:`TrialSuggestion`). They stay until
                :meth:`trials_checkpoints_can_be_removed` names it.
        """
        return False

    # ---- description ---------------------------------------------------------------------------------

    @abstractmethod
    def metric_names(self) -> list[str]:
        """Return the names of the metrics, the objective first."""

    def metric_mode(self) -> str | list[str]:
        """Return ``"min"`` or ``"max"``, or a list with one for each metric."""
        return self.mode

    def outcome_constraints(self) -> tuple[OutcomeConstraint, ...]:
        """Return the constraints on reported metrics that the best trial has to keep."""
        return ()

    def is_multiobjective_scheduler(self) -> bool:
        """Whether several metrics are optimised at once."""
        return False

    def metadata(self) -> dict[str, Any]:
        """Return what ``metadata.json`` says of the scheduler."""
        import json

        return {
            "metric_names": self.metric_names(),
            "metric_mode": self.metric_mode(),
            "scheduler_name": type(self).__name__,
            "resource_attr": self.resource_attr,
            "config_space": json.dumps(config_space_to_json_dict(self.config_space)),
            "outcome_constraints": [constraint.text for constraint in self.outcome_constraints()],
        }

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a scheduler made with the same arguments."""

    def __str__(self) -> str:
        return f"{type(self).__name__}(metric={self.metric_names()}, mode={self.metric_mode()!r})"


class TrialSchedulerWithSearcher(TrialScheduler):
    """A scheduler that leaves the choice of configurations to a searcher.

    Everything that it tells the searcher goes through :meth:`_tell_searcher`, so that a slow ``get_config`` can run
    in another thread: until it is finished the news wait in a queue, and reach the searcher in order afterwards.

    Args:
        config_space: Configuration space.
        metric: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        searcher: The searcher.
        random_seed: Seed of scheduler and searcher; drawn from the system if ``None``.
        time_keeper: The experiment's clock, which its owner starts; ``None`` for a real one that the first suggestion
            starts. The searcher gets its time by :attr:`SearcherContext.elapsed_time`.
    """

    mode: str

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        mode: str,
        searcher: BaseSearcher,
        random_seed: int | None = None,
        time_keeper: TimeKeeper | None = None,
    ) -> None:
        super().__init__(config_space)
        if not isinstance(metric, str) or not metric:
            raise TypeError(f"metric must be the name of a reported metric (a string), got {metric!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not isinstance(searcher, BaseSearcher):
            raise TypeError(f"searcher must be a BaseSearcher, got {searcher!r}")
        self.metric = metric
        self.mode = mode
        self.searcher = searcher
        self.random_seed = _draw_seed() if random_seed is None else _check_seed(random_seed)
        self._clock = ExperimentClock(time_keeper)
        self._configured = False
        self._suggesting = False
        self._waiting_news: list[tuple[str, tuple[Any, ...]]] = []

    def outcome_constraints(self) -> tuple[OutcomeConstraint, ...]:
        return self.searcher.constraints

    def set_time_keeper(self, time_keeper: TimeKeeper) -> None:
        """Take the time from this clock, before the experiment begins; a simulator does it.

        Raises:
            RuntimeError: If there is a time keeper already, or the experiment has begun.
            TypeError: If it is no :class:`~sthyper.time_keeper.TimeKeeper`.
        """
        self._clock.use(time_keeper)

    # ---- for subclasses ------------------------------------------------------------------------------

    def _promote(self, trial_id: int) -> TrialSuggestion | None:
        """Return a paused trial to resume, ``None`` if a new one is to be started."""
        return None

    def _new_trial(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        """Make the suggestion of a new trial from the searcher's configuration."""
        self._tell_searcher("register_pending", trial_id, config)
        return TrialSuggestion.start_suggestion(config)

    def _searcher_context(self) -> SearcherContext:
        """Return what the searcher has to know; called once."""
        import numpy as np

        assert self.random_seed is not None
        seed = int(np.random.SeedSequence([self.random_seed, 1]).generate_state(1)[0])
        return SearcherContext(
            metric=self.metric,
            mode=self.mode,
            random_seed=seed,
            resource_attr=self.resource_attr,
            max_resource_level=self.max_resource_level,
            elapsed_time=self._clock.elapsed,
        )

    # ---- suggestions ---------------------------------------------------------------------------------

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        pending = self._begin(trial_id)
        return pending.finish(pending.compute()) if isinstance(pending, PendingSuggestion) else pending

    def begin_suggest(self, trial_id: int) -> TrialSuggestion | PendingSuggestion | None:
        if not self.searcher.slow:
            return self.suggest(trial_id)
        begun = self._begin(trial_id)
        if not isinstance(begun, PendingSuggestion):
            return self._complete(begun)
        return PendingSuggestion(begun.compute, lambda config: self._complete(begun.finish(config)))

    def suggest_enqueued(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        self._configure_searcher()
        return self._completed(self._new_trial(trial_id, dict(config)))

    def _begin(self, trial_id: int) -> TrialSuggestion | PendingSuggestion:
        self._configure_searcher()
        self._deliver_news()  # if get_config raised the last time, nobody has
        resume = self._promote(trial_id)
        if resume is not None:
            return resume
        self._suggesting = True
        return PendingSuggestion(
            compute=lambda: self.searcher.get_config(trial_id),
            finish=lambda config: self._finish(trial_id, config),
        )

    def _finish(self, trial_id: int, config: dict[str, Any] | None) -> TrialSuggestion | None:
        self._deliver_news()
        return None if config is None else self._new_trial(trial_id, config)

    def _deliver_news(self) -> None:
        self._suggesting = False
        news, self._waiting_news = self._waiting_news, []
        for method, args in news:
            getattr(self.searcher, method)(*args)

    def _configure_searcher(self) -> None:
        if not self._configured:
            self._clock.start()
            self._configured = True
            self.searcher.configure(self._searcher_context())

    def _tell_searcher(self, method: str, *args: Any) -> None:
        if not self._configured:
            self._configure_searcher()
        self._clock.elapsed()  # so that a state that is saved after this event has its time
        if self._suggesting:
            self._waiting_news.append((method, args))
        else:
            getattr(self.searcher, method)(*args)

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_error(self, trial: Trial) -> None:
        config = self._preprocess_config(trial.config)
        self._tell_searcher("evaluation_failed", trial.trial_id, config, is_own_failure(trial.end_reason))
        self._tell_searcher("cleanup_pending", trial.trial_id)

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        config = self._preprocess_config(trial.config)
        self._tell_searcher("on_trial_result", trial.trial_id, config, result, True)
        self._tell_searcher("cleanup_pending", trial.trial_id)

    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        self._metric_value(result)
        self._tell_searcher("on_trial_result", trial_id, self._preprocess_config(config), result, True)

    def metric_names(self) -> list[str]:
        return [self.metric]

    def _metric_value(self, result: dict[str, Any]) -> float:
        """Return the reported objective.

        Raises:
            ReportError: If it, or another metric that the searcher needs, is missing or no number.
        """
        for name in self.searcher.required_metrics:
            report_value(result, name, self.resource_attr)
        return report_value(result, self.metric, self.resource_attr)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "random_seed": self.random_seed,
            "configured": self._configured,
            "clock": self._clock.state_dict(),
            "searcher": self.searcher.state_dict(),
            "waiting_news": [[method, list(args)] for method, args in self._waiting_news],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random_seed = state["random_seed"]
        self._clock.load_state_dict(state["clock"])
        if state["configured"]:
            self._configure_searcher()
        self.searcher.load_state_dict(state["searcher"])
        for method, args in state["waiting_news"]:
            getattr(self.searcher, method)(*args)


def report_value(result: dict[str, Any], metric: str, resource_attr: str | None = None) -> float:
    """Return ``result[metric]`` as a float.

    Raises:
        ReportError: If it is missing or no number; the message shows the ``report(...)`` call that is expected.
    """
    if metric not in result:
        from sthyper.errors import closest

        names = [k for k in result if not k.startswith("st_")]
        resource = f"{resource_attr}=..., " if resource_attr else ""
        call = f"report({resource}{metric}=...)" if metric.isidentifier() else f"report(**{{{metric!r}: ...}})"
        others = [name for name in names if name != resource_attr]
        raise ReportError(
            f"metric {metric!r} is missing in the report, which has {names}{closest(metric, names)}; expected: {call}"
            + (f", or metric={others[0]!r} where the experiment is set up" if others else "")
        )
    value = result[metric]
    if type(value) is float:  # by far the most frequent
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError(f"metric {metric!r} must be a number, the report has {value!r}")
    return float(value)


def _draw_seed() -> int:
    import numpy as np

    return int(np.random.SeedSequence().generate_state(1, dtype=np.uint32)[0]) % (2**31 - 1)


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"random_seed must be an int in [0, 2**31 - 1], got {seed!r}")
    return seed
