"""What a tuner was made with, in a file, so that a resumed experiment is made with the same."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sthyper._describe import NotDescribable, describe, rebuild
from sthyper.constants import ST_TUNER_FILENAME
from sthyper.errors import ExperimentError
from sthyper.journal import write_atomically

__all__ = ["describe_parts", "read_parts", "read_parts_or_take", "rebuild_parts", "write_parts"]

logger = logging.getLogger(__name__)

_REASON = "cannot_be_rebuilt"
_NEEDED = ("trial_backend", "scheduler", "stop_criterion", "n_workers")
"""Arguments of a tuner without default."""


def write_parts(folder: Path, described: Mapping[str, Any]) -> None:
    """Write what :func:`describe_parts` returned, for the owner's eyes only.

    Args:
        folder: The experiment's folder.
        described: The description.
    """
    text = json.dumps({"version": 1, "cwd": os.getcwd(), "arguments": described}, indent=1)
    write_atomically(folder / ST_TUNER_FILENAME, text, mode=0o600)


def read_parts(folder: Path) -> dict[str, Any]:
    """Return what :func:`write_parts` wrote.

    Raises:
        ExperimentError: If there is nothing, or it is damaged.
    """
    path = folder / ST_TUNER_FILENAME
    try:
        parts = dict(json.loads(path.read_text())["arguments"])
    except FileNotFoundError:
        raise ExperimentError(f"{folder} cannot be resumed: {ST_TUNER_FILENAME} is missing there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{path} is damaged ({error})") from None
    if lacking := [name for name in _NEEDED if name not in parts]:
        raise ExperimentError(f"{path} is damaged (it lacks {', '.join(lacking)})")
    return parts


def read_parts_or_take(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`write_parts` wrote; where that cannot be read, a description of what is given instead.

    Args:
        folder: The experiment's folder.
        given: Arguments that the user gives.

    Raises:
        ExperimentError: If nothing can be read and not enough is given.
    """
    try:
        return read_parts(folder)
    except ExperimentError as error:
        if lacking := [name for name in _NEEDED if name not in given]:
            raise ExperimentError(
                f"{error}. The journal has all results: to go on, pass {', '.join(f'{name}=...' for name in lacking)}, "
                "made with the same arguments as before"
            ) from None
        logger.warning("%s; what is not given of the tuner's arguments has its default", error)
        return describe_parts(given)


def describe_parts(parts: Mapping[str, object]) -> dict[str, Any]:
    """Return JSON for the arguments of a tuner; what has none, such as a user's class, says why.

    Args:
        parts: Name of an argument -> its value.
    """
    result: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            result[name] = describe(part)
        except NotDescribable as error:
            result[name] = {_REASON: str(error)}
    return result


def rebuild_parts(described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a resumed tuner.

    Args:
        described: What :func:`describe_parts` returned.
        given: Arguments that the user gives; they come first.

    Raises:
        ExperimentError: If something has to be given.
    """
    result = dict(given)
    for name, description in described.items():
        if name in given:
            continue
        if isinstance(description, dict) and _REASON in description:
            raise ExperimentError(
                f"{name} has to be given to resume this experiment: {description[_REASON]} cannot be made again from "
                f"the record. Pass {name}=..., made with the same arguments as before"
            )
        try:
            result[name] = rebuild(description)
        except (NotDescribable, ValueError, TypeError, OSError) as error:
            raise ExperimentError(
                f"{name} cannot be made again from the record ({error}); pass {name}=..., made with the same "
                "arguments as before"
            ) from None
    return result
