"""What a tuner is made of, in the journal, so that a resumed experiment is made of the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sthyper._describe import NotDescribable, describe, rebuild
from sthyper.errors import ExperimentError

__all__ = ["describe_parts", "rebuild_parts"]

_REASON = "cannot_be_rebuilt"


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
                f"the journal. Pass {name}=..., made with the same arguments as before"
            )
        try:
            result[name] = rebuild(description)
        except (NotDescribable, ValueError, TypeError, OSError) as error:
            raise ExperimentError(
                f"{name} cannot be made again from the journal ({error}); pass {name}=..., made with the same "
                "arguments as before"
            ) from None
    return result
