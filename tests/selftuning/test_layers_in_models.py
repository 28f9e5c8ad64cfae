"""Passes through self-tuning models: the axis of examples, running statistics, copies, precision, compilation."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from sthyper.config_space import uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.layers import Response
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.transform import (
    export,
    frozen_statistics,
    plain_state_dict,
    response_parameters,
    self_tune,
)

B = 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.25))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.features(x).flatten(1)))


def hyper(*names: str, **options: Any) -> Hyperparameters:
    return Hyperparameters({name: uniform(0, 0.9) for name in names or ("a", "b")}, **options)


def stir(model: nn.Module) -> None:
    """Let the responses matter."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, Response):
            with torch.no_grad():
                module.bottleneck.copy_(0.3 * torch.randn(module.bottleneck.shape, generator=generator))
                if module.scalar is not None:
                    module.scalar.fill_(0.8)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=dtype)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


# ---- the axis of the examples -----------------------------------------------------------------------------


def scales_of(layer: Any, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
    of_weight, of_bias = layer.response().scales(perturbation)
    return of_weight, of_bias


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("order", ["examples first", "time first", "flattened", "flattened, time first", "many rows"])
def test_batch_dim(order: str, groups: int | None) -> None:
    steps = 700 if order == "many rows" else 4
    torch.manual_seed(1)
    model = self_tune(
        nn.Sequential(nn.Linear(3, 2)), hyper(dtype=None), response="full", batch_dim={"0": int("time" in order)}
    )
    stir(model)
    x = torch.randn(B, steps, 3)
    perturbation = model.selftuning.hyperparameters.draw(B, groups)
    with model.selftuning.hyperparameters.use(perturbation):
        s, t = (perturbation.expand(v) for v in scales_of(model[0], perturbation))
        r = model[0].response()
        general = F.linear(x, model[0].weight, model[0].bias)
        expected = general + s[:, None] * F.linear(x, r.weight) + (t * r.bias)[:, None]
        if order in ("examples first", "many rows"):
            found = model(x)
        elif order == "time first":
            found = model(x.transpose(0, 1)).transpose(0, 1)
        elif order == "flattened":
            found = model(x.flatten(0, 1)).unflatten(0, (B, steps))
        else:
            found = model(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (steps, B)).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_flattened_frames_of_convolutions() -> None:
    model = self_tune(nn.Sequential(nn.Conv2d(3, 2, 3)), hyper(), response="full")
    stir(model)
    x = torch.randn(B, 2, 3, 4, 4)
    for groups in (None, 4):
        with model.selftuning.hyperparameters.perturbed(B, groups):
            both = model(x.flatten(0, 1)).unflatten(0, (B, 2))
            for frame in range(2):
                torch.testing.assert_close(both[:, frame], model(x[:, frame]))


def test_sizes_that_do_not_fit_name_the_layer() -> None:
    model = self_tune(net(), hyper())
    with (
        model.selftuning.hyperparameters.perturbed(B + 1),
        pytest.raises(ValueError, match=r"'features.0'.*7 examples"),
    ):
        model(images())
    with model.selftuning.hyperparameters.perturbed(B), pytest.raises(ValueError, match="'head'.*no axis 0"):
        model.head(torch.ones(16))
    lstm = self_tune(nn.Sequential(nn.LSTM(2, 3)), hyper())
    with lstm.selftuning.hyperparameters.perturbed(3), pytest.raises(ValueError, match="'0'.*3 examples"):
        lstm(torch.ones(3, 4, 2))
    with lstm.selftuning.hyperparameters.centred(tracks=True):
        assert lstm(torch.ones(5, 2))[0].shape == (5, 3)  # no batch
        with pytest.raises(TypeError, match="'0': packed sequences"):
            lstm(pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]))
    assert lstm(pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]))[0].data.shape == (5, 3)


# ---- running statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True)])
@pytest.mark.parametrize("exclude", [(), "1"])
def test_running_statistics_follow_training_passes_only(norm: nn.Module, exclude: Any) -> None:
    model = self_tune(nn.Sequential(nn.Conv1d(2, 3, 1), copy.deepcopy(norm)), hyper(), exclude=exclude, response="full")
    reference = nn.Sequential(nn.Conv1d(2, 3, 1), copy.deepcopy(norm))
    reference.load_state_dict(plain_state_dict(model))
    hyperparameters = model.selftuning.hyperparameters
    x = torch.randn(B, 2, 4)

    def state() -> list[Tensor]:
        return [b.clone() for b in model[1].buffers()]

    start = state()
    drawn = hyperparameters.draw(B)

    def linearised(delta: Tensor) -> Tensor:
        with hyperparameters.use(drawn.along(delta)):
            return model(x)

    jvp(linearised, (torch.zeros_like(drawn.delta),), (drawn.delta,))
    with hyperparameters.centred(tracks=True):
        model(x)
    with hyperparameters.perturbed(B, tracks=True):
        model(x)
    with frozen_statistics(model):
        model(x)
        with hyperparameters.perturbed(B):
            model(x)
    assert all(torch.equal(a, b) for a, b in zip(state(), start, strict=True))
    model(x)
    reference(x)
    assert all(torch.equal(a, b) for a, b in zip(state(), reference[1].buffers(), strict=True))
    with hyperparameters.perturbed(B):
        model(x)  # the responses are zero still
    reference(x)
    for a, b in zip(state(), reference[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)
    # In evaluation they are used, whatever the pass.
    model.eval(), reference.eval()
    with hyperparameters.perturbed(B, tracks=True):
        torch.testing.assert_close(model(x), reference(x))


# ---- surroundings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_deepcopy_pickle_and_functional_call(kind: Any) -> None:
    model = self_tune(net().eval(), hyper(), kind)
    stir(model)
    twin = copy.deepcopy(model)
    assert twin.head.link.owner is twin.selftuning
    assert twin.head.response() is twin.selftuning.responses.head
    perturbation = model.selftuning.hyperparameters.draw(B)

    def run(m: Any, call: Any = None) -> Tensor:
        with m.selftuning.hyperparameters.use(perturbation):
            return (call or m)(images())

    expected = run(model)
    assert torch.equal(run(twin), expected)
    with torch.no_grad():
        for p in response_parameters(twin):
            p.mul_(2)
    assert torch.equal(run(model), expected)
    changed = run(twin)
    assert not torch.allclose(changed, expected)
    tensors = dict(twin.named_parameters())
    torch.testing.assert_close(run(model, lambda x: functional_call(model, tensors, (x,))), changed)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(run(twin), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(run(torch.load(buffer, weights_only=False)), expected)


@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_autocast(kind: Any) -> None:
    model = self_tune(net(), hyper(), kind, "full", exclude=nn.Dropout)
    model.eval()
    stir(model)
    hyperparameters = model.selftuning.hyperparameters
    drawn = hyperparameters.draw(B)
    passes = [drawn, hyperparameters.draw(B, 3), hyperparameters.centre(tracks=True)]
    for perturbation in passes:
        with hyperparameters.use(perturbation):
            expected = model(images())
            with torch.autocast("cpu", torch.bfloat16):
                found = model(images())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    if kind == "delta":

        def linearised(delta: Tensor) -> Tensor:
            with hyperparameters.use(drawn.along(delta)), torch.autocast("cpu", torch.bfloat16):
                return model(images())

        _, tangent = jvp(linearised, (torch.zeros_like(drawn.delta),), (drawn.delta,))
        tangent.float().sum().backward()
        assert all(p.grad is not None for p in response_parameters(model))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler itself
def test_compiled_models_agree() -> None:
    model = self_tune(net().eval(), hyper())
    stir(model)
    compiled = torch.compile(model, backend="eager")
    hyperparameters = model.selftuning.hyperparameters
    for perturbation in (
        hyperparameters.draw(B),
        hyperparameters.draw(B, 2),
        hyperparameters.centre(tracks=True),
        None,
    ):
        with hyperparameters.use(perturbation):
            torch.testing.assert_close(compiled(images()), model(images()))


def test_a_sequential_root_does_not_run_its_responses() -> None:
    plain = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model = self_tune(copy.deepcopy(plain), hyper())
    assert isinstance(model, nn.Sequential)
    assert len(model) == 3
    assert model[-1] is model[2] is list(model)[-1]
    assert list(model[:2]) == [model[0], model[1]]
    assert torch.equal(model(torch.ones(2, 3)), plain(torch.ones(2, 3)))
    assert type(export(model)) is nn.Sequential
    single = self_tune(nn.Linear(3, 2), hyper(), response="full")
    stir(single)
    with single.selftuning.hyperparameters.perturbed(B):
        assert single(torch.ones(B, 3)).std(0).min() > 0
    assert type(export(single)) is nn.Linear
    assert set(plain_state_dict(single)) == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padding", [False, True])
def test_the_inference_kernel_of_transformers_does_not_pass_over_responses(padding: bool) -> None:
    torch.manual_seed(0)
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    model = self_tune(copy.deepcopy(plain), hyper(), response="full")
    stir(model)
    x = torch.randn(B, 4, 8)
    mask = torch.zeros(B, 4, dtype=torch.bool)
    mask[1:, 3] = True
    options = {"src_key_padding_mask": mask} if padding else {}
    with torch.no_grad():
        assert torch.equal(model(x, **options), plain(x, **options))
        with model.selftuning.hyperparameters.perturbed(B):
            found = model(x, **options)
            with torch.enable_grad():
                expected = model(x, **options)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, plain(x, **options), atol=1e-3)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(export(model)(x), plain(x))


def test_dropout_within_recurrent_layers_acts_in_every_pass() -> None:
    model = self_tune(nn.Sequential(nn.LSTM(3, 4, 2, dropout=0.5)), hyper(), response="full")
    hyperparameters = model.selftuning.hyperparameters
    x = torch.randn(5, B, 3)
    for perturbation in (hyperparameters.draw(B), hyperparameters.draw(B, 2), hyperparameters.centre(tracks=True)):
        with hyperparameters.use(perturbation):
            assert not torch.equal(model(x)[0], model(x)[0])
            model.eval()
            assert torch.equal(model(x)[0], model(x)[0])
            model.train()


def test_kind_stn_is_not_linearised() -> None:
    model = self_tune(net(), hyper(), "stn")
    hyperparameters = model.selftuning.hyperparameters
    drawn = hyperparameters.draw(B)
    with hyperparameters.use(drawn.along(drawn.delta)), pytest.raises(ValueError, match="'stn' is not linearised"):
        model(images())


def test_kind_stn_responds_at_the_centre_too() -> None:
    model = self_tune(net().eval(), hyper(), "stn")
    stir(model)
    hyperparameters = model.selftuning.hyperparameters
    before = model(images())
    hyperparameters.set_values({"a": 0.7})
    assert not torch.allclose(model(images()), before)
