"""Last-item kNN: the items that meet the user's last item most often.

Item-KNN of Hidasi et al. (ICLR 2016, arXiv:1511.06939, section 4; `baselines.py` of their code):

    sim(i, j) = meetings(i, j) / (c(i)^balance c(j)^(1 - balance)), c(i) = count(i) + shrinkage,

where a session is here a user's train sequence, and an item counts once in it. An item is no
neighbour of itself. What is no neighbour scores 0.

Dimension key: B examples of a batch, I items by ascending id.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import IntArray, Sequences
from hatllm.config import KnnConfig
from hatllm.metrics.tie_order import scrambled

ROWS_A_BATCH = 256
MEETINGS_AT_A_TIME = 4_000_000  # pairs that exist at once: long sequences make many


def knn_rule(table: pl.DataFrame, items: pl.DataFrame) -> Scored:
    """Neighbours, as `neighbours` gives them, over the catalogue's item_id."""
    item_id_I = items["item_id"].cast(pl.Int64).sort().to_numpy()
    return Scored(partial(knn_scores, table, item_id_I=item_id_I), 1)


def neighbours(interactions: pl.DataFrame, config: KnnConfig) -> pl.DataFrame:
    """The nearest neighbours of every item that occurs in train.

    Args:
        interactions: Those of train: user_id, item_id.
        config: How neighbours are found.

    Returns:
        item_id, neighbour, similarity; at most ``num_neighbours`` rows an item, nearest first,
        equal ones in the order of a hash of their ids.
    """
    baskets = interactions.select(pl.col("user_id", "item_id").cast(pl.Int64)).unique()
    counts = baskets.group_by("item_id").agg(count=pl.len() + config.shrinkage)
    found = [_nearest(part, baskets, counts, config) for part in _parts(baskets)]
    return pl.concat(found).sort("item_id", maintain_order=True)


def _parts(baskets: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The baskets' rows cut by items, so that those of a part meet a bounded number of others."""
    sized = baskets.with_columns(size=pl.len().over("user_id"))
    meetings = sized.group_by("item_id").agg(pl.col("size").sum()).sort("item_id")
    part = (pl.col("size").cum_sum() - pl.col("size")) // MEETINGS_AT_A_TIME
    parts = meetings.select("item_id", part=part)
    yield from baskets.join(parts, on="item_id").partition_by("part", include_key=False)


def _nearest(
    part: pl.DataFrame, baskets: pl.DataFrame, counts: pl.DataFrame, config: KnnConfig
) -> pl.DataFrame:
    """The neighbours of the items of one part."""
    pairs = (
        part.join(baskets.rename({"item_id": "neighbour"}), on="user_id")
        .filter(pl.col("item_id") != pl.col("neighbour"))
        .group_by("item_id", "neighbour")
        .agg(meetings=pl.len())
        .join(counts, on="item_id")
        .join(counts.rename({"item_id": "neighbour"}), on="neighbour", suffix="_neighbour")
    )
    own, other = (
        pl.col("count") ** config.balance,
        pl.col("count_neighbour") ** (1 - config.balance),
    )
    pairs = pairs.with_columns(
        similarity=pl.col("meetings") / (own * other), tie=scrambled(pairs["neighbour"])
    )
    pairs = pairs.sort("item_id", "similarity", "tie", descending=[False, True, False])
    nearest = pairs.group_by("item_id", maintain_order=True).head(config.num_neighbours)
    return nearest.select("item_id", "neighbour", "similarity")


def knn_scores(
    table: pl.DataFrame, sequences: Sequences, item_id_I: IntArray
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch."""
    item = np.searchsorted(item_id_I, table["item_id"].to_numpy())
    neighbour = np.searchsorted(item_id_I, table["neighbour"].to_numpy())
    similarity = table["similarity"].to_numpy()
    starts = np.searchsorted(item, np.arange(sequences.num_items + 1))  # rows are sorted by item
    for first in range(0, len(sequences), ROWS_A_BATCH):
        last_B = sequences.history_GL[first : first + ROWS_A_BATCH, 0]
        score_BI = torch.zeros(len(last_B), sequences.num_items, dtype=torch.float64)
        for row, last in enumerate(last_B.tolist()):
            found = slice(starts[last], starts[last + 1])
            score_BI[row, neighbour[found]] = torch.tensor(similarity[found])
        yield score_BI, sequences.target_G[first : first + ROWS_A_BATCH]
