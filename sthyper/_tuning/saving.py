"""When and what is saved: snapshots of a running experiment."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sthyper
from sthyper._describe import fingerprint
from sthyper._lock import LockLost
from sthyper._tuning.past import JournalDigest
from sthyper._tuning.snapshots import NotPlain, encode, write_snapshot
from sthyper.backend.base import TrialBackend
from sthyper.journal import ExperimentJournal
from sthyper.schedulers.base import TrialScheduler

if TYPE_CHECKING:
    from sthyper._tuning.loop import TuningLoop

__all__ = ["SnapshotTaker", "load_beside", "made_with"]

logger = logging.getLogger(__name__)

SHARE_OF_TIME = 0.01
"""Largest part of the tuner's time that snapshots may take."""
QUICK = 0.1
"""Seconds that the last one may take however short the experiment was."""


def made_with(scheduler: TrialScheduler, backend: TrialBackend) -> dict[str, Any]:
    """Return what must be equal for a snapshot to fit: code, and arguments on which states depend."""
    return {
        "version": sthyper.__version__,
        "scheduler": fingerprint(scheduler),
        "backend": {
            "class": f"{type(backend).__module__}:{type(backend).__qualname__}",
            "rewrite_max_resource": backend.rewrite_max_resource,
            "delete_checkpoints": backend.delete_checkpoints,
        },
    }


class SnapshotTaker:
    """Takes snapshots in the thread of the event loop, and writes them in another one.

    A snapshot that cannot be taken or written ends nothing: it is logged once, and the journal has everything.

    Args:
        folder: The experiment's folder.
        loop: The event loop, its journal open.
        made_with: What :func:`made_with` returned.
        beside: Parts whose states do not follow from the journal: a name, and the objects.
        interval: Shortest time between two snapshots in seconds, ``None`` to take only those that are asked for.
        guard: Raises once the experiment is another tuner's.
    """

    def __init__(
        self,
        folder: Path,
        loop: TuningLoop,
        made_with: Any,
        beside: Mapping[str, Sequence[Any]],
        interval: float | None,
        guard: Callable[[], None],
    ) -> None:
        assert isinstance(loop.state.journal, ExperimentJournal)
        self._folder = folder
        self._loop = loop
        self._journal = loop.state.journal
        self._digest = JournalDigest(self._journal.path)
        self._made_with = made_with
        self._beside = dict(beside)
        self._interval = interval
        self._guard = guard
        self._next = math.inf if interval is None else time.monotonic() + interval
        self._asked = False
        self._size = -1
        self._complained = False
        self._began = time.monotonic()
        self._cost = 0.0
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Have a snapshot taken at the next quiet moment; may be called from any thread."""
        self._asked = True

    def on_quiet(self) -> None:
        """Take a snapshot if it is time; to be called by the event loop between two events."""
        if (self._asked or time.monotonic() >= self._next) and (self._thread is None or not self._thread.is_alive()):
            self._take(self._asked)

    def finish(self) -> None:
        """Wait until nothing is written any more, and take a last snapshot, unless it would take long.

        While a suggestion is being computed there is none.
        """
        self.close()
        quick = self._cost <= SHARE_OF_TIME * (time.monotonic() - self._began) or self._cost < QUICK
        if (self._asked or (self._interval is not None and quick)) and self._loop.suggestions.quiet:
            self._take(self._asked)
            self.close()

    def close(self) -> None:
        """Wait until nothing is written any more; may be called twice."""
        if self._thread is not None:
            self._thread.join()

    def _take(self, asked: bool) -> None:
        began = time.monotonic()
        self._asked = False
        self._next = math.inf
        try:
            self._journal.flush()
            size = self._journal.size
            if size == self._size and not asked:
                self._next = began + (self._interval or 0.0)
                return
            tensors: list[Any] = []
            states = self._loop.state_dict()
            # What users write may change what it has returned; our own parts do not.
            scheduler = encode(states.pop("scheduler"), tensors, "scheduler.state_dict()")
            content = {
                "offset": size,
                "tuner_time": self._loop.state.clock(),
                "made_with": self._made_with,
                "beside": {name: _beside(name, parts, tensors) for name, parts in self._beside.items()},
            }
        except NotPlain as error:
            self._complain(error)
            return
        except Exception:  # a user's scheduler or callback may raise anything
            logger.exception("no snapshots are taken; a resumed experiment goes through its whole journal")
            return
        self._size = size

        def write() -> None:
            experiment = encode(states, tensors, "")
            experiment["scheduler"] = scheduler
            self._digest.advance(size)
            content.update(experiment=experiment, journal=self._digest.hexdigest())
            path = write_snapshot(self._folder, content, tensors, self._guard)
            logger.debug("%s is written", path)

        spent = time.monotonic() - began
        self._thread = threading.Thread(target=self._write, args=(write, spent), name="sthyper-snapshot", daemon=True)
        self._thread.start()

    def _complain(self, error: NotPlain) -> None:
        logger.warning(
            "no snapshots are taken, as there is something that no file can hold: %s. A resumed experiment goes "
            "through its whole journal",
            error,
        )

    def _write(self, write: Callable[[], None], spent: float) -> None:
        began = time.monotonic()
        try:
            write()
            self._complained = False
        except LockLost:
            return  # the event loop hears of it, too
        except NotPlain as error:
            self._complain(error)
            return
        except Exception as error:
            if not self._complained:
                self._complained = True
                logger.warning(
                    "no snapshot can be written in %s (%s); the journal has everything, and a resumed experiment takes "
                    "longer to begin",
                    self._folder,
                    error,
                )
        now = time.monotonic()
        self._cost = spent + now - began
        if self._interval is not None:
            self._next = now + max(self._interval, self._cost / SHARE_OF_TIME)


def _beside(name: str, parts: Sequence[Any], tensors: list[Any]) -> list[list[Any]]:
    """Return class and state of those parts that have one."""
    found = []
    for part in parts:
        if callable(get := getattr(part, "state_dict", None)) and (state := get()):
            found.append([_class_name(part), encode(state, tensors, f"{name}: {_class_name(part)}.state_dict()")])
    return found


def load_beside(states: Mapping[str, Sequence[Sequence[Any]]], parts: Mapping[str, Sequence[Any]]) -> None:
    """Give parts of a resumed experiment the states of those of the same class before, in their order.

    Args:
        states: Name -> class and state of each part before that had one.
        parts: Name -> the parts now.
    """
    for name, saved in states.items():
        waiting = list(saved)
        for part in parts.get(name, ()):
            entry = next((entry for entry in waiting if entry[0] == _class_name(part)), None)
            if entry is None:
                continue
            waiting.remove(entry)
            try:
                part.load_state_dict(entry[1])
            except Exception as error:
                logger.warning("%s begins anew, its state cannot be loaded: %r", _class_name(part), error)
        if waiting:
            logger.info("%s: the states of %s are not needed any more", name, ", ".join(entry[0] for entry in waiting))


def _class_name(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
