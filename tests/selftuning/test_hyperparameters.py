from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sthyper.config_space import Domain, loguniform, quniform, randint, uniform
from sthyper.selftuning import Hyperparameter, Hyperparameters, bounded, map_between
from sthyper.selftuning.maps import Between, Unbounded

SPACE: dict[str, Domain | Hyperparameter] = {
    "dropout": uniform(0.0, 0.9),
    "decay": loguniform(1e-6, 1e-2),
    "holes": randint(0, 4),
}
START = {"dropout": 0.45, "decay": 1e-4, "holes": 2}


def make(**options: Any) -> Hyperparameters:
    return Hyperparameters(SPACE, start=START, **options)


# ---- declarations --------------------------------------------------------------------------------------------


def test_start_values_and_scales_are_read_out_in_order() -> None:
    h = make(scale={"decay": 0.5})
    assert h.names == ["dropout", "decay", "holes"]
    assert len(h) == 3
    assert "decay" in h
    assert h.values() == pytest.approx(START)
    assert h.scales() == pytest.approx({"dropout": 1.0, "decay": 0.5, "holes": 1.0})
    assert list(h.summary(scales=True)) == [*h.names, "dropout_scale", "decay_scale", "holes_scale"]
    assert list(h.summary()) == h.names
    assert h.config() == pytest.approx(START)
    assert isinstance(h.config()["holes"], int)


def test_the_default_start_is_a_tenth_of_the_way() -> None:
    h = Hyperparameters(SPACE)
    assert h.values() == pytest.approx({"dropout": 0.09, "decay": 10**-5.6, "holes": 0.0}, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    h = make(dtype=dtype)
    assert (h.raw.dtype, h.raw_scale.dtype) == (dtype, dtype)
    with h.perturbed(3):
        assert h["dropout"].dtype == dtype
    assert make().double().draw(2).raw.dtype == torch.float64


@pytest.mark.parametrize("value", [0.0, 0.9, -1.0, 2.0, math.nan])
def test_start_on_a_bound_or_outside(value: float) -> None:
    with pytest.raises(ValueError, match="'dropout': start must be larger than 0"):
        Hyperparameters({"dropout": uniform(0, 0.9)}, start={"dropout": value})


def test_start_that_is_a_bound_in_float32_only() -> None:
    almost = bounded("x", 1 - 1e-9, 0, 1)
    with pytest.raises(ValueError, match="is on a bound in torch.float32"):
        Hyperparameters([almost])
    assert Hyperparameters([almost], dtype=torch.float64).values()["x"] == pytest.approx(1 - 1e-9, abs=1e-15)


def test_names() -> None:
    with pytest.raises(ValueError, match="two hyperparameters of the name 'x'"):
        Hyperparameters([bounded("x", 0.5, 0, 1), bounded("x", 0.5, 0, 1)])
    with pytest.raises(ValueError, match=r"start: there is no domain 'dropuot' \(did you mean 'dropout'\?\)"):
        Hyperparameters(SPACE, start={"dropuot": 0.1})
    with pytest.raises(ValueError, match="scale: there is no domain"):
        Hyperparameters(SPACE, scale={"dropuot": 0.1})
    with pytest.raises(ValueError, match="shared: there is no domain"):
        Hyperparameters(SPACE, shared=["dropuot"])
    with pytest.raises(KeyError, match="did you mean 'dropout'"):
        make()["dropuot"]
    with pytest.raises(ValueError, match="name must be a text"):
        bounded("", 0.5, 0, 1)


def test_what_cannot_be_tuned_inside() -> None:
    with pytest.raises(ValueError, match="'lr': only uniform, loguniform"):
        Hyperparameters({"lr": quniform(0.0, 1.0, 0.1)})
    with pytest.raises(TypeError, match="'epochs' must be a domain"):
        Hyperparameters({"epochs": 3})
    with pytest.raises(TypeError, match="space must hold"):
        Hyperparameters([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no hyperparameters"):
        Hyperparameters().draw(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must be a positive"),
        ({"scale": math.inf}, "scale must be a positive"),
        ({"response_input": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"scale_map": "log"}, "scale_map must be one of"),
        ({"discrete": "ceil"}, "discrete must be"),
        ({"straight_through": True}, "for discrete ones"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"'x'.*{message}"):
        Hyperparameter("x", Between(), 0.5, **options)


def test_registration_ends_when_the_parameters_are_handed_out() -> None:
    more = bounded("more", 0.5, 0, 1)
    for use in (
        lambda h: torch.optim.Adam(h.parameters()),
        lambda h: torch.optim.Adam([h.raw]),
        lambda h: torch.optim.Adam([h.raw_scale]),
        lambda h: h.draw(2),
    ):
        h = make()
        h.register(bounded("early", 0.5, 0, 1))
        use(h)
        with pytest.raises(RuntimeError, match="'more' comes too late"):
            h.register(more)
        assert len(h.raw) == len(h) == 4


# ---- perturbations -------------------------------------------------------------------------------------------


def test_perturbations_are_raw_plus_sigma_times_noise() -> None:
    h = make(scale=0.7, seed=5)
    p = h.draw(4)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(p.raw, h.raw.detach() + 0.7 * noise)
    torch.testing.assert_close(p.delta, 0.7 * noise)
    assert not p.raw.requires_grad
    assert p.n_groups == 4
    assert not torch.equal(h.draw(4).raw, p.raw)
    h.reseed(5)
    assert torch.equal(h.draw(4).raw, p.raw)


def test_distribution() -> None:
    h = make(scale=0.7, seed=1)
    delta = h.draw(20_000).delta
    assert delta.mean().abs() < 0.02
    torch.testing.assert_close(delta.T.cov(), 0.49 * torch.eye(3), atol=0.02, rtol=0)


def test_gradients_reach_raw_and_scale() -> None:
    h = make(dtype=torch.float64)
    p = h.draw(5, tracks=True)
    weight = torch.randn(5, 3, dtype=torch.float64)
    raw, scale = torch.autograd.grad((p.delta * weight).sum(), [h.raw, h.raw_scale])
    torch.testing.assert_close(raw, weight.sum(0))
    noise = p.delta.detach() / h.sigma().detach()
    torch.testing.assert_close(scale, (weight * noise).sum(0) * torch.sigmoid(h.raw_scale.detach()))


def test_the_centre() -> None:
    h = make()
    p = h.centre()
    assert (p.kind, p.n_groups, p.batch_size, p.tracks) == ("centred", 1, None, False)
    assert torch.equal(p.delta, torch.zeros(1, 3))
    tracked = h.centre(tracks=True)
    assert torch.equal(tracked.delta, torch.zeros(1, 3))
    (gradient,) = torch.autograd.grad(tracked.delta.sum(), h.raw)
    assert torch.equal(gradient, torch.ones(3))


def test_groups() -> None:
    h = make()
    p = h.draw(7, groups=3)
    assert p.sizes() == [3, 2, 2]
    expanded = p.expand(torch.arange(3.0).unsqueeze(1))
    assert expanded.flatten().tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert p.expand(p.raw).shape == (7, 3)
    assert h.draw(6, groups=3).expand(torch.arange(3)).tolist() == [0, 0, 1, 1, 2, 2]
    assert h.draw(2, groups=8).n_groups == 2
    assert h.draw(5, same=True).n_groups == 1
    with h.use(p):
        rates = h["dropout"]
    assert rates.shape == (7,)
    assert len(rates.unique()) == 3
    assert torch.equal(rates[:3], rates[:1].expand(3))
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        h.draw(4, groups=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        h.draw(0)
    with pytest.raises(ValueError, match="batches of any size"):
        h.centre().sizes()


def test_what_the_batch_shares() -> None:
    h = make(shared=["decay"])
    with h.perturbed(6) as p:
        assert h["decay"].shape == ()
        assert h["dropout"].shape == (6,)
        assert len(p.raw[:, 1].unique()) == 1
        assert len(p.raw[:, 0].unique()) == 6


def test_same_for_the_whole_batch() -> None:
    h = make()
    with h.perturbed(6, same=True):
        rates = h["dropout"]
        assert rates.shape == (6,)
        assert len(rates.unique()) == 1


@pytest.mark.parametrize(
    ("kind", "function"), [("raw", lambda u: u), ("sigmoid", torch.sigmoid), ("softplus", F.softplus)]
)
def test_what_responses_see(kind: Any, function: Any) -> None:
    h = Hyperparameters(
        [Hyperparameter("a", Between(), 0.3, response_input=kind), Hyperparameter("b", Unbounded(), -1.0)]
    )
    p = h.draw(4, tracks=True)
    torch.testing.assert_close(p.inputs[:, 0], function(p.raw[:, 0]))
    torch.testing.assert_close(p.inputs[:, 1], p.raw[:, 1])
    torch.testing.assert_close(p.delta[:, 0], function(p.raw[:, 0]) - function(h.raw[0]))
    torch.testing.assert_close(h.centre().inputs[0, 0], function(h.raw[0]))


def test_scale_maps() -> None:
    h = Hyperparameters(
        [Hyperparameter("a", Between(), 0.3, 0.2, scale_map="exp"), Hyperparameter("b", Between(), 0.3, 0.2)]
    )
    assert h.scales() == pytest.approx({"a": 0.2, "b": 0.2})
    assert h.raw_scale[0].item() == pytest.approx(math.log(0.2))
    assert h.raw_scale[1].item() == pytest.approx(math.log(math.expm1(0.2)))


def test_contexts() -> None:
    h = make()
    assert h.current is not None
    assert h.current.kind == "centred"
    assert not h.current.tracks
    centre = h["dropout"]
    with h.perturbed(3):
        assert h.current.kind == "perturbed"
        with h.off():
            assert h.current is None
            assert torch.equal(h["dropout"], centre)
        with h.centred(tracks=True) as inner:
            assert h.current is inner
            assert inner.tracks
            assert h["dropout"].shape == ()
        assert h["dropout"].shape == (3,)
    assert h["dropout"].shape == ()
    assert h["dropout"].item() == pytest.approx(0.45)
    with pytest.raises(ZeroDivisionError), h.off():
        raise ZeroDivisionError
    assert h.current is not None


def test_along_keeps_the_strengths() -> None:
    h = make()
    p = h.draw(3)
    moved = p.along(torch.zeros_like(p.delta))
    assert moved.linearised
    assert moved.tracks
    with h.use(p):
        rates = h["dropout"]
    with h.use(moved):
        assert torch.equal(h["dropout"], rates)


# ---- values --------------------------------------------------------------------------------------------------


def test_discrete_ones_are_rounded_in_use_only() -> None:
    h = Hyperparameters(
        [
            bounded("holes", 1.7, 0, 4, discrete=True),
            Hyperparameter("length", Between(-0.5, 4.5), 1.7, discrete="round"),
        ]
    )
    assert h["holes"].item() == 1
    assert h["length"].item() == 2
    assert h.values() == pytest.approx({"holes": 1.7, "length": 1.7})
    assert h.config() == {"holes": 1, "length": 2}
    h.raw.data.fill_(60.0)
    assert (h["holes"].item(), h["length"].item()) == (3, 4)
    h.raw.data.fill_(-200.0)
    assert (h["holes"].item(), abs(h["length"].item())) == (0, 0)


def test_gradients_of_values() -> None:
    map_ = map_between(0, 4)
    options: list[dict[str, Any]] = [
        {},
        {"direct_gradient": True},
        {"direct_gradient": True, "discrete": "floor"},
        {"direct_gradient": True, "discrete": "floor", "straight_through": True},
    ]
    h = Hyperparameters([Hyperparameter(str(i), map_, 1.5, **o) for i, o in enumerate(options)], dtype=torch.float64)
    slope = 1.5 * 2.5 / 4
    with h.perturbed(3, tracks=True), pytest.raises(RuntimeError, match="does not require grad"):
        h["0"].sum().backward()
    expected = [None, slope, 0.0, slope]
    for name in "123":
        with h.centred(tracks=True):
            value = h[name]
        assert value.item() == pytest.approx(1.5 if name == "1" else 1.0)
        (gradient,) = torch.autograd.grad(value, h.raw)
        assert gradient[int(name)].item() == pytest.approx(expected[int(name)])


def test_set_values() -> None:
    h = make()
    h.set_values({"dropout": 0.2, "decay": 1e-3})
    assert h.values() == pytest.approx({"dropout": 0.2, "decay": 1e-3, "holes": 2})
    with pytest.raises(ValueError, match="larger than"):
        h.set_values({"decay": 0.5, "dropout": 0.9})
    assert h.values()["decay"] == pytest.approx(1e-3)
    with pytest.raises(KeyError, match="did you mean"):
        h.set_values({"dropuot": 0.9})


def test_entropy() -> None:
    h = make(scale={"dropout": 0.3, "decay": 2.0, "holes": 1.0}, dtype=torch.float64)
    expected = sum(math.log(s * math.sqrt(2 * math.pi * math.e)) for s in (0.3, 2.0, 1.0))
    assert h.entropy().item() == pytest.approx(expected)
    normal = torch.distributions.Normal(torch.zeros(3), torch.tensor([0.3, 2.0, 1.0]))
    assert h.entropy().item() == pytest.approx(normal.entropy().sum().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(h.entropy(), h.raw_scale)
    sigma = h.sigma().detach()
    torch.testing.assert_close(gradient, torch.sigmoid(h.raw_scale.detach()) / sigma)


def test_idle() -> None:
    h = Hyperparameters(
        [
            bounded("moves", 0.5, 0, 1),
            bounded("saturated", 0.5, 0, 1),
            bounded("one floor", 1.5, 0, 4, discrete=True, scale=0.1),
            bounded("two floors", 1.05, 0, 4, discrete=True, scale=0.1),
            bounded("decay", 1e-4, 1e-6, 1e-2, log=True),
            bounded("decay at its end", 1e-4, 1e-6, 1e-2, log=True),
            bounded("open", 1.0, 0, None),
        ]
    )
    for name in ("saturated", "decay at its end"):
        h.raw.data[h.names.index(name)] = -14.0
    idle = dict(zip(h.names, h.idle().tolist(), strict=True))
    assert [name for name, value in idle.items() if value] == ["saturated", "one floor", "decay at its end"]


def test_clamp() -> None:
    h = Hyperparameters([bounded("a", 0.5, 0, 1), bounded("far", 0.99, 0, 1), bounded("b", 1.0, 0, None)])
    far = h.raw[1].item()
    assert far > 4
    h.raw.data.copy_(torch.tensor([9.0, 9.0, 9.0]))
    h.raw_scale.data.copy_(torch.tensor([9.0, -9.0, 0.0]))
    h.clamp_(3.0)
    assert h.raw.tolist() == pytest.approx([3.0, far, 9.0])
    assert h.scales()["a"] > 8
    h.clamp_(2.0, scales=(0.1, 2.0))
    assert h.raw.tolist() == pytest.approx([2.0, far, 9.0])
    assert list(h.scales().values()) == pytest.approx([2.0, 0.1, math.log(2)])
    h.raw.data[0] = 50.0
    h.clamp_(None)
    assert h.raw[0].item() == 50.0
    with pytest.raises(ValueError, match="limit must be positive"):
        h.clamp_(0.0)
    with pytest.raises(ValueError, match="scales must be positive"):
        h.clamp_(3.0, scales=(2.0, 1.0))


# ---- state ---------------------------------------------------------------------------------------------------


def test_state_goes_through_a_safe_file() -> None:
    first = make(seed=3)
    first.draw(5)
    first.raw.data += 0.3
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(seed=99)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.values() == first.values()
    assert torch.equal(second.draw(4).raw, first.draw(4).raw)
    other = Hyperparameters([bounded(n, 0.5, 0, 1) for n in "abc"])
    with pytest.raises((ValueError, RuntimeError), match="the state is that of hyperparameters"):
        other.load_state_dict(first.state_dict())


def test_copies_are_independent() -> None:
    h = make()
    with h.perturbed(3):
        twin = copy.deepcopy(h)
    assert twin.values() == h.values()
    assert torch.equal(twin.draw(3).raw, h.draw(3).raw)
    h.raw.data += 1
    assert twin.values() != h.values()
    with pytest.raises(RuntimeError, match="too late"):
        twin.register(bounded("more", 0.5, 0, 1))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    make().draw(9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_sees_the_same_perturbations() -> None:
    h, on_gpu = make(), make().cuda()
    p = on_gpu.draw(4, groups=2)
    assert p.raw.is_cuda
    torch.testing.assert_close(h.draw(4, groups=2).raw, p.raw.cpu())
    with on_gpu.use(p):
        assert on_gpu["dropout"].is_cuda


def test_shared_values_may_be_drawn_alike_on_all_ranks() -> None:
    ranks = [make(shared=["decay"]) for _ in range(2)]
    for rank, hyperparameters in enumerate(ranks):
        hyperparameters.reseed(10 + rank, shared_seed=3)
    for _ in range(2):
        first, second = (hyperparameters.draw(4).raw for hyperparameters in ranks)
        assert torch.equal(first[:, 1], second[:, 1])
        assert not torch.equal(first[:, 0], second[:, 0])
    ranks[1].reseed(10)
    ranks[0].reseed(10)
    assert torch.equal(ranks[0].draw(4).raw, ranks[1].draw(4).raw)


def test_a_pickled_one_draws_the_same() -> None:
    h = make(seed=4)
    h.draw(3)
    twin = pickle.loads(pickle.dumps(h))
    assert twin.values() == h.values()
    assert torch.equal(twin.draw(3).raw, h.draw(3).raw)
