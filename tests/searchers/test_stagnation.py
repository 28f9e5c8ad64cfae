"""What a search that is stuck asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sthyper.config_space import uniform
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.searchers.bayesopt.stagnation import needed_improvement


def stuck_for(trials: int) -> torch.Tensor:
    """Return targets of which the 10th is the best, and so many more that gain less than a hundredth deviation."""
    return torch.cat([torch.linspace(2.0, 0.0, 10), 1e-4 * -torch.arange(1.0, trials + 1.0)]).double()


def test_while_results_improve_nothing_is_asked_for() -> None:
    assert needed_improvement(torch.linspace(1.0, 0.0, 20).double()) == 0.0
    assert needed_improvement(torch.tensor([1.0]).double()) == 0.0
    for trials in range(3):
        assert needed_improvement(stuck_for(trials)) == 0.0


def test_every_second_suggestion_asks_for_twice_as_much() -> None:
    asked = []
    for trials in range(3, 20):
        Z = stuck_for(trials)
        asked.append(needed_improvement(Z) / float(Z.std(correction=0)))
    assert asked[1::2] == [0.0] * 8
    assert asked[::2] == pytest.approx([0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 1.0])


def test_an_improvement_worth_the_name_ends_it() -> None:
    assert needed_improvement(torch.cat([stuck_for(9), torch.tensor([-0.5]).double()])) == 0.0


def test_equal_targets_ask_for_nothing() -> None:
    assert needed_improvement(torch.zeros(9).double()) == 0.0


def test_the_next_suggestion_leaves_what_was_polished() -> None:
    """Eight results right at the optimum of a bowl, after ten at random."""
    rng = np.random.Generator(np.random.PCG64(0))
    points = rng.random((10, 2)).tolist() + [[0.3 + 1e-4 * i, 0.6 - 1e-4 * i] for i in range(8, 0, -1)]
    distances = {}
    for escape in (True, False):
        options = BayesOptOptions(escape_stagnation=escape, random_seed=0, num_init_random=3)
        space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0)}
        searcher = BayesianOptimizationSearcher(space, "loss", points_to_evaluate=[], options=options)
        searcher.configure(SearcherContext("loss"))
        for number, (x, y) in enumerate(points):
            loss = (x - 0.3) ** 2 + (y - 0.6) ** 2
            searcher.on_trial_result(number, {"x": x, "y": y}, {"loss": loss}, True)
        config = searcher.get_config(len(points))
        assert config is not None
        distances[escape] = math.hypot(config["x"] - 0.3, config["y"] - 0.6)
    assert distances[False] < 0.02
    assert distances[True] > 5 * distances[False]
    assert distances[True] > 0.1
