from __future__ import annotations

import io
import os
import pty
import re
import select
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sthyper.progress import ProgressPrinter
from sthyper.trial import Status, Trial
from sthyper.tuning_status import TuningStatus


def make_trial(trial_id: int, **config: Any) -> Trial:
    return Trial(trial_id, config, datetime(2026, 1, 1))


class Screen:
    """A printer on a text stream, with a clock that is set by hand."""

    def __init__(self, **kwargs: Any) -> None:
        self.stream = io.StringIO()
        self.now = 12.3
        arguments = {"print_update_interval": 30.0, "metric_names": ["accuracy"], "mode": "max", **kwargs}
        self.printer = ProgressPrinter(stream=self.stream, clock=lambda: self.now, **arguments)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STHYPER_QUIET", raising=False)


def test_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    screen = Screen(resource_attr="epoch")
    trial = make_trial(4, lr=0.0123456, width=64)
    result = {"epoch": 3, "accuracy": 0.91325, "loss": 1.0}
    screen.printer.message("loading lightning once for all trials ...")
    screen.printer.trial_started(trial, 3)
    screen.printer.trial_paused(trial, result)
    screen.printer.trial_resumed(trial, 9)
    screen.printer.trial_ended(trial, Status.completed, None, result, tmp_path / "exp" / "std.out")
    screen.printer.trial_ended(trial, Status.failed, "exit 1", {}, tmp_path / "exp" / "std.err")
    config = "lr=0.01235 width=64"
    assert screen.lines == [
        "[   12.3s] loading lightning once for all trials ...",
        f"[   12.3s] trial 4 started, next decision at epoch 3   {config}",
        f"[   12.3s] trial 4 paused at epoch 3   accuracy 0.9133   {config}",
        f"[   12.3s] trial 4 resumed, next decision at epoch 9   {config}",
        f"[   12.3s] trial 4 completed at epoch 3   accuracy 0.9133   {config}   ~/exp/std.out",
        f"[   12.3s] trial 4 failed: exit 1   {config}   ~/exp/std.err",
    ]


def test_without_resource_and_with_chosen_hyperparameters() -> None:
    screen = Screen(hyperparameters=["lr"])
    trial = make_trial(0, lr=0.5, data="/very/long/path")
    screen.printer.trial_started(trial)
    screen.printer.trial_paused(trial, {"epoch": 3, "accuracy": 0.5})
    assert screen.lines == ["[   12.3s] trial 0 started   lr=0.5", "[   12.3s] trial 0 paused   accuracy 0.5   lr=0.5"]


def test_long_configurations_and_reasons_stay_on_a_line() -> None:
    screen = Screen()
    trial = make_trial(0, **{f"hyperparameter_{i}": i for i in range(50)})
    screen.printer.trial_ended(trial, Status.failed, "bad report:\n  several\n  lines", {}, None)
    (line,) = screen.lines
    assert "failed: bad report: several lines" in line
    assert line.endswith("…")
    assert len(line) < 200


def test_table_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen()
    status = TuningStatus(["accuracy"], clock=lambda: screen.now)
    status.add_trial(make_trial(0, lr=0.5, optimizer="a name that is much longer than a terminal is wide" * 2))
    status.add_result(0, {"epoch": 1, "accuracy": 0.75})
    screen.printer.maybe_table(status)
    assert screen.lines == []
    screen.now += 30.0
    screen.printer.maybe_table(status)
    screen.printer.maybe_table(status)
    lines = screen.lines
    assert len(lines) == 3
    assert all(len(line) == 60 and line.endswith("…") for line in lines[:2])
    assert lines[2].endswith("42.30s wallclock-time, best accuracy 0.75 (trial 0)")
    screen.now += 29.0
    screen.printer.maybe_table(status)
    assert len(screen.lines) == 3


def test_finish_shows_the_best() -> None:
    screen = Screen(metric_names=["loss", "cost"], mode=["min", "max"])
    status = TuningStatus(["loss", "cost"], clock=lambda: 1.0)
    screen.printer.finish(status)
    for trial_id, loss in enumerate([0.5, float("-inf"), 0.25]):
        status.add_trial(make_trial(trial_id, lr=trial_id))
        status.add_result(trial_id, {"loss": loss})
        status.set_status(trial_id, Status.completed)
    screen.printer.finish(status)
    assert screen.lines == [
        "[   12.3s] 0 trials running, 0 finished, 0 reports, 1.00s wallclock-time",
        "[   12.3s] 0 trials running, 3 finished, 3 reports, 1.00s wallclock-time",
        "[   12.3s] best loss 0.25 in trial 2   lr=2",
    ]


def everything(printer: ProgressPrinter) -> None:
    trial, status = make_trial(0, lr=0.5), TuningStatus(["accuracy"])
    status.add_trial(trial)
    printer.message("hello")
    printer.trial_started(trial, 3)
    printer.trial_resumed(trial, 3)
    printer.trial_paused(trial, {"accuracy": 0.5})
    printer.trial_ended(trial, Status.stopped, None, {"accuracy": 0.5}, "std.out")
    printer.maybe_table(status)
    printer.finish(status)


def test_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STHYPER_QUIET", "1")
    screen = Screen(print_update_interval=0.0)
    everything(screen.printer)
    assert screen.lines == []


def test_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    everything(ProgressPrinter(0.0, ["accuracy"], "max"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def on_terminal(monkeypatch: pytest.MonkeyPatch, act: Callable[[ProgressPrinter], None]) -> str:
    """Run ``act`` with a printer on a pseudo-terminal and return what it showed."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    try:
        with os.fdopen(slave, "w") as stream:
            act(ProgressPrinter(0.0, ["accuracy"], "max", stream=stream))
            stream.flush()
            shown = b""
            while select.select([master], [], [], 0.2)[0]:  # one read may bring a part only
                shown += os.read(master, 100_000)
            return shown.decode()
    finally:
        os.close(master)


def test_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, everything)
    assert "trial 0 \x1b[33mpaused\x1b[0m   accuracy 0.5   lr=0.5" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "trial 0 stopped   accuracy 0.5   lr=0.5   " in plain
    assert "trial 0 started, next decision at resource 3" in plain


def test_markup_in_a_configuration_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, lambda p: p.trial_started(make_trial(0, act="[red]relu[/red]")))
    assert "act=[red]relu[/red]" in shown


def test_a_reader_that_has_gone_does_not_end_the_experiment() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    try:
        printer = ProgressPrinter(0.0, ["accuracy"], "max", stream=stream)
        everything(printer)
        everything(printer)
    finally:
        with pytest.raises(BrokenPipeError):
            stream.close()
    closed = io.StringIO()
    printer = ProgressPrinter(0.0, ["accuracy"], "max", stream=closed)
    closed.close()
    everything(printer)


def test_bad_interval_is_named() -> None:
    with pytest.raises(ValueError, match="print_update_interval.*-1"):
        ProgressPrinter(-1, ["accuracy"], "max")
