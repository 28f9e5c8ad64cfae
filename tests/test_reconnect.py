"""Trials that run elsewhere and speak TCP outlive a killed tuner, and go on with the resumed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import ExperimentContext, LocalBackend, RemoteBackend, RunningTrial
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import randint, uniform
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal
from sthyper.report import Reporter, TrialExit
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay
from sthyper.testing.backends import BackendConformance
from sthyper.trial import Status, Trial

EPOCHS = 9
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 50), "epochs": EPOCHS}

# What a training has done is in trained.txt: epoch, run, process.
TRAIN = """
import os, sys, time
from sthyper import Reporter
from sthyper.report import TrialExit

report = Reporter()
config = report.config
print("grace", os.environ["STHYPER_RECONNECT_GRACE"], flush=True)

def note(*words):
    with open(os.path.join(report.trial_dir, "trained.txt"), "a") as log:
        log.write(" ".join(map(str, words)) + "\\n")

for epoch in range(int(report.last_resource or 0) + 1, config["epochs"] + 1):
    time.sleep({pace})
    note(epoch, report.run, os.getpid())
    try:
        report(epoch=epoch, loss=(config["x"] - 0.3) ** 2 + config["n"] / 100 + 1 / epoch)
    except TrialExit as answer:
        note(answer.decision, report.run, os.getpid())
        raise
"""

# Notes the exit code, which nobody may be there to hear.
WRAPPER = '"$@"; code=$?; echo $code > "$0.new"; mv "$0.new" "$0"; exit $code'

LAUNCH = """
import json, sys
sys.path.insert(0, {here!r})
from sthyper import StoppingCriterion, Tuner
from test_reconnect import DetachedBackend, scheduler

backend = DetachedBackend(**json.loads({options!r}))
if sys.argv[1] == "start":
    tuner = Tuner(
        backend, scheduler({kind!r}), StoppingCriterion(max_num_trials_started={trials}), n_workers={n_workers},
        tuner_name="away", suffix_tuner_name=False, max_failures=0, snapshot_interval={interval},
    )
else:
    tuner = Tuner.resume("away", trial_backend=backend)
tuner.run()
"""


class DetachedBackend(RemoteBackend):
    """Trials are processes of sessions of their own, which nobody supervises.

    Args:
        script: The training script.
        blind: Whether it neither sees nor reaches processes that another tuner has started.
        dies: ``"before"`` or ``"after"``: the tuner is killed before or after it sends the first STOP or PAUSE.
    """

    look_interval = 0.1

    def __init__(self, script: str, blind: bool = False, dies: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.script = script
        self.blind = blind
        self.dies = dies
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def _submit(self, trial: Trial, run: int, environment: dict[str, str]) -> dict[str, Any]:
        folder = self.trial_path(trial.trial_id).absolute()
        arguments = [word for name, value in trial.config.items() for word in (f"--{name}", str(value))]
        with open(folder / "std.out", "ab") as out, open(folder / "std.err", "ab") as err:
            child = subprocess.Popen(
                ["/bin/sh", "-c", WRAPPER, str(folder / f"exit-{run}"), sys.executable, self.script, *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.children[child.pid] = child
        create_time = psutil.Process(child.pid).create_time()
        return {"pid": child.pid, "create_time": create_time, "exit": str(folder / f"exit-{run}")}

    def _ended(self, places: Mapping[int, dict[str, Any]]) -> dict[int, int | None]:
        ended = {}
        for trial_id, place in places.items():
            child = self.children.get(place["pid"])
            if child is not None:
                if child.poll() is not None:
                    ended[trial_id] = child.returncode
            elif not self.blind and not lives(place):
                path = Path(place["exit"])
                ended[trial_id] = int(path.read_text()) if path.exists() else None
        return ended

    def _terminate(self, trial_id: int, place: dict[str, Any], force: bool) -> None:
        if (place["pid"] in self.children or not self.blind) and lives(place):
            os.killpg(place["pid"], signal.SIGKILL if force else signal.SIGTERM)

    def answer(self, event: Any, decision: str) -> None:
        if self.dies is not None and decision != "CONTINUE" and not os.path.exists(self.script + ".died"):
            Path(self.script + ".died").touch()
            if self.dies == "after":
                super().answer(event, decision)
                time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        super().answer(event, decision)


def lives(place: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(place["pid"])
        same = abs(process.create_time() - place["create_time"]) < 0.1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def scheduler(kind: str) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(SPACE, metric="loss", random_seed=5)
    return ASHA(SPACE, metric="loss", type=kind, max_resource_attr="epochs", reduction_factor=2, random_seed=5)


class Experiment:
    """An experiment whose tuner is a process that can be killed and resumed."""

    def __init__(
        self,
        folder: Path,
        kind: str = "promotion",
        trials: int = 6,
        n_workers: int = 2,
        pace: float | str = 0.03,
        interval: float = 3600.0,
        train: str = TRAIN,
        **options: Any,
    ) -> None:
        self.kind = kind
        self.folder = Path(os.environ["STHYPER_FOLDER"]) / "away"
        self.log = folder / "tuner.txt"
        self.script = folder / "train.py"
        self.script.write_text(train.replace("{pace}", str(pace)))
        self.options: dict[str, Any] = {"script": str(self.script), "reconnect_grace": 20.0, **options}
        self._launch = folder / "launch.py"
        values = {"kind": kind, "trials": trials, "n_workers": n_workers, "interval": interval}
        self._arguments = {"here": str(Path(__file__).parent), **values}
        self._tuner: subprocess.Popen[bytes] | None = None

    def start(self, **changes: Any) -> None:
        """Start the tuner, or resume it once there is a journal."""
        self.options |= changes
        self._launch.write_text(LAUNCH.format(options=json.dumps(self.options), **self._arguments))
        word = "resume" if self.records("session") else "start"
        with open(self.log, "a") as out:
            command = [sys.executable, str(self._launch), word]
            self._tuner = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def wait_for(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self._tuner is None or self._tuner.poll() in (None, 0, -signal.SIGKILL), self.log.read_text()
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the tuner, without a word."""
        assert self._tuner is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._tuner.pid, signal.SIGKILL)
        self._tuner.wait(10)

    def interrupt(self) -> None:
        assert self._tuner is not None
        os.kill(self._tuner.pid, signal.SIGINT)

    def wait(self, seconds: float = 40.0) -> int:
        """Wait for the end of the tuner and return its exit code."""
        assert self._tuner is not None
        return self._tuner.wait(seconds)

    def finish(self, **changes: Any) -> None:
        """Resume the tuner and wait for the end of the experiment."""
        self.start(**changes)
        assert self.wait() == 0, self.log.read_text()

    @property
    def alive(self) -> bool:
        return self._tuner is not None and self._tuner.poll() is None

    def lines(self) -> int:
        try:
            return (self.folder / "journal.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        try:
            return [record for record in read_journal(self.folder / "journal.jsonl") if record["type"] in kinds]
        except FileNotFoundError:
            return []

    def reports(self, trial_id: int = 0) -> list[dict[str, Any]]:
        return [record for record in self.records("report") if record["trial_id"] == trial_id]

    def place(self, trial_id: int = 0) -> dict[str, Any]:
        return next(r for r in reversed(self.records("process")) if r["trial_id"] == trial_id)

    def restarts(self) -> list[tuple[int, int, str]]:
        """Trial, run and cause of runs that took the place of others."""
        return [(r["trial_id"], r["run"], r["cause"]) for r in self.records("resume") if r["cause"] != "resume"]

    def notes(self, trial_id: int = 0) -> list[list[str]]:
        """What a trial has written: epoch or decision, run, process."""
        path = self.folder / "trials" / str(trial_id) / "trained.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def check(self) -> None:
        """No report is lost or there twice, nothing was trained twice, and a fresh scheduler decides the same."""
        assert replay(self.folder, scheduler(self.kind)) == []
        reports: dict[tuple[Any, ...], int] = {}
        counted: dict[int, list[int]] = {}
        for record in self.records("report", "decision"):
            key = (record["trial_id"], record["run"], record["client"], record["seq"])
            if record["type"] == "report":
                assert key not in reports, f"{key} is there twice"
                reports[key] = record["metrics"]["epoch"]
            elif record["counted"]:
                counted.setdefault(key[0], []).append(reports[key])
        for trial_id, trial in load_experiment(self.folder).trials.items():
            assert trial.status in ("Completed", "Stopped", "Paused"), trial
            trained = [int(word) for word, *_ in self.notes(trial_id) if word.isdigit()]
            assert trained == list(range(1, len(trained) + 1)), f"trial {trial_id} trained {trained}"
            assert counted[trial_id] == trained, f"trial {trial_id}: reports {counted[trial_id]}, trained {trained}"

    def clear(self) -> None:
        """End what is left, after a test that failed too."""
        if self.alive:
            self.kill()
        for record in self.records("process"):
            if lives(record):
                os.killpg(record["pid"], signal.SIGKILL)


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    made: list[Experiment] = []

    def make(kind: str = "promotion", **options: Any) -> Experiment:
        made.append(Experiment(tmp_path, kind, **options))
        return made[-1]

    yield make
    for each in made:
        each.clear()


# ---- a tuner that is killed and resumed ------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "interval"), [("promotion", 3600.0), ("stopping", 0.05), ("random", 3600.0)])
def test_trials_go_on_with_the_resumed_tuner(experiment: Callable[..., Experiment], kind: str, interval: float) -> None:
    away = experiment(kind, pace=0.05, interval=interval)
    away.start()
    away.wait_for(lambda: any(r["metrics"]["epoch"] == 3 for r in away.records("report")))
    away.kill()
    running = [r for r in away.records("process") if lives(r)]
    assert running, "no trial outlives the tuner"
    assert any((away.folder / "snapshots").glob("*")) == (interval < 1.0)
    time.sleep(0.3)  # they have something to say to nobody
    away.finish()
    away.check()
    assert away.restarts() == []
    first = running[0]
    assert len({pid for _, run, pid in away.notes(first["trial_id"]) if int(run) == first["run"]}) == 1
    assert len(load_experiment(away.folder).trials) == 6


def test_a_trial_in_a_long_epoch_is_not_lost(experiment: Callable[..., Experiment]) -> None:
    away = experiment("random", trials=1, n_workers=1, reconnect_grace=1.0, pace="3.0 if epoch == 2 else 0.01")
    away.start()
    away.wait_for(lambda: len(away.reports()) >= 1)
    away.kill()
    away.finish()
    away.check()
    assert away.restarts() == []
    times = [record["tuner_time"] for record in away.reports()]
    assert times[1] - times[0] > 1.5, "it had nothing to say for longer than trials are waited for"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("interval", [0.05, 3600.0])
@pytest.mark.parametrize(("kind", "seed"), [("promotion", 0), ("stopping", 1), ("random", 2), ("promotion", 3)])
def test_killed_at_any_moment(experiment: Callable[..., Experiment], kind: str, seed: int, interval: float) -> None:
    away = experiment(kind, trials=12, reconnect_grace=4.0, interval=interval)
    rng = random.Random(seed)
    for _ in range(5):
        goal = away.lines() + rng.randrange(1, 40)
        away.start()
        away.wait_for(lambda goal=goal: away.lines() >= goal or not away.alive, seconds=60.0)
        time.sleep(rng.uniform(0.0, 0.01))
        away.kill()
    away.finish()
    away.check()
    # A run is lost only if the tuner was killed before it had started it.
    begun = {(trial_id, int(run)) for trial_id in range(12) for _, run, _ in away.notes(trial_id)}
    assert not [lost for lost in away.restarts() if (lost[0], lost[1] - 1) in begun]
    assert len(load_experiment(away.folder).trials) == 12


def test_killed_again_before_anybody_has_come_back(experiment: Callable[..., Experiment]) -> None:
    away = experiment(trials=3)
    away.start()
    away.wait_for(lambda: len(away.records("report")) >= 3)
    for session in (2, 3):
        away.kill()
        away.start()
        away.wait_for(lambda session=session: len(away.records("session")) == session)
    away.kill()
    away.finish()
    away.check()
    assert away.restarts() == []
    assert len(away.records("session")) == 4


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("kind", ["promotion", "stopping"])
def test_a_decision_that_was_not_carried_out(experiment: Callable[..., Experiment], kind: str, dies: str) -> None:
    away = experiment(kind, dies=dies)
    away.start()
    assert away.wait() == -signal.SIGKILL
    decided = away.records("decision")[-1]
    assert decided["decision"] in ("PAUSE", "STOP")
    trial_id = decided["trial_id"]
    heard = [word for word, *_ in away.notes(trial_id) if word == decided["decision"]]
    assert len(heard) == (dies == "after")
    away.finish()
    away.check()
    assert away.restarts() == []
    first_run = [word for word, run, _ in away.notes(trial_id) if int(run) == decided["run"]]
    assert first_run.count(decided["decision"]) == 1, "the trial did not hear the recorded answer"
    end = next(r for r in away.records("status") if (r["trial_id"], r["run"]) == (trial_id, decided["run"]))
    assert end["status"] == {"PAUSE": "Paused", "STOP": "Stopped"}[decided["decision"]]


# ---- trials that do not come back -------------------------------------------------------------------------


@pytest.mark.parametrize("blind", [True, False])
def test_a_trial_that_died_meanwhile_is_run_again(experiment: Callable[..., Experiment], blind: bool) -> None:
    away = experiment(trials=1, n_workers=1, kind="random", reconnect_grace=2.0, blind=blind)
    away.script.write_text(away.script.read_text().replace("report.last_resource", "len(done())"))
    done = 'def done():\n    path = os.path.join(report.trial_dir, "trained.txt")\n'
    done += "    return open(path).readlines() if os.path.exists(path) else []\n\nfor epoch"
    away.script.write_text(away.script.read_text().replace("for epoch", done, 1))
    away.start()
    away.wait_for(lambda: len(away.reports()) >= 3)
    away.kill()
    os.killpg(away.place()["pid"], signal.SIGKILL)
    away.finish()
    assert away.restarts() == [(0, 1, "lost")]
    # A backend that sees processes knows at once; otherwise it takes the time for which trials are waited for.
    resumed = next(r["time"] for r in away.records("resume")) - away.records("session")[1]["time"]
    assert resumed >= 2.0 if blind else resumed < 1.0
    assert ("was not heard of for 2 s and counts as lost" in away.log.read_text()) == blind
    assert load_experiment(away.folder).trials[0].status == "Completed"


def test_one_that_comes_back_too_late_is_stopped(experiment: Callable[..., Experiment]) -> None:
    away = experiment(trials=1, n_workers=1, kind="stopping", reconnect_grace=1.5, blind=True, pace=0.15)
    away.start()
    away.wait_for(lambda: len(away.reports()) >= 2)
    old = away.place()
    os.killpg(old["pid"], signal.SIGSTOP)
    away.kill()
    away.start()
    away.wait_for(lambda: any(r["run"] == 1 for r in away.reports()))
    os.killpg(old["pid"], signal.SIGCONT)
    assert away.wait() == 0, away.log.read_text()
    away.wait_for(lambda: not lives(old))
    assert away.restarts() == [(0, 1, "lost")]
    assert [word for word, run, _ in away.notes() if run == "0"][-1] == "STOP"
    runs = [r["run"] for r in away.reports()]
    assert runs == sorted(runs), "a report of the old run was recorded after the new one had begun"
    epochs = [r["metrics"]["epoch"] for r in away.reports()]
    assert epochs == list(range(1, EPOCHS + 1))
    assert replay(away.folder, scheduler("stopping")) == []


@pytest.mark.slow
def test_an_ended_experiment_does_not_wait_for_the_silent(experiment: Callable[..., Experiment]) -> None:
    away = experiment("random", trials=2, n_workers=1, reconnect_grace=60.0, pace=0.2)
    away.start()
    away.wait_for(lambda: len(away.reports()) >= 1)
    away.kill()
    place = away.place()
    os.killpg(place["pid"], signal.SIGSTOP)
    away.start()
    away.wait_for(lambda: "resumed" in away.log.read_text() or len(away.records("session")) == 2)
    time.sleep(0.7)
    away.interrupt()
    assert away.wait(20.0) == 0, away.log.read_text()
    assert not lives(place)
    assert load_experiment(away.folder).trials[0].end_reason == "interrupted"


def test_the_port_is_taken(experiment: Callable[..., Experiment]) -> None:
    away = experiment(kind="stopping", trials=1, n_workers=1, reconnect_grace=1.0, pace=0.1)
    away.start()
    away.wait_for(lambda: len(away.reports()) >= 2)
    saved = json.loads((away.folder / "channel.json").read_text())
    away.kill()
    port = int(saved["address"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        away.finish()
    text = away.log.read_text()
    assert f"cannot listen on tcp:127.0.0.1:{port} again (Address already in use)" in text
    assert "they end by themselves within 1 s, and are then run again from their checkpoints" in text
    assert away.restarts()[0] == (0, 1, "lost")
    now = json.loads((away.folder / "channel.json").read_text())
    assert now["address"] != saved["address"]
    assert now["token"] != saved["token"], "whoever has the port was shown the old token"
    assert load_experiment(away.folder).trials[0].status == "Completed"
    assert replay(away.folder, scheduler("stopping")) == []


# ---- address and token ------------------------------------------------------------------------------------


class Idle(DetachedBackend):
    """Submits nothing."""

    def _submit(self, trial: Trial, run: int, environment: dict[str, str]) -> dict[str, Any]:
        self.environment = environment
        return {"pid": 0, "create_time": 0.0}

    def _ended(self, places: Mapping[int, dict[str, Any]]) -> dict[int, int | None]:
        return {}

    def _terminate(self, trial_id: int, place: dict[str, Any], force: bool) -> None:
        pass


class Unwilling(DetachedBackend):
    """Cannot end its first trial."""

    def _terminate(self, trial_id: int, place: dict[str, Any], force: bool) -> None:
        if trial_id == 0:
            raise RuntimeError("the door is locked")
        super()._terminate(trial_id, place, force)


def test_the_end_of_others_does_not_depend_on_one_that_cannot_be_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "waits.py"
    script.write_text("import time\ntime.sleep(60)\n")
    backend = Unwilling(str(script))
    backend.set_path(tmp_path)
    backend.open(ExperimentContext(n_workers=2, seed=0))
    try:
        for _ in range(2):
            backend.start_trial({})
        end = time.monotonic() + 20
        while len(backend.children) < 2 and time.monotonic() < end:
            backend.events(0.05)
        backend.close(wait=False)
        first, second = backend.children.values()
        assert second.wait(20) == -signal.SIGKILL
        assert first.poll() is None
        assert "trial 0 cannot be ended" in caplog.text
        backend.close()  # nothing is open any more
    finally:
        for child in backend.children.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def opened(folder: Path, **options: Any) -> Idle:
    backend = Idle("none.py", **options)
    backend.set_path(folder)
    backend.open(ExperimentContext(n_workers=1, seed=0))
    return backend


def test_address_and_token_are_kept_for_the_owner_alone(tmp_path: Path) -> None:
    contents = []
    old = os.umask(0)
    try:
        for _ in range(2):
            backend = opened(tmp_path)
            backend.start_trial({})
            backend.events(0.0)
            content = json.loads((tmp_path / "channel.json").read_text())
            assert backend.environment["STHYPER_CHANNEL"] == content["address"]
            assert backend.environment["STHYPER_TOKEN"] == content["token"]
            assert len(content["token"]) == 32
            assert stat.S_IMODE((tmp_path / "channel.json").stat().st_mode) == 0o600
            contents.append(content)
            backend.close(wait=False)
    finally:
        os.umask(old)
    assert contents[0] == contents[1]
    other = opened(tmp_path / "other")
    other.close()
    assert json.loads((tmp_path / "other" / "channel.json").read_text())["token"] != contents[0]["token"]


def test_a_file_that_others_may_know_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "channel.json"
    good = path.read_text()

    def refused(match: str) -> None:
        with pytest.raises(ExperimentError, match=match) as error:
            opened(tmp_path)
        assert str(path) in str(error.value)

    path.chmod(0o640)
    refused("its mode 640 and not 600. Delete it to go on")
    path.chmod(0o600)
    for damage in ("{", "[]", '{"address": "unix:x", "token": "0123456789abcdef"}', good.replace('"tcp:', '"udp:')):
        path.write_text(damage)
        refused("is damaged .* Delete it to go on")
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused("cannot be read")
    path.unlink()
    if os.geteuid() == 0:
        path.write_text(good)
        path.chmod(0o600)
        os.chown(path, 12345, -1)
        refused("its owner is 12345")
        path.unlink()
    opened(tmp_path).close()
    assert path.exists()


def test_a_wrong_token_is_refused_after_a_resume_too(tmp_path: Path) -> None:
    opened(tmp_path).close()
    backend = opened(tmp_path)
    address = json.loads((tmp_path / "channel.json").read_text())["address"]
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as peer:
        peer.sendall(b'{"type":"hello","v":1,"token":"0123","trial_id":0,"run":0,"client":"c"}\n')
        backend.events(0.2)
        peer.settimeout(5.0)
        assert peer.recv(10) == b""
    backend.close()


@pytest.mark.parametrize(
    ("argument", "value", "kind", "match"),
    [
        ("channel", "unix", ValueError, "channel='unix' reaches processes of this machine only"),
        ("channel", "tcp:nowhere", ValueError, "channel must be"),
        ("channel", "tcp:0.0.0.0:5000", ValueError, "channel='tcp:0.0.0.0:5000' names no machine"),
        ("channel", "tcp:[::]:0", ValueError, r"channel='tcp:\[::\]:0' names no machine"),
        ("reconnect_grace", -1.0, ValueError, "reconnect_grace must be a finite number of seconds >= 0, got -1.0"),
        ("reconnect_grace", float("inf"), ValueError, "reconnect_grace must be a finite number"),
        ("reconnect_grace", "10", TypeError, "reconnect_grace must be a number of seconds, got '10'"),
        ("stop_grace", True, TypeError, "stop_grace must be a number of seconds, got True"),
        ("stop_grace", float("nan"), ValueError, "stop_grace must be a finite number"),
        ("delete_checkpoints", 1, TypeError, "delete_checkpoints must be True or False, got 1"),
    ],
)
def test_arguments_are_checked(argument: str, value: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        Idle("none.py", **{argument: value})


class Limiting(RandomSearch):
    """Lets no file grow from the moment on at which the second trial has been ordered, and is not in the journal."""

    def on_trial_add(self, trial: Trial) -> None:
        super().on_trial_add(trial)
        if trial.trial_id == 1:
            size = (Path(os.environ["STHYPER_FOLDER"]) / "away" / "journal.jsonl").stat().st_size
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            threading.Timer(1.5, resource.setrlimit, (resource.RLIMIT_FSIZE, (hard, hard))).start()


class Watching(DetachedBackend):
    """Notes of which trials the journal had the start when they were submitted."""

    def __init__(self, script: str, **options: Any) -> None:
        super().__init__(script, **options)
        self.recorded: list[bool] = []

    def _submit(self, trial: Trial, run: int, environment: dict[str, str]) -> dict[str, Any]:
        assert self.path is not None
        records = read_journal(self.path)
        self.recorded.append(any(r["type"] == "start" and r["trial_id"] == trial.trial_id for r in records))
        return super()._submit(trial, run, environment)


def test_no_trial_is_submitted_whose_start_could_not_be_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("{pace}", "0.01"))
    backend = Watching(str(script))
    search = Limiting(SPACE, metric="loss", random_seed=5)
    criterion = StoppingCriterion(max_num_trials_started=3)
    tuner = Tuner(backend, search, criterion, n_workers=2, tuner_name="away", suffix_tuner_name=False, callbacks=[])
    tuner.run()
    assert "No trial is started and no report answered" in caplog.text
    assert backend.recorded == [True] * 3


def test_a_backend_that_outlives_its_tuner_must_take_up_runs_again() -> None:
    class Forgetful(LocalBackend):
        outlives_tuner = True

    with pytest.raises(TypeError, match="Forgetful has outlives_tuner = True and no method reattach"):
        Forgetful("echo x").reattach(RunningTrial(0, 0))


def test_recorded_answers_are_given_again_and_nothing_else(tmp_path: Path) -> None:
    backend = opened(tmp_path, reconnect_grace=1.0, stop_grace=0.0)
    backend.recalling = True
    backend.start_trial({})
    backend.recalling = False
    backend.reattach(RunningTrial(0, 0, answers={"c": ["CONTINUE", "PAUSE"]}, order=Status.paused))
    port = int(json.loads((tmp_path / "channel.json").read_text())["address"].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as peer:
        hello = {"type": "hello", "v": 1, "token": backend._token, "trial_id": 0, "run": 0, "client": "c"}
        peer.settimeout(5.0)
        peer.sendall(json.dumps(hello).encode() + b'\n{"type":"report","seq":1,"metrics":{"loss":1.0}}\n')
        assert backend.events(0.2) == []
        assert json.loads(peer.recv(100)) == {"seq": 1, "decision": "PAUSE"}
        assert backend.busy_trial_ids() == [(0, Status.in_progress)]
    deadline = time.monotonic() + 5.0
    events = []
    while not events and time.monotonic() < deadline:
        events = backend.events(0.5)
    # Nobody knows where that run is: it counts as ended once it had its time.
    assert [(e.status, e.reason) for e in events] == [(Status.paused, None)]
    backend.close()


# ---- the trial's side --------------------------------------------------------------------------------------


class FakeTuner:
    """Listens on one port, again and again, and does with each connection what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, grace: float = 10.0) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        for name, value in (
            ("STHYPER_CHANNEL", f"tcp:127.0.0.1:{self.port}"),
            ("STHYPER_TOKEN", "t"),
            ("STHYPER_TRIAL_ID", "3"),
            ("STHYPER_RUN", "1"),
            ("STHYPER_RECONNECT_GRACE", str(grace)),
        ):
            monkeypatch.setenv(name, value)

    def go(self) -> None:
        self.server.close()

    def come_back(self) -> None:
        self.server = socket.create_server(("127.0.0.1", self.port))

    def accept(self, seconds: float = 5.0) -> Line:
        self.server.settimeout(seconds)
        return Line(self.server.accept()[0])


class Line:
    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(5.0)
        self.socket = sock
        self.file = sock.makefile("rb")

    def read(self) -> dict[str, Any]:
        line = self.file.readline()
        return json.loads(line) if line else {}

    def answer(self, seq: int, decision: str = "CONTINUE") -> None:
        self.socket.sendall(json.dumps({"seq": seq, "decision": decision}).encode() + b"\n")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeTuner]]:
    made: list[FakeTuner] = []

    def make(grace: float = 10.0) -> FakeTuner:
        made.append(FakeTuner(monkeypatch, grace))
        return made[-1]

    yield make
    for each in made:
        each.go()


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, result


def test_what_was_not_answered_is_sent_again(fake: Callable[..., FakeTuner]) -> None:
    tuner = fake()
    report = Reporter()
    thread, result = in_thread(lambda: [report(epoch=1), report(epoch=2)])
    line = tuner.accept()
    hello = line.read()
    assert line.read()["seq"] == 0
    line.answer(0)
    sent = line.read()
    line.close()
    tuner.go()
    time.sleep(0.5)
    tuner.come_back()
    line = tuner.accept()
    assert line.read() == hello
    assert line.read() == sent
    line.answer(1)
    thread.join(5.0)
    assert result == [["CONTINUE", "CONTINUE"]]
    report.close()
    line.close()


@pytest.mark.parametrize("grace", [0.5, 1.5])
def test_a_trial_ends_when_its_tuner_does_not_come_back(fake: Callable[..., FakeTuner], grace: float) -> None:
    tuner = fake(grace)
    tuner.go()
    report = Reporter()
    started = time.monotonic()
    with pytest.raises(TrialExit) as lost:
        report(epoch=1)
    assert lost.value.decision == "LOST"
    assert lost.value.code == 0
    assert grace <= time.monotonic() - started < grace + 0.6
    report.close()


def test_an_outage_begins_with_the_connection_that_was_lost_last(fake: Callable[..., FakeTuner]) -> None:
    tuner = fake(grace=1.6)
    report = Reporter()
    thread, result = in_thread(lambda: report(epoch=1))
    for _ in range(2):  # a tuner that holds the connection, and is killed before it has answered
        line = tuner.accept()
        line.read()
        line.read()
        tuner.go()
        time.sleep(1.2)
        line.close()
        time.sleep(0.6)
        tuner.come_back()
    line = tuner.accept()
    line.read()
    assert line.read()["seq"] == 0
    line.answer(0)
    thread.join(5.0)
    assert result == ["CONTINUE"]
    report.close()
    line.close()


def test_a_trial_comes_back_before_it_has_something_to_report(fake: Callable[..., FakeTuner]) -> None:
    tuner = fake()
    report = Reporter()
    thread, _ = in_thread(lambda: report(epoch=1))
    line = tuner.accept()
    hello = line.read()
    line.read()
    line.answer(0)
    thread.join(5.0)
    line.close()
    tuner.go()
    time.sleep(0.3)
    tuner.come_back()
    line = tuner.accept()
    assert line.read() == hello
    report.close()
    assert line.read() == {"type": "bye", "ok": True}
    line.close()


def test_attempts_come_less_and_less_often_and_not_all_at_once(fake: Callable[..., FakeTuner]) -> None:
    from sthyper._connection import LAST_DELAY, _delays

    random.seed(1)
    before = random.getstate()
    several = [[next(delays) for _ in range(12)] for delays in [_delays(120.0) for _ in range(20)]]
    for delays in several:
        assert all(min(0.1 * 2**n, LAST_DELAY) / 2 <= d <= min(0.1 * 2**n, LAST_DELAY) for n, d in enumerate(delays))
    assert len({round(delays[-1], 6) for delays in several}) > 10
    short = _delays(1.0)
    assert max(next(short) for _ in range(20)) <= 0.1, "with little time left no attempt may come after it"
    tuner = fake(grace=0.3)
    tuner.go()
    report = Reporter()
    with pytest.raises(TrialExit):
        report(epoch=1)
    assert random.getstate() == before
    report.close()


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 200_000, b"[1]\n", b'{"seq": 0}\n'])
def test_somebody_else_has_the_port(fake: Callable[..., FakeTuner], garbage: bytes) -> None:
    tuner = fake(grace=3.0)
    report = Reporter()
    thread, result = in_thread(lambda: report(epoch=1))
    line = tuner.accept()
    with contextlib.suppress(OSError):
        line.socket.sendall(garbage)
    line.close()
    line = tuner.accept()
    line.read()
    assert line.read()["seq"] == 0
    line.answer(0, "CONTINUE")
    thread.join(5.0)
    assert result == ["CONTINUE"]
    report.close()
    line.close()


def test_a_wrong_grace_is_an_error(fake: Callable[..., FakeTuner], monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    for value in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("STHYPER_RECONNECT_GRACE", value)
        with pytest.raises(ValueError, match=f"STHYPER_RECONNECT_GRACE must be a finite number .* got '{value}'"):
            Reporter()(epoch=1)


SCRIPT = """
import sys, time
from sthyper import Reporter
report = Reporter()
report(epoch=1)
print("answered", flush=True)
sys.stdin.readline()
{end}
"""


@pytest.mark.parametrize(("end", "ok"), [("", True), ("raise RuntimeError('no')", False)])
def test_a_trial_that_ends_waits_to_say_so(fake: Callable[..., FakeTuner], tmp_path: Path, end: str, ok: bool) -> None:
    tuner = fake()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as trial:
        line = tuner.accept()
        line.read()
        line.read()
        line.answer(0)
        trial.stdout.readline()
        line.close()
        tuner.go()
        trial.stdin.write(b"\n")
        trial.stdin.flush()
        time.sleep(0.5)
        assert trial.poll() is None, "it ended without a word"
        tuner.come_back()
        line = tuner.accept()
        assert line.read()["type"] == "hello"
        said = line.read()
        while said["type"] == "loaded":
            said = line.read()
        assert (said["type"], said["ok"]) == ("bye", ok)
        line.close()
        assert trial.wait(5.0) == (0 if ok else 1)


def test_the_grace_reaches_the_trials(experiment: Callable[..., Experiment]) -> None:
    away = experiment(kind="random", trials=1, n_workers=1, pace=0.0, reconnect_grace=33.5)
    away.finish()
    assert (away.folder / "trials" / "0" / "std.out").read_text() == "grace 33.5\n"
    assert Counter(r["metrics"]["epoch"] for r in away.reports()) == Counter(range(1, EPOCHS + 1))


class TestDetachedBackend(BackendConformance):
    def make_backend(self, entry_point: Path) -> DetachedBackend:
        text = textwrap.dedent(entry_point.read_text())
        entry_point.write_text(text)
        return DetachedBackend(str(entry_point))
