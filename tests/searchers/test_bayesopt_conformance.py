"""Bayesian optimisation keeps the contract of searchers; its state continues in every driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sklearn.linear_model import BayesianRidge

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import BayesianOptimization, BoTorch
from sthyper.config_space import choice, randint, uniform
from sthyper.schedulers import AskTellScheduler, TrialScheduler
from sthyper.searchers import RandomSearcher, SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.testing import SchedulerConformance, SearcherConformance, replay
from sthyper.testing._checks import copies_of_state

# Small searches: what is tested is not how good they are.
FAST: dict[str, Any] = {
    "num_init_candidates": 16,
    "num_local_candidates": 16,
    "opt_maxiter": 5,
    "num_fantasy_samples": 4,
}
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 9), "act": choice(["a", "b", "c"]), "epochs": 3}


class TestBayesianOptimization(SearcherConformance):
    n_suggestions = 5
    options: ClassVar[dict[str, Any]] = {}

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BayesianOptimizationSearcher:
        options = BayesOptOptions(**{"random_seed": random_seed, "num_init_random": 2, **FAST, **self.options})
        return BayesianOptimizationSearcher(
            config_space, "loss", points_to_evaluate=points_to_evaluate, options=options
        )


@pytest.mark.slow
class TestSyneTunePreset(TestBayesianOptimization):
    options: ClassVar[dict[str, Any]] = {"preset": "syne-tune"}


class TestUsersModel(TestBayesianOptimization):
    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BayesianOptimizationSearcher:
        fast = {name: value for name, value in FAST.items() if name != "opt_maxiter"}
        options = BayesOptOptions(random_seed=random_seed, num_init_random=2, surrogate=BayesianRidge(), **fast)
        return BayesianOptimizationSearcher(
            config_space, "loss", points_to_evaluate=points_to_evaluate, options=options
        )


@pytest.mark.slow
class TestRepeats(TestBayesianOptimization):
    repeats_configurations = True
    options: ClassVar[dict[str, Any]] = {"allow_duplicates": True}


@pytest.mark.slow
class TestBaseline(SchedulerConformance):
    n_positions = 5

    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        # Most of the 30 trials of the tests are random ones, so that these take seconds.
        options = FAST | {"num_init_random": 12}
        return BayesianOptimization(config_space, "loss", random_seed=random_seed, search_options=options)


@pytest.mark.slow
class TestBoTorchBaseline(SchedulerConformance):
    n_positions = 3

    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        # The model has its turn in the small space and in the tests of the searcher.
        options = {"num_init_random": 25}
        return BoTorch(config_space, "loss", random_seed=random_seed, search_options=options)


def test_a_finite_space_is_used_up_by_the_model() -> None:
    """Every configuration comes once, most of them by the model, and those of other trials do not."""
    space = {"a": choice(["p", "q", "r", "s"]), "n": randint(1, 4)}
    searcher = BayesianOptimizationSearcher(space, "loss", options=BayesOptOptions(random_seed=1, **FAST))
    searcher.on_trial_result(-1, {"a": "q", "n": 4}, {"loss": 3.0}, True)
    seen, kinds = [("q", 4)], []
    while (config := searcher.get_config(len(seen))) is not None:
        assert searcher.last_reason is not None
        kinds.append(searcher.last_reason.kind)
        searcher.register_pending(len(seen), config)
        searcher.on_trial_result(len(seen), config, {"loss": config["n"] + (config["a"] == "p")}, True)
        seen.append((config["a"], config["n"]))
    assert sorted(seen) == sorted((a, n) for a in "pqrs" for n in range(1, 5))
    assert kinds.count("model") >= 8


def test_the_random_phase_is_that_of_random_search() -> None:
    points = [{"x": 0.25}]
    ours = BayesianOptimizationSearcher(
        SPACE, "loss", points_to_evaluate=points, options=BayesOptOptions(num_init_random=6)
    )
    random = RandomSearcher(SPACE, "loss", points_to_evaluate=points)
    for searcher in (ours, random):
        searcher.configure(SearcherContext("loss", random_seed=17))
    for number in range(6):
        config = ours.get_config(number)
        assert config == random.get_config(number)
        assert config is not None
        ours.on_trial_result(number, config, {"loss": config["x"]}, True)
        random.on_trial_result(number, config, {"loss": config["x"]}, True)
    assert ours.get_config(6) != random.get_config(6)


def test_ask_and_tell_continues_where_its_state_was_taken() -> None:
    def make() -> AskTellScheduler:
        return AskTellScheduler(BayesianOptimization(SPACE, "loss", random_seed=5, search_options=FAST))

    def play(scheduler: AskTellScheduler, until: int) -> list[dict[str, Any]]:
        """Two trials run at the same time; one fails."""
        while len(scheduler.trials) < until or scheduler.running_trials:
            if len(scheduler.running_trials) < 2 and len(scheduler.trials) < until:
                scheduler.ask()
                continue
            trial = scheduler.running_trials[0]
            if trial.trial_id == 4:
                scheduler.fail(trial)
            else:
                scheduler.tell(trial, loss=(trial.config["x"] - 0.3) ** 2 + 0.1 * trial.config["n"], done=True)
            if len(scheduler.trials) == until:
                break
        return [trial.config for trial in scheduler.trials.values()]

    expected = play(make(), 8)
    scheduler = make()
    play(scheduler, 6)
    for name, state in copies_of_state(scheduler.state_dict()):
        twin = make()
        twin.load_state_dict(state)
        assert play(twin, 8) == expected, name


def test_the_first_fit_after_loading_is_warm() -> None:
    searcher = BayesianOptimizationSearcher(SPACE, "loss", options=BayesOptOptions(random_seed=1))
    for number in range(8):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": (config["x"] - 0.3) ** 2}, True)
    twin = BayesianOptimizationSearcher(SPACE, "loss", options=BayesOptOptions(random_seed=1))
    twin.load_state_dict(searcher.state_dict())
    assert twin.model_parameters() == searcher.model_parameters() != {}
    state, other = (each.suggester.surrogate.state_dict() for each in (searcher, twin))
    assert torch.equal(state["theta"], other["theta"])
    assert twin.get_config(9) == searcher.get_config(9)


TRAIN = """
from sthyper import Reporter
report = Reporter()
report(loss=(report.config["x"] - 0.3) ** 2 + 0.01 * report.config["n"])
"""


@pytest.mark.parametrize("save_tuner", [True, False], ids=["snapshot", "journal"])
def test_a_resumed_experiment_suggests_what_the_whole_one_does(tmp_path: Path, save_tuner: bool) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)

    def scheduler() -> BayesianOptimization:
        return BayesianOptimization(SPACE, "loss", random_seed=5, search_options=FAST)

    def tuner(trials: int, name: str) -> Tuner:
        criterion = StoppingCriterion(max_num_trials_started=trials)
        backend = LocalBackend(script, launch="inline")
        return Tuner(backend, scheduler(), criterion, 1, tuner_name=name, save_tuner=save_tuner)

    whole, part = tuner(8, "whole"), tuner(5, "part")
    whole.run()
    part.run()
    resumed = Tuner.resume(part.tuner_path, stop_criterion=StoppingCriterion(max_num_trials_started=8))
    resumed.run()
    configs = [[trial.config for trial in load_experiment(each.tuner_path).trials.values()] for each in (whole, part)]
    assert len(configs[0]) == 8
    assert configs[0] == configs[1]
    assert replay(part.tuner_path, scheduler()) == []
