"""CSV files as columns of text."""

import csv
import io
from pathlib import Path

import polars as pl

from hatllm.data.bad_rows import BadRows
from hatllm.data.json_lines import BLOCK_BYTES, line_blocks


def read_csv_texts(path: Path, separator: str, bad_rows: BadRows) -> pl.DataFrame:
    """Return all columns of a CSV file as Utf8; a row with too many fields is a bad row.

    Args:
        path: CSV with a header, gzipped or not.
        separator: One character.
        bad_rows: Takes rows that cannot be read.

    Raises:
        ValueError: If the file is empty, or a gzip file is damaged or ends too early.
    """
    content = b"".join(line_blocks(path, BLOCK_BYTES))
    if not content.strip():
        raise ValueError(f"{path} is empty; its first line must name the columns")
    try:
        return pl.read_csv(content, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError:  # one bad row fails the file: find it
        return _read_row_by_row(content, separator, bad_rows, path.name)


def _read_row_by_row(content: bytes, separator: str, bad_rows: BadRows, name: str) -> pl.DataFrame:
    text = io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")
    reader = csv.reader(text, delimiter=separator)
    header = next(reader)
    rows: list[list[str]] = []
    bad: list[list[str]] = []
    for row in reader:
        if row:
            (rows if len(row) == len(header) else bad).append(row)
    samples = (separator.join(row) for row in bad)
    bad_rows.add(f"row of {name} without {len(header)} fields", samples, len(bad))
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.Utf8), orient="row")
