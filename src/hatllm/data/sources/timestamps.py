"""Timestamps as people write them: numbers of several units, dates, ISO 8601."""

import math
from datetime import UTC, datetime

import numpy as np
import polars as pl

MICROSECONDS = 1_000_000  # in a second
LARGEST = 2**63 - 1  # microseconds that fit
# A number below the limit counts in this unit: 1e11 seconds is the year 5138, 1e11 ms is 1973.
UNITS = (
    (1e11, "seconds", 1e6),
    (1e14, "milliseconds", 1e3),
    (1e17, "microseconds", 1.0),
    (math.inf, "nanoseconds", 1e-3),
)


def to_microseconds(times: pl.Series) -> tuple[pl.Series, str]:
    """Return microseconds since 1970 (UTC) and a note on how the values were read.

    Args:
        times: Numbers, dates, datetimes, or texts of numbers or ISO 8601.

    Returns:
        Int64 of the same length, null where a value cannot be read, and the note.

    Raises:
        ValueError: If not one value can be read as a time, or they are no numbers, dates or texts.
    """
    if not (times.dtype.is_numeric() or times.dtype in (pl.Date, pl.Datetime, pl.Utf8, pl.Null)):
        raise ValueError(
            f"data.time_column={times.name!r} holds {times.dtype}, must be numbers, dates or texts"
        )
    if isinstance(times.dtype, pl.Date | pl.Datetime):
        return times.dt.epoch("us"), "times were read as dates (UTC)"
    numbers = times.cast(pl.Int64 if times.dtype.is_integer() else pl.Float64, strict=False)
    numbers = numbers.set(numbers.cast(pl.Float64).is_nan(), None)
    if 2 * numbers.drop_nulls().len() >= times.drop_nulls().len():
        return _scaled(times, numbers)
    parsed = times.cast(pl.Utf8)
    iso = {text: _iso_microseconds(text) for text in parsed.drop_nulls().unique()}
    found = parsed.replace_strict(iso, default=None, return_dtype=pl.Int64)
    if found.null_count() == len(found):
        sample = ", ".join(map(repr, parsed.drop_nulls().head(3)))
        raise ValueError(
            f"data.time_column={times.name!r} holds no time that can be read ({sample}): use Unix "
            "seconds or milliseconds, or ISO 8601 such as 2024-05-01T12:30:00"
        )
    return found, "times were read as ISO 8601"


def _scaled(times: pl.Series, numbers: pl.Series) -> tuple[pl.Series, str]:
    """Whole numbers keep all their digits, others go through float64 (microseconds until 2255)."""
    sizes = numbers.cast(pl.Float64).abs().to_numpy()
    sizes = sizes[np.isfinite(sizes)]
    typical = float(np.median(sizes)) if sizes.size else 0.0
    unit, factor = next((unit, factor) for limit, unit, factor in UNITS if typical < limit)
    scaled = (numbers.cast(pl.Float64) * factor).round().cast(pl.Int64, strict=False)
    if not times.dtype.is_float():
        whole = times.cast(pl.Int64, strict=False)
        fits = whole.is_between(-LARGEST // max(1, int(factor)), LARGEST // max(1, int(factor)))
        whole = whole.set(~fits, None)
        scaled = (whole * int(factor) if factor >= 1 else whole // 1000).fill_null(scaled)
    return scaled.alias(times.name), f"times were read as Unix {unit}"


def _iso_microseconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * MICROSECONDS)
