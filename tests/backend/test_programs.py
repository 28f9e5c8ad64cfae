"""Programs that only print: tuned, stopped and paused from outside, as real processes."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import EndEvent, ExperimentContext, LocalBackend, MessageEvent, ReportEvent
from sthyper.baselines import ASHA
from sthyper.config_space import choice
from sthyper.journal import read_journal
from sthyper.trial import Status

# Trains with a checkpoint that is a number in a file; says where it began.
SHELL = """
    x=$1; epochs=$2; file=$STHYPER_CHECKPOINT_DIR/epoch
    mkdir -p "$STHYPER_CHECKPOINT_DIR"
    done=0
    [ -f "$file" ] && done=$(cat "$file")
    echo "from $done after ${STHYPER_LAST_RESOURCE:-nothing}"
    while [ "$done" -lt "$epochs" ]; do
        done=$((done + 1))
        sleep SLEEP
        echo "$done" >> "$STHYPER_TRIAL_DIR/trained"
        echo "$done" > "$file.new" && mv "$file.new" "$file"
        echo "[tune-metric]: {\\"epoch\\": $done, \\"loss\\": $x$done}"
    done
    echo "reached the end"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "train.sh", sleep: float = 0.0) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).replace("SLEEP", str(sleep)))
        return path

    return write


def asha(kind: str, epochs: int = 9) -> ASHA:
    # The worse of any three trials is seen at once, and no value occurs twice.
    space = {"x": choice([f"0.{i}" for i in range(1, 10)]), "epochs": epochs}
    return ASHA(space, metric="loss", resource_attr="epoch", max_resource_attr="epochs", type=kind, random_seed=3)


def run(entry_point: Any, scheduler: Any, n_trials: int, n_workers: int = 2, **options: Any) -> Tuner:
    backend = LocalBackend(entry_point, **options)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=n_trials), n_workers)
    tuner.run()
    return tuner


def records(tuner: Tuner, kind: str, trial_id: int | None = None) -> list[dict[str, Any]]:
    lines = [r for r in read_journal(tuner.tuner_path) if r["type"] == kind]
    return lines if trial_id is None else [r for r in lines if r["trial_id"] == trial_id]


def trained(tuner: Tuner, trial_id: int) -> list[int]:
    return [int(n) for n in (tuner.tuner_path / "trials" / str(trial_id) / "trained").read_text().split()]


# ---- decisions -----------------------------------------------------------------------------------------


def test_a_shell_program_pauses_at_its_milestones_and_trains_nothing_twice(write: Callable[..., Path]) -> None:
    script = write(SHELL)
    tuner = run(f"sh {script} {{x}} {{epochs}}", asha("promotion"), 9, rewrite_max_resource=True)
    promoted = 0
    for trial_id in range(9):
        runs = records(tuner, "start", trial_id) + records(tuner, "resume", trial_id)
        levels = [r["milestone"] for r in runs]
        promoted += len(levels) - 1
        assert trained(tuner, trial_id) == list(range(1, levels[-1] + 1))
        reported = [r["metrics"]["epoch"] for r in records(tuner, "report", trial_id)]
        assert reported == list(range(1, levels[-1] + 1))
        # Each run ended by itself before anybody could have told it to, and is paused all the same.
        ends = [(r["status"], r["reason"], r["exit_code"]) for r in records(tuner, "status", trial_id)]
        assert ends == [("Completed" if level == 9 else "Paused", None, 0) for level in levels]
        output = (tuner.tuner_path / "trials" / str(trial_id) / "std.out").read_text()
        starts = [line for line in output.splitlines() if line.startswith("from ")]
        assert starts == [f"from {a} after {a or 'nothing'}" for a in [0, *levels[:-1]]]
        assert {r["config"]["epochs"] for r in runs} == {9}  # the record holds the full value
    assert promoted >= 3
    assert records(tuner, "report")[0]["client"] == "stdout"


def test_without_the_milestone_in_its_configuration_it_is_ended_from_outside(write: Callable[..., Path]) -> None:
    script = write(SHELL, sleep=0.1)
    tuner = run(f"sh {script} {{x}} {{epochs}}", asha("promotion"), 4, n_workers=1)
    for trial_id in range(4):
        runs = records(tuner, "start", trial_id) + records(tuner, "resume", trial_id)
        levels = [r["milestone"] for r in runs]
        ends = [(r["status"], r["exit_code"]) for r in records(tuner, "status", trial_id)]
        assert ends == [("Completed", 0) if level == 9 else ("Paused", -15) for level in levels]
        assert len(trained(tuner, trial_id)) <= levels[-1] + 1  # of nine
        output = (tuner.tuner_path / "trials" / str(trial_id) / "std.out").read_text()
        assert ("reached the end" in output) == (levels[-1] == 9)


def test_bad_trials_are_stopped(write: Callable[..., Path]) -> None:
    script = write(SHELL, sleep=0.05)
    tuner = run(f"sh {script} {{x}} {{epochs}}", asha("stopping"), 6)
    status = {i: tuner.tuning_status.trial_status(i) for i in range(6)}
    assert set(status.values()) == {Status.stopped, Status.completed}
    for trial_id, value in status.items():
        (end,) = records(tuner, "status", trial_id)
        assert end["exit_code"] == (-15 if value == Status.stopped else 0)
        assert len(trained(tuner, trial_id)) == 9 or value == Status.stopped
    pids = {p["pid"] for p in records(tuner, "process")}
    assert len(pids) == 6
    assert pids.isdisjoint(psutil.pids())


def test_a_program_in_c(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    source = tmp_path / "train.c"
    source.write_text(r"""
        #include <stdio.h>
        #include <stdlib.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            double x = atof(argv[2]);
            int epochs = atoi(argv[4]);
            for (int epoch = 1; epoch <= epochs; epoch++) {
                usleep(50000);
                printf("[tune-metric]: {\"epoch\": %d, \"loss\": %g}\n", epoch, x + 1.0 / epoch);
                fflush(stdout);
            }
            return 0;
        }
    """)
    subprocess.run([compiler, "-o", str(tmp_path / "train"), str(source)], check=True)
    tuner = run(tmp_path / "train", asha("stopping"), 6)
    status = [tuner.tuning_status.trial_status(i) for i in range(6)]
    assert Status.stopped in status
    assert Status.completed in status
    for report in records(tuner, "report"):
        x = float(records(tuner, "start", report["trial_id"])[0]["config"]["x"])
        assert report["metrics"]["loss"] == pytest.approx(x + 1 / report["metrics"]["epoch"], rel=1e-4)


def test_python_of_another_environment_without_sthyper(write: Callable[..., Path], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    script = write(
        """
        import argparse, sys, time
        assert not any("site-packages" in p for p in sys.path if "venv" not in p), sys.path
        try:
            import sthyper
        except ImportError:
            pass
        else:
            raise SystemExit("sthyper is here")
        parser = argparse.ArgumentParser()
        parser.add_argument("--x")
        parser.add_argument("--epochs", type=int)
        args = parser.parse_args()
        for epoch in range(1, args.epochs + 1):
            time.sleep(0.1)
            print('[tune-metric]: {"epoch": %d, "loss": %s%d}' % (epoch, args.x, epoch))  # not flushed
        """,
        "train.py",
    )
    tuner = run([tmp_path / "venv" / "bin" / "python", script], asha("stopping"), 3, n_workers=1)
    seen = [len(records(tuner, "report", i)) for i in range(3)]
    assert min(seen) < 9  # stopped while it ran, so its reports came while it ran
    assert max(seen) == 9


# ---- ends ----------------------------------------------------------------------------------------------


class Backend:
    """A backend with the loop around it that the tuner has."""

    def __init__(self, path: Path, entry_point: Any, **options: Any) -> None:
        self.backend = LocalBackend(entry_point, **options)
        self.backend.set_path(path)
        self.messages: list[str] = []

    def __enter__(self) -> Backend:
        self.backend.open(ExperimentContext(n_workers=1, seed=0))
        return self

    def __exit__(self, *exc: object) -> None:
        self.backend.close()

    def follow(self, answers: dict[int, str]) -> tuple[list[ReportEvent], EndEvent]:
        """Answer reports by their epoch until the trial has ended."""
        reports: list[ReportEvent] = []
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            for event in self.backend.events(1.0):
                if isinstance(event, ReportEvent):
                    reports.append(event)
                    answer = answers.get(event.metrics["epoch"], "CONTINUE")
                    self.backend.answer(event, answer)
                    if answer == "STOP":
                        self.backend.stop_trial(event.trial_id, event.metrics)
                    elif answer == "PAUSE":
                        self.backend.pause_trial(event.trial_id, event.metrics)
                elif isinstance(event, EndEvent):
                    return reports, event
                elif isinstance(event, MessageEvent) and event.kind == "warning":
                    self.messages.append(event.data["message"])
        raise AssertionError(f"no end came, only {reports}")


@pytest.mark.parametrize(
    ("script", "answers", "options", "expected"),
    [
        # What a program does after its last report decides nothing when that was answered with an end.
        ("LAST1; exit 0", {1: "PAUSE"}, {}, ("Paused", 0)),
        ("LAST1; exit 3", {1: "PAUSE"}, {}, ("Paused", 3)),
        ("LAST1; exit 3", {1: "STOP"}, {}, ("Stopped", 3)),
        ("REPORT1; exit 3", {}, {}, ("Failed", 3)),
        ("REPORT1; exit 0", {}, {}, ("Completed", 0)),
        ("trap 'exit 7' TERM; REPORT1; while :; do sleep 0.05; done", {1: "STOP"}, {}, ("Stopped", 7)),
        ("REPORT1; sleep 60", {1: "STOP"}, {}, ("Stopped", -15)),
        ("trap '' TERM; REPORT1; sleep 60", {1: "STOP"}, {"stop_grace": 0.3}, ("Stopped", -9)),
        # It knows where to end, and gets the time for it.
        ("REPORT1; sleep 0.4; exit 0", {1: "PAUSE"}, {"rewrite_max_resource": True}, ("Paused", 0)),
        ("REPORT1; sleep 60", {1: "PAUSE"}, {"rewrite_max_resource": True, "stop_grace": 0.3}, ("Paused", -15)),
        ("REPORT1; sleep 60", {1: "STOP"}, {"rewrite_max_resource": True}, ("Stopped", -15)),
        ("REPORT1; sleep 60", {}, {"trial_timeout": 0.3}, ("Failed", -15)),
        ("sleep 60; REPORT1", {}, {"first_report_timeout": 0.3}, ("Failed", -15)),
    ],
)
def test_ends(
    script: str,
    answers: dict[int, str],
    options: dict[str, Any],
    expected: tuple[str, int],
    tmp_path: Path,
) -> None:
    report = """'[tune-metric]: {{"epoch": 1}}'"""
    # A line without end is a report when the program has ended, not before.
    script = script.replace("REPORT1", f"echo {report}").replace("LAST1", f"printf {report}")
    begin = time.monotonic()
    with Backend(tmp_path, ["sh", "-c", script], **options) as backend:
        backend.backend.start_trial({})
        _, end = backend.follow(answers)
        assert (end.status, end.exit_code) == expected
        assert backend.backend.busy_trial_ids() == []
        if end.status == Status.paused:
            assert backend.backend.resume_trial(0).trial_id == 0
    assert time.monotonic() - begin < 15.0


def test_reports_of_an_earlier_run_are_not_read_again(tmp_path: Path) -> None:
    script = """printf '[tune-metric]: {{"epoch": %d}}' {run}; test {run} = 2 || sleep 60"""
    with Backend(tmp_path, ["sh", "-c", script.replace("}'", "}\\n'", 1)]) as backend:
        backend.backend.start_trial({})
        assert [r.metrics["epoch"] for r in backend.follow({0: "PAUSE"})[0]] == [0]
        for run in (1, 2):
            backend.backend.resume_trial(0)
            reports, end = backend.follow({1: "PAUSE"})
            assert [(r.metrics["epoch"], r.run, r.seq) for r in reports] == [(run, run, 0)]
        assert end.status == Status.completed


def test_a_line_that_is_no_report_is_warned_of_once(tmp_path: Path) -> None:
    script = """for i in 1 2 3; do echo '[tune-metric]: epoch 1'; done; echo '[tune-metric]: {{"epoch": 4}}'"""
    with Backend(tmp_path, ["sh", "-c", script]) as backend:
        for trial_id in range(2):
            backend.backend.start_trial({})
            reports, end = backend.follow({})
            assert [r.metrics["epoch"] for r in reports] == [4]
            assert (end.trial_id, end.status) == (trial_id, Status.completed)
    assert len(backend.messages) == 1
    assert "trial 0 printed a report that is passed over, it is no JSON" in backend.messages[0]


def test_fields_that_a_reporter_adds(tmp_path: Path) -> None:
    script = """sleep 0.2; echo '[tune-metric]: {{"epoch": 1, "st_worker_time": "long", "st_own": 1}}'"""
    with Backend(tmp_path, ["sh", "-c", script], cost_per_hour=3600.0) as backend:
        backend.backend.start_trial({})
        (report,), _ = backend.follow({})
    metrics = report.metrics
    assert set(metrics) == {"epoch", "st_worker_timestamp", "st_worker_iter", "st_worker_time", "st_worker_cost"}
    assert metrics["st_worker_iter"] == 0
    assert 0.2 <= metrics["st_worker_time"] < 5.0
    assert metrics["st_worker_cost"] == pytest.approx(metrics["st_worker_time"])
    assert abs(metrics["st_worker_timestamp"] - time.time()) < 10.0


def test_a_program_that_connects_is_not_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    script = write(
        """
        from sthyper import Reporter
        report = Reporter(on_stop="return")
        answer = report(epoch=1)
        print('[tune-metric]: {"epoch": 99}', flush=True)
        print("heard", answer, flush=True)
        """,
        "train.py",
    )
    for entry_point, options in [(script, {"launch": "exec"}), ([sys.executable, script], {})]:
        path = tmp_path / str(len(options))
        with Backend(path, entry_point, **options) as backend:
            backend.backend.start_trial({})
            reports, end = backend.follow({1: "PAUSE"})
        assert [r.metrics["epoch"] for r in reports] == [1]
        assert (end.status, end.exit_code) == (Status.paused, 0)  # it ended itself: nobody sent SIGTERM
        assert "heard PAUSE" in "".join(backend.backend.stdout(0))


def test_a_script_that_prints_is_read_under_exec(tmp_path: Path, write: Callable[..., Path]) -> None:
    script = write("""print('[tune-metric]: {"epoch": 1}')\nimport time\ntime.sleep(60)""", "train.py")
    with Backend(tmp_path, script, launch="exec") as backend:
        backend.backend.start_trial({})
        _, end = backend.follow({1: "STOP"})
    assert (end.status, end.exit_code) == (Status.stopped, -15)


# ---- what a program gets ---------------------------------------------------------------------------------


def test_arguments_and_environment(tmp_path: Path) -> None:
    script = 'printf "%s|" "$@" "$STHYPER_TRIAL_ID" "$PWD" "$OWN" "$OMP_NUM_THREADS"'
    command = ["sh", "-c", script, "name", "a {lr}", "{trial_id}", "{checkpoint_dir}"]
    options: dict[str, Any] = {"workdir": "trial", "environment": {"OWN": "mine"}, "threads_per_trial": 3}
    with Backend(tmp_path, command, **options) as backend:
        backend.backend.start_trial({"lr": 0.5})
        backend.follow({})
        folder = tmp_path / "trials" / "0"
        expected = ["a 0.5", "0", str(folder / "checkpoints"), "0", str(folder), "mine", "3", ""]
        assert backend.backend.stdout(0)[0].split("|") == expected


def test_the_configuration_as_json(tmp_path: Path) -> None:
    config = {"widths": [1, 2], "name": "a b"}
    for number, words in enumerate((["-x"], ["{st_config_json_filename}"])):
        command = ["sh", "-c", 'for last; do :; done; cat "$last"', "name", *words]
        with Backend(tmp_path / str(number), command, pass_args_as_json=number == 0) as backend:
            backend.backend.start_trial(config)
            backend.follow({})
            assert json.loads("".join(backend.backend.stdout(0))) == config


@pytest.mark.parametrize(("rewrite", "seen"), [(True, {"1", "3", "9"}), (False, {"9"})])
def test_rewrite_max_resource_changes_what_the_command_sees(
    write: Callable[..., Path], rewrite: bool, seen: set[str]
) -> None:
    script = write(SHELL.replace("x=$1", 'echo "$2" >> "$STHYPER_TRIAL_DIR/told"; x=$1'), sleep=0.02)
    tuner = run(["sh", script, "{x}", "{epochs}"], asha("promotion"), 9, rewrite_max_resource=rewrite)
    told: set[str] = set()
    for folder in (tuner.tuner_path / "trials").iterdir():
        told.update((folder / "told").read_text().split())
    assert told == seen


def test_the_checkpoint_argument_of_a_python_command(write: Callable[..., Path], tmp_path: Path) -> None:
    script = write(
        """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr")
        parser.add_argument("--st_checkpoint_dir")
        args = parser.parse_args()
        print(args.st_checkpoint_dir)
        """,
        "train.py",
    )
    for number, words in enumerate(([], ["--lr", "{lr}"], ["--st_checkpoint_dir={checkpoint_dir}"])):
        with Backend(tmp_path / str(number), [sys.executable, script, *words]) as backend:
            backend.backend.start_trial({"lr": 1})
            _, end = backend.follow({})
            assert end.exit_code == 0, backend.backend.stderr(0)
            expected = tmp_path / str(number) / "trials" / "0" / "checkpoints"
            assert backend.backend.stdout(0) == [f"{expected}\n"]


def test_templates_in_the_arguments_of_a_forked_script(write: Callable[..., Path], tmp_path: Path) -> None:
    script = write("import sys; print(sys.argv[1:])", "train.py")
    with Backend(tmp_path, f"{script} fit --model.lr={{lr}}", preload=False) as backend:
        assert backend.backend.launch == "fork" or sys.platform != "linux"
        backend.backend.start_trial({"lr": 0.5})
        backend.follow({})
        assert backend.backend.stdout(0) == ["['fit', '--model.lr=0.5']\n"]


# ---- latency ---------------------------------------------------------------------------------------------


def test_a_stop_takes_effect_soon(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """From the moment of the report to the moment when SIGTERM arrives, five times."""
    script = """
        trap 'date +%s.%N > "$STHYPER_TRIAL_DIR/end"; exit 0' TERM
        sleep 0.137
        date +%s.%N > "$STHYPER_TRIAL_DIR/begin"
        echo '[tune-metric]: {{"epoch": 1}}'
        while :; do sleep 0.01; done
    """
    delays = []
    with Backend(tmp_path, ["sh", "-c", textwrap.dedent(script)]) as backend:
        for trial_id in range(5):
            backend.backend.start_trial({})
            backend.follow({1: "STOP"})
            folder = tmp_path / "trials" / str(trial_id)
            delays.append(float((folder / "end").read_text()) - float((folder / "begin").read_text()))
    record_property("report_to_stop_ms", [round(1000 * delay) for delay in delays])
    print(f"report to SIGTERM: {[round(1000 * delay) for delay in delays]} ms")
    assert statistics.median(delays) < 0.5


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_waiting_for_a_connected_trial_costs_nothing(tmp_path: Path, write: Callable[..., Path]) -> None:
    script = write(
        """
        import time
        from sthyper import Reporter
        Reporter()(epoch=1)
        time.sleep(1.0)
        """,
        "train.py",
    )
    with Backend(tmp_path, script, launch="exec") as backend:
        backend.backend.start_trial({})
        answered = False
        while not answered:
            for event in backend.backend.events(1.0):
                if isinstance(event, ReportEvent):
                    backend.backend.answer(event, "CONTINUE")
                    answered = True
        before = _wakeups()
        backend.follow({})
        assert _wakeups() - before < 10  # a look every 50 ms would be twenty


def _wakeups() -> int:
    """Return how often this thread has given up the processor by itself."""
    with open("/proc/thread-self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


# ---- the same for trials that connect ------------------------------------------------------------------------


def test_an_order_counts_although_the_trial_has_died_meanwhile(tmp_path: Path, write: Callable[..., Path]) -> None:
    """A trial is killed while it waits for the answer; that was PAUSE, and so the trial is paused."""
    script = write("from sthyper import Reporter\nReporter()(epoch=1)", "train.py")
    with Backend(tmp_path, script, preload=False) as backend:
        backend.backend.start_trial({})
        pid, report = 0, None
        while report is None:
            for event in backend.backend.events(5.0):
                if isinstance(event, MessageEvent) and event.kind == "process":
                    pid = event.data["pid"]
                elif isinstance(event, ReportEvent):
                    report = event
        os.kill(pid, 9)
        assert backend.backend.events(1.0) == []  # its end is not told before its report is answered
        assert backend.backend.busy_trial_ids() == [(0, Status.in_progress)]
        backend.backend.answer(report, "PAUSE")
        backend.backend.pause_trial(0)
        (end,) = backend.backend.events(1.0)
        assert isinstance(end, EndEvent)
        assert (end.status, end.exit_code) == (Status.paused, -9)
        backend.backend.resume_trial(0)
        _, end = backend.follow({})
        assert end.status == Status.completed
