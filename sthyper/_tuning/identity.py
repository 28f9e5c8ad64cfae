"""What an experiment is called, and what its record begins with."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sthyper._lock import machine
from sthyper.backend.base import TrialBackend
from sthyper.constants import ST_TUNER_CREATION_TIMESTAMP, ST_TUNER_START_TIMESTAMP
from sthyper.journal import JOURNAL_VERSION, ExperimentJournal, read_journal, write_journal
from sthyper.paths import check_valid_name, name_from_base, sanitize_name
from sthyper.schedulers.base import TrialScheduler

__all__ = ["has_begun", "make_metadata", "make_name", "objective_of", "open_journal"]


def make_name(backend: TrialBackend, given: str | None, suffix: bool) -> str:
    """Return the name of an experiment.

    Args:
        backend: Names what is tuned, for want of a given name.
        given: Name that the user gave.
        suffix: Whether a time stamp is appended.
    """
    if given is None:
        entry_point = backend.entrypoint_name()
        base = sanitize_name(entry_point) if entry_point is not None else "tuning"
    else:
        base = check_valid_name(given)
    return name_from_base(base) if suffix else base


def make_metadata(
    given: dict[str, Any] | None, backend: TrialBackend, scheduler: TrialScheduler, backend_path: Path | None
) -> dict[str, Any]:
    """Return the metadata of an experiment: those of the user, and the tuner's own.

    Args:
        given: Entries of the user.
        backend: Runs the trials.
        scheduler: Describes itself.
        backend_path: Folder of the trials, unless it is the experiment's.

    Raises:
        TypeError: If ``given`` is no dict or cannot be written as JSON.
    """
    own = {
        ST_TUNER_CREATION_TIMESTAMP: time.time(),
        "entrypoint": backend.entrypoint_name(),
        "backend": type(backend).__name__,
        **scheduler.metadata(),
    }
    if backend_path is not None:
        own["trial_backend_path"] = str(backend_path)
    if not isinstance(given or {}, dict):
        raise TypeError(f"metadata must be a dict, got {given!r}")
    result = dict(given or {})
    for key, value in result.items():
        if key in own or key == ST_TUNER_START_TIMESTAMP:
            warnings.warn(f"metadata entry {key!r} is overwritten: the name is the tuner's own", stacklevel=3)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise TypeError(f"metadata entry {key!r} cannot be written as JSON: {value!r}") from None
    return {**result, **own}


def has_begun(folder: Path) -> bool:
    """Whether a folder holds an experiment.

    A tuner that was killed while it wrote the first lines of its journal has left none: nothing had been started yet.
    """
    try:
        return any(record["type"] == "session" for record in read_journal(folder))
    except FileNotFoundError:
        return False
    except ValueError:  # damaged, or of a newer version
        return True


def open_journal(
    folder: Path,
    metadata: dict[str, Any],
    n_workers: int,
    seed: int,
    new: bool = True,
    traits: Mapping[str, Any] | None = None,
    guard: Callable[[], None] | None = None,
) -> ExperimentJournal:
    """Open the journal of an experiment and write its first lines, or those of another session.

    A new one is there with all its first lines or not at all: before them a folder holds no experiment, behind them one
    that can be resumed.

    Args:
        folder: The experiment's folder, called like the experiment.
        metadata: Its metadata.
        n_workers: Number of trials that run at the same time.
        seed: Seed of the experiment.
        new: Whether the experiment is new; otherwise it is resumed.
        traits: What the bookkeeping of trials depends on; see :func:`sthyper._tuning.adoption.scheduler_traits`.
        guard: Called before each write.
    """
    now = time.time()
    rest = {} if traits is None else {"scheduler": dict(traits)}
    head = {"type": "session", "pid": os.getpid(), "host": socket.gethostname(), "machine": machine()}
    session = {**head, "n_workers": n_workers, "seed": seed, "time": now, **rest}
    if not new:
        journal = ExperimentJournal(folder, guard=guard)
        journal.append(session)
        return journal
    first = {"type": "journal", "version": JOURNAL_VERSION, "name": folder.name, "created": now}
    if guard is not None:
        guard()
    write_journal(folder, [first, {"type": "metadata", "metadata": metadata}, session])
    return ExperimentJournal(folder, guard=guard)


def objective_of(scheduler: TrialScheduler) -> dict[str, Any]:
    """Return what trials may know of a scheduler."""
    mode = scheduler.metric_mode()
    return {
        "metric": scheduler.metric_names()[0],
        "mode": mode if isinstance(mode, str) else mode[0],
        "resource_attr": scheduler.resource_attr,
        "max_resource": scheduler.max_resource_level,
    }
