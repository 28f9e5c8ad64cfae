"""What the hyperparameters are for one batch: at their centre, or perturbed around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Perturbation"]


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The hyperparameters of one batch, for each of ``G`` groups of its examples.

    Groups are contiguous chunks of the batch whose sizes differ by one at most. In tensors without groups every example
    is its own group.

    Args:
        kind: ``"centred"`` or ``"perturbed"``.
        raw: Unconstrained values (``G x H``).
        inputs: What responses of kind ``"stn"`` see (``G x H``).
        delta: How far that is from the centre, which is a constant (``G x H``): what responses of kind ``"delta"`` see.
        batch_size: Number of examples, ``None`` if any number is alike.
        tracks: Whether gradients or tangents with respect to the hyperparameters are wanted, so that responses count
            even where ``delta`` is zero.
        linearised: Whether a forward-mode derivative runs through ``delta``, which is zero itself.
        choices: Samples of gates and choices by name, for each example or for all; those left out are the most
            probable ones.
    """

    kind: Literal["centred", "perturbed"]
    raw: Tensor
    inputs: Tensor
    delta: Tensor
    batch_size: int | None = None
    tracks: bool = False
    linearised: bool = False
    choices: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_groups(self) -> int:
        """The number of groups ``G``."""
        return self.delta.shape[0]

    def sizes(self) -> list[int]:
        """Return the number of examples of each group.

        Raises:
            ValueError: If the size of the batch is not known.
        """
        if self.batch_size is None:
            raise ValueError("hyperparameters at their centre suit batches of any size, so that groups have none")
        small, more = divmod(self.batch_size, self.n_groups)
        return [small + 1] * more + [small] * (self.n_groups - more)

    def expand(self, per_group: Tensor) -> Tensor:
        """Return what each example has, from what each group has.

        Args:
            per_group: A tensor of ``G x ...``.

        Returns:
            A tensor of ``batch x ...``; the same if the size of the batch is not known and there is one group.
        """
        if self.batch_size is None or self.n_groups == self.batch_size:
            return per_group
        small, more = divmod(self.batch_size, self.n_groups)
        if not more:
            return per_group.repeat_interleave(small, dim=0, output_size=self.batch_size)
        repeats = torch.tensor(self.sizes(), device=per_group.device)
        return per_group.repeat_interleave(repeats, dim=0, output_size=self.batch_size)

    def along(self, delta: Tensor) -> Perturbation:
        """Return the same at another ``delta``, for a derivative along the perturbation.

        The strengths of regularisers stay those of this perturbation.

        Args:
            delta: A dual tensor whose primal is zero (``G x H``).
        """
        return replace(self, delta=delta, tracks=True, linearised=True)
