"""The examples run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sthyper.experiment import load_experiment
from sthyper.journal import read_journal

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, cwd: Path, timeout: float = 55.0) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = run("quickstart.py", cwd=tmp_path, timeout=170.0)
    found = re.fullmatch(r"best test accuracy: (0\.\d{3}|1\.000)", out.splitlines()[-1])
    assert found is not None, out
    assert float(found[1]) >= 0.95
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    experiment = load_experiment("quickstart")
    assert len(experiment.trials) == 40
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.exists()
    check_exactness(experiment.path)


def check_exactness(path: Path) -> None:
    """No report beyond a milestone before the promotion, no epoch reported twice."""
    milestone: dict[int, int] = {}
    epochs: dict[int, list[int]] = {}
    for record in read_journal(path):
        if record["type"] in ("start", "resume"):
            milestone[record["trial_id"]] = record["milestone"]
        elif record["type"] == "report":
            assert record["metrics"]["epoch"] <= milestone[record["trial_id"]]
            epochs.setdefault(record["trial_id"], []).append(record["metrics"]["epoch"])
    assert len(epochs) == 40
    assert max(milestone.values()) == 27
    for seen in epochs.values():
        assert seen == list(range(1, len(seen) + 1))


def test_quickstart_with_few_trials(tmp_path: Path) -> None:
    out = run("quickstart.py", "--trials", "3", "--figure", "few.png", cwd=tmp_path)
    assert out.splitlines()[-1].startswith("best test accuracy: ")
    assert (tmp_path / "few.png").exists()


def test_digits_with_checkpoints(tmp_path: Path) -> None:
    out = run("launch_digits.py", cwd=tmp_path)
    assert "best" in out
    experiment = load_experiment("digits")
    assert experiment.best_value is not None
    assert experiment.best_value > 0.9
    assert experiment.best_checkpoint is not None
    assert str(experiment.best_checkpoint) in out


def test_train_digits_by_hand(tmp_path: Path) -> None:
    out = run("train_digits.py", "--epochs", "2", "--lr", "0.01", "--width", "32", "--dropout", "0.1", cwd=tmp_path)
    assert out.count("[tune-metric]") == 2


def test_custom_scheduler(tmp_path: Path) -> None:
    out = run("custom_scheduler.py", cwd=tmp_path)
    assert "best" in out.lower()
    (experiment,) = (load_experiment(p.name) for p in Path(os.environ["STHYPER_FOLDER"]).iterdir())
    decisions = set(experiment.results["st_decision"])
    assert decisions == {"CONTINUE", "STOP"}
