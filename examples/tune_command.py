"""Tune a program that is not Python, and knows nothing of sthyper, with ASHA; a few seconds.

The program is ``fit_sine.awk``: it takes its hyperparameters on the command line and prints a line such as
``[tune-metric]: {"epoch": 3, "loss": 0.12}`` after each epoch. Any language will do.

Run: python examples/tune_command.py
"""

from __future__ import annotations

from pathlib import Path

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import loguniform, randint, uniform


def main() -> None:
    """Tune three hyperparameters of the program."""
    program = Path(__file__).with_name("fit_sine.awk")
    config_space = {
        "lr": loguniform(1e-3, 1.0),
        "momentum": uniform(0.0, 0.99),
        "degree": randint(1, 7),
        "epochs": 27,
    }
    # A string such as "awk -v lr={lr} ... -f fit_sine.awk" would do as well; a list needs no quoting.
    command = ["awk"]
    for name in config_space:
        command += ["-v", f"{name}={{{name}}}"]
    command += ["-v", "folder={checkpoint_dir}", "-f", str(program)]

    # Every trial ends after 1, 3 and 9 epochs; only the best third is started again and goes on from its weights.
    scheduler = ASHA(
        config_space,
        metric="loss",
        mode="min",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=0,
    )
    tuner = Tuner(
        # The program does not listen: {epochs} is how far to go this time, so that nothing is trained in vain.
        trial_backend=LocalBackend(command, rewrite_max_resource=True),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=20),
        n_workers=2,
        tuner_name="fit-sine",
    )
    experiment = tuner.run()

    best = experiment.best_config()
    print(f"best configuration: trial {best['trial_id']}, loss {best['loss']:.3g} after epoch {best['epoch']}")
    for name in config_space:
        print(f"  {name}: {best[f'config_{name}']}")
    print(f"weights: {experiment.best_checkpoint}")


if __name__ == "__main__":
    main()
