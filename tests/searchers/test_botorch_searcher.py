"""BoTorch's own recipe as a searcher."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from sthyper.baselines import BoTorch, baselines_dict
from sthyper.config_space import choice, randint, uniform
from sthyper.schedulers import AskTellScheduler, FIFOScheduler
from sthyper.searchers import RandomSearcher
from sthyper.searchers.bayesopt import botorch
from sthyper.searchers.bayesopt.botorch import BoTorchOptions, BoTorchSearcher
from sthyper.testing import SearcherConformance
from sthyper.testing._checks import global_generators_untouched

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "y": uniform(0.0, 1.0), "epochs": 3}


@pytest.mark.slow
class TestBoTorchConformance(SearcherConformance):
    n_suggestions = 4

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BoTorchSearcher:
        options = BoTorchOptions(random_seed=random_seed, num_init_random=2)
        return BoTorchSearcher(config_space, "loss", points_to_evaluate=points_to_evaluate, options=options)

    @pytest.mark.timeout(120)
    def test_state_continues_where_it_was_taken(self) -> None:
        super().test_state_continues_where_it_was_taken()


def loss(config: dict[str, Any]) -> float:
    return float((config["x"] - 0.3) ** 2 + (config["y"] - 0.6) ** 2)


def make(space: dict[str, Any] = SPACE, mode: str = "min", **options: Any) -> BoTorchSearcher:
    return BoTorchSearcher(space, "loss", mode, options=BoTorchOptions(**{"random_seed": 3, **options}))


def play(searcher: BoTorchSearcher, n: int, start: int = 0) -> list[dict[str, Any]]:
    configs = []
    for number in range(start, start + n):
        config = searcher.get_config(number)
        assert config is not None
        searcher.register_pending(number, config)
        value = loss(config)
        searcher.on_trial_result(number, config, {"loss": value if searcher.mode == "min" else -value}, True)
        configs.append(config)
    return configs


def kinds(searcher: BoTorchSearcher, n: int) -> list[str]:
    found = []
    for number in range(n):
        play(searcher, 1, number)
        assert searcher.last_reason is not None
        found.append(searcher.last_reason.kind)
    return found


@pytest.mark.parametrize("mode", ["min", pytest.param("max", marks=pytest.mark.slow)])
def test_it_finds_the_optimum_and_leaves_global_draws_alone(mode: str) -> None:
    searcher = make(mode=mode)
    with global_generators_untouched():
        configs = play(searcher, 10)
    assert min(map(loss, configs)) < 0.01
    random = RandomSearcher(SPACE, "loss", random_seed=3)
    assert configs[:3] == [random.get_config(number) for number in range(3)]
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    assert searcher.last_reason.incumbent == pytest.approx((1 if mode == "min" else -1) * min(map(loss, configs[:-1])))
    assert "likelihood.noise_covar.noise" in searcher.model_parameters()
    assert searcher.dataset_size() == 10


def test_by_name_and_as_baseline() -> None:
    assert baselines_dict["BoTorch"] is BoTorch
    found = []
    for scheduler in (
        BoTorch(SPACE, "loss", random_seed=1, search_options={"num_init_random": 2}),
        FIFOScheduler(SPACE, "loss", searcher="botorch", random_seed=1, search_options={"num_init_random": 2}),
    ):
        assert isinstance(scheduler.searcher, BoTorchSearcher)
        loop = AskTellScheduler(scheduler)
        for _ in range(3):
            trial = loop.ask()
            assert trial is not None
            loop.tell(trial, loss=loss(trial.config), done=True)
        found.append(trial.config)
        assert scheduler.searcher.last_reason is not None
        assert scheduler.searcher.last_reason.kind == "model"
    assert found[0] == found[1]


def test_failed_trials_do_not_mix_up_results() -> None:
    """The model of an experiment with failures is that of one in which these trials never were."""
    with_failures, without = make(), make()
    for number in range(4):
        config = {"x": 0.2 * number, "y": 0.1 + 0.2 * number}
        for searcher in (with_failures, without):
            searcher.on_trial_result(10 + number, config, {"loss": loss(config)}, True)
        failed = {"x": 0.9, "y": 0.01 * number}
        with_failures.register_pending(number, failed)
        with_failures.evaluation_failed(number, failed)
        with_failures.cleanup_pending(number)
    level = with_failures._observations.level(1)
    first, second = with_failures._data(level), without._data(level)
    assert torch.equal(first.X, second.X)
    assert torch.equal(first.Y, second.Y)
    assert not len(first.pending)
    with_failures.next_initial_config()
    without.next_initial_config()
    assert with_failures.get_config(20) == without.get_config(20)


def test_state_continues() -> None:
    expected = play(make(), 5)
    searcher = make()
    play(searcher, 4)
    twin = make()
    twin.load_state_dict(searcher.state_dict())
    assert play(twin, 1, 4) == expected[4:]
    assert twin.model_parameters()


@pytest.mark.slow
def test_every_option_has_an_effect() -> None:
    def suggestion(pending: bool = False, **options: Any) -> dict[str, Any]:
        searcher = make(**options)
        for number in range(6):
            config = {"x": 0.15 * number, "y": (0.4 * number) % 1.0}
            searcher.on_trial_result(20 + number, config, {"loss": loss(config)}, True)
        searcher.next_initial_config()
        if pending:
            searcher.register_pending(8, {"x": 0.31, "y": 0.62})
        return searcher.get_config(9) or {}

    usual = suggestion()
    assert suggestion() == usual
    for options in (
        {"num_init_random": 7},
        {"max_num_observations": 4},
        {"input_warping": False},
        {"acq_function": "ei"},
        {"random_seed": 4},
    ):
        assert suggestion(**options) != usual, options  # type: ignore[arg-type]
    assert suggestion(max_num_observations=None) == usual
    assert suggestion(pending=True) != usual
    assert suggestion(pending=True, no_fantasizing=True) == usual


@pytest.mark.slow
def test_duplicates_are_replaced_until_the_space_is_used_up() -> None:
    space = {"a": choice(["p", "q", "r"]), "n": randint(1, 3)}
    searcher = BoTorchSearcher(space, "loss", options=BoTorchOptions(random_seed=0))
    seen = set()
    for number in range(9):
        config = searcher.get_config(number)
        assert config is not None
        seen.add(tuple(config.values()))
        searcher.on_trial_result(number, config, {"loss": config["n"] + (config["a"] == "p")}, True)
    assert len(seen) == 9
    assert searcher.get_config(9) is None


def test_restricted_and_repeated_configurations() -> None:
    points = [{"x": 0.1 * i, "y": 0.1 * j} for i in range(1, 5) for j in range(1, 5)]
    searcher = make(restrict_configurations=points)
    searcher.next_initial_config()
    configs = play(searcher, 8)
    assert all(config in points for config in configs)
    assert len({tuple(config.values()) for config in configs}) == 8
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    space = {"a": choice(["p", "q"])}
    repeating = BoTorchSearcher(space, "loss", options=BoTorchOptions(random_seed=0, allow_duplicates=True))
    for number in range(5):
        config = repeating.get_config(number)
        assert config is not None
        repeating.on_trial_result(number, config, {"loss": 1.0 if config["a"] == "p" else 0.5}, True)


def test_equal_and_unusable_results() -> None:
    searcher = make()
    for number, value in enumerate((1.0, 1.0, math.nan, 1.0)):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": value}, True)
    assert searcher.get_config(9) is not None
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    assert searcher.last_reason.num_observations == 3


def test_any_failure_is_a_random_suggestion(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from botorch.exceptions.errors import ModelFittingError

    from sthyper.surrogates import custom

    def fails(mll: Any) -> None:
        raise ModelFittingError("all attempts failed")

    monkeypatch.setattr(custom, "fit_gpytorch_mll", fails)
    assert kinds(make(), 5) == ["initial"] * 3 + ["random"] * 2
    assert len([r for r in caplog.records if "all attempts failed" in r.message and r.levelname == "WARNING"]) == 1


def test_the_old_spelling_warns() -> None:
    with pytest.warns(DeprecationWarning, match="BoTorchSearcher"):
        assert botorch.BotorchSearcher is BoTorchSearcher
    with pytest.raises(AttributeError, match="BoTurchSearcher"):
        botorch.BoTurchSearcher  # noqa: B018


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_init_random": 1}, ValueError, "num_init_random must be at least 2"),
        ({"num_init_random": 2.5}, TypeError, "num_init_random must be an int"),
        ({"max_num_observations": 1}, ValueError, "max_num_observations must be at least 2"),
        ({"max_num_observations": "all"}, TypeError, "max_num_observations must be an int"),
        ({"acq_function": "eii"}, ValueError, "acq_function='eii' is unknown (did you mean 'ei'?)"),
        ({"input_warping": 1}, TypeError, "input_warping must be True or False"),
        ({"no_fantasizing": None}, TypeError, "no_fantasizing must be True or False"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        BoTorch(SPACE, "loss", search_options=options)
    with pytest.raises(TypeError, match="options must be BoTorchOptions"):
        BoTorchSearcher(SPACE, "loss", options=options)  # type: ignore[arg-type]


def test_unknown_options_name_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean 'max_num_observations'"):
        BoTorch(SPACE, "loss", search_options={"max_observations": 3})
