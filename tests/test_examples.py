"""The examples run as a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sthyper.experiment import load_experiment
from sthyper.journal import read_journal
from sthyper.selftuning.defaults import AUGMENTATIONS, REGULARISERS

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, cwd: Path, timeout: float = 55.0) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = run("quickstart.py", cwd=tmp_path, timeout=170.0)
    found = re.fullmatch(r"best test accuracy: (0\.\d{3}|1\.000)", out.splitlines()[-1])
    assert found is not None, out
    assert float(found[1]) >= 0.95
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    experiment = load_experiment("quickstart")
    assert len(experiment.trials) == 40
    assert experiment.best_checkpoint is not None
    assert experiment.best_checkpoint.exists()
    check_exactness(experiment.path)


def check_exactness(path: Path) -> None:
    """No report beyond a milestone before the promotion, no epoch reported twice."""
    milestone: dict[int, int] = {}
    epochs: dict[int, list[int]] = {}
    for record in read_journal(path):
        if record["type"] in ("start", "resume"):
            milestone[record["trial_id"]] = record["milestone"]
        elif record["type"] == "report":
            assert record["metrics"]["epoch"] <= milestone[record["trial_id"]]
            epochs.setdefault(record["trial_id"], []).append(record["metrics"]["epoch"])
    assert len(epochs) == 40
    assert max(milestone.values()) == 27
    for seen in epochs.values():
        assert seen == list(range(1, len(seen) + 1))


@pytest.mark.slow
def test_quickstart_with_few_trials(tmp_path: Path) -> None:
    out = run("quickstart.py", "--trials", "3", "--figure", "few.png", cwd=tmp_path)
    assert out.splitlines()[-1].startswith("best test accuracy: ")
    assert (tmp_path / "few.png").exists()


@pytest.mark.slow
def test_digits_with_checkpoints(tmp_path: Path) -> None:
    out = run("launch_digits.py", cwd=tmp_path)
    assert "best" in out
    experiment = load_experiment("digits")
    assert experiment.best_value is not None
    assert experiment.best_value > 0.9
    assert experiment.best_checkpoint is not None
    assert str(experiment.best_checkpoint) in out


def test_tune_command(tmp_path: Path) -> None:
    if shutil.which("awk") is None:
        pytest.skip("no awk")
    out = run("tune_command.py", cwd=tmp_path)
    found = re.match(r"best configuration: trial (\d+), loss (\S+) after epoch 27\n", out)
    assert found is not None, out
    assert float(found[2]) < 0.02
    experiment = load_experiment("fit-sine")
    assert experiment.best_trial_id == int(found[1])
    assert f"weights: {experiment.best_checkpoint}\n" in out
    # Nothing is trained twice, nothing in vain: the weights are those of the last report.
    for trial_id in experiment.trials:
        reports = experiment.results.query(f"trial_id == {trial_id}")["epoch"].tolist()
        assert reports == list(range(1, len(reports) + 1))
        weights = experiment.path / "trials" / str(trial_id) / "checkpoints" / "weights"
        assert int(weights.read_text().split()[0]) == len(reports)
    by_hand = subprocess.run(
        ["awk", "-v", "lr=0.3", "-v", "momentum=0.9", "-v", "degree=5", "-v", "epochs=3", "-f", "fit_sine.awk"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_hand.stdout.count("[tune-metric]") == 3


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_lightning_ddp(tmp_path: Path) -> None:
    out = run("lightning_ddp.py", cwd=tmp_path, timeout=110.0)
    found = re.search(
        r"best configuration: trial (\d+), accuracy (\d\.\d{3}) after epoch \d+\ncheckpoint .*: (.*)$", out
    )
    assert found is not None, out
    assert float(found[2]) > 0.9
    assert Path(found[3]).exists()
    experiment = load_experiment("lightning-ddp")
    assert len(experiment.trials) == 4
    assert {trial.runs for trial in experiment.trials.values()} == {1, 2, 3}
    for trial_id in experiment.trials:
        epochs = experiment.results.query(f"trial_id == {trial_id}")["epoch"].tolist()
        assert epochs == list(range(1, len(epochs) + 1))
    completed = [i for i, trial in experiment.trials.items() if trial.status.value == "Completed"]
    for trial_id in experiment.trials:
        tested = (experiment.path / "trials" / str(trial_id) / "std.out").read_text().count("test/acc")
        assert tested == (1 if trial_id in completed else 0)


@pytest.mark.slow
def test_train_digits_by_hand(tmp_path: Path) -> None:
    out = run("train_digits.py", "--epochs", "2", "--lr", "0.01", "--width", "32", "--dropout", "0.1", cwd=tmp_path)
    assert out.count("[tune-metric]") == 2


def test_custom_scheduler(tmp_path: Path) -> None:
    out = run("custom_scheduler.py", cwd=tmp_path)
    assert "best" in out.lower()
    (experiment,) = (load_experiment(p.name) for p in Path(os.environ["STHYPER_FOLDER"]).iterdir())
    decisions = set(experiment.results["st_decision"])
    assert decisions == {"CONTINUE", "STOP"}


def test_tune_function(tmp_path: Path) -> None:
    out = run("tune_function.py", "--trials", "4", cwd=tmp_path)
    found = re.match(r"best configuration: trial \d+, accuracy (\d\.\d{3})\n  lr: ", out)
    assert found is not None, out
    assert float(found[1]) > 0.9
    (experiment,) = (load_experiment(p.name) for p in Path(os.environ["STHYPER_FOLDER"]).iterdir())
    assert experiment.name.startswith("train-")
    assert len(experiment.trials) == 4


@pytest.mark.slow
def test_tune_function_inline(tmp_path: Path) -> None:
    out = run("tune_function.py", "--launch", "inline", "--n_workers", "1", "--trials", "2", cwd=tmp_path)
    assert out.startswith("best configuration: trial ")


def test_ask_tell(tmp_path: Path) -> None:
    out = run("ask_tell.py", "--trials", "12", "--restart_after", "6", cwd=tmp_path)
    decisions = re.findall(r"^trial +(\d+): from epoch +(\d+): (\w+)$", out, re.MULTILINE)
    assert {d for _, _, d in decisions} == {"PAUSE", "STOP"}
    assert {int(epoch) for _, epoch, _ in decisions} == {1, 2, 4, 10}  # resumed after the rung levels 1, 3 and 9
    accuracy = re.search(r"^test accuracy: (\d\.\d{3})$", out, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9
    # Saved and loaded in the middle, the search goes on as if nothing had happened.
    whole = run("ask_tell.py", "--trials", "12", "--restart_after", "0", cwd=tmp_path)
    assert [line for line in out.splitlines() if not line.startswith("---")] == whole.splitlines()


def test_self_tuning_relu(tmp_path: Path) -> None:
    out = run("self_tuning_relu.py", "--epochs", "4", "--points", "40", cwd=tmp_path)
    assert re.match(r"start values kept: validation loss \d\.\d{5} at best.*\nself-tuned: validation loss \d", out), out
    assert (tmp_path / "relu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [(), ("--kind", "stn"), ("--tune_scales",)])
def test_self_tuning_relu_is_better_than_its_start_values(tmp_path: Path, options: tuple[str, ...]) -> None:
    out = run("self_tuning_relu.py", *options, cwd=tmp_path, timeout=110.0)
    fixed, tuned = (float(loss) for loss in re.findall(r"validation loss (\S+) at best", out))
    assert tuned < fixed


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_self_tuning_relu_animated(tmp_path: Path) -> None:
    out = run("self_tuning_relu.py", "--epochs", "4", "--animation", "relu.gif", cwd=tmp_path, timeout=110.0)
    assert "animation: relu.gif" in out
    assert (tmp_path / "relu.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.slow
def test_self_tuning_digits(tmp_path: Path) -> None:
    out = run("self_tuning_digits.py", "--epochs", "12", cwd=tmp_path)
    accuracies = re.findall(r"test accuracy (0\.\d{4})$", out, re.MULTILINE)
    # What is exported is the network of the best epoch.
    assert out.count(f"accuracy of the exported Sequential: {accuracies[-1]}\n") == 1, out
    assert float(accuracies[-1]) > 0.4
    assert (tmp_path / "digits.png").exists()


def write_cifar(path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 140, dtype=np.uint8)
    images = rng.integers(0, 256, (140, 32, 32, 3), dtype=np.uint8) // 4 + 15 * labels[:, None, None, None]
    np.savez(path, x_train=images[:100], y_train=labels[:100], x_test=images[100:], y_test=labels[100:])


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "options",
    [
        ("--network", "small_cnn"),
        ("--network", "small_cnn", "--tune", "all", "--tune_scales"),
        ("--network", "small_cnn", "--kind", "stn", "--tune", "dropout", "fcdropout", "hue", "--start", "dropout=0.3"),
        ("--network", "keras_cnn", "--tune", "all", "--update", "joint", "--paper", "delta-stn"),
        ("--network", "lstm", "--tune", "all", "--response", "full", "--save", "lstm.pt"),
    ],
)
def test_self_tuning_cifar(tmp_path: Path, options: tuple[str, ...]) -> None:
    write_cifar(tmp_path / "cifar.npz")
    settings = ("--epochs", "2", "--batch_size", "20", "--device", "cpu", *options)
    out = run("self_tuning_cifar.py", "--data", "cifar.npz", *settings, cwd=tmp_path, timeout=110.0)
    assert re.search(r"^test loss \d\.\d{4}, accuracy 0\.\d{4}$", out, re.MULTILINE), out
    assert (tmp_path / "cifar.png").exists()
    assert ("--save" in options) == (tmp_path / "lstm.pt").exists()
    if "all" in options:
        names = set(re.findall(r"^  (\w+): ", out, re.MULTILINE))
        listed = set(run("self_tuning_cifar.py", *options[:2], "--list", cwd=tmp_path).split())
        assert names == listed - {"dropout", "fcdropout"}


def test_every_regulariser_is_in_one_example(tmp_path: Path) -> None:
    names: set[str] = set()
    for network in ("alexnet", "vgg16", "lstm"):
        names |= set(run("self_tuning_cifar.py", "--network", network, "--list", cwd=tmp_path).split())
    assert names >= {*REGULARISERS, *AUGMENTATIONS, "pixel_keep_prob"}
    # AlexNet of 2019 and VGG16: dropout layers with names of their own.
    assert names >= {*(f"dropout{i}" for i in range(14)), "fcdropout0", "fcdropout1", "dropout_fc1", "dropout_fc2"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--kind", "stn"), ("--no_tuning", "--optimizer", "sgd", "--lr", "5")])
def test_self_tuning_text(tmp_path: Path, options: tuple[str, ...]) -> None:
    out = run("self_tuning_text.py", "--epochs", "4", "--warm_up", "1", *options, cwd=tmp_path)
    perplexities = [float(p) for p in re.findall(r"validation perplexity (\S+)$", out, re.MULTILINE)]
    assert len(perplexities) == 4
    assert min(perplexities) < perplexities[0]
    tuned = re.search(r"^  dropouto: (\S+)$", out, re.MULTILINE)
    assert tuned is not None
    assert (float(tuned[1]) == 0.05) == ("--no_tuning" in options)


@pytest.mark.slow
def test_self_tuning_text_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 40)
    out = run("self_tuning_text.py", "--data", "text.txt", "--epochs", "3", "--batch_size", "4", cwd=tmp_path)
    assert "test perplexity" in out
    assert (tmp_path / "text.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_hybrid(tmp_path: Path) -> None:
    out = run("hybrid.py", "--trials", "2", "--epochs", "3", cwd=tmp_path, timeout=110.0)
    found = re.search(r"best configuration: trial (\d+), loss \d\.\d{3} after epoch (\d)", out)
    assert found is not None, out
    tuned = re.findall(r"tuned inside: +(\w+) (\S+) -> (\S+)$", out, re.MULTILINE)
    assert [name for name, _, _ in tuned] == ["input_dropout", "hidden_dropout", "noise", "decay"]
    # Which trial is the best depends on timing; one that was paused after its first epoch has only warmed up.
    moved = sum(first != last for _, first, last in tuned)
    assert moved >= 3 if int(found[2]) > 1 else moved == 0
    experiment = load_experiment("hybrid")
    assert len(experiment.trials) == 2
