"""Configurations and results that users put into an experiment: before it runs, from callbacks, from other threads."""

from __future__ import annotations

import contextlib
import math
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ConfigSpaceError, ExperimentError, ReportError
from sthyper.journal import read_journal
from sthyper.schedulers import FIFOScheduler, TrialScheduler
from sthyper.searchers import RandomSearcher
from sthyper.testing import canonical_journal, replay
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

SPACE = {"x": uniform(0.0, 1.0), "n": randint(1, 5), "epochs": 9}
SMALL = {"a": choice(["p", "q"]), "b": randint(1, 2)}
CURVE = """
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    for epoch in range(1, config["epochs"] + 1):
        report(epoch=epoch, loss=config["x"] + 1 / epoch)
"""
ONCE = """
    from sthyper import Reporter
    report = Reporter()
    report(loss=1.0)
"""


class DoAt(TunerCallback):
    """Calls a function with the tuner after the report of a number, counted from 1."""

    def __init__(self, number: int, action: Callable[[Tuner], None]) -> None:
        self.number = number
        self.action = action
        self.reports = 0

    def on_tuning_start(self, tuner: Tuner) -> None:
        self.tuner = tuner

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        self.reports += 1
        if self.reports == self.number:
            self.action(self.tuner)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Tuner]:
    """Make a tuner of inline trials."""

    def make(
        scheduler: TrialScheduler, code: str = CURVE, n_trials: int | None = 4, launch: str = "inline", **options: Any
    ) -> Tuner:
        script = tmp_path / "train.py"
        script.write_text(textwrap.dedent(code))
        criterion = options.pop("criterion", StoppingCriterion(max_num_trials_started=n_trials))
        backend = LocalBackend(script, launch=launch)  # type: ignore[arg-type]
        return Tuner(backend, scheduler, criterion, options.pop("n_workers", 1), **options)

    return make


def random_search(space: dict[str, Any] = SPACE, **options: Any) -> RandomSearch:
    return RandomSearch(space, metric="loss", random_seed=1, **options)


def asha(kind: str = "stopping", **options: Any) -> ASHA:
    return ASHA(SPACE, metric="loss", max_resource_attr="epochs", type=kind, random_seed=1, **options)


def lines(tuner: Tuner, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in read_journal(tuner.tuner_path) if record["type"] in kinds]


def configs(tuner: Tuner) -> list[dict[str, Any]]:
    return [record["config"] for record in lines(tuner, "start")]


# ---- enqueue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [random_search, asha, lambda: asha("promotion")], ids=["random", "stop", "pause"])
def test_enqueued_configurations_come_first_and_count(
    make: Callable[..., Tuner], scheduler: Callable[[], TrialScheduler]
) -> None:
    tuner = make(scheduler())
    tuner.enqueue({"x": 0.25, "n": 1, "epochs": 9})
    tuner.enqueue({"x": 1})
    tuner.enqueue({})  # all mid-points: what the searcher would suggest first
    experiment = tuner.run()
    started = configs(tuner)
    assert started[:3] == [
        {"x": 0.25, "n": 1, "epochs": 9},
        {"x": 1.0, "n": 3, "epochs": 9},
        {"x": 0.5, "n": 3, "epochs": 9},
    ]
    assert len(experiment.trials) == 4
    assert started[3] not in started[:3]
    assert experiment.trials[1].config == started[1]
    assert [(r["n"], r["config"]) for r in lines(tuner, "enqueue")] == [
        (n, {k: c[k] for k in ("x", "n")}) for n, c in enumerate(started[:3], start=1)
    ]
    made = [r.get("enqueued") for r in lines(tuner, "suggestion") if r["action"] == "start"]
    assert made[:4] == [1, 2, 3, None]
    numbers = [r["n"] for r in lines(tuner, "suggestion")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert replay(tuner.tuner_path, scheduler()) == []


def test_a_replay_notices_another_configuration(make: Callable[..., Tuner]) -> None:
    tuner = make(asha())
    tuner.enqueue({"x": 0.25})
    tuner.run()
    records = lines(tuner, *{r["type"] for r in read_journal(tuner.tuner_path)})
    for record in records:
        if record["type"] == "enqueue":
            record["config"]["x"] = 0.75
    (difference,) = replay(records, asha())
    assert "suggestion 1" in difference


def test_a_configuration_enqueued_from_a_callback_is_the_next_new_one(make: Callable[..., Tuner]) -> None:
    def twin() -> Tuner:
        action = DoAt(10, lambda tuner: tuner.enqueue({"x": 0.125, "n": 2}))  # in the second trial
        return make(random_search(), callbacks=[action])

    tuner, other = twin(), twin()
    tuner.run()
    other.run()
    assert configs(tuner)[2] == {"x": 0.125, "n": 2, "epochs": 9}
    assert len(configs(tuner)) == 4
    assert replay(tuner.tuner_path, random_search()) == []
    assert canonical_journal(tuner.tuner_path) == canonical_journal(other.tuner_path)


def test_enqueued_configurations_come_before_resumes(make: Callable[..., Tuner]) -> None:
    alone = make(asha("promotion"), n_trials=6)
    alone.run()
    first_resume = next(i for i, r in enumerate(lines(alone, "start", "resume")) if r["type"] == "resume")
    action = DoAt(first_resume, lambda tuner: tuner.enqueue({"x": 0.9}))  # at the report after which it came
    tuner = make(asha("promotion"), n_trials=6, callbacks=[action])
    tuner.run()
    launches = lines(tuner, "start", "resume")[first_resume:]
    assert [r["type"] for r in launches[:2]] == ["start", "resume"]
    assert launches[0]["config"]["x"] == 0.9


def test_more_are_enqueued_than_may_start(make: Callable[..., Tuner], caplog: pytest.LogCaptureFixture) -> None:
    tuner = make(asha("promotion"), n_trials=3, callbacks=[DoAt(3, lambda tuner: tuner.enqueue({"x": 0.6}))])
    for x in (0.5, 0.6, 0.7, 0.8):
        tuner.enqueue({"x": x})
    experiment = tuner.run()
    assert [trial.config["x"] for trial in experiment.trials.values()] == [0.5, 0.6, 0.7]
    assert lines(tuner, "resume")  # what is left to do is done
    assert len(lines(tuner, "enqueue")) == 5
    assert lines(tuner, "end")[0]["reason"] == "max_num_trials_started is reached"
    assert "2 enqueued configurations were not started" in caplog.text
    assert "0.8" in caplog.text
    assert replay(tuner.tuner_path, asha("promotion")) == []


def test_the_number_of_finished_trials_stays_exact(make: Callable[..., Tuner]) -> None:
    tuner = make(random_search(), criterion=StoppingCriterion(max_num_trials_finished=2))
    for x in (0.1, 0.2, 0.3, 0.4):
        tuner.enqueue({"x": x})
    experiment = tuner.run()
    assert [trial.config["x"] for trial in experiment.trials.values()] == [0.1, 0.2]


def test_a_plain_function_as_criterion_lets_enqueued_ones_start(make: Callable[..., Tuner]) -> None:
    tuner = make(random_search(), criterion=lambda status: status.num_trials_finished >= 2)
    tuner.enqueue({"x": 0.1})
    experiment = tuner.run()
    assert experiment.trials[0].config["x"] == 0.1


def test_batches_take_enqueued_ones_in(make: Callable[..., Tuner]) -> None:
    script = "import time\nfrom sthyper import Reporter\nReporter()(loss=1.0)\ntime.sleep(0.2)"
    tuner = make(random_search(), script, launch="auto", n_workers=2, asynchronous_scheduling=False)
    tuner.enqueue({"x": 0.1})
    tuner.run()
    order = [(r["type"], r["trial_id"]) for r in lines(tuner, "start", "status")]
    assert order[:2] == [("start", 0), ("start", 1)]
    assert {kind for kind, _ in order[2:4]} == {"status"}
    assert configs(tuner)[0]["x"] == 0.1


def test_a_used_up_scheduler_is_woken(make: Callable[..., Tuner], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"""
        import os, time
        from sthyper import Reporter
        report = Reporter()
        if report.trial_id == 4:
            open({str(flag)!r}, "w").close()
        while report.trial_id == 3 and not os.path.exists({str(flag)!r}):
            time.sleep(0.01)
        report(loss=1.0)
    """
    tuner = make(random_search(SMALL), code, n_trials=9, launch="auto", n_workers=2)
    moment: list[float] = []

    def enqueue() -> None:
        deadline = time.monotonic() + 20
        while tuner.tuning_status.num_trials_finished < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # now the tuner has heard that nothing is left, and waits for trial 3
        moment.append(time.time())
        tuner.enqueue({"a": "q", "b": 2})  # tried before: again

    thread = threading.Thread(target=enqueue)
    thread.start()
    experiment = tuner.run()
    thread.join()
    assert [t.status for t in experiment.trials.values()] == [Status.completed] * 5
    assert "nothing left" in lines(tuner, "end")[0]["reason"]
    # Without being woken the tuner would look again after 5 s.
    assert lines(tuner, "start")[4]["time"] - moment[0] < 1.0


def test_many_threads_enqueue_at_once(make: Callable[..., Tuner]) -> None:
    tuner = make(random_search(), ONCE, n_trials=40)

    def enqueue(part: int) -> None:
        for i in range(10):
            tuner.enqueue({"x": (10 * part + i) / 40})
            tuner.add_result({"x": (10 * part + i) / 80, "n": 1}, {"loss": 0.5})

    threads = [threading.Thread(target=enqueue, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    tuner.run()
    for thread in threads:
        thread.join()
    started = [config["x"] for config in configs(tuner)]
    assert len(started) == 40
    numbers = [r["n"] for r in lines(tuner, "enqueue")]
    assert numbers == list(range(1, len(numbers) + 1))
    ids = [r["trial_id"] for r in lines(tuner, "added_result")]
    assert ids == list(range(-1, -len(ids) - 1, -1))
    assert replay(tuner.tuner_path, random_search()) == []


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"y": 0.5}, ConfigSpaceError, "'y' is not in the configuration space"),
        ({"epoch": 9}, ConfigSpaceError, "did you mean 'epochs'"),
        ({"x": 2.0, "n": 1}, ConfigSpaceError, "config: value 2.0 of 'x'"),
        ({"x": 0.5, "n": "many"}, ConfigSpaceError, "'many' of 'n'"),
        ({"epochs": 3}, ConfigSpaceError, "'epochs' is the constant 9"),
        ([0.5], TypeError, "config must be a mapping"),
    ],
)
def test_bad_configurations_are_refused_at_once(
    make: Callable[..., Tuner], config: Any, error: type[Exception], words: str
) -> None:
    tuner = make(random_search())
    with pytest.raises(error, match=words):
        tuner.enqueue(config)
    with pytest.raises(error, match=words):
        tuner.add_result(config, {"loss": 0.5})
    tuner.enqueue({"x": 0.5})
    tuner.run()
    assert [r["n"] for r in lines(tuner, "enqueue")] == [1]
    assert not lines(tuner, "added_result")


def test_after_the_end_nothing_is_taken(make: Callable[..., Tuner]) -> None:
    tuner = make(random_search(), ONCE, n_trials=1)
    tuner.run()
    for call in (lambda: tuner.enqueue({"x": 0.5}), lambda: tuner.add_result({"x": 0.5, "n": 1}, {"loss": 1.0})):
        with pytest.raises(ExperimentError, match="has ended"):
            call()


# ---- results that are added ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_trials_are_compared_with_added_results(make: Callable[..., Tuner], kind: str) -> None:
    alone = make(asha(kind))
    tuner = make(asha(kind))
    for i in range(20):
        tuner.add_result({"x": i / 40, "n": 1}, {"epoch": 1, "loss": -1.0})
    reached = [trial.num_results for trial in alone.run().trials.values()]
    assert max(reached) > 1
    experiment = tuner.run()
    assert [trial.num_results for trial in experiment.trials.values()] == [1] * 4
    assert len(experiment.results) == 4  # an added result is none of the experiment's
    assert experiment.best_value is not None
    assert experiment.best_value > 0
    assert replay(tuner.tuner_path, asha(kind)) == []
    without = [r for r in read_journal(tuner.tuner_path) if r["type"] != "added_result"]
    assert replay(without, asha(kind)) != []


def test_a_known_configuration_is_not_suggested(make: Callable[..., Tuner]) -> None:
    tuner = make(random_search(SMALL), ONCE, n_trials=9)
    tuner.add_result({"a": "p", "b": 1}, {"loss": 0.5})
    tuner.add_result({"a": "q", "b": 2}, {"loss": math.nan})
    tuner.run()
    assert sorted((c["a"], c["b"]) for c in configs(tuner)) == [("p", 2), ("q", 1)]
    assert math.isnan(lines(tuner, "added_result")[1]["metrics"]["loss"])
    assert replay(tuner.tuner_path, random_search(SMALL)) == []


def test_non_finite_added_results_are_worse_than_any_trial(make: Callable[..., Tuner]) -> None:
    tuner = make(asha())
    for i in range(20):
        tuner.add_result({"x": i / 40, "n": 1}, {"epoch": 1, "loss": (math.nan, math.inf, -math.inf)[i % 3]})
    experiment = tuner.run()
    assert all(trial.num_results > 1 for trial in experiment.trials.values())
    assert replay(tuner.tuner_path, asha()) == []


def test_results_of_one_configuration(make: Callable[..., Tuner]) -> None:
    tuner = make(asha(), ONCE.replace("loss", "epoch=1, loss"), n_trials=1)
    first, second = {"x": 0.5, "n": 1}, {"x": 0.75, "n": 1, "epochs": 9}
    tuner.add_result(first, {"epoch": 1, "loss": 0.9, "accuracy": 0.1})
    tuner.add_result(second, [{"epoch": 1, "loss": 0.8}, {"epoch": 3, "loss": 0.7}])
    tuner.add_result(first, {"epoch": 3, "loss": 0.6})
    tuner.add_result(first, {"epoch": 3, "loss": 0.5})  # another evaluation
    tuner.add_result(first, {"loss": 0.4})  # at the maximum
    tuner.run()
    found = [(r["trial_id"], r["metrics"]["epoch"], r["metrics"]["loss"]) for r in lines(tuner, "added_result")]
    assert found == [(-1, 1, 0.9), (-2, 1, 0.8), (-2, 3, 0.7), (-1, 3, 0.6), (-3, 3, 0.5), (-3, 9, 0.4)]
    assert lines(tuner, "added_result")[0]["metrics"]["accuracy"] == 0.1
    assert lines(tuner, "added_result")[1]["config"] == {"x": 0.75, "n": 1}


def test_a_result_added_from_a_callback_decides_from_then_on(make: Callable[..., Tuner]) -> None:
    def add(tuner: Tuner) -> None:
        for i in range(20):
            tuner.add_result({"x": i / 40, "n": 1}, [{"epoch": e, "loss": -1.0} for e in (1, 3)])

    tuner = make(asha(), callbacks=[DoAt(1, add)])
    experiment = tuner.run()
    # Trial 0 was let go on at epoch 1 before, and is stopped at epoch 3.
    assert [trial.num_results for trial in experiment.trials.values()] == [3, 1, 1, 1]
    assert replay(tuner.tuner_path, asha()) == []


class SlowSearcher(RandomSearcher):
    """Takes its time; what it learns meanwhile must not reach it."""

    slow = True
    busy = False

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        self.busy = True
        time.sleep(0.1)
        config = super().get_config(trial_id)
        self.busy = False
        return config

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        assert not self.busy
        super().on_trial_result(trial_id, config, result, update)


def test_results_wait_for_a_slow_suggestion(make: Callable[..., Tuner]) -> None:
    def scheduler() -> FIFOScheduler:
        return FIFOScheduler(SMALL, "loss", searcher=SlowSearcher(SMALL, points_to_evaluate=[]), random_seed=3)

    tuner = make(scheduler(), ONCE, n_trials=9, launch="auto", n_workers=2)
    stop = threading.Event()

    def add() -> None:
        with contextlib.suppress(ExperimentError):  # the experiment has ended
            while not stop.wait(0.02):
                tuner.add_result({"a": "p", "b": 1}, {"loss": 0.5})

    thread = threading.Thread(target=add)
    thread.start()
    time.sleep(0.1)
    tuner.enqueue({"a": "q", "b": 1})
    try:
        tuner.run()
    finally:
        stop.set()
        thread.join()
    started = [(c["a"], c["b"]) for c in configs(tuner)]
    assert started[0] == ("q", 1)
    assert sorted(started[1:]) == [("p", 2), ("q", 2)]
    assert replay(tuner.tuner_path, scheduler()) == []


class _Particular(ASHA):
    """Learns from the first epoch only."""

    def add_result(self, trial_id: int, config: dict[str, Any], result: dict[str, Any]) -> None:
        if result["epoch"] > 1:
            raise ReportError("only the first epoch is known")
        super().add_result(trial_id, config, result)


def test_a_result_that_the_scheduler_cannot_use_is_passed_over(
    make: Callable[..., Tuner], caplog: pytest.LogCaptureFixture
) -> None:
    def scheduler() -> ASHA:
        return _Particular(SPACE, "loss", max_resource_attr="epochs", random_seed=1)

    tuner = make(scheduler())
    tuner.add_result({"x": 0.5, "n": 3}, {"epoch": 3, "loss": -1.0})
    experiment = tuner.run()
    assert "added result is passed over, _Particular cannot use it: only the first epoch" in caplog.text
    assert experiment.trials[0].config["x"] == 0.5  # it is not known
    assert replay(tuner.tuner_path, scheduler()) == []


@pytest.mark.parametrize(
    ("config", "metrics", "error", "words"),
    [
        ({"x": 0.5}, {"loss": 1.0}, ConfigSpaceError, "config lacks n"),
        ({}, {"epoch": 1}, ValueError, r"metrics must hold 'loss', it has \['epoch'\]"),
        ({}, {"los": 1.0}, ValueError, "did you mean 'los'"),
        ({}, {}, ValueError, "metrics must hold 'loss'"),
        ({}, {"loss": "low"}, ValueError, r"metrics\['loss'\] must be a number, got 'low'"),
        ({}, {"loss": True}, ValueError, r"metrics\['loss'\] must be a number"),
        ({}, {"loss": 1.0, "epoch": 10}, ValueError, "at most 9, the maximum resource, got 10"),
        ({}, {"loss": 1.0, "epoch": 0}, ValueError, "positive integer, got 0"),
        ({}, {"loss": 1.0, "epoch": 1.5}, ValueError, "positive integer, got 1.5"),
        ({}, {"loss": 1.0, "epoch": math.nan}, ValueError, "non-negative number, got nan"),
        ({}, {"loss": 1.0, "epoch": "1"}, ValueError, "non-negative number, got '1'"),
        ({}, {"loss": 1.0, "st_x": 1}, ValueError, "reserved"),
        ({}, {1: 1.0}, TypeError, "metrics must be a dict"),
        ({}, 0.5, TypeError, "metrics must be a dict"),
        ({}, [{"loss": 1.0}, 0.5], TypeError, "metrics must be a dict"),
        ({}, "loss", TypeError, "metrics must be a dict"),
        ({}, [], ValueError, "metrics must hold at least one report"),
    ],
)
def test_bad_results_are_refused_at_once(
    make: Callable[..., Tuner], config: dict[str, Any], metrics: Any, error: type[Exception], words: str
) -> None:
    tuner = make(asha())
    with pytest.raises(error, match=words):
        tuner.add_result(config or {"x": 0.5, "n": 1}, metrics)
