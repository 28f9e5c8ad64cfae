"""What every trial finds in its environment, whoever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sthyper.constants import (
    ENV_CHECKPOINT_DIR,
    ENV_LAST_RESOURCE,
    ENV_OBJECTIVE,
    ENV_RUN,
    ENV_SEED,
    ENV_TRIAL_DIR,
    ENV_TRIAL_ID,
)
from sthyper.trial import Trial

__all__ = ["plain_resource", "trial_environment"]


def trial_environment(
    trial: Trial, run: int, folder: Path, checkpoints: Path, objective: dict[str, Any] | None
) -> dict[str, str | None]:
    """Return variables that tell a run what it is; ``None`` removes one.

    Args:
        trial: The trial.
        run: Number of the run.
        folder: The trial's folder.
        checkpoints: Folder of its checkpoints.
        objective: See :class:`ExperimentContext`.
    """
    last = trial.last_resource
    return {
        ENV_TRIAL_ID: str(trial.trial_id),
        ENV_RUN: str(run),
        ENV_TRIAL_DIR: str(folder.absolute()),
        ENV_CHECKPOINT_DIR: str(checkpoints.absolute()),
        ENV_LAST_RESOURCE: None if last is None else plain_resource(last),
        ENV_SEED: None if trial.seed is None else str(trial.seed),
        ENV_OBJECTIVE: None if objective is None else json.dumps(objective),
    }


def plain_resource(resource: float) -> str:
    """Return a resource as text, without a fraction where it has none."""
    return repr(int(resource) if float(resource).is_integer() else resource)
