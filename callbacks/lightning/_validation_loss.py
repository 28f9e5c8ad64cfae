"""The loss of a validation batch, as steps on hyperparameters or gates minimise it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from sthyper.callbacks.lightning._passes import run_step
from sthyper.errors import closest

__all__ = ["ValidationLoss", "loss_of"]

Source = Literal["training_step", "validation_step"]


@dataclass
class ValidationLoss:
    """Calls a step of the user on validation batches, and finds the loss.

    Args:
        trainer: The Trainer.
        module: What is trained.
        val_loss: Name of the value logged in ``validation_step`` that is the loss; ``None`` for what the step returns.
        owner: Name of the callback, for messages.
        steps: What the steps that minimise it are called there.
        source: Which step has the loss; ``None`` to find it out at the first batch.
    """

    trainer: Trainer
    module: LightningModule
    val_loss: str | None
    owner: str
    steps: str
    source: Source | None = None

    def __call__(self, batch: Any, index: int, logged: dict[str, Any]) -> Tensor:
        """Return the loss of a batch.

        Args:
            batch: The batch, on the device.
            index: Its number.
            logged: Where what is logged meanwhile is noted, by name.

        Raises:
            ValueError: If there is none.
        """
        self.settle(batch, index, logged)
        if self.source == "training_step":
            with self.trainer.precision_plugin.train_step_context():
                loss = loss_of(run_step(self.module, "training_step", batch, index))
        else:
            with self.trainer.precision_plugin.val_step_context():
                output = run_step(self.module, "validation_step", batch, index)
            loss = loss_of(output) if self.val_loss is None else self._logged(logged)
        if loss is None:
            raise ValueError(f"{self.owner}: {self.source} returned no loss for a validation batch")
        return loss

    def settle(self, batch: Any, index: int, logged: dict[str, Any]) -> None:
        """Find out where the loss is, if that is not known; the arguments are those of a call."""
        if self.source is None:
            self.source = self._choose_source(batch, index, logged)

    def _choose_source(self, batch: Any, index: int, logged: dict[str, Any]) -> Source:
        if self.val_loss is not None:
            return "validation_step"
        if is_overridden("validation_step", self.module):
            with self.trainer.precision_plugin.val_step_context():
                loss = loss_of(run_step(self.module, "validation_step", batch, index))
            if loss is not None and loss.dim() == 0 and loss.requires_grad:
                return "validation_step"
            names = [name for name, value in logged.items() if isinstance(value, Tensor) and value.requires_grad]
            hint = f"; name the logged one that is to be minimised with val_loss=..., of {names}" if names else ""
        else:
            hint = ""
        rank_zero_info(
            f"{self.owner}: validation_step returns no loss, so {self.steps} minimise that of training_step in "
            f"evaluation mode{hint}"
        )
        return "training_step"

    def _logged(self, logged: dict[str, Any]) -> Tensor:
        value = logged.get(str(self.val_loss))
        if value is None:
            raise ValueError(
                f"val_loss={self.val_loss!r} was not logged in validation_step{closest(self.val_loss, logged)}; logged "
                f"were {sorted(logged)}"
            )
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ValueError(
                f"val_loss={self.val_loss!r} was logged as {type(value).__name__} without a gradient; log the tensor "
                "itself, not its .item() or .detach()"
            )
        return value


def loss_of(output: Any) -> Tensor | None:
    """Return the loss in what a step returned."""
    loss = output.get("loss") if isinstance(output, dict) else output
    return loss if isinstance(loss, Tensor) and loss.is_floating_point() else None
