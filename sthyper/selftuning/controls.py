"""Plain runs with hyperparameters that something else sets: the replay of a schedule, and what to compare it with.

MacKay et al. 2019 (https://arxiv.org/abs/1903.03088) ask whether a schedule helps because of its final values, because
its values change at all, or because of the trajectory. Each of the classes here answers one of these questions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from sthyper.errors import closest
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.schedule import Schedule

__all__ = ["Control", "FixedValues", "GaussianValues", "Replay", "SinusoidValues"]

By = Literal["step", "epoch"]

# Unconstrained number that stands for a bound: sigmoid(16) is still below one in float32.
_FAR = 16.0
# The same for maps with one bound, in units of the value.
_NEAR = 1e-7
_TOLERANCE = 1e-6


class Control(ABC):
    """Sets the hyperparameters of a run at the start of each step or epoch; nothing tunes them.

    Example::

        control = FixedValues(hyperparameters, schedule.mean_of_last())
        for step, (x, y) in enumerate(batches):
            with control.at(step):                # values set, responses off
                loss = criterion(model(x), y)
            ...

    Args:
        hyperparameters: The hyperparameters to set.
        by: Whether it is to be called for each ``"step"`` (counted from 0) or ``"epoch"`` (counted from 1).

    Raises:
        ValueError: If ``by`` is neither.
    """

    def __init__(self, hyperparameters: Hyperparameters, by: By = "step") -> None:
        if by not in get_args(By):
            raise ValueError(f"by must be 'step' or 'epoch', got {by!r}{closest(by, get_args(By))}")
        if not isinstance(hyperparameters, Hyperparameters):
            raise TypeError(f"hyperparameters must be a Hyperparameters object, got {hyperparameters!r}")
        self.hyperparameters = hyperparameters
        self.by: By = by

    @abstractmethod
    def values(self, position: int) -> dict[str, float]:
        """Return the values for a step or epoch.

        Args:
            position: Number of the step, from 0, or of the epoch, from 1.
        """

    def set(self, position: int) -> dict[str, float]:
        """Set the values for a step or epoch and return them; a value on a bound is set as close to it as goes.

        Args:
            position: Number of the step, from 0, or of the epoch, from 1.

        Raises:
            ValueError: If a value is outside of the bounds of its hyperparameter.
        """
        values = self.values(position)
        set_values(self.hyperparameters, values)
        return values

    @contextmanager
    def at(self, position: int) -> Iterator[dict[str, float]]:
        """Set the values for a step or epoch, and have perturbations and responses off for a while.

        Args:
            position: Number of the step, from 0, or of the epoch, from 1.

        Raises:
            ValueError: If a value is outside of the bounds of its hyperparameter.
        """
        values = self.set(position)
        with self.hyperparameters.off():
            yield values

    def state_dict(self) -> dict[str, Any]:
        """Return what the control needs to go on after a resume: nothing, unless it draws random numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    def _known(self, argument: str, name: str) -> None:
        names = self.hyperparameters.names
        if name not in names and name not in self.hyperparameters.discrete.columns():
            raise ValueError(f"{argument}: there is no hyperparameter {name!r}{closest(name, names)}; known: {names}")


class Replay(Control):
    """Trains with the values of a schedule, each held until the next one, without tuning.

    Args:
        schedule: The schedule.
        hyperparameters: The hyperparameters to set. Those that the schedule lacks stay as they are.
        by: ``"step"``: at each training step the values that the recorded run had there; ``"epoch"``: at the start of
            each epoch the values of that epoch (its end in the recorded run), for files without steps.
        total: Steps or epochs of this run if it is longer or shorter than the recorded one: the schedule is stretched.
            Default: not stretched; the last values are held.

    Raises:
        ValueError: If the schedule is empty, lacks steps for ``by="step"``, holds hyperparameters that there are not
            here or values outside of their bounds, or ``total`` is not positive.
    """

    def __init__(
        self, schedule: Schedule, hyperparameters: Hyperparameters, by: By = "step", total: int | None = None
    ) -> None:
        super().__init__(hyperparameters, by)
        if total is not None and total < 1:
            raise ValueError(f"total must be at least 1, got {total}")
        for name in schedule.names:
            self._known("schedule", name)
            trajectory = schedule.values(name)
            _check_range(hyperparameters, name, [float(trajectory.min()), float(trajectory.max())] if schedule else [])
        self.schedule = schedule
        self._factor = 1.0
        self.values(0)  # fails early
        if total is not None:
            self._factor = (schedule.n_steps if by == "step" else schedule.n_epochs) / total

    def values(self, position: int) -> dict[str, float]:
        """Return the recorded values for a step, from 0, or an epoch, from 1."""
        if self.by == "step":
            return self.schedule.at(position * self._factor + _TOLERANCE)
        # Of a run twice as long, epochs 1 and 2 have the values of epoch 1.
        return self.schedule.at_epoch(math.ceil(position * self._factor - _TOLERANCE))


class FixedValues(Control):
    """Holds values fixed.

    With ``schedule.final()`` or ``schedule.mean_of_last()``: is it the schedule that helps, or where it ends?

    Args:
        hyperparameters: The hyperparameters to set.
        values: Values by name, of choices an option or as schedules have it; those left out stay as they are.

    Raises:
        ValueError: If there is no hyperparameter of a name, or a value is outside of its bounds.
    """

    def __init__(self, hyperparameters: Hyperparameters, values: Mapping[str, Any]) -> None:
        super().__init__(hyperparameters)
        self._values = _centres(self, values)

    def values(self, position: int) -> dict[str, float]:
        """Return the values, the same ones for all steps."""
        return dict(self._values)


class GaussianValues(Control):
    """Holds values with Gaussian noise, drawn anew for each batch: ``clip(value + std * N(0, 1))``.

    Is it the noise of a schedule that helps?

    Args:
        hyperparameters: The hyperparameters to set.
        values: Values by name; those left out stay as they are.
        std: Standard deviation, one for all or by name, in units of the value.
        generator: Draws the noise; a CPU generator.
        clip: Smallest and largest value by name; default are the bounds of the hyperparameter.

    Raises:
        ValueError: If there is no hyperparameter of a name, a value is outside of its bounds, or ``std`` negative.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        values: Mapping[str, float],
        std: float | Mapping[str, float],
        generator: torch.Generator,
        clip: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(hyperparameters)
        self._values = _centres(self, values)
        self._std = _sizes("std", std, self._values)
        self._clip = _limits(self, self._values, clip)
        self._generator = generator

    def values(self, position: int) -> dict[str, float]:
        """Return new values for a step; they depend on how often it was called, not on the step."""
        noise = torch.randn(len(self._values), generator=self._generator, dtype=torch.float64).tolist()
        moved = {
            name: value + self._std[name] * e for (name, value), e in zip(self._values.items(), noise, strict=True)
        }
        return _clipped(moved, self._clip)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the generator."""
        self._generator.set_state(state["generator"].cpu())


class SinusoidValues(Control):
    """Lets values swing around their centre: ``clip(value + amplitude * sin(2 pi step / period + phase))``.

    Is it that the values of a schedule change smoothly that helps?

    Args:
        hyperparameters: The hyperparameters to set.
        values: Values in the middle by name; those left out stay as they are.
        amplitude: Largest distance from it, one for all or by name, in units of the value.
        period: Steps of one period, one for all or by name.
        generator: Draws the phases, uniform on ``[0, 2 pi)``; a CPU generator.
        clip: Smallest and largest value by name; default are the bounds of the hyperparameter.

    Raises:
        ValueError: If there is no hyperparameter of a name, a value is outside of its bounds, ``amplitude`` is negative
            or ``period`` not positive.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        values: Mapping[str, float],
        amplitude: float | Mapping[str, float],
        period: float | Mapping[str, float],
        generator: torch.Generator,
        clip: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(hyperparameters)
        self._values = _centres(self, values)
        self._amplitude = _sizes("amplitude", amplitude, self._values)
        self._period = _sizes("period", period, self._values)
        for name, length in self._period.items():
            if not length > 0:
                raise ValueError(f"period must be a positive number, got {length!r} for {name!r}")
        self._clip = _limits(self, self._values, clip)
        drawn = torch.rand(len(self._values), generator=generator, dtype=torch.float64)
        self._phases = dict(zip(self._values, (2 * math.pi * drawn).tolist(), strict=True))

    def values(self, position: int) -> dict[str, float]:
        """Return the values for a step."""
        turns = {name: 2 * math.pi * position / self._period[name] + self._phases[name] for name in self._values}
        moved = {name: value + self._amplitude[name] * math.sin(turns[name]) for name, value in self._values.items()}
        return _clipped(moved, self._clip)

    def state_dict(self) -> dict[str, Any]:
        """Return the phases."""
        return {"phases": dict(self._phases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the phases.

        Raises:
            ValueError: If they are those of other hyperparameters.
        """
        if set(state["phases"]) != set(self._values):
            raise ValueError(f"the state is that of {list(state['phases'])}, this control sets {list(self._values)}")
        self._phases = dict(state["phases"])


def set_values(hyperparameters: Hyperparameters, values: Mapping[str, Any]) -> None:
    """Set values at the centre; one that is on a bound of its range is set as close to it as goes.

    Args:
        hyperparameters: The hyperparameters.
        values: Values by name; those left out stay. Of choices an option, or, as schedules have it, the probability of
            each ``name=option``, of which the most probable one counts.

    Raises:
        KeyError: If there is none of a name.
        ValueError: If a value is outside of its bounds.
    """
    discrete = hyperparameters.discrete
    inside = {name: value for name, value in values.items() if name in discrete} | discrete.read_out(values)
    for name, value in values.items():
        if name in discrete or name in discrete.columns():
            continue
        _check_range(hyperparameters, name, [value])
        value_map = hyperparameters.declaration(name).value_map
        if value_map.lower < value < value_map.upper:
            inside[name] = value
        elif value_map.saturates:
            far = torch.tensor(-_FAR if value == value_map.lower else _FAR, dtype=torch.float64)
            inside[name] = float(value_map(far))
        else:
            reach = _NEAR * max(1.0, abs(value))
            inside[name] = value + (reach if value == value_map.lower else -reach)
    hyperparameters.set_values(inside)


def _check_range(hyperparameters: Hyperparameters, name: str, values: Sequence[Any]) -> None:
    if name in hyperparameters.discrete.columns():
        return
    if name in hyperparameters.discrete:
        for value in values:
            hyperparameters.discrete.check_value(name, value)
        return
    value_map = hyperparameters.declaration(name).value_map
    for value in values:
        if not value_map.lower <= value <= value_map.upper:
            raise ValueError(
                f"hyperparameter {name!r} must be from {value_map.lower} to {value_map.upper}, got {value!r}"
            )


def _centres(control: Control, values: Mapping[str, Any]) -> dict[str, Any]:
    for name in values:
        control._known("values", name)
        _check_range(control.hyperparameters, name, [values[name]])
    discrete = control.hyperparameters.discrete
    return {name: value if name in discrete else float(value) for name, value in values.items()}


def _sizes(argument: str, sizes: float | Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    if isinstance(sizes, Mapping):
        for name in [*sizes, *values]:
            if name not in values or name not in sizes:
                raise ValueError(
                    f"{argument} must have the names of values, {list(values)}, got {list(sizes)}: see {name!r}"
                )
    found = {name: float(sizes[name] if isinstance(sizes, Mapping) else sizes) for name in values}
    for name, size in found.items():
        if not 0 <= size < math.inf:
            raise ValueError(f"{argument} must be a finite number >= 0, got {size!r} for {name!r}")
    return found


def _limits(
    control: Control, values: Mapping[str, float], clip: Mapping[str, tuple[float, float]] | None
) -> dict[str, tuple[float, float]]:
    limits = {}
    for name in clip or {}:
        if name not in values:
            raise ValueError(f"clip: no value was given for {name!r}{closest(name, values)}; known: {list(values)}")
    for name in values:
        value_map = control.hyperparameters.declaration(name).value_map
        low, high = (clip or {}).get(name, (value_map.lower, value_map.upper))
        if not value_map.lower <= low <= high <= value_map.upper:
            raise ValueError(
                f"clip of {name!r} must be two numbers from {value_map.lower} to {value_map.upper}, the smaller one "
                f"first, got {(low, high)!r}"
            )
        limits[name] = (float(low), float(high))
    return limits


def _clipped(values: Mapping[str, float], limits: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: min(max(value, limits[name][0]), limits[name][1]) for name, value in values.items()}
