"""Hashes of tables that do not depend on file formats or library versions."""

import hashlib
from collections.abc import Iterable

import numpy as np
import polars as pl


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
