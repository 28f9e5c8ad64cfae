"""Experiments whose tuner was killed or stopped go on where their record ends."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment, tune
from sthyper.backend import LocalBackend, PythonBackend
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ExperimentError
from sthyper.experiment import ExperimentResult
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

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
import sthyper._tuning.saving

if sys.argv[1] == "start":
    tuner = Tuner(
        LocalBackend({train!r}), scheduler(sys.argv[2]), StoppingCriterion(max_num_trials_started=12), int(sys.argv[3]),
        tuner_name="killed", suffix_tuner_name=False, snapshot_interval=float(sys.argv[4]),
    )
else:
    tuner = Tuner.resume("killed")
    print("begins with", tuner._past.snapshot and tuner._past.snapshot.path.name, file=sys.stderr)
sthyper._tuning.saving.SHARE_OF_TIME = 1.0
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


def run_and_kill(
    tmp_path: Path, train: Path, kind: str, n_workers: int, kills: int, seed: int, interval: float = 0.0
) -> Path:
    """Run an experiment whose tuner is killed ``kills`` times, at random lines of its journal; return its folder."""
    launch = tmp_path / "launch.py"
    launch.write_text(LAUNCH.format(here=str(Path(__file__).parent), train=str(train)))
    rng = random.Random(seed)
    folder = Path(os.environ["STHYPER_FOLDER"]) / "killed"
    command = [sys.executable, str(launch), "start", kind, str(n_workers), str(interval)]
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
    assert max(Counter((trial, epoch) for trial, _, epoch, _ in reports).values()) == 1
    recorded_in = {(trial, epoch): run for trial, run, epoch, _ in reports}
    for trial_id in experiment.trials:
        for line in (folder / "trials" / str(trial_id) / "trained.txt").read_text().splitlines():
            epoch, run = map(int, line.split())
            assert run <= recorded_in[trial_id, epoch], "an epoch whose report was recorded was trained again"
        epochs = [epoch for trial, _, epoch, _ in reports if trial == trial_id]
        assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("interval", [0.02, 3600.0])
@pytest.mark.parametrize(("kind", "seed"), [("promotion", 0), ("promotion3", 1), ("stopping", 2), ("random", 3)])
def test_killed_and_resumed(tmp_path: Path, train: Path, kind: str, seed: int, interval: float) -> None:
    folder = run_and_kill(tmp_path, train, kind, n_workers=2, kills=2, seed=seed, interval=interval)
    begins = [line for line in (tmp_path / "tuner.txt").read_text().splitlines() if line.startswith("begins with")]
    assert any(line.endswith(".json") for line in begins) == (interval < 1), begins
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
    with pytest.raises(ExperimentError, match=r"line \d+: .* made with the same arguments as before.*force=True"):
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


# ---- the tuner to look at --------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.mark.parametrize("save_tuner", [True, False])
def test_load_shows_the_tuner_and_changes_nothing(train: Path, save_tuner: bool) -> None:
    tuner = make(train, save_tuner=save_tuner)
    tuner.run()
    before = files(tuner.tuner_path)
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    for loaded in (Tuner.load(tuner.name), load_experiment(tuner.name, load_tuner=True).tuner):
        assert loaded is not None
        assert loaded.name == tuner.name
        assert loaded.tuning_status.num_trials_started == 4
        assert loaded.tuning_status.trial_rows == tuner.tuning_status.trial_rows
        assert loaded.tuning_status.wallclock_time == pytest.approx(tuner.tuning_status.wallclock_time, abs=0.3)
        assert loaded.best_config() == tuner.best_config()
        states = [each.scheduler.state_dict() | {"clock": None} for each in (loaded, tuner)]
        assert states[0] == states[1]
        assert loaded.trial_backend.trial(2).creation_time == tuner.trial_backend.trial(2).creation_time
    assert files(tuner.tuner_path) == before
    assert {process.pid for process in psutil.Process().children(recursive=True)} == children
    assert load_experiment(tuner.name).tuner is None
    with pytest.raises(TypeError, match="load_tuner must be True or False"):
        load_experiment(tuner.name, load_tuner="yes")  # type: ignore[arg-type]


def test_a_loaded_tuner_goes_on(train: Path) -> None:
    tuner, other = make(train, 4), make(train, 9)
    tuner.run()
    other.run()
    loaded = Tuner.load(tuner.name, stop_criterion=StoppingCriterion(max_num_trials_started=9))
    assert len(loaded.run().trials) == 9
    assert configs(tuner.tuner_path) == configs(other.tuner_path)
    assert replay(tuner.tuner_path, scheduler("promotion")) == []
    with pytest.raises(ExperimentError, match="has been run"):
        loaded.run()


def test_a_loaded_tuner_hears_what_was_written_since(train: Path) -> None:
    tuner, other = make(train), make(train, 9)
    tuner.run()
    other.run()
    path = tuner.tuner_path / "journal.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in whole]
    for kind in ("ask", "suggestion", "report", "start"):
        cut = [i for i, k in enumerate(kinds) if k == kind][-2]
        path.write_bytes(b"".join(whole[: cut + 1]))
        loaded = Tuner.load(tuner.tuner_path, stop_criterion=StoppingCriterion(max_num_trials_started=9))
        assert path.read_bytes() == b"".join(whole[: cut + 1]), "what follows is decided, but not written"
        Tuner.resume(tuner.tuner_path, stop_criterion=StoppingCriterion(max_num_trials_started=4)).run()
        loaded.enqueue({"x": 0.5})
        loaded.run()
        ours = configs(tuner.tuner_path)
        assert ours[:4] == configs(other.tuner_path)[:4]
        assert any(config["x"] == 0.5 for config in ours[4:6]), "what was enqueued comes after what the record says"
        assert len(ours) == 9
        assert replay(tuner.tuner_path, scheduler("promotion")) == [], kind


def test_a_running_experiment_can_be_looked_at(train: Path) -> None:
    found = []

    class Looks(TunerCallback):
        def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
            loaded = Tuner.load(tuner.tuner_path, callbacks=[])
            found.append((loaded.tuning_status.num_results, tuner.tuning_status.num_results))

    tuner = make(train, 2, callbacks=[Looks()])
    tuner.run()
    assert len(found) >= 2
    assert all(seen == now for seen, now in found)


def test_a_function_has_to_be_given_to_load_its_tuner() -> None:
    tuner = make(
        Path("unused"), trial_backend=PythonBackend(square, SPACE, launch="inline"), scheduler=scheduler("random")
    )
    tuner.run()
    with pytest.raises(ExperimentError, match="trial_backend has to be given"):
        load_experiment(tuner.name, load_tuner=True)
    loaded = Tuner.load(tuner.name, trial_backend=PythonBackend(square, SPACE, launch="inline"))
    assert loaded.tuning_status.num_trials_completed == 4


def test_a_resume_that_fails_leaves_the_record_as_it_was(train: Path) -> None:
    tuner = make(train)
    tuner.run()
    path = tuner.tuner_path / "journal.jsonl"
    before = path.read_bytes()
    other = ASHA(SPACE, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=6)
    with pytest.raises(ExperimentError, match="made with the same arguments"):
        Tuner.resume(tuner.name, scheduler=other).run()
    added = [json.loads(line)["type"] for line in path.read_bytes().removeprefix(before).splitlines()]
    assert added == ["session"]


def test_what_is_put_in_before_a_resume_comes_after_the_record(train: Path) -> None:
    first = make(train, 3)
    first.enqueue({"x": 0.11, "n": 7})
    first.add_result({"x": 0.2, "n": 3}, {"epoch": 1, "loss": 0.01})
    first.run()
    again = Tuner.resume(first.name, stop_criterion=StoppingCriterion(max_num_trials_started=6))
    again.enqueue({"x": 0.12, "n": 7})
    again.add_result({"x": 0.2, "n": 3}, {"epoch": 2, "loss": 0.01})
    again.add_result({"x": 0.3, "n": 3}, {"epoch": 1, "loss": 0.01})
    again.run()
    lines = list(read_journal(first.tuner_path))
    assert [line["n"] for line in lines if line["type"] == "enqueue"] == [1, 2]
    assert [line["trial_id"] for line in lines if line["type"] == "added_result"] == [-1, -1, -2]
    assert {0.11, 0.12} < {config["x"] for config in configs(first.tuner_path)}
    assert len(Tuner.resume(first.name, stop_criterion=StoppingCriterion(max_num_trials_started=7)).run().trials) == 7


# ---- tune(resume=...) ------------------------------------------------------------------------------------

LINE = {"x": uniform(0.0, 1.0)}


def stops_itself(folder: Path, at: int) -> Callable[[float], float]:
    """A function whose process gets Ctrl-C in its ``at``-th call."""

    def train(x: float) -> float:
        with open(folder / "calls.txt", "a") as calls:
            calls.write(f"{x}\n")
        if (folder / "calls.txt").read_text().count("\n") == at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return x

    return train


def interrupted(tmp_path: Path, at: int = 3, **arguments: Any) -> ExperimentResult:
    with pytest.warns(RuntimeWarning, match="SIGINT received"):
        return tune(stops_itself(tmp_path, at), **(ARGUMENTS | arguments))


ARGUMENTS: dict[str, Any] = {"config_space": LINE, "max_trials": 6, "launch": "inline", "name": "line"}


def test_auto_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    first = interrupted(tmp_path, resume="auto")
    assert len(first.trials) == 3
    second = tune(stops_itself(tmp_path, 0), **ARGUMENTS, resume="auto")
    assert second.path == first.path
    assert len(second.trials) == 6
    assert {trial.status for trial in second.trials.values()} == {"Completed"}
    # It is finished now.
    third = tune(stops_itself(tmp_path, 0), **ARGUMENTS, resume="auto")
    assert third.path != first.path
    assert len(tune(stops_itself(tmp_path, 0), **ARGUMENTS).trials) == 6
    assert len(list(first.path.parent.iterdir())) == 3


def test_auto_goes_on_after_a_kill(tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import os, signal, sys\nfrom sthyper import tune\nfrom sthyper.config_space import uniform\n"
        "def train(x):\n"
        "    if not os.path.exists('killed') and x != 0.5:\n"
        "        open('killed', 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return x\n"
        "e = tune(train, {'x': uniform(0, 1)}, max_trials=4, launch='inline', resume='auto')\n"
        "print(e.name, len(e.trials))\n"
    )
    command = [sys.executable, str(script)]
    assert subprocess.run(command, cwd=tmp_path, timeout=50, check=False).returncode == -signal.SIGKILL
    done = subprocess.run(command, cwd=tmp_path, timeout=50, check=True, capture_output=True, text=True)
    (folder,) = Path(os.environ["STHYPER_FOLDER"]).iterdir()
    assert done.stdout.split() == [folder.name, "4"]


@pytest.mark.parametrize("journal", ["", '{"type":"journal","version":1,"name":"line","created":1.0}\n'])
def test_an_experiment_that_never_began_is_none_to_go_on_with(tmp_path: Path, journal: str) -> None:
    first = interrupted(tmp_path)
    newer = first.path.with_name("line-2100-01-01-00-00-00-000")
    newer.mkdir()
    shutil.copy(first.path / "tuner.json", newer)
    (newer / "journal.jsonl").write_text(journal)
    assert tune(stops_itself(tmp_path, 0), **ARGUMENTS, resume="auto").path == first.path
    assert tune(stops_itself(tmp_path, 0), **{**ARGUMENTS, "max_trials": 7}, resume=True).path == first.path
    assert sorted(path.name for path in newer.iterdir()) == ["journal.jsonl", "tuner.json"]


def test_auto_begins_anew_where_something_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = interrupted(tmp_path, seed=5)
    other = stops_itself(tmp_path, 0)
    for changes, said in (
        ({"config_space": {"x": uniform(0.0, 2.0)}}, "config_space['x'] was uniform(0.0, 1.0), now it is uniform(0.0"),
        ({"metric": "loss"}, "metric was 'value', now it is 'loss'"),
        ({"mode": "max"}, "mode was 'min', now it is 'max'"),
        ({"scheduler": "grid search"}, "scheduler was RandomSearch, now it is GridSearch"),
        ({"seed": 6}, "random_seed was 5, now it is 6"),
        ({"points_to_evaluate": []}, "points_to_evaluate was None, now it is []"),
    ):
        caplog.clear()
        assert tune(other, **(ARGUMENTS | changes), resume="auto").path != first.path
        assert f"{first.name} is passed over, it was made with other arguments: {said}" in caplog.text
        with pytest.raises(ExperimentError, match=re.escape(said)):
            tune(other, **({**ARGUMENTS, "name": None} | changes), resume=first.name)
    assert tune(square_of_x, **ARGUMENTS, resume="auto").path != first.path
    assert "function_or_script was " in caplog.text
    assert tune(other, **ARGUMENTS, resume="auto").path == first.path  # the seed may be left out


def square_of_x(x: float) -> float:
    return x**2


def test_true_and_names_go_on_with_finished_ones_too(tmp_path: Path) -> None:
    train = stops_itself(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="resume=True: there is no experiment 'line'"):
        tune(train, **ARGUMENTS, resume=True)
    with pytest.raises(FileNotFoundError, match="no experiment 'lime'"):
        tune(train, **{**ARGUMENTS, "name": None}, resume="lime")
    first = tune(train, **ARGUMENTS)
    newest = tune(train, **ARGUMENTS)
    again = tune(train, **{**ARGUMENTS, "max_trials": 8}, resume=True)
    assert again.path == newest.path
    assert len(again.trials) == 8
    for number, which in enumerate((first.name, first.path), start=9):
        again = tune(train, **{**ARGUMENTS, "max_trials": number, "name": None}, resume=which)
        assert again.path == first.path
        assert len(again.trials) == number
    configs = [trial.config for trial in again.trials.values()]
    assert len({config["x"] for config in configs}) == 10


def test_a_scheduler_of_the_user_goes_on(tmp_path: Path) -> None:
    arguments = {**ARGUMENTS, "scheduler": Mine(LINE, metric="value", random_seed=3)}
    first = interrupted(tmp_path, **arguments)
    train = stops_itself(tmp_path, 0)
    with pytest.raises(ExperimentError, match="random_seed was 3, now it is 4"):
        tune(train, **{**arguments, "scheduler": Mine(LINE, metric="value", random_seed=4)}, resume=True)
    again = Mine(LINE, metric="value", random_seed=3)
    result = tune(train, **{**arguments, "scheduler": again}, resume="auto")
    assert result.path == first.path
    assert len(result.trials) == 6
    assert again.state_dict()["searcher"] != Mine(LINE, metric="value", random_seed=3).state_dict()["searcher"]


class Mine(RandomSearch):
    pass


@pytest.mark.parametrize(
    ("resume", "error", "message"),
    [(1, TypeError, "resume must be"), (None, TypeError, "resume must be"), ("", ValueError, "must not be empty")],
)
def test_resume_is_checked(resume: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tune(square_of_x, **ARGUMENTS, resume=resume)
    with pytest.raises(ValueError, match="name='line' has no effect together with resume='other'"):
        tune(square_of_x, **ARGUMENTS, resume="other")


@pytest.mark.parametrize("content", [None, "{", '{"version":1,"cwd":"/","arguments":{"n_workers":1}}'])
def test_without_its_arguments_an_experiment_goes_on_with_those_given(train: Path, content: str | None) -> None:
    tuner = make(train)
    tuner.run()
    undisturbed = make(train, trials=7).run()
    file = tuner.tuner_path / "tuner.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    criterion = StoppingCriterion(max_num_trials_started=7)
    said = "missing" if content is None else "damaged"
    with pytest.raises(
        ExperimentError, match=rf"tuner\.json is {said} .*pass trial_backend=\.\.\., scheduler=.*n_workers="
    ):
        Tuner.resume(tuner.name)
    arguments: dict[str, Any] = {"stop_criterion": criterion, "n_workers": 1}
    with pytest.raises(ExperimentError, match=r"pass trial_backend=\.\.\., scheduler=\.\.\., made"):
        Tuner.resume(tuner.name, **arguments)
    arguments |= {"trial_backend": LocalBackend(train, launch="inline"), "scheduler": scheduler("promotion")}
    result = Tuner.resume(tuner.name, **arguments).run()
    assert configs(result.path) == configs(undisturbed.path)
    # The file is there again.
    again = Tuner.resume(tuner.name, stop_criterion=StoppingCriterion(max_num_trials_started=8)).run()
    assert len(again.trials) == 8


def test_without_its_journal_an_experiment_cannot_go_on(train: Path) -> None:
    tuner = make(train)
    reports = len(tuner.run().results)
    (tuner.tuner_path / "journal.jsonl").unlink()
    for act in (Tuner.resume, Tuner.load):
        with pytest.raises(ExperimentError, match=r"cannot be resumed: journal\.jsonl is missing there"):
            act(tuner.name)
    assert len(load_experiment(tuner.name).results) == reports


def test_what_to_resume_is_checked() -> None:
    for act in (Tuner.resume, Tuner.load):
        with pytest.raises(TypeError, match="path_or_name must be the name or the path of an experiment, got 3"):
            act(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="path_or_name must not be empty"):
            act("")
    with pytest.raises(TypeError, match="tuner_name must be the name or the path of an experiment, got None"):
        load_experiment(None)  # type: ignore[arg-type]


def test_load_deletes_no_checkpoint_and_a_resume_does(tmp_path: Path) -> None:
    script = tmp_path / "saves.py"
    script.write_text(
        "import os\nfrom sthyper import Reporter\nreport = Reporter()\n"
        "os.makedirs(report.checkpoint_dir, exist_ok=True)\n"
        "open(os.path.join(report.checkpoint_dir, 'c.txt'), 'w').close()\nreport(loss=report.config['x'])\n"
    )
    backend = LocalBackend(script, launch="inline", delete_checkpoints=True)
    tuner = make(script, trial_backend=backend, scheduler=scheduler("random"))
    tuner.run()
    saved = {path.parent.parent.name for path in tuner.tuner_path.glob("trials/*/checkpoints/c.txt")}
    assert saved == {str(tuner.best_config()[0])}
    # As if the tuner had been killed before it came to the deletion.
    gone = next(tuner.tuner_path / "trials" / name for name in ("0", "1") if name not in saved)
    (gone / "checkpoints").mkdir()
    shutil.rmtree(tuner.tuner_path / "snapshots")
    loaded = Tuner.load(tuner.name)
    assert (gone / "checkpoints").exists()
    loaded.run()
    assert not (gone / "checkpoints").exists()
