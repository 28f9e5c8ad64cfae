"""The journal: whole lines only, whatever happens to the writer."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.constants import ST_TUNER_CREATION_TIMESTAMP
from sthyper.errors import ExperimentError
from sthyper.experiment import list_experiments
from sthyper.journal import DamagedJournal, ExperimentJournal, cut_damage, read_journal, write_atomically
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay

HEAD = {"type": "journal", "version": 1}
HEAD_LINE = json.dumps(HEAD).encode() + b"\n"


def numbers(path: Path, **options: bool) -> list[int]:
    """The numbers of all records behind the head."""
    first, *records = read_journal(path, **options)
    assert first == HEAD
    return [record["n"] for record in records]


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(HEAD_LINE + b"".join(lines))
    return path


def line(n: int) -> bytes:
    return json.dumps({"type": "x", "n": n}).encode() + b"\n"


def test_lines_come_back_in_order_with_non_finite_values(tmp_path: Path) -> None:
    with ExperimentJournal(tmp_path) as journal:
        journal.append({"type": "journal", "version": 1})
        journal.append({"type": "report", "metrics": {"a": math.nan, "b": -math.inf, "c": "text"}})
    first, second = read_journal(tmp_path)
    assert first == {"type": "journal", "version": 1}
    assert math.isnan(second["metrics"]["a"])
    assert second["metrics"]["b"] == -math.inf
    # Any JSON reader can read the file.
    for line in (tmp_path / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))


def test_an_appended_line_survives_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom sthyper.journal import ExperimentJournal\n"
        "j = ExperimentJournal(sys.argv[1])\n"
        "j.append({'type': 'journal', 'version': 1})\n"
        "for i in range(100): j.append({'type': 'report', 'n': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert numbers(tmp_path) == list(range(100))


@given(cut=st.integers(1, 60))
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = b"".join(line(n) for n in range(3))
    write(path, whole[: max(0, len(whole) - cut)])
    kept = numbers(path)
    assert kept == list(range(len(kept)))
    assert len(kept) < 3
    with ExperimentJournal(path) as journal:
        journal.append({"type": "x", "n": 99})
    assert numbers(path) == [*kept, 99]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", b'{"type": \n', line(1))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        list(read_journal(path))


DAMAGES = {
    "garbage": b"\xff\xfe\xfd\n",
    "zeros": b"\0" * 700 + b'"n": 7}\n',
    "no object": b"[1, 2]\n",
    "no type": b'{"n": 1}\n',
    "empty line": b"\n",
    "deep": b"[" * 100_000 + b"\n",
    "metrics": b'{"type": "report", "metrics": 3}\n',
    "half a line": b'{"type": "x", "n{"type": "x", "n": 3}\n',
    "version": b'{"type": "journal", "version": "new"}\n',
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_journal_is_read_as_far_as_it_is_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = write(tmp_path / "journal.jsonl", line(1), line(2), DAMAGES[kind], line(4))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="line 4 is damaged"):
        list(read_journal(path))
    assert numbers(path, strict=False) == [1, 2]
    warning = [record.getMessage() for record in caplog.records]
    assert len(warning) == 1
    assert f"{path}, line 4 is damaged" in warning[0]
    if kind == "zeros":
        assert "power loss" in warning[0]
    assert path.read_bytes() == before


def test_a_copy_that_does_not_fit_is_no_copy(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", line(1), *(line(n) for n in range(2, 400)), DAMAGES["zeros"], line(4))
    before = path.read_bytes()
    program = (
        "import resource, signal, sys\n"
        "from sthyper.journal import cut_damage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "cut_damage(sys.argv[1])\n"
    )
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=50)
        assert "File too large" in run.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["journal.jsonl"]
        assert path.read_bytes() == before


def test_zeros_at_the_end_are_a_torn_line(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", line(1), b'{"type": "x"' + b"\0" * 5000)
    assert numbers(path) == [1]
    with ExperimentJournal(path) as journal:
        journal.append({"type": "x", "n": 2})
    assert numbers(path) == [1, 2]


def test_a_line_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", line(1), line(2), line(2))
    assert numbers(path) == [1, 2]
    with ExperimentJournal(path) as journal:
        journal.append({"type": "x", "n": 3})
    assert numbers(path) == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b'{"type": "jour'])
def test_an_empty_file_is_a_journal_that_begins(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    assert list(read_journal(path)) == []
    with ExperimentJournal(path) as journal:
        journal.append(HEAD)
    assert list(read_journal(path)) == [HEAD]


@pytest.mark.parametrize("first", [line(1), b"name,value\n", b"\0\0\0\n"])
def test_what_is_no_journal_is_neither_read_nor_written(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(first + line(2) + b"torn")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        list(read_journal(path))
    with pytest.raises(ValueError, match="line 1 is damaged"):
        ExperimentJournal(path)
    assert path.read_bytes() == first + line(2) + b"torn"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = b'{"type": "journal", "version": 99}\n{"type": "torn'
    path.write_bytes(content)
    for strict in (True, False):
        with pytest.raises(ValueError, match="format version 99.* upgrade sthyper"):
            list(read_journal(path, strict=strict))
    with pytest.raises(ValueError, match="format version 99.* upgrade sthyper"):
        ExperimentJournal(path)
    assert path.read_bytes() == content


def test_the_good_part_of_a_damaged_experiment_is_shown(
    experiment_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = experiment_folder / "damaged"
    folder.mkdir(parents=True)
    metadata = {"metric_names": ["loss"], "metric_mode": "min", ST_TUNER_CREATION_TIMESTAMP: 1.0}
    write_atomically(folder / "metadata.json", json.dumps(metadata))
    with ExperimentJournal(folder) as journal:
        journal.append(HEAD)
        journal.append({"type": "metadata", "metadata": metadata})
        for trial_id in range(3):
            head = {"trial_id": trial_id, "run": 0}
            journal.append({"type": "start", **head, "config": {"x": trial_id}, "seed": 0})
            report = {**head, "client": "c", "seq": 0}
            journal.append({"type": "report", **report, "metrics": {"loss": -trial_id}, "tuner_time": 1.0})
            journal.append({"type": "decision", **report, "decision": "CONTINUE", "counted": True})
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:9], b"\0" * len(lines[9]) + b"\n", *lines[10:]]))
    result = load_experiment(folder)
    assert (result.best_trial_id, result.best_value, len(result.trials)) == (1, -1, 3)
    assert f"{path}, line 10 is damaged" in caplog.text
    assert [experiment.name for experiment in list_experiments()] == ["damaged"]


def test_a_damaged_end_is_cut_off_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "journal.jsonl", line(1), line(2))
    assert cut_damage(path) is None
    assert os.listdir(tmp_path) == ["journal.jsonl"]
    for n in range(2):
        path = write(path, line(1), line(2), b"oops\n", line(3))
        damaged = path.read_bytes()
        assert cut_damage(tmp_path) == tmp_path / f"journal.jsonl.damaged-{n}"
        assert (tmp_path / f"journal.jsonl.damaged-{n}").read_bytes() == damaged
        assert numbers(path) == [1, 2]
    for content, error in ((b"oops\n", DamagedJournal), (b'{"type": "journal", "version": 2}\n', ValueError)):
        path.write_bytes(content)
        with pytest.raises(error, match=r"line 1 is damaged|upgrade"):
            cut_damage(path)
        assert path.read_bytes() == content


# A checkpoint of another trial would be found out.
TRAIN = """
import json, os, sys, time
from pathlib import Path
from sthyper import Reporter
report = Reporter()
checkpoint = Path(report.checkpoint_dir) / "checkpoint.json"
epoch = 0
if checkpoint.exists():
    x, epoch = json.loads(checkpoint.read_text())
    assert x == report.config["x"], "a checkpoint of another trial"
for epoch in range(epoch + 1, report.config["epochs"] + 1):
    time.sleep(0.01)
    checkpoint.write_text(json.dumps([report.config["x"], epoch]))
    report(epoch=epoch, loss=(report.config["x"] - 0.3) ** 2 + 1 / epoch)
"""


def asha() -> TrialScheduler:
    space = {"x": uniform(0.0, 1.0), "epochs": 4}
    return ASHA(space, metric="loss", max_resource_attr="epochs", reduction_factor=2, random_seed=3)


@pytest.fixture
def experiment(tmp_path: Path, experiment_folder: Path) -> Path:
    """Folder of an experiment that has ended."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    criterion = StoppingCriterion(max_num_trials_started=10)
    backend = LocalBackend(script)
    return Tuner(backend, asha(), criterion, 2, tuner_name="damaged", suffix_tuner_name=False).run().path


def damage(folder: Path, number: int) -> bytes:
    """Damage a line and return the file."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = b"\0" * (len(lines[number - 1]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    return path.read_bytes()


def test_a_damaged_experiment_goes_on_where_it_is_good_once_one_says_so(
    experiment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = 4 * lines_of(experiment) // 10
    whole = damage(experiment, n)
    with pytest.raises(DamagedJournal, match=rf"line {n} is damaged.*repair_journal=True"):
        Tuner.resume("damaged")
    assert (experiment / "journal.jsonl").read_bytes() == whole
    tuner = Tuner.resume("damaged", repair_journal=True)
    assert (experiment / "journal.jsonl").read_bytes() == whole, "nothing is cut off before it runs"
    result = tuner.run()
    assert (experiment / "journal.jsonl.damaged-0").read_bytes() == whole
    good = whole.splitlines(keepends=True)[: n - 1]
    assert (experiment / "journal.jsonl").read_bytes().startswith(b"".join(good))
    assert f"the whole file is kept as {experiment}/journal.jsonl.damaged-0" in caplog.text
    assert replay(experiment, asha()) == []
    assert len(result.trials) == 10
    assert {trial.status for trial in result.trials.values()} <= {"Completed", "Stopped"}
    assert list(experiment.glob("trials/*/checkpoints.aside-0"))
    # It is whole again.
    assert Tuner.resume("damaged").run().results.equals(result.results)


# One checkpoint, which the training goes on from whatever the tuner knows of it.
OWN_CHECKPOINT = """
import argparse
from pathlib import Path
from sthyper import Reporter

parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
report = Reporter()
done = Path(report.checkpoint_dir) / "done.txt"
done.parent.mkdir(exist_ok=True)
for epoch in range(int(done.read_text()) + 1 if done.exists() else 1, args.epochs + 1):
    done.write_text(str(epoch))
    report(epoch=epoch, loss=args.x + 1 / epoch)
"""


def test_a_paused_trial_that_had_gone_further_than_the_good_part_says_is_trained_again(
    tmp_path: Path, experiment_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scheduler() -> TrialScheduler:
        space = {"x": uniform(0.0, 1.0), "epochs": 4}
        return ASHA(
            space, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=3
        )

    script = tmp_path / "train.py"
    script.write_text(OWN_CHECKPOINT)
    criterion = StoppingCriterion(max_num_trials_started=8)
    whole = Tuner(LocalBackend(script), scheduler(), criterion, 1, tuner_name="damaged", suffix_tuner_name=False).run()
    reports = whole.results.groupby("trial_id")["epoch"].apply(list).to_dict()
    assert [1, 2, 3, 4] in reports.values()
    records = list(read_journal(whole.path))
    # The last resume of a trial that has come to the end: the good part says that it is paused.
    number, first = next(
        (number, record["trial_id"])
        for number, record in enumerate(records, start=1)
        if record["type"] == "resume" and record["milestone"] == 4
    )
    damage(whole.path, number)
    result = Tuner.resume("damaged", repair_journal=True).run()
    assert result.results.groupby("trial_id")["epoch"].apply(list).to_dict() == reports
    assert f"trial {first} runs again: its checkpoint was ahead of its last report, it begins anew" in caplog.text
    assert replay(whole.path, scheduler()) == []
    assert Tuner.resume("damaged").run().results.equals(result.results)


def lines_of(folder: Path) -> int:
    return len((folder / "journal.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_record_without_a_beginning_is_not_gone_on_with(experiment: Path, number: int) -> None:
    whole = damage(experiment, number)
    with pytest.raises(DamagedJournal, match=f"line {number} is damaged"):
        Tuner.resume("damaged")
    with pytest.raises(ExperimentError, match="no record to go on from"):
        Tuner.resume("damaged", repair_journal=True)
    with pytest.raises(TypeError, match="repair_journal"):
        Tuner.resume("damaged", repair_journal="yes")  # type: ignore[arg-type]
    assert (experiment / "journal.jsonl").read_bytes() == whole


def test_a_newer_experiment_is_not_gone_on_with(experiment: Path) -> None:
    path = experiment / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2', 1))
    for repair_journal in (False, True):
        with pytest.raises(ValueError, match="format version 2.* upgrade sthyper"):
            Tuner.resume("damaged", repair_journal=repair_journal)


def test_a_line_that_is_missing_ends_the_record(tmp_path: Path) -> None:
    def guard() -> None:
        if refused:
            raise RuntimeError(refused[0])

    refused: list[str] = []
    with ExperimentJournal(tmp_path, guard=guard) as journal:
        journal.append(HEAD)
        refused.append("not yours")
        with pytest.raises(RuntimeError, match="not yours"):
            journal.append({"type": "x", "n": 1})
        refused.clear()
        with pytest.raises(OSError, match=r"a line before could not be written.*journal\.jsonl"):
            journal.append({"type": "x", "n": 2})
    assert numbers(tmp_path) == []


def test_a_short_write_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (190, 190))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = (
        "import sys\nfrom sthyper.journal import ExperimentJournal\nj = ExperimentJournal(sys.argv[1])\n"
        "j.append({'type': 'journal', 'version': 1})\n"
        "try:\n    for n in range(50): j.append({'type': 'x', 'n': n, 'fill': 'y' * 20})\n"
        "except OSError as error: print('full at', n, error.filename)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], preexec_fn=limited, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == f"full at 3 {path}"
    assert path.read_bytes().endswith(b"\n")
    assert numbers(path) == [0, 1, 2]


def test_blocks_are_written_at_the_end_and_when_full(tmp_path: Path) -> None:
    journal = ExperimentJournal(tmp_path, block_size=100)
    journal.append(HEAD)
    journal.append({"type": "x", "n": 0})
    assert list(read_journal(tmp_path)) == []
    for n in range(1, 10):
        journal.append({"type": "x", "n": n})
    assert len(list(read_journal(tmp_path))) >= 4
    journal.close()
    assert numbers(tmp_path) == list(range(10))


def test_a_block_that_could_not_be_written_is_not_lost(tmp_path: Path) -> None:
    journal = ExperimentJournal(tmp_path, block_size=10)

    def again(step: Callable[[], None]) -> None:
        with pytest.raises(OSError, match="too large"):
            step()
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        step()

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        journal.append(HEAD)
        journal.keep_trying = again
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(HEAD_LINE) + 4, old[1]))
        journal.append({"type": "x", "n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    journal.close()
    assert numbers(tmp_path) == [1]


def test_a_file_that_cannot_be_written_keeps_its_content_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    write_atomically(path, "old")
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, old[1]))
        with pytest.raises(OSError, match=r"metadata\.json"):
            write_atomically(path, "new" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metadata.json"]


def test_closing_while_a_sync_begins(tmp_path: Path) -> None:
    class Slow(threading.Event):
        """Its waiter, once its time is over, does not get the processor until the journal is being closed."""

        def wait(self, timeout: float | None = None) -> bool:
            if not (found := super().wait(timeout)):
                over.set()
                super().wait()
                time.sleep(0.1)  # close() says more than this
            return found

    over = threading.Event()
    journal = ExperimentJournal(tmp_path)
    journal._closing = Slow()
    journal.append({"type": "x"})
    assert over.wait(5.0)
    closing = threading.Thread(target=journal.close, daemon=True)
    closing.start()
    closing.join(5.0)
    assert not closing.is_alive()


def test_arguments_and_closed_journals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync"):
        ExperimentJournal(tmp_path, sync="never")
    with pytest.raises(ValueError, match="block_size"):
        ExperimentJournal(tmp_path, block_size=-1)
    journal = ExperimentJournal(tmp_path, sync="always")
    journal.append({"type": "x"})
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append({"type": "x"})
