"""What the tuner keeps of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sthyper.schedulers.reports import ReportKind, judge_report, resource_of, settle_decision
from sthyper.trial import Trial

__all__ = ["Cause", "ReportKind", "TrialRecord", "judge_report", "resource_of", "settle_decision"]


class Cause(StrEnum):
    """Why a run of a trial was started."""

    start = "start"
    resume = "resume"
    killed = "killed"
    supervisor_lost = "supervisor_lost"
    scratch = "scratch"
    tuner_lost = "tuner_lost"
    interrupted = "interrupted"

    @property
    def is_restart(self) -> bool:
        """Whether an earlier run ended before its time."""
        return self in (Cause.killed, Cause.supervisor_lost, Cause.tuner_lost, Cause.interrupted)


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
        largest: Largest resource of all counted reports.
        in_run: Resource -> (answer, client) of this run's reports.
        counted: Number of counted reports of all runs.
        counted_in_run: Number of counted reports of this run.
        last_result: Last counted report.
        completes: Whether the end of this trial counts as completion whatever ends it (maximum resource).
        restarts: Number of restarts after the trial was killed from outside.
        scratched: Whether it was already run once more from scratch.
        bad_report: Why its last report could not be used.
        warned: Whether a repeated report has been warned of.
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
    in_run: dict[float, tuple[str, str]] = field(default_factory=dict)
    counted: int = 0
    counted_in_run: int = 0
    last_result: dict[str, Any] | None = None
    completes: bool = False
    restarts: int = 0
    scratched: bool = False
    bad_report: str | None = None
    warned: bool = False
    owed: Cause | None = None

    def begin_run(self, run: int, cause: Cause) -> None:
        """Forget what belongs to the run before."""
        self.run = run
        self.cause = cause
        self.busy = True
        self.order = None
        self.in_run = {}
        self.counted_in_run = 0
        self.bad_report = None
        self.owed = None
