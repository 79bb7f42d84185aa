"""Every notebook runs from top to bottom, small, and is stored without outputs."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from cli import call_cli, smoke_words

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


def run_notebook(notebook: nbformat.NotebookNode) -> None:
    """Raises with the cell and its traceback where one fails."""
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": NOTEBOOKS}}).execute()


def files_of_the_project() -> set[Path]:
    return {*NOTEBOOKS.iterdir(), *NOTEBOOKS.parent.iterdir()} - {NOTEBOOKS.parent / ".coverage"}


# Each starts a kernel that imports everything anew: one of each kind is enough between two edits.
QUICK = ["masks", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != "masks")]


@pytest.mark.parametrize("name", QUICK)
def test_a_notebook_runs_from_top_to_bottom(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
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
    run_notebook(notebook)
    assert files_of_the_project() == before
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert "image/png" in shown


@pytest.mark.parametrize("name", ["results", pytest.param("attention", marks=pytest.mark.slow)])
def test_without_runs_a_notebook_says_in_one_line_what_to_run_first(
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
