"""JSON lines over a socket that never blocks. Imports nothing of sthyper: the fork server loads this file by path."""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["LineSocket"]

_CHUNK = 65536


class LineSocket:
    """One end of a connection on which both sides write one JSON object a line.

    Args:
        sock: A connected stream socket; becomes non-blocking and is owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.open = True
        """False once the other side is gone; what was sent or received until then stands."""

    @property
    def pending(self) -> bool:
        """Whether something waits to be written (call :meth:`flush` when the socket is writable)."""
        return bool(self._outgoing) and self.open

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message and write what the socket takes; messages to a lost peer are dropped."""
        if self.open:
            self._outgoing += json.dumps(message).encode() + b"\n"
            self.flush()

    def flush(self) -> None:
        """Write what the socket takes of the queued messages."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            # Reading still works: what the peer wrote before it went is not lost.
            self._outgoing.clear()

    def receive(self) -> list[dict[str, Any]]:
        """Return the whole lines that have arrived; clears :attr:`open` when the peer is gone."""
        while self.open:
            try:
                chunk = self._socket.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.open = bool(chunk)
            self._incoming += chunk
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.open = False
        self._socket.close()
