"""Search quality of Bayesian optimisation and its peers: best values after 10, 25 and 50 trials.

Eight noise-free objectives (``_objectives.py``), one trial after the other, seeds 0 to 9. Methods (``_methods.py``),
all starting as they do by default:

  ours         BayesianOptimization; search options behind a colon, ours:input_warping=False,acq_function=ei,
               and ours:points_to_evaluate=[] for a start without the mid-point
  random       RandomSearch; any other class of sthyper.baselines goes by its name too
  optuna-tpe   TPESampler
  optuna-gp    GPSampler
  botorch      10 Sobol points, then SingleTaskGP on the unit cube with one-hot columns, LogEI, optimize_acqf;
               botorch-mixed, which takes seconds a suggestion and is not run by default, searches discrete values

Each finished run is a line of ``--out``; runs that are there are not run again, so that the benchmark can be stopped,
and split over processes that write to the same file. Seconds are process CPU time on one thread, for asking and
telling. The report ranks by mean values over seeds (with published means of Syne Tune, SMAC3 and HEBO on the six
objectives that have them, everything rounded to their decimals) and by seed; the test is Wilcoxon's signed rank test of
each method against the one with the best mean.

Run: python benchmarks/bayesopt_quality.py --data LCBENCH_FOLDER --out runs.jsonl [--methods ours random ...]
     python benchmarks/bayesopt_quality.py --report --out runs.jsonl [--markdown table.md]
The folder is that of YAHPO Gym's LCBench surrogate (model.onnx, config_space.json, encoding.json).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from _methods import METHODS, make_method, one_thread
from _objectives import NAMES, Objective, objective
from _quality_report import Runs, report

# ---- runs --------------------------------------------------------------------------------------------


def run(text: str, problem: Objective, seed: int, trials: int) -> dict[str, Any]:
    """Return the record of one run.

    Args:
        text: The method, with its options.
        problem: What is minimised.
        seed: Seed of the method.
        trials: Number of evaluations.
    """
    method = make_method(text, problem.space, seed)
    values, seconds = [], []
    for _ in range(trials):
        start = time.process_time()
        config = method.ask()
        asked = time.process_time()
        value = problem.function(config)
        told = time.process_time()
        method.tell(config, value)
        values.append(value)
        seconds.append(round(time.process_time() - told + asked - start, 6))
    return {
        **{"method": text, "objective": problem.name, "seed": seed, "values": values, "seconds": seconds},
        **{"date": date.today().isoformat(), "versions": method.versions()},
    }


def load(path: Path, trials: int) -> Runs:
    """Return the runs of a file that have so many trials; a last line that was cut off is passed over."""
    runs: Runs = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if len(record["values"]) >= trials:
            runs.setdefault(record["objective"], {}).setdefault(record["method"], {})[record["seed"]] = record
    return runs


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write a line; if the last one was cut off, a new one begins first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write(json.dumps(record).encode() + b"\n")


def run_all(args: argparse.Namespace) -> None:
    """Run what is not in the file yet: all methods of a seed before the next seed, so that they can be compared."""
    one_thread()
    problems = [objective(name, args.data) for name in args.objectives]
    for seed in args.seeds:
        for problem in problems:
            for text in args.methods:
                # read again each time: another process may have done it
                if seed in load(args.out, args.trials).get(problem.name, {}).get(text, {}):
                    continue
                record = run(text, problem, seed, args.trials)
                append(args.out, record)
                print(
                    f"{problem.name:16} seed {seed} {text:14} best {min(record['values']):.4f}, "
                    f"{1e3 * median(record['seconds']):.0f} ms a suggestion",
                    flush=True,
                )


# ---- command line ------------------------------------------------------------------------------------


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bayesopt_quality.jsonl"), help="file of the runs")
    parser.add_argument("--data", type=Path, help="folder of the LCBench surrogate")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--objectives", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--report", action="store_true", help="compare what is in the file; all methods by default")
    parser.add_argument("--markdown", type=Path, help="write the report to this file")
    args = parser.parse_args()
    if args.report:
        runs = load(args.out, args.trials)
        text = report(runs, args.methods, args.objectives, args.trials)
        print(text)
        if args.markdown is not None:
            args.markdown.write_text(text + "\n")
    else:
        args.methods = args.methods or METHODS
        run_all(args)


if __name__ == "__main__":
    main()
