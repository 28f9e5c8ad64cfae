"""The Tuner: runs an experiment."""

from __future__ import annotations

import json
import logging
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
from sthyper._tuning.adoption import FreshStart, scheduler_traits
from sthyper._tuning.changes import Changes, plan_resume
from sthyper._tuning.checks import (
    check_count,
    check_process,
    check_seconds,
    check_switches,
    users_stacklevel,
    with_results,
)
from sthyper._tuning.controls import Controls
from sthyper._tuning.identity import has_begun, make_metadata, make_name, objective_of, open_journal
from sthyper._tuning.leftovers import delete_leftovers, end_leftovers
from sthyper._tuning.loop import TuningLoop
from sthyper._tuning.narration import log_begin
from sthyper._tuning.parts import describe_parts, read_parts_or_take, rebuild_parts, write_parts
from sthyper._tuning.past import Past, read_past
from sthyper._tuning.recorded import MadeLines
from sthyper._tuning.resuming import go_on, look_back, read_identity, repair_hint
from sthyper._tuning.room import RoomLost
from sthyper._tuning.saving import SnapshotTaker, load_beside, made_with
from sthyper._tuning.signals import signals_handled
from sthyper._tuning.state import ExperimentState, LoopOptions
from sthyper._tuning.steering import Steering
from sthyper._tuning.terminal import make_progress, progress_stream
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
from sthyper.journal import ExperimentJournal, ExperimentLock, cut_damage, write_atomically
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

_MAX_SUGGESTION_WAIT = 5.0
"""Seconds that an experiment which has ended waits for a suggestion that is being computed."""


class Tuner(Controls):
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
        snapshot_interval: Seconds between two snapshots of the experiment's state, which make a resume quick; nothing
            is lost without them. More where they would take more than a hundredth of the time.
        save_tuner: Whether snapshots are taken at intervals and at the end; the journal is written in any case.
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
        snapshot_interval: float = 60.0,
        save_tuner: bool = True,
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
            save_tuner=save_tuner,
        )
        check_count("n_workers", n_workers, 1)
        check_count("max_failures", max_failures, 0)
        check_count("max_restarts", max_restarts, 0)
        check_seconds(
            sleep_time=sleep_time,
            results_update_interval=results_update_interval,
            print_update_interval=print_update_interval,
            snapshot_interval=snapshot_interval,
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
        self.snapshot_interval = float(snapshot_interval)
        self.save_tuner = save_tuner
        self.callbacks = with_results(callbacks)
        self.name = make_name(trial_backend, tuner_name, suffix_tuner_name)
        self.tuner_path = experiment_path(self.name)
        self.trial_backend_path = None if trial_backend_path is None else Path(trial_backend_path).absolute()
        self.random_seed = draw_seed() if scheduler.random_seed is None else scheduler.random_seed
        self._steering = Steering(scheduler)
        add_experiments(warm_start, scheduler, self._steering)
        self._clock = RealTimeKeeper()
        self.tuning_status = TuningStatus(scheduler.metric_names(), self._time, scheduler.outcome_constraints())
        self.metadata = make_metadata(metadata, trial_backend, scheduler, self.trial_backend_path)
        self.journal: ExperimentJournal | None = None
        self._loop: TuningLoop | None = None
        self._stop_requested = False
        self._has_run = False
        self._told_end = False
        self._resumes = self._repairs = False
        self._past: Past | None = None
        self._fresh: FreshStart | None = None
        self._is_renewed = False
        self._made: MadeLines | None = None
        self._begun = False
        self._snapshots: SnapshotTaker | None = None
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
                "snapshot_interval": snapshot_interval,
                "save_tuner": save_tuner,
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
        config_space: dict[str, Any] | None = None,
        new_defaults: Mapping[str, Any] | None = None,
        drop: bool = False,
        force: bool = False,
        repair_journal: bool = False,
    ) -> Tuner:
        """Return a tuner that goes on with an experiment; its :meth:`run` begins where the record ends.

        Backend, scheduler, criterion and callbacks are made again from what the journal says of their arguments. Those
        that are no classes of sthyper, or were made with functions, have to be given. Then the record is gone through
        once more, so that scheduler and searcher know what they knew. Trials that ran when the tuner ended run again
        from their checkpoints, or from scratch where they have none; paused ones stay paused; what is left of the old
        tuner's processes is ended. ``max_wallclock_time`` and ``st_tuner_time`` count the time that the tuner ran, and
        ``max_failures`` the failures from now on.

        *Another configuration space.* The trials so far stay what they are, and a fresh scheduler that has learnt from
        them goes on in the new space, with another seed. Trials whose values have no place there are never suggested
        again and inform a model where it can express them (numbers outside their range; not other categories, nor other
        values of what is a constant now). Those of them that are paused, or ran when the tuner ended, are stopped, with
        the end reason ``"outside the configuration space"``, and keep their checkpoint. What goes on gets the
        constants of the new space: a larger maximum resource is one for paused and interrupted trials, while those that
        completed at the old one stay completed.

        Args:
            path_or_name: Name of the experiment; its name without the time stamp, for the newest of that name; or the
                path of its folder.
            stop_criterion: Another criterion, such as one with a larger limit.
            n_workers: Another number of trials that run at the same time.
            trial_backend: A backend made with the same arguments, where it cannot be made from the record
                (``PythonBackend``, a class of yours).
            scheduler: A scheduler made with the same arguments, seed included, where it cannot be made from the record.
            callbacks: Callbacks in place of the earlier ones.
            config_space: Another configuration space; one that equals the experiment's is no change. Where
                ``scheduler`` is given, too, it must have this space.
            new_defaults: Values that past trials have of hyperparameters that ``config_space`` adds, by name.
            drop: Whether ``config_space`` may lack a hyperparameter of which past trials have different values; they
                are compared without it. If all have the same value, it becomes a constant with that value, unless
                ``drop`` is true.
            force: Whether to take a fresh scheduler, which learns from all results so far, where ``scheduler`` is
                another one, or decides otherwise than is recorded (another version of it, other arguments). Its metric
                and mode stay; trials stay paused if it is of a kind that resumes none. Without ``force`` :meth:`run`
                raises and names the line.
            repair_journal: Whether to go on with the good part of a damaged journal. From the damaged line on it is cut
                off when the tuner runs, and what was recorded there is lost; the whole file stays beside it, as
                ``journal.jsonl.damaged-0``.

        Raises:
            ConfigSpaceError: If ``config_space`` cannot be used, or needs ``new_defaults`` or ``drop``.
            DamagedJournal: If a line of its journal cannot be read, without ``repair_journal``; names the line. A
                ``ValueError``.
            ExperimentError: If something has to be given, or nothing is recorded yet.
            FileNotFoundError: If there is no such experiment.
            TypeError: If an argument has the wrong type.
            ValueError: If its journal is of a newer version, or an argument has no effect.
        """
        check_switches(drop=drop, force=force, repair_journal=repair_journal)
        if not isinstance(path_or_name, str | os.PathLike):
            raise TypeError(f"path_or_name must be the name or the path of an experiment, got {path_or_name!r}")
        if not os.fspath(path_or_name):
            raise ValueError("path_or_name must not be empty")
        changes = Changes(config_space, new_defaults, drop, force)
        from sthyper.experiment import load_experiment

        given = {
            "stop_criterion": stop_criterion,
            "n_workers": n_workers,
            "trial_backend": trial_backend,
            "scheduler": scheduler,
            "callbacks": callbacks,
        }
        given = {name: part for name, part in given.items() if part is not None}
        return cls._going_on(load_experiment(path_or_name).path, given, repair_journal, changes)

    @classmethod
    def _going_on(
        cls, folder: Path, given: dict[str, Any], repair_journal: bool = False, changes: Changes | None = None
    ) -> Tuner:
        """Return a tuner that goes on with an experiment, its arguments those of the record but for those given."""
        with repair_hint():
            seed, metadata = read_identity(folder, strict=not repair_journal)
            parts = read_parts_or_take(folder, given)
            plan = plan_resume(folder, parts, given.get("scheduler"), changes or Changes(), strict=not repair_journal)
        if plan.scheduler is not None:
            given = {**given, "scheduler": plan.scheduler}
        tuner = cls(**rebuild_parts(plan.described, given))
        tuner.name, tuner.tuner_path = folder.name, folder
        tuner.random_seed, tuner.metadata = seed, {**metadata, **plan.metadata}
        tuner._fresh, tuner._is_renewed = plan.fresh, bool(plan.metadata)
        tuner._resumes, tuner._repairs = True, repair_journal
        with repair_hint():
            suits = made_with(tuner.scheduler, tuner.trial_backend) if plan.fresh is None else None
            tuner._past = read_past(folder, suits, strict=not repair_journal)
        return tuner

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        *,
        stop_criterion: Callable[[TuningStatus], bool] | None = None,
        n_workers: int | None = None,
        trial_backend: TrialBackend | None = None,
        scheduler: TrialScheduler | None = None,
        callbacks: Sequence[TunerCallback] | None = None,
        repair_journal: bool = False,
    ) -> Tuner:
        """Return the tuner of an experiment with its scheduler, searcher and statistics, ready to look at.

        Nothing is started and nothing changes on the disk; the experiment may even be running. :meth:`run` goes on
        with it, as that of :meth:`resume` does.

        Args:
            path_or_name: See :meth:`resume`, as for all arguments.
            stop_criterion: For :meth:`run`.
            n_workers: For :meth:`run`.
            trial_backend: To be given where it cannot be made from the record.
            scheduler: To be given where it cannot be made from the record.
            callbacks: For :meth:`run`.
            repair_journal: Whether the good part of a damaged journal is enough; the rest is cut off by :meth:`run`.

        Raises:
            DamagedJournal: See :meth:`resume`.
            ExperimentError: If something has to be given, or scheduler or searcher decide otherwise than is recorded.
            FileNotFoundError: If there is no such experiment.
        """
        tuner = cls.resume(
            path_or_name,
            stop_criterion=stop_criterion,
            n_workers=n_workers,
            trial_backend=trial_backend,
            scheduler=scheduler,
            callbacks=callbacks,
            repair_journal=repair_journal,
        )
        assert tuner._past is not None
        tuner.trial_backend.set_path(tuner.trial_backend_path or tuner.tuner_path, tuner.name)
        tuner.trial_backend.context = tuner._context()
        tuner._time_before = tuner._past.tuner_time
        tuner._made = MadeLines(tuner.tuner_path / ST_JOURNAL_FILENAME)
        tuner._loop = tuner._make_loop(tuner._made)
        look_back(tuner._loop, tuner._past)
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
        if self._made is None and self.trial_backend.new_trial_id() != 0:
            raise ExperimentError("trial_backend has run the trials of another experiment; make a new one for each")
        self._has_run = True
        # The supervisor starts while this process is still busy with its own preparations.
        self.tuner_path.mkdir(parents=True, exist_ok=True)
        if not self._resumes and has_begun(self.tuner_path):
            raise ExperimentError(f"{self.tuner_path} holds an experiment already; choose another tuner_name")
        self.trial_backend.set_path(self.trial_backend_path or self.tuner_path, self.name)
        self._lock = lock = ExperimentLock(self.tuner_path)
        # Quiet means quiet: without a handler of the application Python prints warnings on stderr.
        silencer = logging.NullHandler()
        if os.environ.get(ENV_QUIET) == "1":
            logging.getLogger("sthyper").addHandler(silencer)
        try:
            if not self._resumes and has_begun(self.tuner_path):  # another may have been faster
                raise ExperimentError(f"{self.tuner_path} holds an experiment already; choose another tuner_name")
            self._run_locked()
        finally:
            logging.getLogger("sthyper").removeHandler(silencer)
            self._steering.close(None)
            if self._snapshots is not None:
                self._snapshots.close()
            if self.journal is not None:
                self.journal.close()
            lock.release()
            if self._loop is not None and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                self._loop.suggestions.close(_MAX_SUGGESTION_WAIT)
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
            if self._repairs:
                cut_damage(self.tuner_path)
            trials = (self.trial_backend_path or self.tuner_path) / ST_TRIALS_DIRNAME
            past, later = self._past, None
            if past is not None:
                later = past.read_on()
                self._time_before = past.tuner_time
                if not self.trial_backend.outlives_tuner:
                    end_leftovers(trials, past.processes())
            delete_leftovers(self.tuner_path, trials)
            self.trial_backend.open(self._context())
            self._clock.start_of_time()
            if not self._resumes:
                self.metadata[ST_TUNER_START_TIMESTAMP] = time.time()
                write_parts(self.tuner_path, self._described)
            self.journal = open_journal(
                self.tuner_path,
                self.metadata,
                self.n_workers,
                self.random_seed,
                new=not self._resumes,
                traits=None if self._resumes else scheduler_traits(self.scheduler),
                guard=self._lock.check,
            )
            # The journal is what makes a folder an experiment; the rest of it can be made again.
            self._write_metadata()
            if self._loop is None:
                self._loop = self._make_loop(self.journal)
            self._loop.use_journal(self.journal, self._lock.check)
            log_begin(self.tuner_path, self.scheduler, self.trial_backend, self.n_workers)
            if past is not None:
                self._loop.state.fresh = self._fresh
                assert later is not None
                go_on(self._loop, past, self._made, later)
                # Only now it is certain that they suit the record, or the journal says from where on they do.
                write_parts(self.tuner_path, self._described)
                self._loop.state.fresh = self._fresh = None
                self._write_metadata()
            self._take_snapshots(self._loop)
            self._begun = True
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

    def _take_snapshots(self, loop: TuningLoop) -> None:
        assert self._lock is not None
        beside: dict[str, Sequence[Any]] = {"stop_criterion": [self.stop_criterion], "callbacks": self.callbacks}
        if self._past is not None and self._past.snapshot is not None:
            load_beside(self._past.snapshot.beside, beside)
        self._snapshots = SnapshotTaker(
            self.tuner_path,
            loop,
            made_with(self.scheduler, self.trial_backend),
            beside,
            self.snapshot_interval if self.save_tuner else None,
            self._lock.check,
        )
        loop.state.on_quiet = self._snapshots.on_quiet

    def _context(self) -> ExperimentContext:
        interactive = progress_stream() is not None
        return ExperimentContext(self.n_workers, self.random_seed, objective_of(self.scheduler), interactive)

    def _make_loop(self, journal: ExperimentJournal | MadeLines) -> TuningLoop:
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
                journal=journal,
                steering=self._steering,
                callbacks=self.callbacks,
                clock=self._time,
                progress=make_progress(self.print_update_interval, self.scheduler, self._time),
            )
        )

    def _finish(self) -> None:
        """The orderly end: callbacks, last journal line, processes."""
        assert self._loop is not None
        if self._loop.state.progress is not None:
            self._loop.state.progress.finish(self.tuning_status)
        if self._snapshots is not None:
            self._snapshots.finish()
        self._steering.close(self.journal)
        finished = self._loop.interrupt is None and self._loop.state.error is None
        self._write_end(self._loop.state.end_reason or "unknown", finished)
        self.trial_backend.close()
        self._tell_end()

    def _give_up(self) -> None:
        """An exception or the second Ctrl-C: leave at once, the supervisor ends the trials."""
        error = sys.exc_info()[1]
        at_once = isinstance(error, KeyboardInterrupt)
        self.trial_backend.close(wait=not at_once)
        if self._loop is None or self.journal is None or self._told_end or not self._begun:
            return  # what the loop holds is not yet what the record says
        self.journal.keep_trying = lambda step: step()  # nothing is waited for any more
        # The orders of decisions are carried out by the supervisor; a resumed tuner takes them as carried out.
        records = self._loop.state.records.items()
        running = {trial_id: record for trial_id, record in records if record.busy and record.order is None}
        for trial_id, record in running.items():
            record.trial.end_reason = "interrupted"
            self.tuning_status.set_status(trial_id, Status.stopped, by_tuner=True)
        amid = self._loop.state.amid
        try:
            # What failed in the middle of something is taken up there by a resumed tuner, as after a kill.
            for trial_id, record in () if amid else running.items():
                line = {"type": "status", "trial_id": trial_id, "run": record.run, "status": "Stopped"}
                line |= {"reason": "interrupted", "exit_code": None, "tuner_time": self._time()}
                self.journal.append(line)
            self._steering.close(None if amid else self.journal)
            self._write_end(f"{type(error).__name__}: {error}")
        except LockLost as failure:
            logger.error("nothing is written any more: %s", failure)
        except OSError as failure:
            logger.error("the record ends early, Tuner.resume goes on from there: %s", failure)
        if not at_once:
            self._tell_end()

    def _write_end(self, reason: str, finished: bool = False) -> None:
        assert self.journal is not None
        logger.info("tuning ended: %s; %s", reason, self.tuning_status.summary())
        self.journal.append({"type": "end", "reason": reason, "finished": finished, "tuner_time": self._time()})

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

    def _restore_results(self, callback: StoreResultsCallback) -> None:
        from sthyper._journal_view import read_experiment

        assert self._loop is not None
        trials = {trial_id: record.trial for trial_id, record in self._loop.state.records.items()}
        callback.restore(read_experiment(self.tuner_path).table, trials)

    def _write_metadata(self) -> None:
        path = self.tuner_path / ST_METADATA_FILENAME
        if self._resumes and path.exists() and (self._fresh is not None or not self._is_renewed):
            return
        write_atomically(path, json.dumps(self.metadata, indent=1))
