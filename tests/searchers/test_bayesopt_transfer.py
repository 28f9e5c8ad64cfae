"""Transfer learning: results of other tasks help, suggestions are for one task."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch

from sthyper.baselines import BayesianOptimization
from sthyper.config_space import choice, loguniform, ordinal, randint, uniform
from sthyper.errors import ConfigSpaceError
from sthyper.schedulers import AskTellScheduler
from sthyper.searchers import RandomSearcher
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions

SPACE: dict[str, Any] = {"task": choice(["a", "b", "c"]), "x": uniform(0.0, 1.0), "n": randint(1, 20), "epochs": 3}
OPTIONS: dict[str, Any] = {"transfer_learning_task_attr": "task", "transfer_learning_active_task": "b"}
# Goes where the model predicts the best, so that suggestions tell what it knows.
GREEDY: dict[str, Any] = {"num_init_random": 1, "acq_function": "lcb", "acq_function_kwargs": {"kappa": 0.01}}


def loss(config: dict[str, Any]) -> float:
    """Tasks have the same shape at different heights; the best x is 0.7."""
    height = {"a": -0.6, "b": 0.0, "c": 0.4}[config["task"]]
    return float(height + (config["x"] - 0.7) ** 2 + 0.0001 * (config["n"] - 10) ** 2)


def make(points: list[dict[str, Any]] | None = None, space: dict[str, Any] = SPACE, **options: Any) -> Any:
    made = BayesOptOptions(**{"random_seed": 3, **OPTIONS, **options})
    return BayesianOptimizationSearcher(space, "loss", points_to_evaluate=points, options=made)


def add_others(searcher: Any, tasks: str = "ac", n: int = 12) -> None:
    generator = torch.Generator().manual_seed(5)
    for number in range(n):
        for offset, task in enumerate(tasks):
            x, k = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            config = {"task": task, "x": x, "n": 1 + int(19 * k)}
            searcher.on_trial_result(-1 - 2 * number - offset, config, {"loss": loss(config)}, True)


def play(searcher: Any, n: int) -> list[dict[str, Any]]:
    configs = []
    for number in range(n):
        config = searcher.get_config(number)
        searcher.register_pending(number, config)
        searcher.on_trial_result(number, config, {"loss": loss(config)}, True)
        configs.append(config)
    return configs


def test_only_the_active_task_is_suggested_and_others_help() -> None:
    alone, helped = make(**GREEDY), make(**GREEDY)
    add_others(helped)
    first, second = play(alone, 4), play(helped, 4)
    assert {config["task"] for config in first + second} == {"b"}
    assert first[0] == second[0]
    # The second suggestion knows one result of its own task, and the shape from the others.
    assert abs(second[1]["x"] - 0.7) < 0.1
    assert abs(first[1]["x"] - 0.7) > abs(second[1]["x"] - 0.7)


def test_incumbents_are_those_of_the_active_task() -> None:
    searcher = make(num_init_random=1)
    add_others(searcher)
    play(searcher, 2)
    reason = searcher.last_reason
    assert reason.kind == "model"
    assert reason.num_observations == 25
    assert 0.0 <= reason.incumbent < 2.0  # those of task a are below 0
    assert searcher.best_config()["task"] == "b"
    assert searcher.best_config(by="model")["task"] == "b"


def test_pending_trials_do_not_mix_up_incumbents() -> None:
    searcher = make(num_init_random=1)
    add_others(searcher)
    play(searcher, 1)
    searcher.register_pending(50, {"task": "b", "x": 0.2, "n": 3})
    searcher.get_config(51)
    assert searcher.last_reason.num_pending == 1
    assert -0.3 <= searcher.last_reason.incumbent < 2.0


def test_without_results_of_the_task_configurations_are_random_ones_of_it() -> None:
    searcher = make(num_init_random=3)
    add_others(searcher)
    drawn = [searcher.get_config(number) for number in range(5)]
    other = RandomSearcher({**SPACE, "task": choice(["b"])}, "loss", random_seed=3)
    assert drawn == [other.get_config(number) for number in range(5)]
    assert searcher.last_reason.text == "no result can be used by the model"


def test_configurations_of_other_tasks_are_no_duplicates() -> None:
    space = {"task": choice(["a", "b"]), "k": choice(["p", "q", "r"])}
    searcher = make([], space, num_init_random=1)
    for number, k in enumerate("pqr"):
        searcher.on_trial_result(-1 - number, {"task": "a", "k": k}, {"loss": number}, True)
    searcher.evaluation_failed(-9, {"task": "a", "k": "q"})
    found = []
    for number in range(3):
        found.append(searcher.get_config(number))
        searcher.on_trial_result(number, found[-1], {"loss": 1.0}, True)
    assert sorted(config["k"] for config in found) == ["p", "q", "r"]
    assert {config["task"] for config in found} == {"b"}
    assert searcher.get_config(3) is None


def test_the_first_configurations_are_those_of_the_task() -> None:
    points = [{"task": "a", "x": 0.1}, {"x": 0.2}, {"task": "b", "x": 0.3}]
    with pytest.warns(UserWarning, match="1 of 3 configurations are dropped"):
        searcher = make(points)
    found = [searcher.get_config(number) for number in range(2)]
    assert [(config["task"], config["x"]) for config in found] == [("b", 0.2), ("b", 0.3)]
    assert make().get_config(0) == {"task": "b", "x": 0.5, "n": 10}


def test_sub_ranges_hold_for_all_suggestions() -> None:
    active = {"x": uniform(0.2, 0.4), "n": randint(3, 5)}
    searcher = make(transfer_learning_active_config_space=active, num_init_random=2)
    add_others(searcher)
    searcher.on_trial_result(-99, {"task": "b", "x": 0.9, "n": 20}, {"loss": 0.5}, True)
    for config in play(searcher, 7):
        assert config["task"] == "b"
        assert 0.2 <= config["x"] <= 0.4
        assert config["n"] in (3, 4, 5)
    assert searcher.last_reason.kind == "model"
    assert searcher.last_reason.num_observations == 24 + 1 + 6


def test_the_kernel_tells_tasks_apart_or_not() -> None:
    means = {}
    for model in ("matern52_product", "matern52_same"):
        searcher = make(transfer_learning_model=model, num_init_random=1)
        add_others(searcher, "a")
        play(searcher, 2)
        means[model] = searcher.last_reason.mean
        names = searcher.model_parameters()
        assert ("lengthscale_task" in names) == (model == "matern52_product")
        assert not any(name.startswith("warping") for name in names)
    assert abs(means["matern52_product"]) < abs(means["matern52_same"])  # task a is at -0.6


def test_warping_is_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    make()
    assert not caplog.records
    assert not make(input_warping=True).options.input_warping
    assert len([r for r in caplog.records if "input_warping" in r.message]) == 1


def test_state_continues() -> None:
    expected = make(num_init_random=1)
    add_others(expected)
    first = play(expected, 5)
    searcher = make(num_init_random=1)
    add_others(searcher)
    play(searcher, 3)
    twin = make(num_init_random=1)
    twin.load_state_dict(searcher.state_dict())
    for number in (3, 4):
        config = twin.get_config(number)
        assert config == first[number]
        twin.register_pending(number, config)
        twin.on_trial_result(number, config, {"loss": loss(config)}, True)


def test_results_of_other_tasks_come_through_the_scheduler() -> None:
    search = BayesianOptimization(SPACE, "loss", random_seed=1, search_options={**OPTIONS, "num_init_random": 1})
    scheduler = AskTellScheduler(search)
    for x in (0.1, 0.3, 0.5, 0.65, 0.8, 0.95):
        config = {"task": "a", "x": x, "n": 10}
        scheduler.add_result(config, {"loss": loss(config)})
    for number in range(3):
        trial = scheduler.ask()
        assert trial is not None
        assert trial.config["task"] == "b"
        scheduler.tell(trial, loss=loss(trial.config), done=True)
        kind = search.searcher.last_reason.kind  # type: ignore[attr-defined]
        assert kind == ("initial" if number == 0 else "model")


def test_old_experiments_get_their_task_by_fill() -> None:
    searcher = make(**GREEDY)
    past = [({"x": i / 12, "n": 10}, (i / 12 - 0.7) ** 2) for i in range(12)]
    with pytest.raises(ConfigSpaceError, match=re.escape("trials[0]: the configuration lacks task")):
        searcher.fit_on(past)
    assert searcher.fit_on(past, fill={"task": "a"}) == 12
    found = play(searcher, 2)
    assert found[1]["task"] == "b"
    assert searcher.last_reason.num_observations == 13
    assert abs(found[1]["x"] - 0.7) < 0.1


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (SPACE, {"transfer_learning_active_task": "d"}, "'d' is no task"),
        (SPACE, {"transfer_learning_task_attr": "tusk"}, "must name a choice(...) of the configuration space (did"),
        (SPACE, {"transfer_learning_task_attr": "x"}, "must name a choice(...)"),
        (SPACE | {"task": ordinal(["a", "b"])}, {}, "must name a choice(...)"),
        (SPACE, {"transfer_learning_active_config_space": {"x": loguniform(0.1, 1)}}, "must have the class"),
        (SPACE, {"transfer_learning_active_config_space": {"x": uniform(0.5, 2)}}, "active_config_space: 'x'"),
        (SPACE, {"transfer_learning_active_config_space": {"z": uniform(0, 1)}}, "'z' is no domain"),
    ],
)
def test_bad_options(space: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigSpaceError, match=re.escape(message)):
        make(space=space, **options)
