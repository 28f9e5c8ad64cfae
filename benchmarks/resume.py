"""Time and memory of a resume that goes through the whole journal, against the budget of 700 MB for 500 000 reports.

The journal is that of a simulated experiment with ASHA on 16 workers, its trials of up to 1000 epochs; there are no
snapshots, so every line is gone through. The resume is a process of its own, which has nothing left to do behind the
record; its peak memory includes the interpreter and the imports.

Run: python benchmarks/resume.py [--reports N] [--folder FOLDER] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sthyper import StoppingCriterion, Tuner
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.constants import ST_JOURNAL_FILENAME
from sthyper.testing._simulated_backend import SimulatedTrials

MB = 1e6
BUDGET = 700 * MB
EPOCHS = 1000
NAME = "resumed"


def make_scheduler() -> ASHA:
    space = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0), "z": uniform(0.0, 1.0), "epochs": EPOCHS}
    return ASHA(
        space,
        metric="loss",
        type="stopping",
        max_resource_attr="epochs",
        grace_period=EPOCHS // 2,
        reduction_factor=2,
        random_seed=0,
    )


def write(reports: int) -> Path:
    """Run the experiment and return its folder."""
    tuner = Tuner(
        SimulatedTrials(EPOCHS),
        make_scheduler(),
        StoppingCriterion(max_num_evaluations=reports),
        n_workers=16,
        tuner_name=NAME,
        suffix_tuner_name=False,
        callbacks=[],
        save_tuner=False,
    )
    tuner.run()
    return tuner.tuner_path


def go_on(folder: Path, profile: bool) -> None:
    """Resume the experiment; print seconds and peak memory in bytes."""
    profiler = cProfile.Profile()
    start = time.monotonic()
    if profile:
        profiler.enable()
    Tuner.resume(folder, trial_backend=SimulatedTrials(EPOCHS), callbacks=[]).run()
    seconds = time.monotonic() - start
    if profile:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reports", type=int, default=500_000, help="number of reports in the journal")
    parser.add_argument("--folder", type=Path, help="keep the experiment here and use it again")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, which takes more of it")
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.go_on is not None:
        go_on(args.go_on, args.profile)
        return
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["STHYPER_FOLDER"] = str(args.folder or temporary)
        folder = Path(os.environ["STHYPER_FOLDER"]) / NAME
        if not folder.exists():
            folder = write(args.reports)
        journal = folder / ST_JOURNAL_FILENAME
        with open(journal, "rb") as file:
            lines = sum(1 for _ in file)
        command = [sys.executable, __file__, "--go-on", str(folder), *(["--profile"] if args.profile else [])]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(f"{lines} lines, {journal.stat().st_size / MB:.0f} MB: {found['seconds']:.1f} s, ", end="")
        print(f"peak memory {found['peak'] / MB:.0f} MB")
        print(f"ratio of the memory to the budget of {BUDGET / MB:.0f} MB: {found['peak'] / BUDGET:.2f}")


if __name__ == "__main__":
    main()
