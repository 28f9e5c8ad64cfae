"""Processes and files that a tuner which was killed has left behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sthyper._lock import machine
from sthyper.backend._processes import (
    MARK_NAME,
    MARK_WIDTH,
    ProcessInfo,
    descendants,
    environment_of,
    living,
    process_info,
    send_signal,
    snapshot,
    start_time,
)
from sthyper.checkpoints import copying_folder, remove_checkpoint
from sthyper.constants import (
    ENV_TRIAL_DIR,
    ENV_TRIALS_DIR,
    ST_CHECKPOINTS_DIRNAME,
    ST_CONFIG_FILENAME,
    ST_LOCK_FILENAME,
)

__all__ = ["delete_leftovers", "end_leftovers"]

logger = logging.getLogger(__name__)

TERM_SECONDS = 2.0
KILL_SECONDS = 5.0
_LEFT_IN_TRIALS = (
    f"{ST_CONFIG_FILENAME}.*.tmp",
    "run_trial.py.*.tmp",
    copying_folder(Path(ST_CHECKPOINTS_DIRNAME)).name,
)
ROUNDS = 3
"""Looks for what was started while others were ended."""


def delete_leftovers(folder: Path, trials: Path) -> None:
    """Delete files that were not complete when their writer was killed; those of locks are the lock's business.

    Args:
        folder: The experiment's folder, of which the caller holds the lock.
        trials: Folder of the trials; of what is in theirs only the tuner's own files are looked at.
    """
    for path in folder.glob("*.tmp"):
        if not path.name.startswith(f"{ST_LOCK_FILENAME}."):
            path.unlink(missing_ok=True)
    for pattern in _LEFT_IN_TRIALS:
        for path in trials.glob(f"*/{pattern}"):
            remove_checkpoint(path)


def end_leftovers(trials: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """End the processes of trials that nobody supervises any more; return how many there were.

    They are those that the journal names, with their start time, and all that descends from them; and those that were
    started with the folder of the trials in their environment, or are forks of such.

    Args:
        trials: Folder of the trials.
        records: Lines of the journal.
    """
    named = _started_here(records)
    ended: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        found = _find(trials, named)
        if not found:
            break
        ended |= {(info.pid, info.start) for info in found}
        if left := _end(found):
            logger.error("processes %s of trials do not end", [info.pid for info in left])
            break
    if ended:
        logger.warning("%d processes of trials were left by the tuner before and are ended", len(ended))
    return len(ended)


def _find(trials: Path, named: set[tuple[int, float]]) -> list[ProcessInfo]:
    own = f"{ENV_TRIAL_DIR}={trials}{os.sep}".encode()
    # Forks show the environment of the fork server; guards, which end by themselves, have the number 0 in it.
    forked, guard = f"{ENV_TRIALS_DIR}={trials}".encode(), f"{MARK_NAME}={'0' * MARK_WIDTH}".encode()
    processes = snapshot()
    found: dict[int, ProcessInfo] = {}
    for pid, info in processes.items():
        environment = environment_of(pid)
        if (pid, start_time(info)) in named:
            found[pid] = info
            found |= {child.pid: child for child in descendants(processes, pid)}
        elif (forked in environment and guard not in environment) or any(e.startswith(own) for e in environment):
            found[pid] = info
    found.pop(os.getpid(), None)
    return living(found.values())


def _end(processes: list[ProcessInfo]) -> list[ProcessInfo]:
    """End processes; return those that do not end."""
    left = processes
    for signum, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        for info in left:
            send_signal(info, signum)
        end = time.monotonic() + seconds
        while left and time.monotonic() < end:
            time.sleep(0.02)
            left = [info for info in left if _lives(info)]
    return left


def _lives(info: ProcessInfo) -> bool:
    now = process_info(info.pid)
    return now is not None and now.alive and now.start == info.start


def _started_here(records: Iterable[Mapping[str, Any]]) -> set[tuple[int, float]]:
    """Return pid and start time of the processes that the journal names, of this machine since its start."""
    found, here = set(), False
    for record in records:
        if record["type"] == "session":
            here = record.get("machine") == machine()
        elif record["type"] == "process" and here and record.get("start_time"):
            found.add((record["pid"], record["start_time"]))
    return found
