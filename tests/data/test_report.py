import io
import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from rich.console import Console

from hatllm.data.prepare import Dataset
from hatllm.data.report import Spread, data_report_table, dataset_statistics, write_data_report

from .test_prepare import interactions, items, prepare
from .test_ready import write_ready


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_ready(tmp_path / "films", interactions(), items())
    return prepare(tmp_path)


def test_statistics_are_those_counted_by_hand(dataset: Dataset) -> None:
    statistics = dataset_statistics(dataset)
    assert (statistics.users, statistics.items, statistics.interactions) == (2, 4, 8)
    assert statistics.title_characters == Spread(3, (9 + 3 + 4 + 4) / 4, 9)
    # Train: items 1, 2 of one user, 5, 4 of the other. Test targets: 5 and 1.
    test = statistics.splits["test"]
    assert test.rows == 2
    assert test.history_items == Spread(2, 2, 2)
    assert test.unseen_share == 0
    assert test.never_target_share == 1
    assert statistics.splits["valid"].never_target_share == 0  # targets 4 and 2


def test_targets_that_the_user_had_before_are_counted(tmp_path: Path) -> None:
    # User 1 takes film 1 again and again; user 2's test target is the item before the last.
    again = {1: [1, 2, 1, 1], 2: [2, 1, 4, 1]}
    rows = [
        (user, item, 10 * user + place)
        for user, films in again.items()
        for place, item in enumerate(films)
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    write_ready(tmp_path / "films", table, items())
    made = prepare(tmp_path, min_interactions=1)
    splits = dataset_statistics(made).splits
    found = {name: (s.targets_in_history, s.targets_last) for name, s in splits.items()}
    assert found == {"train": (0, 0), "valid": (1, 0), "test": (2, 1)}
    text = write_data_report(made, tmp_path / "report").read_text()
    assert "| target stands in its history | 0 (0.0%) | 1 (50.0%) | 2 (100.0%) |" in text
    assert "| target is the last history item | 0 (0.0%) | 0 (0.0%) | 1 (50.0%) |" in text


def test_targets_at_one_time_and_titles_without_words_are_counted(tmp_path: Path) -> None:
    # User 1's last three share a time: valid and test are told apart by the file's order alone.
    times = {1: [10, 20, 20, 20], 2: [10, 20, 30, 40]}
    rows = [(u, 1 + place, time) for u in times for place, time in enumerate(times[u])]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    hearts = items().with_columns(title=pl.Series(["♥", "愛 1", "Four", "Five", "Six"]))
    write_ready(tmp_path / "films", table, hearts)
    made = prepare(tmp_path, min_interactions=1)
    statistics = dataset_statistics(made)
    assert {name: s.targets_tied for name, s in statistics.splits.items()} == {
        "train": 1, "valid": 1, "test": 1,
    }  # fmt: skip
    assert statistics.wordless_titles == 1
    text = write_data_report(made, tmp_path / "report").read_text()
    assert "| target at the time of another of its user | 1 (50.0%) | 1 (50.0%) |" in text
    assert "- 1 items have a title without a letter a-z or a digit" in text


def test_the_report_says_that_leave_one_out_trains_on_what_comes_later(tmp_path: Path) -> None:
    write_ready(tmp_path / "films", interactions(), items())
    texts = {
        protocol: write_data_report(
            prepare(tmp_path, protocol=protocol), tmp_path / protocol
        ).read_text()
        for protocol in ("leave_one_out", "sliding_window")
    }
    note = "train holds interactions of some users that are later than valid and test targets"
    assert texts["leave_one_out"].count(note) == 1
    assert note not in texts["sliding_window"]


def test_targets_are_unseen_against_all_of_train_and_against_the_sample(tmp_path: Path) -> None:
    write_ready(tmp_path / "films", interactions(), items())
    sampled = prepare(tmp_path, train_rows=1)
    test = dataset_statistics(sampled).splits["test"]
    assert (test.unseen_share, test.unseen_in_sample_share) == (0, 0.5)


def test_shared_titles_are_counted(tmp_path: Path) -> None:
    doubled = items().with_columns(pl.col("title").replace({"Four": "Five"}))
    write_ready(tmp_path / "films", interactions(), doubled)
    statistics = dataset_statistics(prepare(tmp_path))
    assert (statistics.duplicate_titles, statistics.items_sharing_titles) == (1, 2)
    assert statistics.splits["test"].shared_title_share == 0.5


def test_the_report_holds_numbers_bad_rows_and_hashes(dataset: Dataset, tmp_path: Path) -> None:
    path = write_data_report(dataset, tmp_path / "report")
    text = path.read_text()
    assert path.name == "data_report.md"
    assert "2 users, 4 items, 8 interactions" in text
    assert "| rows | 2 | 2 | 2 |" in text
    assert "| target never a train target | 0.0% | 0.0% | 100.0% |" in text
    assert "- 2 x interaction with an untitled item, such as" in text
    assert dataset.manifest["split_hash"] in text
    manifest = json.loads((path.parent / "split_manifest.json").read_text())
    assert manifest == dataset.manifest


@pytest.mark.usefixtures("drawn")
def test_the_picture_is_a_readable_png(dataset: Dataset, tmp_path: Path) -> None:
    path = write_data_report(dataset, tmp_path).parent / "data_report.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10  # something is drawn


def test_the_terminal_table_shows_the_rows_by_split(dataset: Dataset) -> None:
    sink = io.StringIO()
    Console(file=sink, width=120).print(data_report_table(dataset))
    assert "films: 2 users, 4 items, 8 interactions" in sink.getvalue()
    assert "interaction with an untitled item" in sink.getvalue()
