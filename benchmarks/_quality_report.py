"""The report of ``bayesopt_quality.py``: tables in Markdown from the records of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from statistics import mean, median
from typing import Any

from _objectives import normalised_regret
from _ranking import (
    DECIMALS,
    PUBLISHED,
    PUBLISHED_TRIALS,
    best_after,
    common_seeds,
    mean_ranks_by_means,
    mean_ranks_by_seed,
    signed_rank_test,
)

CHECKPOINTS = (10, 25, 50)
RANDOM_PHASE = 10
LEVEL = 0.05
# Records of runs by objective, method and seed.
Runs = dict[str, dict[str, dict[int, dict[str, Any]]]]
# The same, reduced to the best value.
Best = dict[str, dict[str, dict[int, float]]]


def report(runs: Runs, methods: Sequence[str] | None, objectives: Sequence[str], trials: int) -> str:
    """Return the report.

    Args:
        runs: What was run.
        methods: The methods to compare; all that are in ``runs`` if ``None``.
        objectives: The objectives to compare on; those that some method has no run of are left out.
        trials: Number of trials after which methods are ranked.

    Raises:
        ValueError: If no objective has runs of all methods.
    """
    if methods is None:
        methods = list(dict.fromkeys(m for of in runs.values() for m in of))
    best = best_values(runs, methods, objectives, trials)
    if not best:
        raise ValueError(f"no objective has finished runs of all of {list(methods)} with one seed in common")
    left_out = [name for name in objectives if name not in best]
    lines = [
        f"{trials} trials, {date.today().isoformat()}; {versions(runs, methods)}.",
        *([f"Left out, since some method has no run: {', '.join(left_out)}."] if left_out else []),
        "",
        *value_table(runs, best, trials),
        *regret_table(best, trials),
        *rank_tables(best, trials),
        *test_table(best, trials),
        *seconds_table(runs, best),
    ]
    return "\n".join(lines).rstrip()


def best_values(runs: Runs, methods: Sequence[str], objectives: Sequence[str], trials: int) -> Best:
    """Return the best value by objective, method and seed, of the seeds that all methods have."""
    best: Best = {}
    for name in objectives:
        of = runs.get(name, {})
        seeds = common_seeds({method: of.get(method, {}) for method in methods})
        if seeds:
            best[name] = {m: {seed: best_after(of[m][seed]["values"], trials) for seed in seeds} for m in methods}
    return best


def versions(runs: Runs, methods: Sequence[str]) -> str:
    """Return the packages of all runs with their versions, each once."""
    records = [r for of in runs.values() for m in methods for r in of.get(m, {}).values()]
    return ", ".join(sorted({part for r in records for part in r["versions"].split(", ")}))


# ---- tables ------------------------------------------------------------------------------------------


def value_table(runs: Runs, best: Best, trials: int) -> list[str]:
    """Return the mean best values after some numbers of trials."""
    counts = [n for n in CHECKPOINTS if n < trials] + [trials]
    rows = []
    for name, of in best.items():
        seeds = common_seeds(of)
        cells = []
        for method in of:
            values = [runs[name][method][seed]["values"] for seed in seeds]
            cells.append(" / ".join(_number(mean(best_after(v, n) for v in values)) for n in counts))
        rows.append([f"{name} ({len(seeds)} seeds)", *cells])
    title = f"Mean best value after {' / '.join(map(str, counts))} trials (lower is better):"
    return _table(title, ["objective", *next(iter(best.values()))], rows)


def regret_table(best: Best, trials: int) -> list[str]:
    """Return the mean normalised regrets."""
    methods = list(next(iter(best.values())))
    means = {
        name: {m: mean(normalised_regret(name, v) for v in of[m].values()) for m in methods}
        for name, of in best.items()
    }
    rows = [[name, *(f"{of[m]:.5f}" for m in methods)] for name, of in means.items()]
    rows.append(["mean", *(f"{mean(of[m] for of in means.values()):.5f}" for m in methods)])
    title = f"Normalised regret after {trials} trials, mean over seeds (0: minimum, 1: median of random draws):"
    return _table(title, ["objective", *methods], rows)


def rank_tables(best: Best, trials: int) -> list[str]:
    """Return mean ranks by means and by seed, and after as many trials as those had, with published means."""
    methods = list(next(iter(best.values())))
    means = {name: {m: mean(of[m].values()) for m in methods} for name, of in best.items()}
    kinds = {"all": list(best), "the six named": [n for n in best if n in PUBLISHED]}
    rows = []
    for label, names in kinds.items():
        if names:
            by_means = mean_ranks_by_means({n: means[n] for n in names})
            by_seed = mean_ranks_by_seed({n: best[n] for n in names})
            which = f"{label} ({len(names)})"
            rows.append([f"by means, {which}", *(f"{by_means[m]:.2f}" for m in methods)])
            rows.append([f"by seed, {which}", *(f"{by_seed[m]:.2f}" for m in methods)])
    lines = _table("Mean rank (1 is best) among the methods of this table:", ["objectives", *methods], rows)
    joined = {n: {**means[n], **PUBLISHED[n]} for n in kinds["the six named"]}
    if joined and trials == PUBLISHED_TRIALS:
        everyone = list(next(iter(joined.values())))
        rounded = mean_ranks_by_means(joined, DECIMALS)
        exact = mean_ranks_by_means(joined)
        lines += _table(
            f"Mean rank by means with published means of five seeds, {len(joined)} objectives:",
            ["values", *everyone],
            [
                ["rounded to the published decimals", *(f"{rounded[m]:.2f}" for m in everyone)],
                ["as they are", *(f"{exact[m]:.2f}" for m in everyone)],
            ],
        )
    return lines


def test_table(best: Best, trials: int) -> list[str]:
    """Return the p-values of each method against the one with the best mean."""
    methods = list(next(iter(best.values())))
    rows = []
    for name, of in best.items():
        winner = min(methods, key=lambda m: mean(of[m].values()))
        cells = []
        for method in methods:
            p = signed_rank_test(list(of[method].values()), list(of[winner].values()))
            cells.append("best" if method == winner else f"**{p:.3f}**" if p < LEVEL else f"{p:.3f}")
        rows.append([name, *cells])
    title = (
        f"Wilcoxon's signed rank test against the method with the best mean after {trials} trials: two-sided p-values, "
        f"bold below {LEVEL:.0%}:"
    )
    return _table(title, ["objective", *methods], rows)


def seconds_table(runs: Runs, best: Best) -> list[str]:
    """Return median seconds of a suggestion, once the first ones that peers draw at random are over."""
    methods = list(next(iter(best.values())))
    rows = []
    for name, of in best.items():
        seconds = {m: [s for seed in of[m] for s in runs[name][m][seed]["seconds"][RANDOM_PHASE:]] for m in methods}
        rows.append([name, *(f"{median(seconds[m]):.3f}" for m in methods)])
    first = RANDOM_PHASE + 1
    title = f"Median seconds of a suggestion from trial {first} on (process CPU time, one thread, telling included):"
    return _table(title, ["objective", *methods], rows)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    return [title, "", *lines, ""]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"
