"""Names and folders of experiments; imports nothing heavy."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from sthyper.constants import (
    MAX_TUNER_NAME_LENGTH,
    ST_DATETIME_FORMAT,
    STHYPER_DEFAULT_FOLDER,
    STHYPER_ENV_FOLDER,
)

__all__ = ["check_valid_name", "experiment_path", "is_plain_name", "name_from_base", "sanitize_name"]

_VALID_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*\Z")
STAMP_PATTERN = r"\d{4}(-\d{2}){5}-\d{3}"
"""Regular expression of the time stamp at the end of an experiment's name."""
_STAMP_LENGTH = 23


def experiment_path(tuner_name: str | None = None, local_path: str | Path | None = None) -> Path:
    """Return the folder of an experiment, or of all experiments.

    Args:
        tuner_name: Name of the experiment; ``None`` for the folder that holds all of them.
        local_path: Folder that holds the experiments; default ``$STHYPER_FOLDER``, else ``~/sthyper``.

    Raises:
        ValueError: If the name is a path, or leads out of the folder.
    """
    if tuner_name is not None and not is_plain_name(tuner_name):
        raise ValueError(f"tuner_name must be the name of an experiment, not a path, got {tuner_name!r}")
    if local_path is not None:
        root = Path(local_path).expanduser()
    elif folder := os.environ.get(STHYPER_ENV_FOLDER):
        root = Path(folder).expanduser()
    else:
        root = Path.home() / STHYPER_DEFAULT_FOLDER
    root = root.absolute()  # a trial in this process may change the working directory
    return root if tuner_name is None else root / tuner_name


def is_plain_name(name: object) -> bool:
    """Whether ``name`` is the name of a file or folder: no path, nothing that leads elsewhere, no control character."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and not any(c in "/\\\x7f" or ord(c) < 32 for c in name)
    )


def check_valid_name(name: str) -> str:
    """Return ``name`` if an experiment can have it.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is not made of letters, digits and inner ``-``, or has more than 63 characters.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r} of type {type(name).__name__}")
    if len(name) > MAX_TUNER_NAME_LENGTH:
        raise ValueError(f"name {name!r} has {len(name)} characters; at most {MAX_TUNER_NAME_LENGTH} are allowed")
    if not _VALID_NAME.match(name):
        raise ValueError(
            f"name {name!r} is not allowed: letters, digits and '-' only, with a letter or digit first and last"
        )
    return name


def sanitize_name(name: str) -> str:
    """Return ``name`` with ``-`` for every other character than letters and digits, cut to 63 characters.

    Raises:
        ValueError: If no letter or digit is left.
    """
    clean = re.sub(r"[^a-zA-Z0-9]", "-", name).strip("-")[:MAX_TUNER_NAME_LENGTH].rstrip("-")
    if not clean:
        raise ValueError(f"name {name!r} has no letter or digit (of ASCII), so no valid name can be made of it")
    return clean


def trim_base(base: str, max_length: int = MAX_TUNER_NAME_LENGTH) -> str:
    """Return ``base`` cut so that the time stamp fits behind it."""
    return base[: max_length - _STAMP_LENGTH - 1].rstrip("-")


def name_from_base(base: str | None, default: str = "st-tuner", max_length: int = MAX_TUNER_NAME_LENGTH) -> str:
    """Return ``base`` + UTC time stamp with milliseconds, e.g. ``train-2026-01-12-11-08-40-971``.

    Args:
        base: Start of the name; it is cut where the whole name would be too long.
        default: Used if ``base`` is ``None``.
        max_length: Largest number of characters of the result.

    Raises:
        ValueError: If the base is no valid name or ``max_length`` leaves no room for it.
    """
    if max_length < _STAMP_LENGTH + 2:
        raise ValueError(f"max_length must be at least {_STAMP_LENGTH + 2}, got {max_length}")
    base = check_valid_name(default if base is None else base)
    now = datetime.now(tz=UTC)
    return f"{trim_base(base, max_length)}-{now.strftime(ST_DATETIME_FORMAT)}-{now.microsecond // 1000:03d}"
