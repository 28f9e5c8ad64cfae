"""Imports point down the layers of the architecture, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sthyper
import sthyper.callbacks

# From top to bottom; a module may import those of its own layer and of the layers below it. The two columns of one
# layer (backend side, scheduler side) do not import each other.
LAYERS: list[dict[str, set[str]]] = [
    {"": {"callbacks", "testing"}},
    {
        "": {
            "tuner",
            "experiment",
            "progress",
            "baselines",
            "_experiment_plots",
            "_journal_view",
            "_load_model",
            "_tune",
            "_tuning",
        }
    },
    {"backend side": {"backend"}, "scheduler side": {"schedulers"}},
    {"backend side": {"journal", "_lock"}, "scheduler side": {"searchers"}},
    {"": {"acquisition"}},
    {"": {"surrogates"}},
    {"": {"results_callback", "_result_table"}},
    {"": {"tuner_callback", "tuning_status", "_metrics_statistics", "stopping_criterion", "time_keeper"}},
    {"": {"selftuning", "straight_through"}},
    {"": {"trial", "report", "config_space", "encoding", "constants", "utils", "errors", "paths", "checkpoints"}},
]
LAYERS[-1][""] |= {"_checkpoints", "_connection", "_describe", "_function_trial", "_lazy", "_space", "_syncing"}
LAYERS[-1][""].add("_version")
# The training-time callbacks may be used without a tuner: they see the bottom only.
CALLBACKS_MAY_IMPORT = {"callbacks", "selftuning", "straight_through", *LAYERS[-1][""]}


def place(part: str) -> tuple[int, str]:
    for level, columns in enumerate(LAYERS):
        for column, parts in columns.items():
            if part in parts:
                return level, column
    raise AssertionError(f"sthyper.{part} has no place in LAYERS; add it where it belongs")


def modules() -> Iterator[tuple[str, Path]]:
    root = Path(sthyper.__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts != ("__init__",) and parts[0] != "callbacks":
            yield parts[0], path
    for path in sorted(Path(sthyper.callbacks.__file__).parent.rglob("*.py")):
        yield "callbacks", path


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and first part below ``sthyper`` of every import, those in functions too."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "sthyper":
                names = [f"sthyper.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sthyper" and len(parts) > 1:
                yield node.lineno, parts[1]


def test_imports_point_down() -> None:
    wrong = []
    for part, path in modules():
        level, column = place(part)
        for line, other in imported_parts(path):
            other_level, other_column = place(other)
            crosses = other != part and column and other_column and column != other_column
            if other_level < level or crosses:
                wrong.append(f"{path.name}:{line}: sthyper.{part} imports sthyper.{other}")
            elif part == "callbacks" and other not in CALLBACKS_MAY_IMPORT:
                wrong.append(f"{path.name}:{line}: a callback imports sthyper.{other}")
    assert not wrong, "\n".join(wrong)


def test_the_check_finds_arrows_that_point_up(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from sthyper.tuner import Tuner\n    return Tuner\n")
    assert list(imported_parts(path)) == [(2, "tuner")]
    assert place("tuner") < place("report")


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import sthyper.report", {"torch", "numpy", "pandas", "psutil"}),
        ("import sthyper.config_space", {"torch", "pandas", "scipy"}),
        ("import sthyper.checkpoints", {"torch", "numpy", "lightning"}),
        ("import sthyper.utils", {"torch", "pandas"}),
        ("import sthyper.callbacks", {"torch", "lightning", "pandas"}),
        # A tuner with a model-free method.
        (
            "from sthyper import StoppingCriterion, Tuner; from sthyper.backend import LocalBackend; "
            "from sthyper.baselines import ASHA; from sthyper.config_space import uniform; "
            "s = ASHA({'x': uniform(0, 1), 'epochs': 3}, metric='a', resource_attr='epoch', max_resource_attr='epochs')"
            "; s.suggest(0)",
            {"torch", "pandas", "lightning", "scipy", "sklearn"},
        ),
    ],
)
def test_light_modules_import_nothing_heavy(code: str, forbidden: set[str], tmp_path: Path) -> None:
    code += f"\nimport sys; print(sorted(m for m in {sorted(forbidden)!r} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    # From elsewhere: the installed package is meant, not the folder of the same name.
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "[]"


def test_a_running_tuner_loads_neither_torch_nor_pandas(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import torch\nfrom sthyper import Reporter\nReporter()(loss=float(torch.ones(1)))\n")
    launcher = tmp_path / "launch.py"
    launcher.write_text(
        "import sys\nfrom sthyper import StoppingCriterion, Tuner\nfrom sthyper.backend import LocalBackend\n"
        "from sthyper.baselines import RandomSearch\nfrom sthyper.config_space import uniform\n"
        "search = RandomSearch({'x': uniform(0, 1)}, metric='loss')\n"
        f"e = Tuner(LocalBackend({str(script)!r}), search, StoppingCriterion(max_num_trials_started=1), 1).run()\n"
        "print(e.best_value, sorted(m for m in ('torch', 'pandas', 'lightning') if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, str(launcher)], check=True, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "1.0 []"
