"""Ids as texts: the same id in both files, however a program wrote it."""

import re
from pathlib import Path

import polars as pl

from hatllm.data.json_lines import BLOCK_BYTES, line_blocks
from hatllm.data.sources.source_tables import as_text

# 110.0: an integer column that once had a gap, as pandas writes it. 007.0 and 1.50 are texts.
WHOLE_FLOAT = r"^(-?(?:0|[1-9][0-9]*))\.0+$"
# 1.23457E+17, 1e+17: what a spreadsheet or a float makes of a long number.
LOST_DIGITS = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$|^-?[0-9]\.[0-9]+[eE][0-9]+$"
LONG_FLOAT = rb"\s*:\s*-?[0-9]{16,}\.[0-9]"  # in JSON
EXACT_BELOW, EXACT_BELOW_32 = 2**53, 2**24  # whole numbers above are rounded; in 32 bits
MAX_ID = 40  # characters in a message


def id_texts(ids: pl.Series, field: str, file: Path) -> tuple[pl.Series, list[str]]:
    """Return ids as text, 110.0 as 110, and a note where that was done; blank ones are null.

    Args:
        ids: As the file has them.
        field: The setting that names the column, for messages.
        file: Where they stand.

    Raises:
        ValueError: If they are no texts or numbers, or numbers that have lost digits.
    """
    where = f"{field}={ids.name!r} of {file.name}"
    text = _float_texts(ids, where) if ids.dtype.is_float() else as_text(ids)
    text = text.str.strip_chars()
    text = text.set(text == "", None)
    was_float = text.filter(text.str.contains(WHOLE_FLOAT))
    size = was_float.cast(pl.Float64).abs()
    scientific = text.filter(text.str.contains(LOST_DIGITS))
    for lost in (scientific, was_float.filter(size >= EXACT_BELOW)):
        if len(lost):
            raise ValueError(_lost(where, lost[0]))
    if was_float.is_empty():
        return text, []
    first = was_float[0]
    note = f"{len(was_float):,} ids like {first} in {where} were read like {first.split('.')[0]}"
    return text.str.replace(WHOLE_FLOAT, "${1}"), [note]


def _float_texts(ids: pl.Series, where: str) -> pl.Series:
    ids = ids.set(~ids.is_finite(), None)
    exact_below = EXACT_BELOW if ids.dtype == pl.Float64 else EXACT_BELOW_32
    rounded = ids.filter(ids.abs() >= exact_below)
    if len(rounded):
        raise ValueError(_lost(where, rounded[0]))
    whole = ids.cast(pl.Int64, strict=False)
    return whole.cast(pl.Utf8).zip_with(whole.cast(ids.dtype) == ids, ids.cast(pl.Utf8))


def _lost(where: str, value: object) -> str:
    return (
        f"{where} holds {value}, a long number written as a floating-point one, which loses "
        "digits, so that different ids become one: write ids as integers or texts"
    )


def check_json_ids(path: Path, fields: dict[str, str]) -> None:
    """Refuse ids such as 9007199254740993.0 in JSON, which any reader rounds.

    Args:
        path: JSON lines, gzipped or not.
        fields: Setting -> the field of ids that it names.

    Raises:
        ValueError: If there is one.
    """
    patterns = {
        field: re.compile(re.escape(f'"{name}"').encode() + LONG_FLOAT)
        for field, name in fields.items()
    }
    for block in line_blocks(path, BLOCK_BYTES):
        for field, pattern in patterns.items():
            if found := pattern.search(block):
                value = found.group().rsplit(b":", 1)[1].strip().decode()
                raise ValueError(_lost(f"{field}={fields[field]!r} of {path.name}", value))


def check_ids_meet(
    of_interactions: pl.Series, of_items: pl.Series, interactions_file: Path, items_file: Path
) -> None:
    """Refuse two files of which no item id of one is in the other.

    Raises:
        ValueError: Naming one id of each.
    """
    if of_interactions.is_empty() or of_items.is_empty():
        return
    if of_interactions.is_in(of_items.unique().implode()).any():
        return
    one, other = (repr(ids[0])[:MAX_ID] for ids in (of_interactions, of_items))
    raise ValueError(
        f"no item id of {interactions_file} is in {items_file}: the first are {one} and {other}; "
        "an item must have the same id in both"
    )
