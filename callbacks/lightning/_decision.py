"""The order to end, where every process of a trial finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sthyper.report import Reporter

__all__ = ["CONTINUE", "note_decision", "noted_decision"]

CONTINUE = "CONTINUE"
_FILE = "decision.json"


def note_decision(reporter: Reporter, decision: str) -> None:
    """Write down that this run of the trial is to end.

    The ranks of a trial hear of it from rank 0. The process that waits for ranks which it forked or spawned, and later
    ranks of its, do not.
    """
    if reporter.trial_dir is None:
        return
    path = Path(reporter.trial_dir) / _FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"run": reporter.run, "decision": decision}))
    os.replace(temporary, path)


def noted_decision(reporter: Reporter) -> str:
    """Return what was written down in this run of the trial, ``"CONTINUE"`` if nothing was."""
    if reporter.trial_dir is None:
        return CONTINUE
    try:
        note = json.loads((Path(reporter.trial_dir) / _FILE).read_text())
    except FileNotFoundError:
        return CONTINUE
    return str(note["decision"]) if note["run"] == reporter.run else CONTINUE
