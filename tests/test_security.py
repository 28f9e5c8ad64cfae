"""What untrusted input must not reach: shells, unpickling, files outside the folder; and where the token stays."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import sthyper.callbacks
from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend, PythonBackend
from sthyper.backend.base import TrialBackend
from sthyper.baselines import RandomSearch
from sthyper.checkpoints import INDEX_NAME, best_checkpoint, list_checkpoints
from sthyper.config_space import choice, uniform
from sthyper.experiment import load_experiment
from sthyper.utils import pytorch_load_save_functions

PACKAGE = Path(sthyper.__file__).parent
# The callbacks lie beside the package in the repository, and inside it once it is installed.
CALLBACKS = Path(sthyper.callbacks.__file__).parent

# ---- the source ------------------------------------------------------------------------------------------

UNPICKLES = re.compile(
    r"(pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal)\.(load|loads|Unpickler)|shelve\.open|pandas\.read_pickle"
    r"|pd\.read_pickle|yaml\.(load|unsafe_load|full_load)"
)
CODE = {"eval", "exec", "builtins.eval", "builtins.exec"}
SHELL = re.compile(r"os\.(system|popen)|subprocess\.(getoutput|getstatusoutput)|pty\.spawn|commands\..*")
ALLOWED = {
    # The shipped function: a file of mode 0600, whose owner and digest are checked.
    ("sthyper/_function_trial.py", "pickle.load"),
    ("sthyper/_function_trial.py", "pickle.Unpickler"),
    # An exception of this process, to see whether it would reach the other ranks: pickle.loads(pickle.dumps(error)).
    ("callbacks/lightning/_ranks.py", "pickle.loads"),
    # The user's script.
    ("sthyper/backend/_inline_runner.py", "exec"),
    ("sthyper/backend/_trial_process.py", "exec"),
}


def faults_of(source: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and name of every call that executes what it reads."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            known |= {a.asname: a.name for a in node.names if a.asname}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        head, dot, rest = name.partition(".")
        name = known.get(head, head) + dot + rest
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        loads_torch = name == "torch.load" and options.get("weights_only") != "True"
        loads_numpy = name in ("numpy.load", "np.load") and options.get("allow_pickle", "False") != "False"
        if loads_torch or loads_numpy or UNPICKLES.fullmatch(name) or name in CODE or SHELL.fullmatch(name):
            yield path, name
        elif options.get("shell", "False") != "False":
            yield path, f"{name}(shell)"


def test_no_module_executes_what_it_reads() -> None:
    found = set()
    files = {file: f"sthyper/{file.relative_to(PACKAGE)}" for file in PACKAGE.rglob("*.py")}
    files |= {file: f"callbacks/{file.relative_to(CALLBACKS)}" for file in CALLBACKS.rglob("*.py")}
    assert len(files) > 100
    for file, name in files.items():
        found |= set(faults_of(file.read_text(), name))
    assert found == ALLOWED
    ranks = (CALLBACKS / "lightning" / "_ranks.py").read_text()
    assert ranks.count("pickle.loads(") == ranks.count("pickle.loads(pickle.dumps(error))") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import load as read\nread(x)",
        "import cloudpickle as c\nc.load(x)",
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x, weights_only=False)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "eval(x)",
        "import os\nos.system(x)",
        "from subprocess import run\nrun(x, shell=True)",
    ],
)
def test_the_search_finds_such_calls(code: str) -> None:
    assert list(faults_of(code, "x")) != []


# ---- configurations and shells ---------------------------------------------------------------------------

HOSTILE = [
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "| touch pwned &",
    "a\nb \t'\"\\ $HOME ${HOME} * ? ~ < >",
    "{lr} {{x}} %s -rf",
    "../../etc/passwd",
    "ä 中",
]
TRAIN = """
import json, os, sys
import argparse
from sthyper import Reporter
parser = argparse.ArgumentParser()
parser.add_argument("--x")
parser.add_argument("--{odd}", dest="odd")
args = parser.parse_args()
Reporter()(x=args.x, odd=args.odd, loss=1.0, config=json.dumps(Reporter().config))
"""


def train(x: str, odd: str) -> None:
    sthyper.Reporter()(x=x, odd=odd, loss=1.0, config=json.dumps(sthyper.Reporter().config))


@pytest.mark.parametrize("how", ["fork", "exec", "command", "shell argument", "function"])
def test_values_arrive_as_they_are(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value goes through real processes and comes back in a report; nothing is run on its way."""
    monkeypatch.chdir(tmp_path)
    odd = "odd" if how == "function" else "o;touch pwned"
    script = tmp_path / "train $(touch pwned).py"
    script.write_text(TRAIN.replace("{odd}", odd))
    space: dict[str, Any] = {"x": choice(HOSTILE), odd: "$(touch pwned)"}
    if how == "function":
        backend: TrialBackend = PythonBackend(train, space)
    elif how == "command":
        backend = LocalBackend([sys.executable, script, "--x={x}", f"--{odd}={{{odd}}}"])
    elif how == "shell argument":
        shell = 'exec "$0" "$1" --x="$2" --"$3"="$4"'
        python = sys.executable
        backend = LocalBackend(["sh", "-c", shell, python, script, "{x}", odd, f"{{{odd}}}"])
    else:
        backend = LocalBackend(script, launch=how)  # type: ignore[arg-type]
    scheduler = RandomSearch(space, metric="loss", random_seed=0)
    enough = StoppingCriterion(max_num_trials_started=len(HOSTILE))
    tuner = Tuner(backend, scheduler, enough, n_workers=2, tuner_name="hostile")
    for value in HOSTILE:
        tuner.enqueue({"x": value})
    result = tuner.run()
    rows = list(result._record.table.rows(joined=False))
    assert sorted(row["x"] for row in rows) == sorted(HOSTILE)
    assert {row["odd"] for row in rows} == {"$(touch pwned)"}
    assert all(json.loads(row["config"])["x"] == row["x"] for row in rows)
    assert not list(tmp_path.rglob("pwned"))


def test_values_are_not_written_into_scripts_of_a_shell(tmp_path: Path) -> None:
    command = ["sh", "-c", 'printf "%s" "{x}" > out; echo \'[tune-metric]: {{"loss": 1}}\'']

    def tuner(space: dict[str, Any]) -> Tuner:
        scheduler = RandomSearch(space, metric="loss", random_seed=0)
        return Tuner(
            LocalBackend(command, workdir=tmp_path), scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1
        )

    for value in HOSTILE[:6]:
        with pytest.raises(ValueError, match=r"'x'.*not take for a word.*'sh', '\{x\}'"):
            tuner({"x": choice([value, "b"])})
    with pytest.raises(ValueError, match="not take for a word"):
        tuner({"x": "$(id)", "y": uniform(0, 1)})
    tuner({"x": choice(["a-1.5/b"])}).run()
    assert (tmp_path / "out").read_text() == "a-1.5/b"


# ---- the token -------------------------------------------------------------------------------------------

SLOW = """
import time
from sthyper import Reporter
report = Reporter()
for epoch in range(1, 7):
    time.sleep(0.1)
    report(epoch=epoch, loss=1 / epoch)
print("done")
"""


def test_the_token_is_in_environments_only_and_strangers_disturb_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole experiment over TCP while somebody floods the port with guesses, garbage and silence."""
    caplog.set_level("DEBUG", logger="sthyper")
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    backend = LocalBackend(script, channel=f"tcp:127.0.0.1:{port}")
    scheduler = RandomSearch({"x": uniform(0, 1)}, metric="loss", random_seed=0)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=4), n_workers=2, tuner_name="quiet")
    over = threading.Event()
    commands: set[str] = set()
    attacks = [0]

    def attack() -> None:
        held: list[socket.socket] = []
        data = [b"", b"\x00\xff" * 400 + b"\n", b'{"type":"hello","v":1e999', b'{"type":"hello","token":"guess"}\n']
        while not over.is_set():
            try:
                peer = socket.create_connection(("127.0.0.1", port), timeout=1.0)
                peer.sendall(data[attacks[0] % len(data)])
            except OSError:
                time.sleep(0.01)
                continue
            attacks[0] += 1
            held.append(peer)
            time.sleep(0.001)  # this thread shares the interpreter with the tuner
            if len(held) > 100:
                held.pop(0).close()
            if attacks[0] % 100 == 0:
                for process in psutil.Process().children(recursive=True):
                    try:
                        commands.add(" ".join(process.cmdline()))
                    except psutil.Error:
                        continue
        for peer in held:
            peer.close()

    thread = threading.Thread(target=attack, name="sthyper-attack")
    thread.start()
    try:
        result = tuner.run()
    finally:
        over.set()
        thread.join()
    assert attacks[0] > 100
    assert len(list(result._record.table.rows())) == 4 * 6
    assert {trial.status.value for trial in result.trials.values()} == {"Completed"}
    assert place_of_token(caplog.text, tuner.tuner_path, commands) is None


def place_of_token(log: str, folder: Path, commands: set[str]) -> str | None:
    """Return where something like a token was found: 32 hexadecimal digits in a file, a log or a command line."""
    pattern = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
    assert commands
    for name, text in [("log", log), *((c, c) for c in commands)]:
        if pattern.search(text.encode()):
            return name
    for file in folder.rglob("*"):
        if file.is_file() and pattern.search(file.read_bytes()):
            return str(file)
    return None


def test_the_channel_has_a_token_of_32_digits(tmp_path: Path) -> None:
    """What the test above looks for is what there is."""
    script = tmp_path / "tell.py"
    script.write_text(
        "import os, re\nfrom sthyper import Reporter\n"
        "is_token = re.fullmatch('[0-9a-f]{32}', os.environ['STHYPER_TOKEN']) is not None\n"
        "Reporter()(loss=1.0, is_token=is_token, channel=os.environ['STHYPER_CHANNEL'])\n"
    )
    scheduler = RandomSearch({"x": uniform(0, 1)}, metric="loss", random_seed=0)
    backend = LocalBackend(script, channel="tcp")
    result = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1).run()
    (row,) = result._record.table.rows()
    assert row["is_token"] is True
    assert row["channel"].startswith("tcp:127.0.0.1:")
    assert "STHYPER_TOKEN" not in os.environ


# ---- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../out", "/out", "a/b", "..", ".", "", "a\0b", "a\nb", "a b", "-a", "$(id)"])
def test_experiments_cannot_be_called_so(name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    scheduler = RandomSearch({"x": uniform(0, 1)}, metric="loss")
    with pytest.raises(ValueError, match="name"):
        Tuner(
            LocalBackend(script), scheduler, StoppingCriterion(max_num_trials_started=1), n_workers=1, tuner_name=name
        )


def test_names_of_experiments_do_not_lead_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside, here = tmp_path / "root", tmp_path / "outside", tmp_path / "here"
    for folder in (root, outside, here, root / "inside"):
        folder.mkdir()
    for folder in (tmp_path, outside, root / "inside"):
        (folder / "metadata.json").write_text("{}")
    monkeypatch.chdir(here)
    assert load_experiment("inside", root).path == root / "inside"
    (root / "link").symlink_to(outside)  # the user's own, say to another disk
    assert load_experiment("link", root).path == root / "link"
    for name in ("nothing/../../outside", "x\0y", "outside\n"):
        with pytest.raises(FileNotFoundError):
            load_experiment(name, root)
    # A path counts from the working directory, not from the folder of the experiments.
    (tmp_path / "metadata.json").unlink()
    assert load_experiment("../outside", root).path.resolve() == outside
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError):
        load_experiment("../outside", root)
    with pytest.raises(FileNotFoundError):
        load_experiment("..", root)


def test_trials_have_numbers(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    backend = LocalBackend(script)
    backend.set_path(tmp_path / "experiment")
    precious = tmp_path / "precious" / "checkpoints"
    precious.mkdir(parents=True)
    for method in (backend.trial_path, backend.checkpoint_trial_path, backend.delete_checkpoint, backend.stdout):
        with pytest.raises(TypeError):
            method("../../precious")  # type: ignore[operator]
    assert precious.exists()
    # A link to another disk in place of the folder: what it leads to is not deleted.
    backend.trial_path(0).mkdir(parents=True)
    backend.checkpoint_trial_path(0).symlink_to(precious)
    (precious / "model").write_text("x")
    backend.delete_checkpoint(0)
    assert (precious / "model").exists()


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "..", ".", "", "a\0b", "a\nb", 3, None])
def test_checkpoints_are_in_their_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / "precious").write_text("x")
    good = {"name": "good", "resource": 1, "trial_id": "0", "best": False, "size": 1}
    (folder / "good").write_text("x")
    (folder / INDEX_NAME).write_text(json.dumps({"version": 1, "checkpoints": [good]}))
    assert best_checkpoint(folder) == folder / "good"
    bad = {**good, "name": name, "resource": 2, "best": True}
    (folder / INDEX_NAME).write_text(json.dumps({"version": 1, "checkpoints": [good, bad]}))
    with pytest.warns(RuntimeWarning, match="is no list of checkpoints"):
        assert list_checkpoints(folder) == []
    with pytest.raises((ValueError, TypeError)):
        pytorch_load_save_functions({}, fname=name)  # type: ignore[arg-type]
