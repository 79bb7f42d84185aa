"""CSV files as columns of text."""

import codecs
import csv
import io
import re
from pathlib import Path

import numpy as np
import polars as pl

from hatllm.data.bad_rows import BadRows
from hatllm.data.json_lines import BLOCK_BYTES, line_blocks
from hatllm.whole_files import POLARS_ERRORS

MAX_FIELD_CHARACTERS = 1 << 30
EMPTY_LINE = re.compile(rb"(?:^|\n)\r?\n")
UNDECODED = re.compile("[\ud800-\udfff]")  # bytes that are no UTF-8, under surrogateescape


def read_csv_texts(path: Path, separator: str, bad_rows: BadRows) -> pl.DataFrame:
    """Return all columns of a CSV file as Utf8.

    A row that has too many or too few fields, or is not UTF-8, is a bad row.

    Args:
        path: CSV with a header, gzipped or not.
        separator: One character.
        bad_rows: Takes rows that cannot be read.

    Raises:
        ValueError: If the file is empty or not UTF-8, a quote is never closed, or a gzip file is
            damaged or ends too early.
    """
    content = b"".join(line_blocks(path, BLOCK_BYTES))
    if not content.strip():
        raise ValueError(f"{path} is empty; its first line must name the columns")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8")
    # polars does not tell what it makes of a stray quote, and takes an empty line for a row.
    if _quotes_are_closed(content) and not EMPTY_LINE.search(content):
        try:
            return pl.read_csv(content, separator=separator, infer_schema=False)
        except POLARS_ERRORS:  # one bad row fails the file: find it
            pass
    return _read_row_by_row(content, separator, bad_rows, path)


def _read_row_by_row(content: bytes, separator: str, bad_rows: BadRows, path: Path) -> pl.DataFrame:
    text = io.StringIO(content.decode("utf-8-sig", errors="surrogateescape"), newline="")
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.reader(text, delimiter=separator, strict=True)
    rows: list[list[str]] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: the row that begins in line {start} has {error}") from error
    header, *rows = rows
    if len(set(header)) < len(header) or not _is_utf8(header):
        raise ValueError(f"{path} names a column twice or in another encoding than UTF-8")
    short = [row for row in rows if len(row) != len(header)]
    foreign = [row for row in rows if len(row) == len(header) and not _is_utf8(row)]
    rows = [row for row in rows if len(row) == len(header) and _is_utf8(row)]
    for reason, bad in (
        (f"row of {path.name} without {len(header)} fields", short),
        (f"row of {path.name} that is not UTF-8", foreign),
    ):
        samples = (_readable(separator.join(row)) for row in bad)
        bad_rows.add(reason, samples, len(bad))
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return pl.DataFrame(
        [pl.Series(name, [field or None for field in fields], dtype=pl.Utf8)
         for name, fields in zip(header, columns, strict=True)]
    )  # fmt: skip


def _quotes_are_closed(content: bytes) -> bool:
    """Whether every line has an even number of quotes, so that no field goes over its end."""
    characters = np.frombuffer(content, np.uint8)
    quotes = np.cumsum(characters == ord('"'))
    return bool((quotes[characters == ord("\n")] % 2 == 0).all() and quotes[-1] % 2 == 0)


def _is_utf8(fields: list[str]) -> bool:
    return not any(UNDECODED.search(field) for field in fields)


def _readable(text: str) -> str:
    return UNDECODED.sub("\N{REPLACEMENT CHARACTER}", text)
