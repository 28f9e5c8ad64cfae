"""When the parameters of a surrogate are fitted anew, and when only its posterior is.

The rules see all observations, also if the model is fitted to a part of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

__all__ = ["AlwaysSkip", "NeverSkip", "RefitRule", "SkipNoMaxResource", "SkipPeriodically"]


class RefitRule(ABC):
    """Says for each new data set whether parameters are to be fitted.

    A subclass defines :meth:`decide`, which is asked once for each number of observations: as long as that stays, the
    answer stays, however often :meth:`should_fit` is called.
    """

    def __init__(self) -> None:
        self._num_labeled: int | None = None  # of the last decision
        self._answer = True

    def should_fit(self, num_labeled: int, resources: Sequence[float] | None = None) -> bool:
        """Return whether to fit the parameters to the data, ``False`` to keep those of the last fit.

        Args:
            num_labeled: Number of observations.
            resources: Their resources, for rules that depend on them; ``None`` for problems without resources.

        Raises:
            ValueError: If the number is negative or not that of the resources, or the rule lacks the resources.
        """
        if num_labeled < 0:
            raise ValueError(f"num_labeled must not be negative, got {num_labeled!r}")
        if resources is not None and len(resources) != num_labeled:
            raise ValueError(f"resources must be those of {num_labeled} observations, got {len(resources)} of them")
        if num_labeled != self._num_labeled:
            self._answer = self.decide(num_labeled, resources)
            self._num_labeled = int(num_labeled)
        return self._answer

    @abstractmethod
    def decide(self, num_labeled: int, resources: Sequence[float] | None) -> bool:
        """Return whether to fit to data that have changed; arguments are those of :meth:`should_fit`."""

    def reset(self) -> None:
        """Forget all data seen."""
        self._num_labeled = None
        self._answer = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers."""
        return {"num_labeled": self._num_labeled, "answer": self._answer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a rule made with the same arguments."""
        self._num_labeled = state["num_labeled"]
        self._answer = state["answer"]


class NeverSkip(RefitRule):
    """Fits to every data set."""

    def decide(self, num_labeled: int, resources: Sequence[float] | None) -> bool:
        return True


class AlwaysSkip(RefitRule):
    """Keeps the parameters from the start."""

    def decide(self, num_labeled: int, resources: Sequence[float] | None) -> bool:
        return False


class SkipPeriodically(RefitRule):
    """Fits to all data sets of less than ``init_length`` observations, then to each ``period``-th, the first included.

    Args:
        init_length: Number of observations from which fits are skipped, not negative.
        period: One of so many changes of the data is fitted; 1 skips none.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If it is too small.
    """

    def __init__(self, init_length: int, period: int) -> None:
        super().__init__()
        self.init_length = _checked("init_length", init_length, 0)
        self.period = _checked("period", period, 1)
        self._position = 0  # of the next decision in its period

    def decide(self, num_labeled: int, resources: Sequence[float] | None) -> bool:
        if num_labeled < self.init_length:
            return True
        fits = self._position == 0
        self._position = (self._position + 1) % self.period
        return fits

    def reset(self) -> None:
        super().reset()
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._position = state["position"] % self.period


class SkipNoMaxResource(RefitRule):
    """Fits to all data sets of less than ``init_length`` observations, then if one at the largest resource came.

    Args:
        init_length: Number of observations from which fits are skipped, not negative.
        max_resource: The largest resource, positive.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If it is too small.
    """

    def __init__(self, init_length: int, max_resource: int) -> None:
        super().__init__()
        self.init_length = _checked("init_length", init_length, 0)
        self.max_resource = _checked("max_resource", max_resource, 1)
        self._num_at_max: int | None = None

    def decide(self, num_labeled: int, resources: Sequence[float] | None) -> bool:
        if resources is None:
            raise ValueError("SkipNoMaxResource needs the resources of the observations, got resources=None")
        before = self._num_at_max
        self._num_at_max = sum(int(resource == self.max_resource) for resource in resources)
        return num_labeled < self.init_length or before is None or self._num_at_max > before

    def reset(self) -> None:
        super().reset()
        self._num_at_max = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"num_at_max": self._num_at_max}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._num_at_max = state["num_at_max"]


def _checked(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return value
