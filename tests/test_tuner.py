"""Whole experiments in the tuner's own process (``launch="inline"``): counts, decisions, failures, the record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ExperimentError, ReportError, TrialFailed
from sthyper.experiment import load_experiment
from sthyper.journal import read_journal
from sthyper.results_callback import StoreResultsCallback
from sthyper.schedulers import SchedulerDecision, TrialScheduler, TrialSuggestion
from sthyper.stopping_criterion import PlateauStopper
from sthyper.testing import canonical_journal, replay
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

SPACE = {"x": uniform(0.0, 1.0), "n": randint(1, 5), "epochs": 9}
CURVE = """
    import argparse
    from sthyper import Reporter
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=float)
    parser.add_argument("--n", type=int)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    report = Reporter()
    for epoch in range(1, args.epochs + 1):
        report(epoch=epoch, loss=args.x + 1 / epoch)
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a training script and return its path."""

    def write(code: str, name: str = "train.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return path

    return write


def tune(script: Path, scheduler: TrialScheduler, criterion: Any, **options: Any) -> Any:
    backend = LocalBackend(script, launch="inline", **options.pop("backend", {}))
    tuner = Tuner(backend, scheduler, criterion, n_workers=1, **options)
    return tuner, tuner.run()


def reports(path: Path) -> list[dict[str, Any]]:
    return [r for r in read_journal(path) if r["type"] == "report"]


def random_search(**options: Any) -> RandomSearch:
    return RandomSearch(SPACE, metric="loss", random_seed=1, **options)


def asha(kind: str = "promotion", seed: int = 1, **options: Any) -> ASHA:
    return ASHA(
        SPACE,
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type=kind,
        random_seed=seed,
        **options,
    )


# ---- the record ----------------------------------------------------------------------------------------


def test_random_search_leaves_a_complete_record(write: Callable[..., Path]) -> None:
    tuner, experiment = tune(write(CURVE), random_search(), StoppingCriterion(max_num_trials_started=4))
    frame = experiment.results
    assert len(frame) == 36
    expected = {
        "trial_id",
        "epoch",
        "loss",
        "config_x",
        "config_n",
        "config_epochs",
        "st_tuner_time",
        "st_decision",
        "st_scheduler_decision",
        "st_status",
        "st_worker_time",
        "st_worker_iter",
        "st_worker_timestamp",
        "st_run",
        "st_seed",
    }
    assert expected <= set(frame.columns)
    best = experiment.best_config()
    trial_id, config = tuner.best_config()
    assert best["trial_id"] == trial_id
    assert {k: best[f"config_{k}"] for k in config} == config
    assert best["loss"] == pytest.approx(frame["loss"].min())
    files = {p.name for p in tuner.tuner_path.iterdir()}
    assert {"journal.jsonl", "metadata.json", "results.csv.zip", "trials"} <= files
    assert "lock" not in files
    assert json.loads((tuner.tuner_path / "trials" / "0" / "config.json").read_text())["epochs"] == 9
    metadata = json.loads((tuner.tuner_path / "metadata.json").read_text())
    assert metadata["scheduler_name"] == "RandomSearch"
    assert metadata["metric_names"] == ["loss"]
    again = load_experiment(tuner.name)
    assert again.best_config() == best
    assert replay(tuner.tuner_path, random_search()) == []


def test_every_trial_has_its_own_seed(write: Callable[..., Path]) -> None:
    script = write("""
        import sys
        from sthyper import Reporter
        report = Reporter()
        given = int(sys.argv[sys.argv.index("--seed") + 1])
        report(loss=1.0, seed=report.seed, given=given)
    """)
    scheduler = RandomSearch({**SPACE, "seed": None}, metric="loss", random_seed=3)
    _, experiment = tune(script, scheduler, StoppingCriterion(max_num_trials_started=3))
    frame = experiment.results
    assert frame["seed"].nunique() == 3
    assert (frame["seed"] == frame["given"]).all()
    assert (frame["seed"] == frame["st_seed"]).all()
    assert (frame["config_seed"] == frame["seed"]).all()


def test_same_seed_same_journal_in_a_fresh_process_with_another_hash_seed(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    script = write(CURVE)
    launcher = write(
        f"""
        import sys
        from sthyper import StoppingCriterion, Tuner
        from sthyper.backend import LocalBackend
        from sthyper.baselines import ASHA
        from sthyper.config_space import choice, randint, uniform
        space = {{"x": uniform(0.0, 1.0), "n": randint(1, 5), "c": choice(["a", "b", "c"]), "epochs": 9}}
        scheduler = ASHA(space, metric="loss", resource_attr="epoch", max_resource_attr="epochs", type="promotion",
                         random_seed=7)
        Tuner(LocalBackend({str(script)!r}, launch="inline"), scheduler,
              StoppingCriterion(max_num_trials_started=12), n_workers=1, tuner_name="same",
              suffix_tuner_name=False).run()
        """,
        "launch.py",
    )
    script.write_text(script.read_text().replace("parse_args()", "parse_known_args()[0]"))
    journals = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        env = {**os.environ, "PYTHONHASHSEED": seed, "STHYPER_FOLDER": str(folder)}
        subprocess.run([sys.executable, str(launcher)], check=True, env=env, timeout=50)
        journals.append(canonical_journal(folder / "same"))
    assert journals[0] == journals[1]
    assert sum(r["type"] == "report" for r in journals[0]) > 20
    assert any(r["type"] == "resume" for r in journals[0])


# ---- exact counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_max_num_trials_started_is_exact_and_resumes_go_on(write: Callable[..., Path], k: int) -> None:
    tuner, _ = tune(write(CURVE), asha(reduction_factor=2), StoppingCriterion(max_num_trials_started=k))
    assert tuner.tuning_status.num_trials_started == k
    records = list(read_journal(tuner.tuner_path))
    asked = [r for r in records if r["type"] == "suggestion"]
    assert asked[-1]["action"] == "start"  # kept back
    assert sum(r["action"] == "start" for r in asked) == k + 1
    if k == 3:
        assert any(r["type"] == "resume" for r in records)


@pytest.mark.parametrize("k", [1, 10, 13])
def test_max_num_evaluations_is_exact(write: Callable[..., Path], k: int) -> None:
    tuner, experiment = tune(write(CURVE), random_search(), StoppingCriterion(max_num_evaluations=k))
    assert len(reports(tuner.tuner_path)) == k
    assert len(experiment.results) == k


@pytest.mark.parametrize("name", ["max_num_trials_completed", "max_num_trials_finished"])
def test_completed_and_finished_counts_are_exact(write: Callable[..., Path], name: str) -> None:
    tuner, _ = tune(write(CURVE), random_search(), StoppingCriterion(**{name: 3}))
    assert tuner.tuning_status.num_trials_started == 3
    assert tuner.tuning_status.num_trials_completed == 3


def test_metric_criterion_at_once_or_when_trials_are_done(write: Callable[..., Path]) -> None:
    at_once, _ = tune(write(CURVE), random_search(), StoppingCriterion(min_metric_value={"loss": 10.0}))
    assert len(reports(at_once.tuner_path)) == 1
    waiting, _ = tune(
        write(CURVE),
        random_search(),
        StoppingCriterion(min_metric_value={"loss": 10.0}),
        wait_trial_completion_when_stopping=True,
    )
    assert len(reports(waiting.tuner_path)) == 9
    assert waiting.tuning_status.num_trials_completed == 1


def test_a_plain_function_is_a_criterion(write: Callable[..., Path]) -> None:
    tuner, _ = tune(write(CURVE), random_search(), lambda status: status.num_trials_completed >= 2)
    assert tuner.tuning_status.num_trials_completed == 2


def test_wallclock_limit(write: Callable[..., Path]) -> None:
    script = write(CURVE.replace("report(epoch", "import time; time.sleep(0.05); report(epoch"))
    tuner, _ = tune(script, random_search(), StoppingCriterion(max_wallclock_time=0.5))
    assert 0.5 <= tuner.tuning_status.wallclock_time < 3.0


def test_an_exhausted_space_ends_the_experiment(write: Callable[..., Path]) -> None:
    scheduler = RandomSearch({"x": choice(["0.1", "0.2", "0.3"]), "epochs": 2}, metric="loss", random_seed=1)
    tuner, _ = tune(write(CURVE), scheduler, StoppingCriterion(max_num_trials_started=10))
    assert tuner.tuning_status.num_trials_completed == 3


def test_promotions_go_on_when_the_space_is_exhausted(write: Callable[..., Path]) -> None:
    space = {"x": choice(["0.1", "0.2", "0.3"]), "epochs": 9}
    scheduler = ASHA(
        space, metric="loss", resource_attr="epoch", max_resource_attr="epochs", type="promotion", random_seed=0
    )
    tuner, _ = tune(write(CURVE), scheduler, StoppingCriterion(max_wallclock_time=30.0))
    largest = max(r["metrics"]["epoch"] for r in reports(tuner.tuner_path))
    assert largest > 1


# ---- exactness at rungs --------------------------------------------------------------------------------

CHECKPOINTED = """
    import argparse, json, os
    from sthyper import Reporter
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=float)
    parser.add_argument("--n", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--st_checkpoint_dir")
    args = parser.parse_args()
    report = Reporter()
    path = os.path.join(args.st_checkpoint_dir, "epoch.json")
    done = 0
    if os.path.exists(path):
        with open(path) as file:
            done = json.load(file)
    trained = os.path.join(report.trial_dir, "trained")
    for epoch in range(done + 1, args.epochs + 1):
        with open(trained, "a") as file:
            file.write(f"{epoch}\\n")
        os.makedirs(args.st_checkpoint_dir, exist_ok=True)
        with open(path, "w") as file:
            json.dump(epoch, file)
        report(epoch=epoch, loss=args.x + 1 / epoch)
    with open(os.path.join(report.trial_dir, "after"), "w") as file:
        file.write(str(args.epochs))
"""


def test_promotion_pauses_exactly_and_is_invisible_to_the_script(write: Callable[..., Path]) -> None:
    tuner, experiment = tune(write(CHECKPOINTED), asha(), StoppingCriterion(max_num_trials_started=20))
    milestone: dict[int, int] = {}
    for record in read_journal(tuner.tuner_path):
        if record["type"] in ("start", "resume"):
            milestone[record["trial_id"]] = record["milestone"]
            assert record["config"]["epochs"] == 9
        if record["type"] == "report":
            assert record["metrics"]["epoch"] <= milestone[record["trial_id"]]
    assert set(milestone.values()) >= {1, 3}
    for trial_id in milestone:
        folder = tuner.tuner_path / "trials" / str(trial_id)
        epochs = [int(line) for line in (folder / "trained").read_text().split()]
        assert epochs == list(range(1, len(epochs) + 1))  # no epoch twice, none left out
        # The code after the loop ran exactly for those that reached the maximum, which knew the full length.
        assert (folder / "after").exists() == (len(epochs) == 9)
        assert experiment.trials[trial_id].status == ("Completed" if len(epochs) == 9 else "Paused")
    assert (experiment.results["config_epochs"] == 9).all()
    assert replay(tuner.tuner_path, asha()) == []


@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_the_maximum_is_no_stop(write: Callable[..., Path], kind: str) -> None:
    tuner, experiment = tune(write(CHECKPOINTED), asha(kind), StoppingCriterion(max_num_trials_completed=1))
    done = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["status"] == "Completed"]
    assert len(done) == 1
    folder = tuner.tuner_path / "trials" / str(done[0]["trial_id"])
    assert (folder / "after").read_text() == "9"
    frame = experiment.results
    last = frame[(frame["trial_id"] == done[0]["trial_id"]) & (frame["epoch"] == 9)].iloc[0]
    assert last["st_scheduler_decision"] == "STOP"
    assert last["st_decision"] == "CONTINUE"
    if kind == "stopping":
        stopped = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["status"] == "Stopped"]
        for record in stopped:
            if record["reason"] is None:
                assert not (tuner.tuner_path / "trials" / str(record["trial_id"]) / "after").exists()


def test_without_max_resource_attr_stop_stands_and_the_trial_is_completed(write: Callable[..., Path]) -> None:
    space = {"x": uniform(0, 1), "epochs": 30}
    with pytest.warns(UserWarning, match="max_t=3 is used"):
        scheduler = ASHA(space, metric="loss", resource_attr="epoch", max_t=3, random_seed=0)
    tuner, _ = tune(write(CHECKPOINTED), scheduler, StoppingCriterion(max_num_trials_completed=1))
    done = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["status"] == "Completed"]
    assert len(done) == 1
    epochs = [r["metrics"]["epoch"] for r in reports(tuner.tuner_path) if r["trial_id"] == done[0]["trial_id"]]
    assert epochs == [1, 2, 3]
    assert not (tuner.tuner_path / "trials" / str(done[0]["trial_id"]) / "after").exists()


def test_reports_beyond_the_maximum_are_stopped_and_failures_after_the_loop_count(write: Callable[..., Path]) -> None:
    beyond = write(CURVE.replace("args.epochs + 1)", "args.epochs + 5)"))
    tuner, experiment = tune(beyond, asha("stopping"), StoppingCriterion(max_num_trials_completed=1))
    assert max(r["metrics"]["epoch"] for r in reports(tuner.tuner_path)) == 10
    assert experiment.results["epoch"].max() == 9
    failing = write(CURVE + "\n    raise RuntimeError('after the loop')\n")
    with pytest.raises(TrialFailed, match="after the loop"):
        tune(failing, asha("stopping"), StoppingCriterion(max_num_trials_started=30), max_failures=0)


def test_a_script_without_checkpoints_is_ignored_until_it_catches_up(write: Callable[..., Path]) -> None:
    tuner, experiment = tune(write(CURVE), asha(), StoppingCriterion(max_num_trials_started=10))
    records = list(read_journal(tuner.tuner_path))
    ignored = [r for r in records if r["type"] == "decision" and r["scheduler_decision"] == "IGNORED"]
    assert ignored
    assert all(r["decision"] == "CONTINUE" for r in ignored)
    frame = experiment.results
    assert not frame.duplicated(["trial_id", "epoch"]).any()
    assert replay(tuner.tuner_path, asha()) == []


def test_repeated_reports_get_the_first_answer_and_warn_once(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    script = write(
        CURVE.replace("loss=args.x + 1 / epoch)", "loss=args.x + 1 / epoch); report(epoch=epoch, loss=-1.0)")
    )
    tuner, experiment = tune(script, asha("stopping"), StoppingCriterion(max_num_trials_completed=1))
    assert experiment.results["loss"].min() > 0
    assert experiment.best_config()["loss"] > 0
    for trial_id in range(tuner.tuning_status.num_trials_started):
        warnings = [m for m in caplog.messages if m.startswith(f"trial {trial_id}: several reports")]
        assert len(warnings) <= 1
    assert any("the first counts" in m for m in caplog.messages)


def test_nan_is_never_best_and_survives(write: Callable[..., Path]) -> None:
    script = write(CURVE.replace("loss=args.x + 1 / epoch", "loss=float('nan') if args.n < 3 else args.x"))
    tuner, experiment = tune(script, asha("stopping"), StoppingCriterion(max_num_trials_started=12))
    assert experiment.results["loss"].isna().any()
    assert experiment.best_config()["config_n"] >= 3
    _, config = tuner.best_config()
    assert config["n"] >= 3


# ---- failures ------------------------------------------------------------------------------------------

FAILING = CURVE.replace("report(epoch=epoch", "assert args.n != 2, 'n is two'; report(epoch=epoch")


def test_the_tuner_survives_failures_up_to_the_limit(write: Callable[..., Path]) -> None:
    scheduler = RandomSearch({"x": uniform(0, 1), "n": choice([1, 2]), "epochs": 2}, metric="loss", random_seed=1)
    tuner, _ = tune(write(FAILING), scheduler, StoppingCriterion(max_num_trials_started=8), max_failures=100)
    assert 0 < tuner.tuning_status.num_trials_failed < 8
    failed = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["status"] == "Failed"]
    assert {r["reason"] for r in failed} == {"exit 1"}
    assert "n is two" in "".join(tuner.trial_backend.stderr(failed[0]["trial_id"]))
    with pytest.raises(TrialFailed, match=r"(?s)more than max_failures=1.*n is two"):
        tune(write(FAILING), scheduler, StoppingCriterion(max_num_trials_started=50))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from sthyper import Reporter; Reporter()(epoch=1, los=0.5)", r"metric 'loss' is missing.*did you mean 'los'"),
        ("from sthyper import Reporter; Reporter()(loss=0.5)", r"epoch"),
        ("from sthyper import Reporter; Reporter()(epoch=1.5, loss=0.5)", r"epoch"),
        ("from sthyper import Reporter; Reporter()(epoch=0, loss=0.5)", r"epoch"),
        ("from sthyper import Reporter; Reporter()(epoch=2, loss=0.5)", r"epoch"),
        ("from sthyper import Reporter; Reporter()(epoch=1, loss=None)", r"'loss' is None"),
        ("print('hello')", r"ended without one"),
        ("import a_module_that_is_not_there", r"a_module_that_is_not_there"),
        ("import sys; sys.exit('no good')", r"exit 1"),
    ],
)
def test_bad_scripts_fail_with_a_remedy(write: Callable[..., Path], code: str, words: str) -> None:
    with pytest.raises(TrialFailed, match=f"(?s){words}"):
        tune(write(code), asha(), StoppingCriterion(max_num_trials_started=9), max_failures=0)


def test_running_out_of_memory_is_infeasible_not_a_failure(write: Callable[..., Path]) -> None:
    script = write(
        CURVE.replace("report(epoch=epoch", "\n        if args.n > 3: raise MemoryError\n        report(epoch=epoch")
    )
    tuner, _ = tune(script, random_search(), StoppingCriterion(max_num_trials_started=15), max_failures=0)
    reasons = {r["reason"] for r in read_journal(tuner.tuner_path) if r["type"] == "status"}
    assert reasons == {None, "out_of_memory"}
    with pytest.raises(TrialFailed, match="out_of_memory"):
        tune(
            script,
            random_search(),
            StoppingCriterion(max_num_trials_started=30),
            max_failures=0,
            count_out_of_memory=True,
        )
    always = write("raise MemoryError")
    with pytest.raises(ExperimentError, match="first 6 trials all ran out of memory"):
        tune(always, random_search(), StoppingCriterion(max_num_trials_started=30), max_failures=0)


def test_a_launcher_that_tunes_itself_is_told_so(write: Callable[..., Path]) -> None:
    script = write("""
        from sthyper import StoppingCriterion, Tuner
        from sthyper.backend import LocalBackend
        from sthyper.baselines import RandomSearch
        from sthyper.config_space import uniform
        scheduler = RandomSearch({"x": uniform(0, 1)}, metric="loss")
        Tuner(LocalBackend(__file__, launch="inline"), scheduler, StoppingCriterion(max_num_trials_started=1), 1).run()
    """)
    with pytest.raises(TrialFailed, match="the launcher itself"):
        tune(script, random_search(), StoppingCriterion(max_num_trials_started=1), max_failures=0)


def test_a_tuner_inside_a_distributed_rank_is_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ExperimentError, match="distributed rank"):
        tune(write(CURVE), random_search(), StoppingCriterion(max_num_trials_started=1))


def test_bad_arguments_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    script = write(CURVE)
    criterion = StoppingCriterion(max_num_trials_started=1)
    with pytest.raises(FileNotFoundError, match="did you mean 'train.py'"):
        LocalBackend(tmp_path / "trian.py")
    with pytest.raises(ValueError, match="did you mean 'inline'"):
        LocalBackend(script, launch="inlin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_workers must be at least 1"):
        Tuner(LocalBackend(script), random_search(), criterion, n_workers=0)
    with pytest.raises(TypeError, match="scheduler must be a TrialScheduler"):
        Tuner(LocalBackend(script), "asha", criterion, n_workers=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="my/name"):
        Tuner(LocalBackend(script), random_search(), criterion, n_workers=1, tuner_name="my/name")
    with pytest.raises(TypeError, match="metadata entry 'a'"):
        Tuner(LocalBackend(script), random_search(), criterion, n_workers=1, metadata={"a": object()})
    with pytest.raises(ValueError, match="n_workers must be 1"):
        Tuner(LocalBackend(script, launch="inline"), random_search(), criterion, n_workers=2).run()
    tuner, _ = tune(script, random_search(), criterion)
    with pytest.raises(ExperimentError, match="has been run"):
        tuner.run()
    named = Tuner(
        LocalBackend(script, launch="inline"),
        random_search(),
        criterion,
        n_workers=1,
        tuner_name=tuner.name,
        suffix_tuner_name=False,
    )
    with pytest.raises(ExperimentError, match="holds an experiment already"):
        named.run()


# ---- steering ------------------------------------------------------------------------------------------


class StopAfter(TunerCallback):
    def __init__(self, n: int, how: str) -> None:
        self.n, self.how = n, how

    def on_tuning_start(self, tuner: Tuner) -> None:
        self.tuner = tuner

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        self.n -= 1
        if self.n == 0:
            if self.how == "stop":
                threading.Thread(target=self.tuner.stop).start()
            else:
                os.kill(os.getpid(), getattr(signal, self.how))


@pytest.mark.parametrize("how", ["stop", "SIGINT", "SIGTERM", "SIGHUP"])
def test_stop_and_signals_end_the_experiment_in_order(write: Callable[..., Path], how: str) -> None:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    script = write(CURVE.replace("report(epoch", "import time; time.sleep(0.02); report(epoch"))
    backend = LocalBackend(script, launch="inline")
    tuner = Tuner(
        backend,
        random_search(),
        StoppingCriterion(max_num_trials_started=1000),
        n_workers=1,
        callbacks=[StopAfter(12, how)],
    )
    with pytest.warns(RuntimeWarning, match="ended early"):
        experiment = tuner.run()
    assert len(experiment.results) >= 12
    ends = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status"]
    assert ends[-1]["status"] == "Stopped"
    assert ends[-1]["reason"] == "interrupted"
    assert (tuner.tuner_path / "results.csv.zip").exists()
    assert {number: signal.getsignal(number) for number in old} == old


def test_everything_borrowed_is_put_back(write: Callable[..., Path]) -> None:
    script = write("""
        import os, signal, sys
        from sthyper import Reporter
        sys.argv.append("x"); sys.path.insert(0, "/nowhere"); os.environ["LEFT"] = "1"; os.chdir("/")
        signal.signal(signal.SIGUSR1, lambda *a: None)
        assert __name__ == "__main__" and sys.modules["__main__"].Reporter is Reporter
        Reporter()(loss=1.0)
    """)
    before = (list(sys.argv), list(sys.path), dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGUSR1))
    main = sys.modules["__main__"]
    tune(script, random_search(), StoppingCriterion(max_num_trials_started=2))
    after = (list(sys.argv), list(sys.path), dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGUSR1))
    assert after == before
    assert sys.modules["__main__"] is main


def test_silent_trials_end_as_hung_at_their_next_report(write: Callable[..., Path]) -> None:
    script = write(CURVE.replace("report(epoch", "import time; time.sleep(0.3 * (args.n > 2)); report(epoch"))
    tuner, _ = tune(
        script,
        random_search(),
        StoppingCriterion(max_num_trials_started=6),
        max_failures=10,
        backend={"trial_timeout": 0.2, "first_report_timeout": 0.2},
    )
    reasons = {r["trial_id"]: r["reason"] for r in read_journal(tuner.tuner_path) if r["type"] == "status"}
    configs = {r["trial_id"]: r["config"] for r in read_journal(tuner.tuner_path) if r["type"] == "start"}
    assert {i: "hung" if configs[i]["n"] > 2 else None for i in reasons} == reasons
    assert set(reasons.values()) == {None, "hung"}


# ---- schedulers of users -------------------------------------------------------------------------------


def test_a_slow_suggestion_is_made_in_a_thread(write: Callable[..., Path]) -> None:
    # One worker: the next suggestion is asked for while nothing runs; the thread's result arrives in order.
    scheduler = random_search()
    scheduler.searcher.slow = True
    threads = []
    get_config = scheduler.searcher.get_config

    def slow_get_config(trial_id: int) -> Any:
        threads.append(threading.current_thread().name)
        return get_config(trial_id)

    scheduler.searcher.get_config = slow_get_config  # type: ignore[method-assign]
    tuner, _ = tune(write(CURVE), scheduler, StoppingCriterion(max_num_trials_started=3))
    assert all(name.startswith("sthyper-suggest") for name in threads)
    assert replay(tuner.tuner_path, random_search()) == []


def test_replay_sees_another_seed_and_another_rule(write: Callable[..., Path]) -> None:
    tuner, _ = tune(write(CURVE), asha(), StoppingCriterion(max_num_trials_started=8))
    assert any("suggestion" in line for line in replay(tuner.tuner_path, asha(seed=2)))
    assert any("decision" in line for line in replay(tuner.tuner_path, asha("stopping")))


class Fixed(TrialScheduler):
    """A scheduler of one configuration; its decisions are given."""

    def __init__(self, decisions: list[str | Exception]) -> None:
        super().__init__({"x": uniform(0, 1), "n": randint(1, 5), "epochs": 3})
        self.decisions = decisions
        self.events: list[str] = []

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        return TrialSuggestion.start_suggestion({"x": 0.5, "n": 1}) if trial_id == 0 else None

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        self.events.append("result")
        decision = self.decisions.pop(0)
        if isinstance(decision, Exception):
            raise decision
        return decision

    def on_trial_add(self, trial: Trial) -> None:
        self.events.append("add")

    def on_trial_remove(self, trial: Trial) -> None:
        self.events.append("remove")

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self.events.append("complete")

    def on_trial_error(self, trial: Trial) -> None:
        self.events.append(f"error {trial.end_reason}")

    def metric_names(self) -> list[str]:
        return ["loss"]


@pytest.mark.parametrize(
    ("decisions", "events"),
    [
        (["CONTINUE"] * 3, ["add", "result", "result", "result", "complete"]),
        (["CONTINUE", "STOP"], ["add", "result", "result", "remove"]),
        (["PAUSE"], ["add", "result", "remove"]),
        (["CONTINUE", ReportError("bad value")], ["add", "result", "result", "error bad report: bad value"]),
    ],
)
def test_hooks_of_a_scheduler(write: Callable[..., Path], decisions: list[Any], events: list[str]) -> None:
    scheduler = Fixed(decisions)
    tune(write(CURVE), scheduler, StoppingCriterion(max_num_trials_started=5))
    assert scheduler.events == events


def test_an_error_of_the_scheduler_ends_the_experiment_with_its_record(write: Callable[..., Path]) -> None:
    scheduler = Fixed([SchedulerDecision.CONTINUE, RuntimeError("a bug")])
    tuner = Tuner(
        LocalBackend(write(CURVE), launch="inline"), scheduler, StoppingCriterion(max_num_trials_started=5), n_workers=1
    )
    with pytest.raises(RuntimeError, match="a bug"):
        tuner.run()
    assert len(reports(tuner.tuner_path)) == 2
    assert (tuner.tuner_path / "results.csv.zip").exists()
    assert not (tuner.tuner_path / "lock").exists()


# ---- the end of an experiment --------------------------------------------------------------------------


def test_evaluations_are_exact_while_running_trials_may_finish(write: Callable[..., Path]) -> None:
    criterion = StoppingCriterion(min_metric_value={"loss": 10.0}, max_num_evaluations=5)
    tuner, _ = tune(write(CURVE), random_search(), criterion, wait_trial_completion_when_stopping=True)
    assert len(reports(tuner.tuner_path)) == 5


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "__import__('asyncio').CancelledError"])
def test_any_exception_of_an_inline_trial_ends_the_trial_only(write: Callable[..., Path], error: str) -> None:
    script = write(f"from sthyper import Reporter\nReporter()(loss=1.0)\nraise {error}\n")
    tuner = Tuner(
        LocalBackend(script, launch="inline"),
        random_search(),
        StoppingCriterion(max_num_trials_started=3),
        n_workers=1,
        max_failures=9,
    )
    if error == "KeyboardInterrupt":  # the tuner's Ctrl-C
        with pytest.warns(RuntimeWarning, match="KeyboardInterrupt in the trial"):
            experiment = tuner.run()
        assert [t.end_reason for t in experiment.trials.values()] == ["interrupted"]
    else:
        experiment = tuner.run()
        assert [t.end_reason for t in experiment.trials.values()] == ["exit 1"] * 3
    assert (tuner.tuner_path / "results.csv.zip").exists()


class Raises(TunerCallback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    def fail(self, *arguments: Any) -> None:
        raise RuntimeError("a bug of a callback")


@pytest.mark.parametrize("hook", ["on_trial_result", "on_tuning_end", "on_loop_end"])
def test_an_error_of_a_callback_loses_nothing(write: Callable[..., Path], hook: str) -> None:
    tuner = Tuner(
        LocalBackend(write(CURVE), launch="inline"),
        random_search(),
        StoppingCriterion(max_num_trials_started=2),
        n_workers=1,
        callbacks=[Raises(hook), StoreResultsCallback()],
    )
    with pytest.raises(RuntimeError, match="a bug of a callback"):
        tuner.run()
    assert (tuner.tuner_path / "results.csv.zip").exists()
    experiment = load_experiment(tuner.name)
    assert {t.status.value for t in experiment.trials.values()} <= {"Completed", "Stopped"}
    assert experiment.end_reason is not None
    assert tuner.tuning_status.num_trials_running == 0


def test_a_plateau_ends_the_experiment(write: Callable[..., Path]) -> None:
    script = write(CURVE.replace("loss=args.x + 1 / epoch", "**({'loss': 1.0} if epoch < 9 else {'other': 1.0})"))
    tuner, _ = tune(script, random_search_of("loss"), PlateauStopper("loss", num_trials=4))
    assert tuner.tuning_status.num_trials_started in (4, 5)


def random_search_of(metric: str) -> TrialScheduler:
    class Lenient(RandomSearch):
        """Takes reports without the metric, too."""

        def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
            return SchedulerDecision.CONTINUE

        def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
            pass

    return Lenient(SPACE, metric=metric, random_seed=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preload": "torch"}, "preload"),
        ({"preload": 3}, "preload"),
        ({"cost_per_hour": -1.0}, "cost_per_hour"),
        ({"cost_per_hour": "1"}, "cost_per_hour"),
        ({"environment": {"A": 1}}, "environment"),
        ({"workdir": "/there/is/no/such/folder"}, "workdir"),
        ({"channel": "tcp:127.0.0.1:99999"}, "channel"),
        ({"channel": "udp"}, "channel"),
        ({"stop_grace": "long"}, "stop_grace"),
        ({"trial_timeout": -1}, "trial_timeout"),
        ({"threads_per_trial": 1.5}, "threads_per_trial"),
    ],
)
def test_bad_arguments_of_the_backend_are_named(
    write: Callable[..., Path], options: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        LocalBackend(write(CURVE), **options)


def test_more_bad_arguments_of_the_tuner(write: Callable[..., Path]) -> None:
    backend = LocalBackend(write(CURVE), launch="inline")
    criterion = StoppingCriterion(max_num_trials_started=1)
    for options, words in (
        ({"metadata": {"a": float("nan")}}, "metadata entry 'a'"),
        ({"metadata": [1]}, "metadata must be a dict"),
        ({"callbacks": TunerCallback()}, "callbacks must be a list"),
        ({"asynchronous_scheduling": "no"}, "asynchronous_scheduling"),
        ({"stop_criterion": StoppingCriterion}, "stop_criterion"),
    ):
        with pytest.raises(TypeError, match=words):
            Tuner(
                **{"trial_backend": backend, "scheduler": random_search(), "stop_criterion": criterion, "n_workers": 1}
                | options
            )
    lists = RandomSearch({"x": uniform(0, 1), "layers": [1, 2]}, metric="loss")
    with pytest.raises(ValueError, match="pass_args_as_json"):
        Tuner(backend, lists, criterion, n_workers=1)


def test_lists_travel_as_json(write: Callable[..., Path]) -> None:
    script = write("""
        import argparse
        from sthyper import Reporter
        from sthyper.utils import add_config_json_to_argparse, load_config_json
        parser = argparse.ArgumentParser()
        add_config_json_to_argparse(parser)
        config = load_config_json(vars(parser.parse_args()))
        Reporter()(loss=config["x"], layers=config["layers"])
    """)
    scheduler = RandomSearch({"x": uniform(0, 1), "layers": [1, {"a": 2}]}, metric="loss", random_seed=0)
    _, experiment = tune(
        script, scheduler, StoppingCriterion(max_num_trials_started=1), backend={"pass_args_as_json": True}
    )
    assert experiment.results["layers"][0] == [1, {"a": 2}]


def test_rewritten_maximum_over_scripts_that_end_at_their_milestone(write: Callable[..., Path]) -> None:
    script = write(CHECKPOINTED.replace("report = Reporter()", "report = Reporter(on_stop='return')"))
    tuner, experiment = tune(
        script, asha(), StoppingCriterion(max_num_trials_started=6), backend={"rewrite_max_resource": True}
    )
    for trial_id in experiment.trials:
        folder = tuner.tuner_path / "trials" / str(trial_id)
        trained = len((folder / "trained").read_text().split())
        # The script got the milestone as its length, and its code after the loop ran.
        assert int((folder / "after").read_text()) == trained
    assert (experiment.results["config_epochs"] == 9).all()
    assert replay(tuner.tuner_path, asha()) == []
