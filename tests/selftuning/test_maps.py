from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sthyper.config_space import (
    Domain,
    choice,
    finrange,
    lograndint,
    loguniform,
    quniform,
    randint,
    reverseloguniform,
    uniform,
)
from sthyper.selftuning.maps import (
    MAPS,
    Above,
    Below,
    Between,
    Exponential,
    LogBetween,
    Logit,
    ReverseLogBetween,
    Unbounded,
    ValueMap,
    inverse_softplus,
    map_between,
    map_of_domain,
    named_map,
    robustify,
)

BOUNDED: list[ValueMap] = [
    Between(-2.0, 5.0),
    Between(0.0, 0.9),
    LogBetween(1e-6, 1e-2),
    ReverseLogBetween(0.0, 0.999),
    Above(0.5),
    Below(-0.5),
    Exponential(),
    Unbounded(),
]


@pytest.mark.parametrize("value_map", BOUNDED, ids=repr)
@given(raw=st.floats(-6, 6))
def test_round_trip(value_map: ValueMap, raw: float) -> None:
    u = torch.tensor(raw, dtype=torch.float64)
    value = value_map(u)
    assert value_map.lower < float(value) < value_map.upper
    assert float(value_map.inverse(value)) == pytest.approx(raw, abs=1e-8)


@pytest.mark.parametrize("value_map", BOUNDED, ids=repr)
def test_increasing_differentiable_and_between_the_bounds_in_float32(value_map: ValueMap) -> None:
    raw = torch.linspace(-80, 80, 2001, requires_grad=True)
    value = value_map(raw)
    (gradient,) = torch.autograd.grad(value.sum(), raw)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert (gradient >= 0).all()
    assert (value.diff() >= 0).all()
    assert value.min() >= value_map.lower - 1e-6
    assert value.max() <= value_map.upper + 1e-6


def test_closed_forms() -> None:
    u = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    sigmoid = 1 / (1 + torch.exp(-u))
    torch.testing.assert_close(Between(1.0, 3.0)(u), 1 + 2 * sigmoid)
    torch.testing.assert_close(LogBetween(0.1, 10.0)(u), 10 ** (2 * sigmoid - 1))
    torch.testing.assert_close(ReverseLogBetween(0.0, 0.99)(u), 1 - 0.01**sigmoid)
    torch.testing.assert_close(Above(2.0)(u), 2 + torch.log1p(torch.exp(u)))
    torch.testing.assert_close(Below(2.0)(u), 2 - torch.log1p(torch.exp(2 - u)))
    torch.testing.assert_close(Logit()(sigmoid), u)
    # Far below its bound it is the number itself, unlike a decreasing map.
    assert float(Below(0.0)(torch.tensor(-30.0))) == pytest.approx(-30, abs=1e-6)


@given(st.floats(1e-30, 1e30))
def test_the_inverse_of_softplus_in_float32(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float32)
    u = inverse_softplus(value)
    assert torch.isfinite(u)
    # Far below zero softplus is exp: half a unit in the last place of u is that much of the value.
    rtol = 2e-6 + abs(float(u)) * 2**-23 if u < 0 else 2e-6
    torch.testing.assert_close(torch.nn.functional.softplus(u), value, rtol=rtol, atol=0)


def test_the_inverse_of_softplus_where_the_naive_form_overflows() -> None:
    assert float(inverse_softplus(torch.tensor(500.0))) == 500.0


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.1, math.nan, math.inf])
def test_on_a_bound_or_outside(value: float) -> None:
    with pytest.raises(ValueError, match=r"larger than 0\.0 and smaller than 1\.0"):
        Between(0.0, 1.0).inverse(value)


def test_bad_bounds() -> None:
    for lower, upper in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="bounds must be finite"):
            Between(lower, upper)
    with pytest.raises(ValueError, match="lower must be positive"):
        LogBetween(0.0, 1.0)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        ReverseLogBetween(0.0, 1.0)


@pytest.mark.parametrize(
    ("lower", "upper", "log", "expected"),
    [
        (0.0, 2.0, False, Between(0.0, 2.0)),
        (0.1, 2.0, True, LogBetween(0.1, 2.0)),
        (1.0, None, False, Above(1.0)),
        (1.0, math.inf, False, Above(1.0)),
        (-math.inf, 1.0, False, Below(1.0)),
        (None, None, False, Unbounded()),
        (0.0, None, True, Exponential()),
    ],
)
def test_map_between(lower: float | None, upper: float | None, log: bool, expected: ValueMap) -> None:
    assert map_between(lower, upper, log) == expected


def test_map_between_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="lower < upper"):
        map_between(2.0, 1.0)
    with pytest.raises(ValueError, match="bounds must be finite"):
        map_between(1.0, None, log=True)


def test_named_maps() -> None:
    assert named_map("s_sigmoid", 1.0, 2.0) == Between(1.0, 2.0)
    assert named_map("sigmoid") == Between(0.0, 1.0)
    assert named_map("lower_softplus", lower=2.0) == Above(2.0)
    assert named_map("upper_softplus", upper=2.0) == Below(2.0)
    assert named_map("softplus") == Above(0.0)
    assert {name: type(named_map(name)) for name in ("linear", "exp", "logit")} == {
        "linear": Unbounded,
        "exp": Exponential,
        "logit": Logit,
    }
    assert len(MAPS) == 8
    with pytest.raises(ValueError, match=r"got 'sofplus' \(did you mean 'softplus'\?\)"):
        named_map("sofplus")
    with pytest.raises(ValueError, match="'s_sigmoid' needs upper bound"):
        named_map("s_sigmoid", 1.0)
    with pytest.raises(ValueError, match="'exp' has no lower bound"):
        named_map("exp", 1.0)


def test_domains() -> None:
    assert map_of_domain(uniform(0, 0.9), "x") == (Between(0.0, 0.9), False)
    assert map_of_domain(loguniform(1e-6, 1e-2), "x") == (LogBetween(1e-6, 1e-2), False)
    assert map_of_domain(reverseloguniform(0, 0.9), "x") == (ReverseLogBetween(0.0, 0.9), False)
    assert map_of_domain(randint(0, 4), "x") == (Between(-0.5, 4.5), True)
    assert map_of_domain(lograndint(1, 64), "x") == (LogBetween(0.5, 64.5), True)


@pytest.mark.parametrize(
    "domain", [choice(["a", "b"]), finrange(0, 1, 3), quniform(0, 1, 0.1), uniform(1, 1)], ids=repr
)
def test_domains_that_are_not_tuned_inside(domain: Domain) -> None:
    with pytest.raises(ValueError, match="hyperparameter 'x'"):
        map_of_domain(domain, "x")


def test_robustify() -> None:
    assert robustify(0.0, 0.0, 2.0, 0.01) == pytest.approx(0.02)
    assert robustify(2.0, 0.0, 2.0, 0.01) == pytest.approx(1.98)
    assert robustify(1.0, 0.0, 2.0, 0.01) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="from 0"):
        robustify(3.0, 0, 2)
    with pytest.raises(ValueError, match="eps"):
        robustify(1.0, 0, 2, 0.5)
