"""A catalogue and settings that the tests of the id-based baselines share."""

from dataclasses import replace
from typing import Any

import polars as pl

from hatllm.baselines.popularity import rank_titles, ranked_predictions
from hatllm.config import ClozeConfig, SequenceConfig

NUM_ITEMS = 12
# Ids with gaps, so that an id is never its own place in the catalogue.
IDS = [5 + 3 * number for number in range(NUM_ITEMS)]
ITEMS = pl.DataFrame({"item_id": IDS, "title": [f"Title {i}" for i in range(NUM_ITEMS)]})

SETTINGS = SequenceConfig(
    train_on="full",
    hidden_size=16,
    block="sasrec",
    positions_from="oldest",
    reads_padding=False,
    num_layers=2,
    num_heads=2,
    feedforward_size=32,
    dropout=0.0,
    attention_dropout=0.0,
    item_dropout=0.0,
    init_std=0.1,
    shared_embedding=None,
    loss="ce",
    num_negatives=None,
    every_position=False,
    cloze=ClozeConfig(mask_prob=0.3, last_only_prob=0.5),
    dros=None,
    optimizer="adam",
    learning_rate=0.01,
    second_beta=0.999,
    weight_decay=0.0,
    batch_size=16,
    max_epochs=60,
    patience=None,
)


def settings(**changes: Any) -> SequenceConfig:
    """Settings of a small model, with some of them changed."""
    return replace(SETTINGS, **changes)


def cycle(num_rows: int = 48) -> pl.DataFrame:
    """Rows whose next item is always the one after the last, round the catalogue."""
    rows = []
    for row in range(num_rows):
        length, first = 1 + row % 4, row % NUM_ITEMS
        numbers = [(first + step) % NUM_ITEMS for step in range(length + 1)]
        ids = [IDS[number] for number in numbers]
        rows.append({"example_id": row, "user_id": row, "history": ids[:-1], "target": ids[-1]})
    return pl.DataFrame(rows)


def popularity_predictions(
    counts: pl.DataFrame,
    valid: pl.DataFrame,
    examples: pl.DataFrame,
    items: pl.DataFrame,
    top_k: int,
    exclude_history: bool = False,
) -> pl.DataFrame:
    """What popularity answers, titles ranked for these examples alone."""
    return ranked_predictions(rank_titles(counts, valid, items), examples, top_k, exclude_history)
