"""The log of an experiment: a line for each thing that happens, no more, and nothing on the terminal by itself."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, uniform

SCRIPT = """
    import os, signal, sys, time
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    for epoch in range(int(report.last_resource or 0) + 1, config["epochs"] + 1):
        if config.get("kind") == "error" and epoch == 2:
            sys.exit("no more milk")
        if config.get("kind") == "killed" and epoch == 2 and os.environ["STHYPER_RUN"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = "low" if config.get("kind") == "bad" else config["x"] / epoch
        report(epoch=epoch, loss=loss)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return level and first line of everything that was said, without what differs from run to run."""
    found = [f"{r.levelname} {r.getMessage().splitlines()[0]}" for r in caplog.records if r.name.startswith("sthyper")]
    found = [re.sub(r"[\d.]+s wallclock-time", "_s wallclock-time", line) for line in found]
    return [re.sub(r"process \d+ on .+ is taken", "process _ on _ is taken", line) for line in found]


def test_starts_pauses_resumes_and_ends(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = [{"x": 0.5}, {"x": 0.25}, {"x": 0.75}]
    space = {"x": uniform(0, 1), "epochs": 3}
    scheduler = ASHA(
        space,
        "loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=1,
        reduction_factor=3,
        points_to_evaluate=points,
        random_seed=0,
    )
    backend = LocalBackend(script, preload=False)
    criterion = StoppingCriterion(max_num_trials_started=3)
    with caplog.at_level(logging.INFO, logger="sthyper"):
        tuner = Tuner(backend, scheduler, criterion, n_workers=1, tuner_name="milk")
        tuner.run()
    assert lines(caplog) == [
        f"INFO experiment {tuner.name} in {tuner.tuner_path}: ASHA over LocalBackend, n_workers=1",
        "INFO trial 0 started, next decision at epoch=1: x=0.5, epochs=3",
        "INFO trial 0 paused at epoch=1 with loss=0.5",
        "INFO trial 1 started, next decision at epoch=1: x=0.25, epochs=3",
        "INFO trial 1 paused at epoch=1 with loss=0.25",
        "INFO trial 1 resumed after epoch=1, next decision at epoch=3",
        "INFO trial 1 completed at epoch=3 with loss=0.0833333",
        "INFO trial 2 started, next decision at epoch=1: x=0.75, epochs=3",
        "INFO trial 2 paused at epoch=1 with loss=0.75",
        "INFO max_num_trials_started=3 is reached: no further trial is started",
        "INFO tuning ended: max_num_trials_started is reached; 0 trials running, 1 finished, 2 paused, 5 reports, "
        "_s wallclock-time",
    ]


def test_faults_are_said_once_with_their_reason(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = {"x": 0.5, "kind": choice(["error", "killed", "bad", "none"]), "epochs": 2}
    points = [{"kind": kind} for kind in ("error", "killed", "bad")]
    scheduler = RandomSearch(space, "loss", points_to_evaluate=points, random_seed=0)
    backend = LocalBackend(script, preload=False)
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=3), n_workers=1, max_failures=5).run()
    said = lines(caplog)
    assert said[:2] == [
        "WARNING trial 0 failed: exit 1",
        "WARNING trial 1 runs again after epoch=1: it was killed from outside",
    ]
    assert re.fullmatch(r"WARNING trial 2 failed: bad report: .*'low'.*", said[2])
    assert len(said) == 3
    assert "no more milk" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.tuner_callback import TunerCallback

class Kill(TunerCallback):
    def on_trial_result(self, trial, status, result, decision):
        if trial.trial_id == 1 and result["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    scheduler = ASHA({"x": uniform(0, 1), "epochs": 3}, "loss", resource_attr="epoch", max_resource_attr="epochs",
                     grace_period=2, random_seed=0, points_to_evaluate=[{"x": 0.5}, {"x": 0.25}])
    Tuner(LocalBackend(Path(sys.argv[1]), preload=False), scheduler, StoppingCriterion(max_num_trials_started=2),
          n_workers=1, tuner_name="milk", suffix_tuner_name=False, callbacks=[Kill()]).run()
"""


def killed(script: Path) -> subprocess.CompletedProcess[str]:
    program = script.with_name("kill.py")
    program.write_text(KILLED)
    return subprocess.run([sys.executable, str(program), str(script)], capture_output=True, text=True, timeout=50)


def test_what_a_resume_does(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert killed(script).returncode == -signal.SIGKILL
    with caplog.at_level(logging.INFO, logger="sthyper"):
        tuner = Tuner.resume("milk", callbacks=[])
        tuner.run()
    said = [line for line in lines(caplog) if "processes of trials were left" not in line]
    assert said == [
        "INFO the lock of process _ on _ is taken over",
        f"INFO experiment milk in {tuner.tuner_path}: ASHA over LocalBackend, n_workers=1",
        "INFO the experiment goes on: 2 trials so far, 1 of them run again, 0 may be running still",
        "INFO trial 1 runs again after epoch=2: the tuner ended while it ran",
        "INFO trial 1 completed at epoch=3 with loss=0.0833333",
        "INFO max_num_trials_started=2 is reached: no further trial is started",
        "INFO tuning ended: max_num_trials_started is reached; 0 trials running, 2 finished, 6 reports, "
        "_s wallclock-time",
    ]


def test_nothing_is_said_when_all_goes_well_and_nobody_listens(script: Path) -> None:
    program = script.with_name("kill.py")
    program.write_text(KILLED.replace("callbacks=[Kill()]", "callbacks=[]"))
    run = subprocess.run([sys.executable, str(program), str(script)], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_import_installs_no_handler() -> None:
    program = (
        "import logging, sthyper, sthyper.tuner, sthyper.experiment\n"
        "loggers = [logging.getLogger()] + [logging.getLogger(n) for n in logging.root.manager.loggerDict]\n"
        "print([l.name for l in loggers if l.name.startswith('sthyper') or l is logging.root if l.handlers])\n"
        "print([l.name for l in loggers if l.name.startswith('sthyper') and l.level])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, env={**os.environ}
    )
    assert run.stdout.split() == ["[]", "[]"], run.stderr
