"""A trial's side of the wire protocol: one client that connects lazily and sends again what was not answered."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import math
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from sthyper.constants import (
    DEFAULT_RECONNECT_GRACE,
    ENV_CHANNEL,
    ENV_PRELOADED_UNTIL,
    ENV_RECONNECT_GRACE,
    ENV_RUN,
    ENV_TOKEN,
    ENV_TRIAL_ID,
)

__all__ = ["PROTOCOL_VERSION", "Connection", "TrialExit", "loaded_packages", "notice_silence"]

PROTOCOL_VERSION = 1
MAX_LOADED = 500
LOCAL_ATTEMPTS = 4
"""Times that a connection on the tuner's own machine is made again if it is lost before the first answer."""
CONNECT_SECONDS = 10.0
"""Seconds that one attempt to connect over TCP may take."""
FIRST_DELAY = 0.1
LAST_DELAY = 5.0
"""Seconds between attempts to connect again: they double from the first to the last, each times 0.5 to 1 by chance."""
STEADY_SECONDS = 1.0
"""A connection that held for so long was one to a tuner: the time to find it again begins anew."""
WATCH_INTERVAL = 1.0
"""Longest time between two looks at a TCP connection while nothing is reported, in seconds."""
SHORTEST_WAIT = 0.05
MAX_ANSWER = 1 << 16


class TrialExit(SystemExit):
    """Raised by a report that was answered STOP or PAUSE: ends the trial in order, with exit code 0.

    Args:
        decision: ``"STOP"`` or ``"PAUSE"``; ``"LOST"`` when the connection to the tuner is gone.
    """

    def __init__(self, decision: str = "STOP") -> None:
        super().__init__(0)
        self.decision = decision


class Connection:
    """One client of the wire protocol: connects lazily, re-sends over TCP what was not answered.

    Over TCP a thread looks after the connection between reports, so that a tuner which has been resumed hears of a
    trial whose next report is far away.

    Args:
        env: The trial's environment.

    Raises:
        ValueError: If the environment holds something that cannot be used.
    """

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
        self.reconnect_grace = _grace(env.get(ENV_RECONNECT_GRACE))
        self.seq = 0
        self.rank: dict[str, Any] | None = None
        self.said_bye: bool | None = None
        self.socket: socket.socket | None = None
        self.known = False
        self.over = False
        self.buffer = b""
        self._lock = threading.RLock()
        self._left = threading.Event()
        self._watch: threading.Thread | None = None
        self._opened_at = 0.0
        atexit.register(self._at_exit)

    @property
    def remote(self) -> bool:
        return self.address.startswith("tcp:")

    def report(self, text: str) -> str:
        with self._lock:
            seq = self.seq
            self.seq += 1
            line = f'{{"type":"report","seq":{seq},"metrics":{text}}}\n'.encode()
            try:
                decision = self._ask_remote(line, seq) if self.remote else self._ask_here(line, seq)
            except TrialExit:
                self.over = True
                raise
            self.over = decision != "CONTINUE"
            return decision

    def _ask(self, line: bytes, seq: int) -> str:
        self._open().sendall(line)
        while True:
            answer = self._read_answer()
            self.known = True
            if answer.get("seq") == seq:
                return str(answer["decision"])

    def _ask_here(self, line: bytes, seq: int) -> str:
        for attempt in itertools.count():
            try:
                return self._ask(line, seq)
            except OSError as error:
                self._drop()
                gone = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                if gone or self.known or attempt >= LOCAL_ATTEMPTS:
                    # The supervisor ends this trial; nothing that it still does would be recorded.
                    break
                # A tuner that lives drops connections that were slow to say hello, in a flood of them.
                time.sleep(0.1 * attempt)
        raise TrialExit("LOST") from None

    def _ask_remote(self, line: bytes, seq: int) -> str:
        patience = _Patience(self.reconnect_grace)
        while True:
            try:
                return self._ask(line, seq)
            except OSError:
                steady = self.socket is not None and time.monotonic() - self._opened_at > STEADY_SECONDS
                self._drop()
                if steady:
                    patience = _Patience(self.reconnect_grace)
                if not patience.wait():
                    raise TrialExit("LOST") from None

    def post(self, message: dict[str, Any]) -> None:
        with self._lock:
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
        with self._lock:
            self._left.set()
            if self.socket is not None and self.said_bye is None:
                self.bye(True)
            self._drop()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if self.pid != os.getpid():
            return
        self._left.set()
        ok = True
        if self.remote:
            # Nobody here knows the exit code; an exception that nobody caught has been noted by the interpreter.
            ok = getattr(sys, "last_value", None) is None
            self._find_tuner()
        if self.socket is None:
            return
        packages = loaded_packages()
        if packages:
            self.post({"type": "loaded", "packages": packages})
        self.bye(ok)

    # ---- connections over TCP that were lost ---------------------------------------------------------

    def _find_tuner(self) -> None:
        """Wait at the end of a trial for a tuner that is away, as a report does: it has to hear of the end."""
        with self._lock:
            if self.over or self._watch is None or self._holds():
                return
            patience = _Patience(self.reconnect_grace)
            while True:
                try:
                    self._open()
                    return
                except OSError:
                    self._drop()
                    if not patience.wait():
                        return

    def _watch_over(self) -> None:
        """Connect again, in a thread of its own, whenever the tuner has gone; reports go first."""
        delays = _delays(self.reconnect_grace)
        interval = min(WATCH_INTERVAL, self.reconnect_grace / 10)
        wait = interval
        while not self._left.wait(max(wait, SHORTEST_WAIT)):
            wait = interval
            if not self._lock.acquire(blocking=False):
                continue
            try:
                if self.over or self._left.is_set():
                    return
                if not self._holds():
                    self._open()
                delays = _delays(self.reconnect_grace)
            except OSError:
                self._drop()
                wait = next(delays)
            finally:
                self._lock.release()

    def _holds(self) -> bool:
        """Whether there is a connection that the tuner has not closed."""
        if self.socket is None:
            return False
        try:
            closed = self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return True
        except OSError:
            closed = True
        if closed:
            self._drop()
        return not closed

    # ---- the socket ----------------------------------------------------------------------------------

    def _open(self) -> socket.socket:
        if self.socket is None:
            kind, _, place = self.address.partition(":")
            if kind == "unix":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                _connect(sock, place)
            elif kind == "tcp":
                host, _, port = place.rpartition(":")
                sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
                notice_silence(sock)
                sock.settimeout(CONNECT_SECONDS)
                _connect(sock, (host.strip("[]"), int(port)))
                sock.settimeout(None)
            else:
                raise ValueError(f"{ENV_CHANNEL} must be unix:PATH or tcp:HOST:PORT, got {self.address!r}")
            self.socket, self.buffer, self.known = sock, b"", False
            self._opened_at = time.monotonic()
            self._write(self.hello)
            if self.rank is not None:
                self._write(self.rank)
            if self.remote and self._watch is None and not self._left.is_set():
                self._watch = threading.Thread(target=self._watch_over, name="sthyper-connection", daemon=True)
                self._watch.start()
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
            if len(self.buffer) > MAX_ANSWER:
                raise ConnectionError("whoever listens there is no tuner")
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or ("seq" in answer and "decision" not in answer):
            raise ConnectionError("whoever listens there is no tuner")
        return answer

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class _Patience:
    """Time that is left to find the tuner again."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._delays = _delays(seconds)

    def wait(self) -> bool:
        """Wait for the next attempt; ``False`` if there is none any more."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(next(self._delays), left))
        return True


def _delays(grace: float) -> Iterator[float]:
    """Yield the seconds before each attempt to connect again; trials of one tuner do not come all at once."""
    chance = random.SystemRandom()  # the generator of the user's process stays as it is
    delay = FIRST_DELAY
    while True:
        yield min(delay, grace / 10) * chance.uniform(0.5, 1.0)
        delay = min(2 * delay, LAST_DELAY)


def _grace(value: str | None) -> float:
    if not value:
        return DEFAULT_RECONNECT_GRACE
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{ENV_RECONNECT_GRACE} must be a finite number of seconds >= 0, got {value!r}")
    return seconds


def _connect(sock: socket.socket, target: Any) -> None:
    try:
        sock.connect(target)
        if sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
            # Where nobody listens the system may give this socket that very port, and connect it with itself.
            raise ConnectionRefusedError("connected with itself")
    except OSError:
        sock.close()
        raise


def notice_silence(sock: socket.socket) -> None:
    """Have a TCP connection answer quickly, and end when the other machine is silent for a minute.

    Args:
        sock: The socket.
    """
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 60_000),
    ):
        if hasattr(socket, name):  # some are Linux's
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    for level, option, value in options:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, value)


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
