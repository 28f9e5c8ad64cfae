"""Trials that write a lot: the tuner needs neither memory nor time for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sthyper import load_experiment

FLOOD = """
import sys, time
from sthyper import Reporter

report = Reporter()
if report.trial_id == 0:
    stream, size = sys.STREAM.buffer, SIZE
    lines = b"a line of an endless progress bar, 0.1234567 [tune-metric] \\n" * 16384
    for _ in range(size // 2 // len(lines)):
        stream.write(lines)
    for _ in range(size // 2 >> 20):  # a line without end
        stream.write(b"x" * (1 << 20))
    stream.write(b"\\nthe end\\n")
    stream.flush()
for epoch in range(1, 4):
    REPORT
    time.sleep(0.05)
if report.trial_id == 0:
    sys.exit(3)
"""

LAUNCH = r"""
import re
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform

scheduler = RandomSearch({{"x": uniform(0, 1)}}, metric="loss", random_seed=1)
backend = LocalBackend({script!r}, launch={launch!r})
criterion = StoppingCriterion(max_num_trials_started=4)
Tuner(backend, scheduler, criterion, n_workers=2, tuner_name="flooded", suffix_tuner_name=False).run()
# Not getrusage: what that says begins with the size of the process that started this one.
print(int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def flood(write: Callable[..., Path], folder: Path, stream: str, launch: str, size: int) -> tuple[float, float]:
    """Run an experiment with a trial that writes ``size`` bytes; return seconds, and the most MB that the tuner had."""
    if shutil.disk_usage(folder.parent).free < 3 * size:
        pytest.skip("there is not enough room on the disk")
    line = "report(epoch=epoch, loss=1.0)"
    if launch == "exec":  # the tuner looks for reports in what such a trial prints
        line = """print('[tune-metric]: {"epoch": %d, "loss": 1.0}' % epoch, flush=True)"""
    text = FLOOD.replace("STREAM", stream).replace("SIZE", str(size)).replace("REPORT", line)
    script = write(text, f"flood_{stream}_{launch}.py")
    command = [sys.executable, str(write(LAUNCH.format(script=str(script), launch=launch), "launch.py"))]
    env = {**os.environ, "STHYPER_FOLDER": str(folder)}
    start = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    seconds = time.monotonic() - start
    try:
        assert done.returncode == 0, done.stderr
        assert len(done.stderr) < 20_000
        path = folder / "flooded"
        output = path / "trials" / "0" / f"std.{stream[3:]}"
        assert output.stat().st_size >= size - (4 << 20)
        experiment = load_experiment(path)
        assert [experiment.trials[i].status for i in range(4)] == ["Failed", *["Completed"] * 3]
        assert experiment.trials[0].end_reason == "exit 3"
        assert sorted(experiment.results["epoch"]) == sorted([1, 2, 3] * 4)
    finally:
        for path in folder.glob("*/trials/0/std.*"):
            path.unlink()
    return seconds, float(done.stdout.split()[-1])


@pytest.mark.parametrize(("stream", "launch"), [("stdout", "fork"), ("stderr", "fork"), ("stdout", "exec")])
def test_output_does_not_pass_through_the_memory_of_the_tuner(
    write: Callable[..., Path], tmp_path: Path, stream: str, launch: str
) -> None:
    _, megabytes = flood(write, tmp_path / "folder", stream, launch, 128 << 20)
    assert megabytes < 200


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("stream", "launch"), [("stdout", "fork"), ("stderr", "fork"), ("stdout", "exec")])
def test_one_gigabyte_of_output(
    write: Callable[..., Path], tmp_path: Path, stream: str, launch: str, record_property: Callable[..., None]
) -> None:
    seconds, megabytes = flood(write, tmp_path / "folder", stream, launch, 1 << 30)
    record_property("seconds", seconds)
    print(f"1 GB of {stream} with {launch}: {seconds:.1f} s, tuner {megabytes:.0f} MB")
    assert megabytes < 200
    assert seconds < 60.0
