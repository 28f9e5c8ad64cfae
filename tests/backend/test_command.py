"""What an entry point stands for, and the command lines that are made of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.backend._command import Command, parse_entry_point
from sthyper.baselines import RandomSearch
from sthyper.config_space import randint, uniform

PROPERTIES = {
    "trial_id": "3",
    "run": "1",
    "trial_dir": "/t/3",
    "checkpoint_dir": "/t/3/checkpoints",
    "st_checkpoint_dir": "/t/3/checkpoints",
    "last_resource": "9",
    "seed": "17",
    "st_config_json_filename": "/t/3/config.json",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a program and a script whose names hold blanks."""
    monkeypatch.chdir(tmp_path)
    for name, mode in (("train it", 0o755), ("train it.py", 0o644), ("train.sh", 0o644), ("train.py", 0o755)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    return tmp_path


def line(command: Command, config: dict[str, Any], pass_args_as_json: bool = False) -> list[str]:
    return list(command.line(config, PROPERTIES, pass_args_as_json))


# ---- what is run ---------------------------------------------------------------------------------------


def test_kinds_of_entry_points(folder: Path) -> None:
    sh = shutil.which("sh")
    for entry_point, words, is_script in [
        ("train.py", [str(folder / "train.py")], True),
        (Path("train it.py"), [str(folder / "train it.py")], True),
        ("train it.py", [str(folder / "train it.py")], True),
        ("train it", [str(folder / "train it")], False),
        ("./train it", [str(folder / "train it")], False),
        ("train.py fit --lr={lr}", [str(folder / "train.py"), "fit", "--lr={lr}"], True),
        ("sh train.sh 'a b' --lr {lr}", [sh, "train.sh", "a b", "--lr", "{lr}"], False),
        (["sh", Path("train.sh"), "a b|"], [sh, "train.sh", "a b|"], False),
        (("train it", "x"), [str(folder / "train it"), "x"], False),
    ]:
        command = parse_entry_point(entry_point)
        assert (list(command.words), command.is_script) == (words, is_script), entry_point


def test_the_interpreter_of_a_virtual_environment_is_not_resolved(folder: Path) -> None:
    (folder / "venv").symlink_to(sys.executable)
    assert parse_entry_point("./venv train.py").words == (str(folder / "venv"), "train.py")


def test_a_program_is_looked_for_where_the_trials_look(folder: Path) -> None:
    assert parse_entry_point("'train it' 1", str(folder)).words[0] == str(folder / "train it")
    (folder / "bin").mkdir()
    shutil.copy(folder / "train it", folder / "bin" / "my-trainer")
    with pytest.raises(FileNotFoundError, match="no program"):
        LocalBackend("my-trainer --lr {lr}")
    LocalBackend("my-trainer --lr {lr}", environment={"PATH": str(folder / "bin")})


@pytest.mark.parametrize(
    ("entry_point", "error", "words"),
    [
        ("trian.py", FileNotFoundError, r"no file .*trian.py \(did you mean 'train.py'\?\)"),
        ("./trian.sh", FileNotFoundError, "did you mean 'train.sh'"),
        (Path("sh"), FileNotFoundError, "no file"),
        ("awkk -f train.awk", FileNotFoundError, "no program on the PATH that is called 'awkk' .*did you mean"),
        ("train.sh", ValueError, r"neither a Python script \(\*\.py\) nor executable.*entry_point='sh train.sh'"),
        (".", ValueError, "is a folder"),
        ("", ValueError, "must name a script"),
        ([], ValueError, "must name a script"),
        ("sh 'train.sh", ValueError, "No closing quotation"),
        ("sh train.sh > out.txt", ValueError, r"'>' is for a shell.*\['sh', '-c'"),
        ("sh train.sh {lr", ValueError, r"single '{' in '{lr'.*write '{{'"),
        ("sh train.sh lr}", ValueError, "single '}'"),
        (7, TypeError, "got 7"),
        (["sh", 7], TypeError, "list of strings"),
        (b"sh", TypeError, "got b'sh'"),
    ],
)
def test_bad_entry_points(folder: Path, entry_point: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LocalBackend(entry_point)


# ---- arguments -----------------------------------------------------------------------------------------


def test_templates_and_braces() -> None:
    command = parse_entry_point(["sh", "-c", "x {{ {lr} }}", "{lr}/{opt.name}", "{trial_id}-{run}@{last_resource}"])
    config = {"lr": 0.5, "opt.name": "a b"}
    assert line(command, config)[1:] == ["-c", "x { 0.5 }", "0.5/a b", "3-1@9"]


def test_a_value_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"\{'b': 1\} has no value for the template {a}"):
        line(parse_entry_point("sh {a}"), {"b": 1})


def test_the_values_are_not_templates_themselves() -> None:
    assert line(parse_entry_point("sh {a} {b}"), {"a": "{b}", "b": "}}"})[1:] == ["{b}", "}}"]


def test_a_hyperparameter_comes_before_a_property_of_its_name() -> None:
    assert line(parse_entry_point("sh {seed}"), {"seed": 5})[1:] == ["5"]
    assert line(parse_entry_point("sh {seed}"), {"lr": 1})[1:] == ["17", "--lr", "1"]


def test_without_templates_the_configuration_is_appended() -> None:
    config = {"lr": 1e-5, "name": "a b", "none": None, "flag": True}
    assert line(parse_entry_point("sh x {{ {checkpoint_dir}"), config)[1:] == [
        *("x", "{", "/t/3/checkpoints", "--lr", "1e-05", "--name", "a b", "--flag", "True")
    ]


def test_the_configuration_as_a_file() -> None:
    config = {"lr": 0.5, "widths": [1, 2]}
    flag = ["--st_config_json_filename", "/t/3/config.json"]
    assert line(parse_entry_point("sh x"), config, pass_args_as_json=True)[1:] == ["x", *flag]
    assert line(parse_entry_point("sh {lr}"), config, pass_args_as_json=True)[1:] == ["0.5", *flag]
    for switch in (False, True):
        assert line(parse_entry_point("sh {st_config_json_filename}"), config, switch)[1:] == ["/t/3/config.json"]


SPACE = {"learning_rate": uniform(0.0, 1.0), "width": randint(1, 9), "epochs": 9}


@pytest.mark.parametrize(
    ("entry_point", "space", "words"),
    [
        ("sh {learning_rat} {width}", SPACE, r"template {learning_rat} .*did you mean 'learning_rate'"),
        ("sh {learning_rate} {width} {trail_id}", SPACE, "did you mean 'trial_id'"),
        ("sh {trail_id}", SPACE, "did you mean 'trial_id'"),
        ("sh {learning_rate}", SPACE, r"config_space\['width'\] is tuned, but entry_point has no template {width}"),
        ("sh {epochs}", SPACE, r"config_space\['learning_rate'\] is tuned"),
        ("sh {width} {list}", {"width": randint(1, 9), "list": [1, 2]}, r"config_space\['list'\] is \[1, 2\]"),
        ("sh x", {"width": randint(1, 9), "list": [1, 2]}, "pass_args_as_json=True"),
    ],
)
def test_templates_that_do_not_fit_the_space(entry_point: str, space: dict[str, Any], words: str) -> None:
    scheduler = RandomSearch(space, metric="loss", random_seed=0)
    with pytest.raises(ValueError, match=words):
        Tuner(LocalBackend(entry_point), scheduler, StoppingCriterion(max_num_trials_started=1), 1)


_AS_JSON = ["--st_config_json_filename", "/t/3/config.json"]


@pytest.mark.parametrize(
    ("entry_point", "space", "as_json", "arguments"),
    [
        ("sh {learning_rate} {width}", SPACE, False, ["0.5", "3"]),  # constants may be left out
        ("sh {trial_id}", SPACE, False, ["3", "--learning_rate", "0.5", "--width", "3", "--epochs", "9"]),
        ("sh {learning_rate}", SPACE, True, ["0.5", *_AS_JSON]),
        ("sh {st_config_json_filename}", {**SPACE, "list": [1]}, False, _AS_JSON[1:]),
        ("sh {width}", {"width": randint(1, 9), "list": [1, 2]}, False, ["3"]),
    ],
)
def test_templates_that_fit_the_space(
    entry_point: str, space: dict[str, Any], as_json: bool, arguments: list[str]
) -> None:
    LocalBackend(entry_point, pass_args_as_json=as_json).check_config_space(space)
    config = {name: {"learning_rate": 0.5, "width": 3}.get(name, value) for name, value in space.items()}
    assert line(parse_entry_point(entry_point), config, as_json)[1:] == arguments


# ---- options of the backend ----------------------------------------------------------------------------


def test_commands_are_not_forked(folder: Path) -> None:
    assert LocalBackend("sh train.sh").launch == "exec"
    assert LocalBackend("train.py --lr {lr}").launch == ("fork" if sys.platform == "linux" else "exec")
    for launch in ("fork", "inline"):
        with pytest.raises(ValueError, match=rf"launch='{launch}' is for Python scripts.*launch='exec'"):
            LocalBackend("sh train.sh", launch=launch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"preload=\['torch'\] has no effect"):
        LocalBackend("sh train.sh", preload=["torch"])
    for name in ("pass_args_as_json", "delete_checkpoints"):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            LocalBackend("train.py", **{name: "yes"})


def test_the_experiment_is_named_after_the_file_that_is_run(folder: Path) -> None:
    assert LocalBackend("sh -e train.sh {lr}").entrypoint_path() == folder / "train.sh"
    assert LocalBackend(["train it", "{lr}"]).entrypoint_path() == folder / "train it"
    assert LocalBackend("train.py train.sh").entrypoint_path() == folder / "train.py"
    assert os.path.basename(LocalBackend("sh -c 'exit 0'").entrypoint_path()) == "sh"
