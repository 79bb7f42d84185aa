"""What every source returns, and integer ids of what sources name by strings."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hatllm.data.json_lines import BLOCK_BYTES, BadRows, line_blocks
from hatllm.data.titles import prepared_titles
from hatllm.files import POLARS_ERRORS

CANONICAL_INTEGER = r"^(0|[1-9][0-9]{0,17})$"  # its text and its value say the same
# UnicodeDecodeError, Arrow's own invalid and not implemented, and types polars does not know.
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, *POLARS_ERRORS)
MAX_NAMES, MAX_NAME = 20, 40  # columns in a message, and characters of each
FIRST_ID = 1  # ids given to strings, like those of the published tables, leave 0 free


@dataclass(frozen=True)
class SourceTables:
    """One source, parsed but not filtered.

    Attributes:
        interactions: user_id Int64, item_id Int64, timestamp Int64 (Unix seconds) and, where
            ``data.min_rating`` is set, rating Float64; rows of equal time stand in the order of the
            source's file.
        items: item_id Int64 (unique), title Utf8 (null = untitled), source_id Utf8.
        users: user_id Int64 (unique), source_id Utf8.
        bad_rows: What was dropped on the way.
        notes: Anything a reader of the results should know.
        untouched_items: Items that were listed and left out because nobody touched them.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    bad_rows: BadRows
    notes: list[str] = field(default_factory=list)
    untouched_items: int = 0  # listed, but in no interaction


def dense_ids(source_ids: Sequence[pl.Series]) -> pl.DataFrame:
    """Map source ids to integers: their own where all are integers, else by first appearance.

    Args:
        source_ids: Columns of ids, Utf8 without nulls, in the order in which ids are handed out.

    Returns:
        source_id Utf8 (unique), id Int64, in order of first appearance.
    """
    ids = pl.concat([series.alias("source_id") for series in source_ids])
    unique = ids.unique(maintain_order=True).to_frame()
    if unique.select(pl.col("source_id").str.contains(CANONICAL_INTEGER).all()).item():
        return unique.with_columns(id=pl.col("source_id").cast(pl.Int64))
    return unique.with_row_index("id", offset=FIRST_ID).select(
        "source_id", pl.col("id").cast(pl.Int64)
    )


def with_ids(
    interactions: pl.DataFrame, items: pl.DataFrame, bad_rows: BadRows, notes: list[str]
) -> SourceTables:
    """Replace string ids by integers; the catalogue keeps only items that somebody touched.

    Args:
        interactions: user Utf8, item Utf8, timestamp Int64, no nulls, in file order; perhaps
            rating Float64.
        items: item Utf8, title Utf8; of an item's rows the first that has a title counts.
        bad_rows: Takes items that are listed twice.
        notes: Passed on.
    """
    users = dense_ids([interactions["user"]])
    items = listed_once(items, "item", bad_rows)
    item_ids = dense_ids([interactions["item"], items["item"]])
    known = items.join(item_ids, left_on="item", right_on="source_id", how="left")
    touched = known.filter(pl.col("item").is_in(interactions["item"].unique().implode()))
    dense = interactions.join(
        users, left_on="user", right_on="source_id", how="left", maintain_order="left"
    ).rename({"id": "user_id"})
    dense = dense.join(
        item_ids, left_on="item", right_on="source_id", how="left", maintain_order="left"
    ).rename({"id": "item_id"})
    return SourceTables(
        interactions=dense.select(
            "user_id", "item_id", "timestamp", *(["rating"] if "rating" in dense.columns else [])
        ),
        items=touched.select(pl.col("id").alias("item_id"), "title", source_id="item").sort(
            "item_id"
        ),
        users=users.select(pl.col("id").alias("user_id"), "source_id").sort("user_id"),
        bad_rows=bad_rows,
        notes=notes,
        untouched_items=known.height - touched.height,
    )


def listed_once(items: pl.DataFrame, key: str, bad_rows: BadRows) -> pl.DataFrame:
    """Return one row an item: the first that has a title, else the first.

    Args:
        items: Columns ``key`` and title, of which one is blank where nothing is left of it cleaned.
        key: Column of ids.
        bad_rows: Takes the other rows.
    """
    if items[key].n_unique() == items.height:
        return items
    titled = prepared_titles(items["title"], clean=True).is_not_null()
    rows = pl.DataFrame({key: items[key], "titled": titled}).with_row_index("row")
    chosen = rows.sort("titled", descending=True, maintain_order=True).unique(
        key, keep="first", maintain_order=True
    )
    others = ~rows["row"].is_in(chosen["row"].implode())
    return bad_rows.drop(items, pl.lit(others), "item listed twice")


def parquet_schema(path: Path) -> dict[str, pl.DataType]:
    """Return the columns of a Parquet file and their types.

    Raises:
        ValueError: If it is no Parquet file, or a cut-off one.
    """
    try:
        with path.open("rb") as file:
            return dict(_in_polars(pq.ParquetFile(file).schema_arrow.empty_table()).schema)
    except PARQUET_ERRORS as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def read_parquet(path: Path, columns: list[str]) -> pl.DataFrame:
    """Return some columns of a Parquet file.

    Arrow's reader, because that of polars ends the whole process at some damaged files.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read(columns=columns)
            table.validate(full=True)  # text is UTF-8, offsets lie within
            return _in_polars(table)
    except PARQUET_ERRORS as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _in_polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def names_shown(columns: Iterable[str]) -> str:
    """The columns of a file for a message; of a broken file these may be anything."""
    names = [ascii(name)[1:-1][:MAX_NAME] if len(name) > MAX_NAME else name for name in columns]
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def as_text(values: pl.Series) -> pl.Series:
    """Return plain values as Utf8.

    Raises:
        ValueError: If they are lists, structures or bytes.
    """
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise ValueError(f"column {values.name!r} holds {values.dtype}, must be texts or numbers")
    return values.cast(pl.Utf8)


def check_rating_column(column: str, found: Iterable[str], file: Path) -> None:
    """Refuse a file without the column of ratings.

    Raises:
        ValueError: Naming the file's columns.
    """
    found = list(found)
    if column not in found:
        raise ValueError(
            f"data.min_rating needs ratings, and {file} has no column {column!r} "
            f"(data.rating_column), only {names_shown(found)}"
        )


def rating_values(ratings: pl.Series, file: Path) -> pl.Series:
    """Return ratings as Float64, null where a value is no finite number.

    Args:
        ratings: As the file has them.
        file: Where they stand, for the message.

    Raises:
        ValueError: If there are rows and not one has a number, or they are lists or structures.
    """
    numbers = as_text(ratings).str.strip_chars().cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    if len(numbers) and numbers.null_count() == len(numbers):
        raise ValueError(
            f"data.rating_column={ratings.name!r} of {file} holds no number; data.min_rating=null "
            "keeps every interaction"
        )
    return numbers


# 110.0: an integer column that once had a gap, as pandas writes it. 007.0 and 1.50 are texts.
WHOLE_FLOAT = r"^(-?(?:0|[1-9][0-9]*))\.0+$"
# 1.23457E+17, 1e+17: what a spreadsheet or a float makes of a long number.
LOST_DIGITS = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$|^-?[0-9]\.[0-9]+[eE][0-9]+$"
LONG_FLOAT = rb"\s*:\s*-?[0-9]{16,}\.[0-9]"  # in JSON
EXACT_BELOW, EXACT_BELOW_32 = 2**53, 2**24  # whole numbers above are rounded; in 32 bits
MAX_ID = 40  # characters in a message


def id_texts(ids: pl.Series, field: str, file: Path) -> tuple[pl.Series, list[str]]:
    """Return ids as text, 110.0 as 110, and a note where that was done; blank ones are null.

    Args:
        ids: As the file has them.
        field: The setting that names the column, for messages.
        file: Where they stand.

    Raises:
        ValueError: If they are no texts or numbers, or numbers that have lost digits.
    """
    where = f"{field}={ids.name!r} of {file.name}"
    text = _float_texts(ids, where) if ids.dtype.is_float() else as_text(ids)
    text = text.str.strip_chars()
    text = text.set(text == "", None)
    was_float = text.filter(text.str.contains(WHOLE_FLOAT))
    size = was_float.cast(pl.Float64).abs()
    scientific = text.filter(text.str.contains(LOST_DIGITS))
    for lost in (scientific, was_float.filter(size >= EXACT_BELOW)):
        if len(lost):
            raise ValueError(_lost(where, lost[0]))
    if was_float.is_empty():
        return text, []
    first = was_float[0]
    note = f"{len(was_float):,} ids like {first} in {where} were read like {first.split('.')[0]}"
    return text.str.replace(WHOLE_FLOAT, "${1}"), [note]


def _float_texts(ids: pl.Series, where: str) -> pl.Series:
    ids = ids.set(~ids.is_finite(), None)
    exact_below = EXACT_BELOW if ids.dtype == pl.Float64 else EXACT_BELOW_32
    rounded = ids.filter(ids.abs() >= exact_below)
    if len(rounded):
        raise ValueError(_lost(where, rounded[0]))
    whole = ids.cast(pl.Int64, strict=False)
    return whole.cast(pl.Utf8).zip_with(whole.cast(ids.dtype) == ids, ids.cast(pl.Utf8))


def _lost(where: str, value: object) -> str:
    return (
        f"{where} holds {value}, a long number written as a floating-point one, which loses "
        "digits, so that different ids become one: write ids as integers or texts"
    )


def check_json_ids(path: Path, fields: dict[str, str]) -> None:
    """Refuse ids such as 9007199254740993.0 in JSON, which any reader rounds.

    Args:
        path: JSON lines, gzipped or not.
        fields: Setting -> the field of ids that it names.

    Raises:
        ValueError: If there is one.
    """
    patterns = {
        field: re.compile(re.escape(f'"{name}"').encode() + LONG_FLOAT)
        for field, name in fields.items()
    }
    for block in line_blocks(path, BLOCK_BYTES):
        for of_field, pattern in patterns.items():
            if found := pattern.search(block):
                value = found.group().rsplit(b":", 1)[1].strip().decode()
                raise ValueError(_lost(f"{of_field}={fields[of_field]!r} of {path.name}", value))


def check_ids_meet(
    of_interactions: pl.Series, of_items: pl.Series, interactions_file: Path, items_file: Path
) -> None:
    """Refuse two files of which no item id of one is in the other.

    Raises:
        ValueError: Naming one id of each.
    """
    if of_interactions.is_empty() or of_items.is_empty():
        return
    if of_interactions.is_in(of_items.unique().implode()).any():
        return
    one, other = (repr(ids[0])[:MAX_ID] for ids in (of_interactions, of_items))
    raise ValueError(
        f"no item id of {interactions_file} is in {items_file}: the first are {one} and {other}; "
        "an item must have the same id in both"
    )
