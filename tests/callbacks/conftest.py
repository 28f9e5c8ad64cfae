"""A scripted tuner for one trial (real environment, real socket, decisions by resource) and a model to train."""

from __future__ import annotations

import json
import os
import selectors
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.backend.channel import ChannelServer, ClientBye, ClientReport
from sthyper.callbacks import TuneReportCallback
from sthyper.config_space import choice
from sthyper.constants import (
    ENV_CHANNEL,
    ENV_CHECKPOINT_DIR,
    ENV_LAST_RESOURCE,
    ENV_OBJECTIVE,
    ENV_RUN,
    ENV_TOKEN,
    ENV_TRIAL_DIR,
    ENV_TRIAL_ID,
)
from sthyper.schedulers import SchedulerDecision, TrialScheduler, TrialSuggestion
from sthyper.trial import Trial


@dataclass
class ScriptedTuner:
    """Runs functions as the runs of one trial, in this process, and answers their reports.

    Args:
        folder: Folder of the trial.
        config: Its configuration.
        objective: What the scheduler wants.
    """

    folder: Path
    config: dict[str, Any]
    objective: dict[str, Any] | None
    trial_id: int = 3
    run: int = 0
    last_resource: float | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    byes: list[ClientBye] = field(default_factory=list)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The reports without the fields of the Reporter."""
        return [{k: v for k, v in report.items() if not k.startswith("st_")} for report in self.reports]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def run_trial(self, script: Callable[[], Any], decisions: dict[int, str] | None = None) -> Any:
        """Run ``script`` as the next run of the trial.

        Args:
            script: The training script.
            decisions: Resource -> answer; all others are answered CONTINUE. At ``"DIE"`` the tuner dies instead.
        """
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        selector = selectors.DefaultSelector()
        server = ChannelServer("token", selector)
        done = threading.Event()
        thread = threading.Thread(target=self._serve, args=(server, selector, decisions or {}, done), daemon=True)
        thread.start()
        environment = {
            ENV_CHANNEL: server.address,
            ENV_TOKEN: "token",
            ENV_TRIAL_ID: str(self.trial_id),
            ENV_RUN: str(self.run),
            ENV_TRIAL_DIR: str(self.folder),
            ENV_CHECKPOINT_DIR: str(self.checkpoints),
        }
        if self.objective is not None:
            environment[ENV_OBJECTIVE] = json.dumps(self.objective)
        if self.last_resource is not None:
            environment[ENV_LAST_RESOURCE] = str(self.last_resource)
        os.environ.update(environment)
        try:
            return script()
        finally:
            for name in environment:
                del os.environ[name]
            done.set()
            thread.join()
            server.close()
            selector.close()
            self.run += 1

    def _serve(
        self,
        server: ChannelServer,
        selector: selectors.BaseSelector,
        decisions: dict[int, str],
        done: threading.Event,
    ) -> None:
        resource_attr = (self.objective or {}).get("resource_attr") or "epoch"
        ending = False
        while True:
            # What was sent last is still read.
            ready = selector.select(0.0 if ending else 0.02)
            if ending and not ready:
                return
            ending = done.is_set()
            for key, _ in ready:
                key.data()
            for message in server.take():
                if isinstance(message, ClientBye):
                    self.byes.append(message)
                if isinstance(message, ClientReport):
                    if decisions.get(message.metrics[resource_attr]) == "DIE":
                        server.close()
                        return
                    self.reports.append(message.metrics)
                    resource = message.metrics[resource_attr]
                    self.last_resource = max(resource, self.last_resource or 0)
                    server.answer(
                        message.trial_id, message.run, message.client, message.seq, decisions.get(resource, "CONTINUE")
                    )


_X = torch.randn(26, 5, generator=torch.Generator().manual_seed(1))
_Y = (_X.sum(1) > 0).long()


class Model(LightningModule):
    """A network with dropout; logs ``val/acc``, ``val/loss`` and, in its own last hook, ``late``."""

    def __init__(self, lr: float = 0.01, epochs: int = 6, schedule: str = "cosine") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.steps = 0
        self.batch_size = 4
        self.generator: torch.Generator | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("late", float(self.current_epoch))

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(_X, _Y), self.batch_size, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(_X, _Y), 13)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.hparams["lr"])
        if self.hparams["schedule"] == "plateau":
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}
        if self.hparams["schedule"] == "one cycle":
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams["epochs"])]


@dataclass
class Fit:
    """What a training script leaves."""

    model: Model
    trainer: Trainer
    callback: TuneReportCallback


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fit]]:
    """A training script of six epochs: ``fit(callback, seeded_loader=..., schedule=..., ckpt_path=..., **trainer)``."""
    monkeypatch.chdir(tmp_path)

    def run(
        callback: TuneReportCallback | None = None,
        seeded_loader: bool = True,
        schedule: str = "cosine",
        ckpt_path: str | None = None,
        **options: Any,
    ) -> Fit:
        torch.manual_seed(0)
        callback = callback or TuneReportCallback({"acc": "val/acc"})
        model = Model(schedule=schedule)
        model.generator = torch.Generator().manual_seed(7) if seeded_loader else None
        options = {"max_epochs": 6, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"} | options
        trainer = Trainer(**options | {"callbacks": [callback, *options.get("callbacks", ())]})
        trainer.fit(model, ckpt_path=ckpt_path)
        return Fit(model, trainer, callback)

    with torch.random.fork_rng():
        yield run


@pytest.fixture
def make_tuner(tmp_path: Path) -> Callable[..., ScriptedTuner]:
    """Make a scripted tuner whose scheduler maximises ``acc``; the name tells trials apart."""

    def make(name: str = "3", **objective: Any) -> ScriptedTuner:
        base = {"metric": "acc", "mode": "max", "resource_attr": "epoch", "max_resource": 6}
        return ScriptedTuner(tmp_path / name, {"lr": 0.01, "epochs": 6}, base | objective)

    return make


@pytest.fixture
def tuner(make_tuner: Callable[..., ScriptedTuner]) -> ScriptedTuner:
    """A scripted tuner whose scheduler maximises ``acc``."""
    return make_tuner()


class PlannedDecisions(TrialScheduler):
    """Starts given configurations and stops and pauses them by plan; paused trials are resumed before new ones start.

    Args:
        configs: One for each trial; all have ``epochs``, the maximum resource.
        plan: Trial -> epoch -> decision; all others are CONTINUE.
    """

    resource_attr = "epoch"
    max_resource_attr = "epochs"
    max_resource_level: int
    random_seed = 0

    def __init__(self, configs: list[dict[str, Any]], plan: dict[int, dict[int, str]]) -> None:
        values = {name: list(dict.fromkeys(config[name] for config in configs)) for name in configs[0]}
        super().__init__({name: choice(v) if len(v) > 1 else v[0] for name, v in values.items()})
        self.max_resource_level = configs[0]["epochs"]
        self.configs, self.plan = configs, plan
        self.paused: list[int] = []

    def _suggest(self, trial_id: int) -> TrialSuggestion | None:
        if self.paused:
            return TrialSuggestion.resume_suggestion(self.paused.pop(0))
        return TrialSuggestion.start_suggestion(self.configs[trial_id]) if trial_id < len(self.configs) else None

    def on_trial_result(self, trial: Trial, result: dict[str, Any]) -> str:
        decision = self.plan.get(trial.trial_id, {}).get(result["epoch"], SchedulerDecision.CONTINUE)
        if decision == SchedulerDecision.PAUSE:
            self.paused.append(trial.trial_id)
        return decision if result["epoch"] < self.max_resource_level else SchedulerDecision.STOP

    def metric_names(self) -> list[str]:
        return ["loss"]


@pytest.fixture
def tune() -> Callable[..., Tuner]:
    """Run an experiment: ``tune(script, configs, plan, n_workers=2, backend={}, **options of the Tuner)``."""

    def run(
        script: Path | list[str],
        configs: list[dict[str, Any]],
        plan: dict[int, dict[int, str]] | None = None,
        n_workers: int = 2,
        backend: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tuner:
        tuner = Tuner(
            LocalBackend(script, **backend or {}),
            PlannedDecisions(configs, plan or {}),
            StoppingCriterion(max_wallclock_time=600),
            n_workers,
            **options,
        )
        tuner.run()
        return tuner

    return run
