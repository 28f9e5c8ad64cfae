"""Asynchronous successive halving and Hyperband: a few reports decide which trials get more resource."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sthyper.errors import ReportError
from sthyper.schedulers.hyperband.brackets import (
    DefaultHyperbandBracketDistribution,
    HyperbandBracketManager,
    check_brackets,
)
from sthyper.schedulers.hyperband.costs import CostAccounting
from sthyper.schedulers.hyperband.outside import TakesResults
from sthyper.schedulers.hyperband.record import TrialInformation
from sthyper.schedulers.hyperband.rungs import RungSystem
from sthyper.schedulers.hyperband.searcher_data import SearcherDataRules, SearcherFeed
from sthyper.schedulers.hyperband.systems import make_rung_system
from sthyper.schedulers.options import SearcherArguments, make_searcher
from sthyper.schedulers.resources import report_resource
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.searchers.multifidelity import BracketDistribution, RungSnapshot, RunningTrial
from sthyper.time_keeper import TimeKeeper
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["HyperbandScheduler"]

logger = logging.getLogger(__name__)


class HyperbandScheduler(TakesResults):
    r"""Asynchronous successive halving (ASHA) and Hyperband, as stopping or as promotion variant.

    Decisions fall at rung levels :math:`r_j` below the maximum resource. With ``type="stopping"`` a trial ends at a
    rung unless it is among the best there so far. With ``type="promotion"`` it pauses at every rung, and a free
    worker resumes the best paused trial that qualifies before a new one is started. In both,
    :math:`q_j = r_j / r_{j+1}` is the share of a rung that is good enough, with :math:`r_{max}` after the last rung
    level. Values that are NaN or infinite rank behind all finite ones in both modes and never get past a rung that
    has other entries.

    A trial of bracket s is not compared with others below :math:`r_s`. For every suggestion a bracket is drawn first;
    then its rung system may promote a paused trial (which belongs to that bracket from now on); else a new trial of
    that bracket starts.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        searcher: A searcher, its name (``"random"`` or ``"grid"``), or ``None`` for random search.
        search_options: Options of a named searcher, those of :class:`~sthyper.searchers.RandomSearcher` or
            :class:`~sthyper.searchers.GridSearcher`.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none. Goes into the searcher's constructor if
            ``searcher`` is an object.
        random_seed: Seed in [0, 2**31 - 1] of scheduler and searcher; drawn from the system if ``None``.
        resource_attr: Name of the resource in reports: a positive integer that counts from 1, reported at every
            rung level (every epoch, usually).
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource. Preferred to
            ``max_t``: a trial at the maximum then ends in order instead of being stopped.
        max_t: Maximum resource. By default ``config_space[max_resource_attr]``, else the constant ``epochs``,
            ``max_t`` or ``max_epochs`` of the space.
        type: ``"stopping"`` (default) or ``"promotion"``.
        rung_system: A rung system in place of ``type`` and the spacing of levels; its ``max_t`` is the maximum
            resource.
        grace_period: Lowest rung level :math:`r_{min}`; default 1.
        reduction_factor: Ratio :math:`\eta \ge 2` of neighbouring rung levels, :math:`r_j = r_{min} \eta^j` rounded;
            an int or float; default 3 unless ``rung_increment`` is given.
        rung_increment: Difference :math:`\nu` of neighbouring rung levels, :math:`r_j = r_{min} + \nu j`. Ignored
            with a warning if ``reduction_factor`` is given, too.
        rung_levels: Explicit rung levels, two or more strictly increasing positive ints; a last one that equals the
            maximum resource is dropped. The three arguments before are then ignored with a warning.
        brackets: Number of brackets, at most one more than rung levels (more are cut down with a warning). The top
            one of so many has no rung: its trials run to the maximum.
        rung_system_per_bracket: Whether every bracket has rungs of its own, instead of sharing those of bracket 0.
        bracket_distribution: Probabilities of the brackets for several of them; by default the searcher's, else
            :class:`DefaultHyperbandBracketDistribution`.
        searcher_data: What the searcher learns from. ``"rungs"`` (default): reports at rung levels of any bracket,
            at the maximum, and the last one of a completed trial. ``"all"``: every report. ``"rungs_and_last"``:
            those of ``"rungs"`` and the newest one of each trial, which is removed when a newer one arrives.
        register_pending_myopic: Whether only a trial's next resource is pending with the searcher, instead of all up
            to its milestone. Not with ``searcher_data="rungs"``, where the milestone alone is pending.
        do_snapshots: Whether the searcher gets a :class:`~sthyper.searchers.RungSnapshot` before every suggestion;
            for ``type="stopping"``.
        cost_attr: Name of a reported cost (seconds, money): what the current run of a trial has cost so far. If
            trials are paused, the cost over all runs is added up as ``total_<cost_attr>``, a column of the results
            that searcher and rung system get; else they get the reported value.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.

    Attributes:
        terminator: The rung systems of all brackets; tells paused trials and rungs.
        rung_system: The rung system of bracket 0.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or unknown, contradicts another, or if the maximum resource is
            not known.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934;
        Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 2018,
        https://arxiv.org/abs/1603.06560;
        Klein et al., "Model-based Asynchronous Hyperparameter and Neural Architecture Search",
        https://arxiv.org/abs/2003.10865 (brackets without synchronisation, pending evaluations)
    """

    _given_distribution = False

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        mode: str = "min",
        searcher: BaseSearcher | str | None = None,
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        resource_attr: str = "epoch",
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        type: str | None = None,
        rung_system: RungSystem | None = None,
        grace_period: int | None = None,
        reduction_factor: float | None = None,
        rung_increment: int | None = None,
        rung_levels: Sequence[int] | None = None,
        brackets: int = 1,
        rung_system_per_bracket: bool = False,
        bracket_distribution: BracketDistribution | None = None,
        searcher_data: str = "rungs",
        register_pending_myopic: bool = False,
        do_snapshots: bool = False,
        cost_attr: str | None = None,
        time_keeper: TimeKeeper | None = None,
    ) -> None:
        arguments = SearcherArguments(config_space, metric, mode, points_to_evaluate)
        super().__init__(
            config_space,
            metric=metric,
            mode=mode,
            searcher=make_searcher(searcher, search_options, arguments),
            random_seed=random_seed,
            time_keeper=time_keeper,
        )
        if not isinstance(resource_attr, str) or not resource_attr:
            raise TypeError(f"resource_attr must be the name of the reported resource, got {resource_attr!r}")
        if resource_attr == metric:
            raise ValueError(f"resource_attr and metric must be different names, both are {metric!r}")
        self.resource_attr: str = resource_attr
        self.max_resource_attr = max_resource_attr
        self.rung_system = make_rung_system(
            config_space,
            max_t,
            max_resource_attr,
            rung_system,
            type,
            grace_period,
            reduction_factor,
            rung_increment,
            rung_levels,
        )
        self.max_resource_level: int = self.rung_system.max_t
        self._levels = frozenset(self.rung_system.rung_levels)
        assert self.random_seed is not None
        self.terminator = HyperbandBracketManager(
            self.rung_system,
            check_brackets(brackets, len(self._levels)),
            _checked_bool("rung_system_per_bracket", rung_system_per_bracket),
            mode,
            self.random_seed,
        )
        self._rules = SearcherDataRules(
            searcher_data, register_pending_myopic, self.rung_system.rung_levels, self.max_resource_level
        )
        self._feed = SearcherFeed(self._rules, self._tell_searcher)
        self.do_snapshots = _checked_bool("do_snapshots", do_snapshots)
        if self.do_snapshots and self.does_pause_resume():
            raise ValueError("do_snapshots=True needs type='stopping': the rung system pauses trials")
        self._costs = CostAccounting(cost_attr, resource_attr, metric, self.does_pause_resume())
        self._sign = -1.0 if mode == "max" else 1.0
        self._records: dict[int, TrialInformation] = {}
        self._skip_warned: set[int] = set()  # rung levels; only for not saying it twice
        # Last, since a distribution may ask the scheduler for whatever it has.
        if bracket_distribution is not None and self.num_brackets == 1:
            raise ValueError("bracket_distribution needs brackets=2 or more, there is one bracket")
        if bracket_distribution is None:
            self._use_distribution(DefaultHyperbandBracketDistribution())
        else:
            self.bracket_distribution = bracket_distribution

    # ---- description ---------------------------------------------------------------------------------

    @property
    def rung_levels(self) -> list[int]:
        """The levels at which trials are compared, all below the maximum resource."""
        return list(self.rung_system.rung_levels)

    @property
    def num_brackets(self) -> int:
        """Number of brackets."""
        return self.terminator.num_brackets

    @property
    def searcher_data(self) -> str:
        """What the searcher learns from: ``"rungs"``, ``"all"`` or ``"rungs_and_last"``."""
        return self._rules.searcher_data

    @property
    def cost_attr(self) -> str | None:
        """Name of the reported cost, or ``None``."""
        return self._costs.cost_attr

    @property
    def bracket_distribution(self) -> BracketDistribution:
        """Probabilities of the brackets; one that is assigned takes the place of the default and the searcher's."""
        return self._bracket_distribution

    @bracket_distribution.setter
    def bracket_distribution(self, distribution: BracketDistribution) -> None:
        self._use_distribution(distribution)
        self._given_distribution = True

    def _use_distribution(self, distribution: BracketDistribution) -> None:
        if not isinstance(distribution, BracketDistribution):
            raise TypeError(f"bracket_distribution must be a BracketDistribution, got {distribution!r}")
        distribution.configure(self)
        self._bracket_distribution = distribution

    def milestone(self, trial_id: int) -> int | None:
        """Return the level of the next decision about a running trial, ``None`` for any other."""
        record = self._records.get(trial_id)
        return None if record is None or record.decision != SchedulerDecision.CONTINUE else record.milestone

    def trials_checkpoints_can_be_removed(self) -> list[int]:
        """Return the paused trials whose value is not finite: they are never promoted.

        Any other may be one day, since enough worse ones may come.
        """
        return self.terminator.take_hopeless()

    def bracket(self, trial_id: int) -> int | None:
        """Return the bracket of a trial, ``None`` for an unknown one."""
        record = self._records.get(trial_id)
        return None if record is None else record.bracket

    # ---- suggestions ---------------------------------------------------------------------------------

    def _searcher_context(self) -> SearcherContext:
        return replace(
            super()._searcher_context(),
            rung_levels=self.rung_system.rung_levels,
            num_brackets=self.num_brackets,
            searcher_data=self.searcher_data,
            cost_attr=self._costs.name,
        )

    def _configure_searcher(self) -> None:
        if not self._configured:
            super()._configure_searcher()
            if self.searcher.bracket_distribution is not None and not self._given_distribution:
                self._use_distribution(self.searcher.bracket_distribution)

    def _promote(self, trial_id: int) -> TrialSuggestion | None:
        bracket, promotion = self.terminator.schedule(self._bracket_distribution)
        if promotion is None:
            if self.do_snapshots:
                self.searcher.on_snapshot(self._snapshot(bracket))
            return None
        record = self._records[promotion.trial_id]
        record.decision = SchedulerDecision.CONTINUE
        record.milestone = promotion.milestone
        record.bracket = bracket
        if record.costs is not None:
            record.costs.begin_run()
        self._feed.pending(promotion.trial_id, record, promotion.resume_from)
        config = None
        if self.max_resource_attr is not None and record.config is not None:
            config = record.config | {self.max_resource_attr: record.milestone}
        return TrialSuggestion.resume_suggestion(promotion.trial_id, config)

    def _new_trial(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        bracket = self.terminator.new_trial(self._bracket_distribution)
        record = self._records[trial_id] = self._new_record(bracket)
        record.searcher_config = config
        self._feed.pending(trial_id, record, 0)
        if self.does_pause_resume() and self.max_resource_attr is not None:
            record.config = config
            config = config | {self.max_resource_attr: record.milestone}
        return TrialSuggestion.start_suggestion(config)

    def _snapshot(self, bracket: int) -> RungSnapshot:
        tasks = {
            trial_id: RunningTrial(dict(record.searcher_config or {}), record.time, record.resource)
            for trial_id, record in self._records.items()
            if record.decision == SchedulerDecision.CONTINUE
            and (record.bracket == bracket or not self.terminator.per_bracket)
        }
        return RungSnapshot(tasks, self.terminator.snapshot_rungs(bracket), self.max_resource_level)

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_add(self, trial: Trial) -> None:
        self._record(trial)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        """Decide about a trial that reported.

        A report of a trial that was stopped or paused gets the same decision again, one whose resource does not
        exceed the largest so far CONTINUE; neither counts.

        Raises:
            ReportError: If the metric is missing or no number, the resource missing or no positive integer, the cost
                no finite number of at least 0, or if the report of a trial that is to pause lies beyond its
                milestone.
        """
        value = self._metric_value(result)
        resource = report_resource(result, self.resource_attr, self.metric)
        trial_id = trial.trial_id
        record = self._records.get(trial_id) or self._record(trial)
        if record.decision != SchedulerDecision.CONTINUE or resource <= record.resource:
            self._costs.columns = {}
            if record.costs is not None and record.decision == SchedulerDecision.CONTINUE:
                self._costs.repeat(record.costs, resource, result)
            return record.decision
        cost = None if self._costs.name is None else self._costs.read(record.costs, resource, result)
        decision, passed = SchedulerDecision.CONTINUE, record.milestone
        if resource >= passed:
            decision = self._decide(trial_id, record, resource, self._sign * value, cost)
        if cost is not None:
            result = self._costs.book(record.costs, resource, result, cost)
        record.resource = resource
        record.decision = decision
        if record.searcher_config is None:
            record.searcher_config = self._preprocess_config(trial.config)
        self._feed.report(trial_id, record, result)
        if record.milestone != passed or (self._rules.myopic and decision == SchedulerDecision.CONTINUE):
            self._feed.pending(trial_id, record, resource)
        return decision

    def on_trial_resume(self, trial: Trial) -> None:
        record = self._records.get(trial.trial_id)
        if record is None:
            return
        if record.costs is not None:
            record.costs.begin_run()
        if record.decision == SchedulerDecision.PAUSE:  # resumed by the scheduler before this one
            system = self.terminator.system(record.bracket)
            system.discard(trial.trial_id)
            record.decision = SchedulerDecision.CONTINUE
            record.milestone = system.next_level(record.resource)
            self._feed.pending(trial.trial_id, record, record.resource)

    def on_trial_repeat(self, trial: Trial, result: dict[str, Any]) -> None:
        record = self._records.get(trial.trial_id)
        if record is not None and record.costs is not None:
            try:
                self._costs.repeat(record.costs, report_resource(result, self.resource_attr, self.metric), result)
            except ReportError as error:  # too late to fail the trial
                logger.warning("trial %d: %s", trial.trial_id, error)

    def result_columns(self) -> dict[str, Any]:
        return self._costs.columns

    def on_trial_remove(self, trial: Trial) -> None:
        self._tell_searcher("cleanup_pending", trial.trial_id)

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        record = self._record(trial)
        self._feed.last_report(trial.trial_id, record, self._costs.with_total(record.costs, result))
        self._tell_searcher("cleanup_pending", trial.trial_id)
        self._end(trial)

    def on_trial_error(self, trial: Trial) -> None:
        super().on_trial_error(trial)
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        record = self._record(trial)
        record.decision = SchedulerDecision.STOP
        record.config = record.searcher_config = record.costs = None
        self.terminator.system(record.bracket).discard(trial.trial_id)

    def _decide(self, trial_id: int, record: TrialInformation, resource: int, value: float, cost: float | None) -> str:
        """Decide about a report at the trial's milestone or beyond it."""
        system = self.terminator.system(record.bracket)
        if resource > record.milestone != system.max_t:
            self._skipped(trial_id, record.milestone, resource)
        if resource >= system.max_t:
            return SchedulerDecision.STOP
        goes_on = resource not in self._levels or system.register(trial_id, resource, value, cost)
        if goes_on:
            record.milestone = system.next_level(resource)
            return SchedulerDecision.CONTINUE
        return SchedulerDecision.PAUSE if system.pauses else SchedulerDecision.STOP

    def _skipped(self, trial_id: int, level: int, resource: int) -> None:
        what = (
            f"{self.resource_attr}={resource} was reported without {self.resource_attr}={level}, a rung level "
            f"(rung levels: {self.rung_levels}); report {self.metric!r} at every rung level, at best at every "
            f"{self.resource_attr}"
        )
        if self.does_pause_resume():
            raise ReportError(f"trial {trial_id}: {what}")
        if level not in self._skip_warned:
            self._skip_warned.add(level)
            logger.warning("trial %d: %s. A trial that skips a rung goes on there without comparison", trial_id, what)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "trials": {str(trial_id): record.state_dict() for trial_id, record in self._records.items()},
            "brackets": self.terminator.state_dict(),
            "bracket_distribution": self.bracket_distribution.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.terminator.load_state_dict(state["brackets"], state["random_seed"])
        self._records = {
            int(trial_id): TrialInformation.from_state(fields) for trial_id, fields in state["trials"].items()
        }
        super().load_state_dict(state)
        # Only now it is the one that the searcher brought, if it did.
        self.bracket_distribution.load_state_dict(state["bracket_distribution"])


def _checked_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value
