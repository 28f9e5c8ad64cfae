from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sthyper.checkpoints import CheckpointInfo, write_index
from sthyper.constants import ST_DATETIME_FORMAT
from sthyper.experiment import ExperimentResult, get_metadata, list_experiments, load_experiment
from sthyper.journal import ExperimentJournal
from sthyper.results_callback import StoreResultsCallback
from sthyper.trial import Status, Trial

METADATA = {
    "st_tuner_creation_timestamp": 1_760_000_000.5,
    "entrypoint": "train",
    "backend": "LocalBackend",
    "metric_names": ["accuracy", "loss"],
    "metric_mode": ["max", "min"],
    "resource_attr": "epoch",
}
PNG = b"\x89PNG\r\n"


class Writer:
    """Writes an experiment's files as the tuner does."""

    def __init__(self, folder: Path, **metadata: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.metadata = {**METADATA, **metadata}
        (folder / "metadata.json").write_text(json.dumps(self.metadata))
        self.journal = ExperimentJournal(folder / "journal.jsonl")
        self.append("journal", version=1, name=folder.name, created=0.0)
        self.append("metadata", metadata=self.metadata)
        self.append("session", pid=1, host="h", n_workers=2, seed=0, time=0.0)
        self.seq = 0
        self.now = 0.0

    def append(self, kind: str, **rest: Any) -> None:
        self.journal.append({"type": kind, **rest})

    def start(self, trial_id: int, run: int = 0, milestone: int | None = None, **config: Any) -> None:
        self.append(
            "resume" if run else "start",
            trial_id=trial_id,
            run=run,
            cause="resume" if run else "start",
            config=config,
            seed=100 + trial_id,
            milestone=milestone,
            checkpoint_trial_id=None,
            tuner_time=self.now,
            time=self.now,
        )

    def report(
        self,
        trial_id: int,
        decision: str | None = "CONTINUE",
        run: int = 0,
        counted: bool = True,
        extra: dict[str, Any] | None = None,
        resource: int | None = None,
        **metrics: Any,
    ) -> None:
        self.seq += 1
        self.now += 1.0
        key = {"trial_id": trial_id, "run": run, "client": "ab", "seq": self.seq}
        self.append("report", **key, metrics=metrics, tuner_time=self.now)
        if decision is not None:
            rest = {} if resource is None else {"resource": resource}
            self.append(
                "decision",
                **key,
                decision=decision,
                scheduler_decision=decision if counted else None,
                counted=counted,
                **rest,
            )
        if extra is not None:
            self.append("extra", **key, values=extra)

    def end(self, trial_id: int, status: str, run: int = 0, reason: str | None = None) -> None:
        self.append(
            "status", trial_id=trial_id, run=run, status=status, reason=reason, exit_code=0, tuner_time=self.now
        )


@pytest.fixture
def write(experiment_folder: Path) -> Any:
    writers = []

    def make(name: str = "exp", **metadata: Any) -> Writer:
        writers.append(Writer(experiment_folder / name, **metadata))
        return writers[-1]

    yield make
    for writer in writers:
        writer.journal.close()


Write = Callable[..., Writer]


@pytest.fixture
def three_trials(write: Write) -> Writer:
    """A trial that was paused and resumed, one that was stopped, one that failed after a NaN."""
    w = write()
    w.start(0, milestone=1, lr=0.5, act="relu")
    w.start(1, milestone=1, lr=0.25, act="tanh")
    w.report(0, "PAUSE", epoch=1, accuracy=0.5, loss=1.0)
    w.end(0, "Paused")
    w.report(1, epoch=1, accuracy=0.25, loss=2.0)
    w.report(1, counted=False, epoch=1, accuracy=0.99, loss=-9.0)
    w.start(0, run=1, milestone=3, lr=0.5, act="relu")
    w.report(1, "STOP", epoch=2, accuracy=0.375, loss=float("-inf"))
    w.report(0, run=1, epoch=2, accuracy=0.75, loss=0.5)
    w.end(1, "Stopped")
    w.start(2, milestone=1, lr=0.125, act="relu")
    w.report(2, epoch=1, accuracy=math.inf, loss=math.nan)
    w.end(2, "Failed", reason="exit 1")
    w.report(0, run=1, epoch=3, accuracy=0.625, loss=0.25)
    w.end(0, "Completed", run=1)
    w.append("end", reason="max_num_trials_finished=3 is reached")
    return w


def test_results(three_trials: Writer) -> None:
    frame = load_experiment("exp").results
    assert frame["trial_id"].tolist() == [0, 1, 1, 0, 2, 0]
    assert frame["epoch"].tolist() == [1, 1, 2, 2, 1, 3]
    assert frame["accuracy"].tolist() == [0.5, 0.25, 0.375, 0.75, math.inf, 0.625]
    assert math.isnan(frame["loss"][4])
    assert frame["st_decision"].tolist() == ["PAUSE", "CONTINUE", "STOP", "CONTINUE", "CONTINUE", "CONTINUE"]
    assert frame["st_tuner_time"].tolist() == [1.0, 2.0, 4.0, 5.0, 6.0, 7.0]
    assert frame["st_run"].tolist() == [0, 0, 0, 1, 0, 1]
    assert frame["st_milestone"].tolist() == [1, 1, 1, 3, 1, 3]
    assert frame["st_seed"].tolist() == [100, 101, 101, 100, 102, 100]
    assert frame["config_lr"].tolist() == [0.5, 0.25, 0.25, 0.5, 0.125, 0.5]
    assert frame["config_act"].tolist() == ["relu", "tanh", "tanh", "relu", "relu", "relu"]
    assert frame["st_end_reason"].dropna().to_dict() == {4: "exit 1"}
    assert set(frame["st_status"]) == {"InProgress"}


def test_results_have_the_columns_of_the_csv_file(write: Write) -> None:
    writer = write("exp")
    callback = StoreResultsCallback()
    callback.on_tuning_start(type("T", (), {"tuner_path": writer.folder, "results_update_interval": 9.0})())
    writer.start(0, milestone=9, lr=0.5)
    writer.report(0, epoch=1, accuracy=0.5)
    row = {"epoch": 1, "accuracy": 0.5, "st_tuner_time": 1.0, "st_scheduler_decision": "CONTINUE", "st_run": 0}
    row |= {"st_seed": 100, "st_milestone": 9}
    trial = Trial(0, {"lr": 0.5}, datetime(2026, 1, 1))
    callback.on_trial_result(trial, Status.in_progress, row, "CONTINUE")
    callback.on_tuning_end()
    csv = pd.read_csv(writer.folder / "results.csv.zip")
    journal = load_experiment("exp").results
    pd.testing.assert_frame_equal(csv, journal[list(csv)], check_dtype=False)
    assert set(csv) == set(journal)


def test_trials(three_trials: Writer) -> None:
    experiment = load_experiment("exp")
    trials = experiment.trials
    assert [(t.status, t.end_reason, t.runs, t.num_results, t.seed) for t in trials.values()] == [
        (Status.completed, None, 2, 3, 100),
        (Status.stopped, None, 1, 2, 101),
        (Status.failed, "exit 1", 1, 1, 102),
    ]
    assert trials[1].config == {"lr": 0.25, "act": "tanh"}
    assert (trials[2].start_time, trials[2].end_time, trials[0].milestone) == (5.0, 6.0, 3)
    assert pd.DataFrame(list(trials.values()))["runs"].tolist() == [2, 1, 1]
    assert experiment.end_reason == "max_num_trials_finished=3 is reached"


def test_best_is_finite(three_trials: Writer) -> None:
    experiment = load_experiment("exp")
    assert experiment.best_config() == {
        "trial_id": 0,
        "epoch": 2,
        "accuracy": 0.75,
        "loss": 0.5,
        "config_lr": 0.5,
        "config_act": "relu",
    }
    assert experiment.best_config("loss")["loss"] == experiment.best_config(1)["loss"] == 0.25
    assert (experiment.best_value, experiment.best_trial_id) == (0.75, 0)
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        experiment.best_config("acuracy")


def test_metadata(three_trials: Writer) -> None:
    experiment = load_experiment("exp")
    assert experiment.metadata == METADATA
    assert experiment.metric_names() == ["accuracy", "loss"]
    assert experiment.metric_mode() == ["max", "min"]
    assert experiment.entrypoint_name() == "train"
    assert experiment.creation_date() == datetime.fromtimestamp(1_760_000_000.5)
    (three_trials.folder / "metadata.json").unlink()
    assert load_experiment("exp").metadata == METADATA, "the journal has them too"


def test_text(three_trials: Writer) -> None:
    assert str(load_experiment("exp")) == (
        "Experiment exp: 6 reports of 3 trials (1 Completed, 1 Stopped, 1 Failed); best accuracy 0.75 in trial 0\n"
        f"{three_trials.folder}"
    )


def test_extra_columns_are_joined(write: Write) -> None:
    w = write()
    w.start(0, lr=0.5)
    w.report(0, epoch=1, accuracy=0.5, extra={"n": 1})
    w.report(0, epoch=2, accuracy=0.5)
    w.report(0, epoch=3, accuracy=0.75, extra={"n": 3, "value": math.inf})
    experiment = load_experiment("exp")
    assert experiment.results["n"].dropna().to_dict() == {0: 1, 2: 3}
    assert experiment.results["value"].dropna().to_dict() == {2: math.inf}
    assert experiment.best_config()["n"] == 3


def test_a_report_that_counts_as_its_milestones(write: Write) -> None:
    w = write()
    w.start(0, lr=0.5)
    w.report(0, epoch=4, accuracy=0.5, resource=3)
    assert load_experiment("exp").results["epoch"].tolist() == [3]


def test_a_journal_that_still_grows(write: Write) -> None:
    w = write()
    experiment = load_experiment("exp")
    assert experiment.results.empty
    assert experiment.best_config() == {}
    assert experiment.best_value is experiment.best_trial_id is experiment.best_checkpoint is None
    assert experiment.trials == {}
    assert str(experiment).startswith("Experiment exp: 0 reports of 0 trials\n")
    w.start(0, lr=0.5)
    w.report(0, epoch=1, accuracy=0.5)
    w.report(0, None, epoch=2, accuracy=0.9)
    with open(w.folder / "journal.jsonl", "a") as file:
        file.write('{"type":"report","trial_id":0,"ru')
    again = load_experiment("exp")
    assert again.results["epoch"].tolist() == [1], "a report without an answer is not there yet"
    assert again.trials[0].status == Status.in_progress


def test_damage_in_the_middle_shows_what_is_before_and_names_the_line(
    three_trials: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_experiment("exp").results
    lines = (three_trials.folder / "journal.jsonl").read_text().splitlines()
    lines[4] = lines[4][:10]
    (three_trials.folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    shown = load_experiment("exp").results
    assert 0 <= len(shown) < len(whole)
    assert "line 5 is damaged" in caplog.text


@pytest.mark.parametrize("zipped", [True, False])
def test_without_a_journal_the_table_is_taken(three_trials: Writer, zipped: bool) -> None:
    full = load_experiment("exp")
    name = "results.csv.zip" if zipped else "results.csv"
    full.results.to_csv(three_trials.folder / name, index=False)
    best = full.best_config()
    (three_trials.folder / "journal.jsonl").unlink()
    experiment = load_experiment("exp")
    pd.testing.assert_frame_equal(experiment.results[list(full.results)], full.results, check_dtype=False)
    assert experiment.best_config() == best
    assert experiment.trials[1].status == Status.stopped
    assert [e.name for e in list_experiments()] == ["exp"]


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    experiment = ExperimentResult("x", tmp_path, None)
    assert experiment.results.empty
    assert (experiment.metadata, experiment.metric_names(), experiment.best_config()) == ({}, [], {})
    assert experiment.creation_date() is experiment.entrypoint_name() is experiment.end_reason is None


# ---- checkpoints -------------------------------------------------------------------------------------


def test_checkpoint_of_a_plain_script(three_trials: Writer) -> None:
    folder = three_trials.folder / "trials" / "0" / "checkpoints"
    assert load_experiment("exp").best_checkpoint is None
    folder.mkdir(parents=True)
    assert load_experiment("exp").best_checkpoint is None
    for age, name in enumerate(["model.pt.tmp", ".hidden", "model.pt.previous", "model.pt", "sub/older.pt", "old.pt"]):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert load_experiment("exp").best_checkpoint == folder / "model.pt"
    (folder / "model.pt").unlink()
    assert load_experiment("exp").best_checkpoint == folder / "sub" / "older.pt"


def test_checkpoint_that_was_marked_as_best(three_trials: Writer) -> None:
    folder = three_trials.folder / "trials" / "0" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("1.pt", "2.pt", "3.pt"):
        (folder / name).write_text(name)
    marked = [CheckpointInfo(folder / f"{i}.pt", i, trial_id=0, best=i == 2, size=4) for i in (1, 2, 3)]
    write_index(folder, marked)
    assert load_experiment("exp").best_checkpoint == folder / "2.pt"
    (folder / "index.json").write_text("the script's own")
    os.utime(folder / "1.pt", (3e9, 3e9))
    with pytest.warns(RuntimeWarning, match="is no list of checkpoints"):
        assert load_experiment("exp").best_checkpoint == folder / "1.pt"


# ---- figures -----------------------------------------------------------------------------------------


def test_figures(three_trials: Writer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    experiment = load_experiment("exp")
    experiment.plot(figure_path=tmp_path / "figures" / "best.png", color="green")
    experiment.plot("loss", figure_path=str(tmp_path / "loss.png"))
    experiment.plot_trials_over_time(figure_path=tmp_path / "trials.png", figsize=(4.0, 3.0))
    experiment.plot_trials_over_time("loss", figure_path=tmp_path / "trials.svg")
    for name in ("figures/best.png", "loss.png", "trials.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    svg = (tmp_path / "trials.svg").read_text()
    assert "stopped" not in svg, "the stopped trial's last loss is not finite"
    with pytest.raises(ValueError, match="accuracy"):
        experiment.plot("nothing", figure_path=tmp_path / "x.png")


def test_marks_of_stopped_and_paused_trials(three_trials: Writer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    w = three_trials
    w.start(3, lr=0.1)
    w.report(3, "PAUSE", epoch=1, accuracy=0.125)
    w.end(3, "Paused")
    with mpl.rc_context({"svg.fonttype": "none"}):
        load_experiment("exp").plot_trials_over_time(figure_path=tmp_path / "trials.svg")
    svg = (tmp_path / "trials.svg").read_text()
    assert ">stopped<" in svg
    assert ">paused<" in svg


def test_trials_on_axes_of_ones_own(three_trials: Writer, tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    left, right = figure.subplots(1, 2)
    experiment = load_experiment("exp")
    experiment.plot_trials_over_time("loss", ax=right)
    assert right.get_ylabel() == "loss"
    assert right.has_data()
    assert not left.has_data()
    with pytest.raises(ValueError, match="ax draws on a figure of yours"):
        experiment.plot_trials_over_time(ax=left, figure_path=tmp_path / "x.png")


def test_figures_of_an_experiment_without_reports(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write()
    experiment = load_experiment("exp")
    experiment.plot(figure_path=tmp_path / "a.png")
    experiment.plot_trials_over_time(figure_path=tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(PNG)


# ---- finding experiments -----------------------------------------------------------------------------


def stamp(second: int) -> str:
    return datetime(2026, 1, 2, 3, 4, second).strftime(ST_DATETIME_FORMAT) + "-007"


def test_finding_by_name(write: Write, experiment_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for second in (10, 30, 20):
        write(f"train-net-{stamp(second)}")
    write(f"train-net-large-{stamp(50)}")
    base = "a" * 50
    write(f"{base[:39]}-{stamp(1)}")
    assert load_experiment(f"train-net-{stamp(20)}").name == f"train-net-{stamp(20)}"
    assert load_experiment("train-net").name == f"train-net-{stamp(30)}"
    assert load_experiment("train_net").name == f"train-net-{stamp(30)}"
    assert load_experiment("train-net-large").name == f"train-net-large-{stamp(50)}"
    assert load_experiment(base).name == f"{base[:39]}-{stamp(1)}"
    folder = experiment_folder / f"train-net-{stamp(10)}"
    assert load_experiment(folder).path == folder
    assert load_experiment(str(folder)).name == folder.name
    monkeypatch.chdir(experiment_folder.parent)
    assert load_experiment(f"{experiment_folder.name}/train-net-large").name == f"train-net-large-{stamp(50)}"
    monkeypatch.setenv("STHYPER_FOLDER", "elsewhere")
    assert load_experiment("train-net", local_path=experiment_folder).name == f"train-net-{stamp(30)}"


def test_missing_experiments_are_named_with_the_closest(write: Write, experiment_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'train-nat'.*it holds 0 experiments"):
        load_experiment("train-nat")
    write(f"train-net-{stamp(10)}")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'train-net'"):
        load_experiment("train-nat")
    with pytest.raises(ValueError, match="empty"):
        load_experiment("")


def test_lists(write: Write, experiment_folder: Path) -> None:
    for name, created in (("old", 1.0), ("group/new", 3.0), ("middle", 2.0), ("empty", 4.0)):
        w = write(name, st_tuner_creation_timestamp=created)
        if name != "empty":
            w.start(0, lr=0.5)
            w.report(0, epoch=1, accuracy=created)
    for name, text in (("broken", "{"), ("other", "[1]"), ("foreign", "{}")):
        (experiment_folder / name).mkdir()
        (experiment_folder / name / "metadata.json").write_text(text)
    metadata = get_metadata()
    assert set(metadata) == {"old", "new", "middle", "empty"}
    assert metadata["new"] == {
        **METADATA,
        "st_tuner_creation_timestamp": 3.0,
        "path": str(experiment_folder / "group" / "new"),
    }
    assert [e.name for e in list_experiments()] == ["new", "middle", "old"]
    assert [e.best_value for e in list_experiments()] == [3.0, 2.0, 1.0]
    assert [e.name for e in list_experiments(path_filter=lambda path: "group" not in path)] == ["middle", "old"]
    assert [e.name for e in list_experiments(experiment_filter=lambda e: (e.best_value or 0) < 2)] == ["old"]
    assert [e.name for e in list_experiments(root=experiment_folder / "group")] == ["new"]
    assert get_metadata(root=experiment_folder / "nowhere") == {}
    twin = write("zoo/new", st_tuner_creation_timestamp=5.0)
    twin.start(0, lr=0.5)
    twin.report(0, epoch=1, accuracy=0.5)
    assert set(get_metadata()) == {"old", "new", "zoo/new", "middle", "empty"}
    assert [e.name for e in list_experiments()] == ["new", "new", "middle", "old"]


def test_loading_is_lazy(three_trials: Writer) -> None:
    code = """
import sys
from sthyper.experiment import load_experiment
experiment = load_experiment("exp")
experiment.best_config(), experiment.trials, str(experiment)
print([m for m in ("torch", "pandas", "numpy", "matplotlib", "rich") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
