"""Domains, samplers and functions of configuration spaces."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.config_space import (
    Categorical,
    ConfigSpaceError,
    Domain,
    FiniteRange,
    Float,
    Grid,
    Integer,
    LogUniform,
    Normal,
    Ordinal,
    OrdinalNearestNeighbor,
    Quantized,
    Uniform,
    add_to_argparse,
    cast_config_values,
    check_config_space,
    choice,
    config_space_from_json_dict,
    config_space_size,
    config_space_to_json_dict,
    config_to_match_string,
    convert_choice_domain,
    finrange,
    fit_to_regular_grid,
    from_dict,
    impute_points_to_evaluate,
    is_log_space,
    is_reverse_log_space,
    is_uniform_space,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    non_constant_hyperparameter_keys,
    normal,
    ordinal,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    restrict_domain,
    reverseloguniform,
    sample_config,
    streamline_config_space,
    to_dict,
    uniform,
)

DOMAINS = [
    uniform(-1, 2),
    uniform(0.5, 0.5),
    loguniform(1e-5, 0.1),
    reverseloguniform(0.9, 0.9999),
    normal(0, 1),
    normal(2, 1, lower=0),
    randint(-3, 5),
    randint(4, 4),
    lograndint(1, 300),
    choice(["a", "b", "c"]),
    choice(["a", "b"]),
    choice(["only"]),
    choice([True, False]),
    choice([16, 8, 64]),
    choice([0.1, 0.01]),
    ordinal(["small", "medium", "large"]),
    ordinal([1, 2, 8]),
    ordinal([5.0]),
    ordinal([1, 2, 8], kind="equal"),
    logordinal([0.001, 0.01, 1.0]),
    finrange(0.1, 1.0, 10),
    finrange(1, 9, 5, cast_int=True),
    logfinrange(8, 256, 6),
    logfinrange(8, 256, 6, cast_int=True),
    finrange(3.0, 3.0, 1),
    quniform(0, 1, 0.1),
    qloguniform(0.1, 10, 0.1),
    qrandint(1, 10, 3),
    qlograndint(1, 100, 7),
    Float(0.5, 0.75, sampler=Quantized(Normal(0.6, 0.1), 0.05)),
]

domains = st.sampled_from(DOMAINS)


def _frequencies(domain: Domain, size: int = 20_000) -> dict:
    counts = Counter(domain.sample(size=size, random_state=0))
    return {k: v / size for k, v in sorted(counts.items())}


# ---- all domains -------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_samples_are_plain_members(domain: Domain) -> None:
    values = domain.sample(size=200, random_state=np.random.default_rng(1))
    assert len(values) == 200
    for value in values:
        assert type(value) is domain.value_type
        assert domain.is_valid(value)
        assert domain.cast(value) == value
        assert domain.coerce(value) == domain.cast(value)
    if len(domain) > 0:
        assert len({domain.match_string(v) for v in values}) <= len(domain)


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_round_trips(domain: Domain) -> None:
    text = json.dumps(to_dict(domain))
    for other in (from_dict(json.loads(text)), pickle.loads(pickle.dumps(domain)), copy.deepcopy(domain)):
        assert other == domain
        assert hash(other) == hash(domain)
        assert repr(other) == repr(domain)
        assert other.get_sampler() == domain.get_sampler()
        assert other.sample(size=5, random_state=3) == domain.sample(size=5, random_state=3)


@pytest.mark.parametrize("domain", [d for d in DOMAINS if not isinstance(d.get_sampler(), Quantized)], ids=repr)
def test_repr_is_the_constructor(domain: Domain) -> None:
    assert eval(repr(domain)) == domain


def test_repr_examples() -> None:
    assert repr(loguniform(1e-5, 0.1)) == "loguniform(1e-05, 0.1)"
    assert repr(quniform(0, 1, 0.25)) == "quniform(0.0, 1.0, 0.25)"
    assert repr(qlograndint(1, 8, 2)) == "qlograndint(1, 8, 2)"


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_domains_are_immutable_and_true(domain: Domain) -> None:
    name = next(iter(domain.to_kwargs()))
    with pytest.raises(AttributeError):
        setattr(domain, name, getattr(domain, name))
    assert domain  # although infinite ones have length 0


def test_all_domains_differ() -> None:
    for i, first in enumerate(DOMAINS):
        assert [j for j, second in enumerate(DOMAINS) if first == second] == [i]
    assert len(set(DOMAINS)) == len(DOMAINS)


@given(domains, st.floats(0, 1))
@settings(max_examples=200, deadline=None, database=None)
def test_quantiles_are_members_and_match_after_text(domain: Domain, u: float) -> None:
    value = domain.quantile(u)
    assert domain.is_valid(value)
    assert domain.match_string(domain.cast(value)) == domain.match_string(value)
    # Values travel as command line arguments.
    assert domain.match_string(domain.cast(str(value))) == domain.match_string(value)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.floats(0, 1))
@settings(max_examples=100, deadline=None, database=None)
def test_floats_stay_between_their_bounds(a: float, b: float, u: float) -> None:
    lower, upper = sorted((a, b))
    assert lower <= uniform(lower, upper).quantile(u) <= upper
    if lower > 0:
        assert lower <= loguniform(lower, upper).quantile(u) <= upper


# ---- sampling ----------------------------------------------------------------------------------------


def test_lograndint_gives_the_first_and_last_value_their_full_weight() -> None:
    frequencies = _frequencies(lograndint(1, 3))
    assert frequencies == pytest.approx({1: 0.56, 2: 0.26, 3: 0.17}, abs=0.012)


def test_nearest_neighbour_ordinal_probabilities() -> None:
    domain = ordinal([1, 2, 8])
    assert (domain.lower_int, domain.upper_int) == (-0.75, 9.75)
    assert _frequencies(domain) == pytest.approx({1: 0.214, 2: 0.333, 8: 0.452}, abs=0.012)
    assert _frequencies(logordinal([1, 10, 100])) == pytest.approx({1: 1 / 3, 10: 1 / 3, 100: 1 / 3}, abs=0.012)


def test_uniform_kinds() -> None:
    assert _frequencies(randint(1, 4)) == pytest.approx(dict.fromkeys(range(1, 5), 0.25), abs=0.012)
    assert _frequencies(choice(["a", "b"])) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.012)
    equal = ordinal([1, 2, 8], kind="equal")
    assert _frequencies(equal) == pytest.approx(dict.fromkeys([1, 2, 8], 1 / 3), abs=0.012)
    grid = logfinrange(8, 256, 6, cast_int=True)
    assert _frequencies(grid) == pytest.approx(dict.fromkeys([8, 16, 32, 64, 128, 256], 1 / 6), abs=0.012)


@pytest.mark.parametrize(
    ("domain", "scale"),
    [
        (uniform(-1, 3), lambda x: x),
        (loguniform(1e-6, 1.0), np.log),
        (reverseloguniform(0.9, 0.9999), lambda x: -np.log1p(-x)),
    ],
)
def test_floats_are_uniform_on_their_scale(domain: Float, scale) -> None:
    x = scale(np.array(domain.sample(size=20_000, random_state=2)))
    low, high = scale(np.array([domain.lower, domain.upper]))
    counts, _ = np.histogram(x, bins=10, range=(low, high))
    assert counts / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.012)


def test_normal_has_its_moments_and_is_truncated() -> None:
    x = np.array(normal(3.0, 0.5).sample(size=20_000, random_state=0))
    assert x.mean() == pytest.approx(3.0, abs=0.02)
    assert x.std() == pytest.approx(0.5, abs=0.02)
    half = np.array(normal(0.0, 1.0, lower=0.0).sample(size=20_000, random_state=0))
    assert half.min() >= 0
    assert half.mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)


def test_quantised_values_are_cast_and_stay_inside_the_bounds() -> None:
    # Not 0 for the integers, and of the domain's type also in a list.
    values = set(qrandint(1, 10, 3).sample(size=500, random_state=0))
    assert values == {1, 3, 6, 9}
    assert len(qrandint(1, 10, 3)) == 4
    assert all(type(v) is int for v in values)
    assert set(quniform(0, 0.3, 0.1).sample(size=200, random_state=0)) == {0.0, 0.1, 0.2, 0.3}
    assert set(qrandint(5, 25, 10).sample(size=200, random_state=0)) == {5, 10, 20}
    assert len(qrandint(5, 25, 10)) == 3
    assert set(qrandint(4, 6).sample(size=200, random_state=0)) == {4, 5, 6}


def test_random_state_kinds() -> None:
    domain = loguniform(1e-3, 1)
    assert domain.sample(random_state=7) == domain.sample(random_state=np.random.default_rng(7))
    legacy = domain.sample(size=3, random_state=np.random.RandomState(7))
    assert legacy == domain.sample(size=3, random_state=np.random.RandomState(7))
    with pytest.raises(TypeError, match="random_state"):
        domain.sample(random_state="seed")
    with pytest.raises(TypeError, match="random_state"):
        domain.sample(random_state=np.random)
    with pytest.raises(ValueError, match="size"):
        domain.sample(size=-1)
    assert domain.sample(size=0) == []


def test_unseeded_draws_leave_numpys_global_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (uniform(0, 1).sample(size=4) for _ in range(2))
    assert first != second
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_sample_config_draws_once_for_each_domain_in_order() -> None:
    space = {"b": uniform(0, 1), "n": 3, "a": choice(["x", "y", "z"]), "c": logordinal([1, 10]), "d": normal(0, 1)}
    generator = np.random.default_rng(5)
    config = sample_config(space, generator)
    assert list(config) == ["b", "a", "c", "d"]
    us = np.random.default_rng(5).random(5).tolist()
    assert config == {k: space[k].quantile(u) for k, u in zip(["b", "a", "c", "d"], us, strict=False)}
    assert generator.random() == us[4]
    assert sample_config(space, 5) == config


# ---- single domains ----------------------------------------------------------------------------------


def test_finite_ranges() -> None:
    assert finrange(0.5, 1.5, 3).values == (0.5, 1.0, 1.5)
    assert finrange(0.1, 1.0, 10).values == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert logfinrange(8, 256, 6, cast_int=True).values == (8, 16, 32, 64, 128, 256)
    assert logfinrange(8, 256, 6).values == (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    grid = logfinrange(8, 256, 6, cast_int=True)
    assert grid.value_type is int
    assert [grid.cast(v) for v in (1, 10, "12", 23.0, 1000)] == [8, 8, 16, 32, 256]
    assert grid.match_string(32) == "2"
    assert finrange(1, 10, 10) != finrange(1, 10, 4)  # the size counts
    assert finrange(2.0, 5.0, 1).sample() == 2.0


def test_categorical_casts() -> None:
    floats = choice([0.1, 0.01])
    assert floats.cast("0.1") == 0.1
    assert floats.cast(0.1 + 1e-5) == 0.1
    with pytest.raises(ConfigSpaceError, match=r"0\.102 is not in choice"):
        floats.cast(0.102)
    assert choice([1, 2]).cast("2") == 2
    assert choice([1, 2]).cast(2.0) == 2
    with pytest.raises(ConfigSpaceError):
        choice([1, 2]).cast(1.5)
    bools = choice([True, False])
    assert bools.cast("False") is False
    assert bools.cast(np.bool_(True)) is True
    assert choice(["1", "2"]).cast(1) == "1"
    assert choice(np.array([3, 1])).categories == (3, 1)
    assert choice(["a", "b"])[1] == "b"
    assert choice(["x", "y"]).match_string("y") == "1"
    assert not choice([1, 2]).is_valid(True)


def test_numbers_are_cast_to_plain_python() -> None:
    assert type(uniform(0, 1).cast(np.float32(0.5))) is float
    assert type(randint(0, 9).cast(np.int64(3))) is int
    assert randint(0, 9).cast("3.0") == 3
    assert type(Float(np.float64(0), np.int64(1)).lower) is float
    for bad in ("x", None, math.nan, True, [1]):
        with pytest.raises(ConfigSpaceError):
            uniform(0, 1).cast(bad)


def test_ordinal_kinds(caplog: pytest.LogCaptureFixture) -> None:
    assert type(ordinal([1, 2, 8])) is OrdinalNearestNeighbor
    assert type(ordinal(["a", "b"])) is Ordinal
    assert type(ordinal([1])) is Ordinal
    with caplog.at_level(logging.INFO, logger="sthyper"):
        assert type(ordinal([3, 1, 2])) is Ordinal
    assert "not increasing" in caplog.text
    assert logordinal([1, 10]) == ordinal([1, 10], kind="nn-log")
    with pytest.raises(ConfigSpaceError, match=r"'nn-lgo'.*did you mean 'nn-log'"):
        ordinal([1, 2], kind="nn-lgo")
    with pytest.raises(ConfigSpaceError, match="increasing"):
        ordinal([2, 1], kind="nn")
    with pytest.raises(ConfigSpaceError, match="positive"):
        logordinal([0, 1])


def test_single_category_can_be_sampled() -> None:
    single = OrdinalNearestNeighbor([7])
    assert single.sample(size=3, random_state=0) == [7, 7, 7]
    assert (single.lower_int, single.upper_int) == (None, None)
    assert OrdinalNearestNeighbor([7], log_scale=True).midpoint() == 7


def test_samplers_are_set_on_copies() -> None:
    plain = Float(1, 2)
    assert plain == uniform(1, 2)
    logarithmic = plain.set_sampler(LogUniform())
    assert logarithmic == loguniform(1, 2)
    assert plain.sampler is None
    with pytest.raises(ValueError, match="allow_override"):
        logarithmic.set_sampler(Uniform())
    assert logarithmic.set_sampler(Uniform(), allow_override=True) == plain
    for fixed in (finrange(0, 1, 3), ordinal([1, 2])):
        assert fixed.get_sampler() is None
        with pytest.raises(TypeError, match="fixed way"):
            fixed.set_sampler(Uniform())


def test_grid_cannot_be_sampled() -> None:
    domain = Categorical(["a", "b"]).grid()
    assert domain.is_grid()
    assert not domain.is_function()
    assert isinstance(domain.get_sampler(), Grid)
    with pytest.raises(RuntimeError, match="grid search"):
        domain.sample()


def test_predicates() -> None:
    logs = [loguniform(1, 2), lograndint(1, 9), logfinrange(1, 8, 4), logordinal([1, 2]), qloguniform(1, 2, 0.5)]
    for domain in [*logs, qlograndint(1, 8, 2)]:
        assert is_log_space(domain)
        assert not is_uniform_space(domain)
        assert not is_reverse_log_space(domain)
    assert is_reverse_log_space(reverseloguniform(0, 0.9))
    for domain in (uniform(0, 1), randint(0, 1), finrange(0, 1, 3), quniform(0, 1, 0.5), ordinal([1, 2])):
        assert is_uniform_space(domain)
        assert not is_log_space(domain)
    with pytest.raises(TypeError, match="Domain"):
        is_log_space(3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: uniform(2, 1), "lower must not be above upper"),
        (lambda: randint(2, 1), "lower must not be above upper"),
        (lambda: finrange(2, 1, 3), "lower must not be above upper"),
        (lambda: uniform(0, math.inf), "finite"),
        (lambda: uniform(math.nan, 1), "finite"),
        (lambda: uniform(-1.7e308, 1.7e308), "too wide"),
        (lambda: loguniform(0, 1), "positive"),
        (lambda: lograndint(0, 5), "positive"),
        (lambda: logfinrange(0, 5, 3), "positive"),
        (lambda: Float(-1, 1, sampler=LogUniform()), "positive"),
        (lambda: reverseloguniform(0.5, 1.0), "upper < 1"),
        (lambda: reverseloguniform(-0.1, 0.5), "0 <= lower"),
        (lambda: randint(0.5, 3), "integer"),
        (lambda: randint(0, 2**60), "1099511627776"),
        (lambda: choice([]), "empty"),
        (lambda: choice(["a", "b", "a"]), "'a' is there twice"),
        (lambda: choice([1, "a"]), "same type.*int, str"),
        (lambda: choice([0, 0.5]), r"such as 1\.0"),
        (lambda: choice([1, True]), "same type"),
        (lambda: choice([None, None]), "NoneType"),
        (lambda: choice([1.0, math.nan]), "finite"),
        (lambda: finrange(0, 1, 0), "size must be at least 1"),
        (lambda: finrange(1, 2, 5, cast_int=True), "do not differ after rounding"),
        (lambda: finrange(1, 1, 2), "do not differ"),
        (lambda: quniform(0, 1, 0.3), "multiple of q"),
        (lambda: quniform(0, 1, -0.1), "q must be positive"),
        (lambda: qrandint(0, 10, 2.5), "q must be an integer"),
        (lambda: quniform(0, 1, 0.1).quantized(0.2), "unquantised"),
        (lambda: normal(0, 0), "sd must be positive"),
        (lambda: normal(0, 1, lower=50, upper=60), "next to no probability"),
        (lambda: Integer(0, 3, sampler=Normal(1, 1)), "float domains"),
        (lambda: from_dict({"domain_cls": "Flaot", "domain_kwargs": {}}), "did you mean 'Float'"),
        (lambda: from_dict({"domain_cls": "Float", "domain_kwargs": {"low": 1, "upper": 2}}), "low"),
        (
            lambda: from_dict({"domain_cls": "Float", "domain_kwargs": {"lower": 1, "upper": 2}, "sampler_cls": "X"}),
            "X",
        ),
    ],
)
def test_contradictory_domains(make, text: str) -> None:
    with pytest.raises(ConfigSpaceError, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: uniform("0", 1), "lower must be a number"),
        (lambda: uniform(0, None), "upper must be a number"),
        (lambda: randint(False, True), "lower must be a number"),
        (lambda: choice("abc"), "list or tuple"),
        (lambda: choice({"a", "b"}), "list or tuple"),
        (lambda: finrange(0, 1, 2.5), "size must be an int"),
        (lambda: uniform(0, 1).set_sampler("log"), "Sampler"),
    ],
)
def test_wrong_types(make, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


# ---- functions of spaces -----------------------------------------------------------------------------

SPACE = {
    "lr": loguniform(1e-4, 1e-2),
    "epochs": 27,
    "width": randint(8, 64),
    "act": choice(["relu", "tanh"]),
    "layers": [32, {"a": None}],
    "batch": logfinrange(16, 128, 4, cast_int=True),
}


def test_json_round_trip_of_a_space_with_constants() -> None:
    text = json.dumps(config_space_to_json_dict(SPACE))
    assert config_space_from_json_dict(json.loads(text)) == SPACE
    assert list(json.loads(text)) == list(SPACE)


def test_reads_the_json_form_of_syne_tune() -> None:
    written = {
        "domain_cls": "Float",
        "domain_kwargs": {"lower": 1e-06, "upper": 1},
        "sampler_cls": "_LogUniform",
        "sampler_kwargs": {"base": 2.718281828459045},
    }
    assert from_dict(written) == loguniform(1e-6, 1)


def test_keys_size_and_match_string() -> None:
    assert non_constant_hyperparameter_keys(SPACE) == ["lr", "width", "act", "batch"]
    assert config_space_size(SPACE) is None
    finite = {k: v for k, v in SPACE.items() if k != "lr"}
    assert config_space_size(finite) == 57 * 2 * 4
    assert config_space_size(finite, upper_limit=400) is None
    assert config_space_size({"x": loguniform(1, 1), "n": 3}) == 1
    assert config_space_size({"x": quniform(0, 1, 0.1)}) == 11
    with pytest.raises(ValueError, match="upper_limit"):
        config_space_size(finite, upper_limit=1)
    config = {"lr": 0.001 + 1e-12, "width": 8, "act": "tanh", "batch": 32, "epochs": 27}
    assert config_to_match_string(config, SPACE) == "lr:1.000000e-03,width:8,act:1,batch:1"
    assert config_to_match_string(config, SPACE, keys=["act", "lr"]) == "act:1,lr:1.000000e-03"
    assert config_to_match_string({"x": -0.0}, {"x": uniform(0, 1)}) == "x:0.000000e+00"
    with pytest.raises(ConfigSpaceError, match="lacks 'batch'"):
        config_to_match_string({k: v for k, v in config.items() if k != "batch"}, SPACE)
    with pytest.raises(ConfigSpaceError, match="did you mean 'width'"):
        config_to_match_string(config, SPACE, keys=["widht"])


def test_cast_config_values() -> None:
    config = {"lr": "0.001", "width": 9.0, "act": "relu", "epochs": 3, "other": 1}
    assert cast_config_values(config, SPACE) == {"lr": 0.001, "width": 9, "act": "relu", "epochs": 3}
    with pytest.raises(ConfigSpaceError, match="value 'elu' of 'act'"):
        cast_config_values({"act": "elu"}, SPACE)


def test_check_config_space() -> None:
    check_config_space(SPACE)
    check_config_space({"seed": None, "x": uniform(0, 1)})
    for bad, text in (
        ({}, "empty"),
        ({"x": (1, 2)}, "tuple"),
        ({"x": np.float64(1)}, "numpy.float64"),
        ({"x": [1, math.inf]}, r"'x'\[1\].*finite"),
        ({"x": {"domain_cls": 1}}, "domain_cls"),
        ({"x": lambda: 1}, "function"),
        ({"st_checkpoint_dir": "/tmp"}, "st_checkpoint_dir"),
        ({"": 1}, "''"),
        ({"x": {1: 2}}, "strings"),
    ):
        with pytest.raises(ConfigSpaceError, match=text):
            check_config_space(bad)
    with pytest.raises(TypeError, match="dict"):
        check_config_space([("x", uniform(0, 1))])
    with pytest.raises(TypeError, match="names must be strings"):
        check_config_space({1: uniform(0, 1)})


def test_restrict_domain() -> None:
    restricted = restrict_domain(logfinrange(16, 512, 6, cast_int=True), 32, 128)
    assert restricted.values == (32, 64, 128)
    assert isinstance(restricted, FiniteRange)
    assert restrict_domain(loguniform(1e-3, 1), 0.01, 0.1) == loguniform(0.01, 0.1)
    assert restrict_domain(randint(0, 10), 2.0, 5.0) == randint(2, 5)
    assert restrict_domain(quniform(0, 1, 0.1), 0.21, 0.5) == quniform(0.2, 0.5, 0.1)
    streamlined = convert_choice_domain(choice([1, 2, 5, 10, 20, 50]))
    assert restrict_domain(streamlined, 2, 22).values == (2, 5, 10, 22)
    with pytest.raises(ConfigSpaceError, match="no value"):
        restrict_domain(finrange(0, 1, 3), 0.6, 0.9)
    with pytest.raises(ConfigSpaceError, match="positive"):
        restrict_domain(loguniform(1, 2), -1, 2)
    with pytest.raises(TypeError, match="FiniteRange"):
        restrict_domain(choice([1, 2]), 1, 1)


def test_add_to_argparse() -> None:
    space = {**SPACE, "flag": choice([True, False]), "const": False, "seed": None}
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_to_argparse(parser, space)
    config = {"lr": 0.001, "epochs": 27, "width": 9, "act": "relu", "layers": SPACE["layers"], "batch": 16}
    config.update(flag=False, const=True, seed=5)
    argv = []
    for name, value in config.items():
        argv += [f"--{name}", json.dumps(value) if isinstance(value, list) else str(value)]
    assert vars(parser.parse_args(argv)) == config
    assert vars(parser.parse_args([*argv[:-1], "None"]))["seed"] is None
    assert vars(parser.parse_args(argv[:-2]))["seed"] is None
    with pytest.raises(argparse.ArgumentError, match="flag"):
        parser.parse_args([*argv, "--flag", "maybe"])
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parser.parse_args(argv[2:])


# ---- points to evaluate ------------------------------------------------------------------------------


def test_midpoints() -> None:
    space = {
        "u": uniform(0, 3),
        "log": loguniform(1e-4, 1e-2),
        "rev": reverseloguniform(0.5, 0.9),
        "int": randint(1, 4),
        "logint": lograndint(1, 100),
        "cat": choice(["z", "a"]),
        "equal": ordinal(["s", "m", "l", "xl"]),
        "nn": ordinal([1, 2, 8]),
        "nnlog": logordinal([1, 10, 1000]),
        "fin": finrange(0, 1, 5),
        "logfin": logfinrange(8, 128, 5, cast_int=True),
        "q": quniform(0, 1, 0.2),
        "qlog": qloguniform(0.1, 10, 0.1),
        "normal": normal(2, 1, lower=1.5),
        "const": 5,
    }
    (point,) = impute_points_to_evaluate(None, space)
    assert "const" not in point
    assert point.pop("log") == pytest.approx(1e-3)
    assert point.pop("rev") == pytest.approx(0.7)
    assert point == {
        "u": 1.5,
        "int": 2,
        "logint": 10,
        "cat": "z",
        "equal": "l",
        "nn": 2,
        "nnlog": 10,
        "fin": 0.5,
        "logfin": 32,
        "q": 0.4,
        "qlog": 1.0,
        "normal": 2.0,
    }


def test_points_are_completed_cast_and_freed_of_duplicates() -> None:
    assert impute_points_to_evaluate([], SPACE) == []
    points = impute_points_to_evaluate(
        [{"act": "tanh"}, {"lr": "0.01", "width": 9.0, "epochs": 27}, {}, {"lr": 0.001, "act": "tanh"}], SPACE
    )
    assert points == [
        {"lr": pytest.approx(0.001), "width": 36, "act": "tanh", "batch": 32},
        {"lr": 0.01, "width": 9, "act": "relu", "batch": 32},
        {"lr": pytest.approx(0.001), "width": 36, "act": "relu", "batch": 32},
    ]
    assert type(points[1]["width"]) is int
    # A point of the space before streamlining is still good afterwards.
    grid = streamline_config_space({"x": choice([1, 2, 5, 10, 20, 50])})
    assert impute_points_to_evaluate([{"x": 50}, {"x": 20}], grid) == [{"x": 48}, {"x": 22}]


@pytest.mark.parametrize(
    ("point", "text"),
    [
        ({"lr": 1.0}, r"points_to_evaluate\[1\].*1\.0 of 'lr'.*loguniform\(0\.0001, 0\.01\)"),
        ({"width": 65}, r"65 of 'width'.*randint\(8, 64\)"),
        ({"act": "elu"}, r"'elu' of 'act'.*choice"),
        ({"batch": 1000}, r"1000 of 'batch'.*logfinrange"),
        ({"batch": -1}, "-1 of 'batch'"),
        ({"lr": None}, "None of 'lr'"),
        ({"widht": 9}, "did you mean 'width'"),
        ({"epochs": 9}, "'epochs' is the constant 27"),
    ],
)
def test_bad_points(point: dict, text: str) -> None:
    with pytest.raises(ConfigSpaceError, match=text):
        impute_points_to_evaluate([{}, point], SPACE)


def test_points_must_be_a_list_of_mappings() -> None:
    with pytest.raises(TypeError, match="list"):
        impute_points_to_evaluate({"lr": 0.1}, SPACE)
    with pytest.raises(TypeError, match=r"points_to_evaluate\[0\]"):
        impute_points_to_evaluate([3], SPACE)
    nearest = {"x": ordinal([1, 2, 8])}
    assert impute_points_to_evaluate([{"x": 9}], nearest) == [{"x": 8}]
    with pytest.raises(ConfigSpaceError, match="outside"):
        impute_points_to_evaluate([{"x": 10}], nearest)


# ---- streamline --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (choice([8, 16, 32, 64]), logfinrange(8, 64, 4, cast_int=True)),
        (choice([0.0, 0.3, 0.6]), finrange(0, 0.6, 3)),
        (choice([5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1]), logordinal([5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1])),
        (choice([0.5, 2.0, 1.0, 4.0]), logfinrange(0.5, 4, 4)),
        (choice([0.001, 0.01, 0.1, 1.0]), logfinrange(0.001, 1, 4)),
        (choice([1, 2, 5, 10, 15, 30]), logordinal([1, 2, 5, 10, 15, 30])),
        (choice([2**i for i in range(2, 11)]), logfinrange(4, 1024, 9, cast_int=True)),
        (choice([-1, 0, 7]), ordinal([-1, 0, 7], kind="nn")),
        (randint(2, 500), lograndint(2, 500)),
        (randint(4, 1024), lograndint(4, 1024)),
        (randint(1, 100), randint(1, 100)),
        (randint(1, 101), lograndint(1, 101)),
        (randint(0, 1000), randint(0, 1000)),
        (uniform(0.1, 0.9), uniform(0.1, 0.9)),
        (uniform(0.01, 10), loguniform(0.01, 10)),
        (uniform(1e-6, 1), loguniform(1e-6, 1)),
        (loguniform(1e-6, 1), loguniform(1e-6, 1)),
        (choice([1, 100]), choice([1, 100])),
        (choice(["a", "b", "c"]), choice(["a", "b", "c"])),
        # The user chose these, and the type of the values stays.
        (ordinal([1, 2, 3], kind="equal"), ordinal([1, 2, 3], kind="equal")),
        (choice([1.0, 2.0, 3.0]), finrange(1.0, 3.0, 3)),
    ],
    ids=repr,
)
def test_streamline_vectors(before: Domain, after: Domain) -> None:
    result = streamline_config_space({"x": before, "const": 3})
    assert result == {"x": after, "const": 3}
    assert type(result["x"]) is type(after)
    assert result["x"].value_type is before.value_type


def test_streamline_approximates_and_excludes(caplog: pytest.LogCaptureFixture) -> None:
    space = {"x": choice([1, 2, 5, 10, 20, 50]), "y": uniform(0.001, 1)}
    with caplog.at_level(logging.INFO, logger="sthyper"):
        assert streamline_config_space(space, exclude_names=["x", "y"], verbose=True) == space
        assert not caplog.records
        grid = streamline_config_space(space, verbose=True)["x"]
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["x", "y"]
    assert grid.values == (1, 2, 5, 10, 22, 48)
    assert (grid.lower, grid.upper) == (pytest.approx(0.96349, abs=1e-5), pytest.approx(48.17462, abs=1e-5))
    with pytest.raises(ConfigSpaceError, match="exclude_names"):
        streamline_config_space(space, exclude_names=["z"])


def test_fit_to_regular_grid() -> None:
    assert fit_to_regular_grid([1, 3, 5]) == pytest.approx({"r2": 1.0, "a": 2.0, "b": 1.0})
    with pytest.raises(ValueError, match="increasing"):
        fit_to_regular_grid([1, 1])


# ---- imports -----------------------------------------------------------------------------------------


def test_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from sthyper.config_space import *; "
        "uniform(0, 1), impute_points_to_evaluate(None, {'x': logordinal([1, 2])}); "
        "print(sorted({'torch', 'numpy', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
