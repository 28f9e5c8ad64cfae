"""The likelihood of the Gaussian process against closed forms, GPyTorch and finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.likelihood import safe_cholesky

# Two numbers, a categorical with three values, one with two (a single column of 1/4 and 3/4), and one of three that
# tells the task.
NAMES, GROUPS = ("u", "v", "kind", "flag", "task"), (0, 1, 2, 2, 2, 3, 4, 4, 4)
CATEGORICAL = (False, False, True, True, True)
PLAIN = InputStructure(NAMES[:4], GROUPS[:6], CATEGORICAL[:4])
WITH_TASK = InputStructure(NAMES, GROUPS, CATEGORICAL, task=4)


@dataclass(frozen=True)
class Case:
    """One form of the process."""

    kernel: str = "matern52-ard"
    categorical: str = "one-hot"
    task: bool = False
    transfer: str = "matern52_product"
    warping: bool = True
    preset: str = "default"
    transform: str = "standardize"

    def process(self) -> GaussianProcess:
        options = GPOptions(
            preset=self.preset,
            kernel=self.kernel,
            categorical_kernel=self.categorical,
            transfer_kernel=self.transfer,
            input_warping=self.warping,
            target_transform=self.transform,
        )
        return GaussianProcess(WITH_TASK if self.task else PLAIN, options)


CASES = {
    "usual": Case(),
    "halflog": Case(transform="halflog"),
    "no warping": Case(warping=False),
    "one lengthscale": Case("matern52-noard"),
    "rbf": Case("rbf-ard"),
    "rbf, one lengthscale": Case("rbf-noard", warping=False),
    "exchangeable": Case(categorical="exchangeable"),
    "rbf, exchangeable": Case("rbf-ard", "exchangeable"),
    "one lengthscale, exchangeable": Case("matern52-noard", "exchangeable", warping=False),
    "product over tasks": Case(task=True),
    "same for all tasks": Case(task=True, transfer="matern52_same"),
    "product over tasks, exchangeable": Case("rbf-ard", "exchangeable", task=True),
    "syne-tune": Case(preset="syne-tune"),
    "syne-tune, no warping": Case(preset="syne-tune", warping=False),
    "syne-tune, one lengthscale": Case("matern52-noard", preset="syne-tune"),
    "syne-tune, exchangeable": Case(categorical="exchangeable", preset="syne-tune"),
    "syne-tune, product over tasks": Case(task=True, preset="syne-tune"),
    "box-cox": Case(transform="boxcox"),
    "syne-tune, box-cox": Case(preset="syne-tune", transform="boxcox", warping=False),
}


def data(case: Case, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points with edges and duplicates among them, and positive targets."""
    rng = np.random.default_rng(seed)
    numbers = rng.random((n, 2))
    numbers[0] = [0.0, 1.0]
    if n > 2:
        numbers[2] = numbers[1]
    kind, flag, task = rng.integers(3, size=n), rng.integers(2, size=n), rng.integers(3, size=n)
    columns = [numbers, np.eye(3)[kind], 0.25 + 0.5 * flag[:, None]] + ([np.eye(3)[task]] if case.task else [])
    y = 2.0 + np.sin(5 * numbers[:, 0]) + numbers[:, 1] ** 2 + 0.3 * kind + 0.1 * task + 0.1 * rng.random(n)
    return torch.from_numpy(np.concatenate(columns, 1)), torch.from_numpy(y)


def some_parameters(process: GaussianProcess, seed: int = 0) -> Tensor:
    return process.layout.random_start(torch.Generator().manual_seed(seed))


def correlation(case: Case, values: dict[str, np.ndarray], A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return the correlation matrix, hyperparameter by hyperparameter."""
    inverse = case.preset == "syne-tune"
    lengths = iter(values["lengthscale"])
    family, ard = case.kernel.split("-")

    def radial(name: str, r2: np.ndarray) -> np.ndarray:
        if name == "rbf":
            return np.exp(-r2 / 2)
        r = np.sqrt(5 * r2)
        return (1 + r + r * r / 3) * np.exp(-r)

    def divided(delta2: np.ndarray, length: float) -> np.ndarray:
        return delta2 * length**2 if inverse else delta2 / length**2

    if case.warping and not case.task:
        A, B = A.copy(), B.copy()
        for column in (0, 1):
            a, b = values["warping_a"][column], values["warping_b"][column]
            for points in (A, B):
                x = points[:, column] * (1 - 2e-6) + 1e-6
                points[:, column] = 1 - (1 - x**a) ** b
    delta2 = (A[:, None, :] - B[None, :, :]) ** 2
    # Two categories are 1 apart: one-hot columns are sqrt(2) apart, those of the single column 1/2.
    delta2[..., 6:] *= 0.5
    if not inverse:  # which leaves the other columns as they are
        delta2[..., 2:5] *= 0.5
        delta2[..., 5] *= 4.0
    own = {0: [0], 1: [1], 2: [2, 3, 4], 3: [5]}
    usual = [0, 1] if case.categorical == "exchangeable" else [0, 1, 2, 3]
    r2 = np.zeros(delta2.shape[:2])
    shared = next(lengths) if ard == "noard" else None
    for group in usual:
        length = None
        for column in own[group]:
            if shared is not None:
                length = shared
            elif length is None or inverse:  # one a column in this preset
                length = next(lengths)
            r2 += divided(delta2[..., column], length)
    result = radial(family, r2)
    if case.categorical == "exchangeable":
        for group in (2, 3):
            length = next(lengths)
            differs = (delta2[..., own[group]] > 0).any(-1)
            result = result * np.where(differs, np.exp(-length if inverse else -1 / length), 1.0)
    if case.task and case.transfer == "matern52_product":
        result = result * radial("matern52", divided(delta2[..., 6:].sum(-1), next(lengths)))
    assert next(lengths, None) is None
    return result


def unpacked(process: GaussianProcess, theta: Tensor) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in process.layout.unpack(theta).items()}


def closed_form(case: Case, values: dict[str, np.ndarray], X: Tensor, targets: Tensor) -> float:
    """Return the negative log density of the targets; of raw ones, with the Jacobian, for Box-Cox."""
    y, jacobian = targets.numpy(), 0.0
    if case.transform == "boxcox":
        power = values["boxcox"].item()
        z = (y**power - 1) / power
        # d z / d y = y^(p - 1), and the standardisation divides by the deviation.
        jacobian = -((power - 1) * np.log(y)).sum() + (len(y) * np.log(max(z.std(), 1e-9)))
        y = (z - z.mean()) / max(z.std(), 1e-9)
    K = values["outputscale"] * correlation(case, values, X.numpy(), X.numpy()) + values["noise"] * np.eye(len(y))
    r = y - values["mean"]
    return float(
        0.5 * r @ np.linalg.solve(K, r) + 0.5 * np.linalg.slogdet(K)[1] + len(y) / 2 * np.log(2 * np.pi) + jacobian
    )


def targets_of(case: Case, Y: Tensor) -> Tensor:
    process = case.process()
    if case.transform == "boxcox":
        return Y
    process.transform.fit(Y)
    return process.transform.forward(Y)


def likelihood(process: GaussianProcess, theta: Tensor, X: Tensor, targets: Tensor) -> Tensor:
    return process.negative_log_posterior(theta, X, targets) - process.layout.negative_log_prior(
        process.layout.unpack(theta)
    )


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("name", list(CASES))
def test_the_likelihood_is_the_closed_form(name: str, n: int) -> None:
    case = CASES[name]
    X, Y = data(case, n)
    targets = targets_of(case, Y)
    for seed in range(3):
        process = case.process()
        theta = some_parameters(process, seed)
        expected = closed_form(case, unpacked(process, theta), X, targets)
        assert likelihood(process, theta, X, targets).item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", ["usual", "exchangeable", "product over tasks", "syne-tune", "box-cox"])
def test_the_likelihood_of_many_points_is_the_closed_form(name: str) -> None:
    case = CASES[name]
    X, Y = data(case, 900)
    targets = targets_of(case, Y)
    process = case.process()
    theta = some_parameters(process)
    expected = closed_form(case, unpacked(process, theta), X, targets)
    assert likelihood(process, theta, X, targets).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [1, 2, 50, 900])
@pytest.mark.parametrize("name", ["usual", "exchangeable", "rbf", "syne-tune", "product over tasks"])
def test_gpytorch_says_the_same(name: str, n: int) -> None:
    case = CASES[name]
    X, Y = data(case, n)
    process = case.process()
    process._theta = some_parameters(process)
    Z = targets_of(case, Y)
    model = process.build(X, Z, refit=False)
    expected = likelihood(process, process._theta, X, Z).item()
    model.train()
    exact = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.max_cholesky_size(5000):
        assert -n * exact(model(X), Z).item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


def finite_differences(function: Any, theta: Tensor, step: float = 1e-5) -> Tensor:
    rows = step * torch.eye(len(theta), dtype=theta.dtype)
    # Of fourth order: the errors of the function at 900 points allow no smaller step.
    return torch.stack(
        [
            (8 * (function(theta + e) - function(theta - e)) - function(theta + 2 * e) + function(theta - 2 * e))
            / (12 * step)
            for e in rows
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("name", list(CASES))
def test_gradients_are_finite_differences(name: str, n: int) -> None:
    case = CASES[name]
    X, Y = data(case, n)
    targets = targets_of(case, Y)
    process = case.process()
    theta = some_parameters(process).requires_grad_()

    def objective(t: Tensor) -> Tensor:
        return process.negative_log_posterior(t, X, targets)

    (gradient,) = torch.autograd.grad(objective(theta), theta)
    with torch.no_grad():
        expected = finite_differences(objective, theta.detach(), 1e-4)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max().clamp_min(1.0)))


@pytest.mark.parametrize("name", ["usual", "syne-tune", "exchangeable"])
@pytest.mark.slow
def test_gradients_of_many_points_are_finite_differences(name: str) -> None:
    case = CASES[name]
    X, Y = data(case, 900)
    targets = targets_of(case, Y)
    process = case.process()
    theta = some_parameters(process).requires_grad_()
    (gradient,) = torch.autograd.grad(process.negative_log_posterior(theta, X, targets), theta)
    direction = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        (expected,) = finite_differences(
            lambda t: process.negative_log_posterior(theta + t * direction, X, targets), torch.zeros(1).double(), 1e-3
        )
    assert gradient.dot(direction).item() == pytest.approx(float(expected), rel=1e-5)


def test_a_parameter_that_is_not_asked_for_costs_no_gradient() -> None:
    case = CASES["usual"]
    X, Y = data(case, 10)
    process = case.process()
    value = process.negative_log_posterior(some_parameters(process), X, targets_of(case, Y))
    assert not value.requires_grad


# ---- factorisations ----------------------------------------------------------------------------------


def test_a_good_matrix_is_factorised_as_it_is() -> None:
    A = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K = A @ A.mT + torch.eye(6, dtype=torch.float64)
    assert torch.equal(safe_cholesky(K), torch.linalg.cholesky(K))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("power", range(-9, 4))
def test_the_least_jitter_of_the_ladder_is_added(power: int, size: float) -> None:
    # One eigenvalue lies between the last jitter that does not suffice and the first that does.
    unit = max(1.0, size)
    lack = 0.5 * 10.0**power * unit
    base = torch.tensor([size, size, -lack], dtype=torch.float64)
    base[:2] += 0.5 * (lack + (3 * size - float(base.sum()) if size < lack else 0.0))
    K = torch.diag(base)
    unit = max(1.0, float(base.mean()))
    jitters = [1e-9 * 10.0**k * unit for k in range(13)]
    needed = next(jitter for jitter in jitters if jitter > lack)
    L = safe_cholesky(K)
    assert torch.allclose((L @ L.mT - K).diagonal(), torch.full((3,), needed).double(), rtol=1e-6)


def test_the_matrices_of_a_batch_get_the_same_jitter() -> None:
    good, bad = torch.eye(2).double(), torch.ones(2, 2).double() - 1e-12 * torch.eye(2).double()
    L = safe_cholesky(torch.stack([good, bad]))
    added = (L @ L.mT - torch.stack([good, bad])).diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(added, torch.full((2, 2), 1e-9).double(), atol=1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_without_numbers_is_refused(value: float) -> None:
    K = torch.eye(3, dtype=torch.float64)
    K[1, 1] = value
    with pytest.raises(ValueError, match="covariance matrix has no Cholesky factor"):
        safe_cholesky(K)


def test_a_hopeless_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no Cholesky factor"):
        safe_cholesky(-1e5 * torch.eye(2, dtype=torch.float64))


def test_duplicates_without_noise_have_a_likelihood() -> None:
    """Factorised with jitter, as the closed form with so much noise says."""
    case = Case(warping=False)
    X, Y = data(case, 20)
    X, Y = torch.cat([X, X]), torch.cat([Y, Y])
    targets = targets_of(case, Y)
    process = case.process()
    theta = some_parameters(process)
    theta[process.layout.slices["noise"]] = math.log(1e-18)
    value = likelihood(process, theta, X, targets).item()
    values = unpacked(process, theta)
    K = values["outputscale"] * correlation(case, values, X.numpy(), X.numpy())
    candidates = []
    for k in range(4):
        factor = cho_factor(K + 1e-9 * 10.0**k * max(1.0, K.diagonal().mean()) * np.eye(40), lower=True)
        r = targets.numpy() - values["mean"]
        candidates.append(0.5 * r @ cho_solve(factor, r) + np.log(np.diag(factor[0])).sum() + 20 * np.log(2 * np.pi))
    assert min(abs(value - c) / abs(c) for c in candidates) < 1e-5
