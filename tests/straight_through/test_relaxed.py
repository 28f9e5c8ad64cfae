"""Gumbel-softmax and hard concrete gates: distributions, closed forms, arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sthyper.straight_through.relaxed import (
    check_generator,
    gumbel_softmax,
    hard_concrete,
    hard_concrete_estimate,
    hard_concrete_l0,
    hard_concrete_mean,
)

N = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_gumbel_draws_have_the_probabilities_of_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.5, -1.0, -math.inf])
    draws = gumbel_softmax(logits.expand(N, 4), temperature, generator=generator())
    p = logits.softmax(0)
    assert torch.equal(draws.sum(-1), torch.ones(N))
    assert set(draws.flatten().tolist()) == {0.0, 1.0}
    assert ((draws.mean(0) - p).abs() <= 5 * (p * (1 - p) / N).sqrt()).all()
    assert draws[:, 3].sum() == 0


def test_soft_gumbel() -> None:
    logits = torch.tensor([0.0, 1.5, -1.0]).expand(1000, 3)
    cold, warm = (gumbel_softmax(logits, t, hard=False, generator=generator()) for t in (0.1, 5.0))
    for soft in (cold, warm):
        torch.testing.assert_close(soft.sum(-1), torch.ones(1000))
        hard = gumbel_softmax(logits, 0.1, generator=generator())
        assert torch.equal(soft.argmax(-1), hard.argmax(-1))
    assert cold.amax(-1).mean() > 0.9 > 0.6 > warm.amax(-1).mean()


def test_gradients_of_gumbel_with_impossible_alternatives_are_finite() -> None:
    logits = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    gumbel_softmax(logits, generator=generator())[1].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[2] == 0


def test_axis_of_gumbel() -> None:
    x = torch.zeros(3, 50)
    assert torch.equal(gumbel_softmax(x, dim=0).sum(0), torch.ones(50))
    assert torch.equal(gumbel_softmax(x, dim=1).sum(1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_draws_are_not_coarse(dtype: torch.dtype) -> None:
    """With uniform numbers of half precision the rare alternative would never, or far too often, be drawn."""
    logits = torch.tensor([0.0, -8.0], dtype=dtype).expand(400_000, 2)
    rare = float(gumbel_softmax(logits, generator=generator())[:, 1].float().sum())
    p = 1 / (1 + math.exp(8.0))
    assert abs(rare - 400_000 * p) <= 5 * math.sqrt(400_000 * p)


@pytest.mark.parametrize("temperature", [0.4, 2 / 3, 1.5])
@pytest.mark.parametrize("stretch", [(-0.1, 1.1), (-0.5, 1.2)])
def test_hard_concrete_against_its_closed_forms(temperature: float, stretch: tuple[float, float]) -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0], dtype=torch.float64)
    z = hard_concrete(logits.expand(N, 5), temperature, stretch, generator())
    assert z.min() == 0
    assert z.max() == 1
    p_open = hard_concrete_l0(logits, temperature, stretch)
    assert (((z > 0).double().mean(0) - p_open).abs() <= 5 * (p_open * (1 - p_open) / N).sqrt()).all()
    mean = hard_concrete_mean(logits, temperature, stretch)
    assert ((z.mean(0) - mean).abs() <= 5 * z.std(0) / math.sqrt(N)).all()
    # P(z = 1), from the same formula by symmetry.
    p_full = torch.sigmoid(logits - temperature * math.log((1 - stretch[0]) / (stretch[1] - 1)))
    assert (((z == 1).double().mean(0) - p_full).abs() <= 5 * (p_full * (1 - p_full) / N).sqrt()).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2 / 3, 2.0])
def test_mean_against_a_fine_sum(temperature: float) -> None:
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    s = torch.sigmoid((u.logit()[:, None] + logits) / temperature)
    expected = (s * 1.2 - 0.1).clamp(0, 1).mean(0)
    torch.testing.assert_close(hard_concrete_mean(logits, temperature), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("function", [hard_concrete_l0, hard_concrete_mean])
def test_gradients_of_closed_forms(function: Any) -> None:
    logits = torch.linspace(-2, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, logits)
    assert torch.autograd.gradgradcheck(function, logits)


def test_gradient_of_hard_concrete_is_that_of_its_mean() -> None:
    """By reparametrisation the gradient of the expected gate is unbiased."""
    logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    each = logits.expand(N, 3).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(hard_concrete(each, generator=generator()).sum(), each)
    (expected,) = torch.autograd.grad(hard_concrete_mean(logits).sum(), logits)
    assert ((gradients.mean(0) - expected).abs() <= 5 * gradients.std(0) / math.sqrt(N)).all()


def test_fixed_gates_of_the_paper() -> None:
    logits = torch.tensor([-5.0, 0.0, 5.0, 1.0])
    got = hard_concrete_estimate(logits)
    assert got[:3].tolist() == [0.0, pytest.approx(0.5), 1.0]
    assert got[3].item() == pytest.approx(1.2 / (1 + math.exp(-1)) - 0.1)
    assert hard_concrete_estimate(logits, (-0.5, 1.1))[3].item() == pytest.approx(1.6 / (1 + math.exp(-1)) - 0.5)


def test_default_of_the_temperature() -> None:
    logits = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(hard_concrete_l0(logits), torch.sigmoid(logits + 2 / 3 * math.log(11)))
    assert torch.equal(
        hard_concrete(logits, generator=generator()), hard_concrete(logits, 2 / 3, (-0.1, 1.1), generator())
    )


@pytest.mark.parametrize("draw", [gumbel_softmax, hard_concrete])
def test_generators(draw: Any) -> None:
    logits = torch.zeros(50, 3)
    assert torch.equal(draw(logits, generator=generator(1)), draw(logits, generator=generator(1)))
    assert not torch.equal(draw(logits, generator=generator(1)), draw(logits, generator=generator(2)))
    before = torch.random.get_rng_state()
    draw(logits, generator=generator(1))
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="generator is on cpu, the tensor on meta"):
        draw(torch.empty(3, device="meta"), generator=generator())


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_empty_and_0d(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    for function in (gumbel_softmax, hard_concrete, hard_concrete_l0, hard_concrete_mean, hard_concrete_estimate):
        assert function(logits).shape == shape
    if not shape:
        assert gumbel_softmax(logits).item() == 1.0


ALL = [gumbel_softmax, hard_concrete, hard_concrete_l0, hard_concrete_mean]


@pytest.mark.parametrize("function", ALL)
def test_bad_temperatures_are_refused(function: Any) -> None:
    for temperature in (0.0, -0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            function(torch.ones(3), temperature)


@pytest.mark.parametrize("function", [*ALL, hard_concrete_estimate])
def test_bad_logits_are_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="logits must be floating point.*torch.int64"):
        function(torch.ones(3, dtype=torch.long))
    with pytest.raises(TypeError, match="logits must be a tensor; it is list"):
        function([1.0])


@pytest.mark.parametrize("stretch", [(0.0, 1.1), (-0.1, 1.0), (0.1, 1.2), (-math.inf, 2.0), (1.1, -0.1)])
def test_bad_stretches_are_refused(stretch: tuple[float, float]) -> None:
    for function in (hard_concrete, hard_concrete_l0, hard_concrete_mean, hard_concrete_estimate):
        with pytest.raises(ValueError, match="stretch must be a number below 0 and one above 1"):
            function(torch.ones(3), stretch=stretch)  # type: ignore[operator]


def test_bad_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="dim must be from -1 to 0"):
        gumbel_softmax(torch.ones(3), dim=1)


def test_generators_of_another_gpu_are_refused() -> None:
    class On:
        def __init__(self, name: str) -> None:
            self.device = torch.device(name)

    check_generator(On("cuda:1"), On("cuda:1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generator is on cuda:1, the tensor on cuda:0"):
        check_generator(On("cuda:1"), On("cuda:0"))  # type: ignore[arg-type]
