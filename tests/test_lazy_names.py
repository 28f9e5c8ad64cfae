"""Packages whose names are imported on first use: the names are there, and type checkers see the same ones."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sthyper._lazy import lazy_names

PACKAGES = ["", ".acquisition", ".callbacks", ".selftuning", ".straight_through", ".surrogates"]
packages = pytest.mark.parametrize("package", [f"sthyper{below}" for below in PACKAGES])


def for_type_checkers(path: Path) -> dict[str, str]:
    """Return name -> module of the imports that only type checkers do."""
    blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def run(code: str, folder: Path) -> str:
    """Return what code prints in an interpreter that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True, timeout=50
    )
    return done.stdout.strip()


@packages
def test_type_checkers_see_the_same_names(package: str) -> None:
    module = importlib.import_module(package)
    lazy = for_type_checkers(Path(str(module.__file__)))
    assert {name: f"{package}.{home}" for name, home in module._HOMES.items()} == lazy
    assert set(lazy) == set(module.__all__) - {"__version__"}


@pytest.mark.slow
@packages
def test_names_are_those_of_their_modules(package: str, tmp_path: Path) -> None:
    lazy = for_type_checkers(Path(str(importlib.import_module(package).__file__)))
    code = f"""
import importlib
import {package} as package
lazy = {lazy!r}
found = {{name: getattr(package, name) for name in lazy}}
wrong = [n for n, home in lazy.items() if found[n] is not getattr(importlib.import_module(home), n)]
print(wrong, [n for n in lazy if vars(package)[n] is not found[n]])
"""
    assert run(code, tmp_path) == "[] []"


@packages
def test_dir_has_the_names(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)


@packages
def test_an_unknown_name_is_told_with_the_closest(package: str) -> None:
    module = importlib.import_module(package)
    known = module.__all__[0]
    with pytest.raises(AttributeError, match=rf"{package}.* no attribute '{known}_' \(did you mean '{known}'\?\)"):
        getattr(module, f"{known}_")
    assert not hasattr(module, "xyz0")


@packages
def test_a_package_alone_loads_no_torch(package: str, tmp_path: Path) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'numpy', 'lightning'}} & set(sys.modules)))"
    assert run(code, tmp_path) == "[]"


@packages
def test_no_name_is_that_of_a_module(package: str) -> None:
    """Whoever imports the module would get it in place of the name."""
    module = importlib.import_module(package)
    folder = Path(str(module.__file__)).parent
    assert not set(module._HOMES) & {path.stem for path in folder.iterdir()}


def test_a_name_is_read_from_its_module_once() -> None:
    package = {"__name__": "os", "__all__": ["split", "join"]}
    attribute, names = lazy_names(package, {"join": "path"})
    assert names() == ["join", "split"]
    assert attribute("join") is package["join"] is importlib.import_module("os.path").join
