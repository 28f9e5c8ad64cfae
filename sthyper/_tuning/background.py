"""A thread that is no obstacle when the process wants to exit, and does not crash it either."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable

__all__ = ["BackgroundThread"]

_PATIENCE = 1.0
_LONGEST = 15.0
"""Seconds at the exit of the process: until the threads are broken off, and until nobody waits any more."""

_alive: set[BackgroundThread] = set()


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

    def start(self) -> None:
        """Start the thread."""
        # Hooks run from the last to the first: this one before those of libraries that the thread uses.
        atexit.unregister(_break_off_all)
        atexit.register(_break_off_all)
        for thread in [thread for thread in _alive if not thread.is_alive()]:
            _alive.discard(thread)
        super().start()
        _alive.add(self)

    def run(self) -> None:
        """Call the function."""
        with contextlib.suppress(_BrokenOff):
            super().run()

    def break_off(self) -> None:
        """Raise an exception in the thread that ends it."""
        if self.ident is not None and self.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(_BrokenOff))


def _break_off_all() -> None:
    """Wait until all threads have ended, a while with patience."""
    began = time.monotonic()
    _join_all(began + _PATIENCE)
    while any(thread.is_alive() for thread in _alive) and time.monotonic() < began + _LONGEST:
        for thread in list(_alive):
            thread.break_off()  # once more: the exception may have come where all are caught
        _join_all(time.monotonic() + 0.2)


def _join_all(deadline: float) -> None:
    for thread in list(_alive):
        thread.join(max(0.0, deadline - time.monotonic()))
