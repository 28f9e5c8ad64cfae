"""Finds out at the first save, not at the first resume, that a checkpoint cannot be loaded again."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["find_unloadable"]

_HPARAMS = ("hyper_parameters", "datamodule_hyper_parameters")


def find_unloadable(path: Path, content: Mapping[str, Any]) -> str | None:
    """Load a checkpoint as a resumed trial will, and say what is in the way.

    Args:
        path: The checkpoint. A folder, as sharded strategies write it, is not looked into.
        content: What was saved.

    Returns:
        ``None`` if it loads with ``weights_only=True``; else a message that names the first key whose value does not.
    """
    if path.is_dir():
        return None
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        return None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
    keys = _first_bad(content)
    if not keys:
        return f"the checkpoint cannot be loaded with torch.load(weights_only=True): {reason}"
    value: Any = content
    for key in keys:
        value = value[key]
    name = keys[0] + "".join(f"[{key!r}]" for key in keys[1:])
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    advice = "keep to tensors, numbers, strings, lists and dictionaries of these"
    if keys[0] in _HPARAMS:
        advice = f"leave it out by self.save_hyperparameters(ignore=[{keys[-1]!r}]), or {advice}"
    return (
        f"{name} of the checkpoint is of type {kind}, which torch.load(weights_only=True) does not load, so that a "
        f"paused trial could not be resumed; {advice}"
    )


def _first_bad(value: Mapping[str, Any]) -> list[Any]:
    """Return the keys that lead to the first value that does not load."""
    for key, inner in value.items():
        if not _loads(inner):
            return [key, *_first_bad(inner)] if isinstance(inner, dict) else [key]
    return []


def _loads(value: Any) -> bool:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True
