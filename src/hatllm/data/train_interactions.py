"""What train holds, each interaction once: counted, and as the sequences that id models learn from.

Train rows overlap: windows of one user with stride 1 show an interaction up to eleven times. Tables
of interactions tell which ones train holds (``split.train_interactions``); prepared windows are
laid together again.
"""

import numpy as np
import polars as pl

from hatllm.data.split import lists_of, with_places


def interactions_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The fewest interactions that explain some rows: the windows of a user laid together.

    A user's rows are taken by the target's time, equal ones in their order. Each is laid on what
    those before it gave, by the longest overlap: as many of the newest items as are the first items
    of its history. Its target is always new. Rows that follow each other with stride 1, as those of
    all protocols do before sampling, so give back their sequence exactly, repeated items or not.

    Args:
        rows: user_id, history (oldest first), target, timestamp.

    Returns:
        user_id, item_id, place (from 0, in the user's sequence), in sequence order.
    """
    ordered = rows.sort("user_id", "timestamp", maintain_order=True)
    sequences: dict[int, list[int]] = {}
    for user, history, target in ordered.select("user_id", "history", "target").iter_rows():
        sequence = sequences.setdefault(user, [])
        sequence += [*history[_overlap(sequence, history) :], target]
    table = {"user_id": list(sequences), "item_id": list(sequences.values())}
    lists = pl.DataFrame(table, schema={"user_id": pl.Int64, "item_id": pl.List(pl.Int64)})
    return with_places(lists.explode("item_id"))


def _overlap(sequence: list[int], history: list[int]) -> int:
    """The largest number of last items of a sequence that are the first items of a history."""
    for length in range(min(len(sequence), len(history)), 0, -1):
        if sequence[-length:] == history[:length]:
            return length
    return 0


def item_counts(item_ids: pl.Series) -> pl.DataFrame:
    """How often each item stands in a column: item_id Int64 and count Int64, those that occur."""
    counts = item_ids.cast(pl.Int64).alias("item_id").value_counts()
    return counts.select("item_id", pl.col("count").cast(pl.Int64))


def transition_counts(interactions: pl.DataFrame) -> pl.DataFrame:
    """How often one item comes right after another in a train sequence.

    Args:
        interactions: user_id, item_id, place, in sequence order.

    Returns:
        item_id, next_item, count, all Int64; those that occur, by item, then by the next one.
    """
    pairs = interactions.select(
        pl.col("item_id").cast(pl.Int64),
        next_item=pl.col("item_id").cast(pl.Int64).shift(-1),
        is_pair=pl.col("user_id") == pl.col("user_id").shift(-1),
    )
    counts = pairs.filter("is_pair").group_by("item_id", "next_item").agg(count=pl.len())
    return counts.with_columns(pl.col("count").cast(pl.Int64)).sort("item_id", "next_item")


def sequence_rows(
    interactions: pl.DataFrame, max_history_items: int, every_position: bool
) -> pl.DataFrame:
    """Each user's train sequence as rows that make every interaction but the first a target once.

    Args:
        interactions: user_id, item_id, place, in sequence order.
        max_history_items: Longest history.
        every_position: The model learns from every next item of a row: the sequence is cut, from
            its end, into pieces that share one item, the target of one and the oldest history item
            of the next. Otherwise it learns from the target alone: one row a target.

    Returns:
        user_id, history (1 to ``max_history_items`` items, oldest first), target; by user, oldest
        first.
    """
    place = interactions["place"].to_numpy()
    length = interactions.select(pl.len().over("user_id")).to_series().to_numpy().astype(np.int64)
    step = max_history_items if every_position else 1
    (targets,) = np.nonzero((place > 0) & ((length - 1 - place) % step == 0))
    items = interactions["item_id"].to_numpy()
    before = np.minimum(place[targets], max_history_items)
    return pl.DataFrame(
        {
            "user_id": interactions["user_id"].to_numpy()[targets],
            "history": lists_of(items, targets - before, before),
            "target": items[targets],
        }
    )
