"""The conformance suites: all schedulers and searchers pass, broken ones are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import sample_config
from sthyper.schedulers import FIFOScheduler, HyperbandScheduler, TrialScheduler, TrialSuggestion
from sthyper.searchers import BaseSearcher, RandomSearcher
from sthyper.testing import SchedulerConformance, SearcherConformance
from sthyper.trial import SchedulerDecision, Trial


class TestRandomSearch(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return RandomSearch(config_space, "loss", random_seed=random_seed)


class TestFIFOMax(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        searcher = RandomSearcher(config_space, points_to_evaluate=[])
        return FIFOScheduler(config_space, "accuracy", mode="max", searcher=searcher, random_seed=random_seed)


class TestStopping(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(config_space, "loss", max_resource_attr="epochs", random_seed=random_seed)


class TestStoppingByMaxT(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return HyperbandScheduler(
            config_space, "loss", mode="max", max_t=9, reduction_factor=2.5, random_seed=random_seed
        )


class TestPromotion(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(
            config_space,
            "loss",
            type="promotion",
            max_resource_attr="epochs",
            reduction_factor=2,
            random_seed=random_seed,
        )


class TestPromotionByMaxT(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(config_space, "loss", mode="max", type="promotion", max_t=9, random_seed=random_seed)


class TestRandomSearcher(SearcherConformance):
    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        return RandomSearcher(config_space, "loss", random_seed=random_seed, points_to_evaluate=points_to_evaluate)


class TestRandomSearcherWithDuplicates(SearcherConformance):
    repeats_configurations = True

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        return RandomSearcher(config_space, points_to_evaluate=points_to_evaluate, allow_duplicates=True)


# ---- broken schedulers -----------------------------------------------------------------------------------


class _IgnoresItsSeed(ASHA):
    def __init__(self, config_space: dict[str, Any], random_seed: int) -> None:
        super().__init__(config_space, "loss", max_resource_attr="epochs", type="promotion")


class _FixesItsSeed(ASHA):
    def __init__(self, config_space: dict[str, Any], random_seed: int) -> None:
        super().__init__(config_space, "loss", max_resource_attr="epochs", type="promotion", random_seed=1)


class _Promotion(ASHA):
    def __init__(self, config_space: dict[str, Any], random_seed: int) -> None:
        super().__init__(config_space, "loss", max_resource_attr="epochs", type="promotion", random_seed=random_seed)


class _StateLacksRungs(_Promotion):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"brackets": _Promotion(self.config_space, 0).terminator.state_dict()}


class _StateHasTuples(_Promotion):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"levels": (1, 3)}


class _StateIsAlive(_Promotion):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["brackets"]["rung_systems"][0]["rungs"][0]["entries"] = self.rung_system.rungs[0]._entries
        return state


class _LacksAHyperparameter(_Promotion):
    def suggest(self, trial_id: int) -> TrialSuggestion | None:
        suggestion = super().suggest(trial_id)
        assert suggestion is not None
        assert suggestion.config is not None
        config = {name: value for name, value in suggestion.config.items() if name != "dropout"}
        return TrialSuggestion(suggestion.spawn_new_trial_id, suggestion.checkpoint_trial_id, config)


class _LeavesTheDomain(_Promotion):
    def suggest(self, trial_id: int) -> TrialSuggestion | None:
        suggestion = super().suggest(trial_id)
        assert suggestion is not None
        assert suggestion.config is not None
        suggestion.config["width"] = 1000
        return suggestion


class _DecidesNothing(_Promotion):
    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(trial, result)
        return "GO ON" if decision == SchedulerDecision.CONTINUE else decision


class _ResumesFailedTrials(_Promotion):
    def on_trial_error(self, trial: Trial) -> None:
        super().on_trial_error(trial)
        self.failed = trial.trial_id

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        failed, self.failed = getattr(self, "failed", None), None
        return super()._suggest(trial_id) if failed is None else TrialSuggestion.resume_suggestion(failed)


class _DrawsGlobally(_Promotion):
    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        np.random.rand()  # noqa: NPY002
        return super()._suggest(trial_id)


class _TakesEveryReport(FIFOScheduler):
    def __init__(self, config_space: dict[str, Any], random_seed: int) -> None:
        super().__init__(config_space, "loss", random_seed=random_seed)

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        return SchedulerDecision.CONTINUE


class _PromotesNaN(_Promotion):
    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        loss = result.get("loss", 0.0)
        return super().on_trial_result(trial, result if loss - loss == 0 else result | {"loss": -1.0})


class _ForgetsNobody(_Promotion):
    def on_trial_error(self, trial: Trial) -> None:
        del self._records[trial.trial_id]


class _ChangesTheQueue(_Promotion):
    def suggest_enqueued(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        return super().suggest_enqueued(trial_id, {**config, "width": 8})


class _KeepsQueueFromSearcher(_Promotion):
    def suggest_enqueued(self, trial_id: int, config: dict[str, Any]) -> TrialSuggestion:
        return self._completed(TrialSuggestion.start_suggestion(config))

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        return SchedulerDecision.CONTINUE

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        pass


class _PromotesAdded(_Promotion):
    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        self.added = trial_id

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        added, self.added = getattr(self, "added", None), None
        return super()._suggest(trial_id) if added is None else TrialSuggestion.resume_suggestion(added)


class _StateLacksAdded(_Promotion):
    def state_dict(self) -> dict[str, Any]:
        brackets = super().state_dict()["brackets"]
        for rung in brackets["rung_systems"][0]["rungs"]:
            rung["entries"] = [entry for entry in rung["entries"] if entry[-1] >= 0]
        return super().state_dict() | {"brackets": brackets, "generator": None, "searcher": self._fresh()}

    def _fresh(self) -> dict[str, Any]:
        return _Promotion(self.config_space, 18).searcher.state_dict()


class _IsUnreadable(_Promotion):
    def __str__(self) -> str:
        return object.__repr__(self)


# A suite's own check, or what the broken code raises under it.
_CAUGHT = (AssertionError, KeyError, ValueError)
_SUITE = SchedulerConformance
_BROKEN_SCHEDULERS = [
    (_IgnoresItsSeed, _SUITE.test_same_seed_same_events),
    (_FixesItsSeed, _SUITE.test_another_seed_gives_other_suggestions),
    (_StateLacksRungs, _SUITE.test_state_continues_where_it_was_taken),
    (_StateHasTuples, _SUITE.test_state_continues_where_it_was_taken),
    (_StateIsAlive, _SUITE.test_state_continues_where_it_was_taken),
    (_LacksAHyperparameter, _SUITE.test_suggestions_are_complete_configurations),
    (_LeavesTheDomain, _SUITE.test_suggestions_are_complete_configurations),
    (_DecidesNothing, _SUITE.test_decisions_are_valid),
    (_ResumesFailedTrials, _SUITE.test_failed_trials_are_not_resumed),
    (_DrawsGlobally, _SUITE.test_global_generators_are_left_alone),
    (_TakesEveryReport, _SUITE.test_a_report_without_the_metric_is_refused),
    (_PromotesNaN, _SUITE.test_non_finite_values_are_survived_and_not_promoted),
    (_ForgetsNobody, _SUITE.test_hooks_may_come_in_any_order),
    (_ChangesTheQueue, _SUITE.test_enqueued_configurations_start_as_they_are),
    (_KeepsQueueFromSearcher, _SUITE.test_enqueued_and_added_configurations_are_not_suggested),
    (_PromotesAdded, _SUITE.test_added_results_are_taken),
    (_StateLacksAdded, _SUITE.test_added_results_and_enqueued_configurations_belong_to_the_state),
    (_IsUnreadable, _SUITE.test_text_is_readable),
]


@pytest.mark.parametrize(("broken", "check"), _BROKEN_SCHEDULERS, ids=lambda value: value.__name__.strip("_"))
def test_a_broken_scheduler_is_caught(broken: type[TrialScheduler], check: Callable[[Any], None]) -> None:
    class Suite(SchedulerConformance):
        def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
            return broken(config_space, random_seed)  # type: ignore[call-arg]

    with pytest.raises(_CAUGHT):
        check(Suite())


def test_the_base_of_the_broken_schedulers_passes() -> None:
    class Suite(SchedulerConformance):
        def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
            return _Promotion(config_space, random_seed)

    for _, check in _BROKEN_SCHEDULERS:
        check(Suite())


# ---- broken searchers ------------------------------------------------------------------------------------


class _Repeats(RandomSearcher):
    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        config = super().get_config(0)
        self._excluded.clear()
        return config


class _DrawsFromNumpy(BaseSearcher):
    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        seed = int(np.random.randint(2**31))  # noqa: NPY002
        return self.next_initial_config() or sample_config(self.config_space, seed)


class _StateLacksGenerator(RandomSearcher):
    # A plain random searcher would get away with it: what comes again is excluded.
    def __init__(self, config_space: dict[str, Any], points_to_evaluate: list[dict[str, Any]] | None) -> None:
        super().__init__(config_space, points_to_evaluate=points_to_evaluate, allow_duplicates=True)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": None}


class _StateLacksExclusions(RandomSearcher):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"excluded": []}


class _RefusesStrangers(RandomSearcher):
    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        if int(trial_id) not in self._known_trials:
            raise KeyError(trial_id)


class _AddsConstants(RandomSearcher):
    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        config = super().get_config(trial_id)
        return None if config is None else config | {"data": "digits"}


class _RepeatsFailures(RandomSearcher):
    def evaluation_failed(self, trial_id: int | str, config: dict[str, Any], blacklist: bool = True) -> None:
        pass


class _IgnoresFirstOnes(RandomSearcher):
    def next_initial_config(self) -> dict[str, Any] | None:
        return None


class _ForgetsPending(RandomSearcher):
    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        pass


class _GivesItsListAway(BaseSearcher):
    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        self.kept = getattr(self, "kept", None) or [sample_config(self.config_space, seed) for seed in range(3)]
        return self.kept[int(trial_id) % 3]


_SEARCHER_SUITE = SearcherConformance
_BROKEN_SEARCHERS = [
    (_Repeats, _SEARCHER_SUITE.test_configurations_do_not_repeat),
    (_DrawsFromNumpy, _SEARCHER_SUITE.test_global_generators_are_left_alone),
    (_DrawsFromNumpy, _SEARCHER_SUITE.test_same_seed_same_configurations),
    (_StateLacksGenerator, _SEARCHER_SUITE.test_state_continues_where_it_was_taken),
    (_StateLacksExclusions, _SEARCHER_SUITE.test_state_continues_where_it_was_taken),
    (_RefusesStrangers, _SEARCHER_SUITE.test_foreign_results_are_accepted),
    (_AddsConstants, _SEARCHER_SUITE.test_configurations_are_complete),
    (_RepeatsFailures, _SEARCHER_SUITE.test_failed_configurations_do_not_come_again),
    (_IgnoresFirstOnes, _SEARCHER_SUITE.test_first_configurations_come_first),
    (_ForgetsPending, _SEARCHER_SUITE.test_pending_and_added_configurations_do_not_come_again),
    (_GivesItsListAway, _SEARCHER_SUITE.test_a_suggestion_belongs_to_the_caller),
    (_Repeats, _SEARCHER_SUITE.test_a_finite_space_is_used_up),
]


@pytest.mark.parametrize(("broken", "check"), _BROKEN_SEARCHERS, ids=lambda value: value.__name__.strip("_"))
def test_a_broken_searcher_is_caught(broken: type[BaseSearcher], check: Callable[[Any], None]) -> None:
    class Suite(SearcherConformance):
        def make_searcher(
            self,
            config_space: dict[str, Any],
            random_seed: int,
            points_to_evaluate: list[dict[str, Any]] | None,
        ) -> BaseSearcher:
            return broken(config_space, points_to_evaluate=points_to_evaluate)

    with pytest.raises(_CAUGHT):
        check(Suite())
