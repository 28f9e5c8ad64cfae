"""States of random generators, so that a paused run goes on with the numbers that it would have drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

__all__ = ["capture_generators", "restore_generators"]


def capture_generators(trainer: Trainer) -> dict[str, Any]:
    """Return the states of this rank's generators, in types that load with ``weights_only=True``.

    They are the global ones of ``random``, NumPy, torch and, on a GPU, CUDA, and the ``generator`` of the loaders for
    training and validation and of their samplers. Others (of a dataset, say) are the user's to save.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "train": [g.get_state() for g in _generators(trainer.train_dataloader)],
        "val": [g.get_state() for g in _generators(trainer.val_dataloaders)],
    }
    device = trainer.strategy.root_device
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_generators(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put the generators of this rank into the states that :func:`capture_generators` returned."""
    random.setstate(_tuples(state["python"]))
    np.random.set_state(_numpy_arrays(state["numpy"]))  # noqa: NPY002 (the user's code may draw from it)
    # A checkpoint may have been loaded onto another device; generators want their states on the CPU.
    torch.set_rng_state(state["torch"].cpu())
    device = trainer.strategy.root_device
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    for loaders, states in ((trainer.train_dataloader, state["train"]), (trainer.val_dataloaders, state["val"])):
        for generator, its_state in zip(_generators(loaders), states, strict=False):
            generator.set_state(its_state.cpu())


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    inner = {name: value.tolist() if name == "key" else int(value) for name, value in state["state"].items()}
    return {
        "bit_generator": str(state["bit_generator"]),
        "state": inner,
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _numpy_arrays(state: dict[str, Any]) -> dict[str, Any]:
    inner = {name: np.asarray(v, dtype=np.uint32) if name == "key" else v for name, v in state["state"].items()}
    return {**state, "state": inner}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _generators(loaders: Any) -> list[torch.Generator]:
    """Return the generators of loaders and samplers in a fixed order, each once."""
    found: list[torch.Generator] = []
    for loader in _flatten(loaders):
        sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        for owner in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is g for g in found):
                found.append(generator)
    return found


def _flatten(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        for value in loaders.values():
            yield from _flatten(value)
    elif isinstance(loaders, Sequence):
        for value in loaders:
            yield from _flatten(value)
    elif loaders is not None:
        # CombinedLoader, whose loaders may be nested, lists them itself.
        flat = getattr(loaders, "flattened", None)
        yield from [loaders] if flat is None else flat
