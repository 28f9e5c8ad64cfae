"""Tune Lightning trials that train on two processes each (DDP), with ASHA that pauses and promotes them.

Run: python examples/lightning_ddp.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import choice, lograndint, loguniform


def main() -> None:
    """Tune, and show what each trial came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4, help="number of configurations")
    parser.add_argument("--workers", type=int, default=2, help="trials at the same time, of two processes each")
    parser.add_argument("--strategy", default="ddp_fork", choices=["ddp", "ddp_fork", "ddp_spawn"])
    args = parser.parse_args()

    config_space = {
        "lr": loguniform(1e-4, 1e-1),
        "width": lograndint(16, 256),
        "batch_size": choice([16, 32, 64]),
        "epochs": 8,
        "strategy": args.strategy,
    }
    # Every trial pauses, on both processes, after 2 and 4 epochs; the better half goes on from its checkpoint.
    scheduler = ASHA(
        config_space,
        metric="accuracy",
        mode="max",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=2,
        reduction_factor=2,
        random_seed=0,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(Path(__file__).with_name("lightning_ddp_train.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=args.trials),
        n_workers=args.workers,
        tuner_name="lightning-ddp",
    )
    experiment = tuner.run()

    columns = ["trial_id", "epoch", "accuracy", "config_lr", "config_width", "config_batch_size"]
    last = experiment.results.sort_values("epoch").drop_duplicates("trial_id", keep="last")
    print("\nlast report of each trial:")
    print(last[columns].sort_values("trial_id").to_string(index=False))
    best = experiment.best_config()
    print(f"best configuration: trial {best['trial_id']}, accuracy {best['accuracy']:.3f} after epoch {best['epoch']}")
    print(f"checkpoint of the best model: {experiment.best_checkpoint}")


if __name__ == "__main__":
    main()
