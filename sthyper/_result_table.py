"""The table of results in memory: one row a report, kept in typed columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sthyper.constants import CONFIG_PREFIX, ST_DECISION, ST_END_REASON, ST_STATUS, ST_TRIAL_ID

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ResultTable"]


class _Block:
    """All rows with the same keys and the same types of values."""

    __slots__ = ("appends", "columns", "keys")

    def __init__(self, keys: tuple[str, ...], types: tuple[type, ...], strings: dict[str, str]) -> None:
        self.keys = keys
        self.columns: list[Any] = []
        self.appends: list[Callable[[Any], None]] = []
        for kind in types:
            column: Any = array("d") if kind is float else array("q") if kind is int else []
            self.columns.append(column)
            self.appends.append(_shared(column, strings) if kind is str else column.append)

    def widen(self, index: int, value: int) -> None:
        """Append an integer that an array cannot hold."""
        column = self.columns[index] = [*self.columns[index], value]
        self.appends[index] = column.append


def _shared(column: list[str], strings: dict[str, str]) -> Callable[[str], None]:
    """Return an ``append`` that keeps equal strings once."""
    return lambda text: column.append(strings.setdefault(text, text))


class _Rows:
    """Dicts in order of arrival; memory is about 8 bytes a number or repeated string."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[tuple[str, ...], tuple[type, ...]], int] = {}
        self._list: list[_Block] = []
        self._order = array("L")
        self._strings: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._order)

    def append(self, row: dict[str, Any]) -> None:
        values = row.values()
        shape = (tuple(row), tuple(map(type, values)))
        number = self._blocks.get(shape)
        if number is None:
            number = self._blocks[shape] = len(self._list)
            self._list.append(_Block(*shape, self._strings))
        block = self._list[number]
        for index, (append, value) in enumerate(zip(block.appends, values, strict=True)):
            try:
                append(value)
            except OverflowError:
                block.widen(index, value)
        self._order.append(number)

    def names(self) -> list[str]:
        """Return all keys in the order of their first appearance."""
        return list(dict.fromkeys(key for block in self._list for key in block.keys))

    def iterate(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows; further ones may be appended meanwhile."""
        positions = [0] * len(self._list)
        for index in range(len(self._order) if limit is None else limit):
            number = self._order[index]
            block = self._list[number]
            position = positions[number]
            positions[number] = position + 1
            yield {key: column[position] for key, column in zip(block.keys, block.columns, strict=True)}

    def frame(self) -> pd.DataFrame:
        """Return the rows as a data frame; absent values are missing."""
        import numpy as np
        import pandas as pd

        order = np.array(self._order)
        parts = []
        for number, block in enumerate(self._list):
            index = np.flatnonzero(order == number)
            columns = {
                key: np.array(column) if isinstance(column, array) else column
                for key, column in zip(block.keys, block.columns, strict=True)
            }
            parts.append(pd.DataFrame(columns, index=index))
        if not parts:
            return pd.DataFrame()
        return parts[0] if len(parts) == 1 else pd.concat(parts).sort_index()[self.names()]


class ResultTable:
    """One row for each report; configurations are held once and joined when rows are read.

    Rows hold what was reported, ``trial_id``, ``st_*`` columns and, joined, ``config_*`` and ``st_end_reason``.
    """

    def __init__(self) -> None:
        self._rows = _Rows()
        self._row_configs = array("L")
        self._configs: list[dict[str, Any]] = []
        self._last_config: dict[int, int] = {}
        self._extras = _Rows()
        self._extra_rows = array("L")
        self.end_reasons: dict[int, str] = {}
        """Why trials ended, by trial id."""

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, trial_id: int, config: dict[str, Any], row: dict[str, Any]) -> None:
        """Append a row.

        Args:
            trial_id: The trial, which ``row`` need not hold.
            config: Its configuration at this report.
            row: The other columns.
        """
        number = self._last_config.get(trial_id)
        if number is None or self._configs[number] != config:
            number = self._last_config[trial_id] = len(self._configs)
            self._configs.append(dict(config))
        self._row_configs.append(number)
        self._rows.append({**row, ST_TRIAL_ID: trial_id})

    def add_columns(self, index: int, values: dict[str, Any]) -> None:
        """Add columns to row ``index``; rows must come in order."""
        self._extras.append(values)
        self._extra_rows.append(index)

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        config = dict.fromkeys(f"{CONFIG_PREFIX}{key}" for config in self._configs for key in config)
        names = dict.fromkeys([*self._rows.names(), *self._extras.names(), *config])
        if self.end_reasons:
            names[ST_END_REASON] = None
        return list(names)

    def rows(self, limit: int | None = None, joined: bool = True) -> Iterator[dict[str, Any]]:
        """Yield the rows in order; a missing column is a missing key.

        Args:
            limit: Number of rows; default all.
            joined: Whether ``config_*`` and ``st_end_reason`` are joined.
        """
        extras = zip(self._extra_rows, self._extras.iterate(), strict=False)
        extra = next(extras, None)
        prefixed: dict[int, dict[str, Any]] = {}
        for index, row in enumerate(self._rows.iterate(limit)):
            while extra is not None and extra[0] == index:
                row.update(extra[1])
                extra = next(extras, None)
            if joined:
                number = self._row_configs[index]
                config = prefixed.get(number)
                if config is None:
                    config = {f"{CONFIG_PREFIX}{k}": v for k, v in self._configs[number].items()}
                    prefixed[number] = config
                row.update(config)
                if reason := self.end_reasons.get(row[ST_TRIAL_ID]):
                    row[ST_END_REASON] = reason
            yield row

    def row(self, index: int) -> dict[str, Any]:
        """Return one row with everything joined."""
        for number, row in enumerate(self.rows(limit=index + 1)):
            if number == index:
                return row
        raise IndexError(f"row {index} of {len(self)}")

    def frame(self) -> pd.DataFrame:
        """Return the table as a data frame with one row a report."""
        import numpy as np
        import pandas as pd

        if not len(self):
            return pd.DataFrame(columns=[ST_TRIAL_ID, ST_DECISION, ST_STATUS])
        frame = self._rows.frame()
        if len(self._extras):
            extras = self._extras.frame().set_index(np.array(self._extra_rows)).groupby(level=0).last()
            known = [name for name in extras if name in frame]
            frame = pd.concat([frame, extras.drop(columns=known).reindex(frame.index)], axis=1)
            for name in known:
                frame[name] = extras[name].reindex(frame.index).where(frame.index.isin(extras.index), frame[name])
        configs = pd.DataFrame(self._configs).add_prefix(CONFIG_PREFIX)
        configs = configs.iloc[np.array(self._row_configs)].set_axis(frame.index)
        # A reported metric of that name gives way, as it does in rows(): a frame with a name twice helps nobody.
        frame = pd.concat([frame.drop(columns=[name for name in configs if name in frame]), configs], axis=1)
        if self.end_reasons:
            frame[ST_END_REASON] = frame[ST_TRIAL_ID].map(self.end_reasons).astype(object)
        return frame
