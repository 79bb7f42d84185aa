"""How all figures of the report look; drawn through matplotlib's object API, without pyplot."""

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hatllm.files import written_whole

INK, GREY, FAINT = "#22252b", "#7b818c", "#e4e6ea"
BLUE, ORANGE, GREEN = "#2f6db5", "#d9772b", "#3a8f5c"
DOTS_PER_INCH = 160


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG on a white ground and return its path."""
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return path


def tidy(axes: Axes, title: str = "", grid: Literal["x", "y"] | None = None) -> None:
    """Thin grey axes without a box, a left-aligned title, faint lines from one axis, x or y."""
    if grid is not None:
        axes.grid(axis=grid, color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5, length=3, color=GREY)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
