"""Acquisition functions under modelled constraints."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from scipy import stats
from torch import Tensor

from sthyper.acquisition.constrained import ConstrainedAcquisition, ModelledConstraint, log_feasibility, value_form
from sthyper.acquisition.ei import ExpectedImprovement, LogExpectedImprovement, ProbabilityOfImprovement
from sthyper.acquisition.lcb import LowerConfidenceBound
from sthyper.surrogates.gp import GaussianProcess, GPOptions


class Known(Model):
    """Independent normal values with given means and deviations at points, shapes (b,): a batch if b > 1."""

    _num_outputs = 1
    num_outputs = 1
    batch_shape = torch.Size([])

    def __init__(self, slopes: list[float], std: float, curvature: float = 0.0) -> None:
        super().__init__()
        self.slopes, self.std, self.curvature = torch.tensor(slopes, dtype=torch.float64), std, curvature

    def posterior(self, X: Tensor, *args: Any, **kwargs: Any) -> GPyTorchPosterior:
        x = X.squeeze(-1)  # batch x 1
        slopes = self.slopes if len(self.slopes) == 1 else self.slopes.reshape(-1, *[1] * x.dim())
        mean = slopes * x + self.curvature * x * x
        return GPyTorchPosterior(MultivariateNormal(mean, self.std**2 * torch.ones_like(mean).unsqueeze(-1)))


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


def ei(mean: float, std: float, best: float) -> float:
    u = (best - mean) / std
    return float(std * (u * stats.norm.cdf(u) + stats.norm.pdf(u)))


POINTS = (-1.5, 0.0, 0.4, 2.0)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("kind", [ExpectedImprovement, LogExpectedImprovement])
def test_constrained_expected_improvement_equals_its_closed_form(kind: Any, log: bool) -> None:
    target, first, second = Known([1.0], 0.7), Known([-2.0], 0.5), Known([0.5], 1.2)
    constraints = [ModelledConstraint(first, upper=0.3), ModelledConstraint(second, lower=-0.2)]
    acquisition = ConstrainedAcquisition(kind(target, 0.1), constraints, log=log)
    expected = [
        ei(x, 0.7, 0.1) * stats.norm.cdf((0.3 + 2.0 * x) / 0.5) * stats.norm.cdf((0.5 * x + 0.2) / 1.2) for x in POINTS
    ]
    values = acquisition(at(*POINTS))
    assert values.shape == (4,)
    assert (values.exp() if log else values).tolist() == pytest.approx(expected, rel=1e-9)


def test_probability_of_improvement_is_weighted_too() -> None:
    target, model = Known([1.0], 0.7), Known([-2.0], 0.5)
    expected = [stats.norm.cdf((0.1 - x) / 0.7) * stats.norm.cdf((0.3 + 2.0 * x) / 0.5) for x in POINTS]
    for log_inner in (True, False):
        inner = ProbabilityOfImprovement(target, 0.1, log=log_inner)
        for log in (True, False):
            values = ConstrainedAcquisition(inner, [ModelledConstraint(model, upper=0.3)], log=log)(at(*POINTS))
            assert (values.exp() if log else values).tolist() == pytest.approx(expected, rel=1e-9)


def test_without_a_feasible_point_the_probability_alone_counts() -> None:
    model = Known([-2.0], 0.5)
    constraint = [ModelledConstraint(model, upper=0.3)]
    expected = stats.norm.logcdf([(0.3 + 2.0 * x) / 0.5 for x in POINTS])
    assert ConstrainedAcquisition(None, constraint)(at(*POINTS)).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    values = ConstrainedAcquisition(None, constraint, log=False)(at(*POINTS))
    assert values.tolist() == pytest.approx([math.exp(v) for v in expected], rel=1e-9)


def test_an_interval_is_accurate_in_both_tails() -> None:
    for slope in (1.0, -1.0):
        constraint = ModelledConstraint(Known([slope], 1.0), lower=-0.5, upper=1.5)
        for x in (-20.0, -6.0, 0.3, 7.0, 25.0):
            mean = slope * x
            # From the tail that is nearer, so that the reference keeps its digits.
            a, b = (-0.5 - mean, 1.5 - mean) if mean > 0.5 else (mean - 1.5, mean + 0.5)
            log_b, log_a = stats.norm.logcdf(b), stats.norm.logcdf(a)
            expected = log_b + math.log1p(-math.exp(log_a - log_b))
            assert float(constraint.log_probability(at(x))) == pytest.approx(expected, rel=1e-8)


def test_noise_is_added_to_the_variance() -> None:
    constraint = ModelledConstraint(Known([1.0], 0.5), lower=0.0, noise=1.0)
    expected = stats.norm.logcdf([x / math.sqrt(1.25) for x in POINTS])
    assert constraint.log_probability(at(*POINTS)).tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_probabilities_are_averaged_over_fantasies_together_if_they_belong_together() -> None:
    slopes = [1.0, -1.0, 0.2]
    first, second = Known(slopes, 0.5), Known([2.0, 0.3, -1.0], 0.8)
    both = [ModelledConstraint(first, upper=0.1), ModelledConstraint(second, lower=0.2)]
    x = 0.7
    p = [float(stats.norm.cdf((0.1 - s * x) / 0.5)) for s in slopes]
    q = [float(stats.norm.cdf((s * x - 0.2) / 0.8)) for s in (2.0, 0.3, -1.0)]
    together = sum(a * b for a, b in zip(p, q, strict=True)) / 3
    assert float(log_feasibility(both, at(x)).exp()) == pytest.approx(together, rel=1e-10)
    weights = torch.tensor([0.0, 3.0, 1.0])
    weighted = (3 * p[1] * q[1] + p[2] * q[2]) / 4
    assert float(log_feasibility(both, at(x), weights).exp()) == pytest.approx(weighted, rel=1e-10)
    # Numbers of fantasies that differ: each on its own; a model without them goes with any.
    other = [ModelledConstraint(first, upper=0.1), ModelledConstraint(Known([2.0, 0.3], 0.8), lower=0.2)]
    apart = sum(p) / 3 * (q[0] + q[1]) / 2
    assert float(log_feasibility(other, at(x)).exp()) == pytest.approx(apart, rel=1e-10)
    single = [ModelledConstraint(first, upper=0.1), ModelledConstraint(Known([2.0], 0.8), lower=0.2)]
    assert float(log_feasibility(single, at(x)).exp()) == pytest.approx(sum(p) / 3 * q[0], rel=1e-10)


def test_fantasies_of_target_and_constraint_multiply() -> None:
    target, model = Known([1.0, -0.5], 0.7), Known([-2.0, 1.0, 0.5], 0.5)
    inner = ExpectedImprovement(target, torch.tensor([0.1, 0.3], dtype=torch.float64))
    x = 0.4
    gain = (ei(x, 0.7, 0.1) + ei(-0.5 * x, 0.7, 0.3)) / 2
    chance = sum(float(stats.norm.cdf((0.3 - s * x) / 0.5)) for s in (-2.0, 1.0, 0.5)) / 3
    value = ConstrainedAcquisition(inner, [ModelledConstraint(model, upper=0.3)])(at(x, x))
    assert value.exp().tolist() == pytest.approx([gain * chance] * 2, rel=1e-9)


# ---- values of any sign ----------------------------------------------------------------------------------


def test_negative_values_do_not_favour_what_is_infeasible() -> None:
    # Minus a bound is negative at all three points. A plain product would prefer the point least likely to be feasible.
    target = Known([1.0], 0.1, curvature=0.0)
    inner = LowerConfidenceBound(target, 1.0)
    hard = ModelledConstraint(Known([1.0], 0.3), upper=2.0)  # holds below 2
    X = at(1.0, 1.9, 3.0)
    assert bool((inner(X) < 0).all())
    product = inner(X) * log_feasibility([hard], X).exp()
    assert int(product.argmax()) == 2
    for log in (True, False):
        values = ConstrainedAcquisition(inner, [hard], log=log, reference=-1.5)(X)
        assert int(values.argmax()) == 0
        assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_values_of_any_sign_follow_their_formula_and_keep_their_order() -> None:
    inner = LowerConfidenceBound(Known([1.0], 0.1), 2.0)
    sure = ModelledConstraint(Known([0.0], 0.1), upper=50.0)
    X = at(-3.0, -0.2, 0.0, 0.3, 9.0, 400.0)
    for temperature in (0.1, 1.0):
        acquisition = ConstrainedAcquisition(inner, [sure], reference=0.05, temperature=temperature)
        values = acquisition(X)
        bound = [0.2 - x for x in (-3.0, -0.2, 0.0, 0.3, 9.0)]
        expected = [math.log(temperature * math.log1p(math.exp((b - 0.05) / temperature))) for b in bound[:4]]
        assert values[:4].tolist() == pytest.approx(expected, rel=1e-9)
        assert values.tolist() == sorted(values.tolist(), reverse=True)
        assert bool(values.isfinite().all())


def test_values_of_any_sign_need_a_reference() -> None:
    inner, constraint = LowerConfidenceBound(Known([1.0], 0.1), 2.0), ModelledConstraint(Known([1.0], 0.1), upper=0.0)
    with pytest.raises(ValueError, match="reference must be given: the values of LowerConfidenceBound"):
        ConstrainedAcquisition(inner, [constraint])


class _Other(AcquisitionFunction):
    def forward(self, X: Tensor) -> Tensor:
        return X.sum((-1, -2))


def test_forms_are_told_from_the_object() -> None:
    model = Known([1.0], 0.1)
    assert value_form(LogExpectedImprovement(model, 0.0)) == "log"
    assert value_form(ProbabilityOfImprovement(model, 0.0, log=True)) == "log"
    assert value_form(ProbabilityOfImprovement(model, 0.0)) == "non-negative"
    assert value_form(ExpectedImprovement(model, 0.0)) == "non-negative"
    assert value_form(LowerConfidenceBound(model)) == "any"
    assert value_form(_Other(model)) == "any"


# ---- gradients -------------------------------------------------------------------------------------------


def _processes() -> tuple[Model, Model, Tensor]:
    generator = torch.Generator().manual_seed(3)
    X = torch.rand(14, 2, generator=generator, dtype=torch.float64)
    target = GaussianProcess(2, GPOptions(target_transform="standardize")).fit(X, (X - 0.3).square().sum(-1))
    constraint = GaussianProcess(2, GPOptions(target_transform="standardize"))
    return target, constraint.fit(X, torch.sin(5 * X[:, 0]) + X[:, 1]), X


@pytest.mark.parametrize("kind", ["log", "product", "probability", "bound", "interval"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    target, model, _ = _processes()
    constraint = ModelledConstraint(model, upper=0.4)
    if kind == "log":
        acquisition = ConstrainedAcquisition(LogExpectedImprovement(target, -0.5), [constraint])
    elif kind == "product":
        acquisition = ConstrainedAcquisition(ExpectedImprovement(target, -0.5), [constraint], log=False)
    elif kind == "probability":
        acquisition = ConstrainedAcquisition(None, [constraint])
    elif kind == "bound":
        acquisition = ConstrainedAcquisition(LowerConfidenceBound(target), [constraint], reference=0.5)
    else:
        acquisition = ConstrainedAcquisition(None, [ModelledConstraint(model, lower=-0.6, upper=0.4)])
    X = torch.rand(6, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(acquisition, (X,), eps=1e-6, atol=1e-5, rtol=1e-4)


# ---- bad input -------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    model = Known([1.0], 0.1)
    with pytest.raises(ValueError, match="lower or an upper bound"):
        ModelledConstraint(model)
    with pytest.raises(ValueError, match="lower must not be above upper, got lower=2.0 and upper=1.0"):
        ModelledConstraint(model, lower=2.0, upper=1.0)
    with pytest.raises(ValueError, match="constraints must not be empty"):
        ConstrainedAcquisition(None, [])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        ConstrainedAcquisition(None, [ModelledConstraint(model, upper=0.0)], temperature=0.0)


def test_bounds_of_values() -> None:
    constraint = ModelledConstraint(Known([1.0], 0.1), lower=-1.0, upper=2.0)
    assert constraint.holds(torch.tensor([-1.5, -1.0, 0.0, 2.0, 2.5])).tolist() == [False, True, True, True, False]
