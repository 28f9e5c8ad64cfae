"""GateTuningCallback on two CPU processes, in ways in which Lightning starts them."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("gate_on_ranks.py")


def on_two_ranks(folder: Path, strategy: str, *cases: str) -> Path:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), strategy, *cases],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two forked ranks have written."""
    folder = tmp_path_factory.mktemp("forked")
    return on_two_ranks(folder, "ddp_fork", "alike", "alike_validation", "same", "own", "own_validation")


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def of_rank(folder: Path, case: str, rank: int | str) -> dict[str, Any]:
    note: dict[str, Any] = torch.load(folder / f"{case}-{rank}.pt", weights_only=True)
    return note


def check_ranks_agree(folder: Path, case: str) -> None:
    first, second = (of_rank(folder, case, rank) for rank in (0, 1))
    assert list(first["state"]) == list(second["state"])
    assert sum(name.endswith("logits") for name in first["state"]) == 3
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


def check_main_process(folder: Path, case: str) -> None:
    """The process of the script has what was trained, and exports it."""
    main, state = of_rank(folder, case, "main"), of_rank(folder, case, 0)["state"]
    total = 0.0
    for name, path in (("body", "body:channels"), ("head", "head:inputs"), ("branch", "branch:branch")):
        p = torch.sigmoid(state[f"gates.{path}.logits"])
        torch.testing.assert_close(main["probabilities"][name], p)
        total += float(p.sum())
    assert float(main["metric"]) == pytest.approx(total, rel=1e-5)
    assert main["steps"] > 0
    assert not any(name.startswith("gates") for name in main["plain"])
    net = runpy.run_path(str(SCRIPT))
    module = net["Net"]()
    module.load_state_dict(state, strict=False)
    open_ = {name: (p > 0.5).float() for name, p in main["probabilities"].items()}
    x = torch.tanh(module.body(net["_X"][:5]) * open_["body"])
    expected = module.head((x + open_["branch"] * module.branch(x)) * open_["head"])
    torch.testing.assert_close(main["exported"], expected)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", ["alike", "alike_validation", "same", "own", "own-resumed", "own_validation-resumed"])
def test_logits_are_the_same_on_all_ranks(forked: Path, case: str) -> None:
    check_ranks_agree(forked, case)
    check_main_process(forked, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["alike", "alike_validation"])
def test_gradients_are_those_of_one_process(forked: Path, case: str, tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["run"](tmp_path, case, batch_size=4, **script["CASES"][case])
    one, two = of_rank(tmp_path, case, 0), of_rank(forked, case, 0)
    start = float(torch.logit(torch.tensor(0.8)))
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=1e-4, atol=1e-5)
        if name.endswith("logits"):
            assert float((value - start).abs().max()) > 0.05


@pytest.mark.slow
def test_samples_are_the_same_on_all_ranks_or_of_their_own(forked: Path) -> None:
    for case, alike in (("same", True), ("own", False)):
        first, second = (of_rank(forked, case, rank)["samples"] for rank in (0, 1))
        assert len(first) == len(second) >= 12
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) is alike


@pytest.mark.slow
@pytest.mark.parametrize("case", ["own", "own_validation"])
def test_a_resumed_training_goes_on_exactly_on_both_ranks(forked: Path, case: str) -> None:
    for rank in (0, 1):
        whole, resumed = (of_rank(forked, name, rank) for name in (case, f"{case}-resumed"))
        for name, value in whole["state"].items():
            assert torch.equal(value, resumed["state"][name]), name
        later = whole["samples"][-len(resumed["samples"]) :]
        assert all(torch.equal(a, b) for a, b in zip(later, resumed["samples"], strict=True))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("strategy", "cases"),
    [("ddp", ["own", "own-resumed"]), ("ddp_spawn", ["same"])],  # whose ranks start slowly
)
def test_other_ways_to_start_processes(forked: Path, strategy: str, cases: list[str], tmp_path: Path) -> None:
    on_two_ranks(tmp_path, strategy, cases[0])
    for case in cases:
        check_ranks_agree(tmp_path, case)
        check_main_process(tmp_path, case)
        for name, value in of_rank(forked, case, 0)["state"].items():
            assert torch.equal(value, of_rank(tmp_path, case, 0)["state"][name]), name
