"""How an experiment goes on: read what is known of it, and bring a new event loop to where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthyper._tuning.lines import JournalLines, of_types
from sthyper._tuning.past import Past
from sthyper._tuning.recorded import MadeLines, recall, replay
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.errors import ExperimentError
from sthyper.journal import DamagedJournal, read_journal

if TYPE_CHECKING:
    from sthyper._tuning.loop import TuningLoop

__all__ = ["go_on", "look_back", "read_identity", "repair_hint"]


@contextmanager
def repair_hint() -> Iterator[None]:
    """Say in errors of a damaged journal how to go on."""
    try:
        yield
    except DamagedJournal as damage:
        raise DamagedJournal(
            f"{damage}. Tuner.resume(..., repair_journal=True) goes on from the good lines before it and keeps a copy "
            "of the whole file"
        ) from None


def read_identity(folder: Path, strict: bool) -> tuple[int, dict[str, Any]]:
    """Return seed and metadata of an experiment, from the first lines of its journal.

    Args:
        folder: The experiment's folder.
        strict: Whether a damaged line is an error.

    Raises:
        DamagedJournal: If one of the first lines cannot be read.
        ExperimentError: If they are not there.
    """
    if not (folder / ST_JOURNAL_FILENAME).is_file():
        raise ExperimentError(
            f"{folder} cannot be resumed: {ST_JOURNAL_FILENAME} is missing there; load_experiment shows what is left"
        )
    seed, metadata = None, None
    for record in read_journal(folder, strict):
        if record["type"] == "session":
            seed = record["seed"]
        elif record["type"] == "metadata":
            metadata = record["metadata"]
        if seed is not None and metadata is not None:
            return seed, metadata
    raise ExperimentError(f"{folder} holds no record to go on from; start a new experiment")


def look_back(loop: TuningLoop, past: Past) -> None:
    """Bring an experiment to where its record ends, for somebody to look at; nothing is written.

    Args:
        loop: A new event loop with :class:`MadeLines` for a journal.
        past: What is known of the experiment.

    Raises:
        ExperimentError: If scheduler or searcher decide otherwise than is recorded.
    """
    _load(loop, past)
    replay(loop, past.records, past.records.first_line, past.began)


def go_on(loop: TuningLoop, past: Past, made: MadeLines | None, later: JournalLines) -> None:
    """Bring an experiment to where its record ends, and make ready what ran then.

    Args:
        loop: The event loop, its journal open.
        past: What is known of the experiment.
        made: What :func:`look_back` left out of the journal, ``None`` if nobody looked back.
        later: Lines that came after that.

    Raises:
        ExperimentError: If scheduler or searcher decide otherwise than is recorded.
    """
    if made is None:
        _load(loop, past)
        recall(loop, past.records, past.records.first_line, past.began)
        return
    if any(of_types(later, "fresh")):
        raise ExperimentError(f"{past.folder} went on with another scheduler since it was loaded; load it again")
    recall(loop, later, later.first_line, past.tuner_time, made.lines)


def _load(loop: TuningLoop, past: Past) -> None:
    if past.snapshot is None:
        return
    try:
        loop.load_state_dict(past.snapshot.experiment)
    except Exception as error:  # a user's scheduler may raise anything
        raise ExperimentError(
            f"{past.snapshot.path} cannot be loaded: {type(error).__name__}: {error}. Move the folder "
            f"{past.snapshot.path.parent} away to go through the whole {ST_JOURNAL_FILENAME} instead"
        ) from error
