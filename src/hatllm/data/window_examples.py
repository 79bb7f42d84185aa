"""Prepared windows as examples: checked against the titles, shortened, and held out for valid."""

import polars as pl

from hatllm.data.json_lines import BadRows
from hatllm.data.split import with_example_ids


def window_examples(
    splits: dict[str, pl.DataFrame],
    items: pl.DataFrame,
    bad_rows: BadRows,
    max_history_items: int,
    min_history_items: int,
    holdout_fraction: float,
) -> tuple[dict[str, pl.DataFrame], str | None]:
    """Turn the windows of a source into examples.

    Args:
        splits: Windows by split, see ``WindowTables``; 'valid' may be missing.
        items: item_id, title (null = untitled).
        bad_rows: Takes windows with an unknown or untitled item, or too short ones.
        max_history_items: Longest history; older items are left out.
        min_history_items: Shortest history.
        holdout_fraction: Share of train, newest targets, used as valid where there is none.

    Returns:
        Examples by split (see ``split_sequences``) and a note on the held-out rows, or None.
    """
    examples = {
        name: _examples(
            _usable(windows, items, bad_rows, name, min_history_items), max_history_items
        )
        for name, windows in splits.items()
    }
    note = None
    if "valid" not in examples:
        train, valid, note = hold_out(examples["train"], holdout_fraction)
        examples |= {"train": train, "valid": valid}
    return with_example_ids(examples), note


def hold_out(train: pl.DataFrame, fraction: float) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Take the ``fraction`` of train with the newest targets as valid, both in their old order.

    In a train file in time order these are its last rows; ties go to the later row.
    """
    num_valid = int(train.height * fraction)
    train = train.with_row_index("_row")
    newest = train.sort("timestamp", maintain_order=True).tail(num_valid)["_row"]
    held_out = pl.col("_row").is_in(newest.implode())
    note = (
        f"the source has no valid split: the newest {fraction:g} of train "
        f"({num_valid:,} of {train.height:,} rows) is valid"
    )
    return train.filter(~held_out).drop("_row"), train.filter(held_out).drop("_row"), note


def _usable(
    windows: pl.DataFrame, items: pl.DataFrame, bad_rows: BadRows, split: str, min_history: int
) -> pl.DataFrame:
    """The windows with a long enough history whose every item has a title."""
    short = pl.col("item_ids").list.len() < min_history + 1
    reason = f"{split} window with fewer than {min_history} history items"
    windows = bad_rows.drop(windows, short, reason)
    known = items["item_id"]
    titled = items.filter(pl.col("title").is_not_null())["item_id"]
    for allowed, reason in (
        (known, f"{split} window with an unknown item"),
        (titled, f"{split} window with an untitled item"),
    ):
        bad = pl.col("item_ids").list.eval(~pl.element().is_in(allowed.implode())).list.any()
        windows = bad_rows.drop(windows, bad, reason)
    return windows


def _examples(windows: pl.DataFrame, max_history: int) -> pl.DataFrame:
    length = pl.col("item_ids").list.len()
    return windows.select(
        "user_id",
        history=pl.col("item_ids").list.head(length - 1).list.tail(max_history),
        target=pl.col("item_ids").list.last(),
        timestamp=pl.col("timestamp"),
    )
