"""Operations of which one is chosen by a hyperparameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sthyper.errors import closest
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.straight_through.choices import Choice

__all__ = ["OneOf"]


class OneOf(nn.Module):
    """One of several modules, as a choice among the hyperparameters says.

    While the choice is sampled all modules run and each example gets the output of its own; else the most probable one
    runs alone. :func:`~sthyper.selftuning.export` puts that in its place.

    Example:
        >>> import torch
        >>> from sthyper.config_space import choice
        >>> hyperparameters = Hyperparameters({"act": choice(["relu", "tanh"])}, start={"act": "tanh"})
        >>> activation = OneOf(hyperparameters, "act", {"relu": nn.ReLU(), "tanh": nn.Tanh()})
        >>> activation(torch.zeros(3))
        tensor([0., 0., 0.])

    Args:
        hyperparameters: Where the choice is. They are not registered here.
        name: The name that it has there.
        operations: The modules, in the order of the options, or by option. Their outputs have the same shape, with the
            examples along the first axis.

    Attributes:
        hyperparameters: Where the choice is.
        name: The name that it has there.
        operations: The modules, in the order of the options.

    Raises:
        TypeError: If ``hyperparameters`` is something else.
        ValueError: If there is no choice of this name, or the operations are not one for each option.
    """

    hyperparameters: Hyperparameters

    def __init__(
        self, hyperparameters: Hyperparameters, name: str, operations: Mapping[Any, nn.Module] | Iterable[nn.Module]
    ) -> None:
        super().__init__()
        if not isinstance(hyperparameters, Hyperparameters):
            raise TypeError(f"hyperparameters must be Hyperparameters, got {hyperparameters!r}")
        discrete = hyperparameters.discrete
        known = [other for other, part in discrete.items() if isinstance(part, Choice)]
        if name not in known:
            raise ValueError(f"there is no choice {name!r}{closest(name, known)}; known are {known}")
        part = discrete[name]
        assert isinstance(part, Choice)
        if isinstance(operations, Mapping):
            for key in [*operations, *part.options]:
                if key not in part.options or key not in operations:
                    raise ValueError(
                        f"operations must be one for each of {list(part.options)}, got {list(operations)}: see {key!r}"
                    )
            operations = [operations[option] for option in part.options]
        self.operations = nn.ModuleList(operations)
        if len(self.operations) != len(part.options):
            raise ValueError(
                f"operations must be one for each of {list(part.options)}, got {len(self.operations)} of them"
            )
        # The state of the hyperparameters is in that of the model once.
        self.__dict__["hyperparameters"] = hyperparameters
        self.name = name

    def chosen(self) -> nn.Module:
        """Return the most probable module."""
        part = self.hyperparameters.discrete[self.name]
        assert isinstance(part, Choice)
        return self.operations[part.options.index(part.value())]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives that counts, for each example."""
        hyperparameters = self.hyperparameters
        if not hyperparameters.is_sampled(self.name):
            output: Tensor = self.chosen()(x)
            return output
        return hyperparameters.mix(self.name, [operation(x) for operation in self.operations])

    def extra_repr(self) -> str:
        return repr(self.name)
