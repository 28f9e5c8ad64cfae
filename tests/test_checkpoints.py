"""Numbered checkpoints: which are found, which is the newest, which is the best, and what survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sthyper.callbacks.lightning._checkpoints import CheckpointFolder
from sthyper.checkpoints import (
    INDEX_NAME,
    CheckpointInfo,
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    remove_checkpoint,
    write_index,
)


def save(folder: CheckpointFolder, resource: int, best: bool = False, sharded: bool = False) -> Path:
    temporary = folder.temporary(resource)
    if sharded:
        temporary.mkdir()
        (temporary / "part-0").write_bytes(bytes(resource))
    else:
        temporary.write_bytes(bytes(resource))
    return folder.commit(resource, best)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", "best+last", "epoch", 3)


def test_without_an_index_there_is_nothing(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []
    (tmp_path / "checkpoint.json").write_bytes(b"of a plain script")
    assert list_checkpoints(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    assert best_checkpoint(tmp_path) is None


def test_latest_and_best(tmp_path: Path) -> None:
    for resource in (10, 2, 9):
        (tmp_path / f"{resource}").write_bytes(b"abc")
    infos = [CheckpointInfo(tmp_path / f"{r}", r, 3, best=r == 2, size=3) for r in (10, 2, 9)]
    write_index(tmp_path, infos)
    assert [c.resource for c in list_checkpoints(tmp_path)] == [2, 9, 10]
    assert list_checkpoints(tmp_path)[0] == infos[1]
    assert latest_checkpoint(tmp_path) == tmp_path / "10"
    assert latest_checkpoint(tmp_path, not_after=9.5) == tmp_path / "9"
    assert latest_checkpoint(tmp_path, not_after=1) is None
    assert best_checkpoint(tmp_path) == tmp_path / "2"
    (tmp_path / "2").unlink()
    assert best_checkpoint(tmp_path) == tmp_path / "10", "the newest where none is marked"
    (tmp_path / "10").write_bytes(b"a")
    assert latest_checkpoint(tmp_path) == tmp_path / "9", "one that was cut short does not count"


@pytest.mark.parametrize("text", ["", "[1]", '{"checkpoints": [{"name": "a"}]}', "\0\0"])
def test_an_index_that_cannot_be_read_is_warned_of(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.warns(RuntimeWarning, match=r"index.json is no list of checkpoints"):
        assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("sharded", [False, True])
def test_the_one_before_the_last_goes_when_the_report_is_answered(folder: CheckpointFolder, sharded: bool) -> None:
    save(folder, 1, best=True, sharded=sharded)
    folder.prune()
    save(folder, 2, sharded=sharded)
    folder.prune()
    save(folder, 3, sharded=sharded)
    assert [c.resource for c in list_checkpoints(folder.path)] == [1, 2, 3]
    assert best_checkpoint(folder.path) == folder.path / "epoch=000001.ckpt"
    folder.prune()
    assert sorted(p.name for p in folder.path.iterdir()) == ["epoch=000001.ckpt", "epoch=000003.ckpt", INDEX_NAME]
    save(folder, 4, best=True, sharded=sharded)
    folder.prune()
    assert [(c.resource, c.best) for c in list_checkpoints(folder.path)] == [(4, True)]
    entries = json.loads((folder.path / INDEX_NAME).read_text())["checkpoints"]
    assert [e["resource"] for e in entries] == [1, 3, 4], "what is gone leaves the index at the next save"


def test_a_killed_run_leaves_no_litter(folder: CheckpointFolder) -> None:
    save(folder, 1)
    save(folder, 2)
    folder.temporary(3).write_bytes(b"half")  # killed while saving
    folder.temporary(4).mkdir()
    (folder.path / "epoch=000005.ckpt").write_bytes(b"renamed, not noted")
    (folder.path / "notes.txt").write_text("the user's")
    assert [c.resource for c in list_checkpoints(folder.path)] == [1, 2]
    folder.forget_after(1)
    assert sorted(p.name for p in folder.path.iterdir()) == ["epoch=000001.ckpt", INDEX_NAME, "notes.txt"]
    save(folder, 2)
    assert [c.resource for c in list_checkpoints(folder.path)] == [1, 2]


def test_the_newest_that_is_not_ahead_of_the_last_report(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.find() is None
    for resource in (1, 2, 3):
        save(folder, resource)
    monkeypatch.setenv("STHYPER_LAST_RESOURCE", "2")
    found = folder.find()
    assert found is not None
    assert found.resource == 2


def test_removing_is_repeatable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for _ in range(2):
        remove_checkpoint(tmp_path / "folder")
        remove_checkpoint(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
