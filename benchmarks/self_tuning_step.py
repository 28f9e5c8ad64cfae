"""What a self-tuning step costs against the plain model's: the small CNN and the AlexNet of the papers, batch 128.

Process CPU time on one thread, each form in turn with the plain step, minimum over the rounds; wall clock on two
threads and memory beside it. All steps update with SGD and momentum; responses with Adam, as by default in the library,
unless ``--response_optimizer sgd``.

Run: python benchmarks/self_tuning_step.py [--networks small_cnn alexnet] [--rounds 7] [--json costs.json]
Budgets (train step of the joint update, against plain): full response 1.9 (small CNN) and 2.2 (AlexNet); auto 1.3 and
1.5, aim 1.25. "default" is what a run does if nothing is said, after its first thousand steps: responses
are updated in every second step, on some examples of the batch; its time is the mean of both steps. "default, long" is
that of long runs, in every fourth step. "responding" is the dearer step, as those of the first thousand are.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sthyper.config_space import loguniform, uniform
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import dropouts, make_network
from sthyper.selftuning.steps import centre_step, delta_stn_step, evaluating, hyper_step, stn_step
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune

BUDGETS = {("small_cnn", "full"): 1.9, ("alexnet", "full"): 2.2, ("small_cnn", "auto"): 1.3, ("alexnet", "auto"): 1.5}
N_HYPERPARAMETERS = {"small_cnn": 12, "alexnet": 15}


@dataclass(frozen=True)
class Form:
    """One way to respond: arguments of ``self_tune``, and which training step is done."""

    response: str | None = "full"
    rank: int = 8
    groups: int | None = None
    kind: str = "delta"
    update: str = "joint"
    part: int | None = None
    every: int = 1


FORMS = {
    "plain": Form(None),
    "full": Form(),
    "full, STN": Form(kind="stn"),
    "groups 4": Form(groups=4),
    "groups 8": Form(groups=8),
    "groups 16": Form(groups=16),
    "rank 1": Form("lowrank", rank=1),
    "rank 4": Form("lowrank", rank=4),
    "rank 16": Form("lowrank", rank=16),
    "auto": Form("auto"),
    "full, Delta": Form(update="linearised"),
    "auto, Delta": Form("auto", update="linearised"),
    # What a run does by default with batches of 65 to 128: 32 examples are the least.
    "responding": Form("auto", update="linearised", part=32),
    "default": Form("auto", update="linearised", part=32, every=2),
    "default, long": Form("auto", update="linearised", part=32, every=4),
}


class Steps:
    """A network with its optimisers, and the training and hyper steps of one form."""

    def __init__(self, network: str, form: Form, batch_size: int, response_optimizer: str) -> None:
        torch.manual_seed(0)
        self.form, self.turn = form, 0
        rate = 0.05
        self.model = make_network(network, dropout=rate)
        self.x, self.y = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
        self.hyperparameters: Hyperparameters | None = None
        if form.response is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
            return
        space: dict[str, Any] = {name: uniform(0.0, 0.9) for name in dropouts(self.model)}
        # The others of the experiment act outside of the network; the responses see them.
        space |= {f"other{i}": loguniform(1e-6, 1e-2) for i in range(N_HYPERPARAMETERS[network] - len(space))}
        self.hyperparameters = Hyperparameters(space, start={name: rate for name in dropouts(self.model)})
        self_tune(self.model, self.hyperparameters, form.kind, form.response, rank=form.rank, groups=form.groups)
        self.groups = self.model.selftuning.groups
        general, response = general_parameters(self.model), response_parameters(self.model)
        self.optimizer = torch.optim.SGD(general, lr=0.01, momentum=0.9)
        if response_optimizer == "adam":
            # As the library makes it.
            self.response_optimizer: torch.optim.Optimizer = torch.optim.Adam(response, lr=0.003, fused=True)
        else:
            self.response_optimizer = torch.optim.SGD(response, lr=0.01, momentum=0.9)
        self.hyper_optimizer = torch.optim.Adam([self.hyperparameters.raw], lr=0.03)

    def loss(self, n: int | None = None) -> torch.Tensor:
        """Return the loss on the batch, or its first examples."""
        return F.cross_entropy(self.model(self.x[:n]), self.y[:n])

    def train(self) -> None:
        """Do a training step."""
        self.model.train()
        h, form = self.hyperparameters, self.form
        if h is None:
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        elif form.kind == "stn":
            stn_step(self.loss, h, [self.optimizer, self.response_optimizer], len(self.x), self.groups)
        else:
            n, self.turn = form.part, (self.turn + 1) % form.every
            if self.turn:
                centre_step(self.loss, h, self.optimizer, len(self.x))
                return
            part = {} if n is None else {"response_closure": lambda: self.loss(n), "response_size": n}
            optimizers = (self.optimizer, self.response_optimizer)
            delta_stn_step(self.loss, h, *optimizers, len(self.x), form.update, self.groups, **part)

    def hyper(self) -> None:
        """Do a hyper step on a batch of the same size."""
        if self.hyperparameters is not None:
            with evaluating(self.model):
                hyper_step(self.loss, self.hyperparameters, self.hyper_optimizer)


def seconds(function: Callable[[], None], clock: Callable[[], float], calls: int) -> float:
    """Return the time of one call, the mean of several."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def measure(network: str, name: str, args: argparse.Namespace, threads: int) -> dict[str, float]:
    """Return the smallest times of a form, and of the plain step in turn with it.

    Process CPU time on one thread, wall clock on several.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    plain, form = (Steps(network, FORMS[f], args.batch_size, args.response_optimizer) for f in ("plain", name))
    parts = {"plain": plain.train, "train": form.train, "hyper": form.hyper}
    best = dict.fromkeys(parts, float("inf"))
    calls = math.ceil(args.calls / form.form.every) * form.form.every
    for round_ in range(args.rounds + 1):
        for what, function in parts.items():
            elapsed = seconds(function, clock, calls)
            if round_ > 0:  # the first one fills caches and makes the states of optimisers
                best[what] = min(best[what], elapsed)
    return best


def peak() -> float:
    """Return the largest size that this process has had in memory, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the size of the parent process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def print_memory(network: str, form: str, batch_size: int, response_optimizer: str) -> None:
    """Print how much memory a form takes at most, in MB; for a process of its own."""
    torch.set_num_threads(1)
    F.cross_entropy(nn.Linear(2, 2)(torch.randn(2, 2)), torch.tensor([0, 1])).backward()
    before = peak()
    steps = Steps(network, FORMS[form], batch_size, response_optimizer)
    for _ in range(3):
        steps.train()
        steps.hyper()
    print(peak() - before)


def memory(network: str, form: str, args: argparse.Namespace) -> float:
    """Return the peak of another process."""
    command = [sys.executable, __file__, "--memory_of", network, form, "--batch_size", str(args.batch_size)]
    command += ["--response_optimizer", args.response_optimizer]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def floor_of_delta(network: str) -> float:
    """Return how many times the products of a plain step a Delta step needs at least, with full responses.

    A plain step has three products a layer: forward, weights, inputs (not for the first layer). The centre update is
    such a step. The response update needs the output of the general weights, that of the responses and the general
    weights times the tangent (not in the first layer) forwards; the gradients of the tangent's input (not in the first
    layer) and of the response backwards.
    """
    model = make_network(network)
    costs: list[float] = []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        costs.append(layer.weight[0].numel() * output[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, 32, 32))
    rest = sum(costs[1:])
    plain = 3 * rest + 2 * costs[0]
    response = 5 * rest + 3 * costs[0]
    return (plain + response) / plain


def table(network: str, rows: dict[str, dict[str, float]], plain_memory: float) -> None:
    """Print one network's costs, as multiples of the plain training step."""
    cpu, wall = (1e3 * min(row[f"{clock}_plain"] for row in rows.values()) for clock in ("cpu", "wall"))
    print(f"\n{network}: plain step {cpu:.1f} ms CPU on one thread, {wall:.1f} ms on two, {plain_memory:.0f} MB")
    print(f"{'':14}{'train CPU':>11}{'hyper CPU':>11}{'3:1 CPU':>9}{'train wall':>12}{'hyper wall':>12}{'memory':>9}")
    for name, row in rows.items():
        ratios = {f"{c}_{w}": row[f"{c}_{w}"] / row[f"{c}_plain"] for c in ("cpu", "wall") for w in ("train", "hyper")}
        train, hyper = ratios["cpu_train"], ratios["cpu_hyper"]
        budget = BUDGETS.get((network, name))
        verdict = "" if budget is None else f"  budget {budget}: {'ok' if train <= budget else 'MISSED'}"
        print(
            f"{name:14}{train:11.2f}{hyper:11.2f}{train + hyper / 3:9.2f}"
            f"{ratios['wall_train']:12.2f}{ratios['wall_hyper']:12.2f}{row['memory'] / plain_memory:9.2f}{verdict}",
            flush=True,
        )
    print(f"floor of the Delta step (products only, full response): {floor_of_delta(network):.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(N_HYPERPARAMETERS), choices=list(N_HYPERPARAMETERS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS)[1:], choices=list(FORMS)[1:], metavar="FORM")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--calls", type=int, default=None, help="steps of a round; default 5 (small CNN) and 1 (AlexNet)"
    )
    parser.add_argument("--response_optimizer", default="adam", choices=["adam", "sgd"])
    parser.add_argument("--no_wall", action="store_true", help="skip the wall clock on two threads")
    parser.add_argument("--no_memory", action="store_true", help="skip the memory")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print_memory(*args.memory_of, args.batch_size, args.response_optimizer)
        return
    calls, nan = args.calls, float("nan")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for network in args.networks:
        args.calls = calls or (5 if network == "small_cnn" else 1)
        plain_memory = nan if args.no_memory else memory(network, "plain", args)
        figures[network] = {}
        for name in args.forms:
            wall = dict.fromkeys(("plain", "train", "hyper"), nan)
            cpu = measure(network, name, args, threads=1)
            if not args.no_wall:
                wall = measure(network, name, args, threads=2)
            row = {f"cpu_{what}": value for what, value in cpu.items()}
            row |= {f"wall_{what}": value for what, value in wall.items()}
            figures[network][name] = row | {"memory": nan if args.no_memory else memory(network, name, args)}
        table(network, figures[network], plain_memory)
    if args.json:
        options = {name: str(value) for name, value in vars(args).items()}
        args.json.write_text(json.dumps({"torch": torch.__version__, "options": options, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
