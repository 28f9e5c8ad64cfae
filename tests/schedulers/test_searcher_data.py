"""What a searcher is told: results, pending evaluations, removals, for all values of ``searcher_data``."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from sthyper.config_space import uniform
from sthyper.errors import ReportError
from sthyper.schedulers import HyperbandScheduler, TrialScheduler
from sthyper.searchers import BaseSearcher, SearcherContext
from sthyper.testing import SchedulerConformance, TrialSimulation
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 9}
KINDS = ("stopping", "promotion")
DATA = (("rungs", False), ("all", False), ("all", True), ("rungs_and_last", False), ("rungs_and_last", True))


class Strict(BaseSearcher):
    """Keeps data and pending evaluations, and fails when it is told something twice or something impossible."""

    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space)
        self.log: list[tuple[Any, ...]] = []
        self.data: dict[tuple[int, int], float] = {}
        self.pending: set[tuple[int, int]] = set()
        self.number = 0
        self.context: SearcherContext | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self.context = context

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        self.number += 1
        return {"x": (0.37 * self.number) % 1}

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        assert config is not None
        assert set(config) == {"x"}
        assert milestone is not None
        case = (int(trial_id), milestone)
        assert case not in self.pending, f"{case} is pending already"
        assert not any(t == case[0] and r >= milestone for t, r in self.data), f"{case} is pending after a result"
        self.pending.add(case)
        self.log.append(("pending", *case))

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        trial, resource = int(trial_id), result["epoch"]
        if update:
            assert (trial, resource) not in self.data, f"{trial, resource} is learnt twice"
            self.data[trial, resource] = result["loss"]
        # The contract: a result settles what is pending there and below.
        self.pending = {(t, r) for t, r in self.pending if t != trial or r > resource}
        self.log.append(("update" if update else "result", trial, resource))

    def remove_case(self, trial_id: int | str, resource: int | None = None) -> None:
        assert resource is not None
        del self.data[int(trial_id), resource]
        self.log.append(("remove", int(trial_id), resource))

    def cleanup_pending(self, trial_id: int | str) -> None:
        self.pending = {(t, r) for t, r in self.pending if t != int(trial_id)}
        self.log.append(("cleanup", int(trial_id)))


def make(kind: str = "stopping", data: str = "rungs", myopic: bool = False, **arguments: Any) -> HyperbandScheduler:
    return HyperbandScheduler(
        SPACE,
        "loss",
        searcher=Strict(SPACE),
        type=kind,
        max_resource_attr="epochs",
        random_seed=0,
        searcher_data=data,
        register_pending_myopic=myopic,
        **arguments,
    )


def strict(scheduler: HyperbandScheduler) -> Strict:
    assert isinstance(scheduler.searcher, Strict)
    return scheduler.searcher


def start(scheduler: HyperbandScheduler, trial_id: int) -> Trial:
    suggestion = scheduler.suggest(trial_id)
    assert suggestion is not None
    assert suggestion.config is not None
    trial = Trial(trial_id, suggestion.config | {"epochs": 9}, datetime(2020, 1, 1))
    scheduler.on_trial_add(trial)
    return trial


def report(scheduler: HyperbandScheduler, trial: Trial, epoch: int, loss: float) -> str:
    return scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss})


# ---- whole experiments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("data", "myopic"), DATA)
@pytest.mark.parametrize("options", [{}, {"brackets": 3}, {"brackets": 2, "rung_system_per_bracket": True}])
def test_data_and_pending_at_every_moment(kind: str, data: str, myopic: bool, options: dict[str, Any]) -> None:
    scheduler = make(kind, data, myopic, **options)
    searcher = strict(scheduler)
    fails_at = {trial: (2, 3, 6)[trial % 3] for trial in range(0, 18, 4)}
    simulation = TrialSimulation(
        scheduler, lambda config, r: {"loss": config["x"] + 1 / r}, n_trials=18, fails_at=fails_at
    )
    rungs = {*scheduler.rung_levels, 9}
    n_events = -1
    while n_events != len(simulation.events):
        n_events = len(simulation.events)
        simulation.run(n_events + 1)
        expected_data: set[tuple[int, int]] = set()
        expected_pending: set[tuple[int, int]] = set()
        for trial in {e.trial_id for e in simulation.events if e.kind == "start"}:
            levels = [e.resource for e in simulation.events if e.kind == "report" and e.trial_id == trial]
            known = [r for r in levels if data == "all" or r in rungs]
            if data == "rungs_and_last":
                known += levels[-1:]
            expected_data |= {(trial, r) for r in known}
            milestone = scheduler.milestone(trial)
            if milestone is not None:
                reached = levels[-1] if levels else 0
                if data == "rungs":
                    expected_pending.add((trial, milestone))
                else:
                    last = reached + 1 if myopic else milestone
                    expected_pending |= {(trial, r) for r in range(reached + 1, last + 1)}
        assert set(searcher.data) == expected_data
        # The suggestion after the last one is made and kept back.
        assert {(t, r) for t, r in searcher.pending if t < 18} == expected_pending
    assert {e.kind for e in simulation.events} >= {"report", "error", "complete"}
    assert any(r not in rungs for _, r in searcher.data) == (data != "rungs")


# ---- worked out by hand ----------------------------------------------------------------------------------

# A trial of rungs 1 and 3 that reports 1 to 4.
EXPECTED = {
    ("rungs", False): "p1 | u1 p3 | r2 | u3 p9 | r4",
    ("all", False): "p1 | u1 p2 p3 | u2 | u3 p4 p5 p6 p7 p8 p9 | u4",
    ("all", True): "p1 | u1 p2 | u2 p3 | u3 p4 | u4 p5",
    ("rungs_and_last", False): "p1 | u1 p2 p3 | u2 | x2 u3 p4 p5 p6 p7 p8 p9 | u4",
    ("rungs_and_last", True): "p1 | u1 p2 | u2 p3 | x2 u3 p4 | u4 p5",
}
LETTERS = {"pending": "p", "update": "u", "result": "r", "remove": "x", "cleanup": "c"}


def letters(log: list[tuple[Any, ...]]) -> str:
    return " ".join(LETTERS[name] + "".join(str(r) for r in rest[1:]) for name, *rest in log)


@pytest.mark.parametrize(("data", "myopic"), DATA)
def test_the_order_of_news(data: str, myopic: bool) -> None:
    scheduler = make("stopping", data, myopic)
    searcher = strict(scheduler)
    trial = start(scheduler, 0)
    parts = [letters(searcher.log)]
    for epoch in (1, 2, 3, 4):
        searcher.log.clear()
        assert report(scheduler, trial, epoch, 0.5) == "CONTINUE"
        parts.append(letters(searcher.log))
    assert " | ".join(parts) == EXPECTED[data, myopic]
    assert searcher.context is not None
    assert searcher.context.searcher_data == scheduler.searcher_data == data


@pytest.mark.parametrize(
    ("data", "myopic", "news"),
    [
        ("rungs", False, "p3"),
        ("all", False, "p2 p3"),
        ("all", True, "p2"),
        ("rungs_and_last", False, "p2 p3"),
        ("rungs_and_last", True, "p2"),
    ],
)
def test_a_promoted_trial_goes_on_where_it_paused(data: str, myopic: bool, news: str) -> None:
    scheduler = make("promotion", data, myopic)
    searcher = strict(scheduler)
    trials = [start(scheduler, i) for i in range(2)]
    for trial, loss in zip(trials, (0.1, 0.2), strict=True):
        assert report(scheduler, trial, 1, loss) == "PAUSE"
        scheduler.on_trial_remove(trial)
    assert searcher.pending == set()
    searcher.log.clear()
    suggestion = scheduler.suggest(2)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 0
    assert letters(searcher.log) == news


def test_a_trial_below_the_start_of_its_bracket_teaches_but_expects_nothing_new() -> None:
    import numpy as np

    from sthyper.schedulers import BracketDistribution

    class Second(BracketDistribution):
        def __call__(self) -> np.ndarray:
            return np.array([0.0, 1.0])

    scheduler = make(brackets=2, bracket_distribution=Second())
    searcher = strict(scheduler)
    trial = start(scheduler, 0)
    for epoch in (1, 2, 3):
        report(scheduler, trial, epoch, 0.5)
    assert letters(searcher.log) == "p3 u1 r2 u3 p9"


def test_a_skipped_rung_leaves_no_gap_in_what_is_pending() -> None:
    scheduler = make()
    searcher = strict(scheduler)
    trial = start(scheduler, 0)
    report(scheduler, trial, 2, 0.5)
    assert letters(searcher.log) == "p1 r2 p3"
    assert searcher.pending == {(0, 3)}


@pytest.mark.parametrize(("data", "news"), [("rungs", "u5 c"), ("all", "c"), ("rungs_and_last", "c")])
def test_the_last_report_of_a_completed_trial_is_learnt_once(data: str, news: str) -> None:
    scheduler = make("stopping", data)
    searcher = strict(scheduler)
    trial = start(scheduler, 0)
    for epoch in range(1, 6):
        report(scheduler, trial, epoch, 0.5)
    searcher.log.clear()
    scheduler.on_trial_complete(trial, {"epoch": 5, "loss": 0.5})
    assert letters(searcher.log) == news
    assert (0, 5) in searcher.data


@pytest.mark.parametrize(("data", "myopic"), DATA)
def test_repeated_reports_teach_nothing(data: str, myopic: bool) -> None:
    scheduler = make("promotion", data, myopic, grace_period=2, reduction_factor=2)
    searcher = strict(scheduler)
    trials = [start(scheduler, i) for i in range(2)]
    for trial, loss in zip(trials, (0.1, 0.2), strict=True):
        report(scheduler, trial, 1, loss)
        report(scheduler, trial, 2, loss)
    scheduler.suggest(2)
    told = list(searcher.log)
    assert [report(scheduler, trials[0], r, 0.0) for r in (1, 2)] == ["CONTINUE"] * 2
    assert report(scheduler, trials[1], 2, 0.0) == "PAUSE"
    assert searcher.log == told
    assert searcher.data[0, 2] == 0.1


def test_the_state_knows_what_is_to_be_removed() -> None:
    scheduler, twin = make(data="rungs_and_last"), make(data="rungs_and_last")
    trial = start(scheduler, 0)
    for epoch in (1, 2):
        report(scheduler, trial, epoch, 0.5)
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    searcher = strict(twin)
    searcher.data = dict(strict(scheduler).data)
    report(twin, trial, 3, 0.5)
    assert set(searcher.data) == {(0, 1), (0, 3)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"searcher_data": "rung"}, ValueError, r"searcher_data must be one of \['rungs', 'all'.*did you mean 'rungs'"),
        ({"searcher_data": None}, ValueError, "searcher_data must be one of"),
        ({"register_pending_myopic": True}, ValueError, "register_pending_myopic=True needs searcher_data='all' or"),
        ({"register_pending_myopic": 1}, TypeError, "register_pending_myopic must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HyperbandScheduler(SPACE, "loss", **arguments)


# ---- results that no trial brought -----------------------------------------------------------------------


def add(scheduler: HyperbandScheduler, trial_id: int, **result: Any) -> None:
    scheduler.add_result(trial_id, {"x": 0.25, "epochs": 9}, result)


def test_stopping_compares_with_added_results() -> None:
    decisions = []
    for known in (False, True):
        scheduler = make()
        if known:
            for number in range(3):
                add(scheduler, -1 - number, epoch=1, loss=0.1)
        decisions.append(report(scheduler, start(scheduler, 0), 1, 0.5))
    assert decisions == ["CONTINUE", "STOP"]


def test_promotion_compares_with_added_results_and_never_promotes_them() -> None:
    promoted = []
    for losses in ((), (0.9, 0.9), (0.1, 0.1, 0.1)):
        scheduler = make("promotion")
        for number, loss in enumerate(losses):
            add(scheduler, -1 - number, epoch=1, loss=loss)
        assert report(scheduler, start(scheduler, 0), 1, 0.5) == "PAUSE"
        suggestion = scheduler.suggest(1)
        assert suggestion is not None
        promoted.append(suggestion.checkpoint_trial_id)
        assert [p.trial_id for p in scheduler.terminator.paused_trials()] == ([] if promoted[-1] == 0 else [0])
        twin = make("promotion")
        twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
        following, same = scheduler.suggest(2), twin.suggest(2)
        assert following is not None
        assert same is not None
        assert following.checkpoint_trial_id is same.checkpoint_trial_id is None
    # Alone in its rung a trial waits; it is the best of three; it is the worst of four.
    assert promoted == [None, 0, None]


def test_added_results_count_where_they_were_reported_only() -> None:
    scheduler = make()
    add(scheduler, -1, epoch=1, loss=0.5)
    add(scheduler, -1, epoch=2, loss=0.4)
    add(scheduler, -1, epoch=3, loss=0.3)
    add(scheduler, -1, epoch=3, loss=0.0)  # said before
    add(scheduler, -2, loss=0.1)  # the final result: no rung is there
    add(scheduler, -3, epoch=8, loss=0.1)
    add(scheduler, -4, epoch=1, loss=float("nan"))
    assert scheduler.terminator.information_for_rungs() == [(3, 1, 1 / 3), (1, 2, 1 / 3)]
    assert scheduler.rung_system.rungs[1].entries[0][0] == 0.3
    assert scheduler.milestone(-1) is None


def test_added_results_enter_every_bracket_that_has_the_level() -> None:
    scheduler = make(brackets=3, rung_system_per_bracket=True)
    add(scheduler, -1, epoch=1, loss=0.5)
    add(scheduler, -1, epoch=3, loss=0.5)
    systems = [scheduler.terminator.system(bracket) for bracket in range(3)]
    assert [[len(rung) for rung in system.rungs] for system in systems] == [[1, 1], [1], []]


@pytest.mark.parametrize(
    ("data", "news"),
    [
        ("rungs", "u1 r2 u3 u9"),
        ("all", "u1 u2 u3 u9"),
        ("rungs_and_last", "u1 u2 x2 u3 u9"),
    ],
)
def test_the_searcher_learns_from_added_results_as_from_a_trial(data: str, news: str) -> None:
    scheduler = make(data=data)
    for epoch in (1, 2, 3):
        add(scheduler, -1, epoch=epoch, loss=0.5)
    add(scheduler, -1, loss=0.5)
    searcher = strict(scheduler)
    assert letters(searcher.log) == news
    assert searcher.pending == set()


def test_bad_added_results_change_nothing() -> None:
    scheduler = make()
    state = scheduler.state_dict()
    for result, message in (
        ({"epoch": 1}, "metric 'loss' is missing"),
        ({"epoch": 0, "loss": 1.0}, "resource 'epoch' must be a positive integer"),
        ({"epoch": 1, "loss": "low"}, "metric 'loss' must be a number"),
    ):
        with pytest.raises(ReportError, match=message):
            add(scheduler, -1, **result)
    assert scheduler.state_dict() == state


class TestAllData(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return HyperbandScheduler(
            config_space,
            "loss",
            type="promotion",
            max_resource_attr="epochs",
            random_seed=random_seed,
            searcher_data="rungs_and_last",
            register_pending_myopic=True,
        )
