"""Test problems of the benchmarks of searchers: noise-free functions of a configuration, to be minimised.

Three classics, three tasks of LCBench (a network that imitates its tables), and two mixed spaces with conditional
structure written flat: parameters that another one switches off stay in the space and have no influence. Those two
are sums of terms that are zero at ``minimiser`` and nowhere negative, so their minimum is exact.

References:
    Zimmer, Lindauer and Hutter, "Auto-PyTorch Tabular", TPAMI 2021 (LCBench)
    Pfisterer et al., "YAHPO Gym", AutoML 2022 (its surrogate)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sthyper.config_space import choice, lograndint, loguniform, randint, uniform

# By objective: its smallest value, and the median over random configurations, where the normalised regret is 1. The
# smallest values of LCBench are the best of six evolutionary searches over the surrogate, which all ended there.
SCALES = {
    "branin": (0.39788735773, 35.79),
    "hartmann6": (-3.322368011416, -0.1073),
    "ackley10": (0.0, 17.28),
    "lcbench-3945": (-99.658318, -89.87),
    "lcbench-167168": (-89.426559, -44.31),
    "lcbench-189354": (-95.658203, -58.68),
    "optimiser": (0.05, 0.728),
    "architecture": (0.0, 5.36),
}
NAMES = list(SCALES)


@dataclass(frozen=True)
class Objective:
    """A function to be minimised.

    Args:
        name: Its name.
        space: Configuration space.
        function: The value of a configuration.
        minimiser: Where the minimum is, if that is known.
    """

    name: str
    space: dict[str, Any]
    function: Callable[[dict[str, Any]], float]
    minimiser: dict[str, Any] | None = None


def normalised_regret(name: str, value: float) -> float:
    """Return how far a value is from the minimum of an objective, as a part of how far random configurations are."""
    minimum, typical = SCALES[name]
    return max(0.0, (value - minimum) / (typical - minimum))


def objective(name: str, data: Path | None = None) -> Objective:
    """Return one of :data:`NAMES`.

    Args:
        name: Its name.
        data: Folder of the LCBench surrogate: ``model.onnx``, ``config_space.json`` and ``encoding.json``.

    Raises:
        ValueError: If the name is unknown, or ``data`` is needed and missing.
    """
    if name in _CLOSED_FORMS:
        return _CLOSED_FORMS[name]()
    if name not in NAMES:
        raise ValueError(f"there is no objective {name!r}; there are {', '.join(NAMES)}")
    if data is None or not (data / "model.onnx").is_file():
        raise ValueError(f"{name} needs the folder of its surrogate (model.onnx), got {data}")
    return lcbench(name.removeprefix("lcbench-"), data)


# ---- classics ----------------------------------------------------------------------------------------


def branin() -> Objective:
    """Return Branin's function of two variables, with three equal minima."""

    def value(c: dict[str, Any]) -> float:
        x, y = c["x0"], c["x1"]
        bowl = (y - 5.1 * x**2 / (4 * math.pi**2) + 5 * x / math.pi - 6) ** 2
        return float(bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)

    best = {"x0": math.pi, "x1": 2.275}
    return Objective("branin", {"x0": uniform(-5, 10), "x1": uniform(0, 15)}, value, best)


_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6() -> Objective:
    """Return Hartmann's function of six variables."""

    def value(c: dict[str, Any]) -> float:
        x = np.array([c[f"x{i}"] for i in range(6)])
        exponents = (_HARTMANN_A * (x - _HARTMANN_P) ** 2).sum(1)
        return -float(np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-exponents))

    at = (0.20168951, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730053)
    best = {f"x{i}": x for i, x in enumerate(at)}
    return Objective("hartmann6", {f"x{i}": uniform(0, 1) for i in range(6)}, value, best)


def ackley10() -> Objective:
    """Return Ackley's function of ten variables."""

    def value(c: dict[str, Any]) -> float:
        x = np.array([c[f"x{i}"] for i in range(10)])
        rough = math.exp(float(np.cos(2 * math.pi * x).mean()))
        return 20 + math.e - 20 * math.exp(-0.2 * math.sqrt(float((x**2).mean()))) - rough

    best = {f"x{i}": 0.0 for i in range(10)}
    return Objective("ackley10", {f"x{i}": uniform(-10, 15) for i in range(10)}, value, best)


# ---- LCBench -----------------------------------------------------------------------------------------

# The order of the columns of the surrogate's numerical input, and its last epoch.
_LCBENCH_COLUMNS = [
    *("epoch", "batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
]
_LCBENCH_EPOCH = 52


def lcbench_values(task: str, data: Path, configs: list[dict[str, Any]]) -> np.ndarray:
    """Return minus the validation accuracy in percent after the last epoch.

    Args:
        task: Id of the OpenML task.
        data: Folder of the surrogate.
        configs: Configurations of the seven hyperparameters.
    """
    session, codes = _surrogate(data)
    numbers = [[float({"epoch": _LCBENCH_EPOCH, **c}[name]) for name in _LCBENCH_COLUMNS] for c in configs]
    inputs = {
        "x_cat": np.full((len(configs), 1), codes[task], dtype=np.int32),
        "x_cont": np.array(numbers, dtype=np.float32),
    }
    # The outputs begin with the training time and the validation accuracy.
    return -np.asarray(session.run(None, inputs)[0])[:, 1].astype(np.float64)


def lcbench(task: str, data: Path) -> Objective:
    """Return the tuning of a small network for tabular data: seven hyperparameters, 52 epochs."""
    space: dict[str, Any] = {}
    for parameter in json.loads((data / "config_space.json").read_text())["hyperparameters"]:
        name, kind, log = parameter["name"], parameter["type"], parameter.get("log", False)
        if kind == "categorical" or name == "epoch":
            continue
        make = {
            ("uniform_int", False): randint,
            ("uniform_int", True): lograndint,
            ("uniform_float", False): uniform,
            ("uniform_float", True): loguniform,
        }[kind, log]
        space[name] = make(parameter["lower"], parameter["upper"])
    return Objective(f"lcbench-{task}", space, lambda c: float(lcbench_values(task, data, [c])[0]))


@cache
def _surrogate(data: Path) -> tuple[Any, dict[str, int]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(data / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return session, json.loads((data / "encoding.json").read_text())["OpenML_task_id"]


# ---- mixed spaces ------------------------------------------------------------------------------------


def optimiser() -> Objective:
    """Return the choice of an optimiser with its settings: eleven parameters, of which three to five switch off.

    Each choice has its own best learning rate, which moves with batch size, momentum and warm-up; saturating terms
    make the landscape flat far from the good region, and too high a learning rate is worse than too low a one.
    """
    space = {
        "optimizer": choice(["sgd", "rmsprop", "adamw", "lion"]),
        "lr": loguniform(1e-5, 1.0),
        "momentum": uniform(0.0, 0.99),  # sgd and rmsprop only
        "nesterov": choice([False, True]),  # sgd only
        "beta2_gap": loguniform(1e-4, 1e-1),  # adamw and lion only
        "weight_decay": loguniform(1e-6, 1e-1),
        "schedule": choice(["constant", "step", "exponential", "cosine", "linear"]),
        "decay": uniform(0.05, 0.95),  # step and exponential only
        "warmup": randint(0, 20),
        "batch_size": lograndint(16, 1024),
        "dropout": uniform(0.0, 0.7),
    }
    offsets = {"sgd": 0.05, "rmsprop": 0.16, "adamw": 0.0, "lion": 0.07}
    rates = {"sgd": -0.7, "rmsprop": -3.2, "adamw": -3.3, "lion": -4.2}
    schedules = {"constant": 0.12, "step": 0.03, "exponential": 0.06, "cosine": 0.0, "linear": 0.02}

    def dip(z: float) -> float:
        return z * z / (1 + z * z)

    def value(c: dict[str, Any]) -> float:
        kind, adaptive = c["optimizer"], c["optimizer"] in ("adamw", "lion")
        batch = math.log2(c["batch_size"] / 256)
        total = 0.05 + offsets[kind] + schedules[c["schedule"]]
        lr = math.log10(c["lr"])
        if kind in ("sgd", "rmsprop"):
            lr += 0.8 * math.log10((1 - c["momentum"]) ** -1)  # what momentum makes of a step
            total += 0.06 * dip((c["momentum"] - 0.9) / 0.3)
        if kind == "sgd":
            total += 0.0 if c["nesterov"] else 0.02
        if adaptive:
            total += 0.06 * dip((math.log10(c["beta2_gap"]) + 2.3 - 0.2 * batch) / 0.7)
        best_rate = rates[kind] + (0.15 if adaptive else 0.3) * batch + 0.02 * (c["warmup"] - 5)
        total += 0.35 * dip((lr - best_rate) / 0.6) + 0.3 * dip(max(0.0, lr - best_rate - 0.5) / 0.5)
        if c["schedule"] in ("step", "exponential"):
            # slower decay suits lower learning rates
            total += 0.05 * dip((c["decay"] - 0.4 + 0.15 * (lr - best_rate)) / 0.25)
        # regularisation: dropout and weight decay replace one another, large batches need more
        decay = math.log10(c["weight_decay"])
        total += 0.15 * dip((decay + 2.6 + 2.5 * (c["dropout"] - 0.12) - 0.15 * batch) / 0.9)
        total += 0.05 * dip((c["dropout"] - 0.12) / 0.3) + 0.05 * dip((c["warmup"] - 5) / 8)
        return total + 0.06 * dip((batch - 0.3 * (c["warmup"] - 5)) / 1.5)

    best = {
        **{"optimizer": "adamw", "lr": 10**-3.3, "momentum": 0.5, "nesterov": False, "beta2_gap": 10**-2.3},
        **{"weight_decay": 10**-2.6, "schedule": "cosine", "decay": 0.5, "warmup": 5, "batch_size": 256},
        "dropout": 0.12,
    }
    return Objective("optimiser", space, value, best)


def architecture() -> Objective:
    """Return the shape of a network: fourteen parameters; widths beyond the number of layers have no influence.

    Terms grow without limit on the logarithmic scale, the learning rate has a ripple, and the best depth depends on
    whether there are residual connections.
    """
    activations = {"relu": 0.1, "tanh": 0.4, "gelu": 0.0, "elu": 0.2}
    space = {
        "layers": randint(1, 5),
        **{f"width{i}": lograndint(16, 1024) for i in range(5)},  # the first `layers` only
        "residual": choice([False, True]),
        "activation": choice(list(activations)),
        "norm": choice(["none", "batch", "layer"]),
        "norm_momentum": loguniform(1e-3, 0.5),  # batch only
        "pooling": choice(["max", "mean", "attention"]),
        "heads": randint(1, 8),  # attention only
        "lr": loguniform(1e-5, 1e-1),
        "dropout": uniform(0.0, 0.8),
    }
    norms = {"none": 0.5, "batch": 0.15, "layer": 0.0}
    poolings = {"max": 0.25, "mean": 0.1, "attention": 0.0}

    def value(c: dict[str, Any]) -> float:
        n = c["layers"]
        widths = [math.log2(c[f"width{i}"]) for i in range(n)]
        total = activations[c["activation"]] + norms[c["norm"]] + poolings[c["pooling"]]
        total += 0.12 * (n - 4) ** 2 if c["residual"] else 0.3 + 0.25 * (n - 2) ** 2
        # the first layer is wider in deep networks, and each is half as wide as the one before
        total += 0.6 * math.log1p((widths[0] - 7 - 0.5 * n) ** 2)
        steps = [(b - a + 1) ** 2 for a, b in pairwise(widths)]
        total += 0.5 * math.log1p(sum(steps))
        if c["norm"] == "batch":
            total += 0.3 * math.log1p((math.log10(c["norm_momentum"]) + 1) ** 2)
        if c["pooling"] == "attention":
            total += 0.04 * (c["heads"] - 6) ** 2
        # without normalisation deep networks need small steps
        z = math.log10(c["lr"]) + 1.9 + (0.3 * (n - 1) if c["norm"] == "none" else 0.0) + 0.4 * (widths[0] - 9)
        total += 0.8 * math.log1p(z * z) + 0.1 * (1 - math.cos(2 * math.pi * z))
        capacity = math.log2(sum(2**w for w in widths) / 960)
        return total + 0.7 * math.log1p((4 * (c["dropout"] - 0.15) - 0.8 * capacity) ** 2)

    best = {
        **{"layers": 4, "width0": 512, "width1": 256, "width2": 128, "width3": 64, "width4": 16},
        **{"residual": True, "activation": "gelu", "norm": "layer", "norm_momentum": 0.1},
        **{"pooling": "attention", "heads": 6, "lr": 10**-1.9, "dropout": 0.15},
    }
    return Objective("architecture", space, value, best)


_CLOSED_FORMS: dict[str, Callable[[], Objective]] = {
    **{"branin": branin, "hartmann6": hartmann6, "ackley10": ackley10},
    **{"optimiser": optimiser, "architecture": architecture},
}
