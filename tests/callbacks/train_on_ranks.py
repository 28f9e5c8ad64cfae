"""A training script on several processes that writes down, rank by rank, what happens in it.

Every rank appends the batches that it has trained on to ``batches-RANK`` in the trial's folder, and what it logs to
``values-RANK``. At the end of each ``fit`` it writes ``end-RUN-RANK.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sthyper import Reporter
from sthyper.callbacks import TuneReportCallback

FOLDER = Path(Reporter().trial_dir or ".")


def note(name: str, *words: Any) -> None:
    """Append a line to a file in the trial's folder."""
    with open(FOLDER / name, "a") as file:
        print(*words, file=file)


if __name__ == "__mp_main__":
    # A spawned rank: what threads of gloo sometimes do while the interpreter is torn down.
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)


class Model(LightningModule):
    """A network with dropout; ``val/loss`` differs by rank before it is reduced."""

    def __init__(self, lr: float, epochs: int, victim: int, sync: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def on_fit_start(self) -> None:
        torch.manual_seed(self.global_rank)  # each rank drops others

    def on_train_epoch_start(self) -> None:
        if Reporter().run == 0 and self.current_epoch == 1 and self.global_rank == self.hparams["victim"]:
            note("killed", time.time())
            os.kill(os.getpid(), signal.SIGKILL)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        note(f"batches-{self.global_rank}", self.current_epoch + 1, batch_idx)
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        # Reduced at the end of the epoch, by whoever looks at it first.
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # On rank 0 alone the best epoch is another one.
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1]) + 2 * self.global_rank * self.current_epoch
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            note(f"values-{self.global_rank}", self.current_epoch + 1, loss.item())
        self.log("val/loss", loss, sync_dist=self.hparams["sync"] == "yes")
        if self.global_rank == 0:
            self.log("own", 7.0, rank_zero_only=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams["epochs"])]


class Watch(Callback):
    """Writes down how each rank begins and ends, and what it knows."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        note(f"stages-{trainer.global_rank}", stage.value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reporter = Reporter()
        end = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "should_stop": trainer.should_stop,
            "config": reporter.config,
            "port": os.environ["MASTER_PORT"],
            "world_size": trainer.world_size,
        }
        (FOLDER / f"end-{reporter.run}-{trainer.global_rank}.json").write_text(json.dumps(end))


def main() -> None:
    """Train, and then test."""
    note("rank-at-start", rank_zero_only.rank)
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--strategy")
    parser.add_argument("--victim", type=int, default=-1)
    parser.add_argument("--sync", default="yes")
    parser.add_argument("--after", default="test validate predict")
    args = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(24, 6)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    model = Model(args.lr, args.epochs, args.victim, args.sync)
    callback = TuneReportCallback({"loss": "val/loss", "train": "train/loss", "own": "own"})
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy=args.strategy,
        logger=False,
        enable_checkpointing=False,
        callbacks=[Watch(), callback],
    )
    trainer.fit(model, DataLoader(data, 3, shuffle=True), DataLoader(data, 12))
    note("after-fit", Reporter().run, trainer.global_rank, callback.decision)
    torch.save(model.state_dict(), FOLDER / f"weights-{trainer.global_rank}.pt")
    if not args.after and callback.decision != "CONTINUE":
        return
    loader = DataLoader(data, 12)
    if "another" in args.after:
        again = TuneReportCallback({"loss": "val/loss"})
        options = {"accelerator": "cpu", "devices": 2, "strategy": args.strategy, "logger": False}
        Trainer(callbacks=[again], enable_checkpointing=False, **options).test(model, loader, verbose=False)
    if "test" in args.after:
        trainer.test(model, loader, verbose=False)
    if "validate" in args.after:
        trainer.validate(model, loader, verbose=False)
    if "predict" in args.after:
        trainer.predict(model, loader, return_predictions=False)
    note("after-test", trainer.global_rank)


if __name__ == "__main__":
    main()
