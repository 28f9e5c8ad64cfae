"""A Lightning classifier of handwritten digits that trains on two processes (DDP), ready to be tuned.

By hand:    python examples/lightning_ddp_train.py --epochs 8 --lr 0.003
Tuned by:   python examples/lightning_ddp.py
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sthyper.callbacks import TuneReportCallback


def load_data() -> list[TensorDataset]:
    """Return training, validation and test data: 60, 20 and 20 percent of 1797 images of 8 x 8 pixels."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    rest, test = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=y)
    train, val = train_test_split(rest, test_size=0.25, random_state=0, stratify=y[rest])
    return [TensorDataset(images[split], labels[split]) for split in (train, val, test)]


class DigitClassifier(LightningModule):
    """A network with one hidden layer.

    Args:
        lr: Learning rate of Adam.
        width: Units of the hidden layer.
    """

    def __init__(self, lr: float, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        # Each process sees half of the data: sync_dist=True makes one value of the two.
        self.log("val/acc", self._accuracy(batch), sync_dist=True)

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test/acc", self._accuracy(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)

    def _accuracy(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return (self.net(images).argmax(1) == labels).float().mean()


def main() -> None:
    """Train with the hyperparameters of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32, help="of each of the two processes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--strategy", default="ddp_fork", help="ddp and ddp_spawn work, too, and start more slowly")
    args = parser.parse_args()

    train, val, test = load_data()
    model = DigitClassifier(args.lr, args.width)
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy=args.strategy,
        logger=False,
        enable_checkpointing=False,  # the callback saves what the tuner needs
        callbacks=[TuneReportCallback({"accuracy": "val/acc"})],  # the one line for tuning
    )
    trainer.fit(model, DataLoader(train, args.batch_size, shuffle=True), DataLoader(val, 180))
    # Only trials that were not paused for good come here.
    trainer.test(model, DataLoader(test, 180))


if __name__ == "__main__":
    main()
