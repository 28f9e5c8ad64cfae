"""Brings what was tuned from ranks that Lightning forks or spawns to the process of the script."""

from __future__ import annotations

import io
import uuid
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from lightning.pytorch import Trainer

from sthyper.callbacks.lightning._ranks import is_forked_rank

__all__ = ["Deliverable", "deliver_to_main_process", "packed", "register", "unpacked"]


class Deliverable(Protocol):
    """A callback whose state is wanted in the process of the script."""

    def _parcel(self) -> bytes:
        """Return the state."""

    def _receive(self, parcel: bytes) -> None:
        """Take over the state that another process has packed."""


_callbacks: WeakValueDictionary[str, Deliverable] = WeakValueDictionary()


def register(callback: Deliverable) -> str:
    """Return a name by which this callback is known in its process, and in those that are forked from it."""
    name = uuid.uuid4().hex
    _callbacks[name] = callback
    return name


def packed(state: dict[str, Any]) -> bytes:
    """Return a state as bytes: tensors that are sent to other processes would share their memory."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(packet: bytes) -> dict[str, Any]:
    """Return what :func:`packed` got, on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(packet), map_location="cpu", weights_only=True)
    return state


class _Parcel:
    """Delivers a state to the callback of its name where it is unpickled."""

    def __init__(self, name: str, state: bytes) -> None:
        self.name = name
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        callback = _callbacks.get(self.name)
        if callback is not None:
            callback._receive(self.state)


def deliver_to_main_process(trainer: Trainer, name: str, callback: Deliverable) -> None:
    """Send the state of a callback along with that of the Trainer, which is the only thing that Lightning sends.

    Args:
        trainer: In the ``teardown`` hook of a ``fit``.
        name: What :func:`register` returned in the process of the script.
        callback: The callback of this rank.
    """
    if is_forked_rank(trainer):
        trainer.state.sthyper_parcel = _Parcel(name, callback._parcel())  # type: ignore[attr-defined]
