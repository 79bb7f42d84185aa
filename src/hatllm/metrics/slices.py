"""Which examples a number is of: what copying words, or counting train, could have known of them.

All of it follows from the data, nothing from a model: two runs on one split have the same slices.
Titles share words by their TF-IDF vectors, by which the title rule ranks as well.

Dimension key: I titles, P pairs of titles.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hatllm.data.train_interactions import item_counts, transition_counts

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


POPULARITY = ("unseen", "tail", "mid", "head")  # of the target in train
WORDS = ("no_shared_words", "some_shared_words", "strong_shared_words")  # with the history's titles
TRANSITION = ("unseen_transition", "seen_transition")  # from the last item to the target, in train
NEITHER = "no_words_no_transition"  # where neither copying nor counting can help
SLICES = (*POPULARITY, *WORDS, *TRANSITION, NEITHER)
UNCOPIED = ("no_shared_words", NEITHER)  # where copying words is impossible
SOME, STRONG = 0.1, 0.5  # cosines from which words count as shared, and as strongly shared
SLICES_EXPLAINED = (
    "Unseen targets never occur in train; head, mid and tail each hold a third of all train "
    "interactions, the most popular items first. Shared words: the largest TF-IDF cosine of the "
    f"target's title (runs of letters a-z and digits) to one of its history: none below {SOME}, "
    f"strong from {STRONG}. A transition is seen if train has the target right after the last "
    f"item of the history. {NEITHER}: no shared word and an unseen transition, where neither "
    "copying nor counting can help"
)
COLUMNS = ("word_similarity", "popularity", "words", "transition")


def example_slices(
    examples: pl.DataFrame, items: pl.DataFrame, train_interactions: pl.DataFrame
) -> pl.DataFrame:
    """The slices that each example lies in.

    Args:
        examples: example_id, history (item ids, oldest first), target.
        items: The catalogue: item_id, title.
        train_interactions: What train holds, each interaction once: user_id, item_id, place, in
            sequence order.

    Returns:
        example_id, word_similarity (in [0, 1]), then the slices' names: popularity, words,
        transition; in the order of the examples.
    """
    similarity = word_similarities(examples, items)
    return examples.select(
        pl.col("example_id").cast(pl.Int64),
        word_similarity=similarity,
        popularity=target_slices(examples["target"], train_interactions),
        words=pl.Series(np.digitize(similarity.to_numpy(), (SOME, STRONG))).replace_strict(
            list(range(len(WORDS))), WORDS, return_dtype=pl.Utf8
        ),
        transition=_transitions(examples, train_interactions),
    )


def members(slices: pl.DataFrame) -> dict[str, pl.Series]:
    """Slice -> whether each example lies in it, for all of SLICES.

    Args:
        slices: Output of `example_slices`, or any rows of it.
    """
    found = {
        name: slices[column] == name
        for column, names in (
            ("popularity", POPULARITY),
            ("words", WORDS),
            ("transition", TRANSITION),
        )
        for name in names
    }
    return found | {NEITHER: found["no_shared_words"] & found["unseen_transition"]}


def word_similarities(examples: pl.DataFrame, items: pl.DataFrame) -> pl.Series:
    """The largest TF-IDF cosine between the target's title and any title of its history.

    Of a title and itself it is 1, whether it has a word or not.

    Args:
        examples: history, target.
        items: The catalogue: item_id, title; the idf is over all of it.

    Returns:
        In [0, 1], in the order of the examples; 0 where they share no word.
    """
    catalogue = items.select(pl.col("item_id").cast(pl.Int64), "title").sort("item_id")
    vectors = tf_idf(catalogue["title"].to_list(), "word", (1, 1))
    pairs = examples.select(row=pl.int_range(pl.len()), item="history", target="target")
    pairs = pairs.explode("item").drop_nulls()
    first_P, second_P = (
        np.searchsorted(catalogue["item_id"].to_numpy(), pairs[name].cast(pl.Int64).to_numpy())
        for name in ("item", "target")
    )
    title_I = catalogue["title"].rank("dense").to_numpy()
    cosine_P = cosines(vectors, first_P, second_P)
    cosine_P[title_I[first_P] == title_I[second_P]] = 1.0
    largest = np.zeros(len(examples))
    np.maximum.at(largest, pairs["row"].to_numpy(), cosine_P)
    return pl.Series("word_similarity", largest)


def target_slices(targets: pl.Series, train_interactions: pl.DataFrame) -> pl.Series:
    """The popularity slice of each target: ``unseen``, ``tail``, ``mid`` or ``head``.

    The popularity of an item is how many train interactions it has; an unseen item has none. The
    others, most popular first, are cut so that head holds the first third of all these
    interactions, mid the second and tail the last; items of equal popularity stay together, in the
    slice in which the first of them begins.

    Args:
        targets: Item ids.
        train_interactions: What train holds, each interaction once: item_id.

    Returns:
        The slices' names, in the order of ``targets``.
    """
    counts = item_counts(train_interactions["item_id"])
    by_count = (
        counts.group_by("count").agg(total=pl.col("count").sum()).sort("count", descending=True)
    )
    share_before = (pl.col("total").cum_sum() - pl.col("total")) / pl.col("total").sum()
    by_count = by_count.select("count", slice=_third(share_before))
    item_slices = counts.join(by_count, on="count").select("item_id", "slice")
    joined = (
        targets.cast(pl.Int64)
        .to_frame("item_id")
        .join(item_slices, on="item_id", how="left", maintain_order="left")
    )
    return joined["slice"].fill_null("unseen")


def _third(share_before: pl.Expr) -> pl.Expr:
    """The slice that begins at a cumulative share of train interactions."""
    return (
        pl.when(share_before < 1 / 3)
        .then(pl.lit("head"))
        .when(share_before < 2 / 3)
        .then(pl.lit("mid"))
        .otherwise(pl.lit("tail"))
    )


def _transitions(examples: pl.DataFrame, train_interactions: pl.DataFrame) -> pl.Series:
    """Whether train has each example's target right after the last item of its history."""
    steps = examples.select(
        item_id=pl.col("history").list.last().cast(pl.Int64),
        next_item=pl.col("target").cast(pl.Int64),
    )
    counts = transition_counts(train_interactions)
    joined = steps.join(counts, on=["item_id", "next_item"], how="left", maintain_order="left")
    unseen, seen = TRANSITION
    return joined.select(
        transition=pl.when(pl.col("count").is_null()).then(pl.lit(unseen)).otherwise(pl.lit(seen))
    )["transition"]
