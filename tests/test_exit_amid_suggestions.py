"""A suggestion that is being computed neither crashes a process that exits, nor keeps it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper._tuning.background import BackgroundThread
from sthyper.backend import PythonBackend
from sthyper.config_space import uniform
from sthyper.errors import TrialFailed
from sthyper.schedulers import FIFOScheduler
from sthyper.searchers import BaseSearcher

SEARCHER = """
import sys, time
from sthyper.searchers import BaseSearcher

class Slow(BaseSearcher):
    slow = True
    def get_config(self, trial_id):
        if trial_id > 0:
            open("computing", "w").close()
            {compute}
        return {{"x": 0.5}}
"""
# Where the interpreter kills threads that are within PyTorch, the process aborts.
IN_TORCH = "a = torch.rand(300, 300); [torch.linalg.svd(a) for _ in range(10**9)]"
ASLEEP = "[time.sleep(0.01) for _ in range(10**9)]"
CATCHES = "\n".join(
    ["while True:", "    try:", "        time.sleep(0.01)", "    except Exception:", "        pass"]
).replace("\n", "\n            ")

TUNE = """
from sthyper import Reporter, StoppingCriterion, Tuner
from sthyper.backend import PythonBackend
from sthyper.config_space import uniform
from sthyper.schedulers import FIFOScheduler

SPACE = {"x": uniform(0, 1)}

def train(x):
    import os, time
    while not os.path.exists(FLAG):
        time.sleep(0.01)
    if FAILS:
        raise RuntimeError("as it is meant")
    time.sleep(60)

if __name__ == "__main__":
    import os, sthyper.tuner
    sthyper.tuner._MAX_SUGGESTION_WAIT = 0.2
    sched = FIFOScheduler(SPACE, "loss", searcher=Slow(SPACE, points_to_evaluate=[]), random_seed=0)
    Tuner(PythonBackend(train, SPACE), sched, StoppingCriterion(max_wallclock_time=60), 2, max_failures=0).run()
"""


def start(tmp_path: Path, compute: str, fails: bool) -> subprocess.Popen[str]:
    code = ("import torch\n" if compute == IN_TORCH else "") + SEARCHER.format(compute=compute) + TUNE
    code = code.replace("FLAG", repr(str(tmp_path / "computing"))).replace("FAILS", repr(fails))
    (tmp_path / "script.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("compute", [ASLEEP, CATCHES, pytest.param(IN_TORCH, marks=pytest.mark.slow)])
def test_an_error_ends_the_process_in_order(tmp_path: Path, compute: str) -> None:
    process = start(tmp_path, compute, fails=True)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 1, output
    assert "TrialFailed" in output
    assert "terminate called" not in output


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("presses", [1, 2])
def test_so_does_ctrl_c(tmp_path: Path, presses: int) -> None:
    process = start(tmp_path, IN_TORCH, fails=False)
    while not (tmp_path / "computing").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    if presses == 2:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=50)
    assert process.returncode in (0, 1, 130, -signal.SIGINT), output
    assert "terminate called" not in output


class Slow(BaseSearcher):
    slow = True
    ended = False

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        if trial_id:
            time.sleep(2.0)
            self.ended = True
        return {"x": 0.5}


def fail(x: float) -> None:
    raise RuntimeError("as it is meant")


def test_an_experiment_that_ends_waits_a_while_for_a_suggestion() -> None:
    space = {"x": uniform(0, 1)}
    searcher = Slow(space, points_to_evaluate=[])
    scheduler = FIFOScheduler(space, "loss", searcher=searcher, random_seed=0)
    tuner = Tuner(PythonBackend(fail, space), scheduler, StoppingCriterion(max_wallclock_time=60), 2, max_failures=0)
    with pytest.raises(TrialFailed):
        tuner.run()
    assert searcher.ended


def test_a_thread_is_broken_off() -> None:
    ended: list[Any] = []

    def work() -> None:
        try:
            while True:
                try:
                    time.sleep(0.001)
                except Exception:
                    ended.append("caught")
        finally:
            ended.append("ended")

    thread = BackgroundThread(work, "sthyper-test")
    thread.break_off()  # nothing to do yet
    thread.start()
    assert thread.daemon
    thread.break_off()
    thread.join(5.0)
    assert ended == ["ended"]
    thread.break_off()
