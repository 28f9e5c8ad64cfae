"""What a masked linear layer costs against the plain one, forward and backward: 512 to 512 at batch 128.

Process CPU time on one thread, each kind in turn with the plain layer, minimum over the rounds. Both layers compute the
gradient of their input; the plain one those of its weights, the masked one those of its scores. Beside the layer of the
library stands the same one spelt out, ``weight * bernoulli_sample(scores.sigmoid())``.

Beside the three products of a plain one, a masked layer takes for each weight a sigmoid, a random number, a comparison
and a product forwards, and two products backwards. The aim is 1.15.

Run: python benchmarks/masked_layer.py [--size 512] [--batch_size 128] [--rounds 25] [--compile]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn

from sthyper.straight_through.masked_layers import MaskedLinear
from sthyper.straight_through.masks import MaskMode, MaskOptions
from sthyper.straight_through.sampler import BernoulliEstimator, bernoulli_sample

AIM = 1.15


class SpeltOut(nn.Linear):
    """The masked layer as one writes it by hand."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.weight_scores = nn.Parameter(torch.randn(size, size))
        self.bias_scores = nn.Parameter(torch.randn(size))
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the layer with sampled weights."""
        weight = self.weight * bernoulli_sample(self.weight_scores.sigmoid())
        return nn.functional.linear(input, weight, self.bias * bernoulli_sample(self.bias_scores.sigmoid()))


def make_step(layer: nn.Module, x: Tensor, upstream: Tensor, compiled: bool) -> Callable[[], None]:
    """Return a function that goes forward and backward through a layer once."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    forward = torch.compile(layer) if compiled else layer

    def step() -> None:
        for p in parameters:
            p.grad = None
        x.grad = None
        forward(x).backward(upstream)

    return step


def make_steps(size: int, batch_size: int, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return the steps of all kinds by name, ``plain`` first."""
    torch.manual_seed(0)
    x, upstream = torch.randn(batch_size, size, requires_grad=True), torch.randn(batch_size, size)
    layers: dict[str, nn.Module] = {"plain": nn.Linear(size, size)}
    for mode, estimator in product(get_args(MaskMode), get_args(BernoulliEstimator)):
        name = mode if mode == "expected" else f"{mode}, {estimator}"
        layers[name] = MaskedLinear(size, size, options=MaskOptions(estimator=estimator, training=mode))
    if not compiled:
        layers["spelt out, probs"] = SpeltOut(size)
    return {name: make_step(layer, x, upstream, compiled) for name, layer in layers.items()}


def measure(steps: dict[str, Callable[[], None]], rounds: int, calls: int) -> dict[str, float]:
    """Return the smallest CPU time of each step, in seconds."""
    best = dict.fromkeys(steps, float("inf"))
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(calls):
                step()
            if round_ > 0:  # the first one compiles and fills caches
                best[name] = min(best[name], (time.process_time() - start) / calls)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="inputs and outputs of the layer")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=10, help="steps of a round")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers, the plain one too; needs a compiler"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    best = measure(make_steps(args.size, args.batch_size, args.compile), args.rounds, args.calls)
    plain = best["plain"]
    print(f"{'':20}{'us':>9}{'ratio':>8}   aim {AIM}")
    for name, seconds in best.items():
        print(f"{name:20}{1e6 * seconds:9.0f}{seconds / plain:8.2f}")


if __name__ == "__main__":
    main()
