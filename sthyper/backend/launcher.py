"""Starts trials as supervised processes, warm where possible: the tuner's side.

Three kinds of processes stand below the tuner: a guardian (``_guardian.py``), the fork server (``_server.py``) and the
trials. The tuner talks to the server over a socket; a second socket to the guardian carries nothing and tells by its
closing that the other side is gone. The tuner never forks a trial itself.

On Linux no process of a trial outlives tuner, guardian or server, whichever of them dies, except when guardian and
server are killed together with the tuner. On macOS trials are ended by process group, best effort.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal, TypeAlias

from sthyper.backend import _processes
from sthyper.backend._lines import LineSocket

__all__ = [
    "Exited",
    "Gone",
    "Launcher",
    "LauncherEvent",
    "LauncherWarning",
    "Lost",
    "Ready",
    "SpawnRequest",
    "Started",
]

SURVIVOR_GRACE = 6.0
"""Seconds that the survivor of guardian and server has to clean up before the tuner does it."""
KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL, unless ``end`` says otherwise."""
SWEEP_LIMIT = 10.0
_STEP = 0.05


@dataclass(frozen=True)
class SpawnRequest:
    """The order to start a trial.

    Args:
        key: Name of the run, unique among those of a launcher, e.g. ``"3-0"``.
        argv: For ``mode="fork"`` the path of a Python script and its arguments, for ``"exec"`` a command line.
        mode: ``"fork"``: a fork of the warm server runs the script as ``__main__``; ``"exec"``: the command is run.
        env: Changes to the tuner's environment, ``None`` removes a variable.
        cwd: Working directory.
        stdout: File that standard output is appended to; its folder exists.
        stderr: File that standard error is appended to.
        threads: Thread budget for OpenMP, BLAS and torch; ``None`` leaves the user's setting.
        seed: ``random``, NumPy and torch (where loaded) are seeded with it before the first user line of a forked
            script; ``None`` draws a fresh one.
    """

    key: str
    argv: tuple[str, ...]
    mode: Literal["fork", "exec"]
    env: Mapping[str, str | None]
    cwd: str
    stdout: str
    stderr: str
    threads: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Ready:
    """The libraries are loaded; ``seconds`` is how long that took from the start of the server."""

    seconds: float


@dataclass(frozen=True)
class LauncherWarning:
    """Something that the user should know."""

    message: str


@dataclass(frozen=True)
class Started:
    """The trial's leader exists; ``start_time`` is in seconds since the start of the machine, 0 if not known."""

    key: str
    pid: int
    start_time: float


@dataclass(frozen=True)
class Exited:
    """The trial's leader has ended; other processes of the trial may still live.

    Args:
        key: Name of the run.
        code: Exit code; negative ones are signals.
        oom_kills: Which file counted how many processes that the kernel killed for want of memory, when it ended.
    """

    key: str
    code: int
    oom_kills: Sequence[Any] | None = None


@dataclass(frozen=True)
class Gone:
    """No process of the trial is left (comes after ``Exited``); ``forced`` if any of them had to be signalled."""

    key: str
    forced: bool


@dataclass(frozen=True)
class Lost:
    """Guardian or fork server (``who``) died; everything of theirs is gone, the launcher can only be closed."""

    who: str


LauncherEvent: TypeAlias = Ready | LauncherWarning | Started | Exited | Gone | Lost

_EVENTS: dict[str, Any] = {
    "ready": Ready,
    "warning": LauncherWarning,
    "started": Started,
    "exited": Exited,
    "gone": Gone,
}


class Launcher:
    """Starts and ends trials through guardian and fork server; used from one thread.

    Args:
        preload: Modules that the server loads before the first fork; only installed packages are (no file of the user
            is executed in the server), others are passed over with a warning. Empty for ``mode="exec"``.
        tag: Name and value of an environment variable that all processes of the experiment carry and no other
            process on the machine does.
        environ: Environment that trials start from, default that of this process when :meth:`start` is called.
        folder: Folder, with files only, that is deleted if this process dies before it could do so.

    Raises:
        RuntimeError: On Windows, or if the interpreter does not know its own path.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str],
        tag: tuple[str, str],
        environ: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        if sys.platform == "win32":
            raise RuntimeError(
                "trials in processes of their own need Linux or macOS, this is Windows; use WSL, or launch='inline'"
            )
        if not sys.executable:
            raise RuntimeError("trials cannot be started: sys.executable is empty, the Python interpreter is unknown")
        self._modules = list(preload)
        self._tag = tag
        self._environ = environ
        self._folder = [] if folder is None else [folder]
        self._selector: selectors.BaseSelector | None = None
        self._events: list[LauncherEvent] = []
        self._control: LineSocket | None = None
        self._life: socket.socket | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._loss: _Loss | None = None
        self._over = False

    # ---- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start guardian and server; returns at once, they come up in the background.

        Raises:
            RuntimeError: If it was started before.
            OSError: If the guardian cannot be started.
        """
        if self._guardian is not None or self._over:
            raise RuntimeError("a Launcher is started once; make a new one")
        environ = dict(os.environ if self._environ is None else self._environ)
        environ |= {self._tag[0]: self._tag[1], _processes.MARK_NAME: "0" * _processes.MARK_WIDTH}
        control, control_there = socket.socketpair()
        life, life_there = socket.socketpair()
        # What the server prints is shown only if it dies.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the server lives
        with control_there, life_there:
            fds = (life_there.fileno(), control_there.fileno())
            folder = os.path.dirname(os.path.abspath(__file__))
            guardian, server = (os.path.join(folder, name) for name in ("_guardian.py", "_server.py"))
            try:
                self._guardian = subprocess.Popen(
                    [sys.executable, "-I", "-S", guardian, *map(str, fds), str(os.getpid()), server, *self._folder],
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=fds,
                    start_new_session=True,
                )
            except BaseException:
                control.close()
                life.close()
                self._log.close()
                raise
        life.setblocking(False)
        self._life = life
        self._control = LineSocket(control)
        # A selector within the caller's one: a side that is gone can be taken out of it.
        self._selector = selectors.DefaultSelector()
        self._selector.register(life, selectors.EVENT_READ)
        self._selector.register(control, selectors.EVENT_READ)
        self._send({"do": "hello", "tag": list(self._tag), "modules": self._installed(self._modules)})

    def filenos(self) -> list[int]:
        """Return the descriptors to watch: when one is readable :meth:`read` has something to do."""
        return [] if self._selector is None else [self._selector.fileno()]  # type: ignore[attr-defined]

    def next_deadline(self) -> float | None:
        """Return the ``time.monotonic()`` at which :meth:`read` wants to be called even if nothing is readable."""
        if self._events:
            return 0.0
        return None if self._loss is None or self._over else self._loss.next_step

    def read(self) -> list[LauncherEvent]:
        """Return what happened since the last call; never blocks."""
        if self._control is not None and self._selector is not None and not self._over:
            for key, _ in self._selector.select(0):
                if key.fileobj is self._life:
                    self._read_life()
            self._control.flush()
            self._take()
            self._watch_control()
            if self._loss is not None and self._loss.step():
                self._over = True
                self._events += self._loss.events(self._log)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End all trials (SIGTERM, 2 s, SIGKILL) and wait until guardian and server are gone; at most 20 s."""
        guardian = self._guardian
        if guardian is not None and self._hang_up():
            try:
                guardian.wait(SURVIVOR_GRACE + KILL_AFTER)
                clean = guardian.returncode in (0, _processes.EXIT_SERVER_DIED)
            except subprocess.TimeoutExpired:
                clean = False
                guardian.kill()
                guardian.wait()
            if not clean:
                end = time.monotonic() + SWEEP_LIMIT
                while time.monotonic() < end and (left := _processes.tagged(*self._tag)):
                    for info in left:
                        _processes.send_signal(info, signal.SIGKILL)
                    time.sleep(_STEP)
        self._over = True

    def abandon(self) -> None:
        """Hang up without waiting; the guardian ends all trials as in :meth:`close`."""
        guardian = self._guardian
        if guardian is not None and self._hang_up():
            threading.Thread(target=guardian.wait, name="sthyper-guardian", daemon=True).start()
        self._over = True

    def _hang_up(self) -> bool:
        if self._selector is None or self._control is None or self._life is None or self._log is None:
            return False
        self._selector.close()
        self._control.close()
        self._life.close()
        self._log.close()
        self._selector = None
        return True

    # ---- orders ----------------------------------------------------------------------------------------

    def spawn(self, request: SpawnRequest) -> None:
        """Start a trial, as soon as the server is ready; ``Started`` follows."""
        self._send({"do": "spawn", **asdict(request), "env": dict(request.env)})

    def end(self, key: str, *, grace: float, kill_after: float = KILL_AFTER) -> None:
        """End all processes of a trial; ``Exited`` and ``Gone`` follow. A later call can only shorten the time.

        Args:
            key: The trial; nothing happens if it is gone already.
            grace: Seconds until SIGTERM, 0 for at once.
            kill_after: Seconds from SIGTERM to SIGKILL.
        """
        self._send({"do": "end", "key": key, "grace": grace, "kill_after": kill_after})

    def preload(self, modules: Sequence[str]) -> None:
        """Load more modules before the next fork; the rules of the constructor's ``preload`` hold."""
        if modules := self._installed(modules):
            self._send({"do": "preload", "modules": modules})

    def _send(self, message: dict[str, Any]) -> None:
        # Once server or guardian is lost nothing can be ordered any more; the caller hears of it by Lost.
        if self._control is not None and self._loss is None and not self._over:
            self._control.send(message)
            self._watch_control()

    def _installed(self, modules: Sequence[str]) -> list[str]:
        from sthyper.backend._preload import is_installed

        wanted = [name for name in modules if is_installed(name)]
        for name in dict.fromkeys(modules):
            if name not in wanted:
                self._events.append(LauncherWarning(f"{name} is not preloaded: it is not an installed package"))
        return wanted

    # ---- what the other side says ----------------------------------------------------------------------

    def _take(self) -> None:
        assert self._control is not None
        if not self._control.open:
            return
        for message in self._control.receive():
            self._events.append(_EVENTS[message.pop("event")](**message))
        if not self._control.open:
            self._lose("fork server")

    def _watch_control(self) -> None:
        assert self._control is not None
        assert self._selector is not None
        if self._control.open:
            write = selectors.EVENT_WRITE if self._control.pending else 0
            self._selector.modify(self._control, selectors.EVENT_READ | write)

    def _read_life(self) -> None:
        assert self._life is not None
        assert self._selector is not None
        self._selector.unregister(self._life)  # nothing is ever said there, so it is closed
        self._lose("guardian")

    def _lose(self, who: str) -> None:
        assert self._guardian is not None
        assert self._control is not None
        assert self._selector is not None
        if who == "fork server":
            self._selector.unregister(self._control)
        if self._loss is None:
            self._loss = _Loss(who, self._guardian, self._control, self._tag)


class _Loss:
    """What is left to do when guardian or server has died: step by step, so that nobody has to wait."""

    def __init__(self, who: str, guardian: subprocess.Popen[bytes], control: LineSocket, tag: tuple[str, str]) -> None:
        self._who = who
        self._guardian = guardian
        self._control = control
        self._tag = tag
        now = time.monotonic()
        self._wait_until = now + SURVIVOR_GRACE
        self._kill_at: float | None = None
        self._left: list[_processes.ProcessInfo] = []
        self.next_step = now

    def step(self) -> bool:
        """Do what is due; return True when nothing of the lost is left (or can be ended)."""
        now = time.monotonic()
        if now < self.next_step:
            return False
        self.next_step = now + _STEP
        # The survivor knows its tree, which we do not; its own end says that it is done.
        if (self._guardian.poll() is None or self._control.open) and now < self._wait_until:
            return False
        self._left = _processes.tagged(*self._tag)
        late = now > self._wait_until + SWEEP_LIMIT
        if not self._left or late:
            return self._guardian.poll() is not None or late
        if self._kill_at is None:
            self._kill_at = now + KILL_AFTER
            for info in self._left:
                _processes.send_signal(info, signal.SIGTERM)
        elif now >= self._kill_at:
            for info in self._left:
                _processes.send_signal(info, signal.SIGKILL)
        return False

    def events(self, log: IO[bytes] | None) -> list[LauncherEvent]:
        """Return the last events, with what the lost process printed."""
        events: list[LauncherEvent] = []
        if self._guardian.returncode == _processes.EXIT_SERVER_DIED:
            self._who = "fork server"
        if self._left:
            pids = ", ".join(str(info.pid) for info in self._left)
            events.append(LauncherWarning(f"SIGKILL does not end process {pids}; it is left alone"))
        if log is not None and (size := log.seek(0, os.SEEK_END)):
            log.seek(max(0, size - 2000))
            text = log.read().decode(errors="replace").strip()
            events.append(LauncherWarning(f"the {self._who} died; its last output was:\n{text}"))
        return [*events, Lost(self._who)]
