"""How a module is made self-tuning, from arguments that a configuration file can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningModule

from sthyper.config_space import Domain, from_dict
from sthyper.errors import closest
from sthyper.selftuning._trainer_parts import batch_axis
from sthyper.selftuning.hyperparameters import Hyperparameter, Hyperparameters, bounded
from sthyper.selftuning.transform import SelfTuning, self_tune

__all__ = ["SelfTuneOptions", "make_hyperparameters"]

_BOUNDS = ("start", "lower", "upper", "log", "scale", "per_example", "discrete")


@dataclass(frozen=True)
class SelfTuneOptions:
    """The arguments of :func:`sthyper.selftuning.transform.self_tune`, see there."""

    kind: Literal["delta", "stn"] = "delta"
    response: Literal["auto", "full", "lowrank"] = "auto"
    rank: int = 8
    groups: int | None = None
    include: str | list[str] | None = None
    exclude: str | list[str] | tuple[str, ...] = ()
    dropout: dict[str, str] | Literal["auto"] | None = "auto"
    batch_dim: int | dict[str, int] = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, ("delta", "stn")),
            ("response", self.response, ("auto", "full", "lowrank")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}{closest(value, allowed)}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, got {self.rank!r}")

    def apply(self, module: LightningModule, hyperparameters: Hyperparameters) -> None:
        """Make a plain module self-tuning.

        Args:
            module: The module.
            hyperparameters: What it responds to.

        Raises:
            ValueError: If it cannot be transformed.
        """
        self_tune(
            module,
            hyperparameters,
            self.kind,
            self.response,
            rank=self.rank,
            groups=self.groups,
            include=self.include,
            exclude=self.exclude,
            dropout=self.dropout,
            batch_dim=self.batch_dim,
            seed=self.seed,
        )

    def check(self, part: SelfTuning, hyperparameters: Hyperparameters) -> None:
        """Raise a ValueError unless a module that is self-tuning already suits.

        Args:
            part: What makes it self-tuning.
            hyperparameters: What it should respond to.
        """
        if part.hyperparameters is not hyperparameters:
            raise ValueError(
                "SelfTuningCallback: the module is self-tuning already, with other hyperparameters; give the callback "
                "those, or fit a plain module"
            )
        if part.kind != self.kind:
            raise ValueError(
                f"SelfTuningCallback(kind={self.kind!r}): the module is self-tuning already, of kind {part.kind!r}"
            )

    def axis(self, module: LightningModule) -> int:
        """Return the axis of the examples in batches."""
        return self.batch_dim if isinstance(self.batch_dim, int) else batch_axis(module)


def make_hyperparameters(
    given: Hyperparameters | Mapping[str, Any],
    start: Mapping[str, Any] | None,
    scale: float | Mapping[str, float],
    shared: Iterable[str] | None,
    seed: int,
) -> Hyperparameters:
    """Return hyperparameters from what the callback was given.

    Args:
        given: Hyperparameters, or domains (or their descriptions) by name.
        start: Values to begin with.
        scale: Standard deviations of perturbations.
        shared: Names that whole batches share.
        seed: Seed of perturbations.

    Raises:
        TypeError: If ``given`` is something else.
        ValueError: If it is empty, or an argument has no effect.
    """
    if isinstance(given, Hyperparameters):
        for name, value, default in (("start", start, None), ("scale", scale, 1.0), ("shared", shared, None)):
            if value != default:
                raise ValueError(f"{name} has no effect beside Hyperparameters, which have it already")
        if not len(given):
            raise ValueError("hyperparameters must hold at least one")
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"hyperparameters must be Hyperparameters, or domains by name, got {given!r}")
    if not given:
        raise ValueError("hyperparameters must name at least one domain")
    space = {name: _entry(name, entry) for name, entry in given.items()}
    return Hyperparameters(space, start=start, scale=scale, shared=shared or (), seed=seed)


def _entry(name: str, entry: Any) -> Domain | Hyperparameter:
    if not isinstance(entry, Mapping):
        return entry
    if "domain_cls" in entry:
        return from_dict(entry)
    for key in entry:
        if key not in _BOUNDS:
            raise ValueError(
                f"hyperparameter {name!r}: there is no option {key!r}{closest(key, _BOUNDS)}; known are {list(_BOUNDS)}"
            )
    if missing := [key for key in ("start", "lower", "upper") if key not in entry]:
        raise ValueError(f"hyperparameter {name!r} lacks {missing}")
    return bounded(name, **entry)
