"""The Gaussian process with sampled parameters."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sthyper.surrogates import bayesian_gp
from sthyper.surrogates.bayesian_gp import BayesianGaussianProcess
from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.parameters import ParameterSpec, Preset
from sthyper.surrogates.priors import LogNormal, Normal, Uniform
from sthyper.surrogates.slice_sampling import SliceException, SliceSampler

QUICK = GPOptions(num_starts=1, max_iterations=10, input_warping=False)


def data(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=g, dtype=torch.float64)
    return X, torch.sin(4 * X[:, 0]) + X[:, 1] + 0.1 * torch.randn(n, generator=g, dtype=torch.float64)


def narrow() -> Preset:
    """Return a preset in which all but lengthscale and noise are all but fixed."""
    fixed = {"prior": Uniform(), "spread": 0.0}
    return Preset(
        lengthscale=ParameterSpec(0.5, 0.05, 10.0, LogNormal(-1.0, 0.7)),
        outputscale=ParameterSpec(1.0, 1.0 - 1e-9, 1.0 + 1e-9, **fixed),
        noise=ParameterSpec(0.05, 1e-3, 1.0, LogNormal(-3.0, 1.0)),
        mean=ParameterSpec(0.0, -1e-9, 1e-9, Normal(), log=False, spread=0.0),
        warping_a=ParameterSpec(1.0, 0.25, 4.0, Uniform()),
        warping_b=ParameterSpec(1.0, 0.25, 4.0, Uniform()),
    )


@pytest.mark.parametrize("options", [GPOptions(), QUICK, GPOptions(preset="syne-tune")])
def test_the_density_is_that_of_the_map_fit_over_the_vector(options: GPOptions) -> None:
    X, Y = data()
    process = BayesianGaussianProcess(2, options)
    process.transform.fit(Y)
    Z = process.transform.forward(Y)
    g = torch.Generator().manual_seed(1)
    theta = torch.stack([process.layout.random_start(g) for _ in range(6)])
    noise = process.layout.slices["noise"]
    theta[:, noise] = theta[:, noise].clamp_min(-5.0)  # against a jitter of 1e-9, which only this one adds
    found = process.log_density(theta, X, Z)
    expected = torch.stack([process.layout.log_jacobian(t) - process.negative_log_posterior(t, X, Z) for t in theta])
    # The rest is a constant.
    difference = found - expected
    assert float(difference.max() - difference.min()) < 1e-4


def test_there_is_no_density_outside_the_bounds() -> None:
    X, Y = data()
    process = BayesianGaussianProcess(2, QUICK)
    inside = process.layout.init
    outside = inside.clone()
    outside[process.layout.slices["noise"]] = 1.0
    found = process.log_density(torch.stack([inside, outside]), X, Y)
    assert math.isfinite(float(found[0]))
    assert float(found[1]) == -math.inf
    assert process.log_density(outside.unsqueeze(0), X, Y).tolist() == [-math.inf]


@pytest.mark.slow
def test_samples_are_those_of_the_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parameters, for which a grid gives the posterior means."""
    monkeypatch.setattr(bayesian_gp, "_BURN_FROM_START", 40)
    X, Y = data(8)
    options = GPOptions(preset=narrow(), kernel="matern52-noard", input_warping=False, target_transform="standardize")
    process = BayesianGaussianProcess(2, options, num_samples=1500)
    process.fit(X, Y)
    samples = process._samples
    assert samples is not None
    assert torch.isfinite(process.log_density(samples, X, process.transform.forward(Y))).all()
    layout = process.layout
    columns = [layout.slices["lengthscale"].start, layout.slices["noise"].start]
    axes = [torch.linspace(float(layout.lower[c]), float(layout.upper[c]), 120).double()[1:-1] for c in columns]
    grid = torch.cartesian_prod(*axes)
    theta = layout.init.repeat(len(grid), 1)
    theta[:, columns] = grid
    log_density = process.log_density(theta, X, process.transform.forward(Y))
    weights = torch.softmax(log_density, 0)
    mean = weights @ grid
    deviation = (weights @ (grid - mean).square()).sqrt()
    found = samples[:, columns]
    assert ((found.mean(0) - mean).abs() < 5 * deviation / math.sqrt(1500)).all()
    assert torch.allclose(found.std(0), deviation, rtol=0.12)
    # The parameters that are reported are the means of the parameters themselves.
    assert process.parameters()["noise"] == pytest.approx(float(samples[:, columns[1]].exp().mean()))


def test_predictions_are_near_those_of_the_map_fit() -> None:
    X, Y = data(14)
    new = torch.rand(10, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sampled = BayesianGaussianProcess(2, QUICK, num_samples=4).fit(X, Y)
    fitted = GaussianProcess(2, QUICK).fit(X, Y)
    assert sampled.batch_shape == (4,)
    mean, std = fitted.predict(new)[0], fitted.predict(new)[1].sqrt()
    assert ((sampled.predict(new)[0].mean(0) - mean).abs() < 3 * std).all()


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayesian_gp, "_BURN_FROM_START", 3)
    X, Y = data()
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + 10 * len(samples))
        process = BayesianGaussianProcess(2, QUICK, seed=seed, num_samples=2)
        process.fit(X, Y)
        assert process._samples is not None
        samples.append(process._samples)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_chains_go_on_from_their_samples_and_the_state_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = data(9)
    first = BayesianGaussianProcess(2, QUICK, num_samples=2)
    assert first.parameters() == {}
    first.fit(X[:7], Y[:7])
    second = BayesianGaussianProcess(2, QUICK, seed=5, num_samples=2)
    second.load_state_dict(first.state_dict())
    assert second.parameters() == first.parameters()
    starts: list[Tensor] = []
    sample = SliceSampler.sample

    def spy(self: SliceSampler, init: Tensor, *args: Any) -> Tensor:
        starts.append(init)
        return sample(self, init, *args)

    monkeypatch.setattr(SliceSampler, "sample", spy)
    kept = first._samples
    one, other = first.fit(X[:8], Y[:8]), second.fit(X[:8], Y[:8])
    assert torch.equal(one.predict(X)[0], other.predict(X)[0])
    assert kept is not None
    assert torch.allclose(starts[0] * first.layout.spread, kept)
    # Without a refit nothing is sampled.
    before = first.parameters()
    assert first.fit(X, Y, refit=False).num_data == 9
    assert first.parameters() == before
    assert len(starts) == 2


def test_the_map_estimate_stands_in_if_sampling_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> Tensor:
        raise SliceException("no slice")

    monkeypatch.setattr(SliceSampler, "sample", fail)
    X, Y = data()
    process = BayesianGaussianProcess(2, QUICK, num_samples=3)
    process.fit(X, Y)
    assert "could not be sampled, their MAP estimate is used: no slice" in caplog.text
    fitted = GaussianProcess(2, QUICK)
    fitted.fit(X, Y)
    assert process.parameters() == pytest.approx(fitted.parameters())


def test_a_subset_is_sampled_from_for_many_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    density = BayesianGaussianProcess.log_density

    def spy(self: BayesianGaussianProcess, theta: Tensor, X: Tensor, Z: Tensor) -> Tensor:
        sizes.append(len(X))
        return density(self, theta, X, Z)

    monkeypatch.setattr(BayesianGaussianProcess, "log_density", spy)
    monkeypatch.setattr(bayesian_gp, "_BURN_FROM_START", 2)
    X, Y = data(20)
    options = GPOptions(num_starts=1, max_iterations=3, max_fit_points=6)
    assert BayesianGaussianProcess(2, options, num_samples=2).fit(X, Y).num_data == 20
    assert set(sizes) == {6}


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        BayesianGaussianProcess(1, num_samples=0)
    with pytest.raises(ValueError, match="boxcox_transform is fitted by MAP"):
        BayesianGaussianProcess(1, GPOptions(target_transform="boxcox"))


def test_odd_data_can_be_sampled(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayesian_gp, "_BURN_FROM_START", 20)
    caplog.set_level(logging.WARNING)
    for X, Y in (
        (torch.zeros(1, 1).double(), torch.ones(1).double()),
        (torch.full((4, 1), 0.5).double(), torch.ones(4).double()),
    ):
        process = BayesianGaussianProcess(1, QUICK, num_samples=2)
        mean, variance = process.fit(X, Y).predict(torch.rand(3, 1).double())
        assert torch.isfinite(mean).all()
        assert (variance > 0).all()
        assert np.isfinite(list(process.parameters().values())).all()
    assert caplog.text == ""
