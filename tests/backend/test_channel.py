"""The tuner's side of the wire protocol, spoken to by sockets of the test."""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sthyper.backend.channel import ChannelServer, ClientBye, ClientGone, ClientHello, ClientLoaded, ClientReport

TOKEN = "right"


class Peer:
    """A client that sends what it is told and reads answers."""

    made: ClassVar[list[Peer]] = []

    def __init__(self, address: str) -> None:
        Peer.made.append(self)
        kind, _, place = address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(place)
        else:
            host, _, port = place.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.settimeout(5.0)

    def send(self, **message: object) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hello(self, client: str = "c", trial_id: int = 0, run: int = 0, token: str = TOKEN, v: int = 1) -> None:
        self.send(type="hello", v=v, token=token, trial_id=trial_id, run=run, client=client[-60:])

    def answer(self) -> dict[str, object]:
        data = b""
        while not data.endswith(b"\n"):
            data += self.socket.recv(4096)
        return json.loads(data)

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture(autouse=True)
def close_peers() -> Iterator[None]:
    yield
    for peer in Peer.made:
        peer.socket.close()
    Peer.made.clear()


class Served:
    def __init__(self, **options: object) -> None:
        self.selector = selectors.DefaultSelector()
        self.server = ChannelServer(TOKEN, self.selector, **options)  # type: ignore[arg-type]
        self.messages: list[object] = []

    def until(self, done: Callable[[list[object]], bool]) -> list[object]:
        deadline = time.monotonic() + 5.0
        while not done(self.messages) and time.monotonic() < deadline:
            for key, _ in self.selector.select(0.05):
                key.data()
            self.messages += self.server.take()
        return self.messages

    def pump(self) -> list[object]:
        end = time.monotonic() + 0.1
        return self.until(lambda _: time.monotonic() > end)


@pytest.fixture(params=["unix", "tcp"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(host=None if request.param == "unix" else "127.0.0.1")
    yield served
    served.server.close()
    served.selector.close()


def test_report_and_answer(served: Served) -> None:
    peer = Peer(served.server.address)
    peer.hello("abc", trial_id=4, run=1)
    peer.send(type="rank", rank=1, world_size=2)
    peer.send(type="unknown", whatever=[1])
    peer.send(type="report", seq=0, metrics={"loss": "NaN", "epoch": 1})
    messages = served.until(lambda m: len(m) >= 2)
    assert messages[0] == ClientHello(4, 1, "abc")
    report = messages[1]
    assert isinstance(report, ClientReport)
    assert (report.trial_id, report.run, report.client, report.seq) == (4, 1, "abc", 0)
    assert report.metrics["loss"] != report.metrics["loss"]
    served.server.answer(4, 1, "abc", 0, "PAUSE")
    assert peer.answer() == {"seq": 0, "decision": "PAUSE"}
    peer.send(type="loaded", packages=["a", "b"])
    peer.send(type="bye", ok=False, reason="killed")
    peer.socket.close()
    messages = served.until(lambda m: len(m) >= 5)
    assert messages[2:] == [
        ClientLoaded(4, ("a", "b")),
        ClientBye(4, 1, "abc", False, "killed", rank=1),
        ClientGone(4, 1, "abc", rank=1, said_bye=True, failed=True, world_size=2),
    ]


def test_a_report_sent_again_gets_the_recorded_answer(served: Served) -> None:
    peer = Peer(served.server.address)
    peer.hello()
    for seq, decision in enumerate(["CONTINUE", "STOP"]):
        peer.send(type="report", seq=seq, metrics={})
        served.until(lambda m, n=seq: sum(isinstance(x, ClientReport) for x in m) > n)
        served.server.answer(0, 0, "c", seq, decision)
        peer.answer()
    again = Peer(served.server.address)
    again.hello()
    again.send(type="report", seq=1, metrics={})
    served.pump()
    assert again.answer() == {"seq": 1, "decision": "STOP"}
    again.send(type="report", seq=0, metrics={})
    served.pump()
    assert again.answer() == {"seq": 0, "decision": "CONTINUE"}
    assert sum(isinstance(m, ClientReport) for m in served.messages) == 2


def test_reconnect_while_the_answer_is_awaited(served: Served) -> None:
    first = Peer(served.server.address)
    first.hello()
    first.send(type="report", seq=0, metrics={})
    served.until(lambda m: any(isinstance(x, ClientReport) for x in m))
    first.socket.close()
    second = Peer(served.server.address)
    second.hello()
    second.send(type="report", seq=0, metrics={})
    served.pump()
    served.server.answer(0, 0, "c", 0, "PAUSE")
    assert second.answer() == {"seq": 0, "decision": "PAUSE"}
    assert sum(isinstance(m, ClientReport) for m in served.messages) == 1


def test_answers_of_an_earlier_tuner_are_given_again(served: Served) -> None:
    served.server.remember(0, 3, "c", ["CONTINUE", "PAUSE"])
    peer = Peer(served.server.address)
    peer.hello(run=3)
    for seq, decision in ((1, "PAUSE"), (0, "CONTINUE")):
        peer.send(type="report", seq=seq, metrics={})
        served.pump()
        assert peer.answer() == {"seq": seq, "decision": decision}
    assert not any(isinstance(m, ClientReport) for m in served.messages)
    peer.send(type="report", seq=2, metrics={})
    served.until(lambda m: any(isinstance(x, ClientReport) and x.seq == 2 for x in m))
    other = Peer(served.server.address)
    other.hello(run=2)
    other.send(type="report", seq=1, metrics={})
    served.until(lambda m: any(isinstance(x, ClientReport) and x.run == 2 for x in m))


def test_a_client_that_nothing_is_known_of_any_more_hears_an_answer(served: Served) -> None:
    """Its run may have ended, and its tuner too; the number of its report takes no memory."""
    peer = Peer(served.server.address)
    peer.hello()
    peer.send(type="report", seq=2**31 - 1, metrics={})
    served.until(lambda m: any(isinstance(x, ClientReport) for x in m))
    served.server.answer(0, 0, "c", 2**31 - 1, "STOP")
    assert peer.answer() == {"seq": 2**31 - 1, "decision": "STOP"}
    peer.send(type="report", seq=2**31 - 1, metrics={})
    served.pump()
    assert peer.answer() == {"seq": 2**31 - 1, "decision": "STOP"}
    peer.send(type="report", seq=5, metrics={})
    served.until(lambda m: any(isinstance(x, ClientBye) for x in m))
    assert peer.is_closed()


def test_wrong_hellos_are_refused(served: Served) -> None:
    for hello in (
        {"token": "wrong"},
        {"v": 2},
    ):
        peer = Peer(served.server.address)
        peer.hello(**hello)  # type: ignore[arg-type]
        served.pump()
        assert peer.is_closed()
    peer = Peer(served.server.address)
    peer.send(type="report", seq=0, metrics={})
    served.pump()
    assert peer.is_closed()
    assert served.messages == []


def test_long_lines_close_the_connection(served: Served) -> None:
    peer = Peer(served.server.address)
    peer.hello()
    try:
        peer.raw(b"x" * 200_000)
    except OSError:
        pass
    served.pump()
    assert peer.is_closed()


@given(data=st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_after_a_hello_harms_nobody(data: list[bytes]) -> None:
    served = Served()
    try:
        good, bad = Peer(served.server.address), Peer(served.server.address)
        good.hello("good")
        bad.hello("bad")
        for piece in data:
            try:
                bad.raw(piece + b"\n")
            except OSError:
                break
        good.send(type="report", seq=0, metrics={"a": 1})
        served.until(lambda m: any(isinstance(x, ClientReport) and x.client == "good" for x in m))
        served.server.answer(0, 0, "good", 0, "CONTINUE")
        assert good.answer() == {"seq": 0, "decision": "CONTINUE"}
        good.socket.close()
        bad.socket.close()
    finally:
        served.server.close()
        served.selector.close()


def test_connections_are_limited() -> None:
    served = Served(max_connections=2)
    peers = [Peer(served.server.address) for _ in range(4)]
    for trial_id, peer in zip((0, 0, 1, 2), peers, strict=True):
        peer.hello(str(peer), trial_id=trial_id)
    messages = served.until(lambda m: len(m) >= 2)
    served.pump()
    # Half of the connections at most for one trial, so the second of trial 0 does not shut trial 1 out.
    assert [m.trial_id for m in messages if isinstance(m, ClientHello)] == [0, 1]
    assert peers[1].is_closed()
    assert peers[3].is_closed()
    served.server.close()
    served.selector.close()


def test_the_socket_is_private_and_removed() -> None:
    served = Served()
    path = served.server.address.partition(":")[2]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert len(path) < 100
    served.server.close()
    served.server.close()
    served.selector.close()
    assert not os.path.exists(os.path.dirname(path))
