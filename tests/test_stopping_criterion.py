from __future__ import annotations

import dataclasses
import logging
import pickle
from datetime import datetime
from typing import Any

import pytest

from sthyper.stopping_criterion import PlateauStopper, StoppingCriterion
from sthyper.trial import Status, Trial
from sthyper.tuning_status import TuningStatus

NAN, INF = float("nan"), float("inf")


class World:
    """A status whose clock is set by hand."""

    def __init__(self, n_trials: int = 0) -> None:
        self.now = 0.0
        self.status = TuningStatus(["loss"], clock=lambda: self.now)
        for _ in range(n_trials):
            self.start()

    def start(self) -> int:
        trial_id = self.status.num_trials_started
        self.status.add_trial(Trial(trial_id, {}, datetime(2026, 1, 1)))
        return trial_id

    def report(self, trial_id: int, loss: Any, **others: Any) -> None:
        self.status.add_result(trial_id, {"loss": loss, **others})

    def end(self, trial_id: int, status: Status = Status.completed, by_tuner: bool = False) -> None:
        self.status.set_status(trial_id, status, by_tuner=by_tuner)


def test_nothing_given_never_stops() -> None:
    world = World(3)
    world.now = 1e9
    world.report(0, 1.0)
    world.end(0)
    criterion = StoppingCriterion()
    assert not criterion(world.status)
    assert criterion.reached(world.status) is None
    assert criterion.may_start_new(world.status)
    assert criterion.may_use_worker(world.status)
    assert criterion.remaining_time(world.status) is None


def test_number_of_reports_is_exact() -> None:
    world, criterion = World(1), StoppingCriterion(max_num_evaluations=3)
    for _ in range(2):
        world.report(0, 1.0)
        assert not criterion(world.status)
    world.report(0, NAN)
    assert criterion.reached(world.status) == "max_num_evaluations=3 is reached"
    assert criterion(world.status)


def test_number_of_starts_does_not_end_the_experiment() -> None:
    world, criterion = World(1), StoppingCriterion(max_num_trials_started=2)
    assert criterion.may_start_new(world.status)
    world.start()
    assert not criterion.may_start_new(world.status)
    assert criterion.may_use_worker(world.status)
    assert criterion.reached(world.status) is None
    assert criterion(world.status)


def test_number_of_finished_trials_is_exact() -> None:
    world, criterion = World(2), StoppingCriterion(max_num_trials_finished=3)
    assert criterion.may_use_worker(world.status)
    world.start()
    assert not criterion.may_use_worker(world.status), "three run already"
    world.end(0, Status.failed)
    world.end(1, Status.stopped)
    assert criterion.reached(world.status) is None
    assert not criterion.may_use_worker(world.status)
    world.end(2, Status.paused)
    assert criterion.may_use_worker(world.status)
    world.end(2, Status.stopped, by_tuner=True)
    assert criterion.reached(world.status) is None
    world.end(2, Status.completed)
    assert criterion.reached(world.status) == "max_num_trials_finished=3 is reached"


def test_number_of_completed_trials_is_exact() -> None:
    world, criterion = World(2), StoppingCriterion(max_num_trials_completed=2)
    assert not criterion.may_use_worker(world.status)
    world.end(0, Status.stopped)
    assert criterion.may_use_worker(world.status)
    world.end(1)
    assert criterion.reached(world.status) is None
    world.start()
    assert not criterion.may_use_worker(world.status)
    world.end(2)
    assert criterion.reached(world.status) == "max_num_trials_completed=2 is reached"


def test_time() -> None:
    world, criterion = World(), StoppingCriterion(max_wallclock_time=10)
    assert criterion.remaining_time(world.status) == 10.0
    world.now = 9.99
    assert not criterion(world.status)
    world.now = 10.0
    assert criterion.reached(world.status) == "max_wallclock_time=10 is reached"
    world.now = 11.0
    assert criterion.remaining_time(world.status) == 0.0


def test_cost() -> None:
    world, criterion = World(1), StoppingCriterion(max_cost=1.5)
    world.report(0, 1.0, st_worker_cost=1.5)
    assert not criterion(world.status)
    world.report(0, 1.0, st_worker_cost=1.6)
    assert criterion.reached(world.status) == "max_cost=1.5 is exceeded"


@pytest.mark.parametrize(
    ("criterion", "calm", "reaching"),
    [
        (StoppingCriterion(min_metric_value={"loss": -6.0}), [-6.0, NAN, -INF, 3.0], -6.1),
        (StoppingCriterion(max_metric_value={"loss": 5}), [5, NAN, INF, -3.0], 6),
    ],
)
def test_metric_thresholds(criterion: StoppingCriterion, calm: list[float], reaching: float) -> None:
    world = World(2)
    assert not criterion(world.status)
    for value in calm:
        world.report(0, value)
        assert not criterion(world.status)
    world.report(1, reaching)
    assert "metric_value: loss is" in (criterion.reached(world.status) or "")
    world.report(0, 0.0)
    assert criterion(world.status), "a value that was reached stays reached"


def test_thresholds_of_st_fields() -> None:
    world, criterion = World(1), StoppingCriterion(max_metric_value={"st_tuner_time": 100.0})
    world.report(0, 1.0, st_tuner_time=101.0)
    assert criterion(world.status)


def test_a_misspelt_metric_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    world, criterion = World(1), StoppingCriterion(max_metric_value={"los": 1.0})
    with caplog.at_level(logging.WARNING):
        assert not criterion(world.status)
        assert not caplog.records
        for _ in range(3):
            world.report(0, 2.0)
            assert not criterion(world.status)
    assert [r.getMessage() for r in caplog.records] == [
        "max_metric_value: no trial has reported a number 'los' so far (did you mean 'loss'?)"
    ]


def test_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    world, criterion = World(2), StoppingCriterion(max_num_evaluations=1, max_num_trials_started=2)
    world.report(0, 1.0)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            criterion(world.status)
            criterion.may_start_new(world.status)
    assert [r.getMessage() for r in caplog.records] == [
        "stop criterion: max_num_evaluations=1 is reached",
        "max_num_trials_started=2 is reached: no further trial is started",
    ]


def test_criteria_are_or_ed_and_frozen() -> None:
    criterion = StoppingCriterion(max_wallclock_time=10, max_num_evaluations=5)
    world = World()
    world.now = 12.0
    assert criterion(world.status)
    assert pickle.loads(pickle.dumps(criterion)) == criterion
    assert dataclasses.replace(criterion, max_wallclock_time=20.0).max_num_evaluations == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        criterion.max_cost = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_num_evaluations": 0}, ValueError),
        ({"max_num_trials_started": 1.5}, TypeError),
        ({"max_num_trials_completed": True}, TypeError),
        ({"max_num_trials_finished": -1}, ValueError),
        ({"max_wallclock_time": 0}, ValueError),
        ({"max_wallclock_time": NAN}, ValueError),
        ({"max_wallclock_time": "60"}, TypeError),
        ({"max_cost": -1.0}, ValueError),
        ({"min_metric_value": 3.0}, TypeError),
        ({"max_metric_value": {"loss": NAN}}, ValueError),
        ({"max_metric_value": {"loss": None}}, TypeError),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        StoppingCriterion(**arguments)


# ---- PlateauStopper ----------------------------------------------------------------------------------


def finished(values: list[float]) -> TuningStatus:
    world = World(len(values))
    for trial_id, value in enumerate(values):
        world.report(trial_id, 99.0)
        world.report(trial_id, value)
        world.end(trial_id)
    return world.status


def test_plateau_of_the_best_value() -> None:
    stopper = PlateauStopper("loss", std=0.01, num_trials=3)
    assert not stopper(finished([3.0, 2.0, 1.0]))
    assert not stopper(finished([1.0, 5.0])), "too few trials"
    assert stopper(finished([3.0, 1.0, 7.0, 9.0]))
    assert stopper(finished([3.0, 1.0, 0.995, 0.99]))
    assert PlateauStopper("loss", std=0.01, num_trials=3, mode="max")(finished([1.0, 3.0, 2.0, 3.001]))


def test_nothing_finished_is_no_plateau() -> None:
    world = World(5)
    for trial_id in range(5):
        world.report(trial_id, 1.0)
    stopper = PlateauStopper("loss", num_trials=2)
    assert not stopper(world.status)
    world.end(0)
    assert stopper(world.status)


def test_values_that_are_not_finite_do_not_improve() -> None:
    stopper = PlateauStopper("loss", num_trials=3)
    assert not stopper(finished([NAN, -INF, 1.0, 1.0]))
    assert stopper(finished([NAN, 1.0, -INF, NAN]))


def test_patience_counts_calls_in_a_row() -> None:
    stopper = PlateauStopper("loss", num_trials=2, patience=2)
    flat, falling = finished([1.0, 1.0, 1.0]), finished([3.0, 2.0, 1.0])
    assert [stopper(s) for s in (flat, flat, falling, flat, flat, flat)] == [False] * 5 + [True]


def test_missing_metric_is_named() -> None:
    with pytest.raises(ValueError, match="'los'.*did you mean 'loss'"):
        PlateauStopper("los")(finished([1.0]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "maximum"},
        {"num_trials": 1},
        {"num_trials": 2.0},
        {"num_trials": True},
        {"patience": -1},
        {"patience": 0.5},
        {"std": 0.0},
        {"std": "0.1"},
    ],
)
def test_bad_plateau_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PlateauStopper("loss", **arguments)
