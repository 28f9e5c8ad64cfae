"""A trial's side of the wire protocol: one client that connects lazily and sends again what was not answered."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import socket
import sys
import time
from typing import Any

from sthyper.constants import (
    ENV_CHANNEL,
    ENV_PRELOADED_UNTIL,
    ENV_RECONNECT_GRACE,
    ENV_RUN,
    ENV_TOKEN,
    ENV_TRIAL_ID,
)

__all__ = ["PROTOCOL_VERSION", "Connection", "TrialExit", "loaded_packages"]

PROTOCOL_VERSION = 1
MAX_LOADED = 500
LOCAL_ATTEMPTS = 4
"""Times that a connection on the tuner's own machine is made again if it is lost before the first answer."""


class TrialExit(SystemExit):
    """Raised by a report that was answered STOP or PAUSE: ends the trial in order, with exit code 0.

    Args:
        decision: ``"STOP"`` or ``"PAUSE"``; ``"LOST"`` when the connection to the tuner is gone.
    """

    def __init__(self, decision: str = "STOP") -> None:
        super().__init__(0)
        self.decision = decision


class Connection:
    """One client of the wire protocol: connects lazily, re-sends over TCP what was not answered."""

    def __init__(self, env: Any) -> None:
        self.pid = os.getpid()
        self.client = os.urandom(8).hex()
        self.address: str = env[ENV_CHANNEL]
        self.hello = {
            "type": "hello",
            "v": PROTOCOL_VERSION,
            "token": env.get(ENV_TOKEN, ""),
            "trial_id": int(env.get(ENV_TRIAL_ID) or 0),
            "run": int(env.get(ENV_RUN) or 0),
            "client": self.client,
        }
        self.reconnect_grace = float(env.get(ENV_RECONNECT_GRACE) or 120.0)
        self.seq = 0
        self.rank: dict[str, Any] | None = None
        self.said_bye: bool | None = None
        self.socket: socket.socket | None = None
        self.known = False
        self.buffer = b""
        atexit.register(self._at_exit)

    @property
    def remote(self) -> bool:
        return self.address.startswith("tcp:")

    def report(self, text: str) -> str:
        seq = self.seq
        self.seq += 1
        line = f'{{"type":"report","seq":{seq},"metrics":{text}}}\n'.encode()
        deadline: float | None = None
        attempts = 0
        while True:
            try:
                self._open().sendall(line)
                while True:
                    answer = self._read_answer()
                    self.known = True
                    if answer.get("seq") == seq:
                        return str(answer["decision"])
            except OSError as error:
                self._drop()
                if not self.remote:
                    attempts += 1
                    gone = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                    if gone or self.known or attempts > LOCAL_ATTEMPTS:
                        # The supervisor ends this trial; nothing that it still does would be recorded.
                        raise TrialExit("LOST") from None
                    # A tuner that lives drops connections that were slow to say hello, in a flood of them.
                    time.sleep(0.1 * (attempts - 1))
                    continue
                deadline = deadline or time.monotonic() + self.reconnect_grace
                if time.monotonic() > deadline:
                    raise TrialExit("LOST") from None
                time.sleep(0.5)

    def post(self, message: dict[str, Any]) -> None:
        if message.get("type") == "rank":
            self.rank = message
        try:
            if self.socket is None:
                self._open()
            if message.get("type") != "rank":
                self._write(message)
        except OSError:
            self._drop()

    def bye(self, ok: bool, reason: str | None = None) -> None:
        self.said_bye = ok and self.said_bye is not False
        self.post({"type": "bye", "ok": self.said_bye, **({"reason": reason} if reason else {})})

    def leave(self) -> None:
        if self.socket is not None and self.said_bye is None:
            self.bye(True)
        self._drop()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if self.pid != os.getpid() or self.socket is None:
            return
        packages = loaded_packages()
        if packages:
            self.post({"type": "loaded", "packages": packages})
        self.bye(True)

    def _open(self) -> socket.socket:
        if self.socket is None:
            kind, _, place = self.address.partition(":")
            if kind == "unix":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                target: Any = place
            elif kind == "tcp":
                host, _, port = place.rpartition(":")
                sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                target = (host.strip("[]"), int(port))
            else:
                raise ValueError(f"{ENV_CHANNEL} must be unix:PATH or tcp:HOST:PORT, got {self.address!r}")
            try:
                sock.connect(target)
            except OSError:
                sock.close()
                raise
            self.socket, self.buffer, self.known = sock, b"", False
            self._write(self.hello)
            if self.rank is not None:
                self._write(self.rank)
        return self.socket

    def _write(self, message: dict[str, Any]) -> None:
        assert self.socket is not None
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def _read_answer(self) -> dict[str, Any]:
        assert self.socket is not None
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the tuner closed the connection")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def loaded_packages() -> list[str]:
    """Return the installed modules that this process has loaded beyond those that its fork server had.

    Of a package that is new only its own name is returned, of a package that the server had its new modules.
    """
    until = os.environ.get(ENV_PRELOADED_UNTIL)
    new = list(itertools.takewhile(lambda name: name != until, reversed(list(sys.modules))))
    found = set(new)
    marks = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
    names: list[str] = []
    for name in reversed(new):
        parent = name.rpartition(".")[0]
        if parent in found or (parent and until is None):
            continue
        spec = getattr(sys.modules.get(name), "__spec__", None)
        origin = getattr(spec, "origin", None) or ""
        # Modules that Cython made may also stand there without the name of their package.
        if getattr(spec, "name", name) == name and any(mark in origin for mark in marks):
            names.append(name)
    return names[:MAX_LOADED]
