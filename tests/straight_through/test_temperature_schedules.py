from __future__ import annotations

import math
from typing import Any

import pytest

from sthyper.straight_through.schedules import (
    ConstantTemperature,
    CosineTemperature,
    ExponentialTemperature,
    LinearTemperature,
    check_temperature,
    temperature_schedule,
)

MOVING = [LinearTemperature, ExponentialTemperature, CosineTemperature]


@pytest.mark.parametrize("schedule", MOVING)
@pytest.mark.parametrize(("start", "end"), [(2.0, 0.1), (0.1, 2.0), (1, 3)])
def test_ends_and_direction(schedule: Any, start: float, end: float) -> None:
    made = schedule(start, end)
    assert made(0) == made(0.0) == start
    assert made(1) == made(1.0) == end
    values = [made(i / 20) for i in range(21)]
    assert all(isinstance(value, float) for value in values)
    assert values == sorted(values, reverse=start > end)
    assert len(set(values)) == 21


def test_between() -> None:
    assert LinearTemperature(1.0, 0.2)(0.25) == pytest.approx(0.8)
    assert ExponentialTemperature(1.0, 0.01)(0.5) == pytest.approx(0.1)
    assert ExponentialTemperature(4.0, 1.0)(0.25) == pytest.approx(4 * 0.25**0.25)
    assert CosineTemperature(1.0, 0.2)(0.5) == pytest.approx(0.6)
    assert CosineTemperature(1.0, 0.2)(0.25) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert [ConstantTemperature(0.7)(x) for x in (0, 0.3, 1)] == [0.7] * 3


def test_numbers_and_schedules_are_taken() -> None:
    assert temperature_schedule(0.3) == ConstantTemperature(0.3)
    schedule = LinearTemperature()
    assert temperature_schedule(schedule) is schedule
    assert temperature_schedule(lambda progress: 1 + progress)(0.5) == 1.5


def test_schedules_are_plain_values() -> None:
    assert LinearTemperature(1.0, 0.5) == LinearTemperature(1.0, 0.5) != LinearTemperature(1.0, 0.4)
    assert eval(repr(CosineTemperature(1.0, 0.5))) == CosineTemperature(1.0, 0.5)


@pytest.mark.parametrize("schedule", [*MOVING, ConstantTemperature])
@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_is_refused(schedule: Any, progress: float) -> None:
    with pytest.raises(ValueError, match=r"progress must be from 0 .* to 1"):
        schedule()(progress)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_temperatures_must_be_positive(value: float) -> None:
    for make in (check_temperature, temperature_schedule):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0; it is"):
            make(value)  # type: ignore[operator]
    with pytest.raises(ValueError, match="value must be a finite number above 0"):
        ConstantTemperature(value)
    for schedule in MOVING:
        with pytest.raises(ValueError, match="start must be a finite number above 0"):
            schedule(value, 1.0)
        with pytest.raises(ValueError, match="end must be a finite number above 0"):
            schedule(1.0, value)


@pytest.mark.parametrize("value", ["1", None, True])
def test_temperatures_must_be_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match="temperature must be a number above 0"):
        temperature_schedule(value)
    with pytest.raises(TypeError, match="end must be a number above 0"):
        LinearTemperature(1.0, value)
