"""Pruned models compute what the gated models compute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.straight_through.pruning import PrunedModel, prune

Masks = dict[str, Tensor]


def mask(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.bool)


def axis_of(module: nn.Module) -> int:
    last = (nn.Linear, nn.Embedding, nn.LayerNorm)
    return -1 if isinstance(module, last) else 1


def gated(model: nn.Module, masks: Mapping[str, Tensor], *x: Any) -> Any:
    """Return what a model gives when the outputs of layers are multiplied by decisions: the definition."""
    model = copy.deepcopy(model)
    for path, open_ in masks.items():
        module = model.get_submodule(path)

        def multiply(m: nn.Module, _: Any, out: Tensor, open_: Tensor = open_) -> Tensor:
            shape = [1] * out.dim()
            shape[axis_of(m)] = len(open_)
            return out * open_.view(shape)

        module.register_forward_hook(multiply)
    return model.eval()(*x)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisations weights, shifts and statistics that are not those of the start."""
    g = torch.Generator().manual_seed(seed)
    model.double()
    for module in model.modules():
        for name in ("weight", "bias", "running_mean"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor) and isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm):
                value.data.copy_(torch.randn(value.shape, generator=g, dtype=torch.float64))
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.copy_(0.2 + torch.rand(module.running_var.shape, generator=g))  # type: ignore[operator,union-attr,arg-type]
    return model


def check(model: nn.Module, masks: Masks, *x: Tensor, example: bool = True, single: bool = True) -> PrunedModel:
    """Compare a pruned model with the gated one, and return it."""
    model = randomised(model)
    x = tuple(t.double() if t.is_floating_point() else t for t in x)
    before = copy.deepcopy(model.state_dict())
    result = prune(model, masks, example_input=x if example else None)
    expected = gated(model, masks, *x)
    torch.testing.assert_close(copy.deepcopy(result.model).eval()(*x), expected, rtol=0, atol=1e-10)
    assert not any("discarded" in entry.reason for entry in result.folded), result.folded
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    n_closed = {path: int((~m).sum()) for path, m in masks.items()}
    for path, n in n_closed.items():
        gone = set(result.removed.get(path, ()))
        left = {i for entry in result.folded if entry.path == path for i in entry.channels}
        assert not gone & left
        closed = set((~masks[path]).nonzero().flatten().tolist())
        if hasattr(model.get_submodule(path), "in_features") or hasattr(model.get_submodule(path), "in_channels"):
            assert gone | left >= closed
            assert len(closed) == n
    if single:
        outputs = copy.deepcopy(result.model).float().eval()(*(t.float() if t.is_floating_point() else t for t in x))
        torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)
    return result


X2 = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
X1 = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
HALF = mask(1, 0, 0, 1, 0, 1)


def width(result: PrunedModel, path: str) -> int:
    return len(result.model.get_submodule(path).weight)  # type: ignore[arg-type]


# ---- chains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [True, False])
def test_conv_bn_relu_conv_flatten_linear(example: bool) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(24, 3)),
    )
    result = check(model, {"0": HALF, "4": mask(0, 1, 0, 1, 1, 1)}, X2, example=example)
    assert result.folded == ()
    assert result.removed == {"0": (1, 2, 4), "4": (0, 2)}
    shapes = {key: list(value.shape) for key, value in result.model.state_dict().items() if value.dim() > 1}
    assert shapes == {"0.weight": [3, 2, 3, 3], "4.weight": [4, 3, 2, 2], "9.weight": [3, 16]}
    assert result.model[1].running_mean.shape == (3,)  # type: ignore[index,union-attr]


def test_the_state_loads_into_a_new_plain_model() -> None:
    def make(a: int, b: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, a, 3), nn.ReLU(), nn.BatchNorm2d(a), nn.Conv2d(a, b, 3), nn.Flatten(), nn.Linear(16 * b, 2)
        )

    result = check(make(6, 4), {"0": HALF, "3": mask(1, 0, 1, 1)}, X2)
    fresh = make(3, 3).double()
    fresh.load_state_dict(result.model.state_dict())
    assert repr(fresh) == repr(result.model)
    torch.testing.assert_close(fresh.eval()(X2.double()), result.model.eval()(X2.double()), rtol=0, atol=0)


def test_zero_padding_keeps_one_channel_that_carries_the_constants() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1))
    result = check(model, {"0": HALF}, X2)
    assert width(result, "0") == 4
    (entry,) = result.folded
    assert len(entry.channels) == 1
    assert "zero padding" in entry.reason


def test_without_a_bias_one_channel_carries_the_constants() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 2, bias=False))
    result = check(model, {"0": HALF}, X1)
    assert width(result, "0") == 4
    assert "no bias" in result.folded[0].reason
    assert result.model[2].bias is None  # type: ignore[index]


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Softplus, lambda: nn.PReLU(6), nn.GELU, nn.Identity])
def test_activations_and_paddings(activation: Callable[[], nn.Module], bias: bool, padding_mode: Any) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6), activation()),
        *(nn.Conv2d(6, 3, 3, padding=1, padding_mode=padding_mode, bias=bias), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(3, 2),),
    )
    result = check(model, {"0": HALF}, X2)
    assert width(result, "0") == (3 if bias and padding_mode != "zeros" else 4)


def test_conv_relu_bn() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3))
    assert check(model, {"0": HALF}, X2).folded == ()


def test_an_mlp() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    result = check(model, {"0": HALF, "2": mask(1, 0, 1, 1)}, X1)
    assert result.folded == ()
    assert [width(result, path) for path in "025"] == [3, 3, 2]


def test_linear_layers_on_sequences() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(28, 2))
    result = check(model, {"0": HALF, "2": mask(1, 0, 1, 1)}, torch.randn(3, 7, 5))
    assert result.folded == ()
    assert result.model[5].in_features == 21  # type: ignore[index,union-attr]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_convolutions_of_all_dimensions(d: int) -> None:
    conv, bn, pool = (getattr(nn, f"{name}{d}d") for name in ("Conv", "BatchNorm", "AvgPool"))
    model = nn.Sequential(conv(2, 6, 2), bn(6), nn.ReLU(), pool(2), conv(6, 2, 1))
    assert check(model, {"0": HALF}, torch.randn(2, 2, *([5] * d))).folded == ()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_transposed_convolutions(d: int) -> None:
    conv = getattr(nn, f"ConvTranspose{d}d")
    x = torch.randn(2, 2, *([4] * d))
    model = nn.Sequential(conv(2, 6, 2, stride=2), nn.ReLU(), conv(6, 3, 3, padding=1), nn.Sigmoid(), conv(3, 2, 2))
    result = check(model, {"0": HALF, "2": mask(0, 1, 0)}, x)
    assert result.removed == {"0": (1, 2, 4), "2": (2,) if 0 in result.folded[0].channels else (0,)}


def test_transposed_convolutions_with_groups_only_lose_whole_groups() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    result = check(model, {"0": mask(1, 0, 1, 1, 1, 0)}, X2)
    assert result.removed == {}
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    result = check(model, {"2": mask(1, 1, 1, 0, 0, 0)}, X2)
    assert result.removed == {"0": (2, 3), "2": (3, 4, 5)}
    assert result.model[2].groups == 1  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("between", "n_left"),
    [
        ([nn.MaxPool2d(2, padding=1)], 3),
        ([nn.AvgPool2d(2, padding=1)], 3),
        ([nn.AdaptiveMaxPool2d(2)], 3),
        ([nn.LPPool2d(2, 2)], 3),
        ([nn.Upsample(scale_factor=2)], 3),
        ([nn.ZeroPad2d(1)], 3),
        ([nn.Dropout2d(), nn.AlphaDropout()], 3),
        ([nn.InstanceNorm2d(6, affine=True)], 3),
        ([nn.BatchNorm2d(6, track_running_stats=False)], 3),
        ([nn.Sigmoid(), nn.MaxPool2d(2, padding=1)], 3),
        ([nn.Sigmoid(), nn.AvgPool2d(2, padding=1, count_include_pad=False)], 3),
        ([nn.Sigmoid(), nn.AvgPool2d(2, ceil_mode=True)], 3),
        ([nn.Sigmoid(), nn.ReflectionPad2d(1)], 3),
        ([nn.Sigmoid(), nn.ConstantPad2d(1, 0.5)], 3),
        # what is not constant near the border stays
        ([nn.Sigmoid(), nn.AvgPool2d(2, padding=1)], 6),
        ([nn.Sigmoid(), nn.ZeroPad2d(1)], 6),
        ([nn.Sigmoid(), nn.LPPool2d(2, 2)], 6),
        ([nn.Sigmoid(), nn.InstanceNorm2d(6)], 6),
        ([nn.Sigmoid(), nn.AvgPool2d(2, divisor_override=3)], 6),
        # along the channels
        ([nn.Softmax2d()], 6),
        ([nn.LocalResponseNorm(2)], 6),
    ],
)
def test_what_may_stand_between(between: list[nn.Module], n_left: int) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), *between, nn.Conv2d(6, 2, 1))
    result = check(model, {"0": HALF}, X2)
    assert width(result, "0") == n_left
    assert bool(result.folded) == (n_left == 6)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.LayerNorm([6, 6, 6])])
def test_norms_over_channels_keep_them_and_say_why(norm: nn.Module) -> None:
    result = check(nn.Sequential(nn.Conv2d(2, 6, 3), norm, nn.Conv2d(6, 2, 1)), {"0": HALF}, X2)
    assert result.removed == {}
    (entry,) = result.folded
    assert (entry.path, entry.channels) == ("0", (1, 2, 4))
    assert "'1'" in entry.reason
    assert "statistics" in entry.reason


def test_gates_on_normalisations() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1))
    result = check(model, {"1": HALF}, X2)
    assert result.folded == ()
    assert result.removed == {"0": (1, 2, 4)}
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    result = check(model, {"1": HALF}, X1)
    assert result.removed == {}
    assert "'1'" in result.folded[0].reason


def test_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 2))
    result = check(model, {"0": HALF}, torch.randint(7, (3, 4)))
    assert result.removed == {"0": (1, 2, 4)}
    assert result.model[0].embedding_dim == 3  # type: ignore[index,union-attr]


# ---- groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("gate", ["0", "2"])
def test_depthwise_convolutions(gate: str, padding: int) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6, padding=padding), nn.BatchNorm2d(12)),
        *(nn.ReLU(), nn.Conv2d(12, 2, 1)),
    )
    masks = {gate: HALF if gate == "0" else HALF.repeat_interleave(2)}
    result = check(model, masks, X2)
    assert result.folded == ()
    assert result.removed == {"0": (1, 2, 4), "2": (2, 3, 4, 5, 8, 9)}
    assert result.model[2].groups == 3  # type: ignore[index,union-attr]


def test_a_depthwise_convolution_of_constants() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    assert check(model, {"0": HALF}, X2).folded == ()
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.Conv2d(6, 2, 1))
    assert check(model, {"0": HALF}, X2).removed == {}


def test_groups_go_as_a_whole() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    result = check(model, {"2": mask(0, 0, 0, 1, 0, 1)}, X2)
    assert result.removed == {"0": (0, 1, 2), "2": (0, 1, 2)}
    assert [entry.channels for entry in result.folded] == [(4,)]


# ---- graphs --------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.a = nn.Conv2d(6, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.b(F.relu(self.a(x))))
        y += x
        return self.head(F.relu(y).mean((2, 3)))


@pytest.mark.parametrize("norm", [False, True])
def test_residual_additions(norm: bool) -> None:
    result = check(Residual(norm), {"a": mask(1, 0, 0, 1), "b": HALF}, X2)
    assert result.removed == {"a": (1, 2)}
    assert [(entry.path, entry.channels) for entry in result.folded] == [("b", (1, 2, 4))]
    assert "not constant" in result.folded[0].reason
    result = check(Residual(norm), {"stem": HALF, "b": mask(0, 0, 0, 1, 0, 1)}, X2)
    assert result.removed == {"stem": (1, 2, 4), "b": (1, 2, 4)}
    assert [(entry.path, entry.channels) for entry in result.folded] == [("b", (0,))]


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x).sigmoid()], dim=1))


@pytest.mark.parametrize("example", [True, False])
def test_concatenation(example: bool) -> None:
    result = check(Joined(), {"a": mask(1, 0, 1), "b": mask(0, 1, 0)}, X2, example=example)
    assert result.folded == ()
    assert result.model.c.in_channels == 3  # type: ignore[union-attr]


class JoinedWithInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat((x, self.a(x)), 1))


def test_concatenation_with_what_is_not_known() -> None:
    assert check(JoinedWithInput(), {"a": mask(1, 0, 1)}, X2).removed == {"a": (1,)}
    assert check(JoinedWithInput(), {"a": mask(1, 0, 1)}, X2, example=False).removed == {}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.norm = nn.Linear(5, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = torch.relu(self.norm(self.again(x)))
        return self.last(x)


def test_modules_that_are_called_twice() -> None:
    result = check(Shared(), {"again": HALF}, X1)
    assert result.removed == {}  # the first call reads channels that are open
    result = check(Shared(), {"again": HALF, "first": HALF}, X1)
    assert result.removed == {}  # it reads 0 first, then a shift
    model = nn.Sequential(nn.Linear(5, 6), again := nn.Linear(6, 6), nn.ReLU(), again, nn.ReLU(), nn.Linear(6, 2))
    result = check(model, {"0": HALF, "1": HALF}, X1)
    assert result.folded == ()
    assert result.model[1] is result.model[3]  # type: ignore[index]
    assert result.model[1].in_features == result.model[1].out_features == 3  # type: ignore[index,union-attr]
    alias = prune(model, {"0": HALF, "3": HALF})
    assert alias.removed == result.removed == {"0": (1, 2, 4), "1": (1, 2, 4)}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.softplus(self.a(x) * 2 + 1), 2)
        x = F.dropout(self.b(x), 0.5, self.training)
        x = F.avg_pool2d(torch.sigmoid(F.pad(x, (1, 1, 1, 1))), 2)
        x = F.adaptive_avg_pool2d(F.interpolate(x, scale_factor=2.0), (2, 2))
        return self.c(x.view(x.size(0), -1))


@pytest.mark.parametrize("example", [True, False])
def test_functional_operations(example: bool) -> None:
    result = check(Functional(), {"a": HALF, "b": mask(0, 1, 1, 0)}, X2, example=example)
    assert result.folded == ()
    assert (width(result, "a"), width(result, "b"), result.model.c.in_features) == (3, 2, 8)  # type: ignore[union-attr]


class Moved(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor], n: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Linear(n, 2)
        self.rule = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, self.a(x))


MOVED: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, bool]] = {
    "permute": (lambda s, x: s.b(x.permute(0, 2, 3, 1)), 6, True),
    "transpose": (lambda s, x: s.b(x.transpose(1, -1)), 6, True),
    "flatten, transpose": (lambda s, x: s.b(x.flatten(2).transpose(1, 2)), 6, True),
    "mean": (lambda s, x: s.b(x.mean([-1, -2])), 6, True),
    "mean, kept": (lambda s, x: s.b(x.mean((2, 3), keepdim=True).flatten(1)), 6, True),
    "amax, squeeze": (lambda s, x: s.b(x.amax((2, 3), keepdim=True).squeeze(-1).squeeze(-1)), 6, True),
    "sum": (lambda s, x: s.b(x.sum(dim=(2, 3))), 6, True),
    "view": (lambda s, x: s.b(x.view(x.shape[0], -1)), 216, True),
    "channels last, flattened": (lambda s, x: s.b(x.permute(0, 2, 3, 1).flatten(1)), 216, True),
    "unsqueeze": (lambda s, x: s.b(x.unsqueeze(1).mean((-1, -2))[:, 0]), 6, False),
    "interpolated": (lambda s, x: s.b(F.interpolate(x, size=x.shape[2:]).mean((2, 3))), 6, True),
    # what names the number of channels, or mixes them, cannot be cut
    "numbers": (lambda s, x: s.b(x.reshape(-1, 216)), 216, False),
    "size": (lambda s, x: s.b(x.mean((2, 3)) / x.size(1)), 6, False),
    "shape": (lambda s, x: s.b(x.mean((2, 3)) * x.shape[-3]), 6, False),
    "softmax": (lambda s, x: s.b(x.softmax(1).mean((2, 3))), 6, False),
    "mean of channels": (lambda s, x: s.b((x - x.mean(1, keepdim=True)).mean((2, 3))), 6, False),
    "chunk": (lambda s, x: s.b(torch.cat(x.chunk(2, 1)[::-1], 1).mean((2, 3))), 6, False),
    "index": (lambda s, x: s.b(x[:, :, 0, 0]), 6, False),
    "in place": (lambda s, x: s.b((x.sigmoid_() + x).mean((2, 3))), 6, False),
    "other operand": (lambda s, x: s.b(x.mean((2, 3)) + s.b.weight[0]), 6, False),
    "batch": (lambda s, x: s.b(torch.cat([x, x], 0).mean((2, 3))), 6, False),
}


@pytest.mark.parametrize("name", MOVED)
def test_where_channels_go(name: str) -> None:
    rule, n, goes = MOVED[name]
    result = check(Moved(rule, n), {"a": HALF}, X2)
    if goes:
        assert result.removed == {"a": (1, 2, 4)}
        assert result.folded == ()
    else:
        assert result.removed == {}
        assert [entry.channels for entry in result.folded] == [(1, 2, 4)]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return self.b(self.a(x)) * 2
        return self.b(self.a(x))


def test_models_that_cannot_be_traced_are_folded() -> None:
    result = check(Untraceable(), {"a": HALF}, X1)
    assert result.removed == {}
    assert "trace" in result.folded[0].reason
    assert torch.equal(result.model.a.weight[1:3], torch.zeros(2, 5).double())  # type: ignore[union-attr,index]


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).relu()
        return self.c(self.b(input=x))


@pytest.mark.parametrize("path", ["a", "b"])
def test_calls_by_name_are_not_overlooked(path: str) -> None:
    result = check(ByName(), {path: HALF}, X1, example=False)
    assert result.removed == {}
    assert result.folded[0].channels == (1, 2, 4)


class Uncalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.b.weight.sum()


class Auxiliary(nn.Module):
    """Has something that only another method than ``forward`` uses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU()), nn.Linear(6, 2)
        self.aux: Any = None
        if kind == "layer":
            self.aux = nn.Linear(6, 2)
        elif kind == "parameter":
            self.aux = nn.Parameter(torch.ones(6))
        elif kind == "norm":
            self.aux = nn.BatchNorm1d(6, affine=False)
        elif kind == "tied":
            self.aux = nn.Linear(6, 2)
            self.aux.weight = self.head.weight
        elif kind == "stateless":
            self.aux = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(h).sum() + (self.aux(h) if isinstance(self.aux, nn.Module) else self.aux * h).sum()


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("kind", ["layer", "parameter", "norm", "tied"])
def test_what_is_used_outside_forward_is_not_broken(kind: str, example: bool) -> None:
    model = Auxiliary(kind).eval()
    result = prune(model, {"body.0": HALF}, example_input=X1 if example else None)
    assert result.removed == {}
    (folded,) = result.folded
    assert folded.channels == (1, 2, 4)
    assert "'aux' is used outside forward" in folded.reason
    handle = model.body[0].register_forward_hook(lambda module, args, output: output * HALF)
    torch.testing.assert_close(result.model.training_step(X1), model.training_step(X1))  # type: ignore[operator]
    torch.testing.assert_close(result.model(X1), model(X1))
    handle.remove()


def test_what_has_no_parameters_may_be_used_outside_forward() -> None:
    for kind in ("none", "stateless"):
        assert prune(Auxiliary(kind), {"body.0": HALF}).removed == {"body.0": (1, 2, 4)}


def test_branches_and_inputs_of_a_model_with_layers_outside_forward() -> None:
    model = Auxiliary("layer").eval()
    result = prune(model, branches={"body": False}, example_input=X1)
    assert result.removed_branches == ()
    assert "'aux' is used outside forward" in result.folded[0].reason
    assert result.model.body(X1).shape == (len(X1), 6)  # type: ignore[operator]
    assert not result.model.body(X1).any()  # type: ignore[operator]
    closed = {"body": mask(1, 0, 1, 1, 1)}
    with pytest.raises(ValueError, match="'aux' is used outside forward.*slice_inputs=False"):
        prune(model, inputs=closed, slice_inputs=True)
    assert not prune(model, inputs=closed).model.body[0].weight[:, 1].any()  # type: ignore[index,union-attr]


def test_weights_that_are_used_twice() -> None:
    result = check(Uncalled(), {"a": HALF}, X1)
    assert result.removed == {}
    assert "outside" in result.folded[0].reason
    with pytest.raises(ValueError, match="'b' cannot be cut: the model uses its weights outside"):
        prune(Uncalled(), {"b": mask(0, 1)})


def test_tied_weights_are_parted() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    model[2].weight = model[0].weight
    result = check(model, {"0": mask(1, 0, 1, 1, 0)}, X1)
    assert result.removed == {"0": (1, 4)}
    assert width(result, "2") == 5


def test_outputs_of_the_model_stay() -> None:
    result = check(nn.Sequential(nn.Linear(5, 3)), {"0": mask(1, 0, 1)}, X1)
    assert result.removed == {}
    assert "output of the model" in result.folded[0].reason


def test_all_channels_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    result = check(model, {"0": mask(0, 0, 0, 0), "2": mask(0, 0, 0)}, X1)
    assert (width(result, "0"), width(result, "2")) == (1, 1)
    assert [len(entry.channels) for entry in result.folded] == [1, 1]
    assert "all others" in result.folded[0].reason


def test_nothing_closed_changes_no_bit() -> None:
    model = randomised(Residual(True))
    result = prune(model, {"a": mask(1, 1, 1, 1)}, {"head": torch.ones(6).bool()}, branches={"norm": True})
    assert (result.removed, result.folded, result.removed_branches) == ({}, (), ())
    assert result.model is not model
    for (name, a), (other, b) in zip(model.state_dict().items(), result.model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_flags_dtypes_and_random_numbers_are_kept() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).bfloat16()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    state = torch.get_rng_state()
    result = prune(model, {"0": HALF}, example_input=X1.bfloat16())
    assert torch.equal(torch.get_rng_state(), state)
    assert result.removed == {"0": (1, 2, 4)}
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]
    flags = {name: p.requires_grad for name, p in result.model.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert all(p.is_leaf and p.grad is None for p in result.model.parameters())


def test_pruned_models_can_be_trained() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))
    pruned = prune(model, {"0": HALF}).model
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    before = pruned(X2).square().mean()
    before.backward()
    optimizer.step()
    assert pruned(X2).square().mean() < before


class Many(nn.Module):
    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.a, self.b, self.odd = nn.Linear(5, 6), nn.Linear(6, 2), odd

    def forward(self, x: Tensor, scale: float) -> dict[str, Any]:
        x = self.a(x)
        y = x.contiguous().sigmoid_() + x if self.odd else x.sigmoid() + x
        y = self.b(y) * scale
        return {"class": y.argmax(1), "more": (scale, [torch.complex(y, y)])}


@pytest.mark.parametrize("odd", [True, False])
def test_other_types_of_outputs_are_compared(odd: bool) -> None:
    model = Many(odd).double()
    result = prune(model, {"a": HALF}, example_input=(X1.double(), 2.0))
    assert result.removed == ({} if odd else {"a": (1, 2, 4)})
    assert [("discarded" in entry.reason) for entry in result.folded] == [True] * odd
    torch.testing.assert_close(result.model(X1.double(), 3.0), gated(model, {"a": HALF}, X1.double(), 3.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_models_on_a_gpu() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)),
        *(nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2)),
    )
    masks, x = {"0": HALF, "3": mask(1, 0, 1, 1)}, X2.double().cuda()
    model = randomised(model).cuda()
    result = prune(model, {path: m.cuda() for path, m in masks.items()}, example_input=x)
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert result.removed["3"] == (1,)
    expected = gated(model.cpu(), masks, x.cpu())
    torch.testing.assert_close(result.model.eval()(x).cpu(), expected, rtol=0, atol=1e-10)


def test_hooks_and_parametrizations() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    result = check(model, {"0": HALF, "2": mask(0, 1, 1, 1)}, X1)
    assert result.removed == {"0": (1, 2, 4), "2": (0,)}
    assert type(result.model[0]) is nn.Linear  # type: ignore[index]
    torch.nn.utils.parametrizations.weight_norm(model[2])
    result = check(model, {"0": HALF}, X1)
    assert result.removed == {}
    assert "parametrizations" in result.folded[0].reason


def test_what_the_check_with_the_example_finds_is_folded() -> None:
    # Works in place on what only looks like a copy.
    model = Moved(lambda s, x: s.b((x.contiguous().sigmoid_() + x).mean((2, 3))))
    model.double()
    result = prune(model, {"a": HALF}, example_input=X2.double())
    assert result.removed == {}
    assert "discarded" in result.folded[0].reason
    torch.testing.assert_close(result.model(X2.double()), gated(model, {"a": HALF}, X2.double()))


# ---- random networks -----------------------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Masks, Tensor]:
    layers: list[nn.Module] = []
    masks: Masks = {}
    channels, size = 2, 8
    for _ in range(draw(st.integers(1, 3))):
        n, bias = draw(st.integers(1, 5)), draw(st.booleans())
        kind = draw(st.sampled_from(["conv", "transposed", "depthwise"]))
        padding = draw(st.integers(0, 1))
        if kind == "conv":
            layer: nn.Module = nn.Conv2d(channels, n, 3, padding=padding, bias=bias)
            size += 2 * padding - 2
        elif kind == "transposed":
            layer = nn.ConvTranspose2d(channels, n, 2, bias=bias)
            size += 1
        else:
            n = channels * draw(st.integers(1, 2))
            layer = nn.Conv2d(channels, n, 3, padding=1, bias=bias, groups=channels)
        masks[str(len(layers))] = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        layers.append(layer)
        channels = n
        for extra in draw(
            st.lists(st.sampled_from(["bn", "relu", "sigmoid", "prelu", "in", "pool", "drop"]), max_size=3)
        ):
            make: dict[str, nn.Module] = {
                "bn": nn.BatchNorm2d(n, affine=bias),
                "relu": nn.ReLU(),
                "sigmoid": nn.Sigmoid(),
                "prelu": nn.PReLU(n),
                "in": nn.InstanceNorm2d(n, affine=True),
                "pool": nn.AvgPool2d(3, stride=1, padding=1),
                "drop": nn.Dropout2d(),
            }
            layers.append(make[extra])
    layers += [nn.Flatten(), nn.Linear(channels * size**2, 3), nn.Softplus(), nn.Linear(3, 2, bias=draw(st.booleans()))]
    masks[str(len(layers) - 3)] = torch.tensor(draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    return nn.Sequential(*layers), masks, torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))


@settings(max_examples=25, deadline=None)
@given(networks(), st.booleans())
def test_random_networks(case: tuple[nn.Module, Masks, Tensor], example: bool) -> None:
    check(*case, example=example, single=False)


class Graph(nn.Module):
    """Runs a program: each line makes a tensor of those before it, and all that are left are read by one layer."""

    def __init__(self, program: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleDict()
        widths = [2]
        for i, (kind, *args) in enumerate(program):
            n = widths[args[0] % len(widths)]
            if kind == "conv":
                self.layers[f"{i}"] = nn.Conv2d(n, args[1], 3, padding=1, bias=args[2])
                n = args[1]
            elif kind == "bn":
                self.layers[f"{i}"] = nn.BatchNorm2d(n)
            elif kind == "depthwise":
                self.layers[f"{i}"] = nn.Conv2d(n, n, 3, padding=1, padding_mode="circular", groups=n)
            elif kind == "cat":
                n += widths[args[1] % len(widths)]
            widths.append(n)
        self.widths = widths
        self.head = nn.Conv2d(sum(widths[-2:]), 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for i, (kind, *args) in enumerate(self.program):
            a, b = args[0] % len(tensors), args[-1] % len(tensors)
            y, other, same = tensors[a], tensors[b], self.widths[a] == self.widths[b]
            if kind in ("conv", "bn", "depthwise"):
                y = self.layers[f"{i}"](y)
            elif kind == "add" and same:
                y = y + other
            elif kind == "mul" and same:
                y = y * other
            elif kind == "cat":
                y = torch.cat([y, other], 1)
            elif kind == "sigmoid":
                y = y.sigmoid()
            elif kind == "relu":
                y = F.relu(y)
            tensors.append(y)
        return self.head(torch.cat(tensors[-2:], 1)).mean((2, 3))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, Masks]:
    index = st.integers(0, 20)
    line = st.one_of(
        st.tuples(st.just("conv"), index, st.integers(1, 3), st.booleans()),
        st.tuples(st.sampled_from(["bn", "relu", "sigmoid", "depthwise"]), index),
        st.tuples(st.sampled_from(["add", "mul", "cat", "add"]), index, index),
    )
    program = [("conv", 0, 3, True), *draw(st.lists(line, min_size=1, max_size=9))]
    model = Graph(program)
    masks = {}
    for path, module in model.layers.items():
        n = len(module.weight)  # type: ignore[arg-type]
        masks[f"layers.{path}"] = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return model, masks


@settings(max_examples=25, deadline=None)
@given(graphs(), st.booleans())
def test_random_graphs(case: tuple[Graph, Masks], example: bool) -> None:
    check(*case, X2, example=example, single=False)
