"""TuneReportCallback: what it reports and when, how it ends trials, what it does to Trainer, files and console."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner as LightningTuner
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sthyper.callbacks import TuneReportCallback
from sthyper.checkpoints import best_checkpoint, list_checkpoints
from sthyper.report import TrialExit, retrieve

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|Checkpoint directory|No correct seed|hp_metric)"
)
ACC = {"acc": "val/acc"}


def resources(tuner: Any) -> list[int]:
    return [report["epoch"] for report in tuner.reports]


# ---- reports -------------------------------------------------------------------------------------------


def test_each_epoch_is_reported_once_after_training_and_validation(tuner: Any, fit: Callable[..., Any]) -> None:
    result = tuner.run_trial(lambda: fit(TuneReportCallback({"acc": "val/acc", "loss": "val/loss", "late": "late"})))
    assert resources(tuner) == [1, 2, 3, 4, 5, 6]
    assert [report["late"] for report in tuner.reports] == [0, 1, 2, 3, 4, 5], "what the module's last hook logs counts"
    assert all(0 <= report["acc"] <= 1 and report["loss"] > 0 for report in tuner.reports)
    assert tuner.reports[-1]["acc"] == pytest.approx(float(result.trainer.callback_metrics["val/acc"]))
    assert result.callback.decision == "CONTINUE"
    assert result.trainer.state.finished


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [("val/acc", {"val/acc"}), (["val/acc", "val/loss"], {"val/acc", "val/loss"}), (ACC, {"acc"})],
)
def test_metrics_are_named(
    metrics: Any, expected: set[str], make_tuner: Callable[..., Any], fit: Callable[..., Any]
) -> None:
    tuner = make_tuner(metric=min(expected))
    tuner.run_trial(lambda: fit(TuneReportCallback(metrics), max_epochs=1))
    assert set(tuner.curve[0]) == expected | {"epoch"}


def test_every_n_epochs_and_the_last(make_tuner: Callable[..., Any], fit: Callable[..., Any]) -> None:
    for options, expected in (
        ({}, [4, 6]),
        ({"max_steps": 35, "max_epochs": -1}, [4, 5]),
        ({"callbacks": [EarlyStopping("late", mode="min", patience=1, check_on_train_epoch_end=True)]}, [2]),
    ):
        tuner = make_tuner(str(expected))
        tuner.run_trial(lambda options=options: fit(TuneReportCallback(ACC, every_n_epochs=4), **options))
        assert resources(tuner) == expected


def test_validations_are_counted(tuner: Any, fit: Callable[..., Any]) -> None:
    callback = TuneReportCallback(ACC, on="validation_end")
    tuner.run_trial(lambda: fit(callback, max_epochs=2, val_check_interval=0.5))
    assert resources(tuner) == [1, 2, 3, 4], "the sanity check is none"


def test_epochs_without_validation_are_not_reported(make_tuner: Callable[..., Any], fit: Callable[..., Any]) -> None:
    tuner = make_tuner("a")
    tuner.run_trial(lambda: fit(check_val_every_n_epoch=3))
    assert resources(tuner) == [3, 6]
    tuner = make_tuner("b", metric="late")
    tuner.run_trial(lambda: fit(TuneReportCallback("late"), check_val_every_n_epoch=3, max_epochs=2))
    assert resources(tuner) == [1, 2]


def test_a_missing_metric_is_an_error_with_the_nearest_name(tuner: Any, fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"metric 'val_acc' was not logged \(did you mean 'val/acc'\?\).*val/loss"):
        tuner.run_trial(lambda: fit(TuneReportCallback({"acc": "val_acc"})))
    assert tuner.reports == []
    assert [bye.ok for bye in tuner.byes] == [False]


def test_a_missing_metric_can_be_skipped(tuner: Any, fit: Callable[..., Any]) -> None:
    callback = TuneReportCallback({"acc": "val/acc", "none": "nothing"}, missing="skip")
    result = tuner.run_trial(lambda: fit(callback, max_epochs=2))
    assert tuner.reports == []
    assert result.trainer.current_epoch == 2


def test_the_schedulers_metric_and_resource_must_be_reported(
    make_tuner: Callable[..., Any], fit: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"scheduler's metric 'accuracy' is not reported.*metrics=\{'accuracy': 'val/"):
        make_tuner("a", metric="accuracy").run_trial(fit)
    with pytest.raises(ValueError, match=r"resource_attr is 'step'.*reports 'epoch': pass resource_attr='step'"):
        make_tuner("b", resource_attr="step").run_trial(fit)
    tuner = make_tuner("c", resource_attr="step")
    tuner.run_trial(lambda: fit(TuneReportCallback(ACC, resource_attr="step"), max_epochs=2))
    assert [report["step"] for report in tuner.reports] == [1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": []}, ValueError, "at least one metric"),
        ({"metrics": 3}, TypeError, "name, a list of names or a dictionary"),
        ({"metrics": ""}, TypeError, "not empty"),
        ({"metrics": {"st_acc": "val/acc"}}, ValueError, "must not start with 'st_'"),
        ({"metrics": "epoch"}, ValueError, "resource_attr='epoch' is the name of a metric"),
        ({"metrics": "a", "on": "validation"}, ValueError, "did you mean 'validation_end'"),
        ({"metrics": "a", "keep": "best"}, ValueError, "keep must be one of"),
        ({"metrics": "a", "missing": "ignore"}, ValueError, "missing must be one of"),
        ({"metrics": "a", "every_n_epochs": 0}, ValueError, "at least 1, got 0"),
        ({"metrics": "a", "every_n_epochs": 1.5}, TypeError, "must be an int, got 1.5"),
        ({"metrics": "a", "resource_attr": ""}, TypeError, "resource_attr must be a name"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TuneReportCallback(**options)


# ---- stop and pause ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
def test_training_ends_in_order_and_the_next_entry_point_ends_the_process(
    decision: str, tuner: Any, fit: Callable[..., Any]
) -> None:
    seen: list[Any] = []

    def script() -> None:
        result = fit(enable_checkpointing=True)
        seen.append(result)
        for again in (
            lambda: result.trainer.test(result.model),
            lambda: result.trainer.validate(result.model),
            lambda: result.trainer.fit(result.model),
        ):
            with pytest.raises(TrialExit) as info:
                again()
            assert info.value.code == 0
            assert info.value.decision == decision

    tuner.run_trial(script, {2: decision})
    (result,) = seen
    assert resources(tuner) == [1, 2]
    assert result.model.steps == 2 * 7
    assert result.callback.decision == decision
    assert not any(not bye.ok for bye in tuner.byes)


def test_code_after_the_last_epoch_runs(tuner: Any, fit: Callable[..., Any]) -> None:
    def script() -> Any:
        result = fit(enable_checkpointing=True)
        return result.trainer.test(result.model, ckpt_path="best")

    (metrics,) = tuner.run_trial(script)
    assert 0 <= metrics["val/acc"] <= 1


def test_min_epochs_above_the_first_rung_is_warned_of(tuner: Any, fit: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="min_epochs=3.*keeps a trial training"):
        result = tuner.run_trial(lambda: fit(min_epochs=3), {1: "STOP"})
    assert result.trainer.current_epoch == 3
    assert resources(tuner) == [1], "nothing is reported, or saved, after the end was ordered"
    assert [c.resource for c in list_checkpoints(tuner.checkpoints)] == [1]


def test_an_exception_is_told_to_the_tuner(make_tuner: Callable[..., Any], fit: Callable[..., Any]) -> None:
    class Fail(EarlyStopping):
        error: BaseException = RuntimeError("diverged")

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise self.error

    for name, error, reason in (("a", RuntimeError("diverged"), None), ("b", SIGTERMException(), "killed")):
        tuner, stopper = make_tuner(name), Fail("val/loss", patience=9)
        stopper.error = error
        with pytest.raises(type(error)):
            tuner.run_trial(lambda stopper=stopper: fit(callbacks=[stopper]))
        assert resources(tuner) == [1]
        assert [(bye.ok, bye.reason) for bye in tuner.byes][:1] == [(False, reason)]


# ---- where nothing is reported -------------------------------------------------------------------------


def test_by_hand_reports_are_printed_and_nothing_is_written(
    fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = fit(max_epochs=2, enable_progress_bar=False, enable_model_summary=False)
    assert [report["epoch"] for report in retrieve(capsys.readouterr().out.splitlines())] == [1, 2]
    assert result.trainer.current_epoch == 2
    assert list(tmp_path.iterdir()) == []
    result.trainer.test(result.model, verbose=False)


def test_a_fast_dev_run_is_no_trial(tuner: Any, fit: Callable[..., Any]) -> None:
    tuner.run_trial(lambda: fit(fast_dev_run=True))
    assert tuner.reports == []
    assert not tuner.checkpoints.exists()


def test_searches_for_rate_and_batch_size_are_no_fits(
    tuner: Any, fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the ``fit`` of a resumed trial, which is restored all the same."""
    monkeypatch.chdir(tmp_path)
    first = tuner.run_trial(fit, {2: "PAUSE"})

    def script() -> Any:
        callback = TuneReportCallback(ACC)
        trainer = Trainer(
            max_epochs=6, logger=False, enable_checkpointing=False, callbacks=[callback], accelerator="cpu"
        )
        model = type(first.model)()
        search = LightningTuner(trainer)
        search.lr_find(model, num_training=12, early_stop_threshold=None, update_attr=False)
        search.scale_batch_size(model, max_trials=1, steps_per_trial=1, init_val=4)
        assert resources(tuner) == [1, 2]
        trainer.fit(model)

    tuner.run_trial(script)
    assert resources(tuner) == [1, 2, 3, 4, 5, 6]


def test_a_trainer_of_the_other_package_is_refused() -> None:
    class Trainer:
        __module__ = "pytorch_lightning.trainer.trainer"

    with pytest.raises(TypeError, match=r"got one of pytorch_lightning.*import lightning.pytorch as pl"):
        TuneReportCallback("acc").setup(Trainer(), LightningModule(), "fit")  # type: ignore[arg-type]


# ---- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "mode"), [("best+last", "max"), ("best+last", "min"), ("last", "max"), ("all", "max")]
)
def test_what_is_kept(keep: Any, mode: str, make_tuner: Callable[..., Any], fit: Callable[..., Any]) -> None:
    tuner = make_tuner(mode=mode)
    result = tuner.run_trial(lambda: fit(TuneReportCallback(ACC, keep=keep)))
    values = [report["acc"] for report in tuner.reports]
    best = 1 + values.index(max(values) if mode == "max" else min(values))
    expected = {"best+last": {best, 6}, "last": {6}, "all": set(range(1, 7))}[keep]
    assert {c.resource for c in list_checkpoints(tuner.checkpoints)} == expected
    assert {p.name for p in tuner.checkpoints.iterdir()} == {f"epoch={e:06d}.ckpt" for e in expected} | {"index.json"}
    found = best_checkpoint(tuner.checkpoints)
    assert found is not None
    assert found.name == f"epoch={best if keep != 'last' else 6:06d}.ckpt"
    again = type(result.model).load_from_checkpoint(found, weights_only=True)
    again.eval()
    logits = torch.cat([again.net(x) for x, _ in again.val_dataloader()])
    labels = torch.cat([y for _, y in again.val_dataloader()])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(values[int(found.stem[-6:]) - 1])


def test_the_best_value_survives_a_pause(tuner: Any, fit: Callable[..., Any]) -> None:
    """The incumbent is part of the state: a worse value after the pause does not become the best."""

    def script() -> Any:
        return fit(TuneReportCallback({"acc": "late"}))

    tuner.objective["mode"] = "min"  # `late` grows: the first epoch stays the best
    tuner.run_trial(script, {2: "PAUSE"})
    tuner.run_trial(script)
    assert [c.resource for c in list_checkpoints(tuner.checkpoints) if c.best] == [1]
    assert {c.resource for c in list_checkpoints(tuner.checkpoints)} == {1, 6}


def test_hyperparameters_that_cannot_be_loaded_are_named_at_the_first_save(
    tuner: Any, fit: Callable[..., Any], tmp_path: Path
) -> None:
    class Hyper(TuneReportCallback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.hparams["folder"] = tmp_path
            super().on_fit_start(trainer, pl_module)

    with pytest.raises(
        TypeError, match=r"hyper_parameters\['folder'\].*Path.*save_hyperparameters\(ignore=\['folder'\]\)"
    ):
        tuner.run_trial(lambda: fit(Hyper(ACC)))
    assert tuner.reports == []
    assert list_checkpoints(tuner.checkpoints) == []


def test_the_state_has_a_key_of_its_own() -> None:
    first, second = TuneReportCallback("a"), TuneReportCallback("a", on="validation_end")
    assert first.state_key.startswith("sthyper.TuneReportCallback{")
    assert first.state_key != second.state_key


# ---- files, loggers, console ---------------------------------------------------------------------------


def test_files_of_a_trial_stay_in_its_folder(tuner: Any, fit: Callable[..., Any], tmp_path: Path) -> None:
    def script() -> Any:
        return fit(logger=True, enable_checkpointing=True)

    first = tuner.run_trial(script, {2: "PAUSE"})
    second = tuner.run_trial(script)
    assert [p.name for p in tmp_path.iterdir()] == ["3"], "nothing in the working directory"
    own = tuner.folder / "lightning"
    for result in (first, second):
        assert result.trainer.default_root_dir == str(own)
        assert result.trainer.log_dir == str(own / "lightning_logs" / "version_0")
        assert isinstance(result.trainer.logger, TensorBoardLogger)
    assert (own / "lightning_logs" / "version_0" / "hparams.yaml").read_text().count("lr: 0.01") == 1
    assert len(list((own / "checkpoints").iterdir())) == 1, "a resumed ModelCheckpoint knows its files"
    assert first.trainer.callbacks[-1].best_model_path != second.trainer.callbacks[-1].best_model_path


def test_folders_that_the_user_named_stay(tuner: Any, fit: Callable[..., Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs", name="mine")
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "models")
    result = tuner.run_trial(
        lambda: fit(
            logger=logger, callbacks=[checkpoint], enable_checkpointing=True, default_root_dir=tmp_path / "root"
        )
    )
    assert result.trainer.default_root_dir == str(tmp_path / "root")
    assert result.trainer.log_dir == str(tmp_path / "logs" / "mine" / "version_0")
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_the_configuration_goes_to_every_logger(tuner: Any, fit: Callable[..., Any]) -> None:
    tuner.config = {"lr": 0.01, "depth": 17}
    loggers = [CSVLogger("."), CSVLogger(".", name="second")]
    tuner.run_trial(lambda: fit(logger=loggers, max_epochs=1))
    for logger in loggers:
        assert "depth: 17" in Path(logger.log_dir, "hparams.yaml").read_text()
        assert Path(logger.log_dir).is_relative_to(tuner.folder)


@pytest.mark.parametrize("verbose", [False, True])
def test_the_console_is_quiet_in_a_trial(
    verbose: bool,
    tuner: Any,
    fit: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if verbose:
        monkeypatch.setenv("STHYPER_VERBOSE", "1")
    result = tuner.run_trial(lambda: fit(max_epochs=1, callbacks=[TQDMProgressBar()]))
    out, err = capsys.readouterr()
    assert ("Epoch 0" in out + err) == verbose
    assert any(isinstance(c, ProgressBar) for c in result.trainer.callbacks) == verbose


def test_the_trainer_is_left_as_it_was(tuner: Any, fit: Callable[..., Any]) -> None:
    result = tuner.run_trial(fit)
    assert [type(c) for c in result.trainer.callbacks] == [TuneReportCallback]
    connector = vars(result.trainer._checkpoint_connector)
    assert "resume_start" not in connector
    assert "restore_loops" not in connector


# ---- how it is made and copied -------------------------------------------------------------------------


def test_copies_open_a_channel_of_their_own(tuner: Any, fit: Callable[..., Any]) -> None:
    result = tuner.run_trial(lambda: fit(max_epochs=2))
    for clone in (copy.deepcopy(result.callback), pickle.loads(pickle.dumps(result.callback))):
        assert clone.metrics == ACC
        assert clone._reporter is not result.callback._reporter
        assert clone._reporter._connection is None
        assert clone.state_dict() == result.callback.state_dict() | {"trial_id": None}


def test_the_command_line_of_lightning_can_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = LightningCLI(
        BoringModel,
        run=False,
        seed_everything_default=False,
        args=[
            "--trainer.logger=false",
            "--trainer.callbacks+=sthyper.callbacks.TuneReportCallback",
            '--trainer.callbacks.metrics={"accuracy": "val/acc"}',
            "--trainer.callbacks.every_n_epochs=2",
            "--trainer.callbacks.on=validation_end",
        ],
    )
    (callback,) = [c for c in cli.trainer.callbacks if isinstance(c, TuneReportCallback)]
    assert callback.metrics == {"accuracy": "val/acc"}
    assert (callback.every_n_epochs, callback.on, callback.keep) == (2, "validation_end", "best+last")
    assert "PL_GLOBAL_SEED" not in os.environ
