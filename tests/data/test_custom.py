import gzip
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hatllm.data.sources.custom import find_tables, read_custom
from hatllm.data.sources.source_tables import SourceTables
from hatllm.data.sources.timestamps import to_microseconds

from .settings import data_config

PLAYS = "who,song,when\nann,s2,300\nbob,s1,100\nann,s1,200\n"
SONGS = "song,name\ns1,First\ns2,Second\ns3,Never played\n"


def config(**overrides: Any) -> Any:
    columns = {
        "user_column": "who",
        "item_column": "song",
        "time_column": "when",
        "title_column": "name",
        "interactions_file": "plays.csv",
        "items_file": "songs.csv",
    }
    return data_config(name="mine", source="custom", **columns | overrides)


def read(tmp_path: Path, plays: str = PLAYS, songs: str = SONGS) -> SourceTables:
    (tmp_path / "plays.csv").write_text(plays)
    (tmp_path / "songs.csv").write_text(songs)
    return read_custom(tmp_path / "plays.csv", tmp_path / "songs.csv", config())


def test_text_ids_are_numbered_by_first_appearance(tmp_path: Path) -> None:
    tables = read(tmp_path)
    assert tables.users.rows() == [(1, "ann"), (2, "bob")]
    assert tables.items.rows() == [(1, "Second", "s2"), (2, "First", "s1")]
    assert sorted(tables.interactions.rows()) == [(1, 1, 300), (1, 2, 200), (2, 2, 100)]


def test_integer_ids_are_kept(tmp_path: Path) -> None:
    tables = read(tmp_path, "who,song,when\n70,5,1\n30,4,2\n", "song,name\n4,Four\n5,Five\n")
    assert tables.interactions.rows() == [(70, 5, 1), (30, 4, 2)]
    assert tables.items.rows() == [(4, "Four", "4"), (5, "Five", "5")]


def test_ids_with_leading_zeros_are_texts(tmp_path: Path) -> None:
    tables = read(tmp_path, "who,song,when\n007,5,1\n7,5,2\n", "song,name\n5,Five\n")
    assert tables.users.rows() == [(1, "007"), (2, "7")]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "parquet", "jsonl", "jsonl.gz"])
def test_all_formats_give_the_same_tables(tmp_path: Path, suffix: str) -> None:
    expected = read(tmp_path)
    paths = []
    for name in ("plays", "songs"):
        table = pl.read_csv(tmp_path / f"{name}.csv")
        path = tmp_path / f"{name}.{suffix}"
        match suffix.removesuffix(".gz"):
            case "csv":
                content = table.write_csv().encode()
            case "tsv":
                content = table.write_csv(separator="\t").encode()
            case "jsonl":
                content = table.write_ndjson().encode()
            case _:
                table.write_parquet(path)
                content = path.read_bytes()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        paths.append(path)
    tables = read_custom(*paths, config())
    assert tables.interactions.equals(expected.interactions)
    assert tables.items.equals(expected.items)
    assert tables.users.equals(expected.users)


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    plays = PLAYS + "cat,s1,soon\n,s1,5\ndan,s1,1,extra\n"
    tables = read(tmp_path, plays, SONGS + "s1,Again\n,Nameless\n")
    assert tables.interactions.height == 3
    assert tables.bad_rows.counts == {
        "row of plays.csv without 3 fields": 1,
        "interaction without user or item": 1,
        "interaction with a bad timestamp": 1,
        "item without id": 1,
        "item listed twice": 1,
    }
    bad_time = tables.bad_rows.samples["interaction with a bad timestamp"]
    assert "raw_time='soon'" in bad_time[0]


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, PLAYS.replace("when", "whne"))
    message = str(caught.value)
    assert "data.time_column='when' is not a column of" in message
    assert "which has who, song, whne; did you mean 'whne'?" in message


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plays.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"unknown format '\.xlsx'; use one of \.csv"):
        read_custom(tmp_path / "plays.xlsx", tmp_path / "songs.csv", config())


def test_an_empty_file_and_a_cut_off_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plays\.csv is empty"):
        read(tmp_path, "")
    path = tmp_path / "plays.csv.gz"
    path.write_bytes(gzip.compress(PLAYS.encode())[:-12])
    with pytest.raises(ValueError, match="cut off"):
        read_custom(path, tmp_path / "songs.csv", config())


def test_files_are_looked_for_here_and_under_data_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.interactions_file='plays\.csv' is not there"):
        find_tables(config(), tmp_path)
    (tmp_path / "plays.csv").touch()
    (tmp_path / "songs.csv").touch()
    found = find_tables(config(), tmp_path)
    assert found == {"interactions": tmp_path / "plays.csv", "items": tmp_path / "songs.csv"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1_700_000_000, 5], [1_700_000_000_000_000, 5_000_000]),
        ([1.5, 2.0], [1_500_000, 2_000_000]),
        (["1700000000.5", "5", "7.0"], [1_700_000_000_500_000, 5_000_000, 7_000_000]),
        (["1700000000123", "1700000000124"], [1_700_000_000_123_000, 1_700_000_000_124_000]),
        ([1_700_000_000_123_456], [1_700_000_000_123_456]),
        ([1_700_000_000_123_456_789], [1_700_000_000_123_456]),
        (["1970-01-01T00:00:01Z", "1970-01-02", "no"], [1_000_000, 86_400_000_000, None]),
        (["1970-01-01T01:00:00+01:00", "1970-01-01 00:00:00.5"], [0, 500_000]),
        ([datetime(1970, 1, 1, 0, 0, 2)], [2_000_000]),
        ([datetime(1970, 1, 1, 3, 0, tzinfo=timezone(timedelta(hours=3)))], [0]),
        ([date(1970, 1, 2)], [86_400_000_000]),
        ([1.0, float("nan"), float("inf")], [1_000_000, None, None]),
        (["12", "soon", None, "13"], [12_000_000, None, None, 13_000_000]),
    ],
)
def test_times_of_any_unit_become_microseconds(values: list[Any], expected: list[Any]) -> None:
    times, _ = to_microseconds(pl.Series("when", values))
    assert times.to_list() == expected


def test_a_column_without_any_time_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"data\.time_column='when' holds no time .*'soon'"):
        to_microseconds(pl.Series("when", ["soon", "later"]))


def test_fractions_of_a_second_still_order_the_history(tmp_path: Path) -> None:
    tables = read(tmp_path, "who,song,when\nann,s2,5.7\nann,s1,5.2\n")
    assert tables.interactions["timestamp"].to_list() == [5, 5]
    assert tables.interactions["item_id"].to_list() == [2, 1]  # s1 was played first
