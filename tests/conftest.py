"""Fixtures for all tests: experiments go to a temporary folder, and nothing may be left behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# The same examples in each run: whether a change lands must not depend on a draw. Others are tried with
# --hypothesis-profile default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Set by libraries when they are imported, not by a test.
_LIBRARY_VARIABLES = {
    "CRC32C_SW_MODE",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Have torch on one thread, if test modules use it: two test workers with two threads each are slower."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaks processes, threads, environment variables or files in the working directory."""
    environment = set(os.environ)
    threads = set(threading.enumerate())
    children = {p.pid for p in psutil.Process().children(recursive=True)}
    files = set(os.listdir("."))
    yield
    problems = []
    deadline = time.monotonic() + 5.0
    while True:
        processes = [p for p in psutil.Process().children(recursive=True) if p.pid not in children and _is_leak(p)]
        new_threads = [t for t in threading.enumerate() if t not in threads and t.name.startswith("sthyper")]
        if not (processes or new_threads) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if processes:
        problems.append(f"processes {processes}")
        for process in processes:
            process.kill()
    if new_threads:
        problems.append(f"threads {new_threads}")
    if variables := set(os.environ) - environment - _LIBRARY_VARIABLES:
        problems.append(f"environment variables {variables}")
    if left := set(os.listdir(".")) - files - {".pytest_cache", ".hypothesis"}:
        problems.append(f"files {left}")
    assert not problems, f"left behind: {'; '.join(problems)}"


@pytest.fixture(autouse=True)
def experiment_folder(nothing_is_left: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Experiments of a test live below its own temporary folder."""
    folder = tmp_path / "experiments"
    monkeypatch.setenv("STHYPER_FOLDER", str(folder))
    return folder


def _is_leak(process: psutil.Process) -> bool:
    try:
        # Helper processes that multiprocessing keeps for the life of the interpreter.
        line = " ".join(process.cmdline())
        return "multiprocessing.resource_tracker" not in line and "multiprocessing.forkserver" not in line
    except psutil.Error:
        return False
