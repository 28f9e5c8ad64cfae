"""What an asynchronous scheduler keeps of a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sthyper.schedulers.hyperband.costs import TrialCosts
from sthyper.trial import SchedulerDecision

__all__ = ["TrialInformation"]


@dataclass(slots=True)
class TrialInformation:
    """A trial of a :class:`~sthyper.schedulers.HyperbandScheduler`.

    Args:
        milestone: Level of the next decision.
        bracket: Its bracket.
        resource: Largest level that counted.
        updated: Largest level that the searcher learnt from.
        temporary: Level that the searcher learnt from and is to forget at the next report, ``None`` if there is none.
        decision: Last decision; STOP once the trial has ended.
        config: Configuration for a resume, where that is needed.
        searcher_config: Configuration as the searcher knows it.
        time: Seconds of the experiment at which it was suggested, where somebody asks.
        costs: What its runs cost, where that is added up.
    """

    milestone: int
    bracket: int = 0
    resource: int = 0
    updated: int = 0
    temporary: int | None = None
    decision: str = SchedulerDecision.CONTINUE
    config: dict[str, Any] | None = None
    searcher_config: dict[str, Any] | None = None
    time: float = 0.0
    costs: TrialCosts | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain containers."""
        return {
            "milestone": self.milestone,
            "bracket": self.bracket,
            "resource": self.resource,
            "updated": self.updated,
            "temporary": self.temporary,
            "decision": self.decision,
            "config": None if self.config is None else dict(self.config),
            "searcher_config": None if self.searcher_config is None else dict(self.searcher_config),
            "time": self.time,
            "costs": None if self.costs is None else self.costs.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrialInformation:
        """Make the record that :meth:`state_dict` described."""
        record = cls(**(state | {"costs": None}))
        if state["costs"] is not None:
            record.costs = TrialCosts()
            record.costs.load_state_dict(state["costs"])
        return record
