"""What is known of an experiment that goes on: its newest good snapshot, and the lines of the journal after it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sthyper._tuning.snapshots import read_snapshots
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.errors import ExperimentError
from sthyper.journal import JournalPosition, read_journal_from

__all__ = ["JournalDigest", "Past", "Snapshot", "read_past"]

logger = logging.getLogger(__name__)

# Lines that are needed whatever a snapshot says: who ran the experiment, and which processes there were.
_KEPT = (b'"session"', b'"process"')


class JournalDigest:
    """A checksum of the first part of a journal, which grows with it.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.blake2b(digest_size=32)
        self.position = JournalPosition()

    def advance(self, offset: int, look: Callable[[bytes], None] | None = None) -> bool:
        """Take in the lines up to a position; ``False`` if the file is shorter.

        Args:
            offset: The position.
            look: Called with each line.
        """
        at, lines, last = self.position
        with open(self._path, "rb") as file:
            file.seek(at)
            while at < offset and (line := file.readline()):
                at += len(line)
                self._hash.update(line)
                lines, last = lines + 1, line
                if look is not None:
                    look(line)
        self.position = JournalPosition(at, lines, last)
        return at == offset

    def hexdigest(self) -> str:
        """Return the checksum of all up to :attr:`position`."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """The state of an experiment at a line of its journal.

    Args:
        path: The file.
        position: The line.
        tuner_time: Seconds that the tuner had run.
        experiment: States of the parts that follow from the journal.
        beside: States of the criterion and the callbacks, which do not.
    """

    path: Path
    position: JournalPosition
    tuner_time: float
    experiment: dict[str, Any]
    beside: dict[str, Any]


@dataclass
class Past:
    """What a resumed tuner begins with.

    Args:
        folder: The experiment's folder.
        snapshot: Where it begins, ``None`` for the beginning of the journal.
        records: The lines after that.
        kept: Lines before it that say who ran the experiment, and which processes there were.
        end: Where the lines end.
        strict: Whether a damaged line is an error; otherwise the record ends before it.
    """

    folder: Path
    snapshot: Snapshot | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    end: JournalPosition = field(default_factory=JournalPosition)
    strict: bool = True

    @property
    def first_line(self) -> int:
        """Number of the first line of :attr:`records` in the journal."""
        return 1 if self.snapshot is None else self.snapshot.position.lines + 1

    @property
    def began(self) -> float:
        """Seconds that the tuner had run before :attr:`records`."""
        return 0.0 if self.snapshot is None else self.snapshot.tuner_time

    @property
    def tuner_time(self) -> float:
        """Seconds that the tuner ran, all sessions together."""
        return max([self.began, *(r["tuner_time"] for r in self.records if "tuner_time" in r)])

    def forget(self) -> None:
        """Drop the lines, which may be many."""
        self.records, self.kept = [], []

    def read_on(self) -> list[dict[str, Any]]:
        """Take in what was written meanwhile, and return it.

        Raises:
            ExperimentError: If the journal has become shorter.
        """
        path = self.folder / ST_JOURNAL_FILENAME
        if path.stat().st_size < self.end.offset:
            raise ExperimentError(f"{path} was cut while it was looked at; load the experiment again")
        new = list(read_journal_from(path, self.end, self.strict))
        if new:
            self.end = new[-1][1]
        records = [record for record, _ in new]
        self.records += records
        return records


def read_past(folder: Path, made_with: Any, strict: bool = True) -> Past:
    """Return what is known of an experiment.

    Of the snapshots the newest is taken that is whole, was taken of an experiment made alike, and whose journal is
    the one that is there; else the whole journal.

    Args:
        folder: The experiment's folder.
        made_with: Describes the parts on which its states depend; ``None`` does without snapshots.
        strict: Whether a damaged line of the journal is an error; otherwise the record ends before it.

    Raises:
        DamagedJournal: If a line cannot be read.
        FileNotFoundError: If there is no journal.
    """
    for path, content in () if made_with is None else read_snapshots(folder):
        past = Past(folder, strict=strict)
        reason = _use(past, path, content, made_with)
        if reason is None:
            past.read_on()
            if not any(record["type"] == "fresh" for record in past.records):
                return past
            reason = "the experiment went on with another scheduler later"
        logger.warning("%s is not used: %s", path, reason)
    past = Past(folder, strict=strict)
    past.read_on()
    return past


def _use(past: Past, path: Path, content: dict[str, Any], made_with: Any) -> str | None:
    """Begin with a snapshot, or return why not."""
    try:
        if content["made_with"] != json.loads(json.dumps(made_with)):
            return "scheduler or backend were made with other arguments, or by another version of sthyper"
        digest = JournalDigest(past.folder / ST_JOURNAL_FILENAME)

        def look(line: bytes) -> None:
            if any(kind in line for kind in _KEPT):
                past.kept.append(json.loads(line))

        try:
            whole = digest.advance(content["offset"], look)
        except ValueError:
            whole = False
        if not whole or digest.hexdigest() != content["journal"]:
            return f"{ST_JOURNAL_FILENAME} is not the one of which it was taken"
        past.end = digest.position
        past.snapshot = Snapshot(path, digest.position, content["tuner_time"], content["experiment"], content["beside"])
    except (KeyError, TypeError, AttributeError) as error:
        return f"it lacks what belongs there: {error!r}"
    return None
