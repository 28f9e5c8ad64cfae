"""Linear cost models: ridge regression, features, recovery of known costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sthyper.config_space import loguniform, randint, uniform
from sthyper.surrogates.cost import (
    BiasOnlyLinearCostModel,
    CostModel,
    CostObservation,
    CostValue,
    FixedLayersMLPCostModel,
    LinearCostModel,
    MLPLinearCostModel,
)

EXACT = (1e-10,)
"""So weak a regularisation that noise-free data are fitted exactly."""


class TwoFeatures(LinearCostModel):
    """f0 = [1, a] and f1 = [b]."""

    def feature_matrices(self, configs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[1.0, c["a"]] for c in configs]), np.array([[c["b"]] for c in configs])


def observe(configs: Sequence[Mapping[str, Any]], c0: Any, c1: Any, levels: Sequence[int]) -> list[CostObservation]:
    return [CostObservation(c, r, c0(c) + r * c1(c)) for c in configs for r in levels]


def noisy(seed: int, n: int = 12) -> list[CostObservation]:
    generator = np.random.default_rng(seed)
    return [
        CostObservation(
            {"a": float(a), "b": float(b)}, int(r), float(abs(2 + a + r * b + generator.normal(scale=noise)))
        )
        for a, b, r, noise in zip(
            generator.random(n), generator.random(n), generator.integers(1, 6, n), generator.random(n), strict=True
        )
    ]


# ---- regression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_regularisation_is_chosen_by_leaving_one_out(seed: int) -> None:
    data = noisy(seed)
    rows = np.array([[1.0, o.config["a"], o.resource * o.config["b"]] for o in data])
    costs = np.array([o.cost for o in data])

    def ridge(rows: np.ndarray, costs: np.ndarray, alpha: float) -> np.ndarray:
        return np.linalg.solve(rows.T @ rows + alpha * np.eye(3), rows.T @ costs)

    def left_out_error(alpha: float) -> float:
        others = [np.arange(len(costs)) != i for i in range(len(costs))]
        return sum((rows[~keep] @ ridge(rows[keep], costs[keep], alpha) - costs[~keep])[0] ** 2 for keep in others)

    best = min(np.exp(np.arange(-4.0, 5.0)), key=left_out_error)
    model = TwoFeatures()
    model.update(data)
    assert model.alpha == pytest.approx(best)
    weights = ridge(rows, costs, best)
    np.testing.assert_allclose(model.weights0, weights[:2], rtol=1e-9)
    np.testing.assert_allclose(model.weights1, weights[2:], rtol=1e-9)
    value = model.sample_joint([{"a": 0.3, "b": 0.7}])[0]
    assert value.c0 == pytest.approx(weights[0] + 0.3 * weights[1])
    assert value.c1 == pytest.approx(0.7 * weights[2])


def test_different_data_choose_different_regularisations() -> None:
    chosen = set()
    for seed in range(20):
        model = TwoFeatures()
        model.update(noisy(seed))
        chosen.add(model.alpha)
    assert len(chosen) > 1


def test_the_strengths_can_be_given() -> None:
    model = TwoFeatures(alphas=[3.5])
    model.update(noisy(0))
    assert model.alpha == 3.5


@pytest.mark.parametrize("alphas", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_strengths_must_be_positive(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas"):
        TwoFeatures(alphas=alphas)


def test_costs_without_noise_are_recovered() -> None:
    generator = np.random.default_rng(0)
    configs = [{"a": float(a), "b": float(b)} for a, b in generator.random((5, 2))]
    model = TwoFeatures(alphas=EXACT)
    model.update(observe(configs, lambda c: 2 + 3 * c["a"], lambda c: 0.5 * c["b"], [1, 2, 4]))
    for value, (a, b) in zip(
        model.sample_joint([{"a": 0.1, "b": 0.9}, {"a": 2.0, "b": 5.0}]), [(0.1, 0.9), (2.0, 5.0)], strict=True
    ):
        assert value.c0 == pytest.approx(2 + 3 * a, abs=1e-6)
        assert value.c1 == pytest.approx(0.5 * b, abs=1e-6)


def test_the_default_strengths_come_close_with_many_data() -> None:
    model = BiasOnlyLinearCostModel()
    model.update(observe([{"i": i} for i in range(100)], lambda c: 7.0, lambda c: 2.0, [1, 3, 9]))
    (value,) = model.sample_joint([{}])
    assert value.c0 == pytest.approx(7.0, rel=1e-3)
    assert value.c1 == pytest.approx(2.0, rel=1e-3)


def test_bias_only_is_the_line_through_the_mean_costs() -> None:
    model = BiasOnlyLinearCostModel(alphas=EXACT)
    data = [CostObservation({"x": 1}, 1, 3.0), CostObservation({"x": 2}, 1, 5.0), CostObservation({"x": 1}, 3, 8.0)]
    model.update(data)
    slope, intercept = np.polyfit([1, 1, 3], [3.0, 5.0, 8.0], 1)
    (one, other) = model.sample_joint([{"x": 1}, {"x": 7}])
    assert one == other
    assert (one.c0, one.c1) == (pytest.approx(intercept), pytest.approx(slope))


def test_one_observation_is_enough() -> None:
    model = BiasOnlyLinearCostModel()
    model.update([CostObservation({}, 2, 5.0)])
    (value,) = model.sample_joint([{}])
    assert 4.9 < value.at(2) < 5.0


def test_a_second_update_replaces_the_first() -> None:
    model, fresh = BiasOnlyLinearCostModel(), BiasOnlyLinearCostModel()
    model.update([CostObservation({}, 1, 100.0)])
    for m in (model, fresh):
        m.update([CostObservation({}, 1, 2.0), CostObservation({}, 2, 3.0)])
    assert model.sample_joint([{}]) == fresh.sample_joint([{}])


# ---- perceptrons ---------------------------------------------------------------------------------

CONFIG = {"n_units_1": 5, "n_units_2": 7, "batch_size": 16}
WEIGHTS = 3 * 5 + 5 * 7 + 7 * 2


def test_features_of_a_perceptron() -> None:
    f0, f1 = FixedLayersMLPCostModel(3, 2).feature_matrices([CONFIG])
    np.testing.assert_allclose(f0, [[1.0]])
    np.testing.assert_allclose(f1, [[1.0, WEIGHTS]])
    f0, f1 = FixedLayersMLPCostModel(3, 2, bs_exponent=0.5, extra_mlp=True, c0_mlp_feature=True).feature_matrices(
        [CONFIG, CONFIG | {"batch_size": 4}]
    )
    np.testing.assert_allclose(f0, [[1.0, WEIGHTS]] * 2)
    np.testing.assert_allclose(f1, [[1.0, WEIGHTS / 4, 12 / 4], [1.0, WEIGHTS / 2, 12 / 2]])


def test_names_of_the_widths() -> None:
    model = FixedLayersMLPCostModel(3, 2, num_units_keys=["width"])
    assert model.feature_matrices([{"width": 10}])[1].tolist() == [[1.0, 50.0]]
    with pytest.raises(ValueError, match="'width'.*did you mean 'widht'"):
        model.feature_matrices([{"widht": 10}])
    with pytest.raises(ValueError, match="batch_size"):
        FixedLayersMLPCostModel(3, 2, ["width"], bs_exponent=0.5).feature_matrices([{"width": 10}])
    with pytest.raises(ValueError, match="num_units_keys"):
        FixedLayersMLPCostModel(3, 2, [])
    with pytest.raises(TypeError, match="num_units_keys"):
        FixedLayersMLPCostModel(3, 2, "width")


def test_features_are_one_at_the_expected_widths() -> None:
    space = {"n_units_1": randint(1, 99), "n_units_2": 20, "lr": loguniform(1e-4, 1)}
    expected, values = FixedLayersMLPCostModel.get_expected_hidden_layer_width(space, ["n_units_1", "n_units_2"])
    assert values == [50.0, 20.0]
    assert [expected(0), expected(1)] == values
    model = FixedLayersMLPCostModel(3, 2, extra_mlp=True, c0_mlp_feature=True, expected_hidden_layer_width=expected)
    f0, f1 = model.feature_matrices([{"n_units_1": 50, "n_units_2": 20}, {"n_units_1": 10, "n_units_2": 20}])
    np.testing.assert_allclose(f1[0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(f1[1], [1.0, (30 + 200 + 40) / (150 + 1000 + 40), 30 / 70])
    np.testing.assert_allclose(f0, f1[:, :2])
    with pytest.raises(ValueError, match="n_units_3.*did you mean"):
        FixedLayersMLPCostModel.get_expected_hidden_layer_width(space, ["n_units_3"])


def test_expected_features_average_to_one_under_random_sampling() -> None:
    space = {"n_units_1": randint(10, 90), "n_units_2": uniform(5.0, 15.0)}
    expected, _ = FixedLayersMLPCostModel.get_expected_hidden_layer_width(space, list(space))
    model = FixedLayersMLPCostModel(4, 3, extra_mlp=True, expected_hidden_layer_width=expected)
    generator = np.random.default_rng(0)
    configs = [
        {"n_units_1": int(generator.integers(10, 91)), "n_units_2": float(generator.uniform(5, 15))}
        for _ in range(4000)
    ]
    np.testing.assert_allclose(model.feature_matrices(configs)[1].mean(axis=0), 1.0, atol=0.04)


def variable_depth(**options: Any) -> MLPLinearCostModel:
    return MLPLinearCostModel(
        4,
        2,
        num_hidden_layers=lambda c: c["depth"],
        hidden_layer_width=lambda c, layer: c["width"] - layer,
        batch_size=lambda c: c["bs"],
        **options,
    )


def test_networks_of_different_depth_keep_their_proportions() -> None:
    shallow, deep = {"depth": 0, "width": 9, "bs": 1}, {"depth": 2, "width": 9, "bs": 1}
    plain = variable_depth(extra_mlp=True)
    np.testing.assert_allclose(plain.feature_matrices([shallow, deep])[1], [[1, 8, 0], [1, 36 + 72 + 16, 17]])
    scaled = variable_depth(extra_mlp=True, expected_hidden_layer_width=lambda layer: 5.0)
    scaled.update(observe([shallow, deep], lambda c: 1.0, lambda c: c["depth"] + 1.0, [1, 2]))
    # The expected sizes are 8 and 4 * 5 + 5 * 5 + 5 * 2 = 55 weights, 0 and 10 hidden units.
    both = [[1, 8 / 31.5, 0], [1, 124 / 31.5, 17 / 5]]
    np.testing.assert_allclose(scaled.feature_matrices([shallow, deep])[1], both)
    np.testing.assert_allclose(scaled.feature_matrices([deep])[1], both[1:])


@pytest.mark.parametrize("exponent", [None, 0.3])
@pytest.mark.parametrize("expected", [None, lambda layer: 30.0])
def test_costs_of_perceptrons_are_recovered(exponent: float | None, expected: Any) -> None:
    options: dict[str, Any] = {"bs_exponent": exponent, "extra_mlp": True, "c0_mlp_feature": True}
    model = variable_depth(expected_hidden_layer_width=expected, alphas=EXACT, **options)
    truth = variable_depth(**options)

    def c0(config: Mapping[str, Any]) -> float:
        return float(truth.feature_matrices([config])[0][0] @ [2.0, 0.01])

    def c1(config: Mapping[str, Any]) -> float:
        return float(truth.feature_matrices([config])[1][0] @ [1.0, 0.002, 0.1])

    configs = [{"depth": d, "width": w, "bs": b} for d in (1, 2, 3) for w in (10, 25) for b in (8, 32)]
    model.update(observe(configs, c0, c1, [1, 2, 5]))
    test = {"depth": 2, "width": 40, "bs": 64}
    (value,) = model.sample_joint([test])
    assert value.c0 == pytest.approx(c0(test), rel=1e-4)
    assert value.c1 == pytest.approx(c1(test), rel=1e-4)


def test_the_batch_size_matters_only_with_an_exponent() -> None:
    configs = [{"depth": 1, "width": 9, "bs": b} for b in (1, 100)]
    same = variable_depth().feature_matrices(configs)[1]
    other = variable_depth(bs_exponent=0.9).feature_matrices(configs)[1]
    np.testing.assert_array_equal(same[0], same[1])
    assert other[0, 1] == pytest.approx(other[1, 1] * 100**0.1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_inputs": 0}, ValueError),
        ({"num_outputs": 1.5}, TypeError),
        ({"num_inputs": True}, TypeError),
        ({"bs_exponent": float("inf")}, ValueError),
        ({"num_hidden_layers": 2}, TypeError),
        ({"hidden_layer_width": None}, TypeError),
        ({"batch_size": 32}, TypeError),
        ({"expected_hidden_layer_width": [3.0]}, TypeError),
    ],
)
def test_bad_arguments_of_perceptrons(options: dict[str, Any], error: type[Exception]) -> None:
    good: dict[str, Any] = {
        "num_inputs": 1,
        "num_outputs": 1,
        "num_hidden_layers": lambda c: 1,
        "hidden_layer_width": lambda c, layer: 1,
        "batch_size": lambda c: 1,
    }
    with pytest.raises(error, match=next(iter(options))):
        MLPLinearCostModel(**(good | options))


def test_widths_and_batch_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="hidden_layer_width"):
        variable_depth().feature_matrices([{"depth": 1, "width": 0, "bs": 1}])
    with pytest.raises(ValueError, match="batch_size"):
        variable_depth(bs_exponent=0.5).feature_matrices([{"depth": 1, "width": 1, "bs": 0}])


# ---- the contract --------------------------------------------------------------------------------


def test_event_times() -> None:
    cost = CostValue(10.0, 2.0)
    assert cost.at(3) == 16.0
    assert CostModel.event_time(100.0, 0, 3, cost) == 116.0
    assert CostModel.event_time(100.0, 1, 3, cost) == 104.0
    model = BiasOnlyLinearCostModel()
    values = [cost, CostValue(1.0, 1.0)]
    assert model.predict_times([{}, {}], [3, 4], values, start_time=5.0) == [21.0, 10.0]
    assert model.predict_times([{}], [1], values[:1]) == [12.0]
    with pytest.raises(ValueError, match="same length"):
        model.predict_times([{}], [1, 2], values)
    with pytest.raises(ValueError, match="resources"):
        model.predict_times([{}], [0], values[:1])


def test_models_without_randomness() -> None:
    model = BiasOnlyLinearCostModel()
    model.update([CostObservation({}, 1, 2.0)])
    before = model.sample_joint([{}])
    generator = np.random.default_rng(0)
    model.resample(generator)
    assert model.sample_joint([{}]) == before
    assert generator.random() == np.random.default_rng(0).random()
    assert model.cost_metric_name == "cost"
    assert model.state_dict() == {}
    model.load_state_dict({})
    with pytest.raises(ValueError, match="'weights'"):
        model.load_state_dict({"weights": 1})


def test_a_model_must_be_fitted_first_and_with_data() -> None:
    model = BiasOnlyLinearCostModel()
    with pytest.raises(RuntimeError, match="update"):
        model.sample_joint([{}])
    with pytest.raises(ValueError, match="observations"):
        model.update([])
    with pytest.raises(TypeError, match=r"observations\[0\]"):
        model.update([({}, 1, 2.0)])  # type: ignore[list-item]
    model.update([CostObservation({}, 1, 2.0)])
    assert model.sample_joint([]) == []


@pytest.mark.parametrize(
    ("resource", "cost", "error"),
    [
        (0, 1.0, ValueError),
        (1.5, 1.0, TypeError),
        (True, 1.0, TypeError),
        ("1", 1.0, TypeError),
        (1, -1.0, ValueError),
        (1, float("nan"), ValueError),
        (1, float("inf"), ValueError),
        (1, "2", TypeError),
        (1, None, TypeError),
    ],
)
def test_bad_observations(resource: Any, cost: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="resource|cost"):
        CostObservation({}, resource, cost)


def test_numbers_of_numpy_are_taken() -> None:
    observation = CostObservation({}, np.int64(3), np.float32(2.0))  # type: ignore[arg-type]
    assert type(observation.resource) is int
    assert type(observation.cost) is float
