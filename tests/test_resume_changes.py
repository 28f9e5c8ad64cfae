"""Resumed experiments whose configuration space, scheduler or number of workers is another one from there on."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper._describe import rebuild
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, config_to_match_string, loguniform, randint, uniform
from sthyper.errors import ConfigSpaceError, ExperimentError
from sthyper.journal import read_journal
from sthyper.schedulers import FIFOScheduler, HyperbandScheduler, TrialScheduler, TrialSuggestion
from sthyper.searchers import RandomSearcher
from sthyper.testing import TrialSimulation, canonical_journal, replay
from sthyper.trial import Trial

EPOCHS = 8
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "epochs": EPOCHS}
KINDS = ["random", "grid", "stopping", "promotion", "promotion3"]

TRAIN = """
import json, os, time
from pathlib import Path
from sthyper import Reporter

report = Reporter()
config = report.config
with open(Path(report.trial_dir) / "runs.txt", "a") as log:
    log.write(json.dumps(config) + "\\n")
(Path(report.checkpoint_dir) / "model.txt").write_text("weights")
for epoch in range((report.last_resource or 0) + 1, config["epochs"] + 1):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    report(epoch=epoch, loss=(config["x"] - 0.3) ** 2 + 1 / epoch)
"""

LAUNCH = """
import sys
sys.path.insert(0, {here!r})
from test_resume_changes import *

kind, step = sys.argv[1], int(sys.argv[2])
if step == 0:
    tuner = Tuner(
        LocalBackend({train!r}), scheduler(kind), StoppingCriterion(max_num_trials_started=8), 2,
        tuner_name="changed", suffix_tuner_name=False,
    )
else:
    tuner = Tuner.resume("changed", **changes(step))
tuner.run()
"""


def scheduler(kind: str, space: dict[str, Any] = SPACE, random_seed: int = 5, **changes: Any) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(space, metric="loss", random_seed=random_seed, **changes)
    if kind == "grid":
        samples = {"num_samples": {"x": 24}}
        return GridSearch(space, metric="loss", random_seed=random_seed, search_options=samples, **changes)
    arguments = {"max_resource_attr": "epochs", "reduction_factor": 2, "random_seed": random_seed} | changes
    brackets = 3 if kind.endswith("3") else 1
    return ASHA(space, metric="loss", type=kind.removesuffix("3"), brackets=brackets, **arguments)


def changes(step: int) -> dict[str, Any]:
    """What the resumes of an experiment with several changes are called with."""
    known: list[dict[str, Any]] = [
        {},
        {"config_space": {"x": uniform(0.0, 0.6), "epochs": EPOCHS}},
        {
            "config_space": {"x": uniform(0.1, 0.6), "w": choice(["a", "b"]), "epochs": 12},
            "new_defaults": {"w": "b"},
        },
        {"config_space": {"x": uniform(0.1, 0.6), "epochs": 12}, "drop": True},
    ]
    return {**known[step], "stop_criterion": StoppingCriterion(max_num_trials_started=8 + 4 * step)}


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def run(train: Path, kind: str, trials: int = 8, made: TrialScheduler | None = None, **arguments: Any) -> Tuner:
    tuner = Tuner(
        LocalBackend(train, launch="inline"),
        made or scheduler(kind),
        arguments.pop("stop_criterion", None) or StoppingCriterion(max_num_trials_started=trials),
        n_workers=1,
        **arguments,
    )
    for config in arguments.pop("enqueue", ()):
        tuner.enqueue(config)
    tuner.run()
    return tuner


def go_on(tuner: Tuner, trials: int, **changes: Any) -> Tuner:
    resumed = Tuner.resume(tuner.name, stop_criterion=StoppingCriterion(max_num_trials_started=trials), **changes)
    resumed.run()
    return resumed


def marks(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_journal(folder) if record["type"] == "fresh"]


def last_scheduler(folder: Path) -> TrialScheduler:
    """The scheduler of the last change, before its first decision."""
    made: TrialScheduler = rebuild(marks(folder)[-1]["scheduler"])
    return made


def suggested(folder: Path) -> list[list[dict[str, Any]]]:
    """Suggested new configurations, in parts: one before each change and one behind the last."""
    parts: list[list[dict[str, Any]]] = [[]]
    for record in read_journal(folder):
        if record["type"] == "fresh":
            parts.append([])
        elif record["type"] == "suggestion" and record["action"] == "start":
            parts[-1].append(record["config"])
    return parts


def runs(folder: Path, trial_id: int) -> list[dict[str, Any]]:
    """The configurations that the runs of a trial have got."""
    return [json.loads(line) for line in (folder / "trials" / str(trial_id) / "runs.txt").read_text().splitlines()]


# ---- the space -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrowed_domain(train: Path, kind: str) -> None:
    # Good ones, of which more are promoted when worse ones come.
    points = [{"x": x} for x in (0.3, 0.9, 0.31, 0.8, 0.32, 0.1, 0.33, 0.19)]
    tuner = run(train, kind, made=scheduler(kind, points_to_evaluate=points))
    folder = tuner.tuner_path
    before = load_experiment(folder).trials
    go_on(tuner, 20, config_space={"x": uniform(0.2, 0.5), "epochs": EPOCHS})
    after = load_experiment(folder)
    assert len(after.trials) == 20
    old, new = suggested(folder)
    assert all(0.2 <= config["x"] <= 0.5 for config in new)
    assert not {config["x"] for config in old} & {config["x"] for config in new}
    outside = {i for i, trial in before.items() if not 0.2 <= trial.config["x"] <= 0.5}
    assert outside
    for trial_id, trial in before.items():
        assert after.trials[trial_id].config == trial.config
        if trial_id in outside and trial.status == "Paused":
            assert after.trials[trial_id].status == "Stopped"
            assert after.trials[trial_id].end_reason == "outside the configuration space"
            assert (folder / "trials" / str(trial_id) / "checkpoints" / "model.txt").exists()
        elif trial_id in outside:
            assert after.trials[trial_id] == trial
    if kind.startswith("promotion"):
        assert any(trial.status == "Paused" for i, trial in before.items() if i in outside)
        gone_on = [i for i in before if after.trials[i].num_results > before[i].num_results]
        assert gone_on  # what is inside is promoted still
        assert not set(gone_on) & outside
    assert replay(folder, last_scheduler(folder)) == []
    assert len(after.results) == sum(trial.num_results for trial in after.trials.values())
    assert after.best_config()["config_x"] == after.trials[after.best_trial_id].config["x"]  # type: ignore[index]
    # And once more, without a change.
    go_on(tuner, 22)
    assert len(marks(folder)) == 1
    assert replay(folder, last_scheduler(folder)) == []
    assert len(load_experiment(folder).trials) == 22
    assert [r["type"] for r in canonical_journal(folder)].count("fresh") == 1


@pytest.mark.parametrize(
    ("domain", "is_inside", "informs"),
    [
        (uniform(-2.0, 2.0), lambda x: True, lambda x: True),
        (loguniform(0.4, 2.0), lambda x: x >= 0.4, lambda x: True),
        (choice([0.5, 2.0]), lambda x: x == 0.5, lambda x: x == 0.5),
        (randint(0, 5), lambda x: False, lambda x: False),
        (0.5, lambda x: x == 0.5, lambda x: x == 0.5),
    ],
)
def test_domains_of_other_kinds(train: Path, domain: Any, is_inside: Any, informs: Any) -> None:
    tuner = run(train, "promotion")
    before = load_experiment(tuner.name).trials
    # Another hyperparameter, since a space needs one.
    space = {"x": domain, "y": uniform(0.0, 1.0), "epochs": EPOCHS}
    resumed = go_on(tuner, 9, config_space=space, new_defaults={"y": 0.25})
    after = load_experiment(tuner.name).trials
    assert before[0].config["x"] == 0.5
    assert sum(trial.status == "Paused" for trial in before.values()) >= 5
    for trial_id, trial in before.items():
        if trial.status == "Paused":
            assert (after[trial_id].status == "Stopped") == (not is_inside(trial.config["x"]))
    assert isinstance(resumed.scheduler, ASHA)
    entries = {trial_id for _, rung in resumed.scheduler.terminator.snapshot_rungs(0) for trial_id, _ in rung}
    assert entries - {8} == {i for i, trial in before.items() if informs(trial.config["x"])}
    assert domain == 0.5 or domain.is_valid(after[8].config["x"])
    assert replay(tuner.tuner_path, last_scheduler(tuner.tuner_path)) == []


def test_a_new_hyperparameter_needs_a_default(train: Path) -> None:
    tuner = run(train, "promotion")
    before = (tuner.tuner_path / "journal.jsonl").read_bytes()
    new = SPACE | {"width": randint(1, 9), "act": choice(["relu", "tanh"]), "data": "cifar"}

    def fails(error: str, kind: type[Exception] = ConfigSpaceError, **given: Any) -> None:
        with pytest.raises(kind, match=error):
            Tuner.resume(tuner.name, **{"config_space": new, **given})

    fails(r"new_defaults lacks 'width', 'act'.*new_defaults=\{'width': 5, 'act': 'relu'\}")
    fails(r"new_defaults lacks 'act'", new_defaults={"width": 3})
    fails(r"'widht' is not in config_space.*'width'", new_defaults={"widht": 3, "act": "relu"})
    fails(r"'data' is a constant of config_space", new_defaults={"width": 3, "act": "relu", "data": "x"})
    fails(
        r"'x' is no new hyperparameter.*new are \['width', 'act'\]", new_defaults={"width": 3, "act": "relu", "x": 0.5}
    )
    fails(r"value 10 of 'width' cannot be used", new_defaults={"width": 10, "act": "relu"})
    fails(r"value 'gelu' of 'act' cannot be used", new_defaults={"width": 3, "act": "gelu"})
    fails(r"new_defaults must be a dict", TypeError, new_defaults=["w"])
    fails(r"new_defaults needs config_space", ValueError, config_space=None, new_defaults={"width": 3})
    fails(r"drop needs config_space", ValueError, config_space=None, drop=True)
    fails(r"drop must be True or False, got 1", TypeError, drop=1)
    fails(r"force must be True or False, got 'yes'", TypeError, force="yes")
    fails(r"must not be empty", config_space={})
    fails(r"cannot be made for this config_space: max_resource_attr='epochs' is not in", config_space={"x": SPACE["x"]})
    fails(r"new_defaults has no effect|is not in config_space", config_space=SPACE, new_defaults={"width": 3})
    assert (tuner.tuner_path / "journal.jsonl").read_bytes() == before


def test_a_new_hyperparameter(train: Path) -> None:
    import pandas as pd

    tuner = run(train, "promotion")
    before = load_experiment(tuner.name).trials
    new = SPACE | {"w": choice(["a", "b"]), "data": "cifar"}
    resumed = go_on(tuner, 14, config_space=new, new_defaults={"w": "b"})
    after = load_experiment(tuner.name)
    promoted = [i for i in before if after.trials[i].runs > before[i].runs]
    assert promoted
    for trial_id, trial in before.items():
        configs = runs(tuner.tuner_path, trial_id)
        assert configs[: trial.runs] == [trial.config] * trial.runs
        assert all(config == trial.config | {"w": "b", "data": "cifar"} for config in configs[trial.runs :])
        if trial_id not in promoted:
            assert after.trials[trial_id].config == trial.config
    assert {after.trials[i].config["w"] for i in range(8, 14)} == {"a", "b"}
    rows = after.results.drop_duplicates("trial_id", keep="last").set_index("trial_id")
    stored = pd.read_csv(tuner.tuner_path / "results.csv.zip")
    assert list(stored.config_w.isna()) == list(after.results.config_w.isna())
    assert rows.config_w.isna().sum() == 8 - len(promoted)
    assert resumed.best_config()[0] == after.best_trial_id
    # The model knows past trials with the default: their configurations are not suggested.
    excluded = resumed.scheduler.state_dict()["searcher"]["excluded"]
    for trial in before.values():
        assert config_to_match_string(trial.config | {"w": "b"}, resumed.scheduler.config_space) in excluded
    assert after.metadata["config_space"] == Tuner.load(tuner.name).metadata["config_space"]
    assert "cifar" in json.loads((tuner.tuner_path / "metadata.json").read_text())["config_space"]


def test_what_is_left_out_is_fixed_if_all_trials_agree(train: Path) -> None:
    space = SPACE | {"w": randint(1, 9)}
    made = scheduler("promotion", space, points_to_evaluate=[{"x": x, "w": 4} for x in (0.1, 0.2, 0.3, 0.4)])
    tuner = run(train, "promotion", 4, made)
    go_on(tuner, 6, config_space=SPACE)
    folder = tuner.tuner_path
    assert all(config["w"] == 4 for config in suggested(folder)[1])
    assert all(config["w"] == 4 for trial_id in range(6) for config in runs(folder, trial_id))
    # The same call once more is no other change; drop=True is.
    go_on(tuner, 7, config_space=SPACE)
    assert len(marks(folder)) == 1
    assert runs(folder, 6)[0]["w"] == 4
    go_on(tuner, 8, config_space=SPACE, drop=True)
    assert len(marks(folder)) == 2
    assert "w" not in runs(folder, 7)[0]


def test_what_is_left_out_is_dropped(train: Path) -> None:
    points = [{"x": 0.3 + i / 100, "w": 1 + i} for i in range(8)]
    made = scheduler("promotion", SPACE | {"w": randint(1, 9)}, points_to_evaluate=points)
    tuner = run(train, "promotion", made=made)
    before = load_experiment(tuner.name).trials
    with pytest.raises(ConfigSpaceError, match=r"lacks 'w', of which past trials have \d different values .*drop=True"):
        Tuner.resume(tuner.name, config_space=SPACE)
    resumed = go_on(tuner, 24, config_space=SPACE, drop=True)
    after = load_experiment(tuner.name)
    assert all("w" not in after.trials[i].config for i in range(8, 24))
    promoted = [i for i in before if after.trials[i].runs > before[i].runs]
    assert promoted
    assert all(runs(tuner.tuner_path, i)[-1] == {"x": before[i].config["x"], "epochs": EPOCHS} for i in promoted)
    assert set(before) - set(promoted) == {i for i in before if "w" in after.trials[i].config}
    assert isinstance(resumed.scheduler, ASHA)
    assert resumed.scheduler.terminator.information_for_rungs()[-1][1] == 24
    assert not any(trial.end_reason for trial in after.trials.values())


def test_constants_are_those_of_the_new_space(train: Path) -> None:
    tuner = run(train, "promotion", made=scheduler("promotion", SPACE | {"data": "old", "gone": 1}))
    before = load_experiment(tuner.name).trials
    go_on(tuner, 14, config_space=SPACE | {"data": "new"})
    after = load_experiment(tuner.name).trials
    promoted = [i for i in before if after[i].runs > before[i].runs]
    assert promoted
    for trial_id in [*promoted, *range(8, 14)]:
        config = runs(tuner.tuner_path, trial_id)[-1]
        assert config == {"x": after[trial_id].config["x"], "epochs": EPOCHS, "data": "new"}
    assert not any(trial.end_reason for trial in after.values())


@pytest.mark.parametrize("epochs", [16, 4])
def test_another_maximum_resource(train: Path, epochs: int) -> None:
    tuner = run(train, "promotion", 10)
    before = load_experiment(tuner.name).trials
    completed = {i for i, trial in before.items() if trial.status == "Completed"}
    assert completed
    go_on(tuner, 20, config_space=SPACE | {"epochs": epochs})
    after = load_experiment(tuner.name).trials
    assert all(after[i] == before[i] for i in completed)
    others = {i: trial.num_results for i, trial in after.items() if i not in completed}
    assert max(others.values()) == max(epochs, *(t.num_results for i, t in before.items() if i not in completed))
    promoted = [i for i in before if after[i].runs > before[i].runs]
    assert promoted
    assert all(runs(tuner.tuner_path, i)[-1]["epochs"] == epochs for i in promoted)
    assert replay(tuner.tuner_path, last_scheduler(tuner.tuner_path)) == []


def test_an_equal_space_is_no_change(train: Path) -> None:
    tuner, other = run(train, "promotion", 4), run(train, "promotion", 8)
    same = {"epochs": EPOCHS, "x": uniform(0, 1)}
    go_on(tuner, 8, config_space=same, drop=True)
    assert suggested(tuner.tuner_path) == suggested(other.tuner_path)
    assert replay(tuner.tuner_path, scheduler("promotion")) == []


def test_a_given_scheduler_has_the_new_space(train: Path) -> None:
    tuner = run(train, "random", 4)
    new = {"x": uniform(0.0, 0.5), "epochs": EPOCHS}
    with pytest.raises(ConfigSpaceError, match="differs in x from that of the experiment; pass it as config_space"):
        Tuner.resume(tuner.name, scheduler=scheduler("random", new))
    with pytest.raises(ConfigSpaceError, match="configuration space of scheduler differs in x from config_space"):
        Tuner.resume(tuner.name, config_space=new, scheduler=scheduler("random"))
    go_on(tuner, 30, config_space=new, scheduler=scheduler("random", new, points_to_evaluate=[{"x": 0.125}]))
    assert suggested(tuner.tuner_path)[1][0]["x"] == 0.125
    go_on(tuner, 40)
    trials = load_experiment(tuner.name).trials
    assert len(trials) == len({trial.config["x"] for trial in trials.values()}) == 40


def test_options_of_searchers_follow_the_space(train: Path) -> None:
    listed = [{"x": x} for x in (0.1, 0.2, 0.7, 0.3, 0.8, 0.4)]
    for made in (
        scheduler("random", search_options={"restrict_configurations": listed}, points_to_evaluate=[]),
        FIFOScheduler(
            SPACE,
            "loss",
            searcher=RandomSearcher(SPACE, restrict_configurations=listed, points_to_evaluate=[], random_seed=1),
        ),
    ):
        tuner = run(train, "", 2, made)
        go_on(tuner, 10, config_space={"x": uniform(0.0, 0.5), "epochs": EPOCHS})
        old, new = suggested(tuner.tuner_path)
        xs = {config["x"] for config in old}
        assert {config["x"] for config in new} == {0.1, 0.2, 0.3, 0.4} - xs
    # Initial configurations that were not tried come still, where they have a place.
    points = [{"x": 0.9}, {"x": 0.8}, {"x": 0.2}, {"x": 0.1}]
    tuner = run(train, "", 1, scheduler("random", points_to_evaluate=points))
    go_on(tuner, 4, config_space={"x": uniform(0.0, 0.5), "epochs": EPOCHS})
    assert [config["x"] for config in suggested(tuner.tuner_path)[1][:2]] == [0.2, 0.1]


def test_a_finite_space_is_used_up_without_repeats(train: Path) -> None:
    small = {"x": choice([0.1, 0.2, 0.3, 0.4, 0.5]), "epochs": EPOCHS}
    tuner = run(train, "", 3, scheduler("random", small))
    result = go_on(tuner, 100, config_space={"x": choice([0.3, 0.4, 0.5, 0.6, 0.7]), "epochs": EPOCHS})
    old, new = ({config["x"] for config in part} for part in suggested(tuner.tuner_path))
    assert new == {0.3, 0.4, 0.5, 0.6, 0.7} - old
    assert load_experiment(result.name).end_reason == "the scheduler has nothing left to suggest"


# ---- what is under way when the space changes ------------------------------------------------------------


def test_interrupted_trials_outside_are_not_run_again(tmp_path: Path, train: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PAUSE", "0.05")
    points = [{"x": x} for x in (0.1, 0.9, 0.2)]
    made = scheduler("stopping", points_to_evaluate=points, grace_period=6)
    tuner = Tuner(LocalBackend(train), made, StoppingCriterion(max_num_evaluations=6), n_workers=3)
    tuner.run()
    before = load_experiment(tuner.name).trials
    assert {trial.end_reason for trial in before.values()} == {"interrupted"}
    monkeypatch.setenv("PAUSE", "0")
    go_on(
        tuner, 3, config_space={"x": uniform(0.0, 0.5), "w": uniform(0.0, 1.0), "epochs": 10}, new_defaults={"w": 0.5}
    )
    after = load_experiment(tuner.name).trials
    assert [after[i].end_reason for i in range(3)][1] == "outside the configuration space"
    assert after[1].status == "Stopped"
    assert after[1].runs == 1
    for trial_id in (0, 2):
        assert after[trial_id].status in ("Completed", "Stopped")
        assert after[trial_id].end_reason is None
        assert runs(tuner.tuner_path, trial_id)[1] == {"x": points[trial_id]["x"], "epochs": 10, "w": 0.5}
    epochs = load_experiment(tuner.name).results
    assert max(Counter(zip(epochs.trial_id, epochs.epoch, strict=True)).values()) == 1


@pytest.mark.timeout(120)
def test_trials_that_run_elsewhere_and_are_outside_are_ended(
    tmp_path: Path, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAUSE", "0.3")
    launch = tmp_path / "launch.py"
    launch.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_resume_changes import *\n"
        "from test_reconnect import DetachedBackend\n"
        "made = scheduler('stopping', points_to_evaluate=[{'x': x} for x in (0.1, 0.9, 0.2)], grace_period=6)\n"
        f"backend = DetachedBackend({str(train)!r})\n"
        "space = {'x': uniform(0.0, 0.5), 'w': choice(['a', 'b']), 'epochs': EPOCHS}\n"
        "if sys.argv[1:]:\n"
        "    tuner = Tuner.resume('away', trial_backend=backend, config_space=space, new_defaults={'w': 'a'})\n"
        "else:\n"
        "    criterion = StoppingCriterion(max_num_trials_started=3)\n"
        "    tuner = Tuner(backend, made, criterion, 3, tuner_name='away', suffix_tuner_name=False)\n"
        "tuner.run()\n"
    )
    folder = Path(os.environ["STHYPER_FOLDER"]) / "away"
    with open(tmp_path / "tuner.txt", "w") as out:
        tuner = subprocess.Popen([sys.executable, str(launch)], stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len({r["trial_id"] for r in _decisions(folder)}) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        tuner.kill()
        tuner.wait()
    subprocess.run([sys.executable, str(launch), "resume"], check=True, timeout=60)
    trials = load_experiment(folder).trials
    assert trials[1].status == "Stopped"
    assert trials[1].end_reason == "outside the configuration space"
    assert trials[1].num_results < EPOCHS
    for trial_id in (0, 2):  # they have not noticed anything
        assert runs(folder, trial_id) == [{"x": trials[trial_id].config["x"], "epochs": EPOCHS}]
        assert trials[trial_id].num_results in (6, EPOCHS)
    assert replay(folder, last_scheduler(folder)) == []


def _decisions(folder: Path) -> list[dict[str, Any]]:
    if not lines(folder):
        return []
    return [record for record in read_journal(folder) if record["type"] == "decision"]


def test_what_was_put_in_from_outside(train: Path) -> None:
    tuner = Tuner(
        LocalBackend(train, launch="inline"), scheduler("promotion"), StoppingCriterion(max_num_trials_started=2), 1
    )
    for x in (0.11, 0.12, 0.93, 0.14):
        tuner.enqueue({"x": x})
    tuner.add_result({"x": 0.25}, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    tuner.add_result({"x": 0.95}, {"epoch": 1, "loss": 0.125})
    tuner.run()
    resumed = Tuner.resume(
        tuner.name,
        config_space={"x": uniform(0.0, 0.5), "w": choice(["a", "b"]), "epochs": EPOCHS},
        new_defaults={"w": "a"},
        stop_criterion=StoppingCriterion(max_num_trials_started=5),
    )
    resumed.add_result({"x": 0.25, "w": "a"}, {"epoch": 4, "loss": 0.0625})
    resumed.run()
    trials = load_experiment(tuner.name).trials
    # The third is the one that the scheduler had suggested already.
    assert [trials[i].config["x"] for i in range(4)] == [0.11, 0.12, 0.5, 0.14]
    assert [trials[i].config["w"] for i in (2, 3)] == ["a", "a"]
    assert isinstance(resumed.scheduler, ASHA)
    rungs = {level: dict(entries) for level, entries in resumed.scheduler.terminator.snapshot_rungs(0)}
    assert rungs[1][-1] == 0.5
    assert rungs[1][-2] == 0.125  # outside, and compared with all the same
    assert rungs[4][-1] == 0.0625  # goes on with the evaluation of before
    assert replay(tuner.tuner_path, last_scheduler(tuner.tuner_path)) == []


@pytest.mark.parametrize("cut_after", ["ask", "suggestion", "start", "report", "decision", "status"])
def test_a_change_where_the_tuner_was_killed(train: Path, cut_after: str) -> None:
    tuner = run(train, "promotion", 6)
    path = tuner.tuner_path / "journal.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in whole]
    cut = [i for i, kind in enumerate(kinds) if kind == cut_after][-4]
    path.write_bytes(b"".join(whole[: cut + 1]) + b'{"type":"torn')
    go_on(tuner, 12, config_space={"x": uniform(0.0, 0.6), "epochs": EPOCHS})
    assert replay(path, last_scheduler(path.parent)) == []
    go_on(tuner, 14)  # the whole record is gone through once more
    assert replay(path, last_scheduler(path.parent)) == []
    trials = load_experiment(tuner.name).trials
    assert len(trials) == 14
    assert {trial.status for trial in trials.values()} <= {"Completed", "Paused", "Stopped"}
    assert all(trial.config["x"] <= 0.6 for i, trial in trials.items() if trial.status != "Stopped" or i >= 6)


# ---- another scheduler -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stopping", "promotion", "promotion3"])
def test_rungs_and_paused_trials_are_those_of_the_scheduler_before(train: Path, kind: str) -> None:
    """A scheduler that was fed the record knows what the one knew that wrote it."""
    made = scheduler(kind)
    tuner = run(train, kind, 12, made)
    another = scheduler(kind, random_seed=6)
    go_on(tuner, 12, scheduler=another, force=True)
    assert len(marks(tuner.tuner_path)) == 1
    assert isinstance(made, ASHA)
    assert isinstance(another, ASHA)

    def known(scheduler: ASHA) -> Any:
        rungs = {level: sorted(entries) for level, entries in scheduler.terminator.snapshot_rungs(0)}
        paused = sorted((p.trial_id, p.level) for p in scheduler.terminator.paused_trials())
        return rungs, paused, set(scheduler.state_dict()["searcher"]["excluded"])

    rungs, paused, excluded = known(made)
    kept = marks(tuner.tuner_path)[0]["kept_back"]
    assert kept is not None  # the suggestion that was not started stays
    if kind != "promotion3":  # brackets differ, and with them the rungs that a trial enters
        assert known(another)[0] == rungs
    assert known(another)[1:] == (paused, excluded)


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
@pytest.mark.parametrize("searcher_data", ["rungs", "all"])
def test_what_is_adopted_is_what_was_decided(kind: str, searcher_data: str) -> None:
    """A scheduler that learns of decisions is where the one is that made them."""

    def make() -> HyperbandScheduler:
        return HyperbandScheduler(
            SPACE,
            "loss",
            type=kind,
            max_resource_attr="epochs",
            reduction_factor=2,
            random_seed=3,
            searcher_data=searcher_data,
            cost_attr="cost",
        )

    for n_events in (5, 30, 120):
        decides, learns = make(), make()

        def curve(config: dict[str, Any], epoch: int) -> dict[str, Any]:
            return {"loss": (config["x"] - 0.3) ** 2 + 1 / epoch, "cost": 2.0 * epoch}

        events = TrialSimulation(decides, curve, n_trials=1000, fails_at={3: 2, 6: 5}).run(n_events)
        trials: dict[int, Trial] = {}
        for event in events:
            if event.kind == "start":
                assert event.config is not None
                config = {**event.config, "epochs": EPOCHS}
                trials[event.trial_id] = Trial(event.trial_id, config, datetime(2020, 1, 1))
                learns.suggest_enqueued(event.trial_id, {"x": config["x"]})
                learns.on_trial_add(trials[event.trial_id])
                continue
            trial = trials[event.trial_id]
            result = {**curve(trial.config, event.resource or 1), "epoch": event.resource}
            if event.kind == "resume":
                learns.on_trial_resume(trial)
            elif event.kind == "report":
                assert event.answer is not None
                learns.adopt_result(trial, result, event.answer)
                if event.answer != "CONTINUE":
                    learns.on_trial_remove(trial)
            elif event.kind == "complete":
                learns.on_trial_complete(trial, result)
            else:
                trial.end_reason = "exit 1"
                learns.on_trial_error(trial)
        assert len(trials) > 3
        states = [made.state_dict() for made in (decides, learns)]
        assert states[0]["brackets"]["rung_systems"] == states[1]["brackets"]["rung_systems"]
        assert states[0]["trials"] == states[1]["trials"]
        assert states[0]["searcher"]["excluded"] == states[1]["searcher"]["excluded"]


def test_other_arguments_need_force(train: Path) -> None:
    tuner = run(train, "promotion")
    other = scheduler("promotion", random_seed=7)
    with pytest.raises(ExperimentError, match=r"line \d+: .* made with the same arguments as before"):
        Tuner.resume(tuner.name, scheduler=other).run()
    assert Tuner.resume(tuner.name).scheduler.random_seed == 5  # what did not suit is not remembered
    go_on(tuner, 12, scheduler=scheduler("promotion", random_seed=7), force=True)
    assert marks(tuner.tuner_path)[0]["reason"] == "another scheduler was given"
    assert replay(tuner.tuner_path, scheduler("promotion", random_seed=7)) == []
    assert len(load_experiment(tuner.name).trials) == 12
    go_on(tuner, 14)
    assert replay(tuner.tuner_path, scheduler("promotion", random_seed=7)) == []


def test_force_without_need_changes_nothing(train: Path) -> None:
    for given in ({}, {"scheduler": scheduler("promotion")}):
        tuner, other = run(train, "promotion", 4), run(train, "promotion", 8)
        go_on(tuner, 8, force=True, **given)
        assert not marks(tuner.tuner_path)
        assert suggested(tuner.tuner_path) == suggested(other.tuner_path)


def test_asha_after_random_search(train: Path) -> None:
    tuner = run(train, "random", 6)
    go_on(tuner, 16, scheduler=scheduler("promotion"), force=True)
    trials = load_experiment(tuner.name).trials
    assert all(trials[i].status == "Completed" for i in range(6))
    assert {trials[i].num_results for i in range(6, 16)} <= {1, 2, 4, EPOCHS}
    assert sum(trials[i].num_results == 1 for i in range(6, 16)) >= 3  # compared with the six from the start
    assert replay(tuner.tuner_path, scheduler("promotion")) == []
    assert load_experiment(tuner.name).metadata["scheduler_name"] == "ASHA"
    assert len({trial.config["x"] for trial in trials.values()}) == 16
    # And back.
    go_on(tuner, 18, scheduler=scheduler("random", random_seed=9), force=True)
    trials = load_experiment(tuner.name).trials
    assert [trials[i].num_results for i in (16, 17)] == [EPOCHS, EPOCHS]
    assert replay(tuner.tuner_path, scheduler("random", random_seed=9)) == []


def test_a_trial_of_random_search_goes_on_under_asha(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [{"x": x} for x in (0.3, 0.9)]
    tuner = run(
        train,
        "",
        made=scheduler("random", points_to_evaluate=points),
        stop_criterion=StoppingCriterion(max_num_evaluations=EPOCHS + 3),
    )
    assert load_experiment(tuner.name).trials[1].end_reason == "interrupted"
    go_on(tuner, 2, scheduler=scheduler("promotion"), force=True)
    trial = load_experiment(tuner.name).trials[1]
    assert (trial.status, trial.num_results) == ("Paused", 4)  # at the next rung
    epochs = load_experiment(tuner.name).results.query("trial_id == 1").epoch
    assert list(epochs) == [1, 2, 3, 4]


def test_metric_and_mode_stay(train: Path) -> None:
    tuner = run(train, "random", 2)
    for other, error in (
        (RandomSearch(SPACE, metric="accuracy"), r"scheduler has metric \['accuracy'\], the experiment \['loss'\]"),
        (RandomSearch(SPACE, metric="loss", mode="max"), "scheduler has mode 'max', the experiment 'min'"),
    ):
        with pytest.raises(ExperimentError, match=error):
            Tuner.resume(tuner.name, scheduler=other, force=True)


class Stubborn(FIFOScheduler):
    """A scheduler that cannot be made from the record."""

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        return TrialSuggestion.start_suggestion({"x": (10 + trial_id) / 64})


def test_a_scheduler_that_cannot_be_rebuilt_is_needed_from_the_last_change_on_only(train: Path) -> None:
    tuner = run(train, "", 3, Stubborn(SPACE, "loss", random_seed=1))
    new = {"x": uniform(0.0, 0.5), "epochs": EPOCHS}
    with pytest.raises(ExperimentError, match="scheduler has to be given"):
        Tuner.resume(tuner.name, config_space=new)
    go_on(tuner, 5, scheduler=scheduler("promotion"), force=True)
    go_on(tuner, 7)
    go_on(tuner, 9, config_space=new)
    assert len(load_experiment(tuner.name).trials) == 9
    # Now the other way round.
    own = Stubborn(new, "loss", random_seed=1)
    go_on(tuner, 11, scheduler=own, force=True)
    with pytest.raises(ExperimentError, match="scheduler has to be given"):
        Tuner.resume(tuner.name)
    go_on(tuner, 12, scheduler=Stubborn(new, "loss", random_seed=1))
    assert [trial.config["x"] for trial in load_experiment(tuner.name).trials.values()][10:] == [20 / 64, 21 / 64]


# ---- several changes, kills, workers ---------------------------------------------------------------------


def lines(folder: Path) -> int:
    try:
        return (folder / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def change_and_kill(tmp_path: Path, train: Path, kind: str, kills: int, seed: int) -> Path:
    """Run an experiment with three changes; each of its parts gets SIGKILL, and the same call is made again."""
    launch = tmp_path / "launch.py"
    launch.write_text(LAUNCH.format(here=str(Path(__file__).parent), train=str(train)))
    rng = random.Random(seed)
    folder = Path(os.environ["STHYPER_FOLDER"]) / "changed"
    for step in range(4):
        left = kills
        while True:
            command = [sys.executable, str(launch), kind, str(step)]
            if step == 0 and lines(folder):
                command = [sys.executable, "-c", "from sthyper import Tuner; Tuner.resume('changed').run()"]
            with open(tmp_path / "tuner.txt", "a") as out:
                tuner = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            try:
                goal = lines(folder) + rng.randrange(1, 30) if left else sys.maxsize
                while tuner.poll() is None and lines(folder) < goal:
                    time.sleep(0.002)
                killed = tuner.poll() is None
                if killed:
                    time.sleep(rng.uniform(0.0, 0.01))
                    os.kill(tuner.pid, signal.SIGKILL)
            finally:
                tuner.wait(60)
            left -= 1
            if not killed:
                assert tuner.returncode == 0, (tmp_path / "tuner.txt").read_text()
                break
    return folder


def check_changed(folder: Path) -> None:
    experiment = load_experiment(folder)
    assert len(experiment.trials) == 20
    assert {trial.status for trial in experiment.trials.values()} <= {"Completed", "Stopped", "Paused"}
    assert len(marks(folder)) == 3
    assert replay(folder, last_scheduler(folder)) == []
    epochs = experiment.results
    assert max(Counter(zip(epochs.trial_id, epochs.epoch, strict=True)).values()) == 1
    for trial_id in experiment.trials:
        own = list(epochs[epochs.trial_id == trial_id].epoch)
        assert own == list(range(1, len(own) + 1))
    parts = suggested(folder)
    assert all(config["x"] <= 0.6 for part in parts[1:] for config in part)
    assert all(config["x"] >= 0.1 for part in parts[2:] for config in part)
    assert all(("w" in config) == (part is parts[2]) for part in parts for config in part)
    assert experiment.trials[19].config["epochs"] == 12
    xs = [trial.config["x"] for trial in experiment.trials.values()]
    assert len(xs) == len({(x, trial.config.get("w")) for x, trial in zip(xs, experiment.trials.values(), strict=True)})


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kind", "seed"), [("promotion", 0), ("random", 1)])
def test_several_changes_and_kills(tmp_path: Path, train: Path, kind: str, seed: int) -> None:
    check_changed(change_and_kill(tmp_path, train, kind, kills=1, seed=seed))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_several_changes_and_more_kills(tmp_path: Path, train: Path, kind: str) -> None:
    check_changed(change_and_kill(tmp_path, train, kind, kills=3, seed=10))


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_another_number_of_workers(train: Path, monkeypatch: pytest.MonkeyPatch, n_workers: int) -> None:
    monkeypatch.setenv("PAUSE", "0.05")
    made = scheduler("promotion", grace_period=4)
    tuner = Tuner(LocalBackend(train), made, StoppingCriterion(max_num_evaluations=7), n_workers=3)
    tuner.run()
    assert [t.end_reason for t in load_experiment(tuner.name).trials.values()] == ["interrupted"] * 3
    monkeypatch.setenv("PAUSE", "0.01")
    resumed = Tuner.resume(tuner.name, n_workers=n_workers, stop_criterion=StoppingCriterion(max_num_trials_started=8))
    resumed.run()
    busy = most = 0
    sessions = 0
    for record in read_journal(tuner.tuner_path):
        sessions += record["type"] == "session"
        if sessions == 2 and record["type"] in ("start", "resume"):
            busy += 1
            most = max(most, busy)
        elif sessions == 2 and record["type"] == "status":
            busy -= 1
    assert most == n_workers
    trials = load_experiment(tuner.name).trials
    assert len(trials) == 8
    assert {trial.status for trial in trials.values()} <= {"Completed", "Paused"}
    assert replay(tuner.tuner_path, made_again := scheduler("promotion", grace_period=4)) == []
    assert made_again is not made
    rows = load_experiment(tuner.name).results
    assert max(Counter(zip(rows.trial_id, rows.epoch, strict=True)).values()) == 1


# ---- what others make of it ------------------------------------------------------------------------------


def test_another_experiment_learns_from_it(train: Path, recwarn: pytest.WarningsRecorder) -> None:
    tuner = run(train, "promotion", 6)
    new = SPACE | {"w": choice(["a", "b"])}
    go_on(tuner, 10, config_space=new, new_defaults={"w": "b"})
    go_on(tuner, 12, config_space=SPACE | {"w": "a"})
    heir = Tuner(
        LocalBackend(train, launch="inline"),
        scheduler("promotion", new),
        StoppingCriterion(max_num_trials_started=1),
        1,
        warm_start=[tuner.name],
    )
    heir.run()
    learnt = [r["config"] for r in read_journal(heir.tuner_path) if r["type"] == "added_result"]
    past = load_experiment(tuner.name).trials
    assert {config["x"] for config in learnt} == {trial.config["x"] for trial in past.values()}
    assert all(c["w"] == "b" for c in learnt if c["x"] in {past[i].config["x"] for i in range(6)})
    # Where w is a constant, only those count that had its value.
    with pytest.warns(UserWarning, match=r"warm_start: \d+ of 12 configurations are skipped: \d+ outside the space"):
        fixed = Tuner(
            LocalBackend(train, launch="inline"),
            scheduler("promotion", SPACE | {"w": "a"}),
            StoppingCriterion(max_num_trials_started=1),
            1,
            warm_start=[tuner.name],
        )
    fixed.run()
    learnt = [r["config"] for r in read_journal(fixed.tuner_path) if r["type"] == "added_result"]
    expected = {trial.config["x"] for trial in past.values() if trial.config.get("w", "b") == "a"}
    assert {config["x"] for config in learnt} == expected


def test_what_happened_is_logged(train: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuner = run(train, "promotion")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sthyper"):
        go_on(tuner, 8, config_space={"x": uniform(0.0, 0.4), "epochs": EPOCHS})
    stopped = sum(bool(trial.end_reason) for trial in load_experiment(tuner.name).trials.values())
    assert stopped
    text = "a fresh scheduler decides from here on (config_space has changed in x); it knows 8 trials"
    assert f"{text}; {stopped} are stopped, outside the configuration space" in caplog.messages
    caplog.clear()
    go_on(tuner, 9)
    assert not any("fresh scheduler" in message for message in caplog.messages)
