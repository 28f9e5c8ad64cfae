"""The example that finds the features that matter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "feature_gates.py"


def run(folder: Path, *arguments: str) -> tuple[list[int], float, float]:
    """Run the example; return its counts of found and closed features, and the two accuracies."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    counts = re.search(r"(\d+) of 5 informative features above 0.9, (\d+) of 95 others below 0.1", done.stdout)
    accuracies = re.search(r"test accuracy: ([\d.]+) exported, ([\d.]+) without gates", done.stdout)
    used = re.search(r"the exported Net uses (\d+) of 100 features", done.stdout)
    assert counts, done.stdout
    assert accuracies, done.stdout
    assert used, done.stdout
    return [int(counts[1]), int(counts[2]), int(used[1])], float(accuracies[1]), float(accuracies[2])


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    (_, closed, used), exported, plain = run(tmp_path, "--epochs", "8", "--warm_up_epochs", "0", "--penalty", "0.05")
    assert closed > 30
    assert used < 100
    assert 0.4 < exported <= 1
    assert 0.5 < plain < 0.95


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(5))
def test_the_features_that_matter_are_found(seed: int, tmp_path: Path) -> None:
    (found, closed, used), exported, plain = run(tmp_path, "--seed", str(seed))
    assert found == 5
    assert closed >= 90
    assert used <= 10
    assert exported >= plain


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [["--validation"], ["--estimator", "hard_concrete"], ["--estimator", "gumbel"]])
def test_other_ways(options: list[str], tmp_path: Path) -> None:
    (found, closed, _), exported, plain = run(tmp_path, *options)
    assert found == 5
    assert closed >= 90
    assert exported >= plain
