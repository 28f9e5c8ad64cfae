"""The Reporter: validation, automatic fields, stdout, and the wire protocol against a server of the test's own."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sthyper.report import Reporter, TrialExit, decode_floats, encode_floats, retrieve


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return retrieve(capsys.readouterr().out.splitlines())


def test_by_hand_reports_are_printed_and_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter()
    assert report(epoch=1, **{"val/acc": 0.5}) == "CONTINUE"
    print("something else [tune-metric]")
    report(epoch=2, loss=math.nan, best=-math.inf)
    first, second = printed(capsys)
    assert first["epoch"] == 1
    assert first["val/acc"] == 0.5
    assert [first["st_worker_iter"], second["st_worker_iter"]] == [0, 1]
    assert second["st_worker_time"] >= first["st_worker_time"] >= 0
    assert math.isnan(second["loss"])
    assert second["best"] == -math.inf
    assert "st_worker_cost" not in first
    assert report.config == {}
    assert report.trial_id is None
    assert not report.connected


def test_cost_comes_from_the_price(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STHYPER_COST_PER_HOUR", "7200")
    Reporter()(a=1)
    Reporter(add_cost=False)(a=1)
    Reporter(cost_per_hour=3600.0)(a=1)
    Reporter(add_time=False)(a=1)
    by_env, without, by_argument, no_time = printed(capsys)
    assert by_env["st_worker_cost"] == pytest.approx(2 * by_env["st_worker_time"])
    assert "st_worker_cost" not in without
    assert by_argument["st_worker_cost"] == pytest.approx(by_argument["st_worker_time"])
    assert "st_worker_time" not in no_time
    assert "st_worker_iter" in no_time


def test_numbers_of_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter()(a=np.float32(0.5), b=np.int64(3), c=torch.tensor(2.5), d=np.array([1.0]), e=torch.tensor([[4]]), f=True)
    (record,) = printed(capsys)
    assert {k: record[k] for k in "abcdef"} == {"a": 0.5, "b": 3, "c": 2.5, "d": 1.0, "e": 4, "f": True}


@pytest.mark.parametrize(
    ("metrics", "kind", "words"),
    [
        ({}, ValueError, "no metrics"),
        ({"loss": None}, ValueError, "'loss' is None"),
        ({"loss": [1, None]}, ValueError, r"loss\[1\]"),
        ({"st_loss": 1}, ValueError, "reserved"),
        ({"loss": object()}, TypeError, "'loss' is of type object"),
        ({"loss": torch.zeros(3)}, TypeError, "3 elements"),
        ({"text": "x" * 50_000}, ValueError, "50000"),
    ],
)
def test_bad_reports_name_the_metric(metrics: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Reporter()(**metrics)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="on_stop"):
        Reporter(on_stop="leave")
    with pytest.raises(ValueError, match="cost_per_hour"):
        Reporter(cost_per_hour=-1.0)


def test_retrieve_reads_bare_nan_and_passes_over_damage() -> None:
    lines = ["noise\n", '[tune-metric]: {"a": NaN, "b": -Infinity}\n', "[tune-metric]: {broken}\n"]
    (record,) = retrieve(lines)
    assert math.isnan(record["a"])
    assert record["b"] == -math.inf


def test_integers_that_are_no_floats_are_infinite(capsys: pytest.CaptureFixture[str]) -> None:
    largest = int(sys.float_info.max)
    Reporter()(a=10**400, b=-(10**400), c=largest, d=[2**1024])
    (record,) = printed(capsys)
    assert [record[name] for name in "abcd"] == [math.inf, -math.inf, largest, [math.inf]]
    assert decode_floats({"from a program": 10**400}) == {"from a program": math.inf}


@given(
    st.recursive(
        st.floats()
        | st.integers()
        | st.booleans()
        | st.text(max_size=5).filter(lambda s: "N" not in s and "I" not in s),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    )
)
def test_floats_survive_json(value: Any) -> None:
    back = decode_floats(json.loads(json.dumps(encode_floats(value), allow_nan=False)))
    assert repr(back) == repr(value)


class Server:
    """The tuner's side of the protocol, as far as a test needs it."""

    def __init__(self, listener: socket.socket, decisions: list[str], drop_after: int | None = None) -> None:
        self.listener = listener
        self.decisions = decisions
        self.drop_after = drop_after
        self.lines: list[dict[str, Any]] = []
        self.answered = 0
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                message = json.loads(line)
                self.lines.append(message)
                if message["type"] != "report":
                    continue
                if self.drop_after is not None and self.answered == self.drop_after:
                    self.drop_after = None
                    break  # before the answer
                answer = {"seq": message["seq"], "decision": self.decisions[self.answered]}
                self.answered += 1
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    (tmp_path / "config.json").write_text('{"lr": 0.1, "layers": [1, 2]}')
    for name, value in {
        "STHYPER_CHANNEL": f"unix:{tmp_path / 's'}",
        "STHYPER_TOKEN": "secret",
        "STHYPER_TRIAL_ID": "3",
        "STHYPER_RUN": "2",
        "STHYPER_TRIAL_DIR": str(tmp_path),
        "STHYPER_LAST_RESOURCE": "4",
        "STHYPER_SEED": "17",
        "STHYPER_OBJECTIVE": '{"metric": "loss", "mode": "min", "resource_attr": "epoch", "max_resource": 9}',
    }.items():
        monkeypatch.setenv(name, value)
    yield listener
    listener.close()


def wait_for(server: Server, kind: str, n: int) -> list[dict[str, Any]]:
    """Wait until the server has read ``n`` messages of a kind and return them."""
    deadline = time.monotonic() + 10.0
    while len(found := [m for m in server.lines if m["type"] == kind]) < n and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_protocol_and_decisions(channel: socket.socket) -> None:
    server = Server(channel, ["CONTINUE", "PAUSE", "STOP"])
    report = Reporter(on_stop="return")
    report.send_rank(0, 2)
    assert [report(epoch=1), report(epoch=2)] == ["CONTINUE", "PAUSE"]
    other = Reporter()
    with pytest.raises(TrialExit) as exit_:
        other(epoch=3)
    assert exit_.value.code == 0
    assert exit_.value.decision == "STOP"
    report.bye(False, "killed")
    report.close()
    other.close()
    channel.close()
    hello = server.lines[0]
    assert {k: hello[k] for k in ("type", "v", "token", "trial_id", "run")} == {
        "type": "hello",
        "v": 1,
        "token": "secret",
        "trial_id": 3,
        "run": 2,
    }
    assert server.lines[1] == {"type": "rank", "rank": 0, "world_size": 2}
    reports = [m for m in server.lines if m["type"] == "report"]
    assert [m["seq"] for m in reports] == [0, 1, 0]
    clients = [m["client"] for m in server.lines if m["type"] == "hello"]
    assert len(set(clients)) == len(clients) == 2
    # A failure stays a failure, whatever is announced afterwards.
    byes = wait_for(server, "bye", 2)
    assert {"type": "bye", "ok": False, "reason": "killed"} in byes
    assert {"type": "bye", "ok": True} in byes


def test_what_a_trial_knows(channel: socket.socket) -> None:
    report = Reporter()
    assert report.connected
    assert report.config == {"lr": 0.1, "layers": [1, 2]}
    assert (report.trial_id, report.run, report.last_resource, report.seed) == (3, 2, 4, 17)
    assert report.objective == {"metric": "loss", "mode": "min", "resource_attr": "epoch", "max_resource": 9}


def test_lost_unix_connection_ends_the_trial(channel: socket.socket) -> None:
    Server(channel, ["CONTINUE"] * 9, drop_after=1)
    report = Reporter(on_stop="return")
    report(a=1)
    with pytest.raises(TrialExit) as exit_:
        report(a=2)
    assert exit_.value.decision == "LOST"


def test_tcp_sends_again_what_was_not_answered(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("STHYPER_CHANNEL", f"tcp:127.0.0.1:{listener.getsockname()[1]}")
        server = Server(listener, ["CONTINUE", "PAUSE"], drop_after=1)
        report = Reporter(on_stop="return")
        assert [report(a=1), report(a=2)] == ["CONTINUE", "PAUSE"]
        report.close()
    seqs = [m["seq"] for m in server.lines if m["type"] == "report"]
    assert seqs == [0, 1, 1]
    assert len({m["client"] for m in server.lines if m["type"] == "hello"}) == 1


def test_tcp_gives_up_after_the_grace(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("STHYPER_CHANNEL", f"tcp:127.0.0.1:{port}")
    monkeypatch.setenv("STHYPER_RECONNECT_GRACE", "0.3")
    with pytest.raises(TrialExit):
        Reporter(on_stop="return")(a=1)


def test_exit_says_bye_and_a_fork_has_its_own_client(channel: socket.socket) -> None:
    server = Server(channel, ["CONTINUE"] * 9)
    script = (
        "import os\nfrom sthyper import Reporter\nr = Reporter()\nr(a=1)\npid = os.fork()\n"
        "if pid == 0:\n    r(a=2)\n    os._exit(0)\nos.waitpid(pid, 0)\nr(a=3)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ), timeout=30)
    hellos = [m["client"] for m in server.lines if m["type"] == "hello"]
    assert len(set(hellos)) == 2
    assert [m["metrics"]["a"] for m in server.lines if m["type"] == "report"] in ([1, 2, 3], [1, 3, 2])
    assert wait_for(server, "bye", 1) == [{"type": "bye", "ok": True}]


def test_the_folder_of_checkpoints_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Reporter().checkpoint_dir is None
    monkeypatch.setenv("STHYPER_CHECKPOINT_DIR", str(tmp_path / "3" / "checkpoints"))
    for _ in range(2):
        assert Path(Reporter().checkpoint_dir or "").is_dir()


def test_import_is_light() -> None:
    code = (
        "import sys\nfrom sthyper import Reporter\nimport sthyper.report\nReporter\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'psutil', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]"
