"""The published rows, on the real tables (HATLLM_DATA_ROOT)."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from hatllm.data.prepare import prepare_dataset
from hatllm.data.report import dataset_statistics

from .test_conf import compose_data

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("HATLLM_DATA_ROOT" not in os.environ, reason="HATLLM_DATA_ROOT is not set"),
]


@pytest.fixture
def root() -> Path:
    return Path(os.environ["HATLLM_DATA_ROOT"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each data set is prepared once for all that look at it."""
    return tmp_path_factory.mktemp("cache")


def published_rows(folder: Path, split: str) -> list[tuple[int, list[int], int]]:
    rows = pl.read_csv(folder / f"{split}.csv").rows()
    return [(user, json.loads(item_ids), time) for user, item_ids, time in rows]


def test_toys_equal_the_published_rows_one_by_one(root: Path, cache: Path) -> None:
    dataset = prepare_dataset(compose_data("toys", ["data.clean_titles=false"]), root, cache)
    # The published ids are ranks, from 1, of the surviving users and items.
    users = {user: rank for rank, user in enumerate(sorted(dataset.users["user_id"]), start=1)}
    items = {item: rank for rank, item in enumerate(sorted(dataset.items["item_id"]), start=1)}
    for split, num_rows in {"train": 38_344, "valid": 4_793, "test": 4_794}.items():
        found = [
            (users[user], [items[item] for item in [*history, target]], time)
            for _, user, history, target, time in dataset.splits[split].rows()
        ]
        assert len(found) == num_rows
        assert found == published_rows(root / "msl_toys", split)
    published = json.loads((root / "msl_toys" / "id2name4Rec.json").read_text())
    titles = dict(zip(dataset.items["item_id"], dataset.items["title"], strict=True))
    different = [title for item, title in titles.items() if published[str(items[item])] != title]
    assert len(titles) == len(published) == 11_758
    assert different == ["My Little Pony: Friendship Ball - Star Catcher with VHS"]


def test_published_windows_laid_together_are_the_interactions_that_train_holds(
    root: Path, cache: Path
) -> None:
    made = prepare_dataset(compose_data("toys", ["data.clean_titles=false"]), root, cache)
    windows = prepare_dataset(compose_data("msl_toys", []), root, cache)
    rank_of_item = {item: rank for rank, item in enumerate(made.items["item_id"], start=1)}
    rank_of_user = {user: rank for rank, user in enumerate(made.users["user_id"], start=1)}
    expected = [
        (rank_of_user[user], rank_of_item[item], place)
        for user, item, place in made.train_interactions.rows()
    ]
    assert windows.train_interactions.rows() == expected
    # Stride 1: a user's first window brings all of its items, each further one its target.
    first_windows = {
        user: items for user, items, _ in reversed(published_rows(root / "msl_toys", "train"))
    }
    further = windows.full_train.height - len(first_windows)
    assert len(expected) == sum(map(len, first_windows.values())) + further


@pytest.mark.parametrize("name", ["msl_toys", "msl_books", "msl_clothing", "msl_office"])
def test_published_windows_are_read_row_by_row(root: Path, cache: Path, name: str) -> None:
    dataset = prepare_dataset(compose_data(name, []), root, cache)
    found = [
        (user, [*history, target], time)
        for _, user, history, target, time in dataset.splits["test"].rows()
    ]
    assert found == published_rows(root / name, "test")
    has_valid = (root / name / "valid.csv").exists()
    assert (dataset.manifest["holdout"] is None) == has_valid


@pytest.mark.parametrize(
    ("name", "percent"),
    [("msl_toys", 26), ("msl_books", 64), ("msl_clothing", 4), ("msl_office", 47)],
)
def test_shares_of_unseen_test_targets_are_those_of_the_data_notes(
    root: Path, cache: Path, name: str, percent: int
) -> None:
    config = compose_data(name, ["data.holdout_fraction=0"])
    test = dataset_statistics(prepare_dataset(config, root, cache)).splits["test"]
    assert round(100 * test.unseen_share) == percent


def test_sports_counts(root: Path, cache: Path) -> None:
    dataset = prepare_dataset(compose_data("sports", []), root, cache)
    assert dataset.manifest["steps"][0] == {
        "step": "read",
        "interactions": 296_337,
        "users": 35_598,
        "items": 18_357,
    }
    assert dataset.manifest["bad_rows"]["item without a title"]["count"] == 102
    assert dataset.manifest["timings"]["total_s"] < 20
