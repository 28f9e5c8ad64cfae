"""The libraries that the fork server loads for its trials. The server loads this file by path."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["THREADS_NAME", "Libraries", "Terminate"]

THREADS_NAME = "OMP_NUM_THREADS"
_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
_WHILE_LOADING = {THREADS_NAME: "1", _BY_NVML: "1"}
_SETTING_NVML = frozenset({"lightning.fabric", "lightning_fabric"})
"""Modules that set it themselves, for good."""


class Terminate(BaseException):
    """Breaks off an import because the process has to end."""


class Libraries:
    """Imports modules in a way that forks can use them, and sets them up in the forks.

    Args:
        warn: Called with what the user should know.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._tried: set[str] = set()
        self._thread_pools: list[Any] = []
        self._finalizers: list[weakref.finalize[Any, Any]] = []
        self.importing = False
        """Whether an import is going on, which a signal handler may break off by raising :class:`Terminate`."""
        self.unsafe: str | None = None
        """Why forks of this process are not safe any more, ``None`` as long as they are."""

    def load(self, modules: Sequence[str]) -> None:
        """Import the modules that were not tried before; failures are warned of."""
        new = [name for name in modules if name not in self._tried]
        if not new:
            return
        self._tried.update(new)
        # OpenMP and BLAS read it when they are loaded; trials get their own number by set_threads.
        # By NVML torch can tell whether there are GPUs without starting CUDA, which no fork could do again.
        before = {name: os.environ.get(name) for name in _WHILE_LOADING}
        os.environ.update(_WHILE_LOADING)
        for name in new:
            self._import(name)
            self._check_safe(name)
        self._check_cuda_in_forks()
        if "numpy" in sys.modules:
            self._import("numpy.random")  # to be seeded in each trial
            self._find_thread_pools()
        # What libraries want to clean up at exit (temporary folders, for one) is this process's, not each trial's.
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            if finalizer.atexit:
                finalizer.atexit = False
                self._finalizers.append(finalizer)
        for name, value in before.items():
            if name == _BY_NVML and not sys.modules.keys().isdisjoint(_SETTING_NVML):
                continue
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        gc.freeze()  # collections in trials leave these objects, and their shared pages, alone

    def set_threads(self, count: int) -> None:
        """Set the size of the thread pools of what is loaded; in a fork, never in the server."""
        for pool in self._thread_pools:
            pool.set_num_threads(count)
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "set_num_threads"):
            torch.set_num_threads(count)

    def close(self) -> None:
        """Clean up what the libraries want cleaned up at exit."""
        for finalizer in reversed(self._finalizers):
            with contextlib.suppress(Exception):
                finalizer()

    def _import(self, name: str) -> None:
        try:
            self.importing = True
            importlib.import_module(name)
        except Terminate:
            raise
        except BaseException as error:
            self._warn(f"{name} was not preloaded, its import failed: {type(error).__name__}: {error}")
        finally:
            self.importing = False

    def _check_safe(self, name: str) -> None:
        if self.unsafe is not None:
            return
        # A stub or a broken install has no torch.cuda.
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized():
            self.unsafe = f"importing {name} initialised CUDA"
        elif threading.active_count() > 1:
            self.unsafe = f"importing {name} started a thread"
        if self.unsafe is not None:
            self._warn_of_unsafe()

    def _check_cuda_in_forks(self) -> None:
        """Ask a fork whether it could start CUDA: an import that has counted the GPUs may have spoilt it unseen."""
        spoilt = getattr(getattr(sys.modules.get("torch"), "_C", None), "_cuda_isInBadFork", None)
        if self.unsafe is not None or spoilt is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forking beside threads: there are none that matter
                pid = os.fork()
        except OSError:
            return
        if pid == 0:
            code = 0
            try:
                code = int(spoilt())
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1:
            self.unsafe = "importing the libraries asked the CUDA driver"
            self._warn_of_unsafe()

    def _warn_of_unsafe(self) -> None:
        self._warn(
            f"{self.unsafe}, which does not survive a fork; trials start in fresh interpreters (launch='exec') "
            "instead, a few seconds slower each. Name the packages that may be preloaded, without this one: "
            "preload=[...]"
        )

    def _find_thread_pools(self) -> None:
        try:
            import threadpoolctl  # type: ignore[import-untyped]
        except ImportError:
            return
        pools = threadpoolctl.ThreadpoolController().lib_controllers
        # torch has a switch of its own, which also covers threads that are started later.
        self._thread_pools = [pool for pool in pools if "torch" not in pool.filepath or pool.user_api == "blas"]
