"""The columns of the predictions table of every baseline, those of the LLM arms, in one place."""

import polars as pl

RANKS = ("target_rank", "target_item_rank")


def predictions_table(rows: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """Lay rows out as a predictions table.

    Args:
        rows: example_id, user_id, target_item, target_rank and target_item_rank (from 1; null = not
            found), top_items, top_log_probs, history_length, ambiguous; target_trie_log_prob (nats)
            where the model has one.
        top_k: Titles answered for each example; ranks beyond are no ranks.

    Returns:
        One row an example, in their order. target_vocab_log_prob is null: no baseline writes words.
    """
    trie_log_prob = "target_trie_log_prob"
    return rows.select(
        pl.col("example_id", "user_id", "target_item").cast(pl.Int64),
        *(pl.when(pl.col(name) <= top_k).then(name).cast(pl.Int64).alias(name) for name in RANKS),
        "top_items",
        "top_log_probs",
        pl.col(trie_log_prob) if trie_log_prob in rows.columns
        else pl.lit(None, pl.Float64).alias(trie_log_prob),
        target_vocab_log_prob=pl.lit(None, pl.Float64),
        history_length=pl.col("history_length").cast(pl.Int64),
        ambiguous="ambiguous",
    )  # fmt: skip
