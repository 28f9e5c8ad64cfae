"""The simulation does what the tuner does with a scheduler's decisions."""

from __future__ import annotations

from typing import Any

import pytest

from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, uniform
from sthyper.testing import TrialSimulation, drive, toy_curve
from sthyper.trial import Trial, TrialSuggestion

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 9}


def x_curve(config: dict[str, Any], resource: int) -> dict[str, float]:
    return {"loss": config["x"]}


def test_workers_run_at_the_same_time_and_never_more() -> None:
    simulation = TrialSimulation(RandomSearch(SPACE, "loss", random_seed=0), n_workers=3, n_trials=7, max_resource=4)
    running = 0
    most = 0
    for event in simulation.run():
        running += {"start": 1, "complete": -1}.get(event.kind, 0)
        most = max(most, running)
    assert most == 3
    assert running == 0
    reports = [e for e in simulation.events if e.kind == "report"]
    assert len(reports) == 28
    orders = [e.trial_id for e in reports]
    assert orders != sorted(orders)


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_the_maximum_is_no_stop_unless_only_max_t_is_known(kind: str) -> None:
    told = {}
    for name, known in (("attr", {"max_resource_attr": "epochs"}), ("max_t", {"max_t": 9})):
        scheduler = ASHA(SPACE, "loss", type=kind, random_seed=0, reduction_factor=9, **known)  # type: ignore[arg-type]
        events = drive(scheduler, x_curve, n_trials=6)
        told[name] = {(e.decision, e.answer) for e in events if e.kind == "report" and e.resource == 9}
        assert any(e.kind == "complete" for e in events)
    assert told == {"attr": {("STOP", "CONTINUE")}, "max_t": {("STOP", "STOP")}}


def test_a_resumed_trial_goes_on_where_it_paused_with_the_full_configuration() -> None:
    scheduler = ASHA(SPACE, "loss", type="promotion", max_resource_attr="epochs", random_seed=0)
    seen = []

    def curve(config: dict[str, Any], resource: int) -> dict[str, float]:
        seen.append(config["epochs"])
        return {"loss": config["x"]}

    events = drive(scheduler, curve, n_trials=12)
    assert set(seen) == {9}
    resumes = [e for e in events if e.kind == "resume"]
    assert {(e.resource, e.config["epochs"]) for e in resumes if e.config} <= {(1, 3), (3, 9)}
    for resume in resumes:
        after = next(e for e in events[events.index(resume) :] if e.kind == "report" and e.trial_id == resume.trial_id)
        assert after.resource == resume.resource + 1


def test_the_first_suggestion_beyond_the_limit_ends_the_asking() -> None:
    class Counting(RandomSearch):
        asked = 0

        def _suggest(self, trial_id: int) -> TrialSuggestion | None:
            self.asked += 1
            return super()._suggest(trial_id)

    scheduler = Counting(SPACE, "loss")
    drive(scheduler, n_workers=2, n_trials=5)
    assert scheduler.asked == 6


def test_failures_and_exhaustion_are_told() -> None:
    failed: list[Trial] = []

    class Watching(RandomSearch):
        def on_trial_error(self, trial: Trial) -> None:
            failed.append(trial)
            super().on_trial_error(trial)

    space = {"c": choice(["a", "b", "c"])}
    events = drive(Watching(space, "loss", random_seed=0), n_workers=1, n_trials=9, max_resource=3, fails_at={1: 2})
    assert [(t.trial_id, t.end_reason) for t in failed] == [(1, "exit 1")]
    assert [e.resource for e in events if e.kind == "report" and e.trial_id == 1] == [1]
    assert events[-1].kind == "exhausted"
    assert events[-1].trial_id == 3


def test_resuming_what_is_not_paused_is_an_error() -> None:
    class Wrong(RandomSearch):
        def _suggest(self, trial_id: int) -> TrialSuggestion | None:
            return super()._suggest(trial_id) if trial_id == 0 else TrialSuggestion.resume_suggestion(0)

    with pytest.raises(AssertionError, match="resume trial 0, which is not paused"):
        drive(Wrong(SPACE, "loss"), n_workers=2)


def test_the_toy_curve_does_not_depend_on_the_milestone() -> None:
    scheduler = ASHA(SPACE, "loss", max_resource_attr="epochs")
    curve = toy_curve(scheduler)
    assert curve({"x": 0.5, "epochs": 9}, 2) == curve({"x": 0.5, "epochs": 3}, 2)
    assert curve({"x": 0.5, "epochs": 9}, 1)["loss"] > curve({"x": 0.5, "epochs": 9}, 9)["loss"]
    assert curve({"x": 0.6, "epochs": 9}, 9) != curve({"x": 0.5, "epochs": 9}, 9)
