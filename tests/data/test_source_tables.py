from pathlib import Path

import polars as pl
import pytest

from hatllm.data.sources.custom import read_custom
from hatllm.data.sources.source_tables import id_texts

from .settings import data_config

FILE = Path("plays.csv")


def texts(ids: pl.Series) -> list[str | None]:
    return id_texts(ids, "data.item_column", FILE)[0].to_list()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["110.0", "111.00", None], ["110", "111", None]),
        (["007", "7", "007.0"], ["007", "7", "007.0"]),
        (["1.5", "1.50", "v1.0", "1e5"], ["1.5", "1.50", "v1.0", "1e5"]),
        ([" A 1\t", "\xa0B", "  "], ["A 1", "B", None]),
        (["9007199254740991.0", "9007199254740993"], ["9007199254740991", "9007199254740993"]),
        ([110.0, 1.5, float("nan"), None], ["110", "1.5", None, None]),
        ([2.0**53 - 1, 1e15], ["9007199254740991", "1000000000000000"]),
        ([9007199254740993, 9007199254740992], ["9007199254740993", "9007199254740992"]),
    ],
)
def test_ids_are_what_they_were_before_a_program_wrote_them(
    written: list[object], meant: list[str | None]
) -> None:
    assert texts(pl.Series("song", written)) == meant


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series("song", [1.0, 2.0**53]),
        pl.Series("song", [float(2**24)], dtype=pl.Float32),
        pl.Series("song", ["1.23457E+17", "5"]),
        pl.Series("song", ["1e+17"]),
        pl.Series("song", ["9007199254740992.0", "9007199254740993.0"]),
        pl.Series("song", ["1.2345678901234568e+17"]),
    ],
)
def test_ids_that_have_lost_digits_are_refused_by_name(ids: pl.Series) -> None:
    with pytest.raises(ValueError, match=r"data\.item_column='song' of plays\.csv holds .*digits"):
        texts(ids)


def read(tmp_path: Path, plays: str, songs: str) -> list[tuple[str, ...]]:
    """(user, item) of each interaction as source ids."""
    names = tmp_path / "plays.jsonl", tmp_path / "songs.csv"
    names[0].write_bytes(plays.encode())
    names[1].write_bytes(songs.encode())
    columns = {"user_column": "who", "item_column": "song", "time_column": "at"}
    files = {"interactions_file": str(names[0]), "items_file": str(names[1])}
    config = data_config(name="mine", source="custom", title_column="name", **columns, **files)
    tables = read_custom(*names, config)
    users = dict(tables.users.select("user_id", "source_id").rows())
    items = dict(tables.items.select("item_id", "source_id").rows())
    return [(users[user], items[item]) for user, item, _ in tables.interactions.rows()]


def test_json_lines_and_csv_meet_with_marks_line_ends_and_blanks(tmp_path: Path) -> None:
    plays = (
        '\ufeff{"who": 7.0, "song": 110.0, "at": 1}\r\n{"who": "07", "song": " 111", "at": 2}\r\n'
    )
    songs = '\ufeff"song","name"\r\n"110","One"\r\n" 111 ","Two"\r\n'
    assert read(tmp_path, plays, songs) == [("7", "110"), ("07", "111")]


def test_long_floats_in_json_are_refused(tmp_path: Path) -> None:
    plays = '{"who": 1, "song": 9007199254740993.0, "at": 1}\n'
    with pytest.raises(ValueError, match=r"plays\.jsonl holds 9007199254740993\.0, a long number"):
        read(tmp_path, plays, "song,name\n9007199254740993,One\n")


def test_long_integers_in_json_stay_apart(tmp_path: Path) -> None:
    rows = [f'{{"who": 1, "song": {2**53 + step}, "at": {step}}}\n' for step in (0, 1)]
    songs = f"song,name\n{2**53},One\n{2**53 + 1},Two\n"
    assert read(tmp_path, "".join(rows), songs) == [("1", str(2**53)), ("1", str(2**53 + 1))]
