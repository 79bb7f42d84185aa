"""Who comes first among equals: an order that knows nothing of the target."""

import numpy as np
import polars as pl


def scrambled(item_ids: pl.Series) -> pl.Series:
    """A fixed pseudo-random unsigned 64-bit number for each id (splitmix64, no library's hash)."""
    z = item_ids.cast(pl.Int64).to_numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return pl.Series("tie", z ^ (z >> np.uint64(31)))
