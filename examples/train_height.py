"""A training script without training: a learning curve that is known, for examples of the tuner.

Runs by hand, too: ``python examples/train_height.py --width 5 --height -50 --sleep_time 0``
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from sthyper import Reporter
from sthyper.config_space import randint

RESOURCE_ATTR = "epoch"
METRIC_ATTR = "mean_loss"
METRIC_MODE = "min"
MAX_RESOURCE_ATTR = "steps"


def train_height(step: int, width: float, height: float) -> float:
    """Return the loss after ``step`` steps: it falls from 10 towards 0 the faster the larger ``width`` is, plus a
    tenth of ``height``."""
    return 100 / (10 + width * step) + 0.1 * height


def height_config_space(max_steps: int, sleep_time: float | None = None) -> dict[str, Any]:
    """Return the space of the script; the best configuration is the largest width with the lowest height.

    Args:
        max_steps: Number of steps of a trial.
        sleep_time: Seconds that a step takes; the script's default if ``None``.
    """
    space: dict[str, Any] = {MAX_RESOURCE_ATTR: max_steps, "width": randint(0, 20), "height": randint(-100, 100)}
    return space if sleep_time is None else {**space, "sleep_time": sleep_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(f"--{MAX_RESOURCE_ATTR}", type=int, default=10)
    parser.add_argument("--width", type=float, required=True)
    parser.add_argument("--height", type=float, required=True)
    parser.add_argument("--sleep_time", type=float, default=0.1, help="seconds a step")
    args, _ = parser.parse_known_args()

    report = Reporter()
    for step in range(args.steps):
        time.sleep(args.sleep_time)
        loss = train_height(step, args.width, args.height)
        report(**{"step": step, METRIC_ATTR: loss, RESOURCE_ATTR: step + 1})


if __name__ == "__main__":
    main()
