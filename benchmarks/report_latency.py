"""Time from the call of a Reporter to its return, with 8 trials, against the budget of 5 ms (median).

Each trial has one thread that computes 50 ms (CPU time) between its reports. On few cores the time includes the
wait for a core, as in real life.

Run: python benchmarks/report_latency.py
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform

BUDGET = 0.005
SCRIPT = """
import argparse, json, os, time
from sthyper import Reporter
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
report = Reporter()
seconds = []
for epoch in range(1, args.epochs + 1):
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        sum(range(1000))
    start = time.perf_counter()
    report(epoch=epoch, loss=args.x)
    seconds.append(time.perf_counter() - start)
with open(os.path.join(report.trial_dir, "seconds.json"), "w") as file:
    json.dump(seconds, file)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STHYPER_FOLDER"] = folder
        script = Path(folder) / "train.py"
        script.write_text(SCRIPT)
        scheduler = RandomSearch({"x": uniform(0.0, 1.0), "epochs": 100}, metric="loss", random_seed=0)
        tuner = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=8), n_workers=8)
        tuner.run()
        seconds = []
        for path in tuner.tuner_path.glob("trials/*/seconds.json"):
            seconds += json.loads(path.read_text())
    cuts = statistics.quantiles(seconds, n=20)
    median = statistics.median(seconds)
    print(f"{len(seconds)} reports of 8 trials: median {median * 1e3:.2f} ms, 95th percentile {cuts[-1] * 1e3:.2f} ms")
    print(f"ratio of the median to the budget of {BUDGET * 1e3:.0f} ms: {median / BUDGET:.2f}")


if __name__ == "__main__":
    main()
