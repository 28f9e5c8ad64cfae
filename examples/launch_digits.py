"""Tune examples/train_digits.py with ASHA on two worker processes; about 20 seconds.

Run: python examples/launch_digits.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import choice, lograndint, loguniform, reverseloguniform, uniform


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--max_num_trials_started", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--random_seed", type=int, default=0)
    args = parser.parse_args()

    config_space = {
        "lr": loguniform(1e-3, 1.0),
        "momentum": reverseloguniform(0.5, 0.99),
        "width": lograndint(8, 256),
        "dropout": uniform(0.0, 0.6),
        "batch_size": choice([32, 64, 128]),
        "epochs": args.epochs,
    }
    # Trials are paused at 1, 3, 9 epochs; the best third goes on from its checkpoint.
    scheduler = ASHA(
        config_space,
        metric="accuracy",
        mode="max",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=1,
        reduction_factor=3,
        random_seed=args.random_seed,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(entry_point=Path(__file__).with_name("train_digits.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=args.max_num_trials_started),
        n_workers=args.n_workers,
        tuner_name="digits",
    )
    tuner.run()

    experiment = load_experiment(tuner.name)
    print(experiment)
    print("best configuration:")
    for name, value in experiment.best_config().items():
        print(f"  {name.removeprefix('config_')}: {value}")
    print(f"best checkpoint: {experiment.best_checkpoint}")


if __name__ == "__main__":
    main()
