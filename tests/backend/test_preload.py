"""What a script imports is read from its source."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sthyper.backend._preload import is_installed, loads_names, scan_imports


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_installed_modules_are_found_wherever_they_are_imported(write):
    script = write(
        "train.py",
        """
import json, torch.nn.functional as F
from torch.utils import data, no_such_thing
if __name__ == "__main__":
    import pandas
def main():
    try:
        from sklearn.linear_model import Ridge
    except ImportError:
        import package_that_nobody_has
    class A:
        from xml.dom import minidom
""",
    )
    assert scan_imports(script) == [
        "json",
        "torch",
        "torch.nn",
        "torch.nn.functional",
        "torch.utils",
        "torch.utils.data",
        "pandas",
        "sklearn",
        "sklearn.linear_model",
        "xml",
        "xml.dom",
        "xml.dom.minidom",
    ]


def test_what_is_only_for_type_checkers_is_left_out(write):
    script = write(
        "train.py",
        """
import typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas
else:
    import csv
if typing.TYPE_CHECKING:
    import scipy
""",
    )
    assert scan_imports(script) == ["typing", "csv"]


def test_imports_of_local_modules_are_followed(write):
    write("helper.py", "import csv\nimport train\nfrom pack import deep")
    write("pack/__init__.py", "import wave")
    write("pack/deep.py", "from . import sibling\nfrom .sub.leaf import *\nfrom .. import too_far\nimport helper")
    write("pack/sibling.py", "import colorsys")
    write("pack/sub/__init__.py", "from ..sibling import x")
    write("pack/sub/leaf.py", "import bisect")
    write("pack/unused.py", "import mailbox")
    script = write("train.py", "import helper")
    assert sorted(scan_imports(script)) == ["bisect", "colorsys", "csv", "wave"]


def test_local_modules_elsewhere_on_the_path_are_followed_not_returned(write, monkeypatch, tmp_path):
    write("src/project/__init__.py", "import wave")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    script = write("scripts/train.py", "import project")
    assert scan_imports(script) == ["wave"]
    assert not is_installed("project")


def test_a_local_module_hides_an_installed_one(write):
    write("pandas.py", "import wave")
    script = write("train.py", "import pandas")
    assert scan_imports(script) == ["wave"]


def test_a_namespace_folder_hides_nothing(write):
    write("pandas/notes.txt", "a folder of data")
    script = write("train.py", "import pandas")
    assert scan_imports(script) == ["pandas"]


def test_files_that_cannot_be_read_contribute_nothing(write, tmp_path):
    write("broken.py", "import wave\ndef f(:")
    write("latin.py", "").write_bytes(b"name = 'caf\xe9'\nimport csv")
    script = write("train.py", "import broken, latin, json")
    assert scan_imports(script) == ["json"]
    assert scan_imports(broken := write("other.py", "import json\n)")) == []
    assert scan_imports(tmp_path / "nowhere.py") == []
    assert not loads_names(broken, {"json"})


def test_modules_that_act_when_imported_are_left_out(write):
    assert scan_imports(write("train.py", "import this, antigravity, __main__, json")) == ["json"]


def test_sthyper_counts_as_installed_however_it_is_installed(write):
    script = write("train.py", "from sthyper import Reporter\nfrom sthyper.config_space import randint")
    assert scan_imports(script) == ["sthyper", "sthyper.report", "sthyper.config_space"]
    # Its own files are no local modules of the script.
    assert not loads_names(script, {"socket"})


def test_nothing_is_executed_and_nothing_heavy_is_imported(write, tmp_path):
    write("helper.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    script = write("train.py", "import helper, torch.utils.data, pandas.io, lightning.pytorch\nraise SystemExit")
    code = (
        "import sys; from sthyper.backend._preload import scan_imports; "
        f"print(len(scan_imports({str(script)!r}))); print([m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n[]\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parser.add_argument('--st_checkpoint_dir')", True),
        ("parser.add_argument('st_checkpoint_dir')", True),
        ("args.st_checkpoint_dir", True),
        ("st_checkpoint_dir = 1", True),
        ("def main(lr, st_checkpoint_dir=None): ...", True),
        ("main(st_checkpoint_dir=1)", True),
        ("from sthyper.constants import st_checkpoint_dir as x", True),
        ("from sthyper.constants import x as st_checkpoint_dir", True),
        ("def st_checkpoint_dir(): ...", True),
        ("'''This script knows nothing of st_checkpoint_dir.'''", False),
        ("# st_checkpoint_dir", False),
        ("args.st_checkpoint_dirs", False),
        ("b'--st_checkpoint_dir'", False),
    ],
)
def test_names_are_found(write, text, expected):
    script = write("train.py", text)
    assert loads_names(script, {"st_checkpoint_dir", "other"}) is expected
    importer = write("importer.py", "def f():\n    import train")
    assert loads_names(importer, {"st_checkpoint_dir"}) is expected
    assert not loads_names(importer, set())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("torch", True), ("torch.nn", True), ("json", True), ("sys", True), ("sthyper", True), ("this", False)],
)
def test_is_installed(name, expected):
    assert is_installed(name) is expected
    assert not is_installed("package_that_nobody_has")
    assert not is_installed("")
