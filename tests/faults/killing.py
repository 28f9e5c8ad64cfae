"""Experiments whose tuner is killed by SIGKILL at random moments and resumed, and what must hold of them then.

As a script, ``python killing.py start KIND N_WORKERS SNAPSHOT_INTERVAL`` and ``python killing.py resume``, it is the
tuner that is killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pure_training import expected

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.journal import ExperimentJournal, read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay

__all__ = ["KINDS", "check_equal", "check_whole", "make_tuner", "run_and_kill"]

KINDS = ("random", "grid", "stopping", "promotion", "promotion3")
EPOCHS, TRIALS = 9, 24
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 50), "epochs": EPOCHS}
SCRIPT = Path(__file__).with_name("pure_training.py")
NAME = "killed"
MARK = "STHYPER_TEST_MARK"


def scheduler(kind: str) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(SPACE, metric="loss", random_seed=5)
    if kind == "grid":
        return GridSearch(SPACE | {"x": choice([0.1, 0.2, 0.3, 0.4, 0.5])}, metric="loss", random_seed=5)
    return ASHA(
        SPACE,
        metric="loss",
        type=kind.removesuffix("3"),
        brackets=3 if kind.endswith("3") else 1,
        max_resource_attr="epochs",
        reduction_factor=2,
        random_seed=5,
    )


def make_tuner(kind: str, n_workers: int, **options: Any) -> Tuner:
    criterion = StoppingCriterion(max_num_trials_started=TRIALS)
    return Tuner(LocalBackend(SCRIPT), scheduler(kind), criterion, n_workers, **options)


def main() -> None:
    if "die" in sys.argv:
        kind, count, half = sys.argv[sys.argv.index("die") + 1 :]
        _die_at(kind, int(count), half == "half")
    if sys.argv[1] == "start":
        kind, n_workers, interval = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
        tuner = make_tuner(kind, n_workers, snapshot_interval=interval, tuner_name=NAME, suffix_tuner_name=False)
    else:
        tuner = Tuner.resume(NAME)
    tuner.run()


def _die_at(kind: str, count: int, half: bool) -> None:
    """Die of SIGKILL right behind a new line of the journal, which may be the half of one."""
    append = ExperimentJournal.append
    left = count

    def append_and_die(journal: ExperimentJournal, record: dict[str, Any]) -> None:
        nonlocal left
        left -= record["type"] == kind
        if left > 0:
            append(journal, record)
            return
        if half:
            os.write(journal._fd, json.dumps(record, separators=(",", ":"))[:20].encode())
        else:
            append(journal, record)
        os.kill(os.getpid(), signal.SIGKILL)

    ExperimentJournal.append = append_and_die  # type: ignore[method-assign]


# ---- killing -------------------------------------------------------------------------------------------


@dataclass
class Killed:
    """An experiment that was killed again and again, and has ended at last.

    Args:
        folder: Its folder.
        kind: Its scheduler.
        moments: What the journal looked like at each kill.
        records: Whole journals at each kill.
        temporary: Folder for temporary files of the tuners.
    """

    folder: Path
    kind: str
    temporary: Path
    moments: list[str] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)


def run_and_kill(
    tmp_path: Path, kind: str, kills: int, *, n_workers: int = 2, interval: float = 3600.0, seed: int | None = None
) -> Killed:
    """Run an experiment whose tuner is killed and resumed ``kills`` times, then run it to its end.

    Args:
        tmp_path: Folder for its files.
        kind: One of :data:`KINDS`.
        kills: Number of kills.
        n_workers: Trials that run at the same time.
        interval: Seconds between two snapshots.
        seed: Of the moments; one that is always another by default, and shown when a test fails.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"{kind}: n_workers={n_workers}, interval={interval}, seed={seed}")
    rng = random.Random(seed)
    temporary = tmp_path / "t"
    temporary.mkdir()
    killed = Killed(Path(os.environ["STHYPER_FOLDER"]) / NAME, kind, temporary)
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    start = ["start", kind, str(n_workers), str(interval)]
    output = tmp_path / "tuner.txt"
    try:
        while len(killed.moments) < kills:
            die = _exact_moment(rng)
            tuner = _tuner([*start, *die], ["resume", *die], killed, mark, output)
            try:
                if die:
                    tuner.wait(50)
                _wait_for_moment(tuner, killed.folder, rng, last=len(killed.moments) == kills - 1)
            finally:
                tuner.kill()
                code = tuner.wait()
            if code == -signal.SIGKILL:
                killed.records.append(_whole_lines(killed.folder))
                killed.moments.append(_moment(killed.folder))
                snapshots = len(list(killed.folder.glob("snapshots/*")))
                print(f"kill {len(killed.moments)}: {killed.moments[-1]}, {snapshots} snapshots")
                # The last snapshot is written behind the last trial's end, before the line that says that all is over.
                ended = b'"type":"end"' in killed.records[-1] or killed.moments[-1].startswith("status")
                assert interval < 60.0 or not snapshots or ended
                _check_answered(killed.folder)
                if rng.random() < 0.3:
                    _wait_until_gone(mark)
                else:
                    time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.5)]))
            else:
                assert code == 0, output.read_text()
        tuner = _tuner(start, ["resume"], killed, mark, output)
        try:
            assert tuner.wait(50) == 0, output.read_text()
        finally:
            tuner.kill()
            tuner.wait()
        _wait_until_gone(mark)
    finally:
        for process in _marked(mark):
            process.kill()
    return killed


def _tuner(start: list[str], resume: list[str], killed: Killed, mark: str, output: Path) -> subprocess.Popen[bytes]:
    # Nothing is there to go on from until the record has its first lines.
    words = resume if b'"type":"session"' in _whole_lines(killed.folder) else start
    with open(output, "ab") as out:
        out.write(f"--- {words}\n".encode())
        out.flush()
        return subprocess.Popen(
            [sys.executable, __file__, *words],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, MARK: mark, "TMPDIR": str(killed.temporary)},
            start_new_session=True,
        )


def _exact_moment(rng: random.Random) -> list[str]:
    """Return arguments for a tuner that kills itself between two steps, or in the middle of one; none in most cases."""
    if rng.random() < 0.7:
        return []
    kind = rng.choice(["metadata", "session", "ask", "suggestion", "start", "resume", "report", "decision", "status"])
    return ["die", kind, str(rng.randrange(1, 6)), rng.choice(["whole", "half"])]


def _wait_for_moment(tuner: subprocess.Popen[bytes], folder: Path, rng: random.Random, last: bool) -> None:
    """Wait until the tuner shall be killed, or has ended; at the end of the experiment for the last time only."""
    kinds = ["at any time"] * 3 + ["after some lines"] * 2 + ["after a line"] * 3
    kind = rng.choice([*kinds, "at the end", "at the end"] if last else kinds)
    if kind == "at any time":  # the first half second is import, start-up and, when it is resumed, recall
        _sleep_while_alive(tuner, rng.uniform(0.0, 1.5))
        return
    lines = _Lines(folder)
    try:
        _wait_for_lines(tuner, lines, kind, rng)
    finally:
        lines.close()


def _wait_for_lines(tuner: subprocess.Popen[bytes], lines: _Lines, kind: str, rng: random.Random) -> None:
    before = len(lines.kinds)
    goal = before + rng.randrange(1, 60 if kind == "after some lines" else 25)
    wanted = rng.choice(["session", "ask", "suggestion", "start", "process", "report", "decision", "status"])
    end = time.monotonic() + 30.0
    while tuner.poll() is None:
        assert time.monotonic() < end, "the tuner does not go on"
        new = lines.read()
        if kind == "at the end" and "end" in new:
            time.sleep(rng.uniform(0.0, 0.05))
            return
        if kind == "after some lines" and len(lines.kinds) >= goal:
            time.sleep(rng.uniform(0.0, 0.01))
            return
        if kind == "after a line" and new and new[-1] == wanted and (len(lines.kinds) >= goal or wanted == "session"):
            return
        if kind != "after a line":
            time.sleep(0.001)


class _Lines:
    """Reads the types of the journal's lines while it grows; quickly, for some are the last one for 50 us only."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.jsonl"
        self._fd = -1
        self._rest = b""
        self.kinds: list[str] = []
        self.read()

    def read(self) -> list[str]:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return []
        *whole, self._rest = (self._rest + os.read(self._fd, 1 << 24)).split(b"\n")
        new = [line.split(b'"', 4)[3].decode() for line in whole]
        self.kinds += new
        return new

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _sleep_while_alive(tuner: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        tuner.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def _whole_lines(folder: Path) -> bytes:
    try:
        data = (folder / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _moment(folder: Path) -> str:
    """Say what the last whole line of the journal is, and whether a torn one follows."""
    if not (folder / "journal.jsonl").exists():
        return "no journal"
    whole = _whole_lines(folder)
    torn = " and half a line" if len(whole) < (folder / "journal.jsonl").stat().st_size else ""
    return (str(json.loads(whole.splitlines()[-1])["type"]) if whole else "empty journal") + torn


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait_until_gone(mark: str) -> None:
    """Wait until no process is left of the tuner that has ended; at most 5 s."""
    end = time.monotonic() + 5.0
    while left := _marked(mark):
        assert time.monotonic() < end, f"orphans: {left}"
        time.sleep(0.05)


# ---- what must hold ------------------------------------------------------------------------------------


def _log(folder: Path) -> Iterable[tuple[int, str, int, int]]:
    """Yield trial, word, run and epoch of what the trials have noted."""
    for path in sorted(folder.glob("trials/*/log.txt")):
        for line in path.read_text().splitlines():
            word, run, epoch = line.split()[:3]
            yield int(path.parent.name), word, int(run), int(epoch)


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_journal(folder) if record["type"] == "report"]


def _check_answered(folder: Path) -> None:
    """Every report that a trial has got an answer for is in the journal, once."""
    if not (folder / "journal.jsonl").exists():
        return
    written = Counter((r["trial_id"], r["run"], r["metrics"]["epoch"]) for r in _reports(folder))
    answered = Counter((trial, run, epoch) for trial, word, run, epoch in _log(folder) if word == "answered")
    assert not answered - written, "answered reports are missing in the journal"
    assert set(written.values()) <= {1}


def check_whole(killed: Killed) -> None:
    """Nothing is lost, nothing is there twice, nothing was trained twice, and a fresh scheduler decides the same."""
    folder, kind = killed.folder, killed.kind
    _check_answered(folder)
    whole = (folder / "journal.jsonl").read_bytes()
    begun = [earlier for earlier in killed.records if b'"type":"session"' in earlier]
    assert all(whole.startswith(earlier) for earlier in begun), "lines of the journal have changed"
    assert replay(folder, scheduler(kind)) == []

    counted = [(t, run, metrics["epoch"]) for t, run, metrics, _, _ in _counted(folder)]
    first_run = {}
    for trial, run, epoch in counted:
        assert (trial, epoch) not in first_run, f"epoch {epoch} of trial {trial} counts twice"
        first_run[trial, epoch] = run
    runs: dict[int, int] = {}
    for trial, _, run, _ in _log(folder):
        assert run >= runs.get(trial, 0), f"an earlier run of trial {trial} was alive beside run {run}"
        runs[trial] = run
    again = [
        (trial, epoch)
        for trial, word, run, epoch in _log(folder)
        if word == "trained" and (trial, epoch) in first_run and run > first_run[trial, epoch]
    ]
    assert again == [], "epochs whose report was recorded were trained again"

    experiment = load_experiment(folder)
    assert sorted(experiment.trials) == list(range(TRIALS))
    assert experiment.end_reason == "max_num_trials_started is reached"
    final = {"promotion": "Paused", "promotion3": "Paused", "stopping": "Stopped"}.get(kind, "Completed")
    for trial_id, trial in experiment.trials.items():
        assert trial.status in (final, "Completed")
        epochs = [epoch for number, _, epoch in counted if number == trial_id]
        assert epochs == list(range(1, len(epochs) + 1))
        assert (trial.status == "Completed") == (len(epochs) == EPOCHS)
    for trial_id, _, metrics, _, _ in _counted(folder):
        assert metrics == expected(experiment.trials[trial_id].config, int(metrics["epoch"]))
    rows = [(t, e) for t, _, e in counted]
    assert list(zip(experiment.results["trial_id"], experiment.results["epoch"], strict=True)) == rows
    import pandas as pd

    stored = pd.read_csv(folder / "results.csv.zip")
    assert list(zip(stored["trial_id"], stored["epoch"], strict=True)) == rows
    left = {path.name for path in folder.iterdir()} - _FILES
    assert left == set(), f"left behind: {left}"
    assert [path for path in folder.rglob("*.tmp") if path.parent.name != "snapshots"] == []
    # One may be left by a tuner that was killed in the milliseconds before it had a guardian.
    assert len(list(killed.temporary.iterdir())) <= 1, "folders of sockets are left"


_FILES = {"journal.jsonl", "metadata.json", "results.csv.zip", "snapshots", "trials", "tuner.json"}


def _counted(folder: Path) -> list[tuple[int, int, dict[str, Any], str, str]]:
    """Return trial, run, metrics, decision of the scheduler and answer of the reports that count, in order."""
    metrics, result = {}, []
    for record in read_journal(folder):
        if record["type"] in ("report", "decision"):
            key = (record["trial_id"], record["run"], record["client"], record["seq"])
            if record["type"] == "report":
                own = {k: v for k, v in record["metrics"].items() if not k.startswith("st_")}
                metrics[key] = own
            elif record["counted"]:
                result.append((*key[:2], metrics[key], record["scheduler_decision"], record["decision"]))
    return result


def check_equal(folder: Path, undisturbed: Path) -> None:
    """With one worker: the same suggestions in the same order, and the same reports and decisions in each trial."""
    suggestions, decisions = [], []
    for path in (folder, undisturbed):
        suggestions.append(
            [
                (record["action"], record["config"], record["checkpoint_trial_id"])
                for record in read_journal(path)
                if record["type"] == "suggestion"
            ]
        )
        of_trial: dict[int, list[Any]] = {}
        for trial, _, metrics, decision, answer in _counted(path):
            of_trial.setdefault(trial, []).append((metrics["epoch"], metrics, decision, answer))
        decisions.append(of_trial)
    assert suggestions[0] == suggestions[1]
    assert decisions[0] == decisions[1]


if __name__ == "__main__":
    main()
