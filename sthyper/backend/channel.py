"""Tuner side of the wire protocol: listens on a unix socket or TCP, reads messages, sends decisions.

Everything is non-blocking and runs in the thread that owns the selector. Nothing that a peer sends may raise out of
it, take its time without bound, or reach the tuner in another form than the messages below.
"""

from __future__ import annotations

import errno
import hmac
import json
import logging
import os
import resource
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sthyper._connection import MAX_LOADED, PROTOCOL_VERSION, notice_silence
from sthyper.backend._admission import FULL_PAUSE, Admission
from sthyper.backend._listeners import SOCKET_NAME, listen_on_tcp, listen_on_unix_socket
from sthyper.backend._messages import ChannelMessage, ClientBye, ClientGone, ClientHello, ClientLoaded, ClientReport
from sthyper.constants import MAX_REPORT_BYTES
from sthyper.report import decode_floats, metrics_fault
from sthyper.trial import SchedulerDecision

__all__ = ["ChannelServer", "ClientBye", "ClientGone", "ClientHello", "ClientLoaded", "ClientReport"]

logger = logging.getLogger(__name__)

# A report and the frame around it.
_MAX_LINE = MAX_REPORT_BYTES + 4096
_MAX_HELLO = 4096
# Bytes that are read of one connection, and connections that are accepted, before others have their turn.
_TURN = 1 << 18
_ACCEPTS = 64
# Turns that let in everybody who may wait.
_ACCEPT_TURNS = 5
# Bytes that are read of a connection whose processes are gone: more than a socket holds.
_REST = 1 << 24
# States that are kept of clients without a connection.
_MAX_STATES = 1 << 16
_MAX_TEXT = 1000
_CODES = (SchedulerDecision.CONTINUE, SchedulerDecision.STOP, SchedulerDecision.PAUSE)


@dataclass
class _Client:
    """What outlives a connection: answers given so far, for reports that are sent again.

    The first of them is for report 0; for a later one where nothing is known of the client any more, as its run ended.
    """

    answers: bytearray = field(default_factory=bytearray)
    first: int = 0
    waiting: int | None = None
    bye: bool = False
    failed: bool = False
    rank: int | None = None
    world_size: int = 1


class _Violation(ValueError):
    """A peer does not keep to the protocol; says how."""


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    key: tuple[int, int, str] | None = None


class ChannelServer:
    """Listens for trials.

    Args:
        token: Secret that a ``hello`` must bring.
        selector: Selector that the owner of the event loop polls; the ``data`` of each key is a callable.
        host: ``None`` listens on a unix socket in a private folder; otherwise on this address, over TCP. One that other
            machines can reach is warned of.
        port: TCP port, 0 for a free one.
        max_connections: Further connections are refused; half of it for one run of a trial, and never more than half
            of the file descriptors that this process may have.

    Raises:
        OSError: If the address cannot be bound.
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
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            max_connections = max(1, min(max_connections, descriptors // 2))
        self._max_connections = max_connections
        self.folder: str | None = None
        self._messages: list[ChannelMessage] = []
        self._connections: dict[int, _Connection] = {}
        self._clients: dict[tuple[int, int, str], _Client] = {}
        self._by_client: dict[tuple[int, int, str], _Connection] = {}
        if host is None:
            self._listener, self.folder = listen_on_unix_socket()
            self.address = f"unix:{os.path.join(self.folder, SOCKET_NAME)}"
        else:
            self._listener, self.address = listen_on_tcp(host, port)
        self._admission: Admission[_Connection] = Admission(self.address)
        self._listening = False
        self._listen(True)

    def take(self) -> list[ChannelMessage]:
        """Return the messages that were read since the last call; to be called in every round of the event loop."""
        self._look_after_strangers()
        messages, self._messages = self._messages, []
        return messages

    def next_deadline(self) -> float | None:
        """Return the ``time.monotonic()`` by which :meth:`take` is to be called, ``None`` if it does not matter."""
        return self._admission.next_deadline()

    def answer(self, trial_id: int, run: int, client: str, seq: int, decision: str) -> None:
        """Answer a report; the answer is kept in case the report is sent again."""
        key = (trial_id, run, client)
        state = self._clients.get(key)
        if state is None:
            return  # its processes are gone
        state.waiting = None
        if not state.answers:
            state.first = seq
        if seq - state.first == len(state.answers):
            state.answers.append(_CODES.index(decision))
        connection = self._by_client.get(key)
        if connection is not None:
            self._reply(connection, seq, decision)

    def remember(self, trial_id: int, run: int, client: str, decisions: Sequence[str]) -> None:
        """Take over the answers that an earlier tuner gave to a process; a report that is sent again gets its own."""
        answers = bytearray(_CODES.index(decision) for decision in decisions)
        self._clients[trial_id, run, client] = _Client(answers)

    def drain(self, trial_id: int) -> None:
        """Read what the processes of a trial that are gone have left in their sockets, accepted or not."""
        for _ in range(_ACCEPT_TURNS):
            if not self._accept():
                break
        for key, connection in list(self._by_client.items()):
            if key[0] == trial_id:
                self._read(connection, _REST)

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
            self._listen(False)
            self._listener.close()
        for connection in list(self._connections.values()):
            self._close(connection, announce=False)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- connections ---------------------------------------------------------------------------------

    def _listen(self, on: bool) -> None:
        if on and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self._listening and not on:
            self._selector.unregister(self._listener)
        self._listening = on

    def _accept(self) -> bool:
        """Let in who waits; return whether there may be more of them."""
        for _ in range(_ACCEPTS):
            if not self._admission.is_open():
                self._listen(False)
                return False
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room()
                return False  # nobody waits, or the peer has gone already
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                notice_silence(sock)
            connection = _Connection(sock)
            self._connections[sock.fileno()] = connection
            self._selector.register(sock, selectors.EVENT_READ, _Reader(self._read, connection))
            self._admission.enter(connection)
            # The hello of a peer that had to wait is here already.
            self._read(connection)
            self._look_after_strangers()
        return True

    def _make_room(self) -> None:
        """Close the oldest stranger, as this process can open no more files, and accept nobody for a moment."""
        oldest = self._admission.oldest()
        if oldest is not None:
            self._refuse(oldest, "lack of file descriptors")
        self._admission.close_door(time.monotonic() + FULL_PAUSE)
        self._listen(False)

    def _look_after_strangers(self) -> None:
        for connection in self._admission.overdue():
            # It may have said hello while the tuner was busy.
            self._read(connection)
            if connection.key is None:
                self._refuse(connection, "its silence")
        if not self._listening and self._listener.fileno() >= 0 and self._admission.is_open():
            self._listen(True)

    def _refuse(self, connection: _Connection, reason: str) -> None:
        if connection.socket.fileno() >= 0:
            self._close(connection)
            self._admission.refuse(reason)

    # ---- reading -------------------------------------------------------------------------------------

    def _read(self, connection: _Connection, limit: int = _TURN) -> None:
        while connection.socket.fileno() >= 0 and limit > 0:
            try:
                data = connection.socket.recv(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data and connection.key is None:
                self._refuse(connection, "leaving without a hello")
                return
            if not data:
                self._close(connection)
                return
            limit -= len(data)
            connection.buffer += data
            try:
                self._lines(connection)
            except _Violation as violation:
                self._expel(connection, str(violation))

    def _lines(self, connection: _Connection) -> None:
        buffer = connection.buffer
        while connection.socket.fileno() >= 0:
            longest = _MAX_HELLO if connection.key is None else _MAX_LINE
            end = buffer.find(b"\n", 0, longest + 1)
            if end < 0:
                if len(buffer) > longest:
                    raise _Violation(f"a line of more than {longest} bytes")
                return
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            try:
                message = json.loads(line.decode())
            except (ValueError, RecursionError):
                raise _Violation("a line that is no JSON") from None
            if not isinstance(message, dict):
                raise _Violation("a line that is no JSON object")
            if connection.key is None:
                self._hello(connection, message)
            else:
                self._message(connection, connection.key, message)

    def _message(self, connection: _Connection, key: tuple[int, int, str], message: dict[str, Any]) -> None:
        state = self._clients[key]
        match message.get("type"):
            case "report":
                self._report(connection, key, state, message)
            case "rank":
                state.rank = _count(message, "rank")
                state.world_size = _count(message, "world_size", default=1, least=1)
            case "bye":
                state.bye = True
                state.failed = state.failed or message.get("ok") is False
                reason = message.get("reason")
                said = _text(reason) if isinstance(reason, str) and reason else None
                self._messages.append(ClientBye(*key, message.get("ok") is not False, said, state.rank))
            case "loaded":
                packages = message.get("packages")
                if not isinstance(packages, list) or len(packages) > MAX_LOADED:
                    raise _Violation(f"packages must be a list of at most {MAX_LOADED} names")
                names = tuple(name for name in packages if isinstance(name, str) and _is_module(name))
                self._messages.append(ClientLoaded(key[0], names))

    def _hello(self, connection: _Connection, message: dict[str, Any]) -> None:
        token, client = message.get("token"), message.get("client")
        if message.get("type") != "hello" or not isinstance(token, str):
            raise _Violation("no hello")
        if not hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            raise _Violation("a wrong token")
        if message.get("v") != PROTOCOL_VERSION:
            raise _Violation(f"another version of the protocol, {_text(str(message.get('v')))[:40]!r}")
        if not isinstance(client, str) or not 0 < len(client) <= 64 or not client.isprintable():
            raise _Violation("a client's name that is no printable string of at most 64 characters")
        # -1 is no trial: a function is tried out before the first one.
        key = (_count(message, "trial_id", least=-1), _count(message, "run"), client)
        old = self._by_client.get(key)
        if old is None and len(self._by_client) >= self._max_connections:
            raise _Violation(f"being more than {self._max_connections} connections")
        if old is None and sum(k[:2] == key[:2] for k in self._by_client) >= max(1, self._max_connections // 2):
            raise _Violation(f"being more than {max(1, self._max_connections // 2)} connections of trial {key[0]}")
        connection.key = key
        self._admission.leave(connection)
        if old is not None:
            self._close(old, announce=False)
        self._by_client[key] = connection
        self._clients.setdefault(key, _Client())
        if len(self._clients) > _MAX_STATES + len(self._by_client):
            for lost in [k for k in self._clients if k not in self._by_client][: _MAX_STATES // 2]:
                del self._clients[lost]
        self._messages.append(ClientHello(*key))

    def _report(
        self, connection: _Connection, key: tuple[int, int, str], state: _Client, message: dict[str, Any]
    ) -> None:
        seq, metrics = _count(message, "seq"), message.get("metrics")
        if not isinstance(metrics, dict):
            raise _Violation("metrics that are no object")
        position = seq - state.first
        if 0 <= position < len(state.answers):
            self._reply(connection, seq, _CODES[state.answers[position]])
        elif seq == state.waiting:
            pass  # sent again while the first is being decided: one answer serves both
        elif state.waiting is None and (position == len(state.answers) or not state.answers):
            if (fault := metrics_fault(metrics)) is not None:
                raise _Violation(fault)
            state.waiting = seq
            self._messages.append(ClientReport(*key, seq, decode_floats(metrics)))
        else:
            raise _Violation(f"report {seq} where {state.first + len(state.answers)} was due")

    def _expel(self, connection: _Connection, reason: str) -> None:
        """Close a connection that does not keep to the protocol; for a trial that is a failure."""
        key = connection.key
        if key is None:
            self._refuse(connection, reason)
            return
        logger.warning("trial %d: its connection is closed for %s", key[0], reason)
        state = self._clients[key]
        state.bye = state.failed = True
        self._messages.append(ClientBye(*key, False, f"protocol: {reason}", state.rank))
        self._close(connection)

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
        self._admission.leave(connection)
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
                if not state.answers and state.waiting is None:
                    del self._clients[key]  # nothing to remember if it comes back


@dataclass(frozen=True, slots=True)
class _Reader:
    """A callable for the selector's ``data``."""

    read: Callable[[_Connection], None]
    connection: _Connection

    def __call__(self) -> None:
        self.read(self.connection)


def _count(message: dict[str, Any], name: str, default: int | None = None, least: int = 0) -> int:
    value = message.get(name, default)
    if type(value) is not int or not least <= value < 2**31:
        raise _Violation(f"{name} that is no integer of at least {least}")
    return value


def _text(text: str) -> str:
    """Return what can be written to a file."""
    return text[:_MAX_TEXT].encode(errors="replace").decode()


def _is_module(name: str) -> bool:
    return len(name) <= 200 and all(part.isidentifier() for part in name.split("."))
