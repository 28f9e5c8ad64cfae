"""The example that prunes a CNN on digits: what is cut is exact, small enough and good enough."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from sthyper.selftuning.datasets import load_digit_images

EXAMPLE = Path(__file__).parents[2] / "examples" / "prune_digits.py"


@pytest.fixture(name="example", scope="module")
def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prune_digits", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_a_short_run_is_cut_exactly(example: ModuleType) -> None:
    data = load_digit_images()[torch.arange(64)]
    model, chosen, pruned = example.compress(data, 0.3, 2, 0)
    # After few steps most gates are open still: at most 48 are let stay.
    assert sum(widths(pruned.model)) == sum(int(mask.sum()) for mask in chosen.values()) == 48
    assert pruned.folded == ()
    with torch.no_grad():
        outputs = pruned.model.double().eval()(data.inputs.double())
        x = data.inputs.double()
        for path, module in model.double().eval().named_children():
            x = module(x)
            if path in chosen:
                x = x * chosen[path].view(-1, 1, 1)
    torch.testing.assert_close(outputs, x, rtol=0, atol=1e-10)
    fresh = example.make_model(widths(pruned.model))
    assert repr(fresh) == repr(pruned.model)
    fresh.load_state_dict(pruned.model.state_dict())
    assert b"sthyper" not in pickle.dumps(pruned.model)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_tenths_of_the_channels_cost_at_most_a_point(example: ModuleType, seed: int) -> None:
    data, test = load_digit_images().split([1200, -1], seed)
    torch.manual_seed(seed)
    whole = example.make_model()
    example.train(whole, data, 50, seed)
    _, _, pruned = example.compress(data, 0.3, 25, seed)
    example.train(pruned.model, data, 25, seed)
    assert sum(widths(pruned.model)) <= 0.3 * sum(widths(whole))
    assert example.accuracy(pruned.model, test) >= example.accuracy(whole, test) - 0.01
    assert {type(module).__module__.partition(".")[0] for module in pruned.model.modules()} == {"torch"}
    assert b"sthyper" not in pickle.dumps(pruned.model)


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--keep", "0.5", "--epochs", "1", "--fine_tuning", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("whole: test accuracy 0.")
    assert "gates: 80 of 160 open" in done.stdout
    accuracies = [line.split("test accuracy ")[1][:6] for line in lines[-2:]]
    assert accuracies[0] == accuracies[1]
    assert (tmp_path / "pruned_digits.pt").exists()
