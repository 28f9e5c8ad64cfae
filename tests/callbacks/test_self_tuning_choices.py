"""SelfTuningCallback with gates and choices: what it finds, logs, saves and exports, on one device and two processes.

As a script it trains on two processes, and writes down what each rank has: ``python FILE FOLDER``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.callbacks import SelfTuningCallback
from sthyper.config_space import choice, logfinrange, to_dict, uniform
from sthyper.selftuning.choosing import OneOf
from sthyper.straight_through.choices import Choice
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.schedules import LinearTemperature

ACT = choice(["linear", "square", "sign"])


class Square(nn.Module):
    """An activation that can express the targets."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Sign(nn.Module):
    """One that cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class Net(LightningModule):
    """A regression that reads a choice of activations; ``seen`` holds what the steps saw of it."""

    selftuning: Any

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.last = nn.Linear(2, 16), nn.Dropout(0.1), nn.Linear(16, 1)
        self.seen: dict[str, set[tuple[int, ...]]] = {"train": set(), "val": set()}

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.selftuning.hyperparameters
        z = self.first(x)
        self.seen["train" if self.training else "val"].add(tuple(h["act"].shape))
        return self.last(self.drop(h.mix("act", [z, z.square(), z.sign()]))).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loaders(seed: int = 0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(384, 2, generator=generator)
    data = TensorDataset(x, x[:, 0] ** 2 - x[:, 1] ** 2)
    train, val = torch.utils.data.Subset(data, range(256)), torch.utils.data.Subset(data, range(256, 384))
    return DataLoader(train, 32), DataLoader(val, 32)


def fit(model: LightningModule, *callbacks: Callback, seed: int = 0, **options: Any) -> Trainer:
    torch.manual_seed(seed)
    base: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(callbacks=list(callbacks), **base | quiet | options)
    trainer.fit(model, *loaders(seed), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("space", "options"),
    [
        ({"act": ACT}, {}),
        ({"act": ACT, "drop": uniform(0.0, 0.5)}, {"update": "joint"}),
        ({"act": Choice(ACT, estimator="gumbel"), "drop": uniform(0.0, 0.5)}, {"kind": "stn"}),
    ],
)
def test_the_better_activation_is_found(space: dict[str, Any], options: dict[str, Any], seed: int) -> None:
    if isinstance(space["act"], Choice):
        space = {**space, "act": Choice(ACT, estimator="gumbel")}  # a fresh one for each run
    tuning = SelfTuningCallback(space, hyper_lr=0.1, dropout="auto", **options)
    model = Net()
    trainer = fit(model, tuning, seed=seed, max_epochs=12)
    assert tuning.values()["act"] == "square"
    probability = tuning.hyperparameters.probabilities()["act"]["square"]
    assert probability > 0.7
    assert float(trainer.callback_metrics["selftuning/value/act=square"]) == pytest.approx(probability)
    assert tuning.schedule.final()["act=square"] == pytest.approx(probability)
    assert not tuning.notices.idle


def test_which_pass_sees_which_sample() -> None:
    mixed = SelfTuningCallback({"act": ACT, "drop": uniform(0.0, 0.5)}, response_part=1.0, warm_up_epochs=0)
    for tuning in (mixed, SelfTuningCallback({"act": ACT}, warm_up_epochs=0)):
        model = Net()
        fit(model, tuning, max_epochs=1)
        # Each example has its own in training and in hyper steps, validation the most probable one.
        assert model.seen == {"train": {(32, 3)}, "val": {(3,), (32, 3)}}
    model = Net()
    fit(model, SelfTuningCallback({"act": ACT}, shared=["act"], warm_up_epochs=0), max_epochs=1)
    assert model.seen == {"train": {(3,)}, "val": {(3,)}}
    model = Net()
    tuning = SelfTuningCallback({"act": ACT}, tune=False, start={"act": "square"})
    fit(model, tuning, max_epochs=1)
    assert model.seen == {"train": {(3,)}, "val": {(3,)}}
    assert tuning.hyperparameters.probabilities()["act"]["square"] == pytest.approx(0.8)


def test_a_temperature_falls_and_domains_of_files_work() -> None:
    space = {
        "act": Choice(ACT, estimator="gumbel", temperature=LinearTemperature(2.0, 0.5)),
        "other": to_dict(logfinrange(0.1, 10.0, 3)),
    }
    tuning = SelfTuningCallback(space, warm_up_epochs=0, train_steps=2)
    fit(Net(), tuning, max_epochs=2)
    assert tuning.hyperparameters.discrete["act"].temperature == pytest.approx(0.5)
    assert tuning.values()["other"] == 0.1
    assert tuning.notices.idle == {"other"}


def test_updates_of_responses_need_some() -> None:
    with pytest.raises(ValueError, match="update='nonlinear' has no effect on gates and choices"):
        SelfTuningCallback({"act": ACT}, update="nonlinear")


def test_the_exported_module_has_the_chosen_operation() -> None:
    class Chooses(Net):
        def configure_model(self) -> None:
            if not hasattr(self, "act"):
                operations = {"linear": nn.Identity(), "square": Square(), "sign": Sign()}
                self.act = OneOf(tuning.hyperparameters, "act", operations)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.drop(self.act(self.first(x)))).squeeze(1)

    tuning = SelfTuningCallback({"act": ACT, "drop": uniform(0.0, 0.5)}, hyper_lr=0.1, dropout="auto", kind="stn")
    model = Chooses()
    fit(model, tuning, max_epochs=12)
    plain = tuning.export(model)
    assert type(plain.act) is Square
    x = torch.randn(5, 2)
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))


class _Seeds(Callback):
    """Seeds the global generator for each batch; Lightning does not save it."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        torch.manual_seed(trainer.global_step)


def train(folder: Path, epochs: int = 3, ckpt_path: Path | None = None, **options: Any) -> tuple[Net, Any]:
    space = {"act": ACT, "drop": uniform(0.0, 0.5), "unused": Gate(3, 0.7)}
    tuning = SelfTuningCallback(space, hyper_lr=0.1, dropout="auto", warm_up_epochs=0)
    model = Net()
    saves = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory|You're resuming|It is recommended|The '.*_dataloader'")
        arguments = {"max_epochs": epochs, "enable_checkpointing": True, "ckpt_path": ckpt_path, **options}
        fit(model, tuning, saves, _Seeds(), **arguments)
    return model, tuning


def tensors(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def test_a_resumed_training_goes_on_exactly(tmp_path: Path) -> None:
    whole, tuning = train(tmp_path)
    resumed, again = train(tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt")
    state = tensors(resumed)
    assert any("discrete" in name for name in state)
    for name, value in tensors(whole).items():
        assert torch.equal(value, state[name]), name
    assert tuning.hyperparameters.numbers() == again.hyperparameters.numbers()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_have_the_same_probabilities(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    logits = [value for name, value in first["state"].items() if name.endswith("logits")]
    assert any(bool((value - value.mean()).any()) for value in logits)
    # Each rank has samples of its own.
    assert not torch.equal(first["drawn"], second["drawn"])
    main = torch.load(tmp_path / "main.pt", weights_only=True)
    torch.testing.assert_close(main, logits[0])


class _Notes(Callback):
    """Writes down what this rank has: its parameters, and the last sample of a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn = torch.zeros(0)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        h: Any = pl_module.selftuning.hyperparameters
        if h.is_sampled("act"):
            self.drawn = h["act"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        note = {"state": tensors(pl_module), "drawn": self.drawn}
        torch.save(note, self.folder / f"rank-{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    """Train on two forked ranks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    space = {"act": ACT, "drop": uniform(0.0, 0.5)}
    tuning = SelfTuningCallback(space, hyper_lr=0.1, dropout="auto", warm_up_epochs=0)
    fit(Net(), tuning, _Notes(folder), max_epochs=2, devices=2, strategy="ddp_fork")
    torch.save(tuning.hyperparameters.discrete["act"].logits.detach().clone(), folder / "main.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
