"""task=recommend: the next titles for histories that a user types or a file holds."""

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.decode.scorer import build_scorers
from hatllm.decode.search import Search
from hatllm.tasks.evaluate import load_run
from hatllm.tasks.run_folder import load_items, write_table

console = Console()


def recommend(config: Config) -> pl.DataFrame:
    """Answer for ``task.history`` and ``task.histories_file``.

    Args:
        config: A finished run's settings with the command line's on top.

    Returns:
        One row an answer: row (of the input), rank, item_id, title, log_prob. Histories from a
        file are answered into ``recommendations.parquet`` in the run folder.

    Raises:
        ValueError: If there is no history, or an item is not in the catalogue (names the nearest).
    """
    assert config.task.run_folder is not None
    folder = Path(config.task.run_folder)
    items = load_items(folder)
    histories = [resolve_history(row, items) for row in _typed_histories(config)]
    answers = _answer(config, histories, items)
    if config.task.histories_file is not None:
        write_table(folder / "recommendations.parquet", answers)
        console.print(f"{len(histories)} histories answered: {folder / 'recommendations.parquet'}")
    else:
        console.print(_table(answers, histories[0], items))
    return answers


def _typed_histories(config: Config) -> list[list[Any]]:
    if config.task.histories_file is None:
        if not config.task.history:
            raise ValueError(
                'task=recommend needs task.history=\'["Title one","Title two"]\' or '
                "task.histories_file=FILE"
            )
        return [list(config.task.history)]
    path = Path(config.task.histories_file)
    if not path.exists():
        raise ValueError(f"task.histories_file={str(path)!r}: no such file")
    match path.suffix:
        case ".parquet":
            frame = pl.read_parquet(path)
        case ".jsonl":
            frame = pl.read_ndjson(path)
        case ".csv":
            frame = pl.read_csv(path)
        case _:
            raise ValueError(f"task.histories_file={str(path)!r} must be .csv, .jsonl or .parquet")
    if "history" not in frame.columns:
        raise ValueError(
            f"task.histories_file={str(path)!r} needs a column 'history', it has "
            f"{', '.join(frame.columns)}"
        )
    if frame["history"].dtype == pl.Utf8:  # CSV: a JSON list in a cell
        return [json.loads(cell) for cell in frame["history"].to_list()]
    return frame["history"].to_list()


def resolve_history(history: list[Any], items: pl.DataFrame) -> list[int]:
    """Item ids of a history given as titles, ids of the source files, or item ids.

    Args:
        history: Oldest first.
        items: item_id, title, source_id.

    Returns:
        Item ids; of items that share a title the first.

    Raises:
        ValueError: If an entry is none of these; names the nearest titles.
    """
    if not history:
        raise ValueError("a history must hold at least one item")
    rows = list(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    by_title = {title: item for item, title in reversed(rows)}
    by_folded = {title.casefold(): item for item, title in reversed(rows)}
    by_source = dict(zip(items["source_id"].to_list(), items["item_id"].to_list(), strict=True))
    found = []
    for entry in map(str, history):
        item = by_title.get(entry, by_folded.get(entry.casefold(), by_source.get(entry)))
        if item is None:
            near = difflib.get_close_matches(entry, by_title, n=3, cutoff=0.4)
            hint = f"; near: {', '.join(map(repr, near))}" if near else ""
            raise ValueError(f"task.history: {entry!r} is neither a title nor an item id{hint}")
        found.append(item)
    return found


@torch.inference_mode()
def _answer(config: Config, histories: list[list[int]], items: pl.DataFrame) -> pl.DataFrame:
    parts, lm = load_run(config)
    book = parts.catalogue.book
    device = lm.output_embedding_VD.device
    newest = [np.asarray(h[-config.data.max_history_items :], np.int64) for h in histories]
    # Decoding asks for a target only to lay it after the prompt; here nothing follows it.
    anything = np.full(len(newest), book.item_id_I[0])
    examples = Examples(np.arange(len(newest)), newest, anything)
    title = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    if title.keys() != set(book.item_id_I.tolist()):
        raise ValueError(f"{config.task.run_folder}/items.parquet has other items than the data")
    scorers = build_scorers(lm, parts.catalogue, config, examples.prompt_lengths(book, False))
    find = Search(scorers, parts.catalogue, config.decode)
    rows = []
    size = config.decode.users_per_batch
    for start in tqdm(range(0, len(newest), size), desc="recommend", unit="batch"):
        chosen = np.arange(start, min(start + size, len(newest)))
        batch = examples.batch(book, chosen, config.mask.target_is_item, False).to(device)
        answers, _ = find(scorers.of(batch), [newest[row] for row in chosen])
        for user, row in enumerate(chosen.tolist()):
            for rank, leaf in enumerate(
                leaf for leaf in answers.leaf_BW[user].tolist() if leaf >= 0
            ):
                item = int(scorers.trie.items_of_leaf(leaf)[0])
                log_prob = float(answers.log_prob_BW[user, rank])
                rows.append((row, rank + 1, item, title[item], log_prob))
    schema = ["row", "rank", "item_id", "title", "log_prob"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _table(answers: pl.DataFrame, history: list[int], items: pl.DataFrame) -> Table:
    title = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    table = Table(title=escape("history: " + " → ".join(title[i] for i in history)))
    for column in ("rank", "title", "log-probability", "item id"):
        table.add_column(column)
    for row in answers.to_dicts():
        table.add_row(
            str(row["rank"]), escape(row["title"]), f"{row['log_prob']:.2f}", str(row["item_id"])
        )
    return table
