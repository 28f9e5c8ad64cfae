"""Derivatives in closed form: of scaled inputs, of predictions, and of what a search evaluates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sthyper.acquisition.base import log_expected_improvement, log_expected_improvement_of
from sthyper.config_space import choice, randint, uniform
from sthyper.encoding import SpaceEncoder
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.inputs import InputStructure
from sthyper.surrogates.kernels import KernelForm

SPACE = {"x": uniform(0, 1), "n": randint(1, 9), "c": choice(["a", "b", "c"])}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("categorical", ["one-hot", "exchangeable"])
@pytest.mark.parametrize("warping", [True, False])
def test_scaled_inputs_have_the_derivatives_of_differences(inverse: bool, categorical: str, warping: bool) -> None:
    form = KernelForm(InputStructure.of_space(SpaceEncoder(SPACE)), "matern52-ard", categorical, warping=warping)
    X = rand(6, 5).mul(0.9).add(0.05)
    scale = rand(len(form.lengthscale_names), seed=1) + 0.3
    a, b = rand(len(form.warped), seed=2) + 0.5, rand(len(form.warped), seed=3) + 0.5

    def scaled(X: Tensor, scale: Tensor, *exponents: Tensor) -> Tensor:
        values = {"lengthscale": scale, **dict(zip(("warping_a", "warping_b"), exponents, strict=False))}
        return torch.cat(form.scaled(X, values, inverse), -1)

    inputs = [t.requires_grad_(True) for t in ((X, scale, a, b) if warping else (X, scale))]
    assert torch.autograd.gradcheck(scaled, inputs)
    # With a batch of parameters autograd does it all.
    batched = scaled(X, *(t.unsqueeze(0) for t in inputs[1:])).squeeze(0)
    assert torch.allclose(scaled(*inputs), batched, rtol=1e-12, atol=1e-14)
    weights = rand(*batched.shape, seed=4)
    ours = torch.autograd.grad((weights * scaled(*inputs)).sum(), inputs)
    theirs = torch.autograd.grad((weights * batched).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("categorical", ["one-hot", "exchangeable"])
@pytest.mark.parametrize("fantasies", [False, True])
def test_predictions_have_the_derivatives_of_differences(categorical: str, fantasies: bool) -> None:
    encoder = SpaceEncoder(SPACE)
    process = GaussianProcess(InputStructure.of_space(encoder), GPOptions(categorical_kernel=categorical))
    X = rand(25, encoder.ndarray_size)
    model = process.fit(X, (X**2).sum(1))
    if fantasies:
        model = model.fantasize_pending(rand(2, encoder.ndarray_size, seed=5), 4, torch.Generator().manual_seed(0))
    points = rand(3, encoder.ndarray_size, seed=6).requires_grad_(True)
    assert torch.autograd.gradcheck(model.predict, points)
    for one, other in zip(model.predict(points), model.predict(points.detach()), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_a_variance_at_its_floor_has_no_derivative() -> None:
    process = GaussianProcess(1)
    X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
    process.fit(X, torch.sin(3 * X[:, 0]))
    known = process.build(X, torch.sin(3 * X[:, 0]), refit=False)
    exact = known.with_data(X, known.targets, torch.full((1,), 1e-30, dtype=torch.float64))
    point = X[3:4].clone().requires_grad_(True)
    _, variance = exact.predict(point)
    (slope,) = torch.autograd.grad(variance.sum(), point)
    assert float(variance.detach()) <= 1e-8
    assert abs(float(slope)) < 1e-3


@pytest.mark.parametrize("u", [-300.0, -30.0, -3.0, -0.5, 0.0, 2.0])
def test_expected_improvement_in_one_step(u: float) -> None:
    best, std = torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.2, 1.5], dtype=torch.float64)
    mean = best - u * std
    mean, std = mean.requires_grad_(True), std.requires_grad_(True)
    value = log_expected_improvement_of(best, mean, std)
    assert torch.allclose(value, log_expected_improvement((best - mean) / std) + std.log(), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda m, s: log_expected_improvement_of(best, m, s), (mean, std), rtol=1e-4)
