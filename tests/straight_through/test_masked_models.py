"""Models of masked layers: conversion, training, evaluation, and the way back to plain ones."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sthyper.straight_through.masked_layers import (
    MaskedBatchNorm2d,
    MaskedConv2d,
    MaskedConvTranspose2d,
    MaskedLayer,
    MaskedLayerNorm,
    MaskedLinear,
    convert_to_masked_model,
    export_masked,
)
from sthyper.straight_through.masks import (
    MaskMode,
    MaskOptions,
    is_masked_module,
    kept_share,
    mask_module,
    named_masks,
)

EXPECTED = MaskOptions(training="expected", evaluation="expected")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(4, 2, 2), nn.Flatten()),
        nn.Linear(2 * 49, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


# ---- conversion -------------------------------------------------------------------------------------------------


def test_conversion_masks_every_layer_of_a_copy() -> None:
    plain = network().eval()
    before = copy.deepcopy(plain.state_dict())
    masked = convert_to_masked_model(plain)
    kinds = [MaskedConv2d, MaskedBatchNorm2d, nn.ReLU, nn.Sequential, MaskedLinear, MaskedLayerNorm, MaskedLinear]
    assert all(isinstance(layer, kind) for layer, kind in zip(masked, kinds, strict=True))
    assert isinstance(masked[3][0], MaskedConvTranspose2d)
    assert len(list(named_masks(masked))) == 12
    assert not masked.training
    assert [type(m) for m in plain.modules()][1:3] == [nn.Conv2d, nn.BatchNorm2d]
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    assert all(p.requires_grad for p in plain.parameters())


def test_conversion_of_one_layer_and_of_masked_and_other_modules() -> None:
    assert isinstance(convert_to_masked_model(nn.Linear(2, 2)), MaskedLinear)
    first = MaskedLinear(2, 2)
    twice = convert_to_masked_model(nn.Sequential(first, nn.Linear(2, 2), nn.Embedding(3, 2)))
    assert torch.equal(twice[0].weight_scores, first.weight_scores)
    assert len(list(named_masks(twice))) == 4
    assert twice[2].weight.requires_grad
    again = convert_to_masked_model(twice)
    assert list(again.state_dict()) == list(twice.state_dict())


class Scaled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses_keep_their_forward_and_shared_layers_stay_shared() -> None:
    layer = Scaled(2, 2)
    masked = convert_to_masked_model(nn.Sequential(layer, layer), EXPECTED)
    assert masked[0] is masked[1]
    assert isinstance(masked[0], Scaled)
    assert is_masked_module(masked[0])
    scores = {name: mask.scores for name, mask in named_masks(masked)}
    with torch.no_grad():
        for s in scores.values():
            s.fill_(100)
    x = torch.randn(3, 2)
    torch.testing.assert_close(masked(x), layer(layer(x)))
    exported = export_masked(masked, "expected")
    assert type(exported[0]) is Scaled


def test_tied_weights_stay_tied_and_get_masks_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    masked = convert_to_masked_model(model)
    assert masked[0].parametrizations.weight.original is masked[1].parametrizations.weight.original
    assert not torch.equal(masked[0].weight_scores, masked[1].weight_scores)
    x = torch.randn(4, 3)
    torch.testing.assert_close(export_masked(masked)(x), masked.eval()(x))


def test_excluded_layers_stay_plain() -> None:
    masked = convert_to_masked_model(network(), exclude=("3.*", "6"))
    assert type(masked[6]) is nn.Linear
    assert type(masked[3][0]) is nn.ConvTranspose2d
    assert masked[6].weight.requires_grad
    assert isinstance(masked[4], MaskedLinear)
    with pytest.raises(ValueError, match=r"exclude: no layer to mask matches '7'.*there are \['0', '1', '3.0'"):
        convert_to_masked_model(network(), exclude=("7",))
    with pytest.raises(TypeError, match=r"say exclude=\('6',\)"):
        convert_to_masked_model(network(), exclude="6")
    with pytest.raises(TypeError, match="model must be a module"):
        convert_to_masked_model([nn.Linear(2, 2)])  # type: ignore[arg-type]


def test_options_and_generator_of_a_conversion() -> None:
    options = MaskOptions(mean=3.0, std=0.0, freeze=False)
    masked = convert_to_masked_model(network(), options)
    assert all(torch.equal(mask.scores, torch.full_like(mask.scores, 3.0)) for _, mask in named_masks(masked))
    assert all(p.requires_grad for p in masked.parameters())
    a, b = (convert_to_masked_model(network(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(x.scores, y.scores) for (_, x), (_, y) in zip(named_masks(a), named_masks(b), strict=True))


def test_state_dicts_go_round() -> None:
    torch.manual_seed(0)
    a, b = (convert_to_masked_model(network()).eval() for _ in range(2))
    buffer = io.BytesIO()
    torch.save(a.state_dict(), buffer)
    buffer.seek(0)
    b.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(a(x), b(x))
    assert torch.equal(copy.deepcopy(a)(x), a(x))


@pytest.mark.parametrize("estimator", ["probs", "identity"])
def test_training_moves_scores_and_no_weight(estimator: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x[:, 0] + x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight)
    masked = convert_to_masked_model(model, MaskOptions(estimator=estimator))  # type: ignore[arg-type]
    frozen = {name: p.detach().clone() for name, p in masked.named_parameters() if not p.requires_grad}
    start = {name: mask.scores.detach().clone() for name, mask in named_masks(masked)}
    optimizer = torch.optim.Adam([p for p in masked.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(masked(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert len(frozen) == 4
    assert all(torch.equal(p, masked.get_parameter(name)) for name, p in frozen.items())
    for name, mask in named_masks(masked):
        assert float((mask.scores.detach() - start[name]).abs().max()) > 0.1
    masked.eval()
    assert float((masked(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("evaluation", ["sample", "threshold", "expected"])
def test_evaluation_of_a_model(evaluation: str) -> None:
    torch.manual_seed(0)
    masked = convert_to_masked_model(network(), MaskOptions(evaluation=evaluation)).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(masked(x), masked(x)) == (evaluation != "sample")
    if evaluation != "sample":
        torch.testing.assert_close(export_masked(masked, evaluation)(x), masked(x))  # type: ignore[arg-type]


# ---- export -------------------------------------------------------------------------------------------------


def assert_plain(model: nn.Module) -> None:
    for module in model.modules():
        assert type(module).__module__.startswith("torch.")
        assert not parametrize.is_parametrized(module)
    assert b"sthyper" not in pickle.dumps(model)
    assert all(type(p) is nn.Parameter and p.requires_grad and p.is_leaf for p in model.parameters())


def test_the_exported_model_is_plain_and_equal() -> None:
    torch.manual_seed(0)
    masked = convert_to_masked_model(network())
    masked(torch.randn(4, 1, 8, 8))  # running statistics
    before = copy.deepcopy(masked.state_dict())
    exported = export_masked(masked)
    assert_plain(exported)
    assert all(torch.equal(before[name], value) for name, value in masked.state_dict().items())
    assert exported.training
    x = torch.randn(4, 1, 8, 8)
    masked.eval(), exported.eval()
    assert torch.equal(exported(x), masked(x))
    kept = sum(int((p != 0).sum()) for p in exported.parameters())
    # Fresh biases of normalisations are 0 whatever the mask says.
    zeros = sum(int(masked.get_submodule(f"{n}.parametrizations.bias")[0].decisions().sum()) for n in ("1", "5"))
    assert kept + zeros == round(kept_share(masked) * sum(p.numel() for p in exported.parameters()))
    buffer = io.BytesIO()
    torch.save(exported.state_dict(), buffer)
    buffer.seek(0)
    plain = network().eval()
    plain.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(plain(x), masked(x))
    exported.train()(x).sum().backward()
    assert all(p.grad is not None for p in exported.parameters())


def test_export_of_samples_and_of_several_kinds_of_parametrisations() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(
        mask_module(parametrizations.weight_norm(nn.Linear(30, 30)), ("weight",)), MaskedLinear(30, 2)
    )
    a, b = export_masked(layer, "sample"), export_masked(layer, "sample")
    assert not torch.equal(a[0].weight, b[0].weight)
    exported = export_masked(layer)
    assert [type(m) for m in exported] == [nn.Linear, nn.Linear]
    assert set(exported.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    x = torch.randn(5, 30)
    torch.testing.assert_close(exported(x), layer.eval()(x))
    kept = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), MaskedLinear(3, 2))
    assert parametrize.is_parametrized(export_masked(kept)[0])  # not ours


def test_copies_of_parametrised_modules_are_not_disturbed() -> None:
    """They share a class, whose properties masks and export must not change for the others."""
    normed = parametrizations.weight_norm(nn.Linear(4, 3))
    x = torch.randn(2, 4)
    y = normed(x)
    masked = convert_to_masked_model(nn.Sequential(normed))
    torch.testing.assert_close(normed(x), y)
    masked[0].eval()
    y_masked = masked(x)
    torch.testing.assert_close(export_masked(masked)(x), y_masked)
    torch.testing.assert_close(masked(x), y_masked)
    torch.testing.assert_close(normed(x), y)
    twin = copy.deepcopy(masked)
    only_bias = mask_module(parametrizations.weight_norm(nn.Linear(4, 3)), ("bias",)).eval()
    exported = export_masked(only_bias)
    assert set(exported.parametrizations) == {"weight"}
    torch.testing.assert_close(exported(x), only_bias(x))
    torch.testing.assert_close(twin(x), y_masked)


class Own(MaskedLinear):
    """A subclass of a masked layer."""


def test_what_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match="model has no masks"):
        export_masked(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a module"):
        export_masked(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mode must be one of .*did you mean 'expected'"):
        export_masked(MaskedLinear(2, 2), "expect")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Own is a subclass of a masked layer"):
        export_masked(Own(2, 2))


def test_unmasked_layers_of_masked_classes_become_plain_too() -> None:
    model = nn.Sequential(MaskedLayerNorm(3, elementwise_affine=False), MaskedLinear(3, 3))
    assert isinstance(model[0], MaskedLayer)
    assert_plain(export_masked(model))


def test_attention_uses_masked_projections() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    masked = convert_to_masked_model(layer)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(masked.eval()(x), export_masked(masked).eval()(x))
        assert not torch.allclose(masked(x), layer.eval()(x))


def test_wrong_options_of_a_conversion() -> None:
    with pytest.raises(TypeError, match=r"options must be MaskOptions\(\.\.\.\)"):
        convert_to_masked_model(nn.ReLU(), MaskMode)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_style_norms_of_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.utils.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'1' .Linear. has an old-style weight or spectral norm.*remove_weight_norm"):
        convert_to_masked_model(model)
    nn.utils.remove_weight_norm(model[1])
    assert is_masked_module(convert_to_masked_model(model)[1])  # type: ignore[index]
    spectral = nn.Sequential(nn.Linear(2, 2), nn.utils.spectral_norm(nn.Linear(2, 2)))
    spectral(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="'1' .Linear. has an old-style"):
        convert_to_masked_model(spectral)
    masked = convert_to_masked_model(nn.Sequential(nn.Linear(2, 2)))
    masked.append(nn.utils.weight_norm(nn.Linear(2, 2)))  # type: ignore[operator]
    with pytest.raises(ValueError, match="'1' .Linear. has an old-style"):
        export_masked(masked)


def test_embeddings_stay_as_they_were_unless_a_masked_layer_shares_their_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.frozen, self.shared = nn.Embedding(4, 3), nn.Embedding(4, 3), nn.Embedding(4, 3)
            self.frozen.requires_grad_(False)
            self.head = nn.Linear(3, 4)
            self.head.weight = self.shared.weight

    model = convert_to_masked_model(Tied())
    trainable = [e.weight.requires_grad for e in (model.own, model.frozen, model.shared)]  # type: ignore[union-attr]
    assert trainable == [True, False, False]
    assert not is_masked_module(model.shared)  # type: ignore[arg-type]
