"""Files of schedules: columns of numbers as CSV and JSON."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sthyper._syncing import sync_folder
from sthyper.errors import closest
from sthyper.report import decode_floats, encode_floats

__all__ = ["GRADIENT", "SCALE", "hyperparameter_columns", "read_csv", "read_json", "write_csv", "write_json"]

SCALE = "_scale"
GRADIENT = "_gradient"

# What the logs of the STN code hold beside hyperparameters.
_OTHERS = {"step", "kind", "epoch", "time", "lr"}
_OTHERS |= {f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "acc", "ppl")}


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of one length, with their names as the first line.

    Args:
        path: The file; its folder is made.
        columns: Columns by name.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    _write(path, text.getvalue())


def read_csv(path: Path) -> dict[str, list[Any]]:
    """Read columns of numbers; ``kind`` holds texts. Empty cells are NaN.

    Args:
        path: The file.

    Raises:
        ValueError: If a cell is no number, or a line has too many or too few of them.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError(f"{path} is empty")
    names = [name.strip() for name in lines[0]]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} has two columns of one name: {names}")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(names):
            raise ValueError(f"{path}, line {number}: {len(names)} cells expected, found {len(line)}")
        for name, cell in zip(names, line, strict=True):
            columns[name].append(cell.strip() if name == "kind" else _number(cell, name, number, path))
    return columns


def _number(cell: str, name: str, line: int, path: Path) -> float:
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{path}, line {line}, column {name!r}: {cell!r} is no number") from None


def hyperparameter_columns(columns: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    """Return which columns are hyperparameters.

    Args:
        columns: All columns.
        names: Those that the user named, if so.

    Raises:
        ValueError: If there is no column of a name.
    """
    if names is not None:
        for name in names:
            if name not in columns:
                raise ValueError(f"names: there is no column {name!r}{closest(name, columns)}; known: {list(columns)}")
        return list(names)
    found = [name for name in columns if name not in _OTHERS]
    return [
        name
        for name in found
        if not any(name.endswith(ending) and name.removesuffix(ending) in found for ending in (SCALE, GRADIENT))
    ]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain content as JSON, NaN and infinities as strings.

    Args:
        path: The file; its folder is made.
        content: The content.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    _write(path, json.dumps(encode_floats(dict(content)), allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read a schedule's content.

    Args:
        path: The file.

    Raises:
        ValueError: If it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not {"version", "names", "columns"} <= content.keys():
        raise ValueError(f"{path} is no schedule: it must hold 'version', 'names' and 'columns'")
    if not isinstance(content["columns"], dict) or not isinstance(content["names"], list):
        raise ValueError(f"{path} is no schedule: 'names' must be a list, 'columns' an object")
    columns = {name: column if name == "kind" else decode_floats(column) for name, column in content["columns"].items()}
    return {**content, "columns": columns}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
