"""Slice sampling against densities with known moments."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sthyper.surrogates.slice_sampling import SliceException, SliceSampler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_normal(theta: Tensor) -> Tensor:
    return -0.5 * theta.square().sum(dim=1)


def draws(
    log_density: Callable[[Tensor], Tensor], dimension: int, chains: int = 2000, steps: int = 40, scale: float = 1.0
) -> Tensor:
    """Return the last samples of many chains: independent of each other, shape (chains, dimension)."""
    init = torch.full((chains, dimension), 0.2, dtype=torch.float64)
    return SliceSampler(log_density, scale).sample(init, steps, steps - 1, 1, generator())[0]


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.slow
def test_moments_of_a_correlated_gaussian(scale: float) -> None:
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.8, 0.0], [0.8, 2.0, -0.3], [0.0, -0.3, 0.25]], dtype=torch.float64)
    precision = covariance.inverse()

    def log_density(theta: Tensor) -> Tensor:
        return -0.5 * ((theta - mean) @ precision * (theta - mean)).sum(dim=1)

    samples = draws(log_density, 3, chains=4000, steps=80, scale=scale)
    # Five standard errors: those of a mean are sqrt(variance / chains), of a variance sqrt(2 / chains) of it.
    assert (samples.mean(dim=0) - mean).abs().lt(5 * (covariance.diagonal() / 4000).sqrt()).all()
    scaled = (samples.T.cov() - covariance) / (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert scaled.abs().max() < 5 * math.sqrt(2 / 4000)


def test_bounds_are_kept_and_moments_are_those_of_the_truncated_density() -> None:
    def log_density(theta: Tensor) -> Tensor:
        # An exponential of rate 1 on [0, 1], and a uniform on [-1, 2] with NaN beyond.
        x, y = theta.unbind(dim=1)
        value = torch.where((x >= 0) & (x <= 1), -x, -torch.inf)
        return torch.where((y >= -1) & (y <= 2), value, torch.nan)

    samples = draws(log_density, 2, chains=4000)
    x, y = samples.unbind(dim=1)
    assert x.min() >= 0
    assert x.max() <= 1
    assert y.min() >= -1
    assert y.max() <= 2
    mean = (1 - 2 / math.e) / (1 - 1 / math.e)
    assert abs(float(x.mean()) - mean) < 5 * 0.29 / math.sqrt(4000)
    assert abs(float(y.mean()) - 0.5) < 5 * math.sqrt(9 / 12 / 4000)
    assert abs(float(y.var()) - 9 / 12) < 0.05


def test_both_modes_of_a_mixture_get_their_share() -> None:
    # Weights 1/4 and 3/4 at -2 and 2; all chains start at the lighter one's side.
    def log_density(theta: Tensor) -> Tensor:
        x = theta[:, 0]
        return torch.logaddexp(math.log(0.25) - 0.5 * (x + 2) ** 2, math.log(0.75) - 0.5 * (x - 2) ** 2)

    init = torch.full((4000, 1), -2.0, dtype=torch.float64)
    samples = SliceSampler(log_density, 4.0).sample(init, 60, 59, 1, generator())[0, :, 0]
    assert abs(float(samples.mean()) - 1.0) < 5 * 2.0 / math.sqrt(4000)
    share = float((samples > 0).double().mean())
    assert abs(share - (0.75 + 0.0228 * (0.25 - 0.75))) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_moments_of_a_banana() -> None:
    # x is normal, and y given x is normal with mean x^2 and variance 1/4: E y = 1, var y = 2 + 1/4, cov(x, y) = 0.
    def log_density(theta: Tensor) -> Tensor:
        x, y = theta.unbind(dim=1)
        return -0.5 * x**2 - 2 * (y - x**2) ** 2

    x, y = draws(log_density, 2, chains=4000, steps=120).unbind(dim=1)
    assert abs(float(x.mean())) < 5 / math.sqrt(4000)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / 4000)
    assert abs(float(y.mean()) - 1) < 5 * 1.5 / math.sqrt(4000)
    assert abs(float((x * y).mean())) < 5 * math.sqrt(15.25 / 4000)  # the variance of x y is E x^6 + E x^2 / 4


def test_one_long_chain_has_the_moments_too() -> None:
    init = torch.zeros(1, 1, dtype=torch.float64)
    samples = SliceSampler(standard_normal).sample(init, 1500, 10, 1, generator())
    assert abs(float(samples.mean())) < 0.2
    assert abs(float(samples.var()) - 1) < 0.25


def test_retained_samples_are_those_after_burn_in_every_thin_th() -> None:
    init = torch.zeros(3, 2, dtype=torch.float64)
    sampler = SliceSampler(standard_normal)
    everything = sampler.sample(init, 12, 0, 1, generator())
    assert everything.shape == (12, 3, 2)
    assert torch.equal(sampler.sample(init, 12, 5, 3, generator()), everything[5::3])
    assert torch.equal(init, torch.zeros_like(init))
    # The published default of 300 samples, 250 of them burn-in, one of 5 kept.
    assert len(sampler.sample(init, 300, 250, 5, generator())) == 10


def test_the_generator_decides_and_nothing_else() -> None:
    init = torch.zeros(4, 3, dtype=torch.float64)
    state = torch.random.get_rng_state()
    first, again, other = (SliceSampler(standard_normal).sample(init, 5, 0, 1, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert SliceSampler(standard_normal).sample(init.float(), 2, 0, 1, generator()).dtype == torch.float32


def test_chains_take_steps_together_and_only_unfinished_ones_are_evaluated() -> None:
    sizes: list[int] = []

    def log_density(theta: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        sizes.append(len(theta))
        return standard_normal(theta)

    SliceSampler(log_density).sample(torch.zeros(50, 2, dtype=torch.float64), 10, 0, 1, generator())
    assert sizes[:2] == [50, 100]  # the first points, then both ends of all intervals
    assert len(sizes) < 250
    assert min(sizes) < 5


def test_a_density_without_scale_or_bounds_raises() -> None:
    init = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(SliceException, match="after 200 steps of scale=1.0 in 3 of 3 chains"):
        SliceSampler(lambda theta: torch.zeros(len(theta))).sample(init, 1, 0, 1, generator())
    with pytest.raises(SliceException, match="200 steps"):
        SliceSampler(standard_normal, scale=1e-6).sample(init, 1, 0, 1, generator())
    # Inside of 200 steps it works.
    assert SliceSampler(standard_normal, scale=0.05).sample(init, 1, 0, 1, generator()).isfinite().all()


def test_a_density_that_changes_its_mind_raises() -> None:
    calls = 0

    def log_density(theta: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full((len(theta),), 0.0 if calls == 1 else -torch.inf)

    with pytest.raises(SliceException, match="200 shrinks|chain's own point"):
        SliceSampler(log_density).sample(torch.ones(2, 1, dtype=torch.float64), 1, 0, 1, generator())


def test_an_unbounded_density_raises() -> None:
    def log_density(theta: Tensor) -> Tensor:
        return torch.where(theta[:, 0] > 0.1, torch.inf, 0.0)

    with pytest.raises(SliceException, match="unbounded"):
        SliceSampler(log_density).sample(torch.zeros(20, 1), 5, 0, 1, generator())


def test_bad_arguments_are_named() -> None:
    init = torch.zeros(2, 1)
    sampler = SliceSampler(standard_normal)
    with pytest.raises(TypeError, match="log_density must be a function"):
        SliceSampler(3)  # type: ignore[arg-type]
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            SliceSampler(standard_normal, scale)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        sampler.sample(init, 0, 0, 1, generator())
    with pytest.raises(ValueError, match="burn must be less than num_samples=4, got 4"):
        sampler.sample(init, 4, 4, 1, generator())
    with pytest.raises(ValueError, match="burn must be at least 0"):
        sampler.sample(init, 4, -1, 1, generator())
    with pytest.raises(ValueError, match="thin must be at least 1"):
        sampler.sample(init, 4, 0, 0, generator())
    with pytest.raises(TypeError, match="thin must be an int, got 1.5"):
        sampler.sample(init, 4, 0, 1.5, generator())  # type: ignore[arg-type]
    for wrong in (torch.zeros(2), torch.zeros(0, 1), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="init must be floating-point of shape"):
            sampler.sample(wrong, 4, 0, 1, generator())
    outside = SliceSampler(lambda theta: torch.where(theta[:, 0] < 1, 0.0, -torch.inf))
    with pytest.raises(ValueError, match="chain 1 has -inf"):
        outside.sample(torch.tensor([[0.0], [2.0]]), 4, 0, 1, generator())
    with pytest.raises(ValueError, match=r"must return the shape \(2,\), got \(2, 1\)"):
        SliceSampler(lambda theta: theta).sample(init, 4, 0, 1, generator())
