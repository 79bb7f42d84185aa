"""Ready tables: ``interactions.parquet`` and ``items.parquet`` in one folder.

``interactions.parquet`` has user_id, item_id (integers) and timestamp (Unix seconds), a user's rows
in interaction order; ``items.parquet`` has item_id and title (null = untitled), and may have asin.
"""

from pathlib import Path

import polars as pl

from hatllm.data.json_lines import BadRows
from hatllm.data.sources.source_tables import (
    SourceTables,
    as_text,
    check_ids_meet,
    check_rating_column,
    listed_once,
    names_shown,
    parquet_schema,
    rating_values,
    read_parquet,
)

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"


def read_ready_tables(
    interactions_file: Path, items_file: Path, rating_column: str | None = None
) -> SourceTables:
    """Read ready tables; their own integer ids are kept.

    Args:
        interactions_file: The interactions.
        items_file: The items.
        rating_column: Where the ratings stand; None = they are not read.

    Raises:
        ValueError: If a column is missing, an id is not an integer, or no id of one file is in the
            other.
    """
    interactions = _interactions(interactions_file, rating_column)
    items = _integers(items_file, ["item_id"])
    if "title" not in items.columns:
        raise ValueError(f"{items_file} has no column 'title', only {names_shown(items.columns)}")
    bad_rows = BadRows()
    missing_id = pl.col("user_id").is_null() | pl.col("item_id").is_null()
    interactions = bad_rows.drop(interactions, missing_id, "interaction without user or item")
    bad_time = pl.col("timestamp").is_null() | (pl.col("timestamp") < 0)
    interactions = bad_rows.drop(interactions, bad_time, "interaction with a bad timestamp")
    items = bad_rows.drop(items, pl.col("item_id").is_null(), "item without id")
    check_ids_meet(interactions["item_id"], items["item_id"], interactions_file, items_file)
    own_id = pl.col("item_id").cast(pl.Utf8)
    items = items.with_columns(as_text(items[name]) for name in ("asin", "title")
                               if name in items.columns)  # fmt: skip
    items = listed_once(items, "item_id", bad_rows)
    source_id = pl.coalesce("asin", own_id) if "asin" in items.columns else own_id
    users = interactions.select(pl.col("user_id").unique().sort())
    return SourceTables(
        interactions=interactions,
        items=items.select("item_id", "title", source_id=source_id),
        users=users.with_columns(source_id=pl.col("user_id").cast(pl.Utf8)),
        bad_rows=bad_rows,
    )


def _interactions(file: Path, rating_column: str | None) -> pl.DataFrame:
    """The columns that are read of the interactions; with the column of ratings, ``rating``."""
    interactions = _integers(file, ["user_id", "item_id", "timestamp"])
    if rating_column is None:
        return interactions
    check_rating_column(rating_column, parquet_schema(file), file)
    ratings = read_parquet(file, [rating_column])[rating_column]
    return interactions.with_columns(rating=rating_values(ratings, file))


def _integers(path: Path, columns: list[str]) -> pl.DataFrame:
    """Read a table with ``columns`` as Int64; of interactions only these columns."""
    schema = parquet_schema(path)
    for column in columns:
        if column not in schema:
            raise ValueError(f"{path} has no column {column!r}, only {names_shown(schema)}")
        if not schema[column].is_integer():
            raise ValueError(f"{path}: column {column!r} is {schema[column]}, must be integers")
    optional: list[str] = [name for name in ("asin", "title") if name in schema]
    table = read_parquet(path, columns + optional)
    try:
        return table.with_columns(pl.col(columns).cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: an integer does not fit 64 bits with a sign") from error


def find_ready_tables(folder: Path) -> tuple[Path, Path] | None:
    """Return both files of ``folder``, or None where it has neither.

    Raises:
        ValueError: If only one of the two is there.
    """
    files = folder / INTERACTIONS_FILE, folder / ITEMS_FILE
    found = [file for file in files if file.exists()]
    if len(found) == 1:
        missing = files[0] if found[0] == files[1] else files[1]
        raise ValueError(f"{folder} holds {found[0].name} but not {missing.name}; both are needed")
    return files if found else None
