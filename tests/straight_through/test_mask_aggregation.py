"""Masks of workers: means, beta distributions, resets, states, and the way back to scores."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from sthyper.straight_through.mask_aggregation import (
    MaskAggregator,
    load_probabilities,
    sample_masks,
    sigmoid_inverse,
)
from sthyper.straight_through.masked_layers import MaskedLinear, convert_to_masked_model
from sthyper.straight_through.masks import MaskOptions, named_masks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounds_of_masks(n_rounds: int, n_workers: int = 3) -> list[list[dict[str, Tensor]]]:
    generator = seeded()
    return [[{"w": torch.rand(4, 2, generator=generator) < 0.4} for _ in range(n_workers)] for _ in range(n_rounds)]


# ---- the inverse of the sigmoid -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inverse_of_the_sigmoid(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 0.75, 1.0], dtype=dtype)
    scores = sigmoid_inverse(x)
    assert scores.dtype == dtype
    assert bool(scores.isfinite().all())
    wanted = -torch.log(1 / x[1:4].double() - 1)
    torch.testing.assert_close(scores[1:4].double(), wanted, rtol=1e-2, atol=1e-3)
    edge = math.log((1 - 1e-6) / 1e-6)
    assert float(scores[0]) == pytest.approx(-edge, rel=1e-2)
    assert float(scores[4]) == pytest.approx(edge, rel=1e-2)


def test_eps_of_the_inverse() -> None:
    x = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert sigmoid_inverse(x, eps=0).tolist() == [-math.inf, pytest.approx(-math.log(3)), math.inf]
    torch.testing.assert_close(sigmoid_inverse(x, eps=0.3).sigmoid(), torch.tensor([0.3, 0.3, 0.7]).double())
    inside = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    sigmoid_inverse(inside).backward()
    assert float(inside.grad) == pytest.approx(1 / (0.3 * 0.7))
    for eps in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="eps must be at least 0 and below 0.5"):
            sigmoid_inverse(x, eps=eps)
    with pytest.raises(TypeError, match="x must be a floating tensor of probabilities, got torch.int64"):
        sigmoid_inverse(torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="got float"):
        sigmoid_inverse(0.5)  # type: ignore[arg-type]


# ---- what workers send --------------------------------------------------------------------------------------


def test_samples_of_a_model() -> None:
    model = nn.Sequential(MaskedLinear(80, 80, options=MaskOptions(mean=1.0, std=0.0)), nn.ReLU(), MaskedLinear(80, 2))
    masks = sample_masks(model, seeded())
    assert set(masks) == {name for name in model.state_dict() if name.endswith("scores")}
    assert all(mask.dtype == torch.bool for mask in masks.values())
    share = float(masks["0.parametrizations.weight.0.scores"].double().mean())
    assert abs(share - 1 / (1 + math.exp(-1))) < 0.025
    again, other = sample_masks(model, seeded()), sample_masks(model, seeded(1))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert not all(torch.equal(masks[name], other[name]) for name in masks)
    with pytest.raises(ValueError, match="model has no masks"):
        sample_masks(nn.Linear(2, 2))


# ---- aggregation --------------------------------------------------------------------------------------------


def test_the_mean_counts_workers_by_tensor() -> None:
    aggregator = MaskAggregator("mean")
    one, zero = torch.ones(2), torch.zeros(2)
    theta = aggregator.aggregate([{"a": one, "b": one}, {"a": zero}, {"a": one, "b": zero}])
    torch.testing.assert_close(theta, {"a": torch.full((2,), 2 / 3), "b": torch.full((2,), 0.5)})
    assert aggregator.state_dict() == {"round": 1, "alpha": {}, "beta": {}}


@pytest.mark.parametrize("frequency", [None, 1, 2, 3, 5])
def test_beta_distributions_by_hand(frequency: int | None) -> None:
    """Counts since the last reset, in plain Python."""
    aggregator = MaskAggregator("bayesian", frequency)
    ones = workers = 0
    for i, masks in enumerate(rounds_of_masks(9)):
        number = i + 1
        if frequency is not None and number > 1 and (number + 1) % frequency == 0:
            ones = workers = 0
        ones = ones + sum(int(m["w"][2, 1]) for m in masks)
        workers += len(masks)
        theta = aggregator.aggregate(masks)["w"]
        assert float(theta[2, 1]) == pytest.approx(ones / workers)
        assert float(aggregator.alpha["w"][2, 1]) == 1 + ones
        assert float(aggregator.beta["w"][2, 1]) == 1 + workers - ones


def test_resets_happen_in_the_named_rounds() -> None:
    sizes = []
    aggregator = MaskAggregator("bayesian", reset_frequency=2)
    for masks in rounds_of_masks(7):
        aggregator.aggregate(masks)
        sizes.append(int((aggregator.alpha["w"] + aggregator.beta["w"])[0, 0]) - 2)
    assert sizes == [3, 6, 3, 6, 3, 6, 3]  # before rounds 3, 5, 7; not before the first
    aggregator.reset()
    assert aggregator.round == 7
    assert aggregator.alpha == {}


def test_tensors_that_come_later_start_from_ones() -> None:
    aggregator = MaskAggregator("bayesian", None)
    aggregator.aggregate([{"a": torch.ones(1)}] * 2)
    theta = aggregator.aggregate([{"a": torch.zeros(1), "b": torch.zeros(1)}, {"b": torch.ones(1)}])
    torch.testing.assert_close(theta, {"a": torch.tensor([2 / 3]), "b": torch.tensor([0.5])})


@pytest.mark.parametrize("method", ["mean", "bayesian"])
def test_the_order_of_workers_makes_no_difference(method: str) -> None:
    """Probabilities instead of masks, whose sums in float32 depend on the order."""
    workers = [{"w": torch.rand(50, generator=seeded(i))} for i in range(7)]
    orders = [[0, 1, 2, 3, 4, 5, 6], [6, 2, 5, 0, 3, 1, 4], [3, 4, 6, 1, 0, 2, 5]]
    naive = {tuple(sum(workers[i]["w"] for i in order).tolist()) for order in orders}  # type: ignore[union-attr]
    assert len(naive) > 1
    thetas = [MaskAggregator(method).aggregate([workers[i] for i in order])["w"] for order in orders]  # type: ignore[arg-type]
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(thetas[0], thetas[2])
    torch.testing.assert_close(thetas[0], torch.stack([w["w"] for w in workers]).mean(0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_masks(dtype: torch.dtype) -> None:
    theta = MaskAggregator().aggregate([{"w": torch.tensor([1, 0, 1]).to(dtype)}, {"w": torch.tensor([1, 0, 0])}])["w"]
    assert theta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert theta.tolist() == [1.0, 0.0, 0.5]


def test_states_go_round() -> None:
    rounds = rounds_of_masks(8)
    aggregator = MaskAggregator("bayesian", reset_frequency=5)
    for masks in rounds[:6]:
        aggregator.aggregate(masks)
    buffer = io.BytesIO()
    torch.save(aggregator.state_dict(), buffer)
    buffer.seek(0)
    other = MaskAggregator("bayesian", reset_frequency=5)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    kept = aggregator.state_dict()
    for masks in rounds[6:]:
        assert torch.equal(aggregator.aggregate(masks)["w"], other.aggregate(masks)["w"])
    assert kept["round"] == 6  # a state is a copy
    assert not torch.equal(kept["alpha"]["w"], aggregator.alpha["w"])


def test_wrong_arguments_and_masks() -> None:
    with pytest.raises(ValueError, match=r"method must be one of .*did you mean 'bayesian'"):
        MaskAggregator("bayes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reset_frequency must be at least 1, got 0"):
        MaskAggregator(reset_frequency=0)
    with pytest.raises(TypeError, match="reset_frequency must be a whole number or None"):
        MaskAggregator(reset_frequency=1.5)  # type: ignore[arg-type]
    aggregator = MaskAggregator()
    ones = torch.ones(2)
    for masks, error, message in (
        ([], ValueError, "at least one tensor of one worker; there are 0"),
        ([{}], ValueError, "there are 1 workers"),
        ({"w": ones}, TypeError, "masks must be a sequence"),
        ([{"w": 1.0}], TypeError, "masks: w must be a tensor, got float"),
        ([{"w": ones.to(torch.complex64)}], TypeError, "masks: w must be real"),
        ([{"w": 2 * ones}], ValueError, "values of w must be from 0 to 1"),
        ([{"w": ones * torch.nan}], ValueError, "values of w must be from 0 to 1"),
        ([{"w": ones}, {"w": torch.ones(3)}], ValueError, r"w comes in different shapes: \[\(2,\), \(3,\)\]"),
    ):
        with pytest.raises(error, match=message):
            aggregator.aggregate(masks)  # type: ignore[arg-type]
    assert aggregator.round == 0
    aggregator.aggregate([{"w": ones}])
    with pytest.raises(ValueError, match="different shapes"):
        aggregator.aggregate([{"w": torch.ones(3)}])
    with pytest.raises(ValueError, match=r"state must hold \['alpha', 'beta', 'round'\], got \['round'\]"):
        aggregator.load_state_dict({"round": 1})
    with pytest.raises(ValueError, match="the same tensors"):
        aggregator.load_state_dict({"round": 1, "alpha": {"w": ones}, "beta": {}})


# ---- and back into models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_go_into_all_models(dtype: torch.dtype) -> None:
    model = convert_to_masked_model(nn.Linear(3, 2, dtype=dtype))
    parameters = [p for p in model.parameters()]
    name = "parametrizations.weight.0.scores"
    theta = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.75, 0.1]])
    bias = model.bias_scores.detach().clone()
    load_probabilities(model, {name: theta}, eps=1e-3)
    probabilities = model.weight_scores.sigmoid()
    assert probabilities.dtype == dtype
    torch.testing.assert_close(probabilities.float(), theta.clamp(1e-3, 1 - 1e-3), rtol=1e-2, atol=4e-3)
    assert torch.equal(model.bias_scores, bias)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.weight_scores.requires_grad


def test_rounds_of_workers_agree_on_the_better_mask() -> None:
    """The whole exchange: workers with different data learn a common mask without changing a weight."""
    torch.manual_seed(0)
    plain = nn.Linear(8, 1, bias=False)
    nn.init.ones_(plain.weight)
    server = MaskedLinear.from_pretrained(plain, MaskOptions(estimator="identity", std=0.0))
    target = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    aggregator = MaskAggregator("bayesian", reset_frequency=2)
    data = [torch.randn(64, 8, generator=seeded(i)) for i in range(4)]
    for _ in range(8):
        sent = []
        for x in data:
            worker = MaskedLinear.from_pretrained(plain, server.parametrizations.weight[0].options)
            worker.load_state_dict(server.state_dict())
            optimizer = torch.optim.Adam([p for p in worker.parameters() if p.requires_grad], lr=0.3)
            for _ in range(10):
                optimizer.zero_grad()
                (worker(x)[:, 0] - x @ target).square().mean().backward()
                optimizer.step()
            sent.append(sample_masks(worker, seeded(len(sent))))
        load_probabilities(server, aggregator.aggregate(sent), eps=0.05)
    (mask,) = (mask for _, mask in named_masks(server))
    assert torch.equal(mask.decisions()[0], target.bool())
    assert torch.equal(server.eval().weight[0], target)


def test_wrong_probabilities_change_nothing() -> None:
    model = MaskedLinear(3, 2)
    weight, bias = "parametrizations.weight.0.scores", "parametrizations.bias.0.scores"
    before = model.weight_scores.detach().clone()
    good = {weight: torch.full((2, 3), 0.5)}
    for wrong, error, message in (
        ({"parametrizations.bias.0.score": torch.ones(2)}, ValueError, f"did you mean '{bias}'"),
        ({bias: torch.ones(3)}, ValueError, r"has shape \(3,\), its scores have \(2,\)"),
        ({bias: torch.tensor([0.5, 1.5])}, ValueError, "from 0 to 1"),
        ({bias: torch.ones(2, dtype=torch.bool)}, TypeError, "must be floating point, got torch.bool"),
    ):
        with pytest.raises(error, match=message):
            load_probabilities(model, good | wrong)
        assert torch.equal(model.weight_scores, before)
    with pytest.raises(ValueError, match="model has no masks"):
        load_probabilities(nn.Linear(2, 2), {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-9, 1e-15, 1e-30])
def test_small_eps_keeps_scores_finite(eps: float, dtype: torch.dtype) -> None:
    scores = sigmoid_inverse(torch.tensor([0.0, 0.5, 1.0], dtype=dtype), eps=eps)
    bound = -math.log(max(eps, 2.0**-52))
    assert scores.tolist() == pytest.approx([-bound, 0.0, bound], rel=2e-3 if eps > 1e-12 else 0.03)
    assert scores.dtype == dtype
