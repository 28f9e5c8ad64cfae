"""Process CPU time of encoding and decoding 10 000 configurations of 20 mixed hyperparameters.

Run: python benchmarks/encoding.py [--configs 10000] [--repeats 7]
Budget: 50 ms in each direction, one torch thread, minimum over the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sthyper.config_space import (
    choice,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    quniform,
    randint,
    reverseloguniform,
    uniform,
)
from sthyper.encoding import SpaceEncoder

BUDGET_MS = 50.0


def config_space() -> dict[str, Any]:
    """Return a space of 20 hyperparameters of all kinds."""
    return {
        "lr": loguniform(1e-6, 1.0),
        "weight_decay": loguniform(1e-8, 1e-1),
        "momentum": reverseloguniform(0.5, 0.9999),
        "beta": reverseloguniform(0.9, 0.99999),
        "dropout": uniform(0.0, 0.9),
        "smoothing": uniform(0.0, 0.3),
        "clip": quniform(0.0, 10.0, 0.5),
        "layers": randint(1, 12),
        "warmup": randint(0, 5000),
        "width": lograndint(8, 4096),
        "batch_size": logfinrange(8, 1024, 8, cast_int=True),
        "gamma": finrange(0.5, 1.0, 11),
        "heads": logordinal([1, 2, 4, 8, 16]),
        "depth": ordinal([1, 2, 3, 5, 8]),
        "size": ordinal(["small", "medium", "large"]),
        "optimizer": choice(["sgd", "adam", "adamw", "lion"]),
        "activation": choice(["relu", "gelu", "tanh"]),
        "norm": choice(["batch", "layer", "group", "none", "rms"]),
        "nesterov": choice([True, False]),
        "schedule": choice(["cosine", "linear"]),
    }


def cpu_ms(function: Callable[[], object], repeats: int) -> float:
    """Return the smallest process CPU time of a call, milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder = SpaceEncoder(config_space())
    configs = encoder.random_configs(np.random.default_rng(0), args.configs)
    points = encoder.encode(configs)
    assert encoder.decode(points)[0].keys() == configs[0].keys()
    for name, function in (
        ("encode", lambda: encoder.encode(configs)),
        ("decode", lambda: encoder.decode(points)),
        ("random_configs", lambda: encoder.random_configs(np.random.default_rng(0), args.configs)),
    ):
        ms = cpu_ms(function, args.repeats)
        ratio = f", {ms / BUDGET_MS:.2f} of the budget ({BUDGET_MS:.0f} ms)" if name != "random_configs" else ""
        print(f"{name}: {ms:.1f} ms CPU for {args.configs} configurations of {len(encoder)} hyperparameters{ratio}")


if __name__ == "__main__":
    main()
