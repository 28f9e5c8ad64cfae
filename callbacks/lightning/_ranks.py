"""Agreement between the ranks of a trial by strategy-neutral calls: no torch.distributed, no barrier alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer

from sthyper.report import TrialExit

__all__ = ["gather", "on_rank_zero"]


def on_rank_zero(trainer: Trainer, function: Callable[[], Any]) -> Any:
    """Return on all ranks what ``function`` returns on rank 0, or raise what it raises there."""
    result: tuple[Any, BaseException | None] = (None, None)
    if trainer.is_global_zero:
        try:
            result = (function(), None)
        except (Exception, TrialExit) as error:
            result = (None, error)
    value, failure = trainer.strategy.broadcast(result)
    if failure is not None:
        raise failure
    return value


def gather(trainer: Trainer, own: Any) -> list[Any]:
    """Return the objects of all ranks, on all ranks."""
    return [trainer.strategy.broadcast(own, src=rank) for rank in range(trainer.world_size)]
