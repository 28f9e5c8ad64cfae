"""Reports a second that the asynchronous successive halving schedulers decide about, without processes.

1000 trials of up to 81 epochs on 8 simulated workers, values from a toy curve that is computed beforehand. The budget
is that of simulated ASHA through tuner and journal (30 000 reports a second), of which the scheduler is a part: a
ratio well above 1 leaves room for the rest. Times are process CPU times, the best of three.

    python benchmarks/scheduler_throughput.py
"""

from __future__ import annotations

import argparse
import heapq
import time
from datetime import datetime

from sthyper.baselines import ASHA
from sthyper.config_space import loguniform, randint, uniform
from sthyper.trial import SchedulerDecision, Trial

BUDGET = 30_000
CONFIG_SPACE = {"lr": loguniform(1e-5, 1e-1), "width": randint(8, 512), "dropout": uniform(0.0, 0.9), "epochs": 81}


def run(kind: str, n_trials: int, n_workers: int, seed: int, brackets: int = 1) -> tuple[float, int]:
    """Return the CPU seconds inside the scheduler's report method, suggestions included, and the number of reports."""
    scheduler = ASHA(CONFIG_SPACE, "loss", type=kind, max_resource_attr="epochs", random_seed=seed, brackets=brackets)
    running: list[tuple[float, int]] = []
    trials: dict[int, Trial] = {}
    reached: dict[int, int] = {}
    reports, now = 0, 0.0
    start = time.process_time()
    while True:
        while len(running) < n_workers:
            suggestion = scheduler.suggest(len(trials))
            assert suggestion is not None
            if suggestion.spawn_new_trial_id:
                if len(trials) == n_trials:
                    break
                assert suggestion.config is not None
                trial = Trial(len(trials), suggestion.config, datetime(2020, 1, 1))
                trials[trial.trial_id], reached[trial.trial_id] = trial, 0
                scheduler.on_trial_add(trial)
            else:
                assert suggestion.checkpoint_trial_id is not None
                trial = trials[suggestion.checkpoint_trial_id]
            heapq.heappush(running, (now + trial.config["width"], trial.trial_id))
        if not running:
            break
        now, trial_id = heapq.heappop(running)
        trial = trials[trial_id]
        epoch = reached[trial_id] = reached[trial_id] + 1
        loss = trial.config["dropout"] + trial.config["lr"] / epoch
        decision = scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss, "st_worker_time": now})
        reports += 1
        if decision == SchedulerDecision.CONTINUE:
            heapq.heappush(running, (now + trial.config["width"], trial_id))
        elif epoch == CONFIG_SPACE["epochs"]:
            scheduler.on_trial_complete(trial, {"epoch": epoch, "loss": loss})
        else:
            scheduler.on_trial_remove(trial)
    return time.process_time() - start, reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--brackets", type=int, default=1)
    args = parser.parse_args()
    for kind in ("stopping", "promotion"):
        runs = [run(kind, args.trials, args.workers, seed, args.brackets) for seed in range(args.repetitions)]
        rates = [reports / seconds for seconds, reports in runs]
        best = max(rates)
        print(
            f"{kind:>9}: {best:10,.0f} reports/s ({runs[0][1]} reports of {args.trials} trials), "
            f"{best / BUDGET:.2f} times the budget of {BUDGET:,}/s"
        )


if __name__ == "__main__":
    main()
