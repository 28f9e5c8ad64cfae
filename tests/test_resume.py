"""Experiments whose tuner was killed or stopped go on where their record ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend, PythonBackend
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay

EPOCHS = 9
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 50), "epochs": EPOCHS}

# The state of this training is the number of epochs done, which the tuner knows.
TRAIN = """
import argparse, os, time
from pathlib import Path
from sthyper import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--n", type=int)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
report = Reporter()
for epoch in range(int(os.environ.get("STHYPER_LAST_RESOURCE") or 0) + 1, args.epochs + 1):
    time.sleep(0.01)
    with open(Path(report.trial_dir) / "trained.txt", "a") as log:
        log.write(f"{epoch} {report.run}\\n")
    report(epoch=epoch, loss=(args.x - 0.3) ** 2 + args.n / 100 + 1 / epoch)
"""

LAUNCH = """
import sys
sys.path.insert(0, {here!r})
from test_resume import *

if sys.argv[1] == "start":
    tuner = Tuner(
        LocalBackend({train!r}), scheduler(sys.argv[2]), StoppingCriterion(max_num_trials_started=12), int(sys.argv[3]),
        tuner_name="killed", suffix_tuner_name=False,
    )
else:
    tuner = Tuner.resume("killed")
tuner.run()
"""


def scheduler(kind: str) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(SPACE, metric="loss", random_seed=5)
    if kind == "grid":
        return GridSearch(SPACE | {"x": choice([0.1, 0.2, 0.3])}, metric="loss", random_seed=5)
    brackets = 3 if kind.endswith("3") else 1
    return ASHA(
        SPACE,
        metric="loss",
        type=kind.removesuffix("3"),
        brackets=brackets,
        max_resource_attr="epochs",
        reduction_factor=2,
        random_seed=5,
    )


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def lines(folder: Path) -> int:
    try:
        return (folder / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def run_and_kill(tmp_path: Path, train: Path, kind: str, n_workers: int, kills: int, seed: int) -> Path:
    """Run an experiment whose tuner is killed ``kills`` times, at random lines of its journal; return its folder."""
    launch = tmp_path / "launch.py"
    launch.write_text(LAUNCH.format(here=str(Path(__file__).parent), train=str(train)))
    rng = random.Random(seed)
    folder = Path(os.environ["STHYPER_FOLDER"]) / "killed"
    command = [sys.executable, str(launch), "start", kind, str(n_workers)]
    for kill in range(kills + 1):
        with open(tmp_path / "tuner.txt", "a") as out:
            tuner = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            goal = lines(folder) + rng.randrange(1, 60) if kill < kills else sys.maxsize
            while tuner.poll() is None and lines(folder) < goal:
                time.sleep(0.002)
            if tuner.poll() is None:
                time.sleep(rng.uniform(0.0, 0.01))
                os.kill(tuner.pid, signal.SIGKILL)
            elif kill < kills:
                assert tuner.returncode == 0, (tmp_path / "tuner.txt").read_text()
                return folder
        finally:
            tuner.wait(60)
        if lines(folder):
            command = [sys.executable, str(launch), "resume"]
    assert tuner.returncode == 0, (tmp_path / "tuner.txt").read_text()
    return folder


def counted(folder: Path) -> list[tuple[int, int, int, str]]:
    """Trial, run, epoch and decision of the reports that count, in order."""
    reports, result = {}, []
    for record in read_journal(folder):
        if record["type"] in ("report", "decision"):
            key = (record["trial_id"], record["run"], record["client"], record["seq"])
            if record["type"] == "report":
                assert key not in reports
                reports[key] = record["metrics"]
            elif record["counted"]:
                result.append((key[0], key[1], reports[key]["epoch"], record["decision"]))
    return result


def check_whole(folder: Path, kind: str) -> None:
    """Nothing is lost, nothing is there twice, and a fresh scheduler decides the same."""
    assert replay(folder, scheduler(kind)) == []
    reports = counted(folder)
    experiment = load_experiment(folder)
    assert {trial.status for trial in experiment.trials.values()} <= {"Completed", "Stopped", "Paused"}
    assert len(experiment.trials) == 12
    assert experiment.end_reason == "max_num_trials_started is reached"
    if scheduler(kind).resource_attr is None:
        return  # the tuner does not know how far a trial had come: it begins anew, and all its reports count
    assert max(Counter((trial, epoch) for trial, _, epoch, _ in reports).values()) == 1
    recorded_in = {(trial, epoch): run for trial, run, epoch, _ in reports}
    for trial_id in experiment.trials:
        for line in (folder / "trials" / str(trial_id) / "trained.txt").read_text().splitlines():
            epoch, run = map(int, line.split())
            assert run <= recorded_in[trial_id, epoch], "an epoch whose report was recorded was trained again"
        epochs = [epoch for trial, _, epoch, _ in reports if trial == trial_id]
        assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "seed"), [("promotion", 0), ("promotion3", 1), ("stopping", 2), ("random", 3)])
def test_killed_and_resumed(tmp_path: Path, train: Path, kind: str, seed: int) -> None:
    folder = run_and_kill(tmp_path, train, kind, n_workers=2, kills=2, seed=seed)
    assert sum(record["type"] == "session" for record in read_journal(folder)) >= 2
    check_whole(folder, kind)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["random", "grid", "stopping", "promotion", "promotion3"])
def test_decisions_equal_those_of_the_undisturbed_run(tmp_path: Path, train: Path, kind: str) -> None:
    folder = run_and_kill(tmp_path, train, kind, n_workers=1, kills=3, seed=7)
    check_whole(folder, kind)
    other = Tuner(LocalBackend(train), scheduler(kind), StoppingCriterion(max_num_trials_started=12), n_workers=1)
    other.run()
    suggestions = [
        [record["config"] for record in read_journal(path) if record["type"] == "suggestion"]
        for path in (folder, other.tuner_path)
    ]
    assert suggestions[0] == suggestions[1]
    if scheduler(kind).resource_attr is None:
        return
    decisions = [sorted((t, e, d) for t, _, e, d in counted(path)) for path in (folder, other.tuner_path)]
    assert decisions[0] == decisions[1]


def make(train: Path, trials: int = 4, **changes: Any) -> Tuner:
    arguments: dict[str, Any] = {
        "trial_backend": changes.get("trial_backend") or LocalBackend(train, launch="inline"),
        "scheduler": scheduler("promotion"),
        "stop_criterion": StoppingCriterion(max_num_trials_started=trials),
        "n_workers": 1,
    }
    return Tuner(**(arguments | changes))


def configs(folder: Path) -> list[dict[str, Any]]:
    return [record["config"] for record in read_journal(folder) if record["type"] == "start"]


def test_more_trials_after_the_end(train: Path) -> None:
    short, long = make(train, 4), make(train, 9)
    short.run()
    long.run()
    before = (short.tuner_path / "metadata.json").read_bytes()
    result = Tuner.resume(short.name, stop_criterion=StoppingCriterion(max_num_trials_started=9)).run()
    assert configs(short.tuner_path) == configs(long.tuner_path)
    assert replay(short.tuner_path, scheduler("promotion")) == []
    assert len(result.trials) == 9
    assert len(result.results) == len(counted(short.tuner_path))
    assert (short.tuner_path / "metadata.json").read_bytes() == before


def test_the_table_of_results_is_whole(train: Path) -> None:
    import pandas as pd

    first = make(train, 3)
    first.run()
    Tuner.resume(first.tuner_path, stop_criterion=StoppingCriterion(max_num_trials_started=6)).run()
    stored = pd.read_csv(first.tuner_path / "results.csv.zip")
    assert list(zip(stored.trial_id, stored.epoch, strict=True)) == [(t, e) for t, _, e, _ in counted(first.tuner_path)]
    assert stored.st_tuner_time.is_monotonic_increasing


def test_resumed_with_nothing_left_to_do_ends_at_once(train: Path) -> None:
    tuner = make(train)
    tuner.run()
    before = counted(tuner.tuner_path)
    Tuner.resume(tuner.name).run()
    assert counted(tuner.tuner_path) == before


def test_interrupted_trials_go_on(train: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(TRAIN.replace("time.sleep(0.01)", "time.sleep(0.1)"))
    tuner = make(
        slow,
        trial_backend=LocalBackend(slow),
        scheduler=ASHA(SPACE, metric="loss", max_resource_attr="epochs", grace_period=8, random_seed=5),
        stop_criterion=StoppingCriterion(max_num_evaluations=5),
        n_workers=2,
    )
    tuner.run()
    assert [t.end_reason for t in load_experiment(tuner.tuner_path).trials.values()] == ["interrupted", "interrupted"]
    result = Tuner.resume(tuner.name, stop_criterion=StoppingCriterion(max_num_evaluations=14), n_workers=1).run()
    first = [epoch for trial, _, epoch, _ in counted(tuner.tuner_path) if trial == 0]
    assert first == list(range(1, EPOCHS + 1))
    assert result.trials[0].status == "Completed"
    assert result.trials[0].runs == 2
    assert len(counted(tuner.tuner_path)) == 14


def test_time_is_that_of_all_sessions(train: Path) -> None:
    first = make(train, 3)
    first.run()
    spent = first.tuning_status.wallclock_time
    time.sleep(0.5)
    second = Tuner.resume(first.name, stop_criterion=StoppingCriterion(max_num_trials_started=4))
    second.run()
    times = [record["tuner_time"] for record in read_journal(first.tuner_path) if record["type"] == "report"]
    assert times == sorted(times)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) < 0.45
    assert second.tuning_status.wallclock_time > spent - 0.1


def test_enqueued_configurations_and_added_results_are_remembered(train: Path) -> None:
    first = make(train, 3)
    for x in (0.11, 0.12, 0.13, 0.14):
        first.enqueue({"x": x, "n": 7})
    first.add_result({"x": 0.2, "n": 3}, {"epoch": 1, "loss": 0.01})
    first.run()
    Tuner.resume(first.name, stop_criterion=StoppingCriterion(max_num_trials_started=5)).run()
    tried = [config["x"] for config in configs(first.tuner_path)]
    assert tried[:3] == [0.11, 0.12, 0.13]
    assert tried[4] == 0.14  # after the trial that the scheduler had suggested already
    assert len(configs(first.tuner_path)) == 5
    assert replay(first.tuner_path, scheduler("promotion")) == []


def square(x: float, n: int, epochs: int) -> float:
    return x**2


def test_a_function_has_to_be_given_again() -> None:
    backend = PythonBackend(square, SPACE, launch="inline")
    tuner = make(Path("unused"), trial_backend=backend, scheduler=scheduler("random"))
    tuner.run()
    with pytest.raises(ExperimentError, match=r"trial_backend has to be given .* square \(function\)"):
        Tuner.resume(tuner.name)
    again = PythonBackend(square, SPACE, launch="inline")
    criterion = StoppingCriterion(max_num_trials_started=6)
    assert len(Tuner.resume(tuner.name, trial_backend=again, stop_criterion=criterion).run().trials) == 6


def test_a_scheduler_of_another_kind_is_found_out(train: Path) -> None:
    tuner = make(train)
    tuner.run()
    other = ASHA(SPACE, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=6)
    with pytest.raises(ExperimentError, match=r"line \d+: .* made with the same arguments as before"):
        Tuner.resume(tuner.name, scheduler=other).run()


def test_what_was_decided_and_not_written_is_decided_again(train: Path) -> None:
    tuner, other = make(train), make(train)
    tuner.run()
    other.run()
    path = tuner.tuner_path / "journal.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in whole]
    # Killed right after each kind of line.
    for kind in ("ask", "suggestion", "start", "report", "decision", "status"):
        cut = [i for i, k in enumerate(kinds) if k == kind][-3]
        path.write_bytes(b"".join(whole[: cut + 1]) + b'{"type":"torn')
        Tuner.resume(tuner.tuner_path).run()
        assert configs(tuner.tuner_path) == configs(other.tuner_path), kind
        decisions = [sorted((t, e, d) for t, _, e, d in counted(p)) for p in (tuner.tuner_path, other.tuner_path)]
        assert decisions[0] == decisions[1], kind
        assert replay(tuner.tuner_path, scheduler("promotion")) == [], kind


def test_a_running_experiment_is_not_resumed(tmp_path: Path, train: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_resume import *
        make(Path({str(train)!r}), 10000, tuner_name="running", suffix_tuner_name=False).run()
        """)
    )
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        folder = Path(os.environ["STHYPER_FOLDER"]) / "running"
        while lines(folder) < 10:
            time.sleep(0.05)
        with pytest.raises(ExperimentError, match="is run by process"):
            Tuner.resume("running").run()
    finally:
        running.kill()
        running.wait()


def test_what_was_given_to_the_tuner_is_for_its_owner_only(train: Path) -> None:
    backend = LocalBackend(train, launch="inline", environment={"SECRET": "swordfish"})
    tuner = make(train, trial_backend=backend)
    tuner.run()
    assert (tuner.tuner_path / "tuner.json").stat().st_mode & 0o777 == 0o600
    for path in tuner.tuner_path.rglob("*"):
        if path.is_file() and path.name != "tuner.json":
            assert b"swordfish" not in path.read_bytes()
    assert Tuner.resume(tuner.name).trial_backend.environment == {"SECRET": "swordfish"}
