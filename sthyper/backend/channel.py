"""Tuner side of the wire protocol: listens on a unix socket or TCP, reads messages, sends decisions.

Everything is non-blocking and runs in the thread that owns the selector.
"""

from __future__ import annotations

import hmac
import json
import os
import selectors
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sthyper._connection import PROTOCOL_VERSION
from sthyper.constants import MAX_REPORT_BYTES
from sthyper.report import decode_floats
from sthyper.trial import SchedulerDecision

__all__ = ["ChannelServer", "ClientBye", "ClientGone", "ClientHello", "ClientLoaded", "ClientReport"]

# A report and the frame around it.
_MAX_LINE = MAX_REPORT_BYTES + 4096
_CODES = (SchedulerDecision.CONTINUE, SchedulerDecision.STOP, SchedulerDecision.PAUSE)


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A process of a trial has connected, for the first time or again."""

    trial_id: int
    run: int
    client: str


@dataclass(frozen=True, slots=True)
class ClientReport:
    """A report that waits for an answer."""

    trial_id: int
    run: int
    client: str
    seq: int
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClientBye:
    """A process announced its end; ``rank`` as in :class:`ClientGone`."""

    trial_id: int
    run: int
    client: str
    ok: bool
    reason: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A connection was closed.

    Args:
        trial_id: The trial.
        run: Number of its run.
        client: The process.
        rank: Its rank, ``None`` if it has not said that it is one.
        said_bye: Whether it had announced its end.
        failed: Whether it had announced a failure.
        world_size: Number of ranks.
    """

    trial_id: int
    run: int
    client: str
    rank: int | None
    said_bye: bool
    failed: bool = False
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class ClientLoaded:
    """Packages that a trial's process had loaded at its end."""

    trial_id: int
    packages: tuple[str, ...]


ChannelMessage = ClientHello | ClientReport | ClientBye | ClientGone | ClientLoaded


@dataclass
class _Client:
    """What outlives a connection: answers given so far, for reports that are sent again."""

    answers: bytearray = field(default_factory=bytearray)
    waiting: int | None = None
    bye: bool = False
    failed: bool = False
    rank: int | None = None
    world_size: int = 1


@dataclass
class _Connection:
    socket: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    key: tuple[int, int, str] | None = None


class ChannelServer:
    """Listens for trials.

    Args:
        token: Secret that a ``hello`` must bring.
        selector: Selector that the owner of the event loop polls; the ``data`` of each key is a callable.
        host: ``None`` listens on a unix socket in a private folder; otherwise on this address, over TCP.
        port: TCP port, 0 for a free one.
        max_connections: Further connections are refused.
    """

    def __init__(
        self,
        token: str,
        selector: selectors.BaseSelector,
        host: str | None = None,
        port: int = 0,
        max_connections: int = 4096,
    ) -> None:
        self._token = token
        self._selector = selector
        self._max_connections = max_connections
        self._folder: str | None = None
        self._messages: list[ChannelMessage] = []
        self._connections: dict[int, _Connection] = {}
        self._clients: dict[tuple[int, int, str], _Client] = {}
        self._by_client: dict[tuple[int, int, str], _Connection] = {}
        if host is None:
            # The path of a unix socket is limited to about 107 bytes: no room for experiment names.
            self._folder = tempfile.mkdtemp(prefix="sthyper-")
            path = os.path.join(self._folder, "s")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self.address = f"unix:{path}"
        else:
            self._listener = socket.create_server((host, port), family=_family(host))
            bound = self._listener.getsockname()
            self.address = f"tcp:{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
        self._listener.listen(256)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def take(self) -> list[ChannelMessage]:
        """Return the messages that were read since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def answer(self, trial_id: int, run: int, client: str, seq: int, decision: str) -> None:
        """Answer a report; the answer is kept in case the report is sent again."""
        key = (trial_id, run, client)
        state = self._clients.get(key)
        if state is None:
            return  # its processes are gone
        state.waiting = None
        if len(state.answers) <= seq:
            state.answers.extend(bytes(seq + 1 - len(state.answers)))
        state.answers[seq] = _CODES.index(decision)
        connection = self._by_client.get(key)
        if connection is not None:
            self._reply(connection, seq, decision)

    def drain(self, trial_id: int) -> None:
        """Read what the processes of a trial that are gone have left in their sockets."""
        for key, connection in list(self._by_client.items()):
            if key[0] == trial_id:
                self._read(connection)

    def forget(self, trial_id: int) -> None:
        """Close connections of a trial whose processes are gone and drop what is known of them."""
        for key in [k for k in self._clients if k[0] == trial_id]:
            connection = self._by_client.get(key)
            if connection is not None:
                self._close(connection, announce=False)
            del self._clients[key]

    def close(self) -> None:
        """Close all sockets and remove the socket's folder; may be called twice."""
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        for connection in list(self._connections.values()):
            self._close(connection, announce=False)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- reading -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            if len(self._connections) >= self._max_connections:
                sock.close()
                continue
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(sock)
            self._connections[sock.fileno()] = connection
            self._selector.register(sock, selectors.EVENT_READ, _Reader(self._read, connection))

    def _read(self, connection: _Connection) -> None:
        while connection.socket.fileno() >= 0:
            try:
                data = connection.socket.recv(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._close(connection)
                return
            connection.buffer += data
            while (end := connection.buffer.find(b"\n")) >= 0:
                line = bytes(connection.buffer[:end])
                del connection.buffer[: end + 1]
                if not self._line(connection, line):
                    self._close(connection)
                    return
            if len(connection.buffer) > _MAX_LINE:
                self._close(connection)
                return

    def _line(self, connection: _Connection, line: bytes) -> bool:
        """Take one message; ``False`` if the connection is to be closed."""
        if len(line) > _MAX_LINE:
            return False
        try:
            message = json.loads(line)
            kind = message.get("type")
            if connection.key is None:
                return kind == "hello" and self._hello(connection, message)
            state = self._clients[connection.key]
            if kind == "report":
                return self._report(connection, connection.key, state, message)
            if kind == "rank":
                state.rank = int(message["rank"])
                state.world_size = int(message.get("world_size", 1))
            elif kind == "bye":
                state.bye = True
                state.failed = state.failed or message.get("ok") is False
                reason = message.get("reason")
                ok, said = message.get("ok") is not False, str(reason) if reason else None
                self._messages.append(ClientBye(*connection.key, ok, said, state.rank))
            elif kind == "loaded":
                packages = tuple(str(p) for p in message["packages"])
                self._messages.append(ClientLoaded(connection.key[0], packages))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        return True

    def _hello(self, connection: _Connection, message: dict[str, Any]) -> bool:
        token = str(message["token"])
        if message.get("v") != PROTOCOL_VERSION or not hmac.compare_digest(token.encode(), self._token.encode()):
            return False
        key = (int(message["trial_id"]), int(message["run"]), str(message["client"])[:64])
        connection.key = key
        old = self._by_client.get(key)
        if old is not None:
            self._close(old, announce=False)
        self._by_client[key] = connection
        self._clients.setdefault(key, _Client())
        self._messages.append(ClientHello(*key))
        return True

    def _report(
        self, connection: _Connection, key: tuple[int, int, str], state: _Client, message: dict[str, Any]
    ) -> bool:
        seq, metrics = message["seq"], message["metrics"]
        if not isinstance(seq, int) or not isinstance(metrics, dict):
            return False
        if 0 <= seq < len(state.answers):
            self._reply(connection, seq, _CODES[state.answers[seq]])
        elif seq == state.waiting:
            pass  # sent again while the first is being decided: one answer serves both
        elif seq == len(state.answers):
            state.waiting = seq
            self._messages.append(ClientReport(*key, seq, decode_floats(metrics)))
        else:
            return False
        return True

    # ---- writing -------------------------------------------------------------------------------------

    def _reply(self, connection: _Connection, seq: int, decision: str) -> None:
        try:
            connection.socket.sendall(f'{{"seq":{seq},"decision":"{decision}"}}\n'.encode())
        except OSError:
            # Also a peer that does not read: it would have to re-send after connecting again.
            self._close(connection)

    def _close(self, connection: _Connection, announce: bool = True) -> None:
        fd = connection.socket.fileno()
        if fd < 0:
            return
        self._selector.unregister(connection.socket)
        del self._connections[fd]
        connection.socket.close()
        key = connection.key
        if key is not None and self._by_client.get(key) is connection:
            del self._by_client[key]
            state = self._clients.get(key)
            if announce and state is not None:
                self._messages.append(
                    ClientGone(
                        *key,
                        rank=state.rank,
                        said_bye=state.bye,
                        failed=state.failed,
                        world_size=state.world_size,
                    )
                )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A callable for the selector's ``data``."""

    read: Callable[[_Connection], None]
    connection: _Connection

    def __call__(self) -> None:
        self.read(self.connection)


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
