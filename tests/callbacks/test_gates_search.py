"""Gates within an outer search: what is reported, a pause, and scripts of a LightningCLI."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend
from sthyper.baselines import GridSearch
from sthyper.config_space import choice
from sthyper.trial import Status

MODEL = """
    import torch
    from lightning.pytorch import LightningModule
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features = torch.nn.Linear(8, 4)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.features(x)))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())
            loss = F.cross_entropy(logits, batch[1])
            self.log("val/loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.02)

        def train_dataloader(self):
            x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
            return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 20)

        def val_dataloader(self):
            return self.train_dataloader()
"""
TRAIN = """
    import argparse
    from lightning.pytorch import Trainer
    from sthyper import Reporter
    from sthyper.callbacks import GateTuningCallback, TuneReportCallback

    parser = argparse.ArgumentParser()
    parser.add_argument("--penalty", type=float)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    tuning = GateTuningCallback({"features": "inputs"}, penalty=args.penalty, lr=0.1)
    report = TuneReportCallback(
        {"accuracy": "val/acc", "loss": "val/loss", "size": "gates/expected_size", "open": "gates/open"}
    )
    trainer = Trainer(max_epochs=args.epochs, accelerator="cpu", logger=False, callbacks=[report, tuning])
    model = Model()
    trainer.fit(model)
    if report.decision == "CONTINUE":
        torch.save(tuning.probabilities(), Reporter().trial_dir + "/gates.pt")
"""
CLI = """
    from lightning.pytorch.cli import LightningCLI

    if __name__ == "__main__":
        cli = LightningCLI(Model, run=False)
        cli.trainer.fit(cli.model)
        (tuning,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "GateTuningCallback"]
        options = tuning.options
        torch.save({"p": tuning.probabilities(), "lr": options.lr, "penalty": options.penalty}, "gates.pt")
"""
CONFIG = """
    trainer:
      accelerator: cpu
      max_epochs: 2
      logger: false
      enable_checkpointing: false
      callbacks:
      - class_path: sthyper.callbacks.GateTuningCallback
        init_args:
          targets:
            features: inputs
            head: channels
          penalty:
            features: 0.01
          val_dataloader: val
          estimator: hard_concrete
          temperature: 0.5
          target_size: 0.5
          lr: 0.1
"""


def script(folder: Path, *parts: str) -> Path:
    path = folder / "train.py"
    path.write_text("".join(textwrap.dedent(part) for part in parts))
    return path


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_outer_search_sees_accuracy_and_size(tmp_path: Path) -> None:
    """The penalty of the gates is searched from outside."""
    space = {"penalty": choice([0.0, 0.03, 3.0]), "epochs": 8}
    scheduler = GridSearch(space, "accuracy", "max", random_seed=0)
    backend = LocalBackend(script(tmp_path, MODEL, TRAIN))
    experiment = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_finished=3), 1).run()
    assert [trial.status for trial in experiment.trials.values()] == [Status.completed] * 3
    results = experiment.results
    last = results[results["epoch"] == 8].set_index("config_penalty")
    assert last.loc[3.0, "open"] == 0
    assert last.loc[0.03, "size"] < last.loc[0.0, "size"] - 2
    assert last.loc[0.03, "accuracy"] > 0.9 > 0.7 > last.loc[3.0, "accuracy"]
    for trial in experiment.trials.values():
        saved = torch.load(experiment.path / "trials" / str(trial.trial_id) / "gates.pt", weights_only=True)
        assert last.loc[trial.config["penalty"], "size"] == pytest.approx(float(saved["features"].sum()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_pause_changes_nothing(tmp_path: Path, tune: Callable[..., Tuner]) -> None:
    configs = [{"penalty": 0.03, "epochs": 4}, {"penalty": 0.03, "epochs": 4}]
    tuner = tune(script(tmp_path, MODEL, TRAIN), configs, {0: {2: "PAUSE"}}, n_workers=1)
    experiment = load_experiment(tuner.name)
    assert [(t.status, t.runs) for t in experiment.trials.values()] == [(Status.completed, 2), (Status.completed, 1)]
    results = experiment.results.sort_values(["trial_id", "epoch"])
    first, second = (results[results["trial_id"] == i] for i in (0, 1))
    for metric in ("accuracy", "loss", "size", "open"):
        assert list(first[metric]) == list(second[metric])
    assert first["size"].nunique() == 4


@pytest.mark.slow
def test_a_command_line_of_lightning(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    settings = tmp_path / "settings.yaml"
    settings.write_text(textwrap.dedent(CONFIG))
    done = subprocess.run(
        [sys.executable, str(script(tmp_path, MODEL, CLI)), f"--config={settings}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "gates.pt", weights_only=True)
    assert {name: len(p) for name, p in saved["p"].items()} == {"features": 8, "head": 2}
    assert (saved["lr"], saved["penalty"]) == (0.1, {"features": 0.01, "head": 0.0})
