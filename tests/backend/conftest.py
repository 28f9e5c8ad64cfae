"""A launcher with the loop around it that the tuner has."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from sthyper.backend._processes import tagged
from sthyper.backend.launcher import Exited, Gone, Launcher, LauncherEvent, LauncherWarning, Ready, SpawnRequest


@dataclass(frozen=True)
class Result:
    """What is left of a run."""

    code: int
    out: str
    err: str
    forced: bool = False


class Driver:
    """Runs trials through a launcher and waits for events as the tuner does."""

    def __init__(self, folder: Path, preload: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.tag = ("STHYPER_TOKEN", os.urandom(8).hex())
        self.launcher = Launcher(preload=preload, tag=self.tag, environ=environ)
        self.events: list[LauncherEvent] = []
        self._count = 0

    def until(self, wanted: Callable[[LauncherEvent], bool], timeout: float = 20.0) -> Any:
        """Return the first event so far, or to come, that is wanted."""
        end = time.monotonic() + timeout
        looked_at = 0
        while True:
            for event in self.events[looked_at:]:
                if wanted(event):
                    return event
            looked_at = len(self.events)
            wait = end - time.monotonic()
            assert wait > 0, f"nothing came, only {self.events}"
            deadline = self.launcher.next_deadline()
            if deadline is not None:
                wait = max(0.0, min(wait, deadline - time.monotonic()))
            select.select(self.launcher.filenos(), [], [], wait)
            self.events += self.launcher.read()

    def of(self, kind: type, key: str | None = None, timeout: float = 20.0) -> Any:
        """Return the first event of a type (and of a trial)."""
        return self.until(lambda e: isinstance(e, kind) and (key is None or e.key == key), timeout)  # type: ignore[attr-defined]

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, LauncherWarning)]

    def script(self, text: str, name: str = "script.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def spawn(
        self,
        script: Path,
        *args: object,
        mode: Literal["fork", "exec"] = "fork",
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        threads: int | None = None,
        seed: int | None = None,
    ) -> str:
        """Start a script, or with mode "exec" a command, and return its key."""
        key = f"{self._count}-0"
        self._count += 1
        (self.folder / key).mkdir()
        self.launcher.spawn(
            SpawnRequest(
                key=key,
                argv=(str(script), *map(str, args)),
                mode=mode,
                env=env or {},
                cwd=cwd or os.getcwd(),
                stdout=str(self.folder / key / "std.out"),
                stderr=str(self.folder / key / "std.err"),
                threads=threads,
                seed=seed,
            )
        )
        return key

    def out(self, key: str) -> str:
        return (self.folder / key / "std.out").read_text()

    def err(self, key: str) -> str:
        return (self.folder / key / "std.err").read_text()

    def result(self, key: str, timeout: float = 20.0) -> Result:
        """Wait until a trial is gone."""
        gone = self.of(Gone, key, timeout)
        return Result(self.of(Exited, key).code, self.out(key), self.err(key), gone.forced)

    def run(self, script: Path | str, *args: object, **options: Any) -> Result:
        """Run a script (or its text) to its end."""
        path = self.script(script) if isinstance(script, str) else script
        return self.result(self.spawn(path, *args, **options))

    def wait_for_file(self, name: str, timeout: float = 20.0) -> str:
        """Wait for a file that a trial writes, and return its content."""
        path = self.folder / name
        end = time.monotonic() + timeout
        while not path.exists() or not path.read_text():
            assert time.monotonic() < end, f"{name} was not written"
            self.events += self.launcher.read()
            time.sleep(0.01)
        return path.read_text()

    def pids(self) -> tuple[int, int]:
        """Return guardian and server."""
        from sthyper.backend._processes import snapshot

        guardian = self.launcher._guardian
        assert guardian is not None
        server = next(info.pid for info in snapshot().values() if info.ppid == guardian.pid)
        return guardian.pid, server


@pytest.fixture(scope="session")
def driver_class() -> type[Driver]:
    return Driver


@pytest.fixture(scope="module")
def module_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One launcher without preloading for all tests of a module."""
    driver = Driver(tmp_path_factory.mktemp("launcher"))
    driver.launcher.start()
    driver.of(Ready)
    yield driver
    driver.launcher.close()
    assert not tagged(*driver.tag)


@pytest.fixture
def driver(module_driver: Driver, tmp_path: Path) -> Driver:
    """The module's launcher, with this test's own folder."""
    module_driver.folder = tmp_path
    module_driver.events.clear()
    return module_driver


@pytest.fixture
def make_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Make launchers of the test's own."""
    made: list[Driver] = []

    def make(preload: Sequence[str] = (), environ: Mapping[str, str] | None = None, ready: bool = True) -> Driver:
        driver = Driver(tmp_path, preload, environ)
        made.append(driver)
        driver.launcher.start()
        if ready:
            driver.of(Ready)
        return driver

    yield make
    for driver in made:
        driver.launcher.close()
        assert not tagged(*driver.tag)


@pytest.fixture
def by_hand() -> Callable[..., Result]:
    """Run a script as a user does, with files for its output."""

    def run(script: Path, *args: object) -> Result:
        done = subprocess.run(
            [sys.executable, str(script), *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
