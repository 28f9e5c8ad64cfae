"""A disk that is full, or cannot be written: the experiment waits where it is until there is room again."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from sthyper._tuning.state import ExperimentState
    from sthyper.backend.base import TrialEvent

__all__ = ["RoomLost", "RoomWatch", "more_room"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What may be over when somebody has made room, or has repaired or mounted something.
_PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
RETRY_INTERVAL = 1.0
"""Seconds between two attempts to write."""
MORE_ROOM = 1 << 16
"""Bytes that have to come free before a trial for which there was too little room is run again."""
PATIENCE = 60.0
"""Seconds after which it is run again even so: what it needs may be on another disk."""


class RoomLost(Exception):
    """The user wants the experiment to end while something cannot be written; its record ends before that."""


class RoomWatch:
    """Repeats what could not be written until it can.

    Meanwhile nothing is started or answered. What the backend tells is kept in the state's backlog, so that reports
    are read and their trials do not count as hung.

    Args:
        state: The experiment.
        leaves: Says whether the user wants the experiment to end.
    """

    def __init__(self, state: ExperimentState, leaves: Callable[[], bool]) -> None:
        self._state = state
        self._leaves = leaves
        self._since: float | None = None

    def keep_trying(self, step: Callable[[], T]) -> T:
        """Return what ``step`` returns, as soon as the disk lets it; it must be possible to repeat it.

        Raises:
            RoomLost: If the user wants the experiment to end before.
            OSError: For errors that waiting does not mend.
        """
        while True:
            try:
                result = step()
            except OSError as error:
                if not _passes(error):
                    raise
                self._wait(error)
            else:
                if self._since is not None:
                    waited, self._since = time.monotonic() - self._since, None
                    self._say(f"there is room again after {waited:.0f} s, the experiment goes on")
                return result

    def _wait(self, error: OSError) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._say(
                f"cannot write {error.filename or self._state.backend.path}: {error.strerror}. No trial is started "
                "and no report answered until it can be written; Ctrl-C ends the experiment"
            )
        until = time.monotonic() + RETRY_INTERVAL
        while (left := until - time.monotonic()) > 0:
            if self._leaves():
                raise RoomLost(f"{error.filename or self._state.backend.path} cannot be written: {error.strerror}")
            if self._state.current_report is None:
                self._state.backlog += self._events(left)
            else:
                # A callback writes about a report that is answered already, but whose order is not carried out:
                # the end of its trial must not be heard of before.
                time.sleep(min(left, 0.1))

    def _events(self, timeout: float) -> list[TrialEvent]:
        backend = self._state.backend
        backend.held = True
        try:
            return backend.events(timeout)
        finally:
            backend.held = False

    def _say(self, text: str) -> None:
        logger.warning("%s", text)
        if self._state.progress is not None:
            self._state.progress.message(text)


def more_room(path: Path) -> Callable[[], None]:
    """Return what to keep trying after a trial had too little room: it fails until there is more than now."""
    wanted = _free(path) + MORE_ROOM
    until = time.monotonic() + PATIENCE

    def look() -> None:
        if _free(path) < wanted and time.monotonic() < until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return look


def _free(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def _passes(error: OSError) -> bool:
    if isinstance(error, shutil.Error):  # what went wrong with several files, in words
        return any(os.strerror(number) in str(error) for number in _PASSING)
    return error.errno in _PASSING
