"""The append-only record of one experiment: everything else (tables, plots, resume) is a view of it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sthyper.constants import ST_JOURNAL_FILENAME, ST_LOCK_FILENAME
from sthyper.errors import ExperimentError
from sthyper.report import decode_floats, encode_floats

__all__ = ["JOURNAL_VERSION", "ExperimentJournal", "ExperimentLock", "read_journal", "write_atomically"]

JOURNAL_VERSION = 1
SYNC_INTERVAL = 0.2
"""Seconds that a line may wait for its sync to disk; ``kill -9`` loses nothing before either."""
HEARTBEAT_INTERVAL = 10.0


class ExperimentJournal:
    """Writes one JSON object a line; a line is in the operating system's hands when :meth:`append` returns.

    Syncs to disk, which matter after a power loss only, are grouped in a thread.

    Args:
        path: The file, or the experiment's folder.
        sync: ``"group"``: at most 0.2 s late; ``"always"``: :meth:`append` waits for the sync.
        block_size: Number of bytes that are collected before they are written; 0 writes every line at once. For
            simulations, which cost nothing to repeat.

    Raises:
        ValueError: For an unknown ``sync`` or a negative ``block_size``.
    """

    def __init__(self, path: str | Path, sync: str = "group", block_size: int = 0) -> None:
        if sync not in ("group", "always"):
            raise ValueError(f"sync must be 'group' or 'always', got {sync!r}")
        if block_size < 0:
            raise ValueError(f"block_size must be >= 0 bytes, got {block_size}")
        path = Path(path)
        self.path = path / ST_JOURNAL_FILENAME if path.is_dir() else path
        self._sync = sync
        self._block_size = block_size
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._cut_torn_line()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._end = os.fstat(self._fd).st_size
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; ``record["metrics"]`` and ``record["values"]`` may hold NaN and infinities.

        Raises:
            OSError: If the line could not be written; the file then ends with the line before.
        """
        for key in ("metrics", "values"):
            if key in record:
                record = {**record, key: encode_floats(record[key])}
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if self._block_size:
            self._block.append(line)
            self._block_bytes += len(line)
            if self._block_bytes >= self._block_size:
                self.flush()
            return
        self._write(line)

    def flush(self) -> None:
        """Write what :meth:`append` has collected."""
        if self._block:
            data, self._block, self._block_bytes = b"".join(self._block), [], 0
            self._write(data)

    def close(self) -> None:
        """Write, sync and close; may be called twice."""
        if self._fd < 0:
            return
        self.flush()
        self._closing.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> ExperimentJournal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            raise ValueError(f"journal {self.path} is closed")
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            # A short write (disk full) must not leave half a line for the next one to be glued to.
            os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)
        if self._sync == "always":
            os.fsync(self._fd)
        else:
            if self._thread is None:
                self._thread = threading.Thread(target=self._sync_loop, name="sthyper-journal-sync", daemon=True)
                self._thread.start()
            self._dirty.set()

    def _sync_loop(self) -> None:
        while True:
            self._dirty.wait()
            # Before the look at `_closing`: cleared after it, the last wake-up of close() could be lost.
            self._dirty.clear()
            if self._closing.wait(SYNC_INTERVAL):
                return
            os.fsync(self._fd)

    def _cut_torn_line(self) -> None:
        try:
            with open(self.path, "rb+") as file:
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
        except FileNotFoundError:
            pass


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal in order; a torn last line is passed over.

    Args:
        path: The file, or the experiment's folder. It may be read while it grows.

    Raises:
        FileNotFoundError: If there is no journal.
        ValueError: If a line before the last is damaged (the message names it), or a newer version wrote the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ST_JOURNAL_FILENAME
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is damaged: {error}") from None
            if record.get("type") == "journal" and record.get("version", 0) > JOURNAL_VERSION:
                raise ValueError(
                    f"{path} has format version {record['version']}; this version of sthyper reads up to "
                    f"{JOURNAL_VERSION}: upgrade sthyper"
                )
            for key in ("metrics", "values"):
                if key in record:
                    record[key] = decode_floats(record[key])
            yield record


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file so that readers see the old content or the new one, never half of it.

    Args:
        path: The file.
        text: Its content.
        mode: Permissions, before the umask.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class ExperimentLock:
    """Marks an experiment as being run: ``lock`` holds host, pid, start time and a heartbeat.

    Args:
        folder: The experiment's folder.

    Raises:
        ExperimentError: If a living tuner holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ST_LOCK_FILENAME
        self._content = {"host": socket.gethostname(), "pid": os.getpid(), "start_time": _start_time(os.getpid())}
        self._stop = threading.Event()
        self._acquire()
        self._thread = threading.Thread(target=self._beat, name="sthyper-lock-heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Remove the lock; may be called twice."""
        self._stop.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            try:
                holder = json.loads(self.path.read_text())
            except ValueError:
                holder = {}
            if _alive(holder):
                raise ExperimentError(
                    f"{self.path.parent} is run by process {holder['pid']} on {holder['host']}; wait until it has "
                    "ended, or choose another tuner_name"
                ) from None
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, json.dumps({**self._content, "heartbeat": time.time()}))

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_INTERVAL):
            try:
                self._write()
            except OSError:
                continue  # a full disk; the next beat tries again


def _start_time(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return time.time() - holder.get("heartbeat", 0.0) < 60.0
    started = _start_time(holder.get("pid", -1)) if holder.get("pid") else None
    return started is not None and abs(started - (holder.get("start_time") or 0.0)) < 2.0
