"""Which logged metrics are reported, and under which names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from sthyper.callbacks.lightning._ranks import gather, on_rank_zero
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
        self._warned_of: set[str] = set()

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
        """Return reported name -> value, the same on all ranks; ``None`` if there is nothing to report now.

        To be called on all ranks. A value that differs between them, because it was logged without ``sync_dist``, is
        averaged over those that have it, and warned of once.

        There is nothing to report when a metric is missing and ``missing="skip"``, and in an epoch without validation
        (``check_val_every_n_epoch``) when a metric comes from the validation.

        Raises:
            MissingMetric: If a metric was not logged.
            ValueError: If a metric is more than one number.
        """
        # To look at them may reduce them over the ranks: that is done by all, before rank 0 does anything alone.
        available = dict(trainer.callback_metrics)
        values: dict[str, float] | None = on_rank_zero(trainer, lambda: self._select(trainer, available))
        if values is None or trainer.world_size == 1:
            return values
        own = {name: available.get(source) for name, source in self.sources.items()}
        ranks = gather(trainer, {name: _number(name, value) for name, value in own.items() if _is_number(value)})
        return {name: self._over_ranks(name, value, ranks) for name, value in values.items()}

    def _over_ranks(self, name: str, value: float, ranks: list[dict[str, float]]) -> float:
        """Return what all ranks agree to report, ``value`` being rank 0's."""
        values = [rank[name] for rank in ranks if name in rank]
        if all(_same(value, other) for other in values):
            return value
        source = self.sources[name]
        if source not in self._warned_of:
            self._warned_of.add(source)
            shown = ", ".join(f"{other:.6g}" for other in values[:4]) + (", ..." if len(values) > 4 else "")
            rank_zero_warn(
                f"metric {source!r} differs between the ranks ({shown}); their mean is reported. Write "
                f"self.log({source!r}, value, sync_dist=True), so that everything else that watches it (EarlyStopping, "
                "ModelCheckpoint, schedulers) sees one value, too"
            )
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

    def _select(self, trainer: Trainer, available: Mapping[str, Any]) -> dict[str, float] | None:
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


def _same(first: float, second: float) -> bool:
    # Reduced values may differ in their last bits.
    return first == second or math.isclose(first, second, rel_tol=1e-6) or (first != first and second != second)


def _is_number(value: Any) -> bool:
    return value is not None and (not isinstance(value, torch.Tensor) or value.numel() == 1)


def _number(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"metric {name!r} must be one number, got a tensor of shape {tuple(value.shape)}")
        return float(value.item())
    return float(value)
