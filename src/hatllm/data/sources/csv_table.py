"""CSV files as columns of text."""

import codecs
import csv
import io
import re
from pathlib import Path

import numpy as np
import polars as pl

from hatllm.data.json_lines import BLOCK_BYTES, BadRows, line_blocks
from hatllm.files import POLARS_ERRORS

MAX_FIELD_CHARACTERS = 1 << 30
EMPTY_LINE = re.compile(rb"(?:^|\n)\r?\n")
ESCAPED_QUOTE = b'\\"'  # of some databases; the standard doubles it
UNDECODED = re.compile("[\ud800-\udfff]")  # bytes that are no UTF-8, under surrogateescape
SEPARATORS = (",", ";", "\t", "|")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
WESTERN = ("cp1252", "latin-1")  # the first has names for all but five bytes, the second for all
MAX_HEADER = 1 << 16  # bytes


def read_csv_texts(path: Path, separator: str, bad_rows: BadRows) -> pl.DataFrame:
    """Return all columns of a CSV file in UTF-8 as Utf8, see `parse_csv`."""
    return parse_csv(csv_content(path), separator, bad_rows, path)


def csv_content(path: Path) -> bytes:
    """Return the bytes of a CSV file, gzipped or not.

    Raises:
        ValueError: If it is empty, or a gzip file is damaged or ends too early.
    """
    content = b"".join(line_blocks(path, BLOCK_BYTES))
    if not content.strip():
        raise ValueError(f"{path} is empty; its first line must name the columns")
    return content


def parse_csv(content: bytes, separator: str, bad_rows: BadRows, path: Path) -> pl.DataFrame:
    """Return all columns of a CSV file as Utf8.

    A row that has too many or too few fields, or is not UTF-8, is a bad row.

    Args:
        content: UTF-8, with a header.
        separator: One character.
        bad_rows: Takes rows that cannot be read.
        path: For messages.

    Raises:
        ValueError: If the file is not UTF-8, or a quote is never closed.
    """
    if content.startswith(UTF_16):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8")
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # lines of an old Macintosh
    # polars does not tell what it makes of a stray or escaped quote, and takes an empty line for a
    # row.
    plain = _quotes_are_closed(content) and ESCAPED_QUOTE not in content
    if plain and not EMPTY_LINE.search(content):
        try:
            return pl.read_csv(content, separator=separator, infer_schema=False)
        except POLARS_ERRORS:  # one bad row fails the file: find it
            pass
    return _read_row_by_row(content, separator, bad_rows, path)


def _read_row_by_row(content: bytes, separator: str, bad_rows: BadRows, path: Path) -> pl.DataFrame:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    text = content.decode("utf-8-sig", errors="surrogateescape")
    try:
        rows = _rows(text, separator, None, path)
    except ValueError:
        if ESCAPED_QUOTE not in content:
            raise
        rows = _rows(text, separator, "\\", path)
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


def _rows(text: str, separator: str, escape: str | None, path: Path) -> list[list[str]]:
    """All rows but the empty ones.

    Raises:
        ValueError: If a quote stands where none may.
    """
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, escapechar=escape
    )
    rows: list[list[str]] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: the row that begins in line {start} has {error}") from error
    return rows


def _quotes_are_closed(content: bytes) -> bool:
    """Whether every line has an even number of quotes, so that no field goes over its end."""
    characters = np.frombuffer(content, np.uint8)
    quotes = np.cumsum(characters == ord('"'))
    return bool((quotes[characters == ord("\n")] % 2 == 0).all() and quotes[-1] % 2 == 0)


def _is_utf8(fields: list[str]) -> bool:
    return not any(UNDECODED.search(field) for field in fields)


def _readable(text: str) -> str:
    return UNDECODED.sub("\N{REPLACEMENT CHARACTER}", text)


def as_utf8(content: bytes, encoding: str | None, path: Path) -> tuple[bytes, list[str]]:
    """Return a file's content in UTF-8, and a note where it was in an encoding nobody named.

    Args:
        content: The file's bytes.
        encoding: Of the file; None = told from the bytes. What is called UTF-8 is passed on as it
            is, rows in another encoding included.
        path: For messages.

    Raises:
        ValueError: If the content is not in that encoding, or none can be told.
    """
    found = told_encoding(content, path) if encoding is None else encoding
    if codecs.lookup(found).name in ("utf-8", "utf-8-sig"):
        return content, []
    try:
        text = content.decode(found).removeprefix("\ufeff")
    except UnicodeError as error:
        raise ValueError(f"data.encoding={encoding}: {path} is not {found}: {error}") from error
    note = f"{path.name} was read as {found} (data.encoding), for it is not UTF-8"
    return text.encode(), [note] if encoding is None else []


def told_encoding(content: bytes, path: Path) -> str:
    """Return ``utf-8``, ``utf-16``, or a Western one where no line with other than ASCII is UTF-8.

    A few lines in another encoding than the others' are left to be bad rows of UTF-8.

    Raises:
        ValueError: If the file is in some other encoding, which cannot be told from its bytes.
    """
    if content.startswith(UTF_16):
        return "utf-16"
    foreign = [line for line in content.split(b"\n") if not line.isascii()]
    if not foreign or any(_decodes(line, "utf-8") for line in foreign):
        return "utf-8"
    high = np.frombuffer(b"\n".join(foreign), np.uint8) >= 0x80
    if 2 * (high[1:] & high[:-1]).sum() > high.sum():  # whole words: no Western language
        raise ValueError(
            f"{path} is not UTF-8: save it as UTF-8, or name its encoding, such as "
            "data.encoding=cp1251, gbk or shift_jis"
        )
    return next(name for name in WESTERN if _decodes(content, name))


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def told_separator(content: bytes, columns: list[str], default: str) -> str:
    """Return the separator under which the header has most of ``columns``, then most fields.

    Args:
        content: The file in UTF-8.
        columns: Names looked for.
        default: What the file's name says; taken where nothing tells.
    """
    lines = content[:MAX_HEADER].decode("utf-8-sig", errors="replace").splitlines()
    header = next((line for line in lines if line.strip()), "")

    def fit(separator: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=separator))
        except csv.Error:
            return 0, 0
        return len(set(columns) & set(names)), len(names)

    return max((default, *SEPARATORS), key=fit)
