"""What gates and categorical choices have in common: a generator, a temperature, a fixed sample, their state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sthyper.errors import closest
from sthyper.straight_through.family import same_device
from sthyper.straight_through.schedules import TemperatureSchedule, check_temperature, temperature_schedule

__all__ = ["Evaluation", "SampledModule", "check_bool", "check_option", "in_backward", "weighted"]

Evaluation = Literal["threshold", "sample", "expected"]


def check_option(argument: str, value: object, allowed: Iterable[str]) -> None:
    """Raise for a value that is not among the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{argument} must be one of {names}; it is {value!r}{closest(value, names)}")


def check_bool(argument: str, value: object) -> None:
    """Raise for a value that is not ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False; it is {value!r}")


def weighted(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x * weight`` where nothing passes at a weight of 0, NaN and infinity neither.

    Args:
        x: Values of any shape.
        weight: Of the same dtype, and of a shape that broadcasts with it; it gets the gradient of the product, save
            from values that are not finite and have a weight of 0.
    """
    return torch.where((weight == 0) & ~x.isfinite(), 0, x) * weight


def in_backward() -> bool:
    """Return whether autograd runs now, as it does where activation checkpointing computes something again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class SampledModule(nn.Module):
    """A module that draws from trained logits.

    Args:
        estimator: Name of the estimator.
        relaxed: The estimators that have a temperature.
        temperature: Temperature, or a schedule of it over a run; ``None`` for the default of 2/3.
        evaluation: What counts in evaluation mode.
        seed: Seed of a generator of its own; ``None`` for torch's.
        name: What messages call it.
    """

    logits: nn.Parameter

    def __init__(
        self,
        estimator: str,
        relaxed: tuple[str, ...],
        temperature: float | TemperatureSchedule | None,
        evaluation: Evaluation,
        seed: int | None,
        name: str | None,
    ) -> None:
        super().__init__()
        check_option("evaluation", evaluation, get_args(Evaluation))
        if temperature is not None and estimator not in relaxed:
            raise ValueError(f"temperature is for the estimators {list(relaxed)}; estimator {estimator!r} has none")
        self.estimator = estimator
        self.evaluation = evaluation
        self.seed = seed
        self.name = name
        self._schedule = temperature_schedule(2 / 3 if temperature is None else temperature)
        self._progress = 0.0
        self._fixed: Tensor | None = None
        self._generator: torch.Generator | None = None
        self._restored: tuple[str, bytes] | None = None
        for progress in (0.0, 1.0):
            check_temperature(self._schedule(progress))

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return check_temperature(self._schedule(self._progress))

    @property
    def progress(self) -> float:
        """How much of the run is over, from 0 to 1."""
        return self._progress

    def set_progress(self, progress: float) -> None:
        """Say how much of the run is over, which moves a scheduled temperature.

        Args:
            progress: From 0 to 1.

        Raises:
            ValueError: If it lies outside.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be from 0 to 1; it is {progress!r}")
        self._progress = float(progress)

    @contextmanager
    def fixed(self, sample: Tensor) -> Iterator[None]:
        """Let a given sample count for a while, in training and evaluation: for estimators of two evaluations.

        Args:
            sample: What :meth:`sample` is to return, of the shape of the logits or with a batch axis before it, with
                or without gradients.

        Raises:
            TypeError: If it is no tensor.
            ValueError: If it has another shape.
        """
        if not isinstance(sample, Tensor):
            raise TypeError(f"{self._called()}: sample must be a tensor; it is {type(sample).__name__}")
        shape = tuple(self.logits.shape)
        if tuple(sample.shape[max(sample.dim() - len(shape), 0) :]) != shape or sample.dim() > len(shape) + 1:
            raise ValueError(
                f"{self._called()}: sample must have the shape {shape}, or that with a batch axis before it; it has "
                f"{tuple(sample.shape)}"
            )
        before, self._fixed = self._fixed, sample
        try:
            yield
        finally:
            self._fixed = before

    def reseed(self, seed: int | None) -> None:
        """Let the draws begin anew, for example with another seed on each rank.

        Args:
            seed: Seed of a generator of its own; ``None`` for torch's.
        """
        self.seed, self._generator, self._restored = seed, None, None

    def generator(self) -> torch.Generator | None:
        """Return the generator of draws on the device of the logits, ``None`` for torch's own.

        Raises:
            RuntimeError: If there is one and autograd runs: activation checkpointing computes something again, which
                would see another sample.
        """
        if self.seed is not None and in_backward():
            raise RuntimeError(
                f"{self._called()} is run again by activation checkpointing, where its generator would draw another "
                "sample: leave it out of torch.utils.checkpoint, or say seed=None for torch's generator, whose state "
                "checkpointing keeps"
            )
        return self._own_generator()

    def _own_generator(self) -> torch.Generator | None:
        if self.seed is None:
            return None
        device, before = self.logits.device, self._generator
        if before is None or not same_device(before.device, device):
            self._generator = torch.Generator(device).manual_seed(self.seed)
            if before is not None and before.device.type == device.type:  # another GPU
                self._generator.set_state(before.get_state())
            elif self._restored is not None and self._restored[0] == device.type:
                self._generator.set_state(torch.tensor(list(self._restored[1]), dtype=torch.uint8))
            self._restored = None
        return self._generator

    def get_extra_state(self) -> dict[str, Any]:
        """Return the progress and the state of the generator, for ``state_dict()``."""
        if self.logits.device.type != "meta":
            self._own_generator()  # so that a state from before the first draw says where draws begin
        state = self._generator_state()
        generator = None if state is None else (state[0], torch.tensor(list(state[1]), dtype=torch.uint8))
        return {"progress": self._progress, "generator": generator}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the progress and the generator; the latter only on a device of the same type."""
        self._progress = float(state["progress"])
        if self.seed is not None and state["generator"] is not None:
            device, content = state["generator"]
            # The module may be moved to that device only later.
            self._generator, self._restored = None, (str(device), bytes(content.tolist()))

    def _generator_state(self) -> tuple[str, bytes] | None:
        if self._generator is None:
            return self._restored
        return self._generator.device.type, bytes(self._generator.get_state().tolist())

    def __getstate__(self) -> dict[str, Any]:
        # Generators of a device can be neither copied nor sent to a spawned process.
        return {**self.__dict__, "_generator": None, "_restored": self._generator_state()}

    def _called(self) -> str:
        return type(self).__name__.lower() + ("" if self.name is None else f" {self.name!r}")
