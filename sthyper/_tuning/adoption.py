"""An experiment goes on with a scheduler that had not decided before: it learns what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sthyper._tuning.space_change import SpaceMap
from sthyper.errors import ReportError
from sthyper.schedulers.base import TrialScheduler
from sthyper.trial import SchedulerDecision, Trial

__all__ = ["OUTSIDE", "TRAITS", "FreshStart", "SchedulerFeed", "scheduler_traits"]

OUTSIDE = "outside the configuration space"
"""End reason of trials that have no place in a space that was changed on a resume."""

TRAITS = ("resource_attr", "progress_attr", "max_resource_attr", "max_resource_level")
"""Attributes of a scheduler on which the bookkeeping of trials depends."""


def scheduler_traits(scheduler: TrialScheduler) -> dict[str, Any]:
    """Return what the bookkeeping of trials depends on, for the journal."""
    return {name: getattr(scheduler, name) for name in TRAITS}


@dataclass(frozen=True)
class FreshStart:
    """The wish to go on with a fresh scheduler.

    Args:
        reason: Why.
        scheduler: Its description, see :func:`sthyper._tuning.parts.describe_parts`.
        new_defaults: Values of new hyperparameters for past trials.
    """

    reason: str
    scheduler: Any
    new_defaults: Mapping[str, Any] = field(default_factory=dict)


class SchedulerFeed:
    """Tells a scheduler what happened when others decided.

    Args:
        scheduler: The scheduler, which nobody has asked yet.
        space_map: Finds places for configurations in its space.

    Attributes:
        known: The trials that it was told of, their configurations in its space.
        passed_over: Number of reports that it could not use.
    """

    def __init__(self, scheduler: TrialScheduler, space_map: SpaceMap) -> None:
        self.scheduler = scheduler
        self.known: dict[int, Trial] = {}
        self.passed_over = 0
        self._map = space_map

    def start(self, trial: Trial) -> None:
        """A trial was started."""
        place = self._map.place(trial.config)
        if place is not None:
            self.scheduler.suggest_enqueued(trial.trial_id, dict(place.tuned))
            own = replace(trial, config=self._map.complete(place.tuned, trial.config), end_reason=None)
            self.known[trial.trial_id] = own
            self.scheduler.on_trial_add(own)

    def resume(self, trial: Trial) -> None:
        """A further run of a trial was started."""
        own, place = self.known.get(trial.trial_id), self._map.place(trial.config)
        if own is not None and place is not None:
            own.config = self._map.complete(place.tuned, trial.config)
            own.end_reason = None
            self.scheduler.on_trial_resume(own)

    def result(self, trial_id: int, result: dict[str, Any], decision: str) -> None:
        """A trial reported and was told a decision."""
        if (own := self.known.get(trial_id)) is not None:
            try:
                self.scheduler.adopt_result(own, result, decision)
            except ReportError:
                self.passed_over += 1

    def decide(self, trial_id: int, result: dict[str, Any]) -> str:
        """Let the scheduler decide about a report, as the one before has not."""
        own = self.known.get(trial_id)
        return SchedulerDecision.CONTINUE if own is None else self.scheduler.on_trial_result(own, result)

    def repeat(self, trial_id: int, result: dict[str, Any]) -> None:
        """A further run of a trial reported once more what an earlier one had reported."""
        if (own := self.known.get(trial_id)) is not None:
            self.scheduler.on_trial_repeat(own, result)

    def remove(self, trial_id: int) -> None:
        """A trial was stopped or paused."""
        if (own := self.known.get(trial_id)) is not None:
            self.scheduler.on_trial_remove(own)

    def complete(self, trial_id: int, result: dict[str, Any]) -> None:
        """A trial completed."""
        if (own := self.known.get(trial_id)) is not None:
            self.scheduler.on_trial_complete(own, result)

    def error(self, trial_id: int, reason: str | None) -> None:
        """A trial failed, or was ended for another reason that no decision tells."""
        if (own := self.known.get(trial_id)) is not None:
            own.end_reason = reason
            self.scheduler.on_trial_error(own)

    def add_result(self, trial_id: int, config: Mapping[str, Any], result: dict[str, Any]) -> None:
        """A result of another configuration was added."""
        place = self._map.place(config)
        if place is not None:
            try:
                self.scheduler.add_result(trial_id, dict(place.tuned), result)
            except ReportError:
                self.passed_over += 1
