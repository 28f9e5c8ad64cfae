"""A training script whose metrics are a pure function of configuration and epoch; it imports no torch.

It notes what it does in ``log.txt`` of its trial: ``trained RUN EPOCH`` before the checkpoint of an epoch, and
``answered RUN EPOCH DECISION`` once the tuner has answered the report. Its state is a chain of numbers, so that a
checkpoint of the wrong epoch, or training that begins anew, shows in the metrics.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from sthyper import Reporter
from sthyper.utils import checkpoint_model_at_rung_level, resume_from_checkpointed_model

SECONDS = 0.015


def next_state(state: float, config: dict[str, Any]) -> float:
    """Return the state one epoch later."""
    return (state * 0.7 + config["x"] + config["n"] / 50) % 1.0


def metrics_of(state: float, config: dict[str, Any], epoch: int) -> dict[str, float]:
    """Return what is reported after an epoch."""
    return {"epoch": epoch, "loss": (config["x"] - 0.3) ** 2 + state / 10 + 1 / epoch, "state": state}


def expected(config: dict[str, Any], epoch: int) -> dict[str, float]:
    """Return the metrics of an epoch of a training that nothing disturbs."""
    state = 0.0
    for _ in range(epoch):
        state = next_state(state, config)
    return metrics_of(state, config, epoch)


def main() -> None:
    report = Reporter(on_stop="return")
    config = report.config
    log = os.open(os.path.join(report.trial_dir or ".", "log.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    state = 0.0

    def note(*words: object) -> None:
        os.write(log, (" ".join(map(str, words)) + "\n").encode())

    def path(folder: str, epoch: int) -> str:
        return os.path.join(folder, f"epoch-{epoch}.json")

    def save(folder: str, epoch: int) -> None:
        with open(path(folder, epoch) + ".new", "w") as file:
            json.dump(state, file)
        os.replace(path(folder, epoch) + ".new", path(folder, epoch))
        if os.path.exists(path(folder, epoch - 2)):  # the one before stays until this epoch's report is answered
            os.remove(path(folder, epoch - 2))

    def load(folder: str) -> int:
        nonlocal state
        epoch = int(report.last_resource or 0)
        if epoch:
            with open(path(folder, epoch)) as file:
                state = json.load(file)
        return epoch

    start = resume_from_checkpointed_model({}, load)
    for epoch in range(start + 1, config["epochs"] + 1):
        time.sleep(SECONDS)
        state = next_state(state, config)
        note("trained", report.run, epoch)
        checkpoint_model_at_rung_level({}, save, epoch)
        decision = report(**metrics_of(state, config, epoch))
        note("answered", report.run, epoch, decision)
        if decision != "CONTINUE":
            return


if __name__ == "__main__":
    main()
