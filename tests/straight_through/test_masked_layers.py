"""Masked layers: each is the plain layer with masked values, of its device, dtype and buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sthyper.straight_through.masked_layers import (
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLayerNorm,
    MaskedLinear,
    convert_to_masked_model,
    export_masked,
)
from sthyper.straight_through.masks import (
    MaskOptions,
    is_masked_module,
)

EXPECTED = MaskOptions(training="expected", evaluation="expected")

# The class, all arguments of its constructor away from their defaults, and the shape of an input.
LAYERS: list[tuple[type[Any], dict[str, Any], tuple[int, ...]]] = [
    (MaskedLinear, {"in_features": 5, "out_features": 3, "bias": True}, (4, 5)),
    *(
        (
            cls,
            {
                "in_channels": 4,
                "out_channels": 6,
                "kernel_size": 3,
                "stride": 2,
                "padding": 2,
                "dilation": 2,
                "groups": 2,
                "bias": True,
                "padding_mode": "circular",
            },
            (2, 4, *(7,) * d),
        )
        for d, cls in ((1, MaskedConv1d), (2, MaskedConv2d), (3, MaskedConv3d))
    ),
    *(
        (
            cls,
            {
                "in_channels": 4,
                "out_channels": 6,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
                "output_padding": 1,
                "groups": 2,
                "bias": True,
                "dilation": 2,
                "padding_mode": "zeros",
            },
            (2, 4, *(5,) * d),
        )
        for d, cls in ((1, MaskedConvTranspose1d), (2, MaskedConvTranspose2d), (3, MaskedConvTranspose3d))
    ),
    (MaskedLayerNorm, {"normalized_shape": (3, 5), "eps": 1e-3, "elementwise_affine": True, "bias": True}, (4, 3, 5)),
    *(
        (
            cls,
            {"num_features": 4, "eps": 1e-3, "momentum": 0.3, "affine": True, "track_running_stats": True},
            (6, 4, *(3,) * (d if d > 1 else 0)),
        )
        for d, cls in ((1, MaskedBatchNorm1d), (2, MaskedBatchNorm2d), (3, MaskedBatchNorm3d))
    ),
]
IDS = [cls.__name__ for cls, _, _ in LAYERS]


def randomised(module: nn.Module) -> nn.Module:
    """Give all parameters random values, so that none is 0 or 1 by default."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


# ---- single layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "arguments", "shape"), LAYERS, ids=IDS)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_plain_layer_with_masked_values(
    cls: type[Any], arguments: dict[str, Any], shape: tuple[int, ...], training: bool
) -> None:
    plain = randomised(cls.plain(**arguments)).train(training)
    masked = cls.from_pretrained(plain, EXPECTED)
    assert isinstance(masked, cls)
    assert isinstance(masked, cls.plain)
    assert is_masked_module(masked)
    assert masked.training is training
    reference = copy.deepcopy(plain)
    with torch.no_grad():
        reference.weight.mul_(masked.weight_scores.sigmoid())
        reference.bias.mul_(masked.bias_scores.sigmoid())
    x = torch.randn(shape)
    torch.testing.assert_close(masked(x), reference(x))
    for name, value in reference.named_buffers():  # running statistics went the same way
        torch.testing.assert_close(masked.get_buffer(name), value)
    for name, p in plain.named_parameters():
        assert torch.equal(masked.get_parameter(f"parametrizations.{name}.original"), p)
        assert p.requires_grad


@pytest.mark.parametrize(("cls", "arguments", "shape"), LAYERS, ids=IDS)
def test_constructors_pass_everything_on(cls: type[Any], arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    """By position in the order of the plain layer, and by name; scores by options and generator."""
    generator = torch.Generator().manual_seed(0)
    positional = list(arguments.values())
    options = MaskOptions(mean=50.0, std=1.0)  # all weights are kept
    masked = cls(*positional, dtype=torch.float64, options=options, generator=generator).eval()
    named = cls(**arguments, dtype=torch.float64, options=options, generator=torch.Generator().manual_seed(0)).eval()
    assert torch.equal(masked.weight_scores, named.weight_scores)
    assert torch.equal(masked.bias_scores, named.bias_scores)
    assert masked.weight.dtype == masked.weight_scores.dtype == torch.float64
    plain = cls.plain(*positional, dtype=torch.float64).eval()
    with torch.no_grad():
        plain.weight.copy_(masked.weight)
        plain.bias.copy_(masked.bias)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(masked(x), plain(x))
    assert named.extra_repr() == plain.extra_repr()
    meta = cls(*positional, device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert not meta.parametrizations.weight.original.requires_grad


@pytest.mark.parametrize(("cls", "arguments", "shape"), LAYERS, ids=IDS)
def test_without_bias_or_without_anything_to_mask(
    cls: type[Any], arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    switch = next(name for name in ("elementwise_affine", "affine", "bias") if name in arguments)
    layer = cls(**arguments | {switch: False})
    assert layer.bias_scores is None
    if switch == "bias":
        assert layer.weight_scores.shape == layer.weight.shape
    else:
        assert layer.weight_scores is None
        assert not is_masked_module(layer)
    assert layer(torch.randn(shape)).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_mode_hooks_and_buffers_are_kept(dtype: torch.dtype) -> None:
    plain = nn.BatchNorm1d(3, dtype=dtype).eval()
    plain.running_mean.fill_(2)
    calls: list[int] = []
    plain.register_forward_hook(lambda *_: calls.append(1))
    masked = MaskedBatchNorm1d.from_pretrained(plain)
    assert masked.weight_scores.dtype == masked.bias.dtype == dtype
    assert torch.equal(masked.running_mean, plain.running_mean)
    assert not masked.training
    masked(torch.ones(2, 3, dtype=dtype))
    assert calls == [1]
    masked.running_mean.zero_()
    assert float(plain.running_mean[0]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_is_kept() -> None:
    masked = MaskedLinear.from_pretrained(nn.Linear(300, 300, device="cuda"), generator=torch.Generator())
    assert {p.device.type for p in masked.parameters()} == {"cuda"}
    masked(torch.ones(2, 300, device="cuda")).sum().backward()
    assert masked.weight_scores.grad.device.type == "cuda"


def test_strict_loading_of_plain_weights() -> None:
    plain = nn.Linear(4, 3)
    fresh = nn.Linear(4, 3)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    masked = MaskedLinear.from_pretrained(fresh)
    assert torch.equal(masked.parametrizations.weight.original, plain.weight)
    exported = export_masked(masked)
    nn.Linear(4, 3).load_state_dict(exported.state_dict(), strict=True)
    assert list(exported.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("cls", [MaskedConvTranspose1d, MaskedConvTranspose2d, MaskedConvTranspose3d])
def test_transposed_convolutions(cls: type[Any]) -> None:
    dims = int(cls.__name__[-2])
    layer = cls(2, 3, 3, stride=2)
    x = torch.randn(1, 2, *(4,) * dims)
    assert layer(x).shape == (1, 3, *(9,) * dims)
    assert layer(x, output_size=(10,) * dims).shape == (1, 3, *(10,) * dims)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros' for a transposed convolution, got 'circular'"):
        cls(2, 3, 3, padding_mode="circular")
    changed = cls.plain(2, 3, 3)
    changed.padding_mode = "reflect"
    with pytest.raises(ValueError, match="padding_mode must be 'zeros'"):
        cls.from_pretrained(changed)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros'"):
        convert_to_masked_model(nn.Sequential(changed))


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [(MaskedBatchNorm1d, (2, 3, 4, 4)), (MaskedBatchNorm2d, (2, 3)), (MaskedBatchNorm3d, (2, 3, 4, 4))],
)
def test_dimensions_of_batch_norms(cls: type[Any], wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .* input"):
        cls(3)(torch.randn(wrong))


def test_batch_norm_without_running_statistics() -> None:
    layer = MaskedBatchNorm2d(3, track_running_stats=False, options=MaskOptions(mean=9.0)).eval()
    assert layer.running_mean is None
    assert abs(float(layer(torch.randn(4, 3, 5, 5) + 3).detach().mean())) < 1e-4  # statistics of the batch
    cumulative = MaskedBatchNorm1d(2, momentum=None)
    batches = torch.randn(3, 8, 2)
    for batch in batches:
        cumulative(batch)
    torch.testing.assert_close(cumulative.running_mean, batches.mean((0, 1)))


def test_wrong_layers() -> None:
    with pytest.raises(TypeError, match=r"module must be a Linear, got Conv1d; .*mask_module"):
        MaskedLinear.from_pretrained(nn.Conv1d(1, 1, 1))
    with pytest.raises(TypeError, match="module must be a Linear, got int"):
        MaskedLinear.from_pretrained(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masked already"):
        MaskedLinear.from_pretrained(MaskedLinear(2, 2))
