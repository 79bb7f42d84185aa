"""Spoilt copies of one clean table give its data, or a refusal that says what would be right."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hatllm.data.prepare import Dataset, prepare_dataset

from .settings import data_config

CASES = Path(__file__).parents[1] / "cases"


def prepare(name: str, cache: Path, **settings: Any) -> Dataset:
    files = {
        "interactions_file": str(CASES / name / "i.csv"),
        "items_file": str(CASES / name / "t.csv"),
    }
    config = data_config(name=name, source="custom", **files | settings)
    return prepare_dataset(config, None, cache)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = prepare("base", tmp_path_factory.mktemp("base"))
    assert dataset.splits["test"].height == 40
    assert dataset.items.height == 30
    return dataset


def counts(dataset: Dataset) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in dataset.manifest["bad_rows"].items()}


@pytest.mark.parametrize("name", ["mixed_units", "float_ids", "listed_twice"])
def test_a_spoilt_copy_gives_the_rows_of_the_clean_table(
    name: str, base: Dataset, tmp_path: Path
) -> None:
    dataset = prepare(name, tmp_path)
    for split, rows in base.splits.items():
        assert dataset.splits[split].equals(rows)
    assert dataset.items.equals(base.items)


def test_the_report_says_which_unit_was_read_how_often(tmp_path: Path) -> None:
    notes = prepare("mixed_units", tmp_path).manifest["notes"]
    assert notes == [
        "times were read value by value: 240 as Unix seconds, 240 as Unix milliseconds"
    ]


def test_the_row_without_an_id_is_counted_and_the_form_of_ids_noted(tmp_path: Path) -> None:
    dataset = prepare("float_ids", tmp_path)
    assert dataset.manifest["steps"][0]["interactions"] == 480
    assert counts(dataset) == {"interaction without user or item": 1}
    assert "480 ids like 110.0" in dataset.manifest["notes"][1]


def test_of_an_item_listed_twice_the_row_with_a_title_wins(tmp_path: Path) -> None:
    dataset = prepare("listed_twice", tmp_path)
    assert counts(dataset) == {"item listed twice": 30}
    assert "title=None" in dataset.manifest["bad_rows"]["item listed twice"]["samples"][0]


def test_dates_written_as_numbers_give_the_days_of_the_clean_table(
    base: Dataset, tmp_path: Path
) -> None:
    dataset = prepare("yyyymmdd", tmp_path)
    found, expected = dataset.splits["test"], base.splits["test"]
    assert found.drop("timestamp").equals(expected.drop("timestamp"))
    days = [frame["timestamp"].cast(pl.Int64) // 86_400 for frame in (found, expected)]
    assert days[0].equals(days[1])
    assert dataset.manifest["notes"] == ["times were read as dates like 20200913"]


def test_semicolons_quotes_and_latin_1_are_told_from_the_files(
    base: Dataset, tmp_path: Path
) -> None:
    columns = {"user_column": "User-ID", "item_column": "ISBN", "time_column": "at"}
    dataset = prepare("semicolon", tmp_path, title_column="Book-Title", **columns)
    assert dataset.splits["test"].equals(base.splits["test"])
    assert dataset.items["title"].to_list() == [f"{t} été" for t in base.items["title"]]
    notes = " ".join(dataset.manifest["notes"])
    assert "t.csv was read as cp1252 (data.encoding), for it is not UTF-8" in notes
    assert "i.csv was read with the separator ';' (data.separator)" in notes


def test_ratings_below_the_least_are_dropped_and_counted(tmp_path: Path) -> None:
    columns = {"user_column": "User-ID", "item_column": "ISBN", "time_column": "at"}
    columns |= {"title_column": "Book-Title", "rating_column": "Book-Rating"}
    whole = prepare("semicolon", tmp_path, min_interactions=1, **columns)
    rated = prepare("semicolon", tmp_path, min_interactions=1, min_rating=4, **columns)
    ratings = pl.read_csv(CASES / "semicolon" / "i.csv", separator=";", encoding="latin-1")[
        "Book-Rating"
    ]
    low = int((ratings < 4).sum())
    assert 0 < low < 480
    assert counts(rated) == {"interaction rated below 4": low}
    steps = {step["step"]: step["interactions"] for step in rated.manifest["steps"]}
    assert steps == {
        "read": 480, "rated 4 or more": 480 - low, "with a title": 480 - low, "1-core": 480 - low,
    }  # fmt: skip
    assert [step["step"] for step in whole.manifest["steps"]] == ["read", "with a title", "1-core"]


def test_titles_of_amazon_2018_are_without_tags_and_the_titled_row_counts(tmp_path: Path) -> None:
    config = data_config(
        name="amazon_Gadgets", source="amazon", release="2018", category="Gadgets",
        min_interactions=1,
    )  # fmt: skip
    dataset = prepare_dataset(config, CASES / "amazon2018_titles", tmp_path)
    titles = dict(zip(dataset.items["source_id"], dataset.items["title"], strict=True))
    assert titles["B00000101"] == "Garlic press"
    assert titles["B00000102"] == "See & Say deluxe"
    assert titles["B00000104"] == "Item number 04"
    assert "B00000103" not in titles
    assert counts(dataset)["review that stands there twice"] == 20
    assert dataset.manifest["steps"][0]["interactions"] == 480


def test_long_titles_are_cut_and_items_whose_titles_meet_share_one(tmp_path: Path) -> None:
    dataset = prepare("base", tmp_path, max_title_characters=12)
    assert dataset.items["title"].to_list() == ["Item number"] * 30
    assert dataset.items.height == 30
    assert "30 titles were cut to data.max_title_characters=12" in dataset.manifest["notes"]


def test_files_whose_ids_never_meet_are_refused_naming_one_of_each(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\nA-100,One\nA-101,Two\n")
    with pytest.raises(ValueError, match=r"no item id of .*i\.csv is in .*'110' and 'A-100'"):
        prepare("base", tmp_path, items_file=str(items))
