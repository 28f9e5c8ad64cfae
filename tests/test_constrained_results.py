"""What is best in an experiment with constraints on reported metrics keeps them."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sthyper import Reporter, StoppingCriterion, Tuner, load_experiment
from sthyper._metrics_statistics import BREAKS, KEEPS, UNKNOWN, ConstraintRecord
from sthyper.backend import PythonBackend
from sthyper.baselines import ConstrainedBayesianOptimization
from sthyper.config_space import uniform
from sthyper.experiment import ExperimentResult
from sthyper.schedulers import AskTellScheduler, FIFOScheduler
from sthyper.searchers import BaseSearcher, RandomSearcher, SKLearnSurrogateSearcher
from sthyper.searchers.bayesopt.botorch import BoTorchOptions, BoTorchSearcher
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
from sthyper.searchers.feasible import FeasibilitySearcher
from sthyper.trial import Status, Trial
from sthyper.tuning_status import TuningStatus

SPACE: dict[str, Any] = {"x": uniform(0, 1)}
POINTS = [{"x": 0.9}, {"x": 0.2}, {"x": 0.4}, {"x": 0.7}]
"""The loss falls with x, and up to 0.5 it is feasible: trial 2 is the best, trial 0 has the least loss."""


def train(x: float) -> None:
    reporter = Reporter()
    Path(reporter.checkpoint_dir, "model").write_text(str(x))
    reporter(loss=1 - x, con=x - 0.5)


def scheduler_of(kind: str, bound: float = 0.0, mode: str = "min") -> FIFOScheduler:
    options = {"outcome_constraints": [f"con <= {bound!r}"]}
    if kind == "baseline":
        return ConstrainedBayesianOptimization(
            SPACE, "loss", "con", points_to_evaluate=POINTS, random_seed=0, search_options={"num_init_random": 4}
        )
    return FIFOScheduler(
        SPACE, "loss", mode, searcher=kind, search_options=options, points_to_evaluate=POINTS, random_seed=0
    )


def run(scheduler: FIFOScheduler, **options: Any) -> Tuner:
    backend = PythonBackend(train, SPACE, launch="inline", **options)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_finished=4), n_workers=1)
    tuner.run()
    return tuner


# ---- constraints and reports -----------------------------------------------------------------------------


def test_reports_are_ranked_by_what_is_known_of_their_trial() -> None:
    record = ConstraintRecord([OutcomeConstraint("a", "<=", 1.0), OutcomeConstraint("b", ">", 2.0)])
    assert record.add(0, {"a": 0.0}) == UNKNOWN
    assert record.add(0, {"b": 3.0}) == KEEPS, "a is known from the report before"
    assert record.add(0, {"a": float("nan"), "b": True}) == KEEPS
    assert record.add(1, {"b": 3.0}) == UNKNOWN, "another trial"
    assert record.add(1, {"b": 2.0}) == BREAKS
    again = ConstraintRecord(record.constraints)
    again.load_state_dict(json.loads(json.dumps(record.state_dict())))
    assert again.add(0, {}) == KEEPS
    assert ConstraintRecord().add(0, {"a": 9.0}) == KEEPS


@pytest.mark.parametrize("metric", ["con", "a < b", "with spaces <= 3", "1"])
@pytest.mark.parametrize("bound", [8123456789.125, -0.1, 0.0])
def test_texts_of_constraints_are_exact(metric: str, bound: float) -> None:
    constraint = OutcomeConstraint(metric, ">=", bound)
    assert OutcomeConstraint.from_text(constraint.text) == constraint


def test_texts_of_users_are_read_too() -> None:
    assert OutcomeConstraint.from_text("memory<=8e9") == OutcomeConstraint("memory", "<=", 8e9)
    with pytest.raises(ValueError, match="cannot be parsed"):
        OutcomeConstraint.from_text("memory <= much")


def test_the_status_prefers_reports_that_keep_the_constraints() -> None:
    constraints = [OutcomeConstraint("con", "<=", 0.0)]
    status = TuningStatus(["loss"], constraints=constraints)
    trials = {number: Trial(number, {}, datetime.now()) for number in range(4)}
    for trial in trials.values():
        status.add_trial(trial)
    assert status.best("loss", "min") is None
    status.add_result(0, {"loss": 0.1, "con": 1.0})
    assert (status.best("loss", "min"), status.last_rank(0)) == ((0, 0.1), BREAKS)
    status.add_result(1, {"loss": 0.9})
    assert (status.best("loss", "min"), status.last_rank(1)) == ((1, 0.9), UNKNOWN)
    assert not status.best_keeps_constraints("loss", "min")
    status.add_result(2, {"loss": 0.5, "con": 0.0})
    status.add_result(2, {"loss": 0.2, "con": 0.1})
    status.add_result(3, {"loss": 0.6, "con": -1.0})
    assert status.best("loss", "min") == (2, 0.5), "the report counts, not the trial"
    assert status.best("loss", "max") == (3, 0.6)
    assert status.best_keeps_constraints("loss", "min")
    status.set_status(3, Status.completed)
    again = TuningStatus(["loss"], constraints=constraints)
    again.load_state_dict(json.loads(json.dumps(status.state_dict())), trials)
    assert again.best("loss", "min") == (2, 0.5)
    again.add_result(1, {"loss": 0.3, "con": -1.0})
    assert again.best("loss", "min") == (1, 0.3)
    again.add_result(3, {"loss": 0.05})
    assert again.best("loss", "min") == (3, 0.05), "con is known from before"


# ---- experiments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["baseline", "random", "bayesopt"])
def test_the_best_trial_keeps_the_constraints(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tuner = run(scheduler_of(kind), delete_checkpoints=True)
    experiment = load_experiment(tuner.tuner_path)
    for by in ("observed", "model"):
        assert tuner.best_config(by=by) == (2, {"x": 0.4})
        assert experiment.best_config(by=by)["trial_id"] == 2
    assert (experiment.best_value, experiment.best_trial_id) == (pytest.approx(0.6), 2)
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.read_text() == "0.4"
    assert "trial 2" in str(experiment)
    kept = [folder for folder in (tuner.tuner_path / "trials").iterdir() if (folder / "checkpoints" / "model").exists()]
    assert [folder.name for folder in kept] == ["2"], "the checkpoint of the best trial stays"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (
        Tuner.load(tuner.tuner_path, trial_backend=PythonBackend(train, SPACE, launch="inline")).best_config()[0] == 2
    )


def test_without_a_feasible_report_the_best_other_is_returned_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tuner = run(scheduler_of("random", bound=-0.9))
    assert tuner.best_config()[0] == 0
    assert "keep all constraints (con <= -0.9)" in caplog.text
    caplog.clear()
    experiment = load_experiment(tuner.tuner_path)
    assert experiment.best_trial_id == 0
    assert experiment.best_config()["trial_id"] == 0
    assert caplog.text.count("keep all constraints") == 1


@pytest.mark.parametrize(("entry", "best"), [(None, 0), (["con <= 0.0"], 2), (["con"], 0), (7, 0)])
def test_metadata_say_which_constraints_there_were(
    tmp_path: Path, entry: Any, best: int, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = run(scheduler_of("random"))
    metadata = json.loads((tuner.tuner_path / "metadata.json").read_text())
    assert metadata.pop("outcome_constraints") == ["con <= 0.0"]
    if entry is not None:
        metadata["outcome_constraints"] = entry
    for by in ("observed", "model"):
        experiment = ExperimentResult(tuner.name, tuner.tuner_path, metadata)
        assert experiment.best_config(by=by)["trial_id"] == best
    assert ("are passed over" in caplog.text) == (entry in (["con"], 7))


def test_mode_max(caplog: pytest.LogCaptureFixture) -> None:
    tuner = run(scheduler_of("random", bound=0.3, mode="max"))
    assert load_experiment(tuner.tuner_path).best_trial_id == tuner.best_config()[0] == 1


@pytest.mark.parametrize("by", ["observed", "model"])
@pytest.mark.parametrize("kind", ["baseline", "random"])
def test_ask_and_tell(kind: str, by: str, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = AskTellScheduler(scheduler_of(kind))
    for number in range(4):
        trial = scheduler.ask()
        assert trial is not None
        x = trial.config["x"]
        scheduler.tell(trial, {"loss": 1 - x, "con": x - 0.5}, done=True)
        if number == 0:
            assert scheduler.best_trial().trial_id == 0
            assert "keep all constraints" in caplog.text
            caplog.clear()
    assert scheduler.best_trial(by=by).trial_id == 2
    assert not caplog.text


def test_searchers_around_others_have_the_constraints_of_both() -> None:
    inner = FeasibilitySearcher(RandomSearcher(SPACE, "loss"), ["a <= 1"])
    scheduler = FIFOScheduler(SPACE, "loss", searcher=FeasibilitySearcher(inner, ["b <= 2", "a <= 1"]))
    assert [str(constraint) for constraint in scheduler.outcome_constraints()] == ["b <= 2", "a <= 1"]
    assert scheduler.metadata()["outcome_constraints"] == ["b <= 2.0", "a <= 1.0"]
    assert FIFOScheduler(SPACE, "loss").outcome_constraints() == ()


# ---- searchers with models of others ---------------------------------------------------------------------


def searcher_of(kind: str, options: dict[str, Any]) -> BaseSearcher:
    if kind == "sklearn":
        from sklearn.gaussian_process import GaussianProcessRegressor

        return SKLearnSurrogateSearcher(
            SPACE, "loss", GaussianProcessRegressor(alpha=1e-4), points_to_evaluate=[], random_seed=0, **options
        )
    return BoTorchSearcher(
        SPACE, "loss", points_to_evaluate=[], options=BoTorchOptions(random_seed=0, acq_function=kind, **options)
    )


@pytest.mark.parametrize("kind", ["logei", "ei", "sklearn"])
@pytest.mark.parametrize("what", ["constraint", "failures", "nothing"])
@pytest.mark.slow
def test_searchers_with_models_of_others_avoid_what_is_infeasible(kind: str, what: str) -> None:
    options: dict[str, Any] = {
        "constraint": {"outcome_constraints": ["con <= 0"]},
        "failures": {"learn_feasibility": True},
        "nothing": {},
    }[what]
    searcher = searcher_of(kind, options)
    for number, x in enumerate([0.05, 0.15, 0.3, 0.45, 0.55, 0.7, 0.8, 0.9]):
        if what == "failures" and x > 0.5:
            searcher.evaluation_failed(number, {"x": x})
        else:
            searcher.on_trial_result(number, {"x": x}, {"loss": 1 - x, "con": x - 0.5}, True)
    config = searcher.get_config(9)
    assert config is not None
    if what == "nothing":
        assert config["x"] > 0.9, "the least loss"
    else:
        assert 0.3 < config["x"] < 0.55
        assert searcher.last_reason.feasibility > 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["logei", "ei"])
def test_without_a_feasible_target_the_likeliest_is_suggested(kind: str) -> None:
    searcher = searcher_of(kind, {"outcome_constraints": ["con <= 0"]})
    for number, x in enumerate([0.5, 0.6, 0.8, 0.9]):
        searcher.on_trial_result(number, {"x": x}, {"loss": 1 - x, "con": x - 0.2}, True)
    config = searcher.get_config(9)
    assert config is not None
    assert config["x"] < 0.3


def test_options_of_botorch_are_checked() -> None:
    with pytest.raises(ValueError, match="cannot be parsed"):
        BoTorchOptions(outcome_constraints=["memory"])
    with pytest.raises(TypeError, match="learn_feasibility"):
        BoTorchOptions(learn_feasibility=1)  # type: ignore[arg-type]
    scheduler = FIFOScheduler(SPACE, "loss", searcher="botorch", search_options={"outcome_constraints": ["a <= 1"]})
    assert scheduler.metadata()["outcome_constraints"] == ["a <= 1.0"]


def test_options_of_other_methods_are_explained() -> None:
    with pytest.raises(ValueError, match=r"multi-fidelity models \(MOBSTER, Hyper-Tune\), which searcher='bayesopt'"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt", search_options={"model": "gp_multitask"})
