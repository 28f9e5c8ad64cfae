"""The numbers that loggers, other callbacks and an outer search get from gates."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from sthyper.callbacks.lightning._gates_steps import GateSteps

__all__ = ["labels", "log", "publish"]


def labels(targets: Iterable[str]) -> dict[str, str]:
    """Return what targets are called in metrics: all loggers take letters, digits and ``_-./``."""
    result: dict[str, str] = {}
    for target in targets:
        label = plain = re.sub(r"[^\w./-]", "_", target)
        number = 1
        while label in result.values():
            number += 1
            label = f"{plain}_{number}"
        result[target] = label
    return result


@torch.no_grad()
def metrics(steps: GateSteps) -> dict[str, Tensor]:
    """Return probabilities and sizes by name (0-d), without waiting for a device."""
    prefix = steps.options.attribute
    result: dict[str, Tensor] = {}
    sizes, opens = [], []
    for target, label in labels(steps.options.targets).items():
        gates = steps.gates.of_target(target)
        probabilities = torch.cat([gate.probabilities().flatten() for gate in gates])
        is_open = torch.cat([gate.decisions().flatten() for gate in gates]).sum().to(probabilities.dtype)
        sizes.append(probabilities.sum())
        opens.append(is_open)
        result[f"{prefix}/{label}/probability"] = probabilities.mean()
        result[f"{prefix}/{label}/expected_size"] = sizes[-1]
        result[f"{prefix}/{label}/open"] = is_open
    result[f"{prefix}/expected_size"] = torch.stack(sizes).sum()
    result[f"{prefix}/open"] = torch.stack(opens).sum()
    result[f"{prefix}/cost"] = steps.cost().detach()
    result[f"{prefix}/skipped"] = torch.tensor(float(steps.counts.skipped))
    if steps.val_loss is not None:
        result[f"{prefix}/val_loss"] = steps.val_loss
    return result


def publish(trainer: Trainer, steps: GateSteps) -> None:
    """Let other callbacks watch and report the numbers."""
    trainer.callback_metrics.update(metrics(steps))


def log(trainer: Trainer, steps: GateSteps) -> None:
    """Tell the loggers, if it is their turn."""
    if trainer.loggers and (trainer._logger_connector.should_update_logs or getattr(trainer, "fast_dev_run", False)):
        values = {name: float(value) for name, value in metrics(steps).items()}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for destination in trainer.loggers:
            destination.log_metrics(values, step=step)
