"""Declarations of hyperparameters that are tuned during a training run: one by one, or from a configuration space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sthyper.config_space import Categorical, Domain, FiniteRange
from sthyper.errors import closest
from sthyper.selftuning.maps import ValueMap, map_between, map_of_domain
from sthyper.straight_through.choices import Choice
from sthyper.straight_through.gates import Gate

__all__ = ["Discrete", "Hyperparameter", "Space", "bounded", "declarations"]

ResponseInput = Literal["raw", "sigmoid", "softplus"]
ScaleMap = Literal["softplus", "exp"]

_START = 0.1
_FAVOURED = 0.8


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter that is tuned during training.

    Three maps belong to it: from the unconstrained number to its value, to what the best responses see, and from the
    unconstrained scale to the standard deviation of its perturbations.

    Args:
        name: Its name.
        value_map: Maps the unconstrained number to the value.
        start: Value to begin with, between the bounds of the map.
        scale: Standard deviation of the perturbations of the unconstrained number, to begin with.
        response_input: What responses see: the unconstrained number itself, or its ``"sigmoid"`` or ``"softplus"``.
        scale_map: Maps the unconstrained scale to the standard deviation: ``"softplus"`` or ``"exp"``.
        per_example: Whether each example of a batch (or each group) gets its own perturbation. ``False`` for what the
            whole batch shares: DropConnect, word dropout, penalties of activations.
        discrete: Whether and how the value becomes a whole number: ``"floor"``, ``"round"``, or ``False``.
        straight_through: Whether the gradient passes the rounding unchanged; otherwise it is zero there. It matters
            with ``direct_gradient`` only.
        direct_gradient: Whether values carry gradients, for those that appear in the validation loss itself.

    Raises:
        ValueError: If ``start`` is not between the bounds, ``scale`` not positive, or an option unknown.
    """

    name: str
    value_map: ValueMap
    start: float
    scale: float = 1.0
    response_input: ResponseInput = "raw"
    scale_map: ScaleMap = "softplus"
    per_example: bool = True
    discrete: Literal["floor", "round", False] = False
    straight_through: bool = False
    direct_gradient: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"name must be a text, got {self.name!r}")
        if not isinstance(self.value_map, ValueMap):
            raise TypeError(f"hyperparameter {self.name!r}: value_map must be a ValueMap, got {self.value_map!r}")
        if not self.value_map.lower < self.start < self.value_map.upper:
            raise ValueError(
                f"hyperparameter {self.name!r}: start must be larger than {self.value_map.lower} and smaller than "
                f"{self.value_map.upper}, got {self.start!r}; see robustify"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"hyperparameter {self.name!r}: scale must be a positive number, got {self.scale!r}")
        if self.discrete not in ("floor", "round", False):
            raise ValueError(
                f"hyperparameter {self.name!r}: discrete must be 'floor', 'round' or False, got {self.discrete!r}"
            )
        for option, value, allowed in (
            ("response_input", self.response_input, get_args(ResponseInput)),
            ("scale_map", self.scale_map, get_args(ScaleMap)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"hyperparameter {self.name!r}: {option} must be one of {list(allowed)}, got {value!r}"
                    f"{closest(value, allowed)}"
                )
        if self.straight_through and not self.discrete:
            raise ValueError(f"hyperparameter {self.name!r}: straight_through is for discrete ones")

    def value(self, raw: Tensor) -> Tensor:
        """Return values as they are used, of the shape of ``raw``."""
        value = self.value_map(raw)
        if not self.discrete:
            return value
        whole = torch.floor(value if self.discrete == "floor" else value + 0.5)
        # The ends of a map are open in theory only: far out the largest value is its upper bound.
        if math.isfinite(self.value_map.upper):
            whole = whole.clamp(max=math.ceil(self.value_map.upper + (0.5 if self.discrete == "round" else 0.0)) - 1)
        return value + (whole - value).detach() if self.straight_through else whole


def bounded(
    name: str,
    start: float,
    lower: float | None,
    upper: float | None,
    *,
    log: bool = False,
    scale: float = 1.0,
    per_example: bool = True,
    discrete: bool = False,
) -> Hyperparameter:
    """Return a hyperparameter with bounds, either of which may be missing.

    Args:
        name: Its name.
        start: Value to begin with, between the bounds.
        lower: Lower bound; ``None`` or ``-inf`` for none.
        upper: Upper bound; ``None`` or ``inf`` for none.
        log: Whether it lives on a log scale.
        scale: Standard deviation of the perturbations of the unconstrained number.
        per_example: See :class:`Hyperparameter`.
        discrete: Whether values are rounded down.

    Raises:
        ValueError: See :class:`Hyperparameter`.
    """
    value_map = map_between(lower, upper, log)
    return Hyperparameter(
        name, value_map, start, scale, per_example=per_example, discrete="floor" if discrete else False
    )


Discrete = Gate | Choice
Space = Mapping[str, Any] | Iterable[Hyperparameter]
"""Domains, declarations, gates and choices by name, or declarations."""


def declarations(
    space: Space, start: Mapping[str, Any], scale: float | Mapping[str, float], shared: tuple[str, ...]
) -> Iterator[tuple[str, Hyperparameter | Discrete]]:
    """Return what each entry of a configuration space declares, by name.

    Args:
        space: Domains, declarations, gates and choices by name, or declarations.
        start: Values to begin with, for domains.
        scale: Standard deviations of perturbations, for domains of more than finitely many values.
        shared: Names that whole batches share, for domains.

    Raises:
        TypeError: If ``space`` holds something else.
        ValueError: For unknown or repeated names, and values outside their domain.
    """
    if not isinstance(space, Mapping):
        space = _by_name(space)
    domains = {name for name, entry in space.items() if isinstance(entry, Domain)}
    finite = {name for name in domains if isinstance(space[name], Categorical | FiniteRange)}
    scales = dict(scale) if isinstance(scale, Mapping) else {}
    for argument, names, allowed in (
        ("start", start, domains),
        ("scale", scales, domains - finite),
        ("shared", shared, domains),
    ):
        for name in names:
            if name in finite and name not in allowed:
                raise ValueError(f"{argument}: {name!r} is a choice, which is sampled and has no perturbation to scale")
            if name not in allowed:
                raise ValueError(
                    f"{argument}: there is no domain {name!r}{closest(name, allowed)}; known are {sorted(allowed)}"
                )
    default = 1.0 if isinstance(scale, Mapping) else scale
    for name, entry in space.items():
        if isinstance(entry, Hyperparameter):
            yield name, entry if entry.name == name else replace(entry, name=name)
        elif isinstance(entry, Gate | Choice):
            yield name, entry
        elif not isinstance(entry, Domain):
            raise TypeError(
                f"hyperparameter {name!r} must be a domain, a Hyperparameter, a Gate or a Choice, got {entry!r}"
            )
        elif name in finite:
            yield name, _choice(name, entry, start, per_example=name not in shared)
        else:
            yield name, _continuous(name, entry, start, float(scales.get(name, default)), name not in shared)


def _continuous(name: str, domain: Domain, start: Mapping[str, Any], scale: float, per_example: bool) -> Hyperparameter:
    value_map, integer = map_of_domain(domain, name)
    tenth = float(value_map(torch.logit(torch.tensor(_START, dtype=torch.float64))))
    return Hyperparameter(
        name,
        value_map,
        float(start.get(name, tenth)),
        scale,
        per_example=per_example,
        discrete="round" if integer else False,
    )


def _choice(name: str, domain: Domain, start: Mapping[str, Any], per_example: bool) -> Choice:
    try:
        choice = Choice(domain, per_example=per_example, name=name)
        if name not in start:
            return choice
        options = choice.options
        if start[name] not in options:
            hint = closest(start[name], options)
            raise ValueError(f"start must be one of {list(options)}, got {start[name]!r}{hint}")
        share = max(_FAVOURED, 1 / len(options))
        rest = (1 - share) / (len(options) - 1)
        favoured = options.index(start[name])
        probabilities = [share if i == favoured else rest for i in range(len(options))]
        return Choice(domain, probabilities, per_example=per_example, name=name)
    except ValueError as error:
        raise ValueError(f"hyperparameter {name!r}: {error}") from error


def _by_name(hyperparameters: Iterable[Hyperparameter]) -> dict[str, Domain | Hyperparameter | Discrete]:
    result: dict[str, Domain | Hyperparameter | Discrete] = {}
    for entry in hyperparameters:
        if not isinstance(entry, Hyperparameter):
            raise TypeError(f"space must hold domains by name, or Hyperparameter objects, got {entry!r}")
        if entry.name in result:
            raise ValueError(f"there are two hyperparameters of the name {entry.name!r}")
        result[entry.name] = entry
    return result
