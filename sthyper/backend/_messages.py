"""What the channel tells of the trials that are connected to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ChannelMessage", "ClientBye", "ClientGone", "ClientHello", "ClientLoaded", "ClientReport"]


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A process of a trial has connected, for the first time or again."""

    trial_id: int
    run: int
    client: str


@dataclass(frozen=True, slots=True)
class ClientReport:
    """A report that waits for an answer."""

    trial_id: int
    run: int
    client: str
    seq: int
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClientBye:
    """A process announced its end; ``rank`` as in :class:`ClientGone`."""

    trial_id: int
    run: int
    client: str
    ok: bool
    reason: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A connection was closed.

    Args:
        trial_id: The trial.
        run: Number of its run.
        client: The process.
        rank: Its rank, ``None`` if it has not said that it is one.
        said_bye: Whether it had announced its end.
        failed: Whether it had announced a failure.
        world_size: Number of ranks.
    """

    trial_id: int
    run: int
    client: str
    rank: int | None
    said_bye: bool
    failed: bool = False
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class ClientLoaded:
    """Packages that a trial's process had loaded at its end."""

    trial_id: int
    packages: tuple[str, ...]


ChannelMessage = ClientHello | ClientReport | ClientBye | ClientGone | ClientLoaded
