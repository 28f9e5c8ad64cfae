"""Priors, presets and the layout of parameters against scipy and the formulas of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from sthyper.surrogates.gp import GaussianProcess, GPOptions
from sthyper.surrogates.parameters import PRESETS, ParameterLayout, ParameterSpec, preset
from sthyper.surrogates.priors import Gamma, Horseshoe, LogNormal, Normal, Prior, Reciprocal, Uniform

GRID = torch.tensor([1e-4, 0.01, 0.3, 1.0, 2.5, 40.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("prior", "distribution"),
    [
        (Normal(0.5, 0.75), stats.norm(0.5, 0.75)),
        (Normal(), stats.norm()),
        (LogNormal(0.25, 0.5), stats.lognorm(0.5, scale=math.exp(0.25))),
        (LogNormal(), stats.lognorm(1.0)),
        (Gamma(0.1, 0.1), stats.gamma(0.1, scale=1.0)),
        (Gamma(2.0, 3.0), stats.gamma(3.0, scale=2.0 / 3.0)),
        (Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    ],
)
def test_densities_are_scipys(prior: Prior, distribution: stats.rv_continuous) -> None:
    x = GRID.clamp_max(2.9) if isinstance(prior, Uniform) else GRID
    expected = torch.from_numpy(-distribution.logpdf(x.numpy()))
    assert torch.allclose(prior.negative_log_density(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", [Normal(1.0, 0.3), LogNormal(0.1, 0.4), Gamma(1.0, 2.0), Uniform(0.0, 2.0)])
def test_proper_densities_integrate_to_1(prior: Prior) -> None:
    def density(x: float) -> float:
        return math.exp(-float(prior.negative_log_density(torch.tensor(x, dtype=torch.float64))))

    lower, upper = (0.0, 2.0) if isinstance(prior, Uniform) else (-3.0 if isinstance(prior, Normal) else 1e-9, 60.0)
    total, _ = integrate.quad(density, lower, upper, limit=400, points=[0.5, 1.0, 1.5])
    assert total == pytest.approx(1.0, rel=1e-5)


def test_the_horseshoe_has_a_spike_and_heavy_tails() -> None:
    value = Horseshoe(0.1).negative_log_density(GRID).numpy()
    assert value == pytest.approx(-np.log(np.log1p(3 * (0.1 / GRID.numpy()) ** 2)))
    assert (np.diff(value) > 0).all()
    assert not torch.allclose(Horseshoe(0.2).negative_log_density(GRID), Horseshoe(0.1).negative_log_density(GRID))


def test_the_reciprocal_prior() -> None:
    value = Reciprocal(0.2, 0.7).negative_log_density(GRID)
    assert torch.allclose(value, 0.2 * GRID**2 + 0.7 / GRID)


@pytest.mark.parametrize(
    "prior", [Normal(0.5, 0.7), LogNormal(0.2, 0.5), Gamma(0.5, 1.1), Horseshoe(), Reciprocal(), Uniform(0.0, 50.0)]
)
def test_densities_are_differentiable_and_one_a_parameter(prior: Prior) -> None:
    x = GRID[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(prior.negative_log_density, x)
    assert prior.negative_log_density(torch.ones(2, 3).double()).shape == (2, 3)


@pytest.mark.parametrize("prior", [LogNormal(), Gamma(0.1, 0.1), Horseshoe(), Reciprocal()])
def test_parameters_of_size_0_have_a_finite_density(prior: Prior) -> None:
    assert torch.isfinite(prior.negative_log_density(torch.zeros(1).double())).all()


# ---- presets -----------------------------------------------------------------------------------------


def test_presets_by_name() -> None:
    assert preset("default") is PRESETS["default"]
    own = PRESETS["syne-tune"]
    assert preset(own) is own
    with pytest.raises(ValueError, match="preset='syne_tune' is unknown.*syne-tune"):
        preset("syne_tune")


def test_starts_are_within_bounds() -> None:
    for name, chosen in PRESETS.items():
        for kind in ("lengthscale", "outputscale", "noise", "mean", "warping_a", "warping_b", "boxcox"):
            spec = getattr(chosen, kind)
            assert spec.lower < spec.init < spec.upper, (name, kind)
            assert spec.spread > 0


def syne_tune(theta: Tensor, X: Tensor, y: Tensor) -> float:
    """Return likelihood and priors of Syne Tune's process with warping; two inputs.

    theta: two log inverse bandwidths, log covariance scale, two log a, two log b, log noise variance, mean.
    """
    t = theta.numpy()
    inverse, scale = np.exp(t[:2]), math.exp(t[2])
    a, b, noise, mean = np.exp(t[3:5]), np.exp(t[5:7]), math.exp(t[7]), t[8]
    w = 1 - (1 - (X.numpy() * (1 - 2e-6) + 1e-6) ** a) ** b
    D = 5 * (((w[:, None] - w[None]) * inverse) ** 2).sum(-1)
    B = np.sqrt(D + 1e-9)
    K = scale * (1 + B + D / 3) * np.exp(-B) + noise * np.eye(len(X))
    L = np.linalg.cholesky(K)
    P = np.linalg.solve(L, y.numpy() - mean)
    value = 0.5 * (len(y) * math.log(2 * math.pi) + 2 * np.log(np.diag(L)).sum() + P @ P)
    value += 2 * math.log(100 - 1e-4)  # bandwidths: uniform
    value += math.log(math.sqrt(2 * math.pi)) + math.log(scale) + math.log(scale) ** 2 / 2  # LogNormal(0, 1)
    rate = 0.1 / 0.1  # noise: gamma with mean 0.1 and shape 0.1
    value += (1 - 0.1) * math.log(noise) + rate * noise + math.lgamma(0.1) - 0.1 * math.log(rate)
    value += mean**2 / 2 + math.log(math.sqrt(2 * math.pi))  # N(0, 1)
    for exponent in (*a, *b):  # LogNormal(0, 0.75)
        value += math.log(exponent * 0.75 * math.sqrt(2 * math.pi)) + math.log(exponent) ** 2 / (2 * 0.75**2)
    return float(value)


def test_the_syne_tune_preset_is_its_formulas() -> None:
    process = GaussianProcess(2, GPOptions(preset="syne-tune", target_transform="standardize"))
    g = torch.Generator().manual_seed(0)
    X = 0.05 + 0.9 * torch.rand(12, 2, generator=g, dtype=torch.float64)
    y = torch.randn(12, generator=g, dtype=torch.float64)
    for _ in range(5):
        theta = process.layout.random_start(g)
        theta[process.layout.slices["noise"]] += 2.0
        found = float(process.negative_log_posterior(theta, X, y))
        # The 1e-9 under the root is not ours.
        assert found == pytest.approx(syne_tune(theta, X, y), rel=1e-6)


def test_bounds_and_starts_of_the_syne_tune_preset() -> None:
    process = GaussianProcess(1, GPOptions(preset="syne-tune", target_transform="boxcox"))
    lower, upper = process.layout.unpack(process.layout.lower), process.layout.unpack(process.layout.upper)
    start = process.layout.unpack(process.layout.init)
    expected = {
        "lengthscale": (1.0, 1e-4, 100.0),
        "outputscale": (1.0, 1e-3, 1e3),
        "noise": (1e-3, 1e-9, 1e6),
        "mean": (0.0, -math.inf, math.inf),
        "warping_a": (1.0, 0.25, 4.0),
        "warping_b": (1.0, 0.25, 4.0),
        "boxcox": (0.5, -1.0, 2.0),
    }
    assert set(start) == set(expected)
    for name, (init, low, high) in expected.items():
        assert [float(x[name]) for x in (start, lower, upper)] == pytest.approx([init, low, high])
    process.fit(torch.rand(3, 1).double(), torch.tensor([1.0, 2.0, 3.0]).double())
    assert "inverse_lengthscale_x0" in process.parameters()


# ---- layout ------------------------------------------------------------------------------------------


def layout() -> ParameterLayout:
    return ParameterLayout(
        {
            "a": (ParameterSpec(2.0, 0.5, 4.0, LogNormal(), spread=10.0), 2),
            "b": (ParameterSpec(-1.0, -math.inf, 3.0, Normal(), log=False, spread=0.0), 1),
            "c": (ParameterSpec(1.0, 0.1, 5.0, Gamma()), 0),
        }
    )


def test_the_vector_holds_logarithms_of_positive_parameters() -> None:
    blocks = layout()
    assert blocks.size == 3
    assert torch.allclose(blocks.init, torch.tensor([math.log(2), math.log(2), -1.0]).double())
    assert torch.allclose(blocks.lower, torch.tensor([math.log(0.5), math.log(0.5), -math.inf]).double())
    values = blocks.unpack(torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, -3.0]]).double())
    assert values["a"].tolist() == [pytest.approx([1.0, math.e]), pytest.approx([math.exp(0.5), 1.0])]
    assert values["b"].tolist() == [[2.0], [-3.0]]
    assert values["c"].shape == (2, 0)


def test_priors_are_summed_and_the_jacobian_is_of_the_logarithms() -> None:
    blocks = layout()
    theta = torch.tensor([[0.3, 1.0, 2.0], [0.5, 0.0, -3.0]]).double()
    values = blocks.unpack(theta)
    expected = LogNormal().negative_log_density(values["a"]).sum(-1) + Normal().negative_log_density(values["b"])[:, 0]
    assert torch.allclose(blocks.negative_log_prior(values), expected)
    assert torch.allclose(blocks.log_jacobian(theta), theta[:, :2].sum(-1))


def test_random_starts_spread_as_told_within_the_bounds() -> None:
    blocks, g = layout(), torch.Generator().manual_seed(0)
    starts = torch.stack([blocks.random_start(g) for _ in range(200)])
    assert (starts >= blocks.lower).all()
    assert (starts <= blocks.upper).all()
    assert (starts[:, 2] == -1.0).all()
    assert len(starts[:, 0].unique()) > 10
    again = torch.Generator().manual_seed(0)
    assert torch.equal(blocks.random_start(again), starts[0])
