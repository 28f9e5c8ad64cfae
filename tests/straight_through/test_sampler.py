"""The Bernoulli sampler: published values, edge cases, errors. Its transforms are in test_estimator_transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from sthyper.straight_through.sampler import (
    BernoulliEstimator,
    BernoulliIdentity,
    BernoulliSample,
    bernoulli_sample,
    check_probabilities,
    is_batched,
)

ESTIMATORS: list[BernoulliEstimator] = ["probs", "identity"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FUNCTIONS: dict[str, type[BernoulliSample]] = {"probs": BernoulliSample, "identity": BernoulliIdentity}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sample", [bernoulli_sample, BernoulliSample.apply])
def test_published_gradient(sample: Any) -> None:
    """FL4Health: the gradient of ``sum((pred - 1)^2)`` is ``2 (pred - target) theta``."""
    with torch.random.fork_rng():
        torch.manual_seed(42)
        theta = torch.rand(100, requires_grad=True)
        pred = sample(theta)
        target = torch.ones(100)
        ((pred - target) ** 2).sum().backward()
    assert theta.grad is not None
    assert set(pred.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(theta.grad, 2 * (pred.detach() - target) * theta.detach())


def test_classic_gradient() -> None:
    theta = torch.rand(100, generator=generator()).requires_grad_()
    pred = bernoulli_sample(theta, "identity", generator(1))
    ((pred - 1) ** 2).sum().backward()
    assert theta.grad is not None
    assert torch.equal(theta.grad, 2 * (pred.detach() - 1))


def test_published_function_has_one_input_and_our_default() -> None:
    p = torch.full((50,), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = BernoulliSample.apply(p)
        torch.manual_seed(1)
        assert torch.equal(plain, torch.bernoulli(p))
        torch.manual_seed(1)
        assert torch.equal(plain, bernoulli_sample(p))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frequencies(estimator: BernoulliEstimator, dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0], dtype=dtype)
    samples = bernoulli_sample(p.expand(20_000, 5), estimator, generator())
    assert samples.dtype == dtype
    assert ((samples == 0) | (samples == 1)).all()
    means = samples.double().mean(0)
    assert means[0] == 0
    assert means[4] == 1
    # Five standard errors.
    assert ((means - p.double()).abs() <= 5 * (p.double() * (1 - p.double()) / 20_000).sqrt()).all()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_frequencies_in_vmap(randomness: str) -> None:
    p = torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0])

    def draw(row: Tensor) -> Tensor:
        return bernoulli_sample(row.expand(20_000), generator=generator())

    means = vmap(draw, randomness=randomness)(p).mean(1)
    assert means[0] == 0
    assert means[4] == 1
    assert ((means - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt() + 1e-7).all()


def test_small_probabilities_of_half_precision_are_kept_with_the_same_draw() -> None:
    """Uniform numbers of half precision are 0 so often that these would come up far too frequently."""
    p = torch.full((2, 100_000), 1e-4, dtype=torch.bfloat16)
    samples = vmap(lambda row: bernoulli_sample(row, generator=generator()), randomness="same")(p)
    assert 2 <= samples[0].float().sum() <= 25


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_at_the_ends(dtype: torch.dtype) -> None:
    """Dead units stay dead with the probabilities as derivative; with the identity they do not."""
    for estimator, expected in (("probs", [0.0, 1.0]), ("identity", [1.0, 1.0])):
        p = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
        y = bernoulli_sample(p, estimator)  # type: ignore[arg-type]
        y.sum().backward()
        assert p.grad is not None
        assert y.tolist() == [0.0, 1.0]
        assert p.grad.tolist() == expected


def test_second_derivative_of_a_square_is_as_documented() -> None:
    p = torch.full((64,), 0.375, dtype=torch.float64, requires_grad=True)
    for function in (lambda x: bernoulli_sample(x, generator=generator(2)), BernoulliSample.apply):
        y = function(p)
        (first,) = torch.autograd.grad((y**2).sum(), p, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), p)
        torch.testing.assert_close(first, 2 * y * p)
        torch.testing.assert_close(second, 2 * y + 2 * p**2)
        assert 0 < y.sum() < 64


def test_identity_of_a_square() -> None:
    p = torch.full((64,), 0.375, dtype=torch.float64, requires_grad=True)
    y = bernoulli_sample(p, "identity", generator())
    (first,) = torch.autograd.grad((y**2).sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p)
    assert torch.equal(first, 2 * y)
    assert torch.equal(second, torch.full_like(p, 2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_plain_function_under_transforms(estimator: str) -> None:
    """``BernoulliSample.apply`` itself, of one input, as spec B.2 lists it."""
    apply = FUNCTIONS[estimator].apply
    p = torch.tensor([[0.25, 0.5, 0.75], [0.5, 1.0, 0.0]], dtype=torch.float64)
    slope = p if estimator == "probs" else torch.ones_like(p)
    tangent = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64).expand(2, 3)
    assert torch.equal(jvp(apply, (p,), (tangent,))[1], slope * tangent)
    got = vmap(lambda q, t: jvp(apply, (q,), (t,))[1], randomness="different")(p, tangent)
    assert torch.equal(got, slope * tangent)
    got = jvp(vmap(apply, randomness="same"), (p,), (tangent,))[1]
    assert torch.equal(got, slope * tangent)
    assert torch.equal(jacrev(apply)(p[0]), slope[0].diag())
    assert torch.equal(jacfwd(apply, randomness="same")(p[0]), slope[0].diag())
    assert torch.equal(vmap(grad(lambda q: apply(q).sum()), randomness="different")(p), slope)
    assert torch.equal(vmap(grad(lambda q: apply(q).sum()), randomness="same")(p), slope)
    second = grad(lambda q: grad(lambda r: apply(r).sum())(q).sum())(p)
    assert torch.equal(second, torch.full_like(p, 1.0 if estimator == "probs" else 0.0))
    for randomness in ("same", "different"):
        draws = vmap(apply, randomness=randomness)(torch.full((100, 3), 0.5))
        assert (len(draws.unique(dim=0)) == 1) == (randomness == "same")
    with pytest.raises(RuntimeError, match=r"randomness=\"different\""):
        vmap(apply)(p)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("with_generator", [False, True])
def test_unbatched_probabilities_in_vmap(estimator: BernoulliEstimator, with_generator: bool) -> None:
    p = torch.full((20,), 0.5)

    def scaled(factor: Tensor) -> Tensor:
        return factor * bernoulli_sample(p, estimator, generator() if with_generator else None)

    factors = torch.ones(30)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert len(vmap(scaled, randomness="different")(factors).unique(dim=0)) > 1
        assert len(vmap(scaled, randomness="same")(factors).unique(dim=0)) == 1
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(scaled)(factors)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_generator_makes_draws_repeatable(estimator: BernoulliEstimator) -> None:
    p = torch.full((200,), 0.5)
    first = bernoulli_sample(p, estimator, generator(3))
    assert torch.equal(first, bernoulli_sample(p, estimator, generator(3)))
    assert not torch.equal(first, bernoulli_sample(p, estimator, generator(4)))
    before = torch.random.get_rng_state()
    bernoulli_sample(p, estimator, generator(3))
    assert torch.equal(before, torch.random.get_rng_state())


# Dynamo looks at .grad of what it hands on after a break in the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_generator_in_compiled_code(estimator: BernoulliEstimator, backend: str) -> None:
    torch._dynamo.reset()
    own = generator(3)
    compiled = torch.compile(lambda q: bernoulli_sample(q * 1, estimator, own) * 2, backend=backend)
    p = torch.full((200,), 0.5, requires_grad=True)
    y = compiled(p)
    assert torch.equal(y, 2 * bernoulli_sample(p.detach(), estimator, generator(3)))
    y.sum().backward()
    assert p.grad is not None
    assert p.grad.tolist() == [1.0 if estimator == "probs" else 2.0] * 200


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_plain_function_in_compiled_code() -> None:
    torch._dynamo.reset()
    p = torch.full((10,), 0.25, requires_grad=True)
    y = torch.compile(lambda q: BernoulliSample.apply(q) + 1, backend="aot_eager")(p)
    y.sum().backward()
    assert p.grad is not None
    assert ((y == 1) | (y == 2)).all()
    assert p.grad.tolist() == [0.25] * 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_vmap_in_compiled_code(estimator: BernoulliEstimator) -> None:
    torch._dynamo.reset()
    p = torch.full((30, 20), 0.25, requires_grad=True)
    f = torch.compile(vmap(lambda q: bernoulli_sample(q, estimator), randomness="different"), backend="aot_eager")
    y = f(p)
    y.sum().backward()
    assert p.grad is not None
    assert len(y.unique(dim=0)) > 1
    assert (p.grad == (0.25 if estimator == "probs" else 1)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()])
def test_empty_and_0d(estimator: BernoulliEstimator, shape: tuple[int, ...]) -> None:
    p = torch.full(shape, 0.5, requires_grad=True)
    y = bernoulli_sample(p, estimator)
    y.sum().backward()
    assert p.grad is not None
    assert y.shape == p.grad.shape == shape
    assert ((y == 0) | (y == 1)).all()
    assert (p.grad == (0.5 if estimator == "probs" else 1.0)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_strides_are_kept(estimator: BernoulliEstimator) -> None:
    transposed = torch.rand(4, 6, generator=generator()).t()
    channels_last = torch.rand(2, 3, 4, 5, generator=generator()).contiguous(memory_format=torch.channels_last)
    for p in (transposed, channels_last):
        assert not p.is_contiguous()
        assert bernoulli_sample(p, estimator).stride() == p.stride()
    sliced = torch.rand(4, 6, generator=generator())[:, ::2].requires_grad_()
    y = bernoulli_sample(sliced, estimator)
    assert y.shape == (4, 3)
    y.sum().backward()
    assert sliced.grad is not None
    torch.testing.assert_close(sliced.grad, sliced.detach() if estimator == "probs" else torch.ones(4, 3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_leaves_the_dtype(estimator: BernoulliEstimator, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert bernoulli_sample(torch.full((3,), 0.5, dtype=dtype), estimator).dtype == dtype


def test_nothing_is_recorded_where_no_gradient_is_wanted() -> None:
    assert not bernoulli_sample(torch.full((3,), 0.5)).requires_grad
    with torch.no_grad():
        assert not bernoulli_sample(torch.full((3,), 0.5, requires_grad=True)).requires_grad


# ---- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_outside_is_refused(estimator: BernoulliEstimator) -> None:
    with pytest.raises(ValueError, match=r"2 of 4 lie outside \(smallest -0.5, largest 1.25\).*sigmoid.*clamp=True"):
        bernoulli_sample(torch.tensor([-0.5, 0.5, 1.25, 1.0]), estimator)
    with pytest.raises(ValueError, match=r"1 of 1 lie outside \(smallest inf"):
        bernoulli_sample(torch.tensor(float("inf")), estimator)


@pytest.mark.parametrize("clamp", [False, True])
def test_nan_is_refused(clamp: bool) -> None:
    with pytest.raises(ValueError, match="2 of 3 are NaN"):
        bernoulli_sample(torch.tensor([float("nan"), 0.5, float("nan")]), clamp=clamp)


def test_the_check_itself() -> None:
    check_probabilities(torch.tensor([0.0, 1.0]))
    check_probabilities(torch.tensor([-1.0, 2.0]), clamp=True)
    check_probabilities(torch.empty(0))
    with pytest.raises(ValueError, match="lie outside"):
        check_probabilities(torch.tensor([2.0]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clamp(estimator: BernoulliEstimator) -> None:
    p = torch.tensor([-0.5, 0.5, 1.25, -float("inf")], requires_grad=True)
    y = bernoulli_sample(p, estimator, clamp=True)
    y.sum().backward()
    assert p.grad is not None
    assert y.tolist()[::2] == [0.0, 1.0]
    assert p.grad.tolist() == [0.0, 0.5 if estimator == "probs" else 1.0, 0.0, 0.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_validation(estimator: BernoulliEstimator) -> None:
    """What torch.bernoulli would refuse, on a GPU with an assertion that ends the process, never reaches it."""
    p = torch.tensor([float("nan"), -1.0, 3.0, 0.5, float("inf")], requires_grad=True)
    y = bernoulli_sample(p, estimator, validate=False)
    y.sum().backward()
    assert p.grad is not None
    assert [y[0], y[1], y[2], y[4]] == [0.0, 0.0, 1.0, 1.0]
    assert p.grad.tolist() == [0.0, 0.0, 0.0, 0.5 if estimator == "probs" else 1.0, 0.0]


def test_nothing_is_refused_where_values_cannot_be_seen() -> None:
    bad = torch.tensor([[float("nan"), 2.0], [0.0, -1.0]])
    expected = [[0.0, 1.0], [0.0, 0.0]]
    assert vmap(bernoulli_sample, randomness="different")(bad).tolist() == expected
    assert vmap(bernoulli_sample, randomness="same")(bad).tolist() == expected
    torch._dynamo.reset()
    compiled = torch.compile(bernoulli_sample, backend="aot_eager", fullgraph=True)
    assert compiled(bad).tolist() == expected
    # In grad and jvp alone they can be seen.
    with pytest.raises(ValueError, match="1 of 4 are NaN"):
        grad(lambda q: bernoulli_sample(q).sum())(bad)


def test_on_the_meta_device() -> None:
    p = torch.empty(3, 2, device="meta", requires_grad=True)
    for estimator in ESTIMATORS:
        y = bernoulli_sample(p, estimator)
        assert (y.device.type, y.shape) == ("meta", (3, 2))
        y.sum().backward()


def test_is_batched() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_batched(x))
        return x.sum()

    x = torch.ones(2, 3)
    look(x)
    grad(look)(x)
    vmap(look)(x)
    grad(lambda y: vmap(look)(y).sum())(x)
    vmap(grad(look))(x)
    assert seen == [False, False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"p must be floating point; it is {dtype}.*p.float"):
        bernoulli_sample(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("p", [0.5, [0.5], np.array([0.5])])
def test_no_tensor_is_refused(p: Any) -> None:
    with pytest.raises(TypeError, match=f"p must be a tensor of probabilities; it is {type(p).__name__}"):
        bernoulli_sample(p)


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['probs', 'identity'\]; it is 'identiy' \(did you mean 'identity'\?\)"):
        bernoulli_sample(torch.tensor(0.5), "identiy")  # type: ignore[arg-type]


def test_generator_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="generator is on cpu, p on meta"):
        bernoulli_sample(torch.empty(3, device="meta"), generator=generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_on_a_gpu(estimator: BernoulliEstimator) -> None:
    p = torch.rand(1000, device="cuda").requires_grad_()
    y = bernoulli_sample(p, estimator, torch.Generator("cuda").manual_seed(0))
    y.sum().backward()
    assert p.grad is not None
    assert y.is_cuda
    assert torch.equal(p.grad, p.detach() if estimator == "probs" else torch.ones_like(p))
    with pytest.raises(ValueError, match="generator is on cpu"):
        bernoulli_sample(p, estimator, generator())
    bad = torch.tensor([float("nan"), 2.0], device="cuda")
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        bernoulli_sample(bad, estimator)
    for function in (BernoulliSample, BernoulliIdentity):
        assert function.apply(bad).tolist() == [0.0, 1.0]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    # The context has survived all of these.
    assert bernoulli_sample(bad, estimator, validate=False).tolist() == [0.0, 1.0]
