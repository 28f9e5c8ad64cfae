"""Who descends from whom, and how to end a process for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sthyper.backend import _processes

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEP, env={**os.environ, "MARK": "a b"})
    yield process
    process.kill()
    process.wait()


def test_a_process_is_seen_as_it_is(sleeper):
    info = _processes.snapshot()[sleeper.pid]
    assert (info.pid, info.ppid, info.group) == (sleeper.pid, os.getpid(), os.getpgrp())
    assert info.alive
    assert info == _processes.process_info(sleeper.pid)._replace(state=info.state)
    since_boot = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
    assert _processes.start_time(info) == pytest.approx(since_boot, abs=0.05)
    assert b"MARK=a b" in _processes.environment_of(sleeper.pid)


def test_a_process_that_was_just_started_shows_its_environment():
    # exec() closes the pipe for which Popen waits before it sets up the environment: without a second look a tenth
    # to a third of these are missed.
    for number in range(60):
        process = subprocess.Popen(["/bin/sleep", "60"], env={**os.environ, "MARK": str(number)})
        try:
            assert f"MARK={number}".encode() in _processes.environment_of(process.pid)
        finally:
            process.kill()
            process.wait()


def test_an_empty_environment_is_told_at_once():
    process = subprocess.Popen(["/bin/sleep", "60"], env={})
    try:
        time.sleep(0.1)
        seconds = []
        for _ in range(5):  # this process may have to wait for a processor, though not each time
            begin = time.monotonic()
            assert _processes.environment_of(process.pid) == []
            seconds.append(time.monotonic() - begin)
        assert min(seconds) < 0.5 * _processes.EXEC_LIMIT
    finally:
        process.kill()
        process.wait()


def test_a_name_with_parentheses_and_blanks_is_no_riddle(tmp_path):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    try:
        assert _processes.process_info(process.pid).ppid == os.getpid()
    finally:
        process.kill()
        process.wait()


def test_a_dead_process_is_not_alive(sleeper):
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    info = _processes.process_info(sleeper.pid)
    assert not info.alive
    assert _processes.living([info]) == []
    sleeper.wait()
    assert _processes.process_info(sleeper.pid) is None
    assert _processes.environment_of(sleeper.pid) == []


def test_descendants_come_parents_first():
    def info(pid, ppid):
        return _processes.ProcessInfo(pid, ppid, 1, "S", 0)

    processes = {pid: info(pid, ppid) for pid, ppid in [(5, 9), (9, 2), (2, 1), (7, 1), (3, 9), (0, 0)]}
    assert [i.pid for i in _processes.descendants(processes, 2)] == [9, 5, 3]
    assert _processes.descendants(processes, 4) == []


def test_tagged_finds_exactly_the_entry(sleeper):
    assert [info.pid for info in _processes.tagged("MARK", "a b")] == [sleeper.pid]
    assert _processes.tagged("MARK", "a") == []
    assert _processes.tagged("ARK", "a b") == []


def test_a_signal_reaches_the_process_that_was_meant_only(sleeper):
    info = _processes.process_info(sleeper.pid)
    assert not _processes.send_signal(info._replace(start=info.start - 1), signal.SIGKILL)
    assert sleeper.poll() is None
    assert _processes.send_signal(info, signal.SIGTERM)
    assert sleeper.wait(5) == -signal.SIGTERM
    assert not _processes.send_signal(info, signal.SIGTERM)


def test_sweep_asks_then_kills(tmp_path):
    # In a process of its own: a sweep ends all descendants.
    code = f"""
import os, subprocess, sys, time
from sthyper.backend import _processes
_processes.subreaper()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
polite = subprocess.Popen({SLEEP!r})
begin = time.monotonic()
_processes.sweep(0.5)
print(_processes.descendants(_processes.snapshot(), os.getpid()), 0.5 <= time.monotonic() - begin < 2)
begin = time.monotonic()
_processes.sweep(5)
print(time.monotonic() - begin < 0.5, flush=True)
os._exit(0)  # no complaints about children that are gone
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "True"]


def test_die_with_parent(tmp_path):
    code = """
import os, signal, sys, time
from sthyper.backend import _processes
parent = os.getpid()
if os.fork() == 0:
    _processes.die_with_parent(parent, signal.SIGKILL)
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    end = time.monotonic() + 5
    while (info := _processes.process_info(child)) is not None and info.alive:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ps_tells_the_same(sleeper):
    # What is used where there is no /proc.
    found = _processes._snapshot_by_ps()
    info = found[sleeper.pid]
    assert (info.ppid, info.group, info.alive) == (os.getpid(), os.getpgrp(), True)
    assert sleeper.pid in [i.pid for i in _processes.descendants(found, os.getpid())]
