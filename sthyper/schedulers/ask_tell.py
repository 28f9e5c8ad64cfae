"""A scheduler without a tuner: the caller asks what to train, and tells what came out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sthyper._metrics_statistics import none_keeps
from sthyper._space.points import complete_config
from sthyper.errors import closest
from sthyper.schedulers.asked_trials import (
    AskedTrial,
    TrialHistory,
    best_history,
    failure_reason,
    plain_metrics,
)
from sthyper.schedulers.base import PendingSuggestion, TrialScheduler
from sthyper.schedulers.reports import ReportKind, check_result, judge_report, resource_of, settle_decision
from sthyper.trial import (
    SchedulerDecision,
    Status,
    Trial,
    TrialResult,
    TrialSuggestion,
    draw_seed,
    trial_seed,
)

__all__ = ["AskTellScheduler"]

logger = logging.getLogger(__name__)

_STATE_VERSION = 1
_DECISIONS = (SchedulerDecision.CONTINUE, SchedulerDecision.PAUSE, SchedulerDecision.STOP)
_MANY_OPEN_TRIALS = 32


class AskTellScheduler:
    """Drives any scheduler from a loop of the caller, as the tuner would.

    ::

        scheduler = AskTellScheduler(ASHA(config_space, metric="loss", max_t=27, type="promotion"))
        while (trial := scheduler.ask()) is not None and trial.trial_id < 100:
            model = load(trial) if trial.last_resource else build(trial.config)
            for epoch in range((trial.last_resource or 0) + 1, 28):
                loss = train_one_epoch(model)
                if scheduler.tell(trial, epoch=epoch, loss=loss) != "CONTINUE":
                    break
            save(model, trial)
        print(scheduler.best_trial().config)

    Several trials may run at the same time: ask several times before telling. Which reports count and what follows
    from a decision are the tuner's rules, with one difference: nobody knows what the caller does after a training
    loop, so a STOP at the maximum resource is passed on. The trial is then complete.

    The methods must not be called from several threads at once.

    Args:
        base_scheduler: A new scheduler of any kind.

    Raises:
        TypeError: If it is no :class:`~sthyper.schedulers.TrialScheduler`.
    """

    def __init__(self, base_scheduler: TrialScheduler) -> None:
        if not isinstance(base_scheduler, TrialScheduler):
            raise TypeError(f"base_scheduler must be a TrialScheduler, got {base_scheduler!r}")
        self.base_scheduler = base_scheduler
        seed = base_scheduler.random_seed
        self._seed = draw_seed() if seed is None else seed
        self._records: dict[int, TrialHistory] = {}
        self._queue: list[dict[str, Any]] = []
        self._added = 0
        self._warn_of_open_trials = base_scheduler.resource_attr is None

    # ---- ask -----------------------------------------------------------------------------------------

    def ask(self) -> AskedTrial | None:
        """Return what to train next: a new trial, or one that was paused and goes on.

        Returns:
            The trial; ``None`` if there is nothing to train now. While trials run, ask again when one has ended or
            paused: it may decide about others.
        """
        self._check_open_trials()
        new_id = len(self._records)
        if self._queue:
            suggestion: TrialSuggestion | None = self.base_scheduler.suggest_enqueued(new_id, self._queue[0])
            del self._queue[0]  # only now: it is not lost if the scheduler raises
        else:
            begun = self.base_scheduler.begin_suggest(new_id)
            suggestion = begun.finish(begun.compute()) if isinstance(begun, PendingSuggestion) else begun
        if suggestion is None:
            return None
        return self._start(new_id, suggestion) if suggestion.spawn_new_trial_id else self._resume(suggestion)

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """Have a configuration of the caller's tried next, before what the scheduler would suggest.

        Args:
            config: Hyperparameters; missing ones take the mid-point of their domain.

        Raises:
            ConfigSpaceError: If it has an unknown name or a value outside its domain.
            TypeError: If it is no mapping.
        """
        self._queue.append(complete_config(config, self.base_scheduler.config_space, "config"))

    def add_result(self, config: Mapping[str, Any], metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Let the scheduler learn from a configuration that was trained elsewhere.

        Args:
            config: All hyperparameters; constants may be left out.
            metrics: What was reported, or a list of reports in the order of the resource. A report at a resource that
                is not above that of the one before it begins another evaluation of the configuration; without
                resources each is one.

        Raises:
            ConfigSpaceError: If ``config`` lacks a hyperparameter, has an unknown one or a value outside its domain.
            TypeError: If an argument has the wrong type.
            ValueError: If the metric is missing or no number, or the resource cannot be used. One without a resource
                counts at the maximum.
        """
        scheduler = self.base_scheduler
        tuned = complete_config(config, scheduler.config_space, "config", partial=False)
        reports = [metrics] if isinstance(metrics, Mapping) else metrics
        if isinstance(reports, str) or not isinstance(reports, Sequence):
            raise TypeError(f"metrics must be a dict such as {{'loss': 0.1}}, or a list of them, got {metrics!r}")
        if not reports:
            raise ValueError("metrics must hold at least one report, the list is empty")
        results = [check_result(plain_metrics(report), scheduler) for report in reports]
        last: float | None = None
        for result in results:
            resource = resource_of(result, scheduler.resource_attr)
            if last is None or resource is None or resource <= last:
                self._added += 1
            last = resource
            scheduler.add_result(-self._added, dict(tuned), result)

    def _check_open_trials(self) -> None:
        """Warn once of a loop that never ends its trials: nothing would be learned from them."""
        if not self._warn_of_open_trials or len(self._records) < _MANY_OPEN_TRIALS:
            return
        self._warn_of_open_trials = False
        if all(record.status is Status.in_progress and record.reports for record in self._records.values()):
            logger.warning(
                "%d trials have results and none has ended; end each by tell(trial, ..., done=True), else the "
                "scheduler learns nothing from it",
                len(self._records),
            )

    def _start(self, trial_id: int, suggestion: TrialSuggestion) -> AskedTrial:
        assert suggestion.config is not None
        source = suggestion.checkpoint_trial_id
        if source is not None and source not in self._records:
            name = type(self.base_scheduler).__name__
            raise ValueError(f"{name} wants to start from the checkpoint of trial {source}, which never started")
        seed = trial_seed(self._seed, trial_id)
        full, milestone = self._full_config(suggestion.config, seed)
        trial = Trial(trial_id, full, datetime.now(), seed=seed)
        record = TrialHistory(trial, milestone=milestone, checkpoint_trial_id=source)
        self._records[trial_id] = record
        self.base_scheduler.on_trial_add(trial)
        record.milestone = self.base_scheduler.milestone(trial_id) or milestone
        return record.asked()

    def _resume(self, suggestion: TrialSuggestion) -> AskedTrial:
        trial_id = suggestion.checkpoint_trial_id
        assert trial_id is not None
        record = self._records.get(trial_id)
        if record is None or record.status is not Status.paused:
            state = "never started" if record is None else f"is {record.status.value}"
            name = type(self.base_scheduler).__name__
            raise ValueError(f"{name} wants to resume trial {trial_id}, which {state}; only paused trials can go on")
        milestone, trial = None, record.trial
        if suggestion.config is not None:
            trial.config, milestone = self._full_config({**trial.config, **suggestion.config}, trial.seed)
        record.begin_run()
        record.milestone = self.base_scheduler.milestone(trial_id) or milestone
        self.base_scheduler.on_trial_resume(trial)
        return record.asked()

    def _full_config(self, config: dict[str, Any], seed: int | None) -> tuple[dict[str, Any], int | None]:
        """Return the configuration with seed and maximum resource, and the milestone that was in place of that."""
        full, space = copy.deepcopy(config), self.base_scheduler.config_space
        if "seed" in full and space.get("seed", 0) is None:
            full["seed"] = seed
        name = self.base_scheduler.max_resource_attr
        if name is None or name not in full:
            return full, None
        milestone, full[name] = full[name], space[name]
        return full, milestone

    # ---- tell ----------------------------------------------------------------------------------------

    def tell(
        self,
        trial: Trial | int,
        experiment_result: Mapping[str, Any] | None = None,
        *,
        done: bool = False,
        **metrics: Any,
    ) -> str:
        """Report metrics of a running trial, and get the decision about it.

        For schedulers with a resource the first report of a trial at a resource counts; one at a resource that the
        trial has reported already changes nothing, neither in the same run nor after a resume.

        Args:
            trial: What :meth:`ask` returned, or its id.
            experiment_result: Metrics by name; for names that are no Python identifiers.
            done: Whether the training has ended, by itself: no decision is wanted any more, and what the trial
                reported last is its result. Not needed after a STOP or PAUSE.
            metrics: Metrics by name: the objective, and the resource (``epoch=3``) if the scheduler has one.

        Returns:
            ``"CONTINUE"``, ``"PAUSE"`` (keep a checkpoint: :meth:`ask` may return the trial later) or ``"STOP"``
            (the trial has ended for good); ``"STOP"`` if ``done``.

        Raises:
            ReportError: If the metric or the resource is missing or cannot be used. The trial still runs.
            TypeError: If an argument has the wrong type.
            ValueError: If the trial is unknown, paused or has ended, nothing was told, or a name is given twice.
        """
        record = self._running(trial)
        given = plain_metrics(experiment_result, metrics)
        if not isinstance(done, bool):
            raise TypeError(f"done must be True or False, got {done!r}; a metric of this name goes into a dict")
        if not given and not done:
            raise ValueError("tell() got no metrics; call it as tell(trial, epoch=3, loss=0.25) or with done=True")
        if not given and not record.reports:
            raise ValueError(
                f"trial {record.trial.trial_id} is done without a result; tell its metrics: "
                f"tell(trial, {self.base_scheduler.metric_names()[0]}=..., done=True), or call fail(trial)"
            )
        answer: str = SchedulerDecision.CONTINUE
        if given:
            answer = self._report(record, given, done)
        elif done:
            self._complete(record)
        return SchedulerDecision.STOP if done else answer

    def fail(self, trial: Trial | int, reason: str = "exit 1", blacklist: bool = True) -> None:
        """Tell that the training of a running trial failed; it has ended then.

        Args:
            trial: What :meth:`ask` returned, or its id.
            reason: Why: ``"out_of_memory"``, ``"exit 1"``, ``"killed"``, ``"hung"``, or any text. What the scheduler
                sees, and ``end_reason`` of the trial, begins with ``exit 1: `` or ``killed: `` where the text does
                not tell whose fault it was.
            blacklist: Whether the configuration is to blame and must not be suggested again. Not so if the trial was
                killed from outside.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If the trial is unknown, paused or has ended.
        """
        record = self._running(trial)
        if not isinstance(reason, str) or not reason:
            raise TypeError(f"reason must be a text, got {reason!r}")
        if not isinstance(blacklist, bool):
            raise TypeError(f"blacklist must be True or False, got {blacklist!r}")
        self._end(record, Status.failed, failure_reason(reason, blacklist))
        self.base_scheduler.on_trial_error(record.trial)

    def _report(self, record: TrialHistory, metrics: dict[str, Any], done: bool) -> str:
        """Decide about a report and do what follows from it; returns the answer."""
        resource = resource_of(metrics, self.base_scheduler.resource_attr)
        kind = judge_report(record, resource)
        if kind is ReportKind.counts:
            return self._decide(record, metrics, resource, done)
        if kind is ReportKind.ignored:
            self.base_scheduler.on_trial_repeat(record.trial, metrics)
        elif not record.warned:
            record.warned = True
            logger.warning(
                "trial %d: several reports at %s=%s, the first counts; tell once an epoch, after it",
                record.trial.trial_id,
                self.base_scheduler.resource_attr,
                resource,
            )
        if done:
            self._complete(record)
        return SchedulerDecision.CONTINUE  # a trial that still runs was told nothing else before

    def _decide(self, record: TrialHistory, metrics: dict[str, Any], resource: float | None, done: bool) -> str:
        scheduler, trial = self.base_scheduler, record.trial
        reported, result = resource, metrics
        if (
            resource is not None
            and record.milestone is not None
            and resource > record.milestone
            and record.run > 0
            and record.counted_in_run == 0
        ):
            logger.warning(
                "trial %d went on beyond its milestone: its report at %s=%s counts as that of %s. Go on from "
                "trial.last_resource to avoid this",
                trial.trial_id,
                scheduler.resource_attr,
                resource,
                record.milestone,
            )
            assert scheduler.resource_attr is not None
            resource = record.milestone
            result = {**metrics, scheduler.resource_attr: resource}
        decision = scheduler.on_trial_result(trial, result)
        if decision not in _DECISIONS:
            name = type(scheduler).__name__
            raise ValueError(f"{name}.on_trial_result must return one of {list(_DECISIONS)}, got {decision!r}")
        _, completes = settle_decision(decision, resource, scheduler.max_resource_level, scheduler.max_resource_attr)
        answer = SchedulerDecision.STOP if completes else decision
        record.book(result, scheduler.result_columns(), resource, reported, answer)
        if completes or done:
            self._complete(record)
        elif answer == SchedulerDecision.CONTINUE:
            record.milestone = scheduler.milestone(trial.trial_id) or record.milestone
        else:
            self._end(record, Status.stopped if answer == SchedulerDecision.STOP else Status.paused)
            scheduler.on_trial_remove(trial)
        return answer

    def _complete(self, record: TrialHistory) -> None:
        assert record.last_result is not None
        self._end(record, Status.completed)
        self.base_scheduler.on_trial_complete(record.trial, record.last_result)

    def _end(self, record: TrialHistory, status: Status, reason: str | None = None) -> None:
        record.status = status
        record.trial.end_reason = reason
        if status is not Status.paused:
            record.end()

    def _running(self, trial: Trial | int) -> TrialHistory:
        """Return the record of a trial that may be told about."""
        trial_id = trial.trial_id if isinstance(trial, Trial) else trial
        if isinstance(trial_id, bool) or not isinstance(trial_id, int):
            raise TypeError(f"trial must be what ask() returned, or its id, got {trial!r}")
        record = self._records.get(trial_id)
        if record is None:
            raise ValueError(f"trial {trial_id} is unknown: ask() has returned {len(self._records)} trials so far")
        if record.status is Status.in_progress:
            return record
        where = "" if record.largest is None else f" at {self.base_scheduler.resource_attr}={record.largest}"
        if record.status is Status.paused:
            raise ValueError(f"trial {trial_id} was paused{where}: it may go on only when ask() returns it again")
        raise ValueError(f"trial {trial_id} has ended ({record.status.value}{where}): there is nothing more to tell")

    # ---- results -------------------------------------------------------------------------------------

    def best_trial(self, metric: str | None = None, by: str = "observed") -> TrialResult:
        """Return the trial with the best value that any of its reports has, the earlier one of equals.

        If the searcher has constraints, the reports that keep them count. If there are none, a warning is logged and
        those count of which it is not known, or else all.

        Args:
            metric: Name of a metric of the scheduler; the first one if ``None``.
            by: ``"observed"``: as above; ``"model"``: the trial at whose configuration a model of all results has the
                best mean, for noisy metrics. It is the model of the searcher if that has one.

        Raises:
            ValueError: If the metric or ``by`` is unknown, or no finite value was told yet.
        """
        names = self.base_scheduler.metric_names()
        name = names[0] if metric is None else metric
        if name not in names:
            raise ValueError(f"metric must be one of {names}, got {metric!r}{closest(metric, names)}")
        modes = self.base_scheduler.metric_mode()
        mode = modes if isinstance(modes, str) else modes[names.index(name)]
        constraints = self.base_scheduler.outcome_constraints()
        observed = best_history(self._records.values(), name, mode == "min", constraints)
        best = None if observed is None else observed[0]
        if by != "observed":
            best = self._best_by_model(name, mode, by)
        if best is None:
            raise ValueError(f"no trial has a finite {name!r} yet")
        if observed is not None and not observed[1]:
            logger.warning("%s", none_keeps(constraints, name))
        return best.result()

    def _best_by_model(self, name: str, mode: str, by: str) -> TrialHistory | None:
        from sthyper.searchers.bayesopt.best import best_by_model, check_by

        check_by(by)
        scheduler = self.base_scheduler
        searcher: Any = getattr(scheduler, "searcher", None)
        found: int | None = None
        if hasattr(searcher, "best_trial") and scheduler.metric_names() == [name]:
            found = searcher.best_trial(by=by, past=False)
        if found is None:
            trials = [
                (trial_id, record.trial.config, record.reports, record.status is Status.completed)
                for trial_id, record in self._records.items()
            ]
            found = best_by_model(
                scheduler.config_space, name, mode, scheduler.resource_attr, trials, scheduler.outcome_constraints()
            )
        return None if found is None else self._records[found]

    @property
    def trials(self) -> dict[int, TrialResult]:
        """All trials by id, with their reports and status; copies."""
        return {trial_id: record.result() for trial_id, record in self._records.items()}

    @property
    def completed_experiments(self) -> dict[int, TrialResult]:
        """Those of :attr:`trials` that ran to their end."""
        return {k: r.result() for k, r in self._records.items() if r.status is Status.completed}

    @property
    def running_trials(self) -> list[AskedTrial]:
        """What :meth:`ask` returned and is to be trained still: after loading a state, the trials to go on with."""
        return [record.asked() for record in self._records.values() if record.status is Status.in_progress]

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes over time, as plain containers (and tensors, if the scheduler has some).

        Trials that run are part of it, as they are; :attr:`running_trials` returns them after loading.
        """
        return {
            "version": _STATE_VERSION,
            "scheduler_name": type(self.base_scheduler).__name__,
            "seed": self._seed,
            "trials": [record.state_dict() for record in self._records.values()],
            "queue": [dict(config) for config in self._queue],
            "added": self._added,
            "scheduler": self.base_scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state: The state; it comes back from JSON or ``torch.save`` as it was. The base scheduler must be a new
                one, made with the arguments of the one whose state it is.

        Raises:
            ValueError: If it is the state of another scheduler or of a later version.
        """
        name = type(self.base_scheduler).__name__
        if not isinstance(state, Mapping) or not isinstance(state.get("version"), int):
            raise ValueError(f"state must be what AskTellScheduler.state_dict() returned, got {type(state).__name__}")
        if state["version"] > _STATE_VERSION:
            raise ValueError(f"the state has version {state['version']}, this sthyper reads up to {_STATE_VERSION}")
        if state["scheduler_name"] != name:
            raise ValueError(f"the state is that of a {state['scheduler_name']}, base_scheduler is a {name}")
        self.base_scheduler.load_state_dict(state["scheduler"])
        self._seed = state["seed"]
        histories = [TrialHistory.from_state(trial) for trial in state["trials"]]
        self._records = {history.trial.trial_id: history for history in histories}
        self._queue = [dict(config) for config in state["queue"]]
        self._added = state["added"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_scheduler})"
