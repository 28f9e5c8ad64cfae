"""What a model of the cost of evaluations offers, and the data that it learns from."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper._describe import Described

if TYPE_CHECKING:
    import numpy as np

    from sthyper.encoding import SpaceEncoder

__all__ = ["CostModel", "CostObservation", "CostValue"]


@dataclass(frozen=True)
class CostValue:
    """Cost of a configuration: c(x, r) = c0(x) + r c1(x) up to the resource level r.

    Args:
        c0: Start-up cost.
        c1: Cost per unit of resource.
    """

    c0: float
    c1: float

    def at(self, resource: float) -> float:
        """Return the cost up to a resource level."""
        return self.c0 + resource * self.c1


@dataclass(frozen=True)
class CostObservation:
    """An observed cost.

    Args:
        config: The configuration.
        resource: Resource level at which the cost was reported, at least 1.
        cost: Cost since the start of the evaluation, not negative.

    Raises:
        TypeError: If ``resource`` is no int or ``cost`` no number.
        ValueError: If ``resource`` is not positive, or ``cost`` is negative, infinite or NaN.
    """

    config: Mapping[str, Any]
    resource: int
    cost: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "resource", positive_int("resource", self.resource))
        if isinstance(self.cost, bool | str):
            raise TypeError(f"cost must be a number, got {self.cost!r}")
        try:
            cost = float(self.cost)
        except (TypeError, ValueError):
            raise TypeError(f"cost must be a number, got {self.cost!r}") from None
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"cost must be finite and not negative, got {self.cost!r}")
        object.__setattr__(self, "cost", cost)


class CostModel(Described, ABC):
    """A model of c(x, r) = c0(x) + r c1(x), where x is a configuration and r = 1, 2, ... a resource level.

    :meth:`update` fits it; :meth:`sample_joint` then returns (c0, c1) of configurations. A deterministic model returns
    the values that it has fitted. A random one returns a joint draw from its posterior, the same one at every call
    until :meth:`resample`.
    """

    @property
    def cost_metric_name(self) -> str:
        """Name under which searchers keep the costs of evaluations."""
        return "cost"

    def use_encoder(self, encoder: SpaceEncoder) -> None:
        """Take the encoder of the configurations; models that read configurations themselves do not need it."""

    @abstractmethod
    def update(self, observations: Sequence[CostObservation]) -> None:
        """Fit the model, in place of the last fit.

        Costs of the same configuration at several resource levels are what tells c0 from c1.

        Args:
            observations: The data, at least one.

        Raises:
            ValueError: If there are none.
        """

    def resample(self, generator: np.random.Generator) -> None:
        """Draw the state of a random model anew; a deterministic one does nothing.

        Args:
            generator: Source of the draw.
        """

    @abstractmethod
    def sample_joint(self, configs: Sequence[Mapping[str, Any]]) -> list[CostValue]:
        """Return the cost values of n configurations, without measurement noise.

        Raises:
            RuntimeError: If the model has not been fitted.
        """

    @staticmethod
    def event_time(start_time: float, level: int, next_milestone: int, cost: CostValue) -> float:
        """Return when an evaluation reaches a resource level.

        Args:
            start_time: When it reported ``level``, or was started if that is 0.
            level: The last level that it reported.
            next_milestone: The level that it is to reach.
            cost: Its cost value, in units of time.
        """
        return start_time + (next_milestone - level) * cost.c1 + (cost.c0 if level == 0 else 0.0)

    def predict_times(
        self,
        configs: Sequence[Mapping[str, Any]],
        resources: Sequence[int],
        cost_values: Sequence[CostValue],
        start_time: float = 0.0,
    ) -> list[float]:
        """Return when n evaluations reach their resource levels if all are started at the same time.

        Args:
            configs: The configurations.
            resources: The level of each, at least 1.
            cost_values: The cost value of each, from :meth:`sample_joint`.
            start_time: When they are started.

        Raises:
            ValueError: If the three do not have the same length, or a level is not positive.
        """
        if not len(configs) == len(resources) == len(cost_values):
            raise ValueError(
                "configs, resources and cost_values must have the same length, got "
                f"{len(configs)}, {len(resources)} and {len(cost_values)}"
            )
        return [
            self.event_time(start_time, 0, positive_int("resources", level), cost)
            for level, cost in zip(resources, cost_values, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit to the same data cannot restore: nothing, unless the model is random."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {sorted(state)!r}")


def positive_int(name: str, value: Any) -> int:
    """Return an argument that must be a positive int (numpy's are fine).

    Raises:
        TypeError: If it is no int.
        ValueError: If it is not positive.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a positive int, got {value!r}")
    if number < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return number


def require_observations(observations: Sequence[CostObservation]) -> list[CostObservation]:
    """Return the observations as a list.

    Raises:
        TypeError: If one is no :class:`CostObservation`.
        ValueError: If there are none.
    """
    data = list(observations)
    if not data:
        raise ValueError("observations must not be empty")
    for position, observation in enumerate(data):
        if not isinstance(observation, CostObservation):
            raise TypeError(f"observations[{position}] must be a CostObservation, got {observation!r}")
    return data
