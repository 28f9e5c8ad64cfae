"""The Tuner: runs an experiment."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._lock import LockLost
from sthyper._tune import tune
from sthyper._tuning.checks import (
    check_count,
    check_process,
    check_seconds,
    check_switches,
    metric_name,
    users_stacklevel,
    with_results,
)
from sthyper._tuning.identity import make_metadata, make_name, open_journal
from sthyper._tuning.leftovers import end_leftovers
from sthyper._tuning.loop import TuningLoop
from sthyper._tuning.parts import describe_parts, read_parts, rebuild_parts, write_parts
from sthyper._tuning.recorded import recall
from sthyper._tuning.room import RoomLost
from sthyper._tuning.signals import signals_handled
from sthyper._tuning.state import ExperimentState, LoopOptions
from sthyper._tuning.steering import Steering
from sthyper._tuning.terminal import progress_stream
from sthyper._tuning.warm_start import add_experiments
from sthyper.backend.base import ExperimentContext, TrialBackend
from sthyper.constants import (
    ENV_QUIET,
    ST_JOURNAL_FILENAME,
    ST_METADATA_FILENAME,
    ST_TRIALS_DIRNAME,
    ST_TUNER_START_TIMESTAMP,
    TUNER_DEFAULT_SLEEP_TIME,
)
from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentJournal, ExperimentLock, read_journal, write_atomically
from sthyper.paths import experiment_path
from sthyper.results_callback import StoreResultsCallback
from sthyper.schedulers.base import TrialScheduler
from sthyper.time_keeper import RealTimeKeeper
from sthyper.trial import Status, draw_seed
from sthyper.tuner_callback import TunerCallback
from sthyper.tuning_status import TuningStatus

if TYPE_CHECKING:
    from sthyper.experiment import ExperimentResult

__all__ = ["Tuner", "tune"]

logger = logging.getLogger(__name__)


class Tuner:
    """Runs trials that a scheduler suggests on a backend until a criterion says stop.

    Everything that happens is in the experiment's journal before anybody acts on it: a report that was answered
    survives ``kill -9``. Ctrl-C (also SIGTERM, SIGHUP, :meth:`stop`) ends the running trials and writes the results;
    a second Ctrl-C leaves at once and the supervisor ends the trials.

    Args:
        trial_backend: Runs the trials.
        scheduler: Suggests configurations and decides about running trials.
        stop_criterion: A :class:`StoppingCriterion` (counts are exact), or a function of :class:`TuningStatus` that
            is asked about once a second.
        n_workers: Number of trials that run at the same time.
        sleep_time: Seconds between two looks at a backend that must be polled; no effect over others.
        results_update_interval: Seconds between two writes of ``results.csv.zip``.
        print_update_interval: Seconds between two status tables on a terminal.
        max_failures: The experiment ends with :class:`TrialFailed` when more trials than this fail.
        tuner_name: Name of the experiment: letters, digits and ``-``; default is the name of the script.
        asynchronous_scheduling: ``False`` waits until all workers are free, then fills them all.
        wait_trial_completion_when_stopping: Whether a time, cost or metric criterion lets running trials finish.
        callbacks: Callbacks; results are always stored, with or without a :class:`StoreResultsCallback` among them.
        metadata: Entries for ``metadata.json``.
        suffix_tuner_name: Whether a time stamp is appended to the name. Without it the name must be new.
        start_jobs_without_delay: Over a backend that must be polled: whether a worker counts as free as soon as its
            trial was ordered to end; no effect over others, where it is free when its processes are gone.
        trial_backend_path: Folder for the trials' files; default is the experiment's own.
        count_out_of_memory: Whether trials that ran out of memory count for ``max_failures``.
        max_restarts: Times that a trial which was killed from outside, or one of whose ranks was, is run again from its
            checkpoint. After that, with 0 at once, it fails.
        warm_start: Earlier experiments (results, names or paths) from which the scheduler learns first. Hyperparameters
            are matched by name; trials that do not fit the space are skipped, and one warning counts them. An
            experiment passes on its own trials, not what it learnt from others.

    Raises:
        FileNotFoundError: If there is no experiment that ``warm_start`` names.
        TypeError: If backend, scheduler or criterion are of the wrong kind.
        ValueError: For numbers or names that are not allowed.

    Attributes:
        name: Name of the experiment, with its time stamp.
        tuner_path: Folder of the experiment.
        tuning_status: Counts and statistics.
    """

    def __init__(
        self,
        trial_backend: TrialBackend,
        scheduler: TrialScheduler,
        stop_criterion: Callable[[TuningStatus], bool],
        n_workers: int,
        sleep_time: float = TUNER_DEFAULT_SLEEP_TIME,
        results_update_interval: float = 10.0,
        print_update_interval: float = 30.0,
        max_failures: int = 1,
        tuner_name: str | None = None,
        asynchronous_scheduling: bool = True,
        wait_trial_completion_when_stopping: bool = False,
        callbacks: Sequence[TunerCallback] | None = None,
        metadata: dict[str, Any] | None = None,
        suffix_tuner_name: bool = True,
        start_jobs_without_delay: bool = True,
        trial_backend_path: str | Path | None = None,
        count_out_of_memory: bool = False,
        max_restarts: int = 2,
        warm_start: Sequence[ExperimentResult | str | Path] = (),
    ) -> None:
        if not isinstance(trial_backend, TrialBackend):
            raise TypeError(f"trial_backend must be a TrialBackend such as LocalBackend(...), got {trial_backend!r}")
        if not isinstance(scheduler, TrialScheduler):
            raise TypeError(f"scheduler must be a TrialScheduler such as ASHA(...), got {scheduler!r}")
        if not callable(stop_criterion) or isinstance(stop_criterion, type):
            raise TypeError(f"stop_criterion must be a StoppingCriterion or a function, got {stop_criterion!r}")
        trial_backend.check_config_space(scheduler.config_space)
        check_switches(
            asynchronous_scheduling=asynchronous_scheduling,
            wait_trial_completion_when_stopping=wait_trial_completion_when_stopping,
            suffix_tuner_name=suffix_tuner_name,
            start_jobs_without_delay=start_jobs_without_delay,
            count_out_of_memory=count_out_of_memory,
        )
        check_count("n_workers", n_workers, 1)
        check_count("max_failures", max_failures, 0)
        check_count("max_restarts", max_restarts, 0)
        check_seconds(
            sleep_time=sleep_time,
            results_update_interval=results_update_interval,
            print_update_interval=print_update_interval,
        )
        self.trial_backend = trial_backend
        self.scheduler = scheduler
        self.stop_criterion = stop_criterion
        self.n_workers = n_workers
        self.sleep_time = float(sleep_time)
        self.results_update_interval = float(results_update_interval)
        self.print_update_interval = float(print_update_interval)
        self.max_failures = max_failures
        self.asynchronous_scheduling = asynchronous_scheduling
        self.wait_trial_completion_when_stopping = wait_trial_completion_when_stopping
        self.start_jobs_without_delay = start_jobs_without_delay
        self.count_out_of_memory = count_out_of_memory
        self.max_restarts = max_restarts
        self.callbacks = with_results(callbacks)
        self.name = make_name(trial_backend, tuner_name, suffix_tuner_name)
        self.tuner_path = experiment_path(self.name)
        self.trial_backend_path = None if trial_backend_path is None else Path(trial_backend_path).absolute()
        self.random_seed = draw_seed() if scheduler.random_seed is None else scheduler.random_seed
        self._steering = Steering(scheduler)
        add_experiments(warm_start, scheduler, self._steering)
        self._clock = RealTimeKeeper()
        self.tuning_status = TuningStatus(scheduler.metric_names(), clock=self._time)
        self.metadata = make_metadata(metadata, trial_backend, scheduler, self.trial_backend_path)
        self.journal: ExperimentJournal | None = None
        self._loop: TuningLoop | None = None
        self._stop_requested = False
        self._has_run = False
        self._told_end = False
        self._resumes = False
        self._lock: ExperimentLock | None = None
        self._time_before = 0.0
        self._described = describe_parts(
            {
                "trial_backend": trial_backend,
                "scheduler": scheduler,
                "stop_criterion": stop_criterion,
                "n_workers": n_workers,
                "sleep_time": sleep_time,
                "results_update_interval": results_update_interval,
                "print_update_interval": print_update_interval,
                "max_failures": max_failures,
                "asynchronous_scheduling": asynchronous_scheduling,
                "wait_trial_completion_when_stopping": wait_trial_completion_when_stopping,
                "callbacks": None if callbacks is None else list(callbacks),
                "start_jobs_without_delay": start_jobs_without_delay,
                "trial_backend_path": None if trial_backend_path is None else str(self.trial_backend_path),
                "count_out_of_memory": count_out_of_memory,
                "max_restarts": max_restarts,
            }
        )

    @classmethod
    def resume(
        cls,
        path_or_name: str | Path,
        *,
        stop_criterion: Callable[[TuningStatus], bool] | None = None,
        n_workers: int | None = None,
        trial_backend: TrialBackend | None = None,
        scheduler: TrialScheduler | None = None,
        callbacks: Sequence[TunerCallback] | None = None,
    ) -> Tuner:
        """Return a tuner that goes on with an experiment; its :meth:`run` begins where the record ends.

        Backend, scheduler, criterion and callbacks are made again from what the journal says of their arguments. Those
        that are no classes of sthyper, or were made with functions, have to be given. Then the record is gone through
        once more, so that scheduler and searcher know what they knew. Trials that ran when the tuner ended run again
        from their checkpoints, or from scratch where they have none; paused ones stay paused; what is left of the old
        tuner's processes is ended. ``max_wallclock_time`` and ``st_tuner_time`` count the time that the tuner ran, and
        ``max_failures`` the failures from now on.

        Args:
            path_or_name: Name of the experiment; its name without the time stamp, for the newest of that name; or the
                path of its folder.
            stop_criterion: Another criterion, such as one with a larger limit.
            n_workers: Another number of trials that run at the same time.
            trial_backend: A backend made with the same arguments, where it cannot be made from the record
                (``PythonBackend``, a class of yours).
            scheduler: A scheduler made with the same arguments, seed included, where it cannot be made from the record.
            callbacks: Callbacks in place of the earlier ones.

        Raises:
            ExperimentError: If something has to be given.
            FileNotFoundError: If there is no such experiment.
            ValueError: If its journal is damaged or of a newer version.
        """
        from sthyper.experiment import load_experiment

        folder = load_experiment(path_or_name).path
        sessions = [record for record in read_journal(folder) if record["type"] in ("session", "metadata")]
        given = {
            "stop_criterion": stop_criterion,
            "n_workers": n_workers,
            "trial_backend": trial_backend,
            "scheduler": scheduler,
            "callbacks": callbacks,
        }
        tuner = cls(
            **rebuild_parts(read_parts(folder), {name: part for name, part in given.items() if part is not None})
        )
        tuner.name, tuner.tuner_path = folder.name, folder
        tuner.random_seed = next(r["seed"] for r in sessions if r["type"] == "session")
        tuner.metadata = next(r["metadata"] for r in sessions if r["type"] == "metadata")
        tuner._resumes = True
        return tuner

    # ---- running -------------------------------------------------------------------------------------

    def run(self) -> ExperimentResult:
        """Run the experiment and return its result.

        Raises:
            TrialFailed: If more than ``max_failures`` trials failed; the message ends with the tail of a stderr.
            ExperimentError: If the experiment cannot start or go on (already run, inside a trial or a distributed
                rank, the supervisor died three times, ...).
            KeyboardInterrupt: At the second Ctrl-C.
        """
        check_process()
        if self._has_run:
            raise ExperimentError(f"the experiment {self.name} has been run; make a new Tuner for another one")
        if self.trial_backend.new_trial_id() != 0:
            raise ExperimentError("trial_backend has run the trials of another experiment; make a new one for each")
        self._has_run = True
        # The supervisor starts while this process is still busy with its own preparations.
        self.tuner_path.mkdir(parents=True, exist_ok=True)
        if (self.tuner_path / ST_JOURNAL_FILENAME).exists() and not self._resumes:
            raise ExperimentError(f"{self.tuner_path} holds an experiment already; choose another tuner_name")
        self.trial_backend.set_path(self.trial_backend_path or self.tuner_path, self.name)
        self._lock = lock = ExperimentLock(self.tuner_path)
        # Quiet means quiet: without a handler of the application Python prints warnings on stderr.
        silencer = logging.NullHandler()
        if os.environ.get(ENV_QUIET) == "1":
            logging.getLogger("sthyper").addHandler(silencer)
        try:
            if (self.tuner_path / ST_JOURNAL_FILENAME).exists() and not self._resumes:  # another may have been faster
                raise ExperimentError(f"{self.tuner_path} holds an experiment already; choose another tuner_name")
            self._run_locked()
        finally:
            logging.getLogger("sthyper").removeHandler(silencer)
            self._steering.close(None)
            if self.journal is not None:
                self.journal.close()
            lock.release()
        assert self._loop is not None
        from sthyper.experiment import load_experiment

        if self._loop.state.error is not None:
            raise self._loop.state.error
        if self._loop.interrupt is not None:
            reason = self._loop.interrupt
            warnings.warn(f"tuning ended early: {reason}", RuntimeWarning, stacklevel=users_stacklevel())
        return load_experiment(str(self.tuner_path))

    def _run_locked(self) -> None:
        assert self._lock is not None
        ended = False
        try:
            recorded = list(read_journal(self.tuner_path)) if self._resumes else []
            if self._resumes:
                end_leftovers((self.trial_backend_path or self.tuner_path) / ST_TRIALS_DIRNAME, recorded)
            self.trial_backend.open(self._context())
            self._time_before = max((r["tuner_time"] for r in recorded if "tuner_time" in r), default=0.0)
            self._clock.start_of_time()
            self._write_metadata()
            write_parts(self.tuner_path, self._described)
            self.journal = open_journal(
                self.tuner_path,
                self.metadata,
                self.n_workers,
                self.random_seed,
                new=not self._resumes,
                guard=self._lock.check,
            )
            self._loop = self._make_loop()
            if self._resumes:
                recall(self._loop, recorded)
            if self._stop_requested:
                self._loop.request_stop("stopped by the user")
            with signals_handled(self._on_first_signal, self._on_second_signal):
                for callback in self.callbacks:
                    callback.on_tuning_start(self)
                    if self._resumes and isinstance(callback, StoreResultsCallback):
                        self._restore_results(callback)
                try:
                    self.trial_backend.run_loop(self._loop.run)
                    self._finish()
                except RoomLost:
                    self._give_up()
                ended = True
        finally:
            if not ended:
                self._give_up()

    def stop(self) -> None:
        """End the experiment soon, as Ctrl-C does; may be called from callbacks and other threads."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.request_stop("stopped by the user")

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

    def _context(self) -> ExperimentContext:
        scheduler = self.scheduler
        mode = scheduler.metric_mode()
        objective = {
            "metric": scheduler.metric_names()[0],
            "mode": mode if isinstance(mode, str) else mode[0],
            "resource_attr": scheduler.resource_attr,
            "max_resource": scheduler.max_resource_level,
        }
        interactive = progress_stream() is not None
        return ExperimentContext(self.n_workers, self.random_seed, objective, interactive=interactive)

    def _make_loop(self) -> TuningLoop:
        assert self.journal is not None
        assert self._lock is not None
        progress = None
        if (stream := progress_stream()) is not None:
            from sthyper.config_space import non_constant_hyperparameter_keys
            from sthyper.progress import ProgressPrinter

            progress = ProgressPrinter(
                self.print_update_interval,
                self.scheduler.metric_names(),
                self.scheduler.metric_mode(),
                stream=stream,
                resource_attr=self.scheduler.resource_attr,
                hyperparameters=non_constant_hyperparameter_keys(self.scheduler.config_space),
                clock=self._time,
            )
        options = LoopOptions(
            n_workers=self.n_workers,
            seed=self.random_seed,
            max_failures=self.max_failures,
            count_out_of_memory=self.count_out_of_memory,
            max_restarts=self.max_restarts,
            asynchronous_scheduling=self.asynchronous_scheduling,
            wait_trial_completion_when_stopping=self.wait_trial_completion_when_stopping,
            start_jobs_without_delay=self.start_jobs_without_delay,
            sleep_time=self.sleep_time,
        )
        return TuningLoop(
            ExperimentState(
                backend=self.trial_backend,
                scheduler=self.scheduler,
                criterion=self.stop_criterion,
                options=options,
                status=self.tuning_status,
                journal=self.journal,
                steering=self._steering,
                callbacks=self.callbacks,
                clock=self._time,
                progress=progress,
                guard=self._lock.check,
            )
        )

    def _finish(self) -> None:
        """The orderly end: callbacks, last journal line, processes."""
        assert self._loop is not None
        if self._loop.state.progress is not None:
            self._loop.state.progress.finish(self.tuning_status)
        self._steering.close(self.journal)
        self._write_end(self._loop.state.end_reason or "unknown")
        self.trial_backend.close()
        self._tell_end()

    def _give_up(self) -> None:
        """An exception or the second Ctrl-C: leave at once, the supervisor ends the trials."""
        error = sys.exc_info()[1]
        at_once = isinstance(error, KeyboardInterrupt)
        self.trial_backend.close(wait=not at_once)
        if self._loop is None or self.journal is None or self._told_end:
            return
        self.journal.keep_trying = lambda step: step()  # nothing is waited for any more
        # The orders of decisions are carried out by the supervisor; a resumed tuner takes them as carried out.
        records = self._loop.state.records.items()
        running = {trial_id: record for trial_id, record in records if record.busy and record.order is None}
        for trial_id, record in running.items():
            record.trial.end_reason = "interrupted"
            self.tuning_status.set_status(trial_id, Status.stopped, by_tuner=True)
        try:
            for trial_id, record in running.items():
                line = {"type": "status", "trial_id": trial_id, "run": record.run, "status": "Stopped"}
                line |= {"reason": "interrupted", "exit_code": None, "tuner_time": self._time()}
                self.journal.append(line)
            self._steering.close(self.journal)
            self._write_end(f"{type(error).__name__}: {error}")
        except (OSError, LockLost) as failure:
            logger.error("the record ends early, Tuner.resume goes on from there: %s", failure)
        if not at_once:
            self._tell_end(lost=isinstance(error, LockLost))

    def _write_end(self, reason: str) -> None:
        assert self.journal is not None
        logger.info("tuning ended: %s", reason)
        self.journal.append({"type": "end", "reason": reason, "tuner_time": self._time()})

    def _tell_end(self, lost: bool = False) -> None:
        """Call ``on_tuning_end`` of all callbacks, whatever one of them raises; then raise the first error.

        Args:
            lost: Whether the experiment is another tuner's now, whose table of results must not be overwritten.
        """
        self._told_end = True
        errors = []
        for callback in self.callbacks:
            if lost and isinstance(callback, StoreResultsCallback):
                continue
            try:
                callback.on_tuning_end()
            except Exception as error:
                logger.exception("%s.on_tuning_end failed", type(callback).__name__)
                errors.append(error)
        if errors and sys.exc_info()[1] is None:
            raise errors[0]

    def _on_first_signal(self, signum: int) -> None:
        assert self._loop is not None
        self._loop.request_stop(f"{signal.Signals(signum).name} received")
        self.trial_backend.on_signal(signum)

    def _on_second_signal(self) -> None:
        assert self._loop is not None
        self._loop.abandoned = True
        self.trial_backend.wake()

    def _time(self) -> float:
        return self._time_before + (self._clock.time() if self._clock.started else 0.0)

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

    def best_config(self, metric: int | str = 0) -> tuple[int, dict[str, Any]]:
        """Return ``(trial_id, config)`` of the best trial so far.

        Args:
            metric: Name or index of the metric.

        Raises:
            ValueError: If the metric is unknown or nothing finite was reported.
        """
        names = self.scheduler.metric_names()
        name = metric_name(names, metric)
        mode = self.scheduler.metric_mode()
        minimise = (mode if isinstance(mode, str) else mode[names.index(name)]) == "min"
        best: tuple[float, int] | None = None
        for trial_id, statistics in self.tuning_status.trial_metric_statistics.items():
            values = statistics.min_metrics if minimise else statistics.max_metrics
            value = values.get(name)
            if value is None or not math.isfinite(value):
                continue
            key = value if minimise else -value
            if best is None or key < best[0]:
                best = (key, trial_id)
        if best is None:
            raise ValueError(f"no trial has reported a finite {name!r} yet")
        trial_id = best[1]
        config = dict(self.trial_backend.trial(trial_id).config)
        logger.info("best trial is %d; to train it once more: start the script with %s", trial_id, config)
        return trial_id, config

    def _restore_results(self, callback: StoreResultsCallback) -> None:
        from sthyper._journal_view import read_experiment

        assert self._loop is not None
        trials = {trial_id: record.trial for trial_id, record in self._loop.state.records.items()}
        callback.restore(read_experiment(self.tuner_path).table, trials)

    def _write_metadata(self) -> None:
        if self._resumes:
            return
        self.metadata[ST_TUNER_START_TIMESTAMP] = time.time()
        write_atomically(self.tuner_path / ST_METADATA_FILENAME, json.dumps(self.metadata, indent=1))
