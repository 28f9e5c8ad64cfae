"""Whether the kernel has ended a process for want of memory: the counters of its control group tell.

A control group counts the processes *of its own* that were killed so, whichever group's limit (or the whole machine's)
was hit: ``oom_kill`` in ``memory.events`` of version 2, in ``memory.oom_control`` of version 1. Where there are no
control groups the count of the whole machine in ``/proc/vmstat`` has to do.

Version 2 tells the group of a process even after its end. Version 1 does not; there it is taken to be the group of the
one that asks, from which it was inherited.

Imports the standard library only: the fork server loads this file by path.
"""

from __future__ import annotations

import os

__all__ = ["MACHINE", "OomKills", "oom_kills"]

MACHINE = "/proc/vmstat"


def oom_kills(pid: int) -> tuple[str, int]:
    """Return the file that counts, and its count, for a process; it may be one that has ended and is not waited for.

    The count is 0 where nobody counts.
    """
    path = _counter_of(pid)
    return path, _count(path)


def _counter_of(pid: int) -> str:
    for version, controllers, folder in _groups(pid):
        if version == 1 and "memory" in controllers:
            path = _mounted("cgroup", _own_folder() if folder == "/" else folder, "memory.oom_control")
        elif version == 2:
            path = _mounted("cgroup2", folder, "memory.events")
        else:
            continue
        if path is not None:
            return path
    return MACHINE


def _groups(pid: int) -> list[tuple[int, list[str], str]]:
    """Return version, controllers and folder of a process's control groups, version 1 first."""
    found = []
    for line in _lines(f"/proc/{pid}/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, folder = rest.partition(":")
        found.append((1 if controllers else 2, controllers.split(","), folder.removesuffix(" (deleted)")))
    return sorted(found)


def _own_folder() -> str:
    return next(folder for version, names, folder in _groups(os.getpid()) if version == 1 and "memory" in names)


def _mounted(kind: str, folder: str, name: str) -> str | None:
    """Return the path of a file of a control group, or of the nearest group above that has it."""
    for line in _lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, (type_, _, options) = left.split(), right.split(maxsplit=2)
        if type_ != kind or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        root, top = fields[3], fields[4]
        below = folder.removeprefix(root if root != "/" else "")
        while True:
            path = os.path.join(top, below.strip("/"), name)
            if os.path.exists(path):
                return path
            if not below.strip("/"):
                break
            below = os.path.dirname(below.rstrip("/"))
    return None


def _count(path: str) -> int:
    for line in _lines(path):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


class OomKills:
    """Says which processes the kernel's counts explain; each count explains one.

    Made before the first process of interest is started.
    """

    def __init__(self) -> None:
        path, count = oom_kills(os.getpid())
        self._explained = {MACHINE: _count(MACHINE), path: count}

    def explains(self, last: tuple[str, int] | None) -> bool:
        """Whether a process that died of SIGKILL was killed for want of memory.

        Args:
            last: :func:`oom_kills` of it at its end, ``None`` if nobody looked.
        """
        if last is None:
            return False
        path, count = last
        explained = self._explained.setdefault(path, 0)  # a group of its own
        if count <= explained:
            return False
        self._explained[path] = explained + 1
        return True
