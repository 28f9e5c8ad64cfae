"""Functions as trials."""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sthyper import Reporter
from sthyper.backend import LocalBackend, PythonBackend, TrialBackend
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ExperimentError, TrialFailed
from sthyper.experiment import ExperimentResult
from sthyper.journal import read_journal
from sthyper.stopping_criterion import StoppingCriterion
from sthyper.testing import BackendConformance
from sthyper.tuner import Tuner

SPACE = {"x": uniform(0, 1), "epochs": 3}


def tune(
    function: Any,
    space: dict[str, Any] | None = None,
    *,
    trials: int = 1,
    scheduler: Any = None,
    max_failures: int = 0,
    **options: Any,
) -> ExperimentResult:
    space = SPACE if space is None else space
    scheduler = scheduler or RandomSearch(space, metric="loss", random_seed=0)
    backend = PythonBackend(function, space, **options)
    criterion = StoppingCriterion(max_num_trials_started=trials)
    return Tuner(backend, scheduler, criterion, n_workers=1, max_failures=max_failures).run()


def asha(**options: Any) -> ASHA:
    resource = {"resource_attr": "epoch", "max_resource_attr": "epochs", "grace_period": 1, "reduction_factor": 3}
    return ASHA(SPACE, metric="loss", random_seed=0, **resource, **options)


def std_err(experiment: Path, trial_id: int = 0) -> str:
    return (experiment / "trials" / str(trial_id) / "std.err").read_text()


def only_experiment() -> Path:
    (path,) = Path(os.environ["STHYPER_FOLDER"]).iterdir()
    return path


LAUNCHES = ["fork", "inline", pytest.param("exec", marks=pytest.mark.slow)]


def function_of(entry_point: Path) -> Any:
    """Return a function that runs the script of the suite."""

    def run(config):
        import runpy
        import sys

        sys.argv, argv = ["script.py", *(f"--{name}={value}" for name, value in config.items())], sys.argv
        try:
            runpy.run_path(str(entry_point), run_name="__main__")
        finally:
            sys.argv = argv

    return run


class TestFork(BackendConformance):
    def make_backend(self, entry_point: Path) -> TrialBackend:
        return PythonBackend(function_of(entry_point), {"steps": 1, "fail": 0, "wait": 0.0})


class TestInline(BackendConformance):
    ends_from_outside = False

    def make_backend(self, entry_point: Path) -> TrialBackend:
        return PythonBackend(function_of(entry_point), {"steps": 1, "fail": 0, "wait": 0.0}, launch="inline")


# ---- arguments and results -----------------------------------------------------------------------------


@pytest.mark.parametrize("launch", LAUNCHES)
def test_values_arrive_in_their_types_and_the_number_is_reported(launch):
    space = {
        "x": uniform(0, 1),
        "n": randint(1, 5),
        "flag": choice([True, False]),
        "word": choice(["a", "b"]),
        "layers": [1, 2],
        "options": {"a": 1.0},
        "nothing": None,
    }

    def f(x, n, flag, word, layers, options, nothing, seen=()):
        types = [type(v).__name__ for v in (x, n, flag, word, layers, options, nothing)]
        assert types == ["float", "int", "bool", "str", "list", "dict", "NoneType"], types
        return {"loss": x + n, "types": " ".join(types), "layers": layers}

    experiment = tune(f, space, trials=2, launch=launch)
    assert list(experiment.results["types"]) == ["float int bool str list dict NoneType"] * 2
    for _, row in experiment.results.iterrows():
        assert row["loss"] == row["config_x"] + row["config_n"]


class Scalar:
    """A number as numpy and torch have them."""

    size = 1

    def item(self):
        return 0.25


@pytest.mark.parametrize("value", [3, 0.25, np.float32(0.25), np.array([0.25]), Scalar(), {"loss": np.float64(0.25)}])
def test_numbers_of_all_kinds(value):
    experiment = tune(lambda config: value, launch="inline")
    assert experiment.results["loss"].tolist() == [3 if value == 3 else 0.25]


def test_a_tensor_is_a_number():
    torch = pytest.importorskip("torch")
    assert tune(lambda config: torch.tensor(0.25), launch="inline").results["loss"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((1, 2), r"f returned \(1, 2\) of type tuple; return a number, or a dictionary that holds the metric 'loss'"),
        ("good", "f returned 'good' of type str"),
        (True, "f returned True of type bool"),
        (np.zeros(3), r"f returned array\(\[0., 0., 0.\]\) of type ndarray"),
        ({"los": 1}, r"f returned a dictionary without the metric 'loss', only \['los'\] \(did you mean 'los'\?\)"),
        ({"loss": 1, 3: 1}, "with the key 3; names of metrics are strings"),
        ({"loss": 1, "model": object()}, "metric 'model' is of type object"),
        ({"loss": 1, "st_x": 1}, "'st_x' is not allowed"),
        (None, "no report: the function returned None without one"),
    ],
)
def test_what_cannot_be_a_result_fails_the_trial(value, words):
    def f(config):
        return value

    with pytest.raises(TrialFailed, match=words):
        tune(f, launch="inline")


def test_what_cannot_be_a_result_fails_the_trial_in_a_process():
    def f(config):
        return (1, 2)

    with pytest.raises(TrialFailed, match=r"exit 1(.|\n)*TypeError: f returned \(1, 2\)"):
        tune(f)
    assert std_err(only_experiment()).startswith("TypeError: f returned (1, 2)")  # none of our frames


@pytest.mark.parametrize("launch", ["fork", "inline"])
def test_a_value_returned_after_reports_is_ignored_with_one_warning(launch, caplog):
    def f(config):
        report = Reporter()
        for epoch in (1, 2):
            report(epoch=epoch, loss=epoch)
        return "the model" if config["x"] >= 0.5 else 17

    with caplog.at_level(logging.WARNING, "sthyper"):
        experiment = tune(f, trials=4, launch=launch)
    assert {t["config"]["x"] >= 0.5 for t in starts(experiment)} == {True, False}
    assert experiment.results["loss"].tolist() == [1, 2] * 4
    assert statuses(experiment) == ["Completed"] * 4
    (warning,) = [r.message for r in caplog.records]
    assert "what f returned is ignored, as it has reported" in warning
    assert "st_returned" not in experiment.results


def starts(experiment: ExperimentResult) -> list[dict[str, Any]]:
    return [record for record in read_journal(experiment.path) if record["type"] == "start"]


def statuses(experiment: ExperimentResult) -> list[str]:
    return [record["status"] for record in read_journal(experiment.path) if record["type"] == "status"]


def test_reports_of_another_process_of_the_trial_count(caplog):
    def f(config):
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=lambda: Reporter()(loss=1.0))
        child.start()
        child.join()
        return object()

    experiment = tune(f)
    assert experiment.results["loss"].tolist() == [1.0]
    assert "is ignored" in caplog.text


@pytest.mark.parametrize("value", [0.5, {"loss": 0.5}, {"loss": 0.5, "epoch": 1}])
def test_the_resource_of_a_returned_value(value):
    experiment = tune(lambda config: value, scheduler=asha(), trials=1)
    given = isinstance(value, dict) and "epoch" in value
    assert experiment.results[["epoch", "loss"]].values.tolist() == [[1 if given else 3, 0.5]]
    assert statuses(experiment) == ["Completed"]


def test_without_a_metric_a_number_is_called_value(capsys, tmp_path, monkeypatch):
    from sthyper._function_trial import TunedFunction

    (tmp_path / "config.json").write_text('{"x": 2}')
    monkeypatch.setenv("STHYPER_TRIAL_DIR", str(tmp_path))
    TunedFunction(lambda x: x * 2, "f", True).call()
    assert re.match(r"\[tune-metric\]: \{\"value\": 4, ", capsys.readouterr().out)


# ---- where functions come from -------------------------------------------------------------------------


def factory(factor):
    def inner(config, extra=0):
        return config["x"] * factor + extra

    return inner


class Objective:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, config):
        return config["x"] * self.factor

    def method(self, x, epochs):
        return x * self.factor


@pytest.mark.parametrize("launch", ["fork", "inline"])
@pytest.mark.parametrize(
    "function",
    [
        factory(2),
        functools.partial(factory(1), extra=0.5),
        Objective(2),
        Objective(2).method,
        lambda x, epochs: 2 * x,
        functools.lru_cache(lambda x, epochs: 2 * x),
        functools.lru_cache(functools.partial(lambda factor, x, epochs: factor * x, 2)),
    ],
    ids=["closure", "partial", "object", "method", "lambda", "cached", "cached partial"],
)
def test_functions_of_all_kinds(function, launch):
    (row,) = tune(function, launch=launch).results.to_dict("records")
    extra = 0.5 if isinstance(function, functools.partial) else 0
    assert row["loss"] == row["config_x"] * (1 if extra else 2) + extra


@pytest.mark.parametrize(
    ("function", "name"),
    [(factory(2), "inner"), (functools.partial(Objective(2).method), "method"), (Objective(1), "Objective")],
)
def test_the_experiment_is_called_after_the_function(function, name):
    backend = PythonBackend(function, SPACE)
    tuner = Tuner(backend, RandomSearch(SPACE, metric="loss"), StoppingCriterion(max_num_trials_started=1), n_workers=1)
    assert re.match(rf"{name}-\d{{4}}-", tuner.name)
    assert (tuner.metadata["entrypoint"], tuner.metadata["backend"]) == (name, "PythonBackend")
    path = backend.entrypoint_path()
    assert path is not None
    assert path.samefile(__file__)


def test_names_without_letters():
    names = {}
    exec("目的 = lambda config: 0\n目的.__name__ = '目的'", names)
    assert PythonBackend(names["目的"], SPACE).entrypoint_name() == "function"
    assert PythonBackend(names["目的"], SPACE).entrypoint_path() is None
    assert PythonBackend(lambda config: 0, SPACE).entrypoint_name() == "<lambda>"


def run_main(folder: Path, text: str, *args: str, stdin: bool = False, timeout: float = 55.0) -> str:
    """Run a script that tunes, from another folder, and return what it printed."""
    folder.mkdir(exist_ok=True)
    text = HEAD + textwrap.dedent(text)
    path = folder / "main.py"
    path.write_text(text)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *([] if stdin else [str(path)]), *args],
        input=text if stdin else "",
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


HEAD = """
import json, os, sys, threading
from pathlib import Path
from sthyper import Reporter, StoppingCriterion, Tuner
from sthyper.backend import PythonBackend
from sthyper.baselines import RandomSearch
from sthyper.config_space import uniform

def tune(function, trials=1, **options):
    space = {"x": uniform(0, 1)}
    tuner = Tuner(
        PythonBackend(function, space, **options),
        RandomSearch(space, metric="loss", random_seed=0),
        StoppingCriterion(max_num_trials_started=trials),
        n_workers=1,
    )
    return tuner.run()
"""


def test_a_function_of_main_with_its_neighbours(tmp_path):
    """Helper modules beside the script, __file__, globals, a class and a cache of __main__; run from elsewhere."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "helper_of_main.py").write_text("FACTOR = 2\ndef scaled(x):\n    return FACTOR * x\n")
    (folder / "queue.py").write_text("WHOSE = 'the user'\n")
    (folder / "data.txt").write_text("40")
    out = run_main(
        folder,
        """
        import functools
        import helper_of_main
        from helper_of_main import scaled

        OFFSET = 1

        class Model:
            def predict(self, x):
                return scaled(x) + OFFSET

        @functools.lru_cache
        def load():
            return int((Path(__file__).parent / "data.txt").read_text())

        def objective(config):
            import queue

            import __future__
            assert __name__ == "__main__" and sys.modules["__main__"].Model is Model
            assert sys.modules["__main__"].__file__.endswith("run_trial.py"), sys.modules["__main__"].__file__
            assert len(sys.argv) == 1 and os.path.samefile(sys.argv[0], sys.modules["__main__"].__file__)
            assert os.getcwd().endswith("elsewhere")
            assert queue.WHOSE == "the user"
            return {"loss": Model().predict(config["x"]) + load() + load(), "factor": helper_of_main.FACTOR}

        if __name__ == "__main__":
            helper_of_main.FACTOR = 3  # of this process only: modules are imported anew
            (row,) = tune(objective).results.to_dict("records")
            print(row["loss"] - 2 * row["config_x"], row["factor"])
        """,
    )
    assert out == "81.0 2\n"


def test_a_function_of_an_interactive_session(tmp_path):
    out = run_main(
        tmp_path,
        """
        class Model:
            def loss(self, x):
                return x
        def objective(x):
            import multiprocessing
            return Model().loss(x)
        (row,) = tune(objective).results.to_dict("records")
        print(row["loss"] == row["config_x"], PythonBackend(objective, {"x": 1}).entrypoint_path())
        """,
        stdin=True,
    )
    assert out == "True None\n"


# ---- what cannot be sent -------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_refused_before_the_first_trial():
    lock = threading.Lock()

    def f(config):
        with lock:
            return 0

    with pytest.raises(ExperimentError, match="tune_function f cannot be sent.*variable `lock`.*make it inside"):
        tune(f)
    assert not (only_experiment() / "journal.jsonl").exists()
    assert tune(f, launch="inline").results["loss"].tolist() == [0]


def test_what_cannot_be_loaded_is_refused_before_the_first_trial(tmp_path):
    out = run_main(
        tmp_path,
        """
        from typing import NewType
        UserId = NewType("UserId", int)
        def by_name(config):
            return UserId(3)
        def imports_main(config):
            import __main__
            return __main__.UserId
        if __name__ == "__main__":
            for function in (by_name, imports_main):
                try:
                    tune(function)
                except Exception as error:
                    print(type(error).__name__, error)
        """,
    )
    first, second = out.splitlines()
    assert first.startswith(
        "ExperimentError tune_function by_name cannot be loaded in a trial: it uses 'UserId' (a NewType) of __main__, "
        "which is pickled by its name only"
    )
    assert second.startswith("ExperimentError tune_function imports_main cannot be sent to the trials: `import __main_")
    for path in Path(os.environ["STHYPER_FOLDER"]).iterdir():
        assert not (path / "trials").exists()
        assert not (path / "journal.jsonl").exists()


def write_module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


def import_from(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import importlib

    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)  # at the end of the test
    sys.modules[name] = module
    return module


def test_a_module_that_fails_in_a_fresh_process(tmp_path, monkeypatch):
    write_module(
        tmp_path, "needs_state", "import os\nif os.environ['MOOD'] != 'good':\n    1 / 0\ndef f(config): return 0"
    )
    monkeypatch.setenv("MOOD", "good")
    f = import_from(tmp_path, "needs_state", monkeypatch).f
    assert tune(f).results["loss"].tolist() == [0]
    with pytest.raises(
        ExperimentError, match=r"f cannot be loaded in a trial(.|\n)*ZeroDivisionError(.|\n)*needs_state.py"
    ):
        tune(f, environment={"MOOD": "bad"})


def test_loading_may_take_no_longer_than_the_first_report(tmp_path, monkeypatch):
    text = "import os, time\nif os.environ.get('STHYPER_TRIAL_ID'):\n    time.sleep(30)\ndef f(config): return 0"
    write_module(tmp_path, "slow_module", text)
    f = import_from(tmp_path, "slow_module", monkeypatch).f
    with pytest.raises(ExperimentError, match=r"cannot be loaded.*takes longer than first_report_timeout=0.3 s"):
        tune(f, first_report_timeout=0.3)


def test_a_module_that_trains_when_it_is_imported(tmp_path, monkeypatch):
    write_module(tmp_path, "trains", "from sthyper import Reporter\nReporter()(loss=1)\ndef f(config): return 0")
    f = import_from(tmp_path, "trains", monkeypatch).f
    with pytest.raises(ExperimentError, match="runs a training that reports; put that below `if __name__"):
        tune(f)


def test_a_module_that_tunes_when_it_is_imported(tmp_path):
    (tmp_path / "unguarded.py").write_text(HEAD + "\ndef f(config):\n    return 0\n\ntune(f)\n")
    done = subprocess.run(
        [sys.executable, "-c", "import unguarded"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert "a Tuner was started inside a trial" in done.stderr


def test_large_functions_are_warned_of(caplog):
    table = np.zeros(200_000)
    assert tune(lambda config: float(table[0])).results["loss"].tolist() == [0]
    assert re.search(r"takes 1\.6 MB with what it uses.*variable `table` 1\.6 MB", caplog.text)


# ---- in the trial --------------------------------------------------------------------------------------


def test_the_traceback_is_the_users():
    def broken(config):
        return config["no such key"]

    with pytest.raises(TrialFailed, match="KeyError: 'no such key'"):
        tune(broken)
    text = std_err(only_experiment())
    assert 'return config["no such key"]' in text
    assert "_function_trial" not in text
    assert "run_trial.py" not in text


def test_the_trial_exits_at_its_report_and_resumes_from_its_checkpoint(tmp_path):
    """ASHA with pauses: a function with a checkpoint trains each epoch once."""
    log = tmp_path / "log"

    def f(config):
        report = Reporter()
        os.makedirs(report.checkpoint_dir, exist_ok=True)
        path = os.path.join(report.checkpoint_dir, "epoch")
        done = int(Path(path).read_text()) if os.path.exists(path) else 0
        try:
            for epoch in range(done + 1, config["epochs"] + 1):
                with open(log, "a") as file:
                    file.write(f"{report.trial_id} {epoch}\n")
                Path(path).write_text(str(epoch))
                report(epoch=epoch, loss=config["x"] / epoch)
        finally:
            with open(log, "a") as file:
                file.write(f"{report.trial_id} left\n")

    experiment = tune(f, scheduler=asha(type="promotion"), trials=4)
    trained = [line for line in log.read_text().splitlines() if not line.endswith("left")]
    assert len(trained) == len(set(trained)) == len(experiment.results)
    runs = [r for r in read_journal(experiment.path) if r["type"] in ("start", "resume")]
    assert len(runs) > 4
    assert log.read_text().count("left") == len(runs)


@pytest.mark.parametrize("launch", ["fork", "inline"])
def test_a_reporter_from_outside_counts_from_the_start_of_the_trial(launch):
    report = Reporter()
    time.sleep(0.3)

    def f(config):
        time.sleep(0.02)
        report(loss=1.0)
        report(loss=2.0)

    experiment = tune(f, trials=2, launch=launch, cost_per_hour=3600.0)
    assert experiment.results["st_worker_iter"].tolist() == [0, 1, 0, 1]
    times = experiment.results["st_worker_time"]
    assert ((times >= 0.02) & (times < 0.25)).all(), times
    assert np.allclose(experiment.results["st_worker_cost"], times)


def test_seeds(tmp_path):
    def f(config):
        import random

        legacy = np.random.rand()  # noqa: NPY002 - the global generator is what is seeded
        return {"loss": random.random(), "numpy": legacy, "seed": Reporter().seed}

    first = tune(f, trials=2).results
    assert first["loss"].nunique() == first["numpy"].nunique() == 2
    again = tune(f, trials=2, launch="exec").results
    for name in ("loss", "numpy", "seed"):
        assert first[name].tolist() == again[name].tolist()


def test_run_trial_by_hand_repeats_the_trial(tmp_path):
    experiment = tune(lambda config: config["x"])
    done = subprocess.run(
        [sys.executable, str(experiment.path / "trials/0/run_trial.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert f'{{"value": {experiment.results["config_x"].tolist()[0]}, "st_worker' in done.stdout, done.stderr


def test_files_of_the_experiment(monkeypatch):
    old = os.umask(0)
    try:
        experiment = tune(lambda config: 0)
    finally:
        os.umask(old)
    assert sorted(os.listdir(experiment.path / "tune_function")) == ["function.pkl"]
    assert (experiment.path / "tune_function" / "function.pkl").stat().st_mode & 0o777 == 0o600
    # Nothing of it is loaded again.
    (experiment.path / "tune_function" / "function.pkl").write_bytes(b"no pickle")
    from sthyper import load_experiment

    assert load_experiment(str(experiment.path)).best_value == 0


def test_a_changed_file_is_not_loaded(monkeypatch):
    original = PythonBackend._schedule

    def tampered(self, trial, run):
        path = self._folder() / "function.pkl"
        path.write_bytes(path.read_bytes() + b".")
        original(self, trial, run)

    monkeypatch.setattr(PythonBackend, "_schedule", tampered)
    with pytest.raises(TrialFailed, match="was changed after the tuner had written it"):
        tune(lambda config: 0)


# ---- options -------------------------------------------------------------------------------------------


def test_inline_calls_the_very_function():
    seen = []

    def f(config):
        seen.append((config["x"], threading.current_thread() is threading.main_thread(), sys.modules["__main__"]))
        return len(seen)

    argv, path = list(sys.argv), list(sys.path)
    experiment = tune(f, trials=3, launch="inline")
    assert experiment.results["loss"].tolist() == [1, 2, 3]
    assert [x for x, _, _ in seen] == experiment.results["config_x"].tolist()
    assert {main_thread for _, main_thread, _ in seen} == {True}
    assert {main for _, _, main in seen} == {sys.modules["__main__"]}
    assert (sys.argv, sys.path) == (argv, path)
    assert not (experiment.path / "tune_function").exists()
    backend = PythonBackend(f, SPACE, launch="inline")
    tuner = Tuner(backend, RandomSearch(SPACE, metric="loss"), StoppingCriterion(max_num_trials_started=1), 2)
    with pytest.raises(ValueError, match="n_workers must be 1, got 2"):
        tuner.run()


def test_launch_and_preload(tmp_path):
    import yaml

    def f(config):
        loaded = {m for m in ("click.testing", "yaml", "psutil") if m in sys.modules}
        import click.testing
        from psutil import Process

        forked = "_sthyper_trial_process" in sys.modules
        assert click.testing
        assert Process
        return {"loss": yaml.safe_load("0"), "forked": forked, "loaded": " ".join(sorted(loaded))}

    def outcome(**options):
        row = tune(f, **options).results.iloc[0]
        return bool(row["forked"]), row["loaded"]

    # Loading the function imports what it refers to; what it imports itself is there before only if it was preloaded.
    assert outcome(launch="fork") == (True, "click.testing psutil yaml")
    assert outcome(launch="fork", preload=False) == (True, "yaml")
    assert outcome(launch="fork", preload=["psutil"]) == (True, "psutil yaml")
    assert outcome(launch="exec") == (False, "yaml")


def test_the_scan_follows_local_modules_and_names_optimisers(tmp_path, monkeypatch):
    write_module(tmp_path, "local_data", "from sklearn.datasets import load_digits\ndef load(): return load_digits()")

    def scan(function, **options):
        from sthyper.backend._function_pickle import pickle_function

        backend = PythonBackend(function, SPACE, **options)
        _, backend._needs = pickle_function(backend._tuned)
        return backend._scan()

    monkeypatch.syspath_prepend(str(tmp_path))

    def imports_inside(config):
        import torch
        from local_data import load

        return torch, load

    modules = scan(imports_inside)
    assert {"torch", "sklearn.datasets", "cloudpickle", "sthyper._function_trial"} <= set(modules)
    assert "torch._dynamo" not in modules
    assert "local_data" not in modules

    def optimises(config):
        import torch

        return torch.optim.SGD

    assert "torch._dynamo" in scan(optimises)

    def trains(config):
        import lightning

        return lightning

    assert "sthyper.callbacks.lightning.report" in scan(trains, lightning={"metrics": {"loss": "val"}})
    assert "sthyper.callbacks.lightning.report" not in scan(trains)


def test_other_options_reach_the_trial(tmp_path):
    def f(config):
        return {"loss": 0.0, "cwd": os.getcwd(), "omp": os.environ["OMP_NUM_THREADS"], "x": os.environ.get("X", "")}

    row = tune(f, workdir=tmp_path, threads_per_trial=3, environment={"X": "y"}).results.iloc[0]
    assert (row["cwd"], str(row["omp"]), row["x"]) == (str(tmp_path), "3", "y")
    experiment = tune(f, workdir="trial", channel="tcp")
    assert experiment.results.iloc[0]["cwd"] == str(experiment.path / "trials" / "0")


def test_a_silent_function_is_hung():
    def f(config):
        Reporter()(loss=1.0)
        time.sleep(60)

    with pytest.raises(TrialFailed, match="hung"):
        tune(f, trial_timeout=0.3)
    with pytest.raises(TrialFailed, match="hung"):
        tune(lambda config: time.sleep(60), first_report_timeout=0.3)


def test_arguments_are_those_of_the_local_backend():
    """Every option that makes sense for functions is there, with the same default."""
    import inspect

    local = inspect.signature(LocalBackend).parameters
    python = inspect.signature(PythonBackend).parameters
    assert set(local) - set(python) == {"entry_point", "pass_args_as_json"}
    assert set(python) - set(local) == {"tune_function", "config_space"}
    assert {n: p.default for n, p in python.items() if n in local} == {
        n: p.default for n, p in local.items() if n in python
    }


OPTIONS = {
    "rewrite_max_resource": True,
    "launch": "exec",
    "preload": ["yaml"],
    "stop_grace": 3.0,
    "trial_timeout": 4.0,
    "first_report_timeout": 5.0,
    "workdir": "trial",
    "threads_per_trial": 2,
    "environment": {"A": "b"},
    "cost_per_hour": 6.0,
    "lightning": {"metrics": {"a": "b"}},
    "channel": "tcp:localhost:0",
    "delete_checkpoints": True,
    "rotate_gpus": False,
    "num_gpus_per_trial": 0.5,
    "gpus_to_use": [1],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_handed_on(name, tmp_path):
    (tmp_path / "train.py").touch()
    if name in ("num_gpus_per_trial", "gpus_to_use"):
        option = {name: OPTIONS[name], "rotate_gpus": True}
    else:
        option = {name: OPTIONS[name]}

    def state(**options):
        return {k: v for k, v in vars(PythonBackend(factory(1), SPACE, **options)).items() if k in known}

    local = vars(LocalBackend(tmp_path / "train.py", **option))
    own = {"_command", "_arguments"}  # what is run, and what the constructor was called with
    known = {k for k in local if (k not in own and type(local[k]).__eq__ is not object.__eq__) or local[k] is None}
    assert state(**option) == {k: local[k] for k in known}
    assert state(**option) != state()


def test_checks_of_the_local_backend_apply():
    with pytest.raises(ValueError, match="launch must be one of.*did you mean 'fork'"):
        PythonBackend(lambda config: 0, SPACE, launch="forks")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stop_grace"):
        PythonBackend(lambda config: 0, SPACE, stop_grace=-1)


def test_the_supervisor_may_die_while_the_function_is_tried_out(tmp_path, monkeypatch):
    """The first process that loads the function kills the fork server; the next finds everything in order."""
    mark = tmp_path / "mark"
    write_module(
        tmp_path,
        "kills_once",
        f"""
        import os, pathlib, signal
        if os.environ.get("STHYPER_TRIAL_ID") and not pathlib.Path({str(mark)!r}).exists():
            pathlib.Path({str(mark)!r}).touch()
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        def f(config): return 0
        """,
    )
    f = import_from(tmp_path, "kills_once", monkeypatch).f
    assert tune(f).results["loss"].tolist() == [0]
    assert mark.exists()
