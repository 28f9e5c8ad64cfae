"""Which of 100 features matter? Gates on the inputs of a network find the 5 that do, while it is trained; seconds.

Each feature gets a gate that is open or closed in each example, with a probability that is trained together with the
weights (a straight-through estimator); open ones cost a penalty. What is left is a plain network with the weights of
the other features set to zero, which is better on new data than the network that sees all.

Run: python examples/feature_gates.py [--seed 1] [--estimator hard_concrete] [--validation]
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.callbacks import GateTuningCallback

INFORMATIVE, NOISE = 5, 95


class Net(LightningModule):
    """A classifier that knows nothing of gates."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Linear(INFORMATIVE + NOISE, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N x 2) of examples (N x 100)."""
        return self.head(torch.relu(self.features(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train with Adam."""
        return torch.optim.Adam(self.parameters(), 0.01)


def examples(n: int, seed: int) -> TensorDataset:
    """Return ``n`` examples: the first 5 features decide on the class, by a sum of a line and a curve."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INFORMATIVE + NOISE, generator=generator)
    score = x[:, 0] + x[:, 1] - x[:, 2] + 1.5 * (x[:, 3].abs() - 0.8) + 1.5 * x[:, 4].sin()
    return TensorDataset(x, (score + 0.3 * torch.randn(n, generator=generator) > 0).long())


def train(seed: int, epochs: int, n: int, tuning: GateTuningCallback | None) -> Net:
    """Return a network that was trained, with gates if there is a callback."""
    torch.manual_seed(seed)
    model = Net()
    loader = DataLoader(examples(n, seed), 50, shuffle=True, generator=torch.Generator().manual_seed(seed))
    trainer = Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if tuning is None else [tuning],
    )
    trainer.fit(model, loader, DataLoader(examples(n, seed + 1000), 50))
    return model


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of examples that a model classifies right."""
    x, y = data.tensors
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train with and without gates, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--examples", type=int, default=1000, help="number of training examples")
    parser.add_argument("--penalty", type=float, default=0.01, help="cost of an open gate")
    parser.add_argument("--warm_up_epochs", type=int, default=5, help="epochs with open gates at the beginning")
    parser.add_argument("--estimator", choices=["identity", "probs", "gumbel", "hard_concrete"], default="identity")
    parser.add_argument("--validation", action="store_true", help="train the gates on validation data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")

    tuning = GateTuningCallback(
        {"features": "inputs"},
        penalty=args.penalty,
        val_dataloader="val" if args.validation else None,
        estimator=args.estimator,
        warm_up_epochs=args.warm_up_epochs,
        seed=args.seed,
    )
    gated = train(args.seed, args.epochs, args.examples, tuning)
    plain = tuning.export(gated)
    ungated = train(args.seed, args.epochs, args.examples, None)

    probabilities = tuning.probabilities()["features"]
    print("informative features:", " ".join(f"{p:.3f}" for p in probabilities[:INFORMATIVE]))
    for i, row in enumerate(probabilities[INFORMATIVE:].split(19)):
        print("noise:" if i == 0 else "      ", " ".join(f"{p:.2f}" for p in row))
    found = int((probabilities[:INFORMATIVE] > 0.9).sum())
    closed = int((probabilities[INFORMATIVE:] < 0.1).sum())
    print(f"{found} of {INFORMATIVE} informative features above 0.9, {closed} of {NOISE} others below 0.1")
    test = examples(5000, args.seed + 2000)
    print(f"test accuracy: {accuracy(plain, test):.4f} exported, {accuracy(ungated, test):.4f} without gates")
    used = int((plain.features.weight != 0).any(0).sum())
    print(f"the exported {type(plain).__name__} uses {used} of {INFORMATIVE + NOISE} features")


if __name__ == "__main__":
    main()
