"""Reports are found in a file that grows, whatever else is in it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sthyper.backend._printed_reports import PrintedReports
from sthyper.constants import MAX_REPORT_BYTES


def report(epoch: int, more: str = "") -> bytes:
    return f'[tune-metric]: {{"epoch": {epoch}{more}}}'.encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "std.out"


def append(file: Path, data: bytes) -> None:
    with open(file, "ab") as out:
        out.write(data)


def epochs(reports: PrintedReports, ended: bool = False) -> list[int]:
    return [metrics["epoch"] for metrics in reports.read(ended)]


def test_each_report_comes_once_when_its_line_is_whole(file: Path) -> None:
    reports = PrintedReports(file)
    assert reports.read() == []  # no file yet
    append(file, b"starting\n" + report(1) + b"\n" + report(2)[:9])
    assert epochs(reports) == [1]
    assert epochs(reports) == []
    append(file, report(2)[9:])
    assert epochs(reports) == []
    append(file, b"\n")
    assert epochs(reports) == [2]
    assert (reports.count, reports.faults) == (2, [])


def test_the_last_line_needs_no_end_once_the_program_has_ended(file: Path) -> None:
    reports = PrintedReports(file)
    append(file, report(1) + b"\n" + report(2))
    assert epochs(reports) == [1]
    assert epochs(reports, ended=True) == [2]
    assert epochs(reports, ended=True) == []


def test_output_of_earlier_runs_is_passed_over(file: Path) -> None:
    append(file, report(1) + b"\n")
    reports = PrintedReports(file, start=file.stat().st_size)
    append(file, report(2) + b"\n")
    assert epochs(reports, ended=True) == [2]


def test_a_file_that_was_cut_is_read_from_its_beginning(file: Path) -> None:
    reports = PrintedReports(file)
    append(file, b"a long line\n" + report(1) + b"\nhalf a")
    assert epochs(reports) == [1]
    file.write_bytes(report(2) + b"\n")
    assert epochs(reports) == [2]
    append(file, report(3) + b"\n")
    assert epochs(reports, ended=True) == [3]


def test_progress_bars_and_other_text_around_a_report(file: Path) -> None:
    reports = PrintedReports(file)
    bar = b"".join(b"\r%3d%%|####" % i for i in range(100)) * 300  # 240 kB without a newline
    append(file, bar)
    append(file, b"\r" + report(1) + b"\r" + b"INFO: " + report(2) + b" (best so far)\n")
    assert epochs(reports, ended=True) == [1, 2]
    assert reports.faults == []


def test_a_program_that_prints_much_delays_nothing_else(file: Path) -> None:
    line = b"x" * 1000 + b"\n"
    append(file, line * 3000 + report(1) + b"\n")
    reports = PrintedReports(file)
    calls = 1
    while not epochs(reports):
        calls += 1
    assert calls == 3  # a MiB each


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"epoch": 1,', "no JSON"),
        (b"epoch=1", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"{}", "no JSON object"),
        (b'{"loss": null}', "null"),
        (b'{"loss": \xff}', "no JSON"),
        (b"[" * 40_000, "no JSON"),
        (b'{"text": "' + b"x" * MAX_REPORT_BYTES + b'"}', "bytes"),
        (b'{"text": "' + b"x" * 3 * MAX_REPORT_BYTES, "bytes"),
    ],
)
def test_what_is_no_report_is_noted_and_skipped(file: Path, text: bytes, words: str) -> None:
    reports = PrintedReports(file)
    append(file, b"[tune-metric]: " + text)
    assert reports.read() == []
    append(file, b"\n" + report(7) + b"\n")
    assert epochs(reports) == [7]
    (fault,) = reports.faults
    assert words in fault
    assert len(fault) < 250


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NaN", math.nan),
        ('"-Infinity"', -math.inf),
        ("Infinity", math.inf),
        ("nan", math.nan),
        ("-nan", math.nan),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("-INFINITY", -math.inf),
        ("1e400", math.inf),
        ("-0.5", -0.5),
    ],
)
def test_non_finite_values_as_languages_print_them(file: Path, text: str, value: float) -> None:
    append(file, report(1, f', "name": "nan, inf", "loss": {text}, "more": [1, {text}]') + b"\n")
    (metrics,) = PrintedReports(file).read()
    assert repr(metrics["loss"]) == repr(metrics["more"][1]) == repr(value)
    assert metrics["name"] == "nan, inf"
