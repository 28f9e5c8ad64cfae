"""What must fit together before a self-tuning training starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.optim import LBFGS, Optimizer

from sthyper.selftuning.transform import SelfTuning

__all__ = [
    "NAME",
    "check_fit",
    "check_module",
    "check_optimizers",
    "check_trainer",
    "makes_layers_late",
    "self_tuning_part",
]

NAME = "SelfTuningCallback"
_OTHERS = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)


def check_trainer(trainer: object, name: str = NAME) -> None:
    """Raise an error for a Trainer under which nothing can be tuned by gradient.

    Args:
        trainer: In any ``setup`` hook.
        name: Name of the callback.

    Raises:
        TypeError: If it is of another package.
        ValueError: If its strategy or its precision is not supported.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"{name} belongs to a Trainer of lightning.pytorch, got one of {type(trainer).__module__}: the packages "
            "`lightning` and `pytorch_lightning` do not mix; write `import lightning.pytorch as pl`"
        )
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, _OTHERS):
        raise ValueError(
            f"{name} does not support the strategy {type(strategy).__name__}, which shards or moves parameters; there "
            "are: a single device, and DDP ('ddp', 'ddp_fork', 'ddp_spawn', 'ddp_notebook')"
        )
    if getattr(strategy, "_model_averaging_period", None) is not None:
        raise ValueError(f"{name} does not support DDPStrategy(model_averaging_period=...): ranks would differ")
    plugin = trainer.precision_plugin
    if type(plugin) not in (Precision, MixedPrecision, DoublePrecision):
        raise ValueError(
            f"{name} does not support precision={plugin.precision!r} ({type(plugin).__name__}): hyperparameters "
            "move by steps that are lost in 16 bits; there are '32-true', '64-true', 'bf16-mixed' and '16-mixed'"
        )


def check_fit(trainer: Trainer, module: LightningModule, has_own_data: bool) -> None:
    """Raise a ValueError for a training that cannot be self-tuned.

    Args:
        trainer: In the ``setup`` hook of a ``fit``.
        module: What is trained.
        has_own_data: Whether the callback was given validation data.
    """
    if not module.automatic_optimization:
        raise ValueError(
            f"{NAME} needs automatic optimization, {type(module).__name__} has automatic_optimization=False; with "
            "training steps of your own, use sthyper.selftuning.delta_stn_step and hyper_step in them"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{NAME} needs training_step(batch, batch_idx): batches of a dataloader_iter cannot be repeated"
        )
    if getattr(module, "_compiler_ctx", None) is not None:
        raise ValueError(f"{NAME} does not support compiled modules; pass the module itself, not torch.compile(module)")
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not has_own_data and (not source.is_defined() or trainer.limit_val_batches == 0):
        why = "limit_val_batches=0" if source.is_defined() else "no val_dataloader"
        raise ValueError(
            f"{NAME}: validation data is missing ({why}): hyperparameters are tuned on data that the weights do not "
            f"see. Pass trainer.fit(..., val_dataloaders=...), a datamodule with val_dataloader, or "
            f"{NAME}(..., val_dataloader=...)"
        )


def check_module(trainer: Trainer, module: LightningModule) -> None:
    """Raise a ValueError for layers that would lose their responses."""
    synchronised = getattr(trainer.strategy, "_layer_sync", None) is not None
    if synchronised and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        raise ValueError(f"{NAME} does not support Trainer(sync_batchnorm=True): SyncBatchNorm layers do not respond")


def check_optimizers(optimizers: list[Optimizer], name: str = NAME) -> None:
    """Raise a ValueError for optimisers of the user that evaluate the loss several times a step.

    Args:
        optimizers: The optimisers.
        name: Name of the callback.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS):
            raise ValueError(f"{name} does not support LBFGS; use a first-order optimiser in configure_optimizers")


def self_tuning_part(module: LightningModule) -> tuple[str, SelfTuning] | None:
    """Return what makes a module self-tuning, and its path; ``None`` if nothing does.

    Raises:
        ValueError: If there are several.
    """
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, SelfTuning)]
    if len(found) > 1:
        raise ValueError(f"{NAME}: several parts of the module are self-tuning: {[name for name, _ in found]}")
    return found[0] if found else None


def makes_layers_late(module: LightningModule) -> bool:
    """Whether a module may make layers in hooks after the ``setup`` of callbacks."""
    return any(_is_overridden(hook, module) for hook in ("setup", "configure_model", "configure_sharded_model"))


def _is_overridden(hook: str, module: Any) -> bool:
    return bool(is_overridden(hook, module))
