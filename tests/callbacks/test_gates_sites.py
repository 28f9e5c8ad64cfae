"""Where GateTuningCallback puts gates, what passes there, and which targets it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sthyper.callbacks import GateTuningCallback
from sthyper.callbacks.lightning._gates_sites import GateSet, find_sites
from sthyper.straight_through.gates import Gate


class Noise(nn.Module):
    """An augmentation, in training only."""

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        return x + strength if self.training else x


class Shift(nn.Module):
    """An operation, in training and evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Block(nn.Module):
    """A residual block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Net(LightningModule):
    """A convolutional network with a bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.augment = nn.ModuleList([Shift(), Noise()])
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block1 = Block(4)
        self.block2 = Block(4)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.features = nn.Linear(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for operation in self.augment:
            x = operation(x)
        x = self.up(self.block2(self.block1(self.encoder(x))))
        return self.head(torch.tanh(self.features(x.mean((2, 3)))))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch)


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


def gated(module: LightningModule, targets: dict[str, Any], **options: Any) -> GateTuningCallback:
    """Put gates into a module, as the first hook of a Trainer does."""
    tuning = GateTuningCallback(targets, **options)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[tuning])
    tuning.setup(trainer, module, "predict")
    return tuning


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_class_and_names_of_parameters_stay() -> None:
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tuning = gated(module, {"encoder": "channels", "features": "inputs", "block*": "branch", "augment.*": "operation"})
    assert type(module) is Net
    after = module.state_dict()
    own = {name for name in after if name not in before}
    assert list(after)[: len(before)] == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name for name in own if name.endswith("logits")} == {
        "gates.encoder/0:channels.logits",
        "gates.features:inputs.logits",
        "gates.block1:branch.logits",
        "gates.block2:branch.logits",
        "gates.augment/0:operation.logits",
        "gates.augment/1:operation.logits",
    }
    assert {name: tuple(p.shape) for name, p in tuning.probabilities().items()} == {
        "encoder.0": (4,),
        "features": (3,),
        "block1": (),
        "block2": (),
        "augment.0": (),
        "augment.1": (),
    }
    assert isinstance(module.get_submodule("gates"), GateSet)


@pytest.mark.parametrize(
    ("target", "kind", "paths", "dims"),
    [
        ("encoder.*", "channels", {"encoder.0": 4}, [-3]),
        ("encoder", "channels", {"encoder.0": 4}, [-3]),
        ("block2", "inputs", {"block2.body.0": 4, "block2.body.2": 4}, [-3, -3]),
        ("up", "channels", {"up": 3}, [-3]),
        ("up", "inputs", {"up": 4}, [-3]),
        ("features", "inputs", {"features": 3}, [-1]),
        ("features", "channels", {"features": 5}, [-1]),
        ("block*", "branch", {"block1": None, "block2": None}, [-1, -1]),
        ("block?.body", "branch", {"block1.body": None, "block2.body": None}, [-1, -1]),
        ("augment.0", "operation", {"augment.0": None}, [-1]),
    ],
)
def test_targets_mean_layers_or_the_outermost_modules(
    target: str, kind: Any, paths: dict[str, int | None], dims: list[int]
) -> None:
    sites = find_sites(Net(), {target: kind})
    assert {site.path: site.size for site in sites} == paths
    assert [site.dim for site in sites] == dims
    assert {(site.kind, site.target) for site in sites} == {(kind, target)}


def check(module: Net, name: str, tuning: GateTuningCallback, sample: Tensor, expected: Any) -> None:
    """With a given sample the output of a layer is what ``expected`` makes of its plain input and output."""
    part = module.get_submodule(name)
    x = torch.randn(*{"features": (6, 3), "encoder.0": (6, 2, 4, 4), "up": (6, 4, 4, 4)}.get(name, (6, 4, 4, 4)))
    with tuning.gates[name].fixed(sample):
        found = part(x)
        named = part(input=x) if name == "features" else found
    hooks = part._forward_hooks.copy(), part._forward_pre_hooks.copy()
    part._forward_hooks.clear()
    part._forward_pre_hooks.clear()
    torch.testing.assert_close(found, expected(part, x))
    torch.testing.assert_close(named, found)
    part._forward_hooks.update(hooks[0])
    part._forward_pre_hooks.update(hooks[1])


def test_what_passes() -> None:
    module = Net()
    z = torch.tensor([1.0, 0.0, 1.0])
    check(module, "features", gated(module, {"features": "inputs"}), z, lambda part, x: part(x * z))
    module = Net()
    rows = (torch.rand(6, 4) < 0.5).float()
    tuning = gated(module, {"encoder": "channels"})
    check(module, "encoder.0", tuning, rows, lambda part, x: part(x) * rows[:, :, None, None])
    module = Net()
    check(module, "up", gated(module, {"up": "inputs"}), rows, lambda part, x: part(x * rows[:, :, None, None]))
    module = Net()
    check(module, "up", gated(module, {"up": "channels"}), z, lambda part, x: part(x) * z[None, :, None, None])
    module = Net()
    each = torch.tensor([1.0, 0, 0, 1, 1, 0])
    tuning = gated(module, {"block1": "branch"})
    check(module, "block1", tuning, each, lambda part, x: part(x) * each[:, None, None, None])


@pytest.mark.parametrize("by_name", [False, True])
def test_an_operation_is_applied_to_chosen_examples(by_name: bool) -> None:
    module = Net()
    tuning = gated(module, {"augment.1": "operation"})
    gate, x = tuning.gates["augment.1"], images().requires_grad_()
    z = torch.tensor([1.0, 0, 0, 1, 0.25, 0], requires_grad=True)
    with gate.fixed(z):
        y = module.augment[1](x=x, strength=2.0) if by_name else module.augment[1](x, 2.0)
    torch.testing.assert_close(y, x + 2 * z[:, None, None, None])
    assert torch.equal(y[1], x[1])
    (gradient,) = torch.autograd.grad(y.sum(), z)
    assert gradient.tolist() == pytest.approx([2.0 * 32] * 6)
    module.eval()
    assert torch.equal(module.augment[1](x), x)


@pytest.mark.parametrize("z", [[1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 1.0, 0.0]])
def test_what_is_not_finite_passes_only_where_it_counts(z: list[float]) -> None:
    """Example 1 breaks the operation, and only the operation makes example 2 finite."""

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(x, 7.0) + torch.tensor([1.0, float("nan"), 0.0, 2.0])[:, None]

    module = Net()
    module.augment[0] = Breaks()
    gate = gated(module, {"augment.0": "operation"}).gates["augment.0"]
    x = torch.tensor([[3.0], [4.0], [float("nan")], [5.0]], requires_grad=True)
    sample = torch.tensor(z, requires_grad=True)
    with gate.fixed(sample):
        y = module.augment[0](x)
    third = [7.0] if z[2] else [float("nan")]
    torch.testing.assert_close(y, torch.tensor([[4.0], [4.0], third, [5.0 + 2 * z[3]]]), equal_nan=True)
    to_z, to_x = torch.autograd.grad(y[[0, 1, 3]].sum(), [sample, x])
    # Those of finite outputs also where the sample is closed; without the output that is not finite only -x is known.
    assert to_z.tolist() == pytest.approx([1.0, -4.0, 0.0 if z[2] else float("nan"), 2.0], nan_ok=True)
    assert to_x.flatten().tolist() == [1.0, 1.0, 0.0, 1.0]
    module.eval()
    for p, expected in ((0.9, 7.0), (0.1, float("nan"))):
        gate.set_probabilities(p)
        closed = module.augment[0](x.detach())[:, 0]
        torch.testing.assert_close(closed[2], torch.tensor(expected), equal_nan=True)
        assert bool(closed[1].isfinite()) == (p < 0.5)


def test_each_example_has_a_sample_of_its_own_unless_they_share_it() -> None:
    for per_example in (True, False):
        module = Net()
        gated(module, {"block1": "branch", "augment.0": "operation"}, probability=0.5, per_example=per_example)
        branch = module.block1(torch.ones(64, 4, 2, 2)).abs().flatten(1).amax(1) > 0
        operation = module.augment[0](torch.zeros(64, 3)).amax(1) > 0
        for chosen in (branch, operation):
            assert (0 < float(chosen.float().mean()) < 1) is per_example


def test_evaluation_is_by_threshold_expectation_or_sample() -> None:
    x = images(40)
    outputs = {}
    for evaluation in ("threshold", "expected", "sample"):
        module = Net()
        gated(module, {"block1.body": "branch"}, probability=0.6, evaluation=evaluation)
        outputs[evaluation] = module.eval()(x)
    plain = Net().eval()
    assert torch.equal(outputs["threshold"], plain(x))
    shrunk = Net().eval()
    shrunk.block1.body.register_forward_hook(lambda part, args, output: 0.6 * output)
    torch.testing.assert_close(outputs["expected"], shrunk(x))
    same = torch.isclose(outputs["sample"], plain(x)).all(1)
    assert 0.3 < same.float().mean() < 0.9


def test_samples_in_evaluation_follow_from_the_seed() -> None:
    predictions = []
    for seed in (1, 1, 2):
        tuning = GateTuningCallback({"block1": "branch"}, probability=0.5, evaluation="sample", seed=seed)
        quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=[tuning], **quiet)
        data = torch.utils.data.DataLoader(images(16), 8)
        for _ in range(2):
            predictions.append(torch.cat(trainer.predict(Net(), data)))  # type: ignore[arg-type]
    assert all(torch.equal(p, predictions[0]) for p in predictions[:4])
    assert torch.equal(predictions[4], predictions[5])
    assert not torch.equal(predictions[4], predictions[0])


def test_a_shared_module_has_one_gate() -> None:
    class Twice(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(3, 3)

    module = Twice()
    assert list(gated(module, {"second": "channels"}).gates) == ["second"]
    assert list(gated(Twice(), {"*": "channels"}).gates) == ["first"]
    assert len(module.first._forward_hooks) == 1


def test_several_kinds_of_a_module() -> None:
    tuning = gated(Net(), {"features": "inputs", "feature*": "channels", "head": "inputs"})
    assert list(tuning.gates) == ["features:inputs", "features:channels", "head"]
    assert tuning.expected_size("features") == pytest.approx(0.8 * 3)
    assert tuning.expected_size("feature*") == pytest.approx(0.8 * 5)
    assert tuning.expected_size() == pytest.approx(0.8 * 13)
    with pytest.raises(ValueError, match=r"no target 'feature'.*did you mean 'feature"):
        tuning.expected_size("feature")


def test_several_callbacks() -> None:
    module = Net()
    first = gated(module, {"features": "inputs"})
    second = gated(module, {"*": "channels"}, attribute="more")
    assert not any(name.startswith("gates") for name in second.gates)
    assert first.state_key != second.state_key
    with torch.no_grad():
        first.gates["features"].logits.copy_(torch.tensor([-4.0, 4.0, 4.0]))
        second.gates["features"].logits[0] = -4.0
    half = first.export(module)
    assert hasattr(half, "more")
    plain = second.export(half)
    assert not any(hasattr(plain, name) for name in ("gates", "more"))
    torch.testing.assert_close(plain.eval()(images()), module.eval()(images()))
    assert plain.features.out_features == 4


def test_a_copy_of_the_module_has_gates_of_its_own() -> None:
    module = Net()
    gated(module, {"features": "inputs"})
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with torch.no_grad():
            other.get_submodule("gates").gates[0].logits.fill_(-5.0)
        x = torch.ones(2, 3)
        assert torch.equal(other.eval().features(x), other.features.bias.expand(2, -1))
        assert not torch.equal(module.eval().features(x), module.features.bias.expand(2, -1))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused(reentrant: bool) -> None:
    module = Net()
    gated(module, {"features": "inputs"})
    x = torch.ones(2, 3, requires_grad=True)
    loss = checkpoint(module.features, x, use_reentrant=reentrant).sum()
    with pytest.raises(RuntimeError, match="'features' is run again by activation checkpointing"):
        loss.backward()
    module.eval()  # where nothing is sampled
    checkpoint(module.features, x, use_reentrant=reentrant).sum().backward()
    assert x.grad is not None


# ---- what is refused ----------------------------------------------------------------------------------------


class Odd(LightningModule):
    """Layers that cannot be gated."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Linear(3, 0)
        self.lazy = nn.LazyLinear(3)
        self.pool = nn.MaxPool1d(2, return_indices=True)
        self.shorter = nn.AvgPool1d(2)
        self.indices = nn.Embedding(3, 2)
        self.tuned = nn.Linear(3, 3)
        self.gates = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"encodr.*": "channels"}, r"no module has the name 'encodr\.\*' \(did you mean 'encoder"),
        ({"blck2": "branch"}, r"no module has the name 'blck2' \(did you mean 'block2'\?\)"),
        ({"augmnt.*": "operation"}, r"no module has the name 'augmnt\.\*' \(did you mean 'augment"),
        ({"encoder.2": "channels"}, r"'encoder\.2' \(ReLU\), which has no channels.*'encoder\.0'"),
        ({"augment.0": "inputs"}, r"'augment\.0' \(Shift\), which has no inputs"),
        ({"features": "inputs", "feat*": "inputs"}, r"'features' and 'feat\*' both mean the inputs of 'features'"),
    ],
)
def test_targets_that_mean_nothing(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated(Net(), targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"empty": "channels"}, r"'empty' \(Linear\) has 0 outputs"),
        ({"lazy": "channels"}, r"'lazy' \(LazyLinear\) does not know its size yet"),
        ({"tuned": "channels"}, r"Odd has an attribute 'gates' already \(Linear\).*attribute='tuned_gates'"),
    ],
)
def test_layers_that_cannot_be_gated(targets: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match="zero-element|Lazy"), pytest.raises(ValueError, match=message):
        gated(Odd(), targets)


@pytest.mark.filterwarnings("ignore:.*zero-element.*", "ignore:Lazy modules.*")
def test_values_that_cannot_be_gated() -> None:
    module = Odd()
    gated(
        module,
        {"pool": "branch", "indices": "operation", "shorter": "operation", "tuned": "inputs"},
        attribute="tuned_gates",
    )
    with pytest.raises(TypeError, match=r"the output of 'pool' must be a floating tensor.*got tuple"):
        module.pool(torch.ones(1, 1, 4))
    with pytest.raises(ValueError, match=r"operation 'indices' must return the shape that it gets"):
        module.indices(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"operation 'shorter'.*got \(1, 1, 4\) and returned \(1, 1, 2\)"):
        module.shorter(torch.ones(1, 1, 4))
    with pytest.raises(TypeError, match=r"the input of 'tuned'.*got a tensor of torch\.int64"):
        module.tuned(torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="first axis of an input"):
        module.tuned(torch.ones(3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": []}, TypeError, "targets must be a dictionary"),
        ({"targets": {}}, ValueError, "targets must name at least one module"),
        ({"targets": {3: "inputs"}}, TypeError, "names of modules must be text"),
        ({"targets": {"a": "chanels"}}, ValueError, r"kind of 'a'.*'chanels' \(did you mean 'channels'\?\)"),
        ({"penalty": -0.1}, ValueError, r"penalty must be at least 0, got -0\.1"),
        ({"penalty": float("nan")}, ValueError, "penalty must be a finite number, got nan"),
        ({"penalty": "much"}, TypeError, "penalty must be a number, got 'much'"),
        ({"penalty": {"feature": 1.0}}, ValueError, r"penalty: there is no target 'feature' \(did you mean 'features'"),
        ({"penalty": {"features": -1.0}}, ValueError, r"penalty of 'features' must be at least 0, got -1\.0"),
        ({"entropy_weight": -1.0}, ValueError, "entropy_weight must be at least 0"),
        ({"probability": 1.0}, ValueError, r"probability must be larger than 0 and smaller than 1, got 1\.0"),
        ({"probability": {"features": 0.0}}, ValueError, "probability of 'features' must be larger than 0"),
        ({"target_size": 0, "penalty": 1.0}, ValueError, "target_size must be a number of gates"),
        ({"target_size": 1.5, "penalty": 1.0}, ValueError, "target_size must be a number of gates"),
        ({"target_size": True, "penalty": 1.0}, TypeError, "target_size must be a number, got True"),
        ({"target_size": 3}, ValueError, "target_size of 'features' has no effect without a penalty"),
        ({"estimator": "identty"}, ValueError, r"estimator must be one of.*did you mean 'identity'"),
        ({"estimator": "reinforce"}, ValueError, r"estimator='reinforce' needs a loss"),
        ({"evaluation": "never"}, ValueError, "evaluation must be one of"),
        ({"temperature": 0.0, "estimator": "gumbel"}, ValueError, "temperature must be a finite number above 0"),
        ({"temperature": 0.5}, ValueError, "temperature is for the estimators"),
        ({"temperature_end": 0.5, "estimator": "gumbel"}, ValueError, "temperature_end needs a temperature"),
        ({"lr": 0.0}, ValueError, "lr must be a finite number above 0"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be a finite number above 0"),
        ({"warm_up_epochs": -1}, ValueError, "warm_up_epochs must be a whole number of at least 0"),
        ({"every_n_steps": 0, "val_dataloader": "val"}, ValueError, "every_n_steps must be a whole number"),
        ({"every_n_steps": 2}, ValueError, "every_n_steps has no effect without val_dataloader"),
        ({"val_loss": "loss"}, ValueError, "val_loss has no effect without val_dataloader"),
        ({"val_step": "training_step"}, ValueError, "val_step has no effect without val_dataloader"),
        ({"val_dataloader": "vall"}, ValueError, "val_dataloader must be a loader, or 'val'"),
        ({"val_dataloader": "val", "val_step": "validate"}, ValueError, "val_step must be one of"),
        (
            {"val_dataloader": "val", "val_step": "training_step", "val_loss": "loss"},
            ValueError,
            "val_loss is what validation_step logs",
        ),
        ({"rank_samples": "all"}, ValueError, "rank_samples must be one of"),
        ({"per_example": 1}, TypeError, "per_example must be True or False"),
        ({"seed": -1}, ValueError, "seed must be a whole number of at least 0"),
        ({"attribute": "my gates"}, ValueError, "attribute must be a name"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GateTuningCallback(**{"targets": {"features": "inputs"}} | options)


def test_before_there_are_gates() -> None:
    tuning = GateTuningCallback({"features": "inputs"})
    for ask in (tuning.probabilities, tuning.decisions, tuning.expected_size, lambda: tuning.export(Net())):
        with pytest.raises(RuntimeError, match=r"no module yet; call trainer\.fit first"):
            ask()
    gated(Net(), {"features": "inputs"})
    assert tuning.steps == tuning.skipped == 0


def test_a_target_size_above_the_number_of_gates() -> None:
    with pytest.raises(ValueError, match=r"target_size of 'features' must be at most the number of its gates, 3"):
        gated(Net(), {"features": "inputs"}, target_size=4, penalty=1.0)


def test_gates_are_modules_of_the_library() -> None:
    tuning = gated(Net(), {"*": "channels"}, estimator="gumbel", temperature=0.3, probability={"*": 0.7})
    for gate in tuning.gates.values():
        assert isinstance(gate, Gate)
        assert (gate.estimator, gate.temperature) == ("gumbel", 0.3)
        assert gate.probabilities().detach().tolist() == pytest.approx([0.7] * gate.logits.numel())
