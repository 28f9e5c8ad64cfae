"""The guardian: a small process between tuner and fork server that outlives both for long enough to clean up.

Run by path as ``python -I -S _guardian.py LIFE_FD CONTROL_FD TUNER_PID SERVER_SCRIPT [FOLDER]``. It starts the fork
server, hands it the control socket, and then only watches. When the tuner's end of the life socket closes, the tuner
dies, the server dies or SIGTERM comes, it ends everything below it and exits. As a subreaper it inherits what the
server leaves behind, so nobody can escape by leaving the session or by forking twice. If the tuner has died, it deletes
``FOLDER``, in which the tuner's socket is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sthyper.backend import _processes
else:
    # By path, so that this process does not load the package.
    _spec = importlib.util.spec_from_file_location(
        "_sthyper_processes", os.path.join(os.path.dirname(os.path.abspath(__file__)), "_processes.py")
    )
    _processes = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_processes)

SERVER_GRACE = 3.0
"""Seconds that the server has to end its trials (SIGTERM, 2 s, SIGKILL) before the guardian kills everything."""
TRIAL_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for what a dead server left behind."""


class _Guardian:
    def __init__(self, life: int, tuner: int) -> None:
        self._life = life
        self._tuner = tuner
        self._server = 0
        self._asked_to_end = False
        self._groups: set[int] = set()
        self._wake_read, wake_write = os.pipe()
        for fd in (self._wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_end)
        for number in (signal.SIGINT, signal.SIGHUP):
            # What the tuner was started to ignore, in the background or by nohup, its trials ignore, too.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_end(self, *_: object) -> None:
        self._asked_to_end = True

    def start_server(self, script: str, control: int) -> None:
        os.set_inheritable(control, True)
        self._server = os.posix_spawn(
            sys.executable,
            [sys.executable, script, str(control), str(os.getpid())],
            os.environ,
            setsigdef=(signal.SIGPIPE,),
        )
        os.close(control)

    def watch(self) -> bool:
        """Block until it is time to clean up; return whether the server is still there."""
        poll = select.poll()
        poll.register(self._life, select.POLLIN | select.POLLHUP)
        poll.register(self._wake_read, select.POLLIN)
        timeout: float | None = None
        try:
            # The socket alone does not tell: a process that the tuner forked may still hold the other end.
            poll.register(os.pidfd_open(self._tuner), select.POLLIN)
        except (AttributeError, OSError):
            timeout = 1000.0
        if not _processes.LINUX:
            timeout = 1000.0
        while os.getppid() == self._tuner and not self._asked_to_end:
            fds = {fd for fd, _ in poll.poll(timeout)}
            self._drain()
            if self._server in _processes.reap_children():
                return False
            if fds - {self._wake_read}:
                break
            if not _processes.LINUX:
                # Without subreapers the tree falls apart when a parent dies; the groups seen in time remain.
                below = _processes.descendants(_processes.snapshot(), os.getpid())
                self._groups |= {info.group for info in below} - {os.getpgrp()}
        return True

    def end_server(self) -> None:
        """Ask the server to end its trials and itself; it has ``SERVER_GRACE`` seconds."""
        deadline = time.monotonic() + SERVER_GRACE
        os.kill(self._server, signal.SIGTERM)
        while (left := deadline - time.monotonic()) > 0:
            self._drain()
            if self._server in _processes.reap_children():
                return
            select.select([self._wake_read], [], [], left)

    def sweep(self, grace: float) -> None:
        _processes.sweep(grace, self._groups)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass


def _delete(folder: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


def main() -> int:
    life, control, tuner = (int(text) for text in sys.argv[1:4])
    _processes.subreaper()
    os.set_inheritable(life, False)
    guardian = _Guardian(life, tuner)
    guardian.start_server(sys.argv[4], control)
    serves = guardian.watch()
    if serves:
        guardian.end_server()
    guardian.sweep(0.0 if serves else TRIAL_GRACE)
    if os.getppid() != tuner:
        for folder in sys.argv[5:]:
            _delete(folder)
    return 0 if serves else _processes.EXIT_SERVER_DIED


if __name__ == "__main__":
    # No interpreter teardown: it must not be able to fail any more.
    os._exit(main())
