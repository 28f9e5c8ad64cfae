"""FIFOScheduler, RandomSearch and the registry of baselines."""

from __future__ import annotations

import inspect
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from sthyper.baselines import ASHA, RandomSearch, baselines_dict
from sthyper.config_space import choice, uniform
from sthyper.errors import ConfigSpaceError, ReportError
from sthyper.schedulers import FIFOScheduler
from sthyper.searchers import BaseSearcher, RandomSearcher
from sthyper.testing import drive
from sthyper.time_keeper import RealTimeKeeper
from sthyper.trial import Trial

SPACE: dict[str, Any] = {"x": uniform(0, 1), "epochs": 4}


class Recorder(BaseSearcher):
    def __init__(self, config_space: dict[str, Any]) -> None:
        super().__init__(config_space)
        self.log: list[tuple[Any, ...]] = []

    def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
        return {"x": 0.5}

    def on_trial_result(
        self, trial_id: int | str, config: dict[str, Any], result: dict[str, Any], update: bool
    ) -> None:
        self.log.append((trial_id, config, result["epoch"], update))

    def register_pending(
        self, trial_id: int | str, config: dict[str, Any] | None = None, milestone: int | None = None
    ) -> None:
        self.log.append(("pending", trial_id, config))

    def cleanup_pending(self, trial_id: int | str) -> None:
        self.log.append(("cleanup", trial_id))


def test_every_trial_runs_to_its_end_and_only_its_last_report_teaches() -> None:
    searcher = Recorder(SPACE)
    scheduler = FIFOScheduler(SPACE, "loss", searcher=searcher)
    events = drive(scheduler, lambda config, r: {"loss": float(r)}, n_workers=1, n_trials=2, max_resource=3)
    assert [(e.kind, e.trial_id, e.resource, e.decision) for e in events] == [
        (kind, trial, resource, "CONTINUE" if kind == "report" else None)
        for trial in (0, 1)
        for kind, resource in (("start", 0), ("report", 1), ("report", 2), ("report", 3), ("complete", 3))
    ]
    config = {"x": 0.5}
    assert searcher.log[:6] == [
        ("pending", 0, config),
        (0, config, 1, False),
        (0, config, 2, False),
        (0, config, 3, False),
        (0, config, 3, True),
        ("cleanup", 0),
    ]


def test_the_constants_of_the_space_come_with_a_suggestion() -> None:
    suggestion = RandomSearch(SPACE, "loss", points_to_evaluate=[{"x": 0.25}]).suggest(0)
    assert suggestion is not None
    assert suggestion.config == {"x": 0.25, "epochs": 4}


def test_a_report_needs_no_resource_but_the_metric() -> None:
    scheduler = RandomSearch(SPACE, "val/acc", mode="max")
    trial = Trial(0, {"x": 0.5, "epochs": 4}, datetime(2020, 1, 1))
    assert scheduler.on_trial_result(trial, {"val/acc": 0.5}) == "CONTINUE"
    assert scheduler.on_trial_result(trial, {"val/acc": 0.5}) == "CONTINUE"
    with pytest.raises(ReportError, match=r"report\(\*\*\{'val/acc': \.\.\.\}\)"):
        scheduler.on_trial_result(trial, {"acc": 0.5})


def test_an_exhausted_space_gives_none() -> None:
    events = drive(RandomSearch({"c": choice([1, 2, 3])}, "loss", random_seed=0), n_workers=2, n_trials=9)
    assert [e.trial_id for e in events if e.kind == "start"] == [0, 1, 2]
    assert events[-1].kind == "exhausted"


def test_the_same_seed_gives_the_same_configurations_to_all_methods() -> None:
    random = RandomSearch(SPACE, "loss", random_seed=5, points_to_evaluate=[])
    asha = ASHA(SPACE, "loss", random_seed=5, points_to_evaluate=[])
    fifo = FIFOScheduler(SPACE, "loss", searcher=RandomSearcher(SPACE, points_to_evaluate=[]), random_seed=5)
    found = [[s.suggest(i) for i in range(6)] for s in (random, asha, fifo)]
    assert found[0] == found[1] == found[2]


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'minimum'"):
        RandomSearch(SPACE, "loss", mode="minimum")
    with pytest.raises(ValueError, match="did you mean 'restrict_configurations'"):
        RandomSearch(SPACE, "loss", search_options={"restrict_configuration": []})
    with pytest.raises(ConfigSpaceError, match="must not be empty"):
        RandomSearch({}, "loss")
    with pytest.raises(TypeError, match="metric must be the name"):
        RandomSearch(SPACE, ["loss"])  # type: ignore[arg-type]


def made(method: Any, **arguments: Any) -> Any:
    """Return a method with the arguments that it cannot do without."""
    needed = {name: "cost" for name in ("cost_attr", "constraint_attr") if _is_needed(method, name)}
    return method(SPACE, "loss", **needed, **arguments)


def _is_needed(method: Any, name: str) -> bool:
    parameter = inspect.signature(method).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def test_every_method_takes_a_clock() -> None:
    for method in set(baselines_dict.values()):
        made(method, time_keeper=RealTimeKeeper())
        with pytest.raises(TypeError, match="time_keeper must be a TimeKeeper, got 'noon'"):
            made(method, time_keeper="noon")


def test_the_registry_has_both_spellings() -> None:
    assert baselines_dict["Random Search"] is baselines_dict["RandomSearch"] is RandomSearch
    assert baselines_dict["ASHA"] is ASHA
    for method in baselines_dict.values():
        assert str(made(method)) == f"{method.__name__}(metric=['loss'], mode='min')"


def test_a_search_without_a_model_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from sthyper.baselines import ASHA; from sthyper.config_space import uniform\n"
        "s = ASHA({'x': uniform(0, 1), 'epochs': 9}, 'loss'); s.suggest(0); s.state_dict()\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'lightning') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
