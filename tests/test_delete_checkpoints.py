"""``delete_checkpoints``: who loses its checkpoints, when, and who keeps them."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import randint, uniform
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

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        if trial_id >= len(self.configs):
            return None
        return TrialSuggestion.start_suggestion({"number": trial_id}, self.sources.get(trial_id))

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        bad = result.get("loss", 0.0) > self.stop_above
        return SchedulerDecision.STOP if bad else SchedulerDecision.CONTINUE

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
