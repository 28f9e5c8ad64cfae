"""Constraints on reported metrics: what users write, and what it means."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import pytest

from sthyper.searchers.bayesopt import BayesOptOptions
from sthyper.searchers.bayesopt.constrained import ConstrainedBayesOptOptions
from sthyper.searchers.bayesopt.constraints import (
    MetricRecorder,
    OutcomeConstraint,
    known_feasibility,
    metric_at,
    parse_constraint,
    parse_constraints,
)
from sthyper.searchers.bayesopt.data import TrialData


@pytest.mark.parametrize(
    ("text", "metric", "operator", "bound"),
    [
        ("memory <= 8e9", "memory", "<=", 8e9),
        ("latency<0.5", "latency", "<", 0.5),
        ("  accuracy   >= .9 ", "accuracy", ">=", 0.9),
        ("val/acc-top.5 > -1", "val/acc-top.5", ">", -1.0),
        ("peak memory <= +3_000", "peak memory", "<=", 3000.0),
        ("1st <= 2", "1st", "<=", 2.0),
    ],
)
def test_texts_are_parsed(text: str, metric: str, operator: str, bound: float) -> None:
    assert parse_constraint(text) == OutcomeConstraint(metric, operator, bound)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("memory", "it has no operator, which are <=, >=, <, >"),
        ("", "it has no operator"),
        ("memory == 3", "operator '==' is unknown"),
        ("memory =< 3", "operator '=<' is unknown"),
        ("memory != 3", "operator '!=' is unknown"),
        ("<= 3", "the name of the metric is missing"),
        ("memory <=", "the number is missing"),
        ("memory <= 8GB", "'8GB' is no number"),
        ("memory <= 8 GB", "'8 GB' is no number"),
        ("8e9 >= memory", "the metric comes first"),
        ("1 <= memory <= 8", "it has several operators; a range is two constraints"),
        ("memory <= inf", "the number must be finite"),
        ("memory <= nan", "the number must be finite"),
    ],
)
def test_texts_of_another_form_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        parse_constraints([text])
    message = str(caught.value)
    assert message.startswith(f"outcome_constraints[0]={text!r}")
    example = re.search(r"such as '([^']+)'", message)
    assert example is not None
    assert parse_constraint(example[1]) == OutcomeConstraint("memory", "<=", 8e9)
    # The options raise the same at once.
    with pytest.raises(ValueError, match=re.escape(why)):
        BayesOptOptions(outcome_constraints=["a < 1", text])


@pytest.mark.parametrize("value", ["memory <= 3", {"memory": 3}, 3, True])
def test_no_list_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"outcome_constraints must be a list of texts such as \['memory <= 8e9'\]"):
        parse_constraints(value)


def test_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"outcome_constraints\[1\] must be a text such as 'memory <= 8e9', got 3"):
        parse_constraints(["a <= 1", 3])


def test_bounds_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="'a < 1' and 'a >= 2' exclude each other"):
        parse_constraints(["a >= 2", "a < 1"])
    with pytest.raises(ValueError, match="'a < 1' and 'a > 1' exclude each other"):
        parse_constraints(["a < 1", "a > 1"])
    assert len(parse_constraints(["a <= 1", "a >= 1", "b < 1", "a <= 1"])) == 3  # the last one is the first


def test_constraints_hold_or_not() -> None:
    for operator, answers in (
        ("<=", [True, True, False]),
        ("<", [True, False, False]),
        (">=", [False, True, True]),
        (">", [False, False, True]),
    ):
        constraint = OutcomeConstraint("a", operator, 2)
        assert [constraint.holds(v) for v in (1.0, 2.0, 3.0)] == answers
        assert not constraint.holds(math.nan)
        assert str(constraint) == f"a {operator} 2"
        upper = operator[0] == "<"
        assert (constraint.upper, constraint.lower) == ((2.0, None) if upper else (None, 2.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, "<", 1.0), TypeError, "metric must be the name"),
        (("", "<", 1.0), ValueError, "metric must be the name"),
        (("a", "=", 1.0), ValueError, "operator='=' is unknown"),
        (("a", "<", "1"), TypeError, "bound must be a number"),
        (("a", "<", True), TypeError, "bound must be a number"),
        (("a", "<", math.inf), ValueError, "bound must be finite"),
    ],
)
def test_bad_arguments_of_a_constraint(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OutcomeConstraint(*arguments)


# ---- options ---------------------------------------------------------------------------------------------


def test_constraints_and_draws_from_the_target_alone_exclude_each_other() -> None:
    for given in ({"outcome_constraints": ["a <= 1"]}, {"learn_feasibility": True}):
        with pytest.raises(ValueError, match="initial_scoring='thompson_indep' cannot be used with constraints"):
            BayesOptOptions(initial_scoring="thompson_indep", **given)
        assert BayesOptOptions(preset="syne-tune", **given).initial_scoring == "acq_func"
    assert BayesOptOptions(preset="syne-tune").initial_scoring == "thompson_indep"
    with pytest.raises(ValueError, match="initial_scoring='thompson_indep' cannot be used with constraints"):
        ConstrainedBayesOptOptions(constraint_attr="c", initial_scoring="thompson_indep")


def test_the_mandatory_constraint() -> None:
    options = ConstrainedBayesOptOptions(constraint_attr="c", outcome_constraints=["c <= 0", "memory < 3"])
    assert options.constraints == (OutcomeConstraint("c", "<=", 0.0), OutcomeConstraint("memory", "<", 3.0))
    assert options.required_metrics == ("c",)
    assert BayesOptOptions(outcome_constraints=["memory < 3"]).required_metrics == ()
    with pytest.raises(ValueError, match="constraint_attr is missing"):
        ConstrainedBayesOptOptions()
    with pytest.raises(TypeError, match="constraint_attr must be the name of a reported metric, got 3"):
        ConstrainedBayesOptOptions(constraint_attr=3)  # type: ignore[arg-type]


# ---- what is known ---------------------------------------------------------------------------------------


def test_metrics_count_up_to_a_level() -> None:
    trial = TrialData({"x": 1}, metrics={"m": {1: 5.0, 3: 7.0}})
    assert [metric_at(trial, "m", level) for level in (0, 1, 2, 3, math.inf)] == [None, 5.0, 5.0, 7.0, 7.0]
    assert metric_at(trial, "other", 9) is None


def test_what_is_known_of_a_trial() -> None:
    constraints = parse_constraints(["m <= 6", "k > 0"])
    known = TrialData({}, metrics={"m": {1: 5.0}, "k": {1: 1.0}})
    assert known_feasibility(known, constraints, 1) == 1.0
    assert known_feasibility(TrialData({}, metrics={"m": {1: 5.0}, "k": {1: -1.0}}), constraints, 1) == 0.0
    assert known_feasibility(TrialData({}, metrics={"m": {1: 6.5}}), constraints, 1) == 0.0  # k does not matter
    assert math.isnan(known_feasibility(TrialData({}, metrics={"m": {1: 5.0}}), constraints, 1))
    assert known_feasibility(TrialData({}, metrics=known.metrics, failed=True), constraints, 1) == 0.0
    assert known_feasibility(TrialData({}), (), 1) == 1.0


def test_missing_metrics_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = MetricRecorder(parse_constraints(["m <= 6", "k > 0"]))
    trial = TrialData({})
    with caplog.at_level(logging.WARNING):
        recorder.record(trial, 1, {"loss": 1.0, "m": 3, "k": 2.0})
        assert not caplog.records
        recorder.record(trial, 2, {"loss": 1.0, "m": math.nan, "k": math.inf})
        recorder.record(trial, 3, {"loss": 1.0, "k": "much"})
        recorder.record(trial, 4, {"loss": 1.0, "m": True, "k": None})
    assert trial.metrics == {"m": {1: 3.0}, "k": {1: 2.0, 2: math.inf}}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "'m'" in messages[0]
    assert "m=nan" in messages[0]
    assert "k='much'" in messages[1]
