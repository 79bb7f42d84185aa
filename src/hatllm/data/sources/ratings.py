"""Ratings as numbers, read only where `data.min_rating` asks for them."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from hatllm.data.sources.tables import as_text, names_shown


def check_rating_column(column: str, found: Iterable[str], file: Path) -> None:
    """Refuse a file without the column of ratings.

    Raises:
        ValueError: Naming the file's columns.
    """
    found = list(found)
    if column not in found:
        raise ValueError(
            f"data.min_rating needs ratings, and {file} has no column {column!r} "
            f"(data.rating_column), only {names_shown(found)}"
        )


def rating_values(ratings: pl.Series, file: Path) -> pl.Series:
    """Return ratings as Float64, null where a value is no finite number.

    Args:
        ratings: As the file has them.
        file: Where they stand, for the message.

    Raises:
        ValueError: If there are rows and not one has a number, or they are lists or structures.
    """
    numbers = as_text(ratings).str.strip_chars().cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    if len(numbers) and numbers.null_count() == len(numbers):
        raise ValueError(
            f"data.rating_column={ratings.name!r} of {file} holds no number; data.min_rating=null "
            "keeps every interaction"
        )
    return numbers
