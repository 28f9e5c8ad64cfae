"""Results that no decision of Hyperband led to, and what it keeps of trials."""

from __future__ import annotations

from typing import Any

from sthyper.schedulers.base import TrialSchedulerWithSearcher
from sthyper.schedulers.hyperband.brackets import HyperbandBracketManager
from sthyper.schedulers.hyperband.costs import CostAccounting
from sthyper.schedulers.hyperband.record import TrialInformation
from sthyper.schedulers.hyperband.rungs import RungSystem
from sthyper.schedulers.hyperband.searcher_data import SearcherDataRules, SearcherFeed
from sthyper.schedulers.resources import report_resource
from sthyper.trial import SchedulerDecision, Trial

__all__ = ["TakesResults"]


class TakesResults(TrialSchedulerWithSearcher):
    """The part of :class:`~sthyper.schedulers.HyperbandScheduler` that takes in results of other schedulers."""

    resource_attr: str
    max_resource_level: int
    rung_system: RungSystem
    terminator: HyperbandBracketManager
    do_snapshots: bool
    _rules: SearcherDataRules
    _feed: SearcherFeed
    _costs: CostAccounting
    _sign: float
    _records: dict[int, TrialInformation]

    def does_pause_resume(self) -> bool:
        """Whether trials are paused at rungs and resumed later (promotion), or stopped for good."""
        return self.rung_system.pauses

    def adopt_result(self, trial: Trial, result: dict[str, Any], decision: str) -> None:
        """Take in a report about which another scheduler has decided.

        At a rung level it enters the rung. The trial is then paused here, too, goes on to the next level, or has ended,
        as it was told. One that was paused between two levels counts as paused at the lower one.

        Args:
            trial: The trial.
            result: The report.
            decision: What the trial was told.

        Raises:
            ReportError: As :meth:`on_trial_result`.
        """
        value = self._metric_value(result)
        resource = report_resource(result, self.resource_attr, self.metric)
        record = self._records.get(trial.trial_id) or self._record(trial)
        if resource <= record.resource:
            return
        cost = None if self._costs.name is None else self._costs.read(record.costs, resource, result)
        if decision == SchedulerDecision.PAUSE and resource < record.milestone:
            record.bracket = self.terminator.bracket_that_begins(resource)
            record.milestone = self.terminator.first_milestone(record.bracket)
        passed, system = record.milestone, self.terminator.system(record.bracket)
        pauses = decision == SchedulerDecision.PAUSE and resource < system.max_t
        if resource >= passed:
            entered = resource in system.rung_levels
            if entered:
                system.register(trial.trial_id, resource, self._sign * value, cost)
            if pauses and not entered:
                system.pause(trial.trial_id)
            elif not pauses:
                system.discard(trial.trial_id)
            if decision == SchedulerDecision.CONTINUE and resource < system.max_t:
                record.milestone = system.next_level(resource)
        elif pauses:
            system.pause(trial.trial_id)
        if cost is not None:
            result = self._costs.book(record.costs, resource, result, cost)
        record.resource = resource
        record.decision = SchedulerDecision.STOP if resource >= system.max_t else decision
        self._feed.report(trial.trial_id, record, result)
        goes_on = record.decision == SchedulerDecision.CONTINUE
        if goes_on and (record.milestone != passed or self._rules.myopic):
            self._feed.pending(trial.trial_id, record, resource)

    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        """Take in a result of a configuration that no trial of this experiment ran.

        At a rung level it enters the rung: trials are compared with it, it is never promoted. At any other level
        no rung learns of it; without a resource it counts at the maximum. The searcher learns from it as from a
        trial's.

        Args:
            trial_id: A negative id, one for each configuration.
            config: The configuration; constants may be left out.
            result: The report; those of one configuration come in the order of their resource.

        Raises:
            ReportError: As :meth:`on_trial_result`.
        """
        value = self._metric_value(result)
        if self.resource_attr not in result:
            result = {**result, self.resource_attr: self.max_resource_level}
        resource = report_resource(result, self.resource_attr, self.metric)
        record = self._records.get(trial_id)
        if record is None:
            record = self._new_record(0)
            record.decision = SchedulerDecision.STOP
            record.searcher_config = self._preprocess_config(config)
        if resource <= record.resource:
            return
        cost = self._costs.read(record.costs, resource, result)
        if cost is not None:
            result = self._costs.book(record.costs, resource, result, cost)
        self._records[trial_id] = record
        self.terminator.enter(trial_id, resource, self._sign * value)
        record.resource = resource
        self._feed.report(trial_id, record, result)

    def _new_record(self, bracket: int) -> TrialInformation:
        record = TrialInformation(self.terminator.first_milestone(bracket), bracket)
        record.costs = self._costs.new_trial()
        if self.do_snapshots:
            record.time = self._clock.elapsed()
        return record

    def _record(self, trial: Trial) -> TrialInformation:
        """Return the record of a trial, with what only the trial itself knows filled in."""
        record = self._records.get(trial.trial_id)
        if record is None:  # started by hand
            record = self._records[trial.trial_id] = self._new_record(0)
        if record.searcher_config is None:
            record.searcher_config = self._preprocess_config(trial.config)
        if self.does_pause_resume() and self.max_resource_attr is not None:
            record.config = dict(trial.config)
        return record
