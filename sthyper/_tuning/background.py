"""A thread that is no obstacle when the process wants to exit, and does not crash it either."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable

__all__ = ["BackgroundThread"]

_PATIENCE = 1.0
_LONGEST = 15.0
"""Seconds at the exit of the process: until the threads are broken off, and until nobody waits any more."""

_alive: set[BackgroundThread] = set()
_pid: list[int] = []


class _BrokenOff(SystemExit):
    """Raised in a thread whose result nobody wants; ends it without a traceback."""


class BackgroundThread(threading.Thread):
    """A daemon thread that ends before the interpreter does.

    The interpreter kills daemon threads by unwinding their stacks, which aborts the process where one is within
    PyTorch. So a function that still computes when the process exits is broken off first: it gets an exception, which
    is no :class:`Exception`, at its next line of Python.

    Args:
        target: What the thread computes.
        name: Its name.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        # Ctrl-C within join() makes Python 3.11 believe that the thread has ended.
        self._has_ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        # Hooks run from the last to the first: this one before those of libraries that the thread uses.
        atexit.unregister(_break_off_all)
        atexit.register(_break_off_all)
        for thread in [thread for thread in _alive if thread.has_ended(0.0)]:
            _alive.discard(thread)
        super().start()
        _alive.add(self)
        _pid[:] = [os.getpid()]

    def run(self) -> None:
        """Call the function."""
        try:
            with contextlib.suppress(_BrokenOff):
                super().run()
        finally:
            self._has_ended.set()

    def has_ended(self, timeout: float) -> bool:
        """Whether the function ends within so many seconds."""
        return self._has_ended.wait(timeout)

    def break_off(self) -> None:
        """Raise an exception in the thread that ends it."""
        if self.ident is not None and not self._has_ended.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(_BrokenOff))


def _break_off_all() -> None:
    """Wait until all threads have ended, a while with patience."""
    if _pid != [os.getpid()]:
        return  # of a process that was forked, which has no threads
    began = time.monotonic()
    ended = _have_ended(began + _PATIENCE)
    while not ended and time.monotonic() < began + _LONGEST:
        for thread in list(_alive):
            thread.break_off()  # once more: the exception may have come where all are caught
        ended = _have_ended(time.monotonic() + 0.2)


def _have_ended(deadline: float) -> bool:
    return all([thread.has_ended(max(0.0, deadline - time.monotonic())) for thread in list(_alive)])
