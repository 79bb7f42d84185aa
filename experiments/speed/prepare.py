"""Preparing data: source files to examples, titles to tokens and trie.

    python -m experiments.speed.prepare                             # sports, toys, msl_books
    python -m experiments.speed.prepare --quick                    # ml100k, which needs no folder

Each data set in a process of its own with an empty cache; files are read from `data_root` (or
HATLLM_DATA_ROOT), nothing is fetched but the tokenizer, where it is not there yet.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    number,
    parse,
)
from experiments.speed.workload import ALL_ROWS, MODELS, composed
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import cache_root, load_dataset
from hatllm.data.prompt import build_prompt_book
from hatllm.decode.catalogue import Catalogue
from hatllm.figures.saving import BLUE, FAINT, GREEN, GREY, ORANGE, tidy
from hatllm.model.backbone import load_tokenizer

PARTS = ("tables_s", "tokenise_s", "trie_s", "lengths_s")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark with a command line."""
    arguments = parse(_parser(), argv, {"names": ["ml100k"]})
    if arguments.prepare is not None:
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        print(json.dumps(_prepare(arguments)))
        return
    record = Record("prepare", arguments, argv)
    rows: list[Row] = []
    for name in tqdm(arguments.names, unit="data set"):
        words = ["--prepare", name, *argv]
        rows.append(record.measure(name, lambda w=words: in_own_process("prepare", w)))
        record.write_rows(rows)
    record.show(COLUMNS, CAPTION)
    record.draw(_draw(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed.prepare")
    add_arguments(parser)
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2", help="its tokenizer")
    parser.add_argument(
        "--names", nargs="+", default=["sports", "toys", "msl_books"], help="choices of conf/data"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", help="a setting of run.py"
    )
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    return parser


def _prepare(arguments: argparse.Namespace) -> Row:
    """Prepare one data set from its files."""
    words = (f"data={arguments.prepare}", f"model={MODELS[arguments.model]}", *ALL_ROWS)
    config = composed(*words, *arguments.set)
    tokenizer = load_tokenizer(config.model, cache_root(config))
    folder = Path(tempfile.mkdtemp())
    empty = composed(*words, *arguments.set, f"cache_root={folder}")
    made: dict[str, Any] = {}

    def tables() -> None:
        made["dataset"] = load_dataset(empty)

    def tokenise() -> None:
        items = made["dataset"].items
        made["book"] = build_prompt_book(
            tokenizer, config.data.prompt, items["item_id"].to_list(), items["title"].to_list()
        )

    def trie() -> None:
        made["trie"] = Catalogue.of(made["book"]).trie

    def lengths() -> None:
        made["tokens"] = 0
        for frame in made["dataset"].splits.values():
            rows = Examples.of(frame, config.data.max_history_items)
            made["tokens"] += int(rows.prompt_lengths(made["book"], with_target=True).sum())

    seconds: dict[str, float] = {}

    def everything() -> None:
        for name, part in zip(PARTS, (tables, tokenise, trie, lengths), strict=True):
            seconds[name] = seconds_of(part, "cpu")

    memory = peak_above_start(everything, "cpu")
    shutil.rmtree(folder)
    num_rows = sum(frame.height for frame in made["dataset"].splits.values())
    return {
        "variant": arguments.prepare,
        "rows": num_rows,
        "titles": made["trie"].num_leaves,
        "tokens": made["tokens"],
        **seconds,
        "seconds": sum(seconds.values()),
        "rows_per_s": num_rows / sum(seconds.values()),
        **memory,
    }


def _draw(rows: Sequence[Row]) -> Figure:
    """A stacked bar a data set."""
    figure = Figure(figsize=(7.0, 1.6 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "seconds from source files to prompts' lengths")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    begin = [0.0] * len(rows)
    for part, colour in zip(PARTS, (BLUE, ORANGE, GREEN, GREY), strict=True):
        widths = [row[part] for row in rows]
        label = part.removesuffix("_s")
        axes.barh(range(len(rows)), widths, left=begin, color=colour, height=0.6, label=label)
        begin = [start + width for start, width in zip(begin, widths, strict=True)]
    for height, row in enumerate(rows):
        text = f" {row['rows_per_s']:,.0f} rows/s"
        axes.text(row["seconds"], height, text, va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(row["seconds"] for row in rows))
    axes.set_xlabel("seconds", color=GREY)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


COLUMNS: Columns = {
    "data": lambda row: row["variant"],
    "rows": number("rows", ",d"),
    "titles": number("titles", ",d"),
    "tokens": number("tokens", ",d"),
    "tables s": number("tables_s", ".2f"),
    "tokenise s": number("tokenise_s", ".2f"),
    "trie s": number("trie_s", ".2f"),
    "lengths s": number("lengths_s", ".2f"),
    "rows/s": number("rows_per_s", ",.0f"),
    "peak MB": number("peak_mb", ",.0f"),
    "of that, after imports": number("extra_mb", ",.0f"),
}
CAPTION = (
    "rows: examples of all splits. tokens: of all prompts with their titles. tables: parse, "
    "filter, split, save. A process of its own for each data set, its cache empty."
)

if __name__ == "__main__":
    main(sys.argv[1:])
