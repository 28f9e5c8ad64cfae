"""Trials without training: several fake workers that report the values of a curve to a scheduler."""

from __future__ import annotations

import copy
import heapq
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sthyper.schedulers.base import TrialScheduler
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["Curve", "SimulatedEvent", "TrialSimulation", "drive", "toy_curve", "toy_fraction"]

Curve = Callable[[dict[str, Any], int], Mapping[str, Any]]
"""Metrics of a configuration at a resource level (1, 2, ...)."""


@dataclass(frozen=True)
class SimulatedEvent:
    """Something that happened in a :class:`TrialSimulation`.

    Args:
        kind: ``"start"``, ``"resume"``, ``"report"``, ``"complete"``, ``"error"`` or ``"exhausted"`` (the scheduler
            has nothing left to suggest).
        trial_id: The trial; the id that a new one would get for ``"exhausted"``.
        resource: Its level: of the report, or reached so far.
        decision: What the scheduler decided about a report.
        answer: What the trial was told; differs from the decision at the maximum resource.
        config: The suggested configuration of a start or resume.
    """

    kind: str
    trial_id: int
    resource: int = 0
    decision: str | None = None
    answer: str | None = None
    config: dict[str, Any] | None = None


@dataclass
class _Run:
    trial: Trial
    resource: int = 0
    paused: bool = False
    last_result: dict[str, Any] | None = None


class TrialSimulation:
    """Drives a scheduler as the tuner does, with trials that only report the values of a curve.

    Trials count their resource from 1, report at every level, keep it when they are paused, and end after
    ``max_resource``. A STOP or PAUSE at the scheduler's maximum resource does not stop them if the scheduler knows a
    ``max_resource_attr``. Everything is deterministic: a level takes a trial a time that depends on its configuration
    only.

    Args:
        scheduler: The scheduler.
        curve: Metrics by configuration and resource level; :func:`toy_curve` by default.
        n_workers: Number of trials that run at the same time.
        n_trials: Largest number of trials that are started. Afterwards paused trials are resumed until the scheduler
            suggests a new one.
        max_resource: Level at which trials end; by default the scheduler's maximum, else 9.
        fails_at: Trial id -> level in place of whose report the trial fails with ``end_reason="exit 1"``.

    Attributes:
        events: What happened so far.
        let_go: Trials whose checkpoints nobody needs any more, as ``delete_checkpoints=True`` would delete them: they
            ended for good, or the scheduler has named them. The simulation fails when it resumes one of them or starts
            another from its checkpoint.
        named: Those that the scheduler has named, in order.
    """

    def __init__(
        self,
        scheduler: TrialScheduler,
        curve: Curve | None = None,
        n_workers: int = 4,
        n_trials: int = 20,
        max_resource: int | None = None,
        fails_at: Mapping[int, int] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.curve = toy_curve(scheduler) if curve is None else curve
        self.n_workers = n_workers
        self.n_trials = n_trials
        self.max_resource = max_resource or scheduler.max_resource_level or 9
        self.fails_at = dict(fails_at or {})
        self.events: list[SimulatedEvent] = []
        self.let_go: set[int] = set()
        self.named: list[int] = []
        self._runs: dict[int, _Run] = {}
        self._queue: list[tuple[float, int]] = []  # time of the next report, trial
        self._now = 0.0
        self._asking = True  # until there is nothing to suggest; again when a trial ended or paused
        self._kept_back = False

    def run(self, max_events: int | None = None) -> list[SimulatedEvent]:
        """Go on until nothing runs and nothing is suggested, or until there are ``max_events`` events or a few more.

        Returns:
            All events so far.
        """
        while max_events is None or len(self.events) < max_events:
            self._fill_workers()
            if not self._queue:
                break
            self._now, trial_id = heapq.heappop(self._queue)
            self._step(self._runs[trial_id])
        return self.events

    def fork(self, scheduler: TrialScheduler) -> TrialSimulation:
        """Return a copy of this simulation, as it is now, that goes on with another scheduler."""
        twin = copy.copy(self)
        twin.scheduler = scheduler
        twin.events = list(self.events)
        twin.let_go, twin.named = set(self.let_go), list(self.named)
        twin._runs = copy.deepcopy(self._runs)
        twin._queue = list(self._queue)
        return twin

    # ---- workers -------------------------------------------------------------------------------------

    def _fill_workers(self) -> None:
        while self._asking and not self._kept_back and len(self._queue) < self.n_workers:
            new_id = len(self._runs)
            suggestion = self.scheduler.suggest(new_id)
            if suggestion is None:
                self.events.append(SimulatedEvent("exhausted", new_id))
                self._asking = False
            elif not suggestion.spawn_new_trial_id:
                self._resume(suggestion)
            elif new_id == self.n_trials:
                self._kept_back = True
            else:
                self._start(new_id, suggestion)

    def _start(self, trial_id: int, suggestion: TrialSuggestion) -> None:
        assert suggestion.config is not None
        if suggestion.checkpoint_trial_id in self.let_go:
            raise AssertionError(
                f"the scheduler wants to start trial {trial_id} from the checkpoint of trial "
                f"{suggestion.checkpoint_trial_id}, which is let go; see TrialScheduler.may_copy_checkpoint"
            )
        config = self._full(suggestion.config)
        trial = Trial(trial_id, config, creation_time=datetime(2020, 1, 1))
        self._runs[trial_id] = _Run(trial)
        self.events.append(SimulatedEvent("start", trial_id, config=dict(suggestion.config)))
        self.scheduler.on_trial_add(trial)
        self._schedule(trial)

    def _resume(self, suggestion: TrialSuggestion) -> None:
        assert suggestion.checkpoint_trial_id is not None
        run = self._runs.get(suggestion.checkpoint_trial_id)
        if run is None or not run.paused:
            raise AssertionError(f"the scheduler wants to {suggestion}, which is not paused")
        if run.trial.trial_id in self.let_go:
            raise AssertionError(
                f"the scheduler wants to {suggestion}, which trials_checkpoints_can_be_removed() has named before"
            )
        run.paused = False
        if suggestion.config is not None:
            run.trial.config = self._full({**run.trial.config, **suggestion.config})
        config = None if suggestion.config is None else dict(suggestion.config)
        self.scheduler.on_trial_resume(run.trial)
        self.events.append(SimulatedEvent("resume", run.trial.trial_id, run.resource, config=config))
        self._schedule(run.trial)

    def _full(self, config: dict[str, Any]) -> dict[str, Any]:
        name = self.scheduler.max_resource_attr
        return dict(config) if name is None else {**config, name: self.scheduler.config_space[name]}

    def _schedule(self, trial: Trial) -> None:
        duration = 0.5 + toy_fraction([trial.trial_id, sorted(trial.config.items())])
        heapq.heappush(self._queue, (self._now + duration, trial.trial_id))

    # ---- reports and ends ----------------------------------------------------------------------------

    def _step(self, run: _Run) -> None:
        trial = run.trial
        if run.resource >= self.max_resource:  # what comes after the training loop is done, too
            self._complete(run)
            return
        resource = run.resource + 1
        if self.fails_at.get(trial.trial_id) == resource:
            trial.end_reason = "exit 1"
            self.events.append(SimulatedEvent("error", trial.trial_id, run.resource))
            self._asking = True
            self.scheduler.on_trial_error(trial)
            self._let_go(trial.trial_id, final=True)
            return
        result = {**self.curve(trial.config, resource), self.scheduler.resource_attr or "epoch": resource}
        decision = self.scheduler.on_trial_result(trial, result)
        answer = self._answer(decision, resource)
        run.resource, run.last_result = resource, result
        self.events.append(SimulatedEvent("report", trial.trial_id, resource, decision, answer))
        if answer == SchedulerDecision.CONTINUE:
            self._schedule(trial)
            return
        self._asking = True
        if answer == SchedulerDecision.STOP and resource == self.scheduler.max_resource_level:
            self._complete(run)
            return
        run.paused = answer == SchedulerDecision.PAUSE
        self.scheduler.on_trial_remove(trial)
        self._let_go(trial.trial_id, final=not run.paused)

    def _answer(self, decision: str, resource: int) -> str:
        at_maximum = resource == self.scheduler.max_resource_level
        if at_maximum and self.scheduler.max_resource_attr is not None:
            return SchedulerDecision.CONTINUE
        return decision

    def _complete(self, run: _Run) -> None:
        assert run.last_result is not None
        self.events.append(SimulatedEvent("complete", run.trial.trial_id, run.resource))
        self._asking = True
        self.scheduler.on_trial_complete(run.trial, run.last_result)
        self._let_go(run.trial.trial_id, final=True)

    def _let_go(self, trial_id: int, final: bool) -> None:
        if final and not self.scheduler.may_copy_checkpoint(trial_id):
            self.let_go.add(trial_id)
        for named in self.scheduler.trials_checkpoints_can_be_removed():
            if named not in self._runs:
                raise AssertionError(f"trials_checkpoints_can_be_removed() names trial {named}, which never started")
            self.named.append(named)
            self.let_go.add(named)


def drive(
    scheduler: TrialScheduler,
    curve: Curve | None = None,
    n_workers: int = 4,
    n_trials: int = 20,
    max_resource: int | None = None,
    fails_at: Mapping[int, int] | None = None,
) -> list[SimulatedEvent]:
    """Run a :class:`TrialSimulation` to its end and return its events; the arguments are the same."""
    return TrialSimulation(scheduler, curve, n_workers, n_trials, max_resource, fails_at).run()


def toy_curve(scheduler: TrialScheduler) -> Curve:
    """Return a deterministic curve for all metrics of a scheduler.

    Its limit depends on the configuration; the way there vanishes with the resource.
    """
    metrics = scheduler.metric_names()
    ignored = scheduler.max_resource_attr

    def curve(config: dict[str, Any], resource: int) -> dict[str, float]:
        items = sorted((k, v) for k, v in config.items() if k != ignored)
        return {name: toy_fraction([name, items]) + toy_fraction([name, items, "slope"]) / resource for name in metrics}

    return curve


def toy_fraction(value: Any) -> float:
    """Return a number in [0, 1) that depends on the text of ``value`` only."""
    return zlib.crc32(repr(value).encode()) / 2**32
