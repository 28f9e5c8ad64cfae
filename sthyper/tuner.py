"""The Tuner: runs an experiment."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sthyper._tuning.checks import check_count, check_process, metric_name, with_results
from sthyper._tuning.loop import TuningLoop
from sthyper._tuning.state import ExperimentState, LoopOptions
from sthyper.backend.base import ExperimentContext, TrialBackend
from sthyper.constants import (
    ENV_QUIET,
    ST_JOURNAL_FILENAME,
    ST_METADATA_FILENAME,
    ST_TUNER_CREATION_TIMESTAMP,
    ST_TUNER_START_TIMESTAMP,
    TUNER_DEFAULT_SLEEP_TIME,
)
from sthyper.errors import ExperimentError
from sthyper.journal import JOURNAL_VERSION, ExperimentJournal, ExperimentLock, write_atomically
from sthyper.paths import check_valid_name, experiment_path, name_from_base, sanitize_name
from sthyper.schedulers.base import TrialScheduler
from sthyper.time_keeper import RealTimeKeeper
from sthyper.trial import Status
from sthyper.tuner_callback import TunerCallback
from sthyper.tuning_status import TuningStatus

if TYPE_CHECKING:
    from sthyper.experiment import ExperimentResult

__all__ = ["Tuner"]

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

    Raises:
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
    ) -> None:
        if not isinstance(trial_backend, TrialBackend):
            raise TypeError(f"trial_backend must be a TrialBackend such as LocalBackend(...), got {trial_backend!r}")
        if not isinstance(scheduler, TrialScheduler):
            raise TypeError(f"scheduler must be a TrialScheduler such as ASHA(...), got {scheduler!r}")
        if not callable(stop_criterion) or isinstance(stop_criterion, type):
            raise TypeError(f"stop_criterion must be a StoppingCriterion or a function, got {stop_criterion!r}")
        trial_backend.check_config_space(scheduler.config_space)
        for label, switch in (
            ("asynchronous_scheduling", asynchronous_scheduling),
            ("wait_trial_completion_when_stopping", wait_trial_completion_when_stopping),
            ("suffix_tuner_name", suffix_tuner_name),
            ("start_jobs_without_delay", start_jobs_without_delay),
            ("count_out_of_memory", count_out_of_memory),
        ):
            if not isinstance(switch, bool):
                raise TypeError(f"{label} must be True or False, got {switch!r}")
        check_count("n_workers", n_workers, 1)
        check_count("max_failures", max_failures, 0)
        for label, seconds in (
            ("sleep_time", sleep_time),
            ("results_update_interval", results_update_interval),
            ("print_update_interval", print_update_interval),
        ):
            if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                raise ValueError(f"{label} must be a number of seconds >= 0, got {seconds!r}")
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
        self.callbacks = with_results(callbacks)
        self.name = self._make_name(tuner_name, suffix_tuner_name)
        self.tuner_path = experiment_path(self.name)
        self.trial_backend_path = None if trial_backend_path is None else Path(trial_backend_path).absolute()
        self.random_seed = _draw_seed() if scheduler.random_seed is None else scheduler.random_seed
        self._clock = RealTimeKeeper()
        self.tuning_status = TuningStatus(scheduler.metric_names(), clock=self._time)
        self.metadata = self._make_metadata(metadata)
        self.journal: ExperimentJournal | None = None
        self._loop: TuningLoop | None = None
        self._stop_requested = False
        self._has_run = False
        self._told_end = False

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
        self._has_run = True
        # The supervisor starts while this process is still busy with its own preparations.
        self.tuner_path.mkdir(parents=True, exist_ok=True)
        if (self.tuner_path / ST_JOURNAL_FILENAME).exists():
            raise ExperimentError(f"{self.tuner_path} holds an experiment already; choose another tuner_name")
        self.trial_backend.set_path(self.trial_backend_path or self.tuner_path, self.name)
        lock = ExperimentLock(self.tuner_path)
        # Quiet means quiet: without a handler of the application Python prints warnings on stderr.
        silencer = logging.NullHandler()
        if os.environ.get(ENV_QUIET) == "1":
            logging.getLogger("sthyper").addHandler(silencer)
        try:
            self._run_locked()
        finally:
            logging.getLogger("sthyper").removeHandler(silencer)
            if self.journal is not None:
                self.journal.close()
            lock.release()
        assert self._loop is not None
        from sthyper.experiment import load_experiment

        if self._loop.state.error is not None:
            raise self._loop.state.error
        if self._loop.interrupt is not None:
            warnings.warn(f"tuning ended early: {self._loop.interrupt}", RuntimeWarning, stacklevel=2)
        return load_experiment(str(self.tuner_path))

    def _run_locked(self) -> None:
        ended = False
        try:
            self.trial_backend.open(self._context())
            self._clock.start_of_time()
            self._write_metadata()
            self.journal = self._open_journal()
            self._loop = self._make_loop()
            if self._stop_requested:
                self._loop.request_stop("stopped by the user")
            with self._signals():
                for callback in self.callbacks:
                    callback.on_tuning_start(self)
                self.trial_backend.run_loop(self._loop.run)
                self._finish()
                ended = True
        finally:
            if not ended:
                self._give_up()

    def stop(self) -> None:
        """End the experiment soon, as Ctrl-C does; may be called from callbacks and other threads."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.request_stop("stopped by the user")

    def _context(self) -> ExperimentContext:
        scheduler = self.scheduler
        mode = scheduler.metric_mode()
        objective = {
            "metric": scheduler.metric_names()[0],
            "mode": mode if isinstance(mode, str) else mode[0],
            "resource_attr": scheduler.resource_attr,
            "max_resource": scheduler.max_resource_level,
        }
        return ExperimentContext(self.n_workers, self.random_seed, objective, interactive=_interactive())

    def _make_loop(self) -> TuningLoop:
        assert self.journal is not None
        progress = None
        if _interactive():
            from sthyper.config_space import non_constant_hyperparameter_keys
            from sthyper.progress import ProgressPrinter

            progress = ProgressPrinter(
                self.print_update_interval,
                self.scheduler.metric_names(),
                self.scheduler.metric_mode(),
                resource_attr=self.scheduler.resource_attr,
                hyperparameters=non_constant_hyperparameter_keys(self.scheduler.config_space),
                clock=self._time,
            )
        options = LoopOptions(
            n_workers=self.n_workers,
            seed=self.random_seed,
            max_failures=self.max_failures,
            count_out_of_memory=self.count_out_of_memory,
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
                callbacks=self.callbacks,
                clock=self._time,
                progress=progress,
            )
        )

    def _finish(self) -> None:
        """The orderly end: callbacks, last journal line, processes."""
        assert self._loop is not None
        if self._loop.state.progress is not None:
            self._loop.state.progress.finish(self.tuning_status)
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
        for trial_id, record in self._loop.state.records.items():
            if record.busy:
                line = {"type": "status", "trial_id": trial_id, "run": record.run, "status": "Stopped"}
                self.journal.append({**line, "reason": "interrupted", "exit_code": None, "tuner_time": self._time()})
                record.trial.end_reason = "interrupted"
                self.tuning_status.set_status(trial_id, Status.stopped, by_tuner=True)
        self._write_end(f"{type(error).__name__}: {error}")
        if not at_once:
            self._tell_end()

    def _write_end(self, reason: str) -> None:
        assert self.journal is not None
        logger.info("tuning ended: %s", reason)
        self.journal.append({"type": "end", "reason": reason, "tuner_time": self._time()})

    def _tell_end(self) -> None:
        """Call ``on_tuning_end`` of all callbacks, whatever one of them raises; then raise the first error."""
        self._told_end = True
        errors = []
        for callback in self.callbacks:
            try:
                callback.on_tuning_end()
            except Exception as error:
                logger.exception("%s.on_tuning_end failed", type(callback).__name__)
                errors.append(error)
        if errors and sys.exc_info()[1] is None:
            raise errors[0]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP while the experiment runs, and restore the old handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        received: list[int] = []

        def handle(signum: int, frame: FrameType | None) -> None:
            assert self._loop is not None
            received.append(signum)
            if len(received) > 1:
                self._loop.abandoned = True
                self.trial_backend.wake()
                raise KeyboardInterrupt
            self._loop.request_stop(f"{signal.Signals(signum).name} received")
            self.trial_backend.on_signal(signum)

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _time(self) -> float:
        return self._clock.time() if self._clock.started else 0.0

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

    def _open_journal(self) -> ExperimentJournal:
        journal = ExperimentJournal(self.tuner_path)
        now = time.time()
        journal.append({"type": "journal", "version": JOURNAL_VERSION, "name": self.name, "created": now})
        journal.append({"type": "metadata", "metadata": self.metadata})
        journal.append(
            {
                "type": "session",
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "n_workers": self.n_workers,
                "seed": self.random_seed,
                "time": now,
            }
        )
        return journal

    def _make_metadata(self, metadata: dict[str, Any] | None) -> dict[str, Any]:
        entry_point = self.trial_backend.entrypoint_path()
        own = {
            ST_TUNER_CREATION_TIMESTAMP: time.time(),
            "entrypoint": None if entry_point is None else entry_point.stem,
            "backend": type(self.trial_backend).__name__,
            **self.scheduler.metadata(),
        }
        if self.trial_backend_path is not None:
            own["trial_backend_path"] = str(self.trial_backend_path)
        if not isinstance(metadata or {}, dict):
            raise TypeError(f"metadata must be a dict, got {metadata!r}")
        result = dict(metadata or {})
        for key, value in result.items():
            if key in own or key == ST_TUNER_START_TIMESTAMP:
                warnings.warn(f"metadata entry {key!r} is overwritten: the name is the tuner's own", stacklevel=3)
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise TypeError(f"metadata entry {key!r} cannot be written as JSON: {value!r}") from None
        return {**result, **own}

    def _write_metadata(self) -> None:
        self.metadata[ST_TUNER_START_TIMESTAMP] = time.time()
        write_atomically(self.tuner_path / ST_METADATA_FILENAME, json.dumps(self.metadata, indent=1))

    def _make_name(self, tuner_name: str | None, suffix: bool) -> str:
        if tuner_name is None:
            entry_point = self.trial_backend.entrypoint_path()
            base = sanitize_name(entry_point.stem) if entry_point is not None else "tuning"
        else:
            check_valid_name(tuner_name)
            base = tuner_name
        return name_from_base(base) if suffix else base


def _interactive() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get(ENV_QUIET) != "1"


def _draw_seed() -> int:
    import numpy as np

    return int(np.random.SeedSequence().generate_state(1, dtype=np.uint32)[0]) % (2**31 - 1)
