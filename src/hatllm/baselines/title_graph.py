"""The title rule with transitions: copied words plus what train saw right after the last item.

A title scores the cosine of :mod:`hatllm.baselines.title_rule` plus weight * log(1 + count), with
count how often train goes from the user's last item to it (after arXiv:2605.07125). Nothing is
trained, train is only counted: the floor under every model that reads titles and ids.

Dimension key: B examples of a batch, I items by ascending id.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex
from hatllm.baselines.ranks_of_sparse import sparse_predictions_of
from hatllm.baselines.sequences import IntArray, Sequences, sequences_of
from hatllm.baselines.title_rule import row_slices, shared_word_scores, title_vectors
from hatllm.config import TitlesConfig


def titles_graph_predictions(
    transitions: pl.DataFrame,
    weight: float,
    examples: pl.DataFrame,
    items: pl.DataFrame,
    config: TitlesConfig,
    top_k: int,
    exclude_history: bool = False,
) -> pl.DataFrame:
    """Recommend titles like each example's newest ones, and what comes after its last item.

    Args:
        transitions: What train counts: item_id, next_item, count.
        weight: Of log(1 + count).
        examples: Examples to answer: example_id, user_id, history, target.
        items: The catalogue: item_id, title.
        config: How titles are read, and how many.
        top_k: Titles answered for each example.
        exclude_history: As `predictions_of`.

    Returns:
        The predictions table.

    Raises:
        ValueError: If no title has a word, or an item is not in the catalogue.
    """
    index = TitleIndex.of(items)
    sequences = sequences_of(examples, index.item_id_I, config.last_items)
    vectors = title_vectors(items.sort("item_id")["title"].to_list(), config)
    bonus = transition_bonus(transitions, weight, index.item_id_I)
    last_G = _last_items(sequences, slice(None))
    batches = (
        csr_matrix(score_BI + bonus[last_G[part]])
        for part, score_BI in shared_word_scores(vectors, sequences, config)
    )
    return sparse_predictions_of(
        examples, batches, sequences.target_G, index, top_k, exclude_history
    )


def transition_bonus(transitions: pl.DataFrame, weight: float, item_id_I: IntArray) -> csr_matrix:
    """Weighed log(1 + count) from each item (row) to each next one. Shape (I, I), sparse."""
    row, column = (
        np.searchsorted(item_id_I, transitions[name].to_numpy())
        for name in ("item_id", "next_item")
    )
    value = weight * np.log1p(transitions["count"].to_numpy())
    return csr_matrix((value, (row, column)), shape=(len(item_id_I), len(item_id_I)))


def with_bonus(
    batches: Iterator[tuple[Tensor, Tensor]], bonus: csr_matrix, sequences: Sequences
) -> Iterator[tuple[Tensor, Tensor]]:
    """The title rule's batches, the bonus of each row's last item added."""
    for part, (score_BI, target_B) in zip(row_slices(sequences), batches, strict=True):
        found = bonus[_last_items(sequences, part)].tocoo()
        row, column = (torch.from_numpy(x.astype(np.int64)) for x in (found.row, found.col))
        score_BI[row, column] += torch.from_numpy(found.data)
        yield score_BI, target_B


def _last_items(sequences: Sequences, part: slice) -> IntArray:
    """The number of each history's newest item. Shape (B,)."""
    place_B1 = sequences.length_G[part][:, None] - 1
    return sequences.history_GL[part].gather(1, place_B1).flatten().numpy()
