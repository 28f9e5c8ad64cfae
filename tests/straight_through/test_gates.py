"""Gates: probabilities, samples, gradients, evaluation, costs, state, and what is refused."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sthyper.straight_through.gates import Gate, GateEstimator, reinforce_gates
from sthyper.straight_through.penalties import penalty
from sthyper.straight_through.schedules import LinearTemperature
from sthyper.straight_through.unbiased import arm

ESTIMATORS: list[GateEstimator] = ["identity", "probs", "gumbel", "hard_concrete", "reinforce"]
HARD: list[GateEstimator] = ["identity", "probs", "gumbel", "reinforce"]


# ---- probabilities and samples ---------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_probabilities_are_those_asked_for_and_those_of_samples(estimator: GateEstimator) -> None:
    start = torch.tensor([0.1, 0.5, 0.9])
    gate = Gate(3, start, estimator=estimator, seed=1)
    torch.testing.assert_close(gate.probabilities().detach(), start)
    sample = gate.sample(20_000).detach()
    assert sample.shape == (20_000, 3)
    torch.testing.assert_close((sample > 0).float().mean(0), start, atol=0.012, rtol=0)
    torch.testing.assert_close(sample.mean(0), gate.expected().detach(), atol=0.012, rtol=0)
    assert gate.decisions().tolist() == [False, False, True]


@pytest.mark.parametrize("estimator", HARD)
def test_samples_are_zeros_and_ones(estimator: GateEstimator) -> None:
    assert set(Gate(50, estimator=estimator, seed=0).sample(4).unique().tolist()) == {0.0, 1.0}


def test_hard_concrete_lets_parts_pass() -> None:
    sample = Gate(2000, estimator="hard_concrete", seed=0).sample()
    assert ((sample > 0) & (sample < 1)).any()
    assert (sample == 0).any()
    assert (sample == 1).any()


def test_gradients_of_the_estimators() -> None:
    slope = torch.tensor([1.0, -2.0])
    p = torch.tensor([0.2, 0.7])
    for estimator, factor in (("identity", torch.ones(2)), ("probs", p)):
        gate = Gate(2, p, estimator=estimator, seed=0)  # type: ignore[arg-type]
        (gate(torch.ones(5, 2)) * slope).sum().backward()
        assert gate.logits.grad is not None
        torch.testing.assert_close(gate.logits.grad, 5 * slope * factor * p * (1 - p))


def test_the_gradient_of_gumbel_is_that_of_the_soft_variable_and_depends_on_the_temperature() -> None:
    grads = []
    for temperature in (0.3, 3.0):
        gate = Gate(400, estimator="gumbel", temperature=temperature, seed=0)
        gate.sample().sum().backward()
        assert gate.logits.grad is not None
        grads.append(gate.logits.grad)
        assert (gate.logits.grad >= 0).all()
        assert float(gate.logits.grad.max()) <= 0.25 / temperature + 1e-6
    # At a small temperature few gates have large gradients, at a large one all have small ones.
    assert grads[0].std() > 3 * grads[1].std()


def test_a_schedule_moves_the_temperature_with_the_progress() -> None:
    gate = Gate(2, estimator="hard_concrete", temperature=LinearTemperature(2.0, 0.5))
    assert gate.temperature == 2.0
    gate.set_progress(0.5)
    assert (gate.temperature, gate.progress) == (1.25, 0.5)
    with pytest.raises(ValueError, match=r"progress must be from 0 to 1; it is 1\.5"):
        gate.set_progress(1.5)


def test_reinforce_passes_no_gradient_and_its_surrogate_is_unbiased() -> None:
    target = torch.tensor([0.4, 0.8])

    def loss(sample: Tensor) -> Tensor:
        return ((sample - target) ** 2).sum(-1) + sample.prod(-1)

    gate = Gate(2, torch.tensor([0.3, 0.6]), estimator="reinforce", seed=0)
    assert not gate.sample(3).requires_grad
    gate.take_log_probability()
    p = gate.probabilities()
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    chances = (p * outcomes + (1 - p) * (1 - outcomes)).prod(-1)
    (exact,) = torch.autograd.grad((chances * loss(outcomes)).sum(), gate.logits)
    estimates = []
    for _ in range(60):
        value = gate.surrogate(loss(gate.sample(400)))
        estimates.append(torch.autograd.grad(value, gate.logits)[0])
    found = torch.stack(estimates)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exact).abs() < 4 * error).all()
    assert float(error.max().detach()) < 0.01


def test_reinforce_of_several_gates_and_of_a_shared_sample() -> None:
    first, second = Gate(estimator="reinforce", seed=0), Gate(3, estimator="reinforce", seed=1)
    x = torch.randn(6, 3)
    losses = second(first(x)).sum(1)
    together = reinforce_gates(losses, [first, second])
    torch.testing.assert_close(together.detach(), losses.mean())
    together.backward()
    assert first.logits.grad is not None
    assert second.logits.grad is not None
    assert second.logits.grad.abs().sum() > 0
    shared = Gate(estimator="reinforce", per_example=False, seed=0)
    value = shared.surrogate(shared(x).sum(1), baseline=1.0)
    (gradient,) = torch.autograd.grad(value, shared.logits)
    sample = 1.0 if bool((value != 0).any()) else 0.0
    torch.testing.assert_close(gradient, (value.detach() - 1.0) * (sample - 0.5))


def test_reinforce_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="estimator must be 'reinforce'; it is 'identity'"):
        Gate(2).surrogate(torch.zeros(3))
    gate = Gate(2, estimator="reinforce", name="features")
    with pytest.raises(RuntimeError, match="gate 'features' has sampled nothing"):
        gate.surrogate(torch.zeros(3))
    gate.eval()(torch.ones(3, 2))
    gate.evaluation = "sample"
    gate(torch.ones(3, 2))  # evaluation leaves no trace
    with pytest.raises(RuntimeError, match="sampled nothing"):
        gate.surrogate(torch.zeros(3))
    gate.train()(torch.ones(3, 2))
    gate(torch.ones(4, 2))
    with pytest.raises(RuntimeError, match="several sizes"):
        gate.surrogate(torch.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        reinforce_gates(torch.zeros(3), [])


def test_arm_with_given_samples_is_unbiased() -> None:
    gate = Gate(2, torch.tensor([0.3, 0.8]), seed=0)
    weight = torch.tensor([1.5, -0.5])

    def loss(samples: Tensor) -> Tensor:
        with gate.fixed(samples):
            return (gate(torch.ones(len(samples), 2)) @ weight - 0.3) ** 2

    generator = torch.Generator().manual_seed(0)
    (found,) = torch.autograd.grad(arm(loss, gate.logits, n_samples=20_000, generator=generator), gate.logits)
    p = gate.probabilities()
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    chances = (p * outcomes + (1 - p) * (1 - outcomes)).prod(-1)
    (exact,) = torch.autograd.grad((chances * (outcomes @ weight - 0.3) ** 2).sum(), gate.logits)
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0)


# ---- what passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "dim", "shape", "expected"),
    [
        ((), -1, (4, 3), (4, 1)),
        ((), -1, (4,), (4,)),
        (3, -1, (4, 3), (4, 3)),
        (3, -1, (4, 5, 3), (4, 1, 3)),
        (3, 1, (4, 3, 6, 6), (4, 3, 1, 1)),
        ((3, 6), 2, (4, 3, 6, 2), (4, 3, 6, 1)),
        ((3, 6), -1, (4, 2, 3, 6), (4, 1, 3, 6)),
    ],
)
def test_choices_belong_to_an_axis_and_to_examples(
    size: Any, dim: int, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    each, shared = Gate(size, dim=dim, seed=3), Gate(size, dim=dim, seed=3, per_example=False)
    batch = each(torch.ones(shape))
    n = 1 if not each.size else math.prod(each.size)
    torch.testing.assert_close(batch, Gate(size, dim=dim, seed=3).sample(4).reshape(expected).expand(shape))
    one = shared(torch.ones(shape))
    assert (one == one[:1]).all()
    if n > 1:
        assert not (batch == batch[:1]).all()


def test_a_number_passes_or_not() -> None:
    gate = Gate(seed=0)
    assert {float(gate(torch.tensor(2.0)).detach()) for _ in range(20)} == {0.0, 2.0}


def test_evaluation() -> None:
    start = torch.tensor([0.2, 0.5, 0.8])
    x = torch.full((2, 3), 10.0)
    gate = Gate(3, start).eval()
    assert gate(x).tolist() == [[0.0, 0.0, 10.0]] * 2
    expected = Gate(3, start, evaluation="expected").eval()
    torch.testing.assert_close(expected(x).detach(), 10 * start.expand(2, 3))
    sampled = Gate(3, start, evaluation="sample", seed=0).eval()
    assert len(sampled(torch.ones(50, 3)).unique(dim=0)) > 1
    mean = Gate(3, start, estimator="hard_concrete", evaluation="expected").eval()
    torch.testing.assert_close(mean(x)[0] / 10, mean.sample(50_000).mean(0), atol=0.01, rtol=0)


def test_frozen_and_fixed_count_for_a_while() -> None:
    gate = Gate(3, 0.01, seed=0)
    x = torch.randn(4, 3)
    with gate.frozen():
        assert torch.equal(gate(x), x)
        assert torch.equal(gate.eval()(x), x)
    assert not gate(x).any()
    with gate.fixed(torch.tensor([1.0, 0.0, 2.0])):
        torch.testing.assert_close(gate(x), x * torch.tensor([1.0, 0.0, 2.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_passes_a_closed_gate(estimator: GateEstimator, bad: float) -> None:
    gate = Gate(3, estimator=estimator, seed=0)
    x = torch.tensor([[bad, 2.0, bad]], requires_grad=True)
    with gate.fixed(sample := torch.tensor([0.0, 0.0, 1.0], requires_grad=True)):
        out = gate(x)
    assert out[0, :2].tolist() == [0.0, 0.0]
    assert not out[0, 2].isfinite()
    out[0, :2].sum().backward()
    assert sample.grad is not None
    # Finite values that do not pass tell a gate what they would have done.
    assert sample.grad[:2].tolist() == [0.0, 2.0]
    assert x.grad is not None
    assert x.grad[0, :2].tolist() == [0.0, 0.0]
    closed = Gate(3, 0.01, estimator=estimator, seed=0).eval()
    assert not closed(x).any()


def test_a_fixed_sample_has_the_shape_of_one() -> None:
    gate = Gate(3, seed=0, name="encoder")
    for wrong in (torch.ones(()), torch.ones(1), torch.ones(4), torch.ones(2, 2), torch.ones(5, 4, 3)):
        with (
            pytest.raises(ValueError, match=r"gate 'encoder': sample must have the shape \(3,\), or"),
            gate.fixed(wrong),
        ):
            pass
    with pytest.raises(TypeError, match="sample must be a tensor; it is list"), gate.fixed([1.0, 1.0, 1.0]):  # type: ignore[arg-type]
        pass
    with gate.fixed(torch.ones(4, 3)):
        assert gate(torch.ones(4, 3)).shape == (4, 3)
        for x in (torch.ones(5, 3), torch.ones(1, 3), torch.ones(3)):
            with pytest.raises(ValueError, match=r"fixed sample of the shape \(4, 3\), whose first axis is the batch"):
                gate(x)
    with Gate(seed=0).fixed(torch.ones(4)), pytest.raises(TypeError, match="tensor"), gate.fixed(None):  # type: ignore[arg-type]
        pass


def test_dtypes_of_inputs_stay() -> None:
    gate = Gate(3, seed=0)
    assert gate(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert Gate(3, dtype=torch.float64)(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Sequential(nn.Linear(3, 3), gate)(torch.ones(2, 3)).dtype == torch.bfloat16


# ---- costs -----------------------------------------------------------------------------------------------


def test_costs_equal_closed_forms() -> None:
    p = torch.tensor([0.2, 0.7], dtype=torch.float64)
    for estimator in ESTIMATORS:
        gate = Gate(2, p, estimator=estimator, dtype=torch.float64)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
        torch.testing.assert_close(gate.expected_size().detach(), p.sum())
        torch.testing.assert_close(gate.entropy().detach(), entropy)
        cost = penalty([gate], l0=0.5, entropy=2.0)
        torch.testing.assert_close(cost.detach(), 0.5 * p.sum() + 2 * entropy)
        torch.testing.assert_close(penalty([gate], l0=0.5, entropy=2.0, per_gate=True), cost / 2)
        (gradient,) = torch.autograd.grad(gate.expected_size(), gate.logits)
        torch.testing.assert_close(gradient, p * (1 - p))
    sure = Gate(1, 1 - 1e-12, dtype=torch.float64)
    sure.logits.data.fill_(800.0)
    (gradient,) = torch.autograd.grad(sure.entropy(), sure.logits)
    assert float(sure.entropy().detach()) == 0.0
    assert gradient.isfinite().all()


def test_the_penalty_of_a_module_counts_all_of_its_gates() -> None:
    model = nn.Sequential(Gate(2, 0.25), nn.Linear(2, 3), Gate(3, 0.5, dim=1))
    torch.testing.assert_close(penalty(model, l0=1.0).detach(), torch.tensor(2.0))
    with pytest.raises(ValueError, match="gates must be at least one"):
        penalty(nn.Linear(2, 2), l0=1.0)
    with pytest.raises(TypeError, match="there is Linear"):
        penalty([nn.Linear(2, 2)], l0=1.0)  # type: ignore[list-item]


def test_penalties_close_gates() -> None:
    gate = Gate(3, 0.5, seed=0)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        # The first gate is worth more than it costs.
        loss = (1 - gate.sample(16)[:, 0]).mean() + penalty([gate], l0=0.3)
        loss.backward()
        optimizer.step()
    assert gate.decisions().tolist() == [True, False, False]


# ---- state -----------------------------------------------------------------------------------------------


def test_a_seed_gives_draws_of_its_own_and_the_state_goes_on() -> None:
    first, second, other = Gate(20, seed=5), Gate(20, seed=5), Gate(20, seed=6)
    torch.manual_seed(0)
    drawn = first.sample()
    torch.manual_seed(1)
    assert torch.equal(drawn, second.sample())
    assert not torch.equal(drawn, other.sample())
    first.set_progress(0.5)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    fresh = Gate(20, seed=9)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    copies = [fresh, copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    following = first.sample()
    for one in copies:
        assert torch.equal(one.sample(), following)
        assert one.progress == 0.5
    first.reseed(5)
    assert torch.equal(first.sample(), drawn)


def test_a_state_from_before_the_first_draw_rewinds() -> None:
    gate = Gate(20, seed=5)
    state = copy.deepcopy(gate.state_dict())
    drawn = gate.sample()
    assert not torch.equal(gate.sample(), drawn)
    gate.load_state_dict(state)
    assert torch.equal(gate.sample(), drawn)
    other = Gate(20, seed=6)
    other.load_state_dict(state)
    assert torch.equal(other.sample(), drawn)
    assert Gate(20).state_dict()["_extra_state"]["generator"] is None
    assert Gate(20, seed=5, device="meta").state_dict()["_extra_state"]["generator"] is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_seeded_gate_refuses_to_be_drawn_again_by_checkpointing(reentrant: bool) -> None:
    x = torch.randn(8, 20, requires_grad=True)
    gate = Gate(20, seed=0, name="encoder")
    out = checkpoint(lambda x: gate(x).square(), x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="gate 'encoder' is run again by activation checkpointing.*seed=None"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gates_without_a_seed_may_be_checkpointed(reentrant: bool) -> None:
    x = torch.randn(8, 20, requires_grad=True)
    gate = Gate(20)
    gradients = []
    for through in (lambda f, x: checkpoint(f, x, use_reentrant=reentrant), lambda f, x: f(x)):
        torch.manual_seed(0)
        gate.zero_grad()
        through(lambda x: gate(x).square(), x).sum().backward()
        gradients.append(gate.logits.grad.clone())  # type: ignore[union-attr]
    assert torch.equal(*gradients)


def test_checkpointing_leaves_no_sample_of_reinforce_behind() -> None:
    gate = Gate(20, estimator="reinforce")
    weight = torch.ones(20, requires_grad=True)
    losses = checkpoint(lambda w: (gate(torch.ones(8, 20)) * w.square()).sum(-1), weight, use_reentrant=False)
    gate.surrogate(losses).backward()
    with pytest.raises(RuntimeError, match="has sampled nothing"):
        gate.take_log_probability()


def test_without_a_seed_draws_are_torchs() -> None:
    gate = Gate(20)
    torch.manual_seed(3)
    drawn = gate.sample()
    torch.manual_seed(3)
    assert torch.equal(drawn, gate.sample())
    assert list(gate.parameters()) == [gate.logits]


def test_probabilities_can_be_set() -> None:
    for estimator in ("identity", "hard_concrete"):
        gate = Gate(2, estimator=estimator)  # type: ignore[arg-type]
        gate.set_probabilities(torch.tensor([0.1, 0.8]))
        torch.testing.assert_close(gate.probabilities().detach(), torch.tensor([0.1, 0.8]))
    with pytest.raises(ValueError, match="probability must be larger than 0"):
        gate.set_probabilities(1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_on_a_gpu(estimator: GateEstimator) -> None:
    gate = Gate(3, 0.9, estimator=estimator, seed=0).cuda()
    x = torch.ones(4, 3, device="cuda")
    out = gate(x)
    assert out.device.type == "cuda"
    moved = Gate(3, 0.9, estimator=estimator, seed=4)
    moved.load_state_dict(gate.state_dict())
    assert torch.equal(moved.cuda().sample(), gate.sample())


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 0.0}, r"probability must be larger than 0 and smaller than 1; it is 0\.0"),
        ({"probability": 1.0}, "probability must be"),
        ({"probability": math.nan}, "probability must be"),
        ({"probability": torch.full((3,), 0.5)}, "broadcast to size"),
        ({"size": 0}, "size must be at least 1; it is 0"),
        ({"estimator": "identitty"}, r"estimator must be one of .* \(did you mean 'identity'\?\)"),
        ({"evaluation": "treshold"}, r"did you mean 'threshold'"),
        ({"estimator": "gumbel", "temperature": 0.0}, r"temperature must be .* above 0; it is 0\.0"),
        ({"estimator": "gumbel", "temperature": lambda progress: 1 - progress}, "temperature must be .* above 0"),
        ({"temperature": 0.5}, "temperature is for the estimators .* 'identity' has none"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**{"size": 2, **options})


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"size must be a whole number or a tuple of them; it is \(2\.5,\)"):
        Gate((2.5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a probability is given as Gate\(probability=\.\.\.\)"):
        Gate(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="probability must be a number or a tensor; it is 'x'"):
        Gate(3, "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="per_example must be True or False; it is 'no'"):
        Gate(3, per_example="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dim must be a whole number, an axis of the input; it is 1\.5"):
        Gate(3, dim=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="temperature must be a number"):
        Gate(2, estimator="gumbel", temperature="warm")  # type: ignore[arg-type]


def test_bad_inputs() -> None:
    with pytest.raises(
        ValueError, match=r"gate 'encoder' has \(3,\) choices at dim 1; the input has the shape \(2, 4\)"
    ):
        Gate(3, dim=1, name="encoder")(torch.ones(2, 4))
    with pytest.raises(ValueError, match="dim -1 is the first axis .* per_example=False"):
        Gate(3)(torch.ones(3))
    assert Gate(3, per_example=False)(torch.ones(3)).shape == (3,)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_penalties(weight: float) -> None:
    for argument in ("l0", "entropy"):
        with pytest.raises(ValueError, match=f"{argument} must be at least 0 and finite"):
            penalty([Gate(2)], **{argument: weight})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="l0 must be a number"):
        penalty([Gate(2)], l0="much")  # type: ignore[arg-type]


# ---- transforms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gates_compile(estimator: GateEstimator) -> None:
    gate = Gate(4, 0.6, estimator=estimator)
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=estimator != "reinforce")
    x = torch.ones(500, 4)
    out = compiled(x)
    assert 0.5 < float((out.detach() > 0).float().mean()) < 0.7
    if estimator != "reinforce":
        out.sum().backward()
        assert gate.logits.grad is not None
        assert (gate.logits.grad > 0).all()


@pytest.mark.parametrize("estimator", ["identity", "probs", "gumbel", "hard_concrete"])
def test_gates_under_vmap(estimator: GateEstimator) -> None:
    gate = Gate(4, 0.6, estimator=estimator)

    def loss(logits: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(gate, {"logits": logits}, (torch.ones(3, 4),))
        return out.sum()

    many = gate.logits.detach().expand(20, 4)
    values = torch.vmap(loss, randomness="different")(many)
    gradients = torch.vmap(torch.func.grad(loss), randomness="different")(many)
    assert len(values.unique()) > 1
    assert gradients.shape == (20, 4)
    assert (gradients >= 0).all()
