"""Corners of Bayesian optimisation: threads, copies, odd results, configurations that count as the same."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import pytest
import torch
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from torch import Tensor

from sthyper.config_space import choice, loguniform, randint, uniform
from sthyper.errors import ConfigSpaceError
from sthyper.searchers import RandomSearcher
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.searchers.bayesopt.botorch import BoTorchOptions, BoTorchSearcher
from sthyper.searchers.bayesopt.cost import CostAwareBayesianOptimizationSearcher, CostAwareOptions
from sthyper.searchers.bayesopt.suggest import ModelSuggester
from sthyper.surrogates import Surrogate
from sthyper.surrogates.bayesian_gp import BayesianGaussianProcess

SPACE = {"x": uniform(0, 1), "y": loguniform(1e-4, 1), "n": randint(1, 9), "c": choice(["a", "b", "d"])}
SMALL: dict[str, Any] = {"num_init_candidates": 16, "num_local_candidates": 16, "local_search_starts": 1}
FINITE = {"c": choice(["a", "b"]), "k": randint(1, 10)}


def loss(config: dict[str, Any]) -> float:
    return float((config.get("x", 0.0) - 0.3) ** 2 + 0.01 * config.get("n", config.get("k", 0)))


def make(space: dict[str, Any] | None = None, **options: Any) -> BayesianOptimizationSearcher:
    searcher = BayesianOptimizationSearcher(
        SPACE if space is None else space, "loss", options=BayesOptOptions(**SMALL | options)
    )
    searcher.configure(SearcherContext("loss", random_seed=1))
    return searcher


def play(searcher: Any, number: int, start: int = 0) -> list[dict[str, Any] | None]:
    found = []
    for trial_id in range(start, start + number):
        config = searcher.get_config(trial_id)
        found.append(config)
        if config is None:
            break
        searcher.register_pending(trial_id, config)
        searcher.on_trial_result(trial_id, config, {"loss": loss(config), "cost": 1.0 + config.get("x", 0.0)}, True)
    return found


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- parameters are read while a suggestion is made --------------------------------------------------


def of_costs() -> CostAwareBayesianOptimizationSearcher:
    searcher = CostAwareBayesianOptimizationSearcher(SPACE, "loss", options=CostAwareOptions(cost_attr="cost", **SMALL))
    searcher.configure(SearcherContext("loss", random_seed=1))
    return searcher


@pytest.mark.parametrize("kind", ["map", "samples", "cost"])
def test_parameters_may_be_read_while_a_suggestion_is_made(kind: str) -> None:
    def made() -> BayesianOptimizationSearcher:
        return of_costs() if kind == "cost" else make(mcmc_samples=3 if kind == "samples" else 0)

    first = made()
    play(first, 6)
    state = first.state_dict()
    expected, parameters = first.get_config(6), first.model_parameters()
    twin = made()
    twin.load_state_dict(copy.deepcopy(state))
    found: list[dict[str, Any] | None] = []
    thread = threading.Thread(target=lambda: found.append(twin.get_config(6)))
    thread.start()
    while thread.is_alive():
        assert twin.model_parameters()
        thread.join(0.001)
    assert found == [expected]
    assert twin.model_parameters() == parameters


def test_what_makes_the_model_is_seen_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make()
    play(first, 7)
    twin = make()
    twin.load_state_dict(first.state_dict())
    seen: list[Any] = []
    load = ModelSuggester.load_state_dict

    def slow(self: ModelSuggester, state: dict[str, Any]) -> None:
        seen.append(twin._suggester)
        seen.append(twin.state_dict()["suggester"] is state)
        load(self, state)

    monkeypatch.setattr(ModelSuggester, "load_state_dict", slow)
    assert torch.equal(twin.suggester.generator.get_state(), first.suggester.generator.get_state())
    assert seen == [None, True]


def test_parameters_are_those_of_the_last_suggestion_and_stay_with_the_state() -> None:
    searcher = make()
    assert searcher.model_parameters() == {}
    play(searcher, 7)
    parameters = searcher.model_parameters()
    assert "noise" in parameters
    parameters["noise"] = -1.0
    assert searcher.model_parameters()["noise"] > 0
    twin = make()
    twin.load_state_dict(searcher.state_dict())
    assert twin.model_parameters() == searcher.model_parameters()
    assert twin._suggester is None  # reading them makes no model


def test_means_of_sampled_parameters_are_computed_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = BayesianGaussianProcess(1, num_samples=3)
    start = surrogate.layout.init
    surrogate._theta, surrogate._samples = start.clone(), start.expand(3, -1).clone()
    theta, unpack, seen = surrogate._theta, surrogate.layout.unpack, []

    def spy(values: Tensor) -> dict[str, Tensor]:
        seen.append(surrogate._theta)
        return unpack(values)

    monkeypatch.setattr(surrogate.layout, "unpack", spy)
    assert surrogate.parameters()["noise"] > 0
    assert len(seen) == 3
    assert all(each is theta for each in seen)


# ---- restricted configurations -----------------------------------------------------------------------

LIST = [{"x": 0.1 * i, "y": 10.0 ** (-0.37 * i), "n": i, "c": "abd"[i % 3]} for i in range(1, 10)]


def test_suggestions_are_the_entries_of_the_list() -> None:
    found = play(make(restrict_configurations=LIST), 10)
    assert found[-1] is None
    assert sorted(found[:-1], key=lambda config: config["n"]) == LIST  # type: ignore[index]
    native = BoTorchSearcher(
        SPACE, "loss", options=BoTorchOptions(random_seed=0, num_init_random=3, restrict_configurations=LIST)
    )
    found = play(native, 6)
    assert native.last_reason is not None
    assert native.last_reason.kind == "model"
    assert all(config in LIST for config in found)


def idle(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "k": 1} if config["c"] == "a" else config


def test_an_entry_is_not_replaced_by_what_stands_for_it() -> None:
    entries = [{"c": "a", "k": 7}, *({"c": "b", "k": k} for k in (2, 3, 5, 8))]
    found = play(make(FINITE, restrict_configurations=entries, canonicalize=idle, num_init_random=1), 6)
    assert found[-1] is None
    assert sorted(found[:-1], key=str) == sorted(entries, key=str)


# ---- configurations that count as the same -----------------------------------------------------------


@pytest.mark.parametrize("num_init_random", [2, 40], ids=["model", "random"])
def test_a_space_is_used_up_when_all_that_differ_have_come(num_init_random: int) -> None:
    found = play(make(FINITE, canonicalize=idle, num_init_random=num_init_random), 14)
    assert found[-1] is None
    assert len(found) == 12
    assert len({str(idle(config)) for config in found[:-1] if config is not None}) == 11


def test_first_configurations_that_count_as_the_same_come_once() -> None:
    points = [{"c": "a", "k": 3}, {"c": "a", "k": 4}, {"c": "b", "k": 3}]
    searcher = BayesianOptimizationSearcher(
        FINITE, "loss", points_to_evaluate=points, options=BayesOptOptions(canonicalize=idle, random_seed=0)
    )
    assert [searcher.get_config(0), searcher.get_config(1)] == [points[0], points[2]]


def test_without_canonicalize_draws_are_those_of_random_search() -> None:
    ours, random = make(FINITE, num_init_random=100), RandomSearcher(FINITE)
    random.configure(SearcherContext("loss", random_seed=1))
    assert play(ours, 21) == play(random, 21)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda config: None, "canonicalize must return a configuration, got None"),
        (lambda config: {"c": config["c"]}, "canonicalize must return all hyperparameters, 'k' is missing"),
        (lambda config: {**config, "k": 99}, "canonicalize must return a configuration of the space, its 'k'"),
        (lambda config: {**config, "kk": 1}, "canonicalize returns 'kk', which is not in config_space.*'k'"),
        (lambda config: config["lr"], "canonicalize fails for .*KeyError"),
    ],
)
def test_a_bad_canonicalize_is_told_at_once(function: Any, message: str) -> None:
    with pytest.raises(ConfigSpaceError, match=message):
        make(FINITE, canonicalize=function)


def test_a_bad_canonicalize_is_told_when_it_shows() -> None:
    searcher = make(FINITE, canonicalize=lambda config: config if config["c"] == "a" else None)
    with pytest.raises(ConfigSpaceError, match="canonicalize must return a configuration, got None for"):
        play(searcher, 30)


# ---- results of other spaces -------------------------------------------------------------------------

GOOD = {"x": 0.5, "y": 0.01, "n": 3, "c": "a"}


@pytest.mark.parametrize("kind", ["plain", "cost", "canonical"])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"c": "z"}, "'c'"),
        ({"c": None}, "'c'"),
        ({"x": "3"}, "'x'"),
        ({"n": None}, "'n'"),
        ({"n": float("nan")}, "'n'"),
    ],
)
def test_results_that_cannot_be_compared_are_passed_over(
    kind: str, change: dict[str, Any], part: str, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = of_costs() if kind == "cost" else make(canonicalize=dict if kind == "canonical" else None)
    play(searcher, 2)
    odd = GOOD | change
    searcher.on_trial_result(70, odd, {"loss": 0.0, "cost": 1.0}, True)
    searcher.on_trial_result(71, {"x": 0.5}, {"loss": 0.0, "cost": 1.0}, False)
    searcher.register_pending(72, odd)
    searcher.evaluation_failed(73, odd)
    assert searcher.dataset_size() == 2
    told = messages(caplog)
    assert len(told) == 1
    assert "trial 70" in told[0]
    assert part in told[0]
    assert None not in play(searcher, 3, 2)
    searcher.on_trial_result(74, GOOD, {"loss": 0.0, "cost": 1.0}, True)
    assert searcher.dataset_size() == 6


def test_warnings_come_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    searcher = make()
    for trial_id in range(5):
        searcher.on_trial_result(trial_id, GOOD, {"other": 1.0}, True)
        searcher.on_trial_result(10 + trial_id, GOOD, {"loss": float("nan")}, True)
        searcher.on_trial_result(20 + trial_id, GOOD | {"x": 5.0 + trial_id}, {"loss": 1.0}, True)
    searcher.on_trial_result(30, GOOD, {"loss": 1.0}, True)
    for trial_id in range(40, 44):
        searcher.get_config(trial_id)
    told = messages(caplog)
    assert len(told) == 3
    assert "trial 0 reports no number 'loss'" in told[0]
    assert "trial 10 reports loss=nan" in told[1]
    assert "trial 20 is passed over" in told[2]


# ---- pending configurations --------------------------------------------------------------------------


@pytest.mark.parametrize("num_init_random", [0, 100], ids=["no result", "random phase"])
def test_pending_configurations_do_not_come_again_in_random_draws(num_init_random: int) -> None:
    space = {"n": randint(1, 6)}
    searcher = make(space, allow_duplicates=True, num_init_random=num_init_random)
    found = set()
    for trial_id in range(6):
        config = searcher.get_config(trial_id)
        assert config is not None
        searcher.register_pending(trial_id, config)
        found.add(config["n"])
    assert found == set(range(1, 7))
    # Nothing else is left: a worker gets a pending one rather than nothing.
    assert searcher.get_config(6) is not None
    searcher.cleanup_pending(3)
    free = set(range(1, 7)) - {config["n"] for config in searcher._observations.pending.values()}
    assert {searcher.get_config(trial_id)["n"] for trial_id in range(7, 12)} == free  # type: ignore[index]


def test_pending_entries_of_a_list_do_not_come_again_in_random_draws() -> None:
    searcher = make(restrict_configurations=LIST, allow_duplicates=True, num_init_random=100)
    for entry in LIST[2:]:
        searcher.register_pending(entry["n"], entry)  # type: ignore[arg-type]
    found = [searcher.get_config(trial_id) for trial_id in range(20, 40)]
    assert all(config in LIST[:2] for config in found)
    assert len({str(config) for config in found}) == 2


# ---- surrogates of the user --------------------------------------------------------------------------


class Counting(Surrogate):
    """Its noise grows with every fit, which its state does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.fits = 0

    def build(self, X: Tensor, Z: Tensor, refit: bool) -> Model:
        self.fits += 1
        return SingleTaskGP(X, Z.unsqueeze(-1), torch.full_like(Z, 0.03 * self.fits).unsqueeze(-1)).eval()


class WithLock(Counting):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_questions_do_not_change_what_a_users_surrogate_suggests() -> None:
    asked, left_alone = (make(surrogate=Counting(), num_init_random=3) for _ in range(2))
    for trial_id in range(6):
        found = play(asked, 1, trial_id)
        assert found == play(left_alone, 1, trial_id)
        if trial_id == 4:
            asked.best_config(by="model")
            asked.get_batch_configs(2)
    fits = [searcher.suggester.surrogate.fits for searcher in (asked, left_alone)]  # type: ignore[attr-defined]
    assert fits[0] == fits[1] > 0


def test_searchers_share_no_surrogate() -> None:
    given = Counting()
    first, second, alone = (make(surrogate=each, num_init_random=3) for each in (given, given, Counting()))
    play(first, 5)
    assert given.fits == 0
    assert play(second, 5) == play(alone, 5)


def test_a_surrogate_that_cannot_be_copied_is_told_at_once() -> None:
    with pytest.raises(TypeError, match=r"surrogate must be an object that copy.deepcopy can copy.*lock"):
        make(surrogate=WithLock())


def test_a_surrogate_that_can_no_longer_be_copied_is_made_anew_for_questions() -> None:
    searcher = make(surrogate=Counting())
    play(searcher, 7)
    surrogate: Any = searcher.suggester.surrogate
    surrogate.lock = threading.Lock()
    fits = surrogate.fits
    assert searcher.best_config(by="model") is not None
    assert len(searcher.get_batch_configs(2)) == 2
    assert searcher.suggester.surrogate is surrogate
    assert surrogate.fits == fits


# ---- reasons -----------------------------------------------------------------------------------------


def test_a_reason_tells_the_seconds() -> None:
    searcher = make()
    total = 0.0
    for trial_id in range(7):
        play(searcher, 1, trial_id)
        assert searcher.last_reason is not None
        assert searcher.last_reason.seconds > 0
        total += searcher.last_reason.seconds
    assert total == pytest.approx(searcher.cumulative_get_config_time)
    assert searcher.last_reason is not None
    assert searcher.last_reason.to_dict()["seconds"] > 0


def test_the_number_of_threads_is_restored() -> None:
    torch.set_num_threads(2)
    try:
        searcher = BayesianOptimizationSearcher(
            {"x": uniform(0.0, 1.0)}, "loss", points_to_evaluate=[], options=BayesOptOptions(num_init_random=2)
        )
        searcher.configure(SearcherContext("loss"))
        for number, x in enumerate((0.1, 0.4, 0.9)):
            searcher.on_trial_result(number, {"x": x}, {"loss": x * x}, True)
        assert searcher.get_config(3) is not None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_from_many_observations_on_the_search_is_shorter_and_sizes_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from sthyper.acquisition.optimize import OptimizerOptions, optimize_acquisition
    from sthyper.searchers.bayesopt import suggest

    used: list[OptimizerOptions] = []

    def spy(*arguments: Any) -> Any:
        used.append(arguments[4])
        return optimize_acquisition(*arguments)

    monkeypatch.setattr(suggest, "optimize_acquisition", spy)
    space: dict[str, Any] = {"x": uniform(0.0, 1.0), "kind": choice(["a", "b", "c"])}
    given: dict[str, Any]
    for given in ({}, {"num_init_candidates": 1000, "num_local_candidates": 100, "skip_local_optimization": True}):
        options = BayesOptOptions(**given)
        searcher = BayesianOptimizationSearcher(space, "loss", points_to_evaluate=[], options=options)
        searcher.configure(SearcherContext("loss", random_seed=0))
        used.clear()
        for number in range(151):
            if number in (149, 150):
                config = searcher.get_config(1000 + number)
                assert config is not None
                searcher.evaluation_failed(1000 + number, config)
            x = 0.3 + 0.7 * 0.97**number  # each is better than the last: a search that stagnates goes other ways
            searcher.on_trial_result(number, {"x": x, "kind": "a"}, {"loss": (x - 0.3) ** 2}, update=True)
        before, after = used
        assert after.num_candidates == before.num_candidates // 2
        assert after.num_local_candidates == before.num_local_candidates // 2
        # What is enumerated stays the same.
        assert after.num_enumerated == before.num_candidates + before.num_local_candidates
        if given:
            assert (before.num_candidates, before.num_local_candidates) == (1000, 100)
            assert (after.max_iterations, after.max_rounds) == (before.max_iterations, before.max_rounds) == (0, 0)
        else:
            assert 0 < after.max_iterations < before.max_iterations
            assert 0 < after.max_rounds < before.max_rounds
