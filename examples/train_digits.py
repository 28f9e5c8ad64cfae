"""Train a small network on scikit-learn's digits: a training script that can be tuned, paused and resumed.

By hand:    python examples/train_digits.py --epochs 10 --lr 0.1
Tuned by:   python examples/launch_digits.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

from sthyper import Reporter
from sthyper.utils import (
    add_checkpointing_to_argparse,
    checkpoint_model_at_rung_level,
    pytorch_load_save_functions,
    resume_from_checkpointed_model,
)


def load_data() -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return (images, labels) for training, validation and test: 60, 20 and 20 percent, always the same."""
    x, y = load_digits(return_X_y=True)
    x_train, x_rest, y_train, y_rest = train_test_split(x / 16.0, y, test_size=0.4, random_state=0, stratify=y)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, test_size=0.5, random_state=0, stratify=y_rest)

    def tensors(images: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)

    return tensors(x_train, y_train), tensors(x_val, y_val), tensors(x_test, y_test)


def make_model(width: int, dropout: float) -> nn.Module:
    """Return a network with one hidden layer: (n, 64) pixels to (n, 10) logits."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images with the right label."""
    model.eval()
    return (model(x).argmax(1) == y).float().mean().item()


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, size: int
) -> None:
    """Go once through the training data in batches of ``size``."""
    model.train()
    for batch in torch.randperm(len(x)).split(size):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def main() -> None:
    """Train, and report the accuracy on the validation data after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=64)
    add_checkpointing_to_argparse(parser)
    config = vars(parser.parse_args())

    report = Reporter()
    seed = report.seed or 0
    torch.manual_seed(seed)
    train, validation, test = load_data()
    model = make_model(config["width"], config["dropout"])
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=config["momentum"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["epochs"])

    objects = {"model": model, "optimizer": optimizer, "schedule": schedule}
    load, save = pytorch_load_save_functions(objects, fname="checkpoint.pt")
    done = resume_from_checkpointed_model(config, load)
    for epoch in range(done + 1, config["epochs"] + 1):
        torch.manual_seed(seed + epoch)  # order and dropout of an epoch are the same whether the run was paused or not
        train_epoch(model, optimizer, *train, config["batch_size"])
        schedule.step()
        checkpoint_model_at_rung_level(config, save, epoch)  # first the checkpoint, then the report
        report(epoch=epoch, accuracy=evaluate(model, *validation))
    print(f"test accuracy: {evaluate(model, *test):.3f}")


if __name__ == "__main__":
    main()
