"""Transfer learning: one hyperparameter tells the task, and only one task is searched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sthyper.config_space import Categorical, Domain, Ordinal
from sthyper.errors import ConfigSpaceError, closest

if TYPE_CHECKING:
    from sthyper.encoding import SpaceEncoder
    from sthyper.searchers.bayesopt.options import BayesOptOptions

__all__ = ["ActiveTask"]


@dataclass(frozen=True)
class ActiveTask:
    """The task that is searched, among others whose results the model knows.

    Args:
        attr: Name of the hyperparameter that tells the task.
        task: Its value in this experiment.
        config_space: The whole configuration space, of all tasks.
        active: Domains of this experiment where they are parts of the whole ones; that of the task among them.
    """

    attr: str
    task: Any
    config_space: dict[str, Any]
    active: dict[str, Domain]

    @classmethod
    def of_options(cls, options: BayesOptOptions, config_space: Mapping[str, Any]) -> ActiveTask | None:
        """Return what ``transfer_learning_*`` say, ``None`` if they are not used.

        Raises:
            ConfigSpaceError: If the task is no ``choice`` of the space or has not this value, or an active domain is no
                part of the whole one.
        """
        attr = options.transfer_learning_task_attr
        if attr is None:
            return None
        domain = config_space.get(attr)
        if not isinstance(domain, Categorical) or isinstance(domain, Ordinal):
            hint = closest(attr, [k for k, v in config_space.items() if isinstance(v, Categorical)])
            raise ConfigSpaceError(
                f"transfer_learning_task_attr={attr!r} must name a choice(...) of the configuration space{hint}"
            )
        if not domain.is_valid(options.transfer_learning_active_task):
            raise ConfigSpaceError(
                f"transfer_learning_active_task={options.transfer_learning_active_task!r} is no task"
                f"{closest(options.transfer_learning_active_task, domain.categories)}; {attr!r} has "
                f"{list(domain.categories)}"
            )
        task = domain.coerce(options.transfer_learning_active_task)
        given = options.transfer_learning_active_config_space or {}
        if not isinstance(given, Mapping):
            raise TypeError(f"transfer_learning_active_config_space must be a dict of domains, got {given!r}")
        for name, domain in given.items():
            if isinstance(config_space.get(name), Domain) and not isinstance(domain, Domain):
                raise ConfigSpaceError(
                    f"transfer_learning_active_config_space: {name!r} must be a domain such as uniform(0, 1), got "
                    f"{domain!r}; for a single value choice([...]) or uniform(x, x)"
                )
        active = {k: v for k, v in given.items() if isinstance(v, Domain) and k != attr}
        active[attr] = Categorical((task,))
        made = cls(attr, task, dict(config_space), active)
        made.encoder()  # raises if the domains do not fit
        return made

    @property
    def sampling_space(self) -> dict[str, Any]:
        """The configuration space of this experiment."""
        return {**self.config_space, **self.active}

    def encoder(self) -> SpaceEncoder:
        """Return the encoder: columns of the task first, bounds those of this experiment."""
        from sthyper.encoding import SpaceEncoder

        return SpaceEncoder(self.config_space, active_config_space=self.active, prefix_keys=[self.attr])

    def is_active(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration is of the active task."""
        return bool(config.get(self.attr) == self.task)

    def may_be_suggested(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration lies in the space of this experiment."""
        try:
            return all(domain.coerce(config[name]) is not None for name, domain in self.active.items())
        except (KeyError, ConfigSpaceError):
            return False

    def points_to_evaluate(self, points: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Return the configurations that do not name another task; a warning says how many do."""
        if points is None:
            return None
        kept = [point for point in points if not isinstance(point, Mapping) or self._is_for_task(point)]
        if len(kept) < len(points):
            warnings.warn(
                f"points_to_evaluate: {len(points) - len(kept)} of {len(points)} configurations are dropped, their "
                f"{self.attr!r} is not the active task {self.task!r}",
                stacklevel=3,
            )
        return kept

    def _is_for_task(self, point: Mapping[str, Any]) -> bool:
        return self.attr not in point or point[self.attr] == self.task
