"""Figures of a sweep are written, and say what is wrong with a table."""

from pathlib import Path

import polars as pl
import pytest
from matplotlib.image import imread

from hatllm.report.bars import bars
from hatllm.report.sweep_plots import heat_map, lines

GRID = pl.DataFrame(
    [(0, 0, 0.1), (0, 4, 0.2), (7, 0, 0.3), (7, 4, None)],
    schema=["split", "cross", "NDCG@10"],
    orient="row",
)


def is_large(path: Path) -> bool:
    height, width, _ = imread(path).shape
    return height > 200 and width > 300


def test_a_heat_map_has_room_for_a_pair_without_a_number(tmp_path: Path) -> None:
    assert is_large(heat_map(GRID, "split", "cross", "NDCG@10", tmp_path / "a.png"))
    one = GRID.head(1).rename({"NDCG@10": "trie_NLL"})
    assert is_large(heat_map(one, "split", "cross", "trie_NLL", tmp_path / "b.png"))


@pytest.mark.parametrize("group", ["cross", None])
def test_lines_have_bars_where_there_is_an_error(tmp_path: Path, group: str | None) -> None:
    table = GRID.with_columns(error=pl.Series([0.01, None, float("nan"), 0.0]))
    assert is_large(lines(table, "split", "NDCG@10", "error", group, tmp_path / "a.png"))
    words = table.with_columns(pl.col("split").cast(pl.String))
    assert is_large(lines(words, "split", "NDCG@10", None, group, tmp_path / "b.png"))


def test_a_table_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="no column 'tau'; it has 'split'"):
        heat_map(GRID, "tau", "cross", "NDCG@10", path)
    with pytest.raises(ValueError, match="two rows of the same split and cross"):
        heat_map(pl.concat([GRID, GRID]), "split", "cross", "NDCG@10", path)
    empty = GRID.tail(1)
    with pytest.raises(ValueError, match="nothing to draw"):
        heat_map(empty, "split", "cross", "NDCG@10", path)
    with pytest.raises(ValueError, match="nothing to draw"):
        lines(empty, "split", "NDCG@10", None, None, path)
    with pytest.raises(ValueError, match="nothing to draw"):
        bars(empty, "split", "NDCG@10", "cross", "cross", {}, "", path)
