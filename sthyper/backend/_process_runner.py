"""Runs trials in supervised processes of their own and talks to them over the channel."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sthyper.backend import launcher as lw
from sthyper.backend._memory import OomKills
from sthyper.backend._printed_reports import PrintedReports
from sthyper.backend._rendezvous import without_stale
from sthyper.backend._runs import RunSpec, RunState, Timeouts, classify_end
from sthyper.backend.base import EndEvent, MessageEvent, ReportEvent, TrialEvent
from sthyper.backend.channel import ChannelServer, ClientBye, ClientGone, ClientHello, ClientLoaded, ClientReport
from sthyper.constants import (
    ENV_CHANNEL,
    ENV_COST_PER_HOUR,
    ENV_TOKEN,
    ENV_TRIALS_DIR,
    RESERVED_PREFIX,
    ST_WORKER_COST,
    ST_WORKER_ITER,
    ST_WORKER_TIME,
    ST_WORKER_TIMESTAMP,
)
from sthyper.errors import ExperimentError
from sthyper.trial import SchedulerDecision, Status

__all__ = ["ProcessRunner"]

MAX_LOSSES = 3
LOSS_WINDOW = 600.0
"""The experiment ends when the supervisor is lost for the third time within ten minutes."""
RANK_GRACE = 5.0
"""Seconds for a trial to end after one of its ranks has vanished."""
RECONNECT_SECONDS = 5.0
"""Seconds that a rank on this machine may take to come back over TCP before it counts as dead."""
LOOK_INTERVAL = 0.05
"""Seconds between two looks at the output of runs that have not connected."""


class ProcessRunner:
    """Starts trials through the launcher.

    Args:
        mode: ``"fork"`` (warm) or ``"exec"``.
        preload: Packages that the fork server loads.
        adapt: Whether packages that trials had loaded are preloaded for later ones.
        timeouts: When a silent run counts as hung.
        host: ``None`` for a unix socket, otherwise the TCP address to listen on.
        port: TCP port, 0 for a free one.
        trials: Folder of the trials. All their processes carry it in the environment that the kernel shows, forked ones
            too; should nobody be left to end them, a resumed tuner knows them by it.
    """

    def __init__(
        self,
        mode: Literal["fork", "exec"],
        preload: Sequence[str],
        adapt: bool,
        timeouts: Timeouts,
        host: str | None = None,
        port: int = 0,
        trials: Path | None = None,
    ) -> None:
        self._trials = trials
        self._mode: Literal["fork", "exec"] = mode
        self._preload = list(preload)
        self._adapt = adapt
        self._timeouts = timeouts
        self._host = host
        self._port = port
        self._token = os.urandom(16).hex()
        self._runs: dict[str, RunState] = {}
        self._current: dict[int, str] = {}
        self._queue: deque[TrialEvent] = deque()
        self._losses: deque[float] = deque()
        self._oom_kills = OomKills()
        self._next_look = 0.0
        self._warned_of_prints = False
        self._open = False

    # ---- life ----------------------------------------------------------------------------------------

    def open(self) -> None:
        with contextlib.ExitStack() as undo:
            self._selector = selectors.DefaultSelector()
            undo.callback(self._selector.close)
            self._wake_read, self._wake_write = socket.socketpair()
            for end in (self._wake_read, self._wake_write):
                undo.callback(end.close)
                end.setblocking(False)
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
            self._channel = ChannelServer(self._token, self._selector, host=self._host, port=self._port)
            undo.callback(self._channel.close)
            self._start_launcher()
            undo.pop_all()
        self._open = True

    def close(self, wait: bool) -> None:
        if not self._open:
            return
        self._open = False
        self._channel.close()
        self._unwatch_launcher()
        self._launcher.close() if wait else self._launcher.abandon()
        self._selector.unregister(self._wake_read)
        self._wake_read.close()
        self._wake_write.close()
        self._selector.close()

    def run_loop(self, loop: Callable[[], None]) -> None:
        loop()

    def on_signal(self, signum: int) -> None:
        pass

    def wake(self) -> None:
        if self._open:
            with contextlib.suppress(OSError):  # a full pipe wakes as well
                self._wake_write.send(b"\0")

    def _start_launcher(self) -> None:
        # Lightning looks for its rank when it is imported, which happens in the server already.
        environ = without_stale(os.environ)
        if self._trials is not None:
            environ[ENV_TRIALS_DIR] = str(self._trials)
        self._launcher = lw.Launcher(
            preload=self._preload, tag=(ENV_TOKEN, self._token), environ=environ, folder=self._channel.folder
        )
        self._launcher.start()
        self._launcher_started: float | None = time.monotonic()
        self._watched = self._launcher.filenos()
        for fd in self._watched:
            self._selector.register(fd, selectors.EVENT_READ, self._read_launcher)

    def _unwatch_launcher(self) -> None:
        for fd in self._watched:
            self._selector.unregister(fd)
        self._watched = []

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    # ---- orders --------------------------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        env = {**spec.env, ENV_CHANNEL: self._channel.address, ENV_TOKEN: self._token}
        argv = spec.argv
        mode = self._mode
        state = RunState(spec, _size(spec.stderr))
        if mode == "exec":
            if not spec.is_program:
                argv = (sys.executable, *argv)
            state.printed = PrintedReports(spec.stdout, _size(spec.stdout))
            # Python, of whatever environment, would keep printed reports until its buffer is full.
            env = {"PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"), **env}
        self._runs[spec.key] = state
        self._current[spec.trial_id] = spec.key
        self._launcher.spawn(
            lw.SpawnRequest(
                key=spec.key,
                argv=argv,
                mode=mode,
                env=env,
                cwd=spec.cwd,
                stdout=str(spec.stdout),
                stderr=str(spec.stderr),
                threads=spec.threads,
                seed=spec.seed,
            )
        )

    def end(self, trial_id: int, status: Status, at_once: bool, grace: float) -> None:
        state = self._runs[self._current[trial_id]]
        if state.ordered is None:
            state.ordered = status
        state.deadline = None
        if state.gone:
            return
        # A run that does not listen is ended from outside, unless it knows itself where to end.
        deaf = state.printed is not None and not (status == Status.paused and state.spec.ends_at_milestone)
        if at_once or deaf:
            self._launcher.end(state.spec.key, grace=0.0, kill_after=grace)
        else:
            self._launcher.end(state.spec.key, grace=grace)

    def answer(self, event: ReportEvent, decision: str) -> None:
        self._channel.answer(event.trial_id, event.run, event.client, event.seq, decision)
        state = self._runs.get(f"{event.trial_id}-{event.run}")
        if state is None:
            return
        state.unanswered -= 1
        limit = self._timeouts.report
        if state.ordered is None and state.code is None and limit is not None:
            state.deadline = time.monotonic() + limit

    # ---- what happened -------------------------------------------------------------------------------

    def events(self, timeout: float | None) -> list[TrialEvent]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            now = time.monotonic()
            self._check_deadlines(now)
            self._look_at_prints(now)
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
            due = self._launcher.next_deadline()
            if due is not None and time.monotonic() >= due:
                self._read_launcher()
            if not self._queue and (woken or (end is not None and time.monotonic() >= end)):
                return []

    def _wait(self, now: float, end: float | None) -> float | None:
        times = [s.deadline for s in self._runs.values() if s.deadline is not None]
        times += [due for s in self._runs.values() for _, due in s.lost_ranks.values()]
        due = self._launcher.next_deadline()
        if due is not None:
            times.append(due)
        if (due := self._channel.next_deadline()) is not None:
            times.append(due)
        if end is not None:
            times.append(end)
        if any(s.printed is not None and not s.gone for s in self._runs.values()):
            times.append(self._next_look)
        if self._launcher_started is not None:
            times.append(self._launcher_started + 1.0)
        return max(0.0, min(times) - now) if times else None

    def _check_deadlines(self, now: float) -> None:
        if self._launcher_started is not None and now >= self._launcher_started + 1.0:
            self._launcher_started = None
            self._queue.append(MessageEvent("preloading", data={"modules": list(self._preload)}))
        for state in self._runs.values():
            for client, (rank, due) in list(state.lost_ranks.items()):
                if now >= due:
                    del state.lost_ranks[client]
                    self._rank_died(state, rank)
            if state.deadline is not None and now >= state.deadline:
                state.deadline = None
                state.reason = "hung"
                self._launcher.end(state.spec.key, grace=0.0)

    def _take_messages(self) -> None:
        for message in self._channel.take():
            if isinstance(message, ClientLoaded):
                if self._adapt and self._mode == "fork":
                    self._launcher.preload(message.packages)
                continue
            state = self._runs.get(f"{message.trial_id}-{message.run}")
            if isinstance(message, ClientReport):
                event = ReportEvent(message.trial_id, message.run, message.metrics, message.client, message.seq)
                if state is None:
                    # A process of an earlier run, or none of ours.
                    self._channel.answer(
                        message.trial_id, message.run, message.client, message.seq, SchedulerDecision.STOP
                    )
                else:
                    self._hand_on(state, event)
            elif state is None:
                continue
            elif isinstance(message, ClientBye):
                if not message.ok:
                    state.ok = False
                    # Once a rank has failed, what ends the others is no news; the process that waits for all knows.
                    counts = message.rank is None or state.failed_rank is None
                    if message.reason is not None and state.ordered is None and counts:
                        state.reason = message.reason
            elif isinstance(message, ClientHello):
                state.printed = None
                state.lost_ranks.pop(message.client, None)
            elif isinstance(message, ClientGone) and message.rank is not None:
                if message.failed and message.world_size > 1:
                    self._rank_failed(state, message.rank)
                elif message.said_bye:
                    continue
                elif self._host is None:
                    self._rank_died(state, message.rank)
                else:  # a dropped connection: the client comes back
                    state.lost_ranks[message.client] = (message.rank, time.monotonic() + RECONNECT_SECONDS)

    def _rank_died(self, state: RunState, rank: int) -> None:
        first = state.reason is None and state.failed_rank is None
        if state.ordered is None and first and state.code is None:
            state.reason = f"killed (rank {rank} died)"
        self._launcher.end(state.spec.key, grace=RANK_GRACE)

    def _rank_failed(self, state: RunState, rank: int) -> None:
        """End what is left of a run: the other ranks may wait for this one for ever."""
        if state.code is None and state.failed_rank is None:
            state.failed_rank = rank
        self._launcher.end(state.spec.key, grace=RANK_GRACE)

    def _read_launcher(self) -> None:
        for event in self._launcher.read():
            match event:
                case lw.Ready(seconds=seconds):
                    if self._launcher_started is None:
                        self._queue.append(MessageEvent("ready", data={"seconds": seconds}))
                    self._launcher_started = None
                case lw.LauncherWarning(message=message):
                    self._queue.append(MessageEvent("warning", data={"message": message}))
                case lw.Started(key=key, pid=pid, start_time=start_time):
                    if (state := self._runs.get(key)) is not None:
                        state.started = time.monotonic()
                        # From here on, not from the order: the first trial waits for the libraries. Its first report
                        # may be quicker than this message.
                        if self._timeouts.first_report is not None and state.ordered is None and not state.heard:
                            state.deadline = time.monotonic() + self._timeouts.first_report
                        self._queue.append(
                            MessageEvent(
                                "process",
                                state.spec.trial_id,
                                state.spec.run,
                                {"pid": pid, "start_time": start_time},
                            )
                        )
                case lw.Exited(key=key, code=code, oom_kills=oom_kills):
                    if (state := self._runs.get(key)) is not None:
                        state.code = code
                        state.oom_kills = None if oom_kills is None else (oom_kills[0], oom_kills[1])
                        state.deadline = None
                case lw.Gone(key=key):
                    self._gone(key)
                case lw.Lost(who=who):
                    self._lost(who)
                    return

    def _gone(self, key: str) -> None:
        state = self._runs.get(key)
        if state is None:
            return
        # A report that was sent just before the end still counts; it comes first.
        self._channel.drain(state.spec.trial_id)
        self._take_messages()
        self._take_prints(state, ended=True)
        state.gone = True

    def _tell_ends(self) -> None:
        """Tell of runs that are gone, once their last reports are answered: a PAUSE among the answers is the end's."""
        for key, state in list(self._runs.items()):
            if state.gone and state.unanswered <= 0:
                del self._runs[key]
                if self._current.get(state.spec.trial_id) == key:
                    del self._current[state.spec.trial_id]
                status, reason, tail = classify_end(state, self._oom_kills)
                self._queue.append(EndEvent(state.spec.trial_id, state.spec.run, status, reason, state.code, tail))
                self._channel.forget(state.spec.trial_id)

    def _hand_on(self, state: RunState, event: ReportEvent) -> None:
        state.deadline = None
        state.unanswered += 1
        state.heard = True
        self._queue.append(event)

    def _look_at_prints(self, now: float) -> None:
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            for state in self._runs.values():
                if not state.gone:
                    self._take_prints(state)

    def _take_prints(self, state: RunState, ended: bool = False) -> None:
        if state.printed is None:
            return
        spec, first = state.spec, state.printed.count
        for seq, metrics in enumerate(state.printed.read(ended), start=first):
            self._hand_on(state, ReportEvent(spec.trial_id, spec.run, self._timed(state, seq, metrics), "stdout", seq))
        if state.printed.faults and not self._warned_of_prints:
            self._warned_of_prints = True
            message = f"trial {spec.trial_id} printed a report that is passed over, {state.printed.faults[0]}"
            self._queue.append(MessageEvent("warning", data={"message": message}))

    def _timed(self, state: RunState, seq: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return a printed report with the fields that a Reporter would have added."""
        seconds = time.monotonic() - state.started
        result = {name: value for name, value in metrics.items() if not name.startswith(RESERVED_PREFIX)}
        result |= {ST_WORKER_TIMESTAMP: time.time(), ST_WORKER_ITER: seq, ST_WORKER_TIME: seconds}
        if price := state.spec.env.get(ENV_COST_PER_HOUR):
            result[ST_WORKER_COST] = seconds * float(price) / 3600
        return result

    def _lost(self, who: str) -> None:
        self._unwatch_launcher()
        self._launcher.close()
        now = time.monotonic()
        self._losses.append(now)
        while self._losses and self._losses[0] < now - LOSS_WINDOW:
            self._losses.popleft()
        self._queue.append(MessageEvent("supervisor_lost", data={"who": who, "times": len(self._losses)}))
        for state in self._runs.values():
            state.reason = state.reason or "supervisor_lost"
        for key in list(self._runs):
            self._gone(key)
        if len(self._losses) >= MAX_LOSSES:
            raise ExperimentError(
                f"the {who} died for the {MAX_LOSSES}rd time within {LOSS_WINDOW / 60:.0f} minutes; something on this "
                "machine ends it (out of memory?). All trials were ended, nothing that was reported is lost"
            )
        self._start_launcher()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
