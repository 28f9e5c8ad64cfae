"""Comparison of searchers by the best values of their runs: ranks, a paired test, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

PUBLISHED_TRIALS = 50
# Mean best value after so many trials of 5 seeds of methods that are not run here, and the decimals that the figures
# have. Syne Tune 0.13 (GP), SMAC3 2.4 (black-box facade), HEBO 0.3.6; all as they start by default.
# The LCBench tasks at epoch 52, minus the validation accuracy.
PUBLISHED: dict[str, dict[str, float]] = {
    "branin": {"Syne Tune": 0.399, "SMAC3": 0.398, "HEBO": 0.399},
    "hartmann6": {"Syne Tune": -3.11, "SMAC3": -3.28, "HEBO": -3.25},
    "ackley10": {"Syne Tune": 6.72, "SMAC3": 7.07, "HEBO": 5.21},
    "lcbench-3945": {"Syne Tune": -99.59, "SMAC3": -99.63, "HEBO": -99.62},
    "lcbench-167168": {"Syne Tune": -85.7, "SMAC3": -86.9, "HEBO": -87.7},
    "lcbench-189354": {"Syne Tune": -90.4, "SMAC3": -89.5, "HEBO": -82.1},
}
DECIMALS = {
    **{"branin": 3, "hartmann6": 2, "ackley10": 2},
    **{"lcbench-3945": 2, "lcbench-167168": 1, "lcbench-189354": 1},
}


def best_after(values: Sequence[float], trials: int) -> float:
    """Return the smallest of the first values; values that are no number count as none.

    Raises:
        ValueError: If there are fewer values than trials, or none is a number.
    """
    if len(values) < trials:
        raise ValueError(f"a run has {len(values)} values, {trials} are wanted")
    finite = [v for v in values[:trials] if np.isfinite(v)]
    if not finite:
        raise ValueError(f"none of the first {trials} values is finite")
    return min(finite)


def ranks(values: Mapping[str, float], decimals: int | None = None) -> dict[str, float]:
    """Return the rank of each method, 1 for the smallest value; equal values share the mean of their ranks.

    Args:
        values: Value by method.
        decimals: Round to so many decimals first: what is equal at the precision of published figures is a tie.
    """
    exact = np.array(list(values.values()))
    rounded = exact if decimals is None else np.round(exact, decimals)
    return dict(zip(values, rankdata(rounded).tolist(), strict=True))


def mean_ranks_by_means(
    means: Mapping[str, Mapping[str, float]], decimals: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Return the rank of each method by its mean value, averaged over objectives.

    Args:
        means: Mean value by objective and method; each objective has the same methods.
        decimals: Decimals by objective, as for :func:`ranks`.
    """
    decimals = {} if decimals is None else decimals
    return _averaged([ranks(of, decimals.get(objective)) for objective, of in means.items()])


def mean_ranks_by_seed(best: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, float]:
    """Return the rank of each method among runs of the same seed, averaged over seeds, then over objectives.

    Args:
        best: Best value by objective, method and seed; of seeds that all methods of the objective have.
    """
    means = []
    for of in best.values():
        seeds = common_seeds(of)
        means.append(_averaged([ranks({m: runs[seed] for m, runs in of.items()}) for seed in seeds]))
    return _averaged(means)


def common_seeds(runs: Mapping[str, Mapping[int, float]]) -> list[int]:
    """Return the seeds that all methods have."""
    return sorted(set.intersection(*(set(of) for of in runs.values()))) if runs else []


def _averaged(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([t[name] for t in tables])) for name in tables[0]} if tables else {}


def signed_rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed rank test that pairs do not differ.

    The distribution is exact with ties too: equal differences share the mean of their ranks, and all signs are
    counted. Pairs without a difference are left out.

    Args:
        a: Values of one method, by seed.
        b: Values of another one for the same seeds.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs are wanted, got {len(a)} and {len(b)} values")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    # Doubled, the shared ranks are whole numbers, and sums of ranks can be counted.
    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(int)
    counts = np.zeros(doubled.sum() + 1)
    counts[0] = 1.0
    for rank in doubled:
        counts[rank:] += counts[: len(counts) - rank].copy()
    positive = int(doubled[differences > 0].sum())
    smaller = min(positive, int(doubled.sum()) - positive)
    return float(min(1.0, 2 * counts[: smaller + 1].sum() / counts.sum()))
