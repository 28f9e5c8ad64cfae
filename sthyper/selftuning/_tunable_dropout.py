"""Exchanges dropout layers for ones whose rate is a hyperparameter, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from sthyper.errors import closest
from sthyper.selftuning._selection import Selection, by_pattern, check_patterns
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.regularisers import TunableDropout, TunableDropout1d, TunableDropout2d, TunableDropout3d

__all__ = ["TUNABLE", "replace_everywhere", "swap_dropout"]


TUNABLE: dict[type[nn.Module], type[Any]] = {
    nn.Dropout: TunableDropout,
    nn.Dropout1d: TunableDropout1d,
    nn.Dropout2d: TunableDropout2d,
    nn.Dropout3d: TunableDropout3d,
}
_OTHER = (nn.AlphaDropout, nn.FeatureAlphaDropout)


def swap_dropout(
    model: nn.Module,
    hyperparameters: Hyperparameters,
    dropout: Literal["auto"] | Mapping[str, str] | None,
    excluded: Selection,
    axes: Mapping[str, int],
) -> dict[str, str]:
    """Exchange dropout layers of a model for tunable ones; return the names of their hyperparameters by path.

    Args:
        model: The model.
        hyperparameters: Where the rates are.
        dropout: See :func:`~sthyper.selftuning.transform.self_tune`.
        excluded: Layers that ``"auto"`` leaves alone.
        axes: Axis of the examples by path; those that are not in it have 0.

    Raises:
        TypeError: If ``dropout`` is something else.
        ValueError: If a pattern means no dropout layer, there is no hyperparameter of a name, or a layer has no tunable
            version.
    """
    if dropout is None:
        return {}
    if dropout != "auto" and not isinstance(dropout, Mapping):
        raise TypeError(f"dropout must be 'auto', a mapping of patterns to hyperparameters, or None, got {dropout!r}")
    layers = {n: m for n, m in model.named_modules() if type(m) in TUNABLE or isinstance(m, _OTHER)}
    if isinstance(dropout, Mapping):
        for name in dropout.values():
            if name not in hyperparameters:
                names = hyperparameters.names
                raise ValueError(
                    f"dropout: there is no hyperparameter {name!r}{closest(name, names)}; known are {names}"
                )
        check_patterns("dropout (among dropout layers)", dropout, layers)
        rates = {path: by_pattern(dropout, path) for path in layers}
    else:
        rates = {p: p if p in hyperparameters and not excluded(p, m) else None for p, m in layers.items()}
    result = {path: name for path, name in rates.items() if name is not None}
    for path in result:
        if type(layers[path]) not in TUNABLE:
            raise ValueError(
                f"dropout: layer {path!r} is a {type(layers[path]).__name__}, whose rate cannot be tuned; possible are "
                f"{[plain.__name__ for plain in TUNABLE]}"
            )
        if path == "":
            raise ValueError("model is a dropout layer itself")
    for path, name in result.items():
        old = layers[path]
        axis = {"batch_dim": axes.get(path, 0)} if type(old) is nn.Dropout else {}
        new = TUNABLE[type(old)](hyperparameters, name, **axis)
        replace_everywhere(model, old, new.train(old.training))
    return result


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Exchange a module at all places of a model where it is."""
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
