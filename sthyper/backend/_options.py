"""Checks of the arguments of local backends."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sthyper.errors import closest

__all__ = ["check_launch", "check_options", "is_any_address", "parse_channel"]

_LAUNCHES = ("auto", "fork", "exec", "inline")


def check_launch(launch: str) -> None:
    """Raise unless there is such a launch mode."""
    if launch not in _LAUNCHES:
        raise ValueError(f"launch must be one of {', '.join(_LAUNCHES)}, got {launch!r}{closest(launch, _LAUNCHES)}")


def check_options(
    *,
    preload: object,
    stop_grace: float,
    trial_timeout: float | None,
    first_report_timeout: float | None,
    workdir: str | Path | None,
    threads_per_trial: int | None,
    environment: Mapping[str, str | None] | None,
    cost_per_hour: float | None,
    switches: Mapping[str, object],
) -> None:
    """Raise ``TypeError`` or ``ValueError`` for arguments of :class:`LocalBackend` that are not allowed.

    Args:
        preload: See :class:`LocalBackend`, as the others.
        stop_grace: Seconds.
        trial_timeout: Seconds.
        first_report_timeout: Seconds.
        workdir: Folder.
        threads_per_trial: Number.
        environment: Changes.
        cost_per_hour: Price.
        switches: Arguments that must be True or False, by name.
    """
    for name, seconds in (("trial_timeout", trial_timeout), ("first_report_timeout", first_report_timeout)):
        if seconds is not None and not _number(name, seconds) > 0:
            raise ValueError(f"{name} must be a number of seconds > 0 or None, got {seconds!r}")
    if not 0 <= _number("stop_grace", stop_grace) < math.inf:
        raise ValueError(f"stop_grace must be a finite number of seconds >= 0, got {stop_grace!r}")
    if cost_per_hour is not None and not 0 <= _number("cost_per_hour", cost_per_hour) < math.inf:
        raise ValueError(f"cost_per_hour must be a finite number >= 0, got {cost_per_hour!r}")
    if threads_per_trial is not None and (type(threads_per_trial) is not int or threads_per_trial < 1):
        raise ValueError(f"threads_per_trial must be an int of at least 1 or None, got {threads_per_trial!r}")
    if isinstance(preload, str) or not isinstance(preload, bool | Sequence):
        raise TypeError(f"preload must be True, False or a list of package names, got {preload!r}")
    if workdir is not None and workdir != "trial" and not Path(workdir).is_dir():
        raise ValueError(f"workdir must be None, 'trial' or an existing folder, got {str(workdir)!r}")
    for name, value in (environment or {}).items():
        if not isinstance(name, str) or not isinstance(value, str | None):
            raise TypeError(f"environment must map names to strings or None, got {name!r}: {value!r}")
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise TypeError(f"{name} must be True or False, got {switch!r}")


def parse_channel(channel: str) -> tuple[str | None, int]:
    """Return host and port of a channel, ``(None, 0)`` for a unix socket."""
    if not isinstance(channel, str):
        raise TypeError(f"channel must be 'unix', 'tcp' or 'tcp:HOST:PORT', got {channel!r}")
    kind, _, place = channel.partition(":")
    if kind == "unix" and not place:
        return None, 0
    if kind == "tcp":
        host, _, port = place.rpartition(":") if place else ("127.0.0.1", "", "0")
        if host and port.isdigit() and int(port) < 65536:
            return host.strip("[]"), int(port)
    raise ValueError(f"channel must be 'unix', 'tcp' or 'tcp:HOST:PORT', got {channel!r}")


def is_any_address(host: str) -> bool:
    """Whether a host stands for all addresses of a machine: one listens there, and cannot connect to it."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value
