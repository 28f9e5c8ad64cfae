from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest

from sthyper.time_keeper import RealTimeKeeper


def test_durations() -> None:
    clock = RealTimeKeeper()
    assert not clock.started
    clock.start_of_time()
    assert clock.started
    first = clock.time()
    clock.advance(0.05)
    second = clock.time()
    assert 0.0 <= first < 0.04
    assert 0.05 <= second - first < 1.0
    clock.start_of_time()
    assert clock.time() < second


def test_the_clock_of_the_system_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RealTimeKeeper()
    clock.start_of_time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0.0 <= clock.time() < 1.0


def test_time_stamp_is_now() -> None:
    clock = RealTimeKeeper()
    clock.start_of_time()
    assert abs(clock.time_stamp() - datetime.now()) < timedelta(seconds=1)


def test_needs_a_start() -> None:
    clock = RealTimeKeeper()
    for call in (clock.time, clock.time_stamp, lambda: clock.advance(0.0)):
        with pytest.raises(RuntimeError, match="start_of_time"):
            call()


@pytest.mark.parametrize("step", [-0.1, float("nan"), float("inf")])
def test_step_must_not_be_negative(step: float) -> None:
    clock = RealTimeKeeper()
    clock.start_of_time()
    with pytest.raises(ValueError, match="step"):
        clock.advance(step)
