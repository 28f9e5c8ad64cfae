"""Ctrl-C and its kin while an experiment runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["signals_handled"]


@contextmanager
def signals_handled(first: Callable[[int], None], second: Callable[[], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the block, in the main thread only, and restore the old handlers.

    Args:
        first: Called with the number of the first signal.
        second: Called at every further one, before ``KeyboardInterrupt`` is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            second()
            raise KeyboardInterrupt
        first(signum)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
