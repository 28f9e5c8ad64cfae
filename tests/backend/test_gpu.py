"""GPUs: an ``nvidia-smi`` on the PATH that answers as we like, and real trials that say what they see."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper.backend import LocalBackend
from sthyper.backend.gpu import GpuOptions, GpuPool, get_num_gpus, visible_gpus
from sthyper.baselines import ASHA, RandomSearch
from sthyper.config_space import uniform
from sthyper.journal import read_journal

FOUR = "".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{i}{i}{i}{i}-ab)\n" for i in range(4))
MIG = (
    "GPU 0: NVIDIA A100 (UUID: GPU-0000-ab)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-aaaa-1)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb-1)\n"
    "GPU 1: NVIDIA A100 (UUID: GPU-1111-ab)\n"
)

# Says which GPUs it sees, and is there for a while.
TRAIN = """
    import os, time
    from sthyper import Reporter
    begin = time.time()
    time.sleep(SLEEP)
    Reporter()(loss=1.0, gpus=os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), begin=begin, end=time.time())
"""


@pytest.fixture(autouse=True)
def no_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "bin").mkdir()
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvidia-smi").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), *path]))


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Callable[..., Path]:
    def install(output: str, code: int = 0, seconds: float = 0.0) -> Path:
        """Return a file with one line for each time that it was asked."""
        program = tmp_path / "bin" / "nvidia-smi"
        asked = tmp_path / "asked"
        (tmp_path / "list").write_text(output)
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {asked}\nsleep {seconds}\n'
            f'[ "$1" = --list-gpus ] && cat {tmp_path}/list\nexit {code}\n'
        )
        program.chmod(0o755)
        return asked

    return install


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TRAIN).replace("SLEEP", "0.15"))
    return path


def run(entry_point: Any, n_workers: int, n_trials: int, **options: Any) -> Tuner:
    backend = LocalBackend(entry_point, preload=False, **options)
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=0)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=n_trials), n_workers)
    tuner.run()
    return tuner


def seen(tuner: Tuner) -> list[str]:
    """Return what the trials saw, in the order of their ids."""
    reports = sorted((r["trial_id"], r["metrics"]["gpus"]) for r in read_journal(tuner.tuner_path) if "metrics" in r)
    return [gpus for _, gpus in reports]


def most_at_once(tuner: Tuner, gpu: str) -> int:
    spans = [r["metrics"] for r in read_journal(tuner.tuner_path) if "metrics" in r]
    spans = [m for m in spans if gpu in m["gpus"].split(",")]
    return max(sum(m["begin"] <= at["begin"] < m["end"] for m in spans) for at in spans)


# ---- what there is -------------------------------------------------------------------------------------


def test_no_nvidia_smi_no_gpus(nvidia_smi: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    assert get_num_gpus() == 0
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    assert get_num_gpus() == 0
    nvidia_smi(FOUR, code=9)
    assert get_num_gpus() == 0
    nvidia_smi("No devices were found\n")
    assert get_num_gpus() == 0
    assert caplog.records == []


def test_a_driver_that_hangs(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nvidia_smi(FOUR, seconds=5.0)
    monkeypatch.setattr("sthyper.backend.gpu.PROBE_TIMEOUT", 0.2)
    begin = time.monotonic()
    assert get_num_gpus() == 0
    assert time.monotonic() - begin < 2.0
    assert "no answer" in caplog.text


@pytest.mark.parametrize(
    ("listed", "visible", "expected"),
    [
        (FOUR, None, ["0", "1", "2", "3"]),
        (FOUR, "", []),
        (FOUR, " ", []),
        (FOUR, "2, 0", ["2", "0"]),
        (FOUR, "-1", []),
        (FOUR, "1,-1,2", ["1"]),
        (FOUR, "1,9,2", ["1"]),
        (FOUR, "1,1", ["1"]),
        (FOUR, "NoDevFiles", []),
        (FOUR, "GPU-2222-ab,GPU-0", ["GPU-2222-ab", "GPU-0"]),
        (FOUR, "GPU-", []),  # not unique
        (FOUR, "GPU-9", []),
        (MIG, None, ["MIG-aaaa-1", "MIG-bbbb-1", "GPU-1111-ab"]),
        (MIG, "MIG-bbbb-1", ["MIG-bbbb-1"]),
        (MIG, "MIG-cccc-1", []),
        (MIG, "MIG-GPU-0000-ab/3/0", ["MIG-GPU-0000-ab/3/0"]),
        ("", "0", []),
    ],
)
def test_visible_devices(
    nvidia_smi: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
    visible: str | None,
    expected: list[str],
) -> None:
    nvidia_smi(listed)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected
    assert get_num_gpus() == len(expected)


def test_counting_loads_no_torch_and_leaves_no_file(nvidia_smi: Callable[..., Path], tmp_path: Path) -> None:
    nvidia_smi(FOUR)
    code = "import sys; from sthyper.backend.gpu import get_num_gpus; print(get_num_gpus(), 'torch' in sys.modules)"
    (tmp_path / "cwd").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "cwd")
    assert done.stdout == "4 False\n", done.stderr
    assert list((tmp_path / "cwd").iterdir()) == []


# ---- who gets which ------------------------------------------------------------------------------------


def test_least_used_first() -> None:
    pool = GpuPool(GpuOptions(), ["0", "1", "2"], n_workers=3)
    assert [pool.take(i) for i in range(3)] == [["0"], ["1"], ["2"]]
    pool.release(1)
    assert pool.take(3) == ["1"]  # the only free one, though used most
    for trial_id in (0, 2, 3):
        pool.release(trial_id)
        pool.release(trial_id)
    assert pool.take(4) == ["0"]  # fewer earlier trials than 1, lower than 2
    assert pool.take(5) == ["2"]
    assert pool.take(6) == ["1"]


def test_a_trial_that_comes_again_gives_its_gpus_back() -> None:
    pool = GpuPool(GpuOptions(), ["0", "1"], n_workers=2)
    assert [pool.take(7) for _ in range(4)] == [["0"], ["1"], ["0"], ["1"]]
    assert pool.take(8) == ["0"]


def test_several_gpus_a_trial() -> None:
    pool = GpuPool(GpuOptions(per_trial=2), ["4", "5", "6", "7"], n_workers=2)
    assert (pool.take(0), pool.take(1)) == (["4", "5"], ["6", "7"])
    pool.release(0)
    pool.release(1)
    assert pool.take(2) == ["4", "5"]


@pytest.mark.parametrize("per_trial", [0.5, 1 / 3, 0.25, 1 / 7])
def test_fractions_share(per_trial: float) -> None:
    k = round(1 / per_trial)
    pool = GpuPool(GpuOptions(per_trial=per_trial), ["0", "1"], n_workers=2 * k)
    taken = [pool.take(i) for i in range(2 * k)]
    assert taken == [["0"], ["1"]] * k
    with pytest.raises(ValueError, match=rf"n_workers={2 * k} or num_gpus_per_trial=1/{k + 1} fits"):
        GpuPool(GpuOptions(per_trial=per_trial), ["0", "1"], n_workers=2 * k + 1)


@pytest.mark.parametrize("per_trial", [0.3, 0.33, 0.7, 1.5, -1, float("nan"), float("inf")])
def test_numbers_that_are_not_allowed(script: Path, per_trial: float) -> None:
    with pytest.raises(ValueError, match="num_gpus_per_trial must be a whole number .* or 1/k for k trials"):
        LocalBackend(script, num_gpus_per_trial=per_trial)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_gpus_per_trial": 0.33}, ValueError, "nearest that is allowed is 1/3"),
        ({"num_gpus_per_trial": "1"}, TypeError, "num_gpus_per_trial"),
        ({"num_gpus_per_trial": True}, TypeError, "num_gpus_per_trial"),
        ({"num_gpus_per_trial": 1, "rotate_gpus": False}, ValueError, "no effect with rotate_gpus=False"),
        ({"num_gpus_per_trial": 0, "gpus_to_use": [0]}, ValueError, "gpus_to_use has no effect"),
        ({"rotate_gpus": 1}, TypeError, "rotate_gpus must be True or False"),
        ({"gpus_to_use": [0, 0]}, ValueError, r"different GPUs .* got \[0, 0\]"),
        ({"gpus_to_use": []}, ValueError, "at least one"),
        ({"gpus_to_use": [-1]}, ValueError, "numbers from 0 on"),
        ({"gpus_to_use": [0.5]}, TypeError, "list of ints"),
        ({"gpus_to_use": "01"}, TypeError, "list of ints"),
        ({"gpus_to_use": 1}, TypeError, "list of ints"),
    ],
)
def test_bad_arguments(script: Path, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LocalBackend(script, **options)


@pytest.mark.parametrize(
    ("listed", "n_workers", "options", "words"),
    [
        (FOUR, 1, {"num_gpus_per_trial": 5}, "num_gpus_per_trial=5: there are 4"),
        (FOUR, 1, {"num_gpus_per_trial": 3, "gpus_to_use": [1, 2]}, "num_gpus_per_trial=3: there are 2"),
        (FOUR, 4, {"num_gpus_per_trial": 2}, "n_workers=2 or num_gpus_per_trial=1 fits"),
        (FOUR, 5, {"num_gpus_per_trial": 1}, "n_workers=4 or num_gpus_per_trial=1/2 fits"),
        (FOUR, 9, {"num_gpus_per_trial": 0.5}, "n_workers=8 or num_gpus_per_trial=1/3 fits"),
        (FOUR, 1, {"gpus_to_use": [1, 4]}, "there is no GPU 4; allowed: numbers from 0 to 3"),
        ("", 1, {"gpus_to_use": [0]}, "allowed: none, as there is no GPU"),
        ("", 1, {"num_gpus_per_trial": 1}, "there is none"),
        ("", 1, {"num_gpus_per_trial": 0.5}, "there is none"),
    ],
)
def test_more_than_there_is_ends_before_the_first_trial(
    nvidia_smi: Callable[..., Path], script: Path, listed: str, n_workers: int, options: dict[str, Any], words: str
) -> None:
    nvidia_smi(listed)
    with pytest.raises(ValueError, match=words):
        run(script, n_workers, 1, **options)
    assert list(Path(os.environ["STHYPER_FOLDER"]).glob("*/trials/*")) == []


# ---- real trials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", ["fork", "exec"])
def test_each_trial_has_a_gpu_of_its_own(nvidia_smi: Callable[..., Path], script: Path, launch: str) -> None:
    asked = nvidia_smi(FOUR)
    tuner = run(script, 2, 6, launch=launch)
    assert set(seen(tuner)) == {"0", "1", "2", "3"}
    assert all(most_at_once(tuner, gpu) == 1 for gpu in "0123")
    assert asked.read_text() == "--list-gpus\n"
    told = {r["trial_id"]: r["gpus"] for r in read_journal(tuner.tuner_path) if r["type"] == "process"}
    assert [told[i] for i in range(6)] == [[gpus] for gpus in seen(tuner)]


def test_a_command_sees_its_gpu(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(FOUR)
    script = 'echo "[tune-metric]: {{\\"loss\\": 1, \\"gpus\\": \\"$CUDA_VISIBLE_DEVICES\\"}}"'
    assert seen(run(["sh", "-c", script], 1, 5)) == ["0", "1", "2", "3", "0"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"0", "1", "2", "3"}),
        ({"rotate_gpus": False}, {"unset"}),
        ({"rotate_gpus": False, "gpus_to_use": [3, 1]}, {"1,3"}),
        ({"gpus_to_use": [3, 1]}, {"1", "3"}),
        ({"num_gpus_per_trial": 2}, {"0,1", "2,3"}),
        ({"num_gpus_per_trial": 0}, {""}),
        ({"num_gpus_per_trial": 0.5, "gpus_to_use": [2]}, {"2"}),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "3"}, "num_gpus_per_trial": 1}, {"3"}),
        ({"environment": {"CUDA_VISIBLE_DEVICES": None}}, {"unset"}),
    ],
)
def test_what_trials_see(
    nvidia_smi: Callable[..., Path], script: Path, options: dict[str, Any], expected: set[str]
) -> None:
    nvidia_smi(FOUR)
    assert set(seen(run(script, 2, 4, **options))) == expected


@pytest.mark.parametrize(
    ("visible", "options", "expected"),
    [
        ("3,1", {}, {"3", "1"}),
        ("3,1", {"gpus_to_use": [1]}, {"1"}),
        ("GPU-2222-ab", {"num_gpus_per_trial": 0.5}, {"GPU-2222-ab"}),
        ("", {}, {""}),
    ],
)
def test_the_tuners_own_devices_are_respected(
    nvidia_smi: Callable[..., Path],
    script: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    options: dict[str, Any],
    expected: set[str],
) -> None:
    nvidia_smi(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert set(seen(run(script, 2, 4, **options))) == expected


def test_two_trials_share_a_gpu_and_no_third(nvidia_smi: Callable[..., Path], script: Path) -> None:
    nvidia_smi(FOUR)
    tuner = run(script, 4, 8, num_gpus_per_trial=1 / 2, gpus_to_use=[0, 1])
    assert most_at_once(tuner, "0") == most_at_once(tuner, "1") == 2


def test_more_workers_than_gpus_are_warned_of(
    nvidia_smi: Callable[..., Path], script: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nvidia_smi(FOUR.splitlines()[0] + "\n")
    with caplog.at_level(logging.WARNING):
        tuner = run(script, 2, 2)
    assert seen(tuner) == ["0", "0"]
    assert "n_workers=2 trials share 1 GPU; num_gpus_per_trial=1/2 says that this is meant" in caplog.text
    caplog.clear()
    assert seen(run(script, 2, 2, num_gpus_per_trial=0.5)) == ["0", "0"]
    assert caplog.text == ""


def test_without_gpus_nothing_is_set(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(run(script, 2, 2)) == ["unset", "unset"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert seen(run(script, 2, 2)) == ["7", "7"]


def test_a_gpu_is_free_when_the_last_process_of_its_trial_is_gone(
    nvidia_smi: Callable[..., Path], tmp_path: Path
) -> None:
    # The leader ends at once; a child of another session holds the GPU half a second longer.
    nvidia_smi("".join(FOUR.splitlines(keepends=True)[:2]))
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os, subprocess, sys, time
        from sthyper import Reporter
        gpus = os.environ["CUDA_VISIBLE_DEVICES"]
        CHILD = '''
        import os, sys, time
        held = sys.argv[1] + "/held-by-" + os.environ["CUDA_VISIBLE_DEVICES"]
        os.mkdir(held)  # fails if somebody else holds it
        time.sleep(0.5)
        os.rmdir(held)
        open(sys.argv[1] + "/done", "a").write("x")
        '''
        import textwrap
        child = [sys.executable, "-c", textwrap.dedent(CHILD), os.path.dirname(os.path.abspath(__file__))]
        subprocess.Popen(child, start_new_session=True)
        Reporter()(loss=1.0, gpus=gpus)
        """)
    )
    tuner = run(script, 2, 6)
    assert set(seen(tuner)) == {"0", "1"}
    assert (tmp_path / "done").read_text() == "xxxxxx"


def test_a_resumed_trial_gets_gpus_afresh(nvidia_smi: Callable[..., Path], tmp_path: Path) -> None:
    nvidia_smi(FOUR)
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os
        from sthyper import Reporter
        report = Reporter()
        for epoch in range(int(report.last_resource or 0) + 1, 10):
            report(epoch=epoch, loss=1 / (1 + report.trial_id) + 1 / epoch, gpus=os.environ["CUDA_VISIBLE_DEVICES"])
        """)
    )
    scheduler = ASHA(
        {"x": uniform(0.0, 1.0), "epochs": 9},
        metric="loss",
        resource_attr="epoch",
        max_resource_attr="epochs",
        type="promotion",
        random_seed=0,
    )
    tuner = Tuner(LocalBackend(script, preload=False), scheduler, StoppingCriterion(max_num_trials_started=6), 1)
    tuner.run()
    lines = list(read_journal(tuner.tuner_path))
    runs = [(r["trial_id"], r["run"]) for r in lines if r["type"] in ("start", "resume")]
    assert max(run for _, run in runs) >= 1
    gpus = {(r["trial_id"], r["run"]): r["metrics"]["gpus"] for r in lines if r["type"] == "report"}
    # One worker: the runs take the GPUs in turn, whichever trial's they are.
    assert [gpus[run] for run in runs] == [str(i % 4) for i in range(len(runs))]


def test_inline_trials_keep_their_gpu(nvidia_smi: Callable[..., Path], script: Path) -> None:
    nvidia_smi(FOUR)
    assert seen(run(script, 1, 3, launch="inline", gpus_to_use=[1, 2])) == ["1", "1", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_cuda_that_runs_already_is_warned_of(
    nvidia_smi: Callable[..., Path],
    script: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import torch

    nvidia_smi(FOUR)
    run(script, 1, 1, launch="inline")
    assert caplog.text == ""
    # Stands for a notebook that has used the GPU: what counts is the answer to our question.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    run(script, 1, 1, launch="inline")
    assert "CUDA has been started in this process" in caplog.text
    caplog.clear()
    run(script, 1, 1, launch="fork")
    assert caplog.text == ""


@pytest.mark.timeout(120)
def test_the_fork_server_has_not_touched_cuda(
    nvidia_smi: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)  # Lightning sets it when it is imported
    nvidia_smi(FOUR)
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os
        import torch
        from sthyper import Reporter
        Reporter()(
            loss=1.0, gpus=os.environ["CUDA_VISIBLE_DEVICES"], started=torch.cuda.is_initialized(),
            counted=torch.cuda._cached_device_count is not None, spoilt=torch.cuda._is_in_bad_fork(),
            nvml=os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK", "unset"),
        )
        """)
    )
    backend = LocalBackend(script, launch="fork")
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metric="loss", random_seed=0)
    tuner = Tuner(backend, scheduler, StoppingCriterion(max_num_trials_started=2), 1)
    tuner.run()
    reports = [r["metrics"] for r in read_journal(tuner.tuner_path) if r["type"] == "report"]
    for number, metrics in enumerate(reports):
        assert metrics["gpus"] == str(number)
        assert [metrics[name] for name in ("started", "counted", "spoilt", "nvml")] == [False, False, False, "unset"]
