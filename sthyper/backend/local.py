"""LocalBackend: trials are processes of this machine."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sthyper._function_trial import TunedFunction
from sthyper.backend._command import parse_entry_point
from sthyper.backend._environment import plain_resource, trial_environment
from sthyper.backend._options import check_launch, check_options, parse_channel
from sthyper.backend._rendezvous import ADDRESS, ENV_ADDRESS, ENV_PORT, STALE, PortPool
from sthyper.backend._runs import Runner, RunSpec, Timeouts
from sthyper.backend.base import EndEvent, ExperimentContext, MessageEvent, ReportEvent, TrialBackend, TrialEvent
from sthyper.backend.gpu import VISIBLE_DEVICES, GpuOptions, GpuPool, visible_gpus
from sthyper.constants import (
    ENV_COST_PER_HOUR,
    ENV_LIGHTNING,
    ST_CHECKPOINT_DIR,
    ST_CONFIG_FILENAME,
    ST_CONFIG_JSON_FNAME_ARG,
    ST_STDERR_FILENAME,
    ST_STDOUT_FILENAME,
    ST_TRIALS_DIRNAME,
)
from sthyper.journal import write_atomically
from sthyper.trial import Status, Trial

__all__ = ["LocalBackend"]

logger = logging.getLogger(__name__)


class LocalBackend(TrialBackend):
    """Runs a Python script, or any other command line, once a trial, in a process of its own on this machine.

    A script gets the configuration as ``--name value`` arguments (also in ``Reporter().config``) and reports with
    :class:`sthyper.Reporter`. On Linux trials of scripts are forked from a warm server that has the script's libraries
    loaded; a supervisor makes sure that no process of a trial outlives the tuner.

    A program of another language, or of another Python environment, prints lines such as
    ``[tune-metric]: {"epoch": 1, "loss": 0.5}`` on stdout (and flushes them). It does not hear decisions and is ended
    from outside, by SIGTERM, and by SIGKILL ``stop_grace`` seconds later. One that is paused is started again with
    ``STHYPER_LAST_RESOURCE`` and ``STHYPER_CHECKPOINT_DIR`` in its environment.

    Args:
        entry_point: The training script (``"train.py"``), an executable, or a command line: a string that is split at
            blanks as a shell does (no shell runs it), or a list of words. ``{name}`` in an argument stands for the
            value of a hyperparameter, ``{{`` and ``}}`` for braces; without such templates ``--name value`` arguments
            are appended. ``{trial_id}``, ``{run}``, ``{trial_dir}``, ``{checkpoint_dir}``, ``{last_resource}`` (0 if
            there is none), ``{seed}`` and ``{st_config_json_filename}`` stand for properties of the trial.
        pass_args_as_json: Pass the configuration as a JSON file (``--st_config_json_filename``) instead of
            arguments; allows lists and dicts as values.
        rewrite_max_resource: See :class:`TrialBackend`. A program that only prints then ends by itself where it is
            paused, and has ``stop_grace`` seconds for it.
        launch: ``"fork"``, ``"exec"`` (a fresh process a trial), ``"inline"`` (in this process, one after another,
            for debuggers) or ``"auto"``: fork for Python scripts on Linux, else exec.
        preload: ``True``: what the script and the local modules that it imports name; ``False``: nothing; or a list
            of packages.
        stop_grace: Seconds that a trial has to end itself after STOP or PAUSE before it is killed.
        trial_timeout: Seconds without a report after which a trial ends as hung, ``None`` for no limit.
        first_report_timeout: The same for the time from the start to the first report.
        workdir: ``None``: the tuner's working directory, as when the script is run by hand; ``"trial"``: the
            trial's folder; or a path.
        threads_per_trial: Threads for OpenMP, MKL and torch in a trial; default is cores / n_workers unless
            ``OMP_NUM_THREADS`` is set.
        environment: Changes to the environment of trials; ``None`` as a value removes a variable. Each trial gets a
            ``MASTER_PORT`` of its own, with ``MASTER_ADDR=127.0.0.1``, for the rendezvous of its processes, unless
            they are set here.
        cost_per_hour: Price of one hour of a trial, for ``st_worker_cost`` and ``max_cost``.
        lightning: Arguments of :class:`sthyper.callbacks.TuneReportCallback`, for Lightning scripts that do not know
            sthyper: it is attached to their Trainers (``{"metrics": {"accuracy": "val/acc"}}``).
        channel: ``"unix"``, or ``"tcp"`` / ``"tcp:HOST:PORT"`` for trials that reach the tuner over the network
            (loopback unless a host is given).
        delete_checkpoints: Whether the checkpoints of a trial are deleted when it is stopped by the scheduler,
            completed or failed. Those of the best trial so far (with several metrics: the best in each) stay, and so
            do those of paused and interrupted trials.
        rotate_gpus: Whether each trial sees GPUs of its own (``CUDA_VISIBLE_DEVICES``), the least used ones; ``False``
            shows all GPUs to all trials. Inline trials always get the same. A value for ``CUDA_VISIBLE_DEVICES`` in
            ``environment`` comes first. Without GPUs nothing is set.
        num_gpus_per_trial: GPUs of a trial: 1, 2, ...; 1/k for k trials that share one; 0 to hide all. ``None``: one,
            shared with a warning where there are more workers than GPUs.
        gpus_to_use: Indices of the GPUs to use, among those that this process may use; ``None`` for all.

    Raises:
        FileNotFoundError: If the script or the program is missing.
        ValueError: For values that are not allowed.
    """

    def __init__(
        self,
        entry_point: str | Path | Sequence[str | Path],
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
        delete_checkpoints: bool = False,
        rotate_gpus: bool = True,
        num_gpus_per_trial: float | None = None,
        gpus_to_use: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rewrite_max_resource=rewrite_max_resource)
        check_launch(launch)
        check_options(
            preload=preload,
            stop_grace=stop_grace,
            trial_timeout=trial_timeout,
            first_report_timeout=first_report_timeout,
            workdir=workdir,
            threads_per_trial=threads_per_trial,
            environment=environment,
            cost_per_hour=cost_per_hour,
            switches={"pass_args_as_json": pass_args_as_json, "delete_checkpoints": delete_checkpoints},
        )
        self.environment = dict(environment or {})
        self._command = parse_entry_point(entry_point, self.environment.get("PATH"))
        if launch in ("fork", "inline") and not self._command.is_script:
            raise ValueError(
                f"launch={launch!r} is for Python scripts; entry_point={entry_point!r} is a command, which "
                "launch='exec' (or 'auto') runs"
            )
        if not self._command.is_script and not isinstance(preload, bool):
            raise ValueError(f"preload={preload!r} has no effect: nothing is loaded for entry_point={entry_point!r}")
        if isinstance(gpus_to_use, str) or not isinstance(gpus_to_use, Sequence | None):
            raise TypeError(f"gpus_to_use must be a list of ints or None, got {gpus_to_use!r}")
        self.pass_args_as_json = pass_args_as_json
        warm = sys.platform == "linux" and self._command.is_script
        self.launch: str = ("fork" if warm else "exec") if launch == "auto" else launch
        self.stop_grace = stop_grace
        self.workdir = workdir
        self.threads_per_trial = threads_per_trial
        self.cost_per_hour = cost_per_hour
        self.lightning = None if lightning is None else json.dumps(lightning)
        self._preload = preload
        self._timeouts = Timeouts(first_report=first_report_timeout, report=trial_timeout)
        self.delete_checkpoints = delete_checkpoints
        self._gpu_options = GpuOptions(
            rotate_gpus, num_gpus_per_trial, None if gpus_to_use is None else tuple(gpus_to_use)
        )
        self._gpus: GpuPool | None = None
        self._gpus_of_run: dict[int, list[str]] = {}
        self._rendezvous_ports = PortPool()
        self._host, self._port = parse_channel(channel)
        self._runner: Runner | None = None
        self._wants_checkpoint_arg = False

    # ---- life of the backend -------------------------------------------------------------------------

    def check_config_space(self, config_space: dict[str, Any]) -> None:
        self._command.check(config_space, self.pass_args_as_json)

    def open(self, context: ExperimentContext) -> None:
        super().open(context)
        if self.launch == "inline":
            from sthyper.backend._inline_runner import InlineRunner

            if context.n_workers != 1:
                raise ValueError(
                    f"launch='inline' runs one trial at a time: n_workers must be 1, got {context.n_workers}"
                )
            self._runner = InlineRunner(self._timeouts, self._inline_function())
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
                trials=None if self.path is None else self.path.absolute() / ST_TRIALS_DIRNAME,
            )
        self._runner.open()
        self._wants_checkpoint_arg = self._names_checkpoint_dir()
        self._gpus = self._open_gpus(context.n_workers)

    def close(self, wait: bool = True) -> None:
        if self._runner is not None:
            self._runner.close(wait)
            self._runner = None
        self._rendezvous_ports.close()

    def run_loop(self, loop: Callable[[], None]) -> None:
        self._opened().run_loop(loop)

    def on_signal(self, signum: int) -> None:
        if self._runner is not None:
            self._runner.on_signal(signum)

    def wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    def _described_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        # A resumed experiment may be started from another folder.
        arguments["entry_point"] = list(self._command.words)
        if arguments.get("workdir") is None:
            arguments["workdir"] = os.getcwd()
        return arguments

    def entrypoint_path(self) -> Path | None:
        return self._command.source

    # ---- trials --------------------------------------------------------------------------------------

    def events(self, timeout: float | None) -> list[TrialEvent]:
        events = self._opened().events(timeout)
        for event in events:
            if isinstance(event, EndEvent):
                self._mark_ended(event)
                self._rendezvous_ports.release(event.trial_id)
                if self._gpus is not None and self.launch != "inline":
                    self._gpus.release(event.trial_id)
            elif isinstance(event, MessageEvent) and event.kind == "process" and event.trial_id in self._gpus_of_run:
                event.data["gpus"] = self._gpus_of_run[event.trial_id]
        return events

    def answer(self, event: ReportEvent, decision: str) -> None:
        self._opened().answer(event, decision)

    def _schedule(self, trial: Trial, run: int) -> None:
        folder = self.trial_path(trial.trial_id).absolute()
        self.keep_trying(lambda: self._prepare(trial, folder))
        self._opened().start(
            RunSpec(
                trial_id=trial.trial_id,
                run=run,
                argv=self._argv(trial, run, folder),
                env=self._environment(trial, run, folder),
                cwd=str(folder if self.workdir == "trial" else Path(self.workdir or os.getcwd()).absolute()),
                stdout=folder / ST_STDOUT_FILENAME,
                stderr=folder / ST_STDERR_FILENAME,
                seed=trial.seed,
                threads=self._threads(),
                is_program=not self._command.is_script,
                ends_at_milestone=self.rewrite_max_resource,
            )
        )

    def _prepare(self, trial: Trial, folder: Path) -> None:
        """Write what a run needs in its folder; may be done again."""
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{ST_CONFIG_FILENAME}.*.tmp"):  # by a tuner that was killed
            left.unlink(missing_ok=True)
        write_atomically(folder / ST_CONFIG_FILENAME, json.dumps(trial.config, indent=1))
        if self.launch != "inline":
            for name in (ST_STDOUT_FILENAME, ST_STDERR_FILENAME):
                os.close(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666))

    def _end(self, trial_id: int, status: Status, *, at_once: bool, grace: float) -> None:
        self._opened().end(trial_id, status, at_once, grace)

    def _stop_grace(self) -> float:
        return self.stop_grace

    def _opened(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("LocalBackend is not open; it is used through a Tuner, which opens and closes it")
        return self._runner

    def _argv(self, trial: Trial, run: int, folder: Path) -> tuple[str, ...]:
        """Return what is run: a script and its arguments, or a whole command line."""
        checkpoints = str(self.checkpoint_trial_path(trial.trial_id).absolute())
        last = trial.last_resource
        properties = {
            "trial_id": str(trial.trial_id),
            "run": str(run),
            "trial_dir": str(folder),
            "checkpoint_dir": checkpoints,
            ST_CHECKPOINT_DIR: checkpoints,
            "last_resource": "0" if last is None else plain_resource(last),
            "seed": "" if trial.seed is None else str(trial.seed),
            ST_CONFIG_JSON_FNAME_ARG: str(folder / ST_CONFIG_FILENAME),
        }
        argv = self._command.line(trial.config, properties, self.pass_args_as_json)
        return (*argv, f"--{ST_CHECKPOINT_DIR}", checkpoints) if self._wants_checkpoint_arg else argv

    def _environment(self, trial: Trial, run: int, folder: Path) -> dict[str, str | None]:
        env: dict[str, str | None] = dict.fromkeys(STALE)
        if ENV_PORT not in self.environment:
            env[ENV_PORT] = str(self._rendezvous_ports.take(trial.trial_id))
        env[ENV_ADDRESS] = ADDRESS
        checkpoints = self.checkpoint_trial_path(trial.trial_id)
        env |= trial_environment(trial, run, folder, checkpoints, self.context.objective) | {
            ENV_LIGHTNING: self.lightning,
            ENV_COST_PER_HOUR: None if self.cost_per_hour is None else repr(self.cost_per_hour),
        }
        return env | self._gpu_environment(trial.trial_id) | self.environment

    def _threads(self) -> int | None:
        if self.threads_per_trial is not None:
            return self.threads_per_trial
        if os.environ.get("OMP_NUM_THREADS") or self.environment.get("OMP_NUM_THREADS"):
            return None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.context.n_workers)

    def _scan(self) -> list[str]:
        from sthyper.backend._preload import loads_names, scan_imports

        program = self._command.program
        return self._companions(scan_imports(program), lambda names: loads_names(program, names))

    def _companions(self, modules: list[str], uses: Callable[[set[str]], bool]) -> list[str]:
        """Return modules to load, with what they load only when they are used."""
        tops = {name.partition(".")[0] for name in modules}
        if self.lightning is not None and "lightning" in tops:
            modules.append("sthyper.callbacks.lightning.report")
        if "lightning" in tops or ("torch" in tops and uses({"optim"})):
            # The first optimiser of a process imports it, which takes a second of every trial.
            modules.append("torch._dynamo")
        return modules

    def _inline_function(self) -> TunedFunction | None:
        """Return what runs in the tuner's own process, ``None`` for the script."""
        return None

    def _names_checkpoint_dir(self) -> bool:
        # Scripts that do not know the argument would fail on it; the environment has the folder anyway.
        source, fields = self._command.source, {ST_CHECKPOINT_DIR, "checkpoint_dir"}
        if source.suffix != ".py" or not fields.isdisjoint(self._command.fields):
            return False
        from sthyper.backend._preload import loads_names

        return loads_names(source, {ST_CHECKPOINT_DIR, "add_checkpointing_to_argparse", "parse_known_args"})

    # ---- GPUs ----------------------------------------------------------------------------------------

    def _open_gpus(self, n_workers: int) -> GpuPool | None:
        """Return the pool that trials get their GPUs from, ``None`` if they see what the tuner sees."""
        options = self._gpu_options
        self._gpus_of_run.clear()
        if VISIBLE_DEVICES in self.environment or options.per_trial == 0 or options.is_idle:
            return None
        gpus = visible_gpus()
        if not gpus and options.is_default:
            return None
        pool = GpuPool(options, gpus, n_workers)
        if self.launch == "inline":
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                logger.warning(
                    "launch='inline': CUDA has been started in this process, so trials see the GPUs that it was "
                    "started with"
                )
        return pool

    def _gpu_environment(self, trial_id: int) -> dict[str, str | None]:
        if self._gpu_options.per_trial == 0:
            return {VISIBLE_DEVICES: ""}
        if self._gpus is None:
            return {}
        if self.launch == "inline" and self._gpus_of_run:
            # These trials share a process, in which CUDA can be started with one set of GPUs only.
            gpus = next(iter(self._gpus_of_run.values()))
        else:
            gpus = self._gpus.take(trial_id)
        self._gpus_of_run[trial_id] = gpus
        return {VISIBLE_DEVICES: ",".join(gpus)}
