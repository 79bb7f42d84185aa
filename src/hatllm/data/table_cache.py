"""Prepared tables on disk, one set for each set of settings and source files; their hashes."""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hatllm.files import (
    POLARS_ERRORS,
    damaged_file,
    folder_written_whole,
    record_checksums,
    write_json,
    write_table,
)

logger = logging.getLogger(__name__)

TABLES = ("items", "users", "train", "valid", "test", "train_interactions")
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class PreparedTables:
    """All examples of a data set, before any sampling.

    Attributes:
        tables: 'items', 'users', the three splits and 'train_interactions', see ``Dataset``.
        manifest: What is known about them (JSON-able).
    """

    tables: dict[str, pl.DataFrame]
    manifest: dict[str, Any]


def save_prepared(prepared: PreparedTables, folder: Path) -> None:
    """Write the tables; ``folder`` appears with everything in it or not at all."""
    with folder_written_whole(folder) as partial:
        for name, table in prepared.tables.items():
            write_table(partial / f"{name}.parquet", table)
        write_json(partial / MANIFEST_FILE, prepared.manifest)
        record_checksums(partial)


def load_prepared(folder: Path) -> PreparedTables | None:
    """Return the tables of ``folder``, or None where there are none or one is damaged."""
    if not folder.exists():
        return None
    if (damaged := damaged_file(folder)) is not None:
        logger.warning("%s is not as it was written: the prepared tables are built anew", damaged)
        return None
    try:
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, *POLARS_ERRORS) as error:
        logger.warning("prepared tables in %s cannot be read and are built anew: %s", folder, error)
        return None
    return PreparedTables(tables=tables, manifest=manifest)


def prepared_hash(folder: Path) -> str | None:
    """``data_hash`` of the tables of ``folder``; None where there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("data_hash")


def table_hash(frame: pl.DataFrame) -> str:
    """Return the SHA-256 over a table's columns, rows in order, hexadecimal.

    Per column: its name; integers as little-endian 64-bit; texts as UTF-8, each after its length
    in bytes (-1 = null); lists of integers as lengths, then values.

    Raises:
        TypeError: If a column is of another type.
    """
    digest = hashlib.sha256()
    for column in frame.get_columns():
        digest.update(f"{column.name}:{len(column)};".encode())
        for chunk in _bytes(column):
            digest.update(chunk)
    return digest.hexdigest()


def tables_hash(frames: dict[str, pl.DataFrame]) -> str:
    """Return the SHA-256 over the names and hashes of several tables."""
    digest = hashlib.sha256()
    for name, frame in frames.items():
        digest.update(f"{name}={table_hash(frame)};".encode())
    return digest.hexdigest()


def _bytes(column: pl.Series) -> Iterable[bytes]:
    if column.dtype == pl.Int64:
        yield _integers(column)
    elif column.dtype == pl.List(pl.Int64):
        yield _integers(column.list.len().cast(pl.Int64))
        yield _integers(column.filter(column.list.len() > 0).explode())
    elif column.dtype == pl.Utf8:
        yield _integers(column.str.len_bytes().cast(pl.Int64).fill_null(-1))
        yield "".join(column.drop_nulls()).encode()
    else:
        raise TypeError(f"column {column.name!r} of type {column.dtype} has no hash")


def _integers(column: pl.Series) -> bytes:
    return np.ascontiguousarray(column.to_numpy(), dtype="<i8").tobytes()
