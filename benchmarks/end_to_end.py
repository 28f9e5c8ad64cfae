"""16 trials x 5 epochs of a small torch network on 2 workers, against bare training; budget 1.3 times.

Both sides pay for their imports and start-up. Bare training is two plain processes that run 8 of the same 16
configurations each. The two are interleaved three times and the minimum of each counts.

Run: python benchmarks/end_to_end.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUDGET = 1.3
TRIALS = 16
TRAIN = '''
"""Trains a small network on scikit-learn's digits."""
import argparse


def train(lr, width, epochs, report):
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(1400)
        for batch in order.split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
        report(epoch=epoch, accuracy=accuracy)


if __name__ == "__main__":
    from sthyper import Reporter

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--width", type=int)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    train(args.lr, args.width, args.epochs, Reporter())
'''
LAUNCH = """
import sys
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import loguniform, randint
space = {"lr": loguniform(1e-4, 1e-2), "width": randint(64, 256), "epochs": 5}
scheduler = RandomSearch(space, metric="accuracy", mode="max", random_seed=0)
Tuner(LocalBackend(sys.argv[1]), scheduler, StoppingCriterion(max_num_trials_started=16), n_workers=2).run()
"""
BARE = """
import json, os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import train
for config in json.loads(sys.argv[2]):
    import torch
    torch.set_num_threads(int(sys.argv[3]))
    train.train(report=lambda **metrics: None, **config)
"""


def main() -> None:
    threads = max(1, (os.cpu_count() or 1) // 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, code in (("train.py", TRAIN), ("launch.py", LAUNCH), ("bare.py", BARE)):
            (folder / path).write_text(code)
        tuned, bare = [], []
        for repeat in range(3):
            experiments = folder / str(repeat)
            seconds = timed([[sys.executable, str(folder / "launch.py"), str(folder / "train.py")]], experiments)
            tuned.append(seconds)
            configs = [json.loads(p.read_text()) for p in sorted(experiments.glob("*/trials/*/config.json"))]
            assert len(configs) == TRIALS, f"{len(configs)} trials"
            commands = [
                [sys.executable, str(folder / "bare.py"), str(folder / "train.py"), json.dumps(half), str(threads)]
                for half in (configs[::2], configs[1::2])
            ]
            bare.append(timed(commands, experiments))
            print(f"tuned {tuned[-1]:.2f} s, bare {bare[-1]:.2f} s", flush=True)
    ratio = min(tuned) / min(bare)
    print(f"minimum: tuned {min(tuned):.2f} s, bare {min(bare):.2f} s; ratio {ratio:.2f} (budget {BUDGET})")
    print(f"ratio to the budget: {ratio / BUDGET:.2f}")


def timed(commands: list[list[str]], folder: Path) -> float:
    env = {**os.environ, "STHYPER_FOLDER": str(folder), "STHYPER_QUIET": "1"}
    start = time.perf_counter()
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - start
    assert codes == [0] * len(codes), codes
    return seconds


if __name__ == "__main__":
    main()
