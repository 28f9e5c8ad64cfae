"""Tune a function that trains a small network on handwritten digits with ASHA on two worker processes; 20 seconds.

Run: python examples/tune_function.py
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

from sthyper import Reporter, StoppingCriterion, Tuner
from sthyper.backend import PythonBackend
from sthyper.baselines import ASHA
from sthyper.config_space import choice, lograndint, loguniform, uniform
from sthyper.utils import (
    checkpoint_model_at_rung_level,
    pytorch_load_save_functions,
    resume_from_checkpointed_model,
)


def train(lr: float, width: int, dropout: float, batch_size: int, epochs: int) -> None:
    """Train with the given hyperparameters and report the validation accuracy after each epoch."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    fit, val = train_test_split(torch.arange(len(y)), test_size=0.3, random_state=0, stratify=y)

    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    load, save = pytorch_load_save_functions({"model": model, "optimizer": optimizer})
    report = Reporter()
    for epoch in range(resume_from_checkpointed_model({}, load) + 1, epochs + 1):
        model.train()
        for batch in fit[torch.randperm(len(fit))].split(batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[val]).argmax(1) == labels[val]).float().mean().item()
        checkpoint_model_at_rung_level({}, save, epoch)  # first the checkpoint, then the report
        report(epoch=epoch, accuracy=accuracy)


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=20, help="number of configurations")
    parser.add_argument("--launch", default="auto", help="fork, exec, or inline for a debugger")
    args = parser.parse_args()

    config_space = {
        "lr": loguniform(1e-4, 1e-1),
        "width": lograndint(8, 256),
        "dropout": uniform(0.0, 0.6),
        "batch_size": choice([32, 64, 128]),
        "epochs": 9,
    }
    tuner = Tuner(
        PythonBackend(train, config_space, launch=args.launch),
        ASHA(
            config_space,
            metric="accuracy",
            mode="max",
            resource_attr="epoch",
            max_resource_attr="epochs",
            type="promotion",
            random_seed=0,
        ),
        StoppingCriterion(max_num_trials_started=args.trials),
        n_workers=args.n_workers,
    )
    experiment = tuner.run()

    best = experiment.best_config()
    print(f"best configuration: trial {best['trial_id']}, accuracy {best['accuracy']:.3f}")
    for name in config_space:
        print(f"  {name}: {best[f'config_{name}']}")


if __name__ == "__main__":
    main()
