"""Rungs: the values seen at one resource level, kept sorted, and the systems that decide by them.

Values are to be minimised everywhere in this module; the scheduler negates those of a maximised metric.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sthyper._describe import Described
from sthyper.schedulers.hyperband.levels import check_rung_levels, promotion_quantiles

__all__ = ["PausedTrial", "Promotion", "Rung", "RungEntry", "RungSystem", "is_as_good", "linear_quantile"]

RungEntry = tuple[float, int, int]
"""A finite value of a rung: ``(value, number of earlier entries, trial_id)``; sorts best first, ties by arrival."""


@dataclass(frozen=True)
class Promotion:
    """A paused trial that goes on.

    Args:
        trial_id: The trial.
        resume_from: Level at which it was paused.
        milestone: Level at which the next decision falls.
    """

    trial_id: int
    resume_from: int
    milestone: int


class PausedTrial(NamedTuple):
    """A paused trial that was not promoted yet.

    Args:
        trial_id: The trial.
        rank: Its place in its rung, 0 is the best; trials that were promoted are counted.
        metric_val: Its value there; NaN if that is not finite.
        level: Level of the rung.
    """

    trial_id: int
    rank: int
    metric_val: float
    level: int


# ---- rules -----------------------------------------------------------------------------------------------


def linear_quantile(entries: Sequence[RungEntry], size: int, q: float) -> float | None:
    """Return the q-quantile of a rung by linear interpolation, from two positions of the sorted data.

    The position is :math:`q (n - 1)` and the arithmetic that of ``numpy.quantile(values, q)``, bit by bit.

    Args:
        entries: The finite values, sorted.
        size: Number n of all entries; the ``size - len(entries)`` non-finite ones count as the worst finite value.
        q: Quantile in (0, 1).

    Returns:
        The quantile; ``None`` with fewer than two entries; minus infinity if there are two but none is finite.
    """
    if size < 2:
        return None
    if not entries:
        return -math.inf
    position = q * (size - 1)
    below = int(position)
    last = len(entries) - 1
    if below >= last:
        return entries[last][0]
    low = entries[below][0]
    high = entries[below + 1][0]
    t = position - below
    step = high - low
    if step == math.inf:  # values of both signs near the largest float
        return low * (1 - t) + high * t
    return low + step * t if t < 0.5 else high - step * (1 - t)


def is_as_good(value: float, cutoff: float | None) -> bool:
    """Whether a value is finite and within the cutoff; false without one."""
    return cutoff is not None and value <= cutoff and math.isfinite(value)


# ---- data ------------------------------------------------------------------------------------------------


class Rung:
    """The values that trials reported at one level.

    Args:
        level: The resource level.
        quantile: Share of the rung, in (0, 1), that is good enough to go on.
    """

    __slots__ = ("_entries", "_non_finite", "_trial_ids", "level", "quantile")

    def __init__(self, level: int, quantile: float) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be in (0, 1), got {quantile!r} at level {level}")
        self.level = level
        self.quantile = quantile
        self._entries: list[RungEntry] = []
        self._non_finite: list[int] = []
        self._trial_ids: set[int] = set()

    def __len__(self) -> int:
        return len(self._trial_ids)

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._trial_ids

    @property
    def entries(self) -> Sequence[RungEntry]:
        """The finite entries, best first."""
        return self._entries

    @property
    def non_finite(self) -> Sequence[int]:
        """Trials whose value is NaN or infinite, in the order of arrival."""
        return self._non_finite

    def add(self, trial_id: int, value: float) -> RungEntry | None:
        """Insert a value; returns its entry, ``None`` for a non-finite one."""
        if trial_id in self._trial_ids:
            raise ValueError(f"trial {trial_id} is in the rung of level {self.level} already")
        order = len(self._trial_ids)
        self._trial_ids.add(trial_id)
        if not math.isfinite(value):
            self._non_finite.append(trial_id)
            return None
        entry = (value, order, trial_id)
        insort(self._entries, entry)
        return entry

    def cutoff(self) -> float | None:
        """Return the worst value that is good enough; see :func:`linear_quantile`."""
        return linear_quantile(self._entries, len(self._trial_ids), self.quantile)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries as plain containers."""
        return {
            "level": self.level,
            "entries": [list(entry) for entry in self._entries],
            "non_finite": list(self._non_finite),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if state["level"] != self.level:
            raise ValueError(
                f"the state is that of a scheduler with other rung levels: {state['level']} in place of {self.level}"
            )
        self._entries = [(value, order, trial_id) for value, order, trial_id in state["entries"]]
        self._non_finite = list(state["non_finite"])
        self._trial_ids = {trial_id for _, _, trial_id in self._entries} | set(self._non_finite)


class RungSystem(Described, ABC):
    """Decides at rung levels; subclasses are the variants of asynchronous successive halving.

    Args:
        rung_levels: Strictly increasing positive levels up to ``max_t`` (one equal to ``max_t`` is dropped).
        max_t: Maximum resource.

    Attributes:
        pauses: Whether trials are paused at every milestone and may be resumed later.

    Raises:
        TypeError: If a level or ``max_t`` is no int.
        ValueError: If the levels are not positive and strictly increasing, or one is above ``max_t``.
    """

    pauses: bool = False

    def __init__(self, rung_levels: Sequence[int], max_t: int) -> None:
        self.max_t = max_t
        self.rung_levels = check_rung_levels(rung_levels, max_t)
        quantiles = promotion_quantiles(self.rung_levels, max_t)
        self.rungs = tuple(Rung(r, q) for r, q in zip(self.rung_levels, quantiles, strict=True))

    @abstractmethod
    def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
        """Take the value that a trial reported at a rung level and return whether the trial goes on now.

        Args:
            trial_id: A trial that is not in this rung yet.
            level: One of :attr:`rung_levels`.
            value: The value, to be minimised; may be NaN or infinite.
            cost: What the trial has cost up to this level, over all its runs if trials pause; ``None`` if the
                scheduler has no ``cost_attr`` or the report lacks it. For systems that decide by cost.
        """

    def enter(self, trial_id: int, level: int, value: float) -> None:
        """Take a value that no trial of this experiment reported: others are compared with it, it is not promoted.

        Args:
            trial_id: Id that no trial has, one for each configuration.
            level: One of :attr:`rung_levels`.
            value: The value, to be minimised; may be NaN or infinite.
        """
        self.rung(level).add(trial_id, value)

    def promote(self) -> Promotion | None:
        """Choose a paused trial to go on with, and mark it promoted; ``None`` if a new one is to be started."""
        return None

    def pause(self, trial_id: int) -> None:
        """Learn that a trial was paused by another scheduler, at the highest rung that it is in or above that."""

    def discard(self, trial_id: int) -> None:
        """Learn that a trial has ended for good: its values stay, it is never promoted."""

    def paused_trials(self) -> list[PausedTrial]:
        """Return the trials that are paused and not promoted, from the top rung down, best first."""
        return []

    def take_hopeless(self) -> list[int]:
        """Return the paused trials that are never promoted, whatever comes, each of them once.

        With cutoffs that are quantiles this is never certain of a finite value: worse ones may come.
        """
        return []

    def for_bracket(self, bracket: int) -> RungSystem:
        """Return a new system of the same kind, empty, without the ``bracket`` lowest rungs.

        A subclass whose constructor takes more arguments overrides it.
        """
        return type(self)(self.rung_levels[bracket:], self.max_t)

    def next_level(self, resource: int) -> int:
        """Return the lowest rung level above ``resource``, ``max_t`` if there is none."""
        position = bisect_right(self.rung_levels, resource)
        return self.rung_levels[position] if position < len(self.rung_levels) else self.max_t

    def rung(self, level: int) -> Rung:
        """Return the rung of a level.

        Raises:
            ValueError: If ``level`` is no rung level.
        """
        return self.rungs[self._index(level)]

    def _index(self, level: int) -> int:
        position = bisect_left(self.rung_levels, level)
        if position == len(self.rung_levels) or self.rung_levels[position] != level:
            raise ValueError(f"level={level}: no rung level, there are {list(self.rung_levels)}")
        return position

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers."""
        return {"kind": type(self).__name__, "max_t": self.max_t, "rungs": [rung.state_dict() for rung in self.rungs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a system made with the same arguments.

        Raises:
            ValueError: If the kind of rung system or the levels are others.
        """
        if state["kind"] != type(self).__name__:
            raise ValueError(f"the state is that of a {state['kind']}, this scheduler has a {type(self).__name__}")
        if state["max_t"] != self.max_t or len(state["rungs"]) != len(self.rungs):
            raise ValueError(
                "the state is that of a scheduler with other rung levels: "
                f"{[r['level'] for r in state['rungs']]} and max_t={state['max_t']} in place of "
                f"{list(self.rung_levels)} and max_t={self.max_t}"
            )
        for rung, rung_state in zip(self.rungs, state["rungs"], strict=True):
            rung.load_state_dict(rung_state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rung_levels={list(self.rung_levels)}, max_t={self.max_t})"
