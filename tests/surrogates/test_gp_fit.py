"""Maximum-a-posteriori fits against many starts and brute force; what fits keep and where they start."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sthyper.surrogates.fit import minimize_bounded
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.parameters import PRESETS

NUM_DATA_SETS = 20
NUM_STARTS = 50
SIZES = (5, 6, 8, 10, 12, 14, 17, 20, 20, 25, 25, 30, 30, 35, 40, 40, 45, 50, 55, 60)
Data = tuple[Tensor, Tensor, InputStructure]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_set(number: int) -> Data:
    """Return one of 20 problems: 5 functions, 4 levels of noise, 1 to 8 numbers, each fourth with a categorical."""
    g = generator(1000 + number)
    n, d = SIZES[number], 1 + number % 8
    X = torch.rand(n, d, generator=g, dtype=torch.float64)
    w = torch.rand(d, generator=g, dtype=torch.float64)
    functions = (
        lambda: (X - w).square().sum(1),
        lambda: torch.sin(6 * X @ w) + 0.3 * X.sum(1),
        lambda: 5 * torch.exp(3 * (X @ w) / d),
        lambda: (torch.sin(10 * X) * w).sum(1),
        lambda: torch.where(X[:, 0] < w[0], X.sum(1), 20 + 3 * X.sum(1)),
    )
    y = functions[number % 5]()
    structure = InputStructure.plain(d)
    if number % 4 == 3:
        kinds = torch.randint(3, (n,), generator=g)
        y = y + torch.tensor([0.0, 0.5, 2.0]).double()[kinds]
        X = torch.cat([X, torch.nn.functional.one_hot(kinds, 3).double()], 1)
        structure = InputStructure((*structure.names, "kind"), (*range(d), d, d, d), (False,) * d + (True,))
    noise = (0.0, 0.01, 0.1, 0.5)[number // 2 % 4]
    return X, y + noise * y.std() * torch.randn(n, generator=g, dtype=torch.float64), structure


def objective(process: GaussianProcess, X: Tensor, Y: Tensor, theta: Tensor | None = None) -> float:
    theta = process._theta if theta is None else theta
    assert theta is not None
    targets = Y if "boxcox" in process.layout.slices else process.transform.forward(Y)
    return float(process.negative_log_posterior(theta, X, targets))


def best_of_many_starts(process: GaussianProcess, X: Tensor, Z: Tensor) -> float:
    """Minimise from the usual start, usual random ones, and as many all over the box."""
    layout, g = process.layout, generator(5)
    low, high = torch.maximum(layout.lower, layout.init - 4), torch.minimum(layout.upper, layout.init + 4)
    starts = [layout.init, *(layout.random_start(g) for _ in range(NUM_STARTS // 2 - 1))]
    starts += [low + (high - low) * torch.rand(layout.size, generator=g).double() for _ in range(NUM_STARTS // 2)]
    found = minimize_bounded(
        lambda theta: process.negative_log_posterior(theta, X, Z),
        starts,
        layout.lower,
        layout.upper,
        [300] * NUM_STARTS,
    )
    assert found is not None
    return found.value


_gaps: dict[int, tuple[float, float]] = {}


def gaps(number: int) -> tuple[float, float]:
    """Return by how much a fit misses the optimum, with options as they are and with ten starts."""
    if number not in _gaps:
        X, Y, structure = data_set(number)
        usual, ten = GaussianProcess(structure), GaussianProcess(structure, GPOptions(num_starts=10))
        usual.fit(X, Y)
        ten.fit(X, Y)
        reference = best_of_many_starts(usual, X, usual.transform.forward(Y))
        _gaps[number] = objective(usual, X, Y) - reference, objective(ten, X, Y) - reference
    return _gaps[number]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", range(NUM_DATA_SETS))
def test_the_usual_starts_and_ten_find_the_optimum(number: int) -> None:
    usual, ten = gaps(number)
    assert ten < 0.05
    assert usual < 0.05  # 18 of 20 are asked for


@pytest.mark.parametrize("number", [3, 8, 13])
def test_no_parameter_can_be_moved_to_the_better(number: int) -> None:
    """The gradient vanishes, or points out of the box."""
    X, Y, structure = data_set(number)
    process = GaussianProcess(structure, GPOptions(max_iterations=500, num_starts=1))
    process.fit(X, Y)
    assert process._theta is not None
    theta = process._theta.clone().requires_grad_()
    value = process.negative_log_posterior(theta, X, process.transform.forward(Y))
    (gradient,) = torch.autograd.grad(value, theta)
    layout = process.layout
    projected = theta.detach() - torch.minimum(torch.maximum(theta.detach() - gradient, layout.lower), layout.upper)
    assert float(projected.abs().max()) < 2e-3
    assert (theta >= layout.lower).all()
    assert (theta <= layout.upper).all()


def test_more_starts_and_iterations_are_not_worse() -> None:
    X, Y, structure = data_set(5)
    values = []
    for options in (
        GPOptions(num_starts=1, max_iterations=1),
        GPOptions(num_starts=1, max_iterations=100),
        GPOptions(num_starts=3, max_iterations=100),
    ):
        process = GaussianProcess(structure, options)
        process.fit(X, Y)
        values.append(objective(process, X, Y))
    assert values[0] > values[1] >= values[2]


def test_a_loose_tolerance_ends_sooner(caplog: pytest.LogCaptureFixture) -> None:
    X, Y, structure = data_set(5)
    thetas = []
    with caplog.at_level(logging.INFO):
        for tolerance in (1e-6, 10.0):
            process = GaussianProcess(structure, GPOptions(tolerance=tolerance, num_starts=1, verbose=True))
            process.fit(X, Y)
            thetas.append(process._theta)
    evaluations = [int(r.getMessage().split("after ")[1].split()[0]) for r in caplog.records if "after" in r.message]
    assert len(evaluations) == 2
    assert evaluations[1] < evaluations[0]


def test_fits_are_silent_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    X, Y, structure = data_set(1)
    with caplog.at_level(logging.INFO):
        GaussianProcess(structure, GPOptions(num_starts=2)).fit(X, Y)
        assert caplog.text == ""
        GaussianProcess(structure, GPOptions(num_starts=3, verbose=True)).fit(X, Y)
    assert [f"fit from start {i}" in caplog.text for i in range(4)] == [True, True, True, False]


# ---- warm starts -------------------------------------------------------------------------------------


def run_of_fits(seed: int, first: int, last: int, **options: Any) -> list[tuple[float, float]]:
    """Return the objective of warm and of cold fits after each new observation."""
    d = 3
    g = generator(seed)
    X = torch.rand(last, d, generator=g, dtype=torch.float64)
    Y = (X - 0.4).square().sum(1) + torch.sin(4 * X[:, 0]) + 0.05 * torch.randn(last, generator=g).double()
    warm = GaussianProcess(d, GPOptions(**options))
    pairs = []
    for n in range(first, last + 1):
        warm.fit(X[:n], Y[:n])
        cold = GaussianProcess(d, GPOptions(num_starts=2, max_iterations=100))
        cold.fit(X[:n], Y[:n])
        pairs.append((objective(warm, X[:n], Y[:n]), objective(cold, X[:n], Y[:n])))
    return pairs


@pytest.mark.slow
def test_warm_starts_follow_cold_fits() -> None:
    pairs = [pair for seed in range(3) for pair in run_of_fits(seed, 6, 30)]
    close = [warm - cold < 0.05 for warm, cold in pairs]
    assert sum(close) / len(close) >= 0.8


def test_a_warm_fit_starts_at_the_last_optimum() -> None:
    X, Y, structure = data_set(6)
    kept = GaussianProcess(structure, GPOptions(warm_iterations=1))
    kept.fit(X[:-1], Y[:-1])
    state, before = kept.state_dict(), kept._theta
    assert before is not None
    kept.fit(X, Y)
    assert kept._theta is not None
    values = [objective(kept, X, Y, before), objective(kept, X, Y)]
    more = GaussianProcess(structure, GPOptions(warm_iterations=30))
    more.load_state_dict(state)
    more.fit(X, Y)
    values.append(objective(more, X, Y))
    assert values[0] > values[1] > values[2]


def test_without_warm_starts_the_last_optimum_does_not_count() -> None:
    X, Y, structure = data_set(2)
    options = GPOptions(warm_start=False, num_starts=1, max_iterations=8)
    used, fresh = GaussianProcess(structure, options), GaussianProcess(structure, options)
    used.fit(X[:-1], Y[:-1])
    used.fit(X, Y)
    fresh.fit(X, Y)
    assert used.parameters() == fresh.parameters()


def test_a_poor_warm_start_is_mended_when_the_data_have_grown_by_half() -> None:
    X, Y, structure = data_set(10)
    process = GaussianProcess(structure, GPOptions(warm_iterations=1))
    process.fit(X[:10], Y[:10])
    poor = process.layout.init.clone()
    poor[process.layout.slices["lengthscale"]] = math.log(50.0)
    process._theta = poor.clone()
    process.fit(X[:12], Y[:12])
    low = objective(process, X[:12], Y[:12])
    fresh = GaussianProcess(structure)
    fresh.fit(X[:12], Y[:12])
    assert low > objective(fresh, X[:12], Y[:12]) + 0.5
    process._theta = poor.clone()
    process.fit(X[:15], Y[:15])
    fresh.fit(X[:15], Y[:15])
    assert objective(process, X[:15], Y[:15]) < objective(fresh, X[:15], Y[:15]) + 0.05


def test_without_refit_parameters_stay_and_the_data_count() -> None:
    X, Y, structure = data_set(4)
    for transform in ("halflog", "boxcox"):
        process = GaussianProcess(structure, GPOptions(target_transform=transform, num_starts=1, max_iterations=20))
        targets = Y - Y.min() + 1.0
        process.fit(X[:8], targets[:8])
        before = process.parameters()
        model = process.fit(X, targets, refit=False)
        assert process.parameters() == before
        assert model.num_data == len(X)
        process.fit(X, targets, refit=True)
        assert process.parameters() != before


def test_the_state_gives_the_same_next_fit() -> None:
    X, Y, structure = data_set(12)
    first = GaussianProcess(structure, seed=1)
    first.fit(X[:15], Y[:15])
    second = GaussianProcess(structure, seed=2)
    second.load_state_dict(first.state_dict())
    assert second.parameters() == first.parameters()
    assert second.transform.state_dict() == first.transform.state_dict()
    assert torch.equal(
        first.fit(X[:15], Y[:15], refit=False).predict(X)[0], second.fit(X[:15], Y[:15], refit=False).predict(X)[0]
    )
    assert second.parameters() == first.parameters()
    for n in (16, 30):  # a warm start alone, and one beside a full fit, which draws
        one, other = first.fit(X[:n], Y[:n]), second.fit(X[:n], Y[:n])
        assert first.parameters() == second.parameters()
        assert torch.equal(one.predict(X)[0], other.predict(X)[0])
    empty = GaussianProcess(structure, seed=3)
    empty.load_state_dict(GaussianProcess(structure, seed=1).state_dict())
    assert empty.parameters() == {}


def test_fits_with_the_same_seed_are_the_same() -> None:
    X, Y, structure = data_set(4)
    found = []
    for seed in (3, 3):
        process = GaussianProcess(structure, GPOptions(num_starts=4, max_fit_points=8), seed)
        process.fit(X, Y)
        found.append(process.parameters())
    assert found[0] == found[1]


def test_parameters_have_the_names_of_hyperparameters() -> None:
    X, Y, structure = data_set(3)
    process = GaussianProcess(structure, GPOptions(max_iterations=3))
    assert process.parameters() == {}
    process.fit(X, Y)
    numbers = [f"x{i}" for i in range(4)]
    expected = {f"lengthscale_{name}" for name in [*numbers, "kind"]} | {"outputscale", "noise", "mean"}
    expected |= {f"warping_{exponent}_{name}" for exponent in "ab" for name in numbers}
    assert set(process.parameters()) == expected
    assert all(type(value) is float for value in process.parameters().values())


# ---- subsets -----------------------------------------------------------------------------------------


def test_a_subset_is_fitted_and_all_data_are_conditioned_on() -> None:
    g = generator(0)
    X = torch.rand(80, 2, generator=g, dtype=torch.float64)
    Y = (X - 0.3).square().sum(1)
    process = GaussianProcess(2, GPOptions(max_fit_points=20, num_starts=1, max_iterations=30))
    kept = process._subset(Y, 20)
    assert len(set(kept.tolist())) == 20
    assert set(Y.argsort()[:10].tolist()) <= set(kept.tolist())
    model = process.fit(X, Y)
    assert model.num_data == 80
    # As precise at all points as a model of all data is, and not as one of 20 points.
    mean = process.transform.inverse(model.predict(X)[0])
    assert float((mean - Y).abs().max()) < 0.02
    whole = GaussianProcess(2, GPOptions(max_fit_points=None, num_starts=1, max_iterations=30))
    whole.fit(X, Y)
    assert whole.parameters() != process.parameters()


# ---- Box-Cox -----------------------------------------------------------------------------------------


def positive_data(power: float, n: int = 40) -> tuple[Tensor, Tensor]:
    """Return data that are smooth, with noise of one size, after a Box-Cox transform with this power."""
    g = generator(2)
    X = torch.rand(n, 1, generator=g, dtype=torch.float64)
    z = 1.2 + torch.sin(5 * X[:, 0]) + 0.03 * torch.randn(n, generator=g, dtype=torch.float64)
    return X, torch.exp(3 * z) if power == 0 else z.clamp_min(0.05).pow(1 / power)


@pytest.mark.parametrize("warping", [False, True])
def test_the_power_is_that_of_brute_force(warping: bool) -> None:
    X, Y = positive_data(0.0, 16)
    options = GPOptions(target_transform="boxcox", input_warping=warping)
    process = GaussianProcess(1, options)
    process.fit(X, Y)
    joint, where, layout = process._theta, process.layout.slices["boxcox"], process.layout
    assert joint is not None
    grid = torch.linspace(-0.6, 0.6, 9).double()
    values = []
    for power in grid:
        fixed = joint.clone()
        fixed[where] = power
        lower, upper = layout.lower.clone(), layout.upper.clone()
        lower[where] = upper[where] = power
        start = layout.init.clone()
        start[where] = power
        found = minimize_bounded(
            lambda theta: process.negative_log_posterior(theta, X, Y), [fixed, start], lower, upper, [30, 60]
        )
        assert found is not None
        values.append(found.value)
    best = float(grid[int(torch.tensor(values).argmin())])
    assert abs(process.transform.state_dict()["power"] - best) <= 0.15 + 1e-9
    assert objective(process, X, Y) < min(values) + 0.01


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.5, 1.0])
def test_the_power_of_the_data_is_recovered(power: float) -> None:
    X, Y = positive_data(power, 30)
    process = GaussianProcess(1, GPOptions(target_transform="boxcox"))
    process.fit(X, Y)
    assert process.parameters()["boxcox"] == pytest.approx(power, abs=0.3)


def test_predictions_of_box_cox_are_inverted() -> None:
    X, Y = positive_data(0.0)
    process = GaussianProcess(1, GPOptions(target_transform="boxcox", num_starts=1))
    model = process.fit(X, Y)
    found = process.transform.inverse(model.predict(X)[0])
    assert torch.allclose(found, Y, rtol=0.4)
    assert float(Y.max() / Y.min()) > 5


def test_the_scale_of_targets_makes_no_difference_to_the_fit_of_a_power() -> None:
    """With the whole Jacobian the likelihood of c y is that of y less n log c."""
    X, Y = positive_data(0.0, 20)
    process = GaussianProcess(1, GPOptions(target_transform="boxcox"))
    theta = process.layout.random_start(generator(0))
    theta[process.layout.slices["boxcox"]] = 0.0
    one, scaled = objective(process, X, Y, theta), objective(process, X, 7.0 * Y, theta)
    assert scaled - one == pytest.approx(20 * math.log(7.0))


def test_the_power_stays_at_a_half_with_few_targets() -> None:
    X, Y = positive_data(-0.5)
    process = GaussianProcess(1, GPOptions(target_transform="boxcox"))
    process.fit(X[:4], Y[:4])
    assert process.parameters()["boxcox"] == 0.5
    process.fit(X[:5], Y[:5])
    assert process.parameters()["boxcox"] != 0.5


def test_targets_for_box_cox_must_be_positive() -> None:
    X, Y = positive_data(0.5)
    process = GaussianProcess(1, GPOptions(target_transform="boxcox"))
    for refit in (True, False):
        with pytest.raises(ValueError, match="boxcox_transform needs positive targets"):
            process.fit(X, Y - Y.min(), refit)


# ---- the minimiser -----------------------------------------------------------------------------------


def square(theta: Tensor) -> Tensor:
    return (theta - 2.0).square().sum()


def test_the_best_of_all_starts_within_the_box() -> None:
    lower, upper = torch.tensor([-5.0, -math.inf]).double(), torch.tensor([1.0, math.inf]).double()
    found = minimize_bounded(square, [torch.zeros(2).double()], lower, upper, [50])
    assert found is not None
    assert found.theta.tolist() == pytest.approx([1.0, 2.0], abs=1e-5)
    assert found.value == pytest.approx(1.0)
    assert found.evaluations > 1
    valleys = lambda theta: torch.cos(3 * theta).sum() + 0.1 * theta.square().sum()  # noqa: E731
    starts = [torch.tensor([3.0]).double(), torch.tensor([0.9]).double()]
    wide = torch.tensor([-10.0]).double(), torch.tensor([10.0]).double()
    far, near, both = (minimize_bounded(valleys, s, *wide, [50] * len(s)) for s in (starts[:1], starts[1:], starts))
    assert far is not None
    assert near is not None
    assert both is not None
    assert far.value > near.value == both.value


def test_starts_that_fail_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    def partly(theta: Tensor) -> Tensor:
        return square(theta) + (math.nan if float(theta.detach()) < 0 else 0.0)

    box = torch.tensor([-9.0]).double(), torch.tensor([9.0]).double()
    found = minimize_bounded(partly, [torch.tensor([-5.0]).double(), torch.tensor([1.0]).double()], *box, [20, 20])
    assert found is not None
    assert float(found.theta) == pytest.approx(2.0, abs=1e-5)
    assert "a start of the fit was given up: the objective is not finite" in caplog.text
    assert minimize_bounded(partly, [torch.tensor([-5.0]).double()], *box, [20]) is None


def test_a_run_that_fails_on_its_way_counts_until_then(caplog: pytest.LogCaptureFixture) -> None:
    visited = []

    def until_six(theta: Tensor) -> Tensor:
        visited.append(float(theta.detach()))
        return (theta - 2.0).pow(4).sum() + (math.nan if len(visited) > 6 else 0.0)

    box = torch.tensor([-99.0]).double(), torch.tensor([99.0]).double()
    found = minimize_bounded(until_six, [torch.tensor([-4.0]).double()], *box, [20])
    assert found is not None
    assert len(visited) == 7
    assert found.value == min((x - 2) ** 4 for x in visited[:6]) < 6**4
    assert float(found.theta) in visited[1:6]
    assert caplog.text == ""


def test_parameters_stay_if_no_start_can_be_fitted(caplog: pytest.LogCaptureFixture) -> None:
    X, Y, structure = data_set(2)
    process = GaussianProcess(structure)
    before = process.layout.init
    process._fit_parameters(X, torch.full((len(Y),), math.inf).double())
    assert process._theta is not None
    assert torch.equal(process._theta, before)
    assert "could not be fitted; they stay at their start" in caplog.text
    process.fit(X, Y)
    fitted = process._theta
    process._fit_parameters(X, torch.full((len(Y),), math.inf).double())
    assert torch.equal(process._theta, fitted)


# ---- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_starts": 0}, "num_starts must be at least 1, got 0"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
        ({"warm_iterations": 0}, "warm_iterations must be at least 1, got 0"),
        ({"max_fit_points": 1}, "max_fit_points must be at least 2, or None, got 1"),
        ({"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"preset": "syne"}, "preset='syne' is unknown.*syne-tune"),
        ({"target_transform": "log"}, "target_transform='log' is unknown"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPOptions(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "syne-tune"},
        {"kernel": "rbf-ard"},
        {"kernel": "matern52-noard"},
        {"categorical_kernel": "exchangeable"},
        {"input_warping": False},
        {"target_transform": "halflog"},
    ],
)
def test_each_option_changes_predictions(changes: dict[str, Any]) -> None:
    X, Y, structure = data_set(7)
    new = X[:5] * 0.9
    usual, other = (
        GaussianProcess(structure, GPOptions(max_iterations=15, num_starts=1, **c)).fit(X, Y).predict(new)[0]
        for c in ({}, changes)
    )
    assert float((usual - other).abs().max()) > 1e-3


def test_a_preset_of_ones_own() -> None:
    X, Y, structure = data_set(1)
    process = GaussianProcess(structure, GPOptions(preset=PRESETS["syne-tune"], max_iterations=5))
    process.fit(X, Y)
    assert "inverse_lengthscale_x0" in process.parameters()
