"""The title rule: the titles that share the rarest words with what the user had last.

Nothing is trained. A title is the TF-IDF vector of its words (scikit-learn's, smoothed idf, length
one); a title scores the cosine to the user's last title, or to a sum of the last ones in which
each older one weighs `decay` times the next. It is the floor under every model that reads titles:
what copying words alone can do.

Dimension key: B examples of a batch, I items by ascending id.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.config import TitlesConfig

WORD = r"[a-z0-9]+"
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
    batches = title_scores(vectors, sequences, config)
    return predictions_of(examples, batches, index, top_k, exclude_history)


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
    reader = TfidfVectorizer(
        analyzer=config.analyzer,
        token_pattern=WORD if config.analyzer == "word" else None,
        ngram_range=(config.shortest_ngram, config.longest_ngram),
    )
    try:
        return csr_matrix(reader.fit_transform(titles))
    except ValueError as error:
        raise ValueError(
            f"model=titles: none of the {len(titles)} titles, such as {titles[0]!r}, holds a word "
            "of letters a-z or digits; read characters with model.titles.analyzer=char_wb"
        ) from error


def title_scores(
    vectors: csr_matrix, sequences: Sequences, config: TitlesConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """score_BI and target_B of each batch."""
    num_rows = max(1, SCORES_AT_A_TIME // sequences.num_items)
    transposed = vectors.T.tocsr()
    for first in range(0, len(sequences), num_rows):
        part = slice(first, first + num_rows)
        query = _weights(sequences, part, config) @ vectors
        score_BI = (query @ transposed).toarray()
        yield torch.from_numpy(score_BI), sequences.target_G[part]


def _weights(sequences: Sequences, rows: slice, config: TitlesConfig) -> csr_matrix:
    """How much each item of the catalogue counts for each example. Shape (B, I)."""
    history_BL, length_B = sequences.history_GL[rows].numpy(), sequences.length_G[rows].numpy()
    row, place = np.nonzero(np.arange(history_BL.shape[1]) < length_B[:, None])
    weight = config.decay ** (length_B[row] - 1.0 - place)
    shape = (len(length_B), sequences.num_items)
    return csr_matrix((weight, (row, history_BL[row, place])), shape=shape)
