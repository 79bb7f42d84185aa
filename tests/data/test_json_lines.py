import gzip
from pathlib import Path

import polars as pl
import pytest

from hatllm.data.json_lines import BadRows, line_blocks, read_json_lines

SCHEMA = {"user": pl.Utf8, "time": pl.Int64}


@pytest.mark.parametrize("block_bytes", [1, 3, 7, 100])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_blocks_hold_whole_lines(tmp_path: Path, block_bytes: int, end: bytes) -> None:
    content = b"one\n\ntwo two\nthree" + end
    path = tmp_path / "lines.gz"
    path.write_bytes(gzip.compress(content))
    blocks = list(line_blocks(path, block_bytes))
    assert b"".join(blocks) == content
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_unreadable_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_text(
        '{"user": "a", "time": 1, "more": [1, 2]}\n'
        "not json\n"
        "[1]\n"
        '{"user": "b", "time": "7"}\n'
        '{"user": "c", "time": "soon"}\n'
        '{"user": "d", "time": 2.0}\n'
        '{"time": 3}\n'
        '{"user": "cut off'
    )
    bad_rows = BadRows()
    rows = read_json_lines(path, SCHEMA, bad_rows).rows()
    assert rows == [("a", 1), ("b", 7), ("c", None), ("d", 2), (None, 3)]
    assert bad_rows.counts == {"line of reviews.json that is no JSON object": 3}


def test_a_good_file_gives_the_same_rows_as_line_by_line(tmp_path: Path) -> None:
    lines = [f'{{"user": "u{i}", "time": {i}}}' for i in range(50)]
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text("\n".join(lines))
    bad.write_text("\n".join([*lines, "oops"]))
    slow = read_json_lines(bad, SCHEMA, BadRows())
    assert read_json_lines(good, SCHEMA, BadRows()).equals(slow)


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_cut_off_gzip_file_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    content = gzip.compress(b"".join(b'{"user": "%d"}\n' % i for i in range(1000)))
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"reviews\.json\.gz is damaged or cut off"):
        read_json_lines(path, SCHEMA, BadRows())


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b'{"user": "abcdefghijklmnop"}\n' * 100))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        read_json_lines(path, SCHEMA, BadRows())
