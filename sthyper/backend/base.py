"""The contract between tuner and backends: start, pause, resume and stop trials; tell what happened."""

from __future__ import annotations

import logging
import operator
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sthyper._describe import Described
from sthyper.checkpoints import copy_checkpoints, copying_folder
from sthyper.constants import ST_CHECKPOINTS_DIRNAME, ST_STDERR_FILENAME, ST_STDOUT_FILENAME
from sthyper.trial import SchedulerDecision, Status, Trial, trial_seed

__all__ = [
    "BUSY_STATUS",
    "EndEvent",
    "ExperimentContext",
    "MessageEvent",
    "ReportEvent",
    "RunningTrial",
    "TrialBackend",
    "TrialEvent",
    "trial_seed",
]

logger = logging.getLogger(__name__)

BUSY_STATUS = frozenset({Status.in_progress, Status.stopping})


@dataclass(frozen=True, slots=True)
class ReportEvent:
    """A trial reported.

    Args:
        trial_id: The trial.
        run: Run of the trial that reported (0 at the start, one more at every resume or restart).
        metrics: What was reported, ``st_worker_*`` fields included.
        client: Random name of the reporting process, empty where the backend has none.
        seq: Number of the report among those of its client.
    """

    trial_id: int
    run: int
    metrics: dict[str, Any]
    client: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True)
class EndEvent:
    """A run of a trial has ended and its worker is free again (its whole process tree is gone).

    Args:
        trial_id: The trial.
        run: The run that ended.
        status: ``Completed``, ``Failed``, ``Stopped`` or ``Paused``; the last two after an order of the tuner.
        reason: Why it ended, ``None`` when it ended in order: ``"exit N"``, ``"out_of_memory"``, ``"hung"``,
            ``"killed"``, ``"supervisor_lost"``, ``"lost"``, ...
        exit_code: Exit code of the leading process, negative for a signal, ``None`` if unknown.
        stderr_tail: Last lines of the trial's stderr for failures.
    """

    trial_id: int
    run: int
    status: Status
    reason: str | None = None
    exit_code: int | None = None
    stderr_tail: str = ""


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """Something that the backend wants the journal or the user to know (``kind`` names it)."""

    kind: str
    trial_id: int | None = None
    run: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


TrialEvent = ReportEvent | EndEvent | MessageEvent


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """A run that an earlier tuner has left running, for :meth:`TrialBackend.reattach`.

    Args:
        trial_id: The trial.
        run: Number of the run.
        place: ``data`` of the run's last :class:`MessageEvent` of kind ``"process"``, from the journal; ``None`` if
            there was none.
        answers: The decisions that the run's reports were answered with, by client, in the order of ``seq``.
        order: ``Status.stopped`` or ``Status.paused`` if it was ordered to end, ``None`` if it goes on.
    """

    trial_id: int
    run: int
    place: dict[str, Any] | None = None
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    order: Status | None = None


@dataclass(frozen=True)
class ExperimentContext:
    """What a backend has to know of the experiment before the first trial.

    Args:
        n_workers: Number of trials that run at the same time.
        seed: The experiment's seed; trials get theirs by :func:`trial_seed`.
        objective: ``{"metric", "mode", "resource_attr", "max_resource"}`` or ``None``.
        interactive: Whether to talk to the terminal.
    """

    n_workers: int
    seed: int
    objective: dict[str, Any] | None = None
    interactive: bool = False


class TrialBackend(Described, ABC):
    """Runs trials.

    A plug-in implements :meth:`_schedule`, :meth:`_end` and :meth:`events`; where trials can wait for an answer
    also :meth:`answer`. The tuner calls :meth:`open` before the first trial and :meth:`close` after the last.

    Args:
        rewrite_max_resource: Whether ``config[max_resource_attr]`` holds the next milestone instead of the full
            value; for trials that cannot be paused from inside.

    Attributes:
        poll_interval: Seconds between two looks at a backend that must be polled; ``None`` if :meth:`events` blocks
            until something happens.
        delete_checkpoints: Whether the tuner deletes the checkpoints of trials that have ended for good, except the
            best one's.
        no_report: End reason of a trial that completes without a report; starts with ``"no report"``.
        outlives_tuner: Whether trials go on while there is no tuner, so that a resumed one takes them up again by
            :meth:`reattach`. Otherwise they have ended with the tuner, and are run again from their checkpoints.
        recalling: Whether a resumed tuner goes through recorded events: orders are booked and not carried out.
        held: Whether the tuner waits for room on the disk, say to record what it has ordered: nothing that it has
            ordered may begin where it outlives the tuner.
        keep_trying: Calls the function that it is given, which writes files; the tuner's calls it again once there is
            room where there was none.
    """

    poll_interval: float | None = None
    delete_checkpoints: bool = False
    outlives_tuner: bool = False
    no_report: str = "no report: the script ended without one; call Reporter()(metric=...) at least once"

    def __init__(self, rewrite_max_resource: bool = False) -> None:
        self.rewrite_max_resource = rewrite_max_resource
        self.path: Path | None = None
        self.context = ExperimentContext(n_workers=1, seed=0)
        self._trials: dict[int, Trial] = {}
        self._status: dict[int, Status] = {}
        self._runs: dict[int, int] = {}
        self._busy: set[int] = set()
        self.recalling = False
        self.held = False
        self.keep_trying: Callable[[Callable[[], Any]], Any] = _once

    # ---- life of the backend -------------------------------------------------------------------------

    def set_path(self, results_root: str | Path, tuner_name: str | None = None) -> None:
        """Set the folder below which each trial has its own (``{path}/trials/{trial_id}``)."""
        self.path = Path(results_root)

    def check_config_space(self, config_space: dict[str, Any]) -> None:
        """Raise ``ValueError`` if this backend cannot hand such configurations to trials; called by the Tuner."""

    def open(self, context: ExperimentContext) -> None:
        """Get ready to start trials."""
        self.context = context

    def close(self, wait: bool = True) -> None:
        """End whatever still runs and free all resources; may be called twice.

        Args:
            wait: Whether to wait until all processes are gone; without it the supervisor ends them afterwards.
        """

    def run_loop(self, loop: Callable[[], None]) -> None:
        """Run the tuner's event loop; backends whose trials need the calling thread run it in a helper thread."""
        loop()

    def on_signal(self, signum: int) -> None:
        """React to a signal that asks the tuner to end; called in the handler, in the main thread."""

    def wake(self) -> None:
        """Make a blocked :meth:`events` return soon; safe in signal handlers and from other threads."""

    # ---- orders of the tuner -------------------------------------------------------------------------

    def new_trial_id(self) -> int:
        """Return the id that the next new trial will get (without reserving it)."""
        return len(self._trials)

    def start_trial(self, config: dict[str, Any], checkpoint_trial_id: int | None = None) -> Trial:
        """Start a new trial.

        Args:
            config: Configuration for the training code.
            checkpoint_trial_id: Trial whose checkpoint is copied to the new trial first.
        """
        trial_id = self.new_trial_id()
        trial = Trial(
            trial_id=trial_id,
            config=config,
            creation_time=datetime.now(),
            seed=trial_seed(self.context.seed, trial_id),
        )
        self._trials[trial_id] = trial
        if self.path is not None and not self.recalling:
            # What is there already is another trial's, whose start is in no record (any more).
            self.keep_trying(lambda: self.set_checkpoint_aside(trial_id))
        if checkpoint_trial_id is not None and not self.recalling:
            self.keep_trying(lambda: self.copy_checkpoint(checkpoint_trial_id, trial_id))
        self._launch(trial, run=0)
        return trial

    def resume_trial(self, trial_id: int, new_config: dict[str, Any] | None = None) -> Trial:
        """Resume a paused trial, with ``new_config`` in place of its configuration if that is given.

        Raises:
            ValueError: If there is no such trial or it is not paused.
        """
        trial = self._known(trial_id)
        if self._status[trial_id] != Status.paused:
            raise ValueError(
                f"trial_id={trial_id}: cannot be resumed, its status is {self._status[trial_id].value}, "
                f"not {Status.paused.value}"
            )
        if new_config is not None:
            trial.config = new_config
        self._launch(trial, run=self._runs[trial_id] + 1)
        return trial

    def restart_trial(self, trial_id: int, from_scratch: bool = False) -> Trial:
        """Run a trial again whose last run ended too early, from its checkpoint or from scratch."""
        trial = self._known(trial_id)
        if from_scratch and not self.recalling:
            self.keep_trying(lambda: self.set_checkpoint_aside(trial_id))
        self._launch(trial, run=self._runs[trial_id] + 1)
        return trial

    def pause_trial(self, trial_id: int, result: dict[str, Any] | None = None) -> None:
        """Order the end of a trial's run after a PAUSE; ``result`` is the report that led to it."""
        self._order_end(trial_id, Status.paused)

    def stop_trial(self, trial_id: int, result: dict[str, Any] | None = None) -> None:
        """Order the final end of a trial after a STOP; ``result`` is the report that led to it."""
        self._order_end(trial_id, Status.stopped)

    def stop_all(self, grace: float = 5.0) -> None:
        """Order the end of all running trials: SIGTERM at once, SIGKILL after ``grace`` seconds."""
        for trial_id in () if self.recalling else sorted(self._busy):
            self._end(trial_id, Status.stopped, at_once=True, grace=grace)

    def reattach(self, running: RunningTrial) -> None:
        """Take up a run again that the tuner before this one has started; only where :attr:`outlives_tuner` is true.

        The run is booked already. If it is not to be found, its :class:`EndEvent` has the reason ``"lost"``, and it is
        run again from its checkpoint.

        Args:
            running: What the journal tells of it.

        Raises:
            TypeError: If a backend with :attr:`outlives_tuner` does not override it.
        """
        raise TypeError(f"{type(self).__name__} has outlives_tuner = True and no method reattach")

    def answer(self, event: ReportEvent, decision: str) -> None:
        """Answer a report; the trial ends itself on STOP and PAUSE (no-op where trials cannot listen)."""

    # ---- what happened -------------------------------------------------------------------------------

    @abstractmethod
    def events(self, timeout: float | None) -> list[TrialEvent]:
        """Wait until something happened or ``timeout`` seconds passed and return it in order."""

    def fetch_status_results(
        self, trial_ids: Iterable[int], timeout: float | None = 0.0
    ) -> tuple[dict[int, tuple[Trial, Status]], list[tuple[int, dict[str, Any]]]]:
        """Return status by trial and new reports, for code that polls; reports are answered CONTINUE."""
        reports = []
        for event in self.events(timeout):
            if isinstance(event, ReportEvent):
                self.answer(event, SchedulerDecision.CONTINUE)
                reports.append((event.trial_id, event.metrics))
        wanted = set(trial_ids)
        status = {i: (self._trials[i], self._status[i]) for i in self._trials if i in wanted}
        return status, [(i, metrics) for i, metrics in reports if i in wanted]

    def busy_trial_ids(self) -> list[tuple[int, Status]]:
        """Return the trials that occupy a worker, with their status."""
        return [(i, self._status[i]) for i in sorted(self._busy)]

    def trial(self, trial_id: int) -> Trial:
        """Return a trial by its id."""
        return self._known(trial_id)

    # ---- folders -------------------------------------------------------------------------------------

    def trial_path(self, trial_id: int) -> Path:
        """Return the folder of a trial."""
        if self.path is None:
            raise ValueError(f"{type(self).__name__} has no path yet; call set_path(results_root) first")
        return self.path / "trials" / str(operator.index(trial_id))

    def checkpoint_trial_path(self, trial_id: int) -> Path:
        """Return the folder of a trial's checkpoints (it may not exist yet)."""
        return self.trial_path(trial_id) / ST_CHECKPOINTS_DIRNAME

    def copy_checkpoint(self, src_trial_id: int, tgt_trial_id: int) -> None:
        """Copy the checkpoints of one trial to another, in place of its own (nothing happens if there are none)."""
        found = copy_checkpoints(self.checkpoint_trial_path(src_trial_id), self.checkpoint_trial_path(tgt_trial_id))
        if not found and self.delete_checkpoints:
            logger.warning(
                "trial %d starts from scratch: trial %d has no checkpoint (delete_checkpoints=True)",
                tgt_trial_id,
                src_trial_id,
            )

    def delete_checkpoint(self, trial_id: int) -> None:
        """Delete the checkpoints of a trial, those set aside too; nothing happens if there are none."""
        folder = self.checkpoint_trial_path(trial_id)
        for path in (folder, copying_folder(folder), *folder.parent.glob(f"{folder.name}.aside-*")):
            shutil.rmtree(path, ignore_errors=True)

    def set_checkpoint_aside(self, trial_id: int) -> None:
        """Rename the checkpoint folder so that the next run starts from scratch."""
        folder = self.checkpoint_trial_path(trial_id)
        if folder.exists():
            n = 0
            while (aside := folder.with_name(f"{folder.name}.aside-{n}")).exists():
                n += 1
            folder.rename(aside)

    def stdout(self, trial_id: int) -> list[str]:
        """Return the lines that a trial wrote to stdout."""
        return _read_lines(self.trial_path(trial_id) / ST_STDOUT_FILENAME)

    def stderr(self, trial_id: int) -> list[str]:
        """Return the lines that a trial wrote to stderr."""
        return _read_lines(self.trial_path(trial_id) / ST_STDERR_FILENAME)

    def entrypoint_path(self) -> Path | None:
        """Return the training script, ``None`` if the backend has none."""
        return None

    def entrypoint_name(self) -> str | None:
        """Return what an experiment is called after if nobody named it: the script, without its ending."""
        path = self.entrypoint_path()
        return None if path is None else path.stem

    # ---- for subclasses ------------------------------------------------------------------------------

    @abstractmethod
    def _schedule(self, trial: Trial, run: int) -> None:
        """Start run ``run`` of a trial."""

    @abstractmethod
    def _end(self, trial_id: int, status: Status, *, at_once: bool, grace: float) -> None:
        """End a running trial.

        Args:
            trial_id: The trial.
            status: ``Status.stopped`` or ``Status.paused``, the status of the :class:`EndEvent` to come.
            at_once: Whether to end it from outside at once; otherwise it ends itself within ``grace``.
            grace: Seconds until force is used.
        """

    def _launch(self, trial: Trial, run: int) -> None:
        self._runs[trial.trial_id] = run
        self._status[trial.trial_id] = Status.in_progress
        self._busy.add(trial.trial_id)
        trial.end_reason = None
        if not self.recalling:
            self._schedule(trial, run)

    def _order_end(self, trial_id: int, status: Status) -> None:
        self._known(trial_id)
        if trial_id in self._busy:
            self._status[trial_id] = Status.stopping
            if not self.recalling:
                self._end(trial_id, status, at_once=False, grace=self._stop_grace())
        elif self._status[trial_id] != Status.failed:
            self._status[trial_id] = status

    def _stop_grace(self) -> float:
        return 30.0

    # ---- what the tuner tells ------------------------------------------------------------------------

    def on_judged_end(self, trial_id: int, status: Status) -> None:
        """The tuner has judged with which status a run ended, which may differ from its :class:`EndEvent`."""
        self._status[trial_id] = status

    def state_dict(self) -> dict[str, Any]:
        """Return runs and status of all trials, as plain containers."""
        return {
            "trials": [
                {"trial_id": i, "run": self._runs[i], "status": self._status[i].value, "busy": i in self._busy}
                for i in self._trials
            ]
        }

    def load_state_dict(self, state: dict[str, Any], trials: Mapping[int, Trial]) -> None:
        """Restore what :meth:`state_dict` returned; nothing is started or ended.

        Args:
            state: The state.
            trials: The trials by id.
        """
        for saved in state["trials"]:
            trial_id = saved["trial_id"]
            self._trials[trial_id] = trials[trial_id]
            self._runs[trial_id], self._status[trial_id] = saved["run"], Status(saved["status"])
            if saved["busy"]:
                self._busy.add(trial_id)

    def recall_end(self, event: EndEvent) -> None:
        """Book the recorded end of a run; for a resumed tuner."""
        self._mark_ended(event)

    def _mark_ended(self, event: EndEvent) -> None:
        """Book the end of a run; subclasses call it for every :class:`EndEvent` that they return."""
        self._busy.discard(event.trial_id)
        self._status[event.trial_id] = event.status
        self._trials[event.trial_id].end_reason = event.reason

    def _known(self, trial_id: int) -> Trial:
        try:
            return self._trials[trial_id]
        except KeyError:
            raise ValueError(f"trial_id={trial_id!r}: no such trial; there are {len(self._trials)}") from None


def _once(step: Callable[[], Any]) -> Any:
    return step()


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
