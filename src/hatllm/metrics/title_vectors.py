"""Titles as TF-IDF vectors: what the title rule ranks by, and what tells which titles share words.

Dimension key: I titles, P pairs of titles.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

WORD = r"[a-z0-9]+"  # of a title in lower case
PAIRS_AT_A_TIME = 65_536  # pairs whose words are laid side by side, a few megabytes


def tf_idf(titles: list[str], analyzer: str, ngrams: tuple[int, int]) -> csr_matrix:
    """One vector a title, of length one; zero where it has no word (scikit-learn's, smoothed idf).

    Args:
        titles: A title that stands twice counts twice in the idf.
        analyzer: ``word`` = runs of letters a-z and digits in lower case; or ``char``, ``char_wb``.
        ngrams: Fewest and most of these that count together.

    Returns:
        Shape (I, words), float64; without any entry where no title has a word.
    """
    # Late: it takes a second to import, and only what reads titles needs it.
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = TfidfVectorizer(
        analyzer=analyzer,
        token_pattern=WORD if analyzer == "word" else None,
        ngram_range=ngrams,
    )
    try:
        return csr_matrix(reader.fit_transform(titles))
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return csr_matrix((len(titles), 1), dtype=np.float64)


def cosines(
    vectors: csr_matrix, first_P: NDArray[np.int64], second_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The cosine of each pair of titles.

    Args:
        vectors: Output of `tf_idf`.
        first_P: Row of a title. Shape (P,).
        second_P: Row of another. Shape (P,).

    Returns:
        Shape (P,), in [0, 1].
    """
    cosine_P = np.zeros(len(first_P))
    for start in range(0, len(first_P), PAIRS_AT_A_TIME):
        part = slice(start, start + PAIRS_AT_A_TIME)
        shared = vectors[first_P[part]].multiply(vectors[second_P[part]])
        cosine_P[part] = np.asarray(shared.sum(axis=1)).ravel()
    return cosine_P
