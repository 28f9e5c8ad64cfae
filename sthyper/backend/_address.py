"""Where the tuner listens for trials elsewhere, and their token, in a file, so that a resumed tuner is found again."""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import stat
import time
from pathlib import Path

from sthyper.backend.channel import ChannelServer
from sthyper.constants import ST_CHANNEL_FILENAME
from sthyper.errors import ExperimentError
from sthyper.journal import write_atomically

__all__ = ["listen_again"]

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a port which the experiment had before may take to be free, unless trials give up earlier."""
_RETRY = 0.1
_NOT_OURS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES})


def listen_again(
    folder: Path, selector: selectors.BaseSelector, host: str, port: int, grace: float
) -> tuple[ChannelServer, str]:
    """Return a channel, at the address that the experiment had before if there was one, and its token.

    Args:
        folder: The experiment's folder, which holds the file.
        selector: See :class:`ChannelServer`.
        host: Address to listen on, unless there was one before.
        port: Port, 0 for a free one.
        grace: Seconds that trials look for their tuner, for the warning where they will not find it.

    Raises:
        ExperimentError: If the file is damaged, or could have been read or written by others.
        OSError: If nothing can be listened on.
    """
    path = folder / ST_CHANNEL_FILENAME
    saved = _read(path)
    if saved is not None:
        address, token = saved
        try:
            return _listen(token, selector, address, min(PATIENCE, grace)), token
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            logger.warning(
                "cannot listen on %s again (%s). Trials that run do not find this tuner: they end by themselves within "
                "%.0f s, and are then run again from their checkpoints",
                address,
                os.strerror(error.errno),
                grace,
            )
        if address.endswith(f":{port}"):
            port = 0
    # Whoever listens at the old address may have been shown the old token.
    token = os.urandom(16).hex()
    channel = ChannelServer(token, selector, host=host, port=port)
    try:
        write_atomically(path, json.dumps({"version": 1, "address": channel.address, "token": token}), mode=0o600)
    except BaseException:
        channel.close()
        raise
    return channel, token


def _listen(token: str, selector: selectors.BaseSelector, address: str, patience: float) -> ChannelServer:
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    end = time.monotonic() + patience
    while True:
        try:
            return ChannelServer(token, selector, host=host.strip("[]"), port=int(port))
        except OSError as error:
            # The tuner before may be about to end.
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        time.sleep(_RETRY)


def _read(path: Path) -> tuple[str, str] | None:
    """Return address and token, ``None`` if there is no file."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8")  # noqa: SIM115
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ExperimentError(
                f"{path} holds the token of the trials and must be a file of this user's alone: its owner is "
                f"{status.st_uid}, its mode {stat.S_IMODE(status.st_mode):o} and not 600. Delete it to go on: trials "
                "that run do not find the tuner then, and are run again from their checkpoints"
            )
        try:
            content = json.load(file)
            address, token = content["address"], content["token"]
            port = int(address.removeprefix("tcp:").rpartition(":")[2])
            if not address.startswith("tcp:") or not 0 < port < 65536 or not isinstance(token, str) or len(token) < 16:
                raise ValueError("no address and token")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExperimentError(
                f"{path} is damaged ({error}). Delete it to go on: trials that run do not find the tuner then, and are "
                "run again from their checkpoints"
            ) from None
    return address, token
