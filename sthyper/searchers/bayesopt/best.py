"""The best trial of any experiment by a model of its results, which a lucky value does not fool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sthyper._metrics_statistics import ConstraintRecord
from sthyper.errors import closest
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt.constraints import OutcomeConstraint
from sthyper.searchers.bayesopt.options import BayesOptOptions
from sthyper.searchers.bayesopt.searcher import BayesianOptimizationSearcher

__all__ = ["best_by_model", "check_by"]

_WAYS = ("observed", "model")


@dataclass(frozen=True)
class _Options(BayesOptOptions):
    """Options with constraints that are parsed already."""

    parsed: tuple[OutcomeConstraint, ...] = ()

    @property
    def constraints(self) -> tuple[OutcomeConstraint, ...]:
        return self.parsed


def best_by_model(
    config_space: Mapping[str, Any],
    metric: str,
    mode: str,
    resource_attr: str | None,
    trials: Iterable[tuple[int, Mapping[str, Any], Sequence[Mapping[str, Any]], bool]],
    constraints: Sequence[OutcomeConstraint] = (),
) -> int | None:
    """Return the id of the trial at whose configuration a Gaussian process of all results has the best mean.

    Args:
        config_space: Configuration space.
        metric: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        resource_attr: Name of the resource: the trials are then compared at the highest level with enough results.
            Without one the last report of each trial that completed is its result.
        trials: Id, configuration, reports, and whether it completed.
        constraints: Trials that are known to break one come after all others.

    Returns:
        ``None`` if no result can be used.
    """
    # Priors that rather see noise than a function with many small valleys.
    options = _Options(preset="syne-tune", max_size_data_for_model=None, random_seed=0, parsed=tuple(constraints))
    searcher = BayesianOptimizationSearcher(dict(config_space), metric, mode, [], options)
    searcher.configure(SearcherContext(metric, mode, resource_attr=resource_attr))
    record = ConstraintRecord(constraints)
    for trial_id, config, reports, completed in trials:
        # A constrained metric that is not in every report is known from an earlier one.
        filled = [{**report, **record.values(trial_id, report)} for report in reports]
        counted = filled if resource_attr is not None else filled[-1:] if completed else []
        for report in counted:
            searcher.on_trial_result(trial_id, dict(config), report, True)
    return searcher.best_trial(by="model")


def check_by(by: str) -> None:
    """Check a way to find the best trial.

    Raises:
        ValueError: If it is neither ``"observed"`` nor ``"model"``.
    """
    if by not in _WAYS:
        raise ValueError(f"by must be 'observed' or 'model', got {by!r}{closest(by, _WAYS)}")
