"""``delete_checkpoints``: who loses its checkpoints, when, and who keeps them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.schedulers import SchedulerDecision, TrialScheduler, TrialSuggestion
from sthyper.trial import Trial
from sthyper.tuner_callback import TunerCallback

TRAIN = """
    import os, time
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    if "trials" in config:
        config = config["trials"][config["number"]]
    os.makedirs(report.checkpoint_dir, exist_ok=True)
    for epoch in range(int(report.last_resource or 0) + 1, config["epochs"] + 1):
        with open(os.path.join(report.checkpoint_dir, "weights"), "w") as file:
            file.write(f"{report.trial_id} {epoch}")
        time.sleep(config.get("wait", 0))
        report(epoch=epoch, **{name: float(config[name]) for name in ("loss", "accuracy") if name in config})
        if config.get("fail"):
            raise RuntimeError("as it was told to")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TRAIN))
    return path


class Listed(TrialScheduler):
    """Starts trials with given results; a trial whose loss is above a bound is stopped at its first report."""

    def __init__(
        self,
        configs: list[dict[str, Any]],
        metrics: dict[str, str] | None = None,
        stop_above: float = 1e9,
        sources: dict[int, int] | None = None,
    ) -> None:
        super().__init__({"number": randint(0, 99), "trials": [{"epochs": 1, **config} for config in configs]})
        self.configs = configs
        self.metrics = metrics or {"loss": "min"}
        self.stop_above = stop_above
        self.sources = sources or {}
        self.random_seed = 0
        self.to_copy: set[int] = set()  # until copied

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        if trial_id >= len(self.configs):
            return None
        return TrialSuggestion.start_suggestion({"number": trial_id}, self.sources.get(trial_id))

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        bad = result.get("loss", 0.0) > self.stop_above
        return SchedulerDecision.STOP if bad else SchedulerDecision.CONTINUE

    def on_trial_add(self, trial: Trial) -> None:
        self.to_copy = {i for i in self.to_copy if i != self.sources.get(trial.trial_id)}

    def may_copy_checkpoint(self, trial_id: int) -> bool:
        return trial_id in self.to_copy

    def metric_names(self) -> list[str]:
        return list(self.metrics)

    def metric_mode(self) -> str | list[str]:
        modes = list(self.metrics.values())
        return modes[0] if len(modes) == 1 else modes


class Watch(TunerCallback):
    """Notes after each end which trials have checkpoints."""

    def on_tuning_start(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self.kept: list[list[int]] = []
        self.at_completion: list[bool] = []

    def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
        self.at_completion.append(self.tuner.trial_backend.checkpoint_trial_path(trial.trial_id).exists())

    def on_loop_start(self) -> None:
        if not self.tuner.trial_backend.busy_trial_ids():
            kept = with_checkpoints(self.tuner)
            if kept not in self.kept[-1:]:
                self.kept.append(kept)


def with_checkpoints(tuner: Tuner) -> list[int]:
    return sorted(int(p.parent.name) for p in (tuner.tuner_path / "trials").glob("*/checkpoints"))


def make(script: Path, scheduler: TrialScheduler, *, delete: bool = True, **options: Any) -> Tuner:
    backend = LocalBackend(script, launch="inline", pass_args_as_json=True, delete_checkpoints=delete)
    criterion = options.pop("criterion", StoppingCriterion(max_num_trials_started=99))
    return Tuner(backend, scheduler, criterion, n_workers=1, **options)


def test_the_best_so_far_keeps_its_checkpoint(script: Path) -> None:
    losses = [0.5, 0.7, 0.3, 0.3, "nan", 0.4, 0.1]
    watch = Watch()
    tuner = make(script, Listed([{"loss": loss} for loss in losses]), callbacks=[watch])
    experiment = tuner.run()
    assert watch.kept == [[], [0], [2], [6]]
    assert watch.at_completion == [True] * 7  # a callback still finds it
    assert experiment.best_checkpoint == tuner.tuner_path / "trials" / "6" / "checkpoints" / "weights"
    assert experiment.best_checkpoint.read_text() == "6 1"
    assert len(experiment.results) == 7


def test_without_it_everything_stays(script: Path) -> None:
    tuner = make(script, Listed([{"loss": loss} for loss in (0.5, 0.7, 0.3)]), delete=False)
    tuner.run()
    assert with_checkpoints(tuner) == [0, 1, 2]


def test_stopped_and_failed_trials_lose_theirs(script: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"loss": 0.5, "epochs": 3},
        {"loss": 0.9, "epochs": 3},  # stopped
        {"loss": 0.6, "fail": True},
        {"loss": 0.2, "fail": True},  # failed, but the best
    ]
    tuner = make(script, Listed(configs, stop_above=0.8), max_failures=2)
    experiment = tuner.run()
    assert [experiment.trials[i].status for i in range(4)] == ["Completed", "Stopped", "Failed", "Failed"]
    assert with_checkpoints(tuner) == [3]
    assert experiment.best_checkpoint is not None


def test_the_best_in_any_metric_stays(script: Path) -> None:
    values = [(0.5, 0.5), (0.6, 0.9), (0.1, 0.1), (0.2, 0.8)]
    configs = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in values]
    tuner = make(script, Listed(configs, {"loss": "min", "accuracy": "max"}))
    tuner.run()
    assert with_checkpoints(tuner) == [1, 2]


def test_a_trial_that_is_overtaken_while_it_runs_goes_at_its_end(script: Path) -> None:
    configs = [{"loss": 0.5, "epochs": 6, "wait": 0.1}, {"loss": 0.3}]
    backend = LocalBackend(script, pass_args_as_json=True, delete_checkpoints=True, preload=False)
    tuner = Tuner(backend, Listed(configs), StoppingCriterion(max_num_trials_started=99), n_workers=2)
    experiment = tuner.run()
    assert len(experiment.results) == 7  # trial 0 went on with its checkpoint after trial 1 was better
    assert with_checkpoints(tuner) == [1]


def test_paused_trials_keep_theirs_and_go_on(script: Path) -> None:
    scheduler = ASHA(
        {"loss": uniform(0.0, 1.0), "epochs": 9},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=0,
    )
    tuner = make(script, scheduler, criterion=StoppingCriterion(max_num_trials_started=12))
    experiment = tuner.run()
    status = {i: trial.status for i, trial in experiment.trials.items()}
    completed = [i for i in status if status[i] == "Completed"]
    assert len(completed) >= 1
    assert experiment.best_trial_id in completed
    paused = [i for i in status if status[i] == "Paused"]
    assert with_checkpoints(tuner) == sorted({*paused, experiment.best_trial_id})


def test_interrupted_trials_keep_theirs(script: Path) -> None:
    class Interrupt(TunerCallback):
        def on_trial_result(self, trial: Trial, status: str, result: dict[str, Any], decision: str) -> None:
            if trial.trial_id == 1:
                os.kill(os.getpid(), signal.SIGINT)

    configs = [{"loss": 0.1}, {"loss": 0.5, "epochs": 50, "wait": 0.05}]
    backend = LocalBackend(script, pass_args_as_json=True, delete_checkpoints=True, preload=False)
    tuner = Tuner(
        backend, Listed(configs), StoppingCriterion(max_num_trials_started=99), n_workers=1, callbacks=[Interrupt()]
    )
    with pytest.warns(RuntimeWarning, match="ended early"):
        experiment = tuner.run()
    assert experiment.trials[1].end_reason == "interrupted"
    assert with_checkpoints(tuner) == [0, 1]


def test_what_was_set_aside_goes_too(tmp_path: Path, script: Path) -> None:
    backend = LocalBackend(script)
    backend.set_path(tmp_path)
    for _ in range(2):
        backend.checkpoint_trial_path(0).mkdir(parents=True)
        backend.set_checkpoint_aside(0)
    backend.checkpoint_trial_path(0).mkdir()
    assert len(list(backend.trial_path(0).iterdir())) == 3
    backend.delete_checkpoint(0)
    assert list(backend.trial_path(0).iterdir()) == []


@pytest.mark.parametrize("delete", [True, False])
def test_a_start_from_a_checkpoint_that_is_gone_is_warned_of(
    script: Path, delete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Listed([{"loss": 0.5}, {"loss": 0.1}, {"loss": 0.7}], sources={2: 0})
    make(script, scheduler, delete=delete).run()
    assert ("trial 2 starts from scratch: trial 0 has no checkpoint" in caplog.text) == delete


def test_a_command_that_keeps_checkpoints() -> None:
    script = 'mkdir -p {checkpoint_dir}; echo 1 > {checkpoint_dir}/w; echo "[tune-metric]: {{\\"loss\\": {x}}}"'
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=0)
    backend = LocalBackend(["sh", "-c", script], delete_checkpoints=True)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=6), n_workers=2)
    experiment = tuner.run()
    assert with_checkpoints(tuner) == [experiment.best_trial_id]


# ---- what the scheduler says ---------------------------------------------------------------------------------


class Copying(Listed):
    """Starts trials from copies of others that have ended, and says when it does no more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.to_copy = set(self.sources.values())

    def trials_checkpoints_can_be_removed(self) -> list[int]:
        done, self.done = getattr(self, "done", []), []
        return done

    def on_trial_add(self, trial: Trial) -> None:
        source = self.sources.get(trial.trial_id)
        super().on_trial_add(trial)
        if source is not None:
            self.done = [source]


def test_a_source_stays_until_it_has_been_copied(script: Path) -> None:
    watch = Watch()
    losses = (0.5, 0.1, 0.6, 0.7, 0.8)
    scheduler = Copying([{"loss": loss, "epochs": 2} for loss in losses], sources={3: 0})
    experiment = make(script, scheduler, callbacks=[watch]).run()
    # 0 stays though 1 is better, until 3 has got its copy; then 3 has nothing left to train but its second epoch.
    assert watch.kept == [[], [0], [0, 1], [1]]
    assert [len(experiment.results[experiment.results.trial_id == i]) for i in range(5)] == [2] * 5


def test_the_source_of_a_trial_that_is_kept_back_stays_for_the_resume(script: Path) -> None:
    configs = [{"loss": loss} for loss in (0.5, 0.1, 0.6)]
    first = make(script, Listed(configs, sources={2: 0}), criterion=StoppingCriterion(max_num_trials_started=2))
    first.run()
    # The suggestion to copy 0 came only after its checkpoint had gone with 1.
    assert with_checkpoints(first) == [1]
    scheduler = Copying(configs, sources={2: 0})
    second = make(script, scheduler, criterion=StoppingCriterion(max_num_trials_started=2), tuner_name="kept")
    second.run()
    assert with_checkpoints(second) == [0, 1]
    backend = LocalBackend(script, launch="inline", pass_args_as_json=True, delete_checkpoints=True)
    third = Tuner.resume(
        second.tuner_path,
        stop_criterion=StoppingCriterion(max_num_trials_started=3),
        trial_backend=backend,
        scheduler=Copying(configs, sources={2: 0}),
    )
    third.run()
    assert with_checkpoints(third) == [1]


def test_a_scheduler_that_names_an_unknown_trial_is_told(script: Path) -> None:
    class Wrong(Listed):
        def trials_checkpoints_can_be_removed(self) -> list[int]:
            return [7]

    with pytest.raises(ValueError, match=r"Wrong\.trials_checkpoints_can_be_removed\(\) names trial 7, which never"):
        make(script, Wrong([{"loss": 0.1}])).run()
    make(script, Wrong([{"loss": 0.1}]), delete=False, tuner_name="not-asked").run()


def promotion(mode: str = "min", **options: Any) -> ASHA:
    return ASHA(
        {"loss": uniform(0.0, 1.0), "nan_from": choice([1, 2, 3, 99]), "epochs": 9},
        metric="loss",
        mode=mode,
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=0,
        **options,
    )


ERRATIC = """
    import os
    from sthyper import Reporter
    report = Reporter()
    config = report.config
    os.makedirs(report.checkpoint_dir, exist_ok=True)
    for epoch in range(int(report.last_resource or 0) + 1, config["epochs"] + 1):
        with open(os.path.join(report.checkpoint_dir, "weights"), "w") as file:
            file.write(f"{report.trial_id} {epoch}")
        report(epoch=epoch, loss=float("nan") if epoch >= config["nan_from"] else config["loss"])
"""


@pytest.fixture
def erratic_script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(ERRATIC))
    return path


@pytest.mark.parametrize("mode", ["min", "max"])
def test_paused_trials_that_are_never_resumed_lose_theirs(erratic_script: Path, mode: str) -> None:
    tuner = make(erratic_script, promotion(mode), criterion=StoppingCriterion(max_num_trials_started=30))
    experiment = tuner.run()
    last = dict(zip(experiment.results.trial_id, experiment.results.loss, strict=True))
    paused = [i for i, trial in experiment.trials.items() if trial.status == "Paused"]
    lost = [i for i in paused if math.isnan(last[i])]
    assert len(lost) > 4
    kept = {*paused, experiment.best_trial_id} - ({*lost} - {experiment.best_trial_id})
    assert with_checkpoints(tuner) == sorted(kept)
    assert experiment.best_checkpoint is not None


def test_the_best_stays_though_it_is_paused_for_good(erratic_script: Path) -> None:
    # All are finite at their first epoch only, and the rung is at the second.
    points = [{"loss": loss, "nan_from": 2} for loss in (0.5, 0.1, 0.6, 0.7)]
    scheduler = promotion(rung_levels=[2, 4], points_to_evaluate=points)
    criterion = StoppingCriterion(max_num_trials_started=4)
    watch = Watch()
    tuner = make(erratic_script, scheduler, criterion=criterion, callbacks=[watch])
    experiment = tuner.run()
    assert [trial.status for trial in experiment.trials.values()] == ["Paused"] * 4
    assert watch.kept == [[], [0], [1]]
    assert experiment.best_trial_id == 1
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.read_text() == "1 2"


# ---- the disk ------------------------------------------------------------------------------------------------


class Count(TunerCallback):
    """Counts the folders with checkpoints at every report and in every round."""

    def on_tuning_start(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self.most = 0

    def on_trial_result(self, trial: Trial, status: str, result: dict[str, Any], decision: str) -> None:
        self.on_loop_start()

    def on_loop_start(self) -> None:
        self.most = max(self.most, len(with_checkpoints(self.tuner)))


def test_the_disk_does_not_fill_in_a_long_run(script: Path) -> None:
    counting = Count()
    scheduler = ASHA(
        {"loss": uniform(0.0, 1.0), "epochs": 9},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        random_seed=0,
    )
    backend = LocalBackend(script, pass_args_as_json=True, delete_checkpoints=True, preload=False)
    criterion = StoppingCriterion(max_num_trials_started=60)
    tuner = Tuner(backend, scheduler, criterion, n_workers=3, callbacks=[counting])
    experiment = tuner.run()
    assert len(experiment.trials) == 60
    assert 2 <= counting.most <= 3 + 1  # those that run, and the best
    assert with_checkpoints(tuner) == [experiment.best_trial_id]


# ---- killed and resumed --------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, {here!r})
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from test_delete_checkpoints import Listed

class Killed(LocalBackend):
    left = {at}

    def delete_checkpoint(self, trial_id):
        Killed.left -= 1
        if {late}:
            super().delete_checkpoint(trial_id)
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete_checkpoint(trial_id)

backend = Killed(Path({script!r}), launch="inline", pass_args_as_json=True, delete_checkpoints=True)
Tuner(
    backend, Listed({configs!r}, stop_above=0.8), StoppingCriterion(max_num_trials_started=99), n_workers=1,
    tuner_name="killed", suffix_tuner_name=False, snapshot_interval={interval}, max_failures=9,
).run()
"""


@pytest.mark.parametrize("interval", [0.0, 3600.0], ids=["with snapshots", "journal alone"])
@pytest.mark.parametrize("late", [False, True], ids=["before it deletes", "after it"])
@pytest.mark.parametrize("at", [1, 3])
def test_what_was_to_be_deleted_when_the_tuner_was_killed(
    at: int, late: bool, interval: float, script: Path, tmp_path: Path
) -> None:
    # Overtaken, stopped, failed, best, completed: each loses its checkpoints but one.
    configs: list[dict[str, Any]] = [
        {"loss": 0.5, "epochs": 2},
        {"loss": 0.9, "epochs": 3},
        {"loss": 0.4},
        {"loss": 0.6, "fail": True},
        {"loss": 0.1},
        {"loss": 0.7},
    ]
    here = str(Path(__file__).parent)
    program = KILLED.format(here=here, script=str(script), at=at, late=late, configs=configs, interval=interval)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert run.returncode == -signal.SIGKILL, run.stderr
    backend = LocalBackend(script, launch="inline", pass_args_as_json=True, delete_checkpoints=True)
    tuner = Tuner.resume("killed", trial_backend=backend, scheduler=Listed(configs, stop_above=0.8))
    watch = Watch()
    tuner.callbacks.append(watch)
    experiment = tuner.run()
    assert len(watch.kept[0]) <= 1  # it has caught up before anything runs
    assert with_checkpoints(tuner) == [4]
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.read_text() == "4 1"
    assert {i: trial.runs for i, trial in experiment.trials.items()} == dict.fromkeys(range(6), 1)


def test_interrupted_trials_keep_theirs_over_a_resume_and_lose_them_at_their_end(script: Path) -> None:
    class Progress(Listed):
        progress_attr = "epoch"

    class Interrupt(TunerCallback):
        def on_tuning_start(self, tuner: Tuner) -> None:
            self.tuner = tuner

        def on_trial_result(self, trial: Trial, status: str, result: dict[str, Any], decision: str) -> None:
            if trial.trial_id == 1:
                self.tuner.stop()

    configs = [{"loss": 0.1}, {"loss": 0.5, "epochs": 4, "wait": 0.05}]
    first = make(script, Progress(configs), callbacks=[Interrupt()])
    with pytest.warns(RuntimeWarning, match="ended early"):
        first.run()
    assert with_checkpoints(first) == [0, 1]
    backend = LocalBackend(script, launch="inline", pass_args_as_json=True, delete_checkpoints=True)
    tuner = Tuner.resume(first.tuner_path, trial_backend=backend, scheduler=Progress(configs), callbacks=[])
    experiment = tuner.run()
    assert len(experiment.results) == 5  # it went on where it was
    assert with_checkpoints(tuner) == [0]
