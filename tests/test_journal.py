"""The journal: whole lines only, whatever happens to the writer."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sthyper.errors import ExperimentError
from sthyper.journal import ExperimentJournal, ExperimentLock, read_journal


def test_lines_come_back_in_order_with_non_finite_values(tmp_path: Path) -> None:
    with ExperimentJournal(tmp_path) as journal:
        journal.append({"type": "journal", "version": 1})
        journal.append({"type": "report", "metrics": {"a": math.nan, "b": -math.inf, "c": "text"}})
    first, second = read_journal(tmp_path)
    assert first == {"type": "journal", "version": 1}
    assert math.isnan(second["metrics"]["a"])
    assert second["metrics"]["b"] == -math.inf
    # Any JSON reader can read the file.
    for line in (tmp_path / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))


def test_an_appended_line_survives_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom sthyper.journal import ExperimentJournal\n"
        "j = ExperimentJournal(sys.argv[1])\n"
        "for i in range(100): j.append({'type': 'report', 'n': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert [record["n"] for record in read_journal(tmp_path)] == list(range(100))


@given(cut=st.integers(1, 60))
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    lines = [json.dumps({"type": "x", "n": n}).encode() + b"\n" for n in range(3)]
    whole = b"".join(lines)
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = [record["n"] for record in read_journal(path)]
    assert kept == list(range(len(kept)))
    with ExperimentJournal(path) as journal:
        journal.append({"type": "x", "n": 99})
    assert [record["n"] for record in read_journal(path)] == [*kept, 99]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"type": "a"}\n{"type": \n{"type": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        list(read_journal(path))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"type": "journal", "version": 99}\n')
    with pytest.raises(ValueError, match="upgrade sthyper"):
        list(read_journal(path))


def test_a_short_write_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = (
        "import sys\nfrom sthyper.journal import ExperimentJournal\nj = ExperimentJournal(sys.argv[1])\n"
        "try:\n    for n in range(50): j.append({'type': 'x', 'n': n, 'fill': 'y' * 20})\n"
        "except OSError: print('full at', n)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], preexec_fn=limited, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "full at 3"
    assert path.read_bytes().endswith(b"\n")
    assert [record["n"] for record in read_journal(path)] == [0, 1, 2]


def test_blocks_are_written_at_the_end_and_when_full(tmp_path: Path) -> None:
    journal = ExperimentJournal(tmp_path, block_size=100)
    journal.append({"type": "x", "n": 0})
    assert list(read_journal(tmp_path)) == []
    for n in range(1, 10):
        journal.append({"type": "x", "n": n})
    assert len(list(read_journal(tmp_path))) >= 4
    journal.close()
    assert [record["n"] for record in read_journal(tmp_path)] == list(range(10))


def test_closing_while_a_sync_begins(tmp_path: Path) -> None:
    class Slow(threading.Event):
        """Its waiter, once its time is over, does not get the processor until the journal is being closed."""

        def wait(self, timeout: float | None = None) -> bool:
            if not (found := super().wait(timeout)):
                over.set()
                super().wait()
                time.sleep(0.1)  # close() says more than this
            return found

    over = threading.Event()
    journal = ExperimentJournal(tmp_path)
    journal._closing = Slow()
    journal.append({"type": "x"})
    assert over.wait(5.0)
    closing = threading.Thread(target=journal.close, daemon=True)
    closing.start()
    closing.join(5.0)
    assert not closing.is_alive()


def test_arguments_and_closed_journals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync"):
        ExperimentJournal(tmp_path, sync="never")
    with pytest.raises(ValueError, match="block_size"):
        ExperimentJournal(tmp_path, block_size=-1)
    journal = ExperimentJournal(tmp_path, sync="always")
    journal.append({"type": "x"})
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append({"type": "x"})


def test_lock_is_exclusive_while_its_holder_lives(tmp_path: Path) -> None:
    lock = ExperimentLock(tmp_path)
    try:
        holder = json.loads((tmp_path / "lock").read_text())
        assert holder["pid"] == os.getpid()
        assert {"host", "start_time", "heartbeat"} <= set(holder)
        with pytest.raises(ExperimentError, match=str(os.getpid())):
            ExperimentLock(tmp_path)
    finally:
        lock.release()
    assert not (tmp_path / "lock").exists()
    # A dead process of this machine holds nothing.
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / "lock").write_text(json.dumps({**holder, "pid": int(dead.stdout)}))
    ExperimentLock(tmp_path).release()
