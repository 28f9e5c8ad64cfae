"""The edge at which searchers are named by strings and options come as mappings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from sthyper.errors import closest
from sthyper.searchers.base import BaseSearcher
from sthyper.searchers.bayesopt.botorch import BoTorchOptions
from sthyper.searchers.bayesopt.constrained import ConstrainedBayesOptOptions
from sthyper.searchers.bayesopt.cost import CostAwareOptions
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.feasible import FeasibilitySearcher
from sthyper.searchers.grid import GridSearcher
from sthyper.searchers.random import RandomSearcher

__all__ = ["GridSearcherOptions", "RandomSearcherOptions", "SearcherArguments", "make_searcher"]


@dataclass(frozen=True)
class SearcherArguments:
    """What a scheduler passes to the searcher that it makes.

    Args:
        config_space: Configuration space.
        metric: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        points_to_evaluate: Configurations to suggest first.
    """

    config_space: dict[str, Any]
    metric: str
    mode: str = "min"
    points_to_evaluate: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class RandomSearcherOptions:
    """``search_options`` of ``searcher="random"``; see :class:`~sthyper.searchers.RandomSearcher`.

    Args:
        allow_duplicates: Whether a configuration may be suggested twice.
        restrict_configurations: Suggest from this list only.
        debug_log: Whether to log suggestions and results.
        outcome_constraints: Conditions on reported metrics, such as ``["memory <= 8e9"]``; see
            :class:`~sthyper.searchers.feasible.FeasibilitySearcher`.
        learn_feasibility: Whether configurations that resemble failed ones are avoided.
    """

    allow_duplicates: bool = False
    restrict_configurations: list[dict[str, Any]] | None = None
    debug_log: bool = False
    outcome_constraints: list[str] | None = None
    learn_feasibility: bool = False

    def build(self, arguments: SearcherArguments) -> BaseSearcher:
        """Make the searcher."""
        searcher = RandomSearcher(
            arguments.config_space,
            metric=arguments.metric,
            mode=arguments.mode,
            points_to_evaluate=arguments.points_to_evaluate,
            allow_duplicates=self.allow_duplicates,
            restrict_configurations=self.restrict_configurations,
            debug_log=self.debug_log,
        )
        return _with_feasibility(searcher, self.outcome_constraints, self.learn_feasibility)


@dataclass(frozen=True)
class GridSearcherOptions:
    """``search_options`` of ``searcher="grid"``; see :class:`~sthyper.searchers.GridSearcher`.

    Args:
        num_samples: Number of grid values of float and integer ranges, by name.
        shuffle_config: Whether the grid is gone through in random order.
        allow_duplicates: Whether to begin again when the grid is used up.
        restrict_configurations: Not supported, must be ``None``.
        outcome_constraints: Conditions on reported metrics, such as ``["memory <= 8e9"]``: what is not likely to keep
            them comes last; see :class:`~sthyper.searchers.feasible.FeasibilitySearcher`.
        learn_feasibility: Whether configurations that resemble failed ones come last.
    """

    num_samples: Mapping[str, int] | None = None
    shuffle_config: bool = True
    allow_duplicates: bool = False
    restrict_configurations: list[dict[str, Any]] | None = None
    outcome_constraints: list[str] | None = None
    learn_feasibility: bool = False

    def build(self, arguments: SearcherArguments) -> BaseSearcher:
        """Make the searcher."""
        searcher = GridSearcher(
            arguments.config_space,
            metric=arguments.metric,
            mode=arguments.mode,
            points_to_evaluate=arguments.points_to_evaluate,
            num_samples=self.num_samples,
            shuffle_config=self.shuffle_config,
            allow_duplicates=self.allow_duplicates,
            restrict_configurations=self.restrict_configurations,
        )
        return _with_feasibility(searcher, self.outcome_constraints, self.learn_feasibility)


def _with_feasibility(
    searcher: BaseSearcher, outcome_constraints: list[str] | None, learn_feasibility: bool
) -> BaseSearcher:
    if outcome_constraints in (None, []) and learn_feasibility is False:
        return searcher
    return FeasibilitySearcher(searcher, outcome_constraints, learn_feasibility)


class _SearcherOptions(Protocol):
    """What the options of every named searcher can do."""

    def build(self, arguments: SearcherArguments) -> BaseSearcher: ...


# A new searcher gets a name by one line here.
_OPTIONS: dict[str, Callable[..., _SearcherOptions]] = {
    "random": RandomSearcherOptions,
    "grid": GridSearcherOptions,
    "bayesopt": BayesOptOptions,
    "botorch": BoTorchOptions,
    "bayesopt_constrained": ConstrainedBayesOptOptions,
    "bayesopt_cost": CostAwareOptions,
}


def make_searcher(
    searcher: str | BaseSearcher | None,
    search_options: Mapping[str, Any] | None,
    arguments: SearcherArguments,
) -> BaseSearcher:
    """Return the searcher of a scheduler.

    Args:
        searcher: A searcher, the name of one, or ``None`` for ``"random"``.
        search_options: Options of a named searcher.
        arguments: What the scheduler knows.

    Raises:
        TypeError: If ``searcher`` or ``search_options`` has the wrong type.
        ValueError: If the name or an option is unknown, or if a searcher object comes with options or
            ``points_to_evaluate`` (those belong into its own constructor).
    """
    if isinstance(searcher, BaseSearcher):
        for name, value in (
            ("search_options", search_options),
            ("points_to_evaluate", arguments.points_to_evaluate),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} cannot be given together with a searcher object; pass it to "
                    f"{type(searcher).__name__}(...) instead"
                )
        return searcher
    if searcher is not None and not isinstance(searcher, str):
        raise TypeError(f"searcher must be a searcher object or one of {sorted(_OPTIONS)}, got {searcher!r}")
    name = "random" if searcher is None else searcher
    if name not in _OPTIONS:
        raise ValueError(f"searcher={name!r} is unknown{closest(name, _OPTIONS)}; known are {sorted(_OPTIONS)}")
    options = {} if search_options is None else search_options
    if not isinstance(options, Mapping):
        raise TypeError(f"search_options must be a dict, got {search_options!r}")
    known = [field.name for field in fields(_OPTIONS[name])]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            explain = getattr(_OPTIONS[name], "explain", lambda _: None)(key)
            if explain is not None:
                raise ValueError(f"search_options of searcher={name!r}: {explain}")
            raise ValueError(
                f"search_options: unknown option {key!r} of searcher={name!r}{closest(key, known)}; known are {known}"
            )
    return _OPTIONS[name](**options).build(arguments)
