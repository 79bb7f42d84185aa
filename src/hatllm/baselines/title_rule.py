"""The title rule: the titles that share the rarest words with what the user had last.

Nothing is trained. A title is the TF-IDF vector of its words (scikit-learn's, smoothed idf, length
one); a title scores the cosine to the user's last title, or to a sum of the last ones in which
each older one weighs `decay` times the next. It is the floor under every model that reads titles:
what copying words alone can do.

A run scores the titles that share a word and no others (`shared_word_scores`); `title_scores` has
all of them side by side, for single histories and as the oracle in the tests.

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
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.config import TitlesConfig
from hatllm.metrics.title_vectors import tf_idf

SCORES_AT_A_TIME = 16_000_000


def titles_predictions(
    examples: pl.DataFrame,
    items: pl.DataFrame,
    config: TitlesConfig,
    top_k: int,
    exclude_history: bool = False,
) -> pl.DataFrame:
    """Recommend the titles most like each example's newest ones.

    Args:
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
    batches = (score_BI for _, score_BI in shared_word_scores(vectors, sequences, config))
    return sparse_predictions_of(
        examples, batches, sequences.target_G, index, top_k, exclude_history
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
) -> Iterator[tuple[slice, csr_matrix]]:
    """The rows of each batch and their scores, (B, I): titles that share no word have no entry."""
    by_word = vectors.T.tocsr()
    query = csr_matrix(_weights(sequences, slice(None), config) @ vectors)
    query.sort_indices()  # sums in the order of `title_scores`, so that equal scores stay equal
    of_word = np.append(0, np.diff(by_word.indptr)[query.indices].cumsum())
    num_scores = of_word[query.indptr[1:]] - of_word[query.indptr[:-1]]  # at most, of each row
    first, rows = 0, len(sequences)
    while first < rows:
        fitting = np.searchsorted(num_scores[first:].cumsum(), SCORES_AT_A_TIME, side="right")
        part = slice(first, first + max(1, int(fitting)))
        yield part, csr_matrix(query[part] @ by_word)
        first = part.stop


def title_scores(
    vectors: csr_matrix, sequences: Sequences, config: TitlesConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch of `row_slices`."""
    by_word = vectors.T.tocsr()
    for part in row_slices(sequences):
        query = _weights(sequences, part, config) @ vectors
        # Only the batch's words are read, and the product is dense: most titles share a word.
        words = np.unique(query.indices)
        score_IB = by_word[words].T @ query[:, words].T.toarray()
        yield torch.from_numpy(np.ascontiguousarray(score_IB.T)), sequences.target_G[part]


def row_slices(sequences: Sequences) -> Iterator[slice]:
    """The rows of each batch: few enough that the scores of all items fit beside each other."""
    num_rows = max(1, SCORES_AT_A_TIME // sequences.num_items)
    for first in range(0, len(sequences), num_rows):
        yield slice(first, first + num_rows)


def _weights(sequences: Sequences, rows: slice, config: TitlesConfig) -> csr_matrix:
    """How much each item of the catalogue counts for each example. Shape (B, I)."""
    history_BL, length_B = sequences.history_GL[rows].numpy(), sequences.length_G[rows].numpy()
    row, place = np.nonzero(np.arange(history_BL.shape[1]) < length_B[:, None])
    weight = config.decay ** (length_B[row] - 1.0 - place)
    shape = (len(length_B), sequences.num_items)
    return csr_matrix((weight, (row, history_BL[row, place])), shape=shape)
