"""Batches of a loader, so that a run can go on in the middle of an epoch, and the random states that takes."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "LEAST_PART",
    "SMALL_BATCH",
    "BatchStream",
    "check_loader",
    "first_size",
    "number_of_batches",
    "pair",
    "part_of_batch",
    "preserved_random_state",
    "random_state",
    "set_random_state",
    "to_device",
]

LEAST_PART = 32
"""Fewest examples of a part of a batch: statistics of fewer say little."""
SMALL_BATCH = 64
"""Batches of up to so many examples are taken whole: a part costs hardly less."""

_GOLDEN = (5**0.5 - 1) / 2


class BatchStream:
    """Gives batches one by one and knows where it is.

    After :meth:`load_state_dict` the pass begins anew with the random states that it had, and runs through the batches
    that were taken.

    Args:
        loader: Any iterable of batches that can be iterated again.
        name: Its argument, for messages.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self.loader = loader
        self.name = name
        self.passes = 0
        self.taken = 0
        self._began: dict[str, Any] | None = None
        self._iterator: Iterator[Any] | None = None

    def next_or_none(self) -> Any:
        """Return the next batch, or ``None`` at the end of a pass.

        Raises:
            ValueError: If a pass has no batch.
        """
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            if not self.taken:
                raise ValueError(f"{self.name} gives no batches") from None
            self.passes += 1
            self.taken, self._began, self._iterator = 0, None, None
            return None
        self.taken += 1
        return batch

    def next(self) -> Any:
        """Return the next batch; after the last one comes the first one of a new pass."""
        batch = self.next_or_none()
        return self.next_or_none() if batch is None else batch

    def _begin(self) -> None:
        if self._began is None:
            self._began = random_state(self.loader)
            self._iterator = iter(self.loader)
            return
        # A resumed pass.
        with preserved_random_state():
            set_random_state(self._began, self.loader)
            self._iterator = iter(self.loader)
            for _ in range(self.taken):
                next(self._iterator)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is."""
        return {"passes": self.passes, "taken": self.taken, "began": self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another stream was."""
        self.passes, self.taken, self._began = int(state["passes"]), int(state["taken"]), state["began"]
        self._iterator = None


def check_loader(loader: Any, name: str, whole_batch: bool) -> None:
    """Raise an error unless a loader can give batches.

    Args:
        loader: The loader.
        name: Its argument.
        whole_batch: Whether there must be one full batch.

    Raises:
        TypeError: If it is no iterable, or can be iterated once only.
        ValueError: If it has no batch, or less than one.
    """
    if loader is None:
        raise ValueError(f"{name} is missing: hyperparameters are tuned on data that the weights do not see")
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
        raise TypeError(f"{name} must be a DataLoader or a collection of batches, got {loader!r}")
    try:
        n_batches = len(loader)  # type: ignore[arg-type]
    except TypeError:
        return
    dataset: Any = getattr(loader, "dataset", None)
    batch_size: Any = getattr(loader, "batch_size", None)
    try:
        n_examples = None if dataset is None or batch_size is None else len(dataset)
    except TypeError:
        n_examples = None
    if n_examples is not None and n_examples < batch_size and (whole_batch or not n_batches):
        raise ValueError(
            f"{name} has {n_examples} examples, which is less than a batch of {batch_size}; give it more data or a "
            "smaller batch_size"
        )
    if not n_batches:
        raise ValueError(f"{name} gives no batches")


def number_of_batches(loader: Iterable[Any]) -> int | None:
    """Return how many batches a loader gives, ``None`` if it does not know."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except (TypeError, NotImplementedError):  # a DataLoader of an IterableDataset
        return None


def pair(batch: Any, name: str) -> tuple[Any, Any]:
    """Return inputs and targets of a batch.

    Raises:
        TypeError: If it is no pair.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise TypeError(f"batches of {name} must be (inputs, targets), got {what}")
    return batch[0], batch[1]


def part_of_batch(batch: Any, axis: int, size: int, part: float, turn: int) -> tuple[Any, int]:
    """Return some of the examples of a batch, and their number.

    Args:
        batch: Any tree of tensors.
        axis: Where they have their examples.
        size: Number of the examples.
        part: Which part of them, but at least 32; all of up to 64.
        turn: Counts the calls: other examples have their turn each time.

    Returns:
        The whole batch if its tensors do not all have ``size`` examples on that axis.
    """
    length = size if size <= SMALL_BATCH else max(LEAST_PART, round(part * size))
    leaves = tree_leaves(batch)
    alike = all(x.dim() > axis and x.shape[axis] == size for x in leaves if isinstance(x, Tensor))
    if length == size or not alike or not all(x is None or isinstance(x, Tensor | int | float) for x in leaves):
        return batch, size
    # Steps of the golden section: all places have their turn, whatever the sizes.
    start = int(turn * _GOLDEN % 1.0 * (size - length + 1))
    return tree_map_only(Tensor, lambda x: x.narrow(axis, start, length), batch), length


def to_device(batch: Any, device: torch.device) -> Any:
    """Return nested tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def first_size(batch: Any, axis: int) -> int:
    """Return the number of examples of inputs.

    Args:
        batch: Nested tensors.
        axis: Axis of the examples.

    Raises:
        TypeError: If there is no tensor in it.
    """
    sizes: list[int] = []
    tree_map_only(Tensor, lambda tensor: sizes.append(tensor.shape[axis]), batch)
    if not sizes:
        raise TypeError(
            f"inputs must hold a tensor, so that the number of examples is known; got {type(batch).__name__}"
        )
    return sizes[0]


# ---- random states -----------------------------------------------------------------------------------------


def _generators(loader: Any) -> list[torch.Generator]:
    """Return the generators of a loader, each once."""
    places = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    places.append(getattr(places[-1], "sampler", None))
    found: list[torch.Generator] = []
    for place in places:
        generator = getattr(place, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
            found.append(generator)
    return found


def random_state(*loaders: Any) -> dict[str, Any]:
    """Return the states of the random generators of torch, NumPy, Python and loaders, to be loaded safely."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "loaders": [[generator.get_state() for generator in _generators(loader)] for loader in loaders],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [str(kind), keys.tolist(), *(float(x) if isinstance(x, float) else int(x) for x in rest)]
    return state


def set_random_state(state: Mapping[str, Any], *loaders: Any) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    for loader, saved in zip(loaders, state["loaders"], strict=False):
        for generator, one in zip(_generators(loader), saved, strict=False):
            generator.set_state(one.cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(tuple(state["numpy"]))


@contextmanager
def preserved_random_state(*loaders: Any) -> Iterator[None]:
    """Leave random generators as they are: what is drawn within changes nothing outside.

    Args:
        *loaders: Loaders whose own generators count too.
    """
    state = random_state(*loaders)
    try:
        yield
    finally:
        set_random_state(state, *loaders)
