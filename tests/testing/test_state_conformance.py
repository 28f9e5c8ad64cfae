"""Whatever keeps something from event to event can be saved and loaded: nothing is left out, broken ones are caught."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pkgutil
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sthyper
from sthyper import Tuner
from sthyper.baselines import ASHA
from sthyper.config_space import randint, uniform
from sthyper.constants import ST_TUNER_TIME
from sthyper.results_callback import StoreResultsAndModelParamsCallback, StoreResultsCallback
from sthyper.schedulers import AskTellScheduler, TrialScheduler
from sthyper.searchers.base import BaseSearcher
from sthyper.stopping_criterion import PlateauStopper, StoppingCriterion
from sthyper.testing import CallbackConformance, CriterionConformance, SchedulerConformance, SearcherConformance
from sthyper.testing._checks import copies_of_state
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback
from sthyper.tuning_status import TuningStatus

# ---- criteria --------------------------------------------------------------------------------------------


class TestPlateau(CriterionConformance):
    def make_criterion(self) -> PlateauStopper:
        return PlateauStopper("loss", std=0.05, num_trials=3, patience=9)


class TestImpatientPlateau(CriterionConformance):
    def make_criterion(self) -> PlateauStopper:
        return PlateauStopper("loss", std=0.2, num_trials=4)


class TestCounts(CriterionConformance):
    def make_criterion(self) -> StoppingCriterion:
        return StoppingCriterion(max_num_trials_completed=9, max_num_evaluations=60)


class TestTimeAndCost(CriterionConformance):
    def make_criterion(self) -> StoppingCriterion:
        return StoppingCriterion(max_wallclock_time=90, max_cost=0.5)


class TestThresholds(CriterionConformance):
    def make_criterion(self) -> StoppingCriterion:
        return StoppingCriterion(min_metric_value={"loss": 0.2}, max_metric_value={"lost": 1.0})


class _Patience:
    """Met when it has been asked 20 times after the tenth trial."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, status: TuningStatus) -> bool:
        self.calls += status.num_trials_started > 10
        return self.calls >= 20

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class _LosesItsCount(_Patience):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _HasNoState(_Patience):
    state_dict = load_state_dict = None  # type: ignore[assignment]


class _SavesObjects(_Patience):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "me": self}


class _IsRandom(_Patience):
    def __call__(self, status: TuningStatus) -> bool:
        return status.num_results > 10 and random.random() < 0.5


class _IsNever(_Patience):
    def __call__(self, status: TuningStatus) -> bool:
        return False


class _IsTruthy(_Patience):
    def __call__(self, status: TuningStatus) -> Any:
        return status.num_trials_started


_CRITERIA = CriterionConformance


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_LosesItsCount, _CRITERIA.test_state_continues_where_it_was_taken),
        (_HasNoState, _CRITERIA.test_state_continues_where_it_was_taken),
        (_SavesObjects, _CRITERIA.test_state_continues_where_it_was_taken),
        (_IsRandom, _CRITERIA.test_same_events_same_answers),
        (_IsNever, _CRITERIA.test_answers_are_bools_and_it_is_reached),
        (_IsTruthy, _CRITERIA.test_answers_are_bools_and_it_is_reached),
    ],
)
def test_a_broken_criterion_is_caught(broken: type[_Patience], check: Callable[[Any], None]) -> None:
    class Suite(CriterionConformance):
        def make_criterion(self) -> _Patience:
            return broken()

    class Sound(CriterionConformance):
        def make_criterion(self) -> _Patience:
            return _Patience()

    check(Sound())
    with pytest.raises(AssertionError):
        check(Suite())


# ---- callbacks -------------------------------------------------------------------------------------------


class TestStoreResults(CallbackConformance):
    def make_callback(self) -> TunerCallback:
        return StoreResultsCallback()

    def observe(self, callback: TunerCallback, tuner: Tuner) -> Any:
        assert isinstance(callback, StoreResultsCallback)
        frame = callback.dataframe().drop(columns=[ST_TUNER_TIME, "st_run"])
        return json.loads(frame.drop(columns="st_end_reason", errors="ignore").to_json(orient="records"))


class TestStoreResultsAndModelParams(TestStoreResults):
    def make_callback(self) -> TunerCallback:
        return StoreResultsAndModelParamsCallback()


class _Best(TunerCallback):
    """Keeps the best loss and how many reports it is old."""

    def __init__(self) -> None:
        self.best: float | None = None
        self.age = 0

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        self.age += 1
        if self.best is None or result["loss"] < self.best:
            self.best, self.age = result["loss"], 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.age = state["best"], state["age"]


class TestBest(CallbackConformance):
    def make_callback(self) -> TunerCallback:
        return _Best()

    def observe(self, callback: TunerCallback, tuner: Tuner) -> Any:
        assert isinstance(callback, _Best)
        return callback.best, callback.age


class _ForgetsItsAge(_Best):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


class _SavesNothing(_Best):
    def state_dict(self) -> dict[str, Any]:
        return {}


class _SavesATuple(_Best):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"pair": (1, 2)}


class _DrawsAge(_Best):
    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        super().on_trial_result(trial, status, result, decision)
        self.best = random.random()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_ForgetsItsAge, CallbackConformance.test_state_continues_where_it_was_taken),
        (_SavesNothing, CallbackConformance.test_state_continues_where_it_was_taken),
        (_SavesATuple, CallbackConformance.test_state_continues_where_it_was_taken),
        (_DrawsAge, CallbackConformance.test_same_events_same_outcome),
    ],
)
def test_a_broken_callback_is_caught(broken: type[_Best], check: Callable[[Any], None]) -> None:
    class Suite(TestBest):
        def make_callback(self) -> TunerCallback:
            return broken()

    with pytest.raises(AssertionError):
        check(Suite())


# ---- ask and tell ----------------------------------------------------------------------------------------


def test_ask_and_tell_goes_on_after_every_call() -> None:
    space = {"x": uniform(0, 1), "n": randint(1, 9), "epochs": 4}

    def make() -> AskTellScheduler:
        return AskTellScheduler(
            ASHA(space, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=2)
        )

    def calls(scheduler: AskTellScheduler) -> Iterator[Any]:
        """Ask and tell in turn, and yield what comes back; all that is needed is in the scheduler."""
        while len(scheduler.trials) < 12:
            running = scheduler.running_trials
            if len(running) < 2:
                trial = scheduler.ask()
                yield None if trial is None else (trial.trial_id, trial.config, trial.run, trial.seed)
                continue
            trial = min(running, key=lambda each: (each.last_resource or 0, each.trial_id))
            epoch = int(trial.last_resource or 0) + 1
            if trial.trial_id % 5 == 3:
                yield scheduler.fail(trial)
            else:
                yield scheduler.tell(trial, epoch=epoch, loss=trial.config["x"] + 1 / epoch)

    expected = list(calls(make()))
    assert len(expected) > 40
    scheduler = make()
    going = calls(scheduler)
    for position in range(len(expected)):
        for name, state in copies_of_state(scheduler.state_dict()):
            twin = make()
            twin.load_state_dict(state)
            assert list(calls(twin)) == expected[position:], (position, name)
        next(going)


# ---- nothing is left out ---------------------------------------------------------------------------------

TESTS = Path(__file__).parents[1]
HERE = "testing/test_state_conformance.py"
BASES = (TrialScheduler, BaseSearcher, TunerCallback)

# Class -> file and suite that run it; the suite makes objects of exactly this class.
SUITES: dict[str, tuple[str, str]] = {
    "baselines.ASHA": ("testing/test_conformance.py", "TestPromotion"),
    "baselines.BayesianOptimization": ("searchers/test_bayesopt_conformance.py", "TestBaseline"),
    "baselines.BoTorch": ("searchers/test_bayesopt_conformance.py", "TestBoTorchBaseline"),
    "baselines.ConstrainedBayesianOptimization": ("searchers/test_constrained_searcher.py", "TestConstrainedBaseline"),
    "baselines.CostAwareBayesianOptimization": ("searchers/test_bayesopt_cost.py", "TestBaseline"),
    "baselines.GridSearch": ("searchers/test_grid.py", "TestGridSearchConformance"),
    "baselines.RandomSearch": ("testing/test_conformance.py", "TestRandomSearch"),
    "results_callback.StoreResultsAndModelParamsCallback": (HERE, "TestStoreResultsAndModelParams"),
    "results_callback.StoreResultsCallback": (HERE, "TestStoreResults"),
    "schedulers.fifo.FIFOScheduler": ("testing/test_conformance.py", "TestFIFOMax"),
    "schedulers.hyperband.scheduler.HyperbandScheduler": ("testing/test_conformance.py", "TestStoppingByMaxT"),
    "searchers.bayesopt.botorch.BoTorchSearcher": ("searchers/test_botorch_searcher.py", "TestBoTorchConformance"),
    "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher": ("searchers/test_bayesopt_cost.py", "TestFine"),
    "searchers.bayesopt.searcher.BayesianOptimizationSearcher": (
        "searchers/test_bayesopt_conformance.py",
        "TestBayesianOptimization",
    ),
    "searchers.feasible.FeasibilitySearcher": ("searchers/test_feasible_searcher.py", "TestLearnsFailures"),
    "searchers.grid.GridSearcher": ("searchers/test_grid.py", "TestConformance"),
    "searchers.random.RandomSearcher": ("testing/test_conformance.py", "TestRandomSearcher"),
    "searchers.sklearn.SKLearnSurrogateSearcher": ("searchers/test_sklearn_searcher.py", "TestConformance"),
    "stopping_criterion.PlateauStopper": (HERE, "TestPlateau"),
    "stopping_criterion.StoppingCriterion": (HERE, "TestCounts"),
}
# Class -> a class that holds it and whose test would fail without its state. The loop's parts are compared field by
# field in test_snapshots_of_experiments.py.
PARTS = {
    "baselines._SearchToTheEnd": "baselines.RandomSearch",
    "_metrics_statistics.ConstraintRecord": "tuning_status.TuningStatus",
    "_metrics_statistics.MetricsStatistics": "tuning_status.TuningStatus",
    "_tuning.final_checkpoints.FinalCheckpoints": "_tuning.loop.TuningLoop",
    "_tuning.outcomes.Outcomes": "_tuning.loop.TuningLoop",
    "_tuning.steering.Steering": "_tuning.loop.TuningLoop",
    "_tuning.suggestions.Suggestions": "_tuning.loop.TuningLoop",
    "_tuning.trial_record.TrialRecord": "_tuning.loop.TuningLoop",
    "backend.base.TrialBackend": "_tuning.loop.TuningLoop",
    "schedulers.asked_trials.TrialHistory": "schedulers.ask_tell.AskTellScheduler",
    "schedulers.base.TrialScheduler": "baselines.ASHA",
    "schedulers.base.TrialSchedulerWithSearcher": "baselines.ASHA",
    "schedulers.clock.ExperimentClock": "baselines.ASHA",
    "schedulers.hyperband.brackets.HyperbandBracketManager": "baselines.ASHA",
    "schedulers.hyperband.costs.TrialCosts": "baselines.ASHA",
    "schedulers.hyperband.promotion.PromotionRungSystem": "baselines.ASHA",
    "schedulers.hyperband.record.TrialInformation": "baselines.ASHA",
    "schedulers.hyperband.rungs.Rung": "baselines.ASHA",
    "schedulers.hyperband.rungs.RungSystem": "baselines.ASHA",
    "searchers.base.BaseSearcher": "searchers.random.RandomSearcher",
    "searchers.bayesopt.cost_model.CoarseCostLearner": "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher",
    "searchers.bayesopt.cost_model.CostLearner": "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher",
    "searchers.bayesopt.cost_model.FineCostLearner": "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher",
    "searchers.bayesopt.draws.RandomDraws": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "searchers.bayesopt.data.Observations": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "searchers.bayesopt.feasibility.FeasibilityModel": "searchers.feasible.FeasibilitySearcher",
    "searchers.bayesopt.past.PastEvaluations": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "searchers.bayesopt.suggest.ModelSuggester": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "searchers.multifidelity.BracketDistribution": "baselines.ASHA",
    "selftuning._batches.BatchStream": "selftuning.trainer.SelfTuner",
    "selftuning._hyper_step.Notices": "selftuning.trainer.SelfTuner",
    "selftuning._trainer_pace.Pace": "selftuning.trainer.SelfTuner",
    "selftuning._trainer_parts.Best": "selftuning.trainer.SelfTuner",
    "selftuning._trainer_parts.Optimizers": "selftuning.trainer.SelfTuner",
    "selftuning._trainer_parts.Schedulers": "selftuning.trainer.SelfTuner",
    "surrogates.base.Surrogate": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.bayesian_gp.BayesianGaussianProcess": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.classifier.ProbitClassifier": "searchers.feasible.FeasibilitySearcher",
    "surrogates.cost.base.CostModel": "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher",
    "surrogates.cost.estimator.CostSurrogate": "searchers.bayesopt.cost.CostAwareBayesianOptimizationSearcher",
    "surrogates.custom.BoTorchSurrogate": "searchers.bayesopt.botorch.BoTorchSearcher",
    "surrogates.gp.GaussianProcess": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.refit.RefitRule": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.refit.SkipPeriodically": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.sklearn.SKLearnSurrogate": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "surrogates.transforms.TargetTransform": "searchers.bayesopt.searcher.BayesianOptimizationSearcher",
    "tuner_callback.TunerCallback": "results_callback.StoreResultsCallback",
    "tuning_status.TuningStatus": "_tuning.loop.TuningLoop",
}
ELSEWHERE = {
    "_tuning.loop.TuningLoop": "test_snapshots_of_experiments.py",
    "schedulers.ask_tell.AskTellScheduler": HERE,
    "surrogates.custom.CallableSurrogate": "surrogates/test_custom_surrogate.py",
    "surrogates.refit.SkipNoMaxResource": "surrogates/test_data_cap_and_refit.py",
    # In trials, not in the tuner: its state is in the trial's checkpoint.
    "_checkpoints.StatefulObject": "test_checkpoints.py",
    "selftuning.controls.Control": "selftuning/test_controls.py",
    "selftuning.controls.GaussianValues": "selftuning/test_controls.py",
    "selftuning.controls.SinusoidValues": "selftuning/test_controls.py",
    "selftuning.schedule.Schedule": "selftuning/test_schedule.py",
    "selftuning.trainer.SelfTuner": "selftuning/test_trainer.py",
    "straight_through.mask_aggregation.MaskAggregator": "straight_through/test_mask_aggregation.py",
}
# Class -> why nothing of it is ever saved.
NOTHING = {"_tuning.following.Follower": "stands in for a scheduler while a record is gone through"}


# Programs of their own, whose import leaves traces by which trials are told from tuners.
SCRIPTS = ("sthyper.backend._server", "sthyper.backend._guardian", "sthyper.backend._trial_process")


def classes() -> Iterator[tuple[str, type]]:
    """Yield all classes of the package whose objects keep something from event to event, by name."""
    for module in pkgutil.walk_packages(sthyper.__path__, "sthyper."):
        if module.name.startswith(("sthyper.testing", "sthyper.callbacks", *SCRIPTS)):
            continue  # what runs in trials keeps its state in their checkpoints, see tests/callbacks
        for found in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(found) or found.__module__ != module.name:
                continue
            is_one = issubclass(found, BASES) and not inspect.isabstract(found)
            if is_one or "state_dict" in vars(found) or found is StoppingCriterion:
                yield f"{module.name}.{found.__qualname__}".removeprefix("sthyper."), found


def test_every_class_that_keeps_something_is_tested() -> None:
    known = {*SUITES, *PARTS, *ELSEWHERE, *NOTHING}
    found = dict(classes())
    missing = sorted(set(found) - known)
    assert not missing, f"{missing} need a conformance suite; enter it in SUITES, or in PARTS what holds it"
    assert known <= set(found), f"{sorted(known - set(found))} are no classes any more"
    assert all((TESTS / file).is_file() for file in ELSEWHERE.values())
    assert set(PARTS.values()) <= {*SUITES, *ELSEWHERE, "tuning_status.TuningStatus"}


@pytest.mark.parametrize("name", SUITES)
def test_the_suite_makes_objects_of_the_class(name: str) -> None:
    file, suite_name = SUITES[name]
    suite = getattr(load(TESTS / file), suite_name)()
    assert dict(classes())[name] is type(made_by(suite))
    assert callable(suite.test_state_continues_where_it_was_taken)


def made_by(suite: Any) -> object:
    if isinstance(suite, SchedulerConformance):
        return suite.make_scheduler(suite.config_space, 0)
    if isinstance(suite, SearcherConformance):
        return suite.make_searcher(suite.config_space, 0, None)
    if isinstance(suite, CriterionConformance):
        return suite.make_criterion()
    assert isinstance(suite, CallbackConformance)
    return suite.make_callback()


def load(path: Path) -> ModuleType:
    if path == Path(__file__):
        return sys.modules[__name__]
    spec = importlib.util.spec_from_file_location(f"suites_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module
