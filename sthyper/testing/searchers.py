"""What every searcher has to do, as tests that the author of a searcher runs on it."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from sthyper.config_space import (
    Domain,
    choice,
    config_to_match_string,
    finrange,
    loguniform,
    randint,
    sample_config,
)
from sthyper.searchers.base import BaseSearcher, SearcherContext
from sthyper.testing._checks import check_config, copies_of_state, global_generators_untouched
from sthyper.testing.simulation import toy_fraction

__all__ = ["SearcherConformance"]

_STEPS = 5
"""Events of a trial in the test of states."""


class SearcherConformance(ABC):
    """Tests of the contract of :class:`~sthyper.searchers.BaseSearcher`.

    Derive a class whose name starts with ``Test``, implement :meth:`make_searcher`, and let pytest collect it:

        class TestMySearcher(SearcherConformance):
            def make_searcher(self, config_space, random_seed, points_to_evaluate):
                return MySearcher(config_space, metric="loss", random_seed=random_seed,
                                  points_to_evaluate=points_to_evaluate)

    Attributes:
        config_space: Space of most tests.
        small_space: Space with six configurations.
        is_random: Whether suggestions depend on the seed.
        repeats_configurations: Whether the same configuration may be suggested again.
        n_suggestions: Number of suggestions in most tests.
    """

    config_space: ClassVar[dict[str, Any]] = {
        "lr": loguniform(1e-5, 1e-1),
        "width": randint(8, 64),
        "activation": choice(["relu", "tanh", "gelu"]),
        "dropout": finrange(0.0, 0.5, 6),
        "data": "digits",
    }
    small_space: ClassVar[dict[str, Any]] = {"a": choice(["x", "y", "z"]), "b": randint(1, 2), "data": "digits"}
    is_random: ClassVar[bool] = True
    repeats_configurations: ClassVar[bool] = False
    n_suggestions: ClassVar[int] = 20

    @abstractmethod
    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        """Return a new searcher for the metric ``"loss"``, to be minimised."""

    # ---- suggestions ---------------------------------------------------------------------------------

    def test_configurations_are_complete(self) -> None:
        tuned = _tuned(self.config_space)
        for config in self._suggestions(self._make(self.config_space, 0)):
            check_config(config, tuned)
            json.dumps(config)

    def test_first_configurations_come_first(self) -> None:
        points: list[dict[str, Any]] = [{"width": 10, "activation": "gelu"}, {"dropout": 0.2}]
        searcher = self._make(self.config_space, 0, points)
        suggestions = self._suggestions(searcher, 2)
        for point, config in zip(points, suggestions, strict=True):
            found = {name: config[name] for name in point}
            assert found == point, f"the first configuration {point} became {config}"
        assert points == [{"width": 10, "activation": "gelu"}, {"dropout": 0.2}], "the caller's list was changed"

    def test_a_suggestion_belongs_to_the_caller(self) -> None:
        expected = self._suggestions(self._make(self.config_space, 1))
        searcher = self._make(self.config_space, 1)
        for number, config in enumerate(expected):
            suggestion = searcher.get_config(number)
            assert suggestion == config, f"suggestion {number} is {suggestion}, not {config}"
            self._learn(searcher, number, dict(suggestion))
            suggestion.clear()

    def test_configurations_do_not_repeat(self) -> None:
        if self.repeats_configurations:
            return
        seen: dict[str, int] = {}
        for number, config in enumerate(self._suggestions(self._make(self.small_space, 2), 6)):
            match = config_to_match_string(config, self.small_space)
            assert match not in seen, f"suggestion {number} repeats suggestion {seen[match]}: {config}"
            seen[match] = number

    def test_a_finite_space_is_used_up(self) -> None:
        if self.repeats_configurations:
            return
        searcher = self._make(self.small_space, 3)
        self._suggestions(searcher, 6)
        assert searcher.get_config(6) is None, "the space has 6 configurations, and a 7th was suggested"
        assert searcher.get_config(6) is None, "a configuration was suggested after the space was used up"

    def test_failed_configurations_do_not_come_again(self) -> None:
        searcher = self._make(self.small_space, 4, [])
        failed = sample_config(self.small_space, 4)
        searcher.evaluation_failed(77, failed, True)
        for number in range(12):
            config = searcher.get_config(number)
            if config is None:
                break
            assert config != failed, f"suggestion {number} is the failed configuration {failed}"
            self._learn(searcher, number, config)

    # ---- events --------------------------------------------------------------------------------------

    def test_foreign_results_are_accepted(self) -> None:
        searcher = self._make(self.config_space, 5)
        for number in range(5):
            config = sample_config(self.config_space, 100 + number)
            searcher.on_trial_result(200 + number, config, {"loss": 0.1 * number, "epoch": 1}, True)
        self._suggestions(searcher, 5)
        config = sample_config(self.config_space, 200)
        searcher.on_trial_result("300", config, {"loss": math.nan, "epoch": 1}, True)
        assert searcher.get_config("5") is not None, "nothing was suggested after foreign results"

    def test_pending_and_added_configurations_do_not_come_again(self) -> None:
        if self.repeats_configurations:
            return
        searcher = self._make(self.small_space, 11, [])
        known: list[dict[str, Any]] = [{"a": "z", "b": 2}, {"a": "x", "b": 1}]
        searcher.register_pending(0, dict(known[0]))  # the user enqueued it
        searcher.on_trial_result(-1, dict(known[1]), {"loss": 0.3, "epoch": 9}, True)
        for number in range(1, 5):
            config = searcher.get_config(number)
            assert config is not None, f"only {number - 1} of 4 configurations were suggested that are not known"
            assert config not in known, f"suggestion {number} is {config}, which is known"
            known.append(dict(config))
            self._learn(searcher, number, dict(config))
        assert searcher.get_config(5) is None, "all 6 configurations are known, and another was suggested"

    def test_hooks_may_come_in_any_order(self) -> None:
        searcher = self._make(self.config_space, 6)
        config = searcher.get_config("0")
        assert config is not None
        searcher.cleanup_pending(0)
        searcher.remove_case(0)
        searcher.evaluation_failed("0", config, False)
        searcher.register_pending(0, config, milestone=3)
        searcher.on_trial_result(0, config, {"loss": 1.0, "epoch": 3}, True)
        searcher.evaluation_failed(0, config)
        searcher.cleanup_pending("0")
        searcher.cleanup_pending(0)
        searcher.register_pending(9, sample_config(self.config_space, 9))
        searcher.on_trial_result(0, config, {"loss": math.inf, "epoch": 4}, False)
        assert searcher.get_config(1) is not None, "nothing was suggested after unusual events"
        assert searcher.dataset_size() >= 0
        assert isinstance(searcher.model_parameters(), dict)

    # ---- seeds and state -----------------------------------------------------------------------------

    def test_same_seed_same_configurations(self) -> None:
        first, second = (self._suggestions(self._make(self.config_space, 7)) for _ in range(2))
        assert first == second, "two searchers with the same seed differ"

    def test_another_seed_gives_other_configurations(self) -> None:
        if self.is_random:
            first, second = (self._suggestions(self._make(self.config_space, seed)) for seed in (7, 8))
            assert first != second, "the seed has no effect"

    def test_global_generators_are_left_alone(self) -> None:
        with global_generators_untouched():
            self._suggestions(self._make(self.config_space, 9))

    def test_state_continues_where_it_was_taken(self) -> None:
        for space, total in ((self.config_space, self.n_suggestions), (self.small_space, 6)):
            expected: list[dict[str, Any]] = []
            self._play(self._make(space, 10), expected, 0, total)
            searcher = self._make(space, 10)
            configs: list[dict[str, Any]] = []
            taken: list[tuple[int, list[dict[str, Any]], dict[str, Any], list[tuple[str, dict[str, Any]]]]] = []
            for step in range(total * _STEPS):
                state = searcher.state_dict()
                # The state itself is loaded below, after the last step, which must not reach back into it.
                taken.append((step, list(configs), state, list(copies_of_state(state))))
                self._play(searcher, configs, step, total, steps=1)
            for step, begun, state, copies in taken:
                # One format a position, in turn.
                name, copy = [*copies, ("state_dict()", state)][step % (1 + len(copies))]
                twin = self._make(space, 10)
                twin.load_state_dict(copy)
                self._play(twin, begun, step, total)
                where = f"{step // _STEPS} suggestions and {step % _STEPS} of {_STEPS} further events"
                assert begun == expected, f"after loading the state ({name}) taken after {where}"

    # ---- helpers -------------------------------------------------------------------------------------

    def _make(
        self, config_space: dict[str, Any], seed: int, points: list[dict[str, Any]] | None = None
    ) -> BaseSearcher:
        searcher = self.make_searcher(config_space, seed, points)
        searcher.configure(SearcherContext("loss", random_seed=seed, resource_attr="epoch", max_resource_level=9))
        return searcher

    def _suggestions(self, searcher: BaseSearcher, n: int | None = None, start: int = 0) -> list[dict[str, Any]]:
        configs = []
        for number in range(start, start + (self.n_suggestions if n is None else n)):
            config = searcher.get_config(number)
            assert config is not None, f"get_config({number}) returned None, the space is not used up"
            configs.append(dict(config))
            self._learn(searcher, number, dict(config))
        return configs

    def _play(
        self, searcher: BaseSearcher, configs: list[dict[str, Any]], start: int, total: int, steps: int | None = None
    ) -> None:
        """Go on with an experiment of ``total`` trials in which two run at the same time; one in four fails.

        Args:
            searcher: The searcher.
            configs: What it has suggested; what it suggests now is appended.
            start: Number of steps before.
            total: Number of suggestions in all.
            steps: Number of steps; default all that are left.
        """
        for step in range(start, total * _STEPS if steps is None else start + steps):
            number, kind = divmod(step, _STEPS)
            if kind == 0:
                config = searcher.get_config(number)
                assert config is not None, f"get_config({number}) returned None, the space is not used up"
                configs.append(dict(config))
                searcher.register_pending(number, dict(config))
                continue
            number -= kind >= 3  # the second half of what happens to the trial before
            if number < 0:
                continue
            config, loss = dict(configs[number]), toy_fraction(sorted(configs[number].items()))
            if kind in (1, 2):
                searcher.on_trial_result(number, config, {"loss": 2 * loss / kind, "epoch": kind}, False)
            elif kind == 3 and number % 4 == 3:
                searcher.evaluation_failed(number, config, True)
            elif kind == 3:
                searcher.on_trial_result(number, config, {"loss": loss, "epoch": 9}, True)
            else:
                searcher.cleanup_pending(number)

    def _learn(self, searcher: BaseSearcher, number: int, config: dict[str, Any]) -> None:
        searcher.register_pending(number, config)
        loss = toy_fraction(sorted(config.items()))
        searcher.on_trial_result(number, config, {"loss": 2 * loss, "epoch": 1}, False)
        searcher.on_trial_result(number, config, {"loss": loss, "epoch": 9}, True)
        searcher.cleanup_pending(number)


def _tuned(config_space: dict[str, Any]) -> dict[str, Any]:
    return {name: domain for name, domain in config_space.items() if isinstance(domain, Domain)}
