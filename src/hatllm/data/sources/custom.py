"""The user's own tables: one of interactions, one of items, as CSV, Parquet or JSON lines."""

import difflib
import json
from dataclasses import replace
from pathlib import Path

import polars as pl

from hatllm.config import DataConfig
from hatllm.config.data import TAB
from hatllm.data.json_lines import BadRows, line_blocks, read_json_lines
from hatllm.data.sources.csv_table import as_utf8, csv_content, parse_csv, told_separator
from hatllm.data.sources.source_tables import (
    SourceTables,
    as_text,
    check_ids_meet,
    check_json_ids,
    id_texts,
    names_shown,
    parquet_schema,
    rating_values,
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
        interactions_file: Columns user_column, item_column and time_column of the config, and
            rating_column where there is a min_rating. Times are Unix seconds, milli-, micro- or
            nanoseconds (told apart by size), dates as numbers, or ISO 8601 (UTC where it names no
            zone).
        items_file: Columns item_column and title_column.
        config: The column names, and how CSV files are written.

    Raises:
        ValueError: If a column is missing, naming those that are there, a format is unknown, or no
            id of one file is in the other.
    """
    bad_rows, notes = BadRows(), list[str]()
    interactions = _interactions(interactions_file, config, bad_rows, notes)
    items = _items(items_file, config, bad_rows, notes)
    check_ids_meet(interactions["item"], items["item"], interactions_file, items_file)
    tables = with_ids(interactions, items, bad_rows, notes)
    in_order = tables.interactions.sort("timestamp", maintain_order=True)  # before rounding
    return replace(tables, interactions=in_order.with_columns(pl.col("timestamp") // MICROSECONDS))


def _interactions(
    path: Path, config: DataConfig, bad_rows: BadRows, notes: list[str]
) -> pl.DataFrame:
    """User Utf8, item Utf8, timestamp Int64 (microseconds) and perhaps rating Float64, no nulls."""
    user, item, time = config.user_column, config.item_column, config.time_column
    ids = {"data.user_column": user, "data.item_column": item}
    fields = ids | {"data.time_column": time}
    if config.min_rating is not None:
        fields["data.rating_column"] = str(config.rating_column)
    raw = _read_table(path, fields, ids, config, bad_rows, notes)
    times, how_read = to_microseconds(raw[time])
    user_ids, user_notes = id_texts(raw[user], "data.user_column", path)
    item_ids, item_notes = id_texts(raw[item], "data.item_column", path)
    notes += [*how_read, *user_notes, *item_notes]
    interactions = pl.DataFrame(
        {"user": user_ids, "item": item_ids, "raw_time": raw[time], "timestamp": times}
    )
    if config.min_rating is not None:
        ratings = rating_values(raw[str(config.rating_column)], path)
        interactions = interactions.with_columns(rating=ratings)
    missing_id = pl.col("user").is_null() | pl.col("item").is_null()
    interactions = bad_rows.drop(interactions, missing_id, "interaction without user or item")
    bad_time = pl.col("timestamp").is_null() | (pl.col("timestamp") < 0)
    return bad_rows.drop(interactions, bad_time, "interaction with a bad timestamp")


def _items(path: Path, config: DataConfig, bad_rows: BadRows, notes: list[str]) -> pl.DataFrame:
    """Item Utf8, title Utf8; items that stand twice, and titles that are null, are left."""
    ids = {"data.item_column": config.item_column}
    fields = ids | {"data.title_column": config.title_column}
    raw = _read_table(path, fields, ids, config, bad_rows, notes)
    item_ids, item_notes = id_texts(raw[config.item_column], "data.item_column", path)
    notes += item_notes
    items = pl.DataFrame({"item": item_ids, "title": as_text(raw[config.title_column])})
    return bad_rows.drop(items, pl.col("item").is_null(), "item without id")


def _read_table(
    path: Path,
    fields: dict[str, str],
    ids: dict[str, str],
    config: DataConfig,
    bad_rows: BadRows,
    notes: list[str],
) -> pl.DataFrame:
    """Read the columns that ``fields`` (config field -> column) name; ``ids`` are those of ids."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    columns = list(dict.fromkeys(fields.values()))
    if suffix == ".parquet":
        _check_columns(path, list(parquet_schema(path)), fields)
        return read_parquet(path, columns)
    if suffix in (".csv", ".tsv"):
        content, encoding_notes = as_utf8(csv_content(path), config.encoding, path)
        default = "," if suffix == ".csv" else "\t"
        separator = config.separator or told_separator(content, columns, default)
        separator = "\t" if separator == TAB else separator
        table = parse_csv(content, separator, bad_rows, path)
        _check_columns(path, table.columns, fields)
        notes += encoding_notes
        if config.separator is None and separator != default:
            notes.append(f"{path.name} was read with the separator {separator!r} (data.separator)")
        return pl.DataFrame([table[column] for column in columns])
    if suffix in (".jsonl", ".ndjson", ".json"):
        _check_columns(path, _json_fields(path), fields)
        check_json_ids(path, ids)
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
