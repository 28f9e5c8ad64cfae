"""Schedulers say which checkpoints will never be needed again: what they name is never resumed or copied."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, uniform
from sthyper.schedulers import SchedulerDecision, TrialScheduler, TrialSuggestion
from sthyper.schedulers.hyperband import PromotionRungSystem
from sthyper.testing import SchedulerConformance, TrialSimulation
from sthyper.testing.simulation import toy_fraction
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 9}


def asha(**options: Any) -> Callable[[], TrialScheduler]:
    return lambda: ASHA(SPACE, "loss", max_resource_attr="epochs", random_seed=3, **options)


SCHEDULERS: dict[str, Callable[[], TrialScheduler]] = {
    "random": lambda: RandomSearch(SPACE, "loss", random_seed=3),
    "grid": lambda: GridSearch({"x": choice([1, 2, 3, 4, 5, 6]), "epochs": 9}, "loss"),
    "stopping": asha(),
    "promotion": asha(type="promotion"),
    "promotion in 3 brackets": asha(type="promotion", brackets=3),
    "promotion in 3 brackets of their own": asha(type="promotion", brackets=3, rung_system_per_bracket=True),
    "promotion, mode max": lambda: ASHA(
        SPACE, "loss", mode="max", type="promotion", max_resource_attr="epochs", random_seed=3
    ),
}

values = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(-10, 10), st.floats(allow_nan=True, allow_infinity=True)
)


@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(values, min_size=1, max_size=12),
    later=st.lists(values, min_size=1, max_size=6),
    n_workers=st.integers(1, 6),
    fails_at=st.dictionaries(st.integers(0, 12), st.integers(1, 9), max_size=3),
    cut=st.integers(1, 60),
)
def test_what_is_named_is_never_needed_whatever_comes(
    name: str, table: list[float], later: list[float], n_workers: int, fails_at: dict[int, int], cut: int
) -> None:
    def curve(from_table: list[float]) -> Callable[[dict[str, Any], int], Mapping[str, Any]]:
        return lambda config, resource: {
            "loss": from_table[int(toy_fraction([config["x"], resource]) * len(from_table))]
        }

    # The simulation fails when it is to resume or copy what was let go.
    simulation = TrialSimulation(SCHEDULERS[name](), curve(table), n_workers, 25, fails_at=fails_at)
    simulation.run(cut)
    restored = SCHEDULERS[name]()
    restored.load_state_dict(json.loads(json.dumps(simulation.scheduler.state_dict())))
    for rest in (simulation.fork(restored), simulation):
        rest.curve = curve(later)
        rest.run()
        assert len(rest.named) == len(set(rest.named))
        last = {e.trial_id: e for e in rest.events if e.kind in ("report", "error", "complete")}
        assert set(rest.named) <= {t for t, e in last.items() if e.answer == SchedulerDecision.PAUSE}
        assert {e.trial_id for e in rest.events if e.kind == "complete"} <= rest.let_go


def test_paused_trials_without_a_finite_value_are_named_once() -> None:
    scheduler = ASHA(SPACE, "loss", type="promotion", max_resource_attr="epochs", random_seed=0)
    seen = {}

    def curve(config: dict[str, Any], resource: int) -> dict[str, float]:
        seen[config["x"]] = bad = toy_fraction(config["x"]) < 0.4
        return {"loss": math.nan if bad else config["x"]}

    simulation = TrialSimulation(scheduler, curve, n_trials=40)
    simulation.run()
    hopeless = {e.trial_id for e in simulation.events if e.kind == "start" and seen[(e.config or {})["x"]]}
    assert len(hopeless) > 8
    assert sorted(simulation.named) == sorted(hopeless)
    paused = {p.trial_id for p in scheduler.terminator.paused_trials()}
    assert paused - hopeless
    assert not (paused - hopeless) & simulation.let_go


def test_what_nobody_asked_for_yet_belongs_to_the_state() -> None:
    system = PromotionRungSystem([1, 3], 9)
    system.register(0, 1, math.nan)
    system.register(1, 1, 0.5)
    system.register(2, 1, math.inf)
    restored = PromotionRungSystem([1, 3], 9)
    restored.load_state_dict(json.loads(json.dumps(system.state_dict())))
    for each in (system, restored):
        assert each.take_hopeless() == [0, 2]
        assert each.take_hopeless() == []
    copied = PromotionRungSystem([1, 3], 9)
    copied.load_state_dict(copy.deepcopy(restored.state_dict()))
    assert copied.take_hopeless() == []


def test_what_another_scheduler_paused_or_resumed() -> None:
    scheduler = ASHA(SPACE, "loss", type="promotion", max_resource_attr="epochs", random_seed=0)
    trials = [Trial(i, {"x": 0.1 * i, "epochs": 9}, datetime(2020, 1, 1)) for i in range(3)]
    for trial in trials:
        scheduler.suggest_enqueued(trial.trial_id, {"x": trial.config["x"]})
        scheduler.on_trial_add(trial)
        scheduler.adopt_result(trial, {"epoch": 1, "loss": math.nan}, SchedulerDecision.PAUSE)
    scheduler.on_trial_resume(trials[1])
    scheduler.adopt_result(trials[1], {"epoch": 3, "loss": 0.5}, SchedulerDecision.PAUSE)
    trials[2].end_reason = "exit 1"
    scheduler.on_trial_error(trials[2])
    assert scheduler.trials_checkpoints_can_be_removed() == [0]


class Copies(TrialScheduler):
    """Starts some trials from a copy, and says so or not; pauses all at epoch 2, and resumes some or says never."""

    resource_attr = "epoch"

    def __init__(self, says_so: bool = True, resumes: bool = False) -> None:
        super().__init__(SPACE)
        self.says_so = says_so
        self.resumes = resumes
        self.paused: list[int] = []
        self.named: list[int] = []

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        if self.resumes and self.paused:
            return TrialSuggestion.resume_suggestion(self.paused.pop(), None)
        return TrialSuggestion.start_suggestion({"x": 0.1}, trial_id - 4 if trial_id % 10 == 4 else None)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        if result["epoch"] == 2 and trial.trial_id % 2:
            self.paused.append(trial.trial_id)
            self.named.append(trial.trial_id)
            return SchedulerDecision.PAUSE
        return SchedulerDecision.STOP if result["epoch"] == 3 else SchedulerDecision.CONTINUE

    def may_copy_checkpoint(self, trial_id: int) -> bool:
        return self.says_so

    def trials_checkpoints_can_be_removed(self) -> list[int]:
        named, self.named = self.named, []
        return named

    def metric_names(self) -> list[str]:
        return ["loss"]


def test_the_simulation_sees_what_is_used_after_it_was_let_go() -> None:
    TrialSimulation(Copies(), n_trials=20).run()
    with pytest.raises(AssertionError, match="start trial 4 from the checkpoint of trial 0, which is let go"):
        TrialSimulation(Copies(says_so=False), n_trials=20, n_workers=1).run()
    with pytest.raises(AssertionError, match="has named before"):
        TrialSimulation(Copies(resumes=True), n_trials=20).run()


def test_the_conformance_suite_sees_it() -> None:
    class Named(ASHA):
        """Names every trial that it pauses."""

        def trials_checkpoints_can_be_removed(self) -> list[int]:
            return [trial_id for trial_id in self._records if self._records[trial_id].decision == "PAUSE"]

    class Suite(SchedulerConformance):
        def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
            return Named(config_space, "loss", type="promotion", max_resource_attr="epochs", random_seed=random_seed)

    with pytest.raises(AssertionError, match="has named before|twice"):
        Suite().test_checkpoints_that_are_let_go_are_never_needed()
