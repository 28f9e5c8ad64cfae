"""Guards the door of the channel: who has connected and not shown the token yet, and how often that is allowed."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Admission"]

logger = logging.getLogger(__name__)

MAX_STRANGERS = 256
"""Connections that have not said hello; one more costs the oldest its place."""
HELLO_SECONDS = 10.0
"""Seconds that a connection may take to say hello."""
MAX_REFUSED = 200
"""Connections that are refused within :data:`WINDOW`; after that nobody is let in for the rest of it."""
WINDOW = 1.0
WARN_INTERVAL = 60.0
FULL_PAUSE = 0.5
"""Seconds without new connections once the process has no file descriptor left for one."""

T = TypeVar("T")


class Admission(Generic[T]):
    """Keeps count of strangers (connections without a valid hello) and of those that were refused.

    What it limits is the tuner's time: a good hello is never refused for the sake of the bad ones, it waits a moment.

    Args:
        address: Where the channel listens, for warnings.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._strangers: dict[T, float] = {}
        self._refused: deque[float] = deque(maxlen=MAX_REFUSED)
        self._closed_until = 0.0
        self._unreported = 0
        self._next_warning = 0.0

    def __len__(self) -> int:
        return len(self._strangers)

    def enter(self, stranger: T) -> None:
        """Note a new connection."""
        self._strangers[stranger] = time.monotonic() + HELLO_SECONDS

    def leave(self, stranger: T) -> None:
        """Forget a connection that has said hello, or is closed."""
        self._strangers.pop(stranger, None)

    def overdue(self) -> list[T]:
        """Return strangers whose time is up, and the oldest ones where there are too many."""
        now = time.monotonic()
        surplus = len(self._strangers) - MAX_STRANGERS
        return [s for n, (s, due) in enumerate(self._strangers.items()) if n < surplus or due <= now]

    def oldest(self) -> T | None:
        """Return the stranger that came first."""
        return next(iter(self._strangers), None)

    def refuse(self, reason: str) -> None:
        """Note that a stranger was refused; warns of it, at most once a minute."""
        now = time.monotonic()
        self._refused.append(now)
        if len(self._refused) == MAX_REFUSED:
            self.close_door(self._refused[0] + WINDOW)
        self._unreported += 1
        if now >= self._next_warning:
            self._next_warning = now + WARN_INTERVAL
            logger.warning("%d connections refused at %s, the last for %s", self._unreported, self._address, reason)
            self._unreported = 0

    def close_door(self, until: float) -> None:
        """Let nobody in until ``until`` (of :func:`time.monotonic`)."""
        self._closed_until = max(self._closed_until, until)

    def is_open(self) -> bool:
        """Whether connections may be accepted."""
        return time.monotonic() >= self._closed_until

    def next_deadline(self) -> float | None:
        """Return the ``time.monotonic()`` at which there is something to do, ``None`` if there is nothing."""
        times = [self._closed_until] if not self.is_open() else []
        times += list(self._strangers.values())[:1]
        return min(times, default=None)
