"""Preparing data: source files to examples, titles to tokens and trie.

    python -m experiments.speed.prepare                             # sports, toys, msl_books
    python -m experiments.speed.prepare --quick                    # ml100k, which needs no folder

Each data set in a process of its own with an empty cache; files are read from `data_root` (or
HATLLM_DATA_ROOT), nothing is fetched but the tokenizer, where it is not there yet.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
from hatllm.figures.saving import BLUE, GREEN, GREY, ORANGE, tidy
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


class _Preparation:
    """One data set from its files; each of PARTS but its ``_s`` is a method."""

    def __init__(self, arguments: argparse.Namespace, cache: Path) -> None:
        words = (f"data={arguments.prepare}", f"model={MODELS[arguments.model]}", *ALL_ROWS)
        config = composed(*words, *arguments.set)
        self.tokenizer = load_tokenizer(config.model, cache_root(config))
        self.config = composed(*words, *arguments.set, f"cache_root={cache}")
        self.seconds: dict[str, float] = {}
        self.num_tokens = 0

    def everything(self) -> None:
        for part in PARTS:
            self.seconds[part] = seconds_of(getattr(self, part.removesuffix("_s")), "cpu")

    def tables(self) -> None:
        self.dataset = load_dataset(self.config)

    def tokenise(self) -> None:
        ids, titles = (self.dataset.items[name].to_list() for name in ("item_id", "title"))
        self.book = build_prompt_book(self.tokenizer, self.config.data.prompt, ids, titles)

    def trie(self) -> None:
        self.num_titles = Catalogue.of(self.book).trie.num_leaves

    def lengths(self) -> None:
        for frame in self.dataset.splits.values():
            rows = Examples.of(frame, self.config.data.max_history_items)
            self.num_tokens += int(rows.prompt_lengths(self.book, with_target=True).sum())


def _prepare(arguments: argparse.Namespace) -> Row:
    """Prepare one data set from its files."""
    with tempfile.TemporaryDirectory() as folder:
        made = _Preparation(arguments, Path(folder))
        memory = peak_above_start(made.everything, "cpu")
    num_rows = sum(frame.height for frame in made.dataset.splits.values())
    return {
        "variant": arguments.prepare,
        "rows": num_rows,
        "titles": made.num_titles,
        "tokens": made.num_tokens,
        **made.seconds,
        "seconds": sum(made.seconds.values()),
        "rows_per_s": num_rows / sum(made.seconds.values()),
        **memory,
    }


def _draw(rows: Sequence[Row]) -> Figure:
    """A stacked bar a data set."""
    figure = Figure(figsize=(7.0, 1.6 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    tidy(axes, "seconds from source files to prompts' lengths", grid="x")
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
