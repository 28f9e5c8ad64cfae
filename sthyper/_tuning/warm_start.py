"""Results of earlier experiments, for a scheduler to begin with."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._space.points import complete_config
from sthyper._tuning.checks import users_stacklevel
from sthyper._tuning.space_change import PastSpaces, read_space_lines
from sthyper._tuning.steering import Steering, check_result
from sthyper.config_space import Domain
from sthyper.constants import RESERVED_PREFIX, ST_TRIAL_ID, ST_WORKER_COST, ST_WORKER_TIME
from sthyper.errors import ConfigSpaceError, closest
from sthyper.schedulers.base import TrialScheduler
from sthyper.trial import Status

if TYPE_CHECKING:
    from sthyper._journal_view import ExperimentRecord, TrialSummary
    from sthyper.experiment import ExperimentResult

__all__ = ["add_experiments"]

logger = logging.getLogger(__name__)

_OUTSIDE = "outside the space"
_LACKING = "without a value for every hyperparameter"
_UNUSABLE = "without a usable result"


def add_experiments(
    experiments: Iterable[ExperimentResult | str | Path], scheduler: TrialScheduler, steering: Steering
) -> None:
    """Hand the results of earlier experiments to a scheduler by way of ``steering``.

    Hyperparameters are matched by name. Skipped are trials without a value for one of them, with a value outside its
    domain, with another value of what was tuned then and is a constant now, and trials without a usable result:
    reports up to the maximum resource, or, where there is no resource, the last report of a completed trial. One
    warning says how many there were.

    Args:
        experiments: Experiments, their names or paths; one that is named twice counts once.
        scheduler: The scheduler of the new experiment.
        steering: Takes the results.

    Raises:
        FileNotFoundError: If there is no such experiment.
        TypeError: If ``experiments`` is no list.
        ValueError: If an experiment lacks a metric of the scheduler, or has it with the other mode.
    """
    if isinstance(experiments, str | os.PathLike) or not isinstance(experiments, Iterable):
        raise TypeError(f"warm_start must be a list of experiments (names, paths or results), got {experiments!r}")
    skipped: Counter[str] = Counter()
    names: Counter[str] = Counter()
    taken = results = 0
    seen: set[Path] = set()
    for experiment in map(_load, experiments):
        folder = experiment.path.resolve()
        if folder in seen:
            continue
        seen.add(folder)
        reader = _Reader(experiment, scheduler)
        for trial, reports in reader.evaluations():
            config = reader.match(trial.config, skipped, names)
            if config is None:
                continue
            usable = list(reader.usable(trial, reports))
            if not usable:
                skipped[_UNUSABLE] += 1
                continue
            steering.add_evaluation(config, usable)
            taken += 1
            results += len(usable)
    if seen:
        logger.info("warm start: %d results of %d configurations", results, taken)
    if skipped or (seen and not taken):
        detail = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
        which = f" ({', '.join(name for name, _ in names.most_common(5))})" if names else ""
        warnings.warn(
            f"warm_start: {skipped.total()} of {skipped.total() + taken} configurations are skipped"
            + (f": {detail}{which}" if detail else ", the experiments have no results"),
            stacklevel=users_stacklevel(),
        )


def _load(experiment: ExperimentResult | str | Path) -> ExperimentResult:
    from sthyper.experiment import ExperimentResult, load_experiment

    if isinstance(experiment, ExperimentResult):
        return experiment
    if isinstance(experiment, str | os.PathLike):
        return load_experiment(experiment)
    raise TypeError(f"warm_start must hold experiments, their names or paths, got {experiment!r}")


class _Reader:
    """Reads one experiment with the eyes of a scheduler.

    Args:
        experiment: The experiment.
        scheduler: The scheduler.

    Raises:
        ValueError: If metric or mode do not fit.
    """

    def __init__(self, experiment: ExperimentResult, scheduler: TrialScheduler) -> None:
        from sthyper._journal_view import read_experiment

        self._scheduler = scheduler
        self._space = scheduler.config_space
        self._record: ExperimentRecord = read_experiment(experiment.path)
        self._check_metrics(experiment)
        text = experiment.metadata.get("config_space")
        lines = read_space_lines(experiment.path) if isinstance(text, str) else []
        earlier = PastSpaces.of(lines or [{"type": "metadata", "metadata": {"config_space": text or "{}"}}])
        # Values of what the experiment got later, for its trials before that.
        self._defaults = earlier.defaults
        self._fixed_now = {
            name: self._space[name]
            for name in earlier.map.once_tuned
            if name in self._space and not isinstance(self._space[name], Domain)
        }

    def evaluations(self) -> Iterator[tuple[TrialSummary, list[dict[str, Any]]]]:
        """Yield the trials that reported, with their reports in the order of their resource."""
        attr = self._scheduler.resource_attr
        reports: dict[int, list[dict[str, Any]]] = {}
        for row in self._record.table.rows(joined=False):
            own = (ST_WORKER_TIME, ST_WORKER_COST)
            metrics = {k: v for k, v in row.items() if not k.startswith(RESERVED_PREFIX) or k in own}
            metrics.pop(ST_TRIAL_ID, None)
            reports.setdefault(row[ST_TRIAL_ID], []).append(metrics)
        for trial_id in sorted(reports):
            found = reports[trial_id]
            if attr is not None and all(isinstance(metrics.get(attr), int | float) for metrics in found):
                found.sort(key=lambda metrics: metrics[attr])
            yield self._record.trials[trial_id], found

    def match(self, config: dict[str, Any], skipped: Counter[str], names: Counter[str]) -> dict[str, Any] | None:
        """Return the hyperparameters of an earlier configuration, ``None`` if it has no place in the space."""
        config = {**self._defaults, **config}
        tuned = [name for name, domain in self._space.items() if isinstance(domain, Domain)]
        lacking = [name for name in tuned if name not in config]
        outside = [name for name, value in self._fixed_now.items() if config.get(name, value) != value]
        if not lacking:
            for name in tuned:
                try:
                    complete_config({name: config[name]}, {name: self._space[name]}, "warm_start")
                except ConfigSpaceError:
                    outside.append(name)
        names.update(lacking or outside)
        if lacking or outside:
            skipped[_LACKING if lacking else _OUTSIDE] += 1
            return None
        return complete_config({name: config[name] for name in tuned}, self._space, "warm_start", partial=False)

    def usable(self, trial: TrialSummary, reports: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the reports that the scheduler can learn from."""
        attr = self._scheduler.resource_attr
        if attr is None or attr not in reports[-1]:
            # What a trial that was stopped or failed reported last is no result of the whole training.
            reports = reports[-1:] if trial.status == Status.completed else []
        for metrics in reports:
            try:
                yield check_result(metrics, self._scheduler)
            except ValueError:
                continue

    def _check_metrics(self, experiment: ExperimentResult) -> None:
        modes = experiment.metric_mode()
        known = experiment.metric_names()
        columns = {name for row in self._record.table.rows(joined=False) for name in row}
        wanted = self._scheduler.metric_mode()
        for position, name in enumerate(self._scheduler.metric_names()):
            if name not in known and name not in columns:
                if not known and not columns:
                    continue  # an experiment without anything
                names = known or sorted(column for column in columns if not column.startswith(RESERVED_PREFIX))
                raise ValueError(
                    f"warm_start: experiment {experiment.name!r} has no metric {name!r}, it has {names}"
                    f"{closest(name, names)}"
                )
            if name not in known:
                continue
            then = modes if isinstance(modes, str) else modes[known.index(name)]
            now = wanted if isinstance(wanted, str) else wanted[position]
            if then != now:
                raise ValueError(
                    f"warm_start: experiment {experiment.name!r} has {name!r} with mode {then!r}, the new one with "
                    f"{now!r}"
                )
