from pathlib import Path

import polars as pl
import pytest

from hatllm.data.sources.ready import find_ready_tables, read_ready_tables


def write_ready(folder: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    interactions.write_parquet(folder / "interactions.parquet")
    items.write_parquet(folder / "items.parquet")
    return folder / "interactions.parquet", folder / "items.parquet"


INTERACTIONS = pl.DataFrame({"user_id": [4, 2], "item_id": [9, 8], "timestamp": [5, 6]})
ITEMS = pl.DataFrame({"item_id": [8, 9], "asin": ["B8", None], "title": ["eight", None]})


def test_ready_tables_keep_their_ids(tmp_path: Path) -> None:
    narrow = INTERACTIONS.cast({"user_id": pl.Int32, "item_id": pl.UInt16})
    tables = read_ready_tables(*write_ready(tmp_path, narrow, ITEMS))
    assert tables.interactions.equals(INTERACTIONS)
    assert tables.interactions.dtypes == [pl.Int64] * 3
    assert tables.items.rows() == [(8, "eight", "B8"), (9, None, "9")]
    assert tables.users.rows() == [(2, "2"), (4, "4")]


def test_without_asins_the_id_is_the_source_id(tmp_path: Path) -> None:
    tables = read_ready_tables(*write_ready(tmp_path, INTERACTIONS, ITEMS.drop("asin")))
    assert tables.items["source_id"].to_list() == ["8", "9"]


def test_bad_rows_of_ready_tables_are_counted(tmp_path: Path) -> None:
    interactions = pl.DataFrame(
        {"user_id": [1, None, 1, 1], "item_id": [8, 8, 8, 8], "timestamp": [5, 5, None, -1]}
    )
    items = pl.concat([ITEMS, ITEMS.head(1)])
    tables = read_ready_tables(*write_ready(tmp_path, interactions, items))
    assert tables.interactions.rows() == [(1, 8, 5)]
    assert tables.bad_rows.counts == {
        "interaction without user or item": 1,
        "interaction with a bad timestamp": 2,
        "item listed twice": 1,
    }


def test_one_file_of_two_is_refused_naming_the_other(tmp_path: Path) -> None:
    write_ready(tmp_path, INTERACTIONS, ITEMS)
    assert find_ready_tables(tmp_path / "elsewhere") is None
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(ValueError, match=r"interactions\.parquet but not items\.parquet"):
        find_ready_tables(tmp_path)


def test_missing_columns_and_text_ids_are_refused_by_name(tmp_path: Path) -> None:
    files = write_ready(tmp_path, INTERACTIONS.drop("timestamp"), ITEMS)
    with pytest.raises(ValueError, match="no column 'timestamp', only user_id, item_id"):
        read_ready_tables(*files)
    files = write_ready(tmp_path, INTERACTIONS.cast({"user_id": pl.Utf8}), ITEMS)
    with pytest.raises(ValueError, match="column 'user_id' is String, must be integers"):
        read_ready_tables(*files)


def test_a_cut_off_parquet_file_is_refused(tmp_path: Path) -> None:
    files = write_ready(tmp_path, INTERACTIONS, ITEMS)
    files[0].write_bytes(files[0].read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"interactions\.parquet is no readable Parquet file"):
        read_ready_tables(*files)


def test_ready_tables_with_ratings_give_them_and_others_are_refused(tmp_path: Path) -> None:
    files = write_ready(tmp_path, INTERACTIONS.with_columns(rating=pl.Series([2, 5])), ITEMS)
    assert read_ready_tables(*files, "rating").interactions["rating"].to_list() == [2.0, 5.0]
    assert read_ready_tables(*files).interactions.columns == INTERACTIONS.columns
    files = write_ready(tmp_path, INTERACTIONS, ITEMS)
    with pytest.raises(ValueError, match=r"data\.min_rating needs ratings, .* no column 'rating'"):
        read_ready_tables(*files, "rating")


def test_a_titled_row_of_an_item_listed_twice_wins(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [8, 9, 8, 8], "title": ["&nbsp;", "nine", "eight", "other"]})
    tables = read_ready_tables(*write_ready(tmp_path, INTERACTIONS, items))
    assert tables.items["title"].to_list() == ["nine", "eight"]
    assert tables.bad_rows.counts == {"item listed twice": 2}


def test_ready_tables_whose_ids_never_meet_are_refused(tmp_path: Path) -> None:
    files = write_ready(tmp_path, INTERACTIONS, ITEMS.with_columns(pl.col("item_id") + 100))
    with pytest.raises(ValueError, match=r"no item id of .* the first are 9 and 108"):
        read_ready_tables(*files)
