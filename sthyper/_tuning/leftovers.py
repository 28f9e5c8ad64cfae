"""Processes that a tuner which was killed has left behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sthyper.backend._processes import (
    ProcessInfo,
    create_time,
    descendants,
    environment_of,
    living,
    send_signal,
    snapshot,
)
from sthyper.constants import ENV_TRIAL_DIR

__all__ = ["end_leftovers"]

logger = logging.getLogger(__name__)

TERM_SECONDS = 2.0
CLOCK_TOLERANCE = 2.0
KILL_SECONDS = 5.0


def end_leftovers(trials: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """End the processes of trials that nobody supervises any more; return how many there were.

    They are those that the journal names, with their start time, and all that descends from them; and programs that
    were started with the trial's folder in their environment.

    Args:
        trials: Folder of the trials.
        records: Lines of the journal.
    """
    mark = f"{ENV_TRIAL_DIR}={trials}{os.sep}".encode()
    named = {r["pid"]: r["create_time"] for r in records if r["type"] == "process" and r.get("create_time")}
    processes = snapshot()
    found: dict[int, ProcessInfo] = {}
    for pid, info in processes.items():
        if pid in named and abs(create_time(info) - named[pid]) < CLOCK_TOLERANCE:
            found[pid] = info
            found |= {child.pid: child for child in descendants(processes, pid)}
        elif any(entry.startswith(mark) for entry in environment_of(pid)):
            found[pid] = info
    found.pop(os.getpid(), None)
    left: list[ProcessInfo] = living(found.values())
    for signum, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        for info in left:
            send_signal(info, signum)
        end = time.monotonic() + seconds
        while left and time.monotonic() < end:
            time.sleep(0.02)
            left = living(left)
    if found:
        logger.warning("%d processes of trials were left by the tuner before and are ended", len(found))
    if left:
        logger.error("processes %s of trials do not end", [info.pid for info in left])
    return len(found)
