"""Validation batches to tune on: endless, apart from the Trainer's own, and in an order that a seed decides."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, RandomSampler

from sthyper.callbacks.lightning._passes import seed_all, validating
from sthyper.selftuning._batches import _generators, check_loader, random_state, set_random_state

__all__ = ["ValidationStream", "find_loader", "mixed", "to_device"]


def mixed(seed: int, *numbers: int) -> int:
    """Return a seed that depends on all of these, which must not be negative."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def find_loader(trainer: Trainer, own: Any, owner: str, steps: str) -> Any:
    """Return the loader of validation data, this rank's part of it.

    Args:
        trainer: The Trainer, in ``on_train_start``.
        own: The loader that the callback was given, ``None`` for the Trainer's.
        owner: Name of the callback, for messages.
        steps: What the steps on the data are called there.

    Raises:
        TypeError: If it is no loader.
        ValueError: If it has less than a batch.
    """
    name = "the Trainer's val_dataloader" if own is None else "val_dataloader"
    loader = own
    if own is None:
        if trainer.val_dataloaders is None:
            with validating(trainer):  # the Trainer makes it later, with check_val_every_n_epoch
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
        loader = trainer.val_dataloaders
        while isinstance(loader, Mapping) or (isinstance(loader, Sequence) and not isinstance(loader, DataLoader)):
            parts = list(loader.values()) if isinstance(loader, Mapping) else list(loader)
            if len(parts) > 1:
                rank_zero_info(f"{owner}: {steps} use the first of {len(parts)} validation loaders")
            loader = parts[0] if parts else None
    check_loader(loader, name, whole_batch=True)
    if own is not None:
        shuffled = _is_shuffled(loader)
        loader = trainer._data_connector._prepare_dataloader(loader, shuffle=shuffled, mode=RunningStage.VALIDATING)
        loader = trainer.strategy.process_dataloader(loader)
    if isinstance(loader, DataLoader):
        # Workers that persist belong to one iterator, which the Trainer would take back.
        loader = copy.copy(loader)
        loader._iterator = None
    return loader


def _is_shuffled(loader: Any) -> bool:
    return isinstance(getattr(loader, "sampler", None), RandomSampler)


def to_device(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Do with a validation batch what Lightning does before ``validation_step``."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


class ValidationStream:
    """Gives batches one by one, pass after pass, in a random world of its own.

    Where it is depends on the seed and two numbers only: a resumed run begins the pass again and runs through the
    batches that were taken.

    Args:
        loader: The loader.
        seed: Its seed, of its own on each rank.

    Attributes:
        passes: Finished passes.
        taken: Batches taken of this one.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader = loader
        self.passes = 0
        self.taken = 0
        self._seed = seed
        self._world: dict[str, Any] | None = None
        self._iterator: Iterator[Any] | None = None

    def next(self) -> tuple[Any, int]:
        """Return the next batch and its number within its pass.

        Raises:
            ValueError: If a pass has no batch.
        """
        with self._own_world():
            if self._iterator is None:
                self._iterator = self._begin()
                for _ in range(self.taken):
                    next(self._iterator)
            try:
                batch = next(self._iterator)
            except StopIteration:
                if not self.taken:
                    raise ValueError("the validation data gives no batches") from None
                self.passes, self.taken = self.passes + 1, 0
                self._iterator = self._begin()
                batch = next(self._iterator)
        self.taken += 1
        return batch, self.taken - 1

    def close(self) -> None:
        """Give up iterators and their workers."""
        self._iterator = None
        if isinstance(self.loader, DataLoader):
            self.loader._iterator = None

    def _begin(self) -> Iterator[Any]:
        seed = mixed(self._seed, self.passes)
        seed_all(seed)
        for i, generator in enumerate(_generators(self.loader)):
            generator.manual_seed(mixed(seed, i))
        for sampler in self._samplers():
            sampler.set_epoch(self.passes)
        return iter(self.loader)

    def _samplers(self) -> list[Any]:
        samplers = (getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None))
        return [s for s in samplers if callable(getattr(s, "set_epoch", None)) and hasattr(s, "epoch")]

    @contextmanager
    def _own_world(self) -> Iterator[None]:
        outside, epochs = random_state(self.loader), [s.epoch for s in self._samplers()]
        if self._world is not None:
            set_random_state(self._world, self.loader)
            for sampler in self._samplers():
                sampler.set_epoch(self.passes)
        try:
            yield
        finally:
            self._world = random_state(self.loader)
            set_random_state(outside, self.loader)
            for sampler, epoch in zip(self._samplers(), epochs, strict=True):
                sampler.set_epoch(epoch)
