"""RemoteBackend: what backends share whose trials run elsewhere and go on when the tuner is gone."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import selectors
import socket
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sthyper.backend._address import listen_again
from sthyper.backend._environment import trial_environment
from sthyper.backend._memory import OomKills
from sthyper.backend._options import is_any_address, parse_channel
from sthyper.backend._remote_runs import RemoteRun
from sthyper.backend._runs import RunSpec, RunState
from sthyper.backend.base import (
    ExperimentContext,
    MessageEvent,
    ReportEvent,
    RunningTrial,
    TrialBackend,
    TrialEvent,
)
from sthyper.backend.channel import ChannelServer, ClientGone, ClientLoaded, ClientReport
from sthyper.constants import (
    DEFAULT_RECONNECT_GRACE,
    ENV_CHANNEL,
    ENV_RECONNECT_GRACE,
    ENV_TOKEN,
    ST_CONFIG_FILENAME,
    ST_STDERR_FILENAME,
    ST_STDOUT_FILENAME,
)
from sthyper.journal import write_atomically
from sthyper.trial import SchedulerDecision, Status, Trial

__all__ = ["RemoteBackend"]

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
"""Longest wait of :meth:`RemoteBackend.close` for trials to be gone."""
LOOK_SOON = 0.05
"""Seconds until :meth:`RemoteBackend._ended` is called after the last connection of a trial was closed."""


class RemoteBackend(TrialBackend):
    """Base class of backends whose trials run elsewhere, reach the tuner over TCP and outlive it.

    The tuner's address and the trials' token are kept in the experiment's folder (``channel.json``, mode 0600). A tuner
    that was killed and resumed listens there again. Trials connect again, send again what was not answered and go on
    without losing a step. Those that have not come back ``reconnect_grace`` seconds after the resume, or after their
    connection was lost, count as lost: they are ended and run again from their checkpoints. If another program has
    taken the port meanwhile, that happens to all of them.

    The folder of the experiment, with its trials' checkpoints, has to be where trials reach it under the same path.

    A subclass says how a run is started (:meth:`_submit`), how it is ended (:meth:`_terminate`) and which runs have
    ended (:meth:`_ended`).

    Args:
        channel: ``"tcp"`` for a free port of the loopback device, or ``"tcp:HOST:PORT"`` (port 0 for a free one), where
            HOST is the name or address under which trials reach this machine. A resumed tuner listens where the one
            before did, if it can.
        reconnect_grace: Seconds that trial and tuner look for each other after a connection was lost
            (``STHYPER_RECONNECT_GRACE`` in the trial's environment).
        stop_grace: Seconds that a trial has to end itself after STOP or PAUSE before it is ended.
        delete_checkpoints: See :class:`LocalBackend`.
        rewrite_max_resource: See :class:`TrialBackend`.

    Attributes:
        look_interval: Seconds between two calls of :meth:`_ended`.

    Raises:
        TypeError: For an argument of the wrong kind.
        ValueError: For values that are not allowed.
    """

    outlives_tuner = True
    look_interval: float = 1.0

    def __init__(
        self,
        *,
        channel: str = "tcp",
        reconnect_grace: float = DEFAULT_RECONNECT_GRACE,
        stop_grace: float = 30.0,
        delete_checkpoints: bool = False,
        rewrite_max_resource: bool = False,
    ) -> None:
        super().__init__(rewrite_max_resource=rewrite_max_resource)
        host, self._port = parse_channel(channel)
        if host is None:
            raise ValueError(
                f"channel={channel!r} reaches processes of this machine only; trials that run elsewhere need 'tcp' or "
                "'tcp:HOST:PORT'"
            )
        if is_any_address(host):
            raise ValueError(
                f"channel={channel!r} names no machine, and trials get this address to connect to; give the name or "
                "address under which they reach this machine, such as "
                f"'tcp:{socket.gethostname()}:{self._port}'"
            )
        for name, seconds in (("reconnect_grace", reconnect_grace), ("stop_grace", stop_grace)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{name} must be a number of seconds, got {seconds!r}")
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name} must be a finite number of seconds >= 0, got {seconds!r}")
        if not isinstance(delete_checkpoints, bool):
            raise TypeError(f"delete_checkpoints must be True or False, got {delete_checkpoints!r}")
        self._host = host
        self.reconnect_grace = float(reconnect_grace)
        self.stop_grace = float(stop_grace)
        self.delete_checkpoints = delete_checkpoints
        self._token = ""
        self._channel: ChannelServer | None = None
        self._remote_runs: dict[str, RemoteRun] = {}
        self._current: dict[int, RemoteRun] = {}
        self._waiting: list[tuple[RemoteRun, Trial, dict[str, str]]] = []
        self._queue: deque[TrialEvent] = deque()
        self._next_look = 0.0

    # ---- for subclasses ------------------------------------------------------------------------------

    @abstractmethod
    def _submit(self, trial: Trial, run: int, environment: dict[str, str]) -> dict[str, Any]:
        """Have a run started; called by :meth:`events`.

        Args:
            trial: The trial; its folder holds ``config.json``.
            run: Number of the run.
            environment: Variables for all of its processes.

        Returns:
            Where it runs, as JSON: what :meth:`_ended` and :meth:`_terminate` need, also those of a resumed tuner.
        """

    @abstractmethod
    def _ended(self, places: Mapping[int, dict[str, Any]]) -> Mapping[int, int | None]:
        """Return the exit codes of runs that have ended, of all their processes.

        Args:
            places: Trial id -> where its run is.

        Returns:
            Trial id -> exit code, negative for a signal, ``None`` if unknown. Such a run is judged by what it said at
            its end. Without a word it was killed; or, if an earlier tuner had started it, it is run again.
        """

    @abstractmethod
    def _terminate(self, trial_id: int, place: dict[str, Any], force: bool) -> None:
        """Have a run end, and return at once; it may have ended already.

        Args:
            trial_id: The trial.
            place: Where its run is.
            force: Whether it has no say in it (SIGKILL, not SIGTERM).
        """

    # ---- life of the backend -------------------------------------------------------------------------

    def open(self, context: ExperimentContext) -> None:
        super().open(context)
        if self.path is None:
            raise ValueError(f"{type(self).__name__} has no path yet; call set_path(results_root) first")
        self.path.mkdir(parents=True, exist_ok=True)
        self._oom_kills = OomKills()
        with contextlib.ExitStack() as undo:
            self._selector = selectors.DefaultSelector()
            undo.callback(self._selector.close)
            self._wake_read, self._wake_write = socket.socketpair()
            for end in (self._wake_read, self._wake_write):
                undo.callback(end.close)
                end.setblocking(False)
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
            self._channel, self._token = listen_again(
                self.path, self._selector, self._host, self._port, self.reconnect_grace
            )
            undo.pop_all()

    def close(self, wait: bool = True) -> None:
        if self._channel is None:
            return
        left = {run.trial_id: run.place for run in self._remote_runs.values() if run.place is not None}
        for trial_id, place in left.items():
            try:
                self._terminate(trial_id, place, force=True)
            except Exception as error:  # the others are to end all the same
                logger.error("trial %d cannot be ended at %s: %r", trial_id, place, error)
        end = time.monotonic() + (CLOSE_SECONDS if wait else 0.0)
        while left and time.monotonic() < end:
            for trial_id in self._ended(left):
                left.pop(trial_id, None)
            time.sleep(0.05 if left else 0.0)
        self._waiting.clear()
        self._remote_runs.clear()
        self._current.clear()
        self._channel.close()
        self._channel = None
        self._selector.unregister(self._wake_read)
        self._wake_read.close()
        self._wake_write.close()
        self._selector.close()

    def wake(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):  # a full pipe wakes as well
                self._wake_write.send(b"\0")

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    # ---- orders --------------------------------------------------------------------------------------

    def _schedule(self, trial: Trial, run: int) -> None:
        folder = self.trial_path(trial.trial_id).absolute()
        self.keep_trying(lambda: self._prepare(trial, folder))
        objective = self.context.objective
        checkpoints = self.checkpoint_trial_path(trial.trial_id)
        variables = trial_environment(trial, run, folder, checkpoints, objective) | {
            ENV_CHANNEL: self._opened().address,
            ENV_TOKEN: self._token,
            ENV_RECONNECT_GRACE: repr(self.reconnect_grace),
        }
        environment = {name: value for name, value in variables.items() if value is not None}
        # By the next look at what happened the journal has its start: no run is ever unknown to a resumed tuner.
        self._waiting.append((self._know(trial, run), trial, environment))

    def _submit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for known, trial, environment in waiting:
            if known.state.ordered is not None:  # the experiment has ended meanwhile
                known.state.gone = True
                continue
            run = known.state.spec.run
            known.place = self._submit(trial, run, environment)
            self._queue.append(MessageEvent("process", trial.trial_id, run, dict(known.place)))

    def _prepare(self, trial: Trial, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ST_CONFIG_FILENAME, json.dumps(trial.config, indent=1))

    def _know(self, trial: Trial, run: int) -> RemoteRun:
        folder = self.trial_path(trial.trial_id).absolute()
        stdout, stderr = folder / ST_STDOUT_FILENAME, folder / ST_STDERR_FILENAME
        spec = RunSpec(trial.trial_id, run, (), {}, str(folder), stdout, stderr, trial.seed, None)
        known = RemoteRun(RunState(spec, stderr.stat().st_size if stderr.exists() else 0))
        self._remote_runs[spec.key] = self._current[trial.trial_id] = known
        return known

    def reattach(self, running: RunningTrial) -> None:
        known = self._know(self.trial(running.trial_id), running.run)
        known.state.stderr_start = 0  # it may have written its last words already
        known.place, known.reattached = running.place, True
        known.silent_since = time.monotonic()
        for client, decisions in running.answers.items():
            self._opened().remember(running.trial_id, running.run, client, decisions)
        if running.order is not None:
            known.order(running.order, at_once=False, grace=max(self.stop_grace, self.reconnect_grace))

    def _end(self, trial_id: int, status: Status, *, at_once: bool, grace: float) -> None:
        self._current[trial_id].order(status, at_once, grace)

    def _stop_grace(self) -> float:
        return self.stop_grace

    def answer(self, event: ReportEvent, decision: str) -> None:
        self._opened().answer(event.trial_id, event.run, event.client, event.seq, decision)
        known = self._remote_runs.get(f"{event.trial_id}-{event.run}")
        if known is not None:
            known.state.unanswered -= 1

    # ---- what happened -------------------------------------------------------------------------------

    def events(self, timeout: float | None) -> list[TrialEvent]:
        if self.recalling:
            # The runs that trials would tell of are not known yet; what they send is read afterwards.
            time.sleep(0.1 if timeout is None else min(0.1, timeout))
            return []
        end = None if timeout is None else time.monotonic() + timeout
        if not self.held:
            self._submit_waiting()
        while True:
            now = time.monotonic()
            self._look(now)
            self._take_steps(now)
            self._tell_ends()
            if self._queue:
                events = list(self._queue)
                self._queue.clear()
                return events
            woken = False
            for key, _ in self._selector.select(self._wait(now, end)):
                key.data()
                woken = woken or key.fileobj is self._wake_read
            self._take_messages()
            if not self._queue and (woken or (end is not None and time.monotonic() >= end)):
                return []

    def _wait(self, now: float, end: float | None) -> float | None:
        dues = [run.due(self.reconnect_grace) for run in self._remote_runs.values()]
        times = [due for due in (*dues, self._opened().next_deadline(), end) if due is not None]
        if self._remote_runs:
            times.append(self._next_look)
        return max(0.0, min(times) - now) if times else None

    def _look(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + self.look_interval
        runs = [run for run in self._current.values() if not run.state.gone]
        places = {run.trial_id: run.place for run in runs if run.place is not None}
        for trial_id, code in (self._ended(places) if places else {}).items():
            if trial_id in places:
                self._current[trial_id].state.code = code
                self._gone(self._current[trial_id])

    def _take_steps(self, now: float) -> None:
        for run in list(self._remote_runs.values()):
            for step in run.steps(now, self.reconnect_grace):
                if step == "gone":
                    self._gone(run)
                elif run.place is not None:
                    self._terminate(run.trial_id, run.place, force=step == "force")

    def _gone(self, run: RemoteRun) -> None:
        # A report that was sent just before the end still counts; it comes first.
        self._opened().drain(run.trial_id)
        self._take_messages()
        run.state.gone = True

    def _tell_ends(self) -> None:
        """Tell of runs that are gone, once their last reports are answered: a PAUSE among the answers is the end's."""
        for key, run in list(self._remote_runs.items()):
            if run.state.gone and run.state.unanswered <= 0:
                del self._remote_runs[key]
                if self._current.get(run.trial_id) is run:
                    del self._current[run.trial_id]
                event = run.end_event(self._oom_kills)
                self._mark_ended(event)
                self._queue.append(event)
                self._opened().forget(run.trial_id)

    def _take_messages(self) -> None:
        channel = self._opened()
        for message in channel.take():
            if isinstance(message, ClientLoaded):
                continue
            known = self._remote_runs.get(f"{message.trial_id}-{message.run}")
            if isinstance(message, ClientReport):
                event = ReportEvent(message.trial_id, message.run, message.metrics, message.client, message.seq)
                if known is None:
                    # An earlier run that was given up, or none of ours.
                    channel.answer(event.trial_id, event.run, event.client, event.seq, SchedulerDecision.STOP)
                else:
                    known.state.unanswered += 1
                    self._queue.append(event)
            elif known is not None:
                known.hear(message)
                if isinstance(message, ClientGone) and not known.clients:
                    self._next_look = min(self._next_look, time.monotonic() + LOOK_SOON)

    def _opened(self) -> ChannelServer:
        if self._channel is None:
            raise RuntimeError(
                f"{type(self).__name__} is not open; it is used through a Tuner, which opens and closes it"
            )
        return self._channel
