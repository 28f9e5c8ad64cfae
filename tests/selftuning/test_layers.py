"""Best-response layers against an exact reference: the plain layer with the effective weights of each example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sthyper.config_space import uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.layers import LAYERS, BestResponse, Response
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.transform import self_tune

# torch says once that it computes this one without a library.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

B, H, GROUPS = 5, 3, 3  # groups of 2, 2 and 1 examples
SCALE = 0.3


@dataclass
class Case:
    """A layer, its inputs, and where the examples are in inputs and outputs."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    axis: int = 0
    call: Callable[[Any, Tensor], Any] = lambda layer, x: layer(x)
    axes: tuple[int, ...] | None = None  # of outputs, if not `axis`
    integers: int = 0

    def inputs(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        if self.integers:
            return torch.randint(self.integers, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)


def _attend(layer: Any, x: Tensor) -> Any:
    return layer(x, x, x)


def _states(layer: Any, x: Tensor) -> Any:
    start = torch.linspace(-1, 1, 2 * 5 * 3, dtype=x.dtype).reshape(2, 5, 3)
    return layer(x, (start, start.flip(0)) if isinstance(layer, nn.LSTM) else start)


def _cell(layer: Any, x: Tensor) -> Any:
    state = torch.linspace(-1, 1, 15, dtype=x.dtype).reshape(5, 3)
    return layer(x, (state, -state) if isinstance(layer, nn.LSTMCell) else state)


def _cross(layer: Any, x: Tensor) -> Any:
    keys = x[:, :3, :5].flip(1)
    mask = torch.zeros(x.shape[0], 3, dtype=torch.bool)
    mask[1, 2] = True
    attn = torch.zeros(x.shape[1], 3, dtype=x.dtype)
    attn[0, 1] = -1.5
    return layer(
        x, keys, keys[..., :3], key_padding_mask=mask.to(x.dtype) * -4, attn_mask=attn, average_attn_weights=False
    )


CASES: dict[str, Case] = {
    "Linear": Case(lambda: nn.Linear(4, 3), (B, 4)),
    "Linear sequence": Case(lambda: nn.Linear(4, 3, bias=False), (B, 2, 4)),
    "Linear flattened": Case(lambda: nn.Linear(4, 3), (2 * B, 4)),
    "Conv1d": Case(lambda: nn.Conv1d(4, 6, 3, padding="same", groups=2, padding_mode="reflect"), (B, 4, 5)),
    "Conv2d": Case(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2), (B, 4, 6, 5)),
    "Conv2d plain": Case(lambda: nn.Conv2d(3, 4, 3, bias=False), (B, 3, 5, 4)),
    "Conv2d depthwise": Case(lambda: nn.Conv2d(3, 6, 3, groups=3, padding_mode="circular", padding=1), (B, 3, 5, 4)),
    "Conv3d": Case(lambda: nn.Conv3d(2, 4, 2, groups=2, stride=2), (B, 2, 4, 4, 4)),
    "ConvTranspose1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2), (B, 4, 3)),
    "ConvTranspose2d": Case(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (B, 4, 3, 2)),
    "ConvTranspose2d size": Case(
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (B, 2, 3, 2), call=lambda layer, x: layer(x, [8, 5])
    ),
    "ConvTranspose3d": Case(lambda: nn.ConvTranspose3d(2, 4, 2, dilation=2, groups=2), (B, 2, 2, 2, 2)),
    "Embedding": Case(lambda: nn.Embedding(7, 4, padding_idx=2), (B, 3), integers=7),
    "Embedding one": Case(lambda: nn.Embedding(7, 4), (B,), integers=7),
    "BatchNorm1d": Case(lambda: nn.BatchNorm1d(3), (B, 3)),
    "BatchNorm1d sequence": Case(lambda: nn.BatchNorm1d(3, momentum=None), (B, 3, 4)),
    "BatchNorm2d": Case(lambda: nn.BatchNorm2d(3), (B, 3, 2, 4)),
    "BatchNorm2d evaluated": Case(lambda: nn.BatchNorm2d(3).eval(), (B, 3, 2, 4)),
    "BatchNorm3d": Case(lambda: nn.BatchNorm3d(3), (B, 3, 2, 2, 2)),
    "InstanceNorm1d": Case(lambda: nn.InstanceNorm1d(3, affine=True), (B, 3, 4)),
    "InstanceNorm2d": Case(lambda: nn.InstanceNorm2d(3, affine=True), (B, 3, 4, 2)),
    "InstanceNorm3d": Case(lambda: nn.InstanceNorm3d(3, affine=True), (B, 3, 2, 2, 2)),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), (B, 4, 3)),
    "LayerNorm": Case(lambda: nn.LayerNorm((2, 3)), (B, 4, 2, 3)),
    "LayerNorm without bias": Case(lambda: nn.LayerNorm(3, bias=False), (B, 3)),
    "RMSNorm": Case(lambda: nn.RMSNorm(3), (B, 4, 3)),
    "LSTM": Case(lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), (4, B, 4), 1),
    "LSTM states": Case(lambda: nn.LSTM(4, 3, 2, batch_first=True), (B, 4, 4), 0, _states, (0, 1, 1)),
    "LSTM projections": Case(lambda: nn.LSTM(4, 5, 2, bias=False, proj_size=2), (3, B, 4), 1),
    "GRU": Case(lambda: nn.GRU(4, 3, bidirectional=True), (4, B, 4), 1),
    "GRU states": Case(lambda: nn.GRU(4, 3, 2), (4, B, 4), 1, _states),
    "RNN": Case(lambda: nn.RNN(4, 3, nonlinearity="relu"), (4, B, 4), 1),
    "RNN tanh": Case(lambda: nn.RNN(4, 3, 2), (4, B, 4), 1),
    "LSTMCell": Case(lambda: nn.LSTMCell(4, 3), (B, 4)),
    "LSTMCell state": Case(lambda: nn.LSTMCell(4, 3), (B, 4), call=_cell),
    "GRUCell": Case(lambda: nn.GRUCell(4, 3, bias=False), (B, 4)),
    "GRUCell state": Case(lambda: nn.GRUCell(4, 3), (B, 4), call=_cell),
    "RNNCell": Case(lambda: nn.RNNCell(4, 3), (B, 4)),
    "RNNCell state": Case(lambda: nn.RNNCell(4, 3, nonlinearity="relu"), (B, 4), call=_cell),
    "MultiheadAttention": Case(lambda: nn.MultiheadAttention(6, 2), (4, B, 6), 1, _attend, (1, 0)),
    "MultiheadAttention cross": Case(
        lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=3, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        (B, 4, 6),
        call=_cross,
    ),
    "MultiheadAttention fused": Case(
        lambda: nn.MultiheadAttention(6, 2, bias=False, batch_first=True),
        (B, 4, 6),
        call=lambda layer, x: layer(x, x, x, need_weights=False)[0],
    ),
}


class Model(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def build(
    case: Case, kind: Any, response: Any, dtype: torch.dtype, stir: bool = True
) -> tuple[nn.Module, Any, Hyperparameters]:
    """Return the plain layer, the responding one and the hyperparameters, with responses that matter."""
    torch.manual_seed(3)
    plain = case.make().to(dtype)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hyperparameters = Hyperparameters({f"h{i}": uniform(0, 1) for i in range(H)}, seed=1, dtype=dtype)
    model = self_tune(Model(copy.deepcopy(plain)), hyperparameters, kind, response, rank=2)
    if stir:
        with torch.no_grad():
            for response_ in model.modules():
                if isinstance(response_, Response):
                    response_.bottleneck.copy_(SCALE * torch.randn_like(response_.bottleneck))
                    if response_.scalar is not None:
                        response_.scalar.fill_(1.1)
    return plain, model.layer, hyperparameters


def response_weight(response: Response, units: str, groups: int) -> Tensor:
    """Return the response of a weight, element by element where it has factors."""
    if response.weight is not None:
        return response.weight.detach()
    up, down = response.up.detach(), response.down.detach()
    rank = up.shape[1]
    result = torch.zeros(response.shape, dtype=up.dtype)
    for unit in range(up.shape[0]):
        if units == "rows":
            group = unit // (up.shape[0] // groups)
            result[unit] = sum(up[unit, r] * down[group * rank + r] for r in range(rank))
            continue
        per_group, inner = up.shape[0] // groups, response.shape[0] // groups
        group, column = divmod(unit, per_group)
        for i in range(group * inner, (group + 1) * inner):
            result[i, column] = sum(up[unit, r] * down[i, r] for r in range(rank))
    return result


def effective(layer: Any, plain: nn.Module, perturbation: Perturbation, kind: str) -> dict[str, Tensor]:
    """Return the parameters of the plain layer, for each group of examples (``G x ...``)."""
    n = perturbation.n_groups
    result = {name: p.detach().expand(n, *p.shape).clone() for name, p in plain.named_parameters()}
    for site in type(layer).sites(layer):
        response = layer.response(site.name)
        z = perturbation.delta if kind == "delta" else perturbation.inputs
        scales = (z @ response.bottleneck.T).detach()
        groups = getattr(plain, "groups", 1)
        answer = response_weight(response, site.layout.units, groups)
        c = 1.0 if response.scalar is None else float(response.scalar.detach())
        d = response.n_units
        for g in range(n):
            weight = result[site.weight][g]
            own = site.part is not None and weight.shape != answer.shape
            weight = weight[site.part[0] : sum(site.part)] if own else weight
            weight.mul_(c)
            for unit in range(d):
                s = scales[g, unit]
                if site.layout.units == "rows":
                    weight[unit] += s * answer[unit]
                elif site.layout.units == "elements":
                    weight.view(-1)[unit] += s * answer.view(-1)[unit]
                else:
                    per_group, inner = d // groups, weight.shape[0] // groups
                    group, column = divmod(unit, per_group)
                    rows = slice(group * inner, (group + 1) * inner)
                    weight[rows, column] += s * answer[rows, column]
            if site.bias is not None:
                bias = result[site.bias][g].view(-1)
                bias = bias if site.part is None else bias[site.part[0] : sum(site.part)]
                bias.mul_(c).add_(scales[g, d:] * response.bias.detach().view(-1))
    return result


def reference(case: Case, plain: nn.Module, weights: dict[str, Tensor], x: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return each example as the plain layer with its weights computes it, within the whole batch."""
    plain = copy.deepcopy(plain)
    if isinstance(plain, nn.modules.batchnorm._NormBase) and plain.training:
        plain.running_mean = plain.running_var = plain.num_batches_tracked = None
        plain.track_running_stats = False

    def outputs(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
        wrapped = _Calls(plain, case.call)
        return flat(functional_call(wrapped, {f"layer.{name}": p for name, p in parameters.items()}, (x,)))

    groups = [g for g, n in enumerate(sizes) for _ in range(n)]
    examples = {name: p[groups] for name, p in weights.items()}
    if isinstance(plain, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):  # kernels without a rule for vmap
        each = [outputs({name: p[b] for name, p in examples.items()}) for b in range(B)]
        stacked = tuple(torch.stack(tensors) for tensors in zip(*each, strict=True))
    else:
        stacked = vmap(outputs)(examples)
    result = []
    for output, axis in zip(stacked, axes(case, len(stacked)), strict=True):
        k = output.shape[axis + 1] // B
        parts = [output[b].narrow(axis, b * k, k) for b in range(B)]
        result.append(torch.cat(parts, axis))
    return result


class _Calls(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.layer, x)


def flat(output: Any) -> tuple[Tensor, ...]:
    if isinstance(output, Tensor):
        return (output,)
    return tuple(t for part in output for t in flat(part))


def axes(case: Case, n: int) -> tuple[int, ...]:
    return case.axes if case.axes is not None else (case.axis,) * n


def test_every_layer_has_a_case() -> None:
    assert {type(case.make()) for case in CASES.values()} == set(LAYERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["full", "lowrank", "groups"])
@pytest.mark.parametrize("kind", ["stn", "delta"])
@pytest.mark.parametrize("name", CASES)
def test_layers_agree_with_the_weights_of_each_example(name: str, kind: str, form: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    plain, layer, hyperparameters = build(case, kind, "lowrank" if form == "lowrank" else "full", dtype)
    assert isinstance(layer, type(plain))
    x = case.inputs(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    groups = GROUPS if form == "groups" else None
    for perturbation in (hyperparameters.draw(B, groups), hyperparameters.draw(B, same=True)):
        with hyperparameters.use(perturbation):
            found = flat(case.call(layer, x))
        expected = reference(case, plain, effective(layer, plain, perturbation, kind), x, perturbation.sizes())
        base = flat(case.call(plain, x))
        assert len(found) == len(expected) == len(base)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a, e, **tolerance)
        assert (found[0] - base[0]).abs().max() > 1e-3  # the response does something


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("name", CASES)
def test_without_perturbation_layers_are_the_plain_ones_to_the_last_bit(name: str, response: str) -> None:
    case = CASES[name]
    x = case.inputs(torch.float32)
    for kind in ("delta", "stn"):
        plain, layer, hyperparameters = build(case, kind, response, torch.float32)
        expected = flat(case.call(plain, x))
        with hyperparameters.off():
            found = flat(case.call(layer, x))
        assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))
    plain, layer, hyperparameters = build(case, "delta", response, torch.float32)
    expected = flat(case.call(plain, x))
    assert all(torch.equal(a, e) for a, e in zip(flat(case.call(layer, x)), expected, strict=True))


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("name", CASES)
def test_a_perturbation_of_zero_agrees_with_the_plain_layer(name: str, response: str) -> None:
    case = CASES[name]
    plain, layer, hyperparameters = build(case, "delta", response, torch.float32)
    x = case.inputs(torch.float32)
    expected = flat(case.call(plain, x))
    drawn = hyperparameters.draw(B)
    zeros = torch.zeros(B, H)
    zero = Perturbation("perturbed", drawn.raw, drawn.inputs, zeros, B)
    few = Perturbation("perturbed", drawn.raw[:GROUPS], drawn.inputs[:GROUPS], zeros[:GROUPS], B)
    for perturbation in (zero, few, hyperparameters.centre(tracks=True)):
        with hyperparameters.use(perturbation):
            found = flat(case.call(layer, x))
        for a, e in zip(found, expected, strict=True):
            scale = float(e.detach().abs().max())
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("response", ["full", "lowrank"])
@pytest.mark.parametrize("name", CASES)
def test_the_linearised_pass_is_the_derivative(name: str, response: str) -> None:
    case = CASES[name]
    plain, layer, hyperparameters = build(case, "delta", response, torch.float64)
    x = case.inputs(torch.float64)
    drawn = hyperparameters.draw(B)
    responses = [p for p in layer.link.owner.responses.parameters()]

    def linearised(delta: Tensor) -> tuple[Tensor, ...]:
        with hyperparameters.use(drawn.along(delta)):
            return flat(case.call(layer, x))

    def generic(delta: Tensor) -> tuple[Tensor, ...]:
        # The same pass by the ordinary rules of differentiation.
        perturbation = Perturbation("perturbed", drawn.raw, drawn.inputs, delta, B, tracks=True)
        with hyperparameters.use(perturbation), sdpa_kernel(SDPBackend.MATH):
            return flat(case.call(layer, x))

    zero = torch.zeros_like(drawn.delta)
    primal, tangent = jvp(linearised, (zero,), (drawn.delta,))
    _, generic_tangent = jvp(generic, (zero,), (drawn.delta,))
    step = 1e-6
    ahead, behind = generic(step * drawn.delta), generic(-step * drawn.delta)
    expected = flat(case.call(plain.eval() if not layer.training else plain, x))
    for i in range(len(primal)):
        torch.testing.assert_close(primal[i], expected[i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(tangent[i], generic_tangent[i], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(tangent[i], (ahead[i] - behind[i]) / (2 * step), rtol=1e-5, atol=1e-8)
    # Gradients to the responses agree; the general weights are constants.
    loss = sum((t.square().sum() for t in tangent), torch.zeros(()))
    generic_loss = sum((t.square().sum() for t in generic_tangent), torch.zeros(()))
    a = torch.autograd.grad(loss, responses, retain_graph=True, allow_unused=True)
    e = torch.autograd.grad(generic_loss, responses, allow_unused=True)
    for left, right in zip(a, e, strict=True):
        if left is None or right is None:
            assert left is None
            assert right is None or float(right.abs().max()) == 0
        else:
            torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)
    sites = {name.rpartition(".")[2] for site in type(layer).sites(layer) for name in (site.weight, site.bias) if name}
    weights = [p for name, p in layer.named_parameters() if name.rpartition(".")[2] in sites]
    assert all(g is None for g in torch.autograd.grad(loss, weights, allow_unused=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_hyperparameters_weights_and_responses(name: str) -> None:
    """The hyper step has gradients at the centre already, where the response itself vanishes."""
    case = CASES[name]
    _, layer, hyperparameters = build(case, "delta", "full", torch.float64)
    x = case.inputs(torch.float64)

    def loss() -> Tensor:
        outputs = flat(case.call(layer, x))
        weights = torch.linspace(-1, 2, outputs[0].numel(), dtype=torch.float64)
        return (outputs[0].flatten() * weights).square().sum()

    with hyperparameters.centred(tracks=True):
        (gradient,) = torch.autograd.grad(loss(), hyperparameters.raw)
    step = 1e-5
    for i in range(H):
        values = []
        for sign in (1, -1):
            raw = hyperparameters.raw.detach().unsqueeze(0)
            delta = torch.zeros(1, H, dtype=torch.float64)
            delta[0, i] = sign * step
            with hyperparameters.use(Perturbation("perturbed", raw, raw, delta, B, tracks=True)):
                values.append(float(loss().detach()))
        torch.testing.assert_close(float(gradient[i]), (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-7)
    with hyperparameters.perturbed(B):
        loss().backward()
    assert all(p.grad is not None for p in layer.link.owner.responses.parameters())


def test_best_response_is_no_module_of_its_own() -> None:
    assert not issubclass(BestResponse, nn.Module)
