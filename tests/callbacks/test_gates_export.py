"""The plain module that GateTuningCallback exports."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.callbacks import GateTuningCallback


class Block(nn.Module):
    """A residual block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Weighted(nn.Module):
    """An operation with two inputs."""

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        return x * (1 + strength)


class Net(LightningModule):
    """A convolutional network."""

    def __init__(self, example: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.save_hyperparameters()
        self.augment = nn.ModuleList([Weighted(), Weighted()])
        self.encoder = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.block1 = Block(4)
        self.block2 = Block(4)
        self.features = nn.Linear(4, 16)
        self.head = nn.Linear(16, 2)
        if example:
            self.example_input_array = images(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.augment[0](x)
        x = self.augment[1](x, strength=0.5)
        x = self.block2(self.block1(self.encoder(x)))
        return self.head(torch.tanh(self.features(x.mean((2, 3)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


TARGETS: dict[str, Any] = {
    "encoder": "channels",
    "features": "channels",
    "head": "inputs",
    "block*.body": "branch",
    "augment.*": "operation",
}


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


def images(n: int) -> Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def fit(module: LightningModule, tuning: GateTuningCallback) -> None:
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[tuning], **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(TensorDataset(images(16), torch.arange(16) % 2), 8))


def decide(tuning: GateTuningCallback) -> None:
    """Close every other choice."""
    with torch.no_grad():
        for i, gate in enumerate(tuning.gates.values()):
            n = gate.logits.numel()
            is_open = (torch.arange(n) + i) % 2 == 0
            gate.logits.copy_((8.0 * is_open - 4.0).reshape(gate.logits.shape))


def check_plain(module: nn.Module) -> None:
    """No type, hook, parameter or pickled byte comes from here."""
    for part in module.modules():
        assert not type(part).__module__.startswith("sthyper")
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        assert not any(hooks)
    assert not hasattr(module, "gates")
    buffer = io.BytesIO()
    torch.save(module, buffer)
    assert b"sthyper" not in buffer.getvalue()


@pytest.mark.parametrize("example", [True, False])
def test_the_exported_module_is_plain_and_does_the_same(example: bool) -> None:
    module, tuning = Net(example), GateTuningCallback(TARGETS)
    fit(module, tuning)
    decide(tuning)
    given = None if example else images(2)
    exported = tuning.export(module, given)
    assert type(exported) is Net
    assert exported.hparams == module.hparams
    check_plain(exported)
    x = images(20)
    torch.testing.assert_close(exported.eval()(x), module.eval()(x), rtol=1e-5, atol=1e-5)
    # What can be cut is cut.
    assert exported.encoder[0].out_channels == 4
    assert exported.encoder[1].num_features == 4
    assert exported.features.out_features == exported.head.in_features == 8
    closed = [name for name, d in tuning.decisions().items() if not d.dim() and not d]
    assert closed == ["block1.body", "augment.0"] or closed == ["block2.body", "augment.1"]
    assert isinstance(exported.get_submodule(closed[0]), nn.Threshold)
    assert not isinstance(exported.get_submodule(closed[1]), Weighted)
    # The module that was trained keeps its gates.
    assert "gates.head:inputs.logits" in module.state_dict()
    assert sum(p.numel() for p in exported.parameters()) < 0.8 * sum(p.numel() for p in Net().parameters())


def test_an_exported_module_can_be_trained_on() -> None:
    module, tuning = Net(), GateTuningCallback(TARGETS)
    fit(module, tuning)
    decide(tuning)
    exported = tuning.export(module)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, **quiet)  # type: ignore[arg-type]
    before = exported.features.weight.clone()
    trainer.fit(exported, DataLoader(TensorDataset(images(16), torch.arange(16) % 2), 8))
    assert not torch.equal(before, exported.features.weight)


class Many(nn.Module):
    """An operation with all kinds of inputs."""

    def forward(self, x: Tensor, *more: float, strength: float = 1.0, **options: float) -> Tensor:
        return x * strength + sum(more) + sum(options.values())


class Called(LightningModule):
    """Calls an operation in some way."""

    def __init__(self, operation: nn.Module, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation = operation
        self.layer = nn.Linear(2, 2)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "one":
            return self.layer(self.operation(x))
        if self.way == "name":
            return self.layer(self.operation(x=x))
        if self.way == "two":
            return self.layer(self.operation(x, 2.0))
        return self.layer(self.operation(x, strength=2.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0].mean((2, 3))), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


class Doubled(nn.Module):
    """An operation with one input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(
    ("operation", "way"),
    [(o, w) for o in (Many, Weighted) for w in ("one", "two", "strength")] + [(Doubled, "one"), (Doubled, "name")],
)
@pytest.mark.parametrize("is_open", [False, True])
def test_operations_that_are_called_in_many_ways(operation: type[nn.Module], way: str, is_open: bool) -> None:
    module, tuning = Called(operation(), way), GateTuningCallback({"operation": "operation"})
    fit(module, tuning)
    with torch.no_grad():
        tuning.gates["operation"].logits.fill_(4.0 if is_open else -4.0)
    exported = tuning.export(module)
    x = torch.randn(4, 2)
    torch.testing.assert_close(exported.eval()(x), module.eval()(x))
    assert isinstance(exported.operation, operation) is is_open
    if not is_open:
        torch.testing.assert_close(exported(x), exported.layer(x))
        assert not any(type(m).__module__.startswith("sthyper") for m in exported.modules())
        assert isinstance(exported.operation, nn.Identity) is ((operation, way) == (Doubled, "one"))


def test_a_module_that_cannot_be_followed_has_zeros() -> None:
    class Steps(Net):
        """Has no forward that could be followed."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    module, tuning = Steps(), GateTuningCallback({"encoder": "channels", "features": "channels"})
    fit(module, tuning)
    decide(tuning)
    exported = tuning.export(module)
    torch.testing.assert_close(exported.eval()(images(5)), module.eval()(images(5)), rtol=1e-5, atol=1e-5)
    decisions = tuning.decisions()["features"]
    assert torch.equal((exported.features.weight != 0).any(1), decisions)
    assert not any(key.startswith("gates") for key in exported.state_dict())


def test_open_gates_leave_everything() -> None:
    module, tuning = Net(), GateTuningCallback(TARGETS)
    fit(module, tuning)
    exported = tuning.export(module)
    trained = {name: value for name, value in module.state_dict().items() if not name.startswith("gates.")}
    assert list(exported.state_dict()) == list(trained)
    for name, value in exported.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_a_plain_module_with_gates_that_are_known() -> None:
    module, tuning = Net(), GateTuningCallback(TARGETS)
    fit(module, tuning)
    decide(tuning)
    plain = Net()
    plain.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(tuning.export(plain).eval()(images(4)), module.eval()(images(4)), rtol=1e-5, atol=1e-5)

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(4, 8)
            self.head = nn.Linear(8, 2)

    with pytest.raises(ValueError, match="the module is not the one with these gates"):
        tuning.export(Other())


class Auxiliary(LightningModule):
    """Has a head that only ``training_step`` uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.example_input_array = torch.ones(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = self.body(batch[0].mean((2, 3)).repeat(1, 2)).relu()
        return F.cross_entropy(self.head(h), batch[1]) + F.cross_entropy(self.aux(h), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


def test_heads_that_only_training_uses_get_what_they_got() -> None:
    module, tuning = Auxiliary(), GateTuningCallback({"body": "channels"})
    fit(module, tuning)
    decide(tuning)
    exported = tuning.export(module)
    assert exported.body.out_features == 6
    assert not exported.body.weight[1::2].any()
    x = torch.randn(3, 4)
    torch.testing.assert_close(exported.eval()(x), module.eval()(x))
    batch = (images(8), torch.arange(8) % 2)
    torch.testing.assert_close(exported.training_step(batch, 0), module.training_step(batch, 0))
