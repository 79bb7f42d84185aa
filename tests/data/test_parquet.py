"""Damaged Parquet files: a message, or what can be read of them; never the end of the process."""

from pathlib import Path

import polars as pl
import pytest

from hatllm.data.sources.source_tables import parquet_schema, read_parquet


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file as polars writes it."""
    path = tmp_path_factory.mktemp("parquet") / "plays.parquet"
    plays = {"who": [f"u{user}" for user in range(9)], "when": list(range(9))}
    pl.DataFrame(plays).write_parquet(path)
    return path.read_bytes()


def test_what_polars_writes_comes_back(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a*.parquet"  # no pattern of many files
    path.write_bytes(whole)
    assert parquet_schema(path) == {"who": pl.String(), "when": pl.Int64()}
    assert read_parquet(path, ["when"]).equals(pl.DataFrame({"when": range(9)}))
    assert read_parquet(path, ["who"])["who"].to_list() == [f"u{user}" for user in range(9)]


@pytest.mark.parametrize(
    "change", [0x01, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (0x40, 0xFF))]
)
def test_any_changed_byte_is_read_or_refused(whole: bytes, change: int, tmp_path: Path) -> None:
    path, refused = tmp_path / "plays.parquet", 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        try:
            assert set(parquet_schema(path)) and read_parquet(path, ["who"]).width <= 1
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path))
    assert 100 < refused < len(whole)


def test_a_file_cut_off_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plays.parquet"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no readable Parquet file"):
            parquet_schema(path)
