"""The user's own tables: one of interactions, one of items, as CSV, Parquet or JSON lines."""

import difflib
import json
from pathlib import Path

import polars as pl

from hatllm.config import DataConfig
from hatllm.data.bad_rows import BadRows
from hatllm.data.json_lines import line_blocks, read_json_lines
from hatllm.data.sources.csv_table import read_csv_texts
from hatllm.data.sources.tables import (
    SourceTables,
    as_text,
    names_shown,
    parquet_schema,
    read_parquet,
    with_ids,
)
from hatllm.data.sources.timestamps import MICROSECONDS, to_microseconds

FORMATS = ".csv, .csv.gz, .tsv, .parquet, .jsonl, .jsonl.gz"


def find_tables(config: DataConfig, data_root: Path | None) -> dict[str, Path]:
    """Return both files, looked for in the working folder and then under data_root.

    Raises:
        ValueError: If one is not there.
    """
    names = {"interactions": config.interactions_file, "items": config.items_file}
    return {role: _find(f"data.{role}_file", str(name), data_root) for role, name in names.items()}


def _find(field: str, name: str, data_root: Path | None) -> Path:
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() or data_root is None else [path, data_root / path]
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place.absolute()) for place in places)
    raise ValueError(f"{field}={name!r} is not there; looked at {looked}")


def read_custom(interactions_file: Path, items_file: Path, config: DataConfig) -> SourceTables:
    """Read the user's tables; integer ids are kept, others are numbered by first appearance.

    Args:
        interactions_file: Columns user_column, item_column and time_column of the config; times
            are Unix seconds, milli-, micro- or nanoseconds (told apart by size), or ISO 8601 (UTC
            where it names no zone).
        items_file: Columns item_column and title_column.
        config: The column names.

    Raises:
        ValueError: If a column is missing, naming those that are there, or a format is unknown.
    """
    bad_rows = BadRows()
    user, item, time = config.user_column, config.item_column, config.time_column
    fields = {"data.user_column": user, "data.item_column": item, "data.time_column": time}
    raw = _read_table(interactions_file, fields, bad_rows)
    fields = {"data.item_column": item, "data.title_column": config.title_column}
    items = _read_table(items_file, fields, bad_rows)
    times, note = to_microseconds(raw[time])
    interactions = raw.select(
        user=_id_text(raw[user]), item=_id_text(raw[item]), raw_time=raw[time]
    )
    interactions = interactions.with_columns(times.alias("timestamp"))
    missing_id = pl.col("user").is_null() | pl.col("item").is_null()
    interactions = bad_rows.drop(interactions, missing_id, "interaction without user or item")
    bad_time = pl.col("timestamp").is_null() | (pl.col("timestamp") < 0)
    interactions = bad_rows.drop(interactions, bad_time, "interaction with a bad timestamp")
    items = items.select(item=_id_text(items[item]), title=as_text(items[config.title_column]))
    items = bad_rows.drop(items, pl.col("item").is_null(), "item without id")
    tables = with_ids(interactions, items, bad_rows, notes=[note])
    in_order = tables.interactions.sort("timestamp", maintain_order=True)  # before rounding
    return SourceTables(
        interactions=in_order.with_columns(pl.col("timestamp") // MICROSECONDS),
        items=tables.items,
        users=tables.users,
        bad_rows=bad_rows,
        notes=tables.notes,
        untouched_items=tables.untouched_items,
    )


def _id_text(ids: pl.Series) -> pl.Series:
    """Ids as text, 12.0 (an integer column that once had a gap) as 12; blank ones null."""
    if ids.dtype.is_float():
        ids = ids.set(~ids.is_finite(), None)
        whole = ids.cast(pl.Int64, strict=False)
        ids = whole if (whole.cast(pl.Float64) == ids).all() else ids
    text = as_text(ids).str.strip_chars()
    return text.set(text == "", None)


def _read_table(path: Path, fields: dict[str, str], bad_rows: BadRows) -> pl.DataFrame:
    """Read the columns that ``fields`` (config field -> column) name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    columns = list(dict.fromkeys(fields.values()))
    if suffix == ".parquet":
        _check_columns(path, list(parquet_schema(path)), fields)
        return read_parquet(path, columns)
    if suffix in (".csv", ".tsv"):
        table = read_csv_texts(path, "," if suffix == ".csv" else "\t", bad_rows)
        _check_columns(path, table.columns, fields)
        return pl.DataFrame([table[column] for column in columns])
    if suffix in (".jsonl", ".ndjson", ".json"):
        _check_columns(path, _json_fields(path), fields)
        return read_json_lines(path, dict.fromkeys(columns, pl.Utf8), bad_rows)
    raise ValueError(f"{path} has the unknown format {suffix!r}; use one of {FORMATS}")


def _check_columns(path: Path, found: list[str], fields: dict[str, str]) -> None:
    for field, column in fields.items():
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{field}={column!r} is not a column of {path}, which has "
                f"{names_shown(found)}{hint}"
            )


def _json_fields(path: Path) -> list[str]:
    """The fields of the first line that is a JSON object."""
    for block in line_blocks(path, 1 << 16):
        for line in block.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                return list(record)
    raise ValueError(f"{path} holds no line that is a JSON object")
