"""A trial that is paused and resumed ends as one that was not, bit for bit, whatever stands beside the callback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, EarlyStopping, LearningRateFinder, ModelCheckpoint

from sthyper.callbacks import TuneReportCallback
from sthyper.checkpoints import latest_checkpoint, list_checkpoints
from sthyper.report import TrialExit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|Checkpoint directory)"),
    pytest.mark.filterwarnings("ignore:.*not resumable"),
]


def early_stopping() -> EarlyStopping:
    return EarlyStopping("val/loss", patience=50)


def impatient() -> EarlyStopping:
    return EarlyStopping("val/acc", mode="max", patience=3)


def model_checkpoint() -> ModelCheckpoint:
    return ModelCheckpoint(monitor="val/loss", save_top_k=2)


def stops_after_three() -> EarlyStopping:
    return EarlyStopping("late", mode="min", patience=2, check_on_train_epoch_end=True)


class Draws(Callback):
    """Draws numbers where an uninterrupted run does so once only."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        torch.rand(3)


CASES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "global generator": {"seeded_loader": False},
    "plateau": {"schedule": "plateau"},
    "one cycle": {"schedule": "one cycle", "seeded_loader": False},
    "accumulation": {"accumulate_grad_batches": 2},
    "beside": {
        "accumulate_grad_batches": 2,
        "enable_checkpointing": True,
        "others": [early_stopping, model_checkpoint],
    },
    "stopping early": {"enable_checkpointing": True, "others": [impatient, model_checkpoint]},
    "paused where it stops": {"others": [stops_after_three], "pauses": [3]},
    "hooks that draw": {"seeded_loader": False, "others": [Draws]},
    "max_steps": {"max_steps": 40},
    "max_steps only": {"max_epochs": -1, "max_steps": 40},
    "every other validation": {"check_val_every_n_epoch": 2, "pauses": [2, 4]},
    "after validation": {
        "on": "validation_end",
        "enable_checkpointing": True,
        "others": [early_stopping, model_checkpoint],
    },
    "after validation, plateau": {"on": "validation_end", "schedule": "plateau"},
    "in the epoch": {"on": "validation_end", "val_check_interval": 0.5, "pauses": [3, 8]},
    "in the epoch, global generator": {
        "on": "validation_end",
        "val_check_interval": 4,
        "accumulate_grad_batches": 2,
        "seeded_loader": False,
        "schedule": "one cycle",
    },
}


# One of each kind in the default suite, their combinations with the slow tests.
COMBINED = {
    *("one cycle", "accumulation", "hooks that draw", "max_steps", "every other validation", "after validation"),
    *("global generator", "in the epoch, global generator"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in COMBINED else name for name in CASES]
)
def test_a_pause_is_invisible(name: str, make_tuner: Callable[..., Any], fit: Callable[..., Any]) -> None:
    case = dict(CASES[name])
    pauses = case.pop("pauses", [1, 3])
    others = case.pop("others", [])
    on = case.pop("on", "train_epoch_end")

    def script() -> Any:
        callback = TuneReportCallback({"acc": "val/acc", "loss": "val/loss"}, on=on)
        return fit(callback, callbacks=[make() for make in others], **case)

    whole, parts = make_tuner("whole"), make_tuner("parts")
    expected = whole.run_trial(script)
    steps = 0
    for pause in pauses:
        steps += parts.run_trial(script, {pause: "PAUSE"}).model.steps
        assert parts.reports[-1]["epoch"] == pause, "nothing is reported beyond the pause"
    result = parts.run_trial(script)
    steps += result.model.steps

    assert steps == expected.model.steps, "no batch is trained on twice"
    assert parts.curve == whole.curve
    assert len(whole.curve) >= 3
    state, expected_state = result.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(state[k], expected_state[k]) for k in expected_state)
    assert result.trainer.current_epoch == expected.trainer.current_epoch
    assert result.trainer.global_step == expected.trainer.global_step
    for ours, theirs in zip(result.trainer.callbacks, expected.trainer.callbacks, strict=True):
        if isinstance(ours, EarlyStopping):
            assert ours.state_dict() == theirs.state_dict()
        if isinstance(ours, ModelCheckpoint):
            assert ours.best_model_score == theirs.best_model_score
            assert Path(ours.best_model_path).name == Path(theirs.best_model_path).name
            assert os.path.exists(ours.best_model_path)
    assert not parts.byes or all(bye.ok for bye in parts.byes)


def test_a_kill_between_checkpoint_and_report_costs_one_epoch(tuner: Any, fit: Callable[..., Any]) -> None:
    """The checkpoint that was not reported is passed over; the one before it is still there."""
    with pytest.raises(TrialExit):
        tuner.run_trial(fit, {4: "DIE"})
    assert tuner.last_resource == 3
    assert [c.resource for c in list_checkpoints(tuner.checkpoints)][-2:] == [3, 4]
    assert latest_checkpoint(tuner.checkpoints, not_after=3).name == "epoch=000003.ckpt"

    result = tuner.run_trial(fit)
    assert [report["epoch"] for report in tuner.reports] == [1, 2, 3, 4, 5, 6]
    assert result.model.steps == 3 * 7


def test_a_restart_without_any_report_begins_from_scratch(tuner: Any, fit: Callable[..., Any]) -> None:
    tuner.run_trial(fit, {1: "STOP"})
    tuner.last_resource = None
    tuner.reports.clear()
    assert tuner.run_trial(fit).model.steps == 6 * 7
    assert [report["epoch"] for report in tuner.reports] == [1, 2, 3, 4, 5, 6]


def test_a_new_trial_goes_on_from_the_copied_checkpoint_of_another(
    make_tuner: Callable[..., Any], fit: Callable[..., Any]
) -> None:
    source, target = make_tuner("5"), make_tuner("7")
    source.trial_id, target.trial_id = 5, 7
    source.run_trial(fit, {2: "PAUSE"})
    target.folder.mkdir()
    source.checkpoints.rename(target.checkpoints)
    result = target.run_trial(fit)
    assert [report["epoch"] for report in target.reports] == [3, 4, 5, 6]
    assert result.model.steps == 4 * 7
    assert {c.trial_id for c in list_checkpoints(target.checkpoints)} == {7}
    best = max(report["acc"] for report in target.reports)
    assert next(r["epoch"] for r in target.reports if r["acc"] == best) == next(
        c.resource for c in list_checkpoints(target.checkpoints) if c.best
    )


def test_a_ckpt_path_of_the_user_counts_in_the_first_run_only(
    make_tuner: Callable[..., Any], fit: Callable[..., Any], tmp_path: Path
) -> None:
    pretrained = make_tuner("0").run_trial(fit, {2: "STOP"})
    path = str(tmp_path / "pretrained.ckpt")
    pretrained.trainer.save_checkpoint(path)

    def script() -> Any:
        return fit(ckpt_path=path)

    tuner = make_tuner("1")
    tuner.trial_id = 1
    tuner.run_trial(script, {4: "PAUSE"})
    assert [report["epoch"] for report in tuner.reports] == [3, 4]
    with pytest.warns(UserWarning, match="ckpt_path=.*pretrained.ckpt' is not used"):
        result = tuner.run_trial(script)
    assert [report["epoch"] for report in tuner.reports] == [3, 4, 5, 6]
    assert result.model.steps == 2 * 7


def test_without_checkpoints_a_resumed_trial_trains_again(tuner: Any, fit: Callable[..., Any]) -> None:
    def script() -> Any:
        return fit(TuneReportCallback({"acc": "val/acc"}, checkpoint=False))

    tuner.run_trial(script, {2: "PAUSE"})
    assert not tuner.checkpoints.exists()
    tuner.run_trial(script)
    assert [report["epoch"] for report in tuner.reports] == [1, 2, 1, 2, 3, 4, 5, 6]


def test_finders_run_once_a_trial(tuner: Any, fit: Callable[..., Any]) -> None:
    """What they found is restored; run again they would undo the restore."""
    runs = []

    class Rates(LearningRateFinder):
        def lr_find(self, *args: Any, **kwargs: Any) -> None:
            runs.append("rate")
            super().lr_find(*args, **kwargs)

    def script() -> Any:
        finders = [
            Rates(num_training_steps=12, early_stop_threshold=None, attr_name="rate", update_attr=False),
            BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=3, max_val=13, margin=0.0),
        ]
        return fit(callbacks=finders)

    first = tuner.run_trial(script, {2: "PAUSE"})
    assert first.model.batch_size != 4
    second = tuner.run_trial(script)
    assert runs == ["rate"]
    assert second.model.batch_size == first.model.batch_size
    assert second.trainer.num_training_batches == first.trainer.num_training_batches
    assert [report["epoch"] for report in tuner.reports] == [1, 2, 3, 4, 5, 6]
