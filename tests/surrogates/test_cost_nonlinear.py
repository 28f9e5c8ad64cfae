"""Cost models with a constant start-up cost and a regression model for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sthyper.config_space import choice, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.cost import (
    CostObservation,
    GrowthData,
    NonLinearCostModel,
    ScikitLearnCostModel,
    UnivariateSplineCostModel,
)

ENCODER = SpaceEncoder({"op": choice(["a", "b", "c"]), "x": uniform(0.0, 1.0)})


def observe(
    configs: Sequence[Mapping[str, Any]], c0: float, c1: Callable[[Any], float], levels: Sequence[int]
) -> list[CostObservation]:
    return [CostObservation(c, r, c0 + r * c1(c)) for c in configs for r in levels]


def configs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    return ENCODER.random_configs(seed, n)


# ---- data and criterion --------------------------------------------------------------------------


def test_the_data_are_first_costs_and_differences() -> None:
    data = GrowthData.of(
        [
            CostObservation({"x": 2}, 6, 30.0),
            CostObservation({"x": 1}, 2, 10.0),
            CostObservation({"x": 1}, 10, 38.0),
            CostObservation({"x": 1}, 3, 14.0),
            CostObservation({"x": 3}, 2, 8.0),
            CostObservation({"x": 3}, 2, 10.0),  # a second evaluation
            CostObservation({"x": 2}, 9, 33.0),
        ]
    )
    assert data.least_resource == 2
    assert data.num_first == 2
    entries = list(zip([c["x"] for c in data.configs], data.targets.tolist(), strict=True))
    assert sorted(entries[:2]) == [(1, 5.0), (3, 4.5)]
    # No resource levels as texts: 10 comes after 3.
    assert sorted(entries[2:]) == [(1, pytest.approx(24 / 7)), (1, 4.0), (2, 1.0)]


class MeanCostModel(NonLinearCostModel):
    """c1 is the mean of all targets, so that b0 has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[np.ndarray] = []

    def prepare(self, data: GrowthData) -> Any:
        def fit(targets: np.ndarray) -> Any:
            self.calls.append(targets.copy())
            mean = float(targets.mean())
            return lambda configs: np.full(len(configs), mean)

        return fit


def test_the_start_up_cost_minimises_the_squared_error() -> None:
    generator = np.random.default_rng(1)
    data = [
        CostObservation({"x": i}, r, 5 + 2 * r + float(generator.uniform(-0.3, 0.3)))
        for i in range(6)
        for r in (2, 3, 5)
    ]
    model = MeanCostModel()
    model.update(data)
    growth = GrowthData.of(data)
    # Least squares in (b0, c1): first targets are b0 / 2 + c1, the others c1.
    c1 = growth.targets[growth.num_first :].mean()
    b0 = 2 * (growth.targets[: growth.num_first].mean() - c1)
    assert model.b0 == pytest.approx(b0, abs=1e-5)
    assert model.predict_c1_values([{}])[0] == pytest.approx(c1, abs=1e-5)
    assert model.sample_joint([{}, {}])[1].c0 == model.b0
    # Each b0 is fitted once, and the ends of the interval are looked at first.
    least_first = growth.targets[: growth.num_first].min()
    np.testing.assert_allclose(model.calls[1][: growth.num_first].min(), 0.0, atol=1e-12)
    assert least_first > 0
    assert len({tuple(c) for c in model.calls}) == len(model.calls)


def test_a_start_up_cost_is_never_negative_nor_above_the_costs() -> None:
    convex = MeanCostModel()  # the second unit costs more than the first
    convex.update([CostObservation({"x": 1}, 1, 1.0), CostObservation({"x": 1}, 2, 5.0)])
    assert convex.b0 == 0.0
    concave = MeanCostModel()  # the second unit is free
    concave.update([CostObservation({"x": 1}, 1, 3.0), CostObservation({"x": 1}, 2, 3.0)])
    assert concave.b0 == pytest.approx(3.0)


def test_first_costs_alone_say_nothing_of_a_start_up_cost() -> None:
    model = MeanCostModel()
    model.update([CostObservation({"x": i}, 4, 8.0) for i in range(3)])
    (value,) = model.sample_joint([{}])
    assert (value.c0, value.c1) == (0.0, 2.0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_cost_does_not_matter(scale: float) -> None:
    model = MeanCostModel()
    model.update([CostObservation({"x": i}, r, scale * (5 + 2 * r)) for i in range(4) for r in (1, 2)])
    (value,) = model.sample_joint([{}])
    assert value.c0 == pytest.approx(5 * scale, rel=1e-4)
    assert value.c1 == pytest.approx(2 * scale, rel=1e-4)


# ---- scikit-learn --------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["random_forest", "gradient_boosting"])
@pytest.mark.parametrize("b0", [0.0, 6.0])
def test_costs_of_three_classes_are_recovered_by_trees(model_type: str, b0: float) -> None:
    rates = {"a": 1.0, "b": 2.0, "c": 5.0}
    model = ScikitLearnCostModel(model_type, ENCODER)
    model.update(observe(configs(30), b0, lambda c: rates[c["op"]], [2, 3]))
    for value, op in zip(model.sample_joint([{"op": op, "x": 0.5} for op in "abc"]), "abc", strict=True):
        assert value.c0 == pytest.approx(b0, abs=0.02)
        assert value.c1 == pytest.approx(rates[op], abs=0.01)


def test_kinds_of_trees_and_their_seed() -> None:
    data = observe(configs(20), 1.0, lambda c: 1 + math.sin(6 * c["x"]), [1])
    test = configs(5, seed=9)

    def values(*args: Any, **options: Any) -> list[float]:
        model = ScikitLearnCostModel(*args, encoder=ENCODER, **options)
        model.update(data)
        assert model.b0 == 0.0  # costs at one level say nothing of it
        return [v.at(3) for v in model.sample_joint(test)]

    assert values() == values("random_forest", random_seed=0)
    assert values() != values(random_seed=1)
    assert values() != values("gradient_boosting")
    assert ScikitLearnCostModel()._regression().n_estimators == 50


def test_trees_take_the_first_encoder() -> None:
    model = ScikitLearnCostModel()
    data = observe(configs(3), 1.0, lambda c: 1.0, [1])
    with pytest.raises(ValueError, match="encoder"):
        model.update(data)
    model.use_encoder(ENCODER)
    model.use_encoder(SpaceEncoder({"y": uniform(0, 1)}))
    model.update(data)
    assert model.sample_joint(configs(1))[0].at(1) == pytest.approx(2.0)


def test_bad_arguments_of_trees() -> None:
    with pytest.raises(ValueError, match="did you mean 'random_forest'"):
        ScikitLearnCostModel("random_florest")
    with pytest.raises(TypeError, match="random_seed"):
        ScikitLearnCostModel(random_seed=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="random_seed"):
        ScikitLearnCostModel(random_seed=-1)
    with pytest.raises(RuntimeError, match="update"):
        ScikitLearnCostModel(encoder=ENCODER).sample_joint(configs(1))


# ---- spline --------------------------------------------------------------------------------------


def points(n: int) -> list[dict[str, Any]]:
    return [{"x": float(x)} for x in np.linspace(0, 10, n)]


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_a_polynomial_of_the_degree_is_recovered(degree: int) -> None:
    def c1(config: Mapping[str, Any]) -> float:
        return 2 + (config["x"] / 5) ** degree

    model = UnivariateSplineCostModel("x", (0.0, 10.0), degree)
    model.update(observe(points(9), 4.0, c1, [2, 4, 5]))
    for value, config in zip(model.sample_joint(points(31)), points(31), strict=True):
        assert value.c0 == pytest.approx(4.0, abs=1e-6)
        assert value.c1 == pytest.approx(c1(config), abs=1e-6)


def test_a_kink_is_recovered_by_a_knot() -> None:
    model = UnivariateSplineCostModel("x", (0.0, 10.0), 1)
    model.update(observe(points(21), 3.0, lambda c: 1 + abs(c["x"] - 5), [1, 2]))
    for value, config in zip(model.sample_joint(points(41)), points(41), strict=True):
        assert value.c0 == pytest.approx(3.0, abs=1e-6)
        assert value.c1 == pytest.approx(1 + abs(config["x"] - 5), abs=1e-6)


def test_a_higher_degree_fits_a_curve_better() -> None:
    def worst(degree: int) -> float:
        model = UnivariateSplineCostModel("x", (0.0, 10.0), degree)
        model.update(observe(points(25), 3.0, lambda c: 2 + math.sin(c["x"]), [1, 2]))
        return max(
            abs(v.c1 - 2 - math.sin(c["x"])) for v, c in zip(model.sample_joint(points(50)), points(50), strict=True)
        )

    errors = [worst(degree) for degree in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.02


def test_noise_is_smoothed() -> None:
    generator = np.random.default_rng(0)
    data = [
        CostObservation(c, r, 5 + r * (3 + 0.2 * c["x"] + float(generator.normal(scale=0.3))))
        for c in points(40)
        for r in (1, 2)
    ]
    model = UnivariateSplineCostModel("x", (0.0, 10.0))
    model.update(data)
    errors = [v.c1 - 3 - 0.2 * c["x"] for v, c in zip(model.sample_joint(points(50)), points(50), strict=True)]
    assert max(map(abs, errors)) < 0.35
    assert float(np.std(errors)) < 0.2


def test_differences_at_one_number_are_averaged_and_counted() -> None:
    """Merging does not change the least-squares solution."""
    generator = np.random.default_rng(3)
    data = [
        CostObservation({"x": float(x), "i": i}, r, 2 + r * (1 + x) + float(generator.uniform(0, 0.5)))
        for x, repeats in ((0, 1), (1, 7), (2, 3), (3, 1))
        for i in range(repeats)
        for r in (1, 2, 4)
    ]
    model = UnivariateSplineCostModel("x", (0.0, 3.0), 1)
    model.update(data)
    growth = GrowthData.of(data)
    x = np.array([c["x"] for c in growth.configs])
    first = np.arange(len(x)) < growth.num_first
    solution = np.linalg.lstsq(np.column_stack([first, np.ones(len(x)), x]), growth.targets, rcond=None)[0]
    (value,) = model.sample_joint([{"x": 1.5}])
    assert value.c0 == pytest.approx(solution[0], abs=1e-4)
    assert value.c1 == pytest.approx(solution[1] + 1.5 * solution[2], abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("levels", [[1], [1, 2]])
def test_few_data_are_enough(n: int, levels: list[int]) -> None:
    model = UnivariateSplineCostModel("x", (0.0, 10.0))
    data = observe([{"x": 2.0 + i} for i in range(n)], 0.0, lambda c: 3.0, levels)
    model.update(data)
    for value in model.sample_joint(points(5)):
        assert value.at(4) == pytest.approx(12.0, abs=1e-3)


def test_beyond_the_data_the_cost_goes_on_as_a_line() -> None:
    model = UnivariateSplineCostModel("x", (0.0, 20.0))
    model.update(observe(points(9)[2:], 1.0, lambda c: 2 + c["x"] ** 3, [1, 2]))
    first, last, beyond = ({"x": 2.5}, {"x": 10.0}, [{"x": 1.0}, {"x": 20.0}])
    low, high = (value.c1 for value in model.sample_joint(beyond))
    assert low == pytest.approx(2 + first["x"] ** 3 - 1.5 * 3 * first["x"] ** 2, abs=1e-4)
    assert high == pytest.approx(2 + last["x"] ** 3 + 10 * 3 * last["x"] ** 2, rel=1e-6)


def test_the_number_may_be_computed() -> None:
    model = UnivariateSplineCostModel(lambda c: math.log10(c["x"]), (-3.0, 0.0), 1)
    inputs = [{"x": 10.0**-e} for e in (0, 1, 2, 3)]
    model.update(observe(inputs, 1.0, lambda c: 5 + math.log10(c["x"]), [1, 2]))
    (value,) = model.sample_joint([{"x": 10**-1.5}])
    assert value.c1 == pytest.approx(3.5, abs=1e-6)


def test_bad_arguments_of_splines() -> None:
    with pytest.raises(TypeError, match="scalar_attribute"):
        UnivariateSplineCostModel(3, (0, 1))  # type: ignore[arg-type]
    for bounds in [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))]:
        with pytest.raises(ValueError, match="input_range"):
            UnivariateSplineCostModel("x", bounds)
    for degree in (0, 6):
        with pytest.raises(ValueError, match="spline_degree"):
            UnivariateSplineCostModel("x", (0, 1), degree)
    with pytest.raises(TypeError, match="spline_degree"):
        UnivariateSplineCostModel("x", (0, 1), 2.0)  # type: ignore[arg-type]
    model = UnivariateSplineCostModel("x", (0.0, 1.0))
    with pytest.raises(ValueError, match="input_range.*1.5"):
        model.update([CostObservation({"x": 1.5}, 1, 1.0)])
    with pytest.raises(ValueError, match="'x'.*did you mean 'X'"):
        model.update([CostObservation({"X": 0.5}, 1, 1.0)])
    with pytest.raises(RuntimeError, match="update"):
        model.sample_joint([])
