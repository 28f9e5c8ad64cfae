"""Bayesian optimisation under constraints, and away from failures."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from typing import Any

import pytest

from sthyper.baselines import BayesianOptimization, ConstrainedBayesianOptimization, baselines_dict
from sthyper.config_space import uniform
from sthyper.errors import ReportError
from sthyper.schedulers import AskTellScheduler, FIFOScheduler, HyperbandScheduler, TrialScheduler
from sthyper.searchers import SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.testing import SchedulerConformance, SearcherConformance
from sthyper.trial import Trial

FAST: dict[str, Any] = {"num_init_candidates": 32, "num_local_candidates": 16, "opt_nstarts": 1, "opt_maxiter": 20}
SPACE: dict[str, Any] = {"x": uniform(0, 1), "y": uniform(0, 1)}


class TestConstrainedSearcher(SearcherConformance):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BayesianOptimizationSearcher:
        options = BayesOptOptions(
            outcome_constraints=["loss <= 0.4"], learn_feasibility=True, random_seed=random_seed, **FAST
        )
        return BayesianOptimizationSearcher(config_space, "loss", "min", points_to_evaluate, options)

    @pytest.mark.slow
    def test_state_continues_where_it_was_taken(self) -> None:
        super().test_state_continues_where_it_was_taken()


class TestConstrainedBaseline(SchedulerConformance):
    """The metric is its own constraint, which never holds."""

    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ConstrainedBayesianOptimization(
            config_space, "loss", "loss", search_options={**FAST, "num_init_random": 25}, random_seed=random_seed
        )


def searcher_of(options: dict[str, Any], mode: str = "min", seed: int = 0) -> BayesianOptimizationSearcher:
    searcher = BayesianOptimizationSearcher(
        SPACE, "loss", mode, [], BayesOptOptions(**{"num_init_random": 0, **FAST, **options})
    )
    searcher.configure(SearcherContext("loss", mode, random_seed=seed))
    return searcher


def learn(searcher: BayesianOptimizationSearcher, results: list[tuple[float, float, dict[str, Any]]]) -> None:
    for number, (x, y, result) in enumerate(results):
        searcher.on_trial_result(number, {"x": x, "y": y}, result, True)


GRID = [(x, y) for x in (0.05, 0.35, 0.65, 0.95) for y in (0.1, 0.5, 0.9)]


# ---- suggestions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("form", ["logei", "ei", "lcb", "pi", "thompson", "nei", "lognei"])
def test_the_constraint_moves_the_suggestion(mode: str, form: str) -> None:
    # The loss is best at x = 1, where the memory does not suffice.
    sign = 1 if mode == "min" else -1
    results = [(x, y, {"loss": sign * (1 - x) ** 2, "memory": 1e9 * x}) for x, y in GRID]
    chosen: dict[int, Any] = {}
    for constraint in (None, ["memory <= 4.5e8"], ["memory >= 2e8", "memory <= 4.5e8"]):
        searcher = searcher_of({"outcome_constraints": constraint, "acq_function": form}, mode)
        learn(searcher, results)
        config = searcher.get_config(50)
        assert config is not None
        assert searcher.last_reason is not None
        chosen[len(constraint or [])] = config["x"], searcher.last_reason
    assert chosen[0][0] > 0.7
    assert chosen[0][1].feasibility is None
    for number in (1, 2):
        x, reason = chosen[number]
        assert 0.2 < x < 0.5
        assert reason.feasibility is not None
        assert reason.feasibility > 0.3
        assert f"feasible with probability {reason.feasibility:.3g}" in str(reason)
        # The best feasible observation is that at .35, in units of the metric.
        assert reason.incumbent == pytest.approx(sign * 0.65**2)


def test_the_bound_of_the_constraint_has_an_effect() -> None:
    chosen = []
    for bound in (0.2, 0.5, 0.8):
        searcher = searcher_of({"outcome_constraints": [f"memory < {bound}"]})
        learn(searcher, [(x, y, {"loss": (1 - x) ** 2, "memory": x}) for x, y in GRID])
        config = searcher.get_config(50)
        assert config is not None
        chosen.append(config["x"])
    assert chosen == sorted(chosen)
    assert chosen[2] - chosen[0] > 0.3


def test_nothing_feasible_is_known_then_feasibility_is_searched_for(caplog: pytest.LogCaptureFixture) -> None:
    searcher = searcher_of({"outcome_constraints": ["c <= 0"]})
    learn(searcher, [(x, y, {"loss": x, "c": 3.0 - 2.0 * x - y + 0.2}) for x, y in GRID])
    config = searcher.get_config(50)
    assert config is not None
    assert config["x"] > 0.8
    assert config["y"] > 0.8
    reason = searcher.last_reason
    assert reason is not None
    assert reason.kind == "model"
    assert reason.incumbent is None
    assert reason.feasibility is not None
    assert reason.text == "nothing feasible is known"
    # It goes on when there is nothing to be found at all.
    for number in range(60, 64):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": config["x"], "c": 5.0}, True)
    assert not caplog.records


def test_workers_spread_while_nothing_feasible_is_known() -> None:
    configs = {}
    for no_fantasizing in (False, True):
        searcher = searcher_of({"outcome_constraints": ["c <= 0"], "no_fantasizing": no_fantasizing})
        learn(searcher, [(x, y, {"loss": x, "c": 0.5 + (x - 0.4) ** 2}) for x, y in GRID])
        found = []
        for number in range(50, 54):
            config = searcher.get_config(number)
            assert config is not None
            searcher.register_pending(number, config)
            found.append((config["x"], config["y"]))
        gaps = [math.dist(a, b) for i, a in enumerate(found) for b in found[:i]]
        configs[no_fantasizing] = min(gaps)
    assert configs[False] > 0.03
    assert configs[False] > configs[True]


def test_metrics_of_results_without_a_number_count() -> None:
    searcher = searcher_of({"outcome_constraints": ["memory <= 0.5"]})
    learn(searcher, [(x, y, {"loss": math.nan, "memory": x}) for x, y in GRID])
    config = searcher.get_config(50)
    assert config is not None
    assert config["x"] < 0.5
    reason = searcher.last_reason
    assert reason is not None
    assert (reason.kind, reason.mean, reason.num_observations) == ("model", None, 0)


def test_infinite_metrics_are_infeasible() -> None:
    searcher = searcher_of({"outcome_constraints": ["latency <= 0.5"]})
    learn(searcher, [(x, y, {"loss": 1 - x, "latency": x if x < 0.5 else math.inf}) for x, y in GRID])
    config = searcher.get_config(50)
    assert config is not None
    assert config["x"] < 0.65
    assert searcher.best_config() == {"x": 0.35, "y": 0.1}


def test_the_best_configuration_keeps_the_constraints() -> None:
    results = [(x, y, {"loss": (1 - x) ** 2, "memory": x}) for x, y in GRID]
    plain, constrained = searcher_of({}), searcher_of({"outcome_constraints": ["memory <= 0.5"]})
    hopeless = searcher_of({"outcome_constraints": ["memory <= -1"]})
    for searcher, x in ((plain, 0.95), (constrained, 0.35), (hopeless, 0.95)):
        learn(searcher, results)
        assert (searcher.best_config() or {})["x"] == x


def test_a_constrained_metric_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    searcher = searcher_of({"outcome_constraints": ["memory <= 0.5"]})
    with caplog.at_level(logging.WARNING):
        learn(searcher, [(x, y, {"loss": (1 - x) ** 2}) for x, y in GRID])
        config = searcher.get_config(50)
    assert config is not None
    assert config["x"] > 0.6  # nothing is known, nothing is avoided
    assert [
        record for record in caplog.records if "constrained metric 'memory'" in record.getMessage()
    ] == caplog.records
    assert len(caplog.records) == 1
    # Of those that lack it the prediction counts: the one at .95 is not taken for the incumbent.
    learn(searcher, [(x, y, {"loss": (1 - x) ** 2, "memory": x}) for x, y in GRID if x < 0.9])
    searcher.get_config(51)
    assert searcher.last_reason is not None
    assert searcher.last_reason.incumbent == pytest.approx(0.65**2)


# ---- failures --------------------------------------------------------------------------------------------


def test_failures_are_avoided() -> None:
    chosen = {}
    for learn_feasibility in (True, False):
        searcher = searcher_of({"learn_feasibility": learn_feasibility})
        for number, (x, y) in enumerate(GRID):
            if 0.2 < x < 0.8:
                searcher.evaluation_failed(number, {"x": x, "y": y}, True)
            else:
                searcher.on_trial_result(number, {"x": x, "y": y}, {"loss": (x - 0.4) ** 2}, True)
        config = searcher.get_config(50)
        assert config is not None
        chosen[learn_feasibility] = config["x"]
        assert searcher.last_reason is not None
        assert (searcher.last_reason.feasibility is not None) == learn_feasibility, searcher.last_reason
    assert 0.2 < chosen[False] < 0.8  # the middle is the least known
    assert not 0.2 < chosen[True] < 0.8


def test_failures_that_were_not_their_own_do_not_count() -> None:
    searcher = searcher_of({"learn_feasibility": True})
    learn(searcher, [(x, y, {"loss": (1 - x) ** 2}) for x, y in GRID if x < 0.5])
    for number in range(20, 26):
        searcher.evaluation_failed(number, {"x": 0.9, "y": 0.1 * (number - 20)}, False)
    searcher.get_config(50)
    assert searcher.last_reason is not None
    assert searcher.last_reason.feasibility is None


def test_only_failures_so_far() -> None:
    searcher = searcher_of({"learn_feasibility": True, "num_init_random": 3})
    for number in range(5):
        searcher.evaluation_failed(number, {"x": 0.9, "y": 0.2 * number}, True)
    config = searcher.get_config(50)
    assert config is not None
    assert config["x"] < 0.5
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    assert searcher.last_reason.text == "nothing feasible is known"


@pytest.mark.slow
def test_fewer_failures_than_without() -> None:
    counts = {}
    for options in ({"learn_feasibility": True}, {}):
        scheduler = BayesianOptimization(SPACE, "loss", search_options={**FAST, **options}, random_seed=1)
        ask_tell, failed = AskTellScheduler(scheduler), []
        for _ in range(24):
            trial = ask_tell.ask()
            assert trial is not None
            x, y = trial.config["x"], trial.config["y"]
            failed.append(x > 0.5)
            if failed[-1]:
                ask_tell.fail(trial, "out of memory")
            else:
                ask_tell.tell(trial, {"loss": (x - 0.8) ** 2 + (y - 0.3) ** 2}, done=True)
        counts[bool(options)] = sum(failed)
    assert counts[False] >= 20  # the best values are beyond the edge
    assert counts[True] <= 16


# ---- the baseline ----------------------------------------------------------------------------------------


def test_the_mandatory_metric_must_be_reported() -> None:
    for scheduler in (
        ConstrainedBayesianOptimization(SPACE, "loss", "c"),
        HyperbandScheduler(
            {**SPACE, "epochs": 9},
            "loss",
            searcher="bayesopt_constrained",
            search_options={"constraint_attr": "c"},
            max_resource_attr="epochs",
        ),
    ):
        suggestion = scheduler.suggest(0)
        assert suggestion is not None
        assert suggestion.config is not None
        trial = Trial(0, suggestion.config, datetime.now())
        scheduler.on_trial_add(trial)
        with pytest.raises(ReportError, match="metric 'c' is missing in the report, which has"):
            scheduler.on_trial_result(trial, {"loss": 1.0, "epoch": 1})
        with pytest.raises(ReportError, match="metric 'c' must be a number, the report has 'no'"):
            scheduler.on_trial_result(trial, {"loss": 1.0, "epoch": 1, "c": "no"})
        scheduler.on_trial_result(trial, {"loss": 1.0, "epoch": 1, "c": 1.0})


def test_bad_arguments_of_the_baseline() -> None:
    assert baselines_dict["ConstrainedBayesianOptimization"] is ConstrainedBayesianOptimization
    with pytest.raises(TypeError, match="constraint_attr must be the name of a reported metric, got 3"):
        ConstrainedBayesianOptimization(SPACE, "loss", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="search_options has constraint_attr='d', but the argument is 'c'"):
        ConstrainedBayesianOptimization(SPACE, "loss", "c", search_options={"constraint_attr": "d"})
    with pytest.raises(ValueError, match="initial_scoring='thompson_indep' cannot be used"):
        ConstrainedBayesianOptimization(SPACE, "loss", "c", search_options={"initial_scoring": "thompson_indep"})
    with pytest.raises(ValueError, match="constraint_attr is missing"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_constrained")
    with pytest.raises(ValueError, match="unknown option 'constraint_atr' .*did you mean 'constraint_attr'"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_constrained", search_options={"constraint_atr": "c"})


# ---- does it help ----------------------------------------------------------------------------------------


def _best_feasible(scheduler: TrialScheduler, n: int) -> float:
    """Return the best feasible value of Branin after n trials; its three minima are not feasible."""
    ask_tell, best = AskTellScheduler(scheduler), math.inf
    for _ in range(n):
        trial = ask_tell.ask()
        assert trial is not None
        x, y = trial.config["x"], trial.config["y"]
        wave = y - 5.1 * x * x / (4 * math.pi**2) + 5 * x / math.pi - 6
        value = wave**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10
        broken = (x - 5) ** 2 + (y - 9) ** 2 - 16
        if broken <= 0:
            best = min(best, value)
        ask_tell.tell(trial, {"loss": value, "c": broken}, done=True)
    return best


@pytest.mark.slow
@pytest.mark.timeout(300)  # 500 trials, half a minute on an idle core
def test_it_beats_plain_bayesian_optimisation_where_the_optimum_is_infeasible() -> None:
    space = {"x": uniform(-5, 10), "y": uniform(0, 15)}
    ours, plain = [], []
    for seed in range(10):
        ours.append(
            _best_feasible(
                ConstrainedBayesianOptimization(space, "loss", "c", search_options=FAST, random_seed=seed), 25
            )
        )
        plain.append(_best_feasible(BayesianOptimization(space, "loss", search_options=FAST, random_seed=seed), 25))
    assert all(a <= b for a, b in zip(ours, plain, strict=True))
    wins = sum(a < b - 1.0 for a, b in zip(ours, plain, strict=True))
    assert wins >= 9  # a sign test: 1 %
    assert max(ours) < 11.0  # the optimum is 10.4
