"""Which reports a searcher learns from, and which evaluations it is told to expect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sthyper.errors import closest
from sthyper.schedulers.hyperband.record import TrialInformation

__all__ = ["SEARCHER_DATA", "SearcherDataRules", "SearcherFeed"]

SEARCHER_DATA = ("rungs", "all", "rungs_and_last")


class SearcherDataRules:
    """The rules that ``searcher_data`` and ``register_pending_myopic`` stand for.

    Args:
        searcher_data: ``"rungs"``: the searcher learns from reports at rung levels (of all brackets) and at the
            maximum. ``"all"``: from every report. ``"rungs_and_last"``: from those of ``"rungs"`` and the newest one
            of a trial beside them.
        myopic: Whether only the next report of a trial is pending, instead of all up to its milestone.
        rung_levels: Rung levels.
        max_t: Maximum resource.

    Attributes:
        learns_all: Whether the searcher learns from every report.
        removes: Whether what it learnt beside ``lasting`` levels is removed when the trial reports again.
        lasting: The rung levels and the maximum.

    Raises:
        ValueError: If ``searcher_data`` is unknown, or ``myopic`` is given together with ``"rungs"``.
        TypeError: If ``myopic`` is no bool.
    """

    def __init__(self, searcher_data: str, myopic: bool, rung_levels: Sequence[int], max_t: int) -> None:
        if not isinstance(searcher_data, str) or searcher_data not in SEARCHER_DATA:
            raise ValueError(
                f"searcher_data must be one of {list(SEARCHER_DATA)}, got {searcher_data!r}"
                f"{closest(searcher_data, SEARCHER_DATA)}"
            )
        if not isinstance(myopic, bool):
            raise TypeError(f"register_pending_myopic must be True or False, got {myopic!r}")
        if myopic and searcher_data == "rungs":
            raise ValueError(
                "register_pending_myopic=True needs searcher_data='all' or 'rungs_and_last': with "
                "searcher_data='rungs' the next milestone alone is pending anyway"
            )
        self.searcher_data = searcher_data
        self.myopic = myopic
        self.learns_all = searcher_data != "rungs"
        self.removes = searcher_data == "rungs_and_last"
        self.lasting = (*rung_levels, max_t)

    def pending(self, reached: int, milestone: int) -> Iterable[int]:
        """Return the levels that are pending for a trial that has reached one and runs to another."""
        if not self.learns_all:
            return (milestone,)
        return (reached + 1,) if self.myopic else range(reached + 1, milestone + 1)


class SearcherFeed:
    """Tells the searcher about reports and pending evaluations, as the rules want it.

    Args:
        rules: The rules.
        tell: Calls a method of the searcher by its name.
    """

    def __init__(self, rules: SearcherDataRules, tell: Callable[..., None]) -> None:
        self._rules = rules
        self._always = frozenset(rules.lasting)
        self._learns_all = rules.learns_all
        self._tell = tell

    def report(self, trial_id: int, record: TrialInformation, result: dict[str, Any]) -> None:
        """Pass on a report at ``record.resource``, which counted."""
        resource = record.resource
        update = lasts = resource in self._always
        if update or self._learns_all:
            update = True
            record.updated = resource
            if self._rules.removes:
                if record.temporary is not None:
                    self._tell("remove_case", trial_id, record.temporary)
                record.temporary = None if lasts else resource
        self._tell("on_trial_result", trial_id, record.searcher_config, result, update)

    def last_report(self, trial_id: int, record: TrialInformation, result: dict[str, Any]) -> None:
        """Pass on the last report of a completed trial, unless the searcher has learnt from it."""
        if record.resource > record.updated:
            record.updated = record.resource
            self._tell("on_trial_result", trial_id, record.searcher_config, result, True)

    def pending(self, trial_id: int, record: TrialInformation, reached: int) -> None:
        """Announce the reports of a trial that has reached a level and goes on to its milestone."""
        for level in self._rules.pending(reached, record.milestone):
            self._tell("register_pending", trial_id, record.searcher_config, level)
