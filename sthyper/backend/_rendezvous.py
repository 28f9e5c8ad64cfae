"""Where the processes of one trial meet: an address and a port of their own, and nothing left of other jobs."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from sthyper.errors import ExperimentError

__all__ = ["ADDRESS", "ENV_ADDRESS", "ENV_PORT", "STALE", "PortPool", "ports_to_choose_from", "without_stale"]

ENV_ADDRESS = "MASTER_ADDR"
ENV_PORT = "MASTER_PORT"
ADDRESS = "127.0.0.1"

STALE = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    ENV_ADDRESS,
    ENV_PORT,
    "PL_GLOBAL_SEED",
    "TORCHELASTIC_RUN_ID",
)
"""What a launching shell may have left of another distributed job; Lightning would take it for its own."""

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ASSIGNED = (49152, 65535)  # what RFC 6335 sets aside for ephemeral ports; macOS does so
_LOWEST = 20000
_ENOUGH = 1000


def without_stale(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables in :data:`STALE`."""
    return {name: value for name, value in environ.items() if name not in STALE}


def ports_to_choose_from(range_file: Path = _RANGE_FILE) -> list[int]:
    """Return the ports that the kernel does not give to outgoing connections.

    A port among those could be taken by any program between its choice here and its use in the trial.

    Args:
        range_file: Where the kernel tells the first and the last ephemeral port.
    """
    try:
        first, last = (int(number) for number in range_file.read_text().split())
    except (OSError, ValueError):
        first, last = _ASSIGNED
    ports = [port for port in range(_LOWEST, 65536) if not first <= port <= last]
    # A machine whose range leaves (almost) nothing: then any port that is free at the moment.
    return ports if len(ports) >= _ENOUGH else list(range(_LOWEST, 65536))


class PortPool:
    """Gives each trial a port for its rendezvous, which no living trial of this machine shares.

    The UDP port of the same number, which nobody talks to, is the lock: held by this process while the trial lives, it
    keeps other tuners (of any user) from the port, and the kernel frees it when this process dies. That nothing
    listens on the port itself is checked, too.

    Args:
        ports: The ports to give away, ``None`` for those of :func:`ports_to_choose_from`.
    """

    def __init__(self, ports: Sequence[int] | None = None) -> None:
        self._ports = list(ports_to_choose_from() if ports is None else ports)
        # Tuners begin at different places; no decision depends on it.
        self._next = random.SystemRandom().randrange(len(self._ports))
        self._held: dict[int, socket.socket] = {}

    def take(self, trial_id: int) -> int:
        """Return a port for a run of a trial; one that it still holds is given back.

        Raises:
            ExperimentError: If all ports are in use.
        """
        self.release(trial_id)
        for _ in self._ports:
            port = self._ports[self._next]
            # In a circle: the port of a trial that has just ended is not given away at once.
            self._next = (self._next + 1) % len(self._ports)
            lock = _bound(socket.AF_INET, socket.SOCK_DGRAM, ADDRESS, port)
            if lock is None:
                continue
            if _is_free(port):
                self._held[trial_id] = lock
                return port
            lock.close()
        raise ExperimentError(f"none of the ports {self._ports[0]} to {self._ports[-1]} is free for a trial")

    def release(self, trial_id: int) -> None:
        """Give back the port of a trial whose processes are gone, if it has one."""
        lock = self._held.pop(trial_id, None)
        if lock is not None:
            lock.close()

    def close(self) -> None:
        """Give back all ports."""
        for trial_id in list(self._held):
            self.release(trial_id)


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        if family == socket.AF_INET6 and not _has_ipv6():
            continue
        probe = _bound(family, socket.SOCK_STREAM, address, port)
        if probe is None:
            return False
        probe.close()
    return True


def _has_ipv6() -> bool:
    probe = _bound(socket.AF_INET6, socket.SOCK_STREAM, "::", 0) if socket.has_ipv6 else None
    if probe is not None:
        probe.close()
    return probe is not None


def _bound(family: socket.AddressFamily, kind: socket.SocketKind, address: str, port: int) -> socket.socket | None:
    """Return a socket that is bound to a port which no other socket is bound to, ``None`` if there is one."""
    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, kind))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
        except OSError:
            return None
        undo.pop_all()
    return sock
