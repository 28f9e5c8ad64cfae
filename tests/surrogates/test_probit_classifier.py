"""The classifier of failures."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import integrate, stats

from sthyper.acquisition.constrained import ModelledConstraint
from sthyper.surrogates.classifier import ProbitClassifier, ProbitModel
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.kernels import KernelForm


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VALUES = {
    "lengthscale": torch.tensor([0.4, 0.7], dtype=torch.float64),
    "outputscale": torch.tensor([1.5], dtype=torch.float64),
    "mean": torch.tensor([0.3], dtype=torch.float64),
}


def model_of(X: torch.Tensor, success: torch.Tensor) -> tuple[ProbitModel, KernelForm]:
    form = KernelForm(InputStructure.plain(X.shape[-1]), warping=False)
    return ProbitModel(X, success, form, VALUES), form


def test_the_posterior_is_that_of_an_equivalent_regression() -> None:
    # Rasmussen and Williams (2006), eqs. 3.21 and 3.24, with plain inverses.
    X, T = points(9, 2), points(5, 2, 1)
    success = X[:, 0] < 0.6
    model, form = model_of(X, success)
    K = 1.5 * form.correlation(form.scaled(X, VALUES), form.scaled(X, VALUES))
    k = 1.5 * form.correlation(form.scaled(T, VALUES), form.scaled(X, VALUES))
    sign = torch.where(success, 1.0, -1.0).double()
    f = 0.3 + K @ model._alpha
    ratio = torch.exp(torch.distributions.Normal(0.0, 1.0).log_prob(f) - torch.special.log_ndtr(sign * f))
    # At the mode the gradient of the likelihood is that of the prior.
    assert torch.allclose(model._alpha, sign * ratio, atol=1e-6)
    W = torch.diag(ratio * (ratio + sign * f))
    posterior = model.posterior(T)
    covariance = 1.5 * form.correlation(form.scaled(T, VALUES), form.scaled(T, VALUES))
    expected = covariance - k @ torch.linalg.inv(K + torch.linalg.inv(W)) @ k.T
    assert torch.allclose(posterior.mean.squeeze(-1), 0.3 + k @ torch.linalg.inv(K) @ (f - 0.3), atol=1e-6)
    assert torch.allclose(posterior.distribution.covariance_matrix, expected, atol=1e-6)
    single = model.posterior(T.unsqueeze(-2))
    assert torch.allclose(single.variance.flatten(), expected.diagonal(), atol=1e-6)
    noisy = model.posterior(T.unsqueeze(-2), observation_noise=True)
    assert torch.allclose(noisy.variance.flatten(), expected.diagonal() + 1.0, atol=1e-6)


def test_the_probability_is_near_the_exact_one() -> None:
    # One observation: E[Phi(f*) Phi(f)] / E[Phi(f)] by quadrature.
    X, T = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.6, 0.5]], dtype=torch.float64)
    for success in (True, False):
        model, form = model_of(X, torch.tensor([success]))
        rho = float(form.correlation(form.scaled(T, VALUES), form.scaled(X, VALUES)))
        sign = 1.0 if success else -1.0

        def both(z: float, rho: float = rho, sign: float = sign) -> float:
            f = 0.3 + math.sqrt(1.5) * z
            mean, variance = 0.3 + rho * (f - 0.3), 1.5 * (1 - rho**2)
            star = stats.norm.cdf(mean / math.sqrt(1 + variance))
            return float(stats.norm.pdf(z) * stats.norm.cdf(sign * f) * star)

        total = stats.norm.cdf(sign * 0.3 / math.sqrt(2.5))
        exact = integrate.quad(both, -8, 8)[0] / total
        assert float(model.success_probability(T)) == pytest.approx(exact, abs=0.03)


def test_the_constraint_of_an_acquisition_function_is_the_probability() -> None:
    X = points(12, 2)
    model, _ = model_of(X, X[:, 0] < 0.5)
    T = points(6, 2, 3)
    constraint = ModelledConstraint(model, lower=0.0, noise=1.0)
    assert torch.allclose(constraint.log_probability(T.unsqueeze(-2)).exp(), model.success_probability(T), atol=1e-12)


def test_the_gradient_of_the_fit_is_exact() -> None:
    X = points(8, 2)
    classifier = ProbitClassifier(2)
    success = X[:, 0] + 0.3 * X[:, 1] < 0.6
    theta = (classifier.layout.init + 0.3).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda t: classifier.negative_log_posterior(t, X, success), (theta,), eps=1e-5, atol=1e-4
    )


def test_the_evidence_is_near_the_exact_one() -> None:
    # The sum over all outcomes is 1, which the approximation nearly keeps.
    X = points(4, 2)
    classifier = ProbitClassifier(2)
    theta = classifier.layout.init
    prior = float(classifier.layout.negative_log_prior(classifier.layout.unpack(theta)))
    total = sum(
        math.exp(prior - float(classifier.negative_log_posterior(theta, X, torch.tensor(outcome))))
        for outcome in itertools.product((True, False), repeat=4)
    )
    assert total == pytest.approx(1.0, abs=0.1)


def test_few_failures_are_no_certainty_and_many_are() -> None:
    X = points(40, 3)
    success = X[:, 0] < 0.5
    T = points(300, 3, 9)
    truth = T[:, 0] < 0.5
    losses = []
    for n in (4, 12, 40):
        p = ProbitClassifier(3).fit(X[:n], success[:n]).success_probability(T)
        losses.append(float(-torch.where(truth, p, 1.0 - p).log().mean()))
        if n == 4:
            assert 0.05 < float(p.min()) < float(p.max()) < 0.97
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] < 0.75  # never much worse than a coin
    assert losses[2] < 0.2


def test_only_failures() -> None:
    X = points(6, 2)
    p = ProbitClassifier(2).fit(X, torch.zeros(6, dtype=torch.bool)).success_probability(X)
    assert bool((p < 0.3).all())


def test_parameters_are_kept_without_a_refit_and_in_the_state() -> None:
    X = points(30, 2)
    success = X[:, 0] < 0.5
    classifier = ProbitClassifier(2, seed=1)
    classifier.fit(X[:20], success[:20])
    before = classifier.parameters()
    assert set(before) == {"lengthscale_x0", "lengthscale_x1", "outputscale", "mean"}
    assert before["lengthscale_x0"] < before["lengthscale_x1"]
    twin = ProbitClassifier(2, seed=2)
    assert twin.parameters() == {}
    twin.load_state_dict(classifier.state_dict())
    kept = classifier.fit(X, success, refit=False)
    assert classifier.parameters() == before
    assert torch.equal(twin.fit(X, success, refit=False).posterior(X[:, None]).mean, kept.posterior(X[:, None]).mean)
    classifier.fit(X, success)
    assert classifier.parameters() != before


def test_many_trials_are_thinned_with_the_same_part_of_failures(monkeypatch: Any) -> None:
    monkeypatch.setattr("sthyper.surrogates.classifier._MAX_POINTS", 40)
    X = points(200, 2)
    success = X[:, 0] < 0.8
    model = ProbitClassifier(2).fit(X, success)
    assert len(model._sign) == 40
    assert float((model._sign < 0).double().mean()) == pytest.approx(float((~success).double().mean()), abs=0.03)
    p = model.success_probability(points(200, 2, 5))
    assert float(((p > 0.5) == (points(200, 2, 5)[:, 0] < 0.8)).double().mean()) > 0.9
