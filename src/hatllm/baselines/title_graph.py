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

    return Scored(batches, by_words.num_read)


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
        place_B1 = sequences.length_G[part][:, None] - 1
        last_B = sequences.history_GL[part].gather(1, place_B1).flatten()
        found = bonus[last_B.numpy()].tocoo()
        row, column = (torch.from_numpy(x.astype(np.int64)) for x in (found.row, found.col))
        score_BI[row, column] += torch.from_numpy(found.data)
        yield score_BI, target_B
