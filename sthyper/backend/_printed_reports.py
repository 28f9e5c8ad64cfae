"""Reports that a program prints on its standard output, read from the file while it grows."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sthyper.constants import MAX_REPORT_BYTES, REPORT_TAG
from sthyper.report import decode_floats, metrics_fault

__all__ = ["PrintedReports"]

_TAG = f"[{REPORT_TAG}]:".encode()
# A report, and what may stand before it in its line.
_MAX_LINE = 2 * MAX_REPORT_BYTES
_CHUNK = 1 << 20
_BARE = re.compile(r"([:,\[]\s*)([-+]?)(nan|inf)(?:inity)?(?=\s*[,}\]])", re.IGNORECASE)
_DECODER = json.JSONDecoder()


class PrintedReports:
    """Finds the reports (``[tune-metric]: {"epoch": 1, "loss": 0.5}``) that are appended to a file.

    A line counts when its end is written (a carriage return will do), or when the program has ended. What looks like
    a report and is none is passed over and noted in :attr:`faults`.

    Args:
        path: The file; it may come into being later.
        start: Bytes at its beginning that belong to earlier runs.

    Attributes:
        count: Number of reports so far.
        faults: What was wrong with lines that were passed over.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.count = 0
        self.faults: list[str] = []
        self._path = path
        self._position = start
        self._rest = b""
        self._skipping = False

    def read(self, ended: bool = False) -> list[dict[str, Any]]:
        """Return the reports that have come since the last call.

        Args:
            ended: Whether nothing will be appended any more: everything is read, the last line needs no end. Without
                it one call reads at most 1 MiB.
        """
        found: list[dict[str, Any]] = []
        try:
            size = os.stat(self._path).st_size
            if size < self._position:  # the program, or a rotation of logs, has cut it
                self._position, self._rest, self._skipping = 0, b"", False
            if size == self._position and not (ended and self._rest):
                return found
            with open(self._path, "rb") as file:
                file.seek(self._position)
                while data := file.read(_CHUNK):
                    self._position += len(data)
                    self._take(data, found)
                    if not ended:
                        break
        except OSError:
            pass  # not there yet, or removed by the program
        if ended and self._rest:
            rest, self._rest = self._rest, b""
            self._line(rest, found)
        self.count += len(found)
        return found

    def _take(self, data: bytes, found: list[dict[str, Any]]) -> None:
        *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            whole, self._rest = self._rest + line, b""
            if self._skipping:
                self._skipping = False
            else:
                self._line(whole, found)
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > _MAX_LINE:
                self._line(self._rest, found)  # too long for a report: noted if it was to be one
                self._rest, self._skipping = b"", True

    def _line(self, line: bytes, found: list[dict[str, Any]]) -> None:
        _, tag, text = line.partition(_TAG)
        if not tag:
            return
        text = text.strip()
        if len(text) >= MAX_REPORT_BYTES:
            self._fault(f"it has {len(text)} bytes or more, allowed are fewer than {MAX_REPORT_BYTES}", text)
            return
        try:
            metrics = _parse(text.decode())
        except (ValueError, RecursionError) as error:
            self._fault(f"it is no JSON ({error})", text)
            return
        if not isinstance(metrics, dict) or not metrics:
            self._fault("it is no JSON object with metrics", text)
        elif (fault := metrics_fault(metrics)) is not None:
            self._fault(f"it holds {fault}", text)
        else:
            found.append(metrics)

    def _fault(self, what: str, text: bytes) -> None:
        shown = text[:80].decode(errors="replace") + ("..." if len(text) > 80 else "")
        self.faults.append(f"{what}: {shown}")


def _parse(text: str) -> Any:
    try:
        found, _ = _DECODER.raw_decode(text)  # what follows in the line does not matter
    except ValueError:
        # printf of C and its relatives writes nan, -nan, inf
        repaired = _BARE.sub(_non_finite, text)
        if repaired == text:
            raise
        found, _ = _DECODER.raw_decode(repaired)
    return decode_floats(found)


def _non_finite(match: re.Match[str]) -> str:
    if match[3].lower() == "nan":
        return f"{match[1]}NaN"
    return f"{match[1]}{'-' if match[2] == '-' else ''}Infinity"
