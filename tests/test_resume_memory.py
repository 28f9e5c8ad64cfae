"""A resume goes through a journal of any length without holding its lines."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper._tuning.decisions import differences
from sthyper._tuning.lines import JournalLines
from sthyper._tuning.past import read_past
from sthyper._tuning.recorded import MadeLines, RecordedJournal
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError
from sthyper.journal import DamagedJournal, JournalPosition, read_journal, write_journal
from sthyper.testing._simulated_backend import SimulatedTrials

MB = 1e6
EPOCHS = 250
HELD = 1000
"""Bytes of a line that is held as a dict, about."""


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the largest number of bytes that were held at once, from here on."""
    tracemalloc.start()
    try:
        begin = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - begin
    finally:
        tracemalloc.stop()


def report(n: int) -> dict[str, Any]:
    metrics = {"epoch": n, "loss": float("nan") if n % 7 == 0 else 1 / n}
    return {
        "type": "report",
        "trial_id": 0,
        "run": 0,
        "client": "c",
        "seq": n,
        "metrics": metrics,
        "tuner_time": 0.5 * n,
    }


def write(folder: Path, n: int) -> Path:
    """Write a journal whose last session line is in the middle of its reports."""
    session = {"type": "session", "seed": 1}
    head = [{"type": "journal", "version": 1}, session]
    reports = [report(i) for i in range(1, n + 1)]
    write_journal(folder / "journal.jsonl", [*head, *reports[: n // 2], session | {"n": 2}, *reports[n // 2 :]])
    return folder


def test_lines_are_compared_without_being_held(tmp_path: Path) -> None:
    n = 10_000
    write(tmp_path, n)
    with traced() as peak:
        past = read_past(tmp_path, None)
        made = MadeLines(past.path)
        recorded = RecordedJournal(made, past.records, past.records.first_line)
        for i in range(1, n + 1):
            assert recorded.line == i + 2 + (i > n // 2)
            recorded.append(report(i) | {"tuner_time": 0.0})
            assert recorded.time() == 0.5 * min(i + 1, n)
        assert [line["type"] for line in past.processes()] == ["session", "session"]
        assert recorded.peek() is None
        found = peak()
    assert past.tuner_time == 0.5 * n
    assert found < n * HELD / 20, f"{found / MB:.1f} MB"
    # Behind the record it is written; a line that differs, in the sign of an infinity even, is named.
    recorded.append({"type": "report"})
    assert made.lines == [{"type": "report"}]
    other = RecordedJournal(made, past.records)
    with pytest.raises(ExperimentError, match=r"journal\.jsonl, line 3: the experiment cannot be gone through once"):
        other.append(report(1) | {"metrics": {"epoch": 1, "loss": float("-inf")}})
    other.close()


@pytest.mark.parametrize("kind", ["load", "force"])
def test_memory_of_a_resume_does_not_grow_with_the_journal(tmp_path: Path, kind: str) -> None:
    space = {"x": uniform(0.0, 1.0), "epochs": EPOCHS}
    scheduler = RandomSearch(space, metric="loss", random_seed=1)
    criterion = StoppingCriterion(max_num_evaluations=16 * EPOCHS)
    tuner = Tuner(SimulatedTrials(EPOCHS), scheduler, criterion, n_workers=2, save_tuner=False)
    folder = tuner.run().path
    lines = sum(1 for _ in read_journal(folder))
    assert lines > 2 * 16 * EPOCHS
    again = RandomSearch(space, metric="loss", random_seed=1)
    Tuner.load(folder, trial_backend=SimulatedTrials(EPOCHS))  # what is imported on the way stays
    with traced() as peak:
        if kind == "load":
            Tuner.load(folder, trial_backend=SimulatedTrials(EPOCHS))
        else:
            assert differences(JournalLines(folder / "journal.jsonl", JournalPosition()), again) == []
        found = peak()
    assert found < lines * HELD / 8, f"{found / MB:.1f} MB for {lines} lines"


def test_a_journal_that_changes_while_it_is_gone_through_is_no_record(tmp_path: Path) -> None:
    past = read_past(write(tmp_path, 100), None)
    whole = past.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content in (b"".join(lines[:50]), whole[:-5], b"".join([*lines[:50], lines[50][:-3] + b" }\n", *lines[51:]])):
        past.path.write_bytes(content)
        with pytest.raises((ExperimentError, DamagedJournal), match=r"cut while it was looked at|line 51 is damaged"):
            list(past.records)
    past.path.write_bytes(b"".join(lines[:50]))
    with pytest.raises(ExperimentError, match="cut while it was looked at"):
        past.read_on()
    with pytest.raises(ExperimentError, match="cut while it was looked at"):
        list(past.processes())
    # What is written behind the end belongs to those who read on, once.
    past.path.write_bytes(whole + json.dumps({"type": "end", "tuner_time": 99.0}).encode() + b"\n")
    before = list(past.records)
    later = past.read_on()
    assert (len(before), later.first_line) == (103, 104)
    assert [line["type"] for line in later] == [line["type"] for line in later] == ["end"]
    assert past.tuner_time == 99.0
    assert list(past.read_on()) == []
    assert len(list(past.records)) == 104


def test_schedulers_of_the_past_are_followed_without_holding_lines(tmp_path: Path) -> None:
    space = {"x": uniform(0.0, 1.0), "epochs": EPOCHS}
    asha = ASHA(space, "loss", max_resource_attr="epochs", grace_period=EPOCHS // 2, random_seed=1)
    tuner = Tuner(
        SimulatedTrials(EPOCHS),
        asha,
        StoppingCriterion(max_num_evaluations=16 * EPOCHS),
        n_workers=2,
        save_tuner=False,
    )
    folder = tuner.run().path
    narrow = {"x": uniform(0.0, 0.5), "epochs": EPOCHS}
    more = StoppingCriterion(max_num_evaluations=17 * EPOCHS)
    changed = Tuner.resume(folder, stop_criterion=more, trial_backend=SimulatedTrials(EPOCHS), config_space=narrow)
    changed.run()
    lines = sum(1 for _ in read_journal(folder))
    Tuner.load(folder, trial_backend=SimulatedTrials(EPOCHS))
    with traced() as peak:
        loaded = Tuner.load(folder, trial_backend=SimulatedTrials(EPOCHS))
        found = peak()
    assert loaded.tuning_status.num_trials_started == changed.tuning_status.num_trials_started
    assert found < lines * HELD / 8, f"{found / MB:.1f} MB for {lines} lines"
