"""Surrogates of score functions and ARM: values, baselines, bad input. Their bias is in test_estimator_bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sthyper.straight_through.unbiased import MovingBaseline, arm, bernoulli_log_prob, reinforce


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_probabilities() -> None:
    sample = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    logits = torch.tensor([0.5, -2.0], requires_grad=True)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(sample)
    torch.testing.assert_close(bernoulli_log_prob(sample, logits), expected.sum(1))
    torch.testing.assert_close(bernoulli_log_prob(sample, logits, 0), expected.sum())
    torch.testing.assert_close(bernoulli_log_prob(sample, logits, 2), expected)
    torch.testing.assert_close(bernoulli_log_prob(sample.bool(), logits), expected.sum(1))
    (gradient,) = torch.autograd.grad(bernoulli_log_prob(sample, logits, 0), logits)
    torch.testing.assert_close(gradient, (sample - logits.detach().sigmoid()).sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_log_probabilities_of_large_scores(dtype: torch.dtype) -> None:
    logits = torch.tensor([100.0, -100.0, 30.0], dtype=dtype, requires_grad=True)
    unlikely = bernoulli_log_prob(torch.tensor([0.0, 1.0, 0.0]), logits, 1)
    assert unlikely.tolist() == pytest.approx([-100.0, -100.0, -30.0], rel=1e-12)
    likely = bernoulli_log_prob(torch.tensor([1.0, 0.0, 1.0]), logits, 1)
    assert likely[:2].double().abs().max() < 1e-40
    assert likely[2].item() == pytest.approx(-math.exp(-30), rel=1e-2, abs=1e-7 if dtype == torch.float16 else 0)
    (gradient,) = torch.autograd.grad(unlikely.sum(), logits)
    assert gradient.tolist() == pytest.approx([-1.0, 1.0, -1.0], rel=1e-12)


def test_bad_log_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_dims must be from 0 to 2, the axes of sample; it is 3"):
        bernoulli_log_prob(torch.ones(2, 3), torch.ones(3), 3)
    with pytest.raises(ValueError, match=r"logits of shape \(2,\) must broadcast to samples of shape \(2, 3\)"):
        bernoulli_log_prob(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(TypeError, match="logits must be floating point"):
        bernoulli_log_prob(torch.ones(2, 3), torch.ones(3, dtype=torch.long))


def score(losses: list[float], baseline: Any) -> list[float]:
    """Return what each log probability is weighted with."""
    log_prob = torch.zeros(len(losses), requires_grad=True)
    reinforce(torch.tensor(losses), log_prob, baseline).backward()
    assert log_prob.grad is not None
    return (log_prob.grad * len(losses)).tolist()


def test_baselines() -> None:
    assert score([1.0, 2.0, 6.0], "none") == pytest.approx([1.0, 2.0, 6.0])
    assert score([1.0, 2.0, 6.0], "leave_one_out") == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    assert score([1.0, 2.0, 6.0], 3) == pytest.approx([-2.0, -1.0, 3.0])
    assert score([1.0, 2.0, 6.0], torch.tensor([1.0, 0.0, 5.0])) == pytest.approx([0.0, 2.0, 1.0])
    assert score([1.0, 2.0, 6.0], torch.tensor(2.0)) == pytest.approx([-1.0, 0.0, 4.0])


def test_value_is_the_mean_loss_and_other_parameters_get_their_gradient() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    logits = torch.zeros(3, requires_grad=True)
    sample = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    losses = weight**2 * sample.sum(1)
    surrogate = reinforce(losses, bernoulli_log_prob(sample, logits))
    assert surrogate.item() == pytest.approx(losses.mean().item())
    surrogate.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(4 * 4 / 3)
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_one_loss() -> None:
    log_prob = torch.tensor(-0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(reinforce(torch.tensor(3.0), log_prob, 1.0), log_prob)
    assert gradient.item() == 2.0
    with pytest.raises(ValueError, match="needs at least two losses; there is one: take more samples, MovingBaseline"):
        reinforce(torch.tensor(3.0), log_prob)


def test_losses_of_half_precision_do_not_overflow() -> None:
    log_prob = torch.zeros(4, dtype=torch.float16, requires_grad=True)
    losses = torch.tensor([30000.0, 30016.0, 30000.0, 30016.0], dtype=torch.float16)
    (gradient,) = torch.autograd.grad(reinforce(losses, log_prob), log_prob)
    assert (gradient * 4).tolist() == pytest.approx([-10.66, 10.66, -10.66, 10.66], abs=0.02)


def test_bad_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one number for each sample; they have the shapes \(2,\) and \(3,\)"):
        reinforce(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="at least one loss"):
        reinforce(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match=r"it is 'leave_out' \(did you mean 'leave_one_out'\?\)"):
        reinforce(torch.ones(2), torch.ones(2), "leave_out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"baseline of shape \(2, 1\) must broadcast to losses of shape \(2,\)"):
        reinforce(torch.ones(2), torch.ones(2), torch.ones(2, 1))
    with pytest.raises(TypeError, match="losses must be floating point"):
        reinforce(torch.ones(2, dtype=torch.long), torch.ones(2))
    with pytest.raises(TypeError, match="log_prob must be a tensor"):
        reinforce(torch.ones(2), [0.0, 0.0])  # type: ignore[arg-type]


def test_arm_by_hand() -> None:
    logits = torch.tensor([0.3, -1.0], requires_grad=True)
    weights = torch.tensor([1.0, 5.0])
    seen: list[Tensor] = []

    def loss(gates: Tensor) -> Tensor:
        seen.append(gates)
        return (gates @ weights) ** 2

    surrogate = arm(loss, logits, 3, generator())
    (gradient,) = torch.autograd.grad(surrogate, logits)
    u = torch.rand((3, 2), generator=generator())
    p = logits.detach().sigmoid()
    mirrored, plain = (u > 1 - p).float(), (u < p).float()
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.cat([mirrored, plain]))
    losses = loss(seen[0])
    assert surrogate.item() == pytest.approx(losses.mean().item())
    torch.testing.assert_close(gradient, ((losses[:3] - losses[3:])[:, None] * (u - 0.5)).mean(0))


def test_arm_of_one_0d_choice_and_of_many_axes() -> None:
    for shape in ((), (2, 3, 2)):
        logits = torch.zeros(shape, requires_grad=True)
        arm(lambda gates: gates.flatten(1).sum(1) if gates.dim() > 1 else gates * 2, logits, 4, generator()).backward()
        assert logits.grad is not None
        assert logits.grad.shape == shape
        assert logits.grad.abs().sum() > 0


def test_arm_trains_other_parameters() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    surrogate = arm(lambda gates: weight**2 * gates.sum(1), torch.full((2,), 50.0), 5)
    surrogate.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(8.0)


def test_generator_of_arm() -> None:
    logits = torch.zeros(20)

    def loss(gates: Tensor) -> Tensor:
        return (gates @ torch.arange(20.0)) ** 2

    assert arm(loss, logits, 1, generator(1)) == arm(loss, logits, 1, generator(1))
    assert arm(loss, logits, 1, generator(1)) != arm(loss, logits, 1, generator(2))
    with pytest.raises(ValueError, match="generator is on cpu"):
        arm(loss, torch.empty(3, device="meta"), 1, generator())


def test_bad_arguments_of_arm_are_refused() -> None:
    with pytest.raises(ValueError, match="n_samples must be at least 1; it is 0"):
        arm(lambda gates: gates.sum(1), torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"a tensor of 4 losses, one for each sample; it returned \(\)"):
        arm(lambda gates: gates.sum(), torch.zeros(2), 2)
    with pytest.raises(ValueError, match="it returned float"):
        arm(lambda gates: 1.0, torch.zeros(2), 2)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="logits must be floating point"):
        arm(lambda gates: gates.sum(1), torch.zeros(2, dtype=torch.long))


def test_both_learn_which_gates_pay() -> None:
    gain = torch.tensor([1.0, -1.0, 0.5, -0.5])
    for estimator in ("reinforce", "arm"):
        logits, own = torch.zeros(4, requires_grad=True), generator()
        for _ in range(150):
            if estimator == "arm":
                surrogate = arm(lambda gates: -gates @ gain, logits, 4, own)
            else:
                sample = torch.bernoulli(logits.detach().sigmoid().expand(8, 4), generator=own)
                surrogate = reinforce(-sample @ gain, bernoulli_log_prob(sample, logits))
            (gradient,) = torch.autograd.grad(surrogate, logits)
            logits = (logits - 0.5 * gradient).detach().requires_grad_()
        assert ((logits > 1) == (gain > 0)).all(), estimator
        assert ((logits < -1) == (gain < 0)).all(), estimator


def test_moving_baseline() -> None:
    baseline = MovingBaseline(0.5)
    got = [baseline(torch.tensor(loss)).item() for loss in (4.0, 2.0, 1.0)]
    # Means of what came before, with weights 1; 1/2 and 1; each time divided by their sum.
    assert got == pytest.approx([0.0, 4.0, (4.0 * 0.5 + 2.0) / 1.5])
    assert [MovingBaseline(0.0)(torch.tensor(3.0)).item(), baseline(torch.tensor([0.0, 2.0])).item()] == [
        0.0,
        pytest.approx((4.0 * 0.25 + 2.0 * 0.5 + 1.0) / 1.75),
    ]


def test_moving_baseline_with_bad_losses_and_checkpoints() -> None:
    baseline = MovingBaseline()
    baseline(torch.tensor(2.0))
    for bad in (math.nan, math.inf):
        baseline(torch.tensor(bad))
    restored = MovingBaseline()
    restored.load_state_dict(baseline.state_dict())
    loss = torch.tensor(1.0, requires_grad=True)
    got = restored(loss)
    assert got.item() == pytest.approx(2.0)
    assert not got.requires_grad
    assert list(restored.parameters()) == []


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_bad_decays_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be from 0 to below 1"):
        MovingBaseline(decay)


def test_log_probabilities_are_those_of_zeros_and_ones() -> None:
    logits = torch.zeros(2)
    with pytest.raises(ValueError, match="sample must hold zeros and ones"):
        bernoulli_log_prob(torch.tensor([0.3, 0.5]), logits)
    with pytest.raises(ValueError, match="sample must hold zeros and ones"):
        bernoulli_log_prob(torch.tensor([1.0, math.nan]), logits)
    with pytest.raises(TypeError, match="sample must be a tensor of zeros and ones; it is list"):
        bernoulli_log_prob([0.0, 1.0], logits)  # type: ignore[arg-type]
    assert bernoulli_log_prob(torch.tensor([True, False]), logits).tolist() == pytest.approx([-math.log(2)] * 2)
