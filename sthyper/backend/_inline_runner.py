"""Runs trials one after another in the tuner's own process, so that debuggers and tracebacks work.

Trials run in the thread that called ``Tuner.run``; the event loop runs in a helper thread beside it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sthyper.report
from sthyper._function_trial import TunedFunction, skip_own_frames
from sthyper.backend._runs import RunSpec, RunState, Timeouts, classify_end
from sthyper.backend.base import EndEvent, MessageEvent, ReportEvent, TrialEvent
from sthyper.report import TrialExit
from sthyper.trial import SchedulerDecision, Status

__all__ = ["InlineRunner"]


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C while a trial runs: ends the trial; the tuner has its own flag."""


class InlineRunner:
    """Runs scripts as a fresh ``__main__``, or a function, in the calling thread.

    Args:
        timeouts: When a silent run counts as hung; acts at its next report.
        function: What a trial runs; ``None`` for the script that its order names.
    """

    def __init__(self, timeouts: Timeouts, function: TunedFunction | None = None) -> None:
        self._timeouts = timeouts
        self._function = function
        self._jobs: queue.SimpleQueue[RunSpec | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[TrialEvent | RunState | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._state: RunState | None = None
        self._next: RunSpec | None = None
        self._stopping = False
        self._in_trial = False
        self._client = ""
        self._seq = 0

    def open(self) -> None:
        self._client = os.urandom(8).hex()

    def close(self, wait: bool) -> None:
        self._stopping = True

    def on_signal(self, signum: int) -> None:
        if self._in_trial:
            raise _Interrupted

    def wake(self) -> None:
        self._events.put(None)

    # ---- the calling thread --------------------------------------------------------------------------

    def run_loop(self, loop: Callable[[], None]) -> None:
        failure: list[BaseException] = []

        def work() -> None:
            try:
                loop()
            except BaseException as error:  # handed to the calling thread below
                failure.append(error)
            finally:
                # A trial that waits for an answer must not wait for ever.
                self._stopping = True
                self._answers.put(SchedulerDecision.STOP)
                self._jobs.put(None)

        thread = threading.Thread(target=work, name="sthyper-event-loop")
        thread.start()
        try:
            while (spec := self._jobs.get()) is not None:
                self._run(spec)
        finally:
            self._stopping = True
            self._answers.put(SchedulerDecision.STOP)
            self._events.put(None)
            thread.join()
        if failure:
            raise failure[0]

    def _run(self, spec: RunSpec) -> None:
        state = self._state
        assert state is not None
        if self._timeouts.first_report is not None:
            state.deadline = time.monotonic() + self._timeouts.first_report
        state.code = 0
        try:
            self._run_as_main(spec)
        except KeyboardInterrupt as error:
            state.ordered = state.ordered or Status.stopped
            state.reason = "interrupted"
            if not isinstance(error, _Interrupted):  # not by our handler: the tuner has yet to hear of it
                self._events.put(MessageEvent("interrupt"))
        except SystemExit as exit_:
            state.code = _exit_code(exit_)
        except BaseException as error:  # asyncio.CancelledError, too
            state.code = 1
            text = _user_traceback(error)
            with open(spec.stderr, "a") as file:
                file.write(text)
            print(text, file=sys.stderr, end="")
        finally:
            self._events.put(state)

    def _run_as_main(self, spec: RunSpec) -> None:
        with _borrowed_process(spec, as_script=self._function is None):
            sthyper.report._inline_answer = self._report
            try:
                self._in_trial = True
                if self._function is not None:
                    self._function.call()
                else:
                    _run_script(Path(spec.argv[0]))
            finally:
                # First of all: what follows must not be broken off by Ctrl-C.
                self._in_trial = False
                sthyper.report._inline_answer = None

    def _report(self, metrics: dict[str, Any]) -> str:
        state = self._state
        assert state is not None
        if state.reason == "hung" or (state.deadline is not None and time.monotonic() > state.deadline):
            # Too late: the trial ends here, at its next report.
            state.reason = "hung"
            raise TrialExit("STOP")
        if state.ordered is not None or self._stopping:
            return SchedulerDecision.STOP if state.ordered != Status.paused else SchedulerDecision.PAUSE
        event = ReportEvent(state.spec.trial_id, state.spec.run, metrics, self._client, self._seq)
        self._seq += 1
        self._events.put(event)
        decision = self._answers.get()
        if self._timeouts.report is not None:
            state.deadline = time.monotonic() + self._timeouts.report
        else:
            state.deadline = None
        return decision

    # ---- the event loop's thread ---------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        size = spec.stderr.stat().st_size if spec.stderr.exists() else 0
        self._state = RunState(spec, size)
        self._next = spec

    def end(self, trial_id: int, status: Status, at_once: bool, grace: float) -> None:
        if self._state is not None and self._state.ordered is None:
            self._state.ordered = status

    def answer(self, event: ReportEvent, decision: str) -> None:
        self._answers.put(decision)

    def events(self, timeout: float | None) -> list[TrialEvent]:
        if self._next is not None:
            # Not before: the tuner has announced the trial by now, and the terminal is the script's.
            spec, self._next = self._next, None
            self._jobs.put(spec)
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return []
        if isinstance(event, RunState):
            # Not in the trial's thread: the order that belongs to its last answer may come after its end.
            status, reason, tail = classify_end(event)
            event = EndEvent(event.spec.trial_id, event.spec.run, status, reason, event.code, tail)
        return [] if event is None else [event]


def _run_script(path: Path) -> None:
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=__builtins__, __spec__=None)
    sys.modules["__main__"] = main
    # dont_inherit: the script has its own __future__ imports, not this file's.
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), main.__dict__)


@contextmanager
def _borrowed_process(spec: RunSpec, as_script: bool) -> Iterator[None]:
    """Give a trial the process as if it were its own, and put everything back afterwards.

    Args:
        spec: The order.
        as_script: Whether command line and module path become those of a script; a function has its own already.
    """
    argv, path, environ, cwd = list(sys.argv), list(sys.path), dict(os.environ), os.getcwd()
    main = sys.modules["__main__"]
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        if as_script:
            sys.argv = list(spec.argv)
            sys.path.insert(0, str(Path(spec.argv[0]).parent))
        for name, value in spec.env.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(spec.cwd)
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(cwd)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _exit_code(exit_: SystemExit) -> int:
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def _user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception from the first frame of the script or function on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    trace = skip_own_frames(trace)
    return "".join(traceback.format_exception(type(error), error, trace))
