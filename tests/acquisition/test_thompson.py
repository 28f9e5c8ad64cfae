"""Draws of functions from the posterior."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from sthyper.acquisition.optimize import optimize_acquisition
from sthyper.acquisition.space import MixedSpace
from sthyper.acquisition.thompson import ThompsonSampling
from sthyper.config_space import choice, randint, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.gp_model import GPModel
from sthyper.surrogates.inputs import InputStructure

SPACE = {"x": uniform(0, 1), "c": choice(["a", "b", "d"]), "n": randint(1, 50)}
NUM_DRAWS = 500


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(kernel: str, categorical: str, n: int = 8) -> tuple[MixedSpace, GPModel]:
    encoder = SpaceEncoder(SPACE)
    space = MixedSpace(encoder)
    X = space.sample(n, generator(1))
    structure = InputStructure.of_space(encoder)
    options = GPOptions(kernel=kernel, categorical_kernel=categorical)
    return space, GaussianProcess(structure, options).fit(X, torch.sin(5 * X).sum(-1))


def draws(model: GPModel, X: Tensor, num_features: int = 64) -> Tensor:
    return torch.stack(
        [-ThompsonSampling(model, generator(i), num_features)(X.unsqueeze(-2)) for i in range(NUM_DRAWS)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "categorical"), [("matern52-ard", "exchangeable"), ("rbf-ard", "one-hot")])
def test_mean_and_covariance_are_those_of_the_posterior(kernel: str, categorical: str) -> None:
    space, model = problem(kernel, categorical)
    X = torch.cat([space.sample(4, generator(5)), model.inputs[:1]])
    with torch.no_grad():
        posterior = model.posterior(X)
    mean, covariance = posterior.mean.squeeze(-1), posterior.distribution.covariance_matrix
    found = draws(model, X)
    std = covariance.diagonal().sqrt()
    assert float(((found.mean(0) - mean) / std).abs().max()) < 5 / math.sqrt(NUM_DRAWS)
    scaled = torch.cov(found.T) / torch.outer(std, std)
    expected = covariance / torch.outer(std, std)
    # The standard error of an entry is at most (2 / 500)^(1/2) = 0.06 for normal variables.
    assert float((scaled - expected).abs().mean()) < 0.1
    assert float(expected.fill_diagonal_(0.0).abs().max()) > 0.15


def test_the_draw_depends_on_the_generator_only() -> None:
    space, model = problem("matern52-ard", "one-hot")
    X = space.sample(5, generator(5)).unsqueeze(-2)
    before = torch.random.get_rng_state()
    one = ThompsonSampling(model, generator(1))
    first = one(X)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, ThompsonSampling(model, generator(1))(X))
    assert not torch.allclose(first, ThompsonSampling(model, generator(2))(X))
    assert not torch.allclose(first, ThompsonSampling(model, generator(1), num_features=16)(X))
    # Where there are data, all functions go through them.
    at_data = model.inputs.unsqueeze(-2)
    exact = model.with_data(model.inputs, model.targets, torch.full_like(model.noise, 1e-8))
    assert torch.allclose(-ThompsonSampling(exact, generator(3))(at_data), model.targets, atol=1e-2)


@pytest.mark.parametrize("odd", [0, 3, -2])
def test_the_number_of_features_is_checked(odd: int) -> None:
    _, model = problem("matern52-ard", "one-hot")
    with pytest.raises(ValueError, match="num_features must be even"):
        ThompsonSampling(model, generator(), odd)


def test_of_a_batch_one_member_is_drawn() -> None:
    _, model = problem("matern52-ard", "one-hot")
    batch = model.fantasize_pending(model.inputs[:1] * 0.5, 3, generator())
    X = batch.inputs[-1:].unsqueeze(-2)
    values = {round(-float(ThompsonSampling(batch, generator(i))(X)), 1) for i in range(30)}
    near = [any(abs(value - float(z)) < 0.3 for z in batch.targets[:, -1]) for value in values]
    assert len(values) > 1
    assert sum(near) >= 0.8 * len(near)


def test_the_optimum_of_the_draw_is_found() -> None:
    space, model = problem("matern52-ard", "one-hot", 20)
    acquisition = ThompsonSampling(model, generator(4))
    best = optimize_acquisition(acquisition, space, model.inputs[:5], generator(0))[0]
    X = space.sample(2_000, generator(9))
    with torch.no_grad():
        assert best.value >= float(acquisition(X.unsqueeze(-2)).max()) - 1e-3
        assert float(acquisition(best.x[None, None])) == pytest.approx(best.value, abs=1e-9)


def test_models_of_botorch_have_their_marginals() -> None:
    X = torch.rand(6, 2, generator=generator(0), dtype=torch.float64)
    model = SingleTaskGP(X, torch.sin(5 * X).sum(-1, keepdim=True)).eval()
    at = torch.rand(3, 2, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        posterior = model.posterior(at.unsqueeze(-2))
        mean, std = posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()
        found = torch.stack([-ThompsonSampling(model, generator(i), 64)(at.unsqueeze(-2)) for i in range(200)])
    z = (found - mean) / std
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(200)
    assert float((z.std(0) - 1).abs().max()) < 5 / math.sqrt(2 * 200)
    one = ThompsonSampling(model, generator(0))
    assert torch.equal(one(at.unsqueeze(-2)), one(at.unsqueeze(-2)))
    near = torch.stack([at[0], at[0] + 1e-6]).unsqueeze(-2)
    a, b = one(near).tolist()
    assert abs(a - b) < 1e-3
