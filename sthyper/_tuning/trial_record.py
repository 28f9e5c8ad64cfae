"""What the tuner keeps of a trial."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sthyper.schedulers.base import TrialScheduler
from sthyper.schedulers.reports import ReportKind, judge_report, resource_of, settle_decision
from sthyper.trial import Trial, copied, trial_from_state, trial_state

__all__ = ["Cause", "ReportKind", "TrialRecord", "judge_report", "progress_of", "resource_of", "settle_decision"]


def progress_of(metrics: dict[str, Any], scheduler: TrialScheduler) -> float | None:
    """Return how far a trial has come, of a scheduler without a resource; ``None`` if the report does not tell."""
    progress = resource_of(metrics, scheduler.progress_attr)
    return progress if progress is not None and 0 <= progress < math.inf else None


class Cause(StrEnum):
    """Why a run of a trial was started."""

    start = "start"
    resume = "resume"
    killed = "killed"
    supervisor_lost = "supervisor_lost"
    scratch = "scratch"
    tuner_lost = "tuner_lost"
    lost = "lost"
    interrupted = "interrupted"

    @property
    def is_restart(self) -> bool:
        """Whether an earlier run ended before its time."""
        return self in (Cause.killed, Cause.supervisor_lost, Cause.tuner_lost, Cause.lost, Cause.interrupted)


_PLAIN = (
    "run",
    "busy",
    "milestone",
    "order",
    "largest",
    "repeated",
    "progresses",
    "counted",
    "counted_in_run",
    "completes",
    "restarts",
    "scratched",
    "bad_report",
    "warned",
    "unknown",
    "outside",
)
"""Fields of a record that are numbers, strings and switches."""


@dataclass(slots=True)
class TrialRecord:
    """State of a trial in the tuner.

    Args:
        trial: The trial.
        run: Number of the current or last run.
        cause: Why that run was started.
        busy: Whether it occupies a worker.
        script_config: Configuration that the script gets: that of the trial, except over backends that rewrite the
            maximum resource.
        milestone: Resource at which the scheduler decides next.
        order: STOP or PAUSE once this run got it.
        largest: Largest resource of all counted reports; without a resource the last progress, if it is known.
        repeated: Largest resource, or progress, of this run's reports that an earlier run had reported.
        progresses: Whether all counted reports had a progress, larger each time, as far as anybody looks at it.
        in_run: Resource -> (answer, client) of this run's reports.
        counted: Number of counted reports of all runs.
        counted_in_run: Number of counted reports of this run.
        last_result: Last counted report.
        completes: Whether the end of this trial counts as completion whatever ends it (maximum resource).
        restarts: Number of restarts after the trial was killed from outside.
        scratched: Whether it was already run once more from scratch.
        bad_report: Why its last report could not be used.
        warned: Whether a repeated report has been warned of.
        unknown: Whether the scheduler does not know it: another one had started it, in another configuration space.
        outside: Whether it was stopped because it does not suit the new configuration space.
        owed: Why a resumed experiment has to run it again, ``None`` if it has not.
    """

    trial: Trial
    run: int = 0
    cause: Cause = Cause.start
    busy: bool = True
    script_config: dict[str, Any] = field(default_factory=dict)
    milestone: int | None = None
    order: str | None = None
    largest: float | None = None
    repeated: float | None = None
    progresses: bool = True
    in_run: dict[float, tuple[str, str]] = field(default_factory=dict)
    counted: int = 0
    counted_in_run: int = 0
    last_result: dict[str, Any] | None = None
    completes: bool = False
    restarts: int = 0
    scratched: bool = False
    bad_report: str | None = None
    warned: bool = False
    unknown: bool = False
    outside: bool = False
    owed: Cause | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers, except what late reports of a run that has ended would meet."""
        state = {name: getattr(self, name) for name in _PLAIN}
        state |= {
            "trial": trial_state(self.trial),
            "cause": self.cause.value,
            "script_config": None if self.script_config == self.trial.config else copied(self.script_config),
            "in_run": [[resource, *answer] for resource, answer in self.in_run.items()] if self.busy else [],
            "last_result": None if self.last_result is None else copied(self.last_result),
            "owed": None if self.owed is None else self.owed.value,
        }
        return state

    @staticmethod
    def from_state(state: dict[str, Any]) -> TrialRecord:
        """Return the record whose :meth:`state_dict` is given."""
        record = TrialRecord(trial_from_state(state["trial"]), **{name: state[name] for name in _PLAIN})
        record.cause = Cause(state["cause"])
        script_config = state["script_config"]
        record.script_config = copied(record.trial.config if script_config is None else script_config)
        record.in_run = {resource: (answer, client) for resource, answer, client in state["in_run"]}
        record.last_result = None if state["last_result"] is None else copied(state["last_result"])
        record.owed = None if state["owed"] is None else Cause(state["owed"])
        return record

    def is_behind(self, progress: float | None) -> bool:
        """Whether a report with this progress repeats what an earlier run has reported."""
        if self.run == 0 or self.counted_in_run or progress is None or self.largest is None:
            return False
        return progress <= self.largest

    def advance(self, progress: float | None) -> None:
        """Book the progress of a counted report; one that does not grow says nothing about how far the trial is."""
        self.progresses = self.progresses and progress is not None and (self.largest is None or progress > self.largest)
        self.largest = self.trial.last_resource = progress if self.progresses else None

    def begin_run(self, run: int, cause: Cause) -> None:
        """Forget what belongs to the run before."""
        self.run = run
        self.cause = cause
        self.busy = True
        self.order = None
        self.in_run = {}
        self.repeated = None
        self.counted_in_run = 0
        self.bad_report = None
        self.outside = False
        self.owed = None
