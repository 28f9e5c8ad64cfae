"""A training loop of your own: ask for a configuration, train it epoch by epoch, tell what came out.

No tuner, no processes. The scheduler is asynchronous successive halving: after 1, 3 and 9 epochs a trial pauses, and
only the best are taken up again. Halfway the search is saved, forgotten, and loaded again, as after a crash.

    python examples/ask_tell.py --trials 30
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

from sthyper.baselines import ASHA
from sthyper.config_space import choice, loguniform
from sthyper.schedulers import AskedTrial, AskTellScheduler

CONFIG_SPACE: dict[str, Any] = {
    "loss": choice(["hinge", "log_loss", "modified_huber"]),
    "penalty": choice(["l2", "l1", "elasticnet"]),
    "alpha": loguniform(1e-7, 1e-1),
    "eta0": loguniform(1e-4, 10.0),
    "epochs": 27,
}
Models = dict[int, SGDClassifier]


def new_scheduler() -> AskTellScheduler:
    """Return the scheduler; the same arguments are needed before a state is loaded."""
    return AskTellScheduler(
        ASHA(CONFIG_SPACE, "accuracy", mode="max", type="promotion", max_resource_attr="epochs", random_seed=0)
    )


def new_model(trial: AskedTrial) -> SGDClassifier:
    """Return an untrained classifier with the trial's hyperparameters and seed."""
    config = {name: value for name, value in trial.config.items() if name != "epochs"}
    return SGDClassifier(learning_rate="constant", random_state=trial.seed, **config)


def train(scheduler: AskTellScheduler, trial: AskedTrial, models: Models, data: list[np.ndarray]) -> str:
    """Train one trial until the scheduler decides otherwise, and return the decision."""
    x_train, x_val, y_train, y_val = data
    if trial.trial_id not in models:
        models[trial.trial_id] = new_model(trial)
    model = models[trial.trial_id]  # that of a paused trial goes on where it was
    decision = "CONTINUE"
    for epoch in range((trial.last_resource or 0) + 1, trial.config["epochs"] + 1):
        try:
            model.partial_fit(x_train, y_train, classes=np.arange(10))
        except ValueError as error:  # the weights overflowed
            scheduler.fail(trial, f"diverged: {error}")
            return "failed"
        decision = scheduler.tell(trial, epoch=epoch, accuracy=float(model.score(x_val, y_val)))
        if decision != "CONTINUE":
            break
    return decision


def search(scheduler: AskTellScheduler, models: Models, data: list[np.ndarray], n_trials: int, path: Path) -> None:
    """Train until more than ``n_trials`` trials would be started; save after each piece of training."""
    unfinished = scheduler.running_trials  # asked for before the state was saved, not trained yet
    while (trial := unfinished.pop() if unfinished else scheduler.ask()) is not None:
        if trial.trial_id >= n_trials:
            save(scheduler, models, path)
            return
        first = (trial.last_resource or 0) + 1
        decision = train(scheduler, trial, models, data)
        print(f"trial {trial.trial_id:2}: from epoch {first:2}: {decision}")
        save(scheduler, models, path)


def save(scheduler: AskTellScheduler, models: Models, path: Path) -> None:
    """Write everything that a fresh process needs to go on."""
    temporary = path.with_suffix(".tmp")
    joblib.dump({"scheduler": scheduler.state_dict(), "models": models}, temporary)
    os.replace(temporary, path)  # never half a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--restart_after", type=int, default=15, help="trials before everything is loaded again")
    parser.add_argument("--file", type=Path, default=Path("ask_tell.joblib"), help="where the search is saved")
    args = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16.0, y, test_size=0.2, random_state=0)
    data = train_test_split(x_train, y_train, test_size=0.25, random_state=0)

    scheduler, models = new_scheduler(), Models()
    if args.restart_after:
        search(scheduler, models, data, args.restart_after, args.file)
        saved = joblib.load(args.file)
        print(f"--- loaded from {args.file}: {len(saved['models'])} models")
        scheduler, models = new_scheduler(), saved["models"]
        scheduler.load_state_dict(saved["scheduler"])
    search(scheduler, models, data, args.trials, args.file)

    best = scheduler.best_trial()
    accuracy = max(report["accuracy"] for report in best.metrics)
    print(f"best: trial {best.trial_id}, validation accuracy {accuracy:.3f} in {best.last_resource} epochs")
    print(f"configuration: {best.config}")
    print(f"test accuracy: {models[best.trial_id].score(x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
