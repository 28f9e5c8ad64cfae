"""What a model gets when it becomes self-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from operator import index
from typing import Any

from torch import nn

from sthyper.selftuning._response import Form, Kind
from sthyper.selftuning.hyperparameters import Hyperparameters

__all__ = ["SelfTuning", "SelfTuningSequential", "sequential_class"]


class SelfTuning(nn.Module):
    """What makes a model self-tuning; ``model.selftuning`` after :func:`~sthyper.selftuning.transform.self_tune`.

    Attributes:
        hyperparameters: The hyperparameters.
        responses: The :class:`~sthyper.selftuning.layers.Response` of each layer, at the layer's own path.
        kind: ``"delta"`` or ``"stn"``.
        groups: In how many groups training should cut a batch (``groups`` of ``Hyperparameters.draw``); ``None`` for a
            perturbation of each example.
        forms: Form of the response by layer, and by part of layers with several.
        untouched: Paths of modules whose own parameters have no response.
        dropouts: Names of the hyperparameters of swapped dropout layers, by path.
        freezes_statistics: Whether normalisations leave their running statistics alone; see
            :func:`~sthyper.selftuning.transform.frozen_statistics`.
    """

    def __init__(self, hyperparameters: Hyperparameters, kind: Kind, groups: int | None) -> None:
        super().__init__()
        self.hyperparameters = hyperparameters
        self.responses = nn.Module()
        self.kind: Kind = kind
        self.groups = groups
        self.forms: dict[str, Form] = {}
        self.untouched: tuple[str, ...] = ()
        self.dropouts: dict[str, str] = {}
        self.freezes_statistics = False

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, groups={self.groups}"


class _SkipsSelfTuning:
    """A sequence of layers, which ``selftuning`` is none of."""

    def _layers(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._modules.items() if name != "selftuning"}  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._layers().values())

    def __len__(self) -> int:
        return len(self._layers())

    def __getitem__(self, idx: Any) -> Any:
        layers = list(self._layers().values())
        return nn.Sequential(*layers[idx]) if isinstance(idx, slice) else layers[index(idx)]


class SelfTuningSequential(_SkipsSelfTuning, nn.Sequential):
    """A self-tuning :class:`torch.nn.Sequential`."""

    plain_class = nn.Sequential


_sequential: dict[type[nn.Module], type[Any]] = {nn.Sequential: SelfTuningSequential}


def sequential_class(plain: type[nn.Module]) -> type[Any]:
    """Return the class that a self-tuning sequence of a class gets."""
    if plain not in _sequential:
        _sequential[plain] = type(f"SelfTuning{plain.__name__}", (_SkipsSelfTuning, plain), {"plain_class": plain})
    return _sequential[plain]
