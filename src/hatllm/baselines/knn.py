"""Last-item kNN: the items that meet the user's last item most often.

Item-KNN of Hidasi et al. (ICLR 2016, arXiv:1511.06939, section 4; `baselines.py` of their code):

    sim(i, j) = meetings(i, j) / (c(i)^balance c(j)^(1 - balance)), c(i) = count(i) + shrinkage,

where a session is here one training example, history and target together, and an item counts once
in it. A sliding window shows one meeting in several examples; each of them counts, so that items
close together weigh more. An item is no neighbour of itself. What is no neighbour scores 0.

Dimension key: R examples, B examples of a batch, N items by ascending id.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hatllm.baselines.ranking import TitleIndex, predictions_of
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.config import KnnConfig
from hatllm.ties import scrambled

ROWS_A_BATCH = 256


def knn_predictions(
    train: pl.DataFrame, examples: pl.DataFrame, items: pl.DataFrame, config: KnnConfig, top_k: int
) -> pl.DataFrame:
    """Recommend the neighbours of each example's last item.

    Args:
        train: Train examples: history, target.
        examples: Examples to answer: example_id, user_id, history, target.
        items: The catalogue: item_id, title.
        config: How neighbours are found.
        top_k: Titles answered for each example.

    Returns:
        The predictions table.

    Raises:
        ValueError: If an item is not in the catalogue.
    """
    index = TitleIndex.of(items)
    table = neighbours(train, config)
    sequences = sequences_of(examples, index.item_id_N, 1)
    return predictions_of(examples, _scores(table, sequences, index), index, top_k)


def neighbours(train: pl.DataFrame, config: KnnConfig) -> pl.DataFrame:
    """The nearest neighbours of every item that occurs in train.

    Args:
        train: Train examples: history, target.
        config: How neighbours are found.

    Returns:
        item_id, neighbour, similarity; at most ``num_neighbours`` rows an item, nearest first,
        equal ones in the order of a hash of their ids.
    """
    items = pl.concat_list("history", "target").cast(pl.List(pl.Int64)).list.unique()
    baskets = train.select(items.alias("item_id")).with_row_index("example").explode("item_id")
    counts = baskets.group_by("item_id").agg(count=pl.len() + config.shrinkage)
    others = baskets.rename({"item_id": "neighbour"})
    pairs = (
        baskets.join(others, on="example")
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


def _scores(
    table: pl.DataFrame, sequences: Sequences, index: TitleIndex
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BN and target_B of each batch."""
    item = np.searchsorted(index.item_id_N, table["item_id"].to_numpy())
    neighbour = np.searchsorted(index.item_id_N, table["neighbour"].to_numpy())
    similarity = table["similarity"].to_numpy()
    starts = np.searchsorted(item, np.arange(sequences.num_items + 1))  # rows are sorted by item
    for first in range(0, len(sequences), ROWS_A_BATCH):
        last_B = sequences.history_RL[first : first + ROWS_A_BATCH, 0]
        score_BN = torch.zeros(len(last_B), sequences.num_items, dtype=torch.float64)
        for row, last in enumerate(last_B.tolist()):
            found = slice(starts[last], starts[last + 1])
            score_BN[row, neighbour[found]] = torch.tensor(similarity[found])
        yield score_BN, sequences.target_R[first : first + ROWS_A_BATCH]
