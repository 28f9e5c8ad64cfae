"""GridSearcher: grid values, order, what is left out, size, state."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.baselines import GridSearch, RandomSearch, baselines_dict
from sthyper.config_space import (
    ConfigSpaceError,
    Domain,
    choice,
    config_to_match_string,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    normal,
    ordinal,
    qrandint,
    quniform,
    randint,
    reverseloguniform,
    uniform,
)
from sthyper.schedulers import FIFOScheduler, HyperbandScheduler
from sthyper.searchers import GridSearcher, SearcherContext
from sthyper.searchers.finite import SpacedValues, grid_values
from sthyper.searchers.permutation import LazyPermutation
from sthyper.testing import SchedulerConformance, SearcherConformance, drive
from sthyper.time_keeper import RealTimeKeeper
from sthyper.trial import SchedulerDecision

SMALL: dict[str, Any] = {"a": choice(["x", "y", "z"]), "b": randint(1, 4), "data": "digits"}


def suggestions(searcher: GridSearcher, n: int = 1000, start: int = 0) -> list[dict[str, Any]]:
    """Up to n suggestions, fewer if the grid ends."""
    found = []
    for i in range(start, start + n):
        config = searcher.get_config(i)
        if config is None:
            break
        found.append(config)
    return found


def grid(space: dict[str, Any], **options: Any) -> list[tuple[Any, ...]]:
    options.setdefault("points_to_evaluate", [])
    options.setdefault("shuffle_config", False)
    return [tuple(config.values()) for config in suggestions(GridSearcher(space, **options))]


class TestConformance(SearcherConformance):
    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> GridSearcher:
        return GridSearcher(config_space, random_seed=random_seed, points_to_evaluate=points_to_evaluate)


class TestConformanceUnshuffled(SearcherConformance):
    is_random = False

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> GridSearcher:
        return GridSearcher(config_space, points_to_evaluate=points_to_evaluate, shuffle_config=False)


class TestConformanceRepeating(SearcherConformance):
    repeats_configurations = True

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> GridSearcher:
        return GridSearcher(
            config_space, random_seed=random_seed, points_to_evaluate=points_to_evaluate, allow_duplicates=True
        )


# ---- grid values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "n", "values"),
    [
        (uniform(0.0, 1.0), 4, [0.125, 0.375, 0.625, 0.875]),
        (uniform(0.0, 1.0), None, [0.1, 0.3, 0.5, 0.7, 0.9]),
        (uniform(2.0, 2.0), 7, [2.0]),
        (loguniform(1e-4, 1.0), 2, [1e-3, 1e-1]),
        (reverseloguniform(0.0, 0.99), 1, [0.9]),
        (normal(0.0, 1.0, lower=-4.0, upper=4.0), 2, [-2.0, 2.0]),
        (randint(1, 3), None, [1, 2, 3]),
        (randint(1, 3), 10, [1, 2, 3]),
        (randint(0, 99), None, [10, 30, 50, 70, 90]),
        (randint(0, 99), 1, [50]),
        (lograndint(1, 3), 3, [1, 2, 3]),
        (lograndint(1, 1000), 3, [2, 22, 282]),
        (lograndint(1, 100), 12, [1, 2, 4, 6, 9, 14, 21, 33, 52, 81]),  # equal ones merged
        (quniform(0.0, 1.0, 0.25), 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (quniform(0.0, 1.0, 0.1), 2, [0.2, 0.8]),
        (qrandint(0, 100, 25), 2, [25, 75]),
        (choice(["b", "a"]), None, ["b", "a"]),
        (choice([3, 1]).grid(), None, [3, 1]),
        (ordinal([5, 3, 9], kind="equal"), None, [5, 3, 9]),
        (logordinal([1.0, 10.0, 50.0]), None, [1.0, 10.0, 50.0]),
        (finrange(0.0, 1.0, 7), None, [i / 6 for i in range(7)]),
        (logfinrange(1, 8, 4, cast_int=True), None, [1, 2, 4, 8]),
    ],
)
def test_the_values_of_a_domain(domain: Domain, n: int | None, values: list[Any]) -> None:
    found = grid({"x": domain}, num_samples=None if n is None else {"x": n})
    assert [type(v) for (v,) in found] == [type(v) for v in values]
    if isinstance(values[0], str):
        assert [v for (v,) in found] == values
    else:
        assert [v for (v,) in found] == pytest.approx(values)
    assert all(domain.is_valid(v) for (v,) in found)


def test_the_values_follow_the_formula_of_the_encoding() -> None:
    low, high, n = math.log(3e-5), math.log(0.7), 9
    expected = [math.exp(low + (i + 0.5) / n * (high - low)) for i in range(n)]
    assert [v for (v,) in grid({"x": loguniform(3e-5, 0.7)}, num_samples={"x": n})] == pytest.approx(expected)


def test_long_lists_are_computed_on_demand() -> None:
    values = grid_values(uniform(0.0, 1.0), 10**9)
    assert isinstance(values, SpacedValues)
    assert len(values) == 10**9
    assert [values[0], values[-1]] == pytest.approx([5e-10, 1 - 5e-10])
    assert values[1:3] == pytest.approx([1.5e-9, 2.5e-9])
    with pytest.raises(IndexError):
        values[10**9]


# ---- order -----------------------------------------------------------------------------------------------


def test_the_unshuffled_order_nests_listed_values_outside_and_ranges_inside() -> None:
    space = {
        "n": randint(1, 2),
        "act": choice(["relu", "tanh"]),
        "constant": 3,
        "x": uniform(0.0, 1.0),
        "width": finrange(1.0, 3.0, 3),
    }
    expected = [
        (n, act, x, width)
        for width, act, n, x in itertools.product([1.0, 2.0, 3.0], ["relu", "tanh"], [1, 2], [0.25, 0.75])
    ]
    assert grid(space, num_samples={"x": 2}) == expected


def test_shuffling_changes_the_order_and_nothing_else() -> None:
    plain = grid(SMALL)
    orders = [grid(SMALL, shuffle_config=True, random_seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert plain not in orders
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(plain))}


def test_the_seed_of_the_scheduler_is_used_unless_it_has_one() -> None:
    def order(searcher: GridSearcher) -> list[dict[str, Any]]:
        searcher.configure(SearcherContext("loss", mode="max", random_seed=8))
        assert (searcher.metric, searcher.mode) == ("loss", "max")
        return suggestions(searcher)

    assert order(GridSearcher(SMALL, random_seed=3)) == suggestions(GridSearcher(SMALL, random_seed=3))
    assert order(GridSearcher(SMALL)) == suggestions(GridSearcher(SMALL, random_seed=8))
    wide = {"x": randint(1, 1000)}
    unseeded = [suggestions(GridSearcher(wide, num_samples={"x": 500})) for _ in range(2)]
    assert unseeded[0] != unseeded[1]  # the system's entropy


def test_all_orders_are_equally_likely() -> None:
    orders = Counter()
    for seed in range(2400):
        permutation = LazyPermutation(4, seed)
        orders[tuple(next(permutation) for _ in range(4))] += 1
    assert len(orders) == 24
    # 100 expected of each; five standard deviations of a binomial number.
    assert max(abs(n - 100) for n in orders.values()) < 5 * math.sqrt(2400 / 24 * 23 / 24)


@given(st.integers(1, 300), st.integers(0, 2**31), st.data())
@settings(max_examples=50, deadline=None)
def test_a_lazy_permutation_is_one(size: int, seed: int, data: st.DataObject) -> None:
    permutation = LazyPermutation(size, seed)
    order = [next(permutation) for _ in range(size)]
    assert sorted(order) == list(range(size))
    with pytest.raises(StopIteration):
        next(permutation)
    position = data.draw(st.integers(0, size - 1))
    later = LazyPermutation(size, seed)
    later.skip_to(position)
    assert next(later) == order[position]


# ---- what is left out ------------------------------------------------------------------------------------


def test_initial_configurations_come_first_and_once() -> None:
    points = [{"a": "z"}, {"b": 4}, {"a": "z", "b": 2}]
    found = suggestions(GridSearcher(SMALL, points_to_evaluate=points, random_seed=0))
    assert found[:2] == [{"a": "z", "b": 2}, {"a": "x", "b": 4}]
    assert len(found) == len({config_to_match_string(c, SMALL) for c in found}) == 12
    assert suggestions(GridSearcher(SMALL))[0] == {"a": "x", "b": 2}
    off_grid = suggestions(GridSearcher({"x": uniform(0, 1)}, points_to_evaluate=[{"x": 0.77}]))
    assert off_grid[0] == {"x": 0.77}
    assert len(off_grid) == 6


@pytest.mark.parametrize("event", ["pending", "result", "failed"])
def test_configurations_of_others_are_left_out(event: str) -> None:
    other = {"a": "y", "b": 3}
    searcher = GridSearcher(SMALL, points_to_evaluate=[other], random_seed=0)
    if event == "pending":
        searcher.register_pending(7, other)
    elif event == "result":
        searcher.on_trial_result(-1, other, {"loss": 1.0}, True)
    else:
        searcher.evaluation_failed(7, other)
    found = suggestions(searcher)
    assert other not in found
    assert len(found) == 11


def test_a_trial_killed_from_outside_does_not_exclude_its_configuration() -> None:
    other = {"a": "y", "b": 3}
    searcher = GridSearcher(SMALL, points_to_evaluate=[])
    searcher.evaluation_failed(7, other, blacklist=False)
    searcher.register_pending(8)
    assert other in suggestions(searcher)


def test_with_duplicates_the_grid_comes_again_without_what_failed() -> None:
    searcher = GridSearcher(SMALL, points_to_evaluate=[{"a": "z"}], allow_duplicates=True, random_seed=0)
    rounds = [suggestions(searcher, 12), suggestions(searcher, 12, 12), suggestions(searcher, 12, 24)]
    assert all(len({config_to_match_string(c, SMALL) for c in found}) == 12 for found in rounds)
    assert rounds[0][0] == {"a": "z", "b": 2}
    assert rounds[1] == rounds[2]
    searcher.evaluation_failed(50, {"a": "y", "b": 1})
    assert {"a": "y", "b": 1} not in suggestions(searcher, 30, 60)


def test_with_duplicates_known_configurations_come_in_the_second_round() -> None:
    searcher = GridSearcher({"a": choice([1, 2])}, points_to_evaluate=[], allow_duplicates=True)
    searcher.on_trial_result(5, {"a": 1}, {"loss": 0.0}, True)
    searcher.on_trial_result(6, {"a": 2}, {"loss": 0.0}, True)
    assert sorted(c["a"] for c in suggestions(searcher, 2)) == [1, 2]


def test_when_everything_failed_there_is_nothing_left(caplog: pytest.LogCaptureFixture) -> None:
    searcher = GridSearcher({"a": choice([1, 2])}, allow_duplicates=True)
    assert len(suggestions(searcher, 5)) == 5
    for value in (1, 2):
        searcher.evaluation_failed(value, {"a": value})
    with caplog.at_level(logging.INFO, logger="sthyper"):
        assert [searcher.get_config(i) for i in (7, 8)] == [None, None]
    assert [r.getMessage() for r in caplog.records] == ["the grid of 2 configurations is used up"]


def test_a_space_of_constants_has_one_configuration() -> None:
    assert suggestions(GridSearcher({"epochs": 3})) == [{}]
    assert suggestions(GridSearcher({"epochs": 3}, points_to_evaluate=[])) == [{}]


@given(st.integers(0, 10**6), st.lists(st.tuples(st.sampled_from("psfg"), st.integers(0, 11)), max_size=15))
@settings(max_examples=60, deadline=None)
def test_the_grid_is_covered_exactly_whatever_happens(seed: int, events: list[tuple[str, int]]) -> None:
    everything = [{"a": a, "b": b} for a in "xyz" for b in (1, 2, 3, 4)]
    searcher = GridSearcher(SMALL, points_to_evaluate=[], random_seed=seed)
    foreign, suggested = [], []
    for number, (kind, index) in enumerate(events):
        config = everything[index]
        if kind == "g":
            suggestion = searcher.get_config(number)
            suggested += [] if suggestion is None else [suggestion]
        elif kind == "s":  # a state in between changes nothing
            state = json.loads(json.dumps(searcher.state_dict()))
            searcher = GridSearcher(SMALL, points_to_evaluate=[], random_seed=seed + 1)
            searcher.load_state_dict(state)
        else:
            foreign.append(config)
            (searcher.register_pending if kind == "p" else searcher.evaluation_failed)(1000 + number, config)
    suggested += suggestions(searcher, 13, 100)
    assert all(config in suggested or config in foreign for config in everything)
    assert len({config_to_match_string(c, SMALL) for c in suggested}) == len(suggested)


# ---- size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [{f"x{i}": uniform(0, 1) for i in range(9)}, {f"x{i}": uniform(0, 1) for i in range(30)}]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_huge_grid_costs_nothing(space: dict[str, Any], shuffle: bool) -> None:
    samples = dict.fromkeys(space, 10)
    GridSearcher({"x": uniform(0, 1)}).get_config(0)  # imports
    tracemalloc.start()
    started = time.process_time()
    searcher = GridSearcher(space, num_samples=samples, shuffle_config=shuffle, random_seed=0, points_to_evaluate=[])
    found = suggestions(searcher, 100)
    seconds = time.process_time() - started
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert searcher.grid_size == 10 ** len(space)
    assert len({config_to_match_string(c, space) for c in found}) == 100
    assert seconds < 0.5
    assert memory < 2e6
    values = [c["x0"] for c in found]
    assert (len(set(values)) > 5) == shuffle  # the outermost loop moves only when it is shuffled


def test_one_long_axis_costs_nothing() -> None:
    started = time.process_time()
    searcher = GridSearcher({"x": uniform(0, 1)}, num_samples={"x": 10**9}, points_to_evaluate=[], shuffle_config=False)
    assert [c["x"] for c in suggestions(searcher, 2)] == pytest.approx([5e-10, 1.5e-9])
    assert time.process_time() - started < 0.2


# ---- under schedulers ------------------------------------------------------------------------------------


class TestGridSearchConformance(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> GridSearch:
        return GridSearch(config_space, "loss", random_seed=random_seed)


class TestPromotionConformance(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> HyperbandScheduler:
        return HyperbandScheduler(
            config_space,
            "loss",
            searcher="grid",
            type="promotion",
            max_resource_attr="epochs",
            random_seed=random_seed,
        )


def test_grid_search_by_name_and_as_baseline() -> None:
    options = {"num_samples": {"x": 3}, "shuffle_config": False}
    space = {"x": uniform(0, 3), "epochs": 2}
    makers = [
        lambda: GridSearch(space, "loss", search_options=options, points_to_evaluate=[]),
        lambda: FIFOScheduler(space, "loss", searcher="grid", search_options=options, points_to_evaluate=[]),
        lambda: FIFOScheduler(
            space,
            "loss",
            searcher=GridSearcher(space, points_to_evaluate=[], num_samples={"x": 3}, shuffle_config=False),
        ),
    ]
    for make in makers:
        events = drive(make(), max_resource=2)
        assert [e.config for e in events if e.kind == "start"] == [{"x": x, "epochs": 2} for x in (0.5, 1.5, 2.5)]
        assert sum(e.kind == "complete" for e in events) == 3
        assert events[-1].kind == "exhausted"
    assert baselines_dict["Grid Search"] is baselines_dict["GridSearch"] is GridSearch
    assert GridSearch(space, "loss", mode="max").metric_mode() == "max"


def test_the_scheduler_passes_its_options_on() -> None:
    def configs(**arguments: Any) -> list[Any]:
        options = {"num_samples": {"x": 6}, **arguments.pop("options", {})}
        scheduler = GridSearch({"x": uniform(0, 1)}, "loss", search_options=options, **arguments)
        found = [scheduler.suggest(i) for i in range(14)]
        return [s.config["x"] for s in found if s is not None and s.config is not None]

    first = configs(random_seed=1)
    assert first[0] == 0.5
    assert len(first) == 7
    assert configs(random_seed=2) != first
    assert configs(random_seed=1, points_to_evaluate=[{"x": 0.25}])[0] == 0.25
    assert len(configs(random_seed=1, points_to_evaluate=[])) == 6
    assert len(configs(random_seed=1, options={"allow_duplicates": True})) == 14
    assert configs(options={"shuffle_config": False})[1:] == pytest.approx([(i + 0.5) / 6 for i in range(6)])


@pytest.mark.parametrize("method", [GridSearch, RandomSearch])
def test_baselines_take_the_arguments_of_their_scheduler(method: type[GridSearch] | type[RandomSearch]) -> None:
    space = {"x": uniform(0, 1), "steps": 7}
    assert method(space, "loss").max_resource_level is None
    assert method(space, "loss", max_resource_attr="steps").max_resource_level == 7
    assert method(space, "loss", max_t=5).max_resource_level == 5
    with pytest.raises(RuntimeError, match="RealTimeKeeper already"):
        method(space, "loss", time_keeper=RealTimeKeeper()).set_time_keeper(RealTimeKeeper())
    method(space, "loss").set_time_keeper(RealTimeKeeper())


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_grid_search_under_asha(kind: str) -> None:
    space = {"x": uniform(0, 1), "act": choice(["relu", "tanh"]), "epochs": 9}
    scheduler = HyperbandScheduler(
        space, "loss", searcher="grid", max_resource_attr="epochs", type=kind, random_seed=0, points_to_evaluate=[]
    )
    events = drive(scheduler, lambda config, epoch: {"loss": config["x"]}, n_trials=50)
    starts = [(e.config["x"], e.config["act"]) for e in events if e.kind == "start" and e.config]
    assert sorted(starts) == sorted(itertools.product([0.1, 0.3, 0.5, 0.7, 0.9], ["relu", "tanh"]))
    wanted = SchedulerDecision.STOP if kind == "stopping" else SchedulerDecision.PAUSE
    assert any(e.decision == wanted and e.resource < 9 for e in events)
    assert any(e.kind == "complete" for e in events)


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": {"lrr": 3}}, ValueError, r"'lrr' is not in config_space \(did you mean 'lr'\?\)"),
        ({"num_samples": {"lr": 0}}, ValueError, r"num_samples\['lr'\] must be an int in \[1, 2\*\*40\], got 0"),
        ({"num_samples": {"lr": 2**60}}, ValueError, "must be an int in"),
        ({"num_samples": {"lr": 2.5}}, TypeError, r"num_samples\['lr'\] must be a positive int, got 2\.5"),
        ({"num_samples": {"lr": True}}, TypeError, "must be a positive int, got True"),
        ({"num_samples": {"act": 2}}, ValueError, "'act' is no float or integer range .all its values"),
        ({"num_samples": {"data": 2}}, ValueError, "'data' is no float or integer range .it is a constant"),
        ({"num_samples": 4}, TypeError, "num_samples must be a dict"),
        ({"shuffle_config": "no"}, TypeError, "shuffle_config must be True or False, got 'no'"),
        ({"allow_duplicates": 1}, TypeError, "allow_duplicates must be True or False, got 1"),
        ({"random_seed": -1}, ValueError, "random_seed must be a non-negative int, got -1"),
        ({"random_seed": 1.5}, TypeError, r"random_seed must be a non-negative int, got 1\.5"),
        ({"restrict_configurations": []}, ValueError, "not supported by grid search.*RandomSearcher"),
        ({"mode": "up"}, ValueError, "mode must be 'min' or 'max'"),
        ({"points_to_evaluate": [{"lr": 7.0}]}, ConfigSpaceError, "7.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    space = {"lr": loguniform(1e-4, 1.0), "act": choice(["relu"]), "data": "digits"}
    with pytest.raises(error, match=message):
        GridSearcher(space, **options)


def test_bad_names_and_options_at_the_scheduler() -> None:
    with pytest.raises(ValueError, match=r"searcher='gird' is unknown \(did you mean 'grid'\?\)"):
        FIFOScheduler(SMALL, "loss", searcher="gird")
    with pytest.raises(ValueError, match=r"option 'num_sample' of searcher='grid' \(did you mean 'num_samples'"):
        GridSearch(SMALL, "loss", search_options={"num_sample": {"b": 2}})
    with pytest.raises(ValueError, match="RandomSearcher"):
        GridSearch(SMALL, "loss", search_options={"restrict_configurations": [{"a": "x", "b": 1}]})


def test_the_default_and_too_many_values_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    space = {"lr": uniform(0, 1), "wd": uniform(0, 1), "n": randint(1, 3), "m": randint(1, 99)}
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        GridSearcher(space, num_samples={"wd": 2, "n": 4})
    messages = [r.getMessage() for r in caplog.records]
    assert messages == [
        "num_samples['n']=4: randint(1, 3) has 3 values, all of them are used",
        "grid search takes 5 values of lr; num_samples={'lr': ...} sets their number",
    ]


def test_a_state_of_another_grid_is_refused() -> None:
    state = GridSearcher(SMALL).state_dict()
    with pytest.raises(ValueError, match="a grid of 12 configurations, this one has 8"):
        GridSearcher({"a": choice(["x", "y"]), "b": randint(1, 4)}).load_state_dict(state)
