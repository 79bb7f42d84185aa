"""Small tables that several tests of the report share."""

from collections.abc import Sequence

import polars as pl

from hatllm.metrics.slices import target_slices


def predictions_frame(
    target_ranks: Sequence[int | None],
    trie_log_probs: Sequence[float | None] | None = None,
    **columns: Sequence[object],
) -> pl.DataFrame:
    """A predictions table with plain values everywhere but in the given columns."""
    num = len(target_ranks)
    log_probs = trie_log_probs or [None] * num
    data: dict[str, Sequence[object]] = {
        "example_id": list(range(num)),
        "user_id": list(range(100, 100 + num)),
        "target_item": [0] * num,
        "target_rank": target_ranks,
        "target_item_rank": target_ranks,
        "top_items": [[0, 1]] * num,
        "top_log_probs": [[-1.0, -2.0]] * num,
        "target_trie_log_prob": log_probs,
        "target_vocab_log_prob": [None if p is None else 2 * p for p in log_probs],
        "history_length": [2] * num,
        "ambiguous": [False] * num,
        **columns,
    }
    integers, floats = pl.Int64, pl.Float64
    schema = {
        "example_id": integers,
        "user_id": integers,
        "target_item": integers,
        "target_rank": integers,
        "target_item_rank": integers,
        "top_items": pl.List(integers),
        "top_log_probs": pl.List(floats),
        "target_trie_log_prob": floats,
        "target_vocab_log_prob": floats,
        "history_length": integers,
        "ambiguous": pl.Boolean,
    }
    return pl.DataFrame(data, schema=schema)


def popularity_alone(predictions: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
    """Slices of examples that share no word with their history and whose transition is unseen."""
    once = predictions.unique("example_id", maintain_order=True)
    return once.select(
        "example_id",
        word_similarity=pl.lit(0.0),
        popularity=target_slices(once["target_item"], train),
        words=pl.lit("no_shared_words"),
        transition=pl.lit("unseen_transition"),
    )
