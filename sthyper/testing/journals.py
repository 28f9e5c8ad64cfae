"""Compare experiments: the journal without what differs from run to run, and decisions made once more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sthyper._tuning.decisions import differences
from sthyper.journal import read_journal
from sthyper.schedulers.base import TrialScheduler

__all__ = ["canonical_journal", "replay"]

_TIMES = frozenset({"time", "tuner_time", "created", "pid", "host", "machine", "start_time", "name", "seconds"})
_METADATA_TIMES = frozenset({"st_tuner_creation_timestamp", "st_tuner_start_timestamp"})


def canonical_journal(journal: str | Path | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a journal's records without times, names, process and client ids.

    Two runs of one experiment with one worker, the same seed and deterministic training have equal canonical
    journals. Fields that the Reporter adds (``st_worker_*``) are left out, except the counter.

    Args:
        journal: The file, the experiment's folder, or records.
    """
    clients: dict[str, int] = {}
    result = []
    for record in _records(journal):
        if record["type"] == "process":
            continue
        record = {k: v for k, v in record.items() if k not in _TIMES}
        if "client" in record:
            record["client"] = clients.setdefault(record["client"], len(clients))
        if "metrics" in record:
            record["metrics"] = {
                k: v for k, v in record["metrics"].items() if not k.startswith("st_worker_") or k == "st_worker_iter"
            }
        if "metadata" in record:
            record["metadata"] = {k: v for k, v in record["metadata"].items() if k not in _METADATA_TIMES}
        result.append(record)
    return result


def replay(journal: str | Path | Iterable[dict[str, Any]], scheduler: TrialScheduler) -> list[str]:
    """Feed a fresh scheduler the recorded order of events and return where it decides otherwise.

    In a resumed experiment that went on with a fresh scheduler (its space was changed, or ``force``), what was decided
    before is only learnt from.

    Args:
        journal: The file, the experiment's folder, or records.
        scheduler: A scheduler made with the arguments of the (last) recorded one, its ``random_seed`` included.

    Returns:
        One line of text for each difference; empty when all suggestions and decisions are the same.
    """
    return differences(_records(journal), scheduler)


def _records(journal: str | Path | Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return read_journal(journal) if isinstance(journal, str | Path) else journal
