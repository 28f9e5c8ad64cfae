"""One call from a function or a script to the result."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sthyper._tuning.checks import check_count, check_process
from sthyper._tuning.earlier import check_resume, find_earlier, own_scheduler
from sthyper._tuning.identity import make_name
from sthyper.backend.base import TrialBackend
from sthyper.baselines import ASHA, RandomSearch, baselines_dict
from sthyper.config_space import Domain, check_config_space
from sthyper.errors import ConfigSpaceError, closest
from sthyper.schedulers.base import TrialScheduler
from sthyper.schedulers.resources import MAX_RESOURCE_NAMES, infer_max_resource
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.tuner_callback import TunerCallback

if TYPE_CHECKING:
    from sthyper.experiment import ExperimentResult

__all__ = ["tune"]

logger = logging.getLogger(__name__)

DEFAULT_TRIALS = 20
"""Number of trials if neither ``max_trials`` nor ``max_time`` is given."""
MOST_WORKERS = 4
"""Number of workers by default, at most, on a machine without GPUs."""


def tune(
    function_or_script: Callable[..., Any] | str | Path | TrialBackend,
    config_space: dict[str, Any],
    metric: str | None = None,
    mode: str = "min",
    scheduler: TrialScheduler | str | None = None,
    *,
    n_workers: int | None = None,
    max_time: float | None = None,
    max_trials: int | None = None,
    seed: int | None = None,
    launch: Literal["auto", "fork", "exec", "inline"] = "auto",
    warm_start: Sequence[ExperimentResult | str | Path] = (),
    debug: bool = False,
    points_to_evaluate: list[dict[str, Any]] | None = None,
    resource_attr: str | None = None,
    name: str | None = None,
    max_failures: int = 1,
    callbacks: Sequence[TunerCallback] | None = None,
    num_gpus_per_trial: float | None = None,
    resume: bool | Literal["auto"] | str | Path = False,
) -> ExperimentResult:
    """Tune the hyperparameters of a function or a script, and return the experiment's result.

    ::

        def train(lr, width):
            ...
            return validation_loss

        result = tune(train, {"lr": loguniform(1e-4, 1e-1), "width": randint(8, 64)}, max_trials=30)
        print(result.best_value, result.best_config())

    May be called in a notebook, in a script without ``if __name__ == "__main__":``, and interactively. Ctrl-C ends the
    trials and returns what was found.

    Args:
        function_or_script: A function of the configuration (see :class:`sthyper.backend.PythonBackend`), the path of a
            training script (:class:`sthyper.backend.LocalBackend`), or a backend, for its further options.
        config_space: Configuration space.
        metric: Name of the metric. Without it that of ``scheduler``, else ``"value"``: the number that a function
            returns. A script's must be named.
        mode: ``"min"`` or ``"max"``.
        scheduler: A scheduler, the name of one (``"ASHA"``, ``"random search"``, ...; case does not matter), or
            ``None``: ASHA if the space has a constant ``epochs``, ``max_t`` or ``max_epochs`` of at least 2, else
            random search. ASHA stops poor trials early if they report (``Reporter()(epoch=1, loss=0.5)``); it needs
            such a constant. A scheduler must agree with the other arguments.
        n_workers: Number of trials that run at the same time. Default: as many as there are GPUs for; without GPUs (or
            with ``num_gpus_per_trial=0``) the number of cores, but 4 at most; 1 inline.
        max_time: Seconds after which the experiment ends; ``math.inf`` for no end.
        max_trials: Number of trials that are started. If neither ``max_time`` nor ``max_trials`` is given: 20.
        seed: Seed of suggestions and trials, in [0, 2**31 - 1]; drawn from the system if ``None``.
        launch: See the backends; ``"inline"`` runs the trials in this process.
        warm_start: Earlier experiments (results, names or paths) to learn from; see :class:`sthyper.Tuner`.
        debug: Whether to run the trials one after another in this process, so that breakpoints and tracebacks work,
            and to log what happens to stderr.
        points_to_evaluate: Configurations to try first; partial ones are completed by the mid-point rule. ``None`` is
            one configuration of mid-points, ``[]`` none.
        resource_attr: Name of the resource in reports, for schedulers that stop trials early; default ``"epoch"``.
        name: Name of the experiment (letters, digits and ``-``); default that of the function or script.
        max_failures: The experiment ends with an error when more trials than this fail.
        callbacks: See :class:`sthyper.Tuner`.
        num_gpus_per_trial: See the backends.
        resume: ``"auto"``: go on with the newest experiment of this name that has not come to its end (the process was
            killed or interrupted, or an error ended it) and that was made with the same function or script, space,
            metric and scheduler; else begin a new one. ``True``: go on with the newest of this name, finished or not,
            say with a larger ``max_trials``. A name or path: go on with that one. Limits, workers, callbacks and the
            function's code are those of this call; ``seed`` may be left out; ``warm_start`` counts for a new one only.

    Returns:
        The result: :meth:`~sthyper.experiment.ExperimentResult.best_config`, ``best_value``, ``best_trial_id``,
        ``best_checkpoint``, :meth:`~sthyper.experiment.ExperimentResult.load_best`, ``results``.

    Raises:
        ConfigSpaceError: If the space cannot be used, or lacks what the scheduler needs.
        ExperimentError: If it is called inside a trial or a distributed rank, or the experiment cannot go on, say
            because another tuner runs it or because it was made with other arguments than ``resume`` finds here.
        FileNotFoundError: If the script, or an experiment of ``warm_start`` or ``resume``, is missing.
        TrialFailed: If more than ``max_failures`` trials failed.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or unknown, or contradicts another.
    """
    from sthyper.tuner import Tuner  # which exports this function

    check_process()
    check_config_space(config_space)
    check_resume(resume, name)
    criterion = _criterion(max_time, max_trials)
    if not isinstance(debug, bool):
        raise TypeError(f"debug must be True or False, got {debug!r}")
    if debug:
        launch = _inline(launch)
    if not isinstance(function_or_script, Callable | str | os.PathLike | TrialBackend):  # type: ignore[arg-type]
        raise TypeError(
            f"function_or_script must be a function, the path of a script, or a backend, got {function_or_script!r}"
        )
    backend = _backend(function_or_script, config_space, launch, num_gpus_per_trial)
    if metric is None and not _returns_values(backend) and not isinstance(scheduler, TrialScheduler):
        raise ValueError("metric must name what the script reports, such as metric='loss'; only functions go without")
    wanted = _Objective(config_space, metric, mode, seed, points_to_evaluate, resource_attr)
    made = _scheduler(scheduler, wanted)
    n_workers = _workers(n_workers, backend, num_gpus_per_trial)
    base = make_name(backend, name, suffix=False)
    earlier = find_earlier(resume, base, made, backend)
    if earlier is None:
        tuner = Tuner(
            backend,
            made,
            criterion,
            n_workers,
            max_failures=max_failures,
            tuner_name=name,
            callbacks=callbacks,
            warm_start=warm_start,
        )
    else:
        given: dict[str, Any] = {"trial_backend": backend, "stop_criterion": criterion, "n_workers": n_workers}
        given |= {"max_failures": max_failures, "callbacks": callbacks}
        if (own := own_scheduler(earlier, made)) is not None:
            given["scheduler"] = own
        tuner = Tuner._going_on(earlier, given)
    with _logging() if debug else nullcontext():
        result = tuner.run()
    if result.best_value is None:
        logger.warning("no trial has reported a finite %r, so that there is no best one", made.metric_names()[0])
    return result


# ---- limits and workers ----------------------------------------------------------------------------------


def _criterion(max_time: float | None, max_trials: int | None) -> StoppingCriterion:
    if max_trials is not None:
        check_count("max_trials", max_trials, 1)
    if max_time is not None:
        if isinstance(max_time, bool) or not isinstance(max_time, int | float):
            raise TypeError(f"max_time must be a number of seconds, got {max_time!r}")
        if not max_time > 0:
            raise ValueError(f"max_time must be a positive number of seconds, got {max_time!r}")
    if max_time is None and max_trials is None:
        max_trials = DEFAULT_TRIALS
    return StoppingCriterion(max_wallclock_time=max_time, max_num_trials_started=max_trials)


def _inline(launch: str) -> Literal["inline"]:
    if launch not in ("auto", "inline"):
        raise ValueError(f"launch must be 'auto' or 'inline' with debug=True, which runs trials inline, got {launch!r}")
    return "inline"


def _workers(n_workers: int | None, backend: TrialBackend, num_gpus_per_trial: float | None) -> int:
    inline = getattr(backend, "launch", None) == "inline"
    if n_workers is not None:
        check_count("n_workers", n_workers, 1)
        if inline and n_workers > 1:
            raise ValueError(
                f"n_workers must be 1 with debug=True or launch='inline', which run a trial at a time, got {n_workers}"
            )
        return n_workers
    if inline:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_gpus_per_trial != 0:
        from sthyper.backend.gpu import get_num_gpus

        if gpus := get_num_gpus():
            # A bit more, as 1 / (1 / 3) may fall short of 3.
            return max(1, min(cores, math.floor(gpus / (num_gpus_per_trial or 1) + 1e-6)))
    return min(MOST_WORKERS, cores)


def _backend(
    function_or_script: Callable[..., Any] | str | Path | TrialBackend,
    config_space: dict[str, Any],
    launch: Literal["auto", "fork", "exec", "inline"],
    num_gpus_per_trial: float | None,
) -> TrialBackend:
    from sthyper.backend import LocalBackend, PythonBackend

    if isinstance(function_or_script, TrialBackend):
        for argument, value, default in (("launch", launch, "auto"), ("num_gpus_per_trial", num_gpus_per_trial, None)):
            if value != default:
                raise ValueError(
                    f"{argument}={value!r} cannot be given together with a backend; pass it to "
                    f"{type(function_or_script).__name__}(...) instead"
                )
        return function_or_script
    if callable(function_or_script):
        return PythonBackend(function_or_script, config_space, launch=launch, num_gpus_per_trial=num_gpus_per_trial)
    return LocalBackend(function_or_script, launch=launch, num_gpus_per_trial=num_gpus_per_trial)


def _returns_values(backend: TrialBackend) -> bool:
    from sthyper.backend import PythonBackend

    return isinstance(backend, PythonBackend)


# ---- the scheduler ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Objective:
    """Arguments of :func:`tune` that concern the scheduler; see there."""

    config_space: dict[str, Any]
    metric: str | None
    mode: str
    seed: int | None
    points_to_evaluate: list[dict[str, Any]] | None
    resource_attr: str | None


def _scheduler(scheduler: TrialScheduler | str | None, wanted: _Objective) -> TrialScheduler:
    if isinstance(scheduler, TrialScheduler):
        _check_agreement(scheduler, wanted)
        return scheduler
    maximum = _maximum(wanted.config_space)
    if scheduler is None:
        trains_in_steps = maximum is not None and wanted.config_space[maximum] > 1
        method: type[TrialScheduler] = ASHA if trains_in_steps or wanted.resource_attr else RandomSearch
    else:
        method = _method(scheduler)
    make: Callable[..., TrialScheduler] = method
    arguments: dict[str, Any] = {
        "metric": "value" if wanted.metric is None else wanted.metric,
        "mode": wanted.mode,
        "points_to_evaluate": wanted.points_to_evaluate,
        "random_seed": wanted.seed,
    }
    if "resource_attr" in inspect.signature(method).parameters:
        if maximum is None:
            raise ConfigSpaceError(
                f"{method.__name__} stops trials early and has to know the largest resource: add a constant such as "
                '"epochs": 27 to config_space (the training gets it like the others), and report each epoch by '
                "Reporter()(epoch=..., ...)"
            )
        arguments |= {"resource_attr": wanted.resource_attr or "epoch", "max_resource_attr": maximum}
    elif wanted.resource_attr is not None:
        raise ValueError(f"resource_attr={wanted.resource_attr!r} has no effect: {method.__name__} knows no resource")
    return make(wanted.config_space, **arguments)


def _method(name: str) -> type[TrialScheduler]:
    if not isinstance(name, str):
        raise TypeError(f"scheduler must be a scheduler, the name of one, or None, got {name!r}")
    methods = {_plain(known): method for known, method in baselines_dict.items()}
    if _plain(name) not in methods:
        known = sorted({method.__name__ for method in baselines_dict.values()})
        raise ValueError(f"scheduler={name!r} is unknown{closest(_plain(name), known)}; known are {known}")
    return methods[_plain(name)]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _maximum(config_space: dict[str, Any]) -> str | None:
    """Return the name of the constant that holds the maximum resource."""
    for name in MAX_RESOURCE_NAMES:
        if name in config_space and not isinstance(config_space[name], Domain):
            infer_max_resource(config_space, max_resource_attr=name)  # raises for what is no positive int
            return name
    return None


def _check_agreement(scheduler: TrialScheduler, wanted: _Objective) -> None:
    kind = type(scheduler).__name__
    metric = scheduler.metric_names()[0]
    mode = scheduler.metric_mode()
    if wanted.metric is not None and wanted.metric != metric:
        raise ValueError(f"metric={wanted.metric!r} disagrees with scheduler: the metric of this {kind} is {metric!r}")
    first_mode = mode if isinstance(mode, str) else mode[0]
    if wanted.mode != first_mode:
        raise ValueError(
            f"mode={wanted.mode!r} disagrees with scheduler: that of this {kind} is {first_mode!r}; pass it here, too"
        )
    for argument, value in (
        ("seed", wanted.seed),
        ("points_to_evaluate", wanted.points_to_evaluate),
        ("resource_attr", wanted.resource_attr),
    ):
        if value is not None:
            raise ValueError(f"{argument} cannot be given together with a scheduler; pass it to {kind}(...) instead")
    spaces = (wanted.config_space, scheduler.config_space)
    absent = object()
    differing = [k for k in {**spaces[0], **spaces[1]} if spaces[0].get(k, absent) != spaces[1].get(k, absent)]
    if differing:
        raise ConfigSpaceError(
            f"config_space and that of scheduler differ in {', '.join(differing)}; give both the same"
        )


# ---- debugging -------------------------------------------------------------------------------------------


@contextmanager
def _logging() -> Iterator[None]:
    """Log all of sthyper to stderr, unless the application has handlers of its own."""
    log = logging.getLogger("sthyper")
    level = log.level
    handler: logging.Handler = logging.NullHandler()
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
