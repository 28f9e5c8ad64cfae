"""What a self-tuning training tells: its schedule, the numbers that loggers get, and what was remarkable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import HyperStepResult, Notices

__all__ = ["Record"]

logger = logging.getLogger(__name__)

_PREFIX = "selftuning"


class Record:
    """Notes what hyper steps do, and tells loggers and other callbacks.

    Args:
        hyperparameters: The hyperparameters.

    Attributes:
        schedule: Trajectories of values and scales.
        notices: Skipped steps and idle hyperparameters.
        epochs_before: Epochs of earlier calls of ``fit``, which counted from 1.
    """

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.schedule = Schedule()
        self.notices = Notices()
        self.epochs_before = 0
        self._looked = False
        self._metrics: dict[str, float] = {}
        self._train_loss: tuple[float | Tensor, int] = (0.0, 0)

    def begins(self, trainer: Trainer, step: int) -> None:
        """Begin, or go on, when training starts.

        Args:
            trainer: The Trainer.
            step: Optimiser steps so far.
        """
        if self._epoch(trainer) < self.schedule.n_epochs:
            self.epochs_before = int(self.schedule.n_epochs)  # a further fit
        if not self.schedule:
            self.schedule.record(self.hyperparameters, step=step, epoch=0)
        if not self._metrics:
            self._note()
        self._publish(trainer)

    def add_loss(self, trainer: Trainer, outputs: Any) -> None:
        """Take over the training loss of a batch, from what the training step returned."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            total, n = self._train_loss
            self._train_loss = (total + loss.detach() * trainer.accumulate_grad_batches, n + 1)

    def hear(self, trainer: Trainer, result: HyperStepResult, step: int) -> None:
        """Note a hyper step.

        Args:
            trainer: The Trainer.
            result: What it did.
            step: Optimiser steps so far.
        """
        if trainer.is_global_zero:
            self.notices.hear(result, step)
        else:  # said once
            self.notices.skipped += result.skipped
            self.notices.idle.update(result.idle)
        self.schedule.record(
            self.hyperparameters,
            step=step,
            epoch=self._epoch(trainer),
            val_loss=result.loss,
            hypergradients=result.gradients,
        )
        self._note(result)
        self._publish(trainer)

    def log(self, trainer: Trainer) -> None:
        """Tell the loggers, if it is their turn."""
        if trainer._logger_connector.should_update_logs or getattr(trainer, "fast_dev_run", False):
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for destination in trainer.loggers:
                destination.log_metrics(self._metrics, step=step)

    def epoch_ends(self, trainer: Trainer, step: int) -> None:
        """Sum an epoch up.

        Args:
            trainer: The Trainer.
            step: Optimiser steps so far.
        """
        (total, n), self._train_loss = self._train_loss, (0.0, 0)
        mean = float(total) / n if n else None
        epoch = self._epoch(trainer)
        self.schedule.record(self.hyperparameters, step=step, epoch=epoch, train_loss=mean, kind="epoch")

    def name_unused(self) -> None:
        """Say once, after the first epoch, which hyperparameters nothing asked for."""
        if self._looked:
            return
        self._looked = True
        unused = [name for name in self.hyperparameters.names if name not in self.hyperparameters.read]
        if unused:
            logger.warning(
                "hyperparameters %s were used nowhere in the first epoch: neither a dropout layer (dropout=...) nor "
                "training_step asked for self.selftuning.hyperparameters[name]; what moves them is noise",
                unused,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in types that load with ``weights_only=True``."""
        return {
            "schedule": self.schedule.state_dict(),
            "notices": self.notices.state_dict(),
            "epochs_before": self.epochs_before,
            "looked": self._looked,
            "metrics": dict(self._metrics),
            "train_loss": [float(self._train_loss[0]), self._train_loss[1]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.schedule.load_state_dict(state["schedule"])
        self.notices.load_state_dict(state["notices"])
        self.epochs_before, self._looked = state["epochs_before"], state["looked"]
        self._metrics = dict(state["metrics"])
        total, n = state["train_loss"]
        self._train_loss = (total, n)

    def _epoch(self, trainer: Trainer) -> int:
        return self.epochs_before + trainer.current_epoch + 1

    def _note(self, result: HyperStepResult | None = None) -> None:
        news = {f"value/{name}": value for name, value in self.hyperparameters.numbers().items()}
        news |= {f"scale/{name}": value for name, value in self.hyperparameters.scales().items()}
        news["skipped"] = float(self.notices.skipped)
        if result is not None:
            news |= {f"hypergradient/{name}": abs(value) for name, value in result.gradients.items()}
            news["val_loss"] = float(result.loss)
        self._metrics.update({f"{_PREFIX}/{name}": value for name, value in news.items()})

    def _publish(self, trainer: Trainer) -> None:
        """Let other callbacks watch and report the numbers."""
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
