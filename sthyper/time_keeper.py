"""The clock of an experiment; a simulator puts its own in place of the real one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from datetime import datetime

__all__ = ["RealTimeKeeper", "TimeKeeper"]


class TimeKeeper(ABC):
    """Tells tuner, backend and scheduler what time it is in the experiment."""

    @abstractmethod
    def start_of_time(self) -> None:
        """Set the clock to zero; a further call sets it to zero again."""

    @abstractmethod
    def time(self) -> float:
        """Return the seconds since :meth:`start_of_time`.

        Raises:
            RuntimeError: If the clock was not started.
        """

    @abstractmethod
    def time_stamp(self) -> datetime:
        """Return date and time of now, without time zone.

        Raises:
            RuntimeError: If the clock was not started.
        """

    @abstractmethod
    def advance(self, step: float) -> None:
        """Let ``step`` seconds pass.

        Raises:
            ValueError: If ``step`` is negative or not finite.
            RuntimeError: If the clock was not started.
        """


class RealTimeKeeper(TimeKeeper):
    """The real clock. Durations come from the monotonic clock: setting the system's clock does not change them."""

    def __init__(self) -> None:
        self._start: float | None = None

    @property
    def started(self) -> bool:
        """Whether the clock runs."""
        return self._start is not None

    def start_of_time(self) -> None:
        """Set the clock to zero."""
        self._start = time.monotonic()

    def time(self) -> float:
        """Return the seconds since :meth:`start_of_time`."""
        return time.monotonic() - self._started()

    def time_stamp(self) -> datetime:
        """Return the local date and time."""
        self._started()
        return datetime.now()

    def advance(self, step: float) -> None:
        """Sleep for ``step`` seconds."""
        self._started()
        check_step(step)
        time.sleep(step)

    def _started(self) -> float:
        if self._start is None:
            raise RuntimeError(f"{type(self).__name__}: call start_of_time() first")
        return self._start


def check_step(step: float) -> None:
    """Raise ``ValueError`` unless ``step`` is a finite number of seconds that is not negative."""
    if not 0.0 <= step < float("inf"):
        raise ValueError(f"step must be a finite number of seconds >= 0, got {step!r}")
