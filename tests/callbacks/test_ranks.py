"""What the callback refuses before a training starts, and how failures of ranks are told apart."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.callbacks import TuneReportCallback
from sthyper.config_space import uniform
from sthyper.errors import ExperimentError
from sthyper.experiment import load_experiment
from sthyper.trial import Status

SCRIPT = Path(__file__).with_name("train_on_ranks.py")


class Elsewhere(Strategy):
    """A strategy of a third party that knows no collective of Lightning's."""

    root_device = torch.device("cpu")
    is_global_zero = True
    model_to_device = SingleDeviceStrategy.model_to_device

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def barrier(self, name: str | None = None) -> None:
        pass

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj


class Mine(SingleDeviceStrategy):
    """A variant of a strategy that is supported."""


@pytest.mark.filterwarnings("ignore:.*(many workers|logging interval)")
def test_a_strategy_that_is_not_supported_is_refused(tuner: Any, fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"does not support the strategy Elsewhere; there are: a single device, DDP"):
        tuner.run_trial(lambda: fit(strategy=Elsewhere()))
    assert tuner.reports == []
    assert [bye.ok for bye in tuner.byes] == [False]
    tuner.run_trial(lambda: fit(strategy=Mine("cpu"), max_epochs=1))
    assert len(tuner.reports) == 1


@pytest.mark.filterwarnings("ignore:.*(many workers|logging interval)")
def test_checkpoints_that_are_written_later_are_refused(tuner: Any, fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"AsyncCheckpointIO: a checkpoint must be complete before"):
        tuner.run_trial(lambda: fit(plugins=[AsyncCheckpointIO()]))
    callback = TuneReportCallback({"acc": "val/acc"}, checkpoint=False)
    tuner.run_trial(lambda: fit(callback, plugins=[AsyncCheckpointIO()], max_epochs=1))
    assert len(tuner.reports) == 1


def test_no_tuner_in_a_rank_of_a_distributed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    scheduler = RandomSearch({"x": uniform(0, 1)}, "loss", random_seed=0)
    with pytest.raises(ExperimentError, match="inside a distributed rank"):
        Tuner(LocalBackend(SCRIPT), scheduler, StoppingCriterion(max_num_trials_started=1), 1).run()


@pytest.mark.slow
def test_no_tuner_under_torchrun(tmp_path: Path) -> None:
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        textwrap.dedent(f"""
            from sthyper import StoppingCriterion, Tuner
            from sthyper.backend import LocalBackend
            from sthyper.baselines import RandomSearch
            from sthyper.config_space import uniform
            scheduler = RandomSearch({{"x": uniform(0, 1)}}, "loss", random_seed=0)
            Tuner(LocalBackend({str(SCRIPT)!r}), scheduler, StoppingCriterion(max_num_trials_started=1), 1).run()
        """)
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(launcher)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode != 0
    assert "ExperimentError: a Tuner was started inside a distributed rank" in done.stderr


FAILS = """
    import sys
    sys.path.insert(0, {folder!r})
    import train_on_ranks
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch import Trainer

    class Fails(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.global_rank == 1 and trainer.current_epoch == 1:
                {how}

    class WithFails(Trainer):
        def __init__(self, callbacks, **options):
            super().__init__(callbacks=[*callbacks, Fails()], **options)

    train_on_ranks.Trainer = WithFails
    if __name__ == "__main__":
        train_on_ranks.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
@pytest.mark.parametrize(
    ("how", "forked", "relaunched"),
    [
        ("raise ValueError('bad data')", "exit 1", "exit 1"),
        ("raise RuntimeError('CUDA out of memory.')", "out_of_memory", "out_of_memory"),
        ("import os; os.kill(os.getpid(), 11)", "signal SIGSEGV of rank 1", None),
    ],
)
def test_a_failure_of_a_rank_is_the_trials_own(
    strategy: str, how: str, forked: str, relaunched: str | None, tmp_path: Path, tune: Callable[..., Tuner]
) -> None:
    """It is not run again; only what was killed from outside is."""
    if strategy == "ddp" and relaunched is None:
        pytest.skip("how another process than the leader has died cannot be seen")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(FAILS).format(folder=str(SCRIPT.parent), how=how))
    config = {"lr": 0.01, "epochs": 4, "strategy": strategy, "victim": -1, "sync": "yes", "after": ""}
    tuner = tune(script, [config], max_failures=1, n_workers=1)
    (trial,) = load_experiment(tuner.name).trials.values()
    assert (trial.status, trial.runs) == (Status.failed, 1)
    assert trial.end_reason == (forked if strategy == "ddp_fork" else relaunched)
