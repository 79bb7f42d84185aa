"""Timestamps as people write them: Unix numbers of several units, dates as numbers, ISO 8601."""

import math
import time
from datetime import UTC, date, datetime

import polars as pl

MICROSECONDS = 1_000_000  # in a second
# A number below the limit counts in this unit: 1e11 seconds is the year 5138, 1e11 ms is 1973.
UNITS = (
    (1e11, "Unix seconds", 1e6),
    (1e14, "Unix milliseconds", 1e3),
    (1e17, "Unix microseconds", 1.0),
    (math.inf, "Unix nanoseconds", 1e-3),
)
UNCLEAR = 10  # a number within this factor below a limit may be of either unit: 5138, or 1970
# Dates written as numbers, and the numbers that such a column can have beside them by mistake only.
DATE_FORMS = (("20200913", 0, 1e8), ("202009131230", 1e11, 1e12), ("20200913123000", 1e13, 1e14))
DATE_YEARS = 1900, 2100
DAY = 86_400
EARLY = 631_152_000  # 1990-01-01, Unix seconds: no shop's records are older
LAST_DAY = 253_402_300_799  # the end of 9999, Unix seconds: no calendar goes further


def to_microseconds(times: pl.Series) -> tuple[pl.Series, list[str]]:
    """Return microseconds since 1970 (UTC) and notes on how the values were read.

    Args:
        times: Numbers, dates, datetimes, or texts of numbers or ISO 8601; each is read by itself.

    Returns:
        Int64 of the same length, null where a value cannot be read, and the notes.

    Raises:
        ValueError: If not one value can be read as a time, they are no numbers, dates or texts, or
            a number may be of either of two units that the column has.
    """
    if not (times.dtype.is_numeric() or times.dtype in (pl.Date, pl.Datetime, pl.Utf8, pl.Null)):
        raise ValueError(
            f"data.time_column={times.name!r} holds {times.dtype}, must be numbers, dates or texts"
        )
    if isinstance(times.dtype, pl.Date | pl.Datetime):
        return times.dt.epoch("us"), ["times were read as dates (UTC)"]
    if times.dtype == pl.Utf8:
        times = times.str.strip_chars()
    whole, number = _numbers(times)
    readings, is_date = _written_dates(whole)
    readings |= _unix_times(whole, number.set(is_date, None), times.name)
    if times.dtype == pl.Utf8:
        readings["ISO 8601"] = _iso_times(times.set(number.is_not_null(), None))
    nothing = pl.Series(times.name, [None] * len(times), dtype=pl.Int64)
    found = pl.select(pl.coalesce(nothing, *readings.values())).to_series().alias(times.name)
    if found.null_count() == len(times) and times.drop_nulls().len():
        sample = ", ".join(map(repr, times.drop_nulls().head(3)))
        raise ValueError(
            f"data.time_column={times.name!r} holds no time that can be read ({sample}): use Unix "
            "seconds or milliseconds, or ISO 8601 such as 2024-05-01T12:30:00"
        )
    return found, _how_read(readings)


def _numbers(times: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Values as Int64, where they are whole, with all their digits; and as Float64 from 0."""
    number = times.cast(pl.Float64, strict=False)
    number = number.set(~(number.is_finite() & (number >= 0)), None)
    exact = times.cast(pl.Int64, strict=False)
    rounded = number.cast(pl.Int64, strict=False)
    exact = exact.set(exact.cast(pl.Float64) != number, None)
    rounded = rounded.set(rounded.cast(pl.Float64) != number, None)
    return exact.fill_null(rounded).set(number.is_null(), None), number


def _written_dates(whole: pl.Series) -> tuple[dict[str, pl.Series], pl.Series]:
    """Microseconds of dates written as numbers, by form, and which numbers are meant as dates.

    20200913 could be Unix seconds of 1970 as well. It is a date where at least half of the numbers
    of its size, 0 aside, are days of the calendar; the others, 20209913 or 7, are then no times.
    """
    text = whole.cast(pl.Utf8)
    year = text.str.slice(0, 4).cast(pl.Int64, strict=False)
    readings, is_date = {}, pl.repeat(False, len(whole), eager=True)
    for form, low, high in DATE_FORMS:
        sized = whole.is_between(int(low), int(high), closed="left").fill_null(False)
        dated = sized & (text.str.len_chars() == len(form)) & year.is_between(*DATE_YEARS)
        moments = (
            text.set(~dated.fill_null(False), None)
            .str.pad_end(len("20200913123000"), "0")
            .str.to_datetime("%Y%m%d%H%M%S", time_unit="us", strict=False)
            .dt.epoch("us")
        )
        num_dates = moments.drop_nulls().len()
        if num_dates and 2 * num_dates >= (sized & (whole != 0)).sum():
            readings[f"dates like {form}"] = moments
            is_date |= sized
    return readings, is_date


def _unix_times(whole: pl.Series, number: pl.Series, name: str) -> dict[str, pl.Series]:
    """Reading -> microseconds of the numbers of one unit, null elsewhere.

    Raises:
        ValueError: If there are several units and a number may be of either.
    """
    readings, low = {}, 0.0
    unclear = pl.Series([], dtype=pl.Float64)
    for limit, unit, factor in UNITS:
        of_unit = ((number >= low) & (number < limit)).fill_null(False)
        low = limit
        if not of_unit.any():
            continue
        exact = whole.set(~of_unit, None)  # so that no product overflows
        exact = exact * int(factor) if factor >= 1 else exact // round(1 / factor)
        scaled = (number.set(~of_unit, None) * factor).round().cast(pl.Int64, strict=False)
        readings[unit] = exact.fill_null(scaled)
        unclear = unclear.append(number.filter(of_unit & (number >= limit / UNCLEAR)))
    if len(readings) > 1 and len(unclear):
        units = ", ".join(readings)
        raise ValueError(
            f"data.time_column={name!r} holds {units}, and {unclear[0]:.0f} may be of either of "
            "two units: write all times in one unit, or as ISO 8601"
        )
    return readings


def _iso_times(texts: pl.Series) -> pl.Series:
    moments = {text: _iso_microseconds(text) for text in texts.drop_nulls().unique()}
    return texts.replace_strict(moments or {"": None}, default=None, return_dtype=pl.Int64)


def _iso_microseconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * MICROSECONDS)


def _how_read(readings: dict[str, pl.Series]) -> list[str]:
    """One note: the reading, or how many values were read in each way."""
    counts: dict[str, int] = {}
    taken = None
    for reading, values in readings.items():
        new = values.is_not_null() if taken is None else values.is_not_null() & ~taken
        taken = new if taken is None else taken | new
        if new.any():
            counts[reading] = int(new.sum())
    if len(counts) < 2:
        return [f"times were read as {reading}" for reading in counts]
    each = ", ".join(f"{count:,} as {reading}" for reading, count in counts.items())
    return [f"times were read value by value: {each}"]


def odd_time_notes(seconds: pl.Series) -> list[str]:
    """Return notes on times that no record of a shop can have.

    Args:
        seconds: Unix seconds, Int64, none below 0.
    """
    early = seconds.filter(seconds < EARLY)
    late = seconds.filter(seconds > time.time() + DAY)
    notes = []
    if len(early):
        notes.append(f"times before 1990: {len(early):,}, the earliest on {_day(early.min())}")
    if len(late):
        notes.append(f"times after tomorrow: {len(late):,}, the latest on {_day(late.max())}")
    return notes


def _day(seconds: object) -> date:
    assert isinstance(seconds, int)
    return datetime.fromtimestamp(min(seconds, LAST_DAY), UTC).date()
