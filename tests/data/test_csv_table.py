from pathlib import Path
from typing import Any

import pytest

from hatllm.data.json_lines import BadRows
from hatllm.data.sources.csv_table import as_utf8, parse_csv, told_separator
from hatllm.data.sources.custom import read_custom

from .settings import data_config

FILE = Path("songs.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_separator_is_told_from_the_header(separator: str, quote: str) -> None:
    names = [f"{quote}{name}{quote}" for name in ("song", "name", "at")]
    content = separator.join(names).encode() + b"\n1;2,3|4\n"
    assert told_separator(content, ["song", "name"], ",") == separator


def test_columns_that_are_named_tell_more_than_many_fields() -> None:
    header = b"song;name, long; artist, first, last\n"
    assert told_separator(header, ["song"], ",") == ";"
    assert told_separator(b"song\n1\n", ["song"], "\t") == "\t"


@pytest.mark.parametrize("separator", ["@", r"\t"])
def test_a_separator_that_is_named_is_taken(separator: str, tmp_path: Path) -> None:
    mark = "\t" if separator == r"\t" else separator
    interactions, items = tmp_path / "i.csv", tmp_path / "t.csv"
    interactions.write_text("user_id,item_id,timestamp\n1,5,9\n".replace(",", mark))
    items.write_text("item_id,title\n5,A; B\n".replace(",", mark))
    tables = read_custom(interactions, items, data_config(name="mine", separator=separator))
    assert tables.items["title"].to_list() == ["A; B"]
    assert tables.interactions.rows() == [(1, 5, 9)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_the_encoding_is_told_from_the_bytes(encoding: str) -> None:
    text = "song,name\r\n1,été à Zürich\r\n2,plain\r\n"
    content, notes = as_utf8(text.encode(encoding), None, FILE)
    table = parse_csv(content, ",", BadRows(), FILE)
    assert table.rows() == [("1", "été à Zürich"), ("2", "plain")]
    assert bool(notes) == (not encoding.startswith("utf-8"))


def test_one_foreign_row_among_others_is_a_bad_row() -> None:
    content, _ = as_utf8("1,é\n".encode() + b"2,\xe9\n", None, FILE)
    bad_rows = BadRows()
    assert parse_csv(b"song,name\n" + content, ",", bad_rows, FILE).rows() == [("1", "é")]
    assert bad_rows.counts == {"row of songs.csv that is not UTF-8": 1}


def test_an_encoding_that_cannot_be_told_is_asked_for_and_then_read() -> None:
    text = "song,name\n1,Война и мир\n"
    with pytest.raises(ValueError, match=r"songs\.csv is not UTF-8: .*data\.encoding=cp1251"):
        as_utf8(text.encode("cp1251"), None, FILE)
    assert as_utf8(text.encode("cp1251"), "cp1251", FILE) == (text.encode(), [])
    with pytest.raises(ValueError, match=r"data\.encoding=ascii: songs\.csv is not ascii"):
        as_utf8(text.encode("cp1251"), "ascii", FILE)


def test_quotes_escaped_by_a_backslash_stay_in_the_title() -> None:
    content = b'"song";"name"\n"1";"The \\"best\\" of; all"\n"2";"plain"\n'
    table = parse_csv(content, ";", BadRows(), FILE)
    assert table.rows() == [("1", 'The "best" of; all'), ("2", "plain")]


def test_lines_of_an_old_macintosh_are_rows() -> None:
    assert parse_csv(b"a,b\r1,2\r3,4\r", ",", BadRows(), FILE).rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"separator": ";;"}, r"data\.separator=';;' must be one character"),
        ({"separator": '"'}, r"data\.separator='\"' must be one character"),
        ({"encoding": "latin-99"}, r"data\.encoding='latin-99' is no encoding"),
        ({"encoding": "rot13"}, r"data\.encoding='rot13' is no encoding"),
        ({"max_title_characters": 0}, r"data\.max_title_characters=0 must be at least 1"),
        ({"min_rating": float("nan")}, r"data\.min_rating=nan must be a finite number"),
        ({"min_rating": 3.0, "source": "windows"}, r"data\.min_rating=3\.0 must be null"),
        (
            {"min_rating": 3.0, "source": "custom", "interactions_file": "i", "items_file": "t"},
            r"data\.min_rating=3\.0 needs data\.rating_column",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data_config(**settings)
