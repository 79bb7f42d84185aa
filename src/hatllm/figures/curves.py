"""The figure of a run's training: loss and validation over optimizer steps."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hatllm.figures.saving import BLUE, GREEN, INK, ORANGE, tidy

# column -> (title, colour, which end is best: None for a curve that picks nothing)
PANELS: dict[str, tuple[str, str, str | None]] = {
    "train/loss": ("training loss", BLUE, None),
    "val/trie_NLL": ("validation NLL (nats a title)", ORANGE, "lowest"),
}
NDCG = "val/NDCG@"  # one panel for each cut-off that there is
SMOOTHING_SPAN = 20  # steps of the moving average drawn over a noisy loss


def draw_curves(curves: pl.DataFrame) -> Figure | None:
    """One panel for each curve that has points.

    Args:
        curves: step, and any of ``train/loss``, ``val/NDCG@K``, ``val/trie_NLL``; null or NaN
            where a step has no value.

    Returns:
        The figure, or None if there is no curve to draw.
    """
    ndcg = {
        name: (f"validation {name.removeprefix('val/')}", GREEN, "highest")
        for name in curves.columns
        if name.startswith(NDCG)
    }
    settings = PANELS | ndcg
    points = {name: _points(curves, name) for name in settings if name in curves.columns}
    points = {name: frame for name, frame in points.items() if len(frame)}
    if not points:
        return None
    figure = Figure(figsize=(3.7 * len(points) + 0.3, 3.1), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (name, frame) in zip(panels, points.items(), strict=True):
        title, colour, best = settings[name]
        _draw_curve(axes, frame, colour)
        tidy(axes, title, grid="y")
        axes.set_xlabel("optimizer step")
        if best is not None and len(frame) > 1:
            _mark_best(axes, frame, best)
    return figure


def _points(curves: pl.DataFrame, name: str) -> pl.DataFrame:
    """The steps at which a curve has a value."""
    frame = curves.select("step", value=pl.col(name).cast(pl.Float64, strict=False))
    return frame.filter(pl.col("value").is_finite().fill_null(False)).sort("step")


def _draw_curve(axes: Axes, frame: pl.DataFrame, colour: str) -> None:
    """Points joined by a line; long curves faint with their moving average on top."""
    steps, values = frame["step"].to_numpy(), frame["value"].to_numpy()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(frame) <= 3 * SMOOTHING_SPAN:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3)
        return
    smooth = frame["value"].ewm_mean(span=SMOOTHING_SPAN).to_numpy()
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smooth, color=colour, linewidth=1.8)


def _mark_best(axes: Axes, frame: pl.DataFrame, best: str) -> None:
    """A ring and a number at the point that a run would be picked by."""
    row = frame["value"].arg_min() if best == "lowest" else frame["value"].arg_max()
    assert row is not None  # the frame has rows
    step, value = frame["step"][row], frame["value"][row]
    axes.plot([step], [value], "o", markersize=9, fillstyle="none", color=INK, markeredgewidth=1)
    axes.margins(y=0.22)
    middle = (frame["step"][0] + frame["step"][-1]) / 2
    axes.annotate(
        f"{best} {value:.4g}, step {step}",
        (step, value),
        xytext=(-4 if step > middle else 4, 9 if best == "highest" else -9),
        textcoords="offset points",
        ha="right" if step > middle else "left",
        va="bottom" if best == "highest" else "top",
        fontsize=8,
        color=INK,
    )
