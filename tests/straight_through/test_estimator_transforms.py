"""The table: each estimator under each transform and in each dtype, against the function it claims to differentiate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from sthyper.straight_through.family import (
    st_argmax,
    st_ceil,
    st_floor,
    st_one_hot,
    st_round,
    st_sign,
    st_top_k,
)
from sthyper.straight_through.relaxed import (
    gumbel_softmax,
    hard_concrete,
    hard_concrete_estimate,
    hard_concrete_l0,
    hard_concrete_mean,
)
from sthyper.straight_through.sampler import bernoulli_sample
from sthyper.straight_through.unbiased import arm, bernoulli_log_prob, reinforce

Generator = torch.Generator | None

PROBABILITIES = torch.tensor([[2, 5, 9, 14], [1, 8, 13, 6], [15, 3, 11, 7]]) / 16
SCORES = torch.tensor([[-20, 9, 28, 5], [13, -6, 3, 30], [-11, 22, -3, 17]]) / 16
ROW = torch.tensor([1.0, -2.0, 0.5, 3.0])


def uniform(x: Tensor, generator: Generator) -> Tensor:
    return torch.rand(x.shape, dtype=wide(x), device=x.device, generator=generator)


def wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def soft_top_2(x: Tensor, generator: Generator) -> Tensor:
    largest = x.sort(-1, descending=True).values
    return torch.sigmoid((x - (largest[..., 1:2] + largest[..., 2:3]) / 2) / 0.5)


def soft_gumbel(x: Tensor, generator: Generator) -> Tensor:
    return torch.softmax((x - torch.log(-torch.log(uniform(x, generator)))) / 0.7, -1)


def soft_concrete(x: Tensor, generator: Generator) -> Tensor:
    u = uniform(x, generator)
    return (1.2 * torch.sigmoid((x + torch.log(u / (1 - u))) / 0.6) - 0.1).clamp(0, 1)


def concrete_tails(x: Tensor, generator: Generator) -> Tensor:
    t = ((torch.arange(4000, dtype=x.dtype, device=x.device) + 0.5) / 4000 + 0.1) / 1.2
    return torch.sigmoid(x[..., None] - 0.6 * torch.log(t / (1 - t))).mean(-1)


def hard_gumbel(x: Tensor, generator: Generator) -> Tensor:
    noisy = soft_gumbel(x, generator)
    return (noisy == noisy.amax(-1, keepdim=True)).to(noisy.dtype)


def bernoulli_values(x: Tensor, generator: Generator) -> Tensor:
    return torch.bernoulli(x, generator=generator)


@dataclass(frozen=True)
class Case:
    """An estimator, the function whose derivatives it has, and its values where they differ from that function's."""

    function: Callable[[Tensor, Generator], Tensor]
    soft: Callable[[Tensor, Generator], Tensor]
    hard: Callable[[Tensor, Generator], Tensor] | None = None
    x: Tensor = SCORES
    random: bool = False


CASES = {
    "probs": Case(
        lambda x, g: bernoulli_sample(x, "probs", g),
        lambda x, g: x * x / 2,
        bernoulli_values,
        PROBABILITIES,
        True,
    ),
    "identity": Case(
        lambda x, g: bernoulli_sample(x, "identity", g),
        lambda x, g: x * 1,
        bernoulli_values,
        PROBABILITIES,
        True,
    ),
    "probs, clamp": Case(
        lambda x, g: bernoulli_sample(2 * x, "probs", g, clamp=True),
        lambda x, g: (2 * x).clamp(0, 1) ** 2 / 2,
        lambda x, g: bernoulli_values((2 * x).clamp(0, 1), g),
        PROBABILITIES,
        True,
    ),
    "round": Case(lambda x, g: st_round(x), lambda x, g: x * 1, lambda x, g: x.round()),
    "floor": Case(lambda x, g: st_floor(x), lambda x, g: x * 1, lambda x, g: x.floor()),
    "ceil": Case(lambda x, g: st_ceil(x), lambda x, g: x * 1, lambda x, g: -(-x).floor()),
    "sign": Case(lambda x, g: st_sign(x), lambda x, g: x.clamp(-1, 1), lambda x, g: x.sign()),
    "one_hot": Case(
        lambda x, g: st_one_hot(x, temperature=0.7),
        lambda x, g: torch.softmax(x / 0.7, -1),
        lambda x, g: (x == x.amax(-1, keepdim=True)).to(x.dtype),
    ),
    "argmax": Case(
        lambda x, g: st_argmax(x, temperature=0.7),
        lambda x, g: (torch.softmax(x / 0.7, -1) * torch.arange(x.shape[-1], device=x.device)).sum(-1),
        lambda x, g: x.argmax(-1).to(x.dtype),
    ),
    "top_k": Case(
        lambda x, g: st_top_k(x, 2, temperature=0.5),
        soft_top_2,
        lambda x, g: (x >= x.sort(-1, descending=True).values[..., 1:2]).to(x.dtype),
    ),
    "gumbel": Case(lambda x, g: gumbel_softmax(x, 0.7, generator=g), soft_gumbel, hard_gumbel, random=True),
    "gumbel, soft": Case(lambda x, g: gumbel_softmax(x, 0.7, False, generator=g), soft_gumbel, random=True),
    "hard_concrete": Case(lambda x, g: hard_concrete(x, 0.6, generator=g), soft_concrete, random=True),
    "hard_concrete_l0": Case(
        lambda x, g: hard_concrete_l0(x, 0.6), lambda x, g: torch.sigmoid(x - 0.6 * torch.tensor(0.1 / 1.1).log())
    ),
    "hard_concrete_mean": Case(lambda x, g: hard_concrete_mean(x, 0.6), concrete_tails),
    "hard_concrete_estimate": Case(
        lambda x, g: hard_concrete_estimate(x), lambda x, g: (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)
    ),
    "bernoulli_log_prob": Case(
        lambda x, g: bernoulli_log_prob((ROW > 0).to(x.device, x.dtype).expand(x.shape), x, x.dim()),
        lambda x, g: torch.log(torch.where(ROW.to(x.device) > 0, torch.sigmoid(x), 1 - torch.sigmoid(x))),
    ),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-7, torch.float16: 1e-2, torch.bfloat16: 8e-2}
Function = Callable[[Tensor], Tensor]
Transform = Callable[[Function, Tensor], Tensor]


def weighted(f: Function) -> Function:
    """Make a number of all outputs, each with a weight of its own."""

    def scalar(x: Tensor) -> Tensor:
        y = f(x)
        return (y * (1 + torch.arange(y.numel(), dtype=y.dtype, device=y.device).view(y.shape))).sum()

    return scalar


def direction(x: Tensor) -> Tensor:
    return (1 + torch.arange(x.numel(), dtype=x.dtype, device=x.device).view(x.shape) % 3) / 4


def by_jvp(f: Function, x: Tensor) -> Tensor:
    return jvp(f, (x,), (direction(x),))[1]


def by_forward_ad(f: Function, x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        y = f(torch.autograd.forward_ad.make_dual(x, direction(x)))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    return torch.zeros_like(y) if tangent is None else tangent


def by_backward(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    weighted(f)(x).backward()
    assert x.grad is not None
    return x.grad


def on_non_contiguous(f: Function, x: Tensor) -> Tensor:
    return by_backward(f, x.t().contiguous().t())


def under_autocast(f: Function, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return by_backward(f, x)


def compiled(f: Function, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    return by_backward(torch.compile(f, backend="aot_eager"), x)


DERIVATIVES: dict[str, Transform] = {
    "backward": by_backward,
    "backward, non-contiguous": on_non_contiguous,
    "forward mode": by_forward_ad,
    "autocast": under_autocast,
    "compile aot_eager": compiled,
    "grad": lambda f, x: grad(weighted(f))(x),
    "nested grad": lambda f, x: grad(lambda y: (grad(weighted(f))(y) * direction(y)).sum())(x),
    "jvp": by_jvp,
    "jvp of jvp": lambda f, x: by_jvp(lambda y: by_jvp(f, y), x),
    "jvp of grad": lambda f, x: by_jvp(grad(weighted(f)), x),
    "grad of jvp": lambda f, x: grad(weighted(lambda y: by_jvp(f, y)))(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f, randomness="same")(x),
    "jacfwd of jacrev": lambda f, x: jacfwd(jacrev(f), randomness="same")(x[0]),
    "vmap different of grad": lambda f, x: vmap(grad(weighted(f)), randomness="different")(x),
    "vmap same of grad": lambda f, x: vmap(grad(weighted(f)), randomness="same")(x),
    "grad of vmap different": lambda f, x: grad(weighted(vmap(f, randomness="different")))(x),
    "grad of vmap same": lambda f, x: grad(weighted(vmap(f, randomness="same")))(x),
    "vmap of jvp": lambda f, x: vmap(lambda y: by_jvp(f, y), randomness="different")(x),
    "jvp of vmap": lambda f, x: by_jvp(vmap(f, randomness="different"), x),
    "jvp of vmap same": lambda f, x: by_jvp(vmap(f, randomness="same"), x),
    "vmap in dim 1": lambda f, x: vmap(grad(weighted(f)), in_dims=1, randomness="different")(x.t()),
    "nested vmap of grad": lambda f, x: vmap(
        vmap(grad(weighted(f)), randomness="different"), randomness="different", in_dims=1
    )(x.unsqueeze(1).expand(3, 2, 4)),
    "vmap over something else": lambda f, x: vmap(
        lambda c: grad(lambda y: c * weighted(f)(y))(x), randomness="different"
    )(torch.ones(2, dtype=x.dtype, device=x.device)),
    "vmap same in vmap different": lambda f, x: vmap(
        vmap(grad(weighted(f)), randomness="same"), randomness="different"
    )(x.expand(2, *x.shape)),
}


def seeded(f: Callable[[Tensor, Generator], Tensor], generator: bool) -> Function:
    """Draw the same numbers at each call, from a generator or from torch's own."""

    def call(x: Tensor) -> Tensor:
        if not generator:
            return f(x, None)
        return f(x, torch.Generator(x.device).manual_seed(5))

    return call


def run(transform: Transform, f: Function, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return transform(f, x)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    atol = TOLERANCE[dtype] * (float(expected.abs().max()) + 1)
    torch.testing.assert_close(got, expected.to(dtype), atol=atol, rtol=TOLERANCE[dtype], msg=lambda m: f"{dtype}: {m}")


@pytest.mark.parametrize("transform", DERIVATIVES)
@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str, transform: str) -> None:
    case = CASES[name]
    # Dynamo has no generators in graphs; that they work all the same is tested with the sampler.
    generator = case.random and not transform.startswith("compile")
    plain = "backward" if transform in ("autocast", "compile aot_eager") else transform
    for dtype in DTYPES:
        x = case.x.to(dtype)
        got = run(DERIVATIVES[transform], seeded(case.function, generator), x)
        expected = run(DERIVATIVES[plain], seeded(case.soft, generator), x.to(wide(x)))
        assert_close(got, expected, dtype)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.random])
@pytest.mark.parametrize("transform", ["backward", "jvp", "vmap different of grad", "vmap same of grad"])
def test_derivatives_with_the_random_numbers_of_torch(name: str, transform: str) -> None:
    case = CASES[name]
    got = run(DERIVATIVES[transform], seeded(case.function, False), case.x)
    expected = run(DERIVATIVES[transform], seeded(case.soft, False), case.x)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """All devices that there are."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


@pytest.mark.parametrize("name", CASES)
def test_the_table_on_each_device(name: str, device: torch.device) -> None:
    case = CASES[name]
    for key, transform in DERIVATIVES.items():
        if key.startswith("compile"):
            continue
        plain = DERIVATIVES["backward" if key == "autocast" else key]
        for dtype in (torch.float32, torch.bfloat16):
            x = case.x.to(device, dtype)
            got = run(transform, seeded(case.function, case.random), x)
            assert got.device.type == device.type
            expected = run(plain, seeded(case.soft, case.random), x.to(wide(x)))
            assert_close(got, expected, dtype)
    x = case.x.to(device)
    value = run(VALUES["plain"], seeded(case.function, case.random), x)
    expected = run(VALUES["plain"], seeded(case.hard or case.soft, case.random), x)
    torch.testing.assert_close(value, expected, atol=2e-5, rtol=2e-5)


VALUES: dict[str, Transform] = {
    "plain": lambda f, x: f(x),
    "autocast": lambda f, x: torch.autocast("cpu", torch.bfloat16)(f)(x),
    "compile aot_eager": lambda f, x: torch.compile(f, backend="aot_eager")(x),
    "jvp": lambda f, x: jvp(f, (x,), (direction(x),))[0],
    "double backward": lambda f, x: f(x.clone().requires_grad_()).detach(),
}


@pytest.mark.parametrize("transform", VALUES)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, transform: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    generator = case.random and not transform.startswith("compile")
    for dtype in DTYPES:
        x = case.x.to(dtype)
        got = run(VALUES[transform], seeded(case.function, generator), x)
        if case.hard is None:
            assert_close(got, run(VALUES["plain"], seeded(case.soft, generator), x.to(wide(x))), dtype)
        else:
            # To the last bit: a gate that is nearly 0 is not closed.
            assert got.dtype == dtype
            assert torch.equal(got, run(VALUES["plain"], seeded(case.hard, generator), x).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.random])
def test_vmap_draws_as_randomness_says(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    same_rows = case.x[:1].to(dtype).expand(200, 4)
    for generator in (False, True):
        f = seeded(case.function, generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            different = vmap(f, randomness="different")(same_rows)
            same = vmap(f, randomness="same")(same_rows)
            nested = vmap(vmap(f, randomness="same"), randomness="different")(same_rows.view(50, 4, 4))
        assert len(different.unique(dim=0)) > 1
        assert len(same.unique(dim=0)) == 1
        assert all(len(rows.unique(dim=0)) == 1 for rows in nested)
        assert len(nested[:, 0].unique(dim=0)) > 1
        with pytest.raises(RuntimeError, match="random"):
            vmap(f)(same_rows)


@pytest.mark.parametrize("name", CASES)
def test_double_backward_of_a_square(name: str) -> None:
    """The second derivative of a loss of hard values y: of ``w y^2`` it is ``2 w (y' y' + y y'')``."""
    case, x = CASES[name], CASES[name].x[0].double()
    f, soft = seeded(case.function, case.random), seeded(case.soft, case.random)
    y = f(x).detach()
    jacobian, hessian = jacrev(soft)(x), jacrev(jacrev(soft))(x)
    weights = 1 + torch.arange(y.numel(), dtype=x.dtype).view(y.shape)
    if y.dim():
        expected = 2 * (
            torch.einsum("k,ki,kj->ij", weights, jacobian, jacobian) + torch.einsum("k,kij->ij", weights * y, hessian)
        )
    else:
        expected = 2 * (jacobian[:, None] * jacobian + y * hessian)
    at = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((weights * f(at) ** 2).sum(), at, create_graph=True)
    (second,) = torch.autograd.grad((first * direction(x)).sum(), at)
    torch.testing.assert_close(second, expected @ direction(x), atol=1e-6, rtol=1e-6)


INDUCTOR = {
    "random": [case for case in CASES.values() if case.random],
    "fixed": [case for case in CASES.values() if not case.random],
}


def all_of(cases: list[Case]) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    return lambda x, p: tuple(case.function(p if case.x is PROBABILITIES else x, None) for case in cases)


def needs_a_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("inductor needs a C++ compiler, and there is none")


@pytest.fixture
def inductor_leaves_nothing(nothing_is_left: None) -> Iterator[None]:
    """Take back the variable that inductor sets for its own C++ code, before it is looked for."""
    name = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
    before = os.environ.get(name)
    yield
    if before is None:
        os.environ.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("cases", INDUCTOR.values(), ids=INDUCTOR)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inductor(dtype: torch.dtype, cases: list[Case], inductor_leaves_nothing: None) -> None:
    needs_a_compiler()
    torch._dynamo.reset()

    def gradients(f: Callable[..., Any]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        x, p = (given.to(dtype, copy=True).requires_grad_() for given in (SCORES, PROBABILITIES))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            outputs = f(x, p)
        loss = sum(weighted(lambda y: y)(y) for y in outputs)
        return list(outputs), torch.autograd.grad(loss, (x, p), materialize_grads=True)

    # The draws of eager mode, with which the results are compared.
    with torch._inductor.config.patch(fallback_random=True):
        outputs, got = gradients(torch.compile(all_of(cases), backend="inductor", fullgraph=True))
    eager, expected = gradients(all_of(cases))
    for case, y, z in zip(cases, outputs, eager, strict=True):
        assert y.dtype == dtype
        if case.hard is None:
            torch.testing.assert_close(y, z, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        else:
            assert torch.equal(y, z)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=20 * TOLERANCE[dtype], rtol=10 * TOLERANCE[dtype])


# ---- surrogates: functions of a loss -------------------------------------------------------------------


def loss_of(sample: Tensor) -> Tensor:
    return (sample * ROW.to(sample.dtype)).sum(-1) ** 2


def by_arm(logits: Tensor, generator: Generator) -> Tensor:
    return arm(loss_of, logits, 3, generator)


def arm_gradient(logits: Tensor, generator: Generator) -> Tensor:
    u = torch.rand((3, *logits.shape), dtype=wide(logits), generator=generator)
    p = torch.sigmoid(logits)
    gap = loss_of((u > 1 - p).to(u.dtype)) - loss_of((u < p).to(u.dtype))
    return (gap[:, None] * (u - 0.5)).mean(0)


def by_reinforce(baseline: Any) -> Callable[[Tensor, Generator], Tensor]:
    def surrogate(logits: Tensor, generator: Generator) -> Tensor:
        sample = (uniform(logits.detach().expand(3, 4), generator) < logits.detach().sigmoid()).to(logits.dtype)
        return reinforce(loss_of(sample), bernoulli_log_prob(sample, logits), baseline)

    return surrogate


def reinforce_gradient(baseline: Any) -> Callable[[Tensor, Generator], Tensor]:
    def gradient(logits: Tensor, generator: Generator) -> Tensor:
        p = torch.sigmoid(logits)
        sample = (uniform(logits.expand(3, 4), generator) < p).to(logits.dtype)
        losses = loss_of(sample)
        others = torch.stack([losses[[j for j in range(3) if j != i]].mean() for i in range(3)])
        baselines = {"none": 0 * losses, "leave_one_out": others}.get(baseline, 0 * losses + 0.5)
        return ((losses - baselines)[:, None] * (sample - p)).mean(0)

    return gradient


SURROGATES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "arm": (by_arm, arm_gradient),
    "reinforce": (by_reinforce("none"), reinforce_gradient("none")),
    "reinforce, leave one out": (by_reinforce("leave_one_out"), reinforce_gradient("leave_one_out")),
    "reinforce, number": (by_reinforce(0.5), reinforce_gradient(0.5)),
}
GRADIENTS: dict[str, Transform] = {
    "backward": by_backward,
    "grad": lambda f, x: grad(f)(x),
    "jvp": lambda f, x: torch.stack([jvp(f, (x,), (e,))[1] for e in torch.eye(4, dtype=x.dtype)]),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f, randomness="same")(x),
    "vmap of grad": lambda f, x: vmap(grad(f), randomness="same")(x.expand(2, 4))[1],
    "grad of vmap": lambda f, x: grad(lambda y: vmap(f, randomness="same")(y).sum())(x.expand(2, 4))[0],
    "autocast": under_autocast,
    "compile aot_eager": compiled,
}


@pytest.mark.parametrize("transform", GRADIENTS)
@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name: str, transform: str) -> None:
    surrogate, gradient = SURROGATES[name]
    generator = not transform.startswith("compile")
    for dtype in DTYPES:
        x = SCORES[1].to(dtype)
        got = run(GRADIENTS[transform], seeded(surrogate, generator), x)
        assert_close(got, run(lambda f, x: f(x), seeded(gradient, generator), x.to(wide(x))), dtype)


def test_surrogates_draw_as_randomness_says() -> None:
    x = SCORES[1].expand(50, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        different = vmap(grad(lambda y: by_arm(y, None)), randomness="different")(x)
        same = vmap(grad(lambda y: by_arm(y, None)), randomness="same")(x)
    assert len(different.unique(dim=0)) > 1
    assert len(same.unique(dim=0)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_surrogates_by_inductor(dtype: torch.dtype, inductor_leaves_nothing: None) -> None:
    needs_a_compiler()
    torch._dynamo.reset()
    x = SCORES[1].to(dtype)

    def all_surrogates(logits: Tensor) -> Tensor:
        return torch.stack([surrogate(logits, None) for surrogate, _ in SURROGATES.values()])

    with torch._inductor.config.patch(fallback_random=True):
        got = run(by_backward, torch.compile(all_surrogates, backend="inductor", fullgraph=True), x)
    assert_close(got, run(by_backward, all_surrogates, x), dtype)
