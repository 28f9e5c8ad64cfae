from __future__ import annotations

import csv
import io
import math
import threading
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sthyper._result_table import ResultTable
from sthyper.results_callback import ExtraResultsComposer, StoreResultsCallback
from sthyper.trial import Status, Trial


class FakeTuner:
    """What the callback sees of a tuner."""

    def __init__(self, path: Path, interval: float = 1000.0) -> None:
        self.tuner_path = path
        self.results_update_interval = interval
        self.journal: object | None = object()
        self.recorded: list[dict[str, Any]] = []

    def record_extra(self, values: dict[str, Any]) -> None:
        self.recorded.append(values)


def make_trial(trial_id: int, **config: Any) -> Trial:
    return Trial(trial_id, config, datetime(2026, 1, 1), seed=trial_id)


def started(path: Path, interval: float = 1000.0, **kwargs: Any) -> tuple[StoreResultsCallback, FakeTuner]:
    callback, tuner = StoreResultsCallback(**kwargs), FakeTuner(path, interval)
    callback.on_tuning_start(tuner)  # type: ignore[arg-type]
    return callback, tuner


def report(callback: StoreResultsCallback, trial: Trial, decision: str = "CONTINUE", **result: Any) -> None:
    callback.on_trial_result(trial, Status.in_progress, result, decision)


def read_csv(path: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["results.csv"]
        return list(csv.DictReader(io.StringIO(archive.read("results.csv").decode())))


def test_rows_of_the_file(tmp_path: Path) -> None:
    callback, _ = started(tmp_path)
    first, second = make_trial(0, lr=0.5, act="relu"), make_trial(1, lr=0.25, act="tanh")
    report(callback, first, epoch=1, loss=math.nan, st_tuner_time=1.5, st_run=0)
    report(callback, second, epoch=1, loss=0.25, st_tuner_time=1.75, st_run=0)
    report(callback, first, "STOP", epoch=2, loss=-math.inf, note="a, b", st_tuner_time=2.0, st_run=0)
    first.end_reason = "interrupted"
    assert not (tmp_path / "results.csv.zip").exists()
    callback.on_tuning_end()
    rows = read_csv(tmp_path / "results.csv.zip")
    assert rows[0] == {
        "epoch": "1",
        "loss": "nan",
        "st_tuner_time": "1.5",
        "st_run": "0",
        "st_decision": "CONTINUE",
        "st_status": "InProgress",
        "trial_id": "0",
        "note": "",
        "config_lr": "0.5",
        "config_act": "relu",
        "st_end_reason": "interrupted",
    }
    assert [row["config_act"] for row in rows] == ["relu", "tanh", "relu"]
    assert [row["st_end_reason"] for row in rows] == ["interrupted", "", "interrupted"]
    assert (rows[2]["loss"], rows[2]["note"], rows[2]["st_decision"]) == ("-inf", "a, b", "STOP")
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv.zip"]
    frame = pd.read_csv(tmp_path / "results.csv.zip")
    pd.testing.assert_frame_equal(frame, callback.dataframe(), check_dtype=False)


def test_data_frame_keeps_types(tmp_path: Path) -> None:
    callback, _ = started(tmp_path)
    assert callback.dataframe().empty
    report(callback, make_trial(0, lr=0.5, width=3), epoch=1, loss=0.5, ok=True, st_tuner_time=1.0)
    frame = callback.dataframe()
    assert {name: str(frame[name].dtype) for name in ("epoch", "loss", "ok", "trial_id", "config_width")} == {
        "epoch": "int64",
        "loss": "float64",
        "ok": "bool",
        "trial_id": "int64",
        "config_width": "int64",
    }


VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers()),
)


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), VALUES), max_size=12))
@settings(max_examples=100, deadline=None)
def test_table_gives_back_what_it_got(rows: list[dict[str, Any]]) -> None:
    table = ResultTable()
    for number, row in enumerate(rows):
        table.append(number % 3, {"x": number % 3}, row)
    got = list(table.rows())
    assert got == [{**row, "trial_id": i % 3, "config_x": i % 3} for i, row in enumerate(rows)]
    assert [[type(v) for v in g.values()][: len(r)] for g, r in zip(got, rows, strict=True)] == [
        [type(v) for v in r.values()] for r in rows
    ]
    assert len(table.frame()) == len(rows)
    if rows:
        assert table.row(len(rows) - 1) == got[-1]
    with pytest.raises(IndexError):
        table.row(len(rows))


def test_a_changed_configuration_concerns_later_rows_only(tmp_path: Path) -> None:
    callback, _ = started(tmp_path)
    trial = make_trial(0, lr=0.5)
    report(callback, trial, loss=1.0, st_tuner_time=1.0)
    trial.config = {"lr": 0.25}
    report(callback, trial, loss=1.0, st_tuner_time=2.0)
    assert callback.dataframe()["config_lr"].tolist() == [0.5, 0.25]


def test_tuner_time(tmp_path: Path) -> None:
    callback, _ = started(tmp_path)
    report(callback, make_trial(0), loss=1.0, st_tuner_time=77.0)
    report(callback, make_trial(0), loss=1.0)
    given, own = callback.dataframe()["st_tuner_time"]
    assert given == 77.0
    assert 0.0 <= own < 5.0
    callback, _ = started(tmp_path, add_wallclock_time=False)
    report(callback, make_trial(0), loss=1.0, st_tuner_time=77.0)
    assert "st_tuner_time" not in callback.dataframe()


class Composer(ExtraResultsComposer):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tuner: Any) -> dict[str, Any] | None:
        import numpy as np

        self.calls += 1
        return None if self.calls == 2 else {"n": np.int64(self.calls), "path": str(tuner.tuner_path)}

    def keys(self) -> list[str]:
        return ["n", "path"]


def test_extra_results(tmp_path: Path) -> None:
    callback, tuner = started(tmp_path, extra_results_composer=Composer())
    for _ in range(3):
        report(callback, make_trial(0), loss=1.0)
    assert tuner.recorded == [{"n": 1, "path": str(tmp_path)}, {"n": 3, "path": str(tmp_path)}]
    assert type(tuner.recorded[0]["n"]) is int
    callback.on_tuning_end()
    assert [row["n"] for row in read_csv(tmp_path / "results.csv.zip")] == ["1", "", "3"]
    with pytest.raises(TypeError, match="extra_results_composer"):
        StoreResultsCallback(extra_results_composer="x")  # type: ignore[arg-type]
    callback, _ = started(tmp_path, extra_results_composer=lambda tuner: [1])
    with pytest.raises(TypeError, match=r"\[1\]"):
        report(callback, make_trial(0), loss=1.0)


def test_written_at_intervals_and_replaced_as_a_whole(tmp_path: Path) -> None:
    callback, _ = started(tmp_path, interval=0.0)
    trial, file = make_trial(0, lr=0.1), tmp_path / "results.csv.zip"
    sizes = []
    deadline = time.monotonic() + 10.0
    while len(set(sizes)) < 4 and time.monotonic() < deadline:
        report(callback, trial, loss=1.0, st_tuner_time=1.0)
        if file.exists():
            sizes.append(len(read_csv(file)))
    assert len(set(sizes)) == 4
    assert sizes == sorted(sizes)
    callback.on_tuning_end()
    assert len(read_csv(file)) == len(callback.dataframe())


def test_interval_is_kept(tmp_path: Path) -> None:
    callback, _ = started(tmp_path, interval=1000.0)
    for _ in range(10):
        report(callback, make_trial(0), loss=1.0)
    assert not (tmp_path / "results.csv.zip").exists()
    callback.on_tuning_end()
    assert len(read_csv(tmp_path / "results.csv.zip")) == 10


def test_a_large_table_is_written_beside_the_loop(tmp_path: Path) -> None:
    callback, tuner = started(tmp_path, interval=1000.0)
    trial = make_trial(0, lr=0.1)
    for i in range(5000):
        report(callback, trial, loss=float(i), st_tuner_time=1.0)
    tuner.results_update_interval = 0.0
    callback.on_tuning_start(tuner)  # type: ignore[arg-type]
    report(callback, trial, loss=-1.0)
    assert "sthyper-results" in [thread.name for thread in threading.enumerate()]
    for _ in range(100):
        report(callback, trial, loss=-2.0)
    callback.on_tuning_end()
    assert "sthyper-results" not in [thread.name for thread in threading.enumerate()]
    assert len(read_csv(tmp_path / "results.csv.zip")) == 5101


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback, _ = started(tmp_path / "gone")
    report(callback, make_trial(0), loss=1.0)
    callback.on_tuning_end()
    assert "gone" in caplog.text


def test_another_experiment_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    callback, _ = started(tmp_path / "a")
    report(callback, make_trial(0), loss=1.0)
    callback.on_tuning_end()
    callback.on_tuning_start(FakeTuner(tmp_path / "b"))  # type: ignore[arg-type]
    report(callback, make_trial(0), loss=2.0)
    callback.on_tuning_end()
    assert [row["loss"] for row in read_csv(tmp_path / "a" / "results.csv.zip")] == ["1.0"]
    assert [row["loss"] for row in read_csv(tmp_path / "b" / "results.csv.zip")] == ["2.0"]


def test_memory_of_many_rows() -> None:
    import tracemalloc

    table = ResultTable()
    trials = [make_trial(i, lr=0.1 * i, width=i, act="relu") for i in range(100)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(20_000):
            row = {f"m{k}": float(i + k) for k in range(10)} | {"epoch": i, "st_decision": "CONTINUE"}
            table.append(i % 100, trials[i % 100].config, row)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # 500 000 rows below 400 MB
    assert used / 20_000 < 200


def test_a_metric_named_like_a_configuration_column_gives_way(tmp_path: Path) -> None:
    callback, _ = started(tmp_path)
    result = {"loss": 1.0, "config_lr": 5.0}
    callback.on_trial_result(make_trial(0, lr=0.1), Status.in_progress, result, "CONTINUE")
    frame = callback.dataframe()
    assert list(frame.columns).count("config_lr") == 1
    assert list(frame["config_lr"]) == [0.1]
