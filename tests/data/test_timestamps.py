import time
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from hatllm.data.sources.timestamps import odd_time_notes, to_microseconds


def moment(*fields: int) -> int:
    return round(datetime(*fields, tzinfo=UTC).timestamp() * 1_000_000)  # type: ignore[arg-type]


DAY = moment(2020, 9, 13)
HALF = moment(2020, 9, 13, 12, 30)
SECONDS = HALF // 1_000_000


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ([SECONDS, SECONDS * 1000, SECONDS * 10**6, SECONDS * 10**9], [HALF] * 4),
        ([20200913, 20200914, 20209913, 7, 0], [DAY, moment(2020, 9, 14), None, None, None]),
        ([20200913123000, 20200913000000], [HALF, DAY]),
        ([202009131230, 202009130000], [HALF, DAY]),
        ([20200913, SECONDS, SECONDS * 1000], [DAY, HALF, HALF]),
        ([20200913, 5, 6], [20200913_000_000, 5_000_000, 6_000_000]),  # counts, not one a day
        ([0, 60_000], [0, 60_000_000_000]),
    ],
)
def test_each_number_is_read_in_its_own_unit(
    written: list[int], meant: list[int | None], as_text: bool
) -> None:
    values: list[Any] = [str(number) for number in written] if as_text else list(written)
    assert to_microseconds(pl.Series("at", values))[0].to_list() == meant


def test_numbers_and_texts_of_one_column_are_both_read() -> None:
    times, notes = to_microseconds(
        pl.Series("at", ["2020-09-13", f" {SECONDS}", "2020-09-13T12:30Z", "soon"])
    )
    assert times.to_list() == [DAY, HALF, HALF, None]
    assert notes == ["times were read value by value: 1 as Unix seconds, 2 as ISO 8601"]


def test_a_number_of_either_of_two_units_is_refused_with_them() -> None:
    with pytest.raises(ValueError) as caught:
        to_microseconds(pl.Series("at", [5 * 10**10, SECONDS * 1000]))
    assert "data.time_column='at' holds Unix seconds, Unix milliseconds" in str(caught.value)
    assert "50000000000 may be of either" in str(caught.value)


def test_alone_such_a_number_is_read_and_noted() -> None:
    times, _ = to_microseconds(pl.Series("at", [5 * 10**10]))
    assert times.to_list() == [5 * 10**16]
    assert odd_time_notes(times // 1_000_000) == [
        "times after tomorrow: 1, the latest on 3554-06-09"
    ]


def test_times_before_1990_and_after_tomorrow_are_noted() -> None:
    now = int(time.time())
    good = pl.Series([631_152_000, now, now + 3600])
    assert odd_time_notes(good) == []
    odd = pl.Series([631_151_999, 0, now, 4_102_444_800, 10**13])
    assert odd_time_notes(odd) == [
        "times before 1990: 2, the earliest on 1970-01-01",
        "times after tomorrow: 2, the latest on 9999-12-31",
    ]
