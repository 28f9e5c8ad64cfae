"""The numbers of a schedule: cheap to add during training, turned into a table when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sthyper.errors import closest
from sthyper.selftuning._schedule_files import GRADIENT, SCALE
from sthyper.selftuning.hyperparameters import Hyperparameter

__all__ = [
    "COLUMNS",
    "EPOCH",
    "KIND",
    "STEP",
    "TIME",
    "VALUES",
    "WHOLE_EPOCH",
    "Row",
    "Rows",
    "columns_of",
    "kept",
    "table_of",
]

COLUMNS = ("step", "epoch", "time", "train_loss", "val_loss", "kind")
"""The first columns of a table; values, scales and hypergradients of all hyperparameters follow."""
STEP, EPOCH, TIME, _, _, KIND = range(len(COLUMNS))
VALUES = len(COLUMNS)
WHOLE_EPOCH = 1.0
"""What column ``kind`` holds in rows that sum up an epoch; others hold 0."""
_CHUNK = 1024


@dataclass(frozen=True)
class Row:
    """A row whose numbers may still be on their device: reading them out would wait for it.

    Args:
        numbers: One for each of :data:`COLUMNS`.
        raw: Unconstrained numbers (``H``); ``None`` if ``values`` and ``scales`` are given.
        raw_scale: Unconstrained scales (``H``).
        values: Values (``H``).
        scales: Standard deviations (``H``).
        gradients: Hypergradients (``H``).
    """

    numbers: tuple[float | Tensor, ...]
    raw: Tensor | None = None
    raw_scale: Tensor | None = None
    values: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    gradients: tuple[float | Tensor, ...] = ()


class Rows:
    """Rows of ``H`` hyperparameters.

    Args:
        table: Rows that there are already (``rows x (6 + 3 H)``, float64).
    """

    def __init__(self, table: Tensor) -> None:
        self._chunks = [table]
        self._pending: list[Row] = []
        self._declared: list[Hyperparameter] = []

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks) + len(self._pending)

    def append(self, row: Row, declared: list[Hyperparameter]) -> None:
        """Add a row.

        Args:
            row: The row.
            declared: Declarations of the hyperparameters, where the row has raw numbers.
        """
        if row.raw is not None and declared != self._declared:
            self._flush()
            self._declared = declared
        self._pending.append(row)
        if len(self._pending) >= _CHUNK:
            self._flush()

    def table(self) -> Tensor:
        """Return all rows (``rows x (6 + 3 H)``, float64, on the CPU); not to be changed."""
        self._flush()
        if len(self._chunks) > 1:
            self._chunks = [torch.cat(self._chunks)]
        return self._chunks[0]

    def _flush(self) -> None:
        """Turn pending rows into numbers on the CPU, with one transfer a column at most."""
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        n = (self._chunks[0].shape[1] - VALUES) // 3
        values = torch.full((len(rows), n), math.nan, dtype=torch.float64)
        scales = values.clone()
        measured = [i for i, row in enumerate(rows) if row.raw is not None]
        if measured:
            raw = torch.stack([row.raw for row in rows if row.raw is not None]).cpu().double()
            raw_scale = torch.stack([row.raw_scale for row in rows if row.raw_scale is not None]).cpu().double()
            for j, h in enumerate(self._declared):
                values[measured, j] = h.value_map(raw[:, j])
                scales[measured, j] = (F.softplus if h.scale_map == "softplus" else torch.exp)(raw_scale[:, j])
        given = [i for i, row in enumerate(rows) if row.raw is None]
        if given:
            values[given] = torch.tensor([rows[i].values for i in given], dtype=torch.float64).reshape(-1, n)
            scales[given] = torch.tensor([rows[i].scales for i in given], dtype=torch.float64).reshape(-1, n)
        columns = [_numbers([row.numbers[i] for row in rows]) for i in range(VALUES)]
        gradients = [_numbers([row.gradients[j] for row in rows]) for j in range(n)]
        parts = [torch.stack(columns, 1), values, scales]
        self._chunks.append(torch.cat([*parts, torch.stack(gradients, 1)] if gradients else parts, 1))


def columns_of(table: Tensor, names: Sequence[str], with_steps: bool = True) -> dict[str, list[Any]]:
    """Return the columns of a table by name, without scales and gradients of which nothing is known.

    Args:
        table: The table (``rows x (6 + 3 H)``).
        names: The hyperparameters (``H``).
        with_steps: Whether to give what a file by epoch lacks: ``step``, ``kind`` and gradients.
    """
    columns: dict[str, list[Any]] = {name: table[:, i].tolist() for i, name in enumerate(COLUMNS)}
    for name in ("step", "epoch"):
        columns[name] = [int(number) if number.is_integer() else number for number in columns[name]]
    columns["kind"] = ["epoch" if kind == WHOLE_EPOCH else "step" for kind in columns["kind"]]
    if not with_steps:
        del columns["step"], columns["kind"]
    for block, ending in enumerate(("", SCALE, GRADIENT) if with_steps else ("", SCALE)):
        for j, name in enumerate(names):
            numbers = table[:, VALUES + block * len(names) + j]
            if not ending or not bool(numbers.isnan().all()):
                columns[f"{name}{ending}"] = numbers.tolist()
    return columns


def table_of(columns: Mapping[str, list[Any]], names: Sequence[str]) -> Tensor:
    """Return the table of columns (``rows x (6 + 3 H)``, float64); what is not given is NaN.

    Args:
        columns: Columns by name. Without ``kind`` each row sums up an epoch.
        names: The hyperparameters (``H``), which are among the columns.

    Raises:
        ValueError: If ``epoch`` or a hyperparameter is missing, or a column holds something else than one number a row.
    """
    for name in ("epoch", *names):
        if name not in columns:
            raise ValueError(f"there is no column {name!r}{closest(name, columns)}, only {list(columns)}")
    n = len(columns["epoch"])
    kinds = columns.get("kind", ["epoch"] * n)
    if unknown := sorted(set(kinds) - {"step", "epoch"}):
        raise ValueError(f"kind must be 'step' or 'epoch', got {unknown[0]!r}")
    numbers = {**columns, "kind": [WHOLE_EPOCH if kind == "epoch" else 0.0 for kind in kinds]}
    order = [*COLUMNS, *(f"{name}{ending}" for ending in ("", SCALE, GRADIENT) for name in names)]
    table = []
    for name in order:
        column = numbers.get(name, [math.nan] * n)
        if not isinstance(column, list) or len(column) != n:
            raise ValueError(f"column {name!r} must have {n} rows like 'epoch'")
        if not all(isinstance(number, int | float) for number in column):
            raise ValueError(f"column {name!r} must hold numbers only")
        table.append(column)
    return torch.tensor(table, dtype=torch.float64).reshape(len(order), n).T.contiguous()


def kept(value: float | Tensor | None) -> float | Tensor:
    """Return a number to keep: a tensor of one element stays on its device, ``None`` is NaN."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).clone()
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[float | Tensor]) -> Tensor:
    result = torch.tensor([math.nan if isinstance(v, Tensor) else v for v in values], dtype=torch.float64)
    waiting = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
    if waiting:
        tensors = [v for v in values if isinstance(v, Tensor)]
        result[waiting] = torch.stack([t.to(tensors[0].device) for t in tensors]).cpu().double()
    return result
