"""Snapshots: a resumed tuner that begins with one is in the state that going through the whole journal leads to."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sthyper import StoppingCriterion, Tuner
from sthyper._lock import LockLost
from sthyper._tuning import recorded, saving, snapshots
from sthyper._tuning.snapshots import decode, encode, read_snapshots, write_snapshot
from sthyper.backend import LocalBackend
from sthyper.baselines import ASHA, GridSearch, RandomSearch
from sthyper.config_space import choice, randint, uniform
from sthyper.errors import ExperimentError
from sthyper.journal import read_journal
from sthyper.results_callback import StoreResultsCallback
from sthyper.schedulers import HyperbandScheduler, TrialScheduler
from sthyper.searchers import RandomSearcher
from sthyper.stopping_criterion import PlateauStopper
from sthyper.testing import canonical_journal
from sthyper.testing._simulated_backend import SimulatedTrials
from sthyper.trial import Status, Trial
from sthyper.tuner_callback import TunerCallback

SPACE: dict[str, Any] = {"x": uniform(0.0, 1.0), "n": randint(1, 50), "epochs": 9}
TINY: dict[str, Any] = {"x": choice(["a", "b", "c"]), "n": randint(1, 4), "epochs": 9}


class SlowSearcher(RandomSearcher):
    """Suggests in a worker thread."""

    slow = True


def scheduler(kind: str) -> TrialScheduler:
    if kind == "random":
        return RandomSearch(SPACE, metric="loss", random_seed=5)
    if kind == "slow":
        return HyperbandScheduler(
            SPACE, "loss", searcher=SlowSearcher(SPACE), type="promotion", max_resource_attr="epochs", random_seed=5
        )
    if kind == "grid":
        return GridSearch(TINY, metric="loss", random_seed=5)
    return ASHA(
        SPACE,
        metric="loss",
        type=kind.removesuffix("3"),
        brackets=3 if kind.endswith("3") else 1,
        max_resource_attr="epochs",
        reduction_factor=2,
        random_seed=5,
    )


def make(kind: str, **changes: Any) -> Tuner:
    arguments: dict[str, Any] = {
        "trial_backend": SimulatedTrials(),
        "scheduler": scheduler(kind),
        "stop_criterion": StoppingCriterion(max_num_trials_started=15),
        "n_workers": 3,
        "tuner_name": "simulated",
        "max_failures": 1000,
    }
    return Tuner(**(arguments | changes))


def resumed(folder: Path, kind: str, **changes: Any) -> Tuner:
    return Tuner.resume(folder, trial_backend=SimulatedTrials(**changes), scheduler=scheduler(kind))


def loaded(folder: Path, kind: str, **changes: Any) -> Tuner:
    return Tuner.load(folder, trial_backend=SimulatedTrials(**changes), scheduler=scheduler(kind), callbacks=[])


def state_of(tuner: Tuner) -> dict[str, Any]:
    """All states, but for the scheduler's clock, which tells how long this process has run."""
    assert tuner._loop is not None
    state = through_json(tuner._loop.state_dict())
    state["scheduler"].pop("clock")
    assert isinstance(state, dict)
    return state


def through_json(state: Any) -> Any:
    tensors: list[Any] = []
    return decode(json.dumps(encode(state, tensors)), tensors)


def new_loop(folder: Path, kind: str, **changes: Any) -> Tuner:
    """A tuner of the experiment that has not gone through anything."""
    tuner = resumed(folder, kind, **changes)
    tuner.trial_backend.set_path(folder)
    tuner.trial_backend.context = tuner._context()
    tuner._loop = tuner._make_loop(recorded.MadeLines(folder))
    return tuner


def states_on_the_way(folder: Path, kind: str, **changes: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Go through a journal, and yield the number of lines that were gone through and the state, when it is quiet."""
    tuner = new_loop(folder, kind, **changes)
    loop = tuner._loop
    assert loop is not None
    records = list(read_journal(folder))
    numbered = recorded.RecordedJournal(recorded.MadeLines(folder), records)
    state = loop.state
    state.journal = state.recorded = numbered
    state.callbacks, state.clock = (), numbered.time
    state.backend.recalling = True
    yield numbered.line - 1, copy.deepcopy(loop.state_dict())
    while (line := numbered.peek()) is not None:
        recorded._do_again(loop, line, numbered)
        if loop.suggestions.quiet:
            # In the middle of events that follow from one another nobody takes a snapshot.
            yield len(records) if numbered.peek() is None else numbered.line - 1, copy.deepcopy(loop.state_dict())


def run_to_the_end(kind: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Run an experiment with a snapshot at every quiet moment, all of which are kept; return its folder."""
    monkeypatch.setattr(snapshots, "KEPT", 10**6)
    monkeypatch.setattr(saving, "SHARE_OF_TIME", 1e9)

    def wait() -> None:
        assert tuner._snapshots is not None
        tuner._snapshots.close()

    tuner = make(kind, snapshot_interval=0.0, trial_backend=SimulatedTrials(every=wait, **changes))
    tuner.run()
    return tuner.tuner_path


KINDS = ["random", "slow", "grid", "stopping", "promotion", "promotion3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("faults", [0.0, 0.1])
def test_a_state_and_the_rest_equal_the_whole(kind: str, faults: float) -> None:
    tuner = make(kind, trial_backend=SimulatedTrials(faults=faults, seed=3), save_tuner=False)
    if faults == 0.0:
        tuner.add_result({"x": "a", "n": 1} if kind == "grid" else {"x": 0.5, "n": 7}, {"epoch": 3, "loss": 0.4})
        tuner.enqueue({"n": 3})
    tuner.run()
    folder = tuner.tuner_path
    whole = state_of(loaded(folder, kind))
    assert len(whole["trials"]) == (11 if kind == "grid" and not faults else 12 if kind == "grid" else 15)
    records = list(read_journal(folder))
    seen = 0
    for done, state in states_on_the_way(folder, kind):
        seen += 1
        if done % 3:
            continue  # a third of the positions; a third of the time
        other = new_loop(folder, kind)
        assert other._loop is not None
        other._loop.load_state_dict(through_json(state))
        assert list(differences(other._loop.state_dict(), state)) == []
        recorded.replay(other._loop, records[done:], done + 1)
        assert list(differences(state_of(other), whole)) == [], done
    assert seen > 50


@pytest.mark.parametrize("kind", KINDS)
def test_snapshots_of_a_running_experiment_equal_those_of_going_through(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_to_the_end(kind, monkeypatch, faults=0.1, seed=4)
    on_the_way = dict(states_on_the_way(folder, kind))
    ends = line_ends(folder)
    kinds = [record["type"] for record in read_journal(folder)]
    compared = 0
    for path, content in read_snapshots(folder):
        done = ends.index(content["offset"]) + 1
        while done < len(kinds) and kinds[done] in recorded._PASSED_OVER:
            done += 1
        state, known = content["experiment"], on_the_way[done]
        for each in (state, known):
            each["scheduler"].pop("clock", None)
        assert list(differences(state, known)) == [], path
        compared += 1
    assert compared > 30


def line_ends(folder: Path) -> list[int]:
    ends, position = [], 0
    for line in (folder / "journal.jsonl").read_bytes().splitlines(keepends=True):
        position += len(line)
        ends.append(position)
    return ends


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield where two states differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(one.get(key, "absent"), other.get(key, "absent"), f"{where}[{key!r}]")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif not (one == other or (one != one and other != other)):
        yield f"{where}: {one!r} != {other!r}"


# ---- nothing is missing ----------------------------------------------------------------------------------


def fields(state: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the places of a state that can be lost on their own."""
    for part, content in state.items():
        if isinstance(content, dict):
            yield from ((part, name) for name in content if name != "clock")
        else:
            yield part, None


def fields_that_matter(kind: str) -> set[tuple[str, str | None]]:
    """Return which fields lead to another state in the end when they are lost on the way."""
    tuner = make(
        kind,
        trial_backend=SimulatedTrials(faults=0.1, seed=3, delete_checkpoints=True),
        stop_criterion=StoppingCriterion(max_num_trials_started=13),
        save_tuner=False,
    )
    for n in range(2, 5) if kind == "grid" else range(3, 10):
        tuner.enqueue({"n": n})
    if kind != "grid":
        tuner.add_result({"x": 0.5, "n": 7}, {"epoch": 3, "loss": 0.4})
    tuner.run()
    folder = tuner.tuner_path
    records = list(read_journal(folder))

    def at_end(state: dict[str, Any], done: int) -> dict[str, Any]:
        other = new_loop(folder, kind, delete_checkpoints=True)
        assert other._loop is not None
        other._loop.load_state_dict(through_json(state))
        recorded.replay(other._loop, records[done:], done + 1)
        return state_of(other)

    on_the_way = list(states_on_the_way(folder, kind, delete_checkpoints=True))
    fresh = on_the_way[0][1]
    found: set[tuple[str, str | None]] = set()
    for done, state in on_the_way[:4] + on_the_way[4::5] + on_the_way[-1:]:
        whole = at_end(state, done)
        for part, name in set(fields(state)) - found:
            broken = copy.deepcopy(state)
            if name is None:
                broken[part] = fresh[part]
            else:
                broken[part][name] = fresh[part][name]
            if broken == state:
                continue
            try:
                matters = any(differences(at_end(broken, done), whole))
            except Exception:  # it could not be loaded or gone through
                matters = True
            if matters:
                found.add((part, name))
    assert found <= set(fields(fresh))
    return found


def test_each_field_of_the_state_matters() -> None:
    tuner = make("promotion3")
    loop = tuner._make_loop(recorded.MadeLines(tuner.tuner_path))
    known = set(fields(loop.state_dict()))
    # Without costs, constraints, slow suggestions and brackets of a searcher these stay as they are.
    assert known - fields_that_matter("promotion3") - fields_that_matter("grid") == {
        ("status", "cost"),
        ("status", "constraints"),
        ("scheduler", "random_seed"),
        ("scheduler", "waiting_news"),
        ("scheduler", "bracket_distribution"),
    }


# ---- resuming with one -----------------------------------------------------------------------------------


def more(folder: Path, kind: str, trials: int, **changes: Any) -> Tuner:
    criterion = StoppingCriterion(max_num_trials_started=trials)
    backend = SimulatedTrials(seed=8, **changes)
    return Tuner.resume(
        folder, trial_backend=backend, scheduler=scheduler(kind), stop_criterion=criterion, callbacks=[]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_record_goes_on_as_without_snapshots(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_to_the_end(kind, monkeypatch, faults=0.05, seed=6)
    ends = line_ends(folder)
    cuts = random.Random(kind).sample(ends[4:], 4)
    used = 0
    for number, cut in enumerate(sorted(cuts)):
        journals = []
        for with_snapshots in (True, False):
            other = folder.with_name(f"{kind}-{number}-{with_snapshots}")
            shutil.copytree(folder, other)
            os.truncate(other / "journal.jsonl", cut)
            if not with_snapshots:
                shutil.rmtree(other / "snapshots")
            tuner = more(other, kind, 17)
            assert tuner._past is not None
            used += tuner._past.snapshot is not None
            assert with_snapshots or tuner._past.snapshot is None
            tuner.run()
            journals.append(canonical_journal(other))
        assert journals[0] == journals[1]
    assert used >= 3


def test_a_resume_goes_through_the_rest_only() -> None:
    tuner = make("promotion")
    tuner.run()
    past = resumed(tuner.tuner_path, "promotion")._past
    assert past is not None
    assert past.snapshot is not None
    assert [record["type"] for record in past.records] == ["end"]
    assert past.tuner_time == pytest.approx(tuner.tuning_status.wallclock_time, abs=0.2)


def number_of(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "snapshots").iterdir())


def begins_with(folder: Path, kind: str = "promotion", **changes: Any) -> int | None:
    """Number of the snapshot that a resume begins with; it must go on well."""
    tuner = more(folder, kind, 20, **changes)
    assert tuner._past is not None
    snapshot = tuner._past.snapshot
    whole = state_of(loaded(folder, kind, **changes))
    names = folder / "snapshots", folder / "aside"
    os.rename(*names)
    assert list(differences(state_of(loaded(folder, kind, **changes)), whole)) == []
    os.rename(*reversed(names))
    return None if snapshot is None else int(snapshot.path.stem)


def test_the_last_three_are_kept() -> None:
    tuner = make("promotion", snapshot_interval=0.0)
    saving_often(tuner)
    tuner.run()
    numbers = number_of(tuner.tuner_path)
    assert len(numbers) == 3
    assert numbers[0] > 5
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert begins_with(tuner.tuner_path) == numbers[-1]


def saving_often(tuner: Tuner) -> None:
    """Have a snapshot taken at each event."""

    class Saves(TunerCallback):
        def on_loop_end(self) -> None:
            tuner.save()
            assert tuner._snapshots is not None
            tuner._snapshots.close()

    tuner.callbacks.append(Saves())


def flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "binary", "newer", "folder", "other"])
def test_a_damaged_one_is_passed_over(harm: str, caplog: pytest.LogCaptureFixture) -> None:
    tuner = make("promotion")
    saving_often(tuner)
    tuner.run()
    folder = tuner.tuner_path
    first, second, third = sorted((folder / "snapshots").iterdir())

    def damage(path: Path) -> None:
        if harm == "cut":
            os.truncate(path, path.stat().st_size * 2 // 3)
        elif harm == "empty":
            os.truncate(path, 0)
        elif harm == "flip":
            for position in (0.99, 0.6):
                flip(path, position)
        elif harm == "binary":
            path.write_bytes(bytes(range(256)))
        elif harm == "newer":
            path.write_bytes(path.read_bytes().replace(b'{"version":1,', b'{"version":2,', 1))
        elif harm == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_text('{"version":1,"checksum":"00","content":{}}')

    damage(third)
    assert begins_with(folder) == int(second.stem)
    assert f"{third} is not used: it " in caplog.text
    for path in (first, second):
        damage(path)
    assert begins_with(folder) is None
    result = more(folder, "promotion", 20).run()
    assert len(result.trials) == 20


@pytest.mark.parametrize("tensors", [False, True])
def test_every_flipped_bit_is_found(tmp_path: Path, tensors: bool) -> None:
    if tensors:
        import torch

        state: dict[str, Any] = {"a": [1.5, 2], "b": {"t": torch.arange(5.0), "u": torch.ones(2, 3).bfloat16()}}
    else:
        state = {"a": [1.5, math.nan], "b": {"t": (1, 2), 3: "x"}}
    found: list[Any] = []
    path = write_snapshot(tmp_path, encode(state, found), found, lambda: None)
    assert path.suffix == (".pt" if tensors else ".json")
    (read,) = read_snapshots(tmp_path)
    assert repr(read[1]) == repr(state)
    data = path.read_bytes()
    step = max(1, len(data) // 300)
    accepted = 0
    for position in range(0, len(data), step):
        harmed = bytearray(data)
        harmed[position] ^= 0x10
        path.write_bytes(bytes(harmed))
        for _, content in read_snapshots(tmp_path):
            # Some bytes of the zip file of torch mean nothing.
            assert repr(content) == repr(state)
            accepted += 1
    assert accepted == 0 or tensors


def test_a_snapshot_of_another_journal_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    one, other = make("promotion"), make("promotion", trial_backend=SimulatedTrials(seed=2), tuner_name="other")
    one.run()
    other.run()
    shutil.rmtree(one.tuner_path / "snapshots")
    shutil.copytree(other.tuner_path / "snapshots", one.tuner_path / "snapshots")
    assert begins_with(one.tuner_path) is None
    assert "journal.jsonl is not the one of which it was taken" in caplog.text


def test_damage_before_the_snapshot_is_reported() -> None:
    tuner = make("promotion")
    tuner.run()
    path = tuner.tuner_path / "journal.jsonl"
    data = path.read_bytes().splitlines(keepends=True)
    data[9] = b"{" + data[9]
    path.write_bytes(b"".join(data))
    with pytest.raises(ValueError, match=r"line 10 is damaged.*repair_journal=True"):
        resumed(tuner.tuner_path, "promotion")


def test_other_arguments_are_found_out_with_a_snapshot_too(caplog: pytest.LogCaptureFixture) -> None:
    tuner = make("promotion")
    tuner.run()
    other = ASHA(SPACE, metric="loss", type="promotion", max_resource_attr="epochs", reduction_factor=2, random_seed=6)
    with pytest.raises(ExperimentError, match=r"line \d+: .* made with the same arguments as before"):
        Tuner.resume(tuner.tuner_path, trial_backend=SimulatedTrials(), scheduler=other).run()
    assert "scheduler or backend were made with other arguments" in caplog.text
    # The record is as good as before.
    assert len(more(tuner.tuner_path, "promotion", 20).run().trials) == 20


def test_states_with_tensors_go_into_files_of_torch() -> None:
    import torch

    class Learns(RandomSearcher):
        def __init__(self, config_space: dict[str, Any]) -> None:
            super().__init__(config_space, points_to_evaluate=[])
            self.weights = torch.zeros(3)

        def on_trial_result(self, trial_id: Any, config: Any, result: Any, update: bool) -> None:
            self.weights += torch.tensor([1.0, config["x"], config["n"]])

        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"weights": self.weights.clone()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state)
            self.weights = state["weights"]

    def search() -> RandomSearch:
        return HyperbandScheduler(SPACE, "loss", searcher=Learns(SPACE), max_resource_attr="epochs", random_seed=5)

    tuner = make("random", scheduler=search())
    tuner.run()
    assert [path.suffix for path in (tuner.tuner_path / "snapshots").iterdir()] == [".pt"]
    again = Tuner.load(tuner.tuner_path, trial_backend=SimulatedTrials(), scheduler=search())
    assert again._past is not None
    assert again._past.snapshot is not None
    assert torch.equal(again.scheduler.searcher.weights, tuner.scheduler.searcher.weights)
    assert again.scheduler.searcher.weights[0] > 10


# ---- when they are taken ---------------------------------------------------------------------------------


def test_interval_and_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshots_of(**arguments: Any) -> list[int]:
        pause = SimulatedTrials(every=lambda: time.sleep(0.002))
        tuner = make(
            "random", trial_backend=pause, stop_criterion=StoppingCriterion(max_wallclock_time=0.6), **arguments
        )
        tuner.run()
        assert Tuner.resume(tuner.tuner_path, trial_backend=SimulatedTrials()).save_tuner == tuner.save_tuner
        return number_of(tuner.tuner_path) if (tuner.tuner_path / "snapshots").exists() else []

    monkeypatch.setattr(saving, "SHARE_OF_TIME", 1.0)
    assert snapshots_of(save_tuner=False) == []
    assert snapshots_of(snapshot_interval=3600.0) == [1]  # the one at the end
    assert 2 <= snapshots_of(snapshot_interval=0.2)[-1] <= 4
    assert snapshots_of(snapshot_interval=0.02)[-1] > 5


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1"])
def test_the_interval_is_checked(value: Any) -> None:
    with pytest.raises(ValueError, match="snapshot_interval must be a number of seconds"):
        make("random", snapshot_interval=value)
    with pytest.raises(TypeError, match="save_tuner must be True or False"):
        make("random", save_tuner=value)


def test_they_take_a_hundredth_of_the_time() -> None:
    class Heavy(RandomSearcher):
        taken = 0

        def state_dict(self) -> dict[str, Any]:
            Heavy.taken += 1
            time.sleep(0.02)
            return super().state_dict()

    search = HyperbandScheduler(SPACE, "loss", searcher=Heavy(SPACE), max_resource_attr="epochs", random_seed=1)
    criterion = StoppingCriterion(max_wallclock_time=1.5)
    tuner = make("random", scheduler=search, stop_criterion=criterion, snapshot_interval=0.0)
    tuner.run()
    assert 1 <= Heavy.taken <= 3  # the first, perhaps one more, and the one at the end unless that takes too long


def test_save_is_heard_at_the_next_quiet_moment() -> None:
    class Saves(TunerCallback):
        def on_tuning_start(self, tuner: Tuner) -> None:
            self.tuner = tuner

        def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
            if trial.trial_id == 3 and result["epoch"] == 1:
                self.tuner.save()

    tuner = make("random", save_tuner=False, callbacks=[Saves()])
    with pytest.raises(ExperimentError, match="does not run yet"):
        tuner.save()
    tuner.run()
    ((_, content),) = read_snapshots(tuner.tuner_path)
    assert len(content["experiment"]["trials"]) in (4, 5)
    assert content["experiment"]["trials"][3]["counted"] == 1
    tuner.save()  # nothing is left to do
    assert number_of(tuner.tuner_path) == [1]


def test_save_from_another_thread_wakes_the_tuner(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text("import time\nfrom sthyper import Reporter\nReporter()(epoch=1, loss=1.0)\ntime.sleep(60)\n")
    tuner = Tuner(
        LocalBackend(script), scheduler("random"), StoppingCriterion(max_num_trials_started=1), 1, save_tuner=False
    )

    def other() -> None:
        while tuner._snapshots is None or not tuner.tuning_status.num_results:
            time.sleep(0.01)
        time.sleep(0.2)  # nothing happens
        tuner.save()
        asked = time.monotonic()
        while not (tuner.tuner_path / "snapshots" / "000001.json").exists() and time.monotonic() < asked + 3:
            time.sleep(0.01)
        waited.append(time.monotonic() - asked)
        tuner.stop()

    waited: list[float] = []
    thread = threading.Thread(target=other)
    thread.start()
    with pytest.warns(RuntimeWarning, match="stopped by the user"):
        tuner.run()
    thread.join()
    assert waited[0] < 2


def test_slow_suggestions_one_after_another_leave_quiet_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SHARE_OF_TIME", 1.0)

    class Slow(RandomSearcher):
        slow = True

        def get_config(self, trial_id: int | str) -> dict[str, Any] | None:
            time.sleep(0.02)
            return super().get_config(trial_id)

    search = HyperbandScheduler(SPACE, "loss", searcher=Slow(SPACE), max_resource_attr="epochs", random_seed=1)
    backend = SimulatedTrials(epochs=1)  # trials are over before the next suggestion has come
    tuner = make("slow", scheduler=search, trial_backend=backend, snapshot_interval=0.05, n_workers=8)
    tuner.run()
    assert number_of(tuner.tuner_path)[-1] >= 3


# ---- they end nothing ------------------------------------------------------------------------------------


def test_what_cannot_be_written_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class InTheWay(TunerCallback):
        def on_tuning_start(self, tuner: Tuner) -> None:
            (tuner.tuner_path / "snapshots").write_text("a file where the folder should be")

    tuner = make("random", callbacks=[InTheWay()])
    saving_often(tuner)
    result = tuner.run()
    assert len(result.trials) == 15
    said = [r.message for r in caplog.records if "no snapshot can be written" in r.message]
    assert len(said) == 1
    assert str(tuner.tuner_path) in said[0]


def test_a_full_disk_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Snapshots go to a disk of 8 kB; it has room for them later, when something else has gone."""

    class SmallDisk(TunerCallback):
        def on_tuning_start(self, tuner: Tuner) -> None:
            self.snapshots = tuner.tuner_path / "snapshots"
            self.snapshots.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(self.snapshots)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

        def on_trial_complete(self, trial: Trial, result: dict[str, Any]) -> None:
            if trial.trial_id == 9:
                time.sleep(0.02)
                self.left = sorted(path.name for path in self.snapshots.iterdir())
                subprocess.run(["umount", "-l", str(self.snapshots)], check=True)

    disk = SmallDisk()
    tuner = make("random", callbacks=[disk])
    saving_often(tuner)
    result = tuner.run()
    assert len(result.trials) == 15
    said = [r.message for r in caplog.records if "no snapshot can be written" in r.message]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert not any(name.endswith(".tmp") for name in disk.left)
    assert begins_with(tuner.tuner_path, "random") == number_of(tuner.tuner_path)[-1]


@pytest.mark.parametrize("kind", ["set", "raises"])
def test_what_cannot_be_saved_ends_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    class Odd(RandomSearcher):
        def state_dict(self) -> dict[str, Any]:
            if kind == "raises":
                raise RuntimeError("no state today")
            return super().state_dict() | {"seen": {1, 2}}

    search = HyperbandScheduler(SPACE, "loss", searcher=Odd(SPACE), max_resource_attr="epochs", random_seed=1)
    tuner = make("random", scheduler=search, snapshot_interval=0.0)
    assert len(tuner.run().trials) == 15
    assert not (tuner.tuner_path / "snapshots").exists()
    said = [r for r in caplog.records if "no snapshots are taken" in r.message]
    assert len(said) <= 2  # at an interval, and at the end
    if kind == "set":
        assert "scheduler.state_dict()['searcher']['seen'] = {1, 2} of type builtins.set" in said[0].message


def test_a_lost_lock_keeps_the_name_from_a_snapshot(tmp_path: Path) -> None:
    def lost() -> None:
        raise LockLost("it is another's")

    with pytest.raises(LockLost):
        write_snapshot(tmp_path, {"a": 1}, [], lost)
    assert list(tmp_path.rglob("*")) == []


def test_half_a_file_of_a_killed_tuner_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "000001.json.tmp").write_text("{")
    write_snapshot(tmp_path, {"a": 1}, [], lambda: None)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["000001.json"]


# ---- what does not follow from the journal ---------------------------------------------------------------


class Counts(TunerCallback):
    """Counts reports, also those before a resume."""

    def __init__(self) -> None:
        self.reports = 0

    def on_trial_result(self, trial: Trial, status: Status, result: dict[str, Any], decision: str) -> None:
        self.reports += 1

    def state_dict(self) -> dict[str, Any]:
        return {"reports": self.reports}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reports = state["reports"]


def test_criterion_and_callbacks_go_on() -> None:
    count = Counts()
    tuner = make("random", stop_criterion=PlateauStopper("loss", std=1e6, num_trials=2, patience=2), callbacks=[count])
    tuner.run()
    assert count.reports == tuner.tuning_status.num_results > 0
    again = Counts()
    second = Tuner.resume(
        tuner.tuner_path,
        trial_backend=SimulatedTrials(),
        stop_criterion=PlateauStopper("loss", std=1e6, num_trials=2, patience=5),
        callbacks=[StoreResultsCallback(), again],
    )
    second.run()
    assert again.reports == second.tuning_status.num_results > count.reports
    assert second.stop_criterion._calls_on_plateau == 6
    assert tuner.stop_criterion._calls_on_plateau == 3
    # A criterion of another class begins anew.
    third = Tuner.resume(
        tuner.tuner_path,
        trial_backend=SimulatedTrials(),
        stop_criterion=StoppingCriterion(max_num_trials_started=40),
        callbacks=[],
    )
    assert len(third.run().trials) == 40
