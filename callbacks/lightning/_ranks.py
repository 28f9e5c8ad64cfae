"""Agreement between the ranks of a trial by strategy-neutral calls, no collective of torch.distributed; their ends."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from sthyper.report import TrialExit

__all__ = [
    "end_process",
    "gather",
    "is_forked_rank",
    "on_rank_exit",
    "on_rank_zero",
    "reason_of",
    "was_ended",
]

_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")


class _RankEnds(RuntimeError):
    """Ends a rank that Lightning has forked or spawned, in place of :class:`TrialExit`.

    The process that waits for such ranks would wait for the result of one that exits with code 0 for ever.
    """


def on_rank_zero(trainer: Trainer, function: Callable[[], Any]) -> Any:
    """Return on all ranks what ``function`` returns on rank 0, or raise what it raises there."""
    result: tuple[Any, BaseException | None] = (None, None)
    if trainer.is_global_zero:
        try:
            result = (function(), None)
        except (Exception, TrialExit) as error:
            result = (None, _portable(error) if trainer.world_size > 1 else error)
    value, failure = trainer.strategy.broadcast(result)
    if failure is not None:
        raise failure
    return value


def gather(trainer: Trainer, own: Any) -> list[Any]:
    """Return the objects of all ranks, on all ranks."""
    return [trainer.strategy.broadcast(own, src=rank) for rank in range(trainer.world_size)]


def end_process(trainer: Trainer, decision: str) -> NoReturn:
    """End this process in order, and the trial with it; never returns."""
    if is_forked_rank(trainer):
        raise _RankEnds(decision)
    raise TrialExit(decision)


def is_forked_rank(trainer: Trainer) -> bool:
    """Whether this process is a rank that Lightning has forked or spawned, and another one waits for its result."""
    forks = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    return forks and multiprocessing.parent_process() is not None


def on_rank_exit(trainer: Trainer, function: Callable[[], None]) -> None:
    """Call ``function`` when this process, a rank that Lightning has forked or spawned, exits, unless it is killed.

    A spawned rank that has done its work then ends before its interpreter is torn down: in some of a hundred exits a
    thread of gloo that releases a tensor meanwhile would abort it (SIGABRT), and Lightning fail the whole training.
    """
    # Such processes have no other exit handlers.
    Finalize(None, function, exitpriority=100)
    if "--multiprocessing-fork" in sys.orig_argv:  # a fresh interpreter; forks are not torn down anyway
        Finalize(None, _end_in_order, args=(trainer,), exitpriority=-1000)


def _end_in_order(trainer: Trainer) -> None:
    if not trainer.state.finished or sys.exc_info()[0] is not None:
        return
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def was_ended(exception: BaseException) -> bool:
    """Whether ``exception`` is, or comes from a rank that left by, :func:`end_process`."""
    if isinstance(exception, ProcessRaisedException):
        return f"{_RankEnds.__module__}.{_RankEnds.__qualname__}: " in str(exception)
    return isinstance(exception, TrialExit | _RankEnds)


def reason_of(trainer: Trainer, exception: BaseException) -> str | None:
    """Return why a trial ends by ``exception`` where its exit code will not tell."""
    if isinstance(exception, SIGTERMException | KeyboardInterrupt):
        return "killed"
    if isinstance(exception, ProcessRaisedException | ProcessExitedException):
        # Another rank, which missed the one that was killed, may have been found first.
        for rank, process in enumerate(getattr(trainer.strategy.launcher, "procs", [])):
            if process.exitcode == -signal.SIGKILL:
                return f"killed (rank {rank} died)"
    if isinstance(exception, ProcessExitedException):
        rank, name = exception.error_index, exception.signal_name
        if name in _OUTSIDE:
            return f"killed (rank {rank} died)"
        return f"signal {name} of rank {rank}" if name else f"exit {exception.exit_code} of rank {rank}"
    return None


def _portable(error: BaseException) -> BaseException:
    """Return an exception that reaches the other ranks."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    return error
