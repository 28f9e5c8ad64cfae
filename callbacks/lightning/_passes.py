"""Steps of a LightningModule that are run once more, without a trace, for updates beside those of Lightning."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from sthyper.selftuning._batches import preserved_random_state

__all__ = ["SkippedStep", "run_step", "seed_all", "undisturbed", "validating"]

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
_NOT_COPIED = ("_parameters", "_buffers", "_modules")


class SkippedStep(Exception):
    """A step returned no loss, which tells Lightning to pass over the batch."""


def run_step(module: LightningModule, name: str, batch: Any, batch_idx: int) -> Any:
    """Call ``training_step`` or ``validation_step`` as Lightning does, and return what it returns."""
    step = getattr(module, name)
    arguments = [batch]
    if is_param_in_hook_signature(step, "batch_idx", min_args=2):
        arguments.append(batch_idx)
    return step(*arguments)


@contextmanager
def undisturbed(trainer: Trainer, module: LightningModule, seed: int) -> Iterator[dict[str, Any]]:
    """Let steps of a module leave nothing behind.

    Logging is muted. Metrics, buffers, running statistics, what the module itself holds beside its layers (numbers,
    tensors, lists), and the global random generators are afterwards as they were before.

    Args:
        trainer: The Trainer.
        module: The module.
        seed: Seed of the global generators within.

    Yields:
        What is logged meanwhile, by name.
    """
    logged: dict[str, Any] = {}
    loggers = trainer.loggers
    with preserved_random_state(), _kept(module):
        _mute(module, logged)
        trainer.loggers = [DummyLogger() for _ in loggers]
        seed_all(seed)
        try:
            yield logged
        finally:
            trainer.loggers = loggers


@contextmanager
def validating(trainer: Trainer) -> Iterator[None]:
    """Let the Trainer be in validation for a while, for what hooks of the user ask it."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():  # seeds that wait for the first use of a GPU stay
        cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the user's code may draw from it)


def _mute(module: LightningModule, logged: dict[str, Any]) -> None:
    def log(name: str, value: Any, *_: Any, **__: Any) -> None:
        logged[name] = value

    def log_dict(dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:
        logged.update(dictionary)

    def print_nothing(*_: Any, **__: Any) -> None:
        pass

    for part in module.modules():
        if isinstance(part, LightningModule):
            # Instance attributes, which _kept takes away again.
            vars(part).update(log=log, log_dict=log_dict, print=print_nothing)


@contextmanager
def _kept(module: LightningModule) -> Iterator[None]:
    """Let passes work on copies of everything that steps change besides parameters."""
    memo: dict[int, Any] = {}
    buffers = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    owners = [part for part in module.modules() if isinstance(part, LightningModule | Metric | MetricCollection)]
    owners += _loose_metrics(module, owners)
    attributes = [(owner, dict(vars(owner))) for owner in owners]
    for part, originals in buffers:
        for name, buffer in originals.items():
            part._buffers[name] = _copy(buffer, memo)
    for owner, originals in attributes:
        for name, value in originals.items():
            if name not in _NOT_COPIED:
                vars(owner)[name] = _copy(value, memo)
    try:
        yield
    finally:
        for owner, originals in attributes:
            vars(owner).clear()
            vars(owner).update(originals)
        for part, originals in buffers:
            part._buffers.clear()
            part._buffers.update(originals)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of a tensor, or of a container of references; metrics of a collection may share theirs."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    if type(value) in _CONTAINERS:
        if id(value) not in memo:
            memo[id(value)] = copy.copy(value)
        return memo[id(value)]
    return value


def _loose_metrics(module: LightningModule, known: list[Any]) -> list[Any]:
    """Return metrics in lists and dictionaries of the module, which are not registered with it."""
    found: dict[int, Any] = {}
    for value in vars(module).values():
        items = value.values() if type(value) in (dict, OrderedDict) else value if type(value) in (list, tuple) else ()
        found.update({id(item): item for item in items if isinstance(item, Metric)})
    return [metric for key, metric in found.items() if all(key != id(other) for other in known)]
