"""Whole experiments with trials in processes of their own: exactness at rungs, real signals, real deaths."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError, TrialFailed
from sthyper.journal import read_journal
from sthyper.testing import replay

TRAIN = """
    import argparse, json, os, time
    from sthyper import Reporter
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--st_checkpoint_dir")
    args = parser.parse_args()
    report = Reporter()
    os.makedirs(args.st_checkpoint_dir, exist_ok=True)
    path = os.path.join(args.st_checkpoint_dir, "epoch.json")
    done = json.load(open(path)) if os.path.exists(path) else 0
    for epoch in range(done + 1, args.epochs + 1):
        time.sleep(SLEEP)
        open(os.path.join(report.trial_dir, "trained"), "a").write(f"{epoch}\\n")
        json.dump(epoch, open(path + ".new", "w"))
        os.replace(path + ".new", path)
        report(epoch=epoch, loss=args.x + 1 / epoch)
    print("the end of", report.trial_id, args.epochs)
"""

# Goes back to what was recorded, also when it was killed between its checkpoint and the record of its report.
CAREFUL_TRAIN = TRAIN.replace(
    "    for epoch in", "    done = min(done, int(os.environ.get('STHYPER_LAST_RESOURCE', 0)))\n    for epoch in"
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a training script and return its path."""

    def write(code: str, name: str = "train.py", sleep: float = 0.0) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(code).replace("SLEEP", str(sleep)))
        return path

    return write


def space(epochs: int = 9) -> dict[str, Any]:
    return {"x": uniform(0.0, 1.0), "epochs": epochs}


def asha(seed: int = 1, epochs: int = 9) -> ASHA:
    return ASHA(
        space(epochs),
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=seed,
    )


def make_tuner(script: Path, scheduler: Any, n_workers: int = 2, n_trials: int = 4, **options: Any) -> Tuner:
    backend = LocalBackend(script, **options.pop("backend", {}))
    return Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=n_trials), n_workers, **options)


def random_search(epochs: int = 3) -> RandomSearch:
    return RandomSearch(space(epochs), metric="loss", random_seed=1)


def records(tuner: Tuner, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_journal(tuner.tuner_path) if r["type"] == kind]


class Watch(threading.Thread):
    """Waits until the journal shows something, then acts."""

    def __init__(self, tuner: Tuner, seen: Callable[[list[dict[str, Any]]], Any], act: Callable[[Any], None]) -> None:
        super().__init__(daemon=True)
        self.tuner, self.seen, self.act = tuner, seen, act
        self.done = False
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 40.0
        while time.monotonic() < deadline:
            if (self.tuner.tuner_path / "journal.jsonl").exists():
                found = self.seen(list(read_journal(self.tuner.tuner_path)))
                if found is not None:
                    self.act(found)
                    self.done = True
                    return
            time.sleep(0.02)


def test_promotion_with_two_workers_is_exact_and_can_be_replayed(write: Callable[..., Path]) -> None:
    tuner = make_tuner(write(TRAIN, sleep=0.01), asha(), n_trials=20)
    experiment = tuner.run()
    milestone: dict[int, int] = {}
    for record in read_journal(tuner.tuner_path):
        if record["type"] in ("start", "resume"):
            milestone[record["trial_id"]] = record["milestone"]
        elif record["type"] == "report":
            assert record["metrics"]["epoch"] <= milestone[record["trial_id"]]
    assert max(milestone.values()) >= 3
    for trial_id in range(20):
        folder = tuner.tuner_path / "trials" / str(trial_id)
        epochs = [int(line) for line in (folder / "trained").read_text().split()]
        assert epochs == list(range(1, len(epochs) + 1))
        finished = len(epochs) == 9
        assert ("the end of" in (folder / "std.out").read_text()) == finished
        assert experiment.trials[trial_id].status == ("Completed" if finished else "Paused")
    assert replay(tuner.tuner_path, asha()) == []
    assert replay(tuner.tuner_path, asha(seed=2)) != []
    assert {p["pid"] for p in records(tuner, "process")}.isdisjoint(psutil.pids())


@pytest.mark.parametrize("options", [{"launch": "exec"}, {"channel": "tcp"}, {"preload": False}])
def test_other_ways_to_run(write: Callable[..., Path], options: dict[str, Any]) -> None:
    tuner = make_tuner(write(TRAIN), random_search(), n_trials=3, backend=options)
    experiment = tuner.run()
    assert len(experiment.results) == 9
    assert tuner.tuning_status.num_trials_completed == 3


def test_processes_of_a_trial(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write("""
        import os, random, sys
        import numpy as np
        from sthyper import Reporter
        assert __name__ == "__main__"
        report = Reporter()
        report(loss=1.0, cwd=os.getcwd(), threads=os.environ.get("OMP_NUM_THREADS", "unset"), own=os.environ["OWN"],
               rank=os.environ.get("LOCAL_RANK", "unset"), draw=random.random(), draw_np=float(np.random.rand()),
               argv=sys.argv, stdin=sys.stdin.read())
    """)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options = {"environment": {"OWN": "mine"}, "cost_per_hour": 36.0}
    tuner = make_tuner(script, random_search(), n_trials=3, backend=options)
    frame = tuner.run().results
    cores = len(os.sched_getaffinity(0))
    assert set(frame["cwd"]) == {os.getcwd()}
    assert set(frame["threads"].astype(str)) == {str(max(1, cores // 2))}
    assert set(frame["own"]) == {"mine"}
    assert set(frame["rank"]) == {"unset"}
    assert frame["draw"].nunique() == frame["draw_np"].nunique() == 3
    assert (frame["st_worker_cost"] >= 0).all()
    again = make_tuner(script, random_search(), n_trials=3, backend={**options, "workdir": "trial"})
    other = again.run().results
    assert set(other["draw"]) == set(frame["draw"])
    assert set(other["cwd"]) == {str(again.tuner_path / "trials" / str(i)) for i in range(3)}


# ---- deaths --------------------------------------------------------------------------------------------


def first_running_pid(trial_id: int, after_reports: int) -> Callable[[list[dict[str, Any]]], int | None]:
    def seen(lines: list[dict[str, Any]]) -> int | None:
        answered = [r for r in lines if r["type"] == "decision" and r["trial_id"] == trial_id]
        pids = [r["pid"] for r in lines if r["type"] == "process" and r["trial_id"] == trial_id]
        return pids[-1] if len(answered) >= after_reports and pids else None

    return seen


def test_a_killed_trial_goes_on_from_its_checkpoint(write: Callable[..., Path]) -> None:
    tuner = make_tuner(write(CAREFUL_TRAIN, sleep=0.1), random_search(epochs=8), n_workers=1, n_trials=1)
    watch = Watch(tuner, first_running_pid(0, 3), lambda pid: os.kill(pid, signal.SIGKILL))
    experiment = tuner.run()
    assert watch.done
    assert [r["cause"] for r in records(tuner, "resume")] == ["killed"]
    assert [r["reason"] for r in records(tuner, "status")] == ["killed", None]
    assert sorted(experiment.results["epoch"]) == list(range(1, 9))
    assert experiment.trials[0].status == "Completed"
    assert tuner.tuning_status.num_trials_failed == 0


def test_a_trial_that_is_always_killed_fails_after_two_restarts(write: Callable[..., Path]) -> None:
    script = write("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, max_failures=5)
    tuner.run()
    assert [r["reason"] for r in records(tuner, "status")] == ["killed"] * 3
    assert tuner.tuning_status.num_trials_failed == 1


def test_other_signals_are_the_scripts_own_fault(write: Callable[..., Path]) -> None:
    script = write("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, max_failures=5)
    tuner.run()
    assert [r["reason"] for r in records(tuner, "status")] == ["signal SIGSEGV"]


def runs_script(process: psutil.Process, name: str) -> bool:
    try:
        return any(part.endswith(f"{name}.py") for part in process.cmdline())
    except psutil.Error:
        return False


def supervisors(tuner: psutil.Process | None = None) -> dict[str, int]:
    """Pids of the guardian and the fork server below a tuner, this process by default."""
    for guardian in (tuner or psutil.Process()).children():
        if runs_script(guardian, "_guardian"):
            # Forked trials have the server's command line, but they are its children, not the guardian's.
            servers = [p.pid for p in guardian.children() if runs_script(p, "_server")]
            return {"_guardian": guardian.pid, **({"_server": servers[0]} if servers else {})}
    return {}


@pytest.mark.parametrize("who", ["_server", "_guardian"])
def test_the_experiment_goes_on_when_a_supervisor_dies(write: Callable[..., Path], who: str) -> None:
    tuner = make_tuner(write(CAREFUL_TRAIN, sleep=0.1), random_search(epochs=8), n_trials=2)
    watch = Watch(tuner, first_running_pid(0, 3), lambda _: os.kill(supervisors()[who], signal.SIGKILL))
    experiment = tuner.run()
    assert watch.done
    assert len(records(tuner, "supervisor_lost")) == 1
    causes = [r["cause"] for r in records(tuner, "resume")]
    assert set(causes) == {"supervisor_lost"}
    assert tuner.tuning_status.num_trials_failed == 0
    frame = experiment.results
    assert sorted(frame["epoch"]) == sorted(list(range(1, 9)) * 2)


def test_the_third_death_within_ten_minutes_ends_the_experiment(write: Callable[..., Path]) -> None:
    tuner = make_tuner(write(TRAIN, sleep=0.05), random_search(epochs=1000), n_workers=1, n_trials=1)
    stop = threading.Event()

    def kill_all() -> None:
        deaths = 0
        last = None
        while deaths < 3 and not stop.is_set():
            pid = supervisors().get("_server")
            alive = tuner.tuner_path / "trials" / "0" / "trained"
            if pid is not None and pid != last and alive.exists():
                size = alive.stat().st_size
                time.sleep(0.3)
                if alive.stat().st_size > size:
                    os.kill(pid, signal.SIGKILL)
                    last, deaths = pid, deaths + 1
            time.sleep(0.02)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(ExperimentError, match="died for the 3rd time"):
            tuner.run()
    finally:
        stop.set()
        thread.join()
    assert len(records(tuner, "supervisor_lost")) >= 2


WITH_FAMILY = """
    import os, signal, subprocess, sys, time
    from sthyper import Reporter
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", stubborn])
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
    time.sleep(0.5)
    report = Reporter()
    for epoch in range(1, 1000):
        report(epoch=epoch, loss=1.0)
        time.sleep(0.1)
"""


def launcher_script(write: Callable[..., Path], script: Path, n_workers: int = 2) -> Path:
    return write(
        f"""
        from sthyper import StoppingCriterion, Tuner
        from sthyper.backend import LocalBackend
        from sthyper.baselines import RandomSearch
        from sthyper.config_space import uniform
        scheduler = RandomSearch({{"x": uniform(0, 1)}}, metric="loss", random_seed=0)
        backend = LocalBackend({str(script)!r}, preload=False)
        Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=100), n_workers={n_workers},
              tuner_name="killed", suffix_tuner_name=False).run()
        print("returned")
        """,
        "launch.py",
    )


def tagged(mark: str) -> list[psutil.Process]:
    """All processes with ``STHYPER_TEST_MARK=mark`` in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STHYPER_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def start_marked(launcher: Path, folder: Path, mark: str) -> subprocess.Popen[str]:
    env = {**os.environ, "STHYPER_TEST_MARK": mark, "STHYPER_FOLDER": str(folder), "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [sys.executable, str(launcher)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_reports(journal: Path, trials: int) -> None:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        if journal.exists() and len({r["trial_id"] for r in read_journal(journal) if r["type"] == "report"}) >= trials:
            return
        time.sleep(0.05)
    raise AssertionError("the trials did not report")


def check_death(who: tuple[str, ...], write: Callable[..., Path], folder: Path, mark: str) -> float:
    """Kill processes of a running experiment; return after how many seconds nothing of it was left."""
    process = start_marked(launcher_script(write, write(WITH_FAMILY)), folder, mark)
    try:
        wait_for_reports(folder / "killed" / "journal.jsonl", trials=2)
        assert len(tagged(mark)) >= 2 + 2 * 4
        pids = [process.pid if name == "tuner" else supervisors(psutil.Process(process.pid))[name] for name in who]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        if "tuner" not in who:
            process.kill()
        while time.monotonic() < start + 15.0:
            if not tagged(mark):
                return time.monotonic() - start
            time.sleep(0.05)
        raise AssertionError(f"left: {[(p.pid, p.cmdline()) for p in tagged(mark)]}")
    finally:
        process.kill()
        process.communicate()
        for left in tagged(mark):
            left.kill()


@pytest.mark.parametrize("who", [("tuner",), ("_server", "tuner")])
def test_nothing_is_left_after_the_tuners_death(
    write: Callable[..., Path], tmp_path: Path, who: tuple[str, ...]
) -> None:
    seconds = check_death(who, write, tmp_path / "a", f"{os.getpid()}-{who}")
    assert seconds < 5.0


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("who", [("tuner",), ("_server", "tuner")])
def test_nothing_is_left_twenty_times(write: Callable[..., Path], tmp_path: Path, who: tuple[str, ...]) -> None:
    seconds = [check_death(who, write, tmp_path / str(i), f"{os.getpid()}-{who}-{i}") for i in range(20)]
    print(f"\n{who}: 20 of 20 clean, median {sorted(seconds)[10]:.2f} s, longest {max(seconds):.2f} s")
    assert max(seconds) < 5.0


def test_one_ctrl_c_ends_in_order_a_second_at_once(write: Callable[..., Path], tmp_path: Path) -> None:
    patient = write(
        WITH_FAMILY.replace(
            "report = Reporter()", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    report = Reporter()"
        )
    )
    launcher = launcher_script(write, patient, n_workers=1)
    for presses in (1, 2):
        mark, folder = f"{os.getpid()}-ctrl-c-{presses}", tmp_path / str(presses)
        process = start_marked(launcher, folder, mark)
        try:
            wait_for_reports(folder / "killed" / "journal.jsonl", trials=1)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            if presses == 2:
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            seconds = time.monotonic() - start
            if presses == 1:
                assert "returned" in out
                assert "tuning ended early: SIGINT received" in err
                assert (folder / "killed" / "results.csv.zip").exists()
            else:
                assert "KeyboardInterrupt" in err
                assert seconds < 3.0
            deadline = time.monotonic() + 8.0
            while tagged(mark) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert tagged(mark) == []
        finally:
            process.kill()
            process.wait()


# ---- ends ----------------------------------------------------------------------------------------------


def test_a_trial_that_goes_on_after_stop_is_killed_after_the_grace(write: Callable[..., Path]) -> None:
    script = write("""
        import time
        from sthyper import Reporter
        report = Reporter(on_stop="return")
        for epoch in range(1, 2000):
            report(epoch=epoch, loss=float(epoch))
            time.sleep(0.01)
    """)
    tuner = make_tuner(script, asha(), n_workers=1, n_trials=1, backend={"stop_grace": 0.5})
    start = time.monotonic()
    experiment = tuner.run()
    assert time.monotonic() - start < 20.0
    assert experiment.trials[0].status == "Paused"
    assert len(experiment.results) == 1
    repeated = [r for r in records(tuner, "decision") if not r["counted"]]
    assert repeated
    assert {r["decision"] for r in repeated} == {"PAUSE"}


def test_silent_trials_end_as_hung(write: Callable[..., Path]) -> None:
    script = write("""
        import time
        from sthyper import Reporter
        report = Reporter()
        if report.trial_id == 1:
            report(loss=1.0)
        if report.trial_id < 2:
            time.sleep(600)
        report(loss=2.0)
    """)
    options = {"first_report_timeout": 1.5, "trial_timeout": 1.0}
    tuner = make_tuner(script, random_search(), n_workers=3, n_trials=3, max_failures=9, backend=options)
    experiment = tuner.run()
    assert [experiment.trials[i].end_reason for i in range(3)] == ["hung", "hung", None]


def test_a_first_report_counts_however_quick_it_is(write: Callable[..., Path]) -> None:
    script = write("""
        import time
        from sthyper import Reporter
        report = Reporter()
        report(loss=1.0)
        time.sleep(1.4)
        report(loss=2.0)
    """)
    tuner = make_tuner(script, random_search(), n_workers=16, n_trials=32, backend={"first_report_timeout": 1.0})
    experiment = tuner.run()
    assert {trial.end_reason for trial in experiment.trials.values()} == {None}
    assert len(experiment.results) == 64


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("report.bye(False)", "exit 0 after a failure"),
        ("report.bye(False, 'killed')", "killed"),
        ("import sys; sys.exit(3)", "exit 3"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')", "out_of_memory"),
        ("import numpy; numpy.empty(1 << 62, dtype='uint8')", "out_of_memory"),
        ("import os; os._exit(0)", None),
    ],
)
def test_endings_are_classified(write: Callable[..., Path], code: str, reason: str | None) -> None:
    script = write(f"from sthyper import Reporter\nreport = Reporter()\nreport(loss=1.0)\n{code}\n")
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, max_failures=9)
    experiment = tuner.run()
    assert experiment.trials[0].end_reason == reason


def test_a_dead_rank_ends_its_trial(write: Callable[..., Path]) -> None:
    script = write("""
        import os, signal, time
        from sthyper import Reporter
        pid = os.fork()
        report = Reporter()
        report.send_rank(0 if pid else 1, 2)
        if not pid:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        report(loss=1.0)
        time.sleep(600)
    """)
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, max_failures=9, max_restarts=0)
    start = time.monotonic()
    experiment = tuner.run()
    assert time.monotonic() - start < 15.0
    assert experiment.trials[0].status == "Failed"
    assert experiment.trials[0].runs == 1
    assert experiment.trials[0].end_reason == "killed (rank 1 died)"


def test_a_worker_is_free_only_when_all_processes_of_its_trial_are_gone(write: Callable[..., Path]) -> None:
    script = write("""
        import os, subprocess, sys, time
        from sthyper import Reporter
        report = Reporter()
        mark = os.path.join(os.path.dirname(report.trial_dir), "alive")
        assert not os.path.exists(mark), "another trial's process is still alive"
        code = f"import os, time; open({mark!r}, 'w').close(); time.sleep(1.0); os.remove({mark!r})"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        while not os.path.exists(mark):
            time.sleep(0.01)
        report(loss=1.0)
    """)
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=3, max_failures=0)
    tuner.run()
    assert tuner.tuning_status.num_trials_completed == 3


def test_the_tail_of_stderr_is_shown(write: Callable[..., Path]) -> None:
    script = write(
        "import sys\nprint('a hint', file=sys.stderr)\n\ndef train():\n    raise KeyError('width')\n\ntrain()\n"
    )
    with pytest.raises(TrialFailed) as error:
        make_tuner(script, random_search(), n_workers=1, max_failures=0).run()
    message = str(error.value)
    assert "a hint" in message
    assert "KeyError: 'width'" in message
    assert "std.err" in message
    assert "sthyper" not in message.partition("Traceback")[2].partition("std.err")[0]


# ---- the record of a lost report -----------------------------------------------------------------------


def test_a_checkpoint_ahead_of_the_record_counts_as_the_milestone(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    # Saves one checkpoint only, dies between checkpoint and report, and jumps over the milestone afterwards.
    script = write(
        TRAIN.replace(
            "        report(epoch=epoch",
            "        if epoch == 3 and report.trial_id == 0 and not os.path.exists(path + '.died'):\n"
            "            open(path + '.died', 'w').close()\n"
            "            import signal; os.kill(os.getpid(), signal.SIGKILL)\n"
            "        report(epoch=epoch",
        )
    )
    scheduler = ASHA(
        {"x": uniform(0, 1), "epochs": 9},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        grace_period=3,
        random_seed=1,
    )
    tuner = make_tuner(script, scheduler, n_workers=1, n_trials=1)
    tuner.run()
    assert any("counts as that of 3" in message for message in caplog.messages)
    decisions = [r for r in records(tuner, "decision") if r.get("resource") == 3]
    assert len(decisions) == 1
    assert decisions[0]["decision"] == "PAUSE"


def test_a_lost_last_report_is_trained_once_more(write: Callable[..., Path]) -> None:
    script = write(
        TRAIN.replace(
            "        report(epoch=epoch",
            "        if epoch == args.epochs and not os.path.exists(report.trial_dir + '/died'):\n"
            "            open(report.trial_dir + '/died', 'w').close()\n"
            "            import signal; os.kill(os.getpid(), signal.SIGKILL)\n"
            "        report(epoch=epoch",
        )
    )
    scheduler = ASHA(
        space(4),
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="stopping",
        random_seed=1,
    )
    tuner = make_tuner(script, scheduler, n_workers=1, n_trials=1)
    experiment = tuner.run()
    assert [r["cause"] for r in records(tuner, "resume")] == ["killed", "scratch"]
    assert sorted(experiment.results["epoch"]) == [1, 2, 3, 4]
    assert experiment.trials[0].status == "Completed"
    assert (tuner.tuner_path / "trials" / "0" / "checkpoints.aside-0").exists()


def test_what_trials_load_is_preloaded_for_later_ones(write: Callable[..., Path]) -> None:
    # The scan cannot see it: the name is made at run time.
    script = write("""
        import importlib, sys
        from sthyper import Reporter
        name = "json" + "argparse"
        was_loaded = name in sys.modules
        importlib.import_module(name)
        Reporter()(loss=1.0, was_loaded=was_loaded)
    """)
    pytest.importorskip("jsonargparse")
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=3)
    assert list(tuner.run().results["was_loaded"]) == [False, True, True]
    told = make_tuner(script, random_search(), n_workers=1, n_trials=2, backend={"preload": ["jsonargparse"]})
    assert list(told.run().results["was_loaded"]) == [True, True]
    never = make_tuner(script, random_search(), n_workers=1, n_trials=3, backend={"preload": False})
    assert not never.run().results["was_loaded"].any()


def test_a_slow_suggestion_does_not_delay_answers(write: Callable[..., Path]) -> None:
    script = write("""
        import time
        from sthyper import Reporter
        report = Reporter()
        waited = 0.0
        for epoch in range(1, 40 if report.trial_id == 0 else 2):
            start = time.monotonic()
            report(epoch=epoch, loss=float(report.trial_id), waited=waited)
            waited = time.monotonic() - start
            time.sleep(0.05)
    """)

    def slow_search() -> RandomSearch:
        scheduler = random_search()
        get_config = scheduler.searcher.get_config

        def slow_get_config(trial_id: int) -> Any:
            time.sleep(0.8)
            return get_config(trial_id)

        scheduler.searcher.slow = True
        scheduler.searcher.get_config = slow_get_config  # type: ignore[method-assign]
        return scheduler

    tuner = make_tuner(script, slow_search(), n_workers=2, n_trials=3)
    frame = tuner.run().results
    first = frame[frame["trial_id"] == 0]
    assert len(first) == 39
    assert first["waited"].max() < 0.4
    # Reports came in while a suggestion was being made; the record says so, and a replay decides the same.
    kinds = [r["type"] for r in read_journal(tuner.tuner_path)]
    asked = [i for i, kind in enumerate(kinds) if kind == "ask"]
    came = [i for i, kind in enumerate(kinds) if kind == "suggestion"]
    assert any("report" in kinds[a:c] for a, c in zip(asked, came, strict=True))
    assert replay(tuner.tuner_path, random_search()) == []


def test_running_trials_may_finish_when_the_time_is_up(write: Callable[..., Path]) -> None:
    backend = LocalBackend(write(TRAIN, sleep=0.2))
    tuner = Tuner(
        backend,
        random_search(epochs=6),
        StoppingCriterion(max_wallclock_time=0.6),
        n_workers=2,
        wait_trial_completion_when_stopping=True,
    )
    cpu = time.process_time()
    tuner.run()
    assert tuner.tuning_status.num_trials_completed == 2
    assert tuner.tuning_status.num_trials_started == 2
    assert time.process_time() - cpu < 1.0  # it waits, it does not spin


def slowly(scheduler: Any, seconds: float, from_trial: int) -> Any:
    """Let the searcher of a scheduler take its time."""
    get_config = scheduler.searcher.get_config

    def slow_get_config(trial_id: int) -> Any:
        if trial_id >= from_trial:
            time.sleep(seconds)
        return get_config(trial_id)

    scheduler.searcher.slow = True
    scheduler.searcher.get_config = slow_get_config
    return scheduler


def test_a_suggestion_that_comes_too_late_is_not_started(write: Callable[..., Path]) -> None:
    tuner = Tuner(
        LocalBackend(write(TRAIN, sleep=0.1)),
        slowly(random_search(epochs=8), 0.6, from_trial=1),
        StoppingCriterion(min_metric_value={"loss": 10.0}),
        n_workers=2,
        wait_trial_completion_when_stopping=True,
    )
    tuner.run()
    assert tuner.tuning_status.num_trials_started == 1
    assert tuner.tuning_status.num_trials_completed == 1


def test_an_old_answer_that_nothing_is_left_does_not_end_the_experiment(write: Callable[..., Path]) -> None:
    # While the searcher finds out that the space is used up the two trials pause, and one can be promoted.
    from sthyper.config_space import choice

    scheduler = ASHA(
        {"x": choice(["0.1", "0.2"]), "epochs": 9},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=1,
    )
    tuner = make_tuner(write(TRAIN), slowly(scheduler, 0.7, from_trial=2), n_workers=3, n_trials=10)
    tuner.run()
    assert max(r["metrics"]["epoch"] for r in records(tuner, "report")) == 3


def test_a_lingering_trial_does_not_keep_other_workers_idle(write: Callable[..., Path]) -> None:
    script = write(
        TRAIN.replace(
            "        report(epoch=epoch, loss=args.x + 1 / epoch)",
            "        try:\n"
            "            report(epoch=epoch, loss=0.0 if report.trial_id == 0 else 1.0 + epoch)\n"
            "        finally:\n"
            "            time.sleep(3.0 if report.trial_id == 0 and epoch == 1 else 0.0)",
        )
    )
    tuner = make_tuner(script, asha(), n_workers=3, n_trials=12)
    tuner.run()
    starts = {r["trial_id"]: r["tuner_time"] for r in records(tuner, "start")}
    lingered = next(r["tuner_time"] for r in records(tuner, "status") if r["trial_id"] == 0)
    assert sum(start < lingered - 1.0 for start in starts.values()) >= 8


def test_a_rank_that_reconnects_over_tcp_is_alive(write: Callable[..., Path]) -> None:
    script = write("""
        import socket, time
        from sthyper import Reporter
        report = Reporter()
        report.send_rank(0, 1)
        for epoch in range(1, 6):
            report(epoch=epoch, loss=1.0)
            if epoch == 2:
                report._connection.socket.shutdown(socket.SHUT_RDWR)
            time.sleep(0.2)
    """)
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, backend={"channel": "tcp"})
    experiment = tuner.run()
    assert experiment.trials[0].status == "Completed"
    assert list(experiment.results["epoch"]) == [1, 2, 3, 4, 5]


def test_time_limits_begin_with_the_script_not_with_the_libraries(write: Callable[..., Path]) -> None:
    script = write("import torch\nfrom sthyper import Reporter\nReporter()(loss=1.0)\n")
    options = {"first_report_timeout": 1.0, "preload": ["torch", "torch._dynamo"]}
    tuner = make_tuner(script, random_search(), n_workers=1, n_trials=1, backend=options)
    experiment = tuner.run()
    assert experiment.trials[0].end_reason is None


def test_a_quiet_experiment_prints_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    failing = write("raise RuntimeError('no')")
    launcher = launcher_script(write, failing, n_workers=1)
    text = (
        launcher.read_text().replace("n_workers=1", "n_workers=1, max_failures=200").replace("started=100", "started=2")
    )
    launcher.write_text(text.replace('print("returned")', ""))
    for quiet in ("1", "0"):
        env = {**os.environ, "STHYPER_QUIET": quiet, "STHYPER_FOLDER": str(tmp_path / quiet)}
        done = subprocess.run([sys.executable, str(launcher)], env=env, capture_output=True, text=True, timeout=40)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert (done.stderr == "") == (quiet == "1")


def on_terminal(command: list[str], env: dict[str, str], press: tuple[str, bytes] | None = None) -> str:
    """Run a command in a pseudo-terminal and return what it shows; ``press`` keys once some text has been shown."""
    pid, master = pty.fork()
    if pid == 0:
        os.execve(command[0], command, env)
    shown = b""
    deadline = time.monotonic() + 40.0
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
            if press is not None and press[0].encode() in shown:
                os.write(master, press[1])
                press = None
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert os.waitstatus_to_exitcode(status) == 0, text
    return text


def test_what_a_user_sees_on_a_terminal(write: Callable[..., Path], tmp_path: Path) -> None:
    train = write(TRAIN.replace("import argparse", "import argparse, torch._dynamo"), sleep=0.05)
    launcher = write(
        f"""
        from sthyper import StoppingCriterion, Tuner
        from sthyper.backend import LocalBackend
        from sthyper.baselines import ASHA
        from sthyper.config_space import uniform
        scheduler = ASHA({{"x": uniform(0, 1), "epochs": 9}}, metric="loss", resource_attr="epoch",
                         max_resource_attr="epochs", type="promotion", random_seed=1)
        Tuner(LocalBackend({str(train)!r}), scheduler, StoppingCriterion(max_num_trials_started=9), n_workers=2,
              print_update_interval=0.5).run()
        """,
        "launch.py",
    )
    env = {**os.environ, "STHYPER_FOLDER": str(tmp_path / "a"), "TERM": "xterm", "COLUMNS": "200"}
    env.pop("STHYPER_QUIET", None)
    shown = on_terminal([sys.executable, str(launcher)], env)
    for words in (
        "loading torch once for all trials",
        "trial 0 started, next decision at epoch 1   x=0.5",
        "paused at epoch 1   loss 1.5",
        "resumed",
        "completed",
        "std.out",
        "wallclock-time",
        "best loss",
    ):
        assert words in shown, shown
    assert on_terminal([sys.executable, str(launcher)], {**env, "STHYPER_QUIET": "1"}) == ""
    failing = launcher.read_text().replace("n_workers=2", "n_workers=2, max_failures=99")
    launcher.write_text(failing)
    train.write_text("raise KeyError('width')\n")
    shown = on_terminal([sys.executable, str(launcher)], env)
    assert "failed" in shown
    assert "std.err" in shown


def test_ctrl_c_on_a_terminal(write: Callable[..., Path], tmp_path: Path) -> None:
    launcher = launcher_script(write, write(TRAIN.replace("args.epochs + 1", "500"), sleep=0.1))
    text = launcher.read_text().replace('{"x": uniform(0, 1)}', '{"x": uniform(0, 1), "epochs": 500}')
    launcher.write_text(text)
    env = {**os.environ, "STHYPER_FOLDER": str(tmp_path / "a"), "TERM": "xterm", "COLUMNS": "200"}
    shown = on_terminal([sys.executable, str(launcher)], env, press=("trial 1", b"\x03"))
    assert "SIGINT received: ending 2 trials; Ctrl-C once more leaves at once" in shown
    assert "returned" in shown
