"""Snapshots for searchers, and the clock that their times come from."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from sthyper.config_space import ConfigSpaceError, uniform
from sthyper.schedulers import (
    BracketDistribution,
    FIFOScheduler,
    HyperbandScheduler,
    PromotionRungSystem,
    TrialScheduler,
)
from sthyper.searchers import BaseSearcher, RungSnapshot, RunningTrial, SearcherContext
from sthyper.testing import SchedulerConformance
from sthyper.time_keeper import RealTimeKeeper, TimeKeeper
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "data": "digits", "epochs": 9}


class HandClock(TimeKeeper):
    """Runs when the test says so."""

    def __init__(self) -> None:
        self.now: float | None = None

    def start_of_time(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        if self.now is None:
            raise RuntimeError("HandClock: call start_of_time() first")
        return self.now

    def time_stamp(self) -> datetime:
        return datetime(2020, 1, 1)

    def advance(self, step: float) -> None:
        assert self.now is not None
        self.now += step


class Turn(BracketDistribution):
    bracket = 0

    def __call__(self) -> np.ndarray:
        return np.eye(3)[self.bracket]


class Watcher(BaseSearcher):
    """Keeps snapshots and the order of calls."""

    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space, points_to_evaluate=[])
        self.snapshots: list[RungSnapshot] = []
        self.log: list[str] = []
        self.context: SearcherContext | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self.context = context

    def on_snapshot(self, snapshot: RungSnapshot) -> None:
        self.snapshots.append(snapshot)
        self.log.append("snapshot")

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        self.log.append("get_config")
        return {"x": int(trial_id) / 10}


def make(**arguments: Any) -> HyperbandScheduler:
    options = {"do_snapshots": True, "max_resource_attr": "epochs", "random_seed": 0} | arguments
    return HyperbandScheduler(SPACE, "loss", searcher=Watcher(SPACE), **options)


def watcher(scheduler: HyperbandScheduler | FIFOScheduler) -> Watcher:
    assert isinstance(scheduler.searcher, Watcher)
    return scheduler.searcher


def start(scheduler: HyperbandScheduler, trial_id: int) -> Trial:
    suggestion = scheduler.suggest(trial_id)
    assert suggestion is not None
    assert suggestion.config is not None
    trial = Trial(trial_id, suggestion.config, datetime(2020, 1, 1))
    scheduler.on_trial_add(trial)
    return trial


def report(scheduler: HyperbandScheduler, trial: Trial, epoch: int, loss: float) -> str:
    return scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss})


# ---- snapshots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_snapshot_shows_running_trials_and_rungs(mode: str) -> None:
    clock = HandClock()
    clock.start_of_time()
    scheduler = make(mode=mode, time_keeper=clock)
    sign = 1 if mode == "min" else -1
    trials = []
    for trial_id in range(4):
        clock.advance(10)
        trials.append(start(scheduler, trial_id))
    for epoch in range(1, 10):  # reaches the maximum
        report(scheduler, trials[0], epoch, sign * 0.1)
    assert report(scheduler, trials[1], 1, sign * 0.1) == "CONTINUE"
    assert report(scheduler, trials[1], 2, sign * 0.1) == "CONTINUE"
    assert report(scheduler, trials[2], 1, math.nan) == "STOP"
    start(scheduler, 4)
    snapshot = watcher(scheduler).snapshots[-1]
    assert snapshot.tasks == {1: RunningTrial({"x": 0.1}, 20.0, 2), 3: RunningTrial({"x": 0.3}, 40.0, 0)}
    assert snapshot.max_resource == 9
    assert [level for level, _ in snapshot.rungs] == [3, 1]
    assert snapshot.rungs[0][1] == ((0, sign * 0.1),)
    assert snapshot.rungs[1][1][:2] == ((0, sign * 0.1), (1, sign * 0.1))
    assert snapshot.rungs[1][1][2][0] == 2
    assert math.isnan(snapshot.rungs[1][1][2][1])
    assert watcher(scheduler).log == ["snapshot", "get_config"] * 5
    assert watcher(scheduler).snapshots[0] == RungSnapshot({}, ((3, ()), (1, ())), 9)


@pytest.mark.parametrize("per_bracket", [False, True])
def test_a_snapshot_is_that_of_the_drawn_bracket(per_bracket: bool) -> None:
    turn = Turn()
    scheduler = make(brackets=3, bracket_distribution=turn, rung_system_per_bracket=per_bracket)
    first = start(scheduler, 0)
    turn.bracket = 1
    second = start(scheduler, 1)
    for trial in (first, second):
        for epoch in (1, 2, 3):
            report(scheduler, trial, epoch, 0.5)
    start(scheduler, 2)
    snapshot = watcher(scheduler).snapshots[-1]
    assert list(snapshot.tasks) == ([1] if per_bracket else [0, 1])
    assert snapshot.rungs == ((3, ((1, 0.5),) if per_bracket else ((0, 0.5), (1, 0.5))),)
    turn.bracket = 2
    start(scheduler, 3)
    snapshot = watcher(scheduler).snapshots[-1]
    assert snapshot.rungs == ()
    assert list(snapshot.tasks) == ([] if per_bracket else [0, 1, 2])


def test_there_is_none_unless_asked_for() -> None:
    scheduler = make(do_snapshots=False)
    start(scheduler, 0)
    assert watcher(scheduler).log == ["get_config"]


def test_snapshots_need_trials_that_are_not_paused() -> None:
    for arguments in ({"type": "promotion"}, {"rung_system": PromotionRungSystem([1], 9)}):
        with pytest.raises(ValueError, match="do_snapshots=True needs type='stopping'"):
            make(**arguments)
    with pytest.raises(TypeError, match="do_snapshots must be True or False, got 'no'"):
        make(do_snapshots="no")


def test_times_are_those_of_the_experiment_after_a_state_was_loaded() -> None:
    clock = HandClock()
    clock.start_of_time()
    scheduler = make(time_keeper=clock)
    clock.advance(50)
    start(scheduler, 0)
    state = json.loads(json.dumps(scheduler.state_dict()))
    later = HandClock()
    later.start_of_time()
    later.advance(1000)
    with_clock, without = make(time_keeper=later), make()
    for twin in (with_clock, without):
        twin.load_state_dict(state)
        start(twin, 1)
        start(twin, 2)
    tasks = watcher(with_clock).snapshots[-1].tasks
    assert [tasks[i].time for i in (0, 1)] == [50.0, 1000.0]
    tasks = watcher(without).snapshots[-1].tasks
    assert tasks[0].time == 50.0
    assert 50.0 <= tasks[1].time < 60.0


# ---- the clock -------------------------------------------------------------------------------------------


def fifo(**arguments: Any) -> FIFOScheduler:
    return FIFOScheduler(SPACE, "loss", searcher=Watcher(SPACE), **arguments)


def plain(**arguments: Any) -> HyperbandScheduler:
    return make(do_snapshots=False, **arguments)


@pytest.mark.parametrize("make_scheduler", [fifo, plain])
def test_a_searcher_reads_the_clock_that_the_scheduler_was_given(make_scheduler: Any) -> None:
    clock = HandClock()
    for by_method in (False, True):
        scheduler = make_scheduler(**({} if by_method else {"time_keeper": clock}))
        if by_method:
            scheduler.set_time_keeper(clock)
        clock.start_of_time()
        clock.advance(12)
        assert scheduler.suggest(0) is not None
        context = watcher(scheduler).context
        assert context is not None
        assert context.elapsed_time is not None
        assert context.elapsed_time() == 12.0
        clock.advance(3)
        assert context.elapsed_time() == 15.0


@pytest.mark.parametrize("make_scheduler", [fifo, plain])
def test_without_one_the_first_suggestion_starts_a_real_clock(make_scheduler: Any) -> None:
    scheduler = make_scheduler()
    assert scheduler.suggest(0) is not None
    context = watcher(scheduler).context
    assert context is not None
    assert context.elapsed_time is not None
    first = context.elapsed_time()
    assert 0 <= first < 5
    assert context.elapsed_time() > first


@pytest.mark.parametrize("make_scheduler", [fifo, plain])
def test_a_clock_is_set_once_and_before_the_experiment(make_scheduler: Any) -> None:
    with pytest.raises(TypeError, match="time_keeper must be a TimeKeeper, got 3"):
        make_scheduler(time_keeper=3)
    given = make_scheduler(time_keeper=RealTimeKeeper())
    with pytest.raises(RuntimeError, match="cannot take HandClock as its time keeper: it has RealTimeKeeper already"):
        given.set_time_keeper(HandClock())
    with pytest.raises(RuntimeError, match=r"RealTimeKeeper: call start_of_time\(\) first"):
        given.suggest(0)  # nobody started it
    begun = make_scheduler()
    begun.suggest(0)
    with pytest.raises(RuntimeError, match="the experiment has begun"):
        begun.set_time_keeper(HandClock())


# ---- the maximum of a scheduler that trains to the end ------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "arguments", "maximum"),
    [
        (SPACE, {}, 9),
        (SPACE, {"max_t": 9}, 9),
        ({"x": uniform(0, 1), "data": "d", "steps": 30}, {"max_resource_attr": "steps"}, 30),
        ({"x": uniform(0, 1), "data": "d", "steps": 30}, {}, None),
        ({"x": uniform(0, 1), "data": "d"}, {"max_t": 4}, 4),
    ],
)
def test_the_searcher_of_fifo_knows_the_maximum(
    space: dict[str, Any], arguments: dict[str, Any], maximum: int | None
) -> None:
    scheduler = FIFOScheduler(space, "loss", searcher=Watcher(space), **arguments)
    suggestion = scheduler.suggest(0)
    assert suggestion is not None
    assert suggestion.config == space | {"x": 0.0}
    context = watcher(scheduler).context
    assert context is not None
    assert context.max_resource_level == scheduler.max_resource_level == maximum
    assert scheduler.max_resource_attr is None


def test_the_maximum_of_fifo_is_checked() -> None:
    with pytest.raises(ConfigSpaceError, match="'epoch' is not in config_space.*did you mean 'epochs'"):
        fifo(max_resource_attr="epoch")
    with pytest.raises(ValueError, match="max_t must be a positive int, got 0"):
        fifo(max_t=0)


class TestWithSnapshots(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return HyperbandScheduler(
            config_space,
            "loss",
            max_resource_attr="epochs",
            random_seed=random_seed,
            do_snapshots=True,
            brackets=2,
            searcher_data="all",
        )
