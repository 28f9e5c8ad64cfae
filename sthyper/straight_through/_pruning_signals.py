"""Channels of a network as slots: which belong together, which are constant, which must stay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Signal", "Slots"]


@dataclass(frozen=True)
class Signal:
    """What is known about the channels of a tensor.

    Args:
        slots: The slot of each channel (``n``).
        values: What each channel is at all positions, for all examples (``n``, float64), NaN where that varies.
        axis: Axis of the channels, counted from the end.
        ndim: Number of axes of the tensor.
        flattened: Whether each channel stands for neighbouring features of unknown number.
    """

    slots: Tensor
    values: Tensor
    axis: int
    ndim: int
    flattened: bool = False

    def __len__(self) -> int:
        return len(self.slots)

    def repeated(self, n: int) -> Signal:
        """Return the signal with each channel ``n`` times in a row."""
        return replace(
            self, slots=self.slots.repeat_interleave(n), values=self.values.repeat_interleave(n), flattened=False
        )

    def with_size(self, n: int) -> Signal | None:
        """Return the signal with ``n`` channels, ``None`` if it has another number of them."""
        if not self.flattened:
            return self if len(self) == n else None
        return None if n % len(self) else self.repeated(n // len(self))


@dataclass
class Slots:
    """Places of channels. Those that can only be removed together are tied.

    Args:
        blocked: Slots that must stay -> why.
        closed: Slots that are closed.
    """

    blocked: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)

    def new(self, n: int) -> Tensor:
        """Return ``n`` new slots."""
        first = len(self._parents)
        self._parents.extend(range(first, first + n))
        return torch.arange(first, first + n)

    def root(self, slot: int) -> int:
        """Return the representative of all that are tied to a slot."""
        parents = self._parents
        while parents[slot] != slot:
            parents[slot] = parents[parents[slot]]
            slot = parents[slot]
        return slot

    def roots(self, slots: Tensor) -> list[int]:
        """Return the representatives of some slots."""
        return [self.root(slot) for slot in slots.tolist()]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Tie slots pairwise."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            self._parents[self.root(i)] = self.root(j)

    def block(self, slots: Tensor, reason: str) -> None:
        """Let slots stay."""
        for slot in slots.tolist():
            self.blocked.setdefault(slot, reason)

    def free_classes(self) -> dict[int, str | None]:
        """Return the representatives of all that is closed -> why it must stay, ``None`` if it can go."""
        reasons = {self.root(slot): reason for slot, reason in self.blocked.items()}
        return {root: reasons.get(root) for root in sorted({self.root(slot) for slot in self.closed})}
