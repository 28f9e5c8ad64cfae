"""The folder that holds the checkpoints of one trial, as rank 0 sees it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sthyper._checkpoints import last_reported_resource
from sthyper._syncing import sync_tree
from sthyper.checkpoints import CheckpointInfo, list_checkpoints, remove_checkpoint, write_index

__all__ = ["CheckpointFolder", "Keep"]

Keep = Literal["best+last", "last", "all"]
_OURS = re.compile(r".+=\d{6,}\.ckpt(\.tmp)?")


class CheckpointFolder:
    """Writes checkpoints so that the right one is found after a pause or a kill at any moment.

    A new checkpoint is saved under a temporary name, renamed and noted in the index, and only then reported. The one
    before it goes when the report has been answered (:meth:`prune`): until then the tuner may not have heard of the new
    one, and a restarted trial would have to begin at the old one.

    Args:
        path: The folder; made when the first checkpoint is written.
        keep: Which checkpoints stay.
        prefix: What the number in the file names counts.
        trial_id: The trial, ``None`` by hand.
    """

    def __init__(self, path: str | Path, keep: Keep, prefix: str, trial_id: int | None) -> None:
        self.path = Path(path)
        self._keep = keep
        self._prefix = re.sub(r"[^\w.-]", "_", prefix)
        self._trial_id = trial_id

    def find(self) -> CheckpointInfo | None:
        """Return the most advanced checkpoint that is not ahead of the last recorded report."""
        candidates = []
        for checkpoint in list_checkpoints(self.path):
            writer = None if checkpoint.trial_id is None else str(checkpoint.trial_id)
            limit = last_reported_resource(writer)
            if limit is None or checkpoint.resource <= limit:
                candidates.append(checkpoint)
        return candidates[-1] if candidates else None

    def forget_after(self, resource: int) -> None:
        """Remove checkpoints beyond ``resource``, and what a killed run left half written."""
        if not self.path.is_dir():
            return
        found = list_checkpoints(self.path)
        kept = [c for c in found if c.resource <= resource]
        if len(kept) < len(found):
            write_index(self.path, kept)
        names = {c.path.name for c in kept}
        for entry in self.path.iterdir():
            if _OURS.fullmatch(entry.name) and entry.name not in names:
                remove_checkpoint(entry)

    def temporary(self, resource: int) -> Path:
        """Return where the checkpoint of ``resource`` is to be saved first."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f"{self._name(resource)}.tmp"
        remove_checkpoint(temporary)
        return temporary

    def commit(self, resource: int, best: bool) -> Path:
        """Give the checkpoint of ``resource``, which has been saved, its name.

        Args:
            resource: Its resource.
            best: Whether it is better than all before.
        """
        target = self.path / self._name(resource)
        temporary = self.path / f"{target.name}.tmp"
        sync_tree(temporary)
        remove_checkpoint(target)
        os.replace(temporary, target)
        others = [c for c in list_checkpoints(self.path) if c.resource != resource]
        if best:
            others = [replace(c, best=False) for c in others]
        size = None if target.is_dir() else target.stat().st_size
        write_index(self.path, [*others, CheckpointInfo(target, resource, self._trial_id, best, size)])
        return target

    def prune(self) -> None:
        """Remove what need not be kept, now that the report of the last checkpoint has been answered."""
        if self._keep == "all":
            return
        # The index drops them at the next commit; until then they are passed over because they are gone.
        for checkpoint in list_checkpoints(self.path)[:-1]:
            if self._keep == "last" or not checkpoint.best:
                remove_checkpoint(checkpoint.path)

    def _name(self, resource: int) -> str:
        return f"{self._prefix}={resource:06d}.ckpt"
