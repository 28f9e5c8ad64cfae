"""Helpers for training scripts: arguments, JSON configurations, checkpoints in real files."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sthyper.config_space import choice
from sthyper.utils import (
    add_checkpointing_to_argparse,
    add_config_json_to_argparse,
    checkpoint_model_at_rung_level,
    load_config_json,
    parse_bool,
    pytorch_load_save_functions,
    resume_from_checkpointed_model,
    streamline_config_space,
)


class Script:
    """A training script in small: model, momentum, schedule and a counter, with checkpoints."""

    def __init__(self, folder: Path, width: int = 3) -> None:
        torch.manual_seed(0)
        self.config: dict[str, Any] = {"st_checkpoint_dir": str(folder), "epochs": 9}
        self.model = torch.nn.Linear(width, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.state: dict[str, Any] = {"best": 0.0, "seen": 0, "note": "", "flag": False}
        objects = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.load, self.save = pytorch_load_save_functions(objects, self.state)

    def resume(self) -> int:
        return resume_from_checkpointed_model(self.config, self.load)

    def train(self, start: int, stop: int) -> None:
        for epoch in range(start + 1, stop + 1):
            self.optimizer.zero_grad()
            x = torch.full((4, self.model.in_features), float(epoch))
            self.model(x).pow(2).mean().backward()
            self.optimizer.step()
            self.schedule.step()
            self.state.update(best=1.5 * epoch, seen=epoch, note=f"epoch {epoch}", flag=epoch % 2 == 0)
            checkpoint_model_at_rung_level(self.config, self.save, epoch)

    def weights(self) -> list[float]:
        return self.model.weight.flatten().tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trials" / "0" / "checkpoints"


# ---- checkpoints -------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    whole = Script(folder.with_name("other"))
    assert whole.resume() == 0
    whole.train(0, 6)
    Script(folder).train(0, 3)
    second = Script(folder)
    assert second.resume() == 3
    assert second.state == {"best": 4.5, "seen": 3, "note": "epoch 3", "flag": False}
    second.train(3, 6)
    assert second.weights() == whole.weights()
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    # The last two checkpoints are kept, and nothing else.
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "checkpoint.json.previous"]


def test_the_folder_comes_from_the_argument_or_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(folder)
    script.config = {"epochs": 9}
    script.train(0, 2)  # run by hand: no checkpoints
    assert not folder.exists()
    assert script.resume() == 0
    monkeypatch.setenv("STHYPER_CHECKPOINT_DIR", str(folder))
    script.train(2, 3)
    assert folder.is_dir()
    assert Script(folder).resume() == 3
    assert resume_from_checkpointed_model(argparse.Namespace(st_checkpoint_dir=None), script.load) == 3
    monkeypatch.setenv("STHYPER_CHECKPOINT_DIR", str(folder.with_name("nowhere")))
    assert script.resume() == 0
    assert resume_from_checkpointed_model({"st_checkpoint_dir": str(folder)}, script.load) == 3
    with pytest.raises(TypeError, match="config"):
        resume_from_checkpointed_model(["--lr"], script.load)  # type: ignore[arg-type]


def test_loads_and_saves_are_announced_when_the_trial_is_known(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(folder)
    script.train(0, 1)
    assert capsys.readouterr().out == ""
    script.config["trial_id"] = 7
    script.train(1, 2)
    script.resume()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0].split(" written")[0] for line in lines] == [
        "trial 7: checkpoint at resource 2",
        "trial 7: resumed from the checkpoint at resource 2",
    ]


def test_a_checkpoint_ahead_of_the_last_report_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = Script(folder.with_name("other"))
    uninterrupted.train(0, 5)
    Script(folder).train(0, 4)  # killed between the checkpoint and the report of 4
    monkeypatch.setenv("STHYPER_LAST_RESOURCE", "3")
    second = Script(folder)
    assert second.resume() == 3
    second.train(3, 4)  # killed at the same place again: 3 must still be there
    third = Script(folder)
    assert third.resume() == 3
    third.train(3, 4)
    monkeypatch.setenv("STHYPER_LAST_RESOURCE", "4")
    third.train(4, 5)
    assert third.weights() == uninterrupted.weights()
    fourth = Script(folder)
    assert fourth.resume() == 4
    monkeypatch.setenv("STHYPER_LAST_RESOURCE", "5")
    assert fourth.resume() == 5


def test_a_lone_checkpoint_ahead_of_the_last_report_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(folder).train(0, 4)
    (folder / "checkpoint.json.previous").unlink()
    monkeypatch.setenv("STHYPER_LAST_RESOURCE", "2")
    assert Script(folder).resume() == 4
    # Of two that are ahead, the less advanced.
    Script(folder).train(4, 5)
    assert Script(folder).resume() == 4


def test_a_restart_before_the_first_report_begins_from_scratch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STHYPER_TRIAL_ID", "0")
    monkeypatch.setenv("STHYPER_RUN", "0")
    monkeypatch.setenv("STHYPER_OBJECTIVE", json.dumps({"metric": "loss", "resource_attr": "epoch"}))
    Script(folder).train(0, 1)
    monkeypatch.setenv("STHYPER_RUN", "1")
    second = Script(folder)
    before = second.weights()
    assert second.resume() == 0
    assert second.weights() == before
    # Not so without a resource: such a trial never has a last resource.
    monkeypatch.setenv("STHYPER_OBJECTIVE", json.dumps({"metric": "loss", "resource_attr": None}))
    assert Script(folder).resume() == 1
    # Nor for a checkpoint that another trial wrote and this one was started from.
    monkeypatch.setenv("STHYPER_OBJECTIVE", json.dumps({"metric": "loss", "resource_attr": "epoch"}))
    monkeypatch.setenv("STHYPER_TRIAL_ID", "1")
    copied = Script(folder)
    assert copied.resume() == 1
    copied.train(1, 2)
    assert Script(folder).resume() == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other objects"])
def test_an_unreadable_checkpoint_is_named_and_the_one_before_it_taken(folder: Path, damage: str) -> None:
    Script(folder).train(0, 4)
    newest = folder / "checkpoint.json"
    data = newest.read_bytes()
    if damage == "other objects":
        torch.save({"st_resource": 4, "st_state_dict_model": {}}, newest)
    else:
        newest.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "garbage": b"\x00" * 999}[damage])
    second = Script(folder)
    with pytest.warns(RuntimeWarning, match=r"checkpoints/checkpoint\.json cannot be loaded"):
        assert second.resume() == 3
    second.train(3, 4)  # the bad file must not push the good one out
    newest.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"checkpoint\.json"):
        assert Script(folder).resume() == 3
    (folder / "checkpoint.json.previous").write_bytes(b"")
    fresh = Script(folder)
    before = fresh.weights()
    with pytest.warns(RuntimeWarning) as record:
        assert fresh.resume() == 0
    assert len(record) == 2
    assert "checkpoint.json.previous" in str(record[1].message)
    assert fresh.weights() == before


def test_a_checkpoint_that_does_not_fit_leaves_the_objects_as_they_were(folder: Path) -> None:
    Script(folder, width=3).train(0, 1)
    wider = Script(folder, width=5)
    wider.train(1, 1)
    before, state = wider.weights(), dict(wider.state)
    with pytest.warns(RuntimeWarning, match="size mismatch|RuntimeError"):
        assert wider.resume() == 0
    assert wider.weights() == before
    assert wider.state == state


def test_no_code_of_a_checkpoint_is_executed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (target,))

    folder.mkdir(parents=True)
    torch.save({"st_resource": 3, "st_state_dict_model": Evil()}, folder / "checkpoint.json")
    with pytest.warns(RuntimeWarning, match=r"checkpoint\.json"):
        assert Script(folder).resume() == 0
    assert not target.exists()


def test_states_between_the_two_renames_and_before_the_first(folder: Path) -> None:
    script = Script(folder)
    script.train(0, 3)
    os.replace(folder / "checkpoint.json", folder / "checkpoint.json.previous")
    (folder / "checkpoint.json.tmp").write_bytes(b"half a checkpoint")
    second = Script(folder)
    assert second.resume() == 3
    second.train(3, 4)
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "checkpoint.json.previous"]
    assert Script(folder).resume() == 4


KILLED_SCRIPT = """
import sys, torch
from sthyper.utils import *
weights = torch.nn.Linear(300, 300)
load, save = pytorch_load_save_functions({"model": weights})
config = {"st_checkpoint_dir": sys.argv[1]}
start = resume_from_checkpointed_model(config, load)
print(f"start {start}", flush=True)
while True:
    start += 1
    checkpoint_model_at_rung_level(config, save, start)
    print(f"report {start}", flush=True)
"""


def _kill_while_saving(folder: Path, last: int, seconds: float) -> int:
    environment = {**os.environ, **({"STHYPER_LAST_RESOURCE": str(last)} if last else {})}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"start {last}\n"  # exactly the last report, however the kill hit
    process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    lines = process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    whole = [line for line in lines if line.startswith("report ")]
    return int(whole[-1].split()[1]) if whole else last + 1


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_any_moment(folder: Path, kills: int) -> None:
    rng = random.Random(0)
    last = 0
    for _ in range(kills):
        last = _kill_while_saving(folder, last, rng.uniform(0.01, 0.2))
    assert last > kills
    load, _ = pytorch_load_save_functions({"model": torch.nn.Linear(300, 300)})
    assert load(str(folder)) in (last, last + 1)


def test_states_that_could_not_be_loaded_again_are_refused_at_the_first_save(folder: Path) -> None:
    class Holder:
        def state_dict(self) -> dict[str, Any]:
            return {"value": np.float64(3)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError

    _, save = pytorch_load_save_functions({"fine": torch.nn.Linear(1, 1), "holder": Holder()})
    with pytest.raises(TypeError, match="'holder' cannot be loaded again"):
        checkpoint_model_at_rung_level({"st_checkpoint_dir": str(folder)}, save, 1)
    assert os.listdir(folder) == []
    _, save = pytorch_load_save_functions({}, {"path": folder})
    with pytest.raises(TypeError, match=r"mutable_state\['path'\]"):
        save(str(folder), 1)


def test_mutable_values_keep_their_types(folder: Path) -> None:
    folder.mkdir(parents=True)
    _, save = pytorch_load_save_functions({}, {"a": 3, "b": 1, "c": np.float32(0.5), "d": [1, {"x": None}], "new": 1})
    save(str(folder), 2)
    state: dict[str, Any] = {"a": 0.0, "b": "", "c": 0.0, "d": [], "e": "kept"}
    load, _ = pytorch_load_save_functions({}, state, fname="checkpoint.json")
    assert load(str(folder)) == 2
    assert state == {"a": 3.0, "b": "1", "c": 0.5, "d": [1, {"x": None}], "e": "kept"}
    assert type(state["a"]) is float


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="state_dict_objects\\['model'\\]"):
        pytorch_load_save_functions({"model": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="fname"):
        pytorch_load_save_functions({}, fname="a/b")


# ---- arguments ---------------------------------------------------------------------------------------


def test_add_checkpointing_to_argparse() -> None:
    parser = argparse.ArgumentParser()
    add_checkpointing_to_argparse(parser)
    assert vars(parser.parse_args([])) == {"st_checkpoint_dir": None}
    assert parser.parse_args(["--st_checkpoint_dir", "a b"]).st_checkpoint_dir == "a b"


@pytest.mark.parametrize(("text", "value"), [("True", True), ("FALSE", False), ("true", True), (False, False)])
def test_parse_bool(text: Any, value: bool) -> None:
    assert parse_bool(text) is value


def test_parse_bool_errors() -> None:
    for text in ("1", "yes", "", "None"):
        with pytest.raises(ValueError, match="True or False"):
            parse_bool(text)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--flag", type=parse_bool)
    assert parser.parse_args(["--flag", "true"]).flag is True
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--flag", "maybe"])


def test_config_json(tmp_path: Path) -> None:
    config = {"lr": 0.1, "width": 8, "list_arg": ["a", 1], "dict_arg": {"a": {"b": [True, None]}}, "none": None}
    path = tmp_path / "a folder" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--width", type=int)
    parser.add_argument("--extra", type=int)
    add_config_json_to_argparse(parser)
    add_checkpointing_to_argparse(parser)
    argv = ["--st_config_json_filename", str(path), "--width", "16", "--st_checkpoint_dir", "/c"]
    loaded = load_config_json(vars(parser.parse_args(argv)))
    # Arguments win, but those that were not given do not.
    assert loaded == {
        **config,
        "width": 16,
        "extra": None,
        "st_checkpoint_dir": "/c",
        "st_config_json_filename": str(path),
    }
    by_hand = load_config_json(vars(parser.parse_args(["--lr", "1"])))
    assert by_hand["lr"] == 1.0
    assert by_hand["width"] is None


def test_config_json_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add_config_json_to_argparse"):
        load_config_json({"lr": 1})
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError):
        load_config_json({"st_config_json_filename": str(path)})
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_config_json({"st_config_json_filename": str(path)})


def test_streamline_is_offered_here_too() -> None:
    assert repr(streamline_config_space({"x": choice([1, 2, 3])})["x"]) == "finrange(1, 3, 3, cast_int=True)"


def test_imports_no_torch() -> None:
    code = (
        "import sys; from sthyper.utils import *; load, save = pytorch_load_save_functions({}); "
        "print(resume_from_checkpointed_model({}, load), sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0 []"
