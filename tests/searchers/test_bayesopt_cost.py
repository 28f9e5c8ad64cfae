"""Cost-aware Bayesian optimisation: what it learns of costs, and that it takes them into account."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon  # type: ignore[import-untyped]

from sthyper import Reporter, StoppingCriterion, Tuner
from sthyper._describe import describe, rebuild
from sthyper.acquisition.cost import ExpectedImprovementPerCost
from sthyper.backend import PythonBackend
from sthyper.baselines import BayesianOptimization, CostAwareBayesianOptimization, baselines_dict
from sthyper.config_space import uniform
from sthyper.schedulers import AskTellScheduler, FIFOScheduler, HyperbandScheduler, TrialScheduler
from sthyper.searchers import SearcherContext
from sthyper.searchers.base import BaseSearcher
from sthyper.searchers.bayesopt import BayesianOptimizationSearcher, BayesOptOptions
from sthyper.searchers.bayesopt.cost import CostAwareBayesianOptimizationSearcher, CostAwareOptions
from sthyper.surrogates.cost import BiasOnlyLinearCostModel, CostModel, CostObservation, CostValue, ScikitLearnCostModel
from sthyper.testing import SchedulerConformance, SearcherConformance

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "z": uniform(0.0, 1.0)}
# Cheap fits; what is tested here does not depend on how good they are.
QUICK: dict[str, Any] = {"num_init_candidates": 64, "num_local_candidates": 32, "opt_nstarts": 1, "opt_maxiter": 20}
QUICKEST: dict[str, Any] = {
    **{"num_init_candidates": 4, "num_local_candidates": 2, "opt_nstarts": 1, "opt_maxiter": 2},
    **{"skip_local_optimization": True, "input_warping": False, "num_fantasy_samples": 2},
}


def loss(config: Mapping[str, Any]) -> float:
    return (config["x"] - 0.6) ** 2 + (config["z"] - 0.5) ** 2


def cost(config: Mapping[str, Any]) -> float:
    return float(math.exp(4 * config["x"]))


def options(**changes: Any) -> CostAwareOptions:
    return CostAwareOptions(**{"cost_attr": "cost", **QUICK, **changes})


def configured(searcher: BayesianOptimizationSearcher, seed: int = 3, **context: Any) -> Any:
    searcher.configure(SearcherContext("loss", random_seed=seed, **context))
    return searcher


def make(seed: int = 3, **changes: Any) -> Any:
    searcher = CostAwareBayesianOptimizationSearcher(SPACE, points_to_evaluate=[], options=options(**changes))
    return configured(searcher, seed)


def tell(searcher: BaseSearcher, n: int, seed: int = 0, **report: Any) -> None:
    """Let a searcher learn of n trials."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for number, (x, z) in enumerate(generator.random((n, 2)).tolist()):
        config = {"x": x, "z": z}
        result = {"loss": loss(config), "cost": cost(config)} | report
        searcher.on_trial_result(number, config, {k: v for k, v in result.items() if v is not None}, True)


def suggested(n: int = 10, number: int = 100, **changes: Any) -> dict[str, Any]:
    searcher = make(**changes)
    tell(searcher, n)
    config = searcher.get_config(number)
    assert config is not None
    return dict(config)


class ByLevel(CostModel):
    """Up to the level 10 small x are cheap, at higher ones large x are."""

    def update(self, observations: Sequence[CostObservation]) -> None:
        self.seen = list(observations)

    def sample_joint(self, configs: Sequence[Mapping[str, Any]]) -> list[CostValue]:
        return [CostValue(math.exp(4 * c["x"]), math.exp(4 - 4 * c["x"]) / 10) for c in configs]


# ---- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cost_attr": None}, ValueError, "cost_attr is missing"),
        ({"cost_attr": 3}, TypeError, "cost_attr must be the name"),
        ({"cost_attr": ""}, TypeError, "cost_attr must be the name"),
        ({"resource_attr": "epoch"}, ValueError, "resource_attr is given without cost_model"),
        ({"cost_model": BiasOnlyLinearCostModel()}, ValueError, "cost_model is given without resource_attr"),
        ({"cost_model": "linear", "resource_attr": "epoch"}, TypeError, "must be a CostModel"),
        ({"cost_model": BiasOnlyLinearCostModel(), "resource_attr": "cost"}, ValueError, "different names"),
        ({"max_t": 9}, ValueError, "max_t is the resource at which cost_model predicts"),
        ({"cost_model": BiasOnlyLinearCostModel(), "resource_attr": "e", "max_t": 0}, ValueError, "max_t must be"),
        ({"cost_model": BiasOnlyLinearCostModel(), "resource_attr": "e", "max_t": 2.5}, TypeError, "max_t must be"),
        ({"exponent_cost": 0}, ValueError, re.escape("exponent_cost must be in (0, 1], got 0")),
        ({"exponent_cost": 1.5}, ValueError, "exponent_cost must be in"),
        ({"exponent_cost": "1"}, TypeError, "exponent_cost must be a number"),
        ({"exponent_cost": True}, TypeError, "exponent_cost must be a number"),
        ({"initial_scoring": "thompson_indep"}, ValueError, "only 'acq_func' can"),
        ({"acq_function": "lcb"}, ValueError, "acq_function='lcb' cannot be used with costs"),
        ({"pending_strategy": "joint"}, ValueError, "only 'fantasies' can"),
        ({"opt_nstarts": 0}, ValueError, "opt_nstarts must be at least 1"),
    ],
)
def test_bad_options(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_cost", search_options={"cost_attr": "cost"} | given)


def test_the_cost_must_be_named() -> None:
    with pytest.raises(ValueError, match="cost_attr is missing.*'st_worker_time'"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_cost")
    with pytest.raises(TypeError, match=r"options must be CostAwareOptions\(cost_attr=...\)"):
        CostAwareBayesianOptimizationSearcher(SPACE)
    with pytest.raises(ValueError, match="search_options has cost_attr='a', but the argument is 'b'"):
        CostAwareBayesianOptimization(SPACE, "loss", "b", search_options={"cost_attr": "a"})
    with pytest.raises(TypeError, match="search_options must be a dict"):
        CostAwareBayesianOptimization(SPACE, "loss", "b", search_options=["cost_attr"])  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["cost_attr", "exponent_cost", "cost_model", "resource_attr"])
@pytest.mark.parametrize("name", ["bayesopt", "bayesopt_constrained"])
def test_searchers_without_costs_say_so(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{key!r} is an option of searcher='bayesopt_cost'"):
        FIFOScheduler(SPACE, "loss", searcher=name, search_options={key: "elapsed_time"})


def test_unknown_options_name_the_closest() -> None:
    with pytest.raises(ValueError, match="exponent_cost"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_cost", search_options={"cost_attr": "c", "exponent_costs": 1})
    with pytest.raises(ValueError, match="'max_epochs' is called 'max_t'"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_cost", search_options={"cost_attr": "c", "max_epochs": 9})
    with pytest.raises(ValueError, match="multi-fidelity"):
        FIFOScheduler(SPACE, "loss", searcher="bayesopt_cost", search_options={"cost_attr": "c", "resource_acq": "x"})


def test_presets_keep_what_costs_need() -> None:
    assert options(preset="syne-tune").initial_scoring == "acq_func"
    assert isinstance(suggested(preset="syne-tune")["x"], float)
    assert baselines_dict["CostAwareBayesianOptimization"] is CostAwareBayesianOptimization


# ---- the cost of the last report ---------------------------------------------------------------------


def test_the_acquisition_function_is_expected_improvement_per_cost() -> None:
    searcher = make(exponent_cost=0.7)
    tell(searcher, 12)
    plain: list[Any] = []
    divided: list[Any] = []
    own = searcher._per_cost

    def watch(acquisition: Any) -> Any:
        plain.append(acquisition)
        divided.append(own(acquisition))
        return divided[-1]

    searcher._per_cost = watch
    searcher.get_config(100)
    X = torch.rand(20, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    predicted = torch.tensor([searcher._known_cost.predict(x) for x in X[:, 0]], dtype=torch.float64)
    assert isinstance(divided[0], ExpectedImprovementPerCost)
    with torch.no_grad():
        torch.testing.assert_close(divided[0](X), plain[0](X) - 0.7 * predicted.log(), rtol=1e-8, atol=1e-8)
    # The logarithm of the cost is 4 x.
    torch.testing.assert_close(predicted.log(), 4 * X[:, 0, 0], rtol=0.0, atol=0.15)


def test_without_weight_it_is_plain_bayesian_optimisation() -> None:
    plain = BayesianOptimizationSearcher(SPACE, points_to_evaluate=[], options=BayesOptOptions(**QUICK))
    tell(configured(plain), 10)
    expected = plain.get_config(100)
    assert suggested(exponent_cost=1e-9) == pytest.approx(expected, abs=1e-4)


def test_the_exponent_tells_how_much_costs_count() -> None:
    found = [suggested(20, exponent_cost=exponent)["x"] for exponent in (1e-9, 0.3, 1.0)]
    assert found[0] > found[1] > found[2] > 0.55  # the optimum is at 0.6


def test_costs_that_are_all_the_same_change_nothing() -> None:
    searcher = make()
    tell(searcher, 10, cost=5.0)
    assert searcher.get_config(100) == pytest.approx(suggested(exponent_cost=1e-9), abs=1e-4)


def test_only_the_last_report_counts_without_a_resource() -> None:
    one, two = make(), make()
    for number in range(3):
        two.on_trial_result(number, {"x": 0.1, "z": 0.1 * number}, {"loss": 0.5, "cost": 1e-3}, False)
    two.on_trial_result(99, {"x": 0.9, "z": 0.9}, {"loss": 0.5, "cost": 1e-3}, False)  # it still runs
    one._observations.exclude({"x": 0.9, "z": 0.9})
    tell(one, 8)
    tell(two, 8)
    assert one.get_config(100) == two.get_config(100)


def test_maximisation() -> None:
    searcher = CostAwareBayesianOptimizationSearcher(SPACE, "score", "max", [], options())
    searcher.configure(SearcherContext("score", mode="max", random_seed=3))
    generator = np.random.Generator(np.random.PCG64(0))
    for number, (x, z) in enumerate(generator.random((10, 2)).tolist()):
        config = {"x": x, "z": z}
        searcher.on_trial_result(number, config, {"score": 1 - loss(config), "cost": cost(config)}, True)
    assert searcher.get_config(100) == pytest.approx(suggested(), abs=1e-6)


def test_the_reason_tells_the_predicted_cost() -> None:
    searcher = make()
    tell(searcher, 10)
    config = searcher.get_config(100)
    found = re.search(r"predicted cost ([\d.e+-]+)", str(searcher.last_reason))
    assert found is not None
    assert float(found[1]) == pytest.approx(cost(config), rel=0.2)
    parameters = searcher.model_parameters()
    assert parameters["cost.lengthscale_x"] != parameters["lengthscale_x"]


def test_predictions_have_a_floor() -> None:
    searcher = make()
    for number in range(6):
        searcher.on_trial_result(
            number, {"x": 1 - 0.1 * number, "z": 0.5}, {"loss": 1.0, "cost": 10.0 ** (9 - number)}, True
        )
    searcher.get_config(100)
    assert searcher._known_cost.least == pytest.approx(10.0**3)
    X = torch.stack([torch.linspace(0, 1, 21, dtype=torch.float64), torch.full((21,), 0.5, dtype=torch.float64)], -1)
    assert min(searcher._known_cost.predict(x) for x in X) >= 10.0**3


# ---- the costs of all reports ------------------------------------------------------------------------


def fine(model: CostModel | None = None, seed: int = 3, context: dict[str, Any] | None = None, **changes: Any) -> Any:
    model = ByLevel() if model is None else model
    given = options(cost_model=model, resource_attr="epoch", **changes)
    searcher = CostAwareBayesianOptimizationSearcher(SPACE, points_to_evaluate=[], options=given)
    return configured(searcher, seed, **({"max_resource_level": 1} if context is None else context))


def test_a_cost_model_learns_from_every_report() -> None:
    searcher = fine(context={"max_resource_level": 20})
    tell(searcher, 4, epoch=20)
    config = {"x": 0.25, "z": 0.75}
    for epoch in (1, 2, 3):  # it runs
        searcher.on_trial_result(7, config, {"loss": 1.0, "epoch": epoch, "cost": 2.0 * epoch}, False)
    searcher.on_trial_result(8, {"x": 0.5, "z": 0.0}, {"loss": 1.0, "epoch": 1, "cost": 3.5}, False)
    searcher.evaluation_failed(8, {"x": 0.5, "z": 0.0})
    searcher.get_config(100)
    seen = searcher.cost_learner.surrogate.cost_model.seen
    assert len(seen) == 8
    assert [(o.resource, o.cost) for o in seen if o.config == config] == [(1, 2.0), (2, 4.0), (3, 6.0)]
    assert (1, 3.5) in [(o.resource, o.cost) for o in seen]
    assert searcher.dataset_size() == 4  # metrics of the others do not count


@pytest.mark.parametrize("by_option", [True, False])
def test_costs_are_predicted_at_the_maximum_resource(by_option: bool) -> None:
    found = []
    for level in (1, 1000):
        if by_option:
            searcher = fine(max_t=level, context={"max_resource_level": 5})
        else:
            searcher = fine(context={"max_resource_level": level})
        tell(searcher, 10, epoch=level)
        config = searcher.get_config(100)
        found.append(config["x"])
        assert searcher._known_cost.predict(torch.tensor([0.0, 0.5], dtype=torch.float64)) == pytest.approx(
            max(1 + level * math.exp(4) / 10, 0.1 * min(cost(t.config) for t in searcher._observations.trials.values()))
        )
    assert found[0] < found[1] - 0.05


def test_the_caller_keeps_the_cost_model() -> None:
    model = ByLevel()
    searcher = fine(model)
    tell(searcher, 5, epoch=1)
    searcher.get_config(100)
    assert not hasattr(model, "seen")


def test_the_maximum_resource_must_be_known() -> None:
    with pytest.raises(ValueError, match="cost_model needs the maximum resource"):
        fine(context={})
    with pytest.raises(ValueError, match="'epoch' is not the resource of the scheduler, 'step'"):
        fine(context={"resource_attr": "step", "max_resource_level": 9})


def test_reports_without_a_usable_resource_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    searcher = fine()
    for epoch in (None, 0, 1.5, "1", True, math.nan):
        searcher.on_trial_result(0, {"x": 0.5, "z": 0.5}, {"loss": 0.5, "epoch": epoch, "cost": 1.0}, False)
    assert caplog.text.count("resources must be positive ints") == 1
    searcher.on_trial_result(0, {"x": 0.5, "z": 0.5}, {"loss": 0.5, "epoch": 2.0, "cost": 1.0}, False)
    assert searcher._costs == {0: {2: 1.0}}


def test_a_cost_model_of_scikit_learn() -> None:
    searcher = fine(ScikitLearnCostModel(), context={"max_resource_level": 4}, **QUICKEST)
    generator = np.random.Generator(np.random.PCG64(0))
    for number, (x, z) in enumerate(generator.random((12, 2)).tolist()):
        config = {"x": x, "z": z}
        for epoch in (1, 2, 3, 4):
            result = {"loss": loss(config), "epoch": epoch, "cost": epoch * cost(config)}
            searcher.on_trial_result(number, config, result, epoch == 4)
    config = searcher.get_config(100)
    assert searcher._known_cost.predict(torch.tensor([0.1, 0.5], dtype=torch.float64)) < 4 * cost({"x": 0.5})
    assert loss(config) < 0.5


def test_a_cost_model_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(ByLevel):
        def update(self, observations: Sequence[CostObservation]) -> None:
            raise ValueError("no idea")

    searcher = fine(Fails())
    tell(searcher, 10, epoch=1)
    assert searcher.get_config(100) == pytest.approx(suggested(exponent_cost=1e-9), abs=1e-4)
    assert "costs count for nothing: no idea" in caplog.text
    assert "no cost is known" in str(searcher.last_reason)


def test_negative_predictions_are_floored() -> None:
    class Negative(ByLevel):
        def sample_joint(self, configs: Sequence[Mapping[str, Any]]) -> list[CostValue]:
            return [CostValue(10 * c["x"] - 5, 0.0) for c in configs]

    searcher = fine(Negative())
    tell(searcher, 8, epoch=1)
    with pytest.warns(UserWarning, match="Negative predicts negative costs"):
        assert searcher.get_config(100) is not None
    assert searcher.get_config(101) is not None  # the warning comes once


# ---- reports without costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, "3", True, None])
def test_costs_that_are_none_are_warned_of_once(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    searcher = make()
    tell(searcher, 8)
    config = {"x": 0.01, "z": 0.99}
    for number in (50, 51):
        searcher.on_trial_result(number, config, {"loss": 0.9} | ({} if bad is None else {"cost": bad}), True)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert set(searcher._costs) == set(range(8))
    assert searcher.get_config(100) is not None
    assert "predicted cost" in str(searcher.last_reason)


def test_a_cost_that_never_comes_is_an_error() -> None:
    searcher = make()
    tell(searcher, 2, cost=None, costs=1.0, st_worker_time=3.0)
    assert searcher.get_config(100) is not None
    tell(searcher, 3, cost=None, costs=1.0, st_worker_time=3.0)
    message = r"cost_attr='cost' is missing in all reports of 3 trials that have ended; they have \['loss', 'costs'\]"
    with pytest.raises(ValueError, match=message + r".*'costs'"):
        searcher.get_config(101)
    twin = make()
    twin.load_state_dict(searcher.state_dict())
    with pytest.raises(ValueError, match=message):
        twin.get_config(101)
    searcher.on_trial_result(0, {"x": 0.5, "z": 0.5}, {"loss": 0.3, "cost": 3.0}, True)
    assert searcher.get_config(101) is not None


def test_results_of_the_past_need_no_cost() -> None:
    searcher = make()
    searcher.fit_on([({"x": 0.1 * i, "z": 0.3}, {"loss": 0.1 * i}) for i in range(6)])
    assert searcher.get_config(0) is not None
    assert "no cost is known" in str(searcher.last_reason)


# ---- sizes, seeds and state --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_the_cap_on_the_data_holds_for_costs(kind: str) -> None:
    sizes = []
    for cap in (None, 6):
        given: dict[str, Any] = {"max_size_data_for_model": cap, "max_size_top_fraction": 0.5}
        searcher = make(**given) if kind == "coarse" else fine(**given)
        tell(searcher, 15, epoch=1)
        searcher.get_config(100)
        if kind == "coarse":
            sizes.append(searcher._known_cost.model.targets.shape[-1])
        else:
            seen = searcher.cost_learner.surrogate.cost_model.seen
            sizes.append(len(seen))
            best = sorted(searcher._observations.trials.values(), key=lambda t: t.values[0])[:3]
            assert all(any(o.config == trial.config for o in seen) for trial in best)
    assert sizes == [15, 6]


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_fits_are_skipped_for_costs_too(kind: str) -> None:
    given = {"opt_skip_init_length": 4, "opt_skip_period": 3}
    searcher = make(**given) if kind == "coarse" else fine(**given)

    def fitted() -> Any:
        if kind == "coarse":
            return searcher.cost_learner.parameters()
        return len(searcher.cost_learner.surrogate.cost_model.seen)

    seen = []
    for n in range(5, 10):
        config = {"x": n / 10, "z": 1 / n}
        if n == 5:
            tell(searcher, 4, epoch=1)
        searcher.on_trial_result(n, config, {"loss": loss(config), "cost": cost(config), "epoch": 1}, True)
        searcher.get_config(100 + n)
        seen.append(fitted())
    changed = [one != two for one, two in itertools.pairwise(seen)]
    assert changed == [False, False, True, False]


def test_a_forgotten_result_keeps_its_cost_unless_the_trial_is_forgotten() -> None:
    searcher = fine(context={"resource_attr": "epoch", "max_resource_level": 9})
    config = {"x": 0.5, "z": 0.5}
    for epoch in (1, 2):
        searcher.on_trial_result(0, config, {"loss": 0.5, "cost": 1.0 * epoch, "epoch": epoch}, True)
    revision = searcher._cost_revision
    searcher.remove_case(0, 2)
    assert searcher._costs == {0: {1: 1.0, 2: 2.0}}
    assert searcher.dataset_size() == 1
    searcher.remove_case(0)
    assert searcher._costs == {}
    assert searcher._cost_revision > revision


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_the_first_suggestion_after_loading_is_no_cold_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = make() if kind == "coarse" else fine()
    tell(searcher, 10, epoch=1)
    searcher.get_config(100)
    twin = make() if kind == "coarse" else fine()
    twin.load_state_dict(searcher.state_dict())
    assert twin.cost_learner.parameters() == searcher.cost_learner.parameters()
    monkeypatch.setattr("sthyper.surrogates.gp.GaussianProcess._fit_parameters", None)
    assert twin.get_config(101) == searcher.get_config(101)


@pytest.mark.slow
class TestCoarse(SearcherConformance):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        # The suite reports one number, which stands for the cost too.
        given = CostAwareOptions(cost_attr="loss", random_seed=random_seed, **QUICKEST)
        return CostAwareBayesianOptimizationSearcher(config_space, "loss", "min", points_to_evaluate, given)


class TestFine(SearcherConformance):
    n_suggestions = 6

    def make_searcher(
        self, config_space: dict[str, Any], random_seed: int, points_to_evaluate: list[dict[str, Any]] | None
    ) -> BaseSearcher:
        given = CostAwareOptions(
            cost_attr="loss",
            cost_model=BiasOnlyLinearCostModel(),
            resource_attr="epoch",
            random_seed=random_seed,
            opt_skip_init_length=3,
            opt_skip_period=2,
            **QUICKEST,
        )
        return CostAwareBayesianOptimizationSearcher(config_space, "loss", "min", points_to_evaluate, given)


@pytest.mark.slow
class TestBaseline(SchedulerConformance):
    n_positions = 6

    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return CostAwareBayesianOptimization(
            config_space, "loss", cost_attr="loss", search_options=QUICKEST, random_seed=random_seed
        )


# ---- with other parts --------------------------------------------------------------------------------


def learn_steep_costs(searcher: BaseSearcher) -> None:
    """Costs differ so much that they win against all else; ``memory`` is z."""
    generator = np.random.Generator(np.random.PCG64(1))
    for number, (x, z) in enumerate(generator.random((20, 2)).tolist()):
        config = {"x": x, "z": z}
        result = {"loss": loss(config), "cost": 1e30**x, "memory": z}
        searcher.on_trial_result(number, config, result, True)


def test_costs_and_constraints_together() -> None:
    def by(**changes: Any) -> tuple[float, float]:
        searcher = make(**changes)
        learn_steep_costs(searcher)
        config = searcher.get_config(100)
        assert (searcher.last_reason.feasibility is None) == ("outcome_constraints" not in changes)
        return config["x"], config["z"]

    constraint = ["memory <= 0.2"]
    assert by(exponent_cost=1e-9) == pytest.approx((0.6, 0.5), abs=0.15)
    assert by(exponent_cost=1e-9, outcome_constraints=constraint) == pytest.approx((0.6, 0.17), abs=0.15)
    x, z = by(outcome_constraints=constraint)
    assert x < 0.3
    assert z < 0.25


def test_pending_trials_and_samples_of_parameters() -> None:
    for changes in ({}, {"mcmc_samples": 2}, {"acq_function": "ei"}, {"restrict_configurations": None}):
        searcher = make(**changes)
        tell(searcher, 8)
        first = searcher.get_config(100)
        searcher.register_pending(100, first)
        second = searcher.get_config(101)
        assert max(abs(first[name] - second[name]) for name in first) > 1e-3
        assert searcher.last_reason.num_pending == 1


def test_a_batch_leaves_no_trace() -> None:
    searcher = make()
    tell(searcher, 8)
    twin = make()
    twin.load_state_dict(searcher.state_dict())
    batch = searcher.get_batch_configs(3)
    assert len({config["x"] for config in batch}) == 3
    assert searcher.get_config(100) == twin.get_config(100) == batch[0]


def test_a_restricted_list() -> None:
    found = []
    for exponent in (1e-9, 1.0):
        searcher = make(restrict_configurations=[{"x": 0.45, "z": 0.5}, {"x": 0.61, "z": 0.5}], exponent_cost=exponent)
        learn_steep_costs(searcher)
        found.append(searcher.get_config(100)["x"])
    assert found == [0.61, 0.45]


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_a_scheduler_with_rungs(kind: str) -> None:
    scheduler = HyperbandScheduler(
        SPACE,
        "loss",
        searcher="bayesopt_cost",
        search_options={"cost_attr": "cost", "num_init_random": 2, **QUICK},
        type=kind,
        max_t=4,
        reduction_factor=2,
        cost_attr="cost",
        random_seed=0,
    )
    loop = AskTellScheduler(scheduler)
    while len(loop.trials) < 6:
        trial = loop.ask()
        assert trial is not None
        begun = int(trial.last_resource or 0)
        for epoch in range(begun + 1, 5):
            result = {"loss": loss(trial.config) + 1 / epoch, "cost": (epoch - begun) * cost(trial.config)}
            if loop.tell(trial, epoch=epoch, **result) != "CONTINUE":
                break
    searcher: Any = scheduler.searcher
    assert searcher._cost_name == ("total_cost" if kind == "promotion" else "cost")
    for trial_id, costs in searcher._costs.items():
        config = searcher._observations.trials[trial_id].config
        for epoch, total in costs.items():  # whatever the number of runs
            assert total == pytest.approx(epoch * cost(config))
    assert "predicted" in searcher.last_reason.text


def train(config: dict[str, Any]) -> None:
    report = Reporter()
    for epoch in (1, 2):
        report(epoch=epoch, loss=loss(config) + 1 / epoch, elapsed_time=epoch * cost(config))


@pytest.mark.parametrize("cost_attr", ["elapsed_time", "st_worker_time"])
def test_a_run_with_a_tuner(cost_attr: str) -> None:
    scheduler = CostAwareBayesianOptimization(
        SPACE, "loss", cost_attr=cost_attr, search_options={"num_init_random": 3, **QUICK}, random_seed=1
    )
    tuner = Tuner(
        trial_backend=PythonBackend(train, SPACE, launch="inline"),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_started=5),
        n_workers=1,
    )
    result = tuner.run()
    assert len(result.trials) >= 5
    searcher: Any = scheduler.searcher
    assert {len(costs) for costs in searcher._costs.values()} == {1}
    if cost_attr == "elapsed_time":
        for trial_id, costs in searcher._costs.items():
            assert costs[0] == pytest.approx(2 * cost(searcher._observations.trials[trial_id].config))
    assert f"predicted {cost_attr}" in searcher.last_reason.text


def test_a_cost_model_can_be_made_again_from_json() -> None:
    model = ScikitLearnCostModel("gradient_boosting", random_seed=3)
    again = rebuild(describe(options(cost_model=model, resource_attr="epoch"))).cost_model
    assert (again.model_type, again.random_seed) == ("gradient_boosting", 3)


def test_a_run_whose_reports_have_no_cost_ends_with_the_error() -> None:
    tuner = Tuner(
        trial_backend=PythonBackend(train, SPACE, launch="inline"),
        scheduler=CostAwareBayesianOptimization(SPACE, "loss", cost_attr="elapsed_tme", random_seed=1),
        stop_criterion=StoppingCriterion(max_num_trials_started=5),
        n_workers=1,
    )
    with pytest.raises(Exception, match="cost_attr='elapsed_tme' is missing in all reports of 3 trials.*elapsed_time"):
        tuner.run()


# ---- what it is good for -----------------------------------------------------------------------------


def branin(x: float, y: float) -> float:
    return float(
        (y - 5.1 * x**2 / (4 * math.pi**2) + 5 * x / math.pi - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10
    )


def best_for(scheduler: TrialScheduler, cost_of: Callable[[float], float], budget: float) -> float:
    """Return the least loss of trials that cost no more than a budget together."""
    loop = AskTellScheduler(scheduler)
    spent, best = 0.0, math.inf
    while True:
        trial = loop.ask()
        assert trial is not None
        spent += cost_of(trial.config["x"])
        if spent > budget:
            return best
        value = branin(**trial.config)
        best = min(best, value)
        loop.tell(trial, loss=value, cost=cost_of(trial.config["x"]), done=True)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_it_finds_more_for_the_same_total_cost() -> None:
    # Three minima of the same value; costs from 1 to 10 grow to the left.
    space = {"x": uniform(-5.0, 10.0), "y": uniform(0.0, 15.0)}

    def cost_of(x: float) -> float:
        return float(10.0 ** ((10.0 - x) / 15.0))

    plain, aware = [], []
    for seed in range(10):
        plain.append(best_for(BayesianOptimization(space, "loss", random_seed=seed), cost_of, 60.0))
        method = CostAwareBayesianOptimization(space, "loss", "cost", random_seed=seed)
        aware.append(best_for(method, cost_of, 60.0))
    least = 0.397887
    assert np.mean(aware) - least < 0.8 * (np.mean(plain) - least)
    assert wilcoxon(plain, aware, alternative="greater").pvalue < 0.05
