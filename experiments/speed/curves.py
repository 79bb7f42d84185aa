"""Cost of a user against history length, catalogue size and beam width, for `hatllm/trie`.

    python -m experiments.speed.curves                  # full size, resumable
    python -m experiments.speed.curves --quick          # minutes
    python -m experiments.speed.curves --model tiny     # seconds

Histories are drawn from the catalogue, because few users have read fifty books; the cost of a
history is that of its tokens. One thing varies at a time; the others stay at 10 items, the real
catalogue and a beam of 10.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.speed.record import (
    Columns,
    Record,
    Row,
    add_arguments,
    add_workload_arguments,
    number,
    parse,
)
from experiments.speed.timing import searched
from experiments.speed.titles import catalogue_with, recombined
from experiments.speed.workload import Workload, with_beam
from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prompt import Batch
from hatllm.decode.catalogue import Catalogue
from hatllm.figures.saving import BLUE, FAINT, GREY, ORANGE, tidy

VARIANT = "hatllm/trie"
WORDS = ("mask=hatllm", "decode.normalize=trie")
HISTORY = 10  # items, where the history does not vary
AXES = {"history": "history items", "titles": "titles of the catalogue", "beam": "beam width"}
QUICK = {
    "histories": [1, 10, 50], "sizes": [100_000], "beams": [1, 10, 50], "users": 8, "repeats": 1,
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(_parser(), argv, QUICK)
    record = Record("curves", arguments, argv)
    workload = Workload(arguments, arguments.dtype, "scale=published", "model.tuning=none")
    rows: list[Row] = []
    for axis, value, config, catalogue, batches in tqdm(_points(workload, arguments), unit="point"):
        parts = [
            record.measure(
                f"{axis}/{value}/{place}",
                lambda c=config, k=catalogue, b=batch: searched(
                    workload, c, k, b, arguments.repeats
                ),
            )
            for place, batch in enumerate(batches)
        ]
        users = sum(part["users"] for part in parts)
        seconds = sum(statistics.median(part["seconds"]) for part in parts) / users
        rows.append(
            {
                "variant": VARIANT,
                "axis": axis,
                "value": value,
                "users": users,
                "users_per_s": 1 / seconds,
                "seconds_per_user": seconds,
                "tokens_per_user": sum(part["tokens"] for part in parts) / users,
            }
        )
        record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    record.draw(_draw(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.curves")
    add_arguments(parser)
    add_workload_arguments(parser)
    several = {"type": int, "nargs": "+"}
    parser.add_argument("--histories", **several, default=[1, 2, 5, 10, 20, 30, 40, 50])
    parser.add_argument("--sizes", **several, default=[1000, 3000, 30_000, 100_000, 300_000])
    parser.add_argument("--beams", **several, default=[1, 2, 5, 10, 20, 30, 40, 50])
    parser.add_argument("--users", type=int, default=16, help="users of a point")
    parser.add_argument("--repeats", type=int, default=3, help="timings of a batch; the median")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def _points(
    workload: Workload, arguments: argparse.Namespace
) -> Iterator[tuple[str, int, Config, Catalogue, list[Batch]]]:
    """Axis, value, settings, catalogue and users of every point."""
    config, catalogue = workload.config(*WORDS), workload.parts.catalogue
    usual = _users(workload, arguments.users, HISTORY)
    for length in arguments.histories:
        yield "history", length, config, catalogue, _users(workload, arguments.users, length)
    real = catalogue.trie.num_leaves
    for size in sorted({*arguments.sizes, real}):
        titles = recombined(workload.book.target, size, arguments.seed)
        yield "titles", size, config, catalogue_with(workload.book, titles), usual
    for width in arguments.beams:
        yield "beam", width, with_beam(config, width), catalogue, usual


def _users(workload: Workload, num_users: int, length: int) -> list[Batch]:
    """Users of so many items; shorter histories are the newest items of longer ones."""
    random = np.random.default_rng(workload.seed)
    item_ids = workload.book.item_id_I
    drawn = random.choice(item_ids, (num_users, 1 + max(50, length)))
    histories = [row[1 : 1 + length] for row in drawn]
    return workload.batches_of_users(Examples(np.arange(num_users), histories, drawn[:, 0]), 8)


def _draw(rows: Sequence[Row]) -> Figure:
    """Three panels: seconds a user on the left axis, tokens a user on the right one."""
    figure = Figure(figsize=(11.0, 3.3), layout="constrained")
    for axes, (axis, label) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        line = [row for row in rows if row["axis"] == axis]
        tidy(axes, label)
        axes.grid(color=FAINT, linewidth=0.8)
        tokens: Axes = axes.twinx()
        tidy(tokens)
        sides = (axes, "seconds_per_user", BLUE), (tokens, "tokens_per_user", ORANGE)
        for side, key, colour in sides:
            values = [row[key] for row in line]
            side.plot([row["value"] for row in line], values, "o-", color=colour, markersize=4)
            side.set_ylim(0, 1.1 * max(values))
            side.tick_params(axis="y", colors=colour)
        if axis == "titles":
            axes.set_xscale("log")
        axes.set_xlabel(label, color=GREY)
    figure.supylabel("seconds a user (blue)", fontsize=9, color=BLUE)
    tokens.set_ylabel("tokens a user (orange)", color=ORANGE)
    return figure


COLUMNS: Columns = {
    "varied": lambda row: AXES[row["axis"]],
    "value": number("value", ",d"),
    "s/user": number("seconds_per_user"),
    "users/s": number("users_per_s"),
    "tokens/user": number("tokens_per_user", ".0f"),
}
CAPTION = (
    f"{VARIANT}; what does not vary: {HISTORY} history items, the real catalogue, a beam of 10. "
    "tokens/user: prompt after the constant prefix and titles, each through all layers once."
)

if __name__ == "__main__":
    main(sys.argv[1:])
