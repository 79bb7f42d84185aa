"""The item trie at scale: building a million titles, and decoding against more and more of them.

    python -m experiments.speed.trie                    # full size, resumable
    python -m experiments.speed.trie --quick            # minutes
    python -m experiments.speed.trie --model tiny       # seconds

The titles are recombined from the real ones (`titles.py`). Built is in a process of its own, so
that its peak memory is its own.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.speed.floor import seconds_of
from experiments.speed.memory import in_own_process, peak_above_start
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
from experiments.speed.titles import catalogue_with, recombined, trie_of
from experiments.speed.workload import Workload
from hatllm.data.prompt import Ragged
from hatllm.figures.saving import BLUE, FAINT, GREEN, GREY, INK, ORANGE, tidy

SEARCHES = {  # settings, users of a batch
    "hatllm/trie": (("mask=hatllm", "decode.normalize=trie"), 8),
    "hatllm/trie@32": (("mask=hatllm", "decode.normalize=trie"), 32),
    "causal/vocab": (("mask=causal", "decode.normalize=vocab"), 8),
}
QUICK = {"sizes": [1_000_000], "users": 8, "repeats": 1}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(_parser(), argv, QUICK)
    if arguments.build is not None:
        print(json.dumps(_build(arguments.build)))
        return
    record = Record("trie", arguments, argv)
    workload = Workload(arguments, arguments.dtype, "scale=published", "model.tuning=none")
    real = workload.parts.catalogue.trie.num_leaves
    sizes = [real, *(size for size in sorted(arguments.sizes) if size > real)]
    test = workload.rows("test", arguments.users)
    rows: list[Row] = []
    for size in tqdm(sizes, desc="catalogues"):
        titles = recombined(workload.book.target, size, arguments.seed)
        built = record.measure(f"build/{size}", lambda t=titles: _built_alone(t))
        catalogue = catalogue_with(workload.book, titles)
        for name, (words, per_batch) in SEARCHES.items():
            config = workload.config(*words)
            parts = [
                record.measure(
                    f"{name}/{size}/{place}",
                    lambda c=config, k=catalogue, b=batch: searched(
                        workload, c, k, b, arguments.repeats
                    ),
                )
                for place, batch in enumerate(workload.batches_of_users(test, per_batch))
            ]
            rows.append(_row(name, size, built, parts, rows))
        record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    record.draw(_draw(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.trie")
    add_arguments(parser)
    add_workload_arguments(parser)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[30_000, 100_000, 300_000, 1_000_000],
        help="titles, beside the real catalogue",
    )  # fmt: skip
    parser.add_argument("--users", type=int, default=32, help="users timed")
    parser.add_argument("--repeats", type=int, default=5, help="timings of a batch; the median")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    return parser


def _built_alone(titles: Ragged) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "titles.npz"
        np.savez(path, flat=titles.flat, offset=titles.offset)
        return in_own_process("trie", ["--build", str(path)])


def _build(path: Path) -> Row:
    """Seconds and memory of one build, its input already in memory."""
    arrays = np.load(path)
    titles = Ragged(arrays["flat"], arrays["offset"])
    # torch's first sort or unique starts threads and takes memory that is not the trie's.
    trie_of(Ragged(titles.flat[: titles.offset[1]], titles.offset[:2]))
    made = []
    seconds: list[float] = []
    memory = peak_above_start(
        lambda: seconds.append(seconds_of(lambda: made.append(trie_of(titles)), "cpu")), "cpu"
    )
    arrays_of_trie = [value for value in vars(made[0]).values() if isinstance(value, torch.Tensor)]
    return {
        "seconds": seconds[0],
        "input_mb": titles.flat.nbytes / 2**20,
        "trie_mb": sum(array.nbytes for array in arrays_of_trie) / 2**20,
        "nodes": made[0].num_nodes,
        "branching_nodes": int(made[0].is_branching_N.sum()),
        **memory,
    }


def _row(name: str, size: int, built: Row, parts: Sequence[Row], before: Sequence[Row]) -> Row:
    users = sum(part["users"] for part in parts)
    seconds = sum(statistics.median(part["seconds"]) for part in parts) / users
    smallest = next((row for row in before if row["variant"] == name), None)
    return {
        "variant": name,
        "titles": size,
        "nodes": built["nodes"],
        "branching_nodes": built["branching_nodes"],
        "build_s": built["seconds"],
        "build_extra_mb": built["extra_mb"],
        "build_peak_mb": built["peak_mb"],
        "trie_mb": built["trie_mb"],
        "users": users,
        "users_per_s": 1 / seconds,
        "seconds_per_user": seconds,
        "tokens_per_user": sum(part["tokens"] for part in parts) / users,
        "passes_per_user": sum(part["passes"] for part in parts) / users,
        "ratio_to_smallest": 1.0 if smallest is None else seconds / smallest["seconds_per_user"],
    }


def _draw(rows: Sequence[Row]) -> Figure:
    """Build seconds, and decoding seconds with their growth, against the catalogue's size."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    build, decode = figure.subplots(1, 2)
    for axes, title in ((build, "building the trie"), (decode, "decoding")):
        tidy(axes, title)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("titles", color=GREY)
    once = [row for row in rows if row["variant"] == next(iter(SEARCHES))]
    sizes = [row["titles"] for row in once]
    build.plot(sizes, [row["build_s"] for row in once], "o-", color=BLUE, markersize=4)
    build.set_ylabel("seconds", color=GREY)
    for row in once:
        build.annotate(
            f"{row['build_extra_mb']:.0f} MB", (row["titles"], row["build_s"]), (0, 6),
            textcoords="offset points", fontsize=8, color=INK, ha="center",
        )  # fmt: skip
    for name, colour, above in zip(SEARCHES, (BLUE, GREEN, ORANGE), (6, -14, 6), strict=True):
        line = [row for row in rows if row["variant"] == name]
        values = [row["seconds_per_user"] for row in line]
        decode.plot(sizes, values, "o-", color=colour, markersize=4, label=name)
        decode.annotate(
            f"×{line[-1]['ratio_to_smallest']:.2f}", (sizes[-1], values[-1]), (0, above),
            textcoords="offset points", fontsize=8.5, color=colour, ha="center",
        )  # fmt: skip
    decode.set_ylabel("seconds a user", color=GREY)
    decode.set_ylim(bottom=0)
    decode.legend(frameon=False, fontsize=8.5)
    build.margins(y=0.2)
    return figure


COLUMNS: Columns = {
    "variant": lambda row: row["variant"],
    "titles": number("titles", ",d"),
    "nodes": number("nodes", ",d"),
    "branching": number("branching_nodes", ",d"),
    "build s": number("build_s", ".2f"),
    "build, extra MB": number("build_extra_mb", ".0f"),
    "trie MB": number("trie_mb", ".0f"),
    "s/user": number("seconds_per_user"),
    "× smallest": number("ratio_to_smallest", ".2f"),
    "tokens/user": number("tokens_per_user", ".0f"),
    "passes/user": number("passes_per_user", ".2f"),
}
CAPTION = (
    "extra MB: peak while building above the titles' own tokens in memory, a process of its own. "
    "× smallest: seconds a user against the real catalogue's. @32: 32 users a batch instead of 8. "
    "passes: of the whole model, a batch's shared by its users."
)

if __name__ == "__main__":
    main(sys.argv[1:])
