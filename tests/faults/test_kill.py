"""The tuner is killed by SIGKILL at random moments, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killing import KINDS, check_equal, check_whole, make_tuner, run_and_kill

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal

OFTEN, HOUR = 0.1, 3600.0
"""Seconds between two snapshots; with an hour the journal alone carries the experiment."""


def kill_and_check(tmp_path: Path, kind: str, interval: float, kills: int) -> list[str]:
    killed = run_and_kill(tmp_path, kind, kills, interval=interval)
    check_whole(killed)
    return killed.moments


@pytest.mark.parametrize(("kind", "interval", "kills"), [("promotion3", OFTEN, 2), ("stopping", HOUR, 3)])
def test_a_killed_tuner_loses_nothing(tmp_path: Path, kind: str, interval: float, kills: int) -> None:
    assert len(kill_and_check(tmp_path, kind, interval, kills)) == kills


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "interval"), [*zip(KINDS, [HOUR, OFTEN, HOUR, HOUR, OFTEN], strict=True)])
def test_a_killed_tuner_loses_nothing_fifteen_times(tmp_path: Path, kind: str, interval: float) -> None:
    assert len(kill_and_check(tmp_path, kind, interval, 3)) == 3


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("interval", [OFTEN, HOUR])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_tuner_loses_nothing_fifty_times(tmp_path: Path, kind: str, interval: float) -> None:
    assert len(kill_and_check(tmp_path, kind, interval, 5)) == 5


def check_against_undisturbed(tmp_path: Path, kind: str, interval: float, kills: int) -> None:
    killed = run_and_kill(tmp_path, kind, kills, n_workers=1, interval=interval)
    check_whole(killed)
    undisturbed = make_tuner(kind, n_workers=1)
    undisturbed.run()
    check_equal(killed.folder, undisturbed.tuner_path)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "interval"), [*zip(KINDS, [OFTEN, HOUR, OFTEN, OFTEN, HOUR], strict=True)])
def test_with_one_worker_it_does_what_the_undisturbed_one_does(tmp_path: Path, kind: str, interval: float) -> None:
    check_against_undisturbed(tmp_path, kind, interval, kills=3)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("interval", [OFTEN, HOUR])
@pytest.mark.parametrize("kind", KINDS)
def test_with_one_worker_and_five_kills_too(tmp_path: Path, kind: str, interval: float) -> None:
    check_against_undisturbed(tmp_path, kind, interval, kills=5)


def test_killed_while_it_wrote_its_first_lines(tmp_path: Path) -> None:
    """Wherever the writing of the first lines was cut, the experiment can be started, or resumed."""

    def new() -> Tuner:
        script = tmp_path / "report.py"
        script.write_text("from sthyper import Reporter\nReporter()(loss=1.0)\n")
        search = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=1)
        criterion = StoppingCriterion(max_num_trials_started=1)
        backend = LocalBackend(script, launch="inline")
        return Tuner(backend, search, criterion, n_workers=1, tuner_name="cut", suffix_tuner_name=False)

    tuner = new()
    tuner.run()
    journal = tuner.tuner_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["type"] for line in lines[:3]] == ["journal", "metadata", "session"]
    for whole in range(4):
        for half in (b"", lines[whole][:-5]):
            journal.write_bytes(b"".join(lines[:whole]) + half)
            if whole < 3:
                with pytest.raises(ExperimentError, match="no record to go on from; start a new experiment"):
                    Tuner.resume("cut")
                experiment = new().run()
                assert sum(r["type"] == "session" for r in read_journal(journal)) == 1
            else:
                with pytest.raises(ExperimentError, match="holds an experiment already"):
                    new().run()
                experiment = Tuner.resume("cut").run()
            assert [trial.status for trial in experiment.trials.values()] == ["Completed"]
            assert len(experiment.results) == 1
