"""A disk that is full or read-only: the experiment waits and loses nothing. Real disks, real processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay
from sthyper.trial import Trial
from sthyper.tuner_callback import TunerCallback

EPOCHS = 8
TRIALS = 30
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "epochs": EPOCHS}

# What a trial has trained, and what of it was answered, goes to another disk.
TRAIN = """
import argparse, os, time
from sthyper import Reporter
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
report = Reporter()
path = os.path.join(os.environ["LOGS"], str(report.trial_id))
for epoch in range(int(os.environ.get("STHYPER_LAST_RESOURCE") or 0) + 1, args.epochs + 1):
    with open(path, "a") as log:
        print("trained", epoch, file=log)
    time.sleep(0.02)
    report(epoch=epoch, loss=(args.x - 0.3) ** 2 + 1 / epoch, filling="f" * 400)
    with open(path, "a") as log:
        print("answered", epoch, file=log)
"""

TUNER = """
import logging, sys
sys.path.insert(0, {here!r})
from test_disk_full import *
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
tuner = Tuner(
    LocalBackend({train!r}, trial_timeout=2.0, first_report_timeout=5.0), asha(),
    StoppingCriterion(max_num_trials_started=TRIALS), n_workers=2, tuner_name="full", suffix_tuner_name=False,
    results_update_interval=0.1, trial_backend_path={trials!r},
)
result = tuner.run()
"""


def asha() -> TrialScheduler:
    return ASHA(SPACE, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=5)


class Run:
    """A tuner in a process of its own.

    Args:
        folder: For scripts and logs, on a disk with room.
        trials: Where the trials' files go, ``None`` for the experiment's folder.
        train: The training script.
    """

    def __init__(self, folder: Path, trials: Path | None = None, train: str = TRAIN) -> None:
        self.folder = Path(os.environ["STHYPER_FOLDER"]) / "full"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.text = folder / "tuner.txt"
        script = folder / "train.py"
        script.write_text(train)
        launch = folder / "launch.py"
        values = {"here": str(Path(__file__).parent), "train": str(script), "trials": trials and str(trials)}
        launch.write_text(textwrap.dedent(TUNER).format(**values))
        with open(self.text, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(launch)], stdout=out, stderr=out, env={**os.environ, "LOGS": str(self.logs)}
            )

    def log(self, word: str) -> list[tuple[int, int]]:
        """Trial and epoch of all that was trained, or answered."""
        found = []
        for path in self.logs.iterdir():
            lines = [line.split() for line in path.read_text().splitlines()]
            found += [(int(path.name), int(line[1])) for line in lines if len(line) == 2 and line[0] == word]
        return sorted(found)

    def wait_until(self, holds: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.text.read_text()
            assert self.process.poll() is None, self.text.read_text()
            time.sleep(0.02)

    def wait_for_text(self, text: str) -> None:
        self.wait_until(lambda: text in self.text.read_text())

    def finish(self) -> None:
        assert self.process.wait(60) == 0, self.text.read_text()

    def journal(self) -> bytes:
        try:
            return (self.folder / "journal.jsonl").read_bytes()
        except FileNotFoundError:
            return b""


@contextmanager
def running(folder: Path, trials: Path | None = None, train: str = TRAIN) -> Iterator[Run]:
    run = Run(folder, trials, train)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
            time.sleep(1.0)  # the guardian ends the trials


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as path:
        yield path


@contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        # Lazily: a process of a test that failed may still look at it.
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, spare: int = 0) -> Path:
    """Take all the room that is left, but for some pages."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while spare == 0 or os.statvfs(disk).f_bavail > spare:
            file.write(b"f" * 4096)
    assert os.statvfs(disk).f_bavail == spare
    return filler


def check_whole(run: Run, kind: Callable[[], TrialScheduler] = asha) -> None:
    """Nothing is lost, nothing is there twice, nothing was trained twice, and the decisions are right."""
    data = run.journal().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in data)
    assert len(set(data)) == len(data)
    assert replay(run.folder, kind()) == []
    reports = sorted((r["trial_id"], r["metrics"]["epoch"]) for r in read_journal(run.folder) if r["type"] == "report")
    assert reports == run.log("trained")
    result = load_experiment(run.folder)
    assert len(result.trials) == TRIALS
    statuses = {trial.status for trial in result.trials.values()}
    assert statuses <= {"Completed", "Paused", "Stopped"}, run.text.read_text()
    assert result.end_reason == "max_num_trials_started is reached"


def stands_still(run: Run, seconds: float) -> None:
    """Check that nothing is answered and nothing started; reports that wait are not taken for hung trials."""
    answered, journal, trained = run.log("answered"), run.journal(), run.log("trained")
    time.sleep(seconds)
    assert run.log("answered") == answered
    assert run.journal() == journal
    assert len(run.log("trained")) <= len(trained) + 2
    assert run.process.poll() is None


def waits(run: Run) -> bool:
    """Whether all that was trained waits for its answer, and has done so for a moment."""
    before = run.journal(), run.log("trained")
    time.sleep(0.3)
    return "cannot write" in run.text.read_text() and (run.journal(), run.log("trained")) == before


def test_a_full_disk_is_waited_for(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STHYPER_FOLDER", str(disk / "experiments"))
    with running(tmp_path) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        filler = fill(disk)
        run.wait_until(lambda: waits(run))
        stands_still(run, 3.0)  # longer than the time-out of trials
        text = run.text.read_text()
        assert text.count("No trial is started and no report answered until it can be written") == 1
        assert f"WARNING cannot write {run.folder}" in text
        assert os.strerror(28) in text
        filler.unlink()
        run.wait_for_text("there is room again")
        run.finish()
        check_whole(run)
        assert (run.folder / "results.csv.zip").exists()
        assert not list(run.folder.rglob("*.tmp"))


def test_a_file_that_may_not_grow_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        limits = psutil.Process(run.process.pid)
        old = limits.rlimit(resource.RLIMIT_FSIZE)
        # In the middle of one of the next lines.
        limits.rlimit(resource.RLIMIT_FSIZE, (len(run.journal()) + 500, old[1]))
        run.wait_for_text(f"cannot write {run.folder}/journal.jsonl: File too large")
        run.wait_until(lambda: waits(run))
        stands_still(run, 3.0)
        limits.rlimit(resource.RLIMIT_FSIZE, old)
        run.finish()
        check_whole(run)


def test_again_and_again(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.wait_until(lambda: run.log("answered"))  # a tuner that starts does not wait
        limits = psutil.Process(run.process.pid)
        old = limits.rlimit(resource.RLIMIT_FSIZE)
        for _ in range(3):
            limits.rlimit(resource.RLIMIT_FSIZE, (len(run.journal()) + 100, old[1]))
            run.wait_until(lambda: waits(run))
            limits.rlimit(resource.RLIMIT_FSIZE, old)
            count = len(run.log("answered"))
            run.wait_until(lambda count=count: len(run.log("answered")) > count)  # type: ignore[misc]
        run.finish()
        check_whole(run)
        assert run.text.read_text().count("there is room again") == 3


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_while_the_disk_is_full(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    monkeypatch.setenv("STHYPER_FOLDER", str(disk / "experiments"))
    with running(tmp_path) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        filler = fill(disk)
        run.wait_until(lambda: waits(run))
        before = run.journal()
        pids = {r["pid"] for r in read_journal(run.folder) if r["type"] == "process"}
        started = time.monotonic()
        for _ in range(signals):
            run.process.send_signal(signal.SIGINT)
        code = run.process.wait(20)
        text = run.text.read_text()
        # The second one comes before the first is seen to, or while the trials are being ended.
        assert code == 0 if signals == 1 else code in (0, 1, -signal.SIGINT), text
        assert time.monotonic() - started < 10.0
        if signals == 1:
            assert "tuning ended early: SIGINT received" in text
        if f"cannot write {run.folder}/journal.jsonl" in text:
            assert "the record ends early, Tuner.resume goes on from there" in text
            assert run.journal() == before
        deadline = time.monotonic() + 10.0
        while any(psutil.pid_exists(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        filler.unlink()
        # What had been trained and not recorded is trained again, the rest is not.
        monkeypatch.setenv("LOGS", str(run.logs))
        Tuner.resume("full").run()
        assert replay(run.folder, asha()) == []
        assert len(load_experiment("full").trials) == TRIALS
        answered = run.log("answered")
        assert len(set(answered)) == len(answered)


def test_an_experiment_that_cannot_be_begun_says_where(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text("from sthyper import Reporter; Reporter()(loss=1.0)")

    def tuner() -> Tuner:
        scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=5)
        criterion = StoppingCriterion(max_num_trials_started=1)
        return Tuner(LocalBackend(script), scheduler, criterion, 1, tuner_name="begun", suffix_tuner_name=False)

    folder = disk / "experiments"
    folder.mkdir()
    monkeypatch.setenv("STHYPER_FOLDER", str(folder))
    filler = fill(disk)
    with pytest.raises(OSError, match=f"No space left on device: '{folder}/begun"):
        tuner().run()
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=f"Read-only file system: '{folder}/begun"):
        tuner().run()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == []
    assert tuner().run().best_value == 1.0  # nothing stands in its way


def test_a_trial_starts_once_its_files_can_be_written(tmp_path: Path, disk: Path) -> None:
    with running(tmp_path, trials=disk) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        filler = fill(disk)
        run.wait_for_text(f"cannot write {disk}/trials/")
        stands_still(run, 1.0)
        filler.unlink()
        run.finish()
        check_whole(run)


def test_a_read_only_folder_is_waited_for(tmp_path: Path) -> None:
    trials = tmp_path / "writes"
    trials.mkdir()
    with running(tmp_path, trials=trials) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        with mounted(trials, "--bind", "-o", "ro", str(trials)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(trials)], check=True)
            run.wait_until(
                lambda: re.search(rf"cannot write {trials}/trials/\d+.*: Read-only file system", run.text.read_text())
            )
            stands_still(run, 1.0)
        run.finish()
        check_whole(run)


def test_a_folder_that_one_may_not_write_is_waited_for(tmp_path: Path) -> None:
    """Root may write everywhere, but not in a folder that is made immutable, where the file system can do that."""
    trials = tmp_path / "writes"
    trials.mkdir()
    with running(tmp_path, trials=trials) as run:
        run.wait_until(lambda: len(run.log("answered")) > 6)
        done = subprocess.run(["chattr", "+i", str(trials / "trials")], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no folder can be made immutable: {done.stderr.strip()}")
        try:
            run.wait_for_text(f"cannot write {trials}/trials/")
        finally:
            subprocess.run(["chattr", "-i", str(trials / "trials")], check=True)
        run.finish()
        check_whole(run)


FAILS = """
import os, time
from sthyper import Reporter
report = Reporter()
while report.trial_id == 1 and not os.path.exists({filled!r}):
    time.sleep(0.01)
for epoch in range(int(os.environ.get("STHYPER_LAST_RESOURCE") or 0) + 1, 5):
    {action}
    report(epoch=epoch, loss=1 / epoch)
print("trained")
"""
ACTIONS = {
    "prints": "print('p' * 3000, flush=True)",
    "saves": "open(os.path.join(report.trial_dir, 'weights'), 'wb').write(b'w' * 100_000)",
    "torch": """import torch
    path, message = os.path.join(report.trial_dir, "weights.pt"), None
    try:
        torch.save(torch.zeros(25_000), path)
    except RuntimeError as error:
        message = str(error)
    if message is not None:
        os.remove(path)  # there is as much room as before, which was too little
        raise RuntimeError(message)""",
    "ends": "pass",
}


class FillsDisk(TunerCallback):
    """Fills the disk when trial 1 has just started, and makes room again as soon as the tuner asks for it."""

    def __init__(self, disk: Path, spare: int, filled: Path) -> None:
        self.disk = disk
        self.spare = spare
        self.filled = filled
        self.filler = disk / "filler"

    def on_start_trial(self, trial: Trial) -> None:
        if trial.trial_id == 1:
            fill(self.disk, self.spare)
            self.filled.touch()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("cannot write"):
            self.filler.unlink()
        return True


@pytest.mark.parametrize("action", ACTIONS)
def test_a_trial_that_fails_for_want_of_room_is_run_again(tmp_path: Path, disk: Path, action: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(FAILS.format(action=ACTIONS[action], filled=str(tmp_path / "filled")))
    space = {"x": uniform(0.0, 1.0), "epochs": 4}
    fills = FillsDisk(disk, 10 if action == "torch" else 0, tmp_path / "filled")
    tuner = Tuner(
        LocalBackend(script),
        ASHA(space, metric="loss", max_resource_attr="epochs", grace_period=3, random_seed=5),
        StoppingCriterion(max_num_trials_started=3),
        n_workers=1,
        max_failures=0,
        trial_backend_path=disk,
        callbacks=[fills],
    )
    logger = logging.getLogger("sthyper._tuning.room")
    logger.addFilter(fills.filter)
    try:
        result = tuner.run()
    finally:
        logger.removeFilter(fills.filter)
    # What could not be printed after the last report is no reason to train anew.
    runs = 1 if action == "ends" else 2
    assert [(trial.status, trial.runs) for trial in result.trials.values()] == [
        ("Completed", 1),
        ("Completed", runs),
        ("Completed", 1),
    ]
    reasons = [r["reason"] for r in read_journal(tuner.tuner_path) if r["type"] == "status"]
    assert reasons == [None] + ["killed (disk full)"] * (runs - 1) + [None, None]
    assert result.results.groupby("trial_id").epoch.apply(list).tolist() == [[1, 2, 3, 4]] * 3


@pytest.mark.parametrize("patience", [0.2, 2.5])
def test_room_that_is_needed_elsewhere_is_waited_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """The disk that is full is not the experiment's: nothing tells when there is room again."""
    monkeypatch.setattr("sthyper._tuning.room.PATIENCE", patience)
    monkeypatch.setattr("sthyper._tuning.room.MORE_ROOM", 1 << 60)  # others may delete files on this disk meanwhile
    script = tmp_path / "train.py"
    script.write_text(
        "from sthyper import Reporter\nreport = Reporter()\n"
        "if report.run == 0: raise OSError(28, 'No space left on device', '/elsewhere')\nreport(loss=1.0)"
    )
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=5)
    tuner = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1)
    result = tuner.run()
    assert [(trial.status, trial.runs) for trial in result.trials.values()] == [("Completed", 2)]
    times = [r["tuner_time"] for r in read_journal(tuner.tuner_path) if r["type"] in ("status", "resume")]
    assert patience <= times[1] - times[0] < patience + 2.0


def test_a_trial_that_waits_for_room_is_run_again_after_a_resume(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from sthyper import Reporter\nreport = Reporter()\n"
        "if report.run == 0: raise OSError(28, 'No space left on device', '/elsewhere')\nreport(loss=1.0)"
    )
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=5)
    tuner = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1)

    def stop(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("cannot write"):
            tuner.stop()
        return True

    logger = logging.getLogger("sthyper._tuning.room")
    logger.addFilter(stop)
    try:
        with pytest.warns(RuntimeWarning, match="stopped by the user"):
            tuner.run()
    finally:
        logger.removeFilter(stop)
    result = Tuner.resume(tuner.tuner_path).run()
    assert [trial.status for trial in result.trials.values()] == ["Completed"]
    assert result.best_value == 1.0


def test_other_failures_stay_failures(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys; print('no space here', file=sys.stderr); sys.exit(3)")
    criterion = StoppingCriterion(max_num_trials_started=1)
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=5)
    result = Tuner(LocalBackend(script), scheduler, criterion, n_workers=1).run()
    assert [(trial.status, trial.end_reason) for trial in result.trials.values()] == [("Failed", "exit 3")]
