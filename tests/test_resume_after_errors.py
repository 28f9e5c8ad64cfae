"""An experiment that an error ended goes on: what failed in the middle of something is taken up there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

EPOCHS = 4
TRIALS = 6
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "epochs": EPOCHS}

# Trial 1 is killed in its first run, before its last epoch, while the other worker is at work.
TRAIN = """
import argparse, os, signal, time
from sthyper import Reporter
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
report = Reporter()
for epoch in range(int(report.last_resource or 0) + 1, args.epochs + 1):
    time.sleep(0.02)
    if report.trial_id == 1 and report.run == 0 and epoch == args.epochs and os.path.exists({kill!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    report(epoch=epoch, loss=(args.x - 0.3) ** 2 + 1 / epoch)
"""


@pytest.fixture
def bug(tmp_path: Path) -> Path:
    """There is a bug as long as this file exists."""
    path = tmp_path / "bug"
    path.touch()
    return path


@pytest.fixture
def train(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text(TRAIN.format(kill=str(tmp_path / "kill")))
    return str(path)


class Buggy(TunerCallback):
    """A callback with a bug that comes out at the first order, or the first one at the maximum."""

    def __init__(self, bug: Path, of: str) -> None:
        self.bug, self.of = bug, of

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        if self.bug.exists() and (decision == self.of or (self.of == "last" and result["epoch"] == EPOCHS)):
            raise RuntimeError("a bug")


def asha(kind: str, knows_maximum: bool = True) -> TrialScheduler:
    maximum: dict[str, Any] = {"max_resource_attr": "epochs"} if knows_maximum else {"max_t": EPOCHS}
    return ASHA(SPACE, metric="loss", type=kind, reduction_factor=2, random_seed=5, **maximum)


class Search(RandomSearch):
    """A search of the user's, with a bug in one method that comes out at the second trial."""

    def __init__(self, config_space: dict[str, Any], bug: str, where: str) -> None:
        super().__init__(config_space, metric="loss", random_seed=5)
        self.bug, self.where = bug, where

    def _fail(self, where: str, trial_id: int) -> None:
        if where == self.where and trial_id == 1 and os.path.exists(self.bug):
            raise RuntimeError("a bug")

    def begin_suggest(self, trial_id: int) -> Any:
        self._fail("suggest", trial_id)
        return super().begin_suggest(trial_id)

    def on_trial_add(self, trial: Trial) -> None:
        self._fail("add", trial.trial_id)
        super().on_trial_add(trial)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        self._fail("result", trial.trial_id)
        return super().on_trial_result(trial, result)

    def on_trial_resume(self, trial: Trial) -> None:
        self._fail("resume", trial.trial_id)
        super().on_trial_resume(trial)


def tuner_of(train: str, scheduler: TrialScheduler, callbacks: list[TunerCallback] | None = None) -> Tuner:
    criterion = StoppingCriterion(max_num_trials_started=TRIALS)
    return Tuner(
        LocalBackend(train), scheduler, criterion, 2, tuner_name="ended", suffix_tuner_name=False, callbacks=callbacks
    )


def is_whole(folder: Path, fresh: Callable[[], TrialScheduler]) -> None:
    """No trial is left behind, no report counts twice, and a scheduler that is fed the record decides alike."""
    records = list(read_journal(folder))
    assert replay(iter(records), fresh()) == []
    ends = {r["trial_id"]: (r["status"], r["reason"]) for r in records if r["type"] == "status"}
    assert sorted(ends) == list(range(TRIALS))
    assert {reason for _, reason in ends.values()} == {None}
    starts = [r["trial_id"] for r in records if r["type"] == "start"]
    assert starts == list(range(TRIALS))
    asked = {(r["trial_id"], r["run"], r["client"], r["seq"]): r for r in records if r["type"] == "report"}
    decided = [r for r in records if r["type"] == "decision" and r["counted"]]
    counted = [
        (r["trial_id"], asked[r["trial_id"], r["run"], r["client"], r["seq"]]["metrics"]["epoch"]) for r in decided
    ]
    assert len(counted) == len(set(counted))


@pytest.mark.parametrize(
    ("kind", "of", "knows_maximum"),
    [("promotion", "PAUSE", True), ("stopping", "STOP", True), ("stopping", "last", True), ("stopping", "last", False)],
)
def test_a_callback_failed_before_an_order_was_carried_out(
    train: str, bug: Path, kind: str, of: str, knows_maximum: bool
) -> None:
    tuner = tuner_of(train, asha(kind, knows_maximum), [Buggy(bug, of)])
    with pytest.raises(RuntimeError, match="a bug"):
        tuner.run()
    bug.unlink()
    Tuner.resume("ended", callbacks=[]).run()
    is_whole(tuner.tuner_path, lambda: asha(kind, knows_maximum))


@pytest.mark.parametrize(
    ("where", "enqueued"),
    [("suggest", False), *((where, enqueued) for where in ("add", "result", "resume") for enqueued in (False, True))],
)
def test_a_scheduler_failed_between_two_lines_that_belong_together(
    train: str, tmp_path: Path, bug: Path, where: str, enqueued: bool
) -> None:
    def search() -> Search:
        return Search(SPACE, str(bug), where)

    if where == "resume":
        (tmp_path / "kill").touch()
    tuner = tuner_of(train, search())
    for x in (0.1, 0.2, 0.3) if enqueued else ():
        tuner.enqueue({"x": x})
    with pytest.raises(RuntimeError, match="a bug"):
        tuner.run()
    bug.unlink()
    Tuner.resume("ended", scheduler=search(), trial_backend=LocalBackend(train)).run()
    is_whole(tuner.tuner_path, search)


class Unlucky(LocalBackend):
    """A backend that cannot start a trial, or run it again, as long as there is a bug."""

    bug: Path

    def _schedule(self, trial: Trial, run: int) -> None:
        if trial.trial_id == 1 and run == int((self.bug.parent / "kill").exists()) and self.bug.exists():
            raise RuntimeError("a bug")
        super()._schedule(trial, run)


@pytest.mark.parametrize("what", ["start", "enqueued", "restart"])
def test_a_backend_failed_to_start_a_trial(train: str, tmp_path: Path, bug: Path, what: str) -> None:
    if what == "restart":
        (tmp_path / "kill").touch()
    backend = Unlucky(train)
    backend.bug = bug
    criterion = StoppingCriterion(max_num_trials_started=TRIALS)
    tuner = Tuner(
        backend,
        RandomSearch(SPACE, metric="loss", random_seed=5),
        criterion,
        2,
        tuner_name="ended",
        suffix_tuner_name=False,
    )
    for x in (0.1, 0.2) if what == "enqueued" else ():
        tuner.enqueue({"x": x})
    with pytest.raises(RuntimeError, match="a bug"):
        tuner.run()
    bug.unlink()
    Tuner.resume("ended", trial_backend=LocalBackend(train)).run()
    is_whole(tuner.tuner_path, lambda: RandomSearch(SPACE, metric="loss", random_seed=5))
