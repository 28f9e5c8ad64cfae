"""Hard values with soft derivatives: values, arguments, edges. The transforms are in test_estimator_transforms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sthyper.straight_through.family import (
    same_device,
    st_argmax,
    st_ceil,
    st_floor,
    st_one_hot,
    st_round,
    st_sign,
    st_top_k,
    straight_through,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def gradient(y: Tensor, x: Tensor, *weights: float) -> list[float]:
    (g,) = torch.autograd.grad((y * torch.tensor(weights or (1.0,), dtype=y.dtype)).sum(), x)
    return g.tolist()


def test_value_and_derivatives() -> None:
    x = torch.tensor([0.1, 0.7], requires_grad=True)
    y = straight_through(x * 100, x**2)
    assert torch.equal(y, x * 100)
    assert gradient(y, x) == pytest.approx([0.2, 1.4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_is_exact_whatever_the_soft_one(dtype: torch.dtype) -> None:
    hard = torch.tensor([1.0, 0.1, 1e-4, 0.0, 3.0]).to(dtype)
    soft = torch.tensor([1e4, -0.3, 77.0, 1e-5, 1.0]).to(dtype).requires_grad_()
    assert torch.equal(straight_through(hard, soft), hard)


def test_infinite_and_nan_soft_values_do_no_harm() -> None:
    soft = torch.tensor([math.inf, -math.inf, math.nan, 1.0], requires_grad=True)
    y = straight_through(torch.tensor([1.0, -1.0, 0.0, 2.0]), soft)
    assert y.tolist() == [1.0, -1.0, 0.0, 2.0]
    assert gradient(y, soft) == [0.0, 0.0, 0.0, 1.0]
    x = torch.tensor([math.inf, -math.inf], requires_grad=True)
    assert st_round(x).tolist() == [math.inf, -math.inf]


def test_hard_values_of_other_types() -> None:
    soft = torch.tensor([0.2, 0.8], requires_grad=True)
    for hard in (soft > 0.5, (soft > 0.5).long(), (soft > 0.5).double()):
        y = straight_through(hard, soft)
        assert y.dtype == torch.float32
        assert y.tolist() == [0.0, 1.0]


def test_wrong_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape; they have \(2,\) and \(3,\)"):
        straight_through(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="soft must be floating point.*torch.int64"):
        straight_through(torch.ones(2), torch.ones(2, dtype=torch.long))


def test_rounding() -> None:
    x = torch.tensor([-1.5, -0.2, 0.5, 1.5, 2.7], requires_grad=True)
    assert st_round(x).tolist() == [-2.0, 0.0, 0.0, 2.0, 3.0]
    assert st_floor(x).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert st_ceil(x).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    for function in (st_round, st_floor, st_ceil):
        assert gradient(function(x), x, 1, 2, 3, 4, 5) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_rounding_tunes_a_whole_number() -> None:
    x = torch.tensor(9.0, requires_grad=True)
    for _ in range(100):
        (slope,) = torch.autograd.grad((st_round(x) - 4) ** 2, x)
        x = (x - 0.05 * slope).detach().requires_grad_()
    assert st_round(x).item() == 4


def test_sign() -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
    assert st_sign(x).tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]
    assert gradient(st_sign(x), x) == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert gradient(st_sign(x, clip=0.4), x) == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert gradient(st_sign(x, clip=None), x) == [1.0] * 5
    assert st_sign(torch.tensor(math.nan)).isnan()
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip must be above 0"):
            st_sign(x, clip)


def test_one_hot_and_its_arguments() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]], requires_grad=True)
    assert st_one_hot(x).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert st_one_hot(x, dim=0).tolist() == [[0, 1, 1], [1, 0, 0]]
    for temperature in (0.5, 2.0):
        soft = torch.softmax(x / temperature, 1)
        expected = torch.autograd.grad(soft[:, 1].sum(), x)[0]
        got = torch.autograd.grad(st_one_hot(x, temperature=temperature)[:, 1].sum(), x)[0]
        torch.testing.assert_close(got, expected)


def test_exactly_one_of_equal_scores() -> None:
    assert st_one_hot(torch.zeros(4, 7)).sum(-1).tolist() == [1.0] * 4
    assert st_top_k(torch.zeros(4, 7), 3).sum(-1).tolist() == [3.0] * 4


def test_argmax_and_its_arguments() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]], requires_grad=True)
    assert st_argmax(x).tolist() == [1.0, 0.0]
    assert st_argmax(x, keepdim=True).tolist() == [[1.0], [0.0]]
    assert st_argmax(x, dim=0).tolist() == [1.0, 0.0, 0.0]
    for temperature in (0.5, 2.0):
        mean = (torch.softmax(x / temperature, 1) * torch.tensor([0.0, 1.0, 2.0])).sum(1)
        expected = torch.autograd.grad(mean.sum(), x)[0]
        got = torch.autograd.grad(st_argmax(x, temperature=temperature).sum(), x)[0]
        torch.testing.assert_close(got, expected)


def test_top_k_and_its_arguments() -> None:
    x = torch.tensor([[1.0, 4.0, 2.0, -1.0], [5.0, 0.0, -1.0, 0.5]], requires_grad=True)
    assert st_top_k(x, 2).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert st_top_k(x, 1).tolist() == st_one_hot(x).tolist()
    assert st_top_k(x, 1, dim=0).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    # By hand: the border of 2 lies at 1.5, between 2 and 1.
    s = torch.sigmoid((x[0].detach() - 1.5) / 0.5)
    slope = s * (1 - s) / 0.5
    own = slope - torch.tensor([0.5, 0.0, 0.5, 0.0]) * slope.sum()
    got = torch.autograd.grad(st_top_k(x, 2, temperature=0.5)[0].sum(), x)[0][0]
    torch.testing.assert_close(got, own)
    # Adding a number to all scores changes nothing.
    assert abs(float(got.sum())) < 1e-6


def test_all_of_k_have_no_gradient() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = st_top_k(x, 2)
    assert y.tolist() == [1.0, 1.0]
    assert not y.requires_grad


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be from 1 to 3, the number of alternatives; it is {k}"):
        st_top_k(torch.ones(2, 3), k)


@pytest.mark.parametrize("k", [1.0, True, "1"])
def test_k_of_another_type(k: Any) -> None:
    with pytest.raises(TypeError, match="k must be a whole number"):
        st_top_k(torch.ones(2, 3), k)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0, 3)])
def test_empty_and_0d(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    for function in (st_round, st_floor, st_ceil, st_sign, st_one_hot, lambda t: st_top_k(t, 1)):
        y = function(x)
        assert y.shape == shape
    assert st_argmax(x).shape == shape[:-1]
    if not shape:
        assert st_one_hot(x).item() == st_top_k(x, 1).item() == 1.0
        assert st_argmax(x).item() == 0.0


CHOICES = [st_one_hot, st_argmax, lambda x, **options: st_top_k(x, 1, **options)]


@pytest.mark.parametrize("function", CHOICES, ids=["one_hot", "argmax", "top_k"])
def test_bad_choices_are_refused(function: Any) -> None:
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            function(torch.ones(3), temperature=temperature)
    with pytest.raises(TypeError, match="temperature must be a number"):
        function(torch.ones(3), temperature="hot")
    with pytest.raises(ValueError, match=r"dim must be from -2 to 1 .* it is 2"):
        function(torch.ones(2, 3), dim=2)
    with pytest.raises(ValueError, match="axis 1 of shape .* has none"):
        function(torch.ones(2, 0), dim=1)
    with pytest.raises(TypeError, match="logits must be floating point.*torch.int64"):
        function(torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize("function", [st_round, st_floor, st_ceil, st_sign])
def test_bad_numbers_are_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="x must be floating point.*torch.bool"):
        function(torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="x must be a tensor; it is float"):
        function(1.5)


def test_devices() -> None:
    cpu, gpu, first, second = (torch.device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:1"))
    assert same_device(cpu, cpu)
    assert same_device(gpu, second)
    assert same_device(first, first)
    assert not same_device(first, second)
    assert not same_device(cpu, first)


def test_numbers_are_no_tensors() -> None:
    x = torch.ones(2)
    with pytest.raises(TypeError, match="hard must be a tensor; it is float"):
        straight_through(1.0, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="soft must be a tensor; it is list"):
        straight_through(x, [1.0, 1.0])  # type: ignore[arg-type]


def test_a_zero_is_positive() -> None:
    assert torch.equal(straight_through(torch.tensor([-0.0]), torch.zeros(1)).signbit(), torch.tensor([False]))
