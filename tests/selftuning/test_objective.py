from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sthyper.report
from sthyper import tune
from sthyper.config_space import choice, loguniform, uniform
from sthyper.experiment import ExperimentResult
from sthyper.selftuning import Hyperparameters
from sthyper.selftuning.controls import FixedValues
from sthyper.selftuning.objective import SelfTuningObjective, self_tuning_objective
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import self_tune


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.0), nn.Linear(64, 10))


def accuracy(prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (prediction.argmax(1) == labels).double().mean()


def make_run(config: dict[str, Any]) -> SelfTuner:
    """Softmax regression on digits with a rate of input dropout."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs[:600] / 16, dtype=torch.float32), torch.tensor(labels[:600])
    h = Hyperparameters({"rate": uniform(0.0, 0.9)}, start={"rate": 0.3}, scale=config.get("scale", 1.0))
    tuned = config.get("tune", True)
    model = self_tune(make_network(), h, dropout={"*": "rate"})
    options = SelfTunerOptions(tune=tuned, weight_lr=config.get("lr", 0.05), hyper_lr=0.1 if tuned else None)
    control = FixedValues(h, {"rate": 0.2}) if config.get("control") else None
    return SelfTuner(
        model,
        h,
        DataLoader(TensorDataset(x[:300], y[:300]), 50, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(TensorDataset(x[300:], y[300:]), 100),
        options=options,
        metrics={"accuracy": accuracy},
        control=control,
    )


def rows_of(result: ExperimentResult, trial_id: int) -> list[dict[str, Any]]:
    table = result.results
    return table[table["trial_id"] == trial_id].to_dict("records")


def run_of(config: dict[str, Any], **changes: Any) -> SelfTuner:
    run = make_run(config)
    for name, value in changes.items():
        setattr(run, name, value)
    return run


# ---- in an experiment ----------------------------------------------------------------------------------------


def test_self_tuning_trials_report_losses_values_and_scales() -> None:
    objective = self_tuning_objective(make_run)
    space = {"lr": choice([0.02, 0.2]), "scale": uniform(0.5, 1.5), "epochs": 4}
    result = tune(objective, space, metric="val_loss", scheduler="random search", max_trials=2, launch="inline", seed=1)
    assert result.name.startswith("make-run")
    for trial_id in (0, 1):
        rows = rows_of(result, trial_id)
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert rows[-1]["val_loss"] < rows[0]["val_loss"]
        assert all(0 < row["accuracy"] < 1 and row["train_loss"] > 0 for row in rows)
        assert len({row["value/rate"] for row in rows}) > 1  # it was tuned
        assert rows[0]["scale/rate"] == pytest.approx(rows[0]["config_scale"], rel=1e-5)
        # The files say the same.
        folder = Path(result.path) / "trials" / str(trial_id)
        by_epoch, whole = Schedule.from_csv(folder / "schedule.csv"), Schedule.from_json(folder / "schedule.json")
        assert by_epoch.values("rate").tolist()[1:] == pytest.approx([row["value/rate"] for row in rows])
        assert whole.column("val_loss", "epoch").tolist()[1:] == pytest.approx([row["val_loss"] for row in rows])
        assert whole.n_steps == 4 * 6
    assert rows_of(result, 0)[0]["train_loss"] != rows_of(result, 1)[0]["train_loss"]


def test_the_best_model_of_a_search_loads() -> None:
    objective = self_tuning_objective(make_run)
    space = {"lr": loguniform(0.01, 0.3), "epochs": 3}
    result = tune(objective, space, metric="val_loss", scheduler="random search", max_trials=2, launch="inline", seed=0)
    run = make_run({"lr": result.best_config()["config_lr"]})
    network = make_network()
    result.load_best(network)
    assert SelfTuner(
        network, run.hyperparameters, run._train.loader, run._val.loader, options=SelfTunerOptions(tune=False)
    ).evaluate() == pytest.approx(result.best_value, rel=1e-5)
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "model.pt"
    restored = objective.restore(result.best_checkpoint.parent.parent)
    assert restored.evaluate() == pytest.approx(result.best_value, rel=1e-5)
    assert restored.epoch == 3
    # As a self-tuning model, too.
    assert result.load_best(run.model) is run.model
    assert run.evaluate() == pytest.approx(result.best_value, rel=1e-5)
    assert run.hyperparameters.values() == pytest.approx(restored.hyperparameters.values())


def test_plain_trials_have_the_fixed_values_of_their_configurations() -> None:
    space = {"rate": uniform(0.0, 0.9), "tune": False, "epochs": 3}
    points = [{"rate": 0.0}, {"rate": 0.85}]
    result = tune(
        self_tuning_objective(make_run),
        space,
        metric="val_loss",
        scheduler="random search",
        points_to_evaluate=points,
        max_trials=2,
        launch="inline",
    )
    first, second = rows_of(result, 0), rows_of(result, 1)
    assert [row["value/rate"] for row in first] == pytest.approx([0.0] * 3, abs=1e-6)
    assert [row["value/rate"] for row in second] == pytest.approx([0.85] * 3)
    assert "scale/rate" not in first[0]
    # A plain run by hand has the same losses.
    by_hand = make_run({"tune": False})
    by_hand.hyperparameters.set_values({"rate": 0.85})
    by_hand.fit(3)
    assert [record.val_loss for record in by_hand.history[1:]] == pytest.approx([row["val_loss"] for row in second])
    assert second[-1]["val_loss"] != pytest.approx(first[-1]["val_loss"], rel=1e-2)


def test_asha_stops_poor_trials() -> None:
    space = {"lr": choice([0.1, 1e-6]), "epochs": 9}
    points = [{"lr": 0.1}, {"lr": 1e-6}, {"lr": 0.1}]
    result = tune(
        self_tuning_objective(make_run),
        space,
        metric="val_loss",
        points_to_evaluate=points,
        max_trials=3,
        launch="inline",
        seed=0,
    )
    assert len(rows_of(result, 0)) == 9
    assert len(rows_of(result, 1)) == 1
    # It ended in order: its schedule and its model are there.
    folder = Path(result.path) / "trials" / "1"
    assert Schedule.from_json(folder / "schedule.json").n_epochs == 1
    assert (folder / "checkpoints" / "model.pt").exists()


def test_a_diverging_configuration_does_not_end_the_experiment() -> None:
    space = {"lr": choice([3e38, 0.1]), "epochs": 3}
    result = tune(
        self_tuning_objective(make_run),
        space,
        metric="val_loss",
        scheduler="random search",
        points_to_evaluate=[{"lr": 3e38}, {"lr": 0.1}],
        max_trials=2,
        max_failures=0,
        launch="inline",
    )
    assert not math.isfinite(rows_of(result, 0)[-1]["val_loss"])
    assert len(rows_of(result, 1)) == 3
    assert result.best_config()["config_lr"] == 0.1


@pytest.mark.slow
def test_in_processes_of_their_own() -> None:
    objective = self_tuning_objective(make_run)
    space = {"lr": loguniform(0.01, 0.3), "epochs": 3}
    found = [
        tune(objective, space, metric="val_loss", scheduler="random search", max_trials=2, seed=0, launch=launch)
        for launch in ("auto", "inline")
    ]
    for trial_id in (0, 1):
        processes, inline = (rows_of(result, trial_id) for result in found)
        for mine, other in zip(processes, inline, strict=True):
            assert mine["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


def test_it_travels_by_pickle() -> None:
    objective = self_tuning_objective(make_run, epochs=2, resource_attr="round", values=False, checkpoints=False)
    assert pickle.loads(pickle.dumps(objective)) == objective


# ---- one trial -----------------------------------------------------------------------------------------------


class Trial:
    """Stands for a trial of an experiment, which is answered as a test likes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.reports: list[dict[str, Any]] = []
        self._patch = monkeypatch
        monkeypatch.setenv("STHYPER_TRIAL_ID", "0")
        monkeypatch.setenv("STHYPER_TRIAL_DIR", str(folder))
        monkeypatch.setenv("STHYPER_CHECKPOINT_DIR", str(folder / "checkpoints"))
        monkeypatch.setenv("STHYPER_OBJECTIVE", json.dumps({"metric": "val_loss", "resource_attr": "epoch"}))

    def run(
        self, objective: SelfTuningObjective, config: dict[str, Any], number: int, answer: Callable[[int], str]
    ) -> None:
        """Start or resume the trial."""

        def answered(metrics: dict[str, Any]) -> str:
            decision = answer(metrics.get("epoch", 0))  # may raise, as a trial that is killed
            self.reports.append(metrics)
            return decision

        self._patch.setattr(sthyper.report, "_inline_answer", answered)
        self._patch.setenv("STHYPER_RUN", str(number))
        if self.reports:
            self._patch.setenv("STHYPER_LAST_RESOURCE", str(self.reports[-1]["epoch"]))
        torch.manual_seed(number)
        objective(config)

    def told(self) -> list[dict[str, Any]]:
        """Return the reports without what the Reporter adds."""
        return [{k: v for k, v in report.items() if not k.startswith("st_")} for report in self.reports]


CONFIG = {"epochs": 5}


def uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] = CONFIG) -> Trial:
    trial = Trial(tmp_path / "whole", monkeypatch)
    trial.run(self_tuning_objective(make_run), config, 0, lambda epoch: "CONTINUE")
    monkeypatch.delenv("STHYPER_LAST_RESOURCE", raising=False)
    return trial


def schedule_of(trial: Trial) -> torch.Tensor:
    schedule = Schedule.from_json(trial.folder / "schedule.json")
    columns = [schedule.column(name) for name in ("step", "epoch", "train_loss", "val_loss")]
    return torch.stack([*columns, schedule.values("rate"), schedule.hypergradients("rate")]).nan_to_num(-1.0)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_paused_trial_goes_on_as_if_it_had_not_been(
    tuned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, "tune": tuned, "rate": 0.4}
    whole = uninterrupted(tmp_path, monkeypatch, config)
    trial = Trial(tmp_path / "paused", monkeypatch)
    objective = self_tuning_objective(make_run)
    trial.run(objective, config, 0, lambda epoch: "PAUSE" if epoch == 2 else "CONTINUE")
    assert [report["epoch"] for report in trial.reports] == [1, 2]
    trial.run(objective, config, 1, lambda epoch: "CONTINUE")
    assert trial.told() == whole.told()
    assert torch.equal(schedule_of(trial), schedule_of(whole))


def test_a_trial_killed_before_its_report_does_that_epoch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = uninterrupted(tmp_path, monkeypatch)
    trial = Trial(tmp_path / "killed", monkeypatch)

    def killed(epoch: int) -> str:
        if epoch == 3:
            raise SystemExit
        return "CONTINUE"

    objective = self_tuning_objective(make_run)
    with pytest.raises(SystemExit):
        trial.run(objective, CONFIG, 0, killed)
    trial.run(objective, CONFIG, 1, lambda epoch: "CONTINUE")
    assert trial.told() == whole.told()
    assert torch.equal(schedule_of(trial), schedule_of(whole))


def test_without_checkpoints_a_resumed_trial_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path, monkeypatch)
    objective = self_tuning_objective(make_run, checkpoints=False)
    trial.run(objective, {"epochs": 2}, 0, lambda epoch: "PAUSE" if epoch == 1 else "CONTINUE")
    trial.run(objective, {"epochs": 2}, 1, lambda epoch: "CONTINUE")
    assert [report["epoch"] for report in trial.reports] == [1, 1, 2]
    assert not (tmp_path / "checkpoints").exists()


def test_names_in_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path, monkeypatch)
    monkeypatch.setenv("STHYPER_OBJECTIVE", json.dumps({"metric": "val_loss", "resource_attr": "round"}))
    objective = self_tuning_objective(make_run, epochs=1, resource_attr="round", values=False)
    trial.run(objective, {}, 0, lambda epoch: "CONTINUE")
    assert [list(report) for report in trial.told()] == [["round", "val_loss", "train_loss", "accuracy"]]


def test_by_hand_reports_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STHYPER_TRIAL_DIR", "STHYPER_CHECKPOINT_DIR", "STHYPER_CHANNEL"):
        monkeypatch.delenv(name, raising=False)
    events = []
    objective = self_tuning_objective(lambda config: run_of(config, callback=lambda event, _: events.append(event)))
    objective({"epochs": 2})
    reports = sthyper.report.retrieve(capsys.readouterr().out.splitlines())
    assert [report["epoch"] for report in reports] == [1, 2]
    assert events.count("epoch") == 2  # the callback of the run is called as before


def test_an_interrupt_ends_the_trial_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(event: str, tuner: SelfTuner) -> None:
        if tuner.step == 8:
            raise KeyboardInterrupt

    objective = self_tuning_objective(lambda config: run_of(config, callback=interrupt), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        objective({})


def test_other_errors_of_arithmetic_fail_the_trial() -> None:
    def fail(event: str, tuner: SelfTuner) -> None:
        if tuner.step == 8:
            raise FloatingPointError("overflow in my own code")

    objective = self_tuning_objective(lambda config: run_of(config, callback=fail), epochs=3)
    with pytest.raises(FloatingPointError, match="my own code"):
        objective({})


# ---- errors --------------------------------------------------------------------------------------------------


def test_wrong_configurations() -> None:
    objective = self_tuning_objective(make_run)
    with pytest.raises(ValueError, match=r"lacks the number of epochs, 'epochs' \(did you mean 'epoch'\?\)"):
        objective({"epoch": 3})
    with pytest.raises(ValueError, match=r"epochs must be a whole number of at least 1, got 2.5"):
        objective({"epochs": 2.5})
    with pytest.raises(ValueError, match=r"'rate' must be from 0.0 to 0.9, got 0.95"):
        objective({"epochs": 1, "rate": 0.95})
    with pytest.raises(ValueError, match=r"values of \['rate'\], and so has the control"):
        objective({"epochs": 1, "rate": 0.1, "control": True, "tune": False})


def test_wrong_runs(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="make_run must return a SelfTuner, got 3"):
        self_tuning_objective(lambda config: 3, epochs=1)({})  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="must leave reporter out"):
        self_tuning_objective(lambda config: run_of(config, reporter=print), epochs=1)({})
    with pytest.raises(FileNotFoundError, match="config.json"):
        self_tuning_objective(make_run).restore(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no checkpoint of a self-tuning run"):
        self_tuning_objective(make_run).restore(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"make_run": 3}, TypeError, "make_run must be a function"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a number of epochs, or a key"),
        ({"epochs": True}, TypeError, "epochs must be a number of epochs, or a key"),
        ({"resource_attr": ""}, TypeError, "resource_attr must be a name"),
        ({"resource_attr": "val_loss"}, ValueError, "the name of a loss"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        self_tuning_objective(**{"make_run": make_run, **options})
