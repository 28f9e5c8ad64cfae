"""The time of an experiment, as schedulers and searchers see it."""

from __future__ import annotations

from typing import Any

from sthyper.time_keeper import RealTimeKeeper, TimeKeeper

__all__ = ["ExperimentClock"]


class ExperimentClock:
    """Seconds since the experiment began.

    Args:
        time_keeper: A clock that its owner starts (that of a simulator, say). Without one a real clock is started at
            the first suggestion.

    Raises:
        TypeError: If ``time_keeper`` is no :class:`~sthyper.time_keeper.TimeKeeper`.
    """

    def __init__(self, time_keeper: TimeKeeper | None = None) -> None:
        self._keeper: TimeKeeper | None = None
        self._is_own = False
        self._earlier = 0.0  # seconds before the state was loaded
        self._latest = 0.0
        if time_keeper is not None:
            self.use(time_keeper)

    def use(self, time_keeper: TimeKeeper) -> None:
        """Take the time from this clock.

        Raises:
            RuntimeError: If there is a clock already, or the experiment has begun.
            TypeError: If it is no :class:`~sthyper.time_keeper.TimeKeeper`.
        """
        if not isinstance(time_keeper, TimeKeeper):
            raise TypeError(f"time_keeper must be a TimeKeeper, got {time_keeper!r}")
        if self._keeper is not None:
            why = "the experiment has begun" if self._is_own else f"it has {type(self._keeper).__name__} already"
            raise RuntimeError(f"the scheduler cannot take {type(time_keeper).__name__} as its time keeper: {why}")
        self._keeper = time_keeper

    def start(self) -> None:
        """Begin; a clock that was given must run by now.

        Raises:
            RuntimeError: If its owner has not started it.
        """
        if self._keeper is None:
            self._keeper = RealTimeKeeper()
            self._keeper.start_of_time()
            self._is_own = True
        else:
            self._keeper.time()

    def elapsed(self) -> float:
        """Return the seconds of the experiment so far; 0 before it began."""
        if self._keeper is None:
            return self._latest
        self._latest = self._keeper.time() + self._earlier
        return self._latest

    def state_dict(self) -> dict[str, Any]:
        """Return the time as it was last asked for."""
        return {"elapsed": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a time that :meth:`state_dict` returned; a clock that was given knows better."""
        self._latest = state["elapsed"]
        if self._keeper is None or self._is_own:
            self._earlier = self._latest
