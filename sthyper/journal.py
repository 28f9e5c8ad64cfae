"""The append-only record of one experiment: everything else (tables, plots, resume) is a view of it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sthyper._lock import ExperimentLock
from sthyper._syncing import sync_folder
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.report import decode_floats, encode_floats

__all__ = [
    "JOURNAL_VERSION",
    "DamagedJournal",
    "ExperimentJournal",
    "ExperimentLock",
    "JournalPosition",
    "cut_damage",
    "read_journal",
    "read_journal_from",
    "was_cut",
    "write_atomically",
    "write_journal",
]

logger = logging.getLogger(__name__)

JOURNAL_VERSION = 1
SYNC_INTERVAL = 0.2
"""Seconds that a line may wait for its sync to disk; ``kill -9`` loses nothing before either."""


class JournalPosition(NamedTuple):
    """A place between two lines of a journal.

    Args:
        offset: Number of bytes before it.
        lines: Number of lines before it.
        last: The line before it.
    """

    offset: int = 0
    lines: int = 0
    last: bytes = b""


class ExperimentJournal:
    """Writes one JSON object a line; a line is in the operating system's hands when :meth:`append` returns.

    Syncs to disk, which matter after a power loss only, are grouped in a thread. A last line that was torn when its
    writer was killed is cut off before anything is appended; nothing else is ever cut or replaced.

    Args:
        path: The file, or the experiment's folder.
        sync: ``"group"``: at most 0.2 s late; ``"always"``: :meth:`append` waits for the sync.
        block_size: Number of bytes that are collected before they are written; 0 writes every line at once. For
            simulations, which cost nothing to repeat.
        guard: Called before each write; what it raises keeps the line from being written.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: For an unknown ``sync``, a negative ``block_size``, or a file that a newer version wrote or that is
            no journal.

    Attributes:
        keep_trying: Calls the function that it is given, which writes; may call it again when that raises ``OSError``.
    """

    def __init__(
        self,
        path: str | Path,
        sync: str = "group",
        block_size: int = 0,
        guard: Callable[[], None] | None = None,
    ) -> None:
        if sync not in ("group", "always"):
            raise ValueError(f"sync must be 'group' or 'always', got {sync!r}")
        if block_size < 0:
            raise ValueError(f"block_size must be >= 0 bytes, got {block_size}")
        self.path = _journal_file(path)
        self.keep_trying: Callable[[Callable[[], None]], None] = lambda step: step()
        self._broken = False
        self._sync = sync
        self._block_size = block_size
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._guard = guard or (lambda: None)
        self._cut_torn_line()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._end = os.fstat(self._fd).st_size
        self._torn = 0
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._sync_error: OSError | None = None
        self._thread: threading.Thread | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; ``record["metrics"]`` and ``record["values"]`` may hold NaN and infinities.

        Raises:
            OSError: If the line could not be written; the file then ends with the line before, for good: what follows
                from a line that is missing is not written either.
        """
        line = _line(record)
        if self._block_size:
            self._block.append(line)
            self._block_bytes += len(line)
            if self._block_bytes >= self._block_size:
                self.flush()
            return
        self._put(line)

    @property
    def size(self) -> int:
        """Number of bytes of all lines that are in the operating system's hands."""
        return self._end

    def flush(self) -> None:
        """Write what :meth:`append` has collected."""
        if self._block:
            data = b"".join(self._block)
            self._put(data)
            self._block, self._block_bytes = [], 0

    def close(self) -> None:
        """Write, sync and close; may be called twice."""
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            self._closing.set()
            self._dirty.set()
            if self._thread is not None:
                self._thread.join()
            try:
                os.fsync(self._fd)
            except OSError as error:
                logger.warning("%s could not be synced to disk: %s", self.path, error)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ExperimentJournal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _put(self, data: bytes) -> None:
        if self._broken:
            self._guard()  # it says better why
            raise OSError(errno.EIO, "a line before could not be written, the record ends there", str(self.path))
        try:
            self.keep_trying(lambda: self._write(data))
        except BaseException:
            self._broken = True
            raise

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            raise ValueError(f"journal {self.path} is closed")
        self._guard()
        done = 0
        try:
            self._mend()
            while done < len(data):
                done += os.write(self._fd, data[done:])
            if self._sync == "always":
                os.fsync(self._fd)
        except OSError as error:
            # A short write (disk full) must not leave half a line for the next one to be glued to.
            self._torn += done
            with contextlib.suppress(OSError):
                self._truncate()
            raise type(error)(error.errno, error.strerror, str(self.path)) from None
        self._end += len(data)
        if self._sync == "group":
            if self._thread is None:
                self._thread = threading.Thread(target=self._sync_loop, name="sthyper-journal-sync", daemon=True)
                self._thread.start()
            self._dirty.set()

    def _mend(self) -> None:
        """Set right what an earlier write or sync has failed to do; raise if it cannot be."""
        self._truncate()
        if self._sync_error is not None:
            os.fsync(self._fd)
            self._sync_error = None

    def _truncate(self) -> None:
        if self._torn:
            os.ftruncate(self._fd, self._end)
            self._torn = 0

    def _sync_loop(self) -> None:
        while True:
            self._dirty.wait()
            # Before the look at `_closing`: cleared after it, the last wake-up of close() could be lost.
            self._dirty.clear()
            if self._closing.wait(SYNC_INTERVAL):
                return
            try:
                os.fsync(self._fd)
            except OSError as error:
                # The next line is not written before this has been made good.
                self._sync_error = error

    def _cut_torn_line(self) -> None:
        """Cut off a last line that is not whole, in a file that this version may append to."""
        try:
            with open(self.path, "rb+") as file:
                first = file.readline()
                if first.endswith(b"\n"):
                    _parse(first, self.path, 1)
                size = file.seek(0, os.SEEK_END)
                position = size
                while position > 0:
                    step = min(4096, position)
                    file.seek(position - step)
                    newline = file.read(step).rfind(b"\n")
                    if newline >= 0:
                        position = position - step + newline + 1
                        break
                    position -= step
                if position < size:
                    file.truncate(position)
                    torn = size - position
                    logger.info("%s: a last line of %d bytes that was never whole is cut off", self.path, torn)
        except FileNotFoundError:
            pass


def read_journal(path: str | Path, strict: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal in order; a torn last line is passed over.

    A line that is there twice in a row counts once: no two events have the same line.

    Args:
        path: The file, or the experiment's folder. It may be read while it grows.
        strict: Whether a damaged line is an error; otherwise the records before it are all, and a warning names it.

    Raises:
        FileNotFoundError: If there is no journal.
        DamagedJournal: If a line is damaged; names it. A ``ValueError``.
        ValueError: If a newer version wrote the file.
    """
    for record, _ in read_journal_from(path, JournalPosition(), strict):
        yield record


def read_journal_from(
    path: str | Path, position: JournalPosition, strict: bool = True
) -> Iterator[tuple[dict[str, Any], JournalPosition]]:
    """Yield the records behind a position, each with the position behind it; see :func:`read_journal`.

    Args:
        path: The file, or the experiment's folder.
        position: Where to begin.
        strict: See :func:`read_journal`.
    """
    try:
        yield from _read(_journal_file(path), position)
    except DamagedJournal as damage:
        if strict:
            raise
        logger.warning("%s; what comes before is shown", damage)


def cut_damage(path: str | Path) -> Path | None:
    """Let a damaged journal end before its first damaged line. The whole file is kept beside it, under another name.

    Args:
        path: The file, or the experiment's folder. Nobody may write it meanwhile.

    Returns:
        Where the whole file is kept; ``None`` if the journal was not damaged.

    Raises:
        DamagedJournal: If the first line is damaged already.
        FileNotFoundError: If there is no journal.
        OSError: If the folder cannot be written.
        ValueError: If a newer version wrote the file.
    """
    path = _journal_file(path)
    end = 0
    try:
        for _, behind in _read(path, JournalPosition()):
            end = behind.offset
    except DamagedJournal as damage:
        if end == 0:
            raise
        n = 0
        while (kept := path.with_name(f"{path.name}.damaged-{n}")).exists():
            n += 1
        try:
            with open(path, "rb") as source, open(kept, "xb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        except OSError:
            kept.unlink(missing_ok=True)  # half a copy helps nobody, and takes room
            raise
        os.truncate(path, end)
        logger.warning("%s; the record ends before it now, the whole file is kept as %s", damage, kept)
        return kept
    return None


def was_cut(path: str | Path) -> bool:
    """Whether :func:`cut_damage` has ever cut something off a journal: trials may be ahead of it then.

    Args:
        path: The journal or its folder.
    """
    return _journal_file(path).with_name(f"{ST_JOURNAL_FILENAME}.damaged-0").exists()


def _read(path: Path, position: JournalPosition) -> Iterator[tuple[dict[str, Any], JournalPosition]]:
    """Yield the records of a journal, each with the position behind its line."""
    offset, before, last = position
    with open(path, "rb") as file:
        file.seek(offset)
        for number, line in enumerate(file, start=before + 1):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line != last:
                last = line
                yield _parse(line, path, number), JournalPosition(offset, number, line)


class DamagedJournal(ValueError):
    """A line of a journal cannot be read; says which."""


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Return the record of a line.

    Raises:
        ValueError: If it is damaged, or says that a newer version wrote the file.
    """
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("type"), str):
            raise ValueError("it is no record")
        for key in ("metrics", "values"):
            if key in record:
                if not isinstance(record[key], dict):
                    raise ValueError(f"its {key} are no object")
                record[key] = decode_floats(record[key])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = "it holds zeros, as after a power loss" if b"\0" in line else error
        raise DamagedJournal(f"{path}, line {number} is damaged: {reason}") from None
    version = record.get("version")
    if record["type"] == "journal" and version != JOURNAL_VERSION:
        if not isinstance(version, int) or version < 1:
            raise DamagedJournal(f"{path}, line {number} is damaged: {version!r} is no format version")
        raise ValueError(
            f"{path} has format version {version}; this version of sthyper reads up to {JOURNAL_VERSION}: upgrade "
            "sthyper"
        )
    if number == 1 and record["type"] != "journal":
        raise DamagedJournal(f"{path}, line 1 is damaged: a journal begins with a line of type 'journal'")
    return record


def _line(record: dict[str, Any]) -> bytes:
    for key in ("metrics", "values"):
        if key in record:
            record = {**record, key: encode_floats(record[key])}
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write_journal(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a new journal, which is there with all these records or not at all; one that is there is replaced.

    Args:
        path: The file, or the experiment's folder.
        records: The records.

    Raises:
        OSError: If it cannot be written.
    """
    path = _journal_file(path)
    write_atomically(path, b"".join(map(_line, records)).decode(), mode=0o644)
    sync_folder(path.parent)


def _journal_file(path: str | Path) -> Path:
    path = Path(path)
    return path / ST_JOURNAL_FILENAME if path.is_dir() else path


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file so that readers see the old content or the new one, never half of it.

    Args:
        path: The file.
        text: Its content.
        mode: Permissions, before the umask.

    Raises:
        OSError: If it cannot be written; the old content then stays. Names the file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from None
