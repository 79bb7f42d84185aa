"""Cut interaction sequences into examples (history -> target) of train, valid and test.

Order. Users stand in the order of their ids, a user's rows in order of time, and rows of equal time
in the order of the source's file: every sort here is stable. With a day's resolution about half of
all neighbours in an Amazon history share a timestamp, so the file's order decides much.

Protocols. ``sliding_window``: windows of max_history_items + 1 with stride 1, a user who is not
longer than a window as one window, sorted by target time and cut 8:1:1. ``all_prefixes``: every
item with enough items before it is a target once; a user's last one is test, the one before valid,
the rest train. ``leave_one_out``: the same rows; models that learn from item ids are trained on
each user's train sequence instead of on these prefixes of it (see ``sequence_rows``).

Train interactions. What popularity, kNN, slices and models of item ids may know, each interaction
once. ``sliding_window``: those that stand in some train row; the cut is by the target's time, so
later items of the same user may be valid or test targets and are left out. ``all_prefixes`` and
``leave_one_out``: all before a user's last two, of users too short for a row, too.

Published rows. ``sliding_window`` on the 2014 Toys tables gives the published 38,344 / 4,793 /
4,794 rows one by one. With n rows the cuts are floor(0.8 n) and floor(0.9 n); rows of one day, and
even of one user, may lie on both sides of a cut; rows of equal target time keep the order user,
then time. The published ids are the ranks, from 1, of the surviving users and items among our ids.
"""

import hashlib

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")
EXAMPLE_COLUMNS = ("example_id", "user_id", "history", "target", "timestamp")

Int64Array = NDArray[np.int64]


def in_sequence_order(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort by user, then time, leaving ties in the order in which they come."""
    return interactions.sort("user_id", "timestamp", maintain_order=True)


def split_sequences(
    interactions: pl.DataFrame, protocol: str, max_history_items: int, min_history_items: int
) -> dict[str, pl.DataFrame]:
    """Cut sequences into the examples of each split by one of the three protocols.

    Args:
        interactions: user_id, item_id, timestamp (Int64) as of ``in_sequence_order``.
        protocol: ``sliding_window``, ``all_prefixes`` or ``leave_one_out``.
        max_history_items: Longest history; older items are left out.
        min_history_items: Shortest history; shorter ones make no example.

    Returns:
        Split name -> rows of EXAMPLE_COLUMNS; example_id counts through train, valid, test.
    """
    positions = _positions(interactions)
    match protocol:
        case "sliding_window":
            parts = _sliding_window(interactions, positions, max_history_items, min_history_items)
        case "all_prefixes" | "leave_one_out":
            parts = _by_distance_from_end(positions, min_history_items)
        case _:
            raise ValueError(f"data.protocol={protocol!r} is not a protocol")
    splits = {
        name: _examples(interactions, positions, targets, max_history_items)
        for name, targets in parts.items()
    }
    return with_example_ids(splits)


def train_interactions(
    interactions: pl.DataFrame, protocol: str, max_history_items: int, min_history_items: int
) -> pl.DataFrame:
    """The interactions of train, each once.

    Args:
        interactions: As for ``split_sequences``, and so are the others.
        protocol: One of the three protocols.
        max_history_items: Longest history.
        min_history_items: Shortest history.

    Returns:
        user_id, item_id, place (from 0, in the user's train sequence), in sequence order.
    """
    positions = _positions(interactions)
    if protocol != "sliding_window":
        return with_places(interactions.filter(positions["from_end"] >= 2))
    targets = _sliding_window(interactions, positions, max_history_items, min_history_items)
    rows = targets["train"]
    lengths = np.minimum(positions["place"].to_numpy()[rows], max_history_items)
    # +1 where a train row begins, -1 behind its target: the running sum counts the rows there.
    edges = np.zeros(interactions.height + 1, np.int64)
    np.add.at(edges, rows - lengths, 1)
    np.add.at(edges, rows + 1, -1)
    return with_places(interactions.filter(pl.Series(edges[:-1].cumsum() > 0)))


def with_places(interactions: pl.DataFrame) -> pl.DataFrame:
    """Return user_id, item_id and the place in the user's sequence, from 0, of ordered rows."""
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
    return interactions.select("user_id", "item_id", place=place)


def with_example_ids(splits: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Number the rows of train, valid and test from 0 in one series, first column."""
    numbered, start = {}, 0
    for name in SPLITS:
        rows = splits[name].drop("example_id", strict=False)
        ids = pl.Series("example_id", np.arange(start, start + rows.height), dtype=pl.Int64)
        numbered[name] = rows.insert_column(0, ids).select(EXAMPLE_COLUMNS)
        start += rows.height
    return numbered


def _positions(interactions: pl.DataFrame) -> pl.DataFrame:
    """Each row's place in its user's sequence, from the front and from the end (both from 0)."""
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
    length = pl.len().over("user_id").cast(pl.Int64)
    return interactions.select(place=place, length=length).with_columns(
        from_end=pl.col("length") - 1 - pl.col("place")
    )


def _rows_where(positions: pl.DataFrame, condition: pl.Expr) -> Int64Array:
    return positions.select(condition.arg_true().cast(pl.Int64)).to_series().to_numpy()


def _sliding_window(
    interactions: pl.DataFrame, positions: pl.DataFrame, max_history: int, min_history: int
) -> dict[str, Int64Array]:
    """Target rows by target time, cut 8:1:1; a user shorter than a window is one window."""
    place, from_end = pl.col("place"), pl.col("from_end")
    whole_user = (from_end == 0) & (place < max_history) & (place >= min_history)
    targets = _rows_where(positions, (place >= max_history) | whole_user)
    timestamps = interactions["timestamp"].to_numpy()[targets]
    targets = targets[np.argsort(timestamps, kind="stable")]
    first_cut, second_cut = len(targets) * 8 // 10, len(targets) * 9 // 10
    return {
        "train": targets[:first_cut],
        "valid": targets[first_cut:second_cut],
        "test": targets[second_cut:],
    }


def _by_distance_from_end(positions: pl.DataFrame, min_history: int) -> dict[str, Int64Array]:
    """A user's last target is test, the one before valid, all before these train.

    Each needs ``min_history`` items before it, so a short user may have a test example alone.
    """
    long_enough, from_end = pl.col("place") >= min_history, pl.col("from_end")
    return {
        "train": _rows_where(positions, long_enough & (from_end >= 2)),
        "valid": _rows_where(positions, long_enough & (from_end == 1)),
        "test": _rows_where(positions, long_enough & (from_end == 0)),
    }


def _examples(
    interactions: pl.DataFrame, positions: pl.DataFrame, targets: Int64Array, max_history: int
) -> pl.DataFrame:
    """The rows of ``targets`` with up to ``max_history`` items before each."""
    lengths = np.minimum(positions["place"].to_numpy()[targets], max_history)
    items = interactions["item_id"].to_numpy()
    return pl.DataFrame(
        {
            "user_id": interactions["user_id"].to_numpy()[targets],
            "history": lists_of(items, targets - lengths, lengths),
            "target": items[targets],
            "timestamp": interactions["timestamp"].to_numpy()[targets],
        },
        schema_overrides={"history": pl.List(pl.Int64)},
    )


def lists_of(values: Int64Array, starts: Int64Array, lengths: Int64Array) -> pl.Series:
    """``values[start : start + length]`` of each pair, as one list column."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    flat = values[np.repeat(starts, lengths) + within]
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat, type=pa.int64()))
    return pl.Series("history", pl.from_arrow(lists), dtype=pl.List(pl.Int64))


def sample_rows(examples: pl.DataFrame, num_rows: int | None, seed: int) -> pl.DataFrame:
    """Return ``num_rows`` random rows in their old order.

    Each row's rank is a hash of the seed and its example_id, so a smaller sample lies inside a
    larger one of the same seed, on every machine and every library version.

    Args:
        examples: Rows with a unique example_id.
        num_rows: Size of the sample; None, or more than there are, keeps all.
        seed: ``data.sample_seed``.
    """
    if num_rows is None or num_rows >= examples.height:
        return examples
    ranks = _ranks(examples["example_id"].to_numpy(), seed)
    rows = np.sort(np.argsort(ranks, kind="stable")[:num_rows])
    return examples[rows]


def _ranks(example_ids: np.ndarray, seed: int) -> np.ndarray:
    """Splitmix64 of each id, keyed by the seed: independent uniform 64-bit numbers."""
    key = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    x = example_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
