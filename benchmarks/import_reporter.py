"""Cost of ``from sthyper import Reporter`` in a fresh interpreter, against its budget of 0.1 s.

Run: python benchmarks/import_reporter.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

BUDGET = 0.1
CODE = "import time; t = time.perf_counter(); from sthyper import Reporter; print(time.perf_counter() - t)"


def main() -> None:
    seconds = []
    for _ in range(21):
        done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
        seconds.append(float(done.stdout))
    seconds = seconds[1:]  # the first one may compile
    median = statistics.median(seconds)
    print(f"from sthyper import Reporter: median {median * 1e3:.1f} ms, min {min(seconds) * 1e3:.1f} ms (20 runs)")
    print(f"ratio to the budget of {BUDGET * 1e3:.0f} ms: {median / BUDGET:.2f}")


if __name__ == "__main__":
    main()
