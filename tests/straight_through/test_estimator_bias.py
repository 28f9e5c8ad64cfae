"""Which gradient estimators are biased, on problems that can be enumerated."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sthyper.straight_through.bias import ESTIMATORS, PROBLEMS, EstimatorBias, estimator_bias, exact_gradient

UNBIASED = ["reinforce", "reinforce_baseline", "arm"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute_force(loss: Any, logits: Tensor) -> Tensor:
    """Central differences of the expected loss, one combination after the other."""

    def expected(at: Tensor) -> float:
        total = 0.0
        for state in range(2 ** len(at)):
            gates = torch.tensor([[state >> i & 1 for i in range(len(at))]], dtype=torch.float64)
            p = at.sigmoid()
            total += float((torch.where(gates[0] > 0, p, 1 - p)).prod() * loss(gates)[0])
        return total

    step = 1e-5
    return torch.tensor(
        [
            (expected(logits + step * e) - expected(logits - step * e)) / (2 * step)
            for e in torch.eye(len(logits), dtype=torch.float64)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("problem", PROBLEMS)
def test_exact_gradient(problem: str) -> None:
    made = PROBLEMS[problem]()
    assert made.name == problem
    expected = brute_force(made.loss, made.logits)
    torch.testing.assert_close(exact_gradient(made.loss, made.logits), expected, atol=1e-8, rtol=1e-6)


def test_exact_gradient_keeps_shape_and_dtype() -> None:
    logits = torch.tensor([[0.3, -1.0], [0.5, 2.0]])
    gradient = exact_gradient(lambda gates: gates.flatten(1).sum(1), logits)
    p = logits.sigmoid()
    torch.testing.assert_close(gradient, p * (1 - p))
    with torch.no_grad():
        assert torch.equal(exact_gradient(lambda gates: gates.flatten(1).sum(1), logits), gradient)


@pytest.mark.parametrize("factor", [1.0, 1.1, 0.9])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("estimator", UNBIASED)
def test_unbiased_estimators(problem: str, estimator: str, factor: float) -> None:
    """The test sees a bias of a tenth of the gradient, and there is none."""
    made = PROBLEMS[problem]()
    plain = ESTIMATORS[estimator](30 if estimator == "reinforce" else 10, 2 / 3)

    def surrogate(loss: Any, logits: Tensor, own: torch.Generator | None) -> Tensor:
        return factor * plain(loss, logits, own)

    result = estimator_bias(made.loss, made.logits, surrogate, 10_000, generator=generator(1))
    assert result.is_zero() == (factor == 1.0)
    assert result.relative_error < 0.02


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in UNBIASED])
def test_biased_estimators(problem: str, estimator: str) -> None:
    made = PROBLEMS[problem]()
    result = estimator_bias(made.loss, made.logits, estimator, 30_000, generator=generator(1))
    if (problem, estimator) == ("parity", "identity"):
        assert result.is_zero()  # linear in each gate
    else:
        assert not result.is_zero()
        assert result.relative_bias > 0.05
    assert result.cosine > 0.8


def test_means_of_the_bernoulli_estimators_in_closed_form() -> None:
    """For ``(z - t)^2`` the mean of ``2 (z - t) p'`` is ``2 (p - t) p'``; with the probabilities it has a factor p."""
    problem = PROBLEMS["separable"]()
    p, target = problem.logits.sigmoid(), torch.tensor([0.45, 0.1, 0.7, 0.499], dtype=torch.float64)
    slope = p * (1 - p)
    identity = 2 * (p - target) * slope
    for estimator, mean in (("identity", identity), ("probs", identity * p)):
        result = estimator_bias(problem.loss, problem.logits, estimator, generator=generator(2))
        assert ((result.mean - mean).abs() <= 5 * result.standard_error).all()
        torch.testing.assert_close(result.exact, (1 - 2 * target) * slope)
        torch.testing.assert_close(result.bias, result.mean - result.exact)


def test_standard_errors_are_right() -> None:
    """Over repetitions the means vary as the standard errors say."""
    problem = PROBLEMS["network"]()
    own = generator()
    results = [estimator_bias(problem.loss, problem.logits, "arm", 200, generator=own) for _ in range(60)]
    spread = torch.stack([result.mean for result in results]).std(0)
    stated = torch.stack([result.standard_error for result in results]).mean(0)
    assert ((spread / stated > 0.65) & (spread / stated < 1.45)).all()


def test_more_samples_an_estimate_have_less_variance() -> None:
    problem = PROBLEMS["separable"]()

    def variance(samples: int) -> float:
        return estimator_bias(
            problem.loss, problem.logits, "reinforce", 4000, samples_per_estimate=samples, generator=generator()
        ).variance

    assert variance(8) == pytest.approx(variance(1) / 8, rel=0.15)


def test_a_baseline_has_less_variance() -> None:
    problem = PROBLEMS["network"]()
    plain, baseline = (
        estimator_bias(problem.loss, problem.logits, name, 4000, samples_per_estimate=4, generator=generator())
        for name in ("reinforce", "reinforce_baseline")
    )
    assert baseline.variance < plain.variance / 3


@pytest.mark.parametrize("estimator", ["gumbel", "hard_concrete"])
def test_temperature_changes_the_bias(estimator: str) -> None:
    problem = PROBLEMS["parity"]()
    default, same, warm = (
        estimator_bias(problem.loss, problem.logits, estimator, 2000, temperature=t, generator=generator())
        for t in (None, 2 / 3, 2.0)
    )
    assert torch.equal(default.mean, same.mean)
    assert warm.relative_bias > 1.5 * default.relative_bias


def test_own_estimators() -> None:
    problem = PROBLEMS["separable"]()

    def mean_field(loss: Any, logits: Tensor, own: torch.Generator | None) -> Tensor:
        return loss(logits.sigmoid()[None])[0]

    result = estimator_bias(problem.loss, problem.logits, mean_field, 10)
    assert result.estimator == "mean_field"
    assert result.n_samples == 10
    assert result.standard_error.max() < 1e-12
    assert not result.is_zero()
    linear = estimator_bias(lambda gates: gates.sum(-1), problem.logits, mean_field, 10)
    assert linear.is_zero()
    assert linear.largest_z <= 1


def test_generator_makes_results_repeatable_and_leaves_the_global_one() -> None:
    problem = PROBLEMS["separable"]()
    before = torch.random.get_rng_state()
    one, two, other = (
        estimator_bias(problem.loss, problem.logits, "probs", 100, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.mean, two.mean)
    assert not torch.equal(one.mean, other.mean)
    assert torch.equal(before, torch.random.get_rng_state())


def test_long_runs_are_cut_into_pieces() -> None:
    sizes = []

    def surrogate(loss: Any, logits: Tensor, own: torch.Generator | None) -> Tensor:
        sizes.append(1)
        return logits.sum()

    result = estimator_bias(lambda gates: gates.sum(-1), torch.zeros(2), surrogate, 20_000)
    assert len(sizes) == 3
    assert result.mean.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["exact", "mean", "standard_error"])
def test_what_is_not_finite_is_not_unbiased(which: str, bad: float) -> None:
    parts = {name: torch.tensor([1.0, 2.0], dtype=torch.float64) for name in ("exact", "mean", "standard_error")}
    assert EstimatorBias("name", **parts, n_samples=10).is_zero()
    parts[which][1] = bad
    result = EstimatorBias("name", **parts, n_samples=10)
    assert result.largest_z == math.inf
    assert not result.is_zero()


def test_an_estimator_that_gives_nan_is_not_unbiased() -> None:
    problem = PROBLEMS["separable"]()
    result = estimator_bias(problem.loss, problem.logits, lambda loss, logits, own: logits.sum() * math.nan, 10)
    assert not result.is_zero()


def test_figures_without_a_gradient() -> None:
    zero, error = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    none = EstimatorBias("name", zero, zero, zero, 10)
    assert (none.largest_z, none.is_zero()) == (0.0, True)
    assert all(math.isnan(figure) for figure in (none.relative_bias, none.relative_error, none.cosine))
    biased = EstimatorBias("name", zero, error, error, 10)
    assert (biased.relative_bias, biased.relative_error) == (math.inf, math.inf)
    assert math.isnan(biased.cosine)


def test_figures_of_a_result() -> None:
    exact, mean, error = (torch.tensor(v, dtype=torch.float64) for v in ([3.0, 4.0], [3.3, 4.0], [0.1, 0.2]))
    result = EstimatorBias("name", exact, mean, error, 100)
    assert result.relative_bias == pytest.approx(0.06)
    assert result.relative_error == pytest.approx(math.sqrt(0.05) / 5)
    assert result.largest_z == pytest.approx(3.0)
    assert result.variance == pytest.approx(5.0)
    assert result.cosine == pytest.approx((3.3 * 3 + 16) / (5 * math.sqrt(3.3**2 + 16)))
    assert result.is_zero()
    assert not result.is_zero(2.9)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("argm",), {}, ValueError, r"it is 'argm' \(did you mean 'arm'\?\)"),
        ((3,), {}, TypeError, "estimator must be a name or a function; it is 3"),
        (("arm", 1), {}, ValueError, "n_samples must be at least 2, for a standard error; it is 1"),
        (("arm",), {"samples_per_estimate": 0}, ValueError, "samples_per_estimate must be at least 1; it is 0"),
        (("reinforce_baseline",), {"samples_per_estimate": 1}, ValueError, "must be at least 2; it is 1"),
        (("arm",), {"temperature": 1.0}, ValueError, r"\['gumbel', 'hard_concrete'\]; it is 1.0"),
        (("gumbel",), {"temperature": 0.0}, ValueError, "temperature must be a finite number above 0"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        estimator_bias(lambda gates: gates.sum(-1), torch.zeros(2), *arguments, **options)


def test_bad_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="logits must have 1 to 16 elements.*they have 17"):
        estimator_bias(lambda gates: gates.sum(-1), torch.zeros(17), "arm")
    with pytest.raises(ValueError, match="they have 0"):
        exact_gradient(lambda gates: gates.sum(-1), torch.zeros(0))
    with pytest.raises(ValueError, match=r"a loss for each of 4 samples; it returned \(\)"):
        exact_gradient(lambda gates: gates.sum(), torch.zeros(2))
    with pytest.raises(TypeError, match="logits must be floating point"):
        exact_gradient(lambda gates: gates.sum(-1), torch.zeros(2, dtype=torch.long))


def test_benchmark_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "estimator_bias.py"
    spec = importlib.util.spec_from_file_location("estimator_bias_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["estimator_bias.py", "--samples", "50"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(PROBLEMS) * len(ESTIMATORS)
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2::7]] == list(PROBLEMS)
