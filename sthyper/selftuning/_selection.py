"""Which modules of a model are meant: by type, by name, or by predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from sthyper.errors import closest

__all__ = ["Selection", "Selector", "by_pattern", "match"]

T = TypeVar("T")
Selector = type[nn.Module] | str | Callable[[str, nn.Module], bool]


def match(pattern: str, name: str) -> bool:
    """Return whether a pattern means a module: its path, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def check_patterns(argument: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise a ValueError if a pattern means no module."""
    names = list(names)
    for pattern in patterns:
        if not any(match(pattern, name) for name in names):
            raise ValueError(f"{argument}: no module has the name {pattern!r}{closest(pattern, names)}")


class Selection:
    """Modules by type, pattern of their path, or predicate.

    Args:
        argument: Name of the argument, for messages.
        selectors: A type, a pattern as in :mod:`fnmatch` (which also means all within the module), a function of path
            and module, or several of these.
        model: The model, in which patterns must mean something.

    Raises:
        TypeError: If a selector is something else.
        ValueError: If a pattern means nothing.
    """

    def __init__(self, argument: str, selectors: Selector | Iterable[Selector], model: nn.Module) -> None:
        if isinstance(selectors, (str, type)) or callable(selectors):
            selectors = (selectors,)
        self.types: list[type[nn.Module]] = []
        self.patterns: list[str] = []
        self.predicates: list[Callable[[str, nn.Module], bool]] = []
        for selector in selectors:
            if isinstance(selector, str):
                self.patterns.append(selector)
            elif isinstance(selector, type):
                if not issubclass(selector, nn.Module):
                    raise TypeError(f"{argument}: types must be those of modules, got {selector!r}")
                self.types.append(selector)
            elif callable(selector):
                self.predicates.append(selector)
            else:
                raise TypeError(
                    f"{argument} must hold types, patterns of names, or functions of name and module, got {selector!r}"
                )
        check_patterns(argument, self.patterns, (name for name, _ in model.named_modules()))

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Return whether a module is meant."""
        return (
            isinstance(module, tuple(self.types))
            or any(match(pattern, name) for pattern in self.patterns)
            or any(predicate(name, module) for predicate in self.predicates)
        )


def by_pattern(patterns: Mapping[str, T], name: str) -> T | None:
    """Return what the first pattern that means a module says; ``None`` if none does."""
    return next((value for pattern, value in patterns.items() if match(pattern, name)), None)
