"""Which interactions are kept: each once, well rated ones, known, titled items and the k-core."""

import polars as pl

from hatllm.data.json_lines import BadRows

UNKNOWN = "interaction with an unknown item"
UNTITLED = "interaction with an untitled item"
UNRATED = "interaction without a rating"
REPEATED = "interaction that stands there twice"


def each_once(interactions: pl.DataFrame, bad_rows: BadRows) -> pl.DataFrame:
    """Drop rows of the same user, item and time as one before; the same item at other times stays.

    Args:
        interactions: Columns user_id, item_id, timestamp.
        bad_rows: Takes what is dropped.
    """
    first = pl.struct("user_id", "item_id", "timestamp").is_first_distinct()
    return bad_rows.drop(interactions, ~first, REPEATED)


def titled_only(
    interactions: pl.DataFrame, items: pl.DataFrame, bad_rows: BadRows
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop items without a title, and interactions with these or with items nobody knows.

    Args:
        interactions: Columns with item_id Int64.
        items: item_id Int64 (unique), title Utf8 (null = untitled), source_id Utf8.
        bad_rows: Takes what is dropped.

    Returns:
        The interactions and items that are left, in their order.
    """
    known = pl.col("item_id").is_in(items["item_id"].implode())
    interactions = bad_rows.drop(interactions, ~known, UNKNOWN)
    items = bad_rows.drop(items, pl.col("title").is_null(), "item without a title")
    titled = pl.col("item_id").is_in(items["item_id"].implode())
    return bad_rows.drop(interactions, ~titled, UNTITLED), items


def min_rated(
    interactions: pl.DataFrame, min_rating: float | None, bad_rows: BadRows
) -> pl.DataFrame:
    """Drop interactions rated below ``min_rating``, or not at all; None keeps every one.

    Args:
        interactions: With rating Float64 where there is a ``min_rating``.
        min_rating: Lowest rating that counts.
        bad_rows: Takes what is dropped.

    Returns:
        The interactions that are left, in their order, without ratings.
    """
    if min_rating is None:
        return interactions
    interactions = bad_rows.drop(interactions, pl.col("rating").is_null(), UNRATED)
    low = f"interaction rated below {min_rating:g}"
    return bad_rows.drop(interactions, pl.col("rating") < min_rating, low).drop("rating")


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Return the largest subset in which every user and every item has at least ``k`` rows.

    Args:
        interactions: Columns user_id, item_id; repeated pairs count as often as they stand there.
        k: Least number of rows; 1 keeps all.
    """
    while True:
        rows = interactions.height
        interactions = interactions.filter(pl.len().over("item_id") >= k)
        interactions = interactions.filter(pl.len().over("user_id") >= k)
        if interactions.height == rows:
            return interactions
