"""How long a suggestion takes against the number of observations: process CPU time, one thread.

Observations of a smooth function of 7 mixed hyperparameters at random configurations are told as results of other
trials. Then come suggestions that each follow one new observation, the value of the one before; the first of them fits
from nothing and is listed apart. At last the state is saved, loaded into a fresh searcher, and its first suggestion
timed (median over three fresh ones, the time of loading apart). Telling is part of each time. Median, smallest and
largest in milliseconds.

Budgets of ours, refit included and no data cap: median 100 ms at 200 observations, 250 at 1000, 800 at 2000; the first
suggestion after loading at most 1.5 times that.

Run: python benchmarks/bayesopt_times.py [--methods ours optuna-gp botorch] [--sizes 20 50 100 200 500 1000 2000]
Options of ours go behind a colon, as for bayesopt_quality.py.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _methods import PEERS, Method, make_method, one_thread, parse_method

from sthyper.config_space import choice, lograndint, loguniform, randint, sample_config, uniform

SIZES = [20, 50, 100, 200, 500, 1000, 2000]
BUDGETS_MS = {200: 100.0, 1000: 250.0, 2000: 800.0}
SPACE = {
    "lr": loguniform(1e-5, 1e-1),
    "weight_decay": loguniform(1e-6, 1e-1),
    "momentum": uniform(0.0, 0.99),
    "dropout": uniform(0.0, 0.8),
    "layers": randint(1, 8),
    "units": lograndint(16, 1024),
    "activation": choice(["relu", "tanh", "gelu"]),
}


def loss(c: dict[str, Any]) -> float:
    """Return the value of a configuration: smooth, with interactions, best in the interior."""
    lr = math.log10(c["lr"]) + 2.5 - math.log10(1 - c["momentum"]) / 2
    size = math.log2(c["units"]) - 7 + 0.5 * (c["layers"] - 3)
    regularised = math.log10(c["weight_decay"]) + 4 + 3 * (c["dropout"] - 0.3) - 0.3 * size
    offset = {"relu": 0.1, "tanh": 0.5, "gelu": 0.0}[c["activation"]]
    return offset + math.log1p(lr * lr) + 0.3 * math.log1p(size * size) + 0.1 * regularised**2 + 0.1 * math.sin(3 * lr)


@dataclass(frozen=True)
class Times:
    """What was measured, in seconds.

    Args:
        first: The first suggestion.
        warm: Those after it.
        load: Loading a state, ``None`` if it cannot be saved.
        loaded: The first suggestion after that.
    """

    first: float
    warm: list[float]
    load: float | None = None
    loaded: float | None = None


def measure(text: str, size: int, suggestions: int, seed: int) -> Times:
    """Return the times of one method.

    Args:
        text: The method, with its options.
        size: Number of observations before the first suggestion.
        suggestions: Number of suggestions after the first.
        seed: Seed of the observations and of the method.
    """
    text = _without_first_points(text)
    method = make_method(text, SPACE, seed)
    rng = np.random.default_rng(seed)
    for _ in range(size):
        config = sample_config(SPACE, rng)
        method.tell(config, loss(config))
    seconds = [suggestion(method) for _ in range(suggestions + 1)]
    state = method.state()
    if state is None:
        return Times(seconds[0], seconds[1:])
    loads, firsts = [], []
    for _ in range(3):
        fresh, saved = make_method(text, SPACE, seed), io.BytesIO()
        torch.save(state, saved)
        saved.seek(0)
        start = time.process_time()
        fresh.load(torch.load(saved, weights_only=True))
        loads.append(time.process_time() - start)
        firsts.append(suggestion(fresh))
    return Times(seconds[0], seconds[1:], median(loads), median(firsts))


def suggestion(method: Method) -> float:
    """Return the seconds of one suggestion and of telling its value."""
    start = time.process_time()
    config = method.ask()
    seconds = time.process_time() - start
    value = loss(config)
    start = time.process_time()
    method.tell(config, value)
    return seconds + time.process_time() - start


def _without_first_points(text: str) -> str:
    """Return the method without configurations to begin with: the first suggestion has to come from the model."""
    name, options = parse_method(text)
    if name in PEERS or "points_to_evaluate" in options:
        return text
    return f"{text}{',' if options else ':'}points_to_evaluate=[]"


def cells(text: str, size: int, times: Times) -> list[str]:
    """Return the row of a table."""
    middle = 1e3 * median(times.warm)
    row = [text, str(size), f"{middle:.0f}", f"{1e3 * min(times.warm):.0f}", f"{1e3 * max(times.warm):.0f}"]
    row.append(f"{1e3 * times.first:.0f}")
    row.append("" if times.loaded is None else f"{1e3 * times.loaded:.0f}")
    row.append("" if times.load is None else f"{1e3 * times.load:.0f}")
    budget = BUDGETS_MS.get(size) if parse_method(text)[0] not in PEERS else None
    return [*row, "" if budget is None else f"{middle / budget:.2f}"]


def main() -> None:
    """Measure, print each row when it is there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ours", "optuna-gp", "botorch"], metavar="METHOD")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--peer_limit", type=int, default=500, help="largest size for peers")
    parser.add_argument("--suggestions", type=int, default=10, help="timed suggestions after the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args()
    one_thread()
    header = ["method", "observations", "median ms", "min", "max", "first (cold)", "first after loading", "loading"]
    header.append("of the budget")
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header))]
    print("\n".join(lines))
    versions = set()
    for text in args.methods:
        for size in args.sizes:
            if parse_method(text)[0] in PEERS and size > args.peer_limit:
                continue
            versions |= set(make_method(text, SPACE, 0).versions().split(", "))
            times = measure(text, size, args.suggestions, args.seed)
            lines.append(f"| {' | '.join(cells(text, size, times))} |")
            print(lines[-1], flush=True)
    note = f"Process CPU time, one thread, {date.today().isoformat()}; {', '.join(sorted(versions))}."
    print(note)
    if args.markdown is not None:
        args.markdown.write_text("\n".join([note, "", *lines, ""]))


if __name__ == "__main__":
    main()
