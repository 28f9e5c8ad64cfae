"""SelfTuningCallback on one device: what it tunes, what it leaves alone, checkpoints, and what it refuses."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from sthyper.callbacks import SelfTuningCallback, TuneReportCallback
from sthyper.callbacks.lightning import _self_tuning_checks as checks
from sthyper.config_space import loguniform, uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.linearise import collapse
from sthyper.selftuning.steps import delta_stn_step, hyper_step
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune

CLASSES, FEATURES = 3, 6
_G = torch.Generator().manual_seed(1)
_X = torch.randn(60, FEATURES, generator=_G)
_Y = (_X @ torch.randn(FEATURES, CLASSES, generator=_G)).argmax(1)


def loader(first: int = 0, last: int = 24, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(_X[first:last], _Y[first:last]), batch_size, **options)


class Net(LightningModule):
    """A small classifier; ``strength`` names a hyperparameter that ``training_step`` uses as a penalty."""

    def __init__(self, strength: str = "", optimizer: str = "sgd", norm: bool = False, shared: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm1d(FEATURES) if norm else nn.Identity()
        self.body = nn.Linear(FEATURES, 5)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(5, CLASSES)
        self.strength = strength
        self.optimizer = optimizer
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.calls = 0
        self.seen: list[float] = []
        self.register_buffer("total", torch.zeros(()))
        self.total: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.body(self.norm(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        if self.strength:
            strength = self.selftuning.hyperparameters[self.strength]
            loss = loss + (strength * collapse(logits).square().mean(1)).mean()
        self.calls += 1
        self.total += x.sum()
        self.seen.append(float(loss.detach()))
        self.accuracy(logits, y)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.calls += 1
        self.log("val/loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adam":
            return torch.optim.Adam(self.named_parameters(), 0.02)
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters())
        return torch.optim.SGD(
            self.parameters(), 0.0 if self.optimizer == "still" else 0.1, momentum=0.9, weight_decay=1e-3
        )


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


def callback(**options: Any) -> SelfTuningCallback:
    """A callback that tunes a penalty from the first step on."""
    base: dict[str, Any] = {"hyperparameters": {"penalty": loguniform(1e-3, 10.0)}, "dropout": None}
    base |= {"warm_up_epochs": 0, "train_steps": 2}
    return SelfTuningCallback(**base | options)


def trainer_with(*callbacks: Callback, **options: Any) -> Trainer:
    base: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **base | quiet | options)


def fit(module: LightningModule, *callbacks: Callback, train: Any = None, val: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = trainer_with(*callbacks, **options)
    trainer.fit(module, train or loader(), val or loader(24, 40), ckpt_path=ckpt_path)
    return trainer


def plain(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.startswith("selftuning.")}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---- what is tuned ------------------------------------------------------------------------------------------


class Softmax(LightningModule):
    """Softmax regression with input dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop = nn.Dropout(0.0)
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layer(self.drop(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.layer(self.drop(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def digits() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """300 training images and 600 validation images under strong noise; the best fixed rate is .4 to .5."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=generator)
    images = torch.tensor(x / 8 - 1, dtype=torch.float32)[order] + torch.randn(len(y), 64, generator=generator)
    data = TensorDataset(images, torch.tensor(y)[order])
    train, val = torch.utils.data.Subset(data, range(300)), torch.utils.data.Subset(data, range(300, 900))
    return DataLoader(train, 50, shuffle=True, generator=torch.Generator().manual_seed(0)), DataLoader(val, 50)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rates_from_both_sides_meet_near_the_best_fixed_one() -> None:
    tuned = {}
    for start in (0.1, 0.75):
        train, val = digits()
        tuning = SelfTuningCallback({"rate": uniform(0, 0.95)}, dropout={"drop": "rate"}, start={"rate": start})
        fit(Softmax(), tuning, train=train, val=val, max_epochs=100)
        tuned[start] = tuning.schedule.mean_of_last(0.1)["rate"]
    # A grid of fixed rates has validation losses of 1.57 at .02, 1.32 at .2, 1.07 at .4, 1.11 at .6 and 1.41 at .8.
    assert all(0.2 < rate < 0.6 for rate in tuned.values())
    assert abs(tuned[0.1] - tuned[0.75]) < 0.1


def test_a_rate_that_is_too_high_falls() -> None:
    train, val = digits()
    options: dict[str, Any] = {"dropout": {"drop": "rate"}, "start": {"rate": 0.8}, "train_steps": 2}
    tuning = SelfTuningCallback({"rate": uniform(0, 0.95)}, **options)
    trainer = fit(Softmax(), tuning, train=train, val=val, max_epochs=20)
    assert tuning.values()["rate"] < 0.77
    assert tuning.steps == 120
    assert tuning.hyper_steps == (120 - 12) // 2
    assert trainer.callback_metrics["selftuning/value/rate"] == pytest.approx(tuning.values()["rate"])


# ---- what is left alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"hyper_steps": 0}, {"hyper_steps": 0, "update": "nonlinear"}, {"tune": False}])
@pytest.mark.parametrize("net", [{}, {"optimizer": "adam", "norm": True}])
def test_weights_are_those_of_a_training_without_the_callback(options: dict[str, Any], net: dict[str, Any]) -> None:
    alone, tuned = Net(**net), Net(**net)
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    first = fit(alone, train=loader(shuffle=True))
    after = torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    second = fit(tuned, callback(**options), train=loader(shuffle=True))
    assert_equal(plain(alone), plain(tuned))
    assert torch.equal(after[0], torch.rand(3))
    assert after[1:] == (random.random(), np.random.random())  # noqa: NPY002
    assert (alone.calls, alone.seen) == (tuned.calls, tuned.seen)
    ours = {k: v for k, v in second.callback_metrics.items() if not k.startswith("selftuning/")}
    assert_equal(first.callback_metrics, ours)


def test_hyper_steps_leave_no_trace_either() -> None:
    # The penalty has no part in the loss here, so that the weights do not see how it moves.
    alone, tuned = Net(norm=True), Net(norm=True)
    first, tuning = fit(alone), callback()
    second = fit(tuned, tuning)
    assert tuning.hyper_steps == 6
    assert_equal(plain(alone), plain(tuned))
    assert (alone.calls, alone.seen) == (tuned.calls, tuned.seen)
    assert_equal(first.callback_metrics, {k: v for k, v in second.callback_metrics.items() if "selftuning" not in k})


class Watch(Callback):
    """Sees what the module does, and in which mode."""

    def __init__(self, tuning: SelfTuningCallback) -> None:
        self.kinds: list[tuple[str, str | None, bool]] = []
        self.tuning = tuning

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.register_forward_pre_hook(lambda module, args: self._note(trainer, pl_module))

    on_test_start = on_predict_start = on_fit_start

    def _note(self, trainer: Trainer, module: LightningModule) -> None:
        current = self.tuning.hyperparameters.current
        kind = None if current is None else "linearised" if current.linearised else current.kind
        stage = (
            "hyper" if current is not None and current.tracks and not current.linearised else str(trainer.state.stage)
        )
        self.kinds.append((stage.removeprefix("RunningStage."), kind, module.training))


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, [("centred", True), ("linearised", True)]),
        ({"response_warm_up": 0}, [("centred", True), ("linearised", True), ("centred", True)]),
        ({"update": "joint"}, [("perturbed", True)]),
        ({"kind": "stn"}, [("perturbed", True)]),
        ({"tune": False}, [(None, True)]),
    ],
)
def test_which_pass_sees_which_strengths(options: dict[str, Any], training: list[tuple[str | None, bool]]) -> None:
    tuning = callback(**options)
    watch = Watch(tuning)
    model = Net("penalty")
    trainer = fit(model, tuning, watch, max_epochs=1)
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader(), return_predictions=False)
    seen = {(stage.lower().split(".")[-1], kind, mode) for stage, kind, mode in watch.kinds}
    centre = None if options.get("tune") is False else "centred"
    evaluated = {(stage, centre, False) for stage in ("sanity_checking", "validating", "testing", "predicting")}
    hyper = set() if options.get("tune") is False else {("hyper", "centred", False)}
    assert {e for e in seen if e[0] not in ("training", "train")} - hyper <= evaluated | hyper
    assert hyper <= seen
    passes = [(k, m) for s, k, m in watch.kinds if s.lower().startswith("train")]
    batches = sum(kind != "linearised" for kind, _ in training)
    assert passes == training * (6 // batches)


def test_sizes_and_values_in_the_perturbed_pass() -> None:
    strengths: list[Tensor] = []

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            strengths.append(self.selftuning.hyperparameters["penalty"])
            return super().training_step(batch, batch_idx)

    tuning = callback(hyper_steps=0)
    fit(Looks("penalty"), tuning, train=loader(0, 10), max_epochs=1)
    assert [s.shape for s in strengths] == [(), (4,), (), (4,), (), (2,)]
    centre = tuning.values()["penalty"]
    assert all(float(s) == pytest.approx(centre) for s in strengths[::2])
    assert all(len(set(s.tolist())) == len(s) for s in strengths[1::2])
    assert strengths[1].tolist() != strengths[3].tolist()


# ---- the updates are those of the steps ---------------------------------------------------------------------


def _loss(module: Net, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), targets)


@pytest.mark.parametrize("update", ["linearised", "nonlinear"])
def test_updates_equal_those_of_the_plain_functions(update: str) -> None:
    model = Net("penalty").float()
    model.drop = nn.Identity()
    twin = copy.deepcopy(model)
    drawn: list[Any] = []
    tuning = callback(update=update, train_steps=1, hyper_lr_end=1.0, max_norm=0.5)
    draw = tuning.hyperparameters.draw
    tuning.hyperparameters.draw = lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1]  # type: ignore[method-assign]
    fit(model, tuning, train=loader(0, 12), max_epochs=1, num_sanity_val_steps=0)

    hyperparameters = Hyperparameters({"penalty": loguniform(1e-3, 10.0)})
    self_tune(twin, hyperparameters, dropout=None)
    general = torch.optim.SGD(general_parameters(twin), 0.1, momentum=0.9, weight_decay=1e-3)
    response = torch.optim.Adam(response_parameters(twin), 0.003)
    hyper = torch.optim.Adam([hyperparameters.raw], tuning.options.hyper_lr, betas=(0.9, 0.99))
    twin.log = lambda *a, **k: None  # type: ignore[method-assign]
    it = iter(drawn)
    hyperparameters.draw = lambda *a, **k: next(it)  # type: ignore[method-assign]
    val = iter(loader(24, 40))
    norms = []
    for batch in loader(0, 12):
        centre = hyperparameters.centre()
        with hyperparameters.use(centre):
            loss = twin.training_step(batch, 0)
        gradients = torch.autograd.grad(loss, general_parameters(twin))
        for parameter, gradient in zip(general_parameters(twin), gradients, strict=True):
            parameter.grad = gradient
        general.step()
        frozen = torch.optim.SGD(general_parameters(twin), 0.0)
        delta_stn_step(
            partial(twin.training_step, batch, 0), hyperparameters, frozen, response, 4, update, max_norm=0.5
        )
        inputs, targets = next(val)
        twin.eval()
        result = hyper_step(partial(_loss, twin, inputs, targets), hyperparameters, hyper)
        twin.train()
        norms.append(abs(result.gradients["penalty"]))
    for name, value in plain(twin).items():
        if name not in ("total",) and not name.startswith("accuracy"):
            torch.testing.assert_close(value, model.state_dict()[name])
    for ours, theirs in zip(response_parameters(model), response_parameters(twin), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert max(norms) > 0
    torch.testing.assert_close(tuning.hyperparameters.raw, hyperparameters.raw)
    recorded = tuning.schedule.hypergradients("penalty", "step").abs()
    assert recorded[1:].tolist() == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("update", ["linearised", "joint"])
def test_precisions(precision: str, update: str) -> None:
    tuning = callback(update=update)
    model = Net("penalty")
    before = tuning.values()
    fit(model, tuning, precision=precision, gradient_clip_val=0.1)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert tuning.values() != before
    assert tuning.notices.skipped == 0


def test_clipping_sees_the_users_parameters_only() -> None:
    clipped: list[set[int]] = []

    class Clips(Net):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            clipped.append({id(p) for group in optimizer.param_groups for p in group["params"]})
            assert all(p.grad is None for p in response_parameters(self))
            super().configure_gradient_clipping(optimizer, *args, **kwargs)

    model = Clips("penalty")
    fit(model, callback(), gradient_clip_val=0.1, max_epochs=1)
    assert all(ids == {id(p) for p in general_parameters(model)} for ids in clipped)
    assert len(clipped) == 6


@pytest.mark.parametrize(("options", "optimizer"), [({}, "still"), ({"update": "joint"}, "sgd")])
def test_accumulated_gradients_are_those_of_the_whole_batch(options: dict[str, Any], optimizer: str) -> None:
    # Responses to the first parts of a batch are computed before its optimiser step, so that weights stay here.
    models = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        tuning = callback(train_steps=1, start={"penalty": 0.5}, **options)
        tuning.hyperparameters.draw = _Fixed(tuning.hyperparameters)  # type: ignore[method-assign]
        model = Net("penalty", optimizer)
        model.drop = nn.Identity()
        train = loader(0, 24, batch_size)
        fit(model, tuning, train=train, val=loader(24, 40), accumulate_grad_batches=accumulate, max_epochs=1)
        assert tuning.steps == tuning.hyper_steps == 3
        models.append(model)
    for first, second in zip(*(m.selftuning.parameters() for m in models), strict=True):
        torch.testing.assert_close(first, second)
    for first, second in zip(*map(general_parameters, models), strict=True):
        torch.testing.assert_close(first, second)


class _Fixed:
    """Perturbs all examples alike, always."""

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.draw, self.h = hyperparameters.draw, hyperparameters

    def __call__(self, batch_size: int, groups: int | None = None, same: bool = False, tracks: bool = False) -> Any:
        self.h.reseed(5)
        return self.draw(batch_size, groups, True, tracks)


# ---- the run ------------------------------------------------------------------------------------------------


def test_warm_up_and_cadence() -> None:
    for options, expected in (
        ({"warm_up_epochs": 1, "train_steps": 3, "hyper_steps": 2}, [0, 4, 8]),
        ({"warm_up_epochs": 0, "train_steps": 2, "hyper_steps": 1}, [3, 6, 9]),
        ({"warm_up_epochs": None, "train_steps": 1}, [5, 11, 17]),  # a tenth of 18 steps is one
    ):
        tuning, counts = callback(**options), []

        class Count(Callback):
            def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
                counts.append(tuning.hyper_steps)  # noqa: B023

        fit(Net("penalty"), tuning, Count(), max_epochs=3)
        assert counts == expected, options


def test_learning_rates_fall_to_the_end() -> None:
    tuning = callback(train_steps=1, hyper_lr=0.02, hyper_lr_end=0.25, tune_scales=True, scale_lr=0.04)
    fit(Net("penalty"), tuning, max_epochs=1)
    state = tuning.state_dict()["updates"]["optimizers"]
    assert state["hyper"]["param_groups"][0]["lr"] == pytest.approx(0.005)
    assert state["scales"]["param_groups"][0]["lr"] == pytest.approx(0.01)


def test_tuned_scales_and_entropy() -> None:
    ends = []
    for weight in (0.0, 1.0):
        tuning = callback(tune_scales=True, entropy_weight=weight, scale_bounds=(0.9, 1.03))
        fit(Net("penalty"), tuning, max_epochs=4)
        ends.append(tuning.scales()["penalty"])
    assert ends[1] == pytest.approx(1.03)
    assert ends[0] < ends[1]


def test_logged_values_and_schedule(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    tuning = callback(hyperparameters={"penalty": loguniform(1e-3, 10.0), "other": uniform(0, 1)})
    fit(Net("penalty"), tuning, logger=logger, log_every_n_steps=3)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    for name in ("value/penalty", "scale/other", "hypergradient/penalty", "val_loss", "skipped"):
        assert f"selftuning/{name}" in header
    column = [row.split(",")[header.index("selftuning/value/penalty")] for row in rows[1:]]
    logged = [float(value) for value in column if value]
    assert len(logged) == 4
    assert logged[-1] == pytest.approx(tuning.values()["penalty"], rel=1e-6)
    schedule = tuning.schedule
    assert schedule.names == ["penalty", "other"]
    assert schedule.final() == pytest.approx(tuning.values())
    assert schedule.column("epoch", "epoch").tolist() == [1, 2]
    assert schedule.column("step", "step").tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert bool(torch.isfinite(schedule.column("train_loss", "epoch")).all())


def test_the_trainers_own_validation_is_not_advanced() -> None:
    orders = []
    for callbacks in ([], [callback()]):
        generator = torch.Generator().manual_seed(9)
        val = loader(24, 40, shuffle=True, generator=generator)
        seen: list[float] = []

        class Sees(Net):
            def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
                if not torch.is_grad_enabled():
                    seen.append(float(batch[0].sum()))  # noqa: B023
                return super().validation_step(batch, batch_idx)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your `val_dataloader`'s sampler has shuffling")
            fit(Sees(), *callbacks, val=val)
        orders.append(seen)
    assert orders[0] == orders[1]


def test_validation_data_of_its_own() -> None:
    sums: list[float] = []

    class Sees(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            if torch.is_grad_enabled():
                sums.append(float(batch[0].sum()))
            return super().validation_step(batch, batch_idx)

    tuning = callback(val_dataloader=loader(40, 56, shuffle=True))
    fit(Sees(), tuning, limit_val_batches=0)
    batches = {round(float(_X[i].sum()), 4): i for i in range(40, 56)}
    assert len(sums) == 7  # the first one is looked at twice
    total = sum(batches)
    assert sum(sums[1:5]) == pytest.approx(total, abs=1e-3)  # a pass takes each example once
    assert sums[1:3] != sums[5:7]


@pytest.mark.parametrize("how", ["returned", "logged", "training_step"])
def test_where_the_validation_loss_is(how: str) -> None:
    class Steps(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().validation_step(batch, batch_idx)
            self.log("twice", 2 * loss)
            return loss if how == "returned" else None

    tuning = callback(val_loss="twice" if how == "logged" else None)
    fit(Steps("penalty"), tuning, max_epochs=1)
    first = tuning.schedule.column("val_loss", "step")[1].item()
    reference = Net("penalty")
    with torch.no_grad():
        fit(reference, callback(tune=False), max_steps=2, max_epochs=-1, limit_val_batches=0)
        reference.eval()
        loss = F.cross_entropy(reference(_X[24:28]), _Y[24:28]).item()
        if how == "training_step":
            strength = tuning.schedule.values("penalty")[0].item()
            loss += strength * reference(_X[24:28]).square().mean().item()
    assert first == pytest.approx(2 * loss if how == "logged" else loss, rel=1e-4)


def test_layers_that_are_made_in_hooks_respond() -> None:
    class Late(LightningModule):
        def setup(self, stage: str) -> None:
            self.first = nn.Linear(FEATURES, 5)

        def configure_model(self) -> None:
            self.second = nn.Linear(5, CLASSES)

        training_step = Softmax.training_step

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.second(self.first(batch[0])), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: F811
            loss = self.validation_step(batch, batch_idx)
            return loss + (self.selftuning.hyperparameters["penalty"] * 0.01).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Late()
    fit(model, callback())
    assert set(model.selftuning.forms) == {"first", "second"}
    assert "configure_model" not in vars(model)


def test_fast_dev_run_takes_every_part() -> None:
    tuning = callback(warm_up_epochs=None)
    fit(Net("penalty"), tuning, fast_dev_run=True)
    assert (tuning.steps, tuning.hyper_steps) == (1, 1)


def test_a_callback_is_pickled_as_it_is() -> None:
    tuning = callback(start={"penalty": 0.5})
    fit(Net("penalty"), tuning)
    again = pickle.loads(pickle.dumps(tuning))
    assert again.values() == tuning.values()
    assert len(again.schedule) == len(tuning.schedule)
    assert (again.steps, again.hyper_steps) == (tuning.steps, tuning.hyper_steps)
    assert torch.equal(again.hyperparameters.draw(3).raw, tuning.hyperparameters.draw(3).raw)


def test_another_module_is_tested_without_forgetting(tmp_path: Path) -> None:
    tuning = callback()
    trainer = fit(Net("penalty"), tuning)
    rows = len(tuning.schedule)
    trainer.test(Net("penalty"), loader(), verbose=False)
    assert (tuning.hyper_steps, len(tuning.schedule)) == (6, rows)


def test_export_of_a_plain_module_with_its_weights() -> None:
    tuning = SelfTuningCallback({"drop": uniform(0, 0.9)}, start={"drop": 0.4})
    exported = tuning.export(model := Net())
    assert exported.drop.p == pytest.approx(0.4)
    assert model.drop.p == 0.2
    assert not hasattr(model, "selftuning")
    with pytest.raises(ValueError, match="stn"):
        SelfTuningCallback({"drop": uniform(0, 0.9)}, kind="stn").export(model)


def test_a_second_fit_goes_on_and_another_module_begins_anew() -> None:
    tuning, model = callback(), Net("penalty")
    fit(model, tuning)
    state = float(tuning.state_dict()["updates"]["optimizers"]["hyper"]["state"][0]["step"])
    fit(model, tuning)
    assert (tuning.steps, tuning.hyper_steps) == (24, 12)
    assert tuning.state_dict()["updates"]["optimizers"]["hyper"]["state"][0]["step"] == 2 * state
    fit(Net("penalty"), tuning)
    assert (tuning.steps, tuning.hyper_steps) == (12, 6)


def test_export_is_the_plain_module() -> None:
    for kind in ("delta", "stn"):
        tuning = SelfTuningCallback({"drop": uniform(0, 0.9)}, kind=kind, warm_up_epochs=0)  # type: ignore[arg-type]
        model = Net()
        trainer = fit(model, tuning)
        exported = tuning.export(model)
        assert type(exported.body) is nn.Linear
        assert type(exported.drop) is nn.Dropout
        assert exported.drop.p == pytest.approx(tuning.values()["drop"])
        assert not any(name.startswith("selftuning") for name in exported.state_dict())
        again = Net()
        again.load_state_dict(tuning.plain_state_dict(model))
        for other in (model, exported, again):
            other.eval()
        torch.testing.assert_close(exported(_X), model(_X))
        torch.testing.assert_close(again(_X), model(_X))
        assert trainer.callback_metrics["selftuning/value/drop"] == pytest.approx(exported.drop.p)


# ---- checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tune_scales": True}, {"update": "joint"}, {"kind": "stn"}])
@pytest.mark.parametrize("every", ["epoch", "steps"])
def test_a_resumed_training_goes_on_exactly(tmp_path: Path, options: dict[str, Any], every: str) -> None:
    # Lightning begins a broken epoch with its first batch, so that all are alike then.
    alike = TensorDataset(_X[:4].repeat(6, 1), _Y[:4].repeat(6))
    train = loader() if every == "epoch" else DataLoader(alike, 4)

    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Net, SelfTuningCallback]:
        model = Net("penalty", optimizer="adam")
        space = {"penalty": loguniform(1e-3, 10.0), "drop": uniform(0, 0.9)}
        tuning = callback(hyperparameters=space, dropout="auto", **options)
        frequency = {"every_n_epochs": 1} if every == "epoch" else {"every_n_train_steps": 7}
        saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **frequency)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory|You're resuming from a checkpoint")
            arguments = {"max_epochs": epochs, "enable_checkpointing": True, "ckpt_path": ckpt_path}
            fit(model, tuning, saves, _Seeds(), train=train, **arguments)
        return model, tuning

    whole, tuning = run(4)
    checkpoint = tmp_path / ("step=12.ckpt" if every == "epoch" else "step=7.ckpt")
    resumed, again = run(4, checkpoint)
    assert_equal(_tensors(whole), _tensors(resumed))
    assert tuning.values() == again.values()
    assert (tuning.steps, tuning.hyper_steps) == (again.steps, again.hyper_steps) == (24, 12)
    for name in ("val_loss", "step", "epoch"):
        torch.testing.assert_close(
            tuning.schedule.column(name), again.schedule.column(name), equal_nan=True, rtol=0, atol=0
        )


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor) and name != "total"}


class _Seeds(Callback):
    """Seeds the global generator for each batch; Lightning does not save it."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        torch.manual_seed(trainer.global_step)


def test_checkpoints_of_the_tuned_module_in_other_hands(tmp_path: Path) -> None:
    tuning, model = callback(), Net("penalty")
    saves = ModelCheckpoint(tmp_path, monitor="selftuning/val_loss", filename="best")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory")
        trainer = fit(model, tuning, saves, enable_checkpointing=True, max_epochs=1)
    with pytest.warns(UserWarning, match="selftuning.hyperparameters.raw"):  # strict=False says what it leaves
        alone = Net.load_from_checkpoint(tmp_path / "best.ckpt", strict=False, weights_only=True)
    assert_equal(plain(model), plain(alone))
    # A fresh process with the callback loads strictly, and has the values.
    fresh = callback(start={"penalty": 5.0})
    other = trainer_with(fresh)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        (tested,) = other.test(Net("penalty"), loader(), ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert fresh.values() == tuning.values()
    assert tested == trainer.test(model, loader(), verbose=False)[0]
    wrong = callback(hyperparameters={"decay": loguniform(1e-3, 10.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="penalty"):
            trainer_with(wrong).test(Net(), loader(), ckpt_path=tmp_path / "best.ckpt", verbose=False)


def test_a_paused_trial_goes_on_exactly(make_tuner: Callable[..., Any]) -> None:
    def script() -> tuple[Net, SelfTuningCallback]:
        tuning = SelfTuningCallback({"penalty": loguniform(1e-3, 10.0), "drop": uniform(0, 0.9)}, warm_up_epochs=1)
        report = TuneReportCallback({"acc": "train/accuracy", "penalty": "selftuning/value/penalty"})
        model = Net("penalty", norm=True)
        fit(model, report, tuning, train=loader(shuffle=True), max_epochs=6)
        return model, tuning

    one, two = make_tuner("one"), make_tuner("two")
    whole, tuning = one.run_trial(script)
    two.run_trial(script, {2: "PAUSE", 5: "PAUSE"})
    two.run_trial(script, {5: "PAUSE"})
    resumed, again = two.run_trial(script)
    assert one.curve == two.curve
    assert len({report["penalty"] for report in one.curve}) == 6
    assert_equal(_tensors(whole), _tensors(resumed))
    assert tuning.values() == again.values()
    assert len(tuning.schedule) == len(again.schedule)


# ---- what goes wrong ----------------------------------------------------------------------------------------


def test_hypergradients_that_are_not_finite_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            return loss * float("nan") if self.trainer.global_step in (4, 6) else loss

    tuning = callback()
    with caplog.at_level(logging.WARNING):
        trainer = fit(Breaks("penalty"), tuning)
    assert tuning.notices.skipped == 2
    assert trainer.callback_metrics["selftuning/skipped"] == 2
    assert tuning.hyper_steps == 6
    assert sum("not finite" in record.message for record in caplog.records) == 1
    assert tuning.values()["penalty"] > 0


def test_idle_hyperparameters_stay_and_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    from sthyper.selftuning.hyperparameters import bounded

    holes = bounded("holes", 0.5, 0.0, 100.0, discrete=True, scale=0.05)
    tuning = callback(hyperparameters=Hyperparameters([holes, bounded("penalty", 0.1, 0.0, 1.0)]))
    before = tuning.values()
    with caplog.at_level(logging.WARNING):
        fit(Net("penalty"), tuning)
    assert tuning.values()["holes"] == before["holes"]
    assert tuning.values()["penalty"] != before["penalty"]
    assert sum("makes no difference" in record.message for record in caplog.records) == 1


def test_unused_hyperparameters_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    space = {"penalty": loguniform(1e-3, 10.0), "forgotten": uniform(0, 1)}
    with caplog.at_level(logging.WARNING):
        fit(Net("penalty"), callback(hyperparameters=space), max_epochs=3)
    (message,) = [record.getMessage() for record in caplog.records if "used nowhere" in record.message]
    assert "['forgotten']" in message


def test_a_batch_without_a_loss_is_passed_over() -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    model, tuning = Skips("penalty"), callback()
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(model, tuning, max_epochs=1)
    optimizer = tuning.state_dict()["updates"]["optimizers"]["responses"]["state"]
    assert {int(state["step"]) for state in optimizer.values()} == {3}


def test_no_hyper_step_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no hyper step in 12 training steps"):
        fit(Net("penalty"), callback(warm_up_epochs=5))


def test_losses_that_cannot_be_linearised_are_named() -> None:
    class Own(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self(batch[0]) - 1).square().mean()

    with pytest.raises(ValueError, match="update='nonlinear'"):
        fit(Own(), callback())
    fit(Own(), callback(update="nonlinear"))


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Iterates(Net):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "fitting", "message"),
    [
        ({}, {"module": Manual}, "automatic optimization"),
        ({}, {"module": Iterates}, "dataloader_iter"),
        ({}, {"module": lambda: Net(optimizer="lbfgs")}, "LBFGS"),
        ({}, {"module": lambda: torch.compile(Net())}, "compile"),
        ({}, {"precision": "bf16-true"}, "bf16-true"),
        ({}, {"precision": "16-true"}, "16-true"),
        ({}, {"limit_val_batches": 0}, "validation data is missing"),
        ({}, {"val": loader(24, 27)}, "less than a batch"),
        ({"val_dataloader": loader(24, 27)}, {}, "less than a batch"),
        ({"val_loss": "val/los"}, {}, "val/loss"),
        ({"exclude": ["*"]}, {}, "no layer that can be transformed"),
        ({"dropout": {"nope": "penalty"}}, {}, "nope"),
    ],
)
def test_what_is_refused(options: dict[str, Any], fitting: dict[str, Any], message: str) -> None:
    arguments = dict(fitting)
    module = arguments.pop("module", lambda: Net("penalty"))()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            fit(module, callback(**options), **arguments)


def test_no_validation_data_at_all() -> None:
    trainer = trainer_with(callback())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="no val_dataloader"):
            trainer.fit(Net("penalty"), loader())


def test_unsupported_strategies() -> None:
    from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy

    trainer = trainer_with()
    checks.check_trainer(trainer)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="FSDPStrategy"):
        callback().setup(trainer, Net(), "fit")
    with pytest.raises(TypeError, match="lightning.pytorch"):
        checks.check_trainer(object())


def test_several_optimizers_are_refused_by_lightning() -> None:
    class Two(Net):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.body.parameters(), 0.1), torch.optim.SGD(self.head.parameters(), 0.1)]

    with pytest.raises(RuntimeError, match="multiple optimizers"):
        fit(Two("penalty"), callback())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hyperparameters": {}}, "at least one"),
        ({"hyperparameters": [1]}, "hyperparameters"),
        ({"hyperparameters": {"a": {"lower": 0.0, "uper": 1.0, "start": 0.5}}}, "upper"),
        ({"hyperparameters": {"a": {"lower": 0.0, "start": 0.5}}}, "upper"),
        ({"hyperparameters": Hyperparameters({"a": uniform(0, 1)}), "start": {"a": 0.5}}, "start"),
        ({"kind": "detla"}, "delta"),
        ({"response": "ful"}, "full"),
        ({"update": "linear"}, "linearised"),
        ({"kind": "stn", "update": "linearised"}, "joint"),
        ({"update": "joint", "response_lr": 0.1}, "response_lr"),
        ({"update": "joint", "response_part": 0.5}, "response_part"),
        ({"update": "joint", "response_every": 2}, "response_every"),
        ({"kind": "stn", "response_every": 2}, "response_every"),
        ({"response_every": 0}, "response_every"),
        ({"rest": -0.1}, "rest must be"),
        ({"rest": 0.5, "hyper_steps": 0}, "rest has no effect"),
        ({"kind": "stn", "max_norm": 1.0}, "max_norm"),
        ({"train_steps": 0}, "train_steps"),
        ({"hyper_lr": 0.0}, "hyper_lr"),
        ({"entropy_weight": 0.1}, "tune_scales"),
        ({"seed": -1}, "seed"),
        ({"rank": 0}, "rank"),
    ],
)
def test_arguments_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        callback(**options)


def test_another_module_that_is_self_tuning_already() -> None:
    hyperparameters = Hyperparameters({"penalty": loguniform(1e-3, 10.0)})
    model = Net("penalty")
    self_tune(model, hyperparameters, dropout=None)
    with pytest.raises(ValueError, match="other hyperparameters"):
        fit(model, callback())
    with pytest.raises(ValueError, match="of kind 'delta'"):
        fit(model, callback(hyperparameters=hyperparameters, kind="stn"))
    tuning = callback(hyperparameters=hyperparameters)
    fit(model, tuning)
    assert tuning.hyper_steps == 6


def test_domains_of_a_configuration_file() -> None:
    from sthyper.config_space import to_dict

    tuning = SelfTuningCallback(
        {"a": {"lower": 0.0, "upper": 2.0, "start": 0.5}, "b": to_dict(uniform(0, 1))},
        start={"b": 0.25},
        scale={"b": 0.5},
    )
    assert tuning.values() == pytest.approx({"a": 0.5, "b": 0.25})
    assert tuning.scales() == pytest.approx({"a": 1.0, "b": 0.5})


def test_a_command_line_interface_knows_every_argument() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    entry = {
        "class_path": "sthyper.callbacks.SelfTuningCallback",
        "init_args": {
            "hyperparameters": {
                "rate": {"lower": 0.0, "upper": 0.9, "start": 0.1},
                "penalty": {"lower": 0.0, "upper": 1.0, "start": 0.5},
            },
            "dropout": {"drop": "rate"},
            "exclude": ["head"],
            "update": "nonlinear",
            "scale_bounds": [0.2, 1.0],
            "warm_up_epochs": 0,
            "train_steps": 2,
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tuning,) = parser.instantiate_classes(parser.parse_object({"callbacks": [entry]})).callbacks
    model = Net("penalty")
    fit(model, tuning)
    assert set(model.selftuning.forms) == {"body"}
    assert tuning.options.scale_bounds == (0.2, 1.0)
    assert tuning.hyper_steps == 6


def test_synchronised_batch_norms_are_refused() -> None:
    trainer = trainer_with()
    trainer.strategy._layer_sync = object()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="sync_batchnorm"):
        checks.check_module(trainer, Net(norm=True))
    checks.check_module(trainer, Net())


@pytest.mark.parametrize(
    ("options", "names"),
    [({"response": "lowrank", "rank": 2}, {"lowrank"}), ({"response": "full"}, {"full"})],
)
def test_forms_of_responses(options: dict[str, Any], names: set[str]) -> None:
    model = Net("penalty")
    fit(model, callback(**options), max_epochs=1)
    assert set(model.selftuning.forms.values()) == names


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"hyper_lr": 0.3},
        {"response_lr": 0.1},
        {"bound": 1e-3},
        {"response_warm_up": 0},
        {"response_every": 3, "response_warm_up": 0},
        {"max_norm": 1e-3},
        {"rank": 1},
        {"scale": 0.3},
    ],
)
def test_arguments_matter(options: dict[str, Any]) -> None:
    ends = []
    for changes in ({}, options):
        base = {"response": "lowrank", "start": {"penalty": 0.1}}
        tuning = callback(**base | changes)
        fit(Net("penalty"), tuning, max_epochs=3)
        ends.append(tuning.values()["penalty"])
    assert ends[0] != ends[1]


@pytest.mark.parametrize(("part", "expected"), [(None, 32), (0.9, 63), (1.0, 70)])
def test_responses_are_updated_on_a_part_of_the_batch(part: float | None, expected: int) -> None:
    sizes: list[int] = []
    firsts: set[float] = set()

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            sizes.append(len(batch[0]))
            firsts.add(float(batch[0].flatten()[0]))
            return super().training_step(batch, batch_idx)

    examples = TensorDataset(torch.cat([_X, _X])[:70], torch.cat([_Y, _Y])[:70])
    fit(Looks("penalty"), callback(response_part=part), train=DataLoader(examples, 70), max_epochs=4)
    assert sizes == [70, expected] * 4
    assert (len(firsts) > 1) == (expected < 70), "others each time"


def test_responses_have_their_turn_in_some_optimiser_steps() -> None:
    """Gradients of all batches of such a step count, of the others none."""
    linear: list[int] = []

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            current = self.selftuning.hyperparameters.current
            if current is not None and current.linearised:
                linear.append(batch_idx)
            return super().training_step(batch, batch_idx)

    fit(
        Looks("penalty"),
        callback(response_every=3, response_warm_up=0),
        train=loader(0, 48),
        max_epochs=1,
        accumulate_grad_batches=2,
    )
    assert linear == [0, 1, 6, 7]


def test_hyperparameters_rest_at_the_end_of_a_run() -> None:
    linear: list[int] = []

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            current = self.selftuning.hyperparameters.current
            if current is not None and current.linearised:
                linear.append(self.trainer.current_epoch)
            return super().training_step(batch, batch_idx)

    def hyper_steps(**options: Any) -> int:
        linear.clear()
        tuning = callback(train_steps=1, warm_up_epochs=2, **options)
        fit(Looks("penalty"), tuning, train=loader(0, 8), max_epochs=10)  # two steps an epoch
        return tuning.hyper_steps

    # Of the eight epochs after the warm-up the last two.
    assert hyper_steps(rest=0.25) == 12
    assert linear == [epoch for epoch in range(8) for _ in range(2)]
    assert hyper_steps(rest=0.0) == hyper_steps() == 16
    assert linear == [epoch for epoch in range(10) for _ in range(2)]
    assert hyper_steps(rest=0.25, update="joint") == 12


@pytest.mark.parametrize(("least", "responds_from", "tuned_from"), [(16, 0, 2), (15, 2, 5)])
def test_the_warm_up_of_long_runs_is_longer(
    least: int, responds_from: int, tuned_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear: list[int] = []

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            current = self.selftuning.hyperparameters.current
            if current is not None and current.linearised:
                linear.append(tuning.steps)
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("sthyper.selftuning._trainer_pace._LEAST_TUNED", least)
    tuning = callback(train_steps=1, warm_up_epochs=None)
    fit(Looks("penalty"), tuning, train=loader(0, 8), max_epochs=10)  # two steps an epoch
    assert tuning.steps == 20
    assert linear == list(range(responds_from, 20))
    assert tuning.hyper_steps == 20 - tuned_from


def test_rest_needs_the_length_of_the_run() -> None:
    with pytest.raises(ValueError, match="rest needs a run whose length is known"):
        fit(Net("penalty"), callback(rest=0.5), max_epochs=-1, max_time={"seconds": 5})


def test_groups_share_a_perturbation() -> None:
    strengths: list[Tensor] = []

    class Looks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            strengths.append(self.selftuning.hyperparameters["penalty"])
            return super().training_step(batch, batch_idx)

    fit(Looks("penalty"), callback(update="joint", groups=2), max_epochs=1)
    assert all(len(set(s.tolist())) == 2 and s[0] == s[1] for s in strengths)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_on_a_gpu(precision: str) -> None:
    tuning, model = callback(tune_scales=True), Net("penalty", norm=True)
    before = tuning.values()
    fit(model, tuning, accelerator="gpu", devices=1, precision=precision)
    assert tuning.hyperparameters.raw.is_cuda
    assert tuning.values() != before
    assert tuning.notices.skipped == 0
