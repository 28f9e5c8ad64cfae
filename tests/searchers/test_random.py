"""RandomSearcher: distribution, duplicates, finite spaces, restricted lists, state."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest

from sthyper.config_space import (
    ConfigSpaceError,
    choice,
    config_to_match_string,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    ordinal,
    qrandint,
    quniform,
    randint,
    sample_config,
    uniform,
)
from sthyper.searchers import RandomSearcher, SearcherContext
from sthyper.searchers.finite import all_configs, domain_values

SPACE: dict[str, Any] = {"lr": loguniform(1e-4, 1.0), "n": randint(1, 1000), "data": "digits"}
SMALL: dict[str, Any] = {"a": choice(["x", "y", "z"]), "b": randint(1, 4)}


def suggestions(searcher: RandomSearcher, n: int, start: int = 0) -> list[dict[str, Any] | None]:
    return [searcher.get_config(i) for i in range(start, start + n)]


def test_values_follow_their_distributions() -> None:
    searcher = RandomSearcher(SPACE, random_seed=0, points_to_evaluate=[])
    configs = [c for c in suggestions(searcher, 2000) if c is not None]
    logs = [math.log10(c["lr"]) for c in configs]
    # Standard errors of means of 2000 uniform numbers; five of them are no accident.
    assert abs(np.mean(logs) + 2.0) < 5 * 4 / math.sqrt(12 * 2000)
    assert abs(np.mean([c["n"] for c in configs]) - 500.5) < 5 * 1000 / math.sqrt(12 * 2000)
    assert abs(np.corrcoef(logs, [c["n"] for c in configs])[0, 1]) < 0.12


def test_it_draws_what_sample_config_draws() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    searcher = RandomSearcher(SPACE, random_seed=3, points_to_evaluate=[])
    assert suggestions(searcher, 5) == [sample_config(SPACE, generator) for _ in range(5)]


def test_the_seed_of_the_scheduler_is_used_unless_it_has_one() -> None:
    def first(searcher: RandomSearcher) -> Any:
        searcher.configure(SearcherContext("loss", mode="max", random_seed=8))
        assert (searcher.metric, searcher.mode) == ("loss", "max")
        return searcher.get_config(0)

    own = first(RandomSearcher(SPACE, points_to_evaluate=[], random_seed=3))
    given = first(RandomSearcher(SPACE, points_to_evaluate=[]))
    assert own == RandomSearcher(SPACE, points_to_evaluate=[], random_seed=3).get_config(0)
    assert given == RandomSearcher(SPACE, points_to_evaluate=[], random_seed=8).get_config(0)
    assert own != given
    two = [RandomSearcher(SPACE, points_to_evaluate=[]).get_config(0) for _ in range(2)]
    assert two[0] != two[1]  # without any seed the system's entropy


def test_first_points_are_completed_and_come_once() -> None:
    searcher = RandomSearcher(SMALL, random_seed=0, points_to_evaluate=[{"a": "z"}, {"b": 2}, {"a": "z"}])
    found = suggestions(searcher, 13)
    assert found[:2] == [{"a": "z", "b": 2}, {"a": "x", "b": 2}]
    assert found[12] is None
    assert RandomSearcher(SMALL).get_config(0) == {"a": "x", "b": 2}


@pytest.mark.parametrize("seed", range(5))
def test_a_finite_space_is_used_up_exactly(seed: int) -> None:
    searcher = RandomSearcher(SMALL, random_seed=seed)
    found = suggestions(searcher, 12)
    assert sorted((c["a"], c["b"]) for c in found if c) == [(a, b) for a in "xyz" for b in (1, 2, 3, 4)]
    assert suggestions(searcher, 3, 12) == [None] * 3


def test_a_large_finite_space_with_rare_values_is_used_up() -> None:
    # The last values have a probability of about 1/1000 each: a hundred draws miss them.
    space = {"n": lograndint(1, 300)}
    found = suggestions(RandomSearcher(space, random_seed=0), 301)
    assert sorted(c["n"] for c in found if c) == list(range(1, 301))
    assert found[-1] is None


def test_exhaustion_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    searcher = RandomSearcher({"a": choice([1, 2])}, random_seed=0)
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        suggestions(searcher, 5)
    assert [r.getMessage() for r in caplog.records] == ["no configuration is left: 2 have been suggested or failed"]


def test_with_duplicates_only_failed_configurations_are_left_out() -> None:
    searcher = RandomSearcher({"a": choice(["x", "y"])}, random_seed=0, allow_duplicates=True)
    assert {c["a"] for c in suggestions(searcher, 40) if c} == {"x", "y"}
    searcher.evaluation_failed("3", {"a": "x"}, blacklist=False)
    assert {c["a"] for c in suggestions(searcher, 40) if c} == {"x", "y"}
    searcher.evaluation_failed(4, {"a": "x"})
    assert {c["a"] for c in suggestions(searcher, 40) if c} == {"y"}
    searcher.evaluation_failed(5, {"a": "y"})
    assert searcher.get_config(6) is None


def test_equal_means_equal_match_string() -> None:
    # Floats that agree to six decimals are the same configuration.
    space = {"x": uniform(1.0, 1.0 + 1e-9)}
    found = suggestions(RandomSearcher(space, random_seed=0), 2)
    assert found[0] is not None
    assert found[1] is None


def test_configurations_of_others_do_not_come_again() -> None:
    space = {"a": choice(["x", "y", "z"])}
    searcher = RandomSearcher(space, random_seed=1, points_to_evaluate=[{"a": "y"}])
    searcher.on_trial_result("9", {"a": "y"}, {"loss": 1.0}, False)
    searcher.on_trial_result(9, {"a": "y"}, {"loss": 0.5}, True)
    assert sorted(c["a"] for c in suggestions(searcher, 3) if c) == ["x", "z"]
    free = RandomSearcher(space, points_to_evaluate=[{"a": "y"}], allow_duplicates=True)
    free.on_trial_result(9, {"a": "y"}, {"loss": 1.0}, True)
    assert free.get_config(0) == {"a": "y"}


def test_a_failure_after_the_space_was_listed_counts() -> None:
    searcher = RandomSearcher(SMALL, random_seed=0)
    found = suggestions(searcher, 10)
    rest = [c for c in all_configs(SMALL) if c not in found]
    assert len(rest) == 2
    searcher.evaluation_failed(77, rest[0])
    assert suggestions(searcher, 2, 10) == [rest[1], None]


# ---- restricted lists ------------------------------------------------------------------------------------

CONFIGS = [{"lr": 0.1 * i, "n": i} for i in range(1, 6)]


def test_a_restricted_search_draws_from_its_list() -> None:
    searcher = RandomSearcher(SPACE, random_seed=0, restrict_configurations=[*CONFIGS, CONFIGS[0]])
    found = [c["n"] for c in suggestions(searcher, 7) if c]
    assert sorted(found) == [1, 2, 3, 4, 5]
    other = RandomSearcher(SPACE, random_seed=1, restrict_configurations=CONFIGS)
    assert [c["n"] for c in suggestions(other, 5) if c] != found
    repeated = RandomSearcher(SPACE, random_seed=0, restrict_configurations=CONFIGS, allow_duplicates=True)
    assert {c["n"] for c in suggestions(repeated, 100) if c} == {1, 2, 3, 4, 5}
    repeated.evaluation_failed(0, CONFIGS[0])
    assert {c["n"] for c in suggestions(repeated, 100) if c} == {2, 3, 4, 5}


def test_the_list_stays_as_it_is_whatever_happens_to_suggestions() -> None:
    searcher = RandomSearcher(SPACE, random_seed=0, restrict_configurations=CONFIGS[:1], allow_duplicates=True)
    for trial_id in range(3):
        config = searcher.get_config(trial_id)
        assert config == {"lr": pytest.approx(0.1), "n": 1}
        config.clear()


def test_first_points_outside_the_list_are_dropped_with_a_warning() -> None:
    points = [{"lr": 0.3, "n": 3}, {"lr": 0.5, "n": 99}]
    with pytest.warns(UserWarning, match="1 of 2 configurations are dropped"):
        searcher = RandomSearcher(SPACE, points_to_evaluate=points, restrict_configurations=CONFIGS)
    assert searcher.get_config(0) == {"lr": pytest.approx(0.3), "n": 3}
    assert sorted(c["n"] for c in suggestions(searcher, 9, 1) if c) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("configs", "error", "message"),
    [
        ([], ValueError, "restrict_configurations must not be empty"),
        ({"lr": 0.1}, TypeError, "must be a list of configurations"),
        (3, TypeError, "must be a list of configurations"),
        ([3], TypeError, r"restrict_configurations\[0\] must be a dict"),
        ([CONFIGS[0], {"lr": 0.1}], ConfigSpaceError, r"restrict_configurations\[1\] lacks n"),
        ([{"lr": 0.1, "m": 1}], ConfigSpaceError, "'m' is not in config_space"),
        ([{"lr": 2.0, "n": 1}], ConfigSpaceError, r"value 2\.0 of 'lr' cannot be used"),
    ],
)
def test_bad_lists(configs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RandomSearcher(SPACE, restrict_configurations=configs)


def test_bad_seeds_and_trial_ids() -> None:
    with pytest.raises(ValueError, match="random_seed must be a non-negative int, got -1"):
        RandomSearcher(SPACE, random_seed=-1)
    with pytest.raises(TypeError, match="random_seed must be a non-negative int, got '1'"):
        RandomSearcher(SPACE, random_seed="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trial_id must be an int or a decimal string, got 'one'"):
        RandomSearcher(SPACE).get_config("one")


# ---- state and logging -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"allow_duplicates": True}, {"restrict_configurations": [{"a": a, "b": b} for a in "xyz" for b in (1, 2, 4)]}],
)
@pytest.mark.parametrize("position", [0, 1, 5, 8])
def test_the_state_goes_on(options: dict[str, Any], position: int) -> None:
    searcher = RandomSearcher(SMALL, points_to_evaluate=[{"a": "z", "b": 1}, {"b": 4}], **options)
    suggestions(searcher, position)
    searcher.evaluation_failed(50, {"a": "y", "b": 2})
    state = json.loads(json.dumps(searcher.state_dict()))
    twin = RandomSearcher(SMALL, points_to_evaluate=[{"a": "z", "b": 1}, {"b": 4}], **options)
    if searcher._generator is None:  # not drawn yet, and no seed: both would take the system's entropy
        state["random_seed"] = searcher.random_seed = 4
    twin.load_state_dict(state)
    assert suggestions(searcher, 15, 20) == suggestions(twin, 15, 20)


def test_the_log_shows_suggestions_and_results(caplog: pytest.LogCaptureFixture) -> None:
    searcher = RandomSearcher(SMALL, metric="loss", debug_log=True)
    with caplog.at_level(logging.INFO, logger="sthyper"):
        config = searcher.get_config(0)
        assert config is not None
        searcher.on_trial_result(0, config, {"loss": 0.25}, False)
        searcher.on_trial_result(0, config, {"loss": 0.125}, True)
    messages = [r.getMessage() for r in caplog.records]
    assert messages == ["trial 0: suggested {'a': 'x', 'b': 2}", "trial 0: loss=0.125"]


# ---- listing finite spaces -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (choice(["b", "a"]), ["b", "a"]),
        (ordinal([3, 5, 9]), [3, 5, 9]),
        (logordinal([1.0, 10.0]), [1.0, 10.0]),
        (randint(-1, 2), [-1, 0, 1, 2]),
        (finrange(0.0, 1.0, 3), [0.0, 0.5, 1.0]),
        (logfinrange(1, 8, 4, cast_int=True), [1, 2, 4, 8]),
        (quniform(0.0, 0.3, 0.1), [0.0, 0.1, 0.2, 0.3]),
        (qrandint(1, 10, 3), [1, 3, 6, 9]),
        (uniform(2.0, 2.0), [2.0]),
    ],
)
def test_the_values_of_finite_domains(domain: Any, values: list[Any]) -> None:
    assert list(domain_values(domain)) == values
    assert len(values) == len(domain)
    assert all(domain.is_valid(value) for value in values)


def test_infinite_domains_have_no_list() -> None:
    with pytest.raises(ValueError, match="infinitely many values"):
        domain_values(uniform(0, 1))


def test_all_configurations_differ() -> None:
    configs = list(all_configs(SMALL | {"constant": 3}))
    assert len({config_to_match_string(c, SMALL) for c in configs}) == 12
    assert configs[1] == {"a": "x", "b": 2}
    assert list(all_configs({"constant": 3})) == [{}]


def test_a_space_of_constants_has_one_configuration() -> None:
    assert suggestions(RandomSearcher({"epochs": 3}), 2) == [{}, None]
