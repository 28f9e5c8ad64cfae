"""The example that trains masks of a random network does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "masked_network.py"


@pytest.mark.slow
def test_masks_of_a_random_network_learn_digits(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--seed", "1", "--epochs", "15"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    lines = run.stdout.splitlines()
    random, sampled, threshold, exported = (
        float(re.search(r"test accuracy ([0-9.]+)", line).group(1))  # type: ignore[union-attr]
        for line in lines
        if "accuracy" in line
    )
    assert random < 0.3
    assert min(sampled, threshold) > 0.9
    assert exported == threshold
    assert "weights changed: False" in lines
    assert 30 < float(re.search(r"kept weights: ([0-9.]+)%", run.stdout).group(1)) < 70  # type: ignore[union-attr]
    assert "exported ['Linear', 'ReLU', 'Linear', 'ReLU', 'Linear']" in run.stdout
