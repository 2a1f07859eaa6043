"""The notebooks in colabs/: each runs from top to bottom, by itself and on a fresh machine."""

import ast
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("colabs/*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
#: Those that train or compile most.
SLOW = ("editing", "evaluate", "official_weights", "plan_a_pod", "pyramid_tour", "your_images")


def cells(path, kind):
    notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The first notebook that needs a model trains it, the others find it."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAR_JAX_CONFIG", "configs/mnist5k.py:smallest")
        patch.setenv("VAR_JAX_RUN", str(folder / "run"))
        patch.setenv("VAR_JAX_CACHE", str(folder / "cache"))
        patch.setenv("VAR_JAX_DOWNLOAD", "no")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # Compiling takes most of the time.
        patch.delenv("XLA_FLAGS", raising=False)  # One device, as in Colab.
        yield


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in SLOW else ()) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_from_top_to_bottom(path, environment):
    if path.stem == "plan_a_pod":
        pytest.importorskip("libtpu")
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=None, resources=folder).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


@every_notebook
def test_what_it_imports_is_there(path):
    nodes = [node for cell in cells(path, "code") for node in ast.walk(ast.parse(cell))]
    ours = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("var_jax")]
    assert ours
    for node in ours:
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")


@every_notebook
def test_it_is_committed_clean_begins_like_the_others_and_leads_on(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert cells(path, "code")[0] == cells(NOTEBOOKS[0], "code")[0]
    last = cells(path, "markdown")[-1]
    assert last == notebook.cells[-1].source and last.startswith("## Next\n")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", "".join(cells(path, "markdown")))
    assert links and all((path.parent / link).is_file() for link in links)
    pages = (ROOT / "docs/index.md").read_text(), (ROOT / "README.md").read_text()
    assert f"\nnotebooks/{path.stem}\n" in pages[0] and f"(colabs/{path.name})" in pages[1]


#: What stands before the first cell: an installer that only says what it was asked for.
RECORDING = """
import subprocess
real = subprocess.run
def run(command, **settings):
    print("RUN", *command) if "pip" in command else real(command, **settings)
subprocess.run = run
"""


def set_up(folder, **environment):
    """Runs the first cell in a folder."""
    return subprocess.run(
        [sys.executable, "-c", RECORDING + cells(NOTEBOOKS[0], "code")[0]],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with what the first cell reads."""
    folder = tmp_path_factory.mktemp("repository") / "origin"
    for name in ("var_jax", "launch"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    commit(folder)
    return folder


def commit(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *command], check=True)


def test_on_a_fresh_machine_it_fetches_the_repository_once(repository, tmp_path):
    done = set_up(tmp_path, VAR_JAX_REPOSITORY="")
    assert "or set VAR_JAX_REPOSITORY to its address" in done.stderr
    for _ in range(2):
        done = set_up(tmp_path, VAR_JAX_REPOSITORY=f"file://{repository}")
        assert done.returncode == 0 and "RUN" not in done.stdout, done.stderr
    assert (tmp_path / "var_jax_repository" / "setup.py").is_file()


def test_it_installs_what_is_missing_but_never_jax(repository, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    setup = (copy / "setup.py").read_text()
    changed = re.sub('"absl-py",', '"absl-py>=999", "no-such-package",', setup)
    (copy / "setup.py").write_text(changed)
    done = set_up(copy / "launch")
    assert re.search(r"RUN .*-m pip install --quiet jax==\S+ absl-py>=999 no-such-package\n",
                     done.stdout), done.stderr  # fmt: skip
    assert "Some were here in another version" in done.stdout
    (copy / "setup.py").write_text(re.sub('"jax>=[^"]*"', '"jax>=999"', changed))
    done = set_up(copy / "launch")
    assert re.search(r"The jax here is [\d.]+, and var_jax needs jax>=999", done.stderr)
    assert "RUN" not in done.stdout
