from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper.trial import Status, Trial
from sthyper.tuning_status import MetricsStatistics, TuningStatus, metric_name_mode, print_best_metric_found

NAN, INF = float("nan"), float("inf")


def make_trial(trial_id: int, **config: Any) -> Trial:
    return Trial(trial_id, config, datetime(2026, 1, 1), seed=trial_id)


def make_status(n_trials: int, **kwargs: Any) -> TuningStatus:
    status = TuningStatus(["loss"], **kwargs)
    for trial_id in range(n_trials):
        status.add_trial(make_trial(trial_id, lr=0.1 * trial_id))
    return status


# ---- MetricsStatistics -------------------------------------------------------------------------------


def test_statistics() -> None:
    statistics = MetricsStatistics()
    for report in ({"loss": 3.0, "epoch": 1}, {"loss": 1.0, "epoch": 2}, {"loss": 2.0, "epoch": 3, "note": "x"}):
        statistics.add(report)
    assert statistics.count == 3
    assert statistics.min_metrics == {"loss": 1.0, "epoch": 1}
    assert statistics.max_metrics == {"loss": 3.0, "epoch": 3}
    assert statistics.sum_metrics == {"loss": 6.0, "epoch": 6}
    assert statistics.last_metrics == {"loss": 2.0, "epoch": 3, "note": "x"}
    assert statistics.is_numeric == {"loss": True, "epoch": True, "note": False}
    assert statistics.metric_names == ["loss", "epoch", "note"]


@given(
    st.lists(
        st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.integers(), st.booleans(), st.just(10**400)),
        max_size=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_only_finite_values_enter_the_bounds(values: list[Any]) -> None:
    statistics = MetricsStatistics()
    for value in values:
        statistics.add({"x": value})
    finite = [v for v in values if abs(v) <= sys.float_info.max]
    assert statistics.count == len(values)
    assert statistics.minimum("x") == min(finite, default=None)
    assert statistics.maximum("x") == max(finite, default=None)
    assert statistics.best("x", "min") == statistics.minimum("x")
    assert statistics.best("x", "max") == statistics.maximum("x")


def test_mixed_types_are_warned_of_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    statistics = MetricsStatistics()
    with caplog.at_level(logging.WARNING):
        for value in (1.0, "bad-mixed", 0.5, "again"):
            statistics.add({"metric_mixed": value})
        for value in ("text", 3.0):
            statistics.add({"metric_text": value})
    assert statistics.min_metrics == {"metric_mixed": 0.5}
    assert statistics.is_numeric == {"metric_mixed": True, "metric_text": False}
    assert [r.getMessage().split("'")[1] for r in caplog.records] == ["metric_mixed", "metric_text"]


# ---- counts ------------------------------------------------------------------------------------------


def test_counts() -> None:
    status = make_status(7)
    status.set_status(0, Status.completed)
    status.set_status(1, Status.failed)
    status.set_status(2, Status.stopped)
    status.set_status(3, Status.stopping)
    status.set_status(4, Status.paused)
    status.set_status(5, Status.stopped, by_tuner=True)
    assert status.num_trials_started == 7
    assert status.num_trials_completed == 1
    assert status.num_trials_failed == 1
    assert status.num_trials_finished == 4
    assert status.num_trials_paused == 1
    assert status.num_trials_running == 1
    status.set_status(5, Status.in_progress)
    assert status.num_trials_running == 2
    status.set_status(5, Status.completed)
    assert (status.num_trials_completed, status.num_trials_finished) == (2, 5)
    assert status.trial_status(4) == Status.paused


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(Status)), st.booleans()), max_size=60))
@settings(max_examples=100, deadline=None)
def test_counts_kept_on_the_way_equal_counts_from_scratch(changes: list[tuple[int, Status, bool]]) -> None:
    status = make_status(5)
    truth = {i: (Status.in_progress, False) for i in range(5)}
    for trial_id, value, by_tuner in changes:
        status.set_status(trial_id, value, by_tuner=by_tuner)
        truth[trial_id] = (value, by_tuner)
    counts = Counter(value for value, _ in truth.values())
    own = Counter(value for value, by_tuner in truth.values() if not by_tuner)
    assert status.num_trials_running == counts[Status.in_progress]
    assert status.num_trials_paused == counts[Status.paused]
    assert status.num_trials_completed == own[Status.completed]
    assert status.num_trials_failed == own[Status.failed]
    finished = (Status.completed, Status.stopped, Status.stopping, Status.failed)
    assert status.num_trials_finished == sum(own[s] for s in finished)


def test_unknown_and_repeated_trials_are_errors() -> None:
    status = make_status(1)
    with pytest.raises(ValueError, match="trial_id=3"):
        status.set_status(3, Status.completed)
    with pytest.raises(ValueError, match="trial_id=3"):
        status.add_result(3, {"loss": 1.0})
    with pytest.raises(ValueError, match="trial_id=0"):
        status.add_trial(make_trial(0))


def test_time_and_cost_add_up_over_the_runs_of_a_trial() -> None:
    status = make_status(2)
    for seconds in (1.0, 2.0):
        status.add_result(0, {"loss": 1.0, "st_worker_time": seconds, "st_worker_cost": seconds / 10})
    status.add_result(1, {"loss": 1.0, "st_worker_time": 5.0})
    status.set_status(0, Status.paused)
    status.set_status(0, Status.in_progress)
    # A fresh Reporter counts from zero again.
    status.add_result(0, {"loss": 1.0, "st_worker_time": 1.5, "st_worker_cost": 0.1})
    assert status.user_time == pytest.approx(2.0 + 5.0 + 1.5)
    assert status.cost == pytest.approx(0.2 + 0.1)
    frame = status.get_dataframe()
    assert frame["worker-time"].tolist() == pytest.approx([3.5, 5.0])
    assert status.num_results == 4


def test_clock() -> None:
    now = 3.0
    status = make_status(0, clock=lambda: now)
    assert status.wallclock_time == 3.0
    now = 4.5
    assert status.wallclock_time == 4.5
    assert 0.0 <= TuningStatus(["loss"]).wallclock_time < 5.0


def test_update_is_a_shorthand() -> None:
    status = TuningStatus(["loss"])
    trials = [make_trial(0), make_trial(1)]
    running = {0: (trials[0], Status.in_progress), 1: (trials[1], Status.in_progress)}
    status.update(running, [(0, {"loss": 2.0, "st_worker_time": 1.0})])
    status.update(running, [(0, {"loss": 1.0, "st_worker_time": 2.0})])
    status.update({0: (trials[0], Status.completed)}, [])
    assert (status.num_trials_started, status.num_trials_completed, status.num_trials_running) == (2, 1, 1)
    assert status.user_time == 2.0
    status.mark_running_job_as_stopped()
    assert (status.num_trials_running, status.num_trials_finished) == (0, 1)
    assert status.trial_status(1) == Status.stopped


# ---- best value and tables ---------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "expected"), [("min", (1, -1.0)), ("max", (2, 5.0)), (["max", "min"], (2, 5.0))])
def test_best_is_finite(mode: Any, expected: tuple[int, float], capsys: pytest.CaptureFixture[str]) -> None:
    status = make_status(4)
    for trial_id, values in enumerate([(NAN, 1.0), (-INF, -1.0), (5.0, INF), (NAN,)]):
        for value in values:
            status.add_result(trial_id, {"loss": value})
    assert print_best_metric_found(status, ["loss", "other"], mode) == expected
    assert f"loss: best {expected[1]:g} for trial-id {expected[0]}" in capsys.readouterr().out


def test_no_best_yet() -> None:
    status = make_status(1)
    assert print_best_metric_found(status, ["loss"]) is None
    status.add_result(0, {"loss": NAN})
    assert print_best_metric_found(status, ["loss"]) is None
    with pytest.raises(ValueError, match="maximum"):
        print_best_metric_found(status, ["loss"], "maximum")


def test_metric_by_name_or_index() -> None:
    assert metric_name_mode(["a", "b"], "max", 1) == ("b", "max")
    assert metric_name_mode(["a", "b"], ["max", "min"], "b") == ("b", "min")
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        metric_name_mode(["accuracy"], "max", "acuracy")
    with pytest.raises(ValueError, match="index below 1"):
        metric_name_mode(["a"], "max", 1)
    with pytest.raises(TypeError, match="1.0"):
        metric_name_mode(["a"], "max", 1.0)  # type: ignore[arg-type]


def test_tables() -> None:
    status = make_status(3, clock=lambda: 12.3456)
    status.add_result(0, {"loss": 0.25, "epoch": 1, "st_worker_time": 2.0, "st_worker_iter": 0})
    status.add_result(0, {"loss": 0.125, "epoch": 2, "st_worker_time": 4.0, "st_worker_iter": 1})
    status.set_status(0, Status.completed)
    status.set_status(2, Status.paused)
    frame = status.get_dataframe()
    assert frame["status"].tolist() == ["Completed", "InProgress", "Paused"]
    assert frame["iter"].tolist() == [2, 0, 0]
    assert frame.loc[0, ["lr", "loss", "epoch", "worker-time"]].tolist() == [0.0, 0.125, 2, 4.0]
    text = str(status)
    assert "Completed" in text
    assert "0.125" in text
    assert "st_worker" not in text
    assert text.splitlines()[-1] == (
        "1 trials running, 1 finished (2 until the end), 1 paused, 2 reports, 12.35s wallclock-time"
    )
    assert status.trial_metric_statistics[0].min_metrics["loss"] == 0.125
    assert list(status.trial_rows) == [0, 1, 2]


def test_a_long_table_shows_what_runs() -> None:
    status = make_status(100)
    for trial_id in range(1, 100):
        status.set_status(trial_id, Status.completed)
    lines = status.table(max_rows=10).splitlines()
    assert len(lines) == 12
    assert lines[1].split()[:2] == ["0", "InProgress"]
    assert lines[-2].split()[0] == "99"
    assert lines[-1] == "(90 more trials not shown)"


def test_memory_does_not_grow_with_the_number_of_reports() -> None:
    import tracemalloc

    rng = random.Random(0)
    status = make_status(50)

    def report(times: int) -> None:
        for _ in range(times):
            for trial_id in range(50):
                status.add_result(trial_id, {"loss": rng.random(), "acc": rng.random(), "st_worker_time": rng.random()})

    tracemalloc.start()
    try:
        report(2)
        before = tracemalloc.get_traced_memory()[0]
        report(40)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 50 * 100
