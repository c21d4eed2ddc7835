"""The notebook of `examples/`: stored without outputs, and it does what it says."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def code(notebook) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    stored = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(stored) > 5 and all(not cell["outputs"] and cell["execution_count"] is None for cell in stored)


def test_it_imports_only_what_is_installed_with_the_package():
    cells = [cell for cell in code(json.loads(NOTEBOOK.read_text())) if not cell.startswith("%%bash")]
    trees = [ast.parse(cell.removeprefix("%%writefile shapes.py")) for cell in cells]
    assert len(trees) > 3
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names = {name.partition(".")[0] for name in imported}
    assert names - set(sys.stdlib_module_names) == {"PIL", "numpy", "vit_jax"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_it_runs_and_the_model_learns(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as a reader has
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, 4)
    places = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=places).execute()

    assert json.loads((tmp_path / "runs/shapes/result.json").read_text())["test/accuracy"] > 0.8
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    rows = [line.split() for line in text.splitlines() if line.startswith("new/")]
    assert len(rows) == 12 and sum(row[1] in row[0] for row in rows) > 9
    assert "\x1b" not in text, "no escape codes of a terminal"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
