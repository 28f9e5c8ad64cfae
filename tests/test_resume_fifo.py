"""Random and grid search go on where the reports of their trials end; nothing is trained or counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import GridSearch, RandomSearch
from sthyper.config_space import choice, uniform
from sthyper.journal import read_journal
from sthyper.schedulers import FIFOScheduler, TrialScheduler
from sthyper.testing import replay

EPOCHS = 6
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0)}

# Every epoch takes an entry in trained.txt; what may be killed kills itself where the file asks for it.
HEAD = """
import os, signal, sys, time
from pathlib import Path
from sthyper import Reporter

report = Reporter()
config = report.config
folder = Path(report.trial_dir)

def train(epoch):
    with open(folder / "trained.txt", "a") as log:
        log.write(f"{epoch} {report.run}\\n")

def die(at, run=0):
    if report.run == run and report.trial_id == 1 and os.environ.get("DIE") == at:
        os.kill(os.getpid(), signal.SIGKILL)
"""

# Goes on behind the last report, as a script with checkpoints of every epoch does.
KNOWS = (
    HEAD
    + """
for epoch in range((report.last_resource or 0) + 1, 7):
    time.sleep(0.01)
    train(epoch)
    die(f"before {epoch}")
    report(epoch=epoch, loss=config["x"] / epoch)
    die(f"after {epoch}")
"""
)

# Has no checkpoints.
BEGINS_ANEW = KNOWS.replace("(report.last_resource or 0) + 1", "1")

# The checkpoints of sthyper.utils, of a model with one number.
HELPERS = (
    HEAD
    + """
import torch
from sthyper.utils import (
    checkpoint_model_at_rung_level, pytorch_load_save_functions, resume_from_checkpointed_model,
)

model = torch.nn.Linear(1, 1)
torch.nn.init.constant_(model.weight, 1.0)
load, save = pytorch_load_save_functions({"model": model})
start = resume_from_checkpointed_model(config, load)
for epoch in range(start + 1, 7):
    train(epoch)
    with torch.no_grad():
        model.weight.mul_(1 + config["x"])
    checkpoint_model_at_rung_level(config, save, epoch)
    die(f"before {epoch}")
    report(epoch=epoch, loss=model.weight.item())
    die(f"after {epoch}")
"""
)

# No constant of the space says how many epochs there are.
LIGHTNING = (
    HEAD
    + """
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sthyper.callbacks.lightning import TuneReportCallback

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def on_train_epoch_end(self):
        train(self.current_epoch + 1)
        self.log("loss", config["x"] / (self.current_epoch + 1))

    def on_train_end(self):
        die(f"after {self.current_epoch}")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Killer(Callback):
    def on_train_epoch_end(self, trainer, module):
        die(f"before {trainer.current_epoch + 1}")

loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)), batch_size=2)
trainer = Trainer(
    max_epochs=6, callbacks=[TuneReportCallback("loss"), Killer()], logger=False, accelerator="cpu",
    enable_checkpointing=False,
)
trainer.fit(Model(), loader)
"""
)

LAUNCH = """
import sys
sys.path.insert(0, {here!r})
from test_resume_fifo import *

if sys.argv[1] == "start":
    tuner = Tuner(
        LocalBackend({train!r}), scheduler(sys.argv[2]), StoppingCriterion(max_num_trials_started=8), int(sys.argv[3]),
        tuner_name="killed", suffix_tuner_name=False,
    )
else:
    tuner = Tuner.resume("killed")
tuner.run()
"""


def scheduler(kind: str) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(SPACE, metric="loss", random_seed=5)
    return GridSearch({"x": uniform(0.0, 1.0), "y": choice(["a", "b"])}, metric="loss", random_seed=5)


def lines(folder: Path) -> int:
    try:
        return (folder / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def run_and_kill(tmp_path: Path, text: str, kind: str, n_workers: int, kills: int, seed: int) -> Path:
    """Run an experiment whose tuner gets SIGKILL ``kills`` times at random lines of its journal."""
    train, launch = tmp_path / "train.py", tmp_path / "launch.py"
    train.write_text(text)
    launch.write_text(LAUNCH.format(here=str(Path(__file__).parent), train=str(train)))
    rng = random.Random(seed)
    folder = Path(os.environ["STHYPER_FOLDER"]) / "killed"
    command = [sys.executable, str(launch), "start", kind, str(n_workers)]
    for kill in range(kills + 1):
        with open(tmp_path / "tuner.txt", "a") as out:
            tuner = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            goal = lines(folder) + rng.randrange(20, 50) if kill < kills else sys.maxsize
            while tuner.poll() is None and lines(folder) < goal:
                time.sleep(0.002)
            if kill < kills:
                assert tuner.poll() is None, (tmp_path / "tuner.txt").read_text()
                time.sleep(rng.uniform(0.0, 0.01))
                os.kill(tuner.pid, signal.SIGKILL)
        finally:
            tuner.wait(60)
        command = [sys.executable, str(launch), "resume"]
    assert tuner.returncode == 0, (tmp_path / "tuner.txt").read_text()
    return folder


def reports(folder: Path) -> list[tuple[int, int, int, float, str | None, bool]]:
    """Trial, run, epoch, loss, the scheduler's decision, and whether it counts, of all reports with a decision."""
    found, result = {}, []
    for record in read_journal(folder):
        if record["type"] in ("report", "decision"):
            key = (record["trial_id"], record["run"], record["client"], record["seq"])
            if record["type"] == "report":
                found[key] = record["metrics"]
            else:
                metrics = found[key]
                decision, counts = record["scheduler_decision"], record["counted"]
                result.append((key[0], key[1], metrics.get("epoch", 0), metrics["loss"], decision, counts))
    return result


def trained(folder: Path, trial_id: int) -> list[tuple[int, int]]:
    """Epoch and run of all that a trial has trained."""
    path = folder / "trials" / str(trial_id) / "trained.txt"
    return [(int(epoch), int(run)) for epoch, run in map(str.split, path.read_text().splitlines())]


def check_whole(folder: Path, kind: str) -> None:
    experiment = load_experiment(folder)
    assert {trial.status for trial in experiment.trials.values()} == {"Completed"}
    assert replay(folder, scheduler(kind)) == []
    for trial_id in experiment.trials:
        assert [r[2] for r in reports(folder) if r[0] == trial_id and r[5]] == list(range(1, EPOCHS + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "n_workers"), [("random", 1), ("grid", 2)])
def test_nothing_that_was_reported_is_trained_again(tmp_path: Path, kind: str, n_workers: int) -> None:
    folder = run_and_kill(tmp_path, KNOWS, kind, n_workers, kills=2, seed=3)
    check_whole(folder, kind)
    recorded_in = {(trial, epoch): run for trial, run, epoch, *_ in reports(folder)}
    assert any(run > 0 for _, run, *_ in reports(folder))
    for trial_id in load_experiment(folder).trials:
        assert all(run <= recorded_in[trial_id, epoch] for epoch, run in trained(folder, trial_id))
    if n_workers > 1:
        return
    undisturbed = Tuner(
        LocalBackend(tmp_path / "train.py"), scheduler(kind), StoppingCriterion(max_num_trials_started=8), 1
    )
    undisturbed.run()
    seen = [
        [(t, e, loss, d) for t, _, e, loss, d, c in reports(path) if c] for path in (folder, undisturbed.tuner_path)
    ]
    assert sorted(seen[0]) == sorted(seen[1])
    asked = [
        [record["config"] for record in read_journal(path) if record["type"] == "suggestion"]
        for path in (folder, undisturbed.tuner_path)
    ]
    assert asked[0] == asked[1]


@pytest.mark.timeout(120)
def test_without_checkpoints_the_early_reports_of_the_second_try_are_ignored(tmp_path: Path) -> None:
    folder = run_and_kill(tmp_path, BEGINS_ANEW, "random", n_workers=2, kills=1, seed=1)
    check_whole(folder, "random")
    ignored = [(trial, run, epoch) for trial, run, epoch, _, decision, counts in reports(folder) if not counts]
    assert ignored
    assert all(decision == "IGNORED" for *_, decision, counts in reports(folder) if not counts)
    experiment = load_experiment(folder)
    assert max(Counter(zip(experiment.results.trial_id, experiment.results.epoch, strict=True)).values()) == 1


def run_with_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, at: str, made: TrialScheduler | None = None
) -> Path:
    """Run two trials one after the other, the second of which is killed once."""
    monkeypatch.setenv("DIE", at)
    train = tmp_path / "train.py"
    train.write_text(text)
    made = made or RandomSearch(SPACE, metric="loss", random_seed=5)
    tuner = Tuner(LocalBackend(train), made, StoppingCriterion(max_num_trials_started=2), n_workers=1)
    tuner.run()
    return tuner.tuner_path


def test_a_trial_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_with_a_death(tmp_path, monkeypatch, KNOWS, "before 4")
    check_whole(folder, "random")
    assert trained(folder, 1) == [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (5, 1), (6, 1)]


@pytest.mark.parametrize(
    ("at", "again"),
    [
        ("before 1", [1, 2, 3, 4, 5, 6]),  # its checkpoint is ahead of the last report
        ("after 1", [2, 3, 4, 5, 6]),
        ("before 4", [4, 5, 6]),
        ("after 6", []),  # nothing is left to train, nor is it trained again from scratch
    ],
)
def test_the_helpers_train_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, again: list[int]
) -> None:
    folder = run_with_a_death(tmp_path, monkeypatch, HELPERS, at)
    check_whole(folder, "random")
    assert [epoch for epoch, run in trained(folder, 1) if run == 1] == again
    assert load_experiment(folder).trials[1].runs == 2
    x = load_experiment(folder).trials[1].config["x"]
    losses = [loss for trial, _, _, loss, _, counts in reports(folder) if trial == 1 and counts]
    assert losses == pytest.approx([(1 + x) ** epoch for epoch in range(1, EPOCHS + 1)], rel=1e-5)


def test_a_trial_without_checkpoints_that_has_reported_all_is_trained_twice_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with_a_death(tmp_path, monkeypatch, BEGINS_ANEW, "after 6")
    check_whole(folder, "random")
    assert load_experiment(folder).trials[1].runs == 2


def test_a_last_report_that_was_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One checkpoint of its own, ahead of the last report; it looks at nothing that the tuner says.
    own = KNOWS.replace("(report.last_resource or 0)", "start").replace(
        "for epoch",
        "checkpoint = Path(report.checkpoint_dir) / 'epoch.txt'\n"
        "start = int(checkpoint.read_text()) if checkpoint.exists() else 0\n"
        "for epoch",
        1,
    )
    own = own.replace("    train(epoch)\n", "    train(epoch)\n    checkpoint.write_text(str(epoch))\n")
    folder = run_with_a_death(tmp_path, monkeypatch, own, "before 6")
    check_whole(folder, "random")
    assert load_experiment(folder).trials[1].runs == 3


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("at", "again"), [("before 3", [3, 4, 5, 6]), ("after 6", [])])
def test_the_lightning_callback_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, again: list[int]
) -> None:
    folder = run_with_a_death(tmp_path, monkeypatch, LIGHTNING, at)
    check_whole(folder, "random")
    assert [epoch for epoch, run in trained(folder, 1) if run == 1] == again
    assert load_experiment(folder).trials[1].runs == 2


@pytest.mark.parametrize("progress_attr", ["epoch", "step", None])
def test_the_name_of_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress_attr: str | None) -> None:
    text = KNOWS.replace("report(epoch=epoch,", "report(step=epoch,")
    made = RandomSearch(SPACE, metric="loss", random_seed=5, progress_attr=progress_attr)
    folder = run_with_a_death(tmp_path, monkeypatch, text, "after 2", made)
    again = [epoch for epoch, run in trained(folder, 1) if run == 1]
    assert again == ([3, 4, 5, 6] if progress_attr == "step" else [1, 2, 3, 4, 5, 6])
    counted = sum(trial == 1 and counts for trial, *_, counts in reports(folder))
    assert counted == (6 if progress_attr == "step" else 8)


@pytest.mark.parametrize("made", [FIFOScheduler, GridSearch])
def test_other_schedulers_take_the_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: type[FIFOScheduler]
) -> None:
    text = KNOWS.replace("report(epoch=epoch,", "report(step=epoch,")
    given = made(SPACE, "loss", random_seed=5, progress_attr="step")
    folder = run_with_a_death(tmp_path, monkeypatch, text, "after 2", given)
    assert [epoch for epoch, run in trained(folder, 1) if run == 1] == [3, 4, 5, 6]


def test_a_number_that_does_not_grow_is_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = KNOWS.replace('    die(f"after', '    report(epoch=epoch, loss=0.5)\n    die(f"after')
    folder = run_with_a_death(tmp_path, monkeypatch, text, "after 3")
    # All reports count, as those of schedulers without a resource do, and the trial begins anew.
    assert all(counts for *_, counts in reports(folder))
    assert len([r for r in reports(folder) if r[0] == 0]) == 2 * EPOCHS
    assert [epoch for epoch, run in trained(folder, 1) if run == 1] == [1, 2, 3, 4, 5, 6]


# Saves before it reports, and keeps two checkpoints; is killed after ``DIE`` epochs in its first run.
SAVES = """
import os, signal, time
from pathlib import Path
from sthyper import Reporter

report = Reporter()
folder = Path(report.checkpoint_dir)
found = sorted(int(path.name) for path in folder.iterdir())
limit = report.last_resource
begin = max((epoch for epoch in found if limit is None or epoch <= limit), default=0)
for epoch in range(begin + 1, 7):
    time.sleep(0.01)
    with open(Path(report.trial_dir) / "trained.txt", "a") as log:
        log.write(f"{epoch} {report.run}\\n")
    (folder / str(epoch)).touch()
    (folder / str(epoch - 2)).unlink(missing_ok=True)
    if report.run == 0 and str(epoch) == os.environ["DIE"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if WHEN:
        report(loss=report.config["x"] / epoch, **WHAT)
"""


@pytest.mark.parametrize(("each", "at"), [(True, 1), (False, 1), (False, 3)])
def test_the_first_report_of_all_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: bool, at: int
) -> None:
    script = tmp_path / "train.py"
    # One that reports at the end only need not train anything twice; but that is known after a second checkpoint only.
    script.write_text(
        SAVES.replace("WHEN", "True" if each else "epoch == 6").replace("WHAT", "{'epoch': epoch}" if each else "{}")
    )
    monkeypatch.setenv("DIE", str(at))
    tuner = Tuner(LocalBackend(script), scheduler("random"), StoppingCriterion(max_num_trials_started=1), n_workers=1)
    tuner.run()
    assert next(epoch for epoch, run in trained(tuner.tuner_path, 0) if run == 1) == (1 if at == 1 else at + 1)
    if each:
        assert list(load_experiment(tuner.tuner_path).results.epoch) == [1, 2, 3, 4, 5, 6]


def test_a_wrong_name_is_found_out() -> None:
    with pytest.raises(TypeError, match=r"progress_attr must be the name of a number in reports, or None, got 3"):
        RandomSearch(SPACE, metric="loss", progress_attr=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"progress_attr and metric must be different names, both are 'loss'"):
        GridSearch(SPACE, metric="loss", progress_attr="loss")
    assert RandomSearch(SPACE, metric="epoch").progress_attr is None
