"""A Lightning script that has never heard of sthyper is tuned as it is."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.callbacks.attach import callbacks
from sthyper.config_space import uniform

SCRIPT = """
    import argparse
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    class Model(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.net(x), y)
            self.log("train/loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    x = torch.randn(16, 4)
    trainer = Trainer(max_epochs=args.epochs, accelerator="cpu")
    trainer.fit(Model(args.lr), DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8))
    print("trained", trainer.current_epoch)
"""


def test_an_unchanged_script_pauses_and_resumes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    scheduler = ASHA(
        {"lr": uniform(0.001, 0.2), "epochs": 3},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=0,
    )
    backend = LocalBackend(script, lightning={"metrics": {"loss": "train/loss"}})
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=5), n_workers=2)
    experiment = tuner.run()
    frame = experiment.results
    assert not frame.duplicated(["trial_id", "epoch"]).any()
    assert set(frame["epoch"]) == {1, 2, 3}
    assert {trial.status.value for trial in experiment.trials.values()} == {"Completed", "Paused"}
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.exists()


def test_nothing_is_attached_outside_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STHYPER_LIGHTNING", raising=False)
    assert callbacks() == []
    monkeypatch.setenv("STHYPER_LIGHTNING", '{"metrics": "val/acc", "missing": "skip"}')
    (callback,) = callbacks()
    assert callback.metrics == {"val/acc": "val/acc"}
    assert callback.missing == "skip"
    monkeypatch.setenv("STHYPER_LIGHTNING", '{"metric": "val/acc"}')
    with pytest.raises(TypeError, match="metric"):
        callbacks()
