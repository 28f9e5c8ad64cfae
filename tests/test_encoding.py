"""Configurations as points of the unit cube."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.config_space import (
    ConfigSpaceError,
    Domain,
    Normal,
    Quantized,
    choice,
    finrange,
    logfinrange,
    logordinal,
    lograndint,
    loguniform,
    normal,
    ordinal,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    reverseloguniform,
    sample_config,
    uniform,
)
from sthyper.encoding import SpaceEncoder, make_hyperparameter_ranges

SPACE: dict[str, Any] = {
    "uniform": uniform(-1, 2),
    "point": uniform(0.5, 0.5),
    "log": loguniform(1e-6, 10.0),
    "reverse": reverseloguniform(0.9, 0.9999),
    "normal": normal(2, 1, lower=0),
    "int": randint(-3, 5),
    "one": randint(4, 4),
    "big": randint(0, 2**31 - 1),
    "logint": lograndint(1, 10_000),
    "epochs": 27,
    "choice": choice(["a", "b", "c", "d"]),
    "binary": choice([True, False]),
    "only": choice(["only"]),
    "floats": choice([0.1, 0.01, 0.5]),
    "equal": ordinal(["small", "medium", "large"]),
    "pair": ordinal([7, 2], kind="equal"),
    "nn": ordinal([1, 2, 8]),
    "nnlog": logordinal([0.001, 0.01, 1.0]),
    "single": ordinal([5.0]),
    "finite": finrange(0.1, 1.0, 10),
    "logfinite": logfinrange(8, 256, 6, cast_int=True),
    "fixed": finrange(3.0, 3.0, 1),
    "q": quniform(0, 1, 0.1),
    "qlog": qloguniform(0.1, 10, 0.1),
    "qint": qrandint(1, 10, 3),
    "qlogint": qlograndint(1, 100, 7),
}
ENCODER = SpaceEncoder(SPACE)
DOMAINS = [d for d in SPACE.values() if isinstance(d, Domain)]


def _ranges() -> st.SearchStrategy[Domain]:
    """Return numeric domains with bounds of any size."""
    pairs = st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)).map(sorted)
    positive = st.tuples(st.floats(1e-12, 1e9), st.floats(1e-12, 1e9)).map(sorted)
    ints = st.tuples(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40)).map(sorted)
    naturals = st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)).map(sorted)
    fractions = st.tuples(st.floats(0, 0.999999), st.floats(0, 0.999999)).map(sorted)
    increasing = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=6, unique=True).map(sorted)
    return st.one_of(
        pairs.map(lambda b: uniform(*b)),
        positive.map(lambda b: loguniform(*b)),
        fractions.map(lambda b: reverseloguniform(*b)),
        ints.map(lambda b: randint(*b)),
        naturals.map(lambda b: lograndint(*b)),
        increasing.map(lambda v: ordinal(v, kind="nn")),
        increasing.map(logordinal),
        increasing.map(choice),
    )


def _assert_same(domain: Domain, a: Any, b: Any) -> None:
    if domain.value_type is float and len(domain) == 0:
        scale = max(abs(domain.lower), abs(domain.upper))  # type: ignore[attr-defined]
        assert a == pytest.approx(b, rel=1e-11, abs=1e-12 * scale)
    else:
        assert a == b
        assert domain.match_string(a) == domain.match_string(b)


# ---- round trips -------------------------------------------------------------------------------------


@given(st.one_of(st.sampled_from(DOMAINS), _ranges()), st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None, database=None)
def test_decode_inverts_encode(domain: Domain, us: list[float]) -> None:
    encoder = SpaceEncoder({"x": domain})
    values = [domain.quantile(u) for u in us]
    points = encoder.encode([{"x": v} for v in values])
    assert points.dtype == torch.float64
    assert points.shape == (len(us), encoder.ndarray_size)
    assert ((points >= 0) & (points <= 1)).all()
    for value, config in zip(values, encoder.decode(points), strict=True):
        assert type(config["x"]) is domain.value_type
        _assert_same(domain, config["x"], value)


@given(st.one_of(st.sampled_from(DOMAINS), _ranges()), st.data())
@settings(max_examples=300, deadline=None, database=None)
def test_every_point_decodes_to_a_member_that_encodes_back(domain: Domain, data: st.DataObject) -> None:
    encoder = SpaceEncoder({"x": domain})
    point = data.draw(st.lists(st.floats(0, 1), min_size=encoder.ndarray_size, max_size=encoder.ndarray_size))
    config = encoder.from_ndarray(point)
    assert domain.is_valid(config["x"])
    _assert_same(domain, encoder.from_ndarray(encoder.to_ndarray(config))["x"], config["x"])


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, database=None)
def test_batches_of_whole_configurations(seed: int) -> None:
    configs = ENCODER.random_configs(np.random.default_rng(seed), 20)
    decoded = ENCODER.decode(ENCODER.encode(configs))
    keys = [k for k in SPACE if k != "epochs"]
    for before, after in zip(configs, decoded, strict=True):
        assert list(before) == list(after) == keys
        assert ENCODER.config_to_match_string(before) == ENCODER.config_to_match_string(after)
        assert [type(v) for v in before.values()] == [type(v) for v in after.values()]


def test_ends_are_exact() -> None:
    encoder = SpaceEncoder({"x": loguniform(1e-6, 0.3), "y": reverseloguniform(0.1, 0.999), "z": uniform(0.1, 0.7)})
    assert encoder.decode([[0, 0, 0], [1, 1, 1], [-3, 2, 0.5]]) == [
        {"x": 1e-6, "y": 0.1, "z": 0.1},
        {"x": 0.3, "y": 0.999, "z": 0.7},
        {"x": 1e-6, "y": 0.999, "z": pytest.approx(0.4)},
    ]


def test_decoding_uniform_points_is_sampling() -> None:
    rng = np.random.default_rng(0)
    u = rng.random((200, 1))
    for domain in DOMAINS:
        sampler = domain.get_sampler()
        inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
        encoder = SpaceEncoder({"x": domain})
        if encoder.ndarray_size > 1 or isinstance(inner, Normal):
            continue
        decoded = [c["x"] for c in encoder.decode(u)]
        drawn = [domain.quantile(v) for v in u[:, 0].tolist()]
        assert decoded == pytest.approx(drawn, rel=1e-12) if domain.value_type is not str else decoded == drawn


# ---- coordinates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "value", "code"),
    [
        (uniform(-1, 3), 0.0, [0.25]),
        (loguniform(1e-4, 1.0), 1e-3, [0.25]),
        (reverseloguniform(0.9, 0.999), 0.99, [0.5]),
        (randint(1, 4), 1, [0.125]),
        (lograndint(1, 9), 3, [np.log(3 / 0.5) / np.log(9.5 / 0.5)]),
        (choice(["a", "b"]), "a", [0.25]),
        (choice(["a", "b"]), "b", [0.75]),
        (choice(["a"]), "a", [1.0]),
        (choice(["a", "b", "c"]), "b", [0.0, 1.0, 0.0]),
        (ordinal([3, 1, 2, 5]), 1, [0.375]),
        (ordinal([1, 2, 8]), 8, [(8 + 0.75) / 10.5]),
        (logordinal([1, 10, 100]), 10, [0.5]),
        (finrange(0, 1, 5), 0.25, [0.3]),
        (logfinrange(8, 256, 6, cast_int=True), 8, [1 / 12]),
        (uniform(2, 2), 2.0, [0.0]),
        (randint(2, 2), 2, [0.0]),
        (ordinal([5]), 5, [0.0]),
        # The base scale, not the linear one.
        (qloguniform(0.1, 10, 0.1), 1.0, [0.5]),
    ],
    ids=repr,
)
def test_coordinates(domain: Domain, value: Any, code: list[float]) -> None:
    assert SpaceEncoder({"x": domain}).to_ndarray({"x": value}).tolist() == pytest.approx(code, abs=1e-7)


def test_one_hot_is_decoded_by_the_largest() -> None:
    encoder = SpaceEncoder({"x": choice(["a", "b", "c"])})
    assert [c["x"] for c in encoder.decode(torch.tensor([[0.1, 0.3, 0.2], [0.9, 1.0, 0.0]]))] == ["b", "b"]


def test_columns_are_ordered_by_name() -> None:
    space = {"b": uniform(0, 1), "epoch": randint(1, 9), "c": choice(["x", "y", "z"]), "a": uniform(0, 1), "n": 1}
    encoder = make_hyperparameter_ranges(space)
    assert encoder.internal_keys == ["a", "b", "c", "epoch"]
    assert encoder.encoded_ranges == {"a": (0, 1), "b": (1, 2), "c": (2, 5), "epoch": (5, 6)}
    assert encoder.slices["c"] == slice(2, 5)
    assert (len(encoder), encoder.ndarray_size) == (4, 6)
    encoder = make_hyperparameter_ranges(space, name_last_pos="a", prefix_keys=["epoch", "b"])
    assert encoder.internal_keys == ["epoch", "b", "c", "a"]
    config = {"a": 0.5, "b": 0.25, "c": "x", "epoch": 9, "n": 1}
    assert encoder.config_to_tuple(config) == (9, 0.25, "x", 0.5)
    assert encoder.config_to_tuple(config, skip_last=True) == (9, 0.25, "x")
    assert encoder.tuple_to_config((9, 0.25, "x"), skip_last=True) == {"epoch": 9, "b": 0.25, "c": "x"}
    with pytest.raises(ValueError, match="config_tpl"):
        encoder.tuple_to_config((9,))
    assert encoder.config_to_match_string(config, skip_last=True) == "epoch:9,b:2.500000e-01,c:0"
    assert list(encoder.from_ndarray(encoder.to_ndarray(config))) == ["b", "epoch", "c", "a"]


def test_bounds() -> None:
    bounds = ENCODER.bounds
    assert bounds.shape == (2, ENCODER.ndarray_size)
    assert bounds.dtype == torch.float64
    assert (bounds[0] <= bounds[1]).all()
    assert ENCODER.get_ndarray_bounds() == list(map(tuple, bounds.T.tolist()))
    for name in ("point", "one", "single", "fixed"):
        assert bounds[:, ENCODER.slices[name]].flatten().tolist() == [0.0, 0.0]
    assert bounds[:, ENCODER.slices["only"]].flatten().tolist() == [1.0, 1.0]
    points = ENCODER.encode(ENCODER.random_configs(0, 100))
    assert ((points >= bounds[0]) & (points <= bounds[1])).all()


# ---- the pinned resource -----------------------------------------------------------------------------


def test_pinned_resource() -> None:
    space = {"lr": loguniform(1e-4, 1), "epoch": randint(1, 27), "act": choice(["a", "b", "c"])}
    encoder = make_hyperparameter_ranges(space, name_last_pos="epoch", value_for_last_pos=9)
    assert encoder.is_attribute_fixed()
    assert encoder.internal_keys[-1] == "epoch"
    code = (9 - 0.5) / 27
    assert encoder.get_ndarray_bounds()[-1] == pytest.approx((code, code))
    configs = encoder.random_configs(3, 5)
    assert {c["epoch"] for c in configs} == {9}
    assert encoder.random_config(3) == configs[0]
    # The searchers' random draws do not depend on the resource.
    bare = {k: v for k, v in space.items() if k != "epoch"}
    assert [{k: c[k] for k in bare} for c in configs] == SpaceEncoder(bare).random_configs(3, 5)
    others = [{**configs[0], "epoch": 3}, configs[1]]
    assert encoder.filter_for_last_pos_value(others) == [configs[1]]
    # Configurations without the resource are encoded with the pinned one, others with their own.
    points = encoder.encode([{k: configs[0][k] for k in bare}, others[0]])
    assert points[:, -1].tolist() == pytest.approx([code, 2.5 / 27])
    assert encoder.decode(points)[1]["epoch"] == 3
    with pytest.raises(ConfigSpaceError, match="value_for_last_pos"):
        make_hyperparameter_ranges(space, name_last_pos="epoch", value_for_last_pos=28)
    with pytest.raises(ConfigSpaceError, match="name_last_pos"):
        make_hyperparameter_ranges(space, value_for_last_pos=3)


# ---- active sub-ranges -------------------------------------------------------------------------------

ACTIVE = {
    "uniform": uniform(0, 1),
    "log": loguniform(1e-3, 1.0),
    "reverse": reverseloguniform(0.95, 0.99),
    "int": randint(0, 3),
    "logint": lograndint(10, 100),
    "choice": choice(["d", "b"]),
    "binary": choice([False]),
    "equal": ordinal(["medium", "large"], kind="equal"),
    "nn": ordinal([1, 2]),
    "nnlog": logordinal([0.01, 1.0]),
    "finite": finrange(0.2, 0.5, 4),
    "logfinite": logfinrange(64, 64, 1, cast_int=True),
    "qint": qrandint(3, 9, 3),
    "epochs": 27,
}


def test_active_ranges_restrict_draws_and_bounds_but_not_coordinates() -> None:
    encoder = SpaceEncoder(SPACE, active_config_space=ACTIVE)
    configs = encoder.random_configs(np.random.default_rng(0), 300)
    for name, domain in ACTIVE.items():
        if isinstance(domain, Domain):
            assert all(domain.is_valid(c[name]) for c in configs)
    points = encoder.encode(configs)
    assert torch.equal(points, ENCODER.encode(configs))
    bounds = encoder.bounds
    assert ((points >= bounds[0] - 1e-12) & (points <= bounds[1] + 1e-12)).all()
    # Every point between the bounds is an active configuration, the corners included.
    u = torch.rand(300, encoder.ndarray_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.cat([u, torch.zeros_like(u[:1]), torch.ones_like(u[:1])])
    for config in encoder.decode(bounds[0] + u * (bounds[1] - bounds[0])):
        for name, domain in ACTIVE.items():
            if isinstance(domain, Domain) and name != "choice":
                assert domain.coerce(config[name]) == pytest.approx(config[name])
    one_hot = bounds[:, encoder.slices["choice"]].tolist()
    assert one_hot == [[0, 0, 0, 0], [0, 1, 0, 1]]
    fixed = SpaceEncoder(SPACE, active_config_space={"choice": choice(["c"]), "int": randint(2, 2)})
    assert fixed.bounds[:, fixed.slices["choice"]].tolist() == [[0, 0, 1, 0]] * 2
    assert fixed.bounds[:, fixed.slices["int"]].flatten().tolist() == pytest.approx([5.5 / 9] * 2)
    assert encoder.config_space_for_sampling["int"] == randint(0, 3)
    # Configurations from outside the active part can be encoded still.
    assert encoder.decode(ENCODER.encode(ENCODER.random_configs(1, 5)))[0]["int"] in range(-3, 6)


@pytest.mark.parametrize(
    "active",
    [
        {"uniform": uniform(0, 3)},
        {"uniform": randint(0, 1)},
        {"uniform": loguniform(0.5, 1)},
        {"q": uniform(0, 0.5)},
        {"int": randint(-4, 1)},
        {"choice": choice(["a", "z"])},
        {"equal": ordinal(["small", "large"], kind="equal")},
        {"nn": ordinal([1, 8])},
        {"nn": ordinal([1, 3])},
        {"nn": ordinal([1, 2], kind="equal")},
        {"finite": finrange(0.2, 0.6, 3)},
        {"epochs": randint(1, 2)},
        {"unknown": uniform(0, 1)},
        {"uniform": 0.5},
    ],
    ids=repr,
)
def test_bad_active_ranges(active: dict[str, Any]) -> None:
    with pytest.raises(ConfigSpaceError, match=f"active_config_space.*'{next(iter(active))}'"):
        SpaceEncoder(SPACE, active_config_space=active)


# ---- random configurations ---------------------------------------------------------------------------


def test_random_configs_are_those_of_random_search() -> None:
    for make in (np.random.default_rng, np.random.RandomState):
        generator = make(11)
        expected = [sample_config(SPACE, generator) for _ in range(7)]
        assert SpaceEncoder(SPACE, prefix_keys=["nn"]).random_configs(make(11), 7) == expected
        other = make(11)
        assert [ENCODER.random_config(other) for _ in range(7)] == expected
    assert ENCODER.random_config() != ENCODER.random_config()


# ---- other inputs ------------------------------------------------------------------------------------


def test_kinds_of_points() -> None:
    encoder = SpaceEncoder({"x": uniform(0, 2), "y": randint(1, 4)})
    for points in (
        [[0.5, 0.125]],
        np.array([[0.5, 0.125]], dtype=np.float32),
        torch.tensor([[0.5, 0.125]], requires_grad=True),
        torch.tensor([[0.125, 0.5]], dtype=torch.float64).flip(1),
    ):
        assert encoder.decode(points) == [{"x": 1.0, "y": 1}]
    assert encoder.from_ndarray(torch.tensor([0.5, 0.125])) == {"x": 1.0, "y": 1}
    assert encoder.decode(torch.zeros(0, 2)) == []
    assert encoder.encode([]).shape == (0, 2)
    assert encoder.encode(c for c in [{"x": 1, "y": 1.0, "z": "ignored"}]).tolist() == [[0.5, 0.125]]
    constant = SpaceEncoder({"n": 3})
    assert constant.decode(constant.encode([{}, {"n": 3}])) == [{}, {}]
    assert constant.bounds.shape == (2, 0)


def test_bad_points_and_configurations() -> None:
    encoder = SpaceEncoder({"x": uniform(0, 2), "y": choice(["a", "b", "c"])})
    with pytest.raises(ValueError, match=r"shape \(n, 4\)"):
        encoder.decode(torch.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        encoder.decode([[float("nan"), 0, 0, 0]])
    good = {"x": 1.0, "y": "a"}
    for bad, text in (
        ({"x": 3.0, "y": "a"}, r"'x'.*3\.0 lies outside uniform"),
        ({"x": float("nan"), "y": "a"}, "'x'"),
        ({"x": None, "y": "a"}, "'x'"),
        ({"x": "word", "y": "a"}, "'x'.*'word'"),
        ({"x": 1.0, "y": "z"}, "'y'.*'z' is not in choice"),
        ({"x": 1.0, "y": ["a"]}, "'y'"),
        ({"x": 1.0}, r"'y'.*configuration 1 lacks it"),
    ):
        with pytest.raises(ConfigSpaceError, match=text):
            encoder.encode([good, bad])
    with pytest.raises(ConfigSpaceError, match="did you mean 'x1'"):
        SpaceEncoder({"x1": uniform(0, 1)}, name_last_pos="x2")
    with pytest.raises(ConfigSpaceError, match="different domains"):
        SpaceEncoder({"x": uniform(0, 1)}, name_last_pos="x", prefix_keys=["x"])


def test_near_misses_are_taken() -> None:
    encoder = SpaceEncoder({"f": choice([0.1, 0.2, 0.4]), "g": finrange(0.1, 1, 10), "n": ordinal([1, 2, 8])})
    config = {"f": 0.1 + 1e-9, "g": 0.1 + 0.2, "n": 8.0}
    assert encoder.from_ndarray(encoder.to_ndarray(config)) == {"f": 0.1, "g": 0.3, "n": 8}


def test_equality_and_repr() -> None:
    space = {"x": uniform(0, 1), "n": 3}
    assert SpaceEncoder(space) == SpaceEncoder({"x": uniform(0, 1)})
    assert hash(SpaceEncoder(space)) == hash(SpaceEncoder({"x": uniform(0, 1)}))
    assert SpaceEncoder(space) != SpaceEncoder({"x": uniform(0, 2)})
    assert SpaceEncoder(space) != SpaceEncoder(space, active_config_space={"x": uniform(0, 0.5)})
    assert repr(SpaceEncoder(space)) == "SpaceEncoder({x: uniform(0.0, 1.0)}, dim=1)"


def test_random_configurations_do_not_import_torch() -> None:
    code = (
        "import sys; from sthyper.encoding import SpaceEncoder; from sthyper.config_space import uniform; "
        "encoder = SpaceEncoder({'x': uniform(0, 1)}); encoder.random_configs(0, 3); "
        "encoder.decode(encoder.to_ndarray_matrix([{'x': 0.5}])); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
