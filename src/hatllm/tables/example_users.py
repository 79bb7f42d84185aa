"""Example users as text: what they had, what came next, what a model answered."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from hatllm.runs.cell import Cell
from hatllm.runs.run_files import EXAMPLES_FILE, ITEMS_FILE, read_predictions

TITLE_WIDTH = 88  # characters of a title that are printed
NUM_HISTORY = 10  # last history items that are printed
NUM_ANSWERS = 5


def pick_examples(predictions: Sequence[pl.DataFrame], num: int, k: int = 10) -> list[int]:
    """Examples worth looking at: of different users, those where some model hits first.

    A choice for the eye and not a sample: it flatters every model shown.

    Args:
        predictions: Predictions tables of the same examples, one a model.
        num: Examples wanted.
        k: A hit is a target among the first ``k`` titles.

    Returns:
        At most ``num`` example ids.
    """
    tables = [table.select("example_id", "user_id", "target_rank") for table in predictions]
    best = pl.concat(tables).group_by("example_id").agg(pl.col("user_id", "target_rank").min())
    missed = (pl.col("target_rank") <= k).fill_null(False).not_()
    ordered = best.with_columns(missed=missed).sort("missed", "example_id")
    of_users = ordered.unique("user_id", keep="first", maintain_order=True)
    return of_users["example_id"].head(num).to_list()


def example_users(runs: Sequence[Cell], labels: Sequence[str], n: int = 3) -> str:
    """Example users of several arms as text, the answers of the last label listed.

    Args:
        runs: Finished ones, with ``examples.parquet`` and ``items.parquet`` in their folders.
        labels: Arms whose ranks are shown; the top five are those of the last one.
        n: Users; those for whom some arm hits come first.

    Returns:
        One block of text: history titles, the true next title, its ranks, the top five.

    Raises:
        ValueError: If a label has no run.
    """
    first: dict[str, Cell] = {}
    for run in runs:
        if run.label not in first or run.seed < first[run.label].seed:
            first[run.label] = run
    missing = [label for label in labels if label not in first]
    if missing or not labels:
        raise ValueError(f"labels={list(labels)} must be among {', '.join(first)}")
    predictions = {label: read_predictions(first[label].folder) for label in labels}
    folder = first[labels[-1]].folder
    return describe_examples(
        pick_examples(list(predictions.values()), n),
        pl.read_parquet(folder / EXAMPLES_FILE),
        pl.read_parquet(folder / ITEMS_FILE),
        predictions,
        shown=labels[-1],
    )


def describe_examples(
    example_ids: Sequence[int],
    examples: pl.DataFrame,
    items: pl.DataFrame,
    predictions: Mapping[str, pl.DataFrame],
    shown: str,
) -> str:
    """One paragraph an example: history titles, true next title, ranks, top five answers.

    Args:
        example_ids: Which examples.
        examples: example_id, history, target; in run folders source_user_id, the user in the source
            files, too.
        items: item_id, title.
        predictions: Label -> predictions table.
        shown: The label whose answers are listed.

    Returns:
        Plain text.
    """
    titles = dict(items.select("item_id", "title").iter_rows())
    blocks = []
    for number, example_id in enumerate(example_ids, start=1):
        example = _row(examples, example_id)
        rows = {label: _row(table, example_id) for label, table in predictions.items()}
        user = example.get("source_user_id", rows[shown]["user_id"])
        head = f"{number}. user {user}, example {example_id}"
        blocks.append("\n".join([head, *_body(example, rows, shown, titles)]))
    return "\n\n".join(blocks)


def _body(
    example: dict[str, Any],
    rows: dict[str, dict[str, Any]],
    shown: str,
    titles: dict[int, str],
) -> list[str]:
    """The lines under an example's heading."""
    history = example["history"]
    skipped = max(0, len(history) - NUM_HISTORY)
    lines = ["  history, oldest first:" + (f" ({skipped} earlier left out)" if skipped else "")]
    lines += [f"    {_title(titles, item)}" for item in history[skipped:]]
    lines += ["  true next item:", f"    {_title(titles, example['target'])}"]
    ranks = ", ".join(f"{label} {row['target_rank'] or '–'}" for label, row in rows.items())
    lines += [f"  its rank: {ranks}", f"  top {NUM_ANSWERS} by {shown}:"]
    for rank, item in enumerate(rows[shown]["top_items"][:NUM_ANSWERS], start=1):
        mark = "*" if rank == rows[shown]["target_rank"] else " "
        lines.append(f"  {mark} {rank}. {_title(titles, item)}")
    return lines


def _title(titles: dict[int, str], item_id: int) -> str:
    return textwrap.shorten(titles.get(item_id, f"item {item_id}"), TITLE_WIDTH, placeholder=" …")


def _row(table: pl.DataFrame, example_id: int) -> dict[str, Any]:
    rows = table.filter(pl.col("example_id") == example_id)
    if rows.is_empty():
        raise ValueError(f"example_id={example_id} is missing from one of the run's tables")
    return rows.row(0, named=True)
