from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.config_space import uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.linearise import linearised
from sthyper.selftuning.reference_steps import DeltaStnStepOptimizer, StnStepOptimizer, StnTrainer
from sthyper.selftuning.tf_names import (
    HyperParam,
    HyperParameters,
    dropout2d_layer,
    get_training_step_functions,
    hyper_param_from_bounds,
)
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune

B = 6


def keep_and_penalty() -> list[Any]:
    keep = hyper_param_from_bounds(name="keep", init_val=0.95, min_val=0.25, max_val=1.0)
    return [keep, HyperParam("penalty", lambda: torch.tensor(-2.0), torch.exp)]


# ---- names of the TensorFlow port ----------------------------------------------------------------------------


def test_declarations_and_read_out() -> None:
    h = HyperParameters(keep_and_penalty(), B, torch.Generator().manual_seed(0))
    assert h.raw.dtype == torch.float64
    assert h.values() == pytest.approx({"keep": 0.95, "penalty": math.exp(-2)})
    assert h.scales() == pytest.approx({"keep": 0.5, "penalty": 0.5})
    value, scale = h.hyper_param_vars["penalty"]
    assert float(value.detach()) == pytest.approx(-2.0)
    assert float(F.softplus(scale.detach())) == pytest.approx(0.5)
    assert HyperParameters([HyperParam("x", lambda: 1.0, torch.sigmoid, 0.3)], B).scales()["x"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="start must be"):
        HyperParameters([hyper_param_from_bounds("keep", 1.0, 0.25, 1.0)], B)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        HyperParameters(keep_and_penalty(), 0)


def test_param_con_batch_has_a_value_for_each_example() -> None:
    h = HyperParameters(keep_and_penalty(), B, 3)
    assert h.param_con_batch("keep").shape == (B, 1)
    assert torch.equal(h.param_con_batch("keep"), h.param_con_batch("keep")[:1].expand(B, 1))
    h.enable_perturbation()
    perturbed = h.param_con_batch("keep")
    assert perturbed.shape == (B, 1)
    assert not perturbed.requires_grad
    assert len(set(perturbed.flatten().tolist())) == B
    h.disable_perturbation()
    torch.testing.assert_close(h.param_con_batch("keep"), torch.full((B, 1), 0.95, dtype=torch.float64))


def test_the_generator_makes_perturbations_reproducible() -> None:
    draws = [HyperParameters(keep_and_penalty(), B, seed).draw(B).raw for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.testing.assert_close(
        HyperParameters(keep_and_penalty(), B, torch.Generator().manual_seed(3)).draw(B).raw, draws[0]
    )


class HyperNet(nn.Module):
    """As in the port's README: it reads the hyperparameters in its forward method."""

    def __init__(self, h: HyperParameters) -> None:
        super().__init__()
        self.__dict__["h"] = h
        self.conv = nn.Conv2d(1, 3, 3)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.training:
            x = dropout2d_layer(x, 1 - self.h.param_con_batch("keep"))
        result: Tensor = self.out(x.flatten(1))
        return result


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(2, (B,), generator=g)


@pytest.mark.parametrize("kind", ["stn", "delta"])
def test_the_loop_of_the_readme(kind: Any) -> None:
    torch.manual_seed(0)
    h = HyperParameters(keep_and_penalty(), B, 0)
    model = self_tune(HyperNet(h).double(), h, kind=kind)
    weights_training_step, hyperparameters_training_step = get_training_step_functions()
    seen: list[Tensor] = []

    def weights_data() -> tuple[Tensor, Tensor]:
        seen.append(h.param_con_batch("keep"))
        return data()

    opt = torch.optim.Adam([*general_parameters(model), *response_parameters(model)], lr=0.01)
    opt_hyper, opt_scale = torch.optim.Adam([h.raw], lr=0.01), torch.optim.Adam([h.raw_scale], lr=0.01)
    values, scales = h.values(), h.scales()
    losses = [weights_training_step(model, h, weights_data, F.cross_entropy, opt, True) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert h.values() == values
    assert len(set(seen[-1].flatten().tolist())) == B
    for _ in range(3):
        loss = hyperparameters_training_step(model, h, lambda: data(1), F.cross_entropy, opt_hyper, opt_scale)
        hyperparameters_training_step(model, h, lambda: data(1), F.cross_entropy, opt_hyper, None)
    assert loss.shape == ()
    assert h.values() != values
    assert h.scales() != scales
    h.disable_perturbation()
    model.eval()
    assert torch.equal(model(data()[0]), model(data()[0]))


def test_the_baseline_switch_trains_the_plain_network() -> None:
    results = []
    for plain in (False, True):
        torch.manual_seed(0)
        h = HyperParameters([HyperParam("unused", lambda: 0.0, torch.sigmoid)], B, 0)
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        if plain:
            opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for _ in range(3):
                opt.zero_grad()
                F.cross_entropy(net(data()[0]), data()[1]).backward()
                opt.step()
        else:
            self_tune(net, h)
            opt = torch.optim.SGD(general_parameters(net), lr=0.1, momentum=0.9)
            step, _ = get_training_step_functions()
            for _ in range(3):
                step(net, h, data, F.cross_entropy, opt, False)
        results.append([p.detach().clone() for p in (net.parameters() if plain else general_parameters(net))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_batch_of_another_size_and_a_copy() -> None:
    h = HyperParameters(keep_and_penalty(), B + 1, 0)
    model = self_tune(HyperNet(h).double(), h)
    opt = torch.optim.SGD(general_parameters(model), lr=0.1)
    with pytest.raises(ValueError, match=f"must give batches of {B + 1}, got {B}"):
        get_training_step_functions()[0](model, h, data, F.cross_entropy, opt, True)
    twin = copy.deepcopy(h)
    assert twin.param_con_batch("keep").shape == (B + 1, 1)
    assert twin.values() == h.values()


# ---- names of the Delta-STN code -----------------------------------------------------------------------------


def reference(kind: Any, tune_scales: bool = False, **options: Any) -> tuple[nn.Module, Hyperparameters, Any]:
    torch.manual_seed(0)
    h = Hyperparameters({"rate": uniform(0.0, 0.9)}, start={"rate": 0.3}, dtype=torch.float64)
    model = self_tune(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), h, kind=kind, response="full"
    )
    for p in response_parameters(model):
        nn.init.normal_(p, std=0.3)
    general, responses = general_parameters(model), response_parameters(model)
    hyper, scale = torch.optim.SGD([h.raw], lr=0.1), torch.optim.SGD([h.raw_scale], lr=0.1)
    scale_opt = scale if tune_scales else None
    if kind == "stn":
        both = torch.optim.SGD([*general, *responses], lr=0.1)
        return model, h, StnStepOptimizer(model, both, hyper, scale_opt, F.cross_entropy, h, tune_scales, **options)
    optimizers = [torch.optim.SGD(ps, lr=0.1) for ps in (general, responses)]
    return (
        model,
        h,
        DeltaStnStepOptimizer(model, *optimizers, hyper, scale_opt, F.cross_entropy, h, tune_scales, **options),
    )


X = torch.randn(B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(2, (B,), generator=torch.Generator().manual_seed(1))


def test_stn_steps() -> None:
    model, h, step = reference("stn")
    p = h.draw(B)
    with h.use(p):
        expected = model(2 * X)
    prediction, loss = step.step(X, Y, p, augmented_inputs=2 * X)
    torch.testing.assert_close(prediction, expected)
    torch.testing.assert_close(loss, F.cross_entropy(expected, Y))
    values = h.values()
    _, loss = step.step(X, Y, None, tune_hyper=True)
    assert h.values() != values
    with h.centred():
        assert float(F.cross_entropy(model(X), Y).detach()) != float(loss)
    step.zero_grad()  # without an optimiser of the scales
    with pytest.raises(ValueError, match="perturbed_h is needed"):
        step.step(X, Y, None)


@pytest.mark.parametrize("linear", [True, False])
def test_delta_steps_use_both_views(linear: bool) -> None:
    model, h, step = reference("delta", do_linearize=linear)
    twin, twin_h, _ = reference("delta")
    p = h.draw(B)
    before = F.cross_entropy(twin(X), Y)
    general = general_parameters(twin)
    gradients = torch.autograd.grad(before, general)
    with torch.no_grad():
        for q, g in zip(general, gradients, strict=True):
            q.sub_(0.1 * g)
    if linear:
        expected = linearised(lambda: twin(2 * X), twin_h, p)
    else:
        with twin_h.use(p):
            expected = twin(2 * X)
    prediction, loss = step.step(X, Y, p, augmented_inputs=2 * X)
    torch.testing.assert_close(prediction, expected)
    torch.testing.assert_close(loss, before.detach())
    for a, b in zip(general_parameters(model), general, strict=True):
        torch.testing.assert_close(a, b)


def test_tuned_scales_and_the_entropy_of_the_reference() -> None:
    gradients = {}
    for tau in (0.0, 0.5):
        _, h, step = reference("delta", tune_scales=True, entropy_weight=tau)
        with pytest.raises(ValueError, match="tracks=True"):
            step.step(X, Y, h.draw(B), tune_hyper=True)
        step.step(X, Y, h.draw(B, tracks=True), tune_hyper=True)
        gradients[tau] = step.result.scale_gradients["rate"]
        assert h.scales()["rate"] != 1.0
    assert gradients[0.5] == pytest.approx(gradients[0.0] - 0.5 * (1 - math.exp(-1)), abs=0.3)
    with pytest.raises(ValueError, match="needs a scale_opt"):
        StnStepOptimizer(step.model, step.general_opt, step.hyper_opt, None, F.cross_entropy, h, True)
    with pytest.raises(ValueError, match="has no effect without tune_scales"):
        reference("stn", entropy_weight=0.5)


def trainer(**options: Any) -> tuple[StnTrainer, list[tuple[int, bool]]]:
    _, h, step = reference("delta")
    calls: list[tuple[int, bool]] = []

    def evaluate(epoch: int, train_loss: float | None = None) -> float:
        calls.append((epoch, train_loss is not None))
        return losses.pop(0) if losses else 1.0

    losses: list[float] = options.pop("losses", [])
    given: dict[str, Any] = {"lr_scheduler": None, "warmup_epochs": 1, "total_epochs": 4, "train_steps": 2} | options
    if callable(given["lr_scheduler"]):
        given["lr_scheduler"] = given["lr_scheduler"](step)
    train = DataLoader(TensorDataset(X.repeat(3, 1), Y.repeat(3)), batch_size=B)
    valid = DataLoader(TensorDataset(X, Y), batch_size=B)
    return StnTrainer(step, train, valid, None, evaluate, h, **given), calls


def test_the_trainer_of_the_reference() -> None:
    t, calls = trainer(losses=[9.0, 3.0, 2.0, 4.0, 5.0])
    values = t.h_container.values()
    t.train()
    # Once before training, then at every epoch; the warm-up counts.
    assert calls == [(0, False), (1, True), (2, True), (3, True), (4, True)]
    assert (t.best_val_loss, t.best_val_epoch) == (2.0, 2)
    # 3 steps an epoch, 9 after warm-up: 4 hyper steps at 2 : 1.
    assert t.global_step == 12 + 4
    assert t.h_container.values() != values


def test_the_options_of_the_trainer_of_the_reference() -> None:
    t, calls = trainer(losses=[9.0, 3.0, 3.0, 3.0, 3.0], patience=2, total_epochs=20)
    t.train()
    assert len(calls) == 4
    t, _ = trainer(valid_steps=3)
    t.train()
    assert t.global_step == 12 + 12
    t, _ = trainer(warmup_epochs=4)
    values = t.h_container.values()
    t.train()
    assert t.h_container.values() == values
    t, _ = trainer(
        lr_scheduler=lambda step: [
            torch.optim.lr_scheduler.ReduceLROnPlateau(step.general_opt, factor=0.5, patience=0),
            torch.optim.lr_scheduler.CosineAnnealingLR(step.hyper_opt, T_max=4),
            None,
        ],
        warmup_epochs=0,
    )
    t.train()
    # The first epoch is the best one of equal losses.
    assert t.step_optimizer.general_opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)  # type: ignore[union-attr]
    assert t.step_optimizer.hyper_opt.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("warmup_epochs", -1), ("total_epochs", 0), ("train_steps", 0), ("log_interval", 0), ("patience", 0)],
)
def test_numbers_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        trainer(**{name: value})
