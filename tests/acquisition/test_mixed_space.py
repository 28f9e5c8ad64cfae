"""The space over which acquisition functions are optimised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.acquisition.space import MixedSpace
from sthyper.config_space import choice, lograndint, loguniform, ordinal, quniform, randint, uniform
from sthyper.encoding import SpaceEncoder

DOMAINS: list[Any] = [
    uniform(-1, 2),
    loguniform(1e-4, 1),
    quniform(0, 1, 0.01),
    randint(1, 5),
    randint(0, 1000),
    lograndint(1, 500),
    choice(["a", "b"]),
    choice(["a", "b", "c", "d"]),
    choice(["only"]),
    ordinal([1, 2, 4, 8]),
    randint(7, 7),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


spaces = st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=6).map(
    lambda ds: {f"h{i}": d for i, d in enumerate(ds)}
)


@settings(deadline=None, max_examples=25)
@given(spaces, st.integers(0, 100))
def test_everything_is_a_configuration(space: dict[str, Any], seed: int) -> None:
    mixed = MixedSpace(SpaceEncoder(space))
    X = mixed.sample(9, generator(seed))
    near = mixed.perturb(X[:2], 12, generator(seed))
    around, owner = mixed.neighbours(X, generator(seed))
    for points in (X, near, around):
        again = mixed.points([mixed.config(x) for x in points]) if len(points) else points
        assert torch.allclose(again, points, atol=1e-12)
        assert torch.allclose(mixed.snap(points), points, atol=1e-12)
        assert bool(((points >= mixed.bounds[0]) & (points <= mixed.bounds[1])).all())
    # A neighbour differs in one hyperparameter, which is no float.
    names = list(space)
    for x, i in zip(around, owner.tolist(), strict=True):
        one, other = mixed.config(X[i]), mixed.config(x)
        differing = [name for name in names if one[name] != other[name]]
        assert len(differing) == 1
        assert differing[0] not in [n for n in names if space[n] in DOMAINS[:2]]
    lower, upper = mixed.box(X)
    assert bool(((lower <= X) & (upper >= X)).all())
    assert set((lower < upper).any(0).nonzero().squeeze(-1).tolist()) == set(mixed.moving.tolist())
    assert torch.equal(mixed.sample(9, generator(seed)), X)
    fresh = mixed.redraw(X[:2], 4, generator(seed))
    fixed = torch.ones(mixed.dim, dtype=torch.bool)
    fixed[mixed.moving] = False
    assert torch.equal(fresh[:, fixed], X[:2].repeat_interleave(4, 0)[:, fixed])


@settings(deadline=None, max_examples=25)
@given(spaces)
def test_all_points_of_a_finite_space(space: dict[str, Any]) -> None:
    size = 1
    for domain in space.values():
        size *= len(domain)
    every = MixedSpace(SpaceEncoder(space)).every_point(600)
    if 0 < size <= 600:
        assert every is not None
        assert len(torch.unique(every, dim=0)) == len(every) == size
    else:
        assert every is None


def test_perturbed_points_change_where_they_can() -> None:
    mixed = MixedSpace(SpaceEncoder({"x": uniform(0, 1), "one": choice(["only"]), "c": choice(list("abcd"))}))
    x = mixed.points([{"x": 0.5, "one": "only", "c": "b"}])
    near = mixed.perturb(x, 200, generator())
    assert float((near != x).any(-1).double().mean()) > 0.8
    assert {mixed.config(p)["c"] for p in near} == set("abcd")
    distance = (near[:, mixed.moving] - 0.5).abs()
    assert float(distance[distance > 0].median()) < 0.1


def test_many_values_are_looked_at_in_part() -> None:
    mixed = MixedSpace(SpaceEncoder({"c": choice([f"v{i}" for i in range(500)])}))
    x = mixed.sample(1, generator())
    one, _ = mixed.neighbours(x, generator(1))
    other, _ = mixed.neighbours(x, generator(2))
    assert 63 <= len(one) <= 64
    assert not torch.equal(one[:60], other[:60])


def test_relaxed_neighbours_leave_numbers_between_values() -> None:
    mixed = MixedSpace(SpaceEncoder({"c": choice(list("abc")), "n": randint(0, 100)}))
    x = mixed.sample(1, generator())
    x[:, -1] = 0.123456
    around, _ = mixed.neighbours(x, relaxed=True)
    assert len(around) == 2
    assert torch.equal(around[:, -1], torch.full((2,), 0.123456, dtype=torch.float64))
    strict, _ = mixed.neighbours(mixed.snap(x))
    assert len({mixed.config(p)["n"] for p in strict}) >= 6


def test_inactive_values_stay_where_they_are_put() -> None:
    def canonicalize(config: dict[str, Any]) -> dict[str, Any]:
        return config if config["opt"] == "sgd" else config | {"momentum": 0.5}

    space = {"opt": choice(["adam", "sgd"]), "momentum": uniform(0, 1), "lr": uniform(0, 1)}
    mixed = MixedSpace(SpaceEncoder(space), canonicalize)
    X = mixed.points([{"opt": o, "momentum": 0.2, "lr": 0.3} for o in ("adam", "sgd")])
    lower, upper = mixed.box(X)
    column = mixed.encoder.slices["momentum"].start
    assert (lower < upper)[:, column].tolist() == [False, True]
    assert bool((lower < upper)[:, mixed.encoder.slices["lr"].start].all())
    assert float(X[0, column]) == pytest.approx(0.5)
    assert all(
        mixed.config(x)["momentum"] == 0.5 for x in mixed.sample(20, generator()) if mixed.config(x)["opt"] == "adam"
    )


def test_points_outside_the_active_part_go_to_it() -> None:
    space = {"c": choice(list("abcd")), "n": randint(0, 20)}
    mixed = MixedSpace(SpaceEncoder(space, active_config_space={"c": choice(["b", "c"]), "n": randint(3, 5)}))
    outside = SpaceEncoder(space).encode([{"c": "a", "n": 19}, {"c": "d", "n": 0}])
    configs = [mixed.config(x) for x in mixed.snap(outside)]
    assert all(config["c"] in ("b", "c") for config in configs)
    assert [config["n"] for config in configs] == [5, 3]
