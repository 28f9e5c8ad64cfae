"""What a surrogate has to know of the columns of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sthyper.encoding import SpaceEncoder

__all__ = ["InputStructure"]


@dataclass(frozen=True)
class InputStructure:
    """How the d columns of the inputs belong together.

    Args:
        names: Name of each hyperparameter, p of them.
        groups: For each column the position of its hyperparameter.
        categorical: For each hyperparameter whether its values have no order.
        task: Position of the hyperparameter that tells the task in transfer learning, ``None`` if there is none.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    categorical: tuple[bool, ...]
    task: int | None = None

    @classmethod
    def of_space(cls, encoder: SpaceEncoder, task: str | None = None) -> InputStructure:
        """Return the structure of encoded configurations.

        Args:
            encoder: The encoder.
            task: Name of the hyperparameter that tells the task.
        """
        from sthyper.config_space import Categorical, Ordinal

        names = encoder.internal_keys
        groups: list[int] = []
        for position, name in enumerate(names):
            start, stop = encoder.encoded_ranges[name]
            groups += [position] * (stop - start)
        domains = [encoder.config_space[name] for name in names]
        categorical = tuple(isinstance(d, Categorical) and not isinstance(d, Ordinal) for d in domains)
        return cls(tuple(names), tuple(groups), categorical, None if task is None else names.index(task))

    @classmethod
    def plain(cls, d: int, names: Sequence[str] | None = None) -> InputStructure:
        """Return that of d numbers, one column each."""
        return cls(tuple(names or (f"x{i}" for i in range(d))), tuple(range(d)), (False,) * d)

    @property
    def dim(self) -> int:
        """Number d of columns."""
        return len(self.groups)

    def numeric_columns(self) -> list[int]:
        """Return the columns whose values have an order."""
        return [column for column, group in enumerate(self.groups) if not self.categorical[group]]

    def columns(self, group: int) -> list[int]:
        """Return the columns of a hyperparameter."""
        return [column for column, other in enumerate(self.groups) if other == group]
