"""The optimum of acquisition functions, against enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from sthyper.acquisition.ascent import ascend
from sthyper.acquisition.ei import LogExpectedImprovement
from sthyper.acquisition.optimize import OptimizerOptions, optimize_acquisition, rank_candidates
from sthyper.acquisition.space import MixedSpace
from sthyper.config_space import choice, finrange, lograndint, ordinal, randint, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.gp import GaussianProcess
from sthyper.surrogates.inputs import InputStructure

NUM_CATEGORIES = (4, 3, 5, 2, 3)
MIXED: dict[str, Any] = {f"c{i}": choice([f"v{j}" for j in range(k)]) for i, k in enumerate(NUM_CATEGORIES)}
MIXED |= {f"x{i}": uniform(0, 1) for i in range(3)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plain(AcquisitionFunction):
    """Any function of points."""

    def __init__(self, function: Any) -> None:
        super().__init__(model=None)
        self.function = function
        self.count = 0

    def forward(self, X: Tensor) -> Tensor:
        self.count += X.shape[:-2].numel()
        return self.function(X.squeeze(-2))


def random_model(seed: int) -> tuple[MixedSpace, Tensor, AcquisitionFunction]:
    """Log EI of a process of a random function."""
    encoder = SpaceEncoder(MIXED)
    space = MixedSpace(encoder)
    g = generator(seed)
    X = space.sample((15, 30, 60, 120)[seed % 4], g)
    d = X.shape[1]
    scale = 0.5 + 3.0 * torch.rand(d, generator=g, dtype=torch.float64)
    W = torch.randn(200, d, generator=g, dtype=torch.float64) * scale
    phase = 6.283 * torch.rand(200, generator=g, dtype=torch.float64)
    Y = torch.cos(X @ W.T + phase) @ torch.randn(200, generator=g, dtype=torch.float64)
    process = GaussianProcess(InputStructure.of_space(encoder))
    model = process.fit(X, Y)
    best = process.transform.forward(Y).min()
    return space, X[torch.argsort(Y)[:5]], LogExpectedImprovement(model, best)


def enumerated(space: MixedSpace, acquisition: AcquisitionFunction, grid: int = 9) -> float:
    """The best value over all categories and a dense grid of the numbers."""
    line = torch.linspace(0.0, 1.0, grid, dtype=torch.float64)
    numbers = torch.cartesian_prod(line, line, line)
    best = -torch.inf
    for values in itertools.product(*(range(k) for k in NUM_CATEGORIES)):
        config = {f"c{i}": f"v{j}" for i, j in enumerate(values)} | {f"x{i}": 0.5 for i in range(3)}
        X = space.points([config]).repeat(len(numbers), 1)
        X[:, space.moving] = numbers
        best = max(best, float(rank_candidates(acquisition, X).values.max()))
    return best


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_the_best_of_enumeration_is_found(part: int) -> None:
    missed = 0
    for seed in range(2 * part, 2 * part + 2):
        space, incumbents, acquisition = random_model(seed)
        found = optimize_acquisition(acquisition, space, incumbents, generator(seed))[0]
        assert float(acquisition(found.x[None, None])) == pytest.approx(found.value, abs=1e-9)
        missed += found.value < enumerated(space, acquisition) - 1e-6
    assert missed == 0  # of all 20


def test_several_maxima_are_found_at_once_within_the_box() -> None:
    centres = torch.tensor([[0.2, 0.3], [0.7, 1.4], [-0.5, 0.5]], dtype=torch.float64)

    def function(X: Tensor) -> Tensor:
        return -(((X.unsqueeze(1) - centres) ** 2) * torch.tensor([1.0, 30.0])).sum(-1).amin(1)

    starts = torch.tensor([[0.3, 0.1], [0.9, 0.9], [0.1, 0.6]], dtype=torch.float64)
    lower, upper = torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    X, values = ascend(function, starts, lower, upper, 60, tolerance=1e-8, least_gain=1e-16)
    assert torch.allclose(X[0], centres[0], atol=1e-5)
    assert bool(((X >= 0) & (X <= 1)).all())
    assert torch.allclose(values, function(X))
    for i in range(3):  # a step to any side, within the box, is for the worse
        for step in 1e-3 * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]):
            assert float(function((X[i : i + 1] + step).clamp(0.0, 1.0))) <= float(values[i]) + 1e-12
    assert bool((values >= function(starts)).all())
    # Each start goes its own way: the others make no difference.
    for i in range(3):
        alone, _ = ascend(function, starts[i : i + 1], lower[:1], upper[:1], 60, tolerance=1e-8, least_gain=1e-16)
        assert torch.allclose(alone[0], X[i], atol=1e-9)
    # Equal bounds hold a coordinate.
    lower[:, 0] = upper[:, 0] = starts[:, 0]
    X, _ = ascend(function, starts, lower, upper, 60)
    assert torch.equal(X[:, 0], starts[:, 0])
    assert bool((X[:, 1] != starts[:, 1]).all())


def test_a_narrow_valley_needs_curvature() -> None:
    def function(X: Tensor) -> Tensor:  # Rosenbrock on [-2, 2]^2
        z = 4.0 * X - 2.0
        return -(100.0 * (z[:, 1] - z[:, 0] ** 2) ** 2 + (1.0 - z[:, 0]) ** 2)

    start = torch.tensor([[0.2, 0.75]], dtype=torch.float64)
    box = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    X, value = ascend(function, start, *box, 100, tolerance=1e-8, least_gain=1e-14)
    assert torch.allclose(X, torch.full((1, 2), 0.75, dtype=torch.float64), atol=1e-4)
    assert float(value) > -1e-6
    few, _ = ascend(function, start, *box, 5)
    assert not torch.allclose(few, X, atol=1e-2)


@pytest.mark.parametrize("function", [lambda X: torch.full((len(X),), torch.nan).double(), lambda X: X.detach()[:, 0]])
def test_functions_without_gradient_or_value_leave_the_starts(function: Any) -> None:
    start = torch.full((2, 2), 0.5, dtype=torch.float64)
    X, _ = ascend(function, start, torch.zeros_like(start), torch.ones_like(start), 10)
    assert torch.equal(X, start)


def best_of(space: dict[str, Any], function: Any, **options: Any) -> tuple[dict[str, Any], Any]:
    mixed = MixedSpace(SpaceEncoder(space))
    acquisition = Plain(function)
    found = optimize_acquisition(
        acquisition, mixed, mixed.sample(3, generator(1)), generator(0), OptimizerOptions(**options)
    )
    return mixed.config(found[0].x), found


def test_a_small_finite_space_is_looked_at_completely() -> None:
    space = {"a": choice(list("abcdef")), "b": ordinal([1, 2, 4, 8]), "n": randint(1, 20)}
    weights = torch.randn(8, generator=generator(3), dtype=torch.float64)
    _, found = best_of(space, lambda X: torch.sin(9.0 * X) @ weights)
    points = torch.stack([c.x for c in found])
    assert len(torch.unique(points, dim=0)) == 6 * 4 * 20 == len(found)
    assert [c.value for c in found] == sorted((c.value for c in found), reverse=True)


def test_ordered_values_in_steps_of_all_sizes() -> None:
    space = {"n": lograndint(1, 100_000), "m": randint(0, 10_000), "x": uniform(0, 1), "f": finrange(0.1, 1.0, 10)}
    encoder = SpaceEncoder(space)
    target = encoder.encode([{"n": 7, "m": 6543, "x": 0.3, "f": 0.4}])[0]
    config, found = best_of(space, lambda X: -((X - target) ** 2).sum(-1))
    assert (config["n"], config["m"]) == (7, 6543)
    assert config["f"] == pytest.approx(0.4)
    assert config["x"] == pytest.approx(0.3, abs=1e-3)
    assert found[0].origin in ("gradient", "discrete")


def test_single_values_and_active_parts_are_kept() -> None:
    space = {"one": choice(["only"]), "fix": randint(3, 3), "x": uniform(0, 10), "c": choice(list("abcd"))}
    active = {"x": uniform(2, 4), "c": choice(["b", "c"])}
    mixed = MixedSpace(SpaceEncoder(space, active_config_space=active))
    acquisition = Plain(lambda X: X.sum(-1) + 5.0 * X[:, 0])
    found = optimize_acquisition(acquisition, mixed, mixed.sample(2, generator()), generator())
    for candidate in found:
        config = mixed.config(candidate.x)
        assert config["c"] in ("b", "c")
        assert 2 <= config["x"] <= 4
        assert (config["one"], config["fix"]) == ("only", 3)
    assert mixed.config(found[0].x)["x"] == pytest.approx(4.0)


def test_a_space_of_one_configuration() -> None:
    config, found = best_of({"a": choice(["x"]), "b": uniform(1, 1)}, lambda X: X.sum(-1))
    assert config == {"a": "x", "b": 1.0}
    assert len(found) == 1


def test_many_categories_and_many_dimensions() -> None:
    space: dict[str, Any] = {f"x{i}": uniform(0, 1) for i in range(50)}
    space["c"] = choice([f"v{i}" for i in range(300)])
    mixed = MixedSpace(SpaceEncoder(space))
    where = mixed.encoder.slices["c"]

    def function(X: Tensor) -> Tensor:
        rest = torch.cat([X[:, : where.start], X[:, where.stop :]], dim=-1)
        return -((rest - 0.3) ** 2).sum(-1) + X[:, where] @ torch.linspace(0, 1, 300, dtype=torch.float64)

    acquisition = Plain(function)
    found = optimize_acquisition(acquisition, mixed, mixed.sample(3, generator(1)), generator(0))
    assert found[0].value > 0.95
    assert acquisition.count < 20_000


def test_what_is_not_allowed_is_passed_over() -> None:
    space = {"a": choice(list("abcdefgh")), "x": uniform(0, 1)}
    mixed = MixedSpace(SpaceEncoder(space))
    acquisition = Plain(lambda X: X @ torch.arange(1.0, 10.0, dtype=torch.float64))
    seen = []

    def allowed(x: Tensor) -> bool:
        seen.append(x)
        return mixed.config(x)["a"] != "h"

    found = optimize_acquisition(acquisition, mixed, mixed.sample(3, generator()), generator(), allowed=allowed)
    assert mixed.config(found[0].x)["a"] == "g"
    assert found[0].value > 7.9
    assert seen
    nothing = optimize_acquisition(
        acquisition, mixed, mixed.sample(3, generator()), generator(), allowed=lambda x: False
    )
    assert all(candidate.origin in ("global", "local") for candidate in nothing)


def test_options_change_the_search() -> None:
    target = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.123456], dtype=torch.float64)
    space = {"a": choice(list("abcd")), "x": uniform(0, 1)}

    def run(**options: int) -> tuple[float, int]:
        mixed = MixedSpace(SpaceEncoder(space))
        acquisition = Plain(lambda X: -((X - target) ** 2).sum(-1))
        options = {"num_candidates": 4, "num_local_candidates": 0} | options
        found = optimize_acquisition(
            acquisition, mixed, mixed.sample(3, generator(1)), generator(0), OptimizerOptions(**options)
        )
        return found[0].value, acquisition.count

    full = run()
    assert full[0] > -1e-6
    assert run(max_iterations=0, max_rounds=0)[0] < -1e-6
    assert run(max_iterations=0, max_rounds=0, num_candidates=64)[0] > run(max_iterations=0, max_rounds=0)[0]
    assert run(max_iterations=0, max_rounds=0, num_local_candidates=64)[1] == 4 + 64
    assert run(max_rounds=0)[1] < full[1]
    assert run(max_iterations=0)[1] < full[1]
    assert run(num_starts=4, num_discrete_starts=4)[1] > run(num_starts=1, num_discrete_starts=0)[1]
    assert run(num_discrete_starts=4)[1] != run(num_discrete_starts=0)[1]


def test_small_spaces_are_enumerated_up_to_a_number() -> None:
    mixed = MixedSpace(SpaceEncoder({"a": choice(list("abcdef")), "b": finrange(0.0, 1.0, 5)}))
    target = mixed.points([{"a": "d", "b": 0.75}])[0]

    def run(**options: int) -> tuple[int, str]:
        acquisition = Plain(lambda X: -((X - target) ** 2).sum(-1))
        sizes = OptimizerOptions(num_candidates=4, num_local_candidates=0, **options)
        found = optimize_acquisition(acquisition, mixed, mixed.sample(3, generator(1)), generator(0), sizes)
        assert torch.equal(found[0].x, target)
        return acquisition.count, found[0].origin

    assert run(num_enumerated=30) == (30, "global")
    assert run(num_enumerated=29)[0] != 30
    assert run()[0] != 30
    with pytest.raises(ValueError, match="num_enumerated must be at least 0"):
        OptimizerOptions(num_enumerated=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_candidates", 1),
        ("num_local_candidates", -1),
        ("num_starts", 0),
        ("max_iterations", -1),
        ("max_rounds", -1),
    ],
)
def test_options_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        OptimizerOptions(**{name: value})
