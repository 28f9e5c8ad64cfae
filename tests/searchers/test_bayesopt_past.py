"""Experiments in the past, and the best configuration by the model."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.baselines import ASHA, BayesianOptimization, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ConfigSpaceError
from sthyper.schedulers import AskTellScheduler
from sthyper.searchers import SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.testing._simulated_backend import SimulatedTrials

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 9), "epochs": 3}
PAIRS = [({"x": x, "n": n}, (x - 0.4) ** 2 + 0.01 * n) for x in (0.1, 0.3, 0.5, 0.9) for n in (1, 5)]


def make(mode: str = "min", metric: str | None = "loss", **options: Any) -> BayesianOptimizationSearcher:
    return BayesianOptimizationSearcher(SPACE, metric, mode, options=BayesOptOptions(**{"random_seed": 3, **options}))


def first_suggestion(searcher: BayesianOptimizationSearcher) -> tuple[dict[str, Any], int]:
    searcher.next_initial_config()
    config = searcher.get_config(0)
    assert config is not None
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    return config, searcher.last_reason.num_observations


def frame(pairs: list[tuple[dict[str, Any], float]]) -> pd.DataFrame:
    rows = []
    for trial_id, (config, loss) in enumerate(pairs):
        for epoch in (1, 2):
            row = {"trial_id": trial_id, "epoch": epoch, "loss": loss + (2 - epoch), "st_status": "InProgress"}
            rows.append(row | {f"config_{k}": v for k, v in config.items()})
    return pd.DataFrame(rows)


# ---- forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trials",
    [
        PAIRS,
        iter(PAIRS),
        [(config, {"loss": loss, "memory": 3}) for config, loss in PAIRS],
        [(config, [{"loss": 9.0}, {"loss": np.float64(loss)}]) for config, loss in PAIRS],
        [({**config, "x": np.float64(config["x"]), "epochs": 3}, np.float64(loss)) for config, loss in PAIRS],
        frame(PAIRS),
    ],
    ids=["pairs", "iterator", "metrics", "reports", "numpy", "frame"],
)
def test_forms_of_the_past_are_the_same(trials: Any) -> None:
    expected = make()
    for number, (config, loss) in enumerate(PAIRS):
        expected.on_trial_result(-1 - number, config, {"loss": loss}, True)
    searcher = make()
    assert searcher.fit_on(trials) == len(PAIRS)
    assert first_suggestion(searcher) == first_suggestion(expected)
    assert searcher.dataset_size() == len(PAIRS)


def test_the_past_is_not_suggested_again_and_counts() -> None:
    space = {"a": choice(["p", "q", "r", "s"])}
    searcher = BayesianOptimizationSearcher(
        space, "loss", points_to_evaluate=[], options=BayesOptOptions(random_seed=0)
    )
    searcher.fit_on([({"a": "p"}, 1.0), ({"a": "r"}, 2.0), ({"a": "q"}, 3.0)])
    assert searcher.get_config(0) == {"a": "s"}
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    assert searcher.get_config(1) is None


def test_mode_and_metric_of_the_scheduler_count() -> None:
    search = BayesianOptimization(SPACE, "accuracy", mode="max", random_seed=1)
    assert isinstance(search.searcher, BayesianOptimizationSearcher)
    search.searcher.fit_on([(config, -loss) for config, loss in PAIRS])
    scheduler = AskTellScheduler(search)
    trial = scheduler.ask()
    assert trial is not None
    scheduler.tell(trial, accuracy=-9.0, done=True)
    assert search.searcher.best_config() == {"x": 0.3, "n": 1}
    own = BayesianOptimizationSearcher(SPACE)
    own.fit_on(PAIRS)
    with pytest.raises(ValueError, match="fit_on needs the name of the metric"):
        own.get_config(0)
    own = BayesianOptimizationSearcher(SPACE)
    own.fit_on([(config, -loss) for config, loss in PAIRS])
    own.configure(SearcherContext("accuracy", "max"))
    assert own.best_config() == {"x": 0.3, "n": 1}


def test_reports_count_at_their_resource() -> None:
    searcher = make()
    searcher.fit_on(frame(PAIRS))
    searcher.fit_on([({"x": 0.2, "n": 2}, 0.5)])
    searcher.configure(SearcherContext("loss", resource_attr="epoch", max_resource_level=9))
    searcher.best_trial()
    assert searcher.dataset_size() == 2 * len(PAIRS) + 1
    levels = {epoch for trial in searcher._observations.trials.values() for epoch in trial.values}
    assert levels == {1, 2, 9}


def test_an_experiment() -> None:
    tuner = Tuner(
        SimulatedTrials(epochs=3),
        RandomSearch(SPACE, "loss", random_seed=0),
        StoppingCriterion(max_num_trials_started=8),
        n_workers=2,
        tuner_name="past",
    )
    experiment = tuner.run()
    searcher = make()
    assert searcher.fit_on(experiment) == 8
    first_suggestion(searcher)
    assert searcher.dataset_size() == 8
    best = experiment.best_config()
    other = make()
    assert other.fit_on(load_experiment(tuner.name)) == 8
    config = other.best_config()
    assert config is not None
    last = experiment.results.groupby("trial_id").last()
    assert config["x"] == last.loc[last["loss"].idxmin(), "config_x"]
    assert best["loss"] <= last["loss"].min()
    with pytest.raises(ValueError, match="'loss' has the mode 'min' in the experiment and 'max' here"):
        make("max").fit_on(experiment)
    with pytest.raises(ValueError, match=re.escape("'lost' is not among the results (did you mean 'loss'?)")):
        make(metric="lost").fit_on(experiment)


def test_trials_that_did_not_complete_have_no_result() -> None:
    tuner = Tuner(
        SimulatedTrials(epochs=9),
        ASHA(SPACE | {"epochs": 9}, "loss", max_resource_attr="epochs", random_seed=0),
        StoppingCriterion(max_num_trials_started=12),
        n_workers=1,
        tuner_name="past",
    )
    experiment = tuner.run()
    completed = [t for t in experiment.trials.values() if t.status == "Completed"]
    assert 0 < len(completed) < 12
    searcher = make()
    assert searcher.fit_on(experiment) == 12
    searcher.best_trial()
    assert searcher.dataset_size() == len(completed)


def test_what_cannot_be_used_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    searcher = make()
    outside = [({"x": 2.0, "n": 1}, 0.0), ({"x": 0.5, "n": 1}, math.nan), ({"x": 0.7, "n": 2}, math.inf)]
    assert searcher.fit_on([*PAIRS, *outside]) == len(PAIRS) + 2
    assert "fit_on: 1 of 11 configurations are passed over" in caplog.text
    first_suggestion(searcher)
    assert searcher.dataset_size() == len(PAIRS)
    lacking = frame(PAIRS).drop(columns="config_n")
    assert make().fit_on(lacking) == 0
    assert make().fit_on(lacking, fill={"n": 3}) == len(PAIRS)


@pytest.mark.parametrize(
    ("trials", "fill", "error", "message"),
    [
        ("experiment", None, TypeError, "trials must be an experiment, a data frame of results or pairs"),
        (3, None, TypeError, "trials must be an experiment"),
        ([{"x": 0.5, "n": 1}], None, TypeError, "trials[0] must be a pair"),
        ([({"x": 0.5, "n": 1}, "low")], None, TypeError, "trials[0] must have a number"),
        ([({"x": 0.5, "n": 1}, True)], None, TypeError, "trials[0] must have a number"),
        ([({"x": 0.5, "n": 1}, [])], None, ValueError, "trials[0] must hold at least one report"),
        ([({"x": 0.5}, 1.0)], None, ConfigSpaceError, "trials[0]: the configuration lacks n"),
        ([({"x": 0.5}, 1.0)], {"m": 2}, ConfigSpaceError, "fill: 'm' is no domain"),
        ([({"x": 0.5}, 1.0)], {"n": 99}, ConfigSpaceError, "fill: value 99 of 'n' cannot be used"),
        ([({"x": 0.5}, 1.0)], 3, TypeError, "fill must be a dict"),
    ],
)
def test_bad_forms(trials: Any, fill: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make().fit_on(trials, fill)


def test_state_has_the_past_before_and_after_it_is_read() -> None:
    searcher = make()
    searcher.fit_on(PAIRS)
    expected = make()
    expected.load_state_dict(searcher.state_dict())
    found = first_suggestion(searcher)
    assert first_suggestion(expected) == found
    later = make()
    later.load_state_dict(searcher.state_dict())
    more = [({"x": 0.4, "n": 3}, 0.2)]
    for each in (searcher, later):
        each.fit_on(more)
    assert searcher.get_config(1) == later.get_config(1)
    assert later.dataset_size() == len(PAIRS) + 1
    assert len(later._observations.trials) == len(PAIRS) + 1


# ---- the best --------------------------------------------------------------------------------------------


def noisy(mode: str = "min", lucky: float = -0.22) -> list[tuple[dict[str, Any], float]]:
    """Return results of a noisy metric that is best near x = 0.4; one at x = 0.75 was lucky."""
    rng = random.Random(0)
    xs = [0.099 * i + 0.001 * k for i in range(11) for k in range(3)]  # each nearly three times: that shows the noise
    pairs = [({"x": x, "n": 5}, (x - 0.4) ** 2 + rng.gauss(0, 0.1)) for x in xs]
    pairs.append(({"x": 0.75, "n": 5}, lucky))
    return [(config, value if mode == "min" else 10 - value) for config, value in pairs]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_by_the_model_is_not_the_lucky_one(mode: str) -> None:
    searcher = make(mode, preset="syne-tune")
    assert searcher.best_config() is None
    assert searcher.best_config(by="model") is None
    searcher.fit_on(noisy(mode))
    assert searcher.best_config() == {"x": 0.75, "n": 5}
    best = searcher.best_config(by="model")
    assert best is not None
    assert abs(best["x"] - 0.4) < 0.15
    assert searcher.best_trial(past=False) is None
    searcher.on_trial_result(0, {"x": 0.71, "n": 5}, {"loss": 0.2 if mode == "min" else 9.8}, True)
    assert searcher.best_trial(past=False) == searcher.best_trial(by="model", past=False) == 0
    with pytest.raises(ValueError, match=re.escape("by must be 'observed' or 'model', got 'models' (did you mean")):
        searcher.best_config(by="models")


def test_asking_for_the_best_changes_no_suggestion() -> None:
    asked, quiet = make(), make()
    for searcher in (asked, quiet):
        searcher.fit_on(PAIRS)
    for number in range(3):
        if number != 1:
            asked.best_config(by="model")
        found = [searcher.get_config(number) for searcher in (asked, quiet)]
        assert found[0] == found[1]
        for searcher in (asked, quiet):
            searcher.on_trial_result(number, found[0] or {}, {"loss": 0.3 - 0.01 * number}, True)


@pytest.mark.parametrize("search", [BayesianOptimization, RandomSearch])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_of_ask_and_tell(search: Any, mode: str) -> None:
    points = [config for config, _ in noisy(mode)]
    options = {"preset": "syne-tune"} if search is BayesianOptimization else None
    scheduler = AskTellScheduler(
        search(SPACE, "loss", mode=mode, random_seed=0, points_to_evaluate=points, search_options=options)
    )
    for _, value in noisy(mode):
        trial = scheduler.ask()
        assert trial is not None
        scheduler.tell(trial, loss=value, done=True)
    assert scheduler.best_trial().config["x"] == 0.75
    assert abs(scheduler.best_trial(by="model").config["x"] - 0.4) < 0.15
    with pytest.raises(ValueError, match="by must be"):
        scheduler.best_trial(by="luck")


def lucky_loss(x: float, n: int, epochs: int) -> float:
    return next(value for config, value in noisy() if abs(config["x"] - x) < 1e-9)


@pytest.mark.parametrize("search", [BayesianOptimization, RandomSearch])
def test_best_of_an_experiment(search: Any) -> None:
    from sthyper.backend import PythonBackend

    points = [config for config, _ in noisy()]
    options = {"preset": "syne-tune"} if search is BayesianOptimization else None
    scheduler = search(SPACE, "loss", random_seed=0, points_to_evaluate=points, search_options=options)
    tuner = Tuner(
        PythonBackend(lucky_loss, SPACE, launch="inline"),
        scheduler,
        StoppingCriterion(max_num_trials_started=len(points)),
        1,
    )
    with pytest.raises(ValueError, match="no trial has reported"):
        tuner.best_config(by="model")
    experiment = tuner.run()
    lucky = len(points) - 1
    assert tuner.best_config()[0] == experiment.best_config()["trial_id"] == lucky
    trial_id, config = tuner.best_config(by="model")
    assert abs(config["x"] - 0.4) < 0.15
    row = experiment.best_config(by="model")
    assert row["trial_id"] == trial_id
    assert row["config_x"] == config["x"]
    assert abs(load_experiment(tuner.name).best_config("loss", by="model")["config_x"] - 0.4) < 0.15
    for ask in (tuner.best_config, experiment.best_config):
        with pytest.raises(ValueError, match="by must be"):
            ask(by="luck")


def test_without_a_usable_result_there_is_no_best() -> None:
    tuner = Tuner(
        SimulatedTrials(epochs=3),
        RandomSearch(SPACE, "epoch", random_seed=0),
        StoppingCriterion(max_num_evaluations=1),
        1,
    )
    assert tuner.run().best_config(by="model") == {}  # its only trial did not complete
