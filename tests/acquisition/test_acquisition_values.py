"""Closed forms of acquisition functions: values, gradients, averages, other libraries' models."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import LogExpectedImprovement as BoTorchLogEI
from botorch.acquisition.analytic import UpperConfidenceBound
from botorch.models import SingleTaskGP
from scipy.integrate import quad
from torch import Tensor

from sthyper.acquisition.base import MeanStdAcquisition, log_expected_improvement
from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement, ProbabilityOfImprovement
from sthyper.acquisition.lcb import LowerConfidenceBound
from sthyper.acquisition.monte_carlo import JointExpectedImprovement, NoisyExpectedImprovement
from sthyper.acquisition.thompson import IndependentThompsonSampling, ThompsonSampling
from sthyper.surrogates.gp import GaussianProcess
from sthyper.surrogates.gp_model import GPModel

D = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, seed: int = 0, d: int = D) -> Tensor:
    return torch.rand(n, d, generator=generator(seed), dtype=torch.float64)


def targets(X: Tensor) -> Tensor:
    return ((X - 0.3) ** 2).sum(-1) + torch.sin(7.0 * X).sum(-1)


@pytest.fixture(scope="module")
def process() -> GPModel:
    X = points(12)
    return GaussianProcess(D).fit(X, targets(X))


def reference_log_h(u: float) -> float:
    """log(phi(u) + u Phi(u)) by an integral that does not cancel."""
    if u > -1.0:
        return math.log(math.exp(-0.5 * u * u) / math.sqrt(2 * math.pi) + u * 0.5 * math.erfc(-u / math.sqrt(2)))
    # h(u) = phi(u) / u^2 int_0^inf s exp(-s - s^2 / (2 u^2)) ds
    integral = quad(lambda s: s * math.exp(-s - s * s / (2 * u * u)), 0, 60, epsabs=0, epsrel=1e-13)[0]
    return -0.5 * u * u - 0.5 * math.log(2 * math.pi) + math.log(integral) - 2 * math.log(-u)


@pytest.mark.parametrize(
    "u", [-1e6, -1e5, -1e3, -200.0, -100.001, -99.999, -50.0, -20.0, -5.0, -1.001, -0.999, 0.0, 1.0, 5.0, 10.0]
)
def test_the_logarithm_of_the_improvement_is_accurate(u: float) -> None:
    value = float(log_expected_improvement(torch.tensor(u, dtype=torch.float64)))
    assert value == pytest.approx(reference_log_h(u), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("u", [-1e6, -300.0, -101.0, -99.0, -30.0, -3.0, -1.01, -0.99, 0.0, 2.0, 9.0])
def test_its_derivative_is_that_of_the_values(u: float) -> None:
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_expected_improvement(x), x)
    step = 1e-5 * max(1.0, abs(u))
    around = [reference_log_h(u - step), reference_log_h(u + step)]
    assert float(gradient) == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-6)


def test_values_and_derivatives_are_finite_and_monotone_everywhere() -> None:
    up = torch.logspace(-3, 149, 2000, dtype=torch.float64)
    u = torch.cat([-up.flip(0), up])
    u.requires_grad_(True)
    value = log_expected_improvement(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert bool((value.diff() >= 0).all())
    # The derivative of the logarithm falls: h is log-concave.
    assert bool((gradient.diff() <= 1e-9 * gradient[:-1].abs()).all())
    inside = (u > -1e5) & (u < 1e5)
    assert bool((value[inside].diff() > 0).all())


def moments(model: GPModel, X: Tensor) -> tuple[Tensor, Tensor]:
    posterior = model.posterior(X.unsqueeze(-2))
    return posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_improvements_equal_monte_carlo(process: GPModel, jitter: float) -> None:
    X = points(20, 1)
    mean, std = moments(process, X)
    best = 0.2
    draws = mean + std * torch.randn(100_000, 20, generator=generator(2), dtype=torch.float64)
    improvement = (best - jitter - draws).clamp_min(0.0)
    ei = ExpectedImprovement(process, best, jitter)(X.unsqueeze(-2))
    error = 5.0 * improvement.std(0) / math.sqrt(len(draws))
    assert bool(((ei - improvement.mean(0)).abs() <= error).all())
    assert torch.allclose(LogExpectedImprovement(process, best, jitter)(X.unsqueeze(-2)), ei.log(), atol=1e-12)
    better = (draws < best - jitter).double()
    pi = ProbabilityOfImprovement(process, best, jitter)(X.unsqueeze(-2))
    assert bool(((pi - better.mean(0)).abs() <= 5.0 * better.std(0) / math.sqrt(len(draws)) + 1e-12).all())
    log_pi = ProbabilityOfImprovement(process, best, jitter, log=True)(X.unsqueeze(-2))
    assert torch.allclose(log_pi, pi.log(), atol=1e-10)


def test_the_confidence_bound(process: GPModel) -> None:
    X = points(5, 1)
    mean, std = moments(process, X)
    for kappa in (0.5, 2.0):
        assert torch.allclose(LowerConfidenceBound(process, kappa)(X.unsqueeze(-2)), kappa * std - mean)
    with pytest.raises(ValueError, match="kappa must be positive"):
        LowerConfidenceBound(process, 0.0)


ACQUISITIONS: dict[str, Callable[[GPModel], AcquisitionFunction]] = {
    "logei": lambda m: LogExpectedImprovement(m, 0.1),
    "ei": lambda m: ExpectedImprovement(m, 0.1),
    "pi": lambda m: ProbabilityOfImprovement(m, 0.1),
    "logpi": lambda m: ProbabilityOfImprovement(m, 0.1, log=True),
    "lcb": lambda m: LowerConfidenceBound(m, 1.5),
    "thompson": lambda m: ThompsonSampling(m, generator(3)),
    "thompson_member": lambda m: ThompsonSampling(m.fantasize_pending(points(2, 9), 5, generator(1)), generator(3)),
    "fantasies": lambda m: LogExpectedImprovement(
        m.fantasize_pending(points(2, 9), 5, generator(1)), torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    ),
    "joint": lambda m: JointExpectedImprovement(m, 0.1, points(2, 9), generator(1), num_samples=64),
    "nei": lambda m: NoisyExpectedImprovement(m, m.inputs, generator(1), 8, log=False),
    "lognei": lambda m: NoisyExpectedImprovement(m, m.inputs, generator(1), 8),
}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_gradients_equal_finite_differences(process: GPModel, name: str) -> None:
    acquisition = ACQUISITIONS[name](process)
    X = points(6, 5).unsqueeze(-2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(acquisition(X).sum(), X)
    assert bool(gradient.abs().amax() > 1e-6)
    step = 1e-6
    for column in range(D):
        shift = torch.zeros(D, dtype=torch.float64)
        shift[column] = step
        with torch.no_grad():
            numeric = (acquisition(X + shift) - acquisition(X - shift)) / (2 * step)
        assert torch.allclose(gradient[:, 0, column], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_values_do_not_depend_on_the_batch_nor_on_the_call(process: GPModel, name: str) -> None:
    acquisition = ACQUISITIONS[name](process)
    X = points(7, 5).unsqueeze(-2)
    together = acquisition(X)
    assert together.shape == (7,)
    assert torch.allclose(together, torch.cat([acquisition(x.unsqueeze(0)) for x in X]), atol=1e-9)
    assert torch.equal(acquisition(X), together)
    assert acquisition(X.reshape(7, 1, 1, D)).shape == (7, 1)


@pytest.mark.parametrize("make", [LogExpectedImprovement, ExpectedImprovement, ProbabilityOfImprovement])
def test_the_average_over_fantasies_is_that_of_single_ones(
    process: GPModel, make: Callable[..., MeanStdAcquisition]
) -> None:
    model = process.fantasize_pending(points(3, 8), 4, generator())
    best = torch.tensor([0.3, 0.0, -0.1, 0.2], dtype=torch.float64)
    X = points(6, 7).unsqueeze(-2)
    together = make(model, best)(X)
    single = torch.stack([make(model.member(i), best[i])(X) for i in range(4)])
    expected = single.exp().mean(0).log() if make is LogExpectedImprovement else single.mean(0)
    assert torch.allclose(together, expected, atol=1e-10)


def test_the_bound_is_averaged_over_fantasies(process: GPModel) -> None:
    model = process.fantasize_pending(points(3, 8), 4, generator())
    X = points(6, 7).unsqueeze(-2)
    single = torch.stack([LowerConfidenceBound(model.member(i))(X) for i in range(4)])
    assert torch.allclose(LowerConfidenceBound(model)(X), single.mean(0), atol=1e-10)


def test_functions_of_botorch_on_our_process(process: GPModel) -> None:
    X = points(8, 3).unsqueeze(-2)
    theirs = BoTorchLogEI(process, best_f=0.1, maximize=False)(X)
    assert torch.allclose(LogExpectedImprovement(process, 0.1)(X), theirs, atol=1e-8)
    theirs = UpperConfidenceBound(process, beta=4.0, maximize=False)(X)
    assert torch.allclose(LowerConfidenceBound(process, 2.0)(X), theirs, atol=1e-8)


def test_ours_on_a_model_of_botorch() -> None:
    X = points(12)
    Z = targets(X)
    Z = (Z - Z.mean()) / Z.std()
    model = SingleTaskGP(X, Z.unsqueeze(-1)).eval()
    at = points(8, 3).unsqueeze(-2)
    theirs = BoTorchLogEI(model, best_f=Z.min(), maximize=False)(at)
    assert torch.allclose(LogExpectedImprovement(model, Z.min())(at), theirs, atol=1e-8)
    posterior = model.posterior(at)
    bound = posterior.variance.sqrt().reshape(-1) - posterior.mean.reshape(-1)
    assert torch.allclose(LowerConfidenceBound(model)(at), bound, atol=1e-8)


def test_where_nothing_is_uncertain_nothing_is_nan(process: GPModel) -> None:
    X = process.inputs.unsqueeze(-2).clone().requires_grad_(True)
    exact = process.with_data(process.inputs, process.targets, torch.full_like(process.noise, 1e-10))
    for best in (-1e8, 0.0, 1e8):
        acquisition = LogExpectedImprovement(exact, best)
        value = acquisition(X)
        (gradient,) = torch.autograd.grad(value.sum(), X)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())


def test_independent_draws_have_the_marginal_distribution(process: GPModel) -> None:
    X = points(4, 6)
    mean, std = moments(process, X)
    draws = torch.stack([-IndependentThompsonSampling(process, generator(i))(X.unsqueeze(-2)) for i in range(1000)])
    z = (draws - mean) / std
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(1000)
    assert float((z.std(0) - 1).abs().max()) < 5 / math.sqrt(2 * 1000)
    assert float((torch.corrcoef(z.T) - torch.eye(4)).abs().max()) < 5 / math.sqrt(1000)
    assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.04)
    # Points that differ in the last digits have other draws, equal points the same ones.
    near = torch.cat([X[:1], X[:1] + 1e-14, X[:1]]).unsqueeze(-2)
    a, b, c = IndependentThompsonSampling(process, generator(0))(near).tolist()
    assert a == c
    assert abs(a - b) > 1e-6
