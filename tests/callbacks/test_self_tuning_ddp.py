"""SelfTuningCallback on two CPU processes, in every way in which Lightning starts them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sthyper.config_space import loguniform
from sthyper.selftuning.hyperparameters import Hyperparameters

SCRIPT = Path(__file__).with_name("self_tune_on_ranks.py")


def on_two_ranks(folder: Path, strategy: str, *cases: str) -> Path:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), strategy, *cases],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two forked ranks have written."""
    return on_two_ranks(tmp_path_factory.mktemp("forked"), "ddp_fork", "delta", "stn", "drawn")


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def of_rank(folder: Path, case: str, rank: int) -> dict[str, Any]:
    note: dict[str, Any] = torch.load(folder / f"{case}-{rank}.pt", weights_only=True)
    return note


def is_statistic(name: str) -> bool:
    return "running" in name or "num_batches" in name


def check_ranks_agree(folder: Path, case: str) -> None:
    first, second = (of_rank(folder, case, rank) for rank in (0, 1))
    assert list(first["state"]) == list(second["state"])
    for name, value in first["state"].items():
        # DDP takes running statistics from rank 0 at the next forward pass only.
        assert is_statistic(name) or torch.equal(value, second["state"][name]), name
    assert first["hyper_steps"] == second["hyper_steps"] > 0
    assert first["calls"] == second["calls"]


def check_like_one_process(folder: Path, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a batch on each rank is a batch on one."""
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(SCRIPT))
    script["run"](tmp_path, case, batch_size=4, **script["CASES"][case])
    one, two = of_rank(tmp_path, case, 0), of_rank(folder, case, 0)
    moved = 0.0
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
        moved = max(moved, float(value.abs().max()))
    assert one["hyper_steps"] == two["hyper_steps"] == 12
    assert moved > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", ["delta", "stn", "drawn", "drawn-resumed"])
def test_all_ranks_have_the_same(forked: Path, case: str) -> None:
    check_ranks_agree(forked, case)


@pytest.mark.parametrize("case", ["delta", "stn"])
def test_gradients_are_those_of_one_process(
    forked: Path, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_like_one_process(forked, case, tmp_path, monkeypatch)


def test_perturbations_differ_between_ranks_but_for_shared_ones(forked: Path) -> None:
    first, second = (of_rank(forked, "drawn", rank)["draws"] for rank in (0, 1))
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        # Relative to the centre and the scale, which are the same: columns are "penalty" and "common".
        assert not torch.isclose(one[:, 0], two[:, 0]).any()
        assert torch.allclose(one[:, 1], two[:, 1], atol=1e-6)
        assert len(set(one[:, 1].tolist())) == 1


def test_a_resumed_training_goes_on_exactly_on_both_ranks(forked: Path) -> None:
    for rank in (0, 1):
        whole, resumed = (of_rank(forked, case, rank) for case in ("drawn", "drawn-resumed"))
        for name, value in whole["state"].items():
            assert torch.equal(value, resumed["state"][name]), name
        later: list[Tensor] = whole["draws"][-len(resumed["draws"]) :]
        assert all(torch.equal(a, b) for a, b in zip(later, resumed["draws"], strict=True))


def check_main_process(folder: Path, case: str) -> None:
    """The process of the script has what was tuned."""
    main = json.loads((folder / f"{case}-main.json").read_text())
    raw = of_rank(folder, case, 0)["state"]["selftuning.hyperparameters.raw"]
    expected = Hyperparameters({"penalty": loguniform(1e-3, 10.0), "common": loguniform(1e-3, 10.0)})
    with torch.no_grad():
        expected.raw.copy_(raw)
    assert main["values"] == pytest.approx(expected.values(), rel=1e-6)
    assert main["metric"] == pytest.approx(main["values"]["penalty"], rel=1e-5)
    assert main["steps"] == 12 * (2 if case.startswith("drawn") else 1)
    assert main["rows"] == 1 + main["steps"] + main["steps"] // 6


@pytest.mark.parametrize("case", ["delta", "stn", "drawn-resumed"])
def test_the_script_has_what_was_tuned(forked: Path, case: str) -> None:
    check_main_process(forked, case)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_other_ways_to_start_processes(
    forked: Path, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = on_two_ranks(tmp_path, strategy, "delta", "drawn")
    for case in ("delta", "drawn", "drawn-resumed"):
        check_ranks_agree(folder, case)
        check_main_process(folder, case)
        for name, value in of_rank(forked, case, 0)["state"].items():
            assert torch.equal(value, of_rank(folder, case, 0)["state"][name]), name


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", ["nonlinear", "joint"])
def test_other_updates(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = on_two_ranks(tmp_path, "ddp_fork", case)
    check_ranks_agree(folder, case)
    (one := tmp_path / "one").mkdir()
    check_like_one_process(folder, case, one, monkeypatch)
