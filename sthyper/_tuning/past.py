"""What is known of an experiment that goes on: its newest good snapshot, and where the journal ends."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sthyper._tuning.lines import JournalLines, cut_meanwhile, of_types
from sthyper._tuning.snapshots import read_snapshots
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.journal import JournalPosition, read_journal_from

__all__ = ["JournalDigest", "Past", "Snapshot", "read_past"]

logger = logging.getLogger(__name__)


class JournalDigest:
    """A checksum of the first part of a journal, which grows with it.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.blake2b(digest_size=32)
        self.position = JournalPosition()

    def advance(self, offset: int) -> bool:
        """Take in the lines up to a position; ``False`` if the file is shorter."""
        at, lines, last = self.position
        with open(self._path, "rb") as file:
            file.seek(at)
            while at < offset and (line := file.readline()):
                at += len(line)
                self._hash.update(line)
                lines, last = lines + 1, line
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
    """What a resumed tuner begins with. The lines stay in the journal, there may be millions of them.

    Args:
        folder: The experiment's folder.
        snapshot: Where it begins, ``None`` for the beginning of the journal.
        end: Where the lines end that were looked at.
        strict: Whether a damaged line is an error; otherwise the record ends before it.

    Attributes:
        tuner_time: Seconds that the tuner ran, all sessions together.
    """

    folder: Path
    snapshot: Snapshot | None = None
    end: JournalPosition = field(default_factory=JournalPosition)
    strict: bool = True

    def __post_init__(self) -> None:
        self.tuner_time = self.began

    @property
    def path(self) -> Path:
        """The journal."""
        return self.folder / ST_JOURNAL_FILENAME

    @property
    def records(self) -> JournalLines:
        """The lines behind the snapshot."""
        return JournalLines(self.path, JournalPosition() if self.snapshot is None else self.snapshot.position, self.end)

    @property
    def began(self) -> float:
        """Seconds that the tuner had run before :attr:`records`."""
        return 0.0 if self.snapshot is None else self.snapshot.tuner_time

    def processes(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the whole journal that say who ran the experiment, and which processes there were."""
        return of_types(JournalLines(self.path, JournalPosition(), self.end), "session", "process")

    def read_on(self) -> JournalLines:
        """Look at what was written meanwhile, and return it.

        Raises:
            DamagedJournal: If a line cannot be read.
            ExperimentError: If the journal has become shorter.
        """
        if self.path.stat().st_size < self.end.offset:
            raise cut_meanwhile(self.path)
        end, tuner_time = self.end, self.tuner_time
        for record, behind in read_journal_from(self.path, self.end, self.strict):
            end = behind
            if "tuner_time" in record:
                tuner_time = max(tuner_time, record["tuner_time"])
        new = JournalLines(self.path, self.end, end)
        self.end, self.tuner_time = end, tuner_time
        return new


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
        snapshot = _snapshot(folder, path, content, made_with)
        if isinstance(snapshot, Snapshot):
            past = Past(folder, snapshot, snapshot.position, strict)
            past.read_on()
            if not any(of_types(past.records, "fresh")):
                return past
            snapshot = "the experiment went on with another scheduler later"
        logger.warning("%s is not used: %s", path, snapshot)
    past = Past(folder, strict=strict)
    past.read_on()
    return past


def _snapshot(folder: Path, path: Path, content: dict[str, Any], made_with: Any) -> Snapshot | str:
    """Return a snapshot to begin with, or why not."""
    try:
        if content["made_with"] != json.loads(json.dumps(made_with)):
            return "scheduler or backend were made with other arguments, or by another version of sthyper"
        digest = JournalDigest(folder / ST_JOURNAL_FILENAME)
        if not digest.advance(content["offset"]) or digest.hexdigest() != content["journal"]:
            return f"{ST_JOURNAL_FILENAME} is not the one of which it was taken"
        return Snapshot(path, digest.position, content["tuner_time"], content["experiment"], content["beside"])
    except (KeyError, TypeError, AttributeError) as error:
        return f"it lacks what belongs there: {error!r}"
