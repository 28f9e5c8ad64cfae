"""Configurations as they come from outside: from the user's ``canonicalize``, and with trials of other spaces."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from sthyper.config_space import Categorical, Domain
from sthyper.errors import ConfigSpaceError, closest

__all__ = ["CheckedCanonicalize", "unreadable"]


class CheckedCanonicalize:
    """The option ``canonicalize`` with a check of what it returns.

    Args:
        function: Maps a configuration to the one that stands for all that count as the same.
        config_space: Configuration space.
    """

    def __init__(self, function: Callable[[dict[str, Any]], dict[str, Any]], config_space: Mapping[str, Any]) -> None:
        self._function = function
        self._domains = {name: domain for name, domain in config_space.items() if isinstance(domain, Domain)}
        self._known = set(config_space)

    def __call__(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration that stands for one.

        Raises:
            ConfigSpaceError: If the function fails, or what it returns is no configuration of the space.
        """
        try:
            found: Any = self._function(dict(config))
        except Exception as error:
            raise ConfigSpaceError(f"canonicalize fails for {dict(config)!r}: {error!r}") from error
        if not isinstance(found, Mapping):
            raise ConfigSpaceError(f"canonicalize must return a configuration, got {found!r} for {dict(config)!r}")
        result = {}
        for name, domain in self._domains.items():
            if name not in found:
                raise ConfigSpaceError(
                    f"canonicalize must return all hyperparameters, {name!r} is missing in {dict(found)!r}"
                )
            value = found[name]
            # What it leaves alone may come from another space, and is no fault of the function.
            if name not in config or (value is not config[name] and not _same(value, config[name])):
                try:
                    value = domain.coerce(value)
                except ConfigSpaceError as error:
                    raise ConfigSpaceError(
                        f"canonicalize must return a configuration of the space, its {name!r} is none: {error}"
                    ) from None
            result[name] = value
        for name in found:
            if name not in self._known and name not in config:
                raise ConfigSpaceError(
                    f"canonicalize returns {name!r}, which is not in config_space{closest(name, self._domains)}"
                )
        return result


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def unreadable(config: Mapping[str, Any], config_space: Mapping[str, Any]) -> str | None:
    """Return what in a configuration cannot be compared with others, ``None`` if all can.

    Numbers outside their range can.
    """
    for name, domain in config_space.items():
        if not isinstance(domain, Domain):
            continue
        if name not in config:
            return f"it lacks {name!r}"
        value = config[name]
        if isinstance(domain, Categorical):
            try:
                domain.match_string(value)
            except (ConfigSpaceError, TypeError, ValueError) as error:
                return f"the value of {name!r} is none of this space: {error}"
        elif isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            return f"the value of {name!r} is no number: {value!r}"
    return None
