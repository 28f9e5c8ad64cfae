"""Long experiments: memory, file handles and latency of the tuner stay within bounds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper.backend import RemoteBackend
from sthyper.trial import Trial

MB = 1e6
PLAYERS = 8
WORKERS = 16

# Plays trials, several at a time: a client of the wire protocol that knows nothing of sthyper.
PLAYER = """
import json, os, selectors, socket, sys, time
from array import array

sent, latencies = array("d"), array("d")
selector = selectors.DefaultSelector()
selector.register(0, selectors.EVENT_READ)
orders = b""


class Played:
    def __init__(self, trial_id, run, first, last, x, address, token):
        host, port = address.removeprefix("tcp:").rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.trial_id, self.epoch, self.last, self.x = trial_id, first, last, x
        self.seq, self.buffer = 0, b""
        hello = {"type": "hello", "v": 1, "token": token, "trial_id": trial_id, "run": run}
        self.send({**hello, "client": os.urandom(8).hex()})
        selector.register(self.socket, selectors.EVENT_READ, self)
        self.report()

    def send(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\\n")

    def report(self):
        metrics = {"epoch": self.epoch, "loss": self.x + 1 / self.epoch, "accuracy": 0.5, "lr": 0.001}
        metrics["st_worker_timestamp"], metrics["st_worker_iter"] = time.time(), self.seq
        metrics["st_worker_time"] = 0.1 * self.seq
        self.start = time.monotonic()
        self.send({"type": "report", "seq": self.seq, "metrics": metrics})

    def read(self):
        data = self.socket.recv(4096)
        if not data:
            raise SystemExit("the tuner closed the connection")
        self.buffer += data
        if not self.buffer.endswith(b"\\n"):
            return
        answer, self.buffer = json.loads(self.buffer), b""
        assert answer["seq"] == self.seq
        sent.append(self.start)
        latencies.append(time.monotonic() - self.start)
        self.seq, self.epoch = self.seq + 1, self.epoch + 1
        if answer["decision"] == "CONTINUE" and self.epoch <= self.last:
            self.report()
            return
        self.send({"type": "bye", "ok": True})
        selector.unregister(self.socket)
        self.socket.close()
        os.write(1, f"{self.trial_id}\\n".encode())


while True:
    for key, _ in selector.select():
        if key.data is not None:
            key.data.read()
            continue
        data = os.read(0, 65536)
        if not data:
            with open(sys.argv[1], "wb") as file:
                sent.tofile(file)
                latencies.tofile(file)
            sys.exit()
        *lines, orders = (orders + data).split(b"\\n")
        for line in lines:
            Played(**json.loads(line))
"""

TUNE = """
import sys
sys.path.insert(0, {here!r})
from sthyper import StoppingCriterion, Tuner
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from test_soak import PlayedBackend

space = {{"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0), "z": uniform(0.0, 1.0), "epochs": {last}}}
backend = PlayedBackend({player!r}, {latencies!r}, n_players={players})
tuner = Tuner(
    backend,
    ASHA(space, metric="loss", type="stopping", max_resource_attr="epochs", grace_period={first}, reduction_factor=2,
         random_seed=1),
    StoppingCriterion(max_num_trials_started={trials}),
    n_workers={workers},
    tuner_name="soak",
    suffix_tuner_name=False,
)
tuner.run()
"""

LOAD = """
import json, pathlib, time
from sthyper import load_experiment
start = time.monotonic()
experiment = load_experiment("soak")
rows = len(experiment.results)
best = experiment.best_config()
# getrusage would count the memory of the process from which this one was forked.
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({
    "rows": rows, "trials": len(experiment.trials), "seconds": time.monotonic() - start,
    "rss": 1024 * peak,
    "twice": int(experiment.results.duplicated(["trial_id", "epoch"]).sum()),
}))
"""


class PlayedBackend(RemoteBackend):
    """Its trials are played by a few processes, each of which plays several."""

    look_interval = 0.01

    def __init__(self, player: str, latencies: str, n_players: int) -> None:
        super().__init__()
        self.players = [
            subprocess.Popen(
                [sys.executable, player, f"{latencies}.{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            for n in range(n_players)
        ]
        self.heard = b""
        for player_process in self.players:
            assert player_process.stdout is not None
            os.set_blocking(player_process.stdout.fileno(), False)

    def _submit(self, trial: Trial, run: int, environment: dict[str, str]) -> dict[str, Any]:
        n = trial.trial_id % len(self.players)
        order = {
            "trial_id": trial.trial_id,
            "run": run,
            "first": int(environment.get("STHYPER_LAST_RESOURCE", "0")) + 1,
            "last": trial.config["epochs"],
            "x": trial.config["x"],
            "address": environment["STHYPER_CHANNEL"],
            "token": environment["STHYPER_TOKEN"],
        }
        stdin = self.players[n].stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        return {"player": n}

    def _ended(self, places: Mapping[int, dict[str, Any]]) -> dict[int, int | None]:
        ended: dict[int, int | None] = {}
        for player in self.players:
            assert player.poll() is None, "a player has failed"
            assert player.stdout is not None
            while data := player.stdout.read(65536):
                # Numbers are written as a whole: a pipe does not tear what is that short.
                ended |= {int(trial_id): 0 for trial_id in data.split()}
        return ended

    def _terminate(self, trial_id: int, place: dict[str, Any], force: bool) -> None:
        raise AssertionError("every trial ends by itself")

    def close(self, wait: bool = True) -> None:
        for player in self.players:
            if player.stdin is not None and not player.stdin.closed:
                player.stdin.close()
                player.wait(30)
            if player.stdout is not None:
                player.stdout.close()
        super().close(wait)


@dataclass
class Watched:
    """What a process took while it ran."""

    seconds: float
    rss: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def share(self, values: list[float], start: float, end: float) -> list[float]:
        return values[int(start * len(values)) : max(int(end * len(values)), int(start * len(values)) + 1)]


def watch(command: list[str], log: Path, interval: float, seconds: float) -> Watched:
    """Run a tuner to its end, and look at it at intervals."""
    started = time.monotonic()
    watched = Watched(0.0)
    with open(log, "w") as out, subprocess.Popen(command, stdout=out, stderr=out) as tuner:
        process = psutil.Process(tuner.pid)
        try:
            while tuner.poll() is None:
                assert time.monotonic() - started < seconds, f"not done after {seconds} s"
                try:
                    watched.rss.append(process.memory_info().rss)
                    watched.handles.append(process.num_fds())
                    watched.children.append(len(process.children(recursive=True)))
                except psutil.Error:
                    break
                time.sleep(interval)
            assert tuner.wait(60) == 0, log.read_text()
        finally:
            for child in [*process.children(recursive=True), process] if tuner.poll() is None else []:
                child.kill()
    watched.seconds = time.monotonic() - started
    return watched


def played(
    folder: Path, trials: int, workers: int, first: int, last: int, seconds: float
) -> tuple[Watched, list[float]]:
    """Play an experiment; return what the tuner took, and the latencies of the reports in the order of sending."""
    player, tune, latencies = folder / "player.py", folder / "tune.py", folder / "latencies"
    player.write_text(PLAYER)
    values = {
        "here": str(Path(__file__).parent),
        "player": str(player),
        "latencies": str(latencies),
        "players": PLAYERS,
    }
    tune.write_text(TUNE.format(**values, trials=trials, workers=workers, first=first, last=last))
    watched = watch([sys.executable, str(tune)], folder / "tuner.txt", 0.2 if trials < 1000 else 1.0, seconds)
    pairs: list[tuple[float, float]] = []
    for path in folder.glob("latencies.*"):
        numbers = array("d", path.read_bytes())
        half = len(numbers) // 2
        pairs += zip(numbers[:half], numbers[half:], strict=True)
    return watched, [latency for _, latency in sorted(pairs)]


def loaded(folder: Path) -> dict[str, Any]:
    """Load the experiment in a process of its own; return what that found and took."""
    script = folder / "load.py"
    script.write_text(LOAD)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def say(**figures: float) -> None:
    print("  ".join(f"{name}={value:.4g}" for name, value in figures.items()))


def check_played(folder: Path, trials: int, sample: int, slower: float, seconds: float) -> None:
    """Play an experiment and check it.

    Args:
        folder: For its files.
        trials: Their number; 50 reports each, on average.
        sample: Number of reports at start and end whose latencies are compared.
        slower: How many times slower the end may be.
        seconds: Longest time.
    """
    watched, latencies = played(folder, trials, WORKERS, 32, 68, seconds)
    reports = len(latencies)
    start, end = statistics.median(latencies[:sample]), statistics.median(latencies[-sample:])
    experiment = loaded(folder)
    say(
        reports=reports,
        seconds=watched.seconds,
        reports_per_second=reports / watched.seconds,
        rss_start_mb=watched.share(watched.rss, 0.1, 0.1)[0] / MB,
        rss_max_mb=max(watched.rss) / MB,
        rss_end_mb=watched.share(watched.rss, 0.95, 0.95)[0] / MB,
        handles_start=watched.share(watched.handles, 0.1, 0.1)[0],
        handles_max=max(watched.handles),
        latency_start_ms=1e3 * start,
        latency_end_ms=1e3 * end,
        latency_max_ms=1e3 * max(latencies),
        load_seconds=experiment["seconds"],
        load_rss_mb=experiment["rss"] / MB,
    )
    assert experiment["rows"] == reports
    assert experiment["trials"] == trials
    assert reports > 48 * trials
    assert experiment["twice"] == 0
    assert experiment["rss"] < 1e9
    assert end < slower * start
    # The table of results, and what the scheduler knows of the trials.
    assert max(watched.rss) < 150 * MB + 600 * reports
    # A handle for each trial that is connected, two for each player, and some of its own.
    assert max(watched.handles) <= WORKERS + 2 * PLAYERS + 20


@pytest.mark.timeout(120)
def test_ten_thousand_reports(tmp_path: Path) -> None:
    # In so short a time other work on the machine shows, too.
    check_played(tmp_path, trials=200, sample=2000, slower=5.0, seconds=100.0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_a_million_reports(tmp_path: Path) -> None:
    check_played(tmp_path, trials=10_000, sample=10_000, slower=2.0, seconds=3000.0)


# ---- real trials --------------------------------------------------------------------------------------------

TRAIN = """
from sthyper import Reporter

report = Reporter()
for epoch in range(1, 6):
    report(epoch=epoch, loss=report.config["x"] + 1 / epoch)
"""

TUNE_SCRIPT = """
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform

Tuner(
    LocalBackend({train!r}, pass_args_as_json=True),
    RandomSearch({{"x": uniform(0.0, 1.0)}}, metric="loss", random_seed=1),
    StoppingCriterion(max_num_trials_completed={trials}),
    n_workers=2,
    tuner_name="soak",
    suffix_tuner_name=False,
).run()
"""


def check_real(folder: Path, trials: int, seconds: float) -> None:
    train, tune = folder / "train.py", folder / "tune.py"
    train.write_text(TRAIN)
    tune.write_text(TUNE_SCRIPT.format(train=str(train), trials=trials))
    watched = watch([sys.executable, str(tune)], folder / "tuner.txt", 0.05, seconds)
    experiment = loaded(folder)
    early, late = watched.share(watched.rss, 0.4, 0.5), watched.share(watched.rss, 0.8, 0.9)
    say(
        trials=trials,
        seconds=watched.seconds,
        rss_half_mb=statistics.median(early) / MB,
        rss_end_mb=statistics.median(late) / MB,
        handles_max=max(watched.handles),
        children_max=max(watched.children),
    )
    assert experiment["trials"] == trials
    assert experiment["rows"] == 5 * trials
    assert statistics.median(late) - statistics.median(early) < 20 * MB
    assert max(watched.handles) <= 40
    # Guardian, fork server and two trials, each of which may be on its way out while the next one is on its way in.
    assert max(watched.children) <= 8


@pytest.mark.timeout(120)
def test_forty_real_trials(tmp_path: Path) -> None:
    check_real(tmp_path, trials=40, seconds=60.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_five_hundred_real_trials(tmp_path: Path) -> None:
    check_real(tmp_path, trials=500, seconds=600.0)
