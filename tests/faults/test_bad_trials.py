"""Trials that hang, leave without a word or eat all memory: how they are judged, and that all else goes on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend, _memory
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import TrialFailed
from sthyper.experiment import ExperimentResult, load_experiment
from sthyper.journal import read_journal
from sthyper.trial import Trial

EPOCHS, TRIALS = 6, 6
BAD = (0, 5)

# Trials 0 and 5 do what BAD_CODE says, the others train for 0.3 s.
SCRIPT = """
import os, resource, signal, sys, time
from sthyper import Reporter

def limit_memory(more):
    used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))

report = Reporter()
if report.trial_id in (0, 5):
    # BAD_CODE
    sys.exit()
for epoch in range(1, 7):
    time.sleep(0.05)
    report(epoch=epoch, loss=report.trial_id + 1 / epoch)
"""


class Watched(RandomSearch):
    """Random search that notes what it is told of ends."""

    def __init__(self) -> None:
        super().__init__({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=1)
        self.told: list[tuple[str, int, str | None]] = []

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self.told.append(("complete", trial.trial_id, trial.end_reason))
        super().on_trial_complete(trial, result)

    def on_trial_error(self, trial: Trial) -> None:
        self.told.append(("error", trial.trial_id, trial.end_reason))
        super().on_trial_error(trial)


def script_with(code: str) -> str:
    return SCRIPT.replace("# BAD_CODE", code.replace("\n", "\n    "))


def run(script: Path, counts: bool, **backend: Any) -> tuple[ExperimentResult, Watched]:
    """Run two bad trials among good ones; those of a kind that counts end the experiment when the second fails."""
    scheduler = Watched()
    tuner = Tuner(
        LocalBackend(script, **backend),
        scheduler,
        StoppingCriterion(max_num_trials_started=TRIALS),
        n_workers=2,
        max_failures=1 if counts else 0,
        max_restarts=0,
    )
    if counts:
        with pytest.raises(TrialFailed, match="2 trials failed, more than max_failures=1 allows"):
            tuner.run()
    else:
        tuner.run()
    return load_experiment(tuner.tuner_path), scheduler


def check(experiment: ExperimentResult, scheduler: Watched, reason: str, counts: bool) -> None:
    """The bad trials are called what they are, the others are complete, and workers are free again at once."""
    ended = {("error", number) for number in BAD}
    good = (1, 2) if counts else (1, 2, 3, 4)
    for number in BAD:
        assert experiment.trials[number].status == "Failed"
        assert (experiment.trials[number].end_reason or "").startswith(reason)
    for number in good:
        assert experiment.trials[number].status == "Completed"
        rows = experiment.results[experiment.results["trial_id"] == number]
        assert list(rows["epoch"]) == list(range(1, EPOCHS + 1))
    assert {told[:2] for told in scheduler.told} >= ended | {("complete", number) for number in good}
    assert {told[2] for told in scheduler.told if told[0] == "error"} == {experiment.trials[0].end_reason}
    assert len(scheduler.told) == len({told[:2] for told in scheduler.told})
    records = list(read_journal(experiment.path))
    (end,) = [i for i, r in enumerate(records) if r["type"] == "status" and r["trial_id"] == 0]
    start = next(r for r in records[end:] if r["type"] == "start")
    assert start["tuner_time"] - records[end]["tuner_time"] < 1.0


@pytest.mark.parametrize(
    ("code", "reason", "backend"),
    [
        pytest.param("pass", "no report", {}, id="exits-0-without-report"),
        pytest.param("time.sleep(600)", "hung", {"first_report_timeout": 0.8}, id="hangs-before-its-first-report"),
        pytest.param("report(loss=1.0); time.sleep(600)", "hung", {"trial_timeout": 0.8}, id="hangs-after-a-report"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", "killed", {}, id="killed"),
        pytest.param("report(loss=1.0); os.abort()", "signal SIGABRT", {}, id="aborts"),
        pytest.param("raise KeyError('width')", "exit 1", {}, id="raises"),
    ],
)
def test_failures_count(write: Callable[..., Path], code: str, reason: str, backend: dict[str, Any]) -> None:
    experiment, scheduler = run(write(script_with(code)), counts=True, **backend)
    check(experiment, scheduler, reason, counts=True)


def test_a_trial_that_ignores_sigterm(write: Callable[..., Path]) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nreport(loss=1.0)\nwhile True:\n    time.sleep(1)"
    backend = LocalBackend(write(script_with(code)), trial_timeout=0.5)
    scheduler = Watched()
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=2), n_workers=1, max_failures=1)
    experiment = tuner.run()
    ends = {r["trial_id"]: r for r in read_journal(experiment.path) if r["type"] == "status"}
    assert (ends[0]["status"], ends[0]["reason"], ends[0]["exit_code"]) == ("Failed", "hung", -9)
    assert 2.5 < ends[0]["tuner_time"] < 6.0
    assert scheduler.told == [("error", 0, "hung"), ("complete", 1, None)]


TORCH = "import torch\n"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("limit_memory(100 << 20)\nbytearray(1 << 30)", id="memory-error"),
        pytest.param(TORCH + "limit_memory(100 << 20)\ntorch.zeros(1 << 30)", id="allocator-of-torch"),
        pytest.param(TORCH + "raise torch.cuda.OutOfMemoryError('Tried to allocate 2 GiB')", id="cuda"),
        pytest.param(TORCH + "raise torch.OutOfMemoryError('Tried to allocate 2 GiB')", id="torch"),
    ],
)
def test_out_of_memory_does_not_count(write: Callable[..., Path], code: str) -> None:
    experiment, scheduler = run(write(script_with(code)), counts=False)
    check(experiment, scheduler, "out_of_memory", counts=False)


def test_values_that_are_not_finite(write: Callable[..., Path]) -> None:
    code = "for epoch, value in enumerate(('nan', 'inf', '-inf'), start=1):\n    report(epoch=epoch, loss=float(value))"
    script = write(script_with(code))
    tuner = Tuner(LocalBackend(script), Watched(), StoppingCriterion(max_num_trials_started=TRIALS), n_workers=2)
    experiment = tuner.run()
    assert {trial.status for trial in experiment.trials.values()} == {"Completed"}
    values = [
        r["metrics"]["loss"] for r in read_journal(experiment.path) if r["type"] == "report" and r["trial_id"] == 0
    ]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]
    assert tuner.best_config()[0] == 1
    assert experiment.best_config()["trial_id"] == 1


def test_values_that_are_not_finite_end_their_trial_at_a_rung(write: Callable[..., Path]) -> None:
    script = write(
        """
        import time
        from sthyper import Reporter
        report = Reporter()
        for epoch in range(1, 10):
            time.sleep(0.05 * report.trial_id if epoch == 1 else 0.0)
            report(epoch=epoch, loss=float("nan") if report.trial_id == 1 else 1.0 / epoch)
        """
    )
    scheduler = ASHA(
        {"x": uniform(0, 1), "epochs": 9}, metric="loss", type="stopping", max_resource_attr="epochs", random_seed=1
    )
    tuner = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=2), n_workers=2)
    experiment = tuner.run()
    assert [experiment.trials[i].status for i in (0, 1)] == ["Completed", "Stopped"]
    assert len(experiment.results[experiment.results["trial_id"] == 1]) == 1


# ---- killed by the kernel ------------------------------------------------------------------------------


def _own_group() -> tuple[int, Path, Path]:
    """Return version, folder and parent folder of the memory control group that this process is in."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, folder = line.split(":", 2)
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            right = kind == "cgroup" and "memory" in options if controllers else kind == "cgroup2"
            if right and (not controllers or "memory" in controllers.split(",")):
                version = 1 if controllers else 2
                own = Path(fields[4], folder.removeprefix(fields[3]).strip("/"))
                if version == 1 or "memory" in (own / "cgroup.controllers").read_text().split():
                    return version, own, own if version == 1 or own == Path(fields[4]) else own.parent
    pytest.skip("no control groups with the memory controller are mounted")


@pytest.fixture
def memory_group() -> Iterator[Callable[[int], Path]]:
    """Make a control group with a memory limit and return its folder; skip where that is not allowed."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        version, _, parent = _own_group()
        group = parent / f"sthyper-test-{os.getpid()}-{len(made)}"
        try:
            group.mkdir()
            made.append(group)
            (group / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(limit))
            for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
                if (group / name).exists():
                    (group / name).write_text("0" if version == 2 else str(limit))
        except OSError as error:
            pytest.skip(f"no control group with a memory limit can be made: {error}")
        return group

    yield make
    for group in made:
        end = time.monotonic() + 5.0
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                assert time.monotonic() < end, f"{group} is still in use"
                time.sleep(0.05)


EAT = """
blocks = []
while True:
    blocks.append(b"x" * (16 << 20))
"""


def test_the_group_of_a_process_that_has_ended(tmp_path: Path) -> None:
    """Version 2 tells it, also for a group below one without the file that is looked for."""
    tops = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if not tops:
        pytest.skip("no control groups of version 2 are mounted")
    group = Path(tops[0][4], f"sthyper-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        code = f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        process = subprocess.Popen([sys.executable, "-c", code])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        (found,) = [folder for version, _, folder in _memory._groups(process.pid) if version == 2]
        assert _memory._mounted("cgroup2", found, "cgroup.events") == str(group / "cgroup.events")
        assert _memory._mounted("cgroup2", f"{found}/no/such", "cgroup.events") == str(group / "cgroup.events")
        assert _memory._mounted("cgroup2", found, "no such file") is None
        assert process.wait() == 0
    finally:
        group.rmdir()


LAUNCH_IN_GROUP = """
import os, sys
open({group!r}, "w").write(str(os.getpid()))
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform

scheduler = RandomSearch({{"x": uniform(0, 1)}}, metric="loss", random_seed=1)
criterion = StoppingCriterion(max_num_trials_started=4)
Tuner(LocalBackend({script!r}, launch={launch!r}), scheduler, criterion, n_workers=2, max_failures=1, max_restarts=0,
      tuner_name="limited", suffix_tuner_name=False).run()
"""


@pytest.mark.parametrize("launch", ["fork", "exec"])
def test_the_kernel_kills_a_trial_in_the_group_of_the_tuner(
    write: Callable[..., Path], tmp_path: Path, memory_group: Callable[[int], Path], launch: str
) -> None:
    """As in a container: all processes share a limit. A trial that somebody else kills afterwards is not taken for one
    that ran out of memory; a trial that fails since the kernel killed one of its workers is."""
    group = memory_group(700 << 20)
    script = write(
        f"""
        import os, signal, time
        from sthyper import Reporter
        report = Reporter()
        def eat():
            {EAT.strip().replace(chr(10), chr(10) + " " * 12)}
        for epoch in range(1, 5):
            report(epoch=epoch, loss=1.0)
            time.sleep(0.3)
            if epoch == 2 and report.trial_id == 0:
                eat()
            if epoch == 4 and report.trial_id == 1:
                # Of two that die at the same moment nobody can tell whose the count is.
                while '"status","trial_id":0' not in open(report.trial_dir + "/../../journal.jsonl").read():
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
        if report.trial_id == 2:
            pid = os.fork()
            if not pid:
                eat()
            os.waitpid(pid, 0)
            raise RuntimeError(f"DataLoader worker (pid {{pid}}) is killed by signal: Killed. ")
        """
    )
    text = LAUNCH_IN_GROUP.format(group=str(group / "cgroup.procs"), script=str(script), launch=launch)
    command = [sys.executable, str(write(text, "launch.py"))]
    env = {**os.environ, "STHYPER_FOLDER": str(tmp_path / "folder")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    experiment = load_experiment(tmp_path / "folder" / "limited")
    assert [experiment.trials[i].end_reason for i in range(4)] == ["out_of_memory", "killed", "out_of_memory", None]
    codes = {r["trial_id"]: r["exit_code"] for r in read_journal(experiment.path) if r["type"] == "status"}
    assert codes == {0: -9, 1: -9, 2: 1, 3: 0}


def test_the_kernel_kills_a_trial_in_a_group_of_its_own(
    write: Callable[..., Path], memory_group: Callable[[int], Path]
) -> None:
    if _own_group()[0] == 1:
        pytest.skip("control groups of version 1 do not tell the group of a process that has ended")
    group = memory_group(150 << 20)
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    experiment, scheduler = run(write(script_with(f"report(loss=1.0)\n{enter}{EAT}")), counts=False)
    check(experiment, scheduler, "out_of_memory", counts=False)


def test_nobody_but_the_kernel_means_out_of_memory(write: Callable[..., Path]) -> None:
    code = "report(loss=1.0)\nraise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.')"
    experiment, scheduler = run(write(script_with(code)), counts=True)
    check(experiment, scheduler, "exit 1", counts=True)
