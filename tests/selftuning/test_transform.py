"""The transformation of whole models: what is chosen, how it is taken apart again, and what surrounds it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sthyper.config_space import uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.layers import LAYERS, Response
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.transform import (
    DEFAULT_GROUPS,
    WIDE,
    export,
    general_parameters,
    plain_state_dict,
    response_parameters,
    self_tune,
    squared_norms,
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


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


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


# ---- what is transformed -----------------------------------------------------------------------------------


def test_names_classes_and_structure() -> None:
    plain = net()
    hyperparameters = hyper()
    model = self_tune(copy.deepcopy(plain), hyperparameters)
    assert isinstance(model, Net)
    assert isinstance(model.head, nn.Linear)
    assert type(model.head) is LAYERS[nn.Linear]
    assert model.selftuning.hyperparameters is hyperparameters
    new = [name for name in model.state_dict() if not name.startswith("selftuning.")]
    assert new == list(plain.state_dict())
    assert "selftuning.responses.features.0.weight" in model.state_dict()
    assert set(model.selftuning.forms) == {"features.0", "features.1", "head"}
    assert model.selftuning.kind == "delta"
    assert model.selftuning.untouched == ()
    assert isinstance(model.features[3], nn.Dropout2d)  # no hyperparameter has its name


def test_the_seed_decides_the_responses_and_torchs_own_generator_does_not() -> None:
    nets = [net() for _ in range(3)]
    before = torch.get_rng_state()
    models = [self_tune(plain, hyper(), seed=seed) for plain, seed in zip(nets, (1, 1, 2), strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (torch.cat([p.flatten() for p in response_parameters(m)]) for m in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_initial_responses() -> None:
    """Paper values: no response at first for kind delta, a bottleneck of .01 for kind stn, weights like torch's own."""
    layer = nn.Sequential(nn.Linear(400, 300), nn.Embedding(500, 30))
    for kind in ("delta", "stn"):
        model = self_tune(copy.deepcopy(layer), hyper(), kind, "full")
        linear, embedding = model.selftuning.responses._modules.values()
        assert float(linear.weight.detach().abs().max()) == pytest.approx(0.05, rel=1e-3)
        assert float(embedding.weight.detach().abs().max()) == pytest.approx(0.1, rel=1e-3)
        if kind == "delta":
            assert int(linear.bottleneck.count_nonzero()) == 0
            assert linear.scalar is None
        else:
            assert float(linear.bottleneck.detach().std()) == pytest.approx(0.01, rel=0.1)
            assert float(linear.scalar.detach()) == 1.0
        assert embedding.scalar is None
    low = self_tune(copy.deepcopy(layer), hyper(), "delta", "lowrank", rank=16).selftuning.responses._modules["0"]
    assert low.up.shape == (300, 16)
    full = (low.up @ low.down).detach()
    assert float(full.std()) == pytest.approx(0.05 / 3**0.5, rel=0.1)


def test_auto_takes_factors_for_wide_layers_and_groups_for_convolutions() -> None:
    wide = int(WIDE**0.5)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(wide, wide), nn.Linear(wide, wide - 1), nn.LSTM(wide, wide))
    model = self_tune(layers, hyper(), response="auto", rank=3)
    forms = model.selftuning.forms
    assert [forms[name] for name in ("0", "1", "2", "3.ih_l0")] == ["full", "lowrank", "full", "full"]
    assert model.selftuning.responses._modules["1"].up.shape[1] == 3
    assert model.selftuning.groups == DEFAULT_GROUPS
    assert self_tune(net(), hyper(), response="auto", groups=4).selftuning.groups == 4
    assert self_tune(net(), hyper(), response="full").selftuning.groups is None
    assert self_tune(net(), hyper(), response="lowrank", groups=2).selftuning.groups == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": nn.Linear}, {"head"}),
        ({"include": "features"}, {"features.0", "features.1"}),
        ({"include": ["*.0", nn.Linear]}, {"features.0", "head"}),
        ({"exclude": nn.modules.batchnorm._BatchNorm}, {"features.0", "head"}),
        ({"exclude": "features.*"}, {"head"}),
        ({"exclude": lambda name, module: name == "head"}, {"features.0", "features.1"}),
        ({"include": (nn.Linear, nn.Conv2d), "exclude": ["head"]}, {"features.0"}),
    ],
)
def test_include_and_exclude(options: dict[str, Any], expected: set[str]) -> None:
    assert set(self_tune(net(), hyper(), **options).selftuning.forms) == expected


def test_left_out_modules_are_listed() -> None:
    model = self_tune(nn.Sequential(nn.Linear(2, 2), nn.PReLU(), nn.Linear(2, 2)), hyper(), exclude="2")
    assert model.selftuning.untouched == ("1", "2")


class _Own(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class _Renamed(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: nn.LazyLinear(3), "not initialised"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrised"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "parametrised"),
        (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), "no parameter, but computed"),
        (lambda: nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
        (lambda: _Own(2, 2), "its own forward"),
        (lambda: nn.SyncBatchNorm(3), "SyncBatchNorm"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_that_cannot_be_transformed_are_named(layer: Any, why: str) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), layer())

    with pytest.raises(ValueError, match=rf"'1' \(.*{why}.*exclude=\('1',\)"):
        self_tune(model(), hyper())
    assert set(self_tune(model(), hyper(), exclude=("1",)).selftuning.forms) == {"0"}


def test_subclasses_without_a_forward_of_their_own_respond() -> None:
    model = self_tune(nn.Sequential(_Renamed(2, 2)), hyper())
    assert isinstance(model[0], _Renamed)
    assert isinstance(model[0], LAYERS[nn.Linear])
    assert type(export(model)[0]) is _Renamed


class _Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))


def test_bad_arguments() -> None:
    for options, message in [
        ({"kind": "delt"}, "did you mean 'delta'"),
        ({"response": "ful"}, "did you mean 'full'"),
        ({"rank": 0}, "rank must be"),
        ({"groups": 0}, "groups must be"),
        ({"include": "haed"}, "did you mean 'head'"),
        ({"exclude": ("feature",)}, "did you mean 'features'"),
        ({"include": nn.ReLU}, "ReLU cannot be transformed"),
        ({"include": "drop"}, "among layers that can be transformed"),
        ({"batch_dim": -1}, "batch_dim must be"),
        ({"batch_dim": {"hed": 1}}, "did you mean 'head'"),
        ({"dropout": {"*": "c"}}, "no hyperparameter 'c'"),
        ({"dropout": {"head": "a"}}, "among dropout layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            self_tune(net(), hyper(), **options)
    with pytest.raises(TypeError, match="dropout must be"):
        self_tune(net(), hyper(), dropout="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exclude must hold"):
        self_tune(net(), hyper(), exclude=[3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="include: types"):
        self_tune(net(), hyper(), include=int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be"):
        self_tune("net", hyper())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="forward"):
        self_tune(nn.ModuleList([nn.Linear(2, 2)]), hyper())
    with pytest.raises(TypeError, match="hyperparameters must be"):
        self_tune(net(), {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        self_tune(net(), Hyperparameters())
    with pytest.raises(ValueError, match="_Custom"):
        self_tune(nn.Sequential(_Custom(), nn.ReLU()), hyper())
    model = self_tune(net(), hyper())
    with pytest.raises(ValueError, match="already"):
        self_tune(model, hyper())
    with pytest.raises(ValueError, match="already"):
        self_tune(nn.Sequential(model), hyper())
    taken = net()
    taken.selftuning = 3
    with pytest.raises(ValueError, match="attribute 'selftuning'"):
        self_tune(taken, hyper())
    for function in (general_parameters, response_parameters, plain_state_dict, export, squared_norms):
        with pytest.raises(ValueError, match="not self-tuning"):
            function(net())


def test_a_refused_model_stays_as_it_was() -> None:
    model = net()
    with pytest.raises(ValueError, match="no hyperparameter"):
        self_tune(model, hyper(), dropout={"*": "c"})
    assert type(model.head) is nn.Linear
    assert not hasattr(model, "selftuning")


# ---- shared weights and modules ---------------------------------------------------------------------------


def test_of_tied_layers_the_embedding_responds() -> None:
    torch.manual_seed(0)
    plain = Tied()
    model = self_tune(copy.deepcopy(plain), hyper(), "delta", "full")
    assert set(model.selftuning.forms) == {"encoder"}
    assert model.selftuning.untouched == ("decoder",)
    assert model.decoder.weight is model.encoder.weight
    swapped = nn.Sequential(nn.Linear(3, 5), nn.Embedding(5, 3))
    swapped[0].weight = swapped[1].weight
    assert set(self_tune(swapped, hyper()).selftuning.forms) == {"1"}
    x = torch.tensor([0, 4, 2])
    stn = self_tune(copy.deepcopy(plain), hyper(), "stn", "full")
    stir(stn)
    folded = export(stn)
    torch.testing.assert_close(folded(x), stn(x))
    assert not torch.equal(folded.encoder.weight, folded.decoder.weight)
    assert stn.decoder.weight is stn.encoder.weight


def test_a_module_used_twice_has_one_response() -> None:
    layer = nn.Linear(3, 3)
    model = self_tune(nn.Sequential(layer, nn.Tanh(), layer), hyper(), response="full")
    stir(model)
    assert set(model.selftuning.forms) == {"0"}
    x = torch.randn(B, 3)
    with model.selftuning.hyperparameters.perturbed(B):
        once = model[0](x)
        torch.testing.assert_close(model(x), model[0](torch.tanh(once)))


# ---- parts, export and import -----------------------------------------------------------------------------


def test_partition() -> None:
    model = self_tune(net(), hyper())
    general, responses = general_parameters(model), response_parameters(model)
    assert [id(p) for p in general] == [
        id(p) for name, p in model.named_parameters() if not name.startswith("selftuning")
    ]
    own = list(model.selftuning.hyperparameters.parameters())
    ids = [id(p) for p in [*general, *responses, *own]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    outer = nn.Sequential(nn.Linear(2, 2), model)
    assert len(general_parameters(outer)) == len(general) + 2
    assert len(response_parameters(outer)) == len(responses)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.rnn = nn.LSTM(6, 4, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6)
        self.same = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 4, 2, groups=2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.drop = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = self.norm(self.rnn(x)[0])
        h = h + self.attention(h, x, x)[0] + self.same(h, h, h)[0]
        return self.drop(self.up(h.transpose(1, 2)) * self.scale)


def tokens() -> Tensor:
    return torch.randint(9, (B, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_export_and_plain_state(kind: Any, response: Any) -> None:
    torch.manual_seed(0)
    plain = Many().double().eval()
    hyperparameters = hyper(dtype=torch.float64)
    model = self_tune(copy.deepcopy(plain), hyperparameters, kind, response, rank=2)
    stir(model)
    hyperparameters.set_values({"a": 0.4})
    expected = model(tokens())
    exported = export(model)
    assert [type(m) for m in exported.modules()] == [type(m) for m in plain.modules()]
    assert list(exported.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(exported(tokens()), expected, rtol=1e-9, atol=1e-11)
    other = Many().double().eval()
    other.load_state_dict(plain_state_dict(model))
    assert torch.equal(other(tokens()), exported(tokens()))
    changed = not torch.allclose(plain(tokens()), expected, atol=1e-6)
    assert changed == (kind == "stn")
    assert isinstance(model.rnn, LAYERS[nn.LSTM])  # the model itself is still self-tuning


def test_a_plain_state_is_loaded() -> None:
    torch.manual_seed(0)
    plain = Many().eval()
    model = self_tune(Many().eval(), hyper())
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("selftuning.") for name in result.missing_keys)
    assert torch.equal(model(tokens()), plain(tokens()))


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_squared_norms_are_those_of_the_effective_weights(kind: Any, response: Any) -> None:
    torch.manual_seed(0)
    hyperparameters = hyper(dtype=torch.float64)
    model = self_tune(Many().double(), hyperparameters, kind, response, rank=2)
    stir(model)
    plain = {n: p for n, p in model.named_parameters() if not n.startswith("selftuning.")}
    only = "scale", "norm.weight", "rnn.bias_ih_l0"
    with hyperparameters.off():
        torch.testing.assert_close(squared_norms(model), sum(p.square().sum() for p in plain.values()))
    for perturbation in (hyperparameters.draw(B), hyperparameters.draw(B, 4), hyperparameters.draw(B, same=True)):
        with hyperparameters.use(perturbation):
            found = squared_norms(model)
            some = squared_norms(model, lambda name, p: name in only)
        assert found.shape == (perturbation.n_groups,)
        for g in range(perturbation.n_groups):
            delta = perturbation.delta[g : g + 1] if kind == "delta" else perturbation.inputs[g : g + 1]
            one = Perturbation("perturbed", delta, delta, delta, B)
            weights = dict(plain)
            for name, layer in model.named_modules():
                if name and hasattr(layer, "link") and layer.link.responses is not None:
                    for site in layer.sites(layer):
                        parts = layer.response(site.name).effective(*site.general(layer), one)
                        for key, part in zip((site.weight, site.bias), parts, strict=True):
                            if key is not None:
                                weights.pop(f"{name}.{key}", None)
                                weights[f"{name}.{key}.{site.name}"] = part
            total = sum(w.square().sum() for w in weights.values())
            torch.testing.assert_close(found[g], total, rtol=1e-10, atol=0)
            chosen = sum(
                w.square().sum() for n, w in weights.items() if any(n == o or n.startswith(o + ".") for o in only)
            )
            torch.testing.assert_close(some[g], chosen, rtol=1e-10, atol=0)
    with hyperparameters.centred(tracks=True):
        centre = squared_norms(model)
        assert centre.dim() == 0
        (gradient,) = torch.autograd.grad(centre, hyperparameters.raw)
    assert gradient.abs().min() > 0
    with pytest.raises(ValueError, match="chooses no parameter"):
        squared_norms(model, lambda name, p: False)


def test_squared_norms_are_those_of_the_perturbation_where_linearised() -> None:
    # Weights are linear in delta already; a norm that was linearised would have no minimum.
    hyperparameters = hyper(dtype=torch.float64)
    model = self_tune(net().double(), hyperparameters)
    stir(model)
    drawn = hyperparameters.draw(B)
    with hyperparameters.use(drawn):
        expected = squared_norms(model)
    responses = response_parameters(model)
    gradients = torch.autograd.grad(expected.sum(), responses)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.zeros_like(drawn.delta), drawn.delta)
        with hyperparameters.use(drawn.along(dual)):
            norms = squared_norms(model)
        assert forward_ad.unpack_dual(norms).tangent is None
    torch.testing.assert_close(norms, expected)
    for found, wanted in zip(torch.autograd.grad(norms.sum(), responses, retain_graph=True), gradients, strict=True):
        torch.testing.assert_close(found, wanted)
    assert all(g is None for g in torch.autograd.grad(norms.sum(), general_parameters(model), allow_unused=True))


# ---- dropout ----------------------------------------------------------------------------------------------


def test_dropout_layers_take_their_rate_from_hyperparameters() -> None:
    from sthyper.selftuning.regularisers import TunableDropout, TunableDropout2d

    hyperparameters = hyper("drop", "rate", start={"drop": 0.3, "rate": 0.6})
    model = self_tune(net(), hyperparameters)
    assert isinstance(model.drop, TunableDropout)
    assert type(model.features[3]) is nn.Dropout2d
    assert model.selftuning.dropouts == {"drop": "drop"}
    mapped = self_tune(net(), hyper("drop", "rate", start={"rate": 0.6}), dropout={"features": "rate", "*": "drop"})
    assert isinstance(mapped.features[3], TunableDropout2d)
    assert mapped.selftuning.dropouts == {"features.3": "rate", "drop": "drop"}
    exported = export(mapped)
    assert exported.features[3].p == pytest.approx(0.6)
    assert type(exported.drop) is nn.Dropout
    assert not any(isinstance(m, TunableDropout) for m in exported.modules())
    for options in ({"dropout": None}, {"exclude": "drop"}):
        assert type(self_tune(net(), hyper("drop"), **options).drop) is nn.Dropout
    twin = copy.deepcopy(mapped)
    twin.selftuning.hyperparameters.set_values({"drop": 0.85})
    x = torch.ones(200, 50)
    with twin.selftuning.hyperparameters.centred():
        assert float((twin.drop(x) == 0).float().mean()) == pytest.approx(0.85, abs=0.02)


def test_dropout_used_twice_is_exchanged_at_both_places() -> None:
    shared = nn.Dropout(0.5)
    model = self_tune(nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared), hyper(), dropout={"1": "a"})
    assert model[1] is model[3]
    assert type(model[1]) is not nn.Dropout


def test_dropout_without_a_tunable_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'1' is a AlphaDropout"):
        self_tune(nn.Sequential(nn.Linear(2, 2), nn.AlphaDropout(0.5)), hyper(), dropout={"1": "a"})


def test_dropout_knows_the_axis_of_the_examples() -> None:
    for axis in (0, 1):
        hyperparameters = hyper("a", start={"a": 0.5}, scale=3.0)
        model = self_tune(
            nn.Sequential(nn.Linear(50, 50), nn.Dropout()), hyperparameters, dropout={"1": "a"}, batch_dim=axis
        )
        with hyperparameters.perturbed(B):
            rates = hyperparameters["a"]
            x = torch.ones(B, 300, 50) if axis == 0 else torch.ones(300, B, 50)
            lost = (model[1](x) == 0).float().mean((1 - axis, 2))
        torch.testing.assert_close(lost, rates, atol=0.05, rtol=0)
