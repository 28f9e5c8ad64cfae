"""A Lightning trial that is terminated from outside, under a real tuner."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import loguniform
from sthyper.journal import read_journal
from sthyper.trial import Status

BATCHES = 7
TRAIN = """
    import argparse, os, signal
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset
    from sthyper import Reporter
    from sthyper.callbacks import TuneReportCallback

    class Model(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr
            self.net = torch.nn.Linear(5, 1)

        def training_step(self, batch, batch_idx):
            with open(os.path.join(Reporter().trial_dir, "steps"), "a") as file:
                file.write(f"{self.current_epoch + 1} {batch_idx}\\n")
            if self.current_epoch == 2 and batch_idx == 3 and Reporter().run == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    trainer = Trainer(max_epochs=args.epochs, accelerator="cpu", logger=False, callbacks=[TuneReportCallback("loss")])
    trainer.fit(Model(args.lr), DataLoader(TensorDataset(torch.randn(28, 5)), 4))
"""


@pytest.mark.slow
def test_a_trial_that_is_terminated_goes_on_from_its_last_report(tmp_path: Path) -> None:
    """Lightning ends with exit code 0 on SIGTERM; the tuner knows better, by the callback's last word."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN))
    scheduler = RandomSearch({"lr": loguniform(1e-4, 1e-2), "epochs": 4}, "loss", random_seed=0)
    experiment = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=1), 1).run()
    (trial,) = experiment.trials.values()
    assert trial.status is Status.completed
    assert trial.runs == 2
    ends = [record for record in read_journal(experiment.path) if record["type"] == "status"]
    assert [(end["reason"], end["exit_code"]) for end in ends] == [("killed", 0), (None, 0)]
    assert list(experiment.results["epoch"]) == [1, 2, 3, 4]
    lines = (experiment.path / "trials" / "0" / "steps").read_text().splitlines()
    assert lines[: 2 * BATCHES] == [f"{e} {b}" for e in (1, 2) for b in range(BATCHES)]
    assert lines[-2 * BATCHES :] == [f"{e} {b}" for e in (3, 4) for b in range(BATCHES)]
