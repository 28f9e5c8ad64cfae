"""The clock is set while experiments run, by hours, back and forth: no duration comes from it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sthyper import load_experiment
from sthyper._lock import ExperimentLock, machine
from sthyper._tuning.leftovers import end_leftovers
from sthyper.backend import _processes
from sthyper.baselines import ASHA
from sthyper.checkpoints import CheckpointInfo, latest_checkpoint, write_index
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay

HOUR = 3600.0

# Imported first by tuners and training scripts.
WRONG_CLOCK = """
import datetime, os, time
real, start = time.time, time.monotonic()
kind = os.environ["CLOCK"]
def offset():
    if kind == "jumps":
        return (0, -3, 5, -1)[int(time.monotonic() * 20) % 4] * 3600.0
    if kind == "backwards":
        return -3600.0 * (5 + 2 * (time.monotonic() - start))
    return float(kind)
class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
time.time = lambda: real() + offset()
time.time_ns = lambda: int(time.time() * 1e9)
datetime.datetime = Datetime
"""

TUNER = """
import sys
sys.path[:0] = [{folder!r}, {here!r}]
import wrong_clock
from sthyper import StoppingCriterion, Tuner, _lock
from sthyper.backend import LocalBackend
from test_clock import asha
_lock._HEARTBEAT_INTERVAL = 0.2
{code}
"""


def asha() -> TrialScheduler:
    space = {"x": uniform(0.0, 1.0), "epochs": 8}
    return ASHA(
        space, metric="loss", type="promotion", max_resource_attr="epochs", grace_period=2, reduction_factor=2,
        random_seed=5,
    )  # fmt: skip


class Experiment:
    """Runs tuners, one after the other, in processes whose clock is wrong."""

    def __init__(self, tmp_path: Path, train: str) -> None:
        self.path = tmp_path
        self.folder = Path(os.environ["STHYPER_FOLDER"]) / "clock"
        (tmp_path / "wrong_clock.py").write_text(WRONG_CLOCK)
        self.script = tmp_path / "train.py"
        head = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport wrong_clock\n"
        self.script.write_text(head + textwrap.dedent(train))

    def start(self, clock: str, code: str) -> subprocess.Popen[bytes]:
        launch = self.path / "launch.py"
        here = str(Path(__file__).parent)
        launch.write_text(TUNER.format(folder=str(self.path), here=here, code=textwrap.dedent(code)))
        with open(self.path / "tuner.txt", "a") as out:
            return subprocess.Popen(
                [sys.executable, str(launch), str(self.script)], stdout=out, stderr=out,
                env={**os.environ, "CLOCK": clock},
            )  # fmt: skip

    def finish(self, tuner: subprocess.Popen[bytes]) -> None:
        try:
            assert tuner.wait(50) == 0, (self.path / "tuner.txt").read_text()
        finally:
            tuner.kill()
            tuner.wait()

    def wait_until(self, tuner: subprocess.Popen[bytes], holds: Callable[[], object]) -> None:
        while not holds():
            assert tuner.poll() is None, (self.path / "tuner.txt").read_text()
            time.sleep(0.02)

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        try:
            return [record for record in read_journal(self.folder) if kind in (None, record["type"])]
        except FileNotFoundError:
            return []

    def times(self) -> list[float]:
        """The experiment's own time at all lines that have one."""
        return [record["tuner_time"] for record in self.lines() if "tuner_time" in record]


def test_nothing_happens_when_the_clock_jumps_by_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(
        tmp_path,
        """
        import time
        from sthyper import Reporter
        report = Reporter()
        for epoch in range(int(report.last_resource or 0) + 1, report.config["epochs"] + 1):
            time.sleep(0.02)
            report(epoch=epoch, loss=(report.config["x"] - 0.3) ** 2 + 1 / epoch)
        """,
    )
    started = time.monotonic()
    tuner = experiment.start(
        "jumps",
        """
        backend = LocalBackend(sys.argv[1], trial_timeout=60.0, first_report_timeout=60.0, stop_grace=60.0)
        criterion = StoppingCriterion(max_num_trials_started=20, max_wallclock_time=1800.0)
        Tuner(
            backend, asha(), criterion, 2, tuner_name="clock", suffix_tuner_name=False, results_update_interval=0.05
        ).run()
        """,
    )
    experiment.wait_until(tuner, lambda: len(experiment.lines("decision")) > 5)
    assert (experiment.folder / "results.csv.zip").exists()
    # Elsewhere one would find its lock out of date, and looks whether it lives.
    for name, value in {"machine": lambda: "elsewhere", "_STALE_AFTER": 0.0, "_HEARTBEAT_INTERVAL": 0.5}.items():
        monkeypatch.setattr(f"sthyper._lock.{name}", value)
    with pytest.raises(ExperimentError, match=f"is run by process {tuner.pid}"):
        ExperimentLock(experiment.folder)
    experiment.finish(tuner)
    elapsed = time.monotonic() - started
    # The clock did jump.
    starts = [record["time"] for record in experiment.lines("start")]
    assert max(starts) - min(starts) > 4 * HOUR
    assert any(after < before - HOUR for before, after in pairwise(starts))
    times = experiment.times()
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] < elapsed
    result = load_experiment("clock")
    assert result.end_reason == "max_num_trials_started is reached"
    assert {trial.status for trial in result.trials.values()} <= {"Completed", "Paused"}
    assert len(result.trials) == 20
    assert result.results.st_tuner_time.between(0.0, elapsed).all()
    assert result.results.st_worker_time.between(0.0, elapsed).all()
    assert replay(experiment.folder, asha()) == []


def test_times_are_up_while_the_clock_runs_backwards(tmp_path: Path) -> None:
    experiment = Experiment(
        tmp_path,
        """
        import time
        from sthyper import Reporter
        report = Reporter(on_stop="return" if Reporter().trial_id == 2 else "exit")
        for epoch in range(int(report.last_resource or 0) + 1, report.config["epochs"] + 1):
            if report.trial_id == epoch - 1 < 2:
                time.sleep(600.0)  # 0 before its first report, 1 after it
            report(epoch=epoch, loss=epoch)
            if report.trial_id == 2 and epoch == 2:
                time.sleep(600.0)  # does not end when it is paused
            time.sleep(0.1)
        """,
    )
    tuner = experiment.start(
        "backwards",
        """
        backend = LocalBackend(sys.argv[1], first_report_timeout=1.0, trial_timeout=1.5, stop_grace=0.5)
        Tuner(
            backend, asha(), StoppingCriterion(max_wallclock_time=4.0), 3, tuner_name="clock",
            suffix_tuner_name=False, max_failures=9,
        ).run()
        """,
    )
    experiment.finish(tuner)
    ends = {record["trial_id"]: record for record in reversed(experiment.lines("status"))}
    reports = {record["trial_id"]: record["tuner_time"] for record in reversed(experiment.lines("report"))}
    assert ends[0]["reason"].startswith("hung")
    assert 1.0 <= ends[0]["tuner_time"] < 3.0
    assert ends[1]["reason"].startswith("hung")
    assert 1.5 <= ends[1]["tuner_time"] - reports[1] < 3.5
    assert ends[2]["status"] == "Paused"
    assert 0.5 <= ends[2]["tuner_time"] - reports[2] < 2.5
    (end,) = experiment.lines("end")
    assert end["reason"] == "max_wallclock_time=4 is reached"
    assert 4.0 <= end["tuner_time"] < 6.0
    starts = [record["time"] for record in experiment.lines("start")]
    assert starts == sorted(starts, reverse=True)


def test_a_resumed_experiment_counts_its_own_time(tmp_path: Path) -> None:
    experiment = Experiment(
        tmp_path,
        """
        import time
        from sthyper import Reporter
        report = Reporter()
        for epoch in range(int(report.last_resource or 0) + 1, report.config["epochs"] + 1):
            time.sleep(0.05)
            report(epoch=epoch, loss=(report.config["x"] - 0.3) ** 2 + 1 / epoch)
        """,
    )
    tuner = experiment.start(
        "18000",
        """
        criterion = StoppingCriterion(max_wallclock_time=3.0)
        Tuner(LocalBackend(sys.argv[1]), asha(), criterion, 2, tuner_name="clock", suffix_tuner_name=False).run()
        """,
    )
    experiment.wait_until(tuner, lambda: (times := experiment.times()) and times[-1] > 1.0)
    tuner.send_signal(signal.SIGKILL)
    tuner.wait()
    before = experiment.times()[-1]
    time.sleep(2.0)
    experiment.finish(experiment.start("-18000", 'Tuner.resume("clock").run()'))
    first, second = (record["time"] for record in experiment.lines("session"))
    assert second < first - 9 * HOUR
    times = experiment.times()
    assert times == sorted(times)
    assert times[0] < before < 3.0 <= times[-1] < 4.5, "the time between the two does not count"
    resumed = load_experiment("clock").results.st_tuner_time.tolist()
    assert resumed == sorted(resumed)
    assert resumed[-1] > before + 1.0


@pytest.mark.parametrize("clock", ["jumps", "backwards"])
def test_a_lost_tuner_is_looked_for_as_long_as_was_said(tmp_path: Path, clock: str) -> None:
    (tmp_path / "wrong_clock.py").write_text(WRONG_CLOCK)
    code = "import wrong_clock, time; from sthyper import Reporter; report = Reporter(); start = time.monotonic()\n"
    code += "try: report(loss=1.0)\nfinally: print(time.monotonic() - start, flush=True)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {
        **os.environ, "CLOCK": clock, "PYTHONPATH": str(tmp_path), "STHYPER_CHANNEL": f"tcp:127.0.0.1:{port}",
        "STHYPER_TOKEN": "t", "STHYPER_TRIAL_ID": "0", "STHYPER_RUN": "0", "STHYPER_RECONNECT_GRACE": "1.5",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr  # TrialExit
    assert 1.5 <= float(done.stdout) < 3.0


ASK_AND_TELL = """
import wrong_clock, time
from sthyper.config_space import uniform
from sthyper.schedulers import AskTellScheduler, FIFOScheduler
scheduler = AskTellScheduler(FIFOScheduler({"x": uniform(0, 1)}, metric="loss", random_seed=1))
trial = scheduler.ask()
time.sleep(0.3)
print(scheduler.trials[0].seconds)
scheduler.tell(trial, loss=1.0, done=True)
print(scheduler.trials[0].seconds)
"""


def test_trials_that_are_asked_for_take_as_long_as_they_took(tmp_path: Path) -> None:
    (tmp_path / "wrong_clock.py").write_text(WRONG_CLOCK)
    env = {**os.environ, "CLOCK": "backwards", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK_AND_TELL], env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    running, ended = map(float, done.stdout.split())
    assert running == 0.0, "not known while the clock says that it has not begun"
    assert 0.3 <= ended < 2.0


def test_checkpoints_are_ordered_by_what_they_hold(tmp_path: Path) -> None:
    infos = []
    for n in range(1, 4):
        path = tmp_path / f"epoch={n:06d}.ckpt"
        path.write_bytes(b"w" * n)
        os.utime(path, (1e9 - n * HOUR, 1e9 - n * HOUR))
        infos.append(CheckpointInfo(path, n, trial_id=0, size=n))
    write_index(tmp_path, infos)
    assert latest_checkpoint(tmp_path) == infos[2].path
    assert latest_checkpoint(tmp_path, not_after=2) == infos[1].path


def test_processes_are_told_by_a_time_that_nobody_sets() -> None:
    """The start time in the journal is since the start of the machine; of another machine nothing is ended."""

    def end(machine_: str, later: float) -> int:
        info = _processes.process_info(process.pid)
        assert info is not None
        line = {"type": "process", "pid": process.pid, "start_time": _processes.start_time(info) + later}
        records = [{"type": "session", "machine": machine_}, json.loads(json.dumps(line))]
        return end_leftovers(Path("/nowhere"), records)

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert end("another machine", 0.0) == 0
        assert end(machine(), 0.01) == 0
        assert process.poll() is None
        started = time.monotonic()
        assert end(machine(), 0.0) == 1
        assert time.monotonic() - started < 2.0
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
