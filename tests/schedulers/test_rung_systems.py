"""Rung systems against a naive implementation that sorts and calls numpy for every decision."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.config_space import uniform
from sthyper.schedulers import HyperbandScheduler, PromotionRungSystem, RungSystem, StoppingRungSystem
from sthyper.schedulers.hyperband import Rung, geometric_rung_levels, promotion_quantiles
from sthyper.schedulers.hyperband.levels import check_rung_levels
from sthyper.schedulers.hyperband.rungs import linear_quantile
from sthyper.testing import drive

LEVELS = [(1, 3, 9), (2, 5, 12, 31), (1, 2, 4, 8), (1, 3, 9, 27, 81), (4,)]
MAXIMA = {(1, 3, 9): 27, (2, 5, 12, 31): 50, (1, 2, 4, 8): 9, (1, 3, 9, 27, 81): 100, (4,): 7}

# Few different values, so that ties and cutoffs that hit a value are common.
values = st.one_of(
    st.integers(-4, 4).map(float),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)


def naive_cutoff(seen: list[float], q: float) -> float | None:
    """Quantile with everything that is not finite set to the worst finite value."""
    if len(seen) < 2:
        return None
    finite = [v for v in seen if math.isfinite(v)]
    if not finite:
        return -math.inf
    filled = [v if math.isfinite(v) else max(finite) for v in seen]
    return float(np.quantile(np.array(filled), q))


@dataclass
class Naive:
    """Both rules, from scratch at every call."""

    levels: tuple[int, ...]
    max_t: int
    # By level, in the order of arrival: [trial, value, promoted].
    rungs: dict[int, list[list[Any]]] = field(default_factory=dict)

    def quantile(self, level: int) -> float:
        above = [r for r in (*self.levels, self.max_t) if r > level]
        return level / above[0]

    def add(self, trial: int, level: int, value: float) -> None:
        self.rungs.setdefault(level, []).append([trial, value, False])

    def stops(self, level: int, value: float) -> bool:
        cutoff = naive_cutoff([v for _, v, _ in self.rungs[level]], self.quantile(level))
        return cutoff is not None and not (math.isfinite(value) and value <= cutoff)

    def promote(self) -> tuple[int, int] | None:
        for level in reversed(self.levels):
            rung = self.rungs.get(level, [])
            cutoff = naive_cutoff([v for _, v, _ in rung], self.quantile(level))
            waiting = [entry for entry in rung if not entry[2] and math.isfinite(entry[1])]
            if cutoff is None or not waiting:
                continue
            best = min(waiting, key=lambda entry: entry[1])
            if best[1] <= cutoff:
                best[2] = True
                return best[0], level
        return None


@given(levels=st.sampled_from(LEVELS), stream=st.lists(st.tuples(st.integers(0, 4), values), max_size=60))
@settings(max_examples=150, deadline=None)
def test_stopping_decides_as_the_naive_rule(levels: tuple[int, ...], stream: list[tuple[int, float]]) -> None:
    system = StoppingRungSystem(levels, MAXIMA[levels])
    naive = Naive(levels, MAXIMA[levels])
    for trial, (position, value) in enumerate(stream):
        level = levels[position % len(levels)]
        naive.add(trial, level, value)
        assert system.register(trial, level, value) is not naive.stops(level, value)


@given(levels=st.sampled_from(LEVELS), stream=st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 7), values))))
@settings(max_examples=200, deadline=None)
def test_promotion_decides_as_the_naive_rule(levels: tuple[int, ...], stream: list[tuple[int, float] | None]) -> None:
    system: RungSystem = PromotionRungSystem(levels, MAXIMA[levels])
    naive = Naive(levels, MAXIMA[levels])
    running: list[tuple[int, int]] = []  # trial, milestone
    n_trials = 0
    for step in stream:
        if step is None or not running:  # a worker is free
            promotion, expected = system.promote(), naive.promote()
            assert (promotion and (promotion.trial_id, promotion.resume_from)) == expected
            if promotion is None:
                running.append((n_trials, levels[0]))
                n_trials += 1
            else:
                assert promotion.milestone == min(r for r in (*levels, system.max_t) if r > promotion.resume_from)
                if promotion.milestone < system.max_t:
                    running.append((promotion.trial_id, promotion.milestone))
        else:
            trial, milestone = running.pop(step[0] % len(running))
            assert system.register(trial, milestone, step[1]) is False
            naive.add(trial, milestone, step[1])
            # A state taken at any time goes on in the same way.
            state = system.state_dict()
            system = PromotionRungSystem(levels, MAXIMA[levels])
            system.load_state_dict(json.loads(json.dumps(state)))
            assert system.state_dict() == state


@given(
    seen=st.lists(st.floats(-1e100, 1e100), min_size=2, max_size=40),
    bad=st.integers(0, 3),
    q=st.floats(0.001, 0.999),
)
@settings(max_examples=300, deadline=None)
def test_the_quantile_is_that_of_numpy_bit_by_bit(seen: list[float], bad: int, q: float) -> None:
    rung = Rung(1, q)
    for trial, value in enumerate(seen):
        rung.add(trial, value)
    for trial in range(bad):
        rung.add(1000 + trial, (math.nan, math.inf, -math.inf)[trial])
    filled = np.array(seen + [max(seen)] * bad)
    assert rung.cutoff() == np.quantile(filled, q)
    assert len(rung) == len(seen) + bad


def test_a_quantile_of_huge_values_is_finite() -> None:
    big = 1.7e308
    cutoff = linear_quantile([(-big, 0, 0), (big, 1, 1)], 2, 1 / 3)
    assert cutoff is not None
    assert -big <= cutoff < 0


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_maximising_mirrors_minimising(kind: str) -> None:
    space = {"x": uniform(0, 1), "epochs": 27}
    events = {}
    for mode, sign in (("min", 1.0), ("max", -1.0)):
        scheduler = HyperbandScheduler(
            space, "m", mode=mode, type=kind, max_resource_attr="epochs", random_seed=3, points_to_evaluate=[]
        )
        events[mode] = drive(
            scheduler, lambda config, r, s=sign: {"m": s * (config["x"] + 1 / r)}, n_trials=60, n_workers=3
        )
    assert events["min"] == events["max"]
    best = min((e.config["x"], e.trial_id) for e in events["min"] if e.kind == "start" and e.config)
    assert ("complete", best[1]) in {(e.kind, e.trial_id) for e in events["min"]}


def test_nine_configurations_on_one_worker() -> None:
    """The 9-3-1 example of the ASHA paper: its promotions as early as the quantile rule allows them.

    Worked out by hand, with cutoffs at 1/3 of the rung (linear interpolation): after trials 0 and 1 the cutoff is
    0.1 + 0.4 / 3, so that trial 1 is promoted at once; trial 3 becomes promotable with four entries (cutoff 0.3);
    trial 4 with five (cutoff 0.233); the rest never.
    """
    loss = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    points = [{"x": x} for x in loss]
    scheduler = HyperbandScheduler(
        {"x": uniform(0, 1), "epochs": 9},
        "loss",
        type="promotion",
        max_resource_attr="epochs",
        points_to_evaluate=points,
        random_seed=0,
    )
    events = drive(scheduler, lambda config, _: {"loss": config["x"]}, n_workers=1, n_trials=9)
    # Where each run ended: (trial, level).
    jobs = [(e.trial_id, e.resource) for e in events if e.kind == "report" and e.decision != "CONTINUE"]
    assert jobs == [
        (0, 1),
        (1, 1),
        (1, 3),
        (2, 1),
        (3, 1),
        (3, 3),
        (1, 9),
        (4, 1),
        (4, 3),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
    ]
    assert [e.trial_id for e in events if e.kind == "complete"] == [1]
    # Nothing is reported beyond a milestone, and no level twice.
    for trial in range(9):
        levels = [e.resource for e in events if e.kind == "report" and e.trial_id == trial]
        assert levels == list(range(1, len(levels) + 1))


def test_promotion_looks_from_the_top() -> None:
    system = PromotionRungSystem([1, 3], 9)
    for trial, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        system.register(trial, 1, value)
    promoted = [system.promote(), system.promote()]
    assert [p and p.trial_id for p in promoted] == [0, 1]
    assert system.promote() is None
    system.register(0, 3, 5.0)
    assert system.promote() is None  # one entry is no rung
    system.register(1, 3, 6.0)
    system.register(4, 1, 0.5)
    top = system.promote()
    assert (top and (top.trial_id, top.resume_from, top.milestone)) == (0, 3, 9)
    low = system.promote()
    assert (low and (low.trial_id, low.resume_from, low.milestone)) == (4, 1, 3)


def test_ties_are_promoted_in_the_order_of_arrival() -> None:
    system = PromotionRungSystem([1], 3)
    for trial in (5, 2, 9):
        system.register(trial, 1, 1.0)
    assert [p.trial_id for p in iter(system.promote, None)] == [5, 2, 9]


def test_a_trial_is_paused_where_it_reported_last() -> None:
    system = PromotionRungSystem([1, 3], 9)
    for trial, level, value in ((0, 1, 1.0), (1, 1, 2.0), (0, 3, 1.0), (2, 3, 2.0)):
        system.register(trial, level, value)
    promotion = system.promote()
    assert promotion is not None
    assert (promotion.trial_id, promotion.resume_from) == (0, 3)
    assert system.promote() is None
    for trial, level, value in ((5, 1, 0.5), (5, 3, math.nan)):
        system.register(trial, level, value)
    assert system.promote() is None
    assert [(p.trial_id, p.level) for p in system.paused_trials()] == [(2, 3), (5, 3), (1, 1)]


def test_an_ended_trial_is_never_promoted_but_counts() -> None:
    system = PromotionRungSystem([1], 3)
    for trial, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        system.register(trial, 1, value)
    system.discard(0)
    promotion = system.promote()
    assert promotion is not None
    assert promotion.trial_id == 1  # the cutoff is still 2.0, from all four values
    system.discard(1)
    system.discard(77)
    assert system.promote() is None
    assert len(system.rungs[0]) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    stopping = StoppingRungSystem([1], 3)
    assert stopping.register(0, 1, bad) is True  # the first entry goes on
    assert stopping.register(1, 1, bad) is False
    assert stopping.register(2, 1, 5.0) is True  # the only finite one is the best
    assert stopping.register(3, 1, bad) is False
    assert stopping.register(4, 1, 6.0) is True  # 5, 6 and three times the worst, 6: the cutoff is 6
    assert stopping.register(5, 1, 7.0) is False  # 5, 6 and four times 7: the cutoff is 6 + 2/3

    promotion = PromotionRungSystem([1], 3)
    for trial, value in enumerate([bad, bad]):
        promotion.register(trial, 1, value)
    assert promotion.promote() is None
    promotion.register(2, 1, 5.0)
    chosen = promotion.promote()
    assert chosen is not None
    assert chosen.trial_id == 2
    assert promotion.promote() is None


@pytest.mark.parametrize(
    ("arguments", "levels"),
    [
        ((1, 3, 81), (1, 3, 9, 27)),
        ((1, 3, 56), (1, 3, 9, 27)),
        ((1, 3, 100), (1, 3, 9, 27, 81)),
        ((1, 3, 200), (1, 3, 9, 27, 81)),
        ((3, 3, 27), (3, 9)),
        ((1, 2, 9), (1, 2, 4, 8)),
        ((2, 2.5, 50), (2, 5, 12, 31)),
        ((1, 3.0, 4), (1, 3)),
        ((1, 4, 2), (1,)),
        ((5, 2.99, 15), (5,)),  # 14.95 is rounded to 15, the maximum
    ],
)
def test_geometric_levels(arguments: tuple[int, float, int], levels: tuple[int, ...]) -> None:
    assert geometric_rung_levels(*arguments) == levels


def test_quantiles_follow_the_levels() -> None:
    assert promotion_quantiles((1, 3, 9, 27, 81), 200) == (1 / 3, 1 / 3, 1 / 3, 1 / 3, 81 / 200)
    assert StoppingRungSystem([2, 8], 10).rungs[1].quantile == 0.8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3, 9), ValueError, "grace_period must be a positive int, got 0"),
        ((1.5, 3, 9), TypeError, "grace_period must be a positive int, got 1.5"),
        ((1, 1.9, 9), ValueError, "reduction_factor must be a number >= 2, got 1.9"),
        ((1, math.nan, 9), ValueError, "reduction_factor must be a number >= 2"),
        ((1, math.inf, 9), ValueError, "reduction_factor must be a number >= 2"),
        ((1, "3", 9), TypeError, "reduction_factor must be a number >= 2, got '3'"),
        ((9, 3, 9), ValueError, "larger than grace_period=9, got max_t=9"),
        ((1, 3, True), TypeError, "max_t must be a positive int"),
    ],
)
def test_bad_spacing(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        geometric_rung_levels(*arguments)


def test_explicit_levels_are_checked() -> None:
    assert check_rung_levels([1, 4, 9], 9) == (1, 4)
    assert check_rung_levels([], 9) == ()
    with pytest.raises(ValueError, match="strictly increasing"):
        StoppingRungSystem([1, 4, 4], 9)
    with pytest.raises(ValueError, match="must not exceed max_t=9"):
        StoppingRungSystem([1, 10], 9)
    with pytest.raises(TypeError, match="rung_levels must be a positive int"):
        StoppingRungSystem([1.0], 9)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"level=2: no rung level, there are \[1, 3\]"):
        StoppingRungSystem([1, 3], 9).rung(2)


def test_a_trial_is_in_a_rung_once() -> None:
    system = StoppingRungSystem([1], 3)
    system.register(0, 1, 1.0)
    assert 0 in system.rungs[0]
    with pytest.raises(ValueError, match="trial 0 is in the rung of level 1 already"):
        system.register(0, 1, 2.0)


def test_a_state_of_other_levels_is_refused() -> None:
    state = PromotionRungSystem([1, 3], 9).state_dict()
    with pytest.raises(ValueError, match=r"other rung levels: \[1, 3\] and max_t=9"):
        PromotionRungSystem([1, 3, 9], 27).load_state_dict(state)
    with pytest.raises(ValueError, match="other rung levels: 3 in place of 4"):
        PromotionRungSystem([1, 4], 9).load_state_dict(state)


def test_a_state_of_another_kind_is_refused() -> None:
    stopping, promotion = StoppingRungSystem([1, 3], 9), PromotionRungSystem([1, 3], 9)
    with pytest.raises(ValueError, match="that of a PromotionRungSystem, this scheduler has a StoppingRungSystem"):
        stopping.load_state_dict(promotion.state_dict())
    with pytest.raises(ValueError, match="that of a StoppingRungSystem, this scheduler has a PromotionRungSystem"):
        promotion.load_state_dict(stopping.state_dict())


def test_a_report_does_not_cost_a_pass_over_the_rung() -> None:
    """Twenty times the entries: a rule that sorts or scans would take many times as long for the same reports."""

    def seconds(n_before: int) -> float:
        system = PromotionRungSystem([1, 3], 9)
        rng = np.random.default_rng(0)
        for trial, value in enumerate(rng.random(n_before)):
            system.register(trial, 1, float(value))
        numbers = rng.random(300)
        start = time.process_time()
        for trial, value in enumerate(numbers, start=n_before):
            system.register(trial, 1, float(value))
            system.promote()
        return time.process_time() - start

    small, large = (min(seconds(n) for _ in range(3)) for n in (1_000, 20_000))
    assert large < 6 * small, f"{small:.4f} s with 1000 entries, {large:.4f} s with 20000"
