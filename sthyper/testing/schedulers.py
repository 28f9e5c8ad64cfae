"""What every scheduler has to do, as tests that the author of a scheduler runs on it."""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from sthyper.config_space import Domain, choice, config_to_match_string, finrange, loguniform, randint, sample_config
from sthyper.errors import ReportError
from sthyper.schedulers.base import TrialScheduler
from sthyper.testing._checks import check_config, check_plain, copies_of_state, global_generators_untouched
from sthyper.testing.simulation import Curve, SimulatedEvent, TrialSimulation, drive, toy_curve, toy_fraction
from sthyper.trial import SchedulerDecision, Trial, TrialSuggestion

__all__ = ["SchedulerConformance"]

_T = TypeVar("_T")
_DECISIONS = (SchedulerDecision.CONTINUE, SchedulerDecision.PAUSE, SchedulerDecision.STOP)


class SchedulerConformance(ABC):
    """Tests of the contract of :class:`~sthyper.schedulers.TrialScheduler`.

    Derive a class whose name starts with ``Test``, implement :meth:`make_scheduler`, and let pytest collect it:

        class TestMyScheduler(SchedulerConformance):
            def make_scheduler(self, config_space, random_seed):
                return MyScheduler(config_space, metric="loss", max_resource_attr="epochs", random_seed=random_seed)

    Attributes:
        config_space: Space of most tests. ``epochs`` is the maximum resource.
        small_space: Space with six configurations.
        is_random: Whether suggestions depend on the seed; set it to False for a scheduler without random choices.
        repeats_configurations: Whether the same configuration may be suggested again, so that a finite space is
            never used up.
        n_positions: Number of events after which the state is taken in the test of states; ``None`` is after every one.
            Give a number for a scheduler whose suggestions take long.
    """

    config_space: ClassVar[dict[str, Any]] = {
        "lr": loguniform(1e-5, 1e-1),
        "width": randint(8, 64),
        "activation": choice(["relu", "tanh", "gelu"]),
        "dropout": finrange(0.0, 0.5, 6),
        "data": "digits",
        "epochs": 9,
    }
    small_space: ClassVar[dict[str, Any]] = {"a": choice(["x", "y", "z"]), "b": randint(1, 2), "epochs": 9}
    is_random: ClassVar[bool] = True
    repeats_configurations: ClassVar[bool] = False
    n_positions: ClassVar[int | None] = None

    @abstractmethod
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        """Return a new scheduler; two calls with equal arguments must make equal schedulers."""

    # ---- suggestions ---------------------------------------------------------------------------------

    def test_suggestions_are_complete_configurations(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 0)
        for trial_id in range(3):
            suggestion = scheduler.suggest(trial_id)
            assert isinstance(suggestion, TrialSuggestion), f"suggest() must return a TrialSuggestion, got {suggestion}"
            assert suggestion.spawn_new_trial_id, "nothing is paused, so that a new trial must be suggested"
        for event in drive(self.make_scheduler(self.config_space, 0)):
            if event.config is not None:
                check_config(event.config, self.config_space, scheduler.max_resource_attr)
                json.dumps(event.config)

    def test_the_space_of_the_caller_is_left_alone(self) -> None:
        space = dict(self.config_space)
        drive(self.make_scheduler(space, 0), n_trials=3)
        assert space == self.config_space, "the scheduler changed the configuration space of its caller"

    def test_a_finite_space_is_used_up(self) -> None:
        if self.repeats_configurations:
            return
        events = drive(self.make_scheduler(self.small_space, 0), n_trials=50)
        assert events[-1].kind == "exhausted" or any(e.kind == "exhausted" for e in events), (
            "the space has 6 configurations, and suggest(6) did not return None"
        )
        configs = [(e.config["a"], e.config["b"]) for e in events if e.kind == "start" and e.config is not None]
        assert len(set(configs)) == len(configs), f"a configuration was suggested twice: {configs}"

    # ---- decisions -----------------------------------------------------------------------------------

    def test_decisions_are_valid(self) -> None:
        for event in drive(self.make_scheduler(self.config_space, 1)):
            if event.kind == "report":
                assert event.decision in _DECISIONS, f"decision {event.decision!r} is none of {_DECISIONS}"

    def test_failed_trials_are_not_resumed(self) -> None:
        # The simulation fails when a trial is resumed that is not paused.
        events = drive(self.make_scheduler(self.config_space, 2), fails_at={0: 1, 3: 2, 4: 4, 7: 9})
        failed = {e.trial_id for e in events if e.kind == "error"}
        assert 0 in failed, "trial 0 was to fail at its first report"

    def test_non_finite_values_are_survived_and_not_promoted(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 3)
        base = toy_curve(scheduler)
        hopeless: set[int] = set()

        def curve(config: dict[str, Any], resource: int) -> Mapping[str, Any]:
            metrics = base(config, resource)
            bad = (math.nan, math.inf, -math.inf)[config["width"] % 3]
            return dict.fromkeys(metrics, bad) if config["width"] % 2 else metrics

        for event in drive(scheduler, curve, n_trials=30):
            if event.kind == "start" and event.config is not None and event.config["width"] % 2:
                hopeless.add(event.trial_id)
            assert not (event.kind == "resume" and event.trial_id in hopeless), (
                f"trial {event.trial_id} was resumed, though all its values are NaN or infinite"
            )

    def test_checkpoints_that_are_let_go_are_never_needed(self) -> None:
        # The simulation fails when a trial is resumed or copied after that.
        start = TrialSimulation(self.make_scheduler(self.config_space, 19), n_trials=1000, fails_at={3: 2, 8: 4})
        base = start.curve = self._with_gaps(start.curve, 3)
        for n_events in (10, 30, 70):
            start.run(n_events)
            state = start.scheduler.state_dict()
            for name, change in (("worse", 9.0), ("better", -9.0), ("not finite", math.nan), ("alike", 0.0)):

                def curve(config: dict[str, Any], resource: int, by: float = change) -> Mapping[str, Any]:
                    return {metric: value + by for metric, value in base(config, resource).items()}

                scheduler = self.make_scheduler(self.config_space, 19)
                scheduler.load_state_dict(copy.deepcopy(state))
                rest = start.fork(scheduler)
                rest.curve = curve
                rest.run(n_events + 120)
                twice = {trial_id for trial_id in rest.named if rest.named.count(trial_id) > 1}
                assert not twice, f"trials_checkpoints_can_be_removed() named {twice} twice (later values {name})"

    def test_a_report_without_the_metric_is_refused(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 4)
        trial = self._start(scheduler, 0)
        name = scheduler.metric_names()[0]
        message = None
        try:
            scheduler.on_trial_result(trial, {scheduler.resource_attr or "epoch": 1, "other": 0.5})
        except ReportError as error:
            message = str(error)
        assert message is not None, f"a report without {name!r} must raise ReportError"
        assert name in message, f"the message does not name the metric {name!r}: {message}"

    def test_hooks_may_come_in_any_order(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 5)
        curve = toy_curve(scheduler)

        failed = self._start(scheduler, 0)
        failed.end_reason = "exit 1"
        scheduler.on_trial_error(failed)
        scheduler.on_trial_error(failed)
        self._report(scheduler, failed, curve, 1)

        completed = self._start(scheduler, 1)
        self._report(scheduler, completed, curve, 1)
        result = self._result(scheduler, completed, curve, 1)
        scheduler.on_trial_complete(completed, result)
        self._report(scheduler, completed, curve, 1)
        scheduler.on_trial_complete(completed, result)

        ended = self._start(scheduler, 2)
        scheduler.on_trial_remove(ended)
        for resource in range(1, 10):
            if self._report(scheduler, ended, curve, resource) != SchedulerDecision.CONTINUE:
                break
        scheduler.on_trial_remove(ended)
        self._report(scheduler, ended, curve, resource)
        scheduler.on_trial_complete(ended, self._result(scheduler, ended, curve, resource))
        ended.end_reason = "killed"
        scheduler.on_trial_error(ended)

        config = sample_config(self.config_space, 7)
        for trial_id in (50, 51):
            foreign = Trial(trial_id, {**self.config_space, **config}, datetime(2020, 1, 1))
            if trial_id == 50:
                scheduler.on_trial_add(foreign)
            self._report(scheduler, foreign, curve, 1)
            scheduler.on_trial_complete(foreign, self._result(scheduler, foreign, curve, 1))

        next_one = scheduler.suggest(3)
        assert isinstance(next_one, TrialSuggestion), f"suggest() returned {next_one} after unusual events"
        for gone in (0, 1, 2):
            assert next_one.spawn_new_trial_id or next_one.checkpoint_trial_id != gone, f"trial {gone} has ended"

    # ---- steering ------------------------------------------------------------------------------------

    def test_enqueued_configurations_start_as_they_are(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 15)
        wanted = sample_config(self.config_space, 70)
        for trial_id in (0, 1):  # the second time on purpose
            given = dict(wanted)
            suggestion = scheduler.suggest_enqueued(trial_id, given)
            assert suggestion.spawn_new_trial_id, f"an enqueued configuration is a new trial, got: {suggestion}"
            assert suggestion.config is not None
            check_config(suggestion.config, self.config_space, scheduler.max_resource_attr)
            found = {name: suggestion.config[name] for name in wanted}
            assert found == wanted, f"the enqueued configuration {wanted} became {found}"
            suggestion.config.clear()
            assert given == wanted, "the enqueued configuration was changed"
            self._train(scheduler, self._add(scheduler, trial_id, wanted), 9)
        assert scheduler.suggest(2) is not None, "nothing was suggested after enqueued configurations"

    def test_enqueued_and_added_configurations_are_not_suggested(self) -> None:
        if self.repeats_configurations:
            return
        scheduler = self.make_scheduler(self.small_space, 16)
        known: list[dict[str, Any]] = [{"a": "y", "b": 2}, {"a": "z", "b": 1}]
        scheduler.suggest_enqueued(0, dict(known[0]))
        self._train(scheduler, self._add(scheduler, 0, known[0]), 9)
        scheduler.add_result(-1, dict(known[1]), self._added(scheduler, known[1], 9))
        for trial_id in range(1, 6):
            suggestion = scheduler.suggest(trial_id)
            if suggestion is None or not suggestion.spawn_new_trial_id:
                break
            assert suggestion.config is not None
            config = {name: suggestion.config[name] for name in ("a", "b")}
            assert config not in known, f"{config} was suggested, but was enqueued or its result added before"
            known.append(config)
            self._train(scheduler, self._add(scheduler, trial_id, config), 9)

    def test_added_results_are_taken(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 17)
        self._add_results(scheduler)
        # The simulation fails when a trial is resumed that never started.
        events = drive(scheduler)
        assert {e.trial_id for e in events if e.kind == "start"} == set(range(20))

    def test_added_results_and_enqueued_configurations_belong_to_the_state(self) -> None:
        scheduler, twin = (self.make_scheduler(self.config_space, 18) for _ in range(2))
        self._add_results(scheduler)
        config = sample_config(self.config_space, 71)
        scheduler.suggest_enqueued(0, dict(config))
        self._train(scheduler, self._add(scheduler, 0, config), 9)
        for _, state in copies_of_state(scheduler.state_dict()):
            twin.load_state_dict(state)
        suggestions = [[s.suggest(1), s.suggest(2)] for s in (scheduler, twin)]
        assert suggestions[0] == suggestions[1], "after added results a restored scheduler suggests otherwise"
        first = suggestions[0][0]
        if first is not None and first.spawn_new_trial_id:
            config = dict(first.config or {})
            decisions = [self._train(s, self._add(s, 1, config), 9) for s in (scheduler, twin)]
            assert decisions[0] == decisions[1], "after added results a restored scheduler decides otherwise"

    # ---- seeds and state -----------------------------------------------------------------------------

    def test_same_seed_same_events(self) -> None:
        first = drive(self.make_scheduler(self.config_space, 11))
        second = drive(self.make_scheduler(self.config_space, 11))
        self._compare(second, first, "two schedulers with the same seed differ")

    def test_another_seed_gives_other_suggestions(self) -> None:
        if self.is_random:
            first = drive(self.make_scheduler(self.config_space, 11))
            second = drive(self.make_scheduler(self.config_space, 12))
            assert first != second, "the seed has no effect"

    def test_global_generators_are_left_alone(self) -> None:
        with global_generators_untouched():
            drive(self.make_scheduler(self.config_space, 13))

    def test_state_continues_where_it_was_taken(self) -> None:
        fails_at = {2: 2, 5: 1}
        whole = TrialSimulation(self.make_scheduler(self.config_space, 14), fails_at=fails_at).run()
        simulation = TrialSimulation(self.make_scheduler(self.config_space, 14), fails_at=fails_at)
        taken: list[tuple[int, TrialSimulation, dict[str, Any], list[tuple[str, dict[str, Any]]]]] = []
        while not taken or taken[-1][0] < len(simulation.events):
            position = len(simulation.events)
            state = simulation.scheduler.state_dict()
            # The state itself is loaded below, after the end of the simulation, which must not reach back into it.
            taken.append((position, simulation.fork(simulation.scheduler), state, list(copies_of_state(state))))
            simulation.run(position + 1)
        for number, (position, rest, state, copies) in enumerate(self._some(taken)):
            # One format a position, in turn.
            name, copy = [*copies, ("state_dict()", state)][number % (1 + len(copies))]
            scheduler = self.make_scheduler(self.config_space, 14)
            scheduler.load_state_dict(copy)
            events = rest.fork(scheduler).run()
            self._compare(events, whole, f"after loading the state ({name}) taken at event {position}")

    def test_goes_on_where_another_scheduler_decided(self) -> None:
        for n_events in (6, 25, 60):
            first = TrialSimulation(self.make_scheduler(self.config_space, 15), n_trials=1000)
            first.run(n_events)
            second = self.make_scheduler(self.config_space, 16)
            tried = self._adopt(second, first)
            # Its suggestions suit the trials: none is resumed that is not paused.
            rest = first.fork(second)
            rest.let_go.clear()  # by the first one
            later = rest.run(n_events + 60)[len(first.events) :]
            assert len(later) >= 20, f"nothing goes on after {n_events} events: {later}"
            started = [event.config for event in later if event.kind == "start"]
            for config in started:
                check_config(config, self.config_space, second.max_resource_attr)
                assert self.repeats_configurations or self._key(config) not in tried, f"{config} was tried before"

    def _adopt(self, scheduler: TrialScheduler, past: TrialSimulation) -> set[str]:
        """Tell a scheduler what another one decided in a simulation; return what was tried."""
        trials: dict[int, Trial] = {}
        last: dict[int, dict[str, Any]] = {}
        attr = past.scheduler.resource_attr or "epoch"
        for event in past.events:
            if event.kind == "start":
                assert event.config is not None
                config = {k: v for k, v in event.config.items() if k != scheduler.max_resource_attr}
                full = {**self.config_space, **config}
                trials[event.trial_id] = trial = Trial(event.trial_id, full, datetime(2020, 1, 1))
                tuned = {k: v for k, v in full.items() if isinstance(self.config_space[k], Domain)}
                scheduler.suggest_enqueued(event.trial_id, tuned)
                scheduler.on_trial_add(trial)
                continue
            if event.kind == "exhausted":
                continue
            trial = trials[event.trial_id]
            if event.kind == "resume":
                scheduler.on_trial_resume(trial)
            elif event.kind == "report":
                assert event.answer is not None
                result = last[event.trial_id] = {**past.curve(trial.config, event.resource), attr: event.resource}
                scheduler.adopt_result(trial, result, event.answer)
                if event.answer != SchedulerDecision.CONTINUE:
                    scheduler.on_trial_remove(trial)
            elif event.kind == "complete":
                scheduler.on_trial_complete(trial, last[event.trial_id])
        return {self._key(trial.config) for trial in trials.values()}

    def _key(self, config: Mapping[str, Any] | None) -> str:
        return config_to_match_string(config or {}, self.config_space)

    # ---- description ---------------------------------------------------------------------------------

    def test_metadata_can_be_written(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 0)
        metadata = scheduler.metadata()
        json.dumps(metadata)
        for key in ("metric_names", "metric_mode", "scheduler_name", "config_space"):
            assert key in metadata, f"metadata() lacks {key!r}"
        names = scheduler.metric_names()
        assert names, "metric_names() must name at least one metric"
        assert all(type(name) is str for name in names), f"metric_names() must be strings, got {names!r}"
        mode = scheduler.metric_mode()
        modes = mode if isinstance(mode, list) else [mode]
        assert all(m in ("min", "max") for m in modes), f"metric_mode() must be 'min' or 'max', got {mode!r}"

    def test_text_is_readable(self) -> None:
        scheduler = self.make_scheduler(self.config_space, 0)
        text = str(scheduler)
        assert type(scheduler).__name__ in text, f"str(scheduler) does not name its class: {text}"
        assert " at 0x" not in text, f"str(scheduler) shows memory addresses: {text}"
        check_plain(scheduler.state_dict())

    # ---- helpers -------------------------------------------------------------------------------------

    def _with_gaps(self, base: Curve, every: int) -> Curve:
        """Return a curve some of whose values, about one in ``every``, are not finite."""

        def curve(config: dict[str, Any], resource: int) -> Mapping[str, Any]:
            bad = toy_fraction([sorted(config.items()), resource, "bad"]) * every < 1
            metrics = base(config, resource)
            return dict.fromkeys(metrics, (math.nan, math.inf, -math.inf)[resource % 3]) if bad else metrics

        return curve

    def _some(self, taken: list[_T]) -> list[_T]:
        """Return all, or ``n_positions`` of them, evenly spread, with the first and the last."""
        n = self.n_positions
        if n is None or n >= len(taken):
            return taken
        return [taken[round(i * (len(taken) - 1) / max(1, n - 1))] for i in range(n)]

    def _start(self, scheduler: TrialScheduler, trial_id: int) -> Trial:
        suggestion = scheduler.suggest(trial_id)
        assert suggestion is not None, f"suggest({trial_id}) returned None"
        assert suggestion.spawn_new_trial_id, f"a new trial was expected, got: {suggestion}"
        assert suggestion.config is not None
        return self._add(scheduler, trial_id, suggestion.config)

    def _add(self, scheduler: TrialScheduler, trial_id: int, config: Mapping[str, Any]) -> Trial:
        """Start a trial by hand, with the constants of the space."""
        constants = {k: v for k, v in scheduler.config_space.items() if not isinstance(v, Domain)}
        trial = Trial(trial_id, {**config, **constants}, datetime(2020, 1, 1))
        scheduler.on_trial_add(trial)
        return trial

    def _train(self, scheduler: TrialScheduler, trial: Trial, epochs: int) -> list[str]:
        """Let a trial report until it is to end, and return the decisions."""
        curve = toy_curve(scheduler)
        decisions = []
        for resource in range(1, epochs + 1):
            decisions.append(self._report(scheduler, trial, curve, resource))
            if decisions[-1] != SchedulerDecision.CONTINUE and resource < epochs:
                scheduler.on_trial_remove(trial)
                return decisions
        scheduler.on_trial_complete(trial, self._result(scheduler, trial, curve, epochs))
        return decisions

    def _added(self, scheduler: TrialScheduler, config: dict[str, Any], resource: int) -> dict[str, Any]:
        return {**toy_curve(scheduler)(config, resource), scheduler.resource_attr or "epoch": resource}

    def _add_results(self, scheduler: TrialScheduler) -> None:
        """Add good results, poor ones and such that are not finite, under negative ids."""
        for number in range(1, 9):
            config = sample_config(self.config_space, 50 + number)
            for resource in range(1, 10):
                result = self._added(scheduler, config, resource)
                value = (math.nan, math.inf, -math.inf, -9.0, 9.0)[number] if number < 5 else None
                if value is not None:
                    result |= dict.fromkeys(scheduler.metric_names(), value)
                scheduler.add_result(-number, dict(config), result)

    def _result(self, scheduler: TrialScheduler, trial: Trial, curve: Curve, resource: int) -> dict[str, Any]:
        return {**curve(trial.config, resource), scheduler.resource_attr or "epoch": resource}

    def _report(self, scheduler: TrialScheduler, trial: Trial, curve: Curve, resource: int) -> str:
        decision = scheduler.on_trial_result(trial, self._result(scheduler, trial, curve, resource))
        assert decision in _DECISIONS, f"decision {decision!r} is none of {_DECISIONS}"
        return decision

    def _compare(self, events: list[SimulatedEvent], expected: list[SimulatedEvent], what: str) -> None:
        for position, (event, other) in enumerate(zip(events, expected, strict=False)):
            assert event == other, f"{what}: event {position} is {event}, not {other}"
        assert len(events) == len(expected), f"{what}: {len(events)} events, not {len(expected)}"
