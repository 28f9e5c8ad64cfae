"""A tuner that is killed while it makes its folder leaves either no experiment or one that can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sthyper import Tuner, load_experiment
from sthyper._lock import ExperimentLock
from sthyper._tuning.leftovers import delete_leftovers
from sthyper.experiment import get_metadata

PROGRAM = Path(__file__).with_name("half_written.py")


@pytest.mark.parametrize(
    ("phase", "kind", "stride", "experiments"),
    [
        # The last number is the least one of killed tuners that have left an experiment.
        ("start", "inline", 8, 12),
        ("resume", "inline", 7, 12),
        ("start", "processes", 41, 3),
        ("start", "function", 41, 3),
        pytest.param("start", "inline", 1, 100, marks=pytest.mark.slow),
        pytest.param("resume", "inline", 1, 90, marks=pytest.mark.slow),
        pytest.param("start", "processes", 4, 30, marks=pytest.mark.slow),
        pytest.param("start", "function", 4, 30, marks=pytest.mark.slow),
        pytest.param("resume", "processes", 4, 25, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(280)
def test_killed_before_any_operation_on_files(
    phase: str, kind: str, stride: int, experiments: int, experiment_folder: Path
) -> None:
    experiment_folder.parent.mkdir(exist_ok=True)
    program = [sys.executable, "-W", "error", str(PROGRAM), phase, kind, str(stride)]
    run = subprocess.run(program, capture_output=True, text=True, timeout=270)
    assert run.returncode == 0, run.stderr[-4000:]
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert outcome["wrong"] == [], run.stderr[-4000:]
    assert outcome["experiments"] >= experiments
    # At the start there are moments at which there is none yet; then a new one begins in the same folder.
    assert (outcome["points"] > outcome["experiments"]) == ((phase == "start" and stride < 41) or stride == 41)


KILLED_AT_CREATION = """
import os, signal, sys

sys.path.insert(0, {here!r})
from half_written import make

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith({file!r}):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
make("inline").run()
"""


@pytest.mark.parametrize("file", ["tuner.json", "journal.jsonl"])
def test_what_is_no_experiment_yet_hides_no_earlier_one(file: str, experiment_folder: Path) -> None:
    experiment_folder.mkdir(parents=True)
    here = str(Path(__file__).parent)
    program = "from half_written import make; make('inline', 1).run()"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": here}, timeout=50)
    earlier = experiment_folder / "made-2026-01-01-00-00-00-000"
    (experiment_folder / "made").rename(earlier)
    program = KILLED_AT_CREATION.format(here=here, file=file)
    assert subprocess.run([sys.executable, "-c", program], timeout=50).returncode == -signal.SIGKILL
    half = experiment_folder / "made-2026-02-02-00-00-00-000"
    (experiment_folder / "made").rename(half)
    assert any(half.iterdir())
    assert load_experiment("made").path == earlier
    assert Tuner.load("made").tuner_path == earlier
    assert list(get_metadata()) == [earlier.name]
    with pytest.raises(FileNotFoundError, match="no experiment 'made-2026-02-02-00-00-00-000'"):
        Tuner.resume(half.name)


def test_leftovers_of_the_tuner_are_deleted_and_files_of_the_user_are_not(tmp_path: Path) -> None:
    trial = tmp_path / "trials" / "0"
    (trial / "checkpoints.copying" / "part").mkdir(parents=True)
    (trial / "checkpoints").mkdir()
    left = [tmp_path / "tuner.json.77.tmp", trial / "config.json.77.tmp", trial / "run_trial.py.77.tmp"]
    others = [trial / "scratch.tmp", trial / "checkpoints" / "weights.tmp", tmp_path / "lock.1.a.tmp"]
    for path in (*left, *others):
        path.write_text("half")
    delete_leftovers(tmp_path, tmp_path / "trials")
    assert not [path for path in (*left, trial / "checkpoints.copying") if path.exists()]
    assert all(path.exists() for path in others)


def test_locks_of_nobody_are_deleted_once_they_are_old(tmp_path: Path) -> None:
    new, old = tmp_path / "lock.1.aaaaaaaa.tmp", tmp_path / "lock.1.bbbbbbbb.tmp"
    for path in (new, old):
        path.touch()
    os.utime(old, times=(time.time() - 3600,) * 2)
    ExperimentLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
