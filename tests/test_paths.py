from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sthyper.paths import STAMP_PATTERN, check_valid_name, experiment_path, is_plain_name, name_from_base, sanitize_name


def test_folder_of_experiments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STHYPER_FOLDER", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert experiment_path() == tmp_path / "sthyper"
    assert experiment_path("a-1") == tmp_path / "sthyper" / "a-1"
    monkeypatch.setenv("STHYPER_FOLDER", "~/elsewhere")
    assert experiment_path("a-1") == tmp_path / "elsewhere" / "a-1"
    assert experiment_path("a-1", local_path="~/mine") == tmp_path / "mine" / "a-1"


LEADS_ELSEWHERE = ["", ".", "..", "../a", "a/b", "/etc", "a/..", "a\\b", "a\0b", "a\nb", "a\x1b[2Jb"]


@pytest.mark.parametrize("name", LEADS_ELSEWHERE)
def test_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    assert not is_plain_name(name)
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        experiment_path(name, tmp_path)
    with pytest.raises(ValueError):
        check_valid_name(name)


@pytest.mark.parametrize("name", ["a", "a_b", "a.b", "..a", "a b", "\u00e4"])
def test_experiments_of_others_may_have_other_names(name: str, tmp_path: Path) -> None:
    assert is_plain_name(name)
    assert experiment_path(name, tmp_path) == tmp_path / name


@pytest.mark.parametrize("name", ["a", "A9", "train-height", "a--b", "x" * 63])
def test_valid_names(name: str) -> None:
    assert check_valid_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a/b", "a b", "ä", "a\n", "x" * 64])
def test_invalid_names_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        check_valid_name(name)


def test_name_must_be_a_string() -> None:
    with pytest.raises(TypeError, match="7"):
        check_valid_name(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("train_height", "train-height"), ("_private.v2", "private-v2"), ("y" * 62 + "__z", "y" * 62), ("ok", "ok")],
)
def test_sanitized_names_are_valid(given: str, expected: str) -> None:
    assert sanitize_name(given) == expected
    assert check_valid_name(expected)


def test_nothing_left_to_sanitize() -> None:
    with pytest.raises(ValueError, match="___"):
        sanitize_name("___")


@pytest.mark.parametrize("base", ["a", "train-height", "b" * 38 + "-" + "c" * 24])
def test_name_from_base(base: str) -> None:
    name = name_from_base(base)
    assert len(name) <= 63
    assert check_valid_name(name)
    match = re.fullmatch(rf"(.*)-({STAMP_PATTERN})", name)
    assert match is not None
    assert base.startswith(match.group(1))
    assert len(match.group(2)) == 23


def test_name_from_default_and_errors() -> None:
    assert name_from_base(None, default="mine").startswith("mine-20")
    assert len(name_from_base("abcdefgh", max_length=30)) == 30
    with pytest.raises(ValueError, match="a_b"):
        name_from_base("a_b")
    with pytest.raises(ValueError, match="max_length"):
        name_from_base("a", max_length=10)


def test_imports_nothing_heavy() -> None:
    code = "import sthyper.paths, sys; print([m for m in ('torch', 'pandas', 'numpy', 'psutil') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
