"""What travels with a function, what cannot, and how that is said."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sthyper._function_trial import TunedFunction, enter
from sthyper.backend._function_faults import explain_load_failure, explain_pickle_failure, largest_parts
from sthyper.backend._function_pickle import imports_of, pickle_function, write_private


def why_not(function: Any) -> str:
    with pytest.raises(Exception) as caught:
        pickle_function(TunedFunction(function, "f", False))
    return explain_pickle_failure(function, caught.value)


class Holder:
    def __init__(self, thing: Any) -> None:
        self.thing = thing


LOCK = threading.Lock()
STREAM = (n for n in range(3))


def uses_global_lock(config: dict) -> int:
    with LOCK:
        return 0


def uses_the_user(config: dict) -> int:
    return uses_global_lock(config)


def test_the_way_to_what_cannot_travel_is_named(tmp_path: Path) -> None:
    assert why_not(uses_global_lock) == (
        "cannot pickle '_thread.lock' object. It uses the global `LOCK` (of type lock): make it inside the function (a "
        "lock means nothing to another process)"
    )
    assert "global `uses_global_lock` (of type function), of that the global `LOCK` (of type lock)" in why_not(
        uses_the_user
    )
    assert "global `STREAM` (of type generator): make it inside" in why_not(lambda config: next(STREAM))
    local = threading.local()
    assert "variable `local` (of type _local)" in why_not(lambda config: local)
    box = {"a": 1, "deep": [1, Holder(LOCK)]}
    assert (
        "variable `box` (of type dict), of that the entry 'deep' (of type list), of that the entry 1 (of type Holder), "
        "of that the attribute `thing` (of type lock)" in why_not(lambda config: box)
    )
    with socket.socket() as sock:
        assert "argument `s` of the partial (of type socket): connect inside" in why_not(
            functools.partial(lambda config, s: 0, s=sock)
        )
    with open(tmp_path / "log", "w") as file:
        assert "variable `file` (of type TextIOWrapper): open it inside the function" in why_not(lambda config: file)
    assert "object of the method (of type Holder), of that the attribute `thing`" in why_not(
        types.MethodType(lambda self, config: 0, Holder(LOCK))
    )


def test_import_of_main_is_refused() -> None:
    def inside(config):
        import __main__

        return __main__.x

    assert "`import __main__`, which in a trial is another module" in why_not(inside)
    main = sys.modules["__main__"]
    assert "variable `main` (of type module)" in why_not(lambda config: main)


def test_why_loading_failed() -> None:
    assert "it uses 'UserId' (a NoneType) of __main__, which is pickled by its name only" in explain_load_failure(
        "Traceback ...\nAttributeError: Can't get attribute 'UserId' on <module '__main__' from 'x'>\n"
    )
    assert "No module named 'gone'. A fresh process does not find" in explain_load_failure(
        "ModuleNotFoundError: No module named 'gone'"
    )
    assert "ZeroDivisionError: division by zero\nTraceback" in explain_load_failure(
        "Traceback\nZeroDivisionError: division by zero"
    )


def test_the_largest_parts_are_named() -> None:
    small, big = b"1" * 2_000, b"2" * 50_000

    def inner() -> Any:
        return big

    def outer(config):
        return small, inner()

    (first, n), (second, m) = largest_parts(outer, 2)
    assert (first, second) == ("variable `big`", "variable `small`")
    assert 50_000 < n < 51_000
    assert 2_000 < m < 3_000


def load(data: bytes, tmp_path: Path, main: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Enter what was pickled, as a trial does, and return the function."""
    import sthyper._function_trial as trial

    names: dict[str, Any] = {"__name__": "__mp_main__"} if main is None else main
    path = tmp_path / "function.pkl"
    digest = write_private(path, data)
    try:
        enter(names, str(path), digest)
        assert trial._tuned is not None
        return trial._tuned.function, names
    finally:
        trial._tuned = None


def in_main(monkeypatch: pytest.MonkeyPatch, text: str) -> types.ModuleType:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(text, "<user>", "exec"), main.__dict__)
    return main


MAIN = """
import functools
class Outer:
    class Inner:
        pass
class Data:
    pass
class Unused:
    pass
def helper(x):
    return x + 1
@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
data, inner, count = Data(), Outer.Inner(), 0
def f(config):
    global count
    count += 1
    return helper(config["x"]), data, inner, fib(30), count
"""


def test_main_of_the_trial_has_the_names_that_pickle_looks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main = in_main(monkeypatch, MAIN)
    data, needs = pickle_function(TunedFunction(main.f, "f", False))
    assert set(needs.names["__main__"]) == {"Outer", "Data", "helper", "fib", "f"}
    f, names = load(data, tmp_path)
    value, instance, inner, fib, count = f({"x": 1})
    assert (value, fib, count) == (2, 832040, 1)
    assert type(instance) is names["Data"]
    assert type(inner) is names["Outer"].Inner
    assert names["fib"] is f.__globals__["fib"]
    assert names["fib"].cache_parameters() == {"maxsize": 7, "typed": False}
    assert names["fib"].cache_info().hits > 0
    assert names["f"] is f
    assert f({"x": 1})[4] == 2
    assert "Unused" not in names
    assert main.count == 0


def test_modules_that_a_fresh_process_finds_travel_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_module.py").write_text("def f(config): return 1\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lost_module.py").write_text("class K: pass\ndef f(config): return K()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import found_module

    spec = importlib.util.spec_from_file_location("lost_module", tmp_path / "elsewhere" / "lost_module.py")
    assert spec is not None
    assert spec.loader is not None
    lost = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lost_module", lost)
    monkeypatch.delitem(sys.modules, "found_module")
    sys.modules["found_module"] = found_module
    spec.loader.exec_module(lost)

    data, needs = pickle_function(TunedFunction(found_module.f, "f", False))
    assert needs.names == {}
    assert load(data, tmp_path)[0] is found_module.f

    data, needs = pickle_function(TunedFunction(lost.f, "f", False))
    assert set(needs.names["lost_module"]) == {"K", "f"}
    monkeypatch.delitem(sys.modules, "lost_module")
    f, _ = load(data, tmp_path)
    made = f({})
    assert type(made) is sys.modules["lost_module"].K
    assert isinstance(pickle.loads(pickle.dumps(made)), sys.modules["lost_module"].K)
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_imports_in_bodies_are_found() -> None:
    def f(config):
        import json.decoder
        from os import path, sep

        def g():
            import torch

            return torch

        return json, path, sep, g

    assert dict(imports_of(f.__code__)) == {"json.decoder": (), "os": ("path", "sep"), "torch": ()}


def test_the_file_is_checked(tmp_path: Path) -> None:
    data, _ = pickle_function(TunedFunction(lambda config: 1, "f", False))
    path = tmp_path / "a" / "function.pkl"
    digest = write_private(path, data)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["function.pkl"]
    names = {"__name__": "__mp_main__"}
    with pytest.raises(ValueError, match="was changed after the tuner had written it"):
        enter(names, str(path), "0" * 64)
    for mode in (0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(PermissionError, match=f"nobody else can write.*mode 0{mode:o}"):
            enter(names, str(path), digest)
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        enter(names, str(link), digest)
    write_private(path, b"other")  # replaces the file, whatever its mode
    assert path.read_bytes() == b"other"
    assert names == {"__name__": "__mp_main__"}


def test_the_file_of_another_user_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = pickle_function(TunedFunction(lambda config: 1, "f", False))
    path = tmp_path / "function.pkl"
    digest = write_private(path, data)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        enter({"__name__": "__mp_main__"}, str(path), digest)


def test_sources_travel_with_code_that_is_in_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import linecache

    text = "def f(config):\n    return 1 / 0\n"
    monkeypatch.setitem(linecache.cache, "<cell 7>", (len(text), None, text.splitlines(True), "<cell 7>"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<cell 7>", "exec"), names)
    data, _ = pickle_function(TunedFunction(names["f"], "f", False))
    monkeypatch.delitem(linecache.cache, "<cell 7>")
    f, _ = load(data, tmp_path)
    assert linecache.getline("<cell 7>", 2) == "    return 1 / 0\n"
    del linecache.cache["<cell 7>"]
    assert f.__code__.co_filename == "<cell 7>"
