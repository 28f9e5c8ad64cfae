"""Goes on with an experiment whose tuner has ended: its record is gone through once more, by the code that wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sthyper.backend.base import EndEvent, ReportEvent
from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentJournal
from sthyper.report import encode_floats
from sthyper.trial import SchedulerDecision, Status

if TYPE_CHECKING:
    from sthyper._tuning.loop import TuningLoop

__all__ = ["RecordedJournal", "recall"]

logger = logging.getLogger(__name__)

# What the decisions of the tuner do not depend on.
_PASSED_OVER = frozenset({"journal", "metadata", "session", "process", "extra", "supervisor_lost", "end"})
_TIMES = frozenset({"time", "tuner_time"})


class RecordedJournal:
    """Stands for the journal while recorded lines are gone through: what is appended must be what is recorded.

    Behind the last recorded line it writes. So a decision that was never written down is made and written down now.

    Args:
        journal: The experiment's journal.
        records: What it holds already.
    """

    def __init__(self, journal: ExperimentJournal, records: Iterable[dict[str, Any]]) -> None:
        self._journal = journal
        self._records = [(n, r) for n, r in enumerate(records, start=1) if r["type"] not in _PASSED_OVER]
        self._next = 0
        self._last_time = 0.0

    def peek(self) -> dict[str, Any] | None:
        """Return the next line, ``None`` behind the last."""
        return self._records[self._next][1] if self._next < len(self._records) else None

    @property
    def line(self) -> int:
        """Number of the next line in the file."""
        return self._records[self._next][0]

    def append(self, record: dict[str, Any]) -> None:
        """Compare with the next recorded line, or write.

        Raises:
            ExperimentError: If the lines differ.
        """
        recorded = self.peek()
        if recorded is None:
            self._journal.append(record)
            return
        if _comparable(record) != _comparable(recorded):
            raise ExperimentError(
                f"{self._journal.path}, line {self.line}: the experiment cannot be gone through once more. Recorded is "
                f"{_comparable(recorded)}, now it is {_comparable(record)}. Scheduler, searcher and backend must be "
                "made with the same arguments as before"
            )
        self._last_time = self.time()
        self._next += 1

    def time(self) -> float:
        """Return the recorded time of the next line, or of the last one that has one."""
        recorded = self.peek()
        return self._last_time if recorded is None else recorded.get("tuner_time", self._last_time)


def recall(loop: TuningLoop, records: Iterable[dict[str, Any]]) -> None:
    """Bring an experiment to where its record ends, and make ready what ran then.

    Callbacks are not told, and nothing is started, ended or answered. The states of scheduler, searcher and statistics
    are then those of the tuner that wrote the record.

    Args:
        loop: The event loop, its journal open.
        records: The lines of the journal.

    Raises:
        ExperimentError: If scheduler or searcher decide otherwise than is recorded.
    """
    state = loop.state
    journal = state.journal
    assert isinstance(journal, ExperimentJournal)
    recorded = RecordedJournal(journal, records)
    callbacks, progress, clock = state.callbacks, state.progress, state.clock
    state.journal = state.recorded = recorded
    state.callbacks, state.progress, state.clock = (), None, recorded.time
    state.backend.recalling = True
    try:
        with _quiet():
            while (line := recorded.peek()) is not None:
                _do_again(loop, line, recorded)
    finally:
        state.backend.recalling = False
        state.journal, state.recorded = journal, None
        state.callbacks, state.progress, state.clock = callbacks, progress, clock
        state.forget_news()
    _pick_up(loop)


def _do_again(loop: TuningLoop, line: dict[str, Any], recorded: RecordedJournal) -> None:
    """Do what one line says was done; the lines that follow from it are compared on the way."""
    kind, number = line["type"], recorded.line
    done = True
    if kind == "report":
        loop.handle(ReportEvent(line["trial_id"], line["run"], line["metrics"], line["client"], line["seq"]))
    elif kind == "status":
        event = EndEvent(line["trial_id"], line["run"], Status(line["status"]), line["reason"], line["exit_code"])
        loop.state.backend.recall_end(event)
        loop.handle(event)
    elif kind in ("enqueue", "added_result"):
        loop.state.steering.recall(line)
        loop.state.steering.take_in(recorded)
    elif kind in ("ask", "suggestion", "start", "resume"):
        done = loop.suggestions.recall(line)
    else:
        done = False
    if not done:
        raise ExperimentError(
            f"line {number} of the journal does not follow from the lines before it: {_comparable(line)}"
        )


def _pick_up(loop: TuningLoop) -> None:
    """See to the trials that ran when the record ends: orders count as carried out, others run again."""
    state = loop.state
    for trial_id, record in state.records.items():
        if not record.busy:
            continue
        if record.order is None:
            event = EndEvent(trial_id, record.run, Status.failed, "tuner_lost")
        else:
            paused = record.order == SchedulerDecision.PAUSE
            event = EndEvent(trial_id, record.run, Status.paused if paused else Status.stopped)
        state.backend.recall_end(event)
        loop.handle(event)
    again = [(record, record.owed) for record in state.records.values() if record.owed is not None]
    loop.suggestions.go_on(again)
    loop.forgive_failures()
    logger.info("resumed: %d trials so far, %d of them are run again", len(state.records), len(again))


def _comparable(record: dict[str, Any]) -> Any:
    record = {k: encode_floats(v) for k, v in record.items() if k not in _TIMES}
    return json.loads(json.dumps(record))


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of what was said before."""
    own = logging.getLogger("sthyper._tuning")
    level = own.level
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.setLevel(level)
