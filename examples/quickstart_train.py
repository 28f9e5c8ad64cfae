"""A Lightning classifier of handwritten digits, ready to be tuned.

By hand:    python examples/quickstart_train.py --epochs 10 --lr 0.003
Tuned by:   python examples/quickstart.py
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
    images = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(y)
    rest, test = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=y)
    train, val = train_test_split(rest, test_size=0.25, random_state=0, stratify=y[rest])
    return [TensorDataset(images[split], labels[split]) for split in (train, val, test)]


class DigitClassifier(LightningModule):
    """A small convolutional network.

    Args:
        lr: Learning rate of Adam at the start; it falls to zero over all epochs.
        channels: Channels of the first convolution.
        dropout: Share of features that is dropped in training.
        weight_decay: Decay of the weights.
        epochs: Number of epochs of the whole training.
    """

    def __init__(self, lr: float, channels: int, dropout: float, weight_decay: float, epochs: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * 16, 10),
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val/acc", self._accuracy(batch))

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test/acc", self._accuracy(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr, weight_decay=self.hparams.weight_decay)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.epochs)]

    def _accuracy(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return (self.net(images).argmax(1) == labels).float().mean()


def main() -> None:
    """Train with the hyperparameters of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--weight_decay", type=float, default=1e-2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=27)
    config = vars(parser.parse_args())

    train, val, _ = load_data()
    train_loader = DataLoader(train, config.pop("batch_size"), shuffle=True)
    model = DigitClassifier(**config)
    trainer = Trainer(
        max_epochs=config["epochs"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,  # the callback saves what the tuner needs
        callbacks=[TuneReportCallback({"accuracy": "val/acc"})],  # the one line for tuning
    )
    trainer.fit(model, train_loader, DataLoader(val, len(val)))


if __name__ == "__main__":
    main()
