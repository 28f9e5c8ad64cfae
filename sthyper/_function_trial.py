"""The trial's side of a tuned function: loads it, calls it, reports what it returns.

``run_trial.py`` in a trial's folder, which ``PythonBackend`` writes, calls :func:`enter` and :func:`run`. Processes
that the function starts (spawn, forkserver, Lightning's ``ddp``) read that script again, and so find in their
``__main__`` the classes and functions of the user's. Imports neither NumPy nor torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import linecache
import os
import pickle
import stat
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sthyper.report
from sthyper.constants import ENV_TRIAL_DIR, ST_RETURNED
from sthyper.errors import closest
from sthyper.report import Reporter, check_metrics
from sthyper.trial import SchedulerDecision

__all__ = [
    "TunedFunction",
    "enter",
    "final_metrics",
    "function_name",
    "make_cached",
    "run",
    "set_cached",
    "skip_own_frames",
]


@dataclass(frozen=True)
class TunedFunction:
    """A function and how it wants its configuration.

    Args:
        function: The function.
        name: What to call it in messages.
        by_keyword: Whether the configuration is passed as keyword arguments; otherwise as one dictionary.
    """

    function: Callable[..., Any]
    name: str
    by_keyword: bool

    def call(self) -> None:
        """Call the function with the trial's configuration and report what it returns.

        Raises:
            TypeError: If it has not reported and returns neither ``None`` nor a number nor a dictionary.
            ValueError: If it has not reported and returns a dictionary without the metric.
        """
        # For a Reporter that is older than the trial: one that the function takes from its surroundings.
        sthyper.report._trial_start = time.monotonic()
        sent = sthyper.report._sent
        reporter = Reporter(on_stop="return")
        config = reporter.config
        value = self.function(**config) if self.by_keyword else self.function(config)
        if value is None or not _is_first_rank():
            return
        problem: Exception | None = None
        metrics: dict[str, Any] = {}
        try:
            metrics = final_metrics(value, reporter.objective, self.name)
        except (TypeError, ValueError) as error:
            problem = error
        if not reporter.connected:
            if problem is not None:
                raise problem
            reporter(**metrics)
            return
        # Only the backend knows whether another process of this trial has reported; then the value does not matter.
        has_reported = sthyper.report._sent > sent
        decision = reporter._deliver({**metrics, ST_RETURNED: problem is None})
        if problem is not None and not has_reported and decision == SchedulerDecision.STOP:
            raise problem


_tuned: TunedFunction | None = None


def enter(main: dict[str, Any], path: str, digest: str) -> None:
    """Load the tuned function and put the classes and functions that it uses where pickle looks for them.

    Args:
        main: Names of this process's ``__main__`` (or ``__mp_main__``).
        path: The file, written by ``PythonBackend``; must belong to this user and be writable by nobody else.
        digest: SHA-256 of the file.

    Raises:
        PermissionError: If somebody else could have written the file.
        ValueError: If it is not what was written.
    """
    global _tuned
    if ENV_TRIAL_DIR not in os.environ and main.get("__name__") == "__main__":
        os.environ[ENV_TRIAL_DIR] = os.path.dirname(os.path.abspath(main["__file__"]))  # run again by hand
    stream = io.BytesIO(_read(path, digest))
    about: dict[str, Any] = pickle.load(stream)
    if (server := sys.modules.get("_sthyper_trial_process")) is not None:
        for folder in about["folders"]:
            if os.path.isdir(folder):
                server.forget_shadowed(folder)
    for name, text in about["sources"].items():
        # Cells of a notebook are in no file, and the user's script may have been edited since.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    unpickler = pickle.Unpickler(stream)
    _tuned = TunedFunction(unpickler.load(), about["name"], about["by_keyword"])
    while homes := unpickler.load():
        for module, names in homes.items():
            (main if module == "__main__" else _namespace(module)).update(names)


def run() -> None:
    """Call the function that :func:`enter` has loaded; an exception is shown from the user's first frame on."""
    assert _tuned is not None
    if "_sthyper_trial_process" not in sys.modules:  # no fork of the warm server, which seeds its forks
        Reporter().seed_everything()
    try:
        _tuned.call()
    except Exception as error:
        trace = error.__traceback__ = skip_own_frames(error.__traceback__)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        sys.excepthook(type(error), error, trace)
        raise SystemExit(1) from None


def skip_own_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Return what is left of a traceback without the frames of this file at its start."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def final_metrics(value: object, objective: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return the final report that a value of a tuned function stands for.

    Args:
        value: A number (also of NumPy, or a tensor, with one element), or a dictionary that holds the metric.
        objective: ``Reporter().objective``; without one a number is called ``"value"``.
        name: Name of the function, for messages.

    Raises:
        TypeError: If it is something else.
        ValueError: If the dictionary lacks the metric.
    """
    objective = objective or {}
    metric = objective.get("metric", "value")
    metrics: dict[str, Any]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name} returned a dictionary with the key {key!r}; names of metrics are strings")
        if metric not in value:
            raise ValueError(
                f"{name} returned a dictionary without the metric {metric!r}, only {list(value)}"
                f"{closest(metric, value)}"
                + (f"; return it, or set metric={next(iter(value))!r} where the experiment is set up" if value else "")
            )
        metrics = check_metrics(value)
    else:
        metrics = {metric: _number(value, metric, name)}
    resource, maximum = objective.get("resource_attr"), objective.get("max_resource")
    if resource is not None and maximum is not None:
        metrics.setdefault(resource, maximum)
    return metrics


def function_name(function: object) -> str:
    """Return what to call a function: its name, that of the function in a ``partial``, or of an object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


def make_cached(parameters: dict[str, Any]) -> Any:
    """Return a new ``lru_cache`` that still lacks its function: the first half of unpickling one."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return cached.__wrapped__(*args, **kwargs)

    cached: Any = functools.lru_cache(**parameters)(call)
    return cached


def set_cached(cached: Any, function: Callable[..., Any]) -> None:
    """Give an ``lru_cache`` its function: the second half."""
    functools.update_wrapper(cached, function)


def _number(value: object, metric: str, name: str) -> float | int:
    number: object = None
    with contextlib.suppress(TypeError, ValueError):
        number = check_metrics({metric: value})[metric]
    if isinstance(number, bool) or not isinstance(number, int | float):
        shown = " ".join(repr(value).split())
        raise TypeError(
            f"{name} returned {shown if len(shown) <= 80 else shown[:77] + '...'} of type {type(value).__name__}; "
            f"return a number, or a dictionary that holds the metric {metric!r}, or report by Reporter()"
        )
    return number


def _is_first_rank() -> bool:
    # Lightning's ddp calls the function again in each of its processes; torchrun sets RANK.
    return all((os.environ.get(variable) or "0") == "0" for variable in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def _namespace(module: str) -> dict[str, Any]:
    """Return the names of a module that no file of the trial's has: its functions travelled with the tuned one."""
    if module not in sys.modules:
        sys.modules[module] = types.ModuleType(module)
    return vars(sys.modules[module])


def _read(path: str, digest: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        info = os.fstat(file.fileno())
        mode = stat.S_IMODE(info.st_mode)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(
                f"{path} is not loaded: it must be a file of user {os.geteuid()} that nobody else can write, it "
                f"belongs to user {info.st_uid} and has mode {mode:04o}; choose an experiment folder (STHYPER_FOLDER) "
                "on a file system that keeps permissions"
            )
        data = file.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} is not loaded: it was changed after the tuner had written it")
    return data
