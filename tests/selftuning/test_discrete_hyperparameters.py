"""Discrete hyperparameters: declared by domains, sampled in training, found by hyper steps, read out and restored."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sthyper.config_space import choice, finrange, logfinrange, logordinal, ordinal, uniform
from sthyper.selftuning.choosing import OneOf
from sthyper.selftuning.controls import FixedValues, Replay
from sthyper.selftuning.declarations import Hyperparameter, bounded
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.objective import self_tuning_objective
from sthyper.selftuning.reference_steps import DeltaStnStepOptimizer, StnStepOptimizer, StnTrainer
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import delta_stn_step, evaluating, hyper_step, hypergradients, stn_step
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import export, general_parameters, response_parameters, self_tune
from sthyper.straight_through.choices import Choice
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.penalties import penalty
from sthyper.straight_through.schedules import LinearTemperature

ACT = choice(["linear", "square", "sign"])


def make(**options: Any) -> Hyperparameters:
    space = {"act": ACT, "drop": uniform(0.0, 0.5), "rate": logfinrange(0.01, 1.0, 3), "on": Gate(probability=0.7)}
    return Hyperparameters({**space, "features": Gate(4)}, **options)


# ---- declarations and read-out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "options"),
    [
        (choice(["a", "b"]), ("a", "b")),
        (ordinal([1, 2, 5]), (1, 2, 5)),
        (logordinal([0.1, 1.0]), (0.1, 1.0)),
        (finrange(0.0, 1.0, 3), (0.0, 0.5, 1.0)),
        (logfinrange(1, 4, 3, cast_int=True), (1, 2, 4)),
    ],
)
def test_finite_domains_become_choices(domain: Any, options: tuple[Any, ...]) -> None:
    h = Hyperparameters({"x": domain}, start={"x": options[1]})
    part = h.discrete["x"]
    assert isinstance(part, Choice)
    assert part.options == options
    assert h.values() == h.config() == {"x": options[1]}
    assert h.probabilities()["x"][options[1]] == pytest.approx(0.8)
    assert (len(h), h.names, h.continuous, "x" in h) == (1, ["x"], [], True)


def test_values_probabilities_and_numbers() -> None:
    h = make(start={"act": "square"})
    assert h.names == ["drop", "act", "rate", "on", "features"]
    assert h.continuous == ["drop"]
    values = h.values()
    assert values.pop("drop") == pytest.approx(0.05)
    assert values == {"act": "square", "rate": 0.01, "on": True, "features": [False] * 4}
    assert h.config() == h.values()
    assert h.probabilities()["on"] == pytest.approx(0.7)
    assert h.probabilities()["act"] == pytest.approx({"linear": 0.1, "square": 0.8, "sign": 0.1})
    numbers = h.numbers()
    assert numbers["act=square"] == pytest.approx(0.8)
    assert numbers["features.size"] == pytest.approx(2.0)
    assert list(numbers)[:4] == ["drop", "act=linear", "act=square", "act=sign"]
    h.set_values({"act": "sign", "on": False, "features": [True, False, True, False], "drop": 0.25})
    assert h.values() == {
        "drop": pytest.approx(0.25),
        "act": "sign",
        "rate": 0.01,
        "on": False,
        "features": [True, False, True, False],
    }


def test_declarations_are_where_they_were() -> None:
    from sthyper.selftuning import hyperparameters

    assert (hyperparameters.Hyperparameter, hyperparameters.bounded) == (Hyperparameter, bounded)


# ---- contexts --------------------------------------------------------------------------------------------


def test_the_most_probable_value_counts_outside_and_off_and_at_the_centre() -> None:
    h = make(start={"act": "square", "rate": 1.0})
    for context in (h.off(), h.centred(), h.use(h.centre())):
        with context:
            assert not h.is_sampled("act")
            assert h["act"].tolist() == [0.0, 1.0, 0.0]
            assert (float(h["rate"]), float(h["on"])) == (1.0, 1.0)
            assert h["features"].tolist() == [0.0] * 4
            assert (h.choice("act"), h.choice("rate"), h.choice("on")) == ("square", 1.0, True)
    assert h.choice("features") == [False] * 4


@pytest.mark.parametrize("where", ["perturbed", "centred"])
def test_samples_of_a_context_stay_the_same_within_it_and_differ_between(where: str) -> None:
    h, names = make(seed=1), ["act", "rate", "on", "features"]
    seen = []
    for _ in range(2):
        context = h.perturbed(30) if where == "perturbed" else h.centred(batch_size=30)
        with context:
            first = [h[name] for name in names]
            assert [tuple(value.shape) for value in first] == [(30, 3), (30,), (30,), (30, 4)]
            assert all(torch.equal(value, h[name]) for value, name in zip(first, names, strict=True))
            assert not any(value.requires_grad for value in first)
            assert torch.equal(h.weights("rate") @ torch.tensor([0.01, 0.1, 1.0]), h["rate"])
            seen.append(first)
    assert all(not torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert set(seen[0][1].tolist()) == set(torch.tensor([0.01, 0.1, 1.0]).tolist())


def test_shared_choices_have_one_sample() -> None:
    h = Hyperparameters({"act": ACT, "each": ACT, "one": Gate(per_example=False)}, shared=["act"])
    with h.perturbed(5):
        assert (h["act"].shape, h["each"].shape, h["one"].shape) == ((3,), (5, 3), ())
        assert h.choice("act") in ("linear", "square", "sign")
        assert h.choice("one") in (True, False)
        with pytest.raises(ValueError, match=r"'each' is sampled for each example; .* \(shared=\['each'\]"):
            h.choice("each")
    with h.use(h.draw(5, same=True)):
        assert h["each"].shape == (3,)


def test_samples_have_gradients_in_hyper_steps_only() -> None:
    h = make()
    with h.centred(tracks=True):
        assert h["act"].shape == (3,)
        assert h["rate"].requires_grad
    with h.centred(tracks=True, batch_size=4):
        assert h["features"].shape == (4, 4)
        assert h["features"].requires_grad


def test_mix_gives_each_example_the_output_of_its_option() -> None:
    h = make(seed=2)
    x = torch.randn(20, 3)
    outputs = [x, x.square(), x.sign()]
    with h.perturbed(20):
        rows = torch.stack(outputs, 1)[torch.arange(20), h["act"].argmax(1)]
        torch.testing.assert_close(h.mix("act", outputs), rows)
    assert h.read == {"act"}


def test_seeds_and_reseeding() -> None:
    def drawn(h: Hyperparameters) -> Tensor:
        with h.perturbed(50):
            return torch.cat([h["act"], h["features"], h["rate"].unsqueeze(1)], 1)

    assert torch.equal(drawn(make(seed=1)), drawn(make(seed=1)))
    assert not torch.equal(drawn(make(seed=1)), drawn(make(seed=2)))
    space = {"each": ACT, "all": Choice(50, per_example=False)}
    ranks = [Hyperparameters(space) for _ in range(1)] + [
        Hyperparameters({"each": ACT, "all": Choice(50, per_example=False)})
    ]
    for rank, h in enumerate(ranks):
        h.reseed(rank, shared_seed=7)
    perturbations = [h.draw(40) for h in ranks]
    assert torch.equal(perturbations[0].choices["all"], perturbations[1].choices["all"])
    assert not torch.equal(perturbations[0].choices["each"], perturbations[1].choices["each"])


# ---- hyper steps -----------------------------------------------------------------------------------------


def test_hypergradients_are_straight_through() -> None:
    h = Hyperparameters({"act": Choice(3, [0.2, 0.3, 0.5]), "on": Gate(probability=0.25)}, seed=0)
    slope = torch.tensor([1.0, -1.0, 3.0])
    loss, gradients = hypergradients(lambda: (h["act"] * 2 + h["on"] * 4).mean(), h, examples=6)
    assert loss.shape == ()
    assert [tuple(g.shape) for g in gradients] == [(0,), (3,), ()]
    p = torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(gradients[1], 2 * p * (torch.arange(3) - (p * torch.arange(3)).sum()))
    torch.testing.assert_close(gradients[2], torch.tensor(4 * 0.25 * 0.75))
    _, single = hypergradients(lambda: h.weights("act") @ slope, h)
    torch.testing.assert_close(single[1], p * (slope - p @ slope))


def test_a_hyper_step_moves_logits_that_matter_and_names_the_others(caplog: pytest.LogCaptureFixture) -> None:
    h = Hyperparameters({"act": ACT, "other": ACT, "on": Gate()}, seed=0)
    optimizer = torch.optim.Adam(h.tuned(), lr=0.1)
    result = hyper_step(
        lambda: (h["act"] @ torch.tensor([1.0, 0.0, 2.0])).mean() - h["on"].mean(), h, optimizer, batch_size=8
    )
    assert result.idle == ("other",)
    assert result.gradients["act=square"] < 0 < result.gradients["act=sign"]
    assert result.gradients["on"] == pytest.approx(-0.25)
    assert h.values()["act"] == "square"
    assert h.probabilities()["on"] > 0.5
    assert h.discrete["other"].logits.tolist() == [0.0, 0.0, 0.0]
    before = h.discrete["act"].logits.detach().clone()
    skipped = hyper_step(lambda: h["act"].mean() * torch.inf, h, optimizer, batch_size=8)
    assert skipped.skipped
    assert torch.equal(h.discrete["act"].logits, before)


def test_costs_move_logits_but_not_of_what_the_loss_does_not_see() -> None:
    for cost, expected in ((0.5, False), (0.01, True)):
        h = Hyperparameters({"on": Gate(), "unseen": Gate()}, seed=0, l0=cost)
        optimizer = torch.optim.SGD(h.tuned(), lr=1.0)
        for _ in range(5):
            hyper_step(lambda h=h: 1 - 0.2 * h["on"].mean(), h, optimizer, batch_size=4)  # type: ignore[misc]
        assert h.values() == {"on": expected, "unseen": False}
        assert h.probabilities()["unseen"] == 0.5
    wide, narrow = (Hyperparameters({"on": Gate(probability=0.6)}, entropy=e, seed=0) for e in (0.0, 2.0))
    for h in (wide, narrow):
        hyper_step(lambda h=h: h["on"].mean() * 1e-6, h, torch.optim.SGD(h.tuned(), lr=1.0))  # type: ignore[misc]
    assert narrow.probabilities()["on"] > wide.probabilities()["on"] + 0.01


def test_logits_stay_where_samples_try_other_options() -> None:
    h = Hyperparameters({"act": ACT, "on": Gate(), "sure": Gate(probability=0.99)}, seed=0)
    optimizer = torch.optim.SGD(h.tuned(), lr=1e3)
    loss = lambda: h["act"][..., 0].mean() + h["on"].mean() - h["sure"].mean()  # noqa: E731
    hyper_step(loss, h, optimizer, bound=2.0, batch_size=4)
    closed = float(torch.sigmoid(torch.tensor(-2.0)))
    assert h.probabilities()["act"]["linear"] == pytest.approx(closed / 2)
    assert float(h.discrete["on"].logits.detach()) == -2.0
    assert h.probabilities()["sure"] == pytest.approx(0.99)  # it began further out
    hyper_step(loss, h, optimizer, bound=None, batch_size=4)
    assert float(h.discrete["on"].logits.detach()) < -2.0


@pytest.mark.parametrize("limit", [0.5, 3.0, 5.0])
@pytest.mark.parametrize("k", [2, 10, 100])
def test_an_option_can_become_all_but_certain_among_many(k: int, limit: float) -> None:
    h = Hyperparameters({"x": choice(list(range(k))), "on": Gate()})
    part = h.discrete["x"]
    most = float(torch.sigmoid(torch.tensor(limit)))
    with torch.no_grad():
        part.logits[1] += 50.0
        part.logits[0] -= 50.0
        h.discrete["on"].logits.fill_(50.0)
    h.clamp_(limit)
    p = part.probabilities().detach()
    assert float(p[1]) == pytest.approx(most, rel=1e-5)
    assert h.probabilities()["on"] == pytest.approx(most, rel=1e-5)
    others = torch.cat([p[:1], p[2:]])
    torch.testing.assert_close(others, torch.full_like(others, (1 - most) / (k - 1)))
    assert float(part.logits.detach().mean()) == pytest.approx(0.0, abs=1e-5)
    before = part.logits.detach().clone()
    h.clamp_(limit)
    torch.testing.assert_close(part.logits.detach(), before, rtol=0.0, atol=1e-6)
    for name, value in (("x", k - 1), ("on", False)):
        h.set_values({name: value})
        h.clamp_(limit)
    assert h.probabilities()["x"][k - 1] == pytest.approx(min(most, 0.99), rel=1e-5)
    assert h.probabilities()["on"] == pytest.approx(max(1 - most, 0.01), rel=1e-5)


def test_probabilities_within_the_bound_stay_and_others_keep_their_proportions() -> None:
    h = Hyperparameters({"x": Choice(4, [0.5, 0.3, 0.1, 0.1])})
    logits = h.discrete["x"].logits
    before = logits.detach().clone()
    h.clamp_(3.0)
    torch.testing.assert_close(logits.detach(), before, rtol=0.0, atol=1e-6)
    with torch.no_grad():
        logits[3] = -50.0
    h.clamp_(3.0)
    floor = float(torch.sigmoid(torch.tensor(-3.0))) / 3
    kept = torch.tensor([0.5, 0.3, 0.1]) / 0.9 * (1 - floor)
    torch.testing.assert_close(h.discrete["x"].probabilities().detach(), torch.cat([kept, torch.tensor([floor])]))
    with torch.no_grad():
        logits[3] = -50.0
    h.clamp_(None)
    assert h.probabilities()["x"][3] < 1e-15


def test_what_began_further_out_may_stay_there() -> None:
    h = Hyperparameters({"x": Choice(3, [0.998, 0.0015, 0.0005]), "on": Gate(probability=0.999)})
    with torch.no_grad():
        h.discrete["on"].logits.add_(1.0)
    h.clamp_(2.0)
    assert h.probabilities()["x"] == pytest.approx({0: 0.998, 1: 0.0015, 2: 0.0005}, rel=1e-4)
    assert h.probabilities()["on"] == pytest.approx(0.999)
    with torch.no_grad():
        h.discrete["x"].logits[0] += 20.0
    h.clamp_(2.0)
    assert h.probabilities()["x"] == pytest.approx({0: 0.999, 1: 0.0005, 2: 0.0005}, rel=1e-4)


@pytest.mark.parametrize("temperature", [2 / 3, 2.0])
def test_the_bound_of_hard_concrete_gates_is_that_of_their_probability(temperature: float) -> None:
    h = Hyperparameters({"on": Gate(2, estimator="hard_concrete", temperature=temperature)})
    with torch.no_grad():
        h.discrete["on"].logits.copy_(torch.tensor([-50.0, 50.0]))
    h.clamp_(3.0)
    expected = torch.sigmoid(torch.tensor([-3.0, 3.0]))
    torch.testing.assert_close(h.discrete["on"].probabilities().detach(), expected)


def test_optimisers_must_hold_the_logits() -> None:
    h = make()
    with pytest.raises(ValueError, match=r"hyper_optimizer must hold hyperparameters\.tuned\(\)"):
        hyper_step(lambda: h["act"].sum(), h, torch.optim.Adam([h.raw], lr=0.1))
    net = nn.Linear(1, 1)
    wrong = torch.optim.SGD([*net.parameters(), h.discrete["act"].logits], lr=0.1)
    with pytest.raises(ValueError, match=r"holds the hyperparameters \(logits of 'act'\)"):
        stn_step(lambda: net.weight.sum(), h, wrong, batch_size=3)
    h = Hyperparameters({"act": ACT})
    with pytest.raises(ValueError, match="validation loss does not depend on the hyperparameters"):
        hyper_step(lambda: net.weight.sum(), h, torch.optim.Adam(h.tuned(), lr=0.1))


# ---- runs ------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A regression of which one of three activations can express the targets."""

    def __init__(self, h: Hyperparameters) -> None:
        super().__init__()
        self.held = [h]
        self.first, self.drop, self.last = nn.Linear(2, 16), nn.Dropout(0.0), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.held[0]
        if "features" in h:
            x = x * h["features"]
        z = self.first(x)
        z = self.drop(h.mix("act", [z, z.square(), z.sign()]))
        return self.last(z).squeeze(1) * h["scale"] if "scale" in h else self.last(z).squeeze(1)


def data(seed: int, first: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 2, generator=generator)[first : first + 256]
    return DataLoader(TensorDataset(x, x[:, 0] ** 2), 32, shuffle=True, generator=generator)


def run(
    h: Hyperparameters, seed: int, kind: Any = None, options: Mapping[str, Any] | None = None, **arguments: Any
) -> SelfTuner:
    torch.manual_seed(seed)
    model = Net(h)
    if kind is not None:
        self_tune(model, h, kind=kind)
    chosen = SelfTunerOptions(**{"hyper_lr": 0.1, **(options or {})})
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    return SelfTuner(
        model, h, data(seed), data(seed, 256), F.mse_loss, options=chosen, weight_optimizer=adam, **arguments
    )


@pytest.mark.parametrize("estimator", ["identity", "gumbel"])
@pytest.mark.parametrize("seed", range(5))
def test_the_better_activation_is_found(estimator: Any, seed: int) -> None:
    temperature = LinearTemperature(2.0, 0.2) if estimator == "gumbel" else None
    h = Hyperparameters({"act": Choice(ACT, estimator=estimator, temperature=temperature)}, seed=seed)
    result = run(h, seed, options={"restore_best": False}).fit(20)
    assert h.values() == result.final_values == {"act": "square"}
    assert h.probabilities()["act"]["square"] > 0.8
    assert result.best_val_loss < 0.1
    part = h.discrete["act"]
    assert part.progress > 0.9
    assert part.temperature == (pytest.approx(2.0 - 1.8 * part.progress) if estimator == "gumbel" else 2 / 3)


@pytest.mark.parametrize("kind", ["delta", "stn"])
@pytest.mark.parametrize("seed", range(2))
def test_choices_and_continuous_hyperparameters_together(kind: Any, seed: int) -> None:
    space = {"act": ACT, "drop": uniform(0.0, 0.5), "features": Gate(2, 0.9)}
    h = Hyperparameters(space, start={"drop": 0.2}, seed=seed, l0=0.05)
    tuner = run(h, seed, kind)
    result = tuner.fit(20)
    assert result.values["act"] == "square"
    # The second feature is noise, and open gates cost.
    assert h.probabilities()["features"][0] > h.probabilities()["features"][1] + 0.2
    assert result.values["drop"] < 0.2
    assert result.skipped == 0


def test_a_scale_that_validation_decides() -> None:
    """Weights that cannot grow need the largest factor."""
    found = []
    for seed in range(3):
        h = Hyperparameters({"scale": logfinrange(0.1, 10.0, 3)}, seed=seed)
        torch.manual_seed(seed)
        x = torch.randn(64, 3)
        y = 10 * x.tanh().sum(1)

        class Bounded(nn.Module):
            def __init__(self, h: Hyperparameters) -> None:
                super().__init__()
                self.h, self.w = [h], nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                return (x.tanh() @ self.w.clamp(0.0, 1.0)) * self.h[0]["scale"]

        batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
        SelfTuner(Bounded(h), h, batches, batches, F.mse_loss, options=SelfTunerOptions(hyper_lr=0.1)).fit(15)
        found.append(h.values()["scale"])
    assert found == [10.0] * 3


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def test_the_plain_functions_sample_in_training() -> None:
    updates: list[Any] = ["linearised", "nonlinear", "joint"]
    for update in updates:
        h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)}, seed=0)
        torch.manual_seed(0)
        model = Net(h)
        self_tune(model, h, dropout={"drop": "drop"})
        seen: list[tuple[int, ...]] = []
        loss = partial(_loss, model, *next(iter(data(0))))
        model.last.register_forward_hook(lambda *_, h=h, seen=seen: seen.append(tuple(h["act"].shape)))
        general = torch.optim.SGD(general_parameters(model), lr=0.01)
        response = torch.optim.Adam(response_parameters(model), lr=0.01)
        before = h.discrete["act"].logits.detach().clone()
        delta_stn_step(loss, h, general, response, 32, update)
        assert set(seen) == {(32, 3)}
        assert torch.equal(h.discrete["act"].logits, before)
        seen.clear()
        hyper = torch.optim.Adam(h.tuned(), lr=0.1)
        with evaluating(model):
            hyper_step(loss, h, hyper, batch_size=32)
            hyper_step(loss, h, hyper)
        assert seen == [(32, 3), (3,)]
        assert not torch.equal(h.discrete["act"].logits, before)
        assert all(p.grad is None for p in model.parameters())


def test_without_continuous_ones_a_delta_step_needs_no_response() -> None:
    h = Hyperparameters({"act": ACT}, seed=0)
    model = self_tune(Net(h), h)
    assert response_parameters(model) == []
    x, y = next(iter(data(0)))
    optimizers = [torch.optim.SGD(general_parameters(model), lr=0.1), torch.optim.SGD([torch.zeros(1)], lr=0.1)]
    before = copy.deepcopy(model.state_dict())
    result = delta_stn_step(lambda: F.mse_loss(model(x), y), h, optimizers[0], optimizers[1], len(x))
    assert result.response_loss is None
    assert not torch.equal(model.state_dict()["last.weight"], before["last.weight"])
    assert run(h, 0).fit(1).best_epoch == 1


def test_tuned_scales_beside_choices() -> None:
    h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)}, seed=0)
    options = {"tune_scales": True, "entropy_weight": 0.01}
    result = run(h, 0, "delta", options).fit(15)
    assert result.values["act"] == "square"
    assert h.scales()["drop"] != 1.0


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("tune_scales", [False, True])
def test_reference_steps_sample_and_tune_choices(delta: bool, tune_scales: bool) -> None:
    h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)}, seed=0)
    torch.manual_seed(0)
    model = Net(h)
    self_tune(model, h, kind="delta" if delta else "stn", dropout={"drop": "drop"})
    hyper = torch.optim.Adam(h.tuned(), lr=0.1)
    scale = torch.optim.Adam([h.raw_scale], lr=0.1) if tune_scales else None
    general, responses = general_parameters(model), response_parameters(model)
    steps: DeltaStnStepOptimizer | StnStepOptimizer
    if delta:
        first, second = (torch.optim.Adam(parameters, lr=0.01) for parameters in (general, responses))
        steps = DeltaStnStepOptimizer(model, first, second, hyper, scale, F.mse_loss, h, tune_scales)
    else:
        adam = torch.optim.Adam(general + responses, lr=0.01)
        steps = StnStepOptimizer(model, adam, hyper, scale, F.mse_loss, h, tune_scales)
    seen: list[tuple[int, ...]] = []
    model.last.register_forward_hook(lambda *_: seen.append(tuple(h["act"].shape)))
    trainer = StnTrainer(steps, data(0), data(0, 256), None, lambda *_, **__: 0.0, h, None, 2, 12, train_steps=2)
    trainer.train()
    assert set(seen) == {(32, 3)}
    assert h.values()["act"] == "square"


def test_a_search_around_the_run_may_set_choices(tmp_path: Path) -> None:
    def make_run(config: dict[str, Any]) -> SelfTuner:
        h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)}, seed=0)
        return run(h, 0, "delta", {"tune": False})

    objective = self_tuning_objective(make_run, epochs=1)
    made = objective._made({"act": "sign", "drop": 0.25})
    assert made.hyperparameters.values() == {"act": "sign", "drop": pytest.approx(0.25)}


def test_a_resumed_run_goes_on_exactly() -> None:
    def make_run() -> SelfTuner:
        part = Choice(ACT, estimator="gumbel", temperature=LinearTemperature(2.0, 0.5))
        return run(Hyperparameters({"act": part, "features": Gate(2), "drop": uniform(0, 0.5)}, seed=0), 0, "delta")

    whole = make_run()
    whole.fit(4)
    first = make_run()
    kept: dict[str, Any] = {}

    def keep(event: str, tuner: SelfTuner) -> None:
        if event == "hyper_step" and tuner.step == 20:
            kept.update(copy.deepcopy(tuner.state_dict()))

    first.callback = keep
    first.fit(4)
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    buffer.seek(0)
    second = make_run()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    second.fit(4)
    for name, value in whole.hyperparameters.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second.hyperparameters.state_dict()[name]), name
    assert whole.hyperparameters.numbers() == second.hyperparameters.numbers()
    assert whole.history[1:] == second.history[1:]


def test_reports_and_schedules_hold_probabilities(tmp_path: Path) -> None:
    h = Hyperparameters({"act": ACT, "features": Gate(2), "on": Gate()}, seed=0)
    reports: list[dict[str, Any]] = []
    tuner = run(h, 0, reporter=lambda **report: reports.append(report))
    tuner.fit(3)
    columns = ["act=linear", "act=square", "act=sign", "features.size", "on"]
    assert tuner.schedule.names == columns
    assert tuner.schedule.final() == pytest.approx(h.numbers())
    assert {f"value/{name}" for name in columns} < set(reports[-1])
    assert reports[-1]["value/act=square"] == pytest.approx(h.probabilities()["act"]["square"])
    assert tuner.schedule.hypergradients("act=square").isfinite().any()
    assert tuner.history[-1].values == h.values()
    tuner.schedule.to_csv(tmp_path / "schedule.csv")
    assert Schedule.from_csv(tmp_path / "schedule.csv").final() == pytest.approx(h.numbers())
    # The read-out does not depend on what a row was recorded from, nor on its order.
    again = Schedule(["on", *columns[:4]])
    again.record(h, step=0, epoch=0)
    assert again.final() == pytest.approx(h.numbers())


def test_a_schedule_of_probabilities_is_replayed_by_the_most_probable_option() -> None:
    h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)})
    schedule = Schedule()
    for step, (a, b, c, drop) in enumerate([(0.5, 0.3, 0.2, 0.1), (0.1, 0.2, 0.7, 0.3)]):
        row = {"act=linear": a, "act=square": b, "act=sign": c, "drop": drop}
        schedule.record(row, step=10 * step, epoch=step)
    control = Replay(schedule, h)
    seen = []
    for step in (0, 9, 10):
        with control.at(step):
            seen.append((h.choice("act"), round(float(h["drop"]), 4)))
    assert seen == [("linear", 0.1), ("linear", 0.1), ("sign", 0.3)]
    with FixedValues(h, {"act": "square"}).at(0):
        assert h.choice("act") == "square"
    with pytest.raises(ValueError, match=r"'act' must be one of .*, got 'squaer' \(did you mean 'square'\?\)"):
        FixedValues(h, {"act": "squaer"})


# ---- modules ---------------------------------------------------------------------------------------------


def test_one_of_several_modules() -> None:
    h = Hyperparameters({"act": ACT, "drop": uniform(0.0, 0.5)}, start={"act": "square"}, seed=0)

    class Square(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.square()

    operations = {"sign": nn.Tanh(), "linear": nn.Identity(), "square": Square()}
    model = nn.Sequential(nn.Linear(2, 4), OneOf(h, "act", operations), nn.Linear(4, 1))
    names = list(model.state_dict())
    self_tune(model, h)
    x = torch.randn(6, 2)
    with h.perturbed(6):
        z = model[0](x)
        expected = torch.stack([z, z.square(), z.tanh()], 1)[torch.arange(6), h["act"].argmax(1)]
        torch.testing.assert_close(model[1](z), expected)
    operations["square"].calls = 0  # type: ignore[assignment]
    y = model(x)
    assert operations["square"].calls == 1
    plain: Any = export(model)
    torch.testing.assert_close(plain(x), y)
    assert type(plain[1]).__name__ == "Square"
    assert list(plain.state_dict()) == names
    h.set_values({"act": "linear"})
    plain = export(model)
    assert isinstance(plain[1], nn.Identity)
    with pytest.raises(ValueError, match=r"there is no choice 'atc' \(did you mean 'act'\?\)"):
        OneOf(h, "atc", operations)
    with pytest.raises(ValueError, match="operations must be one for each .*: see 'tanh'"):
        OneOf(h, "act", {**operations, "tanh": nn.Tanh()})
    with pytest.raises(ValueError, match="got 2 of them"):
        OneOf(h, "act", [nn.Tanh(), nn.ReLU()])


# ---- state and errors ------------------------------------------------------------------------------------


def test_state_and_copies() -> None:
    h = make(seed=3)
    h.set_values({"act": "sign", "on": False})
    h.set_progress(0.5)
    with h.perturbed(3):
        pass
    fresh = make(seed=9)
    fresh.load_state_dict(h.state_dict())
    following = h.draw(20).choices
    # The generator of the original has gone on.
    h.load_state_dict(fresh.state_dict())
    for one in (fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        assert one.values() == h.values()
        assert one.discrete["act"].progress == 0.5
        assert one.discrete["act"] is not h.discrete["act"]
    assert all(torch.equal(following[name], value) for name, value in fresh.draw(20).choices.items())
    other = Hyperparameters({"act": ACT})
    with pytest.raises((ValueError, RuntimeError)):
        other.load_state_dict(h.state_dict())


def test_types_of_parameters() -> None:
    h = make(dtype=torch.float64)
    assert {p.dtype for p in h.parameters()} == {torch.float64}
    assert h["rate"].dtype == torch.float64
    assert [tuple(p.shape) for p in h.tuned()] == [(1,), (3,), (3,), (), (4,)]


def test_registering() -> None:
    h = Hyperparameters([bounded("x", 0.5, 0.0, 1.0)])
    h.register(Gate(2, name="gate"))
    h.register(Choice(3), "choice")
    assert h.names == ["x", "gate", "choice"]
    with pytest.raises(ValueError, match="two hyperparameters of the name 'gate'"):
        h.register(Gate(3), "gate")
    with pytest.raises(ValueError, match="name must be given"):
        h.register(Gate(3))
    part = Gate(3)
    with pytest.raises(ValueError, match="'b': the same Gate is there under another name"):
        Hyperparameters({"a": part, "b": part})
    h.draw(2)
    with pytest.raises(RuntimeError, match="'late' comes too late"):
        h.register(Gate(3), "late")


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"act": ACT}, {"start": {"act": "squaer"}}, r"'act': start must be one of .* \(did you mean 'square'\?\)"),
        ({"act": ACT}, {"scale": {"act": 0.5}}, "scale: 'act' is a choice"),
        ({"act": choice(["a"])}, {}, "'act': options must be at least two"),
        ({"act": ACT}, {"l0": -1.0}, "l0 must be at least 0"),
        ({"act": ACT}, {"entropy": -1.0}, "entropy must be at least 0"),
        ({"on": Gate(estimator="reinforce")}, {}, "'on': estimator 'reinforce' passes no gradient"),
        ({"on": Gate()}, {"shared": ["on"]}, "shared: there is no domain 'on'"),
        ({"on": Gate(seed=3)}, {}, "'on': seed=3 has no effect here"),
        ({"act": Choice(3, evaluation="sample")}, {}, "'act': evaluation='sample' has no effect"),
        ({"on": Gate(3, dim=1)}, {}, "'on': dim=1 has no effect"),
        ({"u": uniform(0, 1)}, {"l0": 1.0}, "l0=1.0 has no effect"),
        ({"u": uniform(0, 1)}, {"entropy": 1.0}, "entropy=1.0 has no effect"),
        ({"act": ACT, "u": uniform(0, 1)}, {"l0": 1.0}, "l0=1.0 has no effect"),
    ],
)
def test_what_is_refused(space: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hyperparameters(space, **options)


def test_costs_of_what_is_registered_later() -> None:
    h = Hyperparameters(l0=1.0, entropy=1.0)
    h.register(bounded("x", 0.5, 0.0, 1.0))
    h.register(Gate(name="on"))
    assert len(h.tuned()) == 2
    h = Hyperparameters(l0=1.0)
    h.register(Choice(2, costs=[0.0, 1.0]), "x")
    h.draw(2)
    assert h.discrete.cost_gradients()[0].tolist() == pytest.approx([-0.25, 0.25])
    h = Hyperparameters(l0=1.0)
    h.register(Choice(2), "free")
    uses: list[Any] = [lambda: h.draw(2), h.tuned, h.parameters, lambda: list(h.named_parameters())]
    for use in uses:
        with pytest.raises(ValueError, match=r"l0=1\.0 has no effect: it is the cost of open gates"):
            list(use())
    # Nothing is sealed by that.
    h.register(Gate(name="on"))
    assert h.draw(2).choices.keys() == {"free", "on"}
    h = Hyperparameters(entropy=1.0)
    h.register(bounded("x", 0.5, 0.0, 1.0))
    with pytest.raises(ValueError, match="there is neither gate nor choice"):
        h.draw(2)


def test_penalties_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"l0=1\.0 has no effect: .* give Choice\(costs=\[\.\.\.\]\)"):
        penalty([Choice(2)], l0=1.0)
    assert float(penalty([Choice(2)]).detach()) == 0.0
    assert float(penalty([Choice(2)], entropy=1.0).detach()) == pytest.approx(math.log(2))
    assert float(penalty([Choice(2), Gate()], l0=1.0).detach()) == pytest.approx(0.5)


def test_names_are_looked_up_where_they_are() -> None:
    h = make()
    with pytest.raises(KeyError, match="'act' is a Choice; see discrete"):
        h.declaration("act")
    with pytest.raises(KeyError, match="there is no hyperparameter 'atc'.*did you mean 'act'"):
        h["atc"]
    with pytest.raises(KeyError, match="there is no choice 'drop'"):
        h.weights("drop")
    with pytest.raises(KeyError, match="'on' is a gate"):
        h.weights("on")
    with pytest.raises(ValueError, match=r"'features' must be True or False for each .* got \[True\]"):
        h.set_values({"features": [True]})
    with pytest.raises(ValueError, match="'act' must be one of"):
        h.set_values({"act": 3})


def test_unread_choices_are_named(caplog: pytest.LogCaptureFixture) -> None:
    h = Hyperparameters({"act": ACT, "other": ACT}, seed=0)
    with caplog.at_level(logging.WARNING):
        result = run(h, 0).fit(2)
    assert result.idle == ("other",)
    assert any("['other'] were used nowhere" in message for message in caplog.messages)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    h = make(device="cuda", seed=0)
    with h.perturbed(5):
        assert h["act"].device.type == h["features"].device.type == "cuda"
        assert h["rate"].shape == (5,)
    assert torch.equal(
        make(device="cuda", seed=0).draw(9).choices["act"], make(device="cuda", seed=0).draw(9).choices["act"]
    )
