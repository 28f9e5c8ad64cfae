"""Sockets on which the tuner listens for its trials."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import socket
import tempfile

__all__ = ["SOCKET_NAME", "listen_on_tcp", "listen_on_unix_socket"]

logger = logging.getLogger(__name__)

SOCKET_NAME = "s"
# The path of a unix socket has 107 bytes at most, and 103 on some systems: no room for experiment names.
_MAX_PATH = 100
_BACKLOG = 256


def listen_on_unix_socket() -> tuple[socket.socket, str]:
    """Return a listener at :data:`SOCKET_NAME` in a new folder, and the folder; only this user reaches either.

    Raises:
        OSError: If there is no folder for temporary files with a short path.
    """
    folder = _private_folder()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = os.path.join(folder, SOCKET_NAME)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return listener, folder


def listen_on_tcp(host: str, port: int) -> tuple[socket.socket, str]:
    """Return a listener and its address ``tcp:HOST:PORT``; one that other machines can reach is warned of.

    Args:
        host: Name or address of an interface of this machine.
        port: Port, 0 for a free one.

    Raises:
        OSError: If the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    bound = listener.getsockname()
    address = f"tcp:{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
    if not ipaddress.ip_address(bound[0].partition("%")[0]).is_loopback:
        logger.warning(
            "the tuner listens on %s, which other machines can reach; trials show a token, but nothing is encrypted: "
            "do so only in a network that you trust",
            address,
        )
    return listener, address


def _private_folder() -> str:
    """Make a folder of mode 0700 in which the path of a socket is short enough."""
    folder = tempfile.mkdtemp(prefix="sthyper-")
    if len(os.fsencode(folder)) + 2 <= _MAX_PATH:
        return folder
    os.rmdir(folder)
    try:
        return tempfile.mkdtemp(prefix="sthyper-", dir="/tmp")
    except OSError as error:
        raise OSError(
            error.errno,
            f"the folder for temporary files, {tempfile.gettempdir()}, has too long a path for a socket, and /tmp "
            f"cannot be used ({error.strerror}); set TMPDIR to a short path, or use channel='tcp'",
        ) from None
