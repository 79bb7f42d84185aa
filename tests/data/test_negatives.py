import numpy as np
import pytest
from toys import TITLES, toy_book

from hatllm.data.targets import Negatives

NUM_TITLES = len(set(TITLES.values()))


def test_a_row_has_the_same_negatives_whenever_it_is_asked_for() -> None:
    book = toy_book()
    one, other = Negatives.of(book, 3, seed=7), Negatives.of(book, 3, seed=7)
    drawn = [one.draw(example, 0).tolist() for example in range(20)]
    assert drawn == [other.draw(example, 0).tolist() for example in reversed(range(20))][::-1]
    assert drawn != [Negatives.of(book, 3, seed=8).draw(e, 0).tolist() for e in range(20)]
    assert len({tuple(row) for row in drawn}) > 10


def test_negatives_are_different_titles_and_never_the_targets() -> None:
    book = toy_book()
    negatives = Negatives.of(book, NUM_TITLES - 1, seed=1)
    for row, item in enumerate(sorted(TITLES)):
        for example in range(10):
            titles = [TITLES[i] for i in negatives.draw(example, row).tolist()]
            assert sorted(titles) == sorted(set(TITLES.values()) - {TITLES[item]})


def test_every_other_title_is_drawn_equally_often() -> None:
    negatives = Negatives.of(toy_book(), 2, seed=3)
    drawn = np.concatenate([negatives.draw(example, 0) for example in range(3500)])
    _, counts = np.unique(drawn, return_counts=True)
    assert len(counts) == NUM_TITLES - 1
    # 1000 expected of each, standard deviation 27.
    assert abs(counts - 1000).max() < 110


def test_too_few_titles_are_an_error() -> None:
    with pytest.raises(ValueError, match=rf"num_negatives={NUM_TITLES} must be below {NUM_TITLES}"):
        Negatives.of(toy_book(), NUM_TITLES, seed=1)
