"""How a tuned function wants its configuration, read from its parameters."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sthyper._function_trial import function_name
from sthyper.errors import ConfigSpaceError, closest

__all__ = ["check_function", "defining_function", "takes_keywords"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Annotations that a parameter for the whole configuration cannot have.
_SCALARS = (int, float, str, bool, "int", "float", "str", "bool")


def check_function(function: object) -> None:
    """Raise ``TypeError`` unless ``function`` is something that can be called once for a trial."""
    advice = "tune_function must be a function of the configuration, such as def train(config): ..."
    if isinstance(function, type):
        raise TypeError(f"{advice}; got the class {function.__name__}")
    if not callable(function):
        raise TypeError(f"{advice}; got {function!r}")
    inner = defining_function(function)
    for kind, found in (
        ("a generator function (it contains `yield`)", inspect.isgeneratorfunction(inner)),
        ("a coroutine function (`async def`)", inspect.iscoroutinefunction(inner)),
        ("an asynchronous generator", inspect.isasyncgenfunction(inner)),
    ):
        if found:
            raise TypeError(f"{advice}; {function_name(function)} is {kind}")


def defining_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that holds the code: inside ``partial``, decorators and objects that can be called."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and inspect.isroutine(type(function).__call__):
            return type(function).__call__
        else:
            return function


def takes_keywords(function: Callable[..., Any], config_space: Mapping[str, Any]) -> bool:
    """Return whether a function takes the configuration as keyword arguments, ``False`` for one dictionary.

    A function whose parameters are named like keys of the space gets each of them as a keyword argument; one with
    ``**kwargs`` alone gets all. A function with one parameter to fill that is not named like a key, usually
    ``config``, gets the dictionary.

    Args:
        function: The tuned function.
        config_space: The configuration space, constants included.

    Raises:
        ConfigSpaceError: If parameters and space do not fit: a parameter without default that the space lacks, or a
            key of the space that the function does not accept.
    """
    name = function_name(function)
    keys = list(config_space)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return False  # written in C without a signature
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p.name for p in parameters if p.kind in _NAMED]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(n in config_space for n in named):
        whole = _takes_dictionary(parameters, required, accepts_any)
        if whole is not None:
            _check_not_mistaken(name, whole, keys)
            return False
    for p in required:
        if p.kind is p.POSITIONAL_ONLY:
            raise ConfigSpaceError(
                f"tune_function {name}: {p.name!r} cannot be given by name (it stands before `/`); take one "
                "dictionary, def train(config), or parameters named like the hyperparameters"
            )
        if p.name not in config_space:
            raise ConfigSpaceError(
                f"tune_function {name} needs {p.name!r}, which config_space {keys} does not have"
                f"{closest(p.name, keys)}; add it to config_space (a constant will do), give it a default, bind it by "
                f"functools.partial, or take one dictionary: def {name if name.isidentifier() else 'train'}(config)"
            )
    for key in () if accepts_any else keys:
        if key not in named:
            raise ConfigSpaceError(
                f"config_space has {key!r}, which tune_function {name} does not accept: its parameters are "
                f"{named}{closest(key, named)}; add the parameter, **kwargs, or take one dictionary"
            )
    return True


def _takes_dictionary(
    parameters: list[inspect.Parameter], required: list[inspect.Parameter], accepts_any: bool
) -> inspect.Parameter | None:
    """Return the parameter that takes the whole configuration, if there is one."""
    first = parameters[0] if parameters else None
    if first is None:
        return None
    if first.kind in _POSITIONAL:
        return first if required in ([], [first]) else None
    return first if first.kind is first.VAR_POSITIONAL and not accepts_any and not required else None


def _check_not_mistaken(name: str, whole: inspect.Parameter, keys: list[str]) -> None:
    alike = difflib.get_close_matches(whole.name, keys, n=1, cutoff=0.75)
    if whole.annotation in _SCALARS or (alike and not whole.name.startswith("conf")):
        raise ConfigSpaceError(
            f"tune_function {name}: its parameter {whole.name!r} is not in config_space {keys}"
            f"{closest(whole.name, keys)}; a parameter that takes the whole configuration is a dictionary and usually "
            "called config"
        )
