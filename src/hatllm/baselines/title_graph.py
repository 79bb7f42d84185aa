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

from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import IntArray, Sequences
from hatllm.baselines.title_rule import row_slices, title_rule
from hatllm.config import TitlesConfig


def title_graph(
    transitions: pl.DataFrame, weight: float, items: pl.DataFrame, config: TitlesConfig
) -> Scored:
    """The rule over a catalogue.

    Args:
        transitions: What train counts: item_id, next_item, count.
        weight: Of log(1 + count).
        items: item_id, title.
        config: How titles are read, and how many.

    Raises:
        ValueError: If no title has a word.
    """
    by_words = title_rule(items, config)
    bonus = transition_bonus(transitions, weight, items["item_id"].cast(pl.Int64).sort().to_numpy())

    def batches(rows: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
        return with_bonus(by_words.batches(rows), bonus, rows)

    def sparse(rows: Sequences) -> Iterator[csr_matrix]:
        assert by_words.sparse is not None
        last_G, first = _last_items(rows, slice(None)), 0
        for score_BI in by_words.sparse(rows):
            end = first + score_BI.shape[0]
            yield csr_matrix(score_BI + bonus[last_G[first:end]])
            first = end

    return Scored(batches, by_words.num_read, sparse)


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
