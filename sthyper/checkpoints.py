"""Numbered checkpoints of a trial: which there are, which is the newest, which is the best.

The Lightning callback writes its checkpoints as ``epoch=000003.ckpt`` (files, or folders of sharded strategies) and
notes them in ``index.json`` of the same folder. This module reads and writes that note; it imports neither torch nor
lightning. Checkpoints of ``sthyper.utils.pytorch_load_save_functions`` have no index.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "INDEX_NAME",
    "CheckpointInfo",
    "best_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "remove_checkpoint",
    "write_index",
]

INDEX_NAME = "index.json"
"""File that notes the checkpoints of a folder."""
_VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a trial.

    Args:
        path: The file, or the folder of a sharded checkpoint.
        resource: Resource (epochs done, or validation runs) that it holds.
        trial_id: Trial that wrote it; ``None`` if the script ran by hand.
        best: Whether it is the best one so far by the scheduler's metric.
        size: Bytes of the file, ``None`` for a folder.
    """

    path: Path
    resource: int
    trial_id: int | None = None
    best: bool = False
    size: int | None = None

    def is_whole(self) -> bool:
        """Whether it is there in its full size (after a power loss it may be cut short)."""
        try:
            return self.path.is_dir() if self.size is None else self.path.stat().st_size == self.size
        except OSError:
            return False


def list_checkpoints(folder: str | Path) -> list[CheckpointInfo]:
    """Return the whole checkpoints of a folder in the order of their resource.

    Args:
        folder: The trial's checkpoint folder; need not exist.

    Returns:
        The checkpoints that ``index.json`` names; none without it. An index that cannot be read is warned of.
    """
    root = Path(folder)
    try:
        text = (root / INDEX_NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        content = json.loads(text)
        found = [
            CheckpointInfo(root / e["name"], int(e["resource"]), e["trial_id"], bool(e["best"]), e["size"])
            for e in content["checkpoints"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{root / INDEX_NAME} is no list of checkpoints ({error!r})", RuntimeWarning, stacklevel=2)
        return []
    return sorted((c for c in found if c.is_whole()), key=lambda c: c.resource)


def latest_checkpoint(folder: str | Path, not_after: float | None = None) -> Path | None:
    """Return the most advanced checkpoint of a folder.

    Args:
        folder: The trial's checkpoint folder; need not exist.
        not_after: Pass over checkpoints with a larger resource, say those whose report was never recorded.

    Returns:
        The file or folder; ``None`` if there is none.
    """
    found = [c for c in list_checkpoints(folder) if not_after is None or c.resource <= not_after]
    return found[-1].path if found else None


def best_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint with the best value of the scheduler's metric.

    Args:
        folder: The trial's checkpoint folder; need not exist.

    Returns:
        The file or folder; the most advanced one where none is marked as best; ``None`` if there is none.
    """
    found = list_checkpoints(folder)
    marked = [c for c in found if c.best] or found
    return marked[-1].path if marked else None


def write_index(folder: str | Path, checkpoints: Sequence[CheckpointInfo]) -> None:
    """Note the checkpoints of a folder; readers see the old note or the new one.

    It is not synced to disk, an epoch may be short: after a power loss a trial may have to start again.

    Args:
        folder: The folder, which exists and holds the checkpoints.
        checkpoints: All that are to be found again.
    """
    entries = [
        {"name": c.path.name, "resource": c.resource, "trial_id": c.trial_id, "best": c.best, "size": c.size}
        for c in sorted(checkpoints, key=lambda c: c.resource)
    ]
    target = Path(folder) / INDEX_NAME
    temporary = target.with_name(f"{INDEX_NAME}.tmp")
    temporary.write_text(json.dumps({"version": _VERSION, "checkpoints": entries}, indent=1), encoding="utf-8")
    os.replace(temporary, target)


def remove_checkpoint(path: str | Path) -> None:
    """Remove a checkpoint, file or folder; nothing happens if it is gone."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
