"""Writes a tuned function to a file that the processes of its trials load.

What can be imported in a fresh process travels by its name; what cannot (``__main__``, a notebook, a test module, local
functions) by value, by cloudpickle, with all that it uses.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import io
import linecache
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from sthyper._function_trial import TunedFunction, make_cached, set_cached
from sthyper.backend._preload import find_top, is_installed

__all__ = ["FunctionPickler", "Needs", "NotShippable", "by_value_where_needed", "pickle_function", "write_private"]


class NotShippable(Exception):
    """What a function uses makes no sense in another process."""


@dataclass
class Needs:
    """What a function was seen to use while it was pickled.

    Attributes:
        modules: Module that it imports, or from which it takes functions and classes -> names from it.
        identifiers: Names in its code.
        sources: File name -> text of the code that travels by value.
        names: Module -> name -> class or function of it that travels by value.
    """

    modules: dict[str, set[str]] = field(default_factory=dict)
    identifiers: set[str] = field(default_factory=set)
    sources: dict[str, str] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextlib.contextmanager
def by_value_where_needed() -> Iterator[Callable[[str], bool]]:
    """Yield a function that tells whether objects of a module travel by value; cloudpickle heeds its answers."""
    registered: list[types.ModuleType] = []
    known: dict[str, bool] = {"__main__": True}

    def by_value(name: str) -> bool:
        if name not in known:
            module = sys.modules.get(name)
            known[name] = module is None or not _is_importable(name)
            if known[name] and module is not None and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        return known[name]

    try:
        yield by_value
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


class FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles functions and notes what they need.

    Args:
        file: Where to write.
        by_value: See :func:`by_value_where_needed`.
    """

    def __init__(self, file: Any, by_value: Callable[[str], bool]) -> None:
        super().__init__(file)
        self.needs = Needs()
        self._by_value = by_value

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.ModuleType):
            if obj is sys.modules["__main__"]:
                raise NotShippable("the module __main__, which in a trial is another one")
            self.needs.modules.setdefault(obj.__name__, set())
            return NotImplemented
        cached = isinstance(obj, functools._lru_cache_wrapper)
        if not cached and not isinstance(obj, type | types.FunctionType):
            return NotImplemented
        home = _home(obj)
        by_value = home is None or self._by_value(home.__name__)
        if by_value:
            if home is not None:  # pickle in the trial will look it up by this name
                top = obj.__qualname__.partition(".")[0]
                self.needs.names.setdefault(home.__name__, {})[top] = getattr(home, top)
            if isinstance(obj, types.FunctionType):
                self._note_code(obj.__code__)
        else:
            assert home is not None
            self.needs.modules.setdefault(home.__name__, set())
        if not cached:
            return super().reducer_override(obj)
        return _reduce_cached(obj) if by_value else NotImplemented

    def _note_code(self, code: types.CodeType) -> None:
        if code.co_filename not in self.needs.sources:
            self.needs.sources[code.co_filename] = "".join(linecache.getlines(code.co_filename))
        for module, names in imports_of(code):
            if module == "__main__":
                raise NotShippable("`import __main__`, which in a trial is another module")
            self.needs.modules.setdefault(module, set()).update(names)
        for inner in walk_code(code):
            self.needs.identifiers.update(inner.co_names)


def pickle_function(tuned: TunedFunction) -> tuple[bytes, Needs]:
    """Return the content of the file that :func:`sthyper._function_trial.enter` loads, and what the function needs.

    Raises:
        Exception: Whatever pickling raises.
    """
    buffer = io.BytesIO()
    with by_value_where_needed() as by_value:
        pickler = FunctionPickler(buffer, by_value)
        pickler.dump(tuned.function)
        # The same pickler: these are the very objects that the function uses.
        sent: set[tuple[str, str]] = set()
        while True:
            new: dict[str, dict[str, Any]] = {}
            for module, names in pickler.needs.names.items():
                for name in [n for n in names if (module, n) not in sent]:
                    new.setdefault(module, {})[name] = names[name]
                    sent.add((module, name))
            pickler.dump(new)
            if not new:
                break
    needs = pickler.needs
    about = {
        "name": tuned.name,
        "by_keyword": tuned.by_keyword,
        "sources": {name: text for name, text in needs.sources.items() if text},
        "folders": _first_folders(),
    }
    return pickle.dumps(about) + buffer.getvalue(), needs


def write_private(path: Path, data: bytes) -> str:
    """Write a file that only this user can read, and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in path.parent.glob(f"{path.name}.*.tmp"):  # by a tuner that was killed
        left.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    return hashlib.sha256(data).hexdigest()


def walk_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and those of the functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from walk_code(constant)


def imports_of(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield module and names of the import statements in a code object; relative imports are left out."""
    for inner in walk_code(code):
        constants: list[Any] = []
        for instruction in dis.get_instructions(inner):
            if instruction.opname == "IMPORT_NAME":
                level, names = (0, None) if len(constants) < 2 else constants[-2:]
                if not level:
                    yield instruction.argval, names or ()
            if instruction.opname.startswith("LOAD_"):
                constants.append(instruction.argval)


def _home(obj: Any) -> types.ModuleType | None:
    """Return the module in which an object is found by its qualified name, ``None`` if there is none."""
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    found: Any = module
    for part in getattr(obj, "__qualname__", "?").split("."):
        found = getattr(found, part, None)
    return module if found is obj else None


def _reduce_cached(cached: Any) -> tuple[Any, ...]:
    # Its function is the state, not an argument: a recursive one refers to the cache.
    return make_cached, (cached.cache_parameters(),), cached.__wrapped__, None, None, set_cached


def _is_importable(name: str) -> bool:
    """Return whether a fresh process that has this one's ``sys.path`` finds the same module by its name."""
    if is_installed(name):
        return True
    parent, _, _ = name.rpartition(".")
    if parent:
        locations = getattr(sys.modules.get(parent), "__path__", None)
        if locations is None or not _is_importable(parent):
            return False
        spec = PathFinder.find_spec(name, list(locations))
    else:
        spec = find_top(name)
    if spec is None:
        return False
    file = getattr(sys.modules[name], "__file__", None)
    if file is None:  # a namespace package, or one that is built in
        return spec.origin in (None, "built-in", "frozen")
    return spec.origin is not None and os.path.realpath(spec.origin) == os.path.realpath(file)


def _first_folders() -> list[str]:
    """Return the folders in which modules are looked for before the standard library."""
    standard = os.path.dirname(os.path.realpath(os.__file__))
    folders = []
    for entry in sys.path:
        folder = os.path.realpath(entry or os.getcwd())
        if folder == standard or folder.endswith(".zip"):
            break
        if os.path.isdir(folder):
            folders.append(folder)
    return folders
