"""Goes on with an experiment whose tuner has ended: its record is gone through once more, by the code that wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._tuning.following import follow
from sthyper._tuning.reattach import reattach
from sthyper.backend.base import EndEvent, ReportEvent
from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentJournal
from sthyper.report import encode_floats
from sthyper.trial import SchedulerDecision, Status

if TYPE_CHECKING:
    from sthyper._tuning.loop import TuningLoop

__all__ = ["AnyJournal", "MadeLines", "RecordedJournal", "recall", "replay"]

logger = logging.getLogger(__name__)

# What the decisions of the tuner do not depend on.
_PASSED_OVER = frozenset({"journal", "metadata", "session", "process", "extra", "supervisor_lost", "end"})
_TIMES = frozenset({"time", "tuner_time"})


class MadeLines:
    """Collects lines that follow from a record and are not in it, where nothing must be written.

    Args:
        path: The journal.

    Attributes:
        lines: What was appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def append(self, record: dict[str, Any]) -> None:
        """Keep a line."""
        self.lines.append(record)


class RecordedJournal:
    """Stands for the journal while recorded lines are gone through: what is appended must be what is recorded.

    Behind the last recorded line it writes. So a decision that was never written down is made and written down now.

    Args:
        journal: The experiment's journal.
        records: What it holds already, from ``first_line`` on.
        first_line: Number of the first of them in the file.
        began: Seconds that the tuner had run before them.
    """

    def __init__(
        self,
        journal: ExperimentJournal | MadeLines,
        records: Iterable[dict[str, Any]],
        first_line: int = 1,
        began: float = 0.0,
    ) -> None:
        self._journal = journal
        self._rest = _decisive(records, first_line)
        self._next: dict[str, Any] | None = None
        self._line, self._last_line = 0, first_line - 1
        self._last_time = began
        self._look_ahead()

    def _look_ahead(self) -> None:
        self._line, self._next = next(self._rest, (0, None))

    @property
    def path(self) -> Path:
        """The journal."""
        return self._journal.path

    def peek(self) -> dict[str, Any] | None:
        """Return the next line, ``None`` behind the last."""
        return self._next

    @property
    def line(self) -> int:
        """Number of the next line in the file, 0 behind the last."""
        return self._line

    @property
    def last_line(self) -> int:
        """Number of the line that was gone through last."""
        return self._last_line

    def close(self) -> None:
        """Read no further."""
        self._rest.close()

    def append(self, record: dict[str, Any]) -> None:
        """Compare with the next recorded line, or write.

        Raises:
            ExperimentError: If the lines differ.
        """
        recorded = self._next
        if recorded is None:
            self._journal.append(record)
            return
        if not _agree(record, recorded):
            raise ExperimentError(
                f"{self._journal.path}, line {self.line}: the experiment cannot be gone through once more. Recorded is "
                f"{_comparable(recorded)}, now it is {_comparable(record)}. Scheduler, searcher and backend must be "
                "made with the same arguments as before, or Tuner.resume(..., force=True) takes a fresh scheduler that "
                "has learnt from all results so far"
            )
        self._last_time = recorded.get("tuner_time", self._last_time)
        self._last_line = self._line
        self._look_ahead()

    def start_time(self) -> datetime | None:
        """Return when the trial was started whose start is the next line, ``None`` behind the last."""
        recorded = self.peek()
        if recorded is None or "time" not in recorded:
            return None
        return datetime.fromtimestamp(recorded["time"])

    def time(self) -> float:
        """Return the recorded time of the next line, or of the last one that has one."""
        recorded = self.peek()
        return self._last_time if recorded is None else recorded.get("tuner_time", self._last_time)


AnyJournal = ExperimentJournal | RecordedJournal | MadeLines
"""Where the event loop writes: to the record, beside it, or nowhere but to a list."""


def recall(
    loop: TuningLoop,
    records: Iterable[dict[str, Any]],
    first_line: int = 1,
    began: float = 0.0,
    made: Iterable[dict[str, Any]] = (),
) -> None:
    """Bring an experiment to where its record ends, and make ready what ran then; see :func:`replay`."""
    replay(loop, records, first_line, began, made)
    _pick_up(loop)


def replay(
    loop: TuningLoop,
    records: Iterable[dict[str, Any]],
    first_line: int = 1,
    began: float = 0.0,
    made: Iterable[dict[str, Any]] = (),
) -> None:
    """Bring an experiment to where its record ends.

    Callbacks are not told, and nothing is started, ended or answered. The states of scheduler, searcher and statistics
    are then those of the tuner that wrote the record.

    Args:
        loop: The event loop. What follows from the record and is missing there goes into its journal.
        records: The lines of the journal, from ``first_line`` on; the loop's state is that before them. They may be
            gone through more than once.
        first_line: Number of the first of them.
        began: Seconds that the tuner had run before them.
        made: Lines that follow from those before, and that were made already when the loop got its state.

    Raises:
        ExperimentError: If scheduler or searcher decide otherwise than is recorded.
    """
    state = loop.state
    journal = state.journal
    assert not isinstance(journal, RecordedJournal)
    recorded = RecordedJournal(journal, records, first_line, began)
    news = None
    callbacks, progress, clock = state.callbacks, state.progress, state.clock
    state.journal = state.recorded = recorded
    state.callbacks, state.progress, state.clock = (), None, recorded.time
    state.backend.recalling = True
    try:
        with _quiet():
            for already in made:
                recorded.append(already)
            news = follow(loop, recorded, records, first_line, _do_again)
            while (line := recorded.peek()) is not None:
                _do_again(loop, line, recorded)
        state.steering.recalled()
    finally:
        recorded.close()
        state.backend.recalling = False
        state.journal, state.recorded = journal, None
        state.callbacks, state.progress, state.clock = callbacks, progress, clock
    if news is not None:
        logger.warning("%s", news)


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
        loop.state.steering.recall(line, recorded)
    elif kind in ("ask", "suggestion", "start", "resume"):
        done = loop.suggestions.recall(line)
    else:
        done = False
    if not done:
        raise ExperimentError(
            f"line {number} of the journal does not follow from the lines before it: {_comparable(line)}"
        )


def _pick_up(loop: TuningLoop) -> None:
    """See to the trials that ran when the record ends: orders count as carried out, others run again.

    Over a backend whose trials outlive the tuner they go on instead.
    """
    state = loop.state
    going_on = reattach(state) if state.backend.outlives_tuner else 0
    for trial_id, record in () if going_on else state.records.items():
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
    loop.go_on(again)
    logger.info(
        "the experiment goes on: %d trials so far, %d of them run again, %d may be running still",
        len(state.records),
        len(again),
        going_on,
    )


def _decisive(records: Iterable[dict[str, Any]], first_line: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Yield the lines on which the decisions of the tuner depend, with their numbers."""
    for number, record in enumerate(records, start=first_line):
        if record["type"] not in _PASSED_OVER:
            yield number, record


def _agree(made: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether two lines are the same but for their times."""
    pair = dict(made), dict(recorded)
    for record in pair:
        for name in _TIMES:
            record.pop(name, None)
    # What equals something that was read from JSON has the same JSON form. The reverse does not hold (tuples, NaN, keys
    # that are no strings), but to make that form is costly.
    return pair[0] == pair[1] or bool(_comparable(made) == _comparable(recorded))


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
