"""Draw docs/architecture.png: the way of the data through the rooms, from a file to a table.

python docs/draw_architecture.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hatllm.figures.saving import BLUE, GREEN, GREY, INK, ORANGE, save_figure

# room: column and row of its box, its colour, what it does
ROOMS = {
    "source files": (0, 1, GREY, "CSV, JSON lines, Parquet"),
    "data/": (1, 1, BLUE, "tables, splits,\nprompts, batches"),
    "masks/": (2, 0, ORANGE, "which key a query sees,\nlayer by layer"),
    "model/": (2, 1, ORANGE, "backbone under masks\nfast/: packed, exact"),
    "baselines/": (3, 2, BLUE, "popularity, kNN,\nSASRec, ..."),
    "losses/": (3, 0, ORANGE, "lml, msl, msl_ats, sdpo"),
    "decode/": (3, 1, ORANGE, "trie, beam, exact, ...\nfast/: shared states"),
    "training/": (4, 1, GREEN, "module, trainer,\ncheckpoints, loggers"),
    "runs/": (5, 1, GREY, "one folder a run: weights,\npredictions, hashes"),
    "recommend/": (6, 0, GREEN, "answers of a finished run"),
    "metrics/": (6, 1, BLUE, "HR, NDCG, intervals"),
    "tables/ figures/": (7, 1, BLUE, "finished runs side by side"),
    "config/": (4, 2, GREY, "every setting, checked"),
    "many/": (5, 2, GREEN, "the cells of a sweep,\neach once"),
    "plan/": (6, 2, GREEN, "what it will cost"),
}
ARROWS = (
    ("source files", "data/"), ("data/", "model/"), ("data/", "baselines/"), ("masks/", "model/"),
    ("model/", "decode/"), ("model/", "losses/"), ("losses/", "training/"),
    ("decode/", "training/"), ("baselines/", "training/"), ("config/", "training/"),
    ("training/", "runs/"),
    ("many/", "training/"), ("runs/", "recommend/"), ("runs/", "metrics/"),
    ("metrics/", "tables/ figures/"),
)  # fmt: skip
LEGEND = (
    "orange: what the project exists for    blue: the field's common ground    "
    "green: work that runs    grey: what is written down"
)
WIDTH, HEIGHT = 1.62, 0.74  # of a box, in steps of the grid of 2 by 1.25


def middle(room: str) -> tuple[float, float]:
    """Where the middle of a room's box lies."""
    column, row, _, _ = ROOMS[room]
    return 2.0 * column, -1.25 * row


def _ends(
    start: tuple[float, float], end: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow leaves one box and meets another: at sides that face each other."""
    (x, y), (u, v) = start, end
    if u <= x:  # up or down
        sign = 1 if v > y else -1
        return (x, y + sign * HEIGHT / 2), (u + 0.4 * (x - u), v - sign * HEIGHT / 2)
    if v < y and u - x > 3:  # far down to the right: below the boxes between
        return (x, y - HEIGHT / 2), (u - WIDTH / 2, v)
    return (x + WIDTH / 2, y), (u - WIDTH / 2, v)


def draw() -> Figure:
    """Boxes from left to right, arrows along the way of the data."""
    figure = Figure(figsize=(16, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-1.0, 15.0)
    axes.set_ylim(-3.3, 0.6)
    for start, end in ARROWS:
        tail, head = _ends(middle(start), middle(end))
        axes.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.2})
    for room, (_, _, colour, what) in ROOMS.items():
        x, y = middle(room)
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        axes.add_patch(
            FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08",
                           facecolor="white", edgecolor=colour, linewidth=1.8)
        )  # fmt: skip
        axes.text(x, y + 0.19, room, ha="center", va="center", weight="bold", color=INK)
        axes.text(x, y - 0.12, what, ha="center", va="center", fontsize=8, color=GREY)
    axes.text(-0.8, -3.2, LEGEND, color=GREY, fontsize=9)
    return figure


if __name__ == "__main__":
    save_figure(draw(), Path(__file__).with_name("architecture.png"))
