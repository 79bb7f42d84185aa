"""Every experiment of the paper, from its cells to its tables and figures, on made-up data."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from matplotlib.image import imread
from toys import CONF, Compose

from hatllm.tasks.cells import PlannedCell, plan_cells
from hatllm.tasks.train import train

Cli = Callable[..., int]

NAMES = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml"))
DATASETS = {"main": ["msl_toys", "msl_books"]}  # the others: msl_books
LABELS = {
    "ablation": 11, "efficiency": 5, "main": 10, "sensitivity": 4, "unseen": 10,
}  # fmt: skip
FILES = {
    "ablation": {"bars.png"},
    "efficiency": {"efficiency.csv", "efficiency.md"},
    "main": {"bars.png"},
    "sensitivity": {
        "grid-msl_books.csv", "grid-msl_books-NDCG10.png", "grid-msl_books-trie_NLL.png",
        "lines-msl_books-NDCG10.png", "lines-msl_books-trie_NLL.png",
    },
    "unseen": {"slices.csv", "slices.md"},
}  # fmt: skip
PUBLISHED = CONF.parent / "experiments" / "paper" / "published.csv"


def write_windows(root: Path) -> None:
    """Two data sets of 24 titles in the form of MSL's files, made by arithmetic."""
    for shift, name in enumerate(("msl_toys", "msl_books")):
        (root / name).mkdir(parents=True)
        titles = {str(i): f"{'Red Blue Old New'.split()[i % 4]} {i}" for i in range(24)}
        (root / name / "id2name4Rec.json").write_text(json.dumps(titles))
        for split, users in (("train", range(24)), ("valid", range(24, 32)), ("test", range(32))):
            rows = [
                f'{user},"{[(user * 5 + step * (1 + user % 3) + shift) % 24 for step in range(6)]}"'
                f",{100 * user + len(split)}"
                for user in users
            ]
            (root / name / f"{split}.csv").write_text(
                "\n".join(["user_id,item_ids,timestamp", *rows]) + "\n"
            )


def words_of(name: str, folder: Path) -> list[str]:
    """The command line of a small version of an experiment."""
    words = [
        f"experiment=paper/{name}",
        f"experiment.datasets=[{','.join(DATASETS.get(name, ['msl_books']))}]",
        f"experiment.folder={folder}/tables",
        "experiment.seeds=[1]",
        f"data_root={folder}/data",
        f"cache_root={folder}/cache",
        f"output_root={folder}/outputs",
        "model.lora.dropout=0.0",
        "num_threads=1",
    ]
    if name in ("main", "unseen"):
        quick = ["model=sasrec", "model.sequence.max_epochs=1"]
        words.append(f"experiment.cells.sasrec={json.dumps(quick)}")
        words.append(f"experiment.published={PUBLISHED}")
    if name == "sensitivity":
        words += ["experiment.grid.split_layer=[0,0.5]", "experiment.grid.num_cross_layers=[0,0.3]"]
    return words


def cells_of(compose_config: Compose, words: list[str]) -> list[PlannedCell]:
    def compose(more: list[str]) -> object:
        keys = {word.split("=")[0] for word in more}
        more[:] = [*(word for word in words if word.split("=")[0] not in keys), *more]
        return compose_config(*more)

    return plan_cells(compose_config(*words), compose)  # type: ignore[arg-type]


def run_cells(compose_config: Compose, cells: list[PlannedCell]) -> None:
    """What task=experiment does, without a process for each cell."""
    for cell in cells:
        train(compose_config(*cell.words))


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_of_the_paper_ends_in_its_tables_and_figures(
    cli: Cli, compose_config: Compose, tmp_path: Path, name: str
) -> None:
    write_windows(tmp_path / "data")
    words = words_of(name, tmp_path)
    cells = cells_of(compose_config, words)
    run_cells(compose_config, cells)
    assert cli("task=table", "scale=smoke", *words) == 0
    tables = tmp_path / "tables"
    datasets = DATASETS.get(name, ["msl_books"])
    expected = {"results.md", "results.tex", "results.csv", *datasets, *FILES[name]}
    assert {path.name for path in tables.iterdir()} == expected
    frame = pl.read_csv(tables / "results.csv")
    assert frame["data"].to_list() == [d for d in datasets for _ in range(LABELS[name])]
    assert frame["num_seeds"].to_list() == [1] * len(frame)
    for path in tables.glob("*.png"):
        assert min(imread(path).shape[:2]) > 200
    assert (tables / "results.tex").read_text().count("\\bottomrule") == len(datasets)
    has_published = name in ("main", "unseen")
    assert ("arXiv:2504.04178" in (tables / "results.md").read_text()) == has_published
    for data in datasets:
        assert (tables / data / "comparison.png").exists()
