"""The Gaussian process of Bayesian optimisation outside of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sthyper.baselines import create_gaussian_process_estimator
from sthyper.config_space import choice, loguniform, sample_config
from sthyper.encoding import SpaceEncoder
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.surrogates.gp import GaussianProcess

SPACE: dict[str, Any] = {"lr": loguniform(1e-4, 1.0), "act": choice(["a", "b", "c"]), "epochs": 3}


def test_it_is_the_model_of_the_searcher() -> None:
    configs = [sample_config(SPACE, seed) for seed in range(8)]
    losses = [config["lr"] + (config["act"] == "a") for config in configs]
    searcher = BayesianOptimizationSearcher(SPACE, "loss", options=BayesOptOptions(random_seed=0))
    searcher.fit_on(list(zip(configs, losses, strict=True)))
    searcher.next_initial_config()
    searcher.get_config(0)
    surrogate = create_gaussian_process_estimator(SPACE)
    assert isinstance(surrogate, GaussianProcess)
    X = SpaceEncoder(SPACE).encode(configs)
    Y = torch.tensor(losses, dtype=torch.float64)
    model = surrogate.fit(X, Y)
    mean = surrogate.transform.inverse(model.posterior(X.unsqueeze(-2)).mean.flatten())
    assert float((mean - Y).abs().max()) < 0.3
    assert surrogate.parameters() == pytest.approx(searcher.model_parameters(), rel=0.05)


def test_options_and_seed_count() -> None:
    options = {"gp_base_kernel": "matern52-noard", "input_warping": False, "preset": "syne-tune"}
    first = create_gaussian_process_estimator(SPACE, search_options=options)
    same = create_gaussian_process_estimator(SPACE, search_options=BayesOptOptions(**options))
    assert first.options == same.options
    assert first.options.kernel == "matern52-noard"
    task = {"transfer_learning_task_attr": "act", "transfer_learning_active_task": "b"}
    assert create_gaussian_process_estimator(SPACE, search_options=task).structure.task == 0
    draws = {
        tuple(create_gaussian_process_estimator(SPACE, random_seed=seed).state_dict()["generator"].tolist())
        for seed in (0, 1)
    }
    assert len(draws) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"random_seed": -1}, ValueError, "random_seed must be a non-negative int"),
        ({"random_seed": "1"}, TypeError, "random_seed must be a non-negative int"),
        ({"search_options": "gp"}, TypeError, "search_options must be a dict"),
        ({"search_options": {"gp_kernel": 1}}, ValueError, "unknown option 'gp_kernel' (did you mean"),
        ({"search_options": {"surrogate": lambda X, Y: None}}, ValueError, "surrogate is another model"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        create_gaussian_process_estimator(SPACE, **arguments)
