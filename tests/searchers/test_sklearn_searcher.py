"""Bayesian optimisation with estimators in the style of scikit-learn."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import botorch.acquisition as botorch_acquisition
import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from sklearn.linear_model import BayesianRidge, LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from sthyper.acquisition.ei import LogExpectedImprovement
from sthyper.acquisition.lcb import LowerConfidenceBound
from sthyper.config_space import choice, randint, uniform
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.random import RandomSearcher
from sthyper.searchers.sklearn import SKLearnSurrogateSearcher
from sthyper.surrogates.sklearn_estimators import SKLearnEstimator, SKLearnPredictor
from sthyper.testing import SearcherConformance

SPACE: dict[str, Any] = {"x": uniform(-2.0, 2.0), "n": randint(1, 9), "kind": choice(["a", "b", "c"])}
GRID: dict[str, Any] = {"n": randint(1, 4), "kind": choice(["a", "b", "c"])}


def quadratic() -> Any:
    return make_pipeline(PolynomialFeatures(2), BayesianRidge())


def gaussian_process() -> Any:
    return GaussianProcessRegressor(Matern(0.7, nu=2.5), alpha=1e-4, optimizer=None)


def objective(config: dict[str, Any]) -> float:
    x = config.get("x", 0.0)
    return (x - 0.7) ** 2 + 0.02 * (config["n"] - 6) ** 2 + {"a": 0.3, "b": 0.0, "c": 0.6}[config["kind"]]


def run(searcher: Any, number: int, first: int = 0, sign: float = 1.0) -> list[dict[str, Any]]:
    configs = []
    for trial_id in range(first, first + number):
        config = searcher.get_config(trial_id)
        assert config is not None
        searcher.on_trial_result(trial_id, config, {"loss": sign * objective(config)}, update=True)
        configs.append(config)
    return configs


def make(estimator: Any = None, **changes: Any) -> SKLearnSurrogateSearcher:
    arguments: dict[str, Any] = {"points_to_evaluate": [], "random_seed": 0, "num_initial_candidates": 60} | changes
    return SKLearnSurrogateSearcher(SPACE, "loss", quadratic() if estimator is None else estimator, **arguments)


@pytest.mark.parametrize("estimator", [gaussian_process(), RandomForestRegressor(n_estimators=20)])
@pytest.mark.slow
def test_it_finds_better_configurations_than_random_search(estimator: Any) -> None:
    ours, theirs = [], []
    for seed in range(3):
        searcher = make(estimator, random_seed=seed, num_initial_candidates=250)
        ours.append(min(map(objective, run(searcher, 20))))
        random = RandomSearcher(SPACE, "loss", points_to_evaluate=[], random_seed=seed)
        theirs.append(min(map(objective, run(random, 20))))
        assert searcher.last_reason is not None
        assert searcher.last_reason.kind == "model"
        assert searcher.last_reason.origin == "global"
    assert np.mean(ours) < np.mean(theirs)
    assert np.mean(ours) < 0.1


def test_mode_max_is_the_same_problem() -> None:
    lowest, highest = make(), make(mode="max")
    # 1 - x in place of x: the same up to rounding.
    best = min(map(objective, run(highest, 15, sign=-1.0)))
    assert best == pytest.approx(min(map(objective, run(lowest, 15))), abs=0.05)


@pytest.mark.parametrize("number", [0, 2, 5])
def test_the_first_configurations_are_those_of_random_search(number: int) -> None:
    searcher = make(num_initial_random_choices=number, random_seed=4)
    random = run(RandomSearcher(SPACE, "loss", points_to_evaluate=[], random_seed=4), 7)
    configs = run(searcher, 7)
    # One result is needed at least.
    same = max(number, 1)
    assert configs[:same] == random[:same]
    assert configs[same:] != random[same:]


def test_points_to_evaluate_come_first_and_count() -> None:
    points = [{"x": 1.0, "n": 2, "kind": "c"}, {"x": 0.5, "n": 3, "kind": "b"}]
    searcher = make(points_to_evaluate=points, num_initial_random_choices=2)
    assert run(searcher, 2) == points
    run(searcher, 1, first=2)
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    default = SKLearnSurrogateSearcher(SPACE, "loss", quadratic())
    assert default.get_config(0) == {"x": 0.0, "n": 5, "kind": "a"}


def test_the_seed_is_given_or_that_of_the_scheduler() -> None:
    forest = RandomForestRegressor(n_estimators=5)

    def configs(random_seed: int | None, scheduler_seed: int) -> list[dict[str, Any]]:
        searcher = make(forest, random_seed=random_seed)
        searcher.configure(SearcherContext("loss", random_seed=scheduler_seed))
        return run(searcher, 8)

    assert configs(3, 1) == configs(3, 2) == configs(None, 3)
    assert configs(None, 1) != configs(None, 2)
    # The trees have it too: with the same random draws another seed gives another model.
    one, other = make(forest), make(forest)
    other._surrogate.seed(1)
    assert run(one, 8) != run(other, 8)


def test_the_number_of_candidates_matters() -> None:
    assert run(make(num_initial_candidates=2), 8) != run(make(num_initial_candidates=200), 8)


class TestConformance(SearcherConformance):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> SKLearnSurrogateSearcher:
        return SKLearnSurrogateSearcher(
            config_space,
            "loss",
            BayesianRidge(),
            points_to_evaluate=points_to_evaluate,
            num_initial_candidates=16,
            num_initial_random_choices=2,
            random_seed=random_seed,
        )


class Scores:
    """Counts which classes were made."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, model: Any, best_f: Any) -> Any:
        self.made.append((model, best_f))
        return LogExpectedImprovement(model, best_f)


def test_scoring_classes_of_ours_and_of_botorch() -> None:
    default = run(make(), 9)
    # The same criterion by another implementation, which maximises unless it is told not to.
    assert run(make(scoring_class=botorch_acquisition.LogExpectedImprovement), 9) == default
    assert run(make(scoring_class=LogExpectedImprovement), 9) == default
    bound = run(make(scoring_class=functools.partial(LowerConfidenceBound, kappa=3.0)), 9)
    assert bound != default
    theirs = functools.partial(botorch_acquisition.UpperConfidenceBound, beta=9.0)
    assert run(make(scoring_class=theirs), 9) == bound
    scores = Scores()
    searcher = make(scoring_class=scores)
    assert run(searcher, 9) == default
    assert len(scores.made) == 6


def test_the_incumbent_is_the_least_predicted_mean() -> None:
    scores = Scores()
    searcher = make(scoring_class=scores)
    configs = run(searcher, 6)
    pending = {"x": 0.7, "n": 6, "kind": "b"}
    searcher.register_pending(6, pending)
    searcher.get_config(7)
    model, best = scores.made[-1]
    means = model.posterior(searcher.encoder.encode([*configs, pending])).mean
    assert float(best) == pytest.approx(float(means.min()))


def test_configurations_come_once_unless_duplicates_are_allowed() -> None:
    searcher = SKLearnSurrogateSearcher(GRID, "loss", RandomForestRegressor(n_estimators=5), random_seed=0)
    configs = run(searcher, 12)
    assert len({(c["n"], c["kind"]) for c in configs}) == 12
    assert searcher.get_config(12) is None
    often = SKLearnSurrogateSearcher(
        GRID, "loss", RandomForestRegressor(n_estimators=5), random_seed=0, allow_duplicates=True
    )
    configs = run(often, 20)
    assert len({(c["n"], c["kind"]) for c in configs}) < 20
    failed = {"n": 4, "kind": "b"}
    often = SKLearnSurrogateSearcher(GRID, "loss", LinearRegression(), random_seed=0, allow_duplicates=True)
    assert failed in run(often, 20)  # it is the best one
    often = SKLearnSurrogateSearcher(GRID, "loss", LinearRegression(), random_seed=0, allow_duplicates=True)
    often.evaluation_failed(99, failed)
    assert failed not in run(often, 20)


def test_only_the_given_configurations_are_suggested() -> None:
    allowed = [{"x": 0.1 * i, "n": 1 + i % 9, "kind": "abc"[i % 3]} for i in range(12)]
    searcher = make(restrict_configurations=allowed)
    configs = run(searcher, 12)
    assert sorted(c["x"] for c in configs) == pytest.approx([c["x"] for c in allowed])
    assert searcher.get_config(12) is None


def test_state_goes_on() -> None:
    for estimator in (RandomForestRegressor(n_estimators=5), quadratic()):
        whole, first = make(estimator), make(estimator)
        expected = run(whole, 10)
        assert run(first, 6) == expected[:6]
        second = make(estimator, random_seed=None)
        second.load_state_dict(first.state_dict())
        assert run(second, 4, first=6) == expected[6:]


class Nearest(SKLearnPredictor):
    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y = X, y

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances = np.linalg.norm(X[:, None] - self.X, axis=2)
        return self.y[distances.argmin(axis=1)], distances.min(axis=1)


class NearestEstimator(SKLearnEstimator):
    def __init__(self) -> None:
        self.targets: list[list[float]] = []

    def fit(self, X: np.ndarray, y: np.ndarray, update_params: bool) -> SKLearnPredictor:
        self.targets.append(y.tolist())
        return Nearest(X, y)


def test_an_estimator_of_ones_own_sees_raw_targets() -> None:
    searcher = make(NearestEstimator())
    configs = run(searcher, 8)
    estimator = searcher.suggester.surrogate.estimator  # type: ignore[attr-defined]  # a copy of what was given
    assert len(estimator.targets) == 5
    assert estimator.targets[-1] == pytest.approx([objective(c) for c in configs[:7]])


def test_an_estimator_that_fails_means_a_random_configuration_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(NearestEstimator):
        def fit(self, X: np.ndarray, y: np.ndarray, update_params: bool) -> SKLearnPredictor:
            raise ValueError("no can do")

    searcher = make(Failing())
    assert run(searcher, 6) == run(RandomSearcher(SPACE, "loss", points_to_evaluate=[], random_seed=0), 6)
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "random"
    assert "no can do" in str(searcher.last_reason)
    assert len([r for r in caplog.records if "no can do" in r.message]) == 1


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="estimator must be a SKLearnEstimator or a scikit-learn regressor, got 3"):
        make(3)
    with pytest.raises(ValueError, match="num_initial_candidates must be at least 2, got 1"):
        make(num_initial_candidates=1)
    with pytest.raises(ValueError, match="num_initial_random_choices must be at least 0, got -1"):
        make(num_initial_random_choices=-1)
    with pytest.raises(TypeError, match=r"num_initial_random_choices must be an int of at least 0, got 2\.5"):
        make(num_initial_random_choices=2.5)
    with pytest.raises(TypeError, match="scoring_class must be a class of acquisition functions, got 'ei'"):
        make(scoring_class="ei")
    with pytest.raises(ValueError, match=r"scoring_class needs the arguments \['beta'\]; set them with functools"):
        make(scoring_class=botorch_acquisition.UpperConfidenceBound)
    with pytest.raises(ValueError, match="mode must be"):
        make(mode="least")
    with pytest.raises(ValueError, match="random_seed"):
        make(random_seed=-1)


def test_importing_it_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, sthyper.searchers.sklearn; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=50
    )
    assert done.stdout.strip() == "[]"


def test_global_random_states_are_left_alone() -> None:
    state = torch.random.get_rng_state()
    run(make(RandomForestRegressor(n_estimators=5)), 6)
    assert torch.equal(torch.random.get_rng_state(), state)
