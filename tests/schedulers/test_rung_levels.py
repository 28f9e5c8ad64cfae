"""Geometric, linear and explicit rung levels, and which argument wins."""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import Any

import pytest

from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.schedulers import HyperbandScheduler, StoppingRungSystem
from sthyper.schedulers.hyperband import linear_rung_levels, successive_halving_rung_levels
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 30}


def make(**arguments: Any) -> HyperbandScheduler:
    return HyperbandScheduler(SPACE, "loss", max_resource_attr="epochs", random_seed=0, **arguments)


@pytest.mark.parametrize(
    ("arguments", "levels"),
    [
        ({}, [1, 3, 9, 27]),
        ({"grace_period": 2}, [2, 6, 18]),
        ({"reduction_factor": 2.5, "grace_period": 2}, [2, 5, 12]),
        ({"rung_increment": 7}, [1, 8, 15, 22, 29]),
        ({"rung_increment": 10, "grace_period": 10}, [10, 20]),
        ({"rung_increment": 29}, [1]),
        ({"rung_increment": 40}, [1]),
        ({"rung_levels": [4, 6, 25]}, [4, 6, 25]),
        ({"rung_levels": (4, 30)}, [4]),
    ],
)
def test_spacing(arguments: dict[str, Any], levels: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("stopping", "promotion"):
            assert make(type=kind, **arguments).rung_levels == levels
        assert ASHA(SPACE, "loss", **arguments).rung_levels == levels


def test_the_reduction_factor_wins_over_the_increment() -> None:
    with pytest.warns(UserWarning, match="reduction_factor=3 is given, rung_increment=5 has no effect") as caught:
        assert make(reduction_factor=3, rung_increment=5).rung_levels == [1, 3, 9, 27]
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"grace_period": 1}, "grace_period=1 has"),
        ({"reduction_factor": 3}, "reduction_factor=3 has"),
        ({"grace_period": 2, "rung_increment": 5}, "grace_period=2 and rung_increment=5 has"),
    ],
)
def test_explicit_levels_win_over_the_rest(others: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=rf"rung_levels=\[4, 6\] is given, {words} no effect") as caught:
        assert make(rung_levels=[4, 6], **others).rung_levels == [4, 6]
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rung_levels": [4]}, ValueError, r"rung_levels must have two or more levels, got \[4\]"),
        ({"rung_levels": []}, ValueError, "two or more levels"),
        ({"rung_levels": [4, 4]}, ValueError, r"strictly increasing, got \[4, 4\]"),
        ({"rung_levels": [6, 4]}, ValueError, "strictly increasing"),
        ({"rung_levels": [4, 31]}, ValueError, r"must not exceed max_t=30, got \[4, 31\]"),
        ({"rung_levels": [0, 4]}, ValueError, "rung_levels must be a positive int, got 0"),
        ({"rung_levels": [1, 4.0]}, TypeError, r"rung_levels must be a positive int, got 4\.0"),
        ({"rung_levels": 4}, TypeError, "rung_levels must be a list of positive ints, got 4"),
        ({"rung_levels": "14"}, TypeError, "rung_levels must be a list of positive ints, got '14'"),
        ({"rung_increment": 0}, ValueError, "rung_increment must be a positive int, got 0"),
        ({"rung_increment": 1.5}, TypeError, r"rung_increment must be a positive int, got 1\.5"),
        ({"rung_increment": 2, "grace_period": 30}, ValueError, "larger than grace_period=30, got max_t=30"),
        ({"rung_increment": 0, "reduction_factor": 3}, ValueError, "rung_increment must be a positive int, got 0"),
        (
            {"rung_system": StoppingRungSystem([1], 30), "rung_levels": [1, 2]},
            ValueError,
            r"rung_levels=\[1, 2\] canno",
        ),
        ({"rung_system": StoppingRungSystem([1], 30), "rung_increment": 1}, ValueError, "rung_increment=1 cannot be"),
    ],
)
def test_bad_levels(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


def test_the_functions_say_the_same() -> None:
    assert linear_rung_levels(1, 3, 10) == (1, 4, 7)
    assert linear_rung_levels(3, 3, 9) == (3, 6)
    assert successive_halving_rung_levels(9, grace_period=1, reduction_factor=2) == (1, 2, 4, 8)
    given = [1, 2, 9]
    assert successive_halving_rung_levels(9, rung_levels=given) == (1, 2)
    assert given == [1, 2, 9]


def test_the_share_that_goes_on_follows_any_spacing() -> None:
    rungs = make(rung_increment=10, grace_period=10).rung_system.rungs
    assert [rung.quantile for rung in rungs] == [10 / 20, 20 / 30]
    assert [rung.quantile for rung in make(rung_levels=[4, 6, 25]).rung_system.rungs] == [4 / 6, 6 / 25, 25 / 30]


def test_spacing_changes_decisions() -> None:
    """The middle one of three equally spaced values is stopped unless the share is half of the rung or more."""
    decisions = []
    for arguments in ({}, {"rung_levels": [1, 2]}, {"rung_increment": 1}):
        scheduler = make(**arguments)
        found = []
        for trial_id, loss in enumerate((0.3, 0.1, 0.2)):
            suggestion = scheduler.suggest(trial_id)
            assert suggestion is not None
            assert suggestion.config is not None
            trial = Trial(trial_id, suggestion.config, datetime(2020, 1, 1))
            for epoch in (1, 2, 3):
                found.append(scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss}))
                if found[-1] != "CONTINUE":
                    break
        decisions.append(" ".join(d[0] for d in found))
    # The shares are 1/3 at level 1; 1/2 and 2/30 at 1 and 2; 1/2, 2/3 and 3/4 at 1, 2 and 3.
    assert decisions == ["C C C C C C S", "C C C C C C C S", "C C C C C C C C C"]
