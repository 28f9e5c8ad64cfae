"""Results of experiments in the past, in the forms in which users have them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sthyper.config_space import Domain
from sthyper.errors import ConfigSpaceError, closest

__all__ = ["Evaluation", "PastEvaluations", "read_evaluations"]

logger = logging.getLogger(__name__)

_CONFIG_PREFIX = "config_"
_TRIAL = "trial_id"
_FIRST_ID = -(10**9)
"""Ids of evaluations in the past begin here; results that a scheduler adds have ids from -1 downwards."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a configuration.

    Args:
        config: All hyperparameters.
        results: Reports, or the value of the metric alone, in their order.
        complete: Whether the last one is the result of the whole training.
    """

    config: dict[str, Any]
    results: list[dict[str, Any] | float]
    complete: bool = True


class PastEvaluations:
    """Evaluations that wait until it is known what a result is."""

    def __init__(self) -> None:
        self._waiting: list[Evaluation] = []
        self._number = 0

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        """Have evaluations wait."""
        self._waiting += evaluations

    def results(
        self, metric: str | None, resource_attr: str | None, max_resource: int | None
    ) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Yield (negative trial id, configuration, report) of those that wait, once.

        Args:
            metric: Name of the metric.
            resource_attr: Name of the resource. Without one the last report of a complete training is its result; with
                one all reports count, those without it at the maximum.
            max_resource: The maximum.

        Raises:
            ValueError: If the name of the metric is not known.
        """
        if self._waiting and metric is None:
            raise ValueError("fit_on needs the name of the metric; give it to the searcher: metric=...")
        waiting, self._waiting = self._waiting, []
        for evaluation in waiting:
            self._number += 1
            reports = evaluation.results
            if resource_attr is None:
                reports = reports[-1:] if evaluation.complete else []
            for report in reports:
                result = dict(report) if isinstance(report, Mapping) else {metric or "": report}
                if resource_attr is not None and max_resource is not None:
                    result.setdefault(resource_attr, max_resource)
                yield _FIRST_ID - self._number, evaluation.config, result

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as plain containers."""
        waiting = [[dict(e.config), [_copy(r) for r in e.results], e.complete] for e in self._waiting]
        return {"waiting": waiting, "number": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._waiting = [
            Evaluation(dict(c), [_copy(r) for r in results], done) for c, results, done in state["waiting"]
        ]
        self._number = state["number"]


def _copy(report: dict[str, Any] | float) -> dict[str, Any] | float:
    return dict(report) if isinstance(report, Mapping) else report


def read_evaluations(
    trials: Any, config_space: Mapping[str, Any], metric: str | None, mode: str, fill: Mapping[str, Any] | None
) -> list[Evaluation]:
    """Return evaluations whose configurations lie in a space; a warning says how many others there are.

    Args:
        trials: An experiment, a data frame of results, or pairs; see
            :meth:`~sthyper.searchers.bayesopt.BayesianOptimizationSearcher.fit_on`.
        config_space: The configuration space.
        metric: Name of the metric, if it is known.
        mode: ``"min"`` or ``"max"``.
        fill: Values of hyperparameters for configurations that lack them.

    Raises:
        ConfigSpaceError: If ``fill`` has an unknown name or a value outside its domain, or a pair's configuration lacks
            a hyperparameter.
        TypeError: If ``trials`` has none of these forms.
        ValueError: If the metric is none of those of an experiment, or has the other mode there.
    """
    domains = {name: domain for name, domain in config_space.items() if isinstance(domain, Domain)}
    filled = _check_fill({} if fill is None else fill, domains)
    found = list(_of_frame(trials, metric, mode) if _frame(trials) is not None else _of_pairs(trials, domains, filled))
    kept, outside = [], 0
    for evaluation in found:
        config = filled | {name: v for name, v in evaluation.config.items() if name in domains}
        try:
            config = {name: domain.coerce(config[name]) for name, domain in domains.items()}
        except (KeyError, ConfigSpaceError):
            outside += 1
            continue
        kept.append(Evaluation(config, evaluation.results, evaluation.complete))
    if outside or not kept:
        logger.warning(
            "fit_on: %d of %d configurations are passed over, they lack a hyperparameter or lie outside the space",
            outside,
            len(found),
        )
    return kept


def _check_fill(fill: Mapping[str, Any], domains: Mapping[str, Domain]) -> dict[str, Any]:
    if not isinstance(fill, Mapping):
        raise TypeError(f"fill must be a dict of hyperparameters, got {fill!r}")
    result = {}
    for name, value in fill.items():
        if name not in domains:
            raise ConfigSpaceError(f"fill: {name!r} is no domain of the configuration space{closest(name, domains)}")
        try:
            result[name] = domains[name].coerce(value)
        except ConfigSpaceError as error:
            raise ConfigSpaceError(f"fill: value {value!r} of {name!r} cannot be used: {error}") from None
    return result


# ---- experiments -----------------------------------------------------------------------------------------


def _frame(trials: Any) -> Any:
    """Return the data frame of an experiment, or the data frame itself; ``None`` if it is neither."""
    frame = getattr(trials, "results", trials)
    return frame if hasattr(frame, "columns") and hasattr(frame, "to_dict") else None


def _of_frame(trials: Any, metric: str | None, mode: str) -> Iterator[Evaluation]:
    frame = _frame(trials)
    summaries = getattr(trials, "trials", {}) if frame is not trials else {}
    if frame is not trials:
        _check_mode(trials, metric, mode)
    columns = [str(column) for column in frame.columns]
    if metric is not None and len(frame) and metric not in columns:
        reported = [column for column in columns if not column.startswith(("st_", _CONFIG_PREFIX))]
        raise ValueError(
            f"fit_on: {metric!r} is not among the results{closest(metric, reported)}; they have {reported}"
        )
    rows: dict[Any, list[dict[str, Any]]] = {}
    for number, row in enumerate(frame.to_dict("records")):
        rows.setdefault(row.get(_TRIAL, ("row", number)), []).append(row)
    for trial_id, reports in rows.items():
        config = {
            name.removeprefix(_CONFIG_PREFIX): value
            for name, value in reports[-1].items()
            if name.startswith(_CONFIG_PREFIX) and not _is_missing(value)
        }
        results: list[dict[str, Any] | float] = [
            {name: _plain(value) for name, value in report.items() if not name.startswith(_CONFIG_PREFIX)}
            for report in reports
        ]
        summary = summaries.get(trial_id)
        yield Evaluation(config, results, summary is None or str(summary.status) == "Completed")


def _check_mode(experiment: Any, metric: str | None, mode: str) -> None:
    names = list(experiment.metric_names())
    if metric not in names:
        return
    modes = experiment.metric_mode()
    other = modes if isinstance(modes, str) else modes[names.index(metric)]
    if other != mode:
        raise ValueError(f"fit_on: {metric!r} has the mode {other!r} in the experiment and {mode!r} here")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# ---- pairs -----------------------------------------------------------------------------------------------


def _of_pairs(trials: Any, domains: Mapping[str, Domain], filled: Mapping[str, Any]) -> Iterator[Evaluation]:
    if isinstance(trials, str | Mapping) or not isinstance(trials, Iterable):
        raise TypeError(
            f"trials must be an experiment, a data frame of results or pairs (configuration, result), got {trials!r}"
        )
    for position, pair in enumerate(trials):
        where = f"trials[{position}]"
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], Mapping):
            raise TypeError(f"{where} must be a pair (configuration, value of the metric or reports), got {pair!r}")
        missing = [name for name in domains if name not in pair[0] and name not in filled]
        if missing:
            raise ConfigSpaceError(f"{where}: the configuration lacks {', '.join(missing)}")
        reports = pair[1]
        listed = list(reports) if isinstance(reports, Sequence) and not isinstance(reports, str) else [reports]
        if not listed:
            raise ValueError(f"{where} must hold at least one report, the list is empty")
        results: list[dict[str, Any] | float] = []
        for report in listed:
            if isinstance(report, Mapping):
                results.append({str(name): _plain(value) for name, value in report.items()})
            else:
                results.append(_number(report, where))
        yield Evaluation(dict(pair[0]), results)


def _plain(value: Any) -> Any:
    """Return numbers of NumPy and torch as those of Python."""
    return value.item() if hasattr(value, "item") else value


def _number(value: Any, where: str) -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{where} must have a number or reports such as {{'loss': 0.1}}, got {value!r}")
    return float(value)
