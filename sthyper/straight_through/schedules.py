"""Temperatures of relaxed choices, and how they fall during a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "ExponentialTemperature",
    "LinearTemperature",
    "TemperatureSchedule",
    "check_temperature",
    "temperature_schedule",
]

TemperatureSchedule = Callable[[float], float]
"""What is called with the progress of a run, from 0 at its start to 1 at its end, and returns a temperature."""


def check_temperature(temperature: float, name: str = "temperature") -> float:
    """Return a temperature as a float, or raise.

    Args:
        temperature: A finite number above 0.
        name: What the error calls it.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0, or not finite.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"{name} must be a number above 0; it is {temperature!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"{name} must be a finite number above 0; it is {temperature!r}: small ones (0.1) are close to the hard "
            f"choice, large ones (10) to an even mixture"
        )
    return float(temperature)


@dataclass(frozen=True)
class ConstantTemperature:
    """The same temperature all along.

    Args:
        value: The temperature, above 0.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.value, "value")

    def __call__(self, progress: float) -> float:
        """Return the temperature at ``progress`` (0 to 1)."""
        _check_progress(progress)
        return float(self.value)


@dataclass(frozen=True)
class _FromStartToEnd(ABC):
    """A temperature that moves from one value to another.

    Args:
        start: The temperature at progress 0, above 0.
        end: The temperature at progress 1, above 0.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not above 0.
    """

    start: float = 1.0
    end: float = 0.1

    def __post_init__(self) -> None:
        check_temperature(self.start, "start")
        check_temperature(self.end, "end")

    def __call__(self, progress: float) -> float:
        """Return the temperature at ``progress`` (0 to 1)."""
        _check_progress(progress)
        # The ends exactly, whatever rounding does in between.
        if progress == 0 or progress == 1:
            return float(self.end if progress else self.start)
        return self._between(progress)

    @abstractmethod
    def _between(self, progress: float) -> float: ...


@dataclass(frozen=True)
class LinearTemperature(_FromStartToEnd):
    """A temperature that moves along a straight line.

    Args:
        start: The temperature at progress 0, above 0.
        end: The temperature at progress 1, above 0.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not above 0.
    """

    def _between(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class ExponentialTemperature(_FromStartToEnd):
    """A temperature that is multiplied by the same factor in equal times: the usual annealing.

    Args:
        start: The temperature at progress 0, above 0.
        end: The temperature at progress 1, above 0.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not above 0.

    Source: E. Jang, S. Gu, B. Poole: Categorical Reparameterization with Gumbel-Softmax, 2017 (arXiv 1611.01144), who
    take ``max(0.5, exp(-r * step))``: ``start=1, end=0.5``.
    """

    def _between(self, progress: float) -> float:
        return math.exp((1 - progress) * math.log(self.start) + progress * math.log(self.end))


@dataclass(frozen=True)
class CosineTemperature(_FromStartToEnd):
    """A temperature that moves along half a cosine: slowly at both ends.

    Args:
        start: The temperature at progress 0, above 0.
        end: The temperature at progress 1, above 0.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not above 0.
    """

    def _between(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


def temperature_schedule(temperature: float | TemperatureSchedule) -> TemperatureSchedule:
    """Return a schedule for a number or a schedule.

    Args:
        temperature: A number above 0 that stays, or what is called with the progress from 0 to 1.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is not above 0.
    """
    if callable(temperature):
        return temperature
    return ConstantTemperature(check_temperature(temperature))


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be from 0 (start of the run) to 1 (its end); it is {progress!r}")
