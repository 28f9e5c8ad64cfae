"""Scripts that are made of a LightningCLI."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from sthyper import Tuner, load_experiment
from sthyper.trial import Status

pytest.importorskip("jsonargparse")

SCRIPT = """
    import torch
    from lightning.pytorch import LightningModule
    from lightning.pytorch.cli import LightningCLI
    from torch.utils.data import DataLoader, TensorDataset

    class Model(LightningModule):
        def __init__(self, lr: float = 0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.net(batch[0]).square().mean(), sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.hparams["lr"])

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(8, 4)), 4)

        def val_dataloader(self):
            return self.train_dataloader()

    if __name__ == "__main__":
        LightningCLI(Model)
"""
CONFIG = """
    trainer:
      accelerator: cpu
      devices: 2
      strategy: ddp_fork
      callbacks:
      - class_path: sthyper.callbacks.TuneReportCallback
        init_args:
          metrics:
            loss: val/loss
"""
APPENDED = [
    "--trainer.accelerator=cpu",
    "--trainer.callbacks+=sthyper.callbacks.TuneReportCallback",
    "--trainer.callbacks.metrics={{'loss': 'val/loss'}}",
]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["file", "arguments"])
def test_a_command_line_of_lightning_pauses_and_resumes(way: str, tmp_path: Path, tune: Callable[..., Tuner]) -> None:
    script, settings = tmp_path / "train.py", tmp_path / "settings.yaml"
    script.write_text(textwrap.dedent(SCRIPT))
    settings.write_text(textwrap.dedent(CONFIG))
    callback = [f"--config={settings}"] if way == "file" else APPENDED
    command = [str(script), "fit", *callback, "--model.lr={lr}", "--trainer.max_epochs={epochs}"]
    tuner = tune(command, [{"lr": 0.1, "epochs": 3}, {"lr": 0.01, "epochs": 3}], {0: {1: "PAUSE"}, 1: {2: "STOP"}})
    experiment = load_experiment(tuner.name)
    assert [(t.status, t.runs) for t in experiment.trials.values()] == [(Status.completed, 2), (Status.stopped, 1)]
    results = experiment.results.sort_values(["trial_id", "epoch"])
    assert list(zip(results["trial_id"], results["epoch"], strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    for trial_id, lr in ((0, "0.1"), (1, "0.01")):
        logs = tuner.tuner_path / "trials" / str(trial_id) / "lightning" / "lightning_logs" / "version_0"
        assert f"lr: {lr}\n" in (logs / "config.yaml").read_text(), "also where the run before has written it"
