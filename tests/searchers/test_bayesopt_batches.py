"""Batches of suggestions, and acquisition functions by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from botorch.models import SingleTaskGP

from sthyper.config_space import choice, randint, uniform
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

SPACE: dict[str, Any] = {"x": uniform(0, 1), "y": uniform(0, 1), "c": choice(["a", "b", "d"])}


def value(config: dict[str, Any]) -> float:
    return (config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2 + {"a": 0.0, "b": 0.2, "d": 0.4}[config["c"]]


def made(space: dict[str, Any] = SPACE, trials: int = 0, **options: Any) -> BayesianOptimizationSearcher:
    searcher = BayesianOptimizationSearcher(space, options=BayesOptOptions(**{"random_seed": 3} | options))
    searcher.configure(SearcherContext("v"))
    for i in range(trials):
        config = searcher.get_config(i)
        assert config is not None
        searcher.on_trial_result(i, config, {"v": value(config)}, True)
    return searcher


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("trials", [0, 2, 6])
def test_a_batch_is_what_single_suggestions_are_and_leaves_no_trace(trials: int) -> None:
    searcher = made(trials=trials)
    before = searcher.state_dict()
    batch = searcher.get_batch_configs(4)
    assert equal(searcher.state_dict(), before)
    assert equal(searcher.get_batch_configs(4), batch)
    assert len({tuple(c.values()) for c in batch}) == 4
    singles = []
    for i in range(trials, trials + 4):
        config = searcher.get_config(i)
        assert config is not None
        searcher.register_pending(i, config)
        singles.append(config)
    assert singles == batch


def test_results_of_a_batch_are_learned() -> None:
    searcher = made(trials=4)
    for i, config in enumerate(searcher.get_batch_configs(3), start=4):
        searcher.on_trial_result(i, config, {"v": value(config)}, True)
    assert searcher.dataset_size() == 7
    assert searcher.get_config(7) is not None


def test_later_suggestions_may_have_fewer_candidates() -> None:
    searcher = made(trials=5, skip_local_optimization=True)
    many, few = searcher.get_batch_configs(3), searcher.get_batch_configs(3, num_init_candidates_for_batch=2)
    assert many[0] == few[0]
    assert many[1:] != few[1:]


@pytest.mark.parametrize("allow_duplicates", [False, True])
def test_a_small_space_gives_fewer(allow_duplicates: bool, caplog: pytest.LogCaptureFixture) -> None:
    searcher = made({"c": choice(list("abd"))}, allow_duplicates=allow_duplicates)
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        batch = searcher.get_batch_configs(5)
    assert sorted(c["c"] for c in batch) == ["a", "b", "d"]
    assert any("a batch of 5 configurations was asked for, only 3 are left" in m for m in caplog.messages)


@pytest.mark.parametrize(("arguments", "error"), [((0,), ValueError), ((True,), TypeError), ((2, 1), ValueError)])
def test_arguments_of_batches(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be an int of at least|must be at least"):
        made().get_batch_configs(*arguments)


NAMES = ["logei", "ei", "lognei", "nei", "pi", "lcb", "thompson", "thompson_indep"]


def suggested(**options: Any) -> tuple[Any, ...]:
    searcher = made(trials=5, **options)
    found: list[Any] = []
    for i in range(5, 8):
        config = searcher.get_config(i)
        assert config is not None
        assert searcher.last_reason is not None
        assert searcher.last_reason.kind == "model", searcher.last_reason
        searcher.register_pending(i, config)
        found += config.values()
    return tuple(found)


@pytest.mark.slow
def test_each_acquisition_function_suggests_by_itself() -> None:
    before = torch.random.get_rng_state()
    found = {name: suggested(acq_function=name) for name in NAMES}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({found[name] for name in ("logei", "lognei", "pi", "lcb", "thompson", "thompson_indep")}) == 6
    assert suggested(acq_function="ucb") == found["lcb"]
    assert suggested(acq_function="ucb", acq_function_kwargs={"kappa": 5.0}) != found["lcb"]
    assert suggested(pending_strategy="joint") != found["logei"]


@pytest.mark.slow
def test_pending_trials_count_in_models_of_botorch() -> None:
    fantasies = suggested(surrogate=SingleTaskGP)
    assert suggested(surrogate=SingleTaskGP) == fantasies
    assert suggested(surrogate=SingleTaskGP, no_fantasizing=True) != fantasies


@pytest.mark.parametrize(
    "options",
    [
        {"pending_strategy": "joint", "acq_function": "lcb"},
        {"pending_strategy": "joint", "no_fantasizing": True},
        {"acq_function": "nei", "acq_function_kwargs": {"jitter": 0.1}},
        {"acq_function": "thompsen"},
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BayesOptOptions(**options)


@pytest.mark.parametrize("name", ["logei", "thompson", "lognei"])
def test_a_space_without_numbers_is_used_up(name: str) -> None:
    space = {"c": choice(["a", "b", "d"]), "n": randint(1, 3), "x": choice([0.2]), "y": choice([0.1])}
    searcher = made(space, trials=9, acq_function=name)
    assert searcher.get_config(9) is None
