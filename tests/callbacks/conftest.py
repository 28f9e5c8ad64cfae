"""A scripted tuner for one trial: real environment, real socket, decisions by resource."""

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

from sthyper.backend.channel import ChannelServer, ClientBye, ClientReport
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
    ranks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def run_trial(self, script: Callable[[], Any], decisions: dict[int, str] | None = None) -> Any:
        """Run ``script`` as the next run of the trial.

        Args:
            script: The training script.
            decisions: Resource -> answer; all others are answered CONTINUE.
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
        while not done.is_set():
            for key, _ in selector.select(0.02):
                key.data()
            for message in server.take():
                if isinstance(message, ClientBye):
                    self.byes.append(message)
                if isinstance(message, ClientReport):
                    self.reports.append(message.metrics)
                    resource = message.metrics[resource_attr]
                    self.last_resource = resource
                    server.answer(
                        message.trial_id, message.run, message.client, message.seq, decisions.get(resource, "CONTINUE")
                    )


@pytest.fixture
def tuner(tmp_path: Path) -> Iterator[ScriptedTuner]:
    """A scripted tuner whose scheduler maximises ``acc``."""
    objective = {"metric": "acc", "mode": "max", "resource_attr": "epoch", "max_resource": 6}
    yield ScriptedTuner(tmp_path / "3", {"lr": 0.01, "epochs": 6}, objective)
