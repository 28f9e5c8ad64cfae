"""Experiments that begin with the results of earlier ones."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.experiment import ExperimentResult, load_experiment
from sthyper.journal import read_journal
from sthyper.schedulers import TrialScheduler
from sthyper.testing import replay

SPACE = {"x": uniform(0.0, 1.0), "n": randint(1, 5), "epochs": 9}
SMALL = {"a": choice(["p", "q"]), "b": randint(1, 2)}
CURVE = """
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    for epoch in range(1, config["epochs"] + 1):
        report(epoch=epoch, loss=config["x"] + 1 / epoch, accuracy=1 - config["x"])
"""
ONCE = "from sthyper import Reporter\nReporter()(loss=1.0)\n"

Make = Callable[..., Tuner]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a tuner of inline trials."""

    def make(
        scheduler: TrialScheduler, code: str = CURVE, n_trials: int = 4, name: str = "train", **options: Any
    ) -> Tuner:
        script = tmp_path / f"{name}.py"
        script.write_text(textwrap.dedent(code))
        criterion = StoppingCriterion(max_num_trials_started=n_trials)
        return Tuner(LocalBackend(script, launch="inline"), scheduler, criterion, 1, **options)

    return make


def random_search(space: dict[str, Any] = SPACE, **options: Any) -> RandomSearch:
    return RandomSearch(space, **{"metric": "loss", "random_seed": 1, **options})


def asha(space: dict[str, Any] = SPACE, **options: Any) -> ASHA:
    return ASHA(space, **{"metric": "loss", "max_resource_attr": "epochs", "random_seed": 1, **options})


def added(tuner: Tuner) -> list[dict[str, Any]]:
    return [record for record in read_journal(tuner.tuner_path) if record["type"] == "added_result"]


def message(make: Make, experiments: Sequence[Any], scheduler: TrialScheduler) -> str:
    """Return the one warning, without the tuner's run."""
    with pytest.warns(UserWarning, match="warm_start") as caught:
        make(scheduler, warm_start=experiments)
    (warning,) = caught
    assert warning.filename == __file__
    return str(warning.message)


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_trials_are_compared_with_those_of_earlier_experiments(make: Make, kind: str) -> None:
    earlier = make(random_search(points_to_evaluate=[{"x": i / 50} for i in range(20)]), n_trials=20).run()
    alone = make(asha(type=kind, points_to_evaluate=[{"x": 0.75}])).run()
    assert max(trial.num_results for trial in alone.trials.values()) > 1
    points = [{"x": 0.75}, {"x": 0.8}, {"x": 0.85}, {"x": 0.9}]
    tuner = make(asha(type=kind, points_to_evaluate=points), warm_start=[earlier])
    experiment = tuner.run()
    assert [trial.num_results for trial in experiment.trials.values()] == [1] * 4
    assert len(added(tuner)) == 20 * 9
    assert {r["trial_id"] for r in added(tuner)} == set(range(-20, 0))
    assert len(experiment.results) == 4
    assert replay(tuner.tuner_path, asha(type=kind, points_to_evaluate=points)) == []


@pytest.mark.parametrize("form", ["result", "name", "full name", "path", "text"])
def test_what_was_tried_is_not_tried_again(make: Make, form: str) -> None:
    search = random_search(SMALL)
    earlier = make(search, ONCE, n_trials=2, name="earlier").run()
    given = {
        "result": earlier,
        "name": "earlier",
        "full name": earlier.name,
        "path": earlier.path,
        "text": str(earlier.path),
    }[form]
    tuner = make(random_search(SMALL), ONCE, n_trials=9, warm_start=[given])
    experiment = tuner.run()
    tried = [tuple(t.config.values()) for e in (earlier, experiment) for t in e.trials.values()]
    assert len(tried) == len(set(tried)) == 4
    assert replay(tuner.tuner_path, random_search(SMALL)) == []


def test_experiments_add_up_and_one_counts_once(make: Make) -> None:
    first = make(random_search(points_to_evaluate=[{"x": 0.1}]), n_trials=1).run()
    second = make(random_search(points_to_evaluate=[{"x": 0.1}, {"x": 0.2}]), n_trials=2).run()
    tuner = make(random_search(), n_trials=1, warm_start=[first, second, str(first.path), first.name])
    tuner.run()
    # Without a resource what counts is a trial's last report; both evaluations of x=0.1 do.
    found = [(r["trial_id"], r["config"]["x"], r["metrics"]["epoch"]) for r in added(tuner)]
    assert found == [(-1, 0.1, 9), (-2, 0.1, 9), (-3, 0.2, 9)]


def test_a_warm_started_experiment_passes_on_its_own_trials_only(make: Make) -> None:
    first = make(random_search(), n_trials=2).run()
    second = make(random_search(), n_trials=3, warm_start=[first]).run()
    tuner = make(random_search(), n_trials=1, warm_start=[second])
    tuner.run()
    assert [r["config"]["x"] for r in added(tuner)] == [t.config["x"] for t in second.trials.values()]


def test_configurations_that_do_not_fit_are_counted(make: Make) -> None:
    points = [{"x": 0.1, "n": 1}, {"x": 0.2, "n": 5}, {"x": 0.9, "n": 2}, {"x": 0.3, "n": 2}]
    earlier = make(random_search(points_to_evaluate=points)).run()
    space = {"x": uniform(0.0, 0.5), "n": randint(1, 4), "epochs": 9}
    text = message(make, [earlier], random_search(space))
    assert text == "warm_start: 2 of 4 configurations are skipped: 2 outside the space (n, x)"
    tuner = make(random_search(points_to_evaluate=[]), n_trials=1, warm_start=[earlier])  # fits
    tuner.run()
    assert len(added(tuner)) == 4


def test_missing_and_fixed_hyperparameters(make: Make) -> None:
    points = [{"x": 0.1, "n": 1}, {"x": 0.2, "n": 5}]
    earlier = make(random_search(points_to_evaluate=points), n_trials=2).run()
    text = message(make, [earlier], random_search({**SPACE, "depth": randint(1, 3)}))
    assert text == ("warm_start: 2 of 2 configurations are skipped: 2 without a value for every hyperparameter (depth)")
    # What was tuned then, and is a constant now, must have that value.
    text = message(make, [earlier], random_search({**SPACE, "n": 5}))
    assert text == "warm_start: 1 of 2 configurations are skipped: 1 outside the space (n)"
    # What was a constant then, and is tuned now, has its value; what is gone does not matter.
    space = {"x": uniform(0.0, 1.0), "epochs": randint(1, 9)}
    tuner = make(random_search(space), n_trials=1, warm_start=[earlier])
    tuner.run()
    assert [r["config"] for r in added(tuner)] == [{"x": 0.1, "epochs": 9}, {"x": 0.2, "epochs": 9}]


def test_reports_beyond_the_maximum_are_left_out(make: Make) -> None:
    earlier = make(random_search(), n_trials=1).run()
    tuner = make(asha({**SPACE, "epochs": 4}), n_trials=1, warm_start=[earlier])
    tuner.run()
    assert [r["metrics"]["epoch"] for r in added(tuner)] == [1, 2, 3, 4]


def test_without_a_resource_only_completed_trials_count(make: Make) -> None:
    points = [{"x": x} for x in (0.1, 0.9, 0.95)]
    earlier = make(asha(points_to_evaluate=points), n_trials=3).run()
    assert [trial.status.value for trial in earlier.trials.values()] == ["Completed", "Stopped", "Stopped"]
    text = message(make, [earlier], random_search())
    assert text == "warm_start: 2 of 3 configurations are skipped: 2 without a usable result"


def test_results_without_the_resource_count_at_the_maximum(make: Make) -> None:
    earlier = make(random_search(), "from sthyper import Reporter\nReporter()(loss=0.25)\n", n_trials=2).run()
    tuner = make(asha(), n_trials=1, warm_start=[earlier])
    tuner.run()
    assert [(r["metrics"]["epoch"], r["metrics"]["loss"]) for r in added(tuner)] == [(9, 0.25), (9, 0.25)]


def test_an_experiment_without_results_is_told(make: Make) -> None:
    empty = make(random_search()).tuner_path
    empty.mkdir(parents=True)
    (empty / "metadata.json").write_text("{}")
    assert message(make, [empty], random_search()).endswith(
        "0 of 0 configurations are skipped, the experiments have no results"
    )


def test_a_table_alone_is_enough(make: Make) -> None:
    earlier = make(random_search(), n_trials=2).run()
    (earlier.path / "journal.jsonl").unlink()
    tuner = make(asha(), n_trials=1, warm_start=[earlier.path])
    tuner.run()
    assert len(added(tuner)) == 18


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "max"}, "has 'loss' with mode 'min', the new one with 'max'"),
        ({"metric": "los"}, r"has no metric 'los', it has \['loss'\].*did you mean 'loss'"),
    ],
)
def test_metric_and_mode_must_fit(make: Make, options: dict[str, Any], words: str) -> None:
    earlier = make(random_search(), n_trials=1).run()
    with pytest.raises(ValueError, match=words):
        make(random_search(**options), warm_start=[earlier])


def test_another_metric_that_was_reported_will_do(make: Make) -> None:
    earlier = make(random_search(), n_trials=1).run()
    tuner = make(random_search(metric="accuracy", mode="max"), n_trials=1, warm_start=[earlier])
    tuner.run()
    assert added(tuner)[0]["metrics"]["accuracy"] == 1 - earlier.trials[0].config["x"]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("earlier", TypeError, "warm_start must be a list"),
        (Path("earlier"), TypeError, "warm_start must be a list"),
        (7, TypeError, "warm_start must be a list"),
        ([7], TypeError, "warm_start must hold experiments, their names or paths, got 7"),
        (["no-such-one"], FileNotFoundError, "no experiment 'no-such-one'"),
    ],
)
def test_bad_arguments_are_refused(make: Make, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(random_search(), warm_start=given)


def test_a_running_experiment_may_be_used(make: Make) -> None:
    earlier = make(random_search(), n_trials=2).run()
    journal = earlier.path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["type"] == "start" and i > 20)
    journal.write_text("".join(lines[: cut + 3]))
    running = load_experiment(earlier.path)
    assert isinstance(running, ExperimentResult)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuner = make(asha(), n_trials=1, warm_start=[running])
    tuner.run()
    assert {r["trial_id"] for r in added(tuner)} == {-1, -2}
    assert len(added(tuner)) == 10
