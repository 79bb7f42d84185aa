"""Bands of rows against every way to cut them."""

from itertools import chain, combinations

import pytest

from hatllm.model.fast import stages
from hatllm.model.fast.stages import bands_of


def work(lengths: list[int], bands: list[slice], num_before: int) -> int:
    longest = [max(lengths[band]) for band in bands]
    return sum(
        stages.A_BAND + (band.stop - band.start) * size * (num_before + size)
        for band, size in zip(bands, longest, strict=True)
    )


def every_way(lengths: list[int]) -> list[list[slice]]:
    places = range(1, len(lengths))
    chosen = chain.from_iterable(combinations(places, n) for n in range(len(lengths)))
    return [
        [slice(*ends) for ends in zip((0, *cuts), (*cuts, len(lengths)), strict=True)]
        for cuts in chosen
    ]


@pytest.mark.parametrize("num_before", [0, 73])
@pytest.mark.parametrize("a_band", [0, 300, 10_000])
@pytest.mark.parametrize(
    "lengths", [[5], [4, 4, 4], [3, 3, 9, 90], [60, 80, 80, 100, 106, 122, 177], [90, 4, 60, 4]]
)
def test_no_way_to_cut_rows_into_bands_is_less_work(
    lengths: list[int], a_band: int, num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "A_BAND", a_band)
    bands = bands_of(lengths, num_before)
    rows = [row for band in bands for row in range(band.start, band.stop)]
    assert rows == list(range(len(lengths)))
    least = min(work(lengths, way, num_before) for way in every_way(lengths))
    assert work(lengths, bands, num_before) == least


def test_many_rows_of_one_length_stay_together() -> None:
    assert bands_of([7] * 500, 73) == [slice(0, 500)]
