"""What a training script imports, read from its source: nothing of it is executed."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

__all__ = ["find_top", "is_installed", "loading_message", "loads_names", "scan_imports", "scan_names"]

# Modules of the standard library that do something when they are imported.
_NEVER = frozenset({"__main__", "antigravity", "idlelib", "test", "this", "turtledemo"})
_OWN = "sthyper"


def scan_imports(entry_point: str | Path, package: str = "") -> list[str]:
    """Return the installed modules that a script imports, directly or by local modules, in the order of appearance.

    Import statements anywhere in the files count, those in functions included; only what stands under
    ``if TYPE_CHECKING:`` does not. Local modules are those of the script's folder and of entries of ``sys.path``
    outside site-packages, editable installs among them: their imports are followed, they themselves are not returned.

    Args:
        entry_point: The script. A file that cannot be read or parsed contributes nothing.
        package: Package that the file belongs to, if it is no script.

    Returns:
        Dotted names of modules of the standard library and under site-packages, each once, parents before children.
    """
    found: dict[str, None] = {}
    for file in _local_files(entry_point, package):
        for name in file.installed:
            found[name] = None
    return list(found)


def scan_names(module: str, names: Sequence[str] = ()) -> list[str]:
    """Return what :func:`scan_imports` returns for a file that says ``from module import names``.

    Args:
        module: Dotted name.
        names: What is imported from it; those that are modules count.
    """
    top = module.partition(".")[0]
    if top == _OWN:
        return [module, "sthyper.report"]
    found: dict[str, None] = {}
    specs = _resolve(_Import(module, tuple(names)), ())
    kind = _kind(specs[0], top) if specs else None
    for spec in specs if top not in _NEVER else ():
        if kind == "installed":
            found[spec.name] = None
        elif spec.origin and spec.origin.endswith(".py"):
            is_package = spec.submodule_search_locations is not None
            found |= dict.fromkeys(scan_imports(spec.origin, spec.name if is_package else spec.parent or ""))
    return list(found)


def loads_names(entry_point: str | Path, names: set[str]) -> bool:
    """Return whether a script, or a local module that it imports, uses one of the given identifiers.

    An identifier is used if it is a name, an attribute, an argument, something imported, or, with or without leading
    dashes, the whole of a string (``parser.add_argument("--name")``).

    Args:
        entry_point: The script.
        names: Identifiers to look for.
    """
    return any(
        not names.isdisjoint(_identifiers(node)) for file in _local_files(entry_point) for node in ast.walk(file.tree)
    )


def loading_message(modules: Sequence[str]) -> str | None:
    """Return what to tell somebody who waits while modules are preloaded, ``None`` if there is nothing to tell."""
    tops = dict.fromkeys(name.partition(".")[0] for name in modules)
    packages = [top for top in tops if top not in sys.stdlib_module_names and top != _OWN]
    return f"loading {', '.join(packages)} once for all trials ..." if packages else None


def is_installed(module: str) -> bool:
    """Return whether a module belongs to the standard library, to site-packages (not editable), or to sthyper.

    Args:
        module: Dotted name; only its first part is looked at, nothing is imported.
    """
    top = module.partition(".")[0]
    return top == _OWN or (top not in _NEVER and _kind(find_top(top), top) == "installed")


class _File(NamedTuple):
    tree: ast.Module
    installed: list[str]


class _Import(NamedTuple):
    """``import module`` or ``from module import names``."""

    module: str
    names: tuple[str, ...]


def _local_files(entry_point: str | Path, package: str = "") -> Iterator[_File]:
    """Yield the script and the local modules that it imports, each once."""
    script = Path(entry_point).absolute()
    folder = [os.path.realpath(script.parent), os.path.dirname(os.path.realpath(script))]
    todo: list[tuple[str, str]] = [(str(script), package)]
    seen = {os.path.realpath(script)}
    for path, home in todo:  # grows while it is walked
        tree = _parse(path)
        if tree is None:
            continue
        installed: list[str] = []
        for statement in _imports(tree, home):
            top = statement.module.partition(".")[0]
            if top == _OWN:
                # Its names are loaded on first use; the Reporter is what scripts want of it.
                installed += [statement.module, "sthyper.report"]
                continue
            specs = _resolve(statement, folder)
            kind = _kind(specs[0], top) if specs else None
            if kind == "installed" and top not in _NEVER:
                installed += [spec.name for spec in specs]
            elif kind == "local":
                for spec in specs:
                    origin = spec.origin
                    if origin and origin.endswith(".py") and os.path.realpath(origin) not in seen:
                        seen.add(os.path.realpath(origin))
                        is_package = spec.submodule_search_locations is not None
                        todo.append((origin, spec.name if is_package else spec.name.rpartition(".")[0]))
        yield _File(tree, installed)


def _parse(path: str) -> ast.Module | None:
    try:
        with open(path, "rb") as file:
            return ast.parse(file.read(), path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _imports(tree: ast.Module, package: str) -> Iterator[_Import]:
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".") if package else []
                if node.level > len(parents):
                    continue  # fails by hand, too
                module = ".".join([*parents[: len(parents) - node.level + 1], *([module] if module else [])])
            yield _Import(module, tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            nodes[:0] = node.orelse
        else:
            nodes[:0] = ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _resolve(statement: _Import, folder: Sequence[str]) -> list[ModuleSpec]:
    """Return the specs of all modules that an import statement loads, as far as files tell, parents first."""
    top, *rest = statement.module.split(".")
    spec = find_top(top, folder)
    if spec is None:
        return []
    specs = [spec]
    for part in rest:
        spec = _find_below(specs[-1], part)
        if spec is None:
            return specs  # made at run time, as os.path is
        specs.append(spec)
    names = (_find_below(specs[-1], name) for name in statement.names)
    return specs + [spec for spec in names if spec is not None]


def find_top(name: str, folder: Sequence[str] = ()) -> ModuleSpec | None:
    """Return the spec of a module without dots, first of all from ``folder``; nothing is imported."""
    if name in sys.builtin_module_names:
        return ModuleSpec(name, None, origin="built-in")
    try:
        spec = PathFinder.find_spec(name, list(folder)) if folder else None
        if spec is not None and spec.origin is not None:
            return spec
        for finder in sys.meta_path:  # those of editable installs among them
            found = finder.find_spec(name, None)
            if found is not None:
                return found
    except (ImportError, ValueError, AttributeError):
        return None
    return spec


def _find_below(parent: ModuleSpec, name: str) -> ModuleSpec | None:
    # With the parent's locations given nothing is imported, unlike in importlib.util.find_spec.
    locations = parent.submodule_search_locations
    if locations is None or name == "*":
        return None
    return PathFinder.find_spec(f"{parent.name}.{name}", list(locations))


def _kind(spec: ModuleSpec | None, top: str) -> str | None:
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    if any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places):
        return "installed"
    if spec.origin in ("built-in", "frozen"):
        return "installed"
    standard = os.path.dirname(os.path.realpath(os.__file__)) + os.sep
    if top in sys.stdlib_module_names and any(os.path.realpath(place).startswith(standard) for place in places):
        return "installed"
    return "local"


def _identifiers(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            yield name
        case ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.alias(name=name, asname=asname):
            yield from name.split(".")
            if asname:
                yield asname
        case ast.Constant(value=str(text)):
            yield text.lstrip("-")
