"""What hyperparameters can be asked for their gates and choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sthyper.selftuning.discrete import DiscreteHyperparameters
from sthyper.selftuning.perturbation import Perturbation

__all__ = ["Choosing"]


class Choosing(nn.Module):
    """The part of :class:`~sthyper.selftuning.Hyperparameters` that is about gates and choices."""

    discrete: DiscreteHyperparameters
    _current: Perturbation | Literal["off"] | None
    _read: set[str]

    def weights(self, name: str) -> Tensor:
        """Return which options of a choice count (``batch x k``, or ``k`` for all examples): one of them has a 1.

        Raises:
            KeyError: If there is no choice of this name.
        """
        return self.discrete.weights(name, self._samples(name))

    def mix(self, name: str, outputs: Sequence[Tensor] | Tensor) -> Tensor:
        """Return what the option of a choice gives that counts, for each example.

        Example:
            >>> import torch
            >>> from sthyper.config_space import choice
            >>> from sthyper.selftuning import Hyperparameters
            >>> hyperparameters = Hyperparameters({"act": choice(["relu", "tanh"])}, start={"act": "relu"})
            >>> x = torch.tensor([-1.0, 2.0])
            >>> hyperparameters.mix("act", [x.relu(), x.tanh()])
            tensor([0., 2.])

        Args:
            name: The choice.
            outputs: What all options give: ``k`` tensors of the same shape, or one with the options along its first
                axis.

        Raises:
            KeyError: If there is no choice of this name.
            ValueError: If there are more or fewer than ``k``.
        """
        return self.discrete.mixed(name, outputs, self._samples(name))

    def choice(self, name: str) -> Any:
        """Return the value of a choice or gate that counts for the whole batch, in the terms of its domain.

        Nothing passes a gradient to it: read :meth:`weights` or :meth:`mix` operations, at least in validation.

        Raises:
            KeyError: If there is none of this name.
            ValueError: If each example has its own.
        """
        return self.discrete.option(name, self._samples(name))

    def is_sampled(self, name: str) -> bool:
        """Return whether the current context has a sample of a gate or choice; else the most probable value counts."""
        return name in self._samples(name)

    def _samples(self, name: str) -> Mapping[str, Tensor]:
        self._read.add(name)
        return self._current.choices if isinstance(self._current, Perturbation) else {}

    def probabilities(self) -> dict[str, Any]:
        """Return the probabilities of gates and choices by name, those of choices by option."""
        return self.discrete.probabilities()

    def set_progress(self, progress: float) -> None:
        """Say how much of the run is over (0 to 1), which moves temperatures of gates and choices."""
        self.discrete.set_progress(progress)
