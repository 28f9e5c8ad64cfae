"""Expected improvement per unit of cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import GenericDeterministicModel, SingleTaskGP
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.posteriors import TorchPosterior
from torch import Tensor
from torch.distributions import Normal

from sthyper.acquisition.cost import ExpectedImprovementPerCost


class Gaussian(Model):
    """Independent normal posteriors with given mean and deviation, shape (..., batch, q)."""

    def __init__(self, mean: Callable[[Tensor], Tensor], std: Callable[[Tensor], Tensor], ensemble: bool = False):
        super().__init__()
        self.mean, self.std = mean, std
        self._is_ensemble = ensemble

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> TorchPosterior:
        mean = self.mean(X)
        return TorchPosterior(Normal(mean.unsqueeze(-1), self.std(X).expand_as(mean).unsqueeze(-1)))


def target_mean(X: Tensor) -> Tensor:
    return ((X - 0.3) ** 2).sum(-1)


def target_std(X: Tensor) -> Tensor:
    return 0.1 + 0.2 * X[..., 0]


def cost_mean(X: Tensor) -> Tensor:
    return 1.0 + 3.0 * X[..., 1]


def constant(value: Tensor | float) -> Callable[[Tensor], Tensor]:
    """A function of X with the value, shape (k,), for each of k fantasies."""

    def function(X: Tensor) -> Tensor:
        v = torch.as_tensor(value, dtype=X.dtype)
        return v.reshape(*v.shape, *[1] * (X.ndim - 1)) + 0 * X[..., 0]

    return function


TARGET = Gaussian(target_mean, target_std)
COST = Gaussian(cost_mean, constant(0.0001))
X = torch.rand(7, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def closed_form_ei(X: Tensor, best: float) -> Tensor:
    mean, std = target_mean(X)[..., 0], target_std(X)[..., 0]
    u = (best - mean) / std
    normal = Normal(torch.zeros_like(u), torch.ones_like(u))
    return std * (u * normal.cdf(u) + normal.log_prob(u).exp())


@pytest.mark.parametrize("exponent", [1.0, 0.4])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_value(exponent: float, jitter: float) -> None:
    expected = closed_form_ei(X, 0.2 - jitter) / cost_mean(X)[..., 0] ** exponent
    plain = ExpectedImprovementPerCost(TARGET, COST, 0.2, exponent, jitter, log=False)
    torch.testing.assert_close(plain(X), expected)
    torch.testing.assert_close(ExpectedImprovementPerCost(TARGET, COST, 0.2, exponent, jitter)(X), expected.log())
    assert plain(X).shape == (7,)
    assert plain(X[:6].reshape(2, 3, 1, 2)).shape == (2, 3)


def test_defaults_are_exponent_one_no_jitter_and_the_logarithm() -> None:
    default = ExpectedImprovementPerCost(TARGET, COST, 0.2)
    torch.testing.assert_close(default(X), ExpectedImprovementPerCost(TARGET, COST, 0.2, 1.0, 0.0, True)(X))
    assert default._log


def test_with_unit_costs_it_is_the_expected_improvement() -> None:
    unit = GenericDeterministicModel(lambda X: torch.ones_like(X[..., :1]))
    torch.testing.assert_close(
        ExpectedImprovementPerCost(TARGET, unit, 0.2)(X), LogExpectedImprovement(TARGET, 0.2, maximize=False)(X)
    )


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("log_cost", [True, False])
@pytest.mark.parametrize("fantasies", [0, 3])
def test_gradient_is_that_of_finite_differences(log: bool, log_cost: bool, fantasies: int) -> None:
    shift = torch.linspace(-0.1, 0.1, fantasies, dtype=torch.float64)

    def mean(X: Tensor) -> Tensor:
        return target_mean(X) + (shift.reshape(-1, 1, 1) if fantasies else 0.0)

    acquisition = ExpectedImprovementPerCost(
        Gaussian(mean, target_std), COST, 0.2, exponent=0.7, log=log, log_cost=log_cost
    )
    assert torch.autograd.gradcheck(acquisition, (X.clone().requires_grad_(),), eps=1e-6, atol=1e-7)


def test_gradient_of_gaussian_processes() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(8, 2, dtype=torch.float64, generator=generator)
    model = SingleTaskGP(points, target_mean(points).unsqueeze(-1)).eval()
    cost = SingleTaskGP(points, cost_mean(points).log().unsqueeze(-1)).eval()
    acquisition = ExpectedImprovementPerCost(model, cost, 0.1, log_cost=True)
    assert torch.autograd.gradcheck(acquisition, (X.clone().requires_grad_(),), eps=1e-6, atol=1e-6)


def test_far_from_the_optimum_the_logarithm_stays_useful() -> None:
    far = Gaussian(lambda X: 50.0 + X[..., 0], constant(0.1))
    Z = X.clone().requires_grad_()
    values = ExpectedImprovementPerCost(far, COST, 0.0)(Z)
    assert values.isfinite().all()
    assert values.max() < -1000
    (gradient,) = torch.autograd.grad(values.sum(), Z)
    assert (gradient[..., 0] < 0).all()
    assert ExpectedImprovementPerCost(far, COST, 0.0, log=False)(X).max() == 0


def test_a_deviation_of_zero_is_floored() -> None:
    sure = Gaussian(constant(0.5), constant(1e-30))
    better = ExpectedImprovementPerCost(sure, COST, 0.9, log=False)(X)
    torch.testing.assert_close(better, 0.4 / cost_mean(X)[..., 0])
    worse = ExpectedImprovementPerCost(sure, COST, 0.1)(X)
    assert worse.isfinite().all()


# ---- averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [True, False])
def test_fantasies_are_averaged(log: bool) -> None:
    shifts = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64)
    factors = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    model = Gaussian(lambda X: target_mean(X) + shifts.reshape(3, 1, 1), target_std)
    cost = Gaussian(lambda X: cost_mean(X) * factors.reshape(3, 1, 1), constant(0.1))
    each = torch.stack([closed_form_ei(X, 0.2 - float(s)) for s in shifts])

    def value(model: Model, cost: Model, best: Any) -> Tensor:
        result = ExpectedImprovementPerCost(model, cost, best, exponent=0.5, log=log)(X)
        assert result.shape == (7,)
        return result.exp() if log else result

    c = cost_mean(X)[..., 0].sqrt()
    torch.testing.assert_close(value(model, COST, 0.2), each.mean(0) / c)
    # The same fantasies of both models belong together.
    torch.testing.assert_close(value(model, cost, 0.2), (each / factors.sqrt()[:, None]).mean(0) / c)
    torch.testing.assert_close(value(TARGET, cost, 0.2), closed_form_ei(X, 0.2) * factors.rsqrt().mean() / c)
    # Other numbers of them cannot belong together: all combinations count.
    two = Gaussian(lambda X: cost_mean(X) * factors[:2].reshape(2, 1, 1), constant(0.1))
    torch.testing.assert_close(value(model, two, 0.2), each.mean(0) * factors[:2].rsqrt().mean() / c)
    # An incumbent for each fantasy.
    incumbents = torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64)
    each = torch.stack([closed_form_ei(X, float(b - s)) for b, s in zip(incumbents, shifts, strict=True)])
    torch.testing.assert_close(value(model, COST, incumbents), each.mean(0) / c)
    each = torch.stack([closed_form_ei(X, float(b)) for b in incumbents])
    torch.testing.assert_close(value(TARGET, COST, incumbents), each.mean(0) / c)


@pytest.mark.parametrize("log", [True, False])
def test_samples_of_parameters_are_averaged_over_all_combinations(log: bool) -> None:
    """BoTorch's ensembles have their samples after the batch: (batch, samples, q, 1)."""
    shifts = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64)
    factors = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def mean(X: Tensor) -> Tensor:
        return (target_mean(X) + shifts)[..., None]

    model = Gaussian(mean, lambda X: target_std(X)[..., None], ensemble=True)
    cost = Gaussian(lambda X: (cost_mean(X) * factors)[..., None], constant(0.1), ensemble=True)
    cost.std = lambda X: torch.tensor(0.1, dtype=X.dtype)
    all_pairs = [closed_form_ei(X, 0.2 - float(s)) / (cost_mean(X)[..., 0] * f) ** 0.5 for s in shifts for f in factors]
    result = ExpectedImprovementPerCost(model, cost, 0.2, exponent=0.5, log=log)(X)
    torch.testing.assert_close(result.exp() if log else result, torch.stack(all_pairs).mean(0))


# ---- costs ---------------------------------------------------------------------------------------


def test_models_of_the_logarithm_of_the_cost() -> None:
    log_cost = Gaussian(lambda X: cost_mean(X).log(), constant(0.3))
    torch.testing.assert_close(
        ExpectedImprovementPerCost(TARGET, log_cost, 0.2, log_cost=True)(X),
        ExpectedImprovementPerCost(TARGET, COST, 0.2)(X),
    )


@pytest.mark.parametrize("log_cost", [True, False])
def test_models_of_transformed_costs(log_cost: bool) -> None:
    def raw(X: Tensor) -> Tensor:
        return cost_mean(X).log() if log_cost else cost_mean(X)

    standardised = Gaussian(lambda X: (raw(X) - 2.0) / 0.5, constant(0.3))
    torch.testing.assert_close(
        ExpectedImprovementPerCost(TARGET, standardised, 0.2, log_cost=log_cost, cost_inverse=lambda z: z * 0.5 + 2.0)(
            X
        ),
        ExpectedImprovementPerCost(TARGET, COST, 0.2)(X),
    )


@pytest.mark.parametrize("min_cost", [1e-12, 0.5])
def test_negative_costs_are_floored_with_one_warning(min_cost: float) -> None:
    cost = Gaussian(lambda X: X[..., 1] - 0.5, constant(0.1))
    acquisition = ExpectedImprovementPerCost(TARGET, cost, 0.2, log=False, min_cost=min_cost)
    with pytest.warns(UserWarning, match="negative costs") as caught:
        values = acquisition(X)
    assert len(caught) == 1
    torch.testing.assert_close(values, closed_form_ei(X, 0.2) / (X[..., 0, 1] - 0.5).clamp_min(min_cost))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acquisition(X)


def test_small_costs_are_floored_without_a_warning() -> None:
    small = Gaussian(constant(1e-3), constant(0.1))
    torch.testing.assert_close(
        ExpectedImprovementPerCost(TARGET, small, 0.2, min_cost=0.1, log=False)(X), 10 * closed_form_ei(X, 0.2)
    )
    small_log = Gaussian(constant(math.log(1e-3)), constant(0.1))
    torch.testing.assert_close(
        ExpectedImprovementPerCost(TARGET, small_log, 0.2, min_cost=0.1, log=False, log_cost=True)(X),
        10 * closed_form_ei(X, 0.2),
    )


def test_the_search_goes_where_improvement_is_cheap() -> None:
    """Two equal optima, at 0.2 and 0.8; evaluations cost more to the right."""
    model = Gaussian(
        lambda X: -torch.exp(-50 * (X[..., 0] - 0.2) ** 2) - torch.exp(-50 * (X[..., 0] - 0.8) ** 2), constant(0.2)
    )
    bounds = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for slope, optimum in ((3.0, 0.2), (-3.0, 0.8)):
        cost = Gaussian(lambda X, slope=slope: torch.exp(slope * X[..., 0]), constant(0.1))
        acquisition = ExpectedImprovementPerCost(model, cost, 0.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            best, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=2, raw_samples=32)
        assert best.item() == pytest.approx(optimum, abs=0.1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "gp"}, TypeError),
        ({"cost_model": None}, TypeError),
        ({"cost_model": GenericDeterministicModel(lambda X: X, num_outputs=2)}, ValueError),
        ({"exponent": 0.0}, ValueError),
        ({"exponent": 1.1}, ValueError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": float("nan")}, ValueError),
        ({"min_cost": 0.0}, ValueError),
        ({"best_f": float("nan")}, ValueError),
        ({"best_f": torch.zeros(2, 2)}, ValueError),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        ExpectedImprovementPerCost(**({"model": TARGET, "cost_model": COST, "best_f": 0.0} | change))
