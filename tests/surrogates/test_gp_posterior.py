"""Predictions of the Gaussian process and its fantasies against closed forms and GPyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import gpytorch
import pytest
import torch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.posteriors import GPyTorchPosterior
from torch import Tensor

from sthyper.surrogates.bayesian_gp import BayesianGaussianProcess
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.marginals import marginals

D = 3
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, D, generator=generator(seed), dtype=torch.float64)


def targets(X: Tensor, seed: int = 1) -> Tensor:
    noise = 0.1 * torch.randn(X.shape[:-1], generator=generator(seed), dtype=torch.float64)
    return torch.sin(5 * X[..., 0]) + X[..., 1] - 0.5 * X[..., 2] ** 2 + noise


def values(seed: int = 0, batch: int | None = None) -> dict[str, Tensor]:
    """Return parameters, without a batch or with one."""
    process = GaussianProcess(D, GPOptions(input_warping=False))
    rows = torch.stack([process.layout.random_start(generator(seed + i)) for i in range(batch or 1)])
    unpacked = process.layout.unpack(rows if batch else rows[0])
    return {name: value for name, value in unpacked.items() if not name.startswith("warping")}


def model_of(X: Tensor, Z: Tensor, parameters: Mapping[str, Tensor]) -> GPModel:
    form = GaussianProcess(D, GPOptions(input_warping=False)).form
    empty = torch.empty(*parameters["noise"].shape[:-1], 0, dtype=torch.float64)
    return GPModel(X, Z, form, {**parameters, "warping_a": empty, "warping_b": empty})


def covariances(A: Tensor, B: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    delta = (A.unsqueeze(-2) - B.unsqueeze(-3)) / parameters["lengthscale"]
    r = (5 * delta.square().sum(-1)).sqrt()
    return parameters["outputscale"] * (1 + r + r**2 / 3) * torch.exp(-r)


def closed_form(X: Tensor, Z: Tensor, new: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and covariance at points of shape (q, d)."""
    K = covariances(X, X, parameters) + parameters["noise"] * torch.eye(len(X), dtype=torch.float64)
    k = covariances(new, X, parameters)
    mean = parameters["mean"] + k @ torch.linalg.solve(K, Z - parameters["mean"])
    return mean, covariances(new, new, parameters) - k @ torch.linalg.solve(K, k.mT)


@pytest.mark.parametrize("n", [1, 2, 40, 900])
def test_single_points_are_the_closed_form(n: int) -> None:
    X, parameters = points(n), values()
    Z = targets(X)
    new = torch.cat([points(6, seed=2), X[:1]])
    mean, covariance = closed_form(X, Z, new, parameters)
    model = model_of(X, Z, parameters)
    for shape in ((7, 1, D), (7, 1, 1, D)):
        posterior = model.posterior(new.reshape(shape))
        assert isinstance(posterior, GPyTorchPosterior)
        assert posterior.mean.shape == posterior.variance.shape == (*shape[:-1], 1)
        assert torch.allclose(posterior.mean.flatten(), mean, **TOLERANCE)
        assert torch.allclose(posterior.variance.flatten(), covariance.diagonal(), **TOLERANCE)
    for found in (model.predict(new), marginals(model, new)):
        assert torch.allclose(found[0], mean, **TOLERANCE)
        assert torch.allclose(found[1], covariance.diagonal(), **TOLERANCE)


@pytest.mark.parametrize("n", [1, 40, 900])
def test_joint_predictions_are_the_closed_form(n: int) -> None:
    X, parameters = points(n), values()
    Z = targets(X)
    model = model_of(X, Z, parameters)
    new = points(2, 2, 3, seed=2)
    distribution = model.posterior(new).distribution
    assert distribution.mean.shape == (2, 2, 3)
    for i in range(2):
        for j in range(2):
            mean, covariance = closed_form(X, Z, new[i, j], parameters)
            assert torch.allclose(distribution.mean[i, j], mean, **TOLERANCE)
            assert torch.allclose(distribution.covariance_matrix[i, j], covariance, **TOLERANCE)


@pytest.mark.parametrize("q", [1, 3])
def test_noise_of_observations_is_added_if_asked_for(q: int) -> None:
    X, parameters = points(20), values()
    model = model_of(X, targets(X), parameters)
    new = points(5, q, seed=2)
    without = model.posterior(new).distribution
    eye = torch.eye(q, dtype=torch.float64)
    own = model.posterior(new, observation_noise=True).distribution
    assert torch.allclose(own.covariance_matrix, without.covariance_matrix + parameters["noise"] * eye, **TOLERANCE)
    assert torch.equal(own.mean, without.mean)
    given = model.posterior(new, observation_noise=torch.tensor(0.3)).distribution
    assert torch.allclose(given.covariance_matrix, without.covariance_matrix + 0.3 * eye, **TOLERANCE)
    # One variance a point, in the shape that BoTorch's models take: batch x q x 1.
    each = torch.rand(5, q, 1, generator=generator(4), dtype=torch.float64)
    varied = model.posterior(new, observation_noise=each).distribution
    expected = without.covariance_matrix + torch.diag_embed(each.squeeze(-1))
    assert torch.allclose(varied.covariance_matrix, expected, **TOLERANCE)


@pytest.mark.parametrize("q", [1, 2])
def test_a_transform_is_applied_to_the_posterior(q: int) -> None:
    X = points(10)
    model = model_of(X, targets(X), values())
    new = points(4, q, seed=2)
    plain = model.posterior(new)
    changed = model.posterior(new, posterior_transform=ScalarizedPosteriorTransform(torch.tensor([-2.0]).double(), 1.0))
    assert torch.allclose(changed.mean, 1.0 - 2.0 * plain.mean, **TOLERANCE)
    assert torch.allclose(changed.variance, 4.0 * plain.variance, **TOLERANCE)


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("batch", [None, 4])
def test_predictions_are_differentiable_in_the_points(q: int, batch: int | None) -> None:
    X = points(12)
    Z = targets(X) if batch is None else torch.stack([targets(X, seed=i) for i in range(batch)])
    model = model_of(X, Z, values(batch=batch))

    def predict(new: Tensor) -> tuple[Tensor, Tensor]:
        distribution = model.posterior(new).distribution
        return distribution.mean, distribution.covariance_matrix

    assert torch.autograd.gradcheck(predict, points(2, q, seed=2).requires_grad_(), atol=1e-6, rtol=1e-5)


def test_warped_and_categorical_inputs_are_differentiable() -> None:
    process = GaussianProcess(D, GPOptions(max_iterations=5))
    X = points(12)
    model = process.fit(X, targets(X))
    assert torch.autograd.gradcheck(model.predict, points(5, seed=2).requires_grad_(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 40, 900])
@pytest.mark.parametrize("batch", [None, 3])
def test_gpytorch_predicts_the_same(n: int, batch: int | None) -> None:
    X, parameters = points(n), values(batch=batch)
    Z = targets(X) if batch is None else torch.stack([targets(X, seed=i) for i in range(batch)])
    model = model_of(X, Z, parameters)
    new = points(5, seed=2)
    with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.max_cholesky_size(5000):
        with torch.no_grad():
            expected = model(new if batch is None else new.expand(batch, 5, D))
            with_noise = model.likelihood(expected)
    for observation_noise, distribution in ((False, expected), (True, with_noise)):
        found = model.posterior(new, observation_noise=observation_noise).distribution
        assert torch.allclose(found.mean, distribution.mean, **TOLERANCE)
        assert torch.allclose(found.covariance_matrix, distribution.covariance_matrix, **TOLERANCE)


# ---- batches of parameters and of targets ------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 3])
def test_a_batch_of_parameters_is_a_loop_over_single_models(q: int) -> None:
    X, parameters = points(15), values(batch=4)
    Z = targets(X)
    model = model_of(X, Z.expand(4, -1), parameters)
    assert model.batch_shape == (4,)
    new = points(2, 5, q, seed=2)
    for noise in (False, True):
        together = model.posterior(new, observation_noise=noise)
        assert together.mean.shape == (4, 2, 5, q, 1)
        for i in range(4):
            single = model_of(X, Z, {name: value[i] for name, value in parameters.items()})
            posterior = single.posterior(new, observation_noise=noise)
            assert torch.allclose(together.mean[i], posterior.mean, **TOLERANCE)
            assert torch.allclose(
                together.distribution.covariance_matrix[i], posterior.distribution.covariance_matrix, **TOLERANCE
            )


def test_a_full_bayesian_fit_is_a_batch_of_its_samples() -> None:
    process = BayesianGaussianProcess(D, num_samples=3)
    process._samples = torch.stack([process.layout.random_start(generator(i)) for i in range(3)])
    X = points(12)
    Y = targets(X)
    process.transform.fit(Y)
    Z = process.transform.forward(Y)
    model = process.build(X, Z, refit=False)
    new = points(6, seed=2)
    mean, variance = model.predict(new)
    assert mean.shape == (3, 6)
    for i in range(3):
        single = GaussianProcess(D, GPOptions())
        single._theta = process._samples[i]
        expected = single.build(X, Z, refit=False).predict(new)
        assert torch.allclose(mean[i], expected[0], **TOLERANCE)
        assert torch.allclose(variance[i], expected[1], **TOLERANCE)


# ---- fantasies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 30, 900])
@pytest.mark.parametrize("m", [1, 4])
def test_fantasies_are_the_closed_form_of_the_extended_data(n: int, m: int) -> None:
    X, parameters = points(n), values()
    Z = targets(X)
    pending = points(m, seed=5)
    fantasies = model_of(X, Z, parameters).fantasize_pending(pending, 3, generator())
    assert fantasies.num_data == n + m
    assert fantasies.targets.shape == (3, n + m)
    assert torch.equal(fantasies.targets[:, :n], Z.expand(3, n))
    new = points(3, seed=2)
    joint = fantasies.posterior(new).distribution
    mean, variance = fantasies.predict(new)
    assert mean.shape == variance.shape == (3, 3)
    for i in range(3):
        expected = closed_form(torch.cat([X, pending]), fantasies.targets[i], new, parameters)
        assert torch.allclose(mean[i], expected[0], **TOLERANCE)
        assert torch.allclose(variance[i], expected[1].diagonal(), **TOLERANCE)
        assert torch.allclose(joint.mean[i], expected[0], **TOLERANCE)
        assert torch.allclose(joint.covariance_matrix[i], expected[1], **TOLERANCE)


def test_fantasies_are_draws_of_the_joint_posterior() -> None:
    X, parameters = points(8), values()
    model = model_of(X, targets(X), parameters)
    pending = points(3, seed=5)
    draws = model.sample_at(pending, 40000, generator())
    mean, covariance = closed_form(X, targets(X), pending, parameters)
    deviation = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * deviation / 200).all()
    assert torch.allclose(draws.T.cov(), covariance, atol=0.04 * float(deviation.max()) ** 2)
    fantasies = model.fantasize_pending(pending, 5, generator())
    assert torch.allclose(fantasies.targets[:, 8:], model.sample_at(pending, 5, generator()))
    assert not torch.allclose(
        fantasies.targets[:, 8:], model.fantasize_pending(pending, 5, generator(1)).targets[:, 8:]
    )


def test_each_set_of_parameters_gets_a_fantasy_of_its_own() -> None:
    X, parameters = points(10), values(batch=3)
    Z = targets(X)
    pending = points(2, seed=5)
    fantasies = model_of(X, Z.expand(3, -1), parameters).fantasize_pending(pending, 99, generator())
    assert fantasies.targets.shape == (3, 12)
    new = points(4, seed=2)
    mean, variance = fantasies.predict(new)
    for i in range(3):
        own = {name: value[i] for name, value in parameters.items()}
        expected = closed_form(torch.cat([X, pending]), fantasies.targets[i], new, own)
        assert torch.allclose(mean[i], expected[0], **TOLERANCE)
        assert torch.allclose(variance[i], expected[1].diagonal(), **TOLERANCE)


def test_pending_duplicates_of_observations_can_be_fantasised() -> None:
    X, parameters = points(10), values()
    parameters["noise"] = torch.tensor([1e-6]).double()
    model = model_of(X, targets(X), parameters)
    fantasies = model.fantasize_pending(torch.cat([X[:2], X[:2]]), 8, generator())
    assert torch.allclose(fantasies.targets[:, 10:12], model.targets[:2].expand(8, 2), atol=0.02)
    assert torch.isfinite(fantasies.predict(points(5))[0]).all()


def test_variances_stay_positive() -> None:
    X, parameters = points(30), values()
    parameters["noise"] = torch.tensor([1e-12]).double()
    model = model_of(X, targets(X), parameters)
    assert (model.predict(X)[1] >= 1e-12).all()
    assert (model.posterior(X).variance >= 1e-12).all()
    assert (model.posterior(X.unsqueeze(-2)).variance >= 1e-12).all()


def test_a_process_can_be_conditioned_as_botorch_does_it() -> None:
    """BoTorch's own look-ahead works: GPyTorch holds data, parameters and noise."""
    X, parameters = points(10), values()
    Z = targets(X)
    model = model_of(X, Z, parameters)
    more = points(2, seed=7)
    with gpytorch.settings.fast_computations(False, False, False):
        with torch.no_grad():
            model(points(1))
            conditioned = gpytorch.models.ExactGP.get_fantasy_model(model, more, targets(more))
            found = gpytorch.models.ExactGP.__call__(conditioned, points(4, seed=2))
    expected = closed_form(torch.cat([X, more]), torch.cat([Z, targets(more)]), points(4, seed=2), parameters)
    assert torch.allclose(found.mean, expected[0], rtol=1e-6, atol=1e-6)
