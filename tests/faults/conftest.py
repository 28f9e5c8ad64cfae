"""Fault tests share the modules of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a training script and return its path."""

    def write(code: str, name: str = "train.py") -> Path:
        path = tmp_path / name
        path.write_text(dedent(code))
        return path

    return write
