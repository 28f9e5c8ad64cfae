"""Brings the weights of a checkpoint into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sthyper.errors import closest

__all__ = ["load_model"]


def load_model(path: Path, model: Any, map_location: Any, init_args: Mapping[str, Any]) -> Any:
    """Return a model with the weights of a checkpoint; only plain containers and tensors are unpickled.

    Args:
        path: The checkpoint.
        model: A Lightning module class, or a module that gets the weights.
        map_location: Where the weights go; ``None`` for the CPU.
        init_args: Further arguments of a Lightning module class.

    Raises:
        TypeError: If ``model`` is neither, or a module comes with ``init_args``.
        ValueError: If the checkpoint is a folder or cannot be read, or no weights in it fit the module.
    """
    import torch

    where = "cpu" if map_location is None else map_location
    is_lightning = isinstance(model, type) and callable(getattr(model, "load_from_checkpoint", None))
    if not is_lightning and not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model must be a Lightning module class, or a torch module that gets the weights, got {model!r}"
        )
    if path.is_dir():
        raise ValueError(
            f"{path} is a sharded checkpoint; make one file of it first: "
            "python -m lightning.pytorch.utilities.consolidate_checkpoint"
        )
    if is_lightning:
        return model.load_from_checkpoint(path, map_location=where, weights_only=True, **init_args)
    if init_args:
        raise TypeError(f"arguments {list(init_args)} are for a Lightning module class; {type(model).__name__} is made")
    try:
        checkpoint = torch.load(path, map_location=where, weights_only=True)
    except Exception as error:  # pickle raises anything for what is none
        raise ValueError(
            f"{path} is no file of tensors and plain containers that torch.load(weights_only=True) can read "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    wanted = model.state_dict()
    dictionaries = list(_dictionaries(checkpoint))
    candidates = [state for state in dictionaries if set(state) == set(wanted)]
    for state in candidates:
        if all(_shape(state[name]) == _shape(value) for name, value in wanted.items()):
            model.load_state_dict(state)
            return model
    if candidates:
        name = next(n for n, value in wanted.items() if _shape(candidates[0][n]) != _shape(value))
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: {name!r} has shape {_shape(candidates[0][name])} there "
            f"and {_shape(wanted[name])} in the module; make it with the hyperparameters of best_config()"
        )
    example = next(iter(wanted), "")
    hint = closest(example, [name for state in dictionaries for name in state])
    raise ValueError(f"{path} has no weights with the names of {type(model).__name__}, such as {example!r}{hint}")


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, ``None`` for other entries of a state."""
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _dictionaries(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield all dictionaries in nested containers, outer ones first."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _dictionaries(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _dictionaries(item)
