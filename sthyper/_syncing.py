"""Brings files to the disk before they get their names, so that a power loss leaves no half of them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["sync_folder", "sync_tree"]


def sync_folder(folder: str | Path) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        _sync(folder)


def sync_tree(path: str | Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk; what vanishes meanwhile is left out.

    Raises:
        OSError: If something cannot be written.
    """
    if not Path(path).is_dir():
        _sync(path)
        return
    for parent, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                _sync(os.path.join(parent, name))
        sync_folder(parent)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
