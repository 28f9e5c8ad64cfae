"""The resource of multi-fidelity schedulers: its maximum, and its value in a report."""

from __future__ import annotations

import warnings
from typing import Any

from sthyper.config_space import Domain
from sthyper.errors import ConfigSpaceError, ReportError, closest

__all__ = ["MAX_RESOURCE_NAMES", "infer_max_resource", "report_resource"]

MAX_RESOURCE_NAMES = ("epochs", "max_t", "max_epochs")
"""Constants of a configuration space that are taken for the maximum resource, in this order."""


def infer_max_resource(
    config_space: dict[str, Any], max_t: int | None = None, max_resource_attr: str | None = None
) -> int | None:
    """Return the maximum resource, ``None`` if neither arguments nor space tell it.

    An explicit ``max_t`` wins, then ``config_space[max_resource_attr]``, then the first of
    :data:`MAX_RESOURCE_NAMES` that is a constant of the space.

    Args:
        config_space: Configuration space.
        max_t: Maximum resource, a positive int.
        max_resource_attr: Name of a constant of the space that holds it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``max_t`` is not positive.
        ConfigSpaceError: If ``max_resource_attr`` is no constant of the space with a positive int.
    """
    if max_t is not None:
        if isinstance(max_t, bool) or not isinstance(max_t, int):
            raise TypeError(f"max_t must be a positive int, got {max_t!r}")
        if max_t < 1:
            raise ValueError(f"max_t must be a positive int, got {max_t!r}")
    if max_resource_attr is not None:
        found: tuple[str, int] | None = (max_resource_attr, _named_maximum(config_space, max_resource_attr))
    else:
        names = (name for name in MAX_RESOURCE_NAMES if _is_level(config_space.get(name)))
        found = next(((name, int(config_space[name])) for name in names), None)
    if max_t is None:
        return None if found is None else found[1]
    if found is not None and found[1] != max_t:
        warnings.warn(
            f"max_t={max_t} differs from {found[0]!r}: {found[1]} of config_space; max_t={max_t} is used",
            stacklevel=3,
        )
    return max_t


def report_resource(result: dict[str, Any], resource_attr: str, metric: str) -> int:
    """Return the resource level of a report.

    Args:
        result: The report.
        resource_attr: Name of the resource.
        metric: Name of the metric, for the message.

    Raises:
        ReportError: If the resource is missing or no positive integer; the message shows the ``report(...)`` call
            that is expected.
    """
    value = result.get(resource_attr)
    if type(value) is int and value > 0:
        return value
    if isinstance(value, float) and value.is_integer() and value > 0:  # loggers turn integers into floats
        return int(value)
    call = f"report({resource_attr}=1, {metric}=...)"
    if not (resource_attr.isidentifier() and metric.isidentifier()):
        call = f"report(**{{{resource_attr!r}: 1, {metric!r}: ...}})"
    if resource_attr not in result:
        names = [name for name in result if not name.startswith("st_")]
        raise ReportError(
            f"resource {resource_attr!r} is missing in the report, which has {names}"
            f"{closest(resource_attr, names)}; expected: {call}, counted from 1"
        )
    raise ReportError(
        f"resource {resource_attr!r} must be a positive integer, the report has {value!r}; "
        f"expected: {call}, counted from 1"
    )


def _named_maximum(config_space: dict[str, Any], max_resource_attr: str) -> int:
    if not isinstance(max_resource_attr, str):
        raise TypeError(f"max_resource_attr must be a name in config_space, got {max_resource_attr!r}")
    if max_resource_attr not in config_space:
        raise ConfigSpaceError(
            f"max_resource_attr={max_resource_attr!r} is not in config_space, which has {list(config_space)}"
            f"{closest(max_resource_attr, config_space)}"
        )
    value = config_space[max_resource_attr]
    if isinstance(value, Domain):
        raise ConfigSpaceError(
            f"max_resource_attr={max_resource_attr!r} must name a constant of config_space, it is {value}; "
            "the maximum resource is not tuned"
        )
    if not _is_level(value):
        raise ConfigSpaceError(f"config_space[{max_resource_attr!r}] must be a positive int, got {value!r}")
    return int(value)


def _is_level(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
