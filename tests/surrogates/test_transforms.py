"""Transforms of targets: increasing, invertible, and well-behaved for odd data."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sthyper.surrogates.transforms import (
    BoxCox,
    HalfLog,
    Identity,
    Standardize,
    TailLog,
    TargetTransform,
    target_transform,
)

NAMES = ("standardize", "taillog", "halflog", "boxcox", "identity")
ODD = {
    "one": [3.0],
    "constant": [2.0] * 7,
    "two": [1.0, 5.0],
    "ties": [1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0],
    "most are the best": [1.0] * 6 + [2.0, 50.0],
    "most are the worst": [1.0, 2.0] + [9.0] * 6,
    "huge": [1e300, 3.0, 2e299, 5e299, 1.0],
    "tiny": [1e-300, 2e-300, 3e-300],
    "close to each other": [1.0, 1.0 + 1e-13, 1.0 + 2e-13],
    "one outlier": [1.0, 1.1, 0.9, 1.2, 1e250],
}


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fitted(name: str, Y: Tensor) -> TargetTransform:
    transform = target_transform(name)
    transform.fit(Y)
    return transform


def test_names() -> None:
    kinds = dict(zip(NAMES, (Standardize, TailLog, HalfLog, BoxCox, Identity), strict=True))
    assert {name: type(target_transform(name)) for name in NAMES} == kinds
    assert target_transform("halflog") is not target_transform("halflog")
    with pytest.raises(ValueError, match="target_transform='halflogs' is unknown.*halflog"):
        target_transform("halflogs")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", list(ODD))
def test_odd_data_stay_finite_and_in_order(name: str, case: str) -> None:
    Y = tensor(ODD[case])
    transform = fitted(name, Y)
    Z = transform.forward(Y)
    assert torch.isfinite(Z).all()
    order = Y.argsort()
    assert (Z[order].diff() >= 0).all()
    # Targets that differ by much stay apart, and equal ones equal.
    steps = Y[order].diff()
    clear = steps > 1e-6 * float(Y.abs().max())
    assert name == "boxcox" or (Z[order].diff()[clear] > 0).all()
    assert (Z[order].diff()[steps == 0] == 0).all()
    assert torch.isfinite(transform.inverse(Z)).all()


@pytest.mark.parametrize("name", ["standardize", "taillog", "halflog", "boxcox"])
@pytest.mark.parametrize("case", ["constant", "two", "ties", "most are the best", "most are the worst", "huge"])
def test_models_see_mean_0_and_deviation_1(name: str, case: str) -> None:
    Y = tensor(ODD[case])
    Z = fitted(name, Y).forward(Y)
    assert float(Z.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(Z.std(correction=0)) == pytest.approx(0.0 if case == "constant" else 1.0, abs=1e-6)


def test_identity_leaves_targets() -> None:
    Y = tensor([3.0, -1.0])
    transform = fitted("identity", Y)
    assert torch.equal(transform.forward(Y), Y)
    assert torch.equal(transform.inverse(Y), Y)


sizes = st.floats(min_value=-1e6, max_value=1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@pytest.mark.parametrize("name", ["standardize", "taillog", "halflog", "identity"])
@given(values=st.lists(sizes, min_size=1, max_size=12), new=st.lists(sizes, min_size=2, max_size=5))
def test_the_inverse_gives_targets_back(name: str, values: list[float], new: list[float]) -> None:
    Y, others = tensor(values), tensor(new).sort().values
    transform = fitted(name, Y)
    scale = float(torch.cat([Y, others]).abs().max())
    assert torch.allclose(transform.inverse(transform.forward(Y)), Y, rtol=1e-9, atol=1e-9 * max(scale, 1.0))
    Z = transform.forward(others)
    assert (Z.diff() >= 0).all()
    # What cannot be given back to the last digit: a difference on the linear scale against one on the logarithmic.
    back = transform.inverse(Z)
    assert torch.allclose(back, others, rtol=1e-6, atol=1e-9 * max(scale, 1.0))


@given(
    values=st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=12),
    power=st.sampled_from([-1.0, -0.3, 0.0, 5e-8, -5e-8, 0.5, 1.0, 2.0]),
)
def test_box_cox_gives_targets_back(values: list[float], power: float) -> None:
    Y = tensor(values)
    transform = BoxCox(power)
    transform.fit(Y)
    assert torch.allclose(transform.inverse(transform.forward(Y)), Y, rtol=1e-6)
    assert (transform.forward(Y.sort().values).diff() >= 0).all()


@pytest.mark.parametrize("power", [-1.0, -1e-5, -1e-8, 0.0, 1e-8, 1e-5, 0.5, 2.0])
def test_box_cox_is_scipys_before_the_standardisation(power: float) -> None:
    Y = tensor([0.01, 0.5, 1.0, 3.0, 200.0])
    transform = BoxCox(power)
    transform.fit(Y)
    expected = torch.from_numpy(scipy.special.boxcox(Y.numpy(), power))
    assert torch.allclose(transform.forward(Y) * transform.std + transform.mean, expected, rtol=1e-9, atol=1e-9)
    assert transform.mean == pytest.approx(float(expected.mean()))
    assert transform.std == pytest.approx(float(expected.std(correction=0)))


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_box_cox_refuses_targets_that_are_not_positive(least: float) -> None:
    with pytest.raises(ValueError, match=f"boxcox_transform needs positive targets, the least one is {least:g}"):
        BoxCox().fit(tensor([1.0, least, 2.0]))


def test_predictions_beyond_the_range_of_box_cox_can_be_inverted() -> None:
    for power in (-1.0, 0.0, 0.5, 2.0):
        transform = BoxCox(power)
        transform.fit(tensor([1.0, 2.0, 4.0]))
        Y = transform.inverse(torch.linspace(-50.0, 50.0, 101, dtype=torch.float64))
        assert torch.isfinite(Y).all()
        assert (Y >= 0).all()
        assert (Y.diff() >= 0).all()


def test_half_log_is_linear_below_the_median_and_logarithmic_above() -> None:
    Y = tensor([1.0, 2.0, 3.0, 4.0, 13.0])
    transform = HalfLog()
    transform.fit(Y)
    assert (transform.median, transform.spread) == (3.0, 2.0)
    # u = (y - 3) / 2
    expected = tensor([-1.0, -0.5, 0.0, math.log(1.5), math.log(6.0)])
    assert torch.allclose(transform.forward(Y) * transform.std + transform.mean, expected)
    # Better values than all so far keep their distances.
    better = transform.forward(tensor([-1.0, 0.0, 1.0]))
    assert torch.allclose(better.diff(), (1 / (2 * transform.std)) * torch.ones(2).double())


def test_tail_log_is_linear_as_far_above_the_median_as_below() -> None:
    Y = tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 2.5])
    transform = TailLog()
    transform.fit(Y)
    assert (transform.median, transform.spread) == (3.0, 2.0)
    # u = (y - 3) / 2 up to 1, then 1 + log(u)
    expected = tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.0 + math.log(3.0), -0.25])
    assert torch.allclose(transform.forward(Y) * transform.std + transform.mean, expected)


@pytest.mark.parametrize("name", ["taillog", "halflog"])
def test_an_outlier_does_not_set_the_scale_of_logarithms(name: str) -> None:
    Y = tensor([1.0, 1.1, 0.9, 1.2, 1.05, 1e6])
    standard, half = fitted("standardize", Y).forward(Y), fitted(name, Y).forward(Y)
    assert float(standard[3] - standard[2]) < 1e-5
    assert float(half[3] - half[2]) > 0.2


def test_with_most_targets_the_best_logarithms_take_the_next_difference_as_its_unit() -> None:
    for kind in (HalfLog, TailLog):
        transform = kind()
        transform.fit(tensor([1.0] * 6 + [1.5, 50.0]))
        assert (transform.median, transform.spread) == (1.0, 0.5)
        constant = kind()
        constant.fit(tensor([4.0, 4.0]))
        assert (constant.median, constant.spread) == (4.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_all_that_was_learned(name: str) -> None:
    Y = tensor([1.0, 4.0, 2.0, 9.0, 30.0])
    transform = fitted(name, Y)
    state = transform.state_dict()
    assert all(type(value) is float for value in state.values())
    copy = target_transform(name)
    copy.load_state_dict(state)
    new = tensor([0.5, 5.0, 100.0])
    assert torch.equal(copy.forward(new), transform.forward(new))
    assert torch.equal(copy.inverse(copy.forward(new)), transform.inverse(transform.forward(new)))


def test_a_fit_replaces_the_last_one() -> None:
    for name in ("standardize", "taillog", "halflog"):
        transform = fitted(name, tensor([1.0, 2.0, 3.0]))
        transform.fit(tensor([10.0, 20.0, 60.0]))
        again = fitted(name, tensor([10.0, 20.0, 60.0]))
        assert transform.state_dict() == again.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_are_differentiable_and_keep_shapes(name: str) -> None:
    transform = fitted(name, tensor([1.0, 2.0, 4.0, 7.0]))
    Y = tensor([1.5, 3.0, 6.0]).requires_grad_()
    assert torch.autograd.gradcheck(transform.forward, Y)
    assert torch.autograd.gradcheck(transform.inverse, transform.forward(Y).detach().requires_grad_())
    assert transform.forward(torch.ones(2, 3).double()).shape == (2, 3)


@pytest.mark.parametrize("name", ["standardize", "taillog", "halflog"])
@pytest.mark.parametrize("unit", [1e-25, 1e-12, 1.0, 1e12])
def test_the_unit_of_the_targets_makes_no_difference(name: str, unit: float) -> None:
    Y = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0, 2.6]).double()
    expected, found = target_transform(name), target_transform(name)
    expected.fit(Y)
    found.fit(Y * unit)
    assert torch.allclose(found.forward(Y * unit), expected.forward(Y), rtol=1e-9)


@pytest.mark.parametrize("name", ["taillog", "halflog"])
def test_a_huge_penalty_leaves_the_others_apart(name: str) -> None:
    Y = torch.tensor([0.3, 0.1, 0.4, 0.15, 0.9, 1e308]).double()
    transform = target_transform(name)
    transform.fit(Y)
    Z = transform.forward(Y)
    assert torch.isfinite(Z).all()
    assert (Z.sort().values.diff() > 1e-4).all()
