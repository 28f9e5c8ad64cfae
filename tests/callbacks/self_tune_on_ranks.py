"""Self-tunes a small module on one or two processes, and writes down what each rank has.

Each case writes ``CASE-RANK.pt`` for every rank, and ``CASE-main.json`` from the process of the script.
"""

from __future__ import annotations

import argparse
import json
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

from sthyper.callbacks import SelfTuningCallback
from sthyper.config_space import loguniform
from sthyper.selftuning.linearise import collapse

_G = torch.Generator().manual_seed(1)
_X = torch.randn(48, 6, generator=_G)
_Y = (_X @ torch.randn(6, 3, generator=_G)).argmax(1)
SPACE = {"penalty": loguniform(1e-3, 10.0), "common": loguniform(1e-3, 10.0)}


class Net(LightningModule):
    """A classifier with two penalties, one of them shared by the batch."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.calls = 0
        self.batch_size = 2
        self.ordered = False

    def _loader(self, data: TensorDataset) -> DataLoader[Any]:
        if not self.ordered:
            return DataLoader(data, self.batch_size)  # Lightning cuts it
        # Lightning would shuffle it. Here batches of two ranks are one of a single process.
        sampler = DistributedSampler(data, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, self.batch_size, sampler=sampler)

    def train_dataloader(self) -> Any:
        return self._loader(TensorDataset(_X[:24], _Y[:24]))

    def val_dataloader(self) -> Any:
        return self._loader(TensorDataset(_X[24:], _Y[24:]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        h = self.selftuning.hyperparameters
        logits = self.head(torch.tanh(self.body(self.norm(batch[0]))))
        penalty = ((h["penalty"] + h["common"]) * collapse(logits).square().mean(1)).mean()
        return F.cross_entropy(logits, batch[1]) + penalty

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.head(torch.tanh(self.body(self.norm(batch[0])))), batch[1])
        self.log("val/loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Alike:
    """Draws one perturbation for all examples of all ranks, so that a batch can be cut in any way."""

    def __init__(self, callback: SelfTuningCallback) -> None:
        self.h, self.draw = callback.hyperparameters, type(callback.hyperparameters).draw
        vars(self.h)["draw"] = self

    def __call__(self, size: int, groups: int | None = None, same: bool = False, tracks: bool = False) -> Any:
        self.h.reseed(5)
        return self.draw(self.h, size, groups, True, tracks)


class Notes(Callback):
    """Writes down, at the end, what this rank has; ``draws`` are the perturbations of its batches."""

    def __init__(self, path: Path, case: str, tuning: SelfTuningCallback) -> None:
        self.path, self.case, self.tuning = path, case, tuning
        self.draws: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        h = self.tuning.hyperparameters
        draw = h.draw

        def noted(*args: Any, **kwargs: Any) -> Any:
            perturbation = draw(*args, **kwargs)
            self.draws.append(perturbation.raw - h.raw.detach())
            return perturbation

        vars(h)["draw"] = noted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {k: v for k, v in pl_module.state_dict().items() if isinstance(v, Tensor)}
        note = {"state": state, "draws": self.draws, "calls": pl_module.calls, "hyper_steps": self.tuning.hyper_steps}
        torch.save(note, self.path / f"{self.case}-{trainer.global_rank}.pt")


def run(
    path: Path,
    case: str,
    devices: int = 1,
    strategy: str = "auto",
    batch_size: int = 4,
    alike: bool = False,
    epochs: int = 2,
    ckpt_path: str | None = None,
    save: bool = False,
    norm: bool = False,
    **options: Any,
) -> SelfTuningCallback:
    """Train, and return the callback as it is in this process."""
    base = {"shared": ["common"], "dropout": None, "warm_up_epochs": 0, "train_steps": 1}
    tuning = SelfTuningCallback(dict(SPACE), **base | options)
    if alike:
        Alike(tuning)
    callbacks: list[Callback] = [tuning, Notes(path, case, tuning)]
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
    model = Net(norm)
    model.batch_size, model.ordered = batch_size, alike
    trainer.fit(model, ckpt_path=ckpt_path)
    main = {
        "values": tuning.values(),
        "rows": len(tuning.schedule),
        "steps": tuning.steps,
        "metric": float(trainer.callback_metrics["selftuning/value/penalty"]),
    }
    (path / f"{case}-main.json").write_text(json.dumps(main))
    return tuning


CASES: dict[str, dict[str, Any]] = {
    "delta": {"alike": True, "max_norm": 0.5},
    "nonlinear": {"alike": True, "update": "nonlinear"},
    "joint": {"alike": True, "update": "joint"},
    "stn": {"alike": True, "kind": "stn"},
    "drawn": {"tune_scales": True, "entropy_weight": 0.01, "save": True, "norm": True, "epochs": 4},
}


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
        options = CASES[case]
        run(args.path, case, devices=2, strategy=args.strategy, batch_size=2, **options)
        if options.get("save"):
            checkpoint = str(args.path / "checkpoints" / f"{case}-epoch=1.ckpt")
            run(
                args.path,
                f"{case}-resumed",
                devices=2,
                strategy=args.strategy,
                batch_size=2,
                ckpt_path=checkpoint,
                **options,
            )


if __name__ == "__main__":
    main()
