"""The arguments of a GateTuningCallback, checked, and spread over its targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from sthyper.callbacks.lightning._checks import check_choice
from sthyper.errors import closest
from sthyper.straight_through.gates import GateEstimator
from sthyper.straight_through.schedules import ExponentialTemperature, TemperatureSchedule

__all__ = ["GateOptions", "Kind", "Settings", "per_target"]

T = TypeVar("T")
Kind = Literal["inputs", "channels", "branch", "operation"]
Estimator = Literal["identity", "probs", "gumbel", "hard_concrete"]
Evaluation = Literal["threshold", "sample", "expected"]

_KINDS = get_args(Kind)
_RELAXED = ("gumbel", "hard_concrete")


@dataclass(frozen=True)
class Settings:
    """How all gates sample, see :class:`~sthyper.straight_through.Gate`.

    Args:
        estimator: How gradients pass a sample.
        temperature: Temperature at the beginning; ``None`` for the default.
        temperature_end: Temperature at the end of the run; ``None`` for no change.
        evaluation: What passes in evaluation mode.
        per_example: Whether each example is sampled for itself.
    """

    estimator: Estimator = "identity"
    temperature: float | None = None
    temperature_end: float | None = None
    evaluation: Evaluation = "threshold"
    per_example: bool = True

    def __post_init__(self) -> None:
        if str(self.estimator) == "reinforce":
            raise ValueError(
                "estimator='reinforce' needs a loss that is made for it (Gate.surrogate), which the training_step of a "
                f"module has not; there are {list(get_args(Estimator))}"
            )
        check_choice("estimator", self.estimator, get_args(Estimator))
        check_choice("evaluation", self.evaluation, get_args(Evaluation))
        check_flag("per_example", self.per_example)
        for name, value in (("temperature", self.temperature), ("temperature_end", self.temperature_end)):
            if value is None:
                continue
            check_number(name, value, above=0.0)
            if self.estimator not in _RELAXED:
                raise ValueError(
                    f"{name} is for the estimators {list(_RELAXED)}; estimator={self.estimator!r} has none"
                )
        if self.temperature_end is not None and self.temperature is None:
            raise ValueError("temperature_end needs a temperature to begin with; give temperature, too")

    @property
    def schedule(self) -> float | TemperatureSchedule | None:
        """The temperature, or how it falls."""
        if self.temperature is None or self.temperature_end is None:
            return self.temperature
        return ExponentialTemperature(self.temperature, self.temperature_end)

    @property
    def gate_estimator(self) -> GateEstimator:
        """The estimator."""
        return self.estimator


@dataclass(frozen=True)
class GateOptions:
    """What is gated, what it costs, and how it is trained.

    Args:
        targets: Pattern of paths -> kind.
        settings: How gates sample.
        penalty: Cost of an open gate, by target.
        entropy_weight: Cost of a nat of entropy, by target.
        target_size: Number (``int``) or share (``float``) of gates that cost nothing, by target; ``None`` for none.
        probability: Probability of being open at the beginning, by target.
        lr: Learning rate.
        max_norm: Gradients are scaled down to this norm; ``None`` for no limit.
        warm_up_epochs: Epochs with open gates at the beginning.
        every_n_steps: Training steps for each step on validation data.
        same_samples: Whether all ranks draw the same samples.
        seed: Seed of the samples.
        attribute: Attribute of the module that holds the gates.
    """

    targets: dict[str, Kind]
    settings: Settings
    penalty: dict[str, float]
    entropy_weight: dict[str, float]
    target_size: dict[str, int | float | None]
    probability: dict[str, float]
    lr: float
    max_norm: float | None
    warm_up_epochs: int
    every_n_steps: int
    same_samples: bool
    seed: int
    attribute: str

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0.0)
        if self.max_norm is not None:
            check_number("max_norm", self.max_norm, above=0.0)
        for name, value, least in (
            ("warm_up_epochs", self.warm_up_epochs, 0),
            ("every_n_steps", self.every_n_steps, 1),
            ("seed", self.seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not isinstance(self.attribute, str) or not self.attribute.isidentifier():
            raise ValueError(f"attribute must be a name that an attribute can have, got {self.attribute!r}")
        for target, size in self.target_size.items():
            if size is not None and not self.penalty[target]:
                raise ValueError(f"target_size of {target!r} has no effect without a penalty, which is 0")


def check_targets(targets: Any) -> dict[str, Kind]:
    """Return targets, or raise.

    Raises:
        TypeError: If they are not names by names.
        ValueError: If there is none, or a kind is unknown.
    """
    if not isinstance(targets, Mapping):
        raise TypeError(f'targets must be a dictionary such as {{"encoder.*": "channels"}}, got {targets!r}')
    if not targets:
        raise ValueError('targets must name at least one module, for example {"encoder.*": "channels"}')
    for pattern, kind in targets.items():
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(f"targets: names of modules must be text that is not empty, got {pattern!r}")
        if kind not in _KINDS:
            raise ValueError(
                f"targets: the kind of {pattern!r} must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}"
                f"{closest(kind, _KINDS)}"
            )
    return dict(targets)


def per_target(
    name: str,
    value: T | Mapping[str, T],
    targets: Mapping[str, Kind],
    default: T,
    check: Callable[[str, Any], object],
) -> dict[str, T]:
    """Return a value for each target.

    Args:
        name: The argument.
        value: One value for all, or values by target.
        targets: The targets.
        default: Value of targets that are not named.
        check: Called with the argument's name and a value, raises if it is not allowed.

    Raises:
        ValueError: If there is no such target.
    """
    if not isinstance(value, Mapping):
        check(name, value)
        return dict.fromkeys(targets, value)
    for target, one in value.items():
        if target not in targets:
            raise ValueError(f"{name}: there is no target {target!r}{closest(target, targets)}; there are {[*targets]}")
        check(f"{name} of {target!r}", one)
    return {target: value.get(target, default) for target in targets}


def check_cost(name: str, value: Any) -> None:
    """Raise for a cost that is below 0."""
    check_number(name, value)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}: below 0 gates would be paid for being open")


def check_probability(name: str, value: Any) -> None:
    """Raise for what is no probability between 0 and 1."""
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(
            f"{name} must be larger than 0 and smaller than 1, got {value!r}: at the ends no gradient would move a gate"
        )


def check_size(name: str, value: Any) -> None:
    """Raise for what is neither a number of gates nor a share of them."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    good = value >= 1 if isinstance(value, int) else 0 < value <= 1
    if not good:
        raise ValueError(
            f"{name} must be a number of gates (a whole number of at least 1) or a share of them (above 0, up to 1.0), "
            f"got {value!r}"
        )


def check_number(name: str, value: Any, above: float | None = None) -> None:
    """Raise for what is no finite number, or not above a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or (above is not None and value <= above):
        bound = "" if above is None else f" above {above:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise for what is neither true nor false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
