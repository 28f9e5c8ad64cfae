"""Costs over pauses, restarts and whole experiments."""

from __future__ import annotations

import json
import logging
import math
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.errors import ReportError
from sthyper.experiment import load_experiment
from sthyper.schedulers import HyperbandScheduler, PromotionRungSystem, StoppingRungSystem, TrialScheduler
from sthyper.schedulers.hyperband.costs import TrialCosts
from sthyper.searchers import BaseSearcher, SearcherContext
from sthyper.testing import SchedulerConformance, replay
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 9}


class Recorder(BaseSearcher):
    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space)
        self.results: list[dict[str, Any]] = []
        self.context: SearcherContext | None = None

    def configure(self, context: SearcherContext) -> None:
        super().configure(context)
        self.context = context

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        return {"x": int(trial_id) / 10}

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        self.results.append(result)


class CostlyPromotion(PromotionRungSystem):
    """Writes down the costs that it gets."""

    def __init__(self, rung_levels: Any, max_t: int) -> None:
        super().__init__(rung_levels, max_t)
        self.costs: list[Any] = []

    def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
        self.costs.append((trial_id, level, cost))
        return super().register(trial_id, level, value, cost)


class CostlyStopping(StoppingRungSystem):
    def __init__(self, rung_levels: Any, max_t: int) -> None:
        super().__init__(rung_levels, max_t)
        self.costs: list[Any] = []

    def register(self, trial_id: int, level: int, value: float, cost: float | None = None) -> bool:
        self.costs.append((trial_id, level, cost))
        return super().register(trial_id, level, value, cost)


def make(kind: type = CostlyPromotion, levels: tuple[int, ...] = (1, 3), **arguments: Any) -> HyperbandScheduler:
    options = {"cost_attr": "seconds", "max_resource_attr": "epochs", "random_seed": 0} | arguments
    return HyperbandScheduler(SPACE, "loss", searcher=Recorder(SPACE), rung_system=kind(levels, 9), **options)


def start(scheduler: HyperbandScheduler, trial_id: int) -> Trial:
    suggestion = scheduler.suggest(trial_id)
    assert suggestion is not None
    assert suggestion.config is not None
    trial = Trial(trial_id, suggestion.config | {"epochs": 9}, datetime(2020, 1, 1))
    scheduler.on_trial_add(trial)
    return trial


def report(scheduler: HyperbandScheduler, trial: Trial, epoch: int, loss: float, **rest: Any) -> str:
    return scheduler.on_trial_result(trial, {"epoch": epoch, "loss": loss, **rest})


def promoted(**arguments: Any) -> tuple[HyperbandScheduler, Trial]:
    """Return a scheduler whose trial 0 has cost 5 up to level 1 and goes on."""
    scheduler = make(**arguments)
    trials = [start(scheduler, i) for i in range(2)]
    for trial, loss in zip(trials, (0.1, 0.2), strict=True):
        assert report(scheduler, trial, 1, loss, seconds=5 + trial.trial_id) == "PAUSE"
    suggestion = scheduler.suggest(2)
    assert suggestion is not None
    assert suggestion.checkpoint_trial_id == 0
    return scheduler, trials[0]


def told(scheduler: HyperbandScheduler) -> dict[str, Any]:
    assert isinstance(scheduler.searcher, Recorder)
    return scheduler.searcher.results[-1]


# ---- adding up -------------------------------------------------------------------------------------------


def test_costs_of_runs_are_added_up() -> None:
    scheduler, trial = promoted()
    assert scheduler.cost_attr == "seconds"
    result = {"epoch": 2, "loss": 0.1, "seconds": 3.0}
    assert scheduler.on_trial_result(trial, result) == "CONTINUE"
    assert scheduler.result_columns() == {"total_seconds": 8.0}
    assert result == {"epoch": 2, "loss": 0.1, "seconds": 3.0}  # the caller's own
    assert told(scheduler) == result | {"total_seconds": 8.0}
    assert report(scheduler, trial, 3, 0.1, seconds=4) == "PAUSE"
    system = scheduler.rung_system
    assert isinstance(system, CostlyPromotion)
    assert system.costs == [(0, 1, 5.0), (1, 1, 6.0), (0, 3, 9.0)]
    assert isinstance(scheduler.searcher, Recorder)
    assert scheduler.searcher.context is not None
    assert scheduler.searcher.context.cost_attr == "total_seconds"


def test_a_script_without_checkpoints_begins_again_and_so_do_its_costs() -> None:
    scheduler, trial = promoted()
    scheduler.on_trial_resume(trial)
    scheduler.on_trial_repeat(trial, {"epoch": 1, "loss": 0.1, "seconds": 4.5})
    report(scheduler, trial, 2, 0.1, seconds=9)
    assert told(scheduler)["total_seconds"] == 9
    # A repeat that reaches the scheduler as a report says the same.
    scheduler, trial = promoted()
    assert report(scheduler, trial, 1, 0.1, seconds=4.5) == "CONTINUE"
    assert scheduler.result_columns() == {}
    report(scheduler, trial, 2, 0.1, seconds=9)
    assert told(scheduler)["total_seconds"] == 9


def test_a_restart_goes_on_from_its_checkpoint() -> None:
    totals = []
    for repeated in ((), (4,), (3, 4), (1, 2, 3, 4)):
        scheduler = make(levels=(8,), searcher_data="all")
        trial = start(scheduler, 0)
        for epoch in (1, 2, 3, 4):
            report(scheduler, trial, epoch, 0.5, seconds=10.0 * epoch)
        scheduler.on_trial_resume(trial)  # it was killed
        spent = 1.0
        for epoch in repeated:
            spent += 10
            scheduler.on_trial_repeat(trial, {"epoch": epoch, "loss": 0.5, "seconds": spent})
        report(scheduler, trial, 5, 0.5, seconds=spent + 10)
        totals.append(told(scheduler)["total_seconds"])
    # 10 an epoch, and 1 for the start of a run, as if the epochs that were trained again had not been before.
    assert totals == [51.0, 51.0, 51.0, 51.0]


def test_the_last_report_of_a_completed_trial_has_the_total() -> None:
    scheduler, trial = promoted()
    report(scheduler, trial, 2, 0.1, seconds=3)
    scheduler.on_trial_complete(trial, {"epoch": 2, "loss": 0.1, "seconds": 3})
    assert told(scheduler) == {"epoch": 2, "loss": 0.1, "seconds": 3, "total_seconds": 8.0}


def test_a_trial_that_is_never_paused_needs_no_total() -> None:
    scheduler = make(CostlyStopping)
    trial = start(scheduler, 0)
    report(scheduler, trial, 1, 0.1, seconds=5)
    assert told(scheduler) == {"epoch": 1, "loss": 0.1, "seconds": 5}
    assert scheduler.result_columns() == {}
    assert isinstance(scheduler.searcher, Recorder)
    assert scheduler.searcher.context is not None
    assert scheduler.searcher.context.cost_attr == "seconds"
    system = scheduler.rung_system
    assert isinstance(system, CostlyStopping)
    assert system.costs == [(0, 1, 5.0)]


def test_without_cost_attr_nothing_is_added() -> None:
    scheduler, trial = promoted(cost_attr=None)
    report(scheduler, trial, 2, 0.1, seconds=3)
    assert told(scheduler) == {"epoch": 2, "loss": 0.1, "seconds": 3}
    assert scheduler.result_columns() == {}
    system = scheduler.rung_system
    assert isinstance(system, CostlyPromotion)
    assert system.costs == [(0, 1, None), (1, 1, None)]


def test_late_reports_cost_nothing() -> None:
    scheduler, trial = promoted()
    other = Trial(1, {"x": 0.1, "epochs": 9}, datetime(2020, 1, 1))
    report(scheduler, trial, 2, 0.1, seconds=3)
    assert report(scheduler, other, 2, 0.0, seconds=100) == "PAUSE"
    assert scheduler.result_columns() == {}


def test_the_state_has_the_costs() -> None:
    scheduler, trial = promoted()
    report(scheduler, trial, 2, 0.1, seconds=3)
    twin = make()
    twin.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert report(twin, trial, 3, 0.1, seconds=4) == "PAUSE"
    assert told(twin)["total_seconds"] == 9
    assert twin.state_dict()["trials"]["0"]["costs"]["totals"] == [[1, 5.0], [2, 8.0], [3, 9.0]]


def test_added_results_have_costs_too() -> None:
    scheduler = make()
    scheduler.add_result(-1, {"x": 0.5}, {"epoch": 1, "loss": 0.5, "seconds": 2})
    scheduler.add_result(-1, {"x": 0.5}, {"epoch": 2, "loss": 0.5, "seconds": 4})
    assert told(scheduler)["total_seconds"] == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, "3", True, None])
def test_a_bad_cost_is_refused_and_changes_nothing(bad: Any) -> None:
    scheduler = make()
    trial = start(scheduler, 0)
    state = scheduler.state_dict()
    with pytest.raises(ReportError, match="cost 'seconds' must be a finite number of at least 0, the report has"):
        report(scheduler, trial, 1, 0.5, seconds=bad)
    assert scheduler.state_dict() == state


def test_a_bad_cost_of_a_repeat_is_too_late_to_fail_the_trial(caplog: pytest.LogCaptureFixture) -> None:
    scheduler, trial = promoted()
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        scheduler.on_trial_repeat(trial, {"epoch": 1, "loss": 0.1, "seconds": -1})
    assert "trial 0: cost 'seconds' must be" in caplog.text
    report(scheduler, trial, 2, 0.1, seconds=3)
    assert told(scheduler)["total_seconds"] == 8


def test_a_missing_cost_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make()
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        for trial_id in range(2):
            report(scheduler, start(scheduler, trial_id), 1, 0.5, second=3)
    assert [r.getMessage() for r in caplog.records] == [
        "cost_attr='seconds' is missing in a report, which has ['epoch', 'loss', 'second'] (did you mean 'second'?)"
    ]
    assert told(scheduler) == {"epoch": 1, "loss": 0.5, "second": 3}
    report(scheduler, start(scheduler, 5), 1, 0.5, seconds=3)
    assert scheduler.result_columns() == {"total_seconds": 3.0}
    report(scheduler, start(scheduler, 6), 1, 0.5)
    assert scheduler.result_columns() == {}


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="cost_attr must be the name of a reported cost, got ''"):
        make(cost_attr="")
    with pytest.raises(ValueError, match="cost_attr and resource_attr must be different names, both are 'epoch'"):
        make(cost_attr="epoch")
    for other in ({"metric": "total_cost"}, {"resource_attr": "total_cost"}):
        names: dict[str, Any] = {"metric": "loss", "cost_attr": "cost", **other}
        HyperbandScheduler(SPACE, **names)  # nothing is added up
        with pytest.raises(ValueError, match="cost_attr='cost' is added up .* 'total_cost', which is the name of"):
            HyperbandScheduler(SPACE, type="promotion", **names)


def test_the_sum_of_a_trial() -> None:
    costs = TrialCosts()
    assert costs.latest() is None
    assert costs.total(3, 5.0) == 5.0
    costs.add(3, 5.0)
    costs.begin_run()
    assert costs.total(4, 1.0) == 6.0
    assert costs.total(3, 1.0) == 1.0
    costs.add(4, 6.0)
    assert costs.total(5, 2.0) == 7.0
    assert costs.latest() == 6.0


# ---- whole experiments -----------------------------------------------------------------------------------

SCRIPT = """
    import argparse, os
    from pathlib import Path
    from sthyper import Reporter
    parser = argparse.ArgumentParser()
    for name in ("--x", "--epochs"):
        parser.add_argument(name, type=float)
    args = parser.parse_args()
    report = Reporter()
    saved = Path(os.environ["STHYPER_CHECKPOINT_DIR"]) / "epoch"
    first = int(saved.read_text()) + 1 if RESUMES and saved.exists() else 1
    for number, epoch in enumerate(range(first, int(args.epochs) + 1), start=1):
        saved.parent.mkdir(exist_ok=True)
        saved.write_text(str(epoch))
        report(epoch=epoch, loss=args.x + 1 / epoch, seconds=100 + number)
"""


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_results_of_an_experiment_have_the_total(tmp_path: Path, checkpoint: bool) -> None:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(SCRIPT).replace("RESUMES", str(checkpoint)))

    def scheduler() -> ASHA:
        return ASHA(
            SPACE, "loss", type="promotion", max_resource_attr="epochs", random_seed=1, cost_attr="seconds", brackets=2
        )

    tuner = Tuner(
        LocalBackend(path, launch="inline"), scheduler(), StoppingCriterion(max_num_trials_started=8), n_workers=1
    )
    frame = tuner.run().results
    resumed = frame[frame["st_run"] > 0]
    assert len(resumed) > 0
    # An epoch costs 1, the start of a run 100.
    starts = frame["st_run"] + 1 if checkpoint else 1
    assert (frame["total_seconds"] == frame["epoch"] + 100 * starts).all()
    again = load_experiment(tuner.name).results
    assert list(again["total_seconds"]) == list(frame["total_seconds"])
    assert replay(tuner.tuner_path, scheduler()) == []
    import pandas as pd

    stored = pd.read_csv(tuner.tuner_path / "results.csv.zip")
    assert list(stored["total_seconds"]) == list(frame["total_seconds"])


def test_a_trial_that_was_killed_keeps_what_it_has_cost(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    code = textwrap.dedent(SCRIPT).replace("RESUMES", "True")
    path.write_text(code + "    if epoch == 4 and first == 1:\n        os.kill(os.getpid(), 9)\n")
    scheduler = ASHA(
        SPACE, "loss", type="promotion", max_resource_attr="epochs", grace_period=8, random_seed=1, cost_attr="seconds"
    )
    tuner = Tuner(
        LocalBackend(path, launch="exec"), scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1
    )
    frame = tuner.run().results
    assert list(frame["st_run"]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert list(frame["total_seconds"]) == [101, 102, 103, 104, 205, 206, 207, 208]


class TestWithCosts(SchedulerConformance):
    def make_scheduler(self, config_space: dict[str, Any], random_seed: int) -> TrialScheduler:
        return ASHA(
            config_space,
            "loss",
            type="promotion",
            max_resource_attr="epochs",
            random_seed=random_seed,
            cost_attr="epoch_time",
        )
