"""Tunes the gates of a small module on one or two processes, and writes down what each rank has.

Each case writes ``CASE-RANK.pt`` for every rank, and ``CASE-main.pt`` from the process of the script.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from sthyper.callbacks import GateTuningCallback

_G = torch.Generator().manual_seed(1)
_X = torch.randn(48, 6, generator=_G)
_Y = (_X @ torch.randn(6, 3, generator=_G)).argmax(1)


class Net(LightningModule):
    """A classifier."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(6, 5)
        self.branch = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)
        self.batch_size = batch_size
        self.samples: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(x))
        return self.head(x + self.branch(x))

    def _loader(self, first: int) -> DataLoader[Any]:
        data = TensorDataset(_X[first : first + 24], _Y[first : first + 24])
        # Batches of two ranks are one of a single process.
        sampler = DistributedSampler(data, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, self.batch_size, sampler=sampler)

    def train_dataloader(self) -> Any:
        return self._loader(0)

    def val_dataloader(self) -> Any:
        return self._loader(24)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val/loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Notes(Callback):
    """Writes down, at the end, what this rank has; ``samples`` are those of its batches."""

    def __init__(self, path: Path, case: str) -> None:
        self.path, self.case = path, case
        self.samples: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gate = pl_module.get_submodule("gates").gates[0]
        sample = gate.sample

        def noted(*args: Any) -> Tensor:
            drawn = sample(*args)
            self.samples.append(drawn.detach().clone())
            return drawn

        vars(gate)["sample"] = noted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module.get_submodule("gates").gates[0]).pop("sample")
        state = {k: v for k, v in pl_module.state_dict().items() if isinstance(v, Tensor)}
        torch.save(
            {"state": state, "samples": self.samples, "grads": [p.grad for p in pl_module.parameters()]},
            self.path / f"{self.case}-{trainer.global_rank}.pt",
        )


TARGETS: dict[str, Any] = {"body": "channels", "head": "inputs", "branch": "branch"}
CASES: dict[str, dict[str, Any]] = {
    # Half a batch on each of two ranks is a batch on one.
    "alike": {"per_example": False, "rank_samples": "same"},
    "alike_validation": {"per_example": False, "rank_samples": "same", "val_dataloader": "val"},
    "same": {"rank_samples": "same"},
    "own": {"penalty": 0.02, "save": True, "epochs": 4},
    "own_validation": {"val_dataloader": "val", "every_n_steps": 2, "estimator": "gumbel", "save": True, "epochs": 4},
}


def run(
    path: Path,
    case: str,
    devices: int = 1,
    strategy: str = "auto",
    batch_size: int = 4,
    epochs: int = 2,
    save: bool = False,
    ckpt_path: str | None = None,
    **options: Any,
) -> None:
    """Train, and write down what this process knows."""
    tuning = GateTuningCallback(TARGETS, **options)
    callbacks: list[Callback] = [tuning, Notes(path, case)]
    if save:
        callbacks.append(ModelCheckpoint(path / "checkpoints", filename=case + "-{epoch}", save_top_k=-1))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        logger=False,
        enable_checkpointing=save,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    model = Net(batch_size)
    trainer.fit(model, ckpt_path=ckpt_path)
    exported = tuning.export(model)
    main = {
        "probabilities": tuning.probabilities(),
        "steps": tuning.steps,
        "metric": trainer.callback_metrics["gates/expected_size"],
        "exported": exported.eval()(_X[:5]).detach(),
        "plain": list(exported.state_dict()),
    }
    if trainer.is_global_zero:
        torch.save(main, path / f"{case}-main.pt")


def main() -> None:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("strategy")
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in args.cases:
        options = CASES[case] | {"devices": 2, "strategy": args.strategy, "batch_size": 2}
        run(args.path, case, **options)
        if options.get("save"):
            run(
                args.path,
                f"{case}-resumed",
                ckpt_path=str(args.path / "checkpoints" / f"{case}-epoch=1.ckpt"),
                **options,
            )


if __name__ == "__main__":
    main()
