"""The example of a scheduler of one's own: it keeps the contract, decides as described, and runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sthyper.config_space import uniform
from sthyper.schedulers import TrialScheduler
from sthyper.testing import SchedulerConformance
from sthyper.trial import Trial

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))  # the folder of a script that is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
        sys.modules.pop("train_height", None)
    return module


class TestRankScheduler(SchedulerConformance):
    repeats_configurations = True

    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return load("custom_scheduler").RankScheduler(config_space, "loss", random_seed=random_seed)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_stops_what_is_among_the_worst_fifth(mode: str) -> None:
    scheduler = load("custom_scheduler").RankScheduler({"x": uniform(0, 1)}, "loss", mode=mode)
    trial = Trial(0, {"x": 0.5}, datetime(2020, 1, 1))
    sign = 1 if mode == "min" else -1
    decisions = [scheduler.on_trial_result(trial, {"loss": sign * float(v)}) for v in (1, 2, 3, 4, 5, 6, 0)]
    if mode == "min":
        # Ranks 0/1, 1/2, 2/3, 3/4, 4/5, 5/6, 0/7.
        assert decisions == ["CONTINUE"] * 4 + ["STOP", "STOP", "CONTINUE"]
    else:
        # The newest is the smallest of all, rank 1 - 0, until the last one: 1 - 6/7.
        assert decisions == ["STOP"] * 6 + ["CONTINUE"]


def test_the_training_script_is_the_known_curve() -> None:
    module = load("train_height")
    assert module.train_height(0, 5, 20) == 12.0
    assert module.train_height(2, 5, 20) == 7.0
    assert list(module.height_config_space(9)) == ["steps", "width", "height"]
    assert module.height_config_space(9, 0.5)["sleep_time"] == 0.5
    names = (module.RESOURCE_ATTR, module.METRIC_ATTR, module.METRIC_MODE, module.MAX_RESOURCE_ATTR)
    assert names == ("epoch", "mean_loss", "min", "steps")


def test_the_training_script_runs_by_hand() -> None:
    command = [sys.executable, str(EXAMPLES / "train_height.py"), "--width=5", "--height=20", "--sleep_time=0"]
    output = subprocess.run([*command, "--steps=3"], capture_output=True, text=True, check=True, timeout=30).stdout
    lines = output.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("[tune-metric]: ") for line in lines)
    assert '"mean_loss": 12.0' in lines[0]
    assert '"epoch": 3' in lines[2]


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "custom_scheduler.py"), "--trials=6", "--steps=4", "--sleep_time=0.01"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=50,
        cwd=tmp_path,
        env={**os.environ, "STHYPER_FOLDER": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[-1].startswith("best trial: ")
    assert "values from 6 trials of up to 4 steps" in lines[-2]
    assert 6 <= int(lines[-2].split()[0]) <= 24
