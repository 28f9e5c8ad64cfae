"""The model of the best trial, loaded from its checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from sthyper import Reporter, tune
from sthyper.config_space import uniform
from sthyper.experiment import ExperimentResult
from sthyper.utils import checkpoint_model_at_rung_level, pytorch_load_save_functions

POINTS = [{"x": 0.5}, {"x": 0.25}, {"x": 0.75}]


class Lit(LightningModule):
    """Its weight says which trial it belongs to."""

    def __init__(self, width: int = 1, extra: str = "none") -> None:
        super().__init__()
        self.save_hyperparameters(ignore="extra")
        self.extra = extra
        self.layer = nn.Linear(width, 1)


def filled(x: float, width: int = 1) -> nn.Linear:
    layer = nn.Linear(width, 1)
    with torch.no_grad():
        layer.weight.fill_(x)
    return layer


def run(save: Callable[[float, Path], Any], **options: Any) -> ExperimentResult:
    """Tune a function that saves a checkpoint; x is the value."""

    def train(x: float) -> float:
        save(x, Path(Reporter().checkpoint_dir or ""))
        return x

    arguments = {"points_to_evaluate": POINTS, "max_trials": 3, "launch": "inline", **options}
    return tune(train, {"x": uniform(0.0, 1.0)}, **arguments)


def save_lightning(x: float, folder: Path) -> None:
    model = Lit(width=3)
    model.layer = filled(x, 3)
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.1",
    }
    torch.save(checkpoint, folder / "last.ckpt")


def save_by_helper(x: float, folder: Path) -> None:
    model = filled(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, save = pytorch_load_save_functions({"model": model, "optimizer": optimizer})
    checkpoint_model_at_rung_level({"st_checkpoint_dir": str(folder)}, save, 1)


@pytest.mark.parametrize(
    "save",
    [
        lambda x, folder: torch.save(filled(x).state_dict(), folder / "model.pt"),
        lambda x, folder: torch.save({"epoch": 1, "nets": [{"a": 1}, filled(x).state_dict()]}, folder / "model.pt"),
        save_by_helper,
    ],
    ids=["state", "nested", "helper"],
)
@pytest.mark.parametrize(("mode", "best"), [("min", 0.25), ("max", 0.75)])
def test_a_module_gets_the_best_weights(save: Callable[[float, Path], Any], mode: str, best: float) -> None:
    result = run(save, mode=mode)
    model = nn.Linear(1, 1)
    assert result.load_best(model) is model
    assert model.weight.item() == best == result.best_value


def test_a_lightning_module_is_made() -> None:
    result = run(save_lightning)
    model = result.load_best(Lit, extra="given")
    assert isinstance(model, Lit)
    assert model.layer.weight.tolist() == [[0.25] * 3]
    assert model.extra == "given"
    assert result.load_best(Lit).extra == "none"
    places: list[str] = []
    result.load_best(Lit, map_location=lambda storage, place: places.append(place) or storage)
    assert set(places) == {"cpu"}


def test_trials_without_a_finite_value_are_passed_over() -> None:
    def save(x: float, folder: Path) -> None:
        torch.save(filled(x).state_dict(), folder / "model.pt")

    def train(x: float) -> float:
        save(x, Path(Reporter().checkpoint_dir or ""))
        return {0.25: math.nan, 0.75: -math.inf}.get(x, x)

    result = tune(train, {"x": uniform(0.0, 1.0)}, points_to_evaluate=POINTS, max_trials=3, launch="inline")
    assert (result.best_value, result.best_trial_id) == (0.5, 0)
    model = nn.Linear(1, 1)
    assert result.load_best(model).weight.item() == 0.5


def test_no_finite_value() -> None:
    result = tune(lambda x: math.nan, {"x": uniform(0.0, 1.0)}, max_trials=2, launch="inline")
    assert result.best_value is result.best_trial_id is result.best_checkpoint is None
    assert result.best_config() == {}
    with pytest.raises(ValueError, match="no trial has reported a finite 'value', so that there is no best one"):
        result.load_best(nn.Linear(1, 1))


def test_no_checkpoint() -> None:
    result = tune(lambda x: x, {"x": uniform(0.0, 1.0)}, points_to_evaluate=POINTS, max_trials=3, launch="inline")
    assert result.best_checkpoint is None
    with pytest.raises(FileNotFoundError, match=r"trial 1, the best, has no checkpoint in .*checkpoints; save one"):
        result.load_best(nn.Linear(1, 1))


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    result = run(lambda x, folder: torch.save({"model": filled(x).state_dict()}, folder / "model.pt"))
    with pytest.raises(ValueError, match=r"model.pt has no weights with the names of Sequential, such as '0.weight'"):
        result.load_best(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(TypeError, match="model must be a Lightning module class, or a torch module"):
        result.load_best(nn.Linear)
    with pytest.raises(TypeError, match=r"\['bias'\] are for a Lightning module class"):
        result.load_best(nn.Linear(1, 1), bias=True)
    with pytest.raises(ValueError, match=r"fit this Linear: 'weight' has shape \(1, 1\) there and \(1, 2\) in the mod"):
        result.load_best(nn.Linear(2, 1))
    result = run(lambda x, folder: (folder / "model.pt").write_text("hello"))
    with pytest.raises(ValueError, match=r"model.pt is no file of tensors and plain containers .*Error"):
        result.load_best(nn.Linear(1, 1))


def test_of_several_weights_those_that_fit_are_taken() -> None:
    def save(x: float, folder: Path) -> None:
        torch.save({"small": filled(-x).state_dict(), "large": filled(x, 3).state_dict()}, folder / "model.pt")

    assert run(save).load_best(nn.Linear(3, 1)).weight.flatten().tolist() == [0.25] * 3


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_only_plain_containers_are_unpickled(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def save(x: float, folder: Path) -> None:
        torch.save({"model": filled(x).state_dict(), "object": _Evil(str(made))}, folder / "model.pt")

    result = run(save)
    with pytest.raises(Exception, match="weights_only|Weights only"):
        result.load_best(nn.Linear(1, 1))
    assert not made.exists()


def test_a_sharded_checkpoint_is_named() -> None:
    from sthyper.checkpoints import CheckpointInfo, write_index

    def save(x: float, folder: Path) -> None:
        (folder / "epoch=000001.ckpt").mkdir()
        write_index(folder, [CheckpointInfo(folder / "epoch=000001.ckpt", 1)])

    with pytest.raises(ValueError, match=r"epoch=000001.ckpt is a sharded checkpoint; make one file of it first"):
        run(save).load_best(nn.Linear(1, 1))
