"""Tuner and both guards are killed at once: what is left of the trials is ended by the resumed tuner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.journal import read_journal

# The first run has a child by fork, one by exec that ignores SIGTERM and one that has left session and parent.
TRAIN = """
import os, signal, subprocess, sys, time
from sthyper import Reporter

report = Reporter()
if report.run == 0:
    sleep = [sys.executable, "-c", "import time; time.sleep(120)"]
    stay = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"]
    pids = [os.getpid(), subprocess.Popen(sleep).pid, subprocess.Popen(stay, start_new_session=True).pid]
    for daemon in (False, True):
        child = os.fork()
        if child == 0:
            if daemon:
                os.setsid()
                if (own := os.fork()):
                    open(os.path.join(report.trial_dir, "daemon"), "w").write(str(own))
                    os._exit(0)
            time.sleep(120)
            os._exit(0)
        if daemon:
            os.waitpid(child, 0)
            pids.append(int(open(os.path.join(report.trial_dir, "daemon")).read()))
        else:
            pids.append(child)
    time.sleep(0.3)
    open(os.path.join(report.trial_dir, "pids"), "w").write(" ".join(map(str, pids)))
report(loss=1.0)
if report.run == 0:
    time.sleep(120)
"""

LAUNCH = """
import sys; sys.path.insert(0, {here!r})
from test_leftovers import make
make({script!r}, {launch!r}).run()
"""


def make(script: str, launch: str) -> Tuner:
    backend = LocalBackend(script, launch=launch)
    search = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=1)
    criterion = StoppingCriterion(max_num_trials_started=2)
    return Tuner(backend, search, criterion, n_workers=2, tuner_name="orphaned", suffix_tuner_name=False)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("launch", ["fork", "exec"])
def test_what_nobody_supervises_any_more_is_ended_by_a_resume(
    write: Callable[..., Path], experiment_folder: Path, launch: str
) -> None:
    script = write(TRAIN)
    text = LAUNCH.format(here=str(Path(__file__).parent), script=str(script), launch=launch)
    command = [sys.executable, str(write(text, "launch.py"))]
    tuner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    trials = [experiment_folder / "orphaned" / "trials" / name / "pids" for name in ("0", "1")]
    family: list[psutil.Process] = []
    try:
        end = time.monotonic() + 30.0
        while not all(path.exists() and path.read_text() for path in trials):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        family = [psutil.Process(int(pid)) for path in trials for pid in path.read_text().split()]
        assert len(family) == 10
        (guardian,) = psutil.Process(tuner.pid).children()
        (server,) = guardian.children()
        for process in (tuner.pid, guardian.pid, server.pid):
            os.kill(process, signal.SIGSTOP)  # so that none of them can see another one die
        for process in (guardian.pid, server.pid, tuner.pid):
            os.kill(process, signal.SIGKILL)
        tuner.wait()
        left = [process for process in family if alive(process)]
        assert len(left) >= 8, "nothing is left over, so this test shows nothing"
        Tuner.resume("orphaned").run()
        assert [process for process in family if alive(process)] == []
        assert stranger.poll() is None
    finally:
        for process in family:
            if alive(process):
                process.kill()
        tuner.kill()
        tuner.wait()
        stranger.kill()
        stranger.wait()
    experiment = load_experiment("orphaned")
    assert [experiment.trials[i].status for i in (0, 1)] == ["Completed", "Completed"]
    causes = [r["cause"] for r in read_journal(experiment.path) if r["type"] == "resume"]
    assert causes == ["tuner_lost", "tuner_lost"]
