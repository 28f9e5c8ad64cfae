"""GateTuningCallback on one device: how gates are trained, what stays untouched, checkpoints and numbers."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.callbacks import GateTuningCallback
from sthyper.callbacks.lightning import _gates_steps

CLASSES, FEATURES = 3, 6
_G = torch.Generator().manual_seed(1)
_X = torch.randn(60, FEATURES, generator=_G)
_Y = (_X @ torch.randn(FEATURES, CLASSES, generator=_G)).argmax(1)


def loader(first: int = 0, last: int = 24, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(_X[first:last], _Y[first:last]), batch_size, **options)


class Net(LightningModule):
    """A small classifier."""

    def __init__(self, manual: bool = False, returns: bool = True, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.automatic_optimization = not manual
        self.norm = nn.BatchNorm1d(FEATURES)
        self.body = nn.Linear(FEATURES, 5)
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(5, CLASSES)
        self.returns = returns
        self.lr = lr
        self.seen: list[float] = []
        self.draws: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.norm(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.draws.append(random.random() + float(torch.rand(())) + float(np.random.rand()))  # noqa: NPY002
        self.seen.append(float(loss.detach()))
        self.log("train/loss", loss)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 1e-3, "norm")
        optimizer.step()
        self.zero_grad()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val/loss", loss)
        self.log("val/double", 2 * loss)
        return loss if self.returns else None

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.1)


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


def fit(module: LightningModule, *callbacks: Callback, train: Any = None, val: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    base: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(callbacks=list(callbacks), **base | quiet | options)
    trainer.fit(module, train or loader(), val or loader(24, 40), ckpt_path=ckpt_path)
    return trainer


def logits(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if name.endswith("logits")}


def plain(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("gates.")}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert list(first) == list(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Gradients:
    """Notes what the callback's optimiser is given, instead of a step if ``still``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, still: bool = True) -> None:
        self.noted: list[list[Tensor | None]] = []
        apply = _gates_steps.apply_gradients

        def note(optimizers: Any, parameters: Any, gradients: Any, max_norm: float | None = None) -> None:
            self.noted.append([None if g is None else g.clone() for g in gradients])
            if not still:
                apply(optimizers, parameters, gradients, max_norm)

        monkeypatch.setattr(_gates_steps, "apply_gradients", note)


TARGETS: dict[str, Any] = {"body": "inputs", "head": "inputs"}


# ---- gradients ----------------------------------------------------------------------------------------------


def reference(module: Net, batches: list[Any], first: int, seed: int = 0) -> list[Tensor]:
    """The mean gradient of the loss with respect to the logits over batches, which begin at a number."""
    gates = module.get_submodule("gates").train()
    module.train()
    total = [torch.zeros_like(gate.logits) for gate in gates.gates]
    for i, (x, y) in enumerate(batches):
        gates.reseed(seed, 0, first + i, 1)
        loss = F.cross_entropy(module(x), y) / len(batches)
        for sum_, g in zip(total, torch.autograd.grad(loss, [gate.logits for gate in gates.gates]), strict=True):
            sum_ += g
    return total


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 1e-4])
def test_gradients_are_those_of_the_training_loss(
    accumulate: int, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Gradients(monkeypatch)
    module = Net(lr=0.0)
    fit(
        module,
        GateTuningCallback(TARGETS, seed=7),
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        max_epochs=1,
    )
    batches = list(loader())
    assert len(noted.noted) == len(batches) // accumulate
    for i, found in enumerate(noted.noted):
        expected = reference(module, batches[i * accumulate : (i + 1) * accumulate], i * accumulate, seed=7)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
            assert one is not None
            assert one.abs().sum() > 0


@pytest.mark.parametrize(("accumulate", "every"), [(1, None), (3, 2)])
def test_gradients_from_elsewhere_than_training_have_no_part(
    accumulate: int, every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example of adversarial examples or saliency maps in validation, also in the middle of an accumulation."""

    class Elsewhere(Callback):
        def __init__(self) -> None:
            self.calls = 0

        def _backward(self, module: Any) -> None:
            training = module.training
            with torch.enable_grad(), torch.inference_mode(False):
                module.train()
                (1e3 * module(_X[:4].clone()).square().sum()).backward()
                module.train(training)
            module.zero_grad()
            self.calls += 1

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self._backward(pl_module)

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self._backward(pl_module)

    noted = []
    for elsewhere in ([], [Elsewhere()]):
        with monkeypatch.context() as patch:
            found = Gradients(patch)
            options = {} if every is None else {"val_check_interval": every}
            module = Net(lr=0.0)
            module.norm.momentum = 0.0
            fit(
                module,
                GateTuningCallback(TARGETS),
                *elsewhere,
                accumulate_grad_batches=accumulate,
                inference_mode=False,
                **options,
            )
            noted.append(found.noted)
        assert all(one.calls >= 4 for one in elsewhere)
    assert len(noted[0]) == len(noted[1]) == 12 // accumulate
    for first, second in zip(*noted, strict=True):
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*on_train_batch_start.*")
def test_a_window_that_was_cut_short_has_no_part_in_the_next_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.current_epoch == 0 and batch_idx == 1 else None

    noted = Gradients(monkeypatch)
    module = Short(lr=0.0)
    fit(module, GateTuningCallback(TARGETS), accumulate_grad_batches=3)
    expected = reference(module, list(loader())[:3], 1)
    for one, other in zip(noted.noted[0], expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_manual_optimization(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user clips, and sets everything to zero before the batch ends."""
    noted = Gradients(monkeypatch)
    module = Net(manual=True, lr=0.0)
    fit(module, GateTuningCallback(TARGETS), max_epochs=1)
    for i, batch in enumerate(loader()):
        for one, other in zip(noted.noted[i], reference(module, [batch], i), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("val_dataloader", [None, "val"])
def test_scaled_losses_give_the_same_gradients(
    manual: bool, val_dataloader: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for scale in (None, 1024.0):
        with monkeypatch.context() as patch:
            noted = Gradients(patch)
            scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)  # type: ignore[attr-defined]
            plugin = MixedPrecision("bf16-mixed" if scale is None else "16-mixed", "cpu", scaler)
            # What differs between the two types is rounding.
            patch.setattr(plugin, "autocast_context_manager", lambda: torch.autocast("cpu", enabled=False))
            tuning = GateTuningCallback(TARGETS, val_dataloader=val_dataloader)
            fit(Net(manual, lr=0.0), tuning, plugins=[plugin], max_epochs=1)
            gradients.append(noted.noted)
    assert len(gradients[0]) == len(gradients[1]) > 0
    for first, second in zip(*gradients, strict=True):
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_mixed_precision() -> None:
    module = Net()
    before = GateTuningCallback(TARGETS)
    fit(module, before, precision="bf16-mixed")
    assert all(value.dtype is torch.float32 for value in logits(module).values())
    assert before.steps == 12
    double = Net()
    fit(double, GateTuningCallback(TARGETS), precision="64-true")
    assert all(value.dtype is torch.float64 for value in logits(double).values())
    with pytest.raises(ValueError, match="GateTuningCallback does not support precision='bf16-true'"):
        fit(Net(), GateTuningCallback(TARGETS), precision="bf16-true")


def test_the_penalty_is_the_gradient_of_expected_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(**options: Any) -> list[Tensor | None]:
        with monkeypatch.context() as patch:
            noted = Gradients(patch)
            fit(Net(lr=0.0), GateTuningCallback(TARGETS, probability=0.7, **options), max_epochs=1)
        return noted.noted[0]

    slope, entropy = 0.7 * 0.3, 0.7 * 0.3 * float(torch.logit(torch.tensor(0.3)))
    plain = gradients()
    for options, expected in (
        ({"penalty": 2.0}, (2 * slope, 2 * slope)),
        ({"penalty": {"head": 2.0}}, (0.0, 2 * slope)),
        ({"entropy_weight": 3.0}, (3 * entropy, 3 * entropy)),
        ({"entropy_weight": {"body": 3.0}}, (3 * entropy, 0.0)),
        # 4.2 and 3.5 gates are expected to be open.
        ({"penalty": 2.0, "target_size": 4}, (2 * slope, 0.0)),
        ({"penalty": 2.0, "target_size": {"body": 5}}, (0.0, 2 * slope)),
        ({"penalty": 2.0, "target_size": 0.6}, (2 * slope, 2 * slope)),
        ({"penalty": 2.0, "target_size": 0.71}, (0.0, 0.0)),
    ):
        for one, other, cost in zip(gradients(**options), plain, expected, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one - other, torch.full_like(one, cost), rtol=1e-4, atol=1e-5)


def test_optimisers_of_the_user_do_not_see_the_logits() -> None:
    class Spy(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            own = [p for name, p in pl_module.named_parameters() if name.startswith("gates.")]
            assert len(own) == 2
            assert not any(id(p) in held for p in own)
            assert all(p.grad is None for p in own)
            assert len(held) == len(list(pl_module.parameters())) - 2
            self.called = True

    for manual in (False, True):
        spy = Spy()
        fit(Net(manual=manual), GateTuningCallback(TARGETS), spy)
        assert spy.called


def test_training_with_open_gates_is_plain_training() -> None:
    """Nothing but the samples differs."""
    alone, gated = Net(), Net()
    fit(alone)
    fit(gated, GateTuningCallback(TARGETS, warm_up_epochs=1), max_epochs=2)
    assert gated.seen[:6] == pytest.approx(alone.seen[:6])
    assert gated.seen[6:] != pytest.approx(alone.seen[6:])
    assert gated.draws == alone.draws


@pytest.mark.parametrize("option", [{"lr": 0.2}, {"max_norm": 1e-12}, {"estimator": "probs"}, {"seed": 1}])
def test_options_of_the_optimiser_and_the_samples(option: dict[str, Any]) -> None:
    results = []
    for options in ({}, {}, option):
        module = Net()
        fit(module, GateTuningCallback(TARGETS, **options))
        results.append(logits(module))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("estimator", ["gumbel", "hard_concrete"])
def test_relaxed_estimators_have_a_temperature_that_falls(estimator: Any) -> None:
    results = []
    for options in ({}, {"temperature": 2.0}, {"temperature": 2.0, "temperature_end": 0.5}):
        module = Net()
        tuning = GateTuningCallback(TARGETS, estimator=estimator, warm_up_epochs=1, **options)
        fit(module, tuning)
        results.append(logits(module))
        gate = tuning.gates["body"]
        expected = 2 / 3 if not options else 2.0 if len(options) == 1 else 2.0 * 0.25 ** (5 / 6)
        assert gate.temperature == pytest.approx(expected)
    assert not equal(results[0], results[1])
    assert not equal(results[1], results[2])


def test_a_temperature_that_falls_needs_an_end() -> None:
    tuning = GateTuningCallback(TARGETS, estimator="gumbel", temperature=2.0, temperature_end=0.5)
    with pytest.raises(ValueError, match="temperature_end needs a run whose length is known"):
        fit(Net(), tuning, max_epochs=-1, max_time="00:00:00:05")


def test_a_warm_up_has_open_gates() -> None:
    class Look(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            self.open.append(float(pl_module.get_submodule("gates").gates[0](torch.ones(2, FEATURES)).mean()))

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.noted.append(logits(pl_module))

        def __init__(self) -> None:
            self.open: list[float] = []
            self.noted: list[dict[str, Tensor]] = []

    look, tuning = Look(), GateTuningCallback(TARGETS, probability=0.4, warm_up_epochs=2)
    fit(Net(), tuning, look, max_epochs=3, num_sanity_val_steps=0)
    assert look.open[:8] == [1.0] * 8
    assert all(share < 1 for share in look.open[8:])
    assert equal(look.noted[0], look.noted[1])
    assert not equal(look.noted[1], look.noted[2])
    assert tuning.steps == 6


# ---- validation batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("manual", "step"), [(False, None), (True, None), (False, "training_step")])
def test_steps_on_validation_batches_leave_no_trace(manual: bool, step: Any) -> None:
    modules, trainers = [], []
    for every in (1, 4):
        module = Net(manual=manual)
        # So small that no sample changes.
        tuning = GateTuningCallback(TARGETS, val_dataloader="val", lr=1e-12, every_n_steps=every, val_step=step)
        trainers.append(fit(module, tuning))
        assert tuning.steps == 12 // every
        modules.append(module)
    assert equal(plain(modules[0]), plain(modules[1]))
    assert modules[0].seen == modules[1].seen
    assert modules[0].draws == modules[1].draws
    assert all(p.grad is None for name, p in modules[0].named_parameters() if name.startswith("gates."))
    first, second = (dict(trainer.callback_metrics) for trainer in trainers)
    assert set(first) == set(second)
    for name in ("train/loss", "val/loss", "val/double"):
        assert first[name] == second[name]


def test_gradients_are_those_of_the_validation_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Gradients(monkeypatch)
    module = Net(lr=0.0)
    module.norm.momentum = 0.0
    fit(module, GateTuningCallback(TARGETS, val_dataloader=loader(24, 40), seed=2), max_epochs=1)
    assert len(noted.noted) == 6
    module.eval()
    gates = module.get_submodule("gates").train()
    batches = list(loader(24, 40))
    for i, found in enumerate(noted.noted):
        gates.reseed(2, 1, i + 1, 1)
        x, y = batches[i % 4]
        expected = torch.autograd.grad(F.cross_entropy(module(x), y), [gate.logits for gate in gates.gates])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def leaking(n: int, leaks: bool, seed: int) -> DataLoader[Any]:
    """The class is feature 0, with noise; feature 1 gives it away, in training data only."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(n, generator=generator) > 0).long()
    x[:, 1] = 2.0 * (2 * y - 1) if leaks else 2 * torch.randn(n, generator=generator)
    return DataLoader(TensorDataset(x, y), 20)


@pytest.mark.parametrize("val_dataloader", [None, "val"])
def test_a_leaking_feature_is_closed_by_validation_data_only(val_dataloader: str | None) -> None:
    tuning = GateTuningCallback({"body": "inputs"}, 0.01, val_dataloader, lr=0.1)
    fit(Net(lr=0.03), tuning, train=leaking(200, True, 0), val=leaking(200, False, 1), max_epochs=30)
    is_open = tuning.decisions()["body"].tolist()
    assert is_open[0] is (val_dataloader == "val")
    assert is_open[1] is (val_dataloader is None)
    assert not any(is_open[2:])


class Augmented(LightningModule):
    """Two augmentations: one hides what misleads, one destroys what the class depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.augment = nn.ModuleDict({"helpful": Hide(1), "harmful": Hide(0)})
        self.layer = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.augment["harmful"](self.augment["helpful"](x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.05)


class Hide(nn.Module):
    """Replaces a feature by noise, in training."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.i = i

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        others = torch.arange(x.shape[1]) != self.i
        return x * others + torch.randn_like(x) * ~others


def test_a_harmful_augmentation_is_left_out() -> None:
    tuning = GateTuningCallback({"augment.*": "operation"}, val_dataloader="val", lr=0.1)
    module = Augmented()
    fit(module, tuning, train=leaking(200, True, 0), val=leaking(200, False, 1), max_epochs=20)
    p = {name: float(value) for name, value in tuning.probabilities().items()}
    assert p["augment.harmful"] < 0.1 < 0.5 < p["augment.helpful"]
    exported = tuning.export(module)
    assert type(exported.augment["harmful"]) is nn.Identity
    assert type(exported.augment["helpful"]) is Hide


def test_which_loss_is_minimised() -> None:
    results = {}
    for options in ({}, {"val_loss": "val/double"}, {"val_step": "training_step"}):
        module = Net()
        fit(module, GateTuningCallback(TARGETS, 0.05, "val", **options))  # type: ignore[arg-type]
        results[str(options)] = logits(module)
    first, double, trained = results.values()
    assert not equal(first, double)
    assert equal(first, trained)  # the same loss

    class Smoothed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.5)

    smoothed = []
    for step in ("training_step", "validation_step"):
        module = Smoothed()
        fit(module, GateTuningCallback(TARGETS, 0.05, "val", val_step=step))  # type: ignore[arg-type]
        smoothed.append(logits(module))
    assert not equal(*smoothed)
    with pytest.raises(ValueError, match=r"val_loss='val/los'.*did you mean 'val/loss'"):
        fit(Net(), GateTuningCallback(TARGETS, val_dataloader="val", val_loss="val/los"))


def test_a_validation_step_without_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit(Net(returns=False), GateTuningCallback(TARGETS, val_dataloader="val"))
    assert "GateTuningCallback: validation_step returns no loss, so gate steps minimise" in caplog.text


def test_validation_data_that_is_missing() -> None:
    class NoVal(Net):
        validation_step = LightningModule.validation_step  # type: ignore[assignment]

    for options, message in (({}, "no val_dataloader"), ({"limit_val_batches": 0}, "limit_val_batches=0")):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            max_epochs=1,
            callbacks=[GateTuningCallback(TARGETS, val_dataloader="val")],
            **options,
        )
        with pytest.raises(ValueError, match=message):
            trainer.fit(NoVal() if not options else Net(), loader(), loader(24, 40) if options else None)
    with pytest.raises(ValueError, match="less than a batch"):
        fit(Net(), GateTuningCallback(TARGETS, val_dataloader=loader(0, 2)))


# ---- numbers ------------------------------------------------------------------------------------------------


def test_numbers_reach_loggers_and_callback_metrics(tmp_path: Path) -> None:
    targets: dict[str, Any] = {"b*y": "inputs", "head": "channels"}
    tuning = GateTuningCallback(targets, {"b*y": 0.3}, "val", probability={"head": 0.3})
    trainer = fit(Net(), tuning, logger=[CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")], log_every_n_steps=1)
    p, metrics = tuning.probabilities(), trainer.callback_metrics
    assert metrics["gates/b_y/probability"] == pytest.approx(float(p["body"].mean()))
    assert metrics["gates/b_y/expected_size"] == pytest.approx(tuning.expected_size("b*y"))
    assert metrics["gates/head/open"] == int(tuning.decisions()["head"].sum())
    assert metrics["gates/expected_size"] == pytest.approx(tuning.expected_size())
    assert metrics["gates/open"] == sum(int(d.sum()) for d in tuning.decisions().values())
    assert metrics["gates/cost"] == pytest.approx(0.3 * tuning.expected_size("b*y"))
    assert metrics["gates/skipped"] == 0
    assert metrics["gates/val_loss"] > 0
    for folder in "ab":
        (file,) = (tmp_path / folder).rglob("metrics.csv")
        head, *rows = file.read_text().splitlines()
        column = head.split(",").index("gates/b_y/expected_size")
        values = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
        assert len(values) == 12
        assert values[-1] == pytest.approx(tuning.expected_size("b*y"), rel=1e-5)
        assert "gates/val_loss" in head


def test_two_callbacks_have_names_of_their_own() -> None:
    first, second = GateTuningCallback({"body": "inputs"}), GateTuningCallback({"head": "inputs"}, attribute="more")
    trainer = fit(Net(), first, second)
    assert trainer.callback_metrics["gates/expected_size"] == pytest.approx(first.expected_size())
    assert trainer.callback_metrics["more/expected_size"] == pytest.approx(second.expected_size())
    assert first.steps == second.steps == 12


def test_metrics_can_be_monitored() -> None:
    best = ModelCheckpoint("kept", "best", monitor="gates/expected_size")
    fit(Net(), GateTuningCallback(TARGETS, 0.1), best, enable_checkpointing=True)
    assert best.best_model_score is not None


def test_gates_that_nothing_calls() -> None:
    tuning = GateTuningCallback(TARGETS | {"idle": "channels"}, penalty=1.0)
    with pytest.warns(UserWarning, match=r"gates of \['idle'\] have no part in the loss"):
        fit(Net(), tuning)
    assert tuning.probabilities()["idle"].tolist() == pytest.approx([0.8, 0.8])
    with pytest.warns(UserWarning, match="GateTuningCallback made no step in 12 training batches"):
        fit(Net(), GateTuningCallback({"idle": "channels"}))
    with pytest.warns(UserWarning, match="made no step"):
        fit(Net(), GateTuningCallback(TARGETS, warm_up_epochs=2))
    with pytest.raises(ValueError, match="no gate has a part in the loss of a validation batch"):
        fit(_frozen(), GateTuningCallback({"idle": "channels"}, val_dataloader="val", val_step="validation_step"))


def _frozen() -> Net:
    module = Net(manual=True)
    for part in (module.norm, module.body, module.head):
        part.requires_grad_(False)
    module.training_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
    return module


def test_gradients_that_are_not_finite_are_skipped() -> None:
    class WithoutNorm(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x)))

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()  # weights stay finite

    x = _X[:24].clone()
    x[9] = float("nan")
    module, batches = WithoutNorm(), DataLoader(TensorDataset(x, _Y[:24]), 4)
    tuning = GateTuningCallback(TARGETS)
    with pytest.warns(UserWarning, match="not finite"):
        fit(module, tuning, train=batches, max_epochs=1)
    assert (tuning.steps, tuning.skipped) == (5, 1)
    assert all(p.isfinite().all() for p in tuning.probabilities().values())


# ---- checkpoints and further runs ---------------------------------------------------------------------------

RESUMED: list[dict[str, Any]] = [
    {"penalty": 0.02},
    {"val_dataloader": "val", "every_n_steps": 4},
    {"estimator": "gumbel", "temperature": 1.0, "temperature_end": 0.1, "warm_up_epochs": 1},
]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
@pytest.mark.parametrize("options", RESUMED)
def test_a_resumed_training_goes_on_exactly(options: dict[str, Any]) -> None:
    def run(ckpt_path: str | None = None) -> tuple[Net, GateTuningCallback]:
        module, tuning = Net(), GateTuningCallback(TARGETS, **options)
        saved = [ModelCheckpoint("kept", "{epoch}", save_top_k=-1)] if ckpt_path is None else []
        fit(module, tuning, *saved, max_epochs=4, ckpt_path=ckpt_path, enable_checkpointing=bool(saved))
        return module, tuning

    whole, tuning = run()
    resumed, again = run("kept/epoch=1.ckpt")
    assert equal(logits(whole), logits(resumed))
    assert equal(plain(whole), plain(resumed))
    assert tuning.steps == again.steps > 0
    assert whole.seen[12:] == resumed.seen


def test_a_checkpoint_without_the_callback_and_of_other_targets() -> None:
    module, saved = Net(), ModelCheckpoint("kept", "last")
    fit(module, GateTuningCallback(TARGETS), saved, enable_checkpointing=True)
    other = Net()
    state = torch.load("kept/last.ckpt", weights_only=True)["state_dict"]
    assert other.load_state_dict(state, strict=False).missing_keys == []
    assert equal(plain(other), plain(module))
    with pytest.raises(RuntimeError, match="Unexpected key.*gates.head:inputs.logits"):
        fit(Net(), GateTuningCallback({"body": "inputs"}), ckpt_path="kept/last.ckpt")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_a_checkpoint_of_the_same_targets_in_another_order() -> None:
    saved = ModelCheckpoint("kept", "last")
    fit(Net(), GateTuningCallback(TARGETS), saved, enable_checkpointing=True)
    other = GateTuningCallback(dict(reversed(TARGETS.items())))
    with pytest.raises(ValueError, match="the same ones in another order, give them in that order"):
        fit(Net(), other, max_epochs=3, ckpt_path="kept/last.ckpt")
    state = torch.load("kept/last.ckpt", weights_only=True)["callbacks"][other.state_key]
    with pytest.raises(ValueError, match="these are {'body': 'channels', 'head': 'inputs'}$"):
        GateTuningCallback({"body": "channels", "head": "inputs"}).load_state_dict(state)
    again = GateTuningCallback(TARGETS)
    fit(Net(), again, max_epochs=3, ckpt_path="kept/last.ckpt")
    assert again.steps == 18


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_test_runs_take_gates_from_the_checkpoint() -> None:
    module, saved = Net(), ModelCheckpoint("kept", "last")
    tuning = GateTuningCallback(TARGETS, penalty=1.0, lr=1.0)
    fit(module, tuning, saved, enable_checkpointing=True)
    assert not any(bool(d.any()) for d in tuning.decisions().values())
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    fresh, look = Net(), GateTuningCallback(TARGETS, penalty=1.0, lr=1.0)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[look], **quiet)  # type: ignore[arg-type]
    (result,) = trainer.validate(fresh, loader(24, 40), ckpt_path="kept/last.ckpt", verbose=False)
    closed = F.cross_entropy(module.head.bias.detach().expand(16, -1), _Y[24:40])
    assert result["val/loss"] == pytest.approx(float(closed), rel=1e-5)
    assert {n: d.tolist() for n, d in look.decisions().items()} == {
        n: d.tolist() for n, d in tuning.decisions().items()
    }


def test_a_further_fit_goes_on_and_another_module_begins_anew() -> None:
    module, tuning = Net(), GateTuningCallback(TARGETS, 0.05)
    fit(module, tuning, max_epochs=1)
    half = logits(module)
    fit(module, tuning, max_epochs=1)
    assert tuning.steps == 12
    assert not equal(half, logits(module))
    other = Net()
    fit(other, tuning, max_epochs=1)
    assert tuning.steps == 6
    assert equal(logits(other), half)
    with pytest.raises(ValueError, match="the module has other gates already"):
        fit(module, GateTuningCallback({"body": "inputs"}))
    with pytest.raises(ValueError, match=r"gates already, with .*estimator='identity'"):
        fit(module, GateTuningCallback(TARGETS, estimator="probs"))


def test_a_pickled_callback() -> None:
    module, tuning = Net(), GateTuningCallback(TARGETS)
    fit(module, tuning)
    other = pickle.loads(pickle.dumps(tuning))
    assert other.steps == tuning.steps == 12
    assert all(torch.equal(p, other.probabilities()[name]) for name, p in tuning.probabilities().items())


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_are_made_late(hook: str) -> None:
    class Late(Net):
        def setup(self, stage: str) -> None:
            if hook == "setup":
                self.body = nn.Linear(FEATURES, 5)

        def configure_model(self) -> None:
            if hook == "configure_model" and not hasattr(self, "gates"):
                self.body = nn.Linear(FEATURES, 5)

    module, tuning = Late(), GateTuningCallback({"body": "inputs"})
    del module.body
    fit(module, tuning)
    assert tuning.steps == 12
    assert "configure_model" not in vars(module)


def test_a_search_for_the_learning_rate_moves_no_gate() -> None:
    class Found(Net):
        def __init__(self) -> None:
            super().__init__()
            self.learning_rate = 0.01

    module, tuning = Found(), GateTuningCallback(TARGETS)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=[tuning], **quiet)  # type: ignore[arg-type]
    Tuner(trainer).lr_find(module, loader(), loader(24, 40), num_training=8)
    for p in tuning.probabilities().values():
        assert p.tolist() == pytest.approx([0.8] * len(p))
    trainer.fit(module, loader(), loader(24, 40))
    assert tuning.steps == 12


def test_a_development_run_skips_the_warm_up() -> None:
    tuning = GateTuningCallback(TARGETS, val_dataloader="val", warm_up_epochs=3)
    fit(Net(), tuning, fast_dev_run=True)
    assert tuning.steps == 1


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_modules_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="GateTuningCallback does not support compiled modules"):
        fit(torch.compile(Net()), GateTuningCallback(TARGETS))  # type: ignore[arg-type]

    class Reads(Net):
        def training_step(self, dataloader_iter: Any) -> None:  # type: ignore[override]
            pass

    with pytest.raises(ValueError, match=r"val_dataloader needs training_step\(batch, batch_idx\)"):
        fit(Reads(), GateTuningCallback(TARGETS, val_dataloader="val"))
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_checkpointing=False)
    monkeypatch.setattr(trainer.strategy, "_layer_sync", object(), raising=False)
    with pytest.raises(ValueError, match=r"sync_batchnorm=True\) replaces 'norm'"):
        GateTuningCallback({"norm": "branch"}).setup(trainer, Net(), "predict")
    GateTuningCallback(TARGETS).setup(trainer, Net(), "predict")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("val_dataloader", [None, "val"])
def test_on_a_gpu(val_dataloader: str | None) -> None:
    results = []
    for _ in range(2):
        module, tuning = Net(), GateTuningCallback(TARGETS, 0.1, val_dataloader, warm_up_epochs=1)
        fit(module, tuning, accelerator="gpu", devices=1, precision="16-mixed", max_epochs=3)
        assert tuning.steps + tuning.skipped == 12
        assert tuning.steps > 0
        results.append(logits(module))
        torch.testing.assert_close(tuning.export(module).eval()(_X[:8]), module.eval()(_X[:8]), rtol=1e-5, atol=1e-5)
    assert equal(results[0], results[1])


def test_lbfgs_and_other_trainers_are_refused() -> None:
    module = Net()
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters())  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="GateTuningCallback does not support LBFGS"):
        fit(module, GateTuningCallback(TARGETS))
    with pytest.raises(TypeError, match="GateTuningCallback belongs to a Trainer of lightning.pytorch"):
        GateTuningCallback(TARGETS).setup(object(), Net(), "fit")  # type: ignore[arg-type]
