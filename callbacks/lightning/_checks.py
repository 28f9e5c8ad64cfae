"""What must fit together before a training starts: callback, Trainer and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn

from sthyper.errors import closest

__all__ = ["check_choice", "check_objective", "check_strategy", "check_trainer", "warn_of_minimum"]

_SUPPORTED = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for an argument that is not one of the allowed values."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{closest(value, allowed)}"
        )


def check_trainer(trainer: object) -> None:
    """Raise ``TypeError`` for a Trainer of another package."""
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"TuneReportCallback belongs to a Trainer of lightning.pytorch, got one of {type(trainer).__module__}: "
            "the packages `lightning` and `pytorch_lightning` do not mix; write `import lightning.pytorch as pl`"
        )


def check_strategy(trainer: Trainer, checkpoint: bool) -> None:
    """Raise ``ValueError`` for a strategy under which the ranks could not agree, or checkpoints be saved.

    Args:
        trainer: The Trainer.
        checkpoint: Whether checkpoints are to be saved.
    """
    strategy = trainer.strategy
    # The ranks of XLAStrategy may be threads of one process, which has one connection to the tuner.
    if not isinstance(strategy, _SUPPORTED) or isinstance(strategy, XLAStrategy):
        raise ValueError(
            f"TuneReportCallback does not support the strategy {type(strategy).__name__}; there are: a single device, "
            "DDP ('ddp', 'ddp_fork', 'ddp_spawn', 'ddp_notebook', ...), FSDP, DeepSpeed, ModelParallelStrategy, and "
            "subclasses of these"
        )
    if checkpoint and isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        raise ValueError(
            "TuneReportCallback does not support the plugin AsyncCheckpointIO: a checkpoint must be complete before "
            "its epoch is reported. Leave the plugin out, or use TuneReportCallback(..., checkpoint=False)"
        )


def check_objective(objective: Mapping[str, Any] | None, sources: Mapping[str, str], resource_attr: str) -> None:
    """Raise ``ValueError`` if the scheduler's metric or resource would not be reported.

    Args:
        objective: What the scheduler wants, ``None`` if there is none.
        sources: Reported name -> logged name.
        resource_attr: Name under which the resource is reported.
    """
    if objective is None:
        return
    names = list(sources)
    if objective["metric"] not in names:
        raise ValueError(
            f"the scheduler's metric {objective['metric']!r} is not reported{closest(objective['metric'], names)}; "
            f"TuneReportCallback reports {', '.join(names)}: pass metrics={{{objective['metric']!r}: "
            f"{next(iter(sources.values()))!r}}}"
        )
    expected = objective.get("resource_attr")
    if expected is not None and expected != resource_attr:
        raise ValueError(
            f"the scheduler's resource_attr is {expected!r}, but TuneReportCallback reports "
            f"{resource_attr!r}: pass resource_attr={expected!r}"
        )


def warn_of_minimum(trainer: Trainer, objective: Mapping[str, Any] | None, every_n_epochs: int) -> None:
    """Warn of a Trainer that trains longer than the scheduler may want.

    Args:
        trainer: The Trainer.
        objective: What the scheduler wants, ``None`` if there is none.
        every_n_epochs: When it is asked first.
    """
    if objective is None or objective.get("resource_attr") is None:
        return
    late = trainer.min_epochs is not None and trainer.min_epochs > every_n_epochs
    if late or trainer.min_steps is not None:
        limit = f"min_epochs={trainer.min_epochs}" if late else f"min_steps={trainer.min_steps}"
        rank_zero_warn(
            f"Trainer({limit}) keeps a trial training that the scheduler stops or pauses before; leave it out in a "
            "script that is tuned"
        )
