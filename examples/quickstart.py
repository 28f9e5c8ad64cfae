"""Tune a Lightning classifier of handwritten digits: with ASHA on two worker processes, then inside one training run.

Run: python examples/quickstart.py (less than two minutes)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quickstart_inside import draw, train_once_more
from quickstart_train import DigitClassifier, load_data

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import choice, lograndint, loguniform, uniform
from sthyper.errors import MissingExtra
from sthyper.experiment import ExperimentResult


def draw_all(experiment: ExperimentResult, plain: list[float], tuned: list[float], tuning: Any, path: str) -> None:
    """Draw the learning curves of all trials, and those of the runs with and without tuning inside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 8.0), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    experiment.plot_trials_over_time(ax=figure.add_subplot(grid[0, :]))
    draw([figure.add_subplot(grid[1, column]) for column in (0, 1)], plain, tuned, tuning)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Tune, then test the best model on images that no trial has seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="number of configurations")
    parser.add_argument("--figure", default="quickstart.png", help="where to draw the learning curves")
    args = parser.parse_args()

    config_space = {
        "lr": loguniform(1e-4, 1e-1),
        "channels": lograndint(4, 32),
        "dropout": uniform(0.0, 0.6),
        "weight_decay": loguniform(1e-4, 1.0),
        "batch_size": choice([32, 64, 128]),
        "epochs": 27,
    }
    # Every trial pauses after 1, 3 and 9 epochs; only the best third goes on from its checkpoint.
    scheduler = ASHA(
        config_space,
        metric="accuracy",
        mode="max",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=1,
        reduction_factor=3,
        random_seed=0,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(entry_point=Path(__file__).with_name("quickstart_train.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=args.trials),
        n_workers=2,
        tuner_name="quickstart",
    )
    experiment = tuner.run()

    best = experiment.best_config()
    print(
        f"\nbest configuration: trial {best['trial_id']}, accuracy {best['accuracy']:.3f} after epoch {best['epoch']}"
    )
    for name in config_space:
        print(f"  {name}: {best[f'config_{name}']}")

    print("\nbest report of each trial, the first ten:")
    columns = ["trial_id", "epoch", "accuracy", "config_lr", "config_channels", "config_dropout"]
    table = experiment.results[columns].sort_values("accuracy", ascending=False).drop_duplicates("trial_id")
    print(table.head(10).to_string(index=False))

    # Inside: one more run, in which dropout and weight decay are tuned by gradient.
    config = {name: best[f"config_{name}"] for name in config_space}
    plain, tuned, tuning = train_once_more(config)
    print(f"\ntrained once more: accuracy {max(plain):.3f}; self-tuned: accuracy {max(tuned):.3f}")
    for name, value in tuning.values().items():
        print(f"  {name}: {config[name]:.4g} in the search, {value:.4g} at the end of the self-tuned run")

    try:
        draw_all(experiment, plain, tuned, tuning, args.figure)
        print(f"learning curves: {args.figure}")
    except ImportError:
        print(f"no figure: {MissingExtra('matplotlib', 'visual')}")

    model = DigitClassifier.load_from_checkpoint(experiment.best_checkpoint, weights_only=True)
    print(f"checkpoint of the best model: {experiment.best_checkpoint}")
    images, labels = load_data()[2].tensors
    accuracy = (model.eval().net(images).argmax(1) == labels).float().mean().item()
    print(f"best test accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
