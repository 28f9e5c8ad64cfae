"""A random order that is drawn one element at a time, of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LazyPermutation"]


class LazyPermutation:
    """The numbers 0, 1, ..., size - 1 in random order, all orders equally likely.

    This is the Fisher-Yates shuffle, carried out only as far as elements are taken: entries of the array that were
    not moved yet are not stored. So it takes memory for the elements taken, whatever the size.

    Args:
        size: How many numbers there are, at least 1; may exceed 64 bits.
        seed: Seed of the order.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.position = 0
        self._seed = seed
        self._generator: np.random.Generator | None = None
        self._moved: dict[int, int] = {}

    def __next__(self) -> int:
        """Return the next number.

        Raises:
            StopIteration: If all were taken.
        """
        here = self.position
        if here == self.size:
            raise StopIteration
        there = here + self._below(self.size - here)
        self.position += 1
        mine = self._moved.pop(here, here)
        if there == here:
            return mine
        taken = self._moved.get(there, there)
        self._moved[there] = mine
        return taken

    def skip_to(self, position: int) -> None:
        """Take numbers until ``position`` have been taken."""
        while self.position < position:
            next(self)

    def _below(self, n: int) -> int:
        """Return a random integer in [0, n), by rejection: numpy's own ``integers`` ends at 64 bits."""
        if self._generator is None:
            import numpy as np

            self._generator = np.random.Generator(np.random.PCG64(self._seed))
        bits = (n - 1).bit_length()
        n_bytes = (bits + 7) // 8
        while True:
            value = int.from_bytes(self._generator.bytes(n_bytes), "little") >> (8 * n_bytes - bits)
            if value < n:
                return value
