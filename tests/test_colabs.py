import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("VAR_JAX_CONFIG", "configs/mnist5k.py:smallest")
    monkeypatch.setenv("VAR_JAX_RUN", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # One device, as in Colab.
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks clean"
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": path.parent}})
    client.execute()
    assert "label_accuracy" in str(notebook.cells[-1].outputs)
