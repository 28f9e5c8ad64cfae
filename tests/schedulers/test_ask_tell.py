"""AskTellScheduler: the tuner's decisions from a loop of the caller, pauses, errors, results, state."""

from __future__ import annotations

import copy
import heapq
import json
import logging
import math
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper import Tuner
from sthyper.backend import LocalBackend
from sthyper.backend.base import trial_seed
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import ConfigSpaceError, choice, randint, sample_config, uniform
from sthyper.errors import ReportError
from sthyper.schedulers import (
    AskedTrial,
    AskTellScheduler,
    BracketDistribution,
    FIFOScheduler,
    HyperbandScheduler,
    PendingSuggestion,
    TrialScheduler,
    TrialSuggestion,
)
from sthyper.searchers import BaseSearcher, RandomSearcher, SearcherContext
from sthyper.testing import drive, toy_curve
from sthyper.testing._checks import check_plain, copies_of_state
from sthyper.testing.simulation import Curve, toy_fraction
from sthyper.trial import SchedulerDecision, Status, Trial, TrialResult

SPACE: dict[str, Any] = {"x": uniform(0, 1), "act": choice(["relu", "tanh"]), "epochs": 9}
CONTINUE, PAUSE, STOP = SchedulerDecision.CONTINUE, SchedulerDecision.PAUSE, SchedulerDecision.STOP


class Erratic(TrialScheduler):
    """Decides at random, pauses and resumes, and writes down what it was told."""

    resource_attr = "epoch"

    def __init__(
        self,
        config_space: dict[str, Any],
        n_trials: int,
        seed: int,
        knows_maximum: bool = True,
        sets_milestones: bool = False,
    ) -> None:
        super().__init__(config_space)
        self.random_seed = seed
        self.n_trials = n_trials
        self.max_resource_level = 6
        if knows_maximum:
            self.max_resource_attr = "epochs"
        self.sets_milestones = sets_milestones
        self.generator = np.random.default_rng(seed)
        self.paused: list[int] = []
        self.log: list[tuple[Any, ...]] = []

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        if self.paused and (trial_id == self.n_trials or self.generator.random() < 0.5):
            number = self.paused.pop(int(self.generator.integers(len(self.paused))))
            config = None
            if self.sets_milestones and self.generator.random() < 0.5:
                config = {"epochs": int(self.generator.integers(1, 7))}
            return TrialSuggestion.resume_suggestion(number, config)
        if trial_id == self.n_trials:
            return None
        config = sample_config(self.config_space, self.generator)
        source = int(self.generator.integers(trial_id)) if trial_id and self.generator.random() < 0.3 else None
        return TrialSuggestion.start_suggestion(config, source)

    def may_copy_checkpoint(self, trial_id: int) -> bool:
        return True

    def on_trial_add(self, trial: Trial) -> None:
        self._note("add", trial)

    def on_trial_resume(self, trial: Trial) -> None:
        self._note("resume", trial)

    def on_trial_repeat(self, trial: Trial, result: dict[str, Any]) -> None:
        self._note("repeat", trial, result["epoch"])

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        decision = str(self.generator.choice([CONTINUE, CONTINUE, PAUSE, STOP]))
        if result["epoch"] >= self.max_resource_level and decision == PAUSE:
            decision = STOP
        self._note("result", trial, result["epoch"], result["loss"], decision)
        if decision == PAUSE:
            self.paused.append(trial.trial_id)
        return decision

    def on_trial_remove(self, trial: Trial) -> None:
        self._note("remove", trial)

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self._note("complete", trial, result["epoch"])

    def on_trial_error(self, trial: Trial) -> None:
        self._note("error", trial, trial.end_reason)

    def metric_names(self) -> list[str]:
        return ["loss"]

    def _note(self, what: str, trial: Trial, *more: Any) -> None:
        self.log.append((what, trial.trial_id, json.dumps(trial.config), trial.seed, trial.last_resource, *more))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.bit_generator.state, "paused": list(self.paused)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.bit_generator.state = state["generator"]
        self.paused = list(state["paused"])


# ---- the same decisions as under a tuner -----------------------------------------------------------------


class Loop:
    """The workers of TrialSimulation, through ask and tell only."""

    def __init__(
        self,
        scheduler: AskTellScheduler,
        curve: Curve,
        n_workers: int,
        n_trials: int,
        max_resource: int,
        fails_at: Mapping[int, int],
    ) -> None:
        self.scheduler = scheduler
        self.curve = curve
        self.n_workers, self.n_trials, self.max_resource = n_workers, n_trials, max_resource
        self.fails_at = fails_at
        self.events: list[tuple[Any, ...]] = []
        self.queue: list[tuple[float, int, int]] = []
        self.trials: dict[int, AskedTrial] = {}
        self.now = 0.0
        self.asking, self.kept_back = True, False

    def run(self, max_events: int | None = None) -> list[tuple[Any, ...]]:
        while max_events is None or len(self.events) < max_events:
            self.fill_workers()
            if not self.queue:
                break
            self.now, trial_id, resource = heapq.heappop(self.queue)
            self.step(self.trials[trial_id], resource)
        return self.events

    def fork(self, scheduler: AskTellScheduler) -> Loop:
        twin = copy.copy(self)
        twin.scheduler = scheduler
        twin.events, twin.queue = list(self.events), list(self.queue)
        running = {trial.trial_id: trial for trial in scheduler.running_trials}
        waiting = {trial_id for _, trial_id, _ in self.queue} | ({self.n_trials} if self.kept_back else set())
        assert set(running) == waiting
        twin.trials = self.trials | running
        return twin

    def fill_workers(self) -> None:
        while self.asking and not self.kept_back and len(self.queue) < self.n_workers:
            trial = self.scheduler.ask()
            if trial is None:
                self.events.append(("exhausted", len(self.scheduler.trials), 0))
                self.asking = False
            elif trial.trial_id == self.n_trials:
                self.kept_back = True
            else:
                self.trials[trial.trial_id] = trial
                kind = "resume" if trial.run else "start"
                self.events.append((kind, trial.trial_id, trial.last_resource or 0))
                self.schedule(trial, (trial.last_resource or 0) + 1)

    def schedule(self, trial: AskedTrial, resource: float) -> None:
        duration = 0.5 + toy_fraction([trial.trial_id, sorted(trial.config.items())])
        heapq.heappush(self.queue, (self.now + duration, trial.trial_id, int(resource)))

    def step(self, trial: AskedTrial, resource: int) -> None:
        number = trial.trial_id
        events = len(self.events)
        if resource > self.max_resource:
            self.scheduler.tell(trial, done=True)
            self.events.append(("complete", number, resource - 1))
        elif self.fails_at.get(number) == resource:
            self.scheduler.fail(trial)
            self.events.append(("error", number, resource - 1))
        else:
            decision = self.scheduler.tell(trial, self.curve(trial.config, resource), epoch=resource)
            self.events.append(("report", number, resource, decision))
            if decision == CONTINUE:
                self.schedule(trial, resource + 1)
            elif self.scheduler.trials[number].status == Status.completed:
                self.events.append(("complete", number, resource))
        self.asking = self.asking or self.events[events][-1] != CONTINUE


def loop_of(scheduler: TrialScheduler, n_workers: int = 4, fails_at: Mapping[int, int] | None = None) -> Loop:
    maximum = scheduler.max_resource_level or 9
    return Loop(AskTellScheduler(scheduler), toy_curve(scheduler), n_workers, 20, maximum, fails_at or {})


def simulated(scheduler: TrialScheduler, n_workers: int, fails_at: Mapping[int, int]) -> list[tuple[Any, ...]]:
    events = drive(scheduler, n_workers=n_workers, n_trials=20, fails_at=fails_at)
    return [(e.kind, e.trial_id, e.resource, *([] if e.decision is None else [e.decision])) for e in events]


SCHEDULERS: dict[str, Callable[[int], TrialScheduler]] = {
    "random": lambda seed: RandomSearch(SPACE, "loss", random_seed=seed),
    "grid": lambda seed: GridSearch(SPACE, "loss", random_seed=seed, search_options={"num_samples": {"x": 4}}),
    "stopping": lambda seed: ASHA(SPACE, "loss", max_t=9, random_seed=seed),
    "promotion": lambda seed: ASHA(SPACE, "loss", mode="max", max_t=9, type="promotion", random_seed=seed),
    "brackets": lambda seed: HyperbandScheduler(
        SPACE, "loss", max_t=9, type="promotion", random_seed=seed, brackets=3, rung_system_per_bracket=True
    ),
    "grid with promotion": lambda seed: HyperbandScheduler(
        SPACE, "loss", max_t=9, searcher="grid", type="promotion", random_seed=seed
    ),
    "erratic": lambda seed: Erratic({**SPACE, "epochs": 6}, 20, seed, knows_maximum=False),
}
# With the maximum in the configuration the tuner lets a trial go on there to its end, ask and tell do not.
KNOWN_MAXIMUM: dict[str, Callable[[int], TrialScheduler]] = {
    "stopping": lambda seed: ASHA(SPACE, "loss", max_resource_attr="epochs", random_seed=seed),
    "promotion": lambda seed: ASHA(SPACE, "loss", max_resource_attr="epochs", type="promotion", random_seed=seed),
    "erratic": lambda seed: Erratic({**SPACE, "epochs": 6}, 20, seed),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fails_at", [{}, {0: 1, 3: 2, 5: 1, 8: 4}])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_decisions_are_those_of_a_simulated_tuner(name: str, fails_at: dict[int, int], seed: int) -> None:
    expected = simulated(SCHEDULERS[name](seed), 4, fails_at)
    assert loop_of(SCHEDULERS[name](seed), 4, fails_at).run() == expected
    kinds = {event[0] for event in expected}
    assert {"start", "report"} <= kinds
    assert ("resume" in kinds) == (name not in ("random", "grid", "stopping"))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", KNOWN_MAXIMUM)
def test_with_one_worker_they_are_the_same_where_the_maximum_is_known(name: str, seed: int) -> None:
    expected = simulated(KNOWN_MAXIMUM[name](seed), 1, {2: 1})
    found = loop_of(KNOWN_MAXIMUM[name](seed), 1, {2: 1}).run()
    maximum = KNOWN_MAXIMUM[name](seed).max_resource_level
    at_maximum = {event[3] for event in found if event[0] == "report" and event[2] == maximum}
    if name == "erratic":  # CONTINUE at the maximum is no end: one more step, as in the simulation
        assert at_maximum <= {CONTINUE, STOP}
    else:
        assert at_maximum == {STOP}
    assert found == expected


SCRIPT = """
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    if config["fails"] == "at once":
        raise SystemExit(1)
    first = report.last_resource or 0
    for epoch in range(first if config["repeats"] and first else first + 1, config["length"] + 1):
        report(epoch=epoch, loss=config["x"] / epoch)
        if config["fails"] == "later" and epoch == 2:
            raise SystemExit(3)
"""
ERRATIC_SPACE = {
    "x": uniform(0, 1),
    "fails": choice(["no", "never", "later", "at once"]),
    "repeats": choice([0, 1]),
    "length": randint(1, 8),
    "epochs": 6,
}


def by_hand(scheduler: AskTellScheduler) -> None:
    """The training of SCRIPT."""
    while (trial := scheduler.ask()) is not None:
        config = trial.config
        if config["fails"] == "at once":
            scheduler.fail(trial, "exit 1")
            continue
        first = int(trial.last_resource or 0)
        for epoch in range(first if config["repeats"] and first else first + 1, config["length"] + 1):
            decision = scheduler.tell(trial, epoch=epoch, loss=config["x"] / epoch)
            if config["fails"] == "later" and epoch == 2 and decision == CONTINUE:
                scheduler.fail(trial, "exit 3")
                break
            if decision != CONTINUE:
                break
        else:
            scheduler.tell(trial, done=True)


@pytest.mark.parametrize("knows_maximum", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_scheduler_is_told_the_same_as_by_the_tuner(tmp_path: Path, seed: int, knows_maximum: bool) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    tuned = Erratic(ERRATIC_SPACE, 25, seed, knows_maximum, sets_milestones=knows_maximum)
    backend = LocalBackend(script, launch="inline")
    Tuner(backend, tuned, lambda status: False, n_workers=1, max_failures=100, tuner_name="erratic").run()
    asked = Erratic(ERRATIC_SPACE, 25, seed, knows_maximum, sets_milestones=knows_maximum)
    by_hand(AskTellScheduler(asked))
    assert {"add", "resume", "repeat", "result", "remove", "complete", "error"} <= {line[0] for line in tuned.log}
    assert asked.log == tuned.log


# ---- the state -------------------------------------------------------------------------------------------

ALL = SCHEDULERS | {f"{name}, maximum known": make for name, make in KNOWN_MAXIMUM.items()}


@given(st.sampled_from(sorted(ALL)), st.integers(0, 3), st.integers(1, 4), st.integers(0, 90))
@settings(max_examples=60, deadline=None)
def test_the_state_goes_on_with_the_same_decisions(name: str, seed: int, n_workers: int, position: int) -> None:
    fails_at = {1: 1, 4: 2}
    whole = loop_of(ALL[name](seed), n_workers, fails_at).run()
    first = loop_of(ALL[name](seed), n_workers, fails_at)
    first.run(position)
    state = first.scheduler.state_dict()
    check_plain(state)
    copied = json.loads(json.dumps(state))
    twin_of = loop_of(ALL[name](seed), n_workers, fails_at)
    twin_of.run(position)
    first.run()  # must not reach back into the state
    assert state == copied
    fresh = AskTellScheduler(ALL[name](seed + 1))
    fresh.load_state_dict(copied)
    assert twin_of.fork(fresh).run() == whole
    assert fresh.state_dict()["trials"][0]["reports"] == first.scheduler.state_dict()["trials"][0]["reports"]


def test_the_state_survives_files_and_keeps_what_was_told() -> None:
    scheduler = AskTellScheduler(promotion())
    first = ask(scheduler)
    assert scheduler.tell(first, epoch=1, loss=math.nan, note="odd", parts=[1, 2.5]) == PAUSE
    failed = ask(scheduler)
    scheduler.fail(failed, "out_of_memory")
    running = ask(scheduler)
    expected = [(t.trial_id, t.status, t.end_reason, t.config) for t in scheduler.trials.values()]
    for _, state in copies_of_state(scheduler.state_dict()):
        twin = AskTellScheduler(promotion())
        twin.load_state_dict(state)
        assert [(t.trial_id, t.status, t.end_reason, t.config) for t in twin.trials.values()] == expected
        assert [t.status for t in twin.trials.values()] == [Status.paused, Status.failed, Status.in_progress]
        (metrics,) = twin.trials[0].metrics
        assert math.isnan(metrics.pop("loss"))
        assert metrics == {"epoch": 1, "note": "odd", "parts": [1, 2.5]}
        assert twin.trials[0].creation_time == scheduler.trials[0].creation_time
        assert twin.trials[1].training_end_time == scheduler.trials[1].training_end_time
        assert twin.running_trials == [running]
        assert twin.tell(running, epoch=1, loss=0.5) == PAUSE


def test_states_that_cannot_be_loaded() -> None:
    state = AskTellScheduler(promotion()).state_dict()
    other = AskTellScheduler(RandomSearch(SPACE, "loss"))
    with pytest.raises(ValueError, match="the state is that of a ASHA, base_scheduler is a RandomSearch"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="the state has version 9"):
        AskTellScheduler(promotion()).load_state_dict({**state, "version": 9})
    with pytest.raises(ValueError, match=r"AskTellScheduler\.state_dict\(\)"):
        other.load_state_dict(RandomSearch(SPACE, "loss").state_dict())
    with pytest.raises(ValueError, match=r"AskTellScheduler\.state_dict\(\) returned, got dict"):
        other.load_state_dict({"version": "1"})


def test_the_time_of_the_search_goes_on_after_loading() -> None:
    class Timed(RandomSearcher):
        def configure(self, context: SearcherContext) -> None:
            super().configure(context)
            self.context = context

        def elapsed(self) -> float:
            assert self.context.elapsed_time is not None
            return self.context.elapsed_time()

    first = Timed(SPACE)
    scheduler = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=first))
    trial = ask(scheduler)
    time.sleep(0.02)
    scheduler.tell(trial, loss=0.5)  # nobody asks for the time
    second = Timed(SPACE)
    fresh = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=second))
    fresh.load_state_dict(scheduler.state_dict())
    assert second.elapsed() >= 0.02


# ---- trials ----------------------------------------------------------------------------------------------


def promotion(**options: Any) -> ASHA:
    return ASHA(SPACE, "loss", max_resource_attr="epochs", type="promotion", random_seed=0, **options)


def ask(scheduler: AskTellScheduler) -> AskedTrial:
    trial = scheduler.ask()
    assert trial is not None
    return trial


def test_a_promoted_trial_comes_back_where_it_paused() -> None:
    scheduler = AskTellScheduler(promotion())
    first, second = ask(scheduler), ask(scheduler)
    assert (first.trial_id, first.run, first.last_resource, first.milestone) == (0, 0, None, 1)
    assert first.config["epochs"] == 9  # the milestone is not in the configuration
    assert scheduler.tell(first, epoch=1, loss=0.25) == PAUSE
    assert scheduler.tell(second, epoch=1, loss=0.5) == PAUSE
    again = ask(scheduler)
    assert (again.trial_id, again.run, again.last_resource, again.milestone) == (0, 1, 1, 3)
    assert again.config == first.config
    assert (again.seed, again.creation_time) == (first.seed, first.creation_time)
    assert scheduler.tell(again, epoch=2, loss=0.25) == CONTINUE
    assert scheduler.tell(again, epoch=3, loss=0.125) == PAUSE
    assert [m["epoch"] for m in scheduler.trials[0].metrics] == [1, 2, 3]


def test_the_maximum_is_told_and_completes_the_trial() -> None:
    for known in ({"max_resource_attr": "epochs"}, {"max_t": 9}):
        scheduler = AskTellScheduler(ASHA(SPACE, "loss", reduction_factor=9, **known))  # type: ignore[arg-type]
        trial = ask(scheduler)
        decisions = [scheduler.tell(trial, epoch=epoch, loss=1.0) for epoch in range(1, 10)]
        assert decisions == [CONTINUE] * 8 + [STOP]
        result = scheduler.completed_experiments[0]
        assert (result.status, result.end_reason, result.last_resource) == (Status.completed, None, 9)
        assert result.training_end_time is not None
        with pytest.raises(ValueError, match=r"trial 0 has ended \(Completed at epoch=9\)"):
            scheduler.tell(trial, done=True)


def test_a_pause_at_the_maximum_completes_the_trial_if_it_is_known() -> None:
    class Pauses(Erratic):
        def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
            super().on_trial_result(trial, result)
            return PAUSE

    found = {}
    for known in (True, False):
        base = Pauses({**SPACE, "epochs": 6}, 1, 0, known)
        scheduler = AskTellScheduler(base)
        answer = scheduler.tell(ask(scheduler), epoch=6, loss=0.5)
        found[known] = (answer, scheduler.trials[0].status, base.log[-1][0])
    assert found == {True: (STOP, Status.completed, "complete"), False: (PAUSE, Status.paused, "remove")}


def test_a_stopped_trial_has_ended() -> None:
    scheduler = AskTellScheduler(ASHA(SPACE, "loss", max_t=9))
    best, worst = ask(scheduler), ask(scheduler)
    assert scheduler.tell(best, epoch=1, loss=0.0) == CONTINUE
    assert scheduler.tell(worst, epoch=1, loss=1.0) == STOP
    assert scheduler.trials[1].status == Status.stopped
    assert [t.trial_id for t in scheduler.running_trials] == [0]
    with pytest.raises(ValueError, match=r"trial 1 has ended \(Stopped at epoch=1\): there is nothing more to tell"):
        scheduler.tell(worst, epoch=2, loss=0.0)
    with pytest.raises(ValueError, match="trial 1 has ended"):
        scheduler.fail(worst)


def test_a_paused_trial_waits() -> None:
    scheduler = AskTellScheduler(promotion())
    trial = ask(scheduler)
    scheduler.tell(trial, epoch=1, loss=0.0)
    for call in (lambda: scheduler.tell(trial, epoch=2, loss=0.0), lambda: scheduler.fail(trial)):
        with pytest.raises(ValueError, match="trial 0 was paused at epoch=1: it may go on only when ask"):
            call()


class Notes(BaseSearcher):
    """Writes down what it learns."""

    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space)
        self.learned: list[tuple[Any, ...]] = []
        self.failed: list[tuple[Any, ...]] = []

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        return {"x": 0.5, "act": "relu"}

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        self.learned.append((trial_id, result["loss"], update))

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        self.failed.append((trial_id, blacklist))


def test_done_ends_a_trial_with_what_it_told_last() -> None:
    searcher = Notes(SPACE)
    scheduler = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=searcher))
    trials = [ask(scheduler) for _ in range(3)]
    assert scheduler.tell(trials[2], {"loss": 0.5, "val/acc": 0.75}) == CONTINUE
    assert scheduler.tell(trials[2], loss=0.25, done=True) == STOP
    assert scheduler.tell(trials[0], loss=0.125) == CONTINUE
    assert scheduler.tell(trials[0], done=True) == STOP
    assert searcher.learned == [
        (2, 0.5, False),
        (2, 0.25, False),
        (2, 0.25, True),
        (0, 0.125, False),
        (0, 0.125, True),
    ]
    assert list(scheduler.completed_experiments) == [0, 2]
    assert scheduler.trials[2].metrics == [{"loss": 0.5, "val/acc": 0.75}, {"loss": 0.25}]


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_done_wins_over_a_decision(kind: str) -> None:
    scheduler = AskTellScheduler(ASHA(SPACE, "loss", max_t=9, type=kind, random_seed=0))
    trials = [ask(scheduler) for _ in range(4)]
    for trial in trials:
        assert scheduler.tell(trial, epoch=1, loss=float(trial.trial_id), done=True) == STOP
    assert set(scheduler.completed_experiments) == {0, 1, 2, 3}
    assert ask(scheduler).trial_id == 4  # nobody is promoted


def test_a_resumed_trial_may_find_that_it_is_done() -> None:
    scheduler = AskTellScheduler(promotion())
    for loss in (0.0, 1.0):
        scheduler.tell(ask(scheduler), epoch=1, loss=loss)
    again = ask(scheduler)
    assert (again.trial_id, again.run) == (0, 1)
    assert scheduler.tell(again, done=True) == STOP
    assert scheduler.trials[0].status == Status.completed


@pytest.mark.parametrize(
    ("arguments", "reason", "blacklist"),
    [
        ({}, "exit 1", True),
        ({"reason": "exit 3"}, "exit 3", True),
        ({"reason": "out_of_memory"}, "out_of_memory", True),
        ({"reason": "diverged"}, "exit 1: diverged", True),
        ({"reason": "killed", "blacklist": False}, "killed", False),
        ({"reason": "hung", "blacklist": True}, "exit 1: hung", True),
        ({"reason": "exit 3", "blacklist": False}, "killed: exit 3", False),
        ({"reason": "node lost", "blacklist": False}, "node lost", False),
    ],
)
def test_a_failure_says_whose_fault_it_was(arguments: dict[str, Any], reason: str, blacklist: bool) -> None:
    searcher = Notes(SPACE)
    scheduler = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=searcher))
    scheduler.fail(ask(scheduler), **arguments)
    assert searcher.failed == [(0, blacklist)]
    assert (scheduler.trials[0].status, scheduler.trials[0].end_reason) == (Status.failed, reason)


def test_reports_that_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = AskTellScheduler(promotion(grace_period=3))
    first, second = ask(scheduler), ask(scheduler)
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        assert [scheduler.tell(first, epoch=e, loss=1.0) for e in (1, 1, 2, 1, 2)] == [CONTINUE] * 5
    assert [r.getMessage() for r in caplog.records] == [
        "trial 0: several reports at epoch=1, the first counts; tell once an epoch, after it"
    ]
    assert [m["epoch"] for m in scheduler.trials[0].metrics] == [1, 2]
    assert scheduler.tell(first, epoch=3, loss=0.5) == PAUSE
    assert scheduler.tell(second, epoch=3, loss=0.75) == PAUSE
    again = ask(scheduler)
    # From an older checkpoint: what was trained twice does not count twice.
    assert [scheduler.tell(again, epoch=e, loss=0.0) for e in (2, 3, 4)] == [CONTINUE] * 3
    assert [m["epoch"] for m in scheduler.trials[0].metrics] == [1, 2, 3, 4]
    assert scheduler.best_trial().metrics[-1]["loss"] == 0.0
    assert scheduler.trials[0].metrics[2]["loss"] == 0.5


def test_going_on_beyond_the_milestone_counts_as_the_milestone(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = AskTellScheduler(promotion())
    for loss in (0.0, 1.0):
        scheduler.tell(ask(scheduler), epoch=1, loss=loss)
    again = ask(scheduler)
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        assert scheduler.tell(again, epoch=5, loss=0.25) == PAUSE
    assert "its report at epoch=5 counts as that of 3" in caplog.text
    assert scheduler.trials[0].metrics[-1] == {"epoch": 3, "loss": 0.25}
    assert scheduler.trials[0].last_resource == 5


def test_what_ask_returns_is_the_callers() -> None:
    scheduler = AskTellScheduler(promotion())
    trial = ask(scheduler)
    expected = dict(trial.config)
    trial.config.clear()
    trial.last_resource = 77
    scheduler.tell(trial, epoch=1, loss=0.0)
    result = scheduler.trials[0]
    assert (result.config, result.last_resource) == (expected, 1)
    result.metrics.clear()
    result.config.clear()
    assert scheduler.best_trial().config == expected


def test_seeds_of_trials_are_those_of_the_tuner() -> None:
    space = {**SPACE, "seed": None}
    scheduler = AskTellScheduler(ASHA(space, "loss", max_resource_attr="epochs", type="promotion", random_seed=5))
    trials = [ask(scheduler) for _ in range(3)]
    assert [t.seed for t in trials] == [t.config["seed"] for t in trials] == [trial_seed(5, i) for i in range(3)]
    for trial in trials:
        scheduler.tell(trial, epoch=1, loss=float(trial.trial_id))
    assert ask(scheduler).config == trials[0].config
    unseeded = [AskTellScheduler(Unseeded(SPACE)).ask() for _ in range(2)]
    assert unseeded[0] is not None
    assert unseeded[1] is not None
    assert unseeded[0].seed != unseeded[1].seed


class Unseeded(TrialScheduler):
    """A scheduler of a user, with two metrics and the least that is needed."""

    mode = ["min", "max"]  # noqa: RUF012 - as a user would write it
    answer: Any = CONTINUE
    suggestion = TrialSuggestion.start_suggestion({"x": 0.5, "act": "relu"})

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        return self.suggestion

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        return self.answer

    def metric_names(self) -> list[str]:
        return ["loss", "accuracy"]


def test_the_checkpoint_to_start_from_is_told() -> None:
    base = Unseeded(SPACE)
    scheduler = AskTellScheduler(base)
    assert ask(scheduler).checkpoint_trial_id is None
    base.suggestion = TrialSuggestion.start_suggestion({"x": 0.5, "act": "relu"}, checkpoint_trial_id=0)
    assert ask(scheduler).checkpoint_trial_id == 0
    base.suggestion = TrialSuggestion.start_suggestion({"x": 0.5, "act": "relu"}, checkpoint_trial_id=7)
    with pytest.raises(ValueError, match="the checkpoint of trial 7, which never started"):
        scheduler.ask()


def test_bad_custom_schedulers() -> None:
    base = Unseeded(SPACE)
    scheduler = AskTellScheduler(base)
    trial = ask(scheduler)
    for number, state in ((0, "is InProgress"), (5, "never started")):
        base.suggestion = TrialSuggestion.resume_suggestion(number)
        with pytest.raises(ValueError, match=f"Unseeded wants to resume trial {number}, which {state}"):
            scheduler.ask()
    base.answer = "GO"
    with pytest.raises(ValueError, match="Unseeded.on_trial_result must return one of .* got 'GO'"):
        scheduler.tell(trial, loss=0.5)


def test_a_slow_searcher_is_waited_for() -> None:
    class Slow(RandomSearcher):
        slow = True

    seen = []

    class Scheduler(FIFOScheduler):
        def begin_suggest(self, trial_id: int) -> TrialSuggestion | PendingSuggestion | None:
            begun = super().begin_suggest(trial_id)
            seen.append(isinstance(begun, PendingSuggestion))
            return begun

    slow = AskTellScheduler(Scheduler(SPACE, "loss", searcher=Slow(SPACE, random_seed=3)))
    quick = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=RandomSearcher(SPACE, random_seed=3)))
    assert [ask(slow).config for _ in range(3)] == [ask(quick).config for _ in range(3)]
    assert seen == [True] * 3


def test_a_searcher_that_raised_knows_of_all_results_when_it_is_asked_again() -> None:
    class Moody(Notes):
        def __init__(self, config_space: dict[str, Any]) -> None:
            super().__init__(config_space)
            self.known: list[int] = []

        def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
            self.known.append(len(self.learned))
            if len(self.known) == 2:
                raise RuntimeError("not now")
            return super().get_config(trial_id)

    searcher = Moody(SPACE)
    scheduler = AskTellScheduler(FIFOScheduler(SPACE, "loss", searcher=searcher))
    trial = ask(scheduler)
    with pytest.raises(RuntimeError, match="not now"):
        scheduler.ask()
    scheduler.tell(trial, loss=0.5, done=True)
    assert ask(scheduler).trial_id == 1
    assert searcher.known == [0, 0, 2]


def test_an_enqueued_configuration_outlives_an_error() -> None:
    class Wrong(BracketDistribution):
        answer: Any = "all of them"

        def __call__(self) -> np.ndarray:
            return self.answer

    distribution = Wrong()
    scheduler = AskTellScheduler(promotion(brackets=2, bracket_distribution=distribution))
    scheduler.enqueue({"x": 0.125})
    with pytest.raises(ValueError, match=r"Wrong\(\) must return 2 probabilities .* got 'all of them'"):
        scheduler.ask()
    distribution.answer = [0.0, 1.0]
    trial = ask(scheduler)
    assert (trial.trial_id, trial.config["x"], trial.milestone) == (0, 0.125, 3)
    assert ask(scheduler).config["x"] != 0.125


def test_none_means_nothing_now() -> None:
    scheduler = AskTellScheduler(
        ASHA({"a": choice([1, 2, 3]), "epochs": 9}, "loss", max_resource_attr="epochs", type="promotion")
    )
    trials = [ask(scheduler) for _ in range(3)]
    assert scheduler.ask() is None
    for trial in trials:
        scheduler.tell(trial, epoch=1, loss=float(trial.trial_id))
    again = ask(scheduler)
    assert (again.trial_id, again.run) == (0, 1)


# ---- steering --------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"a": choice(["p", "q", "r", "s"]), "epochs": 9}


def test_enqueued_configurations_come_first_and_once() -> None:
    scheduler = AskTellScheduler(RandomSearch(SMALL, "loss", points_to_evaluate=[{"a": "q"}], random_seed=0))
    scheduler.enqueue({"a": "r"})
    scheduler.enqueue({"epochs": 9})  # the mid-point: the first category
    state = json.loads(json.dumps(scheduler.state_dict()))
    for each in (scheduler, AskTellScheduler(RandomSearch(SMALL, "loss", points_to_evaluate=[{"a": "q"}]))):
        if each is not scheduler:
            each.load_state_dict(state)
        found = [each.ask() for _ in range(5)]
        assert [t.config["a"] for t in found if t is not None] == ["r", "p", "q", "s"]
        assert [t.trial_id for t in found if t is not None] == [0, 1, 2, 3]
        assert all(t.config["epochs"] == 9 for t in found if t is not None)
        assert found[4] is None


def test_an_enqueued_trial_pauses_and_is_promoted_like_any_other() -> None:
    scheduler = AskTellScheduler(promotion())
    scheduler.enqueue({"x": 0.25})
    trial = ask(scheduler)
    assert (trial.config, trial.milestone) == ({"x": 0.25, "act": "relu", "epochs": 9}, 1)
    scheduler.tell(trial, epoch=1, loss=0.0)
    scheduler.tell(ask(scheduler), epoch=1, loss=1.0)
    assert ask(scheduler).trial_id == 0


def test_added_results_are_learned_from_and_not_suggested() -> None:
    searcher = Notes(SMALL)
    scheduler = AskTellScheduler(FIFOScheduler(SMALL, "loss", searcher=searcher))
    scheduler.add_result({"a": "p"}, {"loss": 0.5})
    scheduler.add_result({"a": "q", "epochs": 9}, [{"loss": 0.75}, {"loss": np.float64(0.25)}])
    assert searcher.learned == [(-1, 0.5, True), (-2, 0.75, True), (-3, 0.25, True)]
    assert scheduler.trials == {}
    grid = AskTellScheduler(GridSearch(SMALL, "loss", points_to_evaluate=[]))
    grid.add_result({"a": "p"}, {"loss": 0.5})
    found = [grid.ask() for _ in range(4)]
    assert sorted(t.config["a"] for t in found if t is not None) == ["q", "r", "s"]


def test_an_added_result_at_a_lower_resource_begins_another_evaluation() -> None:
    searcher = Notes(SPACE)
    scheduler = AskTellScheduler(HyperbandScheduler(SPACE, "loss", searcher=searcher, searcher_data="all"))
    reports = [{"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 0.25}, {"epoch": 1, "loss": 0.75}]
    scheduler.add_result({"x": 0.5, "act": "relu"}, reports)
    assert searcher.learned == [(-1, 0.5, True), (-1, 0.25, True), (-2, 0.75, True)]


def test_added_results_count_in_rungs() -> None:
    def decision(added: bool) -> str:
        scheduler = AskTellScheduler(ASHA(SPACE, "loss", max_t=9, random_seed=0))
        if added:
            scheduler.add_result({"x": 0.5, "act": "relu"}, [{"epoch": 1, "loss": 0.125}, {"epoch": 3, "loss": 0.0}])
            fresh = AskTellScheduler(ASHA(SPACE, "loss", max_t=9, random_seed=0))
            fresh.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
            fresh.add_result({"x": 0.75, "act": "relu"}, {"epoch": 1, "loss": 1.0})  # a new one, not the one before
            scheduler = fresh
        return scheduler.tell(ask(scheduler), epoch=1, loss=0.5)

    assert (decision(False), decision(True)) == (CONTINUE, STOP)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.enqueue({"b": 1}), ConfigSpaceError, "'b' is not in the configuration space"),
        (lambda s: s.enqueue({"a": "t"}), ConfigSpaceError, "'t' of 'a' cannot be used"),
        (lambda s: s.enqueue("a"), TypeError, "config must be a mapping, got 'a'"),
        (lambda s: s.add_result({}, {"loss": 1.0}), ConfigSpaceError, "config lacks a"),
        (lambda s: s.add_result({"a": "t"}, {"loss": 1.0}), ConfigSpaceError, "'t' of 'a' cannot be used"),
        (lambda s: s.add_result({"a": "p"}, {"los": 1.0}), ValueError, r"metrics must hold 'loss'.*mean 'los'"),
        (lambda s: s.add_result({"a": "p"}, {}), ValueError, "metrics must hold 'loss'"),
        (lambda s: s.add_result({"a": "p"}, []), ValueError, "the list is empty"),
        (lambda s: s.add_result({"a": "p"}, 0.5), TypeError, "metrics must be a dict such as .* got 0.5"),
        (lambda s: s.add_result({"a": "p"}, [0.5]), TypeError, "metrics must be a mapping.* got 0.5"),
    ],
)
def test_bad_steering_changes_nothing(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    scheduler = AskTellScheduler(RandomSearch(SMALL, "loss", random_seed=0))
    before = scheduler.state_dict()
    with pytest.raises(error, match=message):
        call(scheduler)
    assert scheduler.state_dict() == before


# ---- results ---------------------------------------------------------------------------------------------


def test_the_best_trial_by_mode_and_metric() -> None:
    scheduler = AskTellScheduler(Unseeded(SPACE))
    with pytest.raises(ValueError, match="no trial has a finite 'loss' yet"):
        scheduler.best_trial()
    values = [
        (math.nan, 0.0),
        (-math.inf, 0.5),
        (0.5, math.inf),
        (0.25, 0.5),
        (0.25, 0.75),
        (True, -1.0),
    ]
    for loss, accuracy in values:
        trial = ask(scheduler)
        scheduler.tell(trial, loss=loss, accuracy=accuracy)
        scheduler.tell(trial, loss=1.0, accuracy=-1.0, done=trial.trial_id == 3)
    best = scheduler.best_trial()
    assert isinstance(best, TrialResult)
    assert (best.trial_id, best.status) == (3, Status.completed)
    assert best.metrics == [{"loss": 0.25, "accuracy": 0.5}, {"loss": 1.0, "accuracy": -1.0}]
    assert scheduler.best_trial("accuracy").trial_id == 4
    with pytest.raises(ValueError, match=r"got 'acuracy' \(did you mean 'accuracy'\?\)"):
        scheduler.best_trial("acuracy")


def test_numbers_of_other_libraries_are_taken() -> None:
    torch = pytest.importorskip("torch")
    scheduler = AskTellScheduler(RandomSearch(SPACE, "loss"))
    trial = ask(scheduler)
    scheduler.tell(trial, loss=np.float32(0.5), count=np.int64(3))
    scheduler.tell(trial, loss=torch.tensor(0.25))
    assert scheduler.trials[0].metrics == [{"loss": 0.5, "count": 3}, {"loss": 0.25}]
    json.dumps(scheduler.state_dict())


def test_columns_of_the_scheduler_are_in_the_results() -> None:
    scheduler = AskTellScheduler(
        HyperbandScheduler(SPACE, "loss", max_t=9, type="promotion", cost_attr="seconds", random_seed=0)
    )
    for loss in (0.0, 1.0):
        scheduler.tell(ask(scheduler), epoch=1, loss=loss, seconds=2.0)
    scheduler.tell(ask(scheduler), epoch=2, loss=0.0, seconds=0.5)
    assert [m["total_seconds"] for m in scheduler.trials[0].metrics] == [2.0, 2.5]


def test_a_loop_that_never_ends_its_trials_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    def warnings(tell: dict[str, Any], n: int, base: TrialScheduler) -> list[str]:
        caplog.clear()
        scheduler = AskTellScheduler(base)
        with caplog.at_level(logging.WARNING, logger="sthyper"):
            for _ in range(n):
                scheduler.tell(ask(scheduler), {"loss": 0.5}, **tell)
        return [r.getMessage() for r in caplog.records]

    found = warnings({}, 40, RandomSearch(SPACE, "loss"))
    assert len(found) == 1
    assert found[0].startswith("32 trials have results and none has ended; end each by tell(trial, ..., done=True)")
    assert warnings({"done": True}, 40, RandomSearch(SPACE, "loss")) == []
    assert warnings({"epoch": 1}, 40, ASHA(SPACE, "loss", max_t=9)) == []


# ---- bad input -------------------------------------------------------------------------------------------


def test_reports_that_cannot_be_used_leave_the_trial_running() -> None:
    scheduler = AskTellScheduler(promotion())
    trial = ask(scheduler)
    with pytest.raises(ReportError, match=r"metric 'loss' is missing.*\['epoch', 'los'\] \(did you mean 'los'"):
        scheduler.tell(trial, epoch=1, los=0.5)
    with pytest.raises(ReportError, match="resource 'epoch' is missing"):
        scheduler.tell(trial, loss=0.5, done=True)
    with pytest.raises(ReportError, match="metric 'loss' must be a number"):
        scheduler.tell(trial, epoch=1, loss="low")
    with pytest.raises(ReportError, match="epoch=2 was reported without epoch=1, a rung level"):
        scheduler.tell(trial, epoch=2, loss=0.5)
    assert scheduler.running_trials == [trial]
    assert scheduler.trials[0].metrics == []
    assert scheduler.tell(trial, epoch=1, loss=0.5) == PAUSE


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, t: s.tell(t), ValueError, r"tell\(\) got no metrics"),
        (lambda s, t: s.tell(t, {}), ValueError, r"tell\(\) got no metrics"),
        (lambda s, t: s.tell(t, done=True), ValueError, r"trial 0 is done without a result.*tell\(trial, loss=...,"),
        (lambda s, t: s.tell(t, {"loss": 1.0}, loss=2.0), ValueError, "metric 'loss' is given twice: 1.0 and 2.0"),
        (lambda s, t: s.tell(t, [1.0]), TypeError, r"metrics must be a mapping.* got \[1.0\]"),
        (lambda s, t: s.tell(t, {1: 1.0}), TypeError, "names of metrics must be strings, got 1"),
        (lambda s, t: s.tell(t, loss=None), ValueError, "metric 'loss' is None"),
        (lambda s, t: s.tell(t, loss=1.0, st_x=1), ValueError, "reserved"),
        (lambda s, t: s.tell(t, loss=object()), TypeError, "metric 'loss' is of type object"),
        (lambda s, t: s.tell(t, loss=1.0, done=1), TypeError, "done must be True or False, got 1"),
        (lambda s, t: s.tell(7, loss=1.0), ValueError, "trial 7 is unknown: ask.* has returned 1 trials"),
        (lambda s, t: s.tell(-1, loss=1.0), ValueError, "trial -1 is unknown"),
        (lambda s, t: s.tell("0", loss=1.0), TypeError, "trial must be what ask.. returned, or its id, got '0'"),
        (lambda s, t: s.tell(None, loss=1.0), TypeError, "trial must be what ask.. returned, or its id, got None"),
        (lambda s, t: s.fail(7), ValueError, "trial 7 is unknown"),
        (lambda s, t: s.fail(t, ""), TypeError, "reason must be a text, got ''"),
        (lambda s, t: s.fail(t, "exit 1", 0), TypeError, "blacklist must be True or False, got 0"),
    ],
)
def test_bad_calls(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    scheduler = AskTellScheduler(RandomSearch(SPACE, "loss"))
    trial = ask(scheduler)
    with pytest.raises(error, match=message):
        call(scheduler, trial)
    assert scheduler.tell(trial.trial_id, loss=1.0, done=True) == STOP


def test_it_needs_a_scheduler() -> None:
    with pytest.raises(TypeError, match="base_scheduler must be a TrialScheduler, got 'ASHA'"):
        AskTellScheduler("ASHA")  # type: ignore[arg-type]
