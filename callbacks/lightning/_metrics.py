"""Which logged metrics are reported, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from sthyper.constants import RESERVED_PREFIX
from sthyper.errors import closest

__all__ = ["MetricReader", "MissingMetric", "name_metrics"]


class MissingMetric(ValueError):
    """A metric that is to be reported was not logged."""


def name_metrics(metrics: str | list[str] | dict[str, str]) -> dict[str, str]:
    """Return reported name -> logged name.

    Raises:
        TypeError: If ``metrics`` is neither a name, nor a list of names, nor a dictionary of names.
        ValueError: If it is empty or a reported name is reserved.
    """
    if isinstance(metrics, str):
        names = {metrics: metrics}
    elif isinstance(metrics, Mapping):
        names = dict(metrics)
    elif isinstance(metrics, list | tuple):
        names = {name: name for name in metrics}
    else:
        raise TypeError(f"metrics must be a name, a list of names or a dictionary of names, got {metrics!r}")
    if not names:
        raise ValueError(f"metrics must name at least one metric, got {metrics!r}")
    for name, source in names.items():
        if not isinstance(name, str) or not isinstance(source, str) or not name or not source:
            raise TypeError(f"metrics must hold names that are not empty, got {metrics!r}")
        if name.startswith(RESERVED_PREFIX):
            raise ValueError(f"metrics: a reported name must not start with {RESERVED_PREFIX!r}, got {name!r}")
    return names


class MetricReader:
    """Reads the metrics of an epoch, and knows which of them are there only after a validation.

    Args:
        sources: Reported name -> logged name.
        missing: What to do about a metric that is not there.
    """

    def __init__(self, sources: dict[str, str], missing: Literal["error", "skip"]) -> None:
        self.sources = sources
        self._missing = missing
        self._before: dict[str, Any] = {}
        self._from_validation: set[str] = set()
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        return {"from_validation": sorted(self._from_validation)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._from_validation = set(state["from_validation"])

    def epoch_starts(self) -> None:
        """Values of earlier validations are stale from now on."""
        self._validated = False

    def validation_starts(self, trainer: Trainer) -> None:
        self._before = dict(trainer.callback_metrics)

    def validation_ends(self, trainer: Trainer) -> None:
        self._validated = True
        # A value that was logged anew is another tensor.
        logged = {k for k, v in trainer.callback_metrics.items() if self._before.get(k) is not v}
        self._from_validation |= logged
        self._before = {}

    def read(self, trainer: Trainer) -> dict[str, float] | None:
        """Return reported name -> value; ``None`` if there is nothing to report now.

        That is so when a metric is missing and ``missing="skip"``, and in an epoch without validation
        (``check_val_every_n_epoch``) when a metric comes from the validation.

        Raises:
            MissingMetric: If a metric was not logged.
            ValueError: If a metric is more than one number.
        """
        available = trainer.callback_metrics
        absent = [s for s in self.sources.values() if s not in available]
        stale = [s for s in self.sources.values() if s in self._from_validation and not self._validated]
        if stale or (absent and trainer.enable_validation and not self._validated):
            return None
        if absent:
            if self._missing == "skip":
                return None
            names = sorted(map(str, available))
            raise MissingMetric(
                f"metric {absent[0]!r} was not logged{closest(absent[0], names)}; there are: "
                f"{', '.join(names) or 'none'}. Log it with self.log({absent[0]!r}, value, on_epoch=True) in the "
                "LightningModule, or pass TuneReportCallback(..., missing='skip') to report only epochs that have it"
            )
        return {name: _number(source, available[source]) for name, source in self.sources.items()}


def _number(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"metric {name!r} must be one number, got a tensor of shape {tuple(value.shape)}")
        return float(value.item())
    return float(value)
