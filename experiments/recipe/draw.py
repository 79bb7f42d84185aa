"""The curves of the study: NLL on valid rows against seconds, one line a recipe.

python -m experiments.recipe.draw                 # results/curves.csv -> results/NAME.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.recipe.study import RESULTS
from hatllm.figures.saving import BLUE, GREEN, GREY, INK, ORANGE, save_figure, tidy

COLOURS = (BLUE, ORANGE, GREEN, INK, GREY)
LINES = ("-", "--", ":")  # another one each time the colours are used up


def main(argv: Sequence[str]) -> None:
    """Draw one figure for each data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--curves", type=Path, default=RESULTS / "curves.csv")
    path = parser.parse_args(argv).curves
    for (data,), curves in pl.read_csv(path).group_by("data", maintain_order=True):
        print(save_figure(draw(curves), path.parent / f"{data}.png"))


def draw(curves: pl.DataFrame) -> Figure:
    """One panel for the NLL, and one for NDCG@10 where it was measured.

    Args:
        curves: recipe, seconds, trie_NLL and perhaps NDCG@10, of one data set.
    """
    columns = ["trie_NLL", *(name for name in ("NDCG@10",) if name in curves.columns)]
    columns = [name for name in columns if curves[name].is_not_null().any()]
    figure = Figure(figsize=(5.2 * len(columns), 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        _draw_lines(axes, curves, column)
        title = "NLL of valid targets (nats a title)" if column == "trie_NLL" else column
        tidy(axes, title, grid="y")
        axes.set_xlabel("seconds of training, one thread")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _draw_lines(axes: Axes, curves: pl.DataFrame, column: str) -> None:
    lines = curves.filter(pl.col(column).is_not_null()).group_by("recipe", maintain_order=True)
    for number, ((recipe,), line) in enumerate(lines):
        line = line.sort("seconds")
        axes.plot(
            line["seconds"], line[column], marker="o", markersize=3, linewidth=1.6,
            color=COLOURS[number % len(COLOURS)], linestyle=LINES[number // len(COLOURS) % 3],
            label=str(recipe),
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
