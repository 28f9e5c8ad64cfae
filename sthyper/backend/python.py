"""PythonBackend: trials are calls of a Python function, in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sthyper._function_trial
from sthyper._function_trial import TunedFunction, function_name
from sthyper.backend._function_signature import check_function, defining_function, takes_keywords
from sthyper.backend._runs import RunSpec
from sthyper.backend.base import EndEvent, ExperimentContext, MessageEvent, ReportEvent, TrialEvent
from sthyper.backend.local import LocalBackend
from sthyper.constants import ENV_TRIAL_ID, ST_RETURNED
from sthyper.errors import ConfigSpaceError, ExperimentError
from sthyper.journal import write_atomically
from sthyper.trial import SchedulerDecision, Status, Trial

if TYPE_CHECKING:
    from sthyper.backend._function_pickle import Needs

__all__ = ["PythonBackend"]

logger = logging.getLogger(__name__)

LARGE = 1_000_000
"""Bytes from which the size of a function's file is warned of; each trial reads it."""
SLOW = 30.0
"""Seconds after which the first loading of a function is remarked on."""
_FOLDER = "tune_function"
_TRY_OUT = -1

_SCRIPT = """\
# Written by sthyper: the script of a trial of {name}. Processes that the function starts (spawn, forkserver, ddp) read
# it again to find the classes and functions of the user's __main__. By hand it runs the trial's configuration again.
__import__("sys").path[:] = {path!r}
import sthyper._function_trial as _sthyper

_sthyper.enter(globals(), {file!r}, {digest!r})
"""
_CALL = """\
if __name__ == "__main__":
    _sthyper.run()
"""


class PythonBackend(LocalBackend):
    """Calls a Python function once a trial, in a process of its own on this machine.

    The function may be defined anywhere: in a module, a script's ``__main__``, a notebook, as a lambda or closure, by
    ``functools.partial``, or be an object that can be called. What a fresh process can import travels by name,
    everything else by value (cloudpickle), as it is when the experiment starts: globals are copies, and changes do not
    come back. Before the first trial the function is loaded once in a process like those of the trials; what cannot
    travel is named in the error.

    The function gets the configuration as keyword arguments, if its parameters are named like keys of
    ``config_space``, or if it takes ``**kwargs`` alone. A function with one parameter to fill that is not named like a
    key, usually ``config``, gets a dictionary.

    It reports by :class:`sthyper.Reporter`, or it returns a number, or a dictionary that holds the metric: one final
    report, at the scheduler's maximum resource where the dictionary does not say. What a function returns after reports
    is ignored, with a warning.

    In a trial ``__main__`` has the classes and functions that the function uses, so that DataLoader workers, pools of
    multiprocessing (fork, spawn, forkserver) and Lightning's ``ddp`` and ``ddp_spawn`` work as in a script; under
    ``launch="inline"`` those that start the script again (``ddp``) would start the tuner's.

    Args:
        tune_function: The function.
        config_space: Configuration space, the scheduler's.
        rewrite_max_resource: See :class:`TrialBackend`.
        launch: ``"fork"``, ``"exec"`` (a fresh interpreter a trial), ``"inline"`` (the function itself, in this
            process, one trial after another, for debuggers) or ``"auto"``: fork on Linux, else exec.
        preload: ``True``: the packages that the function and the local modules that it uses import; ``False``: nothing;
            or a list of packages.
        stop_grace: Seconds that a trial has to end itself after STOP or PAUSE before it is killed.
        trial_timeout: Seconds without a report after which a trial ends as hung, ``None`` for no limit.
        first_report_timeout: The same for the time from the start to the first report.
        workdir: ``None``: the tuner's working directory; ``"trial"``: the trial's folder; or a path.
        threads_per_trial: Threads for OpenMP, MKL and torch in a trial; default is cores / n_workers unless
            ``OMP_NUM_THREADS`` is set.
        environment: Changes to the environment of trials; ``None`` as a value removes a variable.
        cost_per_hour: Price of one hour of a trial, for ``st_worker_cost`` and ``max_cost``.
        lightning: Arguments of :class:`sthyper.callbacks.TuneReportCallback`, for functions that do not know sthyper:
            it is attached to their Trainers.
        channel: ``"unix"``, or ``"tcp"`` / ``"tcp:HOST:PORT"``.
        delete_checkpoints: See :class:`LocalBackend`.
        rotate_gpus: See :class:`LocalBackend`.
        num_gpus_per_trial: See :class:`LocalBackend`.
        gpus_to_use: See :class:`LocalBackend`.

    Raises:
        TypeError: If ``tune_function`` is no function, or a generator or coroutine function.
        ConfigSpaceError: If parameters and ``config_space`` do not fit.
        ValueError: For values that are not allowed.
    """

    no_report = (
        "no report: the function returned None without one; return the metric's value or a dictionary that holds it, "
        "or call Reporter()(metric=...) at least once"
    )

    def __init__(
        self,
        tune_function: Callable[..., Any],
        config_space: Mapping[str, Any],
        *,
        rewrite_max_resource: bool = False,
        launch: Literal["auto", "fork", "exec", "inline"] = "auto",
        preload: bool | Sequence[str] = True,
        stop_grace: float = 30.0,
        trial_timeout: float | None = None,
        first_report_timeout: float | None = None,
        workdir: str | Path | None = None,
        threads_per_trial: int | None = None,
        environment: dict[str, str | None] | None = None,
        cost_per_hour: float | None = None,
        lightning: dict[str, Any] | None = None,
        channel: str = "unix",
        delete_checkpoints: bool = False,
        rotate_gpus: bool = True,
        num_gpus_per_trial: float | None = None,
        gpus_to_use: Sequence[int] | None = None,
    ) -> None:
        check_function(tune_function)
        if not isinstance(config_space, Mapping):
            raise TypeError(f"config_space must be a dictionary, got {config_space!r}")
        super().__init__(
            # Stands for the script that each trial gets.
            Path(sthyper._function_trial.__file__),
            rewrite_max_resource=rewrite_max_resource,
            launch=launch,
            preload=preload,
            stop_grace=stop_grace,
            trial_timeout=trial_timeout,
            first_report_timeout=first_report_timeout,
            workdir=workdir,
            threads_per_trial=threads_per_trial,
            environment=environment,
            cost_per_hour=cost_per_hour,
            lightning=lightning,
            channel=channel,
            delete_checkpoints=delete_checkpoints,
            rotate_gpus=rotate_gpus,
            num_gpus_per_trial=num_gpus_per_trial,
            gpus_to_use=gpus_to_use,
        )
        self.tune_function = tune_function
        self.config_space = dict(config_space)
        self._tuned = TunedFunction(
            tune_function, function_name(tune_function), takes_keywords(tune_function, config_space)
        )
        self._needs: Needs | None = None
        self._script = ""
        self._early: list[TrialEvent] = []
        self._reported: set[int] = set()
        self._warned_of_value = False

    # ---- life of the backend -------------------------------------------------------------------------

    def check_config_space(self, config_space: dict[str, Any]) -> None:
        if set(config_space) != set(self.config_space):
            raise ConfigSpaceError(
                f"config_space of PythonBackend has {sorted(self.config_space)}, that of the scheduler "
                f"{sorted(config_space)}; give both the same"
            )

    def open(self, context: ExperimentContext) -> None:
        self._reported.clear()
        self._early.clear()
        self._warned_of_value = False
        if self.launch == "inline":
            super().open(context)
            return
        self._ship()
        super().open(context)
        self._needs = None
        self._try_out()

    def entrypoint_path(self) -> Path | None:
        """Return the file that defines the function, ``None`` if there is none (a notebook, an interactive session)."""
        code = getattr(defining_function(self.tune_function), "__code__", None)
        return Path(code.co_filename) if code is not None and os.path.isfile(code.co_filename) else None

    def entrypoint_name(self) -> str | None:
        name = self._tuned.name
        return name if any(c.isascii() and c.isalnum() for c in name) else "function"

    # ---- trials --------------------------------------------------------------------------------------

    def events(self, timeout: float | None) -> list[TrialEvent]:
        if self._early:
            early, self._early = self._early, []
            return early
        events: list[TrialEvent] = []
        for event in super().events(timeout):
            if isinstance(event, ReportEvent):
                events += self._take_report(event)
            else:
                events.append(event)
        return events

    def _take_report(self, event: ReportEvent) -> list[TrialEvent]:
        """Tell reports from returned values, which count only for trials that have not reported."""
        if ST_RETURNED not in event.metrics:
            self._reported.add(event.trial_id)
            return [event]
        if event.trial_id in self._reported:
            self.answer(event, SchedulerDecision.CONTINUE)
            if self._warned_of_value:
                return []
            self._warned_of_value = True
            message = (
                f"trial {event.trial_id}: what {self._tuned.name} returned is ignored, as it has reported; either "
                "report, or return the result (shown once)"
            )
            return [MessageEvent("warning", event.trial_id, event.run, {"message": message})]
        metrics = dict(event.metrics)
        if metrics.pop(ST_RETURNED):
            return [dataclasses.replace(event, metrics=metrics)]
        self.answer(event, SchedulerDecision.STOP)  # the trial fails with a message
        return []

    def _prepare(self, trial: Trial, folder: Path) -> None:
        super()._prepare(trial, folder)
        if self.launch != "inline":
            write_atomically(folder / "run_trial.py", self._script + _CALL)

    def _argv(self, trial: Trial, run: int, folder: Path) -> tuple[str, ...]:
        return (str(folder / "run_trial.py"),)

    def _scan(self) -> list[str]:
        from sthyper.backend._preload import scan_names

        assert self._needs is not None
        modules = dict.fromkeys(("cloudpickle", "sthyper._function_trial"))
        for module, names in self._needs.modules.items():
            modules |= dict.fromkeys(scan_names(module, sorted(names)))
        identifiers = self._needs.identifiers
        return self._companions(
            list(modules), lambda names: not names.isdisjoint(identifiers) or "torch.optim" in modules
        )

    def _inline_function(self) -> TunedFunction | None:
        return self._tuned

    def _names_checkpoint_dir(self) -> bool:
        return False

    # ---- the function's way to its trials ------------------------------------------------------------

    def _folder(self) -> Path:
        if self.path is None:
            raise ValueError("PythonBackend has no path yet; call set_path(results_root) first")
        return self.path.absolute() / _FOLDER

    def _ship(self) -> None:
        """Write the function to its file, and make the script that loads it."""
        from sthyper.backend import _function_faults, _function_pickle

        name = self._tuned.name
        try:
            data, self._needs = _function_pickle.pickle_function(self._tuned)
        except Exception as error:
            why = _function_faults.explain_pickle_failure(self.tune_function, error)
            raise ExperimentError(f"tune_function {name} cannot be sent to the trials: {why}") from error
        if len(data) > LARGE:
            parts = ", ".join(
                f"{how} {n / 1e6:.1f} MB" for how, n in _function_faults.largest_parts(self.tune_function)
            )
            logger.warning(
                "tune_function %s takes %.1f MB with what it uses, which each trial reads: %s; load data inside the "
                "function",
                name,
                len(data) / 1e6,
                parts,
            )
        file = self._folder() / "function.pkl"
        digest = _function_pickle.write_private(file, data)
        path = [os.path.abspath(entry) for entry in sys.path]
        self._script = _SCRIPT.format(
            name=name if name.isidentifier() else "a function", path=path, file=str(file), digest=digest
        )

    def _try_out(self) -> None:
        """Load the function in a process like those of the trials, so that a failure comes before the first of them.

        Raises:
            ExperimentError: If it cannot be loaded; the message says why.
        """
        from sthyper.backend._function_faults import explain_load_failure

        folder = self._folder()
        script = folder / "load_function.py"
        script.write_text(self._script, encoding="utf-8")
        spec = RunSpec(
            trial_id=_TRY_OUT,
            run=0,
            argv=(str(script),),
            env={ENV_TRIAL_ID: str(_TRY_OUT), **self.environment},
            cwd=str(folder if self.workdir == "trial" else Path(self.workdir or os.getcwd()).absolute()),
            stdout=folder / "std.out",
            stderr=folder / "std.err",
            seed=None,
            threads=1,
        )
        end = self._run_alone(spec)
        if end.reason == "supervisor_lost":
            spec = dataclasses.replace(spec, run=1)
            end = self._run_alone(spec)
        if end.status != Status.completed:
            why = explain_load_failure(end.stderr_tail or f"{end.reason}")
            if end.reason == "hung":
                why = f"that takes longer than first_report_timeout={self._timeouts.first_report} s"
            raise ExperimentError(f"tune_function {self._tuned.name} cannot be loaded in a trial: {why}")
        for path in (script, spec.stdout, spec.stderr):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _run_alone(self, spec: RunSpec) -> EndEvent:
        """Run a script to its end before there are trials; what else happens is kept for :meth:`events`."""
        from sthyper.backend._preload import loading_message

        runner = self._opened()
        runner.start(spec)
        remark_at: float | None = time.monotonic() + SLOW
        end: EndEvent | None = None
        while end is None:
            for event in runner.events(None if remark_at is None else max(0.0, remark_at - time.monotonic())):
                if isinstance(event, EndEvent):
                    end = event
                elif isinstance(event, ReportEvent):
                    raise ExperimentError(
                        f"tune_function {self._tuned.name}: importing its module runs a training that reports; put "
                        "that below `if __name__ == '__main__':`"
                    )
                elif event.kind == "preloading":
                    if self.context.interactive and (message := loading_message(event.data["modules"])):
                        print(message)
                elif event.kind != "process":
                    self._early.append(event)
            if remark_at is not None and time.monotonic() >= remark_at:
                remark_at = None
                logger.warning(
                    "waiting for the libraries and modules of tune_function %s to be imported for %.0f s already; if "
                    "one of its modules does more than define things, put that below `if __name__ == '__main__':`",
                    self._tuned.name,
                    SLOW,
                )
        return end
