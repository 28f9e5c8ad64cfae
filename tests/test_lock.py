"""One experiment, one tuner: the lock, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper._lock import ExperimentLock, LockLost
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentLock as LockOfJournal
from sthyper.testing import replay
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

# A process that seems to run on another machine, with shorter times if they are given.
ELSEWHERE = """
import sys, time
from pathlib import Path
from sthyper import _lock
_lock.machine = lambda: "another machine"
_lock._STALE_AFTER, _lock._HEARTBEAT_INTERVAL = float(sys.argv[2]), float(sys.argv[3])
try:
    lock = _lock.ExperimentLock(Path(sys.argv[1]))
except _lock.ExperimentError as error:
    print("refused:", error, flush=True)
else:
    print("taken", flush=True)
    sys.stdin.read()
    lock.release()
"""


def content(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "lock").read_text())
    return result


@contextmanager
def elsewhere(
    folder: Path, stale_after: float = 60.0, beat: float = 0.1
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """What a tuner on another machine hears when it tries to take the lock; it keeps it during the block."""
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(stale_after), str(beat)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline(), process
    finally:
        process.communicate(timeout=20)


def test_lock_is_exclusive_while_its_holder_lives(tmp_path: Path) -> None:
    assert LockOfJournal is ExperimentLock
    lock = ExperimentLock(tmp_path)
    try:
        assert content(tmp_path)["pid"] == os.getpid()
        assert {"host", "start_time", "heartbeat"} <= set(content(tmp_path))
        assert os.listdir(tmp_path) == ["lock"]
        with pytest.raises(ExperimentError, match=str(os.getpid())):
            ExperimentLock(tmp_path)
        with elsewhere(tmp_path) as (answer, _):
            assert f"is run by process {os.getpid()}" in answer
        lock.check()
    finally:
        lock.release()
        lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path, reaped: bool) -> None:
    code = "import os, sys; from pathlib import Path; from sthyper._lock import ExperimentLock\n"
    code += "ExperimentLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    if reaped:
        process.wait(30)
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert content(tmp_path)["pid"] == process.pid
    # Its heartbeat is young, and no heartbeat at all says more: the time of writing does not matter here.
    lock = ExperimentLock(tmp_path)
    assert content(tmp_path)["pid"] == os.getpid()
    lock.release()
    process.wait()


def test_another_process_with_the_same_id_holds_nothing(tmp_path: Path) -> None:
    lock = ExperimentLock(tmp_path)
    known = content(tmp_path)
    lock.release()
    (tmp_path / "lock").write_text(json.dumps({**known, "start_time": known["start_time"] - 1.0}))
    ExperimentLock(tmp_path).release()
    (tmp_path / "lock").write_text(json.dumps(known))
    with pytest.raises(ExperimentError, match="is run by"):
        ExperimentLock(tmp_path)


@pytest.mark.parametrize(("age", "is_stale"), [(0, False), (55, False), (65, True), (-3600, True)])
@pytest.mark.parametrize("text", [json.dumps({"host": "moon", "pid": 1, "machine": "moon", "token": "t"}), "", "{half"])
def test_what_was_written_elsewhere_is_stale_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, is_stale: bool, text: str
) -> None:
    monkeypatch.setattr("sthyper._lock._HEARTBEAT_INTERVAL", 0.1)
    path = tmp_path / "lock"
    path.write_text(text)
    now = time.time()
    os.utime(path, (now - age, now - age))
    if is_stale:
        ExperimentLock(tmp_path).release()
        assert os.listdir(tmp_path) == []
    else:
        with pytest.raises(ExperimentError, match="moon" if "moon" in text else "is run by"):
            ExperimentLock(tmp_path)
        assert path.read_text() == text
        assert os.listdir(tmp_path) == ["lock"]


def test_heartbeats_are_seen_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sthyper._lock._HEARTBEAT_INTERVAL", 0.1)
    lock = ExperimentLock(tmp_path)
    first = content(tmp_path)["heartbeat"]
    try:
        time.sleep(1.2)
        with elsewhere(tmp_path, stale_after=1.0) as (answer, _):
            assert answer.startswith("refused")
        assert content(tmp_path)["heartbeat"] > first + 1.0
    finally:
        lock.release()


def test_release_leaves_the_lock_of_others_alone(tmp_path: Path) -> None:
    lock = ExperimentLock(tmp_path)
    (tmp_path / "lock").unlink()
    with elsewhere(tmp_path) as (answer, _):
        assert answer == "taken\n"
        other = (tmp_path / "lock").read_bytes()
        lock.release()
        assert (tmp_path / "lock").read_bytes() == other


def test_a_living_lock_is_not_taken_whatever_its_age_seems_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the clock of the file system was set: every age is too old, but there are heartbeats."""
    monkeypatch.setattr("sthyper._lock._HEARTBEAT_INTERVAL", 0.2)
    lock = ExperimentLock(tmp_path)
    try:
        with elsewhere(tmp_path, stale_after=0.0, beat=1.0) as (answer, _):
            assert answer.startswith(f"refused: {tmp_path} is run by process {os.getpid()}")
        lock.check()
    finally:
        lock.release()


def test_a_lock_is_watched_for_a_heartbeat_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []
    for beat in (0.1, 0.6):
        monkeypatch.setattr("sthyper._lock._HEARTBEAT_INTERVAL", beat)
        (tmp_path / "lock").write_text("{}")
        os.utime(tmp_path / "lock", (1.0, 1.0))
        started = time.monotonic()
        ExperimentLock(tmp_path).release()
        seconds.append(time.monotonic() - started)
    assert seconds[0] < 0.6 < seconds[1]


def test_the_lock_of_others_is_seen_and_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = ExperimentLock(tmp_path)
    try:
        with elsewhere(tmp_path, stale_after=0.0) as (answer, _):
            assert answer == "taken\n"
            lock.check()  # no reason to doubt it: the last heartbeat was just now
            monkeypatch.setattr("sthyper._lock._DOUBT_AFTER", 0.0)
            with pytest.raises(LockLost, match="is run by process"):
                lock.check()
            monkeypatch.setattr("sthyper._lock._DOUBT_AFTER", 30.0)
            with pytest.raises(LockLost, match="is run by process"):
                lock.check()  # what is lost stays lost
            lock.release()
            assert content(tmp_path)["machine"] == "another machine"
        assert os.listdir(tmp_path) == []
    finally:
        lock.release()


RACE = """
import sys, time
from pathlib import Path
from sthyper import _lock
from sthyper._lock import ExperimentError, ExperimentLock
_lock._HEARTBEAT_INTERVAL = 0.1
folder, n = Path(sys.argv[1]), int(sys.argv[2])
for round_ in range(int(sys.argv[3])):
    place = folder / str(round_)
    while not (place / "go").exists():
        time.sleep(0.0005)
    try:
        lock = ExperimentLock(place)
        text = "won"
    except ExperimentError:
        lock, text = None, "refused"
    (place / f"answer{n}").write_text(text)
    while not (place / "over").exists():
        time.sleep(0.002)
    if lock is not None:
        lock.release()
"""


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_exactly_one_of_many_wins(tmp_path: Path, rounds: int) -> None:
    n = 12
    for round_ in range(rounds):
        (tmp_path / str(round_)).mkdir()
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [subprocess.Popen([*command, str(i), str(rounds)]) for i in range(n)]
    try:
        for round_ in range(rounds):
            place = tmp_path / str(round_)
            if round_ % 2:  # a dead tuner's
                (place / "lock").write_text('{"host": "moon", "pid": 1, "machine": "moon", "token": "old"}')
                os.utime(place / "lock", (1.0, 1.0))
            (place / "go").touch()
            deadline = time.monotonic() + 30.0
            answers: list[str] = []
            while len(answers) < n or "" in answers:
                assert time.monotonic() < deadline
                answers = [path.read_text() for path in place.glob("answer*")]
                time.sleep(0.002)
            assert sorted(answers) == ["refused"] * (n - 1) + ["won"], round_
            (place / "over").touch()
        assert [racer.wait(30) for racer in racers] == [0] * n
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert not list(tmp_path.glob("*/lock*"))


# ---- a tuner that was stopped for a while -----------------------------------------------------------------

TRAIN = """
import os, time
from sthyper import Reporter
report = Reporter()
for epoch in range(1, 100000):
    with open(os.path.join(report.trial_dir, "epochs"), "a") as file:
        file.write("x")
    time.sleep(0.05)
    report(epoch=epoch, loss=1 / epoch)
"""

TUNER = """
import sys, time
from sthyper import StoppingCriterion, Tuner, _lock
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
_lock._HEARTBEAT_INTERVAL, _lock._DOUBT_AFTER = 0.2, 0.5
Tuner(
    LocalBackend(sys.argv[1]), RandomSearch({"x": uniform(0, 1)}, metric="loss", random_seed=1),
    StoppingCriterion(max_num_trials_finished=3), n_workers=2, tuner_name="stopped", suffix_tuner_name=False,
    results_update_interval=0.01, snapshot_interval=0.05,
).run()
"""

# On another machine the processes of the first one's trials are not to be seen.
SECOND = """
from sthyper import Tuner, _lock, tuner
_lock.machine = lambda: "another machine"
_lock._HEARTBEAT_INTERVAL, _lock._STALE_AFTER = 0.5, 0.6
tuner.end_leftovers = lambda *args: 0
Tuner.resume("stopped").run()
"""


@contextmanager
def running(tmp_path: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A tuner in a process of its own, with trials that report."""
    train = tmp_path / "train.py"
    train.write_text(TRAIN)
    with open(tmp_path / "tuner.txt", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(TUNER), str(train)], stderr=log, text=True)
    try:
        wait_until(lambda: lines(folder, "decision") > 4, process)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


def lines(folder: Path, kind: str) -> int:
    try:
        return (folder / "journal.jsonl").read_text().count(f'"type":"{kind}"')
    except FileNotFoundError:
        return 0


def wait_until(holds: Any, process: subprocess.Popen[str] | None = None, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


def trials_of(folder: Path) -> set[int]:
    records = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return {record["pid"] for record in records if record["type"] == "process"}


def record_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What a tuner writes into its folder: content and time of writing of all whole files but those of the trials."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    files = [path for path in files if "trials" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_tuner_that_lost_the_lock_while_it_was_stopped_ends_itself(tmp_path: Path, experiment_folder: Path) -> None:
    folder = experiment_folder / "stopped"
    with running(tmp_path, folder) as tuner:
        trials = trials_of(folder)
        tuner.send_signal(signal.SIGSTOP)
        time.sleep(0.6)
        assert all(psutil.pid_exists(pid) for pid in trials)
        count = lines(folder, "decision")
        with open(tmp_path / "second.txt", "w") as log:
            second = subprocess.Popen([sys.executable, "-c", SECOND], stderr=log)
        try:
            wait_until(lambda: lines(folder, "decision") > count + 4, second)
            second.send_signal(signal.SIGSTOP)
            before = record_of(folder)
            assert {"journal.jsonl", "metadata.json", "results.csv.zip", "lock"} <= set(before)
            assert any(name.startswith("snapshots/") for name in before)
            tuner.send_signal(signal.SIGCONT)
            assert tuner.wait(30) == 1
            wait_until(lambda: not any(psutil.pid_exists(pid) for pid in trials))
            assert record_of(folder) == before
            second.send_signal(signal.SIGCONT)
            wait_until(lambda: lines(folder, "decision") > count + 12, second)
        finally:
            second.send_signal(signal.SIGCONT)
            second.terminate()
            assert second.wait(30) == 0
        text = (tmp_path / "tuner.txt").read_text()
        assert f"LockLost: {folder} is run by process {second.pid} on " in text
        assert f"this tuner (process {tuner.pid} on " in text
        assert "nothing is written any more" in text
        assert f"the lock of process {tuner.pid} on" in (tmp_path / "second.txt").read_text()
        # Line for line what the second one has decided, after what the first one had.
        assert replay(folder, RandomSearch({"x": uniform(0, 1)}, metric="loss", random_seed=1)) == []


class LosesLock(TunerCallback):
    """Looks whether the experiment is its tuner's before and after the lock is gone."""

    def on_tuning_start(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self.heard: list[str] = []

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        self.tuner.check_lock()
        (self.tuner.tuner_path / "lock").unlink()
        try:
            self.tuner.check_lock()
        except LockLost as error:
            self.heard.append(str(error))


def test_callbacks_can_ask_and_no_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sthyper._lock._DOUBT_AFTER", 0.0)
    train = tmp_path / "train.py"
    train.write_text("from sthyper import Reporter; Reporter()(loss=1.0)")
    callback = LosesLock()
    scheduler = RandomSearch({"x": uniform(0, 1)}, metric="loss", random_seed=1)
    tuner = Tuner(LocalBackend(train), scheduler, StoppingCriterion(max_num_trials_started=3), 1, callbacks=[callback])
    with pytest.raises(LockLost, match=f"{tuner.tuner_path} is run by another process now"):
        tuner.run()
    assert len(callback.heard) == 1
    assert lines(tuner.tuner_path, "report") == 1
    assert not (tuner.tuner_path / "results.csv.zip").exists()
    assert "nothing is written any more" in caplog.text


def test_a_tuner_that_was_stopped_and_kept_the_lock_goes_on(tmp_path: Path, experiment_folder: Path) -> None:
    folder = experiment_folder / "stopped"
    with running(tmp_path, folder) as tuner:
        tuner.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        # Stopped is not dead: nobody on this machine gets it, however old the heartbeat.
        with pytest.raises(ExperimentError, match=f"is run by process {tuner.pid}"):
            ExperimentLock(folder)
        count = lines(folder, "decision")
        tuner.send_signal(signal.SIGCONT)
        wait_until(lambda: lines(folder, "decision") > count + 4, tuner)
