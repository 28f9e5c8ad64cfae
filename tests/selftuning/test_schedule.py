from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sthyper.config_space import loguniform, randint, uniform
from sthyper.errors import MissingExtra
from sthyper.selftuning import Hyperparameters
from sthyper.selftuning._schedule_plots import animate_schedules, plot_schedules
from sthyper.selftuning.controls import Replay
from sthyper.selftuning.schedule import Schedule


def make_hyperparameters(**options: Any) -> Hyperparameters:
    space = {"dropout": uniform(0.0, 0.9), "decay": loguniform(1e-6, 1e-2), "holes": randint(0, 4)}
    return Hyperparameters(space, start={"dropout": 0.45, "decay": 1e-4, "holes": 2}, **options)


def make_schedule(n: int = 20) -> Schedule:
    """A row every second step, five steps an epoch, with a row at the end of each epoch."""
    schedule = Schedule()
    schedule.record({"a": 0.0, "b": 100.0}, step=0, epoch=0, time=0.0, kind="epoch")
    for step in range(1, n + 1):
        if step % 2 == 0:
            schedule.record({"a": float(step), "b": 100.0 - step}, step=step, epoch=1 + (step - 1) // 5, time=step)
        if step % 5 == 0:
            values = {"a": float(step), "b": 100.0 - step}
            losses = {"train_loss": 1 / step, "val_loss": 2 / step}
            schedule.record(values, step=step, epoch=step // 5, time=step, kind="epoch", **losses)
    return schedule


def table_of(schedule: Schedule) -> torch.Tensor:
    return torch.nan_to_num(schedule.state_dict()["rows"], nan=-1.5, posinf=-2.5, neginf=-3.5)


# ---- recording -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_map", ["softplus", "exp"])
def test_values_and_scales_are_those_of_the_hyperparameters_at_that_moment(scale_map: Any) -> None:
    from dataclasses import replace

    plain = make_hyperparameters(scale=0.7)
    h = Hyperparameters([replace(plain.declaration(name), scale_map=scale_map) for name in plain.names])
    schedule = Schedule()
    values, scales = [], []
    for step in range(1500):  # more than one block of pending rows
        with torch.no_grad():
            h.raw.add_(0.001)
            h.raw_scale.sub_(0.0005)
        schedule.record(h, step=step, epoch=1)
        values.append(h.values())
        scales.append(h.scales())
    assert len(schedule) == 1500
    for name in h.names:
        torch.testing.assert_close(schedule.values(name), torch.tensor([v[name] for v in values]).double())
        torch.testing.assert_close(
            schedule.scales(name), torch.tensor([v[name] for v in scales]).double(), rtol=1e-5, atol=0
        )
    assert schedule.final() == pytest.approx(h.values())


def test_rows_hold_losses_and_hypergradients_of_tensors_and_floats() -> None:
    h = make_hyperparameters()
    schedule = Schedule()
    loss = torch.tensor([0.5], requires_grad=True)
    schedule.record(h, step=1, epoch=1, train_loss=loss, val_loss=0.25, hypergradients={"decay": torch.tensor(3.0)})
    with torch.no_grad():
        loss.fill_(9.0)  # after that the recorded one must not change
    schedule.record(h, step=2, epoch=1, train_loss=1, hypergradients={"dropout": 2.0})
    assert schedule.column("train_loss").tolist() == [0.5, 1.0]
    assert schedule.column("val_loss").tolist() == pytest.approx([0.25, math.nan], nan_ok=True)
    assert schedule.hypergradients("decay").tolist() == pytest.approx([3.0, math.nan], nan_ok=True)
    assert schedule.hypergradients("dropout").tolist() == pytest.approx([math.nan, 2.0], nan_ok=True)


def test_values_by_name_with_scales_and_in_another_order() -> None:
    schedule = Schedule(["b", "a"])
    schedule.record({"a": 1.0, "b": 2.0}, step=0, epoch=0, scales={"a": 0.1, "b": 0.2})
    assert schedule.final() == {"b": 2.0, "a": 1.0}
    assert list(schedule.final()) == ["b", "a"]
    assert schedule.scales("b").item() == 0.2
    h = make_hyperparameters()
    schedule = Schedule(["holes", "dropout", "decay"])
    schedule.record(h, epoch=1)
    assert schedule.final() == pytest.approx(h.values())
    assert schedule.scales("dropout").item() == pytest.approx(1.0)


def test_rows_of_values_and_of_hyperparameters_may_be_mixed() -> None:
    h = make_hyperparameters()
    schedule = Schedule()
    schedule.record({"dropout": 0.1, "decay": 1e-3, "holes": 1.0}, step=0, epoch=0)
    schedule.record(h, step=1, epoch=0)
    schedule.record({"dropout": 0.2, "decay": 1e-3, "holes": 1.0}, step=2, epoch=0)
    assert schedule.values("dropout").tolist() == pytest.approx([0.1, 0.45, 0.2])
    assert schedule.scales("dropout").tolist() == pytest.approx([math.nan, 1.0, math.nan], nan_ok=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recording_does_not_wait_for_the_gpu() -> None:
    h = make_hyperparameters(device="cuda")
    schedule = Schedule()
    loss = torch.tensor(0.5, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(5):
            schedule.record(h, step=step, epoch=1, val_loss=loss, hypergradients={"decay": loss})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    schedule.record(h, step=5, epoch=1, val_loss=torch.tensor(0.25), kind="epoch")
    assert schedule.column("val_loss").tolist() == [0.5] * 5 + [0.25]
    assert schedule.final() == pytest.approx(h.values())
    assert schedule.hypergradients("decay")[0] == 0.5
    other = make_hyperparameters(device="cuda")
    other.set_values({"dropout": 0.1})
    Replay(schedule, other).set(3)
    assert other.values() == pytest.approx(h.values())


def test_the_clock_goes_on_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    from sthyper.selftuning import schedule as module

    now = [100.0]
    monkeypatch.setattr(module.clock, "monotonic", lambda: now[0])
    first = Schedule()
    now[0] += 5
    first.record({"a": 1.0}, step=1, epoch=1)
    now[0] += 2
    state = first.state_dict()
    now[0] += 1000  # the pause
    second = Schedule()
    second.load_state_dict(state)
    now[0] += 3
    second.record({"a": 1.0}, step=2, epoch=1)
    second.record({"a": 1.0}, step=3, epoch=1, time=77.0)
    assert second.column("time").tolist() == [5.0, 10.0, 77.0]


def test_going_back_is_refused() -> None:
    schedule = make_schedule(10)
    with pytest.raises(ValueError, match="step must be at least 10"):
        schedule.record({"a": 1.0, "b": 2.0}, step=9, epoch=2)
    with pytest.raises(ValueError, match="epoch must be at least 2"):
        schedule.record({"a": 1.0, "b": 2.0}, step=11, epoch=1)
    with pytest.raises(ValueError, match="epoch must be a number"):
        schedule.record({"a": 1.0, "b": 2.0}, step=11, epoch=math.nan)
    n = len(schedule)
    schedule.record({"a": 1.0, "b": 2.0}, epoch=3)  # an unknown step does not forget the last one
    with pytest.raises(ValueError, match="step must be at least 10"):
        schedule.record({"a": 1.0, "b": 2.0}, step=9, epoch=3)
    assert len(schedule) == n + 1


def test_wrong_rows() -> None:
    schedule = make_schedule(2)
    with pytest.raises(ValueError, match=r"'aa' is not in the schedule \(did you mean 'a'\?\)"):
        schedule.record({"aa": 1.0, "b": 1.0}, epoch=1)
    with pytest.raises(ValueError, match=r"missing are \['b'\]"):
        schedule.record({"a": 1.0}, epoch=1)
    with pytest.raises(ValueError, match="kind must be 'step' or 'epoch', got 'epochs'.*'epoch'"):
        schedule.record({"a": 1.0, "b": 1.0}, epoch=1, kind="epochs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hypergradients: there is no hyperparameter 'c'"):
        schedule.record({"a": 1.0, "b": 1.0}, epoch=1, hypergradients={"c": 1.0})
    with pytest.raises(TypeError, match="hyperparameters must be"):
        schedule.record([1.0], epoch=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales are those of the hyperparameters"):
        Schedule().record(make_hyperparameters(), epoch=1, scales={"dropout": 1.0})
    with pytest.raises(ValueError, match="called 'time'"):
        Schedule(["time"])
    with pytest.raises(ValueError, match="two hyperparameters of the name 'a'"):
        Schedule(["a", "a"])
    with pytest.raises(ValueError, match="'a_scale' has the name of a column"):
        Schedule().record({"a": 1.0, "a_scale": 1.0}, epoch=0)


# ---- reading -------------------------------------------------------------------------------------------------


def test_at_holds_the_last_value() -> None:
    schedule = make_schedule(10)
    assert [schedule.at(step)["a"] for step in (0, 1, 2, 3, 9, 10, 99)] == [0, 0, 2, 2, 8, 10, 10]
    assert schedule.at(4)["b"] == 96
    late = Schedule()
    late.record({"a": 5.0}, step=10, epoch=1)
    assert late.at(0) == {"a": 5.0}
    assert schedule.at_epoch(1) == {"a": 5.0, "b": 95.0}
    assert [schedule.at_epoch(e)["a"] for e in (-1, 0, 1.5, 2, 9)] == [0, 0, 5, 10, 10]
    # What is recorded later counts.
    schedule.record({"a": 50.0, "b": 0.0}, step=12, epoch=3)
    assert schedule.at(12)["a"] == 50


def test_without_rows_by_epoch_the_last_one_of_each_counts() -> None:
    schedule = Schedule()
    for step in range(6):
        schedule.record({"a": float(step)}, step=step, epoch=1 + step // 3)
    assert [schedule.at_epoch(e)["a"] for e in (1, 2)] == [2, 5]


def test_mean_of_last() -> None:
    schedule = make_schedule(40)  # twenty rows by step: 2, 4, ... 40
    assert schedule.mean_of_last() == {"a": 39.0, "b": 61.0}
    assert schedule.mean_of_last(0.25)["a"] == 36.0
    assert schedule.mean_of_last(0.01)["a"] == 40.0
    by_epoch = Schedule()
    for epoch in range(1, 11):
        by_epoch.record({"a": float(epoch)}, epoch=epoch, kind="epoch")
    assert by_epoch.mean_of_last(0.2) == {"a": 9.5}
    with pytest.raises(ValueError, match="part must be larger than 0"):
        schedule.mean_of_last(0.0)


def test_rows_by_kind_and_lengths() -> None:
    schedule = make_schedule(10)
    assert schedule.values("a", "epoch").tolist() == [0, 5, 10]
    assert schedule.values("a", "step").tolist() == [2, 4, 6, 8, 10]
    assert schedule.column("step").tolist() == [0, 2, 4, 5, 6, 8, 10, 10]
    assert (len(schedule), schedule.n_steps, schedule.n_epochs) == (8, 10, 2)
    assert (Schedule().n_steps, Schedule().n_epochs, len(Schedule()), bool(Schedule())) == (0, 0, 0, False)
    with pytest.raises(ValueError, match="kind must be 'step', 'epoch' or None"):
        schedule.values("a", "stepp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name must be one of.*'val_loss'"):
        schedule.column("val_los")
    for read in (schedule.values, schedule.scales, schedule.hypergradients):
        with pytest.raises(KeyError, match="no hyperparameter 'A'.*did you mean 'a'"):
            read("A")


def test_an_empty_schedule_says_so() -> None:
    for read in (Schedule().final, Schedule().mean_of_last, lambda: Schedule().at(0), lambda: Schedule().at_epoch(1)):
        with pytest.raises(ValueError, match="empty"):
            read()
    by_epoch = Schedule()
    by_epoch.record({"a": 1.0}, epoch=1)
    with pytest.raises(ValueError, match="no steps"):
        by_epoch.at(0)


# ---- state and files -----------------------------------------------------------------------------------------


def test_state_survives_a_file_and_appending_goes_on(tmp_path: Path) -> None:
    h = make_hyperparameters()
    whole, first = Schedule(), Schedule()
    for step in range(3):
        for schedule in (whole, first):
            schedule.record(h, step=step, epoch=0, time=step, train_loss=0.1 * step)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first.record(h, step=9, epoch=5)  # lost in the crash
    second = Schedule(h.names)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        h.raw.add_(1.0)
    for schedule in (whole, second):
        schedule.record(h, step=3, epoch=1, time=3)
    assert torch.equal(table_of(whole), table_of(second))
    with pytest.raises(ValueError, match="step must be at least 3"):
        second.record(h, step=2, epoch=1)
    assert second.names == h.names


def test_a_state_before_the_first_row() -> None:
    schedule = Schedule(["a", "b"])
    schedule.load_state_dict(Schedule().state_dict())
    schedule.record({"a": 1.0, "b": 2.0}, epoch=0)
    assert schedule.final() == {"a": 1.0, "b": 2.0}


def test_states_of_others_are_refused() -> None:
    state = make_schedule().state_dict()
    with pytest.raises(ValueError, match=r"that of hyperparameters \['a', 'b'\]"):
        Schedule(["x"]).load_state_dict(state)
    with pytest.raises(ValueError, match="version 7"):
        Schedule().load_state_dict({**state, "version": 7})
    with pytest.raises(ValueError, match="do not fit"):
        Schedule().load_state_dict({**state, "names": ["a"]})


def test_csv_by_epoch_has_the_columns_of_the_paper(tmp_path: Path) -> None:
    path = tmp_path / "new" / "epoch.csv"
    make_schedule(10).to_csv(path)
    with path.open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["epoch", "time", "train_loss", "val_loss", "a", "b"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "2"]
    assert [float(cell) for cell in lines[2][2:]] == [0.2, 0.4, 5.0, 95.0]
    assert [path.name] == [p.name for p in path.parent.iterdir()]  # no temporary file is left
    h = make_hyperparameters()
    schedule = Schedule()
    schedule.record(h, step=1, epoch=1, hypergradients={"dropout": 1.0}, kind="epoch")
    schedule.to_csv(path)
    scales = [f"{name}_scale" for name in h.names]
    assert path.read_text().splitlines()[0].split(",")[4:] == [*h.names, *scales]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_all_rows_come_back_from_a_file(form: str, tmp_path: Path) -> None:
    h = make_hyperparameters()
    schedule = Schedule()
    schedule.record(h, step=0, epoch=0, kind="epoch")
    schedule.record(h, epoch=0.5, train_loss=math.inf, val_loss=-math.inf, hypergradients={"decay": math.nan})
    schedule.record(h, step=7, epoch=1, train_loss=1 / 3, hypergradients={"decay": 1e-30, "holes": math.inf})
    path = tmp_path / f"schedule.{form}"
    if form == "csv":
        schedule.to_csv(path, rows="all")
        read = Schedule.from_csv(path)
    else:
        schedule.to_json(path)
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        read = Schedule.from_json(path)
    assert read.names == schedule.names
    assert torch.equal(table_of(read), table_of(schedule))
    read.record(h, step=8, epoch=1)
    with pytest.raises(ValueError, match="step must be at least 8"):
        read.record(h, step=7, epoch=1)


def test_a_csv_by_epoch_comes_back_without_steps(tmp_path: Path) -> None:
    schedule = make_schedule(10)
    schedule.to_csv(tmp_path / "epoch.csv")
    read = Schedule.from_csv(tmp_path / "epoch.csv")
    assert [read.at_epoch(e) for e in (0, 1, 2)] == [schedule.at_epoch(e) for e in (0, 1, 2)]
    assert read.column("val_loss").tolist() == pytest.approx([math.nan, 0.4, 0.2], nan_ok=True)
    with pytest.raises(ValueError, match="no steps"):
        read.at(1)


def test_a_schedule_of_the_original_code_loads(tmp_path: Path) -> None:
    path = tmp_path / "epoch.csv"
    path.write_text(
        "epoch,time,train_loss,val_loss,train_ppl,val_ppl,dropouto,alpha,dropouto_scale\r\n"
        "1,30.5,6.1,5.9,445.8,365.0,0.05,0.01,0.5\r\n"
        "2,61.25,5.5,5.4,244.6,221.4,0.31,0.02,0.4\r\n"
    )
    schedule = Schedule.from_csv(path)
    assert schedule.names == ["dropouto", "alpha"]
    assert schedule.at_epoch(2) == {"dropouto": 0.31, "alpha": 0.02}
    assert schedule.scales("dropouto").tolist() == [0.5, 0.4]
    assert schedule.column("time").tolist() == [30.5, 61.25]
    assert Schedule.from_csv(path, names=["alpha"]).names == ["alpha"]
    with pytest.raises(ValueError, match=r"no column 'alpa' \(did you mean 'alpha'\?\)"):
        Schedule.from_csv(path, names=["alpa"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("epoc,a\n1,2\n", "no column 'epoch'.*did you mean 'epoc'"),
        ("epoch,a\n1,x\n", "line 2, column 'a': 'x' is no number"),
        ("epoch,a\n1,2,3\n", "line 2: 2 cells expected, found 3"),
        ("epoch,a\n2,1\n1,1\n", "epoch must be at least 2"),
        ("epoch,a\n,1\n", "epoch must be a number"),
        ("epoch,a,a\n1,1,1\n", "two columns of one name"),
        ("epoch,kind,a\n1,weekly,1\n", "kind must be 'step' or 'epoch', got 'weekly'"),
    ],
)
def test_wrong_csv(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Schedule.from_csv(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no schedule"),
        ('{"version": 9, "names": [], "columns": {}}', "version 9"),
        ('{"version": 1, "names": [], "columns": []}', "'columns' an object"),
        ('{"version": 1, "names": ["a"], "columns": {"epoch": [1]}}', "no column 'a'"),
        ('{"version": 1, "names": ["a"], "columns": {"epoch": [1], "a": [1, 2]}}', "column 'a' must have 1 rows"),
        ('{"version": 1, "names": ["a"], "columns": {"epoch": [1], "a": [null]}}', "column 'a' must hold numbers"),
    ],
)
def test_wrong_json(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Schedule.from_json(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "schedule.json"
    make_schedule(2).to_json(path)
    before = path.read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sthyper.selftuning._schedule_files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make_schedule(10).to_json(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["schedule.json"]


def test_rows_of_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must be 'epoch' or 'all'"):
        make_schedule().to_csv(tmp_path / "a.csv", rows="step")  # type: ignore[arg-type]


# ---- figures -------------------------------------------------------------------------------------------------


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("x", ["step", "epoch", "time"])
def test_plot(x: str, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "schedule.png"
    make_schedule(10).plot(path, x=x)
    assert is_png(path)


def panels(runs: Any, **options: Any) -> dict[str, Any]:
    """Draw, and return the axes by their label."""
    from sthyper.selftuning import _schedule_plots as module

    chosen = {"names": None, "x": "epoch", "scales": True, "losses": True, **options}
    labelled = module._labelled(runs)
    figure = module._figure()
    module._draw(figure, module._panels(labelled, **chosen), chosen["x"], None, len(labelled))
    return {axes.get_ylabel(): axes for axes in figure.axes}


def test_what_a_figure_shows() -> None:
    h = make_hyperparameters()
    schedule = Schedule()
    for step in range(4):
        schedule.record(h, step=step, epoch=step, val_loss=1.0 / (1 + step), kind="epoch")
        with torch.no_grad():
            h.raw.sub_(1.0)
    shown = panels(schedule)
    assert list(shown) == ["dropout", "decay", "holes", "scale", "loss"]
    assert list(shown["dropout"].lines[0].get_ydata()) == schedule.values("dropout").tolist()
    assert len(shown["scale"].lines) == 3
    assert [line.get_label() for line in shown["loss"].lines] == ["validation"]
    assert shown["decay"].get_yscale() == "log"  # values far apart
    assert shown["loss"].get_yscale() == "linear"
    assert list(panels(schedule, scales=False, losses=False, names=["holes"])) == ["holes"]
    assert list(panels(schedule, x="step")["holes"].lines[0].get_xdata()) == [0, 1, 2, 3]


def test_several_runs_in_one_figure(tmp_path: Path) -> None:
    runs = {f"from {start}": make_schedule(start) for start in (6, 10)}
    shown = panels(runs)
    assert [line.get_label() for line in shown["a"].lines] == ["from 6", "from 10"]
    assert [len(line.get_xdata()) for line in shown["a"].lines] == [len(run) for run in runs.values()]
    assert [text.get_text() for text in shown["a"].get_legend().get_texts()] == ["from 6", "from 10"]
    plot_schedules(list(runs.values()), tmp_path / "runs.png", title="two")
    assert is_png(tmp_path / "runs.png")


def test_without_a_path_the_figure_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    shown: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    plot_schedules({"one": make_schedule(5)}, title="schedules")
    try:
        assert shown[0].get_suptitle() == "schedules"
        assert [axes.get_ylabel() for axes in shown[0].axes] == ["a", "b", "loss"]
    finally:
        plt.close("all")


def test_gif(tmp_path: Path) -> None:
    from PIL import Image

    schedule = make_schedule(10)
    path = schedule.animate(tmp_path / "schedule.gif", x="step", frames=4, fps=5)
    with Image.open(path) as image:
        assert (image.format, getattr(image, "n_frames", 1), image.info["duration"]) == ("GIF", 4, 200)
        first = image.convert("RGB").tobytes()
        image.seek(3)
        assert image.convert("RGB").tobytes() != first


def test_mp4_without_ffmpeg_becomes_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.animation import FFMpegWriter

    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.warns(RuntimeWarning, match=r"ffmpeg was not found: .*runs\.gif is written instead"):
        path = animate_schedules([make_schedule(4)], tmp_path / "runs.mp4", frames=2)
    assert path == tmp_path / "runs.gif"
    assert path.read_bytes().startswith(b"GIF8")


def test_mp4_with_ffmpeg(tmp_path: Path) -> None:
    from matplotlib.animation import FFMpegWriter

    if not FFMpegWriter.isAvailable():
        pytest.skip("ffmpeg is not installed")
    path = animate_schedules([make_schedule(4)], tmp_path / "runs.mp4", frames=2)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_wrong_figures(tmp_path: Path) -> None:
    schedule = make_schedule(4)
    with pytest.raises(ValueError, match=r"x must be one of .* got 'epochs' \(did you mean 'epoch'\?\)"):
        schedule.plot(tmp_path / "a.png", x="epochs")
    with pytest.raises(ValueError, match="no hyperparameter 'c'"):
        schedule.plot(tmp_path / "a.png", names=["c"])
    with pytest.raises(ValueError, match="empty"):
        Schedule().plot(tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one schedule"):
        plot_schedules([], tmp_path / "a.png")
    with pytest.raises(TypeError, match="must be Schedule objects"):
        plot_schedules([3], tmp_path / "a.png")  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"must end in \.gif or \.mp4"):
        schedule.animate(tmp_path / "a.avi")
    with pytest.raises(ValueError, match="fps must be at least 1"):
        schedule.animate(tmp_path / "a.gif", fps=0)
    by_epoch = Schedule()
    by_epoch.record({"a": 1.0}, epoch=1)
    with pytest.raises(ValueError, match="knows no step"):
        by_epoch.plot(tmp_path / "a.png", x="step")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    schedule = make_schedule(4)
    for draw in (
        lambda: schedule.plot(tmp_path / "a.png"),
        lambda: schedule.plot(),
        lambda: schedule.animate(tmp_path / "a.gif"),
    ):
        with pytest.raises(MissingExtra, match=r"sthyper\[visual\]"):
            draw()
