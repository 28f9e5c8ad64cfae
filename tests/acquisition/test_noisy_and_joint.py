"""Expected improvements by draws: with noise, together with pending points, with fantasies of any model."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement
from sthyper.acquisition.fantasies import FantasisedModel, can_fantasise
from sthyper.acquisition.monte_carlo import (
    JointExpectedImprovement,
    NoisyExpectedImprovement,
    SampledNoisyExpectedImprovement,
)
from sthyper.surrogates.gp import GaussianProcess
from sthyper.surrogates.gp_model import GPModel


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def process() -> GPModel:
    """A process of six observations with much noise."""
    X = points(6)
    model = GaussianProcess(2).fit(X, ((X - 0.4) ** 2).sum(-1))
    return model.with_data(X, model.targets, torch.full_like(model.noise, 0.2))


def drawn(model: GPModel, X: Tensor, n: int) -> Tensor:
    """Joint draws of the function, shape (n, m), by the covariance matrix itself."""
    posterior = model.posterior(X)
    L = torch.linalg.cholesky(posterior.distribution.covariance_matrix + 1e-9 * torch.eye(len(X)))
    return posterior.mean.squeeze(-1) + torch.randn(n, len(X), generator=generator(7), dtype=torch.float64) @ L.T


def test_noisy_improvement_equals_brute_force(process: GPModel) -> None:
    at = points(4, 3)
    noisy = NoisyExpectedImprovement(process, process.inputs, generator(1), 4000, log=False)(at.unsqueeze(-2))
    for x, value in zip(at, noisy.tolist(), strict=True):
        f = drawn(process, torch.cat([process.inputs, x.unsqueeze(0)]), 40_000)
        expected = (f[:, :-1].amin(-1) - f[:, -1]).clamp_min(0.0)
        assert value == pytest.approx(float(expected.mean()), rel=0.1, abs=1e-3)


def test_without_noise_it_is_the_expected_improvement(process: GPModel) -> None:
    exact = process.with_data(process.inputs, process.targets, torch.full_like(process.noise, 1e-9))
    at = points(4, 3).unsqueeze(-2)
    noisy = NoisyExpectedImprovement(exact, exact.inputs, generator(1), 4)(at)
    plain = LogExpectedImprovement(exact, exact.targets.min())(at)
    assert torch.allclose(noisy, plain, atol=0.02)
    assert not torch.allclose(LogExpectedImprovement(process, process.targets.min())(at), plain, atol=0.02)


def test_pending_points_and_repeated_ones_count(process: GPModel) -> None:
    at = points(4, 3).unsqueeze(-2)
    X = process.inputs

    def noisy(X: Tensor) -> Tensor:
        return NoisyExpectedImprovement(process, X, generator(1), 500)(at)

    assert torch.equal(noisy(torch.cat([X, X[:2]])), noisy(X))
    assert float(noisy(torch.cat([X, at.squeeze(-2)])).max()) < float(noisy(X).min())
    assert torch.allclose(noisy(X).exp(), NoisyExpectedImprovement(process, X, generator(1), 500, log=False)(at))


def test_the_sampled_form_agrees_with_it(process: GPModel) -> None:
    at = points(5, 3).unsqueeze(-2)
    before = torch.random.get_rng_state()
    ours = NoisyExpectedImprovement(process, process.inputs, generator(1), 2000)(at)
    theirs = SampledNoisyExpectedImprovement(process, process.inputs, generator(1), 1024)
    likely = ours > -5.0
    assert int(likely.sum()) >= 3
    assert torch.allclose(theirs(at)[likely], ours[likely], atol=0.15)
    plain = SampledNoisyExpectedImprovement(process, process.inputs, generator(1), 1024, log=False)
    assert torch.allclose(plain(at), theirs(at).exp())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_joint_improvement_equals_brute_force(process: GPModel, jitter: float) -> None:
    at, pending, best = points(4, 3), points(2, 4), 0.1
    before = torch.random.get_rng_state()
    joint = JointExpectedImprovement(process, best, pending, generator(), num_samples=2048, jitter=jitter, log=False)
    values = joint(at.unsqueeze(-2))
    log = JointExpectedImprovement(process, best, pending, generator(), num_samples=2048, jitter=jitter)
    assert torch.allclose(log(at.unsqueeze(-2)).exp(), values)
    assert torch.equal(torch.random.get_rng_state(), before)
    for x, value in zip(at, values.tolist(), strict=True):
        f = drawn(process, torch.cat([pending, x.unsqueeze(0)]), 40_000)
        expected = (best - jitter - f.amin(-1)).clamp_min(0.0)
        assert value == pytest.approx(float(expected.mean()), rel=0.05)


def test_joint_improvement_avoids_pending_points(process: GPModel) -> None:
    X = torch.rand(400, 2, generator=generator(5), dtype=torch.float64)
    alone = LogExpectedImprovement(process, 0.0)(X.unsqueeze(-2))
    best = X[alone.argmax()]
    with torch.no_grad():
        joint = JointExpectedImprovement(process, 0.0, best.unsqueeze(0), generator())(X.unsqueeze(-2))
    assert float((X[joint.argmax()] - best).abs().max()) > 0.1
    # The pending point itself, alone the best, adds next to nothing.
    least, most = joint.aminmax()
    assert float((joint[alone.argmax()] - least) / (most - least)) < 0.15


def test_joint_improvement_is_averaged_over_a_batch(process: GPModel) -> None:
    batch = process.fantasize_pending(points(1, 8), 3, generator())
    best = torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64)
    at, pending = points(4, 3).unsqueeze(-2), points(2, 4)
    together = JointExpectedImprovement(batch, best, pending, generator(2), 64, log=False)(at)
    single = [
        JointExpectedImprovement(batch.member(i), best[i], pending, generator(2), 64, log=False)(at) for i in range(3)
    ]
    assert torch.allclose(together, torch.stack(single).mean(0), atol=1e-10)


def test_fantasies_of_a_model_of_botorch() -> None:
    X = points(8)
    Z = torch.sin(5.0 * X).sum(-1)
    Z = (Z - Z.mean()) / Z.std()
    model = SingleTaskGP(X, Z.unsqueeze(-1)).eval()
    model.posterior(X[:1])
    pending, at = points(2, 4), points(5, 3).unsqueeze(-2)
    before = torch.random.get_rng_state()
    assert can_fantasise(model)
    fantasies = FantasisedModel(model, pending, 256, generator(1))
    again = FantasisedModel(model, pending, 256, generator(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    posterior = fantasies.posterior(at)
    assert posterior.mean.shape == (256, 5, 1, 1)
    assert torch.equal(again.posterior(at).mean, posterior.mean)
    assert not torch.equal(FantasisedModel(model, pending, 256, generator(2)).posterior(at).mean, posterior.mean)
    plain = model.posterior(at)
    assert fantasies.at_pending.shape == (256, 2)
    assert torch.allclose(posterior.mean.mean(0), plain.mean, atol=0.05)  # the law of total expectation
    assert bool((posterior.variance[0] < plain.variance + 1e-9).all())
    total = posterior.mean.var(0) + posterior.variance.mean(0)
    assert torch.allclose(total, plain.variance, rtol=0.2)
    # At a pending point little can be gained.
    X = torch.cat([pending.unsqueeze(-2), at])
    best = torch.minimum(Z.min(), fantasies.at_pending.amin(-1))
    values = ExpectedImprovement(fantasies, best)(X)
    assert values.shape == (7,)
    assert bool((values[:2] < ExpectedImprovement(model, Z.min())(X)[:2]).all())
    assert math.isfinite(float(values.detach().sum()))
