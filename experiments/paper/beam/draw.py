"""The figure: what each decoder loses, and at which token a beam of ten lets go."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper.beam.losses import Record, loss_table, proven_runs
from experiments.paper.beam.records import EXACT, PLACES
from hatllm.figures.saving import BLUE, GREEN, GREY, INK, ORANGE, save_figure, tidy

COLOURS = (BLUE, ORANGE, GREEN, GREY)  # of runs
OF_PLACES = dict(zip(PLACES, (ORANGE, BLUE, GREY), strict=True))
BEAM = "beam 10"  # whose falls are drawn


def write_figure(found: Mapping[str, Sequence[Record]], path: Path) -> Path:
    """Draw the records of some runs.

    Args:
        found: Label of a run -> its records; the falls are those of the first.
        path: A PNG.
    """
    proven = proven_runs(found)
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = pl.concat(loss_table(*entry) for entry in proven.items())
    _draw_losses(left, losses.filter(~pl.col("decoder").str.starts_with(EXACT)))
    records = next(iter(proven.values()))
    _draw_depths(right, records)
    return save_figure(figure, path)


def _draw_losses(axes: Axes, losses: pl.DataFrame) -> None:
    """A bar a decoder and run."""
    decoders = losses["decoder"].unique(maintain_order=True).to_list()
    labels = losses["run"].unique(maintain_order=True).to_list()
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        own = losses.filter(run=label)
        place = [decoders.index(name) + (number + 0.5) * width - 0.4 for name in own["decoder"]]
        axes.barh(place, 100 * own["lost"], width, xerr=100 * own["lost_se"], label=label,
                  color=COLOURS[number % len(COLOURS)], ecolor=INK)  # fmt: skip
    axes.set_yticks(range(len(decoders)), decoders)
    axes.invert_yaxis()
    axes.set_xlabel("% of the proven ten titles that it misses, ± standard error")
    tidy(axes, "Lost titles", grid="x")
    if len(labels) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_depths(axes: Axes, records: Sequence[Record]) -> None:
    """Falls by depth, the place of the token in colours."""
    falls = [
        (fell, kinds[fell - 1][0])
        for record in records
        for kinds, fell in zip(record["kinds"], record["decoders"][BEAM]["fell"], strict=True)
        if fell is not None
    ]
    deepest = max((fell for fell, _ in falls), default=1)
    below = [0] * deepest
    for place in PLACES:
        counts = [falls.count((depth, place)) for depth in range(1, deepest + 1)]
        axes.bar(range(1, deepest + 1), counts, bottom=below, color=OF_PLACES[place],
                 label=f"{place} token")  # fmt: skip
        below = [a + b for a, b in zip(below, counts, strict=True)]
    axes.set_ylim(0, 1.05 * max(1, *below))
    axes.set_xlabel("token of the title at which the beam let go")
    axes.set_ylabel("lost titles")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes, f"Where {BEAM} lost them", grid="y")
