"""The lines of a journal, which may be millions: they are read anew each time that they are gone through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sthyper.errors import ExperimentError
from sthyper.journal import JournalPosition, read_journal_from

__all__ = ["JournalLines", "cut_meanwhile", "of_types"]


class JournalLines:
    """The records between two places of a journal; none of them is held.

    Args:
        path: The file.
        begin: The place before the first.
        end: The place behind the last; ``None`` for the end that the file has when it is first read to its end.
        strict: Whether a damaged line is an error where ``end`` is not given; otherwise the record ends before it.
    """

    def __init__(
        self, path: Path, begin: JournalPosition, end: JournalPosition | None = None, strict: bool = True
    ) -> None:
        self._path = path
        self._begin = begin
        self._end = end
        self._strict = strict

    @property
    def first_line(self) -> int:
        """Number of the first line in the file."""
        return self._begin.lines + 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records.

        Raises:
            DamagedJournal: If a line cannot be read.
            ExperimentError: If the file is not any more what it was.
        """
        position = self._begin
        if self._end is None:
            for record, behind in read_journal_from(self._path, self._begin, self._strict):
                position = behind
                yield record
            self._end = position
            return
        if position.offset < self._end.offset:
            for record, position in read_journal_from(self._path, self._begin):
                yield record
                if position.offset >= self._end.offset:
                    break
        if position != self._end:
            raise cut_meanwhile(self._path)

    def of_types(self, *types: str) -> Iterator[dict[str, Any]]:
        """Yield the records of some types; the other lines are not parsed.

        Args:
            types: The types.
        """
        if self._end is None:
            yield from (record for record in self if record["type"] in types)
            return
        named = re.compile(b'"(?:%s)"' % b"|".join(re.escape(name.encode()) for name in types))
        offset, _, last = self._begin
        with open(self._path, "rb") as file:
            file.seek(offset)
            while offset < self._end.offset:
                line = file.readline()
                if not line:
                    raise cut_meanwhile(self._path)
                offset += len(line)
                if line != last and named.search(line) and (record := json.loads(line))["type"] in types:
                    yield record
                last = line


def of_types(records: Iterable[dict[str, Any]], *types: str) -> Iterator[dict[str, Any]]:
    """Yield the records of some types.

    Args:
        records: Lines of a journal.
        types: The types.
    """
    if isinstance(records, JournalLines):
        return records.of_types(*types)
    return (record for record in records if record["type"] in types)


def cut_meanwhile(path: Path) -> ExperimentError:
    """Return the error for a journal that is not any more what it was."""
    return ExperimentError(f"{path} was cut while it was looked at; load the experiment again")
