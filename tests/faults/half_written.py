"""Kills a tuner by SIGKILL before each of its operations on files, and looks at what it leaves.

As a script, ``python half_written.py PHASE STRIDE``: for every STRIDE-th operation a fork begins an experiment (or goes
on with one, for the phase ``resume``) and kills itself there; others look at the folder and go on with it. Prints JSON.
"""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  not once for every fork

from sthyper import StoppingCriterion, Tuner, load_experiment
from sthyper.backend import LocalBackend, PythonBackend
from sthyper.baselines import ASHA
from sthyper.config_space import uniform
from sthyper.experiment import get_metadata, list_experiments

NAME = "made"
TRIALS = 3
SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "epochs": 2}
SCRIPT = """
import os
from sthyper import Reporter

report = Reporter()
os.makedirs(report.checkpoint_dir, exist_ok=True)
for epoch in range(int(report.last_resource or 0) + 1, report.config["epochs"] + 1):
    with open(os.path.join(report.checkpoint_dir, "weights"), "w") as file:
        file.write(f"{epoch}")
    report(epoch=epoch, loss=report.config["x"] / epoch)
"""


def function(x: float, epochs: int) -> None:
    from sthyper import Reporter

    report = Reporter()
    for epoch in range(int(report.last_resource or 0) + 1, epochs + 1):
        report(epoch=epoch, loss=x / epoch)


def backend(kind: str) -> LocalBackend:
    if kind == "function":
        return PythonBackend(function, SPACE, preload=False, delete_checkpoints=True)
    script = Path(os.environ["STHYPER_FOLDER"]).parent / "train.py"
    script.write_text(SCRIPT)
    if kind == "processes":
        return LocalBackend(script, preload=False, delete_checkpoints=True)
    return LocalBackend(script, launch="inline", delete_checkpoints=True)


def make(kind: str, trials: int = TRIALS) -> Tuner:
    scheduler = ASHA(SPACE, metric="loss", max_resource_attr="epochs", type="promotion", random_seed=7)
    return Tuner(
        backend(kind),
        scheduler,
        StoppingCriterion(max_num_trials_started=trials),
        n_workers=1,
        tuner_name=NAME,
        suffix_tuner_name=False,
        snapshot_interval=0.0,
        results_update_interval=0.0,
        metadata={"of": "the user"},
    )


def go_on(kind: str) -> Tuner:
    given = {"trial_backend": backend(kind)} if kind == "function" else {}
    return Tuner.resume(NAME, stop_criterion=StoppingCriterion(max_num_trials_started=TRIALS), **given)


# ---- killing -------------------------------------------------------------------------------------------------


def arm(n: int) -> None:
    """Kill this process before its n-th operation on files; one that creates a file counts once more behind it."""
    left = n

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(module: Any, name: str, creates: Callable[..., bool] | None = None) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if creates is not None and not creates(*args, **kwargs):
                return function(*args, **kwargs)
            count()
            if name == "write" and module is os and left == 1:  # the next one: half of this line
                function(args[0], args[1][: len(args[1]) // 2])
                count()
            result = function(*args, **kwargs)
            if creates is not None:
                count()
            return result

        setattr(module, name, counted)

    names = ("write", "pwrite", "fsync", "replace", "rename", "mkdir", "link", "unlink", "remove", "truncate", "rmdir")
    for name in (*names, "ftruncate"):
        before(os, name)
    before(os, "open", lambda path, flags, *rest, **named: bool(flags & (os.O_CREAT | os.O_TRUNC)))
    for module in (builtins, io):
        before(module, "open", lambda file, mode="r", *rest, **named: not set(mode).isdisjoint("wxa"))


def in_fork(work: Callable[[], None]) -> int:
    """Run something in a fork; return its exit status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


# ---- looking at it -------------------------------------------------------------------------------------------


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def rows(result: Any) -> list[list[Any]]:
    columns = ["trial_id", "epoch", "loss", "config_x"]
    return [list(row) for row in result.results[columns].itertuples(index=False)]


def look(kind: str, expected: list[list[Any]]) -> bool:
    """Look at what is there, and go on with it or begin; return whether it was an experiment."""
    warnings.simplefilter("error")
    complaints = Complaints()
    logging.getLogger("sthyper").addHandler(complaints)
    try:
        found = load_experiment(NAME)
    except FileNotFoundError:
        found = None
    if found is not None:
        assert NAME in str(found)
        assert found.metadata["of"] == "the user"
        assert found.results.empty == (not found.best_config())
        assert len(found.trials) <= TRIALS
    assert [e.name for e in list_experiments()] in ([], [NAME])
    assert set(get_metadata()) <= {NAME}
    assert not complaints.texts, complaints.texts
    result = (make(kind) if found is None else go_on(kind)).run()
    assert rows(result) == expected, (expected, rows(result), found is not None)
    assert result.best_checkpoint is not None or kind == "function"
    assert get_metadata()[NAME]["of"] == "the user"
    assert [e.name for e in list_experiments()] == [NAME]
    left = [p for pattern in ("*.tmp", "*.stale", "*.copying", "lock") for p in result.path.rglob(pattern)]
    # Nobody can tell whose an empty one is; it goes when it is older.
    assert not [p for p in left if p.stat().st_size or not p.name.startswith("lock.")], left
    return found is not None


def main(phase: str, kind: str, stride: int) -> dict[str, Any]:
    folder = Path(os.environ["STHYPER_FOLDER"])

    def fresh(template: Path | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if template is not None:
            shutil.copytree(template, folder)

    fresh(None)
    undisturbed = folder.with_name("undisturbed.json")
    assert in_fork(lambda: undisturbed.write_text(json.dumps(rows(make(kind).run()))) and None) == 0
    expected = json.loads(undisturbed.read_text())
    template = None
    if phase == "resume":
        template = folder.with_name("template")
        fresh(None)
        assert in_fork(lambda: make(kind, trials=1).run() and None) == 0
        shutil.copytree(folder, template)

    def killed(n: int) -> None:
        tuner = make(kind) if phase == "start" else None
        arm(n)
        (tuner or go_on(kind)).run()

    outcome: dict[str, Any] = {"points": 0, "experiments": 0, "wrong": []}
    seen = folder.with_name("seen")
    n = 1
    while True:
        fresh(template)
        if not os.WIFSIGNALED(in_fork(lambda n=n: killed(n))):  # type: ignore[misc]
            return outcome
        outcome["points"] += 1
        if in_fork(lambda: seen.write_text(str(look(kind, expected))) and None) != 0:
            outcome["wrong"].append(n)
        elif seen.read_text() == "True":
            outcome["experiments"] += 1
        n += stride


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
