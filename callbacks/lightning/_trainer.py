"""What the callback does to a Trainer beyond its public interface, each in one function.

Written for Lightning 2.6; everything here is tested against the version in use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerState
from lightning_utilities.core.rank_zero import rank_zero_warn

from sthyper.report import TrialExit

__all__ = [
    "add_callback",
    "allow_no_more_ranks",
    "callbacks_of",
    "catch_up_plateau_schedulers",
    "drop_finders",
    "found_batch_size",
    "is_search_for_lr_or_batch_size",
    "move_to_trial",
    "overwrite_cli_config",
    "remove_callbacks",
    "restore_in_fit",
    "resume_epoch_exactly",
    "silence",
    "skip_batches",
]


class _LastState(TrainerState):
    """State that a rank hands to the process which has forked or spawned it; the next entry point there raises.

    That process runs no hook before it starts ranks again, but every entry point of a Trainer sets ``fn`` first.
    """

    decision: str
    pid: int

    def __setattr__(self, name: str, value: Any) -> None:
        # In the rank itself Lightning copies it, field by field.
        if name == "fn" and self.__dict__.get("pid", os.getpid()) != os.getpid():
            raise TrialExit(self.decision)
        super().__setattr__(name, value)


def allow_no_more_ranks(trainer: Trainer, decision: str) -> None:
    """Let the next ``fit``, ``validate``, ``test`` or ``predict`` in the process of the script raise ``TrialExit``.

    Args:
        trainer: In the ``teardown`` hook of a rank that Lightning has forked or spawned.
        decision: What the tuner has decided.
    """
    old = trainer.state
    trainer.state = state = _LastState(old.status, old.fn, old.stage)
    state.decision = decision
    state.pid = os.getpid()


def restore_in_fit(trainer: Trainer, path: str) -> Callable[[], None]:
    """Make the ``fit`` that is being set up restore everything from ``path``, as ``fit(ckpt_path=path)`` does.

    The checkpoint is loaded where Lightning loads it (after the model was sharded, for strategies that want it so) and
    with ``weights_only=True``; a path that was passed to ``fit`` is overridden, with a warning.

    Args:
        trainer: In the ``setup`` hook of a ``fit``.
        path: Checkpoint, a file or a folder.

    Returns:
        A function that takes it back, if it has not happened yet.
    """
    connector: Any = trainer._checkpoint_connector
    load, restore_loops = connector.resume_start, connector.restore_loops

    def resume_start(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        vars(connector).pop("resume_start", None)
        if checkpoint_path is not None and str(checkpoint_path) != path:
            rank_zero_warn(
                f"ckpt_path={str(checkpoint_path)!r} is not used: this trial is resumed from its own checkpoint {path}"
            )
        load(path, weights_only=True)

    def restore_loops_exactly() -> None:
        vars(connector).pop("restore_loops", None)
        restore_loops()
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.ready == epochs.processed:
            # With max_steps Lightning takes a finished epoch for a broken one, and counts it twice.
            _mark_as_not_restarting(trainer.fit_loop)

    def cancel() -> None:
        vars(connector).pop("resume_start", None)
        vars(connector).pop("restore_loops", None)

    connector.resume_start, connector.restore_loops = resume_start, restore_loops_exactly
    return cancel


def _mark_as_not_restarting(loop: Any) -> None:
    loop._restarting = False
    for inner in vars(loop).values():
        if isinstance(inner, _Loop):
            _mark_as_not_restarting(inner)


def resume_epoch_exactly(trainer: Trainer) -> None:
    """Let the first epoch after a restore begin as any other; to be called in ``on_train_start``.

    Lightning keeps the loader's iterator that it made before, which has drawn the order of the batches already, and
    skips the plateau schedulers at the end of the epoch. Marked as not resuming it makes a new iterator at the start of
    the epoch, from the generators restored meanwhile.
    """
    trainer.fit_loop._resuming_from_checkpoint = False
    # Not by the property, which would reach the inner loops: these do need to know where they were.
    trainer.fit_loop._restarting = False


def skip_batches(trainer: Trainer) -> None:
    """Pass over the batches of a broken epoch that were trained on before; to be called in ``on_train_start``.

    The generators must be in the states that they had when the epoch began. Loaders that keep their own place (by
    ``state_dict``) are left alone.
    """
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    if fetcher is None or fetcher.combined_loader._state_dicts():
        return
    seen = loop.epoch_loop.batch_progress.current.ready
    if trainer.current_epoch > 0:
        iter(fetcher)  # in the first epoch Lightning uses the iterator that it makes together with the loader
    for _ in range(seen):
        next(fetcher)
    fetcher.fetched -= seen  # Lightning adds them


def catch_up_plateau_schedulers(trainer: Trainer, module: LightningModule, epochs_done: int) -> None:
    """Step ``ReduceLROnPlateau`` for the epoch at whose end the checkpoint was written.

    Lightning steps it after the last hook of an epoch in which a checkpoint can be saved: the step is not in it.
    """
    if not module.automatic_optimization:
        return
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.interval == "epoch" and epochs_done % config.frequency == 0:
            value = trainer.callback_metrics.get(str(config.monitor))
            if value is not None:
                module.lr_scheduler_step(config.scheduler, value)


def is_search_for_lr_or_batch_size(trainer: Trainer) -> bool:
    """Whether ``fit`` was called by ``Tuner.lr_find`` or ``Tuner.scale_batch_size``, and ends before any training."""
    return any(getattr(c, "_early_exit", False) for c in _finders(trainer))


def drop_finders(trainer: Trainer) -> None:
    """Remove the finder callbacks: what they found in the first run is restored, and they would undo the restore."""
    finders = _finders(trainer)
    remove_callbacks(trainer, lambda callback: callback in finders)


def found_batch_size(trainer: Trainer) -> dict[str, int]:
    """Return attribute of the module or data module -> batch size, as a ``BatchSizeFinder`` found it in this run."""
    finders = [c for c in _finders(trainer) if isinstance(c, BatchSizeFinder)]
    return {c._batch_arg_name: int(c.optimal_batch_size) for c in finders if c.optimal_batch_size is not None}


def _finders(trainer: Trainer) -> list[Any]:
    return [c for c in callbacks_of(trainer) if isinstance(c, LearningRateFinder | BatchSizeFinder)]


def move_to_trial(trainer: Trainer, folder: Path) -> None:
    """Keep the files of a trial in a folder of its own, where the user named none.

    Only what still points to Lightning's default, the working directory, is changed: ``default_root_dir``, loggers for
    TensorBoard and CSV that have not opened a file yet, and the folder of each ``ModelCheckpoint`` without ``dirpath``.
    The latter is the same in all runs of a trial, so that a resumed ``ModelCheckpoint`` knows its files again.
    """
    if os.path.realpath(trainer.default_root_dir) == os.path.realpath(os.getcwd()):
        _untyped(trainer)._default_root_dir = str(folder)
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger | CSVLogger) or logger._experiment is not None:
            continue
        if os.path.realpath(logger.save_dir) == os.path.realpath(os.getcwd()):
            logger._root_dir = str(folder)
            if isinstance(logger, CSVLogger):
                logger._save_dir = str(folder)
            elif logger._version is None:
                logger._version = 0  # TensorBoard joins the files of all runs; CSV files would be overwritten
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")


def overwrite_cli_config(trainer: Trainer) -> None:
    """Let a resumed trial that is made of a ``LightningCLI`` write the same ``config.yaml`` again."""
    cli = sys.modules.get("lightning.pytorch.cli")
    if cli is not None:
        for callback in callbacks_of(trainer):
            if isinstance(callback, cli.SaveConfigCallback):
                callback.overwrite = True


def silence(trainer: Trainer) -> None:
    """Take progress bar and model summary away."""
    remove_callbacks(trainer, lambda callback: isinstance(callback, ProgressBar | ModelSummary))


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a Trainer."""
    return list(_untyped(trainer).callbacks)


def add_callback(trainer: Trainer, callback: Callback) -> None:
    """Put a callback behind all others."""
    # A new list: hooks that are just being called go over the old one.
    _untyped(trainer).callbacks = [*callbacks_of(trainer), callback]


def remove_callbacks(trainer: Trainer, which: Callable[[Callback], bool]) -> None:
    """Take the callbacks away for which ``which`` is true."""
    _untyped(trainer).callbacks = [c for c in callbacks_of(trainer) if not which(c)]


def _untyped(trainer: Trainer) -> Any:
    return trainer  # these attributes are set where type checkers do not see it
