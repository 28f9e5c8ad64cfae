"""Write a scheduler of your own and tune with it.

The rule of this one: keep all values that were ever reported, sorted; a trial goes on as long as its newest value is
not among the worst fifth. Configurations are drawn at random.

    python examples/custom_scheduler.py
"""

from __future__ import annotations

import argparse
import bisect
import math
from pathlib import Path
from typing import Any

import numpy as np
from train_height import METRIC_ATTR, METRIC_MODE, height_config_space

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.config_space import sample_config
from sthyper.schedulers import SchedulerDecision, TrialScheduler, TrialSuggestion, report_value
from sthyper.trial import Trial


class RankScheduler(TrialScheduler):
    """Stops a trial whose newest value is worse than most of what was reported so far, by any trial.

    Three methods are needed: ``_suggest``, ``on_trial_result`` and ``metric_names``. With ``state_dict`` and
    ``load_state_dict`` an experiment with this scheduler can be resumed. ``sthyper.testing.SchedulerConformance``
    tests all of it.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric.
        mode: ``"min"`` or ``"max"``.
        max_rank: A trial goes on while the rank of its value, from 0 (best) to 1, is below this.
        random_seed: Seed of the configurations.
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        mode: str = "min",
        max_rank: float = 0.8,
        random_seed: int = 0,
    ) -> None:
        super().__init__(config_space)
        self.metric = metric
        self.mode = mode
        self.max_rank = max_rank
        self.random_seed = random_seed
        self.sorted_values: list[float] = []
        self.generator = np.random.default_rng(random_seed)

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        # Constants of the space are added by the base class.
        return TrialSuggestion.start_suggestion(sample_config(self.config_space, self.generator))

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        value = report_value(result, self.metric)  # with a helpful error if it is missing
        if not math.isfinite(value):
            return SchedulerDecision.STOP
        position = bisect.bisect_left(self.sorted_values, value)
        self.sorted_values.insert(position, value)
        rank = position / len(self.sorted_values)
        if self.mode == "max":
            rank = 1 - rank
        return SchedulerDecision.CONTINUE if rank < self.max_rank else SchedulerDecision.STOP

    def metric_names(self) -> list[str]:
        return [self.metric]

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.sorted_values), "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sorted_values = list(state["values"])
        self.generator.bit_generator.state = state["generator"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sleep_time", type=float, default=0.05, help="seconds a step")
    args = parser.parse_args()

    scheduler = RankScheduler(
        height_config_space(args.steps, args.sleep_time), METRIC_ATTR, METRIC_MODE, random_seed=31415927
    )
    tuner = Tuner(
        trial_backend=LocalBackend(Path(__file__).with_name("train_height.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=args.trials),
        n_workers=args.workers,
        tuner_name="custom-scheduler",
    )
    tuner.run()
    trial_id, config = tuner.best_config()
    print(f"{len(scheduler.sorted_values)} values from {args.trials} trials of up to {args.steps} steps")
    print(f"best trial: {trial_id}, width={config['width']}, height={config['height']}")


if __name__ == "__main__":
    main()
