"""One self-tuning run against searches and fixed values at the same cost: CIFAR-10, small CNN, 12 hyperparameters.

Each method and seed gets the same process CPU time on one thread (the limit is checked after each epoch), the same
optimiser of the weights, and the model of the epoch with the lowest validation loss. Warm-up and learning rates
of self-tuning follow the time. Methods:

  self-tuning             the library's defaults; options behind a colon, self-tuning:update=joint,groups=8
                          (of self_tune: kind, response, rank, groups; of SelfTunerOptions: update, hyper_lr ...)
  fixed@LR                start values kept, for as long as the time lasts, at learning rate LR of the weights
  full-N                  random search over the full ranges, trials of N epochs, start values first
  around-N@LR             random search around the start values (u ~ N(start, 1)), start values first
  perturbed               plain training with start values perturbed for each example, no tuning: does the noise help?
  replay, mean-of-last    the plain model with the schedule that "self-tuning" recorded, or its mean over the last tenth

"around-N@best" means the better of the rates of the fixed@LR runs that are in the results. What is in the results
already is not run again, so that the benchmark can be run in pieces.

Run: python benchmarks/self_tuning_cifar.py --data cifar10.npz [--seeds 0 1 2] [--methods self-tuning fixed@.01 ...]
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sthyper.selftuning.augmentation import Augmentation
from sthyper.selftuning.controls import Control, FixedValues, Replay
from sthyper.selftuning.datasets import NORMALISATIONS, Batches, Images, load_cifar10
from sthyper.selftuning.defaults import default_shared, default_space, default_start
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import NETWORKS, dropouts, make_network
from sthyper.selftuning.perturbation import Perturbation
from sthyper.selftuning.regularisers import (
    TunableDropout,
    TunableDropout2d,
    gaussian_noise,
    smoothed_cross_entropy,
    weight_decay,
)
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import self_tune, squared_norms

NAMES = [
    *("indropout", "dropout0", "dropout1", "dropout2", "noise", "brightness", "contrast", "saturation"),
    *("cutout_length", "cutout_holes", "weight_decay", "label_smoothing"),
]
METHODS = [
    *("self-tuning", "fixed@.01", "fixed@.03", "full-10", "full-40", "around-20@best", "around-40@best"),
    *("perturbed", "replay", "mean-of-last"),
]
BATCH, VALIDATION_BATCH = 128, 64
DEFAULT_LR = SelfTunerOptions().weight_lr
_OF_SELF_TUNE = {"kind": str, "response": str, "rank": int, "groups": int}


class Clock:
    """Process CPU time since the start of a method, and when it is over."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._start = self._last = time.process_time()
        self.longest = 0.0

    def now(self) -> float:
        """Return the seconds so far."""
        return time.process_time() - self._start

    def tick(self, _: Any = None) -> None:
        """Take note of the length of an epoch."""
        self.longest, self._last = max(self.longest, time.process_time() - self._last), time.process_time()

    def part(self) -> float:
        """Return the part of the time that is over."""
        return self.now() / self.budget

    def has_room(self, epochs: int = 1) -> bool:
        """Return whether so many epochs fit."""
        return self.now() + epochs * self.longest <= self.budget


@dataclass
class Problem:
    """Data of one seed, and how networks are trained on it."""

    train: Images
    validation: Images
    test: Images
    network: str
    paper: Any
    names: list[str]
    seed: int
    view: Augmentation = field(default_factory=lambda: Augmentation(0.5, *NORMALISATIONS["cifar10"]))  # type: ignore[arg-type]

    def evaluation(self, part: Images, size: int) -> Batches:
        """Return batches of normalised images."""
        return Batches(self.view.normalised(part.inputs), part.labels, batch_size=size, seed=self.seed)

    def hyperparameters(self) -> Hyperparameters:
        """Return the hyperparameters at their start values."""
        space = default_space(self.names, self.paper)
        start, shared = default_start(self.names), default_shared(self.names)
        return Hyperparameters(space, start=start, shared=shared, seed=self.seed)

    def plain_model(self, h: Hyperparameters) -> nn.Module:
        """Return the plain network, whose dropout layers take their rates from the hyperparameters."""
        model = make_network(self.network)
        for name in dropouts(model):
            if name in h:
                channels = isinstance(model.get_submodule(name), nn.Dropout2d)
                setattr(model, name, TunableDropout2d(h, name) if channels else TunableDropout(h, name))
        return model

    def tuner(
        self,
        model: nn.Module,
        h: Hyperparameters,
        options: SelfTunerOptions,
        seed: int,
        control: Control | None = None,
        reporter: Callable[..., str] | None = None,
        perturb: bool = False,
    ) -> SelfTuner:
        """Return a run; with ``perturb`` a plain one whose hyperparameters are perturbed in training."""
        torch.manual_seed(seed)
        drawn: list[Perturbation] = []

        @contextmanager
        def perturbed() -> Iterator[None]:
            if not perturb:
                yield
                return
            with h.use(drawn[-1]):
                yield

        def transform(x: Tensor, y: Tensor, h: Hyperparameters) -> tuple[Tensor, Tensor]:
            drawn[:] = [h.draw(len(x))] if perturb else []
            with perturbed():
                x = self.view(x, h)
                return (gaussian_noise(x, h["noise"]) if "noise" in h else x), y

        def train_loss(logits: Tensor, y: Tensor, h: Hyperparameters) -> Tensor:
            with perturbed():
                if "label_smoothing" in h:
                    loss = smoothed_cross_entropy(logits, y, h["label_smoothing"])
                else:
                    loss = cross_entropy(logits, y)
                if "weight_decay" in h:
                    plain = not hasattr(model, "selftuning")
                    norms = sum(p.square().sum() for p in model.parameters()) if plain else squared_norms(model)
                    loss = loss + weight_decay(torch.as_tensor(norms), h["weight_decay"])
                return loss

        class Perturbed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, x: Tensor) -> Tensor:
                if not self.training:
                    return self.inner(x)
                with perturbed():
                    return self.inner(x)

        return SelfTuner(
            Perturbed() if perturb else model,
            h,
            Batches(self.train.inputs, self.train.labels, batch_size=BATCH, seed=seed),
            self.evaluation(self.validation, VALIDATION_BATCH),
            cross_entropy,
            options=options,
            train_loss=train_loss,
            transform=transform,
            control=control,
            reporter=reporter,
        )


@dataclass
class Trial:
    """One training run within a method."""

    best: float
    test: float
    last: float
    values: dict[str, float]
    epochs: int


@dataclass
class Record:
    """What a method came to with one seed."""

    method: str
    seed: int
    lr: float
    trials: list[Trial] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures: those of the trial with the lowest validation loss first."""
        best = min(self.trials, key=lambda trial: trial.best)
        return {
            "method": self.method,
            "seed": self.seed,
            "lr": self.lr,
            "val": best.best,
            "test": best.test,
            "last_five": best.last,
            "epochs": sum(trial.epochs for trial in self.trials),
            "trials": [trial.best for trial in self.trials],
            "values": best.values,
            "seconds": self.seconds,
            "wall": self.wall,
            "curve": self.curve,
        }


class Method:
    """Runs one method with one seed."""

    def __init__(self, problem: Problem, name: str, lr: float, args: argparse.Namespace) -> None:
        self.problem, self.name, self.lr, self.args = problem, name, lr, args
        self.record = Record(name, problem.seed, lr)
        self.clock = Clock(math.inf if args.epochs else args.budget)

    def run(self) -> Record:
        """Run until the time is over."""
        wall = time.perf_counter()
        kind = self.name.partition("@")[0].partition(":")[0].partition("-")
        if kind[0] == "self":
            self._self_tuning()
        elif kind[0] in ("full", "around"):
            self._search(kind[0], int(kind[2]))
        else:
            self._plain()
        self.record.seconds, self.record.wall = self.clock.now(), time.perf_counter() - wall
        return self.record

    def _watched(self) -> Callable[..., str]:
        """Return a reporter that keeps the curve and ends the run when the time is over."""

        def report(**metrics: Any) -> str:
            self.clock.tick()
            self.record.curve.append((self.clock.now(), metrics["val_loss"]))
            return "CONTINUE" if self.clock.has_room() else "STOP"

        return report

    def _fit(self, tuner: SelfTuner, epochs: int | None, progress: Callable[[], float] | None = None) -> None:
        try:
            result = tuner.fit(epochs, progress=progress)
        except FloatingPointError:
            self.record.trials.append(Trial(math.inf, math.inf, math.inf, tuner.hyperparameters.values(), tuner.epoch))
            return
        last = [record.val_loss for record in result.history][-5:]
        test = tuner.evaluate(self.problem.evaluation(self.problem.test, 500))
        self.record.trials.append(Trial(result.best_val_loss, test, mean(last), result.values, tuner.epoch))

    def _epochs(self) -> int:
        # A plain run ends by the clock.
        return int(self.args.epochs or 100_000)

    def _self_tuning(self) -> None:
        problem = self.problem
        choices = dict(part.split("=") for part in self.name.partition(":")[2].split(",") if part)
        form = {key: kind(choices.pop(key)) for key, kind in _OF_SELF_TUNE.items() if key in choices}
        known = {f.name for f in fields(SelfTunerOptions)}
        if unknown := set(choices) - known:
            raise SystemExit(f"{self.name}: unknown options {sorted(unknown)}; known are {sorted(known | set(form))}")
        given: dict[str, Any] = {key: literal(value) for key, value in choices.items()}

        torch.manual_seed(problem.seed)
        h = problem.hyperparameters()
        model = self_tune(make_network(problem.network), h, **form, seed=problem.seed)
        options = SelfTunerOptions(**{"weight_lr": self.lr, **given})
        run = problem.tuner(model, h, options, problem.seed, reporter=self._watched())
        # Lengths of warm-up and steps follow the time.
        self._fit(run, self.args.epochs, None if self.args.epochs else self.clock.part)
        if self.name == "self-tuning":
            run.schedule.to_json(schedule_path(self.args, problem.seed))

    def _plain(self) -> None:
        problem = self.problem
        h = problem.hyperparameters()
        torch.manual_seed(problem.seed)
        model = problem.plain_model(h)
        control: Control | None = None
        epochs = self._epochs()
        if self.name in ("replay", "mean-of-last"):
            path = schedule_path(self.args, problem.seed)
            if not path.exists():
                raise SystemExit(
                    f"{self.name} needs the schedule of self-tuning with seed {problem.seed}; run that first"
                )
            schedule = Schedule.from_json(path)
            control = Replay(schedule, h) if self.name == "replay" else FixedValues(h, schedule.mean_of_last(0.1))
            epochs = int(schedule.n_epochs)
            self.clock.budget = math.inf
        options = SelfTunerOptions(tune=False, weight_lr=self.lr)
        perturb = self.name == "perturbed"
        tuner = problem.tuner(model, h, options, problem.seed, control, self._watched(), perturb=perturb)
        self._fit(tuner, epochs)

    def _search(self, kind: str, epochs: int) -> None:
        problem = self.problem
        rng = np.random.default_rng(1000 + problem.seed)
        space = default_space(problem.names, problem.paper)
        limit = self.args.trials or 100_000
        while len(self.record.trials) < limit:
            number = len(self.record.trials)
            # A trial that is cut short after two epochs says nothing.
            if number and not self.clock.has_room(2):
                break
            h = problem.hyperparameters()
            if number and kind == "full":
                h.set_values({name: drawn_inside(domain, rng) for name, domain in space.items()})
            elif number:
                with torch.no_grad():
                    h.raw += torch.as_tensor(rng.standard_normal(len(h)), dtype=h.raw.dtype)
            seed = problem.seed + 100 * number
            torch.manual_seed(seed)
            options = SelfTunerOptions(tune=False, weight_lr=self.lr)
            tuner = problem.tuner(problem.plain_model(h), h, options, seed, reporter=self._watched())
            self._fit(tuner, min(epochs, self._epochs()))


def drawn_inside(domain: Any, rng: np.random.Generator) -> float:
    """Draw a value that is not on a bound, which the maps of hyperparameters do not reach."""
    edge = 1e-6 * (domain.upper - domain.lower)
    return min(max(float(domain.sample(random_state=rng)), domain.lower + edge), domain.upper - edge)


def literal(text: str) -> Any:
    """Return what a text means in Python; itself if that is nothing."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def schedule_path(args: argparse.Namespace, seed: int) -> Path:
    """Return where the schedule of self-tuning is kept."""
    return args.out / f"schedule-{seed}.json"


# ---- results ------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was run before, by method and seed."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write all results; a kill leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1))
    os.replace(temporary, path)


def by_method(results: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each method, ordered by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(results.values(), key=lambda r: r["seed"]):
        found.setdefault(result["method"], []).append(result)
    return found


def better_rate(results: dict[str, dict[str, Any]]) -> float:
    """Return the learning rate of the weights at which the start values did best."""
    fixed = {rows[0]["lr"]: mean(r["val"] for r in rows) for m, rows in by_method(results).items() if m[:6] == "fixed@"}
    if not fixed:
        raise SystemExit("@best needs results of fixed@LR; run these first")
    return min(fixed, key=lambda lr: fixed[lr])


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Print best validation and test losses, and means of the last five epochs."""
    width = max(len(method) for method in by_method(results)) + 2
    print(f"\n{'method':{width}}{'val, each seed':28}{'mean':>7}{'test':>8}{'last 5':>8}{'epochs':>8}{'CPU s':>7}")
    for method, rows in sorted(by_method(results).items(), key=lambda item: mean(r["val"] for r in item[1])):
        each = " ".join(f"{r['val']:.4f}" for r in rows)
        means = {key: mean(r[key] for r in rows) for key in ("val", "test", "last_five", "epochs", "seconds")}
        print(
            f"{method:{width}}{each:28}{means['val']:7.4f}{means['test']:8.4f}{means['last_five']:8.4f}"
            f"{means['epochs']:8.0f}{means['seconds']:7.0f}"
        )


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the comparison asks for, and whether it is so."""
    methods = by_method(results)
    own = {r["seed"]: r["val"] for r in methods.get("self-tuning", [])}
    lines = []
    for method, rows in methods.items():
        pairs = [(own[r["seed"]], r["val"]) for r in rows if r["seed"] in own]
        if not pairs or method.startswith(("self-tuning", "replay", "mean", "perturbed")):
            continue
        if method.startswith("full"):
            lines.append(f"below {method} in {sum(a < b for a, b in pairs)} of {len(pairs)} seeds (all)")
        else:
            margin = mean(b for _, b in pairs) - mean(a for a, _ in pairs)
            lines.append(f"mean below {method} by {margin:.4f} (> 0)")
    replayed = [(own[r["seed"]], r["val"]) for r in methods.get("replay", []) if r["seed"] in own]
    if replayed:
        lines.append(f"replay above the run by {mean(b - a for a, b in replayed):.4f} (at most 0.03)")
    return lines


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the best validation loss so far over the CPU time, all seeds."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: matplotlib is not installed")
        return
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (method, rows) in enumerate(by_method(results).items()):
        for j, row in enumerate(rows):
            times, losses = zip(*row["curve"], strict=True)
            best = np.minimum.accumulate(np.nan_to_num(losses, nan=np.inf))
            style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "linewidth": 1.3}
            axes.step(times, best, where="post", label=method if j == 0 else None, **style)
    values = [r["val"] for r in results.values() if math.isfinite(r["val"])]
    axes.set(xlabel="CPU seconds, one thread", ylabel="best validation loss so far")
    axes.set_ylim(min(values) - 0.02, min(values) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    print(f"curves: {path}")


def main() -> None:
    """Run what is missing, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10: .npz file, folder or archive of the binary version")
    parser.add_argument("--images", type=int, default=10_000, help="training and validation images, split 80/20")
    parser.add_argument("--test_images", type=int, default=2000)
    parser.add_argument("--budget", type=float, default=220.0, help="CPU seconds of each method and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--network", default="small_cnn", choices=sorted(set(NETWORKS) - {"language_model"}))
    parser.add_argument("--hyperparameters", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--paper", default="stn", choices=["stn", "delta-stn"], help="whose ranges")
    parser.add_argument("--lr", type=float, default=DEFAULT_LR, help="rate of the weights where a method names none")
    parser.add_argument("--epochs", type=int, help="so many epochs instead of so much time")
    parser.add_argument("--trials", type=int, help="largest number of trials of a search")
    parser.add_argument("--out", type=Path, default=Path("self_tuning_cifar"), help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    whole, test = load_cifar10(args.data)
    test = test[: args.test_images]
    for method in args.methods:
        for seed in args.seeds:
            name, at, rate = method.partition("@")
            lr = args.lr if not at else better_rate(load(path)) if rate == "best" else float(rate)
            if at:
                name = f"{name}@{lr:g}"
            key = f"{name}/{seed}"
            if key in load(path):
                continue
            train, validation = whole[: args.images].split([0.8, 0.2], seed)
            problem = Problem(train, validation, test, args.network, args.paper, args.hyperparameters, seed)
            result = Method(problem, name, lr, args).run().as_json()
            # Read again: another process may have written in the meantime.
            results = load(path) | {key: result}
            save(results, path)
            print(
                f"{name}, seed {seed}: val {result['val']:.4f}, test {result['test']:.4f}, {result['epochs']} epochs, "
                f"{len(result['trials'])} trials, {result['seconds']:.0f} s",
                flush=True,
            )
    results = load(path)
    print_table(results)
    print("\n".join(["", *verdicts(results)]))
    draw(results, args.out / "curves.png")


if __name__ == "__main__":
    main()
