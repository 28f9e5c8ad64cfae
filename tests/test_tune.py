"""``tune``: one call from a function or a script to the result."""

from __future__ import annotations

import inspect
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sthyper
import sthyper.tuner
from sthyper import Reporter, tune
from sthyper.backend import LocalBackend, PythonBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ConfigSpaceError, ExperimentError, TrialFailed
from sthyper.experiment import ExperimentResult
from sthyper.journal import read_journal
from sthyper.schedulers import FIFOScheduler, TrialScheduler
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

SPACE = {"x": uniform(0.0, 1.0), "n": randint(1, 5)}
SCRIPT = """
    from sthyper import Reporter
    report = Reporter()
    report(loss=report.config["x"])
"""


def square(x: float, n: int) -> float:
    return (x - 0.3) ** 2 + n


def curve(config: dict[str, Any]) -> None:
    report = Reporter()
    for epoch in range(1, 10):
        report(epoch=epoch, step=epoch, loss=config["x"] + 1 / epoch)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train_it.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Put a program on the PATH that lists GPUs."""

    def install(count: int) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        listing = "\n".join(f"GPU {i}: Fake (UUID: GPU-{i})" for i in range(count))
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def session(experiment: ExperimentResult) -> dict[str, Any]:
    return next(record for record in read_journal(experiment.path) if record["type"] == "session")


def configs(experiment: ExperimentResult) -> list[dict[str, Any]]:
    return [trial.config for trial in experiment.trials.values()]


# ---- what is tuned -------------------------------------------------------------------------------------


def test_a_function_that_returns_a_number() -> None:
    result = tune(square, SPACE, max_trials=6, seed=1)
    assert isinstance(result, ExperimentResult)
    assert result.metric_names() == ["value"]
    values = {i: square(**trial.config) for i, trial in result.trials.items()}
    assert len(values) == 6
    assert result.best_trial_id == min(values, key=values.__getitem__)
    assert result.best_value == min(values.values())
    assert result.best_config()["config_x"] == result.trials[result.best_trial_id].config["x"]
    assert result.name.startswith("square-20")
    assert result.path.parent == Path(os.environ["STHYPER_FOLDER"])


def test_it_has_one_home() -> None:
    assert sthyper.tuner.tune is sthyper.tune is tune
    given = list(inspect.signature(tune).parameters)[:5]
    assert given == ["function_or_script", "config_space", "metric", "mode", "scheduler"]


def test_the_largest_value_with_mode_max() -> None:
    result = tune(square, SPACE, mode="max", max_trials=4, seed=1)
    assert result.best_value == max(square(**config) for config in configs(result))


def test_a_returned_dictionary_holds_the_metric() -> None:
    result = tune(lambda x, n: {"loss": x, "size": n}, SPACE, metric="loss", max_trials=3, seed=1)
    assert result.best_value == min(config["x"] for config in configs(result))
    assert list(result.results["size"]) == [result.trials[i].config["n"] for i in result.results["trial_id"]]
    assert result.name.startswith("lambda-20")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_script(script: Path, kind: type) -> None:
    result = tune(kind(script), SPACE, metric="loss", max_trials=3, seed=1)
    assert result.best_value == min(config["x"] for config in configs(result))
    assert result.name.startswith("train-it-20")
    assert result.metadata["backend"] == "LocalBackend"


def test_a_backend_for_its_options(script: Path) -> None:
    backend = LocalBackend(script, launch="inline", environment={"MY_OPTION": "7"})
    script.write_text("import os\nfrom sthyper import Reporter\nReporter()(loss=float(os.environ['MY_OPTION']))\n")
    result = tune(backend, SPACE, metric="loss", max_trials=1)
    assert result.best_value == 7.0
    assert session(result)["n_workers"] == 1
    result = tune(PythonBackend(square, SPACE, launch="inline"), SPACE, max_trials=1)
    assert result.metric_names() == ["value"]


# ---- the scheduler -------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", ["epochs", "max_t", "max_epochs"])
def test_a_constant_maximum_makes_it_asha(constant: str) -> None:
    result = tune(curve, {**SPACE, constant: 9}, metric="loss", max_trials=6, seed=1, launch="inline")
    assert result.metadata["scheduler_name"] == "ASHA"
    assert result.metadata["resource_attr"] == "epoch"
    lengths = [trial.num_results for trial in result.trials.values()]
    assert max(lengths) == 9
    assert min(lengths) < 9


@pytest.mark.parametrize("extra", [{}, {"epochs": 1}, {"epochs": randint(2, 9)}, {"steps": 9}])
def test_else_it_is_random_search(extra: dict[str, Any]) -> None:
    result = tune(lambda **config: config["x"], {**SPACE, **extra}, max_trials=2, launch="inline")
    assert result.metadata["scheduler_name"] == "RandomSearch"


def test_a_returned_number_counts_at_the_maximum() -> None:
    result = tune(lambda x, n, epochs: x, {**SPACE, "epochs": 9}, max_trials=3, seed=1)
    assert result.metadata["scheduler_name"] == "ASHA"
    assert list(result.results["epoch"]) == [9, 9, 9]
    assert {trial.status for trial in result.trials.values()} == {Status.completed}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ASHA", "ASHA"),
        ("asha", "ASHA"),
        ("random search", "RandomSearch"),
        ("Random_Search", "RandomSearch"),
        ("RANDOMSEARCH", "RandomSearch"),
        ("grid search", "GridSearch"),
    ],
)
def test_schedulers_by_name(given: str, expected: str) -> None:
    space = {"x": choice([0.1, 0.2]), "n": 1, "epochs": 9}
    result = tune(curve, space, metric="loss", scheduler=given, max_trials=2, launch="inline")
    assert result.metadata["scheduler_name"] == expected


def test_a_scheduler_object() -> None:
    scheduler = FIFOScheduler(SPACE, "loss", mode="max", random_seed=5)
    result = tune(lambda x, n: x, dict(SPACE), mode="max", scheduler=scheduler, max_trials=2)
    assert result.metadata["scheduler_name"] == "FIFOScheduler"
    assert result.metric_names() == ["loss"]
    assert session(result)["seed"] == 5


def test_the_resource_has_a_name() -> None:
    space = {**SPACE, "epochs": 9}
    result = tune(curve, space, metric="loss", resource_attr="step", max_trials=1, launch="inline")
    assert result.metadata["resource_attr"] == "step"


# ---- limits, workers, seeds ----------------------------------------------------------------------------


def test_without_limits_there_are_twenty_trials() -> None:
    assert len(tune(square, SPACE, launch="inline").trials) == 20


def test_without_a_finite_value_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    result = tune(lambda x: math.nan if x < 2 else x, {"x": uniform(0.0, 1.0)}, max_trials=2, launch="inline")
    assert result.best_value is None
    assert "no trial has reported a finite 'value'" in caplog.text
    caplog.clear()
    tune(lambda x: x, {"x": uniform(0.0, 1.0)}, max_trials=1, launch="inline")
    assert "finite" not in caplog.text


def test_a_metric_that_was_not_named_is_told() -> None:
    def report(x: float) -> None:
        Reporter()(loss=x)

    for function in (report, lambda x: {"loss": x}):
        with pytest.raises(TrialFailed, match=r"without the metric 'value'.*|'value' is missing") as failure:
            tune(function, {"x": uniform(0.0, 1.0)}, max_trials=1, max_failures=0, launch="inline")
        assert "metric='loss' where the experiment is set up" in str(failure.value)


def test_time_ends_it() -> None:
    def wait(x: float, n: int) -> float:
        time.sleep(0.05)
        return x

    started = time.monotonic()
    result = tune(wait, SPACE, max_time=0.5, launch="inline")
    assert 0.5 <= time.monotonic() - started < 5.0
    assert result.end_reason == "max_wallclock_time=0.5 is reached"
    assert 1 <= len(result.trials) < 20


def test_time_may_have_no_end() -> None:
    result = tune(lambda a: 1.0, {"a": choice(["p", "q", "r"])}, max_time=math.inf, launch="inline")
    assert len(result.trials) == 3
    assert result.end_reason == "the scheduler has nothing left to suggest"


def test_workers_by_default(nvidia_smi: Callable[[int], None]) -> None:
    cores = os.sched_getaffinity(0)
    result = tune(square, SPACE, max_trials=1)
    assert session(result)["n_workers"] == min(4, len(cores))
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert session(tune(square, SPACE, max_trials=1))["n_workers"] == 1
    finally:
        os.sched_setaffinity(0, cores)
    nvidia_smi(1)
    assert session(tune(square, SPACE, max_trials=1))["n_workers"] == 1
    shared = tune(square, SPACE, max_trials=1, num_gpus_per_trial=0.5)
    assert session(shared)["n_workers"] == min(2, len(cores))
    unused = tune(square, SPACE, max_trials=1, num_gpus_per_trial=0)
    assert session(unused)["n_workers"] == min(4, len(cores))
    assert session(tune(square, SPACE, max_trials=1, n_workers=3, num_gpus_per_trial=1 / 3))["n_workers"] == 3
    assert session(tune(square, SPACE, max_trials=1, launch="inline"))["n_workers"] == 1


def test_trials_get_gpus(nvidia_smi: Callable[[int], None]) -> None:
    nvidia_smi(4)
    result = tune(
        lambda x, n: {"loss": x, "gpus": os.environ["CUDA_VISIBLE_DEVICES"]},
        SPACE,
        metric="loss",
        max_trials=2,
        n_workers=1,
        num_gpus_per_trial=2,
    )
    assert list(result.results["gpus"]) == ["0,1", "2,3"]


def test_the_seed_decides() -> None:
    first, second, other = (
        configs(tune(square, SPACE, max_trials=3, seed=seed, launch="inline")) for seed in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize(("launch", "forked"), [("auto", 1.0), ("fork", 1.0), ("exec", 0.0), ("inline", 0.0)])
def test_launch_modes(launch: Any, forked: float) -> None:
    me = os.getpid()

    def where(x: float, n: int) -> dict[str, float]:
        return {"loss": float("_sthyper_trial_process" in sys.modules), "own": float(os.getpid() == me)}

    result = tune(where, SPACE, metric="loss", max_trials=1, launch=launch)
    assert result.best_value == forked
    assert result.best_config()["own"] == float(launch == "inline")


# ---- the other arguments -------------------------------------------------------------------------------


def test_first_configurations_and_earlier_experiments() -> None:
    space = {"a": choice(["p", "q", "r"])}
    first = tune(lambda a: 1.0, space, max_trials=1, points_to_evaluate=[{"a": "r"}], launch="inline", name="first")
    assert configs(first) == [{"a": "r"}]
    assert first.name.startswith("first-20")
    second = tune(lambda a: 1.0, space, points_to_evaluate=[], warm_start=["first"], launch="inline")
    assert sorted(config["a"] for config in configs(second)) == ["p", "q"]


class Count(TunerCallback):
    trials = 0

    def on_start_trial(self, trial: Trial) -> None:
        self.trials += 1


def test_warnings_name_the_users_line(recwarn: pytest.WarningsRecorder) -> None:
    space = {"x": uniform(0.0, 1.0)}
    first = tune(lambda x: x, space, max_trials=1, launch="inline")
    tune(lambda x: x, {"x": uniform(2.0, 3.0)}, max_trials=1, launch="inline", warm_start=[first])

    def interrupt(x: float) -> float:
        signal.raise_signal(signal.SIGTERM)
        return x

    tune(interrupt, space, max_trials=5, launch="inline")
    assert [str(w.message).partition(":")[0] for w in recwarn] == ["warm_start", "tuning ended early"]
    assert {w.filename for w in recwarn} == {__file__}


def test_callbacks_are_called() -> None:
    callback = Count()
    tune(square, SPACE, max_trials=3, callbacks=[callback], launch="inline")
    assert callback.trials == 3


def test_failures_end_it() -> None:
    def fail(x: float, n: int) -> float:
        raise RuntimeError("this cannot work")

    with pytest.raises(TrialFailed, match=r"(?s)1 trials failed, more than max_failures=0.*this cannot work"):
        tune(fail, SPACE, max_trials=5, max_failures=0)
    with pytest.raises(TrialFailed, match="3 trials failed"):
        tune(fail, SPACE, max_trials=5, max_failures=2, n_workers=1)


def test_silent_functions_end_as_hung() -> None:
    def hang(x: float, n: int) -> None:
        report = Reporter()
        if report.trial_id == 1:
            report(value=x)
        if report.trial_id < 2:
            time.sleep(600)
        report(value=x)

    def backend() -> PythonBackend:
        return PythonBackend(hang, SPACE, first_report_timeout=1.5, trial_timeout=1.0)

    result = tune(backend(), SPACE, max_trials=3, max_failures=2, n_workers=3)
    assert [result.trials[i].end_reason for i in range(3)] == ["hung", "hung", None]
    with pytest.raises(TrialFailed, match="(?s)failed: hung"):
        tune(backend(), SPACE, max_trials=1, max_failures=0)


def test_ctrl_c_returns_what_was_found() -> None:
    def slow_after_two(x: float, n: int) -> float:
        if os.environ["STHYPER_TRIAL_ID"] == "2":
            time.sleep(60)
        return x

    class Interrupt(TunerCallback):
        def on_start_trial(self, trial: Trial) -> None:
            if trial.trial_id == 2:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.warns(RuntimeWarning, match="SIGINT"):
        result = tune(slow_after_two, SPACE, n_workers=1, callbacks=[Interrupt()])
    assert len(result.trials) == 3
    assert result.best_value == min(configs(result)[i]["x"] for i in (0, 1))


# ---- debugging -----------------------------------------------------------------------------------------


def test_debug_runs_in_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def fail(x: float, n: int) -> float:
        seen.append(os.getpid())
        if len(seen) == 2:
            raise RuntimeError("look at me")
        return x

    result = tune(fail, SPACE, max_trials=3, debug=True)
    assert seen == [os.getpid()] * 3
    assert session(result)["n_workers"] == 1
    error = capfd.readouterr().err
    assert 'raise RuntimeError("look at me")' in error
    assert "line" in error
    assert "sthyper/_function_trial.py" not in error


def test_debug_logs_to_stderr(tmp_path: Path) -> None:
    code = """
        import logging
        from sthyper import tune
        from sthyper.config_space import uniform
        tune(lambda x: x, {"x": uniform(0, 1)}, max_trials=1, debug=True)
        assert logging.getLogger("sthyper").handlers == [] and logging.getLogger("sthyper").level == 0
        tune(lambda x: x, {"x": uniform(0, 1)}, max_trials=1, name="silent")
    """
    done = run_python("-c", textwrap.dedent(code), cwd=tmp_path)
    assert done.stdout == ""
    assert "trial 0 started: x=0.5" in done.stderr
    assert "trial 0 completed with" in done.stderr
    assert done.stderr.count("trial 0 started") == 1


# ---- where it is called --------------------------------------------------------------------------------


def run_python(*arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, input=text, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


WITHOUT_GUARD = """
import os
from sthyper import tune
from sthyper.config_space import uniform

with open("ran.txt", "a") as file:
    file.write("once\\n")

class Model:
    def __init__(self, x):
        self.x = x

def train(x):
    return Model(x).x + 1

result = tune(train, {"x": uniform(0, 1)}, max_trials=3, seed=1, launch=os.environ.get("LAUNCH", "auto"))
print(len(result.trials), result.best_value)
"""


@pytest.mark.parametrize("launch", ["fork", "exec"])
def test_a_script_without_a_guard(tmp_path: Path, launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.py").write_text(WITHOUT_GUARD)
    monkeypatch.setenv("LAUNCH", launch)
    done = run_python("study.py", cwd=tmp_path)
    assert done.stdout.split()[0] == "3"
    assert 1 <= float(done.stdout.split()[1]) <= 2
    assert (tmp_path / "ran.txt").read_text() == "once\n"


SESSION = """
from sthyper import tune
from sthyper.config_space import uniform
def train(x):
    return x + 1

result = tune(train, {"x": uniform(0, 1)}, max_trials=3, seed=1)
print(len(result.trials), result.best_value)
"""


def test_an_interactive_session(tmp_path: Path) -> None:
    done = run_python("-i", "-q", cwd=tmp_path, text=SESSION)
    assert done.stdout.split()[0] == "3"
    assert 1 <= float(done.stdout.split()[1]) <= 2
    assert "Traceback" not in done.stderr


def test_not_inside_a_trial() -> None:
    def train(x: float, n: int) -> float:
        return tune(square, SPACE, max_trials=1).best_value or 0.0

    with pytest.raises(TrialFailed, match="started inside a trial"):
        tune(train, SPACE, max_trials=1, max_failures=0)


def test_not_inside_a_distributed_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ExperimentError, match="distributed rank"):
        tune(square, SPACE)


# ---- bad arguments -------------------------------------------------------------------------------------


def asha(space: dict[str, Any]) -> TrialScheduler:
    return ASHA(space, metric="value", mode="max", max_resource_attr="epochs")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scheduler": "ahsa"}, ValueError, r"scheduler='ahsa' is unknown \(did you mean 'ASHA'\?\); known are .*ASHA"),
        ({"scheduler": "RandomSerach"}, ValueError, "did you mean 'RandomSearch'"),
        ({"scheduler": ASHA}, TypeError, "scheduler must be a scheduler, the name of one, or None"),
        ({"scheduler": "asha"}, ConfigSpaceError, 'add a constant such as "epochs": 27 to config_space'),
        ({"resource_attr": "epoch"}, ConfigSpaceError, 'add a constant such as "epochs": 27'),
        ({"scheduler": "random search", "resource_attr": "epoch"}, ValueError, "RandomSearch knows no resource"),
        ({"max_trials": 0}, ValueError, "max_trials must be at least 1, got 0"),
        ({"max_trials": 2.5}, TypeError, "max_trials must be an int"),
        ({"max_time": -1}, ValueError, "max_time must be a positive number of seconds, got -1"),
        ({"max_time": math.nan}, ValueError, "max_time must be a positive number of seconds, got nan"),
        ({"max_time": "1h"}, TypeError, "max_time must be a number of seconds, got '1h'"),
        ({"n_workers": 0}, ValueError, "n_workers must be at least 1"),
        ({"n_workers": 2, "launch": "inline"}, ValueError, "n_workers must be 1 with debug=True or launch='inline'"),
        ({"n_workers": 2, "debug": True}, ValueError, "n_workers must be 1 with debug=True"),
        ({"launch": "fork", "debug": True}, ValueError, "launch must be 'auto' or 'inline' with debug=True"),
        ({"launch": "frok"}, ValueError, "did you mean 'fork'"),
        ({"debug": 1}, TypeError, "debug must be True or False"),
        ({"mode": "maximum"}, ValueError, "mode must be 'min' or 'max'"),
        ({"seed": -1}, ValueError, "random_seed must be an int"),
        ({"warm_start": "earlier"}, TypeError, "warm_start must be a list"),
        ({"points_to_evaluate": [{"y": 1}]}, ConfigSpaceError, "'y' is not in the configuration space"),
        ({"callbacks": 3}, TypeError, "callbacks must be a list of TunerCallback objects, got 3"),
        ({"name": "a/b"}, ValueError, "name 'a/b' is not allowed"),
        ({"max_failures": -1}, ValueError, "max_failures must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tune(square, SPACE, **options)
    assert not Path(os.environ["STHYPER_FOLDER"]).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "loss"}, "metric='loss' disagrees with scheduler: the metric of this ASHA is 'value'"),
        ({"mode": "min"}, "mode='min' disagrees with scheduler: that of this ASHA is 'max'"),
        ({"seed": 1}, r"seed cannot be given together with a scheduler; pass it to ASHA\(...\)"),
        ({"points_to_evaluate": []}, "points_to_evaluate cannot be given"),
        ({"resource_attr": "epoch"}, "resource_attr cannot be given"),
        ({"config_space": {"x": uniform(0.0, 2.0), "epochs": 9}}, "differ in x, n; give both the same"),
    ],
)
def test_a_scheduler_must_agree(options: dict[str, Any], words: str) -> None:
    space = {**SPACE, "epochs": 9}
    arguments = {"config_space": dict(space), "mode": "max", "scheduler": asha(space), **options}
    with pytest.raises(ValueError, match=words):
        tune(lambda **config: config["x"], **arguments)


def test_a_constant_maximum_must_be_a_number() -> None:
    with pytest.raises(ConfigSpaceError, match=r"config_space\['epochs'\] must be a positive int, got 9.0"):
        tune(lambda **config: config["x"], {**SPACE, "epochs": 9.0})


@pytest.mark.parametrize("what", [None, 7, {"x": 1.0}])
def test_something_else_cannot_be_tuned(what: Any) -> None:
    with pytest.raises(TypeError, match="function_or_script must be a function, the path of a script, or a backend"):
        tune(what, SPACE)


def test_a_class_cannot_be_tuned() -> None:
    with pytest.raises(TypeError, match="got the class Count"):
        tune(Count, SPACE)


def test_scripts_need_a_metric_and_a_file(script: Path) -> None:
    for given in (script, LocalBackend(script)):
        with pytest.raises(ValueError, match="metric must name what the script reports"):
            tune(given, SPACE)
    with pytest.raises(FileNotFoundError, match="no_such.py"):
        tune("no_such.py", SPACE, metric="loss")


def test_options_of_a_backend_belong_to_it(script: Path) -> None:
    for options in ({"launch": "exec"}, {"num_gpus_per_trial": 1}, {"debug": True}):
        with pytest.raises(ValueError, match=r"together with a backend; pass it to LocalBackend\(...\) instead"):
            tune(LocalBackend(script), SPACE, metric="loss", **options)  # type: ignore[arg-type]


def test_a_backend_is_for_one_experiment() -> None:
    backend = PythonBackend(square, SPACE, launch="inline")
    tune(backend, SPACE, max_trials=1)
    with pytest.raises(ExperimentError, match="trial_backend has run the trials of another experiment"):
        tune(backend, SPACE, max_trials=1)


def test_the_space_is_looked_at_first() -> None:
    with pytest.raises((ConfigSpaceError, TypeError)):
        tune(square, {})
    with pytest.raises((ConfigSpaceError, TypeError)):
        tune(square, [uniform(0, 1)])  # type: ignore[arg-type]
    assert RandomSearch(SPACE, "value").config_space == SPACE
