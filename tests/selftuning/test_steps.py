from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.config_space import Domain, uniform
from sthyper.selftuning.hyperparameters import Hyperparameter, Hyperparameters
from sthyper.selftuning.linearise import linearised
from sthyper.selftuning.maps import Between, Exponential
from sthyper.selftuning.steps import (
    Notices,
    PredictionLoss,
    centre_step,
    delta_stn_step,
    evaluating,
    gradients_of,
    hyper_step,
    hypergradients,
    stn_step,
)
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune, squared_norms

B = 8
SPACE: dict[str, Domain] = {"rate": uniform(0.0, 0.9), "other": uniform(0.0, 1.0)}


class Setting:
    """A small network with a batch and optimisers."""

    def __init__(self, kind: Any = "delta", dropout: bool = False, scale: float = 1.0) -> None:
        torch.manual_seed(0)
        self.h = Hyperparameters(SPACE, start={"rate": 0.4, "other": 0.5}, scale=scale, dtype=torch.float64)
        layers: list[nn.Module] = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)]
        if dropout:
            layers.insert(3, nn.Dropout())
        net = nn.Sequential(*layers).double()
        rates = {"*": "rate"} if dropout else None
        self.model = self_tune(net, self.h, kind=kind, response="full", dropout=rates)
        if kind == "delta":
            with torch.no_grad():
                for p in response_parameters(self.model):
                    p.copy_(0.3 * torch.randn_like(p))
        self.x = torch.randn(B, 4, dtype=torch.float64)
        self.y = torch.randint(3, (B,))
        self.general = torch.optim.SGD(general_parameters(self.model), lr=0.1)
        self.response = torch.optim.SGD(response_parameters(self.model), lr=0.1)
        self.hyper = torch.optim.SGD([self.h.raw], lr=0.1)
        self.scale = torch.optim.SGD([self.h.raw_scale], lr=0.1)

    def closure(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def delta_step(self, **options: Any) -> Any:
        return delta_stn_step(self.closure, self.h, self.general, self.response, B, **options)

    def parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        return (
            [p.detach().clone() for p in general_parameters(self.model)],
            [p.detach().clone() for p in response_parameters(self.model)],
        )

    def statistics(self) -> Tensor:
        norm: Any = self.model[1]  # type: ignore[index]
        return torch.cat([norm.running_mean, norm.running_var])


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


# ---- training steps ------------------------------------------------------------------------------------------


def test_the_linearised_step_is_two_updates_of_two_optimisers() -> None:
    s, twin = Setting(), Setting()
    result = s.delta_step()
    # By hand: the plain network first ...
    general, responses = general_parameters(twin.model), response_parameters(twin.model)
    with twin.h.off():
        loss = twin.closure()
    loss.backward()
    twin.general.step()
    twin.model.zero_grad()
    # ... then the responses, at the new weights.
    p = twin.h.draw(B)
    f = linearised(lambda: twin.model(twin.x), twin.h, p)
    answer = F.cross_entropy(f, twin.y)
    answer.backward()
    twin.response.step()
    close(general_parameters(s.model), general)  # type: ignore[arg-type]
    close(response_parameters(s.model), responses)  # type: ignore[arg-type]
    assert float(result.loss) == pytest.approx(float(loss.detach()))
    assert float(result.response_loss) == pytest.approx(float(answer.detach()))
    assert not result.loss.requires_grad
    assert all(q.grad is None for q in s.model.parameters())


def test_the_centre_step_is_the_first_of_the_two_updates() -> None:
    ours, other = Setting(dropout=True), Setting(dropout=True)
    general, responses = ours.parameters()
    torch.manual_seed(5)
    result = centre_step(ours.closure, ours.h, ours.general, B, max_norm=0.1)
    assert result.response_loss is None
    assert same(ours.parameters()[1], responses)
    assert not same(ours.parameters()[0], general)
    torch.manual_seed(5)
    both = other.delta_step(max_norm=0.1)
    assert torch.equal(result.loss, both.loss)
    assert same(ours.parameters()[0], other.parameters()[0])
    # It is the step of the plain network at these values, its masks included.
    plain = Setting(dropout=True)
    torch.manual_seed(5)
    with plain.h.off():
        loss = plain.closure()
    assert torch.equal(result.loss, loss.detach())
    with pytest.raises(ValueError, match="holds the hyperparameters"):
        centre_step(ours.closure, ours.h, ours.hyper, B)


def test_the_updates_differ_and_the_nonlinear_one_uses_the_perturbed_prediction() -> None:
    after = {}
    for update in ("linearised", "nonlinear", "joint"):
        s = Setting()
        result = s.delta_step(update=update)
        after[update] = s.parameters()
        assert (result.response_loss is None) == (update == "joint")
    assert same(after["linearised"][0], after["nonlinear"][0])
    assert not same(after["linearised"][1], after["nonlinear"][1])
    assert not same(after["joint"][0], after["nonlinear"][0])
    twin = Setting()
    p = twin.h.draw(B)
    with twin.h.use(p):
        loss = twin.closure()
    loss.backward()
    twin.general.step()
    twin.response.step()
    close(after["joint"][0], twin.parameters()[0])
    close(after["joint"][1], twin.parameters()[1])


@pytest.mark.parametrize("update", ["nonlinear", "joint"])
def test_groups_share_a_perturbation(update: Any) -> None:
    seen: list[int] = []
    s = Setting()

    def closure() -> Tensor:
        current = s.h.current
        assert current is not None
        seen.append(current.n_groups)
        return s.closure()

    delta_stn_step(closure, s.h, s.general, s.response, B, update, groups=2)
    stn_step(closure, s.h, [s.general, s.response], B, groups=4)
    stn_step(closure, s.h, [s.general, s.response], B)
    assert seen == ([2, 4, B] if update == "joint" else [1, 2, 4, B])


def test_stn_step_trains_all_under_perturbation() -> None:
    s, twin = Setting("stn"), Setting("stn")
    both = [*general_parameters(s.model), *response_parameters(s.model)]
    result = stn_step(s.closure, s.h, torch.optim.SGD(both, lr=0.1), B)
    with twin.h.perturbed(B):
        loss = twin.closure()
    loss.backward()
    twin.general.step()
    twin.response.step()
    close(s.parameters()[0], twin.parameters()[0])
    close(s.parameters()[1], twin.parameters()[1])
    assert float(result.loss) == pytest.approx(float(loss.detach()))
    values = s.h.values()
    assert values == pytest.approx({"rate": 0.4, "other": 0.5})


@pytest.mark.parametrize("update", ["linearised", "nonlinear"])
def test_running_statistics_follow_the_centre_update_only(update: Any) -> None:
    s, twin = Setting(), Setting()
    s.delta_step(update=update)
    with twin.h.off(), torch.no_grad():
        twin.closure()
    assert not torch.equal(s.statistics(), Setting().statistics())
    torch.testing.assert_close(s.statistics(), twin.statistics(), rtol=0, atol=0)


def test_running_statistics_rest_in_hyper_steps_even_in_training_mode() -> None:
    s = Setting()
    before = s.statistics()
    hyper_step(s.closure, s.h, s.hyper)
    assert torch.equal(s.statistics(), before)


def test_strengths_are_central_in_the_first_update_and_perturbed_in_the_second() -> None:
    s = Setting()
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(s.h["rate"])
        return s.closure()

    delta_stn_step(closure, s.h, s.general, s.response, B)
    assert seen[0].shape == ()
    assert float(seen[0]) == pytest.approx(0.4)
    assert seen[1].shape == (B,)
    assert float(seen[1].std()) > 0.05


def test_a_response_update_on_other_examples() -> None:
    s, twin = Setting(), Setting()

    def part() -> Tensor:
        return F.cross_entropy(s.model(s.x[:4]), s.y[:4])

    s.delta_step(response_closure=part, response_size=4)
    twin.delta_step()
    close(*(x.parameters()[0] for x in (s, twin)))
    assert not same(s.parameters()[1], twin.parameters()[1])
    other = Setting()
    with other.h.centred():
        loss = other.closure()
    loss.backward()
    other.general.step()
    other.model.zero_grad()
    f = linearised(lambda: other.model(other.x[:4]), other.h, other.h.draw(4))
    F.cross_entropy(f, other.y[:4]).backward()
    other.response.step()
    close(s.parameters()[1], other.parameters()[1])
    with pytest.raises(ValueError, match="belong together"):
        s.delta_step(response_closure=part)
    with pytest.raises(ValueError, match="response_closure has no effect with update='joint'"):
        s.delta_step(update="joint", response_closure=part, response_size=4)


def test_max_norm_scales_gradients_down() -> None:
    steps = {}
    for max_norm in (None, 1e-3):
        s = Setting()
        before = s.parameters()
        s.delta_step(max_norm=max_norm)
        after = s.parameters()
        steps[max_norm] = [
            float(torch.cat([(a - b).flatten() for a, b in zip(x, y, strict=True)]).norm() / 0.1)
            for x, y in zip(after, before, strict=True)
        ]
    assert min(steps[None]) > 1e-2
    assert steps[1e-3] == pytest.approx([1e-3, 1e-3], rel=1e-2)


def test_a_loss_in_two_parts_gives_the_same_step() -> None:
    s, twin = Setting(), Setting()
    split = PredictionLoss(lambda: s.model(s.x), lambda z: -z.log_softmax(1)[range(B), s.y].mean())
    delta_stn_step(split, s.h, s.general, s.response, B)
    twin.delta_step()
    close(s.parameters()[1], twin.parameters()[1])
    with pytest.raises(ValueError, match="PredictionLoss"):
        delta_stn_step(lambda: -s.model(s.x).log_softmax(1).mean(), s.h, s.general, s.response, B)


# ---- hyper steps ---------------------------------------------------------------------------------------------


def test_the_hypergradient_is_that_through_the_response() -> None:
    s = Setting()
    s.model.eval()
    result = hyper_step(s.closure, s.h, s.hyper, bound=None)
    # Finite difference of the loss at the moved centre, with the old one as the reference of delta.
    fresh = Setting()
    fresh.model.eval()
    e = 1e-6
    for i, name in enumerate(fresh.h.names):
        losses = []
        for sign in (1, -1):
            p = fresh.h.centre(tracks=True)
            shift = torch.zeros_like(p.delta)
            shift[0, i] = sign * e
            moved = type(p)("centred", p.raw, p.inputs, p.delta.detach() + shift, tracks=True)
            with fresh.h.use(moved), torch.no_grad():
                losses.append(float(fresh.closure()))
        assert result.gradients[name] == pytest.approx((losses[0] - losses[1]) / (2 * e), rel=1e-5)
    expected = fresh.h.raw.detach() - 0.1 * torch.tensor(list(result.gradients.values()), dtype=torch.float64)
    torch.testing.assert_close(s.h.raw.detach(), expected)
    assert (result.skipped, result.idle, result.scale_gradients) == (False, (), {})
    assert all(q.grad is None for q in s.model.parameters())


def test_scales_are_tuned_with_their_own_optimiser() -> None:
    s = Setting()
    s.model.eval()
    values, scales = s.h.values(), s.h.scales()
    result = hyper_step(s.closure, s.h, s.hyper, s.scale, batch_size=B)
    assert set(result.scale_gradients) == {"rate", "other"}
    assert all(s.h.values()[n] != values[n] and s.h.scales()[n] != scales[n] for n in values)
    fixed = Setting()
    fixed.model.eval()
    hyper_step(fixed.closure, fixed.h, fixed.hyper)
    assert fixed.h.scales() == scales


def test_the_entropy_has_its_closed_form_and_acts_on_the_scales() -> None:
    h = Hyperparameters(SPACE, scale={"rate": 0.5, "other": 1.5}, dtype=torch.float64)
    h.entropy().backward()
    sigma = torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert float(h.entropy().detach()) == pytest.approx(float((sigma * math.sqrt(2 * math.pi * math.e)).log().sum()))
    slope = 1 - torch.exp(-sigma)  # of softplus
    torch.testing.assert_close(h.raw_scale.grad, slope / sigma)
    plain, weighted = Setting(), Setting()
    a = hyper_step(plain.closure, plain.h, plain.hyper, plain.scale, batch_size=B)
    b = hyper_step(weighted.closure, weighted.h, weighted.hyper, weighted.scale, 0.7, batch_size=B)
    assert a.gradients == b.gradients
    assert float(a.loss) == float(b.loss)  # without the entropy
    for name in a.scale_gradients:
        assert b.scale_gradients[name] == pytest.approx(a.scale_gradients[name] - 0.7 * (1 - math.exp(-1)))


@pytest.mark.parametrize(("tau", "grows"), [(10.0, True), (0.0, False)])
def test_scales_grow_with_a_large_entropy_weight_and_shrink_without(tau: float, grows: bool) -> None:
    """A validation loss with a minimum: perturbing away from it costs (F 4 of the specification)."""
    h = Hyperparameters([Hyperparameter("x", Between(-1, 1), start=0.0)], scale=1.0, seed=0)
    model = self_tune(nn.Linear(1, 1, bias=False), h)
    with torch.no_grad():
        model.weight.zero_()  # type: ignore[union-attr, operator]
        for p in response_parameters(model):
            p.fill_(1.0)
    x = torch.ones(64, 1)
    hyper, scale = torch.optim.Adam([h.raw], lr=0.01), torch.optim.Adam([h.raw_scale], lr=0.01)
    for _ in range(100):
        hyper_step(lambda: F.mse_loss(model(x), 0 * x), h, hyper, scale, tau, batch_size=64, scale_bounds=None)
    sigma = h.scales()["x"]
    assert (sigma > 1.1) if grows else (sigma < 0.7)


def test_bounds_of_values_and_scales() -> None:
    for bound, largest in ((3.0, 3.0), (0.5, 0.5), (None, 100.0)):
        s = Setting()
        s.hyper.param_groups[0]["lr"] = 1e6
        hyper_step(s.closure, s.h, s.hyper, bound=bound)
        reach = float(s.h.raw.detach().abs().max())
        # 0.4 of 0.9 is 0.22 from the middle of the map.
        assert reach == pytest.approx(largest) if bound else reach > largest
    for bounds, expected in (((0.1, 2.0), {0.1, 2.0}), ((0.5, 1.2), {0.5, 1.2})):
        s = Setting()
        s.scale.param_groups[0]["lr"] = 1e6
        hyper_step(s.closure, s.h, s.hyper, s.scale, batch_size=B, scale_bounds=bounds)
        assert {round(v, 6) for v in s.h.scales().values()} <= expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hypergradients_that_are_not_finite_skip_the_step(value: float, caplog: pytest.LogCaptureFixture) -> None:
    s = Setting()
    adam = torch.optim.Adam([s.h.raw], lr=0.1)
    hyper_step(s.closure, s.h, adam)
    values, state = s.h.values(), copy.deepcopy(adam.state_dict())
    notices = Notices()
    for step in (3, 4):
        result = hyper_step(lambda: s.closure() * value, s.h, adam)
        assert result.skipped
        with caplog.at_level(logging.WARNING):
            notices.hear(result, step)
    assert s.h.values() == values
    assert str(adam.state_dict()) == str(state)
    assert notices.skipped == 2
    assert len(caplog.records) == 1
    assert "step 3" in caplog.text
    assert "'rate'" in caplog.text
    assert not hyper_step(s.closure, s.h, adam).skipped


def test_hyperparameters_without_effect_rest_even_against_momentum(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Hyperparameter("stuck", Between(0.0, 1.0), start=1e-9)
    floored = Hyperparameter("floored", Between(0.0, 9.0), start=0.05, scale=0.1, discrete="floor")
    h = Hyperparameters([stuck, floored, Hyperparameter("free", Exponential(), start=1.0)])
    model = self_tune(nn.Linear(2, 2), h)
    with torch.no_grad():
        for p in response_parameters(model):
            p.fill_(1.0)
    hyper, scale = torch.optim.Adam([h.raw], lr=0.1), torch.optim.Adam([h.raw_scale], lr=0.1)
    values, scales = h.values(), h.scales()
    # A momentum from before.
    hyper.state[h.raw] = {"step": torch.tensor(5.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    notices = Notices()
    for step in range(3):
        result = hyper_step(lambda: model(torch.ones(4, 2)).square().mean(), h, hyper, scale, batch_size=4)
        assert result.idle == ("stuck", "floored")
        with caplog.at_level(logging.WARNING):
            notices.hear(result, step)
    assert {n: h.values()[n] for n in result.idle} == {n: values[n] for n in result.idle}
    assert {n: h.scales()[n] for n in result.idle} == {n: scales[n] for n in result.idle}
    assert h.values()["free"] != values["free"]
    assert h.scales()["free"] != scales["free"]
    assert len(caplog.records) == 1
    assert "['stuck', 'floored']" in caplog.text
    restored = Notices()
    restored.load_state_dict(notices.state_dict())
    assert (restored.skipped, restored.idle) == (0, {"stuck", "floored"})


def test_the_halves_of_a_hyper_step_average_over_processes() -> None:
    s = Setting()
    loss, gradients = hypergradients(s.closure, s.h)
    _, both = hypergradients(s.closure, s.h, batch_size=B)
    assert len(gradients) == 1
    assert len(both) == 2
    assert float(loss) == pytest.approx(float(s.closure().detach()))


# ---- bad input -----------------------------------------------------------------------------------------------


def test_unknown_update() -> None:
    with pytest.raises(ValueError, match=r"update must be one of .*did you mean 'linearised'"):
        Setting().delta_step(update="linearized")


def test_optimisers_that_hold_the_wrong_parameters() -> None:
    s = Setting()
    everything = torch.optim.SGD(s.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"general_optimizer holds the hyperparameters \(raw\)"):
        delta_stn_step(s.closure, s.h, everything, s.response, B)
    with pytest.raises(ValueError, match="optimizer 0 holds the hyperparameters"):
        stn_step(s.closure, s.h, everything, B)
    with pytest.raises(ValueError, match="general_optimizer and response_optimizer hold the same parameter"):
        delta_stn_step(s.closure, s.h, s.general, s.general, B)
    with pytest.raises(
        ValueError, match=r"hyper_optimizer must hold hyperparameters.raw once and nothing else.*raw_scale"
    ):
        hyper_step(s.closure, s.h, torch.optim.SGD([s.h.raw, s.h.raw_scale], lr=0.1))
    with pytest.raises(ValueError, match="scale_optimizer must hold hyperparameters.raw_scale"):
        hyper_step(s.closure, s.h, s.hyper, s.hyper, batch_size=B)
    with pytest.raises(TypeError, match="LBFGS"):
        stn_step(s.closure, s.h, torch.optim.LBFGS(general_parameters(s.model)), B)
    with pytest.raises(TypeError, match="hyper_optimizer must be an optimiser, got None"):
        hyper_step(s.closure, s.h, None)  # type: ignore[arg-type]


def test_arguments_without_effect_and_missing_ones() -> None:
    s = Setting()
    with pytest.raises(ValueError, match="entropy_weight=0.1 needs a scale_optimizer"):
        hyper_step(s.closure, s.h, s.hyper, entropy_weight=0.1)
    with pytest.raises(ValueError, match="batch_size must be given if scales are tuned"):
        hyper_step(s.closure, s.h, s.hyper, s.scale)


def test_a_loss_that_does_not_depend_on_the_hyperparameters() -> None:
    s = Setting()
    plain = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match="does not depend on the hyperparameters"):
        hyper_step(lambda: F.cross_entropy(plain(s.x), s.y), s.h, s.hyper)
    with pytest.raises(ValueError, match="must be a single number"):
        hyper_step(lambda: s.model(s.x), s.h, s.hyper)


def test_frozen_weights_stay() -> None:
    s = Setting()
    frozen = general_parameters(s.model)[0].requires_grad_(False)
    before = frozen.detach().clone()
    s.delta_step()
    assert torch.equal(frozen, before)


def test_evaluating_restores_each_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False]


def test_gradients_of_a_loss_without_any() -> None:
    p = torch.ones(2, requires_grad=True)
    assert gradients_of(torch.tensor(1.0), [p]) == [None]


# ---- F 5 of the specification --------------------------------------------------------------------------------


class Ridge:
    """Ridge regression with one log-L2, 40 x 20, noise 2.

    What the specification leaves open: standard normal inputs and true weights; 40 validation examples with the same
    noise; losses are means of squared errors and the penalty is ``exp(h) * |w|^2``; h starts at 0; all training data
    is one batch; scale fixed at .5; weights and responses by SGD of learning rate .05; 7000 training steps after the
    warm-up, h averaged over the last tenth.
    """

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        w = torch.randn(20, 1, generator=g, dtype=torch.float64)
        self.x, self.xv = (torch.randn(40, 20, generator=g, dtype=torch.float64) for _ in range(2))
        self.y, self.yv = (x @ w + 2 * torch.randn(40, 1, generator=g, dtype=torch.float64) for x in (self.x, self.xv))

    def solution(self, log_l2: float) -> Tensor:
        n = len(self.x)
        a = self.x.T @ self.x / n + math.exp(log_l2) * torch.eye(20, dtype=torch.float64)
        return torch.linalg.solve(a, self.x.T @ self.y / n)

    def validation(self, log_l2: float) -> float:
        return float(F.mse_loss(self.xv @ self.solution(log_l2), self.yv))


def ridge_run(seed: int, sigma: float = 0.5) -> Iterator[float]:
    """Yield the errors of F 5: of h, of the validation loss, of the weights, and one minus the response's cosine."""
    task = Ridge(seed)
    torch.manual_seed(seed)
    h = Hyperparameters([Hyperparameter("l2", Exponential(), start=1.0, scale=sigma)], seed=seed, dtype=torch.float64)
    model: Any = self_tune(nn.Linear(20, 1, bias=False).double(), h)
    loss = PredictionLoss(
        lambda: model(task.x),
        lambda f: ((f - task.y).square().squeeze(1) + h["l2"] * squared_norms(model)).mean(),
    )
    general = torch.optim.SGD(general_parameters(model), lr=0.05)
    response = torch.optim.SGD(response_parameters(model), lr=0.05)
    hyper = torch.optim.RMSprop([h.raw], lr=1e-2)
    path = []
    for step in range(7500):
        delta_stn_step(loss, h, general, response, 40)
        if step >= 500 and step % 5 == 4:
            hyper_step(lambda: F.mse_loss(model(task.xv), task.yv), h, hyper)
            path.append(float(h.raw.detach()))
    last = sum(path[-140:]) / 140
    grid = torch.linspace(-8, 4, 481).tolist()
    best = min(grid, key=task.validation)
    yield abs(last - best)
    yield task.validation(last) - task.validation(best)
    weight = model.weight.detach().T
    solution = task.solution(float(h.raw.detach()))
    yield float((weight - solution).norm() / solution.norm())
    e = 1e-4
    slope = (task.solution(float(h.raw.detach()) + e) - task.solution(float(h.raw.detach()) - e)) / (2 * e)
    r = model.selftuning.responses
    (site,) = [m for m in r.modules() if hasattr(m, "bottleneck")]
    learned = (site.bottleneck @ torch.ones(1, dtype=torch.float64))[:1, None] * site.full_weight()
    yield 1 - float(F.cosine_similarity(learned.detach().flatten(), slope.flatten(), 0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ridge_regression_finds_the_optimum() -> None:
    errors = [list(ridge_run(seed)) for seed in range(5)]
    for i, threshold in enumerate((0.3, 0.01, 0.01, 0.1)):
        passed = [run[i] < threshold for run in errors]
        assert sum(passed) >= 4, (i, errors)
