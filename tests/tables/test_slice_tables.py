"""Slices of a comparison against numbers taken from the predictions of the runs."""

import math
from io import StringIO
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from run_folders import make_run

from hatllm.metrics.slices import SLICES
from hatllm.tables.comparison import Comparison, compare_runs
from hatllm.tables.slice_tables import difference_cells, numbers_cells, slices_frame
from hatllm.tables.writers import markdown, rich_differences, write_comparison

NUM_UNCOPIED = 80  # the first examples share no word; of these every second one has no transition


def cut(folder: Path) -> Path:
    """Give a run slices that a reader can count."""
    path = folder / "examples.parquet"
    examples = pl.read_parquet(path)
    number = pl.col("example_id")
    examples.with_columns(
        words=pl.when(number < NUM_UNCOPIED)
        .then(pl.lit("no_shared_words"))
        .otherwise(pl.lit("strong_shared_words")),
        transition=pl.when(number % 2 == 0)
        .then(pl.lit("unseen_transition"))
        .otherwise(pl.lit("seen_transition")),
    ).write_parquet(path)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("slices")
    skills = {"causal": 0.3, "hatllm": 0.5}
    runs = [
        cut(make_run(root / f"{label}-{seed}", label, seed, skill=skill))
        for label, skill in skills.items()
        for seed in (1, 2)
    ]
    return [*runs, cut(make_run(root / "d3", "d3", 1, has_nll=False))]


@pytest.fixture(scope="module")
def comparison(folders: list[Path]) -> Comparison:
    return compare_runs(folders, "causal", data="toys")


def gains(folder: Path, rows: list[int]) -> list[float]:
    """NDCG@10 of chosen examples, by the rank alone."""
    table = pl.read_parquet(folder / "predictions.parquet").sort("example_id")
    ranks = [table["target_rank"][row] for row in rows]
    return [0.0 if rank is None else 1 / math.log2(rank + 1) for rank in ranks]


def test_a_slice_holds_its_examples_and_their_means(
    folders: list[Path], comparison: Comparison
) -> None:
    assert [part.name for part in comparison.slices] == ["all", *SLICES]
    sizes = {part.name: part.num_examples for part in comparison.slices}
    assert (sizes["all"], sizes["no_shared_words"], sizes["no_words_no_transition"]) == (
        200,
        80,
        40,
    )
    assert sizes["some_shared_words"] == 0
    (crossing,) = (p for p in comparison.slices if p.name == "no_words_no_transition")
    means = [sum(gains(folder, list(range(0, 80, 2)))) / 40 for folder in folders[:2]]
    number = crossing.numbers["causal"]["NDCG@10"]
    assert number.mean == pytest.approx(sum(means) / 2)
    assert number.std == pytest.approx(pl.Series(means).std())
    assert "trie_NLL" not in crossing.numbers["d3"]


def test_the_difference_is_shown_where_copying_is_impossible_beside_all(
    folders: list[Path], comparison: Comparison
) -> None:
    head, rows = difference_cells(comparison)
    assert head == ["", "against", "slice", "examples", "Δ NDCG@10 ↑", "Δ HR@10 ↑", "Δ trie_NLL ↓"]
    names = ["all", "no_shared_words", "no_words_no_transition"]
    assert [row[:4] for row in rows] == [
        [label, "causal", name, count]
        for label in ("hatllm", "d3")
        for name, count in zip(names, ("200", "80", "40"), strict=True)
    ]
    sums = [sum(gains(folder, list(range(80)))) for folder in folders[:4]]
    mean = (sums[2] + sums[3] - sums[0] - sums[1]) / 2 / 80
    assert rows[1][4].startswith(f"{mean:+.4f} [")
    assert rows[4][6] == "–"  # d3 has no NLL
    (part,) = (p for p in comparison.slices if p.name == "no_shared_words")
    difference = part.differences["hatllm"]["NDCG@10"]
    assert difference.low < difference.mean < difference.high
    (arm,) = (a for a in comparison.arms if a.label == "hatllm")
    whole = comparison.slices[0].differences["hatllm"]["NDCG@10"]
    assert whole.low == arm.tests["NDCG@10"].difference.low  # one bootstrap, one seed


def test_tables_and_files_show_the_slices(comparison: Comparison, tmp_path: Path) -> None:
    text = write_comparison(comparison, tmp_path).read_text()
    assert "Where copying is impossible:" in text
    assert "| NDCG@10 ↑ | all (200) | unseen (" in text
    assert "| hatllm | causal | no_words_no_transition | 40 | +" in text
    assert "Where copying is impossible:" in markdown([comparison])
    frame = pl.read_csv(tmp_path / "slices.csv")
    assert frame.equals(pl.read_csv(slices_frame([comparison]).write_csv().encode()))
    row = frame.row(by_predicate=(pl.col("label") == "hatllm") & (pl.col("slice") == "all"),
                    named=True)  # fmt: skip
    assert row["NDCG@10_difference"] == comparison.arms[1].tests["NDCG@10"].difference.mean
    empty = frame.filter(pl.col("slice") == "some_shared_words")
    assert empty["count"].to_list() == [0] * 3 and empty["NDCG@10"].null_count() == 3


def test_names_stay_whole_on_a_terminal_of_80_columns(comparison: Comparison) -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(rich_differences(comparison))
    text = console.export_text()
    for words in ("hatllm", "- causal", "no_words_no_transition", "40 examples"):
        assert words in text


def test_nothing_is_compared_without_a_reference(folders: list[Path], tmp_path: Path) -> None:
    alone = compare_runs(folders, None)
    assert difference_cells(alone)[1] == [] and rich_differences(alone) is None
    assert len(numbers_cells(alone)[1]) == 3
    assert "Where copying is impossible" not in write_comparison(alone, tmp_path).read_text()


def test_a_run_without_slices_is_named(folders: list[Path], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "old")
    path = folder / "examples.parquet"
    pl.read_parquet(path).drop("words").write_parquet(path)
    with pytest.raises(ValueError, match=r"examples\.parquet has no column 'words': delete"):
        compare_runs([folder], None)
