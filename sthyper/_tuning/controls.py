"""What callbacks and other threads may ask of a tuner."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sthyper._metrics_statistics import none_keeps
from sthyper._tuning.checks import metric_name
from sthyper._tuning.loop import TuningLoop
from sthyper._tuning.saving import SnapshotTaker
from sthyper._tuning.steering import Steering
from sthyper.backend.base import TrialBackend
from sthyper.constants import ST_TRIAL_ID
from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentJournal, ExperimentLock
from sthyper.schedulers.base import TrialScheduler
from sthyper.tuning_status import TuningStatus

__all__ = ["Controls"]

logger = logging.getLogger(__name__)


class Controls:
    """The part of :class:`~sthyper.Tuner` that may be called while it runs."""

    name: str
    tuner_path: Path
    trial_backend: TrialBackend
    scheduler: TrialScheduler
    tuning_status: TuningStatus
    journal: ExperimentJournal | None
    _steering: Steering
    _loop: TuningLoop | None
    _snapshots: SnapshotTaker | None
    _lock: ExperimentLock | None
    _stop_requested: bool

    def save(self) -> None:
        """Have a snapshot of the experiment's state written soon; may be called from callbacks and other threads.

        It is written at the next quiet moment: between two events, while no suggestion is being computed. That is done
        at intervals anyway, and nothing depends on it: after a crash the journal tells everything, a snapshot spares
        going through all of it. When the experiment has ended, nothing is left to do.

        Raises:
            ExperimentError: If the experiment does not run yet.
        """
        if self._snapshots is None:
            raise ExperimentError(f"save: the experiment {self.name} does not run yet, there is nothing to save")
        self._snapshots.ask()
        self.trial_backend.wake()

    def stop(self) -> None:
        """End the experiment soon, as Ctrl-C does; may be called from callbacks and other threads."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.request_stop("stopped by the user")

    def check_lock(self) -> None:
        """Make sure that the experiment is still this tuner's; for callbacks, before they write into its folder.

        It is not if the process was stopped for so long, say in a suspend, that another tuner has taken it over.

        Raises:
            LockLost: If it is another's. An ``ExperimentError``; let it end the experiment.
        """
        if self._lock is not None:
            self._lock.check()

    # ---- steering ------------------------------------------------------------------------------------

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """Have a configuration tried next, before new ones of the scheduler; resumes of paused trials come after it.

        May be called before the experiment runs, from callbacks and from other threads. The trial counts like any
        other for stop criteria. A configuration that was tried before is tried again.

        Args:
            config: Hyperparameters; missing ones take the mid-point of their domain. Constants may be given if they
                agree with the space.

        Raises:
            ConfigSpaceError: If it has an unknown name or a value outside its domain.
            ExperimentError: If the experiment has ended.
            TypeError: If it is no mapping.
        """
        self._steering.enqueue(config)
        self.trial_backend.wake()

    def add_result(self, config: Mapping[str, Any], metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Let the scheduler learn from a configuration that was trained elsewhere.

        May be called before the experiment runs, from callbacks and from other threads. Trials are compared with it
        and its configuration is not suggested any more, but it is no trial: it counts for no stop criterion and is not
        among the experiment's results.

        Args:
            config: All hyperparameters; constants may be left out.
            metrics: What was reported, or a list of reports in the order of their resource. Without a resource it
                counts as a result at the maximum resource. Values may be NaN. A result at a resource that is not
                above the last one of its configuration begins another evaluation of it.

        Raises:
            ConfigSpaceError: If ``config`` lacks a hyperparameter, has an unknown one or a value outside its domain.
            ExperimentError: If the experiment has ended.
            TypeError: If an argument has the wrong type.
            ValueError: If a metric is missing or no number, or the resource cannot be used.
        """
        self._steering.add_result(config, metrics)
        self.trial_backend.wake()

    # ---- the record ----------------------------------------------------------------------------------

    def record_extra(self, values: dict[str, Any]) -> None:
        """Write extra result columns for the report that is being handled; for callbacks."""
        event = None if self._loop is None else self._loop.state.current_report
        if event is None or self.journal is None:
            raise RuntimeError("record_extra may only be called from on_trial_result of a callback")
        self.journal.append(
            {
                "type": "extra",
                "trial_id": event.trial_id,
                "run": event.run,
                "client": event.client,
                "seq": event.seq,
                "values": values,
            }
        )

    def best_config(self, metric: int | str = 0, by: str = "observed") -> tuple[int, dict[str, Any]]:
        """Return ``(trial_id, config)`` of the best trial so far.

        If the searcher has constraints on reported metrics, it is the best one among the reports that keep them. If
        there are none, a warning is logged and it is the best one among those of which it is not known, or else
        among all.

        Args:
            metric: Name or index of the metric.
            by: ``"observed"``: the trial with the best value; ``"model"``: that with the best mean of a model of all
                results, for noisy metrics; see :meth:`sthyper.experiment.ExperimentResult.best_config`. It is the
                model of the searcher if that has one.

        Raises:
            ValueError: If the metric or ``by`` is unknown or nothing finite was reported.
        """
        names = self.scheduler.metric_names()
        name = metric_name(names, metric)
        mode = self.scheduler.metric_mode()
        mode = mode if isinstance(mode, str) else mode[names.index(name)]
        best = self.tuning_status.best(name, mode)
        if best is None:
            raise ValueError(f"no trial has reported a finite {name!r} yet")
        trial_id = best[0] if by == "observed" else self._best_by_model(name, by)
        if not self.tuning_status.best_keeps_constraints(name, mode):
            logger.warning("%s", none_keeps(self.scheduler.outcome_constraints(), name))
        config = dict(self.trial_backend.trial(trial_id).config)
        logger.info("best trial is %d; to train it once more: start the script with %s", trial_id, config)
        return trial_id, config

    def _best_by_model(self, name: str, by: str) -> int:
        from sthyper.experiment import load_experiment
        from sthyper.searchers.bayesopt.best import check_by

        check_by(by)
        searcher: Any = getattr(self.scheduler, "searcher", None)
        found: int | None = None
        if hasattr(searcher, "best_trial") and self.scheduler.metric_names() == [name]:
            found = searcher.best_trial(by=by, past=False)
        if found is None:
            found = load_experiment(self.tuner_path).best_config(name, by=by).get(ST_TRIAL_ID)
        if found is None:
            raise ValueError(f"no trial has a finite {name!r} that a model can use yet")
        return found
