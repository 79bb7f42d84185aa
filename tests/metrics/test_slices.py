"""Ten examples whose slices are worked out by hand, and their numbers."""

from math import log, sqrt

import numpy as np
import polars as pl
import pytest
from frames import predictions_frame

from hatllm.data.train_interactions import transition_counts
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.metrics.slices import SLICES, example_slices, members, word_similarities

TITLES = ["Red Boat", "red boat: 2", "Blue Lamp", "Old Lamp", "Green Book", "♥", "The Red Book"]
ITEMS = pl.DataFrame({"item_id": range(7), "title": TITLES})
# Two train sequences: 0 2 4 and 2 4 0. Item 6 stands in neither, nor do 1, 3 and 5.
TRAIN = pl.DataFrame({"user_id": [7, 7, 7, 8, 8, 8], "item_id": [0, 2, 4, 2, 4, 0]})
HISTORIES = [[0], [2], [4], [4], [3, 0], [0, 4], [5], [2, 5], [6], [6, 2]]
TARGETS = [1, 4, 0, 2, 2, 6, 0, 5, 6, 4]
EXAMPLES = pl.DataFrame({"example_id": range(10, 20), "history": HISTORIES, "target": TARGETS})
NO, SOME, STRONG = "no_shared_words", "some_shared_words", "strong_shared_words"
# red, boat, lamp and book are the only words that two titles share.
WORDS = [STRONG, NO, NO, NO, SOME, SOME, NO, STRONG, STRONG, SOME]
SEEN = [False, True, True, False, True, False, False, False, False, True]  # 2-4, 4-0, 0-2, 2-4


def idf(count: int) -> float:
    """Scikit-learn's smoothed idf among seven titles."""
    return log(8 / (1 + count)) + 1


def length(*counts: int) -> float:
    return sqrt(sum(idf(count) ** 2 for count in counts))


def test_word_similarity_is_the_largest_cosine_to_a_title_of_the_history() -> None:
    similarity = word_similarities(EXAMPLES, ITEMS)
    # red stands in 3 titles, boat, lamp and book in 2, any other word in 1
    red_boat_twice = (idf(3) ** 2 + idf(2) ** 2) / length(3, 2) / length(3, 2, 1)
    lamps = idf(2) ** 2 / length(1, 2) ** 2
    red = idf(3) ** 2 / length(3, 2) / length(1, 3, 2)
    books = idf(2) ** 2 / length(1, 2) / length(1, 3, 2)
    assert red != books
    assert similarity.to_list() == pytest.approx(
        [red_boat_twice, 0, 0, 0, lamps, max(red, books), 0, 1, 1, books]
    )


def test_ten_examples_lie_in_the_slices_worked_out_by_hand() -> None:
    slices = example_slices(EXAMPLES, ITEMS, TRAIN)
    assert slices["example_id"].to_list() == list(range(10, 20))
    assert slices["words"].to_list() == WORDS
    assert (slices["transition"] == "seen_transition").to_list() == SEEN
    assert (slices["popularity"] == "unseen").to_list() == [t not in (0, 2, 4) for t in TARGETS]
    found = members(slices)
    assert tuple(found) == SLICES
    crossing = [word == NO and not seen for word, seen in zip(WORDS, SEEN, strict=True)]
    assert found["no_words_no_transition"].to_list() == crossing
    assert sum(crossing) == 2  # a lamp after a green book, a boat after a heart


def test_numbers_of_a_slice_are_those_of_its_rows() -> None:
    ranks = [1, None, 2, 3, None, 1, None, 4, 1, 5]
    frame = predictions_frame(ranks, [-1.0, *[-2.0] * 9], example_id=range(10, 20),
                              target_item=TARGETS)  # fmt: skip
    slices = example_slices(EXAMPLES, ITEMS, TRAIN)
    metrics = evaluate_predictions(frame, ITEMS, slices, (10,))
    assert metrics["seen_transition/count"] == 4
    assert metrics["seen_transition/HR@10"] == 2 / 4
    assert metrics["seen_transition/HR@10_se"] == pytest.approx(sqrt(1 / 4 / 3))
    assert metrics["no_words_no_transition/count"] == 2
    assert metrics["no_words_no_transition/NDCG@10"] == pytest.approx(1 / 2 / 2)
    assert metrics["no_words_no_transition/trie_NLL"] == 2.0
    assert sum(metrics[f"{name}/count"] for name in (NO, SOME, STRONG)) == 10


def test_the_order_of_examples_changes_nothing_but_their_order() -> None:
    slices = example_slices(EXAMPLES, ITEMS, TRAIN)
    turned = example_slices(EXAMPLES.reverse(), ITEMS.reverse(), TRAIN)
    assert turned.sort("example_id").equals(slices)


def test_transitions_end_with_the_user() -> None:
    train = pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": [5, 6, 5, 6, 5]})
    assert transition_counts(train).rows() == [(5, 6, 1), (6, 5, 2)]


@pytest.mark.parametrize("titles", [["♥", "愛"], ["Lamp", "Lamp"]])
def test_titles_without_a_word_or_all_alike_have_slices(titles: list[str]) -> None:
    items = pl.DataFrame({"item_id": [3, 4], "title": titles})
    examples = pl.DataFrame({"example_id": [0], "history": [[3]], "target": [4]})
    (word,) = example_slices(examples, items, TRAIN)["words"]
    assert word == (STRONG if titles[0] == "Lamp" else NO)


def test_many_examples_take_seconds_and_bounded_memory() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{n}" for n in range(2000)]
    titles = [" ".join(generator.choice(words, 8)) for _ in range(500)]
    items = pl.DataFrame({"item_id": range(500), "title": titles})
    histories = generator.integers(500, size=(20_000, 10))
    targets = generator.integers(500, size=20_000)
    examples = pl.DataFrame({"history": histories.tolist(), "target": targets})
    similarity = word_similarities(examples, items).to_numpy()
    repeated = (histories == targets[:, None]).any(axis=1)
    assert similarity[repeated] == pytest.approx(1.0)
    assert similarity[~repeated].max() < 1.0
