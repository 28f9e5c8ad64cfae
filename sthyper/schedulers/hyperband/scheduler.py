"""Asynchronous successive halving: a few reports decide which trials get more resource."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sthyper.errors import ReportError, closest
from sthyper.schedulers.base import TrialSchedulerWithSearcher
from sthyper.schedulers.hyperband.levels import geometric_rung_levels
from sthyper.schedulers.hyperband.promotion import PromotionRungSystem
from sthyper.schedulers.hyperband.rungs import RungSystem
from sthyper.schedulers.hyperband.stopping import StoppingRungSystem
from sthyper.schedulers.options import SearcherArguments, make_searcher
from sthyper.schedulers.resources import MAX_RESOURCE_NAMES, infer_max_resource, report_resource
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["HyperbandScheduler"]

logger = logging.getLogger(__name__)

_RUNG_SYSTEMS: dict[str, Callable[[tuple[int, ...], int], RungSystem]] = {
    "stopping": StoppingRungSystem,
    "promotion": PromotionRungSystem,
}


@dataclass(slots=True)
class _Record:
    """What the scheduler keeps of a trial.

    Args:
        milestone: Level of the next decision.
        resource: Largest level that counted.
        updated: Largest level that updated the searcher.
        decision: Last decision; STOP once the trial has ended.
        config: Configuration for a resume, where that is needed.
        searcher_config: Configuration as the searcher knows it.
    """

    milestone: int
    resource: int = 0
    updated: int = 0
    decision: str = SchedulerDecision.CONTINUE
    config: dict[str, Any] | None = None
    searcher_config: dict[str, Any] | None = None


class HyperbandScheduler(TrialSchedulerWithSearcher):
    r"""Asynchronous successive halving (ASHA), as stopping or as promotion variant.

    Decisions fall at rung levels :math:`r_j = r_{min} \eta^j` below the maximum resource. With
    ``type="stopping"`` a trial ends at a rung unless it is among the best there so far. With
    ``type="promotion"`` it pauses at every rung, and a free worker resumes the best paused trial that qualifies
    before a new one is started. In both, :math:`q_j = r_j / r_{j+1}` is the share of a rung that is good enough,
    with :math:`r_{max}` after the last rung level. Values that are NaN or infinite rank behind all finite ones in
    both modes and never get past a rung that has other entries.

    The searcher learns from reports at rung levels, at the maximum, and from the last one of a completed trial.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        searcher: A searcher, its name (``"random"``), or ``None`` for random search.
        search_options: Options of a named searcher, for random search those of
            :class:`~sthyper.searchers.RandomSearcher`.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none. Goes into the searcher's constructor if
            ``searcher`` is an object.
        random_seed: Seed in [0, 2**31 - 1] of scheduler and searcher; drawn from the system if ``None``.
        resource_attr: Name of the resource in reports: a positive integer that counts from 1, reported at every
            rung level (every epoch, usually).
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource. Preferred to
            ``max_t``: a trial at the maximum then ends in order instead of being stopped.
        max_t: Maximum resource. By default ``config_space[max_resource_attr]``, else the constant ``epochs``,
            ``max_t`` or ``max_epochs`` of the space.
        type: ``"stopping"`` (default) or ``"promotion"``.
        rung_system: A rung system in place of ``type``, ``grace_period`` and ``reduction_factor``; its ``max_t``
            is the maximum resource.
        grace_period: Lowest rung level; default 1.
        reduction_factor: Ratio :math:`\eta \ge 2` of neighbouring rung levels, an int or float; default 3.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or unknown, contradicts another, or if the maximum resource is
            not known.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934
    """

    def __init__(
        self,
        config_space: dict[str, Any],
        metric: str,
        mode: str = "min",
        searcher: BaseSearcher | str | None = None,
        search_options: Mapping[str, Any] | None = None,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        random_seed: int | None = None,
        resource_attr: str = "epoch",
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        type: str | None = None,
        rung_system: RungSystem | None = None,
        grace_period: int | None = None,
        reduction_factor: float | None = None,
    ) -> None:
        arguments = SearcherArguments(config_space, metric, mode, points_to_evaluate)
        super().__init__(
            config_space,
            metric=metric,
            mode=mode,
            searcher=make_searcher(searcher, search_options, arguments),
            random_seed=random_seed,
        )
        if not isinstance(resource_attr, str) or not resource_attr:
            raise TypeError(f"resource_attr must be the name of the reported resource, got {resource_attr!r}")
        if resource_attr == metric:
            raise ValueError(f"resource_attr and metric must be different names, both are {metric!r}")
        self.resource_attr = resource_attr
        self.max_resource_attr = max_resource_attr
        if rung_system is None:
            limit = infer_max_resource(config_space, max_t, max_resource_attr)
            if limit is None:
                raise ValueError(
                    "the maximum resource is not known: give max_resource_attr= (the name of a constant of "
                    f"config_space) or max_t=, or a constant {' or '.join(map(repr, MAX_RESOURCE_NAMES))} in "
                    "config_space"
                )
            kind = "stopping" if type is None else type
            if not isinstance(kind, str) or kind not in _RUNG_SYSTEMS:
                raise ValueError(
                    f"type must be one of {list(_RUNG_SYSTEMS)}, got {kind!r}{closest(kind, _RUNG_SYSTEMS)}"
                )
            levels = geometric_rung_levels(
                1 if grace_period is None else grace_period,
                3 if reduction_factor is None else reduction_factor,
                limit,
            )
            rung_system = _RUNG_SYSTEMS[kind](levels, limit)
        else:
            if not isinstance(rung_system, RungSystem):
                raise TypeError(f"rung_system must be a RungSystem, got {rung_system!r}")
            given = {"type": type, "grace_period": grace_period, "reduction_factor": reduction_factor}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r} cannot be given together with rung_system={rung_system}")
            if max_t is not None or max_resource_attr is not None:
                limit = infer_max_resource(config_space, max_t, max_resource_attr)
                if limit != rung_system.max_t:
                    raise ValueError(f"the maximum resource {limit} differs from that of rung_system={rung_system}")
        self.rung_system = rung_system
        self.max_resource_level = rung_system.max_t
        self._levels = frozenset(rung_system.rung_levels)
        self._sign = -1.0 if mode == "max" else 1.0
        self._records: dict[int, _Record] = {}
        self._skip_warned: set[int] = set()  # rung levels; only for not saying it twice

    # ---- description ---------------------------------------------------------------------------------

    @property
    def rung_levels(self) -> list[int]:
        """The levels at which trials are compared, all below the maximum resource."""
        return list(self.rung_system.rung_levels)

    def does_pause_resume(self) -> bool:
        """Whether trials are paused at rungs and resumed later (promotion), or stopped for good."""
        return self.rung_system.pauses

    def milestone(self, trial_id: int) -> int | None:
        """Return the level of the next decision about a running trial, ``None`` for any other."""
        record = self._records.get(trial_id)
        return None if record is None or record.decision != SchedulerDecision.CONTINUE else record.milestone

    # ---- suggestions ---------------------------------------------------------------------------------

    def _searcher_context(self) -> SearcherContext:
        return replace(super()._searcher_context(), rung_levels=self.rung_system.rung_levels)

    def _promote(self, trial_id: int) -> TrialSuggestion | None:
        promotion = self.rung_system.promote()
        if promotion is None:
            return None
        record = self._records[promotion.trial_id]
        record.decision = SchedulerDecision.CONTINUE
        record.milestone = promotion.milestone
        self._tell_searcher("register_pending", promotion.trial_id, record.searcher_config, record.milestone)
        config = None
        if self.max_resource_attr is not None and record.config is not None:
            config = record.config | {self.max_resource_attr: record.milestone}
        return TrialSuggestion.resume_suggestion(promotion.trial_id, config)

    def _new_trial(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        milestone = self.rung_system.next_level(0)
        record = self._records[trial_id] = _Record(milestone, searcher_config=config)
        self._tell_searcher("register_pending", trial_id, config, milestone)
        if self.does_pause_resume() and self.max_resource_attr is not None:
            record.config = config
            config = config | {self.max_resource_attr: milestone}
        return TrialSuggestion.start_suggestion(config)

    # ---- events --------------------------------------------------------------------------------------

    def on_trial_add(self, trial: Trial) -> None:
        self._record(trial)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        """Decide about a trial that reported.

        A report of a trial that was stopped or paused gets the same decision again, one whose resource does not
        exceed the largest so far CONTINUE; neither counts.

        Raises:
            ReportError: If the metric is missing or no number, the resource missing or no positive integer, or if
                the report of a trial that is to pause lies beyond its milestone.
        """
        value = self._metric_value(result)
        assert self.resource_attr is not None
        resource = report_resource(result, self.resource_attr, self.metric)
        record = self._records.get(trial.trial_id) or self._record(trial)
        if record.decision != SchedulerDecision.CONTINUE or resource <= record.resource:
            return record.decision
        decision = SchedulerDecision.CONTINUE
        if resource >= record.milestone:
            decision = self._decide(trial.trial_id, record, resource, self._sign * value)
        record.resource = resource
        record.decision = decision
        self._teach(trial, record, result)
        return decision

    def on_trial_remove(self, trial: Trial) -> None:
        self._tell_searcher("cleanup_pending", trial.trial_id)

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        record = self._record(trial)
        if record.resource > record.updated:
            record.updated = record.resource
            self._tell_searcher("on_trial_result", trial.trial_id, record.searcher_config, result, True)
        self._tell_searcher("cleanup_pending", trial.trial_id)
        self._end(trial)

    def on_trial_error(self, trial: Trial) -> None:
        super().on_trial_error(trial)
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        record = self._record(trial)
        record.decision = SchedulerDecision.STOP
        record.config = record.searcher_config = None
        self.rung_system.discard(trial.trial_id)

    def _record(self, trial: Trial) -> _Record:
        """Return the record of a trial, with what only the trial itself knows filled in."""
        record = self._records.get(trial.trial_id)
        if record is None:  # started by hand
            record = self._records[trial.trial_id] = _Record(self.rung_system.next_level(0))
        if record.searcher_config is None:
            record.searcher_config = self._preprocess_config(trial.config)
        if self.does_pause_resume() and self.max_resource_attr is not None:
            record.config = dict(trial.config)
        return record

    def _decide(self, trial_id: int, record: _Record, resource: int, value: float) -> str:
        """Decide about a report at the trial's milestone or beyond it."""
        system = self.rung_system
        if resource > record.milestone != system.max_t:
            self._skipped(trial_id, record.milestone, resource)
        if resource >= system.max_t:
            return SchedulerDecision.STOP
        goes_on = resource not in self._levels or system.register(trial_id, resource, value)
        if goes_on:
            record.milestone = system.next_level(resource)
            return SchedulerDecision.CONTINUE
        return SchedulerDecision.PAUSE if system.pauses else SchedulerDecision.STOP

    def _skipped(self, trial_id: int, level: int, resource: int) -> None:
        assert self.resource_attr is not None
        what = (
            f"{self.resource_attr}={resource} was reported without {self.resource_attr}={level}, a rung level "
            f"(rung levels: {self.rung_levels}); report {self.metric!r} at every rung level, at best at every "
            f"{self.resource_attr}"
        )
        if self.does_pause_resume():
            raise ReportError(f"trial {trial_id}: {what}")
        if level not in self._skip_warned:
            self._skip_warned.add(level)
            logger.warning("trial %d: %s. A trial that skips a rung goes on there without comparison", trial_id, what)

    def _teach(self, trial: Trial, record: _Record, result: dict[str, Any]) -> None:
        """Pass a report that counted to the searcher."""
        if record.searcher_config is None:
            record.searcher_config = self._preprocess_config(trial.config)
        update = record.resource in self._levels or record.resource == self.max_resource_level
        if update:
            record.updated = record.resource
        self._tell_searcher("on_trial_result", trial.trial_id, record.searcher_config, result, update)
        if update and record.decision == SchedulerDecision.CONTINUE:
            self._tell_searcher("register_pending", trial.trial_id, record.searcher_config, record.milestone)

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        trials = {
            str(trial_id): {
                "milestone": record.milestone,
                "resource": record.resource,
                "updated": record.updated,
                "decision": record.decision,
                "config": None if record.config is None else dict(record.config),
                "searcher_config": None if record.searcher_config is None else dict(record.searcher_config),
            }
            for trial_id, record in self._records.items()
        }
        return super().state_dict() | {"trials": trials, "rung_system": self.rung_system.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rung_system.load_state_dict(state["rung_system"])
        self._records = {int(trial_id): _Record(**fields) for trial_id, fields in state["trials"].items()}
        super().load_state_dict(state)
