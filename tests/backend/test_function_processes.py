"""Processes that trials start: functions of ``__main__``, and scripts beside them for what differs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sthyper.backend import LocalBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform
from sthyper.experiment import ExperimentResult
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.tuner import Tuner

HEAD = """
from sthyper import Reporter, StoppingCriterion, Tuner
from sthyper.backend import PythonBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import choice, uniform

def tune(function, space, trials=1, **options):
    tuner = Tuner(
        PythonBackend(function, space, **options),
        RandomSearch(space, metric="loss", random_seed=0),
        StoppingCriterion(max_num_trials_started=trials),
        n_workers=2,
        max_failures=0,
    )
    return tuner.run()
"""


def run_main(folder: Path, text: str, timeout: float = 170.0) -> tuple[str, Path]:
    """Run a script that tunes a function of its own; return what it printed, and the experiment's folder."""
    (folder / "main.py").write_text(HEAD + textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    (path,) = Path(os.environ["STHYPER_FOLDER"]).iterdir()
    logs = "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in sorted(path.glob("trials/*/std.err")))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    return done.stdout, path


def test_pools_of_multiprocessing(tmp_path: Path) -> None:
    """Functions, classes and caches of __main__ go to spawned and forked workers and come back."""
    out, _ = run_main(
        tmp_path,
        """
        import functools, multiprocessing, sys

        OFFSET = 5

        class Point:
            def __init__(self, x):
                self.x = x

        @functools.lru_cache
        def cached(x):
            return x

        def work(point):
            return Point(point.x + OFFSET + cached(0)), __name__

        def objective(config):
            context = multiprocessing.get_context(config["method"])
            with context.Pool(2) as pool:
                results = pool.map(work, [Point(1), Point(2)])
                assert pool.map(cached, [3, 4]) == [3, 4]
            assert all(type(point) is Point for point, _ in results)
            return {"loss": sum(point.x for point, _ in results), "method": config["method"]}

        if __name__ == "__main__":
            space = {"method": choice(["fork", "spawn", "forkserver"])}  # no configuration comes twice
            results = tune(objective, space, 3).results
            print(sorted(set(results["method"])), set(results["loss"]))
        """,
    )
    assert out == "['fork', 'forkserver', 'spawn'] {13}\n"


LOADERS = """
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        return torch.rand(300, 300) @ torch.rand(300, 300) * 0 + index ** 2

def objective(config):
    torch.rand(800, 800) @ torch.rand(800, 800)
    loader = DataLoader(Squares(), batch_size=4, num_workers=2, multiprocessing_context=config["method"])
    seen = sorted(int(b) for batch in loader for b in batch[:, 0, 0])
    return {"loss": float(seen == [i ** 2 for i in range(16)]), "how": config["method"]}
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("launch", ["fork", "exec"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loaders_of_functions(tmp_path: Path, launch: str, method: str) -> None:
    out, _ = run_main(
        tmp_path,
        LOADERS
        + f"""
if __name__ == "__main__":
    results = tune(objective, {{"method": "{method}", "x": uniform(0, 1)}}, 2, launch="{launch}").results
    print(set(results["loss"]), set(results["how"]))
""",
    )
    assert out == f"{{1.0}} {{'{method}'}}\n"


def tune_script(folder: Path, text: str, space: dict[str, Any], trials: int = 2) -> ExperimentResult:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    backend = LocalBackend(script, launch="fork")
    criterion = StoppingCriterion(max_num_trials_started=trials)
    return Tuner(backend, RandomSearch(space, metric="loss", random_seed=0), criterion, 2, max_failures=0).run()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loaders_of_scripts(tmp_path: Path, method: str) -> None:
    text = LOADERS + (
        "if __name__ == '__main__':\n"
        "    import sys\n"
        "    from sthyper import Reporter\n"
        "    Reporter()(**objective({'method': sys.argv[sys.argv.index('--method') + 1]}))\n"
    )
    results = tune_script(tmp_path, text, {"method": method, "x": uniform(0, 1)}).results
    assert set(results["loss"]) == {1.0}
    assert set(results["how"]) == {method}


LIGHTNING = """
import os
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.full((4,), float(index))

class Line(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        return self.layer(batch).square().mean()
    def validation_step(self, batch, index):
        self.log("val", self.layer(batch).square().mean() + self.global_rank, sync_dist=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

def fit(config):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy=config["strategy"], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Line(config["lr"]), DataLoader(Numbers(), 2), DataLoader(Numbers(), 2))
    with open(os.path.join(os.environ["STHYPER_TRIAL_DIR"], f"rank-{trainer.global_rank}"), "w") as file:
        file.write(str(trainer.world_size))
    return trainer

def objective(config):
    trainer = fit(config)
    assert trainer.world_size == 2
    return {"loss": trainer.callback_metrics["val"], "how": config["strategy"], "rank": trainer.global_rank}
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork"])
def test_lightning_ranks_of_functions(tmp_path: Path, strategy: str) -> None:
    """ddp starts run_trial.py again, ddp_spawn imports it: the ranks call the function, or find its classes."""
    out, path = run_main(
        tmp_path,
        LIGHTNING
        + f"""
if __name__ == "__main__":
    space = {{"lr": uniform(0.001, 0.01), "strategy": "{strategy}"}}
    results = tune(objective, space, 2).results
    print(set(results["how"]), set(results["rank"]), (results["loss"] > 0.5).all(), len(results))
""",
        timeout=230,
    )
    assert out == f"{{'{strategy}'}} {{0}} True 2\n"
    for trial in ("0", "1"):
        ranks = sorted(file.name for file in (path / "trials" / trial).glob("rank-*"))
        # Under spawn and fork the other rank returns from fit in a process that ends there.
        assert ranks == (["rank-0", "rank-1"] if strategy == "ddp" else ["rank-0"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_callback_is_attached_to_trainers_of_functions(tmp_path: Path) -> None:
    out, _ = run_main(
        tmp_path,
        LIGHTNING.replace("devices=2", "devices=1")
        + """
def plain(config):
    fit(config)

if __name__ == "__main__":
    space = {"lr": uniform(0.001, 0.01), "strategy": "auto"}
    print(tune(plain, space, lightning={"metrics": {"loss": "val"}}).results["epoch"].tolist())
""",
    )
    assert out == "[1, 2]\n"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_lightning_ranks_report_and_the_function_returns(tmp_path: Path) -> None:
    """The callback reports from a spawned rank; what the function returns in the first process is ignored."""
    out, _ = run_main(
        tmp_path,
        LIGHTNING.replace("enable_checkpointing=False,", "enable_checkpointing=False, callbacks=[callback()],")
        + """
def callback():
    from sthyper.callbacks import TuneReportCallback
    return TuneReportCallback({"loss": "val"})

if __name__ == "__main__":
    results = tune(fit, {"lr": uniform(0.001, 0.01), "strategy": "ddp_spawn"}).results
    print(results["epoch"].tolist())
""",
        timeout=230,
    )
    assert out == "[1, 2]\n"
