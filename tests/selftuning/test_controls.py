from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sthyper.config_space import loguniform, randint, uniform
from sthyper.selftuning import Hyperparameters, bounded
from sthyper.selftuning.controls import Control, FixedValues, GaussianValues, Replay, SinusoidValues
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import self_tune


def make_hyperparameters(**start: float) -> Hyperparameters:
    space = {"rate": uniform(0.0, 0.9), "decay": loguniform(1e-6, 1e-2), "holes": randint(0, 4)}
    return Hyperparameters(space, start={"rate": 0.45, "decay": 1e-4, "holes": 2, **start})


def make_schedule() -> Schedule:
    """Rates .1, .2, ... .6 at steps 0, 2, ... 10, each for two epochs."""
    schedule = Schedule()
    for i in range(6):
        schedule.record({"rate": 0.1 * (i + 1)}, step=2 * i, epoch=2 * i)
    return schedule


def rates(control: Control, positions: range) -> list[float]:
    return [round(control.set(i)["rate"], 6) for i in positions]


# ---- a network of one's own loop -----------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(inputs[:300] / 16, dtype=torch.float32), torch.tensor(labels[:300])


def train(h: Hyperparameters, control: Any, steps: int = 60) -> nn.Linear:
    """Train a softmax regression on digits with input dropout and weight decay at the strengths of the moment."""
    inputs, labels = digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        batch = slice(50 * (step % 6), 50 * (step % 6) + 50)
        with control(step):
            assert h["rate"].ndim == 0  # nothing is perturbed
            mask = (torch.rand(50, 64) >= h["rate"]) / (1 - h["rate"])
            penalty = h["decay"] * model.weight.square().sum()
            loss = F.cross_entropy(model(inputs[batch] * mask), labels[batch]) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_a_replay_trains_the_same_weights_as_the_recorded_run() -> None:
    h = make_hyperparameters()
    schedule = Schedule()

    def recorded(step: int) -> Any:
        if step % 2 == 0:  # as after a hyper step
            with torch.no_grad():
                h.raw[:2] += torch.tensor([0.1, 0.2])
        schedule.record(h, step=step, epoch=1 + step // 6)
        return h.off()

    original = train(h, recorded)
    other = make_hyperparameters(rate=0.05)
    replayed = train(other, Replay(schedule, other).at)
    torch.testing.assert_close(replayed.weight, original.weight, rtol=1e-5, atol=1e-6)
    assert other.values() == pytest.approx(h.values(), rel=1e-5)
    held = train(other, FixedValues(other, schedule.final()).at)
    assert not torch.allclose(held.weight, original.weight, rtol=1e-3, atol=1e-3)


# ---- the trainer ---------------------------------------------------------------------------------------------


def digits_run(seed: int, tuned: bool, control: Control | None = None, h: Hyperparameters | None = None) -> SelfTuner:
    """Softmax regression on noisy digits with a rate of input dropout, which begins too high."""
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, labels = datasets.load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[:900]
    x, y = torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    torch.manual_seed(seed)
    h = Hyperparameters({"rate": uniform(0.0, 0.95)}, start={"rate": 0.6}) if h is None else h
    model = self_tune(nn.Sequential(nn.Dropout(0.0), nn.Linear(64, 10)), h, dropout={"*": "rate"})
    return SelfTuner(
        model,
        h,
        [(x[i : i + 50], y[i : i + 50]) for i in range(0, 300, 50)],
        [(x[i : i + 100], y[i : i + 100]) for i in range(300, 900, 100)],
        options=SelfTunerOptions(tune=tuned, weight_lr=0.05, hyper_lr=0.05),
        control=control,
    )


def controlled_run(seed: int, make: Any) -> SelfTuner:
    h = Hyperparameters({"rate": uniform(0.0, 0.95)}, start={"rate": 0.3})
    return digits_run(seed, tuned=False, control=make(h), h=h)


def test_replay_reaches_the_loss_of_the_self_tuning_run(tmp_path: Path) -> None:
    gaps: dict[str, list[float]] = {"step": [], "epoch": [], "mean of last tenth": []}
    for seed in range(3):
        tuned = digits_run(seed, tuned=True)
        reached = tuned.fit(20).best_val_loss
        schedule = tuned.schedule
        rates = schedule.values("rate")
        assert float(rates.max() - rates.min()) > 0.1  # there is something to replay
        schedule.to_csv(tmp_path / "epoch.csv")
        by_epoch = Schedule.from_csv(tmp_path / "epoch.csv")
        runs = {
            "step": controlled_run(seed, lambda h, s=schedule: Replay(s, h)),
            "epoch": controlled_run(seed, lambda h, s=by_epoch: Replay(s, h, by="epoch")),
            "mean of last tenth": controlled_run(seed, lambda h, s=schedule: FixedValues(h, s.mean_of_last())),
        }
        for name, run in runs.items():
            gaps[name].append(run.fit(20).best_val_loss - reached)
        # What a replay records is what it replays: one row after each step, before the next one's values are set.
        replayed = runs["step"].schedule
        for step in range(0, 120, 7):
            assert replayed.at(step + 1)["rate"] == pytest.approx(schedule.at(step)["rate"], rel=1e-5)
    means = {name: sum(found) / 3 for name, found in gaps.items()}
    print("best validation loss above that of the self-tuning run, mean of 3 seeds:", means)
    assert means["step"] <= 0.03
    assert means["epoch"] <= 0.03


def test_noise_goes_on_after_a_resume_of_the_trainer() -> None:
    def make(h: Hyperparameters) -> Control:
        return GaussianValues(h, {"rate": 0.5}, 0.2, torch.Generator().manual_seed(3))

    whole, first, second = (controlled_run(0, make) for _ in range(3))
    whole.fit(4)
    first.fit(2)
    first_state = first.state_dict()
    second.load_state_dict(first_state)
    second.fit(4)
    torch.testing.assert_close(second.schedule.values("rate"), whole.schedule.values("rate"))
    assert len(set(whole.schedule.values("rate", "step").tolist())) == 24


# ---- replay --------------------------------------------------------------------------------------------------


def test_replay_by_step_holds_the_last_value() -> None:
    h = make_hyperparameters()
    replay = Replay(make_schedule(), h)
    assert rates(replay, range(0, 5)) == [0.1, 0.1, 0.2, 0.2, 0.3]
    assert rates(replay, range(10, 13)) == [0.6, 0.6, 0.6]
    assert h.values() == pytest.approx({"rate": 0.6, "decay": 1e-4, "holes": 2})  # the others stay


def test_replay_by_epoch() -> None:
    replay = Replay(make_schedule(), make_hyperparameters(), by="epoch")
    assert rates(replay, range(1, 6)) == [0.1, 0.2, 0.2, 0.3, 0.3]


def test_replay_of_a_run_of_another_length() -> None:
    h = make_hyperparameters()
    assert rates(Replay(make_schedule(), h, total=20), range(0, 9)) == [0.1] * 4 + [0.2] * 4 + [0.3]
    assert rates(Replay(make_schedule(), h, total=5), range(0, 5)) == [0.1, 0.2, 0.3, 0.4, 0.5]
    by_epoch = Schedule()
    for epoch in range(1, 4):
        by_epoch.record({"rate": 0.1 * epoch}, epoch=epoch, kind="epoch")
    assert rates(Replay(by_epoch, h, "epoch", total=6), range(1, 7)) == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    assert rates(Replay(by_epoch, h, "epoch", total=3), range(1, 4)) == [0.1, 0.2, 0.3]


def test_replay_of_the_original_code(tmp_path: Path) -> None:
    path = tmp_path / "epoch.csv"
    path.write_text("epoch,time,train_loss,val_loss,train_ppl,val_ppl,rate\n1,1,2,2,7,7,0.05\n2,2,1,1,3,3,0.31\n")
    h = make_hyperparameters()
    replay = Replay(Schedule.from_csv(path), h, by="epoch")
    replay.set(2)
    assert h.values()["rate"] == pytest.approx(0.31)
    with pytest.raises(ValueError, match="no steps, only epochs"):
        Replay(Schedule.from_csv(path), h)


def test_a_replayed_run_may_have_reached_the_end_of_a_range() -> None:
    h = make_hyperparameters()
    with torch.no_grad():
        h.raw.copy_(torch.tensor([60.0, -60.0, 60.0]))
    schedule = Schedule()
    schedule.record(h, step=0, epoch=1)
    other = make_hyperparameters()
    Replay(schedule, other).set(0)
    assert other.values() == pytest.approx({"rate": 0.9, "decay": 1e-6, "holes": 4.5}, rel=1e-5)
    assert other.config()["holes"] == 4
    assert 0 < float(other["rate"]) < 1


def test_wrong_replays() -> None:
    h = make_hyperparameters()
    schedule = Schedule()
    with pytest.raises(ValueError, match="empty"):
        Replay(schedule, h)
    schedule.record({"rat": 0.1}, step=0, epoch=0)
    with pytest.raises(ValueError, match=r"no hyperparameter 'rat' \(did you mean 'rate'\?\)"):
        Replay(schedule, h)
    outside = make_schedule()
    outside.record({"rate": 0.95}, step=11, epoch=11)
    with pytest.raises(ValueError, match=r"'rate' must be from 0.0 to 0.9, got 0.95"):
        Replay(outside, h)
    with pytest.raises(ValueError, match="total must be at least 1"):
        Replay(make_schedule(), h, total=0)
    with pytest.raises(ValueError, match=r"by must be 'step' or 'epoch', got 'epochs' \(did you mean 'epoch'\?\)"):
        Replay(make_schedule(), h, by="epochs")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Hyperparameters object"):
        Replay(make_schedule(), {"rate": 0.1})  # type: ignore[arg-type]


# ---- contexts ------------------------------------------------------------------------------------------------


def test_at_switches_responses_off_for_a_while() -> None:
    h = make_hyperparameters()
    control = FixedValues(h, {"rate": 0.3, "holes": 3})
    with h.perturbed(4):
        with control.at(0) as values:
            assert h.current is None
            assert float(h["rate"]) == pytest.approx(0.3)
            assert values == {"rate": 0.3, "holes": 3.0}
        assert h["rate"].shape == (4,)
    assert h.values() == pytest.approx({"rate": 0.3, "decay": 1e-4, "holes": 3})


@pytest.mark.parametrize(
    ("lower", "upper", "value"), [(0.0, None, 0.0), (None, 100.0, 100.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)]
)
def test_a_value_on_a_bound_is_set_as_close_to_it_as_goes(
    lower: float | None, upper: float | None, value: float
) -> None:
    h = Hyperparameters([bounded("x", 0.5, lower, upper)])
    FixedValues(h, {"x": value}).set(0)
    assert h.values()["x"] == pytest.approx(value, abs=2e-5)
    assert h.values()["x"] != value


def test_fixed_values() -> None:
    h = make_hyperparameters()
    schedule = make_schedule()
    assert rates(FixedValues(h, schedule.final()), range(3)) == [0.6] * 3
    assert rates(FixedValues(h, schedule.mean_of_last(0.5)), range(3)) == [0.5] * 3
    with pytest.raises(ValueError, match=r"values: there is no hyperparameter 'rates' \(did you mean 'rate'\?\)"):
        FixedValues(h, {"rates": 0.1})
    with pytest.raises(ValueError, match=r"'rate' must be from 0.0 to 0.9, got 1"):
        FixedValues(h, {"rate": 1})
    with pytest.raises(ValueError, match="got nan"):
        FixedValues(h, {"rate": math.nan})


# ---- noise ---------------------------------------------------------------------------------------------------


def gaussian(seed: int = 0, **options: Any) -> GaussianValues:
    chosen = {"values": {"rate": 0.4, "decay": 1e-3}, "std": {"rate": 0.1, "decay": 1e-4}, **options}
    return GaussianValues(make_hyperparameters(), generator=torch.Generator().manual_seed(seed), **chosen)


def test_gaussian_values_have_their_mean_and_deviation() -> None:
    control = gaussian()
    drawn = [control.values(i) for i in range(4000)]
    for name, mean, std in (("rate", 0.4, 0.1), ("decay", 1e-3, 1e-4)):
        numbers = torch.tensor([values[name] for values in drawn], dtype=torch.float64)
        assert float(numbers.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(4000))
        assert float(numbers.std()) == pytest.approx(std, rel=0.06)
    both = torch.tensor([[values["rate"], values["decay"]] for values in drawn], dtype=torch.float64)
    assert abs(float(torch.corrcoef(both.T)[0, 1])) < 0.08  # independent of each other


def test_gaussian_values_are_clipped() -> None:
    wide = gaussian(std=10.0)
    drawn = [wide.set(i) for i in range(40)]
    assert {values["rate"] for values in drawn} > {0.0, 0.9}
    narrow = gaussian(std=10.0, clip={"rate": (0.2, 0.5)})
    assert {values["rate"] for values in (narrow.values(i) for i in range(20))} == {0.2, 0.5}
    assert gaussian(std=0.0).values(0) == {"rate": 0.4, "decay": 1e-3}


def test_gaussian_values_follow_their_generator_and_resume() -> None:
    assert gaussian(1).values(0) == gaussian(1).values(0)
    assert gaussian(1).values(0) != gaussian(2).values(0)
    control = gaussian()
    control.values(0)
    state = control.state_dict()
    following = [control.values(i) for i in range(3)]
    resumed = gaussian(5)
    resumed.load_state_dict(state)
    assert [resumed.values(i) for i in range(3)] == following


def sinusoid(seed: int = 0, **options: Any) -> SinusoidValues:
    chosen: dict[str, Any] = {"values": {"rate": 0.4}, "amplitude": 0.2, "period": 20, **options}
    return SinusoidValues(make_hyperparameters(), generator=torch.Generator().manual_seed(seed), **chosen)


def test_sinusoid_has_its_period_and_amplitude() -> None:
    control = sinusoid()
    values = torch.tensor([control.values(i)["rate"] for i in range(40)], dtype=torch.float64)
    torch.testing.assert_close(values[:20], values[20:])
    # All of its power is at one turn a period.
    power = torch.fft.rfft(values[:20] - 0.4).abs()
    assert power.argmax() == 1
    assert float(power[1]) == pytest.approx(0.2 * 10, rel=1e-9)
    assert float(power.sum() - power[1]) < 1e-9
    phase = control.state_dict()["phases"]["rate"]
    assert float(values[3]) == pytest.approx(0.4 + 0.2 * math.sin(2 * math.pi * 3 / 20 + phase))


def test_phases_are_uniform_over_a_turn() -> None:
    phases = sorted(sinusoid(seed).state_dict()["phases"]["rate"] / (2 * math.pi) for seed in range(400))
    assert max(abs(phase - (i + 0.5) / 400) for i, phase in enumerate(phases)) < 0.1  # Kolmogorov-Smirnov


def test_sinusoid_by_name_clip_and_state() -> None:
    h_values = {"rate": 0.4, "decay": 5e-3}
    control = sinusoid(values=h_values, amplitude={"rate": 0.8, "decay": 1e-3}, period={"rate": 4, "decay": 8})
    values = [control.values(i) for i in range(8)]
    assert [v["rate"] for v in values[:4]] == pytest.approx([v["rate"] for v in values[4:]])
    assert values[0]["decay"] != pytest.approx(values[4]["decay"])
    assert min(v["rate"] for v in values) == 0.0
    clipped = sinusoid(amplitude=0.8, clip={"rate": (0.3, 0.45)})
    assert {round(clipped.values(i)["rate"], 9) for i in range(20)} >= {0.3, 0.45}
    other = sinusoid(9)
    assert other.values(0) != sinusoid(0).values(0)
    other.load_state_dict(sinusoid(0).state_dict())
    assert other.values(0) == sinusoid(0).values(0)
    with pytest.raises(ValueError, match=r"that of \['rate', 'decay'\]"):
        other.load_state_dict(control.state_dict())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gaussian, {"std": -1.0}, "std must be a finite number >= 0, got -1.0 for 'rate'"),
        (gaussian, {"std": {"rate": 1.0}}, "std must have the names of values"),
        (gaussian, {"clip": {"rate": (0.5, 0.2)}}, "clip of 'rate' must be two numbers from 0.0 to 0.9"),
        (gaussian, {"clip": {"rates": (0.1, 0.2)}}, "no value was given for 'rates'.*'rate'"),
        (gaussian, {"values": {"rate": 2.0}, "std": 0.1}, "must be from 0.0 to 0.9"),
        (sinusoid, {"amplitude": math.inf}, "amplitude must be a finite number"),
        (sinusoid, {"period": 0}, "period must be a positive number"),
    ],
)
def test_wrong_noise(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
