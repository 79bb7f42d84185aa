"""Which separator and encoding a CSV file has, told from the file."""

import codecs
import csv
from pathlib import Path

import numpy as np

SEPARATORS = (",", ";", "\t", "|")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
WESTERN = ("cp1252", "latin-1")  # the first has names for all but five bytes, the second for all
MAX_HEADER = 1 << 16  # bytes


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
