"""What backends for local trials share: the order to run a trial, and the judgement of how it ended."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sthyper.backend._memory import OomKills
from sthyper.backend._printed_reports import PrintedReports
from sthyper.backend.base import ReportEvent, TrialEvent
from sthyper.trial import KILLED, OUT_OF_MEMORY, Status, was_killed

__all__ = ["DISK_FULL", "RunSpec", "Runner", "Timeouts", "classify_end", "read_tail"]

# Signals by which somebody outside ends a process; other signals are the program's own fault.
_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_OUT_OF_MEMORY_SIGNS = (
    "MemoryError",
    "OutOfMemoryError",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
)
# What is left to see of a killed process that was not the leader: the exit code of a shell, torch's DataLoader.
_SHELL_KILLED = 128 + signal.SIGKILL
_KILLED_SIGN = "is killed by signal: Killed"
_DISK_FULL_SIGNS = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    # What torch.save and numpy.save say of it.
    "PytorchStreamWriter failed writing file",
    ". unexpected pos ",
    " requested and ",
)
DISK_FULL = f"{KILLED} (disk full)"
"""End reason of a run that failed for want of room on the disk, through no fault of its own."""


@dataclass(frozen=True)
class Timeouts:
    """How long a run may be silent before it ends as hung.

    Args:
        first_report: Seconds from the start to the first report, ``None`` for no limit.
        report: Seconds between two reports, ``None`` for no limit.
    """

    first_report: float | None = None
    report: float | None = None


@dataclass(frozen=True)
class RunSpec:
    """The order to run a trial.

    Args:
        trial_id: The trial.
        run: Number of the run.
        argv: The script, or with ``is_program`` the program, and its arguments.
        env: Changes to the environment, ``None`` removes.
        cwd: Working directory.
        stdout: File that stdout is appended to.
        stderr: File that stderr is appended to.
        seed: Seed of the trial.
        threads: Thread budget, ``None`` leaves the user's setting.
        is_program: Whether ``argv`` is a whole command line, not a Python script.
        ends_at_milestone: Whether the configuration holds the milestone, so that the trial ends itself at a PAUSE.
    """

    trial_id: int
    run: int
    argv: tuple[str, ...]
    env: dict[str, str | None]
    cwd: str
    stdout: Path
    stderr: Path
    seed: int | None
    threads: int | None
    is_program: bool = False
    ends_at_milestone: bool = False

    @property
    def key(self) -> str:
        """Name of the run, unique in the experiment."""
        return f"{self.trial_id}-{self.run}"


class Runner(Protocol):
    """Runs trials for a local backend: in processes, or in the tuner's own one."""

    def open(self) -> None: ...
    def close(self, wait: bool) -> None: ...
    def run_loop(self, loop: Callable[[], None]) -> None: ...
    def start(self, spec: RunSpec) -> None: ...
    def end(self, trial_id: int, status: Status, at_once: bool, grace: float) -> None: ...
    def events(self, timeout: float | None) -> list[TrialEvent]: ...
    def answer(self, event: ReportEvent, decision: str) -> None: ...
    def on_signal(self, signum: int) -> None: ...
    def wake(self) -> None: ...


@dataclass
class RunState:
    """What is known of a run while it lasts.

    Args:
        spec: The order to run it.
        stderr_start: Size of its stderr file before it.
        ordered: Status that the tuner wants it to end with.
        reason: Why it ended, where that is known.
        code: Exit code of the leading process, ``None`` while that lives.
        ok: Whether no process has announced a failure.
        failed_rank: A rank of several that has ended after it announced a failure of its own.
        deadline: ``time.monotonic()`` at which it counts as hung.
        lost_ranks: Ranks whose connection is gone: client -> rank and time until which it may come back.
        printed: Its reports on stdout, for runs outside the fork server that have not connected.
        heard: Whether it has reported anything.
        unanswered: Reports that were handed on and are not answered yet.
        gone: Whether all its processes are gone.
        started: ``time.monotonic()`` of its start.
        oom_kills: What :func:`sthyper.backend._memory.oom_kills` told at its end.
    """

    spec: RunSpec
    stderr_start: int
    ordered: Status | None = None
    reason: str | None = None
    code: int | None = None
    ok: bool = True
    failed_rank: int | None = None
    deadline: float | None = None
    lost_ranks: dict[str, tuple[int, float]] = field(default_factory=dict)
    printed: PrintedReports | None = None
    heard: bool = False
    unanswered: int = 0
    gone: bool = False
    started: float = field(default_factory=time.monotonic)
    oom_kills: tuple[str, int] | None = None


def classify_end(state: RunState, kills: OomKills | None = None) -> tuple[Status, str | None, str]:
    """Return status, end reason and the tail of stderr of a run whose processes are gone.

    Args:
        state: What is known of the run.
        kills: Says whether the kernel has killed it for want of memory; ``None`` where nobody knows.
    """
    if state.ordered is not None:
        return state.ordered, state.reason, ""
    where = (state.spec.stderr, state.stderr_start)
    tail = read_tail(*where)
    code = state.code
    if state.reason is not None:  # hung, supervisor_lost, a dead rank: the backend knows best
        memory = was_killed(state.reason) and kills is not None and kills.explains(state.oom_kills)
        return Status.failed, OUT_OF_MEMORY if memory else state.reason, tail
    if code == 0:
        # A process that announced its failure may still end with code 0, say because the script caught the exception.
        return (Status.completed, None, "") if state.ok else (Status.failed, "exit 0 after a failure", tail)
    if code is None and state.failed_rank is None:
        return Status.failed, "killed", tail
    # Ranks that miss the one that has failed may write a lot after it.
    last = tail.splitlines()[-20:] if state.failed_rank is None else read_tail(*where, lines=200).splitlines()
    if any(sign in line for line in last for sign in _OUT_OF_MEMORY_SIGNS):
        return Status.failed, OUT_OF_MEMORY, tail
    if code is not None and code > 0:
        killed = code == _SHELL_KILLED or any(_KILLED_SIGN in line for line in last)
        if killed and kills is not None and kills.explains(state.oom_kills):
            return Status.failed, OUT_OF_MEMORY, tail
        if any(sign in line for line in last for sign in _DISK_FULL_SIGNS) or not _has_room(state.spec.stderr.parent):
            return Status.failed, DISK_FULL, tail
        return Status.failed, f"exit {code}", tail
    if state.failed_rank is not None and (code is None or -code in _OUTSIDE):
        # The others were ended because of it, by Lightning or by us.
        return Status.failed, f"exit after a failure of rank {state.failed_rank}", tail
    assert code is not None
    if -code == signal.SIGKILL and kills is not None and kills.explains(state.oom_kills):
        return Status.failed, OUT_OF_MEMORY, tail
    if -code in _OUTSIDE:
        return Status.failed, "killed", tail
    return Status.failed, f"signal {signal.Signals(-code).name}", tail


def _has_room(folder: Path) -> bool:
    """Whether anything can be written; where it cannot a script may fail at its next print, without a word."""
    try:
        info = os.statvfs(folder)
    except OSError:
        return True
    return info.f_bavail > 0


def read_tail(path: Path, start: int = 0, lines: int = 40, limit: int = 16384) -> str:
    """Return the last lines of a file, looking no further back than ``start`` and ``limit`` bytes."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - limit, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
