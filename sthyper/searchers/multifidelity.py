"""What multi-fidelity schedulers and their searchers exchange beside results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

from sthyper._describe import Described

__all__ = ["BracketDistribution", "BracketScheduler", "RungSnapshot", "RunningTrial"]


class BracketScheduler(Protocol):
    """What a :class:`BracketDistribution` may ask its scheduler."""

    @property
    def num_brackets(self) -> int:
        """Number of brackets."""

    @property
    def rung_levels(self) -> list[int]:
        """Rung levels, without the maximum resource."""

    @property
    def max_resource_level(self) -> int | None:
        """The maximum resource."""


class BracketDistribution(Described, ABC):
    """Probabilities with which a scheduler gives brackets to new trials.

    A scheduler takes one as its argument ``bracket_distribution``; a searcher that chooses brackets itself sets its
    attribute of that name in :meth:`~sthyper.searchers.BaseSearcher.configure`.
    """

    def configure(self, scheduler: BracketScheduler) -> None:
        """Learn brackets and levels; called before the first use."""

    @abstractmethod
    def __call__(self) -> np.ndarray:
        """Return the probabilities, an array of shape ``(num_brackets,)``; asked for every suggestion."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial of a :class:`RungSnapshot`.

    Args:
        config: Its configuration, the tuned part.
        time: Seconds of the experiment at which it was suggested.
        level: Largest resource that it has reported, 0 before its first report.
    """

    config: Mapping[str, Any]
    time: float
    level: int


@dataclass(frozen=True)
class RungSnapshot:
    """Running trials and rungs, as they are when a configuration is asked for.

    Args:
        tasks: The trials that run and have not reached the maximum, by id. If every bracket has rungs of its own,
            those of the new trial's bracket only.
        rungs: ``(level, entries)`` from the top rung down, without those that the new trial's bracket skips. Entries
            are ``(trial_id, value)``, best first, those that are not finite last (as NaN); values are as reported.
        max_resource: Maximum resource.
    """

    tasks: Mapping[int, RunningTrial]
    rungs: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    max_resource: int
