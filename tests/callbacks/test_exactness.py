"""Promotion ASHA over a Lightning script: no step too many, and the weights of an uninterrupted run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import loguniform, uniform
from sthyper.journal import read_journal
from sthyper.testing import replay

BATCHES = 5
EPOCHS = 9
SCRIPT = """
    import argparse, os
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset
    from sthyper import Reporter
    from sthyper.callbacks import TuneReportCallback

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    folder = Reporter().trial_dir

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.Dropout(args.dropout), torch.nn.ReLU(), torch.nn.Linear(16, 1)
            )

        def training_step(self, batch, batch_idx):
            with open(os.path.join(folder, "steps"), "a") as file:
                file.write(f"{self.current_epoch + 1}\\n")
            x, y = batch
            return torch.nn.functional.mse_loss(self.net(x), y)

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val/loss", torch.nn.functional.mse_loss(self.net(x), y))

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), args.lr)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)]

    torch.manual_seed(1)
    x = torch.randn(40, 8)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    train = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(2))
    model = Model()
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        logger=False,
        callbacks=[
            TuneReportCallback({"loss": "val/loss"}),
            ModelCheckpoint(monitor="val/loss", save_last=True),
            EarlyStopping("val/loss", patience=100),
        ],
    )
    trainer.fit(model, train, DataLoader(data, 40))
    torch.save(model.state_dict(), os.path.join(folder, "at-the-end.pt"))
    trainer.validate(model, DataLoader(data, 40), verbose=False)
    torch.save(model.state_dict(), os.path.join(folder, "after-the-loop.pt"))
"""


def tune(script: Path, scheduler: Any, n_trials: int) -> Tuner:
    tuner = Tuner(LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=n_trials), n_workers=2)
    tuner.run()
    return tuner


def asha() -> ASHA:
    space = {"lr": loguniform(1e-4, 1e-1), "dropout": uniform(0.1, 0.5), "epochs": EPOCHS}
    return ASHA(
        space, metric="loss", resource_attr="epoch", max_resource_attr="epochs", type="promotion", random_seed=3
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_forty_trials_pause_and_resume_exactly(tmp_path: Path) -> None:
    import torch

    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    tuner = tune(script, asha(), 40)
    milestone: dict[int, int] = {}
    runs: dict[int, int] = {}
    for record in read_journal(tuner.tuner_path):
        if record["type"] in ("start", "resume"):
            milestone[record["trial_id"]] = record["milestone"]
            runs[record["trial_id"]] = record["run"] + 1
        elif record["type"] == "report":
            assert record["metrics"]["epoch"] <= milestone[record["trial_id"]]
    assert replay(tuner.tuner_path, asha()) == []
    completed = []
    for trial_id in range(40):
        folder = tuner.tuner_path / "trials" / str(trial_id)
        steps = [int(line) for line in (folder / "steps").read_text().split()]
        assert steps == [epoch for epoch in range(1, milestone[trial_id] + 1) for _ in range(BATCHES)]
        if milestone[trial_id] == EPOCHS:
            completed.append(trial_id)
        assert (folder / "after-the-loop.pt").exists() == (milestone[trial_id] == EPOCHS)
    assert len(completed) >= 2
    assert all(runs[trial_id] == 3 for trial_id in completed)
    # The same configurations without a pause.
    configs = [tuner.trial_backend.trial(trial_id).config for trial_id in completed]
    points = [{k: config[k] for k in ("lr", "dropout")} for config in configs]
    search = RandomSearch(asha().config_space, metric="loss", points_to_evaluate=points, random_seed=0)
    whole = tune(script, search, len(points))
    for index, trial_id in enumerate(completed):
        assert whole.trial_backend.trial(index).config == tuner.trial_backend.trial(trial_id).config
        for name in ("at-the-end.pt", "after-the-loop.pt"):
            paused, plain = (
                torch.load(t.tuner_path / "trials" / str(i) / name, weights_only=True)
                for t, i in ((tuner, trial_id), (whole, index))
            )
            assert paused.keys() == plain.keys()
            assert all(torch.equal(paused[key], plain[key]) for key in plain)
