"""Estimators in the style of scikit-learn as surrogates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, ScalarizedPosteriorTransform
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import BaggingRegressor, ExtraTreesRegressor, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge, LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from sthyper.surrogates.sklearn import SKLearnModel, SKLearnSurrogate
from sthyper.surrogates.sklearn_estimators import SKLearnEstimator, SKLearnPredictor


def data(n: int = 30, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, dtype=torch.float64, generator=generator)
    return X, 100 + 50 * (X - 0.3).square().sum(dim=1) + 0.5 * noise


class Quadratic(SKLearnPredictor):
    """mean = a (x - c)^2 and std = 1 + b x, summed over coordinates, with gradients by hand."""

    def __init__(self, a: float) -> None:
        self.a = a
        self.calls = 0

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        return self.a * ((X - 0.3) ** 2).sum(axis=1), 1 + 0.1 * X.sum(axis=1)

    def backward_gradient(self, input: np.ndarray, head_gradients: dict[str, np.ndarray]) -> np.ndarray:
        assert head_gradients["mean"].shape == head_gradients["std"].shape == (1,)
        return head_gradients["mean"] * 2 * self.a * (input - 0.3) + head_gradients["std"] * 0.1 * np.ones_like(input)


class QuadraticEstimator(SKLearnEstimator):
    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize
        self.a = 1.0
        self.seen: list[tuple[np.ndarray, np.ndarray, bool]] = []

    def fit(self, X: np.ndarray, y: np.ndarray, update_params: bool) -> SKLearnPredictor:
        self.seen.append((X, y, update_params))
        if update_params:
            basis = ((X - 0.3) ** 2).sum(axis=1)
            self.a = float(basis @ y / (basis @ basis))
        return Quadratic(self.a)

    def get_params(self) -> dict[str, Any]:
        return {"a": np.float64(self.a), "note": "x"}

    def set_params(self, param_dict: dict[str, Any]) -> None:
        self.a = param_dict["a"]

    @property
    def normalize_targets(self) -> bool:
        return self.normalize


# ---- estimators of one's own -------------------------------------------------------------------------


def test_an_estimator_gets_the_data_and_its_predictions_come_back() -> None:
    estimator = QuadraticEstimator()
    X, Y = data()
    model = SKLearnSurrogate(estimator).fit(X, Y)
    (seen_X, seen_y, update_params) = estimator.seen[0]
    assert update_params is True
    assert seen_X.shape == (30, 2)
    np.testing.assert_array_equal(seen_X, X.numpy())
    np.testing.assert_array_equal(seen_y, Y.numpy())  # normalize_targets is False
    points = torch.rand(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    posterior = model.posterior(points)
    assert posterior.mean.shape == posterior.variance.shape == (4, 3, 1)
    assert posterior.mean.dtype == torch.float64
    torch.testing.assert_close(posterior.mean.squeeze(-1), estimator.a * (points - 0.3).square().sum(dim=-1))
    torch.testing.assert_close(posterior.variance.squeeze(-1), (1 + 0.1 * points.sum(dim=-1)).square())
    assert model.predictor.calls == 1  # all points at once
    assert model.posterior(points.float()).mean.dtype == torch.float32
    assert torch.equal(model.train_inputs[0], X)
    assert torch.equal(model.train_targets, Y)


def test_update_params_is_what_refit_says() -> None:
    estimator = QuadraticEstimator()
    surrogate = SKLearnSurrogate(estimator)
    X, Y = data()
    surrogate.fit(X, Y)
    before = surrogate.parameters()
    surrogate.fit(X, 3 * Y, refit=False)
    assert surrogate.parameters() == before == {"a": estimator.a}
    surrogate.fit(X, 3 * Y, refit=True)
    assert surrogate.parameters()["a"] == pytest.approx(3 * before["a"])
    assert [update for _, _, update in estimator.seen] == [True, False, True]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_predictions_can_be_taken_back_to_raw_units(normalize: bool | None, own: bool) -> None:
    X, Y = data()
    estimator = QuadraticEstimator(normalize=True) if own else LinearRegression()
    surrogate = SKLearnSurrogate(estimator, normalize_targets=normalize)
    model = surrogate.fit(X, Y)
    if normalize is not False:
        assert float(model.train_targets.mean()) == pytest.approx(0, abs=1e-12)
        assert float(model.train_targets.std(correction=0)) == pytest.approx(1)
    else:
        assert torch.equal(model.train_targets, Y)
    torch.testing.assert_close(surrogate.transform.inverse(model.train_targets), Y)
    if not own:
        raw = surrogate.transform.inverse(model.posterior(X.unsqueeze(1)).mean.reshape(-1))
        fitted = torch.from_numpy(LinearRegression().fit(X.numpy(), Y.numpy()).predict(X.numpy()))
        assert (raw - fitted).abs().max() < 2.0  # the mean of ten bootstraps; targets lie between 100 and 170
        assert (raw - Y).abs().mean() < 5.0


def test_gradients_are_those_of_the_predictor() -> None:
    X, Y = data()
    model = SKLearnSurrogate(QuadraticEstimator(normalize=True)).fit(X, Y)
    assert model.differentiable
    acquisition = LogExpectedImprovement(model, best_f=float(model.train_targets.min()), maximize=False)
    points = torch.rand(5, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(acquisition, (points,))
    joint = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def heads(points: Tensor) -> tuple[Tensor, Tensor]:
        posterior = model.posterior(points)
        return posterior.mean, posterior.variance

    assert torch.autograd.gradcheck(heads, (joint,))


def test_without_backward_gradient_the_gradient_is_zero() -> None:
    X, Y = data()
    model = SKLearnSurrogate(RandomForestRegressor(n_estimators=5)).fit(X, Y)
    assert not model.differentiable
    points = torch.rand(4, 1, 2, dtype=torch.float64).requires_grad_()
    LogExpectedImprovement(model, best_f=0.0, maximize=False)(points).sum().backward()
    assert torch.equal(points.grad, torch.zeros_like(points))


def test_state_holds_plain_parameters_only() -> None:
    X, Y = data()
    first = SKLearnSurrogate(QuadraticEstimator(normalize=True))
    first.fit(X, Y)
    state = first.state_dict()
    assert type(state["params"]["a"]) is float
    second = SKLearnSurrogate(QuadraticEstimator(normalize=True))
    second.load_state_dict(state)
    assert second.parameters() == first.parameters()
    assert second.transform.state_dict() == first.transform.state_dict()
    torch.testing.assert_close(
        second.fit(X, Y, refit=False).posterior(X).mean, first.fit(X, Y, refit=False).posterior(X).mean
    )

    class WithObjects(QuadraticEstimator):
        def get_params(self) -> dict[str, Any]:
            return {"a": self.a, "object": object()}

    third = SKLearnSurrogate(WithObjects())
    third.fit(X, Y)
    assert third.state_dict()["params"] == {}
    assert third.parameters() == {"a": third.estimator.a}


def test_an_estimator_without_parameters_says_so() -> None:
    class Plain(SKLearnEstimator):
        def fit(self, X: np.ndarray, y: np.ndarray, update_params: bool) -> SKLearnPredictor:
            return Quadratic(1.0)

    assert Plain().get_params() == {}
    assert Plain().normalize_targets is False
    Plain().set_params({})
    with pytest.raises(ValueError, match=r"Plain has no parameters, got param_dict with \['a'\]"):
        Plain().set_params({"a": 1.0})


# ---- scikit-learn regressors -------------------------------------------------------------------------


def test_forest_deviations_are_those_over_its_trees() -> None:
    X, Y = data()
    for make in (RandomForestRegressor, ExtraTreesRegressor):
        model = SKLearnSurrogate(make(n_estimators=20), random_seed=3, normalize_targets=False).fit(X, Y)
        points = torch.rand(50, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        posterior = model.posterior(points)
        forest = model.predictor.regressor
        single = np.stack([tree.predict(points[:, 0].numpy()) for tree in forest.estimators_])
        np.testing.assert_allclose(posterior.mean.numpy().ravel(), forest.predict(points[:, 0].numpy()))
        np.testing.assert_allclose(posterior.variance.numpy().ravel(), np.maximum(single.var(axis=0), 1e-10))
        assert single.std(axis=0).mean() > 0.1


def test_bagging_deviations_respect_the_columns_of_its_members() -> None:
    X, Y = data(d=4)
    bagging = BaggingRegressor(DecisionTreeRegressor(max_depth=3), n_estimators=8, max_features=0.5)
    model = SKLearnSurrogate(bagging, normalize_targets=False).fit(X, Y)
    mean = model.posterior(X.unsqueeze(1)).mean.numpy().ravel()
    np.testing.assert_allclose(mean, model.predictor.regressor.predict(X.numpy()))


def test_return_std_is_used_where_it_is() -> None:
    X, Y = data()
    model = SKLearnSurrogate(BayesianRidge(), normalize_targets=False).fit(X, Y)
    mean, std = BayesianRidge().fit(X.numpy(), Y.numpy()).predict(X.numpy(), return_std=True)
    posterior = model.posterior(X)
    np.testing.assert_allclose(posterior.mean.numpy().ravel(), mean)
    np.testing.assert_allclose(posterior.variance.sqrt().numpy().ravel(), std)


@pytest.mark.parametrize(
    "last", [BayesianRidge(), RandomForestRegressor(n_estimators=5), KNeighborsRegressor(n_neighbors=3)]
)
def test_a_pipeline_is_treated_as_its_last_step(last: Any) -> None:
    X, Y = data()
    # Standardised inputs change nothing for trees, and for distances only if the scales of the columns differ.
    bare = SKLearnSurrogate(last).fit(X, Y).posterior(X)
    piped = SKLearnSurrogate(make_pipeline(make_pipeline(StandardScaler()), last)).fit(X, Y).posterior(X)
    if not isinstance(last, KNeighborsRegressor):
        torch.testing.assert_close(piped.mean, bare.mean, rtol=0.05, atol=0.05)
        torch.testing.assert_close(piped.variance, bare.variance, rtol=0.3, atol=0.03)
    assert float((piped.mean.squeeze() - bare.mean.squeeze()).abs().mean()) < 0.1
    assert float(piped.variance.mean()) > 1e-4


def test_other_regressors_are_bootstrapped() -> None:
    X, Y = data()
    few = SKLearnSurrogate(LinearRegression(), num_bootstrap=3).fit(X, Y)
    many = SKLearnSurrogate(LinearRegression(), num_bootstrap=200).fit(X, Y)
    assert len(few.predictor.regressors) == 3
    assert len(SKLearnSurrogate(LinearRegression()).fit(X, Y).predictor.regressors) == 10
    # What the bootstrap variance of a linear prediction tends to: x' (A^-1 X' diag(e^2) X A^-1) x, residuals e.
    Z = many.train_targets
    design = torch.cat([torch.ones(30, 1, dtype=torch.float64), X], dim=1)
    inverse = (design.T @ design).inverse()
    residuals = Z - design @ (inverse @ (design.T @ Z))
    covariance = inverse @ (design.T * residuals.square()) @ design @ inverse
    sandwich = (design @ covariance * design).sum(dim=1)
    posterior = many.posterior(X.unsqueeze(1))
    assert float((posterior.variance.reshape(-1) / sandwich).log().abs().max()) < 0.6
    torch.testing.assert_close(posterior.mean.reshape(-1), Z - residuals, rtol=0.0, atol=0.1)


def test_the_given_regressor_stays_unfitted_and_earlier_models_stay_as_they_are() -> None:
    X, Y = data()
    forest = RandomForestRegressor(n_estimators=5)
    surrogate = SKLearnSurrogate(forest)
    first = surrogate.fit(X, Y)
    before = first.posterior(X).mean
    surrogate.fit(X, -Y)
    assert not hasattr(forest, "estimators_")
    assert forest.random_state is None
    assert torch.equal(first.posterior(X).mean, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomForestRegressor(n_estimators=5),
        lambda: make_pipeline(StandardScaler(), RandomForestRegressor(n_estimators=5)),
        lambda: DecisionTreeRegressor(max_features=1),
    ],
)
def test_the_seed_decides_and_numpy_is_left_alone(make: Any) -> None:
    X, Y = data()
    state = np.random.get_state()  # noqa: NPY002
    first, again, other = (SKLearnSurrogate(make(), random_seed=s).fit(X, Y).posterior(X).mean for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    fixed = RandomForestRegressor(n_estimators=5, random_state=7)  # a seed of one's own stays
    assert torch.equal(*(SKLearnSurrogate(fixed, random_seed=s).fit(X, Y).posterior(X).mean for s in (1, 2)))


def gaussian_process() -> GaussianProcessRegressor:
    kernel = ConstantKernel(2.0, "fixed") * RBF([1.0, 2.0]) + WhiteKernel(0.1)
    return GaussianProcessRegressor(kernel)


@pytest.mark.parametrize("piped", [False, True])
def test_a_gaussian_process_keeps_its_kernel_unless_it_is_refitted(piped: bool) -> None:
    X, Y = data()
    regressor = make_pipeline(StandardScaler(), gaussian_process()) if piped else gaussian_process()
    surrogate = SKLearnSurrogate(regressor)
    assert surrogate.parameters() == {}
    surrogate.fit(X[:15], Y[:15])
    fitted = surrogate.parameters()
    assert set(fitted) == {"k1__k2__length_scale0", "k1__k2__length_scale1", "k2__noise_level"}
    assert fitted["k1__k2__length_scale1"] != 2.0
    model = surrogate.fit(X, Y, refit=False)
    assert surrogate.parameters() == fitted
    # The posterior is that of all data all the same.
    assert float((model.posterior(X).mean.squeeze(-1) - model.train_targets).abs().max()) < 1.0
    resumed = SKLearnSurrogate(regressor)
    resumed.load_state_dict(surrogate.state_dict())
    assert resumed.parameters() == pytest.approx(fitted, rel=1e-12)
    torch.testing.assert_close(resumed.fit(X, Y, refit=False).posterior(X).mean, model.posterior(X).mean)
    surrogate.fit(X, Y, refit=True)
    assert surrogate.parameters() != fitted
    with pytest.raises(ValueError, match="param_dict must have the names"):
        surrogate.estimator.set_params({"length": 1.0})


def test_the_kernel_that_stands_for_none_is_kept_too() -> None:
    X, Y = data()
    regressor = GaussianProcessRegressor(alpha=0.1)
    first, second = SKLearnSurrogate(regressor), SKLearnSurrogate(regressor)
    first.fit(X, Y)
    second.load_state_dict(first.state_dict())
    assert second.parameters() == pytest.approx(first.parameters(), rel=1e-12)
    means = [surrogate.fit(X, Y, refit=False).posterior(X).mean for surrogate in (first, second)]
    torch.testing.assert_close(*means)


# ---- the model ---------------------------------------------------------------------------------------


def test_samples_have_the_deviation_of_the_posterior_and_points_are_independent() -> None:
    X, Y = data()
    posterior = SKLearnSurrogate(QuadraticEstimator()).fit(X, Y).posterior(X[:3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = posterior.rsample(torch.Size([20000])).squeeze(-1)
    torch.testing.assert_close(samples.mean(dim=0), posterior.mean.squeeze(-1), rtol=0.0, atol=0.05)
    torch.testing.assert_close(samples.T.cov(), posterior.variance.squeeze(-1).diag(), rtol=0.05, atol=0.05)


def test_arguments_of_the_posterior() -> None:
    X, Y = data()
    model = SKLearnSurrogate(QuadraticEstimator()).fit(X, Y)
    points = X[:5].unsqueeze(1)
    plain = model.posterior(points, output_indices=[0])
    assert model.num_outputs == 1
    assert model.batch_shape == ()
    noisy = model.posterior(points, observation_noise=torch.full((5, 1, 1), 2.0, dtype=torch.float64))
    torch.testing.assert_close(noisy.variance, plain.variance + 2)
    scaled = model.posterior(points, posterior_transform=ScalarizedPosteriorTransform(torch.tensor([-2.0]).double()))
    torch.testing.assert_close(scaled.mean, -2 * plain.mean)
    torch.testing.assert_close(scaled.variance, 4 * plain.variance)
    with pytest.raises(ValueError, match=r"output_indices must be None or \[0\], got \[1\]"):
        model.posterior(points, output_indices=[1])
    with pytest.raises(ValueError, match="observation_noise=True is not possible"):
        model.posterior(points, observation_noise=True)


def test_a_deviation_of_zero_is_floored() -> None:
    X, Y = data()
    model = SKLearnSurrogate(RandomForestRegressor(n_estimators=3)).fit(X, torch.full_like(Y, 5.0))
    points = X.unsqueeze(1).clone().requires_grad_()
    assert (model.posterior(points).variance == 1e-10).all()
    value = LogExpectedImprovement(model, best_f=0.0, maximize=False)(points)
    value.sum().backward()
    assert value.isfinite().all()


def test_one_observation_is_enough() -> None:
    X, Y = data(1)
    for regressor in (RandomForestRegressor(n_estimators=3), gaussian_process(), LinearRegression()):
        posterior = SKLearnSurrogate(regressor).fit(X, Y).posterior(X)
        assert posterior.mean.isfinite().all()
        assert (posterior.variance > 0).all()


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ((np.zeros(3), np.ones(4)), r"means of shape \(4,\), got \(3,\)"),
        ((np.zeros(4), np.ones((1, 4))), r"standard deviations of shape \(4,\), got \(1, 4\)"),
        ((np.full(4, np.nan), np.ones(4)), "finite means, got nan"),
        ((np.zeros(4), np.full(4, -1.0)), "standard deviations that are not negative, got -1.0"),
    ],
)
def test_wrong_predictions_are_named(predictions: tuple[np.ndarray, np.ndarray], message: str) -> None:
    class Wrong(SKLearnPredictor):
        def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return predictions

    X, Y = data(4)
    with pytest.raises(ValueError, match=message):
        SKLearnModel(Wrong(), X, Y).posterior(X)


def test_columns_of_shape_n_1_are_taken() -> None:
    class Columns(SKLearnPredictor):
        def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return X[:, :1], X[:, 1:2]

    X, Y = data(4)
    posterior = SKLearnModel(Columns(), X, Y).posterior(X)
    torch.testing.assert_close(posterior.mean, X[:, :1])
    torch.testing.assert_close(posterior.variance.sqrt(), X[:, 1:2])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"or a scikit-learn regressor.*make an object of it: DummyRegressor\(\)"):
        SKLearnSurrogate(DummyRegressor)
    for wrong in (LogisticRegression(), StandardScaler(), 3, None):
        with pytest.raises(TypeError, match="estimator must be a SKLearnEstimator or a scikit-learn regressor"):
            SKLearnSurrogate(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="random_seed must be a non-negative int, got -1"):
        SKLearnSurrogate(DummyRegressor(), random_seed=-1)
    with pytest.raises(TypeError, match="random_seed must be a non-negative int, got None"):
        SKLearnSurrogate(DummyRegressor(), random_seed=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_bootstrap must be an int, at least 2, or None, got 1"):
        SKLearnSurrogate(DummyRegressor(), num_bootstrap=1)
    with pytest.raises(ValueError, match="num_bootstrap=5 has no effect: RandomForestRegressor gives deviations"):
        SKLearnSurrogate(RandomForestRegressor(), num_bootstrap=5)
    with pytest.raises(ValueError, match="num_bootstrap=5 is for scikit-learn regressors"):
        SKLearnSurrogate(QuadraticEstimator(), num_bootstrap=5)

    class Nothing(QuadraticEstimator):
        def fit(self, X: np.ndarray, y: np.ndarray, update_params: bool) -> SKLearnPredictor:
            return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match="fit of Nothing must return a SKLearnPredictor, got None"):
        SKLearnSurrogate(Nothing()).fit(*data())
