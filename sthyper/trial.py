"""The words in which tuner, backends and schedulers speak about trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sthyper.constants import ST_WORKER_COST

__all__ = [
    "OUT_OF_MEMORY",
    "SchedulerDecision",
    "Status",
    "Trial",
    "TrialResult",
    "TrialSuggestion",
    "copied",
    "draw_seed",
    "is_own_failure",
    "normalize_trial_id",
    "trial_from_state",
    "trial_seed",
    "trial_state",
    "was_killed",
]

_ATOMS = frozenset({int, float, str, bool, type(None)})

OUT_OF_MEMORY = "out_of_memory"
KILLED = "killed"


class Status(StrEnum):
    """State of a trial; the values are what tables, journal and CSV hold."""

    in_progress = "InProgress"
    paused = "Paused"
    stopping = "Stopping"
    stopped = "Stopped"
    completed = "Completed"
    failed = "Failed"


class SchedulerDecision:
    """What a scheduler answers to a report.

    ``STOP`` is final: the trial is never resumed. ``PAUSE`` keeps its checkpoint for a later resume.
    """

    CONTINUE = "CONTINUE"
    PAUSE = "PAUSE"
    STOP = "STOP"


@dataclass
class Trial:
    """One configuration under evaluation.

    Args:
        trial_id: 0, 1, 2, ... in the order of the starts.
        config: Hyperparameters and constants that the training code gets, plain Python values.
        creation_time: When the trial was first started.
        seed: The trial's own seed.
        end_reason: Why the trial ended (``"out_of_memory"``, ``"hung"``, ``"killed"``, ``"exit 1"``,
            ``"interrupted"``, ...); ``None`` while it runs or when it ended in order.
        last_resource: Resource of the last counted report, ``None`` before the first.
    """

    trial_id: int
    config: dict[str, Any]
    creation_time: datetime
    seed: int | None = None
    end_reason: str | None = None
    last_resource: float | None = None

    def add_results(
        self, metrics: list[dict[str, Any]], status: Status, training_end_time: datetime | None
    ) -> TrialResult:
        """Return this trial together with what it reported."""
        return TrialResult(
            trial_id=self.trial_id,
            config=self.config,
            creation_time=self.creation_time,
            seed=self.seed,
            end_reason=self.end_reason,
            last_resource=self.last_resource,
            metrics=metrics,
            status=status,
            training_end_time=training_end_time,
        )


@dataclass
class TrialResult(Trial):
    """A trial with its reports, its status and its end.

    Args:
        metrics: The reports in the order of arrival.
        status: Status at the time of the call.
        training_end_time: When the trial ended, ``None`` while it runs.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    status: Status = Status.in_progress
    training_end_time: datetime | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the creation to the end (or to now)."""
        end = self.training_end_time or datetime.now(tz=self.creation_time.tzinfo)
        return max(0.0, (end.replace(tzinfo=None) - self.creation_time.replace(tzinfo=None)).total_seconds())

    @property
    def cost(self) -> float | None:
        """Cost in the last report, ``None`` without one."""
        return self.metrics[-1].get(ST_WORKER_COST) if self.metrics else None


@dataclass(frozen=True)
class TrialSuggestion:
    """What a scheduler wants done with a free worker.

    Use :meth:`start_suggestion` or :meth:`resume_suggestion` instead of the constructor.

    Args:
        spawn_new_trial_id: True for a new trial, False to resume ``checkpoint_trial_id``.
        checkpoint_trial_id: Trial whose checkpoint a new trial starts from, or the trial to resume.
        config: Configuration of the new trial; for a resume, ``None`` keeps the old one.

    Raises:
        ValueError: If neither a configuration nor a trial is given, or a resume names no trial.
    """

    spawn_new_trial_id: bool = True
    checkpoint_trial_id: int | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.spawn_new_trial_id:
            if self.config is None:
                raise ValueError("TrialSuggestion: a new trial needs config=, got None")
        elif self.checkpoint_trial_id is None:
            raise ValueError("TrialSuggestion: a resume needs checkpoint_trial_id=, got None")

    @staticmethod
    def start_suggestion(config: dict[str, Any], checkpoint_trial_id: int | None = None) -> TrialSuggestion:
        """Start a new trial, from a copy of ``checkpoint_trial_id``'s checkpoint if that is given."""
        return TrialSuggestion(True, checkpoint_trial_id, config)

    @staticmethod
    def resume_suggestion(trial_id: int, config: dict[str, Any] | None = None) -> TrialSuggestion:
        """Resume the paused trial ``trial_id``; a ``config`` replaces its old one."""
        return TrialSuggestion(False, trial_id, config)

    def __str__(self) -> str:
        if self.spawn_new_trial_id:
            source = "" if self.checkpoint_trial_id is None else f" from trial {self.checkpoint_trial_id}"
            return f"start {self.config}{source}"
        change = "" if self.config is None else f" with {self.config}"
        return f"resume trial {self.checkpoint_trial_id}{change}"


def copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a configuration or a report; quick, as most values are numbers and strings."""
    return {name: value if value.__class__ in _ATOMS else copy.deepcopy(value) for name, value in values.items()}


def trial_state(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain containers."""
    return {
        "trial_id": trial.trial_id,
        "config": copied(trial.config),
        "creation_time": trial.creation_time.isoformat(),
        "seed": trial.seed,
        "end_reason": trial.end_reason,
        "last_resource": trial.last_resource,
    }


def trial_from_state(state: Mapping[str, Any]) -> Trial:
    """Return the trial whose :func:`trial_state` is given."""
    rest = {"config": copied(state["config"]), "creation_time": datetime.fromisoformat(state["creation_time"])}
    return Trial(**{**state, **rest})


def normalize_trial_id(trial_id: int | str, foreign: bool = False) -> int:
    """Return ``trial_id`` as an int; the decimal string that older searchers used is accepted.

    Args:
        trial_id: The id.
        foreign: Whether negative ids are allowed: those of results that no trial of the experiment reported.

    Raises:
        TypeError: If it is neither an int nor a decimal string.
        ValueError: If it is negative and must not be, or the string is no number.
    """
    if isinstance(trial_id, bool) or not isinstance(trial_id, int | str):
        raise TypeError(f"trial_id must be an int, got {trial_id!r} of type {type(trial_id).__name__}")
    try:
        value = int(trial_id)
    except ValueError:
        raise ValueError(f"trial_id must be an int or a decimal string, got {trial_id!r}") from None
    if value < 0 and not foreign:
        raise ValueError(f"trial_id must not be negative, got {value}")
    return value


def was_killed(end_reason: str | None) -> bool:
    """Whether a trial, or one of its ranks (``"killed (rank 1 died)"``), was killed from outside."""
    return end_reason is not None and (end_reason == KILLED or end_reason.startswith(f"{KILLED} ("))


def is_own_failure(end_reason: str | None) -> bool:
    """Whether a failed trial's configuration is to blame: out of memory, or the script's own error.

    Trials that were killed from outside, hung or interrupted say nothing about their configuration.
    """
    return end_reason is not None and (
        end_reason == OUT_OF_MEMORY or end_reason.startswith(("exit ", "signal ", "bad report", "no report"))
    )


def draw_seed() -> int:
    """Return a seed in [0, 2**31 - 2] from the system's entropy."""
    import numpy as np

    return int(np.random.SeedSequence().generate_state(1, dtype=np.uint32)[0]) % (2**31 - 1)


def trial_seed(experiment_seed: int, trial_id: int) -> int:
    """Return the seed of a trial, a 32-bit int, from ``SeedSequence([experiment_seed, trial_id])``."""
    import numpy as np

    return int(np.random.SeedSequence([experiment_seed, trial_id]).generate_state(1, dtype=np.uint32)[0])
