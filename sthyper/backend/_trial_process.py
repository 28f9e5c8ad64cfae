"""What a child of the fork server does to become a trial: a process of its own, then the script as ``__main__``.

The fork server loads this file by path; it imports nothing of sthyper.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.machinery
import itertools
import os
import random
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Child", "become_program", "become_script", "detach", "forget_shadowed"]

_INTERRUPTED = -signal.SIGINT
_startup_modules: Collection[str] = ()


@dataclass(frozen=True)
class Child:
    """What a child needs to know.

    Args:
        argv: Script and its arguments, or a command line.
        env: The whole environment.
        cwd: Working directory.
        stdout: File that is appended to.
        stderr: File that is appended to.
        seed: Seed of the generators, ``None`` for a fresh one.
        set_threads: Sets the thread budget in the libraries that are loaded.
        startup_modules: Names of the modules that any interpreter has loaded before its first user line.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    seed: int | None
    set_threads: Callable[[], None]
    startup_modules: Collection[str]


def detach(child: Child, handlers: Mapping[int, Any]) -> None:
    """Leave the server: its signal handlers, process group, standard streams and working directory.

    Signals must be blocked before the fork; they are let through here, once the server's handlers are gone and the
    trial's files are there, so that none is lost.
    """
    signal.set_wakeup_fd(-1)
    # A group, not a session: the kernel schedules each session as one unit (autogroups), and with several of them a
    # core a trial that has slept for an answer waits long to get the core back. The session here has no terminal.
    os.setpgid(0, 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for path, flags, target in (
        (child.stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2),
        (child.stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1),
        (os.devnull, os.O_RDONLY, 0),
    ):
        fd = os.open(path, flags, 0o666)
        os.dup2(fd, target)
        os.close(fd)
    os.chdir(child.cwd)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become_program(child: Child) -> int:
    """Replace this process by the command line; returns only if that fails, with the shell's exit code for it."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that on
    try:
        os.execvpe(child.argv[0], child.argv, child.env)
    except OSError as error:
        print(f"cannot run {child.argv[0]!r}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def become_script(child: Child) -> int:
    """Run the script as a fresh ``__main__`` and return the exit code that the interpreter would have."""
    global _startup_modules
    script, _startup_modules = child.argv[0], child.startup_modules
    _set_environment(child.env)
    _seed(child.seed)
    child.set_threads()
    sys.argv[:] = child.argv
    sys.orig_argv[:] = [sys.executable, *child.argv]
    if (process := sys.modules.get("multiprocessing.process")) is not None:
        process.ORIGINAL_DIR = child.cwd  # type: ignore[attr-defined]
    if not sys.flags.safe_path:
        folder = os.path.dirname(os.path.realpath(script))
        sys.path.insert(0, folder)
        forget_shadowed(folder)
    # A warning that was shown once while the server loaded a library is not lost for the trial.
    with warnings.catch_warnings():
        pass
    getattr(warnings, "onceregistry", {}).clear()
    # Not a copy of all names: to touch thousands of objects that are shared with the server takes 40 ms.
    last_inherited = next(reversed(sys.modules))
    os.environ["STHYPER_PRELOADED_UNTIL"] = last_inherited  # for the Reporter, which tells what came later
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    code = _execute(script, main)
    return _finish(code, main, last_inherited)


# ---- before the first user line ------------------------------------------------------------------------


def _set_environment(env: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(env):
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _seed(seed: int | None) -> None:
    # Without a seed, too: all forks start with the same state of the generators.
    random.seed(seed)
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed(None if seed is None else seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(int.from_bytes(os.urandom(7), "big") if seed is None else seed)


def forget_shadowed(folder: str) -> None:
    """Unload modules that the script would have found in its own folder, had they not been loaded before.

    ``import queue`` beside the user's own ``queue.py`` means the latter when the script is run by hand. What every
    interpreter has loaded before its first user line stays.
    """
    suffixes = tuple(importlib.machinery.all_suffixes())
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.partition(".")[0]
            if name not in sys.modules or name in _startup_modules or name in sys.builtin_module_names:
                continue
            found = entry.name.removeprefix(name) in suffixes or any(
                os.path.exists(os.path.join(entry.path, "__init__" + suffix)) for suffix in suffixes
            )
            origin = getattr(sys.modules[name], "__file__", None) or os.sep
            if found and not os.path.realpath(origin).startswith(folder + os.sep):
                for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                    del sys.modules[loaded]


# ---- the script ----------------------------------------------------------------------------------------


def _execute(script: str, main: types.ModuleType) -> int:
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {script!r}: {error}", file=sys.stderr)
        return 2
    main.__dict__.update(
        __file__=script,
        __spec__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", script),
        __builtins__=sys.modules["builtins"],
        __cached__=None,
    )
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    try:
        # dont_inherit: the script has its own __future__ imports, not this file's.
        exec(compile(source, script, "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:
        return _exit_code(error)
    return 0


def _exit_code(error: BaseException) -> int:
    """Report an exception that left the script as the interpreter does, and return the exit code."""
    if isinstance(error, SystemExit):
        return _system_exit_code(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    sys.last_exc = error  # type: ignore[attr-defined]
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit as exit_:
        return _system_exit_code(exit_)
    except BaseException as second:
        print("Error in sys.excepthook:", file=sys.stderr)
        traceback.print_exception(second)
        print("\nOriginal exception was:", file=sys.stderr)
        traceback.print_exception(error)
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _system_exit_code(error: SystemExit) -> int:
    code: object = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    _flush()
    print(code, file=sys.stderr)
    return 1


# ---- after the last user line --------------------------------------------------------------------------


def _finish(code: int, main: types.ModuleType, last_inherited: str) -> int:
    """Do what the interpreter does at its end, short of tearing down libraries that the server had loaded."""
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()
    flushed = _flush()
    # Objects of the user's modules die, so that a file that was left open is written.
    threading.excepthook = lambda *_: None  # daemon threads would complain about names that vanish
    new = itertools.takewhile(lambda item: item[0] != last_inherited, reversed(sys.modules.items()))
    own = [module for _, module in new if not _is_installed(module)]
    for module in (main, *own):
        _clear(vars(module))
        gc.collect()  # soon done: the server's own objects are frozen
    flushed = _flush() and flushed
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code if flushed else 120


def _is_installed(module: types.ModuleType) -> bool:
    origin = getattr(module, "__file__", None)
    if not isinstance(origin, str):
        return True
    return (
        "site-packages" in origin
        or "dist-packages" in origin
        or module.__name__.partition(".")[0] in (sys.stdlib_module_names)
    )


def _clear(names: dict[str, Any]) -> None:
    # Names with one underscore first, as the interpreter does, then the others in the order of their definition.
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and (name.startswith("_") and not name.startswith("__")) == private:
                names[name] = None


def _flush() -> bool:
    """Flush the standard streams; return False if something written to stdout was lost."""
    flushed = True
    for stream, counts in ((sys.stdout, True), (sys.stderr, False)):
        if stream is not None and not getattr(stream, "closed", False):
            try:
                stream.flush()
            except BaseException:
                flushed = flushed and not counts
    with contextlib.suppress(Exception):
        _libc_flush()
    return flushed


def _libc_flush() -> None:
    import ctypes

    ctypes.CDLL(None).fflush(None)  # what libraries in C printed
