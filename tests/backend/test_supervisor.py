"""Whoever is killed, no process of any trial is left five seconds later: real processes, real SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sthyper.backend import _processes

LIMIT = 5.0

# A tuner with two trials; it says who is who, then waits for what happens to it.
TUNER = """
import os, select, sys, time
from sthyper.backend._processes import snapshot
from sthyper.backend.launcher import Launcher, Lost, SpawnRequest

folder, tag, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
launcher = Launcher(preload=[], tag=("STHYPER_TOKEN", tag))
launcher.start()
for key in range(count):
    own = os.path.join(folder, str(key))
    os.makedirs(own)
    launcher.spawn(SpawnRequest(f"{key}-0", (os.path.join(folder, "trial.py"), own), "fork", {}, folder,
                                os.path.join(own, "out"), os.path.join(own, "err")))
def up():
    return sum(name.isdigit() for key in range(count) for name in os.listdir(os.path.join(folder, str(key))))
while up() < 5 * count:
    launcher.read()
    time.sleep(0.01)
guardian = launcher._guardian.pid
server = next(info.pid for info in snapshot().values() if info.ppid == guardian)
print(guardian, server, flush=True)
while True:
    deadline = launcher.next_deadline()
    wait = None if deadline is None else max(0.0, deadline - time.monotonic())
    select.select(launcher.filenos(), [], [], wait)
    for event in launcher.read():
        if isinstance(event, Lost):
            print("lost", event.who, flush=True)
            launcher.close()
            sys.exit()
"""

# A trial with a child that ignores SIGTERM, one that leaves the session as well, a daemon by two forks, and a daemon
# whose environment is empty.
TRIAL = """
import os, signal, subprocess, sys, time

folder = sys.argv[1]
STAY = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
STAY += "open(os.path.join(sys.argv[1], str(os.getpid())), 'w').close(); time.sleep(120)"
command = [sys.executable, "-I", "-S", "-c", STAY, folder]
subprocess.Popen(command)
subprocess.Popen(command, start_new_session=True)
for environment in (dict(os.environ), {}):
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            if not environment:
                os.execve(command[0], command, environment)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(os.path.join(folder, str(os.getpid())), "w").close()
            time.sleep(120)
        os._exit(0)
    os.waitpid(child, 0)
open(os.path.join(folder, str(os.getpid())), "w").close()
time.sleep(120)
"""


@dataclass
class Experiment:
    """A tuner in a process of its own, and all that belongs to it."""

    tuner: subprocess.Popen[str]
    tag: str
    guardian: int
    server: int
    processes: list[_processes.ProcessInfo]

    def kill(self, victims: str) -> None:
        pids = {"tuner": self.tuner.pid, "server": self.server, "guardian": self.guardian}
        for name in victims.split("+"):
            os.kill(pids[name], signal.SIGKILL)

    def left(self) -> set[int]:
        found = {info.pid for info in _processes.tagged("STHYPER_TOKEN", self.tag)}
        for info in self.processes:
            now = _processes.process_info(info.pid)
            if now is not None and now.alive and now.start == info.start:
                found.add(info.pid)
        return found - {self.tuner.pid}


def start(folder: Path, trials: int = 2) -> subprocess.Popen[str]:
    folder.mkdir()
    (folder / "trial.py").write_text(TRIAL)
    (folder / "tuner.py").write_text(TUNER)
    return subprocess.Popen(
        [sys.executable, str(folder / "tuner.py"), str(folder), folder.name + os.urandom(8).hex(), str(trials)],
        stdout=subprocess.PIPE,
        text=True,
    )


def started(tuner: subprocess.Popen[str], folder: Path) -> Experiment:
    assert tuner.stdout is not None
    guardian, server = map(int, tuner.stdout.readline().split())
    tag = tuner.args[3]  # type: ignore[index]
    pids = [int(file.name) for file in folder.glob("*/*") if file.name.isdigit()]
    everyone = _processes.snapshot()
    processes = [everyone[pid] for pid in (*pids, guardian, server)]
    assert len(pids) == 10
    return Experiment(tuner, tag, guardian, server, processes)


def kill_and_check(folder: Path, victims: str, count: int) -> list[float]:
    """Run experiments side by side, kill the victims of each, and return after how many seconds nobody was left."""
    tuners = [start(folder / str(number)) for number in range(count)]
    experiments: list[Experiment] = []
    times: dict[int, float] = {}
    try:
        for number, tuner in enumerate(tuners):
            experiments.append(started(tuner, folder / str(number)))
        begin = time.monotonic()
        for experiment in experiments:
            experiment.kill(victims)
        while len(times) < count and time.monotonic() - begin < LIMIT:
            for number, experiment in enumerate(experiments):
                if number not in times and not experiment.left():
                    times[number] = time.monotonic() - begin
            time.sleep(0.05)
        left = [sorted(experiment.left()) for experiment in experiments]
        assert left == [[]] * count, f"alive {LIMIT} s after the end of {victims}: {left}"
        for experiment in experiments:
            if "tuner" not in victims:
                # The tuner lives, was told, and ends as it wants to.
                output, _ = experiment.tuner.communicate(timeout=10.0)
                assert output == f"lost {'fork server' if victims == 'server' else 'guardian'}\n"
                assert experiment.tuner.returncode == 0
    finally:
        for tuner in tuners:
            tuner.kill()
            tuner.communicate()
        for experiment in experiments:
            for pid in experiment.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return sorted(times.values())


@pytest.mark.parametrize("victims", ["tuner", "server", "tuner+server", "guardian", "tuner+guardian"])
def test_nobody_outlives(victims: str, tmp_path: Path) -> None:
    assert len(kill_and_check(tmp_path, victims, 3)) == 3


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victims", ["tuner", "server", "tuner+server", "guardian", "tuner+guardian"])
def test_nobody_outlives_twenty_times(victims: str, tmp_path: Path, record_property: object) -> None:
    times: list[float] = []
    for batch in range(5):
        (tmp_path / str(batch)).mkdir()
        times += kill_and_check(tmp_path / str(batch), victims, 4)
    assert len(times) == 20
    print(f"{victims}: median {sorted(times)[10]:.2f} s, largest {max(times):.2f} s")


def test_a_child_of_the_tuner_that_holds_the_sockets_hides_nothing(tmp_path: Path) -> None:
    # A user's process pool is forked from the tuner and keeps its descriptors open.
    folder = tmp_path / "0"
    tuner_code = TUNER.replace(
        "guardian = launcher", "if os.fork() == 0: time.sleep(20); os._exit(0)\nguardian = launcher"
    )
    folder.mkdir()
    (folder / "trial.py").write_text(TRIAL)
    (folder / "tuner.py").write_text(tuner_code)
    tag = os.urandom(8).hex()
    tuner = subprocess.Popen(
        [sys.executable, str(folder / "tuner.py"), str(folder), tag, "2"], stdout=subprocess.PIPE, text=True
    )
    try:
        experiment = started(tuner, folder)
        holder = next(i for i in _processes.snapshot().values() if i.ppid == tuner.pid and i.pid != experiment.guardian)
        experiment.kill("tuner")
        begin = time.monotonic()
        while experiment.left():
            assert time.monotonic() - begin < LIMIT
            time.sleep(0.05)
        os.kill(holder.pid, signal.SIGKILL)
    finally:
        tuner.kill()
        tuner.communicate()


def test_sigterm_to_guardian_or_server_cleans_up_too(tmp_path: Path) -> None:
    for number, victim in enumerate(("guardian", "server")):
        folder = tmp_path / str(number)
        tuner = start(folder)
        try:
            experiment = started(tuner, folder)
            os.kill(experiment.guardian if victim == "guardian" else experiment.server, signal.SIGTERM)
            begin = time.monotonic()
            while experiment.left():
                assert time.monotonic() - begin < LIMIT
                time.sleep(0.05)
            output, _ = tuner.communicate(timeout=10.0)
            assert output.startswith("lost ")
        finally:
            tuner.kill()
            tuner.communicate()
