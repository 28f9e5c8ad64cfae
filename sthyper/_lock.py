"""Which tuner an experiment belongs to: a file that names its process and shows that it lives."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sthyper.constants import ST_LOCK_FILENAME
from sthyper.errors import ExperimentError

__all__ = ["ExperimentLock", "LockLost", "machine"]

logger = logging.getLogger(__name__)

# Tests make these shorter, in the processes that they start.
_HEARTBEAT_INTERVAL = 10.0
"""Seconds between two heartbeats."""
_DOUBT_AFTER = 30.0
"""Seconds since the last heartbeat of one's own after which one looks whose the lock is before anything is written."""
_STALE_AFTER = 60.0
"""Seconds without a heartbeat after which the lock of another machine counts as left behind."""
_WATCHED_BEATS = 1.2
"""Heartbeats that a lock which seems to be stale is watched for before it is taken."""
_TURN_SECONDS = 10.0
"""Seconds that others may take over a look at the lock."""
# All contents are equally long, so that a heartbeat overwrites the one before in place. That needs no room on a full
# disk, and touches nothing of another tuner that has taken the lock meanwhile.
_LENGTH = 512


class LockLost(ExperimentError):
    """Another tuner has taken over the experiment, as this one showed no sign of life for too long."""


class ExperimentLock:
    """Marks an experiment as being run; exactly one of several tuners that try at the same time gets it.

    The file ``lock`` holds host, process id, start time and heartbeat of its holder. On the holder's machine the lock
    is stale once no process with that id and start time lives; elsewhere 60 s after the last heartbeat, which comes
    every 10 s. That age is told by the clock of the file system, which may have been set: before it is taken, such a
    lock is watched for 12 s.

    Args:
        folder: The experiment's folder.

    Raises:
        ExperimentError: If a living tuner holds the lock.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ST_LOCK_FILENAME
        self._token = os.urandom(16).hex()
        self._content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start_time": _start_time(os.getpid()),
            "machine": machine(),
            "token": self._token,
        }
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._lost = False
        self._fd = -1
        self._acquire()
        self._last_beat = _now()
        self._thread = threading.Thread(target=self._beat, name="sthyper-lock-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still one's own, if there is reason to doubt it; to be called before each write.

        There is after a suspend, or when the process was stopped for a while: others may have taken it for dead.

        Raises:
            LockLost: If it is another's.
            OSError: If it cannot be read.
        """
        if self._lost or _now() - self._last_beat > _DOUBT_AFTER:
            self._look()

    def release(self) -> None:
        """Remove the lock unless it is another's; may be called twice."""
        self._stop.set()
        self._thread.join()
        with self._mutex:
            if self._fd < 0:
                return
            try:
                with _in_turn(self.path.parent):
                    if not self._lost and self._is_own():
                        self.path.unlink(missing_ok=True)
            except (OSError, ExperimentError) as error:
                # Nobody minds it: this process is soon gone.
                logger.warning("%s stays behind: %s", self.path, error)
            os.close(self._fd)
            self._fd = -1

    # ---- heartbeat -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_INTERVAL):
            try:
                self._look()
            except LockLost:
                return  # the event loop hears of it by check()
            except OSError:
                continue  # the next one tries again

    def _look(self) -> None:
        with self._mutex:
            if not self._lost and not self._is_own():
                self._lost = True
            if self._lost:
                holder, _ = _read(self.path) or ({}, 0.0)
                raise LockLost(
                    f"{self.path.parent} is run by {_name(holder)} now; this tuner ({_name(self._content)}) showed no "
                    "sign of life for too long, say in a suspend, and ends"
                )
            self._write()
            self._last_beat = _now()

    def _write(self) -> None:
        text = json.dumps({**self._content, "heartbeat": time.time()})
        os.pwrite(self._fd, text.ljust(_LENGTH - 1).encode() + b"\n", 0)
        os.fsync(self._fd)  # over a network the others see it only now

    def _is_own(self) -> bool:
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                return True
        except FileNotFoundError:
            return False
        found = _read(self.path)
        return found is not None and found[0].get("token") == self._token

    # ---- taking it -----------------------------------------------------------------------------------

    def _acquire(self) -> None:
        # A file that is complete before it gets its name: nobody sees half of it.
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}.{self._token[:8]}.tmp")
        self._fd = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write()
            watched = self._watch()
            with _in_turn(self.path.parent):
                self._write()
                while not self._claim(mine):
                    self._clear_stale(watched)
                with contextlib.suppress(OSError):
                    self._delete_leftovers(mine)
        except BaseException as error:
            os.close(self._fd)
            self._fd = -1
            if isinstance(error, OSError) and error.filename is None:
                raise type(error)(error.errno, error.strerror, str(self.path)) from None
            raise
        finally:
            mine.unlink(missing_ok=True)

    def _claim(self, mine: Path) -> bool:
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            os.close(self._fd)
            self._fd = fd
            self._write()
        return True

    def _watch(self) -> tuple[dict[str, Any], float] | None:
        """Return the lock of another machine that seems to be stale, once it has shown no heartbeat for a while."""
        found = _read(self.path)
        if found is None or _is_here(found[0]) or self._age(found[1]) < _STALE_AFTER:
            return None
        seconds = _WATCHED_BEATS * _HEARTBEAT_INTERVAL
        logger.info("the lock of %s seems to be left behind; it is taken in %.0f s", _name(found[0]), seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, _HEARTBEAT_INTERVAL / 10))
            if _read(self.path) != found:
                return None
        return found

    def _clear_stale(self, watched: tuple[dict[str, Any], float] | None) -> None:
        """Move the lock of a tuner that lives no more out of the way; raise if it lives."""
        found = _read(self.path)
        if found is None:
            return
        holder = found[0]
        if _runs(holder) if _is_here(holder) else found != watched:
            raise ExperimentError(f"{self.path.parent} is run by {_name(holder)}; wait until it has ended")
        aside = self.path.with_name(f"{self.path.name}.{self._token[:8]}.stale")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return  # somebody else was faster
        # Where the file system knows no locks another machine may have been faster: then it is its new one.
        moved = _read(aside)
        if moved is not None and moved[0].get("token") != holder.get("token"):
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
        else:
            # Whether a process of this machine lives is known; of another one there is only its silence.
            level = logging.INFO if _is_here(holder) else logging.WARNING
            logger.log(level, "the lock of %s is taken over", _name(holder))
        aside.unlink(missing_ok=True)

    def _delete_leftovers(self, mine: Path) -> None:
        """Delete what processes of this machine have left that were killed while they took the lock."""
        for path in (*mine.parent.glob(f"{self.path.name}.*.tmp"), *mine.parent.glob(f"{self.path.name}.*.stale")):
            found = _read(path) if path != mine else None
            if found is None:
                continue
            ended = _is_here(found[0]) and not _runs(found[0])
            if ended or (not found[0] and self._age(found[1]) > _STALE_AFTER):  # nothing had been written yet
                path.unlink(missing_ok=True)

    def _age(self, written: float) -> float:
        # One's own file was written just now, by the same clock. A difference in either direction is age: the clock may
        # have been set back.
        return abs(os.fstat(self._fd).st_mtime - written)


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Let only one process at a time look at the lock and take or remove it, where the file system can do that."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        give_up = time.monotonic() + _TURN_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise ExperimentError(
                        f"{folder}: another process has been taking the lock for {_TURN_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.01)
            except OSError:
                break  # no locks here
            else:
                break
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _read(path: Path) -> tuple[dict[str, Any], float] | None:
    """Return content and time of writing of a lock, ``None`` if there is none; nothing that is understood is ``{}``."""
    for attempt in range(3):
        try:
            with open(path, "rb") as file:
                data, written = file.read(8 * _LENGTH), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        with contextlib.suppress(ValueError):
            holder = json.loads(data)
            if isinstance(holder, dict):
                return holder, written
        if attempt < 2:
            time.sleep(0.02)  # it may just be written
    return {}, written


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == machine()


def _runs(holder: dict[str, Any]) -> bool:
    """Whether the process that took a lock on this machine lives."""
    started = _start_time(holder["pid"]) if isinstance(holder.get("pid"), int) else None
    known = holder.get("start_time")
    return started is not None and isinstance(known, int | float) and abs(started - known) < 0.001


def machine() -> str:
    """Return a name for this machine since its start, and within it for those that see the same process ids."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> float | None:
    """Return when a process started, on a clock that nobody sets; ``None`` if no such process lives."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
        # The second field is the name in parentheses, which may itself hold blanks and parentheses.
        fields = data[data.rfind(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _now() -> float:
    """Return seconds on a clock that nobody sets and that runs on in a suspend."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
