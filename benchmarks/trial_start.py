"""How long a trial takes from the order to start it to its first line, warm (fork) and fresh (exec).

The entry point imports lightning. Two moments count: its first line, and the line after ``import lightning``, where
training code can begin; both kinds of start are measured in the same run, one after the other in turn. The budget is
50 ms for the first line of a warm trial. Run: ``python benchmarks/trial_start.py``.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sthyper.backend._preload import scan_imports
from sthyper.backend.launcher import Exited, Gone, Launcher, LauncherEvent, LauncherWarning, Ready, SpawnRequest

BUDGET = 0.050
SCRIPT = """\
import time; first = time.monotonic()
import lightning
print(first, time.monotonic())
"""


def wait_for(launcher: Launcher, kind: type[LauncherEvent]) -> LauncherEvent:
    """Return the next event of a kind."""
    while True:
        deadline = launcher.next_deadline()
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        select.select(launcher.filenos(), [], [], wait)
        for event in launcher.read():
            if isinstance(event, LauncherWarning):
                print(f"warning: {event.message}", file=sys.stderr)
            if isinstance(event, Exited) and event.code != 0:
                raise SystemExit(f"trial {event.key} failed with code {event.code}")
            if isinstance(event, kind):
                return event


def start(launcher: Launcher, mode: str, script: Path, number: int) -> tuple[float, float]:
    """Start one trial and return the seconds to its first line and to the end of its imports."""
    key = f"{mode}-{number}"
    out = script.parent / f"{key}.out"
    argv = (str(script),) if mode == "fork" else (sys.executable, str(script))
    begin = time.monotonic()
    launcher.spawn(
        SpawnRequest(
            key=key,
            argv=argv,
            mode="fork" if mode == "fork" else "exec",
            env={},
            cwd=os.getcwd(),
            stdout=str(out),
            stderr=str(out.with_suffix(".err")),
            threads=1,
            seed=number,
        )
    )
    wait_for(launcher, Gone)
    first, imported = map(float, out.read_text().split())
    return first - begin, imported - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20, help="starts of each kind")
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(SCRIPT)
        launcher = Launcher(preload=scan_imports(script), tag=("STHYPER_TOKEN", os.urandom(16).hex()))
        launcher.start()
        try:
            ready = wait_for(launcher, Ready)
            assert isinstance(ready, Ready)
            print(f"libraries loaded once in {ready.seconds:.1f} s")
            times: dict[str, list[tuple[float, float]]] = {"fork": [], "exec": []}
            for number in range(repetitions):
                for mode, found in times.items():
                    found.append(start(launcher, mode, script, number))
        finally:
            launcher.close()
    for mode, found in times.items():
        for index, what in enumerate(("first line", "imports done")):
            values = [1000 * pair[index] for pair in found]
            print(
                f"{mode}  {what:12s}  median {statistics.median(values):7.1f} ms  "
                f"(min {min(values):.1f}, max {max(values):.1f}, n={len(values)})  "
                f"{statistics.median(values) / 1000 / BUDGET:.2f} x budget of {1000 * BUDGET:.0f} ms"
            )


if __name__ == "__main__":
    main()
