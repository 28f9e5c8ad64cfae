"""Saves the checkpoints of a trial and restores the newest one: what Lightning's own checkpoints leave out, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.parsing import lightning_setattr
from lightning_utilities.core.rank_zero import rank_zero_warn

from sthyper._checkpoints import note_resumed
from sthyper.callbacks.lightning import _trainer
from sthyper.callbacks.lightning._checkpoints import CheckpointFolder, Keep
from sthyper.callbacks.lightning._loadable import find_unloadable
from sthyper.callbacks.lightning._random import capture_generators, restore_generators
from sthyper.callbacks.lightning._ranks import gather, on_rank_zero

__all__ = ["TrialCheckpoints"]


class TrialCheckpoints:
    """The checkpoints of one trial, as the callback uses them on every rank.

    Args:
        keep: Which checkpoints stay.
        prefix: What the number in the file names counts.
        at_epoch_end: Whether they are saved at the end of a training epoch, or else at the end of a validation, which
            may lie in the middle of one.
    """

    def __init__(self, keep: Keep, prefix: str, at_epoch_end: bool) -> None:
        self._keep: Keep = keep
        self._prefix = prefix
        self._at_epoch_end = at_epoch_end
        self._folder: CheckpointFolder | None = None
        self._extra: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None
        self._at_epoch_start: dict[str, Any] | None = None
        self._batch_size: dict[str, int] = {}
        self._content: dict[str, Any] | None = None
        self._checked = False
        self._cancel_restore: Callable[[], None] | None = None

    # ---- life ----------------------------------------------------------------------------------------

    def open(self, trainer: Trainer, path: str, trial_id: int | None, restore: bool) -> None:
        """Prepare a ``fit``; to be called in ``setup``.

        Args:
            trainer: The Trainer.
            path: Folder of the checkpoints; rank 0's counts.
            trial_id: The trial.
            restore: Whether this ``fit`` goes on from the newest checkpoint that is not ahead of the last report.
        """
        folder = CheckpointFolder(trainer.strategy.broadcast(path), self._keep, self._prefix, trial_id)
        self._folder = folder
        if not restore:
            return

        def find() -> str | None:
            found = folder.find()
            folder.forget_after(0 if found is None else found.resource)
            if found is not None:
                note_resumed(folder.path, found.resource)
            return None if found is None else str(found.path)

        found = on_rank_zero(trainer, find)
        if found is not None:
            _trainer.drop_finders(trainer)
            self._cancel_restore = _trainer.restore_in_fit(trainer, found)

    def close(self) -> None:
        """Give up what belongs to one ``fit``."""
        if self._cancel_restore is not None:
            self._cancel_restore()
        self._cancel_restore = self._content = None

    # ---- saving --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback adds to its state; nothing while others save a checkpoint."""
        return dict(self._extra)

    def see_content(self, checkpoint: dict[str, Any]) -> None:
        """Take note of what is being saved, in case that it cannot be loaded again."""
        if not self._checked:
            self._content = checkpoint

    def epoch_started(self, trainer: Trainer) -> None:
        """All callbacks have seen the start of an epoch; its order of batches has not been drawn yet."""
        if self._folder is not None and not self._at_epoch_end:
            self._at_epoch_start = capture_generators(trainer)

    def save(self, trainer: Trainer, resource: int, improved: bool) -> None:
        """Save a checkpoint, if the trial has a folder for it; to be called on all ranks.

        Args:
            trainer: The Trainer, at the end of an epoch or of a validation.
            resource: The progress it holds.
            improved: Whether it is the best one so far.

        Raises:
            TypeError: If it could not be loaded again; the message names the key.
        """
        folder = self._folder
        if folder is None:
            return
        metrics = {k: v for k, v in trainer.callback_metrics.items() if isinstance(v, torch.Tensor)}
        self._extra = {
            "random": gather(trainer, capture_generators(trainer)),
            # Those of a rank are its own if they were not reduced.
            "callback_metrics": gather(trainer, {k: v.detach().cpu().clone() for k, v in metrics.items()}),
            "should_stop": trainer.should_stop,
            "batch_size": _trainer.found_batch_size(trainer) or self._batch_size,
        }
        if not self._at_epoch_end and not trainer.is_last_batch:
            self._extra["random_at_epoch_start"] = gather(trainer, self._at_epoch_start)
        path = on_rank_zero(trainer, lambda: str(folder.temporary(resource)))
        trainer.save_checkpoint(path, weights_only=False)
        self._extra = {}
        content, self._content = self._content, None

        def commit() -> None:
            if not self._checked:
                problem = find_unloadable(Path(path), content or {})
                if problem is not None:
                    raise TypeError(problem)
            folder.commit(resource, improved)

        on_rank_zero(trainer, commit)
        self._checked = True

    def report_answered(self, trainer: Trainer) -> None:
        """The tuner knows of the newest checkpoint: the one before it may go."""
        if self._folder is not None and trainer.is_global_zero:
            self._folder.prune()

    # ---- restoring -----------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the callback's state from a checkpoint; it is put in place when training starts."""
        self._restored = state if "random" in state else None

    def fit_starts(self, module: LightningModule) -> None:
        """Set what must be known before the loaders are made; to be called in ``on_fit_start``."""
        if self._restored is not None:
            self._batch_size = self._restored["batch_size"]
            for name, value in self._batch_size.items():
                lightning_setattr(module, name, value)

    def training_starts(self, trainer: Trainer, module: LightningModule, epochs_done: int) -> None:
        """Put the restored state in place; to be called in ``on_train_start``."""
        state = self._restored
        if state is None:
            return
        metrics = state["callback_metrics"]
        own = metrics[trainer.global_rank if len(metrics) == trainer.world_size else 0]
        trainer.callback_metrics.update({k: v.to(module.device) for k, v in own.items()})
        if self._at_epoch_end:
            _trainer.catch_up_plateau_schedulers(trainer, module, epochs_done)
        elif "random_at_epoch_start" in state:
            self._restore_generators(trainer, state["random_at_epoch_start"])
            _trainer.skip_batches(trainer)
        _trainer.resume_epoch_exactly(trainer)
        trainer.should_stop = trainer.should_stop or state["should_stop"]
        self._restore_generators(trainer, state["random"])

    def epoch_starts(self, trainer: Trainer) -> None:
        """Restore the generators again: hooks of ``on_train_start``, which a whole run has not here, may have drawn."""
        if self._restored is not None:
            self._restore_generators(trainer, self._restored["random"])

    def batch_starts(self) -> None:
        """Training goes on: the restored state is used up."""
        self._restored = None

    @staticmethod
    def _restore_generators(trainer: Trainer, states: list[dict[str, Any]]) -> None:
        if len(states) == trainer.world_size:
            restore_generators(trainer, states[trainer.global_rank])
        else:
            rank_zero_warn(
                f"the checkpoint holds the random generators of {len(states)} ranks, now there are "
                f"{trainer.world_size}: they are not restored"
            )
