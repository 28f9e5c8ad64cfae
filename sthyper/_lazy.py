"""Names of a package that are imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sthyper.errors import closest

__all__ = ["lazy_names"]


def lazy_names(
    package: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose modules are imported when a name of theirs is read.

    Args:
        package: The package's ``globals()``, with ``__all__``.
        homes: Name -> module below the package that defines it.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package['__name__']!r} has no attribute {name!r}{closest(name, package['__all__'])}"
            )
        module = importlib.import_module(f"{package['__name__']}.{homes[name]}")
        # All of its names: one that is called like the module would be the module from now on.
        package.update((other, getattr(module, other)) for other, home in homes.items() if home == homes[name])
        return package[name]

    def names() -> list[str]:
        return sorted(package["__all__"])

    return attribute, names
