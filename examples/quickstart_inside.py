"""Trains the best configuration once more, while dropout and weight decay are tuned by gradient within the run.

Used by: python examples/quickstart.py
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from quickstart_train import DigitClassifier, load_data
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from sthyper.callbacks import SelfTuningCallback
from sthyper.config_space import loguniform, uniform
from sthyper.selftuning import squared_norms, weight_decay


class SelfTunedClassifier(DigitClassifier):
    """The same network; the strength of its weight decay is a hyperparameter of the running training."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        strength = self.selftuning.hyperparameters["weight_decay"]
        return super().training_step(batch, batch_idx) + weight_decay(squared_norms(self), strength).mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        super().validation_step(batch, batch_idx)
        images, labels = batch
        return cross_entropy(self.net(images), labels)  # what the hyperparameters are tuned for

    def configure_optimizers(self):
        self.hparams.weight_decay = 0.0  # the loss has it
        return super().configure_optimizers()


class Curve(Callback):
    """Keeps the validation accuracy of every epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append(trainer.callback_metrics["val/acc"].item())


def train_once_more(config: dict[str, Any]) -> tuple[list[float], list[float], SelfTuningCallback]:
    """Train a configuration with its own dropout and weight decay, and with tuned ones.

    Args:
        config: The configuration.

    Returns:
        Validation accuracies by epoch without and with tuning, and the callback that has tuned.
    """
    tuning = SelfTuningCallback(
        {"dropout": uniform(0.0, 0.9), "weight_decay": loguniform(1e-6, 1e-2)},
        start={"dropout": min(max(config["dropout"], 0.05), 0.85), "weight_decay": 1e-4},
        dropout={"net.*": "dropout"},
    )
    torch.set_num_threads(1)  # more do not help a network of this size
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    options = {name: value for name, value in config.items() if name != "batch_size"}
    train, val, _ = load_data()
    curves = []
    for model_class, callbacks in ((DigitClassifier, []), (SelfTunedClassifier, [tuning])):
        torch.manual_seed(0)
        curve = Curve()
        trainer = Trainer(
            max_epochs=config["epochs"],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, curve],
        )
        trainer.fit(model_class(**options), DataLoader(train, config["batch_size"], shuffle=True), DataLoader(val, 120))
        curves.append(curve.values)
    return curves[0], curves[1], tuning


def draw(axes: Any, plain: list[float], tuned: list[float], tuning: SelfTuningCallback) -> None:
    """Draw both curves, and the hyperparameters of the tuned run.

    Args:
        axes: Two axes of matplotlib.
        plain: Accuracies without tuning.
        tuned: Accuracies with tuning.
        tuning: Has the schedule.
    """
    epochs = range(1, len(plain) + 1)
    axes[0].plot(epochs, plain, label="best configuration of the search")
    axes[0].plot(epochs, tuned, label="dropout and weight decay tuned within the run")
    axes[0].set(xlabel="epoch", ylabel="accuracy", title="the best configuration once more")
    axes[0].legend(loc="lower right")
    axes[0].grid(alpha=0.3)
    steps = tuning.schedule.column("step")
    twin = axes[1].twinx()
    (rate,) = axes[1].plot(steps, tuning.schedule.values("dropout"), "C0", label="dropout")
    (decay,) = twin.plot(steps, tuning.schedule.values("weight_decay"), "C1", label="weight decay")
    axes[1].set(xlabel="step", ylabel="dropout", title="its hyperparameters while it was trained")
    twin.set(ylabel="weight decay", yscale="log")
    axes[1].legend(handles=[rate, decay])
    axes[1].grid(alpha=0.3)
