"""Objectives, statistics, records and reports of the benchmark of Bayesian optimisation."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from sthyper.config_space import Categorical, impute_points_to_evaluate, sample_config
from sthyper.encoding import SpaceEncoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ["_objectives", "_ranking", "_methods", "_quality_report", "bayesopt_quality", "bayesopt_times"]
CLOSED_FORMS = ["branin", "hartmann6", "ackley10", "optimiser", "architecture"]
MIXED = ["optimiser", "architecture"]
# Folder of YAHPO Gym's LCBench surrogate.
LCBENCH = Path(os.environ.get("STHYPER_LCBENCH", "."))
needs_lcbench = pytest.mark.skipif(
    not (LCBENCH / "model.onnx").is_file(), reason="STHYPER_LCBENCH does not name the folder of the surrogate"
)


@pytest.fixture(scope="module")
def code() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, which lie in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield SimpleNamespace(**{name.strip("_"): importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)


def midpoint(space: dict[str, Any]) -> dict[str, Any]:
    return impute_points_to_evaluate(None, space)[0]


# ---- objectives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_minimum_is_where_it_is_said_to_be(code: SimpleNamespace, name: str) -> None:
    problem = code.objectives.objective(name)
    minimum, _ = code.objectives.SCALES[name]
    assert set(problem.minimiser) == set(problem.space)
    assert all(problem.space[key].is_valid(value) for key, value in problem.minimiser.items())
    assert problem.function(problem.minimiser) == pytest.approx(minimum, abs=1e-9)
    assert code.objectives.normalised_regret(name, minimum) == 0


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_local_search_finds_nothing_below_the_minimum(code: SimpleNamespace, name: str) -> None:
    problem = code.objectives.objective(name)
    minimum, _ = code.objectives.SCALES[name]
    encoder, rng = SpaceEncoder(problem.space), np.random.default_rng(0)
    points = np.vstack([encoder.encode([problem.minimiser]), encoder.encode(encoder.random_configs(rng, 200))])
    for sd in np.geomspace(0.3, 1e-4, 12):
        moves = sd * rng.standard_normal(points.shape) * (rng.random(points.shape) < 0.4)
        points = np.vstack([points, np.clip(points + moves, 0, 1)])
        values = [problem.function(config) for config in encoder.decode(encoder_tensor(points))]
        assert min(values) >= minimum - 1e-9
        points = points[np.argsort(values)[:100]]


def encoder_tensor(points: np.ndarray) -> Any:
    import torch

    return torch.as_tensor(points)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_typical_value_is_the_median_of_random_configurations(code: SimpleNamespace, name: str) -> None:
    problem = code.objectives.objective(name)
    rng = np.random.default_rng(1)
    median = np.median([problem.function(sample_config(problem.space, rng)) for _ in range(3000)])
    assert code.objectives.normalised_regret(name, median) == pytest.approx(1, abs=0.05)


SWITCHED_OFF = {
    "optimiser": [
        ({"optimizer": "adamw"}, ["momentum", "nesterov"]),
        ({"optimizer": "lion"}, ["momentum", "nesterov"]),
        ({"optimizer": "sgd"}, ["beta2_gap"]),
        ({"optimizer": "rmsprop"}, ["beta2_gap", "nesterov"]),
        *(({"schedule": kind}, ["decay"]) for kind in ("constant", "cosine", "linear")),
    ],
    "architecture": [
        *(({"layers": n}, [f"width{i}" for i in range(n, 5)]) for n in range(1, 6)),
        *(({"norm": kind}, ["norm_momentum"]) for kind in ("none", "layer")),
        *(({"pooling": kind}, ["heads"]) for kind in ("max", "mean")),
    ],
}


@pytest.mark.parametrize("name", MIXED)
def test_switched_off_parameters_have_no_influence_and_all_others_have(code: SimpleNamespace, name: str) -> None:
    problem = code.objectives.objective(name)
    rng = np.random.default_rng(2)
    for _ in range(40):
        config = sample_config(problem.space, rng)
        off = set()
        for condition, names in SWITCHED_OFF[name]:
            if all(config[key] == value for key, value in condition.items()):
                off |= set(names)
        for key, domain in problem.space.items():
            others = [sample_config({key: domain}, rng)[key] for _ in range(20)]
            changes = {problem.function({**config, key: other}) for other in others} != {problem.function(config)}
            assert changes == (key not in off), (key, config)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_spaces_do_not_favour_a_start_in_the_middle(code: SimpleNamespace, name: str) -> None:
    problem = code.objectives.objective(name)
    middle = midpoint(problem.space)
    assert code.objectives.normalised_regret(name, problem.function(middle)) > 0.8
    categorical = [key for key, domain in problem.space.items() if isinstance(domain, Categorical)]
    assert any(middle[key] != problem.minimiser[key] for key in categorical)


def test_an_unknown_objective_and_missing_data_are_named(code: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no objective 'lcbench-1'; there are branin"):
        code.objectives.objective("lcbench-1")
    with pytest.raises(ValueError, match="lcbench-3945 needs the folder"):
        code.objectives.objective("lcbench-3945", tmp_path)


@needs_lcbench
@pytest.mark.parametrize(("task", "expected"), [("3945", -99.3), ("167168", -79.5), ("189354", -72.2)])
def test_lcbench_has_the_published_level_of_random_search(code: SimpleNamespace, task: str, expected: float) -> None:
    problem = code.objectives.objective(f"lcbench-{task}", LCBENCH)
    rng = np.random.default_rng(0)
    configs = [sample_config(problem.space, rng) for _ in range(5000)]
    values = code.objectives.lcbench_values(task, LCBENCH, configs)
    assert problem.function(configs[7]) == pytest.approx(values[7], abs=1e-4)
    assert values.reshape(-1, 50).min(1).mean() == pytest.approx(expected, rel=0.01)
    minimum, typical = code.objectives.SCALES[f"lcbench-{task}"]
    assert values.min() > minimum
    assert np.median(values) == pytest.approx(typical, rel=0.03)
    assert len(problem.space) == 7


# ---- statistics --------------------------------------------------------------------------------------


def test_ranks_share_ties_and_round_when_asked(code: SimpleNamespace) -> None:
    values = {"a": 0.39791, "b": 0.398, "c": 0.5}
    assert code.ranking.ranks(values) == {"a": 1, "b": 2, "c": 3}
    assert code.ranking.ranks(values, 3) == {"a": 1.5, "b": 1.5, "c": 3}


def test_mean_ranks_by_means_and_by_seed_differ_where_one_seed_is_far_out(code: SimpleNamespace) -> None:
    runs = {"f": {"a": {0: 1.0, 1: 1.0, 2: 90.0}, "b": {0: 2.0, 1: 2.0, 2: 2.0}}}
    means = {"f": {m: float(np.mean(list(of.values()))) for m, of in runs["f"].items()}}
    assert code.ranking.mean_ranks_by_means(means) == {"a": 2, "b": 1}
    by_seed = code.ranking.mean_ranks_by_seed(runs)
    assert by_seed["a"] == pytest.approx(4 / 3)
    assert by_seed["b"] == pytest.approx(5 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_signed_ranks_equal_scipy_without_ties(code: SimpleNamespace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 10)) + np.array([[0.0], [0.5]])
    assert code.ranking.signed_rank_test(a, b) == pytest.approx(wilcoxon(a, b, method="exact").pvalue)


@pytest.mark.parametrize("differences", [[1, 1, 1, -2, 3], [0, 0, 2, 2, -2, 5, 5], [1, -1, 2, -2], [-3, -3, -3, 1, 0]])
def test_signed_ranks_with_ties_equal_the_enumeration_of_all_signs(
    code: SimpleNamespace, differences: list[int]
) -> None:
    kept = np.array([d for d in differences if d])
    shared = rankdata(np.abs(kept))
    sums = [(shared * signs).sum() for signs in itertools.product([0, 1], repeat=len(kept))]
    observed = shared[kept > 0].sum()
    tail = min(np.mean(np.array(sums) <= observed), np.mean(np.array(sums) >= observed))
    p = code.ranking.signed_rank_test(differences, [0] * len(differences))
    assert p == pytest.approx(min(1.0, 2 * tail))


def test_signed_ranks_at_the_edges(code: SimpleNamespace) -> None:
    test = code.ranking.signed_rank_test
    assert test([1.0, 2.0], [1.0, 2.0]) == 1
    assert test(range(1, 11), [0] * 10) == pytest.approx(2 / 1024)
    assert test([0] * 10, range(1, 11)) == pytest.approx(2 / 1024)
    with pytest.raises(ValueError, match="3 and 2"):
        test([1, 2, 3], [1, 2])


def test_the_best_value_skips_what_is_no_number(code: SimpleNamespace) -> None:
    assert code.ranking.best_after([3.0, math.nan, 2.0, 1.0], 3) == 2.0
    with pytest.raises(ValueError, match="4 values, 5"):
        code.ranking.best_after([1.0] * 4, 5)
    with pytest.raises(ValueError, match="finite"):
        code.ranking.best_after([math.nan, math.inf], 2)


# ---- runs --------------------------------------------------------------------------------------------


def arguments(out: Path, **changes: Any) -> SimpleNamespace:
    given = {"data": None, "objectives": ["branin"], "seeds": [0], "methods": ["random"], "trials": 4, **changes}
    return SimpleNamespace(out=out, **given)


@pytest.fixture
def quality(code: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(code.bayesopt_quality, "one_thread", lambda: None)
    return code.bayesopt_quality


def test_a_finished_run_is_not_run_again_and_a_torn_line_is(
    quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "folder" / "runs.jsonl"
    quality.run_all(arguments(out, seeds=[0, 1]))
    first = out.read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert [r["seed"] for r in records] == [0, 1]
    assert records[0]["values"] != records[1]["values"]
    assert all(len(r["values"]) == len(r["seconds"]) == 4 for r in records)

    out.write_text(first[:-40])
    ran: list[int] = []
    run = quality.run
    monkeypatch.setattr(quality, "run", lambda *given: ran.append(given[2]) or run(*given))
    quality.run_all(arguments(out, seeds=[0, 1]))
    assert ran == [1]
    runs = quality.load(out, 4)["branin"]["random"]
    assert {seed: r["values"] for seed, r in runs.items()} == {r["seed"]: r["values"] for r in records}
    assert quality.load(out, 5) == {}  # shorter runs do not count


def test_options_of_a_method_are_literals_or_texts(code: SimpleNamespace) -> None:
    parse = code.methods.parse_method
    assert parse("ours") == ("ours", {})
    assert parse("ours:input_warping=False,preset=syne-tune,points_to_evaluate=[{'x': 1, 'y': 2}],jitter=1e-3") == (
        "ours",
        {
            **{"input_warping": False, "preset": "syne-tune", "jitter": 0.001},
            "points_to_evaluate": [{"x": 1, "y": 2}],
        },
    )
    with pytest.raises(ValueError, match="name=value, got 'fast'"):
        parse("ours:fast")


def test_options_reach_the_searcher_and_peers_take_none(code: SimpleNamespace) -> None:
    space = code.objectives.objective("branin").space
    at_midpoint = code.methods.make_method("random", space, 0)
    assert at_midpoint.ask() == midpoint(space)
    assert code.methods.make_method("random:points_to_evaluate=[]", space, 0).ask() != midpoint(space)
    with pytest.raises(ValueError, match="allow_duplicates"):
        code.methods.make_method("random:allow_duplicate=True", space, 0)
    with pytest.raises(ValueError, match="takes no options"):
        code.methods.make_method("botorch:starts=2", space, 0)
    with pytest.raises(ValueError, match="no method 'bayes'"):
        code.methods.make_method("bayes", space, 0)


def test_ours_is_bayesian_optimisation_with_its_options(code: SimpleNamespace) -> None:
    problem = code.objectives.objective("branin")
    plain, changed = (code.bayesopt_quality.run(text, problem, 0, 5) for text in ("ours", "ours:num_init_random=5"))
    assert plain["values"][:3] == changed["values"][:3]  # the mid-point and the same first random ones
    assert plain["values"] != changed["values"]
    with pytest.raises(ValueError, match="num_init_random"):
        code.methods.make_method("ours:num_init_randon=2", problem.space, 0)


@pytest.mark.parametrize("name", ["optuna-tpe", "optuna-gp"])
def test_optuna_suggests_in_a_mixed_space(code: SimpleNamespace, name: str) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    check_peer(code, name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["botorch", "botorch-mixed"])
def test_botorch_suggests_in_a_mixed_space(code: SimpleNamespace, name: str) -> None:
    check_peer(code, name, 11)


def check_peer(code: SimpleNamespace, name: str, trials: int) -> None:
    problem = code.objectives.objective("optimiser")
    method = code.methods.make_method(name, problem.space, 3)
    method.tell(problem.minimiser, problem.function(problem.minimiser))  # of another trial
    seen = []
    for _ in range(trials):
        config = method.ask()
        assert set(config) == set(problem.space)
        assert all(domain.is_valid(config[key]) for key, domain in problem.space.items())
        method.tell(config, problem.function(config))
        seen.append(tuple(config.values()))
    assert len(set(seen)) == trials
    assert method.versions()


# ---- report ------------------------------------------------------------------------------------------


def fake_runs(quality_of: dict[str, float], objectives: list[str], seeds: int, trials: int) -> dict[str, Any]:
    """Runs whose values fall to a level that is the method's, with a little of the seed."""
    return {
        name: {
            method: {
                seed: {
                    "values": [level + 1 + seed / 100] * (trials - 1) + [level + seed / 100],
                    "seconds": [9.0] * 10 + [0.5] * (trials - 10),
                    "versions": "torch 2, other 1",
                }
                for seed in range(seeds)
            }
            for method, level in quality_of.items()
        }
        for name in objectives
    }


def test_the_report_ranks_tests_and_joins_published_figures(code: SimpleNamespace) -> None:
    runs = fake_runs({"good": 0.4, "bad": 0.7}, ["branin", "optimiser"], 10, 50)
    del runs["optimiser"]["bad"][9]  # then nine seeds count
    text = code.quality_report.report(runs, None, ["branin", "optimiser", "ackley10"], 50)
    assert "Left out, since some method has no run: ackley10" in text
    assert "torch 2" in text
    assert "| branin (10 seeds) | 1.4450 / 1.4450 / 0.4450 | 1.7450 / 1.7450 / 0.7450 |" in text
    assert "| optimiser (9 seeds) |" in text
    assert "| by means, all (2) | 1.00 | 2.00 |" in text
    assert "| by seed, the six named (1) | 1.00 | 2.00 |" in text
    # Syne Tune .399, SMAC3 .398, HEBO .399 against .445 and .745
    assert "| rounded to the published decimals | 4.00 | 5.00 | 2.50 | 1.00 | 2.50 |" in text
    assert "| branin | best | **0.002** |" in text
    assert "| branin | 0.500 | 0.500 |" in text


def test_published_figures_are_joined_after_fifty_trials_only(code: SimpleNamespace) -> None:
    runs = fake_runs({"good": 0.4, "bad": 0.7}, ["branin"], 2, 20)
    assert "Syne Tune" not in code.quality_report.report(runs, ["bad", "good"], ["branin"], 20)
    with pytest.raises(ValueError, match="no objective has finished runs"):
        code.quality_report.report(runs, ["good", "missing"], ["branin"], 20)


def test_the_report_is_written(
    quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "runs.jsonl", tmp_path / "table.md"
    common = ["x", "--out", str(out), "--trials", "12", "--objectives", "branin", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", [*common, "--methods", "random", "random:points_to_evaluate=[]"])
    quality.main()
    monkeypatch.setattr("sys.argv", [*common, "--report", "--markdown", str(table)])
    quality.main()
    text = table.read_text()
    assert "random:points_to_evaluate=[]" in text
    assert text in capsys.readouterr().out
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| branin")}) == 1


# ---- times -------------------------------------------------------------------------------------------


def test_times_cover_the_cold_the_following_and_the_loaded_suggestion(code: SimpleNamespace) -> None:
    times = code.bayesopt_times.measure("random", 20, 3, 0)
    assert len(times.warm) == 3
    assert min(times.first, *times.warm, times.load, times.loaded) >= 0
    row = code.bayesopt_times.cells("ours", 200, code.bayesopt_times.Times(0.5, [0.1, 0.05, 0.2], 0.01, 0.12))
    assert row == ["ours", "200", "100", "50", "200", "500", "120", "10", "1.00"]
    row = code.bayesopt_times.cells("botorch", 200, code.bayesopt_times.Times(0.5, [0.1, 0.05, 0.2]))
    assert row == ["botorch", "200", "100", "50", "200", "500", "", "", ""]


def test_times_begin_with_the_model(code: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    module, made = code.bayesopt_times, []
    make = module.make_method
    monkeypatch.setattr(module, "make_method", lambda text, *given: made.append(text) or make(text, *given))
    module.measure("random", 1, 1, 0)
    assert set(made) == {"random:points_to_evaluate=[]"}


def test_the_function_of_the_times_depends_on_all_parameters(code: SimpleNamespace) -> None:
    space, loss = code.bayesopt_times.SPACE, code.bayesopt_times.loss
    middle = midpoint(space)
    rng = np.random.default_rng(0)
    for key, domain in space.items():
        others = [sample_config({key: domain}, rng)[key] for _ in range(10)]
        assert len({loss({**middle, key: other}) for other in others}) > 1
