"""HyperbandScheduler: reports, milestones, promotions, the maximum, errors, arguments."""

from __future__ import annotations

import json
import logging
import math
from datetime import datetime
from typing import Any

import pytest

from sthyper.baselines import ASHA
from sthyper.config_space import ConfigSpaceError, randint, uniform
from sthyper.errors import ReportError
from sthyper.schedulers import HyperbandScheduler, PromotionRungSystem, StoppingRungSystem
from sthyper.searchers import BaseSearcher, SearcherContext
from sthyper.testing import drive
from sthyper.trial import Trial, TrialSuggestion

SPACE: dict[str, Any] = {"x": uniform(0, 1), "n": randint(1, 9), "data": "digits", "epochs": 9}


class Recorder(BaseSearcher):
    """A searcher that writes down what it is told."""

    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space)
        self.log: list[tuple[Any, ...]] = []
        self.context: SearcherContext | None = None
        self.number = 0

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        assert self.context is None
        self.context = context

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        self.number += 1
        return {"x": 1 / (1 + self.number), "n": self.number}

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        assert set(config) == {"x", "n"}
        self.log.append(("result", trial_id, result["epoch"], update))

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        assert config is not None
        assert set(config) == {"x", "n"}
        self.log.append(("pending", trial_id, milestone))

    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        self.log.append(("failed", trial_id, blacklist))

    def cleanup_pending(self, trial_id: int | str) -> None:
        self.log.append(("cleanup", trial_id))


def make(kind: str = "promotion", **arguments: Any) -> HyperbandScheduler:
    options = {"max_resource_attr": "epochs", "random_seed": 0} | arguments
    return HyperbandScheduler(SPACE, "loss", type=kind, **options)


def start(scheduler: HyperbandScheduler, trial_id: int) -> Trial:
    suggestion = scheduler.suggest(trial_id)
    assert suggestion is not None
    assert suggestion.spawn_new_trial_id
    assert suggestion.config is not None
    trial = Trial(trial_id, suggestion.config | {"epochs": 9}, datetime(2020, 1, 1))
    scheduler.on_trial_add(trial)
    return trial


def report(scheduler: HyperbandScheduler, trial: Trial, epoch: int, loss: float) -> str:
    return scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss})


# ---- suggestions and milestones --------------------------------------------------------------------------


def test_a_new_trial_runs_to_the_first_milestone_and_a_promoted_one_to_the_next() -> None:
    scheduler = make(grace_period=2, reduction_factor=2)
    assert scheduler.rung_levels == [2, 4, 8]
    assert scheduler.does_pause_resume()
    first = scheduler.suggest(0)
    assert first is not None
    assert first.config is not None
    assert first.config["epochs"] == 2
    assert list(first.config) == list(SPACE)
    trials = [Trial(0, first.config | {"epochs": 9}, datetime(2020, 1, 1))]
    scheduler.on_trial_add(trials[0])
    trials.append(start(scheduler, 1))
    assert scheduler.milestone(0) == 2
    assert scheduler.milestone(99) is None

    assert report(scheduler, trials[0], 1, 0.5) == "CONTINUE"
    assert report(scheduler, trials[0], 2, 0.5) == "PAUSE"
    assert scheduler.milestone(0) is None
    assert report(scheduler, trials[1], 2, 0.4) == "PAUSE"
    promoted = scheduler.suggest(2)
    assert promoted is not None
    assert promoted == TrialSuggestion.resume_suggestion(1, trials[1].config | {"epochs": 4})
    assert scheduler.milestone(1) == 4
    assert report(scheduler, trials[1], 3, 0.3) == "CONTINUE"


def test_a_resume_keeps_what_the_trial_got_beside_the_space() -> None:
    space = SPACE | {"seed": None}
    scheduler = ASHA(space, "loss", type="promotion", max_resource_attr="epochs", random_seed=0)
    for trial_id in (0, 1):
        suggestion = scheduler.suggest(trial_id)
        assert suggestion is not None
        assert suggestion.config is not None
        trial = Trial(trial_id, suggestion.config | {"epochs": 9, "seed": 100 + trial_id}, datetime(2020, 1, 1))
        scheduler.on_trial_add(trial)
        scheduler.on_trial_result(trial, {"epoch": 1, "loss": float(trial_id)})
    resume = scheduler.suggest(2)
    assert resume is not None
    assert resume.config is not None
    assert (resume.checkpoint_trial_id, resume.config["seed"], resume.config["epochs"]) == (0, 100, 3)


def test_without_max_resource_attr_the_configuration_is_left_alone() -> None:
    scheduler = make(max_resource_attr=None, max_t=9)
    trials = [start(scheduler, i) for i in range(2)]
    suggestion = scheduler.suggest(2)
    assert suggestion is not None
    assert suggestion.config is not None
    assert suggestion.config["epochs"] == 9
    for trial, loss in zip(trials, (0.1, 0.2), strict=True):
        assert report(scheduler, trial, 1, loss) == "PAUSE"
    assert scheduler.suggest(3) == TrialSuggestion.resume_suggestion(0, None)
    assert scheduler.milestone(0) == 3


def test_stopping_has_milestones_too() -> None:
    scheduler = make("stopping")
    trial = start(scheduler, 0)
    assert trial.config["epochs"] == 9
    assert not scheduler.does_pause_resume()
    assert scheduler.milestone(0) == 1
    assert report(scheduler, trial, 1, 0.5) == "CONTINUE"
    assert scheduler.milestone(0) == 3
    assert [report(scheduler, trial, r, 0.5) for r in range(2, 9)] == ["CONTINUE"] * 7
    assert scheduler.milestone(0) == 9
    assert report(scheduler, trial, 9, 0.5) == "STOP"
    assert scheduler.milestone(0) is None


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_the_maximum_ends_a_trial(kind: str, loss: float) -> None:
    events = drive(
        make(kind, reduction_factor=9, points_to_evaluate=[{"x": 0.2}, {"x": 0.9}, {"x": 0.9, "n": 2}]),
        lambda config, r: {"loss": config["x"] if r < 9 else loss},
        n_workers=1,
        n_trials=3,
    )
    best = [(e.resource, e.decision, e.answer) for e in events if e.kind == "report" and e.trial_id == 0]
    assert best[-1] == (9, "STOP", "CONTINUE")
    assert [(e.kind, e.trial_id) for e in events if e.kind == "complete"] == [("complete", 0)]


# ---- reports that do not count ---------------------------------------------------------------------------


def test_late_and_repeated_reports_do_not_count() -> None:
    scheduler = make(searcher=Recorder(SPACE))
    searcher = scheduler.searcher
    assert isinstance(searcher, Recorder)
    trials = [start(scheduler, i) for i in range(3)]
    assert report(scheduler, trials[0], 1, 0.5) == "PAUSE"
    state, told = json.dumps(scheduler.state_dict()), list(searcher.log)
    assert report(scheduler, trials[0], 1, 0.0) == "PAUSE"
    assert report(scheduler, trials[0], 2, 0.0) == "PAUSE"
    assert json.dumps(scheduler.state_dict()) == state
    assert searcher.log == told

    assert report(scheduler, trials[1], 1, 0.9) == "PAUSE"
    resume = scheduler.suggest(3)
    assert resume is not None
    assert resume.checkpoint_trial_id == 0
    # A script without checkpoints begins again.
    assert report(scheduler, trials[0], 1, 0.0) == "CONTINUE"
    assert len(scheduler.rung_system.rungs[0]) == 2
    assert report(scheduler, trials[0], 2, 0.4) == "CONTINUE"
    assert report(scheduler, trials[0], 3, 0.4) == "PAUSE"

    trials[2].end_reason = "exit 1"
    scheduler.on_trial_error(trials[2])
    assert report(scheduler, trials[2], 1, 0.0) == "STOP"
    assert len(scheduler.rung_system.rungs[0]) == 2


def test_a_stopped_trial_stays_stopped() -> None:
    scheduler = make("stopping")
    good, bad = start(scheduler, 0), start(scheduler, 1)
    assert report(scheduler, good, 1, 0.1) == "CONTINUE"
    assert report(scheduler, bad, 1, 0.9) == "STOP"
    assert report(scheduler, bad, 2, 0.0) == "STOP"
    assert report(scheduler, good, 1, 0.9) == "CONTINUE"
    assert len(scheduler.rung_system.rungs[0]) == 2


@pytest.mark.parametrize("ending", ["error", "complete"])
def test_a_trial_that_ended_is_not_promoted(ending: str) -> None:
    scheduler = make()
    trials = [start(scheduler, i) for i in range(4)]
    for trial, loss in zip(trials, (0.1, 0.2, 0.3, 0.9), strict=True):
        report(scheduler, trial, 1, loss)
    if ending == "error":
        scheduler.on_trial_error(trials[0])
    else:
        scheduler.on_trial_complete(trials[0], {"epoch": 1, "loss": 0.1})
    suggestion = scheduler.suggest(4)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 1  # 0.2 is the cutoff of all four values


def test_a_trial_started_by_hand_takes_part() -> None:
    scheduler = make()
    foreign = Trial(40, {"x": 0.3, "n": 3, "data": "digits", "epochs": 9}, datetime(2020, 1, 1))
    assert report(scheduler, foreign, 1, 0.1) == "PAUSE"
    other = start(scheduler, 41)
    assert report(scheduler, other, 1, 0.2) == "PAUSE"
    resume = scheduler.suggest(42)
    assert resume is not None
    assert resume.checkpoint_trial_id == 40
    assert resume.config == foreign.config | {"epochs": 3}


# ---- bad reports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"epoch": 1}, r"metric 'loss' is missing .* expected: report\(epoch=\.\.\., loss=\.\.\.\)"),
        ({"epoch": 1, "los": 1.0}, "did you mean 'los'"),
        ({"epoch": 1, "loss": "0.5"}, "metric 'loss' must be a number, the report has '0.5'"),
        ({"loss": 1.0, "st_worker_time": 1.0}, r"resource 'epoch' is missing .* \['loss'\]; expected: report\(epoch=1"),
        ({"loss": 1.0, "epochs": 1}, "did you mean 'epochs'"),
        ({"loss": 1.0, "epoch": 0}, "resource 'epoch' must be a positive integer, the report has 0"),
        ({"loss": 1.0, "epoch": -1}, "the report has -1"),
        ({"loss": 1.0, "epoch": 1.5}, "the report has 1.5"),
        ({"loss": 1.0, "epoch": "1"}, "the report has '1'"),
        ({"loss": 1.0, "epoch": True}, "the report has True"),
        ({"loss": 1.0, "epoch": None}, "the report has None"),
        ({"loss": 1.0, "epoch": math.nan}, "the report has nan"),
    ],
)
def test_a_bad_report_is_refused_and_changes_nothing(kind: str, result: dict[str, Any], message: str) -> None:
    scheduler = make(kind)
    trial = start(scheduler, 0)
    state = scheduler.state_dict()
    with pytest.raises(ReportError, match=message):
        scheduler.on_trial_result(trial, result)
    assert scheduler.state_dict() == state


def test_a_whole_float_is_a_resource() -> None:
    scheduler = make()
    assert scheduler.on_trial_result(start(scheduler, 0), {"epoch": 1.0, "loss": 1}) == "PAUSE"


def test_names_that_are_no_identifiers_are_shown_quoted() -> None:
    scheduler = ASHA(SPACE, "val/loss", max_resource_attr="epochs")
    trial = Trial(0, {"x": 0.5, "n": 1, "data": "digits", "epochs": 9}, datetime(2020, 1, 1))
    with pytest.raises(ReportError, match=r"report\(\*\*\{'epoch': 1, 'val/loss': \.\.\.\}\)"):
        scheduler.on_trial_result(trial, {"val/loss": 1.0})


def test_promotion_refuses_a_report_beyond_the_milestone() -> None:
    scheduler = make()
    trial = start(scheduler, 0)
    state = scheduler.state_dict()
    with pytest.raises(ReportError, match=r"epoch=2 was reported without epoch=1, a rung level .*\[1, 3\].*'loss'"):
        report(scheduler, trial, 2, 0.5)
    with pytest.raises(ReportError, match="epoch=9 was reported without epoch=1"):
        report(scheduler, trial, 9, 0.5)
    assert scheduler.state_dict() == state
    assert report(scheduler, trial, 1, 0.5) == "PAUSE"


def test_beyond_the_maximum_is_a_stop() -> None:
    scheduler = make()
    trials = [start(scheduler, i) for i in range(2)]
    for trial, loss in zip(trials, (0.1, 0.2), strict=True):
        report(scheduler, trial, 1, loss)
    scheduler.suggest(2)
    report(scheduler, trials[0], 3, 0.1)
    scheduler.rung_system.register(1, 3, 0.5)
    assert scheduler.suggest(2) == TrialSuggestion.resume_suggestion(0, trials[0].config)
    assert report(scheduler, trials[0], 8, 0.1) == "CONTINUE"
    assert report(scheduler, trials[0], 10, 0.1) == "STOP"


def test_stopping_goes_on_past_a_skipped_rung(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make("stopping")
    good, bad = start(scheduler, 0), start(scheduler, 1)
    assert report(scheduler, good, 1, 0.1) == "CONTINUE"
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        assert report(scheduler, bad, 2, 0.9) == "CONTINUE"
        assert [r.getMessage() for r in caplog.records] == [
            "trial 1: epoch=2 was reported without epoch=1, a rung level (rung levels: [1, 3]); report 'loss' at "
            "every rung level, at best at every epoch. A trial that skips a rung goes on there without comparison"
        ]
        another = start(scheduler, 2)
        report(scheduler, another, 2, 0.9)
        assert len(caplog.records) == 1
    assert len(scheduler.rung_system.rungs[0]) == 1
    assert report(scheduler, good, 3, 0.1) == "CONTINUE"
    assert report(scheduler, bad, 3, 0.9) == "STOP"  # the next rung it does not skip


# ---- the searcher ----------------------------------------------------------------------------------------


def test_the_searcher_learns_at_rungs_and_at_the_end() -> None:
    scheduler = make("stopping", searcher=Recorder(SPACE), mode="max")
    searcher = scheduler.searcher
    assert isinstance(searcher, Recorder)
    trial = start(scheduler, 0)
    assert searcher.context == SearcherContext(
        metric="loss",
        mode="max",
        random_seed=searcher.context.random_seed if searcher.context else -1,
        resource_attr="epoch",
        max_resource_level=9,
        rung_levels=(1, 3),
    )
    for epoch in range(1, 8):
        report(scheduler, trial, epoch, 0.5)
    scheduler.on_trial_complete(trial, {"epoch": 7, "loss": 0.5})
    assert searcher.log == [
        ("pending", 0, 1),
        ("result", 0, 1, True),
        ("pending", 0, 3),
        ("result", 0, 2, False),
        ("result", 0, 3, True),
        ("pending", 0, 9),
        ("result", 0, 4, False),
        ("result", 0, 5, False),
        ("result", 0, 6, False),
        ("result", 0, 7, False),
        ("result", 0, 7, True),
        ("cleanup", 0),
    ]


def test_the_searcher_learns_nothing_twice_and_of_failures() -> None:
    scheduler = make(searcher=Recorder(SPACE))
    searcher = scheduler.searcher
    assert isinstance(searcher, Recorder)
    trials = [start(scheduler, i) for i in range(2)]
    searcher.log.clear()
    report(scheduler, trials[0], 1, 0.1)
    scheduler.on_trial_remove(trials[0])
    report(scheduler, trials[1], 1, 0.2)
    scheduler.on_trial_remove(trials[1])
    scheduler.suggest(2)  # trial 0 goes on
    report(scheduler, trials[0], 1, 0.1)
    report(scheduler, trials[0], 2, 0.1)
    trials[0].end_reason = "out_of_memory"
    scheduler.on_trial_error(trials[0])
    trials[1].end_reason = "killed"
    scheduler.on_trial_error(trials[1])
    assert searcher.log == [
        ("result", 0, 1, True),
        ("cleanup", 0),
        ("result", 1, 1, True),
        ("cleanup", 1),
        ("pending", 0, 3),
        ("result", 0, 2, False),
        ("failed", 0, True),
        ("cleanup", 0),
        ("failed", 1, False),
        ("cleanup", 1),
    ]


def test_a_completed_trial_at_the_maximum_is_not_learnt_twice() -> None:
    scheduler = make("stopping", searcher=Recorder(SPACE))
    searcher = scheduler.searcher
    assert isinstance(searcher, Recorder)
    trial = start(scheduler, 0)
    for epoch in range(1, 10):
        report(scheduler, trial, epoch, 0.5)
    assert searcher.log[-1] == ("result", 0, 9, True)
    scheduler.on_trial_complete(trial, {"epoch": 9, "loss": 0.5})
    assert searcher.log[-2:] == [("result", 0, 9, True), ("cleanup", 0)]


# ---- arguments -------------------------------------------------------------------------------------------


def test_the_maximum_is_found() -> None:
    assert HyperbandScheduler({"x": uniform(0, 1), "max_epochs": 4}, "m").max_resource_level == 4
    assert HyperbandScheduler({"x": uniform(0, 1), "max_t": 5, "max_epochs": 4}, "m").max_resource_level == 5
    both = {"x": uniform(0, 1), "epochs": randint(1, 9), "max_epochs": 4}
    assert HyperbandScheduler(both, "m").max_resource_level == 4  # a domain is no maximum
    named = HyperbandScheduler(SPACE | {"steps": 30}, "m", max_resource_attr="steps")
    assert (named.max_resource_level, named.max_resource_attr) == (30, "steps")
    assert HyperbandScheduler({"x": uniform(0, 1)}, "m", max_t=7).max_resource_level == 7
    with pytest.warns(UserWarning, match="max_t=7 differs from 'epochs': 9 of config_space; max_t=7 is used"):
        assert make(max_t=7).max_resource_level == 7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_resource_attr": "epoch"}, ConfigSpaceError, r"'epoch' is not in config_space.*did you mean 'epochs'"),
        ({"max_resource_attr": "n"}, ConfigSpaceError, "must name a constant of config_space"),
        (
            {"max_resource_attr": "data"},
            ConfigSpaceError,
            r"config_space\['data'\] must be a positive int, got 'digits'",
        ),
        ({"max_t": 0}, ValueError, "max_t must be a positive int, got 0"),
        ({"max_t": 2.5}, TypeError, r"max_t must be a positive int, got 2\.5"),
        (
            {"type": "promotoin"},
            ValueError,
            r"type must be one of \['stopping', 'promotion'\].*did you mean 'promotion'",
        ),
        ({"type": 3}, ValueError, "type must be one of"),
        ({"mode": "minimize"}, ValueError, "mode must be 'min' or 'max', got 'minimize'"),
        ({"metric": ""}, TypeError, "metric must be the name of a reported metric"),
        ({"metric": "epoch"}, ValueError, "must be different names, both are 'epoch'"),
        ({"resource_attr": ""}, TypeError, "resource_attr must be the name of the reported resource"),
        ({"grace_period": 9}, ValueError, "larger than grace_period=9"),
        ({"reduction_factor": 1}, ValueError, "reduction_factor must be a number >= 2"),
        ({"random_seed": -1}, ValueError, "random_seed must be an int"),
        ({"searcher": "bayes"}, ValueError, r"searcher='bayes' is unknown \(did you mean 'bayesopt'\?\); known are"),
        ({"searcher": "randm"}, ValueError, "did you mean 'random'"),
        ({"searcher": Recorder}, TypeError, "searcher must be a searcher object"),
        ({"search_options": {"allow_duplicate": True}}, ValueError, "did you mean 'allow_duplicates'"),
        ({"search_options": [1]}, TypeError, "search_options must be a dict"),
        ({"searcher": Recorder(SPACE), "search_options": {}}, ValueError, r"pass it to Recorder\(\.\.\.\) instead"),
        ({"searcher": Recorder(SPACE), "points_to_evaluate": []}, ValueError, "points_to_evaluate cannot be given"),
        ({"rung_system": "promotion"}, TypeError, "rung_system must be a RungSystem, got 'promotion'"),
        ({"rung_system": PromotionRungSystem([1], 9), "type": "promotion"}, ValueError, "type='promotion' cannot be"),
        ({"rung_system": PromotionRungSystem([1], 9), "grace_period": 1}, ValueError, "grace_period=1 cannot be given"),
        ({"rung_system": PromotionRungSystem([1], 27), "max_t": 9}, ValueError, "the maximum resource 9 differs"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"config_space": SPACE, "metric": "loss"} | arguments
    with pytest.raises(error, match=message):
        HyperbandScheduler(**options)


def test_an_unknown_maximum_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"give max_resource_attr= .* or max_t=, or a constant 'epochs' or"):
        HyperbandScheduler({"x": uniform(0, 1)}, "loss")


def test_a_rung_system_can_be_passed() -> None:
    system = PromotionRungSystem([2, 5], 9)
    scheduler = HyperbandScheduler(SPACE, "loss", rung_system=system, max_resource_attr="epochs", random_seed=0)
    assert scheduler.rung_levels == [2, 5]
    assert scheduler.max_resource_level == 9
    assert scheduler.does_pause_resume()
    trial = start(scheduler, 0)
    assert [report(scheduler, trial, r, 0.5) for r in (1, 2)] == ["CONTINUE", "PAUSE"]
    nothing_to_decide = HyperbandScheduler(SPACE, "loss", rung_system=StoppingRungSystem([], 4))
    trial = start(nothing_to_decide, 0)
    assert [report(nothing_to_decide, trial, r, 0.5) for r in (1, 3, 4)] == ["CONTINUE", "CONTINUE", "STOP"]


def test_points_and_options_reach_the_searcher() -> None:
    points = [{"x": 0.25, "n": 7}]
    scheduler = ASHA(
        SPACE,
        "loss",
        max_resource_attr="epochs",
        points_to_evaluate=points,
        search_options={"restrict_configurations": [{"x": 0.25, "n": 7}, {"x": 0.5, "n": 2}]},
    )
    found = [scheduler.suggest(i) for i in range(3)]
    assert [s and s.config and (s.config["x"], s.config["n"]) for s in found] == [(0.25, 7), (0.5, 2), None]
    assert points == [{"x": 0.25, "n": 7}]


def test_the_seed_of_an_unseeded_scheduler_is_known_and_repeats_it() -> None:
    first = ASHA(SPACE, "loss", max_resource_attr="epochs", points_to_evaluate=[])
    second = ASHA(SPACE, "loss", max_resource_attr="epochs", points_to_evaluate=[], random_seed=first.random_seed)
    assert [first.suggest(i) for i in range(5)] == [second.suggest(i) for i in range(5)]


def test_the_state_knows_what_was_decided_and_learnt() -> None:
    scheduler = make(searcher=Recorder(SPACE))
    trials = [start(scheduler, i) for i in range(3)]
    report(scheduler, trials[0], 1, 0.5)
    scheduler.on_trial_error(trials[1])
    twin = make(searcher=Recorder(SPACE))
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    searcher = twin.searcher
    assert isinstance(searcher, Recorder)
    assert [twin.milestone(i) for i in range(3)] == [None, None, 1]
    assert report(twin, trials[0], 1, 0.0) == "PAUSE"
    assert report(twin, trials[1], 1, 0.0) == "STOP"
    twin.on_trial_complete(trials[0], {"epoch": 1, "loss": 0.5})
    assert searcher.log == [("cleanup", 0)]
    assert len(twin.rung_system.rungs[0]) == 1
    assert report(twin, trials[2], 1, 0.4) == "PAUSE"
    suggestion = twin.suggest(3)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 2


def test_a_state_of_another_scheduler_is_refused() -> None:
    state = make().state_dict()
    with pytest.raises(ValueError, match="other rung levels"):
        make(reduction_factor=2).load_state_dict(state)
