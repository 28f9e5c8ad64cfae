"""Says what keeps a function from being sent to another process, and what makes it large."""

from __future__ import annotations

import dis
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sthyper.backend._function_pickle import FunctionPickler, by_value_where_needed, walk_code

__all__ = ["explain_load_failure", "explain_pickle_failure", "largest_parts"]

_DEPTH = 8
_ITEMS = 1000
_ADVICE = {
    "generator": "make it inside the function",
    "socket": "connect inside the function",
    "_local": "make it inside the function (each process has its own)",
    "lock": "make it inside the function (a lock means nothing to another process)",
    "RLock": "make it inside the function (a lock means nothing to another process)",
    "TextIOWrapper": "open it inside the function",
    "BufferedWriter": "open it inside the function",
    "BufferedReader": "open it inside the function",
    "BufferedRandom": "open it inside the function",
    "FileIO": "open it inside the function",
}


def explain_pickle_failure(function: object, error: BaseException) -> str:
    """Return what of a function cannot be pickled, how the function comes by it, and what to do.

    Args:
        function: The function.
        error: What pickling it raised.
    """
    with by_value_where_needed() as by_value:
        path, culprit = _find(function, by_value)
    reason = " ".join(str(error).split()) or type(error).__name__
    if not path:
        return f"{reason}. Make what it needs inside the function, or take it out of what the function uses"
    advice = _ADVICE.get(type(culprit).__name__, "make it inside the function, or pass what it is made from")
    return f"{reason}. It uses the {', of that the '.join(path)}: {advice}"


def explain_load_failure(tail: str) -> str:
    """Return what went wrong when a process of a trial loaded the function, given the end of its stderr."""
    lines = [line for line in tail.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "the process died without a message"
    if found := re.match(r"AttributeError: Can't get attribute '([^']+)' on <module '__main__'", last):
        name = found[1]
        kind = type(getattr(sys.modules["__main__"], name, None)).__name__
        return (
            f"it uses {name!r} (a {kind}) of __main__, which is pickled by its name only, and a trial has a __main__ "
            "of its own; define it in a module that the function imports, or inside the function"
        )
    if last.startswith("ModuleNotFoundError"):
        return (
            f"{last}. A fresh process does not find that module with this process's sys.path; put it beside the script "
            "or on PYTHONPATH, or import it inside the function after extending sys.path"
        )
    return f"loading it in a trial's process failed: {last}" + (f"\n{tail}" if len(lines) > 1 else "")


def largest_parts(function: object, count: int = 3) -> list[tuple[str, int]]:
    """Return the largest things that travel with a function, with their pickled bytes, largest first."""
    with by_value_where_needed() as by_value:
        parts = _sizes(function, by_value, 2)
    return sorted(parts, key=lambda part: -part[1])[:count]


def _sizes(value: object, by_value: Callable[[str], bool], depth: int) -> list[tuple[str, int]]:
    found = []
    for how, part in _captured(value, by_value):
        size = _size(part, by_value)
        if isinstance(part, types.FunctionType) and depth:
            found += _sizes(part, by_value, depth - 1)  # what it uses is large, not its code
        elif isinstance(size, int):
            found.append((how, size))
    return list(dict(found).items())


def _find(value: object, by_value: Callable[[str], bool]) -> tuple[list[str], object]:
    """Return the way from a function to the thing inside it that cannot be pickled, and that thing."""
    path: list[str] = []
    seen = {id(value)}
    while len(path) < _DEPTH:
        for how, part in _captured(value, by_value):
            if id(part) not in seen and not isinstance(_size(part, by_value), int):
                seen.add(id(part))
                path.append(f"{how} (of type {type(part).__name__})")
                value = part
                break
        else:
            break
    return path, value


def _size(value: object, by_value: Callable[[str], bool]) -> int | Exception:
    sink = _Counter()
    try:
        FunctionPickler(sink, by_value).dump(value)
    except Exception as error:
        return error
    return sink.size


class _Counter:
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.size += n
        return n


def _captured(value: object, by_value: Callable[[str], bool]) -> Iterator[tuple[str, object]]:
    """Yield how and what a thing holds of other things that would be pickled with it."""
    if isinstance(value, functools.partial):
        yield "function of the partial", value.func
        yield from ((f"argument {n} of the partial", part) for n, part in enumerate(value.args))
        yield from ((f"argument `{name}` of the partial", part) for name, part in value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield "object of the method", value.__self__
        yield "function of the method", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _captured_by_function(value)
    elif isinstance(value, type):
        if by_value(value.__module__):
            yield from ((f"attribute `{name}`", part) for name, part in vars(value).items())
    elif isinstance(value, Mapping):
        items = list(value.items())[:_ITEMS]
        yield from ((f"entry {key!r}", part) for key, part in items)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"entry {n}", part) for n, part in enumerate(list(value)[:_ITEMS]))
    else:
        if by_value(type(value).__module__):
            yield "class", type(value)
        yield from ((f"attribute `{name}`", part) for name, part in getattr(value, "__dict__", {}).items())


def _captured_by_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"variable `{name}`", cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    names = {
        instruction.argval
        for code in walk_code(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME")
    }
    yield from ((f"global `{name}`", function.__globals__[name]) for name in sorted(names & set(function.__globals__)))
    for n, part in enumerate(function.__defaults__ or ()):
        yield f"default of argument {n}", part
    for name, part in (function.__kwdefaults__ or {}).items():
        yield f"default of `{name}`", part
    yield from ((f"attribute `{name}`", part) for name, part in vars(function).items())
