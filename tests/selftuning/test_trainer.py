from __future__ import annotations

import copy
import io
import logging
import math
import random
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sthyper.config_space import choice, loguniform, uniform
from sthyper.selftuning._batches import part_of_batch
from sthyper.selftuning._trainer_pace import rhythm_of
from sthyper.selftuning.controls import FixedValues, GaussianValues, Replay
from sthyper.selftuning.hyperparameters import Hyperparameter, Hyperparameters
from sthyper.selftuning.maps import Between
from sthyper.selftuning.regularisers import smoothed_cross_entropy
from sthyper.selftuning.trainer import NonmonotonicDecay, SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune, squared_norms

N, BATCH = 40, 8


def examples(n: int = N, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    y = (x[:, :3].sum(1) + 0.5 * torch.randn(n, generator=g) > 0).long()
    return TensorDataset(x, y)


def loader(n: int = N, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(examples(n, seed), batch_size=BATCH, **({"shuffle": True} | options))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 2))


def tuner(kind: Any = "delta", **given: Any) -> SelfTuner:
    """Return a trainer of a small network with one dropout rate; ``options`` are those of SelfTunerOptions."""
    model = network()
    h = Hyperparameters({"rate": uniform(0.0, 0.9)}, start={"rate": 0.3})
    options = {"warm_up_epochs": 1, "weight_lr": 0.1, "train_steps": 2} | given.pop("options", {})
    self_tune(model, h, kind=kind, dropout={"*": "rate"})
    train, val = given.pop("train", loader()), given.pop("val", loader(24, 1))
    return SelfTuner(model, h, train, val, options=SelfTunerOptions(**options), **given)


def weights(run: SelfTuner) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- a run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_a_run_counts_its_steps_and_moves_the_hyperparameters(kind: Any) -> None:
    run = tuner(kind)
    result = run.fit(5)
    assert (run.epoch, run.step) == (5, 25)
    # 5 steps an epoch, the first epoch is the warm-up: 20 steps at 2 : 1.
    assert run.hyper_steps == 10
    assert [r.hyper_steps for r in result.history] == [0, 0, 2, 5, 7, 10]
    assert result.history[1].values == result.history[0].values
    assert result.final_values != result.history[0].values
    assert math.isnan(result.history[0].train_loss)
    assert result.best_val_loss == min(r.val_loss for r in result.history[1:])
    assert result.history[result.best_epoch].val_loss == result.best_val_loss
    assert result.values == result.history[result.best_epoch].values
    assert result.history[-1].val_loss < result.history[0].val_loss
    assert result.stopped_by == "epochs"
    assert (result.skipped, result.idle) == (0, ())


def test_the_best_epoch_is_restored_with_its_hyperparameters() -> None:
    for restore in (True, False):
        run = tuner(options={"restore_best": restore, "hyper_lr": 0.5, "weight_lr": 0.5})
        result = run.fit(8)
        assert result.best_epoch < 8  # else there is nothing to restore
        assert result.values != result.final_values
        expected = result.values if restore else result.final_values
        assert run.hyperparameters.values() == pytest.approx(expected)
        loss = result.best_val_loss if restore else result.history[-1].val_loss
        assert run.evaluate() == pytest.approx(loss, rel=1e-6)
        if not restore:
            with pytest.raises(RuntimeError, match="restore_best=False"):
                run.restore_best()


def test_cadence_and_warm_up() -> None:
    for options, expected in (
        ({"train_steps": 5, "hyper_steps": 1}, 2),
        ({"train_steps": 1, "hyper_steps": 2}, 20),
        ({"train_steps": 3}, 3),
        ({"warm_up_epochs": 0}, 7),
        ({"warm_up_epochs": 3}, 0),
        ({"hyper_steps": 0}, 0),
    ):
        run = tuner(options=options)
        run.fit(3)
        assert run.hyper_steps == expected, options
    # A tenth of the run by default, at least one epoch.
    for epochs, hyper_steps in ((3, 5), (20, 45)):
        run = tuner(options={"warm_up_epochs": None})
        run.fit(epochs)
        assert run.hyper_steps == hyper_steps


@pytest.mark.parametrize(("part", "expected"), [(0.25, 32), (0.9, 72), (1.0, 80)])
def test_responses_see_a_part_of_each_batch(part: float, expected: int) -> None:
    seen: list[Tensor] = []

    def transform(x: Tensor, y: Tensor, h: Hyperparameters) -> tuple[Tensor, Tensor]:
        if h["rate"].dim():
            seen.append(x)
        return x, y

    whole = DataLoader(examples(80), batch_size=80)
    run = tuner(options={"response_part": part}, train=whole, transform=transform)
    run.fit(4)
    assert [len(x) for x in seen] == [expected] * 4
    assert torch.equal(seen[0], seen[1]) == (part == 1), "others each time"


@pytest.mark.parametrize(
    ("options", "turns"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"response_warm_up": 0}, {0, 2, 4}),
        ({"response_warm_up": 1}, {0, 1, 3}),
        ({"response_warm_up": 0, "response_every": 1}, {0, 1, 2, 3, 4}),
        ({"response_warm_up": 2, "response_every": 9}, {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("update", ["linearised", "nonlinear"])
def test_responses_are_updated_in_some_of_the_steps(options: dict[str, int], turns: set[int], update: str) -> None:
    responses: list[list[Tensor]] = []
    general: list[list[Tensor]] = []

    def after(event: str, run: SelfTuner) -> None:
        responses.append([p.detach().clone() for p in response_parameters(run.model)])
        general.append([p.detach().clone() for p in general_parameters(run.model)])

    run = tuner(options={"hyper_steps": 0, "update": update, **options}, callback=after)
    after("start", run)
    run.fit(1)
    steps = range(run.step)
    assert len(steps) == 5
    assert {i for i in steps if not same(responses[i], responses[i + 1])} == turns
    assert not any(same(general[i], general[i + 1]) for i in steps)


@pytest.mark.parametrize("update", ["linearised", "joint"])
def test_hyperparameters_rest_at_the_end_of_a_run(update: Any) -> None:
    ends: list[tuple[list[Tensor], list[Tensor], dict[str, Any]]] = []

    def after(event: str, run: SelfTuner) -> None:
        if event == "epoch":
            parameters = (general_parameters(run.model), response_parameters(run.model))
            general, responses = ([p.detach().clone() for p in each] for each in parameters)
            ends.append((general, responses, run.hyperparameters.values()))

    options = {"update": update, "rest": 0.25, "warm_up_epochs": 2, "restore_best": False}
    run = tuner(options=options, callback=after)
    result = run.fit(10)
    # Of the eight epochs after the warm-up the last two: 5 steps an epoch, 2 to a hyper step.
    assert [r.hyper_steps for r in result.history[1:]] == [0, 0, 2, 5, 7, 10, 12, 15, 15, 15]
    assert [a[2] == b[2] for a, b in pairwise(ends[2:])] == [False] * 5 + [True, True]
    assert not same(ends[-1][0], ends[-2][0])
    # What is trained in one pass with the weights goes on.
    assert same(ends[-1][1], ends[-3][1]) == (update == "linearised")
    assert not same(ends[-3][1], ends[-4][1])
    # A longer run tunes on.
    run.fit(20)
    assert [r.hyper_steps for r in run.history[11:14]] == [22, 25, 27]


def test_long_runs_have_fewer_updates_a_step_if_nothing_else_is_said() -> None:
    short, long = (rhythm_of(SelfTunerOptions(), steps) for steps in (2133, 2134))
    assert (short.train_steps, short.response_warm_up, short.response_every) == (3, 1000, 2)
    assert (long.train_steps, long.response_warm_up, long.response_every) == (4, 500, 4)
    own = rhythm_of(SelfTunerOptions(train_steps=7, response_warm_up=0, response_every=1), 2134)
    assert own == replace(long, train_steps=7, response_warm_up=0, response_every=1)


@pytest.mark.parametrize(("least", "hyper_steps"), [(76, (100 - 10) // 3), (75, (100 - 25) // 4)])
def test_a_long_run_has_fewer_hyper_steps(least: int, hyper_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sthyper.selftuning._trainer_pace._LEAST_TUNED", least)
    run = tuner(options={"warm_up_epochs": None, "train_steps": None})
    run.fit(20)
    assert (run.step, run.hyper_steps) == (100, hyper_steps)


@pytest.mark.parametrize("by", ["epochs", "progress"])
def test_the_warm_up_of_long_runs_is_longer_and_responses_begin_in_the_middle(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses: list[list[Tensor]] = []

    def after(event: str, run: SelfTuner) -> None:
        if event == "epoch":
            responses.append([p.detach().clone() for p in response_parameters(run.model)])

    def begins() -> tuple[int, int]:
        """Return the first epochs with response updates and with hyper steps of a run of 20 epochs, 100 steps."""
        responses.clear()
        run = tuner(options={"warm_up_epochs": None, "restore_best": False}, callback=after)
        responses.append([p.detach().clone() for p in response_parameters(run.model)])
        run.fit(20) if by == "epochs" else run.fit(progress=lambda: run.step / 100)
        assert run.epoch == 20
        moved = [not same(a, b) for a, b in pairwise(responses)]
        assert moved == sorted(moved), "once they have begun they go on"
        return moved.index(True), [r.hyper_steps > 0 for r in run.history[1:]].index(True)

    monkeypatch.setattr("sthyper.selftuning._trainer_pace._LEAST_TUNED", 76)
    # The length of a run by progress is not known before its first epoch is over.
    assert begins() == ((0, 2) if by == "epochs" else (1, 2))
    monkeypatch.setattr("sthyper.selftuning._trainer_pace._LEAST_TUNED", 75)
    assert begins() == (2, 5)


@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_a_run_of_two_epochs_by_progress_is_tuned_in_the_second(kind: Any) -> None:
    moved: list[bool] = []

    def after(event: str, run: SelfTuner) -> None:
        if event == "train_step":
            now = [p.detach().clone() for p in response_parameters(run.model)]
            moved.append(not same(before[-1], now))
            before.append(now)

    run = tuner(kind, options={"warm_up_epochs": None, "restore_best": False}, callback=after)
    before = [[p.detach().clone() for p in response_parameters(run.model)]]
    run.fit(progress=lambda: run.step / 10)  # five steps an epoch
    assert (run.epoch, run.hyper_steps) == (2, 2)
    # Of kind "delta" from an eighth of the run on.
    assert moved == ([False, False] if kind == "delta" else [True, True]) + [True] * 8


@pytest.mark.parametrize("name", ["response_lr", "response_part", "response_every", "response_warm_up"])
def test_options_of_responses_that_have_no_effect(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no effect"):
        tuner("stn", options={name: 1})
    model = network()
    h = Hyperparameters({"act": choice(["relu", "tanh"])})
    with pytest.raises(ValueError, match=f"{name} has no effect here, leave it out"):
        SelfTuner(model, h, loader(), loader(24, 1), options=SelfTunerOptions(**{name: 1}))
    if name != "response_lr":
        with pytest.raises(ValueError, match=f"{name} has no effect"):
            SelfTunerOptions(update="joint", **{name: 1})


def test_a_part_of_a_batch() -> None:
    n = 160
    x, y = torch.arange(2.0 * n).reshape(n, 2), torch.arange(n)
    (inputs, targets), length = part_of_batch((x, {"y": y, "n": 3}), 0, n, 0.5, turn=1)
    assert length == 20 * 4
    assert torch.equal(inputs[:, 0] / 2, targets["y"])
    assert targets["n"] == 3
    starts = [int(part_of_batch(y, 0, n, 0.5, turn)[0][0]) for turn in range(n)]
    assert (min(starts), max(starts)) == (0, 80)
    assert part_of_batch(x.T, 1, n, 0.5, 0)[0].shape == (2, 80)
    assert part_of_batch(y, 0, n, 0.01, 0)[1] == 32
    assert part_of_batch(y[:64], 0, 64, 0.5, 0)[1] == 64, "small batches are taken whole"
    assert part_of_batch(y[:65], 0, 65, 0.5, 0)[1] == 32
    # Of what has its examples elsewhere, or is no tensor, nothing can be cut off.
    for batch in ((x, y[:30]), (x.T, y), (x, ["a"] * n), (x, torch.tensor(1.0))):
        assert part_of_batch(batch, 0, n, 0.5, 1) == (batch, n)


def test_without_hyper_steps_training_is_perturbed_all_the_same() -> None:
    control, plain = tuner(options={"hyper_steps": 0, "update": "joint"}), tuner(options={"tune": False})
    control.fit(2)
    plain.fit(2)
    assert control.hyperparameters.values() == plain.hyperparameters.values()
    assert not same(general_parameters(control.model), general_parameters(plain.model))
    assert same(response_parameters(plain.model), response_parameters(tuner().model))
    assert not same(response_parameters(control.model), response_parameters(plain.model))


def test_updates_differ() -> None:
    after = {}
    for update in (None, "linearised", "nonlinear", "joint"):
        run = tuner(options={"update": update, "warm_up_epochs": 3})
        run.fit(2)
        after[update] = weights(run)
    assert same(after[None], after["linearised"])
    assert not same(after["linearised"], after["nonlinear"])
    assert not same(after["joint"], after["nonlinear"])


def test_the_baseline_is_a_plain_loop_to_the_last_bit() -> None:
    def data() -> DataLoader[Any]:
        return loader(generator=torch.Generator().manual_seed(5))

    def by_hand(model: nn.Module, h: Hyperparameters | None = None) -> nn.Module:
        optimizer = torch.optim.SGD(
            model.parameters() if h is None else general_parameters(model), lr=0.1, momentum=0.9
        )
        torch.manual_seed(11)
        model.train()
        for _ in range(3):
            for x, y in batches:
                optimizer.zero_grad()
                with nullcontext() if h is None else h.off():
                    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return model

    def trained(model: nn.Module, h: Hyperparameters) -> nn.Module:
        options = SelfTunerOptions(tune=False, weight_lr=0.1, restore_best=False)
        run = SelfTuner(model, h, data(), loader(24, 1), options=options)
        torch.manual_seed(11)
        run.fit(3)
        return model

    h = Hyperparameters({"rate": uniform(0.0, 0.9)})
    batches = data()
    expected = by_hand(network())
    for model in (network(), self_tune(network(), h, dropout=None)):
        trained(model, h)
        state = {name: t for name, t in model.state_dict().items() if not name.startswith("selftuning")}
        assert list(state) == list(expected.state_dict())
        assert same(state.values(), expected.state_dict().values())
    # With tunable dropout at a fixed rate, against a loop over the same layers.
    models = [self_tune(network(), h, dropout={"*": "rate"}) for _ in range(2)]
    batches = data()
    assert same(general_parameters(trained(models[0], h)), general_parameters(by_hand(models[1], h)))


def test_running_statistics_and_modes_are_those_of_the_centre() -> None:
    run = tuner(options={"hyper_lr": 1e-9, "warm_up_epochs": 0, "restore_best": False})
    run.model[1].eval()  # type: ignore[index]
    norm: Any = run.model[1]  # type: ignore[index]
    before = norm.running_mean.clone()
    run.fit(2)
    assert run.model.training
    assert not norm.training
    assert torch.equal(norm.running_mean, before)
    statistics = []
    for tune in (True, False):
        run = tuner(train=loader(shuffle=False), options={"tune": tune, "hyper_lr": 1e-9, "restore_best": False})
        run.model[3].eval()  # type: ignore[index]
        run.fit(2)
        statistics.append(run.model[1].running_var)  # type: ignore[index]
    torch.testing.assert_close(statistics[0], statistics[1], rtol=1e-5, atol=1e-6)


# ---- options -------------------------------------------------------------------------------------------------


def test_learning_rates_and_momentum_reach_the_optimisers() -> None:
    options = {"weight_lr": 0.2, "momentum": 0.5, "response_lr": 0.03, "hyper_lr": 0.04, "tune_scales": True}
    for scale_lr, expected in ((None, 0.04), (0.07, 0.07)):
        o = tuner(options={**options, "scale_lr": scale_lr}).optimizers
        assert o.hyper is not None
        assert o.scales is not None
        assert o.responses is not None
        assert o.weights.param_groups[0]["lr"] == 0.2
        assert o.weights.param_groups[0]["momentum"] == 0.5
        assert o.responses.param_groups[0]["lr"] == 0.03
        assert o.hyper.param_groups[0]["lr"] == 0.04
        assert o.scales.param_groups[0]["lr"] == expected
    assert tuner("stn").optimizers.responses is None


def test_the_learning_rate_of_the_hyperparameters_falls_to_its_end() -> None:
    for end, expected in ((0.1, [1.0, 1.0, 0.7, 0.4]), (1.0, [1.0] * 4)):
        rates: list[float] = []

        def note(event: str, run: SelfTuner, rates: list[float] = rates) -> None:
            if event == "epoch":
                assert run.optimizers.hyper is not None
                rates.append(run.optimizers.hyper.param_groups[0]["lr"] / 0.02)

        tuner(options={"hyper_lr_end": end, "hyper_lr": 0.02}, callback=note).fit(4)
        assert rates == pytest.approx(expected)
    # One of the user's own is left alone.
    run = tuner(hyper_optimizer=lambda ps: torch.optim.SGD(ps, lr=0.3))
    run.fit(3)
    assert run.optimizers.hyper is not None
    assert run.optimizers.hyper.param_groups[0]["lr"] == 0.3


def test_tuned_scales_move_and_the_entropy_keeps_them_large() -> None:
    sigma = {}
    for name, options in (
        ("fixed", {}),
        ("tuned", {"tune_scales": True}),
        ("large", {"tune_scales": True, "entropy_weight": 10.0}),
        ("bounded", {"tune_scales": True, "entropy_weight": 10.0, "scale_bounds": (0.1, 1.05)}),
    ):
        run = tuner(options={"hyper_lr": 0.1, "hyper_lr_end": 1.0, "restore_best": False, **options})
        sigma[name] = run.fit(5).history[-1].scales["rate"]
    assert sigma["fixed"] == pytest.approx(1.0)
    assert sigma["tuned"] != pytest.approx(1.0, abs=1e-3)
    assert sigma["large"] > 1.3
    assert sigma["bounded"] == pytest.approx(1.05)


def test_bound_groups_and_max_norm_have_an_effect() -> None:
    free, bounded = (tuner(options={"bound": b, "hyper_lr": 50.0, "restore_best": False}) for b in (None, 1.0))
    free.fit(2)
    bounded.fit(2)
    assert float(bounded.hyperparameters.raw.detach().abs()) <= 1.0 < float(free.hyperparameters.raw.detach().abs())
    groups, clipped, other = (
        tuner(options={"update": "joint", "warm_up_epochs": 3, **o}) for o in ({"groups": 2}, {"max_norm": 1e-3}, {})
    )
    for run in (groups, clipped, other):
        run.fit(1)
    assert not same(weights(groups), weights(other))
    start = general_parameters(tuner().model)
    moves = [
        max(float((a - b).detach().abs().max()) for a, b in zip(general_parameters(r.model), start, strict=True))
        for r in (clipped, other)
    ]
    assert moves[0] < 0.01 < moves[1]


def test_patience_and_nonmonotonic_decay() -> None:
    options = {"weight_lr": 1e-12, "response_lr": 1e-12, "hyper_lr": 1e-12}
    run = tuner(options={**options, "patience": 3}, loss=worse_and_worse())
    assert run.fit(50).stopped_by == "patience"
    assert (run.epoch, run.best.epoch) == (4, 1)
    decay = NonmonotonicDecay(factor=0.5, window=1, min_lr=1.1e-13)
    run = tuner(options={**options, "decay": decay}, loss=worse_and_worse())
    result = run.fit(50)
    assert result.stopped_by == "learning rate"
    # Epoch 2 is worse than epoch 1: halved after it and each one that follows.
    assert [round(r.lr / 1e-12, 4) for r in result.history[1:]] == [1.0, 1.0, 0.5, 0.25, 0.125]
    assert run.optimizers.responses is not None
    assert run.optimizers.responses.param_groups[0]["lr"] == pytest.approx(1e-12 / 16)


def worse_and_worse() -> Any:
    """A loss whose validation value rises by one with every call without gradients."""
    calls = [0]

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        calls[0] += not torch.is_grad_enabled()
        return F.cross_entropy(prediction, target) * 0.01 + calls[0]

    return loss


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"update": "linear"}, ValueError, "update must be one of"),
        ({"train_steps": 0}, ValueError, "train_steps must be at least 1"),
        ({"hyper_steps": 1.5}, TypeError, "hyper_steps must be a whole number"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"warm_up_epochs": -1}, ValueError, "warm_up_epochs must be at least 0"),
        ({"weight_lr": 0.0}, ValueError, "weight_lr must be a positive number"),
        ({"hyper_lr": math.inf}, ValueError, "hyper_lr must be a positive number"),
        ({"hyper_lr_end": 1.5}, ValueError, "hyper_lr_end"),
        ({"rest": 1.0}, ValueError, "rest must be at least 0 and below 1"),
        ({"rest": 0.5, "tune": False}, ValueError, "rest has no effect without hyper steps"),
        ({"rest": 0.5, "hyper_steps": 0}, ValueError, "rest has no effect without hyper steps"),
        ({"bound": -1.0}, ValueError, "bound must be a positive number"),
        ({"momentum": 1.0}, ValueError, "momentum must be from 0 to below 1"),
        ({"entropy_weight": 0.1}, ValueError, "entropy_weight has no effect without tune_scales"),
        ({"scale_lr": 0.1}, ValueError, "scale_lr has no effect without tune_scales"),
        ({"scale_bounds": (2.0, 0.1)}, ValueError, "scale_bounds must be positive"),
        ({"entropy_weight": math.nan, "tune_scales": True}, ValueError, "entropy_weight must be a finite number"),
        ({"decay": 0.1}, TypeError, "decay must be a NonmonotonicDecay"),
    ],
)
def test_options_are_checked_on_entry(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SelfTunerOptions(**options)


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"window": -1}, {"min_lr": math.nan}])
def test_decays_are_checked_on_entry(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NonmonotonicDecay(**options)


# ---- optimisers and schedulers -------------------------------------------------------------------------------


def test_optimisers_and_factories() -> None:
    run = tuner()
    own = torch.optim.SGD(general_parameters(run.model), lr=0.3)
    again = SelfTuner(
        run.model,
        run.hyperparameters,
        loader(),
        loader(24, 1),
        weight_optimizer=own,
        response_optimizer=lambda ps: torch.optim.SGD(ps, lr=0.4),
        hyper_optimizer=lambda ps: torch.optim.RMSprop(ps, lr=0.5),
        scale_optimizer=lambda ps: torch.optim.Adagrad(ps, lr=0.6),
        options=SelfTunerOptions(tune_scales=True),
    )
    assert again.optimizers.weights is own
    assert [type(o).__name__ for _, o in again.optimizers.items()] == ["SGD", "SGD", "RMSprop", "Adagrad"]
    stn = tuner("stn", response_optimizer=lambda ps: torch.optim.Adam(ps, lr=0.01))
    stn.fit(2)
    assert len(stn.optimizers.weights.param_groups[0]["params"]) == len(general_parameters(stn.model))


def test_optimisers_that_hold_the_wrong_parameters() -> None:
    model = network()
    h = Hyperparameters({"rate": uniform(0.0, 0.9)})
    self_tune(model, h, dropout={"*": "rate"})
    given: dict[str, Any] = {"train_loader": loader(), "val_loader": loader(24, 1)}
    with pytest.raises(ValueError, match=r"weight_optimizer holds the hyperparameters \(raw"):
        SelfTuner(model, h, **given, weight_optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    both = [*general_parameters(model), *response_parameters(model)]
    with pytest.raises(ValueError, match="hold the same parameter"):
        SelfTuner(model, h, **given, weight_optimizer=torch.optim.SGD(both, lr=0.1))
    some = response_parameters(model)[:-1]
    with pytest.raises(ValueError, match="response_optimizer lacks 1 of"):
        SelfTuner(model, h, **given, response_optimizer=torch.optim.SGD(some, lr=0.1))
    with pytest.raises(ValueError, match="hyper_optimizer must hold hyperparameters.raw"):
        SelfTuner(model, h, **given, hyper_optimizer=torch.optim.SGD([h.raw, h.raw_scale], lr=0.1))
    with pytest.raises(TypeError, match="weight_optimizer must be an optimiser"):
        SelfTuner(model, h, **given, weight_optimizer=0.1)  # type: ignore[arg-type]
    for argument in ("response_optimizer", "hyper_optimizer", "scale_optimizer"):
        with pytest.raises(ValueError, match=f"{argument} has no effect with tune=False"):
            SelfTuner(model, h, **given, options=SelfTunerOptions(tune=False), **{argument: torch.optim.SGD})
    with pytest.raises(ValueError, match="scale_optimizer has no effect without tune_scales"):
        SelfTuner(model, h, **given, scale_optimizer=torch.optim.SGD)


def test_schedulers_step_once_an_epoch_with_the_validation_loss_where_asked_for() -> None:
    lr = torch.optim.lr_scheduler
    run = tuner(lr_scheduler=lambda o: lr.CosineAnnealingLR(o, T_max=10))
    assert [round(r.lr, 6) for r in run.fit(3).history[1:]] == [
        round(0.1 * (1 + math.cos(math.pi * i / 10)) / 2, 6) for i in range(3)
    ]
    options = {"weight_lr": 1e-12, "response_lr": 1e-12, "hyper_lr": 1e-12}
    run = tuner(
        lr_scheduler=[lambda o: lr.ReduceLROnPlateau(o, factor=0.5, patience=0, eps=0.0), lambda o: lr.StepLR(o, 100)],
        loss=worse_and_worse(),
        options=options,
    )
    rates = [r.lr / 1e-12 for r in run.fit(4).history[1:]]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.25])
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="StepLR belongs to an optimiser that this run does not use"):
        tuner(lr_scheduler=lr.StepLR(other, 1))
    with pytest.raises(TypeError, match="lr_scheduler must be an LRScheduler"):
        tuner(lr_scheduler=[0.1])


# ---- what is computed on a batch -----------------------------------------------------------------------------


def test_the_transform_sees_central_and_perturbed_strengths_and_only_training_batches() -> None:
    h = Hyperparameters({"noise": uniform(0.0, 1.0)}, start={"noise": 0.5})
    model = self_tune(nn.Linear(6, 2), h)
    shapes: list[torch.Size] = []

    def noise(x: Tensor, y: Tensor, h: Hyperparameters) -> tuple[Tensor, Tensor]:
        strength = h["noise"]
        shapes.append(strength.shape)
        return x + strength.reshape(-1, 1) * torch.randn_like(x), y

    options = SelfTunerOptions(response_every=3, response_warm_up=0)
    run = SelfTuner(model, h, loader(), loader(24, 1), transform=noise, options=options)
    run.fit(3)
    # The responses have their turn in every third step.
    assert shapes == [torch.Size([]), torch.Size([BATCH]), torch.Size([]), torch.Size([])] * 5
    shapes.clear()
    run = SelfTuner(model, h, loader(), loader(24, 1), transform=noise, options=SelfTunerOptions(tune=False))
    run.fit(1)
    assert shapes == [torch.Size([])] * 5


def test_a_training_loss_of_its_own_with_strengths_for_each_example() -> None:
    h = Hyperparameters({"smoothing": uniform(0.0, 0.5), "decay": loguniform(1e-4, 1.0)}, start={"decay": 0.1})
    model = self_tune(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), h)

    def loss(prediction: Tensor, target: Tensor, h: Hyperparameters) -> Tensor:
        cross_entropy = smoothed_cross_entropy(prediction, target, h["smoothing"], reduction="none")
        current = h.current
        norms = squared_norms(model)
        norms = norms if current is None or not norms.dim() else current.expand(norms)
        return cross_entropy + h["decay"] * norms

    run = SelfTuner(model, h, loader(), loader(24, 1), train_loss=loss)
    result = run.fit(4)
    assert all(result.final_values[n] != result.history[0].values[n] for n in h.names)
    # The penalty is part of the training loss only.
    assert result.history[-1].train_loss > result.history[-1].val_loss + 0.01


def test_nested_inputs_and_metrics() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            result: Tensor = self.a(batch["a"]) + self.b(batch["b"])
            return result

    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            x, y = examples()[i]
            return {"a": x, "b": -x}, y

    h = Hyperparameters({"rate": uniform(0.0, 0.9)})
    model = self_tune(Two(), h)
    data = DataLoader(Pairs(), batch_size=BATCH)
    metrics = {"accuracy": lambda z, y: (z.argmax(1) == y).double().mean()}
    run = SelfTuner(model, h, data, data, metrics=metrics)
    record = run.fit(2).history[-1]
    with h.off(), torch.no_grad():
        right = [int((model(x).argmax(1) == y).sum()) for x, y in data]
    assert run.measure()["accuracy"] == pytest.approx(sum(right) / N)
    assert set(record.metrics) == {"accuracy"}


def test_evaluation_averages_over_examples_and_leaves_no_trace() -> None:
    run = tuner(loss=lambda z, y: F.cross_entropy(z, y, reduction="none"))
    data = loader(20, 2)  # batches of 8, 8 and 4
    run.model.eval()
    x, y = examples(20, 2).tensors
    with run.hyperparameters.off(), torch.no_grad():
        expected = float(F.cross_entropy(run.model(x), y))
    run.model.train()
    state, buffers = torch.get_rng_state(), [b.clone() for b in run.model.buffers()]
    assert run.evaluate(data) == pytest.approx(expected)
    assert run.measure(data) == {"loss": run.evaluate(data)}
    assert torch.equal(torch.get_rng_state(), state)
    assert same(run.model.buffers(), buffers)
    assert run.model.training


# ---- records -------------------------------------------------------------------------------------------------


def test_the_schedule_has_all_steps_and_epochs_and_can_be_replayed() -> None:
    run = tuner(options={"restore_best": False})
    result = run.fit(4)
    schedule = run.schedule
    assert schedule.values("rate", "epoch").tolist() == pytest.approx([r.values["rate"] for r in result.history])
    assert schedule.column("val_loss", "epoch").tolist() == pytest.approx([r.val_loss for r in result.history])
    assert schedule.n_steps == 20
    steps = schedule.column("step", "step").tolist()
    assert steps.count(20.0) == 1
    assert len(steps) == 20 + run.hyper_steps
    gradients = schedule.hypergradients("rate", "step")
    assert int((~gradients.isnan()).sum()) == run.hyper_steps
    seen = []
    model, h = network(), Hyperparameters({"rate": uniform(0.0, 0.9)})
    self_tune(model, h, dropout={"*": "rate"})
    again = SelfTuner(
        model,
        h,
        loader(),
        loader(24, 1),
        options=SelfTunerOptions(tune=False),
        control=Replay(schedule, h),
        callback=lambda event, run: (
            seen.append(run.hyperparameters.values()["rate"]) if event == "train_step" else None
        ),
    )
    again.fit(4)
    assert seen == pytest.approx([schedule.at(i)["rate"] for i in range(20)], rel=1e-4)


def test_controls_by_epoch_need_a_plain_run() -> None:
    run = tuner(options={"tune": False})
    h = run.hyperparameters
    run = SelfTuner(run.model, h, loader(), loader(24, 1), options=run.options, control=FixedValues(h, {"rate": 0.6}))
    assert run.fit(1).history[-1].values["rate"] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="control sets the hyperparameters, so that it needs tune=False"):
        tuner(control=FixedValues(h, {}))
    with pytest.raises(ValueError, match="control sets other hyperparameters"):
        tuner(control=FixedValues(h, {}), options={"tune": False})


def test_the_reporter_hears_of_each_epoch_and_may_end_the_run() -> None:
    reports: list[dict[str, Any]] = []

    def report(**metrics: Any) -> str:
        reports.append(metrics)
        return "STOP" if metrics["epoch"] == 2 else "CONTINUE"

    result = tuner(reporter=report, metrics={"half": lambda z, y: 0.5}).fit(9)
    assert result.stopped_by == "report"
    assert [r["epoch"] for r in reports] == [1, 2]
    assert reports[1]["value/rate"] == result.history[2].values["rate"]
    assert reports[1]["val_loss"] == result.history[2].val_loss
    assert reports[1]["train_loss"] == result.history[2].train_loss
    assert reports[1]["half"] == 0.5


def test_an_interrupt_ends_the_run_in_order(caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(event: str, run: SelfTuner) -> None:
        if run.step == 12:
            raise KeyboardInterrupt

    run = tuner(callback=interrupt)
    result = run.fit(9)
    assert result.stopped_by == "interrupt"
    assert run.step == 12
    assert result.best_epoch <= 3
    assert "interrupted in epoch 3" in caplog.text


# ---- resume --------------------------------------------------------------------------------------------------


def saved(run: SelfTuner) -> Any:
    """Return the state of a run as it comes back from a file that is loaded safely."""
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Noisy(Dataset[Any]):
    """Examples with random numbers of Python's generator and torch's."""

    def __init__(self) -> None:
        self.data = examples()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        x, y = self.data[i]
        return x + 0.01 * random.random() + 0.01 * torch.randn(6), y


SETTINGS: dict[str, dict[str, Any]] = {
    "linearised": {},
    "joint with scales": {"options": {"update": "joint", "tune_scales": True, "entropy_weight": 1e-3}},
    "stn": {"kind": "stn"},
    "plain with a control": {"options": {"tune": False}},
}


def resumable(name: str, callback: Any = None) -> SelfTuner:
    given = copy.deepcopy(SETTINGS[name])
    run = tuner(
        **given,
        train=DataLoader(Noisy(), batch_size=BATCH, shuffle=True),
        val=loader(24, 1, generator=torch.Generator().manual_seed(4)),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        callback=callback,
    )
    if "control" in name:
        g = torch.Generator().manual_seed(2)
        run.control = GaussianValues(run.hyperparameters, {"rate": 0.4}, 0.1, g)
    return run


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_goes_on_to_the_last_bit(name: str) -> None:
    states: dict[tuple[str, int, int], Any] = {}

    def keep(event: str, run: SelfTuner) -> None:
        states[(event, run.step, run.hyper_steps)] = saved(run)

    torch.manual_seed(3)
    random.seed(3)
    whole = resumable(name, keep)
    result = whole.fit(4)
    moments = [key for key in states if key[1] in (3, 5, 8, 9, 15)]
    assert {event for event, *_ in moments} >= {"train_step", "epoch"}
    for moment in moments:
        torch.manual_seed(99)
        random.seed(99)
        again = resumable(name)
        again.load_state_dict(states[moment])
        rest = again.fit(4)
        assert same(weights(again), weights(whole)), moment
        assert [r.to_dict() for r in rest.history[1:]] == [r.to_dict() for r in result.history[1:]], moment
        assert rest.values == result.values
        assert torch.equal(again.schedule.values("rate"), whole.schedule.values("rate"))
        assert (again.step, again.hyper_steps) == (whole.step, whole.hyper_steps)


def test_a_state_of_something_else() -> None:
    run = tuner()
    run.fit(1)
    state = run.state_dict()
    with pytest.raises(ValueError, match="version 0"):
        tuner().load_state_dict({**state, "version": 0})
    with pytest.raises(ValueError, match="state is that of optimisers of"):
        tuner(options={"tune_scales": True}).load_state_dict(state)
    with pytest.raises(ValueError, match="0 learning rate schedulers, there are 1"):
        tuner(lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)).load_state_dict(state)


def test_warm_up_and_learning_rates_follow_a_progress_of_any_kind() -> None:
    # Of one pass for all: responses apart begin later where the length of the run is not known at first.
    given = {"options": {"update": "joint", "warm_up_epochs": None, "hyper_lr_end": 0.1, "restore_best": False}}
    by_epochs = tuner(**copy.deepcopy(given)).fit(20)
    run = tuner(**copy.deepcopy(given))
    result = run.fit(progress=lambda: run.step / 100)  # five steps an epoch
    assert (result.stopped_by, run.epoch, by_epochs.stopped_by) == ("progress", 20, "epochs")
    assert [r.hyper_steps for r in result.history] == [r.hyper_steps for r in by_epochs.history]
    assert result.history[2].hyper_steps == 0 < result.history[3].hyper_steps
    ours, theirs = ([r.values["rate"] for r in each.history] for each in (result, by_epochs))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert run.optimizers.hyper is not None
    # In the last of 18 tuned epochs 17 of them were done.
    assert run.optimizers.hyper.param_groups[0]["lr"] == pytest.approx(run.options.hyper_lr * (1 - 0.9 * 17 / 18))


@pytest.mark.parametrize("step", [13, 15, 33])
def test_a_run_by_progress_is_resumed_in_the_middle_of_an_epoch(step: int) -> None:
    states: list[Any] = []

    def save(event: str, run: SelfTuner) -> None:
        if event == "train_step" and run.step == step and not states:
            states.append(copy.deepcopy(run.state_dict()))

    def by_steps(callback: Any = None) -> SelfTuner:
        return tuner(options={"warm_up_epochs": None, "rest": 0.4, "restore_best": False}, callback=callback)

    whole, resumed = by_steps(save), by_steps()
    whole.fit(progress=lambda: whole.step / 60)
    assert (whole.epoch, whole.hyper_steps) == (12, 15), "tuned from step 10 to 40"
    resumed.load_state_dict(states[0])
    resumed.fit(progress=lambda: resumed.step / 60)
    assert same(weights(whole), weights(resumed))
    assert [r.values for r in whole.history] == [r.values for r in resumed.history]
    assert [r.hyper_steps for r in whole.history] == [r.hyper_steps for r in resumed.history]


def test_a_progress_that_jumps_still_tunes_after_one_epoch_and_epochs_are_a_limit() -> None:
    parts = iter([0.0, 0.0, 0.6, 0.6, 0.6, 0.9, 0.9])
    run = tuner(options={"warm_up_epochs": None})
    result = run.fit(progress=lambda: next(parts, 1.0))
    assert result.stopped_by == "progress"
    assert run.hyper_steps > 0
    run = tuner(options={"rest": 0.45})
    run.fit(progress=lambda: run.step / 55)
    assert [r.hyper_steps for r in run.history[6:]] == [12, 15, 15, 15, 15, 15]
    run = tuner()
    assert run.fit(3, progress=lambda: 0.0).stopped_by == "epochs"
    assert run.epoch == 3
    with pytest.raises(ValueError, match="progress must return"):
        tuner().fit(progress=lambda: math.nan)
    with pytest.raises(ValueError, match="epochs or progress"):
        tuner().fit()


def test_fit_goes_on_where_it_ended() -> None:
    run = tuner(options={"restore_best": False})
    run.fit(2)
    assert run.fit(2).history[-1].epoch == 2
    assert len(run.fit(3).history) == 4
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        run.fit(0)
    by_hand = tuner()
    assert by_hand.train_epoch().epoch == 1
    assert by_hand.train_epoch().hyper_steps == 2


# ---- bad input -----------------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    """Without a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return iter([examples()[i] for i in range(self.n)])


@pytest.mark.parametrize(
    ("val", "error", "message"),
    [
        (None, ValueError, "val_loader is missing"),
        (loader(BATCH - 1, 1), ValueError, "val_loader has 7 examples, which is less than a batch of 8"),
        (loader(BATCH - 1, 1, drop_last=True), ValueError, "less than a batch"),
        ([], ValueError, "val_loader gives no batches"),
        (3, TypeError, "val_loader must be a DataLoader or a collection of batches"),
        (iter([1]), TypeError, "val_loader must be a DataLoader or a collection"),
        (DataLoader(Endless(0), batch_size=4), ValueError, "gives no batches"),
        (loader(24, 1, num_workers=1, persistent_workers=True), ValueError, "must not have persistent_workers"),
    ],
)
def test_validation_data_that_cannot_be_used(val: Any, error: type[Exception], message: str) -> None:
    given = tuner()
    with pytest.raises(error, match=message):
        SelfTuner(given.model, given.hyperparameters, loader(), val).fit(2)


def test_training_data_without_a_length_works_and_an_empty_one_does_not() -> None:
    assert tuner(train=DataLoader(Endless(20), batch_size=BATCH)).fit(2).history[-1].step == 6
    with pytest.raises(ValueError, match="train_loader gives no batches"):
        tuner(train=DataLoader(Endless(0), batch_size=BATCH)).fit(2)
    with pytest.raises(TypeError, match=r"batches of train_loader must be \(inputs, targets\), got 1 parts"):
        tuner(train=DataLoader(TensorDataset(torch.ones(8, 6)), batch_size=BATCH)).fit(1)
    # Less than a batch is enough for training.
    assert tuner(train=loader(5)).fit(1).history[-1].step == 1


def test_models_that_are_not_self_tuning() -> None:
    h = Hyperparameters({"rate": uniform(0.0, 0.9)})
    with pytest.raises(ValueError, match="model is not self-tuning; transform it with self_tune"):
        SelfTuner(network(), h, loader(), loader(24, 1))
    run = tuner()
    with pytest.raises(ValueError, match="transformed with other hyperparameters"):
        SelfTuner(run.model, h, loader(), loader(24, 1))
    with pytest.raises(TypeError, match="model must be a module"):
        SelfTuner(3, h, loader(), loader(24, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hyperparameters must be a Hyperparameters object"):
        SelfTuner(run.model, {}, loader(), loader(24, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind 'stn' has 'joint' only"):
        tuner("stn", options={"update": "linearised"})
    with pytest.raises(TypeError, match="train_loss must be a function"):
        tuner(train_loss=3)
    with pytest.raises(TypeError, match="options must be SelfTunerOptions"):
        SelfTuner(run.model, run.hyperparameters, loader(), loader(24, 1), options={"tune": False})  # type: ignore[arg-type]


def test_hypergradients_that_are_not_finite_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Poison(Dataset[Any]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, i: int) -> Any:
            x, y = examples(24, 1)[i]
            return (x * math.nan if i < BATCH else x), y

    run = tuner(val=DataLoader(Poison(), batch_size=BATCH), options={"warm_up_epochs": 0})
    # One validation batch of three is poisoned; the loss of the whole is never finite.
    with pytest.raises(FloatingPointError, match="no epoch had a finite validation loss"):
        run.fit(3)
    assert run.hyper_steps == 7
    assert run.notices.skipped == 3
    assert caplog.text.count("hypergradients of ['rate'] are not finite") == 1
    assert math.isfinite(run.hyperparameters.values()["rate"])


def test_divergence_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def explode(event: str, run: SelfTuner) -> None:
        if event == "epoch" and run.epoch == 2:
            with torch.no_grad():
                run.model[0].weight.fill_(math.nan)  # type: ignore[index, operator, union-attr]

    run = tuner(callback=explode)
    result = run.fit(9)
    assert result.stopped_by == "divergence"
    assert run.epoch == 3
    assert result.best_epoch <= 2
    assert math.isfinite(run.evaluate())
    assert "training diverged" in caplog.text


def test_hyperparameters_at_rest_and_unused_ones_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    stuck = Hyperparameter("stuck", Between(0.0, 1.0), start=1e-9)
    h = Hyperparameters([Hyperparameter("rate", Between(0.0, 0.9), start=0.3), stuck])
    self_tune(model, h, dropout={"*": "rate"})
    run = SelfTuner(model, h, loader(), loader(24, 1))
    with caplog.at_level(logging.WARNING):
        result = run.fit(4)
    assert result.idle == ("stuck",)
    assert result.final_values["stuck"] == result.history[0].values["stuck"]
    assert caplog.text.count("makes no difference") == 1
    assert caplog.text.count("hyperparameters ['stuck'] were used nowhere") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["delta", "stn"])
def test_on_a_gpu(kind: Any) -> None:
    run = tuner(kind, device="cuda", options={"tune_scales": True})
    result = run.fit(4)
    assert next(run.model.parameters()).is_cuda
    assert run.hyperparameters.raw.is_cuda
    assert result.history[-1].val_loss < result.history[0].val_loss
    again = tuner(kind, device="cuda", options={"tune_scales": True})
    again.load_state_dict(saved(run))
    assert again.evaluate() == pytest.approx(run.evaluate())
