"""A new trial that starts from another one's checkpoints gets all of them or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sthyper.backend import EndEvent, ExperimentContext, LocalBackend, ReportEvent
from sthyper.checkpoints import CheckpointInfo, copy_checkpoints, list_checkpoints, remove_checkpoint, write_index


def make(folder: Path, resources: list[int], trial_id: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for resource in resources:
        path = folder / f"epoch={resource:06d}.ckpt"
        path.write_text(f"weights {resource}")
        infos.append(CheckpointInfo(path, resource, trial_id, best=resource == resources[0], size=path.stat().st_size))
    write_index(folder, infos)


def test_the_copy_has_its_own_paths_and_says_who_wrote_them(tmp_path: Path) -> None:
    source, target = tmp_path / "0" / "checkpoints", tmp_path / "1" / "checkpoints"
    make(source, [2, 3])
    (source / "sharded").mkdir()
    (source / "sharded" / "rank0").write_text("shard")
    (source / "half.tmp").write_text("half")
    assert copy_checkpoints(source, target)
    copies = list_checkpoints(target)
    assert [(c.path, c.resource, c.trial_id, c.best) for c in copies] == [
        (target / "epoch=000002.ckpt", 2, 0, True),
        (target / "epoch=000003.ckpt", 3, 0, False),
    ]
    assert copies[1].path.read_text() == "weights 3"
    assert (target / "sharded" / "rank0").read_text() == "shard"
    assert not (target / "half.tmp").exists()
    # Copies, not links: the two trials go on independently.
    copies[1].path.write_text("changed")
    assert (source / "epoch=000003.ckpt").read_text() == "weights 3"
    assert list((tmp_path / "1").iterdir()) == [target]


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a", [3])
    make(tmp_path / "b", [1, 2])
    assert copy_checkpoints(tmp_path / "a", tmp_path / "b")
    assert [c.resource for c in list_checkpoints(tmp_path / "b")] == [3]
    assert not (tmp_path / "b" / "epoch=000001.ckpt").exists()


def test_without_a_source_nothing_happens(tmp_path: Path) -> None:
    make(tmp_path / "b", [1])
    assert not copy_checkpoints(tmp_path / "a", tmp_path / "b")
    assert [c.resource for c in list_checkpoints(tmp_path / "b")] == [1]


def test_an_entry_whose_file_is_cut_short_is_left_out(tmp_path: Path) -> None:
    make(tmp_path / "a", [1, 2])
    (tmp_path / "a" / "epoch=000002.ckpt").write_text("weig")
    assert copy_checkpoints(tmp_path / "a", tmp_path / "b")
    assert [e["name"] for e in json.loads((tmp_path / "b" / "index.json").read_text())["checkpoints"]] == [
        "epoch=000001.ckpt"
    ]


def test_the_source_may_be_written_meanwhile(tmp_path: Path) -> None:
    """As a running trial does: the newest two are kept, each written whole, then noted."""
    source = tmp_path / "0"
    make(source, [1, 2])
    over = threading.Event()

    def train() -> None:
        resource = 2
        while not over.is_set():
            resource += 1
            make(source, [resource - 1, resource])
            (source / f"epoch={resource - 2:06d}.ckpt").unlink()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for number in range(100):
            target = tmp_path / f"copy{number}"
            assert copy_checkpoints(source, target)
            index = json.loads((target / "index.json").read_text())["checkpoints"]
            whole = list_checkpoints(target)
            assert len(whole) == len(index)  # the index names nothing that is not there
            assert all(c.path.read_text() == f"weights {c.resource}" for c in whole)
    finally:
        over.set()
        thread.join()


def test_sharded_checkpoints_that_are_removed_meanwhile(tmp_path: Path) -> None:
    source = tmp_path / "0"
    source.mkdir()
    shards = 20

    def save(resource: int, keep: list[int]) -> None:
        folder = source / f"epoch={resource:06d}.ckpt"
        folder.mkdir()
        for shard in range(shards):
            (folder / str(shard)).write_text("shard")
        write_index(source, [CheckpointInfo(source / f"epoch={r:06d}.ckpt", r, 0) for r in keep])

    save(1, [1])
    save(2, [1, 2])
    over = threading.Event()

    def train() -> None:
        resource = 2
        while not over.wait(0.03):
            resource += 1
            save(resource, [resource - 1, resource])
            remove_checkpoint(source / f"epoch={resource - 2:06d}.ckpt")

    thread = threading.Thread(target=train)
    thread.start()
    try:
        found = 0
        for number in range(40):
            target = tmp_path / f"copy{number}"
            assert copy_checkpoints(source, target)
            for info in list_checkpoints(target):
                found += 1
                assert len(os.listdir(info.path)) == shards
        assert found >= 20
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(60)
def test_a_tuner_that_is_killed_leaves_no_half_copy(tmp_path: Path) -> None:
    source = tmp_path / "0" / "checkpoints"
    source.mkdir(parents=True)
    for number in range(300):
        (source / f"{number}").write_text("x" * 100)
    code = "import sys; from sthyper.checkpoints import copy_checkpoints; "
    code += "print(1, flush=True); copy_checkpoints(*sys.argv[1:])"
    partial = 0
    for number in range(5):
        target = tmp_path / f"copy{number}" / "checkpoints"
        process = subprocess.Popen([sys.executable, "-c", code, source, target], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 10.0
        copying = target.with_name("checkpoints.copying")
        while not (copying.is_dir() and len(os.listdir(copying)) > 20 * number) and time.monotonic() < deadline:
            if process.poll() is not None:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if target.exists():
            assert len(os.listdir(target)) == 300
        else:
            partial += 1
        # The next attempt is not disturbed by what is left.
        assert copy_checkpoints(source, target)
        assert len(os.listdir(target)) == 300
        assert not copying.exists()
    assert partial >= 2


def test_a_shell_program_goes_on_from_another_trials_checkpoint(tmp_path: Path) -> None:
    script = """
        mkdir -p {checkpoint_dir}; cd {checkpoint_dir}
        n=$(cat number 2>/dev/null || echo 0); n=$((n + {step})); echo $n > number
        echo "[tune-metric]: {{\\"n\\": $n}}"
    """
    backend = LocalBackend(["sh", "-c", script])
    backend.set_path(tmp_path)
    backend.open(ExperimentContext(n_workers=1, seed=0))
    numbers = []
    try:
        for step, start_from in ((5, None), (2, 0), (1, 1), (1, None)):
            backend.start_trial({"step": step}, checkpoint_trial_id=start_from)
            ended = False
            while not ended:
                for event in backend.events(10.0):
                    if isinstance(event, ReportEvent):
                        numbers.append(event.metrics["n"])
                        backend.answer(event, "CONTINUE")
                    ended = ended or isinstance(event, EndEvent)
    finally:
        backend.close()
    assert numbers == [5, 7, 8, 1]
