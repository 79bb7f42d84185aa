"""The title rules: copied words, words plus what train saw right after, and meaning.

Nothing is trained. In the title rule a title is the TF-IDF vector of its words (scikit-learn's,
smoothed idf, length one); a title scores the cosine to the user's last title, or to a sum of the
last ones in which each older one weighs `decay` times the next. It is the floor under every model
that reads titles: what copying words alone can do. A run scores the titles that share a word and no
others (`shared_word_scores`); `title_scores` has all of them side by side, for single histories and
as the oracle in the tests.

With transitions (`title_graph`) a title scores that cosine plus weight * log(1 + count), with count
how often train goes from the user's last item to it (after arXiv:2605.07125). Train is only
counted: the floor under every model that reads titles and ids.

By meaning (`sentence_rule`) a title is the vector that a sentence encoder gives it, not its words:
a title may be near without sharing one.

Dimension key: B examples of a batch, I items by ascending id, D width of a sentence vector.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from hatllm.baselines.scored import Scored
from hatllm.baselines.sequences import IntArray, Sequences
from hatllm.config import TitlesConfig
from hatllm.metrics.slices import tf_idf

SCORES_AT_A_TIME = 16_000_000


def title_rule(items: pl.DataFrame, config: TitlesConfig) -> Scored:
    """The rule over a catalogue.

    Args:
        items: item_id, title.
        config: How titles are read, and how many.

    Raises:
        ValueError: If no title has a word.
    """
    vectors = title_vectors(items.sort("item_id")["title"].to_list(), config)
    return Scored(
        batches=partial(title_scores, vectors, config=config),
        num_read=config.last_items,
        sparse=partial(shared_word_scores, vectors, config=config),
    )


def title_vectors(titles: list[str], config: TitlesConfig) -> csr_matrix:
    """One TF-IDF vector a title, of length one; zero where it has no word.

    Args:
        titles: By ascending item id; a title that stands twice counts twice in the idf.
        config: How titles are read.

    Returns:
        Shape (I, words), float64.

    Raises:
        ValueError: If no title has a word.
    """
    vectors = tf_idf(titles, config.analyzer, (config.shortest_ngram, config.longest_ngram))
    if vectors.nnz == 0:
        raise ValueError(
            f"model=titles: none of the {len(titles)} titles, such as {titles[0]!r}, holds a word "
            "of letters a-z or digits; read characters with model.titles.analyzer=char_wb"
        )
    return vectors


def shared_word_scores(
    vectors: csr_matrix, sequences: Sequences, config: TitlesConfig
) -> Iterator[csr_matrix]:
    """The scores of each batch, (B, I): titles that share no word have no entry."""
    by_word = vectors.T.tocsr()
    query = csr_matrix(history_weights(sequences, slice(None), config.decay) @ vectors)
    query.sort_indices()  # sums in the order of `title_scores`, so that equal scores stay equal
    of_word = np.append(0, np.diff(by_word.indptr)[query.indices].cumsum())
    num_scores = of_word[query.indptr[1:]] - of_word[query.indptr[:-1]]  # at most, of each row
    first, rows = 0, len(sequences)
    while first < rows:
        fitting = np.searchsorted(num_scores[first:].cumsum(), SCORES_AT_A_TIME, side="right")
        part = slice(first, first + max(1, int(fitting)))
        yield csr_matrix(query[part] @ by_word)
        first = part.stop


def title_scores(
    vectors: csr_matrix, sequences: Sequences, config: TitlesConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch of `row_slices`."""
    by_word = vectors.T.tocsr()
    for part in row_slices(sequences):
        query = history_weights(sequences, part, config.decay) @ vectors
        # Only the batch's words are read, and the product is dense: most titles share a word.
        words = np.unique(query.indices)
        score_IB = by_word[words].T @ query[:, words].T.toarray()
        yield torch.from_numpy(np.ascontiguousarray(score_IB.T)), sequences.target_G[part]


def row_slices(sequences: Sequences) -> Iterator[slice]:
    """The rows of each batch: few enough that the scores of all items fit beside each other."""
    num_rows = max(1, SCORES_AT_A_TIME // sequences.num_items)
    for first in range(0, len(sequences), num_rows):
        yield slice(first, first + num_rows)


def history_weights(sequences: Sequences, rows: slice, decay: float) -> csr_matrix:
    """How much each item of the catalogue counts for each example.

    Args:
        sequences: Histories.
        rows: Those of a batch.
        decay: Weight of an item over that of the next one.

    Returns:
        Shape (B, I), float64, sparse.
    """
    history_BL, length_B = sequences.history_GL[rows].numpy(), sequences.length_G[rows].numpy()
    row, place = np.nonzero(np.arange(history_BL.shape[1]) < length_B[:, None])
    weight = decay ** (length_B[row] - 1.0 - place)
    shape = (len(length_B), sequences.num_items)
    return csr_matrix((weight, (row, history_BL[row, place])), shape=shape)


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


def sentence_rule(vector_ID: Tensor, config: TitlesConfig) -> Scored:
    """The rule over a catalogue.

    Args:
        vector_ID: One vector an item, of length one. Shape (I, D), float.
        config: How many of the last titles count.
    """
    # Rounding would order near equals differently in batches of other sizes.
    return Scored(partial(_scores, vector_ID.double(), config.decay), config.last_items)


def _scores(
    vector_ID: Tensor, decay: float, sequences: Sequences
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch of `row_slices`."""
    for part in row_slices(sequences):
        query_BD = torch.from_numpy(history_weights(sequences, part, decay) @ vector_ID.numpy())
        yield query_BD @ vector_ID.T, sequences.target_G[part]
