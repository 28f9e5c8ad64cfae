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
from dataclasses import dataclass, replace
from pathlib import Path

from sthyper._syncing import sync_folder, sync_tree
from sthyper.paths import is_plain_name

__all__ = [
    "INDEX_NAME",
    "CheckpointInfo",
    "best_checkpoint",
    "copy_checkpoints",
    "copying_folder",
    "latest_checkpoint",
    "list_checkpoints",
    "remove_checkpoint",
    "write_index",
]

INDEX_NAME = "index.json"
"""File that notes the checkpoints of a folder."""
_VERSION = 1
_ATTEMPTS = 5
"""Times that a copy is tried while the source changes."""


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
            if _is_inside(e["name"])
        ]
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{root / INDEX_NAME} is no list of checkpoints ({error!r})", RuntimeWarning, stacklevel=2)
        return []
    return sorted((c for c in found if c.is_whole()), key=lambda c: c.resource)


def _is_inside(name: str) -> bool:
    if not is_plain_name(name):
        raise ValueError(f"{name!r} is no name of a file in this folder")
    return True


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
    """Note the checkpoints of a folder; readers see the old note or the new one, after a power loss, too.

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
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"version": _VERSION, "checkpoints": entries}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    sync_folder(target.parent)


def copy_checkpoints(source: str | Path, target: str | Path) -> bool:
    """Copy a folder of checkpoints; the copy is there as a whole or not at all.

    The trial of the source may be running: checkpoints that it replaces or removes meanwhile are left out, and the
    copy's index names only those that are whole. It still says who wrote them.

    Args:
        source: The folder to copy.
        target: The copy; what is there already is replaced.

    Returns:
        ``False`` if there is nothing to copy; then nothing happens.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        return False
    temporary = copying_folder(target)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        remove_checkpoint(temporary)  # also that of a process that was killed
        try:
            if _copy_folder(source, temporary):
                break
        except (OSError, shutil.Error):  # a folder is being removed; or, say, the disk is full
            if attempt == _ATTEMPTS:
                remove_checkpoint(temporary)
                raise
    sync_tree(temporary)
    remove_checkpoint(target)
    os.replace(temporary, target)
    sync_folder(target.parent)
    return True


def copying_folder(target: Path) -> Path:
    """Return the folder that a copy of checkpoints is made in; one that is there is left of a process that was killed.

    Args:
        target: Where the copy is to be.
    """
    return target.with_name(f"{target.name}.copying")


def _copy_folder(source: Path, target: Path) -> bool:
    """Copy a folder of checkpoints; ``False`` if all that its index named were replaced meanwhile."""
    # First: what it names is whole now, unlike what may be written while we copy.
    indexed = list_checkpoints(source)
    has_index = (source / INDEX_NAME).exists()
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix != ".tmp":
            _copy_entry(path, target / path.name)
    if not has_index:
        return True
    copies = [replace(info, path=target / info.path.name) for info in indexed]
    # A folder has no size to tell whether it is whole: it is if it was not about to be removed.
    named = {info.path.name for info in list_checkpoints(source)}
    kept = [info for info in copies if info.is_whole() and (info.size is not None or info.path.name in named)]
    write_index(target, kept)
    return bool(kept) or not indexed


def _copy_entry(source: Path, target: Path) -> None:
    """Copy a file or folder; one that vanishes meanwhile is left out."""
    try:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.tmp"))
        else:
            shutil.copy2(source, target)
    except (OSError, shutil.Error):
        if source.exists():
            raise
        remove_checkpoint(target)


def remove_checkpoint(path: str | Path) -> None:
    """Remove a checkpoint, file or folder; nothing happens if it is gone."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
