"""Notebooks run as a user runs them: in a fresh kernel, cell by cell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sthyper.experiment import load_experiment

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter's files live below the test's folder."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.delenv("STHYPER_QUIET", raising=False)


def run(notebook: Any, folder: Path, timeout: float = 50.0) -> list[str]:
    """Execute a notebook in a folder and return the text of each code cell's output.

    Fails if a cell raises, or writes to stderr.
    """
    client = nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    texts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert cell.execution_count is not None, f"this cell has not run: {cell.source}"
        text = ""
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert output.get("name") != "stderr", f"on stderr: {output.text}"
            text += output.get("text", "") or output.get("data", {}).get("text/plain", "")
        texts.append(text)
    return texts


def cells(*sources: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(ROOT / "examples" / "tune_notebook.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook is stored without outputs"
        assert cell.get("execution_count") is None
    texts = run(notebook, tmp_path, timeout=280.0)
    tuned, table, _, loaded, more = texts[-5:]
    assert tuned.count(" started") == 12
    assert " stopped at epoch 1" in tuned
    assert "best accuracy 0." in tuned
    assert "\x1b" not in tuned
    found = re.search(r"best accuracy (0\.\d+) in trial", table)
    assert found is not None
    assert float(found[1]) > 0.9
    assert "config_batch_size" in table
    # The checkpoint is that of the last epoch, which need not be the trial's best.
    assert abs(float(loaded.split()[-1]) - float(found[1])) < 0.05
    assert float(more.split()[-1]) >= float(found[1]) - 5e-4
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    assert len(load_experiment("train").trials) == 3


def readme_example() -> str:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- tune example -->\s*```python\n(.*?)```", text, re.DOTALL)
    assert match is not None, "README.md has no python block below <!-- tune example -->"
    return match[1]


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    example = readme_example()
    assert len(example.rstrip().splitlines()) <= 12
    (text,) = run(cells(example), tmp_path)
    assert "trial 0 started" in text
    assert "best " in text
    (folder,) = (tmp_path / "experiments").iterdir()
    experiment = load_experiment(folder)
    assert experiment.end_reason is not None
    assert experiment.best_value is not None
    assert {trial.status.value for trial in experiment.trials.values()} <= {"Completed", "Stopped"}


def test_a_loop_runs_in_the_kernel(tmp_path: Path) -> None:
    define = """
import asyncio, os
from sthyper import tune
from sthyper.config_space import uniform

class Model:
    def __init__(self, x):
        self.x = x

def train(x):
    print("heard in the trial only")
    return Model(x).x
"""
    call = """
assert asyncio.get_running_loop().is_running()
result = tune(train, {"x": uniform(0, 1)}, max_trials=3, seed=1, n_workers=2, name="cells")
"""
    debug = 'result = tune(train, {"x": uniform(0, 1)}, max_trials=1, debug=True, name="inline")'
    quiet = 'os.environ["STHYPER_QUIET"] = "1"\nprint(tune(train, {"x": uniform(0, 1)}, max_trials=2).best_value)'
    notebook = cells(define, call, quiet)
    texts = run(notebook, tmp_path)
    assert texts[0] == ""
    assert texts[1].count("started") == texts[1].count("completed") == 3
    assert "heard" not in texts[1]
    assert "\x1b" not in texts[1]
    assert re.fullmatch(r"0\.\d+\n", texts[2])
    assert len(load_experiment("cells").trials) == 3
    # Inline the function prints into the notebook, and the log goes to stderr.
    notebook = cells(define, debug)
    with pytest.raises(AssertionError, match="on stderr: INFO sthyper"):
        run(notebook, tmp_path)
    shown = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "heard in the trial only" in shown
    assert "trial 0 completed" in shown
