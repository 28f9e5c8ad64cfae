"""Choices: probabilities, samples, gradients, mixtures, read-out in the terms of a domain, state, what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sthyper.config_space import choice, finrange, logfinrange, logordinal, ordinal, uniform
from sthyper.straight_through.choices import Choice, ChoiceEstimator
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.penalties import penalty
from sthyper.straight_through.schedules import ExponentialTemperature

ESTIMATORS: list[ChoiceEstimator] = ["identity", "gumbel"]
START = [0.2, 0.5, 0.3]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_are_one_hot_with_the_probabilities_asked_for(estimator: ChoiceEstimator) -> None:
    part = Choice(["a", "b", "c"], START, estimator=estimator, seed=0)
    torch.testing.assert_close(part.probabilities().detach(), torch.tensor(START))
    sample = part.sample(20_000).detach()
    assert torch.equal(sample.sum(1), torch.ones(20_000))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(sample.mean(0), torch.tensor(START), atol=0.012, rtol=0)
    assert part.sample().shape == (3,)


def test_the_gradient_of_identity_is_that_of_the_probabilities() -> None:
    part = Choice(3, START, seed=0)
    slope = torch.tensor([1.0, -2.0, 0.5])
    (found,) = torch.autograd.grad((part.sample(7) * slope).sum(), part.logits)
    (expected,) = torch.autograd.grad(7 * (part.probabilities() * slope).sum(), part.logits)
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_gumbel_depends_on_the_temperature_which_falls() -> None:
    grads = []
    for progress in (0.0, 1.0):
        part = Choice(3, estimator="gumbel", temperature=ExponentialTemperature(5.0, 0.1), seed=0)
        part.set_progress(progress)
        (gradient,) = torch.autograd.grad(part.sample(200)[:, 0].sum(), part.logits)
        grads.append(gradient)
    assert not torch.allclose(grads[0], grads[1], rtol=0.1)
    # At a high temperature that of softmax(noise / T): all of nearly equal weights.
    torch.testing.assert_close(grads[0], 200 / 5 * torch.tensor([2 / 9, -1 / 9, -1 / 9]), rtol=0.2, atol=0.0)


def test_choices_find_the_better_option() -> None:
    for estimator in ESTIMATORS:
        part = Choice(["bad", "good", "worse"], estimator=estimator, seed=1)
        optimizer = torch.optim.Adam(part.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            (part.sample(16) @ torch.tensor([0.5, 0.0, 1.0])).mean().backward()
            optimizer.step()
        assert part.value() == "good"
        assert part.by_option()["good"] > 0.8


# ---- outputs ---------------------------------------------------------------------------------------------


def test_each_example_gets_the_output_of_its_option() -> None:
    part = Choice(["relu", "tanh"], seed=0)
    x = torch.randn(40, 3)
    outputs = [x.relu(), x.tanh()]
    mixed = part(outputs)
    weights = Choice(["relu", "tanh"], seed=0).weights(40)
    rows = torch.stack(outputs, 1)[torch.arange(40), weights.argmax(1)]
    torch.testing.assert_close(mixed, rows)
    assert 0 < int(weights.argmax(1).sum()) < 40
    torch.testing.assert_close(Choice(["relu", "tanh"], seed=0)(torch.stack(outputs)), mixed)


def test_a_batch_may_share_a_sample() -> None:
    part = Choice(["relu", "tanh"], seed=0, per_example=False)
    x = torch.randn(40, 3)
    for _ in range(8):
        mixed = part([x.relu(), x.tanh()])
        assert torch.equal(mixed, x.relu()) or torch.equal(mixed, x.tanh())


def test_evaluation() -> None:
    x = torch.randn(5, 2)
    outputs = [x, 2 * x, 3 * x]
    torch.testing.assert_close(Choice(3, START).eval()(outputs), 2 * x)
    mixture = Choice(3, START, evaluation="expected").eval()(outputs)
    torch.testing.assert_close(mixture, (0.2 + 2 * 0.5 + 3 * 0.3) * x)
    sampled = Choice(3, START, evaluation="sample", seed=0).eval()
    assert len({float(sampled([x, 2 * x, 3 * x]).sum().detach()) for _ in range(10)}) > 1


def test_numbers_come_with_a_gradient() -> None:
    part = Choice(logfinrange(0.001, 0.1, 3), START)
    with part.fixed(torch.tensor([0.0, 0.0, 1.0])):
        assert float(part.number(part.weights())) == pytest.approx(0.1)
    number = part.number(part.sample(6))
    assert number.shape == (6,)
    (found,) = torch.autograd.grad(number.sum(), part.logits)
    p = torch.tensor(START)
    mean = (p * part.numbers).sum()
    torch.testing.assert_close(found, 6 * p * (part.numbers - mean))
    with pytest.raises(TypeError, match=r"choice 'act': options \['a', 'b'\] are no numbers"):
        Choice(["a", "b"], name="act").number(torch.zeros(2))


# ---- domains ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "values", "numeric"),
    [
        (choice(["a", "b"]), ("a", "b"), False),
        (ordinal(["small", "large"], kind="equal"), ("small", "large"), False),
        (logordinal([1, 10, 100]), (1, 10, 100), True),
        (finrange(0.0, 1.0, 3), (0.0, 0.5, 1.0), True),
        (logfinrange(1, 100, 3, cast_int=True), (1, 10, 100), True),
        (choice([False, True]), (False, True), True),
        ([0.5, 2.0], (0.5, 2.0), True),
        (3, (0, 1, 2), True),
    ],
)
def test_the_read_out_is_in_the_terms_of_the_domain(options: Any, values: tuple[Any, ...], numeric: bool) -> None:
    part = Choice(options)
    assert part.options == values
    assert part.numeric is numeric
    for value in values:
        part.set_value(value)
        found = part.value()
        assert (found, type(found)) == (value, type(value))
        assert part.domain.is_valid(found)
        assert part.by_option()[value] == pytest.approx(0.99)
    with pytest.raises(ValueError, match="17"):
        part.set_value("17")


def test_costs_equal_closed_forms() -> None:
    p = torch.tensor(START, dtype=torch.float64)
    part = Choice(3, START, costs=[1.0, 2.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(part.entropy().detach(), -(p * p.log()).sum())
    torch.testing.assert_close(part.expected_size().detach(), (p * torch.tensor([1.0, 2.0, 10.0])).sum())
    free, gate = Choice(2), Gate(2, 0.25)
    cost = penalty(nn.ModuleList([part, free, gate]), l0=0.1)
    torch.testing.assert_close(cost.detach(), 0.1 * (p @ torch.tensor([1.0, 2.0, 10.0], dtype=p.dtype) + 0.5))
    torch.testing.assert_close(penalty([part, gate], l0=0.1, per_gate=True), penalty([part, gate], l0=0.1) / 3)
    with pytest.raises(ValueError, match=r"has no costs; give each option one"):
        free.expected_size()


# ---- state -----------------------------------------------------------------------------------------------


def test_state_and_copies_go_on() -> None:
    part = Choice(4, seed=3, estimator="gumbel", temperature=ExponentialTemperature(1.0, 0.5))
    part.sample(3)
    part.set_progress(1.0)
    fresh = Choice(4, seed=8, estimator="gumbel", temperature=ExponentialTemperature(1.0, 0.5))
    fresh.load_state_dict(part.state_dict())
    copies = [fresh, copy.deepcopy(part), pickle.loads(pickle.dumps(part))]
    following = part.sample(5)
    for one in copies:
        assert torch.equal(one.sample(5), following)
        assert one.temperature == 0.5
    assert list(dict(part.named_parameters())) == ["logits"]
    assert "numbers" not in part.state_dict()


def test_seeds_matter() -> None:
    assert not torch.equal(Choice(5, seed=0).sample(20), Choice(5, seed=1).sample(20))


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": 1}, "options must be at least two; it is 1"),
        ({"options": choice(["a"])}, "options must be at least two"),
        ({"probabilities": [0.5, 0.5]}, "probabilities must be 3 .* there are 2"),
        ({"probabilities": [0.0, 0.5, 0.5]}, "larger than 0, smaller than 1 and sum to 1"),
        ({"probabilities": [0.2, 0.2, 0.2]}, "sum to 1"),
        ({"probabilities": [math.nan, 0.5, 0.5]}, "sum to 1"),
        ({"estimator": "gumble"}, "did you mean 'gumbel'"),
        ({"evaluation": "expectd"}, "did you mean 'expected'"),
        ({"temperature": 0.5}, "temperature is for the estimators"),
        ({"estimator": "gumbel", "temperature": -1.0}, r"temperature must be .* above 0; it is -1\.0"),
        ({"costs": [1.0, 2.0]}, "costs must be 3"),
        ({"costs": [1.0, 2.0, -1.0]}, "costs must be finite and at least 0"),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(**{"options": 3, **arguments})


@pytest.mark.parametrize("options", [uniform(0.0, 1.0), "relu", 2.5, True])
def test_bad_options(options: Any) -> None:
    with pytest.raises(TypeError, match="options must be a finite domain"):
        Choice(options)


def test_outputs_must_be_as_many_as_options() -> None:
    with pytest.raises(ValueError, match=r"choice 'act' has 3 options; outputs of 2 were given"):
        Choice(3, name="act")([torch.ones(2), torch.ones(2)])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_option_that_is_not_chosen_adds_nothing(estimator: ChoiceEstimator) -> None:
    chooser = Choice(2, [0.9, 0.1], estimator=estimator, seed=0)
    sample = torch.tensor([1.0, 0.0], requires_grad=True)
    bad = torch.tensor([math.nan, math.inf, 5.0], requires_grad=True)
    with chooser.fixed(sample):
        out = chooser([torch.tensor([1.0, 2.0, 3.0]), bad])
    assert out.tolist() == [1.0, 2.0, 3.0]
    out.sum().backward()
    assert sample.grad is not None
    assert sample.grad.tolist() == [6.0, 5.0]
    assert bad.grad is not None
    assert bad.grad.tolist() == [0.0, 0.0, 0.0]
    assert chooser.eval()([torch.ones(3), bad]).tolist() == [1.0, 1.0, 1.0]
    with chooser.fixed(torch.tensor([0.0, 1.0])):
        assert chooser([torch.ones(3), bad])[0].isnan()


def test_fixed_samples_of_another_shape_are_refused() -> None:
    chooser = Choice(["a", "b"], name="act")
    for wrong in (torch.ones(3), torch.ones(()), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"choice 'act': sample must have the shape \(2,\)"), chooser.fixed(wrong):
            pass
    with chooser.fixed(torch.tensor([[1.0, 0.0]] * 4)):
        assert chooser([torch.ones(4, 3)] * 2).shape == (4, 3)
        for outputs in ([torch.ones(1, 3)] * 2, [torch.ones(())] * 2):
            with pytest.raises(ValueError, match="weights for a batch of 4; an output has the shape"):
                chooser(outputs)


def test_a_seeded_choice_refuses_to_be_drawn_again_by_checkpointing() -> None:
    chooser = Choice(2, seed=0)
    x = torch.randn(8, 3, requires_grad=True)
    out = checkpoint(lambda x: chooser([x.sin(), x.cos()]), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="choice is run again by activation checkpointing"):
        out.sum().backward()


def test_a_state_from_before_the_first_draw_rewinds_a_choice() -> None:
    chooser = Choice(4, seed=3)
    state = copy.deepcopy(chooser.state_dict())
    drawn = chooser.sample(20)
    chooser.load_state_dict(state)
    assert torch.equal(chooser.sample(20), drawn)


def test_bad_types_of_other_arguments() -> None:
    with pytest.raises(TypeError, match=r"probabilities must be numbers, one for each option; they are \['x', 'y'\]"):
        Choice(["a", "b"], probabilities=["x", "y"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="per_example must be True or False; it is 'no'"):
        Choice(2, per_example="no")  # type: ignore[arg-type]
