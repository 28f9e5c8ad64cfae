"""When an experiment ends."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sthyper.errors import closest
from sthyper.tuning_status import TuningStatus

__all__ = ["PlateauStopper", "StoppingCriterion"]

logger = logging.getLogger(__name__)

_COUNTS = ("max_num_evaluations", "max_num_trials_started", "max_num_trials_completed", "max_num_trials_finished")


@dataclass(frozen=True)
class StoppingCriterion:
    """Ends an experiment as soon as one of the given limits is reached; without any it never does.

    Counts are exact: ``max_num_trials_started=10`` starts 10 trials, ``max_num_evaluations=100`` takes 100 reports.
    (Syne Tune went one beyond.) Metrics are compared over all counted reports; values that are not finite end
    nothing.

    Args:
        max_wallclock_time: Seconds.
        max_num_evaluations: Number of reports of all trials.
        max_num_trials_started: Number of trials that are started. It does not end the experiment: running and paused
            trials go on until nothing but new trials is left to do.
        max_num_trials_completed: Number of trials that run to their end.
        max_cost: Sum of the trials' costs, in the currency of ``cost_per_hour``; reached when it is exceeded.
        max_num_trials_finished: Number of trials that complete, fail or are stopped.
        min_metric_value: Metric -> threshold; reached when a value is below it.
        max_metric_value: Metric -> threshold; reached when a value is above it. Both may name ``st_*`` fields.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a limit is not positive or a threshold not finite.
    """

    max_wallclock_time: float | None = None
    max_num_evaluations: int | None = None
    max_num_trials_started: int | None = None
    max_num_trials_completed: int | None = None
    max_cost: float | None = None
    max_num_trials_finished: int | None = None
    min_metric_value: dict[str, float] | None = None
    max_metric_value: dict[str, float] | None = None
    # What was logged, so that the log says it once.
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TypeError(f"{name} must be an int, got {value!r}")
                if value < 1:
                    raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("max_wallclock_time", "max_cost"):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value)
                if not value > 0:
                    raise ValueError(f"{name} must be positive, got {value!r}")
        for name in ("min_metric_value", "max_metric_value"):
            thresholds = getattr(self, name)
            if thresholds is not None:
                if not isinstance(thresholds, dict):
                    raise TypeError(f"{name} must be a dict such as {{'loss': 0.1}}, got {thresholds!r}")
                for metric, value in thresholds.items():
                    _check_number(f"{name}[{metric!r}]", value)
                    if not math.isfinite(value):
                        raise ValueError(f"{name}[{metric!r}] must be finite, got {value!r}")

    def __call__(self, status: TuningStatus) -> bool:
        """Return whether any limit is reached, ``max_num_trials_started`` included."""
        return self.reached(status) is not None or not self.may_start_new(status)

    def reached(self, status: TuningStatus) -> str | None:
        """Return which limit ends the experiment, as text that names it, or ``None``.

        ``max_num_trials_started`` is not looked at (see :meth:`may_start_new`).
        """
        for reason in self._reasons(status):
            if reason not in self._said:
                self._said.add(reason)
                logger.info("stop criterion: %s", reason)
            return reason
        return None

    def evaluations_used_up(self, status: TuningStatus) -> str | None:
        """Return the reason if ``max_num_evaluations`` is reached; it ends running trials whatever else is asked."""
        limit = self.max_num_evaluations
        return None if limit is None or status.num_results < limit else f"max_num_evaluations={limit} is reached"

    def may_start_new(self, status: TuningStatus) -> bool:
        """Return whether one more trial may be started as far as ``max_num_trials_started`` is concerned."""
        limit = self.max_num_trials_started
        if limit is None or status.num_trials_started < limit:
            return True
        if "max_num_trials_started" not in self._said:
            self._said.add("max_num_trials_started")
            logger.info("max_num_trials_started=%d is reached: no further trial is started", limit)
        return False

    def may_use_worker(self, status: TuningStatus) -> bool:
        """Return whether one more run of a trial could be needed to reach the counts of ended trials."""
        running = status.num_trials_running
        finished, completed = self.max_num_trials_finished, self.max_num_trials_completed
        return (finished is None or status.num_trials_finished + running < finished) and (
            completed is None or status.num_trials_completed + running < completed
        )

    def remaining_time(self, status: TuningStatus) -> float | None:
        """Return the seconds until ``max_wallclock_time``, at least 0, or ``None`` without that limit."""
        limit = self.max_wallclock_time
        return None if limit is None else max(0.0, limit - status.wallclock_time)

    def _reasons(self, status: TuningStatus) -> Iterator[str]:
        if (used_up := self.evaluations_used_up(status)) is not None:
            yield used_up
        limit: float | None = self.max_num_trials_completed
        if limit is not None and status.num_trials_completed >= limit:
            yield f"max_num_trials_completed={limit} is reached"
        limit = self.max_num_trials_finished
        if limit is not None and status.num_trials_finished >= limit:
            yield f"max_num_trials_finished={limit} is reached"
        limit = self.max_wallclock_time
        if limit is not None and status.wallclock_time >= limit:
            yield f"max_wallclock_time={limit:g} is reached"
        limit = self.max_cost
        if limit is not None and status.cost > limit:
            yield f"max_cost={limit:g} is exceeded"
        for metric, limit in (self.min_metric_value or {}).items():
            value = status.overall_metric_statistics.minimum(metric)
            if value is None:
                self._warn_of_unknown(status, metric, "min_metric_value")
            elif value < limit:
                yield f"min_metric_value: {metric} is below {limit:g}"
        for metric, limit in (self.max_metric_value or {}).items():
            value = status.overall_metric_statistics.maximum(metric)
            if value is None:
                self._warn_of_unknown(status, metric, "max_metric_value")
            elif value > limit:
                yield f"max_metric_value: {metric} is above {limit:g}"

    def _warn_of_unknown(self, status: TuningStatus, metric: str, argument: str) -> None:
        """Say once that a threshold names what no trial has reported: a slip would let the experiment run for ever."""
        known = status.overall_metric_statistics.is_numeric
        if not known or known.get(metric) or metric in self._said:
            return
        self._said.add(metric)
        logger.warning("%s: no trial has reported a number %r so far%s", argument, metric, closest(metric, known))


class PlateauStopper:
    """Ends an experiment when the best value has stopped to improve.

    The best value so far is followed over the last values of the trials, in the order of their starts. It is on a
    plateau when its last ``num_trials`` entries have a standard deviation of at most ``std``.

    Args:
        metric: The metric.
        std: Largest standard deviation of a plateau, > 0.
        num_trials: Number of trials that are looked at, at least 2.
        mode: ``"min"`` or ``"max"``.
        patience: Number of further calls in a row that must find the plateau before the experiment ends.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, metric: str, std: float = 0.001, num_trials: int = 10, mode: str = "min", patience: int = 0
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}{closest(mode, ('min', 'max'))}")
        if isinstance(num_trials, bool) or not isinstance(num_trials, int) or num_trials < 2:
            raise ValueError(f"num_trials must be an int of at least 2, got {num_trials!r}")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ValueError(f"patience must be an int of at least 0, got {patience!r}")
        if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
            raise ValueError(f"std must be a positive number, got {std!r}")
        self.metric = metric
        self.std = float(std)
        self.num_trials = num_trials
        self.mode = mode
        self.patience = patience
        self._calls_on_plateau = 0

    def __call__(self, status: TuningStatus) -> bool:
        """Return whether the experiment should end.

        Raises:
            ValueError: If a trial has reported, but not this metric.
        """
        if status.num_trials_finished == 0 or not self._on_plateau(status):
            self._calls_on_plateau = 0
            return False
        self._calls_on_plateau += 1
        return self._calls_on_plateau > self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as plain containers."""
        return {"calls_on_plateau": self._calls_on_plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._calls_on_plateau = state["calls_on_plateau"]

    def _on_plateau(self, status: TuningStatus) -> bool:
        better = min if self.mode == "min" else max
        best: float | None = None
        trajectory: list[float] = []
        for trial_statistics in status.trial_metric_statistics.values():
            last = trial_statistics.last_metrics
            if self.metric not in trial_statistics.metric_names:
                raise ValueError(f"metric {self.metric!r} is in no report{closest(self.metric, last)}: {last}")
            # The last report may lack a metric that is not reported every time; the best one stands for it.
            value = last.get(self.metric, trial_statistics.best(self.metric, self.mode))
            if value is None:
                continue
            if math.isfinite(value):
                best = value if best is None else better(best, value)
            if best is not None:
                trajectory.append(best)
        tail = trajectory[-self.num_trials :]
        return len(tail) == self.num_trials and statistics.pstdev(tail) <= self.std


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
