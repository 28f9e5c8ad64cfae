"""Choices, surrogates, measured bias and aggregated masks on each device that there is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sthyper.straight_through.bias import PROBLEMS, estimator_bias
from sthyper.straight_through.choices import Choice, ChoiceEstimator
from sthyper.straight_through.gates import Gate, GateEstimator
from sthyper.straight_through.mask_aggregation import MaskAggregator, load_probabilities, sample_masks
from sthyper.straight_through.masked_layers import MaskedLinear
from sthyper.straight_through.masks import named_masks
from sthyper.straight_through.unbiased import MovingBaseline, arm, bernoulli_log_prob, reinforce

LOGITS = torch.tensor([-1.0, 0.2, 1.5])
WEIGHT = torch.tensor([1.0, -2.0, 0.5])


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """All devices that there are."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


def expected_gradient() -> Tensor:
    """Return the gradient of the expected weighted sum, which is linear in each gate."""
    p = LOGITS.sigmoid()
    return WEIGHT * p * (1 - p)


def test_arm(device: torch.device) -> None:
    logits, weight = LOGITS.to(device, copy=True).requires_grad_(), WEIGHT.to(device)
    generator = torch.Generator(device).manual_seed(0)
    value = arm(lambda sample: sample @ weight, logits, 20_000, generator)
    value.backward()
    assert value.device.type == device.type
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.cpu(), expected_gradient(), atol=0.02, rtol=0)


@pytest.mark.parametrize("baseline", ["leave_one_out", "none", "moving"])
def test_reinforce(baseline: str, device: torch.device) -> None:
    logits, weight = LOGITS.to(device, copy=True).requires_grad_(), WEIGHT.to(device)
    generator = torch.Generator(device).manual_seed(0)
    sample = torch.bernoulli(logits.detach().sigmoid().expand(40_000, 3), generator=generator)
    losses = sample @ weight
    chosen = MovingBaseline().to(device)(losses) if baseline == "moving" else baseline
    reinforce(losses, bernoulli_log_prob(sample, logits), chosen).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.cpu(), expected_gradient(), atol=0.03, rtol=0)


@pytest.mark.parametrize("evaluation", ["threshold", "sample", "expected"])
@pytest.mark.parametrize("estimator", ["identity", "gumbel"])
def test_choices(estimator: ChoiceEstimator, evaluation: str, device: torch.device) -> None:
    start = [0.2, 0.5, 0.3]
    chooser = Choice([1.0, 2.0, 4.0], start, estimator=estimator, evaluation=evaluation, seed=0, device=device)  # type: ignore[arg-type]
    sample = chooser.sample(20_000)
    assert sample.device.type == device.type
    torch.testing.assert_close(sample.detach().mean(0).cpu(), torch.tensor(start), atol=0.015, rtol=0)
    chooser([torch.full((8, 2), number, device=device) for number in (1.0, 2.0, 4.0)]).sum().backward()
    assert chooser.logits.grad is not None
    assert chooser.logits.grad.isfinite().all()
    state = copy.deepcopy(chooser.state_dict())
    drawn = chooser.sample(50)
    chooser.load_state_dict(state)
    assert torch.equal(chooser.sample(50), drawn)
    number = float(chooser.eval().number(chooser.weights()).detach())
    if evaluation == "expected":
        assert number == pytest.approx(2.4)
    else:
        assert number in ((2.0,) if evaluation == "threshold" else (1.0, 2.0, 4.0))


@pytest.mark.parametrize("estimator", ["identity", "probs", "gumbel", "hard_concrete", "reinforce"])
def test_closed_gates(estimator: GateEstimator, device: torch.device) -> None:
    gate = Gate(2, torch.tensor([0.01, 0.99]), estimator=estimator, seed=0, device=device).eval()
    x = torch.tensor([[float("nan"), 3.0]], device=device)
    assert gate(x).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("estimator", ["arm", "reinforce", "identity", "gumbel", "hard_concrete"])
def test_measured_bias(estimator: str, device: torch.device) -> None:
    problem = PROBLEMS["separable"]()
    # Only the targets of the loss stay where they are.
    target = torch.tensor([0.45, 0.1, 0.7, 0.499], dtype=torch.float64, device=device)
    generator = torch.Generator(device).manual_seed(0)
    logits = problem.logits.to(device)
    result = estimator_bias(
        lambda gates: (gates - target).square().sum(-1), logits, estimator, 5000, generator=generator
    )
    assert result.mean.device.type == device.type
    assert result.is_zero() == (estimator in ("arm", "reinforce"))


@pytest.mark.parametrize("method", ["mean", "bayesian"])
def test_aggregated_masks(method: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = MaskedLinear(4, 3, device=device)
    generator = torch.Generator(device).manual_seed(0)
    sent = [sample_masks(model, generator) for _ in range(3)]
    result = MaskAggregator(method).aggregate(sent)  # type: ignore[arg-type]
    on_cpu = MaskAggregator(method).aggregate([{k: v.cpu() for k, v in worker.items()} for worker in sent])  # type: ignore[arg-type]
    for name, value in result.items():
        assert value.device.type == device.type
        torch.testing.assert_close(value.cpu(), on_cpu[name])
    load_probabilities(model, on_cpu)
    for name, mask in named_masks(model):
        torch.testing.assert_close(mask.probabilities().detach().cpu(), on_cpu[f"{name}.scores"], atol=2e-6, rtol=0)
