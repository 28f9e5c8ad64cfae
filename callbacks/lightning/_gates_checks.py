"""What must fit together before a training with gates starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from sthyper.callbacks.lightning._gates_options import GateOptions
from sthyper.callbacks.lightning._gates_sites import GateSet, Site
from sthyper.callbacks.lightning._gates_steps import NAME

__all__ = ["check_fit", "check_gates", "check_sites"]


def check_fit(trainer: Trainer, module: LightningModule, val_dataloader: Any) -> None:
    """Raise a ValueError for a training in which gates cannot be trained.

    Args:
        trainer: In the ``setup`` hook of a ``fit``.
        module: What is trained.
        val_dataloader: The argument of the callback.
    """
    if getattr(module, "_compiler_ctx", None) is not None:
        raise ValueError(f"{NAME} does not support compiled modules; pass the module itself, not torch.compile(module)")
    if val_dataloader is None:
        return
    for step in ("training_step", "validation_step"):
        if is_param_in_hook_signature(getattr(module, step), "dataloader_iter", explicit=True):
            raise ValueError(f"{NAME} with val_dataloader needs {step}(batch, batch_idx), not one of a dataloader_iter")
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if isinstance(val_dataloader, str) and (not source.is_defined() or trainer.limit_val_batches == 0):
        why = "limit_val_batches=0" if source.is_defined() else "no val_dataloader"
        raise ValueError(
            f"{NAME}: val_dataloader='val', but the Trainer has no validation data ({why}). Pass trainer.fit(..., "
            f"val_dataloaders=...), a datamodule with val_dataloader, or {NAME}(..., val_dataloader=...)"
        )


def check_sites(trainer: Trainer, module: LightningModule, sites: list[Site], options: GateOptions) -> None:
    """Raise a ValueError for a module that cannot have these gates.

    Args:
        trainer: The Trainer.
        module: The module.
        sites: Where gates belong.
        options: How they are trained.
    """
    other = getattr(module, options.attribute, None)
    if other is not None and not isinstance(other, GateSet):
        raise ValueError(
            f"{NAME}: {type(module).__name__} has an attribute {options.attribute!r} already ({type(other).__name__}); "
            f"give the gates another place, attribute={f'tuned_{options.attribute}'!r}"
        )
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        for site in sites:
            if isinstance(module.get_submodule(site.path), nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"{NAME}: Trainer(sync_batchnorm=True) replaces {site.path!r}, and its gate would be lost; put a "
                    "module around it"
                )
    for target, size in options.target_size.items():
        n = sum(1 if site.size is None else site.size for site in sites if site.target == target)
        if isinstance(size, int) and size > n:
            raise ValueError(f"target_size of {target!r} must be at most the number of its gates, {n}; got {size}")


def check_gates(found: GateSet, sites: list[Site], options: GateOptions) -> None:
    """Raise a ValueError unless the gates that a module has already are those of this callback.

    Args:
        found: The gates.
        sites: Where gates belong.
        options: What they should be like.
    """
    if found.sites != sites:
        raise ValueError(
            f"{NAME}: the module has other gates already, of {[*found.named()]}; give the same targets, fit a plain "
            "module, or export it first"
        )
    if found.settings != options.settings:
        raise ValueError(
            f"{NAME}: the module has gates already, with {found.settings}; these are {options.settings}. Give the "
            "same, or fit a plain module"
        )
