"""Every notebook runs from top to bottom, small, and is stored without outputs."""

import ast
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import nbformat
import pytest
from cli import call_cli, smoke_words
from IPython.display import Image
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


Way: TypeAlias = Callable[[nbformat.NotebookNode], set[str]]
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop, and finished runs of two masks on it."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        for mask in ("causal", "hatllm"):
            words = [*smoke_words(folder), f"mask={mask}", "trainer.max_steps=1"]
            assert call_cli(patch, folder, *words) == 0
    return folder


def run_notebook(notebook: nbformat.NotebookNode) -> set[str]:
    """Run it in a kernel of its own, which imports everything anew.

    Returns:
        The kinds of what its cells show.

    Raises:
        CellExecutionError: With the cell and its traceback where one fails.
    """
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": NOTEBOOKS}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return {kind for output in outputs for kind in output.get("data", {})}


def run_here(notebook: nbformat.NotebookNode) -> set[str]:
    """What its kernel would run, in this process; raises what a cell raises."""
    kinds: set[str] = set()

    def display(value: Any) -> None:
        if isinstance(value, Image):
            value = value.data
        elif isinstance(value, Figure):
            picture = BytesIO()
            value.savefig(picture, format="png")
            value = picture.getvalue()
        is_picture = isinstance(value, bytes) and value.startswith(b"\x89PNG")
        kinds.add("image/png" if is_picture else "text/plain")

    names: dict[str, Any] = {"display": display}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source.replace("%matplotlib inline\n", "")).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            display(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        for number in plt.get_fignums():  # a kernel shows them after each cell
            display(plt.figure(number))
        plt.close("all")
    return kinds


def files_of_the_project() -> set[Path]:
    return {*NOTEBOOKS.iterdir(), *NOTEBOOKS.parent.iterdir()} - {NOTEBOOKS.parent / ".coverage"}


SLOW = [pytest.mark.slow]
# A kernel of each notebook is slow, and so is the process that own_arm starts.
WAYS = [
    pytest.param(name, way, marks=SLOW if way is run_notebook or name == "own_arm" else [])
    for name in NAMES
    for way in (run_here, run_notebook)
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_notebook_runs_from_top_to_bottom(
    name: str, way: Way, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [f"cache_root={folder / 'cache'}", "data_root=null"]
    words = [*smoke_words(folder), *places, "task.num_users=4"]
    if name == "own_arm":  # it brings data of its own
        words = ["scale=smoke", "num_threads=1", *places]
    runs = folder / "outputs"
    if name == "results":  # beside them an older run on fewer rows, which is left out
        runs = shutil.copytree(runs, folder / "with_older")
        older = [*smoke_words(folder), "model=popularity", "data.test_rows=4", "run_name=older"]
        assert call_cli(monkeypatch, folder, *older, f"output_root={runs}") == 0
        os.utime(runs / "older" / "run.json", (0, 0))
    monkeypatch.setenv("HATLLM_NOTEBOOK_WORDS", " ".join(words))
    monkeypatch.setenv("HATLLM_NOTEBOOK_RUNS", str(runs))
    monkeypatch.setenv("HATLLM_NOTEBOOK_DATA", "custom")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    before = files_of_the_project()
    monkeypatch.chdir(NOTEBOOKS)
    shown = way(notebook)
    assert files_of_the_project() == before
    assert "image/png" in shown


@pytest.mark.parametrize("name", ["attention", "recommend", "results"])
def test_without_runs_a_notebook_says_in_one_line_what_to_run_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATLLM_NOTEBOOK_RUNS", str(tmp_path / "outputs"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    monkeypatch.chdir(NOTEBOOKS)
    with pytest.raises(FileNotFoundError) as failed:
        run_here(notebook)
    assert str(failed.value).startswith(str(tmp_path / "outputs"))
    assert str(failed.value).endswith("run `make demo` first")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "results"])
def test_without_runs_a_kernel_shows_that_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATLLM_NOTEBOOK_RUNS", str(tmp_path / "outputs"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    with pytest.raises(CellExecutionError) as failed:
        run_notebook(notebook)
    assert failed.value.ename == "FileNotFoundError"
    assert failed.value.evalue.startswith(str(tmp_path / "outputs"))
    assert failed.value.evalue.endswith("run `make demo` first")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
