"""The parameters of the searcher's model in the table of results."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import PythonBackend
from sthyper.baselines import BayesianOptimization, RandomSearch
from sthyper.config_space import uniform
from sthyper.results_callback import StoreResultsAndModelParamsCallback, StoreResultsCallback
from sthyper.schedulers import FIFOScheduler
from sthyper.searchers import RandomSearcher
from sthyper.testing._simulated_backend import SimulatedTrials

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "epochs": 3}
TIME = "cumulative_get_config_time"


def square(x: float, epochs: int) -> float:
    return (x - 0.3) ** 2


def run(scheduler: Any, callback: StoreResultsCallback, trials: int = 6, backend: Any = None) -> Path:
    backend = SimulatedTrials(epochs=1) if backend is None else backend
    criterion = StoppingCriterion(max_num_trials_started=trials)
    tuner = Tuner(backend, scheduler, criterion, n_workers=1, callbacks=[callback], tuner_name="params")
    tuner.run()
    return tuner.tuner_path


def table(folder: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(folder / "results.csv.zip") as archive:
        return list(csv.DictReader(io.StringIO(archive.read("results.csv").decode())))


def test_an_experiment_with_a_model() -> None:
    scheduler = BayesianOptimization(SPACE, "loss", random_seed=2)
    backend = PythonBackend(square, SPACE, launch="inline")
    folder = run(scheduler, StoreResultsAndModelParamsCallback(), backend=backend)
    rows = table(folder)
    assert len(rows) == 6
    times = [float(row[TIME]) for row in rows]
    assert times == sorted(times)
    assert times[0] >= 0.0
    # A suggestion that was not needed any more may have been made after the last report.
    assert times[-1] <= scheduler.searcher.cumulative_get_config_time  # type: ignore[attr-defined]
    assert times[-1] - times[2] > 0.0
    names = [name for name in rows[0] if name.startswith("model_")]
    assert {"model_lengthscale_x", "model_noise", "model_outputscale"} <= set(names)
    for name in names:
        assert all(row[name] == "" for row in rows[:3])  # random ones
        assert all(float(row[name]) == float(row[name]) for row in rows[3:])
    assert len({row["model_lengthscale_x"] for row in rows[3:]}) > 1
    frame = load_experiment(folder).results
    assert set(names) | {TIME} <= set(frame.columns)
    assert "st_tuner_time" in frame.columns


def test_without_the_time() -> None:
    rows = table(run(RandomSearch(SPACE, "loss"), StoreResultsAndModelParamsCallback(add_wallclock_time=False)))
    assert "st_tuner_time" not in rows[0]


def test_without_a_model_rows_are_the_usual_ones() -> None:
    ours = table(run(RandomSearch(SPACE, "loss", random_seed=1), StoreResultsAndModelParamsCallback()))
    usual = table(run(RandomSearch(SPACE, "loss", random_seed=1), StoreResultsCallback()))
    assert list(ours[0]) == list(usual[0])
    assert [row["loss"] for row in ours] == [row["loss"] for row in usual]


class ManyModels(RandomSearcher):
    cumulative_get_config_time = 1.0

    def model_parameters(self) -> dict[str, Any]:
        return {"loss": {"noise": 1.0}, "memory": {"noise": 2.0}}


def test_several_models_are_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = FIFOScheduler(SPACE, "loss", searcher=ManyModels(SPACE, "loss", random_seed=1))
    rows = table(run(scheduler, StoreResultsAndModelParamsCallback()))
    assert not [name for name in rows[0] if name.startswith(("model_", "cumulative"))]
    warnings = [record for record in caplog.records if "has several models (loss, memory)" in record.message]
    assert len(warnings) == 1


@pytest.mark.slow
def test_rows_are_kept_over_a_resume() -> None:
    whole = run(BayesianOptimization(SPACE, "loss", random_seed=2), StoreResultsAndModelParamsCallback(), trials=6)
    part = run(BayesianOptimization(SPACE, "loss", random_seed=2), StoreResultsAndModelParamsCallback(), trials=4)
    before = table(part)
    tuner = Tuner.resume(
        part,
        trial_backend=SimulatedTrials(epochs=1),
        stop_criterion=StoppingCriterion(max_num_trials_started=6),
        callbacks=[StoreResultsAndModelParamsCallback()],
    )
    tuner.run()
    after = table(part)
    assert [{k: row.get(k) for k in before[0]} for row in after[:4]] == before
    times = [float(row[TIME]) for row in after]
    assert times == sorted(times)
    for name in ("config_x", "loss", "model_lengthscale_x"):
        assert [row[name] for row in after] == [row[name] for row in table(whole)]
