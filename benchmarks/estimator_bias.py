"""How biased each gradient estimator is, on three small problems: the table of the docs.

The mean of many gradients is compared with the exact gradient of the expected loss, which enumeration gives. A bias is
the length of the difference, in percent of the exact gradient's; beside it what chance alone would make of it.

Run: python benchmarks/estimator_bias.py [--samples 200000] [--seed 0]
"""

from __future__ import annotations

import argparse

import torch

from sthyper.straight_through.bias import ESTIMATORS, PROBLEMS, EstimatorBias, estimator_bias


def cells(result: EstimatorBias) -> list[str]:
    """Return the columns of one result."""
    within = "yes" if result.is_zero() else "no"
    return [
        f"{100 * result.relative_bias:.2f}",
        f"{100 * result.relative_error:.2f}",
        f"{result.largest_z:.1f}",
        within,
        f"{result.cosine:.4f}",
        f"{result.variance:.3g}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000, help="gradients for each estimator and problem")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| problem | estimator | bias, % | by chance, % | largest z | zero? | cosine | variance |")
    print("|---|---|--:|--:|--:|---|--:|--:|")
    for make in PROBLEMS.values():
        problem = make()
        for estimator in ESTIMATORS:
            generator = torch.Generator().manual_seed(arguments.seed)
            result = estimator_bias(problem.loss, problem.logits, estimator, arguments.samples, generator=generator)
            print("| " + " | ".join([problem.name, estimator, *cells(result)]) + " |", flush=True)


if __name__ == "__main__":
    main()
