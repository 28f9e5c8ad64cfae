"""Whole self-tuning runs on scikit-learn's digits with the library's defaults, against plain training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.config_space import Domain, loguniform, uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.regularisers import (
    GaussianNoise,
    InputDropout,
    TunableDropout,
    smoothed_cross_entropy,
    weight_decay,
)
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import self_tune, squared_norms

N_TRAIN, N_VAL = 300, 600
EPOCHS = 300
BATCH = 50


class Shuffled:
    """Batches of tensors in a new order in each pass."""

    def __init__(self, x: Tensor, y: Tensor, seed: int) -> None:
        self.x, self.y, self.generator = x, y, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in torch.randperm(len(self.x), generator=self.generator).split(BATCH):
            yield self.x[i], self.y[i]


def digits(seed: int) -> tuple[Shuffled, Shuffled]:
    """Return noisy training and validation data: pixels with noise of .3, then standardised as a whole."""
    g = torch.Generator().manual_seed(seed)
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=g)[: N_TRAIN + N_VAL]
    x = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16
    x = x + 0.3 * torch.randn(x.shape, generator=g)
    x, y = (x - x.mean()) / x.std(), torch.tensor(bunch.target)[order]
    return Shuffled(x[:N_TRAIN], y[:N_TRAIN], seed), Shuffled(x[N_TRAIN:], y[N_TRAIN:], seed + 1)


# ---- one rate from five starts -------------------------------------------------------------------------------

# The weight optimiser belongs to the task, for the grid and for the self-tuning runs alike: SGD, momentum .9.
TASK_LR = 0.03
STARTS = (0.05, 0.3, 0.5, 0.7, 0.9)
GRID = (0.02, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.9)


def grid_minimum(seed: int) -> float:
    """Return the best of some fixed rates, by the mean validation loss of the last tenth of plain training.

    One network for each rate, side by side, with the same batches.
    """
    train, val = digits(seed)
    rates = torch.tensor(GRID)[:, None, None]
    torch.manual_seed(seed)
    first = nn.Linear(64, 10)
    weight = first.weight.detach().T.repeat(len(GRID), 1, 1).requires_grad_()
    bias = first.bias.detach().repeat(len(GRID), 1, 1).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=TASK_LR, momentum=0.9)
    total = torch.zeros(len(GRID))

    def losses(x: Tensor, y: Tensor) -> Tensor:
        logits = torch.baddbmm(bias, x, weight).transpose(1, 2)
        return F.cross_entropy(logits, y.expand(len(GRID), -1), reduction="none").mean(1)

    for epoch in range(EPOCHS):
        for x, y in train:
            x = x.expand(len(GRID), -1, -1)
            kept = x * (torch.rand_like(x) >= rates) / (1 - rates)
            optimizer.zero_grad()
            losses(kept, y).sum().backward()
            optimizer.step()
        if epoch >= 0.9 * EPOCHS:
            with torch.no_grad():
                total += losses(val.x.expand(len(GRID), -1, -1), val.y)
    return GRID[int(total.argmin())]


def tuned_rate(seed: int, start: float) -> float:
    """Return the mean of the last tenth of a run with the library's defaults."""
    torch.manual_seed(seed)
    h = Hyperparameters({"rate": uniform(0.0, 0.95)}, start={"rate": start}, seed=seed)
    model = self_tune(nn.Sequential(nn.Dropout(), nn.Linear(64, 10)), h, dropout={"*": "rate"})
    optimizer = partial(torch.optim.SGD, lr=TASK_LR, momentum=0.9)
    run = SelfTuner(model, h, *digits(seed), weight_optimizer=optimizer)
    run.fit(EPOCHS)
    return run.schedule.mean_of_last(0.1)["rate"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_starts_end_at_the_best_rate(seed: int) -> None:
    rates = [tuned_rate(seed, start) for start in STARTS]
    assert max(rates) - min(rates) <= 0.1, rates
    best = grid_minimum(seed)
    assert max(abs(rate - best) for rate in rates) <= 0.15, (rates, best)


# ---- against random search -----------------------------------------------------------------------------------

SPACE: dict[str, Domain] = {
    "hidden": uniform(0.0, 0.9),
    "input": uniform(0.0, 0.9),
    "noise": uniform(0.0, 1.0),
    "smoothing": uniform(0.0, 0.5),
    "decay": loguniform(1e-6, 1e-1),
}
START = {"hidden": 0.05, "input": 0.05, "noise": 0.05, "smoothing": 0.02, "decay": 1e-5}
TRIAL_EPOCHS = 50
# Of the budget: a trial that would begin later than that is not begun.
LATEST = 0.95


def mlp_run(seed: int, values: dict[str, float], options: SelfTunerOptions) -> SelfTuner:
    """Return a run of an MLP 64-64-10 with five hyperparameters."""
    torch.manual_seed(seed)
    h = Hyperparameters(SPACE, start=values, seed=seed)
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.ReLU(), TunableDropout(h, "hidden"), nn.Linear(64, 10)]
    model = nn.Sequential(InputDropout(h, "input"), GaussianNoise(h, "noise"), *layers)
    if options.tune:
        self_tune(model, h)

    def norms() -> Tensor:
        return (
            squared_norms(model) if options.tune else torch.stack([p.square().sum() for p in model.parameters()]).sum()
        )

    def train_loss(prediction: Tensor, target: Tensor, h: Hyperparameters) -> Tensor:
        return smoothed_cross_entropy(prediction, target, h["smoothing"]) + weight_decay(norms(), h["decay"])

    return SelfTuner(model, h, *digits(seed), train_loss=train_loss, options=options)


def random_search(seed: int, budget: float) -> float:
    """Return the best validation loss of trials over the full ranges, the start values first, in a CPU time."""
    g = torch.Generator().manual_seed(seed)
    start, best, trial = time.process_time(), float("inf"), 0
    while trial == 0 or time.process_time() - start < LATEST * budget:
        values = START
        if trial:
            u = torch.rand(len(SPACE), generator=g, dtype=torch.float64).tolist()
            values = {name: float(_quantile(SPACE[name], q)) for (name, q) in zip(SPACE, u, strict=True)}
        run = mlp_run(seed, values, SelfTunerOptions(tune=False, restore_best=False))
        best = min(best, run.fit(TRIAL_EPOCHS).best_val_loss)
        trial += 1
    return best


def _quantile(domain: Any, q: float) -> float:
    if domain.lower > 0:
        return float(domain.lower * (domain.upper / domain.lower) ** q)
    return float(domain.lower + (domain.upper - domain.lower) * q)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_run_beats_a_random_search_in_the_same_cpu_time() -> None:
    differences = []
    for seed in range(5):
        start = time.process_time()
        ours = mlp_run(seed, START, SelfTunerOptions(restore_best=False)).fit(EPOCHS).best_val_loss
        theirs = random_search(seed, time.process_time() - start)
        differences.append(theirs - ours)
    assert sum(differences) / len(differences) >= 0.02, differences
