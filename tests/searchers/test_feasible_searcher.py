"""Searchers that know no models learn what is feasible."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, config_to_match_string, randint, uniform
from sthyper.schedulers import AskTellScheduler, FIFOScheduler
from sthyper.searchers import BaseSearcher, GridSearcher, RandomSearcher, SearcherContext
from sthyper.searchers.feasible import FeasibilitySearcher
from sthyper.testing import SearcherConformance

SPACE: dict[str, Any] = {f"x{i}": uniform(0, 1) for i in range(4)}


class TestLearnsFailures(SearcherConformance):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        searcher = RandomSearcher(config_space, "loss", points_to_evaluate=points_to_evaluate, random_seed=random_seed)
        return FeasibilitySearcher(searcher, learn_feasibility=True, num_draws=4, random_seed=random_seed)


class TestKeepsAConstraint(TestLearnsFailures):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        searcher = GridSearcher(config_space, "loss", points_to_evaluate=points_to_evaluate, random_seed=random_seed)
        return FeasibilitySearcher(searcher, ["loss <= 0.3"], num_draws=3, random_seed=random_seed)

    @pytest.mark.slow
    def test_state_continues_where_it_was_taken(self) -> None:
        super().test_state_continues_where_it_was_taken()


def configured(searcher: BaseSearcher, seed: int = 0) -> BaseSearcher:
    searcher.configure(SearcherContext("loss", random_seed=seed))
    return searcher


def failures(
    scheduler: Any, n: int, fails: Callable[[dict[str, Any]], bool], metrics: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[bool]:
    """Return which of n trials failed, or broke a constraint, one after the other."""
    ask_tell, failed = AskTellScheduler(scheduler), []
    for _ in range(n):
        trial = ask_tell.ask()
        assert trial is not None
        failed.append(fails(trial.config))
        if failed[-1] and not metrics(trial.config):
            ask_tell.fail(trial, "out of memory")
        else:
            ask_tell.tell(trial, {"loss": 1.0, **metrics(trial.config)}, done=True)
    return failed


@pytest.mark.slow
def test_half_of_the_space_fails() -> None:
    ours, usual = 0, 0
    for seed in range(4):
        for options in ({"learn_feasibility": True}, {}):
            scheduler = RandomSearch(SPACE, "loss", search_options=options, random_seed=seed)
            count = sum(failures(scheduler, 40, lambda config: config["x0"] > 0.5, lambda config: {})[20:])
            if options:
                ours += count
            else:
                usual += count
    assert usual > 32  # of 80
    assert ours < 0.5 * usual


@pytest.mark.slow
def test_a_constrained_metric_is_learned() -> None:
    def memory(config: dict[str, Any]) -> dict[str, Any]:
        return {"memory": 1e10 * (config["x0"] + config["x1"])}

    counts = []
    for options in ({"outcome_constraints": ["memory <= 5e9"]}, {}):
        scheduler = RandomSearch(SPACE, "loss", search_options=options, random_seed=3)
        broken = failures(scheduler, 30, lambda config: config["x0"] + config["x1"] > 0.5, memory)
        counts.append(sum(broken[15:]))
    assert counts[0] <= 4
    assert counts[1] >= 11


def test_until_something_is_known_the_proposals_are_those_of_the_other_searcher() -> None:
    usual = configured(RandomSearcher(SPACE, "loss"), 5)
    ours = configured(FeasibilitySearcher(RandomSearcher(SPACE, "loss"), ["m < 1"], learn_feasibility=True), 5)
    for number in range(6):
        config = usual.get_config(number)
        assert ours.get_config(number) == config
        assert config is not None
        ours.on_trial_result(number, config, {"loss": 1.0}, True)  # without the metric
        assert ours.last_feasibility is None  # type: ignore[attr-defined]


def test_initial_configurations_are_not_refused() -> None:
    points = [{**dict.fromkeys(SPACE, 0.4), "x0": x} for x in (0.99, 0.98, 0.97, 0.96)]
    searcher = configured(FeasibilitySearcher(RandomSearcher(SPACE, "loss", points_to_evaluate=points), ["m < 0.5"]))
    for number in range(4):
        config = searcher.get_config(number)
        assert config == points[number]
        searcher.on_trial_result(number, config, {"loss": 1.0, "m": config["x0"]}, True)


def test_a_grid_is_used_up_and_the_infeasible_comes_last() -> None:
    space = {"a": randint(0, 9), "b": choice(["x", "y", "z"])}
    searcher = FeasibilitySearcher(GridSearcher(space, "loss", num_samples={"a": 10}), ["m <= 4.5"], num_draws=5)
    configured(searcher)
    seen: list[dict[str, Any]] = []
    while (config := searcher.get_config(len(seen))) is not None:
        searcher.on_trial_result(len(seen), config, {"loss": 1.0, "m": float(config["a"])}, True)
        seen.append(config)
    assert len({config_to_match_string(config, space) for config in seen}) == 30 == len(seen)
    late = [config["a"] > 4 for config in seen[-10:]]
    assert sum(late) == 10
    assert sum(config["a"] > 4 for config in seen[5:18]) <= 4
    assert searcher.get_config(30) is None


def test_refused_proposals_that_others_ran_do_not_come_again() -> None:
    space = {"a": randint(0, 7)}
    searcher = FeasibilitySearcher(RandomSearcher(space, "loss", points_to_evaluate=[{"a": 7}]), ["m < 3"], num_draws=8)
    configured(searcher)
    searcher.on_trial_result(0, searcher.get_config(0) or {}, {"loss": 1.0, "m": 7.0}, True)
    config = searcher.get_config(1)
    assert config is not None
    kept = [dict(each) for each in searcher._kept.values()]
    assert len(kept) >= 3
    searcher.register_pending(50, kept[0])
    searcher.on_trial_result(51, kept[1], {"loss": 1.0, "m": 5.0}, True)
    searcher.evaluation_failed(52, kept[2], True)
    rest = []
    while (further := searcher.get_config(2)) is not None:
        rest.append(further)
    assert not [each for each in kept[:3] if each in rest]
    assert len(rest) == 8 - 2 - 3


def test_num_draws_is_the_largest_number_of_proposals() -> None:
    class Counts(RandomSearcher):
        calls = 0

        def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
            self.calls += 1
            return super().get_config(trial_id)

    calls = {}
    for num_draws in (1, 3, 30):
        inner = Counts(SPACE, "loss", points_to_evaluate=[])
        searcher = configured(FeasibilitySearcher(inner, ["m < -5"], num_draws=num_draws))
        for number in range(6):
            config = searcher.get_config(number)
            assert config is not None
            searcher.on_trial_result(number, config, {"loss": 1.0, "m": 1.0 + 0.01 * number}, True)
        before = inner.calls
        searcher.get_config(6)
        calls[num_draws] = inner.calls - before
    assert calls == {1: 1, 3: 3, 30: 30}


def test_the_predicted_probability_is_told() -> None:
    searcher = FeasibilitySearcher(RandomSearcher(SPACE, "loss"), ["m < 0.5"], learn_feasibility=True)
    configured(searcher)
    for number in range(12):
        config = searcher.get_config(number)
        assert config is not None
        if config["x1"] > 0.7:
            searcher.evaluation_failed(number, config, True)
        else:
            searcher.on_trial_result(number, config, {"loss": 1.0, "m": config["x0"]}, True)
    assert searcher.last_feasibility is not None
    assert 0.0 < searcher.last_feasibility <= 1.0
    assert any(name.startswith("m.lengthscale") for name in searcher.model_parameters())
    assert any(name.startswith("failure.lengthscale") for name in searcher.model_parameters())


def test_options_of_named_searchers() -> None:
    for searcher in ("random", "grid"):
        for options in ({"outcome_constraints": ["m < 1"]}, {"learn_feasibility": True}):
            scheduler = FIFOScheduler({"a": randint(0, 5)}, "loss", searcher=searcher, search_options=options)
            assert isinstance(scheduler.searcher, FeasibilitySearcher)
            assert [c.metric for c in scheduler.searcher.constraints] == (
                ["m"] if "outcome_constraints" in options else []
            )
        scheduler = FIFOScheduler({"a": randint(0, 5)}, "loss", searcher=searcher, search_options={})
        assert not isinstance(scheduler.searcher, FeasibilitySearcher)
    with pytest.raises(ValueError, match=r"outcome_constraints\[0\]='m = 1' cannot be parsed"):
        RandomSearch(SPACE, "loss", search_options={"outcome_constraints": ["m = 1"]})
    with pytest.raises(TypeError, match="outcome_constraints must be a list"):
        GridSearch({"a": randint(0, 5)}, "loss", search_options={"outcome_constraints": "m < 1"})
    with pytest.raises(TypeError, match="learn_feasibility must be True or False, got 1"):
        RandomSearch(SPACE, "loss", search_options={"learn_feasibility": 1})
    scheduler = ASHA(
        {**SPACE, "epochs": 9}, "loss", max_resource_attr="epochs", search_options={"learn_feasibility": True}
    )
    assert isinstance(scheduler.searcher, FeasibilitySearcher)


def test_bad_arguments() -> None:
    inner = RandomSearcher(SPACE)
    with pytest.raises(TypeError, match="searcher must be a BaseSearcher, got 'random'"):
        FeasibilitySearcher("random", learn_feasibility=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is nothing to learn"):
        FeasibilitySearcher(inner)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        FeasibilitySearcher(inner, learn_feasibility=True, num_draws=0)
    with pytest.raises(TypeError, match="num_draws must be an int of at least 1, got 2.0"):
        FeasibilitySearcher(inner, learn_feasibility=True, num_draws=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="random_seed must be at least 0, got -1"):
        FeasibilitySearcher(inner, learn_feasibility=True, random_seed=-1)


def test_a_missing_metric_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    searcher = configured(FeasibilitySearcher(RandomSearcher(SPACE, "loss"), ["m < 0.5"]))
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            config = searcher.get_config(number)
            assert config is not None
            searcher.on_trial_result(number, config, {"loss": 1.0}, True)
    assert len([record for record in caplog.records if "constrained metric 'm'" in record.getMessage()]) == 1
