"""Hostile and broken peers at the channel: none may raise, take the loop's time, or disturb a trial."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sthyper import Reporter
from sthyper.backend import _admission, _listeners
from sthyper.backend.channel import ChannelServer, ClientBye, ClientGone, ClientHello, ClientLoaded, ClientReport

TOKEN = "0123456789abcdef"
LIMIT = 50_000 + 4096


class Channel:
    """A channel with the loop around it that the tuner has, and sockets that connect to it."""

    def __init__(self, **options: Any) -> None:
        self.selector = selectors.DefaultSelector()
        self.server = ChannelServer(TOKEN, self.selector, **options)
        self.messages: list[Any] = []
        self.peers: list[socket.socket] = []
        self.longest = 0.0
        """Seconds that the longest round took."""

    def connect(self) -> socket.socket:
        kind, _, place = self.server.address.partition(":")
        if kind == "unix":
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(place)
        else:
            host, _, port = place.rpartition(":")
            peer = socket.create_connection((host.strip("[]"), int(port)))
        peer.settimeout(5.0)
        self.peers.append(peer)
        return peer

    def trial(self, trial_id: int = 0, client: str = "good") -> socket.socket:
        peer = self.connect()
        peer.sendall(hello(trial_id=trial_id, client=client))
        self.until(lambda: any(isinstance(m, ClientHello) and m.client == client for m in self.messages))
        return peer

    def round(self, wait: float = 0.02) -> None:
        due = self.server.next_deadline()
        wait = wait if due is None else max(0.0, min(wait, due - time.monotonic()))
        ready = self.selector.select(wait)
        start = time.monotonic()
        for key, _ in ready:
            key.data()
        self.messages += self.server.take()
        self.longest = max(self.longest, time.monotonic() - start)

    def until(self, done: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"only {self.messages}"
            self.round()

    def pump(self, seconds: float = 0.06) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.round()

    def ask(self, peer: socket.socket, seq: int, trial_id: int = 0, client: str = "good") -> None:
        """Report and get the answer."""
        peer.sendall(line(type="report", seq=seq, metrics={"a": seq}))
        self.until(lambda: ClientReport(trial_id, 0, client, seq, {"a": seq}) in self.messages)
        self.server.answer(trial_id, 0, client, seq, "CONTINUE")
        assert json.loads(peer.recv(4096)) == {"seq": seq, "decision": "CONTINUE"}

    def byes(self) -> list[str | None]:
        return [m.reason for m in self.messages if isinstance(m, ClientBye)]

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.server.close()
        self.selector.close()


def line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def hello(**changes: Any) -> bytes:
    return line(**{"type": "hello", "v": 1, "token": TOKEN, "trial_id": 0, "run": 0, "client": "c"} | changes)


def is_closed(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionError:
        return True


def send(peer: socket.socket, data: bytes) -> None:
    try:
        peer.sendall(data)
    except OSError:
        pass  # closed while it was sent


@pytest.fixture(params=["unix", "tcp"])
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    channel = Channel(host=None if request.param == "unix" else "127.0.0.1")
    yield channel
    channel.close()


# ---- before the hello ------------------------------------------------------------------------------------

BAD_HELLOS = {
    "wrong token": hello(token="0123456789abcdee"),
    "no token": line(type="hello", v=1, trial_id=0, run=0, client="c"),
    "prefix of the token": hello(token=TOKEN[:-1]),
    "half a character in the token": hello(token="\ud800"),
    "token that is no string": hello(token=[TOKEN]),
    "infinite trial": hello().replace(b'"trial_id": 0', b'"trial_id": 1e999'),
    "NaN trial": hello().replace(b'"trial_id": 0', b'"trial_id": NaN'),
    "huge trial": hello(trial_id=2**31),
    "5000 digits": hello().replace(b'"trial_id": 0', b'"trial_id": 1' + b"0" * 3000),
    "negative trial": hello(trial_id=-2),
    "true trial": hello(trial_id=True),
    "trial that is a path": hello(trial_id="../../etc"),
    "float run": hello(run=0.5),
    "no run": hello().replace(b'"run": 0', b'"walk": 0'),
    "client with a line break": hello(client="a\nb"),
    "client with half a character": hello(client="\ud800"),
    "empty client": hello(client=""),
    "long client": hello(client="c" * 65),
    "client that is an object": hello(client={}),
    "other version": hello(v=2),
    "version that is an object": hello(v={"v": 1}),
    "report": line(type="report", seq=0, metrics={}),
    "list": b"[1]\n",
    "number": b"1\n",
    "nothing": b"\n",
    "deep": b"[" * 4000 + b"\n",
    "no UTF-8": b"\xff\xfe\x00\n",
    "UTF-16": hello()[:-1].decode().encode("utf-16") + b"\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\n",
    "long line": b"x" * 5000,
    "long line with a hello": b" " * 4097 + hello(),
}


@pytest.mark.parametrize("data", BAD_HELLOS.values(), ids=BAD_HELLOS)
def test_bad_hellos_are_refused(channel: Channel, data: bytes) -> None:
    good, bad = channel.trial(), channel.connect()
    send(bad, data)
    channel.pump()
    assert is_closed(bad)
    channel.ask(good, 0)
    assert channel.byes() == []
    assert [m for m in channel.messages if isinstance(m, ClientHello)] == [ClientHello(0, 0, "good")]


def test_a_stranger_that_stays_silent_or_stops_in_its_hello_is_dropped(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_admission, "HELLO_SECONDS", 0.3)
    good, silent, half = channel.trial(), channel.connect(), channel.connect()
    half.sendall(hello()[:20])
    channel.pump(0.1)
    half.sendall(hello()[20:40])
    assert channel.server.next_deadline() is not None
    channel.pump(0.4)
    assert is_closed(silent)
    assert is_closed(half)
    channel.ask(good, 0)
    assert channel.server.next_deadline() is None


def test_a_hello_that_waited_for_a_busy_tuner_counts(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_admission, "HELLO_SECONDS", 0.1)
    peer = channel.connect()
    channel.round()
    peer.sendall(hello())
    time.sleep(0.2)  # the tuner fits a model
    channel.messages += channel.server.take()
    assert channel.messages == [ClientHello(0, 0, "c")]


def test_a_flood_of_silent_connections_shuts_nobody_out(channel: Channel) -> None:
    good = channel.trial()
    flood = []
    for n in range(_admission.MAX_STRANGERS + 50):
        flood.append(channel.connect())
        if n % 50 == 0:
            channel.round()
    channel.pump(0.2)
    assert is_closed(flood[0])  # the oldest gave way
    late = channel.connect()
    late.sendall(hello(client="late"))
    channel.until(lambda: ClientHello(0, 0, "late") in channel.messages)
    channel.ask(good, 0)
    assert len(channel.server._connections) <= _admission.MAX_STRANGERS + 2
    assert channel.longest < 1.0


def test_bad_hellos_are_limited_in_rate_and_good_ones_get_through(
    channel: Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_admission, "WINDOW", 0.5)
    good = channel.trial()
    refused = _count_refused(monkeypatch)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="sthyper"):
        while time.monotonic() < start + 1.2:
            for _ in range(60):
                peer = channel.connect()
                send(peer, hello(token="guess"))
                peer.close()
            channel.round(0.0)
            if len(refused) >= _admission.MAX_REFUSED and channel.server._listening is False:
                break
        assert channel.server._listening is False, "the door stayed open"
        closed = time.monotonic()
        number = len(refused)
        late = channel.connect()
        late.sendall(hello(client="late"))
        channel.ask(good, 0)  # those who are in notice nothing
        assert time.monotonic() - closed < 0.4
        assert len(refused) == number
        channel.until(lambda: ClientHello(0, 0, "late") in channel.messages)
    channel.ask(late, 0, client="late")
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1, warnings  # one a minute
    assert "refused" in warnings[0]
    assert TOKEN not in caplog.text


def _count_refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    refused: list[str] = []
    refuse = _admission.Admission.refuse

    def count(self: Any, reason: str) -> None:
        refused.append(reason)
        refuse(self, reason)

    monkeypatch.setattr(_admission.Admission, "refuse", count)
    return refused


def test_a_process_without_file_descriptors_goes_on() -> None:
    code = """
        import json, resource, selectors, socket, time
        from sthyper.backend.channel import ChannelServer, ClientHello
        selector = selectors.DefaultSelector()
        server = ChannelServer("t", selector)
        path = server.address[5:]
        made = []
        def connect(data=b""):
            peer = socket.socket(socket.AF_UNIX); peer.connect(path); peer.sendall(data); made.append(peer)
        def hello(client):
            return json.dumps(
                {"type": "hello", "v": 1, "token": "t", "trial_id": 0, "run": 0, "client": client}
            ).encode() + b"\\n"
        messages, rounds = [], 0
        def pump(seconds):
            global rounds
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                rounds += 1
                for key, _ in selector.select(0.05):
                    key.data()
                messages.extend(server.take())
        for _ in range(20):
            connect()
        connect(hello("last"))
        used = max(s.fileno() for s in made) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, used + 8))
        pump(0.3)
        assert rounds < 30, f"the loop spun {rounds} times"
        assert not messages
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, used + 8))
        for peer in made[:20]:
            peer.close()
        pump(1.5)
        print([m.client for m in messages if isinstance(m, ClientHello)])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "['last']", done.stderr


# ---- after the hello -------------------------------------------------------------------------------------

BAD_LINES = {
    "long": (b"x" * (LIMIT + 1), "more than"),
    "no JSON": (b"{\n", "no JSON"),
    "list": (b"[]\n", "no JSON object"),
    "deep": (b'{"type":"report","seq":0,"metrics":{"a":' + b"[" * 20_000 + b"\n", "no JSON"),
    "nested": (line(type="report", seq=0, metrics={"a": json.loads("[" * 33 + "1" + "]" * 33)}), "32 levels"),
    "5000 digits": (b'{"type":"report","seq":0,"metrics":{"a":1' + b"0" * 5000 + b"}}\n", "no JSON"),
    "null": (line(type="report", seq=0, metrics={"a": None}), "null"),
    "null inside": (line(type="report", seq=0, metrics={"a": [{"b": None}]}), "null"),
    "half a character": (line(type="report", seq=0, metrics={"a": "\ud800"}), "Unicode"),
    "half a character as name": (line(type="report", seq=0, metrics={"\udfff": 1}), "Unicode"),
    "raw half a character": (b'{"type":"report","seq":0,"metrics":{"a":"\xed\xa0\x80"}}\n', "no JSON"),
    "metrics that are a list": (line(type="report", seq=0, metrics=[1]), "metrics"),
    "no metrics": (line(type="report", seq=0), "metrics"),
    "no seq": (line(type="report", metrics={}), "seq"),
    "true seq": (line(type="report", seq=False, metrics={}), "seq"),
    "negative seq": (line(type="report", seq=-1, metrics={}), "seq"),
    "infinite seq": (b'{"type":"report","seq":1e999,"metrics":{}}\n', "seq"),
    "text as seq": (line(type="report", seq="0", metrics={}), "seq"),
    "infinite rank": (b'{"type":"rank","rank":1e999,"world_size":2}\n', "rank"),
    "text as rank": (line(type="rank", rank="first"), "rank"),
    "no ranks": (line(type="rank", rank=0, world_size=0), "world_size"),
    "packages that are a text": (line(type="loaded", packages="torch"), "packages"),
    "no packages": (line(type="loaded"), "packages"),
    "many packages": (line(type="loaded", packages=["a"] * 501), "packages"),
}


@pytest.mark.parametrize(("data", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_fail_their_own_trial_only(channel: Channel, data: bytes, words: str) -> None:
    good, bad = channel.trial(), channel.trial(1, "bad")
    send(bad, data)
    channel.until(lambda: any(isinstance(m, ClientGone) for m in channel.messages))
    assert is_closed(bad)
    (bye,) = (m for m in channel.messages if isinstance(m, ClientBye))
    assert (bye.trial_id, bye.ok) == (1, False)
    assert bye.reason is not None
    assert bye.reason.startswith("protocol: ")
    assert words in bye.reason
    assert not any(isinstance(m, ClientReport | ClientLoaded) for m in channel.messages)
    channel.ask(good, 0)
    channel.ask(good, 1)


def test_odd_messages_that_do_no_harm_are_passed_over(channel: Channel) -> None:
    peer = channel.trial()
    for message in (
        hello(client="another", trial_id=7),  # one hello a connection
        hello(token="wrong"),
        line(type="bye", ok="maybe", reason=["no", "text"]),
        line(type="bye", ok=True, reason="x" * 5000 + "\ud800"),
        line(type=["no", "text"]),
        line(),
        line(type="loaded", packages=["torch", "../evil", "a b", "a;b", 3, None, "x" * 201, "torch._dynamo"]),
    ):
        peer.sendall(message)
    channel.until(lambda: any(isinstance(m, ClientLoaded) for m in channel.messages))
    assert [m for m in channel.messages if isinstance(m, ClientHello)] == [ClientHello(0, 0, "good")]
    assert channel.byes() == [None, "x" * 1000]
    assert channel.messages[-1] == ClientLoaded(0, ("torch", "torch._dynamo"))
    channel.ask(peer, 0)


def test_numbers_that_json_does_not_know_arrive(channel: Channel) -> None:
    peer = channel.trial()
    peer.sendall(b'{"type":"report","seq":0,"metrics":{"a":NaN,"b":-Infinity,"c":1e999,"d":1' + b"0" * 400 + b"}}\n")
    channel.until(lambda: any(isinstance(m, ClientReport) for m in channel.messages))
    metrics = channel.messages[-1].metrics
    assert repr(metrics) == repr({"a": float("nan"), "b": -float("inf"), "c": float("inf"), "d": float("inf")})


def test_reports_out_of_turn_end_the_connection(channel: Channel) -> None:
    peer, other = channel.trial(), channel.trial(1, "other")
    channel.ask(peer, 0)
    peer.sendall(line(type="report", seq=2, metrics={}))
    channel.until(lambda: channel.byes() != [])
    assert channel.byes() == ["protocol: report 2 where 1 was due"]
    two = line(type="report", seq=0, metrics={}) + line(type="report", seq=1, metrics={})
    other.sendall(two)  # the second before the answer to the first
    channel.until(lambda: len(channel.byes()) == 2)
    assert sum(isinstance(m, ClientReport) and m.trial_id == 1 for m in channel.messages) == 1


def test_a_trial_that_never_stops_sending_does_not_take_the_loop(channel: Channel) -> None:
    good = channel.trial()
    code = """
        import socket, sys
        kind, _, place = sys.argv[1].partition(":")
        if kind == "unix":
            peer = socket.socket(socket.AF_UNIX); peer.connect(place)
        else:
            host, _, port = place.rpartition(":")
            peer = socket.create_connection((host, int(port)))
        peer.sendall(sys.argv[2].encode() + b"\\n")
        try:
            while True:
                peer.sendall(b'{"type":"chatter"}\\n' * 3000)
        except OSError:
            pass
    """
    chatter = hello(trial_id=1, client="chatter").decode().strip()
    program = [sys.executable, "-c", textwrap.dedent(code), channel.server.address, chatter]
    with subprocess.Popen(program) as process:
        try:
            channel.until(lambda: ClientHello(1, 0, "chatter") in channel.messages)
            for seq in range(5):
                channel.ask(good, seq)
            assert channel.longest < 1.0
        finally:
            process.kill()


def test_a_trial_that_does_not_read_its_answers_is_closed(channel: Channel) -> None:
    good, deaf = channel.trial(), channel.trial(1, "deaf")
    channel.ask(deaf, 0, 1, "deaf")
    deaf.setblocking(False)
    again = line(type="report", seq=0, metrics={}) * 500
    end = time.monotonic() + 20.0
    while not any(isinstance(m, ClientGone) for m in channel.messages) and time.monotonic() < end:
        try:
            deaf.send(again)
        except BlockingIOError:
            pass
        except OSError:
            break
        channel.round(0.0)
    channel.until(lambda: any(isinstance(m, ClientGone) for m in channel.messages))
    channel.ask(good, 0)
    assert [(m.trial_id, m.client, m.said_bye) for m in channel.messages if isinstance(m, ClientGone)] == [
        (1, "deaf", False)
    ]
    assert len(channel.server._connections) == 1  # the good one


def test_clients_that_come_and_go_leave_nothing_behind(channel: Channel) -> None:
    for n in range(50):
        peer = channel.connect()
        peer.sendall(hello(client=f"c{n}", trial_id=99))
        peer.close()
    channel.until(lambda: sum(isinstance(m, ClientGone) for m in channel.messages) == 50)
    assert not channel.server._clients
    assert not channel.server._connections


# ---- fuzzing ---------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.text(alphabet=st.characters(categories=["Cs"]), min_size=1, max_size=3)
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))
kinds = st.sampled_from(["hello", "report", "rank", "bye", "loaded", "other"])
names = ["v", "token", "trial_id", "run", "client", "seq", "metrics", "rank", "world_size", "ok", "reason", "packages"]
messages = st.fixed_dictionaries({"type": kinds | values}, optional={name: values for name in names})
whole = st.builds(lambda m: json.dumps(m).encode() + b"\n", messages)
pieces = st.lists(whole | st.binary(max_size=80) | st.just(hello(client="bad", trial_id=1)), max_size=5)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(welcome=st.booleans(), sent=pieces, cut=st.integers(0, 60))
def test_fuzz(fuzzed: Channel, welcome: bool, sent: list[bytes], cut: int) -> None:
    """Messages of any types, and raw bytes, before and after a hello, in pieces; another trial goes on."""
    good, bad = fuzzed.trial(), fuzzed.connect()
    fuzzed.messages.clear()
    if welcome:
        bad.sendall(hello(client="bad", trial_id=1))
    data = b"".join(sent)
    for piece in (data[:cut], data[cut:]):
        send(bad, piece)
        fuzzed.round(0.0)
    bad.close()
    fuzzed.ask(good, 0)
    for message in fuzzed.messages:
        # Whatever arrives can be recorded.
        if isinstance(message, ClientReport):
            assert type(message.seq) is int
            json.dumps(message.metrics, ensure_ascii=False).encode()
        elif isinstance(message, ClientBye):
            (message.reason or "").encode()
    fuzzed.server.forget(0)
    fuzzed.server.forget(1)
    fuzzed.peers.clear()
    good.close()
    fuzzed.round(0.0)
    fuzzed.messages.clear()


# ---- where it listens ------------------------------------------------------------------------------------


def test_a_long_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    channel = Channel()
    try:
        path = channel.server.address.partition(":")[2]
        assert os.path.dirname(os.path.dirname(path)) == "/tmp"
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert list(long.iterdir()) == []
        channel.ask(channel.trial(), 0)
    finally:
        channel.close()
    assert not os.path.exists(os.path.dirname(path))


def test_a_socket_that_cannot_be_made_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_listeners, "SOCKET_NAME", "s" * 120)
    with pytest.raises(OSError, match="too long"):
        ChannelServer(TOKEN, selectors.DefaultSelector())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_addresses_that_others_reach_are_warned_of(host: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel(host=host)
    try:
        where = channel.server.address.removeprefix("tcp:").rpartition(":")[0]
        assert ipaddress.ip_address(where).is_loopback is not warned
        assert ("other machines can reach" in caplog.text) is warned
        assert TOKEN not in caplog.text
    finally:
        channel.close()


# ---- the trial's side ------------------------------------------------------------------------------------


def test_a_trial_that_was_dropped_before_its_first_answer_comes_back(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from sthyper import Reporter
        report = Reporter()
        print(report(a=1), report(a=2))
    """
    env = {**os.environ, "STHYPER_CHANNEL": channel.server.address, "STHYPER_TOKEN": TOKEN, "STHYPER_TRIAL_ID": "3"}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=subprocess.PIPE) as process:
        try:
            channel.until(lambda: any(isinstance(m, ClientReport) for m in channel.messages))
            first = channel.messages[-1]
            for connection in list(channel.server._connections.values()):
                channel.server._close(connection, announce=False)
            hellos = sum(isinstance(m, ClientHello) for m in channel.messages)
            channel.until(lambda: sum(isinstance(m, ClientHello) for m in channel.messages) > hellos)
            channel.server.answer(3, 0, first.client, 0, "CONTINUE")
            channel.until(lambda: any(isinstance(m, ClientReport) and m.seq == 1 for m in channel.messages))
            channel.server.answer(3, 0, first.client, 1, "CONTINUE")
            assert process.communicate(timeout=10)[0] == b"CONTINUE CONTINUE\n"
        finally:
            process.kill()


def test_reports_that_the_tuner_would_refuse_are_refused_at_the_call() -> None:
    report = Reporter()
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="'a' holds itself"):
        report(a=circle)
    with pytest.raises(ValueError, match="32 levels"):
        report(a=json.loads("[" * 40 + "]" * 40))
    with pytest.raises(ValueError, match="no valid Unicode"):
        report(a="\ud800")
