"""Counts and statistics of a running experiment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sthyper._metrics_statistics import BREAKS, KEEPS, UNKNOWN, Constraint, ConstraintRecord, MetricsStatistics
from sthyper.constants import RESERVED_PREFIX, ST_TRIAL_ID, ST_WORKER_COST, ST_WORKER_TIME
from sthyper.errors import closest
from sthyper.trial import Status, Trial

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MetricsStatistics", "TuningStatus", "metric_name_mode", "print_best_metric_found"]

_FINISHED = frozenset({Status.completed, Status.stopped, Status.stopping, Status.failed})
_MAX_TABLE_ROWS = 25


@dataclass(slots=True)
class _TrialState:
    trial: Trial
    status: Status = Status.in_progress
    by_tuner: bool = False
    statistics: MetricsStatistics = field(default_factory=lambda: MetricsStatistics(quiet=True))
    # with constraints: of the reports that keep them, and of those of which that is not known
    ranked: dict[int, MetricsStatistics] = field(default_factory=dict)
    rank: int = KEEPS
    # worker time and cost: of the runs before, and the largest of the current one
    earlier: tuple[float, float] = (0.0, 0.0)
    worker_time: float = 0.0
    worker_cost: float = 0.0

    @property
    def counts_as_finished(self) -> bool:
        return not self.by_tuner and self.status in _FINISHED


class TuningStatus:
    """What stop criteria, tables and progress lines look at; every update costs the same however many there were.

    Args:
        metric_names: Metrics of the scheduler; the first one is the one shown as best.
        clock: Returns the seconds of the experiment so far; default counts from the construction.
        constraints: Constraints on reported metrics that the best trial has to keep.
    """

    def __init__(
        self,
        metric_names: list[str],
        clock: Callable[[], float] | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self.metric_names = list(metric_names)
        self._constraints = ConstraintRecord(constraints)
        start = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - start)
        self._trials: dict[int, _TrialState] = {}
        self._counts = dict.fromkeys(Status, 0)
        self._finished = 0
        self._completed = 0
        self._failed = 0
        self._user_time = 0.0
        self._cost = 0.0
        self.overall_metric_statistics = MetricsStatistics()

    # ---- news ----------------------------------------------------------------------------------------

    def add_trial(self, trial: Trial) -> None:
        """Take in a new trial, which runs."""
        if trial.trial_id in self._trials:
            raise ValueError(f"trial_id={trial.trial_id}: this trial was added before")
        self._trials[trial.trial_id] = _TrialState(trial)
        self._counts[Status.in_progress] += 1

    def set_status(self, trial_id: int, status: Status, by_tuner: bool = False) -> None:
        """Set the status of a trial; ``InProgress`` begins a further run of it.

        Args:
            trial_id: The trial.
            status: Its status.
            by_tuner: Whether the tuner itself ended the trial (interrupt, criterion reached). Such a trial does not
                count as finished, completed or failed.

        Raises:
            ValueError: If there is no such trial.
        """
        state = self._state(trial_id)
        if status == Status.in_progress:
            state.earlier = (state.earlier[0] + state.worker_time, state.earlier[1] + state.worker_cost)
            state.worker_time = state.worker_cost = 0.0
        self._change(state, Status(status), by_tuner)

    def add_result(self, trial_id: int, result: dict[str, Any]) -> None:
        """Take in a counted report of a trial; the dict is kept until the trial's next report.

        Raises:
            ValueError: If there is no such trial.
        """
        state = self._state(trial_id)
        self.overall_metric_statistics.add(result)
        state.statistics.add(result)
        if self._constraints.constraints:
            state.rank = self._constraints.add(trial_id, result)
            if state.rank != BREAKS:
                state.ranked.setdefault(state.rank, MetricsStatistics(quiet=True)).add(result)
        spent = result.get(ST_WORKER_TIME, 0.0)
        if spent > state.worker_time:
            self._user_time += spent - state.worker_time
            state.worker_time = spent
        cost = result.get(ST_WORKER_COST, 0.0)
        if cost > state.worker_cost:
            self._cost += cost - state.worker_cost
            state.worker_cost = cost

    def update(
        self,
        trial_status_dict: Mapping[int, tuple[Trial, Status]],
        new_results: Iterable[tuple[int, dict[str, Any]]],
    ) -> None:
        """Take in what ``fetch_status_results`` of a backend returned.

        Args:
            trial_status_dict: Trial and status by id; unknown trials are added.
            new_results: Reports as ``(trial_id, result)``.
        """
        for trial_id, (trial, _) in trial_status_dict.items():
            if trial_id not in self._trials:
                self.add_trial(trial)
        for trial_id, result in new_results:
            self.add_result(trial_id, result)
        for trial_id, (trial, status) in trial_status_dict.items():
            state = self._trials[trial_id]
            state.trial = trial
            if status != state.status:
                self.set_status(trial_id, status)

    def mark_running_job_as_stopped(self) -> None:
        """Set all running trials to ``Stopped``, as ended by the tuner."""
        for state in self._trials.values():
            if state.status == Status.in_progress:
                self._change(state, Status.stopped, by_tuner=True)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the trials themselves and the time, as plain containers."""
        return {
            "trials": [
                {
                    "trial_id": trial_id,
                    "status": state.status.value,
                    "by_tuner": state.by_tuner,
                    "statistics": state.statistics.state_dict(),
                    "earlier": list(state.earlier),
                    "worker_time": state.worker_time,
                    "worker_cost": state.worker_cost,
                    "ranked": [[rank, statistics.state_dict()] for rank, statistics in state.ranked.items()],
                    "rank": state.rank,
                }
                for trial_id, state in self._trials.items()
            ],
            "constraints": self._constraints.state_dict(),
            "user_time": self._user_time,
            "cost": self._cost,
            "overall": self.overall_metric_statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], trials: Mapping[int, Trial]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state: The state.
            trials: The trials by id.
        """
        self._trials = {}
        self._counts = dict.fromkeys(Status, 0)
        self._finished = self._completed = self._failed = 0
        for saved in state["trials"]:
            trial = _TrialState(trials[saved["trial_id"]], Status(saved["status"]), saved["by_tuner"])
            trial.statistics.load_state_dict(saved["statistics"])
            trial.earlier = (saved["earlier"][0], saved["earlier"][1])
            trial.worker_time, trial.worker_cost = saved["worker_time"], saved["worker_cost"]
            for rank, statistics in saved["ranked"]:
                trial.ranked[rank] = MetricsStatistics(quiet=True)
                trial.ranked[rank].load_state_dict(statistics)
            trial.rank = saved["rank"]
            self._trials[saved["trial_id"]] = trial
            self._tally(trial, 1)
        self._constraints.load_state_dict(state["constraints"])
        self._user_time, self._cost = state["user_time"], state["cost"]
        self.overall_metric_statistics.load_state_dict(state["overall"])

    def _change(self, state: _TrialState, status: Status, by_tuner: bool) -> None:
        self._tally(state, -1)
        state.status = status
        state.by_tuner = by_tuner
        self._tally(state, 1)

    def _tally(self, state: _TrialState, step: int) -> None:
        self._counts[state.status] += step
        if state.counts_as_finished:
            self._finished += step
            self._completed += step * (state.status == Status.completed)
            self._failed += step * (state.status == Status.failed)

    def _state(self, trial_id: int) -> _TrialState:
        try:
            return self._trials[trial_id]
        except KeyError:
            raise ValueError(f"trial_id={trial_id!r}: no such trial; there are {len(self._trials)}") from None

    # ---- counts --------------------------------------------------------------------------------------

    @property
    def num_trials_started(self) -> int:
        """Number of trials that were started; resumes do not count."""
        return len(self._trials)

    @property
    def num_trials_completed(self) -> int:
        """Number of trials that ran to their end."""
        return self._completed

    @property
    def num_trials_failed(self) -> int:
        """Number of trials that failed."""
        return self._failed

    @property
    def num_trials_finished(self) -> int:
        """Number of trials that completed, failed or were stopped by the scheduler (not paused ones)."""
        return self._finished

    @property
    def num_trials_running(self) -> int:
        """Number of trials that run now."""
        return self._counts[Status.in_progress]

    @property
    def num_trials_paused(self) -> int:
        """Number of trials that are paused now."""
        return self._counts[Status.paused]

    @property
    def num_results(self) -> int:
        """Number of counted reports of all trials."""
        return self.overall_metric_statistics.count

    @property
    def wallclock_time(self) -> float:
        """Seconds of the experiment so far."""
        return self._clock()

    @property
    def user_time(self) -> float:
        """Seconds that the trials worked: for every run its largest ``st_worker_time``, summed."""
        return self._user_time

    @property
    def cost(self) -> float:
        """For every run its largest ``st_worker_cost``, summed."""
        return self._cost

    @property
    def trial_metric_statistics(self) -> dict[int, MetricsStatistics]:
        """Statistics by trial, of the trials that have reported."""
        return {i: state.statistics for i, state in self._trials.items() if state.statistics.count}

    def trial_status(self, trial_id: int) -> Status:
        """Return the status of a trial.

        Raises:
            ValueError: If there is no such trial.
        """
        return self._state(trial_id).status

    def trial(self, trial_id: int) -> Trial:
        """Return a trial.

        Raises:
            ValueError: If there is no such trial.
        """
        return self._state(trial_id).trial

    def best(self, metric: str, mode: str) -> tuple[int, float] | None:
        """Return ``(trial_id, value)`` of the best finite value of a metric, ``None`` if there is none.

        With constraints it is the best one among the reports that keep them. If there are none, it is the best one
        among those of which it is not known, then among all.

        Args:
            metric: Name of the metric.
            mode: ``"min"`` or ``"max"``.
        """
        for rank in self._ranks:
            found = self._best_of(rank, metric, mode)
            if found is not None:
                return found
        return None

    def best_keeps_constraints(self, metric: str, mode: str) -> bool:
        """Whether there is a :meth:`best` value whose report keeps all constraints.

        Args:
            metric: Name of the metric.
            mode: ``"min"`` or ``"max"``.
        """
        return self._best_of(self._ranks[0], metric, mode) is not None

    def last_rank(self, trial_id: int) -> int:
        """Return 0 if a trial's last report keeps all constraints, 2 if it breaks one, 1 if that is not known.

        Raises:
            ValueError: If there is no such trial.
        """
        return self._state(trial_id).rank

    @property
    def _ranks(self) -> tuple[int, ...]:
        return (KEEPS, UNKNOWN, BREAKS) if self._constraints.constraints else (BREAKS,)

    def _best_of(self, rank: int, metric: str, mode: str) -> tuple[int, float] | None:
        """Return trial and value of the best finite value among reports of a rank; of any for the worst one."""
        found: tuple[int, float] | None = None
        for trial_id, state in self._trials.items():
            statistics = state.statistics if rank == BREAKS else state.ranked.get(rank)
            value = None if statistics is None else statistics.best(metric, mode)
            if value is not None and (found is None or (value < found[1] if mode == "min" else value > found[1])):
                found = (trial_id, value)
        return found

    # ---- tables --------------------------------------------------------------------------------------

    @property
    def trial_rows(self) -> dict[int, dict[str, Any]]:
        """For every trial: id, status, number of reports, configuration, last report, worker time and cost."""
        return {trial_id: _row(state) for trial_id, state in self._trials.items()}

    def get_dataframe(self) -> pd.DataFrame:
        """Return :attr:`trial_rows` as a data frame with one row a trial."""
        import pandas as pd

        return pd.DataFrame(list(self.trial_rows.values()))

    def summary(self) -> str:
        """Return the counts in one line."""
        running = self.num_trials_running
        parts = [f"{running} trials running, {self.num_trials_finished} finished"]
        if running:
            parts[0] += f" ({self.num_trials_finished + running} until the end)"
        if self.num_trials_paused:
            parts.append(f"{self.num_trials_paused} paused")
        parts.append(f"{self.num_results} reports")
        parts.append(f"{self.wallclock_time:.2f}s wallclock-time")
        if self.cost > 0:
            parts.append(f"${self.cost:.2f} estimated cost")
        return ", ".join(parts)

    def table(self, max_rows: int = _MAX_TABLE_ROWS) -> str:
        """Return a text table of the trials: those that run, and the newest others up to ``max_rows`` in all."""
        states = list(self._trials.values())
        shown = states
        if len(states) > max_rows:
            running = [s for s in states if s.status == Status.in_progress]
            others = [s for s in states if s.status != Status.in_progress]
            room = max(0, max_rows - len(running))
            shown = sorted(running + others[len(others) - room :], key=lambda s: s.trial.trial_id)
        rows = [{k: v for k, v in _row(s).items() if not k.startswith(RESERVED_PREFIX)} for s in shown]
        text = _text_table(rows)
        hidden = len(states) - len(shown)
        return f"{text}\n({hidden} more trials not shown)" if hidden else text

    def __str__(self) -> str:
        return f"{self.table()}\n{self.summary()}" if self._trials else self.summary()


def _row(state: _TrialState) -> dict[str, Any]:
    last = state.statistics.last_metrics
    row = {
        ST_TRIAL_ID: state.trial.trial_id,
        "status": state.status.value,
        "iter": state.statistics.count,
        **state.trial.config,
        **last,
    }
    if ST_WORKER_TIME in last:
        row["worker-time"] = state.earlier[0] + state.worker_time
    if ST_WORKER_COST in last:
        row["worker-cost"] = state.earlier[1] + state.worker_cost
    return row


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in [names, *cells]]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def metric_name_mode(
    metric_names: Sequence[str], metric_mode: str | Sequence[str], metric: int | str
) -> tuple[str, str]:
    """Return name and mode of a metric that is given by name or index.

    Args:
        metric_names: All metrics of the experiment.
        metric_mode: One mode for all of them, or a mode each.
        metric: Name or index.

    Raises:
        TypeError: If ``metric`` is neither.
        ValueError: If it is unknown.
    """
    names = list(metric_names)
    if isinstance(metric, str):
        if metric not in names:
            raise ValueError(f"metric must be one of {names}, got {metric!r}{closest(metric, names)}")
        index = names.index(metric)
    elif isinstance(metric, int) and not isinstance(metric, bool):
        if not 0 <= metric < len(names):
            raise ValueError(f"metric must be a name of {names} or an index below {len(names)}, got {metric}")
        index = metric
    else:
        raise TypeError(f"metric must be a name or an index, got {metric!r}")
    return names[index], metric_mode if isinstance(metric_mode, str) else metric_mode[index]


def print_best_metric_found(
    tuning_status: TuningStatus, metric_names: Sequence[str], mode: str | Sequence[str] | None = None
) -> tuple[int, float] | None:
    """Print the summary of an experiment and its best value of the first metric.

    Args:
        tuning_status: Statistics of the experiment.
        metric_names: Metrics; the first is looked at.
        mode: ``"min"`` (default) or ``"max"``, or a list with a mode for each metric.

    Returns:
        ``(trial_id, value)``, or ``None`` if no finite value was reported.

    Raises:
        ValueError: If there is no metric or a mode is unknown.
    """
    if not metric_names:
        raise ValueError("metric_names must not be empty")
    name, first_mode = metric_name_mode(metric_names, "min" if mode is None else mode, 0)
    if first_mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {first_mode!r}")
    best = tuning_status.best(name, first_mode)
    if best is None:
        return None
    print("-" * 20)
    print(f"Resource summary (last result is reported):\n{tuning_status}")
    print(f"{name}: best {best[1]:.6g} for trial-id {best[0]}")
    print("-" * 20)
    return best
