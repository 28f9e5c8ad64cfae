"""Every option of Bayesian optimisation makes a difference, or is refused with a reason."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import BayesianRidge

from sthyper.config_space import choice, randint, uniform
from sthyper.schedulers import FIFOScheduler
from sthyper.searchers import RandomSearcher
from sthyper.searchers.base import SearcherContext
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions

SPACE: dict[str, Any] = {
    "x": uniform(0.0, 1.0),
    "y": uniform(0.0, 1.0),
    "n": randint(1, 9),
    "kind": choice(["a", "b", "c"]),
}
QUICK: dict[str, Any] = {
    "random_seed": 0,
    "num_init_random": 3,
    "num_init_candidates": 32,
    "num_local_candidates": 16,
    "opt_nstarts": 1,
    "opt_maxiter": 8,
}
Trace = tuple[list[dict[str, Any] | None], dict[str, float]]


def objective(config: dict[str, Any]) -> float:
    """Return a value between 0.1 and 1."""
    x, y = config["x"], config["y"]
    kind = {"a": 0.0, "b": 0.05, "c": 0.15}[config["kind"]]
    return 0.1 + 0.4 * (x - 0.35) ** 2 + 0.2 * abs(math.sin(5 * y)) + 0.005 * (config["n"] - 4) ** 2 + kind


def make(space: dict[str, Any] | None = None, mode: str = "min", **options: Any) -> BayesianOptimizationSearcher:
    return BayesianOptimizationSearcher(
        SPACE if space is None else space,
        "loss",
        mode,
        points_to_evaluate=[],
        options=BayesOptOptions(**{**QUICK, **options}),
    )


def trace(mode: str = "min", number: int = 7, late: int = 0, noise: float = 0.0, **options: Any) -> Trace:
    """Return suggestions and parameters of a run in which results come ``late`` suggestions later."""
    searcher = make(mode=mode, **options)
    configs: list[dict[str, Any] | None] = []
    rng = np.random.default_rng(0)
    for number_of_trial in range(number):
        configs.append(searcher.get_config(number_of_trial))
        if configs[-1] is not None:
            searcher.register_pending(number_of_trial, configs[-1])
        done = number_of_trial - late
        if done >= 0 and (config := configs[done]) is not None:
            value = objective(config) + noise * rng.random()
            searcher.on_trial_result(done, config, {"loss": value if mode == "min" else 1.0 - value}, update=True)
    return configs, searcher.model_parameters()


@dataclass(frozen=True)
class Change:
    """A value of an option that makes a difference.

    Args:
        value: The value.
        among: Other options in both runs.
        run: Arguments of both runs.
        suggestions: Whether the suggestions must differ; if not, the parameters of the model must.
    """

    value: Any
    among: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    suggestions: bool = True


FEW = [{"x": 0.1 * i, "y": 0.3, "n": 1 + i % 8, "kind": "abc"[i % 3]} for i in range(1, 10)]
CHANGES: dict[str, Change] = {
    "num_init_random": Change(5),
    "num_init_candidates": Change(4, {"num_local_candidates": 0, "skip_local_optimization": True}),
    "initial_scoring": Change("thompson_indep"),
    "skip_local_optimization": Change(True),
    "num_fantasy_samples": Change(2, run={"late": 2}),
    "no_fantasizing": Change(True, run={"late": 2}),
    "opt_nstarts": Change(4, {"opt_maxiter": 1, "preset": "syne-tune"}, suggestions=False),
    "opt_maxiter": Change(1, suggestions=False),
    "opt_warmstart": Change(False, {"opt_maxiter": 2}, suggestions=False),
    "opt_skip_init_length": Change(0, {"opt_skip_period": 3}, suggestions=False),
    "opt_skip_period": Change(3, {"opt_skip_init_length": 0}, suggestions=False),
    "normalize_targets": Change(False),
    "input_warping": Change(False),
    "boxcox_transform": Change(True, run={"number": 9}),
    "gp_base_kernel": Change("matern52-noard"),
    "acq_function": Change("lcb"),
    "acq_function_kwargs": Change({"kappa": 9.0}, {"acq_function": "lcb"}),
    "max_size_data_for_model": Change(3),
    "max_size_top_fraction": Change(1.0, {"max_size_data_for_model": 3}, {"number": 9}),
    "restrict_configurations": Change(FEW, {"num_init_random": 1}),
    "map_reward": Change("5_minus_x", {"boxcox_transform": True}, {"mode": "max", "number": 9}, suggestions=False),
    "random_seed": Change(7),
    # Ours.
    "preset": Change("syne-tune"),
    "num_local_candidates": Change(0, {"skip_local_optimization": True}),
    "local_search_starts": Change(1, {"local_search_starts": 6}, {"number": 9}),
    "target_transform": Change("standardize"),
    "categorical_kernel": Change("exchangeable"),
    "mcmc_samples": Change(2, run={"number": 5}),
    "escape_stagnation": Change(False, run={"number": 16}),
    "incumbent": Change("model", run={"noise": 0.4}),
    "canonicalize": Change(lambda config: {**config, "n": 1}),
}
ELSEWHERE = {  # tests of their own in this file
    "opt_verbose",
    "opt_debug_writer",
    "allow_duplicates",
    "debug_log",
}
OF_OTHER_FILES = {
    "pending_strategy",
    "outcome_constraints",
    "learn_feasibility",
    "surrogate",
    "transfer_learning_task_attr",
    "transfer_learning_active_task",
    "transfer_learning_active_config_space",
    "transfer_learning_model",
}
MULTI_FIDELITY = (
    "model",
    "gp_resource_kernel",
    "resource_acq",
    "resource_acq_bohb_threshold",
    "opt_skip_num_max_resource",
    "separate_noise_variances",
    "issm_gamma_one",
    "expdecay_normalize_inputs",
    "hypertune_distribution_num_samples",
)


def test_every_option_has_a_test() -> None:
    names = {f.name for f in fields(BayesOptOptions)}
    assert names == set(CHANGES) | ELSEWHERE | OF_OTHER_FILES
    assert not set(CHANGES) & (ELSEWHERE | OF_OTHER_FILES)


@pytest.mark.parametrize("name", list(CHANGES))
def test_another_value_makes_a_difference(name: str) -> None:
    change = CHANGES[name]
    usual = trace(**change.run, **change.among)
    other = trace(**change.run, **{**change.among, name: change.value})
    if change.suggestions:
        assert usual[0] != other[0]
    else:
        assert usual[1] != other[1]
    # Not by chance: a run repeats itself.
    if name in ("num_fantasy_samples", "max_size_top_fraction"):
        assert trace(**change.run, **change.among) == usual


# ---- options with tests of their own -----------------------------------------------------------------


def test_a_number_of_random_configurations() -> None:
    searcher = make(num_init_random=4)
    kinds = []
    for number in range(6):
        config = searcher.get_config(number)
        assert config is not None
        assert searcher.last_reason is not None
        kinds.append(searcher.last_reason.kind)
        searcher.on_trial_result(number, config, {"loss": objective(config)}, update=True)
    assert kinds == ["initial"] * 4 + ["model"] * 2


def test_points_to_evaluate_count() -> None:
    points = [{"x": 0.1 * i, "y": 0.5, "n": 2, "kind": "a"} for i in range(3)]
    for number, expected in ((5, 5), (3, 3), (1, 3), (0, 3)):
        searcher = BayesianOptimizationSearcher(
            SPACE, "loss", points_to_evaluate=points, options=BayesOptOptions(**{**QUICK, "num_init_random": number})
        )
        first_by_model = None
        for trial in range(7):
            config = searcher.get_config(trial)
            assert config is not None
            assert searcher.last_reason is not None
            if trial < 3:
                assert config == points[trial]
            if searcher.last_reason.kind == "model" and first_by_model is None:
                first_by_model = trial
            searcher.on_trial_result(trial, config, {"loss": objective(config)}, update=True)
        assert first_by_model == expected


def test_the_random_phase_is_that_of_random_search() -> None:
    random = RandomSearcher(SPACE, "loss", points_to_evaluate=[], random_seed=0)
    ours, theirs = trace(number=6, num_init_random=6)[0], [random.get_config(i) for i in range(6)]
    assert ours == theirs
    # Also with the seed of the scheduler.
    pair = [
        BayesianOptimizationSearcher(SPACE, points_to_evaluate=[], options=BayesOptOptions(num_init_random=4)),
        RandomSearcher(SPACE, points_to_evaluate=[]),
    ]
    for searcher in pair:
        searcher.configure(SearcherContext("loss", random_seed=11))
    assert [pair[0].get_config(i) for i in range(4)] == [pair[1].get_config(i) for i in range(4)]


def test_fits_are_logged_on_demand(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trace(number=4)
    assert "fit from start" not in caplog.text
    trace(number=4, opt_verbose=True)
    assert "fit from start 0" in caplog.text


def test_reasons_are_logged_on_demand(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trace(number=4)
    assert "suggested" not in caplog.text
    trace(number=4, debug_log=True)
    assert "trial 3: suggested" in caplog.text
    for part in ("model of 3 observations", "incumbent", "predicted", "acquisition", "found by the"):
        assert part in caplog.text


def test_the_debug_writer_is_refused() -> None:
    with pytest.raises(ValueError, match="opt_debug_writer=True is not supported; debug_log=True"):
        BayesOptOptions(opt_debug_writer=True)


def test_configurations_come_again_if_they_may() -> None:
    space = {"n": randint(1, 4)}
    for allowed in (False, True):
        searcher = make(space, allow_duplicates=allowed, num_init_random=1)
        found = []
        for number in range(8):
            config = searcher.get_config(number)
            found.append(config)
            if config is not None:
                searcher.on_trial_result(number, config, {"loss": float(config["n"])}, update=True)
        if allowed:
            assert None not in found
        else:
            assert sorted(config["n"] for config in found[:4] if config is not None) == [1, 2, 3, 4]
            assert found[4:] == [None] * 4


def test_pending_and_failed_configurations_do_not_come_again_in_any_case() -> None:
    searcher = make({"n": randint(1, 4)}, allow_duplicates=True, num_init_random=0)
    searcher.on_trial_result(0, {"n": 1}, {"loss": 1.0}, update=True)
    searcher.register_pending(1, {"n": 2})
    searcher.evaluation_failed(2, {"n": 3})
    assert {searcher.get_config(number)["n"] for number in range(3, 12)} <= {1, 4}  # type: ignore[index]


def test_only_given_configurations_are_suggested() -> None:
    found, _ = trace(number=len(FEW) + 1, restrict_configurations=FEW)
    assert found[-1] is None
    assert sorted(config["x"] for config in found if config is not None) == [config["x"] for config in FEW]
    # With all results known the model's first choice is among the best of those that are left.
    assert BayesOptOptions(restrict_configurations=FEW, initial_scoring="thompson_indep").initial_scoring == "acq_func"


def test_the_model_sees_at_most_so_many_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    from sthyper.surrogates.gp import GaussianProcess

    seen: list[list[float]] = []
    fit = GaussianProcess.fit

    def spy(self: GaussianProcess, X: Any, Y: Any, refit: bool = True) -> Any:
        seen.append(Y.tolist())
        return fit(self, X, Y, refit)

    monkeypatch.setattr(GaussianProcess, "fit", spy)
    values = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.6]

    def sizes(mode: str, **options: Any) -> list[float]:
        searcher = make(mode=mode, **options)
        for number, value in enumerate(values):
            config = {"x": 0.1 * number, "y": 0.5, "n": 3, "kind": "a"}
            searcher.on_trial_result(number, config, {"loss": value}, update=True)
        seen.clear()
        assert searcher.get_config(100) is not None
        return sorted(seen[0])

    assert len(sizes("min", max_size_data_for_model=None)) == 8
    assert len(sizes("min", max_size_data_for_model=None, preset="syne-tune")) == 8
    best = {"max_size_data_for_model": 4, "max_size_top_fraction": 0.5}
    kept = sizes("min", **best)
    assert len(kept) == 4
    assert kept[:2] == [0.1, 0.2]
    # The best ones of a maximum are the highest.
    kept = sizes("max", **best)
    assert len(kept) == 4
    assert kept[:2] == pytest.approx([1 - 0.9, 1 - 0.8])


def test_the_cap_of_presets() -> None:
    assert BayesOptOptions(preset="syne-tune").max_size_data_for_model == 500
    assert BayesOptOptions(preset="syne-tune", max_size_data_for_model=None).max_size_data_for_model is None
    assert BayesOptOptions(max_size_data_for_model=77).max_size_data_for_model == 77


def test_rewards_are_mapped_to_positive_targets() -> None:
    parameters = {}
    for reward in (None, "1_minus_x", "minus_x", "2.5_minus_x", lambda x: math.exp(-x)):
        searcher = make(mode="max", map_reward=reward)
        for number in range(5):
            config = searcher.get_config(number)
            assert config is not None
            searcher.on_trial_result(number, config, {"loss": 1.0 - objective(config)}, update=True)
        assert searcher.last_reason is not None
        parameters[str(reward)] = searcher.last_reason.incumbent
    assert parameters["None"] == parameters["1_minus_x"] == pytest.approx(parameters["minus_x"])
    assert parameters["2.5_minus_x"] == pytest.approx(parameters["1_minus_x"])
    with pytest.raises(ValueError, match="map_reward must be 'minus_x', '<a>_minus_x'"):
        BayesOptOptions(map_reward="x_minus_1")


# ---- when the model is fitted ------------------------------------------------------------------------


def parameters_after_each(number: int, **options: Any) -> list[dict[str, float]]:
    searcher = make(**options)
    found = []
    for trial in range(number):
        config = searcher.get_config(trial)
        assert config is not None
        found.append(searcher.model_parameters())
        searcher.on_trial_result(trial, config, {"loss": objective(config)}, update=True)
    return found


@pytest.mark.parametrize(
    ("init_length", "period", "expected"),
    [
        # Suggestions 1 to 9 see as many observations; from so many on each third one is a fit.
        (0, 1, [True] * 9),
        (100, 3, [True] * 9),
        (0, 3, [True, False, False] * 3),
        (4, 3, [True, True, True, True, False, False, True, False, False]),
        (3, 2, [True, True, True, False, True, False, True, False, True]),
    ],
)
def test_fits_are_skipped_periodically(init_length: int, period: int, expected: list[bool]) -> None:
    found = parameters_after_each(
        10, num_init_random=1, opt_skip_init_length=init_length, opt_skip_period=period, opt_maxiter=3
    )
    assert found[0] == {}
    assert [found[i] != found[i - 1] for i in range(1, 10)] == expected


def test_without_a_new_result_nothing_is_fitted() -> None:
    searcher = make(opt_skip_init_length=0, opt_skip_period=2, num_init_random=1)
    for trial in range(3):
        config = searcher.get_config(trial)
        assert config is not None
        searcher.on_trial_result(trial, config, {"loss": objective(config)}, update=True)
    changes, before = [], searcher.model_parameters()
    for trial in range(3, 8):  # of these only the first follows a result
        config = searcher.get_config(trial)
        assert config is not None
        searcher.register_pending(trial, config)
        changes.append(searcher.model_parameters() != before)
        before = searcher.model_parameters()
    assert changes[1:] == [False] * 4
    # Suggestions without results do not count as ones of the period.
    assert changes[0]
    config = {"x": 0.9, "y": 0.9, "n": 8, "kind": "c"}
    fitted = []
    for trial in (20, 21):
        searcher.on_trial_result(trial, {**config, "n": trial - 15}, {"loss": 0.8 + 0.05 * trial}, update=True)
        assert searcher.get_config(trial + 10) is not None
        fitted.append(searcher.model_parameters() != before)
        before = searcher.model_parameters()
    assert fitted == [False, True]


# ---- odd results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.5", True])
def test_results_that_are_no_numbers_are_passed_over(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    searcher, other = make(), make()
    bad = {"x": 0.5, "y": 0.5, "n": 5, "kind": "a"}
    for each in (searcher, other):
        for number in range(4):
            config = {"x": 0.2 * number, "y": 0.3, "n": 3, "kind": "b"}
            each.on_trial_result(number, config, {"loss": objective(config)}, update=True)
        each.on_trial_result(9, bad, {"loss": value} if each is searcher else {}, update=True)
    assert "the model passes over such results" in caplog.text
    assert caplog.text.count("passes over") == 2  # once for each searcher
    config = searcher.get_config(10)
    assert config is not None
    assert config == other.get_config(10)
    assert searcher.last_reason is not None
    assert searcher.last_reason.num_observations == 4


def test_a_run_without_any_number_goes_on_at_random() -> None:
    searcher = make()
    random = RandomSearcher(SPACE, "loss", points_to_evaluate=[], random_seed=0)
    for number in range(6):
        config = searcher.get_config(number)
        assert config == random.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": math.nan}, update=True)
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "random"
    assert "no result" in searcher.last_reason.text


def test_targets_that_are_not_positive_leave_box_cox_to_random_search(caplog: pytest.LogCaptureFixture) -> None:
    searcher = make(boxcox_transform=True)
    for number in range(5):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": objective(config) - 1.0}, update=True)
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "random"
    assert "boxcox_transform needs positive targets" in searcher.last_reason.text
    assert caplog.text.count("the model cannot be used") == 1


# ---- options that are refused ------------------------------------------------------------------------


def scheduler(**options: Any) -> FIFOScheduler:
    return FIFOScheduler(SPACE, metric="loss", searcher="bayesopt", search_options=options)


@pytest.mark.parametrize("key", MULTI_FIDELITY)
def test_options_of_multi_fidelity_models_are_explained(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is an option of multi-fidelity models"):
        scheduler(**{key: 1})


@pytest.mark.parametrize("key", ["cost_attr", "exponent_cost"])
def test_options_of_cost_aware_searchers_are_explained(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is an option of searcher='bayesopt_cost'"):
        scheduler(**{key: "elapsed_time"})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("num_init_rando", "num_init_random"),
        ("opt_nstart", "opt_nstarts"),
        ("acquisition_function", "acq_function"),
        ("box_cox_transform", "boxcox_transform"),
    ],
)
def test_unknown_options_name_the_closest(key: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option '{key}' of searcher='bayesopt'.*did you mean '{near}'"):
        scheduler(**{key: 1})


INTS = {
    "num_init_random": 0,
    "num_init_candidates": 2,
    "num_local_candidates": 0,
    "local_search_starts": 1,
    "num_fantasy_samples": 1,
    "opt_nstarts": 1,
    "opt_maxiter": 1,
    "opt_skip_init_length": 0,
    "opt_skip_period": 1,
    "mcmc_samples": 0,
    "max_size_data_for_model": 1,
    "random_seed": 0,
}


@pytest.mark.parametrize("name", list(INTS))
def test_numbers_out_of_range(name: str) -> None:
    least = INTS[name]
    assert getattr(BayesOptOptions(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        BayesOptOptions(**{name: least - 1})
    for wrong in (1.5, "3", True):
        with pytest.raises(TypeError, match=f"{name} must be an int of at least {least}, got {wrong!r}"):
            BayesOptOptions(**{name: wrong})


@pytest.mark.parametrize(
    "name",
    [
        *("skip_local_optimization", "no_fantasizing", "opt_warmstart", "opt_verbose", "normalize_targets"),
        *("boxcox_transform", "input_warping", "allow_duplicates", "learn_feasibility", "debug_log"),
    ],
)
def test_switches_are_switches(name: str) -> None:
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got {wrong!r}"):
            BayesOptOptions(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("preset", "defaults", "default"),
        ("initial_scoring", "acq_fun", "acq_func"),
        ("gp_base_kernel", "matern52", "matern52-ard"),
        ("categorical_kernel", "onehot", "one-hot"),
        ("acq_function", "log_ei", "logei"),
        ("incumbent", "observe", "observed"),
        ("target_transform", "half_log", "halflog"),
        ("transfer_learning_model", "matern52_prod", "matern52_product"),
        ("pending_strategy", "fantasy", "fantasies"),
    ],
)
def test_unknown_names_name_the_closest(name: str, wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{wrong}' is unknown.*did you mean '{near}'"):
        BayesOptOptions(**{name: wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size_top_fraction": 1.1}, "max_size_top_fraction must be a number in \\[0, 1\\], got 1.1"),
        ({"max_size_top_fraction": -0.1}, "max_size_top_fraction must be a number"),
        ({"acq_function_kwargs": {"kapa": 1.0}, "acq_function": "lcb"}, "'kapa' is no argument of 'lcb'.*'kappa'"),
        ({"acq_function_kwargs": {"kappa": 1.0}}, "'kappa' is no argument of 'logei'"),
        ({"acq_function_kwargs": {"kappa": 0.0}, "acq_function": "lcb"}, "kappa must be positive, got 0.0"),
        ({"acq_function_kwargs": {"jitter": -1.0}}, "jitter must"),
        ({"boxcox_transform": True, "target_transform": "halflog"}, "exclude each other"),
        ({"boxcox_transform": True, "normalize_targets": False}, "normalize_targets=False excludes"),
        ({"boxcox_transform": True, "mcmc_samples": 3}, "excludes mcmc_samples"),
        ({"transfer_learning_task_attr": "kind"}, "belong together"),
        ({"restrict_configurations": []}, "restrict_configurations"),
    ],
)
def test_values_out_of_range_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acq_function_kwargs": [1]}, "acq_function_kwargs must be a dict"),
        ({"acq_function_kwargs": {"jitter": "0.1"}}, "jitter must be a finite number, got '0.1'"),
        ({"acq_function_kwargs": {"jitter": math.nan}}, "jitter must be a finite number, got nan"),
        ({"canonicalize": "x"}, "canonicalize must be a callable"),
    ],
)
def test_values_of_the_wrong_type_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        scheduler(**options)


def test_options_of_the_user_stay_as_they_are() -> None:
    options = {
        **QUICK,
        "acq_function": "lcb",
        "acq_function_kwargs": {"kappa": 2.0},
        "restrict_configurations": copy.deepcopy(FEW),
    }
    before = copy.deepcopy(options)
    made = FIFOScheduler(SPACE, metric="loss", searcher="bayesopt", search_options=options)
    suggest: Callable[[int], Any] = made.searcher.get_config
    for number in range(5):
        config = suggest(number)
        assert config is not None
        made.searcher.on_trial_result(number, config, {"loss": objective(config)}, update=True)
    assert options == before


# ---- after the review --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("map_reward", "reported", "said"),
    [
        (lambda x: -math.log(x), 0.0, "cannot map"),
        (lambda x: math.nan, 0.5, "maps loss=0.5 to nan"),
        (lambda x: math.inf if x > 0.4 else 1 - x, 0.5, "maps loss=0.5 to inf"),
    ],
)
def test_rewards_that_cannot_be_mapped_are_passed_over(
    map_reward: Any, reported: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = make(mode="max", map_reward=map_reward)
    config = searcher.get_config(0)
    assert config is not None
    searcher.on_trial_result(0, config, {"loss": reported}, True)
    assert said in caplog.text
    assert searcher.dataset_size() == 0
    assert searcher.get_config(1) is not None


@pytest.mark.parametrize("name", ["nan_minus_x", "inf_minus_x", "x_minus_x", "minus"])
def test_rewards_need_a_finite_constant(name: str) -> None:
    with pytest.raises(ValueError, match="map_reward must be"):
        BayesOptOptions(map_reward=name)


@pytest.mark.parametrize(
    "given",
    [
        {"opt_nstarts": 3},
        {"opt_maxiter": 7},
        {"opt_warmstart": False},
        {"target_transform": "standardize"},
        {"boxcox_transform": True},
        {"normalize_targets": False},
        {"input_warping": True},
        {"gp_base_kernel": "rbf-ard"},
        {"categorical_kernel": "exchangeable"},
        {"mcmc_samples": 3},
    ],
)
def test_options_of_the_process_are_refused_with_another_model(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} is an option of the Gaussian process"):
        BayesOptOptions(surrogate=BayesianRidge(), **given)
    BayesOptOptions(**given)
    BayesOptOptions(surrogate=BayesianRidge(), preset="syne-tune")


def test_options_of_transfer_learning_need_a_task() -> None:
    with pytest.raises(ValueError, match="transfer_learning_model needs transfer_learning_task_attr"):
        BayesOptOptions(transfer_learning_model="matern52_same")


def test_a_huge_penalty_does_not_end_the_search() -> None:
    searcher = make(num_init_random=3)
    for number in range(6):
        config = searcher.get_config(number)
        assert config is not None
        searcher.on_trial_result(number, config, {"loss": 1e308 if number == 4 else objective(config)}, True)
    assert searcher.get_config(6) is not None
    assert searcher.last_reason is not None
    assert searcher.last_reason.kind == "model"
    assert math.isfinite(searcher.last_reason.acquisition or math.nan)
