"""Brackets: levels, draws, both modes of rung systems against a slow implementation of the rules."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.schedulers import (
    BracketDistribution,
    DefaultHyperbandBracketDistribution,
    HyperbandScheduler,
    PromotionRungSystem,
    RungSystem,
    StoppingRungSystem,
    TrialScheduler,
)
from sthyper.schedulers.hyperband.brackets import bracket_of
from sthyper.searchers import BaseSearcher, SearcherContext
from sthyper.testing import SchedulerConformance, drive
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 27}


class Fixed(BracketDistribution):
    """All weight on one bracket, which the test chooses."""

    def __init__(self, bracket: int = 0) -> None:
        self.bracket = bracket
        self.seen: tuple[Any, ...] = ()

    def configure(self, scheduler: Any) -> None:
        self.seen = (scheduler.num_brackets, scheduler.rung_levels, scheduler.max_resource_level)

    def __call__(self) -> np.ndarray:
        return np.eye(self.seen[0])[self.bracket]


class Plain(BaseSearcher):
    """Suggests without drawing; may choose the brackets."""

    def __init__(self, config_space: dict[str, Any], distribution: BracketDistribution | None = None) -> None:
        super().__init__(config_space, points_to_evaluate=[])
        self.wanted = distribution
        self.context: SearcherContext | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self.context = context
        self.bracket_distribution = self.wanted

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        return {"x": 1 / (2 + int(trial_id))}


def make(kind: str | None = "promotion", **arguments: Any) -> HyperbandScheduler:
    options = {"max_resource_attr": "epochs", "random_seed": 0, "brackets": 3, "searcher": Plain(SPACE)} | arguments
    return HyperbandScheduler(SPACE, "loss", type=kind, **options)


def start(scheduler: HyperbandScheduler, trial_id: int) -> Trial:
    suggestion = scheduler.suggest(trial_id)
    assert suggestion is not None
    assert suggestion.spawn_new_trial_id
    assert suggestion.config is not None
    trial = Trial(trial_id, suggestion.config | {"epochs": 27}, datetime(2020, 1, 1))
    scheduler.on_trial_add(trial)
    return trial


def report(scheduler: HyperbandScheduler, trial: Trial, epoch: int, loss: float) -> str:
    return scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss})


# ---- all rules at once -----------------------------------------------------------------------------------


@dataclass
class BruteForce:
    """Hyperband from the text: one flat list of entries, everything computed anew each time."""

    levels: list[int]
    max_t: int
    pauses: bool
    per_bracket: bool
    maximise: bool
    entries: list[dict[str, Any]] = field(default_factory=list)
    bracket: dict[int, int] = field(default_factory=dict)
    milestone: dict[int, int] = field(default_factory=dict)

    def rung(self, bracket: int, level: int) -> list[dict[str, Any]]:
        return [e for e in self.entries if e["level"] == level and (not self.per_bracket or e["bracket"] == bracket)]

    def is_good(self, bracket: int, level: int, value: float) -> bool | None:
        values = [e["value"] for e in self.rung(bracket, level)]
        if len(values) < 2:
            return None
        above = min(r for r in [*self.levels, self.max_t] if r > level)
        finite = [v for v in values if math.isfinite(v)]
        if not finite or not math.isfinite(value):
            return False
        filled = [v if math.isfinite(v) else max(finite) for v in values]
        return bool(value <= np.quantile(filled, level / above))

    def suggest(self, bracket: int, new_id: int) -> tuple[str, int, int]:
        for level in sorted(self.levels, reverse=True) if self.pauses else []:
            waiting = [e for e in self.rung(bracket, level) if e["waits"]]
            best = min((e for e in waiting if math.isfinite(e["value"])), key=lambda e: e["value"], default=None)
            if best is not None and self.is_good(bracket, level, best["value"]):
                best["waits"] = False
                self.milestone[best["trial"]] = min(r for r in [*self.levels, self.max_t] if r > level)
                return "resume", best["trial"], self.milestone[best["trial"]]
        self.bracket[new_id] = bracket
        self.milestone[new_id] = [*self.levels, self.max_t][bracket]
        return "start", new_id, self.milestone[new_id]

    def report(self, trial: int, level: int, value: float) -> str:
        if level == self.max_t:
            return "STOP"
        if level < self.milestone[trial]:
            return "CONTINUE"
        value = -value if self.maximise else value
        entry = {"trial": trial, "bracket": self.bracket[trial], "level": level, "value": value, "waits": self.pauses}
        self.entries.append(entry)
        if self.pauses:
            return "PAUSE"
        if self.is_good(self.bracket[trial], level, value) is False:
            return "STOP"
        self.milestone[trial] = min(r for r in [*self.levels, self.max_t] if r > level)
        return "CONTINUE"


values = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf])
)
steps = st.lists(
    st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 7), st.booleans(), values)), min_size=10, max_size=60
)


@given(
    kind=st.sampled_from(["stopping", "promotion"]),
    per_bracket=st.booleans(),
    mode=st.sampled_from(["min", "max"]),
    spacing=st.sampled_from([{}, {"rung_increment": 9, "grace_period": 5}, {"rung_levels": [2, 3, 20]}]),
    steps=steps,
)
@settings(max_examples=150, deadline=None)
def test_brackets_decide_as_the_brute_force_rule(
    kind: str, per_bracket: bool, mode: str, spacing: dict[str, Any], steps: list[Any]
) -> None:
    distribution = Fixed()

    def fresh() -> HyperbandScheduler:
        return make(
            kind,
            mode=mode,
            brackets=4,
            rung_system_per_bracket=per_bracket,
            bracket_distribution=distribution,
            **spacing,
        )

    scheduler = fresh()
    rule = BruteForce(scheduler.rung_levels, 27, kind == "promotion", per_bracket, mode == "max")
    trials: dict[int, Trial] = {}
    running: list[int] = []
    reached: dict[int, int] = {}
    for step in steps:
        if isinstance(step, int) or not running:  # a free worker
            distribution.bracket = step if isinstance(step, int) else 0
            expected = rule.suggest(distribution.bracket, len(trials))
            suggestion = scheduler.suggest(len(trials))
            assert suggestion is not None
            if suggestion.spawn_new_trial_id:
                trial_id = len(trials)
                trials[trial_id] = Trial(trial_id, dict(suggestion.config or {}), datetime(2020, 1, 1))
                scheduler.on_trial_add(trials[trial_id])
                reached[trial_id] = 0
            else:
                assert suggestion.checkpoint_trial_id is not None
                trial_id = suggestion.checkpoint_trial_id
            action = "start" if suggestion.spawn_new_trial_id else "resume"
            assert (action, trial_id, scheduler.milestone(trial_id)) == expected
            assert suggestion.config is not None
            assert suggestion.config["epochs"] == (expected[2] if kind == "promotion" else 27)
            assert scheduler.bracket(trial_id) == distribution.bracket
            running.append(trial_id)
        else:
            trial_id = running[step[0] % len(running)]
            next_level = rule.milestone[trial_id]
            level = reached[trial_id] + 1 if step[1] and reached[trial_id] + 1 < next_level else next_level
            reached[trial_id] = level
            decision = report(scheduler, trials[trial_id], level, step[2])
            assert decision == rule.report(trial_id, level, step[2])
            if decision == "CONTINUE":
                assert scheduler.milestone(trial_id) == rule.milestone[trial_id]
            else:
                running.remove(trial_id)
        if len(steps) % 3 == 0:  # a state taken at any time goes on in the same way
            state = json.dumps(scheduler.state_dict())
            scheduler = fresh()
            scheduler.load_state_dict(json.loads(state))
            assert json.dumps(scheduler.state_dict()) == state


# ---- the first milestone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_a_trial_runs_to_the_first_rung_of_its_bracket(kind: str) -> None:
    distribution = Fixed()
    scheduler = make(kind, brackets=4, bracket_distribution=distribution)
    assert scheduler.rung_levels == [1, 3, 9]
    trials = []
    for bracket in range(4):
        distribution.bracket = bracket
        trials.append(start(scheduler, bracket))
    assert [scheduler.milestone(i) for i in range(4)] == [1, 3, 9, 27]
    # The third bracket begins at 9: hopeless values below are not compared with anybody's.
    assert report(scheduler, trials[0], 1, 0.0) == ("CONTINUE" if kind == "stopping" else "PAUSE")
    assert [report(scheduler, trials[2], r, 9.0) for r in range(1, 9)] == ["CONTINUE"] * 8
    assert len(scheduler.rung_system.rungs[0]) == 1
    assert report(scheduler, trials[2], 9, 9.0) == ("CONTINUE" if kind == "stopping" else "PAUSE")
    # The top bracket has no rung.
    assert [report(scheduler, trials[3], r, 99.0) for r in range(1, 28)] == ["CONTINUE"] * 26 + ["STOP"]


def test_a_shared_rung_compares_trials_of_all_brackets_and_one_per_bracket_does_not() -> None:
    decisions = {}
    for per_bracket in (False, True):
        distribution = Fixed(0)
        scheduler = make("stopping", bracket_distribution=distribution, rung_system_per_bracket=per_bracket)
        good = start(scheduler, 0)
        distribution.bracket = 1
        bad = start(scheduler, 1)
        assert [report(scheduler, good, r, 0.1) for r in (1, 2, 3)] == ["CONTINUE"] * 3
        decisions[per_bracket] = [report(scheduler, bad, r, 0.9) for r in (1, 2, 3)]
    assert decisions == {False: ["CONTINUE", "CONTINUE", "STOP"], True: ["CONTINUE"] * 3}


def test_promotions_come_from_the_rungs_of_the_drawn_bracket() -> None:
    for per_bracket, expected in ((False, (0, 1)), (True, (None, 0))):
        distribution = Fixed(0)
        scheduler = make(bracket_distribution=distribution, rung_system_per_bracket=per_bracket)
        for trial, loss in [(start(scheduler, i), i / 10) for i in range(4)]:
            assert report(scheduler, trial, 1, loss) == "PAUSE"
        resumed = []
        for bracket in (2, 0):
            distribution.bracket = bracket
            suggestion = scheduler.suggest(4)
            assert suggestion is not None
            resumed.append(suggestion.checkpoint_trial_id)
        assert tuple(resumed) == expected
        if not per_bracket:
            assert scheduler.bracket(0) == 2  # it belongs to the bracket that promoted it


def test_more_brackets_than_levels_are_cut_down() -> None:
    with pytest.warns(UserWarning, match="brackets=9: there are 3 rung levels, which allow 4 brackets; brackets=4 is"):
        assert make(brackets=9).num_brackets == 4


def test_one_bracket_draws_nothing_and_brackets_leave_configurations_alone() -> None:
    configs = {}
    for brackets in (1, 3):
        scheduler = ASHA(SPACE, "loss", max_resource_attr="epochs", random_seed=5, brackets=brackets)
        configs[brackets] = [s.config for s in map(scheduler.suggest, range(8)) if s]
        assert (scheduler.terminator.state_dict()["generator"] is None) == (brackets == 1)
    assert configs[1] == configs[3]


# ---- draws -----------------------------------------------------------------------------------------------


def test_the_default_probabilities() -> None:
    scheduler = HyperbandScheduler({"x": uniform(0, 1)}, "loss", max_t=81, brackets=5)
    distribution = DefaultHyperbandBracketDistribution()
    with pytest.raises(RuntimeError, match=r"call configure\(scheduler\) first"):
        distribution()
    distribution.configure(scheduler)
    assert distribution() == pytest.approx([0.569, 0.237, 0.105, 0.053, 0.035], abs=5e-4)
    longer = HyperbandScheduler({"x": uniform(0, 1)}, "loss", max_t=200, brackets=6)
    distribution.configure(longer)
    assert distribution() == pytest.approx([0.5856, 0.2342, 0.0976, 0.0434, 0.0217, 0.0176], abs=1e-4)


def test_brackets_are_drawn_with_these_probabilities() -> None:
    scheduler = make("stopping", brackets=4)
    for trial_id in range(3000):
        scheduler.suggest(trial_id)
    counts = Counter(scheduler.bracket(i) for i in range(3000))
    shares = scheduler.bracket_distribution()
    for bracket, share in enumerate(shares):
        assert abs(counts[bracket] - 3000 * share) < 4 * math.sqrt(3000 * share)


def test_draws_depend_on_the_seed_alone() -> None:
    def drawn(seed: int) -> list[int | None]:
        scheduler = make("stopping", random_seed=seed)
        for trial_id in range(40):
            scheduler.suggest(trial_id)
        return [scheduler.bracket(i) for i in range(40)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("n_before", [0, 5])
def test_a_state_goes_on_with_the_same_draws(n_before: int) -> None:
    scheduler, twin = make("stopping", random_seed=3), make("stopping", random_seed=99)
    for trial_id in range(n_before):
        scheduler.suggest(trial_id)
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    for trial_id in range(n_before, 40):
        scheduler.suggest(trial_id)
        twin.suggest(trial_id)
    assert [scheduler.bracket(i) for i in range(40)] == [twin.bracket(i) for i in range(40)]


def test_who_chooses_the_brackets() -> None:
    mine, searchers, late = Fixed(1), Fixed(2), Fixed(0)
    scheduler = make("stopping", searcher=Plain(SPACE, searchers))
    start(scheduler, 0)
    assert scheduler.milestone(0) == 9
    assert searchers.seen == (3, [1, 3, 9], 27)
    explicit = make("stopping", searcher=Plain(SPACE, searchers), bracket_distribution=mine)
    start(explicit, 0)
    assert explicit.milestone(0) == 3
    replaced = make("stopping", searcher=Plain(SPACE, searchers))
    replaced.bracket_distribution = late
    start(replaced, 0)
    assert replaced.milestone(0) == 1
    searcher = scheduler.searcher
    assert isinstance(searcher, Plain)
    assert searcher.context is not None
    assert searcher.context.num_brackets == 3


class Counting(BracketDistribution):
    """Brackets in turn; has a state."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> np.ndarray:
        self.number += 1
        return np.eye(3)[self.number % 3]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


@pytest.mark.parametrize("by_searcher", [False, True])
def test_the_state_of_a_distribution_is_kept(by_searcher: bool) -> None:
    def fresh() -> HyperbandScheduler:
        if by_searcher:
            return make("stopping", searcher=Plain(SPACE, Counting()))
        return make("stopping", bracket_distribution=Counting())

    scheduler, twin = fresh(), fresh()
    for trial_id in range(4):
        scheduler.suggest(trial_id)
    assert [scheduler.bracket(i) for i in range(4)] == [1, 2, 0, 1]
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    twin.suggest(4)
    assert twin.bracket(4) == 2


def test_an_unused_draw_is_kept_for_the_next_new_trial() -> None:
    class Once(Plain):
        left = 1

        def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
            self.left -= 1
            return super().get_config(trial_id) if self.left >= 0 else None

    distribution = Counting()
    scheduler = make("stopping", bracket_distribution=distribution, searcher=Once(SPACE))
    start(scheduler, 0)
    assert scheduler.suggest(1) is None
    assert distribution.number == 2
    twin = make("stopping", bracket_distribution=Counting(), searcher=Once(SPACE))
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    for either in (scheduler, twin):
        assert either.suggest_enqueued(1, {"x": 0.5}).spawn_new_trial_id
        assert either.bracket(1) == 2
        either.suggest_enqueued(2, {"x": 0.25})
        assert either.bracket(2) == 0


def test_a_draw_that_led_to_a_promotion_is_used() -> None:
    scheduler = make(bracket_distribution=Counting())
    scheduler.rung_system.register(7, 3, 0.1)
    scheduler.rung_system.enter(-1, 3, 0.2)
    scheduler.on_trial_add(Trial(7, {"x": 0.5, "epochs": 27}, datetime(2020, 1, 1)))
    suggestion = scheduler.suggest(8)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 7
    assert scheduler.bracket(7) == 1
    scheduler.suggest_enqueued(8, {"x": 0.5})
    assert scheduler.bracket(8) == 2


def test_a_trial_that_ended_is_not_promoted_in_its_own_rungs() -> None:
    scheduler = make(bracket_distribution=Fixed(1), rung_system_per_bracket=True)
    trials = [start(scheduler, i) for i in range(4)]
    for trial, loss in zip(trials, (0.1, 0.2, 0.3, 0.9), strict=True):
        assert report(scheduler, trial, 3, loss) == "PAUSE"
    scheduler.on_trial_error(trials[0])
    suggestion = scheduler.suggest(4)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 1


def test_the_bracket_of_a_number() -> None:
    assert [bracket_of([0.5, 0.25, 0.25], 3, u, "D") for u in (0.0, 0.499, 0.5, 0.75, 0.999)] == [0, 0, 1, 2, 2]
    assert bracket_of([0.0, 1.0], 2, 0.0, "D") == 1  # no chance is no chance
    assert bracket_of([1.0, 0.0], 2, 1 - 2**-53, "D") == 0
    numbers: list[Any] = [[0.5, 0.5], [1.5, -0.5, 0.0], [math.nan, 0.5, 0.5], [0.3, 0.3, 0.3], [[1.0, 0.0, 0.0]]]
    for bad in (*numbers, None, "abc", ["a", "b", "c"], {"a": 1.0}, [1.0, 0.0, [0.0]], [1j, 0.0, 0.0]):
        with pytest.raises(ValueError, match=r"bracket_distribution: D\(\) must return 3 probabilities that sum up"):
            bracket_of(bad, 3, 0.5, "D")


# ---- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"brackets": 0}, ValueError, "brackets must be a positive int, got 0"),
        ({"brackets": 1.5}, TypeError, r"brackets must be a positive int, got 1\.5"),
        ({"rung_system_per_bracket": "yes"}, TypeError, "rung_system_per_bracket must be True or False, got 'yes'"),
        ({"bracket_distribution": [0.5, 0.3, 0.2]}, TypeError, "bracket_distribution must be a BracketDistribution"),
        ({"bracket_distribution": Fixed(), "brackets": 1}, ValueError, "bracket_distribution needs brackets=2 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


def test_the_attribute_is_checked_too() -> None:
    with pytest.raises(TypeError, match="bracket_distribution must be a BracketDistribution, got None"):
        make().bracket_distribution = None  # type: ignore[assignment]


def test_a_state_of_other_brackets_is_refused() -> None:
    state = make(rung_system_per_bracket=True).state_dict()
    with pytest.raises(ValueError, match="brackets=3 with 3 rung systems in place of brackets=3 with 1"):
        make().load_state_dict(state)
    with pytest.raises(ValueError, match="brackets=3 with 1 rung systems in place of brackets=2 with 1"):
        make(brackets=2).load_state_dict(make().state_dict())


def test_a_distribution_may_ask_the_scheduler_for_everything() -> None:
    class Curious(Fixed):
        def configure(self, scheduler: Any) -> None:
            super().configure(scheduler)
            self.asked = (scheduler.searcher_data, scheduler.cost_attr, scheduler.milestone(0))

    distribution = Curious()
    make(bracket_distribution=distribution, searcher_data="all", cost_attr="seconds")
    assert distribution.asked == ("all", "seconds", None)


def test_rung_systems_that_are_passed_have_brackets_too() -> None:
    class Lenient(StoppingRungSystem):
        """Never stops; needs more than levels to be made."""

        def __init__(self, rung_levels: Any, max_t: int, name: str) -> None:
            super().__init__(rung_levels, max_t)
            self.name = name

        def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
            super().register(trial_id, level, value, cost)
            return True

        def for_bracket(self, bracket: int) -> RungSystem:
            return Lenient(self.rung_levels[bracket:], self.max_t, f"{self.name}{bracket}")

    scheduler = make(
        None, rung_system=Lenient([1, 3, 9], 27, "rungs"), rung_system_per_bracket=True, bracket_distribution=Fixed(1)
    )
    system = scheduler.terminator.system(1)
    assert isinstance(system, Lenient)
    assert (system.name, system.rung_levels) == ("rungs1", (3, 9))
    trials = [start(scheduler, i) for i in range(2)]
    assert [report(scheduler, trial, 3, loss) for trial, loss in zip(trials, (0.1, 0.9), strict=True)] == [
        "CONTINUE",
        "CONTINUE",
    ]
    assert [len(rung) for rung in system.rungs] == [2, 0]
    assert [len(rung) for rung in scheduler.rung_system.rungs] == [0, 0, 0]
    plain = PromotionRungSystem([1, 3, 9], 27).for_bracket(2)
    assert (type(plain), plain.rung_levels, plain.max_t) == (PromotionRungSystem, (9,), 27)
    assert plain.rungs[0].quantile == 1 / 3


# ---- what users and callbacks look at --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_manager_tells_about_paused_trials_and_rungs(mode: str) -> None:
    distribution = Fixed(0)
    scheduler = make(mode=mode, bracket_distribution=distribution, rung_system_per_bracket=True)
    assert scheduler.does_pause_resume()
    assert scheduler.num_brackets == 3
    sign = 1 if mode == "min" else -1
    for trial, loss in [(start(scheduler, i), loss) for i, loss in enumerate((0.4, 0.1, math.nan, 0.3, math.inf))]:
        report(scheduler, trial, 1, sign * loss)
    assert scheduler.terminator.information_for_rungs() == [(9, 0, 1 / 3), (3, 0, 1 / 3), (1, 5, 1 / 3)]
    assert scheduler.suggest(5) is not None  # trial 1 goes on
    distribution.bracket = 1
    other = start(scheduler, 5)
    report(scheduler, other, 3, sign * 0.9)
    paused = [tuple(p) for p in scheduler.terminator.paused_trials()]
    assert [p[:2] + p[3:] for p in paused] == [(3, 1, 1), (0, 2, 1), (2, 3, 1), (4, 4, 1), (5, 0, 3)]
    assert [p[2] for p in paused[:2] + paused[4:]] == [sign * 0.3, sign * 0.4, sign * 0.9]
    assert math.isnan(paused[2][2])
    assert math.isnan(paused[3][2])
    assert [p.trial_id for p in scheduler.terminator.paused_trials(3)] == [5]
    assert scheduler.terminator.paused_trials(9) == []
    scheduler.on_trial_error(Trial(2, {"x": 0.5, "epochs": 27}, datetime(2020, 1, 1), end_reason="exit 1"))
    twin = make(mode=mode, bracket_distribution=distribution, rung_system_per_bracket=True)
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert [p.trial_id for p in twin.terminator.paused_trials(1)] == [3, 0, 4]


def test_stopping_has_no_paused_trials() -> None:
    scheduler = make("stopping")
    report(scheduler, start(scheduler, 0), 9, 0.1)
    assert scheduler.terminator.paused_trials() == []
    assert scheduler.bracket(99) is None


# ---- whole experiments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_the_number_and_mode_of_brackets_change_what_happens(kind: str) -> None:
    seen = set()
    for options in ({}, {"brackets": 2}, {"brackets": 4}, {"brackets": 4, "rung_system_per_bracket": True}):
        scheduler = ASHA(SPACE, "loss", type=kind, max_resource_attr="epochs", random_seed=7, **options)
        seen.add(tuple((e.kind, e.trial_id, e.resource, e.decision) for e in drive(scheduler, n_trials=40)))
    assert len(seen) == 4


class TestSharedRungs(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(
            config_space, "loss", type="promotion", max_resource_attr="epochs", brackets=3, random_seed=random_seed
        )


class TestRungsPerBracket(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(
            config_space,
            "loss",
            mode="max",
            type="promotion",
            max_t=9,
            reduction_factor=2,
            brackets=4,
            rung_system_per_bracket=True,
            random_seed=random_seed,
        )


class TestStoppingWithBrackets(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(
            config_space,
            "loss",
            max_resource_attr="epochs",
            rung_increment=2,
            brackets=5,
            rung_system_per_bracket=True,
            random_seed=random_seed,
        )
