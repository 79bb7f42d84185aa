"""A fixed random subset of a split's rows, the same for every run seed."""

import hashlib

import numpy as np
import polars as pl


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
