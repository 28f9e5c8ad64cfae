"""LocalBackend: trials are processes of this machine."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sthyper.backend._runs import Runner, RunSpec, Timeouts
from sthyper.backend.base import EndEvent, ExperimentContext, ReportEvent, TrialBackend, TrialEvent
from sthyper.constants import (
    ENV_CHECKPOINT_DIR,
    ENV_COST_PER_HOUR,
    ENV_LAST_RESOURCE,
    ENV_LIGHTNING,
    ENV_OBJECTIVE,
    ENV_RUN,
    ENV_SEED,
    ENV_TRIAL_DIR,
    ENV_TRIAL_ID,
    ST_CHECKPOINT_DIR,
    ST_CONFIG_FILENAME,
    ST_CONFIG_JSON_FNAME_ARG,
    ST_STDERR_FILENAME,
    ST_STDOUT_FILENAME,
)
from sthyper.errors import closest
from sthyper.journal import write_atomically
from sthyper.trial import Status, Trial

__all__ = ["LocalBackend"]

# What a launching shell may have left of another distributed job; Lightning would take it for its own.
_STALE = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "TORCHELASTIC_RUN_ID",
)
_LAUNCHES = ("auto", "fork", "exec", "inline")


class LocalBackend(TrialBackend):
    """Runs a Python script once a trial, in a process of its own on this machine.

    The script gets the configuration as ``--name value`` arguments (also in ``Reporter().config``) and reports with
    :class:`sthyper.Reporter`. On Linux trials are forked from a warm server that has the script's libraries loaded;
    a supervisor makes sure that no process of a trial outlives the tuner.

    Args:
        entry_point: The training script.
        pass_args_as_json: Pass the configuration as a JSON file (``--st_config_json_filename``) instead of
            arguments; allows lists and dicts as values.
        rewrite_max_resource: See :class:`TrialBackend`.
        launch: ``"fork"``, ``"exec"`` (a fresh interpreter a trial), ``"inline"`` (in this process, one after
            another, for debuggers) or ``"auto"``: fork on Linux, else exec.
        preload: ``True``: what the script and the local modules that it imports name; ``False``: nothing; or a list
            of packages.
        stop_grace: Seconds that a trial has to end itself after STOP or PAUSE before it is killed.
        trial_timeout: Seconds without a report after which a trial ends as hung, ``None`` for no limit.
        first_report_timeout: The same for the time from the start to the first report.
        workdir: ``None``: the tuner's working directory, as when the script is run by hand; ``"trial"``: the
            trial's folder; or a path.
        threads_per_trial: Threads for OpenMP, MKL and torch in a trial; default is cores / n_workers unless
            ``OMP_NUM_THREADS`` is set.
        environment: Changes to the environment of trials; ``None`` as a value removes a variable.
        cost_per_hour: Price of one hour of a trial, for ``st_worker_cost`` and ``max_cost``.
        lightning: Arguments of :class:`sthyper.callbacks.TuneReportCallback`, for Lightning scripts that do not know
            sthyper: it is attached to their Trainers (``{"metrics": {"accuracy": "val/acc"}}``).
        channel: ``"unix"``, or ``"tcp"`` / ``"tcp:HOST:PORT"`` for trials that reach the tuner over the network
            (loopback unless a host is given).

    Raises:
        FileNotFoundError: If the entry point is missing.
        ValueError: For values that are not allowed.
    """

    def __init__(
        self,
        entry_point: str | Path,
        *,
        pass_args_as_json: bool = False,
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
    ) -> None:
        super().__init__(rewrite_max_resource=rewrite_max_resource)
        self._entry_point = _check_entry_point(entry_point)
        if launch not in _LAUNCHES:
            raise ValueError(
                f"launch must be one of {', '.join(_LAUNCHES)}, got {launch!r}{closest(launch, _LAUNCHES)}"
            )
        for name, seconds in (("trial_timeout", trial_timeout), ("first_report_timeout", first_report_timeout)):
            if seconds is not None and not _check_number(name, seconds) > 0:
                raise ValueError(f"{name} must be a number of seconds > 0 or None, got {seconds!r}")
        if not 0 <= _check_number("stop_grace", stop_grace) < math.inf:
            raise ValueError(f"stop_grace must be a finite number of seconds >= 0, got {stop_grace!r}")
        if cost_per_hour is not None and not 0 <= _check_number("cost_per_hour", cost_per_hour) < math.inf:
            raise ValueError(f"cost_per_hour must be a finite number >= 0, got {cost_per_hour!r}")
        if threads_per_trial is not None and (type(threads_per_trial) is not int or threads_per_trial < 1):
            raise ValueError(f"threads_per_trial must be an int of at least 1 or None, got {threads_per_trial!r}")
        if isinstance(preload, str) or not isinstance(preload, bool | Sequence):
            raise TypeError(f"preload must be True, False or a list of package names, got {preload!r}")
        if workdir not in (None, "trial") and not Path(workdir).is_dir():
            raise ValueError(f"workdir must be None, 'trial' or an existing folder, got {str(workdir)!r}")
        for name, value in (environment or {}).items():
            if not isinstance(name, str) or not isinstance(value, str | None):
                raise TypeError(f"environment must map names to strings or None, got {name!r}: {value!r}")
        self.pass_args_as_json = pass_args_as_json
        self.launch: str = ("fork" if sys.platform == "linux" else "exec") if launch == "auto" else launch
        self.stop_grace = stop_grace
        self.workdir = workdir
        self.threads_per_trial = threads_per_trial
        self.environment = dict(environment or {})
        self.cost_per_hour = cost_per_hour
        self.lightning = None if lightning is None else json.dumps(lightning)
        self._preload = preload
        self._timeouts = Timeouts(first_report=first_report_timeout, report=trial_timeout)
        self._host, self._port = _parse_channel(channel)
        self._runner: Runner | None = None
        self._wants_checkpoint_arg = False

    # ---- life of the backend -------------------------------------------------------------------------

    def check_config_space(self, config_space: dict[str, Any]) -> None:
        for name, value in config_space.items():
            if isinstance(value, list | dict) and not self.pass_args_as_json:
                raise ValueError(
                    f"config_space[{name!r}] is {value!r}, which cannot be an argument of a script; use "
                    "LocalBackend(..., pass_args_as_json=True) and load_config_json in the script"
                )

    def open(self, context: ExperimentContext) -> None:
        super().open(context)
        if self.launch == "inline":
            from sthyper.backend._inline_runner import InlineRunner

            if context.n_workers != 1:
                raise ValueError(
                    f"launch='inline' runs one trial at a time: n_workers must be 1, got {context.n_workers}"
                )
            self._runner = InlineRunner(self._timeouts)
        else:
            from sthyper.backend._process_runner import ProcessRunner

            modules = list(self._preload) if not isinstance(self._preload, bool) else []
            if self._preload is True and self.launch == "fork":
                modules = self._scan()
            self._runner = ProcessRunner(
                mode="fork" if self.launch == "fork" else "exec",
                preload=modules,
                adapt=self._preload is True,
                timeouts=self._timeouts,
                host=self._host,
                port=self._port,
            )
        self._runner.open()
        self._wants_checkpoint_arg = self._names_checkpoint_dir()

    def close(self, wait: bool = True) -> None:
        if self._runner is not None:
            self._runner.close(wait)
            self._runner = None

    def run_loop(self, loop: Callable[[], None]) -> None:
        self._opened().run_loop(loop)

    def on_signal(self, signum: int) -> None:
        if self._runner is not None:
            self._runner.on_signal(signum)

    def wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    def entrypoint_path(self) -> Path:
        return self._entry_point

    # ---- trials --------------------------------------------------------------------------------------

    def events(self, timeout: float | None) -> list[TrialEvent]:
        events = self._opened().events(timeout)
        for event in events:
            if isinstance(event, EndEvent):
                self._mark_ended(event)
        return events

    def answer(self, event: ReportEvent, decision: str) -> None:
        self._opened().answer(event, decision)

    def _schedule(self, trial: Trial, run: int) -> None:
        folder = self.trial_path(trial.trial_id).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ST_CONFIG_FILENAME, json.dumps(trial.config, indent=1))
        self._opened().start(
            RunSpec(
                trial_id=trial.trial_id,
                run=run,
                argv=(str(self._entry_point), *self._arguments(trial, folder)),
                env=self._environment(trial, run, folder),
                cwd=str(folder if self.workdir == "trial" else Path(self.workdir or os.getcwd()).absolute()),
                stdout=folder / ST_STDOUT_FILENAME,
                stderr=folder / ST_STDERR_FILENAME,
                seed=trial.seed,
                threads=self._threads(),
            )
        )

    def _end(self, trial_id: int, status: Status, *, at_once: bool, grace: float) -> None:
        self._opened().end(trial_id, status, at_once, grace)

    def _stop_grace(self) -> float:
        return self.stop_grace

    def _opened(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("LocalBackend is not open; it is used through a Tuner, which opens and closes it")
        return self._runner

    def _arguments(self, trial: Trial, folder: Path) -> list[str]:
        arguments = []
        if self.pass_args_as_json:
            arguments += [f"--{ST_CONFIG_JSON_FNAME_ARG}", str(folder / ST_CONFIG_FILENAME)]
        else:
            for name, value in trial.config.items():
                if isinstance(value, list | dict):
                    raise ValueError(
                        f"configuration value {name}={value!r} cannot be an argument of a script; use "
                        "LocalBackend(..., pass_args_as_json=True) and load_config_json in the script"
                    )
                if value is not None:
                    arguments += [f"--{name}", str(value)]
        if self._wants_checkpoint_arg:
            arguments += [f"--{ST_CHECKPOINT_DIR}", str(self.checkpoint_trial_path(trial.trial_id).absolute())]
        return arguments

    def _environment(self, trial: Trial, run: int, folder: Path) -> dict[str, str | None]:
        objective = self.context.objective
        env: dict[str, str | None] = dict.fromkeys(_STALE)
        last = trial.last_resource
        env |= {
            ENV_TRIAL_ID: str(trial.trial_id),
            ENV_RUN: str(run),
            ENV_TRIAL_DIR: str(folder),
            ENV_CHECKPOINT_DIR: str(self.checkpoint_trial_path(trial.trial_id).absolute()),
            ENV_LAST_RESOURCE: None if last is None else repr(int(last) if float(last).is_integer() else last),
            ENV_SEED: None if trial.seed is None else str(trial.seed),
            ENV_OBJECTIVE: None if objective is None else json.dumps(objective),
            ENV_LIGHTNING: self.lightning,
            ENV_COST_PER_HOUR: None if self.cost_per_hour is None else repr(self.cost_per_hour),
        }
        return env | self.environment

    def _threads(self) -> int | None:
        if self.threads_per_trial is not None:
            return self.threads_per_trial
        if os.environ.get("OMP_NUM_THREADS") or self.environment.get("OMP_NUM_THREADS"):
            return None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.context.n_workers)

    def _scan(self) -> list[str]:
        from sthyper.backend._preload import loads_names, scan_imports

        modules = scan_imports(self._entry_point)
        tops = {name.partition(".")[0] for name in modules}
        if self.lightning is not None and "lightning" in tops:
            modules.append("sthyper.callbacks.lightning.report")
        if "lightning" in tops or ("torch" in tops and loads_names(self._entry_point, {"optim"})):
            # The first optimiser of a process imports it, which takes a second of every trial.
            modules.append("torch._dynamo")
        return modules

    def _names_checkpoint_dir(self) -> bool:
        # Scripts that do not know the argument would fail on it; the environment has the folder anyway.
        from sthyper.backend._preload import loads_names

        names = {ST_CHECKPOINT_DIR, "add_checkpointing_to_argparse", "parse_known_args"}
        return loads_names(self._entry_point, names)


def _check_entry_point(entry_point: str | Path) -> Path:
    path = Path(entry_point).expanduser().absolute()
    if not path.is_file():
        folder = path.parent
        others = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        raise FileNotFoundError(
            f"entry_point {str(entry_point)!r}: there is no file {path}{closest(path.name, others)}"
        )
    if path.suffix != ".py":
        raise ValueError(f"entry_point must be a Python script (*.py), got {str(entry_point)!r}")
    return path


def _check_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def _parse_channel(channel: str) -> tuple[str | None, int]:
    if not isinstance(channel, str):
        raise TypeError(f"channel must be 'unix', 'tcp' or 'tcp:HOST:PORT', got {channel!r}")
    kind, _, place = channel.partition(":")
    if kind == "unix" and not place:
        return None, 0
    if kind == "tcp":
        host, _, port = place.rpartition(":") if place else ("127.0.0.1", "", "0")
        if host and port.isdigit() and int(port) < 65536:
            return host.strip("[]"), int(port)
    raise ValueError(f"channel must be 'unix', 'tcp' or 'tcp:HOST:PORT', got {channel!r}")
