"""What several processes, and the optimiser of the user, must know about parameters that a callback trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = [
    "add_to_optimizer",
    "copy_from_rank_zero",
    "keep_out_of_reducer",
    "mean_over_ranks",
    "take_out_of_optimizers",
]


def mean_over_ranks(trainer: Trainer, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the means over all ranks, bitwise the same on each; to be called on all of them."""
    if trainer.world_size == 1:
        return list(tensors)
    flat = trainer.strategy.reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


@torch.no_grad()
def copy_from_rank_zero(trainer: Trainer, parameters: Iterable[nn.Parameter]) -> None:
    """Give all ranks the parameters of rank 0, as DDP does with those that it knows."""
    if trainer.world_size == 1:
        return
    parameters = list(parameters)
    values = trainer.strategy.broadcast([parameter.detach().cpu() for parameter in parameters])
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def keep_out_of_reducer(trainer: Trainer, module: LightningModule, parameters: Iterable[nn.Parameter]) -> None:
    """Let DDP, which is to be wrapped around a module, leave parameters alone."""
    if not isinstance(trainer.strategy, DDPStrategy):
        return
    ids = {id(parameter) for parameter in parameters}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in ids}
    names |= set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, sorted(names))


def take_out_of_optimizers(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Remove parameters from the groups of optimisers that have not made a step."""
    ids = {id(parameter) for parameter in parameters}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            stay = [id(parameter) not in ids for parameter in group["params"]]
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [entry for entry, stays in zip(group[key], stay, strict=True) if stays]


def add_to_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Add parameters that no group of an optimiser holds to its first group."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in parameters if id(parameter) not in known]
    group = optimizer.param_groups[0]
    group["params"].extend(missing)
    if "param_names" in group:
        group["param_names"].extend(f"selftuning.{len(known) + i}" for i in range(len(missing)))
