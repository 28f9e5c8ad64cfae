"""Trials that went on while there was no tuner: the resumed one takes them up again."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sthyper._tuning.state import ExperimentState
from sthyper._tuning.trial_record import TrialRecord
from sthyper.backend.base import RunningTrial
from sthyper.journal import ExperimentJournal, read_journal
from sthyper.trial import SchedulerDecision, Status

__all__ = ["reattach"]

logger = logging.getLogger(__name__)

_ORDERS = {SchedulerDecision.STOP: Status.stopped, SchedulerDecision.PAUSE: Status.paused}


def reattach(state: ExperimentState) -> int:
    """Hand the backend the runs that may still be going on; return how many there are.

    They stay busy. A report that is sent again gets the answer that the journal holds; it was counted then.

    Args:
        state: The experiment, its backend one whose trials outlive the tuner, its journal written up to here.
    """
    running = [record for record in state.records.values() if record.busy]
    if not running:
        return 0
    assert isinstance(state.journal, ExperimentJournal)
    for run in _running(state.journal, running):
        state.backend.reattach(run)
    return len(running)


def _running(journal: ExperimentJournal, records: Iterable[TrialRecord]) -> list[RunningTrial]:
    """Return what the journal tells of runs."""
    runs = {(record.trial.trial_id, record.run): record for record in records}
    answers: dict[tuple[int, int], dict[str, dict[int, str]]] = {key: {} for key in runs}
    places: dict[tuple[int, int], dict[str, object]] = {}
    for line in read_journal(journal.path):
        kind = line["type"]
        if kind not in ("decision", "process") or (key := (line["trial_id"], line["run"])) not in runs:
            continue
        if kind == "process":
            places[key] = {name: v for name, v in line.items() if name not in ("type", "trial_id", "run")}
        else:
            answers[key].setdefault(line["client"], {})[line["seq"]] = line["decision"]
    return [
        RunningTrial(
            *key,
            place=places.get(key),
            answers={client: _in_order(given) for client, given in answers[key].items()},
            order=None if record.order is None else _ORDERS[record.order],
        )
        for key, record in runs.items()
    ]


def _in_order(given: dict[int, str]) -> list[str]:
    """Return answers in the order of the reports; what follows a report without one was not heard by anybody."""
    result: list[str] = []
    while (decision := given.get(len(result))) is not None:
        result.append(decision)
    return result
