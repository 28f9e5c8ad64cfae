"""Successive halving that promotes: trials pause at every rung, the best of a rung are resumed."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from sthyper.schedulers.hyperband.rungs import PausedTrial, Promotion, Rung, RungEntry, RungSystem, is_as_good

__all__ = ["PromotionRungSystem", "first_promotable"]


class PromotionRungSystem(RungSystem):
    r"""ASHA: every trial pauses at its milestone; a free worker resumes the best paused one that qualifies.

    Rungs are looked at from the top. In each, the best trial that was not promoted yet qualifies iff the rung has
    two or more entries and :math:`f \le Q_{q_j}(\text{rung}_j)`, :math:`q_j = r_j / r_{j+1}`, over all entries
    (those of promoted trials too). The first that qualifies is promoted to the next level; if there is none, a
    new trial is started.

    Args:
        rung_levels: Strictly increasing positive levels up to ``max_t``.
        max_t: Maximum resource.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934,
        algorithm 2.
    """

    pauses = True

    def __init__(self, rung_levels: Sequence[int], max_t: int) -> None:
        super().__init__(rung_levels, max_t)
        # By rung, best first: the entries of paused trials, which alone can be promoted.
        self._paused: tuple[list[RungEntry], ...] = tuple([] for _ in self.rungs)
        # Trial -> (index of the rung in which it is paused, its entry), to find it when it ends.
        self._place: dict[int, tuple[int, RungEntry]] = {}
        # Paused trials whose value is not finite -> index of their rung; they are never promoted.
        self._hopeless: dict[int, int] = {}
        self._untold: list[int] = []  # those of them that take_hopeless() has not returned

    def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
        index = self._index(level)
        entry = self.rungs[index].add(trial_id, value)
        if entry is not None:
            self._pause(index, entry)
        else:
            self._give_up(index, trial_id)
        return False

    def promote(self) -> Promotion | None:
        index = first_promotable(self.rungs, self._paused)
        if index is None:
            return None
        _, _, trial_id = self._paused[index].pop(0)
        del self._place[trial_id]
        level = self.rung_levels[index]
        return Promotion(trial_id, resume_from=level, milestone=self.next_level(level))

    def paused_trials(self) -> list[PausedTrial]:
        result = []
        for index in range(len(self.rungs) - 1, -1, -1):
            rung = self.rungs[index]
            result += [
                PausedTrial(entry[2], bisect_left(rung.entries, entry), entry[0], rung.level)
                for entry in self._paused[index]
            ]
            # Whatever is not finite ranks last, in the order of arrival.
            places = {trial_id: place for place, trial_id in enumerate(rung.non_finite, start=len(rung.entries))}
            result += [
                PausedTrial(trial_id, places[trial_id], math.nan, rung.level)
                for trial_id, where in self._hopeless.items()
                if where == index
            ]
        return result

    def pause(self, trial_id: int) -> None:
        for index in range(len(self.rungs) - 1, -1, -1):
            rung = self.rungs[index]
            if trial_id in rung:
                entry = next((entry for entry in rung.entries if entry[2] == trial_id), None)
                if entry is None:
                    self._give_up(index, trial_id)
                else:
                    self._pause(index, entry)
                return

    def take_hopeless(self) -> list[int]:
        untold, self._untold = self._untold, []
        return untold

    def discard(self, trial_id: int) -> None:
        if self._hopeless.pop(trial_id, None) is not None and trial_id in self._untold:
            self._untold.remove(trial_id)
        place = self._place.pop(trial_id, None)
        if place is not None:
            index, entry = place
            del self._paused[index][bisect_left(self._paused[index], entry)]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "paused": [[entry[2] for entry in paused] for paused in self._paused],
            "hopeless": [[trial_id, index] for trial_id, index in self._hopeless.items()],
            "untold": list(self._untold),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._place.clear()
        for index, (rung, trial_ids) in enumerate(zip(self.rungs, state["paused"], strict=True)):
            self._paused[index].clear()
            wanted = set(trial_ids)
            for entry in rung.entries:
                if entry[2] in wanted:
                    self._pause(index, entry)
        self._hopeless = {trial_id: index for trial_id, index in state["hopeless"]}
        self._untold = list(state["untold"])

    def _pause(self, index: int, entry: RungEntry) -> None:
        # A trial is paused in one place: where it reported last.
        self.discard(entry[2])
        insort(self._paused[index], entry)
        self._place[entry[2]] = (index, entry)

    def _give_up(self, index: int, trial_id: int) -> None:
        self.discard(trial_id)
        self._hopeless[trial_id] = index
        self._untold.append(trial_id)


def first_promotable(rungs: Sequence[Rung], paused: Sequence[Sequence[RungEntry]]) -> int | None:
    """Return the index of the highest rung whose best paused entry is within the rung's cutoff.

    Args:
        rungs: Rungs, the lowest first.
        paused: For each rung the entries of its paused trials, the best first.
    """
    for index in range(len(rungs) - 1, -1, -1):
        if paused[index] and is_as_good(paused[index][0][0], rungs[index].cutoff()):
            return index
    return None
