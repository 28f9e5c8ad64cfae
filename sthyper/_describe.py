"""Objects of sthyper as JSON: class and constructor arguments, to make them again without unpickling anything."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from sthyper.config_space import Domain, from_dict, to_dict

__all__ = ["Described", "NotDescribable", "change_arguments", "describe", "fingerprint", "rebuild"]

_CLASS = "st_class"
_DOMAIN = "st_domain"
_PATH = "st_path"
_TUPLE = "st_tuple"
_OWN = "sthyper."


class NotDescribable(ValueError):
    """An object cannot be made again from JSON."""


class Described:
    """Keeps the arguments that an object was constructed with; a base class."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments of the outermost constructor."""
        self = super().__new__(cls)
        self._arguments = (args, kwargs)
        return self

    def _described_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments to note, where they are not the given ones."""
        return arguments


def describe(value: object) -> Any:
    """Return a value as JSON.

    Args:
        value: A plain value, a domain, a path, a container of such, or an object of a class of sthyper.

    Raises:
        NotDescribable: If it is anything else, such as a function or an object of a user's class.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Domain):
        return {_DOMAIN: to_dict(value)}
    if isinstance(value, Path):
        return {_PATH: str(value)}
    if isinstance(value, tuple):
        return {_TUPLE: [describe(item) for item in value]}
    if isinstance(value, list):
        return [describe(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: describe(item) for key, item in value.items()}
    cls = type(value)
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not cls.__module__.startswith(_OWN):
        own = getattr(value, "__qualname__", None)
        raise NotDescribable(f"{own} ({cls.__name__})" if own else f"an object of {cls.__module__}.{cls.__qualname__}")
    if isinstance(value, Described):
        arguments = _arguments(value)
    elif dataclasses.is_dataclass(value):
        arguments = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    else:
        raise NotDescribable(f"an object of {cls.__module__}.{cls.__qualname__}")
    return {_CLASS: name, "arguments": {key: describe(item) for key, item in arguments.items()}}


def fingerprint(value: object) -> Any:
    """Return JSON that is equal for objects that were made alike, whatever their class; like :func:`describe`.

    Of what says nothing about itself, such as functions, only the name counts.
    """
    if isinstance(value, Described):
        arguments = {name: fingerprint(item) for name, item in _arguments(value).items()}
        return {_CLASS: f"{type(value).__module__}:{type(value).__qualname__}", "arguments": arguments}
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): fingerprint(item) for key, item in value.items()}
    try:
        return describe(value)
    except NotDescribable as error:
        return str(error)


def change_arguments(description: Any, change: Callable[[type, dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a description whose objects are made with other arguments.

    Args:
        description: What :func:`describe` returned.
        change: Takes the class of an object and its arguments, with the classes of those that are objects themselves,
            and returns the arguments that are others now.

    Raises:
        NotDescribable: If the description names what is no class of sthyper.
    """
    if isinstance(description, list):
        return [change_arguments(item, change) for item in description]
    if not isinstance(description, dict):
        return description
    if _CLASS not in description:
        return {key: change_arguments(item, change) for key, item in description.items()}
    arguments = {key: change_arguments(item, change) for key, item in description["arguments"].items()}
    others = change(_class(description[_CLASS]), {key: _plain(item) for key, item in arguments.items()})
    changed = {key: describe(item) for key, item in others.items()}
    return {_CLASS: description[_CLASS], "arguments": arguments | changed}


def _plain(description: Any) -> Any:
    """Return the value of a description, in place of objects their class."""
    if isinstance(description, list):
        return [_plain(item) for item in description]
    if not isinstance(description, dict) or _DOMAIN in description:
        return rebuild(description)
    if _CLASS in description:
        return _class(description[_CLASS])
    if _PATH in description or _TUPLE in description:
        return rebuild(description)
    return {key: _plain(item) for key, item in description.items()}


def _arguments(value: Described) -> dict[str, Any]:
    cls = type(value)
    args, kwargs = value._arguments
    signature = inspect.signature(cls)
    arguments = value._described_arguments(dict(signature.bind(*args, **kwargs).arguments))
    # A seed that was drawn is the seed.
    if "random_seed" in signature.parameters and arguments.get("random_seed") is None:
        arguments["random_seed"] = getattr(value, "random_seed", None)
    return arguments


def rebuild(description: Any) -> Any:
    """Return what :func:`describe` described; only classes of sthyper are made.

    Raises:
        NotDescribable: If the description names anything else, or its arguments do not fit.
    """
    if isinstance(description, list):
        return [rebuild(item) for item in description]
    if not isinstance(description, dict):
        return description
    if _DOMAIN in description:
        return from_dict(description[_DOMAIN])
    if _PATH in description:
        return Path(description[_PATH])
    if _TUPLE in description:
        return tuple(rebuild(item) for item in description[_TUPLE])
    if _CLASS not in description:
        return {key: rebuild(item) for key, item in description.items()}
    name = description[_CLASS]
    cls: Any = _class(name)
    arguments = {key: rebuild(item) for key, item in description["arguments"].items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise NotDescribable(f"{name} of this version of sthyper takes other arguments ({error})") from None


def _class(name: str) -> type:
    module, _, path = name.partition(":")
    if not module.startswith(_OWN):
        raise NotDescribable(f"{name} is no class of sthyper")
    try:
        cls: Any = importlib.import_module(module)
        for part in path.split("."):
            cls = getattr(cls, part)
    except (ImportError, AttributeError) as error:
        raise NotDescribable(f"{name} is not in this version of sthyper ({error})") from None
    if not isinstance(cls, type) or not (issubclass(cls, Described) or dataclasses.is_dataclass(cls)):
        raise NotDescribable(f"{name} is no class that can be made from a description")
    return cls
