"""Schedules: what the hyperparameters were at every moment of a self-tuning run."""

from __future__ import annotations

import math
import time as clock
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sthyper.errors import closest
from sthyper.selftuning import _schedule_files as files
from sthyper.selftuning._schedule_rows import (
    COLUMNS,
    EPOCH,
    KIND,
    STEP,
    TIME,
    VALUES,
    WHOLE_EPOCH,
    Row,
    Rows,
    columns_of,
    kept,
    table_of,
)
from sthyper.selftuning.hyperparameters import Hyperparameter, Hyperparameters

__all__ = ["Schedule"]

Kind = Literal["step", "epoch"]

_VERSION = 1


class Schedule:
    """The trajectories of values and scales in one run, by step and by epoch.

    A row holds the state after ``step`` training steps. Recording copies small tensors; values are computed when they
    are read. Of choices it holds the probability of each option, under the name ``name=option``; of a gate its
    probability, of several gates how many are expected to be on (``name.size``). Files: :meth:`to_csv`,
    :meth:`to_json`; figures: :meth:`plot`, :meth:`animate`; another run with the same values:
    :class:`sthyper.selftuning.Replay`.

    Example:
        >>> schedule = Schedule()
        >>> schedule.record({"dropout": 0.1}, step=0, epoch=0)
        >>> schedule.record({"dropout": 0.2}, step=10, epoch=1, val_loss=0.7, kind="epoch")
        >>> schedule.at(9), schedule.final()
        ({'dropout': 0.1}, {'dropout': 0.2})

    Args:
        names: Names of the hyperparameters; default are those of the first row.

    Raises:
        ValueError: If a name is that of a column of the files, or repeated.
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._names: list[str] | None = None if names is None else _checked(names)
        self._content = Rows(_empty(0 if self._names is None else len(self._names)))
        self._by_step: tuple[Tensor, Tensor, list[float]] | None = None  # table, rows with steps, the steps
        self._last = (-math.inf, -math.inf)
        self._elapsed = 0.0
        self._start = clock.monotonic()

    # ---- recording -----------------------------------------------------------------------------------

    def record(
        self,
        hyperparameters: Hyperparameters | Mapping[str, float],
        *,
        step: int | None = None,
        epoch: float,
        time: float | None = None,
        train_loss: float | Tensor | None = None,
        val_loss: float | Tensor | None = None,
        scales: Mapping[str, float] | None = None,
        hypergradients: Mapping[str, float | Tensor] | None = None,
        kind: Kind = "step",
    ) -> None:
        """Add a row.

        Args:
            hyperparameters: The hyperparameters, or their values by name.
            step: Training steps done so far; ``None`` if unknown.
            epoch: Number of the epoch, the first one is 1; 0 before training.
            time: Seconds since the run began; default by an own clock that goes on after :meth:`load_state_dict`.
            train_loss: Training loss, of one element; kept on its device until it is read.
            val_loss: Validation loss; with ``kind="step"`` that of a batch.
            scales: Standard deviations of the perturbations by name, if values are given as a mapping.
            hypergradients: Gradients, or their norms, by name; those left out are NaN.
            kind: ``"step"``, or ``"epoch"`` for the row that sums up a whole epoch.

        Raises:
            TypeError: If ``hyperparameters`` is neither.
            ValueError: If names are not those of earlier rows, ``step`` or ``epoch`` go back, or ``kind`` is unknown.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be 'step' or 'epoch', got {kind!r}{closest(kind, get_args(Kind))}")
        if not isinstance(hyperparameters, Hyperparameters | Mapping):
            raise TypeError(f"hyperparameters must be Hyperparameters or values by name, got {hyperparameters!r}")
        given = _columns_of(hyperparameters) if isinstance(hyperparameters, Hyperparameters) else list(hyperparameters)
        names = self._check_names(given)
        position = (math.nan if step is None else float(step), float(epoch))
        self._check_position(*position)
        elapsed = self._now() if time is None else float(time)
        numbers = (*position, elapsed, kept(train_loss), kept(val_loss), WHOLE_EPOCH if kind == "epoch" else 0.0)
        gradients = tuple(kept(value) for value in _by_name("hypergradients", hypergradients, names))
        declared: list[Hyperparameter] = []
        if isinstance(hyperparameters, Hyperparameters):
            if scales is not None:
                raise ValueError("scales are those of the hyperparameters; give them with a mapping of values only")
            raw, raw_scale, declared = _measured(hyperparameters)
            if given != names:
                order = [given.index(name) for name in names]
                raw, raw_scale, declared = raw[order], raw_scale[order], [declared[i] for i in order]
            row = Row(numbers, raw, raw_scale, gradients=gradients)
        else:
            values = tuple(float(hyperparameters[name]) for name in names)
            deviations = tuple(float(value) for value in _by_name("scales", scales, names))
            row = Row(numbers, values=values, scales=deviations, gradients=gradients)
        if self._names is None:
            self._names, self._content = names, Rows(_empty(len(names)))
        self._content.append(row, declared)
        self._last = (self._last[0] if step is None else position[0], position[1])

    def _check_names(self, given: list[str]) -> list[str]:
        if self._names is None:
            return _checked(given)
        if given == self._names:
            return self._names
        for name in given:
            if name not in self._names:
                raise ValueError(
                    f"hyperparameter {name!r} is not in the schedule{closest(name, self._names)}; known: {self._names}"
                )
        if missing := [name for name in self._names if name not in given]:
            raise ValueError(f"a row needs all hyperparameters of the schedule; missing are {missing}")
        return self._names

    def _check_position(self, step: float, epoch: float) -> None:
        for name, value, before in (("step", step, self._last[0]), ("epoch", epoch, self._last[1])):
            if value < before or value < 0 or math.isinf(value):
                raise ValueError(f"{name} must be at least {max(before, 0):g} and finite, got {value:g}")
        if math.isnan(epoch):
            raise ValueError("epoch must be a number, got nan")

    def _now(self) -> float:
        return self._elapsed + clock.monotonic() - self._start

    # ---- reading -------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The hyperparameters, in the order of the first row."""
        return list(self._names or [])

    def __len__(self) -> int:
        return len(self._content)

    def __bool__(self) -> bool:
        return len(self) > 0

    def _rows(self, kind: Kind | None) -> Tensor:
        table = self._content.table()
        if kind is None:
            return table
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be 'step', 'epoch' or None, got {kind!r}{closest(kind, get_args(Kind))}")
        return table[(table[:, KIND] == WHOLE_EPOCH) == (kind == "epoch")]

    def _epoch_rows(self) -> Tensor:
        """Return one row an epoch: that which sums it up, else its last one."""
        if len(rows := self._rows("epoch")):
            return rows
        table = self._content.table()
        ends = torch.ones(len(table), dtype=torch.bool)
        ends[:-1] = table[1:, EPOCH] != table[:-1, EPOCH]
        return table[ends]

    def column(self, name: str, kind: Kind | None = None) -> Tensor:
        """Return one number of every row.

        Args:
            name: ``"step"``, ``"epoch"``, ``"time"``, ``"train_loss"``, ``"val_loss"``.
            kind: ``"step"`` or ``"epoch"`` for rows of this kind only.

        Returns:
            The numbers (``rows``, float64), NaN where unknown.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in COLUMNS[:KIND]:
            raise ValueError(f"name must be one of {list(COLUMNS[:KIND])}, got {name!r}{closest(name, COLUMNS)}")
        return self._rows(kind)[:, COLUMNS.index(name)].clone()

    def values(self, name: str, kind: Kind | None = None) -> Tensor:
        """Return the values of a hyperparameter (``rows``, float64); discrete ones as they were before rounding.

        Args:
            name: The hyperparameter.
            kind: ``"step"`` or ``"epoch"`` for rows of this kind only.

        Raises:
            KeyError: If there is no such hyperparameter.
        """
        return self._rows(kind)[:, VALUES + self._index(name)].clone()

    def scales(self, name: str, kind: Kind | None = None) -> Tensor:
        """Return the standard deviations of a hyperparameter's perturbations; arguments as in :meth:`values`."""
        return self._rows(kind)[:, VALUES + len(self.names) + self._index(name)].clone()

    def hypergradients(self, name: str, kind: Kind | None = None) -> Tensor:
        """Return the recorded hypergradients of a hyperparameter; arguments as in :meth:`values`."""
        return self._rows(kind)[:, VALUES + 2 * len(self.names) + self._index(name)].clone()

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"there is no hyperparameter {name!r}{closest(name, self.names)}; known are {self.names}")
        return self.names.index(name)

    @property
    def n_steps(self) -> int:
        """Training steps of the run as far as it is recorded; 0 if unknown."""
        known = self._content.table()[:, STEP]
        known = known[~known.isnan()]
        return int(known[-1]) if len(known) else 0

    @property
    def n_epochs(self) -> float:
        """Number of the last epoch; 0 without rows."""
        table = self._content.table()
        return float(table[-1, EPOCH]) if len(table) else 0.0

    def at(self, step: float) -> dict[str, float]:
        """Return the values that counted after ``step`` training steps, which is for the step that follows.

        Args:
            step: Training steps done. Before the first row its values count, after the last row those of the last one.

        Raises:
            ValueError: If the schedule is empty, or knows no steps (files by epoch do not).
        """
        table = self._not_empty(self._content.table())
        if self._by_step is None or self._by_step[0] is not table:
            rows = table[~table[:, STEP].isnan()]
            self._by_step = (table, rows, rows[:, STEP].tolist())
        _, rows, steps = self._by_step
        if not steps:
            raise ValueError("the schedule has no steps, only epochs; use at_epoch, or by='epoch' for a replay")
        return self._values_of(rows[max(bisect_right(steps, step) - 1, 0)])

    def at_epoch(self, epoch: float) -> dict[str, float]:
        """Return the values of an epoch: those at its end.

        Args:
            epoch: Number of the epoch. Between two rows the earlier one counts, before the first row that one.

        Raises:
            ValueError: If the schedule is empty.
        """
        rows = self._not_empty(self._epoch_rows())
        return self._values_of(rows[max(bisect_right(rows[:, EPOCH].tolist(), epoch) - 1, 0)])

    def final(self) -> dict[str, float]:
        """Return the values of the last row.

        Raises:
            ValueError: If the schedule is empty.
        """
        return self._values_of(self._not_empty(self._content.table())[-1])

    def mean_of_last(self, part: float = 0.1) -> dict[str, float]:
        """Return the mean values of the last part of the run.

        Args:
            part: Which part of the rows counts, at least one row. Rows by step where there are any, else by epoch.

        Raises:
            ValueError: If the schedule is empty, or ``part`` not in (0, 1].
        """
        if not 0 < part <= 1:
            raise ValueError(f"part must be larger than 0 and at most 1, got {part!r}")
        self._not_empty(self._content.table())
        rows = self._rows("step")
        rows = rows if len(rows) else self._content.table()
        last = rows[-max(1, math.ceil(part * len(rows) - 1e-9)) :]
        return self._values_of(last.mean(0))

    def _not_empty(self, rows: Tensor) -> Tensor:
        if not len(rows):
            raise ValueError("the schedule is empty: nothing was recorded")
        return rows

    def _values_of(self, row: Tensor) -> dict[str, float]:
        return dict(zip(self.names, row[VALUES : VALUES + len(self.names)].tolist(), strict=True))

    # ---- state and files -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for the checkpoint of the run; loads with ``weights_only=True``."""
        return {"version": _VERSION, "names": self.names, "rows": self._content.table().clone(), "elapsed": self._now()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all rows by those of a checkpoint; recording goes on behind them, and so does the clock.

        Raises:
            ValueError: If the state is that of other hyperparameters, or of another version.
        """
        names, rows = list(state["names"]), state["rows"]
        if state["version"] != _VERSION:
            raise ValueError(f"the state is of version {state['version']}, this is version {_VERSION}")
        if self._names and names and names != self._names:
            raise ValueError(f"the state is that of hyperparameters {names}, these are {self._names}")
        if rows.shape[1:] != (VALUES + 3 * len(names),):
            raise ValueError(f"the state has rows of shape {tuple(rows.shape)}, which do not fit {names}")
        self._replace(names, rows.double().cpu().clone(), float(state["elapsed"]))

    def _replace(self, names: list[str], rows: Tensor, elapsed: float) -> None:
        if names:
            self._names = _checked(names)
        self._content = Rows(rows if len(rows) else _empty(len(self.names)))
        steps = rows[:, STEP][~rows[:, STEP].isnan()]
        self._last = (
            float(steps[-1]) if len(steps) else -math.inf,
            float(rows[-1, EPOCH]) if len(rows) else -math.inf,
        )
        self._elapsed, self._start = elapsed, clock.monotonic()

    def to_csv(self, path: str | Path, rows: Literal["epoch", "all"] = "epoch") -> None:
        """Write a CSV file, as a whole or not at all.

        Columns: ``epoch``, ``time``, ``train_loss``, ``val_loss``, one for each hyperparameter, and ``<name>_scale``
        if scales were recorded. With all rows also ``step`` and ``kind``, and ``<name>_gradient`` if recorded.

        Args:
            path: The file; its folder is made.
            rows: One row an ``"epoch"``, or ``"all"``.

        Raises:
            ValueError: For unknown ``rows``.
        """
        if rows not in ("epoch", "all"):
            raise ValueError(f"rows must be 'epoch' or 'all', got {rows!r}")
        table = self._epoch_rows() if rows == "epoch" else self._content.table()
        files.write_csv(Path(path), columns_of(table, self.names, with_steps=rows == "all"))

    @classmethod
    def from_csv(cls, path: str | Path, names: Sequence[str] | None = None) -> Schedule:
        """Read a CSV file that :meth:`to_csv` or the code of the STN paper (``epoch.csv``) wrote.

        Args:
            path: The file.
            names: Columns that are hyperparameters. Default are all but ``step``, ``kind``, ``epoch``, ``time``,
                ``lr``, losses, accuracies and perplexities (``train_ppl`` and so on), scales and gradients.

        Raises:
            ValueError: If it is no such file: no ``epoch`` column, epochs that go back, a cell that is no number.
        """
        columns = files.read_csv(Path(path))
        return cls._from_columns(columns, files.hyperparameter_columns(columns, names), str(path))

    def to_json(self, path: str | Path) -> None:
        """Write all rows to a JSON file, as a whole or not at all; NaN and infinities as strings.

        Args:
            path: The file; its folder is made.
        """
        columns = columns_of(self._content.table(), self.names)
        files.write_json(Path(path), {"version": _VERSION, "names": self.names, "columns": columns})

    @classmethod
    def from_json(cls, path: str | Path) -> Schedule:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If it is no such file.
        """
        content = files.read_json(Path(path))
        if content["version"] != _VERSION:
            raise ValueError(f"{path} is of version {content['version']}, this is version {_VERSION}")
        return cls._from_columns(content["columns"], content["names"], str(path))

    @classmethod
    def _from_columns(cls, columns: Mapping[str, list[Any]], names: Sequence[str], source: str) -> Schedule:
        schedule = cls(names)
        try:
            rows = table_of(columns, names)
            for step, epoch in rows[:, [STEP, EPOCH]].tolist():
                schedule._check_position(step, epoch)
                schedule._last = (schedule._last[0] if math.isnan(step) else step, epoch)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source} is no schedule: {error}") from None
        times = rows[:, TIME][~rows[:, TIME].isnan()]
        schedule._replace(list(names), rows, float(times[-1]) if len(times) else 0.0)
        return schedule

    # ---- figures -------------------------------------------------------------------------------------

    def plot(
        self,
        path: str | Path | None = None,
        *,
        names: Sequence[str] | None = None,
        x: str = "epoch",
        scales: bool = True,
    ) -> None:
        """Draw the trajectories of values and scales, and the losses.

        Args:
            path: Where the figure is saved (``.png``); ``None`` shows it.
            names: The hyperparameters; default all.
            x: ``"step"``, ``"epoch"`` or ``"time"``.
            scales: Whether to draw scales, if they were recorded.

        Raises:
            MissingExtra: Without matplotlib.
            ValueError: If the schedule is empty, or a name or ``x`` unknown.
        """
        from sthyper.selftuning._schedule_plots import plot_schedules

        plot_schedules([self], path, names=names, x=x, scales=scales)

    def animate(
        self, path: str | Path, *, names: Sequence[str] | None = None, x: str = "epoch", frames: int = 60, fps: int = 12
    ) -> Path:
        """Write an animation of the trajectories; see :func:`sthyper.selftuning.animate_schedules`."""
        from sthyper.selftuning._schedule_plots import animate_schedules

        return animate_schedules([self], path, names=names, x=x, frames=frames, fps=fps)


def _columns_of(hyperparameters: Hyperparameters) -> list[str]:
    return [*hyperparameters.continuous, *hyperparameters.discrete.columns()]


def _measured(hyperparameters: Hyperparameters) -> tuple[Tensor, Tensor, list[Hyperparameter]]:
    """Return raw numbers and scales to keep, and what they are; probabilities count as raw numbers without a scale."""
    raw, raw_scale = hyperparameters.raw.detach(), hyperparameters.raw_scale.detach()
    declared = [hyperparameters.declaration(name) for name in hyperparameters.continuous]
    if not len(hyperparameters.discrete):
        return raw.clone(), raw_scale.clone(), declared
    numbers = hyperparameters.discrete.numbers().to(raw)
    unknown = torch.full_like(numbers, math.nan)
    return (
        torch.cat([raw, numbers]),
        torch.cat([raw_scale, unknown]),
        declared + hyperparameters.discrete.declarations(),
    )


def _checked(names: Iterable[str]) -> list[str]:
    result = list(names)
    for name in result:
        if name in COLUMNS:
            raise ValueError(f"no hyperparameter of a schedule may be called {name!r}: it is a column of its files")
        if result.count(name) > 1:
            raise ValueError(f"there are two hyperparameters of the name {name!r}")
        for ending in (files.SCALE, files.GRADIENT):
            if name.endswith(ending) and name.removesuffix(ending) in result:
                raise ValueError(
                    f"hyperparameter {name!r} has the name of a column that belongs to {name.removesuffix(ending)!r}; "
                    "rename it"
                )
    return result


def _by_name(argument: str, given: Mapping[str, Any] | None, names: list[str]) -> list[Any]:
    for name in given or {}:
        if name not in names:
            raise ValueError(f"{argument}: there is no hyperparameter {name!r}{closest(name, names)}; known: {names}")
    return [(given or {}).get(name, math.nan) for name in names]


def _empty(n_hyperparameters: int) -> Tensor:
    return torch.empty(0, VALUES + 3 * n_hyperparameters, dtype=torch.float64)
