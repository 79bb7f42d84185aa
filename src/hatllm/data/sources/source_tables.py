"""What every source returns, and the integer ids of sources that name things by strings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hatllm.data.json_lines import BadRows
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
