"""First in, first out: every configuration is trained to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sthyper.schedulers.base import TrialSchedulerWithSearcher
from sthyper.schedulers.options import SearcherArguments, make_searcher
from sthyper.schedulers.resources import infer_max_resource
from sthyper.searchers.base import BaseSearcher
from sthyper.time_keeper import TimeKeeper
from sthyper.trial import SchedulerDecision, Trial

__all__ = ["FIFOScheduler"]


class FIFOScheduler(TrialSchedulerWithSearcher):
    """Starts what the searcher suggests and never stops a trial.

    Reports reach the searcher as they come, but only a trial's last report, when it completes, updates it.

    Args:
        config_space: Configuration space.
        metric: Name of the reported metric that is optimised.
        mode: ``"min"`` or ``"max"``.
        searcher: A searcher, its name (``"random"`` or ``"grid"``), or ``None`` for random search.
        search_options: Options of a named searcher, those of :class:`~sthyper.searchers.RandomSearcher` or
            :class:`~sthyper.searchers.GridSearcher`.
        points_to_evaluate: Configurations to suggest first; partial ones are completed by the mid-point rule.
            ``None`` is one configuration of mid-points, ``[]`` none. Goes into the searcher's constructor if
            ``searcher`` is an object.
        random_seed: Seed in [0, 2**31 - 1] of scheduler and searcher; drawn from the system if ``None``.
        max_resource_attr: Name of the constant of ``config_space`` that holds the maximum resource.
        max_t: Maximum resource. By default ``config_space[max_resource_attr]``, else the constant ``epochs``,
            ``max_t`` or ``max_epochs`` of the space, if there is one. The searcher and ``Reporter().objective`` get
            it; no decision depends on it.
        progress_attr: Name of a number in reports that tells how far a trial has come: the epochs or steps done. A
            trial that was killed, or ran when its tuner ended, then goes on behind its last report, from its
            checkpoint if it has one (``STHYPER_LAST_RESOURCE``, ``Reporter().last_resource``), and what it repeats is
            recorded as ``IGNORED`` and does not count. This holds for each trial whose reports all have the number,
            larger each time; those of other trials count whenever they come, and such trials begin anew. ``None`` for
            reports whose number says something else.
        time_keeper: The experiment's clock; see :class:`~sthyper.schedulers.TrialSchedulerWithSearcher`.

    Raises:
        ConfigSpaceError: If the space, or ``max_resource_attr`` in it, cannot be used.
        TypeError: If an argument has the wrong type.
        ValueError: If ``mode``, the name of the searcher or an option is unknown, or ``progress_attr`` is the metric.
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
        max_resource_attr: str | None = None,
        max_t: int | None = None,
        time_keeper: TimeKeeper | None = None,
        progress_attr: str | None = "epoch",
    ) -> None:
        arguments = SearcherArguments(config_space, metric, mode, points_to_evaluate)
        super().__init__(
            config_space,
            metric=metric,
            mode=mode,
            searcher=make_searcher(searcher, search_options, arguments),
            random_seed=random_seed,
            time_keeper=time_keeper,
        )
        # The name itself stays unset: no level is ever written into a configuration.
        self.max_resource_level = infer_max_resource(config_space, max_t, max_resource_attr)
        if progress_attr is not None and (not isinstance(progress_attr, str) or not progress_attr):
            raise TypeError(f"progress_attr must be the name of a number in reports, or None, got {progress_attr!r}")
        if progress_attr == metric and progress_attr != "epoch":
            raise ValueError(f"progress_attr and metric must be different names, both are {metric!r}")
        self.progress_attr = None if progress_attr == metric else progress_attr
        # Trial -> its configuration as the searcher knows it, while the trial runs.
        self._searcher_configs: dict[int, dict[str, Any]] = {}

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        self._metric_value(result)
        config = self._searcher_configs.get(trial.trial_id)
        if config is None:
            config = self._searcher_configs[trial.trial_id] = self._preprocess_config(trial.config)
        self._tell_searcher("on_trial_result", trial.trial_id, config, result, False)
        return SchedulerDecision.CONTINUE

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self._searcher_configs.pop(trial.trial_id, None)
        super().on_trial_complete(trial, result)

    def on_trial_error(self, trial: Trial) -> None:
        self._searcher_configs.pop(trial.trial_id, None)
        super().on_trial_error(trial)
