"""Processes of this machine: who descends from whom, who carries a mark, how to end them all.

Imports nothing but small modules of the standard library: the guardian and the fork server load this file by path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "EXIT_SERVER_DIED",
    "LINUX",
    "MARK_NAME",
    "MARK_WIDTH",
    "ProcessInfo",
    "descendants",
    "die_with_parent",
    "environment_of",
    "libc",
    "living",
    "process_info",
    "reap_children",
    "send_signal",
    "snapshot",
    "start_time",
    "subreaper",
    "sweep",
    "tagged",
]

LINUX = sys.platform == "linux"
MARK_NAME = "STHYPER_TREE"
"""Environment variable with the number, ``MARK_WIDTH`` digits, of the trial to which a process belongs."""
MARK_WIDTH = 16
EXIT_SERVER_DIED = 3
"""Exit code of a guardian whose server ended first."""
SWEEP_LIMIT = 30.0
"""Seconds after which a sweep gives up on processes that SIGKILL does not end (they hang in the kernel)."""
EXEC_LIMIT = 0.5
"""Seconds to wait for the environment of a process whose program is being loaded."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

libc = ctypes.CDLL(None, use_errno=True)


class ProcessInfo(NamedTuple):
    """One process as the kernel showed it.

    Args:
        pid: Its id.
        ppid: Id of its parent, or of the subreaper that adopted it.
        group: Its process group.
        state: One letter; ``Z`` and ``X`` are dead.
        start: When it started, clock ticks since boot; with the pid it names a process for good. 0 if unknown.
    """

    pid: int
    ppid: int
    group: int
    state: str
    start: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


# ---- looking -------------------------------------------------------------------------------------------


def snapshot() -> dict[int, ProcessInfo]:
    """Return all processes that can be seen, by pid."""
    if not LINUX:
        return _snapshot_by_ps()
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (info := process_info(int(name))) is not None:
            found[info.pid] = info
    return found


def process_info(pid: int) -> ProcessInfo | None:
    """Return what the kernel says of one process, ``None`` if there is no such process."""
    if not LINUX:
        return _snapshot_by_ps().get(pid)
    fields = _stat_fields(pid)
    if len(fields) < 20:
        return None
    return ProcessInfo(pid, int(fields[1]), int(fields[2]), fields[0].decode(), int(fields[19]))


def environment_of(pid: int) -> list[bytes]:
    """Return the ``NAME=value`` entries that a process was started with; empty if it is gone or not ours."""
    if not LINUX:
        return []
    path = f"/proc/{pid}/environ"
    data = _read(path)
    end = time.monotonic() + EXEC_LIMIT
    while not data and _loads_program(pid) and time.monotonic() < end:
        time.sleep(0.0005)
    # The program may have come between the two looks.
    data = data or _read(path)
    return [entry for entry in data.split(b"\0") if entry]


def _loads_program(pid: int) -> bool:
    """Return whether a process is amid ``exec``: it has memory, but neither code nor environment in it yet.

    The one who started it takes it for started then: its pipe was closed already.
    """
    fields = _stat_fields(pid)
    return len(fields) > 23 and int(fields[20]) > 0 and int(fields[23]) == 0  # vsize and startcode of proc(5)


def tagged(name: str, value: str) -> list[ProcessInfo]:
    """Return the living processes, this one excepted, that were started with ``name=value`` in the environment."""
    entry = os.fsencode(f"{name}={value}")
    own = os.getpid()
    return [info for pid, info in snapshot().items() if pid != own and info.alive and entry in environment_of(pid)]


def descendants(processes: Mapping[int, ProcessInfo], root: int) -> list[ProcessInfo]:
    """Return all descendants of the process ``root``, parents before children, without ``root`` itself."""
    children = defaultdict(list)
    for info in processes.values():
        children[info.ppid].append(info)
    found: list[ProcessInfo] = []
    level = [root]
    while level:
        below = [info for pid in level for info in children.pop(pid, ())]
        found += below
        level = [info.pid for info in below]
    return found


def living(processes: Iterable[ProcessInfo]) -> list[ProcessInfo]:
    """Return those of the processes that are no zombies."""
    return [info for info in processes if info.alive]


def start_time(info: ProcessInfo) -> float:
    """Return the seconds from the start of the machine to that of a process, 0 where it is not known.

    It tells a process from a later one with the same id. Unix time would not: it changes when the clock is set.
    """
    return info.start / os.sysconf("SC_CLK_TCK")


def _stat_fields(pid: int) -> list[bytes]:
    """Return the fields of ``/proc/<pid>/stat`` from the third on; none if there is no such process."""
    data = _read(f"/proc/{pid}/stat")
    # The second field is the name in parentheses, which may itself hold blanks and parentheses.
    return data[data.rfind(b")") + 2 :].split()


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = b""
        while chunk := os.read(fd, 65536):
            data += chunk
        return data
    except OSError:  # it died while we read
        return b""
    finally:
        os.close(fd)


def _snapshot_by_ps() -> dict[int, ProcessInfo]:
    import subprocess

    lines = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=False
    ).stdout
    found = {}
    for line in lines.splitlines():
        pid, ppid, group, state = line.split()
        found[int(pid)] = ProcessInfo(int(pid), int(ppid), int(group), state[0], 0)
    return found


# ---- belonging -----------------------------------------------------------------------------------------


def subreaper() -> None:
    """Make this process the new parent of all descendants whose parent dies (Linux; elsewhere nothing)."""
    if LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signum: int) -> None:
    """Have the kernel send ``signum`` to this process when its parent dies (Linux; elsewhere nothing).

    The kernel means the *thread* that forked, so parents fork from a thread that lives as long as they do. If the
    parent is gone already the signal is sent at once.
    """
    if LINUX:
        _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _prctl(option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


# ---- ending --------------------------------------------------------------------------------------------


def send_signal(info: ProcessInfo, signum: int) -> bool:
    """Send a signal to exactly this process, not to a later one with the same pid; return whether it was sent."""
    try:
        try:
            fd = os.pidfd_open(info.pid)
        except (AttributeError, OSError) as error:
            if isinstance(error, ProcessLookupError):
                return False
            os.kill(info.pid, signum)  # no such call here (old kernel, sandbox, macOS), or no descriptor left
            return True
        try:
            now = process_info(info.pid)
            if now is None or now.start != info.start:
                return False
            signal.pidfd_send_signal(fd, signum)
            return True
        finally:
            os.close(fd)
    except OSError:  # it is gone, or runs as another user
        return False


def reap_children(last_look: Callable[[int], None] = lambda pid: None) -> dict[int, int]:
    """Wait for all children that have ended, own and adopted ones; return pid -> exit code (negative: signal).

    Args:
        last_look: Called with the pid of each (on Linux) while the kernel still tells what belongs to it.
    """
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (pid := _ended_child(last_look)) != 0:
            result = os.waitpid(pid, os.WNOHANG)
            if result[0] == 0:
                break
            ended[result[0]] = os.waitstatus_to_exitcode(result[1])
    return ended


def _ended_child(last_look: Callable[[int], None]) -> int:
    """Return the pid of a child that has ended, -1 for any where the kernel does not say, 0 if there is none."""
    if not LINUX:
        return -1
    info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if info is None:
        return 0
    last_look(info.si_pid)
    return info.si_pid


def sweep(grace: float, groups: Iterable[int] = ()) -> None:
    """End all descendants of this process: SIGTERM, after ``grace`` seconds SIGKILL until none is left.

    Args:
        grace: Seconds between the two signals; 0 kills at once.
        groups: Process groups that are ended too, for systems that do not have subreapers.
    """
    begin = time.monotonic()
    kill_at = begin + grace
    asked = False
    also = set(groups)
    while True:
        reap_children()
        processes = snapshot()
        found = {info.pid: info for info in descendants(processes, os.getpid())}
        found |= {info.pid: info for info in processes.values() if info.group in also and info.pid != os.getpid()}
        left = living(found.values())
        now = time.monotonic()
        if not left or now > begin + SWEEP_LIMIT:
            return
        if now >= kill_at:
            for info in left:
                send_signal(info, signal.SIGKILL)
        elif not asked:
            asked = True
            for info in left:
                send_signal(info, signal.SIGTERM)
                send_signal(info, signal.SIGCONT)  # a stopped process hears SIGTERM only when it goes on
        time.sleep(0.02)
