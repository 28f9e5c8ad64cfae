"""Tune from outside and inside at once: ASHA chooses width and learning rate, each trial tunes its own regularisation.

Every trial is one Lightning training of a classifier of handwritten digits on few images, under strong noise.
SelfTuningCallback moves its dropout rates, input noise and weight decay by gradient while it trains; TuneReportCallback
reports to ASHA, which pauses trials after 10 epochs and goes on with the best third. They keep what they have tuned.

Run: python examples/hybrid.py        (about a minute)
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import PythonBackend
from sthyper.baselines import ASHA
from sthyper.callbacks import SelfTuningCallback, TuneReportCallback
from sthyper.config_space import lograndint, loguniform, uniform
from sthyper.selftuning.regularisers import gaussian_noise
from sthyper.selftuning.transform import squared_norms


class Classifier(LightningModule):
    """One hidden layer; its training step regularises with the strengths that the callback tunes."""

    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.input_dropout = nn.Dropout(0.0)
        self.hidden = nn.Linear(64, width)
        self.hidden_dropout = nn.Dropout(0.0)
        self.output = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10) of pixels (n, 64)."""
        h = self.hidden(self.input_dropout(x)).relu()
        return self.output(self.hidden_dropout(h))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss with input noise and weight decay."""
        strengths = self.selftuning.hyperparameters
        loss = cross_entropy(self(gaussian_noise(batch[0], strengths["noise"])), batch[1])
        return loss + 0.5 * (strengths["decay"] * squared_norms(self)).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss, which hyper steps minimise."""
        logits = self(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.log("val/loss", loss)
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser of all parameters; the callback takes its own out."""
        return torch.optim.SGD(self.parameters(), self.hparams["lr"], momentum=0.9)


def make_data(first: int, last: int) -> TensorDataset:
    """Return images with noise, always the same."""
    x, y = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.tensor(x / 8 - 1, dtype=torch.float32) + torch.randn(len(y), 64, generator=generator)
    order = torch.randperm(len(y), generator=generator)[first:last]
    return TensorDataset(images[order], torch.tensor(y)[order])


def train(width: int, lr: float, epochs: int) -> None:
    """Train one configuration, and tune its regularisation on the way."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    tuning = SelfTuningCallback(
        {
            "input_dropout": uniform(0.0, 0.8),
            "hidden_dropout": uniform(0.0, 0.8),
            "noise": uniform(0.0, 1.0),
            "decay": loguniform(1e-6, 1e-1),
        },
        train_steps=1,
    )
    names = {"loss": "val/loss", "accuracy": "val/accuracy"}
    names |= {name: f"selftuning/value/{name}" for name in tuning.values()}
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[tuning, TuneReportCallback(names)],
    )
    trainer.fit(
        Classifier(width, lr),
        DataLoader(make_data(0, 300), 50, shuffle=True),
        DataLoader(make_data(300, 900), 50),
    )


def main() -> None:
    """Run the experiment, and show what was chosen outside and tuned inside."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=9, help="number of configurations")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n_workers", type=int, default=2)
    args = parser.parse_args()

    config_space = {"width": lograndint(16, 256), "lr": loguniform(1e-3, 1e-1), "epochs": args.epochs}
    scheduler = ASHA(
        config_space,
        metric="loss",
        mode="min",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=max(args.epochs // 3, 1),
        reduction_factor=3,
        random_seed=0,
    )
    logging.getLogger("sthyper").setLevel(logging.WARNING)
    tuner = Tuner(
        PythonBackend(train, config_space),
        scheduler,
        StoppingCriterion(max_num_trials_started=args.trials),
        n_workers=args.n_workers,
        tuner_name="hybrid",
    )
    experiment = tuner.run()

    inside = ["input_dropout", "hidden_dropout", "noise", "decay"]
    best = experiment.best_config()
    print(f"best configuration: trial {best['trial_id']}, loss {best['loss']:.3f} after epoch {best['epoch']}")
    print(f"  chosen outside: width {best['config_width']}, lr {best['config_lr']:.4f}")
    curve = experiment.results.query(f"trial_id == {best['trial_id']}").sort_values("epoch")
    for name in inside:
        first, last = curve[name].iloc[0], best[name]
        print(f"  tuned inside:   {name} {first:.4g} -> {last:.4g}")


if __name__ == "__main__":
    main()
