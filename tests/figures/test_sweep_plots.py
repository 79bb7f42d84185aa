"""What the figures of a sweep show, and what they say of a table that cannot be drawn."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from hatllm.figures.comparison_plot import bars
from hatllm.figures.sweep_plots import heat_map, lines

GRID = pl.DataFrame(
    [(0, 0, 0.1), (0, 4, 0.2), (7, 0, 0.3), (7, 4, None)],
    schema=["split", "cross", "NDCG@10"],
    orient="row",
)


Figures = dict[str, Figure]


def frame_of(axes: Axes) -> tuple[float, float]:
    """Middle of the framed tile: place on the horizontal axis, on the vertical one."""
    (frame,) = axes.patches
    assert isinstance(frame, Rectangle)
    x, y = frame.get_center()
    return round(x, 6), round(y, 6)


def test_a_heat_map_shows_each_number_in_its_tile_and_frames_the_best(
    tmp_path: Path, figures: Figures
) -> None:
    shuffled = GRID[[2, 3, 0, 1]]
    heat_map(shuffled, "split", "cross", "NDCG@10", tmp_path / "a.png")
    axes = figures["a.png"].axes[0]
    tiles = axes.images[0].get_array()
    assert tiles is not None
    np.testing.assert_array_equal(tiles.filled(np.nan), [[0.1, 0.2], [0.3, np.nan]])
    assert axes.images[0].origin == "lower"  # the first row is at the bottom
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "7"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cross", "split")
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0.1000", (1, 0): "0.2000", (0, 1): "0.3000", (1, 1): "–"}
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == ["0.3000"]
    assert frame_of(axes) == (0, 1)
    assert axes.get_title(loc="left") == "NDCG@10, higher is better"
    assert imread(tmp_path / "a.png").shape[0] > 200


def test_a_heat_map_of_a_loss_frames_the_lowest_and_darkens_it(
    tmp_path: Path, figures: Figures
) -> None:
    losses = GRID.rename({"NDCG@10": "trie_NLL"})
    heat_map(losses, "split", "cross", "trie_NLL", tmp_path / "a.png")
    axes = figures["a.png"].axes[0]
    assert frame_of(axes) == (0, 0)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert (texts[0, 0], texts[0, 1]) == ("0.100", "0.300")
    darkness = [-sum(axes.images[0].to_rgba(number)[:3]) for number in (0.1, 0.2, 0.3)]
    assert darkness == sorted(darkness, reverse=True)
    heat_map(losses.head(1), "split", "cross", "trie_NLL", tmp_path / "one.png")
    assert frame_of(figures["one.png"].axes[0]) == (0, 0)


def test_lines_go_through_the_numbers_of_their_group_with_bars_where_there_is_an_error(
    tmp_path: Path, figures: Figures
) -> None:
    table = GRID.with_columns(error=pl.Series([0.01, None, float("nan"), 0.0]))
    lines(table[[2, 3, 0, 1]], "split", "NDCG@10", "error", "cross", tmp_path / "a.png")
    axes = figures["a.png"].axes[0]
    handles, names = axes.get_legend_handles_labels()
    assert names == ["0", "4"]
    of_0, of_4 = (handle[0] for handle in handles)
    # Groups stand aside of the setting's place by 3 % of the 7 between two settings.
    assert of_0.get_xdata() == pytest.approx([-0.21, 6.79])
    assert of_4.get_xdata() == pytest.approx([0.21])
    assert list(of_0.get_ydata()) == [0.1, 0.3] and list(of_4.get_ydata()) == [0.2]
    bars_of_0 = handles[0][2][0].get_segments()
    assert [[y for _, y in bar] for bar in bars_of_0] == [pytest.approx([0.09, 0.11]), [0.3, 0.3]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "7"]
    assert list(axes.get_xticks()) == [0, 7]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("split", "NDCG@10")


def test_words_are_spaced_evenly_along_one_line(tmp_path: Path, figures: Figures) -> None:
    words = pl.DataFrame({"split": ["7", "0", "x"], "NDCG@10": [0.3, 0.1, 0.2]})
    lines(words, "split", "NDCG@10", None, None, tmp_path / "a.png")
    axes = figures["a.png"].axes[0]
    (line,) = (container[0] for container in axes.containers)
    assert list(line.get_xdata()) == [0, 1, 2] and list(line.get_ydata()) == [0.3, 0.1, 0.2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "0", "x"]
    assert axes.get_legend() is None


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
        bars(empty, "NDCG@10", {}, "", path)
