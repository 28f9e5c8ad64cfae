"""Trials of two CPU processes each, under every way in which Lightning starts them, with real kills."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sthyper import Tuner, load_experiment
from sthyper.backend._rendezvous import ports_to_choose_from
from sthyper.checkpoints import best_checkpoint
from sthyper.journal import read_journal
from sthyper.trial import Status

SCRIPT = Path(__file__).with_name("train_on_ranks.py")
EPOCHS = 4
BATCHES = 4
"""Batches of a rank in an epoch."""


def config(strategy: str, **changes: Any) -> dict[str, Any]:
    base = {"lr": 0.01, "epochs": EPOCHS, "strategy": strategy, "victim": -1, "sync": "yes", "after": "test"}
    return base | changes


def lines(folder: Path, name: str) -> list[list[str]]:
    path = folder / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def weights(tuner: Tuner, trial_id: int, rank: int = 0) -> dict[str, torch.Tensor]:
    folder = tuner.tuner_path / "trials" / str(trial_id)
    state: dict[str, torch.Tensor] = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
    return state


def assert_no_process_is_left(tuner: Tuner) -> None:
    """No process on this machine has the experiment in its environment."""
    mark, left = str(tuner.tuner_path / "trials"), []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STHYPER_TRIAL_DIR", "").startswith(mark):
                left.append(process)
        except psutil.Error:
            continue
    assert left == []


def check_trial(tuner: Tuner, trial_id: int, plan: dict[int, str]) -> None:
    """The trial did on both ranks what the plan says, no more, and nothing twice."""
    folder = tuner.tuner_path / "trials" / str(trial_id)
    ends = [epoch for epoch in sorted(plan) if epoch < EPOCHS]
    stopped = next((epoch for epoch in ends if plan[epoch] == "STOP"), None)
    ends = [epoch for epoch in ends if stopped is None or epoch <= stopped]
    ends += [] if stopped is not None else [EPOCHS]
    trial = load_experiment(tuner.name).trials[trial_id]
    assert trial.status is (Status.completed if stopped is None else Status.stopped)
    assert trial.runs == len(ends)
    codes = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["trial_id"] == trial_id]
    assert [(r["exit_code"], r["reason"]) for r in codes] == [(0, None)] * len(ends)
    expected = [[str(e), str(b)] for e in range(1, ends[-1] + 1) for b in range(BATCHES)]
    for rank in (0, 1):
        assert lines(folder, f"batches-{rank}") == expected, "no batch twice, none beyond the decision"
    forked = trial.config["strategy"] != "ddp"
    heard = []
    for run, epoch in enumerate(ends):
        first, second = (json.loads((folder / f"end-{run}-{rank}.json").read_text()) for rank in (0, 1))
        assert first == second
        assert (first["epoch"], first["step"]) == (epoch, epoch * BATCHES)
        assert first["world_size"] == 2
        assert first["config"] == json.loads((folder / "config.json").read_text())
        assert int(first["port"]) in ports_to_choose_from()
        assert first["should_stop"] == (epoch < EPOCHS)
        heard += [[str(run), str(rank), plan.get(epoch, "CONTINUE")] for rank in ((0,) if forked else (0, 1))]
    assert sorted(lines(folder, "after-fit")) == sorted(heard), "the script knows the decision"
    # Only what came to the maximum goes on behind `fit`, on all ranks that run the script; others fork no rank again.
    stages = trial.config["after"].split() if stopped is None else []
    for rank in (0, 1) if forked else ():
        begun = [stage for (stage,) in lines(folder, f"stages-{rank}")]
        assert begun == ["fit"] * len(ends) + [stage for stage in stages if stage != "another"]
    assert len(lines(folder, "after-test")) == (0 if stopped is not None else 1 if forked else 2)
    results = load_experiment(tuner.name).results
    losses = results[results["trial_id"] == trial_id].sort_values("epoch")
    assert list(losses["epoch"]) == list(range(1, ends[-1] + 1))
    own = {(rank, int(e)): float(v) for rank in (0, 1) for e, v in lines(folder, f"values-{rank}")}
    for epoch, loss in zip(losses["epoch"], losses["loss"], strict=True):
        values = [own[rank, epoch] for rank in (0, 1)]
        assert values[0] != values[1]
        assert loss == pytest.approx(sum(values) / 2, rel=1e-5)


def check(tuner: Tuner, plans: dict[int, dict[int, str]], n_trials: int) -> None:
    for trial_id in range(n_trials):
        check_trial(tuner, trial_id, plans.get(trial_id, {}))
    assert_no_process_is_left(tuner)


# ---- pause, resume, stop -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "pauses", "after"),
    [
        ("ddp_fork", {1: "PAUSE", 3: "PAUSE"}, "test validate predict"),
        pytest.param("ddp", {1: "PAUSE", 3: "PAUSE"}, "test validate predict", marks=pytest.mark.slow),
        pytest.param("ddp_spawn", {2: "PAUSE"}, "test", marks=pytest.mark.slow),  # whose ranks start slowly
    ],
)
@pytest.mark.timeout(240)
def test_a_pause_is_invisible_and_a_stop_is_exact_on_all_ranks(
    strategy: str, pauses: dict[int, str], after: str, tune: Callable[..., Tuner]
) -> None:
    plans = {0: pauses, 2: {2: "STOP"}}
    afters = ["test", "", ""] if strategy == "ddp_spawn" else ["test", after, "another"]
    tuner = tune(SCRIPT, [config(strategy, after=after) for after in afters], plans)
    check(tuner, plans, 3)
    for rank in (0, 1) if strategy == "ddp" else (0,):
        paused, whole = weights(tuner, 0, rank), weights(tuner, 1, rank)
        assert paused.keys() == whole.keys()
        assert all(torch.equal(paused[name], whole[name]) for name in whole), "bit for bit"
    # The states of the generators are those of each rank, not all of rank 0.
    checkpoint = next((tuner.tuner_path / "trials" / "0" / "checkpoints").glob("*.ckpt"))
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    (own,) = [state for key, state in states.items() if key.startswith("sthyper.")]
    assert len(own["random"]) == 2
    assert not torch.equal(own["random"][0]["torch"], own["random"][1]["torch"])


def random_plans(seed: int, n_trials: int) -> dict[int, dict[int, str]]:
    """At each epoch a trial is paused with probability 0.3 and stopped with probability 0.15."""
    draws = np.random.default_rng(seed).uniform(size=(n_trials, EPOCHS))
    return {
        trial: {
            epoch: "STOP" if draws[trial, epoch] < 0.15 else "PAUSE"
            for epoch in range(1, EPOCHS)
            if draws[trial, epoch] < 0.45
        }
        for trial in range(n_trials)
    }


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_eight_trials_with_random_stops_and_pauses(tune: Callable[..., Tuner]) -> None:
    plans = random_plans(5, 8)
    assert {decision for plan in plans.values() for decision in plan.values()} == {"STOP", "PAUSE"}
    check(tune(SCRIPT, [config("ddp_fork")] * 8, plans), plans, 8)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("strategy", "n_trials"), [("ddp_fork", 20), ("ddp", 6), ("ddp_spawn", 6)])
def test_many_trials_with_random_stops_and_pauses(
    strategy: str, n_trials: int, seed: int, tune: Callable[..., Tuner]
) -> None:
    plans, start = random_plans(seed, n_trials), time.monotonic()
    after = "" if strategy == "ddp_spawn" else "test"
    tuner = tune(SCRIPT, [config(strategy, after=after)] * n_trials, plans)
    check(tuner, plans, n_trials)
    made = Counter(r["decision"] for r in read_journal(tuner.tuner_path) if r["type"] == "decision")
    print(f"\n{strategy}, seed {seed}: {n_trials} trials, {dict(made)}, {time.monotonic() - start:.0f} s")


# ---- metrics -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_metric_that_was_not_reduced_is_averaged_and_warned_of(tune: Callable[..., Tuner]) -> None:
    tuner = tune(SCRIPT, [config("ddp_fork", sync="no", after="")])
    check_trial(tuner, 0, {})
    folder = tuner.tuner_path / "trials" / "0"
    stderr = (folder / "std.err").read_text()
    warnings = re.findall(r"metric '([^']*)' differs between the ranks", stderr)
    assert warnings == ["val/loss"], "once, and not the one that rank 0 alone has logged"
    assert "self.log('val/loss', value, sync_dist=True)" in stderr
    results = load_experiment(tuner.name).results
    assert set(results["own"]) == {7.0}
    # The best checkpoint is that of the reported value: on rank 0 alone another epoch is better.
    local = [float(value) for _, value in lines(folder, "values-0")]
    best = results.sort_values("loss")["epoch"].iloc[0]
    assert best != 1 + local.index(min(local))
    assert best_checkpoint(folder / "checkpoints").name == f"epoch={best:06d}.ckpt"


# ---- dead ranks ----------------------------------------------------------------------------------------


def seconds_to_end(tuner: Tuner, trial_id: int) -> float:
    """Return the seconds from the kill of a rank to the end of its trial's first run, all processes gone."""
    (killed,) = lines(tuner.tuner_path / "trials" / str(trial_id), "killed")
    start = load_experiment(tuner.name).metadata["st_tuner_start_timestamp"]
    ends = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["trial_id"] == trial_id]
    return start + ends[0]["tuner_time"] - float(killed[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "victims"),
    [("ddp_fork", [0, 1]), ("ddp", [0, 1]), ("ddp_spawn", [1])],  # whose ranks start slowly
)
@pytest.mark.timeout(240)
def test_a_killed_rank_costs_its_trial_an_epoch_at_most(
    strategy: str, victims: list[int], tune: Callable[..., Tuner]
) -> None:
    tuner = tune(SCRIPT, [config(strategy, victim=victim, after="") for victim in victims])
    experiment = load_experiment(tuner.name)
    for trial_id, victim in enumerate(victims):
        trial = experiment.trials[trial_id]
        assert (trial.status, trial.runs) == (Status.completed, 2)
        assert seconds_to_end(tuner, trial_id) < 15.0
        ends = [r for r in read_journal(tuner.tuner_path) if r["type"] == "status" and r["trial_id"] == trial_id]
        assert ends[0]["reason"].startswith("killed")
        assert ends[1]["reason"] is None
        rows = experiment.results[experiment.results["trial_id"] == trial_id]
        assert list(rows["epoch"]) == [1, 2, 3, 4]
        folder = tuner.tuner_path / "trials" / str(trial_id)
        epochs = [int(e) for e, _ in lines(folder, f"batches-{1 - victim}")]
        assert epochs.count(1) == BATCHES, "it went on from its checkpoint"
    if len(victims) == 2:
        assert torch.equal(*(weights(tuner, i)["net.0.weight"] for i in (0, 1)))
    assert_no_process_is_left(tuner)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_rank_fails_its_trial_if_there_are_no_restarts(tune: Callable[..., Tuner]) -> None:
    configs = [config("ddp_fork", victim=victim, after="") for victim in (0, 1, -1)]
    tuner = tune(SCRIPT, configs, max_restarts=0, max_failures=2)
    experiment = load_experiment(tuner.name)
    for trial_id in (0, 1):
        assert (experiment.trials[trial_id].status, experiment.trials[trial_id].runs) == (Status.failed, 1)
        assert experiment.trials[trial_id].end_reason == f"killed (rank {trial_id} died)"
        assert seconds_to_end(tuner, trial_id) < 15.0
    check_trial(tuner, 2, {})
    assert_no_process_is_left(tuner)


# ---- the launching shell -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
@pytest.mark.timeout(240)
def test_variables_of_another_job_do_not_reach_a_trial(
    strategy: str, tune: Callable[..., Tuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``MASTER_PORT`` 1 cannot be bound, and as rank 1 of 4 the trials would wait for the others."""
    stale = {"LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4", "GROUP_RANK": "3", "MASTER_PORT": "1"}
    for name, value in (stale | {"PL_GLOBAL_SEED": "none"}).items():
        monkeypatch.setenv(name, value)
    tuner = tune(SCRIPT, [config(strategy, after="")] * 2)
    check(tuner, {}, 2)
    ports = []
    for trial_id in (0, 1):
        folder = tuner.tuner_path / "trials" / str(trial_id)
        assert {words[0] for words in lines(folder, "rank-at-start")} <= {"0", "1"}
        assert lines(folder, "rank-at-start")[0] == ["0"], "Lightning reads it when it is imported, by the server"
        ports.append(json.loads((folder / "end-0-0.json").read_text())["port"])
    assert ports[0] != ports[1]
    assert os.environ["MASTER_PORT"] == "1", "the tuner's own environment is left alone"


# ---- checkpoints that are folders ----------------------------------------------------------------------


SHARDED = """
    import argparse
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import DataLoader, TensorDataset
    from sthyper import Reporter
    from sthyper.callbacks import TuneReportCallback

    class Model(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr
            self.net = None

        def configure_model(self):
            if self.net is None:
                torch.manual_seed(0)
                self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx), sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    model, callback = Model(args.lr), TuneReportCallback({"loss": "val/loss"})
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        logger=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    trainer.fit(model, DataLoader(data, 3, shuffle=True), DataLoader(data, 12))
    if callback.decision == "CONTINUE":
        whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
        if trainer.is_global_zero:
            torch.save(whole, Reporter().trial_dir + "/weights-0.pt")
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_sharded_parameters_pause_and_resume_exactly(tmp_path: Path, tune: Callable[..., Tuner]) -> None:
    """FSDP2 by ``ModelParallelStrategy``: each rank saves its part into one folder."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SHARDED))
    tuner = tune(script, [{"lr": 0.01, "epochs": 3}] * 2, {0: {1: "PAUSE"}})
    paused, whole = weights(tuner, 0), weights(tuner, 1)
    assert all(torch.equal(paused[name], whole[name]) for name in whole)
    assert load_experiment(tuner.name).trials[0].runs == 2
    checkpoint = best_checkpoint(tuner.tuner_path / "trials" / "0" / "checkpoints")
    assert sorted(path.name for path in checkpoint.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]
    assert_no_process_is_left(tuner)
