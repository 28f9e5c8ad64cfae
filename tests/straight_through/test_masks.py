"""Masks as a parametrisation of any module: values, gradients of both estimators, modes, transforms, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils import parametrizations, parametrize

from sthyper.straight_through.masks import (
    MaskOptions,
    ScoreMask,
    is_masked_module,
    kept_share,
    mask_module,
    named_masks,
    set_evaluation,
)

ESTIMATORS = ["probs", "identity"]
MODES = ["sample", "threshold", "expected"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(options: MaskOptions | None = None, shape: tuple[int, int] = (5, 7), **kwargs: object) -> nn.Module:
    """Return a masked layer with weights that are nowhere 0."""
    layer = nn.Linear(*shape, **kwargs)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.copy_(torch.rand(layer.weight.shape, generator=seeded()) + 0.5)
    return mask_module(layer, options=options, generator=seeded(1))


def slope(p: Tensor, estimator: str, mode: str) -> Tensor:
    """Return what the derivative of a mask with respect to its score is taken to be."""
    return p * (1 - p) * (p if estimator == "probs" and mode != "expected" else 1)


def test_the_names_in_the_state_dict() -> None:
    layer = linear()
    names = {f"parametrizations.{name}.{part}" for name in ("weight", "bias") for part in ("0.scores", "original")}
    assert set(layer.state_dict()) == names
    assert [name for name, _ in named_masks(layer)] == ["parametrizations.weight.0", "parametrizations.bias.0"]
    assert isinstance(layer, nn.Linear)
    assert is_masked_module(layer)
    assert not is_masked_module(nn.Linear(2, 2))
    assert not is_masked_module(parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not is_masked_module(nn.Sequential(linear()))


def test_only_scores_are_trained_unless_weights_are_not_frozen() -> None:
    trained = {name for name, p in linear().named_parameters() if p.requires_grad}
    assert trained == {"parametrizations.weight.0.scores", "parametrizations.bias.0.scores"}
    assert all(p.requires_grad for p in linear(MaskOptions(freeze=False)).parameters())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (80, 70)])
def test_gradients_are_those_of_the_formula(
    estimator: str, mode: str, dtype: torch.dtype, freeze: bool, shape: tuple[int, int]
) -> None:
    """Of small tensors and of those that are drawn in the other way, by the short form and by autograd."""
    options = MaskOptions(estimator=estimator, training=mode, freeze=freeze)  # type: ignore[arg-type]
    layer = linear(options, shape, dtype=dtype)
    value = layer.weight
    assert value.dtype == dtype
    upstream = torch.randn(value.shape, generator=seeded(2)).to(dtype)
    value.backward(upstream)
    original = layer.parametrizations.weight.original
    scores = layer.parametrizations.weight[0].scores
    p = scores.detach().sigmoid()
    mask = (value / original).detach()
    if mode == "expected":
        torch.testing.assert_close(mask, p)
    elif mode == "threshold":
        assert torch.equal(mask, (p > 0.5).to(dtype))
    else:
        assert set(mask.double().unique().tolist()) == {0.0, 1.0}
    wanted = upstream.double() * original.detach().double() * slope(p.double(), estimator, mode)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(scores.grad.double(), wanted, rtol=tolerance, atol=tolerance)
    if freeze:
        assert original.grad is None
    else:
        torch.testing.assert_close(original.grad, upstream * mask)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", ["threshold", "expected"])
def test_second_derivatives_see_the_scores_again(estimator: str, mode: str) -> None:
    layer = linear(MaskOptions(estimator=estimator, training=mode)).double()  # type: ignore[arg-type]
    scores, w = layer.parametrizations.weight[0].scores, layer.parametrizations.weight.original
    (first,) = torch.autograd.grad(layer.weight.square().sum(), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), scores)

    x = scores.detach().requires_grad_()  # the same in a spelt-out form
    p = x.sigmoid()
    soft = p.square() / 2 if estimator == "probs" and mode == "threshold" else p
    mask = p if mode == "expected" else (p > 0.5).double() + soft - soft.detach()
    (wanted_first,) = torch.autograd.grad((w * mask).square().sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(wanted_first.sum(), x)
    torch.testing.assert_close(first, wanted_first)
    torch.testing.assert_close(second, wanted)


def test_the_sample_follows_the_probabilities_and_the_global_generator() -> None:
    layer = mask_module(nn.Linear(100, 100), options=MaskOptions(mean=1.0, std=0.0))
    p = torch.tensor(1.0).sigmoid()
    kept = (layer.weight != 0).double().mean()
    assert abs(float(kept - p)) < 4 * float((p * (1 - p)).sqrt()) / 100
    torch.manual_seed(3)
    first = layer.weight
    assert not torch.equal(first, layer.weight)
    torch.manual_seed(3)
    assert torch.equal(first, layer.weight)
    with parametrize.cached():
        assert layer.weight is layer.weight


def test_modes_of_training_and_evaluation() -> None:
    layer = linear()
    original, p = layer.parametrizations.weight.original, layer.parametrizations.weight[0].probabilities()
    layer.eval()
    assert torch.equal(layer.weight, original * (p > 0.5))
    set_evaluation(layer, "expected")
    torch.testing.assert_close(layer.weight, original * p)
    set_evaluation(layer, "sample")
    assert not torch.equal(layer.weight, layer.weight)
    layer.train()
    set_evaluation(layer, "threshold")
    assert not torch.equal(layer.weight, layer.weight)
    mask = layer.parametrizations.weight[0]
    assert torch.equal(mask.mask("threshold"), (p > 0.5).float())
    assert torch.equal(mask.mask("expected"), p)
    assert torch.equal(mask.decisions(), p > 0.5)
    assert "training=sample" in repr(mask)


def test_initial_scores() -> None:
    wide = mask_module(nn.Linear(200, 200), options=MaskOptions(mean=2.0, std=0.5))
    scores = wide.parametrizations.weight[0].scores.detach()
    assert abs(float(scores.mean()) - 2) < 0.02
    assert abs(float(scores.std()) - 0.5) < 0.02
    default = mask_module(nn.Linear(200, 200)).parametrizations.weight[0].scores.detach()
    assert abs(float(default.mean())) < 0.03
    assert abs(float(default.std()) - 1) < 0.03
    state = torch.get_rng_state()
    a, b, c = (linear_scores(seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def linear_scores(seed: int) -> Tensor:
    layer = nn.Linear(3, 3, device="meta").to_empty(device="cpu")
    return mask_module(layer, generator=seeded(seed)).parametrizations.weight[0].scores.detach()


def test_kept_share() -> None:
    layer = nn.Sequential(linear(), linear())
    with torch.no_grad():
        for i, (_, mask) in enumerate(named_masks(layer)):
            mask.scores.fill_(1.0 if i == 0 else -1.0)
    assert kept_share(layer) == pytest.approx(35 / 84)


def test_assignment_sets_the_values_under_the_mask() -> None:
    layer = linear()
    new = torch.randn(7, 5)
    layer.weight = new  # type: ignore[assignment]
    assert torch.equal(layer.parametrizations.weight.original, new)


def test_chosen_names_and_other_modules() -> None:
    recurrent = mask_module(nn.GRU(3, 4), names=("weight_ih_l0", "weight_hh_l0"))
    assert {name for name, p in recurrent.named_parameters() if not p.requires_grad} == {
        "parametrizations.weight_ih_l0.original",
        "parametrizations.weight_hh_l0.original",
    }
    assert recurrent(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
    embedding = mask_module(nn.Embedding(6, 3))
    assert [name for name, _ in named_masks(embedding)] == ["parametrizations.weight.0"]
    assert set(mask_module(nn.Linear(2, 2), ("bias",)).parametrizations) == {"bias"}
    assert set(mask_module(nn.Linear(2, 2, bias=False), ("weight", "bias")).parametrizations) == {"weight"}
    assert list(named_masks(mask_module(nn.LayerNorm(3, elementwise_affine=False)))) == []


def test_a_mask_on_top_of_another_parametrisation() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    plain = layer.weight.detach().clone()
    mask_module(layer, ("weight",)).eval()
    mask = layer.parametrizations.weight[1]
    assert isinstance(mask, ScoreMask)
    torch.testing.assert_close(layer.weight, plain * mask.decisions())
    assert not layer.parametrizations.weight.original0.requires_grad
    assert not layer.parametrizations.weight.original1.requires_grad


def test_copies_are_independent_and_states_go_round() -> None:
    layer = linear()
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        layer.parametrizations.weight[0].scores.add_(1)
    assert not torch.equal(twin.parametrizations.weight[0].scores, layer.parametrizations.weight[0].scores)
    twin.load_state_dict(layer.state_dict())
    twin.eval(), layer.eval()
    assert torch.equal(twin.weight, layer.weight)
    assert torch.equal(twin.bias, layer.bias)


def test_scores_of_another_dtype() -> None:
    mask = ScoreMask(torch.zeros(3, 2), MaskOptions(mean=0.0))
    x = torch.ones(3, 2, dtype=torch.bfloat16)
    y = mask(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert mask.scores.grad.dtype == torch.float32


# ---- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
def test_forward_mode(estimator: str, mode: str) -> None:
    layer = linear(MaskOptions(estimator=estimator, training=mode)).double()  # type: ignore[arg-type]
    mask, w = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    t, tw = (torch.randn(w.shape, dtype=torch.float64, generator=seeded(i)) for i in (3, 4))
    p = mask.probabilities().detach()
    scores = dict(layer.named_parameters())

    def value(s: Tensor, x: Tensor) -> Tensor:
        return functional_call(layer, scores | {names[0]: s, names[1]: x}, (torch.eye(5, dtype=torch.float64),))

    names = ("parametrizations.weight.0.scores", "parametrizations.weight.original")
    torch.manual_seed(0)
    y, tangent = torch.func.jvp(value, (mask.scores, w), (t, torch.zeros_like(w)))
    torch.testing.assert_close(tangent.t(), t * w * slope(p, estimator, mode))
    with forward_ad.dual_level():  # without a transform
        original = forward_ad.make_dual(w.detach(), tw)
        dual = forward_ad.unpack_dual(mask(original))
        torch.testing.assert_close(dual.tangent * w, dual.primal * tw)
    assert y.shape == (5, 7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_gradients(estimator: str, mode: str) -> None:
    """vmap over scores, each member with a draw of its own, and of gradients within it."""
    layer = linear(MaskOptions(estimator=estimator, training=mode))  # type: ignore[arg-type]
    w = layer.parametrizations.weight.original
    name = "parametrizations.weight.0.scores"
    scores = layer.get_parameter(name).detach().expand(64, 7, 5).clone()
    rest = {n: p.detach() for n, p in layer.named_parameters() if n != name}
    x = torch.eye(5)

    def loss(s: Tensor) -> Tensor:
        return functional_call(layer, rest | {name: s}, (x,)).sum()

    gradients = vmap(grad(loss), randomness="different")(scores)
    torch.testing.assert_close(gradients, (w * slope(scores.sigmoid(), estimator, mode)))
    values = vmap(lambda s: functional_call(layer, rest | {name: s}, (x,)), randomness="different")(scores)
    assert (len(values.flatten(1).unique(dim=0)) > 1) == (mode == "sample")


@pytest.mark.parametrize("shape", [(5, 7), (80, 70)])
def test_randomness_of_vmap_over_examples(shape: tuple[int, int]) -> None:
    layer = linear(None, shape)
    x = torch.ones(6, shape[0])
    different = vmap(layer, randomness="different")(x)
    assert len(different.unique(dim=0)) > 1
    same = vmap(layer, randomness="same")(x)
    torch.testing.assert_close(same, same[:1].expand_as(same))
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(x)
    layer.eval()
    torch.testing.assert_close(vmap(layer)(x), layer(x))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nested_transforms(estimator: str) -> None:
    """Forward over reverse, and the other way round, of the square of the masked values."""
    layer = linear(MaskOptions(estimator=estimator, training="threshold")).double()  # type: ignore[arg-type]
    mask, w = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    start = mask.scores.detach()

    def loss(s: Tensor) -> Tensor:
        return (functional_call(mask, {"scores": s}, (w,)).square()).sum()

    p = start.sigmoid()
    m = (p > 0.5).double()
    first = slope(p, estimator, "threshold")
    # d first / d score, by hand.
    second = p * (1 - p) * ((2 - 3 * p) * p if estimator == "probs" else 1 - 2 * p)
    wanted = torch.diag((w.square() * 2 * (first.square() + m * second)).flatten())
    n = start.numel()
    torch.testing.assert_close(jacfwd(jacrev(loss))(start).reshape(n, n), wanted)
    torch.testing.assert_close(jacrev(jacfwd(loss))(start).reshape(n, n), wanted)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", MODES)
def test_compiled(estimator: str, mode: str) -> None:
    torch._dynamo.reset()
    layer = linear(MaskOptions(estimator=estimator, training=mode, evaluation="threshold"))  # type: ignore[arg-type]
    w, scores = layer.parametrizations.weight.original, layer.parametrizations.weight[0].scores
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(torch.eye(5)) - layer.parametrizations.bias.original * 0
    y.sum().backward()
    torch.testing.assert_close(scores.grad, w * slope(scores.detach().sigmoid(), estimator, mode))
    layer.eval()
    assert torch.equal(compiled(torch.eye(5)), layer(torch.eye(5)))
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu(mode: str) -> None:
    layer = mask_module(nn.Linear(300, 300, device="cuda"), options=MaskOptions(training=mode), generator=seeded())  # type: ignore[arg-type]
    mask = layer.parametrizations.weight[0]
    assert mask.scores.device.type == "cuda"
    layer.weight.sum().backward()
    p = mask.probabilities().detach()
    torch.testing.assert_close(mask.scores.grad, layer.parametrizations.weight.original * slope(p, "probs", mode))
    with torch.no_grad():
        mask.scores.fill_(torch.nan)
    layer.weight.sum().item()
    torch.cuda.synchronize()  # NaN makes no device assertion


# ---- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "prob"}, "estimator must be one of .* got 'prob' .did you mean 'probs'"),
        ({"training": "treshold"}, "training must be one of .*did you mean 'threshold'"),
        ({"evaluation": "x"}, "evaluation must be one of"),
        ({"mean": float("nan")}, "mean must be finite"),
        ({"std": -1.0}, "std must be finite and at least 0, got -1.0"),
    ],
)
def test_wrong_options(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskOptions(**arguments)


def test_wrong_modules_and_names() -> None:
    with pytest.raises(TypeError, match="module must be a module, got 3"):
        mask_module(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"names=\('weight',\)"):
        mask_module(nn.Linear(2, 2), "weight")
    with pytest.raises(ValueError, match=r"no parameter 'weigth' \(did you mean 'weight'\?\)"):
        mask_module(nn.Linear(2, 2), ("weigth",))
    with pytest.raises(ValueError, match="GRU has neither weight nor bias; .*weight_ih_l0"):
        mask_module(nn.GRU(2, 2))
    with pytest.raises(ValueError, match="weight of Parametrized.* is masked already"):
        mask_module(linear(), ("weight",))
    with pytest.raises(ValueError, match="not initialised yet"):
        mask_module(nn.LazyLinear(2))
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(TypeError, match="not floating point but torch.int64"):
        mask_module(layer)
    with pytest.raises(ValueError, match="running_mean of BatchNorm1d is no parameter"):
        mask_module(nn.BatchNorm1d(2), ("running_mean",))
    with pytest.raises(TypeError, match="scores must be a floating tensor, got torch.int64"):
        ScoreMask(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="mode must be one of"):
        linear().parametrizations.weight[0].mask("sampled")
    with pytest.raises(ValueError, match="model has no masks"):
        kept_share(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="evaluation must be one of"):
        set_evaluation(linear(), "treshold")  # type: ignore[arg-type]


def test_a_refused_module_is_unchanged() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no parameter"):
        mask_module(layer, ("weight", "scale"))
    assert type(layer) is nn.Linear
    assert layer.weight.requires_grad


def test_wrong_types_of_options() -> None:
    with pytest.raises(TypeError, match="freeze must be True or False, got 'no'"):
        MaskOptions(freeze="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mean must be a number, got 'a'"):
        MaskOptions(mean="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="std must be a number, got True"):
        MaskOptions(std=True)
    for refused in (
        lambda: mask_module(nn.Linear(2, 2), options="sample"),  # type: ignore[arg-type]
        lambda: ScoreMask(torch.zeros(2), "sample"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"options must be MaskOptions\(\.\.\.\), got 'sample'"):
            refused()
